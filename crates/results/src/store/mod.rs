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
    sync::Arc,
    time::SystemTime,
};

use metrics::label;
use serde_json::Value;

use crate::run::{Run, Scenario, Variant};

mod legacy;
pub mod run_cache;
pub mod schema2;
pub mod watch;

/// Maximum size of a file, in bytes. Five days of results of one encoding farm take 200 kB. The
/// limit also bounds memory: a parsed value is many times larger than its text.
pub const MAX_FILE: u64 = 16 << 20;
/// Maximum number of scenarios of a file that are served.
pub const MAX_SCENARIOS: usize = 10_000;

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
    #[error("{}: {fault}. It is read again when it is rewritten; remove it if it is not a result file", path.display())]
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
    parse(&file.id, &text).map_err(|fault| ReadError::Invalid { path: path(), fault })
}

/// Parses the content of a result file; `id` is the time in its name.
///
/// # Errors
/// If it is not a result file. Invalid rows are in [`Run::problems`] instead.
pub fn parse(id: &str, text: &[u8]) -> Result<Run, String> {
    let file: Value = serde_json::from_slice(text).map_err(|error| format!("not complete JSON ({error})"))?;
    let Value::Object(mut file) = file else { return Err("JSON, but not an object".to_owned()) };
    let is_schema2 = file.get("schema").is_some();
    if is_schema2 && file.get("schema").and_then(Value::as_str) != Some(schema2::SCHEMA) {
        return Err(format!("its schema is {}, not {}", file["schema"], schema2::SCHEMA));
    }
    let list = if is_schema2 { "cells" } else { "scenarios" };
    let Some(Value::Array(rows)) = file.remove(list) else {
        return Err(format!("JSON, but without a list `{list}`"));
    };
    let mut problems = Vec::new();
    if rows.len() > MAX_SCENARIOS {
        problems.push(format!("{} {list}; only the first {MAX_SCENARIOS} are served", rows.len()));
    }
    let header = if is_schema2 {
        let header = serde_json::from_value::<schema2::FileHeader>(Value::Object(file.clone()));
        Some(header.map_err(|error| format!("invalid host or baselines: {error}"))?)
    } else {
        None
    };
    let variant = if is_schema2 { Variant::V2 } else { legacy::variant(&file, &rows) };
    let mut scenarios = Vec::new();
    for (index, row) in rows.into_iter().take(MAX_SCENARIOS).enumerate() {
        let Value::Object(row) = row else {
            problems.push(format!("{} {} is left out: not an object", &list[..list.len() - 1], index + 1));
            continue;
        };
        let remaining = MAX_SCENARIOS.saturating_sub(scenarios.len());
        let read = match &header {
            Some(header) => schema2::scenarios(&row, header, index, remaining, &mut problems),
            None => legacy::scenario(&row).map(|scenario| vec![scenario]),
        };
        let row = Arc::new(row);
        match read {
            Ok(read) => scenarios.extend(read.into_iter().map(|scenario| Scenario { raw: row.clone(), ..scenario })),
            Err(error) => problems.push(format!("{} {} is left out: {error}", &list[..list.len() - 1], index + 1)),
        }
    }
    make_labels_unique(&mut scenarios);
    let host = header.and_then(|header| header.host).map(|host| host.name);
    let host = host.or_else(|| file.get("host").and_then(Value::as_str).map(str::to_owned));
    let host = host.filter(|host| !host.is_empty());
    Ok(Run { id: id.to_owned(), variant, host, scenarios, problems, rest: file })
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
