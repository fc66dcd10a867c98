//! The rate limiter behind `rate_limit` of the web configuration.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The generic cell rate algorithm (ITU-T I.371). Its only state is the theoretical arrival time of
/// the next request.
#[derive(Default)]
pub(super) struct RateLimiter(Mutex<Option<Instant>>);

impl RateLimiter {
    /// True if a request is allowed now, at one request per `interval` with bursts of up to
    /// `burst`.
    pub(super) fn allow(&self, interval: Duration, burst: u32) -> bool {
        self.allow_at(Instant::now(), interval, burst)
    }

    fn allow_at(&self, now: Instant, interval: Duration, burst: u32) -> bool {
        let mut arrival = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = arrival.unwrap_or(now).max(now);
        if next - now > interval.saturating_mul(burst.saturating_sub(1)) {
            return false;
        }
        // An interval beyond the end of the clock allows nothing, and must not end the program.
        let Some(after) = next.checked_add(interval) else { return false };
        *arrival = Some(after);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_beyond_the_end_of_the_clock_allows_nothing() {
        assert!(!RateLimiter::default().allow(Duration::MAX, 1));
    }

    #[test]
    fn after_a_burst_one_request_passes_per_interval() {
        let (limiter, second, start) = (RateLimiter::default(), Duration::from_secs(1), Instant::now());
        let allowed = |at: Instant| (0..10).filter(|_| limiter.allow_at(at, second, 3)).count();
        assert_eq!(allowed(start), 3);
        assert_eq!(allowed(start + second / 2), 0);
        assert_eq!(allowed(start + second), 1);
        assert_eq!(allowed(start + second * 60), 3);
    }
}
