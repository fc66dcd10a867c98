//! CPU time per cgroup and CPU, on `sched_switch`.
//!
//! The interval charged is Δ `se.sum_exec_runtime`, not Δ clock: it is the scheduler's own figure, so the sums equal
//! `cpu.stat` by construction and interrupt time is billed to whom the kernel bills it.
//!
//! A switch program alone never sees a task that does not switch: two encoders still running when the map is read were
//! measured 10.9 % short. So a second program, `charge_running`, is run by user space on every CPU at every tick
//! (BPF_PROG_TEST_RUN, 5.10) and charges what is on the CPU right now.

use aya_ebpf::{
    btf_maps::{PerCpuArray, PerCpuHashMap},
    helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel, generated::bpf_get_current_task},
    macros::{btf_map, btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use probe_ebpf::{CgroupKey, CgroupTime, CpuState, MAX_CGROUPS, WAIT_NS, hierarchy};

use crate::offsets::{
    CGROUP_KN, CGROUP_LEVEL, CSS_CGROUP, CSS_SET_CPU, CSS_SET_DFL_CGRP, KERNFS_ID, TASK_CGROUPS, TASK_PID, TASK_POLICY,
    TASK_PREV_SUM_EXEC, TASK_PRIO, TASK_RUN_DELAY, TASK_STATE, TASK_SUM_EXEC,
};

/// Time per cgroup; one value per CPU, written by that CPU alone.
#[btf_map]
static CGROUPS: PerCpuHashMap<CgroupKey, CgroupTime, MAX_CGROUPS> = PerCpuHashMap::new();

/// What each CPU remembers between two switches.
#[btf_map]
static CPUS: PerCpuArray<CpuState, 1> = PerCpuArray::new();

/// Reads a field of a kernel object; a read that faults gives zero.
fn field<T: Copy + Default>(object: u64, offset: u64) -> T {
    // SAFETY: the helper checks the address itself and reports a fault instead of taking it.
    unsafe { bpf_probe_read_kernel((object + offset) as *const T) }.unwrap_or_default()
}

/// The identity of a task's workload: its v2 leaf, or its v1 `cpu` cgroup when it sits in the v2 root.
fn owner(task: u64) -> CgroupKey {
    let set: u64 = field(task, TASK_CGROUPS.load());
    let leaf: u64 = field(set, CSS_SET_DFL_CGRP.load());
    let level: u32 = field(leaf, CGROUP_LEVEL.load());
    if level == 0 && CSS_SET_CPU.load() != 0 {
        let css: u64 = field(set, CSS_SET_CPU.load());
        let v1: u64 = field(css, CSS_CGROUP.load());
        if field::<u32>(v1, CGROUP_LEVEL.load()) > 0 {
            return CgroupKey { id: kernfs_id(v1), hierarchy: hierarchy::V1_CPU };
        }
    }
    CgroupKey { id: kernfs_id(leaf), hierarchy: hierarchy::V2 }
}

fn kernfs_id(cgroup: u64) -> u64 {
    let node: u64 = field(cgroup, CGROUP_KN.load());
    field(node, KERNFS_ID.load())
}

/// The end of a stint on the CPU. Plain words and no `Option`: the kernel takes no type information of a Rust enum with data.
#[derive(Clone, Copy)]
struct Stint {
    /// How long the task had waited for it.
    wait_ns: u64,
    /// One of the three below.
    end: u64,
}

/// No stint ended, or its beginning was not seen.
const NONE: Stint = Stint { wait_ns: 0, end: 0 };
/// In [`CpuState::delay_ns`]: the switch that began this stint was not seen.
const UNSEEN: u64 = u64::MAX;
const VOLUNTARY: u64 = 1;
const INVOLUNTARY: u64 = 2;

impl Stint {
    /// # Safety
    /// `time` points to a value that nothing else writes meanwhile.
    unsafe fn count(self, time: *mut CgroupTime) {
        if self.end == NONE.end {
            return;
        }
        // SAFETY: the caller's contract; the class is below the number of classes.
        unsafe {
            (*time).wait_ns = (*time).wait_ns.wrapping_add(self.wait_ns);
            let waits = (&raw mut (*time).waits).cast::<u32>();
            let class = waits.add(class(self.wait_ns));
            *class = (*class).wrapping_add(1);
            if self.end == VOLUNTARY {
                (*time).voluntary = (*time).voluntary.wrapping_add(1);
            } else {
                (*time).involuntary = (*time).involuntary.wrapping_add(1);
            }
        }
    }
}

/// The class of a wait. Written out: each way through it leaves a constant, which is what the verifier wants of an index.
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

/// Adds `ns`, and a stint that ended, to whoever owns `task`.
///
/// # Safety
/// `state` points into this CPU's slot of [`CPUS`].
unsafe fn charge(state: *mut CpuState, task: u64, ns: u64, stint: Stint) {
    if ns == 0 && stint.end == NONE.end || field::<u32>(task, TASK_PID.load()) == 0 {
        return;
    }
    let key = owner(task);
    match CGROUPS.get_ptr_mut(key) {
        // SAFETY: the value is this CPU's own; nothing else on this CPU runs meanwhile (interrupts are off in
        // sched_switch and in the call that runs `charge_running`).
        Some(time) => unsafe {
            (*time).run_ns = (*time).run_ns.wrapping_add(ns);
            stint.count(time);
        },
        None => {
            let mut new = CgroupTime { run_ns: ns, ..CgroupTime::default() };
            // SAFETY: a value on our own stack.
            unsafe { stint.count(&raw mut new) }
            if CGROUPS.insert(key, new, 0).is_err() {
                // SAFETY: the caller's contract.
                unsafe { (*state).overflow_ns = (*state).overflow_ns.wrapping_add(ns) }
            }
        }
    }
}

/// What a task ran since it was switched in, when that switch was not seen.
///
/// Some switches reach no tracing program (seen on 6.18: two threads of a VM's agent are switched in and never out; the
/// kernel counts no recursion miss). Whoever runs after such a thread would lose its whole interval, up to a tick. The
/// fair class keeps the figure itself: `set_next_entity` copies `sum_exec_runtime` to `prev_sum_exec_runtime` (kernel/
/// sched/fair.c). Other classes do not (real time, deadline, and sched_ext's policy 7), so their stale copy must not be
/// used; nor must one that claims more time than has passed since this CPU was last charged by the clock.
///
/// # Safety
/// `state` points into this CPU's slot of [`CPUS`].
unsafe fn since_unseen_switch(state: *mut CpuState, task: u64, now_ns: u64) -> u64 {
    const SCHED_NORMAL: u32 = 0;
    const SCHED_BATCH: u32 = 3;
    const SCHED_IDLE: u32 = 5;
    const MAX_RT_PRIO: u32 = 100;
    if field::<u32>(task, TASK_PID.load()) == 0 {
        return 0;
    }
    let policy: u32 = field(task, TASK_POLICY.load());
    let fair = matches!(policy, SCHED_NORMAL | SCHED_BATCH | SCHED_IDLE)
        && field::<u32>(task, TASK_PRIO.load()) >= MAX_RT_PRIO;
    let ran = now_ns.wrapping_sub(field(task, TASK_PREV_SUM_EXEC.load()));
    // SAFETY: a helper without arguments; `state` by the caller's contract.
    unsafe {
        let elapsed = bpf_ktime_get_ns().wrapping_sub((*state).swept_at_ns);
        if fair && ran <= elapsed {
            return ran;
        }
        (*state).missed += 1;
    }
    0
}

/// What is known of a task at a switch.
#[derive(Clone, Copy)]
struct Task {
    address: u64,
    pid: u64,
    ran_ns: u64,
}

/// Charges `task` up to now, with the stint that ends if one does, and remembers `next` as running.
///
/// # Safety
/// `state` points into this CPU's slot of [`CPUS`].
unsafe fn account(state: *mut CpuState, task: Task, next: Task, stint: Stint) {
    // SAFETY: the caller's contract; see `charge` for why nothing else writes here meanwhile.
    unsafe {
        let (running, pid, charged) = ((*state).running, (*state).running_pid, (*state).charged_ns);
        (*state).running = next.address;
        (*state).running_pid = next.pid;
        (*state).charged_ns = next.ran_ns;
        if running == task.address && pid == task.pid {
            if task.ran_ns < charged {
                // The figure of a task only grows: this is another task at the same address.
                (*state).missed += 1;
            } else {
                charge(state, task.address, task.ran_ns - charged, stint);
            }
        } else if running != 0 {
            // Whoever was switched in last left unseen, and nobody knows when.
            if pid != 0 {
                (*state).missed += 1;
            }
            charge(state, task.address, since_unseen_switch(state, task.address, task.ran_ns), NONE);
        }
    }
}

/// `sched_switch(preempt, prev, next)`: charges `prev`, remembers `next`.
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let preempted: u64 = ctx.arg(0);
    let prev: *const u8 = ctx.arg(1);
    let next: *const u8 = ctx.arg(2);
    let Some(state) = CPUS.get_ptr_mut(0) else { return 0 };
    let (ran, pid) = (TASK_SUM_EXEC.load() as usize, TASK_PID.load() as usize);
    // SAFETY: `prev` and `next` are trusted task pointers and the verifier checks the offsets against their type;
    // `state` is this CPU's own slot.
    unsafe {
        let known = |task: *const u8| Task {
            address: task as u64,
            pid: u64::from(task.add(pid).cast::<u32>().read_volatile()),
            ran_ns: task.add(ran).cast::<u64>().read_volatile(),
        };
        let stint = ended(state, prev, preempted);
        account(state, known(prev), known(next), stint);
        if TASK_RUN_DELAY.load() != 0 {
            (*state).delay_ns = next.add(TASK_RUN_DELAY.load() as usize).cast::<u64>().read_volatile();
        }
    }
    0
}

/// The stint of `prev` that ends here; none where the kernel does not count waits.
///
/// # Safety
/// `prev` is a trusted task pointer, `state` this CPU's own slot.
unsafe fn ended(state: *mut CpuState, prev: *const u8, preempted: u64) -> Stint {
    let (delay, at) = (TASK_RUN_DELAY.load() as usize, TASK_STATE.load() as usize);
    // SAFETY: the caller's contract.
    if delay == 0 || unsafe { (*state).delay_ns } == UNSEEN {
        return NONE;
    }
    // SAFETY: the caller's contract; the verifier checks the offsets against the type.
    unsafe {
        let wait_ns = prev.add(delay).cast::<u64>().read_volatile().wrapping_sub((*state).delay_ns);
        // TASK_RUNNING is 0: such a task did not ask to leave.
        let voluntary = preempted == 0 && prev.add(at).cast::<u32>().read_volatile() != 0;
        Stint { wait_ns, end: if voluntary { VOLUNTARY } else { INVOLUNTARY } }
    }
}

/// Charges the task that is running on this CPU now. Run by user space, attached to nothing.
#[raw_tracepoint]
pub fn charge_running(_ctx: RawTracePointContext) -> i32 {
    let Some(state) = CPUS.get_ptr_mut(0) else { return 0 };
    // SAFETY: helpers without arguments; `state` is this CPU's own slot.
    unsafe {
        let task = bpf_get_current_task();
        let pid = u64::from(field::<u32>(task, TASK_PID.load()));
        let now = Task { address: task, pid, ran_ns: field(task, TASK_SUM_EXEC.load()) };
        if (*state).running != task {
            (*state).delay_ns = UNSEEN;
        }
        account(state, now, now, NONE);
        (*state).swept_at_ns = bpf_ktime_get_ns();
    }
    0
}
