//! fdinfo of DRM drivers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = probe_user::gpu::parse_drm(text);
    let _ = text.parse::<probe_user::host::gpu_id::GpuId>();
    let _ = text.parse::<probe_user::gpu::engines::EngineWeights>();
});
