//! Which cgroup has which slot, and the banks that the slots lie in.
//!
//! A slot is taken by the first CPU that meets a cgroup, and given back by user space after the cgroup has gone, its last figures
//! were read and every CPU has forgotten whose it was. Until then it is nobody else's, and a cgroup's id is never used twice, so
//! nothing can be mixed up.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST},
    btf_maps::{Array, HashMap, Queue},
    macros::btf_map,
};
use probe_ebpf::{Counted, CpuState, KNOWN, Known, MAX_CGROUPS, RunTime, Tag, Waits};

use crate::{
    kernel::{Object, Read, Task, follow, tag},
    offsets::{HAS_CPU, SLOTS_PER_CPU, field},
};

const MAPPED: usize = BPF_F_MMAPABLE as usize;

/// What each CPU remembers, by its number. The probe sets the number of elements of this and of the banks for the machine.
#[btf_map]
pub static CPUS: Array<CpuState, 1, MAPPED> = Array::new();

/// CPU time, in banks.
#[btf_map]
pub static TIMES: Array<RunTime, MAX_CGROUPS, MAPPED> = Array::new();

/// Waits and switches, in banks; a single element where the kernel does not count waits.
#[btf_map]
pub static WAITS: Array<Waits, 1, MAPPED> = Array::new();

/// Hardware counters, in banks; a single element where there are none.
#[btf_map]
pub static COUNTS: Array<Counted, 1, MAPPED> = Array::new();

/// Who has a slot; 0 for nobody.
#[btf_map]
pub static OWNERS: Array<Tag, MAX_CGROUPS, MAPPED> = Array::new();

/// The slot of a cgroup.
#[btf_map]
static SLOTS: HashMap<Tag, u64, MAX_CGROUPS> = HashMap::new();

/// The slots that are nobody's. Filled by user space.
#[btf_map]
static FREE: Queue<u64, MAX_CGROUPS> = Queue::new();

/// Beyond every element.
pub const NONE: u64 = u64::MAX;

/// The element of this CPU's banks for a task's workload, of a new slot if need be; [`NONE`] when there is none left.
///
/// A hit costs no look at the cgroup's name: the serial number, which is never given twice, tells a `css_set` from an older one
/// at the same address.
///
/// # Safety
/// `state` is that of `cpu`, which is this one; `task` is one that `R` can read.
#[inline(always)]
pub unsafe fn element<R: Read>(cpu: u32, state: *mut CpuState, task: Task) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let set = follow::<R>(field!(task.object, TaskCgroups));
        let leaf = follow::<R>(field!(set, CssSetDflCgrp));
        let serial: u64 = R::read(field!(leaf, CgroupSerial));
        let last = &raw mut (*state).last;
        if (*last).set == set as u64 && (*last).serial == serial {
            return (*last).at;
        }
        recall::<R>(cpu, state, task.pid, set, leaf, serial)
    }
}

/// The rest of [`element`], for whoever was not the last.
///
/// # Safety
/// As [`element`]; `leaf` is the v2 leaf of `set`, `serial` its number.
#[inline(always)]
unsafe fn recall<R: Read>(cpu: u32, state: *mut CpuState, pid: u32, set: Object, leaf: Object, mut serial: u64) -> u64 {
    const OF_V1: u64 = 1 << 63;
    // SAFETY: the caller's contract; `place` is below the number of places.
    unsafe {
        // In the v2 root the workload is the v1 cgroup, if that is not a root too.
        let root = HAS_CPU.load() != 0 && R::read::<u32>(field!(leaf, CgroupLevel)) == 0;
        if root {
            let css = follow::<R>(field!(set, CssSetCpu));
            serial = R::read::<u64>(field!(css, CssSerial)) | OF_V1;
        }
        // By the pid, which is a number to the verifier. Two threads of one workload in one place do not mind each other.
        let place = pid as usize & (KNOWN - 1);
        let known = (&raw mut (*state).known).cast::<Known>().add(place);
        if (*known).set != set as u64 || (*known).serial != serial {
            let slot = find(state, tag::<R>(set, leaf, root));
            if slot == NONE {
                return NONE;
            }
            (*known).set = set as u64;
            (*known).serial = serial;
            (*known).at = u64::from(cpu) * SLOTS_PER_CPU.load() + slot;
        }
        (*state).last.set = set as u64;
        (*state).last.serial = serial;
        (*state).last.at = (*known).at;
        (*known).at
    }
}

/// # Safety
/// `state` is this CPU's own.
#[inline(always)]
unsafe fn find(state: *mut CpuState, tag: Tag) -> u64 {
    // SAFETY: the value is one word; its element is taken for another cgroup only after user space removed this one, whose tasks are
    // gone then.
    if let Some(slot) = unsafe { SLOTS.get(tag) } {
        return *slot;
    }
    let Ok(Some(slot)) = FREE.pop() else { return NONE };
    if SLOTS.insert(tag, slot, u64::from(BPF_NOEXIST)).is_err() {
        // Another CPU met it in the same moment.
        let _ = FREE.push(slot, 0);
        // SAFETY: as above.
        return unsafe { SLOTS.get(tag) }.map_or(NONE, |slot| *slot);
    }
    let _ = OWNERS.set(slot as u32, tag, 0);
    // SAFETY: the caller's contract. After the owner, so that who sees the count finds him.
    unsafe { (&raw mut (*state).newcomers).write_volatile((*state).newcomers + 1) }
    slot
}

/// Forgets what this CPU remembers of slots.
///
/// # Safety
/// `state` is this CPU's own.
#[inline(always)]
pub unsafe fn forget(state: *mut CpuState) {
    // SAFETY: the caller's contract; places below their number.
    unsafe {
        let mut place = 0;
        while place < KNOWN {
            (&raw mut (*state).known).cast::<Known>().add(place).cast::<u64>().write_volatile(0);
            place += 1;
        }
        (*state).last.set = 0;
        (*state).forget = 0;
    }
}
