//! Names and directory trees that a test has for itself.

use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Result;

use crate::shell::output;

/// A name that no other test uses, for a cgroup or a container: `wattcast-test-WHAT-PID-NUMBER`.
#[must_use]
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("wattcast-test-{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A copy of a directory tree that the test may change; removed with the value.
///
/// # Errors
/// When it cannot be copied.
pub fn copy(tree: &Path) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    output(Command::new("cp").arg("-a").arg(tree.join(".")).arg(dir.path()))?;
    Ok(dir)
}
