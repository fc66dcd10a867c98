//! A bucket of requests that fills by one every so often: `rate_limit` of the web configuration.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How far behind its schedule the bucket is; empty while nobody has asked.
#[derive(Default)]
pub(super) struct Bucket(Mutex<Option<Instant>>);

impl Bucket {
    /// Takes a request's place; false when there is none. The generic cell rate algorithm (ITU-T I.371): one moment says it all.
    pub(super) fn take(&self, interval: Duration, burst: u32) -> bool {
        self.take_at(Instant::now(), interval, burst)
    }

    fn take_at(&self, now: Instant, interval: Duration, burst: u32) -> bool {
        let mut due = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = due.unwrap_or(now).max(now);
        if next - now > interval.saturating_mul(burst.saturating_sub(1)) {
            return false;
        }
        *due = Some(next + interval);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_for_each_interval() {
        let (bucket, second, start) = (Bucket::default(), Duration::from_secs(1), Instant::now());
        let passed = |at: Instant| (0..10).filter(|_| bucket.take_at(at, second, 3)).count();
        assert_eq!(passed(start), 3);
        assert_eq!(passed(start + second / 2), 0);
        assert_eq!(passed(start + second), 1);
        assert_eq!(passed(start + second * 60), 3);
    }
}
