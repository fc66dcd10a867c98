//! Energy attribution: turns raw ticks into snapshots.

mod accountant;
pub mod baseline_file;
mod gpu;
mod root;

pub use accountant::Accountant;
