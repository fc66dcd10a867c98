//! The whole stack on this machine, on ports of its own: both programs over a simulated processor and GPU, real ffmpeg in real containers, nginx, node_exporter, and
//! the two databases with the configurations that are shipped.

use std::{
    fs,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::recorded;
use crate::{
    places::{Places, short_intervals, short_rules},
    stop::pause,
    up::FAKE_GPU,
};
use testkit::{
    cgroup::{self, Cgroup},
    databases::Database,
    docker::{Container, Engine},
    nginx::Nginx,
    program::{Program, die_with_us},
    shell::{self, root, step, which},
    simulator::{Simulator, Spec},
};

/// All that runs; it ends when this is dropped, in this order.
pub(crate) struct Stage {
    pub(super) prometheus: Database,
    pub(super) victoria: Database,
    /// What of others does not run here, and so cannot be asked for.
    pub(super) missing: Vec<&'static str>,
    _jobs: Vec<Job>,
    _programs: Vec<Program>,
    _nginx: Option<Nginx>,
    _load: Load,
    _simulator: Simulator,
    _dir: tempfile::TempDir,
}

/// A CPU that is now idle and now busy, so that what a host draws at rest can be learnt.
struct Load(Arc<AtomicBool>);

impl Load {
    fn start() -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        thread::Builder::new().name("load".into()).spawn(move || {
            // Seconds of each part of a CPU.
            for busy in [0.0, 0.25, 0.5, 0.75].into_iter().cycle() {
                let began = Instant::now();
                while began.elapsed() < Duration::from_secs(3) {
                    if seen.load(Ordering::Relaxed) {
                        return;
                    }
                    let turn = Instant::now();
                    while turn.elapsed() < Duration::from_millis(40).mul_f64(busy) {
                        std::hint::spin_loop();
                    }
                    thread::sleep(Duration::from_millis(40).mul_f64(1.0 - busy));
                }
            }
        })?;
        Ok(Self(over))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An ffmpeg that encodes for as long as this lives.
enum Job {
    Container { _container: Container },
    Cgroup { child: std::process::Child, _cgroup: Cgroup },
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Self::Cgroup { child, .. } = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What must be installed for any of it.
///
/// # Errors
/// What is not, in words for `skipped:`.
pub(super) fn needs() -> std::result::Result<(), String> {
    let missing: Vec<&str> = ["prometheus", "promtool", "victoria-metrics", "ffmpeg"]
        .into_iter()
        .filter(|name| which(name).is_none())
        .collect();
    if !missing.is_empty() {
        return Err(format!("{} not in PATH", missing.join(", ")));
    }
    if !testkit::shell::is_root() {
        return Err("dashboards are fed by containers and eBPF, which need root".to_owned());
    }
    Ok(())
}

impl Stage {
    /// Where its Prometheus answers.
    pub(crate) fn prometheus(&self) -> &str {
        &self.prometheus.url
    }

    /// Starts everything, with recorded data up to `recorded_end` in both databases.
    ///
    /// # Errors
    /// When something does not come up.
    pub(super) fn start(recorded_end: u64, now: u64) -> Result<Self> {
        let bin = shell::programs()?;
        let dir = tempfile::tempdir()?;
        let simulator = Simulator::start(dir.path(), &Spec { packages: Some(2), parts: true, ..Spec::default() })?;
        let (mut programs, mut missing) = (Vec::new(), vec!["cadvisor", "dcgm"]);
        let nginx = Nginx::start().map_err(|why| step(format!("no RTMP server: {why:#}"))).ok();

        let recorded = recorded::series(recorded_end);
        let mut past = recorded.clone();
        past.push(recorded::history(now / 300 * 300));
        let scrape = dir.path().join("victoriametrics.yml");
        let places = Places::choose()?;
        fs::write(&scrape, short_intervals(&places.put_into("deploy/compose/victoriametrics.yml", "")?))?;
        let victoria = Database::victoria(&past, Some(&scrape))?;
        let config = short_intervals(&places.put_into("deploy/compose/prometheus.yml", &victoria.url)?);
        let rules = dir.path().join("rules");
        short_rules(&rules)?;
        let prometheus = Database::prometheus(&recorded, &config, Some(&rules))?;

        let logs = dir.path();
        let gpu = logs.join("gpu.toml");
        fs::write(&gpu, FAKE_GPU)?;
        // The tree is one of an Intel processor, and what a zone means depends on who made it: an AMD host must not say so of it.
        let cpuinfo = logs.join("cpuinfo");
        fs::write(&cpuinfo, fs::read_to_string("/proc/cpuinfo")?.replace("AuthenticAMD", "GenuineIntel"))?;
        let mut probe = Command::new("unshare");
        probe.args(["--mount", "sh", "-c", "mount --bind \"$0\" /proc/cpuinfo && exec \"$@\""]);
        probe.arg(&cpuinfo).arg(bin.join("wattcast-probe"));
        probe.env("FAKE_NVML_SCENARIO", &gpu).arg("--path.nvml").arg(bin.join("libfake_nvml.so"));
        probe.arg("--path.sysfs").arg(simulator.sysfs()).args(["--power.distribution=10", "--state.dir"]).arg(logs);
        probe.arg(format!("--web.listen-address=127.0.0.1:{}", places.port(9500)));
        probe.arg(format!("--stats.port={}", places.port(9501))).arg(format!("--gpu.port={}", places.port(9505)));
        programs.push(Program::start("probe", &mut probe, logs)?);

        let results = logs.join("results");
        fs::create_dir(&results)?;
        for entry in fs::read_dir(root().join("analysis/tests/data"))? {
            let path = entry?.path();
            fs::copy(&path, results.join(path.file_name().context("a file without a name")?))?;
        }
        fs::write(results.join("test_results_20240115_120000.json"), recorded::results())?;
        fs::write(results.join("test_results_20240115_130000.json"), recorded::repeated())?;
        let settings = logs.join("analysis.toml");
        fs::write(&settings, SETTINGS.replace("DATABASE", &victoria.url))?;
        let mut analysis = Command::new(bin.join("wattcast-analysis"));
        analysis.args(["serve", "--config.file"]).arg(&settings).arg("--results-dir").arg(&results);
        analysis.arg(format!("--probe-url=http://127.0.0.1:{}", places.port(9500)));
        analysis.arg(format!("--web.listen-address=127.0.0.1:{}", places.port(9502)));
        for (flag, port) in [("qoe", 9503), ("cost", 9504), ("ffmpeg", 9506), ("health", 9600), ("nginx", 9728)] {
            analysis.arg(format!("--{flag}.port={}", places.port(port)));
        }
        if let Some(nginx) = &nginx {
            analysis.arg(format!("--nginx.url={}/stat", nginx.stat));
        } else {
            missing.push("nginx");
        }
        analysis.arg("--health.interval=2s");
        analysis.arg(format!(
            "--health.targets=cpu-exporter-go=http://127.0.0.1:{}/metrics,results-exporter=http://127.0.0.1:{}/metrics,\
             nobody=http://127.0.0.1:1/metrics",
            places.port(9500),
            places.port(9502)
        ));
        programs.push(Program::start("analysis", &mut analysis, logs)?);

        if let Some(node) = which("prometheus-node-exporter") {
            let mut command = Command::new(node);
            command.arg(format!("--web.listen-address=127.0.0.1:{}", places.port(9100)));
            programs.push(Program::start("node_exporter", &mut command, logs)?);
        } else {
            missing.push("node_exporter");
        }
        for program in &mut programs {
            program.alive()?;
        }
        let (jobs, engine) = jobs(places.port(9506))?;
        if !engine {
            missing.push("engine");
        }
        // A program that found its port taken, say, ends at once.
        pause(Duration::from_secs(1));
        for program in &mut programs {
            program.alive()?;
        }
        Ok(Self {
            prometheus,
            victoria,
            missing,
            _jobs: jobs,
            _programs: programs,
            _nginx: nginx,
            _load: Load::start()?,
            _simulator: simulator,
            _dir: dir,
        })
    }
}

/// Prices, carbon and budgets, so that each has something to show; the budget is of the host whose history is recorded.
const SETTINGS: &str = "currency = \"EUR\"
report = [\"SEK\"]
[energy]
price = 0.30
[cpu]
price = 0.04
[carbon]
intensity = 41
[[rates]]
from = \"EUR\"
to = \"SEK\"
rate = 11.05
date = \"2026-11-20\"
[database]
url = \"DATABASE\"
[[budget]]
name = \"studio\"
amount = 100
hosts = [\"history\"]
";

/// Two encoders: of one the progress is reported; the other has a network of its own. In Docker where an engine answers (second value), else in cgroups.
fn jobs(progress: u16) -> Result<(Vec<Job>, bool)> {
    let ffmpeg = which("ffmpeg").context("ffmpeg is not in PATH")?;
    let report = format!("udp://127.0.0.1:{progress}/check");
    let args = |report: Option<&str>| -> Vec<String> {
        let mut args: Vec<&str> = vec!["-nostdin", "-loglevel", "error"];
        args.extend(report.map(|url| ["-progress", url]).into_iter().flatten());
        args.extend(["-re", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=15", "-c:v", "libx264"]);
        args.extend(["-preset", "ultrafast", "-f", "null", "-"]);
        args.into_iter().map(str::to_owned).collect()
    };
    let name = |number: u32| format!("wattcast-check-{}-{number}", std::process::id());
    match Engine::find() {
        Ok(engine) => {
            let start = |number, network: &str, report: Option<&str>| -> Result<Job> {
                let args = args(report);
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                let container = engine.start(&name(number), &["--network", network], &ffmpeg, &args)?;
                Ok(Job::Container { _container: container })
            };
            Ok((vec![start(1, "host", Some(&report))?, start(2, "none", None)?], true))
        }
        Err(why) => {
            step(format!("{why:#}; going on without containers"));
            let tree = cgroup::v2().context("no cgroup v2 tree is mounted either")?;
            let start = |number, report: Option<&str>| -> Result<Job> {
                let cgroup = Cgroup::create(&tree, &name(number))?;
                let mut command = Command::new(&ffmpeg);
                command.args(args(report)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                cgroup.enter(&mut command)?;
                die_with_us(&mut command);
                Ok(Job::Cgroup { child: command.spawn()?, _cgroup: cgroup })
            };
            Ok((vec![start(1, Some(&report))?, start(2, None)?], false))
        }
    }
}
