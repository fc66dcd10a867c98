//! What the phases tell: sleep power, awake step, watts of each mix, SMT weight, and how well a
//! model of the other loads predicts each load.
//!
//! The power of a package is `sleep + step · awake + watts · cores`. A package without load next to
//! a busy one shows the step alone. On a machine of one package it is the intercept of power
//! against busy cores, as far as that curve is straight.

use std::collections::BTreeMap;

use super::{loads::Mix, meter::Mean, plan::Phase, quiet};
use crate::{
    attribution::calibration_file::{Figure, LoadError, MixError, MixFigure, MixWeight, ZoneFigures},
    ledger::SHARED_MILLI,
};

/// Half an interval in standard errors: Student's t of a phase's pieces, 95 %.
const ERRORS: f64 = 2.4;
/// Error of an absolute power, as in the estimation of idle power.
const POWER_ERROR: f64 = 0.003;
/// Error of an intercept where two loads do not show the bend, relative to the extrapolated power.
const UNKNOWN_BEND: f64 = 0.1;
/// A signal below this many of its errors is none.
const SIGNAL: f64 = 3.0;

/// A counter, and the package to which it belongs.
#[derive(Clone, Debug)]
pub(super) struct ZonePlace {
    pub(super) name: String,
    pub(super) package: usize,
    /// False for the memory of the package.
    pub(super) cores: bool,
}

/// A phase with the mean power of each counter.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) phase: Phase,
    pub(super) means: Vec<Option<Mean>>,
    /// Share of the CPUs that other programs used meanwhile.
    pub(super) others: f64,
    /// Number of CPUs.
    pub(super) cpus: usize,
}

/// The result.
#[derive(Debug, Default)]
pub(super) struct Fit {
    pub(super) zones: Vec<ZoneFigures>,
    pub(super) smt_weight: Option<Figure>,
    pub(super) smt_mixes: Vec<MixWeight>,
    pub(super) loads: Vec<LoadError>,
    pub(super) mix_error: Option<MixError>,
    pub(super) notes: Vec<String>,
}

/// A value with the variance of its noise, and the bound of its other errors.
#[derive(Clone, Copy, Debug, Default)]
struct Uncertain {
    value: f64,
    variance: f64,
    bias: f64,
}

impl Uncertain {
    fn of(mean: Mean) -> Self {
        Self { value: mean.watts, variance: mean.error * mean.error, bias: 0.0 }
    }

    fn plus(self, other: Self) -> Self {
        Self { value: self.value + other.value, variance: self.variance + other.variance, bias: self.bias + other.bias }
    }

    fn minus(self, other: Self) -> Self {
        self.plus(Self { value: -other.value, ..other })
    }

    fn times(self, factor: f64) -> Self {
        Self { value: self.value * factor, variance: self.variance * factor * factor, bias: self.bias * factor.abs() }
    }

    fn mean(all: &[Self]) -> Option<Self> {
        let sum = all.iter().copied().reduce(Self::plus)?;
        Some(sum.times(1.0 / float(all.len())))
    }

    fn half(self) -> f64 {
        ERRORS * self.variance.sqrt() + self.bias
    }

    /// The figure of a power, which is not negative.
    fn figure(self) -> Figure {
        let value = self.value.max(0.0);
        Figure { value, low: (value - self.half()).max(0.0), high: value + self.half() }
    }
}

/// What is known of a counter.
#[derive(Clone, Debug)]
struct ZoneModel {
    sleep: Uncertain,
    step: Option<Uncertain>,
    /// Watts of one more core. Empty without a step.
    mixes: BTreeMap<Mix, Uncertain>,
}

impl ZoneModel {
    /// Sleep power and step.
    fn base(&self) -> Option<Uncertain> {
        Some(self.sleep.plus(self.step?))
    }

    /// Watts of a core with this mix; of an unknown mix the mean of the others.
    fn watts(&self, mix: Mix) -> Option<f64> {
        let mean = || {
            let all: Vec<Uncertain> = self.mixes.values().copied().collect();
            Uncertain::mean(&all)
        };
        self.mixes.get(&mix).copied().or_else(mean).map(|watts| watts.value)
    }
}

/// The loads from which a model is made, and the counters.
struct Data<'a> {
    zones: &'a [ZonePlace],
    /// Number of cores of each package at which mixes are compared.
    middle: &'a [usize],
    measured: Vec<&'a Measured>,
}

impl Data<'_> {
    fn without(&self, left_out: &Measured) -> Self {
        let measured = self.measured.iter().copied().filter(|other| !std::ptr::eq(*other, left_out)).collect();
        Self { zones: self.zones, middle: self.middle, measured }
    }

    /// Power of a counter in the phases that `select`s: busy cores of its package, and watts.
    fn points(&self, at: usize, select: impl Fn(&Phase, usize) -> bool) -> Vec<(usize, Uncertain)> {
        let package = self.zones[at].package;
        let point = |measured: &&Measured| {
            let cores = measured.phase.cores[package];
            let mean = measured.means[at].filter(|_| select(&measured.phase, cores))?;
            Some((cores, Uncertain::of(mean)))
        };
        self.measured.iter().filter_map(point).collect()
    }

    /// `None` without a measurement of its sleep power.
    fn model(&self, at: usize) -> Option<ZoneModel> {
        let idle = watts(self.points(at, |phase, _| phase.mix.is_none()));
        let sleep = Uncertain::mean(&idle)?;
        let step = self.step(at, sleep);
        let mixes = match step {
            Some(step) => self.mixes(at, sleep.plus(step)),
            None => BTreeMap::new(),
        };
        Some(ZoneModel { sleep, step, mixes })
    }

    fn step(&self, at: usize, sleep: Uncertain) -> Option<Uncertain> {
        let woken = watts(self.points(at, |phase, cores| phase.mix.is_some() && cores == 0));
        if let Some(woken) = Uncertain::mean(&woken) {
            return Some(woken.minus(sleep));
        }
        let mut by_cores: BTreeMap<usize, Vec<Uncertain>> = BTreeMap::new();
        for (cores, watts) in
            self.points(at, |phase, cores| phase.mix == Some(Mix::Integer) && !phase.both && cores > 0)
        {
            by_cores.entry(cores).or_default().push(watts);
        }
        let points = by_cores.iter().filter_map(|(cores, watts)| Some((float(*cores), Uncertain::mean(watts)?)));
        let points: Vec<(f64, Uncertain)> = points.collect();
        let (first, second) = (points.first()?, points.get(1)?);
        let base = intercept(*first, *second);
        let bend = match points.get(2) {
            Some(third) => (intercept(*second, *third).value - base.value).abs() / 2.0,
            None => UNKNOWN_BEND * (first.1.value - base.value).abs(),
        };
        Some(Uncertain { bias: base.bias + bend, ..base }.minus(sleep))
    }

    /// CPUs that other programs used without a load, at most.
    fn others_while_idle(&self) -> f64 {
        let idle = self.measured.iter().filter(|measured| measured.phase.mix.is_none());
        idle.map(|measured| measured.others * float(measured.cpus)).fold(0.0, f64::max)
    }

    /// Watts of one more core with each mix, at the middle load where that was measured.
    fn mixes(&self, at: usize, base: Uncertain) -> BTreeMap<Mix, Uncertain> {
        let middle = self.middle[self.zones[at].package];
        let of_mix = |mix: Mix| {
            let all = self.points(at, |phase, cores| phase.mix == Some(mix) && !phase.both && cores > 0);
            let compared: Vec<_> = all.iter().copied().filter(|(cores, _)| *cores == middle).collect();
            let used = if compared.is_empty() { all } else { compared };
            let cores: usize = used.iter().map(|(cores, _)| *cores).sum();
            let mean = Uncertain::mean(&watts(used.clone()))?;
            let mean_cores = float(cores) / float(used.len());
            Some((mix, mean.minus(base).times(1.0 / mean_cores)))
        };
        Mix::ALL.into_iter().filter_map(of_mix).collect()
    }

    /// A second next to a busy sibling with the same mix, in seconds alone: the mean over the
    /// packages.
    fn smt_weights(&self, models: &[Option<ZoneModel>]) -> BTreeMap<Mix, Uncertain> {
        let of_mix = |mix: Mix| {
            let of_zone = |at: usize| {
                let base = models[at].as_ref()?.base()?;
                let is_mix = |phase: &Phase| phase.mix == Some(mix);
                let both = self.points(at, |phase, cores| is_mix(phase) && phase.both && cores > 0);
                let (cores, both) = *both.first()?;
                let one = self.points(at, |phase, count| is_mix(phase) && !phase.both && count == cores);
                weight(base, Uncertain::mean(&watts(one))?, both)
            };
            let of_cores = (0..self.zones.len()).filter(|at| self.zones[*at].cores);
            let weights: Vec<Uncertain> = of_cores.filter_map(of_zone).collect();
            Some((mix, Uncertain::mean(&weights)?))
        };
        Mix::ALL.into_iter().filter_map(of_mix).collect()
    }

    /// Power of all counters above sleep in a load: measured, and as this model predicts it.
    fn predict(&self, load: &Measured) -> Option<(f64, f64)> {
        let models: Vec<Option<ZoneModel>> = (0..self.zones.len()).map(|at| self.model(at)).collect();
        let uncalibrated = float(usize::try_from(SHARED_MILLI).ok()?) / 1000.0;
        let weights: Vec<Uncertain> = self.smt_weights(&models).into_values().collect();
        let weight = Uncertain::mean(&weights).map_or(uncalibrated, |weight| weight.value);
        let threads = if load.phase.both { 2.0 * weight } else { 1.0 };
        let mix = load.phase.mix?;
        let (mut measured, mut predicted) = (0.0, 0.0);
        for (at, model) in models.iter().enumerate() {
            let (model, mean) = (model.as_ref()?, load.means[at]?);
            let cores = float(load.phase.cores[self.zones[at].package]);
            measured += mean.watts - model.sleep.value;
            predicted += model.step?.value + if cores > 0.0 { model.watts(mix)? * cores * threads } else { 0.0 };
        }
        Some((measured, predicted))
    }
}

fn watts(points: Vec<(usize, Uncertain)>) -> Vec<Uncertain> {
    points.into_iter().map(|(_, watts)| watts).collect()
}

/// Power without load on the line through two points: cores and watts.
fn intercept((x1, first): (f64, Uncertain), (x2, second): (f64, Uncertain)) -> Uncertain {
    first.times(x2 / (x2 - x1)).minus(second.times(x1 / (x2 - x1)))
}

/// The weight from the power of the same cores with one busy thread each and with both. `None`
/// where the power of one is not above the noise.
fn weight(base: Uncertain, one: Uncertain, both: Uncertain) -> Option<Uncertain> {
    let (more, less) = (both.minus(base), one.minus(base));
    if less.value <= SIGNAL * less.half() / ERRORS || less.value <= 0.0 {
        return None;
    }
    let value = more.value / (2.0 * less.value);
    // How much the weight follows each of the three.
    let by = [1.0 / (2.0 * less.value), value / less.value, (value - 0.5) / less.value];
    let parts = [both, one, base].into_iter().zip(by).map(|(power, by)| power.times(by));
    let error = parts.fold(Uncertain::default(), Uncertain::plus);
    Some(Uncertain { value, ..error })
}

/// What the phases tell. `middle` is the number of cores of each package at which the mixes ran.
pub(super) fn fit(zones: &[ZonePlace], middle: &[usize], measured: &[Measured]) -> Fit {
    let data = Data { zones, middle, measured: measured.iter().collect() };
    let models: Vec<Option<ZoneModel>> = (0..zones.len()).map(|at| data.model(at)).collect();
    let mut fit = Fit::default();
    for (at, (zone, model)) in zones.iter().zip(&models).enumerate() {
        let Some(model) = model else {
            fit.notes.push(format!("{}: sleep power not measured, too few readings were accepted", zone.name));
            continue;
        };
        fit.zones.push(data.figures(at, model));
        if model.step.is_none() {
            fit.notes.push(format!("{}: step and watts of a core cannot be separated with one core", zone.name));
        }
    }
    let weights = data.smt_weights(&models);
    fit.smt_weight = common_weight(&weights);
    fit.smt_mixes = weights
        .iter()
        .map(|(mix, weight)| MixWeight { mix: mix.as_str().to_owned(), weight: weight.figure() })
        .collect();
    for load in measured.iter().filter(|measured| measured.phase.mix.is_some()) {
        if let Some((measured, predicted)) = data.without(load).predict(load).filter(|(measured, _)| *measured > 0.0) {
            fit.loads.push(LoadError { load: load.phase.name.clone(), measured, predicted });
        }
    }
    fit.mix_error = mix_error(&models);
    for measured in measured.iter().filter(|measured| measured.others > quiet::limit(measured.cpus)) {
        fit.notes.push(format!(
            "other programs used {:.1} % of the CPUs in the phase \"{}\"",
            measured.others * 100.0,
            measured.phase.name
        ));
    }
    fit
}

/// The mean of the mixes, with an interval that contains those of all: a program may be any of
/// them.
fn common_weight(weights: &BTreeMap<Mix, Uncertain>) -> Option<Figure> {
    let all: Vec<Uncertain> = weights.values().copied().collect();
    let mut common = Uncertain::mean(&all)?.figure();
    for figure in all.into_iter().map(Uncertain::figure) {
        (common.low, common.high) = (common.low.min(figure.low), common.high.max(figure.high));
    }
    Some(common)
}

impl Data<'_> {
    fn figures(&self, at: usize, model: &ZoneModel) -> ZoneFigures {
        let ZoneModel { sleep, step, mixes } = model;
        let one = watts(
            self.points(at, |phase, cores| phase.mix == Some(Mix::Integer) && cores == 1 && phase.cpus.len() == 1),
        );
        let first_core = Uncertain::mean(&one).map(|one| one.minus(*sleep).figure());
        let absolute = Uncertain { bias: sleep.bias + POWER_ERROR * sleep.value, ..*sleep }.figure();
        // What other programs drew while it should have slept: for each of their CPUs at most as
        // much as the first core.
        let disturbed = self.others_while_idle() * first_core.map_or(0.0, |first| first.high);
        let mix = |(mix, watts): (&Mix, &Uncertain)| MixFigure {
            mix: mix.as_str().to_owned(),
            watts_per_core: watts.figure(),
        };
        ZoneFigures {
            zone: self.zones[at].name.clone(),
            sleep: Figure { low: (absolute.low - disturbed).max(0.0), ..absolute },
            awake_step: step.map(Uncertain::figure),
            first_core,
            mixes: mixes.iter().map(mix).collect(),
        }
    }
}

/// The error of a division by CPU time between the mixes with the least and the most watts per
/// core.
fn mix_error(models: &[Option<ZoneModel>]) -> Option<MixError> {
    // A mix without the reading of a counter has too small a sum.
    let of_mix = |mix: Mix| {
        let watts = models.iter().flatten().map(|model| model.mixes.get(&mix).map(|watts| watts.value));
        Some((mix, watts.sum::<Option<f64>>()?))
    };
    let sums: BTreeMap<Mix, f64> = Mix::ALL.into_iter().filter_map(of_mix).collect();
    let (cheaper, low) = sums.iter().min_by(|one, other| one.1.total_cmp(other.1))?;
    let (dearer, high) = sums.iter().max_by(|one, other| one.1.total_cmp(other.1))?;
    if *low <= 0.0 || cheaper == dearer {
        return None;
    }
    let each = f64::midpoint(*low, *high);
    Some(MixError {
        cheaper: cheaper.as_str().to_owned(),
        dearer: dearer.as_str().to_owned(),
        cheaper_ratio: each / low - 1.0,
        dearer_ratio: each / high - 1.0,
    })
}

fn float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

#[cfg(test)]
mod tests {
    use super::{
        super::plan::{self, Package, tests::machine},
        *,
    };

    /// Watts of a package and of its memory with a number of busy cores.
    struct Truth {
        sleep: f64,
        step: f64,
        weight: f64,
        /// How much less each further core draws.
        bend: f64,
    }

    const TRUTH: Truth = Truth { sleep: 12.6, step: 16.4, weight: 0.62, bend: 0.0 };

    impl Truth {
        fn per_core(mix: Mix, memory: bool) -> f64 {
            match (mix, memory) {
                (Mix::Integer, false) => 4.0,
                (Mix::Vector, false) => 6.0,
                (Mix::Memory, false) => 5.0,
                (Mix::Integer | Mix::Vector, true) => 0.1,
                (Mix::Memory, true) => 1.5,
            }
        }

        fn watts(&self, phase: &Phase, zone: &ZonePlace) -> f64 {
            let (sleep, step) = if zone.cores { (self.sleep, self.step) } else { (4.0, 2.0) };
            let Some(mix) = phase.mix else { return sleep };
            let threads = if phase.both { 2.0 * self.weight } else { 1.0 };
            let cores = float(phase.cores[zone.package]);
            let load = cores * threads * Self::per_core(mix, !zone.cores) * (1.0 - self.bend * cores);
            sleep + step + load
        }
    }

    fn zones(packages: &[Package], memory: bool) -> Vec<ZonePlace> {
        let place = |package: usize, cores: bool| ZonePlace {
            name: format!("{} of package {package}", if cores { "package" } else { "dram" }),
            package,
            cores,
        };
        let kinds = if memory { &[true, false][..] } else { &[true] };
        (0..packages.len()).flat_map(|package| kinds.iter().map(move |cores| place(package, *cores))).collect()
    }

    /// The phases of a machine with true watts and some noise, which differs by phase and zone.
    fn measure(truth: &Truth, packages: &[Package], zones: &[ZonePlace]) -> Vec<Measured> {
        let error = 0.05;
        let phases = plan::phases(packages).into_iter().enumerate();
        let mean = |number: usize, at: usize, watts: f64| {
            let noise = [-1.0, 0.5, 1.0, -0.5, 0.0][(number * 3 + at) % 5] * error;
            Some(Mean { watts: watts + noise, error })
        };
        let measured = phases.map(|(number, phase)| {
            let means = zones.iter().enumerate().map(|(at, zone)| mean(number, at, truth.watts(&phase, zone)));
            Measured { means: means.collect(), phase, others: 0.0, cpus: 16 }
        });
        measured.collect()
    }

    fn fitted(truth: &Truth, packages: &[Package], memory: bool) -> Fit {
        let zones = zones(packages, memory);
        fit(&zones, &plan::middle(packages), &measure(truth, packages, &zones))
    }

    #[track_caller]
    fn assert_contains(figure: Figure, truth: f64, relative: f64) {
        assert!(figure.low <= truth && truth <= figure.high, "{truth}: {figure:?}");
        assert!((figure.value - truth).abs() <= relative * truth, "{truth}: {figure:?}");
    }

    #[test]
    fn a_machine_of_two_packages_is_learnt_with_its_memory() {
        let fit = fitted(&TRUTH, &machine(2, 8, true), true);
        assert_eq!(fit.zones.len(), 4);
        assert_eq!(fit.notes, Vec::<String>::new());
        for (zone, memory) in [(0, false), (1, true), (2, false), (3, true)] {
            let figures = &fit.zones[zone];
            let (sleep, step) = if memory { (4.0, 2.0) } else { (12.6, 16.4) };
            assert_contains(figures.sleep, sleep, 0.02);
            assert_contains(figures.awake_step.unwrap(), step, 0.06);
            let core = Truth::per_core(Mix::Integer, memory);
            assert_contains(figures.first_core.unwrap(), step + core, 0.06);
            for (mix, figure) in Mix::ALL.into_iter().zip(&figures.mixes) {
                assert_eq!(figure.mix, mix.as_str());
                let truth = Truth::per_core(mix, memory);
                assert_contains(figure.watts_per_core, truth, if truth < 1.0 { 0.5 } else { 0.02 });
            }
        }
        assert_contains(fit.smt_weight.unwrap(), 0.62, 0.02);
    }

    /// Two threads that wait for memory add nothing to one, and two that compute add a quarter.
    #[test]
    fn the_smt_weight_of_each_mix_is_inside_that_of_the_machine() {
        let packages = machine(2, 8, true);
        let zones = zones(&packages, false);
        let mut measured = measure(&TRUTH, &packages, &zones);
        let load = 4.0 * Truth::per_core(Mix::Memory, false);
        let both = measured.iter_mut().find(|one| one.phase.both && one.phase.mix == Some(Mix::Memory)).unwrap();
        both.means.iter_mut().flatten().for_each(|mean| mean.watts -= load * 2.0 * (0.62 - 0.5));
        let fit = fit(&zones, &plan::middle(&packages), &measured);
        let of_mix: Vec<&str> = fit.smt_mixes.iter().map(|one| &*one.mix).collect();
        assert_eq!(of_mix, ["integer", "vector", "memory"]);
        assert_contains(fit.smt_mixes[2].weight, 0.5, 0.02);
        let weight = fit.smt_weight.unwrap();
        assert_contains(weight, 0.58, 0.02);
        assert!(weight.low < 0.5 && weight.high > 0.62, "{weight:?}");
    }

    #[test]
    fn one_package_has_its_step_from_the_curve() {
        let fit = fitted(&TRUTH, &machine(1, 8, true), false);
        assert_contains(fit.zones[0].awake_step.unwrap(), 16.4, 0.05);
        assert_contains(fit.smt_weight.unwrap(), 0.62, 0.03);
        // Further cores run slower: the interval grows by the bend.
        let bent = fitted(&Truth { bend: 0.03, ..TRUTH }, &machine(1, 8, true), false);
        let step = bent.zones[0].awake_step.unwrap();
        assert_contains(step, 16.4, 0.1);
        assert!(step.half() > fit.zones[0].awake_step.unwrap().half() + 0.2, "{step:?}");
    }

    #[test]
    fn one_core_cannot_separate_step_and_load() {
        let fit = fitted(&TRUTH, &machine(1, 1, false), false);
        assert_contains(fit.zones[0].sleep, 12.6, 0.01);
        assert_contains(fit.zones[0].first_core.unwrap(), 20.4, 0.01);
        assert!(fit.zones[0].awake_step.is_none() && fit.zones[0].mixes.is_empty() && fit.loads.is_empty());
        assert!(fit.notes[0].contains("cannot be separated"), "{:?}", fit.notes);
        assert!(fit.smt_weight.is_none() && fit.mix_error.is_none());
    }

    #[test]
    fn each_load_is_predicted_from_the_others() {
        let fit = fitted(&TRUTH, &machine(2, 8, true), false);
        assert_eq!(fit.loads.len(), 10);
        for load in &fit.loads {
            let limit = match &load.load {
                // Other mixes tell nothing of its own watts.
                load if load.contains("vector") || load.contains("memory") => 0.25,
                load if load.contains("both threads") => 0.06,
                _ => 0.02,
            };
            assert!(load.ratio().abs() < limit, "{load:?} {}", load.ratio());
        }
        let vector = fit.loads.iter().find(|load| load.load.contains("vector")).unwrap();
        assert!(vector.ratio() < -0.1, "{vector:?}");
        let error = fit.mix_error.unwrap();
        assert_eq!((&*error.cheaper, &*error.dearer), ("integer", "vector"));
        assert!(
            (error.cheaper_ratio - 0.25).abs() < 0.02 && (error.dearer_ratio + 1.0 / 6.0).abs() < 0.02,
            "{error:?}"
        );
    }

    #[test]
    fn a_mix_that_a_counter_missed_is_not_compared() {
        let packages = machine(2, 8, true);
        let zones = zones(&packages, false);
        let mut measured = measure(&TRUTH, &packages, &zones);
        let vector = measured.iter_mut().find(|measured| measured.phase.mix == Some(Mix::Vector)).unwrap();
        vector.means[1] = None;
        let error = fit(&zones, &plan::middle(&packages), &measured).mix_error.unwrap();
        assert_eq!((&*error.cheaper, &*error.dearer), ("integer", "memory"));
    }

    /// 0.3 of 16 CPUs are 2 %, and keep the machine awake for 30 % of the time.
    #[test]
    fn a_daemon_in_the_idle_phase_widens_sleep_power() {
        let packages = machine(2, 8, true);
        let zones = zones(&packages, false);
        let mut measured = measure(&TRUTH, &packages, &zones);
        let awake = |truth: &Truth| 0.3 * (truth.step + Truth::per_core(Mix::Integer, false));
        measured[0].others = 0.3 / 16.0;
        measured[0].means.iter_mut().flatten().for_each(|mean| mean.watts += 0.9 * awake(&TRUTH));
        let fit = fit(&zones, &plan::middle(&packages), &measured);
        let sleep = fit.zones[0].sleep;
        assert!(sleep.value > 17.0 && sleep.low < TRUTH.sleep + 1.5, "{sleep:?}");
        assert!(fit.notes[0].contains("1.9 % of the CPUs in the phase \"idle\""), "{:?}", fit.notes);
    }

    #[test]
    fn a_counter_without_readings_is_named() {
        let packages = machine(2, 4, false);
        let zones = zones(&packages, false);
        let mut measured = measure(&TRUTH, &packages, &zones);
        measured.iter_mut().for_each(|measured| measured.means[1] = None);
        measured[2].others = 0.3;
        let fit = fit(&zones, &plan::middle(&packages), &measured);
        assert_eq!(fit.zones.len(), 1);
        assert!(fit.loads.is_empty(), "a part of the power of the machine is missing");
        assert_eq!(
            fit.notes,
            [
                "package of package 1: sleep power not measured, too few readings were accepted",
                "other programs used 30.0 % of the CPUs in the phase \"1 of 8 cores, package 1, integer\"",
            ]
        );
    }
}
