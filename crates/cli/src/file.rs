//! Files that are read completely or not at all, and replaced atomically.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::Path,
};

use serde::Serialize;

/// The text of a file of at most `max_bytes`.
///
/// # Errors
/// If the file cannot be read, is not UTF-8, or is larger; a truncated file could have another
/// meaning.
pub fn read_limited(file: &Path, max_bytes: u64) -> io::Result<String> {
    let mut text = String::new();
    let read = fs::File::open(file)?.take(max_bytes.saturating_add(1)).read_to_string(&mut text)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > max_bytes {
        return Err(io::Error::other(format!("larger than {max_bytes} bytes")));
    }
    Ok(text)
}

/// Replaces `file` atomically with `content` as JSON: writes `FILE.new` in the same directory and
/// renames it. A link of that name is replaced, not followed: the directory may be writable by
/// others.
///
/// # Errors
/// If the file cannot be written or renamed.
pub fn replace_json(file: &Path, content: &impl Serialize) -> io::Result<()> {
    let temporary = file.with_extension("new");
    let content = serde_json::to_vec(content).map_err(io::Error::other)?;
    // Left behind by a program that was killed while it wrote.
    let _ = fs::remove_file(&temporary);
    fs::File::create_new(&temporary)?.write_all(&content)?;
    fs::rename(temporary, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_read_completely_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kept.json");
        replace_json(&file, &vec![1, 2]).unwrap();
        assert_eq!(read_limited(&file, 5).unwrap(), "[1,2]");
        assert!(read_limited(&file, 4).unwrap_err().to_string().contains("larger than 4"));
        assert!(read_limited(&file.with_extension("new"), 5).is_err(), "no temporary file remains");
    }

    #[test]
    fn planted_link_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, victim) = (dir.path().join("kept.json"), dir.path().join("victim"));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, file.with_extension("new")).unwrap();
        replace_json(&file, &vec![1]).unwrap();
        assert_eq!((&*fs::read(victim).unwrap(), &*fs::read(file).unwrap()), (&b"precious"[..], &b"[1]"[..]));
    }
}
