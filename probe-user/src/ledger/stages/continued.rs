//! CPU time and energy of streams by stage across a restart of the probe.

use serde::{Deserialize, Serialize};
use units::Microjoules;

use super::Stages;
use crate::{energy::zone::Origin, jobs::stage::StagePart};

/// CPU time and energy of one stream by part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedStages {
    ns: Vec<(StagePart, u64)>,
    energy: Vec<(Origin, StagePart, Microjoules)>,
}

impl SavedStages {
    /// Keeps the energy of the sources for which `keep` is true.
    pub(in crate::ledger) fn retain_sources(&mut self, keep: impl Fn(Origin) -> bool) {
        self.energy.retain(|(origin, ..)| keep(*origin));
    }
}

impl<Id: Ord + Clone> Stages<Id> {
    /// The parts of one stream, empty if it has none.
    pub(in crate::ledger) fn saved(&self, id: &Id) -> SavedStages {
        let Some(totals) = self.streams.get(id) else { return SavedStages::default() };
        SavedStages {
            ns: totals.ns.iter().map(|(part, ns)| (*part, *ns)).collect(),
            energy: totals.energy.iter().map(|((origin, part), energy)| (*origin, *part, *energy)).collect(),
        }
    }

    /// Continues the parts of one stream, so that they go on summing to its total.
    pub(in crate::ledger) fn continue_stream(&mut self, id: &Id, saved: SavedStages) {
        if saved == SavedStages::default() {
            return;
        }
        let totals = self.streams.entry(id.clone()).or_default();
        for (part, ns) in saved.ns {
            let sum = totals.ns.entry(part).or_default();
            *sum = sum.saturating_add(ns);
        }
        for (origin, part, energy) in saved.energy {
            *totals.energy.entry((origin, part)).or_default() += energy;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_stream_continue() {
        let mut stages = Stages::<&str>::default();
        stages.add_energy(&"cam", Origin::Perf, StagePart::OTHER, Microjoules(5));
        let saved: SavedStages = serde_json::from_slice(&serde_json::to_vec(&stages.saved(&"cam")).unwrap()).unwrap();
        let mut stages = Stages::<&str>::default();
        stages.continue_stream(&"cam", saved);
        stages.add_energy(&"cam", Origin::Perf, StagePart::OTHER, Microjoules(2));
        assert_eq!(stages.saved(&"cam").energy, [(Origin::Perf, StagePart::OTHER, Microjoules(7))]);
        assert_eq!(stages.saved(&"door"), SavedStages::default());
    }
}
