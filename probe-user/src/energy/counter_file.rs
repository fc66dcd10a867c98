//! A counter in a file of sysfs that stays open, and is opened again when it returns.
//!
//! The file belongs to root, and the probe stays uid 0 after it has dropped its capabilities, so it
//! can be opened again.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Error of the reading at which a counter was opened again. It may have started at zero meanwhile:
/// counting starts with the next reading.
pub const REOPENED: &str = "was opened again";

/// Shortest interval between two attempts to open a file.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(900);

/// Size of the buffer for a value.
const MAX_VALUE: usize = 32;

/// The open file.
pub(crate) struct CounterFile {
    path: PathBuf,
    file: File,
    last: Option<u64>,
    tried: Option<Instant>,
}

impl CounterFile {
    pub(crate) fn new(path: PathBuf, file: File) -> Self {
        Self { path, file, last: None, tried: None }
    }

    /// A second handle.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self::new(self.path.clone(), self.file.try_clone()?))
    }

    /// The value of the counter.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no number. [`REOPENED`] once, when it can be read
    /// again at its path.
    pub(crate) fn read(&mut self) -> io::Result<u64> {
        let error = match self.value() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if self.tried.is_some_and(|at| at.elapsed() < RETRY_INTERVAL) {
            return Err(error);
        }
        self.tried = Some(Instant::now());
        let Ok(file) = File::open(&self.path) else { return Err(error) };
        let identity = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
        if identity(&file) == identity(&self.file) || parse(&file).is_err() {
            return Err(error);
        }
        (self.file, self.last) = (file, None);
        Err(io::Error::other(REOPENED))
    }

    fn value(&mut self) -> io::Result<u64> {
        let value = parse(&self.file)?;
        // A counter that does not move may have been removed. Then sysfs refuses the read, but a
        // copy of the tree on a plain file system does not, so the link count is checked too.
        if self.last.replace(value) == Some(value) && self.file.metadata()?.nlink() == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the counter was removed"));
        }
        Ok(value)
    }
}

fn parse(file: &File) -> io::Result<u64> {
    let mut buffer = [0; MAX_VALUE];
    let length = file.read_at(&mut buffer, 0)?;
    number(&buffer[..length]).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a number"))
}

/// The number in a small file; `None` when it cannot be read or is no number.
pub(crate) fn number_in(file: &Path) -> Option<u64> {
    number(&fs::read(file).ok()?)
}

/// The label in a small file; empty when it cannot be read.
pub(crate) fn label_in(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.trim().chars().filter(|char| !char.is_control()).take(80).collect()
}

/// The value of a counter or sensor, as the kernel prints it.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    // A number has 20 digits at most; one that fills the buffer may be cut off.
    (text.len() < MAX_VALUE).then(|| std::str::from_utf8(text).ok()?.trim().parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_number_is_a_value() {
        assert_eq!((number(b"18446744073709551615\n"), number(b" 0\n")), (Some(u64::MAX), Some(0)));
        let cut_off = [b"1".to_vec(), vec![b' '; 30], b"2".to_vec()].concat();
        for text in
            [&b""[..], b"\n", b"-1", b"1.5", b"1 2", b"0x1f", b"18446744073709551616", b"1\0", b"\xff", &*cut_off]
        {
            assert_eq!(number(text), None, "{text:?}");
        }
    }
}
