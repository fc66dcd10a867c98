//! Unique names and private copies of directory trees.

use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Result;

use crate::shell::output;

/// A unique name for a cgroup or a container: `wattcast-test-KIND-PID-NUMBER`.
#[must_use]
pub fn unique(kind: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("wattcast-test-{kind}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A copy of a directory tree that the test may change; removed when dropped.
///
/// # Errors
/// When it cannot be copied.
pub fn copy(tree: &Path) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    output(Command::new("cp").arg("-a").arg(tree.join(".")).arg(dir.path()))?;
    Ok(dir)
}
