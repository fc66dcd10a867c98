//! Tiers `switch` and `counters`: load the eBPF programs, charge the running task of every CPU,
//! read the banks.
//!
//! Loading needs CAP_BPF and CAP_PERFMON. Reading the banks is reading memory; running
//! `charge_running` and freeing a slot are system calls that need no capability since 5.19, so the
//! probe drops both.

#![allow(unsafe_code)]

mod moves;
mod open;

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::maps::{HashMap as BpfMap, Map, MapData, Stack as BpfStack};
use probe_ebpf::{
    CgroupKey, HardwareCounts, LongWaits, MAX_CGROUPS, MAX_CPUS, RunQueueCounts, RunTime, SLOT_CACHE_SIZE, SlotCounts,
    Tag, WAIT_BUCKETS, cpu_bytes,
};

use self::{
    moves::Moves,
    open::{OpenRun, OpenRuns},
};
use super::{
    cgroup_events::{self, CgroupEvents},
    counters::{MAPS, PerfCounters},
    mapped_array::{MappedArray, MappedBanks},
    object::{BpfObject, PAGE, load_error, possible_cpus, slots_for},
    offsets,
    program::ProgramError,
    program_log::ProgramLog,
    reader::{CpuReader, CpuReading, RunQueueStats, Tier, TierCapabilities},
};
use crate::{
    cgroup::changes::CgroupChanges,
    cpu::reader::ProgramRow,
    host::{
        availability::{Reason, Unavailable},
        process::clock_ns,
        topology::Topology,
    },
};

/// The program that user space runs on each CPU.
const CHARGE_RUNNING: &str = "charge_running";
/// The `sched_switch` program, and its raw tracepoint variant for kernels that refuse the typed
/// one.
const TYPED: &str = "sched_switch";
const RAW: &str = "sched_switch_raw";

/// Rows that are read per pass over the CPUs: this many elements of a bank are 16 kB of memory, and
/// this many rows fit the cache.
const BLOCK: usize = 256;

/// A cgroup that has a slot.
struct TrackedCgroup {
    key: CgroupKey,
    slot: usize,
    /// Total run time when its waits were last read, and now.
    ran_ns: u64,
    now_ns: u64,
    /// The 32-bit counts of the eBPF programs, and their cumulative sums.
    counts: RunQueueCounts,
    queue: RunQueueStats,
}

/// The loaded programs and their maps. Dropping this detaches them.
pub struct SwitchTier {
    banks: MappedBanks,
    counts: MappedArray<HardwareCounts>,
    owners: MappedArray<Tag>,
    slots: BpfMap<MapData, Tag, u64>,
    free: BpfStack<MapData, u64>,
    /// Cgroups with slots, their index in that list, and the number of assigned slots that were
    /// found.
    cgroups: Vec<TrackedCgroup>,
    index: HashMap<CgroupKey, usize>,
    slots_found: u64,
    /// Slots of removed cgroups that may still be in a CPU's cache, with the run time that was
    /// read; and per CPU, the run time that was charged to such slots afterwards.
    leaving_slots: Vec<(usize, u64)>,
    late_time: Vec<RunTime>,
    possible: usize,
    slots_per_cpu: usize,
    counts_waits: bool,
    siblings: Result<Vec<Option<usize>>, String>,
    typed: bool,
    events: Option<PerfCounters>,
    /// Per CPU, how long its hardware counters were enabled when it was last charged; and that
    /// time, as the programs count it, of counters that ended.
    enabled_ns: Vec<u64>,
    ended_time: [u64; 2],
    /// Why counters that ended could not be opened again.
    counters_ended: Option<String>,
    /// Without them, new cgroups are found by scans.
    cgroup_events: Result<CgroupEvents, Unavailable>,
    /// Without them, a task that is moved while it runs takes its run along.
    moves: Result<Moves, Unavailable>,
    /// `None` where the kernel's clocks do not show how long a running task has run.
    open: Option<OpenRuns>,
    log: Option<ProgramLog>,
    object: BpfObject,
}

impl SwitchTier {
    /// Loads and attaches the programs, and sets every CPU's starting point. With `events`, the
    /// tier is [`Tier::Counters`].
    ///
    /// # Errors
    /// `absent` when the kernel lacks BTF, a field or BPF; `denied` when this process may not load
    /// programs; `broken` when the kernel refuses them for another reason.
    pub fn load(topology: &Topology, events: Option<PerfCounters>) -> Result<Self, Unavailable> {
        Self::start(topology.siblings(), topology.has_smt(), events, true)
    }

    /// As [`Self::load`], with the given siblings; only the raw tracepoint variant if `typed` is
    /// false.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with(
        siblings: Result<Vec<Option<usize>>, String>,
        events: Option<PerfCounters>,
        typed: bool,
    ) -> Result<Self, Unavailable> {
        let any = siblings.as_ref().is_ok_and(|siblings| siblings.iter().any(Option::is_some));
        Self::start(siblings, any, events, typed)
    }

    /// `smt`: there are SMT siblings, or CPUs that come online may have some.
    fn start(
        siblings: Result<Vec<Option<usize>>, String>,
        smt: bool,
        events: Option<PerfCounters>,
        typed: bool,
    ) -> Result<Self, Unavailable> {
        let smt = smt && siblings.is_ok();
        // The given siblings may be those of a larger machine, whose other CPUs are offline.
        let possible = possible_cpus().max(siblings.as_ref().map_or(0, Vec::len)).min(MAX_CPUS);
        let counted = if events.is_some() { size_of::<HardwareCounts>() } else { 0 };
        let slots = slots_for(possible, size_of::<SlotCounts>() + size_of::<LongWaits>() + counted);
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let word = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let bank = number(slots.saturating_mul(possible));
        let (mut object, layout) = BpfObject::open(
            |btf| {
                let mut layout = offsets::switch(btf)?;
                let one = layout.setting("READS_CLOCK") != 0 && open::one_clock();
                layout.settings.push(("ONE_CLOCK", u64::from(one)));
                Ok(layout)
            },
            &[
                ("SLOTS_PER_CPU", word(slots)),
                ("POSSIBLE_CPUS", word(possible)),
                ("SIBLINGS", u64::from(smt)),
                ("COUNTING", u64::from(events.is_some())),
                ("V1_HIERARCHY", cgroup_events::v1_hierarchy()),
            ],
            &[
                ("CPUS", number(possible)),
                ("TIMES", 1),
                ("COUNTS", if events.is_some() { bank } else { 1 }),
                ("BASES", 1),
                ("JOBS", 1),
                ("JOB_UDP", 1),
                ("CREATORS", 1),
                ("JOB_EVENTS", PAGE),
                ("THREAD_ENDS", PAGE),
                ("CGROUP_EVENTS", number(cgroup_events::RING_BYTES)),
                ("MOVES", number(moves::RING_BYTES)),
            ],
            &[("CPUS", number(cpu_bytes(slots)))],
        )?;
        let mut this = Self {
            banks: object.mapped_banks(possible, slots)?,
            counts: object.mapped("COUNTS")?,
            owners: object.mapped("OWNERS")?,
            slots: BpfMap::try_from(object.take("SLOTS")?).map_err(|error| load_error("open the map SLOTS", &error))?,
            free: BpfStack::try_from(object.take("FREE")?).map_err(|error| load_error("open the map FREE", &error))?,
            cgroups: Vec::new(),
            index: HashMap::new(),
            slots_found: 0,
            leaving_slots: Vec::new(),
            late_time: vec![RunTime::default(); possible],
            possible,
            slots_per_cpu: slots,
            counts_waits: layout.setting("COUNTS_WAITS") != 0,
            siblings: Ok(Vec::new()),
            typed,
            events,
            enabled_ns: vec![0; possible],
            ended_time: [0, 0],
            counters_ended: None,
            cgroup_events: Err(Unavailable::new(Reason::Absent, "is being opened")),
            moves: Err(Unavailable::new(Reason::Absent, "is being opened")),
            open: (layout.setting("ONE_CLOCK") != 0).then(OpenRuns::default),
            log: object.log(),
            object,
        };
        for slot in (0..slots).rev() {
            this.free.push(word(slot), 0).map_err(|error| load_error("fill the map FREE", &error))?;
        }
        this.store_counters(None)?;
        this.set_siblings(siblings);
        if this.typed {
            this.object.load_ahead(CHARGE_RUNNING, TYPED, c"sched_switch");
        }
        this.object.load_runnable(CHARGE_RUNNING)?;
        // Before the first task of a new cgroup is counted.
        this.cgroup_events = CgroupEvents::attach(&mut this.object, &layout);
        this.attach()?;
        this.moves = Moves::attach(&mut this.object);
        this.object.drop_unloaded();
        this.charge_running().map_err(|error| load_error("run charge_running", &error))?;
        Ok(this)
    }

    fn attach(&mut self) -> Result<(), Unavailable> {
        let mut typed_error = String::new();
        if self.typed {
            match self.object.attach_typed(TYPED, c"sched_switch") {
                Ok(()) => return Ok(()),
                Err(error) => {
                    typed_error = format!("; typed program: {}", load_error("attach sched_switch", &error).detail);
                    tracing::debug!("using the raw tracepoint variant{typed_error}");
                    self.typed = false;
                }
            }
        }
        self.object.attach_raw(RAW, c"sched_switch").map_err(|error| {
            let Unavailable { reason, detail } = load_error("attach sched_switch", &error);
            Unavailable::new(reason, detail + &typed_error)
        })
    }

    /// Stores the descriptors of the hardware counters of all CPUs, or of `only` one, in the maps
    /// through which the programs read them.
    fn store_counters(&self, only: Option<usize>) -> Result<(), Unavailable> {
        let Some(events) = &self.events else { return Ok(()) };
        for (counter, name) in MAPS.into_iter().enumerate() {
            let stored = match self.object.map(name)? {
                Map::PerfEventArray(map) => events.store(counter, map.fd().as_fd().as_raw_fd(), only),
                _ => Err(io::Error::other("it is not a perf event array")),
            };
            stored.map_err(|error| {
                Unavailable::new(Reason::of(&error), format!("cannot fill the map {name}: {error}"))
            })?;
        }
        Ok(())
    }

    /// Opens the hardware counters of an online CPU if they do not run, and returns whether it did.
    ///
    /// The kernel ends those of a CPU that goes offline, for good (kernel/events/core.c,
    /// perf_event_exit_cpu): the time that they were enabled, which otherwise always grows, stands
    /// still. It depends on nothing else, so a CPU that was offline only between two readings is
    /// found too. The kernel refuses new ones to a probe that has dropped CAP_PERFMON, unless
    /// `kernel.perf_event_paranoid` is 0 or less.
    fn renew_counters(&mut self, cpu: usize) -> bool {
        let Some(events) = &mut self.events else { return false };
        // SAFETY: an element of the mapping; the program on that CPU writes these words.
        let time = unsafe { (&raw const (*self.banks.state(cpu)).counter_time).read_volatile() };
        if std::mem::replace(&mut self.enabled_ns[cpu], time[0]) != time[0] {
            return false;
        }
        let renewed = match events.reopen(cpu) {
            Ok(()) => self.store_counters(Some(cpu)).map_err(|error| error.detail),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = renewed {
            if self.counters_ended.is_none() {
                let why = format!(
                    "CPU {cpu} was offline, and its hardware counters cannot be opened again: {error}. Until the \
                     probe is restarted, CPU time is not weighted by cycles"
                );
                tracing::warn!("{why}");
                self.counters_ended = Some(why);
            }
            return false;
        }
        self.ended_time.iter_mut().zip(time).for_each(|(sum, time)| *sum = sum.wrapping_add(time));
        self.counters_ended = None;
        true
    }

    /// Sets the SMT sibling of each CPU.
    fn set_siblings(&mut self, siblings: Result<Vec<Option<usize>>, String>) {
        for cpu in 0..self.possible {
            let sibling = siblings.as_ref().ok().and_then(|siblings| siblings.get(cpu).copied().flatten());
            let number = sibling.filter(|sibling| *sibling < self.possible).map_or(0, |sibling| sibling + 1);
            let number = u32::try_from(number).unwrap_or(0);
            // SAFETY: an element of the mapping; only this process writes this field, and the
            // programs read it in one piece.
            unsafe { (&raw mut (*self.banks.state(cpu)).sibling).write_volatile(number) };
        }
        self.siblings = siblings;
    }

    /// Charges the task that is running on each CPU, so that a task that never switches is in the
    /// reading too.
    fn charge_running(&mut self) -> Result<(), ProgramError> {
        let clear_cache = !self.leaving_slots.is_empty();
        // SAFETY: a call without arguments.
        let own = usize::try_from(unsafe { libc::sched_getcpu() }).ok();
        for cpu in 0..self.possible {
            if self.open.is_some() && own == Some(cpu) {
                // Makes the kernel update this CPU's clock (kernel/sched/core.c,
                // task_sched_runtime), which the open runs of all CPUs are measured by.
                let _ = clock_ns(libc::CLOCK_THREAD_CPUTIME_ID);
            }
            if clear_cache {
                // SAFETY: an element of the mapping; the field is one word, which the program on
                // that CPU clears.
                unsafe { (&raw mut (*self.banks.state(cpu)).clear_cache).write_volatile(1) };
            }
            let number = u32::try_from(cpu).ok();
            let mut online = self.object.run(CHARGE_RUNNING, number)?;
            if online && self.renew_counters(cpu) {
                // So that this reading has the time of the new counters.
                online = self.object.run(CHARGE_RUNNING, number)?;
            }
            if !online {
                // SAFETY: an element of the mapping; no program runs on an offline CPU.
                unsafe { (&raw mut (*self.banks.state(cpu)).open_slot).write_volatile(0) };
            }
            if clear_cache && !online {
                // No program runs on an offline CPU, so its cache is cleared here.
                let state = self.banks.state(cpu);
                // SAFETY: an element of the mapping; single words, which the programs read in one
                // piece.
                unsafe {
                    (&raw mut (*state).last.set).write_volatile(0);
                    for entry in 0..SLOT_CACHE_SIZE {
                        (&raw mut (*state).slot_cache[entry].set).write_volatile(0);
                    }
                }
            }
        }
        self.set_clock_offset();
        self.free_slots();
        Ok(())
    }

    /// Sets by how much `CLOCK_MONOTONIC` is ahead of the clocks of the run queues: as much as of
    /// the clock that was updated last, which is that of this thread's CPU.
    fn set_clock_offset(&self) {
        if self.open.is_none() {
            return;
        }
        let gaps = (0..self.possible).filter_map(|cpu| {
            let state = self.banks.state(cpu);
            // SAFETY: an element of the mapping; single words.
            let (slot, gap) = unsafe {
                ((&raw const (*state).open_slot).read_volatile(), (&raw const (*state).clock_gap_ns).read_volatile())
            };
            (slot != 0).then_some(gap)
        });
        let Some(least) = gaps.min() else { return };
        for cpu in 0..self.possible {
            // SAFETY: an element of the mapping; only this process writes this field, and the
            // programs read it in one piece.
            unsafe { (&raw mut (*self.banks.state(cpu)).clock_offset_ns).write_volatile(least) };
        }
    }

    /// Frees the leaving slots, which are in no CPU's cache any more.
    fn free_slots(&mut self) {
        for (slot, read_ns) in std::mem::take(&mut self.leaving_slots) {
            let (mut ran_ns, mut last) = (0u64, 0);
            for cpu in 0..self.possible {
                let (counts, waits) = (self.banks.counts(cpu), self.banks.long_waits(cpu));
                let time = counts.get(slot).time;
                if time != RunTime::default() {
                    (ran_ns, last) = (ran_ns.wrapping_add(time.alone_ns).wrapping_add(time.shared_ns), cpu);
                }
                counts.set(slot, SlotCounts::default());
                waits.set(slot, LongWaits::default());
                if self.events.is_some() {
                    self.counts.set(self.bank(cpu, slot), HardwareCounts::default());
                }
            }
            // A removed cgroup ran no more; one that only appeared to be removed may have.
            // An open run may have been read as a little too long.
            self.late_time[last].alone_ns = self.late_time[last].alone_ns.wrapping_add(ran_ns.saturating_sub(read_ns));
            let _ = self.free.push(u64::try_from(slot).unwrap_or(u64::MAX), 0);
        }
    }

    /// Finds the cgroups of slots that were assigned since the last call.
    fn find_new_slots(&mut self) {
        // SAFETY: elements of the mapping; the field is one word.
        let taken = (0..self.possible)
            .map(|cpu| unsafe { (&raw const (*self.banks.state(cpu)).slots_taken).read_volatile() })
            .fold(0, u64::wrapping_add);
        if taken == self.slots_found {
            return;
        }
        for slot in 0..self.slots_per_cpu {
            let tag = self.owners.get(slot);
            if tag == 0 {
                continue;
            }
            let key = CgroupKey::of(tag);
            // One whose slot cannot be mapped is found by a later call.
            if slot >= self.banks.mapped() && self.banks.extend(slot + 1).is_err() {
                continue;
            }
            if let std::collections::hash_map::Entry::Vacant(entry) = self.index.entry(key) {
                entry.insert(self.cgroups.len());
                self.cgroups.push(TrackedCgroup {
                    key,
                    slot,
                    ran_ns: 0,
                    now_ns: 0,
                    counts: RunQueueCounts::default(),
                    queue: RunQueueStats::default(),
                });
                self.slots_found = self.slots_found.wrapping_add(1);
            }
        }
    }

    fn bank(&self, cpu: usize, slot: usize) -> usize {
        cpu * self.slots_per_cpu + slot
    }

    /// Reads the banks without charging running tasks first: memory accesses only.
    pub fn read_banks(&mut self, out: &mut CpuReading) {
        self.find_new_slots();
        out.rows.resize_with(self.cgroups.len(), || (CgroupKey { id: 0, hierarchy: 0 }, Vec::new()));
        for (block, rows) in self.cgroups.chunks_mut(BLOCK).zip(out.rows.chunks_mut(BLOCK)) {
            // Separate arrays, so that the pass over the banks stays in the cache.
            let (mut slots, mut sums) = ([0; BLOCK], [0u64; BLOCK]);
            for ((cgroup, slot), (key, row)) in block.iter().zip(&mut slots).zip(rows.iter_mut()) {
                (*key, *slot) = (cgroup.key, cgroup.slot);
                row.resize(self.possible, RunTime::default());
            }
            for cpu in 0..self.possible {
                let bank = self.banks.counts(cpu);
                for (((_, row), slot), sum) in rows.iter_mut().zip(&slots).zip(&mut sums) {
                    let time = bank.get_time(*slot);
                    *sum = sum.wrapping_add(time.alone_ns).wrapping_add(time.shared_ns);
                    // The buffer contains the previous reading, most of which has not changed;
                    // unmodified cache lines need not be written back.
                    if row[cpu] != time {
                        row[cpu] = time;
                    }
                }
            }
            block.iter_mut().zip(sums).for_each(|(cgroup, sum)| cgroup.now_ns = sum);
        }
        if let Ok(moves) = &mut self.moves {
            moves.correct(&self.index, &mut out.rows);
        }
        self.read_queues(out);
        self.read_counters(out);
        out.overflow.clear();
        out.missed = 0;
        for cpu in 0..self.possible {
            let state = self.banks.state(cpu);
            // SAFETY: an element of the mapping; fields of single words.
            let (overflow, missed) = unsafe {
                ((&raw const (*state).overflow).read_volatile(), (&raw const (*state).missed).read_volatile())
            };
            let late = self.late_time[cpu];
            out.overflow.push(RunTime {
                alone_ns: overflow.alone_ns.wrapping_add(late.alone_ns),
                shared_ns: overflow.shared_ns.wrapping_add(late.shared_ns),
            });
            out.missed = out.missed.wrapping_add(missed);
        }
    }

    /// Adds the open runs that `charge_running` noted.
    fn add_open_runs(&mut self, out: &mut CpuReading) {
        let Some(open) = &mut self.open else { return };
        open.runs.clear();
        for cpu in 0..self.possible {
            let state = self.banks.state(cpu);
            // SAFETY: an element of the mapping; single words.
            let [slot, bank_ns, ahead_ns, gap_ns] = unsafe {
                [
                    (&raw const (*state).open_slot).read_volatile(),
                    (&raw const (*state).open_bank_ns).read_volatile(),
                    (&raw const (*state).open_ahead_ns).read_volatile(),
                    (&raw const (*state).clock_gap_ns).read_volatile(),
                ]
            };
            let slot = usize::try_from(slot).ok().and_then(|slot| slot.checked_sub(1));
            // A slot that is not mapped has no row yet.
            let Some(slot) = slot.filter(|slot| *slot < self.banks.mapped()) else { continue };
            let since_ns = self.banks.counts(cpu).get_time(slot).ns().saturating_sub(bank_ns);
            open.runs.push(OpenRun { cpu, key: CgroupKey::of(self.owners.get(slot)), ahead_ns, gap_ns, since_ns });
        }
        open.add(&self.index, &mut out.rows);
    }

    fn read_queues(&mut self, out: &mut CpuReading) {
        out.queues.clear();
        if !self.counts_waits {
            return;
        }
        for (at, (_, row)) in out.rows.iter().enumerate() {
            let TrackedCgroup { slot, ran_ns, now_ns, .. } = self.cgroups[at];
            // A cgroup that did not run had no switch-out.
            if now_ns != ran_ns {
                let banks = (0..self.possible).filter(|cpu| row[*cpu] != RunTime::default());
                let now = sum(banks
                    .map(|cpu| queue_counts(&self.banks.counts(cpu).get(slot), &self.banks.long_waits(cpu).get(slot))));
                let cgroup = &mut self.cgroups[at];
                cgroup.queue.add(&since(&now, &cgroup.counts));
                (cgroup.counts, cgroup.ran_ns) = (now, now_ns);
            }
            out.queues.push((self.cgroups[at].key, self.cgroups[at].queue));
        }
    }

    fn read_counters(&self, out: &mut CpuReading) {
        if self.events.is_none() {
            out.counted.clear();
            return;
        }
        out.counted.resize_with(self.cgroups.len(), Vec::new);
        for (cgroup, row) in self.cgroups.iter().zip(&mut out.counted) {
            row.clear();
            row.extend((0..self.possible).map(|cpu| self.counts.get(self.bank(cpu, cgroup.slot)).events));
        }
        out.counter_time = self.ended_time;
        for cpu in 0..self.possible {
            // SAFETY: an element of the mapping; a field of single words.
            let time = unsafe { (&raw const (*self.banks.state(cpu)).counter_time).read_volatile() };
            out.counter_time.iter_mut().zip(time).for_each(|(sum, time)| *sum = sum.wrapping_add(time));
        }
    }
}

impl CpuReader for SwitchTier {
    fn tier(&self) -> Tier {
        if self.events.is_some() { Tier::Counters } else { Tier::Switch }
    }

    fn capabilities(&self) -> TierCapabilities {
        TierCapabilities { cpus: true, siblings: self.siblings.is_ok() }
    }

    fn read(&mut self, out: &mut CpuReading) -> io::Result<()> {
        self.charge_running().map_err(io::Error::other)?;
        if let Ok(moves) = &mut self.moves {
            moves.drain();
        }
        self.read_banks(out);
        self.add_open_runs(out);
        self.log.iter_mut().for_each(ProgramLog::drain);
        Ok(())
    }

    fn lag_ns(&self, tick_ns: u64) -> u64 {
        if self.open.is_some() { open::lag_ns(tick_ns) } else { tick_ns }
    }

    fn take_cgroup_changes(&mut self) -> Option<CgroupChanges> {
        let mut changes = CgroupChanges::default();
        self.cgroup_events.as_mut().ok()?.drain(&mut changes);
        Some(changes)
    }

    fn forget(&mut self, key: &CgroupKey) {
        let Some(at) = self.index.remove(key) else { return };
        let TrackedCgroup { slot, now_ns, .. } = self.cgroups.swap_remove(at);
        if let Some(moved) = self.cgroups.get(at) {
            self.index.insert(moved.key, at);
        }
        // A task that still runs in it gets another slot, once every CPU has cleared its cache.
        let _ = self.slots.remove(&key.tag());
        self.owners.set(slot, 0);
        if let Ok(moves) = &mut self.moves {
            moves.forget(key);
        }
        let open_ns = self.open.as_mut().map_or(0, |open| open.forget(key));
        self.leaving_slots.push((slot, now_ns.saturating_add(open_ns)));
    }

    fn update_topology(&mut self, topology: &Topology) {
        if self.siblings.is_ok() {
            self.set_siblings(topology.siblings());
        }
    }

    fn costs(&self) -> Vec<ProgramRow> {
        let mut costs = self.object.costs(&[if self.typed { TYPED } else { RAW }, CHARGE_RUNNING]);
        // The same name for both variants.
        costs.iter_mut().filter(|cost| cost.name == RAW).for_each(|cost| cost.name = TYPED);
        costs
    }

    fn detail(&self) -> String {
        let mut detail = "eBPF on sched_switch".to_owned();
        if !self.typed {
            detail.push_str(" (raw tracepoint: the kernel refused the typed program)");
        }
        if let Err(why) = &self.siblings {
            detail.push_str(&format!("; {why}"));
        }
        if let Err(why) = &self.cgroup_events {
            detail.push_str(&format!("; new cgroups are found by scans ({why})"));
        }
        if let Err(why) = &self.moves {
            detail.push_str(&format!("; a task that is moved while it runs is charged up to a tick late ({why})"));
        }
        if let Some(why) = &self.counters_ended {
            detail.push_str(&format!("; {why}"));
        }
        if self.slots_per_cpu < MAX_CGROUPS {
            detail.push_str(&format!("; at most {} cgroups on this number of CPUs", self.slots_per_cpu));
        }
        detail
    }
}

/// The counts of a slot on one CPU.
fn queue_counts(counts: &SlotCounts, long: &LongWaits) -> RunQueueCounts {
    let mut all = [0; WAIT_BUCKETS];
    all.iter_mut().zip(counts.short_waits.iter().chain(&long.0)).for_each(|(all, count)| *all = *count);
    RunQueueCounts { wait_ns: counts.wait_ns, wait_buckets: all, switches: counts.switches }
}

/// Sums the counts of all CPUs modulo 2^32, in which the programs count.
fn sum(banks: impl Iterator<Item = RunQueueCounts>) -> RunQueueCounts {
    banks.fold(RunQueueCounts::default(), |mut sum, one| {
        sum.wait_ns = sum.wait_ns.wrapping_add(one.wait_ns);
        sum.wait_buckets.iter_mut().zip(one.wait_buckets).for_each(|(sum, count)| *sum = sum.wrapping_add(count));
        sum.switches.iter_mut().zip(one.switches).for_each(|(sum, count)| *sum = sum.wrapping_add(count));
        sum
    })
}

/// The difference of two sums; no count grows by 2^32 or more between two ticks.
fn since(now: &RunQueueCounts, last: &RunQueueCounts) -> RunQueueStats {
    let mut waits = [0; WAIT_BUCKETS];
    for ((delta, now), last) in waits.iter_mut().zip(now.wait_buckets).zip(last.wait_buckets) {
        *delta = u64::from(now.wrapping_sub(last));
    }
    RunQueueStats {
        wait_ns: now.wait_ns.wrapping_sub(last.wait_ns),
        waits,
        voluntary: u64::from(now.switches[0].wrapping_sub(last.switches[0])),
        involuntary: u64::from(now.switches[1].wrapping_sub(last.switches[1])),
    }
}
