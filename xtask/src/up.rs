//! `cargo xtask up`: builds and runs both programs in the foreground, and shows the power of
//! containers.

use std::{
    fs,
    io::{IsTerminal as _, Write as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{build_ebpf, demo, stop};
use testkit::{
    api::Client,
    program::Program,
    shell::{self, give_to_caller, is_root, root, step, sudo_caller, target},
};
use units::provenance::Unmeasured;

/// The unprivileged user and group of every distribution.
const UNPRIVILEGED: u32 = 65_534;

#[derive(Debug, clap::Args)]
pub struct Up {
    /// Transcode a generated video, write its result file and show its energy
    #[arg(long)]
    demo: bool,

    /// Duration of the transcode
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    demo_seconds: u32,

    /// Stop after the demo
    #[arg(long, requires = "demo")]
    demo_only: bool,

    /// Directory of result files
    #[arg(long, value_name = "DIR", default_value = "test_results")]
    results_dir: PathBuf,

    /// Load a fake NVML library with one GPU on which every ffmpeg encodes
    ///
    /// Its figures are not measured, and every page labels them as fake.
    #[arg(long)]
    fake_gpu: bool,

    /// Flags for the probe, after --
    #[arg(last = true, value_name = "PROBE FLAGS")]
    probe: Vec<String>,
}

/// Runs both programs until Ctrl-C.
pub fn up(args: &Up) -> Result<()> {
    if !is_root() {
        bail!(
            "this needs root: the probe opens energy counters and loads eBPF programs, then drops its privileges. \
             Run: sudo -E env PATH=\"$PATH\" cargo xtask up"
        );
    }
    stop::catch_signals();
    let bin = build()?;
    if stop::stopped() {
        return Ok(());
    }
    let results = root().join(&args.results_dir);
    if !results.exists() {
        fs::create_dir_all(&results).with_context(|| format!("cannot create {}", results.display()))?;
        give_to_caller(&results, 0o755)?;
    }
    let logs = target().join("up");
    fs::create_dir_all(&logs)?;

    eprintln!("Starting");
    let mut probe_command = Command::new(bin.join("wattcast-probe"));
    probe_command.args(&args.probe);
    if args.fake_gpu {
        let scenario = logs.join("fake-gpu.toml");
        fs::write(&scenario, FAKE_GPU)?;
        probe_command.env("FAKE_NVML_SCENARIO", &scenario);
        probe_command.arg("--path.nvml").arg(bin.join("libfake_nvml.so"));
    }
    let mut probe = Program::start("wattcast-probe", &mut probe_command, &logs)?;
    let probe_client = probe.client()?;

    let mut analysis_command = Command::new(bin.join("wattcast-analysis"));
    analysis_command.arg("serve").arg("--results-dir").arg(&results).args(["--probe-url", &probe_client.url("")]);
    drop_privileges(&mut analysis_command, &results, &[&bin, &results]);
    let mut analysis = Program::start("wattcast-analysis", &mut analysis_command, &logs)?;
    let analysis_client = analysis.client()?;

    print_sources(&probe_client)?;
    println!();
    let log = logs.join("wattcast-probe.log");
    println!("  probe     {}          metrics on /metrics, log in {}", probe_client.url("/"), log.display());
    println!("  analysis  {}          results of {}", analysis_client.url("/"), results.display());
    let (usage, streams, rtmp) = (probe.client_of(1)?, analysis.client_of(1)?, analysis.client_of(2)?);
    let (quality, cost, health) = (analysis.client_of(3)?, analysis.client_of(4)?, analysis.client_of(5)?);
    println!("  quality   {}          quality scores of runs", quality.url("/"));
    println!("  cost      {}          cost of runs, and current prices", cost.url("/"));
    println!("  usage     {}          memory, network and block I/O of containers", usage.url("/"));
    let gpus = probe.client_of(2)?;
    println!(
        "  GPUs      {}          {}",
        gpus.url("/"),
        if args.fake_gpu { Unmeasured::Fake.banner() } else { "energy, engines, encoder sessions" }
    );
    let port = streams.url("").rsplit(':').next().unwrap_or_default().to_owned();
    println!("  streams   {}          ffmpeg -progress udp://127.0.0.1:{port}/NAME …", streams.url("/"));
    println!("  RTMP      {}          RTMP module of nginx", rtmp.url("/"));
    println!("  health    {}          state of every exporter", health.url("/"));
    println!();

    if args.demo {
        demo::run(args.demo_seconds, &probe_client, [&analysis_client, &cost], &results)?;
        if args.demo_only {
            return Ok(());
        }
    }
    println!("Containers, updated every second. Ctrl-C stops everything.");
    let mut screen = Screen::default();
    while !stop::stopped() {
        probe.alive()?;
        analysis.alive()?;
        screen.show(&probe_client.metrics().map(|samples| table(&samples)).unwrap_or_default());
        stop::sleep(screen.interval());
    }
    println!("\nStopping");
    Ok(())
}

/// A GPU like a small server card, on which every ffmpeg uses a third of the encoder.
pub(crate) const FAKE_GPU: &str = "\
# Read again after each change; the crate fake-nvml documents the keys in src/scenario.rs.
[[gpu]]
name = \"T4\"
idle_watts = 10.0

[[gpu.process]]
comm = \"ffmpeg\"
memory = 314572800
percent = { sm = 4.0, encoder = 35.0, decoder = 12.0 }

[[gpu.process.session]]
codec = \"h264\"
width = 1280
height = 720
fps = 30
";

/// Builds both programs; returns their directory.
fn build() -> Result<PathBuf> {
    let start = Instant::now();
    build_ebpf::build_ebpf()?;
    eprintln!("Programs: compiling the probe and the analysis service (about four minutes the first time)");
    let bin = shell::build_programs()?;
    step(format!("in {}, {:.0} s", bin.display(), start.elapsed().as_secs_f64()));
    Ok(bin)
}

/// Runs the service as the user who called sudo, or as an unprivileged user, if that user can read
/// `paths`.
fn drop_privileges(command: &mut Command, results: &Path, paths: &[&Path]) {
    let (uid, gid) = sudo_caller().unwrap_or((UNPRIVILEGED, UNPRIVILEGED));
    let can_reach = |path: &&Path| {
        path.ancestors()
            .all(|dir| fs::metadata(dir).is_ok_and(|meta| meta.uid() == uid || meta.permissions().mode() & 0o001 != 0))
    };
    if paths.iter().all(can_reach) {
        command.uid(uid).gid(gid);
        // The user must be able to write this file, but not necessarily the directory.
        let record = results.join("streams.ndjson");
        let created = fs::OpenOptions::new().append(true).create(true).open(&record);
        if created.and_then(|_| std::os::unix::fs::lchown(&record, Some(uid), Some(gid))).is_err() {
            step(format!("cannot create {}; ended jobs are not recorded", record.display()));
        }
    } else {
        step("wattcast-analysis runs as root, although it needs no privileges: other users cannot read this directory");
    }
}

/// Prints one line per source with its state.
fn print_sources(probe: &Client) -> Result<()> {
    println!("Sources");
    // GPU drivers are opened in the background.
    let deadline = Instant::now() + Duration::from_secs(5);
    let sources = loop {
        let sources = probe.json("/api/v1/sources")?;
        let has_gpu_state = sources.as_array().is_some_and(|all| all.iter().any(|source| source["source"] == "nvml"));
        if has_gpu_state || Instant::now() > deadline || stop::stopped() {
            break sources;
        }
        stop::sleep(Duration::from_millis(50));
    };
    for source in sources.as_array().into_iter().flatten() {
        let text = |key: &str| source[key].as_str().unwrap_or_default();
        println!("  {:<9} {:<7} {}", text("source"), text("state"), text("detail"));
        if let Some(banner) = source["banner"].as_str() {
            println!("  {:<17} {banner}", "");
        }
    }
    Ok(())
}

/// The rows of the live table, by descending power.
fn table(samples: &[testkit::api::Sample]) -> Vec<String> {
    let find = |name: &'static str| samples.iter().filter(move |sample| sample.name == name);
    let mut rows: Vec<(f64, String)> = find("wattcast_container_power_watts")
        .map(|sample| {
            let (id, zone) = (sample.label("id"), sample.label("zone"));
            let sum = |name| {
                let of = |row: &&testkit::api::Sample| row.label("id") == id && ["", zone].contains(&row.label("zone"));
                find(name).filter(of).map(|row| row.value).sum::<f64>()
            };
            let (name, image) = (printable(sample.label("container"), 28), printable(sample.label("image"), 24));
            let row = format!(
                "  {name:<28} {image:<24} {:>8.2} W {:>10.1} J {:>9.2} CPU s  {}",
                sample.value,
                sum("wattcast_container_energy_joules_total"),
                sum("wattcast_container_cpu_seconds_total"),
                sample.label("source"),
            );
            (sample.value, row)
        })
        .collect();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut all: Vec<String> = rows.into_iter().take(20).map(|(_, row)| row).collect();
    if all.is_empty() {
        all.push("  no containers".to_owned());
    }
    for sample in find("wattcast_power_watts").filter(|sample| matches!(sample.label("zone"), "package" | "gpu")) {
        let unmeasured = Unmeasured::of(sample.label("source"));
        let unmeasured = unmeasured.map_or_else(String::new, |kind| format!(": {kind}, not measured"));
        all.push(format!(
            "  {} {}: {:.2} W (source: {}{unmeasured})",
            sample.label("zone"),
            sample.label("package"),
            sample.value,
            sample.label("source")
        ));
    }
    all
}

/// A label without control characters: names of containers must not control the terminal.
fn printable(label: &str, most: usize) -> String {
    label.chars().take(most).map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

/// Redraws the table in place on a terminal; prints it every 10 s elsewhere.
#[derive(Default)]
struct Screen {
    lines: usize,
}

impl Screen {
    fn interval(&self) -> Duration {
        Duration::from_secs(if std::io::stdout().is_terminal() { 1 } else { 10 })
    }

    fn show(&mut self, rows: &[String]) {
        let mut out = std::io::stdout().lock();
        if out.is_terminal() && self.lines > 0 {
            // Moves to the first line of the table and clears it.
            let _ = write!(out, "\x1b[{}A\x1b[J", self.lines);
        }
        for row in rows {
            let _ = writeln!(out, "{row}");
        }
        let _ = out.flush();
        self.lines = rows.len();
    }
}
