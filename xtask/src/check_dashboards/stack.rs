//! The whole stack on this machine, on free ports: both programs with a simulated processor and
//! GPU, ffmpeg in containers, nginx, node_exporter, and both databases with the shipped
//! configurations.

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
    shipped_config::{PortMap, short_intervals, short_rules},
    stop::sleep,
    up::FAKE_GPU,
};
use testkit::{
    databases::Database,
    docker::{Container, Engine},
    nginx::Nginx,
    program::{CgroupProcess, Program},
    shell::{self, root, step, which},
    simulator::{MARK, Simulator, Spec},
};

/// All running parts; they end when this is dropped, in this order.
pub(crate) struct Stack {
    pub(super) prometheus: Database,
    pub(super) victoria: Database,
    /// External components that do not run here.
    pub(super) missing: Vec<&'static str>,
    _jobs: Vec<StackJob>,
    _programs: Vec<Program>,
    _nginx: Option<Nginx>,
    _load: Load,
    _simulator: Simulator,
    _dir: tempfile::TempDir,
}

/// Varying load on one CPU, from which the probe estimates idle power.
pub(crate) struct Load(Arc<AtomicBool>);

impl Load {
    /// Starts it; it ends when this is dropped.
    pub(crate) fn start() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        thread::Builder::new().name("load".into()).spawn(move || {
            // Load of one CPU.
            for busy in [0.0, 0.25, 0.5, 0.75].into_iter().cycle() {
                let start = Instant::now();
                while start.elapsed() < Duration::from_secs(3) {
                    if stopped.load(Ordering::Relaxed) {
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
        Ok(Self(stop))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An ffmpeg that encodes until this is dropped.
enum StackJob {
    Container { _container: Container },
    Cgroup { _process: CgroupProcess },
}

/// Checks the requirements of this machine; the error is the reason to skip.
pub(super) fn needs() -> std::result::Result<(), String> {
    let missing: Vec<&str> = ["prometheus", "promtool", "victoria-metrics", "ffmpeg"]
        .into_iter()
        .filter(|name| which(name).is_none())
        .collect();
    if !missing.is_empty() {
        return Err(format!("{} not in PATH", missing.join(", ")));
    }
    if !testkit::shell::is_root() {
        return Err("containers and eBPF programs need root".to_owned());
    }
    Ok(())
}

impl Stack {
    /// URL of its Prometheus.
    pub(crate) fn prometheus(&self) -> &str {
        &self.prometheus.url
    }

    /// Starts everything, with recorded data up to `recorded_end` in both databases.
    pub(super) fn start(recorded_end: u64, now: u64) -> Result<Self> {
        let bin = shell::programs()?;
        let dir = tempfile::tempdir()?;
        let simulator = Simulator::start(dir.path(), &Spec { packages: Some(2), parts: true, ..Spec::default() })?;
        // Panels of measured energy need data, so the probe must take the tree for a real one.
        fs::remove_file(simulator.sysfs().join(MARK))?;
        let (mut programs, mut missing) = (Vec::new(), vec!["cadvisor", "dcgm", "meter"]);
        let nginx = Nginx::start().map_err(|why| step(format!("no RTMP server: {why:#}"))).ok();

        let recorded = recorded::series(recorded_end);
        let mut history = recorded.clone();
        history.push(recorded::history(now / 300 * 300));
        let scrape = dir.path().join("victoriametrics.yml");
        let ports = PortMap::allocate()?;
        fs::write(&scrape, short_intervals(&ports.substitute("deploy/compose/victoriametrics.yml", "")?))?;
        let victoria = Database::victoria(&history, Some(&scrape))?;
        let config = short_intervals(&ports.substitute("deploy/compose/prometheus.yml", &victoria.url)?);
        let rules = dir.path().join("rules");
        short_rules(&rules)?;
        let prometheus = Database::prometheus(&recorded, &config, Some(&rules))?;

        let logs = dir.path();
        let gpu = logs.join("gpu.toml");
        fs::write(&gpu, FAKE_GPU)?;
        // The simulated tree is that of an Intel processor, and the meaning of a zone depends on
        // the vendor. On an AMD host, /proc/cpuinfo must therefore show Intel.
        let cpuinfo = logs.join("cpuinfo");
        fs::write(&cpuinfo, fs::read_to_string("/proc/cpuinfo")?.replace("AuthenticAMD", "GenuineIntel"))?;
        let mut probe = Command::new("unshare");
        probe.args(["--mount", "sh", "-c", "mount --bind \"$0\" /proc/cpuinfo && exec \"$@\""]);
        probe.arg(&cpuinfo).arg(bin.join("wattcast-probe"));
        probe.env("FAKE_NVML_SCENARIO", &gpu).arg("--path.nvml").arg(bin.join("libfake_nvml.so"));
        probe.arg("--path.sysfs").arg(simulator.sysfs()).args(["--power.distribution=10", "--state.dir"]).arg(logs);
        probe.args(ports.probe_flags());
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
        analysis.args(ports.analysis_flags());
        if let Some(nginx) = &nginx {
            analysis.arg(format!("--nginx.url={}/stat", nginx.stat));
        } else {
            missing.push("nginx");
        }
        analysis.arg("--health.interval=2s");
        analysis.arg(format!(
            "--health.targets=cpu-exporter-go=http://127.0.0.1:{}/metrics,results-exporter=http://127.0.0.1:{}/metrics,\
             absent=http://127.0.0.1:1/metrics",
            ports.port(9500),
            ports.port(9502)
        ));
        programs.push(Program::start("analysis", &mut analysis, logs)?);

        if let Some(node) = which("prometheus-node-exporter") {
            let mut command = Command::new(node);
            command.arg(format!("--web.listen-address=127.0.0.1:{}", ports.port(9100)));
            programs.push(Program::start("node_exporter", &mut command, logs)?);
        } else {
            missing.push("node_exporter");
        }
        for program in &mut programs {
            program.alive()?;
        }
        let (jobs, engine) = jobs(ports.port(9506))?;
        if !engine {
            missing.push("engine");
        }
        // A program whose port is in use ends at once.
        sleep(Duration::from_secs(1));
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

/// Prices, carbon intensity and a budget for the recorded host, so that every panel has data.
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

/// Starts two encoders: one reports its progress, the other has its own network namespace. They run
/// in Docker if an engine is available (second value), otherwise in cgroups.
fn jobs(progress: u16) -> Result<(Vec<StackJob>, bool)> {
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
            let start = |number, network: &str, report: Option<&str>| -> Result<StackJob> {
                let args = args(report);
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                let container = engine.start(&name(number), &["--network", network], &ffmpeg, &args)?;
                Ok(StackJob::Container { _container: container })
            };
            Ok((vec![start(1, "host", Some(&report))?, start(2, "none", None)?], true))
        }
        Err(why) => {
            step(format!("{why:#}; continuing without containers"));
            let start = |number, report: Option<&str>| -> Result<StackJob> {
                let mut command = Command::new(&ffmpeg);
                command.args(args(report)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                Ok(StackJob::Cgroup { _process: CgroupProcess::start(&name(number), &mut command)? })
            };
            Ok((vec![start(1, Some(&report))?, start(2, None)?], false))
        }
    }
}
