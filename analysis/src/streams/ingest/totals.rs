//! What one media server has received and sent, and for how long it was watched.
//!
//! A server's counters are those of a stream, and start again with its next publisher. Totals are
//! sums of growth, which never fall, for the server and for each of its streams with series.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use super::server::{MAX_READ, ServerStats, ServerStream};
use crate::streams::nginx::{MAX_STREAMS, StreamLabel};

/// Time for which a stream that has ended keeps its series.
const RETAIN: Duration = Duration::from_secs(300);

/// The labels `app` and `stream`.
pub type Labels = (String, String);

/// Bytes from publishers and to viewers, where they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    pub received: Option<u64>,
    pub sent: Option<u64>,
}

impl Bytes {
    fn of(stream: &ServerStream) -> Self {
        Self { received: stream.received, sent: stream.sent }
    }

    /// The growth since `before`: a counter that has fallen has started again.
    fn since(self, before: Self) -> Self {
        let growth = |before: Option<u64>, now: Option<u64>| {
            let now = now?;
            Some(now.checked_sub(before.unwrap_or(0)).unwrap_or(now))
        };
        Self { received: growth(before.received, self.received), sent: growth(before.sent, self.sent) }
    }

    fn add(&mut self, more: Self) {
        add(&mut self.received, more.received);
        add(&mut self.sent, more.sent);
    }
}

/// Adds what is known.
fn add(sum: &mut Option<u64>, more: Option<u64>) {
    if let Some(more) = more {
        *sum = Some(sum.unwrap_or(0).saturating_add(more));
    }
}

/// Adds a stream of the same application and name, as virtual hosts may have.
fn merge(sum: &mut ServerStream, more: &ServerStream) {
    for (sum, more) in [
        (&mut sum.received, more.received),
        (&mut sum.sent, more.sent),
        (&mut sum.viewers, more.viewers),
        (&mut sum.publishers, more.publishers),
    ] {
        add(sum, more);
    }
}

/// A stream with series.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamTotals {
    /// By which the output of an encoder is recognised.
    pub digest: String,
    pub bytes: Bytes,
    /// Time of all viewers in milliseconds; `None` while their number was never known.
    pub viewer_ms: Option<u64>,
    /// Bytes sent between readings of which the later one continued the earlier one.
    pub delivered: u64,
    /// Viewers and publishers at the last reading; `None` if unknown, or the stream has ended.
    pub viewers: Option<u64>,
    pub publishers: Option<u64>,
    seen: Instant,
}

/// The totals of a server since the first reading.
#[derive(Debug, Default)]
pub struct ServerTotals {
    /// Sum over all streams.
    pub bytes: Bytes,
    /// Number of streams at the last reading.
    pub streams: u64,
    /// Viewers and publishers of all streams at the last reading, where they are known.
    pub viewers: Option<u64>,
    pub publishers: Option<u64>,
    /// Streams without series at the last reading.
    pub dropped: u64,
    pub rows: BTreeMap<Labels, StreamTotals>,
    /// The counters of each stream at the last reading that had it, and when that was, by
    /// application and name.
    last: HashMap<(String, String), (Bytes, Instant)>,
    last_at: Option<Instant>,
}

/// The streams of one label at one reading.
struct Current {
    digest: String,
    growth: Bytes,
    viewers: Option<u64>,
    publishers: Option<u64>,
}

impl ServerTotals {
    /// Adds a reading. It continues the one before it, unless that is longer ago than `max_gap` or
    /// the server did not answer meanwhile: then viewers and deliveries are counted from now on,
    /// and the answer is false.
    pub fn add(&mut self, stats: &ServerStats, label: StreamLabel, now: Instant, max_gap: Duration) -> bool {
        let gap = self.last_at.replace(now).map(|at| now.saturating_duration_since(at));
        let gap = gap.filter(|gap| *gap <= max_gap);
        (self.viewers, self.publishers) = (None, None);
        let mut streams: BTreeMap<(&str, &str), ServerStream> = BTreeMap::new();
        for stream in &stats.streams {
            streams
                .entry((&*stream.app, &*stream.name))
                .and_modify(|sum| merge(sum, stream))
                .or_insert_with(|| stream.clone());
        }
        let mut current: BTreeMap<Labels, Current> = BTreeMap::new();
        for stream in streams.values() {
            let bytes = Bytes::of(stream);
            let before = self.last.insert((stream.app.clone(), stream.name.clone()), (bytes, now));
            let growth = bytes.since(before.map(|(bytes, _)| bytes).unwrap_or_default());
            self.bytes.add(growth);
            add(&mut self.viewers, stream.viewers);
            add(&mut self.publishers, stream.publishers);
            let row = current.entry(stream.labels(label)).or_insert_with(|| Current {
                digest: stream.digest(),
                growth: Bytes::default(),
                viewers: None,
                publishers: None,
            });
            row.growth.add(growth);
            add(&mut row.viewers, stream.viewers);
            add(&mut row.publishers, stream.publishers);
        }
        // A list that is sent in parts may lack a stream once, which then continues.
        let is_full = self.last.len() > 2 * MAX_READ;
        self.last.retain(|_, (_, seen)| *seen == now || (!is_full && now.saturating_duration_since(*seen) <= max_gap));
        let read = u64::try_from(stats.streams.len()).unwrap_or(u64::MAX);
        self.streams = read.saturating_add(stats.unread);
        self.dropped = stats.unread;
        self.update_rows(current, now, gap);
        gap.is_some()
    }

    /// `gap` is the time since the reading that this one continues.
    fn update_rows(&mut self, current: BTreeMap<Labels, Current>, now: Instant, gap: Option<Duration>) {
        let gap_ms = gap.map_or(0, |gap| u64::try_from(gap.as_millis()).unwrap_or(0));
        let missing = current.keys().filter(|labels| !self.rows.contains_key(*labels)).count();
        let has_room = self.rows.len() + missing <= MAX_STREAMS;
        self.rows.retain(|labels, row| {
            // Those that watched it until now.
            if let Some(viewers) = row.viewers {
                add(&mut row.viewer_ms, Some(viewers.saturating_mul(gap_ms)));
            }
            (row.viewers, row.publishers) = (None, None);
            current.contains_key(labels) || (has_room && now.saturating_duration_since(row.seen) < RETAIN)
        });
        for (labels, stream) in current {
            if self.rows.len() >= MAX_STREAMS && !self.rows.contains_key(&labels) {
                self.dropped = self.dropped.saturating_add(1);
                continue;
            }
            let Current { digest, growth, viewers, publishers } = stream;
            let row = self.rows.entry(labels).or_insert_with(|| StreamTotals {
                digest,
                bytes: Bytes::default(),
                viewer_ms: None,
                delivered: 0,
                viewers: None,
                publishers: None,
                seen: now,
            });
            row.bytes.add(growth);
            // A stream that is new since then has sent all of it since then.
            if gap.is_some() {
                row.delivered = row.delivered.saturating_add(growth.sent.unwrap_or(0));
            }
            (row.viewers, row.publishers, row.seen) = (viewers, publishers, now);
            row.viewer_ms = row.viewer_ms.or(viewers.map(|_| 0));
        }
    }

    /// False while the server does not answer.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.last_at.is_some()
    }

    /// The server does not answer: how many watch is unknown from now on. Returns true if it
    /// answered before.
    pub fn pause(&mut self) -> bool {
        for row in self.rows.values_mut() {
            (row.viewers, row.publishers) = (None, None);
        }
        self.last_at.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_secs(30);

    fn stream(path: &str, sent: u64, viewers: u64) -> ServerStream {
        ServerStream {
            received: Some(sent / 2),
            sent: Some(sent),
            viewers: Some(viewers),
            publishers: Some(1),
            ..ServerStream::of_path(path)
        }
    }

    fn stats(streams: Vec<ServerStream>) -> ServerStats {
        ServerStats { streams, unread: 0 }
    }

    #[test]
    fn counters_grow_over_the_next_publisher_of_a_stream() {
        let (mut totals, start) = (ServerTotals::default(), Instant::now());
        for (second, sent, viewers) in [(0, 100, 2), (5, 300, 4), (10, 50, 0), (15, 50, 1)] {
            let now = start + Duration::from_secs(second);
            totals.add(&stats(vec![stream("live/a", sent, viewers)]), StreamLabel::Name, now, GAP);
        }
        let row = &totals.rows[&("live".to_owned(), "a".to_owned())];
        assert_eq!((row.bytes.sent, totals.bytes.sent), (Some(350), Some(350)));
        // Two for 5 s, four for 5 s, none for 5 s.
        assert_eq!((row.viewer_ms, row.delivered), (Some(30_000), 250));
    }

    #[test]
    fn streams_of_one_name_are_added_up() {
        let (mut totals, start) = (ServerTotals::default(), Instant::now());
        for (second, more) in [(0, 0), (5, 10), (10, 20)] {
            let both = vec![stream("live/a", 100 + more, 1), stream("live/a", 1000 + more, 2)];
            totals.add(&stats(both), StreamLabel::Hash, start + Duration::from_secs(second), GAP);
        }
        let row = totals.rows.values().next().unwrap();
        assert_eq!((row.bytes.sent, row.viewers, totals.bytes.sent), (Some(1140), Some(3), Some(1140)));
        assert_eq!((totals.streams, totals.viewers), (2, Some(3)));
    }

    #[test]
    fn a_stream_that_one_answer_lacks_is_not_counted_again() {
        let (mut totals, start) = (ServerTotals::default(), Instant::now());
        for (second, streams) in [(0, vec![stream("a", 1000, 1)]), (5, Vec::new()), (10, vec![stream("a", 1020, 1)])] {
            totals.add(&stats(streams), StreamLabel::Hash, start + Duration::from_secs(second), GAP);
        }
        let row = totals.rows.values().next().unwrap();
        assert_eq!((row.bytes.sent, row.delivered, totals.bytes.sent), (Some(1020), 20, Some(1020)));
        totals.add(&stats(Vec::new()), StreamLabel::Hash, start + Duration::from_secs(100), GAP);
        assert!(totals.last.is_empty());
    }

    #[test]
    fn time_without_an_answer_has_no_viewers() {
        let (mut totals, start) = (ServerTotals::default(), Instant::now());
        let one = stats(vec![stream("a", 100, 3)]);
        totals.add(&one, StreamLabel::Hash, start, GAP);
        assert!(totals.pause() && !totals.pause());
        assert_eq!(totals.rows.values().next().unwrap().viewers, None);
        totals.add(&one, StreamLabel::Hash, start + Duration::from_secs(20), GAP);
        totals.add(&one, StreamLabel::Hash, start + Duration::from_secs(100), GAP);
        assert_eq!(totals.rows.values().next().unwrap().viewer_ms, Some(0));
        totals.add(&one, StreamLabel::Hash, start + Duration::from_secs(110), GAP);
        assert_eq!(totals.rows.values().next().unwrap().viewer_ms, Some(30_000));
    }

    #[test]
    fn what_a_server_does_not_say_stays_unknown() {
        let (mut totals, start) = (ServerTotals::default(), Instant::now());
        for second in [0, 5] {
            let now = start + Duration::from_secs(second);
            totals.add(&stats(vec![ServerStream::of_path("a")]), StreamLabel::Hash, now, GAP);
        }
        let row = totals.rows.values().next().unwrap();
        assert_eq!((row.bytes, row.viewer_ms, totals.viewers), (Bytes::default(), None, None));
    }

    #[test]
    fn the_sums_contain_streams_without_series() {
        let (mut totals, start) = (ServerTotals::default(), Instant::now());
        let all = |sent: u64| stats((0..10_000).map(|number| stream(&format!("live/{number}"), sent, 1)).collect());
        totals.add(&all(10), StreamLabel::Hash, start, GAP);
        totals.add(&all(12), StreamLabel::Hash, start + Duration::from_secs(5), GAP);
        assert_eq!((totals.rows.len(), totals.dropped, totals.streams), (MAX_STREAMS, 10_000 - 512, 10_000));
        assert_eq!((totals.bytes.sent, totals.viewers), (Some(120_000), Some(10_000)));
        // New streams take the place of ended ones.
        let other = stats(vec![stream("other/a", 1, 1)]);
        totals.add(&other, StreamLabel::Name, start + Duration::from_secs(10), GAP);
        assert!(totals.rows.contains_key(&("other".to_owned(), "a".to_owned())) && totals.dropped == 0);
    }
}
