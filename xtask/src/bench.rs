//! `cargo xtask bench`: measures the overhead of the programs, next to the claims of the legacy
//! exporters.
//!
//! The figures hold for one machine and vary with its load. Nothing here passes or fails, except
//! the comparison of two revisions, and the search for the least energy, which must find the winner
//! of its full grid.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    build_ebpf, compare_bench, hosts_bench, marks, peers_bench, process, results_bench, scale_bench, search_bench,
    trial::megabytes, web_bench,
};
use testkit::{
    api::{Client, Sample},
    program::{CgroupProcess, Program},
    shell::{self, is_root, output, root, step, target, which},
};

const STARTS: usize = 7;
const STREAMS: usize = 8;
const MEASURE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub struct Bench {
    /// Subject of the measurement
    #[arg(value_enum, default_value_t)]
    subject: Subject,

    /// Duration of the CPU and jitter measurements
    #[arg(long, value_name = "SECONDS", default_value_t = MEASURE.as_secs())]
    seconds: u64,

    /// Replace the tables and plots in the documentation (peers, scale, hosts)
    #[arg(long)]
    write: bool,

    /// Compare with another revision; fails if the working tree is slower or larger
    #[arg(long, value_name = "REVISION", conflicts_with_all = ["subject", "seconds", "write"])]
    compare: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Subject {
    /// The whole probe, and the reading of energy sources
    #[default]
    Probe,
    /// The CPU tiers: cost per context switch and per reading
    Cpu,
    /// The analysis service with many files and many scenarios
    Results,
    /// Both programs with 100 concurrent scrapers
    Web,
    /// The probe next to node_exporter, and Scaphandre and Rezolus if they are installed
    Peers,
    /// Both programs with 10 to 4,000 containers and 100 to 10,000 result files
    Scale,
    /// The search for the least energy and its full grid, with simulated energy
    Search,
    /// One service with 50 probes of which some are faulty, and a database for 1000 hosts
    Hosts,
}

impl Subject {
    /// The document and its sections that `--write` replaces; `None` for what is only printed.
    fn sections(self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            Self::Peers => Some(("performance", &["peers"])),
            Self::Scale => Some(("performance", &["scale"])),
            Self::Hosts => Some(("scale", &["hosts", "load"])),
            Self::Probe | Self::Cpu | Self::Results | Self::Web | Self::Search => None,
        }
    }

    /// True when the eBPF programs, which need root, are part of the measurement.
    fn has_ebpf(self) -> bool {
        !matches!(self, Self::Results | Self::Web | Self::Hosts)
    }
}

/// Builds the release binaries, measures them and prints or writes a table.
pub fn bench(args: &Bench) -> Result<()> {
    let subject = args.subject;
    if args.write {
        // A missing mark is found before the measurement, not after it.
        let (document, sections) = subject.sections().context("--write needs peers, scale or hosts")?;
        marks::check(document, sections)?;
    }
    ensure!(is_root() || !subject.has_ebpf(), "this needs root: the eBPF programs are part of the measurement");
    if let Some(base) = &args.compare {
        return compare_bench::bench(base);
    }
    if subject.has_ebpf() {
        build_ebpf::build_ebpf()?;
    }
    match subject {
        Subject::Probe => whole_probe(args.seconds),
        Subject::Cpu => cpu(),
        Subject::Results => results_bench::bench(),
        Subject::Web => web_bench::bench(args.seconds),
        Subject::Peers => peers_bench::bench(args.write),
        Subject::Scale => scale_bench::bench(args.write),
        Subject::Search => search_bench::bench(),
        Subject::Hosts => hosts_bench::bench(args.seconds, args.write),
    }
}

/// Measures the whole probe, and the reading of energy sources.
fn whole_probe(seconds: u64) -> Result<()> {
    shell::build_release()?;
    step("measuring the reading of each energy source");
    let readings = costs("tick_cost")?;
    step("measuring GPUs");
    // The fake NVML library has its own row, so that its time can be subtracted.
    let gpus = costs("gpu_cost")?;
    step("measuring memory, CPU limits, network and block I/O of containers");
    let usage = costs("stats_cost")?;
    let bin = shell::release_dir();
    let logs = target().join("bench");
    fs::create_dir_all(&logs)?;

    eprintln!("Measuring");
    step(format!("start to first complete scrape, {STARTS} times"));
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(first_scrape(&bin, &logs)?);
    }
    starts.sort_unstable();
    step(format!("{seconds} s idle"));
    let idle = probe_cost(&bin, &logs, seconds, 0, &[])?;
    step(format!("{seconds} s with {STREAMS} ffmpeg streams"));
    let busy = probe_cost(&bin, &logs, seconds, STREAMS, &[])?;
    // Perf events of the kernel's clock simulate two sockets: like RAPL, each reading calls another
    // CPU.
    let sysfs = format!("--path.sysfs={}", root().join("probe-user/tests/fixtures/perf-two-sockets/sys").display());
    let mut sampled = Vec::new();
    for hertz in [None, Some(10), Some(50)] {
        step(format!("{seconds} s of sub-second power at {} Hz", hertz.unwrap_or(0)));
        let flag = hertz.map(|hertz| format!("--power.distribution={hertz}"));
        let flags: Vec<&str> = std::iter::once(&*sysfs).chain(flag.as_deref()).collect();
        sampled.push((hertz, probe_cost(&bin, &logs, seconds, 0, &flags)?.cpu));
    }

    print_probe(&starts, &idle, &busy);
    for (name, claim) in [("wattcast-probe", "5.3 MB"), ("wattcast-analysis", "")] {
        let bytes = fs::metadata(bin.join(name))?.len();
        row(&format!("size of {name}"), format!("{:.1} MB", megabytes(bytes)), claim);
    }
    for (hertz, cpu) in sampled {
        let label = hertz.map_or("sub-second power off, 2 sockets".to_owned(), |hertz| format!("  at {hertz} Hz"));
        row(&label, format!("{cpu:.2} % of one CPU"), "");
    }
    print_costs(&readings, &gpus, &usage);
    Ok(())
}

fn row(label: &str, value: String, reference: &str) {
    println!("{label:<44} {value:<34} {reference}");
}

/// Prints start time, memory, CPU and jitter of the probe.
fn print_probe(starts: &[Duration], idle: &ProbeCost, busy: &ProbeCost) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!();
    row("", "wattcast-probe".into(), "Go exporter (claimed)");
    row(
        "start to first complete scrape",
        format!("{:.0} ms median ({:.0} to {:.0})", ms(starts[STARTS / 2]), ms(starts[0]), ms(starts[STARTS - 1])),
        "< 500 ms",
    );
    row("resident memory, idle", format!("{:.1} MB", idle.rss_mb), "8 MB");
    row(&format!("resident memory, {} streams", busy.streams), format!("{:.1} MB", busy.rss_mb), "8 MB");
    row("CPU at 1 Hz, idle", format!("{:.2} % of one CPU", idle.cpu), "");
    row(&format!("CPU at 1 Hz, {} streams", busy.streams), format!("{:.2} % of one CPU", busy.cpu), "0.8 %");
    for (load, cost) in [("idle", idle), ("streams", busy)] {
        if let Some((share, ns, count)) = cost.ebpf {
            row(
                &format!("  eBPF programs, {load}"),
                format!("{share:.2} % of one CPU, {ns:.0} ns x {count}/s"),
                "none: does not read CPU time",
            );
        }
    }
    row("tick jitter, mean", format!("{:.3} ms", busy.jitter_mean * 1e3), "");
    row("ticks with less than 5 ms of jitter", format!("{} of {}", busy.jitter_within, busy.jitter_count), "< 5 ms");
}

/// Prints the CPU time per reading of energy sources, GPUs and container usage.
fn print_costs(readings: &[Costs], gpus: &[Costs], usage: &[Costs]) {
    println!();
    row("CPU time per reading, by number of zones", "4 / 8 / 16 / 64".into(), "goal");
    for (name, costs) in readings {
        let costs: Vec<String> = costs.iter().map(|us| format!("{us:.1}")).collect();
        let goal = if *name == "powercap" { "20 µs for 8 zones" } else { "" };
        row(&format!("  {name}"), format!("{} µs", costs.join(" / ")), goal);
    }
    println!("  powercap, msr and hwmon read plain files here; hardware adds a call to another CPU per package.");
    println!();
    row("CPU time per tick, by GPUs of 8 processes", "1 / 8".into(), "goal");
    for (name, costs) in gpus {
        let costs: Vec<String> = costs.iter().map(|us| format!("{:.3}", us / 1000.0)).collect();
        let (label, goal) = match &**name {
            "probe" => ("  probe", "2 ms for 8 with 64 processes"),
            _ => ("  fake NVML library", ""),
        };
        row(label, format!("{} ms", costs.join(" / ")), goal);
    }
    println!();
    row("CPU time per tick, by containers", "50 / 500 / 4000 without a network".into(), "goal");
    for (name, costs) in usage {
        let costs: Vec<String> = costs.iter().map(|ms| format!("{ms:.2}")).collect();
        let goal = if *name == "iterator" { "2 ms for 500, 8 ms for 4000" } else { "" };
        row(&format!("  containers by {name}"), format!("{} ms", costs.join(" / ")), goal);
    }
}

/// Prints the output of the example `switch_cost` as tables.
fn cpu() -> Result<()> {
    step("measuring each CPU tier (about three minutes)");
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
        ("kernel", "tier kernel: no program at context switches"),
        ("switch", "tier switch"),
        ("switch-siblings", "  with separate time of hyperthread siblings"),
        ("switch-untyped", "  raw tracepoint variant"),
        ("counters", "tier counters (software counters where there is no hardware)"),
    ];
    let find =
        |rows: &[(&str, f64)], name: &str| rows.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    let (runs, pipes, perfs) = (of("switch"), of("pipe"), of("perf-pipe"));
    let empty = find(&runs, "empty").context("the empty program was not measured")?;
    println!("\n{:<62} {:>12} {:>12} {:>13} {:>15}", "", "ns per run", "vs. empty", "own pipe", "perf pipe");
    for (name, label) in names {
        let cell = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
        let run = find(&runs, name);
        let ratio = |rows: &[(&str, f64)]| find(rows, name).map(|ratio| format!("x {ratio:.3}"));
        println!(
            "{label:<62} {:>12} {:>12} {:>13} {:>15}",
            cell(run.map(|ns| format!("{ns:.1}"))),
            cell(run.map(|ns| format!("{:+.1}", ns - empty))),
            cell(ratio(&pipes)),
            cell(ratio(&perfs))
        );
    }
    println!(
        "  A run includes the cost of the kernel's program statistics. Pipes: time relative to nothing attached, without statistics."
    );
    println!("\n{:<62} {:>12} {:>12}", "reading, by number of cgroups, banks of 64 CPUs", "µs", "system calls");
    let online = std::thread::available_parallelism()?.get();
    for line in lines.iter().filter(|line| line[0] == "read") {
        let [_, name, rows, us] = line[..] else { continue };
        let (label, calls) = match name {
            "switch-banks" => ("tier switch: banks", "0".to_owned()),
            "switch-with-closing" => {
                ("tier switch: banks, and the open time slice of each CPU", format!("64, {online} online"))
            }
            _ => ("tier kernel: cgroup iterator, on the CPUs of this machine", "3, more for v1".to_owned()),
        };
        println!("{:<62} {us:>12} {calls:>12}", format!("{label}, {rows}"));
    }
    Ok(())
}

/// A name with its costs.
type Costs = (String, Vec<f64>);

/// Runs an example that prints lines of name, count and cost; returns the costs by name.
fn costs(example: &str) -> Result<Vec<Costs>> {
    let text = output(
        Command::new("cargo")
            .args(["run", "--release", "--quiet", "--package", "probe-user", "--example", example])
            .current_dir(root()),
    )?;
    let mut all: Vec<Costs> = Vec::new();
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

/// Time from the start of the process to a page with a measured interval.
fn first_scrape(bin: &Path, logs: &Path) -> Result<Duration> {
    let start = Instant::now();
    let mut program = probe(bin, logs, &[])?;
    let client = program.client()?;
    while !client.text("/metrics")?.contains("\nwattcast_power_watts") {
        if start.elapsed() > Duration::from_secs(10) {
            bail!("no complete page after 10 s:\n{}", program.log());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(start.elapsed())
}

struct ProbeCost {
    streams: usize,
    /// Percent of one CPU, user space.
    cpu: f64,
    rss_mb: f64,
    /// eBPF programs: percent of one CPU, nanoseconds per run, runs per second.
    ebpf: Option<(f64, f64, u64)>,
    jitter_mean: f64,
    jitter_count: u64,
    jitter_within: u64,
}

fn probe_cost(bin: &Path, logs: &Path, seconds: u64, stream_count: usize, flags: &[&str]) -> Result<ProbeCost> {
    let mut program = probe(bin, logs, flags)?;
    let client = program.client()?;
    let load = streams(stream_count)?;
    std::thread::sleep(Duration::from_secs(3));
    let statistics = process::BpfStatistics::enable();
    let (ebpf, before, start) = (process::bpf_runs(program.pid()), page(&client)?, Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let (ebpf_after, after, wall) = (process::bpf_runs(program.pid()), page(&client)?, start.elapsed().as_secs_f64());
    drop(statistics);

    let increase = |name: &str| -> Result<f64> { Ok(find(&after, name, &[])? - find(&before, name, &[])?) };
    let ebpf = ebpf.zip(ebpf_after).filter(|(before, after)| after.1 > before.1).map(|(before, after)| {
        let (ns, runs) = ((after.0 - before.0) as f64, after.1 - before.1);
        (100.0 * ns / 1e9 / wall, ns / runs as f64, runs / seconds)
    });
    let within = |page: &[Sample]| find(page, "wattcast_tick_jitter_seconds_bucket", &[("le", "0.005")]);
    let ticks = increase("wattcast_tick_jitter_seconds_count")?;
    Ok(ProbeCost {
        streams: load.len(),
        cpu: 100.0 * increase("process_cpu_seconds_total")? / wall,
        rss_mb: find(&after, "process_resident_memory_bytes", &[])? / 1e6,
        ebpf,
        jitter_mean: increase("wattcast_tick_jitter_seconds_sum")? / ticks,
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

/// Starts live transcodes, each in its own cgroup.
fn streams(count: usize) -> Result<Vec<CgroupProcess>> {
    let ffmpeg = || which("ffmpeg").context("ffmpeg is not in PATH (Debian: apt-get install ffmpeg)");
    let start = |stream| {
        let mut command = Command::new(ffmpeg()?);
        command
            .args(["-nostdin", "-loglevel", "error", "-re", "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25"])
            .args(["-c:v", "libx264", "-preset", "ultrafast", "-f", "null", "-"])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        CgroupProcess::start(&format!("wattcast-bench-{}-{stream}", std::process::id()), &mut command)
    };
    (0..count).map(start).collect()
}
