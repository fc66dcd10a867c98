//! Metric families with the labels of a scenario.
//!
//! A [`ScenarioMetric`] is one line: a definition and a function for its value. The page, the
//! documentation and the history in a database come from that line; labels are looked up by name.

use std::{borrow::Cow, collections::BTreeMap};

use metrics::{
    family::{Def, Family},
    label::sanitize,
};

use results::{
    energy::Scope,
    estimate::Estimate,
    model::{Entry, Model},
    repeats::configurations,
};

/// A metric with one value per scenario.
pub struct ScenarioMetric {
    pub def: &'static Def,
    /// `None` if the value is unknown.
    pub value: fn(&Entry) -> Option<f64>,
    /// True if the value is the energy divided by what the whole window delivered, or the inverse,
    /// also for energy of a part of the window. Such a row has the label `energy_coverage="part"`.
    pub divides_energy: bool,
}

/// Labels that identify a scenario.
pub const SCENARIO: &[&str] = &["scenario", "bitrate", "encoder", "run"];

/// Labels of the legacy Python exporter.
pub const LEGACY_SCENARIO: &[&str] = &[
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

/// The value of a label for a scenario.
#[must_use]
pub fn label<'a>(entry: &'a Entry, name: &str) -> Cow<'a, str> {
    let scenario = entry.scenario();
    match name {
        "scenario" => (&*scenario.name).into(),
        "bitrate" => (&*scenario.bitrate).into(),
        "encoder" => (&*scenario.encoder).into(),
        "run" => (&*entry.run.id).into(),
        "run_id" => format!("test_results_{}", entry.run.id).into(),
        "host" => sanitize(scenario.host.as_deref().or(entry.run.host.as_deref()).unwrap_or_default()).into(),
        "resolution" => (&*scenario.resolution).into(),
        "fps" => scenario.fps.or(scenario.avg_fps).map(|fps| fps.to_string()).unwrap_or_default().into(),
        "streams" => scenario.stream_count().unwrap_or(1).to_string().into(),
        "output_ladder" => (&*entry.derived.ladder).into(),
        "encoder_type" => {
            let gpu = ["nvenc", "qsv", "vaapi", "amf", "videotoolbox"];
            if gpu.iter().any(|kind| scenario.encoder.contains(kind)) { "gpu" } else { "cpu" }.into()
        }
        "preset" => (&*scenario.preset).into(),
        "variant" => entry.run.variant.as_str().into(),
        "container" => sanitize(scenario.container.as_deref().unwrap_or_default()).into(),
        "service" => "cost-analysis".into(),
        _ => "".into(),
    }
}

/// The values of all labels of a definition.
#[must_use]
pub fn labels<'a>(entry: &'a Entry, def: &Def) -> Vec<Cow<'a, str>> {
    def.labels.iter().map(|name| label(entry, name)).collect()
}

/// The family of a metric; values that are not finite are left out.
#[must_use]
pub fn family(model: &Model, metric: &ScenarioMetric) -> Family {
    let mut family = Family::new(metric.def);
    for entry in &model.entries {
        let Some(value) = (metric.value)(entry).filter(|value| value.is_finite()) else { continue };
        let labels = labels(entry, metric.def);
        let labels: Vec<&str> = labels.iter().map(|label| &**label).collect();
        let is_part = metric.divides_energy && !entry.derived.is_whole;
        family.push_with_extra(&labels, if is_part { &[("energy_coverage", "part")] } else { &[] }, value);
    }
    family
}

/// A family of any number of rows per scenario; the labels of a row follow those of the scenario.
pub fn family_of_rows(model: &Model, def: &'static Def, rows: impl Fn(&Entry, &mut dyn FnMut(&[&str], f64))) -> Family {
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

/// The mean over the repeats of a configuration and its 95 % interval.
pub struct MeanDefs {
    pub mean: &'static Def,
    /// Has the labels of the mean and `bound`: low, high.
    pub interval: &'static Def,
}

/// Defines a mean and its interval by labels, names and help texts.
macro_rules! mean_defs {
    ([$($label:literal),*], $mean:literal, $help:literal, $interval:literal, $interval_help:literal) => {{
        static MEAN: metrics::family::Def = metrics::family::Def::gauge($mean, &[$($label),*], $help);
        static INTERVAL: metrics::family::Def =
            metrics::family::Def::gauge($interval, &[$($label,)* "bound"], $interval_help);
        $crate::pages::scenario_metrics::MeanDefs { mean: &MEAN, interval: &INTERVAL }
    }};
}
pub(crate) use mean_defs;

/// The families of a mean over repeats, from the rows of each repeat. The labels of a row follow
/// those of the configuration, which are the first repeat's.
pub fn families_of_means(
    model: &Model,
    defs: &MeanDefs,
    rows: impl Fn(&Entry, &mut dyn FnMut(&[&str], f64)),
) -> [Family; 2] {
    let (mut means, mut intervals) = (Family::new(defs.mean), Family::new(defs.interval));
    for configuration in configurations(model).iter().filter(|configuration| configuration.is_repeated()) {
        let kinds = [Scope::Host, Scope::Container].map(|scope| configuration.energy_kind_in(scope));
        let mut all: BTreeMap<Vec<String>, Vec<f64>> = BTreeMap::new();
        for entry in &configuration.entries {
            rows(entry, &mut |own, value| {
                let own = own.iter().map(|label| (*label).to_owned()).collect();
                all.entry(own).or_default().extend(value.is_finite().then_some(value));
            });
        }
        for (own, values) in all {
            // Rows of energy begin with scope and source.
            let scope = [Scope::Host, Scope::Container]
                .into_iter()
                .find(|scope| own.first().is_some_and(|label| label == scope.as_str()));
            let source = own.get(1).map_or("", String::as_str);
            // As in reports, energy has a mean only if that of all repeats is of one kind.
            let kind = scope.and_then(|scope| kinds.iter().flatten().find(|kind| kind.scope == scope));
            if scope.is_some() && kind.is_none_or(|kind| !kind.is_from(source)) {
                continue;
            }
            let shared = labels(configuration.first(), defs.mean);
            let mut row: Vec<&str> = shared.iter().take(shared.len() - own.len()).map(|label| &**label).collect();
            row.extend(own.iter().map(String::as_str));
            let Some(estimate) = Estimate::of(&values) else { continue };
            means.push(&row, estimate.mean);
            if estimate.half_width.is_some() {
                let (low, high) = estimate.bounds();
                for (bound, value) in [("low", low), ("high", high)] {
                    row.push(bound);
                    intervals.push(&row, value);
                    row.pop();
                }
            }
        }
    }
    [means, intervals]
}
