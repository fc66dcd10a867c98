//! Energy of a power that is read from time to time.

use std::time::{Duration, Instant};

use units::Microjoules;

/// Longest time that two readings in ticks may be apart. The energy of a longer one is unknown.
const MAX_GAP: Duration = Duration::from_secs(60);

/// Power over time, by the trapezoid rule, in halves of a microwatt and nanosecond, so that no
/// reading is rounded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Integral {
    sum: u128,
    last: Option<(u64, Instant)>,
    paused: bool,
    max_gap: Duration,
}

impl Integral {
    /// No energy, and no reading.
    pub(crate) const ZERO: Self = Self::with_gap(MAX_GAP);

    /// No energy, and no reading; two readings may be `max_gap` apart.
    pub(crate) const fn with_gap(max_gap: Duration) -> Self {
        Self { sum: 0, last: None, paused: false, max_gap }
    }

    /// Adds a reading in microwatts. Returns false when the energy since the last one is unknown:
    /// what is counted starts again with this one.
    pub(crate) fn add(&mut self, microwatts: u64, now: Instant) -> bool {
        let paused = std::mem::take(&mut self.paused);
        let Some((before, at)) = self.last.replace((microwatts, now)) else { return true };
        let span = now.saturating_duration_since(at);
        if paused || span > self.max_gap {
            return false;
        }
        let both = u128::from(before) + u128::from(microwatts);
        self.sum = self.sum.saturating_add(both * span.as_nanos());
        true
    }

    /// The time up to the next reading is unknown.
    pub(crate) fn pause(&mut self) {
        self.paused = true;
    }

    /// Energy so far.
    pub(crate) fn energy(&self) -> Microjoules {
        Microjoules(u64::try_from(self.sum / 2_000_000_000).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energy_is_that_of_trapezoids_and_a_gap_has_none() {
        let (mut integral, start) = (Integral::ZERO, Instant::now());
        let add = |integral: &mut Integral, watts: u64, second: u64| {
            let known = integral.add(watts * 1_000_000, start + Duration::from_secs(second));
            (known, integral.energy().0)
        };
        integral.pause();
        assert_eq!(add(&mut integral, 10, 0), (true, 0), "nothing was before it");
        assert_eq!(add(&mut integral, 30, 1), (true, 20_000_000));
        assert_eq!(add(&mut integral, 30, 120), (false, 20_000_000));
        assert_eq!(add(&mut integral, 30, 121), (true, 50_000_000));
        integral.pause();
        assert_eq!(add(&mut integral, 30, 122), (false, 50_000_000));
        assert_eq!(add(&mut integral, 30, 123), (true, 80_000_000));
    }

    /// In single steps of a microwatt for a nanosecond, nothing is rounded away.
    #[test]
    fn short_ticks_lose_no_energy() {
        let (mut integral, start) = (Integral::ZERO, Instant::now());
        (0..=3_000).for_each(|us| assert!(integral.add(333_333, start + Duration::from_micros(us))));
        assert_eq!(integral.energy(), Microjoules(999));
    }
}
