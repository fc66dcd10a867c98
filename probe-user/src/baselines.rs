//! What was learnt of idle power, kept across restarts: a small file, of this machine and source alone.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{energy::processor::Processor, ledger::idle::Sample, tick::Setup};

/// The file in the state directory.
const FILE: &str = "idle.json";
/// 64 samples of 23 classes for each of a few packages are 100 kB.
const MAX_FILE: u64 = 4 << 20;
const VERSION: u32 = 1;

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    /// Load and watts, by machine and zone; the machine that was saved last is the last.
    machines: Vec<(String, Zones)>,
}

/// Load and watts, by zone.
pub type Zones = BTreeMap<String, Vec<Sample>>;

/// Machines that are remembered beside this one: other sources, other trees. One short run of another must not wipe this one.
const OTHERS: usize = 7;

/// Where it is, and whose it must be.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
    machine: String,
}

/// Why it cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}. Idle power is learnt anew; name another directory with --state.dir", path.display())]
pub struct StateError {
    path: PathBuf,
    what: String,
}

impl StateFile {
    /// The file of this machine in `dir`.
    #[must_use]
    pub fn new(dir: &Path, sysfs: &Path, processor: &Processor, setup: &Setup) -> Self {
        // A board that was given another processor, another source of joules, or another sysfs is another machine.
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

    /// What an earlier life learnt; empty when there was none on this machine.
    ///
    /// # Errors
    /// When there is a file and it cannot be read.
    pub fn load(&self) -> Result<Zones, StateError> {
        let machines = self.read()?;
        Ok(machines
            .into_iter()
            .find(|(machine, _)| *machine == self.machine)
            .map(|(_, zones)| zones)
            .unwrap_or_default())
    }

    fn read(&self) -> Result<Vec<(String, Zones)>, StateError> {
        let failed = |what: String| StateError { path: self.path.clone(), what };
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error.to_string())),
        };
        let mut text = Vec::new();
        let read = file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|error| failed(error.to_string()))?;
        if u64::try_from(read).is_ok_and(|read| read > MAX_FILE) {
            return Err(failed("too large to be ours".to_owned()));
        }
        parse(&text).map_err(failed)
    }

    /// Writes it, whole or not at all. What other machines learnt stays.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, zones: &Zones) -> Result<(), StateError> {
        if zones.is_empty() {
            return Ok(());
        }
        // A file that cannot be read has nothing to keep.
        let mut machines = self.read().unwrap_or_default();
        machines.retain(|(machine, _)| *machine != self.machine);
        let surplus = machines.len().saturating_sub(OTHERS);
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
        write().map_err(|error| StateError { path: self.path.clone(), what: error.to_string() })
    }
}

/// The samples in a file's bytes, by machine.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &[u8]) -> Result<Vec<(String, Zones)>, String> {
    let content: Content = serde_json::from_slice(text).map_err(|error| format!("not a state file ({error})"))?;
    if content.version != VERSION {
        return Err(format!("version {}, and this is {VERSION}", content.version));
    }
    Ok(content.machines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, machine: &str) -> StateFile {
        StateFile { path: dir.join(FILE), machine: machine.to_owned() }
    }

    #[test]
    fn what_was_saved_is_there_for_the_same_machine_only() {
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
        assert_eq!(here.load().unwrap(), zones, "others do not wipe what was learnt here");
        assert_eq!(here.read().unwrap().len(), OTHERS + 1);
        here.save(&BTreeMap::new()).unwrap();
        assert_eq!(here.load().unwrap(), zones, "nothing learnt does not wipe what was");
    }

    #[test]
    fn a_torn_file_is_said_and_nothing_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{", "[1]", r#"{"version":2,"machines":[]}"#] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let error = file(dir.path(), "here").load().unwrap_err().to_string();
            assert!(error.contains("--state.dir"), "{error}");
        }
    }
}
