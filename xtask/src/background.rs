//! Priority of the checks that compile in the background of the tests.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

/// Set when the tests have ended.
static TESTS_ENDED: AtomicBool = AtomicBool::new(false);

/// A program that runs at the lowest priority while the tests run, and at the usual one afterwards.
pub(crate) fn low_priority(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", if TESTS_ENDED.load(Ordering::Relaxed) { "0" } else { "19" }]).arg(program);
    command
}

/// Gives the checks the usual priority: nothing is left that they could slow down, and at the
/// lowest one another load on the machine would stop them for as long as it lasts. Without the
/// privilege (CAP_SYS_NICE) the running check keeps its priority.
pub(crate) fn raise_priority() {
    TESTS_ENDED.store(true, Ordering::Relaxed);
    // The checks are in the process group of this program.
    let own = rustix::process::getpriority_process(None).unwrap_or(0);
    let _ = rustix::process::setpriority_pgrp(None, own);
}
