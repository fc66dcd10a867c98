//! A line for each job that has ended, in a file that only grows: so a job that was shorter than a scrape is not lost.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{
    book::Book,
    names::{Job, Jobs, Output},
};
use crate::{
    cost::{Prices, money::float, tariff::Tariff},
    figures::timestamp,
};

/// How much of the end of an old file is looked at for jobs that are in it already.
const TAIL: u64 = 1 << 20;
/// A job's last report may come after its end was seen.
const GRACE: Duration = Duration::from_secs(3);

/// What energy costs, and when.
#[derive(Clone, Debug)]
pub struct Price {
    tariff: Tariff,
    /// Energy of the building for one of the machine.
    pue: f64,
    currency: String,
}

impl Price {
    /// Of these prices.
    #[must_use]
    pub fn new(prices: &Prices) -> Self {
        Self { tariff: prices.tariff.clone(), pue: float(prices.pue), currency: prices.currency.clone() }
    }

    /// Of a kilowatt hour, in the mean over a job.
    fn mean(&self, started: f64, ended: f64) -> Option<f64> {
        let (started, ended) = (timestamp(started)?, timestamp(ended)?);
        self.tariff.mean(started, ended).map(float)
    }
}

#[derive(Serialize)]
struct Line<'a> {
    /// Version of this line's meaning.
    schema: u32,
    stream: &'a str,
    /// All names, where one job makes several streams.
    streams: &'a [String],
    container: &'a str,
    image: &'a str,
    codec: &'a str,
    encoder: &'a str,
    preset: &'a str,
    width: Option<u32>,
    height: Option<u32>,
    started: f64,
    ended: f64,
    cpu_seconds: f64,
    joules: f64,
    /// How the joules were obtained; `model` is no measurement.
    source: &'a str,
    /// Absent without reports.
    frames: Option<u64>,
    media_seconds: Option<f64>,
    dropped_frames: Option<u64>,
    duplicated_frames: Option<u64>,
    joules_per_frame: Option<f64>,
    watt_hours: f64,
    cost: Option<f64>,
    currency: &'a str,
    price_per_kwh: Option<f64>,
    /// Not known yet when a job ends.
    vmaf: Option<f64>,
    #[serde(flatten)]
    key: Key,
}

/// What tells jobs apart, over restarts of both programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Key {
    /// Unix milliseconds.
    probe_started_ms: i64,
    job: u64,
}

/// Lines that are to be written.
#[derive(Default)]
pub struct Due {
    text: Vec<u8>,
    keys: Vec<Key>,
    told: HashSet<Key>,
}

/// The file.
pub struct Record {
    path: PathBuf,
    price: Price,
    written: HashSet<Key>,
}

impl Record {
    /// Looks at what is in the file already.
    #[must_use]
    pub fn open(path: &Path, price: Price) -> Self {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(path) {
            let length = file.metadata().map_or(0, |meta| meta.len());
            let _ = file.seek(SeekFrom::Start(length.saturating_sub(TAIL)));
            let _ = file.take(TAIL).read_to_end(&mut text);
        }
        let written = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        Self { path: path.to_owned(), price, written }
    }

    /// The lines of jobs that have ended and are not in the file; what they delivered is taken from the book.
    #[must_use]
    pub fn due(&self, jobs: &Jobs, book: &mut Book, now: SystemTime) -> Due {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        #[expect(clippy::cast_possible_truncation, reason = "unix milliseconds")]
        let probe_started_ms = (jobs.probe_started * 1000.0).round() as i64;
        let mut due = Due::default();
        for job in &jobs.jobs {
            let key = Key { probe_started_ms, job: job.job };
            let Some(ended) = job.ended.filter(|ended| now - ended >= GRACE.as_secs_f64()) else { continue };
            if !self.written.contains(&key)
                && let Ok(line) = serde_json::to_vec(&self.line(job, ended, key, book))
            {
                due.text.extend(line);
                due.text.push(b'\n');
                due.keys.push(key);
            }
        }
        // What the probe forgot it will not tell of again.
        due.told = jobs.jobs.iter().map(|job| Key { probe_started_ms, job: job.job }).collect();
        due
    }

    /// Appends lines. Not while the book is held: a disk may take its time, and encoders must not wait for it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&mut self, due: Due) -> io::Result<()> {
        if due.text.is_empty() {
            return Ok(());
        }
        // Tried once: what was delivered is out of the book.
        self.written.extend(due.keys);
        if self.written.len() > 65_536 {
            self.written.retain(|key| due.told.contains(key));
        }
        let mut file = OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)?;
        // One write for all lines: whoever reads meanwhile sees whole lines.
        file.write_all(&due.text)
    }

    fn line<'a>(&'a self, job: &'a Job, ended: f64, key: Key, book: &mut Book) -> Line<'a> {
        static NO_OUTPUT: Output =
            Output { codec: String::new(), encoder: String::new(), preset: String::new(), size: None };
        let output = job.outputs.first().unwrap_or(&NO_OUTPUT);
        let stream = job.streams.first().map(String::as_str).unwrap_or_default();
        let at = |seconds: f64| UNIX_EPOCH + Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let delivered = book.take_delivered(stream, at(job.started), at(ended));
        let frames = delivered.as_ref().map(|delivered| delivered.frames);
        #[expect(clippy::cast_precision_loss, reason = "counts, for output")]
        let (media_seconds, per_frame) = (
            delivered.as_ref().map(|delivered| delivered.media_us as f64 / 1e6),
            frames.filter(|frames| *frames > 0).map(|frames| job.joules / frames as f64),
        );
        let watt_hours = job.joules / 3600.0;
        let price = self.price.mean(job.started, ended);
        Line {
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
            ended,
            cpu_seconds: job.cpu_seconds,
            joules: job.joules,
            source: &job.source,
            frames,
            media_seconds,
            dropped_frames: delivered.as_ref().map(|delivered| delivered.dropped),
            duplicated_frames: delivered.as_ref().map(|delivered| delivered.duplicated),
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

    use exporter::progress::Report;

    use super::*;

    #[test]
    fn a_job_is_written_once_whoever_starts_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("streams.ndjson");
        let price = Price::new(&Prices::defaults());
        let mut book = Book::new(4, Duration::from_secs(60));
        book.report(
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
        let jobs = Jobs { probe_started: unix - 100.0, jobs: vec![job] };
        let mut record = Record::open(&path, price.clone());
        let due = record.due(&jobs, &mut book, now);
        record.write(due).unwrap();
        assert!(!path.exists(), "its last report may still come");
        let later = now + Duration::from_secs(4);
        for _ in 0..2 {
            let due = record.due(&jobs, &mut book, later);
            record.write(due).unwrap();
        }
        let mut again = Record::open(&path, price);
        let due = again.due(&jobs, &mut book, later);
        again.write(due).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1);
        assert_eq!((lines[0]["frames"].as_u64(), lines[0]["joules_per_frame"].as_f64()), (Some(50), Some(0.72)));
        assert_eq!(
            (lines[0]["media_seconds"].as_f64(), lines[0]["cost"].as_f64()),
            (Some(2.0), Some(0.01 / 1000.0 * 0.12))
        );
    }
}
