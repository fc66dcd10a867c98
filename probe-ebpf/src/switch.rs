//! CPU time, waits and switches per cgroup and CPU, on `sched_switch`.
//!
//! The interval charged is Δ `se.sum_exec_runtime`, not Δ clock: it is the scheduler's own figure, so the sums equal
//! `cpu.stat` by construction and interrupt time is billed to whom the kernel bills it.
//!
//! A switch program alone never sees a task that does not switch: two encoders still running when the banks are read were
//! measured 10.9 % short. So a second program, `charge_running`, is run by user space on every CPU at every tick
//! (BPF_PROG_TEST_RUN, 5.10) and charges what is on the CPU right now.

use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, generated::bpf_get_current_task},
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use probe_ebpf::{CpuState, WAIT_NS, Waits};

use crate::{
    counters,
    kernel::{Object, Probed, Read, Task, Typed},
    offsets::{COUNTING, COUNTS_WAITS, SIBLINGS, SWITCH_SHIFTED, field},
    slots::{self, CPUS, TIMES, WAITS, element},
};

/// `sched_switch(preempt, prev, next)`: charges `prev`, remembers `next`.
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let preempted: u64 = ctx.arg(0);
    // SAFETY: tasks of a typed tracepoint.
    unsafe {
        if SWITCH_SHIFTED.load() == 0 {
            switch::<Typed>(preempted, ctx.arg(1), ctx.arg(2))
        } else {
            switch::<Typed>(preempted, ctx.arg(2), ctx.arg(3))
        }
    }
}

/// The same for kernels that refuse the typed program.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn sched_switch_raw(ctx: RawTracePointContext) -> i32 {
    let preempted: u64 = ctx.arg(0);
    // SAFETY: `Probed` takes any address.
    unsafe {
        if SWITCH_SHIFTED.load() == 0 {
            switch::<Probed>(preempted, ctx.arg(1), ctx.arg(2))
        } else {
            switch::<Probed>(preempted, ctx.arg(2), ctx.arg(3))
        }
    }
}

/// Charges the task that is running on this CPU now. Run by user space, attached to nothing.
#[raw_tracepoint]
pub fn charge_running(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: helpers without arguments; `state` is this CPU's own element; `Probed` takes any address.
    unsafe {
        let cpu = bpf_get_smp_processor_id();
        let Some(state) = CPUS.get_ptr_mut(cpu) else { return 0 };
        let now = Task::read::<Probed>(bpf_get_current_task() as Object);
        if (*state).running != now.object as u64 {
            (*state).delay_ns = UNSEEN;
        }
        account::<Probed>(cpu, state, now, now, Stint::NONE);
        // Before the counters are told whom they run for.
        if (*state).forget != 0 {
            slots::forget(state);
        }
        if COUNTING.load() != 0 {
            counters::charge(cpu, state, counted_for::<Probed>(cpu, state, now));
        }
        (*state).swept_at_ns = bpf_ktime_get_ns();
    }
    0
}

/// # Safety
/// `prev` and `next` are tasks that `R` can read.
#[inline(always)]
unsafe fn switch<R: Read>(preempted: u64, prev: Object, next: Object) -> i32 {
    // SAFETY: a helper without arguments; the caller's contract; `state` is this CPU's own element.
    unsafe {
        let cpu = bpf_get_smp_processor_id();
        let Some(state) = CPUS.get_ptr_mut(cpu) else { return 0 };
        let (task, next) = (Task::read::<R>(prev), Task::read::<R>(next));
        let stint = if task.pid == 0 { Stint::NONE } else { Stint::ended::<R>(state, prev, preempted) };
        account::<R>(cpu, state, task, next, stint);
        if COUNTS_WAITS.load() != 0 {
            (*state).delay_ns = R::read(field!(next.object, TaskRunDelay));
        }
        if COUNTING.load() != 0 {
            let next = counted_for::<R>(cpu, state, next);
            if next != (*state).counting {
                counters::charge(cpu, state, next);
            }
        }
    }
    0
}

/// The element of the banks that the counters run for while `task` does, plus one; 0 for nobody's, as the idle task's.
///
/// # Safety
/// As [`element`].
#[inline(always)]
unsafe fn counted_for<R: Read>(cpu: u32, state: *mut CpuState, task: Task) -> u64 {
    // SAFETY: the caller's contract.
    if task.pid == 0 { 0 } else { unsafe { element::<R>(cpu, state, task) }.wrapping_add(1) }
}

/// Charges `task` up to now, with the stint that ends if one does, and remembers `next` as running.
///
/// # Safety
/// `state` is this CPU's own: nothing else of ours writes there meanwhile, for interrupts are off in sched_switch, and what runs
/// `charge_running` keeps the CPU (net/bpf/test_run.c: an interrupt on another CPU, get_cpu on this one), so no switch comes
/// between. `task` is one that `R` can read.
#[inline(always)]
unsafe fn account<R: Read>(cpu: u32, state: *mut CpuState, task: Task, next: Task, stint: Stint) {
    // SAFETY: the caller's contract.
    unsafe {
        let (was_busy, since) = ((*state).busy & 1, (*state).beside_at_ns);
        let overlap = if SIBLINGS.load() == 0 { 0 } else { beside(state, next.pid != 0) };
        let (running, pid, charged) = ((*state).running, (*state).running_pid, (*state).charged_ns);
        (*state).running = next.object as u64;
        (*state).running_pid = next.pid;
        (*state).charged_ns = next.ran_ns;
        let seen = running == task.object as u64 && pid == task.pid;
        let left = Task { object: running as Object, pid, ran_ns: charged };
        if running == 0 {
            return;
        }
        if !seen {
            let left_ran = if pid == 0 { 0 } else { leave_unseen(cpu, state, left) };
            let ran = if task.pid == 0 { 0 } else { since_unseen_switch::<R>(state, left, task) };
            if SIBLINGS.load() != 0 && left_ran != UNKNOWN && ran != UNKNOWN {
                let span = (*state).beside_at_ns.wrapping_sub(since);
                let counted = if was_busy == 0 { 0 } else { span };
                let ran = left_ran.wrapping_add(ran);
                correct_busy(state, (if ran < span { ran } else { span }).wrapping_sub(counted));
            }
            if task.pid != 0 && ran != UNKNOWN {
                charge::<R>(cpu, state, task, ran, overlap, Stint::NONE);
            }
            return;
        }
        if task.pid == 0 {
            return;
        }
        let ran = task.ran_ns.wrapping_sub(charged);
        if (ran as i64) < 0 {
            // The figure of a task only grows: this is another task at the same address.
            (*state).missed += 1;
            return;
        }
        charge::<R>(cpu, state, task, ran, overlap, stint);
    }
}

/// What no figure of the kernel tells.
const UNKNOWN: u64 = u64::MAX;

/// Adds `by`, which may be below zero, to the time that this CPU was busy: between two switches of which one was not seen, it was busy
/// for as long as its tasks ran, and not for as long as the switches that were seen lay apart. The sibling, which may have counted
/// that already, counts so much less, or more, from now on.
///
/// # Safety
/// `state` is this CPU's own.
#[inline(always)]
unsafe fn correct_busy(state: *mut CpuState, by: u64) {
    // SAFETY: the caller's contract.
    unsafe {
        let word = (*state).busy;
        // While busy the word holds a beginning, which is the earlier the longer it lasts.
        let corrected = if word & 1 == 0 { word.wrapping_add(by << 1) } else { word.wrapping_sub(by << 1) };
        (&raw mut (*state).busy).write_volatile(corrected);
    }
}

/// Adds `ran` nanoseconds, of which the sibling was busy for at most `overlap`, and a stint that ended, to whoever owns `task`.
///
/// # Safety
/// As [`account`].
#[inline(always)]
unsafe fn charge<R: Read>(cpu: u32, state: *mut CpuState, task: Task, ran: u64, overlap: u64, stint: Stint) {
    if ran == 0 && stint.end == Stint::NONE.end {
        return;
    }
    // The two clocks differ by what the scheduler does not count: interrupts, and time that a hypervisor took.
    let shared = if overlap < ran { overlap } else { ran };
    // SAFETY: the caller's contract; elements of the banks are this CPU's own.
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
        if stint.end != Stint::NONE.end
            && let Some(waits) = WAITS.get_ptr_mut(element as u32)
        {
            stint.count(waits);
        }
    }
}

/// For how long the sibling was busy since this was last asked here, and notes whether this CPU is `busy` from now on.
///
/// # Safety
/// `state` is this CPU's own.
#[inline(always)]
unsafe fn beside(state: *mut CpuState, busy: bool) -> u64 {
    // SAFETY: a helper without arguments; the caller's contract; of the sibling's element one word is read, which it writes whole.
    unsafe {
        let now = bpf_ktime_get_ns();
        (*state).beside_at_ns = now;
        let word = (*state).busy;
        if word & 1 != u64::from(busy) {
            // From the time that it would have begun to the time that it was, or back.
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
        // It may have read the clock a moment after us.
        if (total.wrapping_sub(last) as i64) <= 0 {
            return 0;
        }
        (*state).sibling_busy_ns = total;
        total - last
    }
}

/// What a task ran since it was switched in, when that switch was not seen, or [`UNKNOWN`].
///
/// Some switches reach no tracing program (seen on 6.18: two threads of a VM's agent are switched in and never out; the
/// kernel counts no recursion miss). Whoever runs after such a thread would lose its whole interval, up to a tick. The scheduler keeps
/// two figures of it, and the longer is the true one that does not claim more than has passed since this CPU was last charged by the
/// clock:
/// - `exec_start` is this CPU's own clock when a task was last charged: for `left`, when it left, if it was not switched in again; for
///   `task`, now.
/// - `set_next_entity` copies `sum_exec_runtime` to `prev_sum_exec_runtime` (kernel/sched/fair.c) when a task of the fair class is
///   switched in, and sometimes later: measured to be short by up to one period of the scheduler's tick.
///
/// # Safety
/// As [`account`]; `left` as in [`leave_unseen`].
#[inline(always)]
unsafe fn since_unseen_switch<R: Read>(state: *mut CpuState, left: Task, task: Task) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let elapsed = elapsed(state);
        let copied = task.ran_ns.wrapping_sub(R::read(field!(task.object, TaskPrevSumExec)));
        let copied = if is_fair::<R>(task.object) && copied <= elapsed { copied } else { 0 };
        if left.pid != 0
            && Probed::read::<u32>(field!(left.object, TaskPid)) == left.pid
            && Probed::read::<u64>(field!(left.object, TaskPrevSumExec)) <= left.ran_ns
        {
            let start: u64 = Probed::read(field!(left.object, TaskExecStart));
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

/// Charges what `left` ran up to a switch that was not seen, from the last moment that it was charged, `left.ran_ns`, and returns it,
/// or [`UNKNOWN`].
///
/// What it ran altogether is in its own figures; they say what it ran here as long as it was not switched in again.
///
/// # Safety
/// As [`account`]; `left` may be gone: its memory is only read by the helper, and only believed while the pid is the same.
#[inline(always)]
unsafe fn leave_unseen(cpu: u32, state: *mut CpuState, left: Task) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        let now = Task::read::<Probed>(left.object);
        let began: u64 = Probed::read(field!(left.object, TaskPrevSumExec));
        let ran = now.ran_ns.wrapping_sub(left.ran_ns);
        let here = began <= left.ran_ns && is_fair::<Probed>(left.object);
        if now.pid == left.pid && here && ran <= elapsed(state) {
            charge::<Probed>(cpu, state, now, ran, 0, Stint::NONE);
            ran
        } else {
            // Nobody knows what it ran before it left.
            (*state).missed += 1;
            UNKNOWN
        }
    }
}

/// True where `prev_sum_exec_runtime` is kept.
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
/// `state` is this CPU's own.
#[inline(always)]
unsafe fn elapsed(state: *mut CpuState) -> u64 {
    // SAFETY: a helper without arguments; the caller's contract.
    unsafe { bpf_ktime_get_ns().wrapping_sub((*state).swept_at_ns) }
}

/// In [`CpuState::delay_ns`]: the switch that began this stint was not seen.
const UNSEEN: u64 = u64::MAX;

/// The end of a stint on the CPU. Plain words and no `Option`: the kernel takes no type information of a Rust enum with data.
#[derive(Clone, Copy)]
struct Stint {
    /// How long the task had waited for it.
    wait_ns: u64,
    /// 0 when the task waits for something, 1 when it could have gone on, [`Stint::NONE`]'s when no stint ended.
    end: u64,
}

impl Stint {
    /// No stint ended, or its beginning was not seen.
    const NONE: Self = Self { wait_ns: 0, end: 2 };

    /// The stint of `prev` that ends here; none where the kernel does not count waits.
    ///
    /// # Safety
    /// As [`account`].
    #[inline(always)]
    unsafe fn ended<R: Read>(state: *mut CpuState, prev: Object, preempted: u64) -> Self {
        // SAFETY: the caller's contract.
        unsafe {
            let delay_ns = (*state).delay_ns;
            if COUNTS_WAITS.load() == 0 || delay_ns == UNSEEN {
                return Self::NONE;
            }
            let wait_ns = R::read::<u64>(field!(prev, TaskRunDelay)).wrapping_sub(delay_ns);
            // TASK_RUNNING is 0: such a task did not ask to leave. Without a branch, for nothing predicts it.
            let runs = u64::from(R::read::<u32>(field!(prev, TaskState))).wrapping_sub(1) >> 63;
            Self { wait_ns, end: (preempted | runs) & 1 }
        }
    }

    /// # Safety
    /// `waits` is this CPU's own; a stint ended.
    #[inline(always)]
    unsafe fn count(self, waits: *mut Waits) {
        // SAFETY: the caller's contract; the class is below the number of classes, and the end is 0 or 1.
        unsafe {
            (*waits).wait_ns = (*waits).wait_ns.wrapping_add(self.wait_ns);
            let class = (&raw mut (*waits).classes).cast::<u32>().add(class(self.wait_ns));
            *class = (*class).wrapping_add(1);
            // The compiler knows that it is 0 or 1 and would leave a mask out; the verifier of 6.1 has forgotten it by now.
            let mut end = self.end as usize;
            core::arch::asm!("{0} &= 1", inout(reg) end, options(pure, nomem, nostack, preserves_flags));
            let end = (&raw mut (*waits).ends).cast::<u32>().add(end);
            *end = (*end).wrapping_add(1);
        }
    }
}

/// The class of a wait. Written out: each way through it leaves a constant, which is what the verifier wants of an index.
#[inline(always)]
fn class(ns: u64) -> usize {
    let [a, b, c, d, e, f, g, h, i, j, k] = WAIT_NS;
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
