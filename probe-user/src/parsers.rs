//! Parsers of what the kernel prints, of what its programs report and of what meters answer, for
//! the fuzz targets. The sources keep them to themselves.

use crate::{
    attribution::totals_file,
    cgroup::changes::CgroupChanges,
    cpu::{EndedThread, ExecEvent, cgroup_events, exec_tracer, files::UsageFormat, program_log},
    energy::{counter_file, guest::HostAnswer, perf, processor::Processor},
    host::process,
    jobs::placement,
    reference,
};

/// The file of energy totals; true if its accounts close.
#[must_use]
pub fn totals(text: &[u8], boot: &str) -> bool {
    totals_file::parse(text, boot).is_ok_and(|state| state.is_some())
}

/// A record of the ring of exec events.
#[must_use]
pub fn exec_record(record: &[u8]) -> Option<ExecEvent> {
    exec_tracer::parse(record)
}

/// A record of the ring of exited threads.
#[must_use]
pub fn thread_record(record: &[u8]) -> Option<EndedThread> {
    exec_tracer::parse_thread(record)
}

/// A record of the ring of cgroup events.
#[must_use]
pub fn cgroup_record(record: &[u8]) -> CgroupChanges {
    let mut changes = CgroupChanges::default();
    cgroup_events::add(record, &mut changes);
    changes
}

/// A record of the ring of messages.
#[must_use]
pub fn log_record(record: &[u8]) -> Option<String> {
    program_log::text(record)
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

/// The power in an answer of a meter in microwatts, by JSON pointer and scale.
#[must_use]
pub fn meter_answer(answer: &[u8], pointer: &str, scale: f64) -> Option<u64> {
    reference::power_in(answer, pointer, scale).ok()
}

/// The answer of the host's probe to a guest.
#[must_use]
pub fn host_answer(answer: &[u8]) -> Option<HostAnswer> {
    HostAnswer::parse(answer).ok()
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
