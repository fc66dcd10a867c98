//! Parsers of what the kernel prints and of what its programs report, for the fuzz targets. The
//! sources keep them to themselves.

use crate::{
    cgroup::changes::CgroupChanges,
    cpu::{ExecEvent, cgroup_events, exec_tracer, files::UsageFormat},
    energy::{counter_file, perf, processor::Processor},
    host::process,
    jobs::placement,
};

/// A record of the ring of exec events.
#[must_use]
pub fn exec_record(record: &[u8]) -> Option<ExecEvent> {
    exec_tracer::parse(record)
}

/// A record of the ring of cgroup events.
#[must_use]
pub fn cgroup_record(record: &[u8]) -> CgroupChanges {
    let mut changes = CgroupChanges::default();
    cgroup_events::add(record, &mut changes);
    changes
}

/// The number of the v1 hierarchy with the `cpu` controller in `/proc/PID/cgroup`.
#[must_use]
pub fn v1_hierarchy(text: &str) -> Option<u64> {
    cgroup_events::hierarchy_of(text)
}

/// A list of CPUs of sysfs.
#[must_use]
pub fn cpu_list(text: &str) -> Option<Vec<usize>> {
    perf::parse_cpus(text)
}

/// `/proc/cpuinfo`.
#[must_use]
pub fn cpuinfo(text: &str) -> Processor {
    Processor::parse(text)
}

/// `cpu.stat` of a v2 cgroup: nanoseconds.
#[must_use]
pub fn cpu_stat(text: &str) -> Option<Vec<u64>> {
    UsageFormat::CpuStat.parse(text)
}

/// `cpuacct.usage_percpu` of a v1 cgroup: nanoseconds by CPU.
#[must_use]
pub fn usage_percpu(text: &str) -> Option<Vec<u64>> {
    UsageFormat::UsagePercpu.parse(text)
}

/// The value of a counter of powercap or a sensor of hwmon.
#[must_use]
pub fn counter_value(text: &[u8]) -> Option<u64> {
    counter_file::number(text)
}

/// The flags in `/proc/PID/stat`.
#[must_use]
pub fn process_flags(stat: &[u8]) -> Option<u64> {
    placement::flags_of(stat)
}

/// The run time in `/proc/PID/task/TID/schedstat`, in nanoseconds.
#[must_use]
pub fn thread_time(schedstat: &str) -> Option<u64> {
    process::ran_of(schedstat)
}
