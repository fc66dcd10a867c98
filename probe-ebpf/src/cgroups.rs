//! CPU time per cgroup and CPU, copied from the kernel's own counters: no program runs at context
//! switches.
//!
//! Since 4.18 each v2 cgroup counts the run time of its own tasks per CPU, which `cpu.stat` sums
//! up (kernel/cgroup/rstat.c). An iterator over the cgroups (6.1) copies these counters, in
//! iteration order. The root cgroup has no counter of its own; the run time of all tasks
//! is in the root of `cpuacct`, whether or not that controller is mounted.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, PerCpuArray},
    helpers::generated::{bpf_get_current_task, bpf_map_lookup_percpu_elem},
    macros::{btf_map, raw_tracepoint},
    programs::RawTracePointContext,
};
use probe_ebpf::{MAX_CGROUPS, MAX_CPUS, RunTime};

use crate::{
    kernel::{Probed, follow, kernfs_id},
    offsets::{Object, field, setting},
    slots::OWNERS,
};

/// CPU time, in the order of iteration: the elements `cpu * rows + row`.
#[btf_map]
static TIMES: Array<RunTime, MAX_CGROUPS, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Offset of each CPU's memory: added to the address of a per-CPU object, it gives that CPU's copy.
#[btf_map]
pub static BASES: Array<u64, MAX_CPUS> = Array::new();

/// A per-CPU object of this program, from which the offsets are computed.
#[btf_map]
static PERCPU_SAMPLE: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// Number of cgroups in the last iteration.
#[btf_map]
static WALKED: Array<u64, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Context of an iterator over cgroups (kernel/bpf/cgroup_iter.c).
#[repr(C)]
pub struct CgroupIteration {
    meta: *const u8,
    pub(crate) cgroup: Object,
}

/// Copies the run time of one cgroup into the next row; slots are assigned for one iteration only.
/// The first cgroup is the root, whose row holds the run time of all tasks.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/cgroup")]
pub extern "C" fn read_cgroups(iteration: *const CgroupIteration) -> i32 {
    // SAFETY: the kernel passes such a context; `Probed` accepts any address; no other program
    // writes these map elements now.
    unsafe {
        let cgroup = (*iteration).cgroup;
        let Some(walked) = WALKED.get_ptr_mut(0) else { return 0 };
        if cgroup.is_null() {
            return 0;
        }
        let row = *walked;
        *walked = row + 1;
        if row >= setting!(SLOTS_PER_CPU) {
            return 0;
        }
        let root = Probed::read::<u32>(field!(cgroup, CgroupLevel)) == 0;
        let object = if root { usage_of_all() } else { follow!(Probed, cgroup, CgroupRstat) };
        let owner = if object.is_null() { 0 } else { kernfs_id::<Probed>(cgroup) };
        let _ = OWNERS.set(row as u32, owner, 0);
        if object.is_null() {
            return 0;
        }
        let count = if root { object } else { field!(object, RstatSumExec) };
        let mut cpu = 0;
        while cpu < setting!(POSSIBLE_CPUS) as u32 {
            if let (Some(base), Some(time)) =
                (BASES.get(cpu), TIMES.get_ptr_mut(cpu * setting!(SLOTS_PER_CPU) as u32 + row as u32))
            {
                (*time).alone_ns = Probed::read(count.wrapping_add(*base as usize));
            }
            cpu += 1;
        }
    }
    0
}

/// Address of the per-CPU run time of all tasks except the idle tasks, in nanoseconds, which the
/// root of `cpuacct` keeps; null where the kernel has none.
///
/// # Safety
/// No requirement: it reads through helpers.
unsafe fn usage_of_all() -> Object {
    /// More levels than cgroups are nested in practice; the verifier needs a bound.
    const DEPTH: u32 = 64;
    if setting!(HAS_CPUACCT) == 0 {
        return core::ptr::null();
    }
    // SAFETY: a helper without arguments; `Probed` accepts any address.
    unsafe {
        let set = follow!(Probed, bpf_get_current_task() as Object, TaskCgroups);
        let mut css = follow!(Probed, set, CssSetCpuacct);
        let mut level = 0;
        while level < DEPTH {
            let parent = follow!(Probed, css, CssParent);
            if parent.is_null() {
                return follow!(Probed, css, CpuacctUsage);
            }
            css = parent;
            level += 1;
        }
    }
    core::ptr::null()
}

/// Computes [`BASES`]: the address of a CPU's copy of [`PERCPU_SAMPLE`] minus the per-CPU base
/// address of the map. The symbol that holds the same values, `__per_cpu_offset`, is not in every
/// kernel's symbol table. User space runs it once.
#[raw_tracepoint]
pub fn find_bases(_ctx: RawTracePointContext) -> i32 {
    let Some(scratch) = PERCPU_SAMPLE.get_ptr_mut(0) else { return 1 };
    let scratch = scratch.cast::<u64>();
    // SAFETY: the element belongs to this CPU; to the verifier, an address that was stored in and
    // loaded from memory is a number.
    unsafe {
        scratch.write_volatile((&raw const PERCPU_SAMPLE) as u64);
        let map = scratch.read_volatile() as Object;
        let all = Probed::read::<u64>(field!(map, BpfArrayPptrs));
        let mut cpu = 0;
        while cpu < setting!(POSSIBLE_CPUS) as u32 {
            let key = 0u32;
            let map = (&raw const PERCPU_SAMPLE).cast_mut().cast();
            let copy = bpf_map_lookup_percpu_elem(map, (&raw const key).cast(), cpu);
            if copy.is_null() {
                return 2;
            }
            scratch.write_volatile(copy as u64);
            let base = scratch.read_volatile().wrapping_sub(all);
            let _ = BASES.set(cpu, base, 0);
            cpu += 1;
        }
    }
    0
}
