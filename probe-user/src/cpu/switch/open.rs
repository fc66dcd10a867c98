//! The open run of each running task: what it has run since the kernel last updated its run time.
//!
//! The kernel updates it at context switches and at its scheduler tick, every 1 to 10 ms, on a CPU
//! without tick once a second. A bank contains what was counted. The part after that is added to
//! the reading alone, so the next bank contains it once. An update never counts less than was
//! already read: a row that was ahead stays as it is until its bank has caught up.
//!
//! A run queue has two clocks. `clock` is the CPU's time at its last update, and `clock_task`, by
//! which tasks are counted, is behind by all interrupts and stolen time before that. Since then the
//! run queue's time has advanced by the difference between `CLOCK_MONOTONIC` and `clock` over that
//! difference right after an update. All CPUs read the same counter, so the least difference of
//! all is that of the clock that was updated last, which is this thread's, microseconds ago.

use std::collections::HashMap;

use probe_ebpf::{CgroupKey, RunTime};

/// Longest plausible open run: the kernel updates a CPU without scheduler tick once a second
/// (kernel/sched/core.c, sched_tick_remote).
const MAX_OPEN_NS: u64 = 2_000_000_000;

/// Time between the update of this thread's run queue and the reading of its clock, with a margin.
const CLOCK_ERROR_NS: u64 = 20_000;

/// Interrupts and stolen time since the last update are unknown, and read as run until it. They are
/// assumed to take at most this part of a period of the scheduler's tick. A kernel that charges
/// interrupts to tasks, and a machine that is not virtual, has none.
const INTERRUPTED: u64 = 10;

/// Maximum delay, or lead, of a reading with open runs.
pub(super) fn lag_ns(tick_ns: u64) -> u64 {
    tick_ns.min(CLOCK_ERROR_NS + tick_ns / INTERRUPTED)
}

/// True when the scheduler's clock is one counter on all CPUs. With other clock sources the kernel
/// computes it for each CPU, and it may be wrong by a tick (kernel/sched/clock.c).
pub(super) fn one_clock() -> bool {
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    std::fs::read_to_string(path).is_ok_and(|name| matches!(name.trim(), "tsc" | "arch_sys_counter"))
}

/// The running task of one CPU when its time was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenRun {
    pub(super) cpu: usize,
    pub(super) key: CgroupKey,
    /// `clock_task` minus the value of it up to which the task was counted.
    pub(super) ahead_ns: u64,
    /// `CLOCK_MONOTONIC` minus `clock`.
    pub(super) gap_ns: u64,
    /// What its bank has received since.
    pub(super) since_ns: u64,
}

/// A row's run time on one CPU that was read, `ns`, of which `added` were not in the bank.
#[derive(Clone, Copy, Debug)]
struct Shown {
    cpu: usize,
    key: CgroupKey,
    ns: u64,
    added: u64,
}

/// The open runs of the current reading, and what earlier ones have shown.
#[derive(Debug, Default)]
pub(super) struct OpenRuns {
    /// Those of the current reading.
    pub(super) runs: Vec<OpenRun>,
    shown: Vec<Shown>,
    before: Vec<Shown>,
}

impl OpenRuns {
    /// Adds the open runs to `rows`, which contain what the banks contain. `index` has the position
    /// of each cgroup.
    ///
    /// The time is added to that without a busy sibling, because a bank has it there too: the
    /// sibling's time up to now is already used up.
    pub(super) fn add(&mut self, index: &HashMap<CgroupKey, usize>, rows: &mut [(CgroupKey, Vec<RunTime>)]) {
        std::mem::swap(&mut self.shown, &mut self.before);
        self.shown.clear();
        let least = self.runs.iter().map(|run| run.gap_ns).min().unwrap_or(0);
        for run in &self.runs {
            let ns = run.ahead_ns.saturating_add(run.gap_ns - least);
            let Some(time) = column(index, rows, &run.key, run.cpu).filter(|_| ns <= MAX_OPEN_NS) else { continue };
            let added = ns.saturating_sub(run.since_ns);
            time.alone_ns = time.alone_ns.saturating_add(added);
            self.shown.push(Shown { cpu: run.cpu, key: run.key, ns: time.alone_ns, added });
        }
        for old in &self.before {
            let Some(time) = column(index, rows, &old.key, old.cpu) else { continue };
            let ahead = old.ns.saturating_sub(time.alone_ns);
            if ahead == 0 {
                continue;
            }
            time.alone_ns = old.ns;
            match self.shown.iter_mut().find(|shown| shown.cpu == old.cpu && shown.key == old.key) {
                Some(shown) => (shown.ns, shown.added) = (old.ns, shown.added.saturating_add(ahead)),
                None => self.shown.push(Shown { added: ahead, ..*old }),
            }
        }
    }

    /// Drops a cgroup whose slot is freed, and returns how much its row was ahead of the banks.
    pub(super) fn forget(&mut self, key: &CgroupKey) -> u64 {
        let ahead: u64 = self.shown.iter().filter(|shown| shown.key == *key).map(|shown| shown.added).sum();
        self.shown.retain(|shown| shown.key != *key);
        ahead
    }
}

/// The run time of a cgroup on one CPU.
fn column<'a>(
    index: &HashMap<CgroupKey, usize>,
    rows: &'a mut [(CgroupKey, Vec<RunTime>)],
    key: &CgroupKey,
    cpu: usize,
) -> Option<&'a mut RunTime> {
    rows.get_mut(*index.get(key)?)?.1.get_mut(cpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::hierarchy;

    fn key(id: u64) -> CgroupKey {
        CgroupKey { id, hierarchy: hierarchy::V2 }
    }

    fn run(cpu: usize, id: u64, ahead_ns: u64, gap_ns: u64, since_ns: u64) -> OpenRun {
        OpenRun { cpu, key: key(id), ahead_ns, gap_ns, since_ns }
    }

    /// The rows of cgroups 1 and 2 on two CPUs, from the content of their banks.
    fn read(open: &mut OpenRuns, banks: [[u64; 2]; 2], runs: &[OpenRun]) -> [[u64; 2]; 2] {
        let mut rows: Vec<_> = (1..).map(key).zip(banks.map(|row| row.map(RunTime::alone).to_vec())).collect();
        let index = rows.iter().enumerate().map(|(at, (key, _))| (*key, at)).collect();
        open.runs = runs.to_vec();
        open.add(&index, &mut rows);
        [0, 1].map(|at: usize| [0, 1].map(|cpu: usize| rows[at].1[cpu].ns()))
    }

    #[test]
    fn open_runs_are_measured_by_the_clock_that_was_updated_last() {
        let mut open = OpenRuns::default();
        // CPU 0 updated its clock now, and had counted its task 5 ns before; CPU 1 3 ms ago.
        let runs = [run(0, 1, 5, 900, 0), run(1, 2, 0, 3_000_900, 0)];
        assert_eq!(read(&mut open, [[100, 0], [0, 100]], &runs), [[105, 0], [0, 3_000_100]]);
    }

    #[test]
    fn a_run_that_was_charged_since_is_not_counted_twice() {
        let mut open = OpenRuns::default();
        // The task left CPU 1 after it was noted: 3,000 and 40 more are in its bank.
        let runs = [run(0, 1, 0, 900, 0), run(1, 2, 0, 3900, 3040)];
        assert_eq!(read(&mut open, [[100, 0], [0, 3140]], &runs), [[100, 0], [0, 3140]]);
    }

    /// Interrupts took a part of what was read as run.
    #[test]
    fn a_row_that_was_ahead_does_not_shrink_and_is_caught_up() {
        let mut open = OpenRuns::default();
        assert_eq!(read(&mut open, [[100, 0], [0, 0]], &[run(0, 1, 50, 0, 0)])[0], [150, 0]);
        for (bank, shown) in [(130, 150), (140, 150), (170, 170)] {
            assert_eq!(read(&mut open, [[bank, 0], [0, 0]], &[])[0], [shown, 0]);
        }
        // It runs again, and the sum is below what was read.
        assert_eq!(read(&mut open, [[170, 0], [0, 0]], &[run(0, 1, 30, 0, 0)])[0], [200, 0]);
        assert_eq!(read(&mut open, [[180, 0], [0, 0]], &[run(0, 1, 5, 0, 0)])[0], [200, 0]);
        assert_eq!(open.forget(&key(1)), 20);
        assert_eq!(read(&mut open, [[7, 0], [0, 0]], &[])[0], [7, 0], "another cgroup has its number now");
    }

    #[test]
    fn implausible_clocks_and_unknown_cgroups_add_nothing() {
        let mut open = OpenRuns::default();
        let runs = [run(0, 1, u64::MAX - 5, 0, 0), run(1, 9, 5, 0, 0), run(7, 1, 5, 0, 0)];
        assert_eq!(read(&mut open, [[100, 0], [0, 0]], &runs), [[100, 0], [0, 0]]);
        assert_eq!((lag_ns(4_000_000), lag_ns(1000)), (420_000, 1000));
    }
}
