//! The file of energy totals: lets the next start of the probe on this boot continue them, so that
//! counters of a restarted probe are not reset.
//!
//! The file exists only between a clean end and the next start, which takes it away. A counter that
//! continued from an older value than the last one scraped would look like a reset, after which
//! `rate()` and `increase()` add all of it once more. Without the file, as after a crash, counters
//! start at zero, which they handle. Between the end and the start no energy is counted: the length
//! of that gap is kept and exported.
//!
//! A file is not continued either if another probe has started on the same port since it was saved,
//! with another state directory: the counters of that port went on from other values. The rule:
//! only the totals of the probe that counted last under a port are continued.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    saved_totals::SavedTotals,
    start_mark::{DIRS, StartMark},
    state_file,
};
use crate::{containers::SavedContainer, host::process::clock_ns, snapshot::Continuity};

/// Name of the file in the state directory.
const FILE: &str = "totals.json";
/// A thousand containers on ten counters are less than 1 MB.
const MAX_FILE: u64 = 4 << 20;
const VERSION: u32 = 1;

/// Content of the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SavedState {
    pub(crate) totals: SavedTotals,
    pub(crate) containers: Vec<SavedContainer>,
    pub(crate) continuity: Continuity,
    /// Time of the last tick on the clock since the boot, which includes suspensions.
    pub(crate) boot_ns: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content<State> {
    version: u32,
    /// The machine and its boot, the source and the ports. Ids of cgroups, and the time above, are
    /// unique within one boot.
    boot: String,
    state: State,
}

/// Path of the file, and identity of this boot of this machine.
#[derive(Clone, Debug)]
pub(crate) struct TotalsFile {
    path: PathBuf,
    boot: String,
    /// The latest starts on the ports of this probe.
    marks: Vec<StartMark>,
}

/// Why the file cannot be read, removed or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}. Energy counters start at zero; {remedy}", path.display())]
pub(crate) struct TotalsFileError {
    path: PathBuf,
    what: String,
    remedy: &'static str,
}

/// For a file that cannot be used.
const OTHER_DIRECTORY: &str = "name another directory with --state.dir";
/// For the totals of a probe after which another one has counted, with another state directory or
/// none. Its series have the energy since, so these totals cannot continue.
const SAME_DIRECTORY: &str = "start the probe of a port with the same --state.dir always";

impl TotalsFile {
    /// The file of this boot of this machine in `dir`, for a probe whose page is on these ports;
    /// `None` where the boot cannot be identified.
    pub(crate) fn new(dir: &Path, sysfs: &Path, ports: &[u16]) -> Option<Self> {
        let boot = boot()?;
        let marks = marks(ports, &boot);
        // Probes that share the directory have other ports, and so other series.
        Some(Self { path: dir.join(FILE), boot: format!("{boot} {} {ports:?}", sysfs.display()), marks })
    }

    /// Path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the totals of the probe that ended last on this boot, and removes the file, so that no
    /// later start continues from them again. `None` without any, or after another boot.
    ///
    /// # Errors
    /// When the file exists and cannot be read, parsed or removed, or is not the newest one of its
    /// port. It is removed if it can be.
    pub(crate) fn take(&self) -> Result<Option<SavedState>, TotalsFileError> {
        let failed = |what: String| self.failed(what, OTHER_DIRECTORY);
        let text = match state_file::read(&self.path, MAX_FILE) {
            Ok(Some(text)) => text,
            Ok(None) => return Ok(None),
            Err(what) => {
                // A link or a FIFO of that name is removed too, never followed.
                let _ = fs::remove_file(&self.path);
                return Err(failed(what));
            }
        };
        fs::remove_file(&self.path).map_err(|error| failed(format!("cannot be removed: {error}")))?;
        let state = parse(&text, &self.boot).map_err(failed)?;
        let now = clock_ns(libc::CLOCK_BOOTTIME);
        let state = state.filter(|state| now.is_some_and(|now| now >= state.boot_ns));
        if let Some(state) = &state
            && self.marks.iter().filter_map(StartMark::latest).any(|started| started > state.boot_ns)
        {
            let what = "is older than another probe that has counted on this port since";
            return Err(self.failed(what.to_owned(), SAME_DIRECTORY));
        }
        Ok(state)
    }

    fn failed(&self, what: String, remedy: &'static str) -> TotalsFileError {
        TotalsFileError { path: self.path.clone(), what, remedy }
    }

    /// Replaces the file atomically.
    ///
    /// # Errors
    /// When it cannot be written, or would be too large to be read.
    pub(crate) fn save(&self, state: &SavedState) -> Result<(), TotalsFileError> {
        let failed = |what: String| self.failed(what, OTHER_DIRECTORY);
        state.totals.check().map_err(failed)?;
        let content = Content { version: VERSION, boot: self.boot.clone(), state };
        let text = serde_json::to_vec(&content).map_err(|error| failed(error.to_string()))?;
        if !u64::try_from(text.len()).is_ok_and(|length| length <= MAX_FILE) {
            return Err(failed(format!("{} bytes are more than {MAX_FILE}", text.len())));
        }
        state_file::replace(&self.path, &text).map_err(|error| failed(error.to_string()))
    }
}

/// This boot of this machine; `None` where it cannot be identified.
fn boot() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    Some(format!("{} {}", machine.trim(), boot.trim()))
}

fn marks(ports: &[u16], boot: &str) -> Vec<StartMark> {
    ports.iter().filter_map(|port| StartMark::new(DIRS.map(Path::new), *port, boot)).collect()
}

/// Leaves the start of a probe whose page is on these ports for those with another state directory.
/// Call it after [`TotalsFile::take`], and for a probe without a state directory, too: it counts on
/// the ports all the same.
pub(crate) fn mark_start(ports: &[u16]) {
    let (Some(now), Some(boot)) = (clock_ns(libc::CLOCK_BOOTTIME), boot()) else { return };
    marks(ports, &boot).iter().for_each(|mark| mark.leave(now));
}

/// Parses the content of the file; `None` if it is of another boot.
///
/// # Errors
/// Why the content is invalid.
pub(crate) fn parse(text: &[u8], boot: &str) -> Result<Option<SavedState>, String> {
    /// Read first: another version, or another boot, may have another state.
    #[derive(Deserialize)]
    struct Head {
        version: u32,
        boot: String,
    }
    let invalid = |error: serde_json::Error| format!("not a file of totals ({error})");
    let head: Head = serde_json::from_slice(text).map_err(invalid)?;
    if head.version != VERSION {
        return Err(format!("version {}, and this is {VERSION}", head.version));
    }
    if head.boot != boot {
        return Ok(None);
    }
    let content: Content<SavedState> = serde_json::from_slice(text).map_err(invalid)?;
    content.state.totals.check()?;
    Ok(Some(content.state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attribution::saved_totals::SavedZone,
        energy::zone::{Origin, ZoneId, ZoneKind},
        host::topology::PackageId,
        ledger::{Account, AccountId},
    };
    use units::Microjoules;

    fn file(dir: &Path, boot: &str) -> TotalsFile {
        TotalsFile { path: dir.join(FILE), boot: boot.to_owned(), marks: Vec::new() }
    }

    /// A state whose only account has `system` of `measured` microjoules.
    fn state(measured: u64, system: u64) -> SavedState {
        let zone = ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package };
        let account = Account { measured: Microjoules(measured), system: Microjoules(system), ..Account::default() };
        let id = AccountId { zone, origin: Origin::Perf };
        let zones = vec![SavedZone { id, total: Microjoules(measured), account: Some(account) }];
        SavedState { totals: SavedTotals { zones, ..SavedTotals::default() }, ..SavedState::default() }
    }

    /// A file that stayed would be continued once more after a crash, with values below those that
    /// were scraped: each of its counters would count twice.
    #[test]
    fn totals_are_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let here = file(dir.path(), "boot 1");
        assert_eq!(here.take().unwrap(), None, "nothing yet");
        here.save(&state(u64::MAX, u64::MAX)).unwrap();
        assert_eq!(here.take().unwrap(), Some(state(u64::MAX, u64::MAX)), "all digits are kept");
        assert_eq!(here.take().unwrap(), None);
    }

    #[test]
    fn totals_of_another_boot_are_not_continued() {
        let dir = tempfile::tempdir().unwrap();
        file(dir.path(), "boot 1").save(&state(5, 5)).unwrap();
        assert_eq!(file(dir.path(), "boot 2").take().unwrap(), None);
        assert!(!dir.path().join(FILE).exists());
        // The clock since the boot has not reached the time of the file.
        let later = SavedState { boot_ns: u64::MAX, ..state(5, 5) };
        file(dir.path(), "boot 1").save(&later).unwrap();
        assert_eq!(file(dir.path(), "boot 1").take().unwrap(), None);
    }

    /// A probe with another state directory ran between two with this one: counters went back to
    /// the values of the first, and the difference was counted again.
    #[test]
    fn totals_from_before_another_probe_on_the_port_are_not_continued() {
        let (dir, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let of_port = |port| {
            let marks = StartMark::new([run.path()], port, "boot").into_iter().collect();
            TotalsFile { marks, ..file(dir.path(), "boot") }
        };
        let here = of_port(9500);
        let saved = SavedState { boot_ns: 100, ..state(5, 5) };
        here.save(&saved).unwrap();
        // The start of the probe that saved them.
        here.marks[0].leave(50);
        assert_eq!(here.take().unwrap(), Some(saved.clone()));
        // Another one, which had no file here.
        here.save(&saved).unwrap();
        here.marks[0].leave(150);
        let error = here.take().unwrap_err().to_string();
        assert!(error.contains("another probe") && error.contains("start at zero"), "{error}");
        assert!(error.ends_with("with the same --state.dir always"), "another directory would not help: {error}");
        assert!(!dir.path().join(FILE).exists(), "no later start continues them either");
        here.save(&saved).unwrap();
        assert_eq!(of_port(9600).take().unwrap(), Some(saved), "on another port are other series");
    }

    /// Two probes that shared a state directory continued the totals of each other.
    #[test]
    fn totals_are_of_the_ports_that_they_were_saved_for() {
        let dir = tempfile::tempdir().unwrap();
        let of_port = |port| TotalsFile::new(dir.path(), Path::new("/sys"), &[port]).unwrap();
        let saved = SavedState { boot_ns: 100, ..state(5, 5) };
        of_port(1).save(&saved).unwrap();
        assert_eq!(of_port(2).take().unwrap(), None);
        of_port(1).save(&saved).unwrap();
        assert_eq!(of_port(1).take().unwrap(), Some(saved));
    }

    #[test]
    fn totals_that_do_not_close_are_neither_saved_nor_continued() {
        let dir = tempfile::tempdir().unwrap();
        let here = file(dir.path(), "boot");
        assert!(here.save(&state(5, 4)).unwrap_err().to_string().contains("does not close"));
        here.save(&state(5, 5)).unwrap();
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        fs::write(dir.path().join(FILE), text.replace("\"system\":5", "\"system\":4")).unwrap();
        let error = here.take().unwrap_err().to_string();
        assert!(error.contains("does not close") && error.contains("start at zero"), "{error}");
        assert_eq!(here.take().unwrap(), None, "an invalid file is removed");
    }

    #[test]
    fn an_invalid_file_of_totals_is_reported_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let here = file(dir.path(), "boot");
        for text in ["", "{", "[1]", r#"{"version":2,"boot":"boot"}"#, r#"{"version":1,"boot":"boot"}"#] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let error = here.take().unwrap_err().to_string();
            assert!(error.contains("--state.dir"), "{error}");
            assert!(!dir.path().join(FILE).exists(), "{text}");
        }
        fs::write(dir.path().join("precious"), "precious").unwrap();
        std::os::unix::fs::symlink(dir.path().join("precious"), dir.path().join(FILE)).unwrap();
        assert!(here.take().unwrap_err().to_string().contains("symbolic link"));
        assert_eq!(fs::read_to_string(dir.path().join("precious")).unwrap(), "precious");
    }
}
