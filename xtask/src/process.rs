//! What the kernel counts about a running program: CPU time, memory, page faults, wakeups, and the
//! run time of its eBPF programs; and how long the CPUs slept deeply meanwhile.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};

/// CPU time of all threads of a process, also of those that have ended, in nanoseconds.
/// `/proc/PID/stat` has hundredths of a second, which are too coarse for seconds of an idle
/// program.
///
/// # Errors
/// When the process has ended.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let id = libc::pid_t::try_from(pid)?;
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both are valid and outlive the calls.
    let failed =
        unsafe { libc::clock_getcpuclockid(id, &raw mut clock) != 0 || libc::clock_gettime(clock, &raw mut time) != 0 };
    ensure!(!failed, "process {pid} has ended");
    Ok(Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec)?))
}

/// Resident memory of a process in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Of no file: heap and stacks.
    pub(crate) anonymous: u64,
    /// Pages of files, mostly of the program itself, and shared memory. The kernel drops them when
    /// it needs memory.
    pub(crate) file: u64,
    /// Largest resident memory so far.
    pub(crate) peak: u64,
}

impl Memory {
    /// # Errors
    /// When the process has ended.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/status"))?)
    }

    fn parse(status: &str) -> Result<Self> {
        // What the kernel prints as kB are 1024 bytes (fs/proc/task_mmu.c, SEQ_PUT_DEC).
        let bytes = |name: &str| Ok::<u64, anyhow::Error>(number(status, name)? * 1024);
        Ok(Self {
            anonymous: bytes("RssAnon:")?,
            file: bytes("RssFile:")? + bytes("RssShmem:")?,
            peak: bytes("VmHWM:")?,
        })
    }

    /// All resident memory.
    pub(crate) fn total(self) -> u64 {
        self.anonymous + self.file
    }
}

/// The number after a name in `/proc/PID/status`, without its unit.
fn number(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Page faults of a process that needed no disk: memory that it took from the kernel, and pages of
/// its file that it used first.
///
/// # Errors
/// When the process has ended.
pub(crate) fn page_faults(pid: u32) -> Result<u64> {
    minor_faults(&fs::read_to_string(format!("/proc/{pid}/stat"))?).with_context(|| format!("/proc/{pid}/stat"))
}

/// Field 10 of a process' stat; the first after the name in parentheses is field 3 (man 5
/// proc_pid_stat).
fn minor_faults(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split_whitespace().nth(7)?.parse().ok()
}

/// Wakeups of all running threads of a process since their start: each voluntary context switch is
/// a wait, and ends with one.
///
/// # Errors
/// When the process has ended.
pub(crate) fn wakeups(pid: u32) -> Result<u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?;
    // A thread may end between the two reads.
    let status = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    Ok(status.filter_map(|status| number(&status, "voluntary_ctxt_switches:").ok()).sum())
}

/// Time in the deepest idle state that the kernel knows, summed over the CPUs; `None` where it
/// knows none, as in most virtual machines.
pub(crate) fn deepest_idle() -> Option<Duration> {
    deepest_idle_below("/sys/devices/system/cpu".as_ref())
}

fn deepest_idle_below(cpus: &Path) -> Option<Duration> {
    let time = |cpu: fs::DirEntry| -> Option<u64> {
        let states = fs::read_dir(cpu.path().join("cpuidle")).ok()?.flatten();
        let deepest = states.filter_map(|state| {
            let index: u32 = state.file_name().to_str()?.strip_prefix("state")?.parse().ok()?;
            // State 0 polls, and is no sleep (Documentation/admin-guide/pm/cpuidle.rst).
            (index > 0).then(|| (index, state.path()))
        });
        let (_, path) = deepest.max_by_key(|(index, _)| *index)?;
        fs::read_to_string(path.join("time")).ok()?.trim().parse().ok()
    };
    let times: Vec<u64> = fs::read_dir(cpus).ok()?.flatten().filter_map(time).collect();
    (!times.is_empty()).then(|| Duration::from_micros(times.iter().sum()))
}

/// Run time in nanoseconds and run count of all eBPF programs of a process, from fdinfo
/// (kernel/bpf/syscall.c, bpf_prog_show_fdinfo).
pub(crate) fn bpf_runs(pid: u32) -> Option<(u64, u64)> {
    let (mut ns, mut runs, mut found) = (0, 0, false);
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
        if let (Some(time), Some(count)) = (field("run_time_ns:"), field("run_cnt:")) {
            ns += time;
            runs += count;
            found = true;
        }
    }
    found.then_some((ns, runs))
}

/// Enables the kernel's statistics of eBPF programs until dropped. They add about 40 ns per run.
pub(crate) struct BpfStatistics(Option<String>);

impl BpfStatistics {
    const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

    pub(crate) fn enable() -> Self {
        let before = fs::read_to_string(Self::SWITCH).ok();
        Self(fs::write(Self::SWITCH, "1").ok().and(before))
    }
}

impl Drop for BpfStatistics {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = fs::write(Self::SWITCH, before.trim());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_bytes_and_has_its_parts() {
        let status = "Name:\tx\nVmHWM:\t   30 kB\nRssAnon:\t   4 kB\nRssFile:\t   20 kB\nRssShmem:\t   1 kB\n";
        let memory = Memory::parse(status).unwrap();
        assert_eq!((memory.anonymous, memory.file, memory.peak), (4096, 21 * 1024, 30 * 1024));
        assert_eq!(memory.total(), 25 * 1024);
        assert!(Memory::parse("VmHWM: 30 kB\n").is_err(), "an absent field is no zero");
    }

    #[test]
    fn own_cpu_time_faults_and_wakeups_are_counted() {
        let pid = std::process::id();
        assert!(cpu_time(pid).unwrap() > Duration::ZERO && page_faults(pid).unwrap() > 0);
        wakeups(pid).unwrap();
        assert_eq!(minor_faults("1 (a) b) S 1 1 1 0 -1 4194560 77 0 0 0"), Some(77));
        assert!(cpu_time(u32::MAX).is_err() && page_faults(u32::MAX).is_err());
    }

    #[test]
    fn deepest_idle_state_is_that_with_the_highest_number() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(deepest_idle_below(dir.path()), None);
        for (state, time) in [("cpu0/cpuidle/state0", 9), ("cpu0/cpuidle/state2", 3), ("cpu0/cpuidle/state10", 4)] {
            fs::create_dir_all(dir.path().join(state)).unwrap();
            fs::write(dir.path().join(state).join("time"), format!("{time}\n")).unwrap();
        }
        fs::create_dir_all(dir.path().join("cpu1/cpuidle/state1")).unwrap();
        fs::write(dir.path().join("cpu1/cpuidle/state1/time"), "5\n").unwrap();
        assert_eq!(deepest_idle_below(dir.path()), Some(Duration::from_micros(9)));
    }
}
