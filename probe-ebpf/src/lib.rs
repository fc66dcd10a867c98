//! The ABI between the kernel side and the probe: plain data, no logic, no allocation.
//!
//! Both sides compile this file, so a layout cannot drift. Field order and sizes are asserted below because the probe
//! maps these bytes into its own memory and reads them as they are.
//!
//! What a CPU counts lies in its own *bank*: element `cpu * slots + slot` of [`RunTime`], [`Waits`] and [`Counted`]. Only
//! that CPU writes there, so nothing needs a lock or an atomic operation, and every number only grows (or wraps).
#![no_std]

/// A field of an object of the kernel, wherever the running kernel has it.
///
/// rustc emits no CO-RE relocations (aya-rs/aya#349), so the programs add a marked number, [`FIELD_MARK`] and the field's own, to an
/// object's address, and the probe puts the offset there before it loads them: an instruction holds it, as if it had been
/// compiled for this kernel.
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
}

/// In the immediate of an addition: the low byte is a [`Field`]. `WCF`, and far beyond any offset.
pub const FIELD_MARK: u32 = 0x5743_4600;

/// Most cgroups that can be told apart at once. Time of a cgroup beyond it goes to [`CpuState::overflow`],
/// so it is counted, only not named.
pub const MAX_CGROUPS: usize = 4096;

/// Most CPUs that the programs serve. The banks of a machine are made for those it may have.
pub const MAX_CPUS: usize = 8192;

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
    /// kernfs id, equal to `st_ino` of the cgroup's directory on 64-bit kernels (fs/kernfs/mount.c, 5.5 and later). Its
    /// upper half is a generation that the kernel counts up, so an id is never used twice.
    pub id: u64,
    /// One of [`hierarchy`].
    pub hierarchy: u64,
}

/// A [`CgroupKey`] in one word, as the programs hold it: the id, and the tree in the topmost bit, which no generation reaches
/// (fs/kernfs/dir.c counts it up by one each time that 2^32 inode numbers are used up). Zero is nobody.
pub type Tag = u64;

/// The bit of a [`Tag`] that says [`hierarchy::V1_CPU`].
pub const V1_TAG: Tag = 1 << 63;

impl CgroupKey {
    /// In one word.
    #[must_use]
    pub const fn tag(&self) -> Tag {
        if self.hierarchy == hierarchy::V1_CPU { self.id | V1_TAG } else { self.id }
    }

    /// Back from one word.
    #[must_use]
    pub const fn of(tag: Tag) -> Self {
        let hierarchy = if tag & V1_TAG == 0 { hierarchy::V2 } else { hierarchy::V1_CPU };
        Self { id: tag & !V1_TAG, hierarchy }
    }
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

/// Nanoseconds that a cgroup was on a CPU since counting began, in the scheduler's own figure, which `cpu.stat` shows too.
/// Two fields that both only grow, and no sum: a reader may see one of them before the other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct RunTime {
    /// While the CPU's sibling idled, or where it has none.
    pub alone_ns: u64,
    /// While the CPU's sibling was busy too.
    pub shared_ns: u64,
}

impl RunTime {
    /// Time without a busy sibling.
    #[must_use]
    pub const fn alone(ns: u64) -> Self {
        Self { alone_ns: ns, shared_ns: 0 }
    }

    /// All of it.
    #[must_use]
    pub const fn ns(&self) -> u64 {
        self.alone_ns.saturating_add(self.shared_ns)
    }
}

/// How a cgroup's tasks came to run on a CPU and ceased to. The counts wrap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Nanoseconds runnable and not running, of stints that have ended: Δ `sched_info.run_delay`.
    pub wait_ns: u64,
    /// Stints by how long they had waited for the CPU, in the classes of [`WAIT_NS`].
    pub classes: [u32; WAIT_CLASSES],
    /// Stints that ended because the task waits for something, and those that ended although it could have gone on.
    pub ends: [u32; 2],
}

/// Hardware counters, in this order, of a CPU.
pub const COUNTERS: usize = 3;

/// What the hardware counted while a cgroup was on a CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Cycles, instructions, misses of the last-level cache.
    pub events: [u64; COUNTERS],
    /// Keeps an element within one line of the cache.
    pub unused: u64,
}

/// One place of a CPU's memory of who has which slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Address of a `css_set`, the kernel's object for all tasks of the same cgroups. It may be taken again for another.
    pub set: u64,
    /// `serial_nr` of its v2 leaf, which the kernel never gives twice; where that is the root, of its v1 `cpu` state, with the topmost
    /// bit set.
    pub serial: u64,
    /// Where its time goes: an element of the banks.
    pub at: u64,
}

/// Places in that memory; a power of two.
pub const KNOWN: usize = 64;

/// What a CPU remembers between two switches. Written by that CPU, but for `sibling` and `forget`. What every switch needs lies in
/// the first line of the cache.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// `task_struct` of the task that was switched in last; 0 before the first switch.
    pub running: u64,
    /// That task's pid; 0 is the idle task, which is never charged.
    pub running_pid: u32,
    /// The CPU that shares the core, plus one; 0 where there is none. Written by user space.
    pub sibling: u32,
    /// That task's `se.sum_exec_runtime` when it was last charged.
    pub charged_ns: u64,
    /// That task's `sched_info.run_delay` when it was switched in; the kernel adds the wait before this stint only afterwards.
    pub delay_ns: u64,
    /// Who was charged last.
    pub last: Known,
    /// How long this CPU has been busy, in a word that another CPU can read at any moment: while busy, twice the time (`CLOCK_MONOTONIC`)
    /// at which it would have begun, had it never idled, plus one; while idle, twice the nanoseconds that it was busy.
    pub busy: u64,
    /// How long the sibling had been busy when this CPU was last charged.
    pub sibling_busy_ns: u64,
    /// Time of cgroups that found no slot.
    pub overflow: RunTime,
    /// Intervals lost in whole or in part: a switch was not seen, and no figure of the kernel says what ran meanwhile.
    pub missed: u64,
    /// `CLOCK_MONOTONIC` of the last run of `charge_running` here; bounds what an unseen interval can hold.
    pub swept_at_ns: u64,
    /// Slots that this CPU took.
    pub newcomers: u64,
    /// The element of the bank that the hardware counters run for, plus one; 0 for nobody's.
    pub counting: u64,
    /// The hardware counters when they were last charged.
    pub counted: [u64; COUNTERS],
    /// For how long they were wanted, and for how long the hardware had a place for them, in nanoseconds, all of them together.
    pub counter_time: [u64; 2],
    /// Set by user space when a slot is to be given back: `charge_running` then forgets who has which, and clears it.
    pub forget: u64,
    /// `CLOCK_MONOTONIC` when `busy` was last brought up to date.
    pub beside_at_ns: u64,
    /// Fills the line.
    pub unused: [u64; 2],
    /// Who was charged before that.
    pub known: [Known; KNOWN],
}

/// Names of programs that are jobs, at most.
pub const JOB_NAMES: usize = 4;

/// Jobs that are followed at once, at most.
pub const MAX_JOBS: usize = 4096;

/// Bytes of a command line that an event holds; a power of two.
pub const JOB_ARGS: usize = 4096;

/// Bytes of the ring of events: 120 beginnings with their command lines between two ticks.
pub const JOB_EVENTS_BYTES: usize = 512 << 10;

/// Ports of datagrams that are kept of each job.
pub const JOB_PORTS: usize = 4;

/// A name to look for, as the kernel keeps names: 16 bytes, zeros at the end.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobName {
    /// The name.
    pub name: [u64; 2],
    /// Which of its bits must be the same; all zero for no name.
    pub mask: [u64; 2],
}

/// A job began or ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobEvent {
    /// [`Self::STARTED`] or [`Self::ENDED`].
    pub kind: u32,
    /// Its thread group.
    pub tgid: u32,
    /// Where it ran.
    pub cgroup: Tag,
    /// What it had run when it began, in nanoseconds: as whoever executed it.
    pub ran_ns: u64,
    /// `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// Bytes of its command line that follow.
    pub args: u32,
    /// 1 when that is all of it.
    pub whole: u32,
}

impl JobEvent {
    /// A program was executed.
    pub const STARTED: u32 = 1;
    /// The last thread ended.
    pub const ENDED: u32 = 2;
}

/// A job began.
#[repr(C)]
pub struct JobStarted {
    /// What every event says.
    pub head: JobEvent,
    /// The command line, its words ended by zeros.
    pub args: [u8; JOB_ARGS],
}

const _: () = {
    assert!(size_of::<JobEvent>() == 40);
    assert!(size_of::<JobStarted>() == 40 + JOB_ARGS);
    assert!(size_of::<CgroupKey>() == 16);
    assert!(size_of::<RunTime>() == 16);
    assert!(size_of::<Waits>() == 64);
    assert!(size_of::<Counted>() == 32);
    assert!(core::mem::offset_of!(CpuState, busy) == 56);
    assert!(size_of::<CpuState>() == 192 + 24 * KNOWN);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, only unsigned integers, no padding (sizes asserted above), every bit pattern is valid.
    unsafe impl aya::Pod for super::CgroupKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::RunTime {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Waits {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Counted {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::CpuState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::JobName {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_holds_the_tree_and_the_whole_id() {
        for hierarchy in [hierarchy::V2, hierarchy::V1_CPU] {
            let key = CgroupKey { id: 7 << 32 | 0xffff_fff1, hierarchy };
            assert_eq!(CgroupKey::of(key.tag()), key);
        }
    }
}
