//! CPU time per cgroup and CPU, read where the kernel keeps it: no program at any switch.
//!
//! Since 4.18 each v2 cgroup counts what its own tasks ran, CPU by CPU, for `cpu.stat` to sum up (kernel/cgroup/rstat.c). An
//! iterator over the cgroups (6.1) copies those figures into the banks, in the order of its walk. The root counts nothing of
//! its own; what all tasks ran is in the root of `cpuacct`, whether or not that is mounted anywhere.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, PerCpuArray},
    helpers::generated::{bpf_get_current_task, bpf_map_lookup_percpu_elem},
    macros::{btf_map, raw_tracepoint},
    programs::RawTracePointContext,
};
use probe_ebpf::MAX_CPUS;

use crate::{
    kernel::{Object, Probed, Read, follow, kernfs_id},
    offsets::{HAS_CPUACCT, POSSIBLE_CPUS, SLOTS_PER_CPU, field},
    slots::{OWNERS, TIMES},
};

/// Where the memory of each CPU lies, as what is to be added to the address of a per-CPU object.
#[btf_map]
static BASES: Array<u64, MAX_CPUS> = Array::new();

/// A per-CPU object of our own, to find that out with.
#[btf_map]
static ONE: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// How many cgroups the last walk met.
#[btf_map]
static WALKED: Array<u64, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// What an iterator over cgroups is called with (kernel/bpf/cgroup_iter.c).
#[repr(C)]
pub struct Visit {
    meta: *const u8,
    cgroup: Object,
}

/// Copies what one cgroup ran into the next row: no slot is anybody's longer than a walk. The first that a walk meets is the
/// root, whose row is what all tasks ran.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/cgroup")]
pub extern "C" fn read_cgroups(visit: *const Visit) -> i32 {
    // SAFETY: the kernel calls with such a context; `Probed` takes any address; the maps' elements are nobody else's now.
    unsafe {
        let cgroup = (*visit).cgroup;
        let Some(walked) = WALKED.get_ptr_mut(0) else { return 0 };
        if cgroup.is_null() {
            return 0;
        }
        let row = *walked;
        *walked = row + 1;
        if row >= SLOTS_PER_CPU.load() {
            return 0;
        }
        let root = Probed::read::<u32>(field!(cgroup, CgroupLevel)) == 0;
        let object = if root { usage_of_all() } else { follow::<Probed>(field!(cgroup, CgroupRstat)) };
        let owner = if object.is_null() { 0 } else { kernfs_id::<Probed>(cgroup) };
        let _ = OWNERS.set(row as u32, owner, 0);
        if object.is_null() {
            return 0;
        }
        let count = if root { object } else { field!(object, RstatSumExec) };
        let mut cpu = 0;
        while cpu < POSSIBLE_CPUS.load() as u32 {
            if let (Some(base), Some(time)) =
                (BASES.get(cpu), TIMES.get_ptr_mut(cpu * SLOTS_PER_CPU.load() as u32 + row as u32))
            {
                (*time).alone_ns = Probed::read(count.wrapping_add(*base as usize));
            }
            cpu += 1;
        }
    }
    0
}

/// The per-CPU nanoseconds that the root of `cpuacct` keeps of all tasks but the idle ones; null where there is none.
///
/// # Safety
/// None is asked; it reads through helpers.
unsafe fn usage_of_all() -> Object {
    /// Deeper than anybody nests, and the verifier wants an end.
    const DEPTH: u32 = 64;
    if HAS_CPUACCT.load() == 0 {
        return core::ptr::null();
    }
    // SAFETY: a helper without arguments; `Probed` takes any address.
    unsafe {
        let set = follow::<Probed>(field!(bpf_get_current_task() as Object, TaskCgroups));
        let mut css = follow::<Probed>(field!(set, CssSetCpuacct));
        let mut level = 0;
        while level < DEPTH {
            let parent = follow::<Probed>(field!(css, CssParent));
            if parent.is_null() {
                return follow::<Probed>(field!(css, CpuacctUsage));
            }
            css = parent;
            level += 1;
        }
    }
    core::ptr::null()
}

/// Finds [`BASES`]: the address of a CPU's copy of our own object, less the address that stands for all copies. The symbol that
/// holds the same, `__per_cpu_offset`, is not in every kernel's table. Run once by user space.
#[raw_tracepoint]
pub fn find_bases(_ctx: RawTracePointContext) -> i32 {
    let Some(scratch) = ONE.get_ptr_mut(0) else { return 1 };
    let scratch = scratch.cast::<u64>();
    // SAFETY: the element is this CPU's own; an address that went through memory is a number to the verifier.
    unsafe {
        scratch.write_volatile((&raw const ONE) as u64);
        let map = scratch.read_volatile() as Object;
        let all = Probed::read::<u64>(field!(map, BpfArrayPptrs));
        let mut cpu = 0;
        while cpu < POSSIBLE_CPUS.load() as u32 {
            let key = 0u32;
            let copy = bpf_map_lookup_percpu_elem((&raw const ONE).cast_mut().cast(), (&raw const key).cast(), cpu);
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
