//! Cost of each tier of CPU time per context switch, and of a reading. Run by `cargo xtask bench
//! cpu`; prints lines.
//!
//! `switch NAME NANOSECONDS` is the kernel's average per run, with `kernel.bpf_stats_enabled` on.
//! `pipe NAME RATIO` is the duration of a ping-pong through two pipes on one CPU, relative to that
//! with nothing attached, with statistics off. `read NAME ROWS MICROSECONDS` is the duration of a
//! reading. Compared values are measured in turns, and the median is printed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a measurement that cannot go on has failed")]

use std::{fs, process::Command, time::Instant};

use probe_user::{
    cpu::{CpuPaths, CpuReader, CpuReading, EmptyProgram, KernelTier, PerfCounters, ProgramRow, SwitchTier},
    host::topology::Topology,
};

const TURNS: u32 = 200_000;
const ROUNDS: usize = 7;
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The program that is attached during a measurement.
enum Attached {
    Nothing,
    Empty(Box<EmptyProgram>),
    Tier(Box<dyn CpuReader>),
}

impl Attached {
    fn program(&self, name: &str) -> Option<ProgramRow> {
        let costs = match self {
            Self::Nothing => Vec::new(),
            Self::Empty(empty) => empty.costs(),
            Self::Tier(reader) => reader.costs(),
        };
        costs.into_iter().find(|cost| cost.name == name)
    }
}

fn attach(name: &str) -> Attached {
    let cpus = std::thread::available_parallelism().unwrap().get();
    let alone = || Ok(vec![None; cpus]);
    let paths = CpuPaths { cgroupfs: "/sys/fs/cgroup".into(), procfs: "/proc".into() };
    let topology = Topology::read("/sys".as_ref());
    match name {
        "nothing" => Attached::Nothing,
        "empty" => Attached::Empty(Box::new(EmptyProgram::load().unwrap())),
        "kernel" => Attached::Tier(Box::new(KernelTier::load(&paths).unwrap())),
        "switch" => Attached::Tier(Box::new(SwitchTier::load_with(alone(), None, true).unwrap())),
        "switch-untyped" => Attached::Tier(Box::new(SwitchTier::load_with(alone(), None, false).unwrap())),
        // As on a core with two threads: CPUs 0 and 1 are declared siblings.
        "switch-siblings" => {
            Attached::Tier(Box::new(SwitchTier::load_with(Ok(vec![Some(1), Some(0)]), None, true).unwrap()))
        }
        "counters" => {
            // Without hardware counters, software events are used: the same helper with another
            // PMU.
            let events = PerfCounters::hardware(&topology).unwrap_or_else(|_| {
                let cpus: Vec<usize> = (0..cpus).collect();
                PerfCounters::open(&cpus, [(1, 0), (1, 2), (1, 4)]).unwrap()
            });
            Attached::Tier(Box::new(SwitchTier::load_with(alone(), Some(events), true).unwrap()))
        }
        other => panic!("{other}"),
    }
}

/// Microseconds of one turn on the last CPU.
fn ping_pong(turns: u32) -> f64 {
    let last = std::thread::available_parallelism().unwrap().get() - 1;
    testkit::ping_pong::ping_pong(turns, last).unwrap().as_secs_f64() * 1e6 / f64::from(turns)
}

/// The same with perf's benchmark, if perf is installed.
fn perf_pipe() -> Option<f64> {
    let last = std::thread::available_parallelism().unwrap().get() - 1;
    let mut command = Command::new("taskset");
    command.args(["-c", &last.to_string(), "perf", "bench", "sched", "pipe", "-l", "200000"]);
    let text = String::from_utf8(command.output().ok()?.stdout).ok()?;
    text.lines().find(|line| line.contains("usecs/op"))?.split_whitespace().next()?.parse().ok()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Statistics(String);

impl Statistics {
    fn on() -> Self {
        let before = fs::read_to_string(STATISTICS).unwrap();
        fs::write(STATISTICS, "1").unwrap();
        Self(before)
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        let _ = fs::write(STATISTICS, self.0.trim());
    }
}

fn switches() {
    let names = ["empty", "switch", "switch-siblings", "switch-untyped", "counters"];
    let statistics = Statistics::on();
    let mut all: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    for _ in 0..ROUNDS {
        for (name, values) in names.iter().zip(&mut all) {
            let attached = attach(name);
            let program = if *name == "empty" { "empty" } else { "sched_switch" };
            ping_pong(TURNS / 10);
            let before = attached.program(program).unwrap();
            ping_pong(TURNS);
            let after = attached.program(program).unwrap();
            let runs = u32::try_from(after.runs - before.runs).unwrap();
            let ns = u32::try_from(after.run_ns - before.run_ns).unwrap();
            values.push(f64::from(ns) / f64::from(runs));
        }
    }
    drop(statistics);
    for (name, values) in names.iter().zip(all) {
        println!("switch {name} {:.1}", median(values));
    }
}

fn pipes() {
    let names = ["nothing", "empty", "kernel", "switch", "switch-siblings", "switch-untyped", "counters"];
    // The speed of the machine varies over minutes, so compared runs follow each other directly.
    let mut all: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); names.len()];
    for _ in 0..ROUNDS {
        let (mut nothing, mut nothing_perf) = (1.0, None);
        for (name, (ours, perfs)) in names.iter().zip(&mut all) {
            let _attached = attach(name);
            ping_pong(TURNS / 10);
            let (our, perf) = (ping_pong(TURNS), perf_pipe());
            if *name == "nothing" {
                (nothing, nothing_perf) = (our, perf);
            }
            ours.push(our / nothing);
            perfs.extend(perf.zip(nothing_perf).map(|(perf, nothing)| perf / nothing));
        }
    }
    for (name, (ours, perfs)) in names.iter().zip(all) {
        println!("pipe {name} {:.4}", median(ours));
        if !perfs.is_empty() {
            println!("perf-pipe {name} {:.4}", median(perfs));
        }
    }
}

/// Duration of readings with many cgroups, each of which ran once and so has a row.
fn readings() {
    let root = testkit::cgroup::v2().unwrap();
    for rows in [16, 512, 4096 - 64] {
        // Banks of 64 CPUs; missing CPUs are offline, and their zeros are read all the same.
        let mut switch = SwitchTier::load_with(Ok(vec![None; 64]), None, true).unwrap();
        let paths = CpuPaths { cgroupfs: "/sys/fs/cgroup".into(), procfs: "/proc".into() };
        let cgroups: Vec<_> = (0..rows)
            .map(|number| {
                let cgroup = testkit::cgroup::Cgroup::create(&root, &format!("wattcast-read-{number}")).unwrap();
                let mut command = Command::new("/bin/true");
                cgroup.enter(&mut command).unwrap();
                command.status().unwrap();
                cgroup
            })
            .collect();
        let mut reading = CpuReading::default();
        let mut time = |read: &mut dyn FnMut(&mut CpuReading)| {
            let times = (0..51).map(|_| {
                let start = Instant::now();
                read(&mut reading);
                start.elapsed().as_secs_f64() * 1e6
            });
            let cost = median(times.collect());
            (reading.rows.len(), cost)
        };
        let (found, banks) = time(&mut |reading| switch.read_banks(reading));
        let (_, total) = time(&mut |reading| switch.read(reading).unwrap());
        println!("read switch-banks {found} {banks:.1}");
        println!("read switch-with-closing {found} {total:.1}");
        let mut kernel = KernelTier::load(&paths).unwrap();
        let (_, iteration) = time(&mut |reading| kernel.read(reading).unwrap());
        println!("read kernel {rows} {iteration:.1}");
        drop(cgroups);
    }
}

fn main() {
    let selected: Vec<String> = std::env::args().skip(1).collect();
    let is_selected = |name: &str| selected.is_empty() || selected.iter().any(|one| one == name);
    // Like the tasks of a container, this process runs in its own leaf.
    let leaf = testkit::cgroup::Cgroup::create(&testkit::cgroup::v2().unwrap(), "wattcast-switch-cost").unwrap();
    fs::write(leaf.dir.join("cgroup.procs"), "0").unwrap();
    if is_selected("switch") {
        switches();
    }
    if is_selected("pipe") {
        pipes();
    }
    if is_selected("read") {
        readings();
    }
    // Leave the cgroup so that it can be removed.
    fs::write(testkit::cgroup::v2().unwrap().join("cgroup.procs"), "0").unwrap();
    drop(leaf);
}
