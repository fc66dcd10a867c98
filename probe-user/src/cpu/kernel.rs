//! The tier without a hook: the kernel's own figures of every cgroup and CPU, copied by an iterator once a tick.
//!
//! Nothing runs at a switch. A running task is in the figures up to the last tick of its CPU's scheduler. Waits, switches and
//! siblings are not in them.

use std::{
    collections::HashMap,
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use aya::programs::{Iter, ProgramError};
use probe_ebpf::{CgroupKey, RunTime, Tag, hierarchy};

use super::{
    Knows, Places, Reader, Reading, Tier,
    btf::BtfError,
    files::{V1, root_key},
    mapped::Mapped,
    object::{Object, PAGE, possible_cpus, refused, slots_for},
    offsets,
    totals::{Columns, Totals},
    walk,
};
use crate::{
    containers::tree::Trees,
    snapshot::ProgramRow,
    state::{Reason, Unavailable},
};

const WALK: &str = "read_cgroups";
const BASES: &str = "find_bases";
/// What the kernel calls an iterator over cgroups (kernel/bpf/cgroup_iter.c, 6.1).
const ITERATOR: &str = "bpf_iter_cgroup";

/// The loaded iterator and its maps.
pub struct Kernel {
    times: Mapped<RunTime>,
    owners: Mapped<Tag>,
    walked: Mapped<u64>,
    link: OwnedFd,
    possible: usize,
    /// Cgroups that a walk has room for.
    rows: usize,
    /// False when the last walk passed somebody over.
    complete: bool,
    /// The figures of the last walk, by cgroup, and the number of that walk.
    last: HashMap<CgroupKey, (Columns, u64)>,
    walks: u64,
    /// What all tasks ran.
    last_all: Columns,
    /// How often a cgroup found no row in a walk; what it ran is in system.
    missed: u64,
    /// What the iterator does not see: the v1 tree, walked alone, and its files.
    v1: Option<(Trees, V1)>,
    totals: Totals,
    object: Object,
}

impl Kernel {
    /// Loads the iterator, and takes its first walk as the starting point.
    ///
    /// # Errors
    /// `absent` when the kernel lacks BTF, a field or the iterator (6.1); `denied` when this process may not load programs;
    /// `broken` when the kernel refuses them for another reason.
    pub fn load(places: &Places) -> Result<Self, Unavailable> {
        let possible = possible_cpus();
        let rows = slots_for(possible, size_of::<RunTime>());
        let word = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (mut object, known) = Object::open(
            |btf| {
                if btf.has_function(ITERATOR) {
                    offsets::kernel(btf)
                } else {
                    Err(BtfError::NoFunction(ITERATOR.to_owned()))
                }
            },
            &[("SLOTS_PER_CPU", word(rows)), ("POSSIBLE_CPUS", word(possible))],
            &[
                ("CPUS", 1),
                ("TIMES", number(rows.saturating_mul(possible))),
                ("OWNERS", number(rows)),
                ("BASES", number(possible)),
                ("SLOTS", 1),
                ("FREE", 1),
                ("JOBS", 1),
                ("JOB_UDP", 1),
                ("JOB_EVENTS", PAGE),
            ],
        )?;
        if known.setting("HAS_CPUACCT") == 0 {
            let what = "this kernel does not say what all tasks ran (CONFIG_CGROUP_CPUACCT)";
            return Err(Unavailable::new(Reason::Absent, what));
        }
        let (times, owners, walked) = (object.mapped("TIMES")?, object.mapped("OWNERS")?, object.mapped("WALKED")?);
        object.load_runnable(BASES)?;
        object.run(BASES, None).map_err(|error| refused("run find_bases", &error))?;
        let loaded = (|| {
            let (ebpf, btf) = object.types().ok_or(ProgramError::NotLoaded)?;
            let walk: &mut Iter = ebpf.program_mut(WALK).ok_or(ProgramError::NotLoaded)?.try_into()?;
            walk.load("cgroup", btf)?;
            Ok(walk.fd()?.as_fd().as_raw_fd())
        })();
        let program = loaded.map_err(|error: ProgramError| refused("load read_cgroups", &error))?;
        object.loaded();
        let link = walk::link_cgroups(program)
            .map_err(|error| Unavailable::new(Reason::of(&error), format!("cannot attach read_cgroups: {error}")))?;
        let trees = Trees::find(&places.cgroupfs).ok();
        let root = trees
            .as_ref()
            .map_or_else(|| CgroupKey { id: 1, hierarchy: hierarchy::V2 }, |trees| root_key(&trees.scan()));
        let mut this = Self {
            times,
            owners,
            walked,
            link,
            possible,
            rows,
            complete: false,
            last: HashMap::new(),
            walks: 0,
            last_all: Vec::new(),
            missed: 0,
            v1: trees.and_then(|trees| V1::find(&trees, places).map(|v1| (trees.only(hierarchy::V1_CPU), v1))),
            totals: Totals::new(root),
            object,
        };
        this.look().map_err(|error| {
            Unavailable::new(Reason::of(&error), format!("cannot walk the cgroups with read_cgroups: {error}"))
        })?;
        if this.last_all.iter().all(|ns| *ns == 0) {
            return Err(Unavailable::new(Reason::Broken, "the walk over the cgroups found nothing that ran"));
        }
        Ok(this)
    }

    /// One walk.
    fn walk(&self) -> io::Result<usize> {
        self.walked.set(0, 0);
        let mut walk = walk::begin(&self.link)?;
        let mut nothing = [0; 64];
        while walk.read(&mut nothing)? > 0 {}
        usize::try_from(self.walked.get(0)).map_err(io::Error::other)
    }

    fn look(&mut self) -> io::Result<()> {
        let walked = self.walk()?;
        let rows = walked.min(self.rows);
        self.missed = self.missed.saturating_add(u64::try_from(walked - rows).unwrap_or(u64::MAX));
        let first = self.walks == 0;
        // Who comes after a walk that passed nobody over is new, and counted whole; who else comes was there, for who knows how long.
        let newcomers = std::mem::replace(&mut self.complete, walked == rows) && !first;
        self.walks += 1;
        let mut grown = Vec::with_capacity(rows);
        for row in 1..rows {
            let tag = self.owners.get(row);
            if tag == 0 {
                continue;
            }
            let key = CgroupKey::of(tag);
            let now = |cpu: usize| self.times.get(cpu * self.rows + row).alone_ns;
            let fresh = || ((0..self.possible).map(|cpu| if newcomers { 0 } else { now(cpu) }).collect(), 0);
            let last = self.last.entry(key).or_insert_with(fresh);
            last.1 = self.walks;
            let columns: Columns = (0..self.possible)
                .map(|cpu| now(cpu).saturating_sub(std::mem::replace(&mut last.0[cpu], now(cpu))))
                .collect();
            grown.push((key, columns));
        }
        let now: Columns = (0..self.possible).map(|cpu| self.times.get(cpu * self.rows).alone_ns).collect();
        self.last_all.resize(now.len(), 0);
        let all: Columns = now.iter().zip(&self.last_all).map(|(now, last)| now.saturating_sub(*last)).collect();
        self.last_all = now;
        if let Some((trees, v1)) = &mut self.v1 {
            grown.extend(v1.grown(&trees.scan()));
        }
        if !first {
            self.totals.add(&all, &grown);
        }
        let walks = self.walks;
        self.last.retain(|_, (_, walk)| *walk == walks);
        Ok(())
    }
}

impl Reader for Kernel {
    fn tier(&self) -> Tier {
        Tier::Kernel
    }

    fn knows(&self) -> Knows {
        Knows { cpus: true, siblings: false }
    }

    fn read(&mut self, out: &mut Reading) -> io::Result<()> {
        self.look()?;
        self.totals.fill(out);
        out.missed = self.missed;
        Ok(())
    }

    fn forget(&mut self, key: &CgroupKey) {
        self.totals.forget(key);
    }

    fn costs(&self) -> Vec<ProgramRow> {
        self.object.costs(&[WALK])
    }

    fn detail(&self) -> String {
        "the kernel's own figures by an eBPF iterator, no program at the switch".to_owned()
    }
}
