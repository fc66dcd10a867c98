//! The immutable result of one tick. All pages are rendered from it, so that they agree.

pub mod history;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use history::{IDLE_NOT_LEARNT, Ring, WindowError, WindowResponse};
use metrics::family::Buckets;
use serde::{Deserialize, Serialize};
use units::{Microjoules, model_interval::ModelInterval, provenance::Unmeasured};

use crate::{
    containers::{
        Container,
        stats::{EngineRow, UsageRow},
    },
    cpu::{CpuUsage, ProgramRow, RunQueueStats, RunTime},
    energy::{
        counter::Reject,
        model::Interval,
        zone::{Origin, ZoneId, ZoneKind},
    },
    gpu::{
        GpuStatus,
        engines::{EngineTimes, EngineWeights},
    },
    host::{availability::SourceState, gpu_id::GpuId, topology::PackageId},
    jobs::{
        JobProcess,
        stage::{StagePart, StageTimes},
    },
    ledger::{
        AccountId,
        awake::AwakeShare,
        basis::Basis,
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
    /// By what the load energy of the roots was divided that are not always divided by CPU time.
    pub weights: Vec<WeightRow>,
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
    /// CPU time of the whole machine.
    pub host_cpu: HostCpu,
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
    /// Dynamic energy of the probe itself. That of its process is part of system, that of its eBPF
    /// programs of the targets that were switched.
    pub own: Vec<OwnRow>,
    /// Voluntary context switches of the probe's threads since its start.
    pub wakeups: Option<u64>,
    /// Delay of the start of ticks.
    pub jitter: Buckets,
    /// Ticks that were skipped because an earlier tick took too long.
    pub ticks_missed: u64,
    /// When the calibration in use was done, in unix seconds.
    pub calibrated_at: Option<i64>,
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
    /// CPU nanoseconds by part of streams whose stages are known.
    pub stream_times: Vec<(StreamId, StageTimes)>,
    /// Engine time of containers on each GPU since the start.
    pub engine_times: Vec<(Arc<Container>, GpuId, EngineTimes)>,
    /// Engine time since the start of each GPU (`None`), and of each job on it.
    pub engine_use: BTreeMap<(GpuId, Option<u32>), EngineTimes>,
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
    /// How far back the totals go.
    pub continuity: Continuity,
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

    /// The energy between two times in unix seconds. Modelled energy has its interval, which the
    /// history does not keep: it is that of the model of this tick.
    ///
    /// # Errors
    /// As [`Ring::window`].
    pub fn window(&self, start: f64, end: f64) -> Result<WindowResponse, WindowError> {
        let mut window = self.ring.window(start, end)?;
        for account in window.accounts.iter_mut().filter(|account| account.source == Origin::Model.as_str()) {
            let is_zone = |(id, _): &&(ZoneId, Interval)| {
                id.kind.as_str() == account.zone && id.package_label() == account.package
            };
            account.model_interval_ratio =
                self.intervals.iter().find(is_zone).map(|(_, interval)| interval.of_energy());
        }
        Ok(window)
    }

    /// True if the idle power of a package, or of the whole machine, is unknown. That of memory
    /// alone is a part of the uncertainty, and may stay unknown.
    #[must_use]
    pub fn is_idle_unknown(&self) -> bool {
        let machine = |row: &&IdleStateRow| matches!(row.id.kind, ZoneKind::Package | ZoneKind::Psys);
        let mut states = self.idle_states.iter().filter(machine).map(|row| row.state);
        states.any(|state| matches!(state, IdleState::Learning | IdleState::Refused))
    }

    /// The uncertainty of a container's energy of packages and memory in the last minute, for
    /// people; empty where nothing is known of it.
    #[must_use]
    pub fn uncertainty_text(&self, row: &ContainerRow) -> String {
        if row.watts.iter().any(|(_, origin, _)| *origin == Origin::Model) {
            return self.package_interval().map_or_else(String::new, |interval| interval.to_string());
        }
        if self.is_idle_unknown() {
            return IDLE_NOT_LEARNT.to_owned();
        }
        row.minute.map_or_else(String::new, |minute| format!("± {:.1} %", minute.ratio() * 100.0))
    }

    /// The interval of the energy of modelled packages. All packages have the same.
    fn package_interval(&self) -> Option<ModelInterval> {
        let package = self.intervals.iter().find(|(id, _)| id.kind == ZoneKind::Package);
        package.map(|(_, interval)| interval.of_energy())
    }

    /// The origins of all counters, and of GPUs without a counter.
    fn origins(&self) -> impl Iterator<Item = Origin> {
        self.zones.iter().map(|zone| zone.origin).chain(self.gpus.iter().map(|status| status.gpu.origin))
    }
}

/// How far back the totals of energy go: they continue after a clean restart of the probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continuity {
    /// Start of the totals in unix nanoseconds; absent where it is not kept.
    pub since_unix_ns: Option<i64>,
    /// Number of restarts since then.
    pub restarts: u64,
    /// Time since then in which no probe ran. Its energy is in no total.
    pub gap_ns: u64,
}

/// CPU time of the whole machine: every container, the system and the kernel's threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCpu {
    /// Time since the start of the probe.
    pub time: RunTime,
    /// CPUs that are online.
    pub online: usize,
    /// True if time next to a busy sibling is in its own figure; otherwise all time is "alone".
    pub siblings_known: bool,
}

/// Dynamic energy of a part of the probe since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnRow {
    /// `process` or `ebpf`.
    pub part: &'static str,
    /// Packages, the platform where it is measured instead of packages, or memory.
    pub zone: ZoneKind,
    pub origin: Origin,
    pub energy: Microjoules,
}

/// Energy of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamRow {
    pub id: StreamId,
    /// Source of its energy.
    pub origin: Origin,
    /// Energy since the start.
    pub joules: Microjoules,
    /// The same by part; empty where the stages are not known.
    pub parts: Vec<(StagePart, Microjoules)>,
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

/// The weight that divided the load energy of an accounting root.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightRow {
    pub id: ZoneId,
    pub basis: Basis,
    /// Watts of a CPU or joules of an event, by the value of the label `weight`; empty until they
    /// are known.
    pub costs: Vec<(&'static str, f64)>,
    /// Cross-validated error of each weight, relative to the power of the load.
    pub errors: Vec<(Basis, f64)>,
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
    /// CPU usage since the start, by package. Most containers of a host are idle: rows of all
    /// ticks share one list until a container runs.
    pub cpu: Arc<[CpuUsage]>,
    /// Mean number of CPUs it used over the tick; absent in the first.
    pub cpu_ratio: Option<f64>,
    /// Mean power over the tick by zone and source, all packages together. Idle containers of a
    /// tick share one list.
    pub watts: Arc<[(&'static str, Origin, f64)]>,
    /// Run-queue waits and context switches since the start, where they are counted.
    pub queue: Option<RunQueueStats>,
    /// Relative uncertainty of the energy of the tick, above 1 where nothing is known; absent where
    /// it is unknown.
    pub uncertainty: Option<f64>,
    /// Energy of the last minute with its bound; absent in the first minute, and where the bound is
    /// unknown.
    pub minute: Option<RecentSum>,
}
