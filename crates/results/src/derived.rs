//! Metrics derived from a scenario and its energy. They are calculated once and used by every page,
//! the advisor, alerts and the backfill, so a run has the same energy everywhere.
//! `docs/formulas.md` contains each formula with its unit.

use std::collections::BTreeMap;

use statistics::{Line, largest, mean, quantile, standard_deviation};
use units::{Microjoules, provenance::Unmeasured};

use crate::{
    convert::float,
    energy::{EnergyLookup, EnergyMethod, Scope, samples},
    run::{Scenario, UNKNOWN},
};

/// The power, energy and CPU use of a scenario above those of the host without load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NetUse {
    /// Mean power of the baseline.
    pub baseline_watts: f64,
    /// Mean power above the baseline.
    pub watts: f64,
    /// Energy above the baseline: the baseline's power is multiplied by the length of this
    /// scenario.
    pub joules: f64,
    /// Mean busy CPUs above the baseline.
    pub cores: Option<f64>,
}

/// The derived metrics of one scenario. A metric whose inputs are unknown is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DerivedMetrics {
    /// Length in seconds.
    pub seconds: Option<f64>,
    /// Encoded frames.
    pub frames: Option<f64>,
    /// Encoded pixels of all outputs and streams.
    pub pixels: Option<f64>,
    /// Seconds of media of all streams.
    pub media_seconds: Option<f64>,
    /// Megabits of output of all streams.
    pub megabits: Option<f64>,
    /// Energy of the scenario in [`DerivedMetrics::scope`].
    pub energy: Option<Microjoules>,
    /// The scope of the energy.
    pub scope: Option<Scope>,
    /// The sources of the energy, `perf+nvml`.
    pub source: String,
    /// Mean power.
    pub watts: Option<f64>,
    /// Maximum of the host's power samples.
    pub watts_max: Option<f64>,
    /// 95th percentile of the host's power samples.
    pub watts_p95: Option<f64>,
    /// Standard deviation of the host's power samples.
    pub watts_deviation: Option<f64>,
    /// CPU time in seconds.
    pub cpu_seconds: Option<f64>,
    /// Mean number of busy CPUs.
    pub cores: Option<f64>,
    /// Use above the host without load.
    pub net: Option<NetUse>,
    /// Pixels per joule, or megabits per joule if pixels are unknown.
    pub efficiency: Option<f64>,
    /// Rank by efficiency among comparable scenarios of the run; 1 is best.
    pub rank: Option<u32>,
    /// Rank by efficiency among comparable scenarios with the same outputs; 1 is best.
    pub ladder_rank: Option<u32>,
    /// The outputs, as of [`Scenario::ladder`].
    pub ladder: String,
    /// Dropped frames per encoded frame.
    pub drop_ratio: Option<f64>,
    /// Joules per second of media above those of the best scenario with the same outputs.
    pub joules_over_best: Option<f64>,
    /// Mean power predicted by a linear fit over the number of streams, all else equal.
    pub predicted_watts: Option<f64>,
}

/// The comparability class of energy: only values of one scope, and either all measured or all not
/// measured in the same ways, are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EnergyClass {
    container: bool,
    /// For each of [`Unmeasured::ALL`], whether a part of the energy is of that kind.
    unmeasured: [bool; Unmeasured::ALL.len()],
}

impl DerivedMetrics {
    /// The energy in joules.
    #[must_use]
    pub fn joules(&self) -> Option<f64> {
        self.energy.map(Microjoules::joules)
    }

    /// The comparability class of the energy.
    #[must_use]
    pub fn energy_class(&self) -> EnergyClass {
        let kinds = Unmeasured::among([&*self.source]);
        EnergyClass {
            container: self.scope == Some(Scope::Container),
            unmeasured: Unmeasured::ALL.map(|kind| kinds.contains(&kind)),
        }
    }

    /// Joules per unit of `amount`; `None` if the amount is unknown or not positive.
    #[must_use]
    pub fn joules_per(&self, amount: Option<f64>) -> Option<f64> {
        amount.filter(|amount| *amount > 0.0).and_then(|amount| Some(self.joules()? / amount))
    }
}

/// The derived metrics of a run's scenarios, in their order.
pub(crate) fn derive_run(
    scenarios: &[Scenario],
    lookups: &[EnergyLookup],
    scope_of: impl Fn(&Scenario) -> Scope,
) -> Vec<DerivedMetrics> {
    let mut all: Vec<DerivedMetrics> = scenarios
        .iter()
        .zip(lookups)
        .map(|(scenario, lookup)| derive_scenario(scenario, lookup, scope_of(scenario)))
        .collect();
    set_net_use(scenarios, lookups, &mut all);
    set_ranks(scenarios, &mut all);
    set_predictions(scenarios, &mut all);
    all
}

/// The metrics that do not depend on other scenarios.
fn derive_scenario(scenario: &Scenario, lookup: &EnergyLookup, preferred: Scope) -> DerivedMetrics {
    let seconds = scenario.seconds();
    let streams = scenario.stream_count().map(f64::from);
    let frames = scenario.total_frames.map(float);
    // The host without load encodes no media.
    let streamed = || if scenario.is_baseline() { None } else { Some(seconds? * streams.unwrap_or(1.0)) };
    let media_seconds = scenario.media_seconds.or_else(streamed).filter(|seconds| *seconds > 0.0);
    let outputs = scenario.ladder_outputs();
    let pixels = scenario.pixels.map(float).or_else(|| {
        let rate =
            outputs.iter().map(|output| f64::from(output.width) * f64::from(output.height) * output.fps).sum::<f64>();
        if rate > 0.0 { Some(rate * media_seconds?) } else { None }
    });
    let pixels = pixels.filter(|pixels| *pixels > 0.0);
    let megabits = match scenario.bytes {
        Some(bytes) => Some(float(bytes) * 8.0 / 1e6),
        None => scenario.bits_per_second().and_then(|rate| Some(rate * media_seconds? / 1e6)),
    };
    let mut derived = DerivedMetrics {
        seconds,
        frames,
        pixels,
        media_seconds,
        megabits,
        ladder: scenario.ladder(),
        drop_ratio: match (scenario.dropped_frames, scenario.total_frames) {
            (Some(dropped), Some(total)) if total > 0 => Some(float(dropped) / float(total)),
            _ => None,
        },
        ..DerivedMetrics::default()
    };
    // CPU time counters are preferred to samples of CPU use, which may cover only a part of the
    // window.
    let counted = scenario.cpu_seconds.or(lookup.energy.as_ref().and_then(|energy| energy.cpu_seconds));
    derived.cpu_seconds = counted.or_else(|| samples::cpu_seconds(scenario));
    if let Some(energy) = &lookup.energy {
        let scope = [preferred, preferred.other()].into_iter().find(|scope| energy.total(*scope).is_some());
        derived.scope = scope;
        derived.energy = scope.and_then(|scope| energy.total(scope));
        derived.source = scope.map(|scope| energy.sources(scope)).unwrap_or_default();
        derived.watts = match energy.method {
            // The mean of samples, because the trapezoid rule counts the first and last sample
            // half.
            EnergyMethod::Samples => mean(&energy.watts),
            _ => energy.seconds.and_then(|seconds| Some(derived.energy?.joules() / seconds)),
        };
        derived.watts_max = largest(&energy.watts);
        derived.watts_p95 = quantile(&energy.watts, 0.95).filter(|_| !energy.watts.is_empty());
        derived.watts_deviation = standard_deviation(&energy.watts);
    }
    let energy_seconds = lookup.energy.as_ref().and_then(|energy| energy.seconds).or(seconds);
    derived.cores = match (counted, if scenario.cpu_seconds.is_some() { seconds } else { energy_seconds }) {
        (Some(used), Some(seconds)) => Some(used / seconds),
        // The mean of samples, which may cover only a part of the window.
        _ => mean(&scenario.samples.cores),
    };
    derived.efficiency = match (derived.joules().filter(|joules| *joules > 0.0), derived.pixels, derived.megabits) {
        (Some(joules), Some(pixels), _) => Some(pixels / joules),
        (Some(joules), None, Some(megabits)) => Some(megabits / joules),
        _ => None,
    };
    derived
}

/// Sets the use above the baseline: the scenario's own, or the run's scenario without load.
fn set_net_use(scenarios: &[Scenario], lookups: &[EnergyLookup], all: &mut [DerivedMetrics]) {
    let baseline = scenarios.iter().zip(&*all).find(|(scenario, _)| scenario.is_baseline());
    // The power of a container is not the power of the host without load.
    let baseline = baseline.filter(|(_, derived)| derived.scope == Some(Scope::Host));
    let of_run = baseline.and_then(|(_, derived)| Some((derived.watts?, derived.cores)));
    for ((scenario, derived), lookup) in scenarios.iter().zip(&mut *all).zip(lookups) {
        let own = scenario.baseline.as_ref().map(|baseline| (baseline.watts, None));
        let Some((baseline_watts, baseline_cores)) = own.or(of_run) else { continue };
        // A container's energy contains no idle energy to subtract.
        if derived.scope == Some(Scope::Host)
            && let Some((watts, joules)) = derived.watts.zip(derived.joules())
            && let Some(seconds) = lookup.energy.as_ref().and_then(|energy| energy.seconds)
        {
            derived.net = Some(NetUse {
                baseline_watts,
                watts: watts - baseline_watts,
                // Over the time that the energy covers, which for samples may be a part of the
                // window.
                joules: joules - baseline_watts * seconds,
                cores: derived.cores.zip(baseline_cores).map(|(cores, baseline)| cores - baseline),
            });
        }
    }
}

/// Sets the ranks by efficiency, and the energy above the best scenario with the same outputs.
fn set_ranks(scenarios: &[Scenario], all: &mut [DerivedMetrics]) {
    let rank = |among: Vec<usize>, all: &[DerivedMetrics]| -> Vec<(usize, u32)> {
        let mut order: Vec<(usize, f64)> = among.into_iter().filter_map(|at| Some((at, all[at].efficiency?))).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        let position = |value: f64| order.iter().position(|other| other.1 == value).unwrap_or_default();
        // Equal efficiencies share a rank.
        order
            .iter()
            .map(|(at, value)| (*at, u32::try_from(position(*value)).unwrap_or(u32::MAX).saturating_add(1)))
            .collect()
    };
    // Pixels per joule are not compared with megabits per joule. The host without load has no
    // efficiency.
    let class = |at: usize, all: &[DerivedMetrics]| {
        let ranked = !scenarios[at].is_baseline() && all[at].efficiency.is_some();
        ranked.then(|| (all[at].pixels.is_some(), all[at].energy_class()))
    };
    let mut classes: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for at in 0..all.len() {
        if let Some(class) = class(at, all) {
            classes.entry(class).or_default().push(at);
        }
    }
    for among in classes.into_values() {
        for (at, rank) in rank(among.clone(), all) {
            all[at].rank = Some(rank);
        }
        let mut ladders: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for at in among.into_iter().filter(|at| all[*at].ladder != UNKNOWN) {
            ladders.entry(all[at].ladder.clone()).or_default().push(at);
        }
        for rungs in ladders.into_values() {
            for (at, rank) in rank(rungs.clone(), all) {
                all[at].ladder_rank = Some(rank);
            }
            let per_second = |at: usize| all[at].joules_per(all[at].media_seconds);
            let best = rungs.iter().filter_map(|at| per_second(*at)).min_by(f64::total_cmp);
            let over = |at: &usize| (*at, per_second(*at).zip(best).map(|(own, best)| own - best));
            let over: Vec<_> = rungs.iter().map(over).collect();
            for (at, over) in over {
                all[at].joules_over_best = over;
            }
        }
    }
}

/// Sets the predicted power: a linear fit over scenarios that differ only in the number of streams,
/// at least three of them.
fn set_predictions(scenarios: &[Scenario], all: &mut [DerivedMetrics]) {
    let mut groups: BTreeMap<_, Vec<(usize, f64, f64)>> = BTreeMap::new();
    for (at, scenario) in scenarios.iter().enumerate() {
        if let (Some(streams), Some(watts), false) = (scenario.stream_count(), all[at].watts, scenario.is_baseline()) {
            let key = (
                &*scenario.encoder,
                &*scenario.preset,
                &*scenario.bitrate,
                all[at].ladder.clone(),
                all[at].energy_class(),
            );
            groups.entry(key).or_default().push((at, f64::from(streams), watts));
        }
    }
    for group in groups.into_values() {
        let points: Vec<(f64, f64)> = group.iter().map(|(_, streams, watts)| (*streams, *watts)).collect();
        let mut distinct: Vec<f64> = points.iter().map(|point| point.0).collect();
        distinct.sort_by(f64::total_cmp);
        distinct.dedup();
        let line = if distinct.len() < 3 { None } else { Line::fit(&points) };
        for (at, streams, _) in group {
            all[at].predicted_watts = line.map(|line| line.at(streams));
        }
    }
}
