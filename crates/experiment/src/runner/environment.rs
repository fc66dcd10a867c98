//! Execution environments: each encoder runs in its own cgroup, so that the probe can attribute
//! energy to it. The runner cannot create cgroups without rights; a delegated subtree, the probe,
//! or a container engine can.

#![allow(unsafe_code)]

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use lease::Lease;

use super::plan::Isolation;

/// Settings for creating execution environments.
#[derive(Clone, Debug, Default)]
pub struct EnvConfig {
    /// Parent cgroup directory; the runner's own cgroup when `None`.
    pub parent: Option<PathBuf>,
    /// Socket of the probe that grants cgroup leases.
    pub socket: PathBuf,
    /// Container image; no containers when `None`.
    pub image: Option<String>,
    /// Path of `docker` or a command-line compatible engine.
    pub engine: PathBuf,
    /// Path of ffmpeg in the image.
    pub ffmpeg: PathBuf,
    /// Additional volumes, `HOST:CONTAINER[:ro]`.
    pub volumes: Vec<String>,
    /// Results directory, which encoders read and write.
    pub dir: PathBuf,
}

/// An execution environment; dropping it removes its cgroup or ends its lease.
#[derive(Debug)]
pub enum ExecutionEnv {
    /// No cgroup of its own.
    None,
    /// A cgroup that the runner created.
    Cgroup(Cgroup),
    /// A cgroup leased from the probe.
    Probe(Lease),
    /// One container per program.
    Container(ContainerEnv),
}

/// Starts each program in its own container.
#[derive(Debug)]
pub struct ContainerEnv {
    config: EnvConfig,
    name_prefix: String,
}

static NEXT_CONTAINER: AtomicU32 = AtomicU32::new(1);

impl EnvConfig {
    /// Creates an environment for `role`. `Auto` takes the first kind that is available.
    ///
    /// # Errors
    /// When none is available: each attempt with what to do.
    pub fn create(&self, isolation: Isolation, role: &str) -> Result<ExecutionEnv, String> {
        let cgroup = || {
            Cgroup::create(self.parent.as_deref(), role)
                .map(ExecutionEnv::Cgroup)
                .map_err(|why| format!("cgroup: {why}"))
        };
        let probe = || {
            Lease::acquire(&self.socket).map(ExecutionEnv::Probe).map_err(|error| {
                format!(
                    "probe: {}: {error}. Start the probe with --scope.socket and --scope.group",
                    self.socket.display()
                )
            })
        };
        let container = || match &self.image {
            Some(_) => {
                let name_prefix = format!("wattcast-run-{}-{role}", std::process::id());
                Ok(ExecutionEnv::Container(ContainerEnv { config: self.clone(), name_prefix }))
            }
            None => Err("container: name an image that contains ffmpeg with --container.image".to_owned()),
        };
        match self.resolve(isolation) {
            Isolation::None => Ok(ExecutionEnv::None),
            Isolation::Cgroup => cgroup(),
            Isolation::Probe => probe(),
            Isolation::Container => container(),
            Isolation::Auto => cgroup().or_else(|first| {
                probe().or_else(|second| container().map_err(|third| [first, second, third].join("\n  ")))
            }),
        }
    }

    /// Replaces `Auto` by `Container` when an image is configured.
    #[must_use]
    pub fn resolve(&self, isolation: Isolation) -> Isolation {
        if isolation == Isolation::Auto && self.image.is_some() { Isolation::Container } else { isolation }
    }
}

impl ExecutionEnv {
    /// True when the probe no longer holds the lease.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Probe(lease) if !lease.is_valid())
    }

    /// Describes the environment for the log and the results.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::None => "no cgroup of its own: energy is that of the whole host".to_owned(),
            Self::Cgroup(cgroup) => format!("the cgroup {}", cgroup.dir.display()),
            Self::Probe(lease) => format!("the probe's scope {}", lease.name),
            Self::Container(env) => {
                format!("containers of {}", env.config.image.as_deref().unwrap_or_default())
            }
        }
    }

    /// A command that runs `program` in this environment. Containers run the ffmpeg of their image
    /// instead.
    ///
    /// # Errors
    /// When the cgroup cannot be opened.
    pub fn command(&self, program: &Path) -> io::Result<(Command, SpawnHandle)> {
        let program = if let Self::Container(env) = self { &env.config.engine } else { program };
        let mut command = Command::new(program);
        // pre_exec hooks run in order; this one must be the first.
        kill_on_parent_exit(&mut command);
        match self {
            Self::None => {}
            Self::Cgroup(cgroup) => cgroup.enter(&mut command)?,
            Self::Probe(lease) => lease.enter(&mut command)?,
            Self::Container(env) => {
                let handle = env.add_arguments(&mut command);
                return Ok((command, handle));
            }
        }
        Ok((command, SpawnHandle::Process))
    }

    /// The names under which the probe reports what runs here: that of the cgroup, or those of the
    /// containers.
    #[must_use]
    pub fn container_names(&self, handles: &[SpawnHandle]) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::Cgroup(cgroup) => vec![cgroup.id.clone()],
            Self::Probe(lease) => vec![lease.name.clone()],
            // A short-lived container appears with its id because the probe could not resolve its
            // name in time.
            Self::Container(_) => handles
                .iter()
                .filter_map(SpawnHandle::container_name)
                .flat_map(|name| {
                    let id = fs::read_to_string(id_file(name)).unwrap_or_default().trim().to_owned();
                    [Some(name.to_owned()), Some(id).filter(|id| !id.is_empty())].into_iter().flatten()
                })
                .collect(),
        }
    }
}

impl ContainerEnv {
    /// Adds the arguments that run ffmpeg in a new container.
    fn add_arguments(&self, command: &mut Command) -> SpawnHandle {
        let EnvConfig { image, engine, ffmpeg, volumes, dir, .. } = &self.config;
        let name = format!("{}-{}", self.name_prefix, NEXT_CONTAINER.fetch_add(1, Ordering::Relaxed));
        let dir = dir.display();
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        command
            .args(["run", "--rm", "--name", &name, "--cidfile"])
            .arg(id_file(&name))
            .args(["--network", "host", "--read-only", "--user"])
            .arg(format!("{user}:{group}"))
            .arg("--volume")
            .arg(format!("{dir}:{dir}"));
        for volume in volumes {
            command.arg("--volume").arg(volume);
        }
        command.args(image).arg(ffmpeg);
        SpawnHandle::Container { engine: engine.clone(), name }
    }
}

/// How to stop a program that was started in an environment.
#[derive(Clone, Debug)]
pub enum SpawnHandle {
    /// The program is a child process.
    Process,
    /// The child process is the engine's client; the program is a child of the engine.
    Container {
        /// Path of the engine.
        engine: PathBuf,
        /// Name of the container.
        name: String,
    },
}

impl SpawnHandle {
    /// Name of the container, if there is one.
    #[must_use]
    pub fn container_name(&self) -> Option<&str> {
        match self {
            Self::Process => None,
            Self::Container { name, .. } => Some(name),
        }
    }

    /// Kills and removes the container, if there is one.
    pub fn remove_container(&self) {
        if let Self::Container { engine, name } = self {
            let _ = fs::remove_file(id_file(name));
            let _ = Command::new(engine)
                .args(["rm", "--force", name])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// The file to which the engine writes a container's id.
fn id_file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{name}.id"))
}

/// Makes the kernel kill the child when the runner exits for any reason, and starts it in its own
/// process group, so that Ctrl-C reaches only the runner. Must be called before other `pre_exec`
/// hooks are added.
pub fn kill_on_parent_exit(command: &mut Command) -> &mut Command {
    let parent = libc::pid_t::try_from(std::process::id()).unwrap_or_default();
    // SAFETY: the hook makes two async-signal-safe system calls with integer arguments.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // A parent that exited before the call sends no signal (prctl(2)).
            if libc::getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
        })
    }
    .process_group(0)
}

/// A cgroup that the runner created. Dropping it kills the processes in it, which can only be
/// descendants of the runner, and removes it.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    id: String,
}

impl Cgroup {
    fn create(parent: Option<&Path>, role: &str) -> Result<Self, String> {
        let parent = match parent {
            Some(dir) => dir.to_owned(),
            None => own_cgroup().ok_or("no cgroup v2 hierarchy is mounted")?,
        };
        // Only empty cgroups are removed: the runner of one that seems gone may be alive in another
        // pid namespace.
        remove_stale(&parent, "wattcast-run-", remove_when_empty);
        let dir = parent.join(format!("wattcast-run-{}-{role}", std::process::id()));
        fs::create_dir(&dir).map_err(|error| {
            format!(
                "{}: {error}. Start the runner in a delegated cgroup: systemd-run --user --scope -p Delegate=yes wattcast-analysis run …",
                dir.display()
            )
        })?;
        let mut this = Self { dir, id: String::new() };
        let failed = |error: io::Error| format!("{}: {error}", this.dir.display());
        // The probe's id of a cgroup without a container; its name would be truncated for deep
        // hierarchies.
        let id = format!("cgroup2:{}", fs::metadata(&this.dir).map_err(failed)?.ino());
        // Check that the runner may move processes into it.
        let mut check = Command::new("/bin/true");
        this.enter(&mut check).map_err(failed)?;
        let moved = check.stdin(Stdio::null()).status();
        moved.map_err(|error| format!("{}: cannot move a process into it: {error}", this.dir.display()))?;
        this.id = id;
        Ok(this)
    }

    fn enter(&self, command: &mut Command) -> io::Result<()> {
        let procs: File = OpenOptions::new().write(true).open(self.dir.join("cgroup.procs"))?;
        // SAFETY: the hook writes a literal to a descriptor that was opened before the fork.
        unsafe {
            command.pre_exec(move || (&procs).write_all(b"0"));
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.dir.join("cgroup.kill"), "1");
        remove_when_empty(&self.dir);
    }
}

/// Removes a cgroup; waits up to 2 s for its last process to exit.
fn remove_when_empty(dir: &Path) {
    for _ in 0..100 {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => thread::sleep(Duration::from_millis(20)),
            _ => return,
        }
    }
}

/// Calls `remove` for each entry of `dir` that a killed runner left: `prefix`, then the id of a
/// process that is gone.
pub(super) fn remove_stale(dir: &Path, prefix: &str, remove: impl Fn(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(prefix)).and_then(|rest| rest.split('-').next());
        let is_gone = |pid: u32| !Path::new("/proc").join(pid.to_string()).exists();
        if pid.and_then(|pid| pid.parse().ok()).is_some_and(is_gone) {
            remove(&entry.path());
        }
    }
}

/// The directory of the runner's own cgroup in the v2 hierarchy.
fn own_cgroup() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let hierarchies = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let root = hierarchies.into_iter().find(|root| root.join("cgroup.controllers").exists())?;
    Some(root.join(path.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_isolation_each_attempt_has_a_remedy() {
        let config = EnvConfig {
            parent: Some(PathBuf::from("/nonexistent")),
            socket: PathBuf::from("/nonexistent/scope.sock"),
            ..EnvConfig::default()
        };
        let why = config.create(Isolation::Auto, "encoder").unwrap_err();
        for word in ["Delegate=yes", "--scope.socket", "--container.image"] {
            assert!(why.contains(word), "{why}");
        }
        assert!(matches!(config.create(Isolation::None, "encoder"), Ok(ExecutionEnv::None)));
    }

    #[test]
    fn each_program_gets_its_own_container_name() {
        let config = EnvConfig {
            image: Some("ffmpeg:7".into()),
            engine: "docker".into(),
            ffmpeg: "ffmpeg".into(),
            dir: "/data".into(),
            volumes: vec!["/usr:/usr:ro".into()],
            ..EnvConfig::default()
        };
        let env = config.create(Isolation::Auto, "encoder").unwrap();
        let (command, handle) = env.command(Path::new("/usr/bin/ffmpeg")).unwrap();
        let line: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let line = line.join(" ");
        assert!(
            line.starts_with("run --rm --name wattcast-run-")
                && line.contains(" --cidfile ")
                && line.ends_with("--volume /data:/data --volume /usr:/usr:ro ffmpeg:7 ffmpeg"),
            "{line}"
        );
        let second = env.command(Path::new("/usr/bin/ffmpeg")).unwrap().1;
        assert_eq!(env.container_names(&[handle, second]).len(), 2);
    }
}
