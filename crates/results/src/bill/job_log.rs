//! The usage of a period from the job log of the analysis service, `streams.ndjson`: one line for
//! each ended ffmpeg job.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    path::Path,
};

use serde::Deserialize;
use units::Microjoules;

use crate::energy::{
    database::usage::PeriodUsage,
    usage::{Gap, HostUsage, MAX_NUMBERS, Slots, WorkloadUsage, add_slots},
};

/// Longest line that is read.
const MAX_LINE: u64 = 1 << 20;
/// Maximum number of streams or containers.
const MAX_ROWS: usize = 20_000;

/// One line, as far as it is used here.
#[derive(Deserialize)]
struct JobLine {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    container: String,
    started: f64,
    /// Absent in old lines: the start.
    counted_since_seconds: Option<f64>,
    ended: f64,
    joules: f64,
    #[serde(default)]
    source: String,
    media_seconds: Option<f64>,
}

/// What the log contains.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogUsage {
    /// The energy of the jobs. Their host is unknown, and its account is not in the log: the
    /// measured energy is that of the jobs.
    pub usage: PeriodUsage,
    /// Number of jobs in the period.
    pub jobs: u64,
    /// Lines that are no job.
    pub invalid: u64,
}

/// Reads the log. Rows are streams, or containers with `by_container`. A job that is partly in the
/// period counts by time.
///
/// # Errors
/// If the file cannot be read, or has too many streams.
pub fn read(path: &Path, slots: &Slots, by_container: bool) -> io::Result<LogUsage> {
    read_from(BufReader::new(File::open(path)?), slots, by_container)
}

fn read_from(mut file: impl io::BufRead, slots: &Slots, by_container: bool) -> io::Result<LogUsage> {
    let mut log = LogUsage::default();
    let mut rows: BTreeMap<String, WorkloadUsage> = BTreeMap::new();
    let (mut covered, mut uncounted) = (TimeSpans::default(), TimeSpans::default());
    let mut line = Vec::new();
    loop {
        line.clear();
        if file.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let Some((job, times)) = parse(&line) else {
            log.invalid += 1;
            continue;
        };
        let [started, counted, ended] = times;
        if ended <= slots.start() || started >= slots.end() {
            continue;
        }
        log.jobs += 1;
        // The energy before is unknown: the probe was started during the job.
        uncounted.add(started.max(slots.start()), counted.min(slots.end()));
        covered.add(counted.max(slots.start()), ended.min(slots.end()));
        add_job(&mut rows, &mut log.usage.media, &job, (counted, ended), slots, by_container);
        if rows.len() > MAX_ROWS || rows.len().saturating_mul(slots.count()) > MAX_NUMBERS {
            return Err(io::Error::other(format!(
                "more than {MAX_ROWS} different streams, or too many for so long a period; choose a shorter period"
            )));
        }
    }
    let gap = |(from, to): (i64, i64)| Gap { from, to, uncounted_us: to.abs_diff(from) };
    let gaps = uncounted.0.into_iter().map(gap).collect();
    let mut host = HostUsage { measured: vec![0; slots.count()], gaps, ..HostUsage::default() };
    for row in rows.values() {
        add_slots(&mut host.measured, &row.dynamic);
        host.sources.extend(row.sources.iter().cloned());
    }
    // Jobs that run side by side are on one host.
    host.sampled_us = covered.length();
    host.workloads = rows.into_values().collect();
    log.usage.hosts = vec![host];
    Ok(log)
}

/// The union of times: start and end of each span, neither overlapping nor touching.
#[derive(Default)]
struct TimeSpans(BTreeMap<i64, i64>);

impl TimeSpans {
    fn add(&mut self, mut from: i64, mut to: i64) {
        if from >= to {
            return;
        }
        while let Some((start, end)) = self.0.range(..=to).next_back().map(|(start, end)| (*start, *end))
            && end >= from
        {
            self.0.remove(&start);
            (from, to) = (from.min(start), to.max(end));
        }
        self.0.insert(from, to);
    }

    fn length(&self) -> u64 {
        self.0.iter().fold(0, |sum: u64, (from, to)| sum.saturating_add(to.abs_diff(*from)))
    }
}

/// A job with its start, the time from which on it is counted, and its end in unix microseconds;
/// `None` if the line is no job.
fn parse(line: &[u8]) -> Option<(JobLine, [i64; 3])> {
    let job: JobLine = serde_json::from_slice(line).ok()?;
    let is_valid = job.joules.is_finite() && job.joules >= 0.0 && job.ended >= job.started;
    let counted = job.counted_since_seconds.unwrap_or(job.started).clamp(job.started, job.ended.max(job.started));
    let times = [microseconds(job.started)?, microseconds(counted)?, microseconds(job.ended)?];
    is_valid.then_some((job, times))
}

fn add_job(
    rows: &mut BTreeMap<String, WorkloadUsage>,
    media: &mut BTreeMap<(String, String), u64>,
    job: &JobLine,
    (counted, ended): (i64, i64),
    slots: &Slots,
    by_container: bool,
) {
    let name = if by_container { &job.container } else { &job.stream };
    let row = rows.entry(name.clone()).or_insert_with(|| WorkloadUsage {
        // As the row of a single job, which is a stream.
        id: format!("job:{name}"),
        name: name.clone(),
        dynamic: vec![0; slots.count()],
        awake: vec![0; slots.count()],
        idle: vec![0; slots.count()],
        ..WorkloadUsage::default()
    });
    // A job of no length has its energy at its end.
    let from = if counted < ended { counted } else { ended - 1 };
    slots.spread((from, ended), Microjoules::from_joules(job.joules).0, &mut row.dynamic);
    let inside = ended.min(slots.end()).saturating_sub(from.max(slots.start()));
    let inside = u64::try_from(inside).unwrap_or(0);
    row.sampled_us = Some(row.sampled_us.unwrap_or(0).saturating_add(inside));
    if !job.source.is_empty() {
        row.sources.insert(job.source.clone());
    }
    if let Some(seconds) = job.media_seconds.filter(|seconds| seconds.is_finite() && *seconds >= 0.0) {
        // The part of the job that is in the period.
        let whole = u128::from(Microjoules::from_joules(seconds).0);
        let part = whole * u128::from(inside) / u128::from(ended.abs_diff(from).max(1));
        let sum = media.entry((String::new(), name.clone())).or_default();
        *sum = sum.saturating_add(u64::try_from(part).unwrap_or(u64::MAX));
    }
}

/// Unix seconds from 1970 to 2200 in microseconds.
fn microseconds(seconds: f64) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    (0.0..7.3e9).contains(&seconds).then(|| (seconds * 1e6).round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;

    fn read(text: &str, by_container: bool) -> LogUsage {
        let slots = Slots::new(vec![HOUR, 2 * HOUR]);
        read_from(text.as_bytes(), &slots, by_container).unwrap()
    }

    #[test]
    fn jobs_count_by_their_time_in_the_period() {
        let log = "{\"stream\":\"cam\",\"container\":\"a\",\"started\":1800,\"ended\":5400,\"joules\":10,\"source\":\"perf\",\"media_seconds\":100}\n\
                   {\"stream\":\"cam\",\"container\":\"b\",\"started\":4000,\"ended\":4000,\"joules\":1.5,\"source\":\"perf\"}\n\
                   {\"stream\":\"late\",\"started\":7200,\"ended\":7300,\"joules\":9}\nnonsense\n\n\
                   {\"stream\":\"cut\",\"started\":3600,\"counted_since_seconds\":3700,\"ended\":3800,\"joules\":1}";
        let found = read(log, false);
        assert_eq!((found.jobs, found.invalid), (3, 1));
        let host = &found.usage.hosts[0];
        let rows: Vec<(&str, u64)> = host.workloads.iter().map(|row| (&*row.name, row.dynamic[0])).collect();
        assert_eq!(rows, [("cam", 6_500_000), ("cut", 1_000_000)]);
        assert_eq!(host.measured, [7_500_000]);
        assert_eq!(found.usage.media[&(String::new(), "cam".to_owned())], 50_000_000);
        assert_eq!(host.gaps, [Gap { from: HOUR, to: HOUR + 100_000_000, uncounted_us: 100_000_000 }]);
        let rows = read(log, true).usage.hosts[0].workloads.len();
        assert_eq!(rows, 3, "two containers, and one without a name");
    }

    /// The time of the host was the sum over its jobs, and with it the emissions of its production.
    #[test]
    fn jobs_side_by_side_are_on_one_host() {
        let log = "{\"stream\":\"a\",\"started\":3600,\"ended\":5400,\"joules\":1}\n\
                   {\"stream\":\"b\",\"started\":4000,\"ended\":5000,\"joules\":1}\n\
                   {\"stream\":\"c\",\"started\":7000,\"ended\":9000,\"joules\":1}\n\
                   {\"stream\":\"d\",\"started\":5300,\"ended\":5500,\"joules\":1}";
        assert_eq!(read(log, false).usage.hosts[0].sampled_us, (1900 + 200) * 1_000_000);
    }

    /// Each job had a gap of its own, so that their sum was longer than the period.
    #[test]
    fn uncounted_times_of_jobs_side_by_side_are_one_gap() {
        let log = "{\"stream\":\"a\",\"started\":3700,\"counted_since_seconds\":4000,\"ended\":5400,\"joules\":1}\n\
                   {\"stream\":\"b\",\"started\":3600,\"counted_since_seconds\":4000,\"ended\":5000,\"joules\":1}";
        let gap = Gap { from: HOUR, to: HOUR + 400_000_000, uncounted_us: 400_000_000 };
        assert_eq!(read(log, false).usage.hosts[0].gaps, [gap]);
    }

    #[test]
    fn months_of_a_log_sum_to_the_whole() {
        let job = "{\"stream\":\"cam\",\"started\":1000.1,\"ended\":9000.7,\"joules\":1234.567891}";
        let sum: u64 = (0..4)
            .map(|hour| {
                let slots = Slots::new(vec![hour * HOUR, (hour + 1) * HOUR]);
                read_from(job.as_bytes(), &slots, false).unwrap().usage.hosts[0].measured[0]
            })
            .sum();
        assert_eq!(sum, 1_234_567_891);
    }
}
