//! Temporary cgroups for the demo, the tests and the benchmarks.

use std::{
    fs,
    io::{self, Write as _},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::wait::{Deadline, eventually_ok};

/// The mount point of cgroup v2, on pure and on hybrid hosts.
#[must_use]
pub fn v2() -> Option<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .map(PathBuf::from)
        .find(|dir| dir.join("cgroup.controllers").exists())
}

/// The mount point of cgroup v1 with the cpu controller, if it is mounted.
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
    /// Creates the cgroup.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(tree: &Path, name: &str) -> Result<Self> {
        let dir = tree.join(name);
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Makes `command` start in this cgroup, after a short sleep.
    ///
    /// The sleep ends the time slice before the move: the probe charges the slice in which a task
    /// moves to the new cgroup, the kernel only the part after its last update (`update_curr` after
    /// `css_set_move_task`, 6.18 kernel/cgroup/cgroup.c). Tests compare the two.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn enter(&self, command: &mut Command) -> Result<()> {
        let procs = fs::OpenOptions::new().write(true).open(self.dir.join("cgroup.procs"))?;
        // SAFETY: a sleep and a write of a literal to a descriptor that was opened before the fork:
        // both are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                std::thread::sleep(Duration::from_micros(1));
                (&procs).write_all(b"0")
            });
        }
        Ok(())
    }

    /// Runs a process that starts in this cgroup and ends immediately.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn run_nothing(&self) -> Result<()> {
        let child = self.fork_into(|| {})?;
        // SAFETY: a child of this process, which nothing else waits for.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        Ok(())
    }

    /// Runs `job` in a child process that starts in this cgroup: `clone3` with `CLONE_INTO_CGROUP`
    /// (Linux 5.7). `job` may only do what is allowed between fork and exec. Returns the process
    /// id, which the caller must wait for.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn fork_into(&self, job: impl FnOnce()) -> Result<libc::pid_t> {
        const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
        let dir = fs::File::open(&self.dir)?;
        let mut arguments = [0u64; 11];
        arguments[0] = CLONE_INTO_CGROUP;
        arguments[4] = u64::try_from(libc::SIGCHLD)?;
        arguments[10] = u64::try_from(dir.as_raw_fd())?;
        // SAFETY: the arguments are of the stated size; the child does what the caller promised.
        let child = unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) };
        if child == 0 {
            job();
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(0) };
        }
        if child < 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("clone3 into {}", self.dir.display()));
        }
        Ok(libc::pid_t::try_from(child)?)
    }

    /// Freezes all processes of the cgroup, and waits until none runs. For cgroup v2 only.
    ///
    /// # Errors
    /// When the kernel refuses, or a process does not freeze.
    pub fn freeze(&self) -> Result<()> {
        fs::write(self.dir.join("cgroup.freeze"), "1")?;
        let mut deadline = Deadline::after(Duration::from_secs(10));
        let mut last = None;
        loop {
            // A task counts as frozen shortly before it leaves its CPU, so its CPU time must also
            // have stopped.
            let frozen = fs::read_to_string(self.dir.join("cgroup.events"))?.contains("frozen 1");
            let usage = self.usage_us()?;
            if frozen && last == Some(usage) {
                return Ok(());
            }
            if deadline.passed() {
                bail!("{} does not freeze", self.dir.display());
            }
            last = frozen.then_some(usage);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Thaws all processes of the cgroup.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn thaw(&self) -> Result<()> {
        Ok(fs::write(self.dir.join("cgroup.freeze"), "0")?)
    }

    /// CPU time in microseconds, as the kernel counts it. For cgroup v2 only.
    ///
    /// # Errors
    /// When the file does not exist.
    pub fn usage_us(&self) -> Result<u64> {
        usage_us(&self.dir)
    }
}

/// `usage_usec` of `cpu.stat`.
///
/// # Errors
/// When the file does not exist.
pub fn usage_us(dir: &Path) -> Result<u64> {
    let stat = fs::read_to_string(dir.join("cpu.stat"))?;
    let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("no usage_usec")?;
    Ok(usage.parse()?)
}

/// Waits until a v2 cgroup has used `seconds` of CPU time.
///
/// # Panics
/// When it makes no progress, or the cgroup is removed.
#[track_caller]
pub fn wait_for_usage(dir: &Path, seconds: f64) {
    let enough = |us: u64| Duration::from_micros(us).as_secs_f64() >= seconds;
    eventually_ok(30.0 + 10.0 * seconds, &format!("{} used {seconds} CPU seconds", dir.display()), || {
        let us = usage_us(dir)?;
        if enough(us) { Ok(()) } else { bail!("{us} microseconds") }
    });
}

/// CPU seconds of this machine since boot without idle time, from `/proc/stat`, which counts
/// hundredths of a second.
///
/// # Panics
/// When /proc is not mounted.
#[must_use]
#[expect(clippy::expect_used, reason = "there is no Linux without it")]
pub fn busy_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").expect("/proc/stat is readable");
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let fields: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq
    [0, 1, 2, 5, 6].iter().filter_map(|at| fields.get(*at)).sum::<f64>() / 100.0
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let mut deadline = Deadline::after(Duration::from_secs(5));
        while let Err(error) = fs::remove_dir(&self.dir) {
            if error.kind() == io::ErrorKind::NotFound || deadline.passed() {
                return;
            }
            // Busy: kill the remaining processes.
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
