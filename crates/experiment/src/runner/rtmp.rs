//! Live runs: one generator per stream, an RTMP server (nginx or MediaMTX), and encoders that read
//! from one application and write to another. Generators and server have their own environments, so
//! that only the encoder is charged.

use std::{
    ffi::OsStr,
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    environment::{EnvConfig, ExecutionEnv},
    files::make_atomically,
    frame_rate::FrameRate,
    plan::{Axes, Isolation, LiveServer, short_digest},
    process::{Process, run_ffmpeg},
    signals::{interruptible_sleep, stop_requested},
    source::{CLIPS_DIR, Clip},
    tool::{Tool, find_program},
};

/// Where distributions install the module. A custom build may contain it.
const MODULES: [&str; 2] = ["/usr/lib/nginx/modules/ngx_rtmp_module.so", "/usr/lib64/nginx/modules/ngx_rtmp_module.so"];

/// The RTMP server and the generators.
pub struct RtmpServer {
    generator_env: ExecutionEnv,
    server_env: ExecutionEnv,
    _server: Process,
    generators: Vec<Process>,
    port: u16,
}

/// Encodes a clip to nearly lossless H.264 for the generators, before anything is measured.
///
/// # Errors
/// When the file cannot be made, or a stop is requested.
pub fn prepare_live_source(clip: &Clip, ffmpeg: &Tool, dir: &Path, stall: Duration) -> Result<PathBuf, String> {
    let file = dir.join(CLIPS_DIR).join(format!("live-{}.flv", short_digest(clip.sha256.as_bytes())));
    if !file.exists() {
        let (source, group) = (dir.join(&clip.file), FrameRate::of(clip.fps).frames_in(1).to_string());
        let settings =
            ["-an", "-c:v", "libx264", "-preset", "ultrafast", "-crf", "10", "-bf", "0", "-g", &group, "-f", "flv"];
        make_atomically(dir, &file, |draft| {
            let mut args = vec![OsStr::new("-y"), OsStr::new("-i"), source.as_os_str()];
            args.extend(settings.map(OsStr::new));
            args.push(draft.as_os_str());
            let made = run_ffmpeg(&ffmpeg.path, &args, stall);
            let made = if stop_requested() { made.and(Err("stopped".to_owned())) } else { made };
            made.map_err(|why| format!("cannot make the live source: {why}"))
        })?;
    }
    Ok(file)
}

impl RtmpServer {
    /// Creates the environments and starts the server.
    ///
    /// # Errors
    /// When an environment, the server's program or nginx's module is missing, or the server does
    /// not accept connections within `timeout`.
    pub fn start(
        config: &EnvConfig,
        isolation: Isolation,
        server: (LiveServer, &Path),
        scratch: &Path,
        timeout: Duration,
    ) -> Result<Self, String> {
        if matches!(isolation, Isolation::None) {
            return Err("a live run needs a cgroup for each of generator, server and encoder: --place cgroup, probe or container".to_owned());
        }
        // An image with ffmpeg does not contain the server, so server and generators run on the
        // host, in cgroups.
        let create = |role: &str| match config.resolve(isolation) {
            Isolation::Container => config.create(Isolation::Cgroup, role).or_else(|first| {
                config.create(Isolation::Probe, role).map_err(|second| format!("{first}\n  {second}"))
            }),
            isolation => config.create(isolation, role),
        };
        let (generator_env, server_env) = (create("generator")?, create("server")?);
        let (kind, program) = server;
        let program = find_server(kind, program)?;
        let port = free_port().map_err(|error| format!("no free port: {error}"))?;
        let args = configure(kind, &scratch.join("server"), port)?;
        let mut server =
            Process::spawn(&server_env, &program, &args).map_err(|error| format!("{}: {error}", program.display()))?;
        let deadline = Instant::now() + timeout;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if server.try_wait().ok().flatten().is_some() || Instant::now() > deadline {
                let why = server.stderr_tail();
                return Err(format!("{} does not accept RTMP connections: {why}", program.display()));
            }
            if !interruptible_sleep(Duration::from_millis(50)) {
                return Err("stopped".to_owned());
            }
        }
        Ok(Self { generator_env, server_env, _server: server, generators: Vec::new(), port })
    }

    /// Replaces the generators by one per stream. Returns the input and the output URL of each
    /// encoder.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start_generators(
        &mut self,
        axes: &Axes,
        source: &Path,
        ffmpeg: &Tool,
    ) -> Result<Vec<(String, String)>, String> {
        self.generators.clear();
        let mut all = Vec::new();
        for stream in 1..=axes.streams {
            let (input, output) = (self.url("in", stream), self.url("out", stream));
            let source = source.to_string_lossy();
            let args: Vec<String> =
                ["-nostdin", "-hide_banner", "-loglevel", "error", "-re", "-stream_loop", "-1", "-i", &source]
                    .into_iter()
                    .chain(["-c", "copy", "-f", "flv", &input])
                    .map(str::to_owned)
                    .collect();
            let generator =
                Process::spawn(&self.generator_env, &ffmpeg.path, &args).map_err(|error| error.to_string())?;
            self.generators.push(generator);
            all.push((input, output));
        }
        Ok(all)
    }

    /// True when the probe no longer holds one of the leases.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.generator_env.is_lost() || self.server_env.is_lost()
    }

    /// The URL at which the output of a stream can be played.
    #[must_use]
    pub fn output_url(&self, stream: u32) -> String {
        self.url("out", stream)
    }

    fn url(&self, application: &str, stream: u32) -> String {
        format!("rtmp://127.0.0.1:{}/{application}/{stream}", self.port)
    }

    /// Stops the generators.
    pub fn stop_generators(&mut self) {
        self.generators.clear();
    }

    /// The names under which the probe reports generators and server, by role.
    #[must_use]
    pub fn container_names(&self) -> [(&'static str, Vec<String>); 2] {
        let handles: Vec<_> = self.generators.iter().map(|generator| generator.handle().clone()).collect();
        [("generator", self.generator_env.container_names(&handles)), ("server", self.server_env.container_names(&[]))]
    }

    /// Why a generator exited; `None` while all run.
    pub fn generator_failure(&mut self) -> Option<String> {
        self.generators.iter_mut().find_map(|generator| {
            generator.try_wait().ok().flatten()?;
            Some(format!("the generator ended: {}", generator.stderr_tail()))
        })
    }
}

/// The program of a server, by its path or by its name in PATH.
fn find_server(kind: LiveServer, program: &Path) -> Result<PathBuf, String> {
    let usual = || Some(PathBuf::from("/usr/sbin/nginx")).filter(|path| kind == LiveServer::Nginx && path.is_file());
    find_program(program).or_else(usual).ok_or_else(|| match kind {
        LiveServer::Nginx => "nginx not found: install it with its RTMP module (Debian: nginx-light, libnginx-mod-rtmp), or set its path with --nginx".to_owned(),
        LiveServer::MediaMtx => format!("{} not found: install MediaMTX 1.0 or newer, or set its path with --mediamtx", program.display()),
    })
}

/// Writes the configuration of a server in `home`. Returns the arguments of its program.
fn configure(kind: LiveServer, home: &Path, port: u16) -> Result<Vec<String>, String> {
    fs::create_dir_all(home).map_err(|error| format!("{}: {error}", home.display()))?;
    let (name, text) = match kind {
        LiveServer::Nginx => ("nginx.conf", nginx_config(home, port)),
        LiveServer::MediaMtx => ("mediamtx.yml", mediamtx_config(port)),
    };
    let file = home.join(name);
    fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
    let (file, home) = (file.to_string_lossy(), home.to_string_lossy());
    let args = match kind {
        LiveServer::Nginx => vec!["-c", &*file, "-p", &*home],
        LiveServer::MediaMtx => vec![&*file],
    };
    Ok(args.into_iter().map(str::to_owned).collect())
}

/// A configuration that accepts every path over RTMP, and has no other protocol. Only keys that all
/// versions since 1.0 know.
fn mediamtx_config(port: u16) -> String {
    format!(
        "logLevel: warn\nlogDestinations: [stdout]\nrtsp: no\nrtmp: yes\nrtmpAddress: 127.0.0.1:{port}\n\
         hls: no\nwebrtc: no\nsrt: no\npaths:\n  all_others:\n"
    )
}

/// A configuration with the applications `in` and `out`, for a server in the foreground.
fn nginx_config(home: &Path, port: u16) -> String {
    let module = MODULES.into_iter().find(|module| Path::new(module).exists());
    let load = module.map_or_else(String::new, |module| format!("load_module {module};\n"));
    let home = home.display();
    format!(
        "{load}daemon off;\nmaster_process off;\npid \"{home}/pid\";\nerror_log stderr;\nevents {{}}\n\
         rtmp {{ server {{ listen 127.0.0.1:{port}; application in {{ live on; }} application out {{ live on; }} }} }}\n"
    )
}

/// A free port below the kernel's ephemeral range: an ephemeral port could be taken before the
/// server binds it.
fn free_port() -> std::io::Result<u16> {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = (0..1000).map(|_| fastrand::u16(20_000..32_000)).find(free);
    port.ok_or_else(|| std::io::ErrorKind::AddrInUse.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_gets_a_configuration_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("server");
        let args = configure(LiveServer::MediaMtx, &home, 20_001).unwrap();
        let text = fs::read_to_string(&args[0]).unwrap();
        assert!(args.len() == 1 && text.contains("rtmpAddress: 127.0.0.1:20001\n"), "{text}");
        let args = configure(LiveServer::Nginx, &home, 20_002).unwrap();
        assert_eq!([&*args[0], &args[2], &args[3]], ["-c", "-p", &home.to_string_lossy()]);
        assert!(fs::read_to_string(&args[1]).unwrap().contains("listen 127.0.0.1:20002;"));
    }

    #[test]
    fn missing_server_is_reported_with_its_flag() {
        let error = find_server(LiveServer::MediaMtx, Path::new("/nonexistent/mediamtx")).unwrap_err();
        assert!(error.contains("/nonexistent/mediamtx") && error.contains("--mediamtx"), "{error}");
    }
}
