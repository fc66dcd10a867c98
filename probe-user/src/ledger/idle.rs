//! Sleep and awake power of a package, learnt from its power at different loads.
//!
//! The power of a package is `sleep + step · awake + what grows with load`, where `awake` is the
//! share of time in which it was awake. One busy CPU anywhere wakes every package of a machine, so
//! the step is not part of the load of the package.
//!
//! - Sleep power is the intercept of power against load, or the power of a package that was seen
//!   asleep.
//! - Sleep power and step together are the intercept of the samples in which it was awake. A
//!   package that never sleeps tells only this sum, which is used as one base.
//!
//! An intercept is robust against outliers (Theil-Sen over the medians of load classes). It is not
//! the lowest observed power, because a machine that is never idle has no such minimum. Power is
//! closer to linear near idle than over the whole range, so the lowest classes that span enough
//! load determine it. The interval contains its scatter over time (a jackknife over blocks of time,
//! because neighbouring samples err alike), the distance of the extrapolation, and the bend of the
//! curve. What cannot be separated is refused: a package that was never below half load, a flat
//! curve (a power limit), classes that contradict each other.
//!
//! A calibration measures both terms at once. Its figures are used until the samples tell their own
//! or contradict them.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Upper limits of the load classes: narrow near idle, where power is least linear.
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
/// From this lowest load on nothing is extrapolated: the other half of the curve was never seen.
const HALF_LOAD: f64 = 0.5;
/// A package awake for less than this share of a sample was asleep, and for more than the other it
/// was awake.
const ASLEEP: f64 = 0.05;
const AWAKE: f64 = 0.9;
/// Asleep where nothing else tells sleep power: a daemon that runs for 2 ms a second on each of 32
/// CPUs keeps a machine awake for 6 % of the time. What that costs widens the interval.
const MOSTLY_ASLEEP: f64 = 0.1;
/// Asleep in part where the machine was never awake for so little: a daemon that runs for 2 ms a
/// second on each of 128 CPUs keeps it awake for 23 % of the time when it wakes them independently
/// of each other, and for 0.2 % when it wakes all at once. Then the estimate is the middle between
/// what both would mean, where neither is farther from it than this part.
const PARTLY_ASLEEP: f64 = 0.5;
const MAX_WOKEN: f64 = 0.1;
/// A class below this load shows the power of an awake package without load.
const UNLOADED: f64 = 0.02;
/// Minimum length of a sample; shorter ticks are combined.
const SAMPLE_NS: u64 = 900_000_000;
/// Number of samples between two estimates.
const ESTIMATE_INTERVAL: usize = 10;
/// Blocks of time of the jackknife, and how many of its standard errors half an interval has
/// (Student's t for seven degrees of freedom, 95 %).
const BLOCKS: usize = 8;
const ERRORS: f64 = 2.4;
/// Widest halves of an interval, relative to the estimate. A wider one is not a useful estimate.
const MAX_ABOVE: f64 = 0.15;
const MAX_BELOW: f64 = 0.25;
/// Number of the newest samples of a class that contradict the earlier ones when all of them lie
/// beyond their scatter, and the least difference, relative to the power.
const CONTRADICTING: usize = 8;
const MIN_CHANGE: f64 = 0.1;
/// Two contradicted classes within this time are a change of the machine, not of its work.
const CHANGE_SECONDS: u64 = 900;
/// Default of the age at which a sample no longer counts.
pub const MAX_AGE_SECONDS: u64 = 12 * 3600;

/// Estimated power in microwatts.
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
    /// An exactly known power.
    #[must_use]
    pub fn exact(uw: u64) -> Self {
        Self { uw, low_uw: uw, high_uw: uw }
    }
}

/// What is known of the idle power.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdleState {
    /// Not enough samples, or too wide an interval.
    #[default]
    Learning,
    /// The samples cannot tell it: never below half load, a flat curve, a contradiction.
    Refused,
    /// Only the sum of sleep power and step: the package never slept.
    Base,
    /// Sleep power.
    Known,
    /// Sleep power, as a calibration measured it: the samples do not tell their own yet.
    Calibrated,
}

impl IdleState {
    /// Value of the label `state`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Learning => "learning",
            Self::Refused => "refused",
            Self::Base => "base",
            Self::Known => "known",
            Self::Calibrated => "calibrated",
        }
    }
}

/// A sample: load (0 to 1), power in watts, share of time awake (0 to 1), end in unix seconds (0
/// where it is unknown). In the state file of earlier versions it has the first two.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample(pub f64, pub f64, #[serde(default = "partly_awake")] pub f64, #[serde(default)] pub i64);

/// Neither asleep nor awake.
fn partly_awake() -> f64 {
    0.5
}

impl From<(f64, f64)> for Sample {
    fn from((load, watts): (f64, f64)) -> Self {
        Self(load, watts, partly_awake(), 0)
    }
}

/// What a calibration measured of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Sleep power.
    pub idle: Estimate,
    /// The step between sleep and awake, where it was measured.
    pub step: Option<Estimate>,
    /// Unix seconds of the measurement.
    pub since: i64,
    /// Unix seconds after which it no longer counts.
    pub until: i64,
}

impl Seed {
    /// The power of an awake package without load, with its interval.
    fn base(&self) -> Estimate {
        let Estimate { uw, low_uw, high_uw } = self.step.unwrap_or(Estimate::exact(0));
        let idle = self.idle;
        Estimate {
            uw: idle.uw.saturating_add(uw),
            low_uw: idle.low_uw.saturating_add(low_uw),
            high_uw: idle.high_uw.saturating_add(high_uw),
        }
    }

    /// True when the idle power of `learnt` is another one than this.
    fn is_contradicted_by(&self, learnt: &Learnt) -> bool {
        let Some(idle) = learnt.idle else { return false };
        let own = match (learnt.state, learnt.slept) {
            (IdleState::Base, _) => self.base(),
            (_, true) => self.idle,
            // A line through samples that were awake in part ends between sleep power and base.
            (_, false) => Estimate { high_uw: self.base().high_uw, ..self.idle },
        };
        // Without a step, the base may be above it by any amount.
        let above = idle.low_uw > own.high_uw && (self.step.is_some() || learnt.slept);
        (above || own.low_uw > idle.high_uw) && idle.uw.abs_diff(own.uw) > own.uw / 10
    }
}

/// One tick of a package.
#[derive(Clone, Copy, Debug, Default)]
pub struct Observation {
    /// End of the tick in unix seconds.
    pub unix_seconds: i64,
    pub ns: u64,
    /// Weighted CPU time, in thousandths of nanoseconds, as it divides the energy.
    pub weight: u64,
    /// Weight of a nanosecond of all CPUs of the package together.
    pub capacity: u64,
    /// Time in which the package was awake.
    pub awake_ns: u64,
    pub uj: u64,
}

/// Samples and estimates of one package.
#[derive(Clone, Debug)]
pub struct Baseline {
    /// By load class: of samples that were not awake all the time, and then of those that were.
    classes: Vec<VecDeque<Sample>>,
    partial: PartialSample,
    samples: usize,
    max_age: u64,
    /// True while samples of an earlier version have no time. They count as taken at the first
    /// sample after them, so that they become old like all others.
    undated: bool,
    /// The last class that newer samples contradicted, and the time of the first of these.
    contradicted: Option<(usize, i64)>,
    /// What was known before that, and until when it stands in for what is not learnt again yet.
    held: Option<(Learnt, i64)>,
    /// Time of a change: until new samples tell the idle power, those near idle from before stay.
    doubted: Option<i64>,
    learnt: Learnt,
    /// What a calibration measured.
    seed: Option<Seed>,
    /// A seed that the samples have contradicted. It is not taken again.
    refuted: Option<Seed>,
    /// What the seed tells in place of the samples.
    seeded: Option<Learnt>,
}

/// What the samples tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Learnt {
    state: IdleState,
    idle: Option<Estimate>,
    step: Option<Estimate>,
    /// True when samples show the package asleep, for nearly all of their time.
    slept: bool,
}

/// Ticks that do not make a complete sample yet.
#[derive(Clone, Copy, Debug, Default)]
struct PartialSample {
    ns: u64,
    /// Weighted CPU time over the weight of all CPUs, in nanoseconds.
    busy: f64,
    awake_ns: u64,
    uj: u64,
}

impl Default for Baseline {
    fn default() -> Self {
        Self {
            classes: Vec::new(),
            partial: PartialSample::default(),
            samples: 0,
            max_age: MAX_AGE_SECONDS,
            undated: false,
            contradicted: None,
            held: None,
            doubted: None,
            learnt: Learnt::default(),
            seed: None,
            refuted: None,
            seeded: None,
        }
    }
}

impl Baseline {
    /// Sets the age at which a sample no longer counts, in seconds.
    pub fn set_max_age(&mut self, seconds: u64) {
        self.max_age = seconds;
    }

    /// Takes what a calibration measured. It is used until the samples tell their own sleep power,
    /// or contradict it.
    pub fn seed(&mut self, seed: Option<Seed>) {
        let seed = seed.filter(|seed| self.refuted != Some(*seed));
        if let Some(seed) = seed.filter(|seed| self.seed != Some(*seed)) {
            // Earlier samples are of the machine before it, and of another SMT weight: they must
            // not contradict what was measured after them.
            self.classes.iter_mut().for_each(|samples| samples.retain(|sample| sample.3 >= seed.since));
            self.learnt = learn(&self.classes);
        }
        self.seed = seed;
        self.use_seed(0);
    }

    /// Adds a tick.
    pub fn observe(&mut self, tick: Observation) {
        let partial = &mut self.partial;
        partial.ns = partial.ns.saturating_add(tick.ns);
        partial.busy += float(tick.weight) / float(tick.capacity.max(1));
        partial.awake_ns = partial.awake_ns.saturating_add(tick.awake_ns);
        partial.uj = partial.uj.saturating_add(tick.uj);
        if partial.ns < SAMPLE_NS || tick.capacity == 0 {
            return;
        }
        let PartialSample { ns, busy, awake_ns, uj } = std::mem::take(partial);
        let ns = float(ns);
        let (load, awake) = ((busy / ns).clamp(0.0, 1.0), (float(awake_ns) / ns).clamp(0.0, 1.0));
        self.add(Sample(load, float(uj) * 1e3 / ns, awake, tick.unix_seconds));
        self.samples += 1;
        if self.samples.is_multiple_of(ESTIMATE_INTERVAL) {
            self.learn(tick.unix_seconds);
        }
    }

    fn learn(&mut self, now: i64) {
        self.learn_from_samples(now);
        self.use_seed(now);
    }

    /// Decides whether the seed stands in for the samples. `now` is 0 where the time is unknown.
    fn use_seed(&mut self, now: i64) {
        self.seeded = None;
        let Some(seed) = self.seed else { return };
        let least = self.classes.iter().filter(|class| class.len() >= MIN_SAMPLES).map(|class| center(class.iter()).1);
        let below = |watts: f64| microwatts(1.1 * watts) < seed.idle.low_uw;
        if least.min_by(f64::total_cmp).is_some_and(below) || seed.is_contradicted_by(&self.learnt) {
            (self.seed, self.refuted) = (None, Some(seed));
        } else if now > seed.until {
            self.seed = None;
        } else if self.learnt.state == IdleState::Base && seed.step.is_none() {
            // The base tells more than sleep power without a step.
        } else if self.learnt.state == IdleState::Known && (self.learnt.slept || seed.step.is_none()) {
            // Without a sample of an awake package without load, the samples do not tell the step.
            let step = self.learnt.step.or(seed.step);
            self.seeded = Some(Learnt { step, ..self.learnt });
        } else {
            let Seed { idle, step, .. } = seed;
            self.seeded = Some(Learnt { state: IdleState::Calibrated, idle: Some(idle), step, slept: true });
        }
    }

    /// What is known: from the samples, or else from a calibration.
    fn known(&self) -> &Learnt {
        self.seeded.as_ref().unwrap_or(&self.learnt)
    }

    fn learn_from_samples(&mut self, now: i64) {
        self.settle_doubt();
        self.learnt = learn(&self.classes);
        let Some((held, _)) = self.held.filter(|(_, until)| now <= *until) else { return };
        let limit = self.upper_limit().unwrap_or(0);
        if let (None, IdleState::Learning, Some(idle)) = (self.learnt.idle, self.learnt.state, held.idle)
            && idle.uw <= limit
        {
            let idle = Estimate { uw: idle.uw, low_uw: 0, high_uw: limit };
            self.learnt = Learnt { state: held.state, idle: Some(idle), step: None, slept: held.slept };
        }
    }

    /// Drops the incomplete sample after a missing reading.
    pub fn interrupt(&mut self) {
        self.partial = PartialSample::default();
    }

    fn add(&mut self, sample: Sample) {
        if self.classes.is_empty() {
            self.classes = vec![VecDeque::new(); 2 * CLASSES.len()];
        }
        self.forget_old(sample.3);
        let class = class_of(sample);
        let samples = &mut self.classes[class];
        if samples.len() == MAX_SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
        if let Some(since) = contradiction(samples) {
            self.drop_contradicted(class, since, sample.3);
        }
    }

    /// Drops samples that are too old, or from the future of a clock that was set back.
    fn forget_old(&mut self, now: i64) {
        if now == 0 {
            return;
        }
        if std::mem::take(&mut self.undated) {
            self.classes.iter_mut().flatten().filter(|sample| sample.3 == 0).for_each(|sample| sample.3 = now);
        }
        let max_age = self.max_age;
        for class in &mut self.classes {
            while class.front().is_some_and(|first| first.3 != 0 && first.3.abs_diff(now) > max_age) {
                class.pop_front();
            }
        }
    }

    /// Drops the samples of a class from before `since`. When another class was contradicted
    /// shortly before, the machine has changed (a governor, a setting of the firmware) or its work
    /// has, and what all other classes have from before is no longer true. Work does not change the
    /// power near idle: samples of it stay unless they are contradicted themselves. Until enough
    /// is learnt again, at most for a quarter of an hour, the earlier idle power is used.
    fn drop_contradicted(&mut self, class: usize, since: i64, now: i64) {
        if self.held.is_none_or(|(_, until)| until < now) {
            self.held = Some((self.learnt, now.saturating_add_unsigned(CHANGE_SECONDS)));
        }
        let before = self.contradicted.replace((class, since));
        let other = before.filter(|(other, at)| *other != class && at.abs_diff(since) <= CHANGE_SECONDS);
        let drop_before = |samples: &mut VecDeque<Sample>, time: i64| samples.retain(|sample| sample.3 >= time);
        drop_before(&mut self.classes[class], since);
        if let Some((other, at)) = other {
            let first = at.min(since);
            let near_idle = |class: usize| CLASSES[class % CLASSES.len()] < NEARLY_IDLE;
            let keep = !near_idle(class) && !near_idle(other);
            self.doubted = keep.then_some(first);
            let others = self.classes.iter_mut().enumerate().filter(|(class, _)| !(keep && near_idle(*class)));
            others.for_each(|(_, samples)| drop_before(samples, first));
            if !keep && let Some(seed) = self.seed.take() {
                // The machine is no longer the one that was calibrated.
                self.refuted = Some(seed);
            }
        }
        self.learn(now);
    }

    /// Drops samples near idle from before a change when the samples since then tell another idle
    /// power.
    fn settle_doubt(&mut self) {
        let Some(since) = self.doubted else { return };
        let mut newer = merged(&self.classes);
        newer.iter_mut().for_each(|samples| samples.retain(|sample| sample.3 >= since));
        let Ok(fit) = intercept(&newer) else { return };
        self.doubted = None;
        let near_idle = |sample: &&Sample| sample.0 < NEARLY_IDLE && sample.3 < since;
        let before: Vec<Sample> = self.classes.iter().flatten().filter(near_idle).copied().collect();
        if observed(before.iter()).is_some_and(|seen| fit.high < 0.9 * seen.watts || fit.low > 1.1 * seen.watts) {
            self.classes.iter_mut().for_each(|samples| samples.retain(|sample| sample.3 >= since));
        }
    }

    /// Idle power: sleep power, or the base of a package that never slept. `None` until it is
    /// known.
    #[must_use]
    pub fn estimate(&self) -> Option<Estimate> {
        self.known().idle
    }

    /// What an awake package draws more than a sleeping one. `None` where that is not known, or not
    /// more than the uncertainty of both.
    #[must_use]
    pub fn step(&self) -> Option<Estimate> {
        self.known().step
    }

    /// What is known.
    #[must_use]
    pub fn state(&self) -> IdleState {
        self.known().state
    }

    /// The lowest median power of all classes, in microwatts: an upper limit of the idle power.
    #[must_use]
    pub fn upper_limit(&self) -> Option<u64> {
        let medians = self.classes.iter().filter(|class| !class.is_empty()).map(|class| center(class.iter()).1);
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
        let mut this = Self { classes: vec![VecDeque::new(); 2 * CLASSES.len()], ..Self::default() };
        for sample in samples.iter().take(2 * CLASSES.len() * MAX_SAMPLES) {
            let Sample(load, watts, awake, _) = *sample;
            if (0.0..=1.0).contains(&load) && (0.0..1e6).contains(&watts) && (0.0..=1.0).contains(&awake) {
                let class = &mut this.classes[class_of(*sample)];
                if class.len() == MAX_SAMPLES {
                    class.pop_front();
                }
                class.push_back(*sample);
                this.undated |= sample.3 == 0;
            }
        }
        this.learnt = learn(&this.classes);
        this
    }
}

fn class_of(sample: Sample) -> usize {
    let class = CLASSES.iter().position(|end| sample.0 < *end).unwrap_or(CLASSES.len() - 1);
    if sample.2 < AWAKE { class } else { class + CLASSES.len() }
}

/// Time of the first of the newest samples of a class, when these contradict all earlier ones.
fn contradiction(samples: &VecDeque<Sample>) -> Option<i64> {
    let earlier = samples.len().checked_sub(CONTRADICTING).filter(|earlier| *earlier >= MIN_SAMPLES)?;
    let before = center(samples.iter().take(earlier)).1;
    let mut apart: Vec<f64> = samples.iter().take(earlier).map(|sample| (sample.1 - before).abs()).collect();
    let least = (MIN_CHANGE * before).max(4.0 * 1.4826 * median(&mut apart)?);
    let newest = || samples.iter().skip(earlier).map(move |sample| sample.1 - before);
    let beyond = newest().all(|apart| apart > least) || newest().all(|apart| apart < -least);
    beyond.then(|| samples[earlier].3)
}

/// Power without load, in watts.
#[derive(Clone, Copy, Debug)]
struct Fit {
    watts: f64,
    low: f64,
    high: f64,
}

impl Fit {
    fn estimate(self) -> Estimate {
        let low = self.low.clamp(0.0, self.watts.max(0.0));
        Estimate { uw: microwatts(self.watts), low_uw: microwatts(low), high_uw: microwatts(self.high.max(self.watts)) }
    }

    fn width(self) -> f64 {
        self.high - self.low
    }

    fn agrees(self, asleep: Self) -> bool {
        (self.watts - asleep.watts).abs() <= 0.1 * asleep.watts
    }

    /// The fit, unless it is nothing or its interval is too wide.
    fn useful(self) -> Option<Self> {
        let narrow =
            self.high - self.watts <= MAX_ABOVE * self.watts && self.watts - self.low <= MAX_BELOW * self.watts;
        (self.watts > 0.0 && narrow).then_some(self)
    }
}

/// Everything that the samples tell.
fn learn(classes: &[VecDeque<Sample>]) -> Learnt {
    if classes.is_empty() {
        return Learnt::default();
    }
    let (sleepy, awake) = classes.split_at(CLASSES.len());
    let merged = merged(classes);
    let seen_asleep = |limit: f64| asleep(sleepy, awake, limit);
    let base = awake_base(awake);
    let never_slept = sleepy.iter().map(VecDeque::len).sum::<usize>() < MIN_SAMPLES;
    let line = if never_slept { base } else { intercept(&merged) };
    let asleep = seen_asleep(ASLEEP).or_else(|| if line.is_err() { seen_asleep(MOSTLY_ASLEEP) } else { None });
    let slept = asleep.is_some();
    let asleep = asleep.or_else(|| if line.is_err() { partly_asleep(sleepy, awake) } else { None });
    let idle = match (line, asleep) {
        // Where both agree, the narrower one: the line leaves out the little load of a sleeping
        // package, and scatters more.
        (Ok(line), Some(asleep)) if line.agrees(asleep) && line.width() < asleep.width() => line,
        (_, Some(asleep)) => asleep,
        (Ok(line), None) => line,
        (Err(state), None) => return Learnt { state, ..Learnt::default() },
    };
    let mut seen = merged.iter().filter(|class| class.len() >= MIN_SAMPLES).map(|class| center(class.iter()).1);
    if seen.any(|watts| watts < idle.low) {
        return Learnt { state: IdleState::Refused, ..Learnt::default() };
    }
    let state = if never_slept { IdleState::Base } else { IdleState::Known };
    let step = match base {
        Ok(base) if asleep.is_some() && base.low > idle.high && base.watts > 1.05 * idle.watts => {
            let (low, high) = (base.low - idle.high, base.high - idle.low);
            Some(Fit { watts: base.watts - idle.watts, low, high }.estimate())
        }
        _ => None,
    };
    Learnt { state, idle: Some(idle.estimate()), step, slept }
}

/// The samples by load class, whether awake or not.
fn merged(classes: &[VecDeque<Sample>]) -> Vec<VecDeque<Sample>> {
    let (sleepy, awake) = classes.split_at(classes.len() / 2);
    sleepy.iter().zip(awake).map(|(sleepy, awake)| sleepy.iter().chain(awake).copied().collect()).collect()
}

/// The power of a package that was seen asleep: in samples in which it was awake for at most
/// `limit` of the time.
fn asleep(sleepy: &[VecDeque<Sample>], awake: &[VecDeque<Sample>], limit: f64) -> Option<Fit> {
    let samples: Vec<Sample> = sleepy.iter().flatten().filter(|sample| sample.2 <= limit).copied().collect();
    let fit = observed(samples.iter())?;
    // For the little time in which it was awake it drew at most what the least loaded awake package
    // does. That time is longest when no two CPUs ran at once: `s` of independent CPUs are then
    // `-ln(1 - s)`.
    let awake_share = samples.iter().map(|sample| sample.2).sum::<f64>() / size(samples.len());
    let longest = -(-awake_share).ln_1p();
    let least_awake = awake.iter().filter(|class| !class.is_empty()).map(|class| center(class.iter()).1);
    let woken = match least_awake.min_by(f64::total_cmp) {
        Some(watts) => longest / (1.0 - longest) * (watts - fit.watts),
        None if limit <= ASLEEP => 0.02 * fit.watts,
        None => return None,
    };
    Fit { low: fit.low - woken.max(0.0), ..fit }.useful()
}

/// The power of a package without load that was never seen asleep, from the quarter of its samples
/// in which it was awake for the least time.
fn partly_asleep(sleepy: &[VecDeque<Sample>], awake: &[VecDeque<Sample>]) -> Option<Fit> {
    // With more load, what it adds cannot be separated from what being awake adds.
    let unloaded = sleepy.get(..1)?;
    let mut shares: Vec<f64> = unloaded.iter().flatten().map(|sample| sample.2).collect();
    shares.sort_unstable_by(f64::total_cmp);
    let limit = *shares.get(shares.len() / 4)?;
    if limit > PARTLY_ASLEEP {
        return None;
    }
    let Fit { low, high, .. } = asleep(unloaded, awake, limit)?;
    let watts = f64::midpoint(low, high);
    (high - watts <= MAX_WOKEN * watts).then_some(Fit { watts, low, high })
}

/// Sleep power and step together.
fn awake_base(awake: &[VecDeque<Sample>]) -> Result<Fit, IdleState> {
    if let Some(lowest) = awake.iter().find(|class| class.len() >= MIN_SAMPLES)
        && center(lowest.iter()).0 < UNLOADED
        && let Some(fit) = observed(lowest.iter())
    {
        return Fit { low: fit.low - 0.02 * fit.watts, ..fit }.useful().ok_or(IdleState::Learning);
    }
    intercept(awake)
}

/// The median power of samples that need no extrapolation.
fn observed<'a>(samples: impl Iterator<Item = &'a Sample> + Clone) -> Option<Fit> {
    let count = samples.clone().count();
    if count < MIN_SAMPLES {
        return None;
    }
    let watts = center(samples.clone()).1;
    let mut apart: Vec<f64> = samples.map(|sample| (sample.1 - watts).abs()).collect();
    // The standard error of a median, its scatter by the median deviation.
    let error = 1.2533 * 1.4826 * median(&mut apart)? / size(count).sqrt();
    let half = ERRORS * error + 0.003 * watts;
    Some(Fit { watts, low: watts - half, high: watts + half })
}

/// A line of power against load.
#[derive(Clone, Copy, Debug)]
struct Line {
    base: f64,
    slope: f64,
}

impl Line {
    fn at(self, load: f64) -> f64 {
        self.base + self.slope * load
    }
}

/// Median load and median power of a class.
type Point = (f64, f64);

/// The intercept of power against load.
fn intercept(classes: &[VecDeque<Sample>]) -> Result<Fit, IdleState> {
    let full: Vec<&VecDeque<Sample>> = classes.iter().filter(|class| class.len() >= MIN_SAMPLES).collect();
    let points: Vec<Point> = full.iter().map(|class| center(class.iter())).collect();
    let Some(&(lowest, _)) = points.first() else { return Err(IdleState::Learning) };
    let nearly_idle = lowest < NEARLY_IDLE;
    let enough = if nearly_idle { MIN_SPAN_NEARLY_IDLE } else { MIN_SPAN };
    let varied = (MIN_CLASSES..=points.len()).find(|count| points[count - 1].0 - lowest >= enough);
    let varied = varied.ok_or(IdleState::Learning)?;
    if lowest >= HALF_LOAD {
        return Err(IdleState::Refused);
    }
    let low = if nearly_idle { MIN_CLASSES } else { varied };
    let (near, all) = (line(&points[..low]), line(&points));
    let (Some(near), Some(all)) = (near, all) else { return Err(IdleState::Learning) };
    let Some((near_error, all_error)) = jackknife(&full, low) else { return Err(IdleState::Learning) };

    let bend = Bend::of(&points);
    // Where the curve is straight as far as it can be told, all of it tells more than its lowest
    // part.
    let straight = !nearly_idle && (near.base - all.base).abs() <= 2.0 * near_error && bend.concave < 0.1;
    let (best, error) = if straight { (all, all_error) } else { (near, near_error) };
    let least = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let flat = all.slope * (points[points.len() - 1].0 - lowest) < 0.03 * least && lowest > NEARLY_IDLE;
    // Power does not grow when load falls: then the classes are not of one machine.
    let above = best.base > 1.02 * least + ERRORS * error;
    if flat || above || jump(&points) > 0.12 * best.base {
        return Err(IdleState::Refused);
    }

    let rise = best.slope * lowest;
    let (bottom, top) = if nearly_idle {
        let half = ERRORS * error + (0.05 * rise).max(0.003 * best.base);
        // A curve that is not linear falls most steeply near idle, so the steepest line goes
        // through the lowest two classes.
        let steep = line(&points[..2]).map_or(best.base, |line| line.base);
        ((best.base - half).min(all.base).min(steep), best.base + half)
    } else {
        let half = ERRORS * error + (bend.relative.max(0.05) * rise).max(0.01 * best.base);
        let concave = 3.0 * (bend.concave - 0.05).max(0.0) * rise;
        let bent = bend.base(points[0]).unwrap_or(best.base);
        let bottom = (best.base - half - concave).min(all.base).min(best.base - 1.5 * (best.base - bent));
        (bottom, (best.base + half).max(all.base).max(bent))
    };
    let watts = best.base.min(least);
    Fit { watts, low: bottom, high: top.min(1.01 * least + 2.0 * error) }.useful().ok_or(IdleState::Learning)
}

/// How the slope changes from the lower half of the classes to the upper.
#[derive(Clone, Copy, Debug)]
struct Bend {
    /// Difference of the slopes relative to the larger, and how much smaller the upper one is.
    relative: f64,
    concave: f64,
    /// The lower slope at its middle, and its growth per load.
    slope: Option<(f64, f64, f64)>,
}

impl Bend {
    fn of(points: &[Point]) -> Self {
        let (lower, upper) = points.split_at(points.len() / 2);
        let middle = |points: &[Point]| median(&mut points.iter().map(|point| point.0).collect::<Vec<_>>());
        match (line(lower), line(upper), middle(lower), middle(upper)) {
            (Some(low), Some(high), Some(from), Some(to)) => {
                let largest = low.slope.max(high.slope).max(1e-9);
                Self {
                    relative: (low.slope - high.slope).abs() / largest,
                    concave: if low.slope > 0.0 { (low.slope - high.slope) / low.slope } else { 0.0 },
                    slope: Some((low.slope, from, (high.slope - low.slope) / (to - from).max(1e-6))),
                }
            }
            // Three classes do not tell it.
            _ => Self { relative: 0.2, concave: 0.0, slope: None },
        }
    }

    /// The intercept when the bend goes on below the lowest class.
    fn base(self, (load, watts): Point) -> Option<f64> {
        let (slope, at, growth) = self.slope?;
        Some(watts - (slope + growth * (load / 2.0 - at)) * load)
    }
}

/// How far the line through the classes below a load lies above that through the classes above it,
/// at most. They meet unless something that is not load adds to the power of some classes.
fn jump(points: &[Point]) -> f64 {
    let between = 2..points.len().saturating_sub(1);
    let jumps = between.filter_map(|split| {
        let below = line(&points[split.saturating_sub(4)..split])?;
        let above = line(&points[split..points.len().min(split + 4)])?;
        let load = f64::midpoint(points[split - 1].0, points[split].0);
        Some(below.at(load) - above.at(load))
    });
    jumps.fold(0.0, f64::max)
}

/// Standard errors of the intercept of the lowest `low` classes and of all: each block of time is
/// left out in turn.
fn jackknife(classes: &[&VecDeque<Sample>], low: usize) -> Option<(f64, f64)> {
    let mut order: Vec<(i64, usize, usize)> = Vec::new();
    for (class, samples) in classes.iter().enumerate() {
        order.extend(samples.iter().enumerate().map(|(index, sample)| (sample.3, class, index)));
    }
    order.sort_unstable();
    let mut blocks: Vec<Vec<usize>> = classes.iter().map(|samples| vec![0; samples.len()]).collect();
    for (rank, (_, class, index)) in order.iter().enumerate() {
        blocks[*class][*index] = rank * BLOCKS / order.len();
    }
    let (mut near, mut all) = (Vec::with_capacity(BLOCKS), Vec::with_capacity(BLOCKS));
    for block in 0..BLOCKS {
        let points = |count: usize| -> Vec<Point> {
            let kept = classes[..count].iter().zip(&blocks).map(|(samples, blocks)| {
                let kept = samples.iter().zip(blocks).filter(|(_, of)| **of != block).map(|(sample, _)| sample);
                kept.collect::<Vec<_>>()
            });
            kept.filter(|kept| !kept.is_empty()).map(|kept| center(kept.into_iter())).collect()
        };
        near.push(line(&points(low))?.base);
        all.push(line(&points(classes.len()))?.base);
    }
    let error = |bases: &[f64]| {
        let mean = bases.iter().sum::<f64>() / size(BLOCKS);
        let squares: f64 = bases.iter().map(|base| (base - mean) * (base - mean)).sum();
        (squares * size(BLOCKS - 1) / size(BLOCKS)).sqrt()
    };
    Some((error(&near), error(&all)))
}

/// Theil-Sen: the median of all slopes, and the median of the intercepts with that slope.
fn line(points: &[Point]) -> Option<Line> {
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
    let base = median(&mut points.iter().map(|(load, watts)| watts - slope * load).collect::<Vec<_>>())?;
    Some(Line { base, slope })
}

fn median(values: &mut [f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let (middle, even) = (values.len() / 2, values.len().is_multiple_of(2));
    let (below, upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    let upper = *upper;
    if !even {
        return Some(upper);
    }
    below.iter().copied().max_by(f64::total_cmp).map(|lower| f64::midpoint(lower, upper))
}

/// Median load and median power; zero without samples.
fn center<'a>(samples: impl Iterator<Item = &'a Sample> + Clone) -> Point {
    let mut loads: Vec<f64> = samples.clone().map(|sample| sample.0).collect();
    let mut watts: Vec<f64> = samples.map(|sample| sample.1).collect();
    (median(&mut loads).unwrap_or(0.0), median(&mut watts).unwrap_or(0.0))
}

#[expect(clippy::cast_precision_loss, reason = "statistics; no joule is counted here")]
fn float(count: u64) -> f64 {
    count as f64
}

fn size(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 1e6 W, and float to int saturates")]
fn microwatts(watts: f64) -> u64 {
    (watts * 1e6).round() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A fixed sequence of pseudo-random numbers (xorshift64*).
    struct Random(u64);

    impl Random {
        /// A number between -1 and 1.
        fn signed(&mut self) -> f64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            float(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) / float(1 << 30) - 1.0
        }
    }

    /// One second of load on 8 CPUs, each busy independently of the others.
    fn second(unix_seconds: i64, load: f64, watts: f64) -> Observation {
        let awake = 1.0 - (1.0 - load).powi(8);
        Observation {
            unix_seconds,
            ns: SECOND,
            weight: microwatts(load * 8e6),
            capacity: 8000,
            awake_ns: microwatts(awake * 1000.0),
            uj: microwatts(watts),
        }
    }

    /// Adds seconds of load, with the watts of `power` and noise, after those that it has.
    fn feed(baseline: &mut Baseline, loads: &[f64], power: impl Fn(f64) -> f64, noise: f64) {
        let mut random = Random(7);
        let start = baseline.samples().iter().map(|sample| sample.3).max().unwrap_or(1_700_000_000);
        for (load, at) in loads.iter().zip(1i64..) {
            baseline.observe(second(start + at, *load, power(*load) + random.signed() * noise));
        }
    }

    /// As `feed`, and learns once at the end.
    fn fill(baseline: &mut Baseline, loads: &[f64], power: impl Fn(usize, f64) -> f64, seed: u64) {
        let mut random = Random(seed);
        let start = baseline.samples().iter().map(|sample| sample.3).max().unwrap_or(1_700_000_000);
        let mut at = start;
        for (index, load) in loads.iter().enumerate() {
            at += 1;
            baseline.add(Sample(*load, power(index, *load) + random.signed(), 1.0 - (1.0 - load).powi(8), at));
        }
        baseline.learn(at);
    }

    /// A load that wanders slowly between two ends.
    fn wander(seed: u64, from: f64, to: f64, count: usize) -> Vec<f64> {
        let (mut random, mut load) = (Random(seed * 2 + 1), f64::midpoint(from, to));
        let mut next = || {
            // Three uniform numbers are nearly normal.
            load = (load + 0.02 * (random.signed() + random.signed() + random.signed())).clamp(from, to);
            load
        };
        (0..count).map(|_| next()).collect()
    }

    /// Feeds twelve machines. Every estimate has the truth in its interval, in all but one, and is
    /// within 10 %. Returns the number of estimates.
    fn judge(truth: f64, loads: impl Fn(u64) -> Vec<f64>, power: impl Fn(usize, f64) -> f64) -> usize {
        let (mut known, mut outside) = (0, 0);
        for seed in 1..=12 {
            let mut baseline = Baseline::default();
            fill(&mut baseline, &loads(seed), &power, seed + 100);
            let Some(estimate) = baseline.estimate() else { continue };
            known += 1;
            let watts = |uw: u64| float(uw) / 1e6;
            outside += usize::from(!(watts(estimate.low_uw)..=watts(estimate.high_uw)).contains(&truth));
            assert!((watts(estimate.uw) - truth).abs() <= 0.1 * truth, "{seed}: {estimate:?}");
        }
        assert!(outside <= 1, "{outside} of {known}");
        known
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
        assert_eq!(baseline.state(), IdleState::Learning);
        feed(&mut baseline, &spread(0.05, 0.06, 500), line, 2.0);
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
        let tick = |ns, uj| Observation { ns, uj, capacity: 1000, unix_seconds: 7, ..Observation::default() };
        for _ in 0..9 {
            baseline.observe(tick(100_000_000, 1_000_000));
        }
        assert_eq!(baseline.samples(), [Sample(0.0, 10.0, 0.0, 7)]);
        baseline.observe(tick(500_000_000, 9_000_000));
        baseline.interrupt();
        baseline.observe(tick(900_000_000, 9_000_000));
        assert_eq!(baseline.samples(), [Sample(0.0, 10.0, 0.0, 7); 2]);
    }

    #[test]
    fn restored_samples_give_the_same_estimate() {
        let mut baseline = Baseline::default();
        feed(&mut baseline, &spread(0.0, 0.9, 400), line, 2.0);
        let again = Baseline::restore(&baseline.samples());
        assert_eq!(again.estimate(), learn(&baseline.classes).idle);
        let invalid = [(2.0, 1.0), (f64::NAN, 1.0), (0.5, f64::INFINITY)].map(Sample::from);
        assert_eq!(Baseline::restore(&invalid).samples(), []);
        // The state file of an earlier version.
        assert_eq!(serde_json::from_str::<Sample>("[0.5,30.0]").unwrap(), Sample::from((0.5, 30.0)));
    }

    #[test]
    fn a_package_seen_asleep_is_known_without_load() {
        let mut baseline = Baseline::default();
        feed(&mut baseline, &spread(0.0, 0.004, 20), line, 0.5);
        let estimate = baseline.estimate().unwrap();
        assert!(estimate.uw.abs_diff(30_000_000) < 600_000, "{estimate:?}");
        assert!(estimate.low_uw <= 30_000_000 && 30_000_000 <= estimate.high_uw, "{estimate:?}");
        assert_eq!((baseline.state(), baseline.step()), (IdleState::Known, None));
    }

    /// The empty package of a machine of two: a busy CPU of the other package wakes it.
    #[test]
    fn the_step_of_a_package_without_load_of_its_own_is_learnt() {
        let mut baseline = Baseline::default();
        for at in 0..60 {
            let (awake, watts) = if at < 40 { (0, 12.6) } else { (SECOND, 29.0) };
            let tick = second(1_700_000_000 + at, 0.002, watts);
            baseline.observe(Observation { awake_ns: awake, ..tick });
        }
        assert!(baseline.estimate().unwrap().uw.abs_diff(12_600_000) < 10_000);
        let step = baseline.step().unwrap();
        assert!(step.uw.abs_diff(16_400_000) < 10_000, "{step:?}");
        assert!(step.low_uw <= 16_400_000 && 16_400_000 <= step.high_uw, "{step:?}");
    }

    /// Two packages of 32 CPUs: on one a container runs at times, on the other only a daemon, 2 ms
    /// a second on each CPU. Load, share of time awake, watts.
    #[test]
    fn a_daemon_on_many_cpus_hides_neither_sleep_power_nor_the_step() {
        let other = [(0.002, 0.062, 12.6), (0.002, 1.0, 29.0)];
        let busy = [(0.0, 0.062, 14.9), (0.031, 1.0, 39.4), (0.125, 1.0, 46.4), (0.25, 1.0, 54.1), (0.5, 1.0, 58.3)];
        for runs in [&other[..], &busy[..]] {
            let (mut baseline, mut random, mut at) = (Baseline::default(), Random(7), 1_700_000_000);
            for (load, awake, watts) in runs.iter().flat_map(|run| std::iter::repeat_n(*run, 40)) {
                at += 1;
                baseline.add(Sample(load, watts + 0.1 * random.signed(), awake, at));
            }
            baseline.learn(at);
            let (estimate, truth) = (baseline.estimate().unwrap(), microwatts(runs[0].2));
            assert!(estimate.uw.abs_diff(truth) < truth / 100, "{estimate:?}");
            assert!(estimate.low_uw <= truth && truth <= estimate.high_uw, "{estimate:?}");
            assert!(estimate.low_uw < truth - truth / 20, "what the daemon wakes is not known: {estimate:?}");
            assert_eq!(baseline.state(), IdleState::Known);
            assert!(baseline.step().is_some());
        }
    }

    /// An empty package of 64 CPUs next to another: a daemon runs for 2 ms a second on each of the
    /// 128, so that they are awake for 0.2 % of the time (all at once), 23 % (independently), or
    /// 26 % (one after another). At other times the other package is busy.
    fn on_many_cpus(baseline: &mut Baseline, sleep: f64, step: f64, awake: f64) {
        let mut random = Random(7);
        for at in 0..80 {
            let busy = at % 40 >= 20;
            let (seen, watts) = if busy { (1.0, sleep + step) } else { (0.226, sleep + awake * step) };
            baseline.add(Sample(0.002, watts + 0.1 * random.signed(), seen, 1_700_000_001 + at));
        }
        baseline.learn(1_700_000_081);
    }

    #[test]
    fn sleep_power_is_inside_its_interval_however_128_cpus_wake() {
        for awake in [0.002, 0.226, 0.256] {
            let mut baseline = Baseline::default();
            on_many_cpus(&mut baseline, 90.0, 25.0, awake);
            let estimate = baseline.estimate().unwrap();
            assert_eq!(baseline.state(), IdleState::Known);
            assert!(estimate.low_uw <= 90_000_000 && 90_000_000 <= estimate.high_uw, "{awake}: {estimate:?}");
            assert!(estimate.uw.abs_diff(90_000_000) < 9_000_000, "{awake}: {estimate:?}");
            let step = baseline.step().unwrap();
            assert!(step.low_uw <= 25_000_000 && 25_000_000 <= step.high_uw, "{awake}: {step:?}");
        }
        let mut wide = Baseline::default();
        on_many_cpus(&mut wide, 12.6, 16.4, 0.226);
        assert_eq!((wide.estimate(), wide.state()), (None, IdleState::Learning), "between 12 and 17 W");
    }

    #[test]
    fn a_package_seen_asleep_in_part_keeps_its_calibration() {
        let mut baseline = Baseline::default();
        on_many_cpus(&mut baseline, 30.0, 12.0, 0.1);
        assert_eq!(baseline.state(), IdleState::Known);
        baseline.seed(Some(seed()));
        assert_eq!((baseline.state(), baseline.estimate()), (IdleState::Calibrated, Some(seed().idle)));
        assert_eq!(baseline.step(), seed().step);
    }

    #[test]
    fn samples_of_an_earlier_version_become_old() {
        let mut baseline = Baseline::restore(&[(0.5, 80.0); 5].map(Sample::from));
        baseline.set_max_age(3600);
        baseline.observe(second(1_700_000_000, 0.5, 80.0));
        assert_eq!(baseline.samples().len(), 6);
        baseline.observe(second(1_700_005_000, 0.5, 80.0));
        assert_eq!(baseline.samples().len(), 1);
    }

    #[test]
    fn a_package_that_never_sleeps_has_a_base_and_no_step() {
        let mut baseline = Baseline::default();
        feed(&mut baseline, &spread(0.3, 0.95, 300), line, 1.0);
        assert_eq!((baseline.state(), baseline.step()), (IdleState::Base, None));
        assert!(baseline.estimate().is_some());
    }

    #[test]
    fn loads_that_cannot_tell_the_base_give_a_true_interval_or_none() {
        let straight = |_: usize, load: f64| 45.0 + 160.0 * load;
        for from in [0.1, 0.2, 0.3, 0.4] {
            judge(45.0, |seed| wander(seed, from, 0.999, 1200), straight);
        }
        // A farm above half load, and one whose second threads add little.
        assert_eq!(judge(45.0, |seed| wander(seed, 0.5, 0.999, 1200), straight), 0);
        assert_eq!(judge(45.0, |seed| wander(seed, 0.88, 0.995, 1200), straight), 0);
        // A power limit that is reached at half load.
        let limited = |_: usize, load: f64| (45.0 + 320.0 * load).min(205.0);
        assert_eq!(judge(45.0, |seed| wander(seed, 0.5, 0.999, 1200), limited), 0);
        judge(45.0, |seed| wander(seed, 0.3, 0.999, 1200), limited);
        // At night the memory and the network of the machine work, and its CPUs hardly.
        let nights = |seed| -> Vec<f64> {
            let (day, night) = (wander(seed, 0.3, 0.9, 3600), wander(seed + 50, 0.02, 0.2, 3600));
            (0..3600).map(|at| if at / 600 % 2 == 1 { night[at] } else { day[at] }).collect()
        };
        judge(45.0, nights, |at, load| straight(at, load) + if at / 600 % 2 == 1 { 15.0 } else { 0.0 });
    }

    /// Without load from now on 40 W in place of 90 W.
    #[test]
    fn a_change_of_the_machine_is_followed_within_a_quarter_of_an_hour() {
        for (seed, from) in (1..=6).flat_map(|seed| [(seed, 0.0), (seed, 0.05), (seed, 0.3)]) {
            let mut baseline = Baseline::default();
            fill(&mut baseline, &wander(seed, from, 0.7, 2400), |_, load| 90.0 + 100.0 * load, 7);
            fill(&mut baseline, &wander(seed + 20, from, 0.7, 900), |_, load| 40.0 + 100.0 * load, 7);
            if let Some(estimate) = baseline.estimate() {
                assert!(estimate.uw.abs_diff(40_000_000) < 4_000_000, "{seed}: {estimate:?}");
            }
        }
    }

    /// Another codec draws more for the same load. The idle power of a machine that was seen idle
    /// stays known.
    #[test]
    fn other_work_does_not_make_idle_power_unknown() {
        let mut baseline = Baseline::default();
        fill(&mut baseline, &wander(1, 0.0, 0.7, 1200), |_, load| line(load), 7);
        assert!(baseline.estimate().is_some());
        fill(&mut baseline, &wander(2, 0.2, 0.7, 1200), |_, load| 30.0 + 160.0 * load, 7);
        let estimate = baseline.estimate().unwrap();
        assert!(estimate.uw.abs_diff(30_000_000) < 3_000_000, "{estimate:?}");
    }

    /// 30 W asleep, 12 W more awake, until a day after the first sample.
    fn seed() -> Seed {
        let about = |uw: u64| Estimate { uw, low_uw: uw - uw / 50, high_uw: uw + uw / 50 };
        let step = Some(about(12_000_000));
        Seed { idle: about(30_000_000), step, since: 1_700_000_000, until: 1_700_086_400 }
    }

    /// Power with the seed's terms.
    fn awake_line(load: f64) -> f64 {
        42.0 + 100.0 * load
    }

    #[test]
    fn a_calibration_is_known_from_the_first_tick() {
        let mut baseline = Baseline::default();
        baseline.seed(Some(seed()));
        assert_eq!((baseline.state(), baseline.estimate()), (IdleState::Calibrated, Some(seed().idle)));
        assert_eq!(baseline.step(), seed().step);
        feed(&mut baseline, &spread(0.7, 0.95, 200), awake_line, 1.0);
        assert_eq!(baseline.state(), IdleState::Calibrated, "a farm above half load tells nothing");
        assert_eq!(baseline.estimate(), Some(seed().idle));
    }

    /// The sum of sleep power and step is less than both of them.
    #[test]
    fn a_base_that_agrees_with_a_calibration_keeps_it() {
        let mut baseline = Baseline::default();
        feed(&mut baseline, &spread(0.3, 0.95, 300), awake_line, 1.0);
        assert_eq!(baseline.state(), IdleState::Base);
        baseline.seed(Some(seed()));
        assert_eq!((baseline.state(), baseline.step()), (IdleState::Calibrated, seed().step));
        baseline.seed(Some(Seed { step: None, ..seed() }));
        assert_eq!((baseline.state(), baseline.step()), (IdleState::Base, None));
    }

    #[test]
    fn samples_take_the_place_of_a_calibration() {
        let mut baseline = Baseline::default();
        baseline.seed(Some(seed()));
        feed(&mut baseline, &spread(0.0, 0.004, 20), |_| 30.5, 0.1);
        assert_eq!(baseline.state(), IdleState::Known);
        assert!(baseline.estimate().unwrap().uw.abs_diff(30_500_000) < 100_000, "{:?}", baseline.estimate());
        assert_eq!(baseline.step(), seed().step, "they do not tell the step");
    }

    #[test]
    fn a_contradicted_calibration_is_not_used_again() {
        let mut baseline = Baseline::default();
        baseline.seed(Some(seed()));
        // Less than the calibrated sleep power, at half load.
        feed(&mut baseline, &spread(0.50, 0.53, 20), |_| 20.0, 0.1);
        assert_eq!((baseline.state(), baseline.estimate()), (IdleState::Learning, None));
        baseline.seed(Some(seed()));
        assert_eq!(baseline.estimate(), None);
        let newer = Seed { idle: Estimate::exact(10_000_000), ..seed() };
        baseline.seed(Some(newer));
        assert_eq!(baseline.estimate(), Some(newer.idle), "another calibration counts");
        let mut asleep = Baseline::default();
        asleep.seed(Some(seed()));
        feed(&mut asleep, &spread(0.0, 0.004, 20), |_| 60.0, 0.1);
        assert_eq!((asleep.state(), asleep.step()), (IdleState::Known, None));
        assert!(asleep.estimate().unwrap().uw.abs_diff(60_000_000) < 200_000);
    }

    /// The file of learnt idle power is from before the change for which it was calibrated again.
    #[test]
    fn samples_from_before_a_calibration_do_not_contradict_it() {
        let mut baseline = Baseline::default();
        feed(&mut baseline, &spread(0.0, 0.004, 20), |_| 60.0, 0.1);
        assert_eq!(baseline.state(), IdleState::Known);
        baseline.seed(Some(Seed { since: 1_700_000_100, ..seed() }));
        assert_eq!((baseline.state(), baseline.estimate()), (IdleState::Calibrated, Some(seed().idle)));
        assert!(baseline.samples().is_empty(), "{:?}", baseline.samples());
    }

    /// The line ends between sleep power and base. With the step on top it was above the base.
    #[test]
    fn a_line_without_sleep_neither_contradicts_a_calibration_nor_takes_its_step() {
        let mut baseline = Baseline::default();
        for at in 0..300u16 {
            let load = 0.02 + 0.38 * f64::from(at * 37 % 300) / 300.0;
            let awake = 0.45 + load;
            baseline.add(Sample(load, 30.0 + 12.0 * awake + 100.0 * load, awake, 1_700_000_001 + i64::from(at)));
        }
        baseline.learn(1_700_000_301);
        assert_eq!((baseline.state(), baseline.step()), (IdleState::Known, None));
        assert!(baseline.estimate().is_some_and(|idle| idle.low_uw > 31_000_000), "{:?}", baseline.estimate());
        baseline.seed(Some(seed()));
        assert_eq!((baseline.state(), baseline.estimate()), (IdleState::Calibrated, Some(seed().idle)));
        assert_eq!(baseline.step(), seed().step);
    }

    #[test]
    fn an_old_calibration_no_longer_counts() {
        let mut baseline = Baseline::default();
        baseline.seed(Some(Seed { until: 1_700_000_005, ..seed() }));
        feed(&mut baseline, &spread(0.50, 0.53, 20), awake_line, 0.1);
        assert_eq!((baseline.state(), baseline.estimate()), (IdleState::Learning, None));
    }

    #[test]
    fn old_samples_no_longer_count() {
        let mut baseline = Baseline::default();
        baseline.set_max_age(3600);
        feed(&mut baseline, &spread(0.0, 0.9, 400), line, 1.0);
        baseline.observe(second(1_700_000_000 + 5000, 0.5, 80.0));
        assert_eq!(baseline.samples().len(), 1);
    }

    proptest! {
        #[test]
        fn arbitrary_samples_do_not_panic(samples in proptest::collection::vec((any::<f64>(), any::<f64>()).prop_map(Sample::from), 0..400)) {
            let baseline = Baseline::restore(&samples);
            if let Some(estimate) = baseline.estimate() {
                prop_assert!(estimate.low_uw <= estimate.uw && estimate.uw <= estimate.high_uw);
            }
        }
    }
}
