//! What is known of a run: its journal, read. Whatever was written twice stands once, the last.

use super::{
    journal::{Baseline, Event, Head, Repeat, Score, WarmUp},
    plan::{Cell, Plan},
    preflight::Check,
    source::Clip,
};

/// A run, as far as it has come.
#[derive(Clone, Debug)]
pub struct Record {
    /// What all of it has in common.
    pub head: Head,
    /// What was looked at, last.
    pub checks: Vec<Check>,
    /// What is encoded.
    pub clips: Vec<Clip>,
    /// Where encoders ran, last.
    pub place: String,
    /// Before each block.
    pub baselines: Vec<Baseline>,
    /// Before the first.
    pub warm_up: Option<WarmUp>,
    /// Cells of the plan, and those that a search has come to.
    pub cells: Vec<Cell>,
    /// Every time that a cell was run.
    pub repeats: Vec<Repeat>,
    /// Scores.
    pub scores: Vec<Score>,
    /// How it ended, and when.
    pub end: Option<(String, u64)>,
}

impl Record {
    /// Reads a journal.
    ///
    /// # Errors
    /// When it does not begin as one.
    pub fn of(events: Vec<Event>) -> Result<Self, String> {
        let mut events = events.into_iter();
        let Some(Event::Run(head)) = events.next() else {
            return Err("the journal does not begin with what is run; nothing of it can be resumed".to_owned());
        };
        let mut this = Self {
            cells: head.plan.cells.clone(),
            head: *head,
            checks: Vec::new(),
            clips: Vec::new(),
            place: String::new(),
            baselines: Vec::new(),
            warm_up: None,
            repeats: Vec::new(),
            scores: Vec::new(),
            end: None,
        };
        events.for_each(|event| this.apply(event));
        Ok(this)
    }

    /// Takes one more line.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Run(_) => {}
            Event::Resumed { .. } => {
                self.end = None;
                // What was cut off is run again; what failed stays, and is tried again.
                self.repeats.retain(|repeat| !matches!(&*repeat.status, "stopped" | "skipped"));
                // A block that goes on now is not held against the host of then.
                let whole =
                    |block: u32| self.cells.iter().all(|cell| self.well(&cell.id).any(|repeat| repeat.block == block));
                let blocks: Vec<u32> =
                    self.baselines.iter().map(|known| known.block).filter(|block| whole(*block)).collect();
                self.baselines.retain(|known| blocks.contains(&known.block));
            }
            Event::Preflight { checks } => self.checks = checks,
            Event::Source(clip) => {
                self.clips.retain(|known| known.file != clip.file);
                self.clips.push(clip);
            }
            Event::Place { place } => self.place = place,
            Event::Cell(cell) => self.cells.push(cell),
            Event::Baseline(baseline) => self.baselines.push(baseline),
            Event::WarmUp(warm_up) => self.warm_up = Some(warm_up),
            Event::Repeat(repeat) => {
                if repeat.status == "ok" {
                    self.repeats
                        .retain(|known| known.status != "ok" || (&known.cell, known.n) != (&repeat.cell, repeat.n));
                }
                self.repeats.push(*repeat);
            }
            Event::Distrusted { cell, n, .. } => {
                // Its block is measured in part now: the host of then is not held against it.
                let mut gone = self.repeats.iter().filter(|known| (&known.cell, known.n) == (&cell, n));
                if let Some(block) = gone.next().map(|known| known.block) {
                    self.baselines.retain(|known| known.block != block);
                }
                self.repeats.retain(|known| known.status != "ok" || (&known.cell, known.n) != (&cell, n));
                self.scores.retain(|score| score.cell != cell);
            }
            Event::Score(score) => {
                self.scores.retain(|known| (&known.cell, &known.sha256) != (&score.cell, &score.sha256));
                self.scores.push(score);
            }
            Event::End { status, unix_ns } => self.end = Some((status, unix_ns)),
        }
    }

    /// What is run.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.head.plan
    }

    /// The times that a cell came to a good end.
    pub fn well<'a>(&'a self, cell: &'a str) -> impl Iterator<Item = &'a Repeat> {
        self.repeats.iter().filter(move |repeat| repeat.cell == cell && repeat.status == "ok")
    }

    /// The block that the next repeat of a cell belongs to, and its number: one of each cell in each.
    #[must_use]
    pub fn next(&self, cell: &str) -> u32 {
        (1..).find(|n| !self.well(cell).any(|repeat| repeat.n == *n)).unwrap_or(u32::MAX)
    }

    /// Joules of a repeat: the encoder's where they are known, else the host's; with the scope.
    #[must_use]
    pub fn joules(repeat: &Repeat) -> Option<(&'static str, f64)> {
        ["container", "host"].into_iter().find_map(|scope| {
            let all = repeat.energy.iter().filter(|energy| energy.scope == scope);
            let sum: Option<u64> = all.map(|energy| energy.microjoules).reduce(u64::saturating_add);
            sum.map(|sum| (scope, exporter::units::Microjoules(sum).joules()))
        })
    }

    /// Joules of all good repeats of a cell, of the scope that all of them have.
    #[must_use]
    pub fn joules_of(&self, cell: &str) -> Vec<f64> {
        // A mean over two ways of knowing is of neither.
        let sources = |repeat: &Repeat| {
            let mut all: Vec<String> = repeat.energy.iter().map(|energy| energy.source.clone()).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let mut known = self.well(cell).map(sources);
        let first = known.next();
        if known.any(|other| Some(other) != first) {
            return Vec::new();
        }
        let all: Vec<(&str, f64)> = self.well(cell).filter_map(Self::joules).collect();
        let scope = if all.iter().all(|(scope, _)| *scope == "container") { "container" } else { "host" };
        if scope == "container" {
            return all.into_iter().map(|(_, joules)| joules).collect();
        }
        let host = |repeat: &Repeat| {
            let rows = repeat.energy.iter().filter(|energy| energy.scope == "host");
            rows.map(|energy| energy.microjoules).reduce(u64::saturating_add)
        };
        self.well(cell).filter_map(host).map(|sum| exporter::units::Microjoules(sum).joules()).collect()
    }

    /// True where no joule of it was measured by a counter.
    #[must_use]
    pub fn is_modelled(&self) -> bool {
        let mut energies = self.repeats.iter().flat_map(|repeat| &repeat.energy).peekable();
        energies.peek().is_some() && energies.any(|energy| energy.source == "model")
    }
}
