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

/// Interval between scans for changes that were not reported.
const SCAN_INTERVAL: Duration = Duration::from_secs(10);
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
    /// True when events are missing since the last scan.
    events_lost: bool,
    last_scan: Option<Instant>,
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
            events_lost: false,
            last_scan: None,
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
        self.last_scan.is_none_or(|last| now.duration_since(last) >= SCAN_INTERVAL)
            || self.events_lost && self.can_scan(now)
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
        (self.last_scan, self.events_lost) = (Some(now), false);
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
