//! The ABI between the eBPF programs and the probe: plain data, no logic, no allocation.
//!
//! Both sides compile this file, so their layouts cannot differ. Field order and sizes are asserted
//! below because the probe maps these bytes into its own memory and reads them directly.
//!
//! Each CPU has its own *bank* of per-cgroup counters: a [`SlotCounts`] and a [`LongWaits`] per
//! slot, which follow its [`CpuState`], and the elements `cpu * slots + slot` of
//! [`HardwareCounts`]. Only that CPU writes them, so no lock or atomic operation is needed, and
//! every counter only grows (or wraps).
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
    /// `task_struct.sched_info.last_arrival`
    TaskLastArrival,
    /// `task_struct.se.cfs_rq`
    TaskCfsRq,
    /// `cfs_rq.rq`
    CfsRqRq,
    /// `rq.clock`
    RqClock,
    /// `rq.clock_task`
    RqClockTask,
    /// `cgroup.subsys[memory_cgrp_id]`
    CgroupMemory,
    /// `cgroup.subsys[cpu_cgrp_id]`
    CgroupCpu,
    /// `cgroup.subsys[io_cgrp_id]`
    CgroupIo,
    /// `mem_cgroup.memory.usage`, from `mem_cgroup.css` on
    MemcgUsage,
    /// `mem_cgroup.memory.max`, from `mem_cgroup.css` on
    MemcgMax,
    /// `mem_cgroup.vmstats`, from `mem_cgroup.css` on
    MemcgVmstats,
    /// `memcg_vmstats.state[NR_INACTIVE_FILE]`
    VmstatsInactive,
    /// `task_group.cfs_bandwidth.quota`, from `task_group.css` on
    TaskGroupQuota,
    /// `task_group.cfs_bandwidth.period`, from `task_group.css` on
    TaskGroupPeriod,
    /// `blkcg.blkg_list.first`, from `blkcg.css` on
    BlkcgDevices,
    /// `blkcg_gq.online`, from `blkcg_gq.blkcg_node` on
    DeviceOnline,
    /// `blkcg_gq.iostat.cur.bytes`, from `blkcg_gq.blkcg_node` on
    DeviceBytes,
}

/// Marks the immediate operand of an addition whose low byte is a [`Field`]: `WCF`, far above any
/// offset.
pub const FIELD_MARK: u32 = 0x5743_4600;

/// Marks the offset of a load, which is this plus a [`Field`] below its register. No other load has
/// one that low: the stack has 512 bytes, and fields of maps have positive offsets.
pub const LOAD_MARK: u32 = 0x4000;

/// Values that the probe inserts into the instructions before it loads the programs, in place of
/// [`SETTING_MARK`] plus the position in this list. The verifier sees constants, and removes
/// branches that are never taken. One that is not set is 0.
pub const SETTINGS: [&str; 17] = [
    // 1 where the kernel records run-queue waits (CONFIG_SCHED_INFO)
    "COUNTS_WAITS",
    // 1 where the kernel has the cpu controller
    "HAS_CPU",
    // 1 where the kernel has the cpuacct controller
    "HAS_CPUACCT",
    // 1 where `sched_switch` has an argument between `preempt` and `prev` (5.18-rc1 to -rc6)
    "SWITCH_SHIFTED",
    // Number of slots in a bank
    "SLOTS_PER_CPU",
    // Number of possible CPUs
    "POSSIBLE_CPUS",
    // 1 where CPUs have siblings
    "SIBLINGS",
    // 1 where hardware counters are open
    "COUNTING",
    // Number of the v1 hierarchy with the `cpu` controller; 0 where there is none
    "V1_HIERARCHY",
    // 1 where the run time of a removed cgroup is read from the kernel's own counters
    "READS_REMOVED",
    // 1 where the clocks of a CPU's run queue can be read
    "READS_CLOCK",
    // 1 where the clocks of all run queues are one counter, so that they can be compared
    "ONE_CLOCK",
    // 1 where the memory of a cgroup can be read, and its limit
    "READS_MEMORY",
    // 1 where its inactive page cache can be read
    "READS_INACTIVE",
    // 1 where its CPU limit can be read
    "READS_CPU_LIMIT",
    // 1 where its block devices can be counted
    "READS_DEVICES",
    // 1 where the bytes of those can be read
    "READS_DEVICE_BYTES",
];

/// Marks the immediate operand of an assignment whose low byte is a position in [`SETTINGS`]:
/// `WCS`.
pub const SETTING_MARK: u32 = 0x5743_5300;

/// The mark of a setting.
///
/// # Panics
/// At compile time, when there is no such setting.
#[must_use]
pub const fn setting_mark(name: &str) -> u32 {
    let mut at = 0;
    while !equal(SETTINGS[at].as_bytes(), name.as_bytes()) {
        at += 1;
    }
    SETTING_MARK | at as u32
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

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

/// Buckets of run-queue waits that are in [`SlotCounts`]; the others are in [`LongWaits`].
pub const SHORT_WAITS: usize = 8;

/// The counters of a slot that every context switch adds to, in one cache line. What changes it
/// also needs the first line of [`CpuState`] and nothing else; the first slots are in the same page
/// of memory. Each further line or page costs a context switch 2 to 4 ns.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounts {
    /// Run time.
    pub time: RunTime,
    /// As in [`RunQueueCounts`].
    pub wait_ns: u64,
    /// As in [`RunQueueCounts`].
    pub switches: [u32; 2],
    /// The first of [`RunQueueCounts::wait_buckets`].
    pub short_waits: [u32; SHORT_WAITS],
}

/// The last of [`RunQueueCounts::wait_buckets`], of a slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LongWaits(pub [u32; WAIT_BUCKETS - SHORT_WAITS]);

/// Offset of the first [`LongWaits`] from a CPU's state, for a bank of `slots`.
#[must_use]
pub const fn long_waits_at(slots: usize) -> usize {
    size_of::<CpuState>() + slots * size_of::<SlotCounts>()
}

/// Bytes from the state of one CPU to that of the next: its state and bank, in whole pages.
#[must_use]
pub const fn cpu_bytes(slots: usize) -> usize {
    (long_waits_at(slots) + slots * size_of::<LongWaits>()).next_multiple_of(4096)
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

/// Maximum number of block devices of a cgroup whose bytes the program adds up.
pub const MAX_DEVICES: u64 = 16;

/// What a pass over a tree reads; user space writes it before.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsagePass {
    /// Number of the pass, which is never 0; passes over several trees may have the same.
    pub number: u64,
    /// The bits that the tree adds to an id.
    pub tree: u64,
    /// 1 if it reads limits too, which hardly ever change.
    pub limits: u64,
}

/// Resource usage of one container, as the kernel's objects contain it. The fields of a controller
/// belong to the pass whose number is next to them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelUsage {
    /// The last pass that found the container's memory.
    pub memory_pass: u64,
    /// Charged pages.
    pub memory_pages: u64,
    /// Pages of inactive page cache, at the kernel's last flush of the statistics.
    pub inactive_pages: u64,
    /// The last pass that found the memory limit.
    pub limit_pass: u64,
    /// Maximum number of pages; `PAGE_COUNTER_MAX` without a limit.
    pub limit_pages: u64,
    /// The last pass that found the CPU limit.
    pub cpu_pass: u64,
    /// Nanoseconds of CPU time per period; all bits set without a limit.
    pub quota_ns: u64,
    /// The period in nanoseconds.
    pub period_ns: u64,
    /// The last pass that found the block devices.
    pub io_pass: u64,
    /// Number of block devices that the cgroup, or one below it, has used. Above
    /// [`MAX_DEVICES`] the bytes are those of a part of them.
    pub devices: u64,
    /// Bytes read, at the kernel's last flush of the statistics; only in v2.
    pub bytes_read: u64,
    /// Bytes written, as above.
    pub bytes_written: u64,
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
    /// Slot that its time is added to.
    pub slot: u64,
}

/// Entries of that cache; a power of two.
pub const SLOT_CACHE_SIZE: usize = 64;

/// State of a CPU between context switches. Only that CPU writes it, except `sibling`,
/// `clear_cache` and the last move. The fields that every context switch needs are in the cache
/// line after the slot cache, those that it needs with SMT in the next. They are not at the start
/// of a page: many objects of the kernel are at the start of theirs, and all of these share a few
/// places in the first-level cache.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// Slots of recently charged cgroups.
    pub slot_cache: [CachedSlot; SLOT_CACHE_SIZE],
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
    /// Busy time of this CPU, in one word that another CPU can read at any time. While busy: twice
    /// the time at which it would have started if it had never been idle, plus one. While idle:
    /// twice the nanoseconds that it was busy. The time is that of the clock of its run queue, or
    /// `CLOCK_MONOTONIC` without ONE_CLOCK.
    pub busy: u64,
    /// Busy time of the sibling when this CPU was last charged.
    pub sibling_busy_ns: u64,
    /// The time when `busy` was last updated, by the same clock.
    pub busy_updated_ns: u64,
    /// Time that the sibling was busy since this CPU was last charged, where CPUs have siblings.
    pub overlap_ns: u64,
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
    /// Slot that the hardware counters are charged to, plus one; 0 for none.
    pub counter_slot: u64,
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
    /// The open run at the last `charge_running`, where the kernel shows its clocks: the slot of
    /// the running task plus one, 0 for none, and what that slot contained, in nanoseconds.
    pub open_slot: u64,
    /// As `open_slot`.
    pub open_bank_ns: u64,
    /// Nanoseconds by which the run queue's clock of tasks was ahead of the task's counted run
    /// time.
    pub open_ahead_ns: u64,
    /// `CLOCK_MONOTONIC` minus the run queue's clock, which stands still between its updates.
    pub clock_gap_ns: u64,
    /// The least `clock_gap_ns` of all CPUs at the last reading, where CPUs have siblings: with it,
    /// `charge_running` knows the time by the clock of a run queue that stands still. 0 if it is
    /// unknown. Written by user space.
    pub clock_offset_ns: u64,
}

/// Maximum number of name patterns of jobs.
pub const JOB_NAMES: usize = 4;

/// Maximum number of jobs that are tracked at once.
pub const MAX_JOBS: usize = 4096;

/// Size of the command line buffer in a start event; a power of two.
pub const JOB_ARGS: usize = 4096;

/// Size of the event ring in bytes: room for 120 start events between two ticks.
pub const JOB_EVENTS_BYTES: usize = 512 << 10;

/// Maximum number of threads of jobs whose creator is known at once. Of further threads it is
/// unknown.
pub const JOB_THREADS: usize = 8192;

/// Size of the ring of exited threads in bytes: room for 4,000 between two ticks.
pub const THREAD_ENDS_BYTES: usize = 256 << 10;

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

/// A thread of a job exited.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadEnd {
    /// Thread group of the job.
    pub tgid: u32,
    /// The thread.
    pub tid: u32,
    /// Its total run time in nanoseconds.
    pub ran_ns: u64,
    /// Its `comm`, as the kernel stores it.
    pub name: [u64; 2],
    /// See [`Self::creator_known`].
    pub creator: [u64; 2],
    /// 1 if `creator` is known: the name of the thread that created it, or of that one's creator
    /// and so on, up to a thread that the main thread created. All zero if the main thread created
    /// this one.
    pub creator_known: u64,
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
    assert!(size_of::<ThreadEnd>() == 56);
    assert!(size_of::<CgroupKey>() == 16);
    assert!(size_of::<RunTime>() == 16);
    assert!(size_of::<RunQueueCounts>() == 64);
    assert!(size_of::<SlotCounts>() == 64);
    assert!(size_of::<LongWaits>() == 16);
    assert!(size_of::<HardwareCounts>() == 32);
    assert!(size_of::<Move>() == 56);
    assert!(size_of::<KernelUsage>() == 96);
    assert!(size_of::<UsagePass>() == 24);
    assert!(core::mem::offset_of!(CpuState, running_set) == 24 * SLOT_CACHE_SIZE + 56);
    assert!(core::mem::offset_of!(CpuState, busy) == 24 * SLOT_CACHE_SIZE + 64);
    assert!(size_of::<CpuState>() == 256 + 24 * SLOT_CACHE_SIZE);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, only unsigned integers, no padding (sizes asserted above), every bit
    // pattern is valid.
    unsafe impl aya::Pod for super::RunTime {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SlotCounts {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::LongWaits {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::HardwareCounts {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::JobName {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::KernelUsage {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::UsagePass {}
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
