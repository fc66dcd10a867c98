//! Metrics derived from a scenario and its energy. They are calculated once and used by every page,
//! the advisor, alerts and the backfill, so a run has the same energy everywhere.
//! `docs/formulas.md` contains each formula with its unit.

use std::collections::BTreeMap;

use statistics::{Line, largest, mean, quantile, standard_deviation};
use units::{Microjoules, model_interval::ModelInterval, provenance::Unmeasured};

use crate::{
    convert::float,
    energy::{EnergyKind, EnergyLookup, EnergyMethod, Scope, samples},
    estimate::{Estimate, ranks},
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
    /// True if the energy covers the whole window.
    pub is_whole: bool,
    /// Whether the idle power was known, as of [`WindowEnergy::idle_known`].
    ///
    /// [`WindowEnergy::idle_known`]: crate::energy::WindowEnergy::idle_known
    pub idle_known: Option<bool>,
    /// Energy of the scenario in [`DerivedMetrics::scope`].
    pub energy: Option<Microjoules>,
    /// The scope of the energy.
    pub scope: Option<Scope>,
    /// The sources of the energy, `perf+nvml`.
    pub source: String,
    /// How far the modelled part of the energy may be from the truth; absent if it is measured, or
    /// if that is unknown.
    pub model_interval: Option<ModelInterval>,
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
    /// Pixels per joule, or megabits per joule if pixels are unknown. Too large unless
    /// [`DerivedMetrics::is_whole`].
    pub efficiency: Option<f64>,
    /// Rank of the configuration by mean efficiency among comparable configurations of the run; 1
    /// is best, and configurations whose intervals overlap tie.
    pub rank: Option<u32>,
    /// Such a rank among those with the same outputs.
    pub ladder_rank: Option<u32>,
    /// The outputs, as of [`Scenario::ladder`].
    pub ladder: String,
    /// Dropped frames per frame, encoded or dropped.
    pub drop_ratio: Option<f64>,
    /// Joules per second of media above those of the best configuration with the same outputs, both
    /// means over the repeats.
    pub joules_over_best: Option<f64>,
    /// Mean power predicted by a linear fit over the number of streams, all else equal.
    pub predicted_watts: Option<f64>,
}

/// The comparability class of energy: only values of one scope, and either all measured or all not
/// measured in the same ways, are compared. A container's energy that includes a part of the idle
/// energy is a class of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EnergyClass {
    container: bool,
    /// For each of [`Unmeasured::ALL`], whether a part of the energy is of that kind.
    unmeasured: [bool; Unmeasured::ALL.len()],
    with_idle: bool,
}

impl EnergyClass {
    /// True for the energy of a container that includes a part of the idle energy, because the idle
    /// power was unknown to the probe.
    #[must_use]
    pub fn includes_idle(self) -> bool {
        self.with_idle
    }
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
            with_idle: self.scope.is_some_and(|scope| EnergyKind::includes_idle(scope, self.idle_known)),
        }
    }

    /// What the energy must have in common with that of other repeats; `None` without energy.
    #[must_use]
    pub fn energy_kind(&self) -> Option<EnergyKind> {
        Some(EnergyKind::new(self.scope?, [&*self.source], self.idle_known))
    }

    /// Scope and sources of the energy, `host, nvml+perf`; `None` without energy.
    #[must_use]
    pub fn energy_source(&self) -> Option<String> {
        self.energy_kind().map(|kind| kind.to_string())
    }

    /// Bits per second of media of one stream: as written, or as requested where the size of the
    /// output is unknown.
    #[must_use]
    pub fn bits_per_second(&self) -> Option<f64> {
        Some(self.megabits? * 1e6 / self.media_seconds.filter(|seconds| *seconds > 0.0)?)
    }

    /// The energy in joules, if it covers the whole window: only then it may be related to what the
    /// window delivered.
    #[must_use]
    pub fn whole_joules(&self) -> Option<f64> {
        self.joules().filter(|_| self.is_whole)
    }

    /// Joules per unit of `amount`; `None` if the amount is unknown or not positive. The energy may
    /// be that of a part of the window: see [`DerivedMetrics::is_whole`].
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
            (Some(dropped), Some(encoded)) if dropped > 0 || encoded > 0 => {
                Some(float(dropped) / (float(dropped) + float(encoded)))
            }
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
        derived.is_whole = energy.is_whole();
        derived.idle_known = energy.idle_known;
        derived.energy = scope.and_then(|scope| energy.total(scope));
        derived.source = scope.map(|scope| energy.sources(scope)).unwrap_or_default();
        derived.model_interval = scope.and_then(|scope| energy.model_interval(scope));
        let samples = match energy.method {
            EnergyMethod::Counters | EnergyMethod::Samples => &scenario.samples.watts,
            EnergyMethod::Probe | EnergyMethod::Database => &energy.watts,
        };
        derived.watts = match energy.method {
            // The mean of samples, because the trapezoid rule counts the first and last sample
            // half.
            EnergyMethod::Samples => mean(samples),
            _ => energy.seconds.and_then(|seconds| Some(derived.energy?.joules() / seconds)),
        };
        derived.watts_max = largest(samples);
        derived.watts_p95 = quantile(samples, 0.95).filter(|_| !samples.is_empty());
        derived.watts_deviation = standard_deviation(samples);
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

/// A configuration that is ranked, with the indices of its repeats.
struct Ranked {
    repeats: Vec<usize>,
    efficiency: Estimate,
    joules_per_second: Option<f64>,
}

/// Sets the ranks by efficiency, and the energy above the best configuration with the same outputs.
fn set_ranks(scenarios: &[Scenario], all: &mut [DerivedMetrics]) {
    for among in ranked_configurations(scenarios, all).into_values() {
        let efficiencies: Vec<Estimate> = among.iter().map(|ranked| ranked.efficiency).collect();
        let mut ladders: BTreeMap<String, Vec<&Ranked>> = BTreeMap::new();
        for (ranked, rank) in among.iter().zip(ranks(&efficiencies)) {
            for at in &ranked.repeats {
                all[*at].rank = Some(rank);
            }
            let ladder = &all[ranked.repeats[0]].ladder;
            if ladder != UNKNOWN {
                ladders.entry(ladder.clone()).or_default().push(ranked);
            }
        }
        for rungs in ladders.into_values() {
            let efficiencies: Vec<Estimate> = rungs.iter().map(|ranked| ranked.efficiency).collect();
            let best = rungs.iter().filter_map(|ranked| ranked.joules_per_second).min_by(f64::total_cmp);
            for (ranked, rank) in rungs.iter().zip(ranks(&efficiencies)) {
                for at in &ranked.repeats {
                    all[*at].ladder_rank = Some(rank);
                    all[*at].joules_over_best = ranked.joules_per_second.zip(best).map(|(own, best)| own - best);
                }
            }
        }
    }
}

/// What configurations must have in common to be ranked: pixels per joule are not compared with
/// megabits per joule, nor energy of different classes.
type RankClass = (bool, EnergyClass);

/// The configurations of a run by class. The host without load has no efficiency, and the joules of
/// a part of the window belong to a part of the pixels. A configuration whose repeats have energy
/// of different scopes or sources has no mean, and is not ranked.
fn ranked_configurations(scenarios: &[Scenario], all: &[DerivedMetrics]) -> BTreeMap<RankClass, Vec<Ranked>> {
    let mut by_configuration: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, scenario) in scenarios.iter().enumerate().filter(|(_, scenario)| !scenario.is_baseline()) {
        // A scenario without a configuration is one of its own.
        by_configuration.entry(scenario.configuration.unwrap_or(usize::MAX - at)).or_default().push(at);
    }
    let mut classes: BTreeMap<RankClass, Vec<Ranked>> = BTreeMap::new();
    for mut repeats in by_configuration.into_values() {
        let kind = |at: usize| (all[at].pixels.is_some(), all[at].energy_kind());
        let (first, one) = (kind(repeats[0]), &all[repeats[0]]);
        if repeats.iter().any(|at| kind(*at) != first) {
            continue;
        }
        let class = (one.pixels.is_some(), one.energy_class());
        repeats.retain(|at| all[*at].is_whole && all[*at].efficiency.is_some());
        let values = |value: &dyn Fn(&DerivedMetrics) -> Option<f64>| -> Vec<f64> {
            repeats.iter().filter_map(|at| value(&all[*at])).filter(|value| value.is_finite()).collect()
        };
        let joules_per_second = mean(&values(&|one| one.joules_per(one.media_seconds)));
        if let Some(efficiency) = Estimate::of(&values(&|one| one.efficiency)) {
            classes.entry(class).or_default().push(Ranked { repeats, efficiency, joules_per_second });
        }
    }
    classes
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_ratio_is_a_share_of_all_frames() {
        let ratio = |dropped, total| {
            let scenario = Scenario { dropped_frames: dropped, total_frames: total, ..Scenario::default() };
            derive_scenario(&scenario, &EnergyLookup::default(), Scope::Host).drop_ratio
        };
        assert_eq!(ratio(Some(300), Some(100)), Some(0.75), "more dropped than encoded");
        assert_eq!((ratio(Some(0), Some(100)), ratio(Some(5), Some(0))), (Some(0.0), Some(1.0)));
        assert_eq!((ratio(Some(0), Some(0)), ratio(Some(5), None), ratio(None, Some(5))), (None, None, None));
    }
}
