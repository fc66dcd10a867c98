//! Families that are one number of a scenario each: a definition and how its value is found. Labels are found by their names, so a metric is one line, and the
//! page, the documentation and the history written to a database come from that line.

use std::{borrow::Cow, collections::BTreeMap};

use exporter::{
    family::{Def, Family},
    label::clean,
};

use crate::{
    cells::cells,
    figures::{Entry, Model},
    statistics::{inference::Interval, mean},
};

/// A metric of a scenario.
pub struct Column {
    /// What it is.
    pub def: &'static Def,
    /// Its value; absent when unknown.
    pub value: fn(&Entry) -> Option<f64>,
}

/// What tells a scenario's series apart.
pub const SCENARIO: &[&str] = &["scenario", "bitrate", "encoder", "run"];

/// The labels of the Python exporter beside those.
pub const WIDE: &[&str] = &[
    "scenario",
    "bitrate",
    "encoder",
    "run",
    "run_id",
    "resolution",
    "fps",
    "streams",
    "output_ladder",
    "encoder_type",
    "preset",
];

/// A label of a scenario.
#[must_use]
pub fn label<'a>(entry: &'a Entry, name: &str) -> Cow<'a, str> {
    let scenario = entry.scenario();
    match name {
        "scenario" => (&*scenario.name).into(),
        "bitrate" => (&*scenario.bitrate).into(),
        "encoder" => (&*scenario.encoder).into(),
        "run" => (&*entry.run.id).into(),
        "run_id" => format!("test_results_{}", entry.run.id).into(),
        "host" => clean(scenario.host.as_deref().or(entry.run.host.as_deref()).unwrap_or_default()).into(),
        "resolution" => (&*scenario.resolution).into(),
        "fps" => scenario.fps.or(scenario.avg_fps).map(|fps| fps.to_string()).unwrap_or_default().into(),
        "streams" => scenario.stream_count().unwrap_or(1).to_string().into(),
        "output_ladder" => (&*entry.figures.ladder).into(),
        "encoder_type" => {
            let gpu = ["nvenc", "qsv", "vaapi", "amf", "videotoolbox"];
            if gpu.iter().any(|kind| scenario.encoder.contains(kind)) { "gpu" } else { "cpu" }.into()
        }
        "preset" => (&*scenario.preset).into(),
        "variant" => entry.run.variant.as_str().into(),
        "container" => clean(scenario.container.as_deref().unwrap_or_default()).into(),
        "service" => "cost-analysis".into(),
        _ => "".into(),
    }
}

/// All labels of a definition.
#[must_use]
pub fn labels<'a>(entry: &'a Entry, def: &Def) -> Vec<Cow<'a, str>> {
    def.labels.iter().map(|name| label(entry, name)).collect()
}

/// One column as a family. What is not finite is not known.
#[must_use]
pub fn family(model: &Model, column: &Column) -> Family {
    let mut family = Family::new(column.def);
    for entry in &model.entries {
        if let Some(value) = (column.value)(entry).filter(|value| value.is_finite()) {
            let labels = labels(entry, column.def);
            let labels: Vec<&str> = labels.iter().map(|label| &**label).collect();
            family.push(&labels, value);
        }
    }
    family
}

/// A mean over the repeats of a configuration, and the 95 % interval about it. The second has one label more than the first, `bound`.
pub struct Across {
    /// The mean.
    pub mean: &'static Def,
    /// `bound="low"` and `bound="high"`.
    pub interval: &'static Def,
}

/// A mean and its interval by their names, labels and help; the interval's labels are the mean's with `bound` behind them.
macro_rules! across {
    ([$($label:literal),*], $mean:literal, $help:literal, $interval:literal, $of:literal) => {{
        static MEAN: exporter::family::Def = exporter::family::Def::gauge($mean, &[$($label),*], $help);
        static INTERVAL: exporter::family::Def = exporter::family::Def::gauge($interval, &[$($label,)* "bound"], $of);
        $crate::columns::Across { mean: &MEAN, interval: &INTERVAL }
    }};
}
pub(crate) use across;

/// The families of such a mean, from what `rows` has of each repeat: labels of their own come behind the configuration's, which are its first repeat's.
pub fn repeated(model: &Model, defs: &Across, rows: impl Fn(&Entry, &mut dyn FnMut(&[&str], f64))) -> [Family; 2] {
    let (mut means, mut intervals) = (Family::new(defs.mean), Family::new(defs.interval));
    for cell in cells(model).iter().filter(|cell| cell.is_repeated()) {
        let mut all: BTreeMap<Vec<String>, Vec<f64>> = BTreeMap::new();
        for entry in &cell.entries {
            rows(entry, &mut |own, value| {
                let own = own.iter().map(|label| (*label).to_owned()).collect();
                all.entry(own).or_default().extend(value.is_finite().then_some(value));
            });
        }
        for (own, values) in all {
            let shared = labels(cell.first(), defs.mean);
            let mut words: Vec<&str> = shared.iter().take(shared.len() - own.len()).map(|label| &**label).collect();
            words.extend(own.iter().map(String::as_str));
            if let Some(mean) = mean(&values) {
                means.push(&words, mean);
            }
            if let Some(interval) = Interval::of(&values) {
                let (low, high) = interval.ends();
                for (bound, value) in [("low", low), ("high", high)] {
                    words.push(bound);
                    intervals.push(&words, value);
                    words.pop();
                }
            }
        }
    }
    [means, intervals]
}

/// A family whose rows have labels of their own beside the scenario's; those come last in its definition.
pub fn spread(model: &Model, def: &'static Def, rows: impl Fn(&Entry, &mut dyn FnMut(&[&str], f64))) -> Family {
    let mut family = Family::new(def);
    for entry in &model.entries {
        rows(entry, &mut |own, value| {
            if !value.is_finite() {
                return;
            }
            let shared = def.labels.len().saturating_sub(own.len());
            let mut labels = labels(entry, def);
            labels.truncate(shared);
            let labels: Vec<&str> = labels.iter().map(|label| &**label).chain(own.iter().copied()).collect();
            family.push(&labels, value);
        });
    }
    family
}
