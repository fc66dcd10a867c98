//! `advise`: recommends a configuration from measured runs.
//!
//! It prints the efficiency ranking and the Pareto front, the best configuration for a target
//! quality, and the power of a number of streams, interpolated between measured ones.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use cli::{
    colour::Meaning,
    number::{self, bit_rate_with_half_width, per_stream_hours, score_with_half_width, with_half_width, with_unit},
    terminal::{Cell, Column, Table, View},
};

use crate::curves::{curves, energy_at};
use results::{
    derived::EnergyClass,
    estimate::Estimate,
    figures::{Figures, pareto_front},
    model::Model,
    repeats::{Configuration, configurations},
    run::UNKNOWN,
};
use statistics::Line;
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
    /// Output size, `1920x1080` or `1080p`, or all outputs, `1920x1080@30`; `None` for any.
    pub resolution: Option<String>,
    /// Quantity to minimise.
    pub objective: Objective,
    /// Number of streams to recommend a configuration for, and to predict the power of.
    pub streams: Option<u32>,
}

/// A measured configuration; its values are means over the repeats.
#[derive(Clone, Debug, Serialize)]
pub struct Candidate {
    pub run: String,
    pub scenario: String,
    pub encoder: String,
    pub preset: String,
    /// As requested; [`Candidate::bits_per_second`] is measured.
    pub bitrate: String,
    /// Configurations with the same outputs are comparable.
    pub output_ladder: String,
    pub streams: u32,
    pub vmaf: Option<f64>,
    /// Energy of [`Candidate::scope`].
    pub joules_per_media_second: Option<f64>,
    /// In the currency of the prices.
    pub cost_per_stream_hour: Option<f64>,
    pub carbon_grams_per_stream_hour: Option<f64>,
    /// Of one stream, measured where the size of the output is known.
    pub bits_per_second: Option<f64>,
    /// Pixels, or megabits, per joule.
    pub efficiency: Option<f64>,
    /// Half the widths of the 95 % intervals of these means.
    pub half_widths: HalfWidths,
    /// Rank in the run; configurations whose intervals overlap tie.
    pub rank: Option<u32>,
    /// Rank among the configurations with the same outputs.
    pub ladder_rank: Option<u32>,
    /// True if the configuration is on the Pareto front of those with the same outputs.
    pub pareto: bool,
    /// Mean power in watts.
    pub watts: Option<f64>,
    /// Scope of the energy, `host` or `container`; empty without energy.
    pub scope: &'static str,
    /// Source of the energy; `model` is an estimate.
    pub source: String,
    /// VMAF model, empty if unknown; scores of different models are not comparable.
    pub vmaf_model: String,
    pub repeats: usize,
    /// True if the idle power was unknown to the probe, so that the energy of the container
    /// includes a part of the idle energy.
    pub with_idle: bool,
    #[serde(skip)]
    energy_class: EnergyClass,
    /// True if the efficiency is pixels per joule, false for megabits per joule.
    #[serde(skip)]
    has_pixels: bool,
    /// Number of configurations among which `rank` and `ladder_rank` are.
    #[serde(skip)]
    ranked: (usize, usize),
    #[serde(skip)]
    figures: Figures,
    /// Reason why it is not compared, else empty.
    pub left_out: String,
    /// Remark on the energy, else empty.
    pub note: String,
}

/// Half the widths of 95 % intervals; absent for a single repeat.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HalfWidths {
    pub vmaf: Option<f64>,
    pub joules_per_media_second: Option<f64>,
    pub cost_per_stream_hour: Option<f64>,
    pub carbon_grams_per_stream_hour: Option<f64>,
    pub bits_per_second: Option<f64>,
    pub efficiency: Option<f64>,
}

/// The recommended configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Recommendation {
    pub objective: Objective,
    pub scenario: String,
    pub run: String,
    pub why: String,
    /// Configurations that are not known to be worse, because their intervals overlap.
    pub ties: Vec<String>,
    /// Joules per second of media at exactly that VMAF, interpolated between measured bitrates.
    pub interpolated_joules_per_media_second: Option<f64>,
}

/// The predicted power of a number of streams.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// Encoder, preset, outputs and bitrate.
    pub configuration: String,
    pub streams: u32,
    /// Power in the scope that the configuration names, else of the host.
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
    count_ranked(&mut all);
    all.retain(|candidate| has_resolution(&candidate.output_ladder, request.resolution.as_deref()));
    all.sort_by(|a, b| {
        let rank = |candidate: &Candidate| candidate.rank.unwrap_or(u32::MAX);
        (&b.run, rank(a)).cmp(&(&a.run, rank(b)))
    });
    let recommendation = request.vmaf.map(|vmaf| recommend(model, &all, vmaf, request, currency));
    let predictions = request.streams.map(|streams| predict(&all, streams)).unwrap_or_default();
    Advice { currency: currency.to_owned(), default_prices, scenarios: all, recommendation, predictions }
}

/// True if the outputs are these, or the largest has this size: `1080p`, `1080` or `1920x1080`.
fn has_resolution(ladder: &str, resolution: Option<&str>) -> bool {
    let Some(requested) = resolution else { return true };
    let largest = ladder.split(['@', ',']).next().unwrap_or_default();
    let height = requested.trim_end_matches(['p', 'P']);
    ladder == requested || largest == requested || largest.split_once('x').is_some_and(|(_, own)| own == height)
}

/// One candidate per configuration.
fn candidates(model: &Model) -> Vec<Candidate> {
    let all = configurations(model);
    let front = pareto_front(&all.iter().collect::<Vec<_>>());
    all.iter().zip(front).map(|(configuration, pareto)| candidate(configuration, pareto)).collect()
}

/// Counts among how many configurations each is ranked: those of its run that are comparable, also
/// if they are not shown.
fn count_ranked(all: &mut [Candidate]) {
    type Key = (String, bool, EnergyClass);
    let key = |one: &Candidate| -> Key { (one.run.clone(), one.has_pixels, one.energy_class) };
    let (mut ranks, mut ladders) = (BTreeMap::<Key, usize>::new(), BTreeMap::<(Key, String), usize>::new());
    for one in &*all {
        *ranks.entry(key(one)).or_default() += usize::from(one.rank.is_some());
        *ladders.entry((key(one), one.output_ladder.clone())).or_default() += usize::from(one.ladder_rank.is_some());
    }
    for one in all {
        let of_ladder = ladders.get(&(key(one), one.output_ladder.clone()));
        one.ranked = (ranks.get(&key(one)).copied().unwrap_or_default(), of_ladder.copied().unwrap_or_default());
    }
}

fn candidate(configuration: &Configuration<'_>, pareto: bool) -> Candidate {
    let (entry, figures) = (configuration.first(), Figures::of(configuration));
    let scenario = entry.scenario();
    let is_measured = figures.joules.is_some();
    let left_out = if !is_measured {
        if figures.note.is_empty() { "no energy".to_owned() } else { figures.note.clone() }
    } else if figures.vmaf.is_none() || figures.bits_per_second.is_none() || figures.joules_per_media_second.is_none() {
        "not comparable: VMAF, bitrate or energy is missing".to_owned()
    } else if entry.derived.ladder == UNKNOWN {
        "not comparable: its outputs are unknown".to_owned()
    } else {
        String::new()
    };
    let mean = |estimate: Option<Estimate>| estimate.map(|estimate| estimate.mean);
    let half_width = |estimate: Option<Estimate>| estimate.and_then(|estimate| estimate.half_width);
    Candidate {
        run: entry.run.id.clone(),
        scenario: scenario.name.clone(),
        encoder: scenario.encoder.clone(),
        preset: scenario.preset.clone(),
        bitrate: scenario.bitrate.clone(),
        output_ladder: entry.derived.ladder.clone(),
        streams: scenario.stream_count().unwrap_or(1),
        vmaf: mean(figures.vmaf),
        joules_per_media_second: mean(figures.joules_per_media_second),
        cost_per_stream_hour: mean(figures.cost_per_stream_hour),
        carbon_grams_per_stream_hour: mean(figures.carbon_grams_per_stream_hour),
        bits_per_second: mean(figures.bits_per_second),
        efficiency: mean(figures.efficiency),
        half_widths: HalfWidths {
            vmaf: half_width(figures.vmaf),
            joules_per_media_second: half_width(figures.joules_per_media_second),
            cost_per_stream_hour: half_width(figures.cost_per_stream_hour),
            carbon_grams_per_stream_hour: half_width(figures.carbon_grams_per_stream_hour),
            bits_per_second: half_width(figures.bits_per_second),
            efficiency: half_width(figures.efficiency),
        },
        rank: figures.rank,
        ladder_rank: figures.ladder_rank,
        pareto,
        watts: mean(figures.watts),
        scope: entry.derived.scope.map_or("", results::energy::Scope::as_str),
        source: entry.derived.source.clone(),
        vmaf_model: scenario.quality.vmaf.as_ref().map(|score| score.model.clone()).unwrap_or_default(),
        repeats: configuration.entries.len(),
        with_idle: entry.derived.energy_class().includes_idle(),
        energy_class: entry.derived.energy_class(),
        has_pixels: entry.derived.pixels.is_some(),
        ranked: (0, 0),
        note: if left_out == figures.note { String::new() } else { figures.note.clone() },
        figures,
        left_out,
    }
}

impl Candidate {
    /// True if the energy of the whole window is known; such a candidate may still be no point of
    /// the Pareto front.
    fn is_measured(&self) -> bool {
        self.figures.joules.is_some()
    }

    /// True if it may be recommended for a quality.
    fn is_scored(&self) -> bool {
        self.is_measured() && self.figures.vmaf.is_some() && self.output_ladder != UNKNOWN
    }

    fn value(&self, objective: Objective) -> Option<Estimate> {
        match objective {
            Objective::Energy => self.figures.joules_per_media_second,
            Objective::Cost => self.figures.cost_per_stream_hour,
            Objective::Carbon => self.figures.carbon_grams_per_stream_hour,
            Objective::Bitrate => self.figures.bits_per_second,
        }
    }
}

/// The candidates among which one is recommended: of the newest run that has any, as another run
/// may be of another machine, and all with the same outputs and number of streams.
///
/// # Errors
/// Why there are none, or what must be chosen.
fn comparable<'a>(all: &'a [Candidate], request: &AdviceRequest) -> Result<Vec<&'a Candidate>, String> {
    if all.is_empty() {
        return Err(match &request.resolution {
            Some(resolution) => format!("no scenario has the output {resolution}; without --resolution all are shown"),
            None => "the runs have no scenario that encodes".to_owned(),
        });
    }
    let scored = || all.iter().filter(|candidate| candidate.is_scored());
    let newest = scored().map(|candidate| &candidate.run).max().ok_or(
        "no scenario with both quality and the energy of its whole window; quality is scored by \
         `wattcast-analysis run --analyze-quality`, but not of live streams",
    )?;
    let of_run = || scored().filter(move |candidate| candidate.run == *newest);
    let of_streams = |candidate: &&Candidate| request.streams.is_none_or(|streams| candidate.streams == streams);
    let chosen: Vec<&Candidate> = of_run().filter(of_streams).collect();
    let list = |mut values: Vec<String>| {
        values.sort();
        values.dedup();
        values.join(", ")
    };
    if chosen.is_empty() {
        let streams = list(of_run().map(|candidate| candidate.streams.to_string()).collect());
        return Err(format!("run {newest}: quality is known for {streams} streams; choose one with --streams"));
    }
    if chosen.iter().any(|candidate| candidate.output_ladder != chosen[0].output_ladder) {
        let outputs = list(chosen.iter().map(|candidate| candidate.output_ladder.clone()).collect());
        return Err(format!("run {newest} has several outputs: {outputs}; choose with --resolution"));
    }
    if chosen.iter().any(|candidate| candidate.streams != chosen[0].streams) {
        let streams = list(chosen.iter().map(|candidate| candidate.streams.to_string()).collect());
        return Err(format!("run {newest} has several numbers of streams: {streams}; choose one with --streams"));
    }
    let is_other =
        |one: &&&Candidate| one.vmaf_model != chosen[0].vmaf_model || one.energy_class != chosen[0].energy_class;
    if let Some(other) = chosen.iter().find(is_other) {
        let first = chosen[0];
        let energy = |one: &Candidate| {
            let idle = if one.with_idle { ", idle power unknown" } else { "" };
            format!("the {} ({}{idle})", one.scope, one.source)
        };
        return Err(format!(
            "run {newest}: {} and {} are not comparable: VMAF models {:?} and {:?}, energy from {} and {}",
            first.scenario,
            other.scenario,
            first.vmaf_model,
            other.vmaf_model,
            energy(first),
            energy(other)
        ));
    }
    Ok(chosen)
}

fn recommend(
    model: &Model,
    all: &[Candidate],
    vmaf: f64,
    request: &AdviceRequest,
    currency: &str,
) -> Result<Recommendation, String> {
    let (scored, objective) = (comparable(all, request)?, request.objective);
    let run = &scored[0].run;
    let good = scored.iter().filter(|candidate| candidate.vmaf.is_some_and(|score| score >= vmaf));
    let mut good: Vec<(&Candidate, Estimate)> =
        good.filter_map(|candidate| Some((*candidate, candidate.value(objective)?))).collect();
    good.sort_by(|a, b| a.1.mean.total_cmp(&b.1.mean));
    let Some((chosen, value)) = good.first().copied() else {
        let best = scored.iter().filter_map(|candidate| candidate.vmaf).max_by(f64::total_cmp).unwrap_or_default();
        // Rounded down, so that it does not look like the target. 81.35 in hundredths is a little
        // less than 8135.
        let best = number::score((best * 100.0 + 1e-6).floor() / 100.0);
        return Err(format!("run {run}: no scenario with a known value reaches VMAF {vmaf}; the best is {best}"));
    };
    let ties: Vec<String> = good[1..]
        .iter()
        .filter(|(_, other)| other.overlaps(&value))
        .map(|(candidate, _)| candidate.scenario.clone())
        .collect();
    let mut why = format!(
        "VMAF {} with {}; {} of {} measured scenarios reach VMAF {vmaf}",
        score_text(chosen.vmaf, chosen.half_widths.vmaf),
        amount_text(objective, value, chosen, currency, cost_unit(all)),
        good.len(),
        scored.len()
    );
    if !ties.is_empty() {
        let _ = write!(why, "; tie with {}: the intervals overlap", ties.join(", "));
    }
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
        why,
        ties,
        interpolated_joules_per_media_second: interpolated,
    })
}

/// A VMAF score, with the digits of its interval if it has one.
fn score_text(vmaf: Option<f64>, half_width: Option<f64>) -> String {
    vmaf.map_or_else(|| "–".to_owned(), |vmaf| score_with_half_width(vmaf, half_width))
}

/// The factor of costs and the words for it, for the table and the text.
fn cost_unit(all: &[Candidate]) -> (f64, &'static str) {
    per_stream_hours(all.iter().filter_map(|candidate| candidate.cost_per_stream_hour).fold(0.0, f64::max))
}

/// The value of the objective with its unit.
fn amount_text(
    objective: Objective,
    value: Estimate,
    chosen: &Candidate,
    currency: &str,
    (per_hours, hours): (f64, &str),
) -> String {
    let amount = |factor: f64| with_half_width(value.mean * factor, value.half_width.map(|half| half * factor));
    match objective {
        Objective::Energy => {
            format!("{} J per second of media (energy of the {}, {})", amount(1.0), chosen.scope, chosen.source)
        }
        Objective::Cost => format!("{} {currency} per {hours}", amount(per_hours)),
        Objective::Carbon => format!("{} g per stream hour", amount(1.0)),
        Objective::Bitrate => bit_rate_with_half_width(value.mean, value.half_width),
    }
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
            format!("({} {})", candidate.scope, candidate.source)
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
    pub fn text(&self, view: View) -> String {
        let mut out = self.candidates_table(view);
        out += &view.fit(&self.legend());
        match &self.recommendation {
            None => {}
            Some(Err(why)) => {
                let head = view.paint(Meaning::Warning, "No recommendation");
                out += &view.fit(&format!("\n{head}: {why}\n"));
            }
            Some(Ok(chosen)) => {
                let head = view.paint(Meaning::Better, "Recommended");
                out += &view.fit(&format!("\n{head}: {} (run {}): {}\n", chosen.scenario, chosen.run, chosen.why));
                if let Some(joules) = chosen.interpolated_joules_per_media_second {
                    let joules = with_unit(joules, "J");
                    out += &view.fit(&format!(
                        "  at exactly that VMAF, interpolated between bitrates: {joules} per second of media\n"
                    ));
                }
            }
        }
        for prediction in &self.predictions {
            out += &view.fit(&match prediction {
                Ok(prediction) => format!(
                    "\n{} streams, {}: {} (mean error of the fit in cross-validation: {:.1} %)\n",
                    prediction.streams,
                    prediction.configuration,
                    with_unit(prediction.watts, "W"),
                    prediction.leave_one_out_error * 100.0
                ),
                Err(why) => format!("\nNo prediction: {why}\n"),
            });
        }
        out
    }

    /// What the table does not say itself.
    fn legend(&self) -> String {
        let mut out = String::from(
            "* on the Pareto front of bitrate, VMAF and energy among the same outputs and streams\n  \
             ±: half the width of the 95 % interval over the repeats; Mbit/s as measured, if the size is known\n  \
             rank: by pixels per joule among all comparable scenarios of the run; overlapping intervals tie\n",
        );
        if self.scenarios.iter().any(|one| one.rank.is_some() && one.repeats == 1) {
            out += "  a single repeat has no interval, so any difference gives it another rank: measure with --repeats 3\n";
        }
        if self.default_prices {
            out += "  prices: that of energy is the default, set --energy.price\n";
        }
        let scenarios = self.scenarios.iter();
        let energy = scenarios.map(|candidate| (&*candidate.source, candidate.figures.model_interval));
        for sentence in Unmeasured::sentences(energy) {
            let _ = writeln!(out, "  {sentence}");
        }
        out
    }

    fn candidates_table(&self, view: View) -> String {
        let number = |value: Option<f64>, half_width: Option<f64>, factor: f64| {
            value.map_or_else(
                || "–".to_owned(),
                |value| with_half_width(value * factor, half_width.map(|half| half * factor)),
            )
        };
        let rank =
            |rank: Option<u32>, count: usize| rank.map_or_else(|| "–".to_owned(), |rank| format!("{rank} of {count}"));
        let (per_hours, hours) = cost_unit(&self.scenarios);
        // The run is named once, unless there are several.
        let first = self.scenarios.first().map_or("", |candidate| candidate.run.as_str());
        let is_one_run = self.scenarios.iter().all(|candidate| candidate.run == first);
        let mut table = Table::new([
            Column::left(""),
            Column::left("scenario"),
            Column::left("encoder"),
            Column::right("streams"),
            Column::right("n"),
            Column::right("VMAF"),
            Column::right("J/media s"),
            Column::right(&format!("{}/{hours}", self.currency)),
            Column::right("Mbit/s"),
            Column::right("rank"),
            Column::right("same outputs"),
            Column::left("energy of"),
            Column::prose(""),
        ]);
        for candidate in &self.scenarios {
            let widths = &candidate.half_widths;
            let name = &candidate.scenario;
            table.push([
                Cell::coloured(if candidate.pareto { "*" } else { "" }, Meaning::Better),
                Cell::from(if is_one_run { name.clone() } else { format!("{} {name}", candidate.run) }),
                Cell::from([&*candidate.encoder, &candidate.preset].join(" ").trim()),
                Cell::from(candidate.streams.to_string()),
                Cell::from(candidate.repeats.to_string()),
                Cell::from(score_text(candidate.vmaf, widths.vmaf)),
                Cell::from(number(candidate.joules_per_media_second, widths.joules_per_media_second, 1.0)),
                Cell::from(number(candidate.cost_per_stream_hour, widths.cost_per_stream_hour, per_hours)),
                Cell::from(number(candidate.bits_per_second, widths.bits_per_second, 1e-6)),
                Cell::from(rank(candidate.rank, candidate.ranked.0)),
                Cell::from(rank(candidate.ladder_rank, candidate.ranked.1)),
                Cell::from([candidate.scope, &candidate.source].join(" ").trim()),
                Cell::coloured([&*candidate.left_out, &candidate.note].join(" ").trim(), Meaning::Warning),
            ]);
        }
        let head = if is_one_run && !first.is_empty() { format!("Run {first}\n") } else { String::new() };
        head + &table.text(view)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use results::{
        cost::Prices,
        energy::{EnergySources, Scope},
        store,
    };

    use super::*;

    /// Scenarios with one repeat each: height of the output, VMAF, joules of 100 seconds.
    fn advice(rows: &[(u32, f64, f64)], request: &AdviceRequest) -> Advice {
        let row = |(number, (height, vmaf, joules)): (usize, &(u32, f64, f64))| {
            format!(
                r#"{{"name":"s{number}","encoder_type":"libx264","bitrate":"1M","resolution":"{}x{height}","fps":30,"duration":100,
                "total_frames":3000,"energy_joules":{joules},"vmaf_score":{vmaf}}}"#,
                height * 16 / 9
            )
        };
        let rows: Vec<String> = rows.iter().enumerate().map(row).collect();
        let file = format!(r#"{{"scenarios":[{}]}}"#, rows.join(","));
        let run = Arc::new(store::parse("20260101_000000", file.as_bytes()).unwrap());
        let lookups = run.scenarios.iter().map(EnergySources::from_file).collect();
        let model = Model::new(&[(run, lookups)], Scope::Host, &Prices::defaults());
        advise(&model, request, "EUR", false)
    }

    /// `--resolution` left ranks like 2, 4 and 6 without a word on the others.
    #[test]
    fn a_rank_says_among_how_many() {
        let request = AdviceRequest { resolution: Some("720p".to_owned()), ..AdviceRequest::default() };
        let rows =
            [(1080, 90.0, 4000.0), (720, 87.087_425_980_000_02, 3000.0), (1080, 92.0, 2000.0), (720, 91.0, 9000.0)];
        let text = advice(&rows, &request).text(View { columns: 200, ..View::PLAIN });
        assert!(text.contains(" of 4") && text.contains("1 of 2") && text.contains("2 of 2"), "{text}");
        assert!(text.contains("a single repeat has no interval"), "{text}");
        assert!(text.contains("87.09") && !text.contains("87.087"), "{text}");
        assert!(text.starts_with("Run 20260101_000000\n") && text.contains("EUR/"), "{text}");
        let narrow = advice(&rows, &request).text(View::PLAIN);
        let head = narrow.split("* on the").next().unwrap();
        assert!(head.lines().all(|line| line.chars().count() <= 80), "{narrow}");
    }

    /// The table had the cost of an hour, and the recommendation that of a thousand.
    #[test]
    fn a_recommended_cost_has_the_unit_of_the_table() {
        let objective = Objective::Cost;
        let request = AdviceRequest { vmaf: Some(80.0), objective, ..AdviceRequest::default() };
        // 0.12 for a kilowatt hour: 0.24 and 0.012 for an hour.
        let advice = advice(&[(720, 90.0, 200_000.0), (720, 91.0, 10_000.0)], &request);
        let text = advice.text(View { columns: 300, ..View::PLAIN });
        assert!(text.contains("EUR/stream hour") && text.contains(" with 0.012 EUR per stream hour;"), "{text}");
    }

    #[test]
    fn the_best_score_does_not_look_like_the_target() {
        let request = AdviceRequest { vmaf: Some(93.0), ..AdviceRequest::default() };
        for (vmaf, shown) in [(92.999, "92.99"), (81.35, "81.35")] {
            let why = advice(&[(720, vmaf, 10.0)], &request).recommendation.and_then(Result::err).unwrap();
            assert!(why.ends_with(&format!("reaches VMAF 93; the best is {shown}")), "{why}");
        }
    }
}
