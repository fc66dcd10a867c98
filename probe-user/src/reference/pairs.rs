//! Pairs of mean power: that of a meter and that of the counters, over the same time.
//!
//! Counters are known at the ends of ticks and the meter at times of its own, so the energy of the
//! counters at the time of a reading is interpolated between two ticks.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use units::Microjoules;

use crate::energy::zone::{Origin, ZoneId};

/// Most readings that wait for a tick, and ticks that wait for a reading.
const MAX_WAITING: usize = 1024;

/// The counters at the end of a tick.
#[derive(Clone, Debug, PartialEq)]
pub struct CounterReading {
    pub at: Instant,
    /// The counters that are summed; empty without any.
    pub counters: Vec<(ZoneId, Origin)>,
    /// Sum of their energy since the start.
    pub energy: Microjoules,
    /// Readings that were refused since the start: their energy is missing in the sum.
    pub rejects: u64,
}

/// Mean power over a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pair {
    /// Watts of the counters.
    pub(super) counters: f64,
    /// Watts of the meter.
    pub(super) meter: f64,
}

/// Both energies at one time.
#[derive(Clone, Copy, Debug)]
struct Edge {
    at: Instant,
    counters: Microjoules,
    meter: Microjoules,
}

/// Where a time lies relative to the ticks.
enum Place {
    Before,
    Between(Microjoules),
    After,
}

/// Readings of both sides that wait for each other, and the start of the open window.
pub(super) struct Pairs {
    length: Duration,
    ticks: VecDeque<CounterReading>,
    readings: VecDeque<(Instant, Microjoules)>,
    start: Option<Edge>,
}

impl Pairs {
    /// With windows of at least `length`.
    pub(super) fn new(length: Duration) -> Self {
        Self { length, ticks: VecDeque::new(), readings: VecDeque::new(), start: None }
    }

    /// Adds the counters at the end of a tick. Returns true when they are others than before.
    pub(super) fn add_counters(&mut self, reading: CounterReading) -> bool {
        let last = self.ticks.back();
        let changed = last.is_some_and(|last| last.counters != reading.counters);
        let lost = last.is_some_and(|last| last.rejects != reading.rejects || last.energy > reading.energy);
        if changed || lost {
            self.interrupt();
            self.ticks.clear();
        }
        self.ticks.push_back(reading);
        if self.ticks.len() > MAX_WAITING {
            self.ticks.pop_front();
        }
        changed
    }

    /// Adds a reading of the meter: its energy since the start.
    pub(super) fn add_meter(&mut self, at: Instant, energy: Microjoules) {
        self.readings.push_back((at, energy));
        if self.readings.len() > MAX_WAITING {
            self.readings.pop_front();
        }
    }

    /// Gives up the open window: energy of one side is unknown in it.
    pub(super) fn interrupt(&mut self) {
        self.readings.clear();
        self.start = None;
    }

    /// The next complete window.
    pub(super) fn next_pair(&mut self) -> Option<Pair> {
        while let Some((at, meter)) = self.readings.front().copied() {
            let counters = match self.counters_at(at) {
                Place::After => return None,
                Place::Before => {
                    self.readings.pop_front();
                    continue;
                }
                Place::Between(energy) => energy,
            };
            self.readings.pop_front();
            if let Some(pair) = self.advance(Edge { at, counters, meter }) {
                return Some(pair);
            }
        }
        None
    }

    /// The energy of the counters at a time. Drops the ticks before it.
    fn counters_at(&mut self, at: Instant) -> Place {
        while self.ticks.get(1).is_some_and(|second| second.at <= at) {
            self.ticks.pop_front();
        }
        let (Some(first), second) = (self.ticks.front(), self.ticks.get(1)) else { return Place::After };
        if at < first.at {
            return Place::Before;
        }
        let Some(second) = second else { return Place::After };
        let nanos = |from: Instant, to: Instant| to.saturating_duration_since(from).as_nanos();
        let grown = u128::from((second.energy - first.energy).0) * nanos(first.at, at);
        let part = u64::try_from(grown / nanos(first.at, second.at).max(1)).unwrap_or(u64::MAX);
        Place::Between(first.energy + Microjoules(part))
    }

    /// Ends the open window at an edge, if it is long enough.
    fn advance(&mut self, edge: Edge) -> Option<Pair> {
        // Without counters there is nothing to compare.
        if self.ticks.front().is_none_or(|tick| tick.counters.is_empty()) {
            return None;
        }
        let start = *self.start.get_or_insert(edge);
        let length = edge.at.saturating_duration_since(start.at);
        if length < self.length {
            return None;
        }
        self.start = Some(edge);
        let ns = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        let counters = (edge.counters - start.counters).watts_over(ns)?;
        let meter = (edge.meter - start.meter).watts_over(ns)?;
        Some(Pair { counters, meter })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{energy::zone::ZoneKind, host::topology::PackageId};

    fn tick(at: Instant, joules: u64, rejects: u64) -> CounterReading {
        let zone = ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package };
        let counters = vec![(zone, Origin::Perf)];
        CounterReading { at, counters, energy: Microjoules(joules * 1_000_000), rejects }
    }

    /// 80 W of the counters and 150 W of the meter, for `seconds`.
    fn run(pairs: &mut Pairs, start: Instant, seconds: u64, rejects_at: u64) -> Vec<Pair> {
        let mut all = Vec::new();
        for second in 0..=seconds {
            let at = start + Duration::from_secs(second);
            pairs.add_counters(tick(at, 80 * second, u64::from(second >= rejects_at)));
            if second % 5 == 0 {
                // Between two ticks.
                let energy = Microjoules(150 * (second * 1_000_000 + 400_000));
                pairs.add_meter(at + Duration::from_millis(400), energy);
            }
            all.extend(std::iter::from_fn(|| pairs.next_pair()));
        }
        all
    }

    #[test]
    fn windows_have_the_mean_power_of_both_sides() {
        let mut pairs = Pairs::new(Duration::from_secs(60));
        let all = run(&mut pairs, Instant::now(), 190, u64::MAX);
        assert_eq!(all, [Pair { counters: 80.0, meter: 150.0 }; 3]);
    }

    #[test]
    fn a_window_with_a_refused_reading_is_given_up() {
        let mut pairs = Pairs::new(Duration::from_secs(60));
        let all = run(&mut pairs, Instant::now(), 190, 100);
        // The first window, and that from second 100 on.
        assert_eq!(all.len(), 2);
        let other = CounterReading { counters: Vec::new(), ..tick(Instant::now(), 1, 1) };
        assert!(pairs.add_counters(other.clone()), "other counters");
        assert!(!pairs.add_counters(other));
    }

    #[test]
    fn without_counters_there_is_no_pair() {
        let mut pairs = Pairs::new(Duration::from_secs(10));
        let start = Instant::now();
        for second in 0..60 {
            let at = start + Duration::from_secs(second);
            pairs.add_counters(CounterReading { counters: Vec::new(), ..tick(at, 0, 0) });
            pairs.add_meter(at, Microjoules(second));
            assert_eq!(pairs.next_pair(), None);
        }
        assert!(pairs.readings.len() < 3, "nothing piles up");
    }
}
