//! The cgroup of a running process, followed through its moves.
//!
//! The kernel reports no move to the probe, so the text of `/proc/PID/cgroup` is compared at every
//! tick, which is one small read. The cgroup is looked up only when the text has changed.

use std::{fs::File, io::Read as _, path::Path};

use crate::{cgroup::CgroupKey, containers::ContainerRegistry, host::process::stat_number};

/// Longest text that is compared: one path of 4096 bytes for each hierarchy.
const MAX_TEXT: u64 = 64 << 10;

/// Where a process is.
#[derive(Debug)]
pub(super) struct Placement {
    /// The cgroup that the process is in, as last observed.
    pub(super) cgroup: CgroupKey,
    /// The text of its `/proc/PID/cgroup`; empty until it was read.
    text: Vec<u8>,
}

impl Placement {
    /// The placement of a process by its directory in procfs. `reported` is its cgroup at its exec,
    /// which it may have left since.
    pub(super) fn start(process: &Path, reported: CgroupKey, registry: &ContainerRegistry) -> Self {
        let mut this = Self { cgroup: reported, text: Vec::new() };
        // A process that is gone was last seen where it was reported.
        this.follow(process, registry);
        this
    }

    /// The new cgroup of the process if it moved since the last call. A text that cannot be read,
    /// or whose cgroup cannot be found, leaves the process where it was; the next call tries again.
    pub(super) fn follow(&mut self, process: &Path, registry: &ContainerRegistry) -> Option<CgroupKey> {
        // The text comes first: a move after it is found by the next call.
        let text = read(&process.join("cgroup")).filter(|text| *text != self.text)?;
        if is_exiting(process) {
            return None;
        }
        let cgroup = registry.cgroup_of(process)?;
        self.text = text;
        (std::mem::replace(&mut self.cgroup, cgroup) != cgroup).then_some(cgroup)
    }
}

fn read(file: &Path) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    File::open(file).ok()?.take(MAX_TEXT).read_to_end(&mut text).ok()?;
    (!text.is_empty()).then_some(text)
}

/// True for a process that exits or is gone. The kernel shows the root for it in v1 hierarchies,
/// which is no move (`proc_cgroup_show`, kernel/cgroup/cgroup.c).
fn is_exiting(process: &Path) -> bool {
    // include/linux/sched.h
    const PF_EXITING: u64 = 4;
    read(&process.join("stat")).and_then(|stat| flags_of(&stat)).is_none_or(|flags| flags & PF_EXITING != 0)
}

/// The flags of a process in the text of its `/proc/PID/stat`.
pub(crate) fn flags_of(stat: &[u8]) -> Option<u64> {
    stat_number(stat, 9)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

    use super::*;
    use crate::{
        cgroup::{hierarchy, tree::Trees},
        containers::{RegistryLimits, runtime_files::RuntimeFiles},
    };

    struct Host {
        dir: tempfile::TempDir,
        registry: ContainerRegistry,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for path in ["encode", "other", "process"] {
                fs::create_dir(dir.path().join(path)).unwrap();
            }
            fs::write(dir.path().join("cgroup.controllers"), "").unwrap();
            let limits = RegistryLimits {
                containers: 10,
                retain: Duration::from_secs(300),
                reservations: false,
                labels: Vec::new(),
            };
            let files = RuntimeFiles::new(dir.path());
            let trees = Trees::find(dir.path()).unwrap();
            Self { registry: ContainerRegistry::new(trees, None, files, limits), dir }
        }

        fn process(&self) -> PathBuf {
            self.dir.path().join("process")
        }

        /// The process is in `path`, with these flags.
        fn put(&self, path: &str, flags: u64) {
            fs::write(self.process().join("cgroup"), format!("0::{path}\n")).unwrap();
            fs::write(self.process().join("stat"), format!("7 (a) b) R 1 7 7 0 -1 {flags} 0 0\n")).unwrap();
        }

        /// The cgroup at `path`; the root for an empty path.
        fn key(&self, path: &str) -> CgroupKey {
            CgroupKey { id: fs::metadata(self.dir.path().join(path)).unwrap().ino(), hierarchy: hierarchy::V2 }
        }
    }

    #[test]
    fn a_job_that_moved_since_its_exec_starts_where_it_is() {
        let host = Host::new();
        host.put("/encode", 0);
        assert_eq!(Placement::start(&host.process(), host.key(""), &host.registry).cgroup, host.key("encode"));
        let gone = host.dir.path().join("gone");
        assert_eq!(Placement::start(&gone, host.key("other"), &host.registry).cgroup, host.key("other"));
    }

    #[test]
    fn hostile_process_names_do_not_move_the_flags() {
        for name in ["a", "", ") R 1 7 7 0 -1 4 (", "\n", "a b c d e f g h i"] {
            let stat = format!("7 ({name}) R 1 7 7 0 -1 4194304 0 0\n");
            assert_eq!(flags_of(stat.as_bytes()), Some(4_194_304), "{name}");
        }
        for stat in ["", "7 (a R 1", "7 (a) R 1 7 7 0 -1", "7 (a) R 1 7 7 0 -1 x", "7 (a) R 1 7 7 0 -1 -4"] {
            assert_eq!(flags_of(stat.as_bytes()), None, "{stat}");
        }
        assert_eq!(flags_of(b"7 (\xff\xfe) R 1 7 7 0 -1 4 0\n"), Some(4));
    }

    #[test]
    fn a_moved_process_is_followed_and_an_exiting_one_stays() {
        let host = Host::new();
        host.put("/", 0);
        let mut placement = Placement::start(&host.process(), host.key(""), &host.registry);
        let mut follow = || placement.follow(&host.process(), &host.registry);
        assert_eq!(follow(), None, "unchanged");
        host.put("/encode", 0);
        assert_eq!(follow(), Some(host.key("encode")));
        assert_eq!(follow(), None, "reported once");
        host.put("/", 4);
        assert_eq!(follow(), None, "exiting");
        host.put("/not-there", 0);
        assert_eq!(follow(), None, "no such cgroup");
        host.put("/other", 0);
        assert_eq!(follow(), Some(host.key("other")));
    }
}
