//! The cgroup trees of this host: where they are mounted, and which cgroups live in them.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use crate::cpu::{CgroupKey, hierarchy};

/// Most directories looked at in one scan; a host has hundreds, a runaway has no end.
const MAX_DIRECTORIES: usize = 65_536;

/// The cgroup namespace of the host (`PROC_CGROUP_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_NAMESPACE: u64 = 0xEFFF_FFFB;

/// What one look at the trees found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Every cgroup that was seen, with its path from the root of its tree.
    pub live: HashMap<CgroupKey, String>,
    /// False when something could not be looked at: what is not in `live` may live all the same.
    pub complete: bool,
}

/// The trees that name workloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trees {
    /// Root directory and [`hierarchy`] of each.
    roots: Vec<(PathBuf, u64)>,
    /// In a cgroup namespace of our own, the path of its root in the whole tree: what procfs calls `/` there.
    namespace: HashMap<u64, String>,
}

impl Trees {
    /// Finds them below `cgroupfs`: pure v2 (`cgroup.controllers` in it), hybrid (`unified` beside `cpu`), or pure v1.
    ///
    /// # Errors
    /// When nothing there is a cgroup tree.
    pub fn find(cgroupfs: &Path) -> io::Result<Self> {
        let mut roots = Vec::new();
        for dir in [cgroupfs.to_owned(), cgroupfs.join("unified")] {
            if dir.join("cgroup.controllers").exists() {
                roots.push((dir, hierarchy::V2));
                break;
            }
        }
        for name in ["cpu", "cpu,cpuacct", "cpuacct,cpu"] {
            let dir = cgroupfs.join(name);
            // `tasks` is a v1 file; v2 has none.
            if dir.join("tasks").exists() {
                roots.push((dir, hierarchy::V1_CPU));
                break;
            }
        }
        if roots.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{}: neither a v2 tree nor a v1 cpu tree is mounted there", cgroupfs.display()),
            ));
        }
        // On v1 Docker mounts a container's own directory in the host's namespace, where procfs shows whole paths: only a namespace of our own changes them.
        let ours = fs::metadata("/proc/self/ns/cgroup").is_ok_and(|namespace| namespace.ino() != INITIAL_NAMESPACE);
        let namespace = roots
            .iter()
            .filter(|_| ours)
            .filter_map(|(root, hierarchy)| {
                // Where the container's own tree is mounted; on a host the two are one.
                let own = Path::new("/sys/fs/cgroup").join(root.strip_prefix(cgroupfs).ok()?);
                Some((*hierarchy, place_of(&own, root)?))
            })
            .collect();
        Ok(Self { roots, namespace })
    }

    /// A path as procfs shows it, from the root of the whole tree. Procfs tells it from the root of the reader's cgroup namespace (`cgroup_path_ns`, kernel/cgroup/cgroup.c),
    /// with `/..` for what is outside.
    fn whole(&self, hierarchy: u64, path: &str) -> String {
        let Some(root) = self.namespace.get(&hierarchy) else { return path.to_owned() };
        let mut parts: Vec<&str> = root.split('/').filter(|part| !part.is_empty()).collect();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if part == ".." {
                parts.pop();
            } else {
                parts.push(part);
            }
        }
        format!("/{}", parts.join("/"))
    }

    /// Where a tree is mounted.
    #[must_use]
    pub fn root(&self, hierarchy: u64) -> Option<&Path> {
        self.roots.iter().find(|(_, of)| *of == hierarchy).map(|(root, _)| &**root)
    }

    /// One of them alone.
    #[must_use]
    pub fn only(&self, hierarchy: u64) -> Self {
        Self {
            roots: self.roots.iter().filter(|(_, of)| *of == hierarchy).cloned().collect(),
            namespace: self.namespace.clone(),
        }
    }

    /// `v2`, `v1`, or `hybrid`.
    #[must_use]
    pub fn layout(&self) -> &'static str {
        match self.roots.as_slice() {
            [(_, hierarchy::V2)] => "v2",
            [(_, _)] => "v1",
            _ => "hybrid",
        }
    }

    /// Thousandths of a CPU that a cgroup may use, where it has a limit: `cpu.max` of v2, the quota of v1
    /// (Documentation/admin-guide/cgroup-v2.rst, scheduler/sched-bwc.rst).
    #[must_use]
    pub fn reserved(&self, key: &CgroupKey, path: &str) -> Option<u64> {
        let (root, _) = self.roots.iter().find(|(_, hierarchy)| *hierarchy == key.hierarchy)?;
        let dir = root.join(path.trim_start_matches('/'));
        let text = |file: &str| fs::read_to_string(dir.join(file)).ok();
        let (quota, period) = if key.hierarchy == hierarchy::V2 {
            let text = text("cpu.max")?;
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?)
        } else {
            // -1 is no limit, and no number of ours.
            (text("cpu.cfs_quota_us")?.trim().parse().ok()?, text("cpu.cfs_period_us")?.trim().parse().ok()?)
        };
        quota.checked_mul(1000)?.checked_div(period)
    }

    /// The workload's cgroup of a process, by its directory in procfs: its v2 leaf, or its v1 `cpu` cgroup when it sits in the v2 root.
    #[must_use]
    pub fn of_process(&self, process: &Path) -> Option<CgroupKey> {
        let text = fs::read_to_string(process.join("cgroup")).ok()?;
        let path = |of: u64| {
            text.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let (controllers, path) = (parts.next()?, parts.next()?);
                let named = controllers.split(',').any(|name| name == "cpu");
                (if of == hierarchy::V2 { controllers.is_empty() } else { named }).then_some(path)
            })
        };
        let mut keys = [hierarchy::V2, hierarchy::V1_CPU].into_iter().filter_map(|hierarchy| {
            let (root, path) = (self.root(hierarchy)?, self.whole(hierarchy, path(hierarchy)?));
            let meta = fs::metadata(root.join(path.trim_start_matches('/'))).ok()?;
            Some((path != "/", CgroupKey { id: meta.ino(), hierarchy }))
        });
        let first = keys.next()?;
        if first.0 {
            return Some(first.1);
        }
        Some(keys.find(|(leaf, _)| *leaf).map_or(first.1, |(_, key)| key))
    }

    /// Every cgroup that lives now.
    #[must_use]
    pub fn scan(&self) -> Scan {
        let mut scan = Scan { live: HashMap::new(), complete: true };
        for (root, hierarchy) in &self.roots {
            match fs::metadata(root) {
                Ok(meta) => {
                    scan.live.insert(CgroupKey { id: meta.ino(), hierarchy: *hierarchy }, "/".to_owned());
                }
                Err(_) => scan.complete = false,
            }
            let mut open = vec![(root.clone(), String::new())];
            while let Some((dir, path)) = open.pop() {
                if scan.children(*hierarchy, &dir, &path, &mut open).is_err() {
                    scan.complete = false;
                }
            }
        }
        scan
    }
}

/// The path below `root` of the directory that is `own`; `None` where they are the same, or `own` is of another tree, as where a container has none.
fn place_of(own: &Path, root: &Path) -> Option<String> {
    let (own, top) = (fs::metadata(own).ok()?, fs::metadata(root).ok()?);
    if own.dev() != top.dev() || own.ino() == top.ino() {
        return None;
    }
    let trees = Trees { roots: vec![(root.to_owned(), hierarchy::V2)], namespace: HashMap::new() };
    trees.scan().live.into_iter().find(|(key, _)| key.id == own.ino()).map(|(_, path)| path)
}

impl Scan {
    fn children(
        &mut self,
        hierarchy: u64,
        dir: &Path,
        path: &str,
        open: &mut Vec<(PathBuf, String)>,
    ) -> io::Result<()> {
        // A cgroup that went while we looked is not there, and neither are its children.
        let went =
            |error: &io::Error| error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV);
        let entries = match fs::read_dir(dir) {
            Err(error) if went(&error) && !path.is_empty() => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = match entry {
                Err(error) if went(&error) => return Ok(()),
                entry => entry?,
            };
            if !entry.file_type()?.is_dir() {
                continue;
            }
            if self.live.len() >= MAX_DIRECTORIES {
                return Err(io::Error::other("too many cgroups"));
            }
            let path = format!("{path}/{}", entry.file_name().to_string_lossy());
            self.live.insert(CgroupKey { id: entry.ino(), hierarchy }, path.clone());
            open.push((entry.path(), path));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in a container with a cgroup namespace of its own, which is the default of Docker on v2 and of Kubernetes.
    #[test]
    fn a_path_from_another_namespace_is_found_in_the_whole_tree() {
        let dir = tempfile::tempdir().unwrap();
        make(
            dir.path(),
            &["cgroup.controllers", "system.slice/probe.scope/x", "system.slice/cam.scope/x", "init.scope/x"],
        );
        assert_eq!(place_of(dir.path(), dir.path()), None);
        assert_eq!(place_of(Path::new("/proc"), dir.path()), None);
        let own = place_of(&dir.path().join("system.slice/probe.scope"), dir.path()).unwrap();
        assert_eq!(own, "/system.slice/probe.scope");
        let namespace = HashMap::from([(hierarchy::V2, own)]);
        let trees = Trees { roots: vec![(dir.path().to_owned(), hierarchy::V2)], namespace };
        for (shown, whole) in [
            ("/", "/system.slice/probe.scope"),
            ("/../cam.scope", "/system.slice/cam.scope"),
            ("/../..", "/"),
            ("/../../init.scope", "/init.scope"),
            ("/below", "/system.slice/probe.scope/below"),
        ] {
            assert_eq!(trees.whole(hierarchy::V2, shown), whole);
        }
        let process = dir.path().join("process");
        fs::create_dir(&process).unwrap();
        fs::write(process.join("cgroup"), "0::/../cam.scope\n").unwrap();
        let id = fs::metadata(dir.path().join("system.slice/cam.scope")).unwrap().ino();
        assert_eq!(trees.of_process(&process), Some(CgroupKey { id, hierarchy: hierarchy::V2 }));
    }

    fn make(dir: &Path, files: &[&str]) {
        for file in files {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
    }

    #[test]
    fn the_three_layouts_are_told_apart() {
        for (files, layout) in [
            (&["cgroup.controllers"][..], "v2"),
            (&["unified/cgroup.controllers", "cpu/tasks", "memory/tasks"][..], "hybrid"),
            (&["cpu,cpuacct/tasks"][..], "v1"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            make(dir.path(), files);
            assert_eq!(Trees::find(dir.path()).unwrap().layout(), layout);
        }
        let why = Trees::find(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(why.contains("/nowhere"), "{why}");
    }

    #[test]
    fn a_scan_gives_paths_of_both_trees_by_inode() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &["unified/cgroup.controllers", "unified/a/b/cgroup.procs", "cpu/tasks", "cpu/a/tasks"]);
        let trees = Trees::find(dir.path()).unwrap();
        let Scan { live: all, complete } = trees.scan();
        assert!(complete);
        let id = |path: &str| fs::metadata(dir.path().join(path)).unwrap().ino();
        let at = |path: &str, hierarchy| all[&CgroupKey { id: id(path), hierarchy }].as_str();
        assert_eq!(at("unified", hierarchy::V2), "/");
        assert_eq!(at("unified/a/b", hierarchy::V2), "/a/b");
        assert_eq!(at("cpu/a", hierarchy::V1_CPU), "/a");
        assert_eq!(all.len(), 5);
    }

    #[test]
    fn a_tree_that_cannot_be_looked_at_is_not_an_empty_tree() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &["unified/cgroup.controllers"]);
        let trees = Trees::find(dir.path()).unwrap();
        fs::remove_dir_all(dir.path().join("unified")).unwrap();
        assert!(!trees.scan().complete);
    }
}
