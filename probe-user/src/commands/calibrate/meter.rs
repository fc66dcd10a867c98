//! Mean power of each counter over a phase, between updates of the counter, with a standard error
//! from pieces of the phase.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::energy::{
    Source,
    counter::{Counter, Step},
    zone::{Zone, ZoneKind},
};

/// Pieces of a phase.
pub(super) const PIECES: usize = 8;
/// An update of the counter is waited for as long as this; RAPL updates every millisecond.
const UPDATE_TIMEOUT: Duration = Duration::from_millis(10);
const POLL: Duration = Duration::from_micros(50);

/// Watts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mean {
    pub(super) watts: f64,
    /// Standard error, of the differences between the pieces.
    pub(super) error: f64,
}

impl Mean {
    /// The mean of pieces: microjoules and nanoseconds. `None` without any.
    #[expect(clippy::cast_precision_loss, reason = "statistics; no joule is counted here")]
    pub(super) fn of(pieces: &[(u64, u64)]) -> Option<Self> {
        let sum = pieces.iter().fold((0.0, 0.0), |sum, (uj, ns)| (sum.0 + *uj as f64, sum.1 + *ns as f64));
        if pieces.len() < 2 || sum.1 <= 0.0 {
            return None;
        }
        let watts = sum.0 * 1e3 / sum.1;
        let square = |(uj, ns): &(u64, u64)| (*uj as f64 * 1e3 / (*ns).max(1) as f64 - watts).powi(2);
        let count = pieces.len() as f64;
        let variance = pieces.iter().map(square).sum::<f64>() / (count - 1.0);
        Some(Self { watts, error: (variance / count).sqrt() })
    }
}

/// The counters of packages and their memory.
pub(super) struct Meter {
    source: Box<dyn Source>,
    /// The places of the measured counters among those of the source.
    places: Vec<usize>,
    zones: Vec<Zone>,
    counters: Vec<Counter>,
    began: Instant,
}

impl Meter {
    pub(super) fn new(source: Box<dyn Source>) -> Self {
        let all = source.zones().iter().enumerate();
        let measured = all.filter(|(_, zone)| matches!(zone.id.kind, ZoneKind::Package | ZoneKind::Dram));
        let (places, zones): (Vec<usize>, Vec<Zone>) = measured.map(|(place, zone)| (place, zone.clone())).unzip();
        let counters = zones.iter().map(Counter::new).collect();
        Self { source, places, zones, counters, began: Instant::now() }
    }

    /// The measured zones, in the order of all figures.
    pub(super) fn zones(&self) -> &[Zone] {
        &self.zones
    }

    /// Measures for `length`. `None` for a counter of which too few readings were accepted.
    ///
    /// # Errors
    /// When no counter can be read.
    pub(super) fn measure(&mut self, length: Duration) -> Result<Vec<Option<Mean>>> {
        let mut pieces: Vec<Vec<(u64, u64)>> = vec![Vec::new(); self.zones.len()];
        // The first reading is the start; what came before it is no part of the phase.
        self.advance();
        let (start, piece) = (Instant::now(), length / u32::try_from(PIECES)?);
        for number in 1..=u32::try_from(PIECES)? {
            let end = start + piece * number;
            thread::sleep(end.saturating_duration_since(Instant::now()));
            for (step, pieces) in self.advance().into_iter().zip(&mut pieces) {
                if let Step::Grew(energy, ns) = step {
                    pieces.push((energy.0, ns));
                }
            }
        }
        let enough = |pieces: &Vec<(u64, u64)>| Mean::of(pieces).filter(|_| pieces.len() > PIECES / 2);
        let means: Vec<_> = pieces.iter().map(enough).collect();
        if means.iter().all(Option::is_none) {
            let location = self.zones.first().map_or("no zone", |zone| &zone.location);
            bail!("{location}: too few readings were accepted. wattcast-probe doctor says what is wrong with it");
        }
        Ok(means)
    }

    /// Reads every counter right after its next update.
    fn advance(&mut self) -> Vec<Step> {
        let began = Instant::now();
        let (mut first, mut readings) = (None, vec![(None, 0); self.places.len()]);
        let mut moved = vec![false; self.places.len()];
        while moved.contains(&false) {
            let raw = self.read();
            let at = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let first = first.get_or_insert_with(|| raw.clone());
            for (((reading, moved), raw), first) in readings.iter_mut().zip(&mut moved).zip(&raw).zip(&*first) {
                if !*moved {
                    *reading = (*raw, at);
                    *moved = raw != first;
                }
            }
            if began.elapsed() >= UPDATE_TIMEOUT {
                break;
            }
            thread::sleep(POLL);
        }
        let counters = self.counters.iter_mut().zip(readings);
        counters.map(|(counter, (raw, at))| counter.advance(raw, at)).collect()
    }

    /// One reading of every measured counter; `None` where it failed.
    fn read(&mut self) -> Vec<Option<u64>> {
        let mut raw = Vec::new();
        self.source.read(&mut raw);
        self.places.iter().map(|place| raw.get(*place)?.as_ref().ok().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_that_of_the_pieces() {
        let mean = Mean::of(&[(10_000_000, 1_000_000_000), (14_000_000, 1_000_000_000)]).unwrap();
        assert!((mean.watts - 12.0).abs() < 1e-9 && (mean.error - 2.0).abs() < 1e-9, "{mean:?}");
        let unequal = Mean::of(&[(10_000_000, 1_000_000_000), (30_000_000, 3_000_000_000)]).unwrap();
        assert!((unequal.watts - 10.0).abs() < 1e-9 && unequal.error < 1e-9, "{unequal:?}");
        assert_eq!((Mean::of(&[]), Mean::of(&[(1, 1)]), Mean::of(&[(1, 0), (1, 0)])), (None, None, None));
    }
}
