//! Energy as exact integers.
//!
//! [`Microjoules`] is an amount of energy; the microjoule is the unit of the powercap counters.
//! [`Unit`] is the energy of one count of a hardware counter. [`provenance`] says which energy was
//! not measured, and [`model_interval`] how far a model may be from the truth.

#![forbid(unsafe_code)]

pub mod model_interval;
pub mod provenance;

use std::{
    fmt,
    iter::Sum,
    ops::{Add, AddAssign, Sub},
};

use serde::{Deserialize, Serialize};

/// Energy in microjoules. Arithmetic is exact and saturates at the limits; 2^64 µJ are 5 TWh.
///
/// ```
/// use units::Microjoules;
///
/// // 12 W for a quarter of a second.
/// let energy = Microjoules::from_power(12_000_000, 250_000_000);
/// assert_eq!(energy, Microjoules(3_000_000));
/// assert_eq!(energy.joules(), 3.0);
/// assert_eq!(energy.watts_over(250_000_000), Some(12.0));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Microjoules(pub u64);

impl Microjoules {
    /// Zero energy.
    pub const ZERO: Self = Self(0);

    /// Joules as the nearest double, for output. Below 2^32 J (1.2 MWh)
    /// [`Microjoules::from_joules`] restores the exact value; above, doubles are more than a
    /// microjoule apart.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "output only; both parts are below 2^53")]
    pub fn joules(self) -> f64 {
        let (whole, rest) = (self.0 / 1_000_000, self.0 % 1_000_000);
        whole as f64 + rest as f64 / 1e6
    }

    /// The nearest whole number of microjoules. Negative values and NaN give zero.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float to int casts saturate")]
    pub fn from_joules(joules: f64) -> Self {
        // The whole joules and the fraction are converted separately: multiplying their sum by 1e6
        // would round twice.
        let whole = joules.trunc();
        Self((whole as u64).saturating_mul(1_000_000).saturating_add(((joules - whole) * 1e6).round() as u64))
    }

    /// Energy of a power in microwatts over a time in nanoseconds, rounded down.
    #[must_use]
    pub fn from_power(microwatts: u64, nanoseconds: u64) -> Self {
        let product = u128::from(microwatts) * u128::from(nanoseconds) / 1_000_000_000;
        Self(u64::try_from(product).unwrap_or(u64::MAX))
    }

    /// Mean power in watts over `nanoseconds`; `None` for an empty interval.
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

/// The energy of one count of a counter, as an exact fraction of microjoules, so that sums do not
/// drift.
///
/// ```
/// use units::{Microjoules, Unit};
///
/// let unit = Unit::joules_shifted(14).unwrap();
/// assert_eq!(unit.microjoules(1 << 14), Microjoules(1_000_000));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    numerator: u64,
    denominator: u64,
}

impl Unit {
    /// Counts of microjoules.
    pub const MICROJOULE: Self = Self { numerator: 1, denominator: 1 };

    /// Counts of millijoules, the unit of NVML's energy counter.
    pub const MILLIJOULE: Self = Self { numerator: 1000, denominator: 1 };

    /// Counts of `tenths` tenths of a microjoule.
    #[must_use]
    pub const fn tenths(tenths: u64) -> Self {
        Self { numerator: tenths, denominator: 10 }
    }

    /// Counts of `numerator / denominator` microjoules. The fraction is reduced; `None` if either
    /// part is zero or does not fit into 64 bits.
    #[must_use]
    pub fn new(numerator: u128, denominator: u128) -> Option<Self> {
        let (mut a, mut b) = (numerator, denominator);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        if numerator == 0 || denominator == 0 {
            return None;
        }
        Some(Self { numerator: (numerator / a).try_into().ok()?, denominator: (denominator / a).try_into().ok()? })
    }

    /// Counts of `2^-exponent` joules, the unit of RAPL registers (Intel SDM 14.10.1; AMD PPR,
    /// RAPL_PWR_UNIT).
    #[must_use]
    pub fn joules_shifted(exponent: u32) -> Option<Self> {
        Self::new(1_000_000, 1_u128.checked_shl(exponent)?)
    }

    /// Parses the joules of one count from a decimal like `2.3283064365386962890625e-10`
    /// (`events/*.scale` of a PMU), exactly. `None` if it is not a positive decimal number or does
    /// not fit.
    #[must_use]
    pub fn parse_joules(text: &str) -> Option<Self> {
        let (mantissa, exponent) = match text.trim().split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (text.trim(), 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        // Six decimal places lie between joules and microjoules.
        let places = i32::try_from(fraction.len()).ok()?.checked_sub(exponent)?.checked_sub(6)?;
        let power = 10_u128.checked_pow(places.unsigned_abs())?;
        let digits: u128 = digits.parse().ok()?;
        if places >= 0 { Self::new(digits, power) } else { Self::new(digits.checked_mul(power)?, 1) }
    }

    /// The energy of `counts`, rounded down.
    #[must_use]
    pub fn microjoules(self, counts: u64) -> Microjoules {
        let product = u128::from(counts) * u128::from(self.numerator) / u128::from(self.denominator);
        Microjoules(u64::try_from(product).unwrap_or(u64::MAX))
    }

    /// Microjoules of one count, rounded up.
    #[must_use]
    pub fn step_uj(self) -> u64 {
        self.numerator.div_ceil(self.denominator)
    }

    /// False for a deserialised unit with a zero numerator or denominator.
    #[must_use]
    pub fn is_valid(self) -> bool {
        self.numerator > 0 && self.denominator > 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn energy_is_power_times_time() {
        assert_eq!(Microjoules::from_power(1_000_000, 1_000_000_000), Microjoules(1_000_000));
        assert_eq!(Microjoules::from_power(u64::MAX, u64::MAX), Microjoules(u64::MAX));
        assert_eq!(Microjoules(2_000_000).watts_over(500_000_000), Some(4.0));
        assert_eq!(Microjoules(1).watts_over(0), None);
    }

    #[test]
    fn counter_units_are_exact() {
        // 2^-32 J, as the kernel prints it (arch/x86/events/rapl.c).
        let perf = Unit::parse_joules("2.3283064365386962890625e-10\n").unwrap();
        assert_eq!(perf, Unit { numerator: 15_625, denominator: 1 << 26 });
        assert_eq!(perf, Unit::joules_shifted(32).unwrap());
        assert_eq!(perf.microjoules(1 << 32), Microjoules(1_000_000));
        assert_eq!(Unit::parse_joules("1e-9").unwrap(), Unit { numerator: 1, denominator: 1000 });
        assert_eq!(Unit::parse_joules("0.5").unwrap().microjoules(3), Microjoules(1_500_000));
        assert_eq!(Unit::parse_joules("2e3").unwrap().microjoules(1), Microjoules(2_000_000_000));
        for wrong in ["", "0", "-1e-9", "1e-90", "nan", "1.2.3", "e", "1e99999999999"] {
            assert_eq!(Unit::parse_joules(wrong), None, "{wrong}");
        }
        assert_eq!(Unit::joules_shifted(14).unwrap().step_uj(), 62);
    }

    proptest! {
        #[test]
        fn parsed_units_are_valid(text in ".{0,40}") {
            if let Some(unit) = Unit::parse_joules(&text) {
                prop_assert!(unit.is_valid());
            }
        }

        #[test]
        fn joules_round_trip_to_the_microjoule(uj in 0u64..(1 << 32) * 1_000_000) {
            prop_assert_eq!(Microjoules::from_joules(Microjoules(uj).joules()), Microjoules(uj));
        }
    }
}
