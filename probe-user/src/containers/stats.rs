//! Memory, network traffic and block I/O of containers, from the kernel's files.
//!
//! The engine's API is not used: on hybrid hosts `docker stats` prints zeros, and each call takes
//! two seconds. The files of containers stay open, so a tick reads each of them once.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::container::Container;
use crate::cgroup::{hierarchy, tree::Trees};

/// Largest file that is read: `memory.stat` has 3 kB, `io.stat` a line for each device.
const MAX_FILE: usize = 64 << 10;
/// Ticks between two reads of `memory.stat`, which is long.
const MEMORY_STAT_TICKS: u64 = 5;
/// Ticks between two scans for engine processes.
const ENGINE_SCAN_TICKS: u64 = 10;
/// Names of the container engines' programs.
const ENGINES: [&str; 4] = ["dockerd", "containerd", "podman", "crio"];

/// A container's topmost cgroup in one tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPath {
    /// One of [`hierarchy`].
    pub hierarchy: u64,
    /// Path from the root of the tree.
    pub path: String,
}

/// Bytes in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoBytes {
    /// Received, or read.
    pub inward: u64,
    /// Sent, or written.
    pub outward: u64,
}

/// Resource usage of one container. A value that the kernel does not provide is `None`, not zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// All memory charged to the container, page cache included.
    pub memory: Option<u64>,
    /// Working set: memory without inactive page cache, as `docker stats` shows it.
    pub working: Option<u64>,
    /// Memory limit; without one, the machine's memory.
    pub limit: Option<u64>,
    /// Traffic of all interfaces except loopback; `None` with the host's network.
    pub network: Option<IoBytes>,
    /// Block I/O of all devices.
    pub block: Option<IoBytes>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct UsageRow {
    pub container: Arc<Container>,
    pub usage: Usage,
}

/// Resource usage of the processes of one container engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineRow {
    /// Name of the program.
    pub name: &'static str,
    /// CPU nanoseconds since the probe's start.
    pub cpu_ns: u64,
    /// Resident bytes.
    pub resident: u64,
}

/// The open files of one container.
#[derive(Default)]
struct OpenContainer {
    files: Option<StatFiles>,
    /// Inactive page cache at the last read of `memory.stat`.
    inactive: Option<u64>,
    ticks: u64,
}

struct StatFiles {
    memory: Option<File>,
    memory_stat: Option<File>,
    limit: Option<File>,
    block: Option<(File, bool)>,
    network: Option<File>,
    v2: bool,
}

/// Reads the resource usage of all containers and engines.
pub struct StatsCollector {
    cgroupfs: PathBuf,
    /// The trees that count CPU time; the trees of v1's other controllers are next to them.
    trees: Option<Trees>,
    procfs: PathBuf,
    machine_memory: u64,
    /// The inode of `net/dev` of process 1, which identifies the host's network.
    host_network: Option<u64>,
    open: HashMap<u32, OpenContainer>,
    engines: Vec<(u32, &'static str)>,
    /// CPU time of each engine process at the last tick.
    clocks: HashMap<u32, u64>,
    /// CPU time of each engine since the probe's start.
    ran: BTreeMap<&'static str, u64>,
    /// Maximum number of containers whose files stay open; the files of others are opened in each
    /// tick.
    max_open: usize,
    ticks: u64,
    buffer: Vec<u8>,
}

impl StatsCollector {
    /// A collector without open files.
    #[must_use]
    pub fn new(cgroupfs: &Path, procfs: &Path) -> Self {
        let meminfo = fs::read_to_string(procfs.join("meminfo")).unwrap_or_default();
        let total = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Self {
            cgroupfs: cgroupfs.to_owned(),
            trees: Trees::find(cgroupfs).ok(),
            procfs: procfs.to_owned(),
            machine_memory: total.unwrap_or(0).saturating_mul(1024),
            host_network: fs::metadata(procfs.join("1/net/dev")).ok().map(|meta| meta.ino()),
            open: HashMap::new(),
            engines: Vec::new(),
            clocks: HashMap::new(),
            ran: BTreeMap::new(),
            max_open: max_open(),
            ticks: 0,
            buffer: vec![0; MAX_FILE],
        }
    }

    /// Memory of the machine in bytes; 0 when unknown.
    #[must_use]
    pub fn machine_memory(&self) -> u64 {
        self.machine_memory
    }

    /// Reads the usage of each container.
    pub fn read<'a>(
        &mut self,
        containers: impl Iterator<Item = (&'a Arc<Container>, &'a [CgroupPath])>,
    ) -> Vec<UsageRow> {
        self.ticks += 1;
        let mut rows = Vec::new();
        for (container, paths) in containers {
            let mut open = self.open.remove(&container.number).unwrap_or_default();
            let files = match open.files.take() {
                Some(files) => Some(files),
                // A container's files appear a moment after its cgroup, so opening them is tried
                // repeatedly.
                None if open.ticks.is_multiple_of(MEMORY_STAT_TICKS) => self.open_files(paths),
                None => None,
            };
            open.ticks += 1;
            let due =
                (u64::from(container.number) + self.ticks).is_multiple_of(MEMORY_STAT_TICKS) || open.inactive.is_none();
            let usage = files.as_ref().map(|files| self.usage(files, &mut open.inactive, due)).unwrap_or_default();
            // Reads of a removed cgroup fail with ENODEV; then its files are closed, and its
            // network file too.
            let keep = rows.len() < self.max_open && (usage.memory.is_some() || usage.block.is_some());
            // A container over the limit of open files is opened again in the next tick.
            open.ticks = if keep || usage == Usage::default() { open.ticks } else { 0 };
            open.files = files.filter(|_| keep);
            self.open.insert(container.number, open);
            rows.push(UsageRow { container: container.clone(), usage });
        }
        let current: std::collections::HashSet<u32> = rows.iter().map(|row| row.container.number).collect();
        self.open.retain(|number, _| current.contains(number));
        rows
    }

    fn open_files(&self, paths: &[CgroupPath]) -> Option<StatFiles> {
        let at = |dir: &Path, path: &str| dir.join(path.trim_start_matches('/'));
        let v2 = paths.iter().find(|path| path.hierarchy == hierarchy::V2);
        let path = &paths.first()?.path;
        let v2_dir = v2.and_then(|v2| Some(at(self.trees.as_ref()?.root(hierarchy::V2)?, &v2.path)));
        let v2_dir = v2_dir.as_ref();
        let cpu_dir = self.trees.as_ref().and_then(|trees| trees.root(hierarchy::V1_CPU)).map(|root| at(root, path));
        let open = |dir: &Path, name: &str| File::open(dir.join(name)).ok();
        let v2_memory = v2_dir.and_then(|dir| open(dir, "memory.current"));
        let v1_memory = at(&self.cgroupfs.join("memory"), path);
        let is_v2 = v2_memory.is_some();
        let (memory, memory_stat, limit) = match (v2_memory, v2_dir) {
            (Some(memory), Some(dir)) => (Some(memory), open(dir, "memory.stat"), open(dir, "memory.max")),
            _ => (
                open(&v1_memory, "memory.usage_in_bytes"),
                open(&v1_memory, "memory.stat"),
                open(&v1_memory, "memory.limit_in_bytes"),
            ),
        };
        let v1_block = at(&self.cgroupfs.join("blkio"), path);
        let block = v2_dir.and_then(|dir| open(dir, "io.stat")).map(|file| (file, true)).or_else(|| {
            let names = ["blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"];
            names.iter().find_map(|name| open(&v1_block, name)).map(|file| (file, false))
        });
        let trees = [v2_dir.cloned(), cpu_dir, Some(v1_memory)];
        let network = trees.iter().flatten().find_map(|dir| member(dir, 2)).and_then(|pid| self.network_of(pid));
        Some(StatFiles { memory, memory_stat, limit, block, network, v2: is_v2 })
    }

    /// Opens the traffic counters of a process's network; `None` for the host's network.
    fn network_of(&self, pid: u32) -> Option<File> {
        let path = self.procfs.join(pid.to_string()).join("net/dev");
        let own = fs::metadata(&path).ok()?.ino();
        (Some(own) != self.host_network).then(|| File::open(path).ok())?
    }

    fn usage(&mut self, files: &StatFiles, inactive: &mut Option<u64>, due: bool) -> Usage {
        let memory = files.memory.as_ref().and_then(|file| number(self.text(file)?));
        if due && let Some(text) = files.memory_stat.as_ref().and_then(|file| self.text(file)) {
            let key = if files.v2 { "inactive_file " } else { "total_inactive_file " };
            *inactive = Some(text.lines().find_map(|line| line.strip_prefix(key)?.parse().ok()).unwrap_or(0));
        }
        let machine = self.machine_memory;
        let limit = files.limit.as_ref().and_then(|file| self.text(file)).map(|text| number(text).unwrap_or(u64::MAX));
        Usage {
            memory,
            working: memory.map(|memory| memory.saturating_sub(inactive.unwrap_or(0))),
            limit: limit
                .map(|limit| if machine == 0 { limit } else { limit.min(machine) })
                .filter(|limit| *limit < u64::MAX),
            network: files.network.as_ref().and_then(|file| self.text(file)).map(traffic),
            block: files
                .block
                .as_ref()
                .and_then(|(file, v2)| Some(if *v2 { io_stat(self.text(file)?) } else { blkio(self.text(file)?) })),
        }
    }

    fn text(&mut self, file: &File) -> Option<&str> {
        let length = read_at(file, &mut self.buffer).ok()?;
        std::str::from_utf8(&self.buffer[..length]).ok()
    }

    /// Reads the usage of the engines' processes.
    pub fn engines(&mut self) -> Vec<EngineRow> {
        if self.ticks % ENGINE_SCAN_TICKS == 1 {
            self.engines = engines(&self.procfs);
        }
        let mut rows: BTreeMap<&'static str, EngineRow> = BTreeMap::new();
        let mut clocks = HashMap::new();
        for (pid, name) in &self.engines {
            let Some(clock) = crate::host::process::process_clock_ns(*pid) else { continue };
            // A new process counts from now on. A clock that went back belongs to a new process
            // with the same pid.
            let before = self.clocks.get(pid).copied().unwrap_or(clock);
            *self.ran.entry(name).or_default() += clock.saturating_sub(before);
            clocks.insert(*pid, clock);
            let statm = fs::read_to_string(self.procfs.join(pid.to_string()).join("statm")).unwrap_or_default();
            let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
            let row = rows.entry(name).or_insert(EngineRow { name, ..EngineRow::default() });
            row.resident = row.resident.saturating_add(pages.saturating_mul(page_size()));
        }
        self.clocks = clocks;
        for (name, ran) in &self.ran {
            rows.entry(name).or_insert(EngineRow { name, ..EngineRow::default() }).cpu_ns = *ran;
        }
        rows.into_values().collect()
    }
}

/// Number of containers whose files may stay open: five descriptors each, and 512 for everything
/// else.
fn max_open() -> usize {
    cli::program::raise_open_file_limit().saturating_sub(512) / 5
}

fn page_size() -> u64 {
    u64::try_from(rustix::param::page_size()).unwrap_or(4096)
}

fn engines(procfs: &Path) -> Vec<(u32, &'static str)> {
    let Ok(entries) = fs::read_dir(procfs) else { return Vec::new() };
    let engine = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        let name = ENGINES.into_iter().find(|name| *name == comm.trim_end_matches('\n'))?;
        Some((pid, name))
    };
    entries.flatten().filter_map(engine).collect()
}

/// A process in a cgroup or below it.
fn member(dir: &Path, depth: u32) -> Option<u32> {
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let first = procs.lines().find_map(|line| line.parse::<u32>().ok().filter(|pid| *pid > 0));
    if first.is_some() || depth == 0 {
        return first;
    }
    let entries = fs::read_dir(dir).ok()?;
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .find_map(|entry| member(&entry.path(), depth - 1))
}

/// Reads the file from its beginning until the buffer is full.
fn read_at(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Parses `/proc/PID/net/dev`: two header lines; received bytes are field 1, sent bytes field 9
/// (net/core/net-procfs.c).
fn traffic(text: &str) -> IoBytes {
    let mut sum = IoBytes::default();
    for line in text.lines().skip(2) {
        let Some((name, counts)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let mut counts = counts.split_ascii_whitespace().map(|count| count.parse::<u64>().unwrap_or(0));
        sum.inward = sum.inward.wrapping_add(counts.next().unwrap_or(0));
        sum.outward = sum.outward.wrapping_add(counts.nth(7).unwrap_or(0));
    }
    sum
}

/// Parses `io.stat` of v2: `8:0 rbytes=1 wbytes=2 …` for each device.
fn io_stat(text: &str) -> IoBytes {
    let sum = |key: &str| {
        let words = text.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
        words.fold(0, u64::wrapping_add)
    };
    IoBytes { inward: sum("rbytes="), outward: sum("wbytes=") }
}

/// Parses `blkio.throttle.io_service_bytes` of v1: `8:0 Read 1` for each device, and a total.
fn blkio(text: &str) -> IoBytes {
    let sum = |key: &str| {
        let counts = text.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            (words.next()? == key).then(|| words.next()?.parse::<u64>().ok())?
        });
        counts.fold(0, u64::wrapping_add)
    };
    IoBytes { inward: sum("Read"), outward: sum("Write") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_files_are_parsed() {
        let net = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n    \
                   lo: 100 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0\n  eth0:  7000 70 0 0 0 0 0 0  900 9 0 0 0 0 0 0\n";
        assert_eq!(traffic(net), IoBytes { inward: 7000, outward: 900 });
        assert_eq!(
            io_stat("8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n"),
            IoBytes { inward: 11, outward: 22 }
        );
        assert_eq!(
            blkio("8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:0 Total 30\nTotal 30\n"),
            IoBytes { inward: 10, outward: 20 }
        );
        for invalid in ["", "\n\n:", "a b c", "8:0 Read x", "8:0 rbytes=-1"] {
            assert_eq!([traffic(invalid), io_stat(invalid), blkio(invalid)], [IoBytes::default(); 3]);
        }
    }

    /// The same container in a v2 tree and in a v1 tree.
    #[test]
    fn v1_and_v2_trees_give_the_same_usage() {
        let write = |root: &Path, files: &[(&str, &str)]| {
            for (file, text) in files {
                let path = root.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
        };
        let container = Arc::new(Container::new(0, "a".into(), "b".into(), "docker"));
        let v2: &[(&str, &str)] = &[
            ("cgroup.controllers", "memory io"),
            ("docker/x/memory.current", "5000\n"),
            ("docker/x/memory.max", "max\n"),
            ("docker/x/memory.stat", "anon 1\ninactive_file 1000\n"),
            ("docker/x/io.stat", "8:0 rbytes=10 wbytes=20\n"),
        ];
        let v1: &[(&str, &str)] = &[
            ("memory/docker/x/memory.usage_in_bytes", "5000\n"),
            ("memory/docker/x/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/docker/x/memory.stat", "inactive_file 7\ntotal_inactive_file 1000\n"),
            ("blkio/docker/x/blkio.throttle.io_service_bytes", "8:0 Read 10\n8:0 Write 20\n"),
        ];
        for (files, hierarchy) in [(v2, hierarchy::V2), (v1, hierarchy::V1_CPU)] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), files);
            write(dir.path(), &[("proc/meminfo", "MemTotal:     1024 kB\n")]);
            let mut stats = StatsCollector::new(dir.path(), &dir.path().join("proc"));
            let paths = [CgroupPath { hierarchy, path: "/docker/x".into() }];
            let rows = stats.read([(&container, &paths[..])].into_iter());
            let expected = Usage {
                memory: Some(5000),
                working: Some(4000),
                limit: Some(1 << 20),
                network: None,
                block: Some(IoBytes { inward: 10, outward: 20 }),
            };
            assert_eq!(rows[0].usage, expected);
        }
    }

    #[test]
    fn a_container_without_files_has_no_usage_instead_of_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let container = Arc::new(Container::new(0, "a".into(), "b".into(), "docker"));
        let rows = StatsCollector::new(dir.path(), dir.path()).read([(&container, &[][..])].into_iter());
        assert_eq!(rows[0].usage, Usage::default());
    }
}
