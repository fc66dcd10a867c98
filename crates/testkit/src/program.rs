//! Child processes: programs with a log file, and busy loops.

use std::{
    fs::{self, File},
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    api::Client,
    cgroup::{self, Cgroup},
    shell::output,
    wait::{Deadline, eventually},
};

/// A program that ends when this is dropped, or when this process ends for any reason.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Names the probe's state directory, as systemd does.
const STATE: &str = "STATE_DIRECTORY";

impl Program {
    /// Starts the program with its output in `logs/NAME.log`.
    ///
    /// # Errors
    /// When the log cannot be created, or the program does not start.
    pub fn start(name: &str, command: &mut Command, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        // In its own process group, so that Ctrl-C reaches this process only, which stops the
        // programs in order.
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        kill_on_parent_exit(command);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Like [`Self::start`], for the probe of a test: it keeps its state in `logs/state`, and not
    /// in the machine's directory, which other probes use too.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_state(name: &str, command: &mut Command, logs: &Path) -> Result<Self> {
        Self::start(name, command.env(STATE, logs.join("state")), logs)
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The content of its log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Checks that it runs.
    ///
    /// # Errors
    /// When it has ended, with the end of its log.
    pub fn alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = self.log();
            let lines: Vec<&str> = log.lines().rev().take(8).collect();
            let tail: String = lines.iter().rev().map(|line| format!("\n  {line}")).collect();
            bail!("{} ended ({status}):{tail}", self.name);
        }
        Ok(())
    }

    /// A client for the first listen address in its log.
    ///
    /// # Errors
    /// When it ends first, or logs no address in time.
    pub fn client(&mut self) -> Result<Client> {
        self.client_of(0)
    }

    /// A client for the listen address with this index in its log.
    ///
    /// # Errors
    /// When it ends first, or logs no address in time.
    pub fn client_of(&mut self, index: usize) -> Result<Client> {
        let client = Client::new(self.address(index)?);
        client.wait("/metrics", Duration::from_secs(20), || self.alive())?;
        Ok(client)
    }

    /// The URL of the listen address with this index in its log, without a trailing slash.
    ///
    /// # Errors
    /// When it ends first, or logs no address in time.
    pub fn address(&mut self, index: usize) -> Result<String> {
        let mut deadline = Deadline::after(Duration::from_secs(20));
        loop {
            let log = self.log();
            let address = |line: &'_ str| {
                let (_, rest) = line.split_once("listening on ")?;
                // In logfmt and in JSON the message ends with a quote.
                Some(rest.split('"').next().unwrap_or_default().trim_end_matches('/').to_owned())
            };
            if let Some(url) = log.lines().filter_map(address).nth(index) {
                return Ok(url);
            }
            self.alive()?;
            if deadline.passed() {
                bail!("{} logs no address", self.name);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends SIGTERM, and waits for the end of the program.
    ///
    /// # Errors
    /// When it does not end within five seconds of a [`Deadline`]; it is then killed.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.terminate();
        let mut deadline = Deadline::after(Duration::from_secs(5));
        while !deadline.passed() {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("{} did not end", self.name)
    }

    fn terminate(&mut self) {
        if let Ok(pid) = libc::pid_t::try_from(self.child.id())
            && matches!(self.child.try_wait(), Ok(None))
        {
            // SAFETY: the child was not waited for, so the pid is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.terminate();
        let mut deadline = Deadline::after(Duration::from_secs(5));
        while matches!(self.child.try_wait(), Ok(None)) && !deadline.passed() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child process in its own cgroup; both end when this is dropped.
#[derive(Debug)]
pub struct CgroupProcess {
    child: Child,
    /// Removed after the child has ended.
    _cgroup: Cgroup,
}

impl CgroupProcess {
    /// Creates the cgroup `name` of the v2 tree, and starts `command` in it.
    ///
    /// # Errors
    /// Without a v2 tree, or when the cgroup cannot be created or the command not be started.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        let cgroup = Cgroup::create(&cgroup::v2().context("no cgroup v2 tree is mounted")?, name)?;
        cgroup.enter(command)?;
        kill_on_parent_exit(command);
        Ok(Self { child: command.spawn()?, _cgroup: cgroup })
    }
}

impl Drop for CgroupProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends SIGTERM to the child when this process ends, even by SIGKILL.
pub fn kill_on_parent_exit(command: &mut Command) {
    // SAFETY: prctl is a system call without pointers; it may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
}

/// Starts a program as the first process of a PID namespace, as in a container, sends it SIGTERM
/// while it reads its configuration, and returns its exit code. `args` come before
/// `--config.file`. It needs root.
///
/// # Errors
/// When unshare cannot be started.
///
/// # Panics
/// When it does not read its configuration, or does not end within two seconds of the signal.
pub fn stop_during_start(program: &Path, args: &[&str]) -> Result<Option<i32>> {
    let dir = tempfile::tempdir()?;
    let fifo = dir.path().join("config.toml");
    output(Command::new("mkfifo").arg(&fifo))?;
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child"]).arg(program).args(args).arg("--config.file").arg(&fifo);
    kill_on_parent_exit(&mut command);
    let mut unshare = command.spawn().context("cannot start unshare")?;
    // The program waits for the rest of its configuration while this end of the FIFO is open, which
    // cannot be opened before the program reads.
    let mut config = None;
    eventually(20.0, "the program reads its configuration", || {
        config = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&fifo).ok();
        config.is_some()
    });
    let started = children(unshare.id()).first().and_then(|pid| libc::pid_t::try_from(*pid).ok());
    if let Some(pid) = started {
        // SAFETY: kill takes numbers alone; unshare still waits for the process, which reads.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
    eventually(2.0, "the program ends", || !matches!(unshare.try_wait(), Ok(None)));
    drop(config);
    Ok(unshare.wait()?.code())
}

/// The processes with this parent.
#[must_use]
pub fn children(parent: u32) -> Vec<u32> {
    let child = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse::<u32>().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // After the name in parentheses: state, ppid (man 5 proc_pid_stat).
        let (_, rest) = stat.rsplit_once(')')?;
        (rest.split_whitespace().nth(1)?.parse::<u32>().ok()? == parent).then_some(pid)
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(child).collect()
}

/// Pins the child to a CPU.
pub fn pin(command: &mut Command, cpu: usize) {
    // SAFETY: `pin_thread` may be called between fork and exec.
    unsafe {
        command.pre_exec(move || pin_thread(cpu));
    }
}

/// Pins the calling thread to a CPU. It may be called between fork and exec.
pub(crate) fn pin_thread(cpu: usize) -> std::io::Result<()> {
    // SAFETY: `set` is a local value of the stated size; no other memory is accessed.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        if libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Gives the calling thread the highest normal priority, if the kernel allows it: simulated
/// hardware must not wait for a CPU.
pub fn raise_priority() {
    const HIGHEST: libc::c_int = -20;
    // SAFETY: setpriority takes three numbers; 0 stands for the calling thread (man 2 setpriority,
    // C library/kernel differences).
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, HIGHEST) };
}

/// Gives the child the highest normal priority: for the tools of a measurement, which must not be
/// late, and not for its subject.
pub fn raise_child_priority(command: &mut Command) {
    // SAFETY: setpriority takes only numbers; it may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            raise_priority();
            Ok(())
        });
    }
}

/// CPU seconds of a process: fields 14 and 15 of its stat, in units of 1/100 s (USER_HZ).
#[must_use]
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let times = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().ok());
    Some(times.sum::<Option<f64>>()? / 100.0)
}

/// A child process that keeps a CPU busy, and is killed when this is dropped.
#[derive(Debug)]
pub struct Burner(libc::pid_t);

impl Burner {
    /// Keeps one CPU busy, in the given cgroups.
    ///
    /// # Errors
    /// When it cannot be started there.
    pub fn start(cpu: usize, cgroups: &[&Cgroup]) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
        for cgroup in cgroups {
            cgroup.enter(&mut command)?;
        }
        pin(&mut command, cpu);
        kill_on_parent_exit(&mut command);
        Ok(Self(libc::pid_t::try_from(command.spawn()?.id())?))
    }

    /// Keeps one CPU busy in a process that starts in the cgroup, so that the kernel counts all of
    /// its CPU time there.
    ///
    /// # Errors
    /// When it cannot be started there.
    pub fn start_in(cgroup: &Cgroup, cpu: usize) -> Result<Self> {
        let burn = || {
            // SAFETY: a system call without pointers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
            while pin_thread(cpu).is_ok() {
                for _ in 0..1_000_000 {
                    std::hint::spin_loop();
                }
            }
        };
        Ok(Self(cgroup.fork_into(burn)?))
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.unsigned_abs()
    }

    /// Stops it, so that its CPU time and what others read of it can be compared.
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// Lets it go on after [`Burner::pause`].
    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: no other code waits for this child, so the pid is still its own.
        unsafe { libc::kill(self.0, signal) };
    }

    /// Its CPU time. While it runs, the kernel updates it at its scheduler tick.
    ///
    /// # Panics
    /// When it has ended.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        let mut clock = 0;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: both are valid and outlive the calls.
        let failed = unsafe {
            libc::clock_getcpuclockid(self.0, &raw mut clock) != 0 || libc::clock_gettime(clock, &raw mut time) != 0
        };
        assert!(!failed, "process {} has a clock of its CPU time", self.pid());
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        // SAFETY: no other code waits for this child, so the pid is still its own.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_seconds_come_from_the_process_stat() {
        assert!(cpu_seconds(std::process::id()).is_some_and(|seconds| seconds >= 0.0));
        assert_eq!(cpu_seconds(u32::MAX), None);
    }
}
