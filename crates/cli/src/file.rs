//! Files that are read completely or not at all, or replaced atomically.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
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

/// Replaces `file` atomically with `content`, with mode 0600: writes a draft in the same directory
/// and renames it.
///
/// Others may be able to write to the directory: the draft is always a new file (`O_EXCL` follows
/// no link), and the rename replaces a link instead of following it.
///
/// # Errors
/// If the file cannot be written or renamed; then no draft is left.
pub fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    replace_with_mode(file, content, 0o600)
}

/// As [`replace`], with another mode, from which the umask is taken.
///
/// # Errors
/// As [`replace`].
pub fn replace_with_mode(file: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    // The process id separates programs that share a directory.
    let draft = file.with_extension(format!("{}.new", std::process::id()));
    // Left behind by a program with the same id that was killed while it wrote.
    let _ = fs::remove_file(&draft);
    let mut new = fs::File::options().write(true).create_new(true).mode(mode).open(&draft)?;
    let written = new.write_all(content).and_then(|()| new.sync_all()).and_then(|()| fs::rename(&draft, file));
    if written.is_err() {
        // A full disk must not keep a draft.
        let _ = fs::remove_file(&draft);
    }
    written
}

/// Replaces `file` with `content` as JSON; see [`replace`].
///
/// # Errors
/// As [`replace`].
pub fn replace_json(file: &Path, content: &impl Serialize) -> io::Result<()> {
    replace(file, &serde_json::to_vec(content).map_err(io::Error::other)?)
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
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft remains");
    }

    #[test]
    fn planted_link_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, victim) = (dir.path().join("kept.json"), dir.path().join("victim"));
        fs::write(&victim, "precious").unwrap();
        let draft = file.with_extension(format!("{}.new", std::process::id()));
        std::os::unix::fs::symlink(&victim, draft).unwrap();
        replace_json(&file, &vec![1]).unwrap();
        assert_eq!((&*fs::read(&victim).unwrap(), &*fs::read(file).unwrap()), (&b"precious"[..], &b"[1]"[..]));
    }
}
