//! Detection of changes in the results directory with inotify, so that a result is served right
//! after it was written. Where inotify does not work (network file systems, exhausted watches) the
//! directory is polled, as the legacy exporters did.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use inotify::{EventMask, Inotify, WatchMask};

/// Interval of attempts to watch a directory that is missing or cannot be watched.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// A watched directory.
pub struct DirectoryWatch {
    dir: PathBuf,
    /// Maximum time between two checks of the directory.
    ttl: Duration,
    last_check: Option<Instant>,
    inotify: Option<Inotify>,
    last_attempt: Option<Instant>,
}

impl DirectoryWatch {
    /// A watch of `dir` that starts with the first [`DirectoryWatch::is_due`]; a check is due at
    /// least every `ttl`.
    #[must_use]
    pub fn new(dir: &Path, ttl: Duration) -> Self {
        Self { dir: dir.to_owned(), ttl, last_check: None, inotify: None, last_attempt: None }
    }

    /// True while the kernel reports changes; false while the directory is only polled.
    #[must_use]
    pub fn is_notified(&self) -> bool {
        self.inotify.is_some()
    }

    /// True if the directory should be checked now.
    pub fn is_due(&mut self) -> bool {
        let mut due = self.last_check.is_none_or(|checked| checked.elapsed() >= self.ttl);
        if self.inotify.is_none() && self.last_attempt.is_none_or(|attempt| attempt.elapsed() >= RETRY_INTERVAL) {
            self.last_attempt = Some(Instant::now());
            // The watch starts before the check that it makes due, so that no change is missed.
            self.inotify = watch(&self.dir).ok();
            due |= self.inotify.is_some();
        }
        due |= self.has_changed();
        if due {
            self.last_check = Some(Instant::now());
        }
        due
    }

    /// Reads all pending events; true if a result file changed or the watch ended.
    fn has_changed(&mut self) -> bool {
        let Some(inotify) = &mut self.inotify else { return false };
        let (mut changed, mut ended) = (false, false);
        let mut buffer = [0; 4096];
        loop {
            match inotify.read_events(&mut buffer) {
                Ok(events) => {
                    for event in events {
                        ended |=
                            event.mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF);
                        changed |= event.mask.contains(EventMask::Q_OVERFLOW) || event.name.is_some_and(is_result);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    ended |= error.kind() != io::ErrorKind::WouldBlock;
                    break;
                }
            }
        }
        if ended {
            self.inotify = None;
            self.last_attempt = None;
        }
        changed || ended
    }
}

fn is_result(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(super::PREFIX) && name.ends_with(super::SUFFIX))
}

/// Starts a watch without `CREATE`, because a new file is still empty and would be reported as
/// incomplete. A new hard or symbolic link is found by polling.
fn watch(dir: &Path) -> io::Result<Inotify> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    inotify.watches().add(dir, mask)?;
    Ok(inotify)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn changes_of_result_files_are_notified() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("results");
        let mut watch = DirectoryWatch::new(&inner, Duration::from_secs(3600));
        assert!(watch.is_due(), "the first check");
        assert!(!watch.is_due() && !watch.is_notified());
        fs::create_dir(&inner).unwrap();
        watch.last_attempt = None;
        assert!(watch.is_due() && watch.is_notified() && !watch.is_due());
        fs::write(inner.join("notes.txt"), "x").unwrap();
        assert!(!watch.is_due());
        let file = inner.join("test_results_20250101_000000.json");
        fs::write(&file, "{}").unwrap();
        assert!(watch.is_due() && !watch.is_due());
        fs::rename(&file, inner.join("away")).unwrap();
        assert!(watch.is_due() && !watch.is_due());
        fs::remove_dir_all(&inner).unwrap();
        assert!(watch.is_due() && !watch.is_notified());
    }

    #[test]
    fn missing_directory_is_polled() {
        let mut watch = DirectoryWatch::new(Path::new("/nowhere"), Duration::ZERO);
        assert!(watch.is_due() && watch.is_due() && !watch.is_notified());
    }
}
