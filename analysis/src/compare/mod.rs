//! `compare`: whether the second of two runs is another than the first. Every configuration that both have is compared in what it needed and what it gave, by a test that
//! knows how much repeats vary, corrected for how many were made; and what so few repeats could not have found is said, too. For use as a gate: what it ends with says
//! whether something became worse.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;
use serde_json::Value;

use crate::{
    cells::{Cell, cells},
    figures::Model,
    statistics::inference::{Interval, Welch, holm},
};

pub mod curves;

use curves::{Curve, Price, between, curves};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Joules for a frame
    Energy,
    /// Seconds for a second of media
    Time,
    /// Bits for a second of media
    Rate,
    /// VMAF
    Vmaf,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Energy, Self::Time, Self::Rate, Self::Vmaf];

    fn unit(self) -> &'static str {
        match self {
            Self::Energy => "J/frame",
            Self::Time => "s/s",
            Self::Rate => "bit/s",
            Self::Vmaf => "VMAF",
        }
    }

    fn values(self, cell: &Cell<'_>) -> Vec<f64> {
        match self {
            Self::Energy => cell.of_energy(&|entry| entry.figures.joules_per(entry.figures.frames)),
            Self::Time => cell.values(&|entry| {
                Some(entry.figures.seconds? / entry.figures.media_seconds.filter(|media| *media > 0.0)?)
            }),
            Self::Rate => cell.values(&|entry| Price::Rate.of(entry)),
            Self::Vmaf => cell.scores(&|quality| quality.vmaf.as_ref()),
        }
    }

    fn is_better_large(self) -> bool {
        self == Self::Vmaf
    }
}

/// What a difference is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// None was found.
    Same,
    /// There is one, and it is to the good.
    Better,
    /// There is one, and it is to the bad.
    Worse,
    /// Nobody can say.
    Unknown,
}

/// One configuration in one respect.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// In the first run.
    pub scenario: String,
    /// In the second, where it is called otherwise.
    pub scenario_b: String,
    /// In which respect.
    pub metric: Metric,
    /// Unit of all figures.
    pub unit: &'static str,
    /// Mean of the first, and half its 95 % interval.
    pub a: Option<(f64, Option<f64>)>,
    /// Mean of the second.
    pub b: Option<(f64, Option<f64>)>,
    /// Repeats of each.
    pub repeats: (usize, usize),
    /// Second less first, in percent of the first.
    pub difference_percent: Option<f64>,
    /// Its 95 % interval.
    pub interval_percent: Option<(f64, f64)>,
    /// Of Welch's test.
    pub p: Option<f64>,
    /// The same, by Holm, for as many tests as were made.
    pub p_adjusted: Option<f64>,
    /// Hedges' g.
    pub effect: Option<f64>,
    /// The smallest difference, in percent, that so many repeats find in four of five cases, with as many tests as were made.
    pub detectable_percent: Option<f64>,
    /// What it is.
    pub verdict: Verdict,
    /// Why nobody can say.
    pub why: String,
    /// True where nobody can say although one of them has it: then the answer as a whole is not whole.
    pub incomplete: bool,
    #[serde(skip)]
    welch: Option<Welch>,
}

/// A curve of the second run against its like of the first.
#[derive(Clone, Debug, Serialize)]
pub struct Apart {
    /// In the first.
    pub a: String,
    /// In the second.
    pub b: String,
    /// Of outputs.
    pub ladder: String,
    /// By what.
    pub quality: String,
    /// `BD-rate`, …
    pub measure: &'static str,
    /// By PCHIP.
    pub percent: Option<f64>,
    /// By Akima's curve.
    pub akima_percent: Option<f64>,
    /// 95 %, by bootstrap.
    pub interval_percent: Option<(f64, f64)>,
    /// Common qualities over all.
    pub overlap: Option<f64>,
    /// Points that were left out.
    pub left_out: usize,
    /// Why there is no figure.
    pub refused: Option<String>,
}

impl Apart {
    /// Of two curves, at every price.
    #[must_use]
    pub fn of(a: &Curve<'_>, b: &Curve<'_>, seed: u64) -> Vec<Self> {
        let one = |(price, found): (Price, Result<crate::statistics::bjontegaard::Delta, String>)| Self {
            a: a.label(),
            b: b.label(),
            ladder: a.ladder.clone(),
            quality: a.quality.clone(),
            measure: price.measure(),
            percent: found.as_ref().ok().map(|found| found.pchip),
            akima_percent: found.as_ref().ok().map(|found| found.akima),
            interval_percent: found.as_ref().ok().and_then(|found| found.interval),
            overlap: found.as_ref().ok().map(|found| found.overlap),
            left_out: found.as_ref().map_or(0, |found| found.left_out),
            refused: found.err(),
        };
        between(a, b, seed).into_iter().map(one).collect()
    }

    /// In words.
    #[must_use]
    pub fn text(&self) -> String {
        match (&self.refused, self.percent, self.akima_percent) {
            (None, Some(percent), Some(akima)) => {
                let sure =
                    self.interval_percent.map_or_else(String::new, |(low, high)| format!(" [{low:+.2}, {high:+.2}]"));
                let left =
                    if self.left_out > 0 { format!(", {} points left out", self.left_out) } else { String::new() };
                format!(
                    "{percent:+.2} %{sure} (Akima {akima:+.2} %, {:.0} % overlap{left})",
                    self.overlap.unwrap_or_default() * 100.0
                )
            }
            (why, ..) => format!("refused: {}", why.as_deref().unwrap_or("no figure")),
        }
    }
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Every configuration in every respect.
    pub rows: Vec<Row>,
    /// Every curve.
    pub curves: Vec<Apart>,
    /// In what all of the second differ from all of the first.
    pub changed: BTreeMap<String, (String, String)>,
    /// What is to be known.
    pub notes: Vec<String>,
    /// Differences of less than this, in percent, are of no interest.
    pub threshold_percent: f64,
}

/// What a configuration is, word by word.
fn axes(cell: &Cell<'_>) -> BTreeMap<String, String> {
    let scenario = cell.first().scenario();
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match scenario.raw.get("axes").and_then(Value::as_object) {
        Some(axes) => axes.iter().map(|(name, value)| (name.clone(), plain(value))).collect(),
        None => [
            ("encoder", scenario.encoder.clone()),
            ("preset", scenario.preset.clone()),
            ("bitrate", scenario.bitrate.clone()),
            ("resolution", cell.first().figures.ladder.clone()),
            ("streams", scenario.stream_count().unwrap_or(1).to_string()),
            ("name", scenario.name.split(" #").next().unwrap_or_default().to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
    }
}

/// The axes in which all of `a` agree, all of `b` agree, and the two do not: what was changed between the runs.
fn changed(a: &[BTreeMap<String, String>], b: &[BTreeMap<String, String>]) -> BTreeMap<String, (String, String)> {
    let only = |all: &[BTreeMap<String, String>], name: &str| -> Option<String> {
        let first = all.first()?.get(name).cloned().unwrap_or_default();
        all.iter().all(|axes| axes.get(name).map_or("", String::as_str) == first).then_some(first)
    };
    let names = a.iter().chain(b).flat_map(BTreeMap::keys).cloned().collect::<std::collections::BTreeSet<_>>();
    let differs = |name: String| {
        // What is asked of an encoder may be changed; another amount of work is another thing.
        let work = ["width", "height", "frames_per_second", "streams", "outputs", "resolution"];
        if work.contains(&&*name) {
            return None;
        }
        let (one, other) = (only(a, &name)?, only(b, &name)?);
        (one != other).then_some((name, (one, other)))
    };
    names.into_iter().filter_map(differs).collect()
}

/// Compares two runs. `threshold` is relative.
#[must_use]
pub fn compare(a: &Model, b: &Model, metrics: &[Metric], threshold: f64) -> Comparison {
    let (cells_a, cells_b) = (cells(a), cells(b));
    let (axes_a, axes_b): (Vec<_>, Vec<_>) = (cells_a.iter().map(axes).collect(), cells_b.iter().map(axes).collect());
    let changed = changed(&axes_a, &axes_b);
    let key = |axes: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        axes.iter()
            .filter(|(name, _)| !changed.contains_key(*name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    let mut notes = Vec::new();
    let mut by_key: BTreeMap<_, &Cell<'_>> = BTreeMap::new();
    for (axes, cell) in axes_b.iter().zip(&cells_b) {
        // The same work on two sources is two things.
        if by_key.insert((key(axes), cell.content()), cell).is_some() {
            notes.push(format!("{}: stands more than once in the second run; the last is compared", name(cell)));
        }
    }
    let (mut rows, mut matched) = (Vec::new(), std::collections::BTreeSet::new());
    for (one, axes) in cells_a.iter().zip(&axes_a) {
        let own = (key(axes), one.content());
        if let Some(other) = by_key.get(&own) {
            rows.extend(metrics.iter().map(|metric| row(one, other, *metric)));
            matched.insert(own);
        } else {
            let elsewhere = by_key.keys().any(|(axes, _)| *axes == own.0);
            let why =
                if elsewhere { "they encoded different sources" } else { "not in the second run, or failed there" };
            rows.extend(metrics.iter().map(|metric| lost(one, *metric, why)));
        }
    }
    if matched.len() < by_key.len() {
        notes.push(format!("{} configurations of the second run are not in the first", by_key.len() - matched.len()));
    }
    judge(&mut rows, threshold);
    let mut of_curves = Vec::new();
    let (curves_a, curves_b) = (curves(a), curves(b));
    let word = |curve: &Curve<'_>, name: &str, value: &str| {
        if changed.contains_key(name) { String::new() } else { value.to_owned() + curve.ladder.as_str() }
    };
    for one in &curves_a {
        let like = |other: &&Curve<'_>| {
            word(one, "encoder", one.encoder) == word(other, "encoder", other.encoder)
                && word(one, "preset", one.preset) == word(other, "preset", other.preset)
                && one.ladder == other.ladder
        };
        for other in curves_b.iter().filter(like) {
            of_curves.extend(Apart::of(one, other, SEED));
        }
    }
    for (model, which) in [(a, "first"), (b, "second")] {
        if model.entries.iter().any(|entry| entry.figures.source.split('+').any(|source| source == "model")) {
            notes.push(format!("joules of the {which} run are MODELLED from CPU time, not measured"));
        }
    }
    let host = |model: &Model| model.entries.first().and_then(|entry| entry.run.host.clone());
    if host(a) != host(b) {
        notes.push("the runs are of two hosts: what differs may be the machines".to_owned());
    }
    Comparison { rows, curves: of_curves, changed, notes, threshold_percent: threshold * 100.0 }
}

/// Of bootstraps, so that the same files give the same answer.
pub const SEED: u64 = 1;

fn name(cell: &Cell<'_>) -> String {
    cell.first().scenario().name.clone()
}

fn shown(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let mean = crate::statistics::mean(values)?;
    Some((mean, Interval::of(values).map(|interval| interval.half))).filter(|(mean, _)| mean.is_finite())
}

/// A configuration that has no like.
fn lost(cell: &Cell<'_>, metric: Metric, why: &str) -> Row {
    let values = metric.values(cell);
    Row {
        scenario: name(cell),
        scenario_b: name(cell),
        metric,
        unit: metric.unit(),
        a: shown(&values),
        b: None,
        repeats: (values.len(), 0),
        difference_percent: None,
        interval_percent: None,
        p: None,
        p_adjusted: None,
        effect: None,
        detectable_percent: None,
        verdict: Verdict::Unknown,
        incomplete: !values.is_empty(),
        why: why.to_owned(),
        welch: None,
    }
}

fn row(a: &Cell<'_>, b: &Cell<'_>, metric: Metric) -> Row {
    let (first, second) = (metric.values(a), metric.values(b));
    let model = |cell: &Cell<'_>| {
        cell.first().scenario().quality.vmaf.as_ref().map(|score| (score.model.clone(), score.pooling.clone()))
    };
    let sources = (a.source(), b.source());
    let shared = metric == Metric::Vmaf && a.shares_scores() && b.shares_scores();
    let why = if metric == Metric::Energy && sources.0 != sources.1 && sources.0.is_some() && sources.1.is_some() {
        format!("joules of two kinds: {} and {}", sources.0.unwrap_or_default(), sources.1.unwrap_or_default())
    } else if metric == Metric::Vmaf && model(a) != model(b) && !first.is_empty() && !second.is_empty() {
        "scores of two models".to_owned()
    } else if first.is_empty() || second.is_empty() {
        "not known of both".to_owned()
    } else if shared {
        "scored once for all repeats, so that how much it varies is not known; --mode file scores what each left"
            .to_owned()
    } else if first.len() < 2 || second.len() < 2 {
        "one measurement says nothing of how much it varies; --repeats 3 and more".to_owned()
    } else {
        String::new()
    };
    let welch = if why.is_empty() { Welch::of(&first, &second) } else { None };
    let base = shown(&first).map(|(mean, _)| mean).filter(|mean| *mean != 0.0);
    let percent = |value: f64| base.map(|base| value / base * 100.0);
    Row {
        scenario: name(a),
        scenario_b: name(b),
        metric,
        unit: metric.unit(),
        a: shown(&first),
        b: shown(&second),
        repeats: (first.len(), second.len()),
        difference_percent: welch.and_then(|welch| percent(welch.difference)),
        interval_percent: welch.and_then(|welch| Some((percent(welch.low)?, percent(welch.high)?))),
        p: welch.map(|welch| welch.p),
        p_adjusted: None,
        effect: welch.and_then(|welch| welch.effect),
        detectable_percent: None,
        verdict: Verdict::Unknown,
        // One score each, and the same: nothing is missing.
        incomplete: !(why.is_empty() || first.is_empty() && second.is_empty() || shared && first == second),
        why,
        welch,
    }
}

/// Corrects for how many tests were made, and says what each found. What does not vary at all was not tested, and needs no correction.
fn judge(rows: &mut [Row], threshold: f64) {
    let varies = |row: &Row| row.p.is_some() && row.effect.is_some();
    let tested: Vec<usize> = (0..rows.len()).filter(|at| varies(&rows[*at])).collect();
    let count = tested.len();
    let adjusted = holm(&tested.iter().filter_map(|at| rows[*at].p).collect::<Vec<_>>());
    for (at, p) in tested.into_iter().zip(adjusted) {
        rows[at].p_adjusted = Some(p);
    }
    for row in rows {
        let (Some(welch), Some(p)) = (row.welch, row.p_adjusted.or(row.p)) else { continue };
        row.p_adjusted = Some(p);
        let base = row.a.map(|(mean, _)| mean).filter(|mean| *mean != 0.0);
        row.detectable_percent = base.map(|base| (welch.detectable(count) / base * 100.0).abs());
        // From nothing to something is more than any part of it.
        let large = row.difference_percent.is_none_or(|difference| difference.abs() > threshold * 100.0);
        let found = p < 0.05 && large && welch.difference != 0.0;
        let good = (welch.difference > 0.0) == row.metric.is_better_large();
        row.verdict = match (found, good) {
            (false, _) => Verdict::Same,
            (true, true) => Verdict::Better,
            (true, false) => Verdict::Worse,
        };
    }
}

impl Comparison {
    /// How many are so.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|row| row.verdict == verdict).count()
    }

    /// True where something that one of the runs has could not be compared.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.rows.iter().any(|row| row.incomplete)
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        for (name, (a, b)) in &self.changed {
            let _ = writeln!(text, "changed: {name}, {a:?} to {b:?}");
        }
        let mut last = None;
        for row in &self.rows {
            if last != Some(&row.scenario) {
                let other =
                    if row.scenario_b == row.scenario { String::new() } else { format!("  →  {}", row.scenario_b) };
                let _ = writeln!(text, "\n{}{other}", row.scenario);
                last = Some(&row.scenario);
            }
            let metric = format!("{:?}", row.metric).to_lowercase();
            let (Some((a, _)), Some((b, _)), Some(_)) = (row.a, row.b, row.welch) else {
                let _ = writeln!(text, "  {metric:<7} –  {}", row.why);
                continue;
            };
            let difference = row.difference_percent.map_or_else(
                || "from nothing".to_owned(),
                |part| {
                    // What is found is not shown as nothing.
                    let digits = if part != 0.0 && part.abs() < 0.01 { 5 } else { 2 };
                    format!("{part:+.digits$} %")
                },
            );
            let verdict = match row.verdict {
                Verdict::Same => "no difference found",
                Verdict::Better => "BETTER",
                Verdict::Worse => "WORSE",
                Verdict::Unknown => "",
            };
            let (low, high) = row.interval_percent.unwrap_or_default();
            let sure = match (row.effect, row.p_adjusted) {
                (Some(effect), Some(p)) => format!(
                    "[{low:+.2}, {high:+.2}]  p {p:.4}  g {effect:+.2}  finds {:.2} %",
                    row.detectable_percent.unwrap_or_default()
                ),
                _ => "never varies".to_owned(),
            };
            let _ = writeln!(
                text,
                "  {metric:<7} {} → {} {}  {difference}  {sure}  {verdict}",
                short(a),
                short(b),
                row.unit
            );
        }
        if !self.curves.is_empty() {
            text.push('\n');
        }
        for apart in &self.curves {
            let _ =
                writeln!(text, "{:<10} {} → {}, {}: {}", apart.measure, apart.a, apart.b, apart.quality, apart.text());
        }
        let _ = writeln!(
            text,
            "\n{} better, {} worse, {} without a difference, {} unknown. p by Welch's test, corrected by Holm for all; intervals are of one test each, not corrected; g is Hedges'; «finds» is the smallest \
             difference that so many repeats, with so many tests, find in four of five cases.",
            self.count(Verdict::Better),
            self.count(Verdict::Worse),
            self.count(Verdict::Same),
            self.count(Verdict::Unknown)
        );
        text
    }
}

/// Four digits that say something.
#[must_use]
pub fn short(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 || (1e-3..1e5).contains(&size) {
        let digits = if size >= 100.0 {
            1
        } else if size >= 1.0 {
            3
        } else {
            5
        };
        format!("{value:.digits$}")
    } else {
        format!("{value:.3e}")
    }
}
