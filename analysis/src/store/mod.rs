//! Reading result files: which is the newest, what is in it, what is wrong with it.
//!
//! Nothing here trusts a file. A torn or alien one is named and passed over for the next older; a wrong row is named and
//! left out; the rest is served.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use exporter::label;
use serde_json::Value;

use crate::run::{Run, Scenario, Variant};

mod legacy;
pub mod schema2;
pub mod shelf;
pub mod watch;

/// The largest file read. The largest seen in the wild, five days of one farm, has 200 kB. What is parsed takes many times its bytes: two
/// of text can be a number, which is a value of its own.
pub const MAX_FILE: u64 = 16 << 20;
/// Most scenarios of a file that are served.
pub const MAX_SCENARIOS: usize = 10_000;

const PREFIX: &str = "test_results_";
const SUFFIX: &str = ".json";

/// Why a file gives no run.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is larger than [`MAX_FILE`].
    #[error("{}: {bytes} bytes; files above 16 MiB are not read", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It is not a result file.
    #[error("{}: {what}. If it is still being written it is read when it is whole; else remove it", path.display())]
    Alien {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl ReadError {
    /// The label `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Io { error, .. } if error.kind() == io::ErrorKind::NotFound => "absent",
            Self::Io { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => "denied",
            _ => "broken",
        }
    }

    /// True when the same file may be readable the next time.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Io { .. })
    }
}

/// A result file by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is.
    pub path: PathBuf,
    /// The time in its name.
    pub id: String,
    /// When it was last written.
    pub modified: SystemTime,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Every result file of `dir`, newest first: by the time in the name, which a copy keeps, then by the time of writing.
///
/// # Errors
/// When the directory cannot be listed.
pub fn list(dir: &Path) -> Result<Vec<Candidate>, ReadError> {
    let failed = |error| ReadError::Io { path: dir.to_owned(), error };
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(id) = entry.file_name().to_str().and_then(id_of).map(str::to_owned) else { continue };
        // A file that went meanwhile is not there.
        let Ok(meta) = entry.metadata() else { continue };
        let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        all.push(Candidate { path: entry.path(), id, modified, bytes: meta.len() });
    }
    all.sort_unstable_by(|a, b| (&b.id, b.modified).cmp(&(&a.id, a.modified)));
    Ok(all)
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
/// When it cannot be read, is too large, or is not a result file.
pub fn read(candidate: &Candidate) -> Result<Run, ReadError> {
    let path = || candidate.path.clone();
    let failed = |error| ReadError::Io { path: path(), error };
    // Whoever may write the directory may put a FIFO or a link there: opening must not wait, and what was opened is
    // asked, not what was listed.
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(&candidate.path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(ReadError::Alien { path: path(), what: "not a regular file".to_owned() });
    }
    let too_large = |bytes| ReadError::TooLarge { path: path(), bytes };
    if meta.len() > MAX_FILE {
        return Err(too_large(meta.len()));
    }
    let mut text = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or_default() + 1);
    // It may grow while it is read.
    let read = file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(failed)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MAX_FILE {
        return Err(too_large(MAX_FILE + 1));
    }
    parse(&candidate.id, &text).map_err(|what| ReadError::Alien { path: path(), what })
}

/// Makes a run of a file's bytes.
///
/// # Errors
/// What is wrong, when it is not a result file.
pub fn parse(id: &str, text: &[u8]) -> Result<Run, String> {
    let file: Value = serde_json::from_slice(text).map_err(|error| format!("not whole JSON ({error})"))?;
    let Value::Object(mut file) = file else { return Err("JSON, but not an object".to_owned()) };
    let ours = file.get("schema").is_some();
    if ours && file.get("schema").and_then(Value::as_str) != Some(schema2::SCHEMA) {
        return Err(format!("its schema is {}, not {}", file["schema"], schema2::SCHEMA));
    }
    let list = if ours { "cells" } else { "scenarios" };
    let Some(Value::Array(rows)) = file.remove(list) else {
        return Err(format!("JSON, but without a list `{list}`"));
    };
    let mut problems = Vec::new();
    if rows.len() > MAX_SCENARIOS {
        problems.push(format!("{} {list}; only the first {MAX_SCENARIOS} are served", rows.len()));
    }
    let head = if ours {
        let head = serde_json::from_value::<schema2::Head>(Value::Object(file.clone()));
        Some(head.map_err(|error| format!("its host or baselines: {error}"))?)
    } else {
        None
    };
    let variant = if ours { Variant::V2 } else { legacy::variant(&file, &rows) };
    let mut scenarios = Vec::new();
    for (index, row) in rows.into_iter().take(MAX_SCENARIOS).enumerate() {
        let Value::Object(row) = row else {
            problems.push(format!("{} {} is left out: not an object", &list[..list.len() - 1], index + 1));
            continue;
        };
        let room = MAX_SCENARIOS.saturating_sub(scenarios.len());
        let read = match &head {
            Some(head) => schema2::scenarios(&row, head, index, room, &mut problems),
            None => legacy::scenario(&row).map(|one| vec![one]),
        };
        let row = Arc::new(row);
        match read {
            Ok(all) => scenarios.extend(all.into_iter().map(|scenario| Scenario { raw: row.clone(), ..scenario })),
            Err(error) => problems.push(format!("{} {} is left out: {error}", &list[..list.len() - 1], index + 1)),
        }
    }
    tell_apart(&mut scenarios);
    let host = head.and_then(|head| head.host).map(|host| host.name);
    let host = host.or_else(|| file.get("host").and_then(Value::as_str).map(str::to_owned));
    let host = host.filter(|host| !host.is_empty());
    Ok(Run { id: id.to_owned(), variant, host, scenarios, problems, rest: file })
}

/// Two rows with one set of labels would be one series twice. A row that comes again is `a #2`, unless that is a name of the file's own.
fn tell_apart(scenarios: &mut [Scenario]) {
    let mut labels: HashSet<(String, String, String)> = HashSet::new();
    let mut counts: HashMap<(String, String, String), u32> = HashMap::new();
    for scenario in scenarios {
        for text in [&mut scenario.name, &mut scenario.bitrate, &mut scenario.encoder, &mut scenario.preset] {
            *text = label::clean(text);
        }
        scenario.resolution = label::clean(&scenario.resolution);
        let key = (scenario.name.clone(), scenario.bitrate.clone(), scenario.encoder.clone());
        let mut shown = key.clone();
        let count = counts.entry(key).or_insert(1);
        while !labels.insert(shown.clone()) {
            *count += 1;
            shown.0 = format!("{} #{count}", scenario.name);
        }
        scenario.name = shown.0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The sample that the product grew from: four scenarios with samples and scores.
    const SAMPLE: &str = include_str!("../../tests/data/test_results_20240115_103000.json");

    fn write(dir: &Path, name: &str, text: &str) {
        fs::write(dir.join(name), text).unwrap();
    }

    #[test]
    fn the_sample_is_read_whole() {
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
    fn the_newest_is_the_one_whose_name_says_so() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "test_results_20250101_000000.json", "{}");
        write(dir.path(), "test_results_20240101_000000.json", "{}");
        for name in ["test_results_2025.json", "test_results_20260101_0000000.json", "notes.txt", "x.json"] {
            write(dir.path(), name, "{}");
        }
        let ids: Vec<_> = list(dir.path()).unwrap().into_iter().map(|candidate| candidate.id).collect();
        assert_eq!(ids, ["20250101_000000", "20240101_000000"]);
        let missing = list(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(missing.contains("/nowhere"), "{missing}");
    }

    #[test]
    fn a_torn_or_alien_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for (text, word) in
            [(&SAMPLE[..500], "not whole JSON"), ("[1]", "not an object"), ("{}", "scenarios"), ("", "not whole JSON")]
        {
            write(dir.path(), "test_results_20250101_000000.json", text);
            let error = read(&list(dir.path()).unwrap()[0]).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("test_results_2025"), "{error}");
        }
    }

    #[test]
    fn a_file_beyond_the_limit_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::File::create(dir.path().join("test_results_20250101_000000.json")).unwrap();
        file.set_len(MAX_FILE + 1).unwrap();
        let error = read(&list(dir.path()).unwrap()[0]).unwrap_err();
        assert!(matches!(error, ReadError::TooLarge { bytes, .. } if bytes == MAX_FILE + 1), "{error}");
    }

    #[test]
    fn a_wrong_row_is_left_out_and_named_and_the_rest_is_served() {
        let text =
            r#"{"scenarios":[{"name":"good"},{"name":7},{"bitrate":"1k"},{"name":"also good","total_frames":3}]}"#;
        let run = parse("x", text.as_bytes()).unwrap();
        assert_eq!(run.scenarios.len(), 2);
        assert!(run.problems[0].starts_with("scenario 2 is left out"), "{:?}", run.problems);
        assert!(run.problems[1].contains("missing field `name`"), "{:?}", run.problems);
    }

    #[test]
    fn scenarios_with_the_same_labels_are_told_apart() {
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
    fn what_is_not_a_regular_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("test_results_20250101_000000.json");
        let fifo = std::ffi::CString::new(name.to_str().unwrap()).unwrap();
        // SAFETY: the path is a valid C string that outlives the call.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        let error = read(&list(dir.path()).unwrap()[0]).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        fs::remove_file(&name).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &name).unwrap();
        let error = read(&list(dir.path()).unwrap()[0]).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }

    #[test]
    fn too_many_scenarios_are_cut_and_said() {
        let rows = vec![r#"{"name":"a"}"#; MAX_SCENARIOS + 1].join(",");
        let run = parse("x", format!(r#"{{"scenarios":[{rows}]}}"#).as_bytes()).unwrap();
        assert_eq!((run.scenarios.len(), run.problems.len()), (MAX_SCENARIOS, 1));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..2500) {
            let _ = parse("x", &bytes);
            let mut sample = SAMPLE.as_bytes().to_vec();
            let end = (at + bytes.len()).min(sample.len());
            let at = at.min(end);
            sample.splice(at..end, bytes);
            let _ = parse("x", &sample);
        }
    }
}
