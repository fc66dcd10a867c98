//! The cgroup of the command. It exists before the command starts; after the command it is removed
//! with the child cgroups that the command left behind (systemd, `podman --cgroups=split`, nested
//! runtimes).
//!
//! The directory is locked while its `exec` runs. The next `exec` removes cgroups that are neither
//! locked nor in use: those of an `exec` that was killed, and those whose processes outlived it.

#![allow(unsafe_code)]

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cgroup::{hierarchy, tree::Trees},
    containers::path::{Workload, classify},
};

/// Start of the name of every cgroup of a command.
const PREFIX: &str = "wattcast-exec-";
/// Names to try. A name is taken if processes outlived an earlier `exec` with the same process id.
const MAX_NAMES: u32 = 16;
/// Maximum number of child cgroups that are looked at.
const MAX_CGROUPS: usize = 4096;
/// Processes that die with the command need a moment to leave their cgroup.
const REMOVE_ATTEMPTS: u32 = 5;
const REMOVE_PAUSE: Duration = Duration::from_millis(20);
/// Maximum number of processes that a note names.
const MAX_NAMED: usize = 5;

/// Name and directory of the cgroup.
#[derive(Clone, Debug)]
pub(super) struct Location {
    /// Path from the root of the tree, without the leading slash; the label `container`.
    pub(super) name: String,
    dir: PathBuf,
}

impl Location {
    /// CPU time in nanoseconds that the kernel counts for the cgroup and all cgroups below it,
    /// removed ones included: `usage_usec` of v2 (Documentation/admin-guide/cgroup-v2.rst),
    /// `cpuacct.usage` of v1. `None` if neither can be read.
    pub(super) fn cpu_ns(&self) -> Option<u64> {
        let text = |file: &str| fs::read_to_string(self.dir.join(file)).ok();
        text("cpu.stat")
            .and_then(|text| usage_of_cpu_stat(&text))
            .or_else(|| text("cpuacct.usage").and_then(|text| text.trim().parse().ok()))
    }

    /// Adds the short ids of the containers below the cgroup. Their rows are named by id and not by
    /// path.
    pub(super) fn add_containers(&self, ids: &mut BTreeSet<String>) {
        for dir in subtree(&self.dir).iter().skip(1) {
            let Ok(below) = dir.strip_prefix(&self.dir) else { continue };
            if let Workload::Container { id, .. } = classify(&format!("/{}/{}", self.name, below.display())) {
                ids.insert(id.chars().take(12).collect());
            }
        }
    }
}

/// `usage_usec` of a `cpu.stat` file, in nanoseconds.
fn usage_of_cpu_stat(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    value.trim().parse::<u64>().ok()?.checked_mul(1000)
}

/// What is left of the command.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Leftover {
    /// Processes in the cgroup and below it.
    processes: Vec<u32>,
    /// The cgroup, if it could not be removed.
    dir: Option<PathBuf>,
}

impl Leftover {
    /// The note for the report; `None` if nothing is left. `procfs` gives the names of processes.
    pub(super) fn note(&self, procfs: &Path) -> Option<String> {
        let dir = self.dir.as_ref()?.display();
        if self.processes.is_empty() {
            return Some(format!("its cgroup {dir} cannot be removed; the next exec removes it if it is empty"));
        }
        let mut names: Vec<String> = self.processes.iter().take(MAX_NAMED).map(|pid| named(procfs, *pid)).collect();
        if self.processes.len() > MAX_NAMED {
            names.push("…".to_owned());
        }
        let (count, names) = (self.processes.len(), names.join(", "));
        let (noun, verb, their) = if count == 1 { ("process", "runs", "its") } else { ("processes", "run", "their") };
        Some(format!(
            "{count} {noun} of the command still {verb} ({names}); {their} further use is not included, and {dir} stays until the next exec"
        ))
    }
}

/// Name and id of a process, or only the id if it has ended.
fn named(procfs: &Path, pid: u32) -> String {
    let name = fs::read_to_string(procfs.join(pid.to_string()).join("comm")).unwrap_or_default();
    // A process chooses its own name, and the report goes to a terminal.
    let name: String = name.trim().chars().filter(|c| !c.is_control()).collect();
    if name.is_empty() { pid.to_string() } else { format!("{name} {pid}") }
}

/// The cgroup of a command. It is removed on drop unless processes are left in it.
pub(super) struct CommandCgroup {
    location: Location,
    is_removed: bool,
    /// Locked while this `exec` runs.
    _lock: File,
}

impl CommandCgroup {
    /// Creates the cgroup in the tree that counts CPU time. Each `number` of one `exec` gives
    /// another name: the rows of a removed cgroup are kept for a while, and those of one command
    /// must not count for the next.
    ///
    /// # Errors
    /// Without a cgroup tree, or without the permission to create a cgroup in it.
    pub(super) fn create(cgroupfs: &Path, number: u32) -> Result<Self> {
        let trees = Trees::find(cgroupfs).context("cannot create a cgroup for the command")?;
        // CPU time is counted by v2 leaf; v1 is used only without v2.
        let root = trees.root(hierarchy::V2).or_else(|| trees.root(hierarchy::V1_CPU)).context("no cgroup tree")?;
        remove_abandoned(root);
        Self::create_below(root, number)
    }

    fn create_below(root: &Path, number: u32) -> Result<Self> {
        let mut first = format!("{PREFIX}{}", std::process::id());
        if number > 0 {
            first = format!("{first}-run{number}");
        }
        for attempt in 0..MAX_NAMES {
            let name = if attempt > 0 { format!("{first}-{attempt}") } else { first.clone() };
            let dir = root.join(&name);
            match fs::create_dir(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!(
                            "cannot create the cgroup {}; run as root, in a container with the host's cgroup tree mounted read-write",
                            dir.display()
                        )
                    });
                }
            }
            // Another exec may have locked and removed the new directory before it was locked here.
            let Ok(lock) = File::open(&dir) else { continue };
            if matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) || !dir.exists() {
                continue;
            }
            return Ok(Self { location: Location { name, dir }, is_removed: false, _lock: lock });
        }
        bail!("processes of earlier commands are left in {MAX_NAMES} cgroups {first}; end them")
    }

    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    /// Lets a command start in the cgroup.
    ///
    /// # Errors
    /// When the cgroup does not accept processes.
    pub(super) fn enter(&self, command: &mut Command) -> Result<()> {
        let procs = OpenOptions::new().write(true).open(self.location.dir.join("cgroup.procs"))?;
        // SAFETY: write is async-signal-safe; the descriptor was opened before the fork.
        unsafe {
            command.pre_exec(move || (&procs).write_all(b"0"));
        }
        Ok(())
    }

    /// Removes the cgroup and the cgroups below it. If processes are left, everything stays: their
    /// runtime may still use the empty cgroups next to them.
    pub(super) fn remove(mut self) -> Leftover {
        self.remove_now()
    }

    fn remove_now(&mut self) -> Leftover {
        self.is_removed = true;
        let dir = &self.location.dir;
        for attempt in 0..REMOVE_ATTEMPTS {
            if attempt > 0 {
                thread::sleep(REMOVE_PAUSE);
            }
            if processes(dir).is_empty() && remove_tree(dir).is_ok() {
                return Leftover::default();
            }
        }
        Leftover { processes: processes(dir), dir: Some(dir.clone()) }
    }
}

impl Drop for CommandCgroup {
    fn drop(&mut self) {
        if !self.is_removed {
            self.remove_now();
        }
    }
}

/// Removes the cgroups of commands whose `exec` and processes have ended.
fn remove_abandoned(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let dir = entry.path();
        if let Ok(lock) = File::open(&dir)
            && lock.try_lock().is_ok()
            && processes(&dir).is_empty()
        {
            // One that cannot be removed is in use after all.
            let _ = remove_tree(&dir);
        }
    }
}

/// A cgroup and all cgroups below it, parents first.
fn subtree(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    let mut next = 0;
    while next < all.len() && all.len() < MAX_CGROUPS {
        let entries = fs::read_dir(&all[next]).into_iter().flatten().flatten();
        let children: Vec<PathBuf> = entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        all.extend(children);
        next += 1;
    }
    all
}

/// The processes in a cgroup and below it.
fn processes(dir: &Path) -> Vec<u32> {
    let mut all = BTreeSet::new();
    for dir in subtree(dir) {
        // A threaded cgroup has no list; its processes are in the list of its domain.
        let list = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        all.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
    all.into_iter().collect()
}

/// Removes a cgroup and all cgroups below it, the deepest first.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let mut outcome = Ok(());
    for dir in subtree(dir).iter().rev() {
        outcome = match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        };
    }
    // The last one is `dir` itself.
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(root: &Path) -> CommandCgroup {
        CommandCgroup::create_below(root, 0).unwrap()
    }

    /// With one name for all, the run-queue wait of a repeat contained that of those before it.
    #[test]
    fn each_run_of_an_exec_has_a_cgroup_of_its_own_name() {
        let root = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..3)
            .map(|number| {
                let cgroup = CommandCgroup::create_below(root.path(), number).unwrap();
                let name = cgroup.location().name.clone();
                assert_eq!(cgroup.remove(), Leftover::default());
                name
            })
            .collect();
        let unique: BTreeSet<&String> = names.iter().collect();
        assert_eq!(unique.len(), 3, "{names:?}");
    }

    #[test]
    fn child_cgroups_of_the_command_are_removed_with_it() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = cgroup(root.path());
        let dir = cgroup.location().dir.clone();
        fs::create_dir_all(dir.join("inner/deeper")).unwrap();
        fs::create_dir_all(dir.join("other")).unwrap();
        fs::create_dir_all(root.path().join("not-ours")).unwrap();
        assert_eq!(cgroup.remove(), Leftover::default());
        assert!(!dir.exists() && root.path().join("not-ours").exists());
    }

    #[test]
    fn processes_of_child_cgroups_are_named_and_keep_them() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = cgroup(root.path());
        let dir = cgroup.location().dir.clone();
        fs::create_dir_all(dir.join("inner")).unwrap();
        fs::create_dir_all(dir.join("empty")).unwrap();
        fs::write(dir.join("inner/cgroup.procs"), "41\n42\n").unwrap();
        let procfs = root.path().join("proc");
        fs::create_dir_all(procfs.join("42")).unwrap();
        fs::write(procfs.join("42/comm"), "bu\u{7}rn\n").unwrap();
        let left = cgroup.remove();
        assert_eq!(
            left.note(&procfs).unwrap(),
            format!(
                "2 processes of the command still run (41, burn 42); their further use is not included, and {} stays until the next exec",
                dir.display()
            )
        );
        assert!(dir.join("empty").exists(), "a runtime that still runs may use it");
        // As after the end of the processes; a file of a real cgroup needs no removal.
        fs::remove_file(dir.join("inner/cgroup.procs")).unwrap();
        remove_abandoned(root.path());
        assert!(!dir.exists(), "the next exec removes it");
    }

    #[test]
    fn a_cgroup_in_use_is_not_removed_by_another_exec() {
        let root = tempfile::tempdir().unwrap();
        let first = cgroup(root.path());
        remove_abandoned(root.path());
        assert!(first.location().dir.exists(), "it is locked");
        let second = cgroup(root.path());
        assert_ne!(first.location().name, second.location().name, "the same process id twice");
        drop((first, second));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn cpu_time_is_read_from_both_versions() {
        let root = tempfile::tempdir().unwrap();
        let location = Location { name: "a".to_owned(), dir: root.path().to_owned() };
        assert_eq!(location.cpu_ns(), None, "unknown is not zero");
        fs::write(root.path().join("cpuacct.usage"), "1234\n").unwrap();
        assert_eq!(location.cpu_ns(), Some(1234));
        fs::write(root.path().join("cpu.stat"), "usage_usec 2000005\nuser_usec 1\n").unwrap();
        assert_eq!(location.cpu_ns(), Some(2_000_005_000));
        assert_eq!(usage_of_cpu_stat("usage_usec x\n"), None);
        assert_eq!(usage_of_cpu_stat("nr_periods 0\n"), None);
    }

    #[test]
    fn containers_below_the_command_are_known_by_id() {
        let root = tempfile::tempdir().unwrap();
        let location = Location { name: "wattcast-exec-1".to_owned(), dir: root.path().to_owned() };
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        fs::create_dir_all(root.path().join(format!("libpod-{id}/container"))).unwrap();
        let mut ids = BTreeSet::new();
        location.add_containers(&mut ids);
        assert_eq!(ids.into_iter().collect::<Vec<_>>(), ["0123456789ab"]);
    }
}
