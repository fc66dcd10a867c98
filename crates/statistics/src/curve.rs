//! Interpolating curves: piecewise cubics in Hermite form, which differ only in how the slopes at
//! the points are chosen. No curve extrapolates beyond its points.

/// How to choose the slopes at the points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Monotone between points: Fritsch and Butland, SIAM J. Sci. Stat. Comput. 5 (1984), with the
    /// three-point end slopes of Moler's `pchiptx`, like SciPy's `PchipInterpolator`. The curve
    /// never leaves the range of two neighbouring points, so it has no optimum between the
    /// measurements.
    Pchip,
    /// Akima, J. ACM 17 (1970), like SciPy's `Akima1DInterpolator`: smoother, and with a smaller
    /// error for rate-quality curves (arXiv 2202.12565).
    Akima,
}

/// A curve through points.
#[derive(Clone, Debug)]
pub struct Curve {
    x: Vec<f64>,
    y: Vec<f64>,
    slope: Vec<f64>,
}

impl Curve {
    /// Interpolates at least two points in any order; no two may share an x.
    #[must_use]
    pub fn new(points: &[(f64, f64)], method: Method) -> Option<Self> {
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
        let slope = match method {
            Method::Pchip => pchip(&step, &chord),
            Method::Akima => akima(&chord),
        };
        Some(Self { x, y, slope })
    }

    /// The smallest and the largest x.
    #[must_use]
    pub fn range(&self) -> (f64, f64) {
        (self.x[0], self.x[self.x.len() - 1])
    }

    /// The value at `x`; `None` outside of the range.
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

    /// The exact integral from `from` to `to`; `None` when one of them is outside of the range.
    #[must_use]
    pub fn integral(&self, from: f64, to: f64) -> Option<f64> {
        let (low, high) = self.range();
        if !(low..=high).contains(&from) || !(low..=high).contains(&to) || to < from {
            return None;
        }
        let mut sum = 0.0;
        for left in 0..self.x.len() - 1 {
            let step = self.x[left + 1] - self.x[left];
            let part = |x: f64| ((x - self.x[left]) / step).clamp(0.0, 1.0);
            let (a, b) = (part(from), part(to));
            if b > a {
                sum += step * (self.primitive(left, step, b) - self.primitive(left, step, a));
            }
        }
        Some(sum)
    }

    /// The integral of segment `left` from its start to its fraction `t`, divided by its length.
    fn primitive(&self, left: usize, step: f64, t: f64) -> f64 {
        let (t2, t3, t4) = (t * t, t * t * t, t * t * t * t);
        (t4 / 2.0 - t3 + t) * self.y[left]
            + (t4 / 4.0 - 2.0 * t3 / 3.0 + t2 / 2.0) * step * self.slope[left]
            + (t3 - t4 / 2.0) * self.y[left + 1]
            + (t4 / 4.0 - t3 / 3.0) * step * self.slope[left + 1]
    }
}

fn pchip(step: &[f64], chord: &[f64]) -> Vec<f64> {
    let last = chord.len();
    let mut slope = vec![chord[0]; last + 1];
    slope[last] = chord[last - 1];
    if last > 1 {
        for at in 1..last {
            slope[at] = inner_slope(step[at - 1], step[at], chord[at - 1], chord[at]);
        }
        slope[0] = end_slope(step[0], step[1], chord[0], chord[1]);
        slope[last] = end_slope(step[last - 1], step[last - 2], chord[last - 1], chord[last - 2]);
    }
    slope
}

/// The weighted harmonic mean of two chord slopes; zero where their signs differ.
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

fn akima(chord: &[f64]) -> Vec<f64> {
    let last = chord.len() - 1;
    if last == 0 {
        return vec![chord[0]; 2];
    }
    // Extend the chords by two on either side, along the parabola through the outermost three
    // points.
    let (first, end) = (2.0 * chord[0] - chord[1], 2.0 * chord[last] - chord[last - 1]);
    let mut m = vec![2.0 * first - chord[0], first];
    m.extend_from_slice(chord);
    m.extend([end, 2.0 * end - chord[last]]);
    let bend: Vec<f64> = m.windows(2).map(|pair| (pair[1] - pair[0]).abs()).collect();
    let most = (0..=chord.len()).map(|at| bend[at] + bend[at + 2]).fold(0.0, f64::max);
    (0..=chord.len())
        .map(|at| {
            let (before, after) = (bend[at], bend[at + 2]);
            if before + after > 1e-9 * most {
                (after * m[at + 1] + before * m[at + 2]) / (before + after)
            } else {
                // The chords are equal on both sides, so any slope between them is valid; SciPy
                // takes the middle.
                f64::midpoint(m[at], m[at + 3])
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pchip_matches_scipy_and_does_not_extrapolate() {
        let points = [(90.0, 5.0), (70.0, 1.0), (80.0, 2.0), (95.0, 9.0)];
        let curve = Curve::new(&points, Method::Pchip).unwrap();
        // scipy.interpolate.PchipInterpolator([70,80,90,95],[1,2,5,9])
        for (x, y) in [(75.0, 1.3125), (85.0, 3.113_031_914_893_617), (92.0, 6.274_893_617_021_277)] {
            assert!((curve.at(x).unwrap() - y).abs() < 1e-9, "{x}: {:?}", curve.at(x));
        }
        assert_eq!((curve.at(69.9), curve.at(95.1), curve.at(95.0)), (None, None, Some(9.0)));
        for method in [Method::Pchip, Method::Akima] {
            assert!(Curve::new(&[(1.0, 1.0)], method).is_none());
            assert!(Curve::new(&[(1.0, 1.0), (1.0, 2.0)], method).is_none());
        }
    }

    /// `scipy.interpolate.Akima1DInterpolator([70,80,90,95,97],[1,2,5,9,9.5])`
    const AKIMA: [(f64, f64); 4] = [
        (75.0, 1.303_571_428_571_428_6),
        (85.0, 3.154_761_904_761_904_7),
        (92.0, 6.461_714_285_714_287),
        (96.5, 9.479_352_678_571_429),
    ];
    /// Its `.integrate(71.5, 96)`.
    const AKIMA_INTEGRAL: f64 = 88.874_773_561_507_94;

    #[test]
    fn akima_matches_scipy() {
        let akima =
            Curve::new(&[(70.0, 1.0), (80.0, 2.0), (90.0, 5.0), (95.0, 9.0), (97.0, 9.5)], Method::Akima).unwrap();
        for (x, y) in AKIMA {
            assert!((akima.at(x).unwrap() - y).abs() < 1e-9, "{x}: {:?}", akima.at(x));
        }
        assert!(
            (akima.integral(71.5, 96.0).unwrap() - AKIMA_INTEGRAL).abs() < 1e-9,
            "{:?}",
            akima.integral(71.5, 96.0)
        );
        assert_eq!(akima.integral(60.0, 96.0), None);
        // A straight line stays straight.
        let line: Vec<(f64, f64)> = (0..6).map(|x| (f64::from(x), 3.0 * f64::from(x))).collect();
        let line = Curve::new(&line, Method::Akima).unwrap();
        assert!((line.at(2.5).unwrap() - 7.5).abs() < 1e-12 && (line.integral(0.0, 4.0).unwrap() - 24.0).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn pchip_stays_between_neighbouring_points(mut x in proptest::collection::btree_set(0i32..1000, 2..8), y in proptest::collection::vec(0.1f64..1e3, 8), at in 0.0f64..1.0) {
            let points: Vec<(f64, f64)> = std::mem::take(&mut x).into_iter().map(f64::from).zip(y).collect();
            let curve = Curve::new(&points, Method::Pchip).unwrap();
            let at = points[0].0 + at * (points[points.len() - 1].0 - points[0].0);
            let right = points.partition_point(|point| point.0 < at).clamp(1, points.len() - 1);
            let (a, b) = (points[right - 1].1, points[right].1);
            let value = curve.at(at).unwrap();
            prop_assert!(value >= a.min(b) - 1e-9 && value <= a.max(b) + 1e-9, "{value} between {a} and {b}");
        }

        #[test]
        fn integrals_add_up_and_match_a_riemann_sum(y in proptest::collection::vec(-1e3f64..1e3, 3..8), cuts in proptest::collection::vec(0.0f64..1.0, 3)) {
            let points: Vec<(f64, f64)> = y.iter().enumerate().map(|(at, y)| (f64::from(u32::try_from(at).unwrap()).powf(1.3), *y)).collect();
            for method in [Method::Pchip, Method::Akima] {
                let curve = Curve::new(&points, method).unwrap();
                let (low, high) = curve.range();
                let mut cut: Vec<f64> = cuts.iter().map(|cut| low + cut * (high - low)).collect();
                cut.sort_by(f64::total_cmp);
                let whole = curve.integral(cut[0], cut[2]).unwrap();
                let parts = curve.integral(cut[0], cut[1]).unwrap() + curve.integral(cut[1], cut[2]).unwrap();
                prop_assert!((whole - parts).abs() < 1e-6);
                let bars = 4000;
                let width = (cut[2] - cut[0]) / f64::from(bars);
                let sum: f64 = (0..bars).map(|bar| curve.at(cut[0] + (f64::from(bar) + 0.5) * width).unwrap() * width).sum();
                prop_assert!((whole - sum).abs() < 1e-2, "{whole} {sum}");
            }
        }
    }
}
