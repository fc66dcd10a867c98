//! Statistics of samples and lines. A function returns `None` where its result is undefined, such
//! as the quantile of an empty sample or a line through one point.
//!
//! [`curve`] interpolates points, [`inference`] computes intervals and tests, [`propagation`] the
//! interval of a value that is computed from means, [`bjontegaard`] compares two curves, [`trend`]
//! forecasts a sum of days. `cargo run --release --example coverage` simulates how often their
//! intervals hold.

#![forbid(unsafe_code)]

pub mod bjontegaard;
pub mod curve;
pub mod inference;
pub mod propagation;
pub mod trend;

/// Mean; `None` for an empty sample.
#[must_use]
pub fn mean(values: &[f64]) -> Option<f64> {
    let count = u32::try_from(values.len()).ok().filter(|count| *count > 0)?;
    Some(values.iter().sum::<f64>() / f64::from(count))
}

/// Sample standard deviation (n − 1 in the denominator); `None` for fewer than two values.
#[must_use]
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    let count = u32::try_from(values.len()).ok().filter(|count| *count > 1)?;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    Some((squares / f64::from(count - 1)).sqrt())
}

/// Quantile by linear interpolation between order statistics (Hyndman and Fan 1996, type 7, like R,
/// NumPy and Excel).
#[must_use]
pub fn quantile(values: &[f64], at: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = u32::try_from(sorted.len()).ok()?.checked_sub(1)?;
    let rank = f64::from(last) * at.clamp(0.0, 1.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank below the count")]
    let below = rank.floor() as usize;
    let (low, high) = (sorted.get(below)?, sorted.get(below + 1).or_else(|| sorted.get(below))?);
    Some(low + (high - low) * (rank - rank.floor()))
}

/// Maximum; `None` for an empty sample.
#[must_use]
pub fn largest(values: &[f64]) -> Option<f64> {
    values.iter().copied().max_by(f64::total_cmp)
}

/// A straight line fitted by least squares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// Value at x = 0.
    pub intercept: f64,
    /// Increase per unit of x.
    pub slope: f64,
}

impl Line {
    /// Fits a line to points with at least two different x.
    #[must_use]
    pub fn fit(points: &[(f64, f64)]) -> Option<Self> {
        let x = mean(&points.iter().map(|point| point.0).collect::<Vec<_>>())?;
        let y = mean(&points.iter().map(|point| point.1).collect::<Vec<_>>())?;
        let spread = points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>();
        if spread <= 0.0 {
            return None;
        }
        let slope = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread;
        Some(Self { intercept: y - slope * x, slope })
    }

    /// Value at x.
    #[must_use]
    pub fn at(self, x: f64) -> f64 {
        self.intercept + self.slope * x
    }

    /// Mean relative error of leave-one-out cross-validation. Points with the same x are left out
    /// together. `None` when the points without one group do not determine a line.
    #[must_use]
    pub fn leave_one_out(points: &[(f64, f64)]) -> Option<f64> {
        let mut groups: Vec<f64> = points.iter().map(|point| point.0).collect();
        groups.sort_by(f64::total_cmp);
        groups.dedup();
        let mut missed = Vec::new();
        for group in groups {
            let (out, rest): (Vec<_>, Vec<_>) = points.iter().copied().partition(|point| point.0 == group);
            let line = Self::fit(&rest)?;
            missed.extend(out.iter().filter(|point| point.1 != 0.0).map(|(x, y)| ((line.at(*x) - y) / y).abs()));
        }
        mean(&missed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_statistics_match_numpy() {
        let values = [45.2, 46.1, 45.8, 47.0, 46.5, 45.9, 46.3, 46.7, 45.5, 46.2];
        let close = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() < 1e-9;
        assert!(close(mean(&values), 46.12));
        // numpy: std(ddof=1), percentile(95).
        assert!(close(standard_deviation(&values), 0.545_282_801_244_760_8), "{:?}", standard_deviation(&values));
        assert!(close(quantile(&values, 0.95), 46.865), "{:?}", quantile(&values, 0.95));
        assert_eq!((mean(&[]), standard_deviation(&[1.0]), quantile(&[], 0.5)), (None, None, None));
        assert_eq!((quantile(&[7.0], 0.95), largest(&values)), (Some(7.0), Some(47.0)));
    }

    #[test]
    fn leave_one_out_is_zero_for_points_on_a_line() {
        let exact: Vec<(f64, f64)> = (1..5).map(|x| (f64::from(x), 10.0 + 5.0 * f64::from(x))).collect();
        let line = Line::fit(&exact).unwrap();
        assert!((line.intercept - 10.0).abs() < 1e-9 && (line.slope - 5.0).abs() < 1e-9);
        assert!(Line::leave_one_out(&exact).unwrap() < 1e-9);
        assert_eq!(Line::fit(&[(1.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(Line::leave_one_out(&[(1.0, 1.0), (2.0, 2.0)]), None, "one remaining point determines no line");
    }
}
