//! The numbers of a scenario, worked out once. Ports 9502, 9503 and 9504, the advisor, the alerts and the history all read these, so a run has one energy
//! wherever one looks. `docs/formulas.md` has each formula with its unit.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use exporter::units::Microjoules;
use jiff::Timestamp;

use crate::{
    cost::{Cost, Prices},
    energy::{Answer, Scope, Way, samples},
    run::{Run, Scenario, UNKNOWN},
    statistics::{Line, largest, mean, quantile, standard_deviation},
};

/// What is taken off for the host without load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Mean power of the baseline.
    pub baseline_watts: f64,
    /// Mean power above it.
    pub watts: f64,
    /// Joules above it: the baseline's power over this scenario's length, not its energy over its own.
    pub joules: f64,
    /// CPUs busy, above the baseline's.
    pub cores: Option<f64>,
}

/// The numbers of one scenario.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Length.
    pub seconds: Option<f64>,
    /// Frames encoded.
    pub frames: Option<f64>,
    /// Pixels encoded, all outputs and streams.
    pub pixels: Option<f64>,
    /// Seconds of media, all streams.
    pub media_seconds: Option<f64>,
    /// Megabits put out, all streams.
    pub megabits: Option<f64>,
    /// The run's one energy, of [`Figures::scope`].
    pub energy: Option<Microjoules>,
    /// Whose energy it is.
    pub scope: Option<Scope>,
    /// How it was obtained, `perf+nvml`.
    pub source: String,
    /// Mean power.
    pub watts: Option<f64>,
    /// Largest sample of the host's power.
    pub watts_max: Option<f64>,
    /// 95th percentile of them.
    pub watts_p95: Option<f64>,
    /// Standard deviation of them.
    pub watts_deviation: Option<f64>,
    /// CPU seconds used.
    pub cpu_seconds: Option<f64>,
    /// Mean CPUs busy.
    pub cores: Option<f64>,
    /// Against the host without load.
    pub difference: Option<Difference>,
    /// Pixels per joule, or megabits per joule where no pixels are known.
    pub efficiency: Option<f64>,
    /// By efficiency, in the run; 1 is best.
    pub rank: Option<u32>,
    /// By efficiency, among scenarios of the same outputs.
    pub ladder_rank: Option<u32>,
    /// Those outputs.
    pub ladder: String,
    /// Lost over all.
    pub drop_ratio: Option<f64>,
    /// Joules for a second of media above what the best of the same outputs needs.
    pub joules_over_best: Option<f64>,
    /// Mean power by a line through the same configuration with other numbers of streams.
    pub predicted_watts: Option<f64>,
}

/// What may be compared: one scope, and measured with measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    container: bool,
    modelled: bool,
}

impl Figures {
    /// The energy in joules.
    #[must_use]
    pub fn joules(&self) -> Option<f64> {
        self.energy.map(Microjoules::joules)
    }

    /// With what its energy may be compared.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind {
            container: self.scope == Some(Scope::Container),
            modelled: self.source.split('+').any(|one| one == "model"),
        }
    }

    /// The energy over something; nothing over nothing.
    #[must_use]
    pub fn joules_per(&self, amount: Option<f64>) -> Option<f64> {
        amount.filter(|amount| *amount > 0.0).and_then(|amount| Some(self.joules()? / amount))
    }
}

/// One scenario with everything that is known of it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its run.
    pub run: Arc<Run>,
    /// Which of the run's scenarios.
    pub at: usize,
    /// What it used.
    pub answer: Answer,
    /// Its numbers.
    pub figures: Figures,
    /// What it cost.
    pub cost: Cost,
}

impl Entry {
    /// The scenario.
    #[must_use]
    pub fn scenario(&self) -> &Scenario {
        &self.run.scenarios[self.at]
    }
}

/// The model: every scenario that is shown, newest run first.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// In the order of the pages.
    pub entries: Vec<Entry>,
}

/// Works everything out. `runs` are newest first, each with what its scenarios used, in their order.
#[must_use]
pub fn model(runs: &[(Arc<Run>, Vec<Answer>)], scope: Scope, prices: &Prices) -> Model {
    let mut entries = Vec::new();
    for (run, answers) in runs {
        // Repeats of one configuration have the joules of one scope: the wanted one, where all of them have it.
        let other = if scope == Scope::Host { Scope::Container } else { Scope::Host };
        let mut lacking: BTreeSet<usize> = BTreeSet::new();
        for (scenario, answer) in run.scenarios.iter().zip(answers) {
            let lacks = answer.energy.as_ref().is_some_and(|energy| energy.of(scope).is_none());
            lacking.extend(scenario.cell.filter(|_| lacks));
        }
        let scope_of = |scenario: &Scenario| {
            if scenario.cell.is_some_and(|cell| lacking.contains(&cell)) { other } else { scope }
        };
        let mut figures: Vec<Figures> = run
            .scenarios
            .iter()
            .zip(answers)
            .map(|(scenario, answer)| figures(scenario, answer, scope_of(scenario)))
            .collect();
        compare(&run.scenarios, answers, &mut figures);
        for (at, (figures, answer)) in figures.into_iter().zip(answers).enumerate() {
            let cost = prices.cost(&run.scenarios[at], &figures);
            entries.push(Entry { run: run.clone(), at, answer: answer.clone(), figures, cost });
        }
    }
    Model { entries }
}

/// What can be said of a scenario alone.
fn figures(scenario: &Scenario, answer: &Answer, wanted: Scope) -> Figures {
    let seconds = scenario.seconds();
    let streams = scenario.stream_count().map(f64::from);
    let frames = scenario.total_frames.map(float);
    // The host without load encodes no second of anything.
    let streamed = || if scenario.is_baseline() { None } else { Some(seconds? * streams.unwrap_or(1.0)) };
    let media_seconds = scenario.media_seconds.or_else(streamed).filter(|seconds| *seconds > 0.0);
    let outputs = scenario.ladder_outputs();
    let pixels = scenario.pixels.map(float).or_else(|| {
        let rate = outputs.iter().map(|o| f64::from(o.width) * f64::from(o.height) * o.fps).sum::<f64>();
        if rate > 0.0 { Some(rate * media_seconds?) } else { None }
    });
    let pixels = pixels.filter(|pixels| *pixels > 0.0);
    let megabits = match scenario.bytes {
        Some(bytes) => Some(float(bytes) * 8.0 / 1e6),
        None => scenario.bits_per_second().and_then(|rate| Some(rate * media_seconds? / 1e6)),
    };
    let mut all = Figures {
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
        ..Figures::default()
    };
    // Counters of CPU time before samples of its use, which may cover a part.
    let counted = scenario.cpu_seconds.or(answer.energy.as_ref().and_then(|energy| energy.cpu_seconds));
    all.cpu_seconds = counted.or_else(|| samples::cpu_seconds(scenario));
    if let Some(energy) = &answer.energy {
        let other = if wanted == Scope::Host { Scope::Container } else { Scope::Host };
        let scope = [wanted, other].into_iter().find(|scope| energy.of(*scope).is_some());
        all.scope = scope;
        all.energy = scope.and_then(|scope| energy.of(scope));
        all.source = scope.map(|scope| energy.sources(scope)).unwrap_or_default();
        all.watts = match energy.way {
            // The trapezoid's ends count half; the mean of samples does not.
            Way::Samples => mean(&energy.watts),
            _ => energy.seconds.and_then(|seconds| Some(all.energy?.joules() / seconds)),
        };
        all.watts_max = largest(&energy.watts);
        all.watts_p95 = quantile(&energy.watts, 0.95).filter(|_| !energy.watts.is_empty());
        all.watts_deviation = standard_deviation(&energy.watts);
    }
    let of = answer.energy.as_ref().and_then(|energy| energy.seconds).or(seconds);
    all.cores = match (counted, if scenario.cpu_seconds.is_some() { seconds } else { of }) {
        (Some(used), Some(seconds)) => Some(used / seconds),
        // As with watts: samples may cover a part.
        _ => mean(&scenario.samples.cores),
    };
    all.efficiency = match (all.joules().filter(|joules| *joules > 0.0), all.pixels, all.megabits) {
        (Some(joules), Some(pixels), _) => Some(pixels / joules),
        (Some(joules), None, Some(megabits)) => Some(megabits / joules),
        _ => None,
    };
    all
}

/// What needs the scenarios beside it: the baseline, the ranks, the best of a ladder.
fn compare(scenarios: &[Scenario], answers: &[Answer], all: &mut [Figures]) {
    let baseline = scenarios.iter().zip(&*all).find(|(scenario, _)| scenario.is_baseline());
    // A container's power is no power of the host without load.
    let baseline = baseline.filter(|(_, figures)| figures.scope == Some(Scope::Host));
    let rest = baseline.and_then(|(_, figures)| Some((figures.watts?, figures.cores)));
    for ((scenario, figures), answer) in scenarios.iter().zip(&mut *all).zip(answers) {
        let own = scenario.baseline.as_ref().map(|baseline| (baseline.watts, None));
        let Some((rest_watts, rest_cores)) = own.or(rest) else { continue };
        // A container's energy has no idle in it to take off.
        if figures.scope == Some(Scope::Host)
            && let Some((watts, joules)) = figures.watts.zip(figures.joules())
            && let Some(seconds) = answer.energy.as_ref().and_then(|energy| energy.seconds)
        {
            figures.difference = Some(Difference {
                baseline_watts: rest_watts,
                watts: watts - rest_watts,
                // Over what the joules are of, which for samples may be a part of the window.
                joules: joules - rest_watts * seconds,
                cores: figures.cores.zip(rest_cores).map(|(cores, rest)| cores - rest),
            });
        }
    }
    let rank = |among: Vec<usize>, all: &[Figures]| -> Vec<(usize, u32)> {
        let mut order: Vec<(usize, f64)> = among.into_iter().filter_map(|at| Some((at, all[at].efficiency?))).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        let place = |value: f64| order.iter().position(|other| other.1 == value).unwrap_or_default();
        // Equals share a rank.
        order
            .iter()
            .map(|(at, value)| (*at, u32::try_from(place(*value)).unwrap_or(u32::MAX).saturating_add(1)))
            .collect()
    };
    // Pixels per joule and megabits per joule are two things, as are a host's joules and a container's; and a host at rest encodes nothing.
    let class = |at: usize, all: &[Figures]| {
        let ranked = !scenarios[at].is_baseline() && all[at].efficiency.is_some();
        ranked.then(|| (all[at].pixels.is_some(), all[at].kind()))
    };
    let mut classes: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for at in 0..all.len() {
        if let Some(class) = class(at, all) {
            classes.entry(class).or_default().push(at);
        }
    }
    for among in classes.into_values() {
        for (at, place) in rank(among.clone(), all) {
            all[at].rank = Some(place);
        }
        let mut ladders: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for at in among.into_iter().filter(|at| all[*at].ladder != UNKNOWN) {
            ladders.entry(all[at].ladder.clone()).or_default().push(at);
        }
        for rungs in ladders.into_values() {
            for (at, place) in rank(rungs.clone(), all) {
                all[at].ladder_rank = Some(place);
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
    predict(scenarios, all);
}

/// The power of each scenario by a line through those that differ from it in the number of streams only.
fn predict(scenarios: &[Scenario], all: &mut [Figures]) {
    let mut groups: BTreeMap<_, Vec<(usize, f64, f64)>> = BTreeMap::new();
    for (at, scenario) in scenarios.iter().enumerate() {
        if let (Some(streams), Some(watts), false) = (scenario.stream_count(), all[at].watts, scenario.is_baseline()) {
            let key =
                (&*scenario.encoder, &*scenario.preset, &*scenario.bitrate, all[at].ladder.clone(), all[at].kind());
            groups.entry(key).or_default().push((at, f64::from(streams), watts));
        }
    }
    for group in groups.into_values() {
        let points: Vec<(f64, f64)> = group.iter().map(|(_, streams, watts)| (*streams, *watts)).collect();
        let mut different: Vec<f64> = points.iter().map(|point| point.0).collect();
        different.sort_by(f64::total_cmp);
        different.dedup();
        let line = if different.len() < 3 { None } else { Line::fit(&points) };
        for (at, streams, _) in group {
            all[at].predicted_watts = line.map(|line| line.at(streams));
        }
    }
}

/// A moment of a file.
#[must_use]
pub fn timestamp(seconds: f64) -> Option<Timestamp> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "float to int casts saturate, and a timestamp has limits of its own"
    )]
    Timestamp::from_microsecond((seconds * 1e6).round() as i64).ok()
}

/// A count for output.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts for output; above 2^53 the nearest double")]
pub fn float(count: u64) -> f64 {
    count as f64
}
