//! Memory, CPU limits and block I/O of cgroups through the eBPF iterator, compared with the
//! kernel's files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use probe_user::{
    cgroup::hierarchy,
    containers::{
        Container,
        stats::{CgroupPath, IoBytes, StatsCollector, Usage},
    },
    cpu::UsageIterator,
};
use testkit::{cgroup::Cgroup, fixture::unique, or_skip, requires, wait::eventually_ok};

const CGROUPFS: &str = "/sys/fs/cgroup";
/// Pages that each CPU may charge or count ahead (MEMCG_CHARGE_BATCH, mm/memcontrol.c).
const BATCH_BYTES: u64 = 64 * 4096;

/// Two cgroups with limits in every tree, below one top cgroup.
struct Pair {
    name: String,
    /// The cgroups inside of others come first, in the order of removal.
    cgroups: Vec<Cgroup>,
}

impl Pair {
    fn create() -> Self {
        let name = unique("usage");
        let mut cgroups = Vec::new();
        for tree in ["", "unified", "memory", "blkio", "cpu", "cpu,cpuacct"] {
            let root = Path::new(CGROUPFS).join(tree);
            if !root.join("cgroup.procs").exists() || root.is_symlink() {
                continue;
            }
            let top = Cgroup::create(&root, &name).unwrap();
            let controllers = fs::read_to_string(top.dir.join("cgroup.controllers")).unwrap_or_default();
            for controller in controllers.split_whitespace() {
                let _ = fs::write(top.dir.join("cgroup.subtree_control"), format!("+{controller}"));
            }
            for inner in ["busy", "empty"] {
                let cgroup = Cgroup::create(&top.dir, inner).unwrap();
                let files = [
                    ("memory.max", "67108864"),
                    ("memory.limit_in_bytes", "67108864"),
                    ("cpu.max", "150000 100000"),
                    ("cpu.cfs_quota_us", "150000"),
                ];
                for (file, text) in files.iter().filter(|(file, _)| cgroup.dir.join(file).exists()) {
                    fs::write(cgroup.dir.join(file), text).unwrap();
                }
                cgroups.insert(0, cgroup);
            }
            cgroups.push(top);
        }
        Self { name, cgroups }
    }

    /// Runs a script in the cgroup `busy` of each tree.
    fn run(&self, script: &str) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        for cgroup in self.cgroups.iter().filter(|cgroup| cgroup.dir.ends_with("busy")) {
            cgroup.enter(&mut command).unwrap();
        }
        assert!(command.status().unwrap().success());
    }

    fn containers(&self) -> Vec<(Arc<Container>, [CgroupPath; 1])> {
        let v2 = testkit::cgroup::v2().is_some();
        let hierarchy = if v2 { hierarchy::V2 } else { hierarchy::V1_CPU };
        let container = |number: u32, inner: &str| {
            let container = Container::new(number, inner.to_owned(), format!("{number:012}"), "docker");
            (Arc::new(container), [CgroupPath { hierarchy, path: format!("/{}/{inner}", self.name) }])
        };
        vec![container(0, "busy"), container(1, "empty")]
    }
}

fn read(stats: &mut StatsCollector, containers: &[(Arc<Container>, [CgroupPath; 1])]) -> Vec<Usage> {
    let rows = stats.read(containers.iter().map(|(container, paths)| (container, &paths[..])));
    rows.iter().map(|row| row.usage.clone()).collect()
}

/// Whether temporary files are on a disk: a file system in memory has no inactive page cache, and
/// no block I/O.
fn on_disk() -> bool {
    // TMPFS_MAGIC and RAMFS_MAGIC, include/uapi/linux/magic.h.
    let kind = rustix::fs::statfs(std::env::temp_dir()).unwrap().f_type;
    ![0x0102_1994, 0x8584_58f6].contains(&kind)
}

/// Why two readings of one container differ by more than the kernel may change in between.
fn difference(iterator: &Usage, files: &Usage, slack: u64) -> Result<(), String> {
    let close = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (Some(a), Some(b)) => a.abs_diff(b) <= slack,
        (a, b) => a == b,
    };
    let same = close(iterator.memory, files.memory)
        && close(iterator.working, files.working)
        && iterator.limit == files.limit
        // In v1 only the iterator knows whether bytes were counted.
        && (iterator.block == files.block || iterator.block.is_none());
    if same { Ok(()) } else { Err(format!("iterator {iterator:?}, files {files:?}")) }
}

#[test]
fn iterator_and_files_give_the_same_usage() {
    requires!(root);
    let mut files = StatsCollector::new(CGROUPFS.as_ref(), "/proc".as_ref());
    let mut iterator = StatsCollector::new(CGROUPFS.as_ref(), "/proc".as_ref());
    iterator.use_iterator(or_skip!(UsageIterator::load(CGROUPFS.as_ref())));
    let pair = Pair::create();
    let containers = pair.containers();
    let before = read(&mut iterator, &containers);
    assert_eq!(before[1].memory, Some(0), "{before:?}");
    assert_eq!(before[1].limit, Some(64 << 20), "{before:?}");
    assert_eq!(before[1].cpu_limit, Some(1500), "{before:?}");

    // Page cache, most of it inactive, and where the directory is on a disk, block I/O.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pages").display().to_string();
    pair.run(&format!("dd if=/dev/zero of={file} bs=65536 count=300 conv=fsync 2> /dev/null"));
    // In v1, pages that are written back later count for the root.
    pair.run(&format!("dd if={file} of={file}.copy bs=65536 oflag=direct 2> /dev/null || true"));
    let cpus = u64::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
    eventually_ok(30.0, "the iterator and the files agree", || {
        let (ours, theirs) = (read(&mut iterator, &containers), read(&mut files, &containers));
        // The files of the page cache are read in every fifth tick.
        (0..10).for_each(|_| drop(read(&mut files, &containers)));
        let theirs_later = read(&mut files, &containers);
        difference(&ours[0], &theirs_later[0], 2 * cpus * BATCH_BYTES)?;
        difference(&ours[1], &theirs[1], 0)
    });
    let usage = read(&mut iterator, &containers)[0].clone();
    println!("{usage:?}");
    // After some ticks the iterator provides everything, except the bytes of devices in v1.
    (0..5).for_each(|_| drop(read(&mut iterator, &containers)));
    let v1_devices = Path::new(CGROUPFS).join("blkio/tasks").exists() && on_disk();
    assert_eq!(iterator.open_files(), usize::from(v1_devices), "{usage:?}");
    let (memory, working) = (usage.memory.unwrap(), usage.working.unwrap());
    assert!(memory > 16 << 20 && memory <= 64 << 20, "{usage:?}");
    let on_disk = on_disk();
    assert_eq!(working < memory / 2, on_disk, "{usage:?}");
    let lines = |cgroup: &Cgroup| {
        let files = ["io.stat", "blkio.throttle.io_service_bytes_recursive"];
        files.iter().any(|file| fs::read_to_string(cgroup.dir.join(file)).unwrap_or_default().contains(':'))
    };
    let is_counted = pair.cgroups.iter().any(|cgroup| cgroup.dir.ends_with("busy") && lines(cgroup));
    assert_eq!(usage.block.is_some(), is_counted || !on_disk, "{usage:?}");
    assert!(!on_disk || usage.block.is_none_or(|bytes| bytes.outward >= 300 << 16), "{usage:?}");
    assert_eq!(read(&mut iterator, &containers)[1].block, Some(IoBytes::default()));
}

#[test]
fn changed_limits_are_found_within_ten_ticks() {
    requires!(root);
    let mut iterator = StatsCollector::new(CGROUPFS.as_ref(), "/proc".as_ref());
    iterator.use_iterator(or_skip!(UsageIterator::load(CGROUPFS.as_ref())));
    let pair = Pair::create();
    let containers = pair.containers();
    assert_eq!(read(&mut iterator, &containers)[1].cpu_limit, Some(1500));
    for cgroup in pair.cgroups.iter().filter(|cgroup| cgroup.dir.ends_with("empty")) {
        for (name, text) in [("cpu.max", "max 100000"), ("cpu.cfs_quota_us", "-1"), ("memory.max", "33554432")] {
            if cgroup.dir.join(name).exists() {
                fs::write(cgroup.dir.join(name), text).unwrap();
            }
        }
        if cgroup.dir.join("memory.limit_in_bytes").exists() {
            fs::write(cgroup.dir.join("memory.limit_in_bytes"), "33554432").unwrap();
        }
    }
    let last = (0..10).map(|_| read(&mut iterator, &containers)).last().unwrap();
    assert_eq!((last[1].cpu_limit, last[1].limit), (Some(0), Some(32 << 20)), "{last:?}");
}

/// A container that is started again has new cgroups at the same paths.
#[test]
fn a_restarted_container_is_found_again() {
    requires!(root);
    let mut iterator = StatsCollector::new(CGROUPFS.as_ref(), "/proc".as_ref());
    iterator.use_iterator(or_skip!(UsageIterator::load(CGROUPFS.as_ref())));
    let pair = Pair::create();
    let containers = pair.containers();
    assert_eq!(read(&mut iterator, &containers)[1].cpu_limit, Some(1500));
    let dirs: Vec<PathBuf> = pair.cgroups.iter().map(|cgroup| cgroup.dir.clone()).collect();
    let empty = dirs.iter().filter(|dir| dir.ends_with("empty"));
    empty.clone().for_each(|dir| fs::remove_dir(dir).unwrap());
    assert_eq!(read(&mut iterator, &containers)[1], Usage::default());
    empty.for_each(|dir| fs::create_dir(dir).unwrap());
    let last = (0..10).map(|_| read(&mut iterator, &containers)).last().unwrap();
    assert_eq!((last[1].memory, last[1].cpu_limit), (Some(0), Some(0)), "{last:?}");
}
