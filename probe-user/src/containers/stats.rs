//! What containers use besides CPU time and joules: memory, network, block I/O, from the kernel's own files.
//!
//! Nothing asks the engine: on hybrid hosts `docker stats` prints zeros, and each call of it takes two seconds. Files of containers stay open, so
//! that a tick is a read of each and nothing more.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Container, tree::Trees};
use crate::cpu::hierarchy;

/// Largest file that is read: `memory.stat` has 3 kB, `io.stat` a line for each device.
const MAX_FILE: usize = 64 << 10;
/// `memory.stat`, which is long, is read once in so many ticks.
const STAT_EVERY: u64 = 5;
/// How often processes of engines are looked for.
const ENGINES_EVERY: u64 = 10;
/// The programs that are engines.
const ENGINES: [&str; 4] = ["dockerd", "containerd", "podman", "crio"];

/// Where a container's files are: the tree, and the path of its topmost cgroup in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// One of [`hierarchy`].
    pub hierarchy: u64,
    /// From the root of the tree on.
    pub path: String,
}

/// Bytes in and out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Received, or read.
    pub inward: u64,
    /// Sent, or written.
    pub outward: u64,
}

/// What one container uses. A figure that the kernel does not keep for it is absent, which is not zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// All memory that is charged to it, page cache included.
    pub memory: Option<u64>,
    /// The same without the cache that nobody used lately, as `docker stats` shows it.
    pub working: Option<u64>,
    /// What it may use: its limit, or where it has none what the machine has.
    pub limit: Option<u64>,
    /// Of all interfaces but loopback, since its network was made; absent where its network is the host's.
    pub network: Option<Bytes>,
    /// Of all devices.
    pub block: Option<Bytes>,
}

/// One container's row.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageRow {
    /// Who.
    pub container: Arc<Container>,
    /// What.
    pub usage: Usage,
}

/// One engine's processes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineRow {
    /// Its program.
    pub name: &'static str,
    /// CPU nanoseconds of its processes since the start.
    pub cpu_ns: u64,
    /// Resident bytes.
    pub resident: u64,
}

/// What is open of one container.
#[derive(Default)]
struct Open {
    files: Option<Files>,
    /// Inactive file cache at the last reading of it.
    inactive: Option<u64>,
    seen: u64,
}

struct Files {
    memory: Option<File>,
    memory_stat: Option<File>,
    limit: Option<File>,
    block: Option<(File, bool)>,
    network: Option<File>,
    v2: bool,
}

/// Reads all of them.
pub struct Stats {
    cgroupfs: PathBuf,
    /// The trees that count CPU time; those of v1's other controllers stand beside them.
    trees: Option<Trees>,
    procfs: PathBuf,
    /// Of the machine.
    memory: u64,
    /// The inode of our own network's `net/dev`, by which the host's is known.
    host_network: Option<u64>,
    open: HashMap<u32, Open>,
    engines: Vec<(u32, &'static str)>,
    /// CPU time of each of their processes at the last look, and what all of them ever ran since the start.
    clocks: HashMap<u32, u64>,
    ran: BTreeMap<&'static str, u64>,
    /// Containers whose files may stay open; of others they are opened for each tick.
    most_open: usize,
    ticks: u64,
    buffer: Vec<u8>,
}

impl Stats {
    /// Has opened nothing yet.
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
            memory: total.unwrap_or(0).saturating_mul(1024),
            host_network: fs::metadata(procfs.join("1/net/dev")).ok().map(|meta| meta.ino()),
            open: HashMap::new(),
            engines: Vec::new(),
            clocks: HashMap::new(),
            ran: BTreeMap::new(),
            most_open: most_open(),
            ticks: 0,
            buffer: vec![0; MAX_FILE],
        }
    }

    /// Memory of the machine, in bytes; 0 where nobody says.
    #[must_use]
    pub fn machine_memory(&self) -> u64 {
        self.memory
    }

    /// What each container uses now.
    pub fn read<'a>(&mut self, containers: impl Iterator<Item = (&'a Arc<Container>, &'a [Home])>) -> Vec<UsageRow> {
        self.ticks += 1;
        let mut rows = Vec::new();
        for (container, homes) in containers {
            let mut open = self.open.remove(&container.number).unwrap_or_default();
            let files = match open.files.take() {
                Some(files) => Some(files),
                // A container without a file that can be opened is looked at again now and then: its files come with it, a moment later.
                None if open.seen.is_multiple_of(STAT_EVERY) => self.find(homes),
                None => None,
            };
            open.seen += 1;
            let due = (u64::from(container.number) + self.ticks).is_multiple_of(STAT_EVERY) || open.inactive.is_none();
            let usage = files.as_ref().map(|files| self.usage(files, &mut open.inactive, due)).unwrap_or_default();
            // A cgroup that has gone gives ENODEV; its files are closed, and with them its network.
            let keep = rows.len() < self.most_open && (usage.memory.is_some() || usage.block.is_some());
            // Without its files kept it is looked for again at once, and not only now and then.
            open.seen = if keep || usage == Usage::default() { open.seen } else { 0 };
            open.files = files.filter(|_| keep);
            self.open.insert(container.number, Open { seen: open.seen, ..open });
            rows.push(UsageRow { container: container.clone(), usage });
        }
        let kept: std::collections::HashSet<u32> = rows.iter().map(|row| row.container.number).collect();
        self.open.retain(|number, _| kept.contains(number));
        rows
    }

    fn find(&self, homes: &[Home]) -> Option<Files> {
        let at = |dir: &Path, path: &str| dir.join(path.trim_start_matches('/'));
        let v2 = homes.iter().find(|home| home.hierarchy == hierarchy::V2);
        let path = &homes.first()?.path;
        let v2_dir = v2.and_then(|home| Some(at(self.trees.as_ref()?.root(hierarchy::V2)?, &home.path)));
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
        Some(Files { memory, memory_stat, limit, block, network, v2: is_v2 })
    }

    /// The traffic of a process's network; none where that is the host's.
    fn network_of(&self, pid: u32) -> Option<File> {
        let path = self.procfs.join(pid.to_string()).join("net/dev");
        let own = fs::metadata(&path).ok()?.ino();
        (Some(own) != self.host_network).then(|| File::open(path).ok())?
    }

    fn usage(&mut self, files: &Files, inactive: &mut Option<u64>, due: bool) -> Usage {
        let memory = files.memory.as_ref().and_then(|file| number(self.text(file)?));
        if due && let Some(text) = files.memory_stat.as_ref().and_then(|file| self.text(file)) {
            let key = if files.v2 { "inactive_file " } else { "total_inactive_file " };
            *inactive = Some(text.lines().find_map(|line| line.strip_prefix(key)?.parse().ok()).unwrap_or(0));
        }
        let machine = self.memory;
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

    /// What the engines' own processes use.
    pub fn engines(&mut self) -> Vec<EngineRow> {
        if self.ticks % ENGINES_EVERY == 1 {
            self.engines = engines(&self.procfs);
        }
        let mut rows: BTreeMap<&'static str, EngineRow> = BTreeMap::new();
        let mut clocks = HashMap::new();
        for (pid, name) in &self.engines {
            let Some(clock) = crate::jobs::process_clock_ns(*pid) else { continue };
            // A process that is met counts from then on; one whose clock went back is another.
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

/// How many containers' files fit beside all else that has descriptors, five for each.
fn most_open() -> usize {
    exporter::program::raise_open_files().saturating_sub(512) / 5
}

fn page_size() -> u64 {
    // SAFETY: sysconf takes a number and touches nothing.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
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

/// The file from its beginning, as far as the buffer reaches.
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

/// `/proc/PID/net/dev`: after two lines of heads, bytes received stand first and bytes sent ninth (net/core/net-procfs.c).
fn traffic(text: &str) -> Bytes {
    let mut sum = Bytes::default();
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

/// `io.stat` of v2: `8:0 rbytes=1 wbytes=2 …` for each device.
fn io_stat(text: &str) -> Bytes {
    let sum = |key: &str| {
        let words = text.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
        words.fold(0, u64::wrapping_add)
    };
    Bytes { inward: sum("rbytes="), outward: sum("wbytes=") }
}

/// `blkio.throttle.io_service_bytes` of v1: `8:0 Read 1` for each device, and a total.
fn blkio(text: &str) -> Bytes {
    let sum = |key: &str| {
        let counts = text.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            (words.next()? == key).then(|| words.next()?.parse::<u64>().ok())?
        });
        counts.fold(0, u64::wrapping_add)
    };
    Bytes { inward: sum("Read"), outward: sum("Write") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read_as_they_are() {
        let net = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n    \
                   lo: 100 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0\n  eth0:  7000 70 0 0 0 0 0 0  900 9 0 0 0 0 0 0\n";
        assert_eq!(traffic(net), Bytes { inward: 7000, outward: 900 });
        assert_eq!(
            io_stat("8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n"),
            Bytes { inward: 11, outward: 22 }
        );
        assert_eq!(
            blkio("8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:0 Total 30\nTotal 30\n"),
            Bytes { inward: 10, outward: 20 }
        );
        for rubbish in ["", "\n\n:", "a b c", "8:0 Read x", "8:0 rbytes=-1"] {
            assert_eq!([traffic(rubbish), io_stat(rubbish), blkio(rubbish)], [Bytes::default(); 3]);
        }
    }

    /// A tree of v2 files and one of v1 files, with the same container in each.
    #[test]
    fn both_trees_give_the_same_figures() {
        let write = |root: &Path, files: &[(&str, &str)]| {
            for (file, text) in files {
                let path = root.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
        };
        let container = Arc::new(Container::plain(0, "a".into(), "b".into(), "docker"));
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
            let mut stats = Stats::new(dir.path(), &dir.path().join("proc"));
            let homes = [Home { hierarchy, path: "/docker/x".into() }];
            let rows = stats.read([(&container, &homes[..])].into_iter());
            let expected = Usage {
                memory: Some(5000),
                working: Some(4000),
                limit: Some(1 << 20),
                network: None,
                block: Some(Bytes { inward: 10, outward: 20 }),
            };
            assert_eq!(rows[0].usage, expected);
        }
    }

    #[test]
    fn a_container_without_files_has_no_figures_and_no_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let container = Arc::new(Container::plain(0, "a".into(), "b".into(), "docker"));
        let rows = Stats::new(dir.path(), dir.path()).read([(&container, &[][..])].into_iter());
        assert_eq!(rows[0].usage, Usage::default());
    }
}
