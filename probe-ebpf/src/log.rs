//! Messages about rare events: what the programs could not count, read or report.
//!
//! They are written with `--log.level=debug` only. The level is a constant to the verifier, which
//! otherwise removes the calls here, so that a context switch costs the same as without them. Each
//! call is in a branch that is rarely taken, and each message in a function of its own, so that the
//! programs contain its code once.
//!
//! The ring's size limits the messages between two ticks; those without room are lost.

use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
};
use probe_ebpf::{CpuState, Tag};

/// Whether messages are written.
#[inline(always)]
fn enabled() -> bool {
    level_enabled(Level::Debug)
}

/// Defines functions that write a message if messages are written.
macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident, $write:ident($($argument:ident: $kind:ty),*) = $format:tt;)+) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub fn $name($($argument: $kind),*) {
                if enabled() {
                    $write($($argument),*);
                }
            }

            #[cold]
            #[inline(never)]
            fn $write($($argument: $kind),*) {
                debug!((), $format $(, $argument)*);
            }
        )+
    };
}

messages! {
    /// No slot is free for a cgroup.
    slots_full, write_slots_full(cgroup: Tag) =
        "no slot is free for the cgroup {}; its CPU time counts as overflow";
    /// The kernel objects do not show which cgroup a task belongs to.
    cgroup_unreadable, write_cgroup_unreadable(tid: u32) =
        "cannot read the cgroup of the thread {}; its CPU time counts as overflow";
    /// A context switch that no program saw, and what ran before it.
    interval_missed, write_interval_missed(tid: u32) =
        "no program saw a context switch of the thread {}; part of its CPU time is lost";
    /// A hardware counter that cannot be read.
    counter_unreadable, write_counter_unreadable(counter: u64, cpu: u32, error: i64) =
        "cannot read the hardware counter {} of CPU {}: error {}";
    /// A job that is not tracked, or an event of one, without room.
    job_lost, write_job_lost(process: u32) =
        "no room for an event of the job with the process id {}";
    /// The command line of a job.
    arguments_unreadable, write_arguments_unreadable(process: u32, error: i64) =
        "cannot read the command line of the job with the process id {}: error {}";
    /// An exited thread of a job, without room.
    thread_lost, write_thread_lost(process: u32) =
        "no room for an exited thread of the job with the process id {}";
    /// A created or removed cgroup, without room or with a path that cannot be read.
    cgroup_event_lost, write_cgroup_event_lost(cgroup: Tag) =
        "no event of the cgroup {}: the ring is full, or its path is too long; the trees are scanned";
    /// The move of a running task, without room.
    move_lost, write_move_lost(cgroup: Tag) =
        "no room for a move into the cgroup {}; the task takes its run along";
}

/// Counts an interval that is lost in whole or in part.
///
/// # Safety
/// `state` belongs to this CPU.
#[inline(always)]
pub unsafe fn count_missed(state: *mut CpuState, tid: u32) {
    // SAFETY: the caller's contract.
    unsafe { (*state).missed += 1 };
    interval_missed(tid);
}
