//! Power of the host in the last minutes, for the graph.

use std::collections::VecDeque;

/// Samples that are kept: more than a screen has columns, at any interval.
const SAMPLES: usize = 4096;
/// Columns without a sample between two with one that are no gap: the view asks at its own times,
/// which drift against those of the ticks.
const BRIDGED: usize = 2;

/// Power by time.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// End of the tick in unix seconds, and watts; in the order of time.
    samples: VecDeque<(f64, f64)>,
}

impl History {
    /// Adds a sample. If the clock was set back, the samples that are not in the past any longer
    /// are removed. Unknown power is a gap.
    pub(crate) fn push(&mut self, time: f64, watts: Option<f64>) {
        while self.samples.back().is_some_and(|(last, _)| *last >= time) {
            self.samples.pop_back();
        }
        if let Some(watts) = watts.filter(|watts| watts.is_finite()) {
            self.samples.push_back((time, watts));
        }
        while self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
    }

    /// Mean power in each of the `count` columns of `step` seconds up to `end`, the oldest first;
    /// `None` for a gap.
    pub(crate) fn columns(&self, end: f64, step: f64, count: usize) -> Vec<Option<f64>> {
        let mut sums = vec![(0.0, 0_u32); count];
        for (time, watts) in self.samples.iter().rev() {
            let age = (end - time) / step;
            if age < 0.0 {
                continue;
            }
            // A cast of a large number saturates.
            let Some(column) = count.checked_sub((age as usize).saturating_add(1)) else { break };
            sums[column].0 += watts;
            sums[column].1 += 1;
        }
        let mut columns: Vec<Option<f64>> =
            sums.into_iter().map(|(sum, samples)| (samples > 0).then(|| sum / f64::from(samples))).collect();
        bridge(&mut columns);
        columns
    }
}

/// Continues a value over short gaps before the next one.
fn bridge(columns: &mut [Option<f64>]) {
    let known = columns.iter().enumerate().filter_map(|(index, watts)| Some((index, (*watts)?)));
    let known: Vec<(usize, f64)> = known.collect();
    for (&(before, watts), &(index, _)) in known.iter().zip(known.iter().skip(1)) {
        if index - before <= BRIDGED + 1 {
            columns[before + 1..index].fill(Some(watts));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_a_gap_and_drifting_times_are_none() {
        let mut history = History::default();
        for time in [1.0, 2.0, 3.0, 5.0, 12.0] {
            history.push(time, Some(time));
        }
        history.push(13.0, None);
        let columns = history.columns(13.0, 1.0, 13);
        let expected: Vec<Option<f64>> =
            [(1, Some(1.0)), (1, Some(2.0)), (2, Some(3.0)), (1, Some(5.0)), (6, None), (1, Some(12.0)), (1, None)]
                .into_iter()
                .flat_map(|(times, value)| std::iter::repeat_n(value, times))
                .collect();
        assert_eq!(columns, expected);
    }

    #[test]
    fn a_clock_set_back_leaves_no_samples_in_the_future() {
        let mut history = History::default();
        for time in [100.0, 101.0, 102.0, 50.0, 51.0] {
            history.push(time, Some(1.0));
        }
        assert_eq!(history.columns(51.0, 1.0, 3), [None, Some(1.0), Some(1.0)]);
        assert_eq!(history.samples.len(), 2);
    }

    #[test]
    fn several_samples_of_a_column_are_averaged() {
        let mut history = History::default();
        for (time, watts) in [(0.5, 1.0), (1.0, 3.0), (1.5, 5.0), (2.0, 7.0)] {
            history.push(time, Some(watts));
        }
        assert_eq!(history.columns(2.0, 1.0, 2), [Some(2.0), Some(6.0)]);
        assert!(history.columns(1e300, 1.0, 2).iter().all(Option::is_none));
    }
}
