//! Deadlines that follow the progress a program could have made, not the wall clock.
//!
//! On a machine with more runnable tasks than CPUs each of them gets a part of a CPU. A deadline
//! counts that part: it passes at the speed of the wall clock on an idle machine, and at a quarter
//! of it where eight tasks want two CPUs.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

/// Between two calls of a condition.
const POLL: Duration = Duration::from_millis(20);
/// The least part of the wall clock that counts, so that every deadline passes.
const LEAST: f64 = 1.0 / 16.0;

/// The CPU time that one of the machine's runnable tasks could have had, from now on until a limit.
#[derive(Debug)]
pub struct Deadline {
    limit: Duration,
    passed: Duration,
    last: Instant,
}

impl Deadline {
    /// Passes after `limit` on an idle machine, later on a loaded one.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Self { limit, passed: Duration::ZERO, last: Instant::now() }
    }

    /// Counts the time since the last call; true when the limit is reached. To be called several times a second.
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
/// When it is false still after `seconds` of a [`Deadline`].
#[track_caller]
pub fn eventually(seconds: f64, what: &str, mut condition: impl FnMut() -> bool) {
    eventually_ok(seconds, what, || if condition() { Ok(()) } else { Err("") });
}

/// Calls `attempt` until it succeeds; gives its value.
///
/// # Panics
/// When it fails still after `seconds` of a [`Deadline`], with the last error.
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

/// Sleeps for so many seconds.
pub fn sleep(seconds: f64) {
    thread::sleep(Duration::from_secs_f64(seconds));
}

/// The part of a CPU that a runnable task gets now, from [`LEAST`] to 1.
fn share() -> f64 {
    let running = fs::read_to_string("/proc/loadavg").ok().and_then(|text| runnable(&text)).unwrap_or(1.0);
    let cpus = thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
    (cpus / running.max(1.0)).clamp(LEAST, 1.0)
}

/// Tasks that run or are ready to run: `0.10 0.03 0.01 3/217 1892` has 3, this one among them.
fn runnable(loadavg: &str) -> Option<f64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loaded_machine_gives_a_deadline_more_time() {
        assert_eq!(runnable("0.10 0.03 0.01 3/217 1892\n"), Some(3.0));
        assert_eq!(runnable("garbage"), None);
        assert!((LEAST..=1.0).contains(&share()));
    }

    #[test]
    fn a_condition_is_tried_until_it_holds_and_a_deadline_passes() {
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
