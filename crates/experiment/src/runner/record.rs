//! The state of a run, reconstructed from its journal.

use std::collections::BTreeSet;

use results::convert::float;
use units::provenance::Unmeasured;

use super::{
    journal::{Baseline, Event, Repeat, RunHeader, Score, WarmUp},
    plan::{Configuration, Plan},
    preflight::Check,
    source::Clip,
};

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
    /// Quality scores.
    pub scores: Vec<Score>,
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
            scores: Vec::new(),
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
                self.end = None;
                // Stopped and skipped repeats run again; failed ones stay and are tried again.
                self.repeats.retain(|repeat| !matches!(&*repeat.status, "stopped" | "skipped"));
                // The baseline of an incomplete block is measured again, because the host may have
                // changed.
                let whole = |block: u32| {
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
            Event::RepeatDiscarded { configuration, n, .. } => {
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

    /// Number of the next repeat of a configuration, which is also the number of its block.
    #[must_use]
    pub fn next_repeat(&self, id: &str) -> u32 {
        (1..).find(|n| !self.successes(id).any(|repeat| repeat.n == *n)).unwrap_or(u32::MAX)
    }

    /// Scope and energy of a repeat in joules: of the container if known, else of the host.
    #[must_use]
    pub fn repeat_joules(repeat: &Repeat) -> Option<(&'static str, f64)> {
        ["container", "host"].into_iter().find_map(|scope| Some((scope, scope_joules(repeat, scope)?)))
    }

    /// Energy of all successful repeats of a configuration in joules, in one scope: of the
    /// container if all have it, else of the host. Empty when the repeats have different energy
    /// sources, or the idle power was known in some only, because their mean would be meaningless.
    #[must_use]
    pub fn configuration_joules(&self, id: &str) -> Vec<f64> {
        let sources = |repeat: &Repeat| -> BTreeSet<String> {
            repeat.energy.iter().map(|energy| energy.source.clone()).collect()
        };
        let mut distinct = self.successes(id).map(sources);
        let first = distinct.next();
        if distinct.any(|other| Some(other) != first) {
            return Vec::new();
        }
        let all: Vec<(&str, f64)> = self.successes(id).filter_map(Self::repeat_joules).collect();
        if all.iter().all(|(scope, _)| *scope == "container") {
            let with_idle = self.successes(id).filter(|repeat| repeat.idle_known == Some(false)).count();
            if with_idle > 0 && with_idle < all.len() {
                return Vec::new();
            }
            return all.into_iter().map(|(_, joules)| joules).collect();
        }
        self.successes(id).filter_map(|repeat| scope_joules(repeat, "host")).collect()
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

    /// The kinds of energy in the record that were not measured.
    #[must_use]
    pub fn unmeasured(&self) -> BTreeSet<Unmeasured> {
        Unmeasured::among(self.repeats.iter().flat_map(|repeat| &repeat.energy).map(|energy| &*energy.source))
    }
}

/// Energy of a repeat in one scope in joules.
fn scope_joules(repeat: &Repeat, scope: &str) -> Option<f64> {
    let domains = repeat.energy.iter().filter(|energy| energy.scope == scope);
    let sum = domains.map(|energy| energy.microjoules).reduce(u64::saturating_add)?;
    Some(units::Microjoules(sum).joules())
}
