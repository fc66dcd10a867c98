//! The ABI between the kernel side and the probe: plain data, no logic, no allocation.
//!
//! Both sides compile this file, so a layout cannot drift. Field order and sizes are asserted below because the
//! kernel copies these bytes verbatim through map reads.
#![no_std]

/// Most cgroups that can be told apart at once. Time of a cgroup beyond it goes to [`CpuState::overflow_ns`],
/// so it is counted, only not named.
pub const MAX_CGROUPS: usize = 4096;

/// Which cgroup tree an id belongs to. Ids are inode numbers of one kernfs root each, so the same number
/// occurs in both trees of a hybrid host.
pub mod hierarchy {
    /// The unified (v2) hierarchy.
    pub const V2: u64 = 0;
    /// The v1 hierarchy that the `cpu` controller is mounted on.
    pub const V1_CPU: u64 = 1;
}

/// Who is charged: the task's v2 leaf, or its v1 `cpu` cgroup when the task sits in the v2 root.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct CgroupKey {
    /// kernfs id, equal to `st_ino` of the cgroup's directory on 64-bit kernels (fs/kernfs/mount.c, 5.5 and later).
    pub id: u64,
    /// One of [`hierarchy`].
    pub hierarchy: u64,
}

/// Upper ends of the classes of run-queue waits, in nanoseconds; the last class has none. From what no viewer sees up to several
/// frames: at 60 a second a frame lasts 16.7 ms.
pub const WAIT_NS: [u64; WAIT_CLASSES - 1] = [
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
/// Classes of run-queue waits.
pub const WAIT_CLASSES: usize = 12;

/// What one cgroup did on one CPU. The map keeps one of these per CPU; only that CPU writes it. The counts wrap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupTime {
    /// Nanoseconds on the CPU since the program was attached: Δ `se.sum_exec_runtime`, the figure `cpu.stat` shows.
    pub run_ns: u64,
    /// Nanoseconds runnable and not running, of stints that have ended: Δ `sched_info.run_delay`.
    pub wait_ns: u64,
    /// Stints by how long they had waited for the CPU, in the classes of [`WAIT_NS`].
    pub waits: [u32; WAIT_CLASSES],
    /// Stints that ended because the task waits for something.
    pub voluntary: u32,
    /// Stints that ended although the task could have gone on.
    pub involuntary: u32,
}

/// What a CPU remembers between two switches.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuState {
    /// `task_struct` of the task that was switched in last; 0 before the first switch.
    pub running: u64,
    /// That task's pid; 0 is the idle task, which is never charged.
    pub running_pid: u64,
    /// That task's `se.sum_exec_runtime` when it was last charged.
    pub charged_ns: u64,
    /// That task's `sched_info.run_delay` when it was switched in; the kernel adds the wait before this stint only afterwards.
    pub delay_ns: u64,
    /// Time of cgroups that found no place in the map.
    pub overflow_ns: u64,
    /// Intervals lost in whole or in part: a switch was not seen, and no figure of the kernel says what ran meanwhile.
    pub missed: u64,
    /// `CLOCK_MONOTONIC` of the last run of `charge_running` here; bounds what an unseen interval can hold.
    pub swept_at_ns: u64,
}

const _: () = {
    assert!(size_of::<CgroupKey>() == 16);
    assert!(size_of::<CgroupTime>() == 72);
    assert!(size_of::<CpuState>() == 56);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, only unsigned integers, no padding (sizes asserted above), every bit pattern is valid.
    unsafe impl aya::Pod for super::CgroupKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::CgroupTime {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::CpuState {}
}
