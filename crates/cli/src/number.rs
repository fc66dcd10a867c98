//! Numbers for people. Tables and reports use these functions, so that a value has the same digits
//! everywhere; JSON has all digits.
//!
//! A value has three significant digits, or those that its uncertainty leaves. No number has an
//! exponent, none is a negative zero, and a positive value is never shown as zero.

use std::ops::RangeInclusive;

/// Smallest size that is shown with its digits.
const SMALLEST: f64 = 1e-4;
/// Sizes from here on are not shown with their digits.
const LARGEST: f64 = 1e15;
/// Digits of a value without an uncertainty.
const DIGITS: i32 = 3;
/// Most digits of a value whose uncertainty would leave more.
const MOST_DIGITS: i32 = 6;
/// An uncertainty below this part of its value is rounding.
const ROUNDING: f64 = 1e-9;

/// Prefixes of units with their factors, the largest first.
const PREFIXES: [(f64, &str); 8] =
    [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")];

/// A number with three significant digits, or all digits before the decimal point if there are
/// more.
///
/// ```
/// use cli::number::short;
///
/// assert_eq!(short(87.087_425_98), "87.1");
/// assert_eq!(short(345_800.4), "345,800");
/// ```
#[must_use]
pub fn short(value: f64) -> String {
    if let Some(text) = without_digits(value) {
        return text;
    }
    let text = rounded(value, (exponent(value) - DIGITS + 1).min(0));
    // A zero after the decimal point says nothing that the other digits do not.
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A quality score, which has two decimals in every tool: `87.09`.
#[must_use]
pub fn score(value: f64) -> String {
    if value.is_finite() && value.abs() < LARGEST { rounded(value, -2) } else { short(value) }
}

/// A mean with half the width of its interval, `20.754 ± 0.021`: two digits of the width, and the
/// mean with the same decimals. Without a width, or with one that is zero, the mean alone.
///
/// ```
/// use cli::number::with_half_width;
///
/// assert_eq!(with_half_width(345_812.3, Some(1234.0)), "345,800 ± 1200");
/// ```
#[must_use]
pub fn with_half_width(mean: f64, half_width: Option<f64>) -> String {
    let Some(half) = half_width.filter(|half| half.is_finite() && *half > ROUNDING * mean.abs()) else {
        return short(mean);
    };
    if half >= LARGEST || mean.abs() >= LARGEST || !mean.is_finite() || half.max(mean.abs()) < SMALLEST {
        return format!("{} ± {}", short(mean), short(half));
    }
    let place = last_place(mean, half);
    let half = if half < 0.5 * 10_f64.powi(place) {
        format!("< {}", rounded(10_f64.powi(place), place))
    } else {
        rounded(half, place)
    };
    format!("{} ± {half}", rounded(mean, place))
}

/// A mean [`score`] with half the width of its interval, if it has one that is not zero.
#[must_use]
pub fn score_with_half_width(mean: f64, half_width: Option<f64>) -> String {
    match half_width.filter(|half| half.is_finite() && *half > ROUNDING * mean.abs()) {
        Some(half) => with_half_width(mean, Some(half)),
        None => score(mean),
    }
}

/// The ends of an interval around a value and the value, with the digits that its width leaves:
/// `("4.6", "4.1–5.2")`.
#[must_use]
pub fn with_bounds(value: f64, bounds: &RangeInclusive<f64>) -> (String, String) {
    let (low, high) = (*bounds.start(), *bounds.end());
    let width = high - low;
    let is_shown = [low, value, high].iter().all(|value| value.is_finite() && value.abs() < LARGEST);
    if !is_shown || width <= ROUNDING * value.abs() || width.max(value.abs()) < SMALLEST {
        return (short(value), format!("{}–{}", short(low), short(high)));
    }
    let place = last_place(value, width);
    (rounded(value, place), format!("{}–{}", rounded(low, place), rounded(high, place)))
}

/// A value with its unit, and a prefix by its size: `12.3 W`, `850 mW`, `1.39 kJ`.
///
/// ```
/// use cli::number::with_unit;
///
/// assert_eq!(with_unit(0.012_345, "J/frame"), "12.3 mJ/frame");
/// ```
#[must_use]
pub fn with_unit(value: f64, unit: &str) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{} {unit}", short(value));
    }
    let Some((factor, prefix)) = prefix(value.abs()) else { return format!("< 1 n{unit}") };
    let scaled = value / factor;
    format!("{} {prefix}{unit}", without_digits(scaled).unwrap_or_else(|| significant(scaled)))
}

/// A value with half the width of its interval and its unit, `1.39 ± 0.02 kJ`, with a prefix by the
/// larger of both.
#[must_use]
pub fn with_unit_and_half_width(value: f64, half_width: Option<f64>, unit: &str) -> String {
    let half = half_width.filter(|half| half.is_finite() && *half > ROUNDING * value.abs());
    let Some(half) = half else { return with_unit(value, unit) };
    let Some((factor, prefix)) = prefix(value.abs().max(half)) else { return format!("< 1 n{unit}") };
    format!("{} {prefix}{unit}", with_half_width(value / factor, Some(half / factor)))
}

/// An amount of money with its currency: two decimals from 1 on, else three significant digits.
///
/// ```
/// use cli::number::money;
///
/// assert_eq!(money(0.000_000_4, "EUR"), "< 0.0001 EUR");
/// assert_eq!(money(1234.5, "EUR"), "1234.50 EUR");
/// ```
#[must_use]
pub fn money(amount: f64, currency: &str) -> String {
    let has_digits = without_digits(amount).is_none();
    let text = if has_digits && amount.abs() >= 1.0 { rounded(amount, -2) } else { short(amount) };
    format!("{text} {currency}")
}

/// The factor and the words of a price column, whose largest amount this is: the cost of one hour,
/// or of a thousand where that of one has too many zeros.
#[must_use]
pub fn per_stream_hours(largest: f64) -> (f64, &'static str) {
    if largest < 0.1 { (1000.0, "1000 stream hours") } else { (1.0, "stream hour") }
}

/// A bit rate in the unit that leaves one to four digits before the decimal point.
#[must_use]
pub fn bit_rate(bits_per_second: f64) -> String {
    let (factor, unit) = bit_rate_unit(bits_per_second);
    format!("{} {unit}", short(bits_per_second / factor))
}

/// As [`bit_rate`], with half the width of the interval.
#[must_use]
pub fn bit_rate_with_half_width(bits_per_second: f64, half_width: Option<f64>) -> String {
    let (factor, unit) = bit_rate_unit(bits_per_second);
    format!("{} {unit}", with_half_width(bits_per_second / factor, half_width.map(|half| half / factor)))
}

fn bit_rate_unit(bits_per_second: f64) -> (f64, &'static str) {
    match bits_per_second.abs() {
        size if size >= 1e7 => (1e6, "Mbit/s"),
        size if size >= 1e3 => (1e3, "kbit/s"),
        _ => (1.0, "bit/s"),
    }
}

/// A count of bytes with a decimal prefix: `34.5 kB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let count = count as f64;
    if count < 1000.0 { format!("{count} B") } else { with_unit(count, "B") }
}

/// A difference with its sign and so many decimals; without a sign if it is rounded to zero.
///
/// ```
/// use cli::number::signed;
///
/// assert_eq!([signed(1.234, 2), signed(-1.236, 2)], ["+1.23", "-1.24"]);
/// assert_eq!(signed(-0.001, 2), "0.00");
/// ```
#[must_use]
pub fn signed(difference: f64, decimals: u8) -> String {
    if !difference.is_finite() || difference.abs() >= LARGEST {
        return short(difference);
    }
    let text = rounded(difference, -i32::from(decimals));
    let is_zero = !text.contains(|c: char| c.is_ascii_digit() && c != '0');
    if is_zero || text.starts_with('-') { text } else { format!("+{text}") }
}

/// A value of an axis with the decimals of the axis's step.
#[must_use]
pub fn on_axis(value: f64, step: f64) -> String {
    if !value.is_finite() || step <= 0.0 || !step.is_finite() || value.abs() >= LARGEST {
        return short(value);
    }
    #[expect(clippy::cast_possible_truncation, reason = "a decimal exponent of a double is at most 308")]
    let place = (step.log10() + 1e-9).floor() as i32;
    rounded(value, place.min(0))
}

/// The text of values that are not shown with their digits.
fn without_digits(value: f64) -> Option<String> {
    let (size, sign) = (value.abs(), if value < 0.0 { "-" } else { "" });
    match size {
        _ if !value.is_finite() => Some(if value.is_nan() { "–".to_owned() } else { format!("{sign}∞") }),
        0.0 => Some("0".to_owned()),
        size if size >= LARGEST => Some(format!("{} {sign}999,999,999,999,999", if value < 0.0 { "<" } else { ">" })),
        size if size < SMALLEST => Some(format!("{} {sign}0.0001", if value < 0.0 { ">" } else { "<" })),
        _ => None,
    }
}

/// Three significant digits, also where they are zeros.
fn significant(value: f64) -> String {
    rounded(value, (exponent(value) - DIGITS + 1).min(0))
}

/// The factor and the letter of the largest prefix with which a size is at least one after
/// rounding; `None` below a billionth.
#[must_use]
pub fn prefix(size: f64) -> Option<(f64, &'static str)> {
    PREFIXES.iter().find(|(factor, _)| size >= 0.9995 * factor).copied()
}

/// The decimal exponent of the first digit of a finite value after rounding to [`DIGITS`]; 0 for 0.
fn exponent(value: f64) -> i32 {
    let size = value.abs();
    if size == 0.0 {
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "a decimal exponent of a double is at most 308")]
    let exponent = size.log10().floor() as i32;
    // 9.996 is rounded to 10.0, which has one digit more before the decimal point.
    if size >= (1.0 - 0.5 * 10_f64.powi(-DIGITS)) * 10_f64.powi(exponent + 1) { exponent + 1 } else { exponent }
}

/// The decimal exponent of the last digit that is shown of a value: the second digit of its
/// uncertainty, at most [`MOST_DIGITS`] digits, and at least one before the decimal point.
fn last_place(value: f64, uncertainty: f64) -> i32 {
    #[expect(clippy::cast_possible_truncation, reason = "a decimal exponent of a double is at most 308")]
    let second = uncertainty.log10().floor() as i32 - 1;
    if value == 0.0 {
        return second.min(0);
    }
    let first = exponent(value);
    second.min(first.max(0)).max(first - MOST_DIGITS + 1)
}

/// The value rounded to a power of ten, without the sign of a negative zero, and with commas
/// between thousands from 10,000 on.
fn rounded(value: f64, place: i32) -> String {
    let decimals = usize::try_from(-place).unwrap_or_default();
    let value = if place > 0 { (value / 10_f64.powi(place)).round() * 10_f64.powi(place) } else { value };
    let text = format!("{value:.decimals$}");
    let is_zero = !text.contains(|c: char| c.is_ascii_digit() && c != '0');
    let digits = text.trim_start_matches('-');
    let sign = if text.starts_with('-') && !is_zero { "-" } else { "" };
    let (whole, fraction) = digits.split_once('.').map_or((digits, None), |(whole, part)| (whole, Some(part)));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && whole.len() > 4 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let fraction = fraction.map_or_else(String::new, |fraction| format!(".{fraction}"));
    format!("{sign}{grouped}{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_no_exponent() {
        for (value, text) in [
            (87.087_425_980_000_02, "87.1"),
            (345_800.0, "345,800"),
            (1.385, "1.39"),
            (0.000_694_4, "0.000694"),
            (9.996, "10"),
            (100.0, "100"),
            (1500.4, "1500"),
            (0.0, "0"),
            (-0.0, "0"),
            (-12.345_6, "-12.3"),
            (1e12, "1,000,000,000,000"),
            (1e300, "> 999,999,999,999,999"),
            (3e-7, "< 0.0001"),
            (-3e-7, "> -0.0001"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(short(value), text);
        }
        assert_eq!([score(87.087_425_980_000_02), score(93.0), score(-0.001)], ["87.09", "93.00", "0.00"]);
        let scores = [None, Some(0.0), Some(0.5)].map(|half| score_with_half_width(87.087_425_98, half));
        assert_eq!(scores, ["87.09", "87.09", "87.09 ± 0.50"]);
    }

    #[test]
    fn a_mean_has_the_decimals_of_its_interval() {
        for (mean, half, text) in [
            (20.754_12, Some(0.021), "20.754 ± 0.021"),
            (345_812.3, Some(1234.0), "345,800 ± 1200"),
            (59.366, Some(2.162e-14), "59.4"),
            (1.385, Some(0.0), "1.39"),
            (1.385, None, "1.39"),
            (3.0, Some(f64::INFINITY), "3"),
            (0.0, Some(0.5), "0.00 ± 0.50"),
            (-0.001, Some(0.5), "0.00 ± 0.50"),
            (1.385, Some(4e-8), "1.38500 ± < 0.00001"),
            (3.0, Some(2e12), "3 ± 2,000,000,000,000"),
            (2e-6, Some(1e-6), "< 0.0001 ± < 0.0001"),
        ] {
            assert_eq!(with_half_width(mean, half), text);
        }
    }

    #[test]
    fn ends_of_an_interval_have_the_digits_of_its_width() {
        let text = |value: f64, low: f64, high: f64| with_bounds(value, &(low..=high));
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(text(4.63, 4.12, 5.21), pair("4.6", "4.1–5.2"));
        assert_eq!(text(1.0214, 0.987, 1.0537), pair("1.021", "0.987–1.054"));
        assert_eq!(text(2.0, 2.0, 2.0), pair("2", "2–2"));
    }

    #[test]
    fn values_have_a_prefix_by_their_size() {
        for (value, text) in [
            (12.34, "12.3 W"),
            (0.85, "850 mW"),
            (0.999_6, "1.00 W"),
            (999.6, "1.00 kW"),
            (1390.0, "1.39 kW"),
            (4e-6, "4.00 µW"),
            (0.0, "0 W"),
            (-0.0, "0 W"),
            (1e-12, "< 1 nW"),
            (2e18, "2,000,000 TW"),
        ] {
            assert_eq!(with_unit(value, "W"), text);
        }
        assert_eq!(with_unit_and_half_width(1391.3, Some(21.0), "J"), "1.391 ± 0.021 kJ");
        assert_eq!(with_unit_and_half_width(0.0, Some(0.0123), "J"), "0 ± 12 mJ");
        assert_eq!(with_unit_and_half_width(1e-10, Some(1.1), "J"), "0.0 ± 1.1 J");
        assert_eq!(with_unit_and_half_width(5.0, None, "J"), "5.00 J");
    }

    #[test]
    fn an_axis_has_the_decimals_of_its_step() {
        for (value, step, text) in [
            (99.95, 0.05, "99.95"),
            (100.0, 0.05, "100.00"),
            (20_000.0, 5000.0, "20,000"),
            (-0.0, 0.2, "0.0"),
            (0.3, 0.1, "0.3"),
        ] {
            assert_eq!(on_axis(value, step), text);
        }
    }

    #[test]
    fn small_amounts_of_money_are_not_zero() {
        for (amount, text) in [(0.0, "0 EUR"), (4e-7, "< 0.0001 EUR"), (0.012_34, "0.0123 EUR"), (12.346, "12.35 EUR")]
        {
            assert_eq!(money(amount, "EUR"), text);
        }
        assert_eq!(per_stream_hours(0.01), (1000.0, "1000 stream hours"));
    }

    #[test]
    fn bit_rates_have_a_readable_unit() {
        for (rate, text) in [(345_800.0, "346 kbit/s"), (24e6, "24 Mbit/s"), (4e6, "4000 kbit/s"), (12.0, "12 bit/s")] {
            assert_eq!(bit_rate(rate), text);
        }
        assert_eq!(bit_rate_with_half_width(345_800.0, Some(900.0)), "345.80 ± 0.90 kbit/s");
        assert_eq!((bytes(12), bytes(34_512)), ("12 B".to_owned(), "34.5 kB".to_owned()));
    }

    /// Every size of a value with every size of its uncertainty.
    #[test]
    fn no_number_has_an_exponent_a_negative_zero_or_too_many_digits() {
        for mean_exponent in -20..20 {
            for half_exponent in -24..20 {
                let (mean, half) = (-1.234_567 * 10_f64.powi(mean_exponent), 3.3 * 10_f64.powi(half_exponent));
                for text in [with_half_width(mean, Some(half)), with_unit_and_half_width(mean, Some(half), "J")] {
                    assert!(!text.contains(['e', 'E']), "{mean} {half}: {text}");
                    assert!(!text.starts_with("-0 ") && !text.starts_with("-0.0 "), "{mean} {half}: {text}");
                    let digits = text.split('±').next().unwrap_or_default();
                    let decimals = digits.split_once('.').map_or(0, |(_, part)| part.trim().len());
                    assert!(decimals <= 9, "{mean} {half}: {text}");
                }
            }
        }
    }
}
