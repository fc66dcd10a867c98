//! What touches the machine: reads energy, CPU time and cgroups once, as raw as they come, in one go.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    containers::{
        Container, Directory,
        stats::{EngineRow, Stats, UsageRow},
    },
    cpu::{self, CgroupKey, Reader, Reading, RunTime},
    energy::{self, Source, zone::Zone},
    gpu::{self, Gpus, engines::GpuId},
    jobs::{Jobs, Process},
    ledger::Holder,
    snapshot::{CollectorRow, ProgramRow},
    state::{Reason, Unavailable},
    tick::{Collected, News, RawTick, Setup},
    topology::{PackageId, Topology},
};

/// The open sources.
pub struct Instruments {
    source: Option<Box<dyn Source>>,
    cpu: Option<cpu::Chosen>,
    directory: Option<Directory>,
    jobs: Option<Jobs>,
    stats: Option<Stats>,
    gpus: Option<Gpus>,
    /// Those with a counter, in the order of their readings, which follow those of the energy source.
    gpu_zones: Vec<GpuId>,
    usage: Vec<UsageRow>,
    engines: Vec<EngineRow>,
    topology: Topology,
    sysfs: PathBuf,
    /// What was usable at the start and how it stands now.
    lacks: Option<Unavailable>,
    packages: Vec<PackageId>,
    start: Instant,
    /// When the tick under way began.
    began: Instant,
    raw: RawTick,
    readings: Vec<std::io::Result<u64>>,
    spare: Reading,
    /// What ran up to the last tick on CPUs that the topology does not know.
    strangers_ns: u64,
    departed: Vec<CgroupKey>,
    /// What the accountant was told, so that it is told only what is new.
    told: Told,
}

/// What there is to be read; each part may be missing.
#[derive(Default)]
pub struct Opened {
    /// Energy of packages and the platform.
    pub source: Option<Box<dyn Source>>,
    /// CPU time.
    pub cpu: Option<cpu::Chosen>,
    /// Who is who.
    pub directory: Option<Directory>,
    /// Who encodes.
    pub jobs: Option<Jobs>,
    /// What containers use besides.
    pub stats: Option<Stats>,
    /// GPUs.
    pub gpus: Option<Gpus>,
}

#[derive(Default)]
struct Told {
    holders: HashMap<CgroupKey, Holder>,
    shown: BTreeMap<u32, Arc<Container>>,
    reserved: BTreeMap<u32, u64>,
}

impl Instruments {
    /// Takes what was opened at the start.
    #[must_use]
    pub fn new(opened: Opened, topology: Topology, sysfs: PathBuf) -> Self {
        let Opened { source, cpu, directory, jobs, stats, gpus } = opened;
        let zones = source.as_deref().map_or(&[][..], Source::zones);
        let per_die = zones.iter().any(|zone| zone.id.package.is_some_and(|package| package.die.is_some()));
        Self {
            lacks: source.as_deref().and_then(energy::lacks),
            packages: topology.packages(per_die),
            source,
            cpu,
            directory,
            jobs,
            stats,
            gpus,
            gpu_zones: Vec::new(),
            usage: Vec::new(),
            engines: Vec::new(),
            topology,
            sysfs,
            start: Instant::now(),
            began: Instant::now(),
            raw: RawTick::default(),
            readings: Vec::new(),
            spare: Reading::default(),
            strangers_ns: 0,
            departed: Vec::new(),
            told: Told::default(),
        }
    }

    /// What reads the kernel side, to try what it may do without privileges: CPU time, and jobs.
    pub fn kernel_side(&mut self) -> (Option<&mut dyn Reader>, Option<&mut Jobs>) {
        (self.cpu.as_mut().map(|cpu| &mut *cpu.reader as &mut dyn Reader), self.jobs.as_mut())
    }

    /// What the kernel side costs; empty while the kernel keeps no statistics.
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramRow> {
        self.cpu.as_ref().map(|cpu| cpu.reader.costs()).unwrap_or_default()
    }

    /// The energy source, for a second handle.
    #[must_use]
    pub fn source(&self) -> Option<&dyn Source> {
        self.source.as_deref()
    }

    /// What holds for every tick.
    #[must_use]
    pub fn setup(&self) -> Setup {
        let zones: Vec<Zone> = self.source.as_deref().map_or(&[][..], Source::zones).to_vec();
        Setup {
            origin: self.source.as_deref().map(Source::origin),
            idle_uw: (0..zones.len())
                .map(|zone| self.source.as_deref().and_then(|source| source.idle_power(zone)))
                .collect(),
            zones,
            packages: self.packages.clone(),
            places: places(&self.topology, &self.packages),
            smt: self.topology.has_smt(),
            lag_ns: scheduler_tick_ns(),
            cpu: self.cpu.as_ref().map(|cpu| Collected {
                tier: cpu.reader.tier(),
                knows: cpu.reader.knows(),
                reason: cpu.reason(),
            }),
        }
    }

    /// Reads everything once. `ran` are the cgroups that ran in the tick before.
    pub fn read(&mut self, ran: &HashSet<CgroupKey>, collectors: &mut Vec<CollectorRow>) -> &RawTick {
        collectors.clear();
        self.raw.news = News { departed: self.let_go(ran), ..News::default() };
        self.began = Instant::now();
        if let Some(gpus) = &mut self.gpus {
            gpus.ask(self.jobs.iter().flat_map(|jobs| jobs.recent(self.began)).collect());
        }

        let began = Instant::now();
        self.raw.zones.clear();
        if let Some(source) = &mut self.source {
            self.readings.clear();
            source.read(&mut self.readings);
            let whole = self.readings.iter().all(Result::is_ok);
            self.raw.zones.extend(self.readings.drain(..).map(|value| value.map_err(|error| error.to_string())));
            collectors.push(collector("energy", began, whole));
        }
        let (energy_at, unix_ns) = both_clocks();
        self.raw.unix_ns = unix_ns;
        self.raw.cpu = self.cpu.is_some().then(|| self.read_cpu(energy_at, collectors));
        let cpu_at = Instant::now();

        self.observe(cpu_at, collectors);
        self.read_gpus(collectors);
        self.raw.own_ns = own_cpu_ns();
        let since = |at: Instant| u64::try_from((at - self.start).as_nanos()).unwrap_or(u64::MAX);
        (self.raw.began_ns, self.raw.energy_ns, self.raw.cpu_ns) = (since(began), since(energy_at), since(cpu_at));
        &self.raw
    }

    /// Takes what the thread of GPUs has read meanwhile; what is late comes with the next tick.
    fn read_gpus(&mut self, collectors: &mut Vec<CollectorRow>) {
        self.raw.gpus.clear();
        let Some(gpus) = &mut self.gpus else { return };
        let began = Instant::now();
        let look = gpus.answer();
        if let Some(late) = look.as_ref().filter(|look| look.at < self.began) {
            gpus.ask_early(late, self.jobs.iter().flat_map(|jobs| jobs.recent(began)).collect());
        }
        let late = look.is_none() && gpus.is_awaited();
        let mut read: HashMap<GpuId, Result<u64, String>> = HashMap::new();
        if let Some(look) = look {
            let at = look.at.saturating_duration_since(self.start);
            self.raw.gpu_ns = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
            for gpu in &look.gpus {
                if let (Some(zone), Some(raw)) = (&gpu.zone, &gpu.raw) {
                    if !self.gpu_zones.contains(&gpu.id) {
                        self.gpu_zones.push(gpu.id);
                        self.raw.news.zones.push(zone.clone());
                    }
                    read.insert(gpu.id, raw.clone());
                }
            }
            self.raw.gpus = gpus.resolve(look, self.directory.as_ref(), self.jobs.as_ref());
        }
        for gpu in &self.gpu_zones {
            self.raw.zones.push(read.remove(gpu).unwrap_or_else(|| Err("its driver has not answered yet".to_owned())));
        }
        if !gpus.shown().is_empty() || late {
            collectors.push(collector("gpu", began, !late));
        }
    }

    /// What GPUs say.
    pub fn gpus(&self) -> &[gpu::Shown] {
        self.gpus.as_ref().map_or(&[], Gpus::shown)
    }

    /// How the drivers of GPUs stand, with what was found. `trouble` is what the accountant says of their energy.
    pub fn gpu_states(&self, trouble: Option<&str>) -> Vec<(&'static str, Result<(), Unavailable>, String)> {
        let mut states = self.gpus.as_ref().map(Gpus::states).unwrap_or_default();
        if let Some(trouble) = trouble {
            for (_, state, _) in states.iter_mut().filter(|(name, state, _)| *name == "nvml" && state.is_ok()) {
                *state = Err(Unavailable::new(Reason::Broken, format!("{trouble}. Its joules stand where they stood")));
            }
        }
        states
    }

    /// Waits until drivers of GPUs have opened, for at most so long.
    pub fn settle(&mut self, most: Duration) {
        if let Some(gpus) = &mut self.gpus {
            gpus.settle(most);
        }
    }

    fn read_cpu(&mut self, began: Instant, collectors: &mut Vec<CollectorRow>) -> Result<Reading, String> {
        let Some(cpu) = &mut self.cpu else { return Err("CPU time is not collected".to_owned()) };
        // The buffer of the tick before, so that the steady state allocates nothing.
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

    /// Makes every cgroup of the reading known, and notes what is new.
    fn observe(&mut self, now: Instant, collectors: &mut Vec<CollectorRow>) {
        let Some(Ok(reading)) = &self.raw.cpu else { return };
        // What runs on a CPU that the topology does not know came online since. One that has gone again runs nothing.
        let strangers: Vec<usize> =
            (0..reading.overflow.len()).filter(|cpu| self.topology.domain(*cpu, false).is_none()).collect();
        if !strangers.is_empty() {
            let ns = |row: &[RunTime]| {
                let of_strangers = strangers.iter().filter_map(|cpu| row.get(*cpu));
                of_strangers.fold(0, |sum: u64, time| sum.saturating_add(time.ns()))
            };
            let ran = reading.rows.iter().map(|(_, row)| ns(row)).sum::<u64>();
            if ran > self.strangers_ns {
                let again = Topology::read(&self.sysfs);
                if again != self.topology {
                    self.topology = again;
                    self.raw.news.places = Some(places(&self.topology, &self.packages));
                    if let Some(cpu) = &mut self.cpu {
                        cpu.reader.replace(&self.topology);
                    }
                }
            }
            self.strangers_ns = ran;
        }

        let Some(directory) = &mut self.directory else { return };
        let news = &mut self.raw.news;
        news.ended = directory.observe(reading.rows.iter().map(|(key, _)| *key), now);
        if let Some(jobs) = &mut self.jobs {
            let began = Instant::now();
            self.raw.jobs = jobs.observe(now, self.raw.unix_ns, directory, news);
            collectors.push(collector("jobs", began, true));
        }
        for (key, _) in &reading.rows {
            let holder = directory.holder(key);
            if self.told.holders.insert(*key, holder) != Some(holder) {
                news.holders.push((*key, holder));
            }
        }
        for container in directory.containers() {
            let told = self.told.shown.get(&container.number);
            if !told.is_some_and(|told| Arc::ptr_eq(told, container)) {
                self.told.shown.insert(container.number, container.clone());
                news.shown.push((**container).clone());
            }
        }
        for (number, milli) in directory.reservations() {
            if self.told.reserved.insert(number, milli) != Some(milli) {
                news.reserved.push((number, milli));
            }
        }
        for number in &news.ended {
            self.told.shown.remove(number);
            self.told.reserved.remove(number);
        }
        news.dropped = directory.dropped();
        news.unnamed = directory.unnamed();
        news.scans_incomplete = directory.incomplete_scans();
        collectors.push(collector("containers", now, true));
        if let Some(stats) = &mut self.stats {
            let began = Instant::now();
            self.usage = stats.read(directory.homes());
            self.engines = stats.engines();
            collectors.push(collector("stats", began, true));
        }
    }

    /// What containers and engines use besides CPU time, and what memory the machine has.
    pub fn usage(&self) -> (&[UsageRow], &[EngineRow], u64) {
        (&self.usage, &self.engines, self.stats.as_ref().map_or(0, Stats::machine_memory))
    }

    /// The processes of jobs that run.
    pub fn processes(&self) -> Vec<Process> {
        let numbers = self.raw.jobs.iter().map(|(number, _)| *number);
        let process = |number| self.jobs.as_ref()?.process(number);
        numbers.filter_map(process).collect()
    }

    /// Frees what belongs to cgroups whose last reading was accounted.
    fn let_go(&mut self, ran: &HashSet<CgroupKey>) -> Vec<CgroupKey> {
        let Some(directory) = &mut self.directory else { return Vec::new() };
        self.departed = directory.depart(|key| ran.contains(key));
        for key in &self.departed {
            if let Some(cpu) = &mut self.cpu {
                cpu.reader.forget(key);
            }
            self.told.holders.remove(key);
        }
        std::mem::take(&mut self.departed)
    }

    /// Brings the states of the sources up to date. `trouble` is what the accountant says of the energy.
    pub fn states(&self, trouble: Option<&str>) -> Vec<(&'static str, Result<(), Unavailable>)> {
        let mut all = Vec::new();
        if let Some(source) = &self.source {
            let state = match (trouble, &self.lacks) {
                (Some(error), _) => Err(Unavailable::new(
                    Reason::Broken,
                    format!("{error}. Its counters stand where they stood; they go on when it reads again"),
                )),
                (None, Some(lacks)) => Err(lacks.clone()),
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
        if let Some(names) = self.directory.as_ref().and_then(Directory::names) {
            all.push(("docker", names.state()));
        }
        if let Some(jobs) = &self.jobs {
            all.push(("jobs", jobs.state()));
        }
        all
    }
}

fn collector(name: &'static str, began: Instant, success: bool) -> CollectorRow {
    CollectorRow { name, seconds: began.elapsed().as_secs_f64(), success }
}

/// Package index of each CPU number; `None` for one that is offline.
fn places(topology: &Topology, packages: &[PackageId]) -> Vec<Option<usize>> {
    let per_die = packages.iter().any(|package| package.die.is_some());
    let mut places = Vec::new();
    for (cpu, package) in topology.cpus(per_die) {
        if places.len() <= cpu {
            places.resize(cpu + 1, None);
        }
        // A package that came online after the start has no account; its time is in the first.
        places[cpu] = Some(packages.iter().position(|known| *known == package).unwrap_or(0));
    }
    places
}

/// One period of the scheduler's tick: the resolution of the coarse clock, which it advances (man 2 clock_getres).
fn scheduler_tick_ns() -> u64 {
    let mut resolution = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `resolution` is a valid timespec that outlives the call.
    let failed = unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut resolution) } != 0;
    // 100 Hz, the slowest that kernels are built with.
    if failed { 10_000_000 } else { u64::try_from(resolution.tv_nsec).unwrap_or(10_000_000) }
}

/// CPU time of this process, all threads.
fn own_cpu_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec that outlives the call.
    if unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut now) } != 0 {
        return 0;
    }
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(now.tv_nsec))
}

/// Both clocks at one moment: apart by more than a tick takes to be read, they would look like a wall clock that was set. Whoever is put off between them looks again.
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
