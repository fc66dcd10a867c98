//! Containers whose numbers continue across a restart of the probe.

use std::{collections::HashSet, sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};

use super::{Container, ContainerRecord, ContainerRegistry, Identity, priority::Class};

/// Numbers from here on are not continued: new containers need some too.
const MAX_NUMBER: u32 = u32::MAX / 2;

/// A container with its identity, which its labels contain in part only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedContainer {
    pub(crate) container: Container,
    identity: Identity,
}

impl ContainerRegistry {
    /// The containers that the next start can recognise. Rows of single jobs are not among them:
    /// the number of a job is not known to the next start.
    pub(crate) fn saved_containers(&self) -> Vec<SavedContainer> {
        let records = self.records.values().filter(|record| !matches!(record.identity, Identity::Process(_)));
        records
            .map(|record| SavedContainer { container: (*record.container).clone(), identity: record.identity.clone() })
            .collect()
    }

    /// Adds the containers of an earlier probe as ones that have ended at `now`: a container that
    /// is found within the retention time continues its row, as one that returns. Returns those
    /// that were added; the limit of series holds for them too. Call it before the first tick.
    pub(crate) fn continue_containers(&mut self, saved: Vec<SavedContainer>, now: Instant) -> Vec<Arc<Container>> {
        let mut added = Vec::new();
        for SavedContainer { container, identity } in saved {
            let number = container.number;
            if number >= MAX_NUMBER {
                continue;
            }
            // Also for one that is not added, because streams may still have its number.
            self.next = self.next.max(number + 1);
            let is_new = !self.numbers.contains_key(&identity) && !self.records.contains_key(&number);
            if !is_new || self.records.len() >= self.limits.containers || matches!(identity, Identity::Process(_)) {
                continue;
            }
            let resolve_at = matches!(identity, Identity::Container(_)).then_some(now);
            // As when it was found first; its runtime may confirm a container again.
            let class = match identity {
                Identity::Cgroup(_) => Class::Plain,
                Identity::Container(_) | Identity::Guest(_) => Class::Likely,
                Identity::Task(_) | Identity::Unit(_) | Identity::Process(_) => Class::Confirmed,
            };
            let record = ContainerRecord::new(container, identity, HashSet::new(), true, class, now);
            added.push(record.container.clone());
            self.add_record(number, ContainerRecord { gone_at: Some(now), resolve_at, ..record });
        }
        added
    }
}
