//! Files that are ours to read and write: whole, or not at all.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use serde::Serialize;

/// A file of text, unless it is larger than it can be meant to be, in bytes.
///
/// # Errors
/// When it cannot be read, or is too large: what is cut means something else.
pub fn read_whole(file: &Path, most: u64) -> io::Result<String> {
    let mut text = String::new();
    let read = fs::File::open(file)?.take(most.saturating_add(1)).read_to_string(&mut text)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > most {
        return Err(io::Error::other(format!("larger than {most} bytes")));
    }
    Ok(text)
}

/// Writes JSON beside, and then in its place: a file is never half.
///
/// # Errors
/// When it cannot be written.
pub fn replace(file: &Path, kept: &impl Serialize) -> io::Result<()> {
    let beside = file.with_extension("new");
    fs::write(&beside, serde_json::to_vec(kept).map_err(io::Error::other)?)?;
    fs::rename(beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kept.json");
        replace(&file, &vec![1, 2]).unwrap();
        assert_eq!(read_whole(&file, 5).unwrap(), "[1,2]");
        assert!(read_whole(&file, 4).unwrap_err().to_string().contains("larger than 4"));
        assert!(read_whole(&file.with_extension("new"), 5).is_err(), "the draft is gone");
    }
}
