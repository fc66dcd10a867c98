//! Requirements of tests, and the reasons to skip them.
//!
//! `requires!(root, docker, ffmpeg);` at the beginning of a test ends it with `skipped: reason` if
//! one of them is missing; `cargo xtask test` counts the reasons.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cgroup,
    docker::Engine,
    shell::{is_root, output, which},
};

/// Skips the test with a reason that `cargo xtask test` counts.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        println!("skipped: {}", format_args!($($reason)*));
        return;
    }};
}

/// Skips the test unless all requirements are met: names of functions in
/// [`require`](crate::require).
#[macro_export]
macro_rules! requires {
    ($($need:ident),+ $(,)?) => {
        $(
            if let Err(reason) = $crate::require::$need() {
                $crate::skip!("{reason}");
            }
        )+
    };
}

/// The value of a `Result`; an error skips the test.
#[macro_export]
macro_rules! or_skip {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(reason) => $crate::skip!("{reason:#}"),
        }
    };
}

/// An error is the reason why the requirement is not met.
pub type Requirement = Result<(), String>;

fn program(name: &str) -> Requirement {
    which(name).map(drop).ok_or_else(|| format!("{name} is not in PATH"))
}

fn installed(path: &str, package: &str) -> Requirement {
    if Path::new(path).exists() { Ok(()) } else { Err(format!("{path} does not exist (apt-get install {package})")) }
}

macro_rules! programs {
    ($($need:ident: $name:literal),+ $(,)?) => {
        $(
            #[doc = concat!("`", $name, "` in PATH.")]
            ///
            /// # Errors
            /// When it is not.
            pub fn $need() -> Requirement {
                program($name)
            }
        )+
    };
}

programs! {
    ffmpeg: "ffmpeg",
    openssl: "openssl",
    prometheus: "prometheus",
    promtool: "promtool",
    victoria_metrics: "victoria-metrics",
    alertmanager: "prometheus-alertmanager",
    node_exporter: "prometheus-node-exporter",
    systemd_analyze: "systemd-analyze",
    docker_compose: "docker-compose",
    busybox: "busybox",
}

/// Chromium, Node.js and the packages of the browser tests.
///
/// # Errors
/// What is missing.
pub fn browser() -> Requirement {
    crate::browser::requirement()
}

/// Effective user 0.
///
/// # Errors
/// For any other user.
pub fn root() -> Requirement {
    if is_root() { Ok(()) } else { Err("needs root".to_owned()) }
}

/// A mounted cgroup v2 tree.
///
/// # Errors
/// When there is none.
pub fn cgroup_v2() -> Requirement {
    cgroup::v2().map(drop).ok_or_else(|| "no cgroup v2 tree is mounted".to_owned())
}

/// An available Docker engine.
///
/// # Errors
/// With the reason why none is available.
pub fn docker() -> Requirement {
    Engine::find().map(drop).map_err(|error| format!("{error:#}"))
}

/// Two CPUs.
///
/// # Errors
/// When there is one only.
pub fn two_cpus() -> Requirement {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    if count >= 2 { Ok(()) } else { Err("needs two CPUs".to_owned()) }
}

/// nginx, in PATH or where Debian has it.
///
/// # Errors
/// When it is in neither place.
pub fn nginx() -> Requirement {
    program("nginx").or_else(|_| installed("/usr/sbin/nginx", "nginx-light"))
}

/// nginx with its RTMP module.
///
/// # Errors
/// When one of them is missing.
pub fn nginx_rtmp() -> Requirement {
    nginx()?;
    installed(crate::nginx::MODULE, "libnginx-mod-rtmp")
}

/// The first Python that runs a script without an error, with the output of the script: that in
/// PATH, or that with Debian's modules.
#[must_use]
pub fn python(script: &str) -> Option<(&'static str, String)> {
    let run = |python| output(Command::new(python).args(["-c", script])).ok().map(|printed| (python, printed));
    ["python3", "/usr/bin/python3"].into_iter().find_map(run)
}

/// Python's validator of JSON schemas.
///
/// # Errors
/// When no Python can import it.
pub fn jsonschema() -> Requirement {
    let reason = || "python3 has no jsonschema (apt-get install python3-jsonschema)".to_owned();
    python("import jsonschema").map(drop).ok_or_else(reason)
}

/// An ffmpeg with libvmaf.
///
/// # Errors
/// When neither `QUALITY_FFMPEG` nor Python's imageio-ffmpeg names one.
pub fn vmaf() -> Requirement {
    vmaf_ffmpeg()
        .map(drop)
        .ok_or_else(|| "no ffmpeg with libvmaf here (pip install imageio-ffmpeg, or QUALITY_FFMPEG)".to_owned())
}

/// The ffmpeg that [`vmaf`] requires.
#[must_use]
pub fn vmaf_ffmpeg() -> Option<PathBuf> {
    let named = std::env::var_os("QUALITY_FFMPEG").map(PathBuf::from);
    let of_python = || {
        let (_, path) = python("import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())")?;
        Some(PathBuf::from(path))
    };
    let has_vmaf = |path: &PathBuf| {
        output(Command::new(path).args(["-hide_banner", "-filters"])).is_ok_and(|filters| filters.contains("libvmaf"))
    };
    named.or_else(of_python).filter(has_vmaf)
}

/// Rotel, an OpenTelemetry collector.
///
/// # Errors
/// When neither PATH nor Python's rotel has it.
pub fn rotel() -> Requirement {
    rotel_agent().map(drop).ok_or_else(|| "no rotel-agent here (pip install rotel)".to_owned())
}

/// The collector that [`rotel`] requires: in PATH, or in Python's package.
#[must_use]
pub fn rotel_agent() -> Option<PathBuf> {
    let of_python = || {
        let (_, path) =
            python("import rotel, os; print(os.path.join(os.path.dirname(rotel.__file__), 'rotel-agent'))")?;
        Some(PathBuf::from(path.trim()))
    };
    which("rotel-agent").or_else(of_python).filter(|path| path.is_file())
}
