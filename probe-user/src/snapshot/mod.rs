//! The immutable result of one tick. All pages are rendered from it, so that they agree.

pub mod history;

use std::{collections::BTreeSet, sync::Arc};

use history::Ring;
use metrics::family::Buckets;
use units::{Microjoules, provenance::Unmeasured};

use crate::{
    containers::{
        Container,
        stats::{EngineRow, UsageRow},
    },
    cpu::{CpuUsage, ProgramRow, RunQueueStats},
    energy::{
        counter::Reject,
        model::Interval,
        zone::{Origin, ZoneId},
    },
    gpu::{
        GpuStatus,
        engines::{EngineTimes, EngineWeights},
    },
    host::{availability::SourceState, gpu_id::GpuId, topology::PackageId},
    jobs::JobProcess,
    ledger::{
        AccountId,
        awake::AwakeShare,
        idle::{Estimate, IdleState},
        streams::{JobUsage, StreamId},
        uncertainty::RecentSum,
    },
    reference::MeterRow,
    tick::{CollectorRow, CpuTierInfo},
};

/// All figures at the end of a tick.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Number of the tick since the start. Tick 0 is the starting point and has no measured energy.
    pub sequence: u64,
    /// End of the tick in unix nanoseconds.
    pub unix_ns: i64,
    /// Measured length of the tick; absent in the first.
    pub length_ns: Option<u64>,
    /// Time from the start of the energy reading to the end of the CPU reading.
    pub skew_ns: u64,
    /// Every energy counter.
    pub zones: Vec<ZoneRow>,
    /// Totals of every accounting root since the start.
    pub accounts: Vec<AccountRow>,
    /// Idle power of the roots for which it is known.
    pub idle: Vec<IdleRow>,
    /// What is known of the idle power of the roots that are divided by CPU time.
    pub idle_states: Vec<IdleStateRow>,
    /// The step between sleep and awake of the roots for which it is known.
    pub steps: Vec<IdleRow>,
    /// Share of the tick in which each package was awake, where it is known.
    pub awake: Vec<AwakeRow>,
    /// The intervals of modelled zones.
    pub intervals: Vec<(ZoneId, Interval)>,
    /// Every container with series.
    pub containers: Vec<ContainerRow>,
    /// The packages, in the order of [`ContainerRow::cpu`]; `None` where CPU time is not known by
    /// package.
    pub packages: Vec<Option<PackageId>>,
    /// Rejected energy readings since the start.
    pub rejects: Vec<(ZoneId, Reject, u64)>,
    /// Meters of the whole machine.
    pub reference: Vec<MeterRow>,
    /// State of every source.
    pub sources: Arc<[SourceState]>,
    /// Result of every collector in this tick.
    pub collectors: Vec<CollectorRow>,
    /// The tier of CPU time; absent when CPU time is not collected.
    pub cpu: Option<CpuTierInfo>,
    /// True when CPUs share cores.
    pub smt: bool,
    /// Weight of a second next to a busy sibling, in thousandths of a second alone.
    pub shared_milli: u64,
    /// Nanoseconds for which the hardware counters were enabled, and for which they ran, since they
    /// were opened.
    pub counter_time: [u64; 2],
    /// Histogram of sub-second power by package, where it is enabled.
    pub power: Vec<(ZoneId, Origin, Buckets)>,
    /// Run time of the eBPF programs; empty while the kernel keeps no statistics.
    pub programs: Vec<ProgramRow>,
    /// Dynamic energy of the probe itself; part of system.
    pub own: Option<(Origin, Microjoules)>,
    /// Delay of the start of ticks.
    pub jitter: Buckets,
    /// Ticks that were skipped because an earlier tick took too long.
    pub ticks_missed: u64,
    /// Containers without series since the start, because of the limit.
    pub containers_dropped: u64,
    /// Cgroups since the start that ran and were removed before they could be identified.
    pub cgroups_unnamed: u64,
    /// Incomplete cgroup scans since the start.
    pub scans_incomplete: u64,
    /// CPU nanoseconds since the start of cgroups without a slot in the kernel.
    pub cpu_overflow_ns: u64,
    /// Intervals of CPU time since the start whose beginning the eBPF programs did not see.
    pub cpu_intervals_missed: u64,
    /// Memory, network and block I/O of containers.
    pub usage: Vec<UsageRow>,
    /// Number of existing containers of runtimes, with or without series.
    pub container_count: usize,
    /// Usage of container engines.
    pub engines: Vec<EngineRow>,
    /// Mean number of CPUs that the Docker engine used over the tick.
    pub engine_cpu_ratio: Option<f64>,
    /// Memory of the machine in bytes; 0 where it is unknown.
    pub machine_memory: u64,
    /// Every stream with series.
    pub streams: Vec<StreamRow>,
    /// Engine time of containers on each GPU since the start.
    pub engine_times: Vec<(Arc<Container>, GpuId, EngineTimes)>,
    /// Weight of the time of each engine.
    pub engine_weights: EngineWeights,
    /// Telemetry of the GPUs.
    pub gpus: Vec<GpuStatus>,
    /// Jobs that run or ended recently.
    pub jobs: Vec<JobUsage>,
    /// Processes of the running jobs.
    pub processes: Vec<JobProcess>,
    /// Jobs since the start that exceeded the limit, or whose streams have no series.
    pub jobs_dropped: u64,
    /// History of past ticks.
    pub ring: Ring,
}

impl Snapshot {
    /// The kinds of energy of this machine that are not measured.
    #[must_use]
    pub fn unmeasured(&self) -> BTreeSet<Unmeasured> {
        self.origins().filter_map(Origin::unmeasured).collect()
    }

    /// The kinds of energy of the source with this name, as in [`SourceState`], that are not
    /// measured.
    #[must_use]
    pub fn unmeasured_of(&self, source: &str) -> BTreeSet<Unmeasured> {
        self.origins().filter(|origin| origin.reader() == source).filter_map(Origin::unmeasured).collect()
    }

    /// The origins of all counters, and of GPUs without a counter.
    fn origins(&self) -> impl Iterator<Item = Origin> {
        self.zones.iter().map(|zone| zone.origin).chain(self.gpus.iter().map(|status| status.gpu.origin))
    }
}

/// Energy of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamRow {
    pub id: StreamId,
    /// Source of its energy.
    pub origin: Origin,
    /// Energy since the start.
    pub joules: Microjoules,
}

/// An energy counter.
#[derive(Clone, Debug, PartialEq)]
pub struct ZoneRow {
    pub id: ZoneId,
    pub origin: Origin,
    /// Energy since the start.
    pub total: Microjoules,
    /// Mean power over the tick; absent in a tick without energy.
    pub watts: Option<f64>,
}

/// Totals of an accounting root since the start.
#[derive(Clone, Debug, PartialEq)]
pub struct AccountRow {
    pub id: AccountId,
    /// Dynamic energy by container.
    pub containers: Vec<(Arc<Container>, Microjoules)>,
    /// Idle energy attributed to containers.
    pub idle_shares: Vec<(Arc<Container>, Microjoules)>,
    /// Energy of being awake by container, which is included in `containers`.
    pub awake_shares: Vec<(Arc<Container>, Microjoules)>,
    /// Energy of containers without series.
    pub retired: Microjoules,
    /// Dynamic energy outside of containers.
    pub system: Microjoules,
    /// Idle energy that is not attributed to any container.
    pub idle: Microjoules,
    /// Dynamic energy that is not attributed.
    pub unattributed: Microjoules,
}

/// Idle power of an accounting root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleRow {
    pub id: ZoneId,
    pub estimate: Estimate,
    /// True when it was learnt from measurements, false when it is a property of the source.
    pub calibrated: bool,
}

/// What is known of the idle power of an accounting root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleStateRow {
    pub id: ZoneId,
    pub state: IdleState,
}

/// Awake time of a package.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AwakeRow {
    pub package: PackageId,
    pub awake: AwakeShare,
}

/// Figures of a container.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerRow {
    pub container: Arc<Container>,
    /// CPU usage since the start, by package.
    pub cpu: Vec<CpuUsage>,
    /// Mean number of CPUs it used over the tick; absent in the first.
    pub cpu_ratio: Option<f64>,
    /// Mean power over the tick by zone and source, all packages together.
    pub watts: Vec<(&'static str, Origin, f64)>,
    /// Run-queue waits and context switches since the start, where they are counted.
    pub queue: Option<RunQueueStats>,
    /// Relative uncertainty of the energy of the tick, above 1 where nothing is known; absent where
    /// it is unknown.
    pub uncertainty: Option<f64>,
    /// Energy of the last minute with its bound; absent in the first minute, and where the bound is
    /// unknown.
    pub minute: Option<RecentSum>,
}
