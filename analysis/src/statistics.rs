//! Arithmetic of samples and curves. Everything refuses what it cannot answer: no quantile of nothing, no curve beyond its points.

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

/// A monotone curve through points: piecewise cubic Hermite with the slopes of Fritsch and Butland, SIAM J. Sci. Stat. Comput. 5 (1984), and the three-point end
/// slopes of Moler's `pchiptx`, as SciPy's `PchipInterpolator` has them. It never leaves the range of two neighbouring points, so it makes no optimum that was not measured.
#[derive(Clone, Debug)]
pub struct Pchip {
    x: Vec<f64>,
    y: Vec<f64>,
    slope: Vec<f64>,
}

impl Pchip {
    /// The curve; at least two points, of which no two share an x. Order is of no matter.
    #[must_use]
    pub fn new(points: &[(f64, f64)]) -> Option<Self> {
        let mut points = points.to_vec();
        if points.len() < 2 || points.iter().any(|(x, y)| !x.is_finite() || !y.is_finite()) {
            return None;
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        if points.windows(2).any(|pair| pair[1].0 <= pair[0].0) {
            return None;
        }
        let (x, y): (Vec<f64>, Vec<f64>) = points.into_iter().unzip();
        let step: Vec<f64> = x.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let chord: Vec<f64> = y.windows(2).zip(&step).map(|(pair, step)| (pair[1] - pair[0]) / step).collect();
        let last = x.len() - 1;
        let mut slope = vec![chord[0]; x.len()];
        slope[last] = chord[last - 1];
        if last > 1 {
            for at in 1..last {
                slope[at] = inner_slope(step[at - 1], step[at], chord[at - 1], chord[at]);
            }
            slope[0] = end_slope(step[0], step[1], chord[0], chord[1]);
            slope[last] = end_slope(step[last - 1], step[last - 2], chord[last - 1], chord[last - 2]);
        }
        Some(Self { x, y, slope })
    }

    /// The value at `x`; nothing outside of the points.
    #[must_use]
    pub fn at(&self, x: f64) -> Option<f64> {
        let last = self.x.len() - 1;
        if !(self.x[0]..=self.x[last]).contains(&x) {
            return None;
        }
        let right = self.x.partition_point(|known| *known < x).clamp(1, last);
        let left = right - 1;
        let step = self.x[right] - self.x[left];
        let t = (x - self.x[left]) / step;
        let (t2, t3) = (t * t, t * t * t);
        Some(
            (2.0 * t3 - 3.0 * t2 + 1.0) * self.y[left]
                + (t3 - 2.0 * t2 + t) * step * self.slope[left]
                + (3.0 * t2 - 2.0 * t3) * self.y[right]
                + (t3 - t2) * step * self.slope[right],
        )
    }
}

/// The weighted harmonic mean of two chords; flat where they point to different sides.
fn inner_slope(before: f64, after: f64, left: f64, right: f64) -> f64 {
    if left * right <= 0.0 {
        return 0.0;
    }
    let (a, b) = (2.0 * after + before, after + 2.0 * before);
    (a + b) / (a / left + b / right)
}

fn end_slope(near: f64, far: f64, chord: f64, next: f64) -> f64 {
    let slope = ((2.0 * near + far) * chord - near * next) / (near + far);
    if slope * chord <= 0.0 {
        0.0
    } else if chord * next <= 0.0 && slope.abs() > 3.0 * chord.abs() {
        3.0 * chord
    } else {
        slope
    }
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
    use proptest::prelude::*;

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
    fn a_curve_is_what_scipy_draws_and_ends_where_its_points_do() {
        let curve = Pchip::new(&[(90.0, 5.0), (70.0, 1.0), (80.0, 2.0), (95.0, 9.0)]).unwrap();
        // scipy.interpolate.PchipInterpolator([70,80,90,95],[1,2,5,9])
        for (x, y) in [(75.0, 1.3125), (85.0, 3.113_031_914_893_617), (92.0, 6.274_893_617_021_277)] {
            assert!((curve.at(x).unwrap() - y).abs() < 1e-9, "{x}: {:?}", curve.at(x));
        }
        assert_eq!((curve.at(69.9), curve.at(95.1), curve.at(95.0)), (None, None, Some(9.0)));
        assert!(Pchip::new(&[(1.0, 1.0)]).is_none() && Pchip::new(&[(1.0, 1.0), (1.0, 2.0)]).is_none());
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

    proptest! {
        #[test]
        fn a_curve_stays_between_its_points(mut x in proptest::collection::btree_set(0i32..1000, 2..8), y in proptest::collection::vec(0.1f64..1e3, 8), at in 0.0f64..1.0) {
            let points: Vec<(f64, f64)> = std::mem::take(&mut x).into_iter().map(f64::from).zip(y).collect();
            let curve = Pchip::new(&points).unwrap();
            let at = points[0].0 + at * (points[points.len() - 1].0 - points[0].0);
            let right = points.partition_point(|point| point.0 < at).clamp(1, points.len() - 1);
            let (a, b) = (points[right - 1].1, points[right].1);
            let value = curve.at(at).unwrap();
            prop_assert!(value >= a.min(b) - 1e-9 && value <= a.max(b) + 1e-9, "{value} between {a} and {b}");
        }
    }
}
