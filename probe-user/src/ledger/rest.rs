//! What a GPU uses when nobody uses it: the power that was seen while nothing of it worked.
//!
//! Unlike a package it does come to rest, between jobs at least, so nothing need be extrapolated. A board that holds a context open rests at a
//! higher power than one that holds none; what it did lately counts.

use std::collections::VecDeque;

use super::idle::{Estimate, Sample};

/// A board's figures are means of up to a second and its clocks fall in steps: what is used so soon after work is not rest.
const SETTLES_NS: u64 = 3_000_000_000;
/// A sample lasts at least this long; shorter ticks are put together.
const SAMPLE_NS: u64 = 900_000_000;
/// Samples kept.
const KEPT: usize = 64;
/// How many make an estimate.
const ENOUGH: usize = 5;

/// The memory of one GPU.
#[derive(Clone, Debug, Default)]
pub struct Rest {
    quiet_ns: u64,
    /// Nanoseconds and microjoules that are not a sample yet.
    open: (u64, u64),
    watts: VecDeque<f64>,
    estimate: Option<Estimate>,
}

impl Rest {
    /// Takes a tick: its length, its microjoules, and whether nothing worked in it.
    pub fn observe(&mut self, ns: u64, uj: u64, rest: bool) {
        if !rest {
            (self.quiet_ns, self.open) = (0, (0, 0));
            return;
        }
        if self.quiet_ns < SETTLES_NS {
            self.quiet_ns = self.quiet_ns.saturating_add(ns);
            return;
        }
        self.open = (self.open.0.saturating_add(ns), self.open.1.saturating_add(uj));
        if self.open.0 < SAMPLE_NS {
            return;
        }
        let (ns, uj) = std::mem::take(&mut self.open);
        #[expect(clippy::cast_precision_loss, reason = "a mean power, of which a few digits count")]
        self.add(uj as f64 * 1e3 / ns as f64);
        self.estimate = self.estimated();
    }

    fn add(&mut self, watts: f64) {
        if self.watts.len() == KEPT {
            self.watts.pop_front();
        }
        self.watts.push_back(watts);
    }

    /// The median, and between what the samples lie but for the outermost on each side.
    fn estimated(&self) -> Option<Estimate> {
        if self.watts.len() < ENOUGH {
            return None;
        }
        let mut sorted: Vec<f64> = self.watts.iter().copied().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let last = sorted.len() - 1;
        // 95 of 100 samples: one of forty may stray on each side.
        let off = sorted.len() / 40;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float to int casts saturate")]
        let uw = |watts: f64| (watts * 1e6).round() as u64;
        Some(Estimate { uw: uw(sorted[last / 2]), low_uw: uw(sorted[off]), high_uw: uw(sorted[last - off]) })
    }

    /// What is known; `None` until it has rested.
    #[must_use]
    pub fn estimate(&self) -> Option<Estimate> {
        self.estimate
    }

    /// Everything remembered, for the state file.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        self.watts.iter().map(|watts| (0.0, *watts)).collect()
    }

    /// A memory from an earlier life. What cannot be a sample is left out.
    #[must_use]
    pub fn remember(samples: &[Sample]) -> Self {
        let mut this = Self::default();
        for (_, watts) in samples.iter().take(KEPT) {
            if (0.0..1e6).contains(watts) {
                this.add(*watts);
            }
        }
        this.estimate = this.estimated();
        this
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn it_is_learnt_at_rest_and_not_in_the_seconds_after_work() {
        let mut rest = Rest::default();
        for (seconds, watts, quiet) in [(5, 70, false), (3, 40, true), (10, 12, true)] {
            for _ in 0..seconds {
                rest.observe(SECOND, watts * 1_000_000, quiet);
            }
        }
        assert_eq!(rest.estimate(), Some(Estimate::exact(12_000_000)));
        assert_eq!(Rest::remember(&rest.samples()).estimate(), rest.estimate());
    }

    #[test]
    fn a_gpu_that_never_rests_has_none_and_a_memory_of_nonsense_is_none() {
        let mut rest = Rest::default();
        for second in 0..100 {
            rest.observe(SECOND, 50_000_000, second % 3 != 0);
        }
        assert_eq!(rest.estimate(), None);
        assert_eq!(Rest::remember(&[(0.0, f64::NAN), (0.0, -1.0), (0.0, f64::INFINITY)]).samples(), []);
    }
}
