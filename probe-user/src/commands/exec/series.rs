//! The report on a series: the mean of each figure over the repeats with its 95 % interval, and the
//! comparison of two commands.
//!
//! The intervals are Student's; they say how the repeats spread. What every repeat has in common,
//! such as the error of a counter's unit, is in none of them; the bound of one run's energy is in
//! its own report. Two commands are compared by Welch's test and Fieller's interval of the ratio.
//! They agree: the interval contains 1 exactly where the difference is not significant. Each figure
//! is tested alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use cli::number::{short, with_bounds, with_half_width};
use serde::Serialize;
use statistics::inference::{CONFIDENCE, Interval, Welch, relative_interval};
use units::provenance::Unmeasured;

use super::{
    plan::NAMES,
    report::{CostReport, ZoneCost},
};

/// Maximum number of notes in the report for people; JSON has those of every repeat.
const MAX_NOTES: usize = 8;

/// A figure of a run.
struct Figure {
    /// Name in JSON.
    name: &'static str,
    /// Name for people.
    title: &'static str,
    unit: &'static str,
    /// True if it is computed from energy, so that it has a source.
    is_energy: bool,
    of: fn(&CostReport) -> Option<f64>,
}

/// All figures, in the order of the report.
static FIGURES: [Figure; 8] = [
    Figure { name: "energy", title: "energy", unit: "J", is_energy: true, of: |run| run.joules },
    Figure { name: "power", title: "power", unit: "W", is_energy: true, of: |run| run.watts },
    Figure { name: "time", title: "time", unit: "s", is_energy: false, of: |run| Some(run.seconds) },
    Figure { name: "cpu", title: "CPU", unit: "s", is_energy: false, of: |run| run.cpu_seconds },
    Figure {
        name: "wait",
        title: "wait",
        unit: "s in run queues",
        is_energy: false,
        of: |run| run.runqueue_wait_seconds,
    },
    Figure { name: "frames", title: "frames", unit: "frames", is_energy: false, of: frames },
    Figure {
        name: "energy_per_frame",
        title: "frame",
        unit: "J/frame",
        is_energy: true,
        of: |run| run.frames.as_ref()?.joules_per_frame,
    },
    Figure {
        name: "energy_per_media_second",
        title: "media",
        unit: "J per second of media",
        is_energy: true,
        of: |run| run.frames.as_ref()?.joules_per_media_second,
    },
];

fn frames(run: &CostReport) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a count, for output")]
    let count = run.frames.as_ref()?.frames as f64;
    Some(count)
}

/// The mean of a figure over all repeats of a command.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct FigureMean {
    unit: &'static str,
    /// Repeats in which the figure is known.
    known: usize,
    /// Absent unless every repeat has the figure, with the same source if it is one of energy.
    mean: Option<f64>,
    /// Half the width of the 95 % interval; absent for one repeat.
    half_width: Option<f64>,
    standard_deviation: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
}

impl FigureMean {
    fn of(figure: &Figure, runs: &[CostReport], comparable: bool) -> Self {
        let values: Vec<f64> = runs.iter().filter_map(figure.of).collect();
        let mut mean = Self { unit: figure.unit, known: values.len(), ..Self::default() };
        if values.len() < runs.len() || (figure.is_energy && !comparable) {
            return mean;
        }
        let interval = Interval::of(&values);
        mean.mean = statistics::mean(&values);
        mean.half_width = interval.map(|interval| interval.half_width);
        mean.standard_deviation = interval.map(|interval| interval.standard_deviation);
        mean.min = values.iter().copied().min_by(f64::total_cmp);
        mean.max = statistics::largest(&values);
        mean
    }
}

/// A figure of B relative to that of A.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct FigureRatio {
    /// Mean of B over mean of A.
    ratio: Option<f64>,
    /// Bounds of the 95 % interval of the ratio; absent for one repeat, or if the figure of A
    /// cannot be distinguished from zero.
    low: Option<f64>,
    high: Option<f64>,
    /// Two-sided p-value of Welch's test.
    p: Option<f64>,
    /// True if `p` is below 0.05.
    significant: Option<bool>,
}

impl FigureRatio {
    /// `None` where a command lacks the mean.
    fn of(figure: &Figure, [a, b]: [&CommandSeries; 2]) -> Option<Self> {
        let mean = |command: &CommandSeries| command.figures.get(figure.name)?.mean;
        let ratio = Some(mean(b)? / mean(a)?).filter(|ratio| ratio.is_finite());
        let values = |command: &CommandSeries| command.runs.iter().filter_map(figure.of).collect::<Vec<f64>>();
        let (first, second) = (values(a), values(b));
        let bounds = relative_interval(&first, &second);
        let p = Welch::of(&first, &second).map(|test| test.p);
        Some(Self {
            ratio,
            low: bounds.map(|(low, _)| 1.0 + low),
            high: bounds.map(|(_, high)| 1.0 + high),
            p,
            significant: p.map(|p| p < 1.0 - CONFIDENCE),
        })
    }

    fn text(&self, figure: &Figure) -> String {
        let mut text = match (self.ratio, self.low.zip(self.high)) {
            (Some(ratio), Some((low, high))) => {
                let (ratio, bounds) = with_bounds(ratio, &(low..=high));
                format!("{ratio} × A (95 % interval {bounds})")
            }
            (Some(ratio), None) => format!("{} × A", short(ratio)),
            (None, _) => "A is zero".to_owned(),
        };
        match (self.p, self.significant) {
            (Some(p), Some(significant)) => {
                let p = if p < 0.001 { "p < 0.001".to_owned() } else { format!("p = {p:.3}") };
                let word = if significant { "significant" } else { "not significant" };
                let _ = write!(text, ", {p}: {word}");
            }
            _ => text.push_str(", one repeat: significance is unknown"),
        }
        format!("  {:<8}{text}\n", figure.title)
    }
}

/// All repeats of one command.
#[derive(Clone, Debug, Serialize)]
struct CommandSeries {
    /// `A` or `B`.
    name: &'static str,
    /// The program without arguments, which may contain secrets.
    program: String,
    /// The parts of the energy, each with its source.
    sources: BTreeSet<String>,
    /// By name.
    figures: BTreeMap<&'static str, FigureMean>,
    runs: Vec<CostReport>,
}

impl CommandSeries {
    fn text(&self, warmup: u32) -> String {
        let repeats = self.runs.len();
        let plural = if repeats == 1 { "" } else { "s" };
        let warmup = if warmup > 0 { format!(" after {warmup} not measured") } else { String::new() };
        let mut text = format!("\nwattcast: {} = {}, {repeats} run{plural}{warmup}\n", self.name, self.program);
        for figure in &FIGURES {
            let Some(mean) = self.figures.get(figure.name) else { continue };
            let line = match mean.mean {
                Some(value) => {
                    let source = if figure.name == "energy" { self.source_text() } else { String::new() };
                    format!("{} {}{source}", with_half_width(value, mean.half_width), figure.unit)
                }
                // A program that is not ffmpeg has no frames, and a tier may count no waits.
                None if mean.known == 0 && figure.name != "energy" => continue,
                None if mean.known < repeats => format!("unknown in {} of {repeats} runs", repeats - mean.known),
                None => "no mean: its parts or sources changed between runs".to_owned(),
            };
            let _ = writeln!(text, "  {:<8}{line}", figure.title);
        }
        text
    }

    /// The sources of the energy, and the largest bound of one run.
    fn source_text(&self) -> String {
        let runs = self.runs.iter();
        let bounds: Option<Vec<f64>> = runs.map(|run| run.uncertainty_joules).collect();
        let bound = bounds.as_deref().and_then(statistics::largest).filter(|bound| *bound > 0.0);
        let bound = bound.map_or_else(String::new, |bound| format!("; each run ± {}", short(bound)));
        let sources: Vec<&str> = self.sources.iter().map(String::as_str).collect();
        format!("  {}{bound}", sources.join(", "))
    }
}

/// The report on all runs of a series.
#[derive(Clone, Debug, Serialize)]
pub(super) struct SeriesReport {
    /// Runs of each command before the measured ones.
    warmup: u32,
    /// Confidence level of the intervals.
    confidence: f64,
    /// One or two.
    commands: Vec<CommandSeries>,
    /// B relative to A by figure; absent for one command.
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<BTreeMap<&'static str, FigureRatio>>,
    /// Limitations of the values above.
    notes: Vec<String>,
}

/// A part of the energy: which zone, by which source, with or without idle energy.
fn part(zone: &ZoneCost) -> String {
    let idle = if zone.idle_known { "" } else { " with idle energy" };
    format!("{} {} {}{idle}", zone.zone, zone.package, zone.origin())
}

fn parts(run: &CostReport) -> BTreeSet<String> {
    run.zones.iter().map(part).collect()
}

/// Why the energy of some runs cannot be averaged or compared; `None` if it can. Energy that is
/// modelled and energy that is measured are different quantities, and so are sums of other zones.
fn energy_fault(runs: &[(String, &CostReport)]) -> Option<String> {
    let kinds = |run: &CostReport| Unmeasured::among(run.zones.iter().map(|zone| zone.source));
    let words = |kinds: &BTreeSet<Unmeasured>| {
        let words: Vec<&str> = kinds.iter().map(|kind| kind.word()).collect();
        if words.is_empty() { "measured".to_owned() } else { words.join(" and ") }
    };
    let (name, first) = runs.first()?;
    let (kind, of_first) = (kinds(first), parts(first));
    if let Some((other, run)) = runs.iter().find(|(_, run)| kinds(run) != kind) {
        return Some(format!(
            "energy is not compared: that of {name} is {}, that of {other} is {}",
            words(&kind),
            words(&kinds(run))
        ));
    }
    let (other, run) = runs.iter().find(|(_, run)| parts(run) != of_first)?;
    let list = |parts: &BTreeSet<String>| parts.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    Some(format!(
        "energy is not compared: that of {name} is {}; that of {other} is {}",
        list(&of_first),
        list(&parts(run))
    ))
}

/// The different notes of all runs, those of the most runs first, with the number of runs.
fn collect_notes(runs: &[(String, &CostReport)]) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for note in runs.iter().flat_map(|(_, run)| &run.notes) {
        *counts.entry(note).or_default() += 1;
    }
    let mut notes: Vec<(usize, &str)> = counts.into_iter().map(|(note, count)| (count, note)).collect();
    notes.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let all = runs.len();
    let with_count = |(count, note): (usize, &str)| {
        if count == all { note.to_owned() } else { format!("{note} ({count} of {all} runs)") }
    };
    notes.into_iter().map(with_count).collect()
}

impl SeriesReport {
    /// The report on the runs of each command, in their order. `warmup` runs were not measured.
    pub(super) fn of(measured: &[Vec<CostReport>], warmup: u32) -> Self {
        let named: Vec<Vec<(String, &CostReport)>> = measured
            .iter()
            .zip(NAMES)
            .map(|(runs, name)| {
                runs.iter().zip(1..).map(|(run, number)| (format!("{name}, repeat {number},"), run)).collect()
            })
            .collect();
        let commands: Vec<CommandSeries> = measured
            .iter()
            .zip(NAMES)
            .zip(&named)
            .map(|((runs, name), named)| {
                let comparable = energy_fault(named).is_none();
                CommandSeries {
                    name,
                    program: runs.first().map(|run| run.program.clone()).unwrap_or_default(),
                    sources: runs.iter().flat_map(parts).collect(),
                    figures: FIGURES
                        .iter()
                        .map(|figure| (figure.name, FigureMean::of(figure, runs, comparable)))
                        .collect(),
                    runs: runs.clone(),
                }
            })
            .collect();
        let all: Vec<(String, &CostReport)> = named.into_iter().flatten().collect();
        let fault = energy_fault(&all);
        let comparison = match &commands[..] {
            [a, b] => Some(
                FIGURES
                    .iter()
                    .filter(|figure| !figure.is_energy || fault.is_none())
                    .filter_map(|figure| Some((figure.name, FigureRatio::of(figure, [a, b])?)))
                    .collect(),
            ),
            _ => None,
        };
        let notes = fault.into_iter().chain(collect_notes(&all)).collect();
        Self { warmup, confidence: CONFIDENCE, commands, comparison, notes }
    }

    /// The report for people.
    pub(super) fn text(&self) -> String {
        let mut text: String = self.commands.iter().map(|command| command.text(self.warmup)).collect();
        if let Some(comparison) = &self.comparison {
            text.push_str("\nwattcast: B compared with A\n");
            let known = FIGURES.iter().filter_map(|figure| Some((figure, comparison.get(figure.name)?)));
            text.extend(known.map(|(figure, ratio)| ratio.text(figure)));
        }
        for note in self.notes.iter().take(MAX_NOTES) {
            let _ = writeln!(text, "  {:<8}{note}", "note");
        }
        if let Some(more) = self.notes.len().checked_sub(MAX_NOTES + 1) {
            let _ = writeln!(text, "  {:<8}{} more notes are in the report of --json", "note", more + 1);
        }
        text
    }

    /// The report for programs: one line.
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).map(|text| text + "\n").unwrap_or_default()
    }

    /// One line per run, for tables. An unknown value is an empty field.
    pub(super) fn csv(&self) -> String {
        let mut text = "command,program,repeat,seconds,cpu_seconds,runqueue_wait_seconds,joules,uncertainty_joules,\
                        watts,frames,joules_per_frame,joules_per_media_second,money,currency,sources\n"
            .to_owned();
        for command in &self.commands {
            for (run, number) in command.runs.iter().zip(1..) {
                let frames = run.frames.as_ref();
                let numbers = [
                    Some(run.seconds),
                    run.cpu_seconds,
                    run.runqueue_wait_seconds,
                    run.joules,
                    run.uncertainty_joules,
                    run.watts,
                    self::frames(run),
                    frames.and_then(|frames| frames.joules_per_frame),
                    frames.and_then(|frames| frames.joules_per_media_second),
                    run.money,
                ];
                let numbers = numbers.map(|value| value.map_or_else(String::new, |value| value.to_string()));
                let sources = parts(run).into_iter().collect::<Vec<_>>().join("; ");
                let _ = writeln!(
                    text,
                    "{},{},{number},{},{},{}",
                    command.name,
                    csv_field(&run.program),
                    numbers.join(","),
                    csv_field(&run.currency),
                    csv_field(&sources)
                );
            }
        }
        text
    }
}

/// A text field of CSV (RFC 4180).
fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::exec::report::FrameStats;

    fn run(source: &'static str, seconds: f64, joules: Option<f64>) -> CostReport {
        let zone = ZoneCost {
            package: "0".to_owned(),
            zone: "package",
            source,
            simulated: false,
            joules,
            uncertainty_joules: Some(0.5),
            machine_joules: 100.0,
            idle_joules: 10.0,
            idle_known: true,
            idle_note: None,
            model_interval_ratio: None,
        };
        CostReport {
            program: "ffmpeg".to_owned(),
            exit_code: 0,
            seconds,
            cpu_seconds: Some(2.0 * seconds),
            unattributed_cpu_seconds: Some(0.0),
            outside_cpu_seconds: Some(0.0),
            runqueue_wait_seconds: None,
            zones: vec![zone],
            joules,
            uncertainty_joules: Some(0.5),
            watts: joules.map(|joules| joules / seconds),
            watt_hours: None,
            money: None,
            currency: "EUR".to_owned(),
            price_per_kwh: 0.3,
            frames: None,
            notes: vec!["a note".to_owned()],
        }
    }

    fn runs(source: &'static str, joules: &[f64]) -> Vec<CostReport> {
        joules.iter().map(|joules| run(source, joules / 10.0, Some(*joules))).collect()
    }

    #[test]
    fn a_series_has_means_with_student_intervals() {
        let report = SeriesReport::of(&[runs("perf", &[10.0, 11.0, 12.0])], 1);
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        let energy = &json["commands"][0]["figures"]["energy"];
        assert_eq!(energy["mean"], 11.0);
        // t of 2 degrees of freedom: 4.3027
        let half = energy["half_width"].as_f64().unwrap();
        assert!((half - 4.302_652_729_749_462 / 3.0_f64.sqrt()).abs() < 1e-9, "{half}");
        assert!(energy["min"] == 10.0 && energy["max"] == 12.0 && energy["known"] == 3, "{energy}");
        assert!(json.get("comparison").is_none() && json["warmup"] == 1);
        assert_eq!(json["commands"][0]["runs"].as_array().unwrap().len(), 3);
        assert_eq!(json["notes"].as_array().unwrap().len(), 1, "equal notes are one: {json}");
        let text = report.text();
        assert!(text.contains("package 0 by perf; each run ± 0.5") && !text.contains("compared"), "{text}");
    }

    #[test]
    fn a_difference_beyond_the_spread_is_significant() {
        let report = SeriesReport::of(&[runs("perf", &[10.0, 11.0, 12.0]), runs("perf", &[20.0, 22.0, 24.0])], 0);
        let ratio = &report.comparison.as_ref().unwrap()["energy"];
        assert!((ratio.ratio.unwrap() - 2.0).abs() < 1e-12);
        assert!(ratio.low.unwrap() > 1.0 && ratio.low < ratio.ratio && ratio.high > ratio.ratio, "{ratio:?}");
        assert_eq!(ratio.significant, Some(true));
        assert!(report.text().contains("B compared with A") && report.text().contains(": significant"));
        let report = SeriesReport::of(&[runs("perf", &[1e4, 10_001.0]), runs("perf", &[10_020.0, 10_021.0])], 0);
        assert!(report.text().contains("energy  1.00200 × A (95 % interval 1.00"), "{}", report.text());

        let report = SeriesReport::of(&[runs("perf", &[10.0, 14.0, 12.0]), runs("perf", &[13.0, 10.0, 14.0])], 0);
        let ratio = &report.comparison.as_ref().unwrap()["energy"];
        assert!(ratio.low.unwrap() < 1.0 && ratio.high.unwrap() > 1.0);
        assert_eq!(ratio.significant, Some(false));
    }

    #[test]
    fn modelled_energy_is_not_compared_with_measured_energy() {
        let report = SeriesReport::of(&[runs("perf", &[10.0, 11.0]), runs("model", &[20.0, 22.0])], 0);
        let comparison = report.comparison.as_ref().unwrap();
        assert_eq!(comparison.keys().copied().collect::<Vec<_>>(), ["cpu", "time"]);
        assert!(report.notes[0].contains("is measured, that of B, repeat 1, is MODELLED"), "{:?}", report.notes);
        assert!(report.commands[1].figures["energy"].mean.is_some(), "each alone has a mean");
    }

    /// A counter that fails during a series is replaced by the model.
    #[test]
    fn repeats_of_different_sources_have_no_mean() {
        let mut mixed = runs("perf", &[10.0, 11.0]);
        mixed.extend(runs("model", &[12.0]));
        let report = SeriesReport::of(&[mixed], 0);
        let figures = &report.commands[0].figures;
        assert_eq!((figures["energy"].mean, figures["energy"].known), (None, 3));
        assert!(figures["time"].mean.is_some());
        assert!(report.notes[0].contains("MODELLED") && report.text().contains("no mean"), "{}", report.text());
        let mut learnt = runs("perf", &[10.0, 11.0]);
        learnt[0].zones[0].idle_known = false;
        let report = SeriesReport::of(&[learnt], 0);
        assert!(report.notes[0].contains("with idle energy"), "{:?}", report.notes);
    }

    #[test]
    fn a_value_that_a_repeat_lacks_is_unknown_and_not_zero() {
        let mut some = runs("perf", &[10.0, 11.0]);
        some.push(run("perf", 1.0, None));
        let report = SeriesReport::of(&[some], 0);
        assert_eq!(report.commands[0].figures["energy"].mean, None);
        assert!(report.text().contains("unknown in 1 of 3 runs"), "{}", report.text());
        let line = report.csv().lines().last().unwrap().to_owned();
        assert_eq!(line, "A,ffmpeg,3,1,2,,,0.5,,,,,,EUR,package 0 by perf");
    }

    #[test]
    fn csv_has_one_line_per_run_and_quotes_text() {
        let mut a = runs("perf", &[10.0]);
        a[0].program = "a,\"b\"".to_owned();
        a[0].frames = Some(FrameStats { frames: 100, joules_per_frame: Some(0.1), ..FrameStats::default() });
        let csv = SeriesReport::of(&[a, runs("perf", &[20.0])], 0).csv();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].split(',').count(), 15);
        assert_eq!(lines[1], "A,\"a,\"\"b\"\"\",1,1,2,,10,0.5,10,100,0.1,,,EUR,package 0 by perf");
        assert_eq!(lines[2], "B,ffmpeg,1,2,4,,20,0.5,10,,,,,EUR,package 0 by perf");
    }

    #[test]
    fn one_repeat_of_two_commands_has_no_significance() {
        let report = SeriesReport::of(&[runs("perf", &[10.0]), runs("perf", &[20.0])], 0);
        let ratio = &report.comparison.as_ref().unwrap()["energy"];
        assert_eq!((ratio.ratio, ratio.low, ratio.p, ratio.significant), (Some(2.0), None, None, None));
        assert!(report.text().contains("significance is unknown"));
    }
}
