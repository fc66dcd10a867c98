//! A Docker engine for the tests: the one that answers, or a daemon that ends with the tests.

use std::{
    fs::File,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use testkit::{
    program::die_with_us,
    shell::{is_root, output, step, target, which},
    wait::Deadline,
};

/// The daemon, where one was started here.
#[derive(Debug)]
pub(super) struct Engine(Option<Child>);

impl Engine {
    /// Starts a daemon unless an engine answers.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn start() -> Result<Self> {
        let answers = || output(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"])).is_ok();
        if which("docker").is_none() {
            bail!("docker is not installed (Debian: apt-get install docker.io)");
        }
        if answers() {
            return Ok(Self(None));
        }
        if !is_root() {
            bail!("none answers, and starting one needs root");
        }
        let dockerd = which("dockerd").context("dockerd is not installed (Debian: apt-get install docker.io)")?;
        let log = target().join("dockerd.log");
        let file = File::create(&log)?;
        let mut command = Command::new(dockerd);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        die_with_us(&mut command);
        let engine = Self(Some(command.spawn()?));
        let mut deadline = Deadline::after(Duration::from_secs(60));
        while !answers() {
            if deadline.passed() {
                bail!("dockerd does not come up; see {}", log.display());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        step("started a Docker engine for the tests");
        Ok(engine)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0
            && let Ok(pid) = libc::pid_t::try_from(child.id())
        {
            // SAFETY: the child was not waited for, so the pid is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
            let _ = child.wait();
        }
    }
}
