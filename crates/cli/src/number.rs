//! Numbers for people. Tables and reports use these functions, so that a value has the same digits
//! everywhere; JSON has all digits.

/// Values from here on have an exponent: that many digits are not counted by eye.
const LONG: f64 = 1e9;

/// A number with four significant digits, or all digits before the decimal point if there are more.
///
/// ```
/// use cli::number::short;
///
/// assert_eq!(short(87.087_425_98), "87.09");
/// assert_eq!(short(345_800.4), "345800");
/// ```
#[must_use]
pub fn short(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        return "0".to_owned();
    }
    if !value.is_finite() || !(1e-4..LONG).contains(&size) {
        return format!("{value:.3e}");
    }
    let text = with_decimals(value, decimals(size, 4));
    // A zero after the decimal point says nothing that the other digits do not.
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A mean with half the width of its interval, `20.754 ± 0.021`: two digits of the width, and the
/// mean with the same decimals. Without a width, or with one that is zero, the mean alone.
#[must_use]
pub fn with_half_width(mean: f64, half_width: Option<f64>) -> String {
    match half_width.filter(|half| *half > 0.0) {
        Some(half) if half < LONG && mean.abs() < LONG && half > 1e-9 => {
            let decimals = decimals(half, 2);
            format!("{} ± {}", with_decimals(mean, decimals), with_decimals(half, decimals))
        }
        Some(half) if half.is_finite() && half > 1e-9 * mean.abs() => format!("{} ± {}", short(mean), short(half)),
        _ => short(mean),
    }
}

/// A bit rate in the unit that leaves one to four digits before the decimal point.
#[must_use]
pub fn bit_rate(bits_per_second: f64) -> String {
    match bits_per_second.abs() {
        size if size >= 1e7 => format!("{} Mbit/s", short(bits_per_second / 1e6)),
        size if size >= 1e3 => format!("{} kbit/s", short(bits_per_second / 1e3)),
        _ => format!("{} bit/s", short(bits_per_second)),
    }
}

fn with_decimals(value: f64, decimals: usize) -> String {
    format!("{value:.decimals$}")
}

/// Decimals that give a positive value so many significant digits.
fn decimals(size: f64, digits: i32) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "a decimal exponent of a double is at most 308")]
    let exponent = size.log10().floor() as i32;
    usize::try_from(digits - 1 - exponent).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits_and_no_exponent() {
        for (value, text) in [
            (87.087_425_980_000_02, "87.09"),
            (345_800.0, "345800"),
            (1.385, "1.385"),
            (0.000_694_4, "0.0006944"),
            (100.0, "100"),
            (0.0, "0"),
            (-12.345_6, "-12.35"),
            (1e12, "1.000e12"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn a_mean_has_the_decimals_of_its_interval() {
        for (mean, half, text) in [
            (20.754_12, Some(0.021), "20.754 ± 0.021"),
            (345_812.3, Some(1234.0), "345812 ± 1234"),
            (1.385, Some(2.162e-14), "1.385"),
            (1.385, Some(0.0), "1.385"),
            (1.385, None, "1.385"),
            (3.0, Some(f64::INFINITY), "3"),
            (0.0, Some(0.5), "0.00 ± 0.50"),
        ] {
            assert_eq!(with_half_width(mean, half), text);
        }
    }

    #[test]
    fn bit_rates_have_a_readable_unit() {
        for (rate, text) in [(345_800.0, "345.8 kbit/s"), (24e6, "24 Mbit/s"), (4e6, "4000 kbit/s"), (12.0, "12 bit/s")]
        {
            assert_eq!(bit_rate(rate), text);
        }
    }
}
