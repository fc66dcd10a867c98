//! From raw ticks to snapshots: all arithmetic of the probe.
//!
//! Pure: no file, no clock, no machine. The same ticks give the same snapshots, byte for byte,
//! whether they come from the machine or from a recording.

mod own;
mod report;
mod saved;
mod weights;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    rc::Rc,
    sync::Arc,
};

use units::Microjoules;

use super::{
    gpu::{GpuZone, split_inside},
    root::{Division, Load, Root, RootSplit, UsageByTarget, microwatts, sum_usage},
    saved_totals::SavedZone,
};
use crate::{
    cgroup::CgroupKey,
    containers::{ChargeTarget, Container},
    cpu::{CgroupUsage, CpuUsage, CpuWindow, RunQueueStats, RunTime},
    energy::{
        REOPENED,
        counter::{Counter, Reject, STALL_NS, SUSPENSION_NS, Step},
        zone::{Origin, Zone, ZoneId, ZoneKind, accounting_roots, contains_gpu},
    },
    gpu::{
        ASLEEP,
        engines::{ENGINES, EngineTimes},
    },
    host::{gpu_id::GpuId, topology::PackageId},
    ledger::{
        AccountId, IdlePolicy, MemoryPolicy, OwnEnergy, Rules, Totals,
        awake::{AwakeShare, AwakeSource, Residency, any_busy, part_of},
        basis::Basis,
        gpu_idle::GpuIdle,
        idle::{Baseline, Estimate, MAX_AGE_SECONDS, Sample, Seed},
        share_idle, split_proportionally,
        streams::Streams,
        uncertainty::{Bound, Conditions, Recent},
    },
    snapshot::{
        Snapshot, ZoneRow,
        history::{AccountDelta, Ring, Settlement},
    },
    tick::{RawTick, Setup, SourceChange, TickChanges},
};

/// Ticks in a row that a root may be without energy, or the energy without CPU time, before that
/// becomes a state.
const MAX_INCOMPLETE_TICKS: u32 = 5;

/// Maximum number of streams with series of their own.
const MAX_STREAMS: usize = 1024;

/// Input of one tick.
struct Input<'a> {
    raw: &'a RawTick,
    /// Length of the tick; absent in the first.
    length_ns: Option<u64>,
    usage: &'a UsageByTarget,
    /// The same over all packages; empty where there is one, or CPU time is not known by package.
    host: Rc<BTreeMap<ChargeTarget, CpuUsage>>,
    /// True while the energy waits for the CPU time of its tick.
    waiting: bool,
    /// True when the CPU time is that of this tick alone: after a failed reading it is of more.
    cpu_of_tick: bool,
    /// True when hardware counters ran all the time and on every CPU.
    counted: bool,
}

/// Run-queue figures of a cgroup at the last reading.
#[derive(Default)]
struct LastQueue {
    stats: RunQueueStats,
    /// True once the sums of its container have them.
    is_summed: bool,
}

/// Result of posting one tick.
#[derive(Default)]
struct PostedTick {
    zones: Vec<ZoneRow>,
    deltas: Vec<AccountDelta>,
    splits: Vec<RootSplit>,
}

/// All state between two ticks.
pub struct Accountant {
    setup: Setup,
    rules: Rules,
    /// By zone; `None` for zones that are no accounting root.
    roots: Vec<Option<Root>>,
    /// By zone; unused for zones without a GPU.
    gpus: Vec<GpuZone>,
    /// Engine time since the start, by container and GPU.
    engine_times: BTreeMap<(u32, GpuId), EngineTimes>,
    /// Engine use since the start of each GPU (`None`), and of each job on it.
    engine_use: BTreeMap<(GpuId, Option<u32>), EngineTimes>,
    /// Idle power learnt before the start, by zone.
    saved_baselines: BTreeMap<String, Vec<Sample>>,
    /// What a calibration measured, by zone.
    seeds: BTreeMap<String, Seed>,
    /// Totals of an earlier probe whose counters have not appeared yet.
    continued: Vec<SavedZone>,
    /// End of the time in which continued streams are kept without a job.
    continued_until_ns: Option<u64>,
    /// The last split of each board. It is shown while the next energy waits.
    gpu_splits: Vec<RootSplit>,
    counters: Vec<Counter>,
    /// The last value of each counter, and the time when it was first read.
    last_moved: Vec<Option<(u64, u64)>>,
    rejects: BTreeMap<(usize, Reject), u64>,
    window: Option<CpuWindow>,
    targets: HashMap<CgroupKey, ChargeTarget>,
    containers: BTreeMap<u32, Arc<Container>>,
    /// Reserved CPU of each container, in thousandths of a CPU.
    reserved: BTreeMap<u32, u64>,
    cpu: BTreeMap<u32, Arc<[CpuUsage]>>,
    /// The last run-queue figures of each cgroup, and the sums of each container since the start.
    last_queues: HashMap<CgroupKey, LastQueue>,
    queues: BTreeMap<u32, RunQueueStats>,
    cpu_overflow_ns: u64,
    counter_time: [u64; 2],
    cpu_missed: u64,
    totals: Totals,
    streams: Streams,
    ring: Ring,
    last_energy_ns: Option<u64>,
    own: OwnEnergy,
    /// CPU time of the whole machine since the start.
    host_time: RunTime,
    sequence: u64,
    trouble: Option<String>,
    gpu_trouble: Option<String>,
    /// Ticks in a row without CPU time.
    ticks_without_cpu: u32,
    ran: HashSet<CgroupKey>,
    /// Share of the tick in which each package was awake; `None` where it is unknown.
    awake: Vec<Option<AwakeShare>>,
    residency: Residency,
    /// Energy of each container in the last minute, with its bound.
    recent: BTreeMap<u32, Recent>,
    /// End of the last tick in it, on the clock of the energy readings.
    recent_until_ns: Option<u64>,
    /// Time between the readings of energy and CPU time in the last tick.
    last_skew_ns: u64,
    /// Age at which a sample of idle power no longer counts, in seconds.
    sample_age: u64,
}

impl Accountant {
    /// Ready for the first tick, which is the starting point of all totals.
    #[must_use]
    pub fn new(setup: Setup, rules: impl Into<Rules>, window_bytes: usize) -> Self {
        let roots = accounting_roots(&setup.zones).into_iter().map(|root| root.then(Root::default)).collect();
        Self {
            rules: rules.into(),
            roots,
            gpus: setup.zones.iter().map(|_| GpuZone::default()).collect(),
            engine_times: BTreeMap::new(),
            engine_use: BTreeMap::new(),
            saved_baselines: BTreeMap::new(),
            seeds: BTreeMap::new(),
            continued: Vec::new(),
            continued_until_ns: None,
            gpu_splits: Vec::new(),
            counters: setup.zones.iter().map(Counter::new).collect(),
            last_moved: vec![None; setup.zones.len()],
            rejects: BTreeMap::new(),
            window: None,
            targets: HashMap::new(),
            containers: BTreeMap::new(),
            reserved: BTreeMap::new(),
            cpu: BTreeMap::new(),
            last_queues: HashMap::new(),
            queues: BTreeMap::new(),
            cpu_overflow_ns: 0,
            counter_time: [0, 0],
            cpu_missed: 0,
            totals: Totals::default(),
            streams: Streams::new(MAX_STREAMS),
            ring: Ring::new(window_bytes),
            last_energy_ns: None,
            own: OwnEnergy::default(),
            host_time: RunTime::default(),
            sequence: 0,
            trouble: None,
            gpu_trouble: None,
            ticks_without_cpu: 0,
            ran: HashSet::new(),
            awake: Vec::new(),
            residency: Residency::default(),
            recent: BTreeMap::new(),
            recent_until_ns: None,
            last_skew_ns: 0,
            sample_age: MAX_AGE_SECONDS,
            setup,
        }
    }

    /// Sets the age in seconds at which a sample of idle power no longer counts.
    pub fn set_sample_age(&mut self, seconds: u64) {
        self.sample_age = seconds;
        self.roots.iter_mut().flatten().for_each(|root| root.baseline.set_max_age(seconds));
    }

    /// Restores the idle power that an earlier run learnt, by zone.
    pub fn restore_baselines(&mut self, baselines: &BTreeMap<String, Vec<Sample>>) {
        for (zone, root) in self.setup.zones.iter().zip(&mut self.roots) {
            if let (Some(root), Some(samples)) = (root, baselines.get(&zone.id.to_string())) {
                root.baseline = Baseline::restore(samples);
                root.baseline.set_max_age(self.sample_age);
            }
        }
        self.saved_baselines.clone_from(baselines);
    }

    /// Takes the idle power and step that a calibration measured, by zone.
    pub fn seed_baselines(&mut self, seeds: BTreeMap<String, Seed>) {
        self.seeds = seeds;
        self.apply_seeds();
    }

    fn apply_seeds(&mut self) {
        for (zone, root) in self.setup.zones.iter().zip(&mut self.roots) {
            if let Some(root) = root {
                root.baseline.seed(self.seeds.get(&zone.id.to_string()).copied());
            }
        }
    }

    /// The idle power learnt so far, by zone.
    #[must_use]
    pub fn baselines(&self) -> BTreeMap<String, Vec<Sample>> {
        let zones = self.setup.zones.iter().zip(&self.roots).zip(&self.gpus);
        let measured = zones.filter(|((zone, _), _)| self.setup.origin_of(zone).is_some_and(Origin::is_measured));
        let current = measured.filter_map(|((zone, root), gpu)| {
            let samples = match zone.id.kind {
                ZoneKind::Gpu(_) => gpu.idle.samples(),
                _ => root.as_ref()?.baseline.samples(),
            };
            Some((zone.id.to_string(), samples))
        });
        // The saved baseline of a GPU that is absent today is kept.
        let mut all = self.saved_baselines.clone();
        all.extend(current.filter(|(_, samples)| !samples.is_empty()));
        all
    }

    /// Why the energy of the last tick is incomplete: an accounting root was not read, or its
    /// counter stands still.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Why the energy of a GPU is incomplete: its counter fails or stands still.
    #[must_use]
    pub fn gpu_trouble(&self) -> Option<&str> {
        self.gpu_trouble.as_deref()
    }

    /// The cgroups that ran in the last tick.
    #[must_use]
    pub fn ran(&self) -> &HashSet<CgroupKey> {
        &self.ran
    }

    /// Attributes one tick. The sampler fills in what only it has: sources, collectors, its own
    /// health.
    pub fn tick(&mut self, raw: &RawTick) -> Snapshot {
        self.apply(&raw.changes);
        let length_ns = self.last_energy_ns.replace(raw.energy_ns).map(|last| raw.energy_ns.saturating_sub(last));
        let usage = self.cpu_usage(raw);
        self.add_cpu_totals(&usage);
        self.awake = self.awake_shares(raw, length_ns);
        let PostedTick { zones, deltas, splits } = self.post(raw, length_ns, &usage);
        self.add_own_energy(raw, &splits, &usage);
        self.add_recent(raw, &splits);
        self.last_skew_ns = raw.cpu_ns.saturating_sub(raw.began_ns);
        self.push_history(raw, deltas, &splits, &usage);
        for number in &raw.changes.jobs_gone {
            self.gpus.iter_mut().for_each(|gpu| gpu.remove_job(*number));
            self.engine_use.retain(|(_, job), _| *job != Some(*number));
        }
        for number in &raw.changes.jobs_ended {
            self.streams.end(*number, raw.unix_ns);
        }
        for number in &raw.changes.ended {
            self.retire_container(*number);
        }
        if !raw.changes.ended.is_empty() {
            self.last_queues.values_mut().for_each(|last| last.is_summed = false);
        }
        self.end_continued(raw.energy_ns);
        let snapshot = self.snapshot(raw, length_ns, zones, &splits, &usage);
        self.sequence += 1;
        snapshot
    }

    fn apply(&mut self, changes: &TickChanges) {
        for key in &changes.departed {
            self.targets.remove(key);
            self.last_queues.remove(key);
            if let Some(window) = &mut self.window {
                window.forget(key);
            }
        }
        if let Some(cpu_packages) = &changes.cpu_packages {
            self.setup.cpu_packages.clone_from(cpu_packages);
            if let Some(window) = &mut self.window {
                window.update_packages(self.setup.usage_columns().0);
            }
        }
        for (key, target) in &changes.targets {
            self.targets.insert(*key, *target);
            if let Some(last) = self.last_queues.get_mut(key) {
                last.is_summed = false;
            }
        }
        for container in &changes.containers {
            self.containers.insert(container.number, container.clone());
        }
        self.reserved.extend(changes.reserved.iter().copied());
        if let Some(source) = &changes.source {
            self.replace_source(source);
        }
        if !changes.zones.is_empty() {
            self.add_zones(changes);
        }
        // Before the new jobs, which may need the freed series; and after them, for a job that
        // began and was removed in one tick.
        let remove = |streams: &mut Streams| changes.jobs_gone.iter().for_each(|number| streams.remove(*number));
        remove(&mut self.streams);
        for job in &changes.jobs {
            self.streams.begin(job, self.roots.len());
        }
        changes.jobs_moved.iter().for_each(|(job, target, own)| self.streams.relocate(*job, *target, *own));
        remove(&mut self.streams);
    }

    /// Adds counters that appeared after the start. Where a sensor of the whole platform is the
    /// root, it contains them.
    fn add_zones(&mut self, changes: &TickChanges) {
        for zone in &changes.zones {
            self.counters.push(Counter::new(zone));
            self.last_moved.push(None);
            let idle = self.saved_baselines.get(&zone.id.to_string()).map(|samples| GpuIdle::restore(samples));
            self.gpus.push(GpuZone::new(idle.unwrap_or_default()));
            self.setup.zones.push(zone.clone());
            self.setup.idle_uw.push(None);
        }
        self.update_roots();
        for index in self.setup.zones.len() - changes.zones.len()..self.setup.zones.len() {
            self.continue_zone(index);
        }
        self.streams.add_roots(self.roots.len());
    }

    fn update_roots(&mut self) {
        let roots = accounting_roots(&self.setup.zones);
        self.roots.resize_with(roots.len(), || None);
        for (current, is_root) in self.roots.iter_mut().zip(roots) {
            *current = is_root.then(|| current.take().unwrap_or_default());
        }
        self.set_sample_age(self.sample_age);
        self.apply_seeds();
    }

    /// Puts the counters of another energy source in the place of those of the one before. The
    /// series of that one end, and the new ones start at zero under the name of their source: two
    /// sources never share a series, and none jumps. A zone that the new source reads under the
    /// same name continues, as boards do, which their own drivers read.
    fn replace_source(&mut self, source: &SourceChange) {
        let is_board = |zone: &Zone| matches!(zone.id.kind, ZoneKind::Gpu(_));
        let old = self.setup.zones.iter().position(is_board).unwrap_or(self.setup.zones.len());
        let new = source.zones.len();
        let known: Vec<_> = self.setup.zones[..old].iter().map(|zone| (zone.id, self.setup.origin_of(zone))).collect();
        let place = |zone: &Zone| {
            let origin = zone.origin.unwrap_or(source.origin);
            known.iter().position(|known| *known == (zone.id, Some(origin)))
        };
        let continued: Vec<Option<usize>> = source.zones.iter().map(place).collect();
        let was_root = |index: usize| self.roots[index].is_some();
        let of_source = continued.iter().map(|index| index.map(was_root));
        let were_roots: Vec<Option<bool>> =
            of_source.chain((old..self.roots.len()).map(|at| Some(was_root(at)))).collect();
        let counter = |(zone, index): (&Zone, &Option<usize>)| match index {
            Some(index) => Counter::continuing(zone, &self.counters[*index]),
            None => Counter::new(zone),
        };
        let counters: Vec<Counter> = source.zones.iter().zip(&continued).map(counter).collect();
        let mut learnt: BTreeMap<ZoneId, Baseline> = BTreeMap::new();
        for (index, ((zone, origin), root)) in known.iter().zip(&mut self.roots).enumerate() {
            let Some(origin) = *origin else { continue };
            if !continued.contains(&Some(index)) {
                self.totals.close(AccountId { zone: *zone, origin });
            }
            if let Some(root) = root.take().filter(|_| origin.is_measured()) {
                learnt.insert(*zone, root.baseline);
            }
        }
        let before = self.setup.machine_origin();
        self.setup.origin = Some(source.origin);
        self.setup.zones.splice(..old, source.zones.iter().cloned());
        if self.setup.machine_origin() != before {
            self.own.clear();
        }
        self.setup.idle_uw.splice(..old, source.idle_uw.iter().copied());
        self.counters.splice(..old, counters);
        self.last_moved.splice(..old, std::iter::repeat_n(None, new));
        self.gpus.splice(..old, source.zones.iter().map(|_| GpuZone::default()));
        self.roots.splice(..old, source.zones.iter().map(|_| None));
        self.streams.replace_roots(old, new);
        let rejects = std::mem::take(&mut self.rejects).into_iter();
        let moved = rejects.filter_map(|((index, reason), count)| {
            let index = match index.checked_sub(old) {
                Some(board) => board + new,
                None => continued.iter().position(|before| *before == Some(index))?,
            };
            Some(((index, reason), count))
        });
        self.rejects = moved.collect();
        self.update_roots();
        self.restore_learnt(learnt);
        self.restart_changed_roots(&were_roots);
        for index in 0..new {
            self.continue_zone(index);
        }
    }

    /// Restores the idle power of zones that another source read: the package is the same. Both
    /// sources must measure.
    fn restore_learnt(&mut self, mut learnt: BTreeMap<ZoneId, Baseline>) {
        for (zone, root) in self.setup.zones.iter().zip(&mut self.roots) {
            let measured = self.setup.origin_of(zone).is_some_and(Origin::is_measured);
            if let (true, Some(root), Some(mut baseline)) = (measured, root, learnt.remove(&zone.id)) {
                baseline.interrupt();
                root.baseline = baseline;
            }
        }
    }

    /// Restarts the account and the counter of zones that became accounting roots, or are none any
    /// longer: a sensor of the whole machine contains the boards. `None` for a new zone.
    fn restart_changed_roots(&mut self, were_roots: &[Option<bool>]) {
        for (index, was_root) in were_roots.iter().enumerate() {
            if was_root.is_some_and(|was_root| was_root != self.roots[index].is_some()) {
                let zone = &self.setup.zones[index];
                if let Some(origin) = self.setup.origin_of(zone) {
                    self.totals.close(AccountId { zone: zone.id, origin });
                }
                self.counters[index] = Counter::new(zone);
            }
        }
    }

    fn retire_container(&mut self, number: u32) {
        self.totals.retire(number);
        self.streams.remove_container(number);
        self.cpu.remove(&number);
        self.queues.remove(&number);
        self.recent.remove(&number);
        self.reserved.remove(&number);
        self.containers.remove(&number);
        self.engine_times.retain(|(container, _), _| *container != number);
        self.gpus.iter_mut().for_each(|gpu| gpu.retire_container(number));
        for root in self.roots.iter_mut().flatten() {
            for pending in [&mut root.pending, &mut root.pending_host] {
                if let Some(usage) = pending.remove(&ChargeTarget::Container(number)) {
                    pending.entry(ChargeTarget::Retired).or_default().add(&usage);
                }
            }
        }
    }

    /// CPU usage of every target since the last reading that succeeded.
    fn cpu_usage(&mut self, raw: &RawTick) -> UsageByTarget {
        self.ran.clear();
        let Some(Ok(reading)) = &raw.cpu else { return UsageByTarget::new() };
        self.cpu_overflow_ns = reading.overflow.iter().fold(0, |sum: u64, time| sum.saturating_add(time.ns()));
        self.counter_time = reading.counter_time;
        self.cpu_missed = reading.missed;
        let Some(window) = &mut self.window else {
            let (package_of_column, packages) = self.setup.usage_columns();
            // One column for all CPUs has no weight of its own.
            let weights = if self.setup.has_per_cpu_usage() { self.setup.cpu_weights.clone() } else { Vec::new() };
            let window = CpuWindow::start(package_of_column, packages, self.rules.weights, reading);
            self.window = Some(window.with_cpu_weights(weights));
            let last = |(key, stats): &(CgroupKey, _)| (*key, LastQueue { stats: *stats, is_summed: false });
            self.last_queues.extend(reading.queues.iter().map(last));
            self.streams.note_stages(&raw.stages);
            self.streams.start_clocks(&raw.jobs);
            return UsageByTarget::new();
        };
        for (key, now) in &reading.queues {
            let last = self.last_queues.entry(*key).or_default();
            // Most cgroups of a host are idle.
            if last.is_summed && last.stats == *now {
                continue;
            }
            let grown = now.since(&std::mem::replace(&mut last.stats, *now));
            if let Some(ChargeTarget::Container(number)) = self.targets.get(key)
                && self.containers.contains_key(number)
            {
                self.queues.entry(*number).or_default().add(&grown);
                last.is_summed = true;
            }
        }
        let mut all = UsageByTarget::new();
        for CgroupUsage { cgroup, by_package } in window.advance(reading) {
            self.ran.extend(cgroup);
            let target = cgroup.and_then(|key| self.targets.get(&key)).copied().unwrap_or(ChargeTarget::System);
            let sums = all.entry(target).or_insert_with(|| vec![CpuUsage::default(); by_package.len()]);
            sums.iter_mut().zip(&by_package).for_each(|(sum, usage)| sum.add(usage));
        }
        self.streams.note_stages(&raw.stages);
        for (from, container, ns) in self.streams.update_clocks(&raw.jobs) {
            move_usage(&mut all, from, container, ns);
        }
        for (target, usage) in &all {
            self.streams.add_target_time(*target, sum_usage(usage).ns());
        }
        all
    }

    fn add_cpu_totals(&mut self, usage: &UsageByTarget) {
        let all = sum_usage(usage.values().flatten()).time;
        self.host_time.alone_ns = self.host_time.alone_ns.saturating_add(all.alone_ns);
        self.host_time.shared_ns = self.host_time.shared_ns.saturating_add(all.shared_ns);
        for (target, by_package) in usage {
            if let ChargeTarget::Container(number) = target
                && self.containers.contains_key(number)
            {
                let sums =
                    self.cpu.entry(*number).or_insert_with(|| by_package.iter().map(|_| CpuUsage::default()).collect());
                Arc::make_mut(sums).iter_mut().zip(by_package).for_each(|(sum, usage)| sum.add(usage));
            }
        }
    }

    /// Share of the tick in which each package was awake.
    fn awake_shares(&mut self, raw: &RawTick, length_ns: Option<u64>) -> Vec<Option<AwakeShare>> {
        let counted = self.residency.advance(&raw.residency);
        let estimated = self.estimated_awake(raw, length_ns);
        let of_package = |package: usize| match counted.get(package).copied().flatten() {
            Some(share) => Some(AwakeShare { share, source: AwakeSource::Cstate }),
            None => estimated.map(|share| AwakeShare { share, source: AwakeSource::Estimated }),
        };
        (0..self.setup.packages.len().max(1)).map(of_package).collect()
    }

    /// Share of the tick in which any CPU of the machine ran, if CPUs run independently. Where CPU
    /// time is not known by CPU, all of them ran for the same time. Unknown in the first tick after
    /// failed readings, whose CPU time is that of them all.
    fn estimated_awake(&self, raw: &RawTick, length_ns: Option<u64>) -> Option<f64> {
        let length_ns = length_ns.filter(|length| *length > 0)?;
        let of_tick = self.ticks_without_cpu == 0 && matches!(raw.cpu, Some(Ok(_)));
        let window = self.window.as_ref().filter(|_| of_tick)?;
        let busy = window.busy_ns();
        if self.setup.has_per_cpu_usage() {
            return Some(any_busy(busy.iter().copied(), length_ns));
        }
        let cpus = self.setup.cpus().iter().sum::<u64>().max(1);
        let each = busy.iter().fold(0, |sum: u64, ns| sum.saturating_add(*ns)) / cpus;
        Some(any_busy((0..cpus).map(|_| each), length_ns))
    }

    /// Share of the tick in which a root was awake: of its package or die, or of the one of its
    /// packages or dies that was awake the longest.
    fn awake_share(&self, id: ZoneId) -> Option<AwakeShare> {
        let of = self.packages(id);
        let here = self.awake.iter().enumerate().filter(|(index, _)| of.is_empty() || of.contains(index));
        here.filter_map(|(_, share)| *share).max_by(|one, other| one.share.total_cmp(&other.share))
    }

    /// The load of a root in one tick.
    fn load(&self, id: ZoneId, input: &Input<'_>) -> Load {
        let host = match (id.kind, id.package) {
            (ZoneKind::Package | ZoneKind::Dram, Some(_)) => Rc::clone(&input.host),
            _ => Rc::default(),
        };
        let share = self.awake_share(id);
        let length_ns = input.length_ns.unwrap_or(0);
        let known = share.is_some() && input.cpu_of_tick;
        Load {
            claims: self.claims(id, input.usage),
            host,
            awake_ns: share.map_or(length_ns, |share| part_of(share.share, length_ns)),
            counted: input.counted,
            sample_at: known.then_some(input.raw.unix_ns / 1_000_000_000),
        }
    }

    /// Weight of a nanosecond of all CPUs that divide the energy of a root, in thousandths. With
    /// SMT it is reached when both threads of every core run.
    fn capacity(&self, id: ZoneId) -> u64 {
        let per_cpu = self.setup.has_per_cpu_usage();
        let packages = if per_cpu { self.packages(id) } else { Vec::new() };
        let here = |of: &Option<usize>| of.is_some_and(|of| packages.is_empty() || packages.contains(&of));
        let weight = |cpu: usize| self.setup.cpu_weights.get(cpu).copied().filter(|_| per_cpu).map_or(1000, u64::from);
        let cpus = self.setup.cpu_packages.iter().enumerate().filter(|(_, of)| here(of));
        let all: u64 = cpus.map(|(cpu, _)| weight(cpu)).sum();
        let siblings = self.setup.smt && self.setup.cpu.as_ref().is_some_and(|cpu| cpu.capabilities.siblings);
        if siblings { all.saturating_mul(self.rules.weights.shared_milli) / 1000 } else { all }
    }

    /// Adds the energy of the tick and its bound to the last minute of each container. Energy
    /// without a bound ends the minute: the sum would lack it.
    fn add_recent(&mut self, raw: &RawTick, splits: &[RootSplit]) {
        let machine = || splits.iter().filter(|root| is_of_cpus(root.id.zone.kind));
        let Some(length_ns) = machine().map(|root| root.length_ns).max() else { return };
        // After lost energy the sum is that of two times, which together are no last minute.
        let since_ns =
            self.recent_until_ns.replace(raw.energy_ns).map_or(0, |until| raw.energy_ns.saturating_sub(until));
        if since_ns > length_ns.saturating_add(SUSPENSION_NS) {
            self.recent.clear();
        }
        let mut sums: BTreeMap<u32, (f64, Bound)> = BTreeMap::new();
        let mut without_bound: BTreeSet<u32> = BTreeSet::new();
        for root in machine() {
            for (target, energy) in &root.split.shares {
                let ChargeTarget::Container(number) = target else { continue };
                let Some(bound) = root.bounds.get(number) else {
                    if *energy > Microjoules::ZERO {
                        without_bound.insert(*number);
                    }
                    continue;
                };
                let (uj, sum) = sums.entry(*number).or_default();
                *uj += energy.joules() * 1e6;
                sum.random += bound.random;
                sum.systematic += bound.systematic;
            }
        }
        for number in sums.keys() {
            self.recent.entry(*number).or_default();
        }
        for (number, recent) in &mut self.recent {
            let (uj, bound) = sums.get(number).copied().unwrap_or_default();
            recent.add(length_ns, uj, bound);
        }
        self.recent.retain(|number, _| !without_bound.contains(number));
    }

    /// Indices of the packages or dies whose CPU time splits a root's energy; empty for the whole
    /// machine.
    fn packages(&self, id: ZoneId) -> Vec<usize> {
        let packages = &self.setup.packages;
        if let Some(exact) = packages.iter().position(|package| Some(*package) == id.package) {
            return vec![exact];
        }
        // A die that the topology does not know shares the CPU time of its package. A package whose
        // dies are known has that of all of them: another source counted each die.
        let known = |package: &PackageId| id.package.is_some_and(|of| of.package == package.package);
        packages.iter().enumerate().filter(|(_, package)| known(package)).map(|(index, _)| index).collect()
    }

    /// The CPU usage that splits a root's energy. A package and its memory are split by what ran on
    /// it, a whole machine by all that ran. Memory that is not attributed has no claims. Where CPU
    /// time is not known by package, each package is split like the whole machine.
    fn claims(&self, id: ZoneId, usage: &UsageByTarget) -> BTreeMap<ChargeTarget, CpuUsage> {
        match (id.kind, id.package) {
            (ZoneKind::Dram, _) if self.rules.memory == MemoryPolicy::Unattributed => BTreeMap::new(),
            (ZoneKind::Package | ZoneKind::Dram, Some(_)) if self.setup.has_per_cpu_usage() => {
                let packages = self.packages(id);
                if packages.is_empty() {
                    return BTreeMap::new();
                }
                let of = |by_package: &[CpuUsage]| sum_usage(packages.iter().map(|index| &by_package[*index]));
                usage.iter().map(|(target, by_package)| (*target, of(by_package))).collect()
            }
            (ZoneKind::Package | ZoneKind::Dram | ZoneKind::Psys, _) => {
                usage.iter().map(|(target, by_package)| (*target, sum_usage(by_package))).collect()
            }
            _ => BTreeMap::new(),
        }
    }

    fn cpus(&self, id: ZoneId) -> u64 {
        let cpus = self.setup.cpus();
        match &*self.packages(id) {
            [] => cpus.iter().sum(),
            packages => packages.iter().map(|index| cpus[*index]).sum(),
        }
    }

    /// Adds engine use to the totals of containers, jobs and GPUs, and to the zones of GPUs.
    fn add_engine_usage(&mut self, raw: &RawTick) {
        for (gpu, usage) in &raw.gpus {
            for used in &usage.uses {
                for key in [Some((*gpu, None)), used.job.map(|job| (*gpu, Some(job)))].into_iter().flatten() {
                    let sums = self.engine_use.entry(key).or_insert([0; ENGINES]);
                    sums.iter_mut().zip(used.times).for_each(|(sum, ns)| *sum = sum.saturating_add(ns));
                }
                if let Some(ChargeTarget::Container(number)) = used.charge_target
                    && self.containers.contains_key(&number)
                {
                    let sums = self.engine_times.entry((number, *gpu)).or_insert([0; ENGINES]);
                    sums.iter_mut().zip(used.times).for_each(|(sum, ns)| *sum = sum.saturating_add(ns));
                }
            }
        }
        for (zone, gpu) in self.setup.zones.iter().zip(&mut self.gpus) {
            gpu.add_usage(zone.id, &raw.gpus, &self.rules.engines);
        }
    }

    /// Restarts the counters of the hardware after a suspension: the energy since the last reading
    /// includes that of the suspension, in which no workload ran. Modelled energy does not, because
    /// its clock stood.
    fn restart_after_suspension(&mut self, suspended_ns: u64) {
        if suspended_ns < SUSPENSION_NS {
            return;
        }
        self.recent.clear();
        for (index, zone) in self.setup.zones.iter().enumerate() {
            if self.setup.origin_of(zone) != Some(Origin::Model) {
                self.counters[index].restart();
                self.last_moved[index] = None;
                *self.rejects.entry((index, Reject::Suspended)).or_default() += 1;
            }
        }
    }

    /// Advances the counter of one zone.
    fn step(&mut self, index: usize, raw: &RawTick, waiting: bool) -> Step {
        match self.setup.zones.get(index) {
            Some(zone) if matches!(zone.id.kind, ZoneKind::Gpu(_)) => return self.step_gpu(index, raw),
            Some(_) => {}
            None => return Step::Failed,
        }
        if matches!(raw.zones.get(index), Some(Err(error)) if error == REOPENED) {
            self.counters[index].restart();
            *self.rejects.entry((index, Reject::Returned)).or_default() += 1;
        }
        let reading = match raw.zones.get(index) {
            Some(Ok(value)) => self.check_moving(index, *value, raw.energy_ns),
            Some(Err(error)) => Err(error.clone()),
            None => Err("was not read".to_owned()),
        };
        if let (Err(error), true) = (&reading, self.roots[index].is_some()) {
            let location = &self.setup.zones[index].location;
            self.trouble.get_or_insert_with(|| format!("{location}: {error}"));
        }
        let step = if waiting { Step::Failed } else { self.counters[index].advance(reading.ok(), raw.energy_ns) };
        self.count_reject(index, step);
        step
    }

    /// Advances the counter of a board. While the usage of a process is outstanding the counter
    /// waits, and the next reading covers this tick too.
    fn step_gpu(&mut self, index: usize, raw: &RawTick) -> Step {
        let kind = self.setup.zones[index].id.kind;
        let usage = raw.gpus.iter().find(|(gpu, _)| ZoneKind::Gpu(*gpu) == kind).map(|(_, usage)| usage);
        (self.gpus[index].waiting, self.gpus[index].unsettled) = (None, None);
        if usage.is_some_and(|usage| usage.counter_reset) {
            self.counters[index].restart();
            *self.rejects.entry((index, Reject::Returned)).or_default() += 1;
        }
        let step = match raw.zones.get(index) {
            Some(Ok(value)) => {
                self.gpus[index].failing_since = None;
                let reading = self.check_moving(index, *value, raw.gpu_ns);
                if let Err(error) = &reading {
                    self.report_gpu_trouble(index, error);
                }
                if reading.is_ok() && usage.is_some_and(|usage| usage.pending) {
                    // The energy is measured; only its split waits. The counter itself must not
                    // advance, because the split has to cover this tick too.
                    let unsettled = match self.counters[index].clone().advance(Some(*value), raw.gpu_ns) {
                        Step::Grew(energy, _) => Some(energy),
                        _ => None,
                    };
                    self.gpus[index].waiting = Some(self.gpus[index].watts);
                    self.gpus[index].unsettled = unsettled;
                    return Step::Failed;
                }
                self.counters[index].advance(reading.ok(), raw.gpu_ns)
            }
            // Its driver has switched the board off: nothing can be read, and nothing is broken.
            Some(Err(error)) if error == ASLEEP => {
                (self.gpus[index].failing_since, self.last_moved[index]) = (None, None);
                self.counters[index].advance(None, raw.gpu_ns)
            }
            Some(Err(error)) => {
                // A lost board is reported by its source at once. Here a reading is reported that
                // keeps failing.
                let since = *self.gpus[index].failing_since.get_or_insert(raw.energy_ns);
                if raw.energy_ns.saturating_sub(since) >= STALL_NS {
                    self.report_gpu_trouble(index, error);
                }
                self.counters[index].advance(None, raw.gpu_ns)
            }
            None => Step::Failed,
        };
        self.gpus[index].watts = match step {
            Step::Grew(energy, ns) => energy.watts_over(ns),
            _ => None,
        };
        self.count_reject(index, step);
        step
    }

    fn report_gpu_trouble(&mut self, index: usize, error: &str) {
        let location = &self.setup.zones[index].location;
        self.gpu_trouble.get_or_insert_with(|| format!("{location}: {error}"));
    }

    fn count_reject(&mut self, index: usize, step: Step) {
        if let Step::Rebased(reason) | Step::Rejected(reason) = step {
            *self.rejects.entry((index, reason)).or_default() += 1;
        }
    }

    /// The value, unless it belongs to a root and has not moved for too long.
    fn check_moving(&mut self, index: usize, value: u64, at_ns: u64) -> Result<u64, String> {
        match &mut self.last_moved[index] {
            Some((last, since)) if *last == value => {
                let stalled_ns = at_ns.saturating_sub(*since);
                let gpu = matches!(self.setup.zones[index].id.kind, ZoneKind::Gpu(_));
                // A guest may use nothing for a while; a board that was passed to it never does.
                let counts = gpu || self.roots[index].is_some() && self.setup.origin != Some(Origin::Host);
                if stalled_ns >= STALL_NS && counts {
                    return Err(format!("stands at {value} for {} s", stalled_ns / 1_000_000_000));
                }
            }
            last => *last = Some((value, at_ns)),
        }
        Ok(value)
    }

    /// True for a GPU zone inside a root: the root's split includes its energy.
    fn is_inside_root(&self, index: usize) -> bool {
        let id = self.setup.zones[index].id;
        let mut zones = self.setup.zones.iter().zip(&self.roots);
        self.roots[index].is_none() && zones.any(|(outer, root)| root.is_some() && contains_gpu(outer.id, id))
    }

    /// Advances every counter, splits the energy of every root, and adds it to the totals.
    fn post(&mut self, raw: &RawTick, length_ns: Option<u64>, usage: &UsageByTarget) -> PostedTick {
        (self.trouble, self.gpu_trouble) = (None, None);
        self.restart_after_suspension(raw.suspended_ns);
        self.add_engine_usage(raw);
        // Energy waits for the CPU time of its tick, but not without end: after that it stays
        // unattributed.
        let cpu_of_tick = self.ticks_without_cpu == 0 && matches!(raw.cpu, Some(Ok(_)));
        let without_cpu = self.setup.cpu.is_some() && !matches!(raw.cpu, Some(Ok(_)));
        self.ticks_without_cpu = if without_cpu { self.ticks_without_cpu.saturating_add(1) } else { 0 };
        let waiting = (1..=MAX_INCOMPLETE_TICKS).contains(&self.ticks_without_cpu);
        let several = self.setup.has_per_cpu_usage() && self.setup.packages.len() > 1;
        let by_target = usage.iter().filter(|_| several);
        let host = Rc::new(by_target.map(|(target, by_package)| (*target, sum_usage(by_package))).collect());
        // A tick without CPU time lacks no count: the next one has it.
        let counted = usage.is_empty() || self.window.as_ref().is_some_and(CpuWindow::counted);
        let input = Input { raw, length_ns, usage, host, waiting, cpu_of_tick, counted };

        let steps: Vec<Step> = (0..self.counters.len()).map(|index| self.step(index, raw, waiting)).collect();
        // GPU zones inside a root come first, because the root splits their energy.
        for (index, step) in steps.iter().enumerate() {
            if self.is_inside_root(index) {
                self.gpus[index].accumulate(*step);
            }
        }
        let last_gpu_splits = std::mem::take(&mut self.gpu_splits);
        let mut posted = PostedTick::default();
        for (index, step) in steps.into_iter().enumerate() {
            let zone = &self.setup.zones[index];
            let Some(origin) = self.setup.origin_of(zone) else { continue };
            let id = AccountId { zone: zone.id, origin };
            let waiting_gpu = self.gpus[index].waiting;
            let watts = match step {
                Step::Grew(energy, ns) => energy.watts_over(ns),
                _ => waiting_gpu.flatten(),
            };
            posted.zones.push(ZoneRow { id: id.zone, origin, total: self.counters[index].total(), watts });
            if let (Some(_), Some(last)) = (waiting_gpu, last_gpu_splits.iter().find(|last| last.id.zone == id.zone)) {
                self.gpu_splits.push(last.clone());
            }
            if let Some(mut root) = self.roots[index].take() {
                let (delta, split) = self.post_root(index, id, &mut root, step, &input);
                posted.deltas.push(delta);
                posted.splits.extend(split);
                self.roots[index] = Some(root);
            }
        }
        posted
    }

    /// Splits the energy of one root and adds it to the totals.
    fn post_root(
        &mut self,
        index: usize,
        id: AccountId,
        root: &mut Root,
        step: Step,
        input: &Input<'_>,
    ) -> (AccountDelta, Option<RootSplit>) {
        self.totals.open(id);
        let gpu = matches!(id.zone.kind, ZoneKind::Gpu(_));
        let mut load = self.load(id.zone, input);
        let idle_known = self.idle_estimate(index, root).is_some();
        let mut delta = AccountDelta { idle_known, ..AccountDelta::unmeasured(id) };
        let (energy, covered_ns) = match step {
            Step::Grew(energy, covered_ns) => (energy, covered_ns),
            Step::Rejected(_) | Step::Failed => {
                root.add_pending(load);
                delta.covers = root.pending_ticks;
                root.rejected |= matches!(step, Step::Rejected(_));
                if let (true, Some(energy)) = (gpu, self.gpus[index].unsettled) {
                    delta.settlement = Settlement::Waiting(energy);
                }
                root.baseline.interrupt();
                root.fitted.interrupt();
                if root.pending_ticks > MAX_INCOMPLETE_TICKS && !input.waiting && !gpu {
                    let (location, ticks) = (&self.setup.zones[index].location, root.pending_ticks);
                    self.trouble.get_or_insert_with(|| format!("{location}: {ticks} implausible readings in a row"));
                }
                return (delta, None);
            }
            Step::Start | Step::Rebased(_) => {
                root.clear_pending();
                self.gpus[index].claims.clear();
                root.baseline.interrupt();
                root.fitted.interrupt();
                return (delta, None);
            }
        };
        // A board is read at times of its own, so the time that its energy covers does not tell the
        // ticks. Without a rejected reading, its counter continues from the last split.
        let continues = gpu && !root.rejected;
        if continues || input.length_ns.is_none_or(|length| covered_ns > length) {
            // Empty for a board, whose claims are kept in its GPU zone.
            root.take_pending(&mut load);
            delta.covers += root.pending_ticks;
        }
        load.sample_at = load.sample_at.filter(|_| delta.covers == 1);
        root.clear_pending();
        let conditions = self.conditions(index, root, input.raw, energy, covered_ns);
        let mut result = if gpu {
            self.split_board(index, id, &conditions)
        } else {
            self.split_root(index, id, root, &conditions, &load)
        };
        // From here on, a split names only containers that have series: a row may have been removed
        // before its first tick, and claims, reservations and processes may still name it. The
        // jobs of such a container have their parts already.
        result.split.retire_unknown(|number| self.containers.contains_key(&number));
        root.power_uw = microwatts(energy, covered_ns);
        delta.measured = Some(energy);
        delta.idle = result.split.idle;
        delta.unattributed = result.split.unattributed;
        for (target, energy) in &result.split.shares {
            match target {
                ChargeTarget::System => delta.system += *energy,
                ChargeTarget::Retired => delta.retired += *energy,
                ChargeTarget::Container(_) => {}
            }
        }
        if id.origin != Origin::Model {
            delta.bound_uj = to_f32(conditions.measured_bound());
        }
        self.totals.add(id, energy, &result.split);
        if gpu {
            self.gpu_splits.push(result.clone());
        }
        (delta, Some(result))
    }

    fn idle_estimate(&self, index: usize, root: &Root) -> Option<Estimate> {
        if matches!(self.setup.zones[index].id.kind, ZoneKind::Gpu(_)) {
            return self.gpus[index].idle.estimate();
        }
        let exact = self.setup.idle_uw.get(index).copied().flatten().map(Estimate::exact);
        exact.or_else(|| root.baseline.estimate())
    }

    fn conditions(
        &self,
        index: usize,
        root: &Root,
        raw: &RawTick,
        measured: Microjoules,
        length_ns: u64,
    ) -> Conditions {
        let power_uw = microwatts(measured, length_ns);
        let estimate = self.idle_estimate(index, root);
        let idle_bound_uw = match estimate {
            Some(Estimate { uw, low_uw, high_uw }) => (high_uw - uw).max(uw - low_uw),
            // The idle power lies between zero and the least power that the package ever used.
            None => root.baseline.upper_limit().unwrap_or(power_uw).min(power_uw),
        };
        let idle = estimate.map_or(Microjoules::ZERO, |estimate| Microjoules::from_power(estimate.uw, length_ns));
        let zone = &self.setup.zones[index];
        let cpus = self.cpus(zone.id);
        Conditions {
            measured,
            idle: idle.min(measured),
            length_ns,
            peak_uw: power_uw.max(root.power_uw),
            step_uj: zone.step_uj,
            update_ns: zone.update_ns,
            skew_ns: raw.cpu_ns.saturating_sub(raw.began_ns).max(self.last_skew_ns).saturating_add(self.setup.lag_ns),
            idle_bound_uw,
            cpus,
            cpus_elsewhere: if self.setup.has_per_cpu_usage() {
                0
            } else {
                self.setup.cpus().iter().sum::<u64>() - cpus
            },
            siblings_unknown: self.setup.smt && !self.setup.cpu.as_ref().is_some_and(|cpu| cpu.capabilities.siblings),
            shared_range: self.rules.shared_range(),
            weight_error: None,
        }
    }

    /// Splits the energy of one root for one tick, and updates its baseline. The energy of a GPU
    /// inside it is split by engine use or stays unattributed; by CPU time it would be attributed
    /// to containers that only compute.
    fn split_root(&mut self, index: usize, id: AccountId, root: &mut Root, now: &Conditions, load: &Load) -> RootSplit {
        let Division { claims, basis, error } = self.division(index, id.zone, root, load);
        root.basis = self.is_weight_shown(id.zone).then_some(basis);
        let now = &Conditions { weight_error: error, ..*now };
        let weigh = |usage: &BTreeMap<ChargeTarget, CpuUsage>| -> Vec<(ChargeTarget, u64)> {
            usage.iter().map(|(target, usage)| (*target, usage.weight)).collect()
        };
        let weights = weigh(&claims);
        let host = if load.host.is_empty() { &load.claims } else { &*load.host };
        let mut remaining = now.measured;
        let gpu_parts = split_inside(&self.setup.zones, &mut self.gpus, id.zone, &mut remaining, now.idle);
        let step = self.step_estimate(index, root).filter(|_| basis != Basis::Nothing);
        let awake = step.map_or(Microjoules::ZERO, |step| Microjoules::from_power(step.uw, load.awake_ns));
        let awake = awake.min(remaining - now.idle);
        let mut split = split_proportionally(remaining - awake, now.idle, &weights);
        if awake > Microjoules::ZERO {
            split.add_awake(&split_proportionally(awake, Microjoules::ZERO, &weigh(host)));
        }
        self.streams.split_by_cpu_time(index, id, &split);
        match self.rules.idle {
            IdlePolicy::Separate => {}
            _ if basis == Basis::Nothing => {}
            // By CPU time: idle power follows neither misses nor a mix of events.
            IdlePolicy::Proportional => share_idle(&mut split, &weigh(&load.claims)),
            IdlePolicy::Reserved => share_idle(&mut split, &self.reservations(now.cpus)),
        }
        let mut bounds = BTreeMap::new();
        if !self.setup.modelled() {
            let step_bound_uw = step.map_or(0, |step| (step.high_uw - step.uw).max(step.uw - step.low_uw));
            bounds = self.bounds(now, &claims, host, awake, Microjoules::from_power(step_bound_uw, load.awake_ns));
            self.add_stated_error(index, &split.shares, &mut bounds);
        }
        self.learn(id.zone, root, load, (now.length_ns, remaining));
        let mut unbounded = BTreeSet::new();
        for (part, claims) in gpu_parts {
            let containers = part.shares.iter().filter_map(|(target, energy)| match target {
                ChargeTarget::Container(number) if *energy > Microjoules::ZERO => Some(*number),
                _ => None,
            });
            unbounded.extend(containers);
            self.streams.split_by_engine_use(id.origin, &part, &claims);
            split.merge(&part);
        }
        bounds.retain(|number, _| !unbounded.contains(number));
        RootSplit { id, split, bounds, unbounded, length_ns: now.length_ns }
    }

    /// Adds the error that the source itself states for its figures.
    fn add_stated_error(
        &self,
        index: usize,
        shares: &[(ChargeTarget, Microjoules)],
        bounds: &mut BTreeMap<u32, Bound>,
    ) {
        let Some(milli) = self.setup.zones[index].error_milli else { return };
        for (target, energy) in shares {
            if let ChargeTarget::Container(number) = target
                && let Some(bound) = bounds.get_mut(number)
            {
                bound.systematic += energy.joules() * 1e3 * f64::from(milli);
            }
        }
    }

    /// What an awake root draws more than a sleeping one. A source that defines the idle power has
    /// no such step.
    fn step_estimate(&self, index: usize, root: &Root) -> Option<Estimate> {
        let exact = self.setup.idle_uw.get(index).copied().flatten();
        root.baseline.step().filter(|_| exact.is_none())
    }

    /// Error bounds of the energy of each container. `awake` of it was split by `host`, and the
    /// rest by `claims`; `step_bound` of it may have been split by the wrong one.
    fn bounds(
        &self,
        now: &Conditions,
        claims: &BTreeMap<ChargeTarget, CpuUsage>,
        host: &BTreeMap<ChargeTarget, CpuUsage>,
        awake: Microjoules,
        step_bound: Microjoules,
    ) -> BTreeMap<u32, Bound> {
        let of_load = Conditions { measured: now.measured - awake, ..*now };
        // The errors of the counter are in the part above.
        let of_awake = Conditions {
            measured: awake,
            idle: Microjoules::ZERO,
            peak_uw: 0,
            step_uj: 0,
            update_ns: 0,
            idle_bound_uw: 0,
            cpus: self.setup.cpus().iter().sum(),
            cpus_elsewhere: 0,
            // It is divided by CPU time.
            weight_error: None,
            ..*now
        };
        let (all, all_host) = (sum_usage(claims.values()), sum_usage(host.values()));
        let mut bounds = BTreeMap::new();
        for (target, on_host) in host {
            let own = claims.get(target).copied().unwrap_or_default();
            let ChargeTarget::Container(number) = target else { continue };
            if own.ns() == 0 && (awake == Microjoules::ZERO || on_host.ns() == 0) {
                continue;
            }
            let (load, woken) = (of_load.share_bound(&own, &all), of_awake.share_bound(on_host, &all_host));
            let apart = (share(&own, &all) - share(on_host, &all_host)).abs();
            let bound = Bound {
                random: load.random + woken.random,
                systematic: load.systematic + woken.systematic + apart * step_bound.joules() * 1e6,
            };
            bounds.insert(*number, bound);
        }
        bounds
    }

    /// Splits the energy of a board by engine use.
    fn split_board(&mut self, index: usize, id: AccountId, now: &Conditions) -> RootSplit {
        let (split, claims) = self.gpus[index].split(now, self.rules.idle);
        self.streams.split_by_engine_use(id.origin, &split, &claims);
        RootSplit { id, split, bounds: BTreeMap::new(), unbounded: BTreeSet::new(), length_ns: now.length_ns }
    }

    /// Reserved thousandths of the CPUs of a root, by container; the remainder belongs to the
    /// system.
    fn reservations(&self, cpus: u64) -> Vec<(ChargeTarget, u64)> {
        let all = self.setup.cpus().iter().sum::<u64>().max(1);
        // A reservation names no package, so each package gets a part by its number of CPUs.
        let part = |milli: u64| milli.saturating_mul(cpus) / all;
        let mut weights: Vec<_> =
            self.reserved.iter().map(|(number, milli)| (ChargeTarget::Container(*number), part(*milli))).collect();
        // Saturating, because a recording may contain any number.
        let reserved = weights.iter().fold(0, |sum: u64, (_, milli)| sum.saturating_add(*milli));
        weights.push((ChargeTarget::System, (cpus * 1000).saturating_sub(reserved)));
        weights
    }
}

/// Moves `ns` of CPU usage from a target to a container. Each package contributes in proportion to
/// the target's usage on it, because the CPU clock of a process does not tell the package.
fn move_usage(all: &mut UsageByTarget, from: ChargeTarget, container: u32, ns: u64) {
    let Some(usage) = all.get_mut(&from) else { return };
    let whole = sum_usage(&*usage).ns();
    let mut moved = vec![CpuUsage::default(); usage.len()];
    for (usage, moved) in usage.iter_mut().zip(&mut moved) {
        *moved = usage.take(ns.min(whole), whole);
    }
    let sums = all.entry(ChargeTarget::Container(container)).or_insert_with(|| vec![CpuUsage::default(); moved.len()]);
    sums.iter_mut().zip(&moved).for_each(|(sum, usage)| sum.add(usage));
}

/// True for zones whose energy is divided by what ran on CPUs.
fn is_of_cpus(kind: ZoneKind) -> bool {
    matches!(kind, ZoneKind::Package | ZoneKind::Dram | ZoneKind::Psys)
}

/// Share of `own` in the weight of `all`.
#[expect(clippy::cast_precision_loss, reason = "a bound; no joule is counted here")]
fn share(own: &CpuUsage, all: &CpuUsage) -> f64 {
    if all.weight == 0 { 0.0 } else { own.weight as f64 / all.weight as f64 }
}

#[expect(clippy::cast_possible_truncation, reason = "a bound; seven digits are more than it has")]
fn to_f32(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests;
