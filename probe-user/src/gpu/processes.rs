//! Attribution of GPU processes to cgroups and jobs.
//!
//! The driver identifies processes by pid, and pids are reused. A known process is therefore held
//! by a pidfd, which refers to this process only and signals its exit. Usage of a process that has
//! exited, or whose cgroup is unknown, stays unattributed.

#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    cgroup::CgroupKey,
    containers::{ChargeTarget, ContainerRegistry},
    host::process::stat_number,
    jobs::Jobs,
};

/// Maximum number of tracked processes, each of which uses a file descriptor. Others are looked up
/// each time.
const MAX_TRACKED: usize = 512;
/// Interval at which a process's cgroup is read again, because it may be moved.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);

struct TrackedProcess {
    fd: OwnedFd,
    cgroup: Option<CgroupKey>,
    read: Instant,
    used: bool,
}

/// The workload that a process belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProcessOwner {
    pub(super) charge_target: ChargeTarget,
    pub(super) job: Option<u32>,
}

/// The tracked processes.
pub(super) struct ProcessTable {
    procfs: PathBuf,
    tracked: HashMap<u32, TrackedProcess>,
    /// True in another pid namespace than the host's, whose pids the driver reports.
    in_foreign_pid_namespace: bool,
}

impl ProcessTable {
    pub(super) fn new(procfs: &Path) -> Self {
        Self {
            procfs: procfs.to_owned(),
            tracked: HashMap::new(),
            in_foreign_pid_namespace: crate::host::process::in_other_pid_namespace(),
        }
    }

    /// Whether the driver's pids are meaningless in this pid namespace.
    pub(super) fn in_foreign_pid_namespace(&self) -> bool {
        self.in_foreign_pid_namespace
    }

    /// Removes processes that have exited or were not used since the last call. To be called before
    /// the lookups of a poll.
    pub(super) fn refresh(&mut self) {
        self.tracked.retain(|_, tracked| std::mem::take(&mut tracked.used));
        let (pids, mut fds): (Vec<u32>, Vec<libc::pollfd>) =
            self.tracked.iter().map(|(pid, tracked)| (*pid, pollfd(&tracked.fd))).unzip();
        if poll(&mut fds) {
            for (pid, _) in pids.iter().zip(&fds).filter(|(_, fd)| fd.revents != 0) {
                self.tracked.remove(pid);
            }
        }
    }

    /// The workload of a running process whose cgroup is known. `at_us` is the time of its last
    /// usage (Unix time in microseconds), or 0; a process that was started later is another one.
    pub(super) fn owner(
        &mut self,
        pid: u32,
        at_us: u64,
        registry: &ContainerRegistry,
        jobs: Option<&Jobs>,
    ) -> Option<ProcessOwner> {
        let cgroup = self.cgroup(pid, at_us, registry)?;
        let job = jobs.and_then(|jobs| jobs.job_of_process(pid));
        let charge_target = match job {
            Some((_, Some(own))) => ChargeTarget::Container(own),
            _ => registry.known_charge_target(&cgroup)?,
        };
        Some(ProcessOwner { charge_target, job: job.map(|(number, _)| number) })
    }

    fn cgroup(&mut self, pid: u32, at_us: u64, registry: &ContainerRegistry) -> Option<CgroupKey> {
        if self.in_foreign_pid_namespace || pid == 0 {
            return None;
        }
        let now = Instant::now();
        let process = self.procfs.join(pid.to_string());
        if let Some(tracked) = self.tracked.get_mut(&pid) {
            tracked.used = true;
            if tracked.cgroup.is_none() || now.duration_since(tracked.read) >= REFRESH_INTERVAL {
                (tracked.cgroup, tracked.read) = (registry.cgroup_of(&process), now);
            }
            return tracked.cgroup;
        }
        let fd = match pidfd(pid) {
            // It has exited and was not reaped yet.
            Ok(fd) if poll(&mut [pollfd(&fd)]) => return None,
            Ok(fd) => Some(fd),
            // Before kernel 5.3, or without a free descriptor, procfs must do.
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) && process.exists() => None,
            Err(_) => return None,
        };
        if at_us > 0 && started_after(&process, at_us) {
            return None;
        }
        let cgroup = registry.cgroup_of(&process);
        // It may have exited while its files were read, and its pid may have been reused.
        if fd.as_ref().is_some_and(|fd| poll(&mut [pollfd(fd)])) {
            return None;
        }
        if let Some(fd) = fd.filter(|_| self.tracked.len() < MAX_TRACKED) {
            self.tracked.insert(pid, TrackedProcess { fd, cgroup, read: now, used: true });
        }
        cgroup
    }
}

fn pollfd(fd: &OwnedFd) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }
}

/// Whether one of the processes has exited; `revents` shows which.
fn poll(fds: &mut [libc::pollfd]) -> bool {
    // SAFETY: the length is that of the array, which outlives the call; the call does not block.
    !fds.is_empty() && unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 0) } > 0
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: pidfd_open takes two integers (man 2 pidfd_open).
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match libc::c_int::try_from(fd) {
        // SAFETY: the kernel just returned this descriptor, and nothing else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a process was started after this time, by more than the clocks may differ.
fn started_after(process: &Path, unix_us: u64) -> bool {
    const TOLERANCE_US: i128 = 1_000_000;
    let started = || {
        // The start since the boot.
        let ticks = i128::from(stat_number(&fs::read(process.join("stat")).ok()?, 22)?);
        // SAFETY: sysconf takes an integer and accesses no memory of the caller.
        let hertz = i128::from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1));
        Some(ticks * 1_000_000 / hertz)
    };
    let clock = |clock| {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` is a valid timespec that outlives the call.
        let failed = unsafe { libc::clock_gettime(clock, &raw mut now) } != 0;
        (!failed).then(|| i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000)
    };
    let (Some(started), Some(boot), Some(real)) = (started(), clock(libc::CLOCK_BOOTTIME), clock(libc::CLOCK_REALTIME))
    else {
        return false;
    };
    real - (boot - started) > i128::from(unix_us) + TOLERANCE_US
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now_us() -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::try_from(now.as_micros()).unwrap()
    }

    #[test]
    fn later_start_time_means_another_process() {
        let this = Path::new("/proc/self");
        assert!(!started_after(this, now_us()));
        assert!(started_after(this, now_us() - 7 * 86_400 * 1_000_000));
    }

    #[test]
    fn exit_is_detected_before_process_is_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut processes = ProcessTable::new(Path::new("/proc"));
        let fd = pidfd(child.id()).unwrap();
        let tracked = TrackedProcess { fd, cgroup: None, read: Instant::now(), used: true };
        processes.tracked.insert(child.id(), tracked);
        processes.refresh();
        assert!(processes.tracked.contains_key(&child.id()));
        processes.tracked.get_mut(&child.id()).unwrap().used = true;
        child.kill().unwrap();
        testkit::eventually(10.0, "its exit is detected", || {
            processes.refresh();
            processes.tracked.get_mut(&child.id()).map(|tracked| tracked.used = true).is_none()
        });
        child.wait().unwrap();
        assert_eq!(pidfd(child.id()).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
