//! Checks that are no tests: format, lints, fuzz targets, licences, lints for the other
//! architecture.

use std::process::Command;

use anyhow::Result;
use testkit::shell::{output, root, run, target, which};

use super::report::Report;
use crate::{background::low_priority, cross_lint};

const CLIPPY: [&str; 7] = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
const FORMAT: [&str; 3] = ["fmt", "--all", "--check"];
const DENY: [&str; 7] = ["deny", "--log-level", "error", "check", "bans", "licenses", "sources"];

/// The check that takes a second.
pub(super) fn first(report: &mut Report) {
    report.outcome("cargo fmt", run("cargo fmt", Command::new("cargo").args(FORMAT).current_dir(root())));
}

/// Runs clippy, which checks only the crates that changed and those that use them.
pub(super) fn clippy(report: &mut Report) {
    report.outcome("cargo clippy", run("cargo clippy", Command::new("cargo").args(CLIPPY).current_dir(root())));
}

/// Checks that compile while the tests run, at the lowest priority.
pub(super) fn background(report: &mut Report) {
    report.outcome("cargo clippy", niced(&CLIPPY));
    // Only checked: running them needs a nightly compiler and time.
    let target = target();
    let fuzz = ["check", "--quiet", "--manifest-path", "fuzz/Cargo.toml", "--target-dir", &target.to_string_lossy()];
    report.outcome("fuzz targets compile", niced(&fuzz));
    report.outcome("doc tests", niced(&["test", "--quiet", "--doc", "--workspace"]));
    report.outcome("cargo doc", document());
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

/// Builds the documentation, in which every link must resolve.
fn document() -> Result<()> {
    let mut command = low_priority("cargo");
    command.args(["doc", "--quiet", "--no-deps", "--workspace", "--document-private-items"]);
    output(command.env("RUSTDOCFLAGS", "-D warnings").current_dir(root())).map(drop)
}

/// Runs cargo at the lowest priority, silently unless it fails.
fn niced(args: &[&str]) -> Result<()> {
    output(low_priority("cargo").args(args).current_dir(root())).map(drop)
}
