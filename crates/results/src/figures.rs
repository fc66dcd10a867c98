//! The figures of a configuration: what reports, tables, comparisons and recommendations show.
//!
//! Each figure is the mean over the repeats with its interval. Figures that are calculated from
//! energy are of one scope, which the configuration states, and of whole windows only.

use std::collections::BTreeMap;

use units::model_interval::ModelInterval;

use crate::{
    energy::{EnergyKind, Scope},
    estimate::{self, Estimate},
    model::Entry,
    repeats::Configuration,
    run::{Score, UNKNOWN},
};

/// The figures of one configuration. One whose inputs are unknown is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Scope and sources of the energy, `host, nvml+perf`; absent if the repeats differ.
    pub energy_source: Option<String>,
    /// How far the modelled part of the energy may be from the truth; absent if it is measured, or
    /// if that is unknown.
    pub model_interval: Option<ModelInterval>,
    /// Why there are no figures of energy, or why they are of the host or of fewer repeats; empty
    /// if there is nothing to say.
    pub note: String,
    /// Energy in joules.
    pub joules: Option<Estimate>,
    /// Joules per encoded frame.
    pub joules_per_frame: Option<Estimate>,
    /// Joules per second of media.
    pub joules_per_media_second: Option<Estimate>,
    /// Cost per hour of a stream, in the currency of the prices.
    pub cost_per_stream_hour: Option<Estimate>,
    /// Grams of CO2-equivalents per hour of a stream.
    pub carbon_grams_per_stream_hour: Option<Estimate>,
    /// Pixels, or megabits, per joule.
    pub efficiency: Option<Estimate>,
    /// Mean power in watts.
    pub watts: Option<Estimate>,
    /// Bits per second of media of one stream, measured where the size of the output is known.
    pub bits_per_second: Option<Estimate>,
    /// Encoded frames per second.
    pub frames_per_second: Option<Estimate>,
    /// VMAF.
    pub vmaf: Option<Estimate>,
    /// Rank by efficiency among comparable configurations of the run; 1 is best, and configurations
    /// whose intervals overlap tie.
    pub rank: Option<u32>,
    /// Such a rank among those with the same outputs.
    pub ladder_rank: Option<u32>,
}

impl Figures {
    /// The figures of a configuration.
    #[must_use]
    pub fn of(configuration: &Configuration<'_>) -> Self {
        let energy_source = configuration.energy_source();
        let is_one_kind = energy_source.is_some();
        let energy = |of: &dyn Fn(&Entry) -> Option<f64>| {
            if is_one_kind { Estimate::of(&configuration.whole_values(of)) } else { None }
        };
        let value = |of: &dyn Fn(&Entry) -> Option<f64>| Estimate::of(&configuration.values(of));
        let first_of = |of: fn(&Entry) -> Option<u32>| configuration.entries.iter().find_map(|entry| of(entry));
        Self {
            energy_source,
            model_interval: ModelInterval::widest(
                configuration.entries.iter().map(|entry| entry.derived.model_interval),
            ),
            note: energy_note(configuration, is_one_kind),
            joules: energy(&|entry| entry.derived.joules()),
            joules_per_frame: energy(&|entry| entry.derived.joules_per(entry.derived.frames)),
            joules_per_media_second: energy(&Entry::joules_per_media_second),
            cost_per_stream_hour: energy(&Entry::cost_per_stream_hour),
            carbon_grams_per_stream_hour: energy(&Entry::carbon_grams_per_stream_hour),
            efficiency: energy(&|entry| entry.derived.efficiency),
            watts: energy(&|entry| entry.derived.watts),
            bits_per_second: value(&|entry| entry.derived.bits_per_second()),
            frames_per_second: value(&|entry| entry.scenario().avg_fps),
            vmaf: vmaf(configuration),
            rank: first_of(|entry| entry.derived.rank),
            ladder_rank: first_of(|entry| entry.derived.ladder_rank),
        }
    }
}

/// VMAF with its interval: over the repeats, or of a single repeat over the pieces of its stream.
fn vmaf(configuration: &Configuration<'_>) -> Option<Estimate> {
    let mut estimate = Estimate::of(&configuration.scores(&|quality| quality.vmaf.as_ref()))?;
    if estimate.n == 1 {
        let mut entries = configuration.entries.iter();
        estimate.half_width = entries.find_map(|entry| entry.scenario().quality.vmaf.as_ref()?.half_width);
    }
    Some(estimate)
}

/// What is to be said about the energy of a configuration.
fn energy_note(configuration: &Configuration<'_>, is_one_kind: bool) -> String {
    let entries = &configuration.entries;
    let without: Vec<&&Entry> = entries.iter().filter(|entry| entry.lookup.energy.is_none()).collect();
    if let Some(entry) = without.first() {
        let why = entry.lookup.explanation();
        let repeats = if entries.len() == 1 { String::new() } else { of_repeats(without.len(), entries.len()) };
        return format!("no energy{repeats}: {why}");
    }
    if !is_one_kind {
        let mut sources: Vec<String> = entries.iter().filter_map(|entry| entry.derived.energy_source()).collect();
        sources.sort();
        sources.dedup();
        return if sources.len() < 2 {
            "the idle power was known in some repeats only, so their energy has no mean".to_owned()
        } else {
            format!("the repeats have energy of different sources, so it has no mean: {}", sources.join("; "))
        };
    }
    let partial: Vec<&&Entry> = entries.iter().filter(|entry| !entry.derived.is_whole).collect();
    if let Some(entry) = partial.first() {
        let coverage = entry.lookup.energy.as_ref().and_then(|energy| energy.coverage);
        let part = coverage.map_or("an unknown part".to_owned(), |part| format!("{:.0} %", part * 100.0));
        let repeats = if entries.len() == 1 { String::new() } else { of_repeats(partial.len(), entries.len()) };
        return format!("samples cover {part} of its window{repeats}");
    }
    scope_note(configuration)
}

/// Why the energy is of the host although some repeats have that of their container, or that it
/// includes idle energy; else empty.
fn scope_note(configuration: &Configuration<'_>) -> String {
    let entries = &configuration.entries;
    let has_container =
        |entry: &&&Entry| entry.lookup.energy.as_ref().is_some_and(|energy| energy.total(Scope::Container).is_some());
    let count = entries.iter().filter(has_container).count();
    let is_host = configuration.first().derived.scope == Some(Scope::Host);
    if is_host && count > 0 && count < entries.len() {
        format!(
            "the energy of the container is missing{}, so all are of the host",
            of_repeats(entries.len() - count, entries.len())
        )
    } else if configuration.first().derived.energy_class().includes_idle() {
        "the idle power was unknown to the probe, so a part of the idle energy is included".to_owned()
    } else {
        String::new()
    }
}

fn of_repeats(part: usize, all: usize) -> String {
    format!(" in {part} of {all} repeats")
}

/// The score named `wanted` and its value. An empty name selects VMAF, or else PSNR, with its model
/// and pooling.
#[must_use]
pub fn score(entry: &Entry, wanted: &str) -> Option<(String, f64)> {
    let quality = &entry.scenario().quality;
    let named = [("VMAF", &quality.vmaf), ("PSNR", &quality.psnr)];
    let name = |metric: &str, score: &Score| {
        let made_by = [&*score.model, &*score.pooling].join(" ");
        format!("{metric} {}", made_by.trim()).trim().to_owned()
    };
    let mut all = named.into_iter().filter_map(|(metric, score)| {
        let score = score.as_ref()?;
        Some((name(metric, score), score.value))
    });
    all.find(|(name, _)| wanted.is_empty() || name == wanted)
}

/// What configurations on one Pareto front have in common: run, outputs, streams, score, kind of
/// energy, and source file.
type FrontKey<'a> = (&'a str, &'a str, u32, String, EnergyKind, &'a str);

/// Lower and upper bounds of rate, negated score and energy; smaller is better.
type FrontPoint = [(f64, f64); 3];

/// Whether each configuration is on the Pareto front of rate, quality and energy among those of its
/// run with the same outputs, number of streams, quality metric, source of energy and source file.
/// A configuration that lacks one of the three, or whose outputs are unknown, is on none.
#[must_use]
pub fn pareto_front<'a>(configurations: &[&Configuration<'a>]) -> Vec<bool> {
    let mut groups: BTreeMap<FrontKey<'a>, Vec<(usize, FrontPoint)>> = BTreeMap::new();
    for (at, configuration) in configurations.iter().enumerate() {
        if let Some((key, point)) = front_point(configuration) {
            groups.entry(key).or_default().push((at, point));
        }
    }
    let mut on_front = vec![false; configurations.len()];
    for group in groups.values() {
        let points: Vec<FrontPoint> = group.iter().map(|(_, point)| *point).collect();
        for ((at, _), is_on_front) in group.iter().zip(estimate::pareto_front(&points)) {
            on_front[*at] = is_on_front;
        }
    }
    on_front
}

/// The front of a configuration, and its point.
fn front_point<'a>(configuration: &Configuration<'a>) -> Option<(FrontKey<'a>, FrontPoint)> {
    let entry: &'a Entry = configuration.entries.first().copied()?;
    let (name, _) = score(entry, "")?;
    let of_name = |entry: &Entry| Some(-score(entry, &name)?.1);
    let scores = Estimate::of(&configuration.values(&of_name))?;
    let rate = Estimate::of(&configuration.values(&|entry| entry.derived.bits_per_second()))?;
    let joules = Estimate::of(&configuration.energy_values(&Entry::joules_per_media_second))?;
    let point = [rate.bounds(), scores.bounds(), joules.bounds()];
    let streams = entry.scenario().stream_count().unwrap_or(1);
    let ladder: &'a str = &entry.derived.ladder;
    let key = (&*entry.run.id, ladder, streams, name, configuration.energy_kind()?, configuration.content_digest());
    (ladder != UNKNOWN).then_some((key, point))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{cost::Prices, energy::EnergySources, model::Model, repeats::configurations, store};

    /// Joules of the host and the container of a repeat, and whether the idle power was known.
    type Repeat = (f64, Option<f64>, Option<bool>);

    /// A model of these configurations.
    fn model(configurations: &[&[Repeat]]) -> Model {
        let cells: Vec<String> = configurations.iter().enumerate().map(|(at, repeats)| cell(at, repeats)).collect();
        let file = format!(
            r#"{{"schema":"wattcast/results/2","run":{{"id":"r","started":"2026-11-20T12:00:00Z","status":"ok"}},"host":{{"name":"h"}},"cells":[{}]}}"#,
            cells.join(",")
        );
        parsed(&file)
    }

    fn parsed(file: &str) -> Model {
        let run = Arc::new(store::parse("20260101_000000", file.as_bytes()).unwrap());
        let lookups = run.scenarios.iter().map(EnergySources::from_file).collect();
        Model::new(&[(run, lookups)], Scope::Container, &Prices::defaults())
    }

    fn cell(at: usize, repeats: &[Repeat]) -> String {
        let row = |scope: &str, joules: f64| {
            format!(r#"{{"scope":"{scope}","source":"perf","microjoules":{:.0}}}"#, joules * 1e6)
        };
        let repeat = |(n, (host, container, idle)): (usize, &Repeat)| {
            let mut rows = vec![row("host", *host)];
            rows.extend(container.map(|joules| row("container", joules)));
            let idle = idle.map_or_else(String::new, |known| format!(r#""idle_known":{known},"#));
            let start = 1_795_176_000 + n * 20;
            let end = start + 10;
            format!(
                r#"{{"n":{},"status":"ok",{idle}"window":{{"start_unix_ns":{start}000000000,"end_unix_ns":{end}000000000,"seconds":10}},
                "frames":{{"encoded":300,"dropped":0}},"pixels":1000000,"bytes":1250000,"media_seconds":10,
                "quality":[{{"metric":"vmaf","value":90,"model":"m","pooling":"mean"}}],"energy":[{}]}}"#,
                n + 1,
                rows.join(",")
            )
        };
        let repeats: Vec<String> = repeats.iter().enumerate().map(repeat).collect();
        format!(
            r#"{{"name":"c{at}","axes":{{"encoder":"libx264","preset":"fast","bitrate":"500k","width":640,"height":360,
            "frames_per_second":30,"streams":1}},"repeats":[{}]}}"#,
            repeats.join(",")
        )
    }

    #[test]
    fn repeats_without_container_energy_make_all_of_the_host() {
        let model = model(&[&[(10.0, None, None), (11.0, None, None), (12.0, Some(3.0), None)]]);
        let figures = Figures::of(&configurations(&model)[0]);
        assert_eq!(figures.energy_source.as_deref(), Some("host, perf"));
        assert_eq!(figures.joules.map(|joules| (joules.mean, joules.n)), Some((11.0, 3)));
        assert!(figures.note.contains("2 of 3 repeats") && figures.note.contains("of the host"), "{}", figures.note);
    }

    #[test]
    fn repeats_with_and_without_known_idle_power_have_no_mean() {
        let mixed = model(&[&[(10.0, Some(3.0), Some(true)), (10.0, Some(5.0), Some(false))]]);
        let figures = Figures::of(&configurations(&mixed)[0]);
        assert_eq!((figures.joules, figures.rank), (None, None));
        assert!(figures.note.contains("idle power"), "{}", figures.note);
        // The energy of the host does not depend on it.
        let host = model(&[&[(10.0, None, Some(true)), (10.0, None, Some(false))]]);
        assert!(Figures::of(&configurations(&host)[0]).joules.is_some());
        // A file that does not say is compared as before.
        let old = model(&[&[(10.0, Some(3.0), None), (10.0, Some(3.1), None)]]);
        assert!(Figures::of(&configurations(&old)[0]).joules.is_some());
    }

    #[test]
    fn modelled_energy_has_the_widest_interval_of_its_repeats() {
        let cells = cell(0, &[(10.0, None, None), (11.0, None, None)]);
        let modelled = r#""source":"model","model_interval_ratio""#;
        let first = cells.replacen(r#""source":"perf""#, &format!("{modelled}:[0.6,1.5]"), 1);
        let both = first.replacen(r#""source":"perf""#, &format!("{modelled}:[0.7,1.88]"), 1);
        let head = r#""schema":"wattcast/results/2","run":{"id":"r","started":"2026-11-20T12:00:00Z","status":"ok"}"#;
        let figures = Figures::of(&configurations(&parsed(&format!(r#"{{{head},"cells":[{both}]}}"#)))[0]);
        assert_eq!(figures.energy_source.as_deref(), Some("host, model"));
        assert_eq!(figures.model_interval.map(ModelInterval::limits), Some([0.6, 1.88]));
        let measured = Figures::of(&configurations(&parsed(&format!(r#"{{{head},"cells":[{cells}]}}"#)))[0]);
        assert_eq!(measured.model_interval, None);
    }

    #[test]
    fn single_repeat_of_a_live_stream_has_the_interval_of_its_pieces() {
        let repeat = |n: u32, vmaf: u32| {
            format!(
                r#"{{"n":{n},"status":"ok","quality":[{{"metric":"vmaf","value":{vmaf},"pooling":"mean","ci95":[{},{}],"pieces":9}}]}}"#,
                vmaf - 2,
                vmaf + 2
            )
        };
        let of = |repeats: &str| {
            let file = format!(
                r#"{{"schema":"wattcast/results/2","run":{{"id":"r","started":"2026-11-20T12:00:00Z","status":"ok"}},"host":{{"name":"h"}},"cells":[{{"name":"c","repeats":[{repeats}]}}]}}"#
            );
            let run = Arc::new(store::parse("20260101_000000", file.as_bytes()).unwrap());
            let lookups = run.scenarios.iter().map(EnergySources::from_file).collect();
            let model = Model::new(&[(run, lookups)], Scope::Container, &Prices::defaults());
            Figures::of(&configurations(&model)[0]).vmaf.unwrap()
        };
        let single = of(&repeat(1, 90));
        assert_eq!((single.mean, single.half_width, single.n), (90.0, Some(2.0), 1));
        // Several repeats have the interval over them.
        let both = of(&[repeat(1, 90), repeat(2, 90)].join(","));
        assert_eq!((both.mean, both.half_width, both.n), (90.0, Some(0.0), 2));
    }

    #[test]
    fn figures_of_a_part_of_the_window_are_not_ranked() {
        let row = |name: &str, energy: &str| {
            format!(
                r#"{{"name":"{name}","encoder_type":"libx264","bitrate":"1M","resolution":"640x360","fps":30,"duration":100,
                "total_frames":3000,{energy}}}"#
            )
        };
        // Joules of 5 % of the window would make this the best by far.
        let part = row("part", r#""power_watts":[10,10],"step_seconds":5"#);
        let whole = row("whole", r#""energy_joules":1000"#);
        let file = format!(r#"{{"scenarios":[{part},{whole}]}}"#);
        let run = Arc::new(store::parse("20260101_000000", file.as_bytes()).unwrap());
        let lookups = run.scenarios.iter().map(EnergySources::from_file).collect();
        let model = Model::new(&[(run, lookups)], Scope::Host, &Prices::defaults());
        let all: Vec<Figures> = configurations(&model).iter().map(Figures::of).collect();
        assert_eq!((all[0].joules, all[0].rank, all[0].efficiency), (None, None, None));
        assert!(all[0].note.contains("5 % of its window"), "{}", all[0].note);
        assert_eq!(all[1].rank, Some(1));
        let over: Vec<Option<f64>> = model.entries.iter().map(|entry| entry.derived.joules_over_best).collect();
        assert_eq!(over, [None, Some(0.0)]);
    }

    #[test]
    fn ranks_are_those_of_the_means() {
        let host = |joules: f64| (joules, None, None);
        // The first repeat of the second configuration is the best of all, its mean the worst.
        let model = model(&[
            &[host(10.0), host(10.1), host(10.2)],
            &[host(9.0), host(40.0), host(41.0)],
            &[host(20.0), host(20.1), host(20.2)],
        ]);
        let all: Vec<Figures> = configurations(&model).iter().map(Figures::of).collect();
        let ranks: Vec<Option<u32>> = all.iter().map(|figures| figures.rank).collect();
        // The second ties with both: its interval contains them.
        assert_eq!((ranks[0], ranks[2]), (Some(1), Some(2)));
        for entry in &model.entries {
            let own = &all[entry.scenario().configuration.unwrap()];
            assert_eq!(entry.derived.rank, own.rank, "every repeat has the rank of its configuration");
        }
    }

    #[test]
    fn configurations_of_one_front_are_compared_by_their_intervals() {
        let host = |joules: f64| (joules, None, None);
        let model = model(&[&[host(10.0), host(10.1)], &[host(20.0), host(20.1)], &[host(10.05), host(10.06)]]);
        let all = configurations(&model);
        assert_eq!(pareto_front(&all.iter().collect::<Vec<_>>()), [true, false, true]);
    }
}
