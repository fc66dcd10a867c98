//! The interval of a value that is computed from the means of several independent samples, such as
//! the distance of two curves whose points are means of repeats.
//!
//! The variance of each sample's mean is propagated to the value (delta method), and the degrees of
//! freedom of all samples are combined as by Satterthwaite (Biometrics Bull. 2, 1946). A percentile
//! bootstrap that widens each mean by Student's factor of its own few repeats is much too wide for
//! a value of many means: eight points of three repeats have sixteen degrees of freedom together,
//! and not two.

use super::{
    inference::{CONFIDENCE, float, t_quantile},
    mean, standard_deviation,
};

/// Most repeats times samples: `value` is computed twice for each repeat, from all samples. A
/// hundred configurations of twenty repeats are below.
const MAX_WORK: usize = 250_000;

/// The 95 % interval of `value` of the means of `samples`, in its order. Each sample consists of
/// repeats with `N` variables, which may be correlated.
///
/// `None` when a sample has a single repeat, when the value is not defined in the neighbourhood of
/// the means, or for thousands of samples.
#[must_use]
pub fn interval<const N: usize>(
    samples: &[Vec<[f64; N]>],
    value: impl Fn(&[[f64; N]]) -> Option<f64>,
) -> Option<(f64, f64)> {
    let repeats: usize = samples.iter().map(Vec::len).sum();
    if repeats.saturating_mul(samples.len()) > MAX_WORK {
        return None;
    }
    let means: Vec<[f64; N]> = samples.iter().map(|sample| mean_of(sample)).collect::<Option<_>>()?;
    let center = value(&means)?;
    let (mut variance, mut squares) = (0.0, 0.0);
    let mut moved = means.clone();
    for (at, sample) in samples.iter().enumerate() {
        let count = float(sample.len());
        // A step of 1 / n moves the mean by about its error, and leaves it positive if all repeats
        // are.
        let step = 1.0 / count;
        let mut towards = |repeat: &[f64; N], step: f64| {
            moved[at] = std::array::from_fn(|axis| means[at][axis] + step * (repeat[axis] - means[at][axis]));
            value(&moved)
        };
        let influence = |repeat: &[f64; N]| Some((towards(repeat, step)? - towards(repeat, -step)?) / (2.0 * step));
        let influences: Vec<f64> = sample.iter().map(influence).collect::<Option<_>>()?;
        moved[at] = means[at];
        let part = standard_deviation(&influences)?.powi(2) / count;
        variance += part;
        squares += part * part / (count - 1.0);
    }
    // Repeats without variance, such as the output sizes of a deterministic encoder.
    if squares == 0.0 {
        return Some((center, center));
    }
    let half = t_quantile(0.5 + CONFIDENCE / 2.0, variance * variance / squares) * variance.sqrt();
    Some((center - half, center + half)).filter(|_| half.is_finite())
}

/// The mean of each variable.
fn mean_of<const N: usize>(sample: &[[f64; N]]) -> Option<[f64; N]> {
    let mut means = [0.0; N];
    for (axis, of_axis) in means.iter_mut().enumerate() {
        *of_axis = mean(&sample.iter().map(|repeat| repeat[axis]).collect::<Vec<_>>())?;
    }
    Some(means)
}

#[cfg(test)]
mod tests {
    use super::super::inference::{Interval, Welch};
    use super::*;

    fn sample(values: &[f64]) -> Vec<[f64; 1]> {
        values.iter().map(|value| [*value]).collect()
    }

    #[test]
    fn one_mean_has_the_interval_of_student() {
        let values = [9.0, 10.0, 12.0];
        let (low, high) = interval(&[sample(&values)], |means| Some(means[0][0])).unwrap();
        let (least, most) = Interval::of(&values).unwrap().bounds();
        assert!((low - least).abs() < 1e-9 && (high - most).abs() < 1e-9, "{low} to {high}");
    }

    #[test]
    fn a_difference_has_the_interval_of_welch() {
        let (a, b) = ([45.2, 46.1, 45.8, 47.0, 46.5], [47.9, 46.8, 48.3, 47.1, 49.0, 47.6]);
        let (low, high) = interval(&[sample(&a), sample(&b)], |means| Some(means[1][0] - means[0][0])).unwrap();
        let welch = Welch::of(&a, &b).unwrap();
        assert!((low - welch.low).abs() < 1e-9 && (high - welch.high).abs() < 1e-9, "{low} to {high}");
    }

    #[test]
    fn correlated_variables_cancel() {
        let both: Vec<[f64; 2]> = [1.0, 2.0, 4.0].map(|value| [value, value + 1.0]).to_vec();
        let (low, high) = interval(&[both], |means| Some(means[0][1] - means[0][0])).unwrap();
        assert!((low - 1.0).abs() < 1e-9 && (high - 1.0).abs() < 1e-9, "{low} to {high}");
    }

    #[test]
    fn single_repeats_and_undefined_values_have_no_interval() {
        assert_eq!(interval(&[sample(&[1.0])], |means| Some(means[0][0])), None);
        assert_eq!(interval(&[sample(&[])], |means| Some(means[0][0])), None);
        assert_eq!(interval(&[sample(&[1.0, 2.0])], |means| Some(means[0][0]).filter(|mean| *mean < 1.6)), None);
        assert_eq!(interval(&[sample(&[3.0; 4])], |means| Some(means[0][0])), Some((3.0, 3.0)));
        assert_eq!(interval(&vec![sample(&[1.0, 2.0]); 5000], |means| Some(means[0][0])), None, "quadratic");
    }
}
