//! The cgroup trees of the host: their mount points and the cgroups in them.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use crate::cgroup::{CgroupKey, hierarchy};

/// Maximum number of directories in one scan. A host has hundreds; a runaway program could create
/// any number.
const MAX_DIRECTORIES: usize = 65_536;

/// The cgroup namespace of the host (`PROC_CGROUP_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_NAMESPACE: u64 = 0xEFFF_FFFB;

/// The result of one scan of the trees.
#[derive(Debug, Default)]
pub struct Scan {
    /// Every cgroup found, with its path from the root of its tree.
    pub live: HashMap<CgroupKey, String>,
    /// False when a directory could not be read: a cgroup that is missing in `live` may still
    /// exist.
    pub complete: bool,
}

/// The mounted cgroup trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trees {
    /// Root directory and [`hierarchy`] of each tree.
    roots: Vec<(PathBuf, u64)>,
    /// If the probe runs in its own cgroup namespace: the path of the namespace's root in the whole
    /// tree, which procfs shows as `/`.
    namespace: HashMap<u64, String>,
    whole: bool,
}

impl Trees {
    /// Finds the trees below `cgroupfs`: pure v2 (it contains `cgroup.controllers`), hybrid (it
    /// contains `unified` and `cpu`), or pure v1.
    ///
    /// # Errors
    /// When there is no cgroup tree.
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
            // Only v1 has the file `tasks`.
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
        // On v1 Docker mounts the container's own directory but keeps the host's namespace, where
        // procfs shows whole paths. Paths differ only in a cgroup namespace of the probe's own.
        let own_namespace =
            fs::metadata("/proc/self/ns/cgroup").is_ok_and(|namespace| namespace.ino() != INITIAL_NAMESPACE);
        let namespace = roots
            .iter()
            .filter(|_| own_namespace)
            .filter_map(|(root, hierarchy)| {
                // The mount point of the container's own tree; on a host it is the same directory.
                let own = Path::new("/sys/fs/cgroup").join(root.strip_prefix(cgroupfs).ok()?);
                Some((*hierarchy, path_below(&own, root)?))
            })
            .collect();
        let whole = roots.iter().all(|(root, _)| fs::metadata(root).is_ok_and(|meta| meta.ino() == 1));
        Ok(Self { roots, namespace, whole })
    }

    /// Converts a path from procfs to a path from the root of the whole tree. Procfs shows paths
    /// relative to the root of the reader's cgroup namespace, with `/..` for cgroups outside of it
    /// (`cgroup_path_ns`, kernel/cgroup/cgroup.c).
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

    /// Whether the trees are mounted from their roots, whose inode number is 1 (kernfs). A
    /// container may see a part of a tree only.
    #[must_use]
    pub fn are_whole(&self) -> bool {
        self.whole
    }

    /// The mount point of a tree.
    #[must_use]
    pub fn root(&self, hierarchy: u64) -> Option<&Path> {
        self.roots.iter().find(|(_, of)| *of == hierarchy).map(|(root, _)| &**root)
    }

    /// The same with only one of the trees.
    #[must_use]
    pub fn only(&self, hierarchy: u64) -> Self {
        Self {
            roots: self.roots.iter().filter(|(_, of)| *of == hierarchy).cloned().collect(),
            namespace: self.namespace.clone(),
            whole: self.whole,
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

    /// CPU limit of a cgroup in thousandths of a CPU: `cpu.max` of v2, the quota of v1
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
            // -1 means no limit and does not parse as u64.
            (text("cpu.cfs_quota_us")?.trim().parse().ok()?, text("cpu.cfs_period_us")?.trim().parse().ok()?)
        };
        quota.checked_mul(1000)?.checked_div(period)
    }

    /// The cgroup of a process, by its directory in procfs: its v2 leaf, or its v1 `cpu` cgroup if
    /// its v2 cgroup is the root.
    #[must_use]
    pub fn cgroup_of_process(&self, process: &Path) -> Option<CgroupKey> {
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

    /// Reads all cgroups.
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

/// The path of the directory `own` below `root`. `None` if both are the same directory, or if `own`
/// belongs to another tree (a container without a cgroup mount).
fn path_below(own: &Path, root: &Path) -> Option<String> {
    let (own, top) = (fs::metadata(own).ok()?, fs::metadata(root).ok()?);
    if own.dev() != top.dev() || own.ino() == top.ino() {
        return None;
    }
    let trees = Trees { roots: vec![(root.to_owned(), hierarchy::V2)], namespace: HashMap::new(), whole: false };
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
        // A cgroup that is removed during the scan is skipped with its children.
        let removed =
            |error: &io::Error| error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV);
        let entries = match fs::read_dir(dir) {
            Err(error) if removed(&error) && !path.is_empty() => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = match entry {
                Err(error) if removed(&error) => return Ok(()),
                entry => entry?,
            };
            if !entry.file_type()?.is_dir() {
                continue;
            }
            if self.live.len() >= MAX_DIRECTORIES {
                return Err(io::Error::other("too many cgroups"));
            }
            let path = format!("{path}/{}", entry.file_name().to_string_lossy());
            // A directory counts its subdirectories in its links, so a leaf need not be opened
            // (kernfs does; a file system that does not count reports 1).
            let leaf = entry.metadata().is_ok_and(|meta| meta.nlink() == 2);
            self.live.insert(CgroupKey { id: entry.ino(), hierarchy }, path.clone());
            if !leaf {
                open.push((entry.path(), path));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl Trees {
    /// Whole trees of no host.
    pub(super) fn none() -> Self {
        Self { roots: Vec::new(), namespace: HashMap::new(), whole: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in a container with its own cgroup namespace, the default of Docker on v2 and of
    /// Kubernetes.
    #[test]
    fn a_path_in_a_cgroup_namespace_becomes_a_path_in_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        make(
            dir.path(),
            &["cgroup.controllers", "system.slice/probe.scope/x", "system.slice/cam.scope/x", "init.scope/x"],
        );
        assert_eq!(path_below(dir.path(), dir.path()), None);
        assert_eq!(path_below(Path::new("/proc"), dir.path()), None);
        let own = path_below(&dir.path().join("system.slice/probe.scope"), dir.path()).unwrap();
        assert_eq!(own, "/system.slice/probe.scope");
        let namespace = HashMap::from([(hierarchy::V2, own)]);
        let trees = Trees { roots: vec![(dir.path().to_owned(), hierarchy::V2)], namespace, whole: false };
        for (relative, whole) in [
            ("/", "/system.slice/probe.scope"),
            ("/../cam.scope", "/system.slice/cam.scope"),
            ("/../..", "/"),
            ("/../../init.scope", "/init.scope"),
            ("/below", "/system.slice/probe.scope/below"),
        ] {
            assert_eq!(trees.whole(hierarchy::V2, relative), whole);
        }
        let process = dir.path().join("process");
        fs::create_dir(&process).unwrap();
        fs::write(process.join("cgroup"), "0::/../cam.scope\n").unwrap();
        let id = fs::metadata(dir.path().join("system.slice/cam.scope")).unwrap().ino();
        assert_eq!(trees.cgroup_of_process(&process), Some(CgroupKey { id, hierarchy: hierarchy::V2 }));
    }

    fn make(dir: &Path, files: &[&str]) {
        for file in files {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
    }

    #[test]
    fn v1_v2_and_hybrid_layouts_are_detected() {
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
    fn a_scan_returns_the_paths_of_both_trees_by_inode() {
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
    fn a_scan_of_an_unreadable_tree_is_incomplete() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &["unified/cgroup.controllers"]);
        let trees = Trees::find(dir.path()).unwrap();
        fs::remove_dir_all(dir.path().join("unified")).unwrap();
        assert!(!trees.scan().complete);
    }
}
