//! Repeats of one configuration, taken together: what compares and what says how sure it is works with these.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    energy::Energy,
    figures::{Entry, Model},
    run::{Quality, Score},
};

/// True where the joules are of all of the window.
#[must_use]
pub fn is_whole(entry: &Entry) -> bool {
    entry.answer.energy.as_ref().is_some_and(Energy::is_whole)
}

/// A configuration with every time that it was run.
#[derive(Clone, Debug)]
pub struct Cell<'a> {
    /// Its repeats, in order; at least one.
    pub entries: Vec<&'a Entry>,
}

/// All configurations of a model, in its order. A scenario without repeats is one of its own; a host without load is none.
#[must_use]
pub fn cells(model: &Model) -> Vec<Cell<'_>> {
    let mut order: Vec<(&str, usize)> = Vec::new();
    let mut all: BTreeMap<(&str, usize), Vec<&Entry>> = BTreeMap::new();
    for entry in model.entries.iter().filter(|entry| !entry.scenario().is_baseline()) {
        let key = (&*entry.run.id, entry.scenario().cell.unwrap_or(usize::MAX - entry.at));
        if !all.contains_key(&key) {
            order.push(key);
        }
        all.entry(key).or_default().push(entry);
    }
    order.into_iter().filter_map(|key| Some(Cell { entries: all.remove(&key)? })).collect()
}

impl<'a> Cell<'a> {
    /// What all of them have in common is the first's.
    #[must_use]
    pub fn first(&self) -> &'a Entry {
        self.entries[0]
    }

    /// A figure of every repeat that has it.
    #[must_use]
    pub fn values(&self, of: &dyn Fn(&Entry) -> Option<f64>) -> Vec<f64> {
        self.entries.iter().filter_map(|entry| of(entry)).filter(|value| value.is_finite()).collect()
    }

    /// A figure that joules are in, of every repeat whose energy is of its whole window. None at all where they are not of one scope and one way of knowing: a mean over
    /// measured and modelled, or over a host's and a container's, is of nothing.
    #[must_use]
    pub fn of_energy(&self, of: &dyn Fn(&Entry) -> Option<f64>) -> Vec<f64> {
        if self.source().is_none() {
            return Vec::new();
        }
        self.values(&|entry| of(entry).filter(|_| is_whole(entry)))
    }

    /// Whose the joules are, and how they are known, where all repeats agree.
    #[must_use]
    pub fn source(&self) -> Option<String> {
        let of = |entry: &Entry| {
            let scope = entry.figures.scope?;
            let mut sources: Vec<&str> = entry.figures.source.split('+').collect();
            sources.sort_unstable();
            Some(format!("{}, {}", scope.as_str(), sources.join("+")))
        };
        let first = of(self.first())?;
        self.entries.iter().all(|entry| of(entry).as_ref() == Some(&first)).then_some(first)
    }

    /// A score of every repeat that was scored by itself; one that all of them share is one.
    #[must_use]
    pub fn scores(&self, of: &dyn Fn(&Quality) -> Option<&Score>) -> Vec<f64> {
        let own = self.entries.iter().filter(|entry| !entry.scenario().quality_is_shared);
        let shared = self.entries.iter().filter(|entry| entry.scenario().quality_is_shared).take(1);
        own.chain(shared).filter_map(|entry| of(&entry.scenario().quality)).map(|score| score.value).collect()
    }

    /// True where all repeats have one score.
    #[must_use]
    pub fn shares_scores(&self) -> bool {
        self.entries.len() > 1 && self.entries.iter().all(|entry| entry.scenario().quality_is_shared)
    }

    /// The digest of what was encoded; empty where the file does not say.
    #[must_use]
    pub fn content(&self) -> &'a str {
        let raw = &self.first().scenario().raw;
        raw.get("content").and_then(|content| content.get("sha256")).and_then(Value::as_str).unwrap_or_default()
    }

    /// True where it is of a file that has repeats.
    #[must_use]
    pub fn is_repeated(&self) -> bool {
        self.first().scenario().cell.is_some()
    }
}
