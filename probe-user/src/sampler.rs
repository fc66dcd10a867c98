//! The tick: the only place that knows all sources.
//!
//! One thread, its own monotonic schedule, measured intervals: sources -> ledger -> snapshot. Requests never reach it,
//! but for marks: "take an extra tick now", which are spaced apart and share ticks.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, mpsc},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use exporter::family::Buckets;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::{
    containers::{Container, Directory},
    cpu::{CgroupKey, Reading, Window, switch::Switch},
    energy::{Meter, ZoneTick, zone::ZoneKind},
    ledger::{AccountId, Book, Closed, Holder, close},
    snapshot::{AccountRow, CollectorRow, ContainerRow, Snapshot, ZoneRow},
    state::{Reason, SourceState, Unavailable},
    topology::{PackageId, Topology},
    units::Microjoules,
    window::{AccountDelta, Ring, Tick, seconds},
};

/// A tick for a mark is at least this far from other ticks: power at a finer grain is a side channel (PLATYPUS), and a tick has a cost.
pub const SPACING: Duration = Duration::from_millis(100);
/// The first interval is short, so that the first whole page is there soon after the start.
const FIRST_INTERVAL: Duration = Duration::from_millis(200);
/// Bounds of the jitter histogram in seconds.
const JITTER_BOUNDS: [f64; 9] = [0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];

/// What the outside may ask of the sampler.
#[derive(Debug)]
pub enum Request {
    /// Take a tick soon and say when it was.
    Mark(oneshot::Sender<Marked>),
    /// End after the tick under way.
    Stop,
}

/// The tick that answered a mark.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Marked {
    /// Its number.
    pub sequence: u64,
    /// Its end in unix seconds: an exact edge for `/api/v1/window`.
    pub unix_seconds: f64,
}

/// What the sampler works with.
pub struct Parts {
    /// Interval between ticks.
    pub tick: Duration,
    /// Energy, when a source is usable.
    pub meter: Option<Meter>,
    /// CPU time, when the kernel side is loaded.
    pub cpu: Option<Switch>,
    /// Which CPU is on which package.
    pub topology: Topology,
    /// Where the topology is read again when an unknown CPU runs.
    pub sysfs: PathBuf,
    /// Who a cgroup is, when there are cgroups to look at.
    pub directory: Option<Directory>,
    /// How every source stood at the start. The states of energy, cpu and docker are kept up to date from here.
    pub sources: Vec<SourceState>,
    /// Bytes that the ring of past ticks may hold.
    pub window_bytes: usize,
}

/// The state between two ticks.
pub struct Sampler {
    parts: Parts,
    packages: Vec<PackageId>,
    window: Option<Window>,
    reading: Reading,
    book: Book,
    ring: Ring,
    cpu_ns: HashMap<u32, Vec<u64>>,
    start: Instant,
    last_energy_at: Option<Instant>,
    sequence: u64,
    jitter: Buckets,
    ticks_missed: u64,
    collectors: Vec<CollectorRow>,
}

/// What containers ran in a tick, by holder and package index.
type Ran = BTreeMap<Holder, Vec<u64>>;

impl Sampler {
    /// Ready for its first tick, which is the point that everything counts from.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let zones = parts.meter.as_ref().map_or(&[][..], Meter::zones);
        let per_die = zones.iter().any(|zone| zone.id.package.is_some_and(|package| package.die.is_some()));
        let packages = parts.topology.packages(per_die);
        let ring = Ring::new(parts.window_bytes);
        Self {
            packages,
            window: None,
            reading: Reading::default(),
            book: Book::default(),
            ring,
            cpu_ns: HashMap::new(),
            start: Instant::now(),
            last_energy_at: None,
            sequence: 0,
            jitter: Buckets {
                cumulative: JITTER_BOUNDS.iter().map(|bound| (*bound, 0)).collect(),
                ..Buckets::default()
            },
            ticks_missed: 0,
            collectors: Vec::new(),
            parts,
        }
    }

    /// Ticks until told to stop. Each snapshot is published before the marks that asked for it are answered.
    pub fn run(mut self, requests: &mpsc::Receiver<Request>, publish: impl Fn(Snapshot)) {
        let mut marks: Vec<oneshot::Sender<Marked>> = Vec::new();
        let mut last = Instant::now();
        publish(self.tick());
        let mut due = Instant::now() + self.parts.tick.min(FIRST_INTERVAL);
        loop {
            // Whoever asks soon after a tick waits; whoever asks meanwhile, or shortly before a regular tick, shares it.
            let wake = if marks.is_empty() { due } else { due.min(last + SPACING) };
            match requests.recv_timeout(wake.saturating_duration_since(Instant::now())) {
                Ok(Request::Mark(reply)) => {
                    marks.push(reply);
                    continue;
                }
                Ok(Request::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            let regular = now >= due;
            if regular {
                self.observe_jitter(now - due);
                due += self.parts.tick;
            } else if marks.is_empty() {
                continue;
            }
            last = now;
            let snapshot = self.tick();
            let marked = Marked { sequence: snapshot.sequence, unix_seconds: seconds(snapshot.unix_ns) };
            publish(snapshot);
            for reply in marks.drain(..) {
                // Whoever asked may have gone.
                let _ = reply.send(marked);
            }
            // On schedule, not from now: lateness must not add up.
            while due <= Instant::now() {
                due += self.parts.tick;
                self.ticks_missed += 1;
            }
            // The tick of a mark stands for the regular one that would follow at once.
            if !regular && due < last + SPACING {
                due += self.parts.tick;
            }
        }
    }

    fn observe_jitter(&mut self, late: Duration) {
        let late = late.as_secs_f64();
        for (bound, count) in &mut self.jitter.cumulative {
            *count += u64::from(late <= *bound);
        }
        self.jitter.count += 1;
        self.jitter.sum += late;
    }

    /// One tick.
    pub fn tick(&mut self) -> Snapshot {
        self.collectors.clear();
        let energy = self.collect("energy", Self::read_energy);
        let energy_at = Instant::now();
        let unix_ns = unix_now();
        let length_ns = self.last_energy_at.replace(energy_at).map(|last| nanoseconds(energy_at - last));
        let ran = self.collect("cpu", Self::read_cpu);
        let skew_ns = nanoseconds(energy_at.elapsed());
        let retired = self.collect("containers", Self::observe_containers);
        let who: HashSet<CgroupKey> = ran.iter().flatten().filter_map(|ran| ran.cgroup).collect();
        let ran = ran.map(|ran| self.by_holder(ran)).unwrap_or_default();

        let (deltas, shares) = self.post(energy.as_deref().unwrap_or_default(), length_ns, &ran);
        self.count_cpu(&ran);
        self.remember(unix_ns, energy_at, deltas.clone(), &shares, &ran);
        for number in retired.unwrap_or_default() {
            self.book.retire(number);
            self.cpu_ns.remove(&number);
        }
        self.let_go(&who);
        let snapshot = self.snapshot(unix_ns, length_ns, skew_ns, energy.as_deref().unwrap_or_default(), &shares);
        self.sequence += 1;
        snapshot
    }

    /// Runs one collector with its time taken. `None` from it means that it is switched off or gave nothing.
    fn collect<T>(&mut self, name: &'static str, collector: impl FnOnce(&mut Self) -> Option<(T, bool)>) -> Option<T> {
        let start = Instant::now();
        let (value, success) = collector(self)?;
        self.collectors.push(CollectorRow { name, seconds: start.elapsed().as_secs_f64(), success });
        Some(value)
    }

    fn read_energy(&mut self) -> Option<(Vec<ZoneTick>, bool)> {
        let meter = self.parts.meter.as_mut()?;
        let zones = meter.tick(Instant::now());
        let lacks = meter.lacks();
        // A lost core or uncore zone is seen in its own series; the account needs its roots.
        let roots = meter.zones().iter().zip(&zones).filter(|(zone, _)| zone.id.kind.is_accounting_root());
        let error = roots.into_iter().find_map(|(_, zone)| zone.error.clone());
        let name = meter.origin().as_str();
        let success = error.is_none();
        set_state(
            &mut self.parts.sources,
            name,
            match error {
                None => lacks.map_or(Ok(()), Err),
                Some(error) => Err(Unavailable::new(
                    Reason::Broken,
                    format!("{error}. Its counters stand where they stood; they go on when it reads again"),
                )),
            },
        );
        Some((zones, success))
    }

    fn read_cpu(&mut self) -> Option<(Vec<crate::cpu::Ran>, bool)> {
        let switch = self.parts.cpu.as_mut()?;
        let result = switch.read(&mut self.reading);
        let success = result.is_ok();
        set_state(
            &mut self.parts.sources,
            "cpu",
            result.map_err(|error| Unavailable::new(Reason::Broken, format!("the kernel refused a reading: {error}"))),
        );
        if !success {
            return Some((Vec::new(), false));
        }
        let ran = match &mut self.window {
            Some(window) => {
                if window.meets_stranger(&self.reading) {
                    self.parts.topology = Topology::read(&self.parts.sysfs);
                    window.replace(places(&self.parts.topology, &self.packages));
                }
                window.advance(&self.reading)
            }
            None => {
                let places = places(&self.parts.topology, &self.packages);
                self.window = Some(Window::start(places, self.packages.len(), &self.reading));
                Vec::new()
            }
        };
        Some((ran, true))
    }

    /// Makes every cgroup of the reading known; gives the containers whose series end.
    fn observe_containers(&mut self) -> Option<(Vec<u32>, bool)> {
        let directory = self.parts.directory.as_mut()?;
        let retired = directory.observe(self.reading.rows.iter().map(|(key, _)| *key), Instant::now());
        if let Some(names) = directory.names() {
            set_state(&mut self.parts.sources, "docker", names.state());
        }
        Some((retired, true))
    }

    fn by_holder(&self, ran: Vec<crate::cpu::Ran>) -> Ran {
        let mut all = Ran::new();
        for ran in ran {
            let holder = match (ran.cgroup, &self.parts.directory) {
                (Some(key), Some(directory)) => directory.holder(&key),
                _ => Holder::System,
            };
            let sums = all.entry(holder).or_insert_with(|| vec![0; self.packages.len()]);
            for (sum, ns) in sums.iter_mut().zip(ran.by_package) {
                *sum += ns;
            }
        }
        all
    }

    /// Closes every account for this tick and adds it to the book.
    fn post(
        &mut self,
        zones: &[ZoneTick],
        length_ns: Option<u64>,
        ran: &Ran,
    ) -> (Vec<AccountDelta>, Vec<(AccountId, Closed<Holder>)>) {
        let (mut deltas, mut shares) = (Vec::new(), Vec::new());
        let Some(meter) = &self.parts.meter else { return (deltas, shares) };
        for (zone, tick) in meter.zones().iter().zip(zones) {
            if !zone.id.kind.is_accounting_root() {
                continue;
            }
            let id = AccountId { zone: zone.id, origin: meter.origin() };
            self.book.open(id);
            let mut delta = AccountDelta {
                id,
                measured: tick.grown,
                idle: Microjoules::ZERO,
                unattributed: Microjoules::ZERO,
                system: Microjoules::ZERO,
                retired: Microjoules::ZERO,
            };
            if let (Some(measured), Some(length_ns)) = (tick.grown, length_ns) {
                let idle = Microjoules::of(tick.idle_uw.unwrap_or(0), length_ns);
                let closed = close(measured, idle, &self.claims(&id, ran));
                self.book.post(id, measured, &closed);
                delta.idle = closed.idle;
                delta.unattributed = closed.unattributed;
                for (holder, joules) in &closed.shares {
                    match holder {
                        Holder::System => delta.system += *joules,
                        Holder::Retired => delta.retired += *joules,
                        Holder::Container(_) => {}
                    }
                }
                shares.push((id, closed));
            }
            deltas.push(delta);
        }
        (deltas, shares)
    }

    /// Who claims a share of a root, with what weight. A package is shared by CPU time on it; nothing yet tells who used
    /// its memory, so DRAM has no claims and stays unattributed.
    fn claims(&self, id: &AccountId, ran: &Ran) -> Vec<(Holder, u64)> {
        let index = self.packages.iter().position(|package| Some(*package) == id.zone.package);
        match (id.zone.kind, index) {
            (ZoneKind::Package, Some(index)) => ran.iter().map(|(holder, ns)| (*holder, ns[index])).collect(),
            _ => Vec::new(),
        }
    }

    fn count_cpu(&mut self, ran: &Ran) {
        for (holder, ns) in ran {
            if let Holder::Container(number) = holder {
                let sums = self.cpu_ns.entry(*number).or_insert_with(|| vec![0; ns.len()]);
                for (sum, ns) in sums.iter_mut().zip(ns) {
                    *sum += ns;
                }
            }
        }
    }

    fn container(&self, number: u32) -> Option<&Arc<Container>> {
        self.parts.directory.as_ref()?.container(number)
    }

    /// Adds the tick to the ring.
    fn remember(
        &mut self,
        unix_ns: i64,
        at: Instant,
        accounts: Vec<AccountDelta>,
        shares: &[(AccountId, Closed<Holder>)],
        ran: &Ran,
    ) {
        let mut energy = Vec::new();
        for (id, closed) in shares {
            for (holder, joules) in &closed.shares {
                if let Holder::Container(number) = holder
                    && let Some(container) = self.container(*number)
                {
                    energy.push((container.clone(), *id, *joules));
                }
            }
        }
        let mut cpu = Vec::new();
        for (holder, ns) in ran {
            if let Holder::Container(number) = holder
                && let Some(container) = self.container(*number)
            {
                let packages = self.packages.iter().zip(ns).filter(|(_, ns)| **ns > 0);
                cpu.extend(packages.map(|(package, ns)| (container.clone(), *package, *ns)));
            }
        }
        self.ring.push(Tick {
            sequence: self.sequence,
            unix_ns,
            monotonic_ns: i64::try_from((at - self.start).as_nanos()).unwrap_or(i64::MAX),
            accounts: accounts.into(),
            energy: energy.into(),
            cpu: cpu.into(),
        });
    }

    /// Frees what belongs to cgroups whose last reading was just posted.
    fn let_go(&mut self, ran: &HashSet<CgroupKey>) {
        let Some(directory) = &mut self.parts.directory else { return };
        for key in directory.depart(|key| ran.contains(key)) {
            if let Some(switch) = &mut self.parts.cpu {
                switch.forget(&key);
            }
            if let Some(window) = &mut self.window {
                window.forget(&key);
            }
        }
    }

    fn snapshot(
        &self,
        unix_ns: i64,
        length_ns: Option<u64>,
        skew_ns: u64,
        zones: &[ZoneTick],
        shares: &[(AccountId, Closed<Holder>)],
    ) -> Snapshot {
        let watts = |joules: Microjoules| length_ns.and_then(|ns| joules.watts_over(ns));
        let (mut zone_rows, mut rejects, mut idle) = (Vec::new(), Vec::new(), BTreeMap::new());
        if let Some(meter) = &self.parts.meter {
            for (zone, tick) in meter.zones().iter().zip(zones) {
                idle.insert(zone.id, tick.idle_uw.map(|uw| Microjoules(uw).joules()));
                zone_rows.push(ZoneRow {
                    id: zone.id,
                    origin: meter.origin(),
                    total: tick.total,
                    watts: tick.grown.and_then(watts),
                });
            }
            for ((zone, reason), count) in meter.rejects() {
                rejects.push((meter.zones()[*zone].id, *reason, *count));
            }
        }
        let accounts = self
            .book
            .accounts()
            .map(|(id, account)| AccountRow {
                id: *id,
                containers: account
                    .containers
                    .iter()
                    .filter_map(|(number, joules)| Some((self.container(*number)?.clone(), *joules)))
                    .collect(),
                retired: account.retired,
                system: account.system,
                idle: account.idle,
                unattributed: account.unattributed,
                idle_watts: idle.get(&id.zone).copied().flatten(),
            })
            .collect();
        Snapshot {
            sequence: self.sequence,
            unix_ns,
            length_ns,
            skew_ns,
            zones: zone_rows,
            accounts,
            containers: self.container_rows(shares, &watts),
            packages: self.packages.clone(),
            rejects,
            sources: self.parts.sources.clone(),
            collectors: self.collectors.clone(),
            cpu_tier: self.parts.cpu.as_ref().map(|_| ("switch", String::new())),
            jitter: self.jitter.clone(),
            ticks_missed: self.ticks_missed,
            containers_dropped: self.parts.directory.as_ref().map_or(0, Directory::dropped),
            cgroups_unnamed: self.parts.directory.as_ref().map_or(0, Directory::unnamed),
            scans_incomplete: self.parts.directory.as_ref().map_or(0, Directory::incomplete_scans),
            cpu_overflow_ns: self.reading.overflow_ns.iter().sum(),
            cpu_intervals_missed: self.reading.missed,
            ring: self.ring.clone(),
        }
    }

    fn container_rows(
        &self,
        shares: &[(AccountId, Closed<Holder>)],
        watts: &impl Fn(Microjoules) -> Option<f64>,
    ) -> Vec<ContainerRow> {
        let Some(directory) = &self.parts.directory else { return Vec::new() };
        let mut power: BTreeMap<u32, BTreeMap<_, Microjoules>> = BTreeMap::new();
        for (id, closed) in shares {
            for (holder, joules) in &closed.shares {
                if let Holder::Container(number) = holder {
                    let zones = power.entry(*number).or_default();
                    *zones.entry((id.zone.kind.as_str(), id.origin)).or_default() += *joules;
                }
            }
        }
        // A container that did not run used no watts: that is known, and not the same as no figure.
        let quiet: BTreeMap<_, Microjoules> = shares
            .iter()
            .filter(|(id, _)| id.zone.kind == ZoneKind::Package)
            .map(|(id, _)| ((id.zone.kind.as_str(), id.origin), Microjoules::ZERO))
            .collect();
        directory
            .containers()
            .map(|container| ContainerRow {
                container: container.clone(),
                cpu_ns: self.cpu_ns.get(&container.number).cloned().unwrap_or_else(|| vec![0; self.packages.len()]),
                watts: power
                    .get(&container.number)
                    .unwrap_or(&quiet)
                    .iter()
                    .filter_map(|((zone, origin), joules)| Some((*zone, *origin, watts(*joules)?)))
                    .collect(),
            })
            .collect()
    }
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

/// Puts a source into a state, and says so once when it changes.
fn set_state(sources: &mut [SourceState], name: &str, state: Result<(), Unavailable>) {
    let Some(source) = sources.iter_mut().find(|source| source.source == name) else { return };
    if source.state == state {
        return;
    }
    match &state {
        Ok(()) => info!("{name}: usable again"),
        Err(why) => warn!("{name}: {why}"),
    }
    source.state = state;
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Unix time in nanoseconds, whole microseconds.
fn unix_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(0) * 1000
}
