//! Writing of result files.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Writes a file atomically and syncs it to disk.
///
/// # Errors
/// When it cannot be written.
pub fn write_atomically(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let draft: PathBuf = file.with_file_name(format!(".{name}.part"));
    let mut output = File::create(&draft)?;
    output.write_all(bytes)?;
    output.sync_all()?;
    fs::rename(&draft, file)?;
    // The parent of a bare file name is empty and means the current directory.
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}
