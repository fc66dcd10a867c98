//! Recordings of a machine whose truth is known, and their replay by `wattcast-probe account`.
//!
//! The text is that of format 3, which every probe since then reads.

use std::{collections::HashMap, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use metrics::parse::Sample;
use serde_json::{Value, json};
use testkit::shell::output;

/// Any start: 2026-11-30.
const UNIX_NS: i64 = 1_795_980_000_000_000_000;
const SECOND: u64 = 1_000_000_000;
/// Delay of the kernel's CPU time of a running task, at most: one period of a 250 Hz tick.
pub(super) const LAG_NS: u64 = 4_000_000;
/// Resolution of the counters in microjoules, as RAPL's.
const STEP_UJ: u64 = 62;

/// A CPU, and the nanoseconds on it without and with a busy sibling.
pub(super) type Cell = (usize, u64, u64);

/// Time on one CPU in nanoseconds, and the cycles, instructions and cache misses in it.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) cpu: usize,
    pub(super) ns: u64,
    pub(super) events: [u64; 3],
}

/// A recording that grows.
pub(super) struct Recording {
    header: Value,
    names: Vec<String>,
    cpus: usize,
    /// Energy of each zone so far, in joules: of the packages, then of their memory.
    joules: Vec<f64>,
    lines: Vec<String>,
    /// Seconds since the first tick.
    seconds: u64,
    /// Nanoseconds asleep and of all time, by package; empty without counters of them.
    residency: Vec<[u64; 2]>,
}

impl Recording {
    /// A machine with `packages` of `cpus` each, and containers with these names.
    pub(super) fn new(packages: usize, cpus: usize, names: &[&str]) -> Self {
        let all: Vec<usize> = (0..packages).collect();
        let setup = json!({
            "origin": "powercap", "zones": all.iter().map(|package| zone(*package, "package")).collect::<Vec<_>>(),
            "idle_uw": vec![Value::Null; packages],
            "packages": all.iter().map(|package| json!({"package": package, "die": null})).collect::<Vec<_>>(),
            "places": all.iter().flat_map(|package| vec![*package; cpus]).collect::<Vec<_>>(),
            "smt": false, "lag_ns": LAG_NS,
            "cpu": {"tier": "switch", "knows": {"cpus": true, "siblings": true}, "reason": ""},
        });
        let header = json!({"format": "wattcast-recording", "version": 3, "probe": "0.1.0", "setup": setup});
        Self {
            header,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            cpus: packages * cpus,
            joules: vec![1000.0; packages],
            lines: Vec::new(),
            seconds: 0,
            residency: Vec::new(),
        }
    }

    /// Number of ticks so far.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// The same machine with two threads on each core.
    pub(super) fn with_siblings(mut self) -> Self {
        self.header["setup"]["smt"] = json!(true);
        self
    }

    /// The same machine with a counter of the memory of each package, whose idle power in watts is
    /// given, or to be learnt.
    pub(super) fn with_memory(mut self, idle: Option<f64>) -> Self {
        let packages = self.joules.len();
        let setup = &mut self.header["setup"];
        if let Some(zones) = setup["zones"].as_array_mut() {
            zones.extend((0..packages).map(|package| zone(package, "dram")));
        }
        let exact = idle.map(|watts| (watts * 1e6).round() as u64);
        setup["idle_uw"] = json!([vec![None; packages], vec![exact; packages]].concat());
        self.joules.resize(2 * packages, 1000.0);
        self
    }

    /// The same machine with hardware counters of cycles, instructions and cache misses.
    pub(super) fn with_counters(mut self) -> Self {
        self.header["setup"]["cpu"]["tier"] = json!("counters");
        self
    }

    /// The same machine with counters of the time in which its packages sleep.
    pub(super) fn with_residency(mut self) -> Self {
        let packages = self.header["setup"]["packages"].as_array().map_or(0, Vec::len);
        self.residency = vec![[0; 2]; packages];
        self
    }

    /// Adds a second with the mean watts of each package, and the nanoseconds that each container
    /// ran on CPUs. The first tick is the start of all sums and has no energy and no time.
    pub(super) fn tick(&mut self, watts: &[f64], ran: &[Vec<(usize, u64)>]) {
        let alone = |cells: &Vec<(usize, u64)>| cells.iter().map(|(cpu, ns)| (*cpu, *ns, 0)).collect();
        let ran: Vec<Vec<Cell>> = ran.iter().map(alone).collect();
        self.tick_with_siblings(watts, &ran);
    }

    /// As [`Recording::tick`], with the time next to a busy sibling.
    pub(super) fn tick_with_siblings(&mut self, watts: &[f64], ran: &[Vec<Cell>]) {
        let first = self.lines.is_empty();
        let ran: Vec<Value> = (0..self.names.len())
            .map(|container| match ran.get(container) {
                Some(cells) if !first => json!([key(container), cells]),
                _ => json!([key(container), []]),
            })
            .collect();
        self.push(1, watts, &ran);
    }

    /// Adds seconds with the mean watts of each zone, the share of them in which the packages were
    /// awake, and what some containers ran, by their place among the names. The first tick has
    /// nothing of this.
    pub(super) fn tick_with_events(&mut self, seconds: u64, watts: &[f64], awake: f64, ran: &[(usize, Vec<Run>)]) {
        let ran: Vec<Value> = if self.lines.is_empty() {
            (0..self.names.len()).map(|container| json!([key(container), []])).collect()
        } else {
            let cells = |runs: &Vec<Run>| -> Vec<Value> {
                let cell = |run: &Run| {
                    let [cycles, instructions, misses] = run.events;
                    json!([run.cpu, run.ns, 0, cycles, instructions, misses])
                };
                runs.iter().map(cell).collect()
            };
            let asleep = ((1.0 - awake) * (seconds * SECOND) as f64) as u64;
            for sums in &mut self.residency {
                *sums = [sums[0] + asleep, sums[1] + seconds * SECOND];
            }
            ran.iter().map(|(container, runs)| json!([key(*container), cells(runs)])).collect()
        };
        self.push(seconds, watts, &ran);
    }

    /// Adds a line.
    fn push(&mut self, seconds: u64, watts: &[f64], ran: &[Value]) {
        let first = self.lines.is_empty();
        if !first {
            self.seconds += seconds;
            self.joules.iter_mut().zip(watts).for_each(|(joules, watts)| *joules += watts * seconds as f64);
        }
        let news = if first {
            let shown = self.names.iter().enumerate().map(|(number, name)| {
                let id = format!("cgroup2:{number}");
                json!({"number": number, "name": name, "id": id, "image": "", "runtime": "cgroup"})
            });
            let holders = (0..self.names.len()).map(|number| json!([key(number), {"container": number}]));
            json!({"holders": holders.collect::<Vec<_>>(), "shown": shown.collect::<Vec<_>>()})
        } else {
            json!({})
        };
        let elapsed = self.seconds * SECOND;
        let now = 1_000_000 + elapsed;
        let zones: Vec<u64> = self.joules.iter().map(|joules| (joules * 1e6) as u64 / STEP_UJ * STEP_UJ).collect();
        let mut line = json!({
            "unix": UNIX_NS + elapsed as i64, "began": now - 10_000, "energy": now, "cpu": now + 50_000,
            "own": 0, "zones": zones, "ran": ran, "overflow": vec![0; self.cpus], "missed": 0, "news": news,
        });
        if self.header["setup"]["cpu"]["tier"] == "counters" {
            line["counter_time"] = json!([elapsed, elapsed]);
        }
        if !self.residency.is_empty() {
            line["residency"] = json!(self.residency);
        }
        self.lines.push(line.to_string());
    }

    /// The metrics after the first `ticks` ticks.
    pub(super) fn account(&self, ticks: usize, probe: &Path) -> Result<Account> {
        self.account_with(ticks, probe, &[])
    }

    /// As [`Recording::account`], with flags of the probe.
    pub(super) fn account_with(&self, ticks: usize, probe: &Path, flags: &[&str]) -> Result<Account> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("synthetic.rec");
        let lines = self.lines.get(..ticks).context("fewer ticks")?.join("\n");
        fs::write(&file, format!("{}\n{lines}\n", self.header))?;
        let text = output(Command::new(probe).arg("account").arg(&file).args(flags))?;
        Ok(Account(metrics::parse::parse(&text)?.samples))
    }
}

/// A counter of a package.
fn zone(package: usize, kind: &str) -> Value {
    json!({
        "id": {"package": {"package": package, "die": null}, "kind": kind},
        "unit": {"numerator": 1, "denominator": 1}, "range": {"wraps": 1_u64 << 50}, "step_uj": STEP_UJ,
        "update_ns": 1_000_000, "ceiling": {"limit": 1_000_000_000_u64}, "place": "synthetic",
    })
}

/// The cgroup of a container.
fn key(container: usize) -> Value {
    json!({"id": 100 + container, "hierarchy": 0})
}

/// The metrics of a recording.
pub(super) struct Account(Vec<Sample>);

impl Account {
    /// The samples of a family with these labels.
    fn find<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Sample> {
        let fits = move |sample: &&Sample| labels.iter().all(|(label, value)| sample.label(label) == *value);
        self.0.iter().filter(move |sample| sample.name == name).filter(fits)
    }

    /// The first value with these labels.
    pub(super) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.find(name, labels).next().map(|sample| sample.value)
    }

    /// The sum of all values with these labels.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).map(|sample| sample.value).sum()
    }

    /// The sums of all values with these labels, by the value of another label.
    pub(super) fn sums(&self, name: &str, labels: &[(&str, &str)], by: &str) -> HashMap<String, f64> {
        let mut sums = HashMap::new();
        for sample in self.find(name, labels) {
            *sums.entry(sample.label(by).to_owned()).or_default() += sample.value;
        }
        sums
    }

    /// A label of the first sample with these labels; empty without one.
    pub(super) fn label(&self, name: &str, labels: &[(&str, &str)], label: &str) -> String {
        self.find(name, labels).next().map(|sample| sample.label(label).to_owned()).unwrap_or_default()
    }
}

/// Reproducible random numbers.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        let mut this = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // The first numbers of near seeds are alike.
        for _ in 0..8 {
            this.uniform();
        }
        this
    }

    /// Between 0 and 1.
    pub(super) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Nearly normal, with mean 0 and standard deviation 1.
    pub(super) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_has_a_header_and_growing_counters() {
        let mut recording = Recording::new(2, 4, &["a", "b"]);
        for _ in 0..3 {
            recording.tick(&[10.0, 20.0], &[vec![(0, 5)], vec![]]);
        }
        let lines: Vec<Value> = recording.lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(recording.header["setup"]["places"], json!([0, 0, 0, 0, 1, 1, 1, 1]));
        assert_eq!((recording.len(), &lines[0]["ran"][0][1]), (3, &json!([])));
        assert_eq!(lines[1]["ran"][0][1], json!([[0, 5, 0]]));
        let joules = |line: usize| lines[line]["zones"][1].as_f64().unwrap() / 1e6;
        assert!((joules(2) - joules(0) - 40.0).abs() < 1e-3);
        assert_eq!(lines[0]["news"]["shown"][1]["name"], "b");
    }

    #[test]
    fn memory_counters_and_residency_are_in_a_recording() {
        let mut recording = Recording::new(1, 2, &["a", "b"]).with_memory(Some(1.5)).with_counters().with_residency();
        let run = Run { cpu: 1, ns: 7, events: [9, 8, 0] };
        for _ in 0..3 {
            recording.tick_with_events(3, &[10.0, 20.0], 0.75, &[(1, vec![run])]);
        }
        let lines: Vec<Value> = recording.lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let setup = &recording.header["setup"];
        assert_eq!((&setup["zones"][1]["id"]["kind"], &setup["idle_uw"]), (&json!("dram"), &json!([null, 1_500_000])));
        assert_eq!(lines[0]["ran"], json!([[key(0), []], [key(1), []]]));
        assert_eq!(lines[2]["ran"], json!([[key(1), [[1, 7, 0, 9, 8, 0]]]]));
        assert_eq!((&lines[0]["residency"], &lines[0]["counter_time"]), (&json!([[0, 0]]), &json!([0, 0])));
        assert_eq!(lines[2]["residency"], json!([[1_500_000_000_u64, 6_000_000_000_u64]]));
        assert_eq!(lines[2]["counter_time"], json!([6_000_000_000_u64, 6_000_000_000_u64]));
        let joules = |line: usize| lines[line]["zones"][1].as_f64().unwrap() / 1e6;
        assert!((joules(2) - joules(0) - 120.0).abs() < 1e-3);
    }

    #[test]
    fn random_numbers_are_reproducible_and_spread() {
        let mean = |seed| (0..10_000).scan(Random::new(seed), |random, _| Some(random.normal())).sum::<f64>() / 1e4;
        assert_eq!(mean(1), mean(1));
        assert!(mean(2).abs() < 0.05, "{}", mean(2));
    }
}
