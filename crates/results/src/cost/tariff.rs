//! Prices of a kilowatt hour over time: one base price, and prices for certain hours of certain
//! days in local time. A window is split where the price changes, including changes of daylight
//! saving time.

use jiff::{SignedDuration, Timestamp, Zoned, civil::Time, tz::TimeZone};
use rust_decimal::Decimal;
use serde::Deserialize;

use super::money::Amount;

/// Maximum length of a window. It bounds the work for a file with a start of 0, which would span
/// fifty years of clock changes.
const MAX_WINDOW: SignedDuration = SignedDuration::from_hours(400 * 24);
/// Maximum number of pieces of a window.
const MAX_PIECES: usize = 20_000;

/// The keys below `[tariff]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TariffSettings {
    /// IANA time zone of local time, `Europe/Stockholm`; default is that of the system.
    #[serde(default)]
    pub time_zone: Option<String>,
    /// Periods with another price. The first matching one applies, else the base price.
    #[serde(default)]
    pub period: Vec<PeriodSettings>,
}

/// The keys below `[[tariff.period]]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeriodSettings {
    price: Amount,
    /// `mon` to `sun`; default is every day.
    #[serde(default)]
    days: Vec<String>,
    /// 1 to 12; default is every month.
    #[serde(default)]
    months: Vec<i8>,
    /// Start `07:00`; default is midnight.
    #[serde(default)]
    from: Option<String>,
    /// End `22:00`, exclusive; default is the end of the day. An end before the start is on the
    /// next day.
    #[serde(default)]
    to: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Period {
    price: Decimal,
    days: [bool; 7],
    months: [bool; 12],
    /// Minutes of the day.
    from: u16,
    to: u16,
}

/// Prices of energy over time.
#[derive(Clone, Debug)]
pub struct Tariff {
    base: Decimal,
    zone: TimeZone,
    periods: Vec<Period>,
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

impl Tariff {
    /// A constant price.
    #[must_use]
    pub fn flat(base: Decimal) -> Self {
        Self { base, zone: TimeZone::UTC, periods: Vec::new() }
    }

    /// A base price and the periods of the settings.
    ///
    /// # Errors
    /// If the time zone or a period is invalid.
    pub fn new(base: Decimal, settings: &TariffSettings) -> Result<Self, String> {
        let zone = match &settings.time_zone {
            None => TimeZone::system(),
            Some(name) => {
                let example = "expected for example Europe/Stockholm";
                TimeZone::get(name).map_err(|error| format!("time_zone {name:?}: {error}; {example}"))?
            }
        };
        let periods = settings.period.iter().enumerate();
        let periods =
            periods.map(|(index, period)| period.check().map_err(|error| format!("period {}: {error}", index + 1)));
        Ok(Self { base, zone, periods: periods.collect::<Result<_, _>>()? })
    }

    /// The time zone of local time.
    #[must_use]
    pub fn time_zone(&self) -> &TimeZone {
        &self.zone
    }

    /// True if the price changes over time.
    #[must_use]
    pub fn is_timed(&self) -> bool {
        !self.periods.is_empty()
    }

    /// The price of a kilowatt hour at a time.
    #[must_use]
    pub fn at(&self, moment: Timestamp) -> Decimal {
        let local = moment.to_zoned(self.zone.clone());
        self.periods.iter().find(|period| period.contains(&local)).map_or(self.base, |period| period.price)
    }

    /// Splits a window into pieces of constant price: length in nanoseconds, and price. `None` if
    /// the window is too long.
    #[must_use]
    pub fn split(&self, start: Timestamp, end: Timestamp) -> Option<Vec<(i64, Decimal)>> {
        if end.duration_since(start) > MAX_WINDOW {
            return None;
        }
        let mut pieces: Vec<(i64, Decimal)> = Vec::new();
        let mut moment = start;
        while moment < end {
            if pieces.len() >= MAX_PIECES {
                return None;
            }
            let next = self.next_change(moment).map_or(end, |next| next.min(end));
            let length = i64::try_from(next.duration_since(moment).as_nanos()).ok()?;
            pieces.push((length, self.at(moment)));
            moment = next;
        }
        Some(pieces)
    }

    /// The mean price over a window, weighted by time, which assumes constant power. `None` if the
    /// window is too long.
    #[must_use]
    pub fn mean(&self, start: Timestamp, end: Timestamp) -> Option<Decimal> {
        if self.periods.is_empty() || end <= start {
            return Some(self.at(start));
        }
        let (mut sum, mut length) = (Decimal::ZERO, Decimal::ZERO);
        for (nanoseconds, price) in self.split(start, end)? {
            let piece = Decimal::from(nanoseconds);
            sum = sum.checked_add(piece.checked_mul(price)?)?;
            length += piece;
        }
        sum.checked_div(length)
    }

    /// The next time at which the price may change: an edge of a period, midnight, or a clock
    /// change.
    fn next_change(&self, moment: Timestamp) -> Option<Timestamp> {
        if self.periods.is_empty() {
            return None;
        }
        let local = moment.to_zoned(self.zone.clone());
        let mut edges: Vec<u16> = self.periods.iter().flat_map(|period| [period.from, period.to]).collect();
        edges.push(0);
        let mut next = self.zone.following(moment).next().map(|change| change.timestamp());
        for date in [local.date(), local.date().tomorrow().ok()?] {
            for edge in &edges {
                let Some(time) = time_of(*edge) else { continue };
                // In an hour that local time repeats, each edge occurs twice.
                let ambiguous = self.zone.to_ambiguous_zoned(date.to_datetime(time));
                for at in [ambiguous.clone().earlier(), ambiguous.later()].into_iter().flatten() {
                    let at = at.timestamp();
                    if at > moment && next.is_none_or(|next| at < next) {
                        next = Some(at);
                    }
                }
            }
        }
        // No day is longer than 26 hours.
        next.or_else(|| moment.checked_add(SignedDuration::from_hours(26)).ok())
    }
}

impl Period {
    fn contains(&self, local: &Zoned) -> bool {
        let minute =
            u16::try_from(local.hour()).unwrap_or_default() * 60 + u16::try_from(local.minute()).unwrap_or_default();
        let on = |date: jiff::civil::Date| {
            let day = usize::try_from(date.weekday().to_monday_zero_offset()).unwrap_or_default();
            let month = usize::try_from(date.month() - 1).unwrap_or_default();
            self.days[day] && self.months[month]
        };
        let today = on(local.date());
        if self.from < self.to {
            return today && (self.from..self.to).contains(&minute);
        }
        // The period spans midnight; its part in the morning belongs to the day before.
        (today && minute >= self.from) || (minute < self.to && local.date().yesterday().is_ok_and(on))
    }
}

impl PeriodSettings {
    fn check(&self) -> Result<Period, String> {
        let mut days = [self.days.is_empty(); 7];
        for day in &self.days {
            let word = day.to_lowercase();
            let at = DAYS.iter().position(|known| *known == word);
            days[at.ok_or_else(|| format!("day {day:?}; expected mon, tue, wed, thu, fri, sat or sun"))?] = true;
        }
        let mut months = [self.months.is_empty(); 12];
        for month in &self.months {
            let at = usize::try_from(*month).ok().filter(|month| (1..=12).contains(month));
            months[at.ok_or_else(|| format!("month {month}; expected 1 to 12"))? - 1] = true;
        }
        let from = self.from.as_deref().map_or(Ok(0), minutes)?;
        let to = self.to.as_deref().map_or(Ok(24 * 60), minutes)?;
        if from == to {
            return Err("from and to are the same time; omit both for the whole day".to_owned());
        }
        Ok(Period { price: self.price.0, days, months, from, to })
    }
}

fn minutes(text: &str) -> Result<u16, String> {
    let invalid = || format!("time {text:?}; expected for example 07:00");
    let (hour, minute) = text.split_once(':').ok_or_else(invalid)?;
    let (hour, minute): (u16, u16) = (hour.parse().map_err(|_| invalid())?, minute.parse().map_err(|_| invalid())?);
    if hour > 24 || minute > 59 || (hour == 24 && minute > 0) {
        return Err(invalid());
    }
    Ok(hour * 60 + minute)
}

/// The time of a minute of the day; 24:00 is midnight.
fn time_of(minute: u16) -> Option<Time> {
    let minute = minute % (24 * 60);
    Time::new(i8::try_from(minute / 60).ok()?, i8::try_from(minute % 60).ok()?, 0, 0).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stockholm(text: &str) -> Tariff {
        let settings: TariffSettings = toml::from_str(&format!("time_zone = \"Europe/Stockholm\"\n{text}")).unwrap();
        Tariff::new(Decimal::new(1, 1), &settings).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    const DAY: &str = "[[period]]\nprice = 0.30\ndays = [\"mon\", \"tue\", \"wed\", \"thu\", \"fri\"]\nfrom = \"07:00\"\nto = \"22:00\"";

    fn pieces(tariff: &Tariff, start: &str, end: &str) -> Vec<(i64, String)> {
        let pieces = tariff.split(at(start), at(end)).unwrap();
        pieces.into_iter().map(|(ns, price)| (ns / 1_000_000_000, price.to_string())).collect()
    }

    #[test]
    fn window_is_split_where_the_price_changes() {
        let tariff = stockholm(DAY);
        // 2026-11-20 is a Friday; Stockholm is an hour ahead of UTC then.
        let shown = pieces(&tariff, "2026-11-20T20:30:00Z", "2026-11-20T21:30:00Z");
        assert_eq!(shown, [(1800, "0.3".to_owned()), (1800, "0.1".to_owned())]);
        assert_eq!(tariff.mean(at("2026-11-20T20:30:00Z"), at("2026-11-20T21:30:00Z")).unwrap().to_string(), "0.2");
        assert_eq!(tariff.at(at("2026-11-21T12:00:00Z")).to_string(), "0.1", "a Saturday");
    }

    #[test]
    fn periods_follow_local_time_on_days_of_clock_changes() {
        let tariff = stockholm(DAY.replace("\"mon\", \"tue\", \"wed\", \"thu\", \"fri\"", "\"sun\"").as_str());
        let hours = |start: &str, end: &str| {
            let sum = |price: &str| {
                pieces(&tariff, start, end).iter().filter(|piece| piece.1 == price).map(|piece| piece.0).sum::<i64>()
            };
            (sum("0.3") / 3600, sum("0.1") / 3600)
        };
        // 2026-03-29: from 02:00 to 03:00; 2026-10-25: from 03:00 back to 02:00. Both are Sundays.
        assert_eq!(hours("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"), (15, 8));
        assert_eq!(hours("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"), (15, 10));
        // A period in the repeated hour applies twice.
        let night = stockholm("[[period]]\nprice = 0.30\nfrom = \"02:00\"\nto = \"02:30\"");
        let paid: i64 = pieces(&night, "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z")
            .iter()
            .filter(|p| p.1 == "0.3")
            .map(|p| p.0)
            .sum();
        assert_eq!(paid, 3600);
    }

    #[test]
    fn periods_follow_local_time_half_an_hour_off() {
        for (zone, seven) in [
            ("Asia/Kolkata", "2026-11-20T01:30:00Z"),
            ("Asia/Kathmandu", "2026-11-20T01:15:00Z"),
            ("Australia/Adelaide", "2026-11-19T20:30:00Z"),
        ] {
            let settings: TariffSettings = toml::from_str(&format!("time_zone = \"{zone}\"\n{DAY}")).unwrap();
            let tariff = Tariff::new(Decimal::new(1, 1), &settings).unwrap();
            let (start, hour) = (at(seven), SignedDuration::from_hours(1));
            let before = start.checked_sub(hour).unwrap();
            let pieces = tariff.split(before, start.checked_add(hour).unwrap()).unwrap();
            let lengths: Vec<i64> = pieces.iter().map(|piece| piece.0 / 1_000_000_000).collect();
            assert_eq!(lengths, [3600, 3600], "{zone}: the price changes at seven");
        }
    }

    #[test]
    fn period_over_midnight_belongs_to_its_first_day() {
        let tariff = stockholm("[[period]]\nprice = 0.05\ndays = [\"fri\"]\nfrom = \"22:00\"\nto = \"06:00\"");
        for (moment, price) in [
            ("2026-11-20T20:59:59Z", "0.1"),
            ("2026-11-20T21:00:00Z", "0.05"),
            ("2026-11-21T04:59:59Z", "0.05"),
            ("2026-11-21T05:00:00Z", "0.1"),
            ("2026-11-20T04:00:00Z", "0.1"),
        ] {
            assert_eq!(tariff.at(at(moment)).to_string(), price, "{moment}");
        }
    }

    #[test]
    fn invalid_setting_is_named() {
        for (text, word) in [
            ("[[period]]\nprice = 1\ndays = [\"monday\"]", "monday"),
            ("[[period]]\nprice = 1\nfrom = \"7\"", "07:00"),
            ("[[period]]\nprice = 1\nmonths = [13]", "1 to 12"),
            ("[[period]]\nprice = 1\nfrom = \"07:00\"\nto = \"07:00\"", "same time"),
            ("time_zone = \"Mars/Base\"", "Mars/Base"),
        ] {
            let settings: TariffSettings = toml::from_str(text).unwrap();
            let error = Tariff::new(Decimal::ONE, &settings).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    proptest! {
        /// The pieces fill the window, and the price is constant within each.
        #[test]
        fn pieces_fill_the_window(start in 1_700_000_000i64..1_800_000_000, long in 1i64..400_000, inside in 0.0f64..1.0) {
            let tariff = stockholm(&format!("{DAY}\n[[period]]\nprice = 0.05\nfrom = \"22:30\"\nto = \"02:30\""));
            let from = Timestamp::from_second(start).unwrap();
            let to = Timestamp::from_second(start + long).unwrap();
            let pieces = tariff.split(from, to).unwrap();
            prop_assert_eq!(pieces.iter().map(|piece| piece.0).sum::<i64>(), long * 1_000_000_000);
            let mut moment = from;
            for (ns, price) in pieces {
                #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
                let within = moment.checked_add(SignedDuration::from_nanos((ns as f64 * inside * 0.999_999) as i64)).unwrap();
                prop_assert_eq!(tariff.at(within), price, "{}", within);
                moment = moment.checked_add(SignedDuration::from_nanos(ns)).unwrap();
            }
        }
    }
}
