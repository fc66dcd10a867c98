//! Assignment of slots to cgroups, and the banks that contain the slots.
//!
//! The first CPU that runs a task of a cgroup assigns a slot to it. User space frees the slot after
//! the cgroup is gone, its last values are read and every CPU has cleared the slot from its cache.
//! Until then no other cgroup gets the slot, and the kernel never reuses a cgroup id, so values of
//! two cgroups are never mixed.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST},
    btf_maps::{Array, HashMap, Stack},
    helpers::bpf_get_smp_processor_id,
    macros::btf_map,
};
use probe_ebpf::{CachedSlot, CpuState, HardwareCounts, LongWaits, MAX_CGROUPS, SLOT_CACHE_SIZE, SlotCounts, Tag};

use crate::{
    atomic::add,
    kernel::{Read, follow, load, tag},
    log,
    offsets::{Object, setting},
};

const MAPPED: usize = BPF_F_MMAPABLE as usize;

/// The state and bank of each CPU, by its number. The probe sets the number and the size of the
/// elements; the compiler knows of the state alone.
///
/// A context switch needs one lookup, and what it changes is close together: each other map that it
/// wrote to cost it a page and a line of memory, 2 to 4 ns.
#[btf_map]
static CPUS: Array<CpuState, 1, MAPPED> = Array::new();

/// State of a CPU.
#[inline(always)]
pub fn cpu_state(cpu: u32) -> Option<*mut CpuState> {
    CPUS.get_ptr_mut(cpu)
}

/// State of this CPU.
#[inline(always)]
pub fn this_cpu_state() -> Option<*mut CpuState> {
    // SAFETY: a helper without arguments.
    cpu_state(unsafe { bpf_get_smp_processor_id() })
}

/// Counters of a slot in the bank of a CPU; `None` for [`NONE`].
///
/// # Safety
/// `state` is the state of a CPU.
#[inline(always)]
pub unsafe fn counts(state: *mut CpuState, slot: u64) -> Option<*mut SlotCounts> {
    if slot >= setting!(SLOTS_PER_CPU) {
        return None;
    }
    // SAFETY: the bank follows the state, and has that number of slots.
    Some(unsafe { state.cast::<u8>().add(size_of::<CpuState>() + slot as usize * size_of::<SlotCounts>()) }.cast())
}

/// The rare counters of a slot, as [`counts`].
///
/// # Safety
/// As [`counts`].
#[inline(always)]
pub unsafe fn long_waits(state: *mut CpuState, slot: u64) -> Option<*mut LongWaits> {
    let slots = setting!(SLOTS_PER_CPU);
    if slot >= slots {
        return None;
    }
    // SAFETY: they follow the counters of all slots.
    let first = unsafe { state.cast::<u8>().add(size_of::<CpuState>()) };
    let offset = slots as usize * size_of::<SlotCounts>() + slot as usize * size_of::<LongWaits>();
    // SAFETY: as above.
    Some(unsafe { first.add(offset) }.cast())
}

/// Hardware counters, in banks; a single element where there are none.
#[btf_map]
pub static COUNTS: Array<HardwareCounts, 1, MAPPED> = Array::new();

/// The cgroup of each slot; 0 for a free slot.
#[btf_map]
pub static OWNERS: Array<Tag, MAX_CGROUPS, MAPPED> = Array::new();

/// The slot of each cgroup.
#[btf_map]
static SLOTS: HashMap<Tag, u64, MAX_CGROUPS> = HashMap::new();

/// Free slots, of which the last one freed is assigned first: the slots in use stay close together.
/// Filled by user space.
#[btf_map]
static FREE: Stack<u64, MAX_CGROUPS> = Stack::new();

/// Beyond the last element: no slot.
pub const NONE: u64 = u64::MAX;

/// The slot of a task's workload, assigning one if needed; [`NONE`] if no slot is free.
///
/// A cache hit does not read the cgroup's id: the serial number, which is never reused,
/// distinguishes a `css_set` from an older one at the same address.
///
/// # Safety
/// `state` belongs to this CPU; `task` can be read by `R`, and `pid` is
/// its pid.
#[inline(always)]
pub unsafe fn slot<R: Read>(state: *mut CpuState, task: Object, pid: u64) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let set = follow!(R, task, TaskCgroups);
        let leaf = follow!(R, set, CssSetDflCgrp);
        let serial: u64 = load!(R, leaf, CgroupSerial);
        let last = &raw mut (*state).last;
        if (*last).set == set as u64 && (*last).serial == serial {
            return (*last).slot;
        }
        cached_slot::<R>(state, task, pid)
    }
}

/// The rest of [`slot`], for a cgroup that was not the last one charged.
///
/// A function of its own, so that its values take neither registers nor stack of the other path:
/// from 64 bytes on (kernel/bpf/verifier.c, BPF_PRIV_STACK_MIN_SIZE), the kernel gives a program
/// another stack.
///
/// # Safety
/// As [`slot`].
#[cold]
#[inline(never)]
unsafe fn cached_slot<R: Read>(state: *mut CpuState, task: Object, pid: u64) -> u64 {
    const V1_SERIAL: u64 = 1 << 63;
    // SAFETY: the caller's contract; the index is below the number of entries.
    unsafe {
        let set = follow!(R, task, TaskCgroups);
        let leaf = follow!(R, set, CssSetDflCgrp);
        let mut serial: u64 = load!(R, leaf, CgroupSerial);
        // In the v2 root the workload is identified by its v1 cgroup, unless that is a root too.
        let root = setting!(HAS_CPU) != 0 && load!(R, half, leaf, CgroupLevel) == 0;
        if root {
            let css = follow!(R, set, CssSetCpu);
            serial = load!(R, u64, css, CssSerial) | V1_SERIAL;
        }
        // The index is derived from the pid, which is a plain number to the verifier. Two threads
        // of one workload may share an entry without harm.
        let index = pid as usize & (SLOT_CACHE_SIZE - 1);
        let cached = (&raw mut (*state).slot_cache).cast::<CachedSlot>().add(index);
        if (*cached).set != set as u64 || (*cached).serial != serial {
            let cgroup = tag::<R>(set, leaf, root);
            if cgroup == 0 {
                // No cgroup, so no row of user space: its slot would never be found.
                log::cgroup_unreadable(pid as u32);
                return NONE;
            }
            let slot = find_or_assign(state, cgroup);
            if slot == NONE {
                return NONE;
            }
            (*cached).set = set as u64;
            (*cached).serial = serial;
            (*cached).slot = slot;
        }
        (*state).last.set = set as u64;
        (*state).last.serial = serial;
        (*state).last.slot = (*cached).slot;
        (*cached).slot
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
    let Ok(Some(slot)) = FREE.pop() else {
        log::slots_full(tag);
        return NONE;
    };
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
