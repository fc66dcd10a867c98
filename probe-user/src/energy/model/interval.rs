//! The interval of an estimate.

use serde::{Deserialize, Serialize};

/// The 90 % interval of an estimate: by how many thousandths of the estimate the truth differs,
/// lower and upper limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// Of idle power.
    pub idle: [i32; 2],
    /// Of the power at full load.
    pub full: [i32; 2],
    /// Of the energy, averaged over all loads.
    pub energy: [i32; 2],
}
