//! The demo of `cargo xtask up`: ffmpeg transcodes a generated video, and its energy is shown.
//!
//! It runs in a Docker container if an engine is available, otherwise in its own cgroup. The
//! container has an empty image and the host's /usr, read-only: no image is pulled, and the host's
//! ffmpeg runs.

use std::{
    fs,
    io::{BufRead as _, BufReader, IsTerminal as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::stop::{sleep, stopped};
use testkit::{
    api::{Client, Sample},
    cgroup::{self, Cgroup},
    docker::{Engine, IMAGE},
    program::kill_on_parent_exit,
    shell::{give_to_caller, packages, run as run_quietly, step, target, which},
};
use units::provenance::Unmeasured;

/// The demo's video.
const WIDTH: u32 = 1280;
const HEIGHT: u32 = 720;
const FPS: u32 = 30;
const BITRATE: &str = "2500k";
const ENCODER: &str = "libx264";
/// On an idle machine, system and unattributed energy together stay below this share of the dynamic
/// energy: otherwise the attribution is not useful.
const MAX_OTHER_SHARE: f64 = 0.15;
/// Length of the generated source, which the transcode loops.
const SOURCE_SECONDS: u32 = 10;

/// Runs the transcode and shows its energy.
pub(crate) fn run(seconds: u32, probe: &Client, [analysis, cost]: [&Client; 2], results: &Path) -> Result<()> {
    println!("Demo: {seconds} s of live transcoding, {WIDTH}x{HEIGHT} at {FPS} fps to {BITRATE} {ENCODER}");
    let ffmpeg = match which("ffmpeg") {
        Some(path) => path,
        None => {
            packages(&["ffmpeg"], "run the demo", "your system's package manager for ffmpeg")?;
            which("ffmpeg").context("ffmpeg was installed, but is not in PATH")?
        }
    };
    let dir = target().join("up/demo");
    fs::create_dir_all(&dir)?;
    let source = source(&ffmpeg, &dir)?;
    let job = Transcode::prepare(&ffmpeg, &source)?;
    step(format!("runs in {}", job.environment()));

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
        "fps": FPS,
        "media_seconds": f64::from(frames) / f64::from(FPS),
        "total_frames": frames,
        "container": &job.name,
    });
    let file = results.join(format!("test_results_{run}.json"));
    let draft = results.join(format!(".test_results_{run}.part"));
    fs::write(&draft, serde_json::to_vec_pretty(&json!({ "scenarios": [scenario] }))?)?;
    give_to_caller(&draft, 0o644)?;
    fs::rename(&draft, &file)?;
    step(format!("wrote {}", file.display()));
    show(probe, [analysis, cost], &run, &job, start, end)
}

/// Creates the source clip once: a moving test pattern with noise, so that the encoder has work.
fn source(ffmpeg: &Path, dir: &Path) -> Result<PathBuf> {
    let clip = dir.join("source.mp4");
    if clip.exists() {
        return Ok(clip);
    }
    let draft = dir.join("source.part.mp4");
    run_quietly(
        &format!("creating a source clip of {SOURCE_SECONDS} s"),
        Command::new(ffmpeg)
            .args(["-hide_banner", "-loglevel", "error", "-y", "-f", "lavfi", "-i"])
            .arg(format!("testsrc2=size={WIDTH}x{HEIGHT}:rate={FPS}:duration={SOURCE_SECONDS},noise=alls=12:allf=t"))
            .args(["-c:v", "libx264", "-preset", "ultrafast", "-crf", "18", "-pix_fmt", "yuv420p"])
            .arg(&draft),
    )?;
    fs::rename(draft, &clip)?;
    Ok(clip)
}

/// A transcode in its execution environment.
struct Transcode {
    name: String,
    environment: Environment,
    source: PathBuf,
    ffmpeg: PathBuf,
}

enum Environment {
    Docker(Engine),
    Cgroup(Cgroup),
}

impl Transcode {
    fn prepare(ffmpeg: &Path, source: &Path) -> Result<Self> {
        let name = format!("wattcast-demo-{}", std::process::id());
        let environment = match Engine::find() {
            Ok(engine) => Environment::Docker(engine),
            Err(reason) => {
                step(format!("{reason}; continuing without a container"));
                let tree = cgroup::v2().context("no cgroup v2 tree is mounted either")?;
                Environment::Cgroup(Cgroup::create(&tree, &name)?)
            }
        };
        Ok(Self { name, environment, source: source.to_owned(), ffmpeg: ffmpeg.to_owned() })
    }

    fn environment(&self) -> String {
        match &self.environment {
            Environment::Docker(_) => format!("the Docker container {}, image {IMAGE}", self.name),
            Environment::Cgroup(cgroup) => format!("the cgroup {}", cgroup.dir.display()),
        }
    }

    /// Runs ffmpeg to its end; returns the number of encoded frames.
    fn transcode(&self, seconds: u32) -> Result<u32> {
        let args = |source: &str| -> Vec<String> {
            let input = "-nostdin -hide_banner -loglevel error -progress pipe:1 -re -stream_loop -1 -i";
            let output = format!(
                "-t {seconds} -c:v {ENCODER} -preset medium -b:v {BITRATE} -maxrate {BITRATE} -bufsize 5000k -g 60 -an -f null -"
            );
            input.split(' ').chain([source]).chain(output.split(' ')).map(str::to_owned).collect()
        };
        let mut command = match &self.environment {
            Environment::Docker(engine) => {
                let clips = self.source.parent().context("the clip has no directory")?;
                let volume = format!("{}:/demo:ro", clips.display());
                let mut command = engine.run(&self.name, &["--volume", &volume], &self.ffmpeg);
                command.args(args("/demo/source.mp4"));
                command
            }
            Environment::Cgroup(cgroup) => {
                let mut command = Command::new(&self.ffmpeg);
                command.args(args(&self.source.to_string_lossy()));
                cgroup.enter(&mut command)?;
                command
            }
        };
        kill_on_parent_exit(&mut command);
        // In its own process group, so that Ctrl-C reaches this process only.
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn()?;
        let frames = self.follow(&mut child, seconds)?;
        let status = child.wait()?;
        if !status.success() && !stopped() {
            bail!("ffmpeg ended with {status}");
        }
        Ok(frames)
    }

    /// Shows the progress of ffmpeg until it ends. A thread reads its output, so that Ctrl-C takes
    /// effect between two lines.
    fn follow(&self, child: &mut Child, seconds: u32) -> Result<u32> {
        let progress = BufReader::new(child.stdout.take().context("no pipe")?);
        let (line, lines) = mpsc::channel();
        // Ends with the pipe or with the receiver.
        thread::spawn(move || progress.lines().map_while(Result::ok).try_for_each(|text| line.send(text)));
        let (mut frames, mut fps) = (0, String::new());
        let (start, is_terminal) = (Instant::now(), std::io::stderr().is_terminal());
        while !stopped() {
            let line = match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Timeout) => continue,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            match line.split_once('=') {
                Some(("frame", count)) => frames = count.trim().parse().unwrap_or(frames),
                Some(("fps", rate)) => rate.trim().clone_into(&mut fps),
                Some(("progress", _)) if is_terminal => {
                    eprint!("\r  {:>3.0} of {seconds} s, {frames} frames, {fps} fps ", start.elapsed().as_secs_f64());
                }
                _ => {}
            }
        }
        if stopped() {
            self.stop(child);
        }
        if is_terminal {
            eprintln!();
        }
        Ok(frames)
    }

    fn stop(&self, child: &mut Child) {
        if let Environment::Docker(engine) = &self.environment {
            engine.remove(&self.name);
        }
        let _ = child.kill();
    }
}

impl Drop for Transcode {
    fn drop(&mut self) {
        if let Environment::Docker(engine) = &self.environment {
            // Docker removes it after a normal end; a failed start may leave it.
            engine.remove(&self.name);
        }
    }
}

/// The local time in the format of result file names.
fn local_time() -> String {
    // SAFETY: `time` and `localtime_r` write to local values that outlive the calls.
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

/// Waits for the result of the analysis service, and prints it with the metrics of the probe.
fn show(
    probe: &Client,
    [analysis, cost]: [&Client; 2],
    run: &str,
    job: &Transcode,
    start: f64,
    end: f64,
) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let results: Vec<Sample> = loop {
        let samples = analysis.metrics()?;
        let of_run = |name: &str| samples.iter().any(|sample| sample.name == name && sample.label("run") == run);
        if of_run("wattcast_run_energy_joules") {
            break samples.into_iter().filter(|sample| sample.label("run") == run).collect();
        }
        if stopped() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{} does not show the result after 30 s", analysis.url("/metrics"));
        }
        sleep(Duration::from_millis(200));
    };
    // GPU energy has its own sources.
    let of = |name: &str, scope: &str, gpu: bool| {
        let found = results.iter().filter(|sample| sample.name == name && sample.label("scope") == scope);
        let of_gpu = |sample: &&Sample| {
            matches!(sample.label("source"), "nvml" | "nvml_power" | "drm" | "drm_power" | "fake") == gpu
        };
        found.filter(of_gpu).min_by(|a, b| a.label("source").cmp(b.label("source"))).cloned()
    };
    let value = |name: &str, scope: &str| {
        of(name, scope, false).with_context(|| format!("the result has no {name} of the {scope}"))
    };
    let joules = value("wattcast_run_energy_joules", "container")?;
    let source = joules.label("source");
    let host = value("wattcast_run_energy_joules", "host")?.value;

    let window = probe.json(&format!("/api/v1/window?start={start}&end={end}"))?;
    let balance = EnergyBalance::of(&window, &job.name, &probe.metrics()?);

    println!();
    println!("Result of run {run}, container {}, source: {source}", job.name);
    if let Some(kind) = Unmeasured::of(source) {
        println!("  {}", kind.banner());
    }
    println!("  container  {:>9.2} J dynamic", joules.value);
    if let Some(gpu) = of("wattcast_run_energy_joules", "container", true) {
        println!("             {:>9.2} J of the GPU, source: {}", gpu.value, gpu.label("source"));
        if let Some(kind) = Unmeasured::of(gpu.label("source")) {
            println!("             {}", kind.banner());
        }
    }
    println!("             {:>9.4} J per frame", value("wattcast_run_energy_per_frame_joules", "container")?.value);
    println!("             {:>9.2} W", value("wattcast_run_power_watts", "container")?.value);
    balance.show(host);
    show_cost(cost, run)?;
    println!("  on {}: wattcast_cost_amount{{run=\"{run}\"}}", cost.url("/metrics"));
    println!("  on {}: wattcast_run_energy_joules{{run=\"{run}\"}}", analysis.url("/metrics"));
    println!("  on {}: wattcast_container_energy_joules_total{{container=\"{}\"}}", probe.url("/metrics"), job.name);
    println!();
    Ok(())
}

/// Prints the cost of the host's energy, with the price and its origin.
fn show_cost(cost: &Client, run: &str) -> Result<()> {
    let page = cost.metrics()?;
    let paid = page.iter().find(|sample| {
        sample.name == "wattcast_cost_amount" && sample.label("run") == run && sample.label("part") == "energy"
    });
    let price = page.iter().find(|s| s.name == "wattcast_price_amount" && s.label("item") == "energy");
    if let (Some(paid), Some(price)) = (paid, price) {
        let default = if price.label("origin") == "default" { ", the default price" } else { "" };
        let currency = paid.label("currency");
        println!(
            "  cost       {:>9.7} {currency} for the host's energy, at {} {currency} a kWh{default}",
            paid.value, price.value
        );
    }
    Ok(())
}

/// The energy of the packages on which the container ran, and of memory.
struct EnergyBalance {
    idle: f64,
    idle_is_known: bool,
    rest: f64,
    dynamic: f64,
    /// Memory of the machine.
    dram: f64,
}

impl EnergyBalance {
    fn of(window: &serde_json::Value, container: &str, page: &[Sample]) -> Self {
        let rows = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
        let ran_on: Vec<String> = rows(&window["containers"])
            .iter()
            .filter(|row| row["container"] == container)
            .flat_map(|row| rows(&row["energy"]))
            .filter(|energy| energy["zone"] == "package")
            .filter_map(|energy| energy["package"].as_str().map(str::to_owned))
            .collect();
        let accounts = rows(&window["accounts"]);
        let of_zone = |zone: &str| accounts.iter().filter(|account| account["zone"] == zone).collect::<Vec<_>>();
        let packages: Vec<_> = of_zone("package")
            .into_iter()
            .filter(|account| ran_on.iter().any(|package| account["package"] == package.as_str()))
            .collect();
        let sum = |accounts: &[&serde_json::Value], key: &str| -> f64 {
            accounts.iter().filter_map(|account| account[key].as_f64()).sum()
        };
        let idle = sum(&packages, "idle_joules");
        Self {
            idle,
            idle_is_known: ran_on.iter().all(|package| {
                page.iter().any(|row| row.name == "wattcast_idle_power_watts" && row.label("package") == package)
            }),
            rest: ["system_joules", "unattributed_joules", "retired_joules"]
                .iter()
                .map(|key| sum(&packages, key))
                .sum(),
            dynamic: (sum(&packages, "measured_joules") - idle).max(f64::MIN_POSITIVE),
            dram: sum(&of_zone("dram"), "measured_joules"),
        }
    }

    fn show(&self, host: f64) {
        let Self { idle, rest, dram, .. } = self;
        if self.idle_is_known {
            println!("  host       {host:>9.2} J, of which idle {idle:.2} J");
        } else {
            println!(
                "  host       {host:>9.2} J; idle power is not yet known, so the energy above includes idle energy"
            );
        }
        let share = rest / self.dynamic;
        let verdict = match (self.idle_is_known, share < MAX_OTHER_SHARE) {
            (false, _) => String::new(),
            (true, true) => format!(" (below {:.0} %)", 100.0 * MAX_OTHER_SHARE),
            (true, false) => format!(" (above {:.0} %: other processes ran)", 100.0 * MAX_OTHER_SHARE),
        };
        println!("             {rest:>9.2} J system and unattributed, {:.1} % of dynamic{verdict}", 100.0 * share);
        if *dram > 0.0 {
            println!("             {dram:>9.2} J memory");
        }
    }
}
