//! A program of ours as a child process: started, watched, ended with us.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{api::Client, cgroup::Cgroup, wait::Deadline};

/// A program that ends with us, whatever ends us.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts it with its output in `logs/NAME.log`.
    ///
    /// # Errors
    /// When the log cannot be written or the program not started.
    pub fn start(name: &str, command: &mut Command, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        // A group of its own: Ctrl-C is for us, and we end the programs in order.
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        die_with_us(command);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// An error with the end of its log when it has ended.
    ///
    /// # Errors
    /// When it has ended.
    pub fn alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = self.log();
            let lines: Vec<&str> = log.lines().rev().take(8).collect();
            let tail: String = lines.iter().rev().map(|line| format!("\n  {line}")).collect();
            bail!("{} ended ({status}):{tail}", self.name);
        }
        Ok(())
    }

    /// A client for the first address that it says it listens on.
    ///
    /// # Errors
    /// When it ends first, or says nothing.
    pub fn client(&mut self) -> Result<Client> {
        self.client_of(0)
    }

    /// A client for one of the addresses that it says it listens on, in their order.
    ///
    /// # Errors
    /// When it ends first, or says nothing.
    pub fn client_of(&mut self, port: usize) -> Result<Client> {
        let client = Client::new(self.address(port)?);
        client.wait(Duration::from_secs(20), || self.alive())?;
        Ok(client)
    }

    /// The URL of one of the addresses that it says it listens on, without a / at its end.
    ///
    /// # Errors
    /// When it ends first, or says nothing.
    pub fn address(&mut self, port: usize) -> Result<String> {
        let mut deadline = Deadline::after(Duration::from_secs(20));
        loop {
            let log = self.log();
            let address = |line: &'_ str| {
                let (_, rest) = line.split_once("listening on ")?;
                // In logfmt the message ends with a quote, and so does it in JSON.
                Some(rest.split('"').next().unwrap_or_default().trim_end_matches('/').to_owned())
            };
            if let Some(url) = log.lines().filter_map(address).nth(port) {
                return Ok(url);
            }
            self.alive()?;
            if deadline.passed() {
                bail!("{} says no address", self.name);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// When it does not end within five seconds of a [`Deadline`]; it is killed then.
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

/// The child gets SIGTERM when we die, even of SIGKILL.
pub fn die_with_us(command: &mut Command) {
    // SAFETY: prctl is a system call without memory of ours; it may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
}

/// The child runs on one CPU only.
pub fn pin(command: &mut Command, cpu: usize) {
    // SAFETY: what it calls may stand between fork and exec.
    unsafe {
        command.pre_exec(move || stay_on(cpu));
    }
}

/// This thread runs on one CPU only, from now on. It may be called between fork and exec.
pub(crate) fn stay_on(cpu: usize) -> std::io::Result<()> {
    // SAFETY: `set` is a value of this function's own, of the stated size; nothing else is touched.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        if libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// From now on this thread goes before all that have a normal priority, where the kernel allows it:
/// what stands in for hardware does not wait for a CPU.
pub fn urgent() {
    const HIGHEST: libc::c_int = -20;
    // SAFETY: setpriority takes three numbers; 0 stands for the calling thread (man 2 setpriority,
    // C library/kernel differences).
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, HIGHEST) };
}

/// The child is [`urgent`]: for what a test measures with, which must not be late, and not for its
/// subject.
pub fn prefer(command: &mut Command) {
    // SAFETY: setpriority takes numbers alone; it may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            urgent();
            Ok(())
        });
    }
}

/// A child that keeps a CPU busy, and is killed when this is dropped.
#[derive(Debug)]
pub struct Burner(libc::pid_t);

impl Burner {
    /// Burns one CPU until dropped, in the cgroups of `cgroups`.
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
        die_with_us(&mut command);
        Ok(Self(libc::pid_t::try_from(command.spawn()?.id())?))
    }

    /// The same in one cgroup, and never in another: the kernel counts all of its CPU time there.
    ///
    /// # Errors
    /// When it cannot be started there.
    pub fn born_in(cgroup: &Cgroup, cpu: usize) -> Result<Self> {
        let burn = || {
            // SAFETY: a system call without memory of ours.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
            while stay_on(cpu).is_ok() {
                for _ in 0..1_000_000 {
                    std::hint::spin_loop();
                }
            }
        };
        Ok(Self(cgroup.fork_into(burn)?))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.unsigned_abs()
    }

    /// Its CPU time up to this moment, with the time slice that it is in.
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
        // SAFETY: a child of ours that nothing else waits for, so the pid is still its own.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}
