//! Idle power that the probe learns from subsets of the loads of a real machine, against the power
//! that was measured while nothing ran.

use anyhow::Result;

use super::{
    broadwell::{Broadwell, CPUS, NOISE, PINNED},
    probe::Probe,
    synthetic::{Account, Random, Recording},
    table::{Table, errors, part},
};

/// Loads that the probe sees, as threads.
const SUBSETS: [(&str, &[usize]); 6] = [
    ("idle, 1 to 16 threads", &[0, 1, 4, 8, 16]),
    ("idle and 16 threads", &[0, 16]),
    ("never idle, 1 to 16 threads", &[1, 4, 8, 16]),
    ("never idle, 4 to 32 threads", &[4, 8, 16, 24, 32]),
    ("half load and more", &[16, 24, 32]),
    ("8 threads only", &[8]),
];
/// Seconds at one load, and how often all are repeated.
const SECONDS: usize = 40;
const ROUNDS: usize = 4;
const SEEDS: u64 = 3;

/// Results of one subset.
#[derive(Default)]
struct Results {
    cases: usize,
    errors: Vec<f64>,
    inside: usize,
    base: usize,
}

pub(super) fn tables(data: &Broadwell, probes: &[Probe]) -> Result<Vec<Table>> {
    let text = "Xeon Broadwell with two sockets (ICPE 2024). The probe sees only the named loads on one socket, \
                for 40 s each, four times, with 0.4 W of noise, and a daemon that runs 2 ms a second on each CPU \
                of the other. Both sockets, threads on either, three seeds. Error: of the estimate against the \
                power measured while nothing ran, where there is one.";
    let heads = [
        "probe",
        "loads",
        "n",
        "estimated",
        "base only",
        "median error",
        "95th percentile",
        "truth inside the interval",
    ];
    let mut table = Table::new("Idle power", text, &heads);
    for (subset, threads) in SUBSETS {
        for probe in probes {
            let mut results = Results::default();
            for (config, busy) in PINNED {
                for seed in 0..SEEDS {
                    let account = replay(data, probe, (config, busy), threads, seed)?;
                    let truth = data.at(config, 0)?;
                    truth.iter().enumerate().for_each(|(package, truth)| results.add(&account, package, *truth));
                }
            }
            let [known, median, high] = errors(&results.errors);
            table.row(vec![
                probe.label.to_owned(),
                subset.to_owned(),
                results.cases.to_string(),
                known,
                results.base.to_string(),
                median,
                high,
                part(results.inside, results.errors.len()),
            ]);
        }
    }
    Ok(vec![table])
}

/// Replays a machine on which `threads` of socket `busy` run in turn.
fn replay(
    data: &Broadwell,
    probe: &Probe,
    (config, busy): (&str, usize),
    threads: &[usize],
    seed: u64,
) -> Result<Account> {
    let mut recording = Recording::new(2, CPUS, &["encoder", "daemon"]);
    let mut random = Random::new(seed);
    for threads in std::iter::repeat_n(threads, ROUNDS).flatten() {
        let watts = data.at(config, *threads)?;
        let encoder: Vec<(usize, u64)> = (0..*threads).map(|cpu| (busy * CPUS + cpu, 1_000_000_000)).collect();
        let other = (1 - busy) * CPUS;
        let daemon: Vec<(usize, u64)> = (other..other + CPUS).map(|cpu| (cpu, 2_000_000)).collect();
        for _ in 0..SECONDS {
            let noisy = watts.map(|watts| watts + NOISE * random.normal());
            recording.tick(&noisy, &[encoder.clone(), daemon.clone()]);
        }
    }
    recording.account(recording.len(), &probe.path)
}

impl Results {
    fn add(&mut self, account: &Account, package: usize, truth: f64) {
        self.cases += 1;
        let package = package.to_string();
        let labels = [("package", &*package), ("zone", "package")];
        let state = account.label("wattcast_idle_state_info", &labels, "state");
        if state == "base" {
            self.base += 1;
            return;
        }
        let Some(estimate) = account.value("wattcast_idle_power_watts", &labels) else { return };
        self.errors.push((estimate - truth).abs() / truth);
        let bound = |bound| {
            let labels = [labels[0], labels[1], ("bound", bound)];
            account.value("wattcast_idle_power_interval_watts", &labels)
        };
        let inside = bound("lower").is_some_and(|low| low <= truth) && bound("upper").is_some_and(|high| truth <= high);
        self.inside += usize::from(inside);
    }
}
