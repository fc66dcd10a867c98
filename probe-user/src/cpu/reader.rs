//! The interface of all tiers of CPU time: the [`CpuReader`] trait and its readings.

use std::{fmt, io, path::PathBuf};

use probe_ebpf::{COUNTERS, CgroupKey, RunTime, WAIT_BUCKETS};
use serde::{Deserialize, Serialize};

use crate::{cgroup::changes::CgroupChanges, host::topology::Topology};

/// A method of measuring CPU time, in ascending order of detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Files of the cgroup trees; no eBPF.
    Files,
    /// The kernel's own counters per cgroup and CPU, read through an eBPF iterator.
    Kernel,
    /// An eBPF program on `sched_switch`: also run-queue waits, context switches, and time with a
    /// busy SMT sibling.
    Switch,
    /// As `Switch`, with hardware counters: also cycles, instructions and cache misses.
    Counters,
}

impl Tier {
    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Kernel => "kernel",
            Self::Switch => "switch",
            Self::Counters => "counters",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a tier distinguishes on this machine. Otherwise the label value is `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierCapabilities {
    /// Time is known per CPU: each row has one value for each CPU, otherwise a single value.
    pub cpus: bool,
    /// Time with a busy SMT sibling is known. True also on machines without SMT, where that time
    /// is always zero.
    pub siblings: bool,
}

/// Run-queue waits and context switches of a cgroup, cumulative, summed over all CPUs. They are
/// counted at switch-out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunQueueStats {
    /// Nanoseconds spent runnable but not running.
    pub wait_ns: u64,
    /// Context switches by the wait that preceded the run, in the buckets of
    /// [`probe_ebpf::WAIT_BOUNDS_NS`].
    pub waits: [u64; WAIT_BUCKETS],
    /// Voluntary context switches: the task blocked.
    pub voluntary: u64,
    /// Involuntary context switches: the task was still runnable.
    pub involuntary: u64,
}

impl RunQueueStats {
    /// The difference to `before`; both are cumulative.
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

    /// Adds a difference.
    pub fn add(&mut self, delta: &Self) {
        self.wait_ns = self.wait_ns.saturating_add(delta.wait_ns);
        self.waits.iter_mut().zip(delta.waits).for_each(|(sum, delta)| *sum = sum.saturating_add(delta));
        self.voluntary = self.voluntary.saturating_add(delta.voluntary);
        self.involuntary = self.involuntary.saturating_add(delta.involuntary);
    }
}

/// Cumulative values since the tier was opened. The buffers are reused, so a tick allocates nothing
/// in the steady state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuReading {
    /// Run time by cgroup: one value for each possible CPU, or a single one
    /// ([`TierCapabilities::cpus`]). Never less than in the previous reading.
    pub rows: Vec<(CgroupKey, Vec<RunTime>)>,
    /// Cycles, instructions and cache misses by cgroup and CPU, in the order of `rows`; empty
    /// without hardware counters.
    pub counted: Vec<Vec<[u64; COUNTERS]>>,
    /// Nanoseconds that the hardware counters were enabled and running, summed over all CPUs.
    pub counter_time: [u64; 2],
    /// Run-queue waits and context switches by cgroup; empty where the tier or the kernel does not
    /// count them.
    pub queues: Vec<(CgroupKey, RunQueueStats)>,
    /// Run time, as a row, of cgroups beyond [`probe_ebpf::MAX_CGROUPS`], and of cgroups after
    /// their slot was freed.
    pub overflow: Vec<RunTime>,
    /// Intervals whose start was missed; their time is in no row.
    pub missed: u64,
}

impl CpuReading {
    /// Takes over another reading, in the buffers of this one.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        let Self { rows, counted, counter_time, queues, overflow, missed } = other;
        self.rows.truncate(rows.len());
        for ((key, row), (other_key, other_row)) in self.rows.iter_mut().zip(rows) {
            *key = *other_key;
            row.clone_from(other_row);
        }
        self.rows.extend_from_slice(&rows[self.rows.len()..]);
        self.counted.clone_from(counted);
        self.queues.clone_from(queues);
        self.overflow.clone_from(overflow);
        (self.counter_time, self.missed) = (*counter_time, *missed);
    }
}

/// An open tier.
pub trait CpuReader: Send {
    fn tier(&self) -> Tier;

    /// What the tier distinguishes on this machine.
    fn capabilities(&self) -> TierCapabilities;

    /// Fills `out` with the current totals; a running task is at most [`Self::lag_ns`] behind.
    ///
    /// # Errors
    /// When the kernel refuses a call that it allowed before.
    fn read(&mut self, out: &mut CpuReading) -> io::Result<()>;

    /// Maximum delay of the run time of a running task in a reading. The kernel updates its own
    /// figure at its scheduler tick, every `tick_ns`.
    fn lag_ns(&self, tick_ns: u64) -> u64 {
        tick_ns
    }

    /// Frees the resources of a cgroup that no longer exists. Its totals are lost; read them first.
    fn forget(&mut self, key: &CgroupKey);

    /// Cgroups that were created and removed up to the last reading; `None` where the tier or the
    /// kernel does not report them.
    fn take_cgroup_changes(&mut self) -> Option<CgroupChanges> {
        None
    }

    /// Takes over a changed topology.
    fn update_topology(&mut self, _topology: &Topology) {}

    /// Run count and run time of its eBPF programs; empty while `kernel.bpf_stats_enabled` is 0.
    fn costs(&self) -> Vec<ProgramRow> {
        Vec::new()
    }

    /// Details of how the tier works on this machine, for `doctor` and the sources.
    fn detail(&self) -> String {
        String::new()
    }
}

/// Directories that the tiers read.
#[derive(Clone, Debug)]
pub struct CpuPaths {
    /// Mount point of the cgroup trees.
    pub cgroupfs: PathBuf,
    /// `/proc`.
    pub procfs: PathBuf,
}

/// Run count and run time of an eBPF program since it was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramRow {
    pub name: &'static str,
    pub run_ns: u64,
    pub runs: u64,
}
