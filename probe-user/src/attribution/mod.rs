//! Energy attribution: turns raw ticks into snapshots.

mod accountant;
pub mod baseline_file;
pub mod calibration_file;
mod gpu;
mod root;
pub(crate) mod saved_totals;
mod start_mark;
mod state_file;
pub(crate) mod totals_file;

pub use accountant::Accountant;
