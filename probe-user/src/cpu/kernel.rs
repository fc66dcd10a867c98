//! Tier `kernel`: the kernel's own counters of every cgroup and CPU, copied by an eBPF iterator
//! once per tick.
//!
//! No program runs at context switches. A running task is counted up to the last scheduler tick of
//! its CPU. Run-queue waits, context switches and SMT siblings are not counted.

use std::{
    collections::{HashMap, hash_map::Entry},
    io::{self, Read as _},
    os::fd::OwnedFd,
};

use probe_ebpf::{CgroupKey, RunTime, Tag, hierarchy};

use super::{
    btf::BtfError,
    cgroup_events::{self, CgroupEvents},
    files::{V1Cgroups, root_key},
    iterators,
    mapped_array::MappedArray,
    object::{BpfObject, PAGE, load_error, possible_cpus, slots_for},
    offsets,
    program_log::ProgramLog,
    reader::{CpuPaths, CpuReader, CpuReading, Tier, TierCapabilities},
    totals::{Columns, UsageTotals},
};
use crate::{
    cgroup::{
        changes::{CgroupChanges, RemovedCgroup},
        tree::Trees,
    },
    cpu::reader::ProgramRow,
    host::availability::{Reason, Unavailable},
};

const ITERATOR: &str = "read_cgroups";
const FIND_BASES: &str = "find_bases";
/// The kernel's function for iterators over cgroups (kernel/bpf/cgroup_iter.c, 6.1).
const ITERATOR_FUNCTION: &str = "bpf_iter_cgroup";

/// The loaded iterator and its maps.
pub struct KernelTier {
    times: MappedArray<RunTime>,
    owners: MappedArray<Tag>,
    cgroup_count: MappedArray<u64>,
    link: OwnedFd,
    possible: usize,
    /// Maximum number of cgroups per iteration.
    rows: usize,
    /// False when the last iteration exceeded that number.
    complete: bool,
    /// Last values by cgroup, with the number of their iteration.
    last: HashMap<CgroupKey, (Columns, u64)>,
    iterations: u64,
    /// Last run time of all tasks.
    last_total: Columns,
    /// Number of cgroups without a row, summed over iterations; their run time is in system.
    missed: u64,
    /// The v1 tree and its files, which the iterator does not cover.
    v1: Option<(Trees, V1Cgroups)>,
    totals: UsageTotals,
    /// Without them, new cgroups are found by scans.
    cgroup_events: Result<CgroupEvents, Unavailable>,
    /// Changes of the trees that were not taken yet.
    changes: CgroupChanges,
    log: Option<ProgramLog>,
    object: BpfObject,
}

impl KernelTier {
    /// Loads the iterator; the first iteration is the starting point.
    ///
    /// # Errors
    /// `absent` when the kernel lacks BTF, a field or the iterator (6.1); `denied` when this
    /// process may not load programs; `broken` when the kernel refuses them for another reason.
    pub fn load(paths: &CpuPaths) -> Result<Self, Unavailable> {
        let possible = possible_cpus();
        let rows = slots_for(possible, size_of::<RunTime>());
        let word = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (mut object, layout) = BpfObject::open(
            |btf| {
                if btf.has_function(ITERATOR_FUNCTION) {
                    offsets::kernel(btf)
                } else {
                    Err(BtfError::NoFunction(ITERATOR_FUNCTION.to_owned()))
                }
            },
            &[
                ("SLOTS_PER_CPU", word(rows)),
                ("POSSIBLE_CPUS", word(possible)),
                ("V1_HIERARCHY", cgroup_events::v1_hierarchy()),
                ("READS_REMOVED", 1),
            ],
            &[
                ("CPUS", 1),
                ("TIMES", number(rows.saturating_mul(possible))),
                ("OWNERS", number(rows)),
                ("BASES", number(possible)),
                ("SLOTS", 1),
                ("FREE", 1),
                ("JOBS", 1),
                ("JOB_UDP", 1),
                ("CREATORS", 1),
                ("JOB_EVENTS", PAGE),
                ("THREAD_ENDS", PAGE),
                ("CGROUP_EVENTS", number(cgroup_events::RING_BYTES)),
                ("MOVES", PAGE),
            ],
            &[],
        )?;
        if layout.setting("HAS_CPUACCT") == 0 {
            let detail = "this kernel does not count the run time of all tasks (CONFIG_CGROUP_CPUACCT)";
            return Err(Unavailable::new(Reason::Absent, detail));
        }
        let (times, owners, cgroup_count) =
            (object.mapped("TIMES")?, object.mapped("OWNERS")?, object.mapped("WALKED")?);
        object.load_runnable(FIND_BASES)?;
        object.run(FIND_BASES, None).map_err(|error| load_error("run find_bases", &error))?;
        let program =
            object.load_iterator(ITERATOR, "cgroup").map_err(|error| load_error("load read_cgroups", &error))?;
        // After find_bases, from which the program that reads removed cgroups gets its addresses.
        let cgroup_events = CgroupEvents::attach(&mut object, &layout);
        object.drop_unloaded();
        let link = iterators::link_cgroups(program)
            .map_err(|error| Unavailable::new(Reason::of(&error), format!("cannot attach read_cgroups: {error}")))?;
        let trees = Trees::find(&paths.cgroupfs).ok();
        let root = trees
            .as_ref()
            .map_or_else(|| CgroupKey { id: 1, hierarchy: hierarchy::V2 }, |trees| root_key(&trees.scan()));
        let mut this = Self {
            times,
            owners,
            cgroup_count,
            link,
            possible,
            rows,
            complete: false,
            last: HashMap::new(),
            iterations: 0,
            last_total: Vec::new(),
            missed: 0,
            v1: trees.and_then(|trees| V1Cgroups::find(&trees, paths).map(|v1| (trees.only(hierarchy::V1_CPU), v1))),
            totals: UsageTotals::new(root),
            cgroup_events,
            changes: CgroupChanges::default(),
            log: object.log(),
            object,
        };
        this.update().map_err(|error| {
            Unavailable::new(Reason::of(&error), format!("cannot iterate over the cgroups with read_cgroups: {error}"))
        })?;
        if this.last_total.iter().all(|ns| *ns == 0) {
            return Err(Unavailable::new(Reason::Broken, "the iteration over the cgroups found no run time"));
        }
        Ok(this)
    }

    /// Runs one iteration and returns the number of cgroups.
    fn iterate(&self) -> io::Result<usize> {
        self.cgroup_count.set(0, 0);
        let mut iteration = iterators::open(&self.link)?;
        let mut buffer = [0; 64];
        while iteration.read(&mut buffer)? > 0 {}
        usize::try_from(self.cgroup_count.get(0)).map_err(io::Error::other)
    }

    fn update(&mut self) -> io::Result<()> {
        let cgroups = self.iterate()?;
        let rows = cgroups.min(self.rows);
        self.missed = self.missed.saturating_add(u64::try_from(cgroups - rows).unwrap_or(u64::MAX));
        let first = self.iterations == 0;
        // After a complete iteration, a cgroup that was not known is new, and all its run time
        // counts; otherwise it may have existed for an unknown time.
        let last_was_complete = std::mem::replace(&mut self.complete, cgroups == rows) && !first;
        self.iterations += 1;
        let mut deltas = Vec::with_capacity(rows);
        for row in 1..rows {
            let tag = self.owners.get(row);
            if tag == 0 {
                continue;
            }
            let key = CgroupKey::of(tag);
            let now = |cpu: usize| self.times.get(cpu * self.rows + row).alone_ns;
            let fresh = || ((0..self.possible).map(|cpu| if last_was_complete { 0 } else { now(cpu) }).collect(), 0);
            let last = self.last.entry(key).or_insert_with(fresh);
            last.1 = self.iterations;
            let columns: Columns = (0..self.possible)
                .map(|cpu| now(cpu).saturating_sub(std::mem::replace(&mut last.0[cpu], now(cpu))))
                .collect();
            deltas.push((key, columns));
        }
        deltas.extend(self.removed_since(last_was_complete));
        let now: Columns = (0..self.possible).map(|cpu| self.times.get(cpu * self.rows).alone_ns).collect();
        self.last_total.resize(now.len(), 0);
        let all: Columns = now.iter().zip(&self.last_total).map(|(now, last)| now.saturating_sub(*last)).collect();
        self.last_total = now;
        if let Some((trees, v1)) = &mut self.v1 {
            deltas.extend(v1.advance(&trees.scan()));
        }
        if !first {
            self.totals.add(&all, &deltas);
        }
        let iterations = self.iterations;
        self.last.retain(|_, (_, iteration)| *iteration == iterations);
        Ok(())
    }
}

impl KernelTier {
    /// Run time of removed cgroups that no iteration found: from their last row, or from their
    /// creation, to their removal. All of it counts for the CPU that ran most of it.
    ///
    /// `last_was_complete`: a cgroup without a row was created after the last iteration.
    fn removed_since(&mut self, last_was_complete: bool) -> Vec<(CgroupKey, Columns)> {
        let Ok(events) = &mut self.cgroup_events else { return Vec::new() };
        let mut changes = CgroupChanges::default();
        events.drain(&mut changes);
        let mut all = Vec::new();
        for RemovedCgroup { key, ran_ns, cpu } in &changes.removed {
            let known: &mut (Columns, u64) = match self.last.entry(*key) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) if last_was_complete => entry.insert((vec![0; self.possible], 0)),
                Entry::Vacant(_) => continue,
            };
            let read = known.0.iter().fold(0, |sum: u64, ns| sum.saturating_add(*ns));
            let remaining = ran_ns.saturating_sub(read);
            // A dying cgroup may still be in the next iteration.
            known.1 = self.iterations;
            if let (1.., Some(column)) = (remaining, known.0.get_mut(*cpu)) {
                *column = column.saturating_add(remaining);
                let mut columns = vec![0; self.possible];
                columns[*cpu] = remaining;
                all.push((*key, columns));
            }
        }
        self.changes.extend(changes);
        all
    }
}

impl CpuReader for KernelTier {
    fn tier(&self) -> Tier {
        Tier::Kernel
    }

    fn capabilities(&self) -> TierCapabilities {
        TierCapabilities { cpus: true, siblings: false }
    }

    fn read(&mut self, out: &mut CpuReading) -> io::Result<()> {
        self.update()?;
        self.totals.fill(out);
        out.missed = self.missed;
        self.log.iter_mut().for_each(ProgramLog::drain);
        Ok(())
    }

    fn take_cgroup_changes(&mut self) -> Option<CgroupChanges> {
        self.cgroup_events.is_ok().then(|| std::mem::take(&mut self.changes))
    }

    fn forget(&mut self, key: &CgroupKey) {
        self.totals.forget(key);
    }

    fn costs(&self) -> Vec<ProgramRow> {
        self.object.costs(&[ITERATOR])
    }

    fn detail(&self) -> String {
        let mut detail =
            "the kernel's own counters through an eBPF iterator, no program at context switches".to_owned();
        if let Err(why) = &self.cgroup_events {
            detail.push_str(&format!("; new cgroups are found by scans ({why})"));
        }
        detail
    }
}
