//! Whether other programs use the CPUs, and which of them most.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::host::process::{clock_ns, stat_number};

/// Other programs may use this share of the CPUs, and this many CPUs: one busy thread keeps every
/// package awake, however many CPUs there are.
const LIMIT: f64 = 0.05;
const LIMIT_CPUS: f64 = 0.2;
/// The check takes this long, or a part of a short measurement.
const CHECK: Duration = Duration::from_secs(2);
/// Maximum number of processes that are read, and of bytes of a file of one.
const MAX_PROCESSES: usize = 65_536;
const MAX_FILE: u64 = 4096;
/// Enough for the first line of `/proc/stat`.
const MAX_STAT: u64 = 1024;

/// CPU time since boot.
#[derive(Clone, Copy, Debug)]
pub(super) struct CpuTimes {
    at: Instant,
    /// Nanoseconds of all CPUs together.
    busy_ns: u64,
    /// Those of this program.
    own_ns: u64,
}

impl CpuTimes {
    /// # Errors
    /// When `/proc/stat` cannot be read.
    pub(super) fn read(procfs: &Path) -> Result<Self> {
        let path = procfs.join("stat");
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_STAT).read_to_end(&mut text))
            .with_context(|| format!("cannot read {}; name procfs with --path.procfs", path.display()))?;
        let ticks = busy_ticks(&String::from_utf8_lossy(&text))
            .with_context(|| format!("{} has no line of all CPUs", path.display()))?;
        let own_ns = clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID).unwrap_or(0);
        Ok(Self { at: Instant::now(), busy_ns: ticks.saturating_mul(tick_ns()), own_ns })
    }

    /// Share of `cpus` CPUs that other programs have used since `before`.
    #[expect(clippy::cast_precision_loss, reason = "a share of time; no joule is counted here")]
    pub(super) fn others_since(&self, before: &Self, cpus: usize) -> f64 {
        let grown = |now: u64, before: u64| now.saturating_sub(before) as f64;
        let others = grown(self.busy_ns, before.busy_ns) - grown(self.own_ns, before.own_ns);
        let all = self.at.saturating_duration_since(before.at).as_secs_f64() * 1e9 * cpus.max(1) as f64;
        if all > 0.0 { (others / all).clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// The share of `cpus` CPUs that other programs may use.
pub(super) fn limit(cpus: usize) -> f64 {
    LIMIT.min(LIMIT_CPUS / u32::try_from(cpus.max(1)).map_or(f64::MAX, f64::from))
}

/// Nanoseconds of a tick of `/proc`.
fn tick_ns() -> u64 {
    1_000_000_000 / rustix::param::clock_ticks_per_second().max(1)
}

/// Ticks of user, nice, system, irq and softirq in the line of all CPUs.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6].map(|field| fields.get(field).copied());
    busy[2]?;
    Some(busy.into_iter().flatten().fold(0, u64::saturating_add))
}

/// Checks that other programs use few of the CPUs. Returns their share.
///
/// # Errors
/// When they use more than [`limit`] and `force` is not set: which of them uses most.
pub(super) fn check(procfs: &Path, cpus: usize, length: Duration, force: bool) -> Result<f64> {
    let (before, processes) = (CpuTimes::read(procfs)?, process_ticks(procfs));
    thread::sleep(CHECK.min(length / 5));
    let share = CpuTimes::read(procfs)?.others_since(&before, cpus);
    let limit = limit(cpus);
    if share <= limit || force {
        return Ok(share);
    }
    let most = busiest(procfs, &processes).map_or_else(String::new, |most| format!(", most of it {most}"));
    bail!(
        "the host is busy: other programs use {:.1} % of the CPUs (at most {:.1} %){most}. Stop them, or pass --force \
         for a less certain result",
        share * 100.0,
        limit * 100.0
    )
}

/// CPU time of every process in ticks.
fn process_ticks(procfs: &Path) -> HashMap<u32, u64> {
    let entries = fs::read_dir(procfs).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.take(MAX_PROCESSES).filter_map(|pid| Some((pid, ticks_of(procfs, pid)?))).collect()
}

fn ticks_of(procfs: &Path, pid: u32) -> Option<u64> {
    let stat = read(&procfs.join(pid.to_string()).join("stat"))?;
    // utime and stime (man 5 proc_pid_stat).
    Some(stat_number(&stat, 14)?.saturating_add(stat_number(&stat, 15)?))
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut text).ok()?;
    Some(text)
}

/// The process that has used most CPU time since `before`, apart from this one.
fn busiest(procfs: &Path, before: &HashMap<u32, u64>) -> Option<String> {
    let own = std::process::id();
    let grown = |(pid, ticks): (u32, u64)| (ticks.saturating_sub(before.get(&pid).copied().unwrap_or(0)), pid);
    let now = process_ticks(procfs).into_iter().filter(|(pid, _)| *pid != own);
    let (_, pid) = now.map(grown).max().filter(|(ticks, _)| *ticks > 0)?;
    let text = |file: &str| {
        let text = read(&procfs.join(pid.to_string()).join(file)).unwrap_or_default();
        String::from_utf8_lossy(&text).chars().take(1000).collect::<String>()
    };
    // Names are chosen by the programs themselves.
    let printable = |text: &str| text.chars().filter(|char| !char.is_control()).take(120).collect::<String>();
    let cgroups = text("cgroup");
    // The unified hierarchy is the last line; without it any other one names the container too.
    let cgroup = cgroups.lines().next_back().and_then(|line| line.splitn(3, ':').nth(2)).unwrap_or("");
    let of = if cgroup.is_empty() { String::new() } else { format!(" of cgroup {}", printable(cgroup)) };
    Some(format!("process {pid} ({}){of}", printable(text("comm").trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_all_cpus_is_read() {
        assert_eq!(busy_ticks("cpu  10 20 30 4000 50 6 7 8 9 0\ncpu0 1 1 1 1\n"), Some(73));
        assert_eq!(busy_ticks("cpu  10 20 30\n"), Some(60));
        for wrong in ["", "cpu0 1 2 3 4\n", "cpu  1\n", "cpu  x 1 2 3\n"] {
            assert_eq!(busy_ticks(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn own_time_is_not_that_of_others() {
        let at = Instant::now();
        let before = CpuTimes { at, busy_ns: 0, own_ns: 0 };
        let later = |busy_ns, own_ns| CpuTimes { at: at + Duration::from_secs(10), busy_ns, own_ns };
        let share = later(5_000_000_000, 4_000_000_000).others_since(&before, 4);
        assert!((share - 0.025).abs() < 1e-9, "{share}");
        assert!(later(1, 2).others_since(&before, 4).abs() < 1e-9, "sampled ticks may be fewer");
        assert!(before.others_since(&before, 4).abs() < 1e-9);
    }

    #[test]
    fn one_busy_thread_is_too_much_for_any_number_of_cpus() {
        assert!((limit(2) - 0.05).abs() < 1e-9 && limit(72) * 72.0 < 0.21, "{} {}", limit(2), limit(72));
        assert!(limit(0) > 0.0 && limit(usize::MAX) >= 0.0);
    }

    /// A directory like `/proc` in which a process has used this much CPU time.
    fn procfs(ticks: u64) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("71")).unwrap();
        let stat = format!("71 (a (b) c) R 1 1 1 0 -1 0 0 0 0 0 {ticks} 5 0 0 20 0 1 0\n");
        fs::write(dir.path().join("71/stat"), stat).unwrap();
        fs::write(dir.path().join("71/comm"), "a (b) c\u{1b}[31m\n").unwrap();
        fs::write(dir.path().join("71/cgroup"), "2:cpu:/old\n0::/system.slice/docker-1.scope\n").unwrap();
        dir
    }

    #[test]
    fn the_busiest_process_is_named_with_its_cgroup() {
        let dir = procfs(100);
        let before = process_ticks(dir.path());
        assert_eq!(before, HashMap::from([(71, 105)]));
        assert_eq!(busiest(dir.path(), &before), None, "it has not run since");
        assert_eq!(
            busiest(procfs(200).path(), &before).unwrap(),
            "process 71 (a (b) c[31m) of cgroup /system.slice/docker-1.scope"
        );
    }
}
