//! Who a process of a GPU is: which cgroup's, and which job's.
//!
//! The driver names processes by number, and numbers are used again: a process that was met is held by a pidfd, which stands for it alone
//! and tells its end. One that has ended, or whose cgroup nobody knows, is nobody, and so is what it used.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{containers::Directory, cpu::CgroupKey, jobs::Jobs, ledger::Holder};

/// Processes that are held at once; each costs a descriptor. Those beyond are looked up anew each time.
const MAX_HELD: usize = 512;
/// How often a process's cgroup is read again: it may be moved.
const READ_AGAIN: Duration = Duration::from_secs(30);

struct Held {
    fd: OwnedFd,
    cgroup: Option<CgroupKey>,
    read: Instant,
    asked: bool,
}

/// Who is behind a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) holder: Holder,
    pub(super) job: Option<u32>,
}

/// The processes that were met.
pub(super) struct Processes {
    procfs: PathBuf,
    held: HashMap<u32, Held>,
    /// True where process numbers here are not the host's, which the driver tells.
    elsewhere: bool,
}

impl Processes {
    pub(super) fn new(procfs: &Path) -> Self {
        Self { procfs: procfs.to_owned(), held: HashMap::new(), elsewhere: crate::jobs::pids_are_elsewhere() }
    }

    /// True where the driver's numbers say nothing here.
    pub(super) fn elsewhere(&self) -> bool {
        self.elsewhere
    }

    /// Lets those go that have ended, and those that nobody asked for since the last time. To be called before a round of questions.
    pub(super) fn refresh(&mut self) {
        self.held.retain(|_, held| std::mem::take(&mut held.asked));
        let (pids, mut fds): (Vec<u32>, Vec<libc::pollfd>) =
            self.held.iter().map(|(pid, held)| (*pid, pollfd(&held.fd))).unzip();
        if poll(&mut fds) {
            for (pid, _) in pids.iter().zip(&fds).filter(|(_, fd)| fd.revents != 0) {
                self.held.remove(pid);
            }
        }
    }

    /// Who a process is, if it lives and its cgroup is known. `at_us` is the last moment that it is said to have done something (unix
    /// microseconds), or 0: a process that began after it is another.
    pub(super) fn owner(&mut self, pid: u32, at_us: u64, directory: &Directory, jobs: Option<&Jobs>) -> Option<Owner> {
        let cgroup = self.cgroup(pid, at_us, directory)?;
        let job = jobs.and_then(|jobs| jobs.of_process(pid));
        let holder = match job {
            Some((_, Some(own))) => Holder::Container(own),
            _ => directory.known_holder(&cgroup)?,
        };
        Some(Owner { holder, job: job.map(|(number, _)| number) })
    }

    fn cgroup(&mut self, pid: u32, at_us: u64, directory: &Directory) -> Option<CgroupKey> {
        if self.elsewhere || pid == 0 {
            return None;
        }
        let now = Instant::now();
        let process = self.procfs.join(pid.to_string());
        if let Some(held) = self.held.get_mut(&pid) {
            held.asked = true;
            if held.cgroup.is_none() || now.duration_since(held.read) >= READ_AGAIN {
                (held.cgroup, held.read) = (directory.cgroup_of(&process), now);
            }
            return held.cgroup;
        }
        let fd = match pidfd(pid) {
            // It has ended, and nobody has asked for its exit code yet.
            Ok(fd) if poll(&mut [pollfd(&fd)]) => return None,
            Ok(fd) => Some(fd),
            // A kernel before 5.3, or no descriptor left: then the files must do.
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) && process.exists() => None,
            Err(_) => return None,
        };
        if at_us > 0 && began_after(&process, at_us) {
            return None;
        }
        let cgroup = directory.cgroup_of(&process);
        // It may have ended while its files were read, and another may have its number.
        if fd.as_ref().is_some_and(|fd| poll(&mut [pollfd(fd)])) {
            return None;
        }
        if let Some(fd) = fd.filter(|_| self.held.len() < MAX_HELD) {
            self.held.insert(pid, Held { fd, cgroup, read: now, asked: true });
        }
        cgroup
    }
}

fn pollfd(fd: &OwnedFd) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }
}

/// True when one of the processes has ended; which, stands with it.
fn poll(fds: &mut [libc::pollfd]) -> bool {
    // SAFETY: the array holds as many as is said, and outlives the call, which does not wait.
    !fds.is_empty() && unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 0) } > 0
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: pidfd_open takes two numbers (man 2 pidfd_open).
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match libc::c_int::try_from(fd) {
        // SAFETY: the kernel has just given us this descriptor.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// True where a process began after this moment, by more than clocks may be apart.
fn began_after(process: &Path, unix_us: u64) -> bool {
    const APART_US: i128 = 1_000_000;
    let began = || {
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        // Field 22, counted from after the name, which may hold anything (man 5 proc).
        let ticks: i128 = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
        // SAFETY: sysconf takes a number and touches nothing.
        let hertz = i128::from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1));
        Some(ticks * 1_000_000 / hertz)
    };
    let clock = |clock| {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` is a valid timespec that outlives the call.
        let failed = unsafe { libc::clock_gettime(clock, &raw mut now) } != 0;
        (!failed).then(|| i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000)
    };
    let (Some(began), Some(boot), Some(real)) = (began(), clock(libc::CLOCK_BOOTTIME), clock(libc::CLOCK_REALTIME))
    else {
        return false;
    };
    real - (boot - began) > i128::from(unix_us) + APART_US
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now_us() -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::try_from(now.as_micros()).unwrap()
    }

    #[test]
    fn a_process_that_began_later_is_another() {
        let this = Path::new("/proc/self");
        assert!(!began_after(this, now_us()));
        assert!(began_after(this, now_us() - 7 * 86_400 * 1_000_000));
    }

    #[test]
    fn the_end_of_a_process_is_seen_although_it_is_not_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut processes = Processes::new(Path::new("/proc"));
        let fd = pidfd(child.id()).unwrap();
        let held = Held { fd, cgroup: None, read: Instant::now(), asked: true };
        processes.held.insert(child.id(), held);
        processes.refresh();
        assert!(processes.held.contains_key(&child.id()));
        processes.held.get_mut(&child.id()).unwrap().asked = true;
        child.kill().unwrap();
        testkit::eventually(10.0, "its end is seen", || {
            processes.refresh();
            processes.held.get_mut(&child.id()).map(|held| held.asked = true).is_none()
        });
        child.wait().unwrap();
        assert_eq!(pidfd(child.id()).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
