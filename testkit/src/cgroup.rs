//! Cgroups of our own, for the demo, the tests and the bench.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Root of the v2 tree, on pure and on hybrid hosts.
#[must_use]
pub fn v2() -> Option<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .map(PathBuf::from)
        .find(|dir| dir.join("cgroup.controllers").exists())
}

/// Root of the v1 tree with the cpu controller, where there is one.
#[must_use]
pub fn v1_cpu() -> Option<PathBuf> {
    ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"]
        .iter()
        .map(PathBuf::from)
        .find(|dir| dir.join("tasks").exists())
}

/// A cgroup that is emptied and removed when this is dropped.
#[derive(Debug)]
pub struct Cgroup {
    /// Its directory.
    pub dir: PathBuf,
}

impl Cgroup {
    /// Makes it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(tree: &Path, name: &str) -> Result<Self> {
        let dir = tree.join(name);
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Lets `command` begin its life in here. It sleeps for a moment first: the slice in which a task moves is charged to the cgroup
    /// in which it ends by the probe, and by the kernel from its last look (`update_curr` after `css_set_move_task`, 6.18
    /// kernel/cgroup/cgroup.c), so what ran before must not be in that slice if the two are to be held against each other.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn enter(&self, command: &mut Command) -> Result<()> {
        let procs = fs::OpenOptions::new().write(true).open(self.dir.join("cgroup.procs"))?;
        // SAFETY: a sleep and a write of a literal to a descriptor that was opened before the fork: both are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                std::thread::sleep(Duration::from_micros(1));
                (&procs).write_all(b"0")
            });
        }
        Ok(())
    }

    /// CPU microseconds of everything that ever ran in here, as the kernel counts them.
    ///
    /// # Errors
    /// When the file is not there: only v2 has it.
    pub fn usage_us(&self) -> Result<u64> {
        usage_us(&self.dir)
    }
}

/// `usage_usec` of `cpu.stat`.
///
/// # Errors
/// When the file is not there.
pub fn usage_us(dir: &Path) -> Result<u64> {
    let stat = fs::read_to_string(dir.join("cpu.stat"))?;
    let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("no usage_usec")?;
    Ok(usage.parse()?)
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(2);
        while let Err(error) = fs::remove_dir(&self.dir) {
            if error.kind() == io::ErrorKind::NotFound || Instant::now() > end {
                return;
            }
            // Busy: whoever is left in it goes.
            for pid in fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default().lines() {
                if let Ok(pid) = pid.parse::<libc::pid_t>() {
                    // SAFETY: a signal to a process that is in a cgroup of ours.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
