//! Rate-energy curves: energy over VMAF for scenarios of a run that differ in bitrate only.

use std::collections::BTreeMap;

use results::{derived::EnergyClass, energy::WindowEnergy, model::Model, run::UNKNOWN};
use statistics::{
    bjontegaard::widening,
    curve::{self, Method},
    mean, quantile,
};

/// Properties that all scenarios on one curve share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CurveKey {
    pub run: String,
    pub encoder: String,
    pub preset: String,
    pub ladder: String,
    pub streams: u32,
    /// VMAF model; scores of different models are not comparable.
    pub model: String,
    /// Energy of different classes is not comparable.
    pub energy_class: EnergyClass,
}

/// The repeats of each configuration on a curve, as VMAF and joules per second of media.
pub type CurveRepeats = Vec<Vec<(f64, f64)>>;

/// The repeats of all curves of a model.
#[must_use]
pub fn repeats(model: &Model) -> BTreeMap<CurveKey, CurveRepeats> {
    let mut by_configuration: BTreeMap<(CurveKey, usize), Vec<(f64, f64)>> = BTreeMap::new();
    for entry in &model.entries {
        let (scenario, figures) = (entry.scenario(), &entry.derived);
        let Some(vmaf) = &scenario.quality.vmaf else { continue };
        // Energy of a part of the window, or of unknown outputs, is not comparable.
        let comparable = entry.lookup.energy.as_ref().is_some_and(WindowEnergy::is_whole) && figures.ladder != UNKNOWN;
        if let Some(joules) = figures.joules_per(figures.media_seconds).filter(|joules| comparable && *joules > 0.0) {
            let curve = CurveKey {
                run: entry.run.id.clone(),
                encoder: scenario.encoder.clone(),
                preset: scenario.preset.clone(),
                ladder: figures.ladder.clone(),
                streams: scenario.stream_count().unwrap_or(1),
                model: vmaf.model.clone(),
                energy_class: figures.energy_class(),
            };
            // A scenario without a configuration is a configuration with a single repeat.
            let configuration = scenario.configuration.unwrap_or(usize::MAX - entry.index);
            by_configuration.entry((curve, configuration)).or_default().push((vmaf.value, joules));
        }
    }
    let mut all: BTreeMap<CurveKey, CurveRepeats> = BTreeMap::new();
    for ((curve, _), repeats) in by_configuration {
        all.entry(curve).or_default().push(repeats);
    }
    all
}

/// The measured points of each curve, each the mean over its repeats.
#[must_use]
pub fn curves(model: &Model) -> BTreeMap<CurveKey, Vec<(f64, f64)>> {
    repeats(model).into_iter().map(|(curve, repeats)| (curve, mean_points(&repeats))).collect()
}

/// The points of a curve, each the mean over its repeats.
#[must_use]
pub fn mean_points(repeats: &CurveRepeats) -> Vec<(f64, f64)> {
    points(repeats, <[_]>::to_vec)
}

/// The points of a curve, each the mean of what `pick` returns for its repeats.
fn points(repeats: &CurveRepeats, mut pick: impl FnMut(&[(f64, f64)]) -> Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = repeats
        .iter()
        .filter_map(|repeats| {
            let picked = pick(repeats);
            let mean_of = |axis: fn(&(f64, f64)) -> f64| mean(&picked.iter().map(axis).collect::<Vec<_>>());
            mean_of(|point| point.0).zip(mean_of(|point| point.1))
        })
        .collect();
    // Of two configurations with the same score the one with less energy counts.
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    points.dedup_by(|next, kept| next.0 == kept.0);
    points
}

/// Joules per second of media at a VMAF score, interpolated in the logarithm, as energy spans
/// decades along a curve.
#[must_use]
pub fn energy_at(points: &[(f64, f64)], vmaf: f64) -> Option<f64> {
    let logarithms: Vec<(f64, f64)> = points.iter().map(|(score, joules)| (*score, joules.ln())).collect();
    curve::Curve::new(&logarithms, Method::Pchip)?.at(vmaf).map(f64::exp)
}

/// Number of bootstrap resamples.
const RESAMPLES: u32 = 200;

/// 95 % bootstrap interval of [`energy_at`]; `None` with a point of a single repeat, or if more
/// than 5 % of the resamples do not reach the score.
#[must_use]
pub fn energy_interval_at(repeats: &CurveRepeats, vmaf: f64) -> Option<(f64, f64)> {
    if repeats.iter().any(|repeats| repeats.len() < 2) {
        return None;
    }
    // A fixed seed, so that the same file gives the same page.
    let mut random = fastrand::Rng::with_seed(1);
    let energies: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let resampled = points(repeats, |repeats| {
                let sample: Vec<_> = repeats.iter().map(|_| repeats[random.usize(..repeats.len())]).collect();
                let mean_of = |all: &[(f64, f64)], axis: fn(&(f64, f64)) -> f64| {
                    mean(&all.iter().map(axis).collect::<Vec<_>>()).unwrap_or(f64::NAN)
                };
                let widened = |axis: fn(&(f64, f64)) -> f64| {
                    let center = mean_of(repeats, axis);
                    center + (mean_of(&sample, axis) - center) * widening(repeats.len())
                };
                vec![(widened(|point| point.0), widened(|point| point.1))]
            });
            energy_at(&resampled, vmaf).filter(|joules| joules.is_finite())
        })
        .collect();
    let enough = u32::try_from(energies.len()).unwrap_or(0) * 20 >= RESAMPLES * 19;
    quantile(&energies, 0.025).zip(quantile(&energies, 0.975)).filter(|_| enough)
}
