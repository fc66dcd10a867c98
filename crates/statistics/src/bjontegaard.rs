//! Bjøntegaard delta (ITU-T VCEG-M33): the mean difference between two quality curves in bit rate,
//! energy, money or carbon.
//!
//! The logarithm of the cost, as a function of quality, is integrated over the qualities that both
//! curves have in common. The mean difference is the result, in percent. The result comes with its
//! limits: the overlap of the curves, the values of two interpolation methods and the number of
//! excluded points. Unreliable comparisons are refused.

use super::{
    curve::{Curve, Method},
    inference::{CONFIDENCE, t_quantile},
    mean, quantile,
};

/// Fewest points of a curve.
pub const MIN_POINTS: usize = 4;
/// Smallest overlap of the two curves' quality ranges.
pub const MIN_OVERLAP: f64 = 0.5;
/// Number of bootstrap resamples.
const RESAMPLES: usize = 1000;

/// One repeat of a configuration on a curve.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Repeat {
    /// Bits per second; determines the order of the points.
    pub rate: f64,
    /// VMAF, dB or another score; higher is better.
    pub quality: f64,
    /// What is compared: bit rate, joules, money or grams of CO2.
    pub cost: f64,
}

/// One configuration: all its repeats.
pub type Point = Vec<Repeat>;

/// The difference between two curves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delta {
    /// By how many percent the second curve costs more than the first at equal quality, by PCHIP.
    pub pchip: f64,
    /// The same by Akima interpolation.
    pub akima: f64,
    /// 95 % interval of `pchip` by bootstrap over the repeats; `None` when a point has a single
    /// repeat.
    pub interval: Option<(f64, f64)>,
    /// Length of the common quality range divided by the length of the joint range.
    pub overlap: f64,
    /// Points of both curves that were excluded because a point with a lower rate has the same or a
    /// better quality.
    pub excluded: usize,
}

/// Why two curves cannot be compared.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DeltaError {
    /// Too few points remain.
    #[error("only {0} points where quality increases with the rate; at least 4 are needed")]
    TooFewPoints(usize),
    /// The quality ranges overlap too little.
    #[error("the quality ranges overlap by {0:.0} %; at least 50 % are needed")]
    TooLittleOverlap(f64),
    /// A value is not finite, or a cost is not positive.
    #[error("a value is not a finite number, or a cost is not positive")]
    InvalidValues,
}

/// Compares `test` with `anchor`. The result is reproducible for the same `seed`, which is used by
/// the bootstrap.
///
/// # Errors
/// When the curves cannot be compared.
pub fn delta(anchor: &[Point], test: &[Point], seed: u64) -> Result<Delta, DeltaError> {
    let means = |points: &[Point]| points.iter().map(|point| means_of(point)).collect::<Option<Vec<_>>>();
    let (a, b) = (means(anchor).ok_or(DeltaError::InvalidValues)?, means(test).ok_or(DeltaError::InvalidValues)?);
    let (increasing_a, increasing_b) = (with_increasing_quality(a.clone()), with_increasing_quality(b.clone()));
    let excluded = a.len() + b.len() - increasing_a.len() - increasing_b.len();
    let overlap = overlap(&increasing_a, &increasing_b)?;
    let by = |method| mean_difference(&increasing_a, &increasing_b, method).ok_or(DeltaError::InvalidValues);
    let (pchip, akima) = (by(Method::Pchip)?, by(Method::Akima)?);
    let repeated = anchor.iter().chain(test).all(|point| point.len() > 1);
    let interval = repeated.then(|| bootstrap(anchor, test, seed)).flatten();
    Ok(Delta { pchip, akima, interval, overlap, excluded })
}

/// Sorts points by rate and drops those without a better quality than one with a lower rate: a
/// curve has one cost per quality.
fn with_increasing_quality(mut points: Vec<[f64; 3]>) -> Vec<[f64; 3]> {
    points.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let mut best = f64::NEG_INFINITY;
    points.retain(|point| {
        let better = point[1] > best;
        best = best.max(point[1]);
        better
    });
    points
}

/// Fraction of the joint quality range that is common, as the Python package bjontegaard defines
/// it.
fn overlap(a: &[[f64; 3]], b: &[[f64; 3]]) -> Result<f64, DeltaError> {
    let fewest = a.len().min(b.len());
    if fewest < MIN_POINTS {
        return Err(DeltaError::TooFewPoints(fewest));
    }
    let ends = |points: &[[f64; 3]]| (points[0][1], points[points.len() - 1][1]);
    let ((low_a, high_a), (low_b, high_b)) = (ends(a), ends(b));
    let part = (high_a.min(high_b) - low_a.max(low_b)).max(0.0) / (high_a.max(high_b) - low_a.min(low_b));
    if part.is_finite() && part >= MIN_OVERLAP { Ok(part) } else { Err(DeltaError::TooLittleOverlap(part * 100.0)) }
}

/// Mean difference in percent, by one interpolation method.
fn mean_difference(a: &[[f64; 3]], b: &[[f64; 3]], method: Method) -> Option<f64> {
    let curve = |points: &[[f64; 3]]| {
        let logarithms: Option<Vec<(f64, f64)>> =
            points.iter().map(|[_, quality, cost]| (*cost > 0.0).then(|| (*quality, cost.ln()))).collect();
        Curve::new(&logarithms?, method)
    };
    let (a, b) = (curve(a)?, curve(b)?);
    let (low, high) = (a.range().0.max(b.range().0), a.range().1.min(b.range().1));
    let distance = (b.integral(low, high)? - a.integral(low, high)?) / (high - low);
    Some(distance.exp_m1() * 100.0).filter(|percent| percent.is_finite())
}

/// Mean rate, quality and cost of a point.
fn means_of(point: &[Repeat]) -> Option<[f64; 3]> {
    let of = |which: fn(&Repeat) -> f64| mean(&point.iter().map(which).collect::<Vec<_>>());
    Some([of(|repeat| repeat.rate)?, of(|repeat| repeat.quality)?, of(|repeat| repeat.cost)?])
}

/// Factor by which the deviation of a resampled mean is scaled. A bootstrap of a small sample is
/// too narrow by the root of n / (n − 1) and ignores the uncertainty of the standard deviation,
/// which Student's distribution includes. With this factor the bootstrap interval of a mean equals
/// Student's interval.
#[must_use]
pub fn widening(count: usize) -> f64 {
    let count = f64::from(u32::try_from(count.max(2)).unwrap_or(u32::MAX));
    (count / (count - 1.0)).sqrt() * t_quantile(0.5 + CONFIDENCE / 2.0, count - 1.0) / NORMAL_QUANTILE
}

/// 97.5 % quantile of the normal distribution.
const NORMAL_QUANTILE: f64 = 1.959_963_984_540_054;

/// Resamples the repeats of each point with replacement; returns the range of 95 % of the resulting
/// deltas.
fn bootstrap(anchor: &[Point], test: &[Point], seed: u64) -> Option<(f64, f64)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut deltas = Vec::new();
    for _ in 0..RESAMPLES {
        let mut draw = |points: &[Point]| {
            let drawn = points.iter().filter_map(|point| {
                let again: Vec<Repeat> = point.iter().map(|_| point[random.usize(..point.len())]).collect();
                let (center, drawn, wider) = (means_of(point)?, means_of(&again)?, widening(point.len()));
                Some([0, 1, 2].map(|at| center[at] + (drawn[at] - center[at]) * wider))
            });
            with_increasing_quality(drawn.collect())
        };
        let (a, b) = (draw(anchor), draw(test));
        if overlap(&a, &b).is_ok() {
            deltas.extend(mean_difference(&a, &b, Method::Pchip));
        }
    }
    // The remaining deltas are not representative if more than 5 % of the resamples were refused.
    if deltas.len() * 20 < RESAMPLES * 19 {
        return None;
    }
    Some((quantile(&deltas, 0.025)?, quantile(&deltas, 0.975)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(rates: &[f64], qualities: &[f64]) -> Vec<Point> {
        let point = |(rate, quality): (&f64, &f64)| vec![Repeat { rate: *rate, quality: *quality, cost: *rate }];
        rates.iter().zip(qualities).map(point).collect()
    }

    #[test]
    fn deltas_match_the_python_package() {
        // bjontegaard 1.3.0: bd_rate(rate_anchor, quality_anchor, rate_test, quality_test, method)
        for (anchor, test, pchip, akima) in [
            (
                // From its README.
                curve(&[9487.76, 4593.60, 2486.44, 1358.24], &[40.037, 38.615, 36.845, 34.851]),
                curve(&[9787.80, 4469.00, 2451.52, 1356.24], &[40.121, 38.651, 36.970, 34.987]),
                -4.417_485_350_589_045,
                -4.425_245_156_997_493,
            ),
            (
                curve(&[500.0, 1000.0, 2000.0, 4000.0, 8000.0], &[62.1, 78.4, 88.9, 94.2, 97.1]),
                curve(&[450.0, 900.0, 1800.0, 3600.0, 7200.0], &[65.0, 81.2, 90.8, 95.3, 97.6]),
                -23.342_221_780_321_87,
                -23.192_257_284_849_582,
            ),
        ] {
            let found = delta(&anchor, &test, 1).unwrap();
            assert!((found.pchip - pchip).abs() < 1e-9 && (found.akima - akima).abs() < 1e-9, "{found:?}");
            assert_eq!((found.interval, found.excluded), (None, 0));
            let back = delta(&test, &anchor, 1).unwrap();
            assert!(
                ((1.0 + back.pchip / 100.0) * (1.0 + found.pchip / 100.0) - 1.0).abs() < 1e-9,
                "comparing in the other direction gives the inverse"
            );
        }
    }

    #[test]
    fn unreliable_comparisons_are_refused_with_a_reason() {
        let good = curve(&[1.0, 2.0, 4.0, 8.0], &[60.0, 70.0, 80.0, 90.0]);
        let refused = |anchor: &[Point], test: &[Point]| delta(anchor, test, 1).unwrap_err();
        assert_eq!(refused(&good, &good[..3]), DeltaError::TooFewPoints(3));
        assert_eq!(
            refused(&good, &curve(&[1.0, 2.0, 4.0, 8.0], &[60.0, 70.0, 69.0, 90.0])),
            DeltaError::TooFewPoints(3)
        );
        let far = curve(&[1.0, 2.0, 4.0, 8.0], &[85.0, 90.0, 95.0, 99.0]);
        assert!(
            matches!(refused(&good, &far), DeltaError::TooLittleOverlap(part) if part < 15.0),
            "{}",
            refused(&good, &far)
        );
        let mut free = good.clone();
        free[0][0].cost = 0.0;
        assert_eq!(refused(&good, &free), DeltaError::InvalidValues);
        assert!(delta(&[], &[], 1).is_err());
    }

    #[test]
    fn repeats_give_a_reproducible_interval_around_the_delta() {
        let noisy = |factor: f64| -> Vec<Point> {
            [(1.0, 60.0), (2.0, 70.0), (4.0, 80.0), (8.0, 90.0)]
                .map(|(rate, quality)| {
                    let repeat = |noise: f64| Repeat { rate, quality, cost: factor * rate * noise };
                    [0.97, 1.0, 1.02].map(repeat).to_vec()
                })
                .to_vec()
        };
        let found = delta(&noisy(1.0), &noisy(1.2), 7).unwrap();
        let (low, high) = found.interval.unwrap();
        assert!((found.pchip - 20.0).abs() < 1e-9 && low < 20.0 && high > 20.0 && high - low < 15.0, "{found:?}");
        assert_eq!(delta(&noisy(1.0), &noisy(1.2), 7), Ok(found));
        // A point with a higher rate and no better quality is excluded and counted.
        let mut five = noisy(1.0);
        five.push(vec![Repeat { rate: 9.0, quality: 89.0, cost: 9.0 }; 2]);
        assert_eq!(delta(&five, &noisy(1.2), 7).unwrap().excluded, 1);
        // A single repeat does not determine a variance.
        let mut single = noisy(1.2);
        single[0].truncate(1);
        assert_eq!(delta(&noisy(1.0), &single, 7).unwrap().interval, None);
    }

    #[test]
    fn repeats_on_one_curve_give_a_narrow_rate_interval() {
        // Rate and quality vary together, so all resamples lie on the same curve.
        let on = |rate: f64| Repeat { rate, quality: 60.0 + 14.0 * rate.ln(), cost: rate };
        let curve: Vec<Point> =
            [1.0, 2.0, 4.0, 8.0].map(|rate| [0.97, 1.0, 1.02].map(|noise| on(rate * noise)).to_vec()).to_vec();
        let (low, high) = delta(&curve, &curve, 1).unwrap().interval.unwrap();
        assert!(high - low < 1.0, "{low} to {high}");
    }

    #[test]
    fn widening_makes_the_bootstrap_match_student() {
        // The standard deviation of a resampled mean of three, scaled by the factor, matches
        // Student's interval.
        let (values, wider) = ([9.0_f64, 10.0, 12.0], widening(3));
        let center = mean(&values).unwrap();
        let spread = (values.iter().map(|value| (value - center).powi(2)).sum::<f64>() / 9.0).sqrt();
        let student = super::super::inference::Interval::of(&values).unwrap().half_width;
        assert!((NORMAL_QUANTILE * spread * wider - student).abs() < 1e-9);
    }
}
