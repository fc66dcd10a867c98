//! Figures that are measured in several rounds: median with spread, and the ratio of two programs
//! that are measured in turn.

use statistics::{inference::Interval, quantile};

/// The values of one figure, one per round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rounds(Vec<f64>);

impl Rounds {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// `None` without a value.
    pub(crate) fn median(&self) -> Option<f64> {
        quantile(&self.0, 0.5)
    }

    /// Median with the smallest and the largest value: `25.1 (24.3 to 26.0)`.
    pub(crate) fn cell(&self) -> String {
        let (Some(median), Some(low), Some(high)) = (self.median(), quantile(&self.0, 0.0), quantile(&self.0, 1.0))
        else {
            return "–".to_owned();
        };
        if low == high {
            return digits(median);
        }
        format!("{} ({} to {})", digits(median), digits(low), digits(high))
    }
}

impl Extend<f64> for Rounds {
    fn extend<T: IntoIterator<Item = f64>>(&mut self, values: T) {
        self.0.extend(values);
    }
}

impl FromIterator<f64> for Rounds {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        Self(values.into_iter().collect())
    }
}

/// The ratio of two figures, with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    /// Geometric mean of the ratios of the rounds.
    pub(crate) middle: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Ratio {
    /// The second figure over the first, round by round, so that what changes slowly on the machine
    /// changes both: Student's interval of the logarithms, in which a ratio and its inverse weigh
    /// the same.
    ///
    /// `None` with fewer than two rounds, when a round lacks one of the figures, and when one is
    /// zero: a ratio to zero says nothing.
    pub(crate) fn paired(first: &Rounds, second: &Rounds) -> Option<Self> {
        if first.0.len() != second.0.len() {
            return None;
        }
        let logarithm = |(first, second): (&f64, &f64)| (*first > 0.0 && *second > 0.0).then(|| (second / first).ln());
        let logarithms: Vec<f64> = first.0.iter().zip(&second.0).map(logarithm).collect::<Option<_>>()?;
        let interval = Interval::of(&logarithms)?;
        let (low, high) = interval.bounds();
        Some(Self { middle: interval.mean.exp(), low: low.exp(), high: high.exp() })
    }

    /// `0.39 (0.37 to 0.41)`
    pub(crate) fn cell(self) -> String {
        if self.low == self.high {
            return format!("{:.2}", self.middle);
        }
        format!("{:.2} ({:.2} to {:.2})", self.middle, self.low, self.high)
    }
}

/// The exponent of a power law through points of size and cost: the slope of the straight line
/// through their logarithms by least squares. `None` with fewer than two sizes; points that are not
/// positive have no logarithm and are left out.
pub(crate) fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let positive = points.iter().filter(|(size, cost)| *size > 0.0 && *cost > 0.0);
    let logarithms: Vec<(f64, f64)> = positive.map(|(size, cost)| (size.ln(), cost.ln())).collect();
    Some(statistics::Line::fit(&logarithms)?.slope)
}

/// A number with three significant digits, or more before the point.
pub(crate) fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(values: &[f64]) -> Rounds {
        values.iter().copied().collect()
    }

    #[test]
    fn a_cell_has_the_median_and_its_spread() {
        assert_eq!(rounds(&[26.0, 24.3, 25.1]).cell(), "25.1 (24.3 to 26.0)");
        assert_eq!(rounds(&[4.0, 4.0]).cell(), "4.00");
        assert_eq!(Rounds::default().cell(), "–");
        assert_eq!([123.4, 0.0123].map(digits), ["123", "0.012"]);
    }

    #[test]
    fn a_slow_change_of_the_machine_leaves_the_ratio() {
        let (first, second) = (rounds(&[1.0, 2.0, 4.0]), rounds(&[1.1, 2.2, 4.4]));
        let ratio = Ratio::paired(&first, &second).unwrap();
        assert!((ratio.middle - 1.1).abs() < 1e-9 && ratio.high - ratio.low < 1e-6, "{ratio:?}");
        let inverse = Ratio::paired(&second, &first).unwrap();
        assert!((ratio.middle * inverse.middle - 1.0).abs() < 1e-9);
    }

    #[test]
    fn ratios_without_pairs_or_to_zero_are_absent() {
        assert_eq!(Ratio::paired(&rounds(&[1.0, 2.0]), &rounds(&[1.0])), None);
        assert_eq!(Ratio::paired(&rounds(&[0.0, 2.0]), &rounds(&[1.0, 1.0])), None);
        assert_eq!(Ratio::paired(&rounds(&[1.0]), &rounds(&[1.0])), None, "one round has no interval");
    }

    #[test]
    fn exponents_of_power_laws_are_found() {
        let square: Vec<(f64, f64)> = [10.0, 100.0, 1000.0].map(|size: f64| (size, 3.0 * size * size)).to_vec();
        assert!((exponent(&square).unwrap() - 2.0).abs() < 1e-9);
        assert!(exponent(&[(10.0, 5.0), (100.0, 5.0)]).unwrap().abs() < 1e-9);
        assert_eq!(exponent(&[(10.0, 0.0), (100.0, 5.0)]), None);
    }
}
