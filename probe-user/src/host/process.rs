//! Processes of the host: their CPU clocks and the pid namespace.

#![allow(unsafe_code)]

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

/// The inode of the initial pid namespace (include/linux/proc_ns.h, PROC_PID_INIT_INO).
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// True if this process is not in the host's pid namespace.
pub(crate) fn in_other_pid_namespace() -> bool {
    fs::metadata("/proc/self/ns/pid").is_ok_and(|meta| meta.ino() != INITIAL_PID_NAMESPACE)
}

/// Nanoseconds since a time of `CLOCK_MONOTONIC`.
pub(crate) fn elapsed_since(at_ns: u64) -> i64 {
    let now = clock_ns(libc::CLOCK_MONOTONIC).unwrap_or(at_ns);
    i64::try_from(now.saturating_sub(at_ns)).unwrap_or(0)
}

/// CPU time of a whole process, including exited threads; `None` if there is no such process. For
/// each running thread it lags behind by up to one scheduler tick.
pub fn process_clock_ns(tgid: u32) -> Option<u64> {
    // include/linux/posix-timers.h, make_process_cpuclock: the pid's complement above three bits,
    // CPUCLOCK_SCHED.
    const CPUCLOCK_SCHED: libc::clockid_t = 2;
    let pid = libc::clockid_t::try_from(tgid).ok()?;
    clock_ns(!pid << 3 | CPUCLOCK_SCHED)
}

pub(crate) fn clock_ns(clock: libc::clockid_t) -> Option<u64> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec that outlives the call.
    if unsafe { libc::clock_gettime(clock, &raw mut now) } != 0 {
        return None;
    }
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    Some(part(now.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(now.tv_nsec)))
}

/// Voluntary context switches of all threads of this process, also of those that have ended.
pub(crate) fn voluntary_switches() -> Option<u64> {
    // SAFETY: a structure of integers, which may all be zero.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid rusage that outlives the call.
    let done = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) } == 0;
    u64::try_from(usage.ru_nvcsw).ok().filter(|_| done)
}

/// CPU time of the current threads of a process.
pub(crate) fn threads_clock_ns(procfs: &Path, tgid: u32) -> u64 {
    let Ok(threads) = fs::read_dir(procfs.join(tgid.to_string()).join("task")) else { return 0 };
    let ran = threads.flatten().filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        ran_of(&text)
    });
    ran.fold(0, u64::saturating_add)
}

/// The number in a field of `/proc/PID/stat` after the name, which may contain anything; fields are
/// counted from 1 (man 5 proc_pid_stat).
pub(crate) fn stat_number(stat: &[u8], field: usize) -> Option<u64> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    // The first field after the name is the third one.
    let rest = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(field.checked_sub(3)?)?.parse().ok()
}

/// Nanoseconds on a CPU in the text of a thread's `schedstat` (Documentation/scheduler/
/// sched-stats.rst).
pub(crate) fn ran_of(schedstat: &str) -> Option<u64> {
    schedstat.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_number_is_the_time_of_a_thread() {
        assert_eq!((ran_of("12 3 4\n"), ran_of("0 0 0\n")), (Some(12), Some(0)));
        for text in ["", " 1", "-1 0 0", "18446744073709551616 0 0", "x"] {
            assert_eq!(ran_of(text), None, "{text}");
        }
    }

    #[test]
    fn a_sleep_is_a_voluntary_switch() {
        let before = voluntary_switches().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(voluntary_switches().unwrap() > before);
    }

    #[test]
    fn the_process_clock_reads_the_cpu_time_of_a_pid() {
        let ours = clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID).unwrap();
        let clock = process_clock_ns(std::process::id()).unwrap();
        assert!(clock >= ours, "{clock} {ours}");
        assert_eq!(process_clock_ns(4_194_304), None, "beyond the largest pid");
    }
}
