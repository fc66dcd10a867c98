//! Compares a candidate run with a baseline run.
//!
//! Each configuration that both runs contain is compared in every metric by Welch's test, corrected
//! for the number of tests. The result includes the minimal detectable difference. As a gate, the
//! exit code says whether a metric became worse.

use std::collections::{BTreeMap, BTreeSet};

use cli::{
    colour::Meaning,
    number::{bit_rate_with_half_width, score_with_half_width, signed, with_unit_and_half_width},
    terminal::{Cell, Column, Table, View, printable},
};
use serde::Serialize;

use results::{
    energy::Scope,
    estimate::Estimate,
    model::Model,
    repeats::{Configuration, configurations},
};
use statistics::inference::{Welch, holm, relative_interval};
use units::provenance::Unmeasured;

pub mod by;
pub mod curves;

use curves::{Curve, Resource, curves, deltas};

/// A compared metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Energy per frame in joules
    Energy,
    /// Encoding time per second of media in seconds
    Time,
    /// Bit rate in bits per second of media
    Rate,
    /// VMAF
    Vmaf,
}

impl Metric {
    /// All metrics.
    pub const ALL: [Self; 4] = [Self::Energy, Self::Time, Self::Rate, Self::Vmaf];

    fn unit(self) -> &'static str {
        match self {
            Self::Energy => "J/frame",
            Self::Time => "s/s",
            Self::Rate => "bit/s",
            Self::Vmaf => "VMAF",
        }
    }

    fn values(self, configuration: &Configuration<'_>) -> Vec<f64> {
        match self {
            Self::Energy => configuration.energy_values(&|entry| entry.derived.joules_per(entry.derived.frames)),
            Self::Time => configuration.values(&|entry| {
                Some(entry.derived.seconds? / entry.derived.media_seconds.filter(|media| *media > 0.0)?)
            }),
            Self::Rate => configuration.values(&|entry| Resource::Rate.of(entry)),
            Self::Vmaf => configuration.scores(&|quality| quality.vmaf.as_ref()),
        }
    }

    fn higher_is_better(self) -> bool {
        self == Self::Vmaf
    }
}

/// Result of comparing one metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No significant difference.
    Same,
    /// The candidate is significantly better.
    Better,
    /// The candidate is significantly worse.
    Worse,
    /// Not comparable.
    Unknown,
}

/// One configuration and one metric.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Name in the baseline run.
    pub scenario: String,
    /// Name in the candidate run.
    #[serde(rename = "scenario_b")]
    pub candidate_scenario: String,
    /// The compared metric.
    pub metric: Metric,
    /// Unit of the means.
    pub unit: &'static str,
    /// Baseline mean and half the width of its 95 % interval.
    #[serde(rename = "a")]
    pub baseline: Option<(f64, Option<f64>)>,
    /// Candidate mean and half the width of its 95 % interval.
    #[serde(rename = "b")]
    pub candidate: Option<(f64, Option<f64>)>,
    /// Number of repeats in the baseline and in the candidate run.
    pub repeats: (usize, usize),
    /// Candidate minus baseline, in percent of the baseline.
    pub difference_percent: Option<f64>,
    /// 95 % interval of the difference in percent, by Fieller's method; absent when the baseline
    /// cannot be distinguished from zero.
    pub interval_percent: Option<(f64, f64)>,
    /// p-value of Welch's test.
    pub p: Option<f64>,
    /// p-value adjusted by Holm's method for the number of tests.
    pub p_adjusted: Option<f64>,
    /// Hedges' g.
    pub effect: Option<f64>,
    /// Minimal detectable difference in percent at 80 % power, for the number of tests.
    pub detectable_percent: Option<f64>,
    /// Result of the comparison.
    pub verdict: Verdict,
    /// Why the metric is not comparable.
    pub why: String,
    /// True when at least one run has the metric, but it is not comparable: the comparison is
    /// incomplete.
    pub incomplete: bool,
    #[serde(skip)]
    welch: Option<Welch>,
}

/// Bjøntegaard delta between a baseline curve and the corresponding candidate curve.
#[derive(Clone, Debug, Serialize)]
pub struct CurveDelta {
    /// Baseline encoder and preset.
    #[serde(rename = "a")]
    pub baseline: String,
    /// Candidate encoder and preset.
    #[serde(rename = "b")]
    pub candidate: String,
    /// Output resolutions and number of streams.
    pub ladder: String,
    /// Quality metric.
    pub quality: String,
    /// `BD-rate`, `BD-energy`, `BD-cost` or `BD-carbon`.
    pub measure: &'static str,
    /// Delta in percent, by PCHIP interpolation.
    pub percent: Option<f64>,
    /// Delta in percent, by Akima interpolation.
    pub akima_percent: Option<f64>,
    /// 95 % interval of the delta, by the variance of the repeats.
    pub interval_percent: Option<(f64, f64)>,
    /// Common quality range divided by the joint quality range.
    pub overlap: Option<f64>,
    /// Number of excluded points.
    #[serde(rename = "left_out")]
    pub excluded: usize,
    /// Why there is no delta.
    pub refused: Option<String>,
}

impl CurveDelta {
    /// The deltas of two curves, one per resource.
    #[must_use]
    pub fn of(baseline: &Curve<'_>, candidate: &Curve<'_>) -> Vec<Self> {
        let one = |(resource, result): (Resource, Result<statistics::bjontegaard::Delta, String>)| Self {
            baseline: baseline.label(),
            candidate: candidate.label(),
            ladder: baseline.ladder.clone(),
            quality: baseline.quality.clone(),
            measure: resource.measure(),
            percent: result.as_ref().ok().map(|delta| delta.pchip),
            akima_percent: result.as_ref().ok().map(|delta| delta.akima),
            interval_percent: result.as_ref().ok().and_then(|delta| delta.interval),
            overlap: result.as_ref().ok().map(|delta| delta.overlap),
            excluded: result.as_ref().map_or(0, |delta| delta.excluded),
            refused: result.err(),
        };
        deltas(baseline, candidate).into_iter().map(one).collect()
    }

    /// The delta as text, or why there is none.
    #[must_use]
    pub fn text(&self) -> String {
        match (&self.refused, self.percent, self.akima_percent) {
            (None, Some(percent), Some(akima)) => {
                let interval = self
                    .interval_percent
                    .map_or_else(String::new, |(low, high)| format!(" [{}, {}]", signed(low, 2), signed(high, 2)));
                let excluded =
                    if self.excluded > 0 { format!(", {} points excluded", self.excluded) } else { String::new() };
                format!(
                    "{} %{interval} (Akima {} %, {:.0} % overlap{excluded})",
                    signed(percent, 2),
                    signed(akima, 2),
                    self.overlap.unwrap_or_default() * 100.0
                )
            }
            (why, ..) => format!("refused: {}", why.as_deref().unwrap_or("no delta")),
        }
    }
}

/// One line for each reason why deltas were refused, with the measures and curves that it concerns.
#[must_use]
pub fn refusals(deltas: &[CurveDelta]) -> Vec<String> {
    let mut by_reason: BTreeMap<&str, (Vec<&str>, Vec<String>)> = BTreeMap::new();
    for delta in deltas {
        let Some(why) = &delta.refused else { continue };
        let (measures, pairs) = by_reason.entry(why.as_str()).or_default();
        if !measures.contains(&delta.measure) {
            measures.push(delta.measure);
        }
        let pair = format!("{} → {}", delta.baseline, delta.candidate);
        if !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    let line = |(why, (measures, pairs)): (&str, (Vec<&str>, Vec<String>))| {
        let more = match pairs.len() {
            0 | 1 => String::new(),
            2 => " and another pair".to_owned(),
            count => format!(" and {} other pairs", count - 1),
        };
        format!("no {}: {why} ({}{more})", measures.join(", "), pairs.first().map_or("", String::as_str))
    };
    by_reason.into_iter().map(line).collect()
}

/// Comparison of two runs.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// One row per configuration and metric.
    pub rows: Vec<Row>,
    /// Deltas of the quality curves.
    pub curves: Vec<CurveDelta>,
    /// Axes that have one value in the whole baseline run and another in the whole candidate run.
    pub changed: BTreeMap<String, (String, String)>,
    /// Remarks on the comparability of the runs.
    pub notes: Vec<String>,
    /// Smaller differences, in percent, are not reported as better or worse.
    pub threshold_percent: f64,
}

/// The axes of a configuration and their values.
fn axes(configuration: &Configuration<'_>) -> BTreeMap<String, String> {
    let scenario = configuration.first().scenario();
    match &scenario.axes {
        Some(axes) => (**axes).clone(),
        None => [
            ("encoder", scenario.encoder.clone()),
            ("preset", scenario.preset.clone()),
            ("bitrate", scenario.bitrate.clone()),
            ("resolution", configuration.first().derived.ladder.clone()),
            ("streams", scenario.stream_count().unwrap_or(1).to_string()),
            ("name", scenario.name.split(" #").next().unwrap_or_default().to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
    }
}

/// The axes with one value in all of `baseline`, one in all of `candidate`, and different values in
/// the two.
fn changed_axes(
    baseline: &[BTreeMap<String, String>],
    candidate: &[BTreeMap<String, String>],
) -> BTreeMap<String, (String, String)> {
    let only = |all: &[BTreeMap<String, String>], name: &str| -> Option<String> {
        let first = all.first()?.get(name).cloned().unwrap_or_default();
        all.iter().all(|axes| axes.get(name).map_or("", String::as_str) == first).then_some(first)
    };
    let names: BTreeSet<String> = baseline.iter().chain(candidate).flat_map(BTreeMap::keys).cloned().collect();
    let differs = |name: String| {
        // Encoder settings may differ between the runs; a different amount of work is a different
        // configuration.
        let work = ["width", "height", "frames_per_second", "streams", "outputs", "resolution"];
        if work.contains(&&*name) {
            return None;
        }
        let (before, after) = (only(baseline, &name)?, only(candidate, &name)?);
        (before != after).then_some((name, (before, after)))
    };
    names.into_iter().filter_map(differs).collect()
}

/// Compares two runs. Differences below the relative `threshold` are not reported as better or
/// worse.
#[must_use]
pub fn compare(baseline: &Model, candidate: &Model, metrics: &[Metric], threshold: f64) -> Comparison {
    compare_across(baseline, candidate, metrics, threshold, &[])
}

/// Compares two runs, or parts of one, that differ in the axes `under_test`: these do not prevent a
/// comparison.
fn compare_across(
    baseline: &Model,
    candidate: &Model,
    metrics: &[Metric],
    threshold: f64,
    under_test: &[&str],
) -> Comparison {
    let (baseline_configurations, candidate_configurations) = (configurations(baseline), configurations(candidate));
    let baseline_axes: Vec<_> = baseline_configurations.iter().map(axes).collect();
    let candidate_axes: Vec<_> = candidate_configurations.iter().map(axes).collect();
    let mut changed = changed_axes(&baseline_axes, &candidate_axes);
    for name in under_test {
        let first = |all: &[BTreeMap<String, String>]| all.iter().find_map(|axes| axes.get(*name).cloned());
        if let Some(values) = first(&baseline_axes).zip(first(&candidate_axes)) {
            changed.entry((*name).to_owned()).or_insert(values);
        }
    }
    let key = |axes: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        let unchanged =
            axes.iter().filter(|(name, _)| !changed.contains_key(*name) && !under_test.contains(&name.as_str()));
        unchanged.map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    let mut notes = Vec::new();
    let mut by_key: BTreeMap<_, &Configuration<'_>> = BTreeMap::new();
    for (axes, configuration) in candidate_axes.iter().zip(&candidate_configurations) {
        // Configurations with different sources are not comparable.
        if by_key.insert((key(axes), configuration.content_digest()), configuration).is_some() {
            notes
                .push(format!("{}: occurs more than once in the candidate; the last is compared", name(configuration)));
        }
    }
    let (mut rows, mut matched) = (Vec::new(), BTreeSet::new());
    for (configuration, axes) in baseline_configurations.iter().zip(&baseline_axes) {
        let own = (key(axes), configuration.content_digest());
        if let Some(other) = by_key.get(&own) {
            rows.extend(metrics.iter().map(|metric| row(configuration, other, *metric)));
            matched.insert(own);
        } else {
            let same_axes = by_key.keys().any(|(axes, _)| *axes == own.0);
            let why = if same_axes { "different sources" } else { "missing or failed in the candidate" };
            rows.extend(metrics.iter().map(|metric| unmatched_row(configuration, *metric, why)));
        }
    }
    if matched.len() < by_key.len() {
        let missing = by_key.len() - matched.len();
        notes.push(format!("{missing} configurations of the candidate are not in the baseline"));
    }
    judge(&mut rows, threshold);
    for (model, which) in [(baseline, "baseline"), (candidate, "candidate")] {
        let derived = model.entries.iter().map(|entry| &entry.derived);
        let sentences = Unmeasured::sentences(derived.map(|derived| (&*derived.source, derived.model_interval)));
        notes.extend(sentences.into_iter().map(|sentence| format!("{which}: {sentence}")));
    }
    let host = |model: &Model| model.entries.first().and_then(|entry| entry.run.host.clone());
    if host(baseline) != host(candidate) {
        notes.push("the runs are from different hosts: differences may be due to the hardware".to_owned());
    }
    let says_idle = |model: &Model| {
        let mut containers = model.entries.iter().filter(|entry| entry.derived.scope == Some(Scope::Container));
        containers.next().map(|first| first.derived.idle_known.is_some())
    };
    if let (Some(before), Some(after)) = (says_idle(baseline), says_idle(candidate))
        && before != after
    {
        let which = if before { "candidate" } else { "baseline" };
        notes.push(format!("the file of the {which} does not say whether the idle power was known"));
    }
    let curves = curve_deltas(baseline, candidate, &changed);
    Comparison { rows, curves, changed, notes, threshold_percent: threshold * 100.0 }
}

/// Deltas of all pairs of curves with the same encoder, preset and outputs, except for axes that
/// changed.
fn curve_deltas(baseline: &Model, candidate: &Model, changed: &BTreeMap<String, (String, String)>) -> Vec<CurveDelta> {
    let candidate_curves = curves(candidate);
    let same = |axis: &str, a: &str, b: &str| changed.contains_key(axis) || a == b;
    let mut all = Vec::new();
    for one in &curves(baseline) {
        let corresponding = candidate_curves.iter().filter(|other| {
            same("encoder", one.encoder, other.encoder)
                && same("preset", one.preset, other.preset)
                && one.ladder == other.ladder
        });
        all.extend(corresponding.flat_map(|other| CurveDelta::of(one, other)));
    }
    all
}

fn name(configuration: &Configuration<'_>) -> String {
    configuration.first().scenario().name.clone()
}

fn mean_with_half_width(values: &[f64]) -> Option<(f64, Option<f64>)> {
    Estimate::of(values).map(|estimate| (estimate.mean, estimate.half_width))
}

/// A row for a configuration without a counterpart in the candidate run.
fn unmatched_row(configuration: &Configuration<'_>, metric: Metric, why: &str) -> Row {
    let values = metric.values(configuration);
    Row {
        scenario: name(configuration),
        candidate_scenario: name(configuration),
        metric,
        unit: metric.unit(),
        baseline: mean_with_half_width(&values),
        candidate: None,
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

/// Compares one metric of a configuration.
fn row(baseline: &Configuration<'_>, candidate: &Configuration<'_>, metric: Metric) -> Row {
    let (before, after) = (metric.values(baseline), metric.values(candidate));
    let shared_score = metric == Metric::Vmaf && baseline.shares_scores() && candidate.shares_scores();
    let obstacle = obstacle(baseline, candidate, metric, &before, &after, shared_score);
    let welch = if obstacle.is_none() { Welch::of(&before, &after) } else { None };
    let relative = welch.and_then(|_| relative_interval(&before, &after));
    let base = mean_with_half_width(&before).map(|(mean, _)| mean).filter(|mean| *mean != 0.0);
    let percent = |value: f64| base.map(|base| value / base * 100.0);
    Row {
        scenario: name(baseline),
        candidate_scenario: name(candidate),
        metric,
        unit: metric.unit(),
        baseline: mean_with_half_width(&before),
        candidate: mean_with_half_width(&after),
        repeats: (before.len(), after.len()),
        difference_percent: welch.and_then(|welch| percent(welch.difference)),
        interval_percent: relative.map(|(low, high)| (low * 100.0, high * 100.0)),
        p: welch.map(|welch| welch.p),
        p_adjusted: None,
        effect: welch.and_then(|welch| welch.effect_size),
        detectable_percent: None,
        verdict: Verdict::Unknown,
        // Nothing is missing when neither run has the metric, or when both have the same single
        // score.
        incomplete: obstacle.is_some() && !(before.is_empty() && after.is_empty() || shared_score && before == after),
        why: obstacle.unwrap_or_default(),
        welch,
    }
}

/// Why a metric of a configuration cannot be tested; `None` when it can.
fn obstacle(
    baseline: &Configuration<'_>,
    candidate: &Configuration<'_>,
    metric: Metric,
    before: &[f64],
    after: &[f64],
    shared_score: bool,
) -> Option<String> {
    let scored_by = |configuration: &Configuration<'_>| {
        configuration.first().scenario().quality.vmaf.as_ref().map(|score| (score.model.clone(), score.pooling.clone()))
    };
    match (baseline.energy_source(), candidate.energy_source()) {
        (Some(a), Some(b)) if metric == Metric::Energy && a != b => {
            return Some(format!("energy from different sources: {a} and {b}"));
        }
        _ => {}
    }
    if metric == Metric::Energy
        && let (Some(a), Some(b)) = (container_idle_known(baseline), container_idle_known(candidate))
        && a != b
    {
        let why = "the idle power was known in one run only: the energy of the containers of the other includes a part \
                   of the idle energy";
        return Some(why.to_owned());
    }
    let why = if before.is_empty() || after.is_empty() {
        "missing in at least one of the runs"
    } else if metric == Metric::Vmaf && scored_by(baseline) != scored_by(candidate) {
        "scores of different VMAF models"
    } else if shared_score {
        "scored once for all repeats, so the variance is unknown; --mode file scores each repeat"
    } else if before.len() < 2 || after.len() < 2 {
        "a single measurement has no variance; use --repeats 3 or more"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// Whether the idle power was known for the energy of the containers; `None` for energy of the
/// host, or if the file does not say.
fn container_idle_known(configuration: &Configuration<'_>) -> Option<bool> {
    let derived = &configuration.first().derived;
    derived.idle_known.filter(|_| derived.scope == Some(Scope::Container))
}

/// Adjusts the p-values for the number of tests and sets the verdicts. Samples without variance are
/// not tested, so their p-values need no adjustment.
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
        let base = row.baseline.map(|(mean, _)| mean).filter(|mean| *mean != 0.0);
        row.detectable_percent = base.map(|base| (welch.minimal_detectable_difference(count) / base * 100.0).abs());
        // A change from zero exceeds any relative threshold.
        let above_threshold = row.difference_percent.is_none_or(|percent| percent.abs() > threshold * 100.0);
        let significant = p < 0.05 && above_threshold && welch.difference != 0.0;
        let better = (welch.difference > 0.0) == row.metric.higher_is_better();
        row.verdict = match (significant, better) {
            (false, _) => Verdict::Same,
            (true, true) => Verdict::Better,
            (true, false) => Verdict::Worse,
        };
    }
}

impl Verdict {
    fn cell(self) -> Cell {
        match self {
            Self::Same => Cell::coloured("no significant difference", Meaning::Quiet),
            Self::Better => Cell::coloured("BETTER", Meaning::Better),
            Self::Worse => Cell::coloured("WORSE", Meaning::Worse),
            Self::Unknown => Cell::from(""),
        }
    }
}

/// Columns of the table of a configuration.
fn table_columns() -> [Column; 9] {
    [
        Column::left("metric"),
        Column::left("baseline → candidate"),
        Column::right("difference"),
        Column::left("interval (%)"),
        Column::right("p"),
        Column::right("g"),
        Column::right("MDD"),
        Column::left("result"),
        Column::prose(""),
    ]
}

impl Row {
    /// The metric, the means, the difference and the verdict.
    fn cells(&self) -> [Cell; 9] {
        let metric = format!("{:?}", self.metric).to_lowercase();
        let (Some(before), Some(after), Some(_)) = (self.baseline, self.candidate, self.welch) else {
            let empty = || Cell::from("");
            let why = Cell::coloured(&self.why, Meaning::Warning);
            return [metric.into(), "–".into(), empty(), empty(), empty(), empty(), empty(), empty(), why];
        };
        let difference = self.difference_percent.map_or_else(
            || "from zero".to_owned(),
            |part| {
                // More digits for small differences, so that none is shown as zero.
                let digits = if part != 0.0 && part.abs() < 0.01 { 5 } else { 2 };
                format!("{} %", signed(part, digits))
            },
        );
        let means = format!("{} → {}", self.mean_text(before), self.mean_text(after));
        let [interval, p, effect, detectable, remark] = self.significance();
        [
            metric.into(),
            means.into(),
            difference.into(),
            interval.into(),
            p.into(),
            effect.into(),
            detectable.into(),
            self.verdict.cell(),
            remark.into(),
        ]
    }

    /// Interval, p-value, effect size and minimal detectable difference, or the remark that nothing
    /// varies.
    fn significance(&self) -> [String; 5] {
        let (Some(effect), Some(p)) = (self.effect, self.p_adjusted) else {
            return [String::new(), String::new(), String::new(), String::new(), "no variance".to_owned()];
        };
        // Without a baseline that differs from zero there are no percentages.
        let interval = self.interval_percent.map_or_else(
            || "[unbounded]".to_owned(),
            |(low, high)| format!("[{}, {}]", signed(low, 2), signed(high, 2)),
        );
        let p = if p < 0.0001 { "< 0.0001".to_owned() } else { format!("{p:.4}") };
        let detectable = self.detectable_percent.map_or_else(|| "–".to_owned(), |part| format!("{part:.2} %"));
        [interval, p, signed(effect, 2), detectable, String::new()]
    }

    /// A mean of the row with its interval and unit.
    #[must_use]
    pub fn mean_text(&self, (mean, half_width): (f64, Option<f64>)) -> String {
        match self.metric {
            Metric::Rate => bit_rate_with_half_width(mean, half_width),
            Metric::Vmaf => format!("{} {}", score_with_half_width(mean, half_width), self.unit),
            Metric::Energy | Metric::Time => with_unit_and_half_width(mean, half_width, self.unit),
        }
    }
}

impl Comparison {
    /// Number of rows with this verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|row| row.verdict == verdict).count()
    }

    /// True when a metric that one of the runs has could not be compared.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.rows.iter().any(|row| row.incomplete)
    }

    /// The comparison as a text table for a file or a pipe.
    #[must_use]
    pub fn table(&self) -> String {
        self.text(View::PLAIN)
    }

    /// The comparison as a text table.
    #[must_use]
    pub fn text(&self, view: View) -> String {
        let mut text = String::new();
        for note in &self.notes {
            text += &view.fit(&format!("{}: {note}\n", view.paint(Meaning::Warning, "note")));
        }
        for (axis, (before, after)) in &self.changed {
            text += &view.fit(&format!("changed: {axis}, {before:?} to {after:?}\n"));
        }
        for rows in self.rows.chunk_by(|a, b| a.scenario == b.scenario) {
            let (name, other) = (&rows[0].scenario, &rows[0].candidate_scenario);
            let other = if other == name { String::new() } else { format!("  →  {other}") };
            text += &view.fit(&format!("\n{}\n", view.paint(Meaning::Heading, &printable(&format!("{name}{other}")))));
            let mut table = Table::new(table_columns());
            for row in rows {
                table.push(row.cells());
            }
            text += &table.text(view);
        }
        if !self.curves.is_empty() {
            text.push('\n');
        }
        for delta in self.curves.iter().filter(|delta| delta.refused.is_none()) {
            let (baseline, candidate, quality) = (&delta.baseline, &delta.candidate, &delta.quality);
            let line = format!("{:<10} {baseline} → {candidate}, {quality}: {}\n", delta.measure, delta.text());
            text += &view.fit(&line);
        }
        for line in refusals(&self.curves) {
            text += &view.fit(&format!("{line}\n"));
        }
        text += &view.fit(&format!(
            "\n{} better, {} worse, {} without a significant difference, {} unknown. p: Welch's test, adjusted by Holm's \
             method for all tests of the table; intervals: 95 %, not adjusted; g: Hedges' effect size; MDD: minimal detectable difference \
             at 80 % power.\n",
            self.count(Verdict::Better),
            self.count(Verdict::Worse),
            self.count(Verdict::Same),
            self.count(Verdict::Unknown)
        ));
        text
    }
}
