//! The ticks before the start, from the history on disk, for the live page.
//!
//! They are attributed again, under the rules and with the idle power of now. That takes time, so
//! it happens on a thread of its own with the lowest priority, at most half of one CPU.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    thread,
    time::Instant,
};

use tracing::{debug, warn};

use crate::{
    attribution::{Accountant, baseline_file::ZoneSamples},
    ledger::{Rules, idle::Seed},
    snapshot::history::Tick,
    tick::recording::{Reader, RecordingError, Segment},
};

/// Lowest priority of a thread.
const NICE: i32 = 19;

/// What the ticks before the start are read from.
pub struct PastInputs {
    /// The segments that existed at the start, oldest first.
    pub segments: Vec<Segment>,
    pub rules: Rules,
    /// True if the energy of the machine is measured now. Then ticks of a model are left out: no
    /// banner would say what they are.
    pub is_measured: bool,
    /// Idle power that was learnt before the start.
    pub baselines: ZoneSamples,
    /// Idle power that a calibration measured, by zone.
    pub seeds: BTreeMap<String, Seed>,
    /// Age in seconds at which a sample of idle power no longer counts.
    pub sample_age: u64,
    /// Maximum memory of the ticks in bytes.
    pub bytes: usize,
}

/// Ticks of a segment, oldest first.
struct SegmentTicks {
    ticks: Vec<Arc<Tick>>,
    /// Their memory.
    bytes: usize,
    /// False if older ticks did not fit.
    is_whole: bool,
}

impl PastInputs {
    /// The newest ticks that fit, oldest first. Segments that cannot be read are left out; a
    /// segment that was cut off has the ticks up to there.
    #[must_use]
    pub fn load(&self) -> Vec<Arc<Tick>> {
        let mut newer: VecDeque<Arc<Tick>> = VecDeque::new();
        let mut left = self.bytes;
        for segment in self.segments.iter().rev() {
            if segment.is_too_large() {
                warn!("{}: {} bytes, more than a segment of the history has", segment.path.display(), segment.bytes);
                continue;
            }
            let SegmentTicks { ticks, bytes, is_whole } = match self.segment(segment, left) {
                Ok(read) => read,
                Err(error) => {
                    warn!("{error}; the ticks in it are not shown");
                    continue;
                }
            };
            let older = ticks.into_iter().rev();
            for tick in older {
                // The last tick of a segment is the first of the next, where it has no energy.
                if newer.front().is_some_and(|first| first.unix_ns == tick.unix_ns) {
                    newer.pop_front();
                }
                newer.push_front(tick);
            }
            left = left.saturating_sub(bytes);
            // What is older does not end where the oldest of these ticks begins.
            if !is_whole {
                break;
            }
        }
        newer.into()
    }

    /// The newest ticks of a segment that fit into `bytes`, at least two.
    fn segment(&self, segment: &Segment, bytes: usize) -> Result<SegmentTicks, RecordingError> {
        let mut reader = Reader::open(&segment.path)?;
        if self.is_measured && reader.recorded().0.is_some_and(|origin| !origin.is_measured()) {
            debug!("{}: not measured, and not shown next to what is", segment.path.display());
            return Ok(SegmentTicks { ticks: Vec::new(), bytes: 0, is_whole: true });
        }
        let mut accountant = Accountant::new(reader.setup().clone(), self.rules, bytes);
        accountant.set_sample_age(self.sample_age);
        accountant.restore_baselines(&self.baselines);
        accountant.seed_baselines(self.seeds.clone());
        let (mut last, mut read) = (None, 0);
        loop {
            let began = Instant::now();
            match reader.next_tick() {
                Ok(Some(tick)) => {
                    last = Some(accountant.tick(&tick));
                    read += 1;
                }
                Ok(None) => break,
                Err(error) => {
                    // The end of a run that was killed.
                    debug!("{error}");
                    break;
                }
            }
            thread::sleep(began.elapsed());
        }
        let ring = last.map(|snapshot| snapshot.ring).unwrap_or_default();
        let ticks: Vec<Arc<Tick>> = ring.ticks().cloned().collect();
        Ok(SegmentTicks { is_whole: ticks.len() == read, bytes: ring.bytes(), ticks })
    }

    /// Loads them on a thread, and passes them on. Without segments nothing happens.
    pub fn load_in_background(self, done: impl FnOnce(Vec<Arc<Tick>>) + Send + 'static) {
        if self.segments.is_empty() {
            return;
        }
        let load = move || {
            // Without it the thread is only less polite.
            let _ = rustix::process::setpriority_process(None, NICE);
            done(self.load());
        };
        if let Err(error) = thread::Builder::new().name("past".into()).spawn(load) {
            warn!("cannot start a thread for the ticks before the start: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use units::Microjoules;

    use super::*;
    use crate::{
        energy::zone::{Origin, Range, Zone, ZoneId, ZoneKind},
        host::topology::PackageId,
        ledger::IdlePolicy,
        tick::{RawTick, Setup, recording::Writer},
    };

    const SECOND: u64 = 1_000_000_000;
    const EPOCH: i64 = 1_700_000_000_000_000_000;

    /// A segment with ten joules a second from second `first` to `last` of a run that began at
    /// `began`.
    fn write(path: &Path, began: u64, first: u64, last: u64) -> Segment {
        write_from(Origin::Powercap, path, began, first, last)
    }

    /// As [`write`], with energy of `origin`.
    fn write_from(origin: Origin, path: &Path, began: u64, first: u64, last: u64) -> Segment {
        let id = ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package };
        let setup = Setup {
            host: String::new(),
            origin: Some(origin),
            zones: vec![Zone::microjoules(id, Range::Endless, "there".to_owned())],
            idle_uw: vec![None],
            packages: vec![PackageId::whole(0)],
            cpu_packages: vec![Some(0)],
            smt: false,
            cpu_weights: Vec::new(),
            lag_ns: 0,
            cpu: None,
        };
        let mut writer = Writer::create(path, &setup).unwrap();
        for second in first..=last {
            let now = (second - began) * SECOND;
            let tick = RawTick {
                unix_ns: EPOCH + i64::try_from(second * SECOND).unwrap(),
                began_ns: now,
                energy_ns: now,
                cpu_ns: now,
                zones: vec![Ok(second * 10_000_000)],
                ..RawTick::default()
            };
            writer.write(&tick).unwrap();
        }
        writer.finish().unwrap();
        Segment { start_us: first * 1_000_000, path: path.to_owned(), bytes: fs::metadata(path).unwrap().len() }
    }

    fn inputs(segments: Vec<Segment>) -> PastInputs {
        let rules = IdlePolicy::Separate.into();
        PastInputs {
            segments,
            rules,
            is_measured: true,
            baselines: ZoneSamples::new(),
            seeds: BTreeMap::new(),
            sample_age: 3600,
            bytes: 1 << 20,
        }
    }

    /// Second and measured energy of each tick.
    fn seconds(ticks: &[Arc<Tick>]) -> Vec<(i64, Option<Microjoules>)> {
        ticks.iter().map(|tick| ((tick.unix_ns - EPOCH) / 1_000_000_000, tick.accounts[0].measured)).collect()
    }

    #[test]
    fn segments_of_one_run_have_no_gap_between_them() {
        let dir = tempfile::tempdir().unwrap();
        let segments = vec![write(&dir.path().join("a"), 0, 0, 3), write(&dir.path().join("b"), 0, 3, 5)];
        let ticks = inputs(segments).load();
        let energy = Some(Microjoules(10_000_000));
        assert_eq!(seconds(&ticks), [(0, None), (1, energy), (2, energy), (3, energy), (4, energy), (5, energy)]);
        assert!(ticks.windows(2).all(|pair| pair[0].monotonic_ns < pair[1].monotonic_ns));
    }

    #[test]
    fn ticks_of_a_model_are_not_shown_as_measured_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let model = write_from(Origin::Model, &path("model"), 0, 0, 5);
        let segments = vec![model, write(&path("measured"), 10, 10, 12)];
        let shown = |is_measured: bool| PastInputs { is_measured, ..inputs(segments.clone()) }.load().len();
        assert_eq!((shown(true), shown(false)), (3, 9));
    }

    #[test]
    fn segments_that_cannot_be_read_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut torn = write(&path("torn"), 0, 0, 40);
        let whole = fs::read(&torn.path).unwrap();
        fs::write(&torn.path, &whole[..whole.len() - 10]).unwrap();
        torn.bytes -= 10;
        let foreign = Segment { path: path("foreign"), start_us: 50, bytes: 7 };
        fs::write(&foreign.path, "foreign").unwrap();
        let gone = Segment { path: path("gone"), start_us: 55, bytes: 7 };
        let large = Segment { bytes: u64::MAX, ..write(&path("large"), 60, 60, 70) };
        let last = write(&path("last"), 80, 80, 82);
        let ticks = inputs(vec![torn, foreign, gone, large, last]).load();
        let seconds: Vec<i64> = seconds(&ticks).iter().map(|(second, _)| *second).collect();
        assert_eq!(seconds[seconds.len() - 3..], [80, 81, 82]);
        let of_torn = &seconds[..seconds.len() - 3];
        assert!((10..=41).contains(&of_torn.len()) && of_torn.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    }

    #[test]
    fn memory_is_bounded_and_the_newest_ticks_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let segments = vec![write(&dir.path().join("a"), 0, 0, 300), write(&dir.path().join("b"), 0, 300, 600)];
        let few = PastInputs { bytes: 20_000, ..inputs(segments.clone()) }.load();
        let all = inputs(segments).load();
        assert!(few.len() < 300 && all.len() == 601, "{} of {}", few.len(), all.len());
        assert_eq!(seconds(&few).last(), seconds(&all).last());
        let times: Vec<i64> = seconds(&few).iter().map(|(second, _)| *second).collect();
        assert!(times.windows(2).all(|pair| pair[0] + 1 == pair[1]), "no tick is missing between them: {times:?}");
    }
}
