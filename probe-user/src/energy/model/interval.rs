//! The interval of an estimate.

use serde::{Deserialize, Serialize};
use units::model_interval::ModelInterval;

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

impl Interval {
    /// The interval of the energy, which views show.
    #[must_use]
    pub fn of_energy(self) -> ModelInterval {
        ModelInterval::from_thousandths(self.energy)
    }
}
