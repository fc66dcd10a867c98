//! The idle baseline: what a package would use if nobody ran, learnt from what it used while more and less ran.
//!
//! The figure is the intercept of power against load, robust against outliers (Theil-Sen over the medians of load classes),
//! never the lowest power that was seen: a farm that never idles has no such minimum. Until load has varied it is unknown.
//! Close to idle power bends less than over the whole range, so the lowest classes that span enough load decide; how much
//! the others would have said otherwise is part of the interval.

use std::collections::VecDeque;

/// Upper ends of the load classes: narrow towards idle, where power bends most (the first core that wakes takes the package out of
/// its deep sleep).
const CLASSES: [f64; 23] = [
    0.01, 0.02, 0.04, 0.07, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80,
    0.85, 0.90, 0.95, 1.0,
];
/// Samples kept of each class; the oldest go. A class that is seldom visited keeps its memory.
const KEPT: usize = 64;
/// A class counts from this many samples on.
const ENOUGH: usize = 5;
/// Least number of classes, and least part of the whole load that they must span, for an intercept.
const LEAST_CLASSES: usize = 3;
const LEAST_SPAN: f64 = 0.2;
/// A machine whose lowest class is below this was seen all but idle: then the lowest classes alone decide, and a line from there
/// to idle is so short that a smaller span will do.
const NEARLY_IDLE: f64 = 0.05;
const SHORT_SPAN: f64 = 0.05;
/// A sample lasts at least this long; shorter ticks are put together.
const SAMPLE_NS: u64 = 900_000_000;
/// How many samples pass between two estimates.
const EVERY: usize = 10;
/// Resamplings for the interval.
const RESAMPLINGS: usize = 200;

/// What is known of a package's idle power, in microwatts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The figure to use.
    pub uw: u64,
    /// The lower end of its 95 % interval.
    pub low_uw: u64,
    /// The upper end.
    pub high_uw: u64,
}

impl Estimate {
    /// A figure that is known by construction.
    #[must_use]
    pub fn exact(uw: u64) -> Self {
        Self { uw, low_uw: uw, high_uw: uw }
    }
}

/// A moment of load (0 to 1) and power (watts).
pub type Sample = (f64, f64);

/// The memory of one package.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    classes: Vec<VecDeque<Sample>>,
    open: Open,
    samples: usize,
    estimate: Option<Estimate>,
}

/// Ticks that are not a sample yet.
#[derive(Clone, Copy, Debug, Default)]
struct Open {
    ns: u64,
    busy_ns: u64,
    uj: u64,
}

impl Baseline {
    /// Takes a tick: its length, how long the package's CPUs were busy in it, all together, and its microjoules.
    pub fn observe(&mut self, ns: u64, busy_ns: u64, cpus: u64, uj: u64) {
        let open = &mut self.open;
        open.ns = open.ns.saturating_add(ns);
        open.busy_ns = open.busy_ns.saturating_add(busy_ns);
        open.uj = open.uj.saturating_add(uj);
        if open.ns < SAMPLE_NS || cpus == 0 {
            return;
        }
        let Open { ns, busy_ns, uj } = std::mem::take(open);
        let seconds = float(ns) / 1e9;
        let load = float(busy_ns) / (float(ns) * float(cpus));
        self.add((load.clamp(0.0, 1.0), float(uj) / 1e6 / seconds));
        self.samples += 1;
        if self.samples.is_multiple_of(EVERY) {
            self.estimate = estimate(&self.classes);
        }
    }

    /// A reading is missing: what was put together so far stands for nothing.
    pub fn interrupt(&mut self) {
        self.open = Open::default();
    }

    fn add(&mut self, (load, watts): Sample) {
        if self.classes.is_empty() {
            self.classes = vec![VecDeque::new(); CLASSES.len()];
        }
        let class = CLASSES.iter().position(|end| load < *end).unwrap_or(CLASSES.len() - 1);
        let class = &mut self.classes[class];
        if class.len() == KEPT {
            class.pop_front();
        }
        class.push_back((load, watts));
    }

    /// What is known; `None` until load has varied.
    #[must_use]
    pub fn estimate(&self) -> Option<Estimate> {
        self.estimate
    }

    /// The least power that was seen in any class, in microwatts: idle is not above it, whether it is known or not.
    #[must_use]
    pub fn at_most(&self) -> Option<u64> {
        let medians = self.classes.iter().filter(|class| !class.is_empty()).map(|class| median_of(class, |s| s.1));
        medians.min_by(f64::total_cmp).map(microwatts)
    }

    /// Everything remembered, for the state file.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        self.classes.iter().flatten().copied().collect()
    }

    /// A memory from an earlier life. What cannot be a sample is left out.
    #[must_use]
    pub fn remember(samples: &[Sample]) -> Self {
        let mut this = Self::default();
        for (load, watts) in samples.iter().take(CLASSES.len() * KEPT) {
            if (0.0..=1.0).contains(load) && (0.0..1e6).contains(watts) {
                this.add((*load, *watts));
            }
        }
        this.estimate = estimate(&this.classes);
        this
    }
}

fn estimate(classes: &[VecDeque<Sample>]) -> Option<Estimate> {
    let full: Vec<&VecDeque<Sample>> = classes.iter().filter(|class| class.len() >= ENOUGH).collect();
    let medians: Vec<Sample> =
        full.iter().map(|class| (median_of(class, |s| s.0), median_of(class, |s| s.1))).collect();
    let span = |count: usize| medians[count - 1].0 - medians[0].0;
    let nearly_idle = medians.first()?.0 < NEARLY_IDLE;
    let enough = if nearly_idle { SHORT_SPAN } else { LEAST_SPAN };
    let varied = (LEAST_CLASSES..=medians.len()).find(|count| span(*count) >= enough)?;
    let low = if nearly_idle { LEAST_CLASSES } else { varied };
    let least = medians.iter().map(|median| median.1).fold(f64::INFINITY, f64::min);
    let held = |watts: f64| watts.clamp(0.0, least);
    let near = held(intercept(&medians[..low])?);
    let far = held(intercept(&medians)?);
    // Where power bends, it bends towards less at idle: the steepest line is the one through the lowest two.
    let steep = held(intercept(&medians[..2])?);

    // The bootstrap: what the medians might have been, had the samples fallen otherwise.
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
        others.extend(intercept(&drawn).map(held));
    }
    others.sort_unstable_by(f64::total_cmp);
    let at = |share: usize| others.get((others.len() * share / 1000).min(others.len().saturating_sub(1))).copied();
    let (bottom, top) = (at(25)?.min(near).min(far).min(steep), at(975)?.max(near).max(far));
    // An interval as wide as half of what is used at the least says nothing yet.
    if top - bottom > 0.5 * least {
        return None;
    }
    Some(Estimate { uw: microwatts(near), low_uw: microwatts(bottom), high_uw: microwatts(top) })
}

/// Theil-Sen: the median of all slopes, and the median of what it leaves at no load.
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
    // Load never saves power: a slope below zero is noise.
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

/// The same numbers every time (xorshift64*), so that a recording gives the same account every time.
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

    /// Feeds seconds of a load on 8 CPUs at the watts that `power` gives, with noise.
    fn feed(baseline: &mut Baseline, loads: &[f64], power: impl Fn(f64) -> f64, noise: f64) {
        let mut random = Random(7);
        for load in loads {
            let slip = (float(random.below(2001) as u64) / 1000.0 - 1.0) * noise;
            let uj = microwatts(power(*load) + slip);
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
    fn the_intercept_is_found_although_the_machine_never_idles() {
        let mut baseline = Baseline::default();
        feed(&mut baseline, &spread(0.4, 0.9, 300), line, 2.0);
        let estimate = baseline.estimate().unwrap();
        assert!(estimate.uw.abs_diff(30_000_000) < 3_000_000, "{estimate:?}");
        assert!(estimate.low_uw <= 30_000_000 && 30_000_000 <= estimate.high_uw, "{estimate:?}");
        assert!(baseline.at_most().unwrap() > 60_000_000, "the least that was seen is far above");
    }

    #[test]
    fn until_load_has_varied_nothing_is_known() {
        let mut baseline = Baseline::default();
        feed(&mut baseline, &spread(0.50, 0.53, 500), line, 2.0);
        assert_eq!(baseline.estimate(), None);
        feed(&mut baseline, &spread(0.0, 0.008, 500), line, 2.0);
        assert_eq!(baseline.estimate(), None, "two classes are no line");
        feed(&mut baseline, &spread(0.2, 0.3, 100), line, 2.0);
        assert!(baseline.estimate().is_some());
    }

    #[test]
    fn a_machine_that_is_mostly_idle_needs_little_load_to_tell() {
        let mut baseline = Baseline::default();
        feed(&mut baseline, &spread(0.0, 0.12, 200), line, 1.0);
        let estimate = baseline.estimate().unwrap();
        assert!(estimate.uw.abs_diff(30_000_000) < 1_000_000, "{estimate:?}");
    }

    #[test]
    fn where_power_bends_the_low_end_decides_and_the_interval_says_so() {
        let mut baseline = Baseline::default();
        let bends = |load: f64| 30.0 + 100.0 * load.powf(0.75);
        feed(&mut baseline, &spread(0.0, 1.0, 2000), bends, 0.5);
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
    fn outliers_do_not_move_it() {
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
    fn short_ticks_are_put_together_and_a_gap_starts_anew() {
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
    fn what_was_remembered_gives_the_same_figure() {
        let mut baseline = Baseline::default();
        feed(&mut baseline, &spread(0.0, 0.9, 400), line, 2.0);
        let again = Baseline::remember(&baseline.samples());
        assert_eq!(again.estimate(), estimate(&baseline.classes));
        assert_eq!(Baseline::remember(&[(2.0, 1.0), (f64::NAN, 1.0), (0.5, f64::INFINITY)]).samples(), []);
    }

    proptest! {
        #[test]
        fn any_memory_is_borne(samples in proptest::collection::vec((any::<f64>(), any::<f64>()), 0..400)) {
            let baseline = Baseline::remember(&samples);
            if let Some(estimate) = baseline.estimate() {
                prop_assert!(estimate.low_uw <= estimate.uw && estimate.uw <= estimate.high_uw);
            }
        }
    }
}
