//! What the kernel's graphics drivers say of an open file.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = probe_user::gpu::parse_drm(text);
    let _ = text.parse::<probe_user::gpu::engines::GpuId>();
    let _ = text.parse::<probe_user::gpu::engines::EngineWeights>();
});
