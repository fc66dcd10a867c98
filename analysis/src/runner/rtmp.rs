//! The live path: a generator for each stream, nginx's RTMP module, and the encoder between two of its applications. Generator and server have places of their own, so
//! that the encoder alone is charged.

use std::{
    ffi::OsStr,
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    encode::{Running, aside, pause, stopped},
    place::{Place, Places},
    plan::{Axes, Where, short_digest},
    source::{Clip, HOME},
    tool::{Tool, which},
};

/// Where distributions keep the module; a build of one's own may have it inside.
const MODULES: [&str; 2] = ["/usr/lib/nginx/modules/ngx_rtmp_module.so", "/usr/lib64/nginx/modules/ngx_rtmp_module.so"];

/// Everything beside the encoder.
pub struct Studio {
    generators: Place,
    servers: Place,
    _server: Running,
    running: Vec<Running>,
    port: u16,
}

/// Why an encoder's output does not go through; nothing where it does.
#[must_use]
pub fn cannot_carry(encoder: &str) -> Option<String> {
    let carries = encoder.contains("264");
    (!carries).then(|| format!("{encoder}: nginx-rtmp carries H.264 alone; measure it with --mode file"))
}

/// A clip as generators send it: H.264 that is nearly the clip, made before anything is measured.
///
/// # Errors
/// When it cannot be made.
pub fn prepare(clip: &Clip, ffmpeg: &Tool, dir: &Path, stall: Duration) -> Result<PathBuf, String> {
    let file = dir.join(HOME).join(format!("live-{}.flv", short_digest(clip.sha256.as_bytes())));
    if !file.exists() {
        let draft = file.with_extension("part");
        let (source, group) = (dir.join(&clip.file), format!("{:.0}", clip.fps.max(1.0)));
        let how =
            ["-an", "-c:v", "libx264", "-preset", "ultrafast", "-crf", "10", "-bf", "0", "-g", &group, "-f", "flv"];
        let mut args = vec![OsStr::new("-y"), OsStr::new("-i"), source.as_os_str()];
        args.extend(how.map(OsStr::new));
        args.push(draft.as_os_str());
        let made = aside(&ffmpeg.path, &args, stall);
        if stopped() || made.is_err() {
            let _ = fs::remove_file(&draft);
            let why = made.err().unwrap_or_else(|| "stopped".to_owned());
            return Err(format!("the live source cannot be made: {why}"));
        }
        fs::rename(&draft, &file).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(file)
}

impl Studio {
    /// Takes the places and starts the server in its own.
    ///
    /// # Errors
    /// When there are no places, no nginx or no module, or it does not come up within `patience`.
    pub fn open(
        places: &Places,
        wanted: Where,
        nginx: &Path,
        scratch: &Path,
        patience: Duration,
    ) -> Result<Self, String> {
        if matches!(wanted, Where::None) {
            return Err("a live run needs a cgroup for each of generator, server and encoder: --place cgroup, probe or container".to_owned());
        }
        // Containers of an image with ffmpeg have no nginx; it and the generators are the host's then, in cgroups where those can be had.
        let beside = |role: &str| match places.meant(wanted) {
            Where::Container => places
                .make(Where::Cgroup, role)
                .or_else(|first| places.make(Where::Probe, role).map_err(|second| format!("{first}\n  {second}"))),
            wanted => places.make(wanted, role),
        };
        let (generators, servers): (Place, Place) =
            (beside("generator").map_err(|why: String| why)?, beside("server").map_err(|why: String| why)?);
        let program = which(nginx)
            .or_else(|| Some(PathBuf::from("/usr/sbin/nginx")).filter(|path| path.is_file()))
            .ok_or("there is no nginx: install it with its RTMP module (Debian: nginx-light, libnginx-mod-rtmp), or name it with --nginx")?;
        let port = free_port().map_err(|error| format!("no free port: {error}"))?;
        let home = scratch.join("nginx");
        fs::create_dir_all(&home).map_err(|error| format!("{}: {error}", home.display()))?;
        let module = MODULES.into_iter().find(|module| Path::new(module).exists());
        let load = module.map_or_else(String::new, |module| format!("load_module {module};\n"));
        let place = home.display();
        let file = home.join("nginx.conf");
        let text = format!(
            "{load}daemon off;\nmaster_process off;\npid \"{place}/pid\";\nerror_log stderr;\nevents {{}}\n\
             rtmp {{ server {{ listen 127.0.0.1:{port}; application in {{ live on; }} application out {{ live on; }} }} }}\n"
        );
        fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
        let args = ["-c", &file.to_string_lossy(), "-p", &home.to_string_lossy()].map(str::to_owned);
        let mut server =
            Running::start(&servers, &program, &args).map_err(|error| format!("{}: {error}", program.display()))?;
        let end = Instant::now() + patience;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if server.ended().ok().flatten().is_some() || Instant::now() > end {
                return Err(format!("nginx does not serve RTMP: {}", server.said()));
            }
            if !pause(Duration::from_millis(50)) {
                return Err("stopped".to_owned());
            }
        }
        Ok(Self { generators, servers, _server: server, running: Vec::new(), port })
    }

    /// Starts a generator for each stream of a cell, in place of those before; gives what each encoder reads and writes.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn cast(&mut self, axes: &Axes, source: &Path, ffmpeg: &Tool) -> Result<Vec<(String, String)>, String> {
        self.running.clear();
        let mut all = Vec::new();
        for stream in 1..=axes.streams {
            let url = |application: &str| format!("rtmp://127.0.0.1:{}/{application}/{stream}", self.port);
            let source = source.to_string_lossy();
            let args: Vec<String> =
                ["-nostdin", "-hide_banner", "-loglevel", "error", "-re", "-stream_loop", "-1", "-i", &source]
                    .into_iter()
                    .chain(["-c", "copy", "-f", "flv", &url("in")])
                    .map(str::to_owned)
                    .collect();
            let running = Running::start(&self.generators, &ffmpeg.path, &args).map_err(|error| error.to_string())?;
            self.running.push(running);
            all.push((url("in"), url("out")));
        }
        Ok(all)
    }

    /// True where who gave a place is not there any more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.generators.is_lost() || self.servers.is_lost()
    }

    /// Ends the generators.
    pub fn cut(&mut self) {
        self.running.clear();
    }

    /// Whom the probe knows generators and server as.
    #[must_use]
    pub fn beside(&self) -> [(&'static str, Vec<String>); 2] {
        let seats: Vec<_> = self.running.iter().map(|running| running.seat().clone()).collect();
        [("generator", self.generators.known_as(&seats)), ("server", self.servers.known_as(&[]))]
    }

    /// Why a generator no longer sends; nothing where all do.
    pub fn trouble(&mut self) -> Option<String> {
        self.running.iter_mut().find_map(|one| {
            one.ended().ok().flatten()?;
            Some(format!("the generator ended: {}", one.said()))
        })
    }
}

/// A port that nobody has now, below those that the kernel gives to connections: one of these could be somebody's before the server has it.
fn free_port() -> std::io::Result<u16> {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = (0..1000).map(|_| fastrand::u16(20_000..32_000)).find(free);
    port.ok_or_else(|| std::io::ErrorKind::AddrInUse.into())
}
