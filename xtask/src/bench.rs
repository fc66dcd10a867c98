//! `cargo xtask bench`: what the probe costs, beside what the exporters it replaces claimed for themselves.
//!
//! Absolute figures of one machine: they move with its load. Nothing here passes or fails.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{build_ebpf, results_bench, web_bench};
use testkit::{
    api::{Client, Sample},
    cgroup,
    program::{Program, die_with_us},
    shell::{self, is_root, output, root, step, target, which},
};

const STARTS: usize = 7;
const STREAMS: usize = 8;
const MEASURE: Duration = Duration::from_secs(30);

/// Flags of `bench`.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// What to measure
    #[arg(value_enum, default_value_t)]
    what: What,

    /// Seconds over which CPU and jitter are measured
    #[arg(long, value_name = "SECONDS", default_value_t = MEASURE.as_secs())]
    seconds: u64,
}

/// What `bench` measures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// The probe as a whole, and the readings of energy
    #[default]
    Probe,
    /// The ways to CPU time: what they cost at a switch and to read
    Cpu,
    /// The analysis service with many files, and with many scenarios
    Results,
    /// A hundred scrapers on a port of each program
    Web,
}

/// Builds the shipped binaries, measures them and prints a table.
///
/// # Errors
/// When they cannot be built or do not run.
pub fn bench(args: &Bench) -> Result<()> {
    if args.what == What::Results {
        return results_bench::bench();
    }
    if args.what == What::Web {
        return web_bench::bench(args.seconds);
    }
    if !is_root() {
        bail!("this needs root: the probe's kernel side is part of what is measured");
    }
    build_ebpf::build_ebpf()?;
    if args.what == What::Cpu {
        return cpu();
    }
    shell::build(&["probe-user", "analysis"], "release")?;
    let reading = readings()?;
    step("what GPUs cost");
    // A library that takes no time of its own to speak of stands in for NVIDIA's; what it takes is told apart.
    let gpus = costs("gpu_cost")?;
    step("what memory, network and block I/O of containers cost");
    let usage = costs("stats_cost")?;
    let bin = target().join("release");
    let logs = target().join("bench");
    fs::create_dir_all(&logs)?;

    eprintln!("Measuring");
    step(format!("start to first complete scrape, {STARTS} times"));
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(first_scrape(&bin, &logs)?);
    }
    starts.sort_unstable();
    step(format!("{} s idle", args.seconds));
    let idle = cost(&bin, &logs, args.seconds, 0, &[])?;
    step(format!("{} s with {STREAMS} ffmpeg streams", args.seconds));
    let busy = cost(&bin, &logs, args.seconds, STREAMS, &[])?;
    // Two descriptors of the kernel's own clock stand for two sockets: their reading is a call to the other CPU, as RAPL's is.
    let sysfs = format!("--path.sysfs={}", root().join("probe-user/tests/fixtures/perf-two-sockets/sys").display());
    let mut sampled = Vec::new();
    for hertz in [None, Some(10), Some(50)] {
        step(format!("{} s of sub-second power at {} Hz", args.seconds, hertz.unwrap_or(0)));
        let flag = hertz.map(|hertz| format!("--power.distribution={hertz}"));
        let flags: Vec<&str> = std::iter::once(&*sysfs).chain(flag.as_deref()).collect();
        sampled.push((hertz, cost(&bin, &logs, args.seconds, 0, &flags)?.cpu));
    }

    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let row = |what: &str, ours: String, theirs: &str| println!("{what:<44} {ours:<34} {theirs}");
    println!();
    row("", "wattcast-probe".into(), "Go exporter's claim");
    row(
        "start to first complete scrape",
        format!("{:.0} ms median ({:.0} to {:.0})", ms(starts[STARTS / 2]), ms(starts[0]), ms(starts[STARTS - 1])),
        "< 500 ms",
    );
    row("resident memory, idle", format!("{:.1} MB", idle.rss_mb), "8 MB");
    row(&format!("resident memory, {} streams", busy.streams), format!("{:.1} MB", busy.rss_mb), "8 MB");
    row("CPU at 1 Hz, idle", format!("{:.2} % of one CPU", idle.cpu), "");
    row(&format!("CPU at 1 Hz, {} streams", busy.streams), format!("{:.2} % of one CPU", busy.cpu), "0.8 %");
    for (what, cost) in [("idle", &idle), ("streams", &busy)] {
        if let Some((share, ns, count)) = cost.kernel {
            row(
                &format!("  its eBPF programs, {what}"),
                format!("{share:.2} % of one CPU, {ns:.0} ns x {count}/s"),
                "none: reads no CPU time",
            );
        }
    }
    row("tick jitter, mean", format!("{:.3} ms", busy.jitter_mean * 1e3), "");
    row("ticks less than 5 ms late", format!("{} of {}", busy.jitter_within, busy.jitter_count), "< 5 ms");
    for (name, claim) in [("wattcast-probe", "5.3 MB"), ("wattcast-analysis", "")] {
        let bytes = fs::metadata(bin.join(name))?.len();
        row(&format!("size of {name}"), format!("{:.1} MB", megabytes(bytes)), claim);
    }
    for (hertz, cpu) in sampled {
        let what = hertz.map_or("sub-second power off, 2 sockets".to_owned(), |hertz| format!("  at {hertz} Hz"));
        row(&what, format!("{cpu:.2} % of one CPU"), "");
    }
    println!();
    row("CPU time of one reading, by zones", "4 / 8 / 16 / 64".into(), "goal");
    for (name, costs) in reading {
        let costs: Vec<String> = costs.iter().map(|us| format!("{us:.1}")).collect();
        let goal = if name == "powercap" { "20 µs for 8 zones" } else { "" };
        row(&format!("  {name}"), format!("{} µs", costs.join(" / ")), goal);
    }
    println!("  powercap, msr and hwmon: of plain files here; hardware adds a call to another CPU for each package.");
    println!();
    row("CPU time of one tick, by GPUs of 8 processes", "1 / 8".into(), "goal");
    for (name, costs) in gpus {
        let costs: Vec<String> = costs.iter().map(|us| format!("{:.3}", us / 1000.0)).collect();
        let (what, goal) = match &*name {
            "probe" => ("  the probe", "2 ms for 8 with 64 processes"),
            _ => ("  the library that stands in for NVIDIA's", ""),
        };
        row(what, format!("{} ms", costs.join(" / ")), goal);
    }
    println!();
    row("CPU time of one tick, by containers", "50 / 500".into(), "goal");
    for (_, costs) in usage {
        let costs: Vec<String> = costs.iter().map(|ms| format!("{ms:.2}")).collect();
        row("  memory, network, block I/O", format!("{} ms", costs.join(" / ")), "15 ms for 500");
    }
    Ok(())
}

/// What CPU time costs: the lines of the example `switch_cost`, as tables.
fn cpu() -> Result<()> {
    step("what each way to CPU time costs (about three minutes)");
    let mut command = Command::new("cargo");
    command.args(["run", "--release", "--quiet", "--package", "probe-user", "--example", "switch_cost"]);
    let text = output(command.current_dir(root()))?;
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    let of = |kind: &str| -> Vec<(&str, f64)> {
        let rows = lines.iter().filter(|line| line[0] == kind);
        rows.filter_map(|line| Some((line[1], line.last()?.parse().ok()?))).collect()
    };
    let names = [
        ("nothing", "nothing attached"),
        ("empty", "an empty program"),
        ("kernel", "tier kernel: no program at the switch"),
        ("switch", "tier switch"),
        ("switch-siblings", "  with hyperthread siblings told apart"),
        ("switch-untyped", "  its untyped twin"),
        ("counters", "tier counters (software counters where there is no hardware)"),
    ];
    let find =
        |rows: &[(&str, f64)], name: &str| rows.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    let (runs, pipes, perfs) = (of("switch"), of("pipe"), of("perf-pipe"));
    let empty = find(&runs, "empty").context("the empty program was not measured")?;
    println!("\n{:<62} {:>12} {:>12} {:>13} {:>15}", "", "ns a run", "over empty", "our pipe", "perf's pipe");
    for (name, what) in names {
        let cell = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
        let run = find(&runs, name);
        let ratio = |rows: &[(&str, f64)]| find(rows, name).map(|ratio| format!("x {ratio:.3}"));
        println!(
            "{what:<62} {:>12} {:>12} {:>13} {:>15}",
            cell(run.map(|ns| format!("{ns:.1}"))),
            cell(run.map(|ns| format!("{:+.1}", ns - empty))),
            cell(ratio(&pipes)),
            cell(ratio(&perfs))
        );
    }
    println!(
        "  A run includes what the kernel's statistics of programs cost; pipes: time beside nothing attached, statistics off."
    );
    println!("\n{:<62} {:>12} {:>12}", "reading, by cgroups, banks of 64 CPUs", "µs", "system calls");
    let online = std::thread::available_parallelism()?.get();
    for line in lines.iter().filter(|line| line[0] == "read") {
        let [_, name, rows, us] = line[..] else { continue };
        let (what, calls) = match name {
            "switch-banks" => ("tier switch: the banks", "0".to_owned()),
            "switch-with-closing" => {
                ("tier switch: and closing the open slice of each CPU", format!("64, {online} online"))
            }
            _ => ("tier kernel: the walk, on the CPUs of this machine", "3, more for v1".to_owned()),
        };
        println!("{:<62} {us:>12} {calls:>12}", format!("{what}, {rows}"));
    }
    Ok(())
}

/// What one reading of each source costs, in microseconds of CPU, in the order of its numbers of zones.
fn readings() -> Result<Vec<(String, Vec<f64>)>> {
    step("what one reading of each source costs");
    costs("tick_cost")
}

/// What an example prints: name, number, cost.
fn costs(example: &str) -> Result<Vec<(String, Vec<f64>)>> {
    let text = output(
        Command::new("cargo")
            .args(["run", "--release", "--quiet", "--package", "probe-user", "--example", example])
            .current_dir(root()),
    )?;
    let mut all: Vec<(String, Vec<f64>)> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, _, cost] = words[..] else { continue };
        let Ok(cost) = cost.parse() else { continue };
        match all.iter_mut().find(|(known, _)| known == name) {
            Some((_, costs)) => costs.push(cost),
            None => all.push((name.to_owned(), vec![cost])),
        }
    }
    Ok(all)
}

fn probe(bin: &Path, logs: &Path, flags: &[&str]) -> Result<Program> {
    let mut command = Command::new(bin.join("wattcast-probe"));
    command.arg("--web.listen-address=127.0.0.1:0").args(flags);
    Program::start("probe", &mut command, logs)
}

/// From the start of the process to a page that holds a measured interval.
fn first_scrape(bin: &Path, logs: &Path) -> Result<Duration> {
    let start = Instant::now();
    let mut program = probe(bin, logs, &[])?;
    let client = program.client()?;
    while !client.text("/metrics")?.contains("\nwattcast_power_watts") {
        if start.elapsed() > Duration::from_secs(10) {
            bail!("no complete page within 10 s:\n{}", program.log());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(start.elapsed())
}

struct Cost {
    streams: usize,
    /// Percent of one CPU, user space.
    cpu: f64,
    rss_mb: f64,
    /// Percent of one CPU, nanoseconds a run, runs a second of the kernel side.
    kernel: Option<(f64, f64, u64)>,
    jitter_mean: f64,
    jitter_count: u64,
    jitter_within: u64,
}

fn cost(bin: &Path, logs: &Path, seconds: u64, streams: usize, flags: &[&str]) -> Result<Cost> {
    let mut program = probe(bin, logs, flags)?;
    let client = program.client()?;
    let load = Streams::start(streams)?;
    std::thread::sleep(Duration::from_secs(3));
    let statistics = BpfStatistics::enable();
    let (kernel, before, start) = (bpf_runs(program.pid()), page(&client)?, Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let (kernel_after, after, wall) = (bpf_runs(program.pid()), page(&client)?, start.elapsed().as_secs_f64());
    drop(statistics);

    let grown = |name: &str| -> Result<f64> { Ok(find(&after, name, &[])? - find(&before, name, &[])?) };
    let kernel = kernel.zip(kernel_after).filter(|(before, after)| after.1 > before.1).map(|(before, after)| {
        let (ns, runs) = ((after.0 - before.0) as f64, after.1 - before.1);
        (100.0 * ns / 1e9 / wall, ns / runs as f64, runs / seconds)
    });
    let within = |page: &[Sample]| find(page, "wattcast_tick_jitter_seconds_bucket", &[("le", "0.005")]);
    let ticks = grown("wattcast_tick_jitter_seconds_count")?;
    Ok(Cost {
        streams: load.0.len(),
        cpu: 100.0 * grown("process_cpu_seconds_total")? / wall,
        rss_mb: find(&after, "process_resident_memory_bytes", &[])? / 1e6,
        kernel,
        jitter_mean: grown("wattcast_tick_jitter_seconds_sum")? / ticks,
        jitter_count: ticks as u64,
        jitter_within: (within(&after)? - within(&before)?) as u64,
    })
}

fn page(client: &Client) -> Result<Vec<Sample>> {
    client.mark()?;
    client.metrics()
}

fn find(page: &[Sample], name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    page.iter()
        .find(|sample| sample.name == name && labels.iter().all(|(label, value)| sample.label(label) == *value))
        .map(|sample| sample.value)
        .with_context(|| format!("the page has no {name}{labels:?}"))
}

/// Nanoseconds and runs of all programs of a process, from its descriptors' fdinfo (kernel/bpf/syscall.c,
/// bpf_prog_show_fdinfo).
fn bpf_runs(pid: u32) -> Option<(u64, u64)> {
    let (mut ns, mut runs, mut found) = (0, 0, false);
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
        if let (Some(time), Some(count)) = (field("run_time_ns:"), field("run_cnt:")) {
            ns += time;
            runs += count;
            found = true;
        }
    }
    found.then_some((ns, runs))
}

/// The kernel's own statistics of eBPF programs, on while this lives. They add about 40 ns a run themselves.
struct BpfStatistics(Option<String>);

impl BpfStatistics {
    const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

    fn enable() -> Self {
        let before = fs::read_to_string(Self::SWITCH).ok();
        Self(fs::write(Self::SWITCH, "1").ok().and(before))
    }
}

impl Drop for BpfStatistics {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = fs::write(Self::SWITCH, before.trim());
        }
    }
}

/// Live transcodes, each in a cgroup of its own.
struct Streams(Vec<(std::process::Child, cgroup::Cgroup)>);

impl Streams {
    fn start(count: usize) -> Result<Self> {
        let mut all = Self(Vec::new());
        if count == 0 {
            return Ok(all);
        }
        let ffmpeg: PathBuf = which("ffmpeg").context("ffmpeg is not in PATH (Debian: apt-get install ffmpeg)")?;
        let tree = cgroup::v2().context("no cgroup v2 tree is mounted")?;
        for stream in 0..count {
            let cgroup = cgroup::Cgroup::create(&tree, &format!("wattcast-bench-{}-{stream}", std::process::id()))?;
            let mut command = Command::new(&ffmpeg);
            command
                .args(["-nostdin", "-loglevel", "error", "-re", "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25"])
                .args(["-c:v", "libx264", "-preset", "ultrafast", "-f", "null", "-"])
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            cgroup.enter(&mut command)?;
            die_with_us(&mut command);
            all.0.push((command.spawn()?, cgroup));
        }
        Ok(all)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        for (child, _) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
