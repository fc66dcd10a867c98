//! Adds up the statistics pages of nginx's workers.
//!
//! A worker knows only its own connections, and a request is answered by any of them: consecutive
//! pages may be of different workers (`<pid>`). So the newest page of each is kept. Counters are
//! sums of growth, which never fall because another worker answers, or because one of two streams
//! with the same label ends.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use super::nginx::{MAX_STREAMS, NginxStream, Stat, StreamLabel, by_labels};

/// Maximum number of workers that are known; nginx has usually one per CPU. One that is forgotten
/// and answers again is added again, so this is more than any machine has CPUs.
const MAX_WORKERS: usize = 1024;
/// Time without an answer after which a worker is taken for ended: requests, and at least.
const GONE_AFTER: (u32, Duration) = (60, Duration::from_secs(300));
/// Uptimes are whole seconds of the worker's clock.
const UPTIME_ERROR: u64 = 2;

/// Application and stream, as on our page.
type Labels = (String, String);

/// The newest page of a worker.
struct Worker {
    page: Stat,
    /// Its streams, and how many each label stands for.
    streams: BTreeMap<Labels, (NginxStream, u64)>,
    seen: Instant,
    /// When its configuration was loaded: the module's uptime begins there, also that of a worker
    /// which nginx starts later in place of another. `None` if that is before the start of this
    /// machine.
    started: Option<Instant>,
    /// Accepted connections, bytes in, bytes out: the largest of its process.
    counters: [u64; 3],
}

/// The counters of a label.
#[derive(Default)]
struct LabelTotals {
    /// Bytes in and out.
    bytes: [u64; 2],
    /// The part of each worker when it answered last.
    parts: HashMap<u64, Part>,
}

#[derive(Clone, Copy)]
struct Part {
    bytes: [u64; 2],
    time_ms: u64,
    streams: u64,
}

/// All workers of a server.
pub struct Workers {
    label: StreamLabel,
    gone_after: Duration,
    workers: BTreeMap<u64, Worker>,
    /// Accepted connections, bytes in, bytes out, of all workers since their start.
    counters: [u64; 3],
    labels: BTreeMap<Labels, LabelTotals>,
}

impl Workers {
    /// Without a page yet; `interval` is that between requests.
    #[must_use]
    pub fn new(label: StreamLabel, interval: Duration) -> Self {
        let gone_after = interval.saturating_mul(GONE_AFTER.0).max(GONE_AFTER.1);
        Self { label, gone_after, workers: BTreeMap::new(), counters: [0; 3], labels: BTreeMap::new() }
    }

    /// Adds the page of a worker; returns the sum of all workers.
    pub fn add(&mut self, mut page: Stat, now: Instant) -> Stat {
        let pid = page.pid;
        let values = [page.accepted, page.bytes[0], page.bytes[1]];
        let known = self.workers.get(&pid);
        let has_restarted = known.is_some_and(|known| {
            // An uptime that is shorter alone is that of a clock that was set back.
            let has_fallen = values.iter().zip(known.counters).any(|(value, before)| *value < before);
            has_fallen && page.uptime.saturating_add(UPTIME_ERROR) < known.page.uptime
        });
        let before = known.filter(|_| !has_restarted).map_or([0; 3], |known| known.counters);
        for (total, (value, before)) in self.counters.iter_mut().zip(values.into_iter().zip(before)) {
            *total = total.saturating_add(value.saturating_sub(before));
        }
        let mut counters = values;
        for (value, before) in counters.iter_mut().zip(before) {
            *value = before.max(*value);
        }
        if has_restarted {
            for label in self.labels.values_mut() {
                label.parts.remove(&pid);
            }
        }
        let streams = by_labels(&std::mem::take(&mut page.streams), self.label);
        let started = now.checked_sub(Duration::from_secs(page.uptime));
        self.workers.insert(pid, Worker { page, streams, seen: now, started, counters });
        self.forget_workers();
        let unlabelled = self.update_labels(pid, now);
        self.sum(unlabelled, now)
    }

    fn forget_workers(&mut self) {
        while self.workers.len() > MAX_WORKERS {
            let oldest = self.workers.iter().min_by_key(|(_, worker)| worker.seen).map(|(pid, _)| *pid);
            let Some(pid) = oldest else { return };
            self.workers.remove(&pid);
            for label in self.labels.values_mut() {
                label.parts.remove(&pid);
            }
        }
    }

    /// The workers that run, as far as known: a worker that has not answered since another one
    /// started is of the server before a restart, or its successor is that other one.
    fn current(&self, now: Instant) -> impl Iterator<Item = &Worker> {
        let newest = self.workers.values().filter_map(|worker| worker.started).max();
        let since = newest.and_then(|started| started.checked_sub(Duration::from_secs(UPTIME_ERROR)));
        self.workers.values().filter(move |worker| {
            now.saturating_duration_since(worker.seen) <= self.gone_after
                && since.is_none_or(|since| worker.seen >= since)
        })
    }

    /// Adds the growth of a worker's streams to their labels; returns the number of streams for
    /// whose labels there is no room.
    fn update_labels(&mut self, pid: u64, now: Instant) -> u64 {
        let present: BTreeSet<Labels> = self.current(now).flat_map(|worker| worker.streams.keys().cloned()).collect();
        // A worker may be silent for long, as an idle server lets one of them answer almost always.
        let workers = &self.workers;
        let is_known = |labels: &Labels| workers.values().any(|worker| worker.streams.contains_key(labels));
        let missing = present.iter().filter(|labels| !self.labels.contains_key(*labels)).count();
        let has_room = self.labels.len() + missing <= MAX_STREAMS;
        self.labels.retain(|labels, _| present.contains(labels) || (has_room && is_known(labels)));
        for labels in present {
            if self.labels.len() >= MAX_STREAMS {
                break;
            }
            self.labels.entry(labels).or_default();
        }
        let Some(worker) = self.workers.get(&pid) else { return 0 };
        for (labels, totals) in &mut self.labels {
            match worker.streams.get(labels) {
                Some((stream, count)) => totals.add(pid, stream, *count),
                None => {
                    totals.parts.remove(&pid);
                }
            }
        }
        let all = self.current(now).flat_map(|worker| &worker.streams);
        all.map(|(labels, (_, count))| if self.labels.contains_key(labels) { 0 } else { *count }).sum()
    }

    fn sum(&self, unlabelled: u64, now: Instant) -> Stat {
        let [accepted, received, sent] = self.counters;
        let mut sum = Stat { accepted, bytes: [received, sent], streams_dropped: unlabelled, ..Stat::default() };
        let mut streams: BTreeMap<&Labels, NginxStream> = BTreeMap::new();
        for worker in self.current(now) {
            let page = &worker.page;
            sum.workers += 1;
            sum.uptime = sum.uptime.max(page.uptime);
            sum.bits = [0, 1].map(|at| sum.bits[at].saturating_add(page.bits[at]));
            sum.streams_dropped += page.streams_dropped;
            for (all, more) in
                [(&mut sum.applications, &page.applications), (&mut sum.application_streams, &page.application_streams)]
            {
                for (name, count) in more {
                    let total = all.entry(name.clone()).or_default();
                    *total = total.saturating_add(*count);
                }
            }
            for (labels, (stream, _)) in worker.streams.iter().filter(|(labels, _)| self.labels.contains_key(*labels)) {
                streams.entry(labels).and_modify(|all| all.merge(stream)).or_insert_with(|| stream.clone());
            }
        }
        for (labels, mut stream) in streams {
            stream.bytes = self.labels.get(labels).map_or([0; 2], |totals| totals.bytes);
            sum.streams.push(stream);
        }
        sum
    }
}

impl LabelTotals {
    fn add(&mut self, pid: u64, stream: &NginxStream, count: u64) {
        let mut part = Part { bytes: stream.bytes, time_ms: stream.time_ms, streams: count };
        let before = self.parts.get(&pid).copied();
        // A single stream that is younger than before, or has fewer bytes, has begun again. Without
        // process ids it may also be that of another worker, so that it must be much younger.
        let base = before.filter(|before| {
            let limit = if pid == 0 { before.time_ms / 2 } else { before.time_ms };
            let has_fallen = pid != 0 && stream.bytes.iter().zip(before.bytes).any(|(now, before)| *now < before);
            count > 1 || before.streams > 1 || (stream.time_ms >= limit && !has_fallen)
        });
        let base_bytes = base.map_or([0; 2], |base| base.bytes);
        for (total, (value, before)) in self.bytes.iter_mut().zip(stream.bytes.into_iter().zip(base_bytes)) {
            *total = total.saturating_add(value.saturating_sub(before));
        }
        // What a stream that has ended had is no base for those that are left.
        if let Some(base) = base.filter(|base| count >= base.streams) {
            part.bytes = [0, 1].map(|at| base.bytes[at].max(part.bytes[at]));
        }
        self.parts.insert(pid, part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(name: &str, time_ms: u64, received: u64) -> NginxStream {
        NginxStream {
            application: "live".to_owned(),
            name: name.to_owned(),
            time_ms,
            bytes: [received, 0],
            clients: 1,
            ..NginxStream::default()
        }
    }

    fn page(pid: u64, uptime: u64, received: u64, streams: Vec<NginxStream>) -> Stat {
        let application_streams = [("live".to_owned(), streams.len() as u64)].into();
        Stat { pid, workers: 1, uptime, bytes: [received, 0], streams, application_streams, ..Stat::default() }
    }

    fn workers() -> (Workers, Instant) {
        // Uptimes reach back before the first page.
        (Workers::new(StreamLabel::Name, Duration::from_secs(1)), Instant::now() + Duration::from_secs(10_000))
    }

    fn received(sum: &Stat, name: &str) -> Option<u64> {
        sum.streams.iter().find(|stream| stream.name == name).map(|stream| stream.bytes[0])
    }

    #[test]
    fn no_counter_falls_because_another_worker_answers() {
        let (mut workers, start) = workers();
        let (mut all, mut cam) = (0, 0);
        for at in 0..20u64 {
            let now = start + Duration::from_secs(at);
            let page = match at % 2 {
                0 => page(11, 1000 + at, 30_000 + at, vec![stream("cam1", 60_000 + at, 19_000 + at)]),
                _ => page(12, 1000 + at, 900 + at, vec![stream("cam1", 90 + at, 10 + at), stream("cam2", 50 + at, 7)]),
            };
            let sum = workers.add(page, now);
            assert!(sum.bytes[0] >= all && received(&sum, "cam1").unwrap() >= cam, "{sum:?}");
            (all, cam) = (sum.bytes[0], received(&sum, "cam1").unwrap());
            if at > 0 {
                assert_eq!((sum.workers, received(&sum, "cam2"), sum.streams.len()), (2, Some(7), 2));
            }
        }
        assert_eq!((all, cam), (30_018 + 919, 19_018 + 29));
    }

    #[test]
    fn one_of_two_streams_with_the_same_label_ends() {
        let (mut workers, start) = workers();
        let both = workers.add(page(7, 10, 30, vec![stream("   ", 9, 19), stream("   ", 8, 11)]), start);
        assert_eq!((received(&both, "   "), both.streams[0].clients), (Some(30), 2));
        let one = workers.add(page(7, 11, 30, vec![stream("   ", 10, 19)]), start + Duration::from_secs(1));
        assert_eq!((received(&one, "   "), one.streams[0].clients), (Some(30), 1));
        let later = workers.add(page(7, 12, 31, vec![stream("   ", 11, 20)]), start + Duration::from_secs(2));
        assert_eq!(received(&later, "   "), Some(31));
        let none = workers.add(page(7, 13, 31, Vec::new()), start + Duration::from_secs(3));
        assert!(none.streams.is_empty());
    }

    #[test]
    fn a_stream_and_a_server_that_begin_again_are_added() {
        let (mut workers, start) = workers();
        let at = |seconds| start + Duration::from_secs(seconds);
        workers.add(page(7, 100, 50, vec![stream("a", 90_000, 40)]), at(0));
        let again = workers.add(page(7, 101, 53, vec![stream("a", 500, 3)]), at(1));
        assert_eq!((again.bytes[0], received(&again, "a")), (53, Some(43)));
        // In a container the worker of a new server has the same process id.
        let restarted = workers.add(page(7, 1, 4, vec![stream("a", 900, 4)]), at(2));
        assert_eq!((restarted.bytes[0], received(&restarted, "a")), (57, Some(47)));
        let reloaded = workers.add(page(8, 1, 1, vec![stream("b", 900, 1)]), at(20));
        assert_eq!((reloaded.workers, reloaded.streams.len()), (1, 1), "the old worker has not answered since");
    }

    #[test]
    fn a_worker_that_was_silent_for_long_goes_on_counting() {
        let (mut workers, start) = workers();
        let at = |seconds| start + Duration::from_secs(seconds);
        workers.add(page(7, 100, 50, vec![stream("a", 90_000, 40)]), at(0));
        workers.add(page(7, 101, 53, vec![stream("a", 500, 3)]), at(1));
        for second in 2..400 {
            workers.add(page(8, 100 + second, 9, Vec::new()), at(second));
        }
        let back = workers.add(page(7, 500, 55, vec![stream("a", 399_500, 5)]), at(400));
        assert_eq!(received(&back, "a"), Some(45));
    }

    #[test]
    fn more_workers_than_a_small_machine_has_are_added_once() {
        let (mut workers, start) = workers();
        for second in 0..600 {
            workers.add(page(1 + second % 300, 100 + second, 1000, Vec::new()), start + Duration::from_secs(second));
        }
        let sum = workers.add(page(1, 700, 1000, Vec::new()), start + Duration::from_secs(600));
        assert_eq!(sum.bytes[0], 300 * 1000);
    }

    #[test]
    fn neither_a_clock_set_back_nor_a_quick_restart_of_a_stream_is_counted_wrongly() {
        let (mut workers, start) = workers();
        let at = |seconds| start + Duration::from_secs(seconds);
        workers.add(page(7, 1000, 500, vec![stream("a", 5000, 400)]), at(0));
        let back = workers.add(page(7, 400, 510, vec![stream("a", 6000, 410)]), at(1));
        assert_eq!((back.bytes[0], received(&back, "a")), (510, Some(410)));
        let again = workers.add(page(7, 415, 560, vec![stream("a", 14_000, 50)]), at(16));
        assert_eq!(received(&again, "a"), Some(460), "older than before, but with fewer bytes");
    }

    #[test]
    fn streams_without_room_are_counted() {
        let (mut workers, start) = workers();
        let streams = |from: usize| (from..from + 400).map(|at| stream(&at.to_string(), 1, 1)).collect();
        workers.add(page(1, 5, 0, streams(0)), start);
        let sum = workers.add(page(2, 5, 0, streams(1000)), start);
        assert_eq!((sum.streams.len(), sum.streams_dropped), (MAX_STREAMS, 800 - 512));
        assert_eq!(sum.application_streams["live"], 800);
    }
}
