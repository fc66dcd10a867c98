//! Inference for small samples: Student's interval, Welch's test, Fieller's interval of a relative
//! difference, Holm's correction, Hedges' effect size and the minimal detectable difference.

use super::{mean, standard_deviation};

/// Confidence level of all intervals and tests.
pub const CONFIDENCE: f64 = 0.95;
/// Statistical power at which the minimal detectable difference is computed.
const POWER: f64 = 0.8;

/// A mean with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Sample mean.
    pub mean: f64,
    /// Half the width of the 95 % interval.
    pub half_width: f64,
    /// Sample standard deviation.
    pub standard_deviation: f64,
    /// Sample size.
    pub count: usize,
}

impl Interval {
    /// Student's interval; `None` for fewer than two values.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let (mean, standard_deviation) = (mean(values)?, standard_deviation(values)?);
        let count = float(values.len());
        let half_width = t_quantile(0.5 + CONFIDENCE / 2.0, count - 1.0) * standard_deviation / count.sqrt();
        Some(Self { mean, half_width, standard_deviation, count: values.len() })
    }

    /// Half the width divided by the mean; `None` when the mean is zero.
    #[must_use]
    pub fn relative(&self) -> Option<f64> {
        (self.mean != 0.0).then(|| (self.half_width / self.mean).abs())
    }

    /// Lower and upper bound.
    #[must_use]
    pub fn bounds(&self) -> (f64, f64) {
        (self.mean - self.half_width, self.mean + self.half_width)
    }
}

/// Result of Welch's test for two samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Welch {
    /// Mean of the second sample minus mean of the first.
    pub difference: f64,
    /// Lower bound of the difference's 95 % interval.
    pub low: f64,
    /// Upper bound of the difference's 95 % interval.
    pub high: f64,
    /// Two-sided p-value.
    pub p: f64,
    /// Hedges' g: the standardised difference, corrected for the bias of small samples. `None` when
    /// neither sample varies.
    pub effect_size: Option<f64>,
    /// Standard error of the difference.
    pub standard_error: f64,
    /// Degrees of freedom.
    pub degrees_of_freedom: f64,
}

/// Relative tolerance for equal values: sums of equal doubles differ in their last digits.
const TOLERANCE: f64 = 1e-12;

/// The common value of a sample that does not vary.
fn constant_value(values: &[f64]) -> Option<f64> {
    let first = *values.first()?;
    values.iter().all(|value| nearly_equal(*value, first)).then_some(first)
}

fn nearly_equal(a: f64, b: f64) -> bool {
    (a - b).abs() <= TOLERANCE * a.abs().max(b.abs())
}

impl Welch {
    /// Compares two samples with possibly unequal variances (Welch, Biometrika 34, 1947). `None`
    /// when a sample has fewer than two values.
    #[must_use]
    pub fn of(first: &[f64], second: &[f64]) -> Option<Self> {
        let (a, b) = (Interval::of(first)?, Interval::of(second)?);
        let (na, nb) = (float(a.count), float(b.count));
        let difference = b.mean - a.mean;
        let (va, vb) = (a.standard_deviation.powi(2) / na, b.standard_deviation.powi(2) / nb);
        let error = (va + vb).sqrt();
        if let (Some(a), Some(b)) = (constant_value(first), constant_value(second)) {
            // Samples without variance, such as the output size of a deterministic encoder, need no
            // test.
            let difference = if nearly_equal(a, b) { 0.0 } else { b - a };
            let p = if difference == 0.0 { 1.0 } else { 0.0 };
            return Some(Self {
                difference,
                low: difference,
                high: difference,
                p,
                effect_size: None,
                standard_error: 0.0,
                degrees_of_freedom: 0.0,
            });
        }
        let freedom = combined_freedom([(va, na), (vb, nb)]);
        let half = t_quantile(0.5 + CONFIDENCE / 2.0, freedom) * error;
        let p = 2.0 * t_cdf(-(difference / error).abs(), freedom);
        let squares = (na - 1.0) * a.standard_deviation.powi(2) + (nb - 1.0) * b.standard_deviation.powi(2);
        let pooled = (squares / (na + nb - 2.0)).sqrt();
        let unbiased = 1.0 - 3.0 / (4.0 * (na + nb) - 9.0);
        Some(Self {
            difference,
            low: difference - half,
            high: difference + half,
            p,
            effect_size: (pooled > 0.0).then(|| difference / pooled * unbiased),
            standard_error: error,
            degrees_of_freedom: freedom,
        })
    }

    /// The smallest difference that is detected with a power of 80 % when `tests` tests are made,
    /// by the noncentral t distribution with the standard error and the degrees of freedom of these
    /// samples. It assumes Holm's first and strictest step, which a single difference has to pass.
    /// Zero when neither sample varies.
    ///
    /// The sum of two quantiles of Student's t, which is simpler, promises too much: it has a power
    /// of 67 % for 24 tests of three repeats, because a t statistic under a true difference is
    /// skewed.
    #[must_use]
    pub fn minimal_detectable_difference(&self, tests: usize) -> f64 {
        if self.standard_error == 0.0 {
            return 0.0;
        }
        let freedom = self.degrees_of_freedom;
        let critical = t_quantile(1.0 - (1.0 - CONFIDENCE) / 2.0 / float(tests.max(1)), freedom);
        let (mut low, mut high) = (0.0, critical);
        while t_power(high, critical, freedom) < POWER && high < 1e12 {
            (low, high) = (high, 2.0 * high);
        }
        while high - low > 1e-9 * high {
            let middle = f64::midpoint(low, high);
            if t_power(middle, critical, freedom) < POWER { low = middle } else { high = middle }
        }
        high * self.standard_error
    }
}

/// Degrees of freedom of a sum of independent variances of means, each with the size of its sample
/// (Satterthwaite).
fn combined_freedom(parts: [(f64, f64); 2]) -> f64 {
    let sum: f64 = parts.iter().map(|(variance, _)| variance).sum();
    sum.powi(2) / parts.iter().map(|(variance, count)| variance.powi(2) / (count - 1.0)).sum::<f64>()
}

/// 95 % interval of the relative difference of two means: the second over the first, minus 1
/// (Fieller, J. R. Stat. Soc. B 16, 1954). It consists of all ratios `r` for which Welch's test
/// does not distinguish the second sample from `r` times the first, so it contains 0 exactly when
/// [`Welch::p`] is at least 0.05.
///
/// The interval of the difference divided by the first mean is no substitute: it ignores that the
/// divisor varies as well, so it is too narrow for an increase, and too wide for a decrease.
///
/// `None` when a sample has fewer than two values, or when the mean of the first cannot be
/// distinguished from zero, so that the ratio has no bound.
#[must_use]
pub fn relative_interval(first: &[f64], second: &[f64]) -> Option<(f64, f64)> {
    let (a, b) = (Interval::of(first)?, Interval::of(second)?);
    let ratio = Some(b.mean / a.mean).filter(|ratio| ratio.is_finite())?;
    if let (Some(a), Some(b)) = (constant_value(first), constant_value(second)) {
        let part = if nearly_equal(a, b) { 0.0 } else { (b - a) / a };
        return Some((part, part));
    }
    let (na, nb) = (float(a.count), float(b.count));
    let (va, vb) = (a.standard_deviation.powi(2) / na, b.standard_deviation.powi(2) / nb);
    let rejects = |ratio: f64| {
        let (difference, scaled) = (b.mean - ratio * a.mean, ratio.powi(2) * va);
        let error = (scaled + vb).sqrt();
        let freedom = combined_freedom([(scaled, na), (vb, nb)]);
        let p = 2.0 * t_cdf(-(difference / error).abs(), freedom);
        if error > 0.0 { p < 1.0 - CONFIDENCE } else { difference != 0.0 }
    };
    // The first rejected ratio in one direction, bracketed from the estimate outwards.
    let bound = |direction: f64| {
        let mut outer = direction * ((ratio.powi(2) * va + vb).sqrt() / a.mean).abs().max(f64::MIN_POSITIVE);
        let mut inner = 0.0;
        for _ in 0..60 {
            if rejects(ratio + outer) {
                break;
            }
            (inner, outer) = (outer, 2.0 * outer);
        }
        if !rejects(ratio + outer) {
            return None;
        }
        for _ in 0..60 {
            let middle = f64::midpoint(inner, outer);
            if rejects(ratio + middle) { outer = middle } else { inner = middle }
        }
        Some(ratio + inner - 1.0)
    };
    Some((bound(-1.0)?, bound(1.0)?))
}

/// Adjusts the p-values of several tests, in their order (Holm, Scand. J. Statist. 6, 1979). An
/// adjusted value below 0.05 is significant for all tests together.
#[must_use]
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut adjusted = vec![1.0; p.len()];
    let mut smallest: f64 = 0.0;
    for (rank, at) in order.into_iter().enumerate() {
        smallest = smallest.max((p[at] * float(p.len() - rank)).min(1.0));
        adjusted[at] = smallest;
    }
    adjusted
}

/// Converts a count of repeats, which is small.
pub(crate) fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Cumulative distribution function of Student's t, by the incomplete beta function (Abramowitz and
/// Stegun 26.7.1).
#[must_use]
pub fn t_cdf(t: f64, freedom: f64) -> f64 {
    let tail = 0.5 * beta(freedom / (freedom + t * t), freedom / 2.0, 0.5);
    if t < 0.0 { tail } else { 1.0 - tail }
}

/// Quantile of Student's t for a probability `part` in [0.5, 1).
#[must_use]
pub fn t_quantile(part: f64, freedom: f64) -> f64 {
    let mut high = 1.0;
    while t_cdf(high, freedom) < part && high < 1e12 {
        high *= 2.0;
    }
    let mut low = 0.0;
    // Bisect to the last bit; a double needs fewer than 200 steps.
    for _ in 0..200 {
        let middle = f64::midpoint(low, high);
        if middle <= low || middle >= high {
            break;
        }
        if t_cdf(middle, freedom) < part { low = middle } else { high = middle }
    }
    high
}

/// Power of a two-sided t test: the probability that a noncentral t variable with noncentrality
/// `shift` exceeds `critical` in either direction.
///
/// |Z + shift| / S > critical, with a normal Z and the root S of a chi-square variable over its
/// degrees of freedom. The probability of S given Z is integrated over Z by the trapezoidal rule,
/// whose error is negligible for a smooth integrand that vanishes at both ends. It neither
/// underflows nor needs thousands of terms for a large shift, as the series of Lenth (Appl. Stat.
/// 38, 1989) does.
fn t_power(shift: f64, critical: f64, freedom: f64) -> f64 {
    const END: f64 = 9.0;
    // The probability of S rises over a width of about critical / √(2 · freedom).
    let step = (critical / (2.0 * freedom).sqrt() / 2.0).min(0.25);
    let (mut sum, mut z) = (0.0, -END);
    while z <= END {
        let largest = ((z + shift) / critical).powi(2);
        sum += (-z * z / 2.0).exp() * lower_gamma(freedom / 2.0, freedom / 2.0 * largest);
        z += step;
    }
    sum * step / (2.0 * std::f64::consts::PI).sqrt()
}

/// The regularised lower incomplete gamma function for a >= 0.5, by its series (DLMF 8.7.1) below
/// a + 1, and by its continued fraction (DLMF 8.9.2) with Lentz's method above.
fn lower_gamma(a: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    let front = (a * x.ln() - x - ln_gamma(a)).exp();
    if x < a + 1.0 {
        let (mut term, mut divisor) = (1.0 / a, a);
        let mut sum = term;
        while term > sum * 1e-16 {
            divisor += 1.0;
            term *= x / divisor;
            sum += term;
        }
        return front * sum;
    }
    let mut b = x + 1.0 - a;
    let (mut c, mut d) = (f64::INFINITY, 1.0 / b);
    let mut fraction = d;
    for step in 1..500 {
        let n = f64::from(step);
        let numerator = n * (a - n);
        b += 2.0;
        d = 1.0 / (b + numerator * d);
        c = b + numerator / c;
        fraction *= c * d;
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    1.0 - front * fraction
}

/// The regularised incomplete beta function by its continued fraction (DLMF 8.17.22), evaluated
/// with Lentz's method.
fn beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    // The fraction converges quickly only on this side of the mean.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - beta(1.0 - x, b, a);
    }
    let front = (a * x.ln() + b * (-x).ln_1p() - (ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b))).exp() / a;
    let nudge = |value: f64| if value.abs() < 1e-300 { 1e-300 } else { value };
    let (mut c, mut d) = (1.0, 1.0 / nudge(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for step in 1..500 {
        let m = f64::from(step);
        for numerator in [
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0)),
        ] {
            d = 1.0 / nudge(1.0 + numerator * d);
            c = nudge(1.0 + numerator / c);
            fraction *= c * d;
        }
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front * fraction
}

/// The logarithm of the gamma function for x >= 0.5 to 15 digits: Lanczos' sum with g = 7 and nine
/// terms (Godfrey 2001).
fn ln_gamma(x: f64) -> f64 {
    const G: f64 = 7.0;
    const TERMS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let sum = TERMS.iter().zip(1..).fold(0.999_999_999_999_809_9, |sum, (term, at)| sum + term / (x + f64::from(at)));
    let t = x + G + 0.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn student_t_matches_scipy() {
        // scipy.stats.t.ppf and .cdf
        for (freedom, quantiles, parts) in [
            (
                1.0,
                [3.077_683_537_175_254, 12.706_204_736_174_694, 318.308_838_985_550_15],
                [0.099_326_092_199_118_53, 0.647_583_617_650_433_3, 0.852_416_382_349_566_7],
            ),
            (
                2.0,
                [1.885_618_083_164_127_2, 4.302_652_729_749_462, 22.327_124_770_119_866],
                [0.045_100_365_065_094_36, 2.0 / 3.0, 0.908_248_290_463_863],
            ),
            (
                3.7,
                [1.557_565_838_861_507_2, 2.867_520_707_191_189_5, 7.795_183_875_029_165],
                [0.020_115_539_392_947_863, 0.677_332_183_340_034_1, 0.939_091_399_047_383],
            ),
            (
                1000.0,
                [1.282_398_721_460_924_7, 1.962_339_080_826_408_3, 3.098_402_163_912_923_3],
                [0.000_994_672_765_561_048_8, 0.691_407_459_583_062_6, 0.977_114_826_753_374_1],
            ),
        ] {
            for (part, quantile) in [0.9, 0.975, 0.999].into_iter().zip(quantiles) {
                assert!((t_quantile(part, freedom) / quantile - 1.0).abs() < 1e-9, "{freedom} {part}");
            }
            for (t, part) in [-3.1, 0.5, 2.0].into_iter().zip(parts) {
                assert!((t_cdf(t, freedom) - part).abs() < 1e-12, "{freedom} {t}: {}", t_cdf(t, freedom));
            }
        }
    }

    #[test]
    fn welch_matches_scipy() {
        let (x, y) = ([45.2, 46.1, 45.8, 47.0, 46.5], [47.9, 46.8, 48.3, 47.1, 49.0, 47.6]);
        let found = Welch::of(&x, &y).unwrap();
        // scipy.stats.ttest_ind(x, y, equal_var=False), whose difference is x - y
        assert!((found.p - 0.004_859_213_491_057_374).abs() < 1e-12, "{found:?}");
        assert!(
            (found.low - 0.648_856_135_109_608_7).abs() < 1e-9 && (found.high - 2.677_810_531_557_045).abs() < 1e-9
        );
        assert!(
            found.effect_size.unwrap() > 2.0 && found.minimal_detectable_difference(1) > found.high - found.difference
        );
        assert!(
            found.minimal_detectable_difference(24) > 1.5 * found.minimal_detectable_difference(1),
            "more tests need a larger difference"
        );
        assert_eq!(Welch::of(&x, &[1.0]), None);
    }

    #[test]
    fn incomplete_gamma_has_its_closed_forms() {
        for x in [0.1_f64, 1.0, 1.9, 2.1, 5.0, 40.0] {
            let exponential = 1.0 - (-x).exp();
            assert!((lower_gamma(1.0, x) - exponential).abs() < 1e-13, "{x}: {}", lower_gamma(1.0, x));
            let two = 1.0 - (-x).exp() * (1.0 + x);
            assert!((lower_gamma(2.0, x) - two).abs() < 1e-13, "{x}: {}", lower_gamma(2.0, x));
        }
        assert_eq!(lower_gamma(0.5, 0.0), 0.0);
    }

    #[test]
    fn power_matches_statsmodels() {
        // statsmodels.stats.power.TTestIndPower().power(effect, repeats, 0.05), also G*Power
        for (effect, repeats, power) in [(0.5_f64, 64.0_f64, 0.801_459_557_9), (0.8, 26.0, 0.807_486_615_1)] {
            let freedom = 2.0 * (repeats - 1.0);
            let found = t_power(effect * (repeats / 2.0).sqrt(), t_quantile(0.975, freedom), freedom);
            assert!((found - power).abs() < 1e-9, "{found}");
        }
        assert!((t_power(0.0, t_quantile(0.975, 5.0), 5.0) - 0.05).abs() < 1e-6, "without a difference: the level");
    }

    #[test]
    fn detectable_difference_has_the_promised_power() {
        // The noncentrality for 80 %, by the series of Lenth.
        for (freedom, tests, shift) in [
            (1.0, 1, 16.334_008_87),
            (2.0, 24, 27.790_891_84),
            (3.3, 8, 7.883_513_837),
            (4.0, 1, 3.761_059_554),
            (4.0, 24, 8.848_296_288),
            (18.0, 8, 3.996_823_634),
            (58.0, 1, 2.849_048_152),
        ] {
            let welch = Welch {
                difference: 0.0,
                low: 0.0,
                high: 0.0,
                p: 1.0,
                effect_size: None,
                standard_error: 2.0,
                degrees_of_freedom: freedom,
            };
            let found = welch.minimal_detectable_difference(tests) / 2.0;
            assert!((found / shift - 1.0).abs() < 1e-6, "{freedom} degrees of freedom, {tests} tests: {found}");
        }
    }

    #[test]
    fn relative_interval_agrees_with_the_test() {
        let (x, y) = ([45.2, 46.1, 45.8, 47.0, 46.5], [47.9, 46.8, 48.3, 47.1, 49.0, 47.6]);
        let (low, high) = relative_interval(&x, &y).unwrap();
        let center = mean(&y).unwrap() / mean(&x).unwrap() - 1.0;
        assert!(0.0 < low && low < center && center < high, "{low} to {high} around {center}");
        // The bounds are the ratios that Welch's test just does not reject.
        for ratio in [low + 1.0, high + 1.0] {
            let scaled: Vec<f64> = x.iter().map(|value| value * ratio).collect();
            assert!((Welch::of(&scaled, &y).unwrap().p - 0.05).abs() < 1e-9, "{ratio}");
        }
        // In the other direction: the inverse.
        let (least, most) = relative_interval(&y, &x).unwrap();
        assert!(((1.0 + least) * (1.0 + high) - 1.0).abs() < 1e-9 && ((1.0 + most) * (1.0 + low) - 1.0).abs() < 1e-9);
    }

    /// A normal variable by Box and Muller's method.
    fn normal(random: &mut fastrand::Rng) -> f64 {
        (-2.0 * (1.0 - random.f64()).ln()).sqrt() * (2.0 * std::f64::consts::PI * random.f64()).cos()
    }

    #[test]
    fn power_matches_a_simulation() {
        let mut random = fastrand::Rng::with_seed(2);
        let (critical, shift) = (t_quantile(1.0 - 0.025 / 24.0, 4.0), 8.848_296_288);
        let mut detected = 0;
        for _ in 0..4000 {
            let squares: f64 = (0..4).map(|_| normal(&mut random).powi(2)).sum();
            let t = (normal(&mut random) + shift) / (squares / 4.0).sqrt();
            detected += i32::from(t.abs() > critical);
        }
        // 80 % with a standard error of 0.6 %.
        assert!((3100..=3300).contains(&detected), "{detected} of 4000");
    }

    #[test]
    fn relative_intervals_cover_as_often_as_promised() {
        for (ratio, repeats) in [(0.4, 3), (3.0, 3), (3.0, 10)] {
            let mut random = fastrand::Rng::with_seed(4);
            let mut covered = 0;
            for _ in 0..1000 {
                let mut sample =
                    |center: f64| (0..repeats).map(|_| center * (1.0 + 0.1 * normal(&mut random))).collect::<Vec<_>>();
                let (a, b) = (sample(10.0), sample(10.0 * ratio));
                let (low, high) = relative_interval(&a, &b).unwrap();
                covered += i32::from((low..=high).contains(&(ratio - 1.0)));
            }
            // Welch's test of three repeats is a little conservative.
            assert!((930..=980).contains(&covered), "{ratio}, {repeats} repeats: {covered} of 1000");
        }
    }

    #[test]
    fn relative_interval_without_a_bound_is_absent() {
        assert_eq!(relative_interval(&[1.0, -1.0, 0.5], &[3.0, 3.1, 3.2]), None, "the first may be zero");
        assert_eq!(relative_interval(&[0.0; 3], &[5.0; 3]), None);
        assert_eq!(relative_interval(&[0.0; 3], &[5.0, 5.1]), None);
        assert_eq!(relative_interval(&[5.0], &[5.0, 6.0]), None);
        assert_eq!(relative_interval(&[5.0; 3], &[6.0; 4]), Some((0.2, 0.2)));
        assert_eq!(relative_interval(&[4.9; 3], &[4.9; 20]), Some((0.0, 0.0)));
        let (low, high) = relative_interval(&[5.0, 5.1, 4.9], &[0.0; 3]).unwrap();
        assert!((low + 1.0).abs() < 1e-9 && (high + 1.0).abs() < 1e-9, "{low} to {high}: nothing is left");
    }

    #[test]
    fn samples_without_variance_are_equal_or_different() {
        let same = Welch::of(&[5.0; 3], &[5.0; 3]).unwrap();
        assert_eq!((same.p, same.difference, same.effect_size), (1.0, 0.0, None));
        assert_eq!(Welch::of(&[5.0; 3], &[6.0; 3]).unwrap().p, 0.0);
        // Means of different numbers of equal doubles differ in the last digit.
        for (few, many) in [(3, 20), (3, 10), (2, 7)] {
            let value = 1_044_917.333_333_333_4;
            let same = Welch::of(&vec![value; few], &vec![value; many]).unwrap();
            assert_eq!((same.p, same.difference), (1.0, 0.0), "{few} and {many}");
        }
    }

    #[test]
    fn holm_matches_statsmodels() {
        // statsmodels.stats.multitest.multipletests(method="holm")
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (found, known) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((found - known).abs() < 1e-12, "{adjusted:?}");
        }
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn the_interval_of_three_values_matches_student() {
        let interval = Interval::of(&[10.0, 11.0, 12.0]).unwrap();
        assert!((interval.half_width - 4.302_652_729_749_462 / 3.0_f64.sqrt()).abs() < 1e-9);
        assert!((interval.relative().unwrap() - interval.half_width / 11.0).abs() < 1e-12);
        assert_eq!(Interval::of(&[10.0]), None);
    }

    proptest! {
        #[test]
        fn the_cdf_of_a_quantile_is_its_probability(part in 0.5f64..0.9999, freedom in 1.0f64..200.0) {
            prop_assert!((t_cdf(t_quantile(part, freedom), freedom) - part).abs() < 1e-9);
        }
    }
}
