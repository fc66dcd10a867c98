//! Bjøntegaard delta (ITU-T VCEG-M33): the mean difference between two quality curves in bit rate,
//! energy, money or carbon.
//!
//! The logarithm of the cost, as a function of quality, is integrated over the qualities that both
//! curves have in common. The mean difference is the result, in percent. The result comes with its
//! limits: the overlap of the curves, the values of two interpolation methods and the number of
//! excluded points. Unreliable comparisons are refused.

use super::{
    curve::{Curve, Method},
    mean, propagation, standard_deviation,
};

/// Fewest points of a curve.
pub const MIN_POINTS: usize = 4;
/// Smallest overlap of the two curves' quality ranges.
pub const MIN_OVERLAP: f64 = 0.5;

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
    /// 95 % interval of `pchip` by the variance of the repeats; `None` when a point has a single
    /// repeat, or when the repeats do not show which of two points has the better quality.
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

/// Compares `test` with `anchor`.
///
/// # Errors
/// When the curves cannot be compared.
pub fn delta(anchor: &[Point], test: &[Point]) -> Result<Delta, DeltaError> {
    let means = |points: &[Point]| points.iter().map(|point| means_of(point)).collect::<Option<Vec<_>>>();
    let (a, b) = (means(anchor).ok_or(DeltaError::InvalidValues)?, means(test).ok_or(DeltaError::InvalidValues)?);
    let (increasing_a, increasing_b) = (with_increasing_quality(a.clone()), with_increasing_quality(b.clone()));
    let excluded = a.len() + b.len() - increasing_a.len() - increasing_b.len();
    let overlap = overlap(&increasing_a, &increasing_b)?;
    let by = |method| {
        let distance = mean_distance(&increasing_a, &increasing_b, method).map(percent);
        distance.filter(|percent| percent.is_finite()).ok_or(DeltaError::InvalidValues)
    };
    let (pchip, akima) = (by(Method::Pchip)?, by(Method::Akima)?);
    Ok(Delta { pchip, akima, interval: interval(anchor, test), overlap, excluded })
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

/// Mean distance of the logarithms of the cost, by one interpolation method.
fn mean_distance(a: &[[f64; 3]], b: &[[f64; 3]], method: Method) -> Option<f64> {
    let curve = |points: &[[f64; 3]]| {
        let logarithms: Option<Vec<(f64, f64)>> =
            points.iter().map(|[_, quality, cost]| (*cost > 0.0).then(|| (*quality, cost.ln()))).collect();
        Curve::new(&logarithms?, method)
    };
    let (a, b) = (curve(a)?, curve(b)?);
    let (low, high) = (a.range().0.max(b.range().0), a.range().1.min(b.range().1));
    Some((b.integral(low, high)? - a.integral(low, high)?) / (high - low)).filter(|distance| distance.is_finite())
}

/// The percentage of a distance of logarithms.
fn percent(distance: f64) -> f64 {
    distance.exp_m1() * 100.0
}

/// Mean rate, quality and cost of a point.
fn means_of(point: &[Repeat]) -> Option<[f64; 3]> {
    let of = |which: fn(&Repeat) -> f64| mean(&point.iter().map(which).collect::<Vec<_>>());
    Some([of(|repeat| repeat.rate)?, of(|repeat| repeat.quality)?, of(|repeat| repeat.cost)?])
}

/// The 95 % interval of the PCHIP delta. It is computed for the distance of the logarithms, in
/// which errors are nearly symmetric.
fn interval(anchor: &[Point], test: &[Point]) -> Option<(f64, f64)> {
    if !(has_certain_order(anchor) && has_certain_order(test)) {
        return None;
    }
    let values = |point: &Point| point.iter().map(|repeat| [repeat.rate, repeat.quality, repeat.cost]).collect();
    let samples: Vec<Vec<[f64; 3]>> = anchor.iter().chain(test).map(values).collect();
    let (low, high) = propagation::interval(&samples, |means| {
        let (a, b) = means.split_at(anchor.len());
        mean_distance(&with_increasing_quality(a.to_vec()), &with_increasing_quality(b.to_vec()), Method::Pchip)
    })?;
    Some((percent(low), percent(high))).filter(|(low, high)| low.is_finite() && high.is_finite())
}

/// False when a quality is within two standard errors of the best one at lower rates. Then chance
/// decides which points are on the curve, and the variance of the others does not contain that.
fn has_certain_order(points: &[Point]) -> bool {
    let mut known: Vec<([f64; 3], f64)> = points
        .iter()
        .filter_map(|point| {
            let qualities: Vec<f64> = point.iter().map(|repeat| repeat.quality).collect();
            let count = u32::try_from(point.len()).ok()?;
            // The quality of a single repeat has no known error.
            let variance = standard_deviation(&qualities).map_or(0.0, |deviation| deviation.powi(2));
            Some((means_of(point)?, variance / f64::from(count)))
        })
        .collect();
    known.sort_by(|a, b| a.0[0].total_cmp(&b.0[0]));
    let Some(((mut best, mut variance), rest)) = known.split_first().map(|(first, rest)| ((first.0[1], first.1), rest))
    else {
        return true;
    };
    for (means, own) in rest {
        let error = (variance + own).sqrt();
        if error > 0.0 && (means[1] - best).abs() < 2.0 * error {
            return false;
        }
        if means[1] > best {
            (best, variance) = (means[1], *own);
        }
    }
    true
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
            let found = delta(&anchor, &test).unwrap();
            assert!((found.pchip - pchip).abs() < 1e-9 && (found.akima - akima).abs() < 1e-9, "{found:?}");
            assert_eq!((found.interval, found.excluded), (None, 0));
            let back = delta(&test, &anchor).unwrap();
            assert!(
                ((1.0 + back.pchip / 100.0) * (1.0 + found.pchip / 100.0) - 1.0).abs() < 1e-9,
                "comparing in the other direction gives the inverse"
            );
        }
    }

    #[test]
    fn unreliable_comparisons_are_refused_with_a_reason() {
        let good = curve(&[1.0, 2.0, 4.0, 8.0], &[60.0, 70.0, 80.0, 90.0]);
        let refused = |anchor: &[Point], test: &[Point]| delta(anchor, test).unwrap_err();
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
        assert!(delta(&[], &[]).is_err());
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
        let found = delta(&noisy(1.0), &noisy(1.2)).unwrap();
        let (low, high) = found.interval.unwrap();
        assert!((found.pchip - 20.0).abs() < 1e-9 && low < 20.0 && high > 20.0 && high - low < 15.0, "{found:?}");
        assert_eq!(delta(&noisy(1.0), &noisy(1.2)), Ok(found));
        // A point with a higher rate and no better quality is excluded and counted.
        let mut five = noisy(1.0);
        five.push(vec![Repeat { rate: 9.0, quality: 89.0, cost: 9.0 }; 2]);
        assert_eq!(delta(&five, &noisy(1.2)).unwrap().excluded, 1);
        // A single repeat does not determine a variance.
        let mut single = noisy(1.2);
        single[0].truncate(1);
        assert_eq!(delta(&noisy(1.0), &single).unwrap().interval, None);
    }

    #[test]
    fn repeats_on_one_curve_give_a_narrow_rate_interval() {
        // Rate and quality vary together, so all resamples lie on the same curve.
        let on = |rate: f64| Repeat { rate, quality: 60.0 + 14.0 * rate.ln(), cost: rate };
        let curve: Vec<Point> =
            [1.0, 2.0, 4.0, 8.0].map(|rate| [0.97, 1.0, 1.02].map(|noise| on(rate * noise)).to_vec()).to_vec();
        let (low, high) = delta(&curve, &curve).unwrap().interval.unwrap();
        assert!(high - low < 1.0, "{low} to {high}");
    }

    #[test]
    fn points_of_uncertain_order_have_no_interval() {
        let with = |qualities: [[f64; 2]; 4]| -> Vec<Point> {
            let points = qualities.iter().zip([1.0, 2.0, 4.0, 8.0]);
            points.map(|(both, rate)| both.map(|quality| Repeat { rate, quality, cost: rate }).to_vec()).collect()
        };
        let certain = with([[60.0, 60.1], [70.0, 70.1], [80.0, 80.1], [90.0, 90.1]]);
        assert!(delta(&certain, &certain).unwrap().interval.is_some());
        let close = with([[60.0, 60.1], [70.0, 70.1], [89.9, 90.1], [90.0, 90.3]]);
        assert_eq!(delta(&close, &certain).unwrap().interval, None);
        // Equal qualities without noise are excluded in every repeat.
        let mut same = with([[60.0, 60.0], [70.0, 70.0], [80.0, 80.0], [90.0, 90.0]]);
        same.push(vec![Repeat { rate: 16.0, quality: 90.0, cost: 16.0 }; 2]);
        let found = delta(&same, &certain).unwrap();
        assert!(found.excluded == 1 && found.interval.is_some(), "{found:?}");
    }

    /// A curve whose costs have normal noise; rates and qualities are those of a deterministic
    /// encoder.
    fn noisy_curve(random: &mut fastrand::Rng, qualities: [f64; 4], factor: f64, repeats: usize) -> Vec<Point> {
        let points = qualities.into_iter().zip([5.0, 10.0, 20.0, 40.0]);
        let point = |(quality, cost): (f64, f64)| {
            let mut repeat = || {
                let normal =
                    (-2.0 * (1.0 - random.f64()).ln()).sqrt() * (2.0 * std::f64::consts::PI * random.f64()).cos();
                Repeat { rate: cost, quality, cost: factor * cost * (1.0 + 0.05 * normal) }
            };
            (0..repeats).map(|_| repeat()).collect()
        };
        points.map(point).collect()
    }

    #[test]
    fn intervals_cover_the_delta_as_often_as_promised() {
        let (anchor, test) = ([62.1, 78.4, 88.9, 94.2], [65.0, 81.2, 90.8, 95.3]);
        let exact = |qualities: [f64; 4], factor: f64| -> Vec<Point> {
            let costs = [5.0, 10.0, 20.0, 40.0].map(|cost| factor * cost);
            let points = qualities.into_iter().zip(costs);
            points.map(|(quality, cost)| vec![Repeat { rate: cost, quality, cost }]).collect()
        };
        let wanted = delta(&exact(anchor, 1.0), &exact(test, 0.9)).unwrap().pchip;
        for repeats in [3, 5, 10] {
            let mut random = fastrand::Rng::with_seed(11);
            let (mut covered, mut width) = (0, 0.0);
            for _ in 0..1000 {
                let a = noisy_curve(&mut random, anchor, 1.0, repeats);
                let b = noisy_curve(&mut random, test, 0.9, repeats);
                let (low, high) = delta(&a, &b).unwrap().interval.unwrap();
                covered += i32::from((low..=high).contains(&wanted));
                width += (high - low) / 1000.0;
            }
            // 95 %; 1000 simulations have a standard error of 0.7 %.
            assert!((930..=980).contains(&covered), "{repeats} repeats: {covered} of 1000");
            assert!(repeats != 3 || width < 12.0, "{width} percentage points; Student of each point gives 20");
        }
    }

    #[test]
    fn a_pair_takes_less_than_50_milliseconds() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut pair = || noisy_curve(&mut random, [62.1, 78.4, 88.9, 94.2], 1.0, 10);
        let (a, b) = (pair(), pair());
        // The shortest of some, because other processes run at the same time.
        let took = (0..10).map(|_| {
            let start = std::time::Instant::now();
            assert!(delta(&a, &b).unwrap().interval.is_some());
            start.elapsed()
        });
        assert!(took.min().unwrap() < std::time::Duration::from_millis(50));
    }
}
