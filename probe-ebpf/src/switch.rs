//! CPU time, run-queue waits and context switches per cgroup and CPU, on `sched_switch`.
//!
//! The charged interval is Δ `se.sum_exec_runtime`, not Δ clock: it is the scheduler's own counter,
//! so the sums equal `cpu.stat` by construction, and interrupt time is charged to the same task as
//! in the kernel.
//!
//! A program on `sched_switch` alone misses a task that does not switch: two encoders that were
//! still running when the banks were read were measured 10.9 % short. Therefore user space runs a
//! second program, `charge_running`, on every CPU at every tick (BPF_PROG_TEST_RUN, 5.10), which
//! charges the task that is running, as far as the kernel has counted its run, and notes how far
//! that is behind ([`note_open_run`]).

use aya_ebpf::{
    helpers::{bpf_ktime_get_ns, generated::bpf_get_current_task},
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use probe_ebpf::{CpuState, RunTime, SHORT_WAITS, SlotCounts, WAIT_BOUNDS_NS};

use crate::{
    counters,
    kernel::{Probed, Read, Task, Typed, follow, load, run_queue},
    log::count_missed,
    offsets::{Object, field, setting},
    slots::{self, counts, cpu_state, long_waits, slot, this_cpu_state},
};

/// `sched_switch(preempt, prev, next)`: charges `prev` and records `next` as running.
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let preempted: u64 = ctx.arg(0);
    // SAFETY: the tasks are arguments of a typed tracepoint.
    unsafe {
        if setting!(SWITCH_SHIFTED) == 0 {
            switch::<Typed>(preempted, ctx.arg(1), ctx.arg(2))
        } else {
            switch::<Typed>(preempted, ctx.arg(2), ctx.arg(3))
        }
    }
}

/// Raw tracepoint variant, for kernels that refuse the typed program.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn sched_switch_raw(ctx: RawTracePointContext) -> i32 {
    let preempted: u64 = ctx.arg(0);
    // SAFETY: `Probed` accepts any address.
    unsafe {
        if setting!(SWITCH_SHIFTED) == 0 {
            switch::<Probed>(preempted, ctx.arg(1), ctx.arg(2))
        } else {
            switch::<Probed>(preempted, ctx.arg(2), ctx.arg(3))
        }
    }
}

/// Charges the task that is running on this CPU now. User space runs it; it is attached to nothing.
#[raw_tracepoint]
pub fn charge_running(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: helpers without arguments; `state` belongs to this CPU; `Probed` accepts any address.
    unsafe {
        let Some(state) = this_cpu_state() else { return 0 };
        let now = bpf_get_current_task() as Object;
        let pid = load!(Probed, half, now, TaskPid);
        let at = if setting!(SIBLINGS) == 0 { 0 } else { present_by_busy_clock(state, now) };
        if is_observed(state, now, pid) {
            charge_interval::<Probed, false>(state, now, pid, now, at, 0);
        } else {
            (*state).delay_ns = SWITCH_MISSED;
            charge_after_missed::<Probed>(state, now, now, at);
        }
        // Before the counters get their next element, which may come from the cache.
        if (*state).clear_cache != 0 {
            slots::clear_cache(state);
        }
        if setting!(COUNTING) != 0 {
            counters::charge(state, counter_slot::<Probed>(state, now));
        }
        if setting!(READS_CLOCK) != 0 {
            note_open_run(state, now, pid);
        }
        (*state).charged_at_ns = bpf_ktime_get_ns();
    }
    0
}

/// Notes what user space needs to know how long the running task has run beyond its counted run
/// time, which the kernel updates at its scheduler tick.
///
/// No bank contains that time: it is counted at the next update, and a bank has each run once.
///
/// # Safety
/// `state` belongs to this CPU, and `task` runs on it.
#[inline(always)]
unsafe fn note_open_run(state: *mut CpuState, task: Object, pid: u64) {
    // SAFETY: the caller's contract; `Probed` accepts any address.
    unsafe {
        (*state).open_slot = 0;
        if pid == 0 {
            return;
        }
        let slot = slot::<Probed>(state, task, pid);
        let Some(counts) = counts(state, slot) else { return };
        let time = &raw const (*counts).time;
        let queue = run_queue::<Probed>(task);
        let clock: u64 = Probed::read(field!(queue, RqClock));
        let of_tasks: u64 = Probed::read(field!(queue, RqClockTask));
        let counted: u64 = Probed::read(field!(task, TaskExecStart));
        (*state).open_bank_ns = (*time).alone_ns.wrapping_add((*time).shared_ns);
        (*state).open_ahead_ns = of_tasks.wrapping_sub(counted);
        (*state).clock_gap_ns = bpf_ktime_get_ns().wrapping_sub(clock);
        (*state).open_slot = slot.wrapping_add(1);
    }
}

/// # Safety
/// `prev` and `next` can be read by `R`.
#[inline(always)]
unsafe fn switch<R: Read>(preempted: u64, prev: Object, next: Object) -> i32 {
    // SAFETY: a helper without arguments; the caller's contract; `state` belongs to this CPU.
    unsafe {
        let Some(state) = this_cpu_state() else { return 0 };
        let pid = load!(R, half, prev, TaskPid);
        let at = if setting!(SIBLINGS) == 0 { 0 } else { busy_clock::<R>(prev) };
        if is_observed(state, prev, pid) {
            charge_interval::<R, true>(state, prev, pid, next, at, preempted);
        } else {
            charge_after_missed::<R>(state, prev, next, at);
            if setting!(COUNTS_WAITS) != 0 {
                (*state).delay_ns = load!(R, next, TaskRunDelay);
            }
        }
        if setting!(COUNTING) != 0 {
            let next = counter_slot::<R>(state, next);
            if next != (*state).counter_slot {
                counters::charge(state, next);
            }
        }
    }
    0
}

/// The slot to charge counters to while `task` runs, plus one; 0 for the idle task.
///
/// # Safety
/// As [`slot`].
#[inline(always)]
unsafe fn counter_slot<R: Read>(state: *mut CpuState, task: Object) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let pid = load!(R, half, task, TaskPid);
        if pid == 0 { 0 } else { slot::<R>(state, task, pid).wrapping_add(1) }
    }
}

/// Whether a program ran at the last context switch of this CPU, to `task`.
///
/// # Safety
/// `state` belongs to this CPU.
#[inline(always)]
unsafe fn is_observed(state: *mut CpuState, task: Object, pid: u64) -> bool {
    // SAFETY: the caller's contract.
    unsafe { (*state).running == task as u64 && u64::from((*state).running_pid) == pid }
}

/// Records `next` as running.
///
/// # Safety
/// As [`charge_interval`].
#[inline(always)]
unsafe fn enter<R: Read>(state: *mut CpuState, next: Object, pid: u64) {
    // SAFETY: the caller's contract.
    unsafe {
        (*state).running = next as u64;
        (*state).running_pid = pid as u32;
        (*state).charged_ns = load!(R, next, TaskSumExec);
        // For the program of moves, which runs after the task has left this cgroup.
        (*state).running_set = follow!(R, next, TaskCgroups) as u64;
    }
}

/// Charges `task`, whose switch-in was observed, up to now, with its switch-out if it is
/// switched out, and records `next` as running.
///
/// # Safety
/// `state` belongs to this CPU, and no other program of ours writes it at the same time:
/// interrupts are off in sched_switch, and `charge_running` keeps the CPU (net/bpf/test_run.c: an
/// interrupt on another CPU, get_cpu on this one), so no context switch happens in between. `task`
/// and `next` can be read by `R`, and `pid` is the pid of `task`.
#[inline(always)]
unsafe fn charge_interval<R: Read, const SWITCHED_OUT: bool>(
    state: *mut CpuState,
    task: Object,
    pid: u64,
    next: Object,
    at: u64,
    preempted: u64,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let next_pid = load!(R, half, next, TaskPid);
        if setting!(SIBLINGS) != 0 {
            (*state).overlap_ns = sibling_busy(state, at, next_pid != 0);
        }
        let ran = load!(R, u64, task, TaskSumExec).wrapping_sub((*state).charged_ns);
        enter::<R>(state, next, next_pid);
        let delay_ns = (*state).delay_ns;
        if SWITCHED_OUT && setting!(COUNTS_WAITS) != 0 {
            (*state).delay_ns = load!(R, next, TaskRunDelay);
        }
        if pid == 0 {
            return;
        }
        if (ran as i64) < 0 {
            // A task's run time only grows: this is another task at the same address.
            count_missed(state, pid as u32);
            return;
        }
        if !SWITCHED_OUT && ran == 0 {
            return;
        }
        let Some(counts) = charge::<R>(state, task, pid, ran) else { return };
        if SWITCHED_OUT && setting!(COUNTS_WAITS) != 0 && delay_ns != SWITCH_MISSED {
            count_switch_out::<R>(state, counts, task, preempted, delay_ns);
        }
    }
}

/// As [`charge_interval`], of a `task` whose switch-in was not observed.
///
/// It is rare, and a function of its own, so that its values take no registers of the other path.
///
/// # Safety
/// As [`charge_interval`].
#[cold]
#[inline(never)]
unsafe fn charge_after_missed<R: Read>(state: *mut CpuState, task: Object, next: Object, at: u64) {
    // SAFETY: the caller's contract.
    unsafe {
        let (was_busy, since) = ((*state).busy & 1, (*state).busy_updated_ns);
        let next_pid = load!(R, half, next, TaskPid);
        if setting!(SIBLINGS) != 0 {
            (*state).overlap_ns = sibling_busy(state, at, next_pid != 0);
        }
        let previous = Task {
            object: (*state).running as Object,
            pid: u64::from((*state).running_pid),
            ran_ns: (*state).charged_ns,
        };
        let task = Task::read::<R>(task);
        enter::<R>(state, next, next_pid);
        if previous.object.is_null() {
            return;
        }
        let overlap_ns = core::mem::replace(&mut (*state).overlap_ns, 0);
        let previous_ran = if previous.pid == 0 { 0 } else { charge_missed_switch_out(state, previous) };
        (*state).overlap_ns = overlap_ns;
        let ran = if task.pid == 0 { 0 } else { ran_since_missed_switch::<R>(state, previous, task) };
        if setting!(SIBLINGS) != 0 && previous_ran != UNKNOWN && ran != UNKNOWN {
            let span = (*state).busy_updated_ns.wrapping_sub(since);
            let counted = if was_busy == 0 { 0 } else { span };
            let ran = previous_ran.wrapping_add(ran);
            correct_busy(state, (if ran < span { ran } else { span }).wrapping_sub(counted));
        }
        if task.pid != 0 && ran != UNKNOWN && ran != 0 {
            charge::<R>(state, task.object, task.pid, ran);
        }
    }
}

/// A run time that no kernel counter shows.
const UNKNOWN: u64 = u64::MAX;

/// Adds `by`, which may be negative, to this CPU's busy time. Between two context switches of
/// which one was missed, the CPU was busy for as long as its tasks ran, not for the whole time
/// between the observed switches. If the sibling has already counted the uncorrected time, it
/// counts correspondingly less, or more, from now on.
///
/// # Safety
/// `state` belongs to this CPU.
#[inline(always)]
unsafe fn correct_busy(state: *mut CpuState, by: u64) {
    // SAFETY: the caller's contract.
    unsafe {
        let word = (*state).busy;
        // While busy, the word contains a start time: the earlier, the longer the busy time.
        let corrected = if word & 1 == 0 { word.wrapping_add(by << 1) } else { word.wrapping_sub(by << 1) };
        (&raw mut (*state).busy).write_volatile(corrected);
    }
}

/// Charges `ran` nanoseconds, of which the sibling was busy for at most `overlap_ns` of the state,
/// to the cgroup of `task`, and returns the counters of its slot.
///
/// # Safety
/// As [`charge_interval`].
#[inline(always)]
unsafe fn charge<R: Read>(state: *mut CpuState, task: Object, pid: u64, ran: u64) -> Option<*mut SlotCounts> {
    // SAFETY: the caller's contract; the bank of this CPU is written by this CPU alone.
    unsafe {
        let slot = slot::<R>(state, task, pid);
        let Some(counts) = counts(state, slot) else {
            add_time(state, &raw mut (*state).overflow, ran);
            return None;
        };
        add_time(state, &raw mut (*counts).time, ran);
        Some(counts)
    }
}

/// Adds run time, of which the sibling was busy for at most `overlap_ns` of the state.
///
/// # Safety
/// `state` and `time` belong to this CPU.
#[inline(always)]
unsafe fn add_time(state: *mut CpuState, time: *mut RunTime, ran: u64) {
    // SAFETY: the caller's contract.
    unsafe {
        if setting!(SIBLINGS) == 0 {
            (*time).alone_ns = (*time).alone_ns.wrapping_add(ran);
        } else {
            // The two clocks differ by what the scheduler does not count: interrupts and stolen
            // time.
            let overlap = (*state).overlap_ns;
            let shared = if overlap < ran { overlap } else { ran };
            (*time).alone_ns = (*time).alone_ns.wrapping_add(ran - shared);
            (*time).shared_ns = (*time).shared_ns.wrapping_add(shared);
        }
    }
}

/// The time that busy times are measured by, at a context switch: the kernel has just updated the
/// clock of the run queue (kernel/sched/core.c, __schedule), and reading that costs a fraction of
/// reading the counter.
///
/// # Safety
/// `task` can be read by `R`, and is on this CPU.
#[inline(always)]
unsafe fn busy_clock<R: Read>(task: Object) -> u64 {
    // SAFETY: the caller's contract; a helper without arguments.
    unsafe { if setting!(ONE_CLOCK) == 0 { bpf_ktime_get_ns() } else { load!(R, run_queue::<R>(task), RqClock) } }
}

/// As [`busy_clock`], at any other moment, when the clock of the run queue stands still. Up to now
/// the sibling's time is used up, so what the task runs before the next update is charged as time
/// without it, as user space expects of an open run.
///
/// # Safety
/// `state` belongs to this CPU, and `task` is on it.
#[inline(always)]
unsafe fn present_by_busy_clock(state: *mut CpuState, task: Object) -> u64 {
    // SAFETY: the caller's contract; a helper without arguments; `Probed` accepts any address.
    unsafe {
        let updated = busy_clock::<Probed>(task);
        let offset = (&raw const (*state).clock_offset_ns).read_volatile();
        if setting!(ONE_CLOCK) == 0 || offset == 0 {
            return updated;
        }
        let now = bpf_ktime_get_ns().wrapping_sub(offset);
        if (now.wrapping_sub(updated) as i64) < 0 { updated } else { now }
    }
}

/// The sibling's busy time since the last call on this CPU, at `now` by the clock of busy times.
/// Records whether this CPU is `busy` from now on.
///
/// # Safety
/// `state` belongs to this CPU.
#[inline(always)]
unsafe fn sibling_busy(state: *mut CpuState, now: u64, busy: bool) -> u64 {
    // SAFETY: the caller's contract; one word of the sibling's state is read, which the sibling
    // writes in one piece.
    unsafe {
        (*state).busy_updated_ns = now;
        let word = (*state).busy;
        if word & 1 != u64::from(busy) {
            // Converts the start time to the busy time, or back.
            (&raw mut (*state).busy).write_volatile(now.wrapping_sub(word >> 1) << 1 | u64::from(busy));
        }
        let sibling = (&raw const (*state).sibling).read_volatile();
        if sibling == 0 {
            return 0;
        }
        let Some(other) = cpu_state(sibling - 1) else { return 0 };
        let word = (&raw const (*other).busy).read_volatile();
        let total = if word & 1 == 0 { word >> 1 } else { now.wrapping_sub(word >> 1) };
        let last = (*state).sibling_busy_ns;
        // The sibling may have read the clock a moment after this CPU.
        if (total.wrapping_sub(last) as i64) <= 0 {
            return 0;
        }
        (*state).sibling_busy_ns = total;
        total - last
    }
}

/// The run time of a task since it was switched in, when no program ran at that switch, or
/// [`UNKNOWN`].
///
/// Some context switches reach no tracing program (observed on 6.18: two threads of a VM's agent
/// are switched in and never out; the kernel counts no recursion miss). The task that runs after
/// such a thread would lose its whole interval, up to a tick. The scheduler provides two estimates;
/// the longer one that does not exceed the time since this CPU was last charged is correct:
/// - `exec_start` is the CPU's clock when a task was last charged: for `previous`, when it left,
///   unless it was switched in again; for `task`, now.
/// - `set_next_entity` copies `sum_exec_runtime` to `prev_sum_exec_runtime` (kernel/sched/fair.c)
///   when a task of the fair class is switched in, and sometimes later: measured to be short by up
///   to one period of the scheduler's tick.
///
/// The first one is too long when both such threads ran one after the other, because nothing shows
/// the second one: then what ran before `task` arrived is subtracted ([`before_arrival`]).
///
/// # Safety
/// As [`charge_interval`]; `previous` as in [`charge_missed_switch_out`].
#[inline(always)]
unsafe fn ran_since_missed_switch<R: Read>(state: *mut CpuState, previous: Task, task: Task) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let elapsed = elapsed(state);
        let copied = task.ran_ns.wrapping_sub(load!(R, task.object, TaskPrevSumExec));
        let copied = if is_fair::<R>(task.object) && copied <= elapsed { copied } else { 0 };
        if previous.pid != 0
            && load!(Probed, half, previous.object, TaskPid) == previous.pid
            && Probed::read::<u64>(field!(previous.object, TaskPrevSumExec)) <= previous.ran_ns
        {
            let start: u64 = Probed::read(field!(previous.object, TaskExecStart));
            let span = load!(R, u64, task.object, TaskExecStart).wrapping_sub(start);
            if start != 0 && span >= copied && span <= elapsed && span <= task.ran_ns {
                let (others, most) = (before_arrival(task.object, start), span - copied);
                if others > SWITCH_NS {
                    // The run of another task, which is lost.
                    count_missed(state, task.pid as u32);
                }
                return span - if others < most { others } else { most };
            }
        }
        if copied == 0 {
            count_missed(state, task.pid as u32);
            return UNKNOWN;
        }
        copied
    }
}

/// More than a context switch takes, during which the run queue's clock may be updated again.
const SWITCH_NS: u64 = 20_000;

/// Nanoseconds from `start`, a value of this CPU's clock of tasks, until the run of `task` began; 0
/// where the kernel does not show it.
///
/// `last_arrival` is the run queue's clock at the switch-in. Its clock of tasks, from which
/// `exec_start` is taken, is behind by all time in interrupts and, in a virtual machine, stolen.
/// What the difference grew during this run makes the result smaller, never larger.
///
/// # Safety
/// `task` is this CPU's.
#[inline(always)]
unsafe fn before_arrival(task: Object, start: u64) -> u64 {
    if setting!(READS_CLOCK) == 0 {
        return 0;
    }
    // SAFETY: `Probed` accepts any address.
    unsafe {
        let arrived: u64 = Probed::read(field!(task, TaskLastArrival));
        let queue = run_queue::<Probed>(task);
        let clock: u64 = Probed::read(field!(queue, RqClock));
        let of_tasks: u64 = Probed::read(field!(queue, RqClockTask));
        let before = arrived.wrapping_sub(clock.wrapping_sub(of_tasks)).wrapping_sub(start);
        // Kernels before 5.14 record no arrival unless they keep other statistics.
        if arrived == 0 || (before as i64) < 0 { 0 } else { before }
    }
}

/// Charges the run time of `previous` from when it was last charged, `previous.ran_ns`, up to a
/// missed context switch, and returns it, or [`UNKNOWN`].
///
/// The task's counters contain its total run time, which is its run time on this CPU unless the
/// task was switched in again.
///
/// # Safety
/// As [`charge_interval`]; `previous` may no longer exist: its memory is read only through the
/// helper, and the values are used only if the pid is the same.
#[inline(always)]
unsafe fn charge_missed_switch_out(state: *mut CpuState, previous: Task) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let now = Task::read::<Probed>(previous.object);
        let started: u64 = Probed::read(field!(previous.object, TaskPrevSumExec));
        let ran = now.ran_ns.wrapping_sub(previous.ran_ns);
        let here = started <= previous.ran_ns && is_fair::<Probed>(previous.object);
        if now.pid == previous.pid && here && ran <= elapsed(state) {
            if ran != 0 {
                charge::<Probed>(state, now.object, now.pid, ran);
            }
            ran
        } else {
            // Its run time before the missed switch is unknown.
            count_missed(state, previous.pid as u32);
            UNKNOWN
        }
    }
}

/// Whether the task is in the fair class, which maintains `prev_sum_exec_runtime`.
///
/// # Safety
/// As [`Read::load`].
#[inline(always)]
unsafe fn is_fair<R: Read>(task: Object) -> bool {
    const SCHED_NORMAL: u64 = 0;
    const SCHED_BATCH: u64 = 3;
    const SCHED_IDLE: u64 = 5;
    const MAX_RT_PRIO: u64 = 100;
    // SAFETY: the caller's contract.
    unsafe {
        let policy = load!(R, half, task, TaskPolicy);
        (policy == SCHED_NORMAL || policy == SCHED_BATCH || policy == SCHED_IDLE)
            && load!(R, half, task, TaskPrio) >= MAX_RT_PRIO
    }
}

/// Nanoseconds since this CPU was last charged by the clock.
///
/// # Safety
/// `state` belongs to this CPU.
#[inline(always)]
unsafe fn elapsed(state: *mut CpuState) -> u64 {
    // SAFETY: a helper without arguments; the caller's contract.
    unsafe { bpf_ktime_get_ns().wrapping_sub((*state).charged_at_ns) }
}

/// In [`CpuState::delay_ns`]: no program ran at the switch-in of the running task.
const SWITCH_MISSED: u64 = u64::MAX;

/// Counts the switch-out of `task`, and the wait that preceded its run, by its wait at its
/// switch-in.
///
/// # Safety
/// As [`charge_interval`]; `counts` belongs to this CPU's bank.
#[inline(always)]
unsafe fn count_switch_out<R: Read>(
    state: *mut CpuState,
    counts: *mut SlotCounts,
    task: Object,
    preempted: u64,
    delay_ns: u64,
) {
    // SAFETY: the caller's contract; the kind is 0 or 1.
    unsafe {
        // Voluntary, or involuntary: preempted, or still runnable. TASK_RUNNING is 0: such a task
        // did not block. Computed without a branch, which would be unpredictable.
        let runs = load!(R, half, task, TaskState).wrapping_sub(1) >> 63;
        let mut kind = (preempted | runs) as usize;
        // The compiler may know that it is 0 or 1 and optimise a mask away, and the verifier of 6.1
        // does not know it here.
        core::arch::asm!("{0} &= 1", inout(reg) kind, options(pure, nomem, nostack, preserves_flags));
        let count = (&raw mut (*counts).switches).cast::<u32>().add(kind);
        *count = (*count).wrapping_add(1);
        let wait_ns = load!(R, u64, task, TaskRunDelay).wrapping_sub(delay_ns);
        (*counts).wait_ns = (*counts).wait_ns.wrapping_add(wait_ns);
        count_wait(state, counts, wait_ns);
    }
}

/// Adds 1 to the histogram bucket of a wait.
///
/// # Safety
/// As [`count_switch_out`].
#[inline(always)]
unsafe fn count_wait(state: *mut CpuState, counts: *mut SlotCounts, wait_ns: u64) {
    // SAFETY: the caller's contract; the bucket index is below the number of buckets.
    unsafe {
        if wait_ns >= WAIT_BOUNDS_NS[SHORT_WAITS - 1] {
            count_long_wait(state, wait_ns);
            return;
        }
        let bucket = (&raw mut (*counts).short_waits).cast::<u32>().add(short_bucket(wait_ns));
        *bucket = (*bucket).wrapping_add(1);
    }
}

/// Adds 1 to the histogram bucket of a long wait of the slot that was charged last.
///
/// # Safety
/// As [`count_switch_out`].
#[cold]
#[inline(never)]
unsafe fn count_long_wait(state: *mut CpuState, wait_ns: u64) {
    // SAFETY: the caller's contract; the bucket index is below the number of buckets.
    unsafe {
        let Some(waits) = long_waits(state, (*state).last.slot) else { return };
        let bucket = waits.cast::<u32>().add(long_bucket(wait_ns));
        *bucket = (*bucket).wrapping_add(1);
    }
}

/// The histogram bucket of a wait below the bound of the last of [`SHORT_WAITS`]. Written out so
/// that each path ends in a constant, which the verifier requires of an index.
#[inline(always)]
fn short_bucket(ns: u64) -> usize {
    let [a, b, c, d, e, f, g, ..] = WAIT_BOUNDS_NS;
    if ns < a {
        // Where tasks switch most often, they wait least.
        0
    } else if ns < d {
        if ns < b {
            1
        } else if ns < c {
            2
        } else {
            3
        }
    } else if ns < f {
        if ns < e { 4 } else { 5 }
    } else if ns < g {
        6
    } else {
        7
    }
}

/// The bucket of any other wait, less [`SHORT_WAITS`].
#[inline(always)]
fn long_bucket(ns: u64) -> usize {
    let [.., i, j, k] = WAIT_BOUNDS_NS;
    if ns < i {
        0
    } else if ns < j {
        1
    } else if ns < k {
        2
    } else {
        3
    }
}
