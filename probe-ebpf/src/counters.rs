//! Hardware counters per cgroup: cycles, instructions, misses of the last-level cache.
//!
//! One set of counters runs on each CPU all the time. It is read only when the CPU switches from
//! one cgroup to another: the events counted in between belong to the previous cgroup.

use aya_ebpf::{
    bindings::bpf_perf_event_value,
    btf_maps::PerfEventArray,
    helpers::{bpf_get_smp_processor_id, generated::bpf_perf_event_read_value},
    macros::btf_map,
};
use probe_ebpf::{COUNTERS, CpuState, HardwareCounts};

use crate::{log, offsets::setting, slots::COUNTS};

/// Perf event descriptors by CPU. Filled by user space.
#[btf_map]
static CYCLES: PerfEventArray = PerfEventArray::new();
/// As [`CYCLES`].
#[btf_map]
static INSTRUCTIONS: PerfEventArray = PerfEventArray::new();
/// As [`CYCLES`].
#[btf_map]
static CACHE_MISSES: PerfEventArray = PerfEventArray::new();

/// Charges the events counted since the last call to the current slot, and makes `next` the current
/// one: a slot plus one, or 0 for none.
///
/// # Safety
/// `state` belongs to this CPU.
#[inline(always)]
pub unsafe fn charge(state: *mut CpuState, next: u64) {
    // SAFETY: the caller's contract; the element of the bank belongs to this CPU.
    unsafe {
        let cpu = bpf_get_smp_processor_id();
        let current = (*state).counter_slot;
        (*state).counter_slot = next;
        let mut delta = HardwareCounts::default();
        let mut time = [0, 0];
        delta.events[0] = read(&CYCLES, cpu, state, 0, &mut time);
        delta.events[1] = read(&INSTRUCTIONS, cpu, state, 1, &mut time);
        delta.events[2] = read(&CACHE_MISSES, cpu, state, 2, &mut time);
        (*state).counter_time = time;
        if current == 0 {
            return;
        }
        if let Some(bank) = COUNTS.get_ptr_mut(cpu * setting!(SLOTS_PER_CPU) as u32 + (current - 1) as u32) {
            for counter in 0..COUNTERS {
                (*bank).events[counter] = (*bank).events[counter].wrapping_add(delta.events[counter]);
            }
        }
    }
}

/// Events that a counter of this CPU counted since it was last read, 0 where it cannot be read;
/// adds its enabled and running time to `time`.
///
/// # Safety
/// `state` belongs to this CPU; `counter` is below [`COUNTERS`].
#[inline(always)]
unsafe fn read(
    map: &'static PerfEventArray,
    cpu: u32,
    state: *mut CpuState,
    counter: usize,
    time: &mut [u64; 2],
) -> u64 {
    let mut value = bpf_perf_event_value { counter: 0, enabled: 0, running: 0 };
    let size = size_of::<bpf_perf_event_value>() as u32;
    // SAFETY: the helper writes at most `size` bytes; the caller's contract.
    unsafe {
        let map = core::ptr::from_ref(map).cast_mut().cast();
        let error = bpf_perf_event_read_value(map, u64::from(cpu), &raw mut value, size);
        if error != 0 {
            log::counter_unreadable(counter as u64, cpu, error);
            return 0;
        }
        let last = (*state).counter_values[counter];
        (*state).counter_values[counter] = value.counter;
        // A counter only grows. One that is lower is new and started at zero: the kernel ends those
        // of a CPU that goes offline, and user space opens others.
        let delta = if value.counter < last { value.counter } else { value.counter - last };
        time[0] += value.enabled;
        time[1] += value.running;
        delta
    }
}
