//! Memory, CPU limits, network traffic and block I/O of containers.
//!
//! The engine's API is not used: on hybrid hosts `docker stats` prints zeros, and each call takes
//! two seconds. Where the kernel offers a counter to an eBPF iterator ([`UsageIterator`]), one pass
//! reads it for all containers. Its file is read otherwise: files stay open, so a tick reads each
//! of them once, with one system call. A container that does not run is read too: its memory is
//! reclaimed, its pages are written back, and packets reach it without CPU time of its own.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::info;

use super::container::Container;
use crate::{
    cgroup::{hierarchy, tree::Trees},
    cpu::{BlockUsage, ContainerUsage, ProgramRow, UsageIterator, WatchedContainer},
};

/// Largest file that is read: `memory.stat` has 3 kB, `io.stat` a line for each device.
const MAX_FILE: usize = 64 << 10;
/// Ticks between two reads of `memory.stat`, which is long.
const MEMORY_STAT_TICKS: u64 = 5;
/// Ticks between two reads of a memory limit, which hardly ever changes.
const LIMIT_TICKS: u64 = 10;
/// Ticks between two scans of all processes for those of engines.
const ENGINE_SCAN_TICKS: u64 = 60;
/// Ticks until the scan after the end of an engine's process, which is usually started again.
const ENGINE_RESTART_TICKS: u64 = 10;
/// The tick of the first scan, which the first page does not wait for.
const FIRST_SCAN: u64 = 3;
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
    /// CPU limit in thousandths of a CPU; 0 without one. Only the iterator reads it.
    pub cpu_limit: Option<u64>,
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

/// A process of a container engine.
struct EngineProcess {
    pid: u32,
    name: &'static str,
    /// Its CPU time at the last tick.
    clock_ns: Option<u64>,
    statm: Option<File>,
}

/// Values of a container that have files of their own, as bits.
mod parts {
    /// Memory and its limit.
    pub(super) const MEMORY: u8 = 1;
    pub(super) const INACTIVE: u8 = 2;
    pub(super) const BLOCK: u8 = 4;
    pub(super) const NETWORK: u8 = 8;
}

/// What is known of one container.
#[derive(Default)]
struct OpenContainer {
    /// Its row of the iterator.
    watched: Option<WatchedContainer>,
    /// The [`parts`] that the last pass did not provide.
    not_provided: u8,
    files: StatFiles,
    /// The [`parts`] whose files were opened, or do not exist.
    tried: u8,
    /// Inactive page cache at the last read of `memory.stat`.
    inactive: Option<u64>,
    /// Memory limit at the last read of its file.
    limit: Option<u64>,
    /// Block I/O at the last reading.
    block: Option<IoBytes>,
    ticks: u64,
    /// The last tick in which the container existed.
    seen: u64,
}

/// The open files of one container.
#[derive(Default)]
struct StatFiles {
    memory: Option<File>,
    memory_stat: Option<File>,
    limit: Option<File>,
    block: Option<(File, bool)>,
    network: Option<File>,
    v2: bool,
}

impl StatFiles {
    /// Number of open files.
    fn count(&self) -> usize {
        let one = [&self.memory, &self.memory_stat, &self.limit, &self.network].map(|file| usize::from(file.is_some()));
        one.iter().sum::<usize>() + usize::from(self.block.is_some())
    }
}

/// Whether the iterator's block I/O may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockCheck {
    /// Not yet: the number of readings that differed from the file.
    Pending(u32),
    Agreed,
    Refused,
}

/// Where the files of containers are.
struct StatTrees {
    cgroupfs: PathBuf,
    /// The trees that count CPU time; the trees of v1's other controllers are next to them.
    trees: Option<Trees>,
    procfs: PathBuf,
    /// The inode of `net/dev` of process 1, which identifies the host's network.
    host_network: Option<u64>,
}

/// Reads the resource usage of all containers and engines.
pub struct StatsCollector {
    trees: StatTrees,
    /// The source in place of files; `None` where all values come from files.
    iterator: Option<Box<UsageIterator>>,
    block_check: BlockCheck,
    machine_memory: u64,
    open: BTreeMap<u32, OpenContainer>,
    /// The rows of the last reading.
    rows: Vec<UsageRow>,
    engines: Vec<EngineProcess>,
    /// Sorted by name.
    engine_rows: Vec<EngineRow>,
    /// The tick of the next scan for engines.
    scan_at: u64,
    /// Maximum number of files that stay open; the files of further containers are opened in each
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
            trees: StatTrees {
                cgroupfs: cgroupfs.to_owned(),
                trees: Trees::find(cgroupfs).ok(),
                procfs: procfs.to_owned(),
                host_network: fs::metadata(procfs.join("1/net/dev")).ok().map(|meta| meta.ino()),
            },
            iterator: None,
            block_check: BlockCheck::Pending(0),
            machine_memory: total.unwrap_or(0).saturating_mul(1024),
            open: BTreeMap::new(),
            rows: Vec::new(),
            engines: Vec::new(),
            engine_rows: Vec::new(),
            scan_at: FIRST_SCAN,
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

    /// Reads what the iterator provides through it from now on.
    pub fn use_iterator(&mut self, iterator: UsageIterator) {
        self.iterator = Some(Box::new(iterator));
    }

    /// Whether this thread's capabilities suffice to use the iterator; true without one.
    pub fn can_read(&mut self) -> bool {
        self.iterator.as_mut().is_none_or(|iterator| iterator.read(false).is_ok())
    }

    /// Number of open files of containers.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.open.values().map(|open| open.files.count()).sum()
    }

    /// Run time of the iterator; empty while the kernel keeps no statistics.
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramRow> {
        self.iterator.as_ref().map(|iterator| iterator.costs()).unwrap_or_default()
    }

    /// Reads the usage of each container.
    pub fn read<'a>(
        &mut self,
        containers: impl Iterator<Item = (&'a Arc<Container>, &'a [CgroupPath])>,
    ) -> &[UsageRow] {
        self.ticks += 1;
        let Self { trees, iterator, open: all, rows, .. } = self;
        let mut iterator = iterator.as_deref_mut();
        rows.clear();
        let mut is_sorted = true;
        for (container, paths) in containers {
            is_sorted &= rows.last().is_none_or(|row| row.container.number < container.number);
            let open = all.entry(container.number).or_default();
            open.seen = self.ticks;
            open.prepare(trees, iterator.as_deref_mut(), paths);
            rows.push(UsageRow { container: container.clone(), usage: Usage::default() });
        }
        if !is_sorted {
            rows.sort_unstable_by_key(|row| row.container.number);
            rows.dedup_by_key(|row| row.container.number);
        }
        let tick = self.ticks;
        all.retain(|_, open| {
            if open.seen != tick
                && let (Some(watched), Some(iterator)) = (open.watched.take(), iterator.as_deref_mut())
            {
                iterator.unwatch(watched);
            }
            open.seen == tick
        });
        if let Some(iterator) = iterator
            && let Err(error) = iterator.read(tick.is_multiple_of(MEMORY_STAT_TICKS))
        {
            info!("containers: memory and block I/O come from files, one by one: {error}");
            self.iterator = None;
            all.values_mut().for_each(|open| open.watched = None);
        }
        self.read_rows();
        &self.rows
    }

    /// Fills the rows from the last pass, and from files.
    fn read_rows(&mut self) {
        let (tick, machine) = (self.ticks, self.machine_memory);
        let mut files = 0;
        // Both are sorted by number.
        for (row, open) in self.rows.iter_mut().zip(self.open.values_mut()) {
            let provided = match (&self.iterator, &open.watched) {
                (Some(iterator), Some(watched)) => iterator.usage(watched),
                _ => ContainerUsage::default(),
            };
            let age = u64::from(row.container.number) + tick;
            row.usage = open.read(&provided, &mut self.block_check, age, machine, &mut self.buffer);
            let usage = &row.usage;
            // Reads of a removed cgroup fail with ENODEV; then its files are closed, and its
            // network file too.
            let exists = usage.memory.is_some() || usage.block.is_some() || usage.cpu_limit.is_some();
            files += open.files.count();
            if exists && files <= self.max_open {
                continue;
            }
            files -= open.files.count();
            (open.files, open.tried) = (StatFiles::default(), 0);
            // A container over the limit of open files is opened again in the next tick.
            open.ticks = if *usage == Usage::default() { open.ticks } else { 0 };
            if !exists && let (Some(iterator), Some(watched)) = (&mut self.iterator, open.watched.take()) {
                iterator.unwatch(watched);
            }
        }
    }

    /// The usage of each container at the last reading.
    #[must_use]
    pub fn rows(&self) -> &[UsageRow] {
        &self.rows
    }

    /// Reads the usage of the engines' processes.
    pub fn read_engines(&mut self) {
        if self.ticks >= self.scan_at {
            let last = std::mem::replace(&mut self.engines, engines(&self.trees.procfs));
            for engine in &mut self.engines {
                engine.clock_ns = last.iter().find(|last| last.pid == engine.pid).and_then(|last| last.clock_ns);
            }
            self.scan_at = self.ticks + ENGINE_SCAN_TICKS;
        }
        self.engine_rows.iter_mut().for_each(|row| row.resident = 0);
        for engine in &mut self.engines {
            let Some(clock) = crate::host::process::process_clock_ns(engine.pid) else {
                engine.clock_ns = None;
                self.scan_at = self.scan_at.min(self.ticks + ENGINE_RESTART_TICKS);
                continue;
            };
            let row = row_of(&mut self.engine_rows, engine.name);
            // A new process counts from now on. A clock that went back belongs to a new process
            // with the same pid.
            let before = engine.clock_ns.replace(clock).unwrap_or(clock);
            row.cpu_ns = row.cpu_ns.saturating_add(clock.saturating_sub(before));
            let statm = engine.statm.as_ref().and_then(|file| read_text(file, &mut self.buffer));
            let pages = statm.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok()).unwrap_or(0);
            row.resident = row.resident.saturating_add(pages.saturating_mul(page_size()));
        }
    }

    /// The usage of each engine that ran since the probe's start, by name, at the last reading.
    #[must_use]
    pub fn engines(&self) -> &[EngineRow] {
        &self.engine_rows
    }
}

impl StatTrees {
    /// Opens the files of the given [`parts`].
    fn open_files(&self, paths: &[CgroupPath], wanted: u8, files: &mut StatFiles) {
        let Some(path) = paths.first().map(|path| &path.path) else { return };
        let at = |dir: &Path, path: &str| dir.join(path.trim_start_matches('/'));
        let v2 = paths.iter().find(|path| path.hierarchy == hierarchy::V2);
        let v2_dir = v2.and_then(|v2| Some(at(self.trees.as_ref()?.root(hierarchy::V2)?, &v2.path)));
        let v2_dir = v2_dir.as_ref();
        let open = |dir: &Path, name: &str| File::open(dir.join(name)).ok();
        let v1_memory = at(&self.cgroupfs.join("memory"), path);
        if wanted & (parts::MEMORY | parts::INACTIVE) != 0 {
            let v2_memory = v2_dir.and_then(|dir| open(dir, "memory.current").map(|memory| (memory, dir)));
            files.v2 = v2_memory.is_some();
            let (dir, limit) =
                v2_memory.as_ref().map_or((&v1_memory, "memory.limit_in_bytes"), |(_, dir)| (*dir, "memory.max"));
            if wanted & parts::INACTIVE != 0 {
                files.memory_stat = open(dir, "memory.stat");
            }
            if wanted & parts::MEMORY != 0 {
                files.limit = open(dir, limit);
                files.memory =
                    v2_memory.map(|(memory, _)| memory).or_else(|| open(&v1_memory, "memory.usage_in_bytes"));
            }
        }
        if wanted & parts::BLOCK != 0 {
            let v1_block = at(&self.cgroupfs.join("blkio"), path);
            files.block = v2_dir.and_then(|dir| open(dir, "io.stat")).map(|file| (file, true)).or_else(|| {
                let names = ["blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"];
                names.iter().find_map(|name| open(&v1_block, name)).map(|file| (file, false))
            });
        }
        if wanted & parts::NETWORK != 0 {
            let cpu = self.trees.as_ref().and_then(|trees| trees.root(hierarchy::V1_CPU)).map(|root| at(root, path));
            let trees = [v2_dir.cloned(), cpu, Some(v1_memory)];
            let member = trees.iter().flatten().find_map(|dir| member(dir, 2));
            files.network = member.and_then(|pid| self.network_of(pid));
        }
    }

    /// Opens the traffic counters of a process's network; `None` for the host's network.
    fn network_of(&self, pid: u32) -> Option<File> {
        let path = self.procfs.join(pid.to_string()).join("net/dev");
        let own = fs::metadata(&path).ok()?.ino();
        (Some(own) != self.host_network).then(|| File::open(path).ok())?
    }
}

impl OpenContainer {
    /// Finds the container's row, and opens the files of what the iterator does not provide.
    fn prepare(&mut self, trees: &StatTrees, iterator: Option<&mut UsageIterator>, paths: &[CgroupPath]) {
        /// For so long, the cgroups of a container may appear one after another.
        const CREATION_TICKS: u64 = 4 * MEMORY_STAT_TICKS;
        // A container's files appear a moment after its cgroup, so opening them is tried
        // repeatedly.
        let due = self.ticks.is_multiple_of(MEMORY_STAT_TICKS);
        if let Some(iterator) = iterator {
            let partial = self.watched.as_ref().is_some_and(|watched| !watched.complete);
            if due && (self.watched.is_none() || partial && self.ticks <= CREATION_TICKS) {
                if let Some(watched) = self.watched.take() {
                    iterator.unwatch(watched);
                }
                self.watched = iterator.watch(|hierarchy| {
                    let same = paths.iter().find(|path| path.hierarchy == hierarchy);
                    let v1 = (hierarchy != hierarchy::V2).then(|| paths.first()).flatten();
                    same.or(v1).map(|path| &*path.path)
                });
                // What the pass does not provide is known after it.
                self.not_provided = 0;
            }
        }
        let all = parts::MEMORY | parts::INACTIVE | parts::BLOCK;
        let wanted = parts::NETWORK | if self.watched.is_some() { self.not_provided } else { all };
        let new = wanted & !self.tried;
        if new != 0 && (self.tried != 0 || due) {
            trees.open_files(paths, new, &mut self.files);
            self.tried = if paths.is_empty() { 0 } else { self.tried | new };
        }
        if self.tried & !wanted != 0 {
            self.close(self.tried & !wanted);
        }
        self.ticks += 1;
    }

    /// Closes the files of [`parts`] that the iterator provides.
    fn close(&mut self, provided: u8) {
        if provided & parts::MEMORY != 0 {
            (self.files.memory, self.files.limit, self.limit) = (None, None, None);
        }
        if provided & parts::INACTIVE != 0 {
            (self.files.memory_stat, self.inactive) = (None, None);
        }
        if provided & parts::BLOCK != 0 {
            self.files.block = None;
        }
        self.tried &= !provided;
    }

    /// Takes what the iterator provided, and reads the files of the rest. `age` is the tick,
    /// shifted by container, so that the files that are read seldom are spread over the ticks.
    /// `machine` is the machine's memory; 0 when unknown.
    fn read(
        &mut self,
        provided: &ContainerUsage,
        check: &mut BlockCheck,
        age: u64,
        machine: u64,
        buffer: &mut [u8],
    ) -> Usage {
        let block = self.read_block(provided.block, check, buffer);
        let not_provided = |missing: bool, part: u8| if missing { part } else { 0 };
        self.not_provided = not_provided(provided.memory.is_none(), parts::MEMORY)
            | not_provided(provided.memory.is_none_or(|memory| memory.inactive.is_none()), parts::INACTIVE)
            | not_provided(!is_block_provided(provided.block, *check), parts::BLOCK);
        let memory = match provided.memory {
            Some(memory) => Some(memory.usage),
            None => self.files.memory.as_ref().and_then(|file| number(read_text(file, buffer)?)),
        };
        let inactive = provided.memory.and_then(|memory| memory.inactive);
        if inactive.is_none() {
            self.read_inactive(age, buffer);
        }
        let limit = match provided.memory {
            Some(memory) => bounded(memory.limit, machine),
            None => self.read_limit(age, machine, buffer),
        };
        Usage {
            memory,
            working: memory.zip(inactive.or(self.inactive)).map(|(memory, inactive)| memory.saturating_sub(inactive)),
            limit: limit.filter(|_| memory.is_some()),
            network: self.files.network.as_ref().and_then(|file| read_text(file, buffer)).map(traffic),
            block,
            cpu_limit: provided.cpu_limit,
        }
    }

    fn read_inactive(&mut self, age: u64, buffer: &mut [u8]) {
        if (age.is_multiple_of(MEMORY_STAT_TICKS) || self.inactive.is_none())
            && let Some(text) = self.files.memory_stat.as_ref().and_then(|file| read_text(file, buffer))
        {
            let key = if self.files.v2 { "inactive_file " } else { "total_inactive_file " };
            self.inactive = Some(text.lines().find_map(|line| line.strip_prefix(key)?.parse().ok()).unwrap_or(0));
        }
    }

    fn read_limit(&mut self, age: u64, machine: u64, buffer: &mut [u8]) -> Option<u64> {
        if age.is_multiple_of(LIMIT_TICKS) || self.limit.is_none() {
            let limit = self.files.limit.as_ref().and_then(|file| read_text(file, buffer));
            self.limit = limit.and_then(|text| bounded(number(text).unwrap_or(u64::MAX), machine));
        }
        self.limit
    }

    /// Block I/O. The iterator's bytes are used once they were those of the file: they are as new
    /// as the kernel's last flush, which another file triggers.
    fn read_block(&mut self, provided: BlockUsage, check: &mut BlockCheck, buffer: &mut [u8]) -> Option<IoBytes> {
        /// Readings that differ until the file is used for good.
        const DIFFERENCES: u32 = 5;
        let used = provided == BlockUsage::Used;
        let provided = match provided {
            BlockUsage::Unused => return Some(IoBytes::default()),
            BlockUsage::Bytes([inward, outward]) => Some(IoBytes { inward, outward }),
            BlockUsage::Used | BlockUsage::Unknown => None,
        };
        if provided.is_some() && *check == BlockCheck::Agreed {
            return provided;
        }
        let of_file = self.files.block.as_ref().and_then(|(file, v2)| {
            let text = read_text(file, buffer)?;
            // Since 6.10 (commit a3166c51702b) v1 counts the bytes of a device only after a limit
            // was set for it: without a line of a device, they are not known.
            let is_counted = *v2 || !used || text.lines().any(|line| !line.starts_with("Total"));
            is_counted.then(|| if *v2 { io_stat(text) } else { blkio(text) })
        });
        let before = std::mem::replace(&mut self.block, of_file);
        if let (Some(provided), Some(before), Some(after), BlockCheck::Pending(differences)) =
            (provided, before, of_file, *check)
            && after != IoBytes::default()
        {
            // The pass was between the two readings of the file.
            let agrees = (before.inward..=after.inward).contains(&provided.inward)
                && (before.outward..=after.outward).contains(&provided.outward);
            *check = match differences + 1 {
                _ if agrees => BlockCheck::Agreed,
                DIFFERENCES.. => BlockCheck::Refused,
                more => BlockCheck::Pending(more),
            };
        }
        of_file
    }
}

/// Whether the file is not needed.
fn is_block_provided(block: BlockUsage, check: BlockCheck) -> bool {
    match block {
        BlockUsage::Unused => true,
        BlockUsage::Bytes(_) => check == BlockCheck::Agreed,
        BlockUsage::Used | BlockUsage::Unknown => false,
    }
}

/// A memory limit: at most the memory of the machine, if that is not 0; `None` without one.
fn bounded(limit: u64, machine: u64) -> Option<u64> {
    Some(if machine == 0 { limit } else { limit.min(machine) }).filter(|limit| *limit < u64::MAX)
}

/// Number of files of containers that may stay open: all but 512 for everything else.
fn max_open() -> usize {
    cli::program::raise_open_file_limit().saturating_sub(512)
}

fn page_size() -> u64 {
    u64::try_from(rustix::param::page_size()).unwrap_or(4096)
}

/// The processes of engines.
fn engines(procfs: &Path) -> Vec<EngineProcess> {
    let Ok(entries) = fs::read_dir(procfs) else { return Vec::new() };
    let engine = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        let name = ENGINES.into_iter().find(|name| *name == comm.trim_end_matches('\n'))?;
        Some(EngineProcess { pid, name, clock_ns: None, statm: File::open(entry.path().join("statm")).ok() })
    };
    entries.flatten().filter_map(engine).collect()
}

/// The row of an engine, which is added when it is new.
fn row_of<'r>(rows: &'r mut Vec<EngineRow>, name: &'static str) -> &'r mut EngineRow {
    let at = rows.binary_search_by_key(&name, |row| row.name).unwrap_or_else(|at| {
        rows.insert(at, EngineRow { name, ..EngineRow::default() });
        at
    });
    &mut rows[at]
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
///
/// A short read is the whole file: the kernel fills a page with whole records, and ends a read
/// early only before a record that does not fit into the rest of the page (fs/seq_file.c,
/// seq_read_iter). The records of these files are lines, or the whole file.
fn read_at(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    /// Half of the smallest page; no line is longer.
    const SHORT: usize = 2048;
    let mut length = 0;
    while length < buffer.len() {
        let read = file.read_at(&mut buffer[length..], length as u64)?;
        length += read;
        if read < SHORT {
            break;
        }
    }
    Ok(length)
}

fn read_text<'a>(file: &File, buffer: &'a mut [u8]) -> Option<&'a str> {
    let length = read_at(file, buffer).ok()?;
    std::str::from_utf8(&buffer[..length]).ok()
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
                cpu_limit: None,
            };
            assert_eq!(rows[0].usage, expected);
        }
    }

    #[test]
    fn a_container_without_files_has_no_usage_instead_of_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let container = Arc::new(Container::new(0, "a".into(), "b".into(), "docker"));
        let mut stats = StatsCollector::new(dir.path(), dir.path());
        let rows = stats.read([(&container, &[][..])].into_iter());
        assert_eq!(rows[0].usage, Usage::default());
    }

    /// A v2 tree with one container, which has the given memory files.
    fn one_container(files: &[(&str, &str)]) -> (tempfile::TempDir, StatsCollector, Arc<Container>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("docker/x")).unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "memory\n").unwrap();
        for (file, text) in files {
            fs::write(dir.path().join("docker/x").join(file), text).unwrap();
        }
        let stats = StatsCollector::new(dir.path(), &dir.path().join("proc"));
        (dir, stats, Arc::new(Container::new(3, "a".into(), "b".into(), "docker")))
    }

    fn usage(stats: &mut StatsCollector, container: &Arc<Container>) -> Usage {
        let paths = [CgroupPath { hierarchy: hierarchy::V2, path: "/docker/x".into() }];
        stats.read([(container, &paths[..])].into_iter())[0].usage.clone()
    }

    #[test]
    fn a_changed_memory_limit_is_read_within_ten_ticks() {
        let (dir, mut stats, container) = one_container(&[("memory.current", "50\n"), ("memory.max", "100\n")]);
        assert_eq!(usage(&mut stats, &container).limit, Some(100), "in the first tick");
        fs::write(dir.path().join("docker/x/memory.max"), "200\n").unwrap();
        let limits: Vec<_> = (0..LIMIT_TICKS).map(|_| usage(&mut stats, &container).limit).collect();
        assert_eq!(limits.last(), Some(&Some(200)), "{limits:?}");
        fs::write(dir.path().join("docker/x/memory.max"), "max\n").unwrap();
        let limits: Vec<_> = (0..LIMIT_TICKS).map(|_| usage(&mut stats, &container).limit).collect();
        assert_eq!(limits.last(), Some(&None), "{limits:?}");
    }

    #[test]
    fn a_container_without_memory_readings_has_no_limit() {
        let (dir, mut stats, container) = one_container(&[("memory.current", "50\n"), ("memory.max", "100\n")]);
        usage(&mut stats, &container);
        fs::write(dir.path().join("docker/x/memory.current"), "").unwrap();
        assert_eq!(usage(&mut stats, &container), Usage::default());
    }

    #[test]
    fn without_page_cache_the_working_set_is_absent_and_not_all_memory() {
        let (_dir, mut stats, container) = one_container(&[("memory.current", "50\n")]);
        let usage = usage(&mut stats, &container);
        assert_eq!((usage.memory, usage.working), (Some(50), None));
    }

    #[test]
    fn a_file_longer_than_a_page_is_read_to_its_end() {
        let text = format!("{}inactive_file 7\n", "anon 1\n".repeat(2000));
        let (_dir, mut stats, container) = one_container(&[("memory.current", "50\n"), ("memory.stat", &text)]);
        assert_eq!(usage(&mut stats, &container).working, Some(43));
    }
}
