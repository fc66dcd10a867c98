//! Pictures of the live page while three streams are encoded, and of the report of a run. The
//! browser and its checks are those of the browser tests: a page with a fault gives no picture.
//!
//! The energy is that of this machine's counters. A machine without them has a simulated processor,
//! and a banner in the pictures says so.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use testkit::{
    api::Client,
    browser,
    docker::{Container, Engine},
    program::{CgroupProcess, Program},
    shell::{self, is_root, step, which},
    simulator::{Simulator, Spec},
};

use crate::{check_dashboards::Load, stop};

/// Time of the streams before the pictures. The chart shows five minutes, its shortest range.
const STREAM_TIME: Duration = Duration::from_secs(120);
/// Longest time for the idle power to be learnt.
const LEARN_TIME: Duration = Duration::from_secs(900);
/// Longest time for the analysis service to read the run.
const READ_TIME: Duration = Duration::from_secs(60);
/// True once the live page shows a tick.
const READY: &str = "Number(document.querySelector('#main')?.dataset.sequence) > 0";

/// Name, size, frames per second and preset of each stream. Two CPUs encode all of them in real
/// time.
const STREAMS: [(&str, &str, u32, &str); 3] =
    [("news", "1280x720", 25, "veryfast"), ("sport", "1280x720", 50, "ultrafast"), ("film", "854x480", 24, "medium")];

/// What the report compares.
const SUITE: [&str; 14] = [
    "run",
    "suite",
    "--encoder=libx264,libx265",
    "--preset=ultrafast,medium",
    "--crf=23,31",
    "--resolution=640x360",
    "--duration=5s",
    "--cooldown=1s",
    "--baseline=10s",
    "--repeats=3",
    "--seed=1",
    "--energy.price=0.30",
    "--currency=EUR",
    "--results-dir",
];

/// Takes all pictures into `out`.
pub(super) fn draw(out: &Path) -> Result<()> {
    ensure!(is_root(), "eBPF programs and cgroups need root");
    browser::requirement().map_err(anyhow::Error::msg)?;
    ensure!(which("ffmpeg").is_some(), "ffmpeg is not in PATH (Debian: apt-get install ffmpeg)");
    let bin = shell::programs()?;
    let dir = tempfile::tempdir()?;
    let host = Host::start(&bin, dir.path())?;
    host.learn_idle()?;
    live_page(&host, out)?;
    report(&bin, &host, dir.path(), out)
}

/// A running probe.
struct Host {
    probe: Client,
    _program: Program,
    /// `None` where the machine has counters.
    _simulator: Option<Simulator>,
}

impl Host {
    fn start(bin: &Path, dir: &Path) -> Result<Self> {
        let probe = bin.join("wattcast-probe");
        let mut doctor = Command::new(&probe);
        doctor.args(["doctor", "--json", "--log.level=error"]).stdin(Stdio::null()).stdout(Stdio::null());
        let measures = doctor.status().context("cannot run doctor")?.success();
        let simulator = if measures { None } else { Some(Simulator::start(dir, &Spec::default())?) };
        let mut command = Command::new(&probe);
        command.args(["--web.listen-address=127.0.0.1:0", "--energy.price=0.30", "--currency=EUR"]);
        if let Some(simulator) = &simulator {
            step("no energy can be measured here: the pictures show a simulated processor, and say so");
            command.arg("--path.sysfs").arg(simulator.sysfs());
        }
        let mut program = Program::start_with_state("probe", &mut command, dir)?;
        Ok(Self { probe: program.client()?, _program: program, _simulator: simulator })
    }

    /// Waits until the idle power is known. It is learnt from a load that varies.
    fn learn_idle(&self) -> Result<()> {
        step("waiting until the idle power is learnt");
        let _load = Load::start()?;
        let start = Instant::now();
        loop {
            let now = self.probe.json("/api/v1/now").unwrap_or_default();
            if now["idle_known"] == true {
                return Ok(());
            }
            ensure!(!stop::stopped(), "stopped");
            ensure!(
                start.elapsed() < LEARN_TIME,
                "the idle power is not learnt after {} s: {}",
                LEARN_TIME.as_secs(),
                now["idle_note"]
            );
            stop::sleep(Duration::from_secs(1));
        }
    }
}

/// A stream that is encoded until this is dropped.
enum Stream {
    Container { _container: Container },
    Cgroup { _process: CgroupProcess },
}

/// Starts all streams, in Docker if an engine is available, otherwise in cgroups.
fn start_streams() -> Result<Vec<Stream>> {
    let ffmpeg = which("ffmpeg").context("ffmpeg is not in PATH")?;
    let engine = Engine::find().map_err(|why| step(format!("{why:#}; continuing without containers"))).ok();
    // The probe takes the name of a stream from the address of its reports, which are not read.
    let port = testkit::ports::free_port()?;
    let start = |(name, size, rate, preset): (&str, &str, u32, &str)| -> Result<Stream> {
        let (report, source) =
            (format!("udp://127.0.0.1:{port}/{name}"), format!("testsrc2=size={size}:rate={rate},noise=alls=8:allf=t"));
        let args = ["-nostdin", "-loglevel", "error", "-progress", &report, "-re", "-f", "lavfi", "-i", &source];
        let args = [&args[..], &["-c:v", "libx264", "-preset", preset, "-threads", "1", "-f", "null", "-"]].concat();
        let workload = format!("wattcast-{name}");
        if let Some(engine) = &engine {
            let container = engine.start(&workload, &[], &ffmpeg, &args)?;
            return Ok(Stream::Container { _container: container });
        }
        let mut command = Command::new(&ffmpeg);
        command.args(&args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Stream::Cgroup { _process: CgroupProcess::start(&workload, &mut command)? })
    };
    STREAMS.into_iter().map(start).collect()
}

fn live_page(host: &Host, out: &Path) -> Result<()> {
    let _streams = start_streams()?;
    step(format!("{} streams are encoded; pictures in {} s", STREAMS.len(), STREAM_TIME.as_secs()));
    stop::sleep(STREAM_TIME);
    ensure!(!stop::stopped(), "stopped");
    let now = host.probe.json("/api/v1/now")?;
    let running = now["streams"].as_array().into_iter().flatten().filter(|stream| stream["state"] == "running").count();
    ensure!(running >= STREAMS.len(), "{running} of {} streams are encoded", STREAMS.len());
    let page = |name: &str, width: u32, height: u32, scheme: &str| {
        json!({
            "name": name,
            "url": host.probe.url("/#seconds=300"),
            "width": width,
            "height": height,
            "scheme": scheme,
            "ready": READY,
            "settle_ms": 3000,
        })
    };
    let pages = [
        page("live-light", 1280, 1100, "light"),
        page("live-dark", 1280, 1100, "dark"),
        page("live-phone", 375, 1500, "light"),
    ];
    shoot(&pages, out)
}

/// Measures a run, and takes pictures of its report.
fn report(bin: &Path, host: &Host, dir: &Path, out: &Path) -> Result<()> {
    let (results, analysis) = (dir.join("results"), bin.join("wattcast-analysis"));
    fs::create_dir(&results)?;
    let mut suite = Command::new(&analysis);
    suite.args(SUITE).arg(&results).args(["--probe-url", &host.probe.url("")]);
    // Debian's ffmpeg has no libvmaf; the variable names one that has it.
    if std::env::var_os("QUALITY_FFMPEG").is_some_and(|path| !path.is_empty()) {
        suite.arg("--analyze-quality");
    }
    shell::run("measuring a run for the report", &mut suite)?;
    ensure!(!stop::stopped(), "stopped");
    let mut serve = Command::new(&analysis);
    serve.args(["serve", "--web.listen-address=127.0.0.1:0", "--energy.price=0.30", "--currency=EUR"]);
    serve.args(["--probe-url", &host.probe.url(""), "--results-dir"]).arg(&results);
    let mut program = Program::start("analysis", &mut serve, dir)?;
    let client = program.client()?;
    let path = format!("/results/{}/report", run_of(&results)?);
    let start = Instant::now();
    while client.get(&path)?.0 != 200 {
        ensure!(start.elapsed() < READ_TIME && !stop::stopped(), "{}: no report", client.url(&path));
        stop::sleep(Duration::from_millis(200));
    }
    let page = |name: &str, width: u32, height: u32, scheme: &str| {
        json!({
            "name": name,
            "url": client.url(&path),
            "width": width,
            "height": height,
            "scheme": scheme,
            // Its policy is a sandbox without scripts.
            "sandboxed": true,
        })
    };
    shoot(&[page("report-light", 1280, 1400, "light"), page("report-dark", 1280, 1400, "dark")], out)
}

/// The id of the only run in a directory of results.
fn run_of(results: &Path) -> Result<String> {
    for entry in fs::read_dir(results)? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("test_results_")?.strip_suffix(".json"));
        if let Some(id) = id {
            return Ok(id.to_owned());
        }
    }
    bail!("{}: no file of results", results.display())
}

/// Opens the pages, and keeps their pictures if none has a fault.
fn shoot(pages: &[Value], out: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let found = browser::open(pages, Some(dir.path()))?;
    let mut faults: Vec<String> = found.iter().flat_map(browser::faults).collect();
    // A page that the browser has is not sent again.
    let is_page = |page: &&Value| page["status"] == 200 || page["status"] == 304;
    faults.extend(found.iter().filter(|page| !is_page(page)).map(|page| format!("{}: no page", page["name"])));
    ensure!(faults.is_empty(), "faults of pages:\n  {}", faults.join("\n  "));
    fs::create_dir_all(out)?;
    for page in pages {
        let file = format!("{}.png", page["name"].as_str().unwrap_or_default());
        fs::copy(dir.path().join(&file), out.join(&file)).with_context(|| format!("no picture {file}"))?;
        step(format!("wrote {}", out.join(&file).display()));
    }
    Ok(())
}
