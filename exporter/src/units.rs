//! Energy as an integer. A microjoule is the unit of powercap's counters; 2^64 of them are 5 TWh.

use std::{
    fmt,
    iter::Sum,
    ops::{Add, AddAssign, Sub},
};

use serde::{Deserialize, Serialize};

/// Microjoules. Sums are exact; what would not fit saturates, five terawatt-hours from now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
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

/// What one count of a counter is worth: an exact fraction of a microjoule, so that no tick rounds and no sum drifts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    numerator: u64,
    denominator: u64,
}

impl Unit {
    /// Counts that are microjoules already.
    pub const MICROJOULE: Self = Self { numerator: 1, denominator: 1 };

    /// Counts that are millijoules, as GPUs have them.
    pub const MILLIJOULE: Self = Self { numerator: 1000, denominator: 1 };

    /// Tenths of a microjoule.
    #[must_use]
    pub const fn tenths(tenths: u64) -> Self {
        Self { numerator: tenths, denominator: 10 }
    }

    /// `numerator / denominator` microjoules, reduced; `None` for nothing, or for what does not fit.
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

    /// `2^-exponent` joules: the registers' unit (Intel SDM 14.10.1; AMD PPR, RAPL_PWR_UNIT).
    #[must_use]
    pub fn joules_shifted(exponent: u32) -> Option<Self> {
        Self::new(1_000_000, 1_u128.checked_shl(exponent)?)
    }

    /// The joules of one count as a decimal, `2.3283064365386962890625e-10` (`events/*.scale` of a PMU), taken exactly.
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
        // Joules to microjoules are six places.
        let places = i32::try_from(fraction.len()).ok()?.checked_sub(exponent)?.checked_sub(6)?;
        let power = 10_u128.checked_pow(places.unsigned_abs())?;
        let digits: u128 = digits.parse().ok()?;
        if places >= 0 { Self::new(digits, power) } else { Self::new(digits.checked_mul(power)?, 1) }
    }

    /// Microjoules of `counts`, rounded down.
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

    /// As it is written in a recording; nothing that cannot be divided by.
    #[must_use]
    pub fn is_sound(self) -> bool {
        self.numerator > 0 && self.denominator > 0
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

    #[test]
    fn units_are_exact() {
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
        fn no_text_makes_a_unit_that_divides_by_nothing(text in ".{0,40}") {
            if let Some(unit) = Unit::parse_joules(&text) {
                prop_assert!(unit.is_sound());
            }
        }

        #[test]
        fn joules_round_back_to_the_microjoule(uj in 0u64..(1 << 32) * 1_000_000) {
            prop_assert_eq!(Microjoules::from_joules(Microjoules(uj).joules()), Microjoules(uj));
        }
    }
}
