//! Metrics of port 9503: picture quality, and quality per joule.

use std::collections::BTreeMap;

use cli::program;
use metrics::{
    family::{Def, Family},
    label::sanitize,
    process,
};

use crate::{
    curves::{self, CurveKey, CurveRepeats},
    pages::scenario_metrics::{self, MeanDefs, SCENARIO, ScenarioMetric, families_of_means, family_of_rows, mean_defs},
    qoe::{qoe_score, quality_value},
};
use results::{
    convert::float,
    derived::EnergyClass,
    model::{Entry, Model},
    run::{Quality, Score},
};

const SCORED: &[&str] = &["scenario", "bitrate", "encoder", "run", "model", "version", "pooling"];

static VMAF: Def = Def::gauge(
    "wattcast_quality_vmaf_score",
    SCORED,
    "VMAF of a scenario, 0 to 100 (to 110 for the newest models), with the model, the library \
     version and the pooling of frames. Scores of different models are not comparable.",
);
static PSNR: Def = Def::gauge("wattcast_quality_psnr_decibels", SCORED, "PSNR of a scenario in dB.");
static SSIM: Def = Def::gauge("wattcast_quality_ssim_score", SCORED, "SSIM of a scenario, 0 to 1.");
static SCORE: Def = Def::gauge(
    "wattcast_qoe_score",
    &["scenario", "bitrate", "encoder", "run", "made_of"],
    "Quality of experience from 1 (bad) to 5 (excellent): 1 + 4 · picture · smoothness, see \
     docs/qoe.md. A computed indicator, not a mean opinion score. made_of: inputs of the score: \
     vmaf, psnr, drops; file for a score taken from the result file.",
);
static COMPONENT: Def = Def::gauge(
    "wattcast_qoe_component_ratio",
    &["scenario", "bitrate", "encoder", "run", "component"],
    "Components of the quality of experience, 0 to 1: picture, smoothness.",
);
static EQUAL_QUALITY_ENERGY: Def = Def::gauge(
    "wattcast_quality_equal_energy_joules",
    &["run", "encoder", "preset", "output_ladder", "streams", "vmaf"],
    "Energy per second of media at a given VMAF in joules, by a monotone curve through the \
     scenarios of a run that differ in bitrate only; absent outside the measured range of VMAF.",
);
static EQUAL_QUALITY_INTERVAL: Def = Def::gauge(
    "wattcast_quality_equal_energy_interval_joules",
    &["run", "encoder", "preset", "output_ladder", "streams", "vmaf", "bound"],
    "95 % interval of that energy in joules, by the variance of the repeats and Student's t. bound: \
     low, high. Absent where a point has a single repeat.",
);
static MEAN_VMAF: MeanDefs = mean_defs!(
    ["scenario", "bitrate", "encoder", "run", "model", "pooling"],
    "wattcast_cell_vmaf_score",
    "Mean VMAF of a configuration over its repeats, 0 to 100.",
    "wattcast_cell_vmaf_interval_score",
    "95 % interval (Student) of that mean: the spread of the repeats, not the accuracy of the \
     model. bound: low, high."
);
static POINTS: Def = Def::gauge(
    "wattcast_quality_curve_points",
    &["run", "encoder", "preset", "output_ladder", "streams"],
    "Scenarios on the curve of wattcast_quality_equal_energy_joules; two make a straight line.",
);

macro_rules! metric {
    ($name:literal, $help:expr, $value:expr) => {{
        static DEF: Def = Def::gauge($name, SCENARIO, $help);
        ScenarioMetric { def: &DEF, value: $value, divides_energy: false }
    }};
    (legacy_divided $name:literal, $help:expr, $value:expr) => {{
        static DEF: Def = Def::gauge($name, SCENARIO, $help).compat();
        ScenarioMetric { def: &DEF, value: $value, divides_energy: true }
    }};
    (legacy $name:literal, $help:expr, $value:expr) => {{
        static DEF: Def = Def::gauge($name, SCENARIO, $help).compat();
        ScenarioMetric { def: &DEF, value: $value, divides_energy: false }
    }};
}

/// VMAF per watt; 0 for a baseline without frames.
fn vmaf_per_watt(entry: &Entry) -> Option<f64> {
    let watts = entry.derived.watts.filter(|watts| *watts > 0.0)?;
    Some(quality_value(entry, |quality| &quality.vmaf).or_else(|| encodes_nothing(entry).then_some(0.0))? / watts)
}

/// True for the baseline scenario, the host without load.
fn encodes_nothing(entry: &Entry) -> bool {
    let scenario = entry.scenario();
    scenario.is_baseline() && entry.derived.frames.unwrap_or(0.0) == 0.0
}

/// Pixels per joule, each weighted with VMAF / 100. The legacy name also has energy of a part of
/// the window, labelled.
fn weighted_pixels(entry: &Entry, joules: Option<f64>) -> Option<f64> {
    let joules = joules.filter(|joules| *joules > 0.0)?;
    Some(quality_value(entry, |quality| &quality.vmaf)? / 100.0 * entry.derived.pixels? / joules)
}

/// The legacy exporter's ratio, whose denominator does not contain the dropped frames.
fn legacy_drop_rate(entry: &Entry) -> Option<f64> {
    let scenario = entry.scenario();
    let encoded = scenario.total_frames.filter(|frames| *frames > 0)?;
    Some(float(scenario.dropped_frames?) / float(encoded)).filter(|ratio| *ratio <= 1.0)
}

/// Metrics with one value per scenario.
pub static METRICS: &[ScenarioMetric] = &[
    metric!(
        "wattcast_quality_vmaf_per_watt",
        "VMAF per watt of mean power. It favours low power with poor quality; \
         wattcast_quality_equal_energy_joules is the better comparison.",
        vmaf_per_watt
    ),
    metric!(
        "wattcast_quality_vmaf_per_joule",
        "VMAF per joule; absent unless the joules cover the whole window.",
        |e| {
            Some(quality_value(e, |quality| &quality.vmaf)? / e.derived.whole_joules().filter(|joules| *joules > 0.0)?)
        }
    ),
    metric!(
        "wattcast_quality_pixels_per_joule",
        "Quality-weighted pixels per joule: VMAF / 100 · pixels / energy; absent unless the joules \
         cover the whole window.",
        |e| weighted_pixels(e, e.derived.whole_joules())
    ),
];

/// The legacy names of such metrics.
pub static LEGACY: &[ScenarioMetric] = &[
    metric!(legacy "qoe_vmaf_score", "VMAF of a scenario, 0 to 100.", |e| quality_value(e, |quality| &quality.vmaf)),
    metric!(legacy "qoe_psnr_score", "PSNR of a scenario in dB.", |e| quality_value(e, |quality| &quality.psnr)),
    metric!(legacy "qoe_ssim_score", "SSIM of a scenario, 0 to 1.", |e| quality_value(e, |quality| &quality.ssim)),
    metric!(legacy "qoe_quality_per_watt", "VMAF per watt of mean power.", vmaf_per_watt),
    metric!(legacy_divided "qoe_efficiency_score",
        "Quality-weighted pixels per joule: VMAF / 100 · pixels / energy; energy_coverage=\"part\": too high, the \
         energy is that of a part of the window.", |e| weighted_pixels(e, e.derived.joules())),
    metric!(legacy "qoe_drop_rate", "Dropped frames per encoded frame; absent above 1, as that is no share.", legacy_drop_rate),
    metric!(legacy "qoe_score", "Same as wattcast_qoe_score.", |e| Some(qoe_score(e)?.score)),
    metric!(legacy "quality_vmaf", "Same as qoe_vmaf_score.", |e| quality_value(e, |quality| &quality.vmaf)),
    metric!(legacy "quality_psnr", "Same as qoe_psnr_score.", |e| quality_value(e, |quality| &quality.psnr)),
    metric!(legacy "quality_ssim", "Same as qoe_ssim_score.", |e| quality_value(e, |quality| &quality.ssim)),
];

static UP: Def = Def::gauge("qoe_exporter_up", &[], "1 while the exporter runs.").compat();
static SCENARIOS: Def = Def::gauge("qoe_scenarios_total", &[], "Scenarios on the page, over all runs.").compat();
static EXPORTER_INFO: Def = Def::gauge(
    "qoe_exporter_info",
    &["version", "language"],
    "Always 1; version and language of the program that serves the QoE exporter's names.",
)
.compat();
static COMPUTATION: Def =
    Def::gauge("qoe_computation_duration_seconds", &[], "Computation time of this page in seconds.").compat();

/// Every metric of the page, for the documentation.
#[must_use]
pub fn defs() -> Vec<&'static Def> {
    let others = [
        &VMAF,
        &PSNR,
        &SSIM,
        &SCORE,
        &COMPONENT,
        MEAN_VMAF.mean,
        MEAN_VMAF.interval,
        &EQUAL_QUALITY_ENERGY,
        &EQUAL_QUALITY_INTERVAL,
        &POINTS,
        &UP,
        &SCENARIOS,
        &EXPORTER_INFO,
        &COMPUTATION,
    ];
    others.into_iter().chain(METRICS.iter().chain(LEGACY).map(|metric| metric.def)).collect()
}

/// The families that depend on the runs. `targets` are VMAF scores at which energy is compared.
pub fn families<'a>(model: &'a Model, targets: &'a [f64]) -> impl Iterator<Item = Family> + 'a {
    let scores = |def: &'static Def, metric: fn(&Quality) -> &Option<Score>| {
        family_of_rows(model, def, move |entry, push| {
            if let Some(score) = metric(&entry.scenario().quality) {
                let labels = [&score.model, &score.version, &score.pooling].map(|label| sanitize(label));
                push(&[&labels[0], &labels[1], &labels[2]], score.value);
            }
        })
    };
    let qoe = family_of_rows(model, &SCORE, |entry, push| {
        if let Some(qoe) = qoe_score(entry) {
            push(&[qoe.made_of], qoe.score);
        }
    });
    let components = family_of_rows(model, &COMPONENT, |entry, push| {
        let Some(qoe) = qoe_score(entry) else { return };
        for (component, value) in [("picture", qoe.picture), ("smoothness", qoe.smoothness)] {
            if let Some(value) = value {
                push(&[component], value);
            }
        }
    });
    let means = families_of_means(model, &MEAN_VMAF, |entry, push| {
        // A score that the repeats share is a single measurement, without an interval.
        if let Some(vmaf) = entry.scenario().quality.vmaf.as_ref().filter(|_| !entry.scenario().quality_is_shared) {
            push(&[&sanitize(&vmaf.model), &sanitize(&vmaf.pooling)], vmaf.value);
        }
    });
    [
        scores(&VMAF, |quality| &quality.vmaf),
        scores(&PSNR, |quality| &quality.psnr),
        scores(&SSIM, |quality| &quality.ssim),
    ]
    .into_iter()
    .chain([qoe, components])
    .chain(means)
    .chain(equal_quality(model, targets))
    .chain(METRICS.iter().chain(LEGACY).map(|metric| scenario_metrics::family(model, metric)))
}

/// Energy at equal quality, its interval, and the number of points of each curve.
fn equal_quality(model: &Model, targets: &[f64]) -> [Family; 3] {
    let (mut energy, mut interval, mut points) =
        (Family::new(&EQUAL_QUALITY_ENERGY), Family::new(&EQUAL_QUALITY_INTERVAL), Family::new(&POINTS));
    // The labels do not have the VMAF model and the energy class: of the curves that differ in them
    // only, the one with the most points is shown.
    let mut shown: BTreeMap<CurveKey, (Vec<(f64, f64)>, CurveRepeats)> = BTreeMap::new();
    for (curve, repeats) in curves::repeats(model) {
        let key = CurveKey { model: String::new(), energy_class: EnergyClass::default(), ..curve };
        let measured = curves::mean_points(&repeats);
        if shown.get(&key).is_none_or(|(known, _)| known.len() < measured.len()) {
            shown.insert(key, (measured, repeats));
        }
    }
    for (curve, (measured, repeats)) in shown.iter().filter(|(_, (measured, _))| measured.len() > 1) {
        let streams = curve.streams.to_string();
        let labels = [&*curve.run, &curve.encoder, &curve.preset, &curve.ladder, &streams];
        points.push(&labels, float(u64::try_from(measured.len()).unwrap_or(u64::MAX)));
        for target in targets {
            let Some(joules) = curves::energy_at(measured, *target).filter(|joules| joules.is_finite()) else {
                continue;
            };
            let [run, encoder, preset, ladder, streams] = labels;
            let score = target.to_string();
            energy.push(&[run, encoder, preset, ladder, streams, &score], joules);
            if let Some((low, high)) = curves::energy_interval_at(repeats, *target) {
                for (bound, joules) in [("low", low), ("high", high)] {
                    interval.push(&[run, encoder, preset, ladder, streams, &score, bound], joules);
                }
            }
        }
    }
    [energy, interval, points]
}

/// The families that change without a new run.
#[must_use]
pub fn state(model: &Model, computed_in: std::time::Duration) -> Vec<Family> {
    let count = float(u64::try_from(model.entries.len()).unwrap_or(u64::MAX));
    let mut all = vec![
        Family::new(&UP).with(&[], 1.0),
        Family::new(&SCENARIOS).with(&[], count),
        Family::new(&EXPORTER_INFO).with(&[program::VERSION, "rust"], 1.0),
        Family::new(&COMPUTATION).with(&[], computed_in.as_secs_f64()),
        program::build_info(),
    ];
    all.extend(process::families());
    all
}
