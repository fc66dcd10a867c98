//! Deadlines that depend on the available CPU time instead of the wall clock.
//!
//! With more runnable tasks than CPUs, each task gets a share of a CPU. A deadline counts that
//! share: it runs at the speed of the wall clock on an idle machine, and at a quarter of it with
//! eight runnable tasks on two CPUs.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

/// Interval between two calls of a condition.
const POLL: Duration = Duration::from_millis(20);
/// Lowest speed relative to the wall clock, so that every deadline passes.
const MIN_SHARE: f64 = 1.0 / 16.0;

/// A limit on the CPU time that one runnable task could have had since its creation.
#[derive(Debug)]
pub struct Deadline {
    limit: Duration,
    passed: Duration,
    last: Instant,
}

impl Deadline {
    /// A deadline after `limit` on an idle machine, and later on a loaded one.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Self { limit, passed: Duration::ZERO, last: Instant::now() }
    }

    /// Counts the time since the last call; true once the limit is reached. Call it several times
    /// per second.
    pub fn passed(&mut self) -> bool {
        let now = Instant::now();
        self.passed += (now - self.last).mul_f64(share());
        self.last = now;
        self.passed >= self.limit
    }
}

/// Calls `condition` until it is true.
///
/// # Panics
/// When it is still false after `seconds` of a [`Deadline`].
#[track_caller]
pub fn eventually(seconds: f64, what: &str, mut condition: impl FnMut() -> bool) {
    eventually_ok(seconds, what, || if condition() { Ok(()) } else { Err("") });
}

/// Calls `attempt` until it succeeds; returns its value.
///
/// # Panics
/// When it still fails after `seconds` of a [`Deadline`], with the last error.
#[track_caller]
#[expect(clippy::panic, reason = "how a test fails")]
pub fn eventually_ok<T, E: std::fmt::Display>(
    seconds: f64,
    what: &str,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> T {
    let (start, mut deadline) = (Instant::now(), Deadline::after(Duration::from_secs_f64(seconds)));
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if deadline.passed() => {
                let wall = start.elapsed().as_secs_f64();
                panic!("not within {seconds} s ({wall:.1} s by the wall clock): {what}\n{error}");
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// Sleeps for a number of seconds.
pub fn sleep(seconds: f64) {
    thread::sleep(Duration::from_secs_f64(seconds));
}

/// The current share of a CPU per runnable task, from [`MIN_SHARE`] to 1.
fn share() -> f64 {
    let running = fs::read_to_string("/proc/loadavg").ok().and_then(|text| runnable(&text)).unwrap_or(1.0);
    let cpus = thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
    (cpus / running.max(1.0)).clamp(MIN_SHARE, 1.0)
}

/// The number of runnable tasks: 3 in `0.10 0.03 0.01 3/217 1892`, including this one.
fn runnable(loadavg: &str) -> Option<f64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_share_follows_the_load() {
        assert_eq!(runnable("0.10 0.03 0.01 3/217 1892\n"), Some(3.0));
        assert_eq!(runnable("garbage"), None);
        assert!((MIN_SHARE..=1.0).contains(&share()));
    }

    #[test]
    fn condition_is_retried_until_the_deadline() {
        let mut calls = 0;
        eventually(5.0, "three calls", || {
            calls += 1;
            calls == 3
        });
        assert_eq!(calls, 3);
        let late = std::panic::catch_unwind(|| eventually(0.05, "never", || false));
        assert!(late.is_err());
    }
}
