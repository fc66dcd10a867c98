//! `cargo xtask bench search`: the search for the least energy against every rate of the same
//! candidates, on a small clip. Energy is simulated from the load of this machine, so the winner is
//! that of CPU time; what is compared is the number of encodes, and whether both find the same.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use statistics::{inference::Welch, mean, quantile};

use testkit::{
    program::{Program, kill_on_parent_exit},
    require::vmaf_ffmpeg,
    shell::{self, step, target},
    simulator::{Simulator, Spec},
};

/// Longest time of both runs together.
const LIMIT: Duration = Duration::from_secs(420);
/// Repeats of each configuration of the grid.
const REPEATS: &str = "3";
/// Bounds of the rates in kbit/s: five steps of 19 %.
const RATES: [&str; 2] = ["100", "200"];
/// What both runs have in common. The baseline lets the probe find the idle power first, so that
/// all energy is of one kind.
const COMMON: [(&str, &str); 9] = [
    ("--encoder", "libx264,libx265"),
    ("--preset", "ultrafast,superfast,veryfast,medium"),
    ("--resolution", "160x90"),
    ("--fps", "25"),
    ("--duration", "1s"),
    ("--baseline", "1s"),
    ("--cooldown", "0"),
    ("--stabilization", "0"),
    ("--seed", "1"),
];
/// Probability below which two candidates of the grid differ.
const SIGNIFICANT: f64 = 0.05;

/// The metric that is scored: its name, the pooling of its frames, and the flag of its target.
type Metric = (&'static str, &'static str, &'static str);
const VMAF: Metric = ("vmaf", "mean", "--target-vmaf");
const PSNR: Metric = ("psnr", "mean_mse", "--target-psnr");

/// Programs and directories of both runs.
struct Host {
    analysis: PathBuf,
    probe: String,
    ffmpeg: PathBuf,
    dir: PathBuf,
    deadline: Instant,
}

/// One rate of a candidate in the grid.
#[derive(Debug, Default)]
struct Point {
    /// Joules per second of media of each repeat.
    joules: Vec<f64>,
    score: Option<f64>,
}

/// The points of each candidate by bit rate in kbit/s. A candidate is an encoder with its preset.
type Grid = BTreeMap<String, BTreeMap<u32, Point>>;

/// A candidate at the lowest rate that reaches the target.
struct AtTarget<'g> {
    label: &'g str,
    kbps: u32,
    joules: &'g [f64],
}

/// Builds the release binaries, runs grid and search, and prints what both found.
///
/// # Errors
/// When a run fails or takes too long, or the search finds another winner than the grid.
pub(crate) fn bench() -> Result<()> {
    let bin = shell::build_release()?;
    let (dir, logs) = (tempfile::tempdir()?, target().join("bench"));
    fs::create_dir_all(&logs)?;
    let simulator = Simulator::start(&dir.path().join("rapl"), &Spec::default())?;
    let mut command = Command::new(bin.join("wattcast-probe"));
    command.arg("--web.listen-address=127.0.0.1:0").arg("--path.sysfs").arg(simulator.sysfs());
    let mut probe = Program::start("probe", &mut command, &logs)?;
    let vmaf = vmaf_ffmpeg();
    let metrics = if vmaf.is_some() { vec![VMAF, PSNR] } else { vec![PSNR] };
    let host = Host {
        analysis: bin.join("wattcast-analysis"),
        probe: probe.client()?.url(""),
        ffmpeg: vmaf.unwrap_or_else(|| PathBuf::from("ffmpeg")),
        dir: dir.path().to_owned(),
        deadline: Instant::now() + LIMIT,
    };
    let rates = host.rates()?;
    step(format!("every rate of every candidate, {REPEATS} times ({} rates)", rates.len()));
    let list = rates.iter().map(|rate| format!("{rate}k")).collect::<Vec<_>>().join(",");
    let flags = ["suite", "--bitrate", &list, "--repeats", REPEATS, "--analyze-quality"];
    let (results, grid_time) = host.run("grid", &flags)?;
    let scored = |metric: Metric| -> Option<(Metric, Grid, f64)> {
        let grid = grid(&results, metric).ok()?;
        let target = target_of(&grid, &rates)?;
        Some((metric, grid, target))
    };
    let (metric, grid, target) = metrics.into_iter().find_map(scored).context("the grid has no scores")?;
    step(format!("the search for {} {target}", metric.0));
    let target_text = target.to_string();
    let flags = [&search_flags()[..], &[metric.2, &target_text]].concat();
    let (results, search_time) = host.run("search", &flags)?;
    simulator.alive()?;
    probe.alive()?;
    compare(&grid, target, &results["search"], [grid_time, search_time])
}

/// The goal, without its target.
fn search_flags() -> [&'static str; 6] {
    ["search", "energy", "--min-bitrate", RATES[0], "--max-bitrate", RATES[1]]
}

impl Host {
    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(&self.analysis);
        command.arg("run").args(flags).args(COMMON.iter().flat_map(|(flag, value)| [flag, value]));
        command.args(["--force", "--probe-url", &self.probe]);
        for flag in ["--ffmpeg", "--quality-ffmpeg"] {
            command.arg(flag).arg(&self.ffmpeg);
        }
        command
    }

    /// The bit rates that the search tries, in kbit/s.
    fn rates(&self) -> Result<Vec<u32>> {
        let flags = [&search_flags()[..], &[PSNR.2, "40", "--dry-run", "--json"]].concat();
        let text = shell::output(self.command(&flags).arg("--results-dir").arg(&self.dir))?;
        let plan: Value = serde_json::from_str(&text).context("the dry run is not JSON")?;
        let rates = plan["plan"]["energy_search"]["candidates"][0]["ladder"]["kbps"].clone();
        serde_json::from_value(rates).context("the plan has no bit rates")
    }

    /// Runs to the end; returns the result file, and how long it took.
    fn run(&self, name: &str, flags: &[&str]) -> Result<(Value, Duration)> {
        let (out, log) = (self.dir.join(name), self.dir.join(format!("{name}.log")));
        fs::create_dir_all(&out)?;
        let file = File::create(&log)?;
        let mut command = self.command(flags);
        command.arg("--results-dir").arg(&out).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        kill_on_parent_exit(&mut command);
        let began = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.analysis.display()))?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > self.deadline {
                child.kill()?;
                child.wait()?;
                bail!("{name}: both runs did not end in {} s", LIMIT.as_secs());
            }
            thread::sleep(Duration::from_millis(50));
        };
        let took = began.elapsed();
        let text = fs::read_to_string(&log).unwrap_or_default();
        ensure!(status.success(), "{name}: {status}\n{}", text.trim_end());
        Ok((serde_json::from_slice(&fs::read(result_file(&out)?)?)?, took))
    }
}

/// The one result file of a directory.
fn result_file(dir: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            return Ok(path);
        }
    }
    bail!("{}: no result file", dir.display())
}

/// The points of a result file.
fn grid(results: &Value, (metric, pooling, _): Metric) -> Result<Grid> {
    let mut grid = Grid::new();
    for cell in results["cells"].as_array().into_iter().flatten() {
        let axes = &cell["axes"];
        let text = |name: &str| axes[name].as_str().unwrap_or_default();
        let kbps = text("bitrate").trim_end_matches('k').parse::<u32>().context("a configuration has no bit rate")?;
        let label = format!("{} {}", text("encoder"), text("preset"));
        let point = grid.entry(label).or_default().entry(kbps).or_default();
        for repeat in cell["repeats"].as_array().into_iter().flatten().filter(|repeat| repeat["status"] == "ok") {
            point.joules.extend(joules_per_second(repeat));
            let scores = repeat["quality"].as_array().into_iter().flatten();
            let mut own = scores.filter(|score| score["metric"] == metric && score["pooling"] == pooling);
            point.score = point.score.or(own.find_map(|score| score["value"].as_f64()));
        }
    }
    ensure!(!grid.is_empty(), "the grid has no configurations");
    Ok(grid)
}

/// The energy of a repeat per second of media: of its container, as the search compares it.
fn joules_per_second(repeat: &Value) -> Option<f64> {
    let of = |scope: &str| {
        let domains = repeat["energy"].as_array().into_iter().flatten().filter(|domain| domain["scope"] == scope);
        domains.filter_map(|domain| domain["microjoules"].as_f64()).reduce(|sum, more| sum + more)
    };
    let microjoules = of("container").or_else(|| of("host"))?;
    let media = repeat["media_seconds"].as_f64().filter(|seconds| *seconds > 0.0)?;
    Some(microjoules / 1e6 / media)
}

/// A quality that most candidates reach within the rates: the median of their scores at the middle
/// one.
fn target_of(grid: &Grid, rates: &[u32]) -> Option<f64> {
    let middle = rates.get(rates.len() / 2)?;
    let scores: Vec<f64> = grid.values().filter_map(|points| points.get(middle)?.score).collect();
    Some((quantile(&scores, 0.5).filter(|_| !scores.is_empty())? * 10.0).floor() / 10.0)
}

/// The candidates that reach the target, the least energy first.
fn at_target(grid: &Grid, target: f64) -> Vec<AtTarget<'_>> {
    let mut all: Vec<AtTarget<'_>> = Vec::new();
    for (label, points) in grid {
        let reached = points.iter().find(|(_, point)| point.score.is_some_and(|score| score >= target));
        if let Some((kbps, point)) = reached
            && !point.joules.is_empty()
        {
            all.push(AtTarget { label, kbps: *kbps, joules: &point.joules });
        }
    }
    let value = |one: &AtTarget<'_>| mean(one.joules).unwrap_or(f64::INFINITY);
    all.sort_by(|a, b| value(a).total_cmp(&value(b)));
    all
}

/// Prints both results, and checks that they agree.
fn compare(grid: &Grid, target: f64, search: &Value, [grid_time, search_time]: [Duration; 2]) -> Result<()> {
    let all = at_target(grid, target);
    let best = all.first().context("no candidate of the grid reaches the target")?;
    let encodes: usize = grid.values().flat_map(BTreeMap::values).map(|point| point.joules.len()).sum();
    let candidates = || search["candidates"].as_array().into_iter().flatten();
    let is_best = |one: &&Value| one["status"] == "winner" || one["status"] == "tied";
    let found: Vec<String> = candidates().filter(is_best).map(label).collect();
    println!("\n{:<12} {:>8} {:>8}   winner", "", "encodes", "time");
    println!(
        "{:<12} {encodes:>8} {:>6.0} s   {} at {} kbit/s",
        "full grid",
        grid_time.as_secs_f64(),
        best.label,
        best.kbps
    );
    let searched = search["encodes"].as_u64().context("the search has no number of encodes")?;
    println!("{:<12} {searched:>8} {:>6.0} s   {}", "search", search_time.as_secs_f64(), found.join(" or "));
    println!("{}\n", search["summary"].as_str().unwrap_or_default());
    for one in &all {
        println!("  {:<22} {:>5} kbit/s {:>9.3} J/s", one.label, one.kbps, mean(one.joules).unwrap_or(f64::NAN));
    }
    if found.iter().any(|label| label == best.label) {
        println!("The same winner{}.", if found.len() > 1 { ", in a tie" } else { "" });
        return Ok(());
    }
    let other = found.first().and_then(|label| all.iter().find(|one| one.label == label));
    let test = other.and_then(|other| Welch::of(best.joules, other.joules));
    match test {
        Some(test) if test.p >= SIGNIFICANT => {
            println!("Another winner, which does not differ significantly in the grid (p {:.2}).", test.p);
            Ok(())
        }
        _ => bail!("the search finds another winner than the grid"),
    }
}

fn label(candidate: &Value) -> String {
    candidate["label"].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn results() -> Value {
        let repeat = |microjoules: u64, score: f64| {
            json!({
                "status": "ok", "media_seconds": 2.0,
                "energy": [
                    {"scope": "host", "microjoules": 9_000_000},
                    {"scope": "container", "microjoules": microjoules},
                    {"scope": "container", "microjoules": 1_000_000},
                ],
                "quality": [{"metric": "psnr", "pooling": "mean", "value": 1.0},
                            {"metric": "psnr", "pooling": "mean_mse", "value": score}],
            })
        };
        let cell = |preset: &str, rate: &str, joules: u64, score: f64| {
            let axes = json!({"encoder": "libx264", "preset": preset, "bitrate": rate});
            json!({"axes": axes, "repeats": [repeat(joules * 1_000_000, score), repeat(joules * 1_000_000 + 10_000, score)]})
        };
        json!({"cells": [
            cell("fast", "100k", 3, 30.0), cell("fast", "200k", 5, 34.0),
            cell("slow", "100k", 9, 33.0), cell("slow", "200k", 11, 36.0),
        ]})
    }

    #[test]
    fn the_least_energy_at_the_target_wins_the_grid() {
        let grid = grid(&results(), PSNR).unwrap();
        assert_eq!(grid["libx264 fast"][&100].joules[0], 2.0, "4 J of the container for 2 s of media");
        let all = at_target(&grid, 33.0);
        let found: Vec<(&str, u32)> = all.iter().map(|one| (one.label, one.kbps)).collect();
        assert_eq!(found, [("libx264 fast", 200), ("libx264 slow", 100)]);
        assert_eq!(target_of(&grid, &[100, 200]), Some(35.0), "the median of 34 and 36 at the middle rate");
        assert_eq!(target_of(&grid, &[]), None);
    }

    #[test]
    fn another_winner_is_an_error_unless_it_does_not_differ() {
        let grid = grid(&results(), PSNR).unwrap();
        let search = |preset: &str, status: &str| json!({"encodes": 9, "summary": "x", "candidates": [{"label": format!("libx264 {preset}"), "status": status}]});
        let times = [Duration::from_secs(9), Duration::from_secs(3)];
        assert!(compare(&grid, 33.0, &search("fast", "winner"), times).is_ok());
        assert!(compare(&grid, 33.0, &search("slow", "winner"), times).is_err());
        assert!(compare(&grid, 33.0, &search("fast", "dearer"), times).is_err(), "no winner");
        assert!(compare(&grid, 99.0, &search("fast", "winner"), times).is_err(), "out of reach");
    }
}
