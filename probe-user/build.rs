//! Embeds the eBPF object that `cargo xtask build-ebpf` creates.
//!
//! Without the object the build still succeeds: the probe then reports that it was built without
//! its eBPF programs, and everything else works. `WATTCAST_BPF_OBJECT` names an object at another
//! path.

use std::{
    env, fs,
    io::{self, Write as _},
    path::PathBuf,
};

use flate2::{Compression, write::ZlibEncoder};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| manifest.join("../target"), PathBuf::from);
    let object = env::var_os("WATTCAST_BPF_OBJECT").map_or_else(|| target.join("bpf/wattcast.bpf.o"), PathBuf::from);
    println!("cargo::rerun-if-env-changed=WATTCAST_BPF_OBJECT");
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = fs::read(&object).unwrap_or_default();
    if bytes.is_empty() {
        println!(
            "cargo::warning=no eBPF object at {}: this build cannot see CPU time per container. Run `cargo xtask build-ebpf` first.",
            object.display()
        );
    }
    if let Err(error) = packed(&bytes).and_then(|packed| fs::write(out.join("wattcast.bpf.o.zlib"), packed)) {
        println!("cargo::error=cannot write the eBPF object to OUT_DIR: {error}");
    }
}

/// The object in the format of zlib, a fifth of its size; empty if there is none.
fn packed(object: &[u8]) -> io::Result<Vec<u8>> {
    if object.is_empty() {
        return Ok(Vec::new());
    }
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(object)?;
    encoder.finish()
}
