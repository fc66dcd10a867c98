//! The file of learnt idle power: keeps the samples of this machine and source across restarts.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{energy::processor::Processor, ledger::idle::Sample, tick::Setup};

/// Name of the file in the state directory.
const FILE: &str = "idle.json";
/// 64 samples of 23 classes for each of a few packages are 100 kB.
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
            setup.origin.map_or("none", |origin| origin.as_str()),
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
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error.to_string())),
        };
        let mut text = Vec::new();
        let read = file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|error| failed(error.to_string()))?;
        if u64::try_from(read).is_ok_and(|read| read > MAX_FILE) {
            return Err(failed("larger than this program writes it".to_owned()));
        }
        parse(&text).map_err(failed)
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
            if let Some(dir) = self.path.parent() {
                fs::create_dir_all(dir)?;
            }
            let draft = self.path.with_extension("new");
            let mut file = File::create(&draft)?;
            file.write_all(&serde_json::to_vec(&Content { version: VERSION, machines })?)?;
            file.sync_all()?;
            fs::rename(&draft, &self.path)
        };
        write().map_err(|error| BaselineFileError { path: self.path.clone(), what: error.to_string() })
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
        let zones = BTreeMap::from([("package of package 0".to_owned(), vec![(0.5, 30.0)])]);
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
