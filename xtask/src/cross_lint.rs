//! Clippy for the other architecture that is shipped: types that differ between the two, as
//! `c_char` does, fail here in seconds.
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

use crate::build_ebpf::Compiler;
use testkit::shell::{output, root, step, target, which};

/// The crates that are shipped. The analysis service is linked to musl, but what differs between architectures is the same there.
const SHIPPED: [&str; 4] = ["probe-ebpf", "exporter", "probe-user", "analysis"];

/// Stands in for the target's C compiler when a build script asks for one: ring's objects are never
/// linked here. It fails where there is no -o: that is how the crate cc, which asks a compiler for
/// its family, takes it for GNU's.
const C_COMPILER: &str = r#"#!/bin/sh
for argument do
    [ "$before" = -o ] && exec touch "$argument"
    before=$argument
done
exit 1
"#;

/// Runs clippy for the architecture that this machine does not have, on all shipped crates.
///
/// Gives the reason when it cannot run here.
///
/// # Errors
/// When clippy finds something.
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

/// Where the target's standard library comes from.
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
    // A directory of its own: an empty object of ring's must never be found by a build that links.
    let dir = target().join("cross-lint");
    let compiler = c_compiler(&dir)?;
    let cargo = match library {
        Library::Prebuilt => Command::new("cargo"),
        Library::Source(nightly) => nightly.cargo(),
    };
    // It may run beside tests, which it must not slow.
    let mut nice = Command::new("nice");
    nice.args(["-n", "19"]).arg(cargo.get_program()).args(cargo.get_args()).current_dir(root());
    nice.args(["clippy", "--quiet", "--lib", "--bins", "--target", triple, "--target-dir"]).arg(&dir);
    nice.args(SHIPPED.iter().flat_map(|package| ["--package", package]));
    let suffix = triple.replace('-', "_");
    nice.env(format!("CC_{suffix}"), &compiler).env(format!("AR_{suffix}"), "ar");
    // Nothing runs but build scripts.
    nice.env("CARGO_PROFILE_DEV_DEBUG", "0");
    match library {
        Library::Prebuilt => nice.args(["--", "-D", "warnings"]),
        // A nightly clippy has lints that the tree was not written for; what does not compile fails
        // all the same.
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
