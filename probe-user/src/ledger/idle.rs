//! Idle power of a package, learnt from its power at different loads.
//!
//! The estimate is the intercept of power against load, robust against outliers (Theil-Sen over the
//! medians of load classes). It is not the lowest observed power, because a machine that is never
//! idle has no such minimum. It is unknown until the load has varied. Power is closer to linear
//! near idle than over the whole range, so the lowest classes that span enough load determine the
//! estimate; the deviation of the estimate over all classes is part of its interval.

use std::collections::VecDeque;

/// Upper limits of the load classes: narrow near idle, where power is least linear (the first
/// active core takes the package out of its deep sleep state).
const CLASSES: [f64; 23] = [
    0.01, 0.02, 0.04, 0.07, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80,
    0.85, 0.90, 0.95, 1.0,
];
/// Maximum number of samples per class, of which the newest are kept.
const MAX_SAMPLES: usize = 64;
/// Minimum number of samples of a class.
const MIN_SAMPLES: usize = 5;
/// Minimum number of classes, and minimum load that they must span, for an intercept.
const MIN_CLASSES: usize = 3;
const MIN_SPAN: f64 = 0.2;
/// A lowest class below this is nearly idle: then the lowest classes alone determine the estimate,
/// and the extrapolation to idle is so short that a smaller span is enough.
const NEARLY_IDLE: f64 = 0.05;
const MIN_SPAN_NEARLY_IDLE: f64 = 0.05;
/// Minimum length of a sample; shorter ticks are combined.
const SAMPLE_NS: u64 = 900_000_000;
/// Number of samples between two estimates.
const ESTIMATE_INTERVAL: usize = 10;
/// Number of bootstrap resamplings for the interval.
const RESAMPLINGS: usize = 200;

/// Estimated idle power in microwatts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The estimate.
    pub uw: u64,
    /// Lower end of the 95 % interval.
    pub low_uw: u64,
    /// Upper end of the 95 % interval.
    pub high_uw: u64,
}

impl Estimate {
    /// An exactly known idle power.
    #[must_use]
    pub fn exact(uw: u64) -> Self {
        Self { uw, low_uw: uw, high_uw: uw }
    }
}

/// Load (0 to 1) and power (watts) of a sample.
pub type Sample = (f64, f64);

/// Samples and estimate of one package.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    classes: Vec<VecDeque<Sample>>,
    partial: PartialSample,
    samples: usize,
    estimate: Option<Estimate>,
}

/// Ticks that do not make a complete sample yet.
#[derive(Clone, Copy, Debug, Default)]
struct PartialSample {
    ns: u64,
    busy_ns: u64,
    uj: u64,
}

impl Baseline {
    /// Adds a tick: its length, the busy time of all CPUs of the package, and its microjoules.
    pub fn observe(&mut self, ns: u64, busy_ns: u64, cpus: u64, uj: u64) {
        let partial = &mut self.partial;
        partial.ns = partial.ns.saturating_add(ns);
        partial.busy_ns = partial.busy_ns.saturating_add(busy_ns);
        partial.uj = partial.uj.saturating_add(uj);
        if partial.ns < SAMPLE_NS || cpus == 0 {
            return;
        }
        let PartialSample { ns, busy_ns, uj } = std::mem::take(partial);
        let seconds = float(ns) / 1e9;
        let load = float(busy_ns) / (float(ns) * float(cpus));
        self.add((load.clamp(0.0, 1.0), float(uj) / 1e6 / seconds));
        self.samples += 1;
        if self.samples.is_multiple_of(ESTIMATE_INTERVAL) {
            self.estimate = estimate(&self.classes);
        }
    }

    /// Drops the incomplete sample after a missing reading.
    pub fn interrupt(&mut self) {
        self.partial = PartialSample::default();
    }

    fn add(&mut self, (load, watts): Sample) {
        if self.classes.is_empty() {
            self.classes = vec![VecDeque::new(); CLASSES.len()];
        }
        let class = CLASSES.iter().position(|end| load < *end).unwrap_or(CLASSES.len() - 1);
        let class = &mut self.classes[class];
        if class.len() == MAX_SAMPLES {
            class.pop_front();
        }
        class.push_back((load, watts));
    }

    /// The estimate; `None` until the load has varied.
    #[must_use]
    pub fn estimate(&self) -> Option<Estimate> {
        self.estimate
    }

    /// The lowest median power of all classes, in microwatts: an upper limit of the idle power.
    #[must_use]
    pub fn upper_limit(&self) -> Option<u64> {
        let medians = self.classes.iter().filter(|class| !class.is_empty()).map(|class| median_of(class, |s| s.1));
        medians.min_by(f64::total_cmp).map(microwatts)
    }

    /// All samples, for the file of learnt idle power.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        self.classes.iter().flatten().copied().collect()
    }

    /// A baseline with the samples of an earlier run. Impossible samples are left out.
    #[must_use]
    pub fn restore(samples: &[Sample]) -> Self {
        let mut this = Self::default();
        for (load, watts) in samples.iter().take(CLASSES.len() * MAX_SAMPLES) {
            if (0.0..=1.0).contains(load) && (0.0..1e6).contains(watts) {
                this.add((*load, *watts));
            }
        }
        this.estimate = estimate(&this.classes);
        this
    }
}

fn estimate(classes: &[VecDeque<Sample>]) -> Option<Estimate> {
    let full: Vec<&VecDeque<Sample>> = classes.iter().filter(|class| class.len() >= MIN_SAMPLES).collect();
    let medians: Vec<Sample> =
        full.iter().map(|class| (median_of(class, |s| s.0), median_of(class, |s| s.1))).collect();
    let span = |count: usize| medians[count - 1].0 - medians[0].0;
    let nearly_idle = medians.first()?.0 < NEARLY_IDLE;
    let enough = if nearly_idle { MIN_SPAN_NEARLY_IDLE } else { MIN_SPAN };
    let varied = (MIN_CLASSES..=medians.len()).find(|count| span(*count) >= enough)?;
    let low = if nearly_idle { MIN_CLASSES } else { varied };
    let least = medians.iter().map(|median| median.1).fold(f64::INFINITY, f64::min);
    let clamp = |watts: f64| watts.clamp(0.0, least);
    let near = clamp(intercept(&medians[..low])?);
    let far = clamp(intercept(&medians)?);
    // A non-linear curve falls more steeply near idle, so the steepest line goes through the lowest
    // two classes.
    let steep = clamp(intercept(&medians[..2])?);

    // Bootstrap: the distribution of the estimate over resampled classes.
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut others: Vec<f64> = Vec::with_capacity(RESAMPLINGS);
    for _ in 0..RESAMPLINGS {
        let drawn: Vec<Sample> = full[..low]
            .iter()
            .map(|class| {
                let again: VecDeque<Sample> = (0..class.len()).map(|_| class[random.below(class.len())]).collect();
                (median_of(&again, |s| s.0), median_of(&again, |s| s.1))
            })
            .collect();
        others.extend(intercept(&drawn).map(clamp));
    }
    others.sort_unstable_by(f64::total_cmp);
    let at = |share: usize| others.get((others.len() * share / 1000).min(others.len().saturating_sub(1))).copied();
    let (bottom, top) = (at(25)?.min(near).min(far).min(steep), at(975)?.max(near).max(far));
    // An interval wider than half of the lowest power is not a useful estimate.
    if top - bottom > 0.5 * least {
        return None;
    }
    Some(Estimate { uw: microwatts(near), low_uw: microwatts(bottom), high_uw: microwatts(top) })
}

/// Theil-Sen: the median of all slopes, and the median of the intercepts with that slope.
fn intercept(points: &[Sample]) -> Option<f64> {
    let mut slopes = Vec::with_capacity(points.len() * points.len() / 2);
    for (at, (load, watts)) in points.iter().enumerate() {
        for (other_load, other_watts) in &points[at + 1..] {
            let apart = other_load - load;
            if apart > 1e-6 {
                slopes.push((other_watts - watts) / apart);
            }
        }
    }
    // Power does not fall with load, so a negative slope is noise.
    let slope = median(&mut slopes)?.max(0.0);
    median(&mut points.iter().map(|(load, watts)| watts - slope * load).collect::<Vec<_>>())
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => values.get(middle).copied(),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

fn median_of(samples: &VecDeque<Sample>, of: impl Fn(&Sample) -> f64) -> f64 {
    median(&mut samples.iter().map(of).collect::<Vec<_>>()).unwrap_or(0.0)
}

/// A fixed sequence of pseudo-random numbers (xorshift64*), so that a replay is deterministic.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(drawn).unwrap_or(0) % end.max(1)
    }
}

#[expect(clippy::cast_precision_loss, reason = "statistics; no joule is counted here")]
fn float(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 1e6 W, and float to int saturates")]
fn microwatts(watts: f64) -> u64 {
    (watts * 1e6).round() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Adds seconds of load on 8 CPUs, with the watts of `power` and noise.
    fn feed(baseline: &mut Baseline, loads: &[f64], power: impl Fn(f64) -> f64, noise: f64) {
        let mut random = Random(7);
        for load in loads {
            let error = (float(random.below(2001) as u64) / 1000.0 - 1.0) * noise;
            let uj = microwatts(power(*load) + error);
            baseline.observe(1_000_000_000, microwatts(load * 8.0 * 1000.0), 8, uj);
        }
    }

    fn line(load: f64) -> f64 {
        30.0 + 100.0 * load
    }

    fn spread(from: f64, to: f64, count: u32) -> Vec<f64> {
        (0..count).map(|at| from + (to - from) * f64::from(at * 37 % count) / f64::from(count)).collect()
    }

    #[test]
    fn the_intercept_is_found_on_a_machine_that_is_never_idle() {
        let mut baseline = Baseline::default();
        feed(&mut baseline, &spread(0.4, 0.9, 300), line, 2.0);
        let estimate = baseline.estimate().unwrap();
        assert!(estimate.uw.abs_diff(30_000_000) < 3_000_000, "{estimate:?}");
        assert!(estimate.low_uw <= 30_000_000 && 30_000_000 <= estimate.high_uw, "{estimate:?}");
        assert!(baseline.upper_limit().unwrap() > 60_000_000, "the lowest observed power is far above");
    }

    #[test]
    fn the_estimate_is_unknown_until_the_load_has_varied() {
        let mut baseline = Baseline::default();
        feed(&mut baseline, &spread(0.50, 0.53, 500), line, 2.0);
        assert_eq!(baseline.estimate(), None);
        feed(&mut baseline, &spread(0.0, 0.008, 500), line, 2.0);
        assert_eq!(baseline.estimate(), None, "two classes are not enough");
        feed(&mut baseline, &spread(0.2, 0.3, 100), line, 2.0);
        assert!(baseline.estimate().is_some());
    }

    #[test]
    fn a_mostly_idle_machine_needs_little_load() {
        let mut baseline = Baseline::default();
        feed(&mut baseline, &spread(0.0, 0.12, 200), line, 1.0);
        let estimate = baseline.estimate().unwrap();
        assert!(estimate.uw.abs_diff(30_000_000) < 1_000_000, "{estimate:?}");
    }

    #[test]
    fn non_linear_power_is_estimated_from_low_load_and_widens_it() {
        let mut baseline = Baseline::default();
        let concave = |load: f64| 30.0 + 100.0 * load.powf(0.75);
        feed(&mut baseline, &spread(0.0, 1.0, 2000), concave, 0.5);
        let estimate = baseline.estimate().unwrap();
        assert!(estimate.uw.abs_diff(30_000_000) < 2_000_000, "{estimate:?}");
        assert!(estimate.low_uw <= 30_500_000 && 30_000_000 <= estimate.high_uw, "{estimate:?}");
        assert!(estimate.high_uw - estimate.low_uw > 1_000_000, "{estimate:?}");
        let mut gentle = Baseline::default();
        feed(&mut gentle, &spread(0.0, 1.0, 2000), |load| 30.0 + 100.0 * load - 30.0 * load * load, 0.5);
        let estimate = gentle.estimate().unwrap();
        assert!(estimate.uw.abs_diff(30_000_000) < 2_000_000, "{estimate:?}");
        assert!(estimate.low_uw <= 30_000_000 && 30_000_000 <= estimate.high_uw, "{estimate:?}");
    }

    #[test]
    fn outliers_do_not_change_the_estimate() {
        let mut baseline = Baseline::default();
        let loads = spread(0.0, 0.8, 600);
        feed(&mut baseline, &loads, line, 1.0);
        let before = baseline.estimate().unwrap();
        // One sample in ten is a burst of another kind of work.
        feed(&mut baseline, &spread(0.0, 0.8, 60), |load| line(load) + 400.0, 1.0);
        let after = baseline.estimate().unwrap();
        assert!(after.uw.abs_diff(before.uw) < 2_000_000, "{before:?} {after:?}");
    }

    #[test]
    fn short_ticks_are_combined_and_a_gap_restarts_the_sample() {
        let mut baseline = Baseline::default();
        for _ in 0..9 {
            baseline.observe(100_000_000, 0, 1, 1_000_000);
        }
        assert_eq!(baseline.samples(), [(0.0, 10.0)]);
        baseline.observe(500_000_000, 0, 1, 9_000_000);
        baseline.interrupt();
        baseline.observe(900_000_000, 0, 1, 9_000_000);
        assert_eq!(baseline.samples(), [(0.0, 10.0), (0.0, 10.0)]);
    }

    #[test]
    fn restored_samples_give_the_same_estimate() {
        let mut baseline = Baseline::default();
        feed(&mut baseline, &spread(0.0, 0.9, 400), line, 2.0);
        let again = Baseline::restore(&baseline.samples());
        assert_eq!(again.estimate(), estimate(&baseline.classes));
        assert_eq!(Baseline::restore(&[(2.0, 1.0), (f64::NAN, 1.0), (0.5, f64::INFINITY)]).samples(), []);
    }

    proptest! {
        #[test]
        fn arbitrary_samples_do_not_panic(samples in proptest::collection::vec((any::<f64>(), any::<f64>()), 0..400)) {
            let baseline = Baseline::restore(&samples);
            if let Some(estimate) = baseline.estimate() {
                prop_assert!(estimate.low_uw <= estimate.uw && estimate.uw <= estimate.high_uw);
            }
        }
    }
}
