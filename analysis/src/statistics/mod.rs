//! Arithmetic of samples and lines. Everything refuses what it cannot answer: no quantile of nothing, no line through one point.
//!
//! [`curve`] goes through points, [`inference`] says how sure a mean and a difference are, [`bjontegaard`] how far two curves are apart.

pub mod bjontegaard;
pub mod curve;
pub mod inference;

/// The mean; nothing of nothing.
#[must_use]
pub fn mean(values: &[f64]) -> Option<f64> {
    let count = u32::try_from(values.len()).ok().filter(|count| *count > 0)?;
    Some(values.iter().sum::<f64>() / f64::from(count))
}

/// The standard deviation of a sample, n − 1 in the denominator; nothing of fewer than two.
#[must_use]
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    let count = u32::try_from(values.len()).ok().filter(|count| *count > 1)?;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    Some((squares / f64::from(count - 1)).sqrt())
}

/// A quantile by linear interpolation between order statistics (Hyndman and Fan 1996, type 7: what R, NumPy and Excel give).
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

/// The largest.
#[must_use]
pub fn largest(values: &[f64]) -> Option<f64> {
    values.iter().copied().max_by(f64::total_cmp)
}

/// A straight line by least squares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// At nothing.
    pub intercept: f64,
    /// For one more.
    pub slope: f64,
}

impl Line {
    /// The line; at least two different x.
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

    /// Its value.
    #[must_use]
    pub fn at(self, x: f64) -> f64 {
        self.intercept + self.slope * x
    }

    /// How far the line misses a point that it has not seen, in the mean over all of them, as a part of the point's value: each group of points with one x is
    /// left out in turn. Nothing where a group left out leaves no line.
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
    fn statistics_of_a_few_are_those_of_the_books() {
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
    fn a_line_knows_how_far_it_misses() {
        let exact: Vec<(f64, f64)> = (1..5).map(|x| (f64::from(x), 10.0 + 5.0 * f64::from(x))).collect();
        let line = Line::fit(&exact).unwrap();
        assert!((line.intercept - 10.0).abs() < 1e-9 && (line.slope - 5.0).abs() < 1e-9);
        assert!(Line::leave_one_out(&exact).unwrap() < 1e-9);
        assert_eq!(Line::fit(&[(1.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(Line::leave_one_out(&[(1.0, 1.0), (2.0, 2.0)]), None, "one point left is no line");
    }
}
