//! What this process costs, in the names that client libraries give it.
//!
//! Our own, because the `prometheus` crate counts CPU in whole seconds (tikv/rust-prometheus#451): a program that claims
//! to use under one percent would show as 0 % with spikes.

use std::fs;

use crate::family::{Def, Family};

static CPU: Def = Def::counter(
    "process_cpu_seconds_total",
    &[],
    "CPU time of this process, user and system, in seconds (CLOCK_PROCESS_CPUTIME_ID).",
);
static RESIDENT: Def =
    Def::gauge("process_resident_memory_bytes", &[], "Resident memory of this process in bytes (/proc/self/statm).");
static VIRTUAL: Def =
    Def::gauge("process_virtual_memory_bytes", &[], "Virtual memory of this process in bytes (/proc/self/statm).");
static OPEN_FDS: Def = Def::gauge("process_open_fds", &[], "Open file descriptors of this process (/proc/self/fd).");
static MAX_FDS: Def =
    Def::gauge("process_max_fds", &[], "Most file descriptors this process may open (RLIMIT_NOFILE).");
static START: Def = Def::gauge(
    "process_start_time_seconds",
    &[],
    "Start of this process in unix seconds (/proc/self/stat and the boot time in /proc/stat).",
);

/// Every metric of this module.
pub static DEFS: &[&Def] = &[&CPU, &RESIDENT, &VIRTUAL, &OPEN_FDS, &MAX_FDS, &START];

/// Reads everything now. What cannot be read is absent.
#[must_use]
pub fn families() -> Vec<Family> {
    let memory = fs::read_to_string("/proc/self/statm").ok();
    let pages = |field: usize| -> Option<f64> {
        let pages: f64 = memory.as_ref()?.split(' ').nth(field)?.parse().ok()?;
        Some(pages * page_size())
    };
    let rows = [
        (&CPU, cpu_seconds()),
        (&RESIDENT, pages(1)),
        (&VIRTUAL, pages(0)),
        // The directory itself is open while it is counted.
        (&OPEN_FDS, fs::read_dir("/proc/self/fd").ok().map(|dir| (dir.count().saturating_sub(1)) as f64)),
        (&MAX_FDS, max_fds()),
        (&START, start_seconds()),
    ];
    rows.into_iter().filter_map(|(def, value)| Some(Family::new(def).with(&[], value?))).collect()
}

/// CPU seconds of all threads of this process, to the nanosecond.
#[must_use]
pub fn cpu_seconds() -> Option<f64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that outlives the call.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    (done == 0).then(|| time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

fn page_size() -> f64 {
    // SAFETY: sysconf takes a number and returns one.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as f64 }
}

fn max_fds() -> Option<f64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that outlives the call.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    (done == 0).then_some(limit.rlim_cur as f64)
}

/// Field 22 of `stat` counts clock ticks since boot (proc(5)); the command name before it may hold spaces and brackets.
fn start_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    // SAFETY: sysconf takes a number and returns one.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) as f64 };
    Some(boot + ticks / hertz)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_process_has_all_of_them() {
        let all = families();
        assert_eq!(all.len(), DEFS.len());
        assert!(all.iter().all(|family| family.rows().all(|(_, value)| value > 0.0)));
    }

    #[test]
    fn cpu_time_has_a_fraction() {
        let start = cpu_seconds().unwrap();
        let mut x = 0u64;
        while cpu_seconds().unwrap() - start < 0.002 {
            x = std::hint::black_box(x + 1);
        }
        assert!(cpu_seconds().unwrap() - start < 1.0);
    }
}
