//! What a search found: the winner or the tie with the command line to use, the runners-up, and
//! what was not tried and why. It is the block `search` of a result file.

use std::fmt::Write as _;

use cli::number::{bit_rate, score_with_half_width, with_half_width};
use results::estimate::Estimate;
use serde::{Deserialize, Serialize};

use super::energy::{ERROR, MAX_EARLY_LOOKS, Measurement, Objective, Planner, Reason, Verdict};

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// One candidate is the best, with 95 %.
    Winner,
    /// Several candidates do not differ significantly.
    Tie,
    /// No candidate meets the constraints.
    Nothing,
}

/// The state of a candidate at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The best.
    Winner,
    /// One of those that do not differ.
    Tied,
    /// Needs significantly more than the best.
    Dearer,
    /// Does not meet a constraint.
    Constraint,
    /// Its encodes failed, or its encoder is missing.
    Failed,
}

/// The measurements of a candidate at one rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// The rate, `2000k` or `crf 23`.
    pub rate: String,
    /// Id of the configuration.
    #[serde(rename = "cell")]
    pub configuration: String,
    /// The quantity that was minimised.
    pub value: Option<Estimate>,
    /// VMAF.
    #[serde(default)]
    pub vmaf: Option<Estimate>,
    /// PSNR in dB.
    #[serde(default)]
    pub psnr: Option<Estimate>,
    /// Measured bit rate of a stream in kbit/s.
    pub kbps: Option<Estimate>,
}

/// A candidate and what was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CandidateReport {
    /// Encoder and preset.
    pub label: String,
    /// Encoder as ffmpeg names it.
    pub encoder: String,
    /// Encoder preset.
    pub preset: String,
    /// The state at the end.
    pub status: Status,
    /// Why it is out; empty for one that is not.
    pub why: String,
    /// The lowest rate that reaches the target, if it was found.
    #[serde(default)]
    pub at_target: Option<Tried>,
    /// All measured rates, ascending.
    pub tried: Vec<Tried>,
    /// Number of rates of its ladder.
    pub rates: usize,
}

/// The result of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchReport {
    /// The quantity that was minimised.
    pub objective: Objective,
    /// Its unit.
    pub unit: String,
    /// The quality to reach.
    pub target: String,
    /// How the search ended.
    pub outcome: Outcome,
    /// The result in one sentence.
    pub summary: String,
    /// Command line of the best candidate; empty without one.
    pub command: String,
    /// Number of encodes.
    pub encodes: usize,
    /// Number of encodes of every rate of every candidate with three repeats.
    pub full_grid_encodes: usize,
    /// How candidates were given up, and how sure that is.
    pub method: String,
    /// Scope and sources of the energy that was compared, and what was not; empty where unknown.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub basis: String,
    /// The candidates, the best first.
    pub candidates: Vec<CandidateReport>,
}

impl SearchReport {
    /// The result of a search that has ended. `cell` returns the id of a configuration, and
    /// `command` its command line, each by candidate and rung.
    #[must_use]
    pub fn of(
        planner: &Planner,
        unit: &str,
        cell: &dyn Fn(usize, usize) -> String,
        command: &dyn Fn(usize, usize) -> String,
    ) -> Self {
        let (search, verdict) = (planner.search(), planner.verdict());
        let best: Vec<usize> = match &verdict {
            Verdict::Winner(one) => vec![*one],
            Verdict::Tie(all) => all.clone(),
            Verdict::Nothing => Vec::new(),
        };
        let outcome = match verdict {
            Verdict::Winner(_) => Outcome::Winner,
            Verdict::Tie(_) => Outcome::Tie,
            Verdict::Nothing => Outcome::Nothing,
        };
        let in_status = if outcome == Outcome::Winner { Status::Winner } else { Status::Tied };
        let mut candidates: Vec<CandidateReport> =
            best.iter().map(|at| candidate_report(planner, *at, in_status, cell)).collect();
        let mut others: Vec<CandidateReport> = (0..search.candidates.len())
            .filter(|at| !best.contains(at))
            .map(|at| candidate_report(planner, at, status_of(planner, at), cell))
            .collect();
        let value = |one: &CandidateReport| {
            one.at_target.as_ref().and_then(|tried| tried.value).map_or(f64::INFINITY, |value| value.mean)
        };
        others.sort_by(|a, b| a.status.cmp(&b.status).then(value(a).total_cmp(&value(b))));
        candidates.extend(others);
        let first = best.first().and_then(|at| Some((*at, planner.solution(*at)?)));
        let mut report = Self {
            objective: search.objective,
            unit: unit.to_owned(),
            target: search.target(),
            outcome,
            summary: String::new(),
            command: first.map_or_else(String::new, |(at, rung)| command(at, rung)),
            encodes: planner.encodes(),
            full_grid_encodes: search.estimate().grid,
            method: method(planner),
            basis: String::new(),
            candidates,
        };
        report.summary = report.summary();
        report
    }

    fn summary(&self) -> String {
        let what = format!("Least {} at {}", self.objective_name(), self.target);
        let of = |status: Status| self.candidates.iter().filter(move |one| one.status == status);
        let failed = of(Status::Failed).count();
        let unmeasured = if failed > 0 { format!("; {failed} could not be measured") } else { String::new() };
        match self.outcome {
            Outcome::Nothing => format!("{what}: no candidate meets the constraints{unmeasured}"),
            Outcome::Winner => {
                let found = of(Status::Winner).map(|one| self.candidate_text(one)).next().unwrap_or_default();
                let others = match (of(Status::Dearer).count(), self.candidates.len() - failed) {
                    (_, 1) => "the only candidate",
                    (0, _) => "the only candidate that meets the constraints",
                    _ => "every other candidate needs more or does not meet the constraints, with 95 %",
                };
                // Nothing is known about these: one of them may need less.
                let unknown =
                    if failed > 0 { format!(", except {failed} that could not be measured") } else { String::new() };
                format!("{what}: {found}; {others}{unknown}")
            }
            Outcome::Tie => {
                let tied: Vec<String> = of(Status::Tied).map(|one| self.candidate_text(one)).collect();
                format!("{what}: a tie, no significant difference between {}{unmeasured}", tied.join(" and "))
            }
        }
    }

    fn objective_name(&self) -> &'static str {
        match self.objective {
            Objective::Energy => "energy",
            Objective::Cost => "cost",
            Objective::Carbon => "carbon",
        }
    }

    /// A candidate with its figures at the target.
    fn candidate_text(&self, one: &CandidateReport) -> String {
        let Some(tried) = &one.at_target else { return one.label.clone() };
        let value = tried.value.map(|one| format!("{} {}", with_half_width(one.mean, one.half_width), self.unit));
        let score = |one: Estimate| score_with_half_width(one.mean, one.half_width);
        let vmaf = tried.vmaf.map(|vmaf| format!("VMAF {}", score(vmaf)));
        let psnr = tried.psnr.map(|psnr| format!("PSNR {} dB", score(psnr)));
        let rate = tried.kbps.map(|kbps| bit_rate(kbps.mean * 1e3));
        let figures: Vec<String> = [value, vmaf, psnr, rate].into_iter().flatten().collect();
        format!("{} at {} ({})", one.label, tried.rate, figures.join(", "))
    }

    /// The result for a terminal: the summary first, then the command line, the runners-up, and the
    /// candidates that were given up.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.summary);
        if !self.command.is_empty() {
            let _ = writeln!(text, "  {}", self.command);
        }
        for one in self.candidates.iter().filter(|one| !one.why.is_empty()) {
            let tried = match one.tried.len() {
                0 => "not tried".to_owned(),
                count => format!("{count} of {} rates tried", one.rates),
            };
            let _ = writeln!(text, "  {}: {} ({tried})", self.candidate_text(one), one.why);
        }
        let remarks = self.remarks();
        let _ = writeln!(text, "  {} encodes; the full grid has {}. {remarks}", self.encodes, self.full_grid_encodes);
        text
    }

    /// What was compared, and how.
    #[must_use]
    pub fn remarks(&self) -> String {
        [&*self.basis, &*self.method].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

/// The status of a candidate that is not among the best.
fn status_of(planner: &Planner, at: usize) -> Status {
    match planner.exclusion(at).map(|exclusion| exclusion.reason) {
        Some(Reason::Dearer) => Status::Dearer,
        Some(Reason::Constraint) => Status::Constraint,
        Some(Reason::Failed) | None => Status::Failed,
    }
}

fn candidate_report(
    planner: &Planner,
    at: usize,
    status: Status,
    cell: &dyn Fn(usize, usize) -> String,
) -> CandidateReport {
    let candidate = &planner.search().candidates[at];
    let tried = |rung: usize, all: &[Measurement]| {
        let of = |value: &dyn Fn(&Measurement) -> Option<f64>| {
            Estimate::of(&all.iter().filter_map(value).collect::<Vec<_>>())
        };
        Tried {
            rate: candidate.ladder.text(rung),
            configuration: cell(at, rung),
            value: of(&|measured| Some(measured.value)),
            vmaf: of(&|measured| measured.vmaf),
            psnr: of(&|measured| measured.psnr),
            kbps: of(&|measured| Some(measured.kbps)),
        }
    };
    let points = planner.points(at);
    let solution = planner.solution(at);
    CandidateReport {
        label: candidate.label(),
        encoder: candidate.encoder.clone(),
        preset: candidate.preset.clone(),
        status,
        why: planner.exclusion(at).map(|exclusion| exclusion.text.clone()).unwrap_or_default(),
        at_target: solution.and_then(|rung| Some(tried(rung, points.get(&rung)?))),
        tried: points.iter().map(|(rung, all)| tried(*rung, all)).collect(),
        rates: candidate.ladder.len(),
    }
}

fn method(planner: &Planner) -> String {
    let (looks, others) = (planner.search().looks, planner.search().candidates.len().saturating_sub(1));
    if others == 0 {
        return "Rates between were not tried: the quality increases with the rate.".to_owned();
    }
    format!(
        "Other rates were not tried: the quality increases with the rate. A candidate is given up by a one-sided t test \
         against the best; all tests together are wrong in at most {:.0} % of searches: half of that for {MAX_EARLY_LOOKS} \
         early looks (spread of all repeats together), half for {looks} looks after rounds of repeats (Welch), divided by \
         {others} comparisons. Intervals are 95 %, of single means.",
        ERROR * 100.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::energy::{Candidate, EnergySearch, Ladder};

    fn planner(presets: &[(&str, f64)], target: f64) -> Planner {
        let candidate = |(preset, _): &(&str, f64)| Candidate {
            encoder: "libx264".to_owned(),
            preset: (*preset).to_owned(),
            ladder: Ladder::Kbps(vec![500, 1000, 2000]),
        };
        let search = EnergySearch {
            objective: Objective::Energy,
            target_vmaf: Some(target),
            target_psnr: None,
            max_kbps: None,
            realtime: false,
            candidates: presets.iter().map(candidate).collect(),
            looks: 3,
            seed: 1,
        };
        let mut planner = Planner::new(search);
        let mut noise = 0.0;
        while let Some(request) = planner.next_request() {
            noise = if noise > 0.01 { 0.0 } else { noise + 0.005 };
            let rate = [0.5, 1.0, 2.0][request.rung];
            let measured = Measurement {
                value: presets[request.candidate].1 * (1.0 + noise),
                vmaf: Some(90.0 + 3.0 * rate),
                psnr: None,
                kbps: rate * 1000.0,
                in_time: true,
            };
            planner.record(request, Ok(measured));
        }
        planner
    }

    fn report(presets: &[(&str, f64)], target: f64) -> SearchReport {
        let name = |candidate: usize, rung: usize| format!("{candidate}-{rung}");
        SearchReport::of(&planner(presets, target), "J per second of media", &name, &name)
    }

    #[test]
    fn the_first_line_names_the_winner_with_its_figures() {
        let report = report(&[("fast", 1.0), ("slow", 3.0)], 93.0);
        assert_eq!(report.outcome, Outcome::Winner);
        let text = report.text();
        let first = text.lines().next().unwrap();
        assert!(first.starts_with("Least energy at VMAF 93: libx264 fast at 1000k (1.0"), "{first}");
        assert!(first.contains("VMAF 93.00, 1000 kbit/s"), "{first}");
        assert_eq!(text.lines().nth(1), Some("  0-1"), "the command line");
        assert!(text.contains("libx264 slow") && text.contains("more than libx264 fast"), "{text}");
        let stored: SearchReport = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(stored.text(), text);
    }

    #[test]
    fn a_tie_and_no_solution_are_named() {
        let tie = report(&[("fast", 1.0), ("slow", 1.0)], 93.0);
        assert_eq!(tie.outcome, Outcome::Tie);
        assert!(tie.summary.contains("no significant difference between libx264"), "{}", tie.summary);
        let nothing = report(&[("fast", 1.0), ("slow", 1.0)], 99.0);
        assert_eq!((nothing.outcome, &*nothing.command), (Outcome::Nothing, ""));
        assert!(nothing.text().contains("libx264 slow: reaches only VMAF 96.00 at 2000k"), "{}", nothing.text());
    }

    /// A search whose encoders are missing said only that no candidate meets the constraints.
    #[test]
    fn candidates_that_could_not_be_measured_are_counted() {
        let mut planner = planner(&[("fast", 1.0), ("slow", 1.0)], 99.0);
        planner.leave_out(0, "ffmpeg has no such encoder");
        let name = |candidate: usize, rung: usize| format!("{candidate}-{rung}");
        let summary = SearchReport::of(&planner, "J per second of media", &name, &name).summary;
        assert!(summary.ends_with("no candidate meets the constraints; 1 could not be measured"), "{summary}");
    }
}
