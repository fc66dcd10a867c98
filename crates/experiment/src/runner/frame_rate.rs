//! Frame rates as exact fractions: `30000/1001`, `29.97`, `25`.
//!
//! Plans, journals and result files hold a rate as a double, the nearest to its fraction. Nothing
//! is lost: two fractions within `LIMIT` differ by 1e-12 at least, and a double below 1000 is
//! within 6e-14 of its fraction, so the fraction can be found again ([`FrameRate::of`]).

use results::convert::float;
use serde::{Deserialize, Deserializer};

/// Largest numerator and denominator, those of ffmpeg (`av_parse_video_rate` in
/// libavutil/parseutils.c).
const LIMIT: u32 = 1_001_000;
/// Rates in frames per second that can be set.
const RANGE: std::ops::RangeInclusive<f64> = 1.0..=1000.0;

/// Frames per second as a reduced fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRate {
    numerator: u32,
    denominator: u32,
}

impl FrameRate {
    /// Parses a whole number, a decimal or a fraction.
    ///
    /// # Errors
    /// When the text is no rate of 1 to 1000, or one that ffmpeg would round.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is no frame rate; write 30, 29.97 or 30000/1001");
        let digits = |digits: &str| -> Option<u64> {
            (!digits.is_empty() && digits.len() <= 12 && digits.bytes().all(|byte| byte.is_ascii_digit()))
                .then(|| digits.parse().ok())?
        };
        let (numerator, denominator) = match (text.split_once('/'), text.split_once('.')) {
            (Some((above, below)), _) => digits(above).zip(digits(below)).ok_or_else(invalid)?,
            (None, Some((whole, part))) => {
                let places = u32::try_from(part.len()).unwrap_or(u32::MAX);
                let scale = 10_u64.checked_pow(places).filter(|_| places <= 6).ok_or_else(|| inexact(text))?;
                let (whole, part) = digits(whole).zip(digits(part)).ok_or_else(invalid)?;
                (whole.saturating_mul(scale).saturating_add(part), scale)
            }
            (None, None) => (digits(text).ok_or_else(invalid)?, 1),
        };
        let divisor = greatest_common_divisor(numerator, denominator);
        if denominator == 0 || divisor == 0 {
            return Err(invalid());
        }
        let [numerator, denominator] = [numerator, denominator].map(|part| u32::try_from(part / divisor));
        let (Ok(numerator), Ok(denominator)) = (numerator, denominator) else { return Err(inexact(text)) };
        let rate = Self { numerator, denominator };
        check_range(rate.value())?;
        if numerator > LIMIT || denominator > LIMIT { Err(inexact(text)) } else { Ok(rate) }
    }

    /// The fraction with this nearest double; the closest one of a double that is none. A value
    /// outside of 1 to 1000, which no plan contains, becomes 1.
    #[must_use]
    pub fn of(value: f64) -> Self {
        let value = if RANGE.contains(&value) { value } else { 1.0 };
        // A double is an integer times a power of two: here 2^-52 to 2^-43.
        let bits = value.to_bits();
        let (mantissa, exponent) = ((bits & ((1 << 52) - 1)) | (1 << 52), bits >> 52);
        let (mut above, mut below) = (mantissa, 1_u64 << (1075 - exponent));
        // The convergents of its continued fraction. That the fraction is one of them follows from
        // its distance of less than half the inverse square of its denominator (Legendre).
        let (mut before, mut last) = ((0_u64, 1_u64), (1_u64, 0_u64));
        while below > 0 {
            let next = |last: u64, before: u64| (above / below).saturating_mul(last).saturating_add(before);
            let convergent = (next(last.0, before.0), next(last.1, before.1));
            if convergent.0.max(convergent.1) > u64::from(LIMIT) {
                break;
            }
            (before, last) = (last, convergent);
            if float(last.0) / float(last.1) == value {
                break;
            }
            (above, below) = (below, above % below);
        }
        let [numerator, denominator] = [last.0, last.1].map(|part| u32::try_from(part).unwrap_or(LIMIT).max(1));
        Self { numerator, denominator }
    }

    /// The fraction of a double that has one.
    ///
    /// # Errors
    /// When it is not in the range, or ffmpeg would round it.
    pub fn exact(value: f64) -> Result<Self, String> {
        check_range(value)?;
        let rate = Self::of(value);
        if rate.value() == value { Ok(rate) } else { Err(inexact(&value.to_string())) }
    }

    /// The nearest double.
    #[must_use]
    pub fn value(self) -> f64 {
        f64::from(self.numerator) / f64::from(self.denominator)
    }

    /// The numerator of the fraction.
    #[must_use]
    pub fn numerator(self) -> u32 {
        self.numerator
    }

    /// The denominator of the fraction.
    #[must_use]
    pub fn denominator(self) -> u32 {
        self.denominator
    }

    /// The exact rate, as ffmpeg takes it: `25`, `29.97`, or a fraction if it has no decimal of six
    /// places.
    #[must_use]
    pub fn text(self) -> String {
        if 1_000_000_u32.is_multiple_of(self.denominator) {
            self.value().to_string()
        } else {
            format!("{}/{}", self.numerator, self.denominator)
        }
    }

    /// The number of frames in whole seconds, rounded; at least one.
    #[must_use]
    pub fn frames_in(self, seconds: u32) -> u64 {
        let (above, below) = (u64::from(self.numerator) * u64::from(seconds), u64::from(self.denominator));
        ((above + below / 2) / below).max(1)
    }
}

fn check_range(value: f64) -> Result<(), String> {
    if RANGE.contains(&value) { Ok(()) } else { Err(format!("{value} frames per second: must be 1 to 1000")) }
}

fn inexact(text: &str) -> String {
    format!(
        "{text} frames per second: ffmpeg would round it; write a fraction of integers up to {LIMIT}, like 30000/1001"
    )
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Parses a rate to its nearest double, for flags.
///
/// # Errors
/// Those of [`FrameRate::parse`].
pub fn parse(text: &str) -> Result<f64, String> {
    FrameRate::parse(text).map(FrameRate::value)
}

/// A rate in a file: a number, or a text for a fraction.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(f64),
    Text(String),
}

impl Written {
    fn value<E: serde::de::Error>(self) -> Result<f64, E> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Text(text) => parse(&text).map_err(E::custom),
        }
    }
}

/// Deserializes a list of rates.
///
/// # Errors
/// When one of them is neither a number nor a rate as text.
pub fn list<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f64>, D::Error> {
    Vec::<Written>::deserialize(from)?.into_iter().map(Written::value).collect()
}

/// Deserializes a rate that may be absent.
///
/// # Errors
/// When it is neither a number nor a rate as text.
pub fn optional<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    Option::<Written>::deserialize(from)?.map(Written::value).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_exact_fractions() {
        for (text, fraction, shown) in [
            ("30", (30, 1), "30"),
            ("30.0", (30, 1), "30"),
            ("29.97", (2997, 100), "29.97"),
            ("30000/1001", (30_000, 1001), "30000/1001"),
            ("60000/1001", (60_000, 1001), "60000/1001"),
            ("24000/1001", (24_000, 1001), "24000/1001"),
            ("50/2", (25, 1), "25"),
            ("12.5", (25, 2), "12.5"),
            ("1000/3", (1000, 3), "1000/3"),
            ("1000", (1000, 1), "1000"),
            ("1001000/1000999", (1_001_000, 1_000_999), "1001000/1000999"),
        ] {
            let rate = FrameRate::parse(text).unwrap();
            assert_eq!((rate.numerator, rate.denominator), fraction, "{text}");
            assert_eq!(rate.text(), shown, "{text}");
            assert_eq!(FrameRate::of(rate.value()), rate, "{text}: the double has the same fraction");
        }
    }

    #[test]
    fn every_fraction_is_found_in_its_double() {
        let mut random = fastrand::Rng::with_seed(26);
        for _ in 0..20_000 {
            let denominator = random.u32(1..=LIMIT);
            let numerator = random.u32(denominator..=LIMIT.min(denominator.saturating_mul(1000)));
            let text = format!("{numerator}/{denominator}");
            let rate = FrameRate::parse(&text).unwrap();
            assert_eq!(FrameRate::exact(rate.value()), Ok(rate), "{text}");
        }
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for (text, word) in [
            ("", "30000/1001"),
            ("fast", "30000/1001"),
            ("1/0", "30000/1001"),
            ("0/0", "30000/1001"),
            ("-30", "30000/1001"),
            ("30/", "30000/1001"),
            ("1e2", "30000/1001"),
            ("nan", "30000/1001"),
            ("0", "1 to 1000"),
            ("1001", "1 to 1000"),
            ("1/2", "1 to 1000"),
            ("29.97002997", "would round"),
            ("23.976024", "would round"),
            ("99999999999/99999999998", "would round"),
        ] {
            let error = FrameRate::parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(FrameRate::exact(29.970_029_97).unwrap_err().contains("would round"));
        assert_eq!(FrameRate::of(29.970_029_97).text(), "30000/1001", "as ffmpeg rounds it");
        assert_eq!(FrameRate::of(f64::NAN).text(), "1");
    }

    #[test]
    fn whole_groups_of_frames_are_counted() {
        let frames = |text: &str| FrameRate::parse(text).unwrap().frames_in(2);
        assert_eq!(["30000/1001", "29.97", "24000/1001", "25", "12.5", "1"].map(frames), [60, 60, 48, 50, 25, 2]);
    }
}
