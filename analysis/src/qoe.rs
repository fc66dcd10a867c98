//! Port 9503: what the pictures are worth, and what a joule bought of it.

use std::collections::BTreeMap;

use exporter::{
    family::{Def, Family},
    process, program,
};

use crate::{
    columns::{self, Across, Column, SCENARIO, across, spread},
    energy::Energy,
    figures::{Entry, Kind, Model, float},
    run::{Quality, Score, UNKNOWN},
    statistics::{
        bjontegaard::widening,
        curve::{self, Method},
        mean, quantile,
    },
};

const SCORED: &[&str] = &["scenario", "bitrate", "encoder", "run", "model", "version", "pooling"];

static VMAF: Def = Def::gauge(
    "wattcast_quality_vmaf_score",
    SCORED,
    "VMAF of a scenario, 0 to 100 (to 110 for the newest models), with the model, the library's version and how frames were pooled. Scores of two models are not to be compared.",
);
static PSNR: Def = Def::gauge("wattcast_quality_psnr_decibels", SCORED, "PSNR of a scenario in dB.");
static SSIM: Def = Def::gauge("wattcast_quality_ssim_score", SCORED, "SSIM of a scenario, 0 to 1.");
static SCORE: Def = Def::gauge(
    "wattcast_qoe_score",
    &["scenario", "bitrate", "encoder", "run", "made_of"],
    "Quality of experience from 1 (bad) to 5 (excellent): 1 + 4 · picture · smoothness, see docs/qoe.md. An indicator of ours, and no opinion score of people. \
     made_of says what went into it: vmaf, psnr, drops; file where it is the file's own.",
);
static COMPONENT: Def = Def::gauge(
    "wattcast_qoe_component_ratio",
    &["scenario", "bitrate", "encoder", "run", "component"],
    "What the score is made of, 0 to 1: picture, smoothness.",
);
static EQUAL: Def = Def::gauge(
    "wattcast_quality_equal_energy_joules",
    &["run", "encoder", "preset", "output_ladder", "streams", "vmaf"],
    "Joules for a second of media at a VMAF, by a monotone curve through the scenarios of a run that differ in bitrate only. Absent where the score was not \
     reached or not undercut: nothing is extrapolated.",
);
static EQUAL_INTERVAL: Def = Def::gauge(
    "wattcast_quality_equal_energy_interval_joules",
    &["run", "encoder", "preset", "output_ladder", "streams", "vmaf", "bound"],
    "What the repeats allow for that energy, for about 95 %, by a bootstrap that is widened for how few they are, in joules. bound: low, high. Absent where a point has a single repeat.",
);
static CELL: Across = across!(
    ["scenario", "bitrate", "encoder", "run", "model", "pooling"],
    "wattcast_cell_vmaf_score",
    "VMAF of a configuration, 0 to 100, the mean over its repeats.",
    "wattcast_cell_vmaf_interval_score",
    "The 95 % interval of that mean (Student's): how much repeats differ, and nothing of how well the model sees. bound: low, high."
);
static SERIES: Def = Def::gauge(
    "wattcast_quality_curve_points",
    &["run", "encoder", "preset", "output_ladder", "streams"],
    "Scenarios on such a curve; a curve of two is a straight line.",
);

macro_rules! column {
    ($name:literal, $help:expr, $value:expr) => {{
        static DEF: Def = Def::gauge($name, SCENARIO, $help);
        Column { def: &DEF, value: $value }
    }};
    (seed $name:literal, $help:expr, $value:expr) => {{
        static DEF: Def = Def::gauge($name, SCENARIO, $help).seed();
        Column { def: &DEF, value: $value }
    }};
}

/// VMAF for a watt. Of a scenario that encodes nothing it is 0, as its VMAF is.
fn per_watt(entry: &Entry) -> Option<f64> {
    let watts = entry.figures.watts.filter(|watts| *watts > 0.0)?;
    Some(value(entry, |quality| &quality.vmaf).or_else(|| nothing_encoded(entry).then_some(0.0))? / watts)
}

/// True for the host without load: what it did not encode has no quality to know.
fn nothing_encoded(entry: &Entry) -> bool {
    let scenario = entry.scenario();
    scenario.is_baseline() && entry.figures.frames.unwrap_or(0.0) == 0.0
}

fn value(entry: &Entry, which: fn(&Quality) -> &Option<Score>) -> Option<f64> {
    Some(which(&entry.scenario().quality).as_ref()?.value)
}

/// Pixels, each worth VMAF / 100, for a joule.
fn weighted_pixels(entry: &Entry) -> Option<f64> {
    let joules = entry.figures.joules().filter(|joules| *joules > 0.0)?;
    Some(value(entry, |quality| &quality.vmaf)? / 100.0 * entry.figures.pixels? / joules)
}

/// The numbers of a scenario that follow Prometheus' rules.
pub static PRIMARY: &[Column] = &[
    column!(
        "wattcast_quality_vmaf_per_watt",
        "VMAF over mean power. It rewards low power and bad pictures; compare wattcast_quality_equal_energy_joules instead.",
        per_watt
    ),
    column!("wattcast_quality_vmaf_per_joule", "VMAF over energy.", |e| {
        Some(value(e, |quality| &quality.vmaf)? / e.figures.joules().filter(|joules| *joules > 0.0)?)
    }),
    column!(
        "wattcast_quality_pixels_per_joule",
        "Quality-weighted pixels for a joule: VMAF / 100 · pixels / energy.",
        weighted_pixels
    ),
];

/// The numbers under the names of the replaced exporters.
pub static SEED: &[Column] = &[
    column!(seed "qoe_vmaf_score", "VMAF of a scenario, 0 to 100.", |e| value(e, |quality| &quality.vmaf)),
    column!(seed "qoe_psnr_score", "PSNR of a scenario in dB.", |e| value(e, |quality| &quality.psnr)),
    column!(seed "qoe_ssim_score", "SSIM of a scenario, 0 to 1.", |e| value(e, |quality| &quality.ssim)),
    column!(seed "qoe_quality_per_watt", "VMAF over mean power.", per_watt),
    column!(seed "qoe_efficiency_score", "Quality-weighted pixels for a joule: VMAF / 100 · pixels / energy.", weighted_pixels),
    column!(seed "qoe_drop_rate", "Frames lost over frames encoded.", |e| e.figures.drop_ratio),
    column!(seed "qoe_score", "The same as wattcast_qoe_score.", |e| Some(experience(e)?.score)),
    column!(seed "quality_vmaf", "The same as qoe_vmaf_score.", |e| value(e, |quality| &quality.vmaf)),
    column!(seed "quality_psnr", "The same as qoe_psnr_score.", |e| value(e, |quality| &quality.psnr)),
    column!(seed "quality_ssim", "The same as qoe_ssim_score.", |e| value(e, |quality| &quality.ssim)),
];

static UP: Def = Def::gauge("qoe_exporter_up", &[], "1 while the exporter runs.").seed();
static SCENARIOS: Def = Def::gauge("qoe_scenarios_total", &[], "Scenarios that are served, of all runs shown.").seed();
static EXPORTER_INFO: Def =
    Def::gauge("qoe_exporter_info", &["version", "language"], "1; which program serves the names of the QoE exporter.")
        .seed();
static COMPUTATION: Def = Def::gauge(
    "qoe_computation_duration_seconds",
    &[],
    "How long it took to work out what is on this page, in seconds.",
)
.seed();

/// Every metric of this page, for the documentation.
#[must_use]
pub fn defs() -> Vec<&'static Def> {
    let columns = PRIMARY.iter().chain(SEED).map(|column| column.def);
    let others = [
        &VMAF,
        &PSNR,
        &SSIM,
        &SCORE,
        &COMPONENT,
        CELL.mean,
        CELL.interval,
        &EQUAL,
        &EQUAL_INTERVAL,
        &SERIES,
        &UP,
        &SCENARIOS,
        &EXPORTER_INFO,
        &COMPUTATION,
    ];
    others.into_iter().chain(columns).collect()
}

/// The score and what it is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Experience {
    /// 1 to 5.
    pub score: f64,
    /// 0 to 1.
    pub picture: Option<f64>,
    /// 0 to 1.
    pub smoothness: Option<f64>,
    /// `vmaf+drops`.
    pub made_of: &'static str,
}

/// Frames lost of all at which nothing is left of a picture's worth.
const UNWATCHABLE: f64 = 0.2;

/// How a viewer fares: 1 + 4 · picture · smoothness. `picture` is VMAF / 100, or (PSNR − 20) / 30 within 0 and 1 where there is no VMAF; `smoothness` falls
/// in a line from 1 without lost frames to 0 at a fifth of them lost, and is 1 where nobody counted. A scenario without either score has the file's
/// figure, if that brings one.
#[must_use]
pub fn experience(entry: &Entry) -> Option<Experience> {
    let vmaf = value(entry, |quality| &quality.vmaf).map(|vmaf| vmaf / 100.0);
    let psnr = value(entry, |quality| &quality.psnr).map(|psnr| (psnr - 20.0) / 30.0);
    let drops = entry.figures.drop_ratio;
    let Some(picture) = vmaf.or(psnr).map(|picture| picture.clamp(0.0, 1.0)) else {
        let score = entry.scenario().file_qoe.filter(|score| (1.0..=5.0).contains(score))?;
        return Some(Experience { score, picture: None, smoothness: None, made_of: "file" });
    };
    let smoothness = drops.map(|drops| (1.0 - drops / UNWATCHABLE).max(0.0));
    let made_of = match (vmaf.is_some(), drops.is_some()) {
        (true, true) => "vmaf+drops",
        (true, false) => "vmaf",
        (false, true) => "psnr+drops",
        (false, false) => "psnr",
    };
    let score = 1.0 + 4.0 * picture * smoothness.unwrap_or(1.0);
    Some(Experience { score, picture: Some(picture), smoothness, made_of })
}

/// What scenarios on one curve have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Curve {
    /// The run.
    pub run: String,
    /// The encoder.
    pub encoder: String,
    /// Its preset.
    pub preset: String,
    /// Outputs.
    pub ladder: String,
    /// Streams at once.
    pub streams: u32,
    /// The model of the scores.
    pub model: String,
    /// With what its energy may be compared.
    pub kind: Kind,
}

/// The repeats of each cell of a curve: VMAF, and joules for a second of media.
type Cells = Vec<Vec<(f64, f64)>>;

fn repeated(model: &Model) -> BTreeMap<Curve, Cells> {
    let mut cells: BTreeMap<(Curve, usize), Vec<(f64, f64)>> = BTreeMap::new();
    for entry in &model.entries {
        let (scenario, figures) = (entry.scenario(), &entry.figures);
        let Some(vmaf) = &scenario.quality.vmaf else { continue };
        // Of a part of the window, or of outputs that nobody names, is no point to compare.
        let whole = entry.answer.energy.as_ref().is_some_and(Energy::is_whole) && figures.ladder != UNKNOWN;
        if let Some(joules) = figures.joules_per(figures.media_seconds).filter(|joules| whole && *joules > 0.0) {
            let curve = Curve {
                run: entry.run.id.clone(),
                encoder: scenario.encoder.clone(),
                preset: scenario.preset.clone(),
                ladder: figures.ladder.clone(),
                streams: scenario.stream_count().unwrap_or(1),
                model: vmaf.model.clone(),
                kind: figures.kind(),
            };
            // A scenario of its own is a cell of one.
            let cell = scenario.cell.unwrap_or(usize::MAX - entry.at);
            cells.entry((curve, cell)).or_default().push((vmaf.value, joules));
        }
    }
    let mut all: BTreeMap<Curve, Cells> = BTreeMap::new();
    for ((curve, _), repeats) in cells {
        all.entry(curve).or_default().push(repeats);
    }
    all
}

/// The points of a curve, each at the mean of its repeats as `pick` has them.
fn points(cells: &Cells, mut pick: impl FnMut(&[(f64, f64)]) -> Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = cells
        .iter()
        .filter_map(|repeats| {
            let picked = pick(repeats);
            let of = |which: fn(&(f64, f64)) -> f64| mean(&picked.iter().map(which).collect::<Vec<_>>());
            of(|point| point.0).zip(of(|point| point.1))
        })
        .collect();
    // Two configurations of one score are one point: the cheaper can be had.
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    points.dedup_by(|next, kept| next.0 == kept.0);
    points
}

/// The measured points of each curve: VMAF, and joules for a second of media. Repeats of a cell are one point, at their mean.
#[must_use]
pub fn curves(model: &Model) -> BTreeMap<Curve, Vec<(f64, f64)>> {
    repeated(model).into_iter().map(|(curve, cells)| (curve, points(&cells, <[_]>::to_vec))).collect()
}

/// Draws of the bootstrap.
const DRAWS: u32 = 200;

/// 95 % of what the repeats of a curve allow for the energy at a score; nothing without repeats, or where one draw in twenty does not reach it.
fn energy_between(cells: &Cells, vmaf: f64) -> Option<(f64, f64)> {
    if cells.iter().any(|repeats| repeats.len() < 2) {
        return None;
    }
    // The same page from the same file.
    let mut random = fastrand::Rng::with_seed(1);
    let found: Vec<f64> = (0..DRAWS)
        .filter_map(|_| {
            let drawn = points(cells, |repeats| {
                let again: Vec<_> = repeats.iter().map(|_| repeats[random.usize(..repeats.len())]).collect();
                let of = |all: &[(f64, f64)], which: fn(&(f64, f64)) -> f64| {
                    mean(&all.iter().map(which).collect::<Vec<_>>()).unwrap_or(f64::NAN)
                };
                let pulled = |which: fn(&(f64, f64)) -> f64| {
                    let center = of(repeats, which);
                    center + (of(&again, which) - center) * widening(repeats.len())
                };
                vec![(pulled(|point| point.0), pulled(|point| point.1))]
            });
            energy_at(&drawn, vmaf).filter(|joules| joules.is_finite())
        })
        .collect();
    let enough = u32::try_from(found.len()).unwrap_or(0) * 20 >= DRAWS * 19;
    quantile(&found, 0.025).zip(quantile(&found, 0.975)).filter(|_| enough)
}

/// Joules for a second of media at a score; in the logarithm, as energy spans decades along a curve.
#[must_use]
pub fn energy_at(points: &[(f64, f64)], vmaf: f64) -> Option<f64> {
    let logarithms: Vec<(f64, f64)> = points.iter().map(|(score, joules)| (*score, joules.ln())).collect();
    curve::Curve::new(&logarithms, Method::Pchip)?.at(vmaf).map(f64::exp)
}

/// The part of the page that changes with the runs.
pub fn families<'a>(model: &'a Model, targets: &'a [f64]) -> impl Iterator<Item = Family> + 'a {
    let scored = |def: &'static Def, which: fn(&Quality) -> &Option<Score>| {
        spread(model, def, move |entry, push| {
            if let Some(score) = which(&entry.scenario().quality) {
                let words = [&score.model, &score.version, &score.pooling].map(|word| exporter::label::clean(word));
                push(&[&words[0], &words[1], &words[2]], score.value);
            }
        })
    };
    let score = spread(model, &SCORE, |entry, push| {
        if let Some(experience) = experience(entry) {
            push(&[experience.made_of], experience.score);
        }
    });
    let component = spread(model, &COMPONENT, |entry, push| {
        let Some(experience) = experience(entry) else { return };
        for (component, value) in [("picture", experience.picture), ("smoothness", experience.smoothness)] {
            if let Some(value) = value {
                push(&[component], value);
            }
        }
    });
    let (mut equal, mut equal_interval, mut series) =
        (Family::new(&EQUAL), Family::new(&EQUAL_INTERVAL), Family::new(&SERIES));
    // Scores of two models make two curves; the one with more points is shown.
    let mut shown: BTreeMap<Curve, (Vec<(f64, f64)>, Cells)> = BTreeMap::new();
    for (curve, cells) in repeated(model) {
        let key = Curve { model: String::new(), kind: Kind::default(), ..curve };
        let measured = points(&cells, <[_]>::to_vec);
        if shown.get(&key).is_none_or(|(known, _)| known.len() < measured.len()) {
            shown.insert(key, (measured, cells));
        }
    }
    for (curve, (measured, cells)) in shown.iter().filter(|(_, (measured, _))| measured.len() > 1) {
        let streams = curve.streams.to_string();
        let labels = [&*curve.run, &curve.encoder, &curve.preset, &curve.ladder, &streams];
        series.push(&labels, float(u64::try_from(measured.len()).unwrap_or(u64::MAX)));
        for target in targets {
            if let Some(joules) = energy_at(measured, *target).filter(|joules| joules.is_finite()) {
                let [run, encoder, preset, ladder, streams] = labels;
                let score = target.to_string();
                equal.push(&[run, encoder, preset, ladder, streams, &score], joules);
                if let Some((low, high)) = energy_between(cells, *target) {
                    for (bound, joules) in [("low", low), ("high", high)] {
                        equal_interval.push(&[run, encoder, preset, ladder, streams, &score, bound], joules);
                    }
                }
            }
        }
    }
    let of_cells = columns::repeated(model, &CELL, |entry, push| {
        // A score that all repeats share is one measurement: its mean is on wattcast_quality_vmaf_score, and an interval it has none.
        if let Some(vmaf) = entry.scenario().quality.vmaf.as_ref().filter(|_| !entry.scenario().quality_is_shared) {
            push(&[&exporter::label::clean(&vmaf.model), &exporter::label::clean(&vmaf.pooling)], vmaf.value);
        }
    });
    [
        scored(&VMAF, |quality| &quality.vmaf),
        scored(&PSNR, |quality| &quality.psnr),
        scored(&SSIM, |quality| &quality.ssim),
    ]
    .into_iter()
    .chain([score, component])
    .chain(of_cells)
    .chain([equal, equal_interval, series])
    .chain(PRIMARY.iter().chain(SEED).map(|column| columns::family(model, column)))
}

/// The part of the page that changes by itself.
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
