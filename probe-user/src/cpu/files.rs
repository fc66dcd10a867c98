//! Tier `files`: CPU time from the files of the cgroup trees. No eBPF, no privilege.
//!
//! A v2 cgroup's `cpu.stat` contains the run time of the cgroup and its descendants, summed over
//! all CPUs; a v1 cgroup's `cpuacct.usage_percpu` contains it per CPU. The run time of a cgroup's
//! own tasks is this value minus those of its children. Therefore the run time between a cgroup's
//! last scan and its removal is attributed to its parent, and so is all run time of a cgroup that
//! existed only between two scans.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use probe_ebpf::{CgroupKey, hierarchy};

use super::{
    reader::{CpuPaths, CpuReader, CpuReading, Tier, TierCapabilities},
    totals::{Columns, UsageTotals},
};
use crate::{
    cgroup::tree::{Scan, Trees},
    host::{
        availability::{Reason, Unavailable},
        topology::MAX_CPUS,
    },
};

/// Maximum size of a file: `usage_percpu` of the largest machine has 21 digits per CPU; other files
/// have a few lines.
const MAX_FILE: u64 = 21 * 8192;
/// Enough for the first process of a list, and for the cgroups of a process: one path of 4096 bytes
/// for each hierarchy.
const MAX_LIST: u64 = 64 << 10;

/// The tier that reads the files.
pub struct FilesTier {
    trees: Trees,
    v2: Option<UsageTree>,
    v1: Option<V1Cgroups>,
    /// Directory and format of the run time of all tasks.
    total: (PathBuf, UsageFormat),
    last_total: Columns,
    per_cpu: bool,
    totals: UsageTotals,
}

/// Format of a file with run times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UsageFormat {
    /// `usage_usec N` among other lines, microseconds.
    CpuStat,
    /// Nanoseconds, one number for each CPU.
    UsagePercpu,
}

impl UsageFormat {
    fn file(self) -> &'static str {
        match self {
            Self::CpuStat => "cpu.stat",
            Self::UsagePercpu => "cpuacct.usage_percpu",
        }
    }

    fn read(self, dir: &Path) -> io::Result<Columns> {
        let path = dir.join(self.file());
        let text = read_start(&path, MAX_FILE + 1)?;
        // The last number of a longer file may be cut off.
        let whole = u64::try_from(text.len()).is_ok_and(|length| length <= MAX_FILE);
        whole
            .then(|| self.parse(&text))
            .flatten()
            .ok_or_else(|| io::Error::other(format!("{}: unknown format", path.display())))
    }

    /// Nanoseconds: one number, or one for each of at most [`MAX_CPUS`] CPUs.
    pub(crate) fn parse(self, text: &str) -> Option<Columns> {
        match self {
            Self::CpuStat => {
                let usec =
                    text.lines().find_map(|line| line.strip_prefix("usage_usec "))?.trim().parse::<u64>().ok()?;
                Some(vec![usec.checked_mul(1000)?])
            }
            Self::UsagePercpu => {
                let numbers = text.split_whitespace().take(MAX_CPUS + 1).map(str::parse);
                let all: Columns = numbers.collect::<Result<_, _>>().ok()?;
                (1..=MAX_CPUS).contains(&all.len()).then_some(all)
            }
        }
    }
}

/// The start of a file, at most `max` bytes.
fn read_start(path: &Path, max: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(max).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The run times of one tree.
struct UsageTree {
    root: PathBuf,
    form: UsageFormat,
    cgroups: HashMap<String, CgroupNode>,
    scans: u64,
    /// False when the last scan may have missed cgroups.
    complete: bool,
}

/// One cgroup at the last scan.
struct CgroupNode {
    /// Identity; another cgroup may reuse the path.
    key: CgroupKey,
    /// Values of the file: the cgroup and its descendants.
    usage: Columns,
    /// Run time of the children in excess of the cgroup's own value, because they were read a
    /// moment later.
    excess: Columns,
    scan: u64,
}

impl UsageTree {
    fn new(root: PathBuf, form: UsageFormat) -> Self {
        Self { root, form, cgroups: HashMap::new(), scans: 0, complete: false }
    }

    /// Run time of each cgroup's own tasks since the last scan, without the root; zero at the first
    /// scan. A file that cannot be read now is counted when it can be read again.
    fn advance<'a>(&mut self, scan: &'a Scan, hierarchy: u64) -> Vec<(CgroupKey, &'a str, Columns)> {
        let live = cgroups_of(scan, hierarchy);
        self.scans += 1;
        // After a complete scan, a cgroup that was not known is new, and all its run time counts;
        // otherwise it may have existed for an unknown time.
        let last_was_complete = std::mem::replace(&mut self.complete, scan.complete);
        let mut all = Vec::with_capacity(live.len());
        let mut below: HashMap<&str, Columns> = HashMap::new();
        for (key, path) in live.iter().filter(|(_, path)| *path != "/") {
            let now = match self.form.read(&self.root.join(path.trim_start_matches('/'))) {
                Ok(now) => now,
                // It was removed during the scan, or the two v1 trees differ.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => continue,
                Err(_) => {
                    self.complete = false;
                    if let Some(node) = self.cgroups.get_mut(*path) {
                        node.scan = self.scans;
                    }
                    continue;
                }
            };
            let fresh = || CgroupNode {
                key: *key,
                usage: if last_was_complete { vec![0; now.len()] } else { now.clone() },
                excess: Columns::new(),
                scan: 0,
            };
            let node = self.cgroups.entry((*path).to_owned()).or_insert_with(fresh);
            if node.key != *key {
                *node = fresh();
            }
            node.usage.resize(now.len(), 0);
            let delta: Columns = now.iter().zip(&node.usage).map(|(now, last)| now.saturating_sub(*last)).collect();
            (node.usage, node.scan) = (now, self.scans);
            if let Some((parent, _)) = path.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) {
                let sums = below.entry(parent).or_insert_with(|| vec![0; delta.len()]);
                sums.iter_mut().zip(&delta).for_each(|(sum, ns)| *sum = sum.saturating_add(*ns));
            }
            all.push((*key, *path, delta));
        }
        for (_, path, delta) in &mut all {
            let Some(node) = self.cgroups.get_mut(*path) else { continue };
            node.excess.resize(delta.len(), 0);
            let below = below.remove(*path).unwrap_or_else(|| vec![0; delta.len()]);
            for ((delta, excess), below) in delta.iter_mut().zip(&mut node.excess).zip(below) {
                let children = below.saturating_add(*excess);
                *excess = children.saturating_sub(*delta);
                *delta = delta.saturating_sub(children);
            }
        }
        let scans = self.scans;
        if scan.complete {
            self.cgroups.retain(|_, node| node.scan == scans);
        }
        all
    }
}

/// The v1 cgroups that are charged: those whose tasks are in the v2 root.
pub(super) struct V1Cgroups {
    usage: UsageTree,
    /// Mount point of `cpu`, whose cgroups list their processes.
    cpu: PathBuf,
    procfs: PathBuf,
    /// For each path, whether its processes have a v2 leaf, which is then charged instead.
    covered: HashMap<String, bool>,
    /// True when no v2 tree is mounted.
    v1_only: bool,
}

impl V1Cgroups {
    /// Finds the mounts of v1's `cpu` and `cpuacct`.
    pub(super) fn find(trees: &Trees, paths: &CpuPaths) -> Option<Self> {
        let cpu = trees.root(hierarchy::V1_CPU)?.to_owned();
        let usage = cpuacct(&paths.cgroupfs)?;
        let usage = UsageTree::new(usage, UsageFormat::UsagePercpu);
        Some(Self {
            usage,
            cpu,
            procfs: paths.procfs.clone(),
            covered: HashMap::new(),
            v1_only: trees.root(hierarchy::V2).is_none(),
        })
    }

    /// Run time of their tasks since the last scan, per CPU.
    pub(super) fn advance(&mut self, scan: &Scan) -> Vec<(CgroupKey, Columns)> {
        let delta = self.usage.advance(scan, hierarchy::V1_CPU);
        let mut own = Vec::new();
        let mut covered = HashMap::with_capacity(delta.len());
        for (key, path, delta) in delta {
            // Only cgroups that ran need the lookup.
            let before = self.covered.get(path).copied();
            let ran = delta.iter().any(|ns| *ns > 0);
            let now = if ran || before.is_none() { self.has_leaf(path).or(before) } else { before };
            if let Some(now) = now {
                covered.insert(path.to_owned(), now);
            }
            // Without a process to look at, as in a parent, the run time may already be counted for
            // a v2 cgroup: it goes to the root.
            if now == Some(false) || (now.is_none() && self.v1_only) {
                own.push((key, delta));
            }
        }
        self.covered = covered;
        own
    }

    /// Whether the first process has a v2 leaf; `None` if there is no process.
    fn has_leaf(&self, path: &str) -> Option<bool> {
        let members = read_start(&self.cpu.join(path.trim_start_matches('/')).join("cgroup.procs"), MAX_LIST).ok()?;
        let member = members.lines().next()?;
        let membership = read_start(&self.procfs.join(member).join("cgroup"), MAX_LIST).ok()?;
        let leaf = membership.lines().find_map(|line| line.strip_prefix("0::"));
        Some(leaf.is_some_and(|leaf| leaf != "/"))
    }
}

/// The cgroups of one tree.
fn cgroups_of(scan: &Scan, hierarchy: u64) -> Vec<(CgroupKey, &str)> {
    scan.live.iter().filter(|(key, _)| key.hierarchy == hierarchy).map(|(key, path)| (*key, &**path)).collect()
}

/// The mount point of v1's `cpuacct`, below the cgroup mounts.
fn cpuacct(cgroupfs: &Path) -> Option<PathBuf> {
    let names = ["cpuacct", "cpu,cpuacct", "cpuacct,cpu"];
    names.into_iter().map(|name| cgroupfs.join(name)).find(|dir| dir.join(UsageFormat::UsagePercpu.file()).exists())
}

/// The root cgroup, as the eBPF programs identify it: the v2 root, mounted or not.
pub(super) fn root_key(scan: &Scan) -> CgroupKey {
    let root = scan.live.iter().find(|(key, path)| key.hierarchy == hierarchy::V2 && **path == "/");
    // kernfs numbers a tree starting at its root (fs/kernfs/dir.c, kernfs_create_root).
    root.map_or(CgroupKey { id: 1, hierarchy: hierarchy::V2 }, |(key, _)| *key)
}

impl FilesTier {
    /// Finds the files.
    ///
    /// # Errors
    /// `absent` when no tree is mounted, or its files contain no CPU time.
    pub fn open(paths: &CpuPaths) -> Result<Self, Unavailable> {
        let failed = |error: io::Error| Unavailable::new(Reason::of(&error), format!("{error}"));
        let trees = Trees::find(&paths.cgroupfs).map_err(failed)?;
        // Every v2 cgroup but the root has a type (Documentation/admin-guide/cgroup-v2.rst).
        if let Some(root) = trees.root(hierarchy::V2)
            && root.join("cgroup.type").exists()
        {
            let detail = format!(
                "{} is a cgroup of its own (a private cgroup namespace): the CPU time of other cgroups is not visible. Mount the host's tree and name it \
                 with --path.cgroupfs, or run in the host's cgroup namespace",
                root.display()
            );
            return Err(Unavailable::new(Reason::Absent, detail));
        }
        let v2 = trees.root(hierarchy::V2).map(|root| UsageTree::new(root.to_owned(), UsageFormat::CpuStat));
        let v1 = V1Cgroups::find(&trees, paths);
        let total = match (cpuacct(&paths.cgroupfs), trees.root(hierarchy::V2)) {
            (Some(root), _) => (root, UsageFormat::UsagePercpu),
            (None, Some(root)) => (root.to_owned(), UsageFormat::CpuStat),
            (None, None) => {
                let detail = format!("{}: no cpuacct and no v2 tree is mounted there", paths.cgroupfs.display());
                return Err(Unavailable::new(Reason::Absent, detail));
            }
        };
        let totals = UsageTotals::new(root_key(&trees.scan()));
        let per_cpu = v2.is_none();
        let mut this = Self { trees, v2, v1, total, last_total: Vec::new(), per_cpu, totals };
        this.scan().map_err(failed)?;
        Ok(this)
    }

    fn scan(&mut self) -> io::Result<()> {
        let scan = self.trees.scan();
        let now = self.columns(self.total.1.read(&self.total.0)?);
        let first = self.last_total.is_empty();
        let all: Columns = now.iter().zip(&self.last_total).map(|(now, last)| now.saturating_sub(*last)).collect();
        self.last_total = now;
        let mut rows = Vec::new();
        if let Some(v2) = &mut self.v2 {
            rows.extend(v2.advance(&scan, hierarchy::V2).into_iter().map(|(key, _, delta)| (key, delta)));
        }
        if let Some(v1) = &mut self.v1 {
            let delta = v1.advance(&scan);
            rows.extend(delta.into_iter().map(|(key, delta)| (key, self.columns(delta))));
        }
        if !first {
            self.totals.add(&all, &rows);
        }
        Ok(())
    }

    /// Sums up the CPUs unless all files are per CPU.
    fn columns(&self, columns: Columns) -> Columns {
        if self.per_cpu { columns } else { vec![columns.iter().fold(0, |sum: u64, ns| sum.saturating_add(*ns))] }
    }
}

impl CpuReader for FilesTier {
    fn tier(&self) -> Tier {
        Tier::Files
    }

    fn capabilities(&self) -> TierCapabilities {
        TierCapabilities { cpus: self.per_cpu, siblings: false }
    }

    fn read(&mut self, out: &mut CpuReading) -> io::Result<()> {
        self.scan()?;
        self.totals.fill(out);
        Ok(())
    }

    fn forget(&mut self, key: &CgroupKey) {
        self.totals.forget(key);
    }

    fn detail(&self) -> String {
        let files = match (&self.v2, &self.v1) {
            (Some(_), Some(_)) => "cpu.stat and cpuacct.usage_percpu",
            (Some(_), None) => "cpu.stat",
            (None, _) => "cpuacct.usage_percpu",
        };
        format!("{files} of the cgroup trees")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Nanoseconds by path, from the rows of a reading.
    fn read(files: &mut FilesTier) -> HashMap<String, u64> {
        let scan = files.trees.scan();
        let mut reading = CpuReading::default();
        files.read(&mut reading).unwrap();
        let path = |key: &CgroupKey| format!("{}:{}", key.hierarchy, scan.live.get(key).map_or("?", |path| path));
        reading.rows.iter().map(|(key, row)| (path(key), row.iter().map(|time| time.alone_ns).sum())).collect()
    }

    #[test]
    fn v2_cgroup_is_charged_for_own_tasks_and_its_end_to_parent() {
        let dir = tempfile::tempdir().unwrap();
        let stat =
            |path: &str, us: u64| write(dir.path(), &format!("{path}/cpu.stat"), &format!("usage_usec {us}\nx 1\n"));
        write(dir.path(), "cgroup.controllers", "");
        for (path, us) in [(".", 1000), ("a", 500), ("a/b", 300)] {
            stat(path, us);
        }
        let paths = CpuPaths { cgroupfs: dir.path().to_owned(), procfs: dir.path().join("proc") };
        let mut files = FilesTier::open(&paths).unwrap();
        assert_eq!(files.capabilities(), TierCapabilities { cpus: false, siblings: false });
        // In microseconds: 100 in total, of which 60 in a and below, of which 50 in b; and 7 in c,
        // which is new.
        for (path, us) in [(".", 1107), ("a", 560), ("a/b", 350), ("c", 7)] {
            stat(path, us);
        }
        let expected = [("0:/", 40), ("0:/a", 10), ("0:/a/b", 50), ("0:/c", 7)];
        assert_eq!(read(&mut files), expected.map(|(path, us)| (path.to_owned(), us * 1000)).into());
        // b ran for 20 more and was removed before the next scan.
        fs::remove_dir_all(dir.path().join("a/b")).unwrap();
        stat(".", 1127);
        stat("a", 580);
        let rows = read(&mut files);
        assert_eq!((rows["0:/a"], rows["0:/"]), (30_000, 40_000));
    }

    #[test]
    fn v1_cgroup_counts_only_if_its_tasks_have_no_v2_leaf() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "unified/cgroup.controllers", "");
        write(dir.path(), "cpu/tasks", "");
        for (path, member, leaf) in [("own", "11", "/"), ("covered", "22", "/leaf")] {
            write(dir.path(), &format!("cpu/{path}/cgroup.procs"), &format!("{member}\n"));
            write(dir.path(), &format!("proc/{member}/cgroup"), &format!("5:cpu:/{path}\n0::{leaf}\n"));
        }
        let write_usage = |all: &str, own: &str, covered: &str, leaf: u64| {
            write(dir.path(), "cpuacct/cpuacct.usage_percpu", all);
            write(dir.path(), "cpuacct/own/cpuacct.usage_percpu", own);
            write(dir.path(), "cpuacct/covered/cpuacct.usage_percpu", covered);
            write(dir.path(), "unified/leaf/cpu.stat", &format!("usage_usec {leaf}\n"));
        };
        write_usage("100000 100000", "1000 1000", "5000 5000", 10);
        let paths = CpuPaths { cgroupfs: dir.path().to_owned(), procfs: dir.path().join("proc") };
        let mut files = FilesTier::open(&paths).unwrap();
        write_usage("110000 120000", "3000 2000", "9000 9000", 18);
        let expected = [("0:/", 19_000), ("1:/own", 3_000), ("0:/leaf", 8_000)];
        assert_eq!(read(&mut files), expected.map(|(path, ns)| (path.to_owned(), ns)).into());
    }

    #[test]
    fn v1_alone_is_per_cpu_and_no_tree_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        let paths = CpuPaths { cgroupfs: dir.path().to_owned(), procfs: dir.path().to_owned() };
        let why = FilesTier::open(&paths).err().unwrap();
        assert_eq!(why.reason, Reason::Absent);
        write(dir.path(), "cpu,cpuacct/tasks", "");
        write(dir.path(), "cpu,cpuacct/cpuacct.usage_percpu", "5 6 \n");
        assert!(FilesTier::open(&paths).unwrap().capabilities().cpus);
    }

    #[test]
    fn unknown_file_format_is_refused() {
        for text in ["", "usage_usec", "usage_usec x", "user_usec 1", "usage_usec 18446744073709551615"] {
            assert_eq!(UsageFormat::CpuStat.parse(text), None, "{text}");
        }
        assert_eq!((UsageFormat::UsagePercpu.parse("1 x"), UsageFormat::UsagePercpu.parse("\n")), (None, None));
        for text in ["1 -2", "18446744073709551616", "1\u{0}2", &*"1 ".repeat(MAX_CPUS + 1)] {
            assert_eq!(UsageFormat::UsagePercpu.parse(text), None, "{text}");
        }
        assert_eq!(UsageFormat::UsagePercpu.parse(&"1 ".repeat(MAX_CPUS)), Some(vec![1; MAX_CPUS]));
    }

    /// A number that is cut off is a smaller number.
    #[test]
    fn file_beyond_the_limit_is_refused_and_not_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let file = |length: usize| write(dir.path(), "cpuacct.usage_percpu", &(" ".repeat(length - 5) + "12345"));
        let limit = usize::try_from(MAX_FILE).unwrap();
        file(limit);
        assert_eq!(UsageFormat::UsagePercpu.read(dir.path()).unwrap(), [12345]);
        file(limit + 1);
        assert!(UsageFormat::UsagePercpu.read(dir.path()).is_err());
    }
}
