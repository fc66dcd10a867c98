//! What each stream delivered, over all the jobs that reported under its name. Pure: time is given.
//!
//! Invariant: totals only grow. A job's own figures begin at zero, so a figure below the last one is a new job's, and is added whole.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant, SystemTime},
};

use exporter::{label, progress::Report};

/// A job that says nothing for this long is no more active; ffmpeg reports twice a second.
const QUIET: Duration = Duration::from_secs(5);
/// Reports without a new frame for this long are a stall.
const STALL: Duration = Duration::from_secs(2);
/// Sources that are remembered for each stream that may be: ffmpeg processes that follow each other.
const SOURCES: usize = 4;

/// Where reports come from: a connection or the address of datagrams, by a number that is never reused.
pub type SourceId = u64;

/// One stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    /// Frames of all its jobs.
    pub frames: u64,
    /// Left out.
    pub dropped: u64,
    /// Shown twice.
    pub duplicated: u64,
    /// Microseconds of media.
    pub media_us: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Jobs that reported.
    pub jobs: u64,
    /// Reports taken.
    pub reports: u64,
    /// Times that frames ceased to come although the job reported.
    pub stalls: u64,
    /// For how long they did, together.
    pub stalled: Duration,
    /// The last report.
    pub last: Report,
    /// When it came.
    pub at: Instant,
    /// When the newest job's first report came.
    pub since: Instant,
    /// Frames a second between the last two reports that had new ones.
    pub fps_now: Option<f64>,
    /// Bits a second, likewise.
    pub bitrate_now: Option<f64>,
    /// True while a report ended its job.
    pub ended: bool,
}

impl Stream {
    /// True while its newest job reports.
    #[must_use]
    pub fn is_active(&self, now: Instant) -> bool {
        !self.ended && now.duration_since(self.at) <= QUIET
    }
}

/// What one job delivered.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivered {
    /// Its stream.
    pub stream: String,
    /// Frames.
    pub frames: u64,
    /// Microseconds of media.
    pub media_us: u64,
    /// Left out.
    pub dropped: u64,
    /// Shown twice.
    pub duplicated: u64,
    /// When its first report came.
    pub began: SystemTime,
}

struct Source {
    name: String,
    last: Report,
    at: Instant,
    began: SystemTime,
    /// When a frame came last.
    moved: Instant,
    /// Frames and bytes then.
    frames: u64,
    bytes: u64,
    stalls: bool,
    /// What it delivered was taken for a record.
    recorded: bool,
}

/// All streams.
pub struct Book {
    streams: BTreeMap<String, Stream>,
    sources: HashMap<SourceId, Source>,
    limit: usize,
    retain: Duration,
    dropped: u64,
}

impl Book {
    /// At most `limit` streams, each shown for `retain` after its last report.
    #[must_use]
    pub fn new(limit: usize, retain: Duration) -> Self {
        Self { streams: BTreeMap::new(), sources: HashMap::new(), limit, retain, dropped: 0 }
    }

    /// Takes a report of `source` under a name. False when there is no room for another stream.
    pub fn report(&mut self, source: SourceId, name: &str, report: Report, now: Instant) -> bool {
        let name = label::clean(name);
        let known = self.sources.get(&source).is_some_and(|known| known.name == name);
        if !self.streams.contains_key(&name) && self.streams.len() >= self.limit && !self.make_room(now) {
            self.dropped += 1;
            return false;
        }
        if !known {
            self.admit(source, &name, now);
        }
        let (Some(source), Some(stream)) = (self.sources.get_mut(&source), self.streams.get_mut(&name)) else {
            return false;
        };
        // The same connection begins anew: a job that was started again behind a proxy.
        let anew = known && report.frames.zip(source.last.frames).is_some_and(|(now, before)| now < before);
        let before = if anew || !known { Report::default() } else { source.last };
        if anew || !known {
            stream.jobs += 1;
            stream.since = now;
            (stream.fps_now, stream.bitrate_now) = (None, None);
            (source.frames, source.bytes) = (stream.frames, stream.bytes);
            (source.moved, source.began, source.recorded) = (now, SystemTime::now(), false);
        }
        let grown = |of: fn(&Report) -> Option<u64>| {
            // A figure that one report leaves out has not gone back.
            of(&report).map_or(0, |now| now.saturating_sub(of(&before).unwrap_or(0)))
        };
        let frames = grown(|report| report.frames);
        stream.frames = stream.frames.saturating_add(frames);
        stream.dropped = stream.dropped.saturating_add(grown(|report| report.dropped));
        stream.duplicated = stream.duplicated.saturating_add(grown(|report| report.duplicated));
        stream.media_us = stream.media_us.saturating_add(grown(|report| report.out_time_us));
        stream.bytes = stream.bytes.saturating_add(grown(|report| report.bytes));
        stream.reports += 1;
        let still = now.duration_since(source.moved);
        if frames > 0 {
            let bytes = stream.bytes.saturating_sub(source.bytes);
            if known && !anew && still > Duration::ZERO {
                #[expect(clippy::cast_precision_loss, reason = "counts of half a second, for output")]
                let each_second = |count: u64| count as f64 / still.as_secs_f64();
                stream.fps_now = Some(each_second(stream.frames.saturating_sub(source.frames)));
                stream.bitrate_now = report.bytes.map(|_| each_second(bytes) * 8.0);
            }
            if std::mem::take(&mut source.stalls) {
                stream.stalled = stream.stalled.saturating_add(still);
            }
            (source.moved, source.frames, source.bytes) = (now, stream.frames, stream.bytes);
        } else if still >= STALL && report.frames.is_some() && !report.end {
            if !std::mem::replace(&mut source.stalls, true) {
                stream.stalls += 1;
            }
            stream.fps_now = Some(0.0);
        }
        let keep = |now: Option<u64>, before: Option<u64>| now.or(before);
        source.last = Report {
            frames: keep(report.frames, before.frames),
            dropped: keep(report.dropped, before.dropped),
            duplicated: keep(report.duplicated, before.duplicated),
            out_time_us: keep(report.out_time_us, before.out_time_us),
            bytes: keep(report.bytes, before.bytes),
            ..report
        };
        source.at = now;
        (stream.last, stream.at, stream.ended) = (report, now, report.end);
        true
    }

    /// A source was heard so long before its first report was booked: whose it is was not known yet.
    pub fn heard_before(&mut self, source: SourceId, ago: Duration) {
        if let Some(source) = self.sources.get_mut(&source) {
            source.began = source.began.checked_sub(ago).unwrap_or(source.began);
        }
    }

    fn admit(&mut self, source: SourceId, name: &str, now: Instant) {
        if self.sources.len() >= self.limit.saturating_mul(SOURCES) {
            let oldest = self.sources.iter().min_by_key(|(_, source)| source.at).map(|(id, _)| *id);
            oldest.map(|id| self.sources.remove(&id));
        }
        let fresh = Source {
            name: name.to_owned(),
            last: Report::default(),
            at: now,
            began: SystemTime::now(),
            moved: now,
            frames: 0,
            bytes: 0,
            stalls: false,
            recorded: false,
        };
        self.sources.insert(source, fresh);
        self.streams.entry(name.to_owned()).or_insert(Stream {
            frames: 0,
            dropped: 0,
            duplicated: 0,
            media_us: 0,
            bytes: 0,
            jobs: 0,
            reports: 0,
            stalls: 0,
            stalled: Duration::ZERO,
            last: Report::default(),
            at: now,
            since: now,
            fps_now: None,
            bitrate_now: None,
            ended: false,
        });
        // Per source frames are counted from the stream's own.
        if let (Some(source), Some(stream)) = (self.sources.get_mut(&source), self.streams.get(name)) {
            (source.frames, source.bytes) = (stream.frames, stream.bytes);
        }
    }

    /// Ends the series of the stream that has been silent for longest; false when all are active.
    fn make_room(&mut self, now: Instant) -> bool {
        let silent = self.streams.iter().filter(|(_, stream)| !stream.is_active(now));
        let Some(name) = silent.min_by_key(|(_, stream)| stream.at).map(|(name, _)| name.clone()) else { return false };
        self.streams.remove(&name);
        self.sources.retain(|_, source| source.name != name);
        true
    }

    /// Ends the series of those that have been silent for too long.
    pub fn tidy(&mut self, now: Instant) {
        let retain = self.retain;
        self.streams.retain(|_, stream| now.duration_since(stream.at) <= retain);
        let streams = &self.streams;
        self.sources.retain(|_, source| streams.contains_key(&source.name));
    }

    /// Every stream, by name.
    pub fn streams(&self) -> impl Iterator<Item = (&str, &Stream)> {
        self.streams.iter().map(|(name, stream)| (&**name, stream))
    }

    /// What the job of a stream delivered that began to report within `started..=ended`, a breath more on both sides. Jobs follow each other
    /// under one name, and the next may report already: it is the first of them, and none is taken twice.
    pub fn take_delivered(&mut self, stream: &str, started: SystemTime, ended: SystemTime) -> Option<Delivered> {
        let breath = Duration::from_secs(2);
        let within = |source: &&mut Source| {
            !source.recorded
                && source.name == stream
                && source.began + breath >= started
                && source.began <= ended + breath
        };
        let source = self.sources.values_mut().filter(within).min_by_key(|source| source.began)?;
        source.recorded = true;
        Some(Delivered {
            stream: stream.to_owned(),
            frames: source.last.frames.unwrap_or(0),
            media_us: source.last.out_time_us.unwrap_or(0),
            dropped: source.last.dropped.unwrap_or(0),
            duplicated: source.last.duplicated.unwrap_or(0),
            began: source.began,
        })
    }

    /// Reports of streams that found no room.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(frames: u64) -> Report {
        Report {
            frames: Some(frames),
            out_time_us: Some(frames * 40_000),
            bytes: Some(frames * 1000),
            ..Report::default()
        }
    }

    fn book() -> (Book, Instant) {
        (Book::new(3, Duration::from_secs(300)), Instant::now())
    }

    fn stream<'a>(book: &'a Book, name: &str) -> &'a Stream {
        book.streams().find(|(known, _)| *known == name).unwrap().1
    }

    #[test]
    fn a_job_after_another_adds_to_the_same_stream() {
        let (mut book, start) = book();
        for (source, count, at) in [(1, 10, 0), (1, 100, 1), (2, 5, 3), (2, 50, 4)] {
            assert!(book.report(source, "cam", frames(count), start + Duration::from_secs(at)));
        }
        let cam = stream(&book, "cam");
        assert_eq!((cam.frames, cam.jobs, cam.media_us), (150, 2, 150 * 40_000));
        assert_eq!(cam.fps_now, Some(45.0));
        assert_eq!(cam.bitrate_now, Some(45_000.0 * 8.0));
    }

    #[test]
    fn frames_that_cease_are_a_stall_and_one_only() {
        let (mut book, start) = book();
        for (count, at) in [(10, 0), (20, 1), (20, 2), (20, 3), (20, 4), (30, 6)] {
            book.report(1, "cam", frames(count), start + Duration::from_secs(at));
        }
        let cam = stream(&book, "cam");
        assert_eq!((cam.stalls, cam.stalled), (1, Duration::from_secs(5)));
    }

    #[test]
    fn a_silent_stream_is_inactive_then_makes_room_then_ends() {
        let (mut book, start) = book();
        let later = |seconds| start + Duration::from_secs(seconds);
        for (source, name) in [(1, "a"), (2, "b"), (3, "c")] {
            book.report(source, name, frames(1), start);
        }
        assert!(!book.report(4, "d", frames(1), later(1)), "all three are active");
        assert_eq!(book.dropped(), 1);
        book.report(2, "b", frames(2), later(8));
        assert!(book.report(4, "d", frames(1), later(9)));
        assert!(stream(&book, "d").is_active(later(9)) && !stream(&book, "b").is_active(later(20)));
        book.tidy(later(400));
        assert_eq!(book.streams().count(), 0);
    }

    #[test]
    fn what_a_job_delivered_is_found_by_its_time_and_once() {
        let (mut book, start) = book();
        let before = SystemTime::now();
        book.report(1, "cam", frames(7), start);
        // The next job reports before the record of the first is written.
        std::thread::sleep(Duration::from_millis(2));
        book.report(2, "cam", frames(3), start);
        let after = SystemTime::now();
        let hour = Duration::from_secs(3600);
        assert_eq!(book.take_delivered("cam", before - hour, before - hour), None);
        assert_eq!(book.take_delivered("other", before, after), None);
        let mut next = || book.take_delivered("cam", before, after).map(|delivered| delivered.frames);
        assert_eq!([next(), next(), next()], [Some(7), Some(3), None]);
    }

    #[test]
    fn a_job_that_begins_with_no_frame_shows_no_rate_of_those_before() {
        let (mut book, start) = book();
        for (source, count, at) in [(1, 100_000, 0), (2, 0, 1), (2, 25, 2)] {
            book.report(source, "cam", frames(count), start + Duration::from_secs(at));
        }
        assert_eq!(stream(&book, "cam").fps_now, Some(25.0));
    }

    proptest! {
        #[test]
        fn totals_only_grow_and_streams_are_bounded(
            reports in prop::collection::vec((0u64..4, 0usize..6, prop::option::of(any::<u64>()), any::<bool>(), 0u64..10), 0..60),
        ) {
            let (mut book, mut now) = book();
            let mut last: BTreeMap<String, u64> = BTreeMap::new();
            for (source, name, frames, end, wait) in reports {
                now += Duration::from_secs(wait);
                book.report(source, &format!("s{name}"), Report { frames, end, ..Report::default() }, now);
                let present: Vec<String> = book.streams().map(|(name, _)| name.to_owned()).collect();
                last.retain(|name, _| present.contains(name));
                for (name, stream) in book.streams() {
                    let before = last.insert(name.to_owned(), stream.frames).unwrap_or(0);
                    // One that ended and came back begins anew, and then it was not present in between: see `make_room`.
                    prop_assert!(stream.frames >= before || stream.reports == 1);
                }
                prop_assert!(last.len() <= 3);
            }
        }
    }
}
