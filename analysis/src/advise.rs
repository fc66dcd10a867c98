//! `advise`: recommends a configuration from measured runs.
//!
//! It prints the efficiency ranking and the Pareto front, the best configuration for a target
//! quality, and the power of a number of streams, interpolated between measured ones.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use crate::curves::{curves, energy_at};
use results::{
    cost::money::float,
    derived::EnergyClass,
    model::{Entry, Model},
    repeats::configurations,
    run::UNKNOWN,
};
use statistics::{Line, mean};
use units::provenance::Unmeasured;

/// The quantity to minimise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Joules per second of media
    #[default]
    Energy,
    /// Cost per stream hour
    Cost,
    /// Grams of CO2-equivalents per stream hour
    Carbon,
    /// Bits per second
    Bitrate,
}

/// The requested quality, output and number of streams.
#[derive(Clone, Debug, Default)]
pub struct AdviceRequest {
    /// Minimum VMAF.
    pub vmaf: Option<f64>,
    /// Output size, `1920x1080` or `1080p`; `None` for any.
    pub resolution: Option<String>,
    /// Quantity to minimise.
    pub objective: Objective,
    /// Number of streams to predict the power of.
    pub streams: Option<u32>,
}

/// A measured configuration; its values are means over the repeats.
#[derive(Clone, Debug, Serialize)]
pub struct Candidate {
    pub run: String,
    pub scenario: String,
    pub encoder: String,
    pub preset: String,
    pub bitrate: String,
    /// Configurations with the same outputs are comparable.
    pub output_ladder: String,
    pub streams: u32,
    pub vmaf: Option<f64>,
    /// Energy of the host, unless --energy.scope is set.
    pub joules_per_media_second: Option<f64>,
    /// In the currency of the prices.
    pub cost_per_stream_hour: Option<f64>,
    pub carbon_grams_per_stream_hour: Option<f64>,
    /// Of one stream.
    pub bits_per_second: Option<f64>,
    /// Pixels, or megabits, per joule.
    pub efficiency: Option<f64>,
    /// Rank in the run.
    pub rank: Option<u32>,
    /// Rank among the configurations with the same outputs.
    pub ladder_rank: Option<u32>,
    /// True if the configuration is on the Pareto front of those with the same outputs.
    pub pareto: bool,
    /// Mean power in watts.
    pub watts: Option<f64>,
    /// Source of the energy; `model` is an estimate.
    pub source: String,
    /// VMAF model, empty if unknown; scores of different models are not comparable.
    pub vmaf_model: String,
    pub repeats: usize,
    #[serde(skip)]
    energy_class: EnergyClass,
    /// Reason why it is not compared, else empty.
    pub left_out: String,
}

/// The recommended configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Recommendation {
    pub objective: Objective,
    pub scenario: String,
    pub run: String,
    pub why: String,
    /// Joules per second of media at exactly that VMAF, interpolated between measured bitrates.
    pub interpolated_joules_per_media_second: Option<f64>,
}

/// The predicted power of a number of streams.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// Encoder, preset, outputs and bitrate.
    pub configuration: String,
    pub streams: u32,
    /// Power of the host.
    pub watts: f64,
    /// Mean relative error of the fit in leave-one-out cross-validation.
    pub leave_one_out_error: f64,
    /// Measured numbers of streams.
    pub measured: Vec<u32>,
}

/// The result of `advise`.
#[derive(Clone, Debug, Serialize)]
pub struct Advice {
    pub currency: String,
    /// True if a price is not configured and has its default.
    pub default_prices: bool,
    /// Sorted by run and rank.
    pub scenarios: Vec<Candidate>,
    /// The recommended configuration, or why there is none.
    pub recommendation: Option<Result<Recommendation, String>>,
    /// The predicted power of each configuration, or why there is none.
    pub predictions: Vec<Result<Prediction, String>>,
}

/// Ranks the configurations of a model, and recommends one if a minimum VMAF is requested.
#[must_use]
pub fn advise(model: &Model, request: &AdviceRequest, currency: &str, default_prices: bool) -> Advice {
    let mut all = candidates(model);
    all.retain(|candidate| has_resolution(&candidate.output_ladder, request.resolution.as_deref()));
    mark_pareto_front(&mut all);
    all.sort_by(|a, b| {
        let rank = |candidate: &Candidate| candidate.rank.unwrap_or(u32::MAX);
        (&b.run, rank(a)).cmp(&(&a.run, rank(b)))
    });
    let recommendation = request.vmaf.map(|vmaf| recommend(model, &all, vmaf, request.objective));
    let predictions = request.streams.map(|streams| predict(&all, streams)).unwrap_or_default();
    Advice { currency: currency.to_owned(), default_prices, scenarios: all, recommendation, predictions }
}

/// True if the largest output of the ladder has this size: `1080p`, `1080` or `1920x1080`.
fn has_resolution(ladder: &str, resolution: Option<&str>) -> bool {
    let Some(requested) = resolution else { return true };
    let largest = ladder.split(['@', ',']).next().unwrap_or_default();
    let height = requested.trim_end_matches(['p', 'P']);
    largest == requested || largest.split_once('x').is_some_and(|(_, own)| own == height)
}

/// One candidate per configuration, with the means over the repeats whose energy is complete.
fn candidates(model: &Model) -> Vec<Candidate> {
    let merge = |repeats: Vec<Candidate>| {
        let complete: Vec<&Candidate> = repeats.iter().filter(|repeat| repeat.is_compared()).collect();
        let mean_of = |value: fn(&Candidate) -> Option<f64>| {
            mean(&complete.iter().filter_map(|repeat| value(repeat)).collect::<Vec<_>>())
        };
        let first = complete.first().copied().or(repeats.first())?;
        if complete.len() < 2 {
            return Some(first.clone());
        }
        Some(Candidate {
            vmaf: mean_of(|repeat| repeat.vmaf),
            joules_per_media_second: mean_of(|repeat| repeat.joules_per_media_second),
            cost_per_stream_hour: mean_of(|repeat| repeat.cost_per_stream_hour),
            carbon_grams_per_stream_hour: mean_of(|repeat| repeat.carbon_grams_per_stream_hour),
            efficiency: mean_of(|repeat| repeat.efficiency),
            watts: mean_of(|repeat| repeat.watts),
            repeats: complete.len(),
            ..first.clone()
        })
    };
    configurations(model)
        .iter()
        .filter_map(|configuration| merge(configuration.entries.iter().map(|entry| candidate(entry)).collect()))
        .collect()
}

fn candidate(entry: &Entry) -> Candidate {
    let (scenario, figures) = (entry.scenario(), &entry.derived);
    let hours = figures.media_seconds.map(|seconds| seconds / 3600.0).filter(|hours| *hours > 0.0);
    let left_out = match &entry.lookup.energy {
        None => format!("no energy: {}", entry.lookup.reason(scenario)),
        Some(energy) if !energy.is_whole() => {
            let part = energy.coverage.map_or("an unknown part".to_owned(), |part| format!("{:.0} %", part * 100.0));
            format!("samples cover {part} of its window")
        }
        Some(_) => String::new(),
    };
    Candidate {
        run: entry.run.id.clone(),
        scenario: scenario.name.clone(),
        encoder: scenario.encoder.clone(),
        preset: scenario.preset.clone(),
        bitrate: scenario.bitrate.clone(),
        output_ladder: figures.ladder.clone(),
        streams: scenario.stream_count().unwrap_or(1),
        vmaf: scenario.quality.vmaf.as_ref().map(|score| score.value),
        joules_per_media_second: figures.joules_per(figures.media_seconds),
        cost_per_stream_hour: entry.cost.per(hours).map(float),
        carbon_grams_per_stream_hour: entry.cost.carbon.map(float).zip(hours).map(|(grams, hours)| grams / hours),
        bits_per_second: scenario.bits_per_second(),
        efficiency: figures.efficiency,
        rank: figures.rank,
        ladder_rank: figures.ladder_rank,
        pareto: false,
        watts: figures.watts,
        source: figures.source.clone(),
        vmaf_model: scenario.quality.vmaf.as_ref().map(|score| score.model.clone()).unwrap_or_default(),
        repeats: 1,
        energy_class: figures.energy_class(),
        left_out,
    }
}

impl Candidate {
    fn is_compared(&self) -> bool {
        self.left_out.is_empty()
    }

    /// True if the energy of the whole window is known; such a candidate may still be no point of
    /// the Pareto front.
    fn is_measured(&self) -> bool {
        self.left_out.is_empty() || self.left_out.starts_with(INCOMPARABLE)
    }

    fn value(&self, objective: Objective) -> Option<f64> {
        match objective {
            Objective::Energy => self.joules_per_media_second,
            Objective::Cost => self.cost_per_stream_hour,
            Objective::Carbon => self.carbon_grams_per_stream_hour,
            Objective::Bitrate => self.bits_per_second,
        }
    }
}

/// Prefix of the reason why a measured candidate is not compared.
const INCOMPARABLE: &str = "not comparable";

/// Marks the Pareto front among the candidates of a run with the same outputs and streams, in
/// bitrate, quality and energy, and in cost if all of them have one.
fn mark_pareto_front(all: &mut [Candidate]) {
    let group = |one: &Candidate| {
        (one.run.clone(), one.output_ladder.clone(), one.streams, one.vmaf_model.clone(), one.energy_class)
    };
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (at, candidate) in all.iter_mut().enumerate() {
        if candidate.is_compared() {
            if candidate.vmaf.is_none()
                || candidate.bits_per_second.is_none()
                || candidate.joules_per_media_second.is_none()
            {
                candidate.left_out = format!("{INCOMPARABLE}: VMAF, bitrate or energy is missing");
                continue;
            }
            if candidate.output_ladder == UNKNOWN {
                candidate.left_out = format!("{INCOMPARABLE}: its outputs are unknown");
                continue;
            }
            groups.entry(group(candidate)).or_default().push(at);
        }
    }
    for members in groups.into_values() {
        let with_cost = members.iter().all(|at| all[*at].cost_per_stream_hour.is_some());
        // Smaller is better in each coordinate.
        let point = |candidate: &Candidate| -> [f64; 4] {
            [
                candidate.bits_per_second.unwrap_or_default(),
                -candidate.vmaf.unwrap_or_default(),
                candidate.joules_per_media_second.unwrap_or_default(),
                if with_cost { candidate.cost_per_stream_hour.unwrap_or_default() } else { 0.0 },
            ]
        };
        let points: Vec<(usize, [f64; 4])> = members.iter().map(|at| (*at, point(&all[*at]))).collect();
        for (at, own) in &points {
            let dominated = points.iter().any(|(_, other)| {
                other.iter().zip(own).all(|(a, b)| a <= b) && other.iter().zip(own).any(|(a, b)| a < b)
            });
            all[*at].pareto = !dominated;
        }
    }
}

fn recommend(model: &Model, all: &[Candidate], vmaf: f64, objective: Objective) -> Result<Recommendation, String> {
    let newest = all.iter().map(|candidate| &candidate.run).max().ok_or("no scenario matches")?;
    // Only within one run, as another run may be of another machine.
    let run: Vec<&Candidate> = all.iter().filter(|candidate| candidate.run == *newest).collect();
    let scored: Vec<&&Candidate> =
        run.iter().filter(|candidate| candidate.is_measured() && candidate.vmaf.is_some()).collect();
    let comparable =
        |a: &&&Candidate, b: &&&Candidate| a.vmaf_model == b.vmaf_model && a.energy_class == b.energy_class;
    if let Some(other) = scored.iter().find(|other| !comparable(other, &scored[0])) {
        return Err(format!(
            "run {newest}: {} and {} are not comparable: VMAF models {:?} and {:?}, energy from {} and {}",
            scored[0].scenario, other.scenario, scored[0].vmaf_model, other.vmaf_model, scored[0].source, other.source
        ));
    }
    let best = scored.iter().filter_map(|candidate| candidate.vmaf).max_by(f64::total_cmp);
    let best =
        best.ok_or_else(|| format!("run {newest}: no scenario with both quality and the energy of its whole window"))?;
    let good = scored.iter().filter(|candidate| candidate.vmaf.is_some_and(|score| score >= vmaf));
    let mut good: Vec<(&&&Candidate, f64)> =
        good.filter_map(|candidate| Some((candidate, candidate.value(objective)?))).collect();
    good.sort_by(|a, b| a.1.total_cmp(&b.1));
    let Some((chosen, value)) = good.first() else {
        return Err(format!("run {newest}: no scenario with a known value reaches VMAF {vmaf}; the best is {best}"));
    };
    let unit = match objective {
        Objective::Energy => "J per second of media",
        Objective::Cost => "per stream hour",
        Objective::Carbon => "g per stream hour",
        Objective::Bitrate => "bit/s",
    };
    let score = chosen.vmaf.unwrap_or_default();
    let interpolated = curves(model)
        .into_iter()
        .find(|(curve, _)| {
            curve.run == chosen.run
                && curve.encoder == chosen.encoder
                && curve.preset == chosen.preset
                && curve.ladder == chosen.output_ladder
                && curve.streams == chosen.streams
                && curve.model == chosen.vmaf_model
                && curve.energy_class == chosen.energy_class
        })
        .and_then(|(_, points)| energy_at(&points, vmaf));
    Ok(Recommendation {
        objective,
        scenario: chosen.scenario.clone(),
        run: chosen.run.clone(),
        why: format!(
            "VMAF {score} with {value:.6} {unit}; {} of {} measured scenarios reach VMAF {vmaf}",
            good.len(),
            scored.len()
        ),
        interpolated_joules_per_media_second: interpolated,
    })
}

/// Predicts the power of a number of streams by a linear fit, for each configuration of a run.
fn predict(all: &[Candidate], streams: u32) -> Vec<Result<Prediction, String>> {
    let mut groups: BTreeMap<(String, String), Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts: BTreeMap<(String, String), Vec<u32>> = BTreeMap::new();
    for candidate in all.iter().filter(|candidate| candidate.is_measured()) {
        let Some(watts) = candidate.watts else { continue };
        let source = if candidate.energy_class == EnergyClass::default() {
            String::new()
        } else {
            format!("({})", candidate.source)
        };
        let words = [&*candidate.encoder, &candidate.preset, &candidate.output_ladder, &candidate.bitrate, &source];
        let configuration = words.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join(" ");
        let key = (candidate.run.clone(), configuration);
        groups.entry(key.clone()).or_default().push((f64::from(candidate.streams), watts));
        counts.entry(key).or_default().push(candidate.streams);
    }
    let predict_one = |((run, configuration), points): (&(String, String), &Vec<(f64, f64)>)| {
        let mut measured = counts.get(&(run.clone(), configuration.clone())).cloned().unwrap_or_default();
        measured.sort_unstable();
        measured.dedup();
        let configuration = format!("run {run}, {configuration}");
        let numbers = measured.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if measured.len() < 3 {
            return Err(format!(
                "{configuration}: measured with {numbers} streams; three different numbers are needed"
            ));
        }
        if !(measured[0]..=measured[measured.len() - 1]).contains(&streams) {
            return Err(format!("{configuration}: measured with {numbers} streams; {streams} is outside that range"));
        }
        let (Some(line), Some(error)) = (Line::fit(points), Line::leave_one_out(points)) else {
            return Err(format!("{configuration}: no linear fit possible"));
        };
        Ok(Prediction {
            configuration,
            streams,
            watts: line.at(f64::from(streams)),
            leave_one_out_error: error,
            measured,
        })
    };
    let mut predictions: Vec<_> = groups.iter().map(predict_one).collect();
    if predictions.is_empty() {
        predictions.push(Err("no scenario with the power of its whole window".to_owned()));
    }
    predictions
}

impl Advice {
    /// The text output.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = self.candidates_table();
        out.push_str(
            "* on the Pareto front of bitrate, VMAF, energy and cost among the same outputs and streams\n  \
             rank by pixels per joule in its run, in brackets among the same outputs\n",
        );
        if self.default_prices {
            out.push_str("  prices: some are defaults, set --energy.price and --cpu.price\n");
        }
        for kind in Unmeasured::among(self.scenarios.iter().map(|candidate| &*candidate.source)) {
            let _ = writeln!(out, "  {}", kind.banner());
        }
        match &self.recommendation {
            None => {}
            Some(Err(why)) => {
                let _ = writeln!(out, "\nNo recommendation: {why}");
            }
            Some(Ok(chosen)) => {
                let _ = writeln!(out, "\nRecommended: {} (run {}): {}", chosen.scenario, chosen.run, chosen.why);
                if let Some(joules) = chosen.interpolated_joules_per_media_second {
                    let _ = writeln!(
                        out,
                        "  at exactly that VMAF, interpolated between bitrates: {joules:.3} J per second of media"
                    );
                }
            }
        }
        for prediction in &self.predictions {
            let _ = match prediction {
                Ok(prediction) => writeln!(
                    out,
                    "\n{} streams, {}: {:.1} W (mean error of the fit in cross-validation: {:.1} %)",
                    prediction.streams,
                    prediction.configuration,
                    prediction.watts,
                    prediction.leave_one_out_error * 100.0
                ),
                Err(why) => writeln!(out, "\nNo prediction: {why}"),
            };
        }
        out
    }

    fn candidates_table(&self) -> String {
        let number =
            |value: Option<f64>, digits: usize| value.map_or_else(|| "–".to_owned(), |v| format!("{v:.digits$}"));
        let cost_head = format!("{}/stream h", self.currency);
        let heads = ["", "scenario", "encoder", "VMAF", "J/media s", &cost_head, "Mbit/s", "rank", ""];
        let mut rows: Vec<[String; 9]> = vec![heads.map(str::to_owned)];
        for candidate in &self.scenarios {
            let rank = match (candidate.rank, candidate.ladder_rank) {
                (Some(all), Some(ladder)) => format!("{all} ({ladder})"),
                _ => "–".to_owned(),
            };
            rows.push([
                if candidate.pareto { "*" } else { "" }.to_owned(),
                format!("{} {}", candidate.run, candidate.scenario),
                [&*candidate.encoder, &candidate.preset].join(" ").trim().to_owned(),
                number(candidate.vmaf, 2),
                number(candidate.joules_per_media_second, 3),
                number(candidate.cost_per_stream_hour, 6),
                number(candidate.bits_per_second.map(|bits| bits / 1e6), 3),
                rank,
                candidate.left_out.clone(),
            ]);
        }
        let widths: Vec<usize> =
            (0..9).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()).collect();
        let mut out = String::new();
        for row in &rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[column] - cell.chars().count());
                let right = (3..8).contains(&column);
                let _ = if right { write!(line, "{pad}{cell}  ") } else { write!(line, "{cell}{pad}  ") };
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
        out
    }
}
