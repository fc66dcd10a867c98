//! The increase of a counter in a window, calculated from its raw samples. Resets, gaps and window
//! edges are handled explicitly; PromQL's `increase()` extrapolates over all three.

/// One sample of a counter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Unix seconds.
    pub at: f64,
    /// Value in millionths of the counter's unit.
    pub micro: u64,
}

/// The increase of a counter in a window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Growth {
    /// The increase in millionths of the counter's unit.
    pub micro: u64,
    /// Bound of the error at the edges of the window, in millionths: between the samples around an
    /// edge the counter is interpolated linearly.
    pub edge_micro: f64,
    /// Seconds of the window in gaps, between samples that are unusually far apart.
    pub gap_seconds: f64,
    /// Number of counter resets.
    pub resets: u32,
    /// Seconds at the start of the window before the first sample, in which the counter may have
    /// been created.
    pub missing_before: f64,
    /// Seconds at the end of the window after the last sample.
    pub missing_after: f64,
    /// Start, end and increase of each interval between two samples, clipped to the window.
    pub pieces: Vec<(f64, f64, u64)>,
}

/// The interval between two samples is a gap if it exceeds the usual interval by this factor.
const GAP_FACTOR: f64 = 2.5;

/// The increase of a counter between `start` and `end`, in unix seconds. `samples` are in ascending
/// order; those outside the window are used for its edges.
///
/// A decreasing value is a reset, after which the counter started from zero. The increase between
/// two samples around an edge of the window is interpolated linearly.
///
/// ```
/// use results::energy::counter::{Sample, growth};
///
/// let samples = [(0.0, 100), (10.0, 300), (20.0, 50)].map(|(at, micro)| Sample { at, micro });
/// let growth = growth(&samples, 5.0, 20.0);
/// assert_eq!((growth.micro, growth.resets, growth.edge_micro), (150, 1, 100.0));
/// ```
#[must_use]
pub fn growth(samples: &[Sample], start: f64, end: f64) -> Growth {
    let mut growth = Growth::default();
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        growth.missing_before = end - start;
        return growth;
    };
    growth.missing_before = (first.at - start).clamp(0.0, end - start);
    growth.missing_after = (end - last.at).clamp(0.0, end - start);
    let usual_interval = median_interval(samples);
    for pair in samples.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        let (from, to) = (before.at.max(start), after.at.min(end));
        let interval = after.at - before.at;
        if to <= from || interval <= 0.0 {
            continue;
        }
        let is_reset = after.micro < before.micro;
        let whole = if is_reset { after.micro } else { after.micro - before.micro };
        growth.resets += u32::from(is_reset);
        let fraction = (to - from) / interval;
        let inside = portion(whole, fraction);
        if fraction < 1.0 {
            growth.edge_micro += approximate(whole) * fraction.max(1.0 - fraction);
        }
        if interval > usual_interval * GAP_FACTOR {
            growth.gap_seconds += to - from;
        }
        growth.micro = growth.micro.saturating_add(inside);
        growth.pieces.push((from, to, inside));
    }
    growth
}

impl Growth {
    /// Adds the value of the first sample if it lies within the window: a counter that was created
    /// there started from zero. Adds nothing and returns false if the value exceeds ten times the
    /// later rate of increase since the start of the window; the counter is then older and only its
    /// samples are missing.
    pub fn add_first_value(&mut self, samples: &[Sample]) -> bool {
        let Some(first) = samples.first().filter(|_| self.missing_before > 0.0) else { return true };
        let increase: u64 = self.pieces.iter().map(|piece| piece.2).sum();
        let seconds: f64 = self.pieces.iter().map(|piece| piece.1 - piece.0).sum();
        // The counter may have been created up to two scrapes before the window.
        let before = self.missing_before + 2.0 * median_interval(samples).min(60.0);
        let max = if seconds > 0.0 { approximate(increase) / seconds * before * 10.0 } else { f64::INFINITY };
        if approximate(first.micro) > max {
            return false;
        }
        self.micro = self.micro.saturating_add(first.micro);
        true
    }
}

/// The median interval between samples, in seconds.
fn median_interval(samples: &[Sample]) -> f64 {
    let mut intervals: Vec<f64> = samples.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    intervals.sort_by(f64::total_cmp);
    intervals.get(intervals.len() / 2).copied().unwrap_or(f64::INFINITY)
}

/// `fraction` of `whole`, rounded to the nearest integer; exactly `whole` for 1.
fn portion(whole: u64, fraction: f64) -> u64 {
    if fraction >= 1.0 {
        return whole;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and whole; an estimate at an edge"
    )]
    let inside = (approximate(whole) * fraction).round() as u64;
    inside.min(whole)
}

#[expect(clippy::cast_precision_loss, reason = "an estimate at an edge; the exact sums are integers")]
fn approximate(micro: u64) -> f64 {
    micro as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn samples(all: &[(f64, u64)]) -> Vec<Sample> {
        all.iter().map(|(at, micro)| Sample { at: *at, micro: *micro }).collect()
    }

    #[test]
    fn edges_between_samples_are_interpolated() {
        let all = samples(&[(0.0, 100), (5.0, 200), (10.0, 260), (15.0, 300)]);
        let exact = growth(&all, 5.0, 15.0);
        assert_eq!((exact.micro, exact.edge_micro, exact.resets), (100, 0.0, 0));
        let between = growth(&all, 2.5, 10.0);
        assert_eq!((between.micro, between.edge_micro), (50 + 60, 50.0));
        let inside = growth(&all, 6.0, 7.0);
        assert_eq!((inside.micro, inside.edge_micro), (12, 48.0));
    }

    #[test]
    fn reset_counts_from_zero_and_gap_is_reported() {
        let all = samples(&[(0.0, 50), (5.0, 100), (10.0, 30), (15.0, 40), (60.0, 940), (65.0, 950)]);
        let grown = growth(&all, 0.0, 65.0);
        assert_eq!((grown.micro, grown.resets, grown.gap_seconds), (50 + 30 + 10 + 900 + 10, 1, 45.0));
    }

    #[test]
    fn first_value_counts_only_for_a_new_counter() {
        let all = samples(&[(20.0, 7), (25.0, 10)]);
        let grown = growth(&all, 10.0, 40.0);
        assert_eq!((grown.micro, grown.missing_before, grown.missing_after), (3, 10.0, 15.0));
        let with_first_value = |all: &[Sample], start| {
            let mut grown = growth(all, start, 40.0);
            (grown.add_first_value(all), grown.micro)
        };
        assert_eq!(with_first_value(&all, 10.0), (true, 10));
        assert_eq!(with_first_value(&all, 20.0), (true, 3), "it existed at the start");
        let old = samples(&[(20.0, 7_000_000), (25.0, 7_000_003)]);
        assert_eq!(with_first_value(&old, 10.0), (false, 3), "weeks of energy are not this window's");
        assert_eq!(growth(&[], 0.0, 5.0).missing_before, 5.0);
    }

    proptest! {
        /// The increases of [a,b] and [b,c] sum to that of [a,c], for any samples and resets.
        #[test]
        fn adjacent_windows_sum_to_the_whole(steps in proptest::collection::vec((1u32..50, 0u64..1_000_000, any::<bool>()), 2..40), cuts in (0.0f64..1.0, 0.0f64..1.0, 0.0f64..1.0)) {
            let (mut at, mut micro, mut all) = (0.0, 0u64, Vec::new());
            for (distance, grows, reset) in steps {
                at += f64::from(distance);
                micro = if reset && grows % 7 == 0 { grows } else { micro + grows };
                all.push(Sample { at, micro });
            }
            let mut cuts = [cuts.0, cuts.1, cuts.2].map(|cut| all[0].at + cut * (at - all[0].at));
            cuts.sort_by(f64::total_cmp);
            let [a, b, c] = cuts;
            let (whole, left, right) = (growth(&all, a, c), growth(&all, a, b), growth(&all, b, c));
            // A cut between two samples rounds both sides.
            prop_assert!(whole.micro.abs_diff(left.micro + right.micro) <= 2);
            prop_assert!(whole.missing_before == 0.0 && whole.missing_after == 0.0);
        }
    }
}
