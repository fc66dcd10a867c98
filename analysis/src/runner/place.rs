//! Where an encoder runs: a cgroup of its own, so that what it uses can be told from what its generator, its server and everybody else use. We have no rights to make one;
//! a subtree that is delegated to us, the probe, or a container engine has.

use std::{
    cell::RefCell,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use exporter::scope::Scope;

use super::{encode::goes_with_us, plan::Where, tool::Tool};

/// What can be asked for, and how.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// A directory in the cgroup tree that is ours to use, where it is not the one that we are in.
    pub parent: Option<PathBuf>,
    /// Of the probe.
    pub socket: PathBuf,
    /// Of containers; none without it.
    pub image: Option<String>,
    /// `docker`, or what has its command line.
    pub engine: PathBuf,
    /// ffmpeg in the image.
    pub ffmpeg: PathBuf,
    /// More of `HOST:CONTAINER[:ro]`.
    pub volumes: Vec<String>,
    /// What encoders read and write.
    pub dir: PathBuf,
}

/// A place that is ours until this is dropped.
#[derive(Debug)]
pub enum Place {
    /// Nothing of its own.
    None,
    /// A cgroup that we made.
    Cgroup(Cgroup),
    /// One that the probe holds for us.
    Probe(Scope),
    /// A container for each program.
    Container(Containers),
}

/// Containers of one image. Each program is one of its own.
#[derive(Debug)]
pub struct Containers {
    places: Places,
    name: String,
}

static NEXT: AtomicU32 = AtomicU32::new(1);

impl Places {
    /// Makes one of the kind that is wanted, for what is called `role`. With `Auto` the first that can be had; where none can, why not is said for each.
    ///
    /// # Errors
    /// What was tried, and what to do.
    pub fn make(&self, wanted: Where, role: &str) -> Result<Place, String> {
        let cgroup =
            || Cgroup::make(self.parent.as_deref(), role).map(Place::Cgroup).map_err(|why| format!("cgroup: {why}"));
        let probe = || {
            Scope::hold(&self.socket).map(Place::Probe).map_err(|error| {
                format!(
                    "probe: {}: {error}. Start the probe with --scope.socket and --scope.group",
                    self.socket.display()
                )
            })
        };
        let container = || match &self.image {
            Some(_) => {
                let name = format!("wattcast-run-{}-{role}", std::process::id());
                Ok(Place::Container(Containers { places: self.clone(), name }))
            }
            None => Err("container: name an image that has ffmpeg with --container.image".to_owned()),
        };
        match self.meant(wanted) {
            Where::None => Ok(Place::None),
            Where::Cgroup => cgroup(),
            Where::Probe => probe(),
            Where::Container => container(),
            Where::Auto => cgroup().or_else(|first| {
                probe().or_else(|second| container().map_err(|third| [first, second, third].join("\n  ")))
            }),
        }
    }
}

impl Places {
    /// Which place `Auto` is, where that is known before anything is tried.
    #[must_use]
    pub fn meant(&self, wanted: Where) -> Where {
        // Who names an image means it.
        if wanted == Where::Auto && self.image.is_some() { Where::Container } else { wanted }
    }

    /// The ffmpeg in the image.
    ///
    /// # Errors
    /// When the engine does not run it.
    pub fn tool(&self) -> Result<Tool, String> {
        let place = self.make(Where::Container, "asked")?;
        let seats = RefCell::new(Vec::new());
        let tool = Tool::asked(self.ffmpeg.clone(), &|| match place.command(&self.ffmpeg) {
            Ok((command, seat)) => {
                seats.borrow_mut().push(seat);
                command
            }
            Err(_) => Command::new(&self.engine),
        });
        seats.into_inner().iter().for_each(Seat::end);
        tool
    }
}

impl Place {
    /// True where who gave it is not there any more, or not the same.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Probe(scope) if !scope.is_held())
    }

    /// For people.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::None => "no cgroup of its own: the joules are the whole host's".to_owned(),
            Self::Cgroup(cgroup) => format!("the cgroup {}", cgroup.dir.display()),
            Self::Probe(scope) => format!("the probe's scope {}", scope.name),
            Self::Container(all) => {
                format!("containers of {}", all.places.image.as_deref().unwrap_or_default())
            }
        }
    }

    /// A command in this place. `program` is of the host; containers have their own.
    ///
    /// # Errors
    /// When the cgroup cannot be entered.
    pub fn command(&self, program: &Path) -> io::Result<(Command, Seat)> {
        let mut command = Command::new(program);
        goes_with_us(&mut command);
        match self {
            Self::None => Ok((command, Seat::Process)),
            Self::Cgroup(cgroup) => {
                cgroup.enter(&mut command)?;
                Ok((command, Seat::Process))
            }
            Self::Probe(scope) => {
                scope.enter(&mut command)?;
                Ok((command, Seat::Process))
            }
            Self::Container(all) => {
                let name = format!("{}-{}", all.name, NEXT.fetch_add(1, Ordering::Relaxed));
                let mut command = Command::new(&all.places.engine);
                goes_with_us(&mut command);
                let dir = all.places.dir.display();
                // SAFETY: geteuid and getegid take nothing and cannot fail.
                let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
                command
                    .args(["run", "--rm", "--name", &name, "--cidfile"])
                    .arg(id_file(&name))
                    .args(["--network", "host", "--read-only", "--user"])
                    .arg(format!("{user}:{group}"))
                    .arg("--volume")
                    .arg(format!("{dir}:{dir}"));
                for volume in &all.places.volumes {
                    command.arg("--volume").arg(volume);
                }
                command.args(&all.places.image).arg(&all.places.ffmpeg);
                Ok((command, Seat::Container { engine: all.places.engine.clone(), name }))
            }
        }
    }

    /// What the probe calls whom runs here: by the cgroup, or by the containers that were started.
    #[must_use]
    pub fn known_as(&self, seats: &[Seat]) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::Cgroup(cgroup) => vec![cgroup.id.clone()],
            Self::Probe(scope) => vec![scope.name.clone()],
            // One that was short goes by its id: the probe had no time to ask for its name.
            Self::Container(_) => seats
                .iter()
                .filter_map(Seat::container)
                .flat_map(|name| {
                    let id = fs::read_to_string(id_file(name)).unwrap_or_default().trim().to_owned();
                    [Some(name.to_owned()), Some(id).filter(|id| !id.is_empty())].into_iter().flatten()
                })
                .collect(),
        }
    }
}

/// How a program that was started there is ended.
#[derive(Clone, Debug)]
pub enum Seat {
    /// It is our child.
    Process,
    /// Our child is the engine's client; the program is the engine's.
    Container {
        /// `docker`.
        engine: PathBuf,
        /// Its name.
        name: String,
    },
}

impl Seat {
    /// The name of its container.
    #[must_use]
    pub fn container(&self) -> Option<&str> {
        match self {
            Self::Process => None,
            Self::Container { name, .. } => Some(name),
        }
    }

    /// Ends the container, if it is there.
    pub fn end(&self) {
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

/// Where the engine writes a container's id.
fn id_file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{name}.id"))
}

/// A cgroup of ours. It goes with this, and with it all that is still in it: none but our own children's children can be.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    id: String,
}

impl Cgroup {
    fn make(parent: Option<&Path>, role: &str) -> Result<Self, String> {
        let parent = match parent {
            Some(dir) => dir.to_owned(),
            None => own().ok_or("no v2 tree is mounted here")?,
        };
        // Of one that was killed its encoders end with it. Who is of another namespace seems gone, too: nobody is ended here.
        sweep(&parent, "wattcast-run-", remove);
        let dir = parent.join(format!("wattcast-run-{}-{role}", std::process::id()));
        fs::create_dir(&dir).map_err(|error| {
            format!(
                "{}: {error}. Start the runner in a cgroup that is its own: systemd-run --user --scope -p Delegate=yes wattcast-analysis run …",
                dir.display()
            )
        })?;
        let mut this = Self { dir, id: String::new() };
        let said = |error: io::Error| format!("{}: {error}", this.dir.display());
        // The id that the probe gives to plain cgroups; the name of one that lies deep is cut.
        let id = format!("cgroup2:{}", fs::metadata(&this.dir).map_err(said)?.ino());
        // That we may also move somebody there is tried with one that does nothing.
        let mut probe = Command::new("/bin/true");
        this.enter(&mut probe).map_err(said)?;
        let moved = probe.stdin(Stdio::null()).status();
        moved.map_err(|error| format!("{}: nobody can be moved there: {error}", this.dir.display()))?;
        this.id = id;
        Ok(this)
    }

    fn enter(&self, command: &mut Command) -> io::Result<()> {
        let procs: File = OpenOptions::new().write(true).open(self.dir.join("cgroup.procs"))?;
        // SAFETY: one write of a literal to a descriptor that was opened before the fork.
        unsafe {
            command.pre_exec(move || (&procs).write_all(b"0"));
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.dir.join("cgroup.kill"), "1");
        remove(&self.dir);
    }
}

/// Takes a cgroup away, once nobody is in it.
fn remove(dir: &Path) {
    for _ in 0..100 {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => thread::sleep(Duration::from_millis(20)),
            _ => return,
        }
    }
}

/// Calls for what runners left in a directory that were killed: what is called after a process that is no more.
pub(super) fn sweep(dir: &Path, prefix: &str, remove: impl Fn(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix)).and_then(|rest| rest.split('-').next());
        let gone = |pid: u32| !Path::new("/proc").join(pid.to_string()).exists();
        if number.and_then(|number| number.parse().ok()).is_some_and(gone) {
            remove(&entry.path());
        }
    }
}

/// The directory of the v2 cgroup that we are in.
fn own() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let tree = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let root = tree.into_iter().find(|root| root.join("cgroup.controllers").exists())?;
    Some(root.join(path.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_any_place_each_is_said_with_its_remedy() {
        let places = Places {
            parent: Some(PathBuf::from("/nonexistent")),
            socket: PathBuf::from("/nonexistent/scope.sock"),
            ..Places::default()
        };
        let why = places.make(Where::Auto, "encoder").unwrap_err();
        for word in ["Delegate=yes", "--scope.socket", "--container.image"] {
            assert!(why.contains(word), "{why}");
        }
        assert!(matches!(places.make(Where::None, "encoder"), Ok(Place::None)));
    }

    #[test]
    fn a_container_is_a_name_for_each_program_and_the_engine_s_to_end() {
        let places = Places {
            image: Some("ffmpeg:7".into()),
            engine: "docker".into(),
            ffmpeg: "ffmpeg".into(),
            dir: "/data".into(),
            volumes: vec!["/usr:/usr:ro".into()],
            ..Places::default()
        };
        let place = places.make(Where::Auto, "encoder").unwrap();
        let (command, seat) = place.command(Path::new("/usr/bin/ffmpeg")).unwrap();
        let line: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let line = line.join(" ");
        assert!(
            line.starts_with("run --rm --name wattcast-run-")
                && line.contains(" --cidfile ")
                && line.ends_with("--volume /data:/data --volume /usr:/usr:ro ffmpeg:7 ffmpeg"),
            "{line}"
        );
        let second = place.command(Path::new("/usr/bin/ffmpeg")).unwrap().1;
        assert_eq!(place.known_as(&[seat, second]).len(), 2);
    }
}
