//! Means over repeats with their intervals, and what they allow to say: ranks with ties, and the
//! Pareto front. Every view takes mean, interval, rank and front from here.

use serde::{Deserialize, Serialize};
use statistics::{inference::Interval, mean};

/// Width of an interval relative to its mean that is rounding: sums of equal doubles differ in
/// their last digits.
const ROUNDING: f64 = 1e-12;

/// A mean over repeats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Mean of the repeats.
    pub mean: f64,
    /// Half the width of Student's 95 % interval; absent for a single repeat.
    pub half_width: Option<f64>,
    /// Number of repeats.
    pub n: usize,
}

impl Estimate {
    /// The mean of these values; `None` without values, or if their mean is not finite.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mean = mean(values).filter(|mean| mean.is_finite())?;
        let half_width = Interval::of(values).map(|interval| interval.half_width).filter(|half| half.is_finite());
        let exact = |half: f64| if half <= ROUNDING * mean.abs() { 0.0 } else { half };
        Some(Self { mean, half_width: half_width.map(exact), n: values.len() })
    }

    /// Lower and upper bound of the interval; the mean twice for a single repeat.
    #[must_use]
    pub fn bounds(&self) -> (f64, f64) {
        let half = self.half_width.unwrap_or_default();
        (self.mean - half, self.mean + half)
    }

    /// Half the width of the interval divided by the mean; `None` for a single repeat, or a mean of
    /// zero.
    #[must_use]
    pub fn relative(&self) -> Option<f64> {
        self.half_width.filter(|_| self.mean != 0.0).map(|half| (half / self.mean).abs())
    }

    /// True if the intervals have a value in common: then neither mean is known to be the larger.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let (own, other) = (self.bounds(), other.bounds());
        own.0 <= other.1 && other.0 <= own.1
    }
}

/// The rank of each value, the largest first: one more than the number of values that are larger by
/// more than the intervals. Values whose intervals overlap tie.
#[must_use]
pub fn ranks(values: &[Estimate]) -> Vec<u32> {
    let mut lows: Vec<f64> = values.iter().map(|value| value.bounds().0).collect();
    lows.sort_by(f64::total_cmp);
    let rank = |own: &Estimate| {
        let larger = lows.len() - lows.partition_point(|low| *low <= own.bounds().1);
        u32::try_from(larger).unwrap_or(u32::MAX).saturating_add(1)
    };
    values.iter().map(rank).collect()
}

/// Whether each point is on the Pareto front. Coordinates are bounds of intervals, and smaller is
/// better. A point is dominated by another that is better in one coordinate by more than the
/// intervals, and worse by more than the intervals in none.
#[must_use]
pub fn pareto_front<const N: usize>(points: &[[(f64, f64); N]]) -> Vec<bool> {
    let dominates = |other: &[(f64, f64); N], own: &[(f64, f64); N]| {
        let worse = other.iter().zip(own).any(|(other, own)| other.0 > own.1);
        !worse && other.iter().zip(own).any(|(other, own)| other.1 < own.0)
    };
    points.iter().map(|own| !points.iter().any(|other| dominates(other, own))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(mean: f64, half: f64) -> Estimate {
        Estimate { mean, half_width: Some(half), n: 3 }
    }

    #[test]
    fn overlapping_intervals_tie() {
        let values = [estimate(10.0, 0.5), estimate(9.8, 0.5), estimate(8.0, 0.5), estimate(8.0, 0.0)];
        assert_eq!(ranks(&values), [1, 1, 3, 3]);
        let single = |mean| Estimate { mean, half_width: None, n: 1 };
        assert_eq!(ranks(&[single(1.0), single(3.0), single(3.0)]), [3, 1, 1]);
        assert_eq!(ranks(&[]), [0_u32; 0]);
    }

    #[test]
    fn rounding_is_no_interval() {
        let sum = 0.1 + 0.2;
        assert_eq!(Estimate::of(&[0.3, sum, 0.3]).map(|estimate| estimate.half_width), Some(Some(0.0)));
        assert_eq!(Estimate::of(&[0.3, sum, 0.3]).and_then(|estimate| estimate.relative()), Some(0.0));
        assert_eq!(Estimate::of(&[-1.0, 1.0]).and_then(|estimate| estimate.relative()), None);
        assert_eq!(Estimate::of(&[2.0]).map(|estimate| estimate.half_width), Some(None));
        assert_eq!(Estimate::of(&[]), None);
        assert_eq!(Estimate::of(&[f64::MAX, f64::MAX]), None);
    }

    #[test]
    fn dominated_points_are_not_on_the_front() {
        let point = |a: f64, b: f64| [(a, a), (b, b)];
        assert_eq!(pareto_front(&[point(1.0, 2.0), point(2.0, 1.0), point(2.0, 2.0)]), [true, true, false]);
        let wide = [(1.9, 2.1), (1.9, 2.1)];
        assert_eq!(pareto_front(&[point(2.0, 1.95), wide]), [true, true], "within the intervals");
    }
}
