//! Moves of running tasks between cgroups.
//!
//! A task is charged to the cgroup that it is in when it is charged: at its switch-out, or by
//! `charge_running`. A task that is moved while it runs would take its run since then along, up to
//! a tick of the probe. The programs here report that run, and user space gives it back.
//!
//! The kernel calls them after the move, once for all threads of a process. Therefore each CPU is
//! checked for a task that is in another `css_set` than when its run began. The context switch only
//! records that address, and its cost does not depend on moves.

use aya_ebpf::{
    btf_maps::RingBuf,
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, raw_tracepoint},
    programs::RawTracePointContext,
};
use probe_ebpf::{CpuState, MOVES_BYTES, Move, RunTime, Tag, V1_TAG};

use crate::{
    kernel::{Probed, Task, follow, kernfs_id, tag},
    log,
    offsets::{Object, field, setting},
    slots::{NONE, counts, cpu_state, find_or_assign, this_cpu_state},
};

/// Moves of running tasks, in order. Without room for one, the task takes its run along.
#[btf_map]
static MOVES: RingBuf<Move, MOVES_BYTES> = RingBuf::new();

/// `cgroup_attach_task(cgroup, path, task, threadgroup)`: a process or thread was moved.
#[raw_tracepoint(tracepoint = "cgroup_attach_task")]
pub fn task_attached(ctx: RawTracePointContext) -> i32 {
    // SAFETY: `Probed` accepts any address.
    unsafe { report_moves(ctx.arg(0)) }
}

/// `cgroup_transfer_tasks(cgroup, path, task, threadgroup)`: the kernel moved a task out of a v1
/// cpuset that has no CPUs any more.
#[raw_tracepoint(tracepoint = "cgroup_transfer_tasks")]
pub fn tasks_transferred(ctx: RawTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { report_moves(ctx.arg(0)) }
}

/// Reports the run of every task that was moved into this cgroup while it runs.
///
/// # Safety
/// The kernel moves tasks under one lock, so no other CPU runs this.
#[inline(always)]
unsafe fn report_moves(cgroup: Object) -> i32 {
    // SAFETY: a helper without arguments; `Probed` accepts any address; `own` belongs to this CPU.
    unsafe {
        let Some(own) = this_cpu_state() else { return 0 };
        let id = kernfs_id::<Probed>(cgroup);
        let mut cpu = 0;
        while cpu < setting!(POSSIBLE_CPUS) as u32 {
            if let Some(state) = cpu_state(cpu) {
                report_move(own, cpu, state, id);
            }
            cpu += 1;
        }
    }
    0
}

/// Reports the run of the task on one CPU, if it was moved into the cgroup `id`.
///
/// # Safety
/// As [`report_moves`]; `own` belongs to this CPU, `state` to `cpu`.
#[inline(always)]
unsafe fn report_move(own: *mut CpuState, cpu: u32, state: *mut CpuState, id: u64) {
    // SAFETY: the caller's contract. The words of another CPU's state are read in one piece; its
    // task may no longer exist, and `Probed` accepts any address.
    unsafe {
        let (running, charged) = (read(&raw const (*state).running), read(&raw const (*state).charged_ns));
        let pid = u64::from((&raw const (*state).running_pid).read_volatile());
        if running == 0 || pid == 0 {
            return;
        }
        let moved_before = (*state).moved_task == running && (*state).moved_charged_ns == charged;
        let began_in = read(&raw const (*state).running_set);
        let old = if moved_before { (*state).moved_set } else { began_in };
        let task = Task::read::<Probed>(running as Object);
        let new = follow!(Probed, running as Object, TaskCgroups) as u64;
        if old == 0 || new == old || task.pid != pid {
            return;
        }
        // Otherwise that CPU has charged the run meanwhile, and the values belong to two runs.
        if read(&raw const (*state).running) != running || read(&raw const (*state).charged_ns) != charged {
            return;
        }
        let to = cgroup_of(new as Object);
        if to & !V1_TAG != id {
            return;
        }
        (*state).moved_task = running;
        (*state).moved_charged_ns = charged;
        (*state).moved_set = new;
        // The kernel frees a `css_set` after a grace period, and this program runs within it.
        let from = cgroup_of(old as Object);
        let ran_ns = task.ran_ns.wrapping_sub(charged);
        if from == 0 || from == to || ran_ns == 0 || (ran_ns as i64) < 0 {
            return;
        }
        report(
            own,
            state,
            Move { at_ns: 0, ran_ns, from, to, to_time: RunTime { alone_ns: 0, shared_ns: 0 }, cpu: u64::from(cpu) },
        );
    }
}

/// Writes a move to the ring, with its time and the bank's content.
///
/// # Safety
/// As [`report_move`].
#[inline(always)]
unsafe fn report(own: *mut CpuState, state: *mut CpuState, moved: Move) {
    // SAFETY: the caller's contract; the record is exclusive until it is submitted.
    unsafe {
        // Both get a row, even if the task was never charged to the cgroup that it left.
        let (from, to) = (find_or_assign(own, moved.from), find_or_assign(own, moved.to));
        if from == NONE || to == NONE {
            return;
        }
        // The time comes first: user space compares it with that of its last reading.
        let at_ns = bpf_ktime_get_ns();
        let Some(counts) = counts(state, to) else { return };
        let time = &raw const (*counts).time;
        let (alone_ns, shared_ns) = (read(&raw const (*time).alone_ns), read(&raw const (*time).shared_ns));
        let Some(mut record) = MOVES.reserve_untyped::<Move>(0) else {
            log::move_lost(moved.to);
            return;
        };
        record.as_mut_ptr().write(Move { at_ns, to_time: RunTime { alone_ns, shared_ns }, ..moved });
        record.submit(0);
    }
}

/// A word that another CPU may write at the same time.
///
/// # Safety
/// `word` can be read.
#[inline(always)]
unsafe fn read(word: *const u64) -> u64 {
    // SAFETY: the caller's contract.
    unsafe { word.read_volatile() }
}

/// The cgroup that the tasks of a `css_set` are charged to; 0 if it no longer exists.
///
/// # Safety
/// No requirement: it reads through helpers.
#[inline(always)]
unsafe fn cgroup_of(set: Object) -> Tag {
    // SAFETY: `Probed` accepts any address.
    unsafe {
        let leaf = follow!(Probed, set, CssSetDflCgrp);
        let root = setting!(HAS_CPU) != 0 && Probed::read::<u32>(field!(leaf, CgroupLevel)) == 0;
        tag::<Probed>(set, leaf, root)
    }
}
