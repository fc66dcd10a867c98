//! Conversions of seconds and counts for output.

use jiff::Timestamp;

/// The timestamp of unix seconds, to the microsecond; `None` outside the range of [`Timestamp`].
#[must_use]
pub fn timestamp(seconds: f64) -> Option<Timestamp> {
    #[expect(clippy::cast_possible_truncation, reason = "float to int casts saturate, and Timestamp checks its range")]
    Timestamp::from_microsecond((seconds * 1e6).round() as i64).ok()
}

/// The nearest double of a count, for output.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts for output; above 2^53 the nearest double")]
pub fn float(count: u64) -> f64 {
    count as f64
}
