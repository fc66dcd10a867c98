//! Energy as an integer. A microjoule is the unit of powercap's counters; 2^64 of them are 5 TWh.

use std::{
    fmt,
    iter::Sum,
    ops::{Add, AddAssign, Sub},
};

/// Microjoules. Sums are exact; what would not fit saturates, five terawatt-hours from now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Microjoules(pub u64);

impl Microjoules {
    /// No energy.
    pub const ZERO: Self = Self(0);

    /// Joules for output, the nearest double. Below 2^32 J (1.2 MWh) [`Microjoules::from_joules`] gives the microjoule
    /// back; above it doubles are more than a microjoule apart.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "output only; both parts are below 2^53")]
    pub fn joules(self) -> f64 {
        let (whole, rest) = (self.0 / 1_000_000, self.0 % 1_000_000);
        whole as f64 + rest as f64 / 1e6
    }

    /// The microjoules nearest to what [`Microjoules::joules`] gave. Negative and unreal values give zero.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float to int casts saturate")]
    pub fn from_joules(joules: f64) -> Self {
        // Whole joules and the fraction apart: multiplying the whole by 1e6 would round a second time.
        let whole = joules.trunc();
        Self((whole as u64).saturating_mul(1_000_000).saturating_add(((joules - whole) * 1e6).round() as u64))
    }

    /// Energy of a power in microwatts over a time, rounded down.
    #[must_use]
    pub fn of(microwatts: u64, nanoseconds: u64) -> Self {
        let product = u128::from(microwatts) * u128::from(nanoseconds) / 1_000_000_000;
        Self(u64::try_from(product).unwrap_or(u64::MAX))
    }

    /// Mean power in watts over `nanoseconds`; absent for an empty interval.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "output only; an interval has fewer than 2^53 ns (104 days)")]
    pub fn watts_over(self, nanoseconds: u64) -> Option<f64> {
        (nanoseconds > 0).then(|| self.0 as f64 * 1e3 / nanoseconds as f64)
    }
}

impl Add for Microjoules {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Microjoules {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Microjoules {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Sum for Microjoules {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Microjoules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} J", self.joules())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn power_times_time() {
        assert_eq!(Microjoules::of(1_000_000, 1_000_000_000), Microjoules(1_000_000));
        assert_eq!(Microjoules::of(u64::MAX, u64::MAX), Microjoules(u64::MAX));
        assert_eq!(Microjoules(2_000_000).watts_over(500_000_000), Some(4.0));
        assert_eq!(Microjoules(1).watts_over(0), None);
    }

    proptest! {
        #[test]
        fn joules_round_back_to_the_microjoule(uj in 0u64..(1 << 32) * 1_000_000) {
            prop_assert_eq!(Microjoules::from_joules(Microjoules(uj).joules()), Microjoules(uj));
        }
    }
}
