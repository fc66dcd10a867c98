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
        (Field::TaskExecStart, task(&["se", "exec_start"])?),
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

/// What following jobs needs.
///
/// # Errors
/// When the kernel has a field by no name that we know.
pub fn jobs(btf: &Btf<'_>) -> Result<Known, BtfError> {
    let mut known = identity(btf)?;
    let task = |path: &[&str]| btf.field("task_struct", path);
    known.fields.extend([
        (Field::TaskSumExec, task(&["se", "sum_exec_runtime"])?),
        (Field::TaskTgid, task(&["tgid"])?),
        (Field::TaskComm, task(&["comm"])?),
        (Field::TaskMm, task(&["mm"])?),
        (Field::TaskSignal, task(&["signal"])?),
        (Field::MmArgStart, btf.field("mm_struct", &["arg_start"])?),
        (Field::MmArgEnd, btf.field("mm_struct", &["arg_end"])?),
        (Field::SignalLive, btf.field("signal_struct", &["live"])?),
        (Field::SignalSumSched, btf.field("signal_struct", &["sum_sched_runtime"])?),
        (Field::FileInode, btf.field("file", &["f_inode"])?),
        (Field::FilePrivate, btf.field("file", &["private_data"])?),
        (Field::InodeMode, btf.field("inode", &["i_mode"])?),
        (Field::SocketSock, btf.field("socket", &["sk"])?),
        (Field::SockProtocol, btf.field("sock", &["sk_protocol"])?),
        (Field::SockPort, btf.field("sock", &["__sk_common", "skc_num"])?),
    ]);
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The types that are asked for, with the members that are asked for at their places, cut out of `/sys/kernel/btf/vmlinux` of
    /// Debian's 6.1.0-56 and 6.12.117, and of a 6.18.44: two names of the state, two places of the base figures.
    const KERNELS: [(&str, &[u8]); 3] = [
        ("6.1", include_bytes!("../../tests/btf/6.1.btf")),
        ("6.12", include_bytes!("../../tests/btf/6.12.btf")),
        ("6.18", include_bytes!("../../tests/btf/6.18.btf")),
    ];

    fn at(known: &Known, field: Field) -> u64 {
        known.fields.iter().find(|(name, _)| *name == field).map(|(_, at)| *at).unwrap()
    }

    #[test]
    fn kernels_that_were_seen_are_known() {
        // What `pahole` shows of each: struct task_struct's pid, se.sum_exec_runtime, sched_info.run_delay, cgroups; struct cgroup's
        // pointer to its per-CPU figures, and where the sum lies in those.
        let expected = [
            ([2416, 200, 2168, 3600], [920, 16]),
            ([2432, 224, 2200, 3584], [984, 16]),
            ([1264, 232, 1016, 2376], [928, 16]),
        ];
        for ((name, bytes), expected) in KERNELS.into_iter().zip(expected) {
            let btf = Btf::parse(bytes).unwrap();
            let (switch, kernel) = (switch(&btf).unwrap(), kernel(&btf).unwrap());
            let fields = [Field::TaskPid, Field::TaskSumExec, Field::TaskRunDelay, Field::TaskCgroups];
            let found = fields.map(|field| at(&switch, field));
            let walk = [Field::CgroupRstat, Field::RstatSumExec].map(|field| at(&kernel, field));
            assert_eq!((found, walk), expected, "{name}");
            assert_eq!((switch.setting("COUNTS_WAITS"), switch.setting("SWITCH_SHIFTED")), (1, 0), "{name}");
            assert_eq!((switch.setting("HAS_CPU"), kernel.setting("HAS_CPUACCT")), (1, 1), "{name}");
        }
    }

    /// A kernel like 6.18, with one name changed in its types.
    fn renamed(from: &str, to: &str) -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let mut bytes = KERNELS[2].1.to_vec();
        let whole = format!("\0{from}\0");
        let place = bytes.windows(whole.len()).position(|window| window == whole.as_bytes()).unwrap();
        bytes[place + 1..=place + to.len()].copy_from_slice(to.as_bytes());
        bytes
    }

    #[test]
    fn what_a_kernel_lacks_is_left_out_or_said() {
        let look = |bytes: &[u8]| switch(&Btf::parse(bytes).unwrap());
        assert_eq!(look(&renamed("run_delay", "xun_delay")).unwrap().setting("COUNTS_WAITS"), 0);
        assert_eq!(look(&renamed("cpu_cgrp_id", "xpu_cgrp_id")).unwrap().setting("HAS_CPU"), 0);
        let said = |bytes: &[u8]| look(bytes).unwrap_err().to_string();
        assert!(said(&renamed("dfl_cgrp", "xfl_cgrp")).contains("css_set has no field dfl_cgrp"));
        assert!(said(&renamed("btf_trace_sched_switch", "xtf_trace_sched_switch")).contains("two tasks"));
        let bytes = renamed("rstat_base_cpu", "xstat_base_cpu");
        assert!(kernel(&Btf::parse(&bytes).unwrap()).unwrap_err().to_string().contains("rstat_cpu"));
    }

    #[test]
    fn both_signatures_of_the_switch_are_told_apart_and_a_third_is_refused() {
        // The types of the arguments as they stand: data, preempt, prev, next, prev_state.
        let mut bytes = KERNELS[2].1.to_vec();
        let head = (13u32 << 24 | 5).to_ne_bytes();
        let function = bytes.windows(4).position(|window| window == head).unwrap() + 8;
        let argument = |index: usize| function + index * 8 + 4;
        let task: Vec<u8> = bytes[argument(2)..argument(2) + 4].to_vec();
        let mut set = |index: usize, ty: &[u8]| bytes[argument(index)..argument(index) + 4].copy_from_slice(ty);
        // As in 5.18-rc1: prev_state before the tasks.
        set(2, &[0; 4]);
        set(4, &task);
        assert_eq!(switch(&Btf::parse(&bytes).unwrap()).unwrap().setting("SWITCH_SHIFTED"), 1);
        bytes[argument(3)..argument(3) + 4].copy_from_slice(&[0; 4]);
        assert!(switch(&Btf::parse(&bytes).unwrap()).unwrap_err().to_string().contains("two tasks"));
    }

    #[test]
    fn the_running_kernel_is_known() {
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux");
        let bytes = testkit::or_skip!(bytes.map_err(|error| format!("this kernel publishes no BTF: {error}")));
        let btf = Btf::parse(&bytes).unwrap();
        let known = switch(&btf).unwrap();
        assert!(at(&known, Field::TaskSumExec) > 0 && at(&known, Field::TaskCgroups) > 0);
        assert!(at(&jobs(&btf).unwrap(), Field::MmArgEnd) > 0);
    }
}
