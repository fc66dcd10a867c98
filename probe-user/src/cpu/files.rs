//! The least tier: what the files of the cgroup trees say. No eBPF, no privilege.
//!
//! A v2 cgroup's `cpu.stat` says what it and all below it ran, on no particular CPU; a v1 cgroup's `cpuacct.usage_percpu` says it
//! CPU by CPU. What a cgroup's own tasks ran is that, less what the cgroups right below it ran. What a cgroup ran between the
//! last look and its end is so its parent's, and one that came and went between two looks is its parent's altogether.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use probe_ebpf::{CgroupKey, hierarchy};

use super::{
    Knows, Places, Reader, Reading, Tier,
    totals::{Columns, Totals},
};
use crate::{
    containers::tree::{Scan, Trees},
    state::{Reason, Unavailable},
};

/// A file of the kernel's that we read is a line or a few; `usage_percpu` of the largest machine has 21 digits for each CPU.
const MAX_FILE: u64 = 21 * 8192;

/// The reader of the files.
pub struct Files {
    trees: Trees,
    v2: Option<Usage>,
    v1: Option<V1>,
    /// Where what all tasks ran is read.
    all: (PathBuf, Form),
    last_all: Columns,
    per_cpu: bool,
    totals: Totals,
}

/// How a file says what was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `usage_usec N` among other lines, microseconds.
    CpuStat,
    /// Nanoseconds, one number for each CPU.
    UsagePercpu,
}

impl Form {
    fn file(self) -> &'static str {
        match self {
            Self::CpuStat => "cpu.stat",
            Self::UsagePercpu => "cpuacct.usage_percpu",
        }
    }

    fn read(self, dir: &Path) -> io::Result<Columns> {
        let path = dir.join(self.file());
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(fs::File::open(&path)?, MAX_FILE), &mut text)?;
        self.parse(&text).ok_or_else(|| io::Error::other(format!("{} says nothing that we know", path.display())))
    }

    fn parse(self, text: &str) -> Option<Columns> {
        match self {
            Self::CpuStat => {
                let usec =
                    text.lines().find_map(|line| line.strip_prefix("usage_usec "))?.trim().parse::<u64>().ok()?;
                Some(vec![usec.checked_mul(1000)?])
            }
            Self::UsagePercpu => {
                let all: Columns = text.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
                (!all.is_empty()).then_some(all)
            }
        }
    }
}

/// The figures of one tree.
struct Usage {
    root: PathBuf,
    form: Form,
    nodes: HashMap<String, Node>,
    looks: u64,
    /// False when the last look may have passed somebody over.
    complete: bool,
}

/// One cgroup at the last look.
struct Node {
    /// Who: another may come by the same path.
    key: CgroupKey,
    /// The file's figures: itself and below.
    usage: Columns,
    /// What the cgroups below were seen to run beyond what it said itself, because they were read a moment later.
    ahead: Columns,
    look: u64,
}

impl Usage {
    fn new(root: PathBuf, form: Form) -> Self {
        Self { root, form, nodes: HashMap::new(), looks: 0, complete: false }
    }

    /// What the own tasks of each cgroup but the root ran since the last look; at the first, nothing. One whose file cannot be read
    /// now is counted when it can.
    fn grown<'a>(&mut self, scan: &'a Scan, hierarchy: u64) -> Vec<(CgroupKey, &'a str, Columns)> {
        let live = of(scan, hierarchy);
        self.looks += 1;
        // Who comes after a look that passed nobody over is new, and counted whole; who else comes was there, for who knows how long.
        let newcomers = std::mem::replace(&mut self.complete, scan.complete);
        let mut all = Vec::with_capacity(live.len());
        let mut below: HashMap<&str, Columns> = HashMap::new();
        for (key, path) in live.iter().filter(|(_, path)| *path != "/") {
            let now = match self.form.read(&self.root.join(path.trim_start_matches('/'))) {
                Ok(now) => now,
                // It went while we looked, or the two trees of v1 differ.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => continue,
                Err(_) => {
                    self.complete = false;
                    if let Some(node) = self.nodes.get_mut(*path) {
                        node.look = self.looks;
                    }
                    continue;
                }
            };
            let fresh = || Node {
                key: *key,
                usage: if newcomers { vec![0; now.len()] } else { now.clone() },
                ahead: Columns::new(),
                look: 0,
            };
            let node = self.nodes.entry((*path).to_owned()).or_insert_with(fresh);
            if node.key != *key {
                *node = fresh();
            }
            node.usage.resize(now.len(), 0);
            let grown: Columns = now.iter().zip(&node.usage).map(|(now, last)| now.saturating_sub(*last)).collect();
            (node.usage, node.look) = (now, self.looks);
            if let Some((parent, _)) = path.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) {
                let sums = below.entry(parent).or_insert_with(|| vec![0; grown.len()]);
                sums.iter_mut().zip(&grown).for_each(|(sum, ns)| *sum = sum.saturating_add(*ns));
            }
            all.push((*key, *path, grown));
        }
        for (_, path, grown) in &mut all {
            let Some(node) = self.nodes.get_mut(*path) else { continue };
            node.ahead.resize(grown.len(), 0);
            let below = below.remove(*path).unwrap_or_else(|| vec![0; grown.len()]);
            for ((grown, ahead), below) in grown.iter_mut().zip(&mut node.ahead).zip(below) {
                let off = below.saturating_add(*ahead);
                *ahead = off.saturating_sub(*grown);
                *grown = grown.saturating_sub(off);
            }
        }
        let looks = self.looks;
        if scan.complete {
            self.nodes.retain(|_, node| node.look == looks);
        }
        all
    }
}

/// The v1 cgroups that are an identity of their own: those whose tasks sit in the v2 root.
pub(super) struct V1 {
    usage: Usage,
    /// Where the members of a `cpu` cgroup are listed, and what a process says of its place in v2.
    cpu: PathBuf,
    procfs: PathBuf,
    /// What was last seen of members: true where they have a v2 leaf, by which they go.
    covered: HashMap<String, bool>,
    /// True where no v2 tree is mounted, by which anybody could go.
    alone: bool,
}

impl V1 {
    /// Where v1's `cpu` and `cpuacct` are mounted.
    pub(super) fn find(trees: &Trees, places: &Places) -> Option<Self> {
        let cpu = trees.root(hierarchy::V1_CPU)?.to_owned();
        let usage = cpuacct(&places.cgroupfs)?;
        let usage = Usage::new(usage, Form::UsagePercpu);
        Some(Self {
            usage,
            cpu,
            procfs: places.procfs.clone(),
            covered: HashMap::new(),
            alone: trees.root(hierarchy::V2).is_none(),
        })
    }

    /// What their tasks ran since the last look, CPU by CPU.
    pub(super) fn grown(&mut self, scan: &Scan) -> Vec<(CgroupKey, Columns)> {
        let grown = self.usage.grown(scan, hierarchy::V1_CPU);
        let mut own = Vec::new();
        let mut covered = HashMap::with_capacity(grown.len());
        for (key, path, grown) in grown {
            // Only who ran is worth asking.
            let before = self.covered.get(path).copied();
            let ran = grown.iter().any(|ns| *ns > 0);
            let now = if ran || before.is_none() { self.has_leaf(path).or(before) } else { before };
            if let Some(now) = now {
                covered.insert(path.to_owned(), now);
            }
            // Where nobody was ever seen in it, as in a parent, its time may be somebody's by another name: it is the root's.
            if now == Some(false) || (now.is_none() && self.alone) {
                own.push((key, grown));
            }
        }
        self.covered = covered;
        own
    }

    /// Whether the first member has a v2 leaf; unknown where there is none.
    fn has_leaf(&self, path: &str) -> Option<bool> {
        let members = fs::read_to_string(self.cpu.join(path.trim_start_matches('/')).join("cgroup.procs")).ok()?;
        let member = members.lines().next()?;
        let places = fs::read_to_string(self.procfs.join(member).join("cgroup")).ok()?;
        let leaf = places.lines().find_map(|line| line.strip_prefix("0::"));
        Some(leaf.is_some_and(|leaf| leaf != "/"))
    }
}

/// The cgroups of one tree.
fn of(scan: &Scan, hierarchy: u64) -> Vec<(CgroupKey, &str)> {
    scan.live.iter().filter(|(key, _)| key.hierarchy == hierarchy).map(|(key, path)| (*key, &**path)).collect()
}

/// Where v1's `cpuacct` is mounted, below the cgroup mounts.
fn cpuacct(cgroupfs: &Path) -> Option<PathBuf> {
    let names = ["cpuacct", "cpu,cpuacct", "cpuacct,cpu"];
    names.into_iter().map(|name| cgroupfs.join(name)).find(|dir| dir.join(Form::UsagePercpu.file()).exists())
}

/// The cgroup above all, as the kernel's programs name it: the v2 root, mounted or not.
pub(super) fn root_key(scan: &Scan) -> CgroupKey {
    let root = scan.live.iter().find(|(key, path)| key.hierarchy == hierarchy::V2 && **path == "/");
    // kernfs numbers a tree from its root on (fs/kernfs/dir.c, kernfs_create_root).
    root.map_or(CgroupKey { id: 1, hierarchy: hierarchy::V2 }, |(key, _)| *key)
}

impl Files {
    /// Finds the files.
    ///
    /// # Errors
    /// `absent` where no tree is mounted, or its files say nothing of CPU time.
    pub fn open(places: &Places) -> Result<Self, Unavailable> {
        let failed = |error: io::Error| Unavailable::new(Reason::of(&error), format!("{error}"));
        let trees = Trees::find(&places.cgroupfs).map_err(failed)?;
        // Every v2 cgroup but the root has a type (Documentation/admin-guide/cgroup-v2.rst).
        if let Some(root) = trees.root(hierarchy::V2)
            && root.join("cgroup.type").exists()
        {
            let what = format!(
                "{} is a cgroup of its own (a private cgroup namespace): what others run is not seen. Mount the host's tree and name it \
                 with --path.cgroupfs, or run in the host's cgroup namespace",
                root.display()
            );
            return Err(Unavailable::new(Reason::Absent, what));
        }
        let v2 = trees.root(hierarchy::V2).map(|root| Usage::new(root.to_owned(), Form::CpuStat));
        let v1 = V1::find(&trees, places);
        let all = match (cpuacct(&places.cgroupfs), trees.root(hierarchy::V2)) {
            (Some(root), _) => (root, Form::UsagePercpu),
            (None, Some(root)) => (root.to_owned(), Form::CpuStat),
            (None, None) => {
                let what = format!("{}: no cpuacct and no v2 tree is mounted there", places.cgroupfs.display());
                return Err(Unavailable::new(Reason::Absent, what));
            }
        };
        let totals = Totals::new(root_key(&trees.scan()));
        let per_cpu = v2.is_none();
        let mut this = Self { trees, v2, v1, all, last_all: Vec::new(), per_cpu, totals };
        this.look().map_err(failed)?;
        Ok(this)
    }

    fn look(&mut self) -> io::Result<()> {
        let scan = self.trees.scan();
        let now = self.columns(self.all.1.read(&self.all.0)?);
        let first = self.last_all.is_empty();
        let all: Columns = now.iter().zip(&self.last_all).map(|(now, last)| now.saturating_sub(*last)).collect();
        self.last_all = now;
        let mut rows = Vec::new();
        if let Some(v2) = &mut self.v2 {
            rows.extend(v2.grown(&scan, hierarchy::V2).into_iter().map(|(key, _, grown)| (key, grown)));
        }
        if let Some(v1) = &mut self.v1 {
            let grown = v1.grown(&scan);
            rows.extend(grown.into_iter().map(|(key, grown)| (key, self.columns(grown))));
        }
        if !first {
            self.totals.add(&all, &rows);
        }
        Ok(())
    }

    /// Where one of the files knows no CPUs, none is told.
    fn columns(&self, columns: Columns) -> Columns {
        if self.per_cpu { columns } else { vec![columns.iter().fold(0, |sum: u64, ns| sum.saturating_add(*ns))] }
    }
}

impl Reader for Files {
    fn tier(&self) -> Tier {
        Tier::Files
    }

    fn knows(&self) -> Knows {
        Knows { cpus: self.per_cpu, siblings: false }
    }

    fn read(&mut self, out: &mut Reading) -> io::Result<()> {
        self.look()?;
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

    /// Nanoseconds by path, of the rows that a reader gives.
    fn read(files: &mut Files) -> HashMap<String, u64> {
        let scan = files.trees.scan();
        let mut reading = Reading::default();
        files.read(&mut reading).unwrap();
        let path = |key: &CgroupKey| format!("{}:{}", key.hierarchy, scan.live.get(key).map_or("?", |path| path));
        reading.rows.iter().map(|(key, row)| (path(key), row.iter().map(|time| time.alone_ns).sum())).collect()
    }

    #[test]
    fn a_v2_cgroup_is_billed_for_its_own_tasks_and_its_end_is_its_parents() {
        let dir = tempfile::tempdir().unwrap();
        let stat =
            |path: &str, us: u64| write(dir.path(), &format!("{path}/cpu.stat"), &format!("usage_usec {us}\nx 1\n"));
        write(dir.path(), "cgroup.controllers", "");
        for (path, us) in [(".", 1000), ("a", 500), ("a/b", 300)] {
            stat(path, us);
        }
        let places = Places { cgroupfs: dir.path().to_owned(), procfs: dir.path().join("proc") };
        let mut files = Files::open(&places).unwrap();
        assert_eq!(files.knows(), Knows { cpus: false, siblings: false });
        // In microseconds: 100 in all, of which a and below 60, of which b 50; and c, which is new, 7.
        for (path, us) in [(".", 1107), ("a", 560), ("a/b", 350), ("c", 7)] {
            stat(path, us);
        }
        let expected = [("0:/", 40), ("0:/a", 10), ("0:/a/b", 50), ("0:/c", 7)];
        assert_eq!(read(&mut files), expected.map(|(path, us)| (path.to_owned(), us * 1000)).into());
        // b ran 20 more and went before anybody looked.
        fs::remove_dir_all(dir.path().join("a/b")).unwrap();
        stat(".", 1127);
        stat("a", 580);
        let rows = read(&mut files);
        assert_eq!((rows["0:/a"], rows["0:/"]), (30_000, 40_000));
    }

    #[test]
    fn a_v1_cgroup_counts_only_where_its_tasks_have_no_v2_leaf() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "unified/cgroup.controllers", "");
        write(dir.path(), "cpu/tasks", "");
        for (path, member, leaf) in [("own", "11", "/"), ("covered", "22", "/leaf")] {
            write(dir.path(), &format!("cpu/{path}/cgroup.procs"), &format!("{member}\n"));
            write(dir.path(), &format!("proc/{member}/cgroup"), &format!("5:cpu:/{path}\n0::{leaf}\n"));
        }
        let look = |all: &str, own: &str, covered: &str, leaf: u64| {
            write(dir.path(), "cpuacct/cpuacct.usage_percpu", all);
            write(dir.path(), "cpuacct/own/cpuacct.usage_percpu", own);
            write(dir.path(), "cpuacct/covered/cpuacct.usage_percpu", covered);
            write(dir.path(), "unified/leaf/cpu.stat", &format!("usage_usec {leaf}\n"));
        };
        look("100000 100000", "1000 1000", "5000 5000", 10);
        let places = Places { cgroupfs: dir.path().to_owned(), procfs: dir.path().join("proc") };
        let mut files = Files::open(&places).unwrap();
        look("110000 120000", "3000 2000", "9000 9000", 18);
        let expected = [("0:/", 19_000), ("1:/own", 3_000), ("0:/leaf", 8_000)];
        assert_eq!(read(&mut files), expected.map(|(path, ns)| (path.to_owned(), ns)).into());
    }

    #[test]
    fn pure_v1_knows_its_cpus_and_nothing_at_all_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { cgroupfs: dir.path().to_owned(), procfs: dir.path().to_owned() };
        let why = Files::open(&places).err().unwrap();
        assert_eq!(why.reason, Reason::Absent);
        write(dir.path(), "cpu,cpuacct/tasks", "");
        write(dir.path(), "cpu,cpuacct/cpuacct.usage_percpu", "5 6 \n");
        assert!(Files::open(&places).unwrap().knows().cpus);
    }

    #[test]
    fn files_of_another_form_are_refused() {
        for text in ["", "usage_usec", "usage_usec x", "user_usec 1", "usage_usec 18446744073709551615"] {
            assert_eq!(Form::CpuStat.parse(text), None, "{text}");
        }
        assert_eq!((Form::UsagePercpu.parse("1 x"), Form::UsagePercpu.parse("\n")), (None, None));
    }
}
