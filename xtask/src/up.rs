//! `cargo xtask up`: builds and runs both programs in the foreground, and shows the power of
//! containers.

use std::{
    collections::{BTreeMap, BTreeSet},
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
use cli::{
    number::{short, with_unit},
    terminal::{Cell, Column, Table, View, wrap},
};
use testkit::{
    api::{Client, Sample},
    program::Program,
    shell::{self, give_to_caller, is_root, root, step, sudo_caller, target},
};
use units::provenance::Unmeasured;

/// Most rows of the live table.
const ROWS: usize = 20;
/// Most characters of a name.
const NAME: usize = 28;
/// Columns of a terminal from which on images are shown.
const WITH_IMAGES: usize = 100;

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
        let view = View::stdout();
        screen.show(&probe_client.metrics().map(|samples| table(&samples, view)).unwrap_or_default());
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
    let view = View::stdout();
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
        let line = format!("  {:<9} {:<7} {}", text("source"), text("state"), text("detail"));
        println!("{}", if view.is_terminal { wrap(&line, view.columns, 20) } else { line });
        if let Some(banner) = source["banner"].as_str() {
            println!("  {:<17} {banner}", "");
        }
    }
    Ok(())
}

/// The lines of the live table, by descending power. Cgroups that never used anything are left out.
fn table(samples: &[Sample], view: View) -> Vec<String> {
    let find = |name: &'static str| samples.iter().filter(move |sample| sample.name == name);
    // A container has a sample for each zone.
    let mut containers: BTreeMap<&str, Vec<&Sample>> = BTreeMap::new();
    for sample in find("wattcast_container_power_watts") {
        containers.entry(sample.label("id")).or_default().push(sample);
    }
    let mut rows: Vec<(f64, [Cell; 6])> = containers
        .into_iter()
        .filter_map(|(id, zones)| {
            let first = zones.first()?;
            let sources: BTreeSet<&str> = zones.iter().map(|sample| sample.label("source")).collect();
            let sum = |name| find(name).filter(|row| row.label("id") == id).map(|row| row.value).sum::<f64>();
            let watts = sum("wattcast_container_power_watts");
            let joules = sum("wattcast_container_energy_joules_total");
            let cpu = sum("wattcast_container_cpu_seconds_total");
            // Rounding of a tick leaves a rest.
            let is_used = [watts, joules, cpu].iter().any(|used| *used > 1e-6);
            let image = if view.columns < WITH_IMAGES { "" } else { first.label("image") };
            let cells = [
                Cell::from(name(first)),
                Cell::from(shortened(image)),
                Cell::from(with_unit(watts, "W")),
                Cell::from(with_unit(joules, "J")),
                Cell::from(format!("{} s", short(cpu))),
                Cell::from(Vec::from_iter(sources).join(", ")),
            ];
            is_used.then_some((watts, cells))
        })
        .collect();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut table = Table::new([
        Column::left("container"),
        Column::left("image"),
        Column::right("power"),
        Column::right("energy"),
        Column::right("CPU"),
        Column::left("source"),
    ]);
    let more = rows.len().saturating_sub(ROWS);
    for (_, cells) in rows.into_iter().take(ROWS) {
        table.push(cells);
    }
    let text = table.text(view);
    let mut all: Vec<String> = text.lines().map(str::to_owned).collect();
    if text.is_empty() {
        all.push("no container has used energy yet".to_owned());
    } else if more > 0 {
        all.push(format!("and {more} more"));
    }
    for sample in find("wattcast_power_watts").filter(|sample| matches!(sample.label("zone"), "package" | "gpu")) {
        let unmeasured = Unmeasured::of(sample.label("source"));
        let unmeasured = unmeasured.map_or_else(String::new, |kind| format!(": {kind}, not measured"));
        all.push(format!(
            "{} {}: {} (source: {}{unmeasured})",
            sample.label("zone"),
            sample.label("package"),
            with_unit(sample.value, "W"),
            sample.label("source")
        ));
    }
    all
}

/// The name of a container. One whose runtime gave no name has its id as name.
fn name(sample: &Sample) -> String {
    let (name, id) = (sample.label("container"), sample.label("id"));
    if !name.is_empty() && name != id {
        return shortened(name);
    }
    [sample.label("runtime"), &shortened(id), "(no name)"]
        .iter()
        .filter(|word| !word.is_empty())
        .copied()
        .collect::<Vec<_>>()
        .join(" ")
}

/// The end of a long name, which distinguishes cgroups of one slice.
fn shortened(name: &str) -> String {
    let length = name.chars().count();
    if length <= NAME {
        return name.to_owned();
    }
    let end: String = name.chars().skip(length - NAME + 1).collect();
    format!("…{end}")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str, container: &str, id: &str, value: f64) -> Sample {
        let labels =
            [("container", container), ("id", id), ("zone", "package"), ("runtime", "docker"), ("source", "perf")];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Sample { name: name.to_owned(), labels, value, timestamp: None }
    }

    /// Cgroups that had never run were rows of -0.0 J.
    #[test]
    fn unused_cgroups_are_left_out_and_ids_have_a_word() {
        let (power, energy) = ("wattcast_container_power_watts", "wattcast_container_energy_joules_total");
        let samples = [
            sample(power, "system.slice/empty.service", "cgroup2:7", -0.0),
            sample(energy, "system.slice/empty.service", "cgroup2:7", -1e-12),
            sample(power, "0123456789ab", "0123456789ab", 1.5),
            sample(energy, "0123456789ab", "0123456789ab", 1234.0),
            // Two zones.
            sample(power, "cam", "ba9876543210", 11.34),
            sample(power, "cam", "ba9876543210", 1.0),
            sample(energy, "cam", "ba9876543210", 0.012),
            sample("wattcast_power_watts", "", "", -0.0),
        ];
        let lines = table(&samples, View::PLAIN);
        let text = lines.join("\n");
        assert!(!text.contains("empty") && !text.contains("-0"), "{text}");
        assert!(lines[1].starts_with("cam") && lines[1].contains("12.3 W") && lines[1].contains("12.0 mJ"), "{text}");
        assert!(lines[2].contains("docker 0123456789ab (no name)") && lines[2].contains("1.23 kJ"), "{text}");
        assert!(lines[3].starts_with("package") && lines[3].contains("0 W"), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
        assert_eq!(table(&[], View::PLAIN), ["no container has used energy yet"]);
    }

    #[test]
    fn long_names_keep_their_end() {
        assert_eq!(shortened("short"), "short");
        let long = shortened("system.slice/docker-0123456789abcdef.scope/encoder");
        assert!(long.starts_with('…') && long.ends_with("scope/encoder") && long.chars().count() == NAME, "{long}");
    }
}
