//! Amounts of money, exactly: decimals of 28 digits up to the page, where a metric is the nearest double. And what one currency is worth in another, with the
//! day on which somebody said so.

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer};

/// The nearest double.
#[must_use]
pub fn float(amount: Decimal) -> f64 {
    // Through text: rounded once, and correctly, by the standard library.
    amount.to_string().parse().unwrap_or(f64::NAN)
}

/// What somebody wrote as a price, a rate, a factor: 0 to a million.
///
/// # Errors
/// What is wrong with it.
pub fn decimal(text: &str) -> Result<Decimal, String> {
    let text = text.trim();
    let number = Decimal::from_str_exact(text).or_else(|_| Decimal::from_scientific(text));
    let number = number.map_err(|_| format!("{text:?} is no number; write 0.12"))?;
    if number.is_sign_negative() || number > Decimal::from(1_000_000) {
        return Err(format!("{text}: 0 to 1000000"));
    }
    Ok(number.normalize())
}

/// A number or text in a configuration file, taken as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount(pub Decimal);

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Text(String),
            Whole(i64),
            // The shortest text that gives the double again, which is what was written.
            Float(f64),
        }
        let text = match Written::deserialize(from)? {
            Written::Text(text) => text,
            Written::Whole(number) => number.to_string(),
            Written::Float(number) => number.to_string(),
        };
        decimal(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A currency by its three letters (ISO 4217).
///
/// # Errors
/// When it is something else.
pub fn currency(text: &str) -> Result<String, String> {
    let code = text.trim().to_ascii_uppercase();
    if code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_uppercase()) {
        Ok(code)
    } else {
        Err(format!("{text:?} is no currency; write three letters of ISO 4217: EUR"))
    }
}

/// What one unit of a currency is worth in another, as of a day.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// One of these …
    #[serde(deserialize_with = "code")]
    pub from: String,
    /// … is so many of those.
    #[serde(deserialize_with = "code")]
    pub to: String,
    /// How many.
    pub rate: Amount,
    /// When that was so, `2026-11-20`.
    pub date: Date,
}

fn code<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    currency(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

impl Rate {
    /// Seconds since that day began in UTC.
    #[must_use]
    pub fn age_seconds(&self, now: Timestamp) -> f64 {
        let since = self.date.to_zoned(TimeZone::UTC).map(|day| day.timestamp().as_second());
        since.map_or(f64::NAN, |since| {
            // Seconds of centuries fit into 32 bits and some.
            std::time::Duration::from_secs(u64::try_from(now.as_second() - since).unwrap_or_default()).as_secs_f64()
        })
    }
}

/// The rates that are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates(pub Vec<Rate>);

impl Rates {
    /// An amount in another currency; by the newest rate between the two, either way. Never over a third currency: two dates would hide in one figure.
    #[must_use]
    pub fn convert(&self, amount: Decimal, from: &str, to: &str) -> Option<Decimal> {
        if from == to {
            return Some(amount);
        }
        let rate = self.between(from, to)?;
        if rate.from == from { amount.checked_mul(rate.rate.0) } else { amount.checked_div(rate.rate.0) }
    }

    /// The newest rate between two currencies.
    #[must_use]
    pub fn between(&self, from: &str, to: &str) -> Option<&Rate> {
        let fits = |rate: &&Rate| (rate.from == from && rate.to == to) || (rate.from == to && rate.to == from);
        self.0.iter().filter(fits).max_by_key(|rate| rate.date)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_what_is_meant() {
        #[derive(Deserialize)]
        struct File {
            a: Amount,
            b: Amount,
            c: Amount,
        }
        let file: File = toml::from_str("a = 0.1\nb = \"0.30\"\nc = 2").unwrap();
        assert_eq!((file.a.0 + file.b.0 + file.c.0).to_string(), "2.4");
        for wrong in ["", "cheap", "-1", "1e7", "nan", "0,12"] {
            assert!(decimal(wrong).is_err(), "{wrong}");
        }
        assert_eq!(decimal("1e-3").unwrap(), Decimal::new(1, 3));
        assert_eq!((currency(" eur").unwrap().as_str(), currency("€").is_err()), ("EUR", true));
    }

    #[test]
    fn money_is_changed_by_the_newest_rate_and_over_no_third_currency() {
        let rate = |from: &str, to: &str, rate: &str, date: &str| Rate {
            from: from.into(),
            to: to.into(),
            rate: Amount(decimal(rate).unwrap()),
            date: date.parse().unwrap(),
        };
        let rates = Rates(vec![
            rate("USD", "EUR", "0.80", "2026-01-01"),
            rate("USD", "EUR", "0.92", "2026-11-20"),
            rate("EUR", "SEK", "11", "2026-11-20"),
        ]);
        let convert =
            |from, to| rates.convert(Decimal::from(10), from, to).map(|amount| amount.normalize().to_string());
        assert_eq!((convert("USD", "EUR").as_deref(), convert("USD", "USD").as_deref()), (Some("9.2"), Some("10")));
        assert_eq!(convert("SEK", "EUR").unwrap(), "0.9090909090909090909090909091");
        assert_eq!(convert("USD", "SEK"), None);
        let noon: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        assert_eq!(rates.0[1].age_seconds(noon), 36.0 * 3600.0);
    }

    #[test]
    fn a_page_gets_the_nearest_double() {
        let third = Decimal::ONE / Decimal::from(3);
        assert_eq!((float(third), float(Decimal::new(6925, 8))), (1.0 / 3.0, 6.925e-5));
    }
}
