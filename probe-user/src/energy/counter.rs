//! From raw readings that wrap to joules that only grow.
//!
//! What was accepted is counted in the counter's own steps and turned into microjoules once, from the sum: no tick
//! rounds, so halving the ticks changes no total. What cannot be believed is refused and counted, never guessed.

use std::collections::VecDeque;

use super::zone::{Ceiling, Range, Zone, ZoneKind};
use crate::units::{Microjoules, Unit};

/// Why a reading was refused; the label `reason` of `wattcast_energy_rejects_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reject {
    /// The counter fell and its range is not known: wrapped or reset, nobody can tell.
    RangeUnknown,
    /// The counter fell and never wraps. The kernel's 64-bit perf counter does so when half a hardware range passes
    /// between two of its own updates (the difference is sign-extended: arch/x86/events/rapl.c, rapl_event_update).
    Fell,
    /// The counter reads beyond its own range.
    BeyondRange,
    /// More than half the wrap time passed without a reading: it may have wrapped unseen.
    Gap,
    /// More power than the zone can have used.
    Implausible,
}

impl Reject {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RangeUnknown => "range_unknown",
            Self::Fell => "fell",
            Self::BeyondRange => "beyond_range",
            Self::Gap => "gap",
            Self::Implausible => "implausible",
        }
    }
}

/// What one reading adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The first reading: a point to count from.
    Start,
    /// This much, in this many nanoseconds up to the reading.
    Grew(Microjoules, u64),
    /// Nothing can be said; counting goes on from this reading.
    Rebased(Reject),
    /// This reading cannot be believed. The next one tells whether it was a slip, or the counter was set anew.
    Doubted(Reject),
    /// The reading failed; the counter stands where it stood.
    Lost,
}

/// A reading, and when it was taken.
#[derive(Clone, Copy, Debug)]
struct Point {
    raw: u64,
    at_ns: u64,
}

/// A counter's update may fall on either side of a reading: RAPL updates every 0.976 ms (Intel SDM 14.10.3). So much
/// longer than `dt` is the time that a difference may stand for.
const JITTER_NS: u64 = 2_000_000;
/// Without any idea of the power, a gap of this length may hide a wrap: half of a 32-bit counter of 15.3 µJ at 1 kW. Longer
/// than the longest tick.
const BLIND_GAP_NS: u64 = 32_000_000_000;
/// So many readings in a row that the limit rules out say that the limit is wrong: it was raised since it was read.
const STUBBORN: u32 = 10;

/// One counter and what it has counted since the start.
#[derive(Clone, Debug)]
pub struct Counter {
    range: Range,
    unit: Unit,
    ceiling: Ceiling,
    /// What is believed where the limit turns out to be none.
    unlimited: Ceiling,
    last: Option<Point>,
    /// How much longer than the time between two readings their difference may stand for.
    jitter_ns: u64,
    doubted: Option<Point>,
    doubts: u32,
    peak: Peak,
    counts: u64,
    total: Microjoules,
}

impl Counter {
    /// A counter with nothing counted.
    #[must_use]
    pub fn new(zone: &Zone) -> Self {
        Self {
            range: zone.range,
            unit: zone.unit,
            ceiling: zone.ceiling,
            unlimited: Ceiling::learned(zone.id.kind),
            last: None,
            // An update may fall on either side of each of two readings.
            jitter_ns: match zone.id.kind {
                ZoneKind::Gpu(_) => zone.update_ns.saturating_mul(2),
                _ => JITTER_NS,
            },
            doubted: None,
            doubts: 0,
            peak: Peak::default(),
            counts: 0,
            total: Microjoules::ZERO,
        }
    }

    /// Sum of everything accepted.
    #[must_use]
    pub fn total(&self) -> Microjoules {
        self.total
    }

    /// Counts from the next reading on: what came before it may be of another life of the counter.
    pub fn restart(&mut self) {
        (self.last, self.doubted) = (None, None);
    }

    /// Takes a raw reading of the moment `at_ns` (monotonic); `None` when it failed.
    pub fn advance(&mut self, raw: Option<u64>, at_ns: u64) -> Step {
        let Some(raw) = raw else {
            // A doubt needs the very next reading.
            self.doubted = None;
            return Step::Lost;
        };
        let now = Point { raw, at_ns };
        if let Range::Wraps(modulus) = self.range
            && raw >= modulus
        {
            self.doubted = None;
            return Step::Doubted(Reject::BeyondRange);
        }
        let Some(last) = self.last else {
            self.last = Some(now);
            return Step::Start;
        };
        match self.between(last, now) {
            Ok(counts) => self.accept(last, now, counts),
            Err(Reject::Implausible) => match self.doubted.map(|doubted| (doubted, self.between(doubted, now))) {
                // Twice the same story: the counter was set anew, and counts from there.
                Some((doubted, Ok(counts))) => self.accept(doubted, now, counts),
                _ => {
                    self.doubted = Some(now);
                    self.doubts += 1;
                    if self.doubts < STUBBORN || !matches!(self.ceiling, Ceiling::Limit(_)) {
                        return Step::Doubted(Reject::Implausible);
                    }
                    self.ceiling = self.unlimited;
                    match self.between(last, now) {
                        Ok(counts) => self.accept(last, now, counts),
                        Err(reason) => Step::Doubted(reason),
                    }
                }
            },
            Err(reason) => {
                self.last = Some(now);
                self.doubted = None;
                Step::Rebased(reason)
            }
        }
    }

    fn accept(&mut self, from: Point, to: Point, counts: u64) -> Step {
        let dt = to.at_ns.saturating_sub(from.at_ns);
        self.peak.note(to.at_ns, microwatts(self.unit.microjoules(counts), dt));
        self.counts = self.counts.saturating_add(counts);
        let total = self.unit.microjoules(self.counts);
        let grown = total - self.total;
        (self.total, self.last, self.doubted, self.doubts) = (total, Some(to), None, 0);
        Step::Grew(grown, dt)
    }

    /// Counts between two readings, if they can be told.
    fn between(&self, from: Point, to: Point) -> Result<u64, Reject> {
        let dt = to.at_ns.saturating_sub(from.at_ns);
        let counts = match (to.raw.checked_sub(from.raw), self.range) {
            (Some(grown), _) => grown,
            (None, Range::Wraps(modulus)) => modulus - from.raw + to.raw,
            (None, Range::Endless) => return Err(Reject::Fell),
            (None, Range::Unknown) => return Err(Reject::RangeUnknown),
        };
        if let Range::Wraps(modulus) = self.range
            && dt > self.half_wrap_ns(modulus)
        {
            return Err(Reject::Gap);
        }
        match self.most_uw() {
            Some(most) if self.unit.microjoules(counts) > Microjoules::of(most, dt.saturating_add(self.jitter_ns)) => {
                Err(Reject::Implausible)
            }
            _ => Ok(counts),
        }
    }

    /// The most power that is believed.
    fn most_uw(&self) -> Option<u64> {
        match self.ceiling {
            Ceiling::Limit(limit) => Some(limit.saturating_add(limit / 2)),
            Ceiling::Learned(floor) => Some(self.peak.microwatts().saturating_mul(4).max(floor)),
            Ceiling::None => None,
        }
    }

    /// Half the time in which the counter comes round at the highest power that it showed lately; without any, the time
    /// in which none that we know comes round.
    fn half_wrap_ns(&self, modulus: u64) -> u64 {
        let power = match (self.peak.microwatts(), self.ceiling) {
            (0, Ceiling::Limit(limit)) => limit,
            (peak, _) => peak,
        };
        if power == 0 {
            return BLIND_GAP_NS;
        }
        let range = u128::from(self.unit.microjoules(modulus).0) * 1_000_000_000;
        u64::try_from(range / u128::from(power) / 2).unwrap_or(u64::MAX)
    }
}

fn microwatts(energy: Microjoules, ns: u64) -> u64 {
    let product = u128::from(energy.0) * 1_000_000_000;
    u64::try_from(product / u128::from(ns.max(1))).unwrap_or(u64::MAX)
}

/// The highest power of the last ten to twenty minutes, in two halves of which the older is let go.
#[derive(Clone, Debug, Default)]
struct Peak {
    halves: VecDeque<(u64, u64)>,
}

impl Peak {
    const HALF_NS: u64 = 600_000_000_000;

    fn note(&mut self, at_ns: u64, microwatts: u64) {
        match self.halves.back_mut() {
            Some((start, peak)) if at_ns.saturating_sub(*start) < Self::HALF_NS => *peak = (*peak).max(microwatts),
            _ => self.halves.push_back((at_ns, microwatts)),
        }
        if self.halves.len() > 2 {
            self.halves.pop_front();
        }
    }

    fn microwatts(&self) -> u64 {
        self.halves.iter().map(|(_, peak)| *peak).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        energy::zone::{ZoneId, ZoneKind},
        topology::PackageId,
    };

    const SECOND: u64 = 1_000_000_000;

    fn counter(range: Range, unit: Unit, ceiling: Ceiling) -> Counter {
        let id = ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package };
        Counter::new(&Zone { unit, ceiling, ..Zone::microjoules(id, range, String::new()) })
    }

    fn free(range: Range) -> Counter {
        counter(range, Unit::MICROJOULE, Ceiling::None)
    }

    /// Readings a second apart.
    fn feed(counter: &mut Counter, raw: &[Option<u64>]) -> Vec<Step> {
        let at = |second: usize| u64::try_from(second).unwrap() * SECOND;
        raw.iter().enumerate().map(|(second, raw)| counter.advance(*raw, at(second))).collect()
    }

    #[test]
    fn a_failed_reading_adds_nothing_and_the_next_covers_it() {
        let mut counter = free(Range::Wraps(1000));
        let steps = feed(&mut counter, &[Some(10), Some(30), None, Some(90), Some(95)]);
        let grew = |uj, seconds| Step::Grew(Microjoules(uj), seconds * SECOND);
        assert_eq!(steps, [Step::Start, grew(20, 1), Step::Lost, grew(60, 2), grew(5, 1)]);
        assert_eq!(counter.total(), Microjoules(85));
    }

    #[test]
    fn a_gap_longer_than_half_the_wrap_time_is_refused() {
        // 100 W of a range of 1000 J: it comes round in 10 s.
        let mut counter = free(Range::Wraps(1_000_000_000));
        counter.advance(Some(0), 0);
        counter.advance(Some(100_000_000), SECOND);
        assert_eq!(counter.advance(Some(500_000_000), 5 * SECOND), Step::Grew(Microjoules(400_000_000), 4 * SECOND));
        assert_eq!(counter.advance(Some(600_000_000), 11 * SECOND), Step::Rebased(Reject::Gap));
        assert_eq!(counter.advance(Some(700_000_000), 12 * SECOND), Step::Grew(Microjoules(100_000_000), SECOND));
    }

    #[test]
    fn a_fall_without_a_range_is_refused_not_guessed() {
        let mut counter = free(Range::Unknown);
        let steps = feed(&mut counter, &[Some(100), Some(40), Some(50)]);
        assert_eq!(steps[1..], [Step::Rebased(Reject::RangeUnknown), Step::Grew(Microjoules(10), SECOND)]);
        let mut counter = free(Range::Endless);
        let steps = feed(&mut counter, &[Some(100), Some(40), Some(50)]);
        assert_eq!(steps[1..], [Step::Rebased(Reject::Fell), Step::Grew(Microjoules(10), SECOND)]);
    }

    #[test]
    fn a_reading_beyond_the_range_is_refused_and_nothing_is_lost() {
        let mut counter = free(Range::Wraps(100));
        let steps = feed(&mut counter, &[Some(50), Some(100), Some(60)]);
        assert_eq!(steps[1..], [Step::Doubted(Reject::BeyondRange), Step::Grew(Microjoules(10), 2 * SECOND)]);
    }

    #[test]
    fn a_slip_is_passed_over_and_its_time_is_not_lost() {
        // A limit of 100 W; one reading says 10 kW.
        let mut counter = counter(Range::Wraps(1 << 40), Unit::MICROJOULE, Ceiling::Limit(100_000_000));
        let watts = |joules: u64| Some(joules * 1_000_000);
        let steps = feed(&mut counter, &[watts(0), watts(50), watts(10_000), watts(150)]);
        assert_eq!(steps[2..], [Step::Doubted(Reject::Implausible), Step::Grew(Microjoules(100_000_000), 2 * SECOND)]);
    }

    #[test]
    fn a_counter_that_was_set_anew_counts_on_from_there() {
        let mut counter = counter(Range::Wraps(1 << 40), Unit::MICROJOULE, Ceiling::Limit(100_000_000));
        let joules = |joules: u64| Some(joules * 1_000_000);
        let steps = feed(&mut counter, &[joules(5000), joules(5050), joules(3), joules(53), joules(103)]);
        let grew = Step::Grew(Microjoules(50_000_000), SECOND);
        assert_eq!(steps[1..], [grew, Step::Doubted(Reject::Implausible), grew, grew]);
        assert_eq!(counter.total(), Microjoules(150_000_000));
    }

    #[test]
    fn a_limit_that_was_raised_is_found_out_and_nothing_is_lost() {
        // Capped at 60 W when it was read; later the package uses 200 W.
        let mut counter = counter(Range::Wraps(1 << 40), Unit::MICROJOULE, Ceiling::Limit(60_000_000));
        let watts: Vec<u64> = std::iter::repeat_n(40, 20).chain(std::iter::repeat_n(200, 60)).collect();
        let mut joules = 0;
        counter.advance(Some(0), 0);
        for (second, watts) in (1u64..).zip(&watts) {
            joules += watts * 1_000_000;
            counter.advance(Some(joules), second * SECOND);
        }
        assert_eq!(counter.total(), Microjoules(joules));
    }

    #[test]
    fn one_and_a_half_times_the_limit_is_believed_and_more_is_not() {
        for (joules, believed) in [(150u64, true), (152, false)] {
            let mut counter = counter(Range::Endless, Unit::MICROJOULE, Ceiling::Limit(100_000_000));
            counter.advance(Some(0), 0);
            let step = counter.advance(Some(joules * 1_000_000), SECOND);
            assert_eq!(matches!(step, Step::Grew(..)), believed, "{joules} J: {step:?}");
        }
    }

    #[test]
    fn without_a_limit_four_times_the_highest_recent_power_is_believed() {
        let learned = Ceiling::Learned(1_000_000);
        let mut counter = counter(Range::Endless, Unit::MICROJOULE, learned);
        let steps = feed(&mut counter, &[Some(0), Some(900_000), Some(4_500_000), Some(19_000_000)]);
        assert!(steps[1..3].iter().all(|step| matches!(step, Step::Grew(..))), "{steps:?}");
        assert_eq!(steps[3], Step::Doubted(Reject::Implausible));
    }

    #[test]
    fn the_highest_recent_power_is_forgotten_in_time() {
        let mut peak = Peak::default();
        peak.note(0, 500);
        peak.note(Peak::HALF_NS, 10);
        assert_eq!(peak.microwatts(), 500);
        peak.note(2 * Peak::HALF_NS, 20);
        assert_eq!(peak.microwatts(), 20);
    }

    proptest! {
        #[test]
        fn wrap_at_any_phase_any_start_any_step_recovers_the_true_joules(
            modulus in 1u64 << 30..1 << 34,
            start in any::<u64>(),
            steps in proptest::collection::vec(any::<u64>(), 0..50),
            exponent in 0u32..17,
        ) {
            let unit = Unit::joules_shifted(exponent).unwrap();
            let mut counter = counter(Range::Wraps(modulus), unit, Ceiling::None);
            let mut raw = start % modulus;
            let mut truth = 0u64;
            counter.advance(Some(raw), 0);
            for (at, step) in (1u64..).zip(steps) {
                // More than half a range between two readings is a gap.
                let step = step % (modulus / 3);
                raw = (u128::from(raw) + u128::from(step)).rem_euclid(u128::from(modulus)).try_into().unwrap();
                truth += step;
                let step = counter.advance(Some(raw), at * SECOND);
                prop_assert!(matches!(step, Step::Grew(..)), "{step:?}");
                prop_assert_eq!(counter.total(), unit.microjoules(truth));
            }
        }

        #[test]
        fn halving_the_tick_leaves_totals_unchanged(
            start in 0u64..1 << 32,
            steps in proptest::collection::vec((0u64..1 << 20, 0u64..1 << 20), 1..50),
        ) {
            let unit = Unit::joules_shifted(14).unwrap();
            let [mut whole, mut half] = [(), ()].map(|()| counter(Range::Wraps(1 << 32), unit, Ceiling::None));
            whole.advance(Some(start), 0);
            half.advance(Some(start), 0);
            let mut raw = start;
            for (second, (a, b)) in (1u64..).zip(steps) {
                half.advance(Some((raw + a) % (1 << 32)), second * SECOND - SECOND / 2);
                raw = (raw + a + b) % (1 << 32);
                half.advance(Some(raw), second * SECOND);
                whole.advance(Some(raw), second * SECOND);
                prop_assert_eq!(whole.total(), half.total());
            }
        }

        #[test]
        fn whatever_is_read_the_total_only_grows(
            range in prop_oneof![Just(Range::Endless), Just(Range::Unknown), (1u64..1 << 40).prop_map(Range::Wraps)],
            ceiling in prop_oneof![Just(Ceiling::None), (0u64..1 << 40).prop_map(Ceiling::Limit), (0u64..1 << 40).prop_map(Ceiling::Learned)],
            readings in proptest::collection::vec((proptest::option::of(any::<u64>()), any::<u32>()), 0..50),
        ) {
            let mut counter = counter(range, Unit::MICROJOULE, ceiling);
            let mut at = 0u64;
            let mut before = Microjoules::ZERO;
            for (raw, dt) in readings {
                at += u64::from(dt);
                counter.advance(raw, at);
                prop_assert!(counter.total() >= before);
                before = counter.total();
            }
        }
    }
}
