//! Checks of the sources: format, lints, fuzz targets, licences, lints for the other architecture.

use std::process::Command;

use anyhow::Result;
use testkit::shell::{output, root, run, target, which};

use super::report::Report;
use crate::cross_lint;

const CLIPPY: [&str; 7] = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
const FORMAT: [&str; 3] = ["fmt", "--all", "--check"];
const DENY: [&str; 7] = ["deny", "--log-level", "error", "check", "bans", "licenses", "sources"];

/// What takes a second.
pub(super) fn first(report: &mut Report) {
    report.outcome("cargo fmt", run("cargo fmt", Command::new("cargo").args(FORMAT).current_dir(root())));
}

/// Clippy looks again only at crates that changed, and at those that use them.
pub(super) fn clippy(report: &mut Report) {
    report.outcome("cargo clippy", run("cargo clippy", Command::new("cargo").args(CLIPPY).current_dir(root())));
}

/// What compiles while the tests run: it gets the CPU time that they leave.
pub(super) fn background(report: &mut Report) {
    report.outcome("cargo clippy", niced(&CLIPPY));
    // Only checked: running them needs a nightly compiler and time. What no longer compiles would be found too late.
    let target = target();
    let fuzz = ["check", "--quiet", "--manifest-path", "fuzz/Cargo.toml", "--target-dir", &target.to_string_lossy()];
    report.outcome("fuzz targets compile", niced(&fuzz));
    match cross_lint::cross_lint() {
        Ok(None) => report.outcome("cargo clippy for aarch64", Ok(())),
        Ok(Some(reason)) => report.skip(&format!("cargo clippy for aarch64: {reason}")),
        Err(error) => report.outcome("cargo clippy for aarch64", Err(error)),
    }
    if which("cargo-deny").is_some() || output(Command::new("cargo").args(["deny", "--version"])).is_ok() {
        report.outcome("cargo deny", niced(&DENY));
    } else {
        report.skip("cargo deny: not installed (cargo install cargo-deny --locked)");
    }
}

/// Runs cargo at the lowest priority, silently unless it fails.
fn niced(args: &[&str]) -> Result<()> {
    output(Command::new("nice").args(["-n", "19", "cargo"]).args(args).current_dir(root())).map(drop)
}
