//! Clippy for the other shipped architecture: it finds types that differ between the two, such as
//! `c_char`, in seconds.
//!
//! Nothing is linked, so neither a cross linker nor a C compiler is needed. Only the target's
//! standard library is: rustup's prebuilt one, or, where that cannot be fetched, one checked from
//! the source that a nightly toolchain has.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{background::low_priority, build_ebpf::Compiler};
use testkit::shell::{output, root, step, target, which};

/// The shipped crates. The analysis service links to musl, which has the same differences between
/// architectures as glibc.
const SHIPPED: [&str; 16] = [
    "probe-ebpf",
    "probe-user",
    "analysis",
    "wattcast-cli",
    "wattcast-client",
    "wattcast-experiment",
    "wattcast-export",
    "wattcast-ffmpeg",
    "wattcast-http",
    "wattcast-lease",
    "wattcast-metrics",
    "wattcast-results",
    "wattcast-statistics",
    "wattcast-top",
    "wattcast-units",
    "wattcast-web",
];

/// Replaces the target's C compiler in build scripts: ring's objects are never linked here. It
/// fails without -o, which makes the crate cc treat it as a GNU compiler.
const C_COMPILER: &str = r#"#!/bin/sh
for argument do
    [ "$before" = -o ] && exec touch "$argument"
    before=$argument
done
exit 1
"#;

/// Runs clippy on the shipped crates for the architecture that this machine does not have. Returns
/// the reason where it cannot run here.
pub fn cross_lint() -> Result<Option<String>> {
    let arch = if cfg!(target_arch = "aarch64") { "x86_64" } else { "aarch64" };
    let triple = format!("{arch}-unknown-linux-gnu");
    let library = match Library::find(&triple) {
        Ok(library) => library,
        Err(reason) => return Ok(Some(format!("{triple}: {reason:#}"))),
    };
    lint(&triple, &library)?;
    Ok(None)
}

/// The origin of the target's standard library.
enum Library {
    Prebuilt,
    /// From source, by this nightly compiler.
    Source(Compiler),
}

impl Library {
    fn find(triple: &str) -> Result<Self> {
        let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(root()))?;
        if Path::new(&sysroot).join("lib/rustlib").join(triple).join("lib").is_dir() {
            return Ok(Self::Prebuilt);
        }
        let added = match which("rustup") {
            Some(rustup) => output(Command::new(rustup).args(["target", "add", triple]).current_dir(root())).map(drop),
            None => bail!("its standard library is not installed, and rustup is not in PATH"),
        };
        let Err(error) = added else { return Ok(Self::Prebuilt) };
        step(format!("no prebuilt standard library for {triple}: {error:#}"));
        Compiler::nightly().map(Self::Source).context("rustup cannot add its standard library, and there is no source")
    }
}

fn lint(triple: &str, library: &Library) -> Result<()> {
    // A separate directory, so that no linking build finds the empty objects of ring.
    let dir = target().join("cross-lint");
    let compiler = c_compiler(&dir)?;
    let cargo = match library {
        Library::Prebuilt => Command::new("cargo"),
        Library::Source(nightly) => nightly.cargo(),
    };
    // Must not slow down tests that run at the same time.
    let mut nice = low_priority(cargo.get_program());
    nice.args(cargo.get_args()).current_dir(root());
    nice.args(["clippy", "--quiet", "--lib", "--bins", "--target", triple, "--target-dir"]).arg(&dir);
    nice.args(SHIPPED.iter().flat_map(|package| ["--package", package]));
    let suffix = triple.replace('-', "_");
    nice.env(format!("CC_{suffix}"), &compiler).env(format!("AR_{suffix}"), "ar");
    nice.env("CARGO_PROFILE_DEV_DEBUG", "0");
    match library {
        Library::Prebuilt => nice.args(["--", "-D", "warnings"]),
        // A nightly clippy has newer lints; only compile errors count.
        Library::Source(_) => nice.args(["-Z", "build-std", "--", "-A", "warnings"]),
    };
    output(&mut nice).map(drop)
}

fn c_compiler(dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let path = dir.join("cc");
    fs::write(&path, C_COMPILER)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}
