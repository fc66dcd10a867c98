//! CPU time per cgroup, by CPU, with or without a busy SMT sibling.
//!
//! There are several methods, called [`Tier`]s. All of them read cumulative run time per cgroup,
//! and per CPU where possible, with the same meaning. [`choose`] opens the best tier that works on
//! this machine and reports why better ones do not. [`CpuWindow`] computes the difference of two
//! readings.

pub mod btf;
pub(crate) mod cgroup_events;
mod counters;
mod empty_program;
pub(crate) mod exec_tracer;
pub(crate) mod files;
mod iterators;
mod kernel;
mod kernel_types;
mod mapped_array;
mod object;
pub mod offsets;
mod program;
mod program_cost;
pub(crate) mod program_log;
mod reader;
mod relocation;
mod ring;
mod switch;
mod totals;
mod usage;
mod window;

pub use counters::PerfCounters;
pub use empty_program::EmptyProgram;
pub use exec_tracer::{EndedThread, ExecEvent, ExecTracer, ThreadCreator, comm_pattern};
pub use files::FilesTier;
pub use kernel::KernelTier;
pub use probe_ebpf::{COUNTERS, RunTime, WAIT_BOUNDS_NS, WAIT_BUCKETS};
pub use program_cost::ProgramCost;
pub use reader::{CpuPaths, CpuReader, CpuReading, ProgramRow, RunQueueStats, Tier, TierCapabilities};
pub use switch::SwitchTier;
pub use usage::{BlockUsage, ContainerUsage, MemoryUsage, UsageIterator, WatchedContainer};
pub use window::{CgroupUsage, CpuUsage, CpuWindow, Weights};

use crate::host::{
    availability::{Reason, Unavailable},
    topology::Topology,
};

/// The configured tier of CPU time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TierChoice {
    /// Best tier that works on this machine
    #[default]
    Auto,
    /// eBPF at context switches, with hardware counters
    Counters,
    /// eBPF at context switches
    Switch,
    /// The kernel's own counters, read once per tick through an eBPF iterator
    Kernel,
    /// Files of the cgroup trees, without eBPF
    Files,
}

impl TierChoice {
    /// The tiers to try, the best first.
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

/// The opened tier, and why no better one was opened.
pub struct SelectedTier {
    pub reader: Box<dyn CpuReader>,
    /// The better tiers, each with the reason, the best first.
    pub unavailable: Vec<(Tier, Unavailable)>,
}

impl SelectedTier {
    /// Why no better tier is used, as a label value; empty if there is no better one.
    #[must_use]
    pub fn reason(&self) -> String {
        const MAX_CHARS: usize = 1000;
        let why = |(tier, why): &(Tier, Unavailable)| format!("{tier} {}: {}", why.reason.as_str(), why.detail);
        let all = self.unavailable.iter().map(why).collect::<Vec<_>>().join("; ");
        all.chars().take(MAX_CHARS).collect()
    }
}

/// Opens the configured tier, or the best one that works.
///
/// # Errors
/// Why the configured tier does not work; for `auto`, why the last one does not.
pub fn choose(choice: TierChoice, paths: &CpuPaths, topology: &Topology) -> Result<SelectedTier, Unavailable> {
    let mut unavailable = Vec::new();
    for tier in choice.tiers() {
        match open(*tier, paths, topology) {
            Ok(reader) => return Ok(SelectedTier { reader, unavailable }),
            Err(why) => unavailable.push((*tier, why)),
        }
    }
    let last = unavailable.pop().map(|(_, why)| why);
    Err(last.unwrap_or_else(|| Unavailable::new(Reason::Absent, "no tier is configured")))
}

/// Opens one tier.
///
/// # Errors
/// Why it does not work on this machine.
pub fn open(tier: Tier, paths: &CpuPaths, topology: &Topology) -> Result<Box<dyn CpuReader>, Unavailable> {
    Ok(match tier {
        Tier::Files => Box::new(FilesTier::open(paths)?),
        Tier::Kernel => Box::new(program_log::or_without(|| KernelTier::load(paths))?),
        Tier::Switch => Box::new(program_log::or_without(|| SwitchTier::load(topology, None))?),
        Tier::Counters => {
            Box::new(program_log::or_without(|| SwitchTier::load(topology, Some(PerfCounters::hardware(topology)?)))?)
        }
    })
}
