//! A probe whose arithmetic is tested.

use std::path::PathBuf;

pub(super) struct Probe {
    /// Its column: `before`, `after`; empty when there is only one.
    pub(super) label: &'static str,
    pub(super) path: PathBuf,
}
