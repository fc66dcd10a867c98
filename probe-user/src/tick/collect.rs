//! Collectors: read all sources of the machine once a tick, as raw data.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tracing::info;

use super::raw::{CpuTierInfo, RawTick, Setup, SourceChange, TickChanges};
use crate::{
    cgroup::CgroupKey,
    containers::{
        ChargeTarget, Container, ContainerRegistry, LookedUp, SavedContainer,
        stats::{EngineRow, StatsCollector, UsageRow},
    },
    cpu::{self, CpuReading, ProgramCost, ProgramRow, RunTime},
    energy::{self, SelectedSource, Source, SourceSearch, residency::Residency, zone::Origin},
    gpu::{self, GpuCollector},
    host::{
        availability::{Reason, SourceState, Unavailable},
        gpu_id::GpuId,
        process::clock_ns,
        topology::{PackageId, Topology},
    },
    jobs::{JobProcess, Jobs},
};

/// One collector in one tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CollectorRow {
    pub name: &'static str,
    /// Duration of the reading.
    pub seconds: f64,
    /// True when it returned its data.
    pub success: bool,
}

/// The open sources.
pub struct Collectors {
    source: Option<Box<dyn Source>>,
    search: Option<SourceSearch>,
    /// Sleep time of the packages.
    residency: Option<Residency>,
    /// The sources that the last successful search tried.
    tried: Option<Vec<SourceState>>,
    /// True when the accountant found the energy of the last tick incomplete.
    energy_broken: bool,
    suspension: SuspensionClock,
    cpu: Option<cpu::SelectedTier>,
    /// `None` where it is not measured.
    program_cost: Option<ProgramCost>,
    registry: Option<ContainerRegistry>,
    jobs: Option<Jobs>,
    stats: Option<StatsCollector>,
    gpus: Option<GpuCollector>,
    /// GPUs with an energy counter, in the order of their readings, which follow those of the
    /// energy source.
    gpu_zones: Vec<GpuId>,
    topology: Topology,
    sysfs: PathBuf,
    /// Why the energy source is incomplete; `None` when it is complete.
    incomplete: Option<Unavailable>,
    packages: Vec<PackageId>,
    start: Instant,
    /// Start of the current tick.
    began: Instant,
    raw: RawTick,
    readings: Vec<std::io::Result<u64>>,
    spare: CpuReading,
    /// CPU time by CPU of cgroups that are no longer in the readings.
    departed_ns: Vec<u64>,
    /// CPU time, up to the last tick, of CPUs that the topology does not contain.
    unknown_cpu_ns: u64,
    /// What earlier ticks reported, so that each change is reported once.
    reported: ReportedState,
}

/// The opened sources; each may be absent.
#[derive(Default)]
pub struct OpenedSources {
    /// Energy of packages and the platform.
    pub source: Option<Box<dyn Source>>,
    /// The search for another source of it; `None` where it stays as it is.
    pub search: Option<SourceSearch>,
    /// CPU time.
    pub cpu: Option<cpu::SelectedTier>,
    /// Identity of cgroups.
    pub registry: Option<ContainerRegistry>,
    /// Encoder processes.
    pub jobs: Option<Jobs>,
    /// Memory, network and block I/O of containers.
    pub stats: Option<StatsCollector>,
    pub gpus: Option<GpuCollector>,
}

#[derive(Default)]
struct ReportedState {
    targets: HashMap<CgroupKey, ChargeTarget>,
    /// The cgroups of the last reading.
    looked_up: LookedUp,
    containers: BTreeMap<u32, Arc<Container>>,
    reserved: BTreeMap<u32, u64>,
}

impl ReportedState {
    /// Adds the targets of `cgroups` that changed.
    fn report_targets(
        &mut self,
        registry: &ContainerRegistry,
        cgroups: impl Iterator<Item = CgroupKey> + Clone,
        changes: &mut TickChanges,
    ) {
        if self.looked_up.is_current(registry.target_changes(), cgroups.clone()) {
            return;
        }
        for key in cgroups.clone() {
            let target = registry.charge_target(&key);
            if self.targets.insert(key, target) != Some(target) {
                changes.targets.push((key, target));
            }
        }
        self.looked_up.set(registry.target_changes(), cgroups);
    }

    /// Adds the containers that are new or have another name.
    fn report_containers(&mut self, registry: &ContainerRegistry, changes: &mut TickChanges) {
        // Both are in the order of the numbers.
        let mut known = self.containers.values();
        if registry.containers().all(|container| known.next().is_some_and(|known| Arc::ptr_eq(known, container))) {
            return;
        }
        for container in registry.containers() {
            let last = self.containers.get(&container.number);
            if !last.is_some_and(|last| Arc::ptr_eq(last, container)) {
                self.containers.insert(container.number, container.clone());
                changes.containers.push(container.clone());
            }
        }
    }

    /// Forgets a cgroup whose slot is freed.
    fn forget(&mut self, key: &CgroupKey) {
        self.targets.remove(key);
        self.looked_up.clear();
    }
}

impl Collectors {
    /// Collectors of the sources that were opened at the start.
    #[must_use]
    pub fn new(opened: OpenedSources, topology: Topology, sysfs: PathBuf) -> Self {
        let OpenedSources { source, search, cpu, registry, jobs, stats, gpus } = opened;
        let zones = source.as_deref().map_or(&[][..], Source::zones);
        let per_die = zones.iter().any(|zone| zone.id.package.is_some_and(|package| package.die.is_some()));
        let packages = topology.packages(per_die);
        Self {
            incomplete: source.as_deref().and_then(energy::missing_zones),
            residency: source.is_some().then(|| Residency::open(&sysfs, &topology, &packages)).flatten(),
            packages,
            source,
            search,
            tried: None,
            energy_broken: false,
            suspension: SuspensionClock::default(),
            cpu,
            program_cost: None,
            registry,
            jobs,
            stats,
            gpus,
            gpu_zones: Vec::new(),
            topology,
            sysfs,
            start: Instant::now(),
            began: Instant::now(),
            raw: RawTick::default(),
            readings: Vec::new(),
            spare: CpuReading::default(),
            departed_ns: Vec::new(),
            unknown_cpu_ns: 0,
            reported: ReportedState::default(),
        }
    }

    /// A trial reading of the eBPF maps; `None` where no map is in use.
    pub fn trial_reading(&mut self) -> Option<impl FnOnce() -> bool + Send> {
        let (cpu, jobs, stats) = (self.cpu.as_mut(), self.jobs.as_mut(), self.stats.as_mut());
        (cpu.is_some() || jobs.is_some()).then_some(move || {
            cpu.is_none_or(|cpu| cpu.reader.read(&mut CpuReading::default()).is_ok())
                && jobs.is_none_or(|jobs| jobs.can_read())
                && stats.is_none_or(StatsCollector::can_read)
        })
    }

    /// Measures what the eBPF programs cost, from now on. Call it with the privileges of the start.
    pub fn measure_programs(&mut self, procfs: &Path) {
        self.program_cost = self.cpu.as_ref().map(|_| ProgramCost::start(procfs));
    }

    /// Run time of the eBPF programs; empty while the kernel keeps no statistics.
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramRow> {
        self.program_cost.as_ref().map(ProgramCost::rows).unwrap_or_default()
    }

    /// The energy source, for a second handle.
    #[must_use]
    pub fn source(&self) -> Option<&dyn Source> {
        self.source.as_deref()
    }

    /// Properties of the machine and its counters.
    #[must_use]
    pub fn setup(&self) -> Setup {
        let counters = self.source.as_deref().map(counters);
        let origin = counters.as_ref().map(|counters| counters.origin);
        let (zones, idle_uw) = counters.map(|counters| (counters.zones, counters.idle_uw)).unwrap_or_default();
        Setup {
            host: cli::host::name().unwrap_or_default(),
            origin,
            idle_uw,
            zones,
            packages: self.packages.clone(),
            cpu_packages: cpu_packages(&self.topology, &self.packages),
            cpu_weights: energy::cpu_kinds::cpu_weights(&self.sysfs),
            smt: self.topology.has_smt(),
            lag_ns: self.cpu.as_ref().map_or_else(scheduler_tick_ns, |cpu| cpu.reader.lag_ns(scheduler_tick_ns())),
            cpu: self.cpu.as_ref().map(|cpu| CpuTierInfo {
                tier: cpu.reader.tier(),
                capabilities: cpu.reader.capabilities(),
                reason: cpu.reason(),
            }),
        }
    }

    /// Reads all sources once. `ran` are the cgroups that ran in the tick before.
    pub fn read(&mut self, ran: &HashSet<CgroupKey>, collectors: &mut Vec<CollectorRow>) -> &RawTick {
        collectors.clear();
        self.raw.changes = TickChanges { departed: self.release_departed(ran), ..TickChanges::default() };
        self.replace_source();
        self.began = Instant::now();
        if let Some(gpus) = &mut self.gpus {
            gpus.request_poll(self.jobs.iter().flat_map(|jobs| jobs.recently_started(self.began)).collect());
        }

        self.suspension.advance();
        // A model computes energy from CPU time, so that is read first. Counters go first.
        let modelled = self.source.as_deref().is_some_and(|source| source.origin() == Origin::Model);
        let early = (modelled && self.cpu.is_some()).then(|| self.read_cpu(Instant::now(), collectors));
        let busy = early.as_ref().map(|reading| self.busy_ns(reading.as_ref().ok())).unwrap_or_default();
        let began = Instant::now();
        self.raw.zones.clear();
        if let Some(source) = &mut self.source {
            self.readings.clear();
            source.note_busy(&busy);
            source.read(&mut self.readings);
            let whole = self.readings.iter().all(Result::is_ok);
            self.raw.zones.extend(self.readings.drain(..).map(|value| value.map_err(|error| error.to_string())));
            collectors.push(collector("energy", began, whole));
        }
        if let Some(residency) = &self.residency {
            residency.read(&mut self.raw.residency);
        }
        let (energy_at, unix_ns) = both_clocks();
        self.raw.suspended_ns = self.suspension.end_reading();
        self.raw.unix_ns = unix_ns;
        self.raw.cpu = match early {
            Some(reading) => Some(reading),
            None => self.cpu.is_some().then(|| self.read_cpu(energy_at, collectors)),
        };
        let cpu_at = Instant::now();

        self.update_topology();
        self.read_containers(cpu_at, collectors);
        self.read_gpus(collectors);
        self.raw.own_ns = clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID).unwrap_or(0);
        if let (Some(cost), Some(cpu)) = (&mut self.program_cost, &self.cpu) {
            let mut programs = cpu.reader.costs();
            programs.extend(self.stats.iter().flat_map(StatsCollector::programs));
            cost.observe(programs, cpu_at);
            self.raw.programs_ns = cost.run_ns();
        }
        let since = |at: Instant| u64::try_from((at - self.start).as_nanos()).unwrap_or(u64::MAX);
        (self.raw.began_ns, self.raw.energy_ns, self.raw.cpu_ns) = (since(began), since(energy_at), since(cpu_at));
        &self.raw
    }

    /// Takes a source that the search has found in the place of the one in use.
    fn replace_source(&mut self) {
        let Some(search) = &mut self.search else { return };
        let now = Instant::now();
        search.observe(&self.raw.zones, self.energy_broken, now);
        let Some(SelectedSource { source: Some(source), tried }) = search.advance(now) else { return };
        let before = self.source.as_deref().map_or("no source", |source| source.energy_origin().as_str());
        info!("energy: {} in place of {before}; its series start at zero", source.energy_origin().as_str());
        self.incomplete = energy::missing_zones(&*source);
        self.raw.changes.source = Some(counters(&*source));
        (self.source, self.tried, self.energy_broken) = (Some(source), Some(tried), false);
    }

    /// Notes whether the energy of the last tick was incomplete. A source that stays so is given up
    /// for another one.
    pub fn note_energy_broken(&mut self, broken: bool) {
        self.energy_broken = broken;
    }

    /// The states of the energy sources, once after another one was taken into use.
    pub fn take_tried(&mut self) -> Option<Vec<SourceState>> {
        self.tried.take()
    }

    /// Takes the reading of the GPU thread. A late reading is used in the next tick.
    fn read_gpus(&mut self, collectors: &mut Vec<CollectorRow>) {
        self.raw.gpus.clear();
        let Some(gpus) = &mut self.gpus else { return };
        let began = Instant::now();
        let poll = gpus.take_poll();
        if let Some(late) = poll.as_ref().filter(|poll| poll.at < self.began) {
            gpus.request_early_poll(late, self.jobs.iter().flat_map(|jobs| jobs.recently_started(began)).collect());
        }
        let late = poll.is_none() && gpus.is_pending();
        let mut read: HashMap<GpuId, Result<u64, String>> = HashMap::new();
        if let Some(poll) = poll {
            let at = poll.at.saturating_duration_since(self.start);
            self.raw.gpu_ns = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
            for gpu in &poll.gpus {
                if let (Some(zone), Some(raw)) = (&gpu.zone, &gpu.raw) {
                    if !self.gpu_zones.contains(&gpu.id) {
                        self.gpu_zones.push(gpu.id);
                        self.raw.changes.zones.push(zone.clone());
                    }
                    read.insert(gpu.id, raw.clone());
                }
            }
            self.raw.gpus = gpus.attribute(poll, self.registry.as_ref(), self.jobs.as_ref());
        }
        for gpu in &self.gpu_zones {
            self.raw.zones.push(read.remove(gpu).unwrap_or_else(|| Err("its driver has not answered yet".to_owned())));
        }
        if !gpus.statuses().is_empty() || late {
            collectors.push(collector("gpu", began, !late));
        }
    }

    /// Telemetry of the GPUs.
    pub fn gpus(&self) -> &[gpu::GpuStatus] {
        self.gpus.as_ref().map_or(&[], GpuCollector::statuses)
    }

    /// State of the GPU drivers, with details. `trouble` is the accountant's problem with their
    /// energy.
    pub fn gpu_states(&self, trouble: Option<&str>) -> Vec<(&'static str, Result<(), Unavailable>, String)> {
        let mut states = self.gpus.as_ref().map(GpuCollector::states).unwrap_or_default();
        if let Some(trouble) = trouble {
            // It begins with the location of the zone, which the driver of its board has opened.
            let has = |status: &&gpu::GpuStatus| {
                status.gpu.zone.as_ref().is_some_and(|zone| trouble.starts_with(&*zone.location))
            };
            let of = self.gpus().iter().find(has).map_or(Origin::Nvml, |status| status.gpu.origin).reader();
            for (_, state, _) in states.iter_mut().filter(|(name, state, _)| *name == of && state.is_ok()) {
                *state = Err(Unavailable::new(
                    Reason::Broken,
                    format!("{trouble}. Its energy counter does not increase meanwhile"),
                ));
            }
        }
        states
    }

    /// Waits until the drivers of GPUs are open, at most for `timeout`.
    pub fn wait_for_gpus(&mut self, timeout: Duration) {
        if let Some(gpus) = &mut self.gpus {
            gpus.wait_until_open(timeout);
        }
    }

    fn read_cpu(&mut self, began: Instant, collectors: &mut Vec<CollectorRow>) -> Result<CpuReading, String> {
        let Some(cpu) = &mut self.cpu else { return Err("CPU time is not collected".to_owned()) };
        // The buffer of the tick before is reused, so that the steady state allocates nothing.
        let mut reading = match self.raw.cpu.take() {
            Some(Ok(reading)) => reading,
            _ => std::mem::take(&mut self.spare),
        };
        let result = cpu.reader.read(&mut reading);
        collectors.push(collector("cpu", began, result.is_ok()));
        match result {
            Ok(()) => Ok(reading),
            Err(error) => {
                self.spare = reading;
                Err(error.to_string())
            }
        }
    }

    /// Busy nanoseconds of each CPU since the tier was opened; empty where they are not known by
    /// CPU.
    fn busy_ns(&self, reading: Option<&CpuReading>) -> Vec<u64> {
        let by_cpu = self.cpu.as_ref().is_some_and(|cpu| cpu.reader.capabilities().cpus);
        let Some(reading) = reading.filter(|_| by_cpu) else { return Vec::new() };
        let mut busy = self.departed_ns.clone();
        reading.rows.iter().for_each(|(_, row)| add_ns(&mut busy, row));
        add_ns(&mut busy, &reading.overflow);
        busy
    }

    /// Reads the topology again when CPU time appears on a CPU that it does not contain: such a CPU
    /// came online since.
    fn update_topology(&mut self) {
        let Some(Ok(reading)) = &self.raw.cpu else { return };
        let unknown: Vec<usize> =
            (0..reading.overflow.len()).filter(|cpu| self.topology.domain(*cpu, false).is_none()).collect();
        if unknown.is_empty() {
            return;
        }
        let ns = |row: &[RunTime]| {
            let times = unknown.iter().filter_map(|cpu| row.get(*cpu));
            times.fold(0, |sum: u64, time| sum.saturating_add(time.ns()))
        };
        let ran = reading.rows.iter().map(|(_, row)| ns(row)).sum::<u64>();
        if ran > self.unknown_cpu_ns {
            let topology = Topology::read(&self.sysfs);
            if topology != self.topology {
                self.topology = topology;
                self.raw.changes.cpu_packages = Some(cpu_packages(&self.topology, &self.packages));
                if let Some(cpu) = &mut self.cpu {
                    cpu.reader.update_topology(&self.topology);
                }
            }
        }
        self.unknown_cpu_ns = ran;
    }

    /// Updates containers and jobs with the cgroups of the CPU reading, and collects what changed.
    fn read_containers(&mut self, now: Instant, collectors: &mut Vec<CollectorRow>) {
        let (Some(Ok(reading)), Some(registry)) = (&self.raw.cpu, &mut self.registry) else { return };
        let (changes, reported) = (&mut self.raw.changes, &mut self.reported);
        if let Some(of_trees) = self.cpu.as_mut().and_then(|cpu| cpu.reader.take_cgroup_changes()) {
            registry.apply(of_trees);
        }
        let cgroups = reading.rows.iter().map(|(key, _)| *key);
        changes.ended = registry.observe(cgroups.clone(), now);
        if let Some(jobs) = &mut self.jobs {
            let began = Instant::now();
            let of_jobs = jobs.observe(now, self.raw.unix_ns, registry);
            (changes.jobs, changes.jobs_ended, changes.jobs_gone) = (of_jobs.started, of_jobs.ended, of_jobs.removed);
            (changes.jobs_moved, changes.jobs_dropped) = (of_jobs.moved, of_jobs.dropped);
            (self.raw.jobs, self.raw.stages) = (of_jobs.clocks, of_jobs.stages);
            collectors.push(collector("jobs", began, true));
        }
        reported.report_targets(registry, cgroups, changes);
        reported.report_containers(registry, changes);
        for (number, milli) in registry.reservations() {
            if reported.reserved.insert(number, milli) != Some(milli) {
                changes.reserved.push((number, milli));
            }
        }
        for number in &changes.ended {
            reported.containers.remove(number);
            reported.reserved.remove(number);
        }
        changes.dropped = registry.dropped();
        changes.unnamed = registry.unnamed();
        changes.scans_incomplete = registry.incomplete_scans();
        collectors.push(collector("containers", now, true));
        if let Some(stats) = &mut self.stats {
            let began = Instant::now();
            let rows = stats.read(registry.cgroup_paths());
            registry.note_cpu_limits(rows.iter().map(|row| (row.container.number, row.usage.cpu_limit)));
            stats.read_engines();
            collectors.push(collector("stats", began, true));
        }
    }

    /// The containers that the next start can recognise.
    pub(crate) fn saved_containers(&self) -> Vec<SavedContainer> {
        self.registry.as_ref().map(ContainerRegistry::saved_containers).unwrap_or_default()
    }

    /// Continues the containers of an earlier probe; returns those that were added.
    pub(crate) fn continue_containers(&mut self, saved: Vec<SavedContainer>) -> Vec<Arc<Container>> {
        let registry = self.registry.as_mut();
        registry.map(|registry| registry.continue_containers(saved, Instant::now())).unwrap_or_default()
    }

    /// Number of existing containers of runtimes, with or without series.
    pub fn container_count(&self) -> usize {
        self.registry.as_ref().map_or(0, ContainerRegistry::container_count)
    }

    /// Memory, network and I/O of containers and engines, and the memory of the machine in bytes.
    pub fn usage(&self) -> (&[UsageRow], &[EngineRow], u64) {
        let Some(stats) = &self.stats else { return (&[], &[], 0) };
        (stats.rows(), stats.engines(), stats.machine_memory())
    }

    /// The processes of running jobs.
    pub fn processes(&self) -> Vec<JobProcess> {
        let numbers = self.raw.jobs.iter().map(|(number, _)| *number);
        let process = |number| self.jobs.as_ref()?.process(number);
        numbers.filter_map(process).collect()
    }

    /// Frees the kernel slots of removed cgroups whose last reading was attributed.
    fn release_departed(&mut self, ran: &HashSet<CgroupKey>) -> Vec<CgroupKey> {
        let Some(registry) = &mut self.registry else { return Vec::new() };
        registry.note_ran(ran.iter(), Instant::now());
        let departed = registry.take_departed(|key| ran.contains(key));
        if let (Some(Ok(reading)), false) = (&self.raw.cpu, departed.is_empty()) {
            let rows = reading.rows.iter().filter(|(key, _)| departed.contains(key));
            rows.for_each(|(_, row)| add_ns(&mut self.departed_ns, row));
        }
        for key in &departed {
            if let Some(cpu) = &mut self.cpu {
                cpu.reader.forget(key);
            }
            self.reported.forget(key);
        }
        departed
    }

    /// Current state of the sources. `trouble` is the accountant's problem with the energy.
    pub fn states(&self, trouble: Option<&str>) -> Vec<(&'static str, Result<(), Unavailable>)> {
        let mut all = Vec::new();
        if let Some(source) = &self.source {
            let state = match (trouble, &self.incomplete) {
                (Some(error), _) => Err(Unavailable::new(
                    Reason::Broken,
                    format!("{error}. Its counters do not increase until it can be read again"),
                )),
                (None, Some(why)) => Err(why.clone()),
                (None, None) => Ok(()),
            };
            all.push((source.origin().as_str(), state));
        }
        match &self.raw.cpu {
            Some(Ok(_)) => all.push(("cpu", Ok(()))),
            Some(Err(error)) => {
                all.push((
                    "cpu",
                    Err(Unavailable::new(Reason::Broken, format!("the kernel refused a reading: {error}"))),
                ));
            }
            None => {}
        }
        if let Some(names) = self.registry.as_ref().and_then(ContainerRegistry::names) {
            all.push(("docker", names.state()));
        }
        if let Some(jobs) = &self.jobs {
            all.push(("jobs", jobs.state()));
        }
        all
    }
}

/// Adds the run time of a cgroup on each CPU.
fn add_ns(sums: &mut Vec<u64>, row: &[RunTime]) {
    sums.resize(sums.len().max(row.len()), 0);
    sums.iter_mut().zip(row).for_each(|(sum, time)| *sum = sum.saturating_add(time.ns()));
}

/// The counters of a source.
fn counters(source: &dyn Source) -> SourceChange {
    let zones = source.zones().to_vec();
    let idle_uw = (0..zones.len()).map(|zone| source.idle_power(zone)).collect();
    SourceChange { origin: source.origin(), zones, idle_uw }
}

/// Measures for how long the machine was suspended: CLOCK_BOOTTIME includes that time, and
/// CLOCK_MONOTONIC does not (man 2 clock_gettime).
#[derive(Debug, Default)]
struct SuspensionClock {
    /// Upper limit of the difference of the two clocks.
    most_ns: Option<u64>,
    /// Suspension since the last tick, and during the reading of the counters in it.
    suspended_ns: u64,
}

impl SuspensionClock {
    /// Adds the suspension since the last call.
    fn advance(&mut self) -> u64 {
        let clock = |clock| clock_ns(clock).unwrap_or(0);
        let before = clock(libc::CLOCK_MONOTONIC);
        let boot = clock(libc::CLOCK_BOOTTIME);
        self.observe(before, boot, clock(libc::CLOCK_MONOTONIC))
    }

    /// The second clock was read between two readings of the first. Only what is certain counts: a
    /// thread that is descheduled between the readings is not a suspension.
    fn observe(&mut self, before_ns: u64, boot_ns: u64, after_ns: u64) -> u64 {
        let (least, most) = (boot_ns.saturating_sub(after_ns), boot_ns.saturating_sub(before_ns));
        let suspended = least.saturating_sub(self.most_ns.unwrap_or(least));
        let known = self.most_ns.filter(|_| suspended == 0);
        self.most_ns = Some(known.map_or(most, |known| known.min(most)));
        self.suspended_ns = self.suspended_ns.saturating_add(suspended);
        suspended
    }

    /// Suspension up to the end of the reading of the counters. A suspension during the reading
    /// belongs to the next tick too, because some of the counters were read before it.
    fn end_reading(&mut self) -> u64 {
        let during = self.advance();
        std::mem::replace(&mut self.suspended_ns, during)
    }
}

fn collector(name: &'static str, began: Instant, success: bool) -> CollectorRow {
    CollectorRow { name, seconds: began.elapsed().as_secs_f64(), success }
}

/// Package index of each CPU number; `None` for one that is offline.
fn cpu_packages(topology: &Topology, packages: &[PackageId]) -> Vec<Option<usize>> {
    let per_die = packages.iter().any(|package| package.die.is_some());
    let mut cpu_packages = Vec::new();
    for (cpu, package) in topology.cpus(per_die) {
        if cpu_packages.len() <= cpu {
            cpu_packages.resize(cpu + 1, None);
        }
        // A package that came online after the start has no account, so its time counts for the
        // first package.
        cpu_packages[cpu] = Some(packages.iter().position(|known| *known == package).unwrap_or(0));
    }
    cpu_packages
}

/// One period of the scheduler's tick: the resolution of the coarse clock, which it advances (man 2
/// clock_getres).
fn scheduler_tick_ns() -> u64 {
    let resolution = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse);
    u64::try_from(resolution.tv_nsec).unwrap_or(10_000_000)
}

/// Both clocks at one moment. A delay between the two readings would look like a step of the wall
/// clock, so a thread that is descheduled between them reads again.
fn both_clocks() -> (Instant, i64) {
    let mut best: Option<(Duration, Instant, i64)> = None;
    for _ in 0..4 {
        let before = Instant::now();
        let unix_ns = unix_now();
        let took = before.elapsed();
        if best.as_ref().is_none_or(|(least, ..)| took < *least) {
            best = Some((took, before + took / 2, unix_ns));
        }
        if took < Duration::from_micros(100) {
            break;
        }
    }
    best.map_or_else(|| (Instant::now(), unix_now()), |(_, at, unix_ns)| (at, unix_ns))
}

/// Unix time in nanoseconds, whole microseconds.
fn unix_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(0) * 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_suspension_is_measured_and_a_descheduled_thread_is_not() {
        let mut clock = SuspensionClock::default();
        // The machine was suspended for 5 s before the start.
        assert_eq!(clock.observe(SECOND, 6 * SECOND, SECOND + 100), 0);
        assert_eq!(clock.observe(2 * SECOND, 9 * SECOND, 4 * SECOND), 0, "2 s between the readings");
        assert_eq!(clock.observe(5 * SECOND, 40 * SECOND, 5 * SECOND), 30 * SECOND);
        assert_eq!(clock.observe(6 * SECOND, 41 * SECOND, 6 * SECOND), 0);
        assert_eq!(clock.suspended_ns, 30 * SECOND);
    }

    #[test]
    fn a_machine_that_runs_is_not_suspended() {
        let mut clock = SuspensionClock::default();
        for _ in 0..100 {
            clock.advance();
            assert_eq!(clock.end_reading(), 0);
        }
    }
}
