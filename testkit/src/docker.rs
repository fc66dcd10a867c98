//! Containers for the demo, the tests and the bench, on whatever Docker engine answers.
//!
//! Nothing can be counted on to be pulled: the image is empty, and the host's /usr is mounted read-only. What runs is the
//! host's own binary, in a real container with real cgroups.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::shell::{output, which};

/// The empty image.
pub const IMAGE: &str = "wattcast-demo:latest";

/// What a dynamically linked program of the host needs.
pub const MOUNTS: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/alternatives"];

/// A Docker engine that answers.
#[derive(Clone, Debug)]
pub struct Engine {
    docker: PathBuf,
}

impl Engine {
    /// The engine, with the image made.
    ///
    /// # Errors
    /// Why there is none.
    pub fn find() -> Result<Self> {
        let docker = which("docker").context("docker is not in PATH")?;
        output(Command::new(&docker).args(["version", "--format", "{{.Server.Version}}"]))
            .context("no Docker engine answers")?;
        let engine = Self { docker };
        engine.import()?;
        Ok(engine)
    }

    /// An image without a single file, unless an earlier run left it.
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

    /// `docker run` of a program of the host, up to where the program's arguments follow.
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

    /// Runs a docker command quietly; gives what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn call(&self, args: &[&str]) -> Result<String> {
        output(Command::new(&self.docker).args(args))
    }

    /// Ends a container, if it is there.
    pub fn remove(&self, name: &str) {
        let _ = Command::new(&self.docker)
            .args(["rm", "--force", name])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// A container that ends when this is dropped.
#[derive(Debug)]
pub struct Container {
    engine: Engine,
    /// Its name.
    pub name: String,
    /// Its full id.
    pub id: String,
}

impl Container {
    /// Its directory in the v2 tree, where the kernel's own figures are.
    ///
    /// # Errors
    /// When it runs no more, or no v2 tree is mounted.
    pub fn cgroup(&self) -> Result<PathBuf> {
        let pid = self.engine.call(&["inspect", "--format", "{{.State.Pid}}", &self.name])?;
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let path = cgroups.lines().find_map(|line| line.strip_prefix("0::")).context("no v2 cgroup")?;
        let tree = crate::cgroup::v2().context("no cgroup v2 tree is mounted")?;
        Ok(tree.join(path.trim_start_matches('/')))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.engine.remove(&self.name);
    }
}
