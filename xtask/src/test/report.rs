//! The report that `cargo xtask test` prints at the end.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Result;

/// How many of the slowest tests are listed.
const SLOWEST: usize = 10;

#[derive(Debug, Default)]
pub(super) struct Report {
    passed: u32,
    failed: Vec<String>,
    /// Number of skipped tests by reason.
    skipped: BTreeMap<String, u32>,
    phases: Vec<(String, Duration)>,
    tests: Vec<(Duration, String)>,
}

impl Report {
    /// Runs a phase and records its duration.
    pub(super) fn phase<T>(&mut self, name: &str, work: impl FnOnce(&mut Self) -> T) -> T {
        let start = Instant::now();
        let value = work(self);
        self.phases.push((name.to_owned(), start.elapsed()));
        value
    }

    /// Counts a check, and prints its error.
    pub(super) fn outcome(&mut self, name: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => self.passed += 1,
            Err(error) => {
                eprintln!("{name} failed: {error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }

    /// Counts a check or test that cannot run here.
    pub(super) fn skip(&mut self, reason: &str) {
        *self.skipped.entry(reason.to_owned()).or_default() += 1;
    }

    /// Counts a test as failed, skipped (for the reasons that it printed) or passed.
    pub(super) fn test(&mut self, name: &str, time: Duration, failed: bool, reasons: &[String]) {
        self.tests.push((time, name.to_owned()));
        if failed {
            self.failed.push(name.to_owned());
        } else if reasons.is_empty() {
            self.passed += 1;
        }
        reasons.iter().for_each(|reason| self.skip(reason));
    }

    /// Counts passed tests.
    pub(super) fn passed(&mut self, count: u32) {
        self.passed += count;
    }

    /// Adds the results of another report.
    pub(super) fn merge(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        for (reason, count) in other.skipped {
            *self.skipped.entry(reason).or_default() += count;
        }
        self.phases.extend(other.phases);
        self.tests.extend(other.tests);
    }

    pub(super) fn failed(&self) -> usize {
        self.failed.len()
    }

    /// Prints everything; the last line has the counts.
    pub(super) fn print(&mut self, total: Duration) {
        self.tests.sort_by(|a, b| b.cmp(a));
        if !self.tests.is_empty() {
            eprintln!("\nSlowest tests");
        }
        for (time, name) in self.tests.iter().take(SLOWEST) {
            eprintln!("  {:>6.1} s  {name}", time.as_secs_f64());
        }
        eprintln!("\nPhases");
        for (name, time) in &self.phases {
            eprintln!("  {:>6.1} s  {name}", time.as_secs_f64());
        }
        eprintln!("  {:>6.1} s  total\n", total.as_secs_f64());
        for (reason, count) in &self.skipped {
            eprintln!("skipped {count}: {reason}");
        }
        for name in &self.failed {
            eprintln!("failed: {name}");
        }
        let skipped: u32 = self.skipped.values().sum();
        eprintln!("{} passed, {} failed, {skipped} skipped", self.passed, self.failed.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_with_a_skip_reason_does_not_count_as_passed() {
        let mut report = Report::default();
        report.test("one", Duration::from_secs(1), false, &[]);
        report.test("two", Duration::from_secs(2), false, &["needs root".to_owned()]);
        report.test("three", Duration::from_secs(3), true, &[]);
        let mut checks = Report::default();
        checks.outcome("format", Ok(()));
        checks.skip("needs root");
        report.merge(checks);
        assert_eq!((report.passed, report.failed(), report.skipped["needs root"]), (2, 1, 2));
    }
}
