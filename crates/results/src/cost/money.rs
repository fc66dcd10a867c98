//! Exact amounts of money, and dated exchange rates. Amounts are decimals with 28 digits; only
//! exported metrics are doubles.

pub use cli::program::currency;
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer};

/// The nearest double of an amount, for output.
#[must_use]
pub fn float(amount: Decimal) -> f64 {
    // The conversion through text rounds once and correctly.
    amount.to_string().parse().unwrap_or(f64::NAN)
}

/// Parses a price, a rate or a factor, from 0 to 1000000.
///
/// # Errors
/// If `text` is not a number in that range.
pub fn decimal(text: &str) -> Result<Decimal, String> {
    let text = text.trim();
    let number = Decimal::from_str_exact(text).or_else(|_| Decimal::from_scientific(text));
    let number = number.map_err(|_| format!("{text:?} is not a number; expected for example 0.12"))?;
    if number.is_sign_negative() || number > Decimal::from(1_000_000) {
        return Err(format!("{text} is out of range; expected 0 to 1000000"));
    }
    Ok(number.normalize())
}

/// A decimal in a configuration file, written as a number or as text, without rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount(pub Decimal);

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Text(String),
            Whole(i64),
            // Its shortest text is what was written in the file.
            Float(f64),
        }
        let text = match Raw::deserialize(from)? {
            Raw::Text(text) => text,
            Raw::Whole(number) => number.to_string(),
            Raw::Float(number) => number.to_string(),
        };
        decimal(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A dated exchange rate.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Source currency.
    #[serde(deserialize_with = "code")]
    pub from: String,
    /// Target currency.
    #[serde(deserialize_with = "code")]
    pub to: String,
    /// Units of the target currency per unit of the source currency.
    pub rate: Amount,
    /// The day of the rate, `2026-11-20`.
    pub date: Date,
}

fn code<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    currency(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

impl Rate {
    /// Seconds since the start of the rate's day in UTC.
    #[must_use]
    pub fn age_seconds(&self, now: Timestamp) -> f64 {
        let since = self.date.to_zoned(TimeZone::UTC).map(|day| day.timestamp().as_second());
        since.map_or(f64::NAN, |since| {
            std::time::Duration::from_secs(u64::try_from(now.as_second() - since).unwrap_or_default()).as_secs_f64()
        })
    }
}

/// The configured exchange rates.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates(pub Vec<Rate>);

impl Rates {
    /// Converts an amount with the newest rate between the two currencies, in either direction. A
    /// third currency is never used, because the result would depend on two dates.
    #[must_use]
    pub fn convert(&self, amount: Decimal, from: &str, to: &str) -> Option<Decimal> {
        if from == to {
            return Some(amount);
        }
        let rate = self.between(from, to)?;
        if rate.from == from { amount.checked_mul(rate.rate.0) } else { amount.checked_div(rate.rate.0) }
    }

    /// The newest rate between two currencies, in either direction.
    #[must_use]
    pub fn between(&self, from: &str, to: &str) -> Option<&Rate> {
        let is_between = |rate: &&Rate| (rate.from == from && rate.to == to) || (rate.from == to && rate.to == from);
        self.0.iter().filter(is_between).max_by_key(|rate| rate.date)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_parsed_without_rounding() {
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
    fn conversion_uses_the_newest_direct_rate() {
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
    fn float_is_the_nearest_double() {
        let third = Decimal::ONE / Decimal::from(3);
        assert_eq!((float(third), float(Decimal::new(6925, 8))), (1.0 / 3.0, 6.925e-5));
    }
}
