//! Docker containers for the demo, the tests and the benchmarks.
//!
//! No image may be available to pull: the image is empty, and the host's /usr is mounted read-only.
//! A program of the host runs in a container with its own cgroups.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::shell::{output, which};

/// The empty image.
pub const IMAGE: &str = "wattcast-demo:latest";

/// Directories that a dynamically linked program of the host needs.
pub const MOUNTS: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/alternatives"];

/// An available Docker engine.
#[derive(Clone, Debug)]
pub struct Engine {
    docker: PathBuf,
}

impl Engine {
    /// Connects to the engine, and creates the empty image.
    ///
    /// # Errors
    /// With the reason why no engine is available.
    pub fn find() -> Result<Self> {
        let docker = which("docker").context("docker is not in PATH")?;
        output(Command::new(&docker).args(["version", "--format", "{{.Server.Version}}"]))
            .context("no Docker engine is available")?;
        let engine = Self { docker };
        engine.import()?;
        Ok(engine)
    }

    /// Creates an image without files, unless it exists.
    fn import(&self) -> Result<()> {
        if self.call(&["image", "inspect", "--format", "{{.Id}}", IMAGE]).is_ok() {
            return Ok(());
        }
        let archive = Command::new("tar").args(["-cf", "-", "--files-from", "/dev/null"]).output()?.stdout;
        let mut import = Command::new(&self.docker)
            .args(["import", "-", IMAGE])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        import.stdin.take().context("no pipe")?.write_all(&archive)?;
        if !import.wait()?.success() {
            bail!("docker import failed");
        }
        Ok(())
    }

    /// `docker run` of a program of the host; the caller adds the program's arguments.
    #[must_use]
    pub fn run(&self, name: &str, flags: &[&str], program: &Path) -> Command {
        let mut command = Command::new(&self.docker);
        command.args(["run", "--rm", "--name", name, "--read-only"]);
        if !flags.iter().any(|flag| flag.starts_with("--network")) {
            command.args(["--network", "none"]);
        }
        for dir in MOUNTS {
            if Path::new(dir).exists() {
                command.args(["--volume", &format!("{dir}:{dir}:ro")]);
            }
        }
        command.args(flags).arg(IMAGE).arg(program);
        command
    }

    /// Starts a container in the background.
    ///
    /// # Errors
    /// When Docker refuses.
    pub fn start(&self, name: &str, flags: &[&str], program: &Path, args: &[&str]) -> Result<Container> {
        let flags: Vec<&str> = std::iter::once("--detach").chain(flags.iter().copied()).collect();
        let id = output(self.run(name, &flags, program).args(args))?;
        Ok(Container { engine: self.clone(), name: name.to_owned(), id })
    }

    /// Runs a docker command; returns its output.
    ///
    /// # Errors
    /// When it fails.
    pub fn call(&self, args: &[&str]) -> Result<String> {
        output(Command::new(&self.docker).args(args))
    }

    /// Removes a container, if it exists.
    pub fn remove(&self, name: &str) {
        let _ = Command::new(&self.docker)
            .args(["rm", "--force", name])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// A container, which is removed when this is dropped.
#[derive(Debug)]
pub struct Container {
    engine: Engine,
    /// The name.
    pub name: String,
    /// The full id.
    pub id: String,
}

impl Container {
    /// Its cgroup v2 directory, which has the CPU time of the kernel.
    ///
    /// # Errors
    /// When it has ended, or cgroup v2 is not mounted.
    pub fn cgroup(&self) -> Result<PathBuf> {
        let pid = self.engine.call(&["inspect", "--format", "{{.State.Pid}}", &self.name])?;
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let path = cgroups.lines().find_map(|line| line.strip_prefix("0::")).context("no v2 cgroup")?;
        let tree = crate::cgroup::v2().context("no cgroup v2 tree is mounted")?;
        Ok(tree.join(path.trim_start_matches('/')))
    }

    /// Freezes the container. On a busy machine runc gives up before all tasks are frozen ("unable
    /// to freeze") and thaws them again, so this tries until a freeze succeeds.
    pub fn pause(&self) {
        crate::wait::eventually_ok(60.0, "the container is paused", || self.engine.call(&["pause", &self.name]));
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.engine.remove(&self.name);
    }
}
