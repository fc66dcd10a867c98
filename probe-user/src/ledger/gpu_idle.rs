//! Idle power of a GPU: its power while none of its engines works.
//!
//! Unlike a package, a GPU is idle at times, at least between jobs, so no extrapolation is needed.
//! A board with an open context has a higher idle power than one without, so only recent samples
//! count.

use std::collections::VecDeque;

use super::idle::{Estimate, Sample};

/// The figures of a board are means of up to a second, and its clocks fall in steps: for this long
/// after work it is not idle.
const SETTLE_NS: u64 = 3_000_000_000;
/// Minimum length of a sample; shorter ticks are combined.
const SAMPLE_NS: u64 = 900_000_000;
/// Maximum number of samples, of which the newest are kept.
const MAX_SAMPLES: usize = 64;
/// Minimum number of samples of an estimate.
const MIN_SAMPLES: usize = 5;

/// Samples and estimate of one GPU.
#[derive(Clone, Debug, Default)]
pub struct GpuIdle {
    quiet_ns: u64,
    /// Nanoseconds and microjoules of the incomplete sample.
    partial: (u64, u64),
    watts: VecDeque<f64>,
    estimate: Option<Estimate>,
}

impl GpuIdle {
    /// Adds a tick: its length, its microjoules, and whether the GPU was idle.
    pub fn observe(&mut self, ns: u64, uj: u64, idle: bool) {
        if !idle {
            (self.quiet_ns, self.partial) = (0, (0, 0));
            return;
        }
        if self.quiet_ns < SETTLE_NS {
            self.quiet_ns = self.quiet_ns.saturating_add(ns);
            return;
        }
        self.partial = (self.partial.0.saturating_add(ns), self.partial.1.saturating_add(uj));
        if self.partial.0 < SAMPLE_NS {
            return;
        }
        let (ns, uj) = std::mem::take(&mut self.partial);
        #[expect(clippy::cast_precision_loss, reason = "a mean power, of which a few digits count")]
        self.add(uj as f64 * 1e3 / ns as f64);
        self.estimate = self.compute_estimate();
    }

    fn add(&mut self, watts: f64) {
        if self.watts.len() == MAX_SAMPLES {
            self.watts.pop_front();
        }
        self.watts.push_back(watts);
    }

    /// The median, and the interval of the samples without the outermost 2.5 % on each side.
    fn compute_estimate(&self) -> Option<Estimate> {
        if self.watts.len() < MIN_SAMPLES {
            return None;
        }
        let mut sorted: Vec<f64> = self.watts.iter().copied().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let last = sorted.len() - 1;
        let outliers = sorted.len() / 40;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float to int casts saturate")]
        let uw = |watts: f64| (watts * 1e6).round() as u64;
        Some(Estimate { uw: uw(sorted[last / 2]), low_uw: uw(sorted[outliers]), high_uw: uw(sorted[last - outliers]) })
    }

    /// The estimate; `None` until the GPU was idle for long enough.
    #[must_use]
    pub fn estimate(&self) -> Option<Estimate> {
        self.estimate
    }

    /// All samples, for the file of learnt idle power.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        self.watts.iter().map(|watts| Sample::from((0.0, *watts))).collect()
    }

    /// The samples of an earlier run. Impossible samples are left out.
    #[must_use]
    pub fn restore(samples: &[Sample]) -> Self {
        let mut this = Self::default();
        for Sample(_, watts, ..) in samples.iter().take(MAX_SAMPLES) {
            if (0.0..1e6).contains(watts) {
                this.add(*watts);
            }
        }
        this.estimate = this.compute_estimate();
        this
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn it_is_learnt_while_idle_and_not_right_after_work() {
        let mut idle = GpuIdle::default();
        for (seconds, watts, quiet) in [(5, 70, false), (3, 40, true), (10, 12, true)] {
            for _ in 0..seconds {
                idle.observe(SECOND, watts * 1_000_000, quiet);
            }
        }
        assert_eq!(idle.estimate(), Some(Estimate::exact(12_000_000)));
        assert_eq!(GpuIdle::restore(&idle.samples()).estimate(), idle.estimate());
    }

    #[test]
    fn a_busy_gpu_has_no_estimate_and_invalid_samples_are_dropped() {
        let mut idle = GpuIdle::default();
        for second in 0..100 {
            idle.observe(SECOND, 50_000_000, second % 3 != 0);
        }
        assert_eq!(idle.estimate(), None);
        let invalid = [f64::NAN, -1.0, f64::INFINITY].map(|watts| Sample::from((0.0, watts)));
        assert_eq!(GpuIdle::restore(&invalid).samples(), []);
    }
}
