//! `advise`: which configuration to take. Ranks, what nothing else beats in everything, the cheapest for a quality, and the power of more streams than one has
//! tried, as far as that can be said from what was measured.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use crate::{
    cost::money::float,
    figures::{Entry, Kind, Model},
    qoe::{curves, energy_at},
    run::UNKNOWN,
    statistics::{Line, mean},
};

/// What is to be small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Joules for a second of media.
    #[default]
    Energy,
    /// Money for an hour of a stream.
    Cost,
    /// Grams of CO2-equivalents for an hour of a stream.
    Carbon,
    /// Bits for a second.
    Bitrate,
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// The least VMAF.
    pub vmaf: Option<f64>,
    /// Only outputs of this size: `1920x1080`, or its height.
    pub resolution: Option<String>,
    /// What is to be small.
    pub objective: Objective,
    /// For how many streams power is wanted.
    pub streams: Option<u32>,
}

/// One scenario, as far as it matters here.
#[derive(Clone, Debug, Serialize)]
pub struct Candidate {
    /// As in the label.
    pub run: String,
    /// As in the label.
    pub scenario: String,
    /// As in the label.
    pub encoder: String,
    /// Of the encoder.
    pub preset: String,
    /// As it was asked for.
    pub bitrate: String,
    /// Scenarios with the same are comparable.
    pub output_ladder: String,
    /// Streams at once.
    pub streams: u32,
    /// 0 to 100.
    pub vmaf: Option<f64>,
    /// Of the host, or as --energy.scope says.
    pub joules_per_media_second: Option<f64>,
    /// In the currency of prices.
    pub cost_per_stream_hour: Option<f64>,
    /// CO2-equivalents.
    pub carbon_grams_per_stream_hour: Option<f64>,
    /// One stream's.
    pub bits_per_second: Option<f64>,
    /// Pixels, or megabits, for a joule.
    pub efficiency: Option<f64>,
    /// Of the run.
    pub rank: Option<u32>,
    /// Of those with the same outputs.
    pub ladder_rank: Option<u32>,
    /// True when no other with the same outputs is as good in everything and better in something.
    pub pareto: bool,
    /// Mean power.
    pub watts: Option<f64>,
    /// How its joules were obtained; `model` is no measurement.
    pub source: String,
    /// The model of its VMAF; empty where the file does not say. Scores of two are not compared.
    pub vmaf_model: String,
    /// How often it was run; its figures are the means.
    pub repeats: usize,
    #[serde(skip)]
    kind: Kind,
    /// Why it is not compared; empty when it is.
    pub left_out: String,
}

/// What to take.
#[derive(Clone, Debug, Serialize)]
pub struct Recommendation {
    /// What is small.
    pub objective: Objective,
    /// The measured scenario.
    pub scenario: String,
    /// Its run.
    pub run: String,
    /// In words.
    pub why: String,
    /// Joules for a second of media at exactly that VMAF, between two measured bitrates of the same encoder.
    pub interpolated_joules_per_media_second: Option<f64>,
}

/// The power of a number of streams.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// What was run: encoder, preset, outputs, bitrate.
    pub configuration: String,
    /// How many.
    pub streams: u32,
    /// Of the host.
    pub watts: f64,
    /// How far such a line missed each measured number of streams that it had not seen, in the mean, as a part.
    pub leave_one_out_error: f64,
    /// Numbers of streams that were measured.
    pub measured: Vec<u32>,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Advice {
    /// Currency of costs.
    pub currency: String,
    /// True while a price in it is nobody's.
    pub default_prices: bool,
    /// By run, and rank.
    pub scenarios: Vec<Candidate>,
    /// What to take, or why nothing can be said.
    pub recommendation: Option<Result<Recommendation, String>>,
    /// The power of more streams, or why nothing can be said; for each configuration.
    pub predictions: Vec<Result<Prediction, String>>,
}

/// Answers.
#[must_use]
pub fn advise(model: &Model, question: &Question, currency: &str, default_prices: bool) -> Advice {
    let mut all = candidates(model);
    let fits = |candidate: &Candidate| fits(question.resolution.as_deref(), &candidate.output_ladder);
    all.retain(fits);
    pareto(&mut all);
    all.sort_by(|a, b| {
        let place = |candidate: &Candidate| candidate.rank.unwrap_or(u32::MAX);
        (&b.run, place(a)).cmp(&(&a.run, place(b)))
    });
    let recommendation = question.vmaf.map(|vmaf| recommend(model, &all, vmaf, question.objective));
    let predictions = question.streams.map(|streams| predict(&all, streams)).unwrap_or_default();
    Advice { currency: currency.to_owned(), default_prices, scenarios: all, recommendation, predictions }
}

/// `1080p`, `1080` and `1920x1080` are the outputs whose largest is that.
fn fits(resolution: Option<&str>, ladder: &str) -> bool {
    let Some(wanted) = resolution else { return true };
    let largest = ladder.split(['@', ',']).next().unwrap_or_default();
    let height = wanted.trim_end_matches(['p', 'P']);
    largest == wanted || largest.split_once('x').is_some_and(|(_, known)| known == height)
}

/// One for each configuration: repeats of a cell are one, at the mean of those that are whole.
fn candidates(model: &Model) -> Vec<Candidate> {
    let mut cells: BTreeMap<(&str, usize), Vec<Candidate>> = BTreeMap::new();
    let mut order = Vec::new();
    for entry in model.entries.iter().filter(|entry| !entry.scenario().is_baseline()) {
        let key = (&*entry.run.id, entry.scenario().cell.unwrap_or(usize::MAX - entry.at));
        if !cells.contains_key(&key) {
            order.push(key);
        }
        cells.entry(key).or_default().push(candidate(entry));
    }
    let one = |key| {
        let repeats: Vec<Candidate> = cells.remove(&key)?;
        let whole: Vec<&Candidate> = repeats.iter().filter(|repeat| repeat.is_compared()).collect();
        let of = |which: fn(&Candidate) -> Option<f64>| {
            mean(&whole.iter().filter_map(|repeat| which(repeat)).collect::<Vec<_>>())
        };
        let first = whole.first().copied().or(repeats.first())?;
        if whole.len() < 2 {
            return Some(first.clone());
        }
        Some(Candidate {
            vmaf: of(|repeat| repeat.vmaf),
            joules_per_media_second: of(|repeat| repeat.joules_per_media_second),
            cost_per_stream_hour: of(|repeat| repeat.cost_per_stream_hour),
            carbon_grams_per_stream_hour: of(|repeat| repeat.carbon_grams_per_stream_hour),
            efficiency: of(|repeat| repeat.efficiency),
            watts: of(|repeat| repeat.watts),
            repeats: whole.len(),
            ..first.clone()
        })
    };
    order.into_iter().filter_map(one).collect()
}

fn candidate(entry: &Entry) -> Candidate {
    let (scenario, figures) = (entry.scenario(), &entry.figures);
    let hours = figures.media_seconds.map(|seconds| seconds / 3600.0).filter(|hours| *hours > 0.0);
    let left_out = match &entry.answer.energy {
        None => format!("no energy: {}", entry.answer.reason(scenario)),
        Some(energy) if !energy.is_whole() => {
            let part = energy.coverage.map_or("nobody knows what".to_owned(), |part| format!("{:.0} %", part * 100.0));
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
        kind: figures.kind(),
        left_out,
    }
}

impl Candidate {
    fn is_compared(&self) -> bool {
        self.left_out.is_empty()
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

/// Marks what is not beaten. Compared are scenarios of one run with the same outputs and streams, in bitrate, quality and energy, and in cost where each of them has one.
fn pareto(all: &mut [Candidate]) {
    let group =
        |one: &Candidate| (one.run.clone(), one.output_ladder.clone(), one.streams, one.vmaf_model.clone(), one.kind);
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (at, candidate) in all.iter_mut().enumerate() {
        if candidate.is_compared() {
            if candidate.vmaf.is_none()
                || candidate.bits_per_second.is_none()
                || candidate.joules_per_media_second.is_none()
            {
                candidate.left_out = "no point: it lacks VMAF, bitrate or energy".to_owned();
                continue;
            }
            if candidate.output_ladder == UNKNOWN {
                candidate.left_out = "no point: nobody says what its outputs are".to_owned();
                continue;
            }
            groups.entry(group(candidate)).or_default().push(at);
        }
    }
    for members in groups.into_values() {
        let with_cost = members.iter().all(|at| all[*at].cost_per_stream_hour.is_some());
        // All to be small.
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
            let beaten = points.iter().any(|(_, other)| {
                other.iter().zip(own).all(|(a, b)| a <= b) && other.iter().zip(own).any(|(a, b)| a < b)
            });
            all[*at].pareto = !beaten;
        }
    }
}

fn recommend(model: &Model, all: &[Candidate], vmaf: f64, objective: Objective) -> Result<Recommendation, String> {
    let newest = all.iter().map(|candidate| &candidate.run).max().ok_or("no scenario fits")?;
    // Two runs are two days of one machine, or two machines.
    let run: Vec<&Candidate> = all.iter().filter(|candidate| candidate.run == *newest).collect();
    let compared =
        |candidate: &&&Candidate| candidate.left_out.is_empty() || candidate.left_out.starts_with("no point");
    let scored: Vec<&&Candidate> = run.iter().filter(compared).filter(|candidate| candidate.vmaf.is_some()).collect();
    let alike = |a: &&&Candidate, b: &&&Candidate| a.vmaf_model == b.vmaf_model && a.kind == b.kind;
    if let Some(other) = scored.iter().find(|other| !alike(other, &scored[0])) {
        return Err(format!(
            "run {newest}: {} and {} are not to be compared: VMAF models {:?} and {:?}, joules from {} and {}",
            scored[0].scenario, other.scenario, scored[0].vmaf_model, other.vmaf_model, scored[0].source, other.source
        ));
    }
    let best = scored.iter().filter_map(|candidate| candidate.vmaf).max_by(f64::total_cmp);
    let best =
        best.ok_or_else(|| format!("run {newest}: no scenario with both quality and energy of its whole window"))?;
    let good = scored.iter().filter(|candidate| candidate.vmaf.is_some_and(|score| score >= vmaf));
    let mut good: Vec<(&&&Candidate, f64)> =
        good.filter_map(|candidate| Some((candidate, candidate.value(objective)?))).collect();
    good.sort_by(|a, b| a.1.total_cmp(&b.1));
    let Some((chosen, value)) = good.first() else {
        return Err(format!("run {newest}: nothing measured reaches VMAF {vmaf} with that known; the best is {best}"));
    };
    let unit = match objective {
        Objective::Energy => "J for a second of media",
        Objective::Cost => "for an hour of a stream",
        Objective::Carbon => "g for an hour of a stream",
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
                && curve.kind == chosen.kind
        })
        .and_then(|(_, points)| energy_at(&points, vmaf));
    Ok(Recommendation {
        objective,
        scenario: chosen.scenario.clone(),
        run: chosen.run.clone(),
        why: format!(
            "VMAF {score} with {value:.6} {unit}; {} of {} measured reach VMAF {vmaf}",
            good.len(),
            scored.len()
        ),
        interpolated_joules_per_media_second: interpolated,
    })
}

/// A line through the measured power over the number of streams, for each configuration of a run.
fn predict(all: &[Candidate], streams: u32) -> Vec<Result<Prediction, String>> {
    let mut groups: BTreeMap<(String, String), Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts: BTreeMap<(String, String), Vec<u32>> = BTreeMap::new();
    for candidate in
        all.iter().filter(|candidate| candidate.left_out.is_empty() || candidate.left_out.starts_with("no point"))
    {
        let Some(watts) = candidate.watts else { continue };
        let of = if candidate.kind == Kind::default() { String::new() } else { format!("({})", candidate.source) };
        let words = [&*candidate.encoder, &candidate.preset, &candidate.output_ladder, &candidate.bitrate, &of];
        let configuration = words.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join(" ");
        let key = (candidate.run.clone(), configuration);
        groups.entry(key.clone()).or_default().push((f64::from(candidate.streams), watts));
        counts.entry(key).or_default().push(candidate.streams);
    }
    let one = |((run, configuration), points): (&(String, String), &Vec<(f64, f64)>)| {
        let mut measured = counts.get(&(run.clone(), configuration.clone())).cloned().unwrap_or_default();
        measured.sort_unstable();
        measured.dedup();
        let what = format!("run {run}, {configuration}");
        let said = measured.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if measured.len() < 3 {
            return Err(format!("{what}: measured with {said} streams; three different numbers are needed"));
        }
        if !(measured[0]..=measured[measured.len() - 1]).contains(&streams) {
            return Err(format!("{what}: measured with {said} streams; {streams} is outside of that"));
        }
        let (Some(line), Some(missed)) = (Line::fit(points), Line::leave_one_out(points)) else {
            return Err(format!("{what}: no line through its points"));
        };
        Ok(Prediction {
            configuration: what,
            streams,
            watts: line.at(f64::from(streams)),
            leave_one_out_error: missed,
            measured,
        })
    };
    let mut said: Vec<_> = groups.iter().map(one).collect();
    if said.is_empty() {
        said.push(Err("no scenario with power of its whole window".to_owned()));
    }
    said
}

impl Advice {
    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = String::new();
        let number =
            |value: Option<f64>, digits: usize| value.map_or_else(|| "–".to_owned(), |v| format!("{v:.digits$}"));
        let head = [
            "",
            "scenario",
            "encoder",
            "VMAF",
            "J/media s",
            &format!("{}/stream h", self.currency),
            "Mbit/s",
            "rank",
            "",
        ];
        let mut rows: Vec<[String; 9]> = vec![head.map(str::to_owned)];
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
        let wide: Vec<usize> =
            (0..9).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or_default()).collect();
        for row in &rows {
            let mut line = String::new();
            for (at, cell) in row.iter().enumerate() {
                let pad = " ".repeat(wide[at] - cell.chars().count());
                let right = (3..8).contains(&at);
                let _ = if right { write!(line, "{pad}{cell}  ") } else { write!(line, "{cell}{pad}  ") };
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
        out.push_str("* nothing with the same outputs and streams is as good in bitrate, VMAF, energy and cost, and better in one of them\n");
        out.push_str("  rank by pixels for a joule in its run, in brackets among the same outputs\n");
        if self.default_prices {
            out.push_str("  prices: a default stands in for one that nobody gave (--energy.price, --cpu.price)\n");
        }
        match &self.recommendation {
            None => {}
            Some(Err(why)) => {
                let _ = writeln!(out, "\nNo recommendation: {why}");
            }
            Some(Ok(chosen)) => {
                let _ = writeln!(out, "\nTake {} (run {}): {}", chosen.scenario, chosen.run, chosen.why);
                if let Some(joules) = chosen.interpolated_joules_per_media_second {
                    let _ = writeln!(
                        out,
                        "  at exactly that VMAF, between measured bitrates: {joules:.3} J for a second of media"
                    );
                }
            }
        }
        for prediction in &self.predictions {
            let _ = match prediction {
                Ok(known) => writeln!(
                    out,
                    "\n{} streams, {}: {:.1} W (a line that has not seen a point misses it by {:.1} % in the mean)",
                    known.streams,
                    known.configuration,
                    known.watts,
                    known.leave_one_out_error * 100.0
                ),
                Err(why) => writeln!(out, "\nNo prediction: {why}"),
            };
        }
        out
    }
}
