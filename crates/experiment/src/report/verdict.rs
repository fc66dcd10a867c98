//! The verdict at the top of a report: which encoder uses the least energy at equal quality, by
//! which factor, and how certain that is. Where the run does not allow to say that, what it allows.

use std::{collections::BTreeMap, ops::RangeInclusive};

use crate::compare::curves::{Curve, Resource};
use cli::number::{self, score_with_half_width, short, with_bounds, with_unit_and_half_width};
use results::{
    derived::EnergyClass,
    estimate::Estimate,
    figures::{Figures, score},
    repeats::Configuration,
    run::UNKNOWN,
};
use statistics::{
    curve::{self, Method},
    inference::relative_interval,
    propagation,
};
use units::provenance::Unmeasured;

/// Usual scores at which encoders are compared, the most usual first.
const USUAL_VMAF: [f64; 6] = [93.0, 95.0, 90.0, 85.0, 80.0, 70.0];
const USUAL_PSNR: [f64; 6] = [40.0, 38.0, 42.0, 36.0, 44.0, 34.0];
/// Most curves of which the middle of each pair is considered.
const MAX_PAIRED: usize = 30;
/// Most sentences, one for each group of comparable curves.
const MAX_GROUPS: usize = 5;

/// The sentences of the verdict; at least one.
pub(super) fn sentences(curves: &[Curve<'_>], all: &[Configuration<'_>]) -> Vec<String> {
    let mut found = at_equal_quality(curves);
    if found.is_empty() {
        found = at_unequal_quality(all);
    }
    if found.is_empty() {
        found = one_configuration(all);
    }
    let more = found.len().saturating_sub(MAX_GROUPS);
    found.truncate(MAX_GROUPS);
    if more > 0 {
        found.push(format!("{more} more outputs: see the table."));
    }
    found
}

/// How many times as much energy another configuration uses as the best.
#[derive(Clone, Debug)]
struct Factor {
    value: f64,
    /// 95 % interval.
    bounds: Option<RangeInclusive<f64>>,
    /// Why there is no interval.
    no_bounds: &'static str,
}

impl Factor {
    /// False if the interval contains a factor of one.
    fn is_significant(&self) -> bool {
        self.bounds.as_ref().is_none_or(|bounds| *bounds.start() > 1.0)
    }

    /// The factor, and the end of the sentence: its interval.
    fn texts(&self) -> (String, String) {
        match &self.bounds {
            Some(bounds) if bounds.end() - bounds.start() > 1e-9 => {
                let (value, ends) = with_bounds(self.value, bounds);
                (value, format!("95 % interval {ends}"))
            }
            Some(_) => (short(self.value), "the same in every repeat".to_owned()),
            None => (short(self.value), self.no_bounds.to_owned()),
        }
    }

    /// `best uses 4.6× less energy than other, 95 % interval 4.1–5.2`.
    fn sentence(&self, best: &str, other: &str, per: &str) -> String {
        let (value, interval) = self.texts();
        if self.is_significant() && self.value > 1.0 {
            format!("{best} uses {value}× less energy{per} than {other}, {interval}")
        } else {
            format!("{best} and {other} do not differ significantly in energy{per}: {value}×, {interval}")
        }
    }
}

/// A curve of energy by quality: the repeats of each configuration, as score and joules per second
/// of media.
struct EnergyCurve {
    label: String,
    repeats: Vec<Vec<[f64; 2]>>,
    /// The scores that it covers.
    scores: RangeInclusive<f64>,
}

impl EnergyCurve {
    fn of(curve: &Curve<'_>) -> Option<Self> {
        let points = curve.points(Resource::Energy)?;
        let repeats: Vec<Vec<[f64; 2]>> =
            points.iter().map(|point| point.iter().map(|repeat| [repeat.quality, repeat.cost]).collect()).collect();
        let scores = repeats.iter().filter_map(|repeats| statistics::mean(&axis(repeats, 0)));
        let (low, high) =
            scores.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), score| (low.min(score), high.max(score)));
        (low < high).then(|| Self { label: curve.label(), repeats, scores: low..=high })
    }

    /// Logarithm of the joules at a score.
    fn log_energy_at(&self, quality: f64) -> Option<f64> {
        let mean = |repeats: &Vec<[f64; 2]>| {
            Some([statistics::mean(&axis(repeats, 0))?, statistics::mean(&axis(repeats, 1))?])
        };
        log_energy(&self.repeats.iter().map(mean).collect::<Option<Vec<_>>>()?, quality)
    }

    /// How many times as much energy `other` uses at a score. The interval is that of the
    /// difference of the logarithms, by the variance of all repeats.
    fn factor(&self, other: &Self, quality: f64) -> Option<Factor> {
        let value = (other.log_energy_at(quality)? - self.log_energy_at(quality)?).exp();
        let samples: Vec<Vec<[f64; 2]>> = self.repeats.iter().chain(&other.repeats).cloned().collect();
        let bounds = propagation::interval(&samples, |means| {
            let (own, other) = means.split_at(self.repeats.len());
            Some(log_energy(other, quality)? - log_energy(own, quality)?)
        });
        let no_bounds = no_interval(samples.iter().map(Vec::len));
        Some(Factor { value, bounds: bounds.map(|(low, high)| low.exp()..=high.exp()), no_bounds })
    }
}

fn axis(repeats: &[[f64; 2]], at: usize) -> Vec<f64> {
    repeats.iter().map(|repeat| repeat[at]).collect()
}

/// Why there is no interval over samples of these sizes.
fn no_interval(mut sizes: impl Iterator<Item = usize>) -> &'static str {
    if sizes.any(|size| size < 2) {
        "without an interval, because not every configuration was repeated"
    } else {
        "without an interval, because the repeats vary too much"
    }
}

/// Logarithm of the joules at a score, interpolated between points of score and joules; energy
/// spans decades along a curve. Of two points with the same score the one with less energy counts.
fn log_energy(points: &[[f64; 2]], quality: f64) -> Option<f64> {
    let mut points: Vec<(f64, f64)> = points.iter().map(|[score, joules]| (*score, joules.ln())).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    points.dedup_by(|next, kept| next.0 == kept.0);
    curve::Curve::new(&points, Method::Pchip)?.at(quality).filter(|logarithm| logarithm.is_finite())
}

/// One sentence for each group of curves that are comparable and have a quality in common.
fn at_equal_quality(curves: &[Curve<'_>]) -> Vec<String> {
    type Key<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str);
    let mut groups: BTreeMap<Key<'_>, Vec<&Curve<'_>>> = BTreeMap::new();
    for curve in curves.iter().filter(|curve| !curve.source.is_empty() && curve.has_known_outputs()) {
        let key = (curve.run, curve.content, &*curve.ladder, &*curve.quality, &*curve.source);
        groups.entry(key).or_default().push(curve);
    }
    let has_several = groups.len() > 1;
    let sentence = |((_, _, ladder, metric, source), group): (&Key<'_>, &Vec<&Curve<'_>>)| {
        let place = if has_several { format!("{ladder}: ") } else { String::new() };
        Some(format!("{}{place}{}", unmeasured(source), of_group(group, metric)?))
    };
    groups.iter().filter_map(sentence).collect()
}

/// The best of a group of curves against the one that uses most, and against the second.
fn of_group(group: &[&Curve<'_>], metric: &str) -> Option<String> {
    let curves: Vec<EnergyCurve> = group.iter().filter_map(|curve| EnergyCurve::of(curve)).collect();
    let quality = common_quality(&curves, metric)?;
    let mut ranked: Vec<(&EnergyCurve, f64)> =
        curves.iter().filter_map(|curve| Some((curve, curve.log_energy_at(quality)?))).collect();
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
    let [(best, _), .., (most, _)] = ranked.as_slice() else { return None };
    let metric = metric.split(' ').next().unwrap_or_default();
    let unit = if metric == "PSNR" { " dB" } else { "" };
    let mut text = format!(
        "At {metric} {}{unit}, {}.",
        short(quality),
        best.factor(most, quality)?.sentence(&best.label, &most.label, "")
    );
    if let [_, (second, _), _, ..] = ranked.as_slice() {
        let factor = best.factor(second, quality)?;
        let (value, interval) = factor.texts();
        text += &if factor.is_significant() {
            format!(" Of {} curves {} comes second, with {value}× the energy, {interval}.", ranked.len(), second.label)
        } else {
            format!(" {} does not differ significantly from the best: {value}×, {interval}.", second.label)
        };
    }
    match group.len() - ranked.len() {
        0 => {}
        1 => text += " Another curve does not cover this quality.",
        others => text += &format!(" {others} other curves do not cover this quality."),
    }
    Some(text)
}

/// The score that most curves cover: a usual one if possible, else the middle of what two have in
/// common.
fn common_quality(curves: &[EnergyCurve], metric: &str) -> Option<f64> {
    let usual = if metric.starts_with("PSNR") { USUAL_PSNR } else { USUAL_VMAF };
    let paired = &curves[..curves.len().min(MAX_PAIRED)];
    let middles = paired.iter().enumerate().flat_map(|(at, one)| {
        paired[at + 1..].iter().filter_map(move |other| {
            let low = one.scores.start().max(*other.scores.start());
            let high = one.scores.end().min(*other.scores.end());
            let middle = f64::midpoint(low, high);
            let rounded = (middle * 10.0).round() / 10.0;
            (low <= high).then_some(if (low..=high).contains(&rounded) { rounded } else { middle })
        })
    });
    let mut best: Option<(usize, f64)> = None;
    for quality in usual.into_iter().chain(middles) {
        let count = curves.iter().filter(|curve| curve.scores.contains(&quality)).count();
        // The first of those that the most curves cover.
        if count > 1 && best.is_none_or(|(most, _)| count > most) {
            best = Some((count, quality));
        }
    }
    best.map(|(_, quality)| quality)
}

/// `MODELLED energy: ` for a source that is not a measurement.
fn unmeasured(source: &str) -> String {
    let words = source.split([',', ' ', '+']);
    Unmeasured::among(words).iter().map(|kind| format!("{kind} energy: ")).collect()
}

/// What configurations must have in common to be compared.
type ConfigurationKey<'a> = (&'a str, &'a str, u32, &'a str, EnergyClass, String);

/// One sentence for each group of comparable configurations: the one with the least energy against
/// the one with the most, whatever their quality.
fn at_unequal_quality(all: &[Configuration<'_>]) -> Vec<String> {
    let mut groups: BTreeMap<ConfigurationKey<'_>, Vec<&Configuration<'_>>> = BTreeMap::new();
    for configuration in all {
        let entry = configuration.first();
        let Some(source) = configuration.energy_source().filter(|_| entry.derived.ladder != UNKNOWN) else { continue };
        let streams = entry.scenario().stream_count().unwrap_or(1);
        let class = entry.derived.energy_class();
        let key = (&*entry.run.id, &*entry.derived.ladder, streams, configuration.content_digest(), class, source);
        groups.entry(key).or_default().push(configuration);
    }
    let has_several = groups.values().filter(|group| group.len() > 1).count() > 1;
    let sentence = |((_, ladder, .., source), group): (&ConfigurationKey<'_>, &Vec<&Configuration<'_>>)| {
        let place = if has_several { format!("{ladder}: ") } else { String::new() };
        Some(format!("{}{place}{}", unmeasured(source), of_configurations(group)?))
    };
    groups.iter().filter_map(sentence).collect()
}

fn of_configurations(group: &[&Configuration<'_>]) -> Option<String> {
    let values = |one: &Configuration<'_>| one.energy_values(&|entry| Resource::Energy.of(entry));
    let mut ranked: Vec<(&Configuration<'_>, Vec<f64>, f64)> = group
        .iter()
        .filter_map(|one| {
            let values = values(one);
            let mean = statistics::mean(&values).filter(|mean| mean.is_finite() && *mean > 0.0)?;
            Some((*one, values, mean))
        })
        .collect();
    ranked.sort_by(|a, b| a.2.total_cmp(&b.2));
    let [(best, own, least), .., (most, other, largest)] = ranked.as_slice() else { return None };
    let bounds = relative_interval(own, other).map(|(low, high)| 1.0 + low..=1.0 + high);
    let no_bounds = no_interval([own.len(), other.len()].into_iter());
    let factor = Factor { value: largest / least, bounds, no_bounds };
    let (best_score, most_score) = (score_text(best), score_text(most));
    let lead = if best_score.is_some() && most_score.is_some() {
        "The configurations have no quality in common at which they could be compared: "
    } else {
        "Quality is unknown, so this is no comparison at equal quality: "
    };
    let named = |one: &Configuration<'_>, score: Option<String>| {
        let name = &one.first().scenario().name;
        score.map_or_else(|| name.clone(), |score| format!("{name} ({score})"))
    };
    let (best, most) = (named(best, best_score), named(most, most_score));
    Some(format!("{lead}{}.", factor.sentence(&best, &most, " per second of media")))
}

/// The score of a configuration, `VMAF 93.20`.
fn score_text(configuration: &Configuration<'_>) -> Option<String> {
    let (name, _) = score(configuration.first(), "")?;
    let scores = configuration.values(&|entry| Some(score(entry, &name)?.1));
    let metric = name.split(' ').next().unwrap_or_default().to_owned();
    Some(format!("{metric} {}", number::score(Estimate::of(&scores)?.mean)))
}

/// What is true of a configuration without another to compare it with.
fn one_configuration(all: &[Configuration<'_>]) -> Vec<String> {
    let energy = |configuration: &Configuration<'_>| {
        let figures = Figures::of(configuration);
        let text = |estimate: Option<Estimate>, unit: &str| {
            estimate.map(|one| with_unit_and_half_width(one.mean, one.half_width, unit))
        };
        let per_frame = text(figures.joules_per_frame, "J per frame");
        per_frame.or_else(|| text(figures.joules, "J"))
    };
    let Some((configuration, energy)) = all.iter().find_map(|one| Some((one, energy(one)?))) else {
        return vec!["No energy is known, so there is no verdict.".to_owned()];
    };
    let (name, kind) =
        (&configuration.first().scenario().name, unmeasured(&configuration.energy_source().unwrap_or_default()));
    let vmaf = Figures::of(configuration).vmaf;
    let quality = vmaf.map_or_else(
        || "its quality is unknown".to_owned(),
        |vmaf| format!("its VMAF is {}", score_with_half_width(vmaf.mean, vmaf.half_width)),
    );
    let why = if all.len() == 1 {
        "A comparison needs a second configuration.".to_owned()
    } else {
        format!("None of the {} configurations is comparable with another.", all.len())
    };
    vec![format!("{kind}{name} uses {energy}; {quality}. {why}")]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn energy_curve(label: &str, factor: f64, repeats: &[f64]) -> EnergyCurve {
        let repeats = [(80.0, 1.0), (90.0, 2.0), (96.0, 5.0)]
            .map(|(score, joules)| repeats.iter().map(|noise| [score, factor * joules * noise]).collect::<Vec<_>>());
        EnergyCurve { label: label.to_owned(), repeats: repeats.to_vec(), scores: 80.0..=96.0 }
    }

    #[test]
    fn encoders_are_compared_at_equal_quality_with_an_interval() {
        let (x264, x265) =
            (energy_curve("x264", 1.0, &[0.97, 1.0, 1.03]), energy_curve("x265", 4.6, &[0.95, 1.0, 1.05]));
        let factor = x264.factor(&x265, 93.0).unwrap();
        assert!((factor.value / 4.6 - 1.0).abs() < 1e-9, "{factor:?}");
        let bounds = factor.bounds.clone().unwrap();
        assert!(*bounds.start() > 4.0 && *bounds.end() < 5.3 && bounds.contains(&4.6), "{factor:?}");
        let text = factor.sentence("x264", "x265", "");
        assert!(
            text.starts_with("x264 uses 4.6") && text.contains("× less energy than x265, 95 % interval 4."),
            "{text}"
        );
    }

    #[test]
    fn single_repeats_have_no_interval_and_overlap_is_no_difference() {
        let (one, other) = (energy_curve("a", 1.0, &[1.0]), energy_curve("b", 2.0, &[1.0]));
        let text = one.factor(&other, 90.0).unwrap().sentence("a", "b", "");
        assert_eq!(
            text,
            "a uses 2× less energy than b, without an interval, because not every configuration was repeated"
        );
        let (one, other) = (energy_curve("a", 1.0, &[0.9, 1.0, 1.1]), energy_curve("b", 1.01, &[0.9, 1.0, 1.1]));
        let text = one.factor(&other, 90.0).unwrap().sentence("a", "b", "");
        assert!(text.starts_with("a and b do not differ significantly in energy: 1.01×, 95 % interval 0."), "{text}");
    }

    #[test]
    fn the_quality_is_a_usual_one_that_both_curves_cover() {
        let narrow = |low: f64, high: f64| EnergyCurve { scores: low..=high, ..energy_curve("n", 1.0, &[1.0]) };
        let quality = |curves: &[EnergyCurve]| common_quality(curves, "VMAF m mean");
        assert_eq!(quality(&[narrow(80.0, 96.0), narrow(70.0, 94.0)]), Some(93.0));
        assert_eq!(quality(&[narrow(80.0, 86.0), narrow(70.0, 94.0)]), Some(85.0));
        assert_eq!(quality(&[narrow(60.0, 64.0), narrow(62.0, 66.0)]), Some(63.0));
        assert_eq!(quality(&[narrow(60.0, 64.0), narrow(65.0, 66.0)]), None);
        assert_eq!(quality(&[narrow(80.0, 96.0)]), None);
        // What three have in common counts more than what is usual.
        assert_eq!(quality(&[narrow(80.0, 96.0), narrow(70.0, 96.0), narrow(70.0, 82.0)]), Some(80.0));
    }

    #[test]
    fn energy_that_is_not_measured_is_labelled() {
        assert_eq!(unmeasured("container, model+perf, idle power unknown"), "MODELLED energy: ");
        assert_eq!(unmeasured("host, perf"), "");
    }
}
