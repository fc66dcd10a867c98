//! Appends lines to files that grow for months: a line is in the file completely or not at all,
//! also after the disk was full or the machine was switched off.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use serde::de::IgnoredAny;

/// Bytes at the end of a file in which the beginning of its last line is searched.
const TAIL: u64 = 1 << 20;

/// What the lines of a file are. This decides on a last line without an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFormat {
    /// A JSON object: it is known to be complete, and one that is none was written by others.
    Json,
    /// Numbers and words: one without an end may be a part, even if it looks like a value.
    Text,
}

/// What the end of a file needs before a line is appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// It is the end of a line.
    None,
    /// The last line is complete but for its end, or was written by others.
    EndLine,
    /// The last line was cut off: this number of bytes is removed.
    Remove(u64),
}

/// The result of [`append`].
#[derive(Debug)]
pub struct Appended {
    /// Number of lines that are in the file now, from the first on.
    pub lines: usize,
    /// Whether a line that an earlier write had cut off was removed.
    pub removed_torn: bool,
    /// Why the other lines are not in the file.
    pub result: io::Result<()>,
}

/// Appends lines, which end in a line feed, to a file that only this program writes, and creates it
/// if necessary. What cannot be written completely is removed again.
pub fn append<'a>(path: &Path, mode: u32, format: LineFormat, lines: impl IntoIterator<Item = &'a [u8]>) -> Appended {
    let mut appended = Appended { lines: 0, removed_torn: false, result: Ok(()) };
    appended.result = append_to(path, mode, format, lines, &mut appended);
    appended
}

fn append_to<'a>(
    path: &Path,
    mode: u32,
    format: LineFormat,
    lines: impl IntoIterator<Item = &'a [u8]>,
    appended: &mut Appended,
) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(mode).open(path)?;
    let meta = file.metadata()?;
    // A pipe or a device has no end that could be repaired.
    let is_file = meta.is_file();
    let start = if is_file { repair(&mut file, meta.len(), format, &mut appended.removed_torn)? } else { 0 };
    let mut end = start;
    for line in lines {
        if let Err(error) = file.write_all(line) {
            if is_file {
                // If this fails, the next call finds the torn line.
                let _ = file.set_len(end);
            }
            return Err(error);
        }
        end = end.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
        appended.lines += 1;
    }
    if is_file && let Err(error) = file.sync_data() {
        // Some file systems find only now that there is no space.
        let _ = file.set_len(start);
        appended.lines = 0;
        return Err(error);
    }
    Ok(())
}

/// Repairs the end of a file of `length` bytes; returns its new length.
fn repair(file: &mut File, length: u64, format: LineFormat, removed_torn: &mut bool) -> io::Result<u64> {
    let from = length.saturating_sub(TAIL);
    let mut tail = vec![0; usize::try_from(length - from).unwrap_or_default()];
    file.read_exact_at(&mut tail, from)?;
    match needed_repair(&tail, from == 0, format) {
        Repair::None => Ok(length),
        Repair::EndLine => {
            file.write_all(b"\n")?;
            Ok(length + 1)
        }
        Repair::Remove(bytes) => {
            let length = length.saturating_sub(bytes);
            file.set_len(length)?;
            *removed_torn = true;
            Ok(length)
        }
    }
}

/// The repair of a file with these bytes at its end; `is_whole` if there are no others.
#[must_use]
pub fn needed_repair(tail: &[u8], is_whole: bool, format: LineFormat) -> Repair {
    if tail.last().is_none_or(|byte| *byte == b'\n') {
        return Repair::None;
    }
    let last_end = tail.iter().rposition(|byte| *byte == b'\n');
    let line = match last_end {
        Some(at) => &tail[at + 1..],
        None if is_whole => tail,
        None => return Repair::EndLine,
    };
    // A file system may fill what it had not written yet with zeros.
    let is_torn = match format {
        LineFormat::Json => {
            let is_ours = line.starts_with(b"{") || line.iter().all(|byte| *byte == 0);
            is_ours && serde_json::from_slice::<IgnoredAny>(line).is_err()
        }
        LineFormat::Text => true,
    };
    if !is_torn {
        return Repair::EndLine;
    }
    Repair::Remove(u64::try_from(line.len()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(lines: &[&'static str]) -> Vec<&'static [u8]> {
        lines.iter().map(|line| line.as_bytes()).collect()
    }

    #[test]
    fn a_torn_line_is_removed_and_a_complete_one_is_ended() {
        for (tail, expected) in [
            ("", Repair::None),
            ("{\"a\":1}\n", Repair::None),
            ("{\"a\":1}", Repair::EndLine),
            ("{\"a\":1}\n{\"a\":", Repair::Remove(5)),
            ("{\"a\":1}\n{\"a\":2}", Repair::EndLine),
            ("{\"a\":1}\n\0\0\0", Repair::Remove(3)),
            ("someone else's notes", Repair::EndLine),
            ("{\"a", Repair::Remove(3)),
        ] {
            assert_eq!(needed_repair(tail.as_bytes(), true, LineFormat::Json), expected, "{tail:?}");
        }
        let unknown = needed_repair(b"{\"a", false, LineFormat::Json);
        assert_eq!(unknown, Repair::EndLine, "the beginning of the line is not known");
    }

    #[test]
    fn a_number_without_an_end_may_be_a_part_and_is_removed() {
        for (tail, expected) in [("", Repair::None), ("1,45\n", Repair::None), ("1,45\n2,4", Repair::Remove(3))] {
            assert_eq!(needed_repair(tail.as_bytes(), true, LineFormat::Text), expected, "{tail:?}");
        }
    }

    #[test]
    fn the_next_line_is_not_glued_to_a_torn_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "{\"a\":1}\n{\"a\":").unwrap();
        let appended = append(&path, 0o640, LineFormat::Json, lines(&["{\"a\":3}\n", "{\"a\":4}\n"]));
        assert!(appended.result.is_ok() && appended.removed_torn && appended.lines == 2);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"a\":1}\n{\"a\":3}\n{\"a\":4}\n");
    }

    #[test]
    fn a_full_disk_takes_no_line() {
        let appended = append(Path::new("/dev/full"), 0o640, LineFormat::Json, lines(&["{}\n"]));
        assert_eq!((appended.lines, appended.result.unwrap_err().kind()), (0, io::ErrorKind::StorageFull));
    }
}
