//! Figures of [`cli::number`] for columns of a fixed width, and a dash for what is not known.

use cli::number;

/// A value that is not known.
pub(crate) const UNKNOWN: &str = "-";

/// Decimals that leave three significant digits.
fn decimals(size: f64) -> usize {
    match size {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    }
}

/// A number without a unit: CPUs, frames per second.
///
/// Zero is "0", and a smaller value than the digits can show is not zero.
pub(crate) fn plain(value: Option<f64>) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else { return UNKNOWN.to_owned() };
    let size = value.abs();
    match size {
        0.0 => "0".to_owned(),
        size if size < 0.005 => "<0.01".to_owned(),
        size if size >= 99_950.0 => {
            let (factor, prefix) = number::prefix(size).unwrap_or((1.0, ""));
            let scaled = value / factor;
            format!("{scaled:.*}{prefix}", decimals(scaled.abs()))
        }
        _ => format!("{value:.*}", decimals(size)),
    }
}

/// A value with its unit: `12.3 W`, `850 mW`, `1.39 kJ`.
pub(crate) fn with_unit(value: Option<f64>, unit: &str) -> String {
    let value = value.filter(|value| value.is_finite());
    value.map_or_else(|| UNKNOWN.to_owned(), |value| number::with_unit(value, unit))
}

/// Half a width of `value`, in the unit and with the decimals that [`with_unit`] gives the value.
pub(crate) fn bound(value: Option<f64>, bound: Option<f64>) -> String {
    let known = |value: Option<f64>| value.filter(|value| value.is_finite());
    let (Some(value), Some(bound)) = (known(value), known(bound)) else { return UNKNOWN.to_owned() };
    // Of a power of zero the bound itself determines the unit, which the other column lacks.
    let Some((factor, _)) = number::prefix(value.abs()) else { return with_unit(Some(bound), "W") };
    let decimals = decimals((value / factor).abs());
    let text = format!("{:.decimals$}", bound / factor);
    let shown_as_zero = text.chars().all(|c| matches!(c, '0' | '.'));
    if shown_as_zero && bound > 0.0 {
        let least = text.get(..text.len() - 1).filter(|start| start.contains('.')).unwrap_or_default();
        return format!("<{least}1");
    }
    text
}

/// An amount of money: four decimals below one, where cents have too few digits.
pub(crate) fn money(value: Option<f64>, currency: &str) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else { return UNKNOWN.to_owned() };
    match value.abs() {
        0.0 => format!("0 {currency}"),
        size if size < 0.000_05 => format!("<0.0001 {currency}"),
        size if size < 1.0 => format!("{value:.4} {currency}"),
        _ => format!("{value:.2} {currency}"),
    }
}

/// A part of one as a percentage.
pub(crate) fn percent(share: Option<f64>) -> String {
    match share.filter(|share| share.is_finite()) {
        None => UNKNOWN.to_owned(),
        Some(share) if share > 0.0 && share < 0.005 => "<1 %".to_owned(),
        // Without the sign of a negative zero.
        Some(share) => format!("{:.0} %", (share * 100.0).round() + 0.0),
    }
}

/// A length of time in its two largest units.
pub(crate) fn duration(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds.filter(|seconds| seconds.is_finite()) else { return UNKNOWN.to_owned() };
    let whole = seconds.max(0.0).round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match whole {
        86_400.. => format!("{days} d {hours} h"),
        3600.. => format!("{hours} h {minutes} min"),
        60.. => format!("{minutes} min {} s", whole % 60),
        _ => format!("{whole} s"),
    }
}

/// The time of day of unix seconds, `12:34:56 UTC`.
pub(crate) fn clock(unix: f64) -> String {
    let second = (unix.floor() as i64).rem_euclid(86_400);
    format!("{:02}:{:02}:{:02} UTC", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_three_digits_and_a_prefix_by_size() {
        for (value, text) in [
            (12.34, "12.3 W"),
            (142.4, "142 W"),
            (0.85, "850 mW"),
            (0.999_6, "1.00 W"),
            (999.4, "999 W"),
            (999.6, "1.00 kW"),
            (1_390.0, "1.39 kW"),
            (2.5e6, "2.50 MW"),
            (0.0, "0 W"),
            (-0.0, "0 W"),
            (1e-7, "100 nW"),
        ] {
            assert_eq!(with_unit(Some(value), "W"), text);
        }
        assert_eq!(with_unit(None, "W"), "-");
        assert_eq!(with_unit(Some(f64::NAN), "W"), "-");
    }

    #[test]
    fn numbers_without_a_unit_have_three_digits() {
        for (value, text) in [(59.94, "59.9"), (0.0, "0"), (0.001, "<0.01"), (1.0, "1.00"), (250.0, "250")] {
            assert_eq!(plain(Some(value)), text);
        }
        assert_eq!(plain(None), "-");
    }

    #[test]
    fn a_bound_has_the_decimals_of_its_value() {
        for (value, half, text) in [
            (12.34, 0.42, "0.4"),
            (142.0, 3.2, "3"),
            (0.85, 0.012, "12"),
            (12.34, 0.01, "<0.1"),
            (142.0, 0.2, "<1"),
            (1.5, 0.001, "<0.01"),
            (12.34, 0.0, "0.0"),
        ] {
            assert_eq!(bound(Some(value), Some(half)), text, "{value} {half}");
        }
        assert_eq!(bound(Some(1.0), None), "-");
        assert_eq!(bound(Some(0.0), Some(0.3)), "300 mW");
    }

    #[test]
    fn money_names_its_currency() {
        for (value, text) in [(0.0094, "0.0094 EUR"), (0.0, "0 EUR"), (1e-9, "<0.0001 EUR"), (12.346, "12.35 EUR")] {
            assert_eq!(money(Some(value), "EUR"), text);
        }
        assert_eq!(money(None, "EUR"), "-");
    }

    #[test]
    fn times_and_shares_are_short() {
        assert_eq!(duration(Some(59.4)), "59 s");
        assert_eq!(duration(Some(185.0)), "3 min 5 s");
        assert_eq!(duration(Some(7380.0)), "2 h 3 min");
        assert_eq!(duration(Some(90_000.0)), "1 d 1 h");
        assert_eq!(clock(1_700_000_000.0), "22:13:20 UTC");
        assert_eq!(clock(-1.0), "23:59:59 UTC");
        assert_eq!([percent(Some(0.574)), percent(Some(0.001)), percent(None)], ["57 %", "<1 %", "-"]);
    }
}
