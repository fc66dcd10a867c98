//! Result files: listing, reading and checking.
//!
//! Files are untrusted input. An incomplete or foreign file is reported and skipped; an invalid row
//! is reported and left out, and the other rows are served.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use metrics::label;
use serde_json::{error::Category, value::RawValue};

use self::problems::Problems;
use crate::run::{Run, Scenario, Variant};

pub mod json;
mod legacy;
mod problems;
pub mod run_cache;
pub mod schema2;
pub mod watch;

/// Maximum size of a file, in bytes. Five days of results of one encoding farm take 200 kB. With
/// the limits below it also bounds memory: a run takes at most its text, its samples and
/// [`MAX_SCENARIOS`] scenarios.
pub const MAX_FILE: u64 = 16 << 20;
/// Maximum number of scenarios of a file that are served.
pub const MAX_SCENARIOS: usize = 10_000;
/// Maximum number of samples of a file: 32 MiB, twice the size of the largest file, where samples
/// of a digit and a comma would take four times that size.
const MAX_SAMPLES: usize = 4 << 20;

const PREFIX: &str = "test_results_";
const SUFFIX: &str = ".json";

/// A file that contains no run, or a directory that cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file or directory cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The file is larger than [`MAX_FILE`].
    #[error("{}: {bytes} bytes; files above 16 MiB are not read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
    },
    /// The content is not that of a complete result file.
    #[error("{}: {fault}. It is read again when it changes", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The first fault.
        fault: String,
    },
}

impl ReadError {
    /// The value of the label `reason`: `absent`, `denied` or `broken`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Io { error, .. } if error.kind() == io::ErrorKind::NotFound => "absent",
            Self::Io { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => "denied",
            _ => "broken",
        }
    }

    /// True if the same file may be readable later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Io { .. })
    }
}

/// A file in the results directory whose name is that of a result file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultFile {
    /// The path.
    pub path: PathBuf,
    /// The time in the name, `YYYYMMDD_HHMMSS`.
    pub id: String,
    /// Modification time.
    pub modified: SystemTime,
    /// Size in bytes.
    pub bytes: u64,
}

/// The result files of `dir`, newest first: by the time in the name, which copies keep, then by
/// modification time.
///
/// # Errors
/// If the directory cannot be listed.
pub fn list(dir: &Path) -> Result<Vec<ResultFile>, ReadError> {
    let failed = |error| ReadError::Io { path: dir.to_owned(), error };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(id) = entry.file_name().to_str().and_then(id_of).map(str::to_owned) else { continue };
        // The file may have been removed meanwhile.
        let Ok(meta) = entry.metadata() else { continue };
        let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        files.push(ResultFile { path: entry.path(), id, modified, bytes: meta.len() });
    }
    files.sort_unstable_by(|a, b| (&b.id, b.modified).cmp(&(&a.id, a.modified)));
    Ok(files)
}

/// The time in `test_results_YYYYMMDD_HHMMSS.json`.
fn id_of(name: &str) -> Option<&str> {
    let id = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let (date, time) = id.split_once('_')?;
    let digits = |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(date, 8) && digits(time, 6)).then_some(id)
}

/// Reads one file.
///
/// # Errors
/// If the file cannot be read, is too large, or is not a result file.
pub fn read(file: &ResultFile) -> Result<Run, ReadError> {
    let path = || file.path.clone();
    let failed = |error| ReadError::Io { path: path(), error };
    // A FIFO or a link may be in the directory: opening must not block, and the type is that of the
    // opened file, not that of the listed one.
    let mut options = fs::OpenOptions::new();
    let opened = options.read(true).custom_flags(libc::O_NONBLOCK).open(&file.path).map_err(failed)?;
    let meta = opened.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(ReadError::Invalid { path: path(), fault: "not a regular file".to_owned() });
    }
    let too_large = |bytes| ReadError::TooLarge { path: path(), bytes };
    if meta.len() > MAX_FILE {
        return Err(too_large(meta.len()));
    }
    let mut text = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or_default() + 1);
    // The file may grow while it is read.
    let read = opened.take(MAX_FILE + 1).read_to_end(&mut text).map_err(failed)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MAX_FILE {
        return Err(too_large(MAX_FILE + 1));
    }
    parse_owned(&file.id, text).map_err(|fault| ReadError::Invalid { path: path(), fault })
}

/// Parses the content of a result file; `id` is the time in its name.
///
/// # Errors
/// If it is not a result file. Invalid rows are in [`Run::problems`] instead.
pub fn parse(id: &str, text: &[u8]) -> Result<Run, String> {
    parse_owned(id, text.to_vec())
}

/// [`parse`] without a copy of the text. The rows are parsed one by one, each into types of bounded
/// size, so that memory does not depend on the structure of the JSON.
fn parse_owned(id: &str, text: Vec<u8>) -> Result<Run, String> {
    let (text, replaced) = json::strict(text);
    let head = Head::parse(&text)?;
    let mut problems = Problems::default();
    if replaced > 0 {
        problems.add(format!("numbers that are not finite (NaN, Infinity) count as absent: {replaced}"));
    }
    let (list, rows) = head.rows()?;
    let row_name = list.trim_end_matches('s');
    let is_schema2 = head.schema.is_some();
    let header = is_schema2.then(|| schema2::FileHeader::new(head.host, head.baselines, &mut problems));
    let mut keys = legacy::RowKeys::default();
    let mut accepted = Accepted::default();
    let mut count = 0;
    let each = &mut |row: &RawValue| {
        count += 1;
        if header.is_none() {
            keys.add(row);
        }
        if count > MAX_SCENARIOS {
            return;
        }
        let added = if !row.get().starts_with('{') {
            Err("not an object".to_owned())
        } else if let Some(header) = &header {
            let remaining = MAX_SCENARIOS.saturating_sub(accepted.scenarios.len());
            let add = &mut |scenario, problems: &mut Problems| accepted.add(scenario, problems);
            schema2::add_scenarios(row, header, count - 1, remaining, &mut problems, add)
        } else {
            legacy::scenario(row).map(|scenario| accepted.add(scenario, &mut problems))
        };
        if let Err(error) = added {
            problems.add(format!("{row_name} {count} is left out: {error}"));
        }
    };
    json::for_each_element(rows, each).map_err(|_| format!("JSON, but without a list `{list}`"))?;
    if count > MAX_SCENARIOS {
        problems.add(format!("{count} {list}; only the first {MAX_SCENARIOS} are served"));
    }
    let variant = if is_schema2 { Variant::V2 } else { keys.variant(head.has_test_metadata, head.has_test_date) };
    let mut scenarios = accepted.scenarios;
    make_labels_unique(&mut scenarios);
    let named = || head.host.and_then(|host| serde_json::from_str::<String>(host.get()).ok());
    let host = header.and_then(|header| header.host).or_else(named).filter(|host| !host.is_empty());
    Ok(Run { id: id.to_owned(), variant, host, scenarios, problems: problems.finish(), text })
}

/// The keys of a file that are used, as parts of its text.
#[derive(Default)]
struct Head<'a> {
    schema: Option<&'a RawValue>,
    cells: Option<&'a RawValue>,
    scenarios: Option<&'a RawValue>,
    host: Option<&'a RawValue>,
    baselines: Option<&'a RawValue>,
    has_test_metadata: bool,
    has_test_date: bool,
}

impl<'a> Head<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let mut head = Self::default();
        let each = &mut |key: String, value: &'a RawValue| match &*key {
            "schema" => head.schema = Some(value),
            "cells" => head.cells = Some(value),
            "scenarios" => head.scenarios = Some(value),
            "host" => head.host = Some(value),
            "baselines" => head.baselines = Some(value),
            "test_metadata" => head.has_test_metadata = true,
            "test_date" => head.has_test_date = true,
            _ => {}
        };
        match json::for_each_entry(text, each) {
            Ok(()) => Ok(head),
            Err(error) if error.classify() == Category::Data => Err("JSON, but not an object".to_owned()),
            Err(error) => Err(format!("not complete JSON ({error})")),
        }
    }

    /// The name and the text of the list of rows.
    fn rows(&self) -> Result<(&'static str, &'a RawValue), String> {
        let is_known = |schema: &RawValue| {
            serde_json::from_str::<String>(schema.get()).is_ok_and(|schema| schema == schema2::SCHEMA)
        };
        let (list, rows) = match self.schema {
            Some(schema) if !is_known(schema) => {
                let shown: String = schema.get().chars().take(100).collect();
                return Err(format!("its schema is {shown}, not {}", schema2::SCHEMA));
            }
            Some(_) => ("cells", self.cells),
            None => ("scenarios", self.scenarios),
        };
        let rows = rows.filter(|rows| rows.get().starts_with('['));
        rows.map(|rows| (list, rows)).ok_or_else(|| format!("JSON, but without a list `{list}`"))
    }
}

/// The scenarios of a file that were read so far.
#[derive(Default)]
struct Accepted {
    scenarios: Vec<Scenario>,
    samples: usize,
}

impl Accepted {
    fn add(&mut self, scenario: Scenario, problems: &mut Problems) {
        let samples = scenario.samples.watts.len() + scenario.samples.cores.len();
        if self.samples + samples > MAX_SAMPLES {
            problems.add(format!("{} is left out: the file has more than {MAX_SAMPLES} samples", scenario.name));
            return;
        }
        self.samples += samples;
        self.scenarios.push(scenario);
    }
}

/// Renames rows with the same labels, which would be duplicate series: the second `a` becomes `a
/// #2`, or a higher number if the file uses that name itself.
fn make_labels_unique(scenarios: &mut [Scenario]) {
    let mut labels: HashSet<(String, String, String)> = HashSet::new();
    let mut counts: HashMap<(String, String, String), u32> = HashMap::new();
    for scenario in scenarios {
        for text in [&mut scenario.name, &mut scenario.bitrate, &mut scenario.encoder, &mut scenario.preset] {
            *text = label::sanitize(text);
        }
        scenario.resolution = label::sanitize(&scenario.resolution);
        let key = (scenario.name.clone(), scenario.bitrate.clone(), scenario.encoder.clone());
        let mut unique = key.clone();
        let count = counts.entry(key).or_insert(1);
        while !labels.insert(unique.clone()) {
            *count += 1;
            unique.0 = format!("{} #{count}", scenario.name);
        }
        scenario.name = unique.0;
    }
}

#[cfg(test)]
mod tests {
    use super::problems::{MAX_PROBLEM, MAX_PROBLEMS};
    use proptest::prelude::*;

    use super::*;

    /// The sample file of the legacy exporters: four scenarios with power samples and scores.
    const SAMPLE: &str = include_str!("../../../../analysis/tests/data/test_results_20240115_103000.json");

    fn write(dir: &Path, name: &str, text: &str) {
        fs::write(dir.join(name), text).unwrap();
    }

    #[test]
    fn legacy_sample_is_read_completely() {
        let run = parse("20240115_103000", SAMPLE.as_bytes()).unwrap();
        assert!(run.problems.is_empty());
        let names: Vec<_> = run.scenarios.iter().map(|scenario| &*scenario.name).collect();
        assert_eq!(names, ["2 streams @ 2500k", "4 streams @ 5000k", "single stream @ 1500k", "baseline idle"]);
        let first = &run.scenarios[0];
        assert_eq!((first.duration, first.total_frames, first.dropped_frames), (Some(120.5), Some(3612), Some(5)));
        let vmaf = first.quality.vmaf.as_ref().map(|score| score.value);
        assert_eq!((vmaf, &*first.encoder, first.pixels), (Some(92.5), "libx264", Some(8_957_952_000)));
        assert_eq!((run.variant, first.window()), (Variant::B, Some((1_705_315_800.0, 1_705_315_920.5))));
    }

    #[test]
    fn files_are_sorted_by_the_time_in_their_names() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "test_results_20250101_000000.json", "{}");
        write(dir.path(), "test_results_20240101_000000.json", "{}");
        for name in ["test_results_2025.json", "test_results_20260101_0000000.json", "notes.txt", "x.json"] {
            write(dir.path(), name, "{}");
        }
        let ids: Vec<_> = list(dir.path()).unwrap().into_iter().map(|file| file.id).collect();
        assert_eq!(ids, ["20250101_000000", "20240101_000000"]);
        let missing = list(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(missing.contains("/nowhere"), "{missing}");
    }

    #[test]
    fn incomplete_or_foreign_file_is_an_error_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        for (text, word) in [
            (&SAMPLE[..500], "not complete JSON"),
            ("[1]", "not an object"),
            ("{}", "scenarios"),
            ("", "not complete JSON"),
        ] {
            write(dir.path(), "test_results_20250101_000000.json", text);
            let error = read(&list(dir.path()).unwrap()[0]).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("test_results_2025"), "{error}");
        }
    }

    #[test]
    fn oversized_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::File::create(dir.path().join("test_results_20250101_000000.json")).unwrap();
        file.set_len(MAX_FILE + 1).unwrap();
        let error = read(&list(dir.path()).unwrap()[0]).unwrap_err();
        assert!(matches!(error, ReadError::TooLarge { bytes, .. } if bytes == MAX_FILE + 1), "{error}");
    }

    #[test]
    fn invalid_row_is_reported_and_the_rest_is_served() {
        let text =
            r#"{"scenarios":[{"name":"good"},{"name":7},{"bitrate":"1k"},{"name":"also good","total_frames":3}]}"#;
        let run = parse("x", text.as_bytes()).unwrap();
        assert_eq!(run.scenarios.len(), 2);
        assert!(run.problems[0].starts_with("scenario 2 is left out"), "{:?}", run.problems);
        assert!(run.problems[1].contains("missing field `name`"), "{:?}", run.problems);
    }

    #[test]
    fn number_that_is_none_costs_the_score_and_not_the_file() {
        let text = r#"{"scenarios": [
            {"name": "lossless", "energy_joules": 1000.0, "vmaf_score": 99.9, "psnr_score": Infinity},
            {"name": "bad frame", "energy_joules": 900.0, "vmaf_score": NaN, "x": [-inf], "duration": NaN},
            {"name": "huge", "energy_joules": 800.0, "vmaf_score": 1e999, "psnr_score": "inf"},
            {"name": "samples", "power_watts": [1, NaN]},
            {"name": "infinite", "energy_joules": 1e999}
        ], "mean": NaN}"#;
        let run = parse("x", format!("\u{feff}{text}").as_bytes()).unwrap();
        let names: Vec<_> = run.scenarios.iter().map(|scenario| &*scenario.name).collect();
        assert_eq!(names, ["lossless", "bad frame", "huge", "infinite"]);
        let stated = |at: usize| run.scenarios[at].stated(crate::energy::Scope::Host).map(units::Microjoules::joules);
        assert_eq!([0, 1, 2, 3].map(stated), [Some(1000.0), Some(900.0), Some(800.0), None]);
        assert_eq!(run.scenarios[0].quality.vmaf.as_ref().map(|score| score.value), Some(99.9));
        assert!(run.scenarios[0].quality.psnr.is_none() && run.scenarios[2].quality == crate::run::Quality::default());
        assert_eq!((run.scenarios[1].quality.vmaf.is_none(), run.scenarios[1].duration), (true, None));
        assert!(run.problems[0].ends_with("count as absent: 8"), "{:?}", run.problems);
        assert!(run.problems[1].starts_with("scenario 4 is left out: a sample is not a number"), "{:?}", run.problems);
        assert_eq!(run.problems.len(), 2, "{:?}", run.problems);
        serde_json::from_str::<serde_json::Value>(&run.text).unwrap();
    }

    #[test]
    fn invalid_repeat_or_baseline_costs_the_repeats_that_need_it() {
        let text = r#"{"cells": [{"name": "a", "baseline": "b1", "repeats": [
            {"status": "ok", "energy": [{"scope": "host", "source": "perf", "microjoules": 5}], "baseline": "b2"},
            {"status": "ok", "energy": [{"scope": "host", "source": "perf", "microjoules": NaN}]},
            {"status": "ok", "energy": [{"scope": "host", "source": "perf", "microjoules": 7}]},
            {"status": "ok", "baseline": "b2", "quality": [{"metric": "vmaf", "value": NaN}]}]}],
            "baselines": [{"id": "b1", "power_watts": {"mean": NaN}}, {"id": "b2", "power_watts": {"mean": 2}}],
            "host": {"name": null}, "schema": "wattcast/results/2"}"#;
        let run = parse("x", text.as_bytes()).unwrap();
        let stated = run.scenarios.iter().map(|scenario| scenario.stated(crate::energy::Scope::Host));
        assert_eq!(stated.collect::<Vec<_>>(), [Some(units::Microjoules(5)), None]);
        let expected = ["count as absent: 3", "host is left out", "baseline 1 is left out", "place 2", "\"b1\" is not"];
        assert_eq!(run.problems.len(), expected.len(), "{:?}", run.problems);
        for (problem, word) in run.problems.iter().zip(expected) {
            assert!(problem.contains(word), "{problem} has no {word}");
        }
    }

    /// Files of one MiB that are small JSON and would be large in memory.
    #[test]
    fn memory_of_a_run_does_not_depend_on_its_structure() {
        let filled = |head: &str, one: &str, tail: &str| {
            let count = (1 << 20) / one.len();
            format!("{head}{}{tail}", vec![one; count].join(","))
        };
        let schema = r#""schema":"wattcast/results/2""#;
        let run = |text: String| parse("x", text.as_bytes()).unwrap();
        let nested = run(filled(r#"{"scenarios":[{"name":"a","x":["#, "[0]", "]}]}"));
        assert_eq!((nested.scenarios.len(), nested.problems.len()), (1, 0));
        let repeats =
            run(filled(&format!(r#"{{{schema},"cells":[{{"name":"a","repeats":["#), r#"{"status":"x"}"#, "]}]}"));
        assert_eq!((repeats.scenarios.len(), repeats.problems.len()), (0, MAX_PROBLEMS + 1));
        let outputs = run(filled(r#"{"scenarios":[{"name":"a","outputs":["#, r#"{"resolution":"1x1"}"#, "]}]}"));
        assert_eq!((outputs.scenarios.len(), outputs.problems.len()), (0, 1), "{:?}", outputs.problems);
        let rung = r#"{"width":1,"height":1,"frames_per_second":1e308}"#;
        let ladder = |count: usize| {
            let outputs = vec![rung; count].join(",");
            run(filled(
                &format!(r#"{{{schema},"cells":[{{"name":"a","axes":{{"outputs":[{outputs}]}},"repeats":["#),
                r#"{"status":"ok"}"#,
                "]}]}",
            ))
        };
        assert!(ladder(2).scenarios[0].ladder().len() < 40);
        assert!(ladder(65).scenarios.is_empty(), "each repeat has a copy");
        let long = "n".repeat(1 << 20);
        let row = format!(r#"{{"name":"{long}","repeats":[{{"status":"ok"}},{{"status":"{long}"}}]}}"#);
        let named = run(format!(r#"{{{schema},"cells":[{row}]}}"#));
        assert_eq!(named.scenarios[0].name.chars().count(), label::MAX_CHARS);
        assert!(named.problems[0].chars().count() <= MAX_PROBLEM + 1);
    }

    #[test]
    fn excess_samples_are_reported() {
        let many = vec!["1"; json::MAX_ROW_SAMPLES + 1].join(",");
        let run = parse("x", format!(r#"{{"scenarios":[{{"name":"a","power_watts":[{many}]}}]}}"#).as_bytes()).unwrap();
        assert!(run.problems[0].contains("more than 1000000 samples"), "{:?}", run.problems);
        let mut accepted = Accepted::default();
        let mut problems = Problems::default();
        for _ in 0..5 {
            let samples = crate::run::Samples { watts: vec![1.0; 1_000_000], ..Default::default() };
            accepted.add(Scenario { samples, ..Scenario::default() }, &mut problems);
        }
        assert_eq!((accepted.scenarios.len(), problems.finish().len()), (4, 1));
    }

    #[test]
    fn duplicate_labels_get_a_number() {
        let text = r#"{"scenarios":[{"name":"a"},{"name":"a"},{"name":"a","bitrate":"1k"},{"name":"a"}]}"#;
        let run = parse("x", text.as_bytes()).unwrap();
        let names: Vec<_> = run.scenarios.iter().map(|scenario| &*scenario.name).collect();
        assert_eq!(names, ["a", "a #2", "a", "a #3"]);
        let text = r#"{"scenarios":[{"name":"a #2"},{"name":"a"},{"name":"a"},{"name":"a"},{"name":"a #2"}]}"#;
        let run = parse("x", text.as_bytes()).unwrap();
        let names: Vec<_> = run.scenarios.iter().map(|scenario| &*scenario.name).collect();
        assert_eq!(names, ["a #2", "a", "a #3", "a #4", "a #2 #2"]);
    }

    #[test]
    fn fifo_or_device_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("test_results_20250101_000000.json");
        rustix::fs::mkfifoat(rustix::fs::CWD, &name, 0o600.into()).unwrap();
        let error = read(&list(dir.path()).unwrap()[0]).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        fs::remove_file(&name).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &name).unwrap();
        let error = read(&list(dir.path()).unwrap()[0]).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }

    #[test]
    fn excess_scenarios_are_dropped_and_reported() {
        let rows = vec![r#"{"name":"a"}"#; MAX_SCENARIOS + 1].join(",");
        let run = parse("x", format!(r#"{{"scenarios":[{rows}]}}"#).as_bytes()).unwrap();
        assert_eq!((run.scenarios.len(), run.problems.len()), (MAX_SCENARIOS, 1));
    }

    proptest! {
        #[test]
        fn parser_does_not_panic_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..2500) {
            let _ = parse("x", &bytes);
            let mut sample = SAMPLE.as_bytes().to_vec();
            let end = (at + bytes.len()).min(sample.len());
            let at = at.min(end);
            sample.splice(at..end, bytes);
            let _ = parse("x", &sample);
        }
    }
}
