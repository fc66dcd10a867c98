//! Start times and changes of counters, which the pages do not have: a page has totals only.

use std::collections::HashMap;

use crate::rows::{Distribution, Value};

/// Whether totals are sent, or changes since the point before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Totals since the start of the series.
    #[default]
    Totals,
    /// Changes.
    Changes,
}

/// Time after which a series of a container or stream that is on no page is forgotten. Those of the
/// host are kept: their number is bounded, and a source that returns continues its total.
const FORGET_NS: u64 = 3600 * 1_000_000_000;

/// What a receiver knows of a series.
#[derive(Debug)]
struct Known {
    /// Start of the total.
    start_ns: u64,
    /// Time of the last point.
    last_ns: u64,
    /// The last total.
    total: Value,
    /// The sum of the changes as a receiver adds them up. The next change is counted from it, so
    /// that the rounding of changes does not accumulate.
    sent: Value,
    /// True for a series that ends with its container or stream.
    ends: bool,
}

/// A counter as it is read from a page.
pub(crate) struct Reading<'a> {
    /// Identity of the series.
    pub(crate) key: String,
    pub(crate) at_ns: u64,
    /// When the total was zero, for a series that was not known.
    pub(crate) zero_ns: u64,
    pub(crate) value: &'a Value,
    /// True for a series that ends with its container or stream.
    pub(crate) ends: bool,
    /// True if the total of a series that was not known can be that of an earlier program, which
    /// has sent its changes.
    pub(crate) continues: bool,
}

/// A data point of a counter.
#[derive(Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) start_ns: u64,
    pub(crate) value: Value,
}

/// The counters that were sent.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    kept: Kept,
    /// Time of the collection before.
    previous_ns: Option<u64>,
    known: HashMap<String, Known>,
}

impl Tracker {
    pub(crate) fn new(kept: Kept) -> Self {
        Self { kept, ..Self::default() }
    }

    /// The point to send; `None` for a total that changes are counted from.
    pub(crate) fn point(&mut self, reading: Reading<'_>) -> Option<Point> {
        let Reading { key, at_ns, zero_ns, value, ends, continues } = reading;
        let Some(known) = self.known.get_mut(&key) else {
            let changes = self.kept == Kept::Changes;
            // The collection before did not have it yet.
            let start_ns = self.previous_ns.filter(|_| changes).unwrap_or(zero_ns).min(at_ns);
            let (total, sent) = (value.clone(), value.clone());
            self.known.insert(key, Known { start_ns, last_ns: at_ns, total, sent, ends });
            let is_base = continues && changes;
            return (!is_base).then(|| Point { start_ns, value: value.clone() });
        };
        let before_ns = std::mem::replace(&mut known.last_ns, at_ns);
        let fell = fell(&known.total, value);
        known.total = value.clone();
        if fell {
            // It began again some time after the last point.
            known.start_ns = before_ns;
        }
        if self.kept == Kept::Totals {
            return Some(Point { start_ns: known.start_ns.min(at_ns), value: value.clone() });
        }
        let change = if fell { value.clone() } else { difference(&known.sent, value) };
        known.sent = if fell { value.clone() } else { sum(&known.sent, &change) };
        // The clock can be set back.
        Some(Point { start_ns: before_ns.min(at_ns), value: change })
    }

    /// Ends a collection, and forgets series that have ended.
    pub(crate) fn end(&mut self, at_ns: u64) {
        self.previous_ns = Some(at_ns);
        self.known.retain(|_, known| !known.ends || at_ns.saturating_sub(known.last_ns) < FORGET_NS);
    }
}

/// True if a total is below the one before, so that it began again.
fn fell(before: &Value, now: &Value) -> bool {
    match (before, now) {
        (Value::Number(before), Value::Number(now)) => now < before,
        (Value::Distribution(before), Value::Distribution(now)) => {
            let buckets = now.cumulative.iter().zip(&before.cumulative);
            now.bounds != before.bounds || now.count < before.count || buckets.into_iter().any(|(now, old)| now < old)
        }
        _ => true,
    }
}

/// What was added since `sent`. Never below zero: a sum of rounded changes can be one unit in the
/// last place above the total.
fn difference(sent: &Value, now: &Value) -> Value {
    match (sent, now) {
        (Value::Number(sent), Value::Number(now)) => Value::Number((now - sent).max(0.0)),
        (Value::Distribution(sent), Value::Distribution(now)) => Value::Distribution(Distribution {
            bounds: now.bounds.clone(),
            cumulative: now
                .cumulative
                .iter()
                .zip(&sent.cumulative)
                .map(|(now, old)| now.saturating_sub(*old))
                .collect(),
            count: now.count.saturating_sub(sent.count),
            sum: now.sum - sent.sum,
        }),
        (_, now) => now.clone(),
    }
}

/// The total after a change.
fn sum(before: &Value, change: &Value) -> Value {
    match (before, change) {
        (Value::Number(before), Value::Number(change)) => Value::Number(before + change),
        (Value::Distribution(before), Value::Distribution(change)) => Value::Distribution(Distribution {
            bounds: change.bounds.clone(),
            cumulative: before.cumulative.iter().zip(&change.cumulative).map(|(a, b)| a + b).collect(),
            count: before.count + change.count,
            sum: before.sum + change.sum,
        }),
        (_, change) => change.clone(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reading(at_ns: u64, value: &Value) -> Reading<'_> {
        Reading { key: "a".into(), at_ns, zero_ns: 1, value, ends: true, continues: false }
    }

    fn read(tracker: &mut Tracker, at_ns: u64, value: f64) -> Option<(u64, f64)> {
        let value = Value::Number(value);
        let point = tracker.point(reading(at_ns, &value))?;
        let Value::Number(number) = point.value else { panic!("{point:?}") };
        Some((point.start_ns, number))
    }

    #[test]
    fn totals_have_the_start_of_the_counter_and_of_its_reset() {
        let mut tracker = Tracker::new(Kept::Totals);
        assert_eq!(read(&mut tracker, 10, 5.0), Some((1, 5.0)));
        assert_eq!(read(&mut tracker, 20, 7.0), Some((1, 7.0)));
        assert_eq!(read(&mut tracker, 30, 2.0), Some((20, 2.0)), "a reset");
        assert_eq!(read(&mut tracker, 40, 3.0), Some((20, 3.0)));
    }

    #[test]
    fn changes_start_at_the_point_before() {
        let mut tracker = Tracker::new(Kept::Changes);
        assert_eq!(read(&mut tracker, 10, 5.0), Some((1, 5.0)));
        assert_eq!(read(&mut tracker, 20, 7.0), Some((10, 2.0)));
        assert_eq!(read(&mut tracker, 30, 2.0), Some((20, 2.0)), "a reset");
        assert_eq!(read(&mut tracker, 25, 3.0), Some((25, 1.0)), "the clock was set back");
    }

    #[test]
    fn changes_of_a_new_series_start_at_the_collection_before() {
        let mut tracker = Tracker::new(Kept::Changes);
        tracker.end(10);
        assert_eq!(read(&mut tracker, 20, 5.0), Some((10, 5.0)));
        let mut totals = Tracker::new(Kept::Totals);
        totals.end(10);
        assert_eq!(read(&mut totals, 20, 5.0), Some((1, 5.0)));
    }

    #[test]
    fn continued_totals_are_not_sent_as_a_change() {
        let before = Value::Number(500.0);
        let continued = || Reading { continues: true, ..reading(10, &before) };
        let mut tracker = Tracker::new(Kept::Changes);
        assert_eq!(tracker.point(continued()), None);
        assert_eq!(read(&mut tracker, 20, 501.0), Some((10, 1.0)));
        let mut totals = Tracker::new(Kept::Totals);
        assert_eq!(totals.point(continued()), Some(Point { start_ns: 1, value: before.clone() }));
    }

    #[test]
    fn a_series_that_returns_continues_unless_it_was_forgotten() {
        let mut tracker = Tracker::new(Kept::Changes);
        read(&mut tracker, 10, 5.0);
        tracker.end(10 + FORGET_NS - 1);
        assert_eq!(read(&mut tracker, FORGET_NS, 6.0), Some((10, 1.0)));
        tracker.end(3 * FORGET_NS);
        assert!(tracker.known.is_empty());
    }

    #[test]
    fn a_distribution_changes_bucket_by_bucket() {
        let row = |cumulative: [u64; 2], count, sum| {
            Value::Distribution(Distribution { bounds: vec![0.5, 1.0], cumulative: cumulative.into(), count, sum })
        };
        let mut tracker = Tracker::new(Kept::Changes);
        let mut read = |at_ns, value: &Value| tracker.point(reading(at_ns, value)).unwrap().value;
        assert_eq!(read(10, &row([1, 2], 3, 2.5)), row([1, 2], 3, 2.5));
        assert_eq!(read(20, &row([1, 4], 6, 4.0)), row([0, 2], 3, 1.5));
        assert_eq!(read(30, &row([0, 1], 1, 0.5)), row([0, 1], 1, 0.5), "a reset");
    }

    /// A sum of rounded changes above the total was taken for a reset, and the total sent again.
    #[test]
    fn an_unchanged_total_is_no_reset() {
        let mut tracker = Tracker::new(Kept::Changes);
        for micro in [300_001_u64, 7_000_000_000_000_003, 7_000_000_000_000_003, 7_000_000_000_000_003] {
            let joules = micro as f64 / 1e6;
            read(&mut tracker, micro, joules);
            let known = tracker.known.get_mut("a").unwrap();
            // The worst case of rounding.
            known.sent = Value::Number(f64::from_bits(joules.to_bits() + 1));
        }
        assert_eq!(read(&mut tracker, 9, 7_000_000_000.000_003).unwrap().1, 0.0);
    }

    proptest! {
        /// The changes as doubles had to add up to the total, however often they were rounded.
        #[test]
        fn changes_add_up_to_the_total(micro in prop::collection::vec(0u32..5_000_000, 1..400)) {
            let mut tracker = Tracker::new(Kept::Changes);
            let (mut total, mut received, mut at) = (123_456_789_000_000_u64, 0.0, 0);
            for step in micro {
                total += u64::from(step);
                at += 1;
                let joules = total as f64 / 1e6;
                received += read(&mut tracker, at, joules).unwrap().1;
                prop_assert!((received - joules).abs() <= f64::EPSILON * joules, "{received} {joules}");
            }
        }
    }
}
