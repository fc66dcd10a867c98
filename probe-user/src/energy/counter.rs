//! Turns raw readings of a wrapping counter into energy that only increases.
//!
//! Accepted readings are summed in the unit of the counter, and the sum is converted to
//! microjoules. So no tick is rounded, and shorter ticks do not change a total. Implausible
//! readings are rejected and counted, never guessed.

use std::collections::VecDeque;

use units::{Microjoules, Unit};

use super::zone::{Ceiling, Range, Zone, ZoneKind};

/// Why a reading was rejected; the label `reason` of `wattcast_energy_rejects_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reject {
    /// The counter decreased and its range is unknown, so a wrap cannot be distinguished from a
    /// reset.
    RangeUnknown,
    /// The counter decreased and never wraps. The kernel's 64-bit perf counter does so when half a
    /// hardware range passes between two of its own updates (the difference is sign-extended:
    /// arch/x86/events/rapl.c, rapl_event_update).
    Fell,
    /// The value exceeds the range of the counter.
    BeyondRange,
    /// More than half the wrap time passed without a reading, so the counter may have wrapped
    /// without being noticed.
    Gap,
    /// The power exceeds what the zone can use.
    Implausible,
    /// The counter stood still for longer than its update interval allows, and then moved. The
    /// energy of that time is unknown.
    StoodStill,
    /// The counter disappeared and returned, perhaps from zero.
    Returned,
    /// The machine was suspended since the last reading. The energy of that time is no energy of
    /// this tick, and some counters start at zero.
    Suspended,
}

impl Reject {
    /// Value of the label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RangeUnknown => "range_unknown",
            Self::Fell => "fell",
            Self::BeyondRange => "beyond_range",
            Self::Gap => "gap",
            Self::Implausible => "implausible",
            Self::StoodStill => "stood_still",
            Self::Returned => "returned",
            Self::Suspended => "suspended",
        }
    }
}

/// Result of one reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The first reading, from which energy is counted.
    Start,
    /// Energy, and the nanoseconds up to this reading in which it was used.
    Grew(Microjoules, u64),
    /// The energy since the last reading is unknown; counting continues from this reading.
    Rebased(Reject),
    /// The reading is implausible. The next one shows whether it was a single error or a reset of
    /// the counter.
    Rejected(Reject),
    /// The reading failed; the total does not change.
    Failed,
}

/// A value of the counter and its time.
#[derive(Clone, Copy, Debug)]
struct Point {
    raw: u64,
    /// Time of the last reading with this value.
    at_ns: u64,
    /// Time of the first of the readings in a row with this value.
    since_ns: u64,
    /// True when a plausible move led to this value.
    moved: bool,
}

impl Point {
    fn new(raw: u64, at_ns: u64) -> Self {
        Self { raw, at_ns, since_ns: at_ns, moved: false }
    }

    /// Time in which every reading had this value.
    fn stood_ns(self) -> u64 {
        self.at_ns.saturating_sub(self.since_ns)
    }
}

/// The update of a counter may be on either side of a reading: RAPL updates every 0.976 ms (Intel
/// SDM 14.10.3). The time that a difference covers may be this much longer than the time between
/// the readings.
const JITTER_NS: u64 = 2_000_000;
/// Longest gap while the power is unknown: half the wrap time of a 32-bit counter of 15.3 µJ at 1
/// kW. Longer than the longest tick.
const MAX_GAP_NS: u64 = 32_000_000_000;
/// After this many readings in a row above the limit, the limit is considered outdated: it was
/// raised since it was read.
const MAX_REJECTS: u32 = 10;

/// A value that stands still for this long, or for four update intervals, was possibly never a
/// value of the counter: it is no base before it has moved.
const STILL_NS: u64 = 25_000_000;
/// A value that was repeated for a second and changed only after this time, or after four update
/// intervals, is not the value of a counter that measures. A root that stands still for this time
/// is reported as broken: even the smallest package moves its counter by a step in less than a
/// millisecond, and this is longer than the update interval of every known source.
pub const STALL_NS: u64 = 5_000_000_000;
const REPEATED_NS: u64 = 1_000_000_000;

/// After a longer suspension of the machine, the energy since the last reading is not counted.
pub const SUSPENSION_NS: u64 = 100_000_000;

/// A counter and its total since the start.
///
/// Energy is counted from a base: the last reading that was accepted. A value that contradicts the
/// base becomes the new base only by moving, because a counter that fails often reads 0, or one
/// value, for a while; and a base that never moved would add the whole counter when the true value
/// returns. A true value that returns continues from the old base, and loses nothing.
#[derive(Clone, Debug)]
pub struct Counter {
    range: Range,
    unit: Unit,
    ceiling: Ceiling,
    /// The ceiling after the limit turned out to be outdated.
    unlimited: Ceiling,
    last: Option<Point>,
    /// The time that a difference covers may be this much longer than the time between the
    /// readings.
    jitter_ns: u64,
    update_ns: u64,
    /// The reading that contradicts `last` and may become the base.
    rejected: Option<Point>,
    rejects: u32,
    /// True for a zone that cannot stand still: everything except parts of a package, which may be
    /// switched off, and figures that the probe computes.
    always_moves: bool,
    peak: Peak,
    /// Accepted counts, and the total before them.
    counts: u64,
    earlier: Microjoules,
    total: Microjoules,
}

impl Counter {
    /// A counter with a total of zero.
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
            update_ns: zone.update_ns,
            rejected: None,
            rejects: 0,
            always_moves: !matches!(zone.id.kind, ZoneKind::Core | ZoneKind::Uncore)
                && !matches!(zone.ceiling, Ceiling::None),
            peak: Peak::default(),
            counts: 0,
            earlier: Microjoules::ZERO,
            total: Microjoules::ZERO,
        }
    }

    /// A counter that continues the total of another one for the same zone, from its next reading
    /// on.
    #[must_use]
    pub fn continuing(zone: &Zone, before: &Self) -> Self {
        Self { earlier: before.total, total: before.total, ..Self::new(zone) }
    }

    /// Continues the total of an earlier probe, from the first reading on.
    pub fn continue_from(&mut self, total: Microjoules) {
        (self.earlier, self.total) = (total, total);
    }

    /// Sum of all accepted energy.
    #[must_use]
    pub fn total(&self) -> Microjoules {
        self.total
    }

    /// Counts from the next reading on, because the counter may have been reset.
    pub fn restart(&mut self) {
        (self.last, self.rejected) = (None, None);
    }

    /// Adds a raw reading of the time `at_ns` (monotonic); `None` when it failed.
    pub fn advance(&mut self, raw: Option<u64>, at_ns: u64) -> Step {
        let Some(raw) = raw else {
            // A rejected reading can be confirmed by the next reading only.
            self.rejected = None;
            return Step::Failed;
        };
        let now = Point::new(raw, at_ns);
        if let Range::Wraps(modulus) = self.range
            && raw >= modulus
        {
            self.rejected = None;
            return Step::Rejected(Reject::BeyondRange);
        }
        let Some(last) = self.last else {
            self.last = Some(now);
            return Step::Start;
        };
        if self.always_moves && raw == 0 && last.raw != 0 {
            // A counter that fails reads 0. One that wraps or was reset passes 0 within a
            // microsecond, and its next reading shows it.
            self.rejected = None;
            return Step::Rejected(self.between(last, now).err().unwrap_or(Reject::Implausible));
        }
        let counted = self.between(last, now);
        if matches!(counted, Ok(counts) if counts > 0) && self.stood_still(last, at_ns) {
            (self.last, self.rejected, self.rejects) = (Some(now), None, 0);
            return Step::Rebased(Reject::StoodStill);
        }
        match counted {
            Ok(counts) => self.accept(last, now, counts),
            Err(reason) => self.contradict(last, now, reason),
        }
    }

    /// Handles a reading that contradicts the base: it is consistent with the one before, which
    /// then becomes the base, or it has to be confirmed itself.
    fn contradict(&mut self, last: Point, mut now: Point, reason: Reject) -> Step {
        if let Some(rejected) = &mut self.rejected
            && rejected.raw == now.raw
            && self.always_moves
        {
            // It stands still, which confirms nothing.
            rejected.at_ns = now.at_ns;
            return self.reject(last, now, reason);
        }
        if let Some(rejected) = self.rejected
            && let Ok(counts) = self.between(rejected, now)
        {
            // The counter was reset, and counts from there.
            if rejected.moved || !self.always_moves || rejected.stood_ns() < self.still_ns() {
                return self.accept(rejected, now, counts);
            }
            now.moved = true;
        }
        let first = self.rejected.replace(now).is_none();
        match reason {
            Reject::Implausible => self.reject(last, now, reason),
            // Whatever the next reading is, the energy up to this one is unknown.
            _ if first => Step::Rebased(reason),
            _ => Step::Rejected(reason),
        }
    }

    /// Counts a rejected reading. Many in a row mean that the limit was raised.
    fn reject(&mut self, last: Point, now: Point, reason: Reject) -> Step {
        if reason != Reject::Implausible {
            return Step::Rejected(reason);
        }
        self.rejects = self.rejects.saturating_add(1);
        let stands = self.rejected.is_some_and(|rejected| rejected.since_ns < now.at_ns);
        if self.rejects < MAX_REJECTS || stands || !matches!(self.ceiling, Ceiling::Limit(_)) {
            return Step::Rejected(reason);
        }
        self.ceiling = self.unlimited;
        match self.between(last, now) {
            Ok(counts) => self.accept(last, now, counts),
            Err(reason) => Step::Rejected(reason),
        }
    }

    /// Time without a move after which a value that never moved is no base.
    fn still_ns(&self) -> u64 {
        STILL_NS.max(self.update_ns.saturating_mul(4))
    }

    /// True when the base stood still for so long that its difference to a reading at `at_ns` is
    /// not the energy of that time. A failed reading is not standing still.
    fn stood_still(&self, last: Point, at_ns: u64) -> bool {
        if !self.always_moves {
            return false;
        }
        let (since, updates) = (at_ns.saturating_sub(last.since_ns), self.update_ns.saturating_mul(4));
        if last.raw == 0 && !last.moved {
            // A counter that fails from the start on.
            return last.stood_ns() >= self.still_ns() || since >= STALL_NS.max(updates);
        }
        last.stood_ns() >= REPEATED_NS.max(updates / 2) && since >= STALL_NS.max(updates)
    }

    fn accept(&mut self, from: Point, to: Point, counts: u64) -> Step {
        let dt = to.at_ns.saturating_sub(from.at_ns);
        self.peak.add(to.at_ns, microwatts(self.unit.microjoules(counts), dt));
        self.counts = self.counts.saturating_add(counts);
        let total = self.earlier + self.unit.microjoules(self.counts);
        let grown = total - self.total;
        let base = if counts == 0 { Point { at_ns: to.at_ns, ..from } } else { Point { moved: true, ..to } };
        (self.total, self.last, self.rejected, self.rejects) = (total, Some(base), None, 0);
        Step::Grew(grown, dt)
    }

    /// Counts between two readings, or why they are unknown.
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
        match self.max_uw() {
            Some(max)
                if self.unit.microjoules(counts) > Microjoules::from_power(max, dt.saturating_add(self.jitter_ns)) =>
            {
                Err(Reject::Implausible)
            }
            _ => Ok(counts),
        }
    }

    /// Highest plausible power.
    fn max_uw(&self) -> Option<u64> {
        match self.ceiling {
            Ceiling::Limit(limit) => Some(limit.saturating_add(limit / 2)),
            Ceiling::Learned(floor) => Some(self.peak.microwatts().saturating_mul(4).max(floor)),
            Ceiling::None => None,
        }
    }

    /// Half the wrap time of the counter at its highest recent power. Without a known power, a time
    /// in which no known counter wraps.
    fn half_wrap_ns(&self, modulus: u64) -> u64 {
        let power = match (self.peak.microwatts(), self.ceiling) {
            (0, Ceiling::Limit(limit)) => limit,
            (peak, _) => peak,
        };
        if power == 0 {
            return MAX_GAP_NS;
        }
        let range = u128::from(self.unit.microjoules(modulus).0) * 1_000_000_000;
        u64::try_from(range / u128::from(power) / 2).unwrap_or(u64::MAX)
    }
}

fn microwatts(energy: Microjoules, ns: u64) -> u64 {
    let product = u128::from(energy.0) * 1_000_000_000;
    u64::try_from(product / u128::from(ns.max(1))).unwrap_or(u64::MAX)
}

/// The highest power of the last ten to twenty minutes, in two halves. The older half is dropped
/// when a new one begins.
#[derive(Clone, Debug, Default)]
struct Peak {
    halves: VecDeque<(u64, u64)>,
}

impl Peak {
    const HALF_NS: u64 = 600_000_000_000;

    fn add(&mut self, at_ns: u64, microwatts: u64) {
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
        host::topology::PackageId,
    };

    const SECOND: u64 = 1_000_000_000;

    fn counter(range: Range, unit: Unit, ceiling: Ceiling) -> Counter {
        let id = ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package };
        Counter::new(&Zone { unit, ceiling, ..Zone::microjoules(id, range, String::new()) })
    }

    fn unlimited(range: Range) -> Counter {
        counter(range, Unit::MICROJOULE, Ceiling::None)
    }

    /// Readings a second apart.
    fn feed(counter: &mut Counter, raw: &[Option<u64>]) -> Vec<Step> {
        let at = |second: usize| u64::try_from(second).unwrap() * SECOND;
        raw.iter().enumerate().map(|(second, raw)| counter.advance(*raw, at(second))).collect()
    }

    #[test]
    fn a_failed_reading_adds_nothing_and_the_next_covers_it() {
        let mut counter = unlimited(Range::Wraps(1000));
        let steps = feed(&mut counter, &[Some(10), Some(30), None, Some(90), Some(95)]);
        let grew = |uj, seconds| Step::Grew(Microjoules(uj), seconds * SECOND);
        assert_eq!(steps, [Step::Start, grew(20, 1), Step::Failed, grew(60, 2), grew(5, 1)]);
        assert_eq!(counter.total(), Microjoules(85));
    }

    #[test]
    fn a_gap_longer_than_half_the_wrap_time_is_rejected() {
        // At 100 W a range of 1000 J wraps after 10 s.
        let mut counter = unlimited(Range::Wraps(1_000_000_000));
        counter.advance(Some(0), 0);
        counter.advance(Some(100_000_000), SECOND);
        assert_eq!(counter.advance(Some(500_000_000), 5 * SECOND), Step::Grew(Microjoules(400_000_000), 4 * SECOND));
        assert_eq!(counter.advance(Some(600_000_000), 11 * SECOND), Step::Rebased(Reject::Gap));
        assert_eq!(counter.advance(Some(700_000_000), 12 * SECOND), Step::Grew(Microjoules(100_000_000), SECOND));
    }

    #[test]
    fn a_decrease_without_a_range_is_rejected() {
        let mut counter = unlimited(Range::Unknown);
        let steps = feed(&mut counter, &[Some(100), Some(40), Some(50)]);
        assert_eq!(steps[1..], [Step::Rebased(Reject::RangeUnknown), Step::Grew(Microjoules(10), SECOND)]);
        let mut counter = unlimited(Range::Endless);
        let steps = feed(&mut counter, &[Some(100), Some(40), Some(50)]);
        assert_eq!(steps[1..], [Step::Rebased(Reject::Fell), Step::Grew(Microjoules(10), SECOND)]);
    }

    #[test]
    fn a_reading_beyond_the_range_loses_no_energy() {
        let mut counter = unlimited(Range::Wraps(100));
        let steps = feed(&mut counter, &[Some(50), Some(100), Some(60)]);
        assert_eq!(steps[1..], [Step::Rejected(Reject::BeyondRange), Step::Grew(Microjoules(10), 2 * SECOND)]);
    }

    #[test]
    fn a_single_error_is_skipped_and_its_time_is_covered() {
        // A limit of 100 W, and one reading of 10 kW.
        let mut counter = counter(Range::Wraps(1 << 40), Unit::MICROJOULE, Ceiling::Limit(100_000_000));
        let watts = |joules: u64| Some(joules * 1_000_000);
        let steps = feed(&mut counter, &[watts(0), watts(50), watts(10_000), watts(150)]);
        assert_eq!(steps[2..], [Step::Rejected(Reject::Implausible), Step::Grew(Microjoules(100_000_000), 2 * SECOND)]);
    }

    #[test]
    fn a_reset_counter_continues_from_its_new_value() {
        let mut counter = counter(Range::Wraps(1 << 40), Unit::MICROJOULE, Ceiling::Limit(100_000_000));
        let joules = |joules: u64| Some(joules * 1_000_000);
        let steps = feed(&mut counter, &[joules(5000), joules(5050), joules(3), joules(53), joules(103)]);
        let grew = Step::Grew(Microjoules(50_000_000), SECOND);
        assert_eq!(steps[1..], [grew, Step::Rejected(Reject::Implausible), grew, grew]);
        assert_eq!(counter.total(), Microjoules(150_000_000));
    }

    #[test]
    fn a_raised_limit_is_detected_and_loses_no_energy() {
        // The limit was 60 W when it was read. Later the package uses 200 W.
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
    fn up_to_one_and_a_half_times_the_limit_is_plausible() {
        for (joules, plausible) in [(150u64, true), (152, false)] {
            let mut counter = counter(Range::Endless, Unit::MICROJOULE, Ceiling::Limit(100_000_000));
            counter.advance(Some(0), 0);
            let step = counter.advance(Some(joules * 1_000_000), SECOND);
            assert_eq!(matches!(step, Step::Grew(..)), plausible, "{joules} J: {step:?}");
        }
    }

    #[test]
    fn without_a_limit_four_times_the_recent_peak_is_plausible() {
        let learned = Ceiling::Learned(1_000_000);
        let mut counter = counter(Range::Endless, Unit::MICROJOULE, learned);
        let steps = feed(&mut counter, &[Some(0), Some(900_000), Some(4_500_000), Some(19_000_000)]);
        assert!(steps[1..3].iter().all(|step| matches!(step, Step::Grew(..))), "{steps:?}");
        assert_eq!(steps[3], Step::Rejected(Reject::Implausible));
    }

    #[test]
    fn the_peak_expires() {
        let mut peak = Peak::default();
        peak.add(0, 500);
        peak.add(Peak::HALF_NS, 10);
        assert_eq!(peak.microwatts(), 500);
        peak.add(2 * Peak::HALF_NS, 20);
        assert_eq!(peak.microwatts(), 20);
    }

    /// A counter without a known limit: at least 1 kW is plausible.
    fn package(range: Range) -> Counter {
        counter(range, Unit::MICROJOULE, Ceiling::learned(ZoneKind::Package))
    }

    #[test]
    fn a_counter_that_reads_zero_for_75_s_invents_no_energy() {
        for range in [Range::Wraps(262_143_328_912), Range::Endless, Range::Unknown] {
            let mut counter = package(range);
            let joules = |joules: u64| joules * 1_000_000;
            counter.advance(Some(joules(59_900)), 0);
            counter.advance(Some(joules(59_950)), SECOND);
            for second in 2..77 {
                // The accountant reports a value that stands still for 5 s as a failed reading.
                counter.advance((second < 7).then_some(0), second * SECOND);
            }
            counter.advance(Some(joules(63_750)), 77 * SECOND);
            assert_eq!(counter.total(), Microjoules(joules(3850)), "{range:?}");
        }
    }

    #[test]
    fn some_zero_readings_add_nothing() {
        for zeros in 1..4usize {
            let mut readings = vec![Some(100_000_000), Some(300_000_000)];
            readings.resize(2 + zeros, Some(0));
            readings.extend([Some(600_000_000), Some(700_000_000)]);
            for range in [Range::Wraps(262_143_328_912), Range::Endless, Range::Unknown] {
                let mut counter = package(range);
                feed(&mut counter, &readings);
                assert_eq!(counter.total(), Microjoules(600_000_000), "{zeros} zeros, {range:?}");
            }
        }
    }

    #[test]
    fn zeros_at_the_start_are_no_base() {
        let mut counter = package(Range::Endless);
        let steps = feed(&mut counter, &[Some(0), Some(0), Some(300_000_000), Some(350_000_000)]);
        assert_eq!(steps[2], Step::Rebased(Reject::StoodStill));
        assert_eq!(counter.total(), Microjoules(50_000_000));
    }

    #[test]
    fn a_counter_that_continues_another_one_keeps_its_total() {
        let mut counter = package(Range::Endless);
        feed(&mut counter, &[Some(5), Some(1005)]);
        let id = ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package };
        let unit = Unit::MILLIJOULE;
        let mut next =
            Counter::continuing(&Zone { unit, ..Zone::microjoules(id, Range::Endless, String::new()) }, &counter);
        let steps = feed(&mut next, &[Some(7), Some(9)]);
        assert_eq!(steps, [Step::Start, Step::Grew(Microjoules(2000), SECOND)]);
        assert_eq!(next.total(), Microjoules(3000));
    }

    proptest! {
        #[test]
        fn no_sequence_of_faults_invents_energy(
            start in 1u64..1 << 40,
            readings in proptest::collection::vec((0u8..8, 1u64..60_000_000, 1u64..7), 1..60),
        ) {
            let modulus = 1u64 << 40;
            let mut counter = package(Range::Wraps(modulus));
            counter.advance(Some(start), 0);
            let (mut truth, mut last, mut rejects) = (0, start, 0);
            // Energy of intervals without a good reading: those that were reported as unread or
            // rejected, and those since then in which the counter did not move.
            let (mut reported, mut standing) = (0, 0);
            for (at, (fault, energy, eighths)) in (1u64..).zip(readings) {
                truth += energy;
                let good = (start + truth) % modulus;
                let raw = match fault {
                    0 => None,
                    1 => Some(0),
                    2 => Some(last),
                    3 => Some((good + modulus / 8 * eighths) % modulus),
                    _ => Some(good),
                };
                last = raw.unwrap_or(last);
                let step = counter.advance(raw, at * SECOND);
                rejects += u32::from(matches!(step, Step::Rebased(_) | Step::Rejected(_)));
                standing += energy;
                match step {
                    Step::Failed | Step::Rejected(_) | Step::Rebased(_) => reported += std::mem::take(&mut standing),
                    Step::Grew(grown, _) if grown > Microjoules::ZERO => standing = 0,
                    Step::Grew(..) | Step::Start => {}
                }
                prop_assert!(counter.total().0 <= truth, "{step:?}: {} of {truth} µJ", counter.total().0);
                let lost = truth - counter.total().0;
                prop_assert!(lost <= reported + standing, "{step:?}: {lost} of {reported} + {standing} µJ");
                if rejects == 0 && raw == Some(good) {
                    prop_assert_eq!(counter.total().0, truth, "lost without being counted");
                }
            }
        }

        #[test]
        fn wraps_at_any_phase_recover_the_true_energy(
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
        fn the_total_only_increases_for_any_readings(
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
