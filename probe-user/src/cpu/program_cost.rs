//! CPU time of the eBPF programs that run in the time of other tasks.
//!
//! The kernel measures the runs of programs while a process asks for it, which takes a clock
//! reading of some 20 ns before and after each run of every program on the machine, and
//! CAP_SYS_ADMIN, which the running probe does not have. So the probe asks for the first seconds
//! only, and multiplies the nanoseconds per run by the context switches of the machine, which the
//! kernel always counts. That mean contains the clock readings, which are about as long as what a
//! run costs outside of the program: the call and the tracepoint.
//!
//! Not contained are the programs at the start and end of processes and cgroups, which are rare,
//! and iterators, which run in the time of the probe.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};

use super::reader::ProgramRow;

/// The program at context switches, and the one that a tick runs on each CPU (`SwitchTier`).
const SWITCH: &str = "sched_switch";
const AT_TICKS: &str = "charge_running";

/// A tick with fewer runs is no sample: one run that a hypervisor interrupts would be too much.
const MIN_RUNS: u64 = 200;
/// The measurement ends after this many samples, of which the median counts, or this time.
const SAMPLES: usize = 5;
const MAX_WINDOW: Duration = Duration::from_secs(10);
/// Interval between two readings of the context switches: `/proc/stat` has a line for each CPU and
/// a number for each interrupt.
const SWITCHES_INTERVAL: Duration = Duration::from_secs(10);

/// The cost of the programs of one tier.
#[derive(Debug)]
pub struct ProgramCost {
    /// `/proc/stat`.
    stat: PathBuf,
    /// While it is held, the kernel measures.
    window: Option<(OwnedFd, Instant)>,
    /// Picoseconds of a run at a context switch, and nanoseconds of the runs at a tick.
    samples: Vec<(u64, u64)>,
    estimate: Option<(u64, u64)>,
    /// Figures of the programs at the last tick, and at the end of the measurement.
    last: Vec<ProgramRow>,
    hidden: Vec<ProgramRow>,
    /// Context switches since the boot, and when they were read.
    switches: Option<(u64, Instant)>,
    /// Ticks since then.
    ticks: u64,
    total_ps: u128,
}

impl ProgramCost {
    /// Starts the measurement. Call it after the programs are loaded, with the privileges of the
    /// start. Where the kernel measures already, or refuses, only what it measures by itself
    /// counts.
    #[must_use]
    pub fn start(procfs: &Path) -> Self {
        let setting = fs::read_to_string(procfs.join("sys/kernel/bpf_stats_enabled")).unwrap_or_default();
        let window = if setting.trim() == "1" { None } else { Self::open_window() };
        Self {
            stat: procfs.join("stat"),
            window,
            samples: Vec::new(),
            estimate: None,
            last: Vec::new(),
            hidden: Vec::new(),
            switches: None,
            ticks: 0,
            total_ps: 0,
        }
    }

    fn open_window() -> Option<(OwnedFd, Instant)> {
        match enable_stats(Stats::RunTime) {
            Ok(stats) => Some((stats, Instant::now())),
            Err(error) => {
                tracing::debug!("the run time of the eBPF programs is not measured: {error}");
                None
            }
        }
    }

    /// Adds a tick, with the figures of the programs since they were loaded.
    pub fn observe(&mut self, rows: Vec<ProgramRow>, now: Instant) {
        self.ticks += 1;
        self.sample(&rows);
        if let Some((_, opened)) = &self.window
            && (self.samples.len() >= SAMPLES || now.saturating_duration_since(*opened) >= MAX_WINDOW)
        {
            self.end_window(&rows);
        }
        if self.window.is_none() && self.estimate.is_none() && !self.samples.is_empty() {
            self.estimate = Some(median(&self.samples));
        }
        self.last = rows;
        self.add_switches(now);
    }

    /// Ends the measurement. On a machine where little runs its whole time is one sample.
    fn end_window(&mut self, rows: &[ProgramRow]) {
        self.window = None;
        self.hidden = rows.to_vec();
        let (run_ns, runs) = growth(SWITCH, rows, &[]);
        if self.samples.is_empty() && runs > 0 {
            let tick_ns = growth(AT_TICKS, rows, &[]).0 / self.ticks.max(1);
            self.samples.push((run_ns.saturating_mul(1000) / runs, tick_ns));
        }
    }

    /// Takes a sample where the kernel measured the last tick.
    fn sample(&mut self, rows: &[ProgramRow]) {
        let (run_ns, runs) = growth(SWITCH, rows, &self.last);
        if runs < MIN_RUNS {
            return;
        }
        let sample = (run_ns.saturating_mul(1000) / runs, growth(AT_TICKS, rows, &self.last).0);
        // What is measured later is the current cost: the mean of ten ticks.
        if let Some((switch_ps, tick_ns)) = &mut self.estimate {
            (*switch_ps, *tick_ns) = ((*switch_ps * 9 + sample.0) / 10, (*tick_ns * 9 + sample.1) / 10);
        } else {
            self.samples.push(sample);
        }
    }

    /// Adds the context switches since they were read, at intervals.
    fn add_switches(&mut self, now: Instant) {
        let Some((switch_ps, tick_ns)) = self.estimate else { return };
        if self.switches.is_some_and(|(_, at)| now.saturating_duration_since(at) < SWITCHES_INTERVAL) {
            return;
        }
        let Some(count) = fs::read_to_string(&self.stat).ok().and_then(|text| switches(&text)) else { return };
        if let Some((before, _)) = self.switches.replace((count, now)) {
            let runs = u128::from(count.saturating_sub(before));
            let at_ticks = u128::from(tick_ns) * 1000 * u128::from(self.ticks);
            self.total_ps = self.total_ps.saturating_add(runs * u128::from(switch_ps)).saturating_add(at_ticks);
        }
        self.ticks = 0;
    }

    /// CPU time of the programs since the measurement, in nanoseconds; `None` while it is not
    /// known.
    #[must_use]
    pub fn run_ns(&self) -> Option<u64> {
        self.switches.map(|_| u64::try_from(self.total_ps / 1000).unwrap_or(u64::MAX))
    }

    /// The figures of the programs without those of the measurement at the start.
    #[must_use]
    pub fn rows(&self) -> Vec<ProgramRow> {
        if self.window.is_some() {
            return Vec::new();
        }
        let visible = |row: &ProgramRow| {
            let (run_ns, runs) = growth(row.name, std::slice::from_ref(row), &self.hidden);
            (runs > 0).then_some(ProgramRow { run_ns, runs, ..*row })
        };
        self.last.iter().filter_map(visible).collect()
    }
}

/// Run time and runs of a program in `now` beyond those in `before`.
fn growth(name: &str, now: &[ProgramRow], before: &[ProgramRow]) -> (u64, u64) {
    let of =
        |rows: &[ProgramRow]| rows.iter().find(|row| row.name == name).map_or((0, 0), |row| (row.run_ns, row.runs));
    let (now, before) = (of(now), of(before));
    (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1))
}

/// The median of each figure.
fn median(samples: &[(u64, u64)]) -> (u64, u64) {
    let middle = |of: fn(&(u64, u64)) -> u64| {
        let mut all: Vec<u64> = samples.iter().map(of).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or(0)
    };
    (middle(|sample| sample.0), middle(|sample| sample.1))
}

/// Context switches of all CPUs since the boot, from the text of `/proc/stat`: one for each run of
/// a program on `sched_switch` (kernel/sched/core.c, `__schedule`).
fn switches(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("ctxt "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(switch: (u64, u64), ticks: (u64, u64)) -> Vec<ProgramRow> {
        let row = |name, (run_ns, runs)| ProgramRow { name, run_ns, runs };
        vec![row(SWITCH, switch), row(AT_TICKS, ticks)]
    }

    /// A cost whose measurement is over, and the directory of its `stat`.
    fn measured(ns_per_switch: u64, ns_per_tick: u64) -> (ProgramCost, tempfile::TempDir, Instant) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("stat"), "cpu  1 2 3\nctxt 1000\nbtime 5\n").unwrap();
        fs::create_dir_all(dir.path().join("sys/kernel")).unwrap();
        fs::write(dir.path().join("sys/kernel/bpf_stats_enabled"), "1\n").unwrap();
        let (mut cost, now) = (ProgramCost::start(dir.path()), Instant::now());
        assert!(cost.window.is_none(), "the kernel measures already");
        cost.observe(rows((1000 * ns_per_switch, 1000), (ns_per_tick, 2)), now);
        (cost, dir, now)
    }

    #[test]
    fn run_time_is_that_of_a_run_times_the_context_switches() {
        let (mut cost, dir, now) = measured(60, 500);
        assert_eq!(cost.run_ns(), Some(0), "known from now on");
        let same = cost.last.clone();
        fs::write(dir.path().join("stat"), "ctxt 2000\n").unwrap();
        cost.observe(same.clone(), now + Duration::from_secs(1));
        assert_eq!(cost.run_ns(), Some(0), "not at each tick");
        cost.observe(same, now + SWITCHES_INTERVAL);
        assert_eq!(cost.run_ns(), Some(1000 * 60 + 2 * 500));
    }

    #[test]
    fn few_runs_and_a_missing_count_give_no_run_time() {
        let (cost, dir, now) = measured(60, 500);
        drop(cost);
        let mut few = ProgramCost::start(dir.path());
        few.observe(rows((1, MIN_RUNS - 1), (1, 1)), now);
        assert_eq!(few.run_ns(), None);
        fs::write(dir.path().join("stat"), "cpu 1\n").unwrap();
        few.observe(rows((60_000, 1_000), (2, 2)), now);
        assert_eq!((few.run_ns(), few.rows().len()), (None, 2));
        assert_eq!((switches(""), switches("ctxt x\n"), switches("intr 1\nctxt 7\n")), (None, None, Some(7)));
    }

    #[test]
    fn what_was_measured_at_the_start_is_not_shown() {
        let (mut cost, _dir, now) = measured(60, 500);
        cost.hidden = cost.last.clone();
        assert!(cost.rows().is_empty());
        cost.observe(rows((60_070, 1_001), (500, 2)), now);
        assert_eq!(cost.rows(), [ProgramRow { name: SWITCH, run_ns: 70, runs: 1 }]);
    }

    #[test]
    fn a_machine_where_little_runs_has_one_sample() {
        let (mut cost, _dir, now) = measured(60, 500);
        (cost.estimate, cost.samples, cost.last, cost.ticks) = (None, Vec::new(), Vec::new(), 3);
        cost.end_window(&rows((6_000, 100), (40, 4)));
        cost.observe(rows((6_000, 100), (40, 4)), now);
        assert_eq!(cost.estimate, Some((60_000, 13)));
        assert!(cost.rows().is_empty());
    }

    #[test]
    fn one_interrupted_sample_does_not_count() {
        assert_eq!(median(&[(60, 5), (61, 6), (900, 900), (59, 4), (62, 7)]), (61, 6));
        assert_eq!(median(&[]), (0, 0));
    }
}
