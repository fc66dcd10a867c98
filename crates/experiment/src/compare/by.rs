//! Compares the configurations of one run by a dimension, such as the encoder: its first value is
//! the baseline of the others. Also says in one sentence what a comparison found.

use std::{collections::BTreeSet, fmt::Write as _};

use cli::{number::signed, suggest::nearest, terminal::printable};
use serde::Serialize;

use results::{
    model::Model,
    repeats::{Configuration, configurations},
};

use super::{Comparison, CurveDelta, Metric, Row, Verdict, axes, compare_across};

/// The comparison of one value of the dimension with the baseline.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// The value.
    pub value: String,
    /// What was found, in one sentence.
    pub verdict: String,
    /// The Bjøntegaard deltas, each as a sentence.
    pub deltas: Vec<String>,
    /// The comparison.
    pub comparison: Comparison,
}

/// The comparison of all values of a dimension.
#[derive(Clone, Debug, Serialize)]
pub struct Grouping {
    /// The dimension.
    pub by: String,
    /// Its value in the baseline.
    pub baseline: String,
    /// What was found, in one line.
    pub verdict: String,
    /// The other values.
    pub groups: Vec<Group>,
}

/// The axes of a dimension: one, or several that belong together.
fn axis_names(by: &str) -> Vec<&str> {
    match by {
        "resolution" => vec!["width", "height", "resolution"],
        "rate" => vec!["bitrate", "rate_control"],
        "fps" => vec!["frames_per_second"],
        axis => vec![axis],
    }
}

/// The value of a configuration in a dimension; `None` if it has none of its axes.
fn value(configuration: &Configuration<'_>, names: &[&str]) -> Option<String> {
    let axes = axes(configuration);
    let values: Vec<&String> = names.iter().filter_map(|name| axes.get(*name)).collect();
    let present = !values.is_empty();
    let text: Vec<&str> = values.into_iter().map(String::as_str).filter(|value| !value.is_empty()).collect();
    present.then(|| if text.is_empty() { "default".to_owned() } else { printable(&text.join("x")) })
}

/// Compares the configurations of a model by a dimension, in the order of its values in the file.
///
/// # Errors
/// When the configurations do not have the dimension, or all have the same value.
pub fn compare_by(model: &Model, by: &str, metrics: &[Metric], threshold: f64) -> Result<Grouping, String> {
    let (names, all) = (axis_names(by), configurations(model));
    let mut groups: Vec<(String, Model)> = Vec::new();
    for configuration in &all {
        let Some(value) = value(configuration, &names) else { continue };
        let entries = configuration.entries.iter().map(|entry| (*entry).clone());
        match groups.iter_mut().find(|(known, _)| *known == value) {
            Some((_, model)) => model.entries.extend(entries),
            None => groups.push((value, Model { entries: entries.collect() })),
        }
    }
    let Some(((baseline, base), others)) = groups.split_first() else { return Err(unknown_dimension(by, &all)) };
    if others.is_empty() {
        return Err(format!("all configurations have the {by} {baseline}: there is nothing to compare"));
    }
    let group = |(value, model): &(String, Model)| {
        let comparison = compare_across(base, model, metrics, threshold, &names);
        let deltas = comparison.curves.iter().filter_map(|delta| sentence(delta, &delta.baseline, &delta.candidate));
        Group {
            value: value.clone(),
            verdict: verdict(&comparison, baseline, value, &names),
            deltas: deltas.collect(),
            comparison,
        }
    };
    let groups: Vec<Group> = others.iter().map(group).collect();
    let verdicts: Vec<&str> = groups.iter().map(|group| &*group.verdict).collect();
    Ok(Grouping { by: by.to_owned(), baseline: baseline.clone(), verdict: verdicts.join("; "), groups })
}

fn unknown_dimension(by: &str, all: &[Configuration<'_>]) -> String {
    let known: BTreeSet<String> = all.iter().flat_map(|configuration| axes(configuration).into_keys()).collect();
    let hint = nearest(by, known.iter().map(String::as_str)).map(|near| format!("; did you mean {near}?"));
    let known = known.iter().cloned().collect::<Vec<_>>().join(", ");
    format!("no configuration has the dimension {by:?}{}; there are: {known}", hint.unwrap_or_default())
}

impl Grouping {
    /// True when no metric of any group could be compared.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let mut rows = self.groups.iter().flat_map(|group| &group.comparison.rows);
        let has_delta = self.groups.iter().any(|group| !group.deltas.is_empty());
        !has_delta && rows.all(|row| row.verdict == Verdict::Unknown)
    }

    /// The comparison as text: the verdict in one line, then the Bjøntegaard deltas as sentences;
    /// with `details` the tables of all groups too.
    #[must_use]
    pub fn text(&self, details: bool) -> String {
        let mut text = format!("By {}: {}.\n", self.by, self.verdict);
        for delta in self.groups.iter().flat_map(|group| &group.deltas) {
            let _ = writeln!(text, "  {delta}");
        }
        for group in self.groups.iter().filter(|_| details) {
            let _ = write!(text, "\n{}: {} → {}\n{}", self.by, self.baseline, group.value, group.comparison.table());
        }
        text
    }
}

/// What a comparison found, in one sentence: the energy at equal quality if both have curves, else
/// the first metric that was tested. `names` are the axes that are compared.
fn verdict(comparison: &Comparison, baseline: &str, candidate: &str, names: &[&str]) -> String {
    let found = curve_verdict(comparison, baseline, candidate)
        .or_else(|| row_verdict(comparison, baseline, candidate))
        .unwrap_or_else(|| {
            let why = comparison.rows.iter().map(|row| &*row.why).find(|why| !why.is_empty());
            format!("{candidate} and {baseline} cannot be compared: {}", why.unwrap_or("they have nothing in common"))
        });
    // An axis that only one of both has is no change of its value.
    let is_known = |(before, after): &(String, String)| !before.is_empty() && !after.is_empty();
    let others = comparison.changed.iter().filter(|(axis, values)| !names.contains(&axis.as_str()) && is_known(values));
    let also: Vec<String> =
        others.map(|(axis, (before, after))| format!("{axis} {after} instead of {before}")).collect();
    printable(&if also.is_empty() { found } else { format!("{found}, with {}", also.join(" and ")) })
}

/// The same for two runs, with the values of what changed between them as their names.
#[must_use]
pub fn verdict_of_runs(comparison: &Comparison) -> String {
    let mut changed = comparison.changed.iter();
    match (changed.next(), changed.next()) {
        (Some((axis, (before, after))), None) if !before.is_empty() && !after.is_empty() => {
            verdict(comparison, before, after, &[axis.as_str()])
        }
        _ => verdict(comparison, "the baseline", "the candidate", &[]),
    }
}

/// The energy at equal quality.
fn curve_verdict(comparison: &Comparison, baseline: &str, candidate: &str) -> Option<String> {
    let has_energy =
        |delta: &&CurveDelta| delta.measure == "BD-energy" && delta.percent.is_some() && delta.refused.is_none();
    let deltas: Vec<&CurveDelta> = comparison.curves.iter().filter(has_energy).collect();
    match deltas.as_slice() {
        [] => None,
        [one] => sentence(one, baseline, candidate),
        many => {
            let differing = many.iter().filter(|delta| differs(delta));
            let percents: Vec<f64> = differing.filter_map(|delta| delta.percent).collect();
            let (quality, count) = (metric_name(many.first()?), many.len());
            let subject = format!("for the same {quality} the energy use of {candidate}");
            Some(if percents.is_empty() {
                format!("{subject} does not differ significantly from that of {baseline}, in {count} pairs of curves")
            } else {
                let part = if percents.len() == count { String::new() } else { format!("{} of ", percents.len()) };
                format!("{subject} is {} than that of {baseline}, in {part}{count} pairs of curves", range(&percents))
            })
        }
    }
}

/// The first metric that was tested.
fn row_verdict(comparison: &Comparison, baseline: &str, candidate: &str) -> Option<String> {
    let tested = |metric: Metric| -> Vec<&Row> {
        let rows = comparison.rows.iter().filter(|row| row.metric == metric && row.verdict != Verdict::Unknown);
        rows.collect()
    };
    let (metric, rows) =
        Metric::ALL.map(|metric| (metric, tested(metric))).into_iter().find(|(_, rows)| !rows.is_empty())?;
    let noun = match metric {
        Metric::Energy => "energy per frame",
        Metric::Time => "encoding time",
        Metric::Rate => "bit rate",
        Metric::Vmaf => "VMAF",
    };
    let differing: Vec<&Row> = rows.iter().copied().filter(|row| row.verdict != Verdict::Same).collect();
    let percents: Vec<f64> = differing.iter().filter_map(|row| row.difference_percent).collect();
    let count = if rows.len() == 1 { "1 configuration".to_owned() } else { format!("{} configurations", rows.len()) };
    Some(if differing.is_empty() {
        format!("the {noun} of {candidate} does not differ significantly from that of {baseline}, in {count}")
    } else if percents.is_empty() {
        format!("the {noun} of {candidate} differs from that of {baseline}, which is zero, in {count}")
    } else {
        let (part, range) = (differing.len(), range(&percents));
        format!("the {noun} of {candidate} is {range} than that of {baseline} in {part} of {count}")
    })
}

/// Differences in percent as text: `80 % to 120 % higher`.
fn range(percents: &[f64]) -> String {
    let low = percents.iter().copied().fold(f64::INFINITY, f64::min);
    let high = percents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (least, most) = if high < 0.0 { (high, low) } else { (low, high) };
    let direction = |percent: f64| if percent < 0.0 { "lower" } else { "higher" };
    let (first, last) = (percent(least), percent(most));
    match (first == last, direction(least) == direction(most)) {
        (true, true) => format!("{last} {}", direction(most)),
        (_, true) => format!("{first} to {last} {}", direction(most)),
        (_, false) => format!("{first} {} to {last} {}", direction(least), direction(most)),
    }
}

/// The magnitude of a percentage.
fn percent(value: f64) -> String {
    let size = value.abs();
    // More digits for small differences, so that none is shown as zero.
    let digits = if size < 0.1 { 3 } else { usize::from(size < 10.0) };
    format!("{size:.digits$} %")
}

/// The quality metric of a delta without its model.
fn metric_name(delta: &CurveDelta) -> &str {
    delta.quality.split(' ').next().unwrap_or_default()
}

/// False if the interval of a delta contains zero.
fn differs(delta: &CurveDelta) -> bool {
    delta.interval_percent.is_none_or(|(low, high)| low > 0.0 || high < 0.0)
}

/// A Bjøntegaard delta as a sentence; `None` if it was refused.
fn sentence(delta: &CurveDelta, baseline: &str, candidate: &str) -> Option<String> {
    let value = delta.percent.filter(|_| delta.refused.is_none())?;
    let noun = match delta.measure {
        "BD-rate" => "bit rate",
        "BD-energy" => "energy use",
        "BD-cost" => "cost",
        "BD-carbon" => "carbon footprint",
        other => other,
    };
    let interval = match delta.interval_percent {
        Some((low, high)) => format!("95 %: {} % to {} %", signed(low, 1), signed(high, 1)),
        None => "without an interval".to_owned(),
    };
    let subject = format!("for the same {} the {noun} of {candidate}", metric_name(delta));
    Some(if differs(delta) {
        format!("{subject} is {} than that of {baseline} ({interval})", range(&[value]))
    } else {
        let value = signed(value, 1);
        format!("{subject} does not differ significantly from that of {baseline} ({value} %, {interval})")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(measure: &'static str, percent: f64, interval: Option<(f64, f64)>) -> CurveDelta {
        CurveDelta {
            baseline: "libx264 fast".to_owned(),
            candidate: "libx265 fast".to_owned(),
            ladder: "640x360".to_owned(),
            quality: "VMAF vmaf_v0.6.1 mean".to_owned(),
            measure,
            percent: Some(percent),
            akima_percent: Some(percent),
            interval_percent: interval,
            overlap: Some(1.0),
            excluded: 0,
            refused: None,
        }
    }

    #[test]
    fn deltas_are_sentences() {
        let of = |delta: &CurveDelta| sentence(delta, &delta.baseline, &delta.candidate).unwrap();
        assert_eq!(
            of(&delta("BD-rate", -38.4, Some((-41.0, -35.5)))),
            "for the same VMAF the bit rate of libx265 fast is 38 % lower than that of libx264 fast (95 %: -41.0 % to -35.5 %)"
        );
        assert!(of(&delta("BD-energy", 1.2, Some((-0.5, 3.0)))).contains("does not differ significantly"));
        assert!(of(&delta("BD-energy", -0.02, Some((-0.5, 0.5)))).contains("(0.0 %, 95 %: -0.5 % to +0.5 %)"));
        assert!(of(&delta("BD-energy", 120.0, None)).contains("is 120 % higher"));
        let refused =
            CurveDelta { refused: Some("two points".to_owned()), percent: None, ..delta("BD-rate", 0.0, None) };
        assert_eq!(sentence(&refused, "a", "b"), None);
    }

    #[test]
    fn ranges_have_one_direction_or_both() {
        assert_eq!(range(&[80.0, 120.0]), "80 % to 120 % higher");
        assert_eq!(range(&[-41.0, -35.0]), "35 % to 41 % lower");
        assert_eq!(range(&[-3.0, 12.0]), "3.0 % lower to 12 % higher");
        assert_eq!(range(&[5.0]), "5.0 % higher");
        assert_eq!(range(&[-0.02]), "0.020 % lower");
    }
}
