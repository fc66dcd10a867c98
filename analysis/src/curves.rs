//! Rate-energy curves: energy over VMAF for scenarios of a run that differ in bitrate only.

use std::collections::BTreeMap;

use results::{derived::EnergyClass, model::Model, repeats::configurations, run::UNKNOWN};
use statistics::{
    curve::{self, Method},
    mean, propagation,
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
    let all = configurations(model);
    // Repeats with energy of different sources have no mean.
    let of_one_source = all.iter().enumerate().filter(|(_, one)| one.energy_source().is_some());
    let entries = of_one_source.flat_map(|(number, one)| one.entries.iter().map(move |entry| (number, *entry)));
    for (number, entry) in entries {
        let (scenario, figures) = (entry.scenario(), &entry.derived);
        let Some(vmaf) = &scenario.quality.vmaf else { continue };
        // Energy of a part of the window, or of unknown outputs, is not comparable.
        let comparable = figures.is_whole && figures.ladder != UNKNOWN;
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
            by_configuration.entry((curve, number)).or_default().push((vmaf.value, joules));
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
    let point = |repeats: &Vec<(f64, f64)>| {
        let mean_of = |axis: fn(&(f64, f64)) -> f64| mean(&repeats.iter().map(axis).collect::<Vec<_>>());
        mean_of(|point| point.0).zip(mean_of(|point| point.1))
    };
    by_score(repeats.iter().filter_map(point).collect())
}

/// Sorts points by score. Of two configurations with the same score the one with less energy
/// counts.
fn by_score(mut points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
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

/// 95 % interval of [`energy_at`], by the variance of the repeats; `None` with a point of a single
/// repeat, or if repeats do not reach the score.
#[must_use]
pub fn energy_interval_at(repeats: &CurveRepeats, vmaf: f64) -> Option<(f64, f64)> {
    let sample = |repeats: &Vec<(f64, f64)>| repeats.iter().map(|(score, joules)| [*score, *joules]).collect();
    let samples: Vec<Vec<[f64; 2]>> = repeats.iter().map(sample).collect();
    let (low, high) = propagation::interval(&samples, |means| {
        let points = by_score(means.iter().map(|[score, joules]| (*score, *joules)).collect());
        energy_at(&points, vmaf).map(f64::ln).filter(|logarithm| logarithm.is_finite())
    })?;
    Some((low.exp(), high.exp())).filter(|(_, high)| high.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_at_a_point_is_that_of_its_repeats() {
        let noise = [0.99, 1.0, 1.01];
        let curve: CurveRepeats = [(70.0, 1.0), (80.0, 2.0), (90.0, 5.0)]
            .map(|(score, joules)| noise.map(|part| (score, joules * part)).to_vec())
            .to_vec();
        let (low, high) = energy_interval_at(&curve, 80.0).unwrap();
        // Student's quantile for three repeats is 4.303, of a standard error of 1 % / √3.
        let half = 4.303 * 0.01 / 3.0_f64.sqrt();
        assert!((low / (2.0 * (-half).exp()) - 1.0).abs() < 1e-3 && (high / (2.0 * half.exp()) - 1.0).abs() < 1e-3);
        // Between points both contribute, with more degrees of freedom.
        let (low, high) = energy_interval_at(&curve, 75.0).unwrap();
        assert!((high / low).ln() < 1.4 * half, "{low} to {high}");
        let mut single = curve.clone();
        single[1].truncate(1);
        assert_eq!(energy_interval_at(&single, 75.0), None);
        assert_eq!(energy_interval_at(&curve, 95.0), None, "outside of the measured range");
    }
}
