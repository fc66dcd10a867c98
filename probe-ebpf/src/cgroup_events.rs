//! Creation and removal of cgroups, with their paths: a cgroup that exists only between two ticks
//! is identified too, and no scan of the trees is needed to find a new one.
//!
//! The hooks run once per cgroup, so all fields are read through the helper, which works on every
//! kernel.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, RingBuf},
    helpers::generated::bpf_probe_read_kernel_str,
    macros::{btf_map, raw_tracepoint},
    programs::RawTracePointContext,
};
use probe_ebpf::{CGROUP_EVENTS_BYTES, CGROUP_PATH, CgroupCreated, CgroupEvent, Tag, V1_TAG};

use crate::{
    atomic::add,
    cgroups::BASES,
    kernel::{Probed, follow, kernfs_id},
    log,
    offsets::{Object, field, setting},
};

/// Creations and removals, in order.
#[btf_map]
static CGROUP_EVENTS: RingBuf<CgroupEvent, CGROUP_EVENTS_BYTES> = RingBuf::new();

/// Events that are missing in the ring: it was full, a path was too long, or a cgroup was renamed.
#[btf_map]
static CGROUP_EVENTS_LOST: Array<u64, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// `cgroup_mkdir(cgroup, path)`: before the first task can enter the cgroup.
#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub fn cgroup_created(ctx: RawTracePointContext) -> i32 {
    // SAFETY: `Probed` accepts any address; the record is exclusive until it is submitted.
    unsafe {
        let cgroup: Object = ctx.arg(0);
        let path: Object = ctx.arg(1);
        let tag = tag(cgroup);
        if tag == 0 {
            return 0;
        }
        let Some(mut record) = CGROUP_EVENTS.reserve_untyped::<CgroupCreated>(0) else {
            count_lost();
            log::cgroup_event_lost(tag);
            return 0;
        };
        let event = record.as_mut_ptr();
        // The length with the final zero byte, or a negative error number.
        let length = bpf_probe_read_kernel_str((&raw mut (*event).path).cast(), CGROUP_PATH as u32, path.cast());
        if length <= 1 || length >= CGROUP_PATH as i64 {
            record.discard(0);
            count_lost();
            log::cgroup_event_lost(tag);
            return 0;
        }
        let value = length as u32 - 1;
        (&raw mut (*event).head).write(CgroupEvent { kind: CgroupEvent::CREATED, value, cgroup: tag, ran_ns: 0 });
        record.submit(0);
    }
    0
}

/// `cgroup_rmdir(cgroup, path)`: after the last task left the cgroup.
#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
pub fn cgroup_removed(ctx: RawTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe {
        let cgroup: Object = ctx.arg(0);
        let tag = tag(cgroup);
        if tag == 0 {
            return 0;
        }
        let (mut ran_ns, mut most, mut on) = (0u64, 0u64, 0u32);
        if setting!(READS_REMOVED) != 0 && tag & V1_TAG == 0 {
            let counters = follow!(Probed, cgroup, CgroupRstat);
            let count = field!(counters, RstatSumExec);
            let mut cpu = 0;
            while cpu < setting!(POSSIBLE_CPUS) as u32 {
                if let Some(base) = BASES.get(cpu) {
                    let ns: u64 = Probed::read(count.wrapping_add(*base as usize));
                    ran_ns = ran_ns.wrapping_add(ns);
                    if ns > most {
                        (most, on) = (ns, cpu);
                    }
                }
                cpu += 1;
            }
        }
        let Some(mut record) = CGROUP_EVENTS.reserve_untyped::<CgroupEvent>(0) else {
            count_lost();
            log::cgroup_event_lost(tag);
            return 0;
        };
        record.as_mut_ptr().write(CgroupEvent { kind: CgroupEvent::REMOVED, value: on, cgroup: tag, ran_ns });
        record.submit(0);
    }
    0
}

/// `cgroup_rename(cgroup, path)`, of v1 only: the paths below it change too, so the trees must be
/// scanned.
#[raw_tracepoint(tracepoint = "cgroup_rename")]
pub fn cgroup_renamed(_ctx: RawTracePointContext) -> i32 {
    count_lost();
    0
}

/// The cgroup's identity; 0 if it is in a tree that is not counted.
///
/// # Safety
/// No requirement: it reads through helpers.
#[inline(always)]
unsafe fn tag(cgroup: Object) -> Tag {
    // SAFETY: `Probed` accepts any address.
    unsafe {
        let root = follow!(Probed, cgroup, CgroupRoot);
        // The v2 tree has the number 0, as in /proc/PID/cgroup.
        let hierarchy: u32 = Probed::read(field!(root, RootHierarchy));
        let id = kernfs_id::<Probed>(cgroup);
        if hierarchy == 0 {
            id
        } else if u64::from(hierarchy) == setting!(V1_HIERARCHY) {
            id | V1_TAG
        } else {
            0
        }
    }
}

fn count_lost() {
    if let Some(lost) = CGROUP_EVENTS_LOST.get_ptr_mut(0) {
        // SAFETY: one word of the map, to which other CPUs may add concurrently.
        unsafe { add(lost, 1) };
    }
}
