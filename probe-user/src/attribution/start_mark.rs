//! The latest start of a probe by the port of its page, which tells whether saved totals are the
//! newest ones of that port.
//!
//! A state directory knows only the probes that used it. After one with another directory, the
//! totals of an earlier one would move counters to values that were scraped before, and `rate()`
//! would count the difference once more. So each start leaves its time outside of all state
//! directories, in a directory that is empty after a boot, and totals that are older than the
//! latest start are not continued. Where no such directory can be written, as in the sandbox of a
//! service without `RuntimeDirectory=`, a start leaves nothing; what others left is read all the
//! same.

use std::path::{Path, PathBuf};

use super::state_file;

/// Directories that a boot empties, that of the service first.
pub(super) const DIRS: [&str; 2] = ["/run/wattcast", "/run"];
/// A number and two ids are less.
const MAX_FILE: u64 = 4096;

/// The files with the latest start on one port.
#[derive(Clone, Debug)]
pub(super) struct StartMark {
    paths: Vec<PathBuf>,
    /// The machine and its boot.
    boot: String,
}

impl StartMark {
    /// The mark of `port`; `None` for a port that the kernel chooses, which is that of no earlier
    /// probe.
    pub(super) fn new<'d>(dirs: impl IntoIterator<Item = &'d Path>, port: u16, boot: &str) -> Option<Self> {
        let paths = dirs.into_iter().map(|dir| dir.join(format!("wattcast-probe-{port}.start"))).collect();
        (port != 0).then(|| Self { paths, boot: boot.to_owned() })
    }

    /// The latest start on this boot, in nanoseconds of the clock since the boot.
    pub(super) fn latest(&self) -> Option<u64> {
        self.paths.iter().filter_map(|path| self.read(path)).max()
    }

    fn read(&self, path: &Path) -> Option<u64> {
        let text = String::from_utf8(state_file::read(path, MAX_FILE).ok()??).ok()?;
        let (started, boot) = text.trim_end().split_once(' ')?;
        started.parse().ok().filter(|_| boot == self.boot)
    }

    /// Leaves the time of a start in the first directory that exists and can be written.
    pub(super) fn leave(&self, started_ns: u64) {
        let text = format!("{started_ns} {}\n", self.boot);
        let mut paths = self.paths.iter().filter(|path| path.parent().is_some_and(Path::is_dir));
        let _ = paths.find(|path| state_file::replace(path, text.as_bytes()).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_start_on_a_port_of_this_boot_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let mark = |port, boot: &str| StartMark::new([&*missing, dir.path()], port, boot);
        let here = mark(9500, "boot 1").unwrap();
        assert_eq!(here.latest(), None, "nothing yet");
        here.leave(7);
        assert!(!missing.exists(), "a directory of a service is not made by others");
        assert_eq!(here.latest(), Some(7));
        assert_eq!(mark(9500, "boot 2").unwrap().latest(), None, "of another boot");
        assert_eq!(mark(9600, "boot 1").unwrap().latest(), None, "of another port");
        assert!(mark(0, "boot 1").is_none());
        std::fs::create_dir(&missing).unwrap();
        here.leave(9);
        assert_eq!((here.latest(), here.read(&here.paths[1])), (Some(9), Some(7)));
        std::fs::write(&here.paths[0], "nonsense").unwrap();
        assert_eq!(here.latest(), Some(7));
    }
}
