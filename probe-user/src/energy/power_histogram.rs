//! Sub-second power as a histogram for each package: shows peaks that the mean of a second hides.
//!
//! A separate thread with separate handles reads at 10 to 50 Hz. It is off by default, because a
//! reading wakes a CPU of every package. Only the counts of the histogram are exported, never a
//! reading (see SECURITY.md on energy as a side channel).

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use metrics::family::Buckets;

use crate::energy::{
    REOPENED, Source,
    counter::{Counter, Step},
    zone::{Origin, ZoneId, ZoneKind},
};

/// Upper bounds of the buckets in watts: fine in the range of clients, coarse in the range of
/// servers.
const WATTS: [f64; 20] = [
    1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 75.0, 100.0, 125.0, 150.0, 200.0, 250.0, 300.0, 400.0, 500.0,
    750.0, 1000.0,
];

type SharedBuckets = Arc<Mutex<Vec<(ZoneId, Origin, Buckets)>>>;

/// The running thread. It ends when this is dropped.
pub struct PowerHistogram {
    buckets: SharedBuckets,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PowerHistogram {
    /// Starts reading `source` `hertz` times a second.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(source: Box<dyn Source>, hertz: u32) -> std::io::Result<Self> {
        let origin = source.energy_origin();
        let packages: Vec<usize> =
            (0..source.zones().len()).filter(|zone| source.zones()[*zone].id.kind == ZoneKind::Package).collect();
        let empty = || Buckets { cumulative: WATTS.iter().map(|watts| (*watts, 0)).collect(), ..Buckets::default() };
        let rows = packages.iter().map(|zone| (source.zones()[*zone].id, origin, empty())).collect();
        let (buckets, stop): (SharedBuckets, _) = (Arc::new(Mutex::new(rows)), Arc::new(AtomicBool::new(false)));
        let (into, stopped) = (buckets.clone(), stop.clone());
        let pause = Duration::from_secs(1) / hertz.max(1);
        let thread = thread::Builder::new().name("power".into()).spawn(move || {
            sample(source, &packages, pause, &into, &stopped);
        })?;
        Ok(Self { buckets, stop, thread: Some(thread) })
    }

    /// Lets the thread end without waiting for it: a source that is given up may hang.
    pub fn detach(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take());
    }

    /// The histograms since the start.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(ZoneId, Origin, Buckets)> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for PowerHistogram {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been logged already.
            let _ = thread.join();
        }
    }
}

fn sample(mut source: Box<dyn Source>, packages: &[usize], pause: Duration, into: &SharedBuckets, stop: &AtomicBool) {
    let mut counters: Vec<Counter> = packages.iter().map(|zone| Counter::new(&source.zones()[*zone])).collect();
    let start = Instant::now();
    let mut raw = Vec::new();
    let mut due = start;
    let mut last = None;
    while !stop.load(Ordering::Relaxed) {
        raw.clear();
        let before = start.elapsed();
        source.read(&mut raw);
        let after = start.elapsed();
        let reading = Reading { before, after };
        if reading.is_timely(last) {
            last = Some(reading);
            let at_ns = u64::try_from(reading.at().as_nanos()).unwrap_or(u64::MAX);
            let mut all = into.lock().unwrap_or_else(PoisonError::into_inner);
            for ((zone, counter), (_, _, buckets)) in packages.iter().zip(&mut counters).zip(all.iter_mut()) {
                let value = raw.get(*zone);
                if matches!(value, Some(Err(error)) if error.to_string() == REOPENED) {
                    counter.restart();
                }
                let value = value.and_then(|value| value.as_ref().ok()).copied();
                if let Step::Grew(energy, ns) = counter.advance(value, at_ns)
                    && let Some(watts) = energy.watts_over(ns)
                {
                    observe(buckets, watts);
                }
            }
        }
        due = next_due(due, pause, Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// Start and end of the reading of all counters, since the start of the thread.
#[derive(Clone, Copy)]
struct Reading {
    before: Duration,
    after: Duration,
}

impl Reading {
    fn at(self) -> Duration {
        (self.before + self.after) / 2
    }

    /// True when the interval since the `last` used reading is known to 5 %. Otherwise a thread
    /// that is descheduled between clock and counter would show a peak that did not exist. The
    /// reading after a skipped one covers both intervals, so a slow source gets longer intervals.
    fn is_timely(self, last: Option<Self>) -> bool {
        last.is_none_or(|last| {
            let uncertain = (self.after - self.before) + (last.after - last.before);
            uncertain / 2 <= self.at().saturating_sub(last.at()) / 20
        })
    }
}

/// The next time on the grid of `pause`, at least half of `pause` after a late reading: the
/// resolution of the counter (about 1 ms) and of the clock matter more in a short interval. Missed
/// readings are not repeated.
fn next_due(due: Instant, pause: Duration, now: Instant) -> Instant {
    (due + pause).max(now + pause / 2)
}

fn observe(buckets: &mut Buckets, watts: f64) {
    for (bound, count) in &mut buckets.cumulative {
        *count += u64::from(watts <= *bound);
    }
    buckets.count += 1;
    buckets.sum += watts;
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{
        energy::{
            SourceInventory,
            zone::{Range, Zone},
        },
        host::topology::PackageId,
    };

    /// A constant 42 W.
    struct Steady {
        inventory: SourceInventory,
        start: Instant,
    }

    impl Source for Steady {
        fn origin(&self) -> Origin {
            Origin::Perf
        }

        fn inventory(&self) -> &SourceInventory {
            &self.inventory
        }

        fn read(&mut self, out: &mut Vec<io::Result<u64>>) {
            out.push(Ok(u64::try_from(self.start.elapsed().as_micros()).unwrap() * 42));
        }
    }

    #[test]
    fn a_reading_interrupted_between_clock_and_counter_is_skipped() {
        let reading = |before, took| Reading {
            before: Duration::from_millis(before),
            after: Duration::from_millis(before + took),
        };
        let last = Some(reading(0, 1));
        assert!(reading(0, 40).is_timely(None), "the first reading has no interval");
        assert!(reading(50, 1).is_timely(last));
        assert!(!reading(50, 40).is_timely(last), "interrupted");
        assert!(!reading(90, 1).is_timely(Some(reading(0, 40))), "the reading before was interrupted");
        assert!(reading(900, 40).is_timely(Some(reading(0, 40))), "a slow source gets longer intervals");
    }

    #[test]
    fn a_late_reading_is_not_followed_at_once() {
        let start = Instant::now();
        let pause = Duration::from_millis(50);
        assert_eq!(next_due(start, pause, start), start + pause);
        let late = start + Duration::from_millis(120);
        assert_eq!(next_due(start, pause, late), late + pause / 2);
    }

    #[test]
    fn every_reading_is_counted_in_its_bucket() {
        let id = ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package };
        let source = Steady {
            inventory: SourceInventory {
                zones: vec![Zone::microjoules(id, Range::Endless, String::new())],
                ..SourceInventory::default()
            },
            start: Instant::now(),
        };
        let distribution = PowerHistogram::start(Box::new(source), 50).unwrap();
        testkit::eventually(10.0, "ten readings", || distribution.snapshot()[0].2.count >= 10);
        let (zone, _, buckets) = distribution.snapshot().remove(0);
        assert_eq!(zone, id);
        let mean = buckets.sum / f64::from(u32::try_from(buckets.count).unwrap());
        assert!((mean - 42.0).abs() < 1.0, "{mean}");
        let below = |watts: f64| buckets.cumulative.iter().find(|(bound, _)| *bound == watts).unwrap().1;
        assert_eq!((below(30.0), below(75.0)), (0, buckets.count));
    }
}
