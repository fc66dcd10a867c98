//! Sub-second power: the peaks that a mean over a second hides, as a histogram for each package.
//!
//! A thread of its own with handles of its own, at 10 to 50 Hz, off by default: a reading wakes a CPU of every package. Only
//! counts of how often which power was seen leave it, never a reading (see SECURITY.md on energy as a side channel).

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use exporter::family::Buckets;

use crate::energy::{
    Source,
    counter::{Counter, Step},
    zone::{Origin, ZoneId, ZoneKind},
};

/// Upper bounds of the classes in watts: fine where clients are, coarse where servers are.
const WATTS: [f64; 20] = [
    1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 75.0, 100.0, 125.0, 150.0, 200.0, 250.0, 300.0, 400.0, 500.0,
    750.0, 1000.0,
];

type Shown = Arc<Mutex<Vec<(ZoneId, Origin, Buckets)>>>;

/// The running thread. It ends when this is dropped.
pub struct Distribution {
    shown: Shown,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Distribution {
    /// Starts reading `source` `hertz` times a second.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(source: Box<dyn Source>, hertz: u32) -> std::io::Result<Self> {
        let origin = source.origin();
        let packages: Vec<usize> =
            (0..source.zones().len()).filter(|zone| source.zones()[*zone].id.kind == ZoneKind::Package).collect();
        let empty = || Buckets { cumulative: WATTS.iter().map(|watts| (*watts, 0)).collect(), ..Buckets::default() };
        let rows = packages.iter().map(|zone| (source.zones()[*zone].id, origin, empty())).collect();
        let (shown, stop): (Shown, _) = (Arc::new(Mutex::new(rows)), Arc::new(AtomicBool::new(false)));
        let (into, stopped) = (shown.clone(), stop.clone());
        let pause = Duration::from_secs(1) / hertz.max(1);
        let thread = thread::Builder::new().name("power".into()).spawn(move || {
            sample(source, &packages, pause, &into, &stopped);
        })?;
        Ok(Self { shown, stop, thread: Some(thread) })
    }

    /// What was seen since the start.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(ZoneId, Origin, Buckets)> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Distribution {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

fn sample(mut source: Box<dyn Source>, packages: &[usize], pause: Duration, into: &Shown, stop: &AtomicBool) {
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
            let mut shown = into.lock().unwrap_or_else(PoisonError::into_inner);
            for ((zone, counter), (_, _, buckets)) in packages.iter().zip(&mut counters).zip(shown.iter_mut()) {
                let value = raw.get(*zone).and_then(|value| value.as_ref().ok()).copied();
                if let Step::Grew(joules, ns) = counter.advance(value, at_ns)
                    && let Some(watts) = joules.watts_over(ns)
                {
                    observe(buckets, watts);
                }
            }
        }
        due = next_due(due, pause, Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// The times since the start between which all counters were read.
#[derive(Clone, Copy)]
struct Reading {
    before: Duration,
    after: Duration,
}

impl Reading {
    fn at(self) -> Duration {
        (self.before + self.after) / 2
    }

    /// Whether the interval since the `last` reading used is known to a twentieth. A thread that is descheduled between
    /// the clock and the counter would otherwise show a peak that was never drawn. The reading after one that is left out
    /// covers the interval of both, so a slow source gets longer intervals.
    fn is_timely(self, last: Option<Self>) -> bool {
        last.is_none_or(|last| {
            let uncertain = (self.after - self.before) + (last.after - last.before);
            uncertain / 2 <= self.at().saturating_sub(last.at()) / 20
        })
    }
}

/// Keeps to the grid of `pause`, but leaves at least half of it after a late reading: the shorter the interval, the more
/// a counter's resolution (about 1 ms) and the clock weigh. Readings that were missed are not made up for.
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
            Found,
            zone::{Range, Zone},
        },
        topology::PackageId,
    };

    /// 42 W, by the clock.
    struct Steady {
        found: Found,
        start: Instant,
    }

    impl Source for Steady {
        fn origin(&self) -> Origin {
            Origin::Perf
        }

        fn found(&self) -> &Found {
            &self.found
        }

        fn read(&mut self, out: &mut Vec<io::Result<u64>>) {
            out.push(Ok(u64::try_from(self.start.elapsed().as_micros()).unwrap() * 42));
        }
    }

    #[test]
    fn a_reading_interrupted_between_clock_and_counter_is_not_used() {
        let reading = |before, took| Reading {
            before: Duration::from_millis(before),
            after: Duration::from_millis(before + took),
        };
        let last = Some(reading(0, 1));
        assert!(reading(0, 40).is_timely(None), "the first has no interval yet");
        assert!(reading(50, 1).is_timely(last));
        assert!(!reading(50, 40).is_timely(last), "interrupted");
        assert!(!reading(90, 1).is_timely(Some(reading(0, 40))), "the one before was interrupted");
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
    fn every_reading_falls_into_its_class() {
        let id = ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package };
        let source = Steady {
            found: Found { zones: vec![Zone::microjoules(id, Range::Endless, String::new())], ..Found::default() },
            start: Instant::now(),
        };
        let distribution = Distribution::start(Box::new(source), 50).unwrap();
        testkit::eventually(10.0, "ten readings", || distribution.snapshot()[0].2.count >= 10);
        let (zone, _, buckets) = distribution.snapshot().remove(0);
        assert_eq!(zone, id);
        let mean = buckets.sum / f64::from(u32::try_from(buckets.count).unwrap());
        assert!((mean - 42.0).abs() < 1.0, "{mean}");
        let below = |watts: f64| buckets.cumulative.iter().find(|(bound, _)| *bound == watts).unwrap().1;
        assert_eq!((below(30.0), below(75.0)), (0, buckets.count));
    }
}
