//! What the programs must know of the running kernel: where it has the fields that they read.
//!
//! Resolved from the kernel's BTF by name, with the names that a field had over the years. Nothing is decided by a version number.

use probe_ebpf::Field;

use super::btf::{Btf, BtfError};

/// What is known of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Where fields are, in bytes.
    pub fields: Vec<(Field, u64)>,
    /// Settings of the programs that follow from it, by name; those that are not named are 0.
    pub settings: Vec<(&'static str, u64)>,
}

impl Known {
    /// The value of a setting.
    #[must_use]
    pub fn setting(&self, name: &str) -> u64 {
        self.settings.iter().find(|(known, _)| *known == name).map_or(0, |(_, value)| *value)
    }
}

/// What every program needs: who a task, or a cgroup, is.
fn identity(btf: &Btf<'_>) -> Result<Known, BtfError> {
    let mut fields = vec![
        (Field::TaskCgroups, btf.field("task_struct", &["cgroups"])?),
        (Field::CssSetDflCgrp, btf.field("css_set", &["dfl_cgrp"])?),
        (Field::CssCgroup, btf.field("cgroup_subsys_state", &["cgroup"])?),
        (Field::CssSerial, btf.field("cgroup_subsys_state", &["serial_nr"])?),
        (Field::CgroupSerial, btf.field("cgroup", &["self", "serial_nr"])?),
        (Field::CgroupLevel, btf.field("cgroup", &["level"])?),
        (Field::CgroupKn, btf.field("cgroup", &["kn"])?),
        (Field::KernfsId, btf.field("kernfs_node", &["id"])?),
    ];
    // A kernel without the cpu controller has no v1 cpu cgroups either.
    let cpu = controller(btf, "cpu_cgrp_id")?;
    fields.extend(cpu.map(|at| (Field::CssSetCpu, at)));
    Ok(Known { fields, settings: vec![("HAS_CPU", u64::from(cpu.is_some()))] })
}

/// Where a `css_set` points to its part of a controller.
fn controller(btf: &Btf<'_>, id: &str) -> Result<Option<u64>, BtfError> {
    let Some(index) = btf.enumerator("cgroup_subsys_id", id) else { return Ok(None) };
    Ok(Some(btf.field("css_set", &["subsys"])? + u64::from(index) * size_of::<usize>() as u64))
}

/// What the programs at a switch need.
///
/// # Errors
/// When the kernel has a field by no name that we know.
pub fn switch(btf: &Btf<'_>) -> Result<Known, BtfError> {
    let task = |path: &[&str]| btf.field("task_struct", path);
    let mut known = identity(btf)?;
    known.fields.extend([
        (Field::TaskPid, task(&["pid"])?),
        (Field::TaskSumExec, task(&["se", "sum_exec_runtime"])?),
        (Field::TaskPrevSumExec, task(&["se", "prev_sum_exec_runtime"])?),
        (Field::TaskPolicy, task(&["policy"])?),
        (Field::TaskPrio, task(&["prio"])?),
        // Renamed in 5.14 (commit 2f064a59a11f).
        (Field::TaskState, task(&["__state"]).or_else(|_| task(&["state"]))?),
    ]);
    // Without CONFIG_SCHED_INFO there is none, and waits and switches are not counted.
    let delay = task(&["sched_info", "run_delay"]).ok();
    known.fields.extend(delay.map(|at| (Field::TaskRunDelay, at)));
    known.settings.push(("COUNTS_WAITS", u64::from(delay.is_some())));
    known.settings.push(("SWITCH_SHIFTED", u64::from(is_shifted(btf)?)));
    Ok(known)
}

/// True where another argument stands between `preempt` and the two tasks. `prev_state` came in 5.18-rc1 as the second (commit
/// fa2c3254d7cf) and moved to the end before 5.18 (9c2136be0878); older kernels have three arguments.
fn is_shifted(btf: &Btf<'_>) -> Result<bool, BtfError> {
    let name = "btf_trace_sched_switch";
    let arguments = btf.arguments(name);
    let task = |index: usize| arguments.get(index).is_some_and(|argument| *argument == b"task_struct");
    // The first is the tracepoint's own data.
    match (task(2) && task(3), task(3) && task(4)) {
        (true, false) => Ok(false),
        (false, true) => Ok(true),
        _ => Err(BtfError::NoField(name.to_owned(), "two tasks".to_owned())),
    }
}

/// What the walk over the kernel's own figures needs.
///
/// # Errors
/// When the kernel has a field by no name that we know.
pub fn kernel(btf: &Btf<'_>) -> Result<Known, BtfError> {
    let mut known = identity(btf)?;
    // Base figures have a structure of their own since 6.16 (commit 5da3bfa029d6).
    let sum = |structure: &str| btf.field(structure, &["bstat", "cputime", "sum_exec_runtime"]);
    let (pointer, sum) = match btf.field("cgroup", &["rstat_base_cpu"]) {
        Ok(pointer) => (pointer, sum("cgroup_rstat_base_cpu")?),
        Err(_) => (btf.field("cgroup", &["rstat_cpu"])?, sum("cgroup_rstat_cpu")?),
    };
    known.fields.extend([
        (Field::CgroupRstat, pointer),
        (Field::RstatSumExec, sum),
        (Field::BpfArrayPptrs, btf.field("bpf_array", &["pptrs"])?),
    ]);
    if let Some(cpuacct) = controller(btf, "cpuacct_cgrp_id")? {
        let usage = btf.field("cpuacct", &["cpuusage"])?.wrapping_sub(btf.field("cpuacct", &["css"])?);
        let parent = btf.field("cgroup_subsys_state", &["parent"])?;
        let fields = [Field::CssSetCpuacct, Field::CpuacctUsage, Field::CssParent];
        known.fields.extend(fields.into_iter().zip([cpuacct, usage, parent]));
        known.settings.push(("HAS_CPUACCT", 1));
    }
    Ok(known)
}
