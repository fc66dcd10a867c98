//! Memory, CPU limit and block I/O of containers, read from the kernel's own objects.
//!
//! An iterator over the cgroups of one tree copies them for the cgroups that user space watches.
//! Each is in one place of a kernel object, and its file prints it: one pass replaces the reading
//! of three files per container. A controller belongs to one tree, so the pass over another tree
//! leaves its fields as they are.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use probe_ebpf::{KernelUsage, MAX_DEVICES, Tag, UsagePass};

use crate::{
    cgroups::CgroupIteration,
    kernel::{Pointer, Probed, Typed, follow, kernfs_id},
    offsets::{Object, field, setting},
};

/// The pass that runs. Written by user space.
#[btf_map]
static USAGE_PASS: Array<UsagePass, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Row of each watched cgroup, by its id and the bits of its tree. Written by user space.
#[btf_map]
static USAGE_WATCHED: HashMap<Tag, u64, 1, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// A row for each container.
#[btf_map]
static USAGE: Array<KernelUsage, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Copies the usage of one cgroup into its row, if it is watched.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/cgroup")]
pub extern "C" fn read_usage(iteration: *const CgroupIteration) -> i32 {
    // SAFETY: the kernel passes such a context, and the cgroup is a typed pointer; user space reads
    // and writes the map elements only between passes.
    unsafe {
        let cgroup = (*iteration).cgroup;
        if cgroup.is_null() {
            return 0;
        }
        let Some(pass) = USAGE_PASS.get(0) else { return 0 };
        let Some(row) = USAGE_WATCHED.get(kernfs_id::<Typed>(cgroup) | pass.tree) else { return 0 };
        let Some(row) = USAGE.get_ptr_mut(*row as u32) else { return 0 };
        if setting!(READS_MEMORY) != 0 {
            read_memory(cgroup, row, pass);
        }
        if setting!(READS_CPU_LIMIT) != 0 && pass.limits != 0 {
            let group = follow!(Typed, cgroup, CgroupCpu);
            if !group.is_null() {
                (*row).quota_ns = Probed::read(field!(group, TaskGroupQuota));
                (*row).period_ns = Probed::read(field!(group, TaskGroupPeriod));
                (*row).cpu_pass = pass.number;
            }
        }
        if setting!(READS_DEVICES) != 0 {
            read_devices(cgroup, row, pass.number);
        }
    }
    0
}

/// # Safety
/// `row` belongs to this cgroup, which is a typed pointer.
#[inline(always)]
unsafe fn read_memory(cgroup: Object, row: *mut KernelUsage, pass: &UsagePass) {
    // SAFETY: the caller's contract; `Probed` accepts any address.
    unsafe {
        let group = follow!(Typed, cgroup, CgroupMemory);
        if group.is_null() {
            return;
        }
        (*row).memory_pages = Probed::read(field!(group, MemcgUsage));
        if pass.limits != 0 {
            (*row).limit_pages = Probed::read(field!(group, MemcgMax));
            (*row).limit_pass = pass.number;
        }
        if setting!(READS_INACTIVE) != 0 {
            let statistics = follow!(Probed, group, MemcgVmstats);
            (*row).inactive_pages = Probed::read(field!(statistics, VmstatsInactive));
        }
        (*row).memory_pass = pass.number;
    }
}

/// Adds up the block devices. The kernel frees one only after a grace period of RCU
/// (block/blk-cgroup.c, `blkg_release`), and this program runs within one.
///
/// # Safety
/// `row` belongs to this cgroup, which is a typed pointer.
#[inline(always)]
unsafe fn read_devices(cgroup: Object, row: *mut KernelUsage, pass: u64) {
    // SAFETY: the caller's contract; `Probed` accepts any address.
    unsafe {
        let group = follow!(Typed, cgroup, CgroupIo);
        if group.is_null() {
            return;
        }
        let (mut devices, mut bytes) = (0, [0u64; 2]);
        let mut device = follow!(Probed, group, BlkcgDevices);
        while devices <= MAX_DEVICES {
            if device.is_null() {
                break;
            }
            devices += 1;
            // As in blkcg_print_one_stat; the link is the first field of a list's element.
            if setting!(READS_DEVICE_BYTES) != 0 && Probed::read::<u8>(field!(device, DeviceOnline)) != 0 {
                let device_bytes = Probed::read::<[u64; 2]>(field!(device, DeviceBytes));
                bytes[0] = bytes[0].wrapping_add(device_bytes[0]);
                bytes[1] = bytes[1].wrapping_add(device_bytes[1]);
            }
            device = Probed::read::<Pointer>(device).0;
        }
        (*row).devices = devices;
        (*row).bytes_read = bytes[0];
        (*row).bytes_written = bytes[1];
        (*row).io_pass = pass;
    }
}
