//! Assignment of slots to cgroups, and the banks that contain the slots.
//!
//! The first CPU that runs a task of a cgroup assigns a slot to it. User space frees the slot after
//! the cgroup is gone, its last values are read and every CPU has cleared the slot from its cache.
//! Until then no other cgroup gets the slot, and the kernel never reuses a cgroup id, so values of
//! two cgroups are never mixed.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST},
    btf_maps::{Array, HashMap, Queue},
    macros::btf_map,
};
use probe_ebpf::{CachedSlot, CpuState, HardwareCounts, MAX_CGROUPS, RunQueueCounts, RunTime, SLOT_CACHE_SIZE, Tag};

use crate::{
    atomic::add,
    kernel::{Read, Task, follow, tag},
    offsets::{HAS_CPU, Object, SLOTS_PER_CPU, field},
};

const MAPPED: usize = BPF_F_MMAPABLE as usize;

/// State of each CPU, by its number. The probe sets the size of this map and of the banks for the
/// machine.
#[btf_map]
pub static CPUS: Array<CpuState, 1, MAPPED> = Array::new();

/// CPU time, in banks.
#[btf_map]
pub static TIMES: Array<RunTime, MAX_CGROUPS, MAPPED> = Array::new();

/// Run-queue waits and context switches, in banks; a single element where the kernel does not
/// record waits.
#[btf_map]
pub static WAITS: Array<RunQueueCounts, 1, MAPPED> = Array::new();

/// Hardware counters, in banks; a single element where there are none.
#[btf_map]
pub static COUNTS: Array<HardwareCounts, 1, MAPPED> = Array::new();

/// The cgroup of each slot; 0 for a free slot.
#[btf_map]
pub static OWNERS: Array<Tag, MAX_CGROUPS, MAPPED> = Array::new();

/// The slot of each cgroup.
#[btf_map]
static SLOTS: HashMap<Tag, u64, MAX_CGROUPS> = HashMap::new();

/// Free slots. Filled by user space.
#[btf_map]
static FREE: Queue<u64, MAX_CGROUPS> = Queue::new();

/// Beyond the last element: no slot.
pub const NONE: u64 = u64::MAX;

/// The element of this CPU's banks for a task's workload, assigning a slot if needed; [`NONE`] if
/// no slot is free.
///
/// A cache hit does not read the cgroup's id: the serial number, which is never reused,
/// distinguishes a `css_set` from an older one at the same address.
///
/// # Safety
/// `state` is the state of `cpu`, which is this CPU; `task` can be read by `R`.
#[inline(always)]
pub unsafe fn element<R: Read>(cpu: u32, state: *mut CpuState, task: Task) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let set = follow::<R>(field!(task.object, TaskCgroups));
        let leaf = follow::<R>(field!(set, CssSetDflCgrp));
        let serial: u64 = R::read(field!(leaf, CgroupSerial));
        let last = &raw mut (*state).last;
        if (*last).set == set as u64 && (*last).serial == serial {
            return (*last).element;
        }
        cached_element::<R>(cpu, state, task.pid, set, leaf, serial)
    }
}

/// The rest of [`element`], for a cgroup that was not the last one charged.
///
/// # Safety
/// As [`element`]; `leaf` is the v2 leaf of `set`, and `serial` its serial number.
#[inline(always)]
unsafe fn cached_element<R: Read>(
    cpu: u32,
    state: *mut CpuState,
    pid: u32,
    set: Object,
    leaf: Object,
    mut serial: u64,
) -> u64 {
    const V1_SERIAL: u64 = 1 << 63;
    // SAFETY: the caller's contract; the index is below the number of entries.
    unsafe {
        // In the v2 root the workload is identified by its v1 cgroup, unless that is a root too.
        let root = HAS_CPU.load() != 0 && R::read::<u32>(field!(leaf, CgroupLevel)) == 0;
        if root {
            let css = follow::<R>(field!(set, CssSetCpu));
            serial = R::read::<u64>(field!(css, CssSerial)) | V1_SERIAL;
        }
        // The index is derived from the pid, which is a plain number to the verifier. Two threads
        // of one workload may share an entry without harm.
        let index = pid as usize & (SLOT_CACHE_SIZE - 1);
        let cached = (&raw mut (*state).slot_cache).cast::<CachedSlot>().add(index);
        if (*cached).set != set as u64 || (*cached).serial != serial {
            let slot = find_or_assign(state, tag::<R>(set, leaf, root));
            if slot == NONE {
                return NONE;
            }
            (*cached).set = set as u64;
            (*cached).serial = serial;
            (*cached).element = u64::from(cpu) * SLOTS_PER_CPU.load() + slot;
        }
        (*state).last.set = set as u64;
        (*state).last.serial = serial;
        (*state).last.element = (*cached).element;
        (*cached).element
    }
}

/// The slot of a cgroup, assigning one if needed; [`NONE`] if no slot is free.
///
/// # Safety
/// `state` belongs to this CPU.
#[inline(always)]
pub unsafe fn find_or_assign(state: *mut CpuState, tag: Tag) -> u64 {
    // SAFETY: the value is one word; its element is reused only after user space removed this
    // cgroup, which has no tasks then.
    if let Some(slot) = unsafe { SLOTS.get(tag) } {
        return *slot;
    }
    let Ok(Some(slot)) = FREE.pop() else { return NONE };
    if SLOTS.insert(tag, slot, u64::from(BPF_NOEXIST)).is_err() {
        // Another CPU assigned a slot to this cgroup at the same time.
        let _ = FREE.push(slot, 0);
        // SAFETY: as above.
        return unsafe { SLOTS.get(tag) }.map_or(NONE, |slot| *slot);
    }
    let _ = OWNERS.set(slot as u32, tag, 0);
    // SAFETY: the caller's contract. Written after the owner, so that a reader that sees the new
    // count finds the owner. Atomic, because the program of moves can be interrupted by that of
    // context switches.
    unsafe { add(&raw mut (*state).slots_taken, 1) }
    slot
}

/// Clears this CPU's slot cache.
///
/// # Safety
/// `state` belongs to this CPU.
#[inline(always)]
pub unsafe fn clear_cache(state: *mut CpuState) {
    // SAFETY: the caller's contract; the index is below the number of entries.
    unsafe {
        let mut index = 0;
        while index < SLOT_CACHE_SIZE {
            (&raw mut (*state).slot_cache).cast::<CachedSlot>().add(index).cast::<u64>().write_volatile(0);
            index += 1;
        }
        (*state).last.set = 0;
        (*state).clear_cache = 0;
    }
}
