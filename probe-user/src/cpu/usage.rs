//! Memory, CPU limits and block I/O of containers through an eBPF iterator: one pass over a cgroup
//! tree per tick in place of three files per container.
//!
//! Each counter is offered or not, depending on the running kernel. What is not offered, and a
//! container without a row, is read from files.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::{OwnedFd, RawFd},
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use aya::maps::{HashMap as BpfMap, Map, MapData};
use probe_ebpf::{KernelUsage, MAX_CGROUPS, MAX_DEVICES, UsagePass, hierarchy};

use super::{
    btf::{Btf, BtfError},
    iterators,
    mapped_array::MappedArray,
    object::{BpfObject, PAGE, load_error},
    offsets::{self, KernelLayout},
};
use crate::{
    cgroup::tree::Trees,
    cpu::reader::ProgramRow,
    host::availability::{Reason, Unavailable},
};

const ITERATOR: &str = "read_usage";
/// Maximum number of trees: one for each of the controllers memory, cpu and blkio.
const MAX_TREES: usize = 3;
/// The tree of a cgroup is in the upper two bits of its key, which no generation of an id reaches
/// ([`probe_ebpf::Tag`]).
const TREE_SHIFT: u32 = 62;
/// Rows that are mapped at first; their number doubles with the containers.
const FIRST_ROWS: usize = 64;
/// Passes between two readings of limits, which hardly ever change.
const LIMIT_PASSES: u64 = 10;
/// Passes between two checks whether a block device was used, where that is all that a tree has.
const DEVICE_PASSES: u64 = 5;
/// The row of the root of the tree with the controller memory.
const ROOT_ROW: u32 = 0;

/// A tree with one of the controllers.
struct UsageTree {
    root: PathBuf,
    /// One of [`hierarchy`]; all trees of v1 have the same paths.
    hierarchy: u64,
    link: OwnedFd,
    /// Whether the files of this tree show block I/O in the counters that the program adds up.
    v2_io: bool,
    /// Whether it has the controller io.
    io: bool,
    /// Passes per pass over this tree.
    every: u64,
}

/// A container that has a row.
pub struct WatchedContainer {
    row: u32,
    /// Its key in each tree; 0 where it has no cgroup.
    keys: [u64; MAX_TREES],
    /// The file that brings its block I/O up to date.
    flush: Option<usize>,
    /// Whether it has a cgroup in each tree.
    pub complete: bool,
}

/// Memory of a container in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUsage {
    pub usage: u64,
    /// `u64::MAX` without a limit.
    pub limit: u64,
    /// Inactive page cache; `None` where it is not offered.
    pub inactive: Option<u64>,
}

/// Block I/O of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockUsage {
    /// Only its file says.
    #[default]
    Unknown,
    /// A block device was used; only its file says the bytes.
    Used,
    /// No block device was used.
    Unused,
    /// Bytes read and written.
    Bytes([u64; 2]),
}

/// What the last pass found of a container. A value that is not offered, or was not found, is not
/// zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    pub memory: Option<MemoryUsage>,
    /// CPU limit in thousandths of a CPU; 0 without one.
    pub cpu_limit: Option<u64>,
    pub block: BlockUsage,
}

/// A file whose reading makes the kernel add up the counters of all CPUs for a subtree.
struct FlushFile {
    /// First component of the containers' path.
    top: String,
    file: File,
    containers: usize,
}

/// The loaded iterator and its maps.
pub struct UsageIterator {
    trees: Vec<UsageTree>,
    pass: MappedArray<UsagePass>,
    rows: MappedArray<KernelUsage>,
    /// Number of mapped rows.
    mapped: usize,
    row_map: Map,
    keys: BpfMap<MapData, u64, u64>,
    /// Whether the next pass covers everything, for a new container.
    all_due: bool,
    /// The last pass over the tree with the controller io.
    io_number: u64,
    /// Rows below `next` that are not in use.
    free: Vec<u32>,
    next: u32,
    number: u64,
    memory: bool,
    inactive: bool,
    cpu: bool,
    device_bytes: bool,
    /// `memory.stat` of the root.
    memory_stat: Option<File>,
    flush_files: Vec<Option<FlushFile>>,
    page_size: u64,
    object: BpfObject,
}

impl UsageIterator {
    /// Loads the iterator for the trees below `cgroupfs`.
    ///
    /// # Errors
    /// `absent` when the kernel lacks BTF, the iterator (6.1) or all of the counters; `denied` when
    /// this process may not load programs; `broken` when the kernel refuses them.
    pub fn load(cgroupfs: &Path) -> Result<Self, Unavailable> {
        Self::load_with(cgroupfs, offsets::usage)
    }

    fn load_with(
        cgroupfs: &Path,
        resolve: impl Fn(&Btf<'_>) -> Result<KernelLayout, BtfError>,
    ) -> Result<Self, Unavailable> {
        let roots = roots(cgroupfs);
        if roots.is_empty() {
            return Err(Unavailable::new(Reason::Absent, format!("no cgroup tree at {}", cgroupfs.display())));
        }
        let (mut object, layout) = BpfObject::open(resolve, &[], &map_sizes(), &[])?;
        let offered = |name: &str| layout.setting(name) != 0;
        let program = object
            .load_iterator(ITERATOR, "cgroup")
            .map_err(|error| load_error(&format!("load {ITERATOR}"), &error))?;
        let mut trees = link(program, roots)?;
        if !offered("READS_MEMORY") {
            // The memory says in each pass whether a container exists.
            trees.iter_mut().for_each(|tree| tree.every = 1);
        }
        let row_map = object.take("USAGE")?;
        let rows = MappedArray::first(&row_map, FIRST_ROWS).map_err(|error| failed("cannot map USAGE", &error))?;
        let keys = BpfMap::try_from(object.take("USAGE_WATCHED")?)
            .map_err(|error| load_error("open the map USAGE_WATCHED", &error))?;
        let pass = object.mapped("USAGE_PASS")?;
        object.drop_unused();
        let mut this = Self {
            trees,
            pass,
            rows,
            mapped: FIRST_ROWS,
            row_map,
            all_due: true,
            io_number: 0,
            keys,
            free: Vec::new(),
            next: ROOT_ROW + 1,
            number: 0,
            memory: offered("READS_MEMORY"),
            inactive: offered("READS_INACTIVE"),
            cpu: offered("READS_CPU_LIMIT"),
            device_bytes: offered("READS_DEVICE_BYTES"),
            memory_stat: None,
            flush_files: Vec::new(),
            page_size: u64::try_from(rustix::param::page_size()).unwrap_or(4096),
            object,
        };
        this.inactive = this.inactive && this.inactive_agrees().unwrap_or(false);
        this.read(false).map_err(|error| failed("cannot iterate over the cgroups", &error))?;
        Ok(this)
    }

    /// Whether the inactive page cache of the root is that of its file. The kernel's types name the
    /// statistics, but not their order in the array (mm/memcontrol.c, memcg_node_stat_items, 6.11).
    fn inactive_agrees(&mut self) -> Option<bool> {
        /// Updates that the kernel may delay, of each CPU (MEMCG_CHARGE_BATCH).
        const PAGES: u64 = 64;
        const TRIES: u32 = 3;
        let tree = self.trees.iter().position(|tree| tree.root.join("memory.stat").exists())?;
        let root = &self.trees[tree].root;
        let file = File::open(root.join("memory.stat")).ok()?;
        let (mut buffer, page) = (vec![0; 16 << 10], self.page_size);
        let mut of_file = || {
            let length = file.read_at(&mut buffer, 0).ok()?;
            let text = std::str::from_utf8(&buffer[..length]).ok()?;
            let of = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.parse::<u64>().ok());
            of("total_inactive_file ").or_else(|| of("inactive_file "))
        };
        let key = key(tree, fs::metadata(root).ok()?.ino());
        self.keys.insert(key, u64::from(ROOT_ROW), 0).ok()?;
        let cpus = u64::try_from(crate::cpu::object::possible_cpus()).unwrap_or(1);
        let agrees = (0..TRIES).any(|_| {
            let before = of_file();
            let read = self.read(false);
            let (Some(before), Ok(()), Some(after)) = (before, read, of_file()) else { return false };
            let found = self.rows.get(0).inactive_pages.saturating_mul(page);
            let slack = (PAGES * cpus * page).max(before / 64);
            (before.min(after).saturating_sub(slack)..=before.max(after).saturating_add(slack)).contains(&found)
        });
        let _ = self.keys.remove(&key);
        self.memory_stat = Some(file);
        Some(agrees)
    }

    /// Gives a container a row. `path_in` is its path in a hierarchy. `None` when it has no cgroup
    /// in the first tree, which says in each pass whether it exists, or no row is free.
    pub fn watch<'p>(&mut self, path_in: impl Fn(u64) -> Option<&'p str>) -> Option<WatchedContainer> {
        let mut keys = [0; MAX_TREES];
        let mut flush = None;
        for (index, tree) in self.trees.iter().enumerate() {
            let path = path_in(tree.hierarchy).map(|path| path.trim_start_matches('/'));
            let Some(path) = path.filter(|path| !path.is_empty()) else { continue };
            let Ok(directory) = fs::metadata(tree.root.join(path)) else { continue };
            keys[index] = key(index, directory.ino());
            if tree.v2_io && self.device_bytes {
                flush = flush_file(&mut self.flush_files, &tree.root, path);
            }
        }
        let complete = keys[..self.trees.len()].iter().all(|key| *key != 0);
        let watched = WatchedContainer { row: u32::MAX, keys, flush, complete };
        let row = if keys[0] == 0 { None } else { self.take_row() };
        let Some(row) = row else {
            self.unwatch(watched);
            return None;
        };
        let watched = WatchedContainer { row, ..watched };
        let mut found = watched.keys.iter().filter(|key| **key != 0);
        if found.all(|key| self.keys.insert(key, u64::from(row), 0).is_ok()) {
            self.all_due = true;
            return Some(watched);
        }
        self.unwatch(watched);
        None
    }

    /// Frees the row of a container.
    pub fn unwatch(&mut self, watched: WatchedContainer) {
        if watched.row != u32::MAX {
            for key in watched.keys.iter().filter(|key| **key != 0) {
                let _ = self.keys.remove(key);
            }
            self.free.push(watched.row);
        }
        if let Some(place) = watched.flush.and_then(|index| self.flush_files.get_mut(index))
            && let Some(file) = place
        {
            file.containers -= 1;
            if file.containers == 0 {
                *place = None;
            }
        }
    }

    /// A row that no container has, mapped and empty.
    fn take_row(&mut self) -> Option<u32> {
        let row = match self.free.pop() {
            Some(row) => row,
            None => {
                let row = self.next;
                let index = usize::try_from(row).ok().filter(|index| *index < MAX_CGROUPS)?;
                if index >= self.mapped {
                    let mapped = (self.mapped * 2).min(MAX_CGROUPS);
                    self.rows = MappedArray::first(&self.row_map, mapped).ok()?;
                    self.mapped = mapped;
                }
                self.next += 1;
                row
            }
        };
        self.rows.set(usize::try_from(row).ok()?, KernelUsage::default());
        Some(row)
    }

    /// Runs a pass over each tree that is due; every tenth reads limits. With `flush`, the kernel
    /// first adds up the memory statistics of all CPUs, which it does every two seconds by itself
    /// (mm/memcontrol.c, FLUSH_TIME).
    ///
    /// # Errors
    /// When the kernel refuses; then no container has values.
    pub fn read(&mut self, flush: bool) -> io::Result<()> {
        // The kernel prints a file as a whole, and flushes before.
        let mut first = [0; 16];
        if flush && let Some(file) = &self.memory_stat {
            let _ = file.read_at(&mut first, 0);
        }
        for flush in self.flush_files.iter().flatten() {
            let _ = flush.file.read_at(&mut first, 0);
        }
        self.number += 1;
        let all = std::mem::take(&mut self.all_due);
        let limits = all || self.number.is_multiple_of(LIMIT_PASSES);
        for (index, tree) in self.trees.iter().enumerate() {
            if !all && !self.number.is_multiple_of(tree.every) {
                continue;
            }
            if tree.io {
                self.io_number = self.number;
            }
            self.pass.set(0, UsagePass { number: self.number, tree: key(index, 0), limits: u64::from(limits) });
            let mut iteration = iterators::open(&tree.link)?;
            while iteration.read(&mut first)? > 0 {}
        }
        Ok(())
    }

    /// What the last pass found.
    #[must_use]
    pub fn usage(&self, watched: &WatchedContainer) -> ContainerUsage {
        let Some(row) = usize::try_from(watched.row).ok().filter(|row| *row < self.mapped) else {
            return ContainerUsage::default();
        };
        let row = self.rows.get(row);
        let bytes = |pages: u64| pages.saturating_mul(self.page_size);
        let is_found = [row.memory_pass, row.cpu_pass, row.io_pass].contains(&self.number);
        let memory = (self.memory && row.memory_pass == self.number && row.limit_pass != 0).then(|| MemoryUsage {
            usage: bytes(row.memory_pages),
            // PAGE_COUNTER_MAX, include/linux/page_counter.h.
            limit: if row.limit_pages >= i64::MAX.unsigned_abs() / self.page_size {
                u64::MAX
            } else {
                bytes(row.limit_pages)
            },
            inactive: self.inactive.then(|| bytes(row.inactive_pages)),
        });
        let cpu_limit = (self.cpu && is_found && row.cpu_pass != 0).then(|| {
            // Without a limit: RUNTIME_INF, kernel/sched/sched.h.
            let quota = Some(row.quota_ns).filter(|quota| *quota != u64::MAX);
            quota.and_then(|quota| quota.checked_mul(1000)?.checked_div(row.period_ns)).unwrap_or(0)
        });
        let block = match row.devices {
            _ if !is_found || row.io_pass != self.io_number => BlockUsage::Unknown,
            0 => BlockUsage::Unused,
            1..=MAX_DEVICES if watched.flush.is_some() => BlockUsage::Bytes([row.bytes_read, row.bytes_written]),
            _ => BlockUsage::Used,
        };
        ContainerUsage { memory, cpu_limit, block }
    }

    /// Run count and run time of the program; empty while the kernel keeps no statistics.
    #[must_use]
    pub fn costs(&self) -> Vec<ProgramRow> {
        self.object.costs(&[ITERATOR])
    }

    /// The counters that are offered, for the log.
    #[must_use]
    pub fn detail(&self) -> String {
        let v2_io = self.trees.iter().any(|tree| tree.v2_io);
        let all = [
            ("memory", self.memory),
            ("page cache", self.inactive),
            ("CPU limits", self.cpu),
            ("block I/O", self.device_bytes && v2_io),
        ];
        let names = |offered: bool| {
            let names: Vec<&str> = all.iter().filter(|(_, has)| *has == offered).map(|(name, _)| *name).collect();
            names.join(", ")
        };
        let files = if all.iter().all(|(_, has)| *has) { String::new() } else { format!("; files: {}", names(false)) };
        format!("eBPF iterator: {}{files}", names(true))
    }
}

/// Sizes of the maps; those of other programs are as small as possible.
fn map_sizes() -> Vec<(&'static str, u32)> {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let unused = ["CPUS", "TIMES", "COUNTS", "OWNERS", "SLOTS", "FREE", "BASES", "JOBS", "JOB_UDP", "CREATORS"];
    let mut sizes = unused.map(|name| (name, 1)).to_vec();
    sizes.extend(["JOB_EVENTS", "THREAD_ENDS", "CGROUP_EVENTS", "MOVES"].map(|name| (name, PAGE)));
    sizes.extend([("USAGE", number(MAX_CGROUPS)), ("USAGE_WATCHED", number(MAX_CGROUPS * MAX_TREES))]);
    sizes
}

/// Links the program to each tree.
fn link(program: RawFd, roots: Vec<Root>) -> Result<Vec<UsageTree>, Unavailable> {
    let mut trees = Vec::new();
    for Root { root, hierarchy, v2_io, io, every } in roots {
        let link = File::open(&root)
            .and_then(|directory| iterators::link_tree(program, &directory))
            .map_err(|error| failed(&format!("cannot iterate over {}", root.display()), &error))?;
        trees.push(UsageTree { root, hierarchy, link, v2_io, io, every });
    }
    Ok(trees)
}

fn failed(what: &str, error: &io::Error) -> Unavailable {
    Unavailable::new(Reason::of(error), format!("{what}: {error}"))
}

/// The key of a cgroup with this inode number.
fn key(tree: usize, inode: u64) -> u64 {
    inode | u64::try_from(tree).unwrap_or(0) << TREE_SHIFT
}

/// A tree that has one of the controllers, before it is linked.
struct Root {
    root: PathBuf,
    hierarchy: u64,
    v2_io: bool,
    io: bool,
    every: u64,
}

/// The trees with the controllers memory, cpu and io. A controller is in one tree.
fn roots(cgroupfs: &Path) -> Vec<Root> {
    let trees = Trees::find(cgroupfs).ok();
    let v2 = trees.as_ref().and_then(|trees| trees.root(hierarchy::V2));
    let controllers = v2.and_then(|root| fs::read_to_string(root.join("cgroup.controllers")).ok());
    let in_v2 = |name: &str| {
        controllers.as_ref().is_some_and(|controllers| controllers.split_whitespace().any(|other| other == name))
    };
    let mut all: Vec<Root> = Vec::new();
    for (v2_name, v1_name) in [("memory", "memory"), ("io", "blkio"), ("cpu", "cpu")] {
        // Without the controller memory, the next one says in each pass whether a container exists.
        let every = match v2_name {
            _ if all.is_empty() => 1,
            "io" => DEVICE_PASSES,
            _ => LIMIT_PASSES,
        };
        let v1 = || {
            let of_cpu = || trees.as_ref()?.root(hierarchy::V1_CPU).map(Path::to_owned);
            let root = if v1_name == "cpu" { of_cpu()? } else { cgroupfs.join(v1_name) };
            root.join("tasks").exists().then_some(Root {
                root,
                hierarchy: hierarchy::V1_CPU,
                v2_io: false,
                io: v2_name == "io",
                every,
            })
        };
        let found = match v2 {
            Some(root) if in_v2(v2_name) => {
                // The bytes change at any time.
                let every = if in_v2("io") { 1 } else { every };
                let io = in_v2("io");
                Some(Root { root: root.to_owned(), hierarchy: hierarchy::V2, v2_io: io, io, every })
            }
            _ => v1(),
        };
        all.extend(found.filter(|found| all.iter().all(|other| other.root != found.root)));
    }
    all
}

/// The file that flushes the block I/O of a path and of all cgroups with the same first component:
/// the root's file flushes nothing (block/blk-cgroup.c, blkcg_print_stat).
fn flush_file(files: &mut Vec<Option<FlushFile>>, root: &Path, path: &str) -> Option<usize> {
    let top = path.split('/').next().unwrap_or(path);
    // The file of a removed cgroup can no longer be read, and a new one may have its path.
    let flushes = |known: &FlushFile| known.top == top && known.file.read_at(&mut [0; 16], 0).is_ok();
    let known = files.iter().position(|file| file.as_ref().is_some_and(flushes));
    let index = match known {
        Some(index) => index,
        None => {
            let file = File::open(root.join(top).join("io.stat")).ok()?;
            let file = Some(FlushFile { top: top.to_owned(), file, containers: 0 });
            if let Some(index) = files.iter().position(Option::is_none) {
                files[index] = file;
                index
            } else {
                files.push(file);
                files.len() - 1
            }
        }
    };
    files[index].as_mut()?.containers += 1;
    Some(index)
}

#[cfg(test)]
mod tests {
    use probe_ebpf::Field;

    use super::*;

    /// Each counter with its setting and fields, and whether the usage of a cgroup contains it.
    type Counter = (&'static str, &'static [Field], fn(&ContainerUsage) -> bool);

    const COUNTERS: [Counter; 4] = [
        ("READS_MEMORY", &[Field::CgroupMemory, Field::MemcgUsage, Field::MemcgMax], |usage| usage.memory.is_some()),
        ("READS_INACTIVE", &[Field::MemcgVmstats, Field::VmstatsInactive], |usage| {
            usage.memory.is_some_and(|memory| memory.inactive.is_some())
        }),
        ("READS_CPU_LIMIT", &[Field::CgroupCpu, Field::TaskGroupQuota, Field::TaskGroupPeriod], |usage| {
            usage.cpu_limit.is_some()
        }),
        ("READS_DEVICES", &[Field::CgroupIo, Field::BlkcgDevices], |usage| usage.block != BlockUsage::Unknown),
    ];

    /// A cgroup in each tree.
    fn cgroups(name: &str) -> Vec<testkit::cgroup::Cgroup> {
        let roots = roots(Path::new("/sys/fs/cgroup"));
        roots.iter().filter_map(|root| testkit::cgroup::Cgroup::create(&root.root, name).ok()).collect()
    }

    #[test]
    fn counter_that_the_kernel_lacks_leaves_the_others() {
        testkit::requires!(root);
        let name = testkit::fixture::unique("lacks");
        let cgroups = cgroups(&name);
        let usage_without = |lacking: Option<&Counter>| {
            let resolve = |btf: &Btf<'_>| {
                let mut layout = offsets::usage(btf)?;
                if let Some((setting, fields, _)) = lacking {
                    layout.fields.retain(|(field, _)| !fields.contains(field));
                    layout.settings.iter_mut().filter(|(name, _)| name == setting).for_each(|(_, value)| *value = 0);
                }
                Ok(layout)
            };
            let mut iterator = UsageIterator::load_with(Path::new("/sys/fs/cgroup"), resolve)?;
            let watched = iterator.watch(|_| Some(&name)).unwrap();
            assert_eq!(watched.complete, cgroups.len() == iterator.trees.len());
            iterator.read(true).unwrap();
            Ok::<_, Unavailable>(iterator.usage(&watched))
        };
        let all = testkit::or_skip!(usage_without(None));
        for counter in &COUNTERS {
            let usage = usage_without(Some(counter)).unwrap();
            for (name, _, contains) in &COUNTERS {
                let gone = *name == counter.0 || counter.0 == "READS_MEMORY" && *name == "READS_INACTIVE";
                assert_eq!(contains(&usage), contains(&all) && !gone, "{name} without {}: {usage:?}", counter.0);
            }
        }
    }

    #[test]
    fn rows_are_used_again_and_start_empty() {
        testkit::requires!(root);
        let (first, second) = (testkit::fixture::unique("row"), testkit::fixture::unique("row"));
        let mut iterator = testkit::or_skip!(UsageIterator::load(Path::new("/sys/fs/cgroup")));
        let cgroups = [cgroups(&first), cgroups(&second)];
        let watched = iterator.watch(|_| Some(&first)).unwrap();
        let row = watched.row;
        iterator.read(false).unwrap();
        let usage = iterator.usage(&watched);
        assert_ne!(usage, ContainerUsage::default());
        iterator.unwatch(watched);
        let watched = iterator.watch(|_| Some(&second)).unwrap();
        assert_eq!((watched.row, iterator.usage(&watched)), (row, ContainerUsage::default()));
        iterator.read(false).unwrap();
        assert_ne!(iterator.usage(&watched), ContainerUsage::default());
        drop(cgroups);
        iterator.read(false).unwrap();
        assert_eq!(iterator.usage(&watched), ContainerUsage::default(), "of a removed cgroup");
        assert!(iterator.watch(|_| Some(&second)).is_none());
    }

    /// It had values only in the passes over its own trees, and was watched again each time.
    #[test]
    fn a_cgroup_that_is_not_in_the_first_tree_is_left_to_its_files() {
        testkit::requires!(root);
        let mut iterator = testkit::or_skip!(UsageIterator::load(Path::new("/sys/fs/cgroup")));
        let name = testkit::fixture::unique("other");
        let others = iterator.trees[1..].iter();
        let _others: Vec<_> = others.map(|tree| testkit::cgroup::Cgroup::create(&tree.root, &name).unwrap()).collect();
        assert!(iterator.watch(|_| Some(&name)).is_none());
        assert_eq!(iterator.next, ROOT_ROW + 1, "no row is taken");
    }

    #[test]
    fn rows_beyond_the_first_mapping_are_read() {
        testkit::requires!(root);
        let mut iterator = testkit::or_skip!(UsageIterator::load(Path::new("/sys/fs/cgroup")));
        let name = testkit::fixture::unique("many");
        let _cgroups = cgroups(&name);
        let filler = usize::try_from(iterator.next).unwrap()..FIRST_ROWS;
        let rows: Vec<u32> = filler.map(|_| iterator.take_row().unwrap()).collect();
        let watched = iterator.watch(|_| Some(&name)).unwrap();
        assert_eq!((usize::try_from(watched.row).unwrap(), iterator.mapped), (FIRST_ROWS, 2 * FIRST_ROWS), "{rows:?}");
        iterator.read(false).unwrap();
        assert_ne!(iterator.usage(&watched), ContainerUsage::default());
    }
}
