//! The journal: one line of JSON for each thing that happened, on the disk before the next begins. What is in it is done, whatever happens to us; what is resumed is what it
//! does not have. A last line that is torn is one that was never written.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    encode::{Exit, Progress},
    plan::{Cell, Plan},
    preflight::Check,
    quality::Scored,
    source::Clip,
    tool::Tool,
};

/// Largest journal read: 10,000 cells with ten repeats each are below it.
const MOST: u64 = 256 << 20;
/// Of a journal, behind the stem of the results.
const ENDING: &str = ".journal.ndjson";

/// What all of a run have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// A ULID.
    pub id: String,
    /// When it began, in nanoseconds since 1970.
    pub started_unix_ns: u64,
    /// What of ours wrote it.
    pub version: String,
    /// The host's name, as probes are called.
    pub host: String,
    /// Facts of the machine, for the results.
    pub machine: Value,
    /// What encodes.
    pub ffmpeg: Tool,
    /// What scores, where pictures are scored.
    pub scorer: Option<Tool>,
    /// What is run.
    pub plan: Plan,
}

/// Joules of one domain in a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// `host` or `container`.
    pub scope: String,
    /// `package-0`, `dram-0`, a GPU's uuid.
    pub domain: String,
    /// How they were obtained.
    pub source: String,
    /// How many.
    pub microjoules: u64,
    /// The most that the edges can have added.
    pub edge_error_microjoules: u64,
    /// By how much they may be off, where anybody can say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uncertainty_microjoules: Option<u64>,
}

/// The edges of a window: ticks of the probe, taken for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Unix seconds, to the microsecond.
    pub start: f64,
    /// As above.
    pub end: f64,
}

impl Window {
    /// Its length.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.end - self.start
    }
}

/// What one stream left behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artefact {
    /// Below the directory of results.
    pub file: PathBuf,
    /// Of its bytes.
    pub sha256: String,
    /// How many.
    pub bytes: u64,
}

/// One time that a cell was run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Repeat {
    /// Which cell.
    pub cell: String,
    /// From 1.
    pub n: u32,
    /// Of which block.
    pub block: u32,
    /// `ok`, `failed`, `stopped`, `skipped`.
    pub status: String,
    /// Why, where it is not ok; what is to be known of it, where it is.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub detail: String,
    /// Where it was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub window: Option<Window>,
    /// The command, of the first stream.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub argv: Vec<String>,
    /// Whom the probe knew the encoder as.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub container: Option<String>,
    /// By scope and domain.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub energy: Vec<Energy>,
    /// CPU seconds of the encoder.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_seconds: Option<f64>,
    /// What all streams did in the window.
    #[serde(default)]
    pub progress: Progress,
    /// Microjoules of who is beside the encoder in a live run: its generator, its server.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub beside: BTreeMap<String, u64>,
    /// Watts of the host, once a second.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub watts: Vec<f64>,
    /// What is left, by stream.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub artefacts: Vec<Artefact>,
    /// How the first that did not end well did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit: Option<Exit>,
}

/// The host without load, before a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Of which block.
    pub block: u32,
    /// How long all of it was.
    pub seconds: f64,
    /// Mean power in watts of each part.
    pub watts: Vec<f64>,
    /// How that power was obtained.
    pub source: String,
    /// What is to be known of it: it drifted, or others were busy.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub note: String,
}

/// Encodes before the first block, which are measured to see whether power is flat, and used for nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WarmUp {
    /// Mean power in watts of each.
    pub watts: Vec<f64>,
    /// Whether the last two were alike.
    pub flat: bool,
}

/// The score of a cell, by the content of what was scored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Which cell.
    pub cell: String,
    /// Of the content that was scored.
    pub sha256: String,
    /// What it came to.
    pub scores: Vec<Scored>,
    /// The log by frame, below the directory of results.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub frames: Option<PathBuf>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It began.
    Run(Box<Head>),
    /// It goes on, at this time in nanoseconds since 1970.
    Resumed {
        /// When.
        unix_ns: u64,
    },
    /// What was looked at before.
    Preflight {
        /// All of it.
        checks: Vec<Check>,
    },
    /// What is encoded, for one size and rate of frames.
    Source(Clip),
    /// Where encoders run from now on, in words.
    Place {
        /// As it was had, whatever was wanted.
        place: String,
    },
    /// A configuration that a search has come to.
    Cell(Cell),
    /// Before a block.
    Baseline(Baseline),
    /// Before the first.
    WarmUp(WarmUp),
    /// A cell was run.
    Repeat(Box<Repeat>),
    /// Repeats that were trusted no longer, because what they left is not there, or not the same.
    Distrusted {
        /// Which cell.
        cell: String,
        /// Which time.
        n: u32,
        /// Why.
        why: String,
    },
    /// A cell was scored.
    Score(Score),
    /// It ended.
    End {
        /// `ok`, `partial`, `failed`, `stopped`.
        status: String,
        /// When, in nanoseconds since 1970.
        unix_ns: u64,
    },
}

/// A journal that is being written.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Begins one.
    ///
    /// # Errors
    /// When it cannot be made, or is there.
    pub fn create(dir: &Path, stem: &str) -> io::Result<Self> {
        let path = dir.join(format!("{stem}{ENDING}"));
        let file = OpenOptions::new().create_new(true).append(true).open(&path)?;
        // The name is on the disk, too.
        File::open(dir)?.sync_all()?;
        Ok(Self { path, file })
    }

    /// Goes on with one. A line that is torn goes first: what follows would be part of it.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn resume(path: &Path) -> io::Result<(Self, Vec<Event>)> {
        if !path.to_string_lossy().ends_with(ENDING) {
            let why = format!("is no journal; those end in {ENDING}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let (events, whole) = parse(&read(path)?)?;
        let file = OpenOptions::new().append(true).open(path)?;
        file.set_len(u64::try_from(whole).map_err(io::Error::other)?)?;
        file.sync_all()?;
        Ok((Self { path: path.to_owned(), file }, events))
    }

    /// Writes a line. It is on the disk when this is back.
    ///
    /// # Errors
    /// When the disk is full, or gone.
    pub fn write(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The stem that it shares with the results.
    #[must_use]
    pub fn stem(&self) -> &str {
        self.path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(ENDING))
            .unwrap_or_default()
    }
}

/// All whole lines, and how many bytes they are. What stands behind the last end of a line was torn while it was written: it was never there.
///
/// # Errors
/// A line that is none of ours.
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
    let read = File::open(path)?.take(MOST + 1).read_to_end(&mut bytes)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MOST {
        return Err(io::Error::other(format!("larger than {MOST} bytes")));
    }
    Ok(bytes)
}

/// The newest journal of a directory whose run did not end well.
///
/// # Errors
/// When there is none.
pub fn unfinished(dir: &Path) -> io::Result<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    all.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(ENDING)));
    all.sort();
    let mut barely = None;
    for path in all.into_iter().rev() {
        let (events, _) = read(&path)
            .and_then(|bytes| parse(&bytes))
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        // One that was cut off before it began has nothing to go on with.
        let Some(Event::Run(head)) = events.first() else { continue };
        if head.plan.search || matches!(events.last(), Some(Event::End { status, .. }) if status == "ok") {
            continue;
        }
        // One that was refused before anything was measured does not hide one that has something to go on with.
        if events.iter().any(|event| matches!(event, Event::Repeat(repeat) if repeat.status != "skipped")) {
            return Ok(path);
        }
        barely.get_or_insert(path);
    }
    barely.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("{}: no run in it is to be resumed", dir.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Event {
        let plan = serde_json::json!({
            "name": "", "cells": [], "mode": "file", "place": "auto", "source": null, "realtime": false, "quality": false, "vmaf_model": "", "encoder_args": [],
            "protocol": {
                "duration": {"secs": 1, "nanos": 0}, "stabilization": {"secs": 0, "nanos": 0}, "cooldown": {"secs": 0, "nanos": 0},
                "baseline": {"secs": 0, "nanos": 0}, "stall": {"secs": 1, "nanos": 0}, "repeats": 1, "ci_target": null, "max_repeats": 1, "seed": 1,
            },
        });
        Event::Run(Box::new(Head {
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
        Event::Repeat(Box::new(Repeat { cell: "c".into(), n, status: "ok".into(), ..Repeat::default() }))
    }

    #[test]
    fn what_was_written_is_there_and_a_torn_line_never_was() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path(), "test_results_20260101_000000").unwrap();
        let path = journal.path().to_owned();
        assert_eq!(journal.stem(), "test_results_20260101_000000");
        journal.write(&head()).unwrap();
        journal.write(&repeat(2)).unwrap();
        drop(journal);
        assert_eq!(unfinished(dir.path()).unwrap(), path);
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
        assert!(Journal::create(dir.path(), "test_results_20260101_000000").is_err(), "never over another");
    }

    #[test]
    fn a_run_that_ended_well_is_not_resumed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(unfinished(dir.path()).is_err());
        let mut journal = Journal::create(dir.path(), "test_results_20260101_000000").unwrap();
        assert!(unfinished(dir.path()).is_err(), "it has not begun");
        journal.write(&head()).unwrap();
        journal.write(&Event::End { status: "partial".into(), unix_ns: 1 }).unwrap();
        assert!(unfinished(dir.path()).is_ok(), "what failed may be tried again");
        journal.write(&Event::End { status: "ok".into(), unix_ns: 1 }).unwrap();
        assert!(unfinished(dir.path()).is_err());
        // One that cannot be read is not passed over for an older one.
        fs::write(dir.path().join("test_results_20260102_000000.journal.ndjson"), "nonsense\n").unwrap();
        assert!(unfinished(dir.path()).unwrap_err().to_string().contains("20260102"));
    }
}
