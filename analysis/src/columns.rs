//! Families that are one number of a scenario each: a definition and how its value is found. Labels are found by their names, so a metric is one line, and the
//! page, the documentation and the history written to a database come from that line.

use std::borrow::Cow;

use exporter::{
    family::{Def, Family},
    label::clean,
};

use crate::figures::{Entry, Model};

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
