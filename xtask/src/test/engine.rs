//! A Docker engine for the tests: the running one, or a daemon that ends with the tests.

use std::{
    fs::File,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use testkit::{
    program::kill_on_parent_exit,
    shell::{is_root, output, step, target, which},
    wait::Deadline,
};

/// The daemon, if this process started it.
#[derive(Debug)]
pub(super) struct Engine(Option<Child>);

impl Engine {
    /// Starts a daemon unless an engine is available.
    pub(super) fn start() -> Result<Self> {
        let is_available =
            || output(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"])).is_ok();
        if which("docker").is_none() {
            bail!("docker is not installed (Debian: apt-get install docker.io)");
        }
        if is_available() {
            return Ok(Self(None));
        }
        if !is_root() {
            bail!("no Docker engine is available, and starting one needs root");
        }
        let dockerd = which("dockerd").context("dockerd is not installed (Debian: apt-get install docker.io)")?;
        let log = target().join("dockerd.log");
        let file = File::create(&log)?;
        let mut command = Command::new(dockerd);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        kill_on_parent_exit(&mut command);
        let engine = Self(Some(command.spawn()?));
        let mut deadline = Deadline::after(Duration::from_secs(60));
        while !is_available() {
            if deadline.passed() {
                bail!("dockerd did not start within 60 s; see {}", log.display());
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
