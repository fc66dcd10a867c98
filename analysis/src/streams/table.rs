//! Totals of each stream over all jobs that reported under its name. The current time is a
//! parameter.
//!
//! Invariant: totals never decrease. The counters of a job start at zero, so a counter below the
//! previous one is of a new job and is added completely. The media time is no counter but a
//! position, see [`ffmpeg::media`].
//!
//! A stream whose name is only its sender's address gives way to streams with a name, and never
//! the other way round: any process can send datagrams from any number of ports.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant, SystemTime},
};

use ffmpeg::{Report, media::JobMedia};
use metrics::label;

/// Time without a report after which a job is inactive; ffmpeg reports twice a second.
const INACTIVE_AFTER: Duration = Duration::from_secs(5);
/// Time after its last report in which a job that has ended is kept for the job log in any case.
const DONE_AFTER: Duration = Duration::from_secs(60);
/// Time without a new frame in spite of reports that counts as a stall.
const STALL: Duration = Duration::from_secs(2);
/// Remembered sources per allowed stream, as ffmpeg processes follow each other.
const SOURCES_PER_STREAM: usize = 4;
/// A media time that is this much below the previous one, or less than half of it, is of another
/// job; it falls by less where streams of one job take turns.
const OTHER_JOB_US: i64 = 1_000_000;

/// Id of a connection or a sender of datagrams; never reused.
pub type SourceId = u64;

/// The totals and the current state of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    pub frames: u64,
    pub dropped: u64,
    pub duplicated: u64,
    pub media_us: u64,
    pub bytes: u64,
    /// Whether the media of a job was known.
    pub has_media: bool,
    /// The counters that were in any report; without one the total is absent, not zero.
    pub known: Report,
    /// False if the name is the sender's address.
    pub is_named: bool,
    pub jobs: u64,
    pub reports: u64,
    pub stalls: u64,
    /// Total time in completed stalls.
    pub stalled: Duration,
    pub last_report: Report,
    pub last_report_at: Instant,
    /// Time of the newest job's first report.
    pub job_start: Instant,
    /// Frames per second between the last two reports with new frames.
    pub fps_now: Option<f64>,
    /// Bits per second in the same interval.
    pub bitrate_now: Option<f64>,
    /// True if the last report was the final one of its job.
    pub ended: bool,
}

impl Stream {
    fn new(now: Instant) -> Self {
        Self {
            frames: 0,
            dropped: 0,
            duplicated: 0,
            media_us: 0,
            bytes: 0,
            has_media: false,
            known: Report::default(),
            is_named: false,
            jobs: 0,
            reports: 0,
            stalls: 0,
            stalled: Duration::ZERO,
            last_report: Report::default(),
            last_report_at: now,
            job_start: now,
            fps_now: None,
            bitrate_now: None,
            ended: false,
        }
    }

    /// True while its newest job reports.
    #[must_use]
    pub fn is_active(&self, now: Instant) -> bool {
        !self.ended && now.duration_since(self.last_report_at) <= INACTIVE_AFTER
    }

    /// Adds the growth of a job's counters since its previous report; returns the new frames.
    fn add(&mut self, report: &Report, before: &Report) -> u64 {
        let growth = |counter: fn(&Report) -> Option<u64>| {
            // A counter that a report leaves out has not changed.
            counter(report).map_or(0, |now| now.saturating_sub(counter(before).unwrap_or(0)))
        };
        let frames = growth(|report| report.frames);
        self.frames = self.frames.saturating_add(frames);
        self.dropped = self.dropped.saturating_add(growth(|report| report.dropped));
        self.duplicated = self.duplicated.saturating_add(growth(|report| report.duplicated));
        self.bytes = self.bytes.saturating_add(growth(|report| report.bytes));
        self.known = largest(&self.known, report);
        self.reports += 1;
        frames
    }

    /// Changes the media of a job, and adds its growth.
    fn change_media(&mut self, media: &mut JobMedia, change: impl FnOnce(&mut JobMedia)) {
        let before = media.written_us();
        change(media);
        if let Some(now) = media.written_us() {
            self.media_us = self.media_us.saturating_add(now.saturating_sub(before.unwrap_or(0)));
            self.has_media = true;
        }
    }
}

/// The newer report, with the larger of each counter: some outputs report sizes that swing, and a
/// report may leave a counter out.
fn largest(before: &Report, now: &Report) -> Report {
    let position = if now.position_us().is_some() { now } else { before };
    Report {
        frames: now.frames.max(before.frames),
        dropped: now.dropped.max(before.dropped),
        duplicated: now.duplicated.max(before.duplicated),
        bytes: now.bytes.max(before.bytes),
        out_time_us: position.out_time_us,
        before_zero_us: position.before_zero_us,
        ..*now
    }
}

/// Updates the rates and the stall state of a stream from a report with a number of new frames.
fn update_rates(
    stream: &mut Stream,
    source: &mut Source,
    report: &Report,
    new_frames: u64,
    is_new_job: bool,
    now: Instant,
) {
    let elapsed = now.duration_since(source.last_frame_at);
    if new_frames > 0 {
        if !is_new_job && elapsed > Duration::ZERO {
            #[expect(clippy::cast_precision_loss, reason = "counts of half a second, for output")]
            let per_second = |count: u64| count as f64 / elapsed.as_secs_f64();
            stream.fps_now = Some(per_second(stream.frames.saturating_sub(source.frames)));
            let bytes = stream.bytes.saturating_sub(source.bytes);
            stream.bitrate_now = report.bytes.map(|_| per_second(bytes) * 8.0);
        }
        if std::mem::take(&mut source.is_stalled) {
            stream.stalled = stream.stalled.saturating_add(elapsed);
        }
        (source.last_frame_at, source.frames, source.bytes) = (now, stream.frames, stream.bytes);
    } else if elapsed >= STALL && report.frames.is_some() && !report.end {
        if !std::mem::replace(&mut source.is_stalled, true) {
            stream.stalls += 1;
        }
        stream.fps_now = Some(0.0);
    }
}

/// The totals of one job; `None` if its reports had none.
#[derive(Clone, Debug, PartialEq)]
pub struct JobTotals {
    pub stream: String,
    pub frames: Option<u64>,
    pub media_us: Option<u64>,
    pub dropped: Option<u64>,
    pub duplicated: Option<u64>,
    /// Time of its first report.
    pub start: SystemTime,
}

/// A source of reports, with one job at a time.
struct Source {
    name: String,
    /// The last known counters.
    last: Report,
    media: JobMedia,
    last_report_at: Instant,
    start: SystemTime,
    last_frame_at: Instant,
    /// Totals of the stream at that time.
    frames: u64,
    bytes: u64,
    is_stalled: bool,
    /// Whether its totals were taken for the job log.
    is_logged: bool,
}

impl Source {
    /// True if a report is of another job than the last one: behind a proxy, or through a pipe,
    /// jobs may follow each other.
    fn begins_job(&self, report: &Report) -> bool {
        let last = &self.last;
        if last.end {
            let repeats = |now: Option<u64>, before: Option<u64>| now.is_none() || now == before;
            return !(repeats(report.frames, last.frames)
                && repeats(report.bytes, last.bytes)
                && (report.position_us().is_none() || report.position_us() == last.position_us()));
        }
        match (report.frames, last.frames) {
            (Some(now), Some(before)) => return now < before,
            (None, Some(_)) => return false,
            _ => {}
        }
        // Jobs without video report no frames.
        let Some((now, before)) = report.position_us().zip(last.position_us()) else { return false };
        let has_fallen = now.saturating_add(OTHER_JOB_US) < before || (before > 0 && now < before / 2);
        let has_written = report.bytes.zip(last.bytes).is_some_and(|(now, before)| now > before);
        has_fallen && !has_written
    }
}

/// All streams.
pub struct StreamTable {
    streams: BTreeMap<String, Stream>,
    sources: HashMap<SourceId, Source>,
    limit: usize,
    retain: Duration,
    dropped: u64,
}

impl StreamTable {
    /// A table of at most `limit` streams, each kept for `retain` after its last report.
    #[must_use]
    pub fn new(limit: usize, retain: Duration) -> Self {
        Self { streams: BTreeMap::new(), sources: HashMap::new(), limit, retain, dropped: 0 }
    }

    /// Adds a report of `source` for a stream. Returns false if the table is full.
    pub fn report(&mut self, source: SourceId, name: &str, report: Report, now: Instant) -> bool {
        self.add(source, name, true, report, now)
    }

    /// Like [`Self::report`], for a sender without a name: `name` is its address.
    pub fn report_unnamed(&mut self, source: SourceId, name: &str, report: Report, now: Instant) -> bool {
        self.add(source, name, false, report, now)
    }

    fn add(&mut self, source: SourceId, name: &str, is_named: bool, report: Report, now: Instant) -> bool {
        let name = label::sanitize(name);
        let is_known = self.sources.get(&source).is_some_and(|known| known.name == name);
        let has_room = self.streams.contains_key(&name)
            || self.streams.len() < self.limit
            || self.make_room_for_stream(is_named, now);
        if !has_room || !(is_known || self.insert(source, &name, is_named, now)) {
            self.dropped += 1;
            return false;
        }
        let (Some(source), Some(stream)) = (self.sources.get_mut(&source), self.streams.get_mut(&name)) else {
            return false;
        };
        let is_new_job = !is_known || source.begins_job(&report);
        if is_new_job {
            stream.change_media(&mut source.media, JobMedia::settle);
            (source.media, source.last) = (JobMedia::default(), Report::default());
            stream.jobs += 1;
            stream.job_start = now;
            (stream.fps_now, stream.bitrate_now) = (None, None);
            (source.frames, source.bytes) = (stream.frames, stream.bytes);
            (source.last_frame_at, source.start, source.is_logged) = (now, SystemTime::now(), false);
        }
        let new_frames = stream.add(&report, &source.last);
        stream.change_media(&mut source.media, |media| media.add(&report));
        update_rates(stream, source, &report, new_frames, is_new_job, now);
        source.last = largest(&source.last, &report);
        source.last_report_at = now;
        stream.is_named |= is_named;
        (stream.last_report, stream.last_report_at, stream.ended) = (report, now, report.end);
        true
    }

    /// Moves the start of a source's job back, if its stream name was unknown for that long.
    pub fn set_earlier_start(&mut self, source: SourceId, by: Duration) {
        if let Some(source) = self.sources.get_mut(&source) {
            source.start = source.start.checked_sub(by).unwrap_or(source.start);
        }
    }

    /// Adds a source and its stream; returns false if there is no room for the source.
    fn insert(&mut self, source: SourceId, name: &str, is_named: bool, now: Instant) -> bool {
        let is_full = self.sources.len() >= self.limit.saturating_mul(SOURCES_PER_STREAM);
        if is_full && !self.sources.contains_key(&source) && !self.make_room_for_source(is_named, now) {
            return false;
        }
        let stream = self.streams.entry(name.to_owned()).or_insert_with(|| Stream::new(now));
        let new = Source {
            name: name.to_owned(),
            last: Report::default(),
            media: JobMedia::default(),
            last_report_at: now,
            start: SystemTime::now(),
            last_frame_at: now,
            frames: stream.frames,
            bytes: stream.bytes,
            is_stalled: false,
            is_logged: false,
        };
        self.sources.insert(source, new);
        true
    }

    /// Removes the source that has been silent for longest; returns false if it must not give way.
    fn make_room_for_source(&mut self, for_named: bool, now: Instant) -> bool {
        let rank = |source: &Source| {
            let silent = now.duration_since(source.last_report_at);
            let is_done = source.last.end && silent > DONE_AFTER;
            let is_named = !is_done && self.streams.get(&source.name).is_some_and(|stream| stream.is_named);
            let is_active = !source.last.end && silent <= INACTIVE_AFTER;
            eviction_rank(is_named, is_active, for_named).map(|rank| (rank, source.last_report_at))
        };
        let ranked = self.sources.iter().filter_map(|(id, source)| Some((rank(source)?, *id)));
        let Some((_, id)) = ranked.min() else { return false };
        let Some(mut source) = self.sources.remove(&id) else { return false };
        if let Some(stream) = self.streams.get_mut(&source.name) {
            stream.change_media(&mut source.media, JobMedia::settle);
        }
        true
    }

    /// Removes the stream that has been inactive for longest; returns false if none must give way.
    fn make_room_for_stream(&mut self, for_named: bool, now: Instant) -> bool {
        let rank = |stream: &Stream| {
            let rank = eviction_rank(stream.is_named, stream.is_active(now), for_named)?;
            Some((rank, stream.last_report_at))
        };
        let ranked = self.streams.iter().filter_map(|(name, stream)| Some((rank(stream)?, name)));
        let Some(name) = ranked.min().map(|(_, name)| name.clone()) else { return false };
        self.streams.remove(&name);
        self.sources.retain(|_, source| source.name != name);
        true
    }

    /// Removes the streams whose retention has passed, and completes the media of silent jobs.
    pub fn remove_expired(&mut self, now: Instant) {
        let retain = self.retain;
        self.streams.retain(|_, stream| now.duration_since(stream.last_report_at) <= retain);
        let streams = &mut self.streams;
        self.sources.retain(|_, source| match streams.get_mut(&source.name) {
            Some(stream) => {
                if now.duration_since(source.last_report_at) > INACTIVE_AFTER {
                    stream.change_media(&mut source.media, JobMedia::settle);
                }
                true
            }
            None => false,
        });
    }

    /// Every stream, by name.
    pub fn streams(&self) -> impl Iterator<Item = (&str, &Stream)> {
        self.streams.iter().map(|(name, stream)| (&**name, stream))
    }

    /// Takes the totals of the stream's job that started to report within `started..=ended`, with
    /// some tolerance. Jobs follow each other under one name, and the next one may report already:
    /// the earliest matches, and each job is returned once.
    pub fn take_job_totals(&mut self, stream: &str, started: SystemTime, ended: SystemTime) -> Option<JobTotals> {
        let tolerance = Duration::from_secs(2);
        let within = |source: &&mut Source| {
            !source.is_logged
                && source.name == stream
                && source.start + tolerance >= started
                && source.start <= ended + tolerance
        };
        let source = self.sources.values_mut().filter(within).min_by_key(|source| source.start)?;
        source.is_logged = true;
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.change_media(&mut source.media, JobMedia::settle);
        }
        Some(JobTotals {
            stream: stream.to_owned(),
            frames: source.last.frames,
            media_us: source.media.written_us(),
            dropped: source.last.dropped,
            duplicated: source.last.duplicated,
            start: source.start,
        })
    }

    /// Number of reports dropped because the table was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// The order in which entries of a full table give way, lowest first; `None` if one must not. An
/// active one gives way only if it has no name and the new one has.
fn eviction_rank(is_named: bool, is_active: bool, for_named: bool) -> Option<u8> {
    match (is_named, is_active) {
        (false, false) => Some(0),
        (true, false) if for_named => Some(1),
        (false, true) if for_named => Some(2),
        _ => None,
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

    fn table() -> (StreamTable, Instant) {
        (StreamTable::new(3, Duration::from_secs(300)), Instant::now())
    }

    fn stream<'a>(table: &'a StreamTable, name: &str) -> &'a Stream {
        table.streams().find(|(known, _)| *known == name).unwrap().1
    }

    #[test]
    fn successive_jobs_add_to_the_same_stream() {
        let (mut table, start) = table();
        for (source, count, at) in [(1, 10, 0), (1, 100, 1), (2, 5, 3), (2, 50, 4)] {
            assert!(table.report(source, "cam", frames(count), start + Duration::from_secs(at)));
        }
        let cam = stream(&table, "cam");
        assert_eq!((cam.frames, cam.jobs, cam.media_us), (150, 2, 150 * 40_000));
        assert_eq!(cam.fps_now, Some(45.0));
        assert_eq!(cam.bitrate_now, Some(45_000.0 * 8.0));
    }

    #[test]
    fn reports_without_new_frames_are_one_stall() {
        let (mut table, start) = table();
        for (count, at) in [(10, 0), (20, 1), (20, 2), (20, 3), (20, 4), (30, 6)] {
            table.report(1, "cam", frames(count), start + Duration::from_secs(at));
        }
        let cam = stream(&table, "cam");
        assert_eq!((cam.stalls, cam.stalled), (1, Duration::from_secs(5)));
    }

    #[test]
    fn an_inactive_stream_makes_room_and_expires() {
        let (mut table, start) = table();
        let later = |seconds| start + Duration::from_secs(seconds);
        for (source, name) in [(1, "a"), (2, "b"), (3, "c")] {
            table.report(source, name, frames(1), start);
        }
        assert!(!table.report(4, "d", frames(1), later(1)), "all three are active");
        assert_eq!(table.dropped(), 1);
        table.report(2, "b", frames(2), later(8));
        assert!(table.report(4, "d", frames(1), later(9)));
        assert!(stream(&table, "d").is_active(later(9)) && !stream(&table, "b").is_active(later(20)));
        table.remove_expired(later(400));
        assert_eq!(table.streams().count(), 0);
    }

    #[test]
    fn the_totals_of_a_job_are_returned_once_by_its_time() {
        let (mut table, start) = table();
        let before = SystemTime::now();
        table.report(1, "cam", frames(7), start);
        // The next job reports before the first one is logged.
        std::thread::sleep(Duration::from_millis(2));
        table.report(2, "cam", frames(3), start);
        let after = SystemTime::now();
        let hour = Duration::from_secs(3600);
        assert_eq!(table.take_job_totals("cam", before - hour, before - hour), None);
        assert_eq!(table.take_job_totals("other", before, after), None);
        let mut next = || table.take_job_totals("cam", before, after).and_then(|job| job.frames);
        assert_eq!([next(), next(), next()], [Some(7), Some(3), None]);
    }

    #[test]
    fn a_new_job_does_not_inherit_the_rate_of_the_last_one() {
        let (mut table, start) = table();
        for (source, count, at) in [(1, 100_000, 0), (2, 0, 1), (2, 25, 2)] {
            table.report(source, "cam", frames(count), start + Duration::from_secs(at));
        }
        assert_eq!(stream(&table, "cam").fps_now, Some(25.0));
    }

    fn time(seconds: f64) -> Report {
        Report { out_time_us: Some((seconds * 1e6) as u64), ..Report::default() }
    }

    #[test]
    fn a_media_time_that_falls_is_a_new_job_without_frames() {
        let (mut table, start) = table();
        for (seconds, at) in [(10.0, 0), (20.0, 1), (19.98, 2), (20.0, 3), (1.0, 4), (5.0, 5)] {
            table.report(1, "radio", time(seconds), start + Duration::from_secs(at));
        }
        let radio = stream(&table, "radio");
        assert_eq!((radio.jobs, radio.media_us, radio.known.frames), (2, 25_000_000, None));
    }

    #[test]
    fn a_media_time_of_the_source_is_not_added() {
        let (mut table, start) = table();
        let at = |frames, seconds| Report { frames: Some(frames), ..time(seconds) };
        table.report(1, "seek", at(2135, 7176.0), start);
        assert!(!stream(&table, "seek").has_media, "one position says nothing");
        table.report(1, "seek", at(2522, 7192.16), start + Duration::from_secs(16));
        let media = stream(&table, "seek").media_us;
        assert!((105_000_000..106_000_000).contains(&media), "{media}");
        let totals = table.take_job_totals("seek", SystemTime::now(), SystemTime::now()).unwrap();
        assert_eq!((totals.media_us, totals.dropped), (Some(media), None));
    }

    #[test]
    fn a_report_after_the_last_one_is_of_a_new_job() {
        let (mut table, start) = table();
        let end = |count| Report { end: true, ..frames(count) };
        for report in [frames(50), end(100), end(100), frames(150)] {
            table.report(1, "cam", report, start);
        }
        let cam = stream(&table, "cam");
        assert_eq!((cam.jobs, cam.frames), (2, 250));
    }

    #[test]
    fn ended_jobs_of_a_named_stream_do_not_keep_out_others() {
        let (mut table, start) = table();
        for source in 0..12 {
            assert!(table.report(source, "cam", Report { end: true, ..frames(1) }, start));
        }
        let later = |seconds| start + Duration::from_secs(seconds);
        assert!(!table.report_unnamed(20, "udp-1", frames(1), later(30)), "the job log may need them");
        assert!(table.report_unnamed(20, "udp-1", frames(1), later(90)));
        assert_eq!(stream(&table, "cam").frames, 12);
    }

    #[test]
    fn unnamed_senders_take_no_room_of_named_streams() {
        let (mut table, start) = table();
        for source in 0..100 {
            table.report_unnamed(source, &format!("udp-{source}"), frames(1), start);
        }
        assert_eq!((table.streams().count(), table.dropped()), (3, 97));
        for (source, name) in [(201, "a"), (202, "b"), (203, "c")] {
            assert!(table.report(source, name, frames(1), start), "{name}");
        }
        let later = start + Duration::from_secs(60);
        assert!(!table.report_unnamed(1, "udp-1", frames(2), later), "the silent ones have names");
        assert!(table.report(204, "d", frames(1), later));
    }

    proptest! {
        #[test]
        fn totals_only_grow_and_streams_are_bounded(
            reports in prop::collection::vec((0u64..4, 0usize..6, prop::option::of(any::<u64>()), any::<bool>(), 0u64..10), 0..60),
        ) {
            let (mut table, mut now) = table();
            let mut last: BTreeMap<String, u64> = BTreeMap::new();
            for (source, name, frames, end, wait) in reports {
                now += Duration::from_secs(wait);
                table.report(source, &format!("s{name}"), Report { frames, end, ..Report::default() }, now);
                let present: Vec<String> = table.streams().map(|(name, _)| name.to_owned()).collect();
                last.retain(|name, _| present.contains(name));
                for (name, stream) in table.streams() {
                    let before = last.insert(name.to_owned(), stream.frames).unwrap_or(0);
                    // A stream that `make_room` removed starts again from zero.
                    prop_assert!(stream.frames >= before || stream.reports == 1);
                }
                prop_assert!(last.len() <= 3);
            }
        }
    }
}
