//! One trial of an exporter as a whole program: the start to its first complete page, an idle
//! time, one scraper at full speed, and many once per second.
//!
//! Every figure is one of which less is better, so that ratios read alike.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    process::{self, BpfStatistics, Memory},
    rounds::Rounds,
    scrapers::{self, Pace, Target},
    stop,
};
use testkit::program::Program;

/// Longer than the ten ticks after which the probe releases the memory of its start.
pub(crate) const SETTLE: Duration = Duration::from_secs(10);
/// Clients of [`Running::many`].
pub(crate) const CLIENTS: usize = 100;
/// Longest start of an exporter.
const START: Duration = Duration::from_secs(30);

/// What a trial measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Figure {
    Start,
    Binary,
    Resident,
    Anonymous,
    File,
    Faults,
    Idle,
    Wakeups,
    Awake,
    Scrape,
    One,
    Many,
    Ebpf,
}

impl Figure {
    /// In the order of the tables.
    pub(crate) const ALL: [Self; 13] = [
        Self::Start,
        Self::Binary,
        Self::Resident,
        Self::Anonymous,
        Self::File,
        Self::Faults,
        Self::Idle,
        Self::Wakeups,
        Self::Awake,
        Self::Scrape,
        Self::One,
        Self::Many,
        Self::Ebpf,
    ];

    /// Its name, with its unit.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Start => "start to first complete page, ms",
            Self::Binary => "binary, MB",
            Self::Resident => "resident memory, MB",
            Self::Anonymous => "of it anonymous, MB",
            Self::File => "of it file pages, MB",
            Self::Faults => "page faults until idle",
            Self::Idle => "CPU idle, % of one CPU",
            Self::Wakeups => "wakeups per second, idle",
            Self::Awake => "CPUs not in their deepest idle state, idle, %",
            Self::Scrape => "CPU per scrape, µs",
            Self::One => "response time p99, 1 client, ms",
            Self::Many => "response time p99, 100 clients, ms",
            Self::Ebpf => "eBPF programs, ns per run",
        }
    }
}

/// Figures of one trial; those that this machine or program does not have are absent.
pub(crate) type Figures = Vec<(Figure, f64)>;

/// The figures of one program, by round.
#[derive(Debug, Default)]
pub(crate) struct Series(BTreeMap<Figure, Rounds>);

impl Series {
    pub(crate) fn add(&mut self, figures: Figures) {
        for (figure, value) in figures {
            self.0.entry(figure).or_default().push(value);
        }
    }

    /// `None` where no round has it.
    pub(crate) fn rounds(&self, figure: Figure) -> Option<&Rounds> {
        self.0.get(&figure)
    }
}

/// An exporter, and how to know that its page is complete.
#[derive(Clone, Debug)]
pub(crate) struct Exporter {
    pub(crate) name: &'static str,
    pub(crate) binary: PathBuf,
    /// Its address; `None` for the programs of this repository, which log it.
    pub(crate) url: Option<String>,
    /// Paths of its page, of which the first that it has is scraped.
    pub(crate) paths: &'static [&'static str],
    /// Text that only a complete page has.
    pub(crate) complete: String,
}

/// How long each part of a trial takes; a part of zero is left out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Between the first page and the idle time.
    pub(crate) settle: Duration,
    pub(crate) idle: Duration,
    pub(crate) one: Duration,
    pub(crate) many: Duration,
}

/// Runs one trial.
///
/// # Errors
/// When the program ends, answers no complete page, or fails a scrape; and after a signal.
pub(crate) fn trial(exporter: &Exporter, command: &mut Command, plan: &Plan, logs: &Path) -> Result<Figures> {
    let (mut running, start) = Running::start(exporter, command, logs)?;
    let size = std::fs::metadata(&exporter.binary).with_context(|| exporter.binary.display().to_string())?.len();
    let mut figures = vec![(Figure::Start, start.as_secs_f64() * 1e3), (Figure::Binary, megabytes(size))];
    stop::sleep(plan.settle);
    // A program that gives back what its start needed has what a page needs in memory again.
    running.page()?;
    if !plan.idle.is_zero() {
        figures.extend(running.idle(plan.idle)?);
    }
    figures.extend(running.memory()?);
    if !plan.one.is_zero() {
        figures.extend(running.one(plan.one)?);
    }
    if !plan.many.is_zero() {
        figures.extend(running.many(plan.many)?);
    }
    ensure!(!stop::stopped(), "stopped");
    Ok(figures)
}

/// An exporter that runs.
pub(crate) struct Running {
    program: Program,
    target: Target,
}

impl Running {
    /// Starts it; returns the time to its first complete page.
    ///
    /// # Errors
    /// When it ends, or has no complete page in time.
    pub(crate) fn start(exporter: &Exporter, command: &mut Command, logs: &Path) -> Result<(Self, Duration)> {
        let start = Instant::now();
        let mut program = Program::start(exporter.name, command, logs)?;
        let url = match &exporter.url {
            Some(url) => url.clone(),
            None => program.address(0)?,
        };
        loop {
            let complete = |path: &&&'static str| {
                let page = scrapers::page(&url, path);
                page.is_ok_and(|page| contains(&page, exporter.complete.as_bytes()))
            };
            if let Some(path) = exporter.paths.iter().find(complete).copied() {
                return Ok((Self { program, target: Target { url, path, ca: None } }, start.elapsed()));
            }
            program.alive()?;
            ensure!(!stop::stopped(), "stopped");
            if start.elapsed() > START {
                bail!("{}: no complete page after {} s", exporter.name, START.as_secs());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Its page, without compression.
    pub(crate) fn page(&self) -> Result<Vec<u8>> {
        scrapers::page(&self.target.url, self.target.path)
    }

    /// CPU time, wakeups and the sleep of the CPUs while no client asks.
    pub(crate) fn idle(&mut self, time: Duration) -> Result<Figures> {
        let pid = self.program.pid();
        let (start, deep) = (Instant::now(), process::deepest_idle());
        let (cpu, wakeups) = (process::cpu_time(pid)?, process::wakeups(pid)?);
        stop::sleep(time);
        let (cpu_after, wakeups_after) = (process::cpu_time(pid)?, process::wakeups(pid)?);
        let (seconds, deep_after) = (start.elapsed().as_secs_f64(), process::deepest_idle());
        self.program.alive()?;
        let cpu = cpu_after.saturating_sub(cpu).as_secs_f64();
        // Counts of a thread that ends meanwhile are lost.
        let wakeups = wakeups_after.saturating_sub(wakeups) as f64;
        let mut figures = vec![(Figure::Idle, cpu / seconds * 100.0), (Figure::Wakeups, wakeups / seconds)];
        figures.extend(awake(deep, deep_after, seconds)?.map(|percent| (Figure::Awake, percent)));
        Ok(figures)
    }

    /// Resident memory, and the page faults since the start.
    pub(crate) fn memory(&self) -> Result<Figures> {
        let memory = Memory::of(self.program.pid())?;
        Ok(vec![
            (Figure::Resident, megabytes(memory.total())),
            (Figure::Anonymous, megabytes(memory.anonymous)),
            (Figure::File, megabytes(memory.file)),
            (Figure::Faults, process::page_faults(self.program.pid())? as f64),
        ])
    }

    /// CPU per scrape and p99 with one client that asks without a pause, and the time per run of
    /// the eBPF programs meanwhile: they then run thousands of times per second.
    pub(crate) fn one(&mut self, time: Duration) -> Result<Figures> {
        let pid = self.program.pid();
        let before = process::bpf_runs(pid);
        let statistics = before.map(|_| BpfStatistics::enable());
        let before = process::bpf_runs(pid);
        let outcome = self.scrape(1, Pace::Full, time)?;
        let after = process::bpf_runs(pid);
        drop(statistics);
        let mut figures = Figures::new();
        figures.extend(outcome.cpu_microseconds().map(|cpu| (Figure::Scrape, cpu)));
        figures.extend(outcome.milliseconds(0.99).map(|time| (Figure::One, time)));
        if let (Some((ns, runs)), Some((ns_after, runs_after))) = (before, after)
            && runs_after > runs
        {
            figures.push((Figure::Ebpf, ns_after.saturating_sub(ns) as f64 / (runs_after - runs) as f64));
        }
        Ok(figures)
    }

    /// p99 with [`CLIENTS`] that ask once per second.
    pub(crate) fn many(&mut self, time: Duration) -> Result<Figures> {
        let outcome = self.scrape(CLIENTS, Pace::Second, time)?;
        Ok(outcome.milliseconds(0.99).map(|time| (Figure::Many, time)).into_iter().collect())
    }

    /// Scrapes its page.
    ///
    /// # Errors
    /// When a scrape fails: times without those of the failed ones would be too good.
    pub(crate) fn scrape(&mut self, count: usize, pace: Pace, time: Duration) -> Result<scrapers::Outcome> {
        let outcome = scrapers::load(self.program.pid(), &self.target, count, pace, time)?;
        self.program.alive()?;
        let all = outcome.times.len() + outcome.errors;
        ensure!(outcome.errors == 0, "{}: {} of {all} scrapes failed", self.target.url, outcome.errors);
        Ok(outcome)
    }
}

/// Percent of the CPUs' time outside their deepest idle state, from readings of
/// [`process::deepest_idle`]; `None` where the kernel knows no idle states.
pub(crate) fn awake(before: Option<Duration>, after: Option<Duration>, seconds: f64) -> Result<Option<f64>> {
    let cpus = std::thread::available_parallelism()?.get() as f64;
    let asleep = before.zip(after).map(|(before, after)| after.saturating_sub(before).as_secs_f64() / seconds / cpus);
    Ok(asleep.map(|asleep| (1.0 - asleep.min(1.0)) * 100.0))
}

fn contains(page: &[u8], text: &[u8]) -> bool {
    text.is_empty() || page.windows(text.len()).any(|part| part == text)
}

/// Bytes in MB, of 10^6.
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_a_row() {
        let mut sorted = Figure::ALL.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted, Figure::ALL, "each once, in the order of the tables");
        let mut labels = Figure::ALL.map(Figure::label).to_vec();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Figure::ALL.len());
    }

    #[test]
    fn absent_figures_stay_absent() {
        let mut series = Series::default();
        series.add(vec![(Figure::Start, 3.0)]);
        series.add(vec![(Figure::Start, 5.0)]);
        assert_eq!(series.rounds(Figure::Start).and_then(Rounds::median), Some(4.0));
        assert!(series.rounds(Figure::Awake).is_none());
    }

    #[test]
    fn text_is_found_in_a_page() {
        assert!(contains(b"abc", b"bc") && contains(b"abc", b"") && !contains(b"abc", b"abcd"));
    }
}
