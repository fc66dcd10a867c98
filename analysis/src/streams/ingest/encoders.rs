//! Joins the streams of media servers with the encoders that publish them, and derives their energy
//! per viewer-hour and per gigabyte.
//!
//! The probe and this service compute the same digest of a stream's address, so neither shows the
//! key. A figure is the energy of a stream's encoders over what was delivered in the same time, the
//! last five minutes. The energy is that of the probe's row of the stream
//! (`wattcast_stream_energy_joules_total`); an encoder whose energy is known only for several
//! streams together counts in the figure of all streams alone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use results::energy::jobs::Jobs;

use super::totals::{Labels, ServerTotals};
use crate::streams::nginx::MAX_STREAMS;

/// Time over which figures are computed, and the shortest.
const WINDOW: Duration = Duration::from_secs(300);
const MIN_WINDOW: Duration = Duration::from_secs(60);
/// Shortest time between two points of a window.
const POINT_INTERVAL: Duration = Duration::from_secs(10);
/// Age of the probe's last answer from which there are no figures.
const STALE: Duration = Duration::from_secs(60);
/// Time for which an encoder that has ended keeps its series.
const RETAIN: Duration = Duration::from_secs(300);
/// Maximum number of the probe's streams whose last energy is kept.
const MAX_ENERGIES: usize = 4096;

/// What was used and delivered since the join began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Delivery {
    joules: f64,
    viewer_ms: u64,
    sent: u64,
}

/// A figure of one stream, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EnergyFigures {
    /// `None` without viewers.
    pub joules_per_viewer_hour: Option<f64>,
    /// `None` while nothing is sent.
    pub joules_per_gigabyte: Option<f64>,
}

/// Deliveries over the last minutes.
#[derive(Debug, Default)]
struct Window {
    total: Delivery,
    points: VecDeque<(Instant, Delivery)>,
}

impl Window {
    fn add(&mut self, more: Delivery) {
        self.total.joules += more.joules;
        self.total.viewer_ms = self.total.viewer_ms.saturating_add(more.viewer_ms);
        self.total.sent = self.total.sent.saturating_add(more.sent);
    }

    /// Keeps a point for later figures, and one that is older than the window.
    fn mark(&mut self, now: Instant) {
        let due = |(at, _): &(Instant, Delivery)| now.saturating_duration_since(*at) >= POINT_INTERVAL;
        if self.points.back().is_none_or(due) {
            self.points.push_back((now, self.total));
        }
        while self.points.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW) {
            self.points.pop_front();
        }
    }

    fn figures(&self) -> EnergyFigures {
        let (Some((start, first)), Some((end, last))) = (self.points.front(), self.points.back()) else {
            return EnergyFigures::default();
        };
        if end.saturating_duration_since(*start) < MIN_WINDOW {
            return EnergyFigures::default();
        }
        let joules = last.joules - first.joules;
        let per = |amount: u64, unit: f64| (amount > 0).then(|| joules / (float(amount) / unit));
        EnergyFigures {
            joules_per_viewer_hour: per(last.viewer_ms.saturating_sub(first.viewer_ms), 3_600_000.0),
            joules_per_gigabyte: per(last.sent.saturating_sub(first.sent), 1e9),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds and bytes of minutes, for output")]
fn float(count: u64) -> f64 {
    count as f64
}

/// The encoders of a stream.
#[derive(Debug, Default)]
struct Encoder {
    labels: Labels,
    /// By the label `source`.
    joules: BTreeMap<String, f64>,
    window: Window,
    seen: Option<Instant>,
}

/// A row of the page.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderRow<'a> {
    pub labels: &'a Labels,
    /// Energy since the join, by source.
    pub joules: &'a BTreeMap<String, f64>,
    pub figures: EnergyFigures,
}

/// All encoders.
#[derive(Debug, Default)]
pub struct Encoders {
    /// The answer of the probe that was used last, and when.
    jobs: Option<Arc<Jobs>>,
    fresh: Option<Instant>,
    /// The last energy of each stream of the probe, by container and name.
    energies: HashMap<(String, String), f64>,
    /// What each stream of the servers had delivered, by digest.
    delivered: HashMap<String, (u64, u64)>,
    /// By digest.
    streams: BTreeMap<String, Encoder>,
    all: Encoder,
}

/// The growth of one answer of the probe.
#[derive(Default)]
struct Growth {
    /// By digest and source, of streams whose energy is known.
    single: BTreeMap<(String, String), f64>,
    /// Digests whose energy is known only together with that of others.
    together: BTreeSet<String>,
    /// By source, of all that is published to a known server.
    all: BTreeMap<String, f64>,
    /// All digests that are published to a known server.
    joined: BTreeSet<String>,
}

impl Encoders {
    /// Takes a new answer of the probe, with what the servers have delivered until now. An answer
    /// that was used already adds nothing, so that energy and delivery have the same times.
    pub fn observe<'a>(&mut self, jobs: &Arc<Jobs>, servers: impl Iterator<Item = &'a ServerTotals>, now: Instant) {
        // Before the first answer.
        if jobs.probe_started == 0.0 || self.jobs.as_ref().is_some_and(|known| Arc::ptr_eq(known, jobs)) {
            return;
        }
        let is_first = self.jobs.replace(jobs.clone()).is_none();
        self.fresh = Some(now);
        let (labels, delivered) = deliveries(servers);
        let growth = self.growth(jobs, &labels, is_first);
        let grown = |digest: &str| {
            let (viewer_ms, sent) = delivered.get(digest).copied().unwrap_or_default();
            let before =
                self.delivered.get(digest).copied().unwrap_or(if is_first { (viewer_ms, sent) } else { (0, 0) });
            let joules = 0.0;
            Delivery { joules, viewer_ms: viewer_ms.saturating_sub(before.0), sent: sent.saturating_sub(before.1) }
        };
        for digest in &growth.joined {
            let delivery = grown(digest);
            self.all.window.add(delivery);
            let has_room = self.streams.len() < MAX_STREAMS || self.streams.contains_key(digest);
            if growth.together.contains(digest) || !has_room {
                self.streams.remove(digest);
                continue;
            }
            let encoder = self.streams.entry(digest.clone()).or_default();
            encoder.seen = Some(now);
            encoder.window.add(delivery);
            if let Some(labels) = labels.get(digest) {
                encoder.labels.clone_from(labels);
            }
        }
        for ((digest, source), joules) in growth.single {
            if let Some(encoder) = self.streams.get_mut(&digest) {
                encoder.add_energy(source, joules);
            }
        }
        for (source, joules) in growth.all {
            self.all.add_energy(source, joules);
        }
        self.delivered = delivered;
        self.streams.retain(|_, encoder| {
            encoder.window.mark(now);
            encoder.seen.is_some_and(|seen| now.saturating_duration_since(seen) < RETAIN)
        });
        self.all.window.mark(now);
    }

    /// The energy of streams that are published to a known server since the last answer.
    fn growth(&mut self, jobs: &Jobs, servers: &HashMap<String, Labels>, is_first: bool) -> Growth {
        let (mut growth, mut present) = (Growth::default(), BTreeSet::new());
        let published = jobs.jobs.iter().flat_map(|job| job.published.iter().map(move |stream| (job, stream)));
        for (job, stream) in published {
            let key = (job.container.clone(), stream.stream.clone());
            present.insert(key.clone());
            // Successive jobs of a stream continue one counter, which starts again after a while.
            let grown = match self.energies.insert(key, stream.joules) {
                _ if is_first => 0.0,
                Some(before) if stream.joules >= before => stream.joules - before,
                _ => stream.joules,
            };
            let targets: BTreeSet<&String> = stream.targets.iter().collect();
            let known: Vec<&String> = targets.iter().copied().filter(|target| servers.contains_key(*target)).collect();
            if known.is_empty() || !grown.is_finite() {
                continue;
            }
            growth.joined.extend(known.iter().copied().cloned());
            *growth.all.entry(job.source.clone()).or_default() += grown;
            match targets.iter().next() {
                Some(target) if targets.len() == 1 => {
                    *growth.single.entry(((*target).clone(), job.source.clone())).or_default() += grown;
                }
                _ => growth.together.extend(known.into_iter().cloned()),
            }
        }
        if self.energies.len() > MAX_ENERGIES {
            self.energies.retain(|key, _| present.contains(key));
        }
        growth
    }

    /// Begins all figures again, because deliveries are unknown for a while.
    pub fn restart(&mut self) {
        for encoder in self.streams.values_mut().chain([&mut self.all]) {
            encoder.window.points.clear();
        }
    }

    /// The streams whose encoders are known; no figures while the probe does not answer.
    pub fn rows(&self, now: Instant) -> impl Iterator<Item = EncoderRow<'_>> {
        self.streams.values().map(move |encoder| self.row(encoder, now))
    }

    /// All streams together.
    #[must_use]
    pub fn all(&self, now: Instant) -> EncoderRow<'_> {
        self.row(&self.all, now)
    }

    fn row<'a>(&self, encoder: &'a Encoder, now: Instant) -> EncoderRow<'a> {
        let is_fresh = self.fresh.is_some_and(|at| now.saturating_duration_since(at) < STALE);
        let figures = if is_fresh { encoder.window.figures() } else { EnergyFigures::default() };
        EncoderRow { labels: &encoder.labels, joules: &encoder.joules, figures }
    }
}

impl Encoder {
    fn add_energy(&mut self, source: String, joules: f64) {
        *self.joules.entry(source).or_default() += joules;
        self.window.add(Delivery { joules, ..Delivery::default() });
    }
}

/// The labels of each stream of the servers that answer, and what all servers have delivered of it:
/// milliseconds of viewers and bytes, both by digest.
fn deliveries<'a>(
    servers: impl Iterator<Item = &'a ServerTotals>,
) -> (HashMap<String, Labels>, HashMap<String, (u64, u64)>) {
    let (mut names, mut sums) = (HashMap::new(), HashMap::new());
    let rows = servers.flat_map(|server| server.rows.iter().map(move |row| (server.answers(), row)));
    for (answers, (labels, row)) in rows {
        if answers {
            names.entry(row.digest.clone()).or_insert_with(|| labels.clone());
        }
        let sum: &mut (u64, u64) = sums.entry(row.digest.clone()).or_default();
        sum.0 = sum.0.saturating_add(row.viewer_ms.unwrap_or(0));
        sum.1 = sum.1.saturating_add(row.delivered);
    }
    (names, sums)
}

#[cfg(test)]
mod tests {
    use super::{
        super::server::{ServerStats, ServerStream},
        *,
    };
    use crate::streams::nginx::StreamLabel;

    fn jobs(streams: &[(&str, f64, &[&str])]) -> Arc<Jobs> {
        let published: Vec<serde_json::Value> = streams
            .iter()
            .map(|(stream, joules, paths)| {
                let targets: Vec<String> = paths.iter().map(|path| ServerStream::of_path(path).digest()).collect();
                serde_json::json!({"stream": stream, "joules": joules, "targets": targets})
            })
            .collect();
        let job = serde_json::json!({"job": 1, "source": "perf", "published": published});
        Arc::new(serde_json::from_value(serde_json::json!({"probe_started": 1.0, "jobs": [job]})).unwrap())
    }

    fn server(totals: &mut ServerTotals, all: &[(&str, u64, u64)], now: Instant) {
        let stream = |(path, sent, viewers): &(&str, u64, u64)| ServerStream {
            sent: Some(*sent),
            viewers: Some(*viewers),
            ..ServerStream::of_path(path)
        };
        let stats = ServerStats { streams: all.iter().map(stream).collect(), unread: 0 };
        totals.add(&stats, StreamLabel::Name, now, Duration::from_secs(30));
    }

    #[test]
    fn energy_per_viewer_hour_is_that_of_the_same_time() {
        let (mut encoders, mut totals, start) = (Encoders::default(), ServerTotals::default(), Instant::now());
        // 10 W, two viewers, 1 MB/s; the energy before the first answer does not count.
        for second in 0..=120_u32 {
            let now = start + Duration::from_secs(second.into());
            server(&mut totals, &[("live/a", u64::from(second) * 1_000_000, 2)], now);
            let jobs = jobs(&[("rtmp-1", 5000.0 + f64::from(second) * 10.0, &["live/a"])]);
            encoders.observe(&jobs, [&totals].into_iter(), now);
            // The same answer again.
            encoders.observe(&jobs, [&totals].into_iter(), now);
        }
        let now = start + Duration::from_secs(120);
        let rows: Vec<EncoderRow<'_>> = encoders.rows(now).collect();
        assert_eq!((rows.len(), rows[0].labels), (1, &("live".to_owned(), "a".to_owned())));
        assert_eq!(rows[0].joules, &BTreeMap::from([("perf".to_owned(), 1200.0)]));
        let close = |value: Option<f64>, expected: f64| (value.unwrap() / expected - 1.0).abs() < 1e-9;
        let all = encoders.all(now).figures;
        for figures in [rows[0].figures, all] {
            assert!(close(figures.joules_per_viewer_hour, 18_000.0), "{figures:?}");
            assert!(close(figures.joules_per_gigabyte, 10_000.0), "{figures:?}");
        }
        // The probe does not answer any more.
        assert_eq!(encoders.all(now + STALE).figures, EnergyFigures::default());
    }

    #[test]
    fn a_stream_without_viewers_has_no_figure() {
        let (mut encoders, mut totals, start) = (Encoders::default(), ServerTotals::default(), Instant::now());
        for second in 0..=90_u32 {
            let now = start + Duration::from_secs(second.into());
            server(&mut totals, &[("live/a", 0, 0)], now);
            encoders.observe(&jobs(&[("rtmp-1", f64::from(second), &["live/a"])]), [&totals].into_iter(), now);
        }
        let row = encoders.all(start + Duration::from_secs(90));
        assert_eq!((row.figures, row.joules["perf"]), (EnergyFigures::default(), 90.0));
    }

    #[test]
    fn the_encoders_of_a_server_that_does_not_answer_are_left_out() {
        let (mut encoders, start) = (Encoders::default(), Instant::now());
        let (mut one, mut other) = (ServerTotals::default(), ServerTotals::default());
        for second in 0..=200_u32 {
            let now = start + Duration::from_secs(second.into());
            server(&mut one, &[("live/a", 0, 1)], now);
            if second < 60 {
                server(&mut other, &[("live/b", 0, 1)], now);
            } else if other.pause() {
                encoders.restart();
            }
            let joules = f64::from(second);
            let jobs = jobs(&[("rtmp-1", joules, &["live/a"]), ("rtmp-2", joules, &["live/b"])]);
            encoders.observe(&jobs, [&one, &other].into_iter(), now);
        }
        let figure = encoders.all(start + Duration::from_secs(200)).figures.joules_per_viewer_hour.unwrap();
        assert!((figure - 3600.0).abs() < 1e-6, "{figure}");
    }

    #[test]
    fn energy_of_several_streams_together_counts_once() {
        let (mut encoders, mut totals, start) = (Encoders::default(), ServerTotals::default(), Instant::now());
        for second in 0..=90_u32 {
            let now = start + Duration::from_secs(second.into());
            server(&mut totals, &[("live/a", 0, 1), ("live/b", 0, 1), ("live/other", 0, 100)], now);
            let joules = f64::from(second);
            let jobs = jobs(&[("tee-1", joules, &["live/a", "live/b"]), ("rtmp-2", joules, &["elsewhere/x"])]);
            encoders.observe(&jobs, [&totals].into_iter(), now);
        }
        let now = start + Duration::from_secs(90);
        assert_eq!(encoders.rows(now).count(), 0);
        // One watt for two viewers; the stream without an encoder, and the encoder without a
        // server, are left out.
        let figure = encoders.all(now).figures.joules_per_viewer_hour.unwrap();
        assert!((figure - 1800.0).abs() < 1e-6, "{figure}");
    }
}
