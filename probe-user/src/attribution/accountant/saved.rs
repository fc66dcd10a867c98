//! Totals across restarts of the probe: what the accountant saves at its end, and continues at its
//! start.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use units::Microjoules;

use super::Accountant;
use crate::{
    attribution::saved_totals::{SavedTotals, SavedZone},
    containers::Container,
    energy::zone::{Origin, ZoneKind},
    ledger::{AccountId, streams::StreamContainer},
};

impl Accountant {
    /// The totals of all energy. Containers whose numbers are not in `kept` are in the retired
    /// rows, because the next start cannot recognise them.
    pub(crate) fn save_totals(&self, kept: &BTreeSet<u32>) -> SavedTotals {
        let zones = self.setup.zones.iter().enumerate().filter_map(|(index, zone)| {
            let id = AccountId { zone: zone.id, origin: self.setup.origin_of(zone)? };
            let account = self.roots[index].as_ref().map(|_| {
                let mut account = self.totals.account(id);
                account.retain(|number| kept.contains(&number));
                account
            });
            Some(SavedZone { id, total: self.counters[index].total(), account })
        });
        // Totals of counters that are absent since the start stay for the next one.
        let zones = zones.chain(self.continued.iter().cloned()).collect();
        SavedTotals {
            zones,
            streams: self.streams.saved(),
            own: self.setup.machine_origin().map(|origin| (origin, self.own.process.energy[0])),
            own_parts: [self.own.process.energy[1], self.own.programs.energy[0], self.own.programs.energy[1]],
        }
    }

    /// Continues the totals of an earlier probe. Call it before the first tick. `known` are the
    /// containers that the registry continues, and ends again where it does not find them; the
    /// others are retired. Streams are kept for `keep_ns` after the start until a job has them.
    ///
    /// A counter with another source, or one that was an accounting root and is none now, starts
    /// at zero, as after a change of the source at run time.
    pub(crate) fn continue_totals(&mut self, saved: SavedTotals, known: Vec<Arc<Container>>, keep_ns: u64) {
        let SavedTotals { mut zones, mut streams, own, own_parts } = saved;
        let known: BTreeMap<u32, Arc<Container>> =
            known.into_iter().map(|container| (container.number, container)).collect();
        for account in zones.iter_mut().filter_map(|zone| zone.account.as_mut()) {
            account.retain(|number| known.contains_key(&number));
        }
        let has_container = |container: &StreamContainer| match container {
            StreamContainer::Number(number) => known.contains_key(number),
            StreamContainer::Own | StreamContainer::None => true,
        };
        self.continued = zones;
        for index in 0..self.setup.zones.len() {
            self.continue_zone(index);
        }
        // Boards appear after the start; energy of another source stays where it was counted.
        let boards = self.continued.iter().filter(|saved| matches!(saved.id.zone.kind, ZoneKind::Gpu(_)));
        let current = self.setup.zones.iter().filter_map(|zone| self.setup.origin_of(zone));
        let same_sources: BTreeSet<Origin> = boards.map(|saved| saved.id.origin).chain(current).collect();
        streams.retain_mut(|stream| {
            has_container(&stream.id.container) && stream.retain_sources(|origin| same_sources.contains(&origin))
        });
        self.streams.continue_totals(streams);
        // Their rows belong to the accounts from the first tick on, also without CPU time.
        self.containers.extend(known);
        self.continued_until_ns = Some(keep_ns);
        if let Some((origin, joules)) = own
            && self.setup.machine_origin() == Some(origin)
        {
            let [memory, programs, of_memory] = own_parts;
            (self.own.process.energy, self.own.programs.energy) = ([joules, memory], [programs, of_memory]);
        }
    }

    /// Continues the total of one counter, where an earlier probe saved it. A counter of a GPU may
    /// appear long after the start.
    pub(super) fn continue_zone(&mut self, index: usize) {
        let zone = &self.setup.zones[index];
        let Some(origin) = self.setup.origin_of(zone) else { return };
        let id = AccountId { zone: zone.id, origin };
        let Some(at) = self.continued.iter().position(|saved| saved.id == id) else { return };
        let SavedZone { total, account, .. } = self.continued.swap_remove(at);
        if account.is_some() != self.roots[index].is_some() || self.counters[index].total() != Microjoules::ZERO {
            return;
        }
        self.counters[index].continue_from(total);
        if let Some(mut account) = account {
            // A board that appears later: containers may have ended since the start.
            if self.sequence > 0 {
                account.retain(|number| self.containers.contains_key(&number));
            }
            self.totals.continue_account(id, account);
        }
    }

    /// Ends the series of streams whose jobs were not found again.
    pub(super) fn end_continued(&mut self, energy_ns: u64) {
        if self.continued_until_ns.is_some_and(|until| energy_ns >= until) {
            self.continued_until_ns = None;
            self.streams.end_continued();
        }
    }
}
