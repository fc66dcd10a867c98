//! The search for the encoder settings that need the least energy, cost or carbon at a target
//! quality.
//!
//! A candidate is an encoder with a preset. Its rate is the lowest of its ladder that reaches the
//! target: quality increases with the rate, so a bisection finds it with a few encodes. Then
//! repeats at these rates decide between the candidates. [`Planner`] is fed with measurements and
//! says what to measure next; it does the same again when it is fed with the same measurements.
//!
//! A candidate is given up only by a one-sided t test against the best one. All tests together are
//! wrong with a probability of 5 % at most (Bonferroni): one half is spent on early looks, the
//! other on looks after complete rounds of repeats, each divided by the number of looks and of
//! comparisons. So the winner is the best candidate with 95 %, whatever the order of the tests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use statistics::{
    inference::{Welch, t_cdf},
    mean,
};

/// Probability that the best candidate is given up, all tests together.
pub const ERROR: f64 = 0.05;
/// Repeats of the best candidate so far, before others are compared with it: the spread of fewer
/// repeats is so uncertain that hardly any candidate is given up early.
const REFERENCE_REPEATS: usize = 4;
/// Repeats of a candidate before the first look after a round.
const MIN_REPEATS: usize = 3;
/// Most early looks at a candidate.
pub const MAX_EARLY_LOOKS: u32 = 8;
/// Failed encodes in succession after which a candidate is given up.
const MAX_FAILURES: u32 = 2;
/// Late encodes of a configuration after which it does not keep up with real time: other load can
/// delay one.
const MAX_LATE: usize = 2;
/// Rates of a ladder per doubling of the bit rate: a step is 19 %.
const STEPS_PER_DOUBLING: f64 = 4.0;
/// Block of all encodes before the rounds of repeats.
pub const FIRST_BLOCK: u32 = 1;
/// Repeats of each configuration of a full grid, for the comparison of the number of encodes.
const GRID_REPEATS: usize = 3;

/// The quantity to minimise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Joules per second of media
    #[default]
    Energy,
    /// Cost per stream hour
    Cost,
    /// Grams of CO2-equivalents per stream hour
    Carbon,
}

/// The rates of a candidate, in ascending quality.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ladder {
    /// Target bit rates in kbit/s, ascending.
    Kbps(Vec<u32>),
    /// Constant rate factors, descending.
    Crf(Vec<u32>),
}

impl Ladder {
    /// Bit rates from `low` to `high` kbit/s in equal steps of their logarithm, of 19 % at most.
    #[must_use]
    pub fn kbps(low: u32, high: u32) -> Self {
        let (low, high) = (low.max(1), high.max(low).max(1));
        let doublings = (f64::from(high) / f64::from(low)).log2();
        let steps = (doublings * STEPS_PER_DOUBLING).ceil().max(1.0);
        let (mut rates, mut step) = (Vec::new(), 0.0);
        while step <= steps {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two bit rates")]
            let rate = (f64::from(low) * (doublings * step / steps).exp2()).round() as u32;
            rates.push(rate.clamp(low, high));
            step += 1.0;
        }
        rates.dedup();
        Self::Kbps(rates)
    }

    /// Number of rates.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Kbps(rates) | Self::Crf(rates) => rates.len(),
        }
    }

    /// True without any rate.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A rate as text: `2000k`, `crf 23`.
    #[must_use]
    pub fn text(&self, rung: usize) -> String {
        match self {
            Self::Kbps(rates) => rates.get(rung).map_or_else(String::new, |rate| format!("{rate}k")),
            Self::Crf(rates) => rates.get(rung).map_or_else(String::new, |crf| format!("crf {crf}")),
        }
    }
}

/// An encoder with a preset and a kind of rate control.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Encoder as ffmpeg names it.
    pub encoder: String,
    /// Encoder preset; empty for the encoder's default.
    pub preset: String,
    /// Its rates.
    pub ladder: Ladder,
}

impl Candidate {
    /// Encoder and preset, and the kind of rate control unless it is a bit rate.
    #[must_use]
    pub fn label(&self) -> String {
        let crf = if matches!(self.ladder, Ladder::Crf(_)) { "crf" } else { "" };
        let words = [&*self.encoder, &*self.preset, crf];
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

/// What is searched. A part of the plan of a run, so that a resumed search continues unchanged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EnergySearch {
    /// The quantity to minimise.
    pub objective: Objective,
    /// VMAF score to reach.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target_vmaf: Option<f64>,
    /// PSNR to reach, in dB.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target_psnr: Option<f64>,
    /// Largest measured bit rate of a stream in kbit/s.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_kbps: Option<u32>,
    /// True when encoders must keep up with real time.
    pub realtime: bool,
    /// The candidates, those that are expected to need the least first.
    pub candidates: Vec<Candidate>,
    /// Most looks after rounds of repeats.
    pub looks: u32,
    /// Seed of the order within a round.
    pub seed: u64,
}

impl EnergySearch {
    /// The target as text: `VMAF 93`, `VMAF 93 and PSNR 40 dB`.
    #[must_use]
    pub fn target(&self) -> String {
        let vmaf = self.target_vmaf.map(|score| format!("VMAF {score}"));
        let psnr = self.target_psnr.map(|score| format!("PSNR {score} dB"));
        [vmaf, psnr].into_iter().flatten().collect::<Vec<_>>().join(" and ")
    }

    /// By how much an encode exceeds the target, in points of the metric that exceeds it least;
    /// negative below the target.
    fn margin(&self, measured: &Measurement) -> f64 {
        let of = |score: Option<f64>, target: Option<f64>| Some(score.unwrap_or(f64::NEG_INFINITY) - target?);
        let margins = [of(measured.vmaf, self.target_vmaf), of(measured.psnr, self.target_psnr)];
        margins.into_iter().flatten().fold(f64::INFINITY, f64::min)
    }

    /// Most repeats of a configuration.
    fn max_repeats(&self) -> usize {
        MIN_REPEATS + usize::try_from(self.looks.max(1)).unwrap_or(usize::MAX / 2) - 1
    }

    /// How many encodes the search needs.
    #[must_use]
    pub fn estimate(&self) -> EncodeEstimate {
        let rungs = |candidate: &Candidate| candidate.ladder.len();
        let count = self.candidates.len();
        // The first bisection halves the ladder; the others begin where an earlier one ended.
        let halvings = |rungs: usize| usize::try_from(rungs.max(1).ilog2()).unwrap_or(0) + 1;
        let first = self.candidates.first().map_or(0, |candidate| halvings(rungs(candidate)));
        let others: usize = self.candidates.iter().skip(1).map(|candidate| rungs(candidate).min(3)).sum();
        let reference = if count > 1 { REFERENCE_REPEATS - 1 } else { MIN_REPEATS - 1 };
        let close = count.saturating_sub(1).min(2) * MIN_REPEATS;
        let longest: usize =
            self.candidates.iter().map(|candidate| rungs(candidate).min(3 * halvings(rungs(candidate)))).sum();
        let most = longest + count * self.max_repeats().max(REFERENCE_REPEATS);
        let grid: usize = self.candidates.iter().map(|candidate| rungs(candidate) * GRID_REPEATS).sum();
        EncodeEstimate { expected: (first + others + reference + close).min(most), most, grid }
    }
}

/// Number of encodes of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EncodeEstimate {
    /// If two candidates are close to the best.
    pub expected: usize,
    /// If no candidate is given up and all looks are needed.
    pub most: usize,
    /// Every rate of every candidate, three times each.
    pub grid: usize,
}

/// One measured encode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measurement {
    /// The quantity to minimise; positive.
    pub value: f64,
    /// VMAF, if known.
    pub vmaf: Option<f64>,
    /// PSNR in dB, if known.
    pub psnr: Option<f64>,
    /// Measured bit rate of one stream in kbit/s.
    pub kbps: f64,
    /// False when the encode took longer than real time and that is required.
    pub in_time: bool,
}

/// An encode to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Index of the candidate.
    pub candidate: usize,
    /// Index of the rate in its ladder.
    pub rung: usize,
    /// Number of the repeat, from 1.
    pub repeat: u32,
    /// The block of the repeat: [`FIRST_BLOCK`], then one for each round.
    pub block: u32,
}

/// Why a candidate is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It cannot meet a constraint.
    Constraint,
    /// It needs significantly more than the best.
    Dearer,
    /// Its encodes failed.
    Failed,
}

/// A candidate that is out, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Exclusion {
    /// The kind of reason.
    pub reason: Reason,
    /// The reason.
    pub text: String,
}

/// The result of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All others are out.
    Winner(usize),
    /// The looks are used up; the candidates by their means, the least first.
    Tie(Vec<usize>),
    /// No candidate meets the constraints.
    Nothing,
}

/// What is known about a candidate.
#[derive(Clone, Debug, Default)]
struct State {
    /// Measurements by rung.
    points: BTreeMap<usize, Vec<Measurement>>,
    /// True when the first rung came from another candidate, and is probably near.
    is_guessed: bool,
    /// Failed encodes since the last one that did not fail.
    failures: u32,
    early_looks: u32,
    /// Measurements of the candidate, and of all, at its last early look.
    looked_at: (usize, usize),
    exclusion: Option<Exclusion>,
    /// The solution that a note was made of.
    noted: Option<usize>,
}

impl State {
    fn count(&self) -> usize {
        self.points.values().map(Vec::len).sum()
    }
}

/// The state of a search.
#[derive(Clone, Debug)]
pub struct Planner {
    search: EnergySearch,
    states: Vec<State>,
    /// Repeats of each candidate at the last look after a round.
    looked: usize,
    failures: u32,
    notes: Vec<String>,
}

/// Place of a rate on its ladder, and the score there.
type Scored = (usize, f64);

impl Planner {
    /// A search without measurements.
    #[must_use]
    pub fn new(search: EnergySearch) -> Self {
        let states = vec![State::default(); search.candidates.len()];
        Self { search, states, looked: 0, failures: 0, notes: Vec::new() }
    }

    /// What is searched.
    #[must_use]
    pub fn search(&self) -> &EnergySearch {
        &self.search
    }

    /// Leaves a candidate out before it is measured.
    pub fn leave_out(&mut self, candidate: usize, why: &str) {
        self.exclude(candidate, Reason::Failed, why.to_owned());
    }

    /// What happened since the last call, for a log.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Adds the result of a request, or why the encode failed.
    pub fn record(&mut self, request: Request, result: Result<Measurement, String>) {
        match result {
            Ok(measured) => {
                let state = &mut self.states[request.candidate];
                state.failures = 0;
                state.points.entry(request.rung).or_default().push(measured);
            }
            Err(why) => {
                self.failures += 1;
                self.states[request.candidate].failures += 1;
                if self.states[request.candidate].failures >= MAX_FAILURES {
                    let rate = self.search.candidates[request.candidate].ladder.text(request.rung);
                    self.exclude(request.candidate, Reason::Failed, format!("failed at {rate}: {why}"));
                }
            }
        }
    }

    /// The next encode to measure; `None` when the search has ended.
    pub fn next_request(&mut self) -> Option<Request> {
        for at in 0..self.states.len() {
            if let Some(request) = self.reference() {
                return Some(request);
            }
            if let Some(request) = self.explore(at) {
                return Some(request);
            }
        }
        self.reference().or_else(|| self.round())
    }

    /// The result, once [`Planner::next_request`] returns `None`.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let active = self.active();
        match active.as_slice() {
            [] => Verdict::Nothing,
            [one] => Verdict::Winner(*one),
            _ => Verdict::Tie(active),
        }
    }

    /// Number of encodes, failed ones included.
    #[must_use]
    pub fn encodes(&self) -> usize {
        self.measured() + usize::try_from(self.failures).unwrap_or(usize::MAX / 2)
    }

    /// Measurements of a candidate, by rung.
    #[must_use]
    pub fn points(&self, candidate: usize) -> &BTreeMap<usize, Vec<Measurement>> {
        &self.states[candidate].points
    }

    /// Why a candidate is out; `None` for one that is not.
    #[must_use]
    pub fn exclusion(&self, candidate: usize) -> Option<&Exclusion> {
        self.states[candidate].exclusion.as_ref()
    }

    /// The lowest rung that reaches the target: it does, and the one below does not.
    #[must_use]
    pub fn solution(&self, candidate: usize) -> Option<usize> {
        let (hit, _) = self.bracket(candidate).1?;
        let below = hit.checked_sub(1);
        below.is_none_or(|below| self.states[candidate].points.contains_key(&below)).then_some(hit)
    }

    /// Mean of the quantity to minimise at a rung.
    fn mean_at(&self, candidate: usize, rung: usize) -> Option<f64> {
        mean(&self.values(candidate, rung))
    }

    fn values(&self, candidate: usize, rung: usize) -> Vec<f64> {
        self.states[candidate].points.get(&rung).into_iter().flatten().map(|measured| measured.value).collect()
    }

    fn measured(&self) -> usize {
        self.states.iter().map(State::count).sum()
    }

    fn label(&self, candidate: usize) -> String {
        self.search.candidates[candidate].label()
    }

    fn rate(&self, candidate: usize, rung: usize) -> String {
        self.search.candidates[candidate].ladder.text(rung)
    }

    fn exclude(&mut self, candidate: usize, reason: Reason, text: String) {
        self.notes.push(format!("{} is out: {text}", self.label(candidate)));
        self.states[candidate].exclusion = Some(Exclusion { reason, text });
    }

    fn request(&self, candidate: usize, rung: usize, block: u32) -> Request {
        let count = self.states[candidate].points.get(&rung).map_or(0, Vec::len);
        Request { candidate, rung, repeat: u32::try_from(count).unwrap_or(u32::MAX - 1) + 1, block }
    }

    /// The highest rung below the target, and the lowest that reaches it, each with its margin. A
    /// rung below the target above one that reaches it is noise of the scores, and is not used.
    fn bracket(&self, candidate: usize) -> (Option<Scored>, Option<Scored>) {
        let margin =
            |all: &[Measurement]| mean(&all.iter().map(|measured| self.search.margin(measured)).collect::<Vec<_>>());
        let points = self.states[candidate].points.iter();
        let margins: Vec<(usize, f64)> = points.filter_map(|(rung, all)| Some((*rung, margin(all)?))).collect();
        let hit = margins.iter().copied().find(|(_, margin)| *margin >= 0.0);
        let below = margins.iter().copied().rfind(|(rung, _)| hit.is_none_or(|(hit, _)| *rung < hit));
        (below, hit)
    }

    /// Candidates that are not out and whose rate is known, by their means, the least first.
    fn active(&self) -> Vec<usize> {
        let known = |at: usize| {
            let is_in = self.states[at].exclusion.is_none();
            is_in.then(|| self.solution(at).and_then(|rung| Some((at, self.mean_at(at, rung)?)))).flatten()
        };
        let mut all: Vec<(usize, f64)> = (0..self.states.len()).filter_map(known).collect();
        all.sort_by(|a, b| a.1.total_cmp(&b.1));
        all.into_iter().map(|(at, _)| at).collect()
    }

    /// Repeats of a candidate at its solution.
    fn repeats(&self, candidate: usize) -> usize {
        let rung = self.solution(candidate);
        rung.and_then(|rung| self.states[candidate].points.get(&rung)).map_or(0, Vec::len)
    }

    /// Comparisons of one look: all candidates that can be compared with the best.
    fn comparisons(&self) -> f64 {
        float(self.states.len().saturating_sub(1).max(1))
    }

    /// A repeat of the best candidate so far, until the others can be compared with it.
    fn reference(&self) -> Option<Request> {
        if self.states.iter().filter(|state| state.exclusion.is_none()).count() < 2 {
            return None;
        }
        let best = *self.active().first()?;
        let rung = self.solution(best)?;
        (self.repeats(best) < REFERENCE_REPEATS).then(|| self.request(best, rung, FIRST_BLOCK))
    }

    /// The next encode that is needed to find the rate of a candidate; `None` when it is found, or
    /// the candidate is out.
    fn explore(&mut self, at: usize) -> Option<Request> {
        if self.states[at].exclusion.is_some() {
            return None;
        }
        if let Some(text) = self.broken_constraint(at) {
            self.exclude(at, Reason::Constraint, text);
            return None;
        }
        if let Some(rung) = self.late_rung(at) {
            return Some(self.request(at, rung, FIRST_BLOCK));
        }
        if self.is_dearer_early(at) {
            return None;
        }
        if let Some(rung) = self.solution(at) {
            self.note_solution(at, rung);
            return None;
        }
        if self.states[at].points.is_empty() {
            self.states[at].is_guessed = self.guess(at).is_some();
        }
        let rung = self.next_rung(at);
        if rung.is_none() {
            let text = self.out_of_reach(at);
            self.exclude(at, Reason::Constraint, text);
        }
        rung.map(|rung| self.request(at, rung, FIRST_BLOCK))
    }

    fn note_solution(&mut self, at: usize, rung: usize) {
        if self.states[at].noted == Some(rung) {
            return;
        }
        self.states[at].noted = Some(rung);
        let lowest = if rung == 0 { ", the lowest rate that is tried" } else { "" };
        self.notes.push(format!(
            "{} reaches {} at {}{lowest}",
            self.label(at),
            self.search.target(),
            self.rate(at, rung)
        ));
    }

    /// The scores at the highest rate, which are below the target.
    fn out_of_reach(&self, at: usize) -> String {
        let Some((rung, all)) = self.states[at].points.last_key_value() else { return "has no rates".to_owned() };
        let score = |name: &str, unit: &str, target: Option<f64>, of: &dyn Fn(&Measurement) -> Option<f64>| {
            target?;
            let score = mean(&all.iter().filter_map(of).collect::<Vec<_>>())?;
            Some(format!("{name} {score:.2}{unit}"))
        };
        let scores = [
            score("VMAF", "", self.search.target_vmaf, &|measured| measured.vmaf),
            score("PSNR", " dB", self.search.target_psnr, &|measured| measured.psnr),
        ];
        let scores = scores.into_iter().flatten().collect::<Vec<_>>().join(" and ");
        format!("reaches only {scores} at {}, the highest rate that is tried", self.rate(at, *rung))
    }

    /// The constraint that a candidate cannot meet. A rung below the target is a bound: the rate
    /// that reaches the target has more bits, and takes longer.
    fn broken_constraint(&self, at: usize) -> Option<String> {
        let (below, _) = self.bracket(at);
        let rungs = [below.map(|(rung, _)| rung), self.solution(at)];
        for rung in rungs.into_iter().flatten() {
            let all = self.states[at].points.get(&rung)?;
            let late = all.iter().filter(|measured| !measured.in_time).count();
            if self.search.realtime && late >= MAX_LATE && late == all.len() {
                return Some(format!("does not keep up with real time at {}", self.rate(at, rung)));
            }
            let kbps = mean(&all.iter().map(|measured| measured.kbps).collect::<Vec<_>>())?;
            if let Some(most) = self.search.max_kbps.filter(|most| kbps > f64::from(*most)) {
                let needs = if Some(rung) == self.solution(at) { "needs" } else { "needs more than" };
                return Some(format!("{needs} {kbps:.0} kbit/s for the target; at most {most} are allowed"));
            }
        }
        None
    }

    /// A rung that decides about real time and was late once.
    fn late_rung(&self, at: usize) -> Option<usize> {
        let (below, _) = self.bracket(at);
        let was_late = |rung: &usize| {
            let all = self.states[at].points.get(rung);
            all.is_some_and(|all| all.len() < MAX_LATE && all.iter().all(|measured| !measured.in_time))
        };
        [below.map(|(rung, _)| rung), self.solution(at)].into_iter().flatten().find(was_late)
    }

    /// The rung near which the solution of a candidate is, by an earlier one with the same ladder,
    /// of the same encoder if there is one.
    fn guess(&self, at: usize) -> Option<usize> {
        let own = &self.search.candidates[at];
        let of = |other: usize| match self.bracket(other) {
            (_, Some((hit, _))) => Some(hit),
            (Some((low, _)), None) => Some((low + 1).min(own.ladder.len().saturating_sub(1))),
            (None, None) => None,
        };
        let same_ladder = |other: &usize| self.search.candidates[*other].ladder == own.ladder;
        let same_encoder = |other: &usize| self.search.candidates[*other].encoder == own.encoder;
        let earlier = || (0..at).rev().filter(same_ladder);
        earlier().filter(same_encoder).find_map(of).or_else(|| earlier().find_map(of))
    }

    /// The next rung of the bisection; `None` when the highest is below the target.
    fn next_rung(&self, at: usize) -> Option<usize> {
        let top = self.search.candidates[at].ladder.len().checked_sub(1)?;
        let state = &self.states[at];
        // From a guess in steps that double; without one, half of the rest of the ladder.
        let step = 1usize << state.points.len().saturating_sub(1).min(16);
        match self.bracket(at) {
            (None, None) => Some(self.guess(at).unwrap_or(top / 2).min(top)),
            (Some((low, _)), None) if low >= top => None,
            (Some((low, _)), None) if state.is_guessed => Some((low + step).min(top)),
            (Some((low, _)), None) => Some(low.midpoint(top + 1)),
            (None, Some((hit, _))) if state.is_guessed => Some(hit.saturating_sub(step)),
            (None, Some((hit, _))) => Some(hit / 2),
            (Some((low, below)), Some((hit, above))) => Some(between(low, hit, below, above)),
        }
    }

    /// Compares a candidate that has few repeats with the best one, and excludes it if it needs
    /// significantly more: by its repeats at the solution, or by an encode below the target, which
    /// needs less than the solution. Both are one-sided t tests of logarithms, with the spread of
    /// all repeated configurations together.
    fn is_dearer_early(&mut self, at: usize) -> bool {
        let Some(best) = self.active().first().copied().filter(|best| *best != at) else { return false };
        let solution = self.solution(at);
        let Some(rung) = solution.or(self.bracket(at).0.map(|(rung, _)| rung)) else { return false };
        let (own, counts) = (self.values(at, rung), (self.states[at].count(), self.measured()));
        let (looks, looked_at) = (self.states[at].early_looks, self.states[at].looked_at);
        let has_news = counts.0 > looked_at.0 || counts.1 >= looked_at.1 + REFERENCE_REPEATS;
        if own.is_empty() || own.len() >= MIN_REPEATS || looks >= MAX_EARLY_LOOKS || !has_news {
            return false;
        }
        let reference = self.solution(best).map(|rung| self.values(best, rung)).unwrap_or_default();
        let Some((variance, freedom)) = self.spread().filter(|_| reference.len() >= MIN_REPEATS) else { return false };
        self.states[at].early_looks = looks + 1;
        self.states[at].looked_at = counts;
        let (Some(own_mean), Some(best_mean)) = (mean(&logarithms(&own)), mean(&logarithms(&reference))) else {
            return false;
        };
        let error = (variance * (1.0 / float(own.len()) + 1.0 / float(reference.len()))).sqrt();
        let difference = own_mean - best_mean;
        let p = if difference <= 0.0 { 1.0 } else { t_cdf(-(difference / error), freedom) };
        if p >= ERROR / 2.0 / (f64::from(MAX_EARLY_LOOKS) * self.comparisons()) {
            return false;
        }
        let more = difference.exp_m1() * 100.0;
        let bound = if solution.is_some() { "" } else { ", which is below the target" };
        let text = format!(
            "needs {more:.0} % more than {} at {}{bound} (early look {}, p {p:.1e})",
            self.label(best),
            self.rate(at, rung),
            looks + 1
        );
        self.exclude(at, Reason::Dearer, text);
        true
    }

    /// Variance of the logarithm of one encode, by all configurations with repeats together, and
    /// its degrees of freedom. It assumes that all have the same relative spread.
    fn spread(&self) -> Option<(f64, f64)> {
        let (mut squares, mut freedom) = (0.0, 0.0);
        for all in self.states.iter().flat_map(|state| state.points.values()).filter(|all| all.len() > 1) {
            let values = logarithms(&all.iter().map(|measured| measured.value).collect::<Vec<_>>());
            let center = mean(&values)?;
            squares += values.iter().map(|value| (value - center).powi(2)).sum::<f64>();
            freedom += float(values.len()) - 1.0;
        }
        (freedom > 0.0).then(|| (squares / freedom, freedom))
    }

    /// The next repeat of a round, in which each remaining candidate is measured once, in random
    /// order, so that drift of the machine affects all alike; `None` when the search has ended.
    fn round(&mut self) -> Option<Request> {
        loop {
            let mut active = self.active();
            let least = active.iter().map(|at| self.repeats(*at)).min()?;
            let block = FIRST_BLOCK + u32::try_from(least).unwrap_or(u32::MAX / 2);
            if let [one] = active.as_slice() {
                let rung = self.solution(*one)?;
                return (least < MIN_REPEATS).then(|| self.request(*one, rung, block));
            }
            if least >= MIN_REPEATS && least > self.looked {
                self.looked = least;
                self.look(&active);
                continue;
            }
            if least >= self.search.max_repeats() {
                return None;
            }
            active.sort_unstable();
            fastrand::Rng::with_seed(self.search.seed.wrapping_add(u64::from(block))).shuffle(&mut active);
            let next = active.into_iter().find(|at| self.repeats(*at) == least)?;
            let rung = self.solution(next)?;
            return Some(self.request(next, rung, block));
        }
    }

    /// Excludes the candidates that need significantly more than the best, by Welch's test.
    /// `active` is sorted by the means.
    fn look(&mut self, active: &[usize]) {
        let Some((best, others)) = active.split_first() else { return };
        let values =
            |planner: &Self, at: usize| planner.solution(at).map(|rung| planner.values(at, rung)).unwrap_or_default();
        let reference = values(self, *best);
        let limit = ERROR / 2.0 / (f64::from(self.search.looks.max(1)) * self.comparisons());
        for at in others {
            let own = values(self, *at);
            let Some(test) = Welch::of(&reference, &own) else { continue };
            let p = test.p / 2.0;
            if test.difference > 0.0 && p < limit {
                let more = mean(&reference).map_or(0.0, |mean| test.difference / mean * 100.0);
                let (label, repeats) = (self.label(*best), own.len());
                let text = format!("needs {more:.1} % more than {label} ({repeats} repeats, p {p:.1e})");
                self.exclude(*at, Reason::Dearer, text);
            }
        }
    }
}

/// The rung between two, where the margin would be zero if it were linear; at least a quarter of
/// the range away from both, so that each step narrows it.
fn between(low: usize, hit: usize, below: f64, above: f64) -> usize {
    let range = hit.saturating_sub(low);
    let part = Some(-below / (above - below)).filter(|part| part.is_finite()).unwrap_or(0.5).clamp(0.25, 0.75);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a ladder")]
    let step = (float(range) * part).round() as usize;
    (low + step).clamp(low + 1, (low + range).saturating_sub(1).max(low + 1))
}

fn logarithms(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| value.max(f64::MIN_POSITIVE).ln()).collect()
}

/// Converts a count of encodes, which is small.
fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
