//! Hardware counters per cgroup: cycles, instructions, misses of the last-level cache.
//!
//! One set of counters runs on each CPU all the time. It is read when the CPU passes from one cgroup to another, never for
//! each switch: what the hardware counted in between is the first one's.

use aya_ebpf::{
    bindings::bpf_perf_event_value, btf_maps::PerfEventArray, helpers::generated::bpf_perf_event_read_value,
    macros::btf_map,
};
use probe_ebpf::{COUNTERS, Counted, CpuState};

use crate::slots::COUNTS;

/// The descriptors of the counters, by CPU. Filled by user space.
#[btf_map]
static CYCLES: PerfEventArray = PerfEventArray::new();
/// As [`CYCLES`].
#[btf_map]
static INSTRUCTIONS: PerfEventArray = PerfEventArray::new();
/// As [`CYCLES`].
#[btf_map]
static CACHE_MISSES: PerfEventArray = PerfEventArray::new();

/// Charges the counters to the element that they ran for, and lets them go on for `next`: an element of the bank plus one, or 0 for nobody.
///
/// # Safety
/// `state` is this CPU's own.
#[inline(always)]
pub unsafe fn charge(cpu: u32, state: *mut CpuState, next: u64) {
    // SAFETY: the caller's contract; the element of the bank is this CPU's own.
    unsafe {
        let current = (*state).counting;
        (*state).counting = next;
        let mut grown = Counted::default();
        let mut time = [0, 0];
        grown.events[0] = read(&CYCLES, cpu, state, 0, &mut time);
        grown.events[1] = read(&INSTRUCTIONS, cpu, state, 1, &mut time);
        grown.events[2] = read(&CACHE_MISSES, cpu, state, 2, &mut time);
        (*state).counter_time = time;
        if current == 0 {
            return;
        }
        if let Some(bank) = COUNTS.get_ptr_mut((current - 1) as u32) {
            for counter in 0..COUNTERS {
                (*bank).events[counter] = (*bank).events[counter].wrapping_add(grown.events[counter]);
            }
        }
    }
}

/// What a counter of this CPU counted since it was read last, nothing where it cannot be read; adds its times.
///
/// # Safety
/// `state` is this CPU's own; `counter` is below [`COUNTERS`].
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
    // SAFETY: the helper writes no more than `size`; the caller's contract.
    unsafe {
        let map = core::ptr::from_ref(map).cast_mut().cast();
        if bpf_perf_event_read_value(map, u64::from(cpu), &raw mut value, size) != 0 {
            return 0;
        }
        let grown = value.counter.wrapping_sub((*state).counted[counter]);
        (*state).counted[counter] = value.counter;
        time[0] += value.enabled;
        time[1] += value.running;
        grown
    }
}
