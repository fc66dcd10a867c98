//! The journal of a run: one JSON line per event, synced to disk before the next step begins. A
//! resumed run repeats what the journal does not contain. An incomplete last line is ignored.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use units::model_interval::ModelInterval;

use super::{
    pace::Lag,
    plan::{Configuration, Plan},
    preflight::Check,
    process::{ProcessExit, Progress},
    quality::PooledScore,
    source::Clip,
    tool::Tool,
};
use crate::search::report::SearchReport;

/// Maximum size of a journal in bytes: 10,000 configurations with ten repeats each need less.
const MAX_JOURNAL: u64 = 256 << 20;
/// Extension of a journal, after the stem that it shares with the results.
const EXTENSION: &str = ".journal.ndjson";

/// The first event of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunHeader {
    /// A ULID.
    pub id: String,
    /// Start in nanoseconds since 1970.
    pub started_unix_ns: u64,
    /// Version of the runner.
    pub version: String,
    /// Host name, as probes report it.
    pub host: String,
    /// Facts about the machine, for the results.
    pub machine: Value,
    /// The ffmpeg that encodes.
    pub ffmpeg: Tool,
    /// The ffmpeg that scores, if quality is scored.
    pub scorer: Option<Tool>,
    /// The plan.
    pub plan: Plan,
}

/// Energy of one domain in a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// `host` or `container`.
    pub scope: String,
    /// `package-0`, `dram-0` or the UUID of a GPU.
    pub domain: String,
    /// Energy source of the probe, such as `perf` or `model`.
    pub source: String,
    /// Energy in microjoules.
    pub microjoules: u64,
    /// Maximum error due to the edges of the window.
    pub edge_error_microjoules: u64,
    /// Uncertainty of the attribution, where it is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uncertainty_microjoules: Option<u64>,
    /// How far modelled energy may be from the truth: 90 % interval, as the truth per estimate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model_interval_ratio: Option<ModelInterval>,
}

/// A measured window. Its edges are ticks that the probe took for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Start in Unix seconds, with microsecond resolution.
    pub start: f64,
    /// End in Unix seconds.
    pub end: f64,
}

impl Window {
    /// Length in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.end - self.start
    }
}

/// The output file of one stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artefact {
    /// Path relative to the results directory.
    pub file: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Size of the file.
    pub bytes: u64,
}

/// CPU time of all programs of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostUse {
    /// CPU seconds, of all CPUs together.
    pub cpu_seconds: f64,
    /// Length of the time in seconds: a little less than the window, without the waits for its
    /// marks.
    pub seconds: f64,
}

/// One repeat of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Repeat {
    /// Id of the configuration.
    #[serde(rename = "cell")]
    pub configuration: String,
    /// Number of the repeat, from 1.
    pub n: u32,
    /// Number of the block.
    pub block: u32,
    /// `ok`, `failed`, `stopped`, `skipped`.
    pub status: String,
    /// Why the status is not `ok`, or a remark on the energy.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub detail: String,
    /// The measured window.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub window: Option<Window>,
    /// Command line of the first stream.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub argv: Vec<String>,
    /// Name under which the probe reported the encoder.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub container: Option<String>,
    /// Energy by scope and domain.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub energy: Vec<Energy>,
    /// Whether the probe knew the idle power in the whole window; absent if it does not say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idle_known: Option<bool>,
    /// CPU time of the encoder in seconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_seconds: Option<f64>,
    /// CPU time of all programs of the host while the encoders ran.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host: Option<HostUse>,
    /// Of the stream that fell behind most, of those that read a file in real time; absent if none
    /// does, or for too short a time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag: Option<Lag>,
    /// Progress of all streams within the window.
    #[serde(default)]
    pub progress: Progress,
    /// Microjoules of the generator and the server of a live run, by role.
    #[serde(rename = "beside", skip_serializing_if = "BTreeMap::is_empty", default)]
    pub companion_microjoules: BTreeMap<String, u64>,
    /// Power of the host in watts, sampled once per second.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub watts: Vec<f64>,
    /// Output files by stream.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub artefacts: Vec<Artefact>,
    /// Sample of the first live stream, for its scores; the file is deleted when it has them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sample: Option<Artefact>,
    /// Why a live stream whose quality was to be scored has no sample.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub unsampled: String,
    /// Exit of the first encoder that failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit: Option<ProcessExit>,
}

/// Idle power of the host, measured before a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Number of the block.
    pub block: u32,
    /// Total length in seconds.
    pub seconds: f64,
    /// Mean power of each part in watts.
    pub watts: Vec<f64>,
    /// Energy source of the power.
    pub source: String,
    /// Remark on drift; empty when there is none.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub note: String,
}

/// The warm-up: encodes before the first block until power is stable. Its measurements are used for
/// nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WarmUp {
    /// Mean power of each encode in watts.
    pub watts: Vec<f64>,
    /// True when the power of the last two encodes was equal within the tolerance.
    pub flat: bool,
}

/// Quality scores of an output file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Id of the configuration.
    #[serde(rename = "cell")]
    pub configuration: String,
    /// SHA-256 of the scored file; empty for a configuration without output files.
    pub sha256: String,
    /// Pooled scores.
    pub scores: Vec<PooledScore>,
    /// File with the scores of each frame, relative to the results directory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub frames: Option<PathBuf>,
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The run started.
    Run(Box<RunHeader>),
    /// The run was resumed.
    Resumed {
        /// Time in nanoseconds since 1970.
        unix_ns: u64,
    },
    /// The preflight checks ran.
    Preflight {
        /// All checks.
        checks: Vec<Check>,
    },
    /// A source clip was prepared.
    Source(Clip),
    /// An execution environment was created.
    #[serde(rename = "place")]
    Environment {
        /// Description of the environment.
        #[serde(rename = "place")]
        description: String,
    },
    /// A search added a configuration.
    #[serde(rename = "cell")]
    Configuration(Configuration),
    /// Idle power was measured.
    Baseline(Baseline),
    /// The warm-up ended.
    WarmUp(WarmUp),
    /// A repeat ended.
    Repeat(Box<Repeat>),
    /// A repeat was discarded because one of its output files is missing or has changed.
    #[serde(rename = "distrusted")]
    RepeatDiscarded {
        /// Id of the configuration.
        #[serde(rename = "cell")]
        configuration: String,
        /// Number of the repeat.
        n: u32,
        /// Reason.
        why: String,
    },
    /// Quality was scored.
    Score(Score),
    /// A search for the least energy ended.
    Search(Box<SearchReport>),
    /// The run ended.
    End {
        /// `ok`, `partial`, `failed`, `stopped`.
        status: String,
        /// Time in nanoseconds since 1970.
        unix_ns: u64,
    },
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Creates a journal.
    ///
    /// # Errors
    /// When it exists or cannot be created.
    pub fn create(dir: &Path, stem: &str) -> io::Result<Self> {
        let path = dir.join(format!("{stem}{EXTENSION}"));
        let file = OpenOptions::new().create_new(true).append(true).open(&path)?;
        // Sync the directory entry too.
        File::open(dir)?.sync_all()?;
        Ok(Self { path, file })
    }

    /// Opens a journal to continue it. An incomplete last line is removed, so that the next event
    /// starts a new line.
    ///
    /// # Errors
    /// When it cannot be read, parsed or written.
    pub fn resume(path: &Path) -> io::Result<(Self, Vec<Event>)> {
        if !path.to_string_lossy().ends_with(EXTENSION) {
            let why = format!("not a journal; the name must end in {EXTENSION}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let (events, length) = parse(&read(path)?)?;
        let file = OpenOptions::new().append(true).open(path)?;
        file.set_len(u64::try_from(length).map_err(io::Error::other)?)?;
        file.sync_all()?;
        Ok((Self { path: path.to_owned(), file }, events))
    }

    /// Appends an event and syncs it to disk.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn write(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()
    }

    /// Path of the journal.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The stem that the journal shares with the results.
    #[must_use]
    pub fn stem(&self) -> &str {
        self.path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(EXTENSION))
            .unwrap_or_default()
    }
}

/// Parses all complete lines; also returns their length in bytes. Bytes after the last newline are
/// an incomplete line.
///
/// # Errors
/// When a line is not an event.
pub fn parse(bytes: &[u8]) -> io::Result<(Vec<Event>, usize)> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = bytes[..whole].split_inclusive(|byte| *byte == b'\n').enumerate();
    let events: io::Result<Vec<Event>> = lines
        .map(|(at, line)| {
            serde_json::from_slice(line)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("line {}: {error}", at + 1)))
        })
        .collect();
    Ok((events?, whole))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let length = File::open(path)?.take(MAX_JOURNAL + 1).read_to_end(&mut bytes)?;
    if u64::try_from(length).unwrap_or(u64::MAX) > MAX_JOURNAL {
        return Err(io::Error::other(format!("larger than {MAX_JOURNAL} bytes")));
    }
    Ok(bytes)
}

/// The newest journal in a directory that can be resumed. Journals with measured repeats are
/// preferred.
///
/// # Errors
/// When there is none, or a journal cannot be read.
pub fn newest_unfinished(dir: &Path) -> io::Result<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    all.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(EXTENSION)));
    all.sort();
    let mut without_repeats = None;
    for path in all.into_iter().rev() {
        let (events, _) = read(&path)
            .and_then(|bytes| parse(&bytes))
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        // A journal without a header was interrupted before the run began.
        let Some(Event::Run(header)) = events.first() else { continue };
        let restarts = header.plan.search && header.plan.energy_search.is_none();
        if restarts || matches!(events.last(), Some(Event::End { status, .. }) if status == "ok") {
            continue;
        }
        // A run that was refused before its first repeat must not hide an older one with repeats.
        if events.iter().any(|event| matches!(event, Event::Repeat(repeat) if repeat.status != "skipped")) {
            return Ok(path);
        }
        without_repeats.get_or_insert(path);
    }
    without_repeats.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("{}: no unfinished run to resume", dir.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Event {
        let plan = serde_json::json!({
            "name": "", "cells": [], "mode": "file", "place": "auto", "source": null, "realtime": false, "quality": false, "vmaf_model": "", "encoder_args": [],
            "protocol": {
                "duration": {"secs": 1, "nanos": 0}, "stabilization": {"secs": 0, "nanos": 0}, "cooldown": {"secs": 0, "nanos": 0},
                "baseline": {"secs": 0, "nanos": 0}, "stall": {"secs": 1, "nanos": 0}, "repeats": 1, "ci_target": null, "max_repeats": 1, "seed": 1,
            },
        });
        Event::Run(Box::new(RunHeader {
            id: "x".into(),
            started_unix_ns: 1,
            version: "x".into(),
            host: "x".into(),
            machine: Value::Null,
            ffmpeg: Tool::default(),
            scorer: None,
            plan: serde_json::from_value(plan).unwrap(),
        }))
    }

    fn repeat(n: u32) -> Event {
        Event::Repeat(Box::new(Repeat { configuration: "c".into(), n, status: "ok".into(), ..Repeat::default() }))
    }

    #[test]
    fn a_journal_is_resumed_without_its_incomplete_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path(), "test_results_20260101_000000").unwrap();
        let path = journal.path().to_owned();
        assert_eq!(journal.stem(), "test_results_20260101_000000");
        journal.write(&header()).unwrap();
        journal.write(&repeat(2)).unwrap();
        drop(journal);
        assert_eq!(newest_unfinished(dir.path()).unwrap(), path);
        let whole = fs::read_to_string(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut journal, events) = Journal::resume(&path).unwrap();
            let lines = whole[..cut].matches('\n').count();
            assert_eq!(events.len(), lines, "cut at {cut}");
            journal.write(&repeat(3)).unwrap();
            assert_eq!(parse(&fs::read(&path).unwrap()).unwrap().0.len(), lines + 1);
        }
        fs::write(&path, "nonsense\n{}\n").unwrap();
        assert!(Journal::resume(&path).unwrap_err().to_string().contains("line 1"));
        assert!(Journal::create(dir.path(), "test_results_20260101_000000").is_err(), "an existing file is kept");
    }

    #[test]
    fn a_successful_run_is_not_resumed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(newest_unfinished(dir.path()).is_err());
        let mut journal = Journal::create(dir.path(), "test_results_20260101_000000").unwrap();
        assert!(newest_unfinished(dir.path()).is_err(), "the run has not begun");
        journal.write(&header()).unwrap();
        journal.write(&Event::End { status: "partial".into(), unix_ns: 1 }).unwrap();
        assert!(newest_unfinished(dir.path()).is_ok(), "failed repeats may be tried again");
        journal.write(&Event::End { status: "ok".into(), unix_ns: 1 }).unwrap();
        assert!(newest_unfinished(dir.path()).is_err());
        // An unreadable journal is an error, even if an older one could be resumed.
        fs::write(dir.path().join("test_results_20260102_000000.journal.ndjson"), "nonsense\n").unwrap();
        assert!(newest_unfinished(dir.path()).unwrap_err().to_string().contains("20260102"));
    }
}
