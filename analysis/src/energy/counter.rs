//! How much a counter grew in a window, from raw samples of it: resets, gaps and edges handled here, for `increase()` guesses at all three.

/// One sample of a counter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Unix seconds.
    pub at: f64,
    /// Millionths of the counter's unit: the counter grows in whole ones.
    pub micro: u64,
}

/// How much it grew.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Growth {
    /// Millionths of the unit.
    pub micro: u64,
    /// The most, in the same unit, by which the edges can be wrong: samples seldom lie on them, and between two the growth is taken as even.
    pub edge_micro: f64,
    /// Seconds of the window that lie between two samples which are further apart than they should be.
    pub gap_seconds: f64,
    /// How often it began anew.
    pub resets: u32,
    /// Seconds at the window's beginning before the first sample; the counter may have been born there.
    pub missing_before: f64,
    /// Seconds at the window's end after the last sample.
    pub missing_after: f64,
    /// For each pair of samples in the window: start, end, and the growth between them.
    pub pieces: Vec<(f64, f64, u64)>,
}

/// Two samples further apart than this times the usual distance have a gap between them.
const GAP: f64 = 2.5;

/// The growth of a counter between `start` and `end`. `samples` ascend in time; those outside of the window serve for its edges.
///
/// Where the value falls the counter began anew, and what it shows is what it counted since. Growth between two samples of which one lies outside of the
/// window is divided evenly over the time between them.
#[must_use]
pub fn growth(samples: &[Sample], start: f64, end: f64) -> Growth {
    let mut grown = Growth::default();
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        grown.missing_before = end - start;
        return grown;
    };
    grown.missing_before = (first.at - start).clamp(0.0, end - start);
    grown.missing_after = (end - last.at).clamp(0.0, end - start);
    let usual = usual_distance(samples);
    for pair in samples.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        let (from, to) = (before.at.max(start), after.at.min(end));
        let long = after.at - before.at;
        if to <= from || long <= 0.0 {
            continue;
        }
        let reset = after.micro < before.micro;
        let whole = if reset { after.micro } else { after.micro - before.micro };
        grown.resets += u32::from(reset);
        let part = (to - from) / long;
        let inside = portion(whole, part);
        if part < 1.0 {
            grown.edge_micro += approximate(whole) * part.max(1.0 - part);
        }
        if long > usual * GAP {
            grown.gap_seconds += to - from;
        }
        grown.micro = grown.micro.saturating_add(inside);
        grown.pieces.push((from, to, inside));
    }
    grown
}

impl Growth {
    /// Adds what a counter shows at its first sample, where that lies in the window: one that was born there began at nothing. False, and nothing added, where that is
    /// more than it can have grown since the window's start, ten times as fast as it grew later: then it was there longer, and only its samples are missing.
    pub fn add_birth(&mut self, samples: &[Sample]) -> bool {
        let Some(first) = samples.first().filter(|_| self.missing_before > 0.0) else { return true };
        let grew: u64 = self.pieces.iter().map(|piece| piece.2).sum();
        let seconds: f64 = self.pieces.iter().map(|piece| piece.1 - piece.0).sum();
        // The time before the window is that of a scrape or two, in which it may have begun.
        let before = self.missing_before + 2.0 * usual_distance(samples).min(60.0);
        let most = if seconds > 0.0 { approximate(grew) / seconds * before * 10.0 } else { f64::INFINITY };
        if approximate(first.micro) > most {
            return false;
        }
        self.micro = self.micro.saturating_add(first.micro);
        true
    }
}

/// The median distance of two samples.
fn usual_distance(samples: &[Sample]) -> f64 {
    let mut all: Vec<f64> = samples.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::INFINITY)
}

/// `part` of `whole`, to the nearest; all of it for 1.
fn portion(whole: u64, part: f64) -> u64 {
    if part >= 1.0 {
        return whole;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between nothing and whole; an edge's estimate"
    )]
    let inside = (approximate(whole) * part).round() as u64;
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
    fn edges_on_samples_are_exact_and_edges_between_them_are_shared_out() {
        let all = samples(&[(0.0, 100), (5.0, 200), (10.0, 260), (15.0, 300)]);
        let exact = growth(&all, 5.0, 15.0);
        assert_eq!((exact.micro, exact.edge_micro, exact.resets), (100, 0.0, 0));
        let between = growth(&all, 2.5, 10.0);
        assert_eq!((between.micro, between.edge_micro), (50 + 60, 50.0));
        let inside = growth(&all, 6.0, 7.0);
        assert_eq!((inside.micro, inside.edge_micro), (12, 48.0));
    }

    #[test]
    fn a_reset_is_counted_from_nothing_and_a_gap_is_measured() {
        let all = samples(&[(0.0, 50), (5.0, 100), (10.0, 30), (15.0, 40), (60.0, 940), (65.0, 950)]);
        let grown = growth(&all, 0.0, 65.0);
        assert_eq!((grown.micro, grown.resets, grown.gap_seconds), (50 + 30 + 10 + 900 + 10, 1, 45.0));
    }

    #[test]
    fn what_lies_before_the_first_sample_is_missing_unless_the_counter_was_born_there() {
        let all = samples(&[(20.0, 7), (25.0, 10)]);
        let grown = growth(&all, 10.0, 40.0);
        assert_eq!((grown.micro, grown.missing_before, grown.missing_after), (3, 10.0, 15.0));
        let born = |all: &[Sample], start| {
            let mut grown = growth(all, start, 40.0);
            (grown.add_birth(all), grown.micro)
        };
        assert_eq!(born(&all, 10.0), (true, 10));
        assert_eq!(born(&all, 20.0), (true, 3), "it was there at the start");
        let old = samples(&[(20.0, 7_000_000), (25.0, 7_000_003)]);
        assert_eq!(born(&old, 10.0), (false, 3), "weeks of joules are not this window's");
        assert_eq!(growth(&[], 0.0, 5.0).missing_before, 5.0);
    }

    proptest! {
        /// ∫[a,c] = ∫[a,b] + ∫[b,c], with as many resets, wherever the samples lie.
        #[test]
        fn windows_add_up(steps in proptest::collection::vec((1u32..50, 0u64..1_000_000, any::<bool>()), 2..40), cuts in (0.0f64..1.0, 0.0f64..1.0, 0.0f64..1.0)) {
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
            // A cut inside a pair of samples rounds each side.
            prop_assert!(whole.micro.abs_diff(left.micro + right.micro) <= 2);
            prop_assert!(whole.missing_before == 0.0 && whole.missing_after == 0.0);
        }
    }
}
