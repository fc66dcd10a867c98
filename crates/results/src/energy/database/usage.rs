//! Usage of a long period, read from the database in batches of raw samples.

use std::collections::BTreeMap;

use super::{Database, Series, SourceError, escaped, host_pattern};
use crate::energy::usage::{
    CounterSeries, GAP_US, HOST_METRICS, HostUsage, Slots, TooManyCounters, UsageBuilder, WORKLOAD_METRICS,
    microseconds,
};

/// Length of a batch in seconds, which is halved while a response is too large, down to the second.
const BATCH: (i64, i64) = (86_400, 300);
/// How often a batch without an answer is asked for again with half the length: it may take longer
/// than the timeout of a query.
const RETRIES: u32 = 3;
/// Maximum number of samples of a period.
const MAX_SAMPLES: u64 = 500_000_000;
/// Media time of streams, which the analysis service of the host exports.
const MEDIA: &str = "wattcast_stream_media_seconds_total";

/// Usage of a period.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeriodUsage {
    /// The hosts.
    pub hosts: Vec<HostUsage>,
    /// Media time in microseconds, by host without port and stream.
    pub media: BTreeMap<(String, String), u64>,
}

/// Media time of one stream.
#[derive(Default)]
struct MediaTime {
    /// Unix microseconds of the first sample.
    first: Option<i64>,
    /// Unix microseconds and value of the last sample.
    last: Option<(i64, u64)>,
    micro: u64,
}

impl Database {
    /// The usage of the period of `slots` on `hosts`, or on all hosts if there are none. `progress`
    /// is called with the part that was read, from 0 to 1.
    ///
    /// # Errors
    /// If a query fails, or there are too many counters or samples.
    pub fn usage(
        &self,
        slots: Slots,
        hosts: &[String],
        progress: &mut dyn FnMut(f64),
    ) -> Result<PeriodUsage, SourceError> {
        // A sample before the start and one after the end are needed for the energy at the edges.
        let reach = i64::try_from(self.reach.as_secs()).unwrap_or(i64::MAX / 2).max(GAP_US / 1_000_000);
        let (start, end) = (slots.start() / 1_000_000, slots.end() / 1_000_000);
        let (first, last) = (start.saturating_sub(reach), end.saturating_add(reach));
        let period = Slots::new(vec![slots.start(), slots.end()]);
        let mut builder = UsageBuilder::new(slots);
        // By all labels: the outputs of a stream are counters of their own.
        let mut media: BTreeMap<BTreeMap<String, String>, MediaTime> = BTreeMap::new();
        let (mut from, mut length, mut samples, mut retries) = (first, BATCH.0, 0u64, RETRIES);
        while from < last {
            let to = last.min(from.saturating_add(length));
            let batch = match self.batch(from, to, hosts) {
                Ok(batch) => batch,
                Err(error) if length > BATCH.1 && (is_too_much(&error) || may_be_slow(&error, &mut retries)) => {
                    length = (length / 2).max(BATCH.1);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let count = batch.iter().flatten().map(|series| series.values.len()).sum::<usize>();
            samples = samples.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
            if samples > MAX_SAMPLES {
                let message =
                    format!("more than {MAX_SAMPLES} samples; name one host with --host, or a shorter period");
                return Err(SourceError::Permanent("too_large".to_owned(), message));
            }
            let [of_hosts, of_workloads, of_media] = batch;
            builder.add_hosts(self.by_host(of_hosts)).map_err(too_many)?;
            builder.add_workloads(self.by_host(of_workloads)).map_err(too_many)?;
            for series in of_media {
                add_media(media.entry(series.metric.clone()).or_default(), &series, &period);
            }
            from = to;
            progress(seconds(from - first) / seconds(last - first));
        }
        let mut by_stream: BTreeMap<(String, String), Vec<MediaTime>> = BTreeMap::new();
        for (labels, time) in media {
            let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
            let key = (without_port(&label(&self.host_label)).to_owned(), label("stream"));
            by_stream.entry(key).or_default().push(time);
        }
        let media = by_stream.into_iter().map(|(key, all)| (key, media_of(all))).collect();
        Ok(PeriodUsage { hosts: builder.finish(), media })
    }

    /// The series of one batch: of hosts, of workloads, and of media time.
    fn batch(&self, from: i64, to: i64, hosts: &[String]) -> Result<[Vec<Series>; 3], SourceError> {
        let of_hosts = match hosts {
            [] => String::new(),
            some => {
                let patterns: Vec<String> = some.iter().map(|host| host_pattern(host)).collect();
                format!(",{}=~\"{}\"", self.host_label, patterns.join("|"))
            }
        };
        let length = to.abs_diff(from);
        let query = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| escaped(name)).collect();
            let selector = format!("{{__name__=~\"{}\"{of_hosts}}}", names.join("|"));
            self.raw(&selector, length, seconds(to))
        };
        Ok([query(&HOST_METRICS)?, query(&WORKLOAD_METRICS)?, query(&[MEDIA])?])
    }

    fn by_host(&self, all: Vec<Series>) -> Vec<(String, CounterSeries)> {
        let counter = |series: Series| {
            let samples = series.counter();
            let mut labels = series.metric;
            let metric = labels.remove("__name__").unwrap_or_default();
            let host = labels.get(&self.host_label).cloned().unwrap_or_default();
            (host, CounterSeries { metric, labels, samples })
        };
        all.into_iter().map(counter).collect()
    }
}

/// True for an error that a shorter batch may not have.
fn is_too_much(error: &SourceError) -> bool {
    matches!(error, SourceError::Permanent(code, _) if matches!(&**code, "too_large" | "refused"))
}

/// True for a missing answer, at most [`RETRIES`] times.
fn may_be_slow(error: &SourceError, retries: &mut u32) -> bool {
    let again = matches!(error, SourceError::Unreachable(_)) && *retries > 0;
    *retries -= u32::from(again);
    again
}

fn too_many(error: TooManyCounters) -> SourceError {
    SourceError::Permanent("too_large".to_owned(), error.to_string())
}

/// Adds the media time between samples, in whole microseconds, as far as it is in the period, which
/// is one slot. A decrease is a reset.
fn add_media(time: &mut MediaTime, series: &Series, period: &Slots) {
    for sample in series.counter() {
        let at = microseconds(&sample);
        let (from, whole) = match time.last {
            Some((last, _)) if last >= at => continue,
            Some((last, value)) => (last, sample.micro.checked_sub(value).unwrap_or(sample.micro)),
            // Whether it began in the period is unknown, as its service may not have been scraped.
            None => (at, 0),
        };
        let mut inside = [0];
        period.spread((from, at), whole, &mut inside);
        time.micro = time.micro.saturating_add(inside[0]);
        time.first = time.first.or(Some(at));
        time.last = Some((at, sample.micro));
    }
}

/// Media time of a stream in microseconds. Series at the same time are its outputs, or scrapes of
/// the same, and the largest counts; one after the other is the same stream under other labels.
fn media_of(mut all: Vec<MediaTime>) -> u64 {
    all.sort_by_key(|time| time.first);
    let (mut sum, mut largest, mut end) = (0u64, 0u64, None);
    for time in all {
        if time.first > end {
            sum = sum.saturating_add(largest);
            largest = 0;
        }
        largest = largest.max(time.micro);
        end = end.max(time.last.map(|(at, _)| at));
    }
    sum.saturating_add(largest)
}

/// A host name without the port of its address.
#[must_use]
pub fn without_port(address: &str) -> &str {
    match address.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        _ => address,
    }
}

#[expect(clippy::cast_precision_loss, reason = "unix seconds; a double holds them exactly")]
fn seconds(seconds: i64) -> f64 {
    seconds as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_time_counts_in_the_period_and_over_resets() {
        let series = Series {
            metric: BTreeMap::new(),
            value: None,
            values: [(900.0, "50"), (960.0, "60"), (1020.0, "5.5"), (5000.0, "9")]
                .map(|(at, value)| (at, value.to_owned()))
                .to_vec(),
        };
        let micro = |start: i64, end: i64| {
            let mut time = MediaTime::default();
            add_media(&mut time, &series, &Slots::new(vec![start * 1_000_000, end * 1_000_000]));
            time.micro
        };
        // Half of the pair around the start, and a half of the last one.
        assert_eq!(micro(930, 3010), 5_000_000 + 5_500_000 + 1_750_000);
        assert_eq!(micro(0, 5000), 10_000_000 + 5_500_000 + 3_500_000, "from the first sample on");
        assert_eq!(micro(890, 1000) + micro(1000, 5000), micro(890, 5000), "no time is in two periods");
    }

    /// A stream whose series got another label had the media time of its longest one.
    #[test]
    fn media_time_of_successive_series_is_added() {
        let time = |first, last, micro| MediaTime { first: Some(first), last: Some((last, 0)), micro };
        assert_eq!(media_of(vec![time(60, 90, 7), time(0, 50, 5), time(10, 40, 3)]), 12);
        assert_eq!(media_of(vec![time(0, 50, 5), time(10, 70, 3), time(60, 90, 4)]), 5, "they overlap");
        assert_eq!(media_of(vec![MediaTime::default()]), 0);
    }

    #[test]
    fn missing_answers_shorten_a_batch_three_times() {
        let (mut retries, error) = (RETRIES, SourceError::Unreachable("timed out".to_owned()));
        let again: Vec<bool> = (0..5).map(|_| may_be_slow(&error, &mut retries)).collect();
        assert_eq!(again, [true, true, true, false, false]);
        assert!(is_too_much(&SourceError::Permanent("too_large".to_owned(), String::new())));
    }

    #[test]
    fn ports_are_no_part_of_a_host_name() {
        for (address, host) in [("enc-1:9500", "enc-1"), ("enc-1", "enc-1"), ("[::1]:9500", "[::1]"), ("a:b", "a:b")] {
            assert_eq!(without_port(address), host);
        }
    }
}
