//! The file of learnt idle power: keeps the samples of this machine and source across restarts.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::state_file;
use crate::{
    energy::{processor::Processor, zone::Origin},
    ledger::idle::Sample,
    tick::Setup,
};

/// Name of the file in the state directory.
const FILE: &str = "idle.json";
/// 64 samples of 46 classes for each of a few packages are some 500 kB.
const MAX_FILE: u64 = 4 << 20;
const VERSION: u32 = 1;

/// Content of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    /// Load and watts, by machine and zone. The machine that was saved last is the last.
    machines: Vec<(String, ZoneSamples)>,
}

/// Load and watts, by zone.
pub type ZoneSamples = BTreeMap<String, Vec<Sample>>;

/// Number of other machines in the file, which are other sources or other sysfs trees. A short run
/// with one of them must not delete the samples of this machine.
const OTHER_MACHINES: usize = 7;

/// Path of the file, and identity of this machine.
#[derive(Clone, Debug)]
pub struct BaselineFile {
    path: PathBuf,
    machine: String,
}

/// Why the file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}. Idle power is learnt again; name another directory with --state.dir", path.display())]
pub struct BaselineFileError {
    path: PathBuf,
    what: String,
}

impl BaselineFile {
    /// The file of this machine in `dir`.
    #[must_use]
    pub fn new(dir: &Path, sysfs: &Path, processor: &Processor, setup: &Setup) -> Self {
        // Another processor, another energy source, or another sysfs make another machine.
        let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let packages: Vec<String> = setup.packages.iter().map(ToString::to_string).collect();
        let machine = format!(
            "{} {} [{}] {} {}",
            id.trim(),
            processor.name,
            packages.join(" "),
            setup.machine_origin().map_or("none", Origin::as_str),
            sysfs.display()
        );
        Self { path: dir.join(FILE), machine }
    }

    /// The samples of earlier runs on this machine; empty without any.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub fn load(&self) -> Result<ZoneSamples, BaselineFileError> {
        let machines = self.read()?;
        Ok(machines
            .into_iter()
            .find(|(machine, _)| *machine == self.machine)
            .map(|(_, zones)| zones)
            .unwrap_or_default())
    }

    /// Path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self) -> Result<Vec<(String, ZoneSamples)>, BaselineFileError> {
        let failed = |what: String| BaselineFileError { path: self.path.clone(), what };
        let text = state_file::read(&self.path, MAX_FILE).map_err(failed)?;
        text.map_or_else(|| Ok(Vec::new()), |text| parse(&text).map_err(failed))
    }

    /// Replaces the file atomically. The samples of other machines stay.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, zones: &ZoneSamples) -> Result<(), BaselineFileError> {
        if zones.is_empty() {
            return Ok(());
        }
        // A file that cannot be read is replaced.
        let mut machines = self.read().unwrap_or_default();
        machines.retain(|(machine, _)| *machine != self.machine);
        let surplus = machines.len().saturating_sub(OTHER_MACHINES);
        machines.drain(..surplus);
        machines.push((self.machine.clone(), zones.clone()));
        let write = || -> io::Result<()> {
            let mut content = Content { version: VERSION, machines };
            let mut text = serde_json::to_vec(&content)?;
            // A larger file would not be read again.
            while u64::try_from(text.len()).is_ok_and(|length| length > MAX_FILE) && content.machines.len() > 1 {
                content.machines.remove(0);
                text = serde_json::to_vec(&content)?;
            }
            state_file::replace(&self.path, &text)
        };
        write().map_err(|error| BaselineFileError { path: self.path.clone(), what: error.to_string() })
    }

    /// Checks that the file can be written later, without writing anything. Call it after the
    /// privileges are dropped.
    ///
    /// # Errors
    /// When the directory, or the nearest one above it that exists, is not writable.
    pub fn check_writable(&self) -> Result<(), BaselineFileError> {
        state_file::check_writable(&self.path).map_err(|what| BaselineFileError { path: self.path.clone(), what })
    }
}

/// Parses the content of the file: samples by machine.
///
/// # Errors
/// Why the content is invalid.
pub fn parse(text: &[u8]) -> Result<Vec<(String, ZoneSamples)>, String> {
    let content: Content = serde_json::from_slice(text).map_err(|error| format!("not a state file ({error})"))?;
    if content.version != VERSION {
        return Err(format!("version {}, and this is {VERSION}", content.version));
    }
    Ok(content.machines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, machine: &str) -> BaselineFile {
        BaselineFile { path: dir.join(FILE), machine: machine.to_owned() }
    }

    #[test]
    fn samples_are_restored_for_the_same_machine_only() {
        let dir = tempfile::tempdir().unwrap();
        let here = file(dir.path(), "here");
        assert!(here.load().unwrap().is_empty(), "nothing yet");
        let zones = BTreeMap::from([("package of package 0".to_owned(), vec![Sample::from((0.5, 30.0))])]);
        here.save(&zones).unwrap();
        assert_eq!(here.load().unwrap(), zones);
        assert!(file(dir.path(), "elsewhere").load().unwrap().is_empty());
        for other in 0..20 {
            file(dir.path(), &format!("elsewhere {other}")).save(&zones).unwrap();
            here.save(&zones).unwrap();
        }
        assert_eq!(here.load().unwrap(), zones, "other machines do not delete the samples of this one");
        assert_eq!(here.read().unwrap().len(), OTHER_MACHINES + 1);
        here.save(&BTreeMap::new()).unwrap();
        assert_eq!(here.load().unwrap(), zones, "an empty save does not delete samples");
    }

    /// The samples of several large machines made a file that the next start refused.
    #[test]
    fn a_file_that_would_be_too_large_loses_the_oldest_machines() {
        let dir = tempfile::tempdir().unwrap();
        let zones = BTreeMap::from([("package".to_owned(), vec![Sample::from((1.0 / 3.0, 100.0 / 3.0)); 60_000])]);
        let (first, second) = (file(dir.path(), "first"), file(dir.path(), "second"));
        first.save(&zones).unwrap();
        second.save(&zones).unwrap();
        assert_eq!(second.load().unwrap()["package"].len(), 60_000);
        assert!(first.load().unwrap().is_empty());
    }

    /// The state was written through a link that another user had planted as `idle.new`.
    #[test]
    fn the_state_is_not_written_through_a_planted_link() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};

        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        let state = dir.path().join("state");
        fs::create_dir(&state).unwrap();
        let drafts = ["idle.new".to_owned(), format!("idle.{}.new", std::process::id()), FILE.to_owned()];
        for name in &drafts {
            symlink(&precious, state.join(name)).unwrap();
        }
        let here = file(&state, "here");
        let error = here.load().unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "{}: is a symbolic link, which is not followed. Idle power is learnt again; name another directory with --state.dir",
                state.join(FILE).display()
            )
        );
        let zones = BTreeMap::from([("package of package 0".to_owned(), vec![Sample::from((0.5, 30.0))])]);
        here.save(&zones).unwrap();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        assert_eq!(here.load().unwrap(), zones);
        let meta = fs::symlink_metadata(state.join(FILE)).unwrap();
        assert!(meta.is_file() && meta.permissions().mode() & 0o777 == 0o600, "{meta:?}");
        assert!(!state.join(&drafts[1]).exists(), "no draft remains");
    }

    #[test]
    fn a_fifo_as_state_file_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join(FILE);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert!(file(dir.path(), "here").load().unwrap_err().to_string().contains("not a regular file"));
    }

    /// An unwritable state directory was silent.
    #[test]
    fn an_unwritable_state_directory_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        assert!(file(dir.path(), "here").check_writable().is_ok());
        assert!(file(&dir.path().join("new/below"), "here").check_writable().is_ok(), "it will be created");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is written");
        let taken = dir.path().join("taken");
        fs::write(&taken, "").unwrap();
        assert_eq!(
            file(&taken, "here").check_writable().unwrap_err().to_string(),
            format!(
                "{0}/idle.json: cannot be written: {0} is not a directory. Idle power is learnt again; name another directory with --state.dir",
                taken.display()
            )
        );
    }

    #[test]
    fn an_invalid_file_is_reported_and_ignored() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{", "[1]", r#"{"version":2,"machines":[]}"#] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let error = file(dir.path(), "here").load().unwrap_err().to_string();
            assert!(error.contains("--state.dir"), "{error}");
        }
    }
}
