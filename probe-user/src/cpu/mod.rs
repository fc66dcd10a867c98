//! CPU time per cgroup and package: who ran, where, for how long.
//!
//! A tier reads cumulative nanoseconds per cgroup and CPU; [`Window`] turns two readings into what ran between them,
//! folded per package. Today there is one tier, the `sched_switch` program of [`switch`].

pub mod btf;
pub mod switch;
mod window;

pub use probe_ebpf::{CgroupKey, WAIT_CLASSES, WAIT_NS, hierarchy};
use serde::{Deserialize, Serialize};
pub use window::{Ran, Window};

/// How a cgroup's tasks came to run and ceased to, cumulative, all CPUs. Stints that still last are not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Nanoseconds runnable and not running.
    pub wait_ns: u64,
    /// Stints by how long they had waited, in the classes of [`WAIT_NS`].
    pub waits: [u64; WAIT_CLASSES],
    /// Stints that ended because the task waits for something.
    pub voluntary: u64,
    /// Stints that ended although the task could have gone on.
    pub involuntary: u64,
}

impl Queue {
    /// What came since `before`; both cumulative.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut waits = self.waits;
        waits.iter_mut().zip(before.waits).for_each(|(now, before)| *now = now.saturating_sub(before));
        Self {
            wait_ns: self.wait_ns.saturating_sub(before.wait_ns),
            waits,
            voluntary: self.voluntary.saturating_sub(before.voluntary),
            involuntary: self.involuntary.saturating_sub(before.involuntary),
        }
    }

    /// Adds what came.
    pub fn add(&mut self, grown: &Self) {
        self.wait_ns = self.wait_ns.saturating_add(grown.wait_ns);
        self.waits.iter_mut().zip(grown.waits).for_each(|(sum, grown)| *sum = sum.saturating_add(grown));
        self.voluntary = self.voluntary.saturating_add(grown.voluntary);
        self.involuntary = self.involuntary.saturating_add(grown.involuntary);
    }
}

/// Cumulative figures since the tier was started. Kept and refilled, so a tick allocates nothing in the steady state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Nanoseconds per possible CPU, by cgroup; never less than in the reading before.
    pub rows: Vec<(CgroupKey, Vec<u64>)>,
    /// Waits and switches by cgroup; empty where the tier or the kernel does not count them.
    pub queues: Vec<(CgroupKey, Queue)>,
    /// Nanoseconds per CPU of cgroups beyond [`probe_ebpf::MAX_CGROUPS`].
    pub overflow_ns: Vec<u64>,
    /// Intervals whose start was not seen; their time is in no row.
    pub missed: u64,
}
