//! The period of a bill: a month or days of local time, and its slots.

use jiff::{Timestamp, ToSpan as _, civil::Date, tz::TimeZone};

use crate::{cost::tariff::Tariff, energy::usage::Slots};

/// Longest period in days: slots are hours.
const MAX_DAYS: i64 = 366;

/// A period of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Period {
    /// Its first moment.
    pub start: Timestamp,
    /// The moment after its last one.
    pub end: Timestamp,
    /// The time zone of its days.
    pub zone: TimeZone,
    /// How it was named: `2026-11`.
    pub name: String,
}

impl Period {
    /// The month `2026-11`.
    ///
    /// # Errors
    /// If it is no month.
    pub fn month(text: &str, zone: &TimeZone) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not a month; expected for example 2026-11");
        let first: Date = format!("{}-01", text.trim()).parse().map_err(|_| invalid())?;
        let next = first.checked_add(1.month()).map_err(|_| invalid())?;
        let start = midnight(first, zone).ok_or_else(invalid)?;
        let end = midnight(next, zone).ok_or_else(invalid)?;
        Ok(Self { start, end, zone: zone.clone(), name: text.trim().to_owned() })
    }

    /// From one day or time to another. A day counts from its beginning, and the last one does not
    /// belong to the period.
    ///
    /// # Errors
    /// If a time cannot be parsed, or the period is empty or too long.
    pub fn between(from: &str, to: &str, zone: &TimeZone) -> Result<Self, String> {
        let (start, end) = (moment(from, zone)?, moment(to, zone)?);
        if end <= start {
            return Err(format!("the period from {from} to {to} is empty"));
        }
        if end.duration_since(start).as_secs() > MAX_DAYS * 86_400 {
            return Err(format!("the period is longer than {MAX_DAYS} days"));
        }
        Ok(Self { start, end, zone: zone.clone(), name: format!("{from} to {to}") })
    }

    /// Ends the period at `now` if it is not over. Returns whether it was shortened.
    pub fn end_by(&mut self, now: Timestamp) -> bool {
        let is_open = now < self.end;
        // Whole seconds, as samples are queried by.
        if is_open && let Ok(now) = Timestamp::from_second(now.as_second()) {
            self.end = now.max(self.start);
        }
        is_open
    }

    /// Hours, divided further where the price changes.
    #[must_use]
    pub fn slots(&self, tariff: &Tariff) -> Slots {
        const HOUR: i64 = 3_600_000_000;
        let (start, end) = (self.start.as_microsecond(), self.end.as_microsecond());
        let mut edges = vec![start, end];
        let first = (start.div_euclid(HOUR) + 1) * HOUR;
        edges.extend((0..).map(|hour| first + hour * HOUR).take_while(|edge| *edge < end));
        let mut at = start;
        for (length_ns, _) in tariff.split(self.start, self.end).unwrap_or_default() {
            at += length_ns / 1000;
            if at < end {
                edges.push(at);
            }
        }
        Slots::new(edges)
    }
}

fn midnight(date: Date, zone: &TimeZone) -> Option<Timestamp> {
    date.to_zoned(zone.clone()).ok().map(|zoned| zoned.timestamp())
}

/// A day, or a time with its offset.
fn moment(text: &str, zone: &TimeZone) -> Result<Timestamp, String> {
    let text = text.trim();
    let day = text.parse::<Date>().ok().filter(|_| text.len() == 10).and_then(|date| midnight(date, zone));
    let moment = day.or_else(|| text.parse::<Timestamp>().ok());
    let moment = moment.and_then(|moment| Timestamp::from_second(moment.as_second()).ok());
    moment.ok_or_else(|| format!("{text:?}: expected a day, 2026-11-20, or a time, 2026-11-20T13:00:00Z"))
}

#[cfg(test)]
mod tests {
    use rust_decimal::Decimal;

    use super::*;

    #[test]
    fn month_begins_at_local_midnight() {
        let zone = TimeZone::get("Asia/Kolkata").unwrap();
        let period = Period::month("2026-11", &zone).unwrap();
        assert_eq!(period.start.to_string(), "2026-10-31T18:30:00Z");
        assert_eq!(period.end.to_string(), "2026-11-30T18:30:00Z");
        // 30 days of hours, with a half at each end.
        assert_eq!(period.slots(&Tariff::flat(Decimal::ONE)).count(), 721);
        let december = Period::month("2026-12", &TimeZone::UTC).unwrap();
        assert_eq!(december.end.to_string(), "2027-01-01T00:00:00Z");
        for wrong in ["", "2026", "2026-13", "2026-11-01", "november"] {
            assert!(Period::month(wrong, &zone).is_err(), "{wrong}");
        }
    }

    #[test]
    fn days_and_times_are_accepted_and_empty_periods_are_not() {
        let zone = TimeZone::UTC;
        let period = Period::between("2026-11-01", "2026-11-02T06:00:00Z", &zone).unwrap();
        assert_eq!(period.end.duration_since(period.start).as_secs(), 30 * 3600);
        assert!(Period::between("2026-11-02", "2026-11-02", &zone).unwrap_err().contains("empty"));
        assert!(Period::between("2020-11-02", "2026-11-02", &zone).unwrap_err().contains("longer"));
        assert!(Period::between("yesterday", "2026-11-02", &zone).unwrap_err().contains("2026-11-20"));
        let mut open = Period::month("2026-11", &zone).unwrap();
        assert!(open.end_by("2026-11-10T00:00:00.5Z".parse().unwrap()));
        assert_eq!(open.end.to_string(), "2026-11-10T00:00:00Z");
        assert!(!open.end_by("2026-11-11T00:00:00Z".parse().unwrap()));
    }
}
