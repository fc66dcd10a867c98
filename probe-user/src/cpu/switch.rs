//! The tiers at the switch: load the kernel side, close the open slice of every CPU, read the banks.
//!
//! Loading needs CAP_BPF and CAP_PERFMON. Reading the banks is reading memory; running `charge_running` and giving a slot back
//! are system calls that need nothing since 5.19, so the probe drops both.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    maps::{HashMap as BpfMap, Map, MapData, Queue as BpfQueue},
    programs::{BtfTracePoint, RawTracePoint},
};
use probe_ebpf::{CgroupKey, Counted, CpuState, KNOWN, MAX_CGROUPS, MAX_CPUS, RunTime, Tag, WAIT_CLASSES, Waits};

use super::{
    Events, Knows, Queue, Reader, Reading, Tier,
    counters::MAPS,
    mapped::Mapped,
    object::{Object, PAGE, possible_cpus, refused, slots_for},
    offsets,
};
use crate::{
    snapshot::ProgramRow,
    state::{Reason, Unavailable},
    topology::Topology,
};

/// The program that user space runs on each CPU.
const KICK: &str = "charge_running";
/// The program at the switch, and its twin for kernels that refuse it.
const TYPED: &str = "sched_switch";
const RAW: &str = "sched_switch_raw";

/// Rows that are read CPU by CPU in one go: so many of a bank lie in one page of memory, and so many rows fit the cache.
const BLOCK: usize = 256;

/// A cgroup that has a slot.
struct Live {
    key: CgroupKey,
    slot: usize,
    /// What it had run, on all CPUs, when its waits were read, and now.
    ran_ns: u64,
    now_ns: u64,
    /// The kernel's 32-bit counts, and what they add up to.
    counts: Waits,
    queue: Queue,
}

/// The loaded programs and their maps. Dropping it detaches them.
pub struct Switch {
    cpus: Mapped<CpuState>,
    times: Mapped<RunTime>,
    waits: Mapped<Waits>,
    counts: Mapped<Counted>,
    owners: Mapped<Tag>,
    slots: BpfMap<MapData, Tag, u64>,
    free: BpfQueue<MapData, u64>,
    /// Cgroups with slots, and where they stand here; how many slots the CPUs said they took, as far as we found them.
    live: Vec<Live>,
    index: HashMap<CgroupKey, usize>,
    found: u64,
    /// Slots whose cgroups are gone, that a CPU may still remember, with what was read of them; and what was charged to such slots
    /// after that, on one of the CPUs that did.
    leaving: Vec<(usize, u64)>,
    late: Vec<RunTime>,
    possible: usize,
    slots_per_cpu: usize,
    counts_waits: bool,
    siblings: Result<Vec<Option<usize>>, String>,
    typed: bool,
    events: Option<Events>,
    object: Object,
}

impl Switch {
    /// Loads and attaches the programs, and sets every CPU's starting point. With `events`, the tier is [`Tier::Counters`].
    ///
    /// # Errors
    /// `absent` when the kernel lacks BTF, a field or BPF; `denied` when this process may not load programs;
    /// `broken` when the kernel refuses them for another reason.
    pub fn load(topology: &Topology, events: Option<Events>) -> Result<Self, Unavailable> {
        Self::start(topology.siblings(), topology.has_smt(), events, true)
    }

    /// The same for siblings that are said, and with the untyped program only where `typed` is false.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with(
        siblings: Result<Vec<Option<usize>>, String>,
        events: Option<Events>,
        typed: bool,
    ) -> Result<Self, Unavailable> {
        let any = siblings.as_ref().is_ok_and(|siblings| siblings.iter().any(Option::is_some));
        Self::start(siblings, any, events, typed)
    }

    /// `smt`: there are siblings, or may come to be.
    fn start(
        siblings: Result<Vec<Option<usize>>, String>,
        smt: bool,
        events: Option<Events>,
        typed: bool,
    ) -> Result<Self, Unavailable> {
        let smt = smt && siblings.is_ok();
        // A machine may be taken for a larger one, whose other CPUs are offline.
        let possible = possible_cpus().max(siblings.as_ref().map_or(0, Vec::len)).min(MAX_CPUS);
        let counted = if events.is_some() { size_of::<Counted>() } else { 0 };
        let slots = slots_for(possible, size_of::<RunTime>() + size_of::<Waits>() + counted);
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let word = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let bank = number(slots.saturating_mul(possible));
        let (mut object, known) = Object::open(
            offsets::switch,
            &[
                ("SLOTS_PER_CPU", word(slots)),
                ("POSSIBLE_CPUS", word(possible)),
                ("SIBLINGS", u64::from(smt)),
                ("COUNTING", u64::from(events.is_some())),
            ],
            &[
                ("CPUS", number(possible)),
                ("TIMES", bank),
                ("WAITS", bank),
                ("COUNTS", if events.is_some() { bank } else { 1 }),
                ("BASES", 1),
                ("JOBS", 1),
                ("JOB_UDP", 1),
                ("JOB_EVENTS", PAGE),
            ],
        )?;
        let mut this = Self {
            cpus: object.mapped("CPUS")?,
            times: object.mapped("TIMES")?,
            waits: object.mapped("WAITS")?,
            counts: object.mapped("COUNTS")?,
            owners: object.mapped("OWNERS")?,
            slots: BpfMap::try_from(object.take("SLOTS")?).map_err(|error| refused("open the map SLOTS", &error))?,
            free: BpfQueue::try_from(object.take("FREE")?).map_err(|error| refused("open the map FREE", &error))?,
            live: Vec::new(),
            index: HashMap::new(),
            found: 0,
            leaving: Vec::new(),
            late: vec![RunTime::default(); possible],
            possible,
            slots_per_cpu: slots,
            counts_waits: known.setting("COUNTS_WAITS") != 0,
            siblings: Ok(Vec::new()),
            typed,
            events,
            object,
        };
        for slot in 0..slots {
            this.free.push(word(slot), 0).map_err(|error| refused("fill the map FREE", &error))?;
        }
        if let Some(events) = &this.events {
            for (counter, name) in MAPS.into_iter().enumerate() {
                let put = match this.object.map(name)? {
                    Map::PerfEventArray(map) => events.put(counter, map.fd().as_fd().as_raw_fd()),
                    _ => Err(io::Error::other("it is of another kind")),
                };
                put.map_err(|error| {
                    Unavailable::new(Reason::of(&error), format!("cannot fill the map {name}: {error}"))
                })?;
            }
        }
        this.pair(siblings);
        this.object.load_runnable(KICK)?;
        this.attach()?;
        this.object.loaded();
        this.close_open_slices().map_err(|error| refused("run charge_running", &error))?;
        Ok(this)
    }

    fn attach(&mut self) -> Result<(), Unavailable> {
        let mut before = String::new();
        if self.typed {
            let attached = (|| {
                let (ebpf, btf) = self.object.types().ok_or(aya::programs::ProgramError::NotLoaded)?;
                let program = ebpf.program_mut(TYPED).ok_or(aya::programs::ProgramError::NotLoaded)?;
                let program: &mut BtfTracePoint = program.try_into()?;
                program.load("sched_switch", btf)?;
                program.attach()
            })();
            match attached {
                Ok(_) => return Ok(()),
                Err(error) => {
                    before = format!("; before, with types: {}", refused("attach sched_switch", &error).detail);
                    tracing::debug!("trying the untyped program{before}");
                    self.typed = false;
                }
            }
        }
        let program: &mut RawTracePoint = self.object.program(RAW)?;
        let attached = program.load().and_then(|()| program.attach("sched_switch"));
        attached.map(|_| ()).map_err(|error| {
            let Unavailable { reason, detail } = refused("attach sched_switch", &error);
            Unavailable::new(reason, detail + &before)
        })
    }

    /// Tells each CPU who shares its core.
    fn pair(&mut self, siblings: Result<Vec<Option<usize>>, String>) {
        for cpu in 0..self.possible {
            let sibling = siblings.as_ref().ok().and_then(|siblings| siblings.get(cpu).copied().flatten());
            let number = sibling.filter(|sibling| *sibling < self.possible).map_or(0, |sibling| sibling + 1);
            let number = u32::try_from(number).unwrap_or(0);
            // SAFETY: an element of the mapping; only we write this field, and the programs read it whole.
            unsafe { (&raw mut (*self.cpus.at(cpu)).sibling).write_volatile(number) };
        }
        self.siblings = siblings;
    }

    /// Charges what runs on each CPU at this moment, so that a task that never switches is in the reading too.
    fn close_open_slices(&mut self) -> Result<(), aya::programs::ProgramError> {
        let forget = !self.leaving.is_empty();
        for cpu in 0..self.possible {
            if forget {
                // SAFETY: an element of the mapping; the field is one word, which the program on that CPU clears.
                unsafe { (&raw mut (*self.cpus.at(cpu)).forget).write_volatile(1) };
            }
            let online = self.object.run(KICK, u32::try_from(cpu).ok())?;
            if forget && !online {
                // Nothing runs there that could remember.
                let state = self.cpus.at(cpu);
                // SAFETY: an element of the mapping; single words, which the programs read whole.
                unsafe {
                    (&raw mut (*state).last.set).write_volatile(0);
                    for place in 0..KNOWN {
                        (&raw mut (*state).known[place].set).write_volatile(0);
                    }
                }
            }
        }
        self.give_back();
        Ok(())
    }

    /// Makes slots free that no CPU remembers any more.
    fn give_back(&mut self) {
        for (slot, read_ns) in std::mem::take(&mut self.leaving) {
            let (mut ran_ns, mut last) = (0u64, 0);
            for cpu in 0..self.possible {
                let bank = self.bank(cpu, slot);
                let time = self.times.get(bank);
                if time != RunTime::default() {
                    (ran_ns, last) = (ran_ns.wrapping_add(time.alone_ns).wrapping_add(time.shared_ns), cpu);
                }
                self.times.set(bank, RunTime::default());
                self.waits.set(bank, Waits::default());
                if self.events.is_some() {
                    self.counts.set(bank, Counted::default());
                }
            }
            // A cgroup that is gone ran no more; one that only looked so may have.
            self.late[last].alone_ns = self.late[last].alone_ns.wrapping_add(ran_ns.wrapping_sub(read_ns));
            let _ = self.free.push(u64::try_from(slot).unwrap_or(u64::MAX), 0);
        }
    }

    /// Finds the owners of slots that were taken since the last look.
    fn welcome(&mut self) {
        // SAFETY: elements of the mapping; the field is one word.
        let taken = (0..self.possible)
            .map(|cpu| unsafe { (&raw const (*self.cpus.at(cpu)).newcomers).read_volatile() })
            .fold(0, u64::wrapping_add);
        if taken == self.found {
            return;
        }
        for slot in 0..self.slots_per_cpu {
            let tag = self.owners.get(slot);
            if tag == 0 {
                continue;
            }
            let key = CgroupKey::of(tag);
            if let std::collections::hash_map::Entry::Vacant(place) = self.index.entry(key) {
                place.insert(self.live.len());
                self.live.push(Live {
                    key,
                    slot,
                    ran_ns: 0,
                    now_ns: 0,
                    counts: Waits::default(),
                    queue: Queue::default(),
                });
                self.found = self.found.wrapping_add(1);
            }
        }
    }

    fn bank(&self, cpu: usize, slot: usize) -> usize {
        cpu * self.slots_per_cpu + slot
    }

    /// What a read without the closing of slices gives: memory only.
    pub fn read_banks(&mut self, out: &mut Reading) {
        self.welcome();
        out.rows.resize_with(self.live.len(), || (CgroupKey { id: 0, hierarchy: 0 }, Vec::new()));
        for (block, rows) in self.live.chunks_mut(BLOCK).zip(out.rows.chunks_mut(BLOCK)) {
            // Apart from the rest of what is known of a cgroup, so that the walk through the banks stays in the cache.
            let (mut slots, mut sums) = ([0; BLOCK], [0u64; BLOCK]);
            for ((live, slot), (key, row)) in block.iter().zip(&mut slots).zip(rows.iter_mut()) {
                (*key, *slot) = (live.key, live.slot);
                row.resize(self.possible, RunTime::default());
            }
            for cpu in 0..self.possible {
                let bank = self.times.part(cpu * self.slots_per_cpu, self.slots_per_cpu);
                for (((_, row), slot), sum) in rows.iter_mut().zip(&slots).zip(&mut sums) {
                    let time: RunTime = bank.get(*slot);
                    *sum = sum.wrapping_add(time.alone_ns).wrapping_add(time.shared_ns);
                    // The buffer holds the reading before, and most of it still stands: what is not written need not be carried.
                    if row[cpu] != time {
                        row[cpu] = time;
                    }
                }
            }
            block.iter_mut().zip(sums).for_each(|(live, sum)| live.now_ns = sum);
        }
        self.read_queues(out);
        self.read_counters(out);
        out.overflow.clear();
        out.missed = 0;
        for cpu in 0..self.possible {
            let state = self.cpus.get(cpu);
            let (overflow, late) = (state.overflow, self.late[cpu]);
            out.overflow.push(RunTime {
                alone_ns: overflow.alone_ns.wrapping_add(late.alone_ns),
                shared_ns: overflow.shared_ns.wrapping_add(late.shared_ns),
            });
            out.missed = out.missed.wrapping_add(state.missed);
        }
    }

    fn read_queues(&mut self, out: &mut Reading) {
        out.queues.clear();
        if !self.counts_waits {
            return;
        }
        for (at, (_, row)) in out.rows.iter().enumerate() {
            let Live { slot, ran_ns, now_ns, .. } = self.live[at];
            // Who did not run did not end a stint.
            if now_ns != ran_ns {
                let banks = (0..self.possible).filter(|cpu| row[*cpu] != RunTime::default());
                let now = sum(banks.map(|cpu| self.waits.get(self.bank(cpu, slot))));
                let live = &mut self.live[at];
                live.queue.add(&since(&now, &live.counts));
                (live.counts, live.ran_ns) = (now, now_ns);
            }
            out.queues.push((self.live[at].key, self.live[at].queue));
        }
    }

    fn read_counters(&self, out: &mut Reading) {
        if self.events.is_none() {
            out.counted.clear();
            return;
        }
        out.counted.resize_with(self.live.len(), Vec::new);
        for (live, row) in self.live.iter().zip(&mut out.counted) {
            row.clear();
            row.extend((0..self.possible).map(|cpu| self.counts.get(self.bank(cpu, live.slot)).events));
        }
        out.counter_time = [0, 0];
        for cpu in 0..self.possible {
            let time = self.cpus.get(cpu).counter_time;
            out.counter_time.iter_mut().zip(time).for_each(|(sum, time)| *sum = sum.wrapping_add(time));
        }
    }
}

impl Reader for Switch {
    fn tier(&self) -> Tier {
        if self.events.is_some() { Tier::Counters } else { Tier::Switch }
    }

    fn knows(&self) -> Knows {
        Knows { cpus: true, siblings: self.siblings.is_ok() }
    }

    fn read(&mut self, out: &mut Reading) -> io::Result<()> {
        self.close_open_slices().map_err(io::Error::other)?;
        self.read_banks(out);
        Ok(())
    }

    fn forget(&mut self, key: &CgroupKey) {
        let Some(at) = self.index.remove(key) else { return };
        let Live { slot, now_ns, .. } = self.live.swap_remove(at);
        if let Some(moved) = self.live.get(at) {
            self.index.insert(moved.key, at);
        }
        // Who runs in it all the same gets another slot, once every CPU has forgotten this one.
        let _ = self.slots.remove(&key.tag());
        self.owners.set(slot, 0);
        self.leaving.push((slot, now_ns));
    }

    fn replace(&mut self, topology: &Topology) {
        if self.siblings.is_ok() {
            self.pair(topology.siblings());
        }
    }

    fn costs(&self) -> Vec<ProgramRow> {
        let mut costs = self.object.costs(&[if self.typed { TYPED } else { RAW }, KICK]);
        // One name whichever of the twins runs.
        costs.iter_mut().filter(|cost| cost.name == RAW).for_each(|cost| cost.name = TYPED);
        costs
    }

    fn detail(&self) -> String {
        let mut detail = "eBPF on sched_switch".to_owned();
        if !self.typed {
            detail.push_str(" (untyped: the kernel refused the typed program)");
        }
        if let Err(why) = &self.siblings {
            detail.push_str(&format!("; {why}"));
        }
        if self.slots_per_cpu < MAX_CGROUPS {
            detail.push_str(&format!("; {} cgroups at most on so many CPUs", self.slots_per_cpu));
        }
        detail
    }
}

/// Counts of all CPUs, summed as the kernel keeps them: modulo 2^32, which a sum does not change.
fn sum(banks: impl Iterator<Item = Waits>) -> Waits {
    banks.fold(Waits::default(), |mut sum, one| {
        sum.wait_ns = sum.wait_ns.wrapping_add(one.wait_ns);
        sum.classes.iter_mut().zip(one.classes).for_each(|(sum, count)| *sum = sum.wrapping_add(count));
        sum.ends.iter_mut().zip(one.ends).for_each(|(sum, count)| *sum = sum.wrapping_add(count));
        sum
    })
}

/// What came between two sums: between two ticks no count comes round.
fn since(now: &Waits, last: &Waits) -> Queue {
    let mut waits = [0; WAIT_CLASSES];
    for ((grown, now), last) in waits.iter_mut().zip(now.classes).zip(last.classes) {
        *grown = u64::from(now.wrapping_sub(last));
    }
    Queue {
        wait_ns: now.wait_ns.wrapping_sub(last.wait_ns),
        waits,
        voluntary: u64::from(now.ends[0].wrapping_sub(last.ends[0])),
        involuntary: u64::from(now.ends[1].wrapping_sub(last.ends[1])),
    }
}
