//! `cargo xtask bench --compare BASE`: both programs of another revision and of the working tree,
//! in turn, as ratios with 95 % intervals. It fails where the whole interval is above the limit.
//!
//! The other revision is built in a worktree with a target directory of its own, both below
//! `target/compare`; its binaries stay there, so that the next comparison with it builds nothing.
//!
//! Allocations cannot be counted from outside a program. Page faults stand for what it takes from
//! the kernel, CPU time for what its allocator does, and anonymous memory for what it keeps.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    accuracy::table::Table,
    build_ebpf, results_bench,
    rounds::{Ratio, Rounds},
    stop,
    trial::{self, Exporter, Figure, Plan, Series},
};
use testkit::{
    shell::{self, output, root, run, step, target},
    simulator::{Simulator, Spec},
};

const ROUNDS: u32 = 8;
/// Ratios of the working tree to the base up to which it counts as not worse.
const LIMIT: f64 = 1.05;
/// Result files of the analysis service, and the scenarios of the newest ten of them.
const FILES: u32 = 1000;
const SCENARIOS: u32 = 40;

/// What is compared, with the times of one trial: both revisions take about five minutes.
const PROGRAMS: [(&str, Plan); 2] = [
    (
        "wattcast-probe",
        Plan {
            settle: trial::SETTLE,
            idle: Duration::from_secs(4),
            one: Duration::from_millis(1500),
            many: Duration::ZERO,
        },
    ),
    (
        "wattcast-analysis",
        Plan {
            settle: Duration::from_secs(1),
            idle: Duration::from_secs(1),
            one: Duration::from_millis(1500),
            many: Duration::ZERO,
        },
    ),
];

/// Builds both revisions, measures them in turn and prints a table per program.
///
/// # Errors
/// When a build or a trial fails, after a signal, and when the working tree is slower or larger.
pub(crate) fn bench(base: &str) -> Result<()> {
    stop::catch_signals();
    let sha = commit(base)?;
    step("building the working tree");
    // First, because it installs the linker for eBPF programs where there is none.
    build_ebpf::build_ebpf()?;
    let new = shell::build(&["probe-user", "analysis"], "release")?;
    let old = build_base(base, &sha)?;

    let dir = tempfile::tempdir()?;
    let results = dir.path().join("results");
    fs::create_dir(&results)?;
    results_bench::write_files(&results, 0..FILES)?;
    let simulator = Simulator::start(dir.path(), &Spec { packages: Some(2), ..Spec::default() })?;
    let mut worse = Vec::new();
    for (name, plan) in PROGRAMS {
        let mut pair = [Series::default(), Series::default()];
        for round in 0..ROUNDS {
            step(format!("{name}, round {} of {ROUNDS}", round + 1));
            simulator.alive()?;
            // Every second round in the opposite order, so that neither always comes first.
            for at in order(round) {
                let exporter = exporter(name, if at == 0 { &old } else { &new });
                let mut command = command(&exporter, simulator.sysfs(), &results);
                pair[at].add(trial::trial(&exporter, &mut command, &plan, dir.path())?);
            }
        }
        let (table, found) = report(name, base, &pair);
        print!("{}", table.markdown());
        worse.extend(found.into_iter().map(|figure| format!("{name}: {figure}")));
    }
    ensure!(worse.is_empty(), "missing, or more than {LIMIT} times that of {base}:\n  {}", worse.join("\n  "));
    Ok(())
}

/// The base is 0, the working tree 1.
fn order(round: u32) -> [usize; 2] {
    if round.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

fn exporter(name: &'static str, bin: &Path) -> Exporter {
    let complete = match name {
        "wattcast-probe" => "\nwattcast_power_watts".to_owned(),
        _ => format!("results_scenarios_total {SCENARIOS}\n"),
    };
    Exporter { name, binary: bin.join(name), url: None, paths: &["/metrics"], complete }
}

/// The command of a trial, with flags that older revisions have too.
fn command(exporter: &Exporter, sysfs: &Path, results: &Path) -> Command {
    let mut command = Command::new(&exporter.binary);
    if exporter.name == "wattcast-probe" {
        command.arg(format!("--path.sysfs={}", sysfs.display()));
    } else {
        command.args(["serve", "--probe-url=http://127.0.0.1:1", "--results-dir"]).arg(results);
    }
    command.arg("--web.listen-address=127.0.0.1:0");
    command
}

/// The table of a program, and the labels of the figures that are worse.
fn report(name: &str, base: &str, [old, new]: &[Series; 2]) -> (Table, Vec<&'static str>) {
    let text = format!(
        "{ROUNDS} rounds in turn. Median (smallest to largest). Ratio: working tree to {base}, geometric mean of the \
         rounds with its 95 % interval; *worse* where all of it is above {LIMIT}, *better* where all of it is below 1, \
         *missing* where rounds of the working tree lack it."
    );
    let mut table = Table::new(name, &text, &["", "base", "working tree", "ratio", ""]);
    let mut worse = Vec::new();
    for figure in Figure::ALL {
        let (old, new) = (old.rounds(figure), new.rounds(figure));
        if old.is_none() && new.is_none() {
            continue;
        }
        let cell = |rounds: Option<&Rounds>| rounds.map_or_else(|| "–".to_owned(), Rounds::cell);
        let ratio = old.zip(new).and_then(|(old, new)| Ratio::paired(old, new));
        let count = |rounds: Option<&Rounds>| rounds.map_or(0, Rounds::count);
        let verdict = if count(new) < count(old) { MISSING } else { ratio.map_or("", verdict) };
        if [WORSE, MISSING].contains(&verdict) {
            worse.push(figure.label());
        }
        let ratio = ratio.map_or_else(|| "–".to_owned(), Ratio::cell);
        table.row(vec![figure.label().to_owned(), cell(old), cell(new), ratio, verdict.to_owned()]);
    }
    (table, worse)
}

const WORSE: &str = "worse";
/// Rounds of the working tree lack a figure that the base has.
const MISSING: &str = "missing";

fn verdict(ratio: Ratio) -> &'static str {
    match ratio {
        Ratio { low, .. } if low > LIMIT => WORSE,
        Ratio { high, .. } if high < 1.0 => "better",
        _ => "",
    }
}

/// `git` in this repository; root may read that of another user.
fn git() -> Command {
    let mut command = Command::new("git");
    command.args(["-c", "safe.directory=*"]).current_dir(root());
    command
}

/// The full hash of a revision.
fn commit(revision: &str) -> Result<String> {
    let wanted = format!("{revision}^{{commit}}");
    output(git().args(["rev-parse", "--verify", "--quiet", "--end-of-options", &wanted]))
        .with_context(|| format!("{revision} is no revision of this repository"))
}

/// The directory of the release binaries of a commit, which are built if they are not there.
fn build_base(base: &str, sha: &str) -> Result<PathBuf> {
    let dir = std::path::absolute(target())?.join("compare").join(sha);
    let (done, bin) = (dir.join("built"), dir.join("target/release"));
    if done.is_file() {
        step(format!("{base} is built already: {}", bin.display()));
        return Ok(bin);
    }
    fs::create_dir_all(&dir)?;
    let tree = Worktree::add(dir.join("tree"), sha)?;
    let cargo = |arguments: &[&str]| {
        let mut cargo = Command::new("cargo");
        cargo.args(arguments).current_dir(&tree.0).env("CARGO_TARGET_DIR", dir.join("target"));
        // Where the linker for eBPF programs is, unless it is in PATH already.
        let tools = target().join("tools/bin");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::env::split_paths(&path).chain([tools]);
        if let Ok(paths) = std::env::join_paths(paths) {
            cargo.env("PATH", paths);
        }
        cargo
    };
    run(&format!("building the eBPF programs of {base}"), &mut cargo(&["xtask", "build-ebpf"]))?;
    let packages = ["build", "--release", "--package", "probe-user", "--package", "analysis"];
    run(&format!("building {base}"), &mut cargo(&packages))?;
    for (name, _) in PROGRAMS {
        if !bin.join(name).is_file() {
            bail!("{base} has no {name}");
        }
    }
    fs::write(&done, "")?;
    Ok(bin)
}

/// A worktree, which is removed when this is dropped.
struct Worktree(PathBuf);

impl Worktree {
    fn add(path: PathBuf, sha: &str) -> Result<Self> {
        // Of a run that was killed, with or without git's note of it.
        let _ = remove_worktree(&path);
        let _ = fs::remove_dir_all(&path);
        output(git().args(["worktree", "add", "--detach", "--force"]).arg(&path).arg(sha))?;
        Ok(Self(path))
    }
}

impl Drop for Worktree {
    fn drop(&mut self) {
        if let Err(error) = remove_worktree(&self.0) {
            step(format!("{error:#}"));
        }
    }
}

fn remove_worktree(path: &Path) -> Result<()> {
    output(git().args(["worktree", "remove", "--force"]).arg(path)).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: [f64; 3]) -> Series {
        let mut series = Series::default();
        for value in values {
            series.add(vec![(Figure::Scrape, value), (Figure::Wakeups, 0.0)]);
        }
        series
    }

    #[test]
    fn only_an_interval_above_the_limit_is_worse() {
        let of = |new: [f64; 3]| report("x", "v1", &[series([10.0, 10.1, 9.9]), series(new)]).1;
        assert_eq!(of([12.0, 12.1, 11.9]), ["CPU per scrape, µs"]);
        assert!(of([10.3, 10.4, 10.2]).is_empty(), "slower, but not above the limit");
        assert!(of([9.0, 20.0, 9.0]).is_empty(), "one slow round");
    }

    #[test]
    fn a_figure_that_the_working_tree_lacks_fails() {
        let base = [10.0, 10.1, 9.9];
        let mut partly = series(base);
        partly.add(vec![(Figure::Wakeups, 0.0)]);
        let full = [10.0, 10.1, 9.9, 10.0].map(|value| vec![(Figure::Scrape, value), (Figure::Wakeups, 0.0)]);
        let mut all = Series::default();
        full.into_iter().for_each(|figures| all.add(figures));
        let worse = |old: Series, new: Series| report("x", "v1", &[old, new]).1;
        assert_eq!(worse(all, partly), ["CPU per scrape, µs"], "a round without it");
        assert_eq!(worse(series(base), Series::default()), ["wakeups per second, idle", "CPU per scrape, µs"]);
        assert!(worse(Series::default(), series(base)).is_empty(), "new figures");
    }

    #[test]
    fn better_figures_and_those_without_a_ratio_are_shown() {
        let (table, worse) = report("x", "v1", &[series([10.0, 10.1, 9.9]), series([5.0, 5.1, 4.9])]);
        let text = table.markdown();
        assert!(text.contains("| better |") && text.contains("| 0.000 | 0.000 | – |  |"), "{text}");
        assert!(worse.is_empty());
    }

    #[test]
    fn rounds_alternate_in_their_order() {
        assert_eq!([order(0), order(1), order(2)], [[0, 1], [1, 0], [0, 1]]);
    }
}
