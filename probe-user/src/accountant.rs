//! From raw ticks to snapshots: the arithmetic of the probe, all of it, and nothing else.
//!
//! Pure: no file, no clock, no machine. The same ticks give the same snapshots, byte for byte, whether they come from the
//! machine or from a recording.

mod gpu;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use gpu::Engines;

use crate::{
    containers::Container,
    cpu::{CgroupKey, Queue, Ran, Share, Window},
    energy::{
        counter::{Counter, Reject, Step},
        zone::{Origin, ZoneId, ZoneKind, accounting_roots},
    },
    gpu::engines::{EngineTimes, GpuId},
    ledger::{
        AccountId, Book, Closed, Holder, IdlePolicy, Rules, close,
        idle::{Baseline, Estimate, Sample},
        share_idle,
        streams::Streams,
        uncertainty::{Bound, Conditions},
    },
    snapshot::{AccountRow, ContainerRow, IdleRow, Snapshot, StreamRow, ZoneRow},
    tick::{News, RawTick, Setup},
    units::Microjoules,
    window::{AccountDelta, ContainerDelta, Ring, Tick},
};

/// An accounting root that stands still for this long is not measuring: the least package uses a counter step in less
/// than a millisecond. Longer than any update interval of the sources that we know.
const STILL_NS: u64 = 5_000_000_000;

/// Ticks in a row that a root may go without joules, or the joules without CPU time, before that is a state and not a slip.
const PATIENCE: u32 = 5;

/// Most streams with series of their own.
const MAX_STREAMS: usize = 1024;

/// What was run, by package index, by who ran.
type RanBy = BTreeMap<Holder, Vec<Share>>;

/// What a root remembers between ticks.
#[derive(Default)]
struct Root {
    /// Who ran in ticks whose joules are still to come, and how many such ticks there are.
    pending: BTreeMap<Holder, Share>,
    ticks: u32,
    /// Mean power of the last accepted tick, in microwatts.
    power_uw: u64,
    baseline: Baseline,
}

/// What one tick gave to the containers of one root.
#[derive(Clone)]
struct Given {
    id: AccountId,
    closed: Closed<Holder>,
    bounds: BTreeMap<u32, Bound>,
    /// Of whose joules nobody can say how far off they are: a part of them was shared by use of engines.
    unbounded: BTreeSet<u32>,
    length_ns: u64,
}

/// All state between two ticks.
pub struct Accountant {
    setup: Setup,
    rules: Rules,
    roots: Vec<Option<Root>>,
    /// By zone; empty for zones that are no GPU's.
    engines: Vec<Engines>,
    /// How long containers used the engines of each GPU.
    engine_times: BTreeMap<(u32, GpuId), EngineTimes>,
    /// What an earlier life learnt of zones that are not there yet.
    remembered: BTreeMap<String, Vec<Sample>>,
    /// What boards gave last: it stands while the next joules wait.
    of_gpus: Vec<Given>,
    counters: Vec<Counter>,
    /// The last value of each counter, and when it came.
    moved: Vec<Option<(u64, u64)>>,
    rejects: BTreeMap<(usize, Reject), u64>,
    window: Option<Window>,
    holders: HashMap<CgroupKey, Holder>,
    containers: BTreeMap<u32, Arc<Container>>,
    reserved: BTreeMap<u32, u64>,
    cpu: HashMap<u32, Vec<Share>>,
    /// The last figures of each cgroup, and what they add up to for each container.
    last_queues: HashMap<CgroupKey, Queue>,
    queues: BTreeMap<u32, Queue>,
    cpu_overflow_ns: u64,
    counter_time: [u64; 2],
    cpu_missed: u64,
    book: Book,
    streams: Streams,
    ring: Ring,
    last_energy_ns: Option<u64>,
    /// CPU time of the probe at the last tick that was divided, and what it used since the start.
    last_own_ns: Option<u64>,
    own: Microjoules,
    /// CPU time of everybody since then.
    ran_since_ns: u64,
    sequence: u64,
    trouble: Option<String>,
    gpu_trouble: Option<String>,
    /// Ticks in a row without CPU time.
    blind: u32,
    ran: HashSet<CgroupKey>,
}

impl Accountant {
    /// Ready for the first tick, which is the point that everything counts from.
    #[must_use]
    pub fn new(setup: Setup, rules: impl Into<Rules>, window_bytes: usize) -> Self {
        let roots = accounting_roots(&setup.zones).into_iter().map(|root| root.then(Root::default)).collect();
        Self {
            rules: rules.into(),
            roots,
            engines: setup.zones.iter().map(|_| Engines::default()).collect(),
            engine_times: BTreeMap::new(),
            remembered: BTreeMap::new(),
            of_gpus: Vec::new(),
            counters: setup.zones.iter().map(Counter::new).collect(),
            moved: vec![None; setup.zones.len()],
            rejects: BTreeMap::new(),
            window: None,
            holders: HashMap::new(),
            containers: BTreeMap::new(),
            reserved: BTreeMap::new(),
            cpu: HashMap::new(),
            last_queues: HashMap::new(),
            queues: BTreeMap::new(),
            cpu_overflow_ns: 0,
            counter_time: [0, 0],
            cpu_missed: 0,
            book: Book::default(),
            streams: Streams::new(MAX_STREAMS),
            ring: Ring::new(window_bytes),
            last_energy_ns: None,
            last_own_ns: None,
            own: Microjoules::ZERO,
            ran_since_ns: 0,
            sequence: 0,
            trouble: None,
            gpu_trouble: None,
            blind: 0,
            ran: HashSet::new(),
            setup,
        }
    }

    /// Remembers what an earlier life learnt of idle power.
    pub fn remember(&mut self, baselines: &BTreeMap<String, Vec<Sample>>) {
        for (zone, root) in self.setup.zones.iter().zip(&mut self.roots) {
            if let (Some(root), Some(samples)) = (root, baselines.get(&zone.id.to_string())) {
                root.baseline = Baseline::remember(samples);
            }
        }
        self.remembered.clone_from(baselines);
    }

    /// What this life learnt of idle power, by zone.
    #[must_use]
    pub fn baselines(&self) -> BTreeMap<String, Vec<Sample>> {
        let zones = self.setup.zones.iter().zip(&self.roots).zip(&self.engines);
        let real = zones.filter(|((zone, _), _)| self.setup.origin_of(zone).is_some_and(Origin::is_measured));
        let now = real.filter_map(|((zone, root), engines)| {
            let samples = match zone.id.kind {
                ZoneKind::Gpu(_) => engines.rest.samples(),
                _ => root.as_ref()?.baseline.samples(),
            };
            Some((zone.id.to_string(), samples))
        });
        // What an earlier life learnt of a GPU that is not there today is not forgotten.
        let mut learnt = self.remembered.clone();
        learnt.extend(now.filter(|(_, samples)| !samples.is_empty()));
        learnt
    }

    /// What is wrong with the energy of the last tick; an accounting root was not read, or stands still.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// What is wrong with the energy of a GPU: its counter stands still.
    #[must_use]
    pub fn gpu_trouble(&self) -> Option<&str> {
        self.gpu_trouble.as_deref()
    }

    /// The cgroups that ran in the last tick.
    #[must_use]
    pub fn ran(&self) -> &HashSet<CgroupKey> {
        &self.ran
    }

    /// Accounts one tick. What only the sampler knows (sources, collectors, its own health) is left empty.
    pub fn tick(&mut self, raw: &RawTick) -> Snapshot {
        self.learn(&raw.news);
        let length_ns = self.last_energy_ns.replace(raw.energy_ns).map(|last| raw.energy_ns.saturating_sub(last));
        let ran = self.who_ran(raw);
        self.count_cpu(&ran);
        let (zones, deltas, given) = self.post(raw, length_ns, &ran);
        self.count_own(raw, &given, &ran);
        self.keep(raw, deltas, &given, &ran);
        for number in &raw.news.jobs_gone {
            self.fold_job(*number);
        }
        for number in &raw.news.jobs_ended {
            self.streams.end(*number, raw.unix_ns);
        }
        for number in &raw.news.ended {
            self.end(*number);
        }
        let snapshot = self.snapshot(raw, length_ns, zones, &given, &ran);
        self.sequence += 1;
        snapshot
    }

    fn learn(&mut self, news: &News) {
        for key in &news.departed {
            self.holders.remove(key);
            self.last_queues.remove(key);
            if let Some(window) = &mut self.window {
                window.forget(key);
            }
        }
        if let Some(places) = &news.places {
            self.setup.places.clone_from(places);
            if let Some(window) = &mut self.window {
                window.replace(self.setup.columns().0);
            }
        }
        self.holders.extend(news.holders.iter().copied());
        for container in &news.shown {
            self.containers.insert(container.number, Arc::new(container.clone()));
        }
        self.reserved.extend(news.reserved.iter().copied());
        if !news.zones.is_empty() {
            self.add_zones(news);
        }
        // Before those that begin, which may want their places; again after, for one that came and went in one tick.
        let forget = |streams: &mut Streams| news.jobs_gone.iter().for_each(|number| streams.forget(*number));
        forget(&mut self.streams);
        for job in &news.jobs {
            self.streams.begin(job, self.roots.len());
        }
        forget(&mut self.streams);
    }

    fn end(&mut self, number: u32) {
        self.book.retire(number);
        self.streams.release(number);
        self.cpu.remove(&number);
        self.queues.remove(&number);
        self.reserved.remove(&number);
        self.containers.remove(&number);
        self.end_engines(number);
        for root in self.roots.iter_mut().flatten() {
            if let Some(share) = root.pending.remove(&Holder::Container(number)) {
                add(&mut root.pending, Holder::Retired, &share);
            }
        }
    }

    /// What ran since the last reading that succeeded.
    fn who_ran(&mut self, raw: &RawTick) -> RanBy {
        self.ran.clear();
        let Some(Ok(reading)) = &raw.cpu else { return RanBy::new() };
        self.cpu_overflow_ns = reading.overflow.iter().fold(0, |sum: u64, time| sum.saturating_add(time.ns()));
        self.counter_time = reading.counter_time;
        self.cpu_missed = reading.missed;
        let Some(window) = &mut self.window else {
            let (place, packages) = self.setup.columns();
            self.window = Some(Window::start(place, packages, self.rules.weights, reading));
            self.last_queues.extend(reading.queues.iter().copied());
            return RanBy::new();
        };
        for (key, now) in &reading.queues {
            let grown = now.since(&self.last_queues.insert(*key, *now).unwrap_or_default());
            if let Some(Holder::Container(number)) = self.holders.get(key) {
                self.queues.entry(*number).or_default().add(&grown);
            }
        }
        let mut all = RanBy::new();
        for Ran { cgroup, by_package } in window.advance(reading) {
            self.ran.extend(cgroup);
            let holder = cgroup.and_then(|key| self.holders.get(&key)).copied().unwrap_or(Holder::System);
            let sums = all.entry(holder).or_insert_with(|| vec![Share::default(); by_package.len()]);
            sums.iter_mut().zip(&by_package).for_each(|(sum, share)| sum.add(share));
        }
        for (from, container, ns) in self.streams.ran(&raw.jobs) {
            give_own_row(&mut all, from, container, ns);
        }
        for (holder, shares) in &all {
            self.streams.hold(*holder, total(shares).ns());
        }
        all
    }

    fn count_cpu(&mut self, ran: &RanBy) {
        for (holder, shares) in ran {
            if let Holder::Container(number) = holder {
                let sums = self.cpu.entry(*number).or_insert_with(|| vec![Share::default(); shares.len()]);
                sums.iter_mut().zip(shares).for_each(|(sum, share)| sum.add(share));
            }
        }
    }

    /// What of the dynamic energy the probe itself used, by its share of all CPU time. Which package it ran on is not asked.
    fn count_own(&mut self, raw: &RawTick, given: &[Given], ran: &RanBy) {
        let all = total(ran.values().flatten()).ns();
        self.ran_since_ns = self.ran_since_ns.saturating_add(all);
        let Some(last) = self.last_own_ns else {
            self.last_own_ns = Some(raw.own_ns);
            return;
        };
        if given.is_empty() {
            return;
        }
        let own = raw.own_ns.saturating_sub(last).min(self.ran_since_ns);
        let dynamic: Microjoules = given
            .iter()
            .filter(|given| matches!(given.id.zone.kind, ZoneKind::Package | ZoneKind::Psys))
            .flat_map(|given| given.closed.shares.iter().map(|(_, joules)| *joules))
            .sum();
        if self.ran_since_ns > 0 {
            let share = u128::from(dynamic.0) * u128::from(own) / u128::from(self.ran_since_ns);
            self.own += Microjoules(u64::try_from(share).unwrap_or(u64::MAX));
        }
        (self.last_own_ns, self.ran_since_ns) = (Some(raw.own_ns), 0);
    }

    /// The package that a root's joules are shared by the CPU time of; `None` for all of them.
    fn package(&self, id: ZoneId) -> Option<usize> {
        self.setup.packages.iter().position(|package| Some(*package) == id.package)
    }

    /// Who claims a share of a root, with what weight. A package is shared by CPU time on it, a machine by all CPU time;
    /// nothing yet tells who used its memory, so DRAM has no claims and stays unattributed. Where nobody knows on which package
    /// somebody ran, each package is shared as the machine is.
    fn claims(&self, id: ZoneId, ran: &RanBy) -> BTreeMap<Holder, Share> {
        match (id.kind, id.package) {
            (ZoneKind::Package, Some(_)) if self.setup.knows_cpus() => match self.package(id) {
                Some(index) => ran.iter().map(|(holder, shares)| (*holder, shares[index])).collect(),
                None => BTreeMap::new(),
            },
            (ZoneKind::Package | ZoneKind::Psys, _) => {
                ran.iter().map(|(holder, shares)| (*holder, total(shares))).collect()
            }
            _ => BTreeMap::new(),
        }
    }

    fn cpus(&self, id: ZoneId) -> u64 {
        let cpus = self.setup.cpus();
        match self.package(id) {
            Some(index) => cpus[index],
            None => cpus.iter().sum(),
        }
    }

    /// One counter's reading of this tick.
    fn step(&mut self, index: usize, raw: &RawTick, waits: bool) -> Step {
        match self.setup.zones.get(index) {
            Some(zone) if matches!(zone.id.kind, ZoneKind::Gpu(_)) => return self.step_gpu(index, raw),
            Some(_) => {}
            None => return Step::Lost,
        }
        let reading = match raw.zones.get(index) {
            Some(Ok(value)) => self.still_moves(index, *value, raw.energy_ns),
            Some(Err(error)) => Err(error.clone()),
            None => Err("was not read".to_owned()),
        };
        if let (Err(error), true) = (&reading, self.roots[index].is_some()) {
            let place = &self.setup.zones[index].place;
            self.trouble.get_or_insert_with(|| format!("{place}: {error}"));
        }
        let step = if waits { Step::Lost } else { self.counters[index].advance(reading.ok(), raw.energy_ns) };
        self.count_reject(index, step);
        step
    }

    fn count_reject(&mut self, index: usize, step: Step) {
        if let Step::Rebased(reason) | Step::Doubted(reason) = step {
            *self.rejects.entry((index, reason)).or_default() += 1;
        }
    }

    /// Unwraps every counter, closes the account of every root, and adds it to the book.
    fn post(
        &mut self,
        raw: &RawTick,
        length_ns: Option<u64>,
        ran: &RanBy,
    ) -> (Vec<ZoneRow>, Vec<AccountDelta>, Vec<Given>) {
        let (mut rows, mut deltas, mut given) = (Vec::new(), Vec::new(), Vec::new());
        (self.trouble, self.gpu_trouble) = (None, None);
        self.count_engines(raw);
        // Joules without the CPU time that goes with them wait for it, but not for ever: then nobody can be given them.
        let blind = self.setup.cpu.is_some() && !matches!(raw.cpu, Some(Ok(_)));
        self.blind = if blind { self.blind.saturating_add(1) } else { 0 };
        let waits = (1..=PATIENCE).contains(&self.blind);
        let steps: Vec<Step> = (0..self.counters.len()).map(|index| self.step(index, raw, waits)).collect();
        // What lies inside a root first: the root divides it.
        for (index, step) in steps.iter().enumerate() {
            if self.is_inside(index) {
                self.hold_inside(index, *step);
            }
        }
        let before = std::mem::take(&mut self.of_gpus);
        for (index, step) in steps.into_iter().enumerate() {
            let Some(zone) = self.setup.zones.get(index) else { continue };
            let (zone_id, origin) = (zone.id, self.setup.origin_of(zone));
            let Some(origin) = origin else { continue };
            let total = self.counters[index].total();
            let watts = match step {
                Step::Grew(joules, ns) => joules.watts_over(ns),
                _ => self.engines[index].waits.flatten(),
            };
            rows.push(ZoneRow { id: zone_id, origin, total, watts });
            if let (Some(_), Some(given)) =
                (self.engines[index].waits, before.iter().find(|given| given.id.zone == zone_id))
            {
                self.of_gpus.push(given.clone());
            }

            let claims = self.claims(zone_id, ran);
            let Some(mut root) = self.roots[index].take() else { continue };
            let id = AccountId { zone: zone_id, origin };
            self.book.open(id);
            let mut delta = AccountDelta {
                id,
                measured: None,
                covers: 1,
                off_uj: f32::NAN,
                idle: Microjoules::ZERO,
                unattributed: Microjoules::ZERO,
                system: Microjoules::ZERO,
                retired: Microjoules::ZERO,
            };
            match step {
                Step::Grew(joules, covers_ns) => {
                    let mut claims = claims;
                    if length_ns.is_none_or(|length| covers_ns > length) {
                        // Empty for a GPU: who used it is kept with its engines.
                        for (holder, share) in std::mem::take(&mut root.pending) {
                            add(&mut claims, holder, &share);
                        }
                        delta.covers += root.ticks;
                    }
                    (root.pending, root.ticks) = (BTreeMap::new(), 0);
                    let conditions = self.conditions(index, &root, raw, joules, covers_ns);
                    let given_now = if matches!(zone_id.kind, ZoneKind::Gpu(_)) {
                        self.divide_gpu(index, id, &mut root, &conditions)
                    } else {
                        self.divide(index, id, &mut root, &conditions, &claims)
                    };
                    delta.measured = Some(joules);
                    delta.idle = given_now.closed.idle;
                    delta.unattributed = given_now.closed.unattributed;
                    for (holder, joules) in &given_now.closed.shares {
                        match holder {
                            Holder::System => delta.system += *joules,
                            Holder::Retired => delta.retired += *joules,
                            Holder::Container(_) => {}
                        }
                    }
                    if origin != Origin::Model {
                        delta.off_uj = single(conditions.measured_bound());
                    }
                    self.book.post(id, joules, &given_now.closed);
                    if matches!(zone_id.kind, ZoneKind::Gpu(_)) {
                        self.of_gpus.push(given_now.clone());
                    }
                    given.push(given_now);
                }
                Step::Doubted(_) | Step::Lost => {
                    for (holder, share) in claims {
                        add(&mut root.pending, holder, &share);
                    }
                    root.ticks = root.ticks.saturating_add(1);
                    root.baseline.interrupt();
                    if root.ticks > PATIENCE && !waits && !matches!(zone_id.kind, ZoneKind::Gpu(_)) {
                        let (place, what) = (&self.setup.zones[index].place, "readings that cannot be believed");
                        self.trouble.get_or_insert_with(|| format!("{place}: {} {what} in a row", root.ticks));
                    }
                }
                Step::Start | Step::Rebased(_) => {
                    (root.pending, root.ticks) = (BTreeMap::new(), 0);
                    self.engines[index].claims.clear();
                    root.baseline.interrupt();
                }
            }
            deltas.push(delta);
            self.roots[index] = Some(root);
        }
        (rows, deltas, given)
    }

    /// The value, unless it is a root's that has not moved for too long.
    fn still_moves(&mut self, index: usize, value: u64, at_ns: u64) -> Result<u64, String> {
        match &mut self.moved[index] {
            Some((last, since)) if *last == value => {
                let still = at_ns.saturating_sub(*since);
                let gpu = matches!(self.setup.zones[index].id.kind, ZoneKind::Gpu(_));
                let counts = self.roots[index].is_some() || gpu;
                if still >= STILL_NS && counts {
                    return Err(format!("stands at {value} for {} s", still / 1_000_000_000));
                }
            }
            moved => *moved = Some((value, at_ns)),
        }
        Ok(value)
    }

    fn idle(&self, index: usize, root: &Root) -> Option<Estimate> {
        if matches!(self.setup.zones[index].id.kind, ZoneKind::Gpu(_)) {
            return self.engines[index].rest.estimate();
        }
        let known = self.setup.idle_uw.get(index).copied().flatten().map(Estimate::exact);
        known.or_else(|| root.baseline.estimate())
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
        let estimate = self.idle(index, root);
        let idle_off_uw = match estimate {
            Some(Estimate { uw, low_uw, high_uw }) => (high_uw - uw).max(uw - low_uw),
            // Nobody's joules are somewhere between none and the least that the package ever used.
            None => root.baseline.at_most().unwrap_or(power_uw).min(power_uw),
        };
        let idle = estimate.map_or(Microjoules::ZERO, |estimate| Microjoules::of(estimate.uw, length_ns));
        let zone = &self.setup.zones[index];
        Conditions {
            measured,
            idle: idle.min(measured),
            length_ns,
            peak_uw: power_uw.max(root.power_uw),
            step_uj: zone.step_uj,
            update_ns: zone.update_ns,
            skew_ns: raw.cpu_ns.saturating_sub(raw.began_ns).saturating_add(self.setup.lag_ns),
            idle_off_uw,
            cpus: self.cpus(zone.id),
            cpus_elsewhere: if self.setup.knows_cpus() {
                0
            } else {
                self.setup.cpus().iter().sum::<u64>() - self.cpus(zone.id)
            },
            siblings_untold: self.setup.smt && !self.setup.cpu.as_ref().is_some_and(|cpu| cpu.knows.siblings),
        }
    }

    /// Closes the account of one root for one tick, and learns from it. What a GPU inside it used goes to those who used its engines, or
    /// stays unattributed; by CPU time it would be billed to whoever computes beside it.
    fn divide(
        &mut self,
        index: usize,
        id: AccountId,
        root: &mut Root,
        now: &Conditions,
        claims: &BTreeMap<Holder, Share>,
    ) -> Given {
        let weights: Vec<(Holder, u64)> = claims.iter().map(|(holder, share)| (*holder, share.weight)).collect();
        let mut rest = now.measured;
        let of_gpus = self.divide_inside(id, &mut rest, now.idle);
        let mut closed = close(rest, now.idle, &weights);
        self.streams.divide(index, id, &closed);
        match self.rules.idle {
            IdlePolicy::Separate => {}
            IdlePolicy::Proportional => share_idle(&mut closed, &weights),
            IdlePolicy::Reserved => share_idle(&mut closed, &self.reservations(now.cpus)),
        }
        let all = total(claims.values());
        let mut bounds = BTreeMap::new();
        if !self.setup.modelled() {
            for (holder, share) in claims {
                if let Holder::Container(number) = holder
                    && share.ns() > 0
                {
                    bounds.insert(*number, now.share_bound(share, &all));
                }
            }
        }
        if id.zone.kind != ZoneKind::Dram && self.setup.cpu.is_some() {
            root.baseline.observe(now.length_ns, all.ns(), now.cpus + now.cpus_elsewhere, rest.0);
        }
        let mut unbounded = BTreeSet::new();
        for (part, claims) in of_gpus {
            let containers = part.shares.iter().filter_map(|(holder, joules)| match holder {
                Holder::Container(number) if *joules > Microjoules::ZERO => Some(*number),
                _ => None,
            });
            unbounded.extend(containers);
            self.streams.divide_by_use(id.origin, &part, &claims);
            closed.merge(&part);
        }
        root.power_uw = microwatts(now.measured, now.length_ns);
        bounds.retain(|number, _| !unbounded.contains(number));
        Given { id, closed, bounds, unbounded, length_ns: now.length_ns }
    }

    /// Thousandths of CPUs of a root that are reserved, and what is left for nobody.
    fn reservations(&self, cpus: u64) -> Vec<(Holder, u64)> {
        let all = self.setup.cpus().iter().sum::<u64>().max(1);
        // A reservation says nothing about packages: it falls on each by its CPUs.
        let part = |milli: u64| milli.saturating_mul(cpus) / all;
        let mut weights: Vec<_> =
            self.reserved.iter().map(|(number, milli)| (Holder::Container(*number), part(*milli))).collect();
        let reserved = sum(weights.iter().map(|(_, milli)| milli));
        weights.push((Holder::System, (cpus * 1000).saturating_sub(reserved)));
        weights
    }

    /// Adds the tick to the ring.
    fn keep(&mut self, raw: &RawTick, accounts: Vec<AccountDelta>, given: &[Given], ran: &RanBy) {
        let mut energy = Vec::new();
        for Given { id, closed, bounds, unbounded, .. } in given {
            let idle: BTreeMap<u32, Microjoules> = closed.idle_shares.iter().copied().collect();
            let mut joules: BTreeMap<u32, Microjoules> =
                idle.keys().map(|number| (*number, Microjoules::ZERO)).collect();
            for (holder, share) in &closed.shares {
                if let Holder::Container(number) = holder {
                    joules.insert(*number, *share);
                }
            }
            for (number, joules) in joules {
                if let Some(container) = self.containers.get(&number) {
                    energy.push(ContainerDelta {
                        container: container.clone(),
                        id: *id,
                        joules,
                        idle: idle.get(&number).copied().unwrap_or_default(),
                        // By how much the shares of engines may be off nobody can say.
                        bound: (!matches!(id.zone.kind, ZoneKind::Gpu(_))
                            && id.origin != Origin::Model
                            && !unbounded.contains(&number))
                        .then(|| bounds.get(&number).copied().unwrap_or_default()),
                    });
                }
            }
        }
        let (mut cpu, packages) = (Vec::new(), self.setup.told_packages());
        for (holder, shares) in ran {
            if let Holder::Container(number) = holder
                && let Some(container) = self.containers.get(number)
            {
                let told = packages.iter().zip(shares).filter(|(_, share)| share.ns() > 0);
                cpu.extend(told.map(|(package, share)| (container.clone(), *package, share.ns())));
            }
        }
        self.ring.push(Tick {
            sequence: self.sequence,
            unix_ns: raw.unix_ns,
            monotonic_ns: i64::try_from(raw.energy_ns).unwrap_or(i64::MAX),
            accounts: accounts.into(),
            energy: energy.into(),
            cpu: cpu.into(),
        });
    }

    fn snapshot(
        &self,
        raw: &RawTick,
        length_ns: Option<u64>,
        zones: Vec<ZoneRow>,
        given: &[Given],
        ran: &RanBy,
    ) -> Snapshot {
        let shown = |shares: &BTreeMap<u32, Microjoules>| -> Vec<(Arc<Container>, Microjoules)> {
            shares.iter().filter_map(|(number, uj)| Some((self.containers.get(number)?.clone(), *uj))).collect()
        };
        let accounts = self
            .book
            .accounts()
            .map(|(id, account)| AccountRow {
                id: *id,
                containers: shown(&account.containers),
                idle_shares: shown(&account.idle_shares),
                retired: account.retired,
                system: account.system,
                idle: account.idle,
                unattributed: account.unattributed,
            })
            .collect();
        let idle = (0..self.roots.len()).filter_map(|index| {
            let estimate = self.idle(index, self.roots[index].as_ref()?)?;
            let known = self.setup.idle_uw.get(index).copied().flatten().is_some();
            Some(IdleRow { id: self.setup.zones[index].id, estimate, calibrated: !known })
        });
        Snapshot {
            sequence: self.sequence,
            unix_ns: raw.unix_ns,
            length_ns,
            skew_ns: raw.cpu_ns.saturating_sub(raw.began_ns),
            zones,
            accounts,
            idle: idle.collect(),
            containers: self.container_rows(given, ran, length_ns),
            packages: self.setup.told_packages(),
            rejects: self
                .rejects
                .iter()
                .map(|((zone, reason), count)| (self.setup.zones[*zone].id, *reason, *count))
                .collect(),
            containers_dropped: raw.news.dropped,
            cgroups_unnamed: raw.news.unnamed,
            scans_incomplete: raw.news.scans_incomplete,
            cpu: self.setup.cpu.clone(),
            smt: self.setup.smt,
            shared_milli: self.rules.weights.shared_milli,
            counter_time: self.counter_time,
            cpu_overflow_ns: self.cpu_overflow_ns,
            cpu_intervals_missed: self.cpu_missed,
            own: self.setup.origin.filter(|_| self.setup.cpu.is_some()).map(|origin| (origin, self.own)),
            streams: self.stream_rows(),
            engine_times: self
                .engine_times
                .iter()
                .filter_map(|((number, gpu), times)| Some((self.containers.get(number)?.clone(), *gpu, *times)))
                .collect(),
            engine_weights: self.rules.engines,
            jobs: self.streams.jobs().cloned().collect(),
            jobs_dropped: raw.news.jobs_dropped.saturating_add(self.streams.dropped()),
            ring: self.ring.clone(),
            ..Snapshot::default()
        }
    }

    fn stream_rows(&self) -> Vec<StreamRow> {
        self.streams.totals().map(|(id, origin, joules)| StreamRow { id: id.clone(), origin, joules }).collect()
    }

    fn container_rows(&self, given: &[Given], ran: &RanBy, length_ns: Option<u64>) -> Vec<ContainerRow> {
        let busy = |number: u32| {
            let ns = ran.get(&Holder::Container(number)).map_or(0, |shares| total(shares).ns());
            length_ns.filter(|length| *length > 0).map(|length| ratio(ns, length))
        };
        // A container that did not run used no watts: that is known, and not the same as no figure.
        let mut watts: BTreeMap<u32, BTreeMap<_, f64>> = BTreeMap::new();
        let mut bounds: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        let whole = |zone: &ZoneId| matches!(zone.kind, ZoneKind::Package | ZoneKind::Psys | ZoneKind::Gpu(_));
        let given = given.iter().filter(|given| !matches!(given.id.zone.kind, ZoneKind::Gpu(_))).chain(&self.of_gpus);
        for Given { id, closed, bounds: off, length_ns, .. } in given.filter(|given| whole(&given.id.zone)) {
            let key = (id.zone.kind.as_str(), id.origin);
            for number in self.containers.keys() {
                watts.entry(*number).or_default().entry(key).or_default();
            }
            for (holder, joules) in &closed.shares {
                if let Holder::Container(number) = holder {
                    *watts.entry(*number).or_default().entry(key).or_default() +=
                        joules.watts_over(*length_ns).unwrap_or(0.0);
                    if let Some(bound) = off.get(number) {
                        let sums = bounds.entry(*number).or_default();
                        sums.0 += bound.total();
                        sums.1 += joules.joules() * 1e6;
                    }
                }
            }
        }
        self.containers
            .values()
            .map(|container| ContainerRow {
                container: container.clone(),
                cpu_ratio: busy(container.number),
                cpu: self
                    .cpu
                    .get(&container.number)
                    .cloned()
                    .unwrap_or_else(|| vec![Share::default(); self.setup.told_packages().len()]),
                watts: watts
                    .remove(&container.number)
                    .into_iter()
                    .flatten()
                    .map(|((zone, origin), watts)| (zone, origin, watts))
                    .collect(),
                queue: self.queues.get(&container.number).copied(),
                uncertainty: bounds.get(&container.number).filter(|(_, uj)| *uj > 0.0).map(|(off, uj)| off / uj),
            })
            .collect()
    }
}

// A recording may hold any number: sums of what a real machine ran never come near the end.
fn sum<'a>(all: impl Iterator<Item = &'a u64>) -> u64 {
    all.fold(0, |sum, one| sum.saturating_add(*one))
}

/// Takes `ns` off what `from` ran and gives it to a container, each package's part as `from`'s whole is divided among the packages: a process's
/// clock does not say where it ran.
fn give_own_row(all: &mut RanBy, from: Holder, container: u32, ns: u64) {
    let Some(shares) = all.get_mut(&from) else { return };
    let whole = total(&*shares).ns();
    let mut own = vec![Share::default(); shares.len()];
    for (share, own) in shares.iter_mut().zip(&mut own) {
        *own = share.take(ns.min(whole), whole);
    }
    let sums = all.entry(Holder::Container(container)).or_insert_with(|| vec![Share::default(); own.len()]);
    sums.iter_mut().zip(&own).for_each(|(sum, share)| sum.add(share));
}

/// What several ran together.
fn total<'a>(shares: impl IntoIterator<Item = &'a Share>) -> Share {
    shares.into_iter().fold(Share::default(), |mut sum, share| {
        sum.add(share);
        sum
    })
}

fn add(claims: &mut BTreeMap<Holder, Share>, holder: Holder, share: &Share) {
    claims.entry(holder).or_default().add(share);
}

fn microwatts(energy: Microjoules, ns: u64) -> u64 {
    u64::try_from(u128::from(energy.0) * 1_000_000_000 / u128::from(ns.max(1))).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a ratio of two lengths of time, for output")]
fn ratio(ns: u64, of: u64) -> f64 {
    ns as f64 / of as f64
}

#[expect(clippy::cast_possible_truncation, reason = "a bound; seven digits are more than it has")]
fn single(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests;
