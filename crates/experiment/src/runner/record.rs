//! The state of a run, reconstructed from its journal.

use results::{
    convert::float,
    energy::{EnergyKind, Scope},
};
use units::provenance::Unmeasured;

use super::{
    journal::{Artefact, Baseline, Event, Repeat, RunHeader, Score, WarmUp},
    plan::{Configuration, Plan},
    preflight::Check,
    source::Clip,
};
use crate::search::report::SearchReport;

/// The state of a run.
#[derive(Clone, Debug)]
pub struct Record {
    /// The first event.
    pub header: RunHeader,
    /// Latest preflight checks.
    pub checks: Vec<Check>,
    /// Source clips.
    pub clips: Vec<Clip>,
    /// Description of the latest execution environment.
    pub environment: String,
    /// Idle power before each block.
    pub baselines: Vec<Baseline>,
    /// The warm-up.
    pub warm_up: Option<WarmUp>,
    /// Configurations of the plan, and those that a search added.
    pub configurations: Vec<Configuration>,
    /// All repeats.
    pub repeats: Vec<Repeat>,
    /// Why repeats were discarded.
    pub discarded: Vec<String>,
    /// Quality scores.
    pub scores: Vec<Score>,
    /// The result of a search for the least energy.
    pub search: Option<SearchReport>,
    /// Status and time of the end.
    pub end: Option<(String, u64)>,
}

impl Record {
    /// Reconstructs the state from the events of a journal.
    ///
    /// # Errors
    /// When the first event is not the header.
    pub fn from_events(events: Vec<Event>) -> Result<Self, String> {
        let mut events = events.into_iter();
        let Some(Event::Run(header)) = events.next() else {
            return Err("the journal does not begin with the plan of the run; it cannot be resumed".to_owned());
        };
        let mut this = Self {
            configurations: header.plan.configurations.clone(),
            header: *header,
            checks: Vec::new(),
            clips: Vec::new(),
            environment: String::new(),
            baselines: Vec::new(),
            warm_up: None,
            repeats: Vec::new(),
            discarded: Vec::new(),
            scores: Vec::new(),
            search: None,
            end: None,
        };
        events.for_each(|event| this.apply(event));
        Ok(this)
    }

    /// Updates the state with the next event.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Run(_) => {}
            Event::Resumed { .. } => {
                (self.search, self.end) = (None, None);
                // Stopped and skipped repeats run again; failed ones stay and are tried again.
                self.repeats.retain(|repeat| !matches!(&*repeat.status, "stopped" | "skipped"));
                // The baseline of an incomplete block is measured again, because the host may have
                // changed.
                // The blocks of a search have no fixed members: all but the last count as complete.
                let last = self.baselines.iter().map(|known| known.block).max();
                let whole = |block: u32| {
                    if self.plan().search {
                        return Some(block) != last;
                    }
                    self.configurations
                        .iter()
                        .all(|configuration| self.successes(&configuration.id).any(|repeat| repeat.block == block))
                };
                let blocks: Vec<u32> =
                    self.baselines.iter().map(|known| known.block).filter(|block| whole(*block)).collect();
                self.baselines.retain(|known| blocks.contains(&known.block));
            }
            Event::Preflight { checks } => self.checks = checks,
            Event::Source(clip) => {
                self.clips.retain(|known| known.file != clip.file);
                self.clips.push(clip);
            }
            Event::Environment { description } => self.environment = description,
            Event::Configuration(configuration) => self.configurations.push(configuration),
            Event::Baseline(baseline) => self.baselines.push(baseline),
            Event::WarmUp(warm_up) => self.warm_up = Some(warm_up),
            Event::Repeat(repeat) => {
                if repeat.status == "ok" {
                    let same = |known: &Repeat| (&known.configuration, known.n) == (&repeat.configuration, repeat.n);
                    self.repeats.retain(|known| known.status != "ok" || !same(known));
                }
                self.repeats.push(*repeat);
            }
            Event::RepeatDiscarded { configuration, n, why } => {
                self.discarded.push(why);
                let is_discarded = |known: &Repeat| (&known.configuration, known.n) == (&configuration, n);
                // Its block is incomplete now, so the baseline of the block is measured again.
                if let Some(block) = self.repeats.iter().find(|known| is_discarded(known)).map(|known| known.block) {
                    self.baselines.retain(|known| known.block != block);
                }
                self.repeats.retain(|known| known.status != "ok" || !is_discarded(known));
                self.scores.retain(|score| score.configuration != configuration);
            }
            Event::Score(score) => {
                self.scores
                    .retain(|known| (&known.configuration, &known.sha256) != (&score.configuration, &score.sha256));
                self.scores.push(score);
            }
            Event::Search(report) => self.search = Some(*report),
            Event::End { status, unix_ns } => self.end = Some((status, unix_ns)),
        }
    }

    /// The plan of the run.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.header.plan
    }

    /// The successful repeats of a configuration.
    pub fn successes<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Repeat> {
        self.repeats.iter().filter(move |repeat| repeat.configuration == id && repeat.status == "ok")
    }

    /// The samples of the live streams of a configuration.
    pub fn samples<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Artefact> {
        self.successes(id).filter_map(|repeat| repeat.sample.as_ref())
    }

    /// True when a file of a configuration has scores, or a record of why it has none.
    #[must_use]
    pub fn has_scores(&self, configuration: &str, file: &Artefact) -> bool {
        self.scores.iter().any(|score| score.configuration == configuration && score.sha256 == file.sha256)
    }

    /// Number of the next repeat of a configuration, which is also the number of its block.
    #[must_use]
    pub fn next_repeat(&self, id: &str) -> u32 {
        (1..).find(|n| !self.successes(id).any(|repeat| repeat.n == *n)).unwrap_or(u32::MAX)
    }

    /// Scope and energy of a repeat in joules: of the container if known, else of the host.
    #[must_use]
    pub fn repeat_joules(repeat: &Repeat) -> Option<(&'static str, f64)> {
        let of = |scope: Scope| Some((scope.as_str(), scope_joules(repeat, scope)?));
        of(Scope::Container).or_else(|| of(Scope::Host))
    }

    /// Energy of all successful repeats of a configuration in joules, in one scope: of the
    /// container if all have it, else of the host. Empty unless it is of one kind.
    #[must_use]
    pub fn configuration_joules(&self, id: &str) -> Vec<f64> {
        let has_container = |repeat: &Repeat| scope_joules(repeat, Scope::Container).is_some();
        let scope = if self.successes(id).all(has_container) { Scope::Container } else { Scope::Host };
        if EnergyKind::common(self.successes(id).map(|repeat| energy_kind(repeat, scope))).is_none() {
            return Vec::new();
        }
        self.successes(id).filter_map(|repeat| scope_joules(repeat, scope)).collect()
    }

    /// The energy of each successful repeat, see [`Record::configuration_joules`], divided by what
    /// it delivered; one that delivered nothing is left out. Empty unless all have energy.
    #[must_use]
    pub fn joules_per(&self, id: &str, delivered: impl Fn(&Repeat) -> f64) -> Vec<f64> {
        let joules = self.configuration_joules(id);
        if joules.len() != self.successes(id).count() {
            return Vec::new();
        }
        let each = self.successes(id).zip(joules).map(|(repeat, joules)| joules / delivered(repeat));
        each.filter(|value| value.is_finite()).collect()
    }

    /// Joules per encoded frame of each successful repeat, as in [`Record::joules_per`].
    #[must_use]
    pub fn joules_per_frame(&self, id: &str) -> Vec<f64> {
        self.joules_per(id, |repeat| float(repeat.progress.frames))
    }

    /// The sentences about energy in the record that was not measured.
    #[must_use]
    pub fn unmeasured(&self) -> Vec<String> {
        let energy = self.repeats.iter().flat_map(|repeat| &repeat.energy);
        Unmeasured::sentences(energy.map(|energy| (&*energy.source, energy.model_interval_ratio)))
    }
}

/// Energy of a repeat in one scope in joules.
fn scope_joules(repeat: &Repeat, scope: Scope) -> Option<f64> {
    let domains = repeat.energy.iter().filter(|energy| energy.scope == scope.as_str());
    let sum = domains.map(|energy| energy.microjoules).reduce(u64::saturating_add)?;
    Some(units::Microjoules(sum).joules())
}

/// The kind of a repeat's energy in a scope; `None` if it has none.
fn energy_kind(repeat: &Repeat, scope: Scope) -> Option<EnergyKind> {
    let mut domains = repeat.energy.iter().filter(|energy| energy.scope == scope.as_str()).peekable();
    domains.peek()?;
    Some(EnergyKind::new(scope, domains.map(|energy| &*energy.source), repeat.idle_known))
}
