//! How far two curves of quality are apart: Bjøntegaard's measure (ITU-T VCEG-M33) for whatever is paid for quality: bits, joules, money, carbon.
//!
//! Both logarithms of the price, as functions of quality, are integrated over the qualities that both have; the mean distance is the answer, in percent.
//! It is a mean: what it hides is said with it (how much of the curves overlaps, what two methods of interpolation differ by, what had to be left out), and
//! where it would say nothing it is refused.

use super::{
    curve::{Curve, Method},
    inference::{CONFIDENCE, t_quantile},
    mean, quantile,
};

/// Fewer points are no curve.
pub const LEAST_POINTS: usize = 4;
/// Less of both curves' range in common is no comparison.
pub const LEAST_OVERLAP: f64 = 0.5;
/// Draws of the bootstrap.
const DRAWS: usize = 1000;

/// One time that a configuration of a curve was run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Repeat {
    /// Bits per second: what orders the curve.
    pub rate: f64,
    /// VMAF, dB, …: the larger the better.
    pub quality: f64,
    /// What is compared: the rate again, joules, money, grams.
    pub price: f64,
}

/// One configuration: every time that it was run.
pub type Point = Vec<Repeat>;

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delta {
    /// Percent that the second pays more than the first for the same quality, by PCHIP.
    pub pchip: f64,
    /// By Akima's curve.
    pub akima: f64,
    /// What the repeats allow, by bootstrap over them, for about 95 %; nothing where a point has a single one.
    pub interval: Option<(f64, f64)>,
    /// The qualities that both have, over those that one of them has.
    pub overlap: f64,
    /// Points of both that were left out, because a cheaper one was as good.
    pub left_out: usize,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// Too few points.
    #[error("points where the quality grows with the rate: {0}; 4 are needed")]
    Points(usize),
    /// Too little in common.
    #[error("{0:.0} % of the qualities are common to both; 50 % are needed")]
    Overlap(f64),
    /// Not a number, or no price.
    #[error("a price that is not above zero, or a value that is none")]
    Values,
}

/// Compares `test` with `anchor`. `seed` is of the bootstrap, so that an answer can be had again.
///
/// # Errors
/// Why nothing can be said.
pub fn delta(anchor: &[Point], test: &[Point], seed: u64) -> Result<Delta, Refused> {
    let means = |points: &[Point]| points.iter().map(|point| center(point)).collect::<Option<Vec<_>>>();
    let (a, b) = (means(anchor).ok_or(Refused::Values)?, means(test).ok_or(Refused::Values)?);
    let (grown_a, grown_b) = (growing(a.clone()), growing(b.clone()));
    let left_out = a.len() + b.len() - grown_a.len() - grown_b.len();
    let overlap = overlap(&grown_a, &grown_b)?;
    let by = |method| distance(&grown_a, &grown_b, method).ok_or(Refused::Values);
    let (pchip, akima) = (by(Method::Pchip)?, by(Method::Akima)?);
    let repeated = anchor.iter().chain(test).all(|point| point.len() > 1);
    let interval = repeated.then(|| bootstrap(anchor, test, seed)).flatten();
    Ok(Delta { pchip, akima, interval, overlap, left_out })
}

/// By rate, without those that are no better than a cheaper one: a curve of quality has one price for each.
fn growing(mut points: Vec<[f64; 3]>) -> Vec<[f64; 3]> {
    points.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let mut best = f64::NEG_INFINITY;
    points.retain(|point| {
        let better = point[1] > best;
        best = best.max(point[1]);
        better
    });
    points
}

/// What part of all qualities is common; as the Python package bjontegaard has it.
fn overlap(a: &[[f64; 3]], b: &[[f64; 3]]) -> Result<f64, Refused> {
    let fewest = a.len().min(b.len());
    if fewest < LEAST_POINTS {
        return Err(Refused::Points(fewest));
    }
    let ends = |points: &[[f64; 3]]| (points[0][1], points[points.len() - 1][1]);
    let ((low_a, high_a), (low_b, high_b)) = (ends(a), ends(b));
    let part = (high_a.min(high_b) - low_a.max(low_b)).max(0.0) / (high_a.max(high_b) - low_a.min(low_b));
    if part.is_finite() && part >= LEAST_OVERLAP { Ok(part) } else { Err(Refused::Overlap(part * 100.0)) }
}

/// Percent, by one method.
fn distance(a: &[[f64; 3]], b: &[[f64; 3]], method: Method) -> Option<f64> {
    let curve = |points: &[[f64; 3]]| {
        let logarithms: Option<Vec<(f64, f64)>> =
            points.iter().map(|[_, quality, price]| (*price > 0.0).then(|| (*quality, price.ln()))).collect();
        Curve::new(&logarithms?, method)
    };
    let (a, b) = (curve(a)?, curve(b)?);
    let (low, high) = (a.range().0.max(b.range().0), a.range().1.min(b.range().1));
    let distance = (b.integral(low, high)? - a.integral(low, high)?) / (high - low);
    Some(distance.exp_m1() * 100.0).filter(|percent| percent.is_finite())
}

/// The means of a point.
fn center(point: &[Repeat]) -> Option<[f64; 3]> {
    let of = |which: fn(&Repeat) -> f64| mean(&point.iter().map(which).collect::<Vec<_>>());
    Some([of(|repeat| repeat.rate)?, of(|repeat| repeat.quality)?, of(|repeat| repeat.price)?])
}

/// By how much a drawn mean of so many has to be pulled away from theirs: a bootstrap of few is too narrow by the root of n / (n − 1), and knows nothing of how badly
/// a few know their own spread, which Student's distribution does. With it a mean of three is covered as Student's interval covers it.
#[must_use]
pub fn widening(count: usize) -> f64 {
    let count = f64::from(u32::try_from(count.max(2)).unwrap_or(u32::MAX));
    (count / (count - 1.0)).sqrt() * t_quantile(0.5 + CONFIDENCE / 2.0, count - 1.0) / NORMAL
}

/// Of the normal distribution, below which 97.5 % lie.
const NORMAL: f64 = 1.959_963_984_540_054;

/// Repeats are drawn with replacement, within each point, each with all that it came to; what 95 % of the answers lie between.
fn bootstrap(anchor: &[Point], test: &[Point], seed: u64) -> Option<(f64, f64)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut answers = Vec::new();
    for _ in 0..DRAWS {
        let mut draw = |points: &[Point]| {
            let drawn = points.iter().filter_map(|point| {
                let again: Vec<Repeat> = point.iter().map(|_| point[random.usize(..point.len())]).collect();
                let (center, drawn, wider) = (center(point)?, center(&again)?, widening(point.len()));
                Some([0, 1, 2].map(|at| center[at] + (drawn[at] - center[at]) * wider))
            });
            growing(drawn.collect())
        };
        let (a, b) = (draw(anchor), draw(test));
        if overlap(&a, &b).is_ok() {
            answers.extend(distance(&a, &b, Method::Pchip));
        }
    }
    // Draws of which many are refused say nothing of the rest.
    if answers.len() * 20 < DRAWS * 19 {
        return None;
    }
    Some((quantile(&answers, 0.025)?, quantile(&answers, 0.975)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(rates: &[f64], qualities: &[f64]) -> Vec<Point> {
        let point = |(rate, quality): (&f64, &f64)| vec![Repeat { rate: *rate, quality: *quality, price: *rate }];
        rates.iter().zip(qualities).map(point).collect()
    }

    #[test]
    fn the_values_are_those_of_the_python_package() {
        // bjontegaard 1.3.0: bd_rate(rate_anchor, quality_anchor, rate_test, quality_test, method)
        for (anchor, test, pchip, akima) in [
            (
                // Of its README.
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
            assert_eq!((found.interval, found.left_out), (None, 0));
            let back = delta(&test, &anchor, 1).unwrap();
            assert!(
                ((1.0 + back.pchip / 100.0) * (1.0 + found.pchip / 100.0) - 1.0).abs() < 1e-9,
                "there and back is nothing"
            );
        }
    }

    #[test]
    fn what_would_say_nothing_is_refused_with_its_reason() {
        let good = curve(&[1.0, 2.0, 4.0, 8.0], &[60.0, 70.0, 80.0, 90.0]);
        let refused = |anchor: &[Point], test: &[Point]| delta(anchor, test, 1).unwrap_err();
        assert_eq!(refused(&good, &good[..3]), Refused::Points(3));
        assert_eq!(refused(&good, &curve(&[1.0, 2.0, 4.0, 8.0], &[60.0, 70.0, 69.0, 90.0])), Refused::Points(3));
        let far = curve(&[1.0, 2.0, 4.0, 8.0], &[85.0, 90.0, 95.0, 99.0]);
        assert!(matches!(refused(&good, &far), Refused::Overlap(part) if part < 15.0), "{}", refused(&good, &far));
        let mut free = good.clone();
        free[0][0].price = 0.0;
        assert_eq!(refused(&good, &free), Refused::Values);
        assert!(delta(&[], &[], 1).is_err());
    }

    #[test]
    fn repeats_make_an_interval_that_holds_the_answer_and_a_seed_gives_it_again() {
        let noisy = |factor: f64| -> Vec<Point> {
            [(1.0, 60.0), (2.0, 70.0), (4.0, 80.0), (8.0, 90.0)]
                .map(|(rate, quality)| {
                    let repeat = |noise: f64| Repeat { rate, quality, price: factor * rate * noise };
                    [0.97, 1.0, 1.02].map(repeat).to_vec()
                })
                .to_vec()
        };
        let found = delta(&noisy(1.0), &noisy(1.2), 7).unwrap();
        let (low, high) = found.interval.unwrap();
        assert!((found.pchip - 20.0).abs() < 1e-9 && low < 20.0 && high > 20.0 && high - low < 15.0, "{found:?}");
        assert_eq!(delta(&noisy(1.0), &noisy(1.2), 7), Ok(found));
        // A point that is dearer and no better is passed over, and counted.
        let mut five = noisy(1.0);
        five.push(vec![Repeat { rate: 9.0, quality: 89.0, price: 9.0 }; 2]);
        assert_eq!(delta(&five, &noisy(1.2), 7).unwrap().left_out, 1);
        // Of a single repeat nobody knows how much it varies.
        let mut single = noisy(1.2);
        single[0].truncate(1);
        assert_eq!(delta(&noisy(1.0), &single, 7).unwrap().interval, None);
    }

    #[test]
    fn repeats_that_lie_on_one_curve_leave_nothing_open_for_the_rate() {
        // Rate and quality vary together: however they are drawn, the curve is the same.
        let on = |rate: f64| Repeat { rate, quality: 60.0 + 14.0 * rate.ln(), price: rate };
        let curve: Vec<Point> =
            [1.0, 2.0, 4.0, 8.0].map(|rate| [0.97, 1.0, 1.02].map(|noise| on(rate * noise)).to_vec()).to_vec();
        let (low, high) = delta(&curve, &curve, 1).unwrap().interval.unwrap();
        assert!(high - low < 1.0, "{low} to {high}");
    }

    #[test]
    fn a_few_repeats_are_as_wide_as_student_says() {
        // The spread of a drawn mean of three, times this, is what Student's interval has.
        let (values, wider) = ([9.0_f64, 10.0, 12.0], widening(3));
        let center = mean(&values).unwrap();
        let spread = (values.iter().map(|value| (value - center).powi(2)).sum::<f64>() / 9.0).sqrt();
        let student = super::super::inference::Interval::of(&values).unwrap().half;
        assert!((NORMAL * spread * wider - student).abs() < 1e-9);
    }
}
