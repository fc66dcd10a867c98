//! The job log: a file with one JSON line per ended job, so that jobs shorter than a scrape
//! interval are not lost.
//!
//! While it cannot be written, a limited number of lines wait.

use std::{
    collections::{HashSet, VecDeque},
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::table::StreamTable;
use cli::line_file::{self, LineFormat};
use results::{
    convert::timestamp,
    cost::{Prices, money::float, tariff::Tariff},
    energy::jobs::{Job, JobOutput, Jobs},
};

/// Bytes at the end of an existing file that are searched for already logged jobs.
const TAIL: u64 = 1 << 20;
/// Limits of the lines that wait for the file: their number and their bytes.
const MAX_QUEUED: (usize, usize) = (4096, 4 << 20);
/// The beginning of a line.
const LINE_START: &[u8] = b"{\"schema\":";
/// Delay after the end of a job, as its last report may arrive late.
const GRACE: Duration = Duration::from_secs(3);
/// The largest part of a job's time that may be missing in its energy for a figure per frame.
const MAX_UNCOUNTED: f64 = 0.05;

/// The price of energy over time.
#[derive(Clone, Debug)]
pub struct EnergyPrice {
    tariff: Tariff,
    /// Power usage effectiveness.
    pue: f64,
    currency: String,
}

impl EnergyPrice {
    #[must_use]
    pub fn new(prices: &Prices) -> Self {
        Self { tariff: prices.tariff.clone(), pue: float(prices.pue), currency: prices.currency.clone() }
    }

    /// Mean price of a kilowatt hour during a job.
    fn mean(&self, started: f64, ended: f64) -> Option<f64> {
        let (started, ended) = (timestamp(started)?, timestamp(ended)?);
        self.tariff.mean(started, ended).map(float)
    }
}

#[derive(Serialize)]
struct JobLine<'a> {
    /// Version of the format.
    schema: u32,
    stream: &'a str,
    /// All streams of the job.
    streams: &'a [String],
    container: &'a str,
    image: &'a str,
    codec: &'a str,
    encoder: &'a str,
    preset: &'a str,
    width: Option<u32>,
    height: Option<u32>,
    started: f64,
    /// From when on the CPU seconds, joules and cost are counted: later than `started` if the probe
    /// started during the job. Frames and media seconds are those of the whole job.
    counted_since_seconds: f64,
    ended: f64,
    cpu_seconds: f64,
    joules: f64,
    /// Source of the energy; `model` is an estimate.
    source: &'a str,
    /// Absent without progress reports; this and the next three also if no report has them.
    frames: Option<u64>,
    media_seconds: Option<f64>,
    dropped_frames: Option<u64>,
    duplicated_frames: Option<u64>,
    /// Absent too if a twentieth or more of the job is not in its joules.
    joules_per_frame: Option<f64>,
    watt_hours: f64,
    cost: Option<f64>,
    currency: &'a str,
    price_per_kwh: Option<f64>,
    /// Always unknown when a job ends.
    vmaf: Option<f64>,
    #[serde(flatten)]
    key: JobKey,
}

/// Identifies a job, also over restarts of both programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct JobKey {
    /// Unix milliseconds.
    probe_started_ms: i64,
    job: u64,
}

/// Lines to be written.
#[derive(Default)]
pub struct PendingLines {
    lines: Vec<(JobKey, Vec<u8>)>,
    /// All jobs that the probe still reports.
    reported: HashSet<JobKey>,
}

/// The state of the job log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCounts {
    /// Lines that are not in the file and never will be.
    pub lost: u64,
    /// Lines that wait.
    pub queued: u64,
}

/// The file of ended jobs.
pub struct JobLog {
    path: PathBuf,
    price: EnergyPrice,
    /// Jobs whose line is in the file or was queued.
    logged: HashSet<JobKey>,
    queue: VecDeque<Vec<u8>>,
    queued_bytes: usize,
    lost: u64,
}

/// The jobs of the lines at the end of a file. The first line may be incomplete, and one that was
/// cut off may have the next one behind it.
#[must_use]
pub fn logged_jobs(tail: &[u8]) -> HashSet<JobKey> {
    let key = |line: &[u8]| serde_json::from_slice::<JobKey>(line).ok();
    let last_key = |line: &[u8]| {
        let at = line.windows(LINE_START.len()).rposition(|window| window == LINE_START)?;
        key(&line[at..])
    };
    tail.split(|byte| *byte == b'\n').filter_map(|line| key(line).or_else(|| last_key(line))).collect()
}

impl JobLog {
    /// Reads which jobs the file already has.
    #[must_use]
    pub fn open(path: &Path, price: EnergyPrice) -> Self {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(path) {
            let length = file.metadata().map_or(0, |meta| meta.len());
            let _ = file.seek(SeekFrom::Start(length.saturating_sub(TAIL)));
            let _ = file.take(TAIL).read_to_end(&mut text);
        }
        Self {
            path: path.to_owned(),
            price,
            logged: logged_jobs(&text),
            queue: VecDeque::new(),
            queued_bytes: 0,
            lost: 0,
        }
    }

    /// Numbers of lost and of waiting lines.
    #[must_use]
    pub fn counts(&self) -> LogCounts {
        LogCounts { lost: self.lost, queued: u64::try_from(self.queue.len()).unwrap_or(u64::MAX) }
    }

    /// The lines of ended jobs that are not in the file yet, with their totals from the table.
    #[must_use]
    pub fn pending(&self, jobs: &Jobs, table: &mut StreamTable, now: SystemTime) -> PendingLines {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        #[expect(clippy::cast_possible_truncation, reason = "unix milliseconds")]
        let probe_started_ms = (jobs.probe_started * 1000.0).round() as i64;
        let mut pending = PendingLines::default();
        for job in &jobs.jobs {
            let key = JobKey { probe_started_ms, job: job.job };
            // An end in the future was before the clock was set back.
            let is_due = |ended: &f64| (now - ended).abs() >= GRACE.as_secs_f64();
            let Some(ended) = job.ended.filter(is_due) else { continue };
            if !self.logged.contains(&key)
                && let Ok(mut line) = serde_json::to_vec(&self.line(job, ended, key, table))
            {
                line.push(b'\n');
                pending.lines.push((key, line));
            }
        }
        pending.reported = jobs.jobs.iter().map(|job| JobKey { probe_started_ms, job: job.job }).collect();
        pending
    }

    /// Appends the lines, and those that wait. The table must not be locked meanwhile, as reports
    /// would wait for the disk. Lines that cannot be written wait for the next call.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&mut self, pending: PendingLines) -> io::Result<()> {
        for (key, line) in pending.lines {
            // The totals have been taken from the table, so the line cannot be made again.
            self.logged.insert(key);
            self.queued_bytes += line.len();
            self.queue.push_back(line);
        }
        if self.logged.len() > 65_536 && !pending.reported.is_empty() {
            // The probe never reports a job again that it has forgotten.
            self.logged.retain(|key| pending.reported.contains(key));
        }
        let result = self.write_queue();
        while self.queue.len() > MAX_QUEUED.0 || self.queued_bytes > MAX_QUEUED.1 {
            self.take_first();
            self.lost += 1;
        }
        result
    }

    fn write_queue(&mut self) -> io::Result<()> {
        if self.queue.is_empty() {
            return Ok(());
        }
        let appended = line_file::append(&self.path, 0o640, LineFormat::Json, self.queue.iter().map(Vec::as_slice));
        self.lost += u64::from(appended.removed_torn);
        for _ in 0..appended.lines {
            self.take_first();
        }
        appended.result
    }

    fn take_first(&mut self) {
        if let Some(line) = self.queue.pop_front() {
            self.queued_bytes -= line.len();
        }
    }

    fn line<'a>(&'a self, job: &'a Job, ended: f64, key: JobKey, table: &mut StreamTable) -> JobLine<'a> {
        static NO_OUTPUT: JobOutput = JobOutput {
            codec: String::new(),
            encoder: String::new(),
            preset: String::new(),
            size: None,
            millifps: None,
            without_video: false,
        };
        let output = job.outputs.first().unwrap_or(&NO_OUTPUT);
        let stream = job.streams.first().map(String::as_str).unwrap_or_default();
        let at = |seconds: f64| UNIX_EPOCH + Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let totals = table.take_job_totals(stream, at(job.started), at(ended));
        let counted_since = job.counted_since();
        let counted = counted_since - job.started < MAX_UNCOUNTED * (ended - job.started).max(f64::MIN_POSITIVE);
        let frames = totals.as_ref().and_then(|totals| totals.frames);
        #[expect(clippy::cast_precision_loss, reason = "counts, for output")]
        let (media_seconds, per_frame) = (
            totals.as_ref().and_then(|totals| totals.media_us).map(|us| us as f64 / 1e6),
            frames.filter(|frames| counted && *frames > 0).map(|frames| job.joules / frames as f64),
        );
        let watt_hours = job.joules / 3600.0;
        let price = self.price.mean(counted_since, ended);
        JobLine {
            schema: 1,
            stream,
            streams: &job.streams,
            container: &job.container,
            image: &job.image,
            codec: job.codec(),
            encoder: &output.encoder,
            preset: &output.preset,
            width: output.size.map(|size| size.0),
            height: output.size.map(|size| size.1),
            started: job.started,
            counted_since_seconds: counted_since,
            ended,
            cpu_seconds: job.cpu_seconds,
            joules: job.joules,
            source: &job.source,
            frames,
            media_seconds,
            dropped_frames: totals.as_ref().and_then(|totals| totals.dropped),
            duplicated_frames: totals.as_ref().and_then(|totals| totals.duplicated),
            joules_per_frame: per_frame,
            watt_hours,
            cost: price.map(|price| watt_hours / 1000.0 * price * self.price.pue),
            currency: &self.price.currency,
            price_per_kwh: price,
            vmaf: None,
            key,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ffmpeg::Report;

    use super::*;

    #[test]
    fn a_job_is_logged_once_even_after_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("streams.ndjson");
        let price = EnergyPrice::new(&Prices::defaults());
        let mut table = StreamTable::new(4, Duration::from_secs(60));
        table.report(
            1,
            "cam",
            Report { frames: Some(50), out_time_us: Some(2_000_000), ..Report::default() },
            Instant::now(),
        );
        let now = SystemTime::now();
        let unix = now.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let job = Job {
            job: 3,
            streams: vec!["cam".into()],
            started: unix - 60.0,
            ended: Some(unix),
            joules: 36.0,
            source: "perf".into(),
            ..Job::default()
        };
        let jobs = Jobs { probe_started: unix - 100.0, jobs: vec![job], ..Jobs::default() };
        let mut log = JobLog::open(&path, price.clone());
        let pending = log.pending(&jobs, &mut table, now);
        log.write(pending).unwrap();
        assert!(!path.exists(), "its last report may still arrive");
        let later = now + Duration::from_secs(4);
        for _ in 0..2 {
            let pending = log.pending(&jobs, &mut table, later);
            log.write(pending).unwrap();
        }
        let mut restarted = JobLog::open(&path, price);
        let pending = restarted.pending(&jobs, &mut table, later);
        restarted.write(pending).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1);
        assert_eq!((lines[0]["frames"].as_u64(), lines[0]["joules_per_frame"].as_f64()), (Some(50), Some(0.72)));
        assert_eq!(lines[0]["counted_since_seconds"], lines[0]["started"]);
        assert_eq!(
            (lines[0]["media_seconds"].as_f64(), lines[0]["cost"].as_f64()),
            (Some(2.0), Some(0.01 / 1000.0 * 0.12))
        );
    }

    /// A probe that was restarted during the job gave it the time of its own start, so that its
    /// record lost the frames.
    #[test]
    fn a_job_that_is_older_than_the_probe_keeps_its_frames_and_says_from_when_its_joules_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("streams.ndjson");
        let mut table = StreamTable::new(4, Duration::from_secs(60));
        let report = Report { frames: Some(5000), out_time_us: Some(200_000_000), ..Report::default() };
        table.report(1, "cam", report, Instant::now());
        let now = SystemTime::now();
        let unix = now.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        // The job reported from its start on; the probe was restarted two minutes later.
        let job = Job {
            streams: vec!["cam".into()],
            started: unix,
            counted_since_seconds: Some(unix + 120.0),
            ended: Some(unix + 200.0),
            joules: 36.0,
            ..Job::default()
        };
        let jobs = Jobs { probe_started: unix + 119.0, jobs: vec![job], ..Jobs::default() };
        let mut log = JobLog::open(&path, EnergyPrice::new(&Prices::defaults()));
        let pending = log.pending(&jobs, &mut table, now + Duration::from_secs(210));
        log.write(pending).unwrap();
        let line: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!((line["frames"].as_u64(), line["media_seconds"].as_f64()), (Some(5000), Some(200.0)));
        let since = line["counted_since_seconds"].as_f64().unwrap() - line["started"].as_f64().unwrap();
        assert!((since - 120.0).abs() < 0.001, "{since}");
        assert!(line["joules_per_frame"].is_null(), "the joules of the first two minutes are unknown");
    }

    /// A job that has ended some seconds ago.
    fn jobs(numbers: std::ops::Range<u64>) -> Jobs {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let job = |job| Job { job, started: unix - 60.0, ended: Some(unix - 10.0), ..Job::default() };
        Jobs { probe_started: 1.5, jobs: numbers.map(job).collect(), ..Jobs::default() }
    }

    fn write(log: &mut JobLog, jobs: &Jobs) -> io::Result<()> {
        let mut table = StreamTable::new(4, Duration::from_secs(60));
        let pending = log.pending(jobs, &mut table, SystemTime::now());
        log.write(pending)
    }

    #[test]
    fn lines_wait_while_the_file_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("later").join("streams.ndjson");
        let mut log = JobLog::open(&path, EnergyPrice::new(&Prices::defaults()));
        assert!(write(&mut log, &jobs(0..35)).is_err());
        assert_eq!(log.counts(), LogCounts { lost: 0, queued: 35 });
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        write(&mut log, &jobs(0..36)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!((text.lines().count(), log.counts()), (36, LogCounts::default()));
    }

    #[test]
    fn too_many_waiting_lines_are_lost_and_counted() {
        let mut log = JobLog::open(Path::new("/dev/full"), EnergyPrice::new(&Prices::defaults()));
        assert!(write(&mut log, &jobs(0..5000)).is_err());
        assert_eq!(log.counts(), LogCounts { lost: 904, queued: 4096 });
    }

    #[test]
    fn a_torn_line_is_counted_and_its_job_is_logged_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("streams.ndjson");
        let price = EnergyPrice::new(&Prices::defaults());
        write(&mut JobLog::open(&path, price.clone()), &jobs(0..2)).unwrap();
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 20]).unwrap();
        let mut log = JobLog::open(&path, price);
        write(&mut log, &jobs(0..2)).unwrap();
        assert_eq!(log.counts(), LogCounts { lost: 1, queued: 0 });
        let text = std::fs::read(&path).unwrap();
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        assert_eq!((lines.count(), logged_jobs(&text).len()), (2, 2));
    }

    #[test]
    fn a_job_behind_a_torn_line_is_recognised() {
        let line = r#"{"schema":1,"stream":"a","probe_started_ms":1500,"job":7}"#;
        assert_eq!(logged_jobs(format!("{}{line}\n", &line[..30]).as_bytes()).len(), 1);
        assert!(logged_jobs(&line.as_bytes()[..30]).is_empty());
    }
}
