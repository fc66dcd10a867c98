//! Thousands of cgroups that look like containers, for measurements of the probe. All of them and
//! their processes are gone when this is dropped, and those of a run that was killed when the next
//! one starts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::stop;
use testkit::{
    cgroup::{self, Cgroup},
    program::kill_on_parent_exit,
    shell::step,
};

/// Where the trees of cgroups are mounted: v2 alone, or v2 next to the v1 controllers that the
/// probe reads.
const MOUNT: &str = "/sys/fs/cgroup";
const TREES: [&str; 5] = ["", "unified", "memory", "blkio", "cpu"];

/// Cgroups below one parent per tree. Fields are dropped in this order.
pub(crate) struct Containers {
    work: Vec<Work>,
    children: Vec<Container>,
    parents: Vec<Cgroup>,
}

/// The cgroups of one container, one per tree; that of v2 is the first.
struct Container(Vec<Cgroup>);

impl Containers {
    /// Containers with a little work.
    pub(crate) const WORKING: usize = 8;

    /// Creates the parents, and removes those of processes that have ended.
    ///
    /// # Errors
    /// Without a v2 tree, and without root.
    pub(crate) fn new(prefix: &str) -> Result<Self> {
        let v2 = cgroup::v2().context("no cgroup v2 tree is mounted")?;
        let others = TREES.map(|tree| Path::new(MOUNT).join(tree));
        let others = others.into_iter().filter(|tree| tree.join("cgroup.procs").exists() && !same_directory(tree, &v2));
        let trees: Vec<PathBuf> = [v2.clone()].into_iter().chain(others).collect();
        let name = format!("{prefix}-{}", std::process::id());
        for tree in &trees {
            remove_left(tree, prefix);
        }
        let parents = trees.iter().map(|tree| Cgroup::create(tree, &name)).collect::<Result<Vec<_>>>()?;
        // On v2 the files of a controller exist where the parent enables it. The kernel refuses
        // what the root does not enable or v1 has; the probe then reads what there is.
        for controller in ["+cpu", "+memory", "+io"] {
            let _ = fs::write(v2.join(&name).join("cgroup.subtree_control"), controller);
        }
        Ok(Self { work: Vec::new(), children: Vec::new(), parents })
    }

    /// Creates cgroups until there are `count` containers, the first of which work.
    ///
    /// # Errors
    /// When the kernel refuses, and after a signal.
    pub(crate) fn grow(&mut self, count: u32) -> Result<()> {
        for number in self.count()..count {
            ensure!(!stop::stopped(), "stopped");
            // As in docker-ID.scope. The first digits differ: labels have only those.
            let name = format!("docker-{number:08x}{number:056x}.scope");
            let cgroups = self.parents.iter().map(|parent| Cgroup::create(&parent.dir, &name));
            self.children.push(Container(cgroups.collect::<Result<_>>()?));
        }
        while self.work.len() < Self::WORKING.min(self.children.len()) {
            self.work.push(Work::start(&self.children[self.work.len()])?);
        }
        Ok(())
    }

    /// Number of containers.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.children.len()).unwrap_or(u32::MAX)
    }

    /// Runs a process that ends at once in every container.
    ///
    /// # Errors
    /// When the kernel refuses, and after a signal.
    pub(crate) fn run_all(&self) -> Result<()> {
        for Container(cgroups) in &self.children {
            ensure!(!stop::stopped(), "stopped");
            cgroups.first().context("a container without a cgroup")?.run_nothing()?;
        }
        Ok(())
    }
}

fn same_directory(one: &Path, other: &Path) -> bool {
    fs::canonicalize(one).ok().zip(fs::canonicalize(other).ok()).is_some_and(|(one, other)| one == other)
}

/// Removes what earlier runs left: the parents of processes that do not exist any more. What cannot
/// be removed costs the measurement little, and stays.
fn remove_left(tree: &Path, prefix: &str) {
    for entry in fs::read_dir(tree).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(prefix)?.strip_prefix('-')?.parse::<u32>().ok());
        let Some(pid) = pid.filter(|pid| !Path::new(&format!("/proc/{pid}")).exists()) else { continue };
        step(format!("removing the cgroups of process {pid}, which has ended"));
        let children = fs::read_dir(entry.path()).into_iter().flatten().flatten();
        for child in children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
            let _ = fs::remove_dir(child.path());
        }
        let _ = fs::remove_dir(entry.path());
    }
}

/// A process with a little work, 10 times per second.
struct Work(Child);

impl Work {
    fn start(container: &Container) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do i=0; while [ $i -lt 500 ]; do i=$((i+1)); done; sleep 0.1; done"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        for cgroup in &container.0 {
            cgroup.enter(&mut command)?;
        }
        kill_on_parent_exit(&mut command);
        Ok(Self(command.spawn().context("cannot start sh")?))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_ended_processes_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let own = format!("left-{}", std::process::id());
        for name in [&*own, "left-4294967295/docker-1.scope", "left-other", "other-4294967295"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        remove_left(dir.path(), "left");
        let mut names: Vec<String> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let mut kept = vec![own, "left-other".to_owned(), "other-4294967295".to_owned()];
        kept.sort();
        assert_eq!(names, kept);
    }
}
