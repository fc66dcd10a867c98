//! CPU time, run-queue waits and context switches per cgroup and CPU, on `sched_switch`.
//!
//! The charged interval is Δ `se.sum_exec_runtime`, not Δ clock: it is the scheduler's own counter,
//! so the sums equal `cpu.stat` by construction, and interrupt time is charged to the same task as
//! in the kernel.
//!
//! A program on `sched_switch` alone misses a task that does not switch: two encoders that were
//! still running when the banks were read were measured 10.9 % short. Therefore user space runs a
//! second program, `charge_running`, on every CPU at every tick (BPF_PROG_TEST_RUN, 5.10), which
//! charges the task that is running.

use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, generated::bpf_get_current_task},
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use probe_ebpf::{CpuState, RunQueueCounts, WAIT_BOUNDS_NS};

use crate::{
    counters,
    kernel::{Probed, Read, Task, Typed, follow},
    offsets::{COUNTING, COUNTS_WAITS, Object, SIBLINGS, SWITCH_SHIFTED, field},
    slots::{self, CPUS, TIMES, WAITS, element},
};

/// `sched_switch(preempt, prev, next)`: charges `prev` and records `next` as running.
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let preempted: u64 = ctx.arg(0);
    // SAFETY: the tasks are arguments of a typed tracepoint.
    unsafe {
        if SWITCH_SHIFTED.load() == 0 {
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
        if SWITCH_SHIFTED.load() == 0 {
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
        let cpu = bpf_get_smp_processor_id();
        let Some(state) = CPUS.get_ptr_mut(cpu) else { return 0 };
        let now = Task::read::<Probed>(bpf_get_current_task() as Object);
        if (*state).running != now.object as u64 {
            (*state).delay_ns = SWITCH_MISSED;
        }
        charge_interval::<Probed>(cpu, state, now, now, SwitchOut::NONE);
        // Before the counters get their next element, which may come from the cache.
        if (*state).clear_cache != 0 {
            slots::clear_cache(state);
        }
        if COUNTING.load() != 0 {
            counters::charge(cpu, state, counter_element::<Probed>(cpu, state, now));
        }
        (*state).charged_at_ns = bpf_ktime_get_ns();
    }
    0
}

/// # Safety
/// `prev` and `next` can be read by `R`.
#[inline(always)]
unsafe fn switch<R: Read>(preempted: u64, prev: Object, next: Object) -> i32 {
    // SAFETY: a helper without arguments; the caller's contract; `state` belongs to this CPU.
    unsafe {
        let cpu = bpf_get_smp_processor_id();
        let Some(state) = CPUS.get_ptr_mut(cpu) else { return 0 };
        let (task, next) = (Task::read::<R>(prev), Task::read::<R>(next));
        let switch_out = if task.pid == 0 { SwitchOut::NONE } else { SwitchOut::of::<R>(state, prev, preempted) };
        charge_interval::<R>(cpu, state, task, next, switch_out);
        if COUNTS_WAITS.load() != 0 {
            (*state).delay_ns = R::read(field!(next.object, TaskRunDelay));
        }
        if COUNTING.load() != 0 {
            let next = counter_element::<R>(cpu, state, next);
            if next != (*state).counter_element {
                counters::charge(cpu, state, next);
            }
        }
    }
    0
}

/// The bank element to charge counters to while `task` runs, plus one; 0 for the idle task.
///
/// # Safety
/// As [`element`].
#[inline(always)]
unsafe fn counter_element<R: Read>(cpu: u32, state: *mut CpuState, task: Task) -> u64 {
    // SAFETY: the caller's contract.
    if task.pid == 0 { 0 } else { unsafe { element::<R>(cpu, state, task) }.wrapping_add(1) }
}

/// Charges `task` up to now, with its switch-out if there is one, and records `next` as running.
///
/// # Safety
/// `state` belongs to this CPU, and no other program of ours writes it at the same time:
/// interrupts are off in sched_switch, and `charge_running` keeps the CPU (net/bpf/test_run.c: an
/// interrupt on another CPU, get_cpu on this one), so no context switch happens in between. `task`
/// and `next` can be read by `R`.
#[inline(always)]
unsafe fn charge_interval<R: Read>(cpu: u32, state: *mut CpuState, task: Task, next: Task, switch_out: SwitchOut) {
    // SAFETY: the caller's contract.
    unsafe {
        let (was_busy, since) = ((*state).busy & 1, (*state).busy_updated_ns);
        let overlap = if SIBLINGS.load() == 0 { 0 } else { sibling_busy(state, next.pid != 0) };
        let (running, pid, charged) = ((*state).running, (*state).running_pid, (*state).charged_ns);
        (*state).running = next.object as u64;
        (*state).running_pid = next.pid;
        (*state).charged_ns = next.ran_ns;
        // For the program of moves, which runs after the task has left this cgroup.
        (*state).running_set = follow::<R>(field!(next.object, TaskCgroups)) as u64;
        let observed = running == task.object as u64 && pid == task.pid;
        let previous = Task { object: running as Object, pid, ran_ns: charged };
        if running == 0 {
            return;
        }
        if !observed {
            let previous_ran = if pid == 0 { 0 } else { charge_missed_switch_out(cpu, state, previous) };
            let ran = if task.pid == 0 { 0 } else { ran_since_missed_switch::<R>(state, previous, task) };
            if SIBLINGS.load() != 0 && previous_ran != UNKNOWN && ran != UNKNOWN {
                let span = (*state).busy_updated_ns.wrapping_sub(since);
                let counted = if was_busy == 0 { 0 } else { span };
                let ran = previous_ran.wrapping_add(ran);
                correct_busy(state, (if ran < span { ran } else { span }).wrapping_sub(counted));
            }
            if task.pid != 0 && ran != UNKNOWN {
                charge::<R>(cpu, state, task, ran, overlap, SwitchOut::NONE);
            }
            return;
        }
        if task.pid == 0 {
            return;
        }
        let ran = task.ran_ns.wrapping_sub(charged);
        if (ran as i64) < 0 {
            // A task's run time only grows: this is another task at the same address.
            (*state).missed += 1;
            return;
        }
        charge::<R>(cpu, state, task, ran, overlap, switch_out);
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

/// Charges `ran` nanoseconds, of which the sibling was busy for at most `overlap`, and a
/// switch-out, to the cgroup of `task`.
///
/// # Safety
/// As [`charge_interval`].
#[inline(always)]
unsafe fn charge<R: Read>(cpu: u32, state: *mut CpuState, task: Task, ran: u64, overlap: u64, switch_out: SwitchOut) {
    if ran == 0 && switch_out.kind == SwitchOut::NONE.kind {
        return;
    }
    // The two clocks differ by what the scheduler does not count: interrupts and steal time.
    let shared = if overlap < ran { overlap } else { ran };
    // SAFETY: the caller's contract; elements of this CPU's bank are written by this CPU alone.
    unsafe {
        let element = element::<R>(cpu, state, task);
        let time = match TIMES.get_ptr_mut(element as u32) {
            Some(time) => time,
            None => &raw mut (*state).overflow,
        };
        (*time).alone_ns = (*time).alone_ns.wrapping_add(ran - shared);
        if SIBLINGS.load() != 0 {
            (*time).shared_ns = (*time).shared_ns.wrapping_add(shared);
        }
        if switch_out.kind != SwitchOut::NONE.kind
            && let Some(waits) = WAITS.get_ptr_mut(element as u32)
        {
            switch_out.add_to(waits);
        }
    }
}

/// The sibling's busy time since the last call on this CPU. Records whether this CPU is `busy` from
/// now on.
///
/// # Safety
/// `state` belongs to this CPU.
#[inline(always)]
unsafe fn sibling_busy(state: *mut CpuState, busy: bool) -> u64 {
    // SAFETY: a helper without arguments; the caller's contract; one word of the sibling's state is
    // read, which the sibling writes in one piece.
    unsafe {
        let now = bpf_ktime_get_ns();
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
        let Some(other) = CPUS.get_ptr(sibling - 1) else { return 0 };
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
/// # Safety
/// As [`charge_interval`]; `previous` as in [`charge_missed_switch_out`].
#[inline(always)]
unsafe fn ran_since_missed_switch<R: Read>(state: *mut CpuState, previous: Task, task: Task) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let elapsed = elapsed(state);
        let copied = task.ran_ns.wrapping_sub(R::read(field!(task.object, TaskPrevSumExec)));
        let copied = if is_fair::<R>(task.object) && copied <= elapsed { copied } else { 0 };
        if previous.pid != 0
            && Probed::read::<u32>(field!(previous.object, TaskPid)) == previous.pid
            && Probed::read::<u64>(field!(previous.object, TaskPrevSumExec)) <= previous.ran_ns
        {
            let start: u64 = Probed::read(field!(previous.object, TaskExecStart));
            let span = R::read::<u64>(field!(task.object, TaskExecStart)).wrapping_sub(start);
            if start != 0 && span >= copied && span <= elapsed && span <= task.ran_ns {
                return span;
            }
        }
        if copied == 0 {
            (*state).missed += 1;
            return UNKNOWN;
        }
        copied
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
unsafe fn charge_missed_switch_out(cpu: u32, state: *mut CpuState, previous: Task) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let now = Task::read::<Probed>(previous.object);
        let started: u64 = Probed::read(field!(previous.object, TaskPrevSumExec));
        let ran = now.ran_ns.wrapping_sub(previous.ran_ns);
        let here = started <= previous.ran_ns && is_fair::<Probed>(previous.object);
        if now.pid == previous.pid && here && ran <= elapsed(state) {
            charge::<Probed>(cpu, state, now, ran, 0, SwitchOut::NONE);
            ran
        } else {
            // Its run time before the missed switch is unknown.
            (*state).missed += 1;
            UNKNOWN
        }
    }
}

/// Whether the task is in the fair class, which maintains `prev_sum_exec_runtime`.
///
/// # Safety
/// As [`Read::read`].
#[inline(always)]
unsafe fn is_fair<R: Read>(task: Object) -> bool {
    const SCHED_NORMAL: u32 = 0;
    const SCHED_BATCH: u32 = 3;
    const SCHED_IDLE: u32 = 5;
    const MAX_RT_PRIO: u32 = 100;
    // SAFETY: the caller's contract.
    unsafe {
        let policy: u32 = R::read(field!(task, TaskPolicy));
        (policy == SCHED_NORMAL || policy == SCHED_BATCH || policy == SCHED_IDLE)
            && R::read::<u32>(field!(task, TaskPrio)) >= MAX_RT_PRIO
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

/// A switch-out of a task. It consists of integers and uses no `Option`, because the kernel does
/// not accept the type information of a Rust enum with data.
#[derive(Clone, Copy)]
struct SwitchOut {
    /// Run-queue wait that preceded the run.
    wait_ns: u64,
    /// 0: voluntary, the task blocked; 1: involuntary, it was still runnable; 2: no switch-out
    /// ([`SwitchOut::NONE`]).
    kind: u64,
}

impl SwitchOut {
    /// No switch-out, or the matching switch-in was missed.
    const NONE: Self = Self { wait_ns: 0, kind: 2 };

    /// The switch-out of `prev`; none where the kernel does not record waits.
    ///
    /// # Safety
    /// As [`charge_interval`].
    #[inline(always)]
    unsafe fn of<R: Read>(state: *mut CpuState, prev: Object, preempted: u64) -> Self {
        // SAFETY: the caller's contract.
        unsafe {
            let delay_ns = (*state).delay_ns;
            if COUNTS_WAITS.load() == 0 || delay_ns == SWITCH_MISSED {
                return Self::NONE;
            }
            let wait_ns = R::read::<u64>(field!(prev, TaskRunDelay)).wrapping_sub(delay_ns);
            // TASK_RUNNING is 0: such a task did not block. Computed without a branch, which would
            // be unpredictable.
            let runs = u64::from(R::read::<u32>(field!(prev, TaskState))).wrapping_sub(1) >> 63;
            Self { wait_ns, kind: (preempted | runs) & 1 }
        }
    }

    /// # Safety
    /// `waits` belongs to this CPU's bank; `self` is not [`SwitchOut::NONE`].
    #[inline(always)]
    unsafe fn add_to(self, waits: *mut RunQueueCounts) {
        // SAFETY: the caller's contract; the bucket index is below the number of buckets, and the
        // kind is 0 or 1.
        unsafe {
            (*waits).wait_ns = (*waits).wait_ns.wrapping_add(self.wait_ns);
            let bucket = (&raw mut (*waits).wait_buckets).cast::<u32>().add(bucket(self.wait_ns));
            *bucket = (*bucket).wrapping_add(1);
            // The compiler knows that it is 0 or 1 and would optimise a mask away; the verifier of
            // 6.1 no longer knows it here.
            let mut kind = self.kind as usize;
            core::arch::asm!("{0} &= 1", inout(reg) kind, options(pure, nomem, nostack, preserves_flags));
            let count = (&raw mut (*waits).switches).cast::<u32>().add(kind);
            *count = (*count).wrapping_add(1);
        }
    }
}

/// The histogram bucket of a wait. Written out so that each path ends in a constant, which the
/// verifier requires of an index.
#[inline(always)]
fn bucket(ns: u64) -> usize {
    let [a, b, c, d, e, f, g, h, i, j, k] = WAIT_BOUNDS_NS;
    if ns < d {
        if ns < b {
            if ns < a { 0 } else { 1 }
        } else if ns < c {
            2
        } else {
            3
        }
    } else if ns < h {
        if ns < f {
            if ns < e { 4 } else { 5 }
        } else if ns < g {
            6
        } else {
            7
        }
    } else if ns < j {
        if ns < i { 8 } else { 9 }
    } else if ns < k {
        10
    } else {
        11
    }
}
