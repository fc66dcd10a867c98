//! Metrics of the process itself, under the standard `process_*` names of Prometheus client
//! libraries.
//!
//! The process collector of the `prometheus` crate is not used: it counts CPU time in whole seconds
//! (tikv/rust-prometheus#451), so a program that uses less than one percent would show as 0 % with
//! spikes.

use std::fs;

use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

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

/// All metric definitions of this module.
pub static DEFS: &[&Def] = &[&CPU, &RESIDENT, &VIRTUAL, &OPEN_FDS, &MAX_FDS, &START];

/// Reads the current values. A metric whose source cannot be read is left out.
#[must_use]
pub fn families() -> Vec<Family> {
    let memory = fs::read_to_string("/proc/self/statm").ok();
    let memory_bytes = |field: usize| -> Option<f64> {
        let pages: f64 = memory.as_ref()?.split(' ').nth(field)?.parse().ok()?;
        Some(pages * page_size() as f64)
    };
    let rows = [
        (&CPU, Some(cpu_seconds())),
        (&RESIDENT, memory_bytes(1)),
        (&VIRTUAL, memory_bytes(0)),
        // The directory itself is open while it is counted.
        (&OPEN_FDS, fs::read_dir("/proc/self/fd").ok().map(|dir| (dir.count().saturating_sub(1)) as f64)),
        (&MAX_FDS, Some(max_fds())),
        (&START, start_seconds()),
    ];
    rows.into_iter().filter_map(|(def, value)| Some(Family::new(def).with(&[], value?))).collect()
}

/// CPU time of all threads of this process, in seconds with nanosecond resolution.
#[must_use]
pub fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The soft limit; the largest number where there is none.
fn max_fds() -> f64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) as f64
}

/// Start time of the process in unix seconds. Field 22 of `/proc/self/stat` counts clock ticks
/// since boot (proc(5)); fields are counted after the last bracket because the command name may
/// contain spaces and brackets.
fn start_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + ticks / clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_process_has_every_metric() {
        let families = families();
        assert_eq!(families.len(), DEFS.len());
        assert!(families.iter().all(|family| family.rows().all(|(_, value)| value > 0.0)));
    }

    #[test]
    fn cpu_time_has_subsecond_resolution() {
        let start = cpu_seconds();
        let mut x = 0u64;
        while cpu_seconds() - start < 0.002 {
            x = std::hint::black_box(x + 1);
        }
        assert!(cpu_seconds() - start < 1.0);
    }
}
