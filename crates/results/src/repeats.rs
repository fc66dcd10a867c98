//! Scenarios grouped by configuration, for comparisons and confidence intervals.

use std::collections::BTreeMap;

use crate::{
    energy::{EnergyKind, Scope},
    model::{Entry, Model},
    run::{Quality, Score},
};

/// A configuration with all of its repeats.
#[derive(Clone, Debug)]
pub struct Configuration<'a> {
    /// The repeats, in order; at least one.
    pub entries: Vec<&'a Entry>,
}

/// All configurations of a model, in its order. A scenario without repeats is a configuration of
/// its own; scenarios that measure the host without load are left out.
#[must_use]
pub fn configurations(model: &Model) -> Vec<Configuration<'_>> {
    let mut order: Vec<(&str, usize)> = Vec::new();
    let mut by_key: BTreeMap<(&str, usize), Vec<&Entry>> = BTreeMap::new();
    for entry in model.entries.iter().filter(|entry| !entry.scenario().is_baseline()) {
        let key = (&*entry.run.id, entry.scenario().configuration.unwrap_or(usize::MAX - entry.index));
        if !by_key.contains_key(&key) {
            order.push(key);
        }
        by_key.entry(key).or_default().push(entry);
    }
    order.into_iter().filter_map(|key| Some(Configuration { entries: by_key.remove(&key)? })).collect()
}

impl<'a> Configuration<'a> {
    /// The first repeat, for the fields that all repeats share.
    #[must_use]
    pub fn first(&self) -> &'a Entry {
        self.entries[0]
    }

    /// The finite values of a metric, of every repeat that has it.
    #[must_use]
    pub fn values(&self, metric: &dyn Fn(&Entry) -> Option<f64>) -> Vec<f64> {
        self.entries.iter().filter_map(|entry| metric(entry)).filter(|value| value.is_finite()).collect()
    }

    /// The values of a metric that is calculated from energy, of every repeat whose energy covers
    /// its whole window. Empty unless the energy of all repeats is of one kind.
    #[must_use]
    pub fn energy_values(&self, metric: &dyn Fn(&Entry) -> Option<f64>) -> Vec<f64> {
        if self.energy_kind().is_none() {
            return Vec::new();
        }
        self.whole_values(metric)
    }

    /// The values of a metric of every repeat whose energy covers its whole window. They have a
    /// mean only if the energy of all repeats is of one kind.
    pub(crate) fn whole_values(&self, metric: &dyn Fn(&Entry) -> Option<f64>) -> Vec<f64> {
        self.values(&|entry| metric(entry).filter(|_| entry.derived.is_whole))
    }

    /// What the energy of all repeats has in common; `None` if they differ.
    #[must_use]
    pub fn energy_kind(&self) -> Option<EnergyKind> {
        EnergyKind::common(self.entries.iter().map(|entry| entry.derived.energy_kind()))
    }

    /// The same of the energy of a scope, which need not be that of the derived metrics.
    #[must_use]
    pub fn energy_kind_in(&self, scope: Scope) -> Option<EnergyKind> {
        EnergyKind::common(self.entries.iter().map(|entry| entry.lookup.energy.as_ref()?.kind(scope)))
    }

    /// Scope and sources of the energy, `host, nvml+perf`, if all repeats have the same, and the
    /// idle power was known in all or unknown in all.
    #[must_use]
    pub fn energy_source(&self) -> Option<String> {
        self.energy_kind().map(|kind| kind.to_string())
    }

    /// The values of a quality score: one of every repeat that was scored separately, and one for a
    /// score that repeats share.
    #[must_use]
    pub fn scores(&self, score: &dyn Fn(&Quality) -> Option<&Score>) -> Vec<f64> {
        let own = self.entries.iter().filter(|entry| !entry.scenario().quality_is_shared);
        let shared = self.entries.iter().filter(|entry| entry.scenario().quality_is_shared).take(1);
        own.chain(shared).filter_map(|entry| score(&entry.scenario().quality)).map(|score| score.value).collect()
    }

    /// True if there are several repeats and all of them share their scores.
    #[must_use]
    pub fn shares_scores(&self) -> bool {
        self.entries.len() > 1 && self.entries.iter().all(|entry| entry.scenario().quality_is_shared)
    }

    /// SHA-256 of the encoded source, in hexadecimal; empty if the file does not contain it.
    #[must_use]
    pub fn content_digest(&self) -> &'a str {
        &self.first().scenario().content_digest
    }

    /// True if the file groups its scenarios by configuration (schema 2).
    #[must_use]
    pub fn is_repeated(&self) -> bool {
        self.first().scenario().configuration.is_some()
    }
}
