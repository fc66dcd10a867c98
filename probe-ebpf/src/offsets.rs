//! Where the running kernel keeps the fields that the programs read.
//!
//! rustc emits no CO-RE relocations (aya-rs/aya#349), so the probe reads the offsets from the kernel's BTF and
//! writes them here before the object is loaded. They live in frozen read-only data: the verifier sees constants.

use aya_ebpf::Global;

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub(crate) static $name: Global<u64> = Global::new(0);)+
    };
}

offsets! {
    /// `task_struct.pid`
    TASK_PID,
    /// `task_struct.se.sum_exec_runtime`
    TASK_SUM_EXEC,
    /// `task_struct.se.prev_sum_exec_runtime`
    TASK_PREV_SUM_EXEC,
    /// `task_struct.policy`
    TASK_POLICY,
    /// `task_struct.prio`
    TASK_PRIO,
    /// `task_struct.sched_info.run_delay`; 0 where the kernel does not count it (CONFIG_SCHED_INFO)
    TASK_RUN_DELAY,
    /// `task_struct.__state`, before 5.14 `state`
    TASK_STATE,
    /// `task_struct.cgroups`
    TASK_CGROUPS,
    /// `css_set.dfl_cgrp`
    CSS_SET_DFL_CGRP,
    /// `css_set.subsys[cpu_cgrp_id]`
    CSS_SET_CPU,
    /// `cgroup_subsys_state.cgroup`
    CSS_CGROUP,
    /// `cgroup.level`
    CGROUP_LEVEL,
    /// `cgroup.kn`
    CGROUP_KN,
    /// `kernfs_node.id`
    KERNFS_ID,
}
