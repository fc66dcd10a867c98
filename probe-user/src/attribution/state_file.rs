//! Reads and writes a file of the state directory, and checks that it can be written: what all of
//! them have in common.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rustix::fs::{Access, access};

/// The content of a file of at most `max` bytes; `None` without the file.
///
/// In a directory where others may write, the name may be a link to another file, or a FIFO that
/// would block the start.
///
/// # Errors
/// When it cannot be read, is no regular file, or is larger.
pub(super) fn read(path: &Path, max: u64) -> Result<Option<Vec<u8>>, String> {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err("is a symbolic link, which is not followed".to_owned());
        }
        Err(error) => return Err(error.to_string()),
    };
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err("not a regular file".to_owned());
    }
    let mut text = Vec::new();
    let read = file.take(max.saturating_add(1)).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if u64::try_from(read).is_ok_and(|read| read > max) {
        return Err("larger than this program writes it".to_owned());
    }
    Ok(Some(text))
}

/// Replaces a file atomically, in a directory that is created where it does not exist.
///
/// # Errors
/// When it cannot be written.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    cli::file::replace(path, content)
}

/// Checks that a file can be written later, without writing anything. Call it after the privileges
/// are dropped.
///
/// # Errors
/// When the directory, or the nearest one above it that exists, is not writable.
pub(super) fn check_writable(path: &Path) -> Result<(), String> {
    let absent = |path: &&Path| fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let above = path.ancestors().skip(1).find(|path| !path.as_os_str().is_empty() && !absent(path));
    // A relative path without an existing part is in the current directory.
    let dir = above.unwrap_or(Path::new("."));
    if dir.metadata().is_ok_and(|meta| !meta.is_dir()) {
        return Err(format!("cannot be written: {} is not a directory", dir.display()));
    }
    access(dir, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| format!("cannot be written: {}: {}", dir.display(), io::Error::from(error)))
}
