//! The interval of modelled energy, as every surface shows it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The 90 % interval of modelled energy: the truth per estimate, lower and upper limit. In JSON it
/// is an array of both.
///
/// ```
/// use units::model_interval::ModelInterval;
///
/// let interval = ModelInterval::from_thousandths([-214, 328]);
/// assert_eq!(interval.limits(), [0.786, 1.328]);
/// assert_eq!(interval.to_string(), "90 % interval -21 % … +33 %");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "[f64; 2]", try_from = "[f64; 2]")]
pub struct ModelInterval([f64; 2]);

impl ModelInterval {
    /// From the thousandths of the estimate by which the truth differs.
    #[must_use]
    pub fn from_thousandths(limits: [i32; 2]) -> Self {
        Self(limits.map(|thousandths| (1000.0 + f64::from(thousandths)) / 1000.0))
    }

    /// Lower and upper limit, as the truth per estimate.
    #[must_use]
    pub const fn limits(self) -> [f64; 2] {
        self.0
    }

    /// The interval of the sum of two estimates whose parts are not known: the errors of one model
    /// have the same sign.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self([self.0[0].min(other.0[0]), self.0[1].max(other.0[1])])
    }

    /// The union of those that are known.
    #[must_use]
    pub fn widest(all: impl IntoIterator<Item = Option<Self>>) -> Option<Self> {
        all.into_iter().flatten().reduce(Self::union)
    }
}

impl From<ModelInterval> for [f64; 2] {
    fn from(interval: ModelInterval) -> Self {
        interval.0
    }
}

impl TryFrom<[f64; 2]> for ModelInterval {
    type Error = &'static str;

    fn try_from(limits: [f64; 2]) -> Result<Self, Self::Error> {
        let [low, high] = limits;
        // Also refuses what is no number.
        if (0.0..=high).contains(&low) && high.is_finite() {
            Ok(Self(limits))
        } else {
            Err("the limits of an interval must be numbers from zero, the lower one first")
        }
    }
}

impl fmt::Display for ModelInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, high] = self.0.map(|ratio| (ratio - 1.0) * 100.0);
        write!(f, "90 % interval {low:+.0} % … {high:+.0} %")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_has_the_wider_limits_of_its_parts() {
        let (package, machine) =
            (ModelInterval::from_thousandths([-400, 200]), ModelInterval::from_thousandths([-100, 300]));
        assert_eq!(package.union(machine), ModelInterval::from_thousandths([-400, 300]));
    }

    #[test]
    fn limits_that_are_no_interval_are_refused() {
        for limits in [[f64::NAN, 1.0], [0.5, f64::INFINITY], [-0.1, 1.0], [1.2, 1.1], [0.5, f64::NAN]] {
            assert!(ModelInterval::try_from(limits).is_err(), "{limits:?}");
        }
        assert!(ModelInterval::try_from([0.0, 0.0]).is_ok());
    }
}
