//! From raw readings that wrap to joules that only grow.

use super::zone::Range;
use crate::units::Microjoules;

/// Why a reading was refused; the label `reason` of `wattcast_energy_rejects_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reject {
    /// The counter fell and its range is not known: wrapped or reset, nobody can tell.
    RangeUnknown,
    /// The counter reads beyond its own range.
    BeyondRange,
    /// The first reading after a failure: how often it wrapped meanwhile is not known.
    AfterGap,
}

impl Reject {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RangeUnknown => "range_unknown",
            Self::BeyondRange => "beyond_range",
            Self::AfterGap => "after_gap",
        }
    }
}

/// What one reading adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The first reading: a point to count from.
    Start,
    /// This much since the last reading.
    Grew(Microjoules),
    /// Nothing can be said about the time since the last reading; count from here.
    Rejected(Reject),
    /// The reading failed; the counter stands where it stood.
    Lost,
}

/// One counter and what it has counted since the start.
#[derive(Clone, Debug)]
pub struct Counter {
    range: Range,
    last: Option<u64>,
    lost: bool,
    total: Microjoules,
}

impl Counter {
    /// A counter with nothing counted.
    #[must_use]
    pub fn new(range: Range) -> Self {
        Self { range, last: None, lost: false, total: Microjoules::ZERO }
    }

    /// Sum of everything accepted.
    #[must_use]
    pub fn total(&self) -> Microjoules {
        self.total
    }

    /// Takes a raw reading in microjoules; `None` when it failed.
    pub fn advance(&mut self, raw: Option<u64>) -> Step {
        let Some(raw) = raw else {
            self.lost = true;
            return Step::Lost;
        };
        if let Range::Wraps(modulus) = self.range
            && raw >= modulus
        {
            return Step::Rejected(Reject::BeyondRange);
        }
        let Some(last) = self.last.replace(raw) else {
            self.lost = false;
            return Step::Start;
        };
        if std::mem::take(&mut self.lost) {
            return Step::Rejected(Reject::AfterGap);
        }
        let grown = match (raw.checked_sub(last), self.range) {
            (Some(grown), _) => grown,
            (None, Range::Wraps(modulus)) => modulus - last + raw,
            (None, Range::Endless | Range::Unknown) => return Step::Rejected(Reject::RangeUnknown),
        };
        let grown = Microjoules(grown);
        self.total += grown;
        Step::Grew(grown)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_failed_reading_adds_nothing_and_the_next_only_sets_the_point() {
        let mut counter = Counter::new(Range::Wraps(1000));
        assert_eq!(counter.advance(Some(10)), Step::Start);
        assert_eq!(counter.advance(Some(30)), Step::Grew(Microjoules(20)));
        assert_eq!(counter.advance(None), Step::Lost);
        assert_eq!(counter.advance(Some(90)), Step::Rejected(Reject::AfterGap));
        assert_eq!(counter.advance(Some(95)), Step::Grew(Microjoules(5)));
        assert_eq!(counter.total(), Microjoules(25));
    }

    #[test]
    fn a_fall_without_a_range_is_refused_not_guessed() {
        let mut counter = Counter::new(Range::Unknown);
        counter.advance(Some(100));
        assert_eq!(counter.advance(Some(40)), Step::Rejected(Reject::RangeUnknown));
        assert_eq!(counter.advance(Some(50)), Step::Grew(Microjoules(10)));
    }

    #[test]
    fn a_reading_beyond_the_range_is_refused() {
        let mut counter = Counter::new(Range::Wraps(100));
        counter.advance(Some(50));
        assert_eq!(counter.advance(Some(100)), Step::Rejected(Reject::BeyondRange));
        assert_eq!(counter.advance(Some(60)), Step::Grew(Microjoules(10)));
    }

    proptest! {
        #[test]
        fn any_start_and_any_steps_below_the_range_are_recovered(
            modulus in 2u64..u64::MAX / 2,
            start in any::<u64>(),
            steps in proptest::collection::vec(any::<u64>(), 0..50),
        ) {
            let mut counter = Counter::new(Range::Wraps(modulus));
            let mut raw = start % modulus;
            let mut truth = Microjoules::ZERO;
            counter.advance(Some(raw));
            for step in steps {
                let step = step % modulus;
                raw = (raw + step) % modulus;
                truth += Microjoules(step);
                prop_assert_eq!(counter.advance(Some(raw)), Step::Grew(Microjoules(step)));
            }
            prop_assert_eq!(counter.total(), truth);
        }
    }
}
