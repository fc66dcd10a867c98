//! The demo of `cargo xtask up`: a real ffmpeg transcodes real frames, and what it cost is shown.
//!
//! In a Docker container when an engine answers, else in a cgroup of its own. The container has an empty image and the
//! host's /usr, read-only: nothing is pulled, and it is the host's own ffmpeg that runs.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::{
    api::{Client, Sample},
    shell::{output, packages, run as run_quietly, step, target, which},
    up::{die_with_us, pause, stopped},
};

/// The demo's video.
const WIDTH: u32 = 1280;
const HEIGHT: u32 = 720;
const FPS: u32 = 30;
const BITRATE: &str = "2500k";
const ENCODER: &str = "libx264";
/// Length of the generated source; the transcode loops over it.
const SOURCE_SECONDS: u32 = 10;
const IMAGE: &str = "wattcast-demo:latest";

/// Runs the transcode and shows its energy.
pub(crate) fn run(seconds: u32, probe: &Client, analysis: &Client, results: &Path) -> Result<()> {
    println!("Demo: {seconds} s of live transcoding, {WIDTH}x{HEIGHT} at {FPS} fps to {BITRATE} {ENCODER}");
    let ffmpeg = match which("ffmpeg") {
        Some(path) => path,
        None => {
            packages(&["ffmpeg"], "run the demo")?;
            which("ffmpeg").context("ffmpeg was installed, but is not in PATH")?
        }
    };
    let dir = target().join("up/demo");
    fs::create_dir_all(&dir)?;
    let source = source(&ffmpeg, &dir)?;
    let job = Job::prepare(&ffmpeg, &source)?;
    step(format!("runs in {}", job.place()));

    let start = probe.mark()?;
    let frames = job.transcode(seconds)?;
    let end = probe.mark()?;
    if stopped() {
        return Ok(());
    }

    let run = local_time();
    let scenario = json!({
        "name": "demo",
        "bitrate": BITRATE,
        "resolution": format!("{WIDTH}x{HEIGHT}"),
        "encoder_type": ENCODER,
        "duration": end - start,
        "start_time": start,
        "end_time": end,
        "avg_fps": f64::from(frames) / (end - start),
        "total_frames": frames,
        "container": job.name(),
    });
    let file = results.join(format!("test_results_{run}.json"));
    let draft = results.join(format!(".test_results_{run}.part"));
    fs::write(&draft, serde_json::to_vec_pretty(&json!({ "scenarios": [scenario] }))?)?;
    fs::rename(&draft, &file)?;
    step(format!("wrote {}", file.display()));
    show(probe, analysis, &run, &job, start, end)
}

/// A clip to transcode, made once: moving test pattern with noise, so that the encoder has work.
fn source(ffmpeg: &Path, dir: &Path) -> Result<PathBuf> {
    let clip = dir.join("source.mp4");
    if clip.exists() {
        return Ok(clip);
    }
    let draft = dir.join("source.part.mp4");
    run_quietly(
        &format!("making a {SOURCE_SECONDS} s source clip"),
        Command::new(ffmpeg)
            .args(["-hide_banner", "-loglevel", "error", "-y", "-f", "lavfi", "-i"])
            .arg(format!("testsrc2=size={WIDTH}x{HEIGHT}:rate={FPS}:duration={SOURCE_SECONDS},noise=alls=12:allf=t"))
            .args(["-c:v", "libx264", "-preset", "ultrafast", "-crf", "18", "-pix_fmt", "yuv420p"])
            .arg(&draft),
    )?;
    fs::rename(draft, &clip)?;
    Ok(clip)
}

/// Where the transcode runs.
enum Job {
    Docker { docker: PathBuf, name: String, source: PathBuf, ffmpeg: PathBuf },
    Cgroup { dir: PathBuf, name: String, source: PathBuf, ffmpeg: PathBuf },
}

impl Job {
    fn prepare(ffmpeg: &Path, source: &Path) -> Result<Self> {
        let name = format!("wattcast-demo-{}", std::process::id());
        let (source, ffmpeg) = (source.to_owned(), ffmpeg.to_owned());
        if let Some(docker) = engine() {
            // An image without a single file; what runs in it is mounted.
            let archive = Command::new("tar").args(["-cf", "-", "--files-from", "/dev/null"]).output()?.stdout;
            let mut import = Command::new(&docker)
                .args(["import", "-", IMAGE])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()?;
            import.stdin.take().context("no pipe")?.write_all(&archive)?;
            if import.wait()?.success() {
                return Ok(Self::Docker { docker, name, source, ffmpeg });
            }
            step("docker import failed; going on without a container");
        } else {
            step("no Docker engine answers; going on without a container");
        }
        let trees = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let Some(tree) = trees.iter().map(Path::new).find(|dir| dir.join("cgroup.controllers").exists()) else {
            bail!("no cgroup v2 tree is mounted, and no Docker engine answers");
        };
        let dir = tree.join(&name);
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self::Cgroup { dir, name, source, ffmpeg })
    }

    fn name(&self) -> &str {
        match self {
            Self::Docker { name, .. } | Self::Cgroup { name, .. } => name,
        }
    }

    fn place(&self) -> String {
        match self {
            Self::Docker { name, .. } => format!("the Docker container {name}, image {IMAGE}"),
            Self::Cgroup { dir, .. } => format!("the cgroup {}", dir.display()),
        }
    }

    /// Runs ffmpeg to its end; gives the frames it encoded.
    fn transcode(&self, seconds: u32) -> Result<u32> {
        let args = |source: &str| -> Vec<String> {
            [
                "-nostdin",
                "-hide_banner",
                "-loglevel",
                "error",
                "-progress",
                "pipe:1",
                "-re",
                "-stream_loop",
                "-1",
                "-i",
                source,
                "-t",
                &seconds.to_string(),
                "-c:v",
                ENCODER,
                "-preset",
                "medium",
                "-b:v",
                BITRATE,
                "-maxrate",
                BITRATE,
                "-bufsize",
                "5000k",
                "-g",
                "60",
                "-an",
                "-f",
                "null",
                "-",
            ]
            .map(str::to_owned)
            .to_vec()
        };
        let mut command = match self {
            Self::Docker { docker, name, source, ffmpeg } => {
                let mut command = Command::new(docker);
                command.args(["run", "--rm", "--name", name, "--network", "none", "--read-only"]);
                for dir in ["/usr", "/bin", "/lib", "/lib64", "/etc/alternatives"] {
                    if Path::new(dir).exists() {
                        command.args(["--volume", &format!("{dir}:{dir}:ro")]);
                    }
                }
                let clips = source.parent().context("the clip has no directory")?;
                command.arg("--volume").arg(format!("{}:/demo:ro", clips.display()));
                command.args([IMAGE, &ffmpeg.to_string_lossy()]).args(args("/demo/source.mp4"));
                command
            }
            Self::Cgroup { dir, source, ffmpeg, .. } => {
                let mut command = Command::new(ffmpeg);
                command.args(args(&source.to_string_lossy()));
                let procs = fs::OpenOptions::new().write(true).open(dir.join("cgroup.procs"))?;
                // SAFETY: one write of a literal to a descriptor that was opened before the fork.
                unsafe {
                    command.pre_exec(move || (&procs).write_all(b"0"));
                }
                command
            }
        };
        die_with_us(&mut command);
        // A group of its own: Ctrl-C is for us, and we end it.
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn()?;
        let frames = self.follow(&mut child, seconds)?;
        let status = child.wait()?;
        if !status.success() && !stopped() {
            bail!("ffmpeg ended with {status}");
        }
        Ok(frames)
    }

    /// Shows ffmpeg's own progress until it ends.
    fn follow(&self, child: &mut Child, seconds: u32) -> Result<u32> {
        let progress = BufReader::new(child.stdout.take().context("no pipe")?);
        let (mut frames, mut fps) = (0, String::new());
        let start = Instant::now();
        for line in progress.lines() {
            let line = line?;
            match line.split_once('=') {
                Some(("frame", count)) => frames = count.trim().parse().unwrap_or(frames),
                Some(("fps", rate)) => rate.trim().clone_into(&mut fps),
                Some(("progress", _)) => {
                    eprint!("\r  {:>3.0} of {seconds} s, {frames} frames, {fps} fps ", start.elapsed().as_secs_f64());
                }
                _ => {}
            }
            if stopped() {
                self.end(child);
                break;
            }
        }
        eprintln!();
        Ok(frames)
    }

    fn end(&self, child: &mut Child) {
        if let Self::Docker { docker, name, .. } = self {
            let _ = Command::new(docker).args(["kill", name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        let _ = child.kill();
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        match self {
            Self::Docker { docker, name, .. } => {
                // Usually gone by itself; a start that failed half-way leaves it.
                let _ =
                    Command::new(docker).args(["rm", "-f", name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
            }
            Self::Cgroup { dir, .. } => {
                let _ = fs::remove_dir(dir);
            }
        }
    }
}

/// The Docker client, when an engine answers it.
pub(crate) fn engine() -> Option<PathBuf> {
    let docker = which("docker")?;
    output(Command::new(&docker).args(["version", "--format", "{{.Server.Version}}"])).ok()?;
    Some(docker)
}

/// Now, as the results' file names want it.
fn local_time() -> String {
    // SAFETY: `time` and `localtime_r` fill values of ours, whose addresses outlive the calls.
    let now = unsafe {
        let clock = libc::time(std::ptr::null_mut());
        let mut now: libc::tm = std::mem::zeroed();
        libc::localtime_r(&raw const clock, &raw mut now);
        now
    };
    format!(
        "{:04}{:02}{:02}_{:02}{:02}{:02}",
        now.tm_year + 1900,
        now.tm_mon + 1,
        now.tm_mday,
        now.tm_hour,
        now.tm_min,
        now.tm_sec
    )
}

/// Waits for the result on the analysis service, and prints it beside the probe's own figures.
fn show(probe: &Client, analysis: &Client, run: &str, job: &Job, start: f64, end: f64) -> Result<()> {
    let patience = Instant::now() + Duration::from_secs(30);
    let results: Vec<Sample> = loop {
        let samples = analysis.metrics()?;
        let of_run = |name: &str| samples.iter().any(|sample| sample.name == name && sample.label("run") == run);
        if of_run("wattcast_run_energy_joules") {
            break samples.into_iter().filter(|sample| sample.label("run") == run).collect();
        }
        if stopped() {
            return Ok(());
        }
        if Instant::now() > patience {
            bail!("the result is not on {} yet", analysis.url("/metrics"));
        }
        pause(Duration::from_millis(200));
    };
    let value = |name: &str, scope: &str| {
        results
            .iter()
            .find(|sample| sample.name == name && sample.label("scope") == scope)
            .with_context(|| format!("the result has no {name} of the {scope}"))
    };
    let joules = value("wattcast_run_energy_joules", "container")?;
    let source = joules.label("source");
    let host = value("wattcast_run_energy_joules", "host")?.value;

    let window = probe.json(&format!("/api/v1/window?start={start}&end={end}"))?;
    let accounts = window["accounts"].as_array().cloned().unwrap_or_default();
    let sum = |key: &str| accounts.iter().filter_map(|account| account[key].as_f64()).sum::<f64>();
    let idle = sum("idle_joules");
    let rest = sum("system_joules") + sum("unattributed_joules") + sum("retired_joules");
    let dynamic = (host - idle).max(f64::MIN_POSITIVE);

    println!();
    println!("Result of run {run}, container {}, source: {source}", job.name());
    if source == "model" {
        println!("  This machine measures no energy; the joules below are modelled from CPU use, not measured.");
    }
    println!("  container  {:>9.2} J dynamic", joules.value);
    println!("             {:>9.4} J per frame", value("wattcast_run_energy_per_frame_joules", "container")?.value);
    println!("             {:>9.2} W", value("wattcast_run_power_watts", "container")?.value);
    println!("  host       {host:>9.2} J, of which idle {idle:.2} J");
    println!("             {:>9.2} J ({:.1} % of dynamic) system and unattributed", rest, 100.0 * rest / dynamic);
    println!("  on {}: wattcast_run_energy_joules{{run=\"{run}\"}}", analysis.url("/metrics"));
    println!("  on {}: wattcast_container_energy_joules_total{{container=\"{}\"}}", probe.url("/metrics"), job.name());
    println!();
    Ok(())
}
