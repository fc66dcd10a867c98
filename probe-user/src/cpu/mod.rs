//! CPU time per cgroup: who ran, where, for how long, and beside whom.
//!
//! A [`Tier`] is a way to it; each reads cumulative figures per cgroup and CPU, and they mean the same by a cgroup. [`choose`]
//! takes the best that works here, and says why no better one does. [`Window`] turns two readings into what ran between them.

pub mod btf;
mod counters;
mod empty;
mod execs;
mod fields;
mod files;
mod kernel;
mod mapped;
mod object;
pub mod offsets;
mod switch;
mod totals;
mod walk;
mod window;

use std::{fmt, io, path::PathBuf};

pub use counters::Events;
pub use empty::Empty;
pub use execs::{Exec, Execs, name as exec_name};
pub use files::Files;
pub use kernel::Kernel;
pub use probe_ebpf::{COUNTERS, CgroupKey, RunTime, WAIT_CLASSES, WAIT_NS, hierarchy};
use serde::{Deserialize, Serialize};
pub use switch::Switch;
pub use window::{Ran, Share, Weights, Window};

use crate::{
    snapshot::ProgramRow,
    state::{Reason, Unavailable},
    topology::Topology,
};

/// The ways to CPU time, from the least that they know to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The files of the cgroup trees; no eBPF.
    Files,
    /// The kernel's own figures per cgroup and CPU, through an iterator; no program at any switch.
    Kernel,
    /// A program at each switch: also waits, switches, and time beside a busy sibling.
    Switch,
    /// The same with hardware counters: also cycles, instructions and cache misses.
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

/// What the user wants of CPU time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// The best tier that works here
    #[default]
    Auto,
    /// At each switch, with hardware counters
    Counters,
    /// At each switch
    Switch,
    /// The kernel's own figures, read once a tick
    Kernel,
    /// The files of the cgroup trees
    Files,
}

impl Choice {
    /// The tiers that may serve, the best first.
    #[must_use]
    pub fn tiers(self) -> &'static [Tier] {
        match self {
            Self::Auto => &[Tier::Counters, Tier::Switch, Tier::Kernel, Tier::Files],
            Self::Counters => &[Tier::Counters],
            Self::Switch => &[Tier::Switch],
            Self::Kernel => &[Tier::Kernel],
            Self::Files => &[Tier::Files],
        }
    }
}

/// What a tier tells apart on this machine. Where it cannot tell, a label says `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knows {
    /// On which CPU somebody ran: each row has one figure for each CPU, else it has a single one.
    pub cpus: bool,
    /// Whether the CPU's sibling was busy at the time. A tier that looks knows it of CPUs without one too: it never was.
    pub siblings: bool,
}

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
    /// What ran, by cgroup: one figure for each possible CPU, or a single one ([`Knows::cpus`]). Never less than in the
    /// reading before.
    pub rows: Vec<(CgroupKey, Vec<RunTime>)>,
    /// Cycles, instructions and cache misses, by cgroup and CPU in the order of `rows`; empty without hardware counters.
    pub counted: Vec<Vec<[u64; COUNTERS]>>,
    /// For how long the hardware counters were wanted, and for how long they ran, in nanoseconds, all CPUs.
    pub counter_time: [u64; 2],
    /// Waits and switches by cgroup; empty where the tier or the kernel does not count them.
    pub queues: Vec<(CgroupKey, Queue)>,
    /// What cgroups ran that found no place among [`probe_ebpf::MAX_CGROUPS`], or after their place was given back, as a row.
    pub overflow: Vec<RunTime>,
    /// Intervals whose start was not seen; their time is in no row.
    pub missed: u64,
}

/// An open tier.
pub trait Reader: Send {
    /// Which.
    fn tier(&self) -> Tier;

    /// What it tells apart here.
    fn knows(&self) -> Knows;

    /// Fills `out` with the totals as of now; a running task is at most one scheduler tick behind.
    ///
    /// # Errors
    /// When the kernel refuses a call that it granted before.
    fn read(&mut self, out: &mut Reading) -> io::Result<()>;

    /// Gives back what a cgroup held that is gone. Its totals are lost: read first.
    fn forget(&mut self, key: &CgroupKey);

    /// Takes a topology that was read again.
    fn replace(&mut self, _topology: &Topology) {}

    /// What its programs inside the kernel cost; empty while `kernel.bpf_stats_enabled` is 0.
    fn costs(&self) -> Vec<ProgramRow> {
        Vec::new()
    }

    /// What is worth saying of how it works here.
    fn detail(&self) -> String {
        String::new()
    }
}

/// Where a tier looks.
#[derive(Clone, Debug)]
pub struct Places {
    /// The trees.
    pub cgroupfs: PathBuf,
    /// `/proc`.
    pub procfs: PathBuf,
}

/// The tier that was taken, and why none above it was.
pub struct Chosen {
    /// It.
    pub reader: Box<dyn Reader>,
    /// The better ones, each with its reason, the best first.
    pub refused: Vec<(Tier, Unavailable)>,
}

impl Chosen {
    /// Why not a better tier, for a label; empty when there is none better.
    #[must_use]
    pub fn reason(&self) -> String {
        const LONGEST: usize = 1000;
        let why = |(tier, why): &(Tier, Unavailable)| format!("{tier} {}: {}", why.reason.as_str(), why.detail);
        let all = self.refused.iter().map(why).collect::<Vec<_>>().join("; ");
        all.chars().take(LONGEST).collect()
    }
}

/// Opens the tier that was asked for, or the best that works.
///
/// # Errors
/// Why the one that was asked for does not work; of `auto`, why the last does not.
pub fn choose(choice: Choice, places: &Places, topology: &Topology) -> Result<Chosen, Unavailable> {
    let mut refused = Vec::new();
    for tier in choice.tiers() {
        match open(*tier, places, topology) {
            Ok(reader) => return Ok(Chosen { reader, refused }),
            Err(why) => refused.push((*tier, why)),
        }
    }
    let last = refused.pop().map(|(_, why)| why);
    Err(last.unwrap_or_else(|| Unavailable::new(Reason::Absent, "no tier was asked for")))
}

/// Opens one tier.
///
/// # Errors
/// Why it does not work here.
pub fn open(tier: Tier, places: &Places, topology: &Topology) -> Result<Box<dyn Reader>, Unavailable> {
    Ok(match tier {
        Tier::Files => Box::new(Files::open(places)?),
        Tier::Kernel => Box::new(Kernel::load(places)?),
        Tier::Switch => Box::new(Switch::load(topology, None)?),
        Tier::Counters => Box::new(Switch::load(topology, Some(Events::hardware(topology)?))?),
    })
}
