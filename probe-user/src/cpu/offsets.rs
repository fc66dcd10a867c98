//! Layout of the running kernel: the offsets of the fields that the eBPF programs read.
//!
//! They are resolved from the kernel's BTF by name, including older names of a field. No decision
//! depends on a version number.

use probe_ebpf::Field;

use super::btf::{Btf, BtfError};

/// Field offsets and features of a kernel, and the ids of what programs are attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelLayout {
    /// Field offsets in bytes.
    pub fields: Vec<(Field, u64)>,
    /// Values of the programs' settings that depend on the kernel; others are 0.
    pub settings: Vec<(&'static str, u64)>,
    /// Type ids of the targets of typed programs: `btf_trace_` and a tracepoint, `bpf_iter_` and a
    /// kind of object. A target that the kernel lacks is missing.
    pub targets: Vec<(&'static str, u32)>,
}

impl KernelLayout {
    /// The value of a setting.
    #[must_use]
    pub fn setting(&self, name: &str) -> u64 {
        self.settings.iter().find(|(known, _)| *known == name).map_or(0, |(_, value)| *value)
    }

    /// Adds fields that a kernel may lack, and the setting that says whether it has them.
    fn add_optional(&mut self, setting: &'static str, fields: Option<Vec<(Field, u64)>>) {
        self.settings.push((setting, u64::from(fields.is_some())));
        self.fields.extend(fields.unwrap_or_default());
    }
}

/// Fields that every program needs: those that identify the cgroup of a task.
fn identity(btf: &Btf<'_>) -> Result<KernelLayout, BtfError> {
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
    let settings = vec![("HAS_CPU", u64::from(cpu.is_some()))];
    Ok(KernelLayout { fields, settings, targets: Vec::new() })
}

/// Adds the ids of the named targets that the kernel has.
fn add_targets(btf: &Btf<'_>, layout: &mut KernelLayout, tracepoints: &[&'static str], iterators: &[&'static str]) {
    layout.targets.extend(tracepoints.iter().filter_map(|name| Some((*name, btf.typedef_id(name)?))));
    layout.targets.extend(iterators.iter().filter_map(|name| Some((*name, btf.function_id(name)?))));
}

/// Adds the fields that tell the tree of a cgroup. Without them no changes of the trees are
/// reported.
fn add_tree(btf: &Btf<'_>, layout: &mut KernelLayout) {
    if let (Ok(root), Ok(number)) = (btf.field("cgroup", &["root"]), btf.field("cgroup_root", &["hierarchy_id"])) {
        layout.fields.extend([(Field::CgroupRoot, root), (Field::RootHierarchy, number)]);
    }
}

/// Offset of a controller's pointer in `css_set`.
fn controller(btf: &Btf<'_>, id: &str) -> Result<Option<u64>, BtfError> {
    let Some(index) = btf.enumerator("cgroup_subsys_id", id) else { return Ok(None) };
    Ok(Some(btf.field("css_set", &["subsys"])? + u64::from(index) * size_of::<usize>() as u64))
}

/// Fields for the programs on `sched_switch`.
///
/// # Errors
/// When the kernel has none of the known names of a field.
pub fn switch(btf: &Btf<'_>) -> Result<KernelLayout, BtfError> {
    let task = |path: &[&str]| btf.field("task_struct", path);
    let mut layout = identity(btf)?;
    add_tree(btf, &mut layout);
    layout.fields.extend([
        (Field::TaskPid, task(&["pid"])?),
        (Field::TaskSumExec, task(&["se", "sum_exec_runtime"])?),
        (Field::TaskPrevSumExec, task(&["se", "prev_sum_exec_runtime"])?),
        (Field::TaskExecStart, task(&["se", "exec_start"])?),
        (Field::TaskPolicy, task(&["policy"])?),
        (Field::TaskPrio, task(&["prio"])?),
        // Renamed in 5.14 (commit 2f064a59a11f).
        (Field::TaskState, task(&["__state"]).or_else(|_| task(&["state"]))?),
    ]);
    // Without CONFIG_SCHED_INFO the field does not exist, and waits are not counted.
    let delay = task(&["sched_info", "run_delay"]).ok();
    layout.fields.extend(delay.map(|at| (Field::TaskRunDelay, at)));
    layout.settings.push(("COUNTS_WAITS", u64::from(delay.is_some())));
    layout.settings.push(("SWITCH_SHIFTED", u64::from(is_shifted(btf)?)));
    let clocks = run_queue_clocks(btf).unwrap_or_default();
    layout.settings.push(("READS_CLOCK", u64::from(!clocks.is_empty())));
    layout.fields.extend(clocks);
    add_targets(btf, &mut layout, &["btf_trace_sched_switch"], &[]);
    Ok(layout)
}

/// Fields that lead to the clocks of a CPU's run queue, and the arrival of a task by them.
///
/// # Errors
/// When the kernel lacks one: a task's queue knows its run queue only with CONFIG_FAIR_GROUP_SCHED,
/// and arrivals need CONFIG_SCHED_INFO.
fn run_queue_clocks(btf: &Btf<'_>) -> Result<Vec<(Field, u64)>, BtfError> {
    Ok(vec![
        (Field::TaskLastArrival, btf.field("task_struct", &["sched_info", "last_arrival"])?),
        (Field::TaskCfsRq, btf.field("task_struct", &["se", "cfs_rq"])?),
        (Field::CfsRqRq, btf.field("cfs_rq", &["rq"])?),
        (Field::RqClock, btf.field("rq", &["clock"])?),
        (Field::RqClockTask, btf.field("rq", &["clock_task"])?),
    ])
}

/// Whether another argument is between `preempt` and the two tasks. `prev_state` was added as the
/// second argument in 5.18-rc1 (commit fa2c3254d7cf) and moved to the end before 5.18
/// (9c2136be0878); older kernels have three arguments.
fn is_shifted(btf: &Btf<'_>) -> Result<bool, BtfError> {
    let name = "btf_trace_sched_switch";
    let arguments = btf.arguments(name);
    let task = |index: usize| arguments.get(index).is_some_and(|argument| *argument == b"task_struct");
    // The first argument is the tracepoint's own data.
    match (task(2) && task(3), task(3) && task(4)) {
        (true, false) => Ok(false),
        (false, true) => Ok(true),
        _ => Err(BtfError::NoField(name.to_owned(), "two tasks".to_owned())),
    }
}

/// Fields for the iterator over the cgroups.
///
/// # Errors
/// When the kernel has none of the known names of a field.
pub fn kernel(btf: &Btf<'_>) -> Result<KernelLayout, BtfError> {
    let mut layout = identity(btf)?;
    add_tree(btf, &mut layout);
    // The base counters are in a separate structure since 6.16 (commit 5da3bfa029d6).
    let sum = |structure: &str| btf.field(structure, &["bstat", "cputime", "sum_exec_runtime"]);
    let (pointer, sum) = match btf.field("cgroup", &["rstat_base_cpu"]) {
        Ok(pointer) => (pointer, sum("cgroup_rstat_base_cpu")?),
        Err(_) => (btf.field("cgroup", &["rstat_cpu"])?, sum("cgroup_rstat_cpu")?),
    };
    layout.fields.extend([
        (Field::CgroupRstat, pointer),
        (Field::RstatSumExec, sum),
        (Field::BpfArrayPptrs, btf.field("bpf_array", &["pptrs"])?),
    ]);
    if let Some(cpuacct) = controller(btf, "cpuacct_cgrp_id")? {
        let usage = btf.field("cpuacct", &["cpuusage"])?.wrapping_sub(btf.field("cpuacct", &["css"])?);
        let parent = btf.field("cgroup_subsys_state", &["parent"])?;
        let fields = [Field::CssSetCpuacct, Field::CpuacctUsage, Field::CssParent];
        layout.fields.extend(fields.into_iter().zip([cpuacct, usage, parent]));
        layout.settings.push(("HAS_CPUACCT", 1));
    }
    add_targets(btf, &mut layout, &[], &["bpf_iter_cgroup"]);
    Ok(layout)
}

/// Fields for the iterator that reads the usage of containers. Those that the kernel lacks are left
/// out, with the setting of their counter.
///
/// # Errors
/// When the kernel has none of the names of a cgroup's id, or none of the counters.
pub fn usage(btf: &Btf<'_>) -> Result<KernelLayout, BtfError> {
    let fields =
        vec![(Field::CgroupKn, btf.field("cgroup", &["kn"])?), (Field::KernfsId, btf.field("kernfs_node", &["id"])?)];
    let mut layout = KernelLayout { fields, ..KernelLayout::default() };
    let memory = memory(btf);
    layout.add_optional("READS_INACTIVE", inactive(btf).filter(|_| memory.is_some()));
    layout.add_optional("READS_MEMORY", memory);
    layout.add_optional("READS_CPU_LIMIT", cpu_limit(btf));
    let devices = devices(btf);
    layout.add_optional("READS_DEVICE_BYTES", device_bytes(btf).filter(|_| devices.is_some()));
    layout.add_optional("READS_DEVICES", devices);
    if ["READS_MEMORY", "READS_CPU_LIMIT", "READS_DEVICES"].iter().all(|name| layout.setting(name) == 0) {
        return Err(BtfError::NoStruct("mem_cgroup, task_group or blkcg as expected".to_owned()));
    }
    add_targets(btf, &mut layout, &[], &["bpf_iter_cgroup"]);
    Ok(layout)
}

/// Offset of a controller's pointer in `cgroup`.
fn cgroup_controller(btf: &Btf<'_>, id: &str) -> Option<u64> {
    let index = btf.enumerator("cgroup_subsys_id", id)?;
    Some(btf.field("cgroup", &["subsys"]).ok()? + u64::from(index) * size_of::<usize>() as u64)
}

/// Offset of a field from another one of the structure, to which a pointer leads.
fn from_member(btf: &Btf<'_>, structure: &str, member: &str, path: &[&str]) -> Option<u64> {
    btf.field(structure, path).ok()?.checked_sub(btf.field(structure, &[member]).ok()?)
}

fn memory(btf: &Btf<'_>) -> Option<Vec<(Field, u64)>> {
    Some(vec![
        (Field::CgroupMemory, cgroup_controller(btf, "memory_cgrp_id")?),
        (Field::MemcgUsage, from_member(btf, "mem_cgroup", "css", &["memory", "usage"])?),
        (Field::MemcgMax, from_member(btf, "mem_cgroup", "css", &["memory", "max"])?),
    ])
}

/// The statistics are a structure of their own since 6.1 (commit 410f8e82689e).
fn inactive(btf: &Btf<'_>) -> Option<Vec<(Field, u64)>> {
    let index = btf.enumerator("node_stat_item", "NR_INACTIVE_FILE")?;
    let state = btf.field("memcg_vmstats", &["state"]).ok()?;
    Some(vec![
        (Field::MemcgVmstats, from_member(btf, "mem_cgroup", "css", &["vmstats"])?),
        (Field::VmstatsInactive, state + u64::from(index) * size_of::<usize>() as u64),
    ])
}

fn cpu_limit(btf: &Btf<'_>) -> Option<Vec<(Field, u64)>> {
    Some(vec![
        (Field::CgroupCpu, cgroup_controller(btf, "cpu_cgrp_id")?),
        (Field::TaskGroupQuota, from_member(btf, "task_group", "css", &["cfs_bandwidth", "quota"])?),
        (Field::TaskGroupPeriod, from_member(btf, "task_group", "css", &["cfs_bandwidth", "period"])?),
    ])
}

fn devices(btf: &Btf<'_>) -> Option<Vec<(Field, u64)>> {
    Some(vec![
        (Field::CgroupIo, cgroup_controller(btf, "io_cgrp_id")?),
        (Field::BlkcgDevices, from_member(btf, "blkcg", "css", &["blkg_list", "first"])?),
    ])
}

fn device_bytes(btf: &Btf<'_>) -> Option<Vec<(Field, u64)>> {
    Some(vec![
        (Field::DeviceOnline, from_member(btf, "blkcg_gq", "blkcg_node", &["online"])?),
        (Field::DeviceBytes, from_member(btf, "blkcg_gq", "blkcg_node", &["iostat", "cur", "bytes"])?),
    ])
}

/// Fields for the programs that trace jobs.
///
/// # Errors
/// When the kernel has none of the known names of a field.
pub fn jobs(btf: &Btf<'_>) -> Result<KernelLayout, BtfError> {
    let mut layout = identity(btf)?;
    let task = |path: &[&str]| btf.field("task_struct", path);
    layout.fields.extend([
        (Field::TaskSumExec, task(&["se", "sum_exec_runtime"])?),
        (Field::TaskPid, task(&["pid"])?),
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
    let tracepoints = ["btf_trace_sched_process_exec", "btf_trace_sched_process_exit"];
    add_targets(btf, &mut layout, &tracepoints, &["bpf_iter_task_file"]);
    Ok(layout)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The types and members that are looked up, extracted from `/sys/kernel/btf/vmlinux` of
    /// Debian's 6.1.0-56 and 6.12.117 and of a 6.18.44: two names of the task state, two structures
    /// with the base counters.
    const KERNELS: [(&str, &[u8]); 3] = [
        ("6.1", include_bytes!("../../tests/btf/6.1.btf")),
        ("6.12", include_bytes!("../../tests/btf/6.12.btf")),
        ("6.18", include_bytes!("../../tests/btf/6.18.btf")),
    ];

    fn at(layout: &KernelLayout, field: Field) -> u64 {
        layout.fields.iter().find(|(name, _)| *name == field).map(|(_, at)| *at).unwrap()
    }

    #[test]
    fn layouts_of_recorded_kernels_match_pahole() {
        // Output of `pahole`: pid, se.sum_exec_runtime, sched_info.run_delay and cgroups of
        // task_struct; the pointer to the per-CPU counters in struct cgroup, and the offset of the
        // sum in those.
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
            let rstat = [Field::CgroupRstat, Field::RstatSumExec].map(|field| at(&kernel, field));
            assert_eq!((found, rstat), expected, "{name}");
            assert_eq!((switch.setting("COUNTS_WAITS"), switch.setting("SWITCH_SHIFTED")), (1, 0), "{name}");
            assert_eq!((switch.setting("HAS_CPU"), kernel.setting("HAS_CPUACCT")), (1, 1), "{name}");
        }
    }

    /// The types of 6.18 with one name changed.
    fn renamed(from: &str, to: &str) -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let mut bytes = KERNELS[2].1.to_vec();
        let pattern = format!("\0{from}\0");
        let at = bytes.windows(pattern.len()).position(|window| window == pattern.as_bytes()).unwrap();
        bytes[at + 1..=at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    }

    #[test]
    fn missing_field_is_skipped_or_reported() {
        let resolve = |bytes: &[u8]| switch(&Btf::parse(bytes).unwrap());
        assert_eq!(resolve(&renamed("run_delay", "xun_delay")).unwrap().setting("COUNTS_WAITS"), 0);
        assert_eq!(resolve(&renamed("cpu_cgrp_id", "xpu_cgrp_id")).unwrap().setting("HAS_CPU"), 0);
        let error = |bytes: &[u8]| resolve(bytes).unwrap_err().to_string();
        assert!(error(&renamed("dfl_cgrp", "xfl_cgrp")).contains("css_set has no field dfl_cgrp"));
        assert!(error(&renamed("btf_trace_sched_switch", "xtf_trace_sched_switch")).contains("two tasks"));
        let bytes = renamed("rstat_base_cpu", "xstat_base_cpu");
        assert!(kernel(&Btf::parse(&bytes).unwrap()).unwrap_err().to_string().contains("rstat_cpu"));
    }

    /// The recorded types lack the objects with the usage of containers.
    #[test]
    fn usage_needs_one_of_its_counters() {
        for (name, bytes) in KERNELS {
            let error = usage(&Btf::parse(bytes).unwrap()).unwrap_err().to_string();
            assert!(error.contains("mem_cgroup"), "{name}: {error}");
        }
    }

    /// The recorded types lack the run queue: all of these fields are left out, or none.
    #[test]
    fn clocks_of_a_run_queue_are_optional() {
        for (name, bytes) in KERNELS {
            let layout = switch(&Btf::parse(bytes).unwrap()).unwrap();
            assert_eq!(layout.setting("READS_CLOCK"), 0, "{name}");
            let optional = [Field::TaskLastArrival, Field::TaskCfsRq, Field::CfsRqRq, Field::RqClock];
            assert!(layout.fields.iter().all(|(field, _)| !optional.contains(field)), "{name}");
        }
    }

    #[test]
    fn sched_switch_signatures_are_distinguished() {
        // The argument types in order: data, preempt, prev, next, prev_state.
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
    fn running_kernel_has_all_fields() {
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux");
        let bytes = testkit::or_skip!(bytes.map_err(|error| format!("this kernel publishes no BTF: {error}")));
        let btf = Btf::parse(&bytes).unwrap();
        let layout = switch(&btf).unwrap();
        assert!(at(&layout, Field::TaskSumExec) > 0 && at(&layout, Field::TaskCgroups) > 0);
        let jobs = jobs(&btf).unwrap();
        assert!(at(&jobs, Field::MmArgEnd) > 0);
        if let Ok(usage) = usage(&btf) {
            let names = ["READS_MEMORY", "READS_INACTIVE", "READS_CPU_LIMIT", "READS_DEVICES", "READS_DEVICE_BYTES"];
            println!("usage: {:?}", names.map(|name| usage.setting(name)));
            assert!(names.iter().any(|name| usage.setting(name) == 1));
        }
        assert_eq!((layout.targets.len(), jobs.targets.len()), (1, 3), "{:?} {:?}", layout.targets, jobs.targets);
    }
}
