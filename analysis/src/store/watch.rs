//! Whether a directory changed, from the kernel: a result is on the page a moment after it was written. Where the kernel cannot tell (a network file system,
//! no watch to be had) the directory is looked at by the clock, as the replaced exporters did.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use inotify::{EventMask, Inotify, WatchMask};

/// A directory that is not there, or cannot be watched, is tried again this often.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// A directory under watch.
pub struct Watch {
    dir: PathBuf,
    /// A look is due at the latest after this long.
    ttl: Duration,
    looked: Option<Instant>,
    kernel: Option<Inotify>,
    tried: Option<Instant>,
}

impl Watch {
    /// Watches from the first [`Watch::is_due`] on.
    #[must_use]
    pub fn new(dir: &Path, ttl: Duration) -> Self {
        Self { dir: dir.to_owned(), ttl, looked: None, kernel: None, tried: None }
    }

    /// True while the kernel tells of changes.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.kernel.is_some()
    }

    /// True when the directory is to be looked at now.
    pub fn is_due(&mut self) -> bool {
        let mut due = self.looked.is_none_or(|looked| looked.elapsed() >= self.ttl);
        if self.kernel.is_none() && self.tried.is_none_or(|tried| tried.elapsed() >= TRY_AGAIN) {
            self.tried = Some(Instant::now());
            // Watched first and looked at then: nothing can come in between.
            self.kernel = open(&self.dir).ok();
            due |= self.kernel.is_some();
        }
        due |= self.told();
        if due {
            self.looked = Some(Instant::now());
        }
        due
    }

    fn told(&mut self) -> bool {
        let Some(kernel) = &mut self.kernel else { return false };
        let (mut told, mut gone) = (false, false);
        let mut buffer = [0; 4096];
        loop {
            match kernel.read_events(&mut buffer) {
                Ok(events) => {
                    for event in events {
                        gone |=
                            event.mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF);
                        told |= event.mask.contains(EventMask::Q_OVERFLOW) || event.name.is_some_and(is_result);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    gone |= error.kind() != io::ErrorKind::WouldBlock;
                    break;
                }
            }
        }
        if gone {
            self.kernel = None;
            self.tried = None;
        }
        told || gone
    }
}

fn is_result(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(super::PREFIX) && name.ends_with(super::SUFFIX))
}

/// Not `CREATE`: a file that was only made is empty, and would be called torn. A link that is made is found by the clock.
fn open(dir: &Path) -> io::Result<Inotify> {
    let kernel = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    kernel.watches().add(dir, mask)?;
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_kernel_tells_of_results_and_of_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("results");
        let mut watch = Watch::new(&inner, Duration::from_secs(3600));
        assert!(watch.is_due(), "the first look");
        assert!(!watch.is_due() && !watch.is_told());
        fs::create_dir(&inner).unwrap();
        watch.tried = None;
        assert!(watch.is_due() && watch.is_told() && !watch.is_due());
        fs::write(inner.join("notes.txt"), "x").unwrap();
        assert!(!watch.is_due());
        let file = inner.join("test_results_20250101_000000.json");
        fs::write(&file, "{}").unwrap();
        assert!(watch.is_due() && !watch.is_due());
        fs::rename(&file, inner.join("away")).unwrap();
        assert!(watch.is_due() && !watch.is_due());
        fs::remove_dir_all(&inner).unwrap();
        assert!(watch.is_due() && !watch.is_told());
    }

    #[test]
    fn the_clock_does_what_the_kernel_cannot() {
        let mut watch = Watch::new(Path::new("/nowhere"), Duration::ZERO);
        assert!(watch.is_due() && watch.is_due() && !watch.is_told());
    }
}
