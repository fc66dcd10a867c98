//! One tick, immutable. Everything that goes outward is rendered from it, so no two pages can disagree.

use std::sync::Arc;

use exporter::family::Buckets;

use crate::{
    containers::{
        Container,
        stats::{EngineRow, UsageRow},
    },
    cpu::{Queue, Share},
    energy::{
        counter::Reject,
        zone::{Origin, ZoneId},
    },
    gpu::{
        Shown,
        engines::{EngineTimes, EngineWeights, GpuId},
    },
    jobs::Process,
    ledger::{
        AccountId,
        idle::Estimate,
        streams::{Running, StreamId},
    },
    state::SourceState,
    tick::Collected,
    topology::PackageId,
    units::Microjoules,
    window::Ring,
};

/// The state of the world at the end of a tick.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Number of the tick since the start; 0 is the starting point, in which nothing was measured yet.
    pub sequence: u64,
    /// End of the tick in unix nanoseconds.
    pub unix_ns: i64,
    /// Measured length of the tick; absent in the first.
    pub length_ns: Option<u64>,
    /// From before the reading of energy to after the reading of CPU time.
    pub skew_ns: u64,
    /// Every energy counter.
    pub zones: Vec<ZoneRow>,
    /// Every accounting root, since the start.
    pub accounts: Vec<AccountRow>,
    /// Idle power of the roots where it is known.
    pub idle: Vec<IdleRow>,
    /// Every container with series.
    pub containers: Vec<ContainerRow>,
    /// The packages, in the order of [`ContainerRow::cpu`]; `None` where nobody knows on which.
    pub packages: Vec<Option<PackageId>>,
    /// Energy readings refused since the start.
    pub rejects: Vec<(ZoneId, Reject, u64)>,
    /// How every source stands.
    pub sources: Arc<[SourceState]>,
    /// How every collector fared in this tick.
    pub collectors: Vec<CollectorRow>,
    /// How CPU time is collected; absent when it is not.
    pub cpu: Option<Collected>,
    /// True when CPUs share cores.
    pub smt: bool,
    /// Thousandths of a second alone that a second beside a busy sibling is worth.
    pub shared_milli: u64,
    /// For how long the hardware counters were wanted, and for how long they ran, in nanoseconds since they were opened.
    pub counter_time: [u64; 2],
    /// Sub-second power, by package, where it is collected.
    pub power: Vec<(ZoneId, Origin, Buckets)>,
    /// What the programs inside the kernel cost; empty while the kernel keeps no statistics.
    pub programs: Vec<ProgramRow>,
    /// What of the dynamic energy the probe itself used; part of system.
    pub own: Option<(Origin, Microjoules)>,
    /// How late ticks began.
    pub jitter: Buckets,
    /// Ticks that were skipped because one before took too long.
    pub ticks_missed: u64,
    /// Containers without series since the start, because of the ceiling.
    pub containers_dropped: u64,
    /// Cgroups that ran and had gone before they could be named, since the start.
    pub cgroups_unnamed: u64,
    /// Looks at the cgroup trees that could not see all of them, since the start.
    pub scans_incomplete: u64,
    /// CPU nanoseconds of cgroups that found no slot in the kernel, since the start.
    pub cpu_overflow_ns: u64,
    /// Intervals of CPU time that the kernel side could not see whole, since the start.
    pub cpu_intervals_missed: u64,
    /// What containers use besides CPU time.
    pub usage: Vec<UsageRow>,
    /// What their engines use.
    pub engines: Vec<EngineRow>,
    /// CPUs that the Docker engine kept busy over the last tick.
    pub engine_cpu_ratio: Option<f64>,
    /// Bytes; 0 where nobody says.
    pub machine_memory: u64,
    /// Every stream with series.
    pub streams: Vec<StreamRow>,
    /// How long containers used the engines of each GPU, since the start.
    pub engine_times: Vec<(Arc<Container>, GpuId, EngineTimes)>,
    /// What time of each engine is worth.
    pub engine_weights: EngineWeights,
    /// What GPUs say.
    pub gpus: Vec<Shown>,
    /// Every job that runs, or ended lately.
    pub jobs: Vec<Running>,
    /// The processes of those that run.
    pub processes: Vec<Process>,
    /// Jobs that found no room, or whose streams have no series, since the start.
    pub jobs_dropped: u64,
    /// The past.
    pub ring: Ring,
}

/// One stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamRow {
    /// Which.
    pub id: StreamId,
    /// How its joules were obtained.
    pub origin: Origin,
    /// Since the start.
    pub joules: Microjoules,
}

/// One energy counter.
#[derive(Clone, Debug, PartialEq)]
pub struct ZoneRow {
    /// What it measures.
    pub id: ZoneId,
    /// How.
    pub origin: Origin,
    /// Since the start.
    pub total: Microjoules,
    /// Mean power over the tick; absent when the tick gave none.
    pub watts: Option<f64>,
}

/// One accounting root, since the start.
#[derive(Clone, Debug, PartialEq)]
pub struct AccountRow {
    /// Which.
    pub id: AccountId,
    /// Dynamic, by container.
    pub containers: Vec<(Arc<Container>, Microjoules)>,
    /// Idle that was shared out, by container.
    pub idle_shares: Vec<(Arc<Container>, Microjoules)>,
    /// Of containers without series.
    pub retired: Microjoules,
    /// Outside of containers.
    pub system: Microjoules,
    /// Nobody's: idle.
    pub idle: Microjoules,
    /// Nobody's: could not be given.
    pub unattributed: Microjoules,
}

/// The idle power that an account uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleRow {
    /// Of which root.
    pub id: ZoneId,
    /// The figure and its interval.
    pub estimate: Estimate,
    /// Learnt from measurements; false where the source knows it by construction.
    pub calibrated: bool,
}

/// One container.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerRow {
    /// Who.
    pub container: Arc<Container>,
    /// What it ran since the probe's start, by package.
    pub cpu: Vec<Share>,
    /// How many CPUs it kept busy over the tick; absent in the first.
    pub cpu_ratio: Option<f64>,
    /// Mean power over the tick, by zone, all packages.
    pub watts: Vec<(&'static str, Origin, f64)>,
    /// Waits and switches since the start, where they are counted.
    pub queue: Option<Queue>,
    /// By what part of themselves the joules of the tick may be off; absent where nobody can say.
    pub uncertainty: Option<f64>,
}

/// What one program inside the kernel cost since it was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramRow {
    /// Its name.
    pub name: &'static str,
    /// Nanoseconds that it ran.
    pub run_ns: u64,
    /// How often.
    pub runs: u64,
}

/// One collector in one tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CollectorRow {
    /// Its name.
    pub name: &'static str,
    /// How long it took.
    pub seconds: f64,
    /// Whether it gave its data.
    pub success: bool,
}
