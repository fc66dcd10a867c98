//! The ABI between the eBPF programs and the probe: plain data, no logic, no allocation.
//!
//! Both sides compile this file, so their layouts cannot differ. Field order and sizes are asserted
//! below because the probe maps these bytes into its own memory and reads them directly.
//!
//! Each CPU has its own *bank* of per-cgroup counters: the elements `cpu * slots + slot` of
//! [`RunTime`], [`RunQueueCounts`] and [`HardwareCounts`]. Only that CPU writes them, so no lock or
//! atomic operation is needed, and every counter only grows (or wraps).
#![no_std]

/// A field of a kernel object, whose offset depends on the running kernel.
///
/// rustc emits no CO-RE relocations (aya-rs/aya#349). Instead the programs add a marked constant,
/// [`FIELD_MARK`] plus the field's number, to an object's address, and the probe replaces it with
/// the offset before it loads them. The instruction then holds the offset as if the program had
/// been compiled for this kernel.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// `task_struct.pid`
    TaskPid,
    /// `task_struct.se.sum_exec_runtime`
    TaskSumExec,
    /// `task_struct.se.prev_sum_exec_runtime`
    TaskPrevSumExec,
    /// `task_struct.se.exec_start`
    TaskExecStart,
    /// `task_struct.policy`
    TaskPolicy,
    /// `task_struct.prio`
    TaskPrio,
    /// `task_struct.sched_info.run_delay`
    TaskRunDelay,
    /// `task_struct.__state`, before 5.14 `state`
    TaskState,
    /// `task_struct.cgroups`
    TaskCgroups,
    /// `css_set.dfl_cgrp`
    CssSetDflCgrp,
    /// `css_set.subsys[cpu_cgrp_id]`
    CssSetCpu,
    /// `css_set.subsys[cpuacct_cgrp_id]`
    CssSetCpuacct,
    /// `cgroup_subsys_state.cgroup`
    CssCgroup,
    /// `cgroup_subsys_state.serial_nr`
    CssSerial,
    /// `cgroup_subsys_state.parent`
    CssParent,
    /// `cpuacct.cpuusage`, from `cpuacct.css` on
    CpuacctUsage,
    /// `cgroup.self.serial_nr`
    CgroupSerial,
    /// `cgroup.level`
    CgroupLevel,
    /// `cgroup.kn`
    CgroupKn,
    /// `cgroup.rstat_base_cpu`, before 6.16 `cgroup.rstat_cpu`
    CgroupRstat,
    /// `bstat.cputime.sum_exec_runtime` of what that points to
    RstatSumExec,
    /// `kernfs_node.id`
    KernfsId,
    /// `bpf_array.pptrs`
    BpfArrayPptrs,
    /// `task_struct.tgid`
    TaskTgid,
    /// `task_struct.comm`
    TaskComm,
    /// `task_struct.mm`
    TaskMm,
    /// `task_struct.signal`
    TaskSignal,
    /// `mm_struct.arg_start`
    MmArgStart,
    /// `mm_struct.arg_end`
    MmArgEnd,
    /// `signal_struct.live`
    SignalLive,
    /// `signal_struct.sum_sched_runtime`
    SignalSumSched,
    /// `file.f_inode`
    FileInode,
    /// `file.private_data`
    FilePrivate,
    /// `inode.i_mode`
    InodeMode,
    /// `socket.sk`
    SocketSock,
    /// `sock.sk_protocol`
    SockProtocol,
    /// `sock.__sk_common.skc_num`
    SockPort,
    /// `cgroup.root`
    CgroupRoot,
    /// `cgroup_root.hierarchy_id`
    RootHierarchy,
}

/// Marks the immediate operand of an addition whose low byte is a [`Field`]: `WCF`, far above any
/// offset.
pub const FIELD_MARK: u32 = 0x5743_4600;

/// Maximum number of cgroups that are counted separately. Further cgroups are counted in
/// [`CpuState::overflow`], without their identity.
pub const MAX_CGROUPS: usize = 4096;

/// Maximum number of CPUs. The banks are sized for the possible CPUs of the machine.
pub const MAX_CPUS: usize = 8192;

/// The cgroup tree that an id belongs to. Ids are inode numbers of one kernfs root each, so the
/// same number occurs in both trees of a hybrid host.
pub mod hierarchy {
    /// The unified (v2) hierarchy.
    pub const V2: u64 = 0;
    /// The v1 hierarchy that the `cpu` controller is mounted on.
    pub const V1_CPU: u64 = 1;
}

/// The cgroup that a task is charged to: its v2 leaf, or its v1 `cpu` cgroup if the task is in the
/// v2 root.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct CgroupKey {
    /// kernfs id, equal to `st_ino` of the cgroup's directory on 64-bit kernels
    /// (fs/kernfs/mount.c, 5.5 and later). Its upper half is a generation that the kernel
    /// increments, so an id is never reused.
    pub id: u64,
    /// One of the constants in [`hierarchy`].
    pub hierarchy: u64,
}

/// A [`CgroupKey`] packed into one word, as the programs store it: the id, with the tree in the
/// topmost bit, which no generation reaches (fs/kernfs/dir.c increments it each time that 2^32
/// inode numbers are used up). Zero means no cgroup.
pub type Tag = u64;

/// The bit of a [`Tag`] that stands for [`hierarchy::V1_CPU`].
pub const V1_TAG: Tag = 1 << 63;

impl CgroupKey {
    /// Packs the key into one word.
    #[must_use]
    pub const fn tag(&self) -> Tag {
        if self.hierarchy == hierarchy::V1_CPU { self.id | V1_TAG } else { self.id }
    }

    /// Unpacks a key.
    #[must_use]
    pub const fn of(tag: Tag) -> Self {
        let hierarchy = if tag & V1_TAG == 0 { hierarchy::V2 } else { hierarchy::V1_CPU };
        Self { id: tag & !V1_TAG, hierarchy }
    }
}

/// Upper bounds of the histogram buckets of run-queue waits, in nanoseconds; the last bucket has
/// none. They range from imperceptible to several frames: at 60 fps a frame lasts 16.7 ms.
pub const WAIT_BOUNDS_NS: [u64; WAIT_BUCKETS - 1] = [
    10_000,
    50_000,
    100_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
];
/// Number of histogram buckets of run-queue waits.
pub const WAIT_BUCKETS: usize = 12;

/// Run time of a cgroup since counting began, as the scheduler counts it, which `cpu.stat` shows
/// too. Both fields only grow and there is no sum field, because a reader may see one update before
/// the other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct RunTime {
    /// Nanoseconds while the SMT sibling was idle, or where there is none.
    pub alone_ns: u64,
    /// Nanoseconds while the SMT sibling was busy too.
    pub shared_ns: u64,
}

impl RunTime {
    /// Run time without a busy sibling.
    #[must_use]
    pub const fn alone(ns: u64) -> Self {
        Self { alone_ns: ns, shared_ns: 0 }
    }

    /// Total run time in nanoseconds.
    #[must_use]
    pub const fn ns(&self) -> u64 {
        self.alone_ns.saturating_add(self.shared_ns)
    }
}

/// Run-queue waits and context switches of a cgroup's tasks. The counts wrap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunQueueCounts {
    /// Nanoseconds spent runnable but not running, counted at switch-out: Δ `sched_info.run_delay`.
    pub wait_ns: u64,
    /// Context switches by the wait that preceded the run, in the buckets of
    /// [`WAIT_BOUNDS_NS`].
    pub wait_buckets: [u32; WAIT_BUCKETS],
    /// Voluntary context switches (the task blocked) and involuntary ones (it was still runnable).
    pub switches: [u32; 2],
}

/// Number of hardware counters of each CPU.
pub const COUNTERS: usize = 3;

/// Hardware events counted while a cgroup was on a CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardwareCounts {
    /// Cycles, instructions, misses of the last-level cache.
    pub events: [u64; COUNTERS],
    /// Padding that keeps an element within one cache line.
    pub unused: u64,
}

/// An entry of a CPU's cache of slots.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CachedSlot {
    /// Address of a `css_set`, the kernel object that all tasks of the same cgroups share. The
    /// kernel may reuse the address.
    pub set: u64,
    /// `serial_nr` of its v2 leaf, which the kernel never reuses; if the leaf is the root, that of
    /// its v1 `cpu` state, with the topmost bit set.
    pub serial: u64,
    /// Element of the banks that its time is added to.
    pub element: u64,
}

/// Entries of that cache; a power of two.
pub const SLOT_CACHE_SIZE: usize = 64;

/// State of a CPU between context switches. Only that CPU writes it, except `sibling`,
/// `clear_cache` and the last move. The fields that every context switch needs are in the first
/// cache line, those that it needs with SMT in the second.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// `task_struct` of the task that was switched in last; 0 before the first switch.
    pub running: u64,
    /// That task's pid; 0 is the idle task, whose time is never charged.
    pub running_pid: u32,
    /// The SMT sibling's number plus one; 0 if there is none. Written by user space.
    pub sibling: u32,
    /// That task's `se.sum_exec_runtime` when it was last charged.
    pub charged_ns: u64,
    /// That task's `sched_info.run_delay` when it was switched in; the kernel adds the wait that
    /// preceded this run only afterwards.
    pub delay_ns: u64,
    /// The slot that was charged last.
    pub last: CachedSlot,
    /// `css_set` of the running task when its run began: at its switch-in, or when
    /// `charge_running` charged it.
    pub running_set: u64,
    /// Busy time of this CPU, in one word that another CPU can read at any time. While busy:
    /// twice the time (`CLOCK_MONOTONIC`) at which it would have started if it had never been
    /// idle, plus one. While idle: twice the nanoseconds that it was busy.
    pub busy: u64,
    /// Busy time of the sibling when this CPU was last charged.
    pub sibling_busy_ns: u64,
    /// `CLOCK_MONOTONIC` when `busy` was last updated.
    pub busy_updated_ns: u64,
    /// Run time of cgroups without a slot.
    pub overflow: RunTime,
    /// Intervals lost in whole or in part: no program ran at a context switch, and no kernel
    /// counter shows what ran in between.
    pub missed: u64,
    /// `CLOCK_MONOTONIC` of the last run of `charge_running` on this CPU; an upper bound for a
    /// missed interval.
    pub charged_at_ns: u64,
    /// Number of slots that this CPU has assigned.
    pub slots_taken: u64,
    /// Bank element that the hardware counters are charged to, plus one; 0 for none.
    pub counter_element: u64,
    /// Values of the hardware counters when they were last charged.
    pub counter_values: [u64; COUNTERS],
    /// Nanoseconds that the hardware counters were enabled and running, summed over all counters.
    pub counter_time: [u64; 2],
    /// Set by user space before it frees a slot: `charge_running` then clears the slot cache and
    /// this field.
    pub clear_cache: u64,
    /// The last move of a running task on this CPU: the task, its `charged_ns`, and its `css_set`
    /// after the move. Written where the move is made, which the kernel allows once at a time.
    pub moved_task: u64,
    /// As `moved_task`.
    pub moved_charged_ns: u64,
    /// As `moved_task`.
    pub moved_set: u64,
    /// Padding to a full cache line.
    pub unused: [u64; 6],
    /// Slots of recently charged cgroups.
    pub slot_cache: [CachedSlot; SLOT_CACHE_SIZE],
}

/// Maximum number of name patterns of jobs.
pub const JOB_NAMES: usize = 4;

/// Maximum number of jobs that are tracked at once.
pub const MAX_JOBS: usize = 4096;

/// Size of the command line buffer in a start event; a power of two.
pub const JOB_ARGS: usize = 4096;

/// Size of the event ring in bytes: room for 120 start events between two ticks.
pub const JOB_EVENTS_BYTES: usize = 512 << 10;

/// Maximum number of local UDP ports per job.
pub const JOB_PORTS: usize = 4;

/// A pattern for `comm`, as the kernel stores it: 16 bytes, padded with zeros.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobName {
    /// The bytes to compare.
    pub name: [u64; 2],
    /// The bits that must match; all zero for an unused pattern.
    pub mask: [u64; 2],
}

/// A job started or ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobEvent {
    /// [`Self::STARTED`] or [`Self::ENDED`].
    pub kind: u32,
    /// Thread group of the job.
    pub tgid: u32,
    /// Cgroup of the job.
    pub cgroup: Tag,
    /// CPU time of the process before the exec, in nanoseconds.
    pub ran_ns: u64,
    /// Time of the event, `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// Length of the command line that follows, in bytes.
    pub args_len: u32,
    /// 1 if the command line is complete.
    pub args_complete: u32,
}

impl JobEvent {
    /// A program was executed.
    pub const STARTED: u32 = 1;
    /// The last thread ended.
    pub const ENDED: u32 = 2;
}

/// A job started.
#[repr(C)]
pub struct JobStarted {
    /// The part that all events have.
    pub head: JobEvent,
    /// The command line; each argument ends with a zero byte.
    pub args: [u8; JOB_ARGS],
}

/// Size of the path buffer in a creation event, with the final zero byte. Paths of Kubernetes pods
/// have some 250 bytes.
pub const CGROUP_PATH: usize = 512;

/// Size of the ring of cgroup events in bytes: room for 1,900 created cgroups between two ticks.
pub const CGROUP_EVENTS_BYTES: usize = 1 << 20;

/// A cgroup was created or removed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupEvent {
    /// [`Self::CREATED`] or [`Self::REMOVED`].
    pub kind: u32,
    /// Created: length of the path that follows, in bytes. Removed: the CPU with the largest part
    /// of `ran_ns`.
    pub value: u32,
    /// The cgroup.
    pub cgroup: Tag,
    /// Removed: total run time of its own tasks, where the program reads it, in nanoseconds.
    pub ran_ns: u64,
}

impl CgroupEvent {
    /// A cgroup was created.
    pub const CREATED: u32 = 1;
    /// A cgroup without tasks was removed.
    pub const REMOVED: u32 = 2;
}

/// A cgroup was created.
#[repr(C)]
pub struct CgroupCreated {
    /// The part that all events have.
    pub head: CgroupEvent,
    /// Path from the root of its tree, with a final zero byte.
    pub path: [u8; CGROUP_PATH],
}

/// Size of the ring of moves in bytes: room for 1,000 moves of running tasks between two ticks.
pub const MOVES_BYTES: usize = 64 << 10;

/// A task was moved into another cgroup while it ran. Its run up to the move is in no bank yet, and
/// will be charged to the cgroup that it is in when it is charged.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Move {
    /// Time of the event, `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// Run time since the task was last charged, in nanoseconds.
    pub ran_ns: u64,
    /// The cgroup that it left.
    pub from: Tag,
    /// The cgroup that it is in now.
    pub to: Tag,
    /// What the bank of this CPU contained for `to` at that time, or later.
    pub to_time: RunTime,
    /// The CPU that the task runs on.
    pub cpu: u64,
}

const _: () = {
    assert!(size_of::<CgroupEvent>() == 24);
    assert!(size_of::<CgroupCreated>() == 24 + CGROUP_PATH);
    assert!(size_of::<JobEvent>() == 40);
    assert!(size_of::<JobStarted>() == 40 + JOB_ARGS);
    assert!(size_of::<CgroupKey>() == 16);
    assert!(size_of::<RunTime>() == 16);
    assert!(size_of::<RunQueueCounts>() == 64);
    assert!(size_of::<HardwareCounts>() == 32);
    assert!(size_of::<Move>() == 56);
    assert!(core::mem::offset_of!(CpuState, running_set) == 56);
    assert!(core::mem::offset_of!(CpuState, busy) == 64);
    assert!(size_of::<CpuState>() == 256 + 24 * SLOT_CACHE_SIZE);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, only unsigned integers, no padding (sizes asserted above), every bit
    // pattern is valid.
    unsafe impl aya::Pod for super::CgroupKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::RunTime {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::RunQueueCounts {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::HardwareCounts {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::CpuState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::JobName {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_contains_hierarchy_and_full_id() {
        for hierarchy in [hierarchy::V2, hierarchy::V1_CPU] {
            let key = CgroupKey { id: 7 << 32 | 0xffff_fff1, hierarchy };
            assert_eq!(CgroupKey::of(key.tag()), key);
        }
    }
}
