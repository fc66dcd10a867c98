//! The cgroups of the host with their paths, from scans of the trees and from the kernel's events.
//!
//! With events a scan is needed at the start, at long intervals, and when events were lost. Without
//! events every new cgroup needs one; scans then take at most a twentieth of the time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    CgroupKey,
    changes::CgroupChanges,
    tree::{Scan, Trees},
};

/// Interval between scans for changes that were not reported: without events or after an incomplete
/// scan, and with events. The kernel says when it lost one, and then the next scan does not wait.
const SCAN_INTERVAL: Duration = Duration::from_secs(10);
const SCAN_INTERVAL_WITH_EVENTS: Duration = Duration::from_secs(60);
/// Part of the time that scans for unknown cgroups may take, and the time that they may take at
/// once.
const SCAN_PART: i64 = 20;
const MAX_CREDIT_NS: i64 = 50_000_000;

/// The cgroups of the host.
#[derive(Debug)]
pub struct KnownCgroups {
    trees: Trees,
    live: HashMap<CgroupKey, String>,
    /// Cgroups removed in this tick, and in the tick before. The next reading may contain their
    /// first CPU time.
    removed: [HashMap<CgroupKey, String>; 2],
    created: Vec<CgroupKey>,
    gone: Vec<CgroupKey>,
    /// True when all changes are reported by events.
    has_events: bool,
    /// True when events are missing since the last scan.
    events_lost: bool,
    last_scan: Option<Instant>,
    /// True when the last scan read all cgroups.
    last_complete: bool,
    /// Nanoseconds that scans may take now; negative after a long scan.
    credit_ns: i64,
    incomplete_scans: u64,
}

impl KnownCgroups {
    /// No cgroup is known yet.
    #[must_use]
    pub fn new(trees: Trees) -> Self {
        Self {
            trees,
            live: HashMap::new(),
            removed: [HashMap::new(), HashMap::new()],
            created: Vec::new(),
            gone: Vec::new(),
            has_events: false,
            events_lost: false,
            last_scan: None,
            last_complete: false,
            credit_ns: MAX_CREDIT_NS,
            incomplete_scans: 0,
        }
    }

    /// The mounted trees.
    #[must_use]
    pub fn trees(&self) -> &Trees {
        &self.trees
    }

    /// The path of a cgroup that exists, or was removed a moment ago.
    #[must_use]
    pub fn path(&self, key: &CgroupKey) -> Option<&str> {
        let removed = || self.removed.iter().find_map(|removed| removed.get(key));
        self.live.get(key).or_else(removed).map(String::as_str)
    }

    /// The path of a cgroup that exists now.
    #[must_use]
    pub fn live_path(&self, key: &CgroupKey) -> Option<&str> {
        self.live.get(key).map(String::as_str)
    }

    /// Takes over the events since the last tick.
    pub fn apply(&mut self, changes: CgroupChanges) {
        // Paths of events begin at the root of the tree; those of a scan at its mount point.
        if !self.trees.are_whole() {
            return;
        }
        self.has_events = true;
        self.events_lost |= changes.incomplete;
        for (key, path) in changes.created {
            if self.live.insert(key, path).is_none() {
                self.created.push(key);
            }
        }
        for removed in changes.removed {
            if let Some(path) = self.live.remove(&removed.key) {
                self.removed[0].insert(removed.key, path);
                self.gone.push(removed.key);
            }
        }
    }

    /// Whether a scan is due, without an unknown cgroup.
    #[must_use]
    pub fn scan_is_due(&self, now: Instant) -> bool {
        let interval = if self.has_events && self.last_complete { SCAN_INTERVAL_WITH_EVENTS } else { SCAN_INTERVAL };
        self.last_scan.is_none_or(|last| now.duration_since(last) >= interval) || self.events_lost && self.can_scan(now)
    }

    /// Whether a scan is possible now without taking too much time.
    #[must_use]
    pub fn can_scan(&self, now: Instant) -> bool {
        self.credit(now) > 0
    }

    fn credit(&self, now: Instant) -> i64 {
        let since = self.last_scan.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let earned = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX) / SCAN_PART;
        self.credit_ns.saturating_add(earned).min(MAX_CREDIT_NS)
    }

    /// Reads all cgroups. Returns false when some could not be read.
    pub fn scan(&mut self, now: Instant) -> bool {
        let began = Instant::now();
        let Scan { live, complete } = self.trees.scan();
        self.created.extend(live.keys().filter(|key| !self.live.contains_key(key)));
        if complete {
            let gone: Vec<CgroupKey> = self.live.keys().filter(|key| !live.contains_key(key)).copied().collect();
            for key in gone {
                if let Some(path) = self.live.remove(&key) {
                    self.removed[0].insert(key, path);
                    self.gone.push(key);
                }
            }
        } else {
            self.incomplete_scans += 1;
        }
        self.live.extend(live);
        let took = i64::try_from(began.elapsed().as_nanos()).unwrap_or(i64::MAX);
        self.credit_ns = self.credit(now).saturating_sub(took);
        (self.last_scan, self.last_complete, self.events_lost) = (Some(now), complete, false);
        complete
    }

    /// Cgroups that were found since the last call.
    pub fn take_created(&mut self) -> Vec<CgroupKey> {
        std::mem::take(&mut self.created)
    }

    /// Cgroups that were removed since the last call.
    pub fn take_gone(&mut self) -> Vec<CgroupKey> {
        std::mem::take(&mut self.gone)
    }

    /// Ends the tick: forgets the cgroups that were removed in the tick before.
    pub fn end_tick(&mut self) {
        self.removed.swap(0, 1);
        self.removed[0].clear();
    }

    /// Number of scans that could not read all cgroups.
    #[must_use]
    pub fn incomplete_scans(&self) -> u64 {
        self.incomplete_scans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All cgroups were read every ten seconds, also where the kernel reported each change.
    #[test]
    fn scans_are_rare_while_events_report_changes() {
        let mut known = KnownCgroups::new(Trees::none());
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(known.scan_is_due(start));
        known.scan(start);
        assert!(!known.scan_is_due(after(9)) && known.scan_is_due(after(10)), "without events");
        known.apply(CgroupChanges::default());
        assert!(!known.scan_is_due(after(59)) && known.scan_is_due(after(60)));
        known.apply(CgroupChanges { incomplete: true, ..CgroupChanges::default() });
        assert!(known.scan_is_due(after(1)), "an event was lost");
        known.scan(after(1));
        assert!(!known.scan_is_due(after(60)));
        known.last_complete = false;
        assert!(known.scan_is_due(after(11)), "what the last scan did not read has no events");
    }
}
