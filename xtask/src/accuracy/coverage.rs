//! How often the truth is inside the stated uncertainty of a container's energy, on recordings with
//! known truth.
//!
//! The truth is a line: so many watts for each busy CPU. What the probe reads differs from it as on
//! a real machine: the kernel's CPU time of a running task is late by up to a tick of the scheduler
//! at either end, counters have steps, and power has noise.

use anyhow::Result;

use statistics::quantile;

use super::{
    probe::Probe,
    synthetic::{Account, LAG_NS, Random, Recording},
    table::{Table, part, percent},
};

const CPUS: usize = 16;
const IDLE: f64 = 40.0;
const WATTS_OF_CPU: f64 = 5.0;
const NOISE: f64 = 0.3;
/// Containers by CPU nanoseconds in a second. The last stands for everything else, and varies.
const CONTAINERS: [(&str, u64); 6] = [
    ("5 ms", 5_000_000),
    ("20 ms", 20_000_000),
    ("100 ms", 100_000_000),
    ("500 ms", 500_000_000),
    ("1 s", 1_000_000_000),
    ("others", 0),
];
const TICKS: usize = 520;
const SEEDS: u64 = 30;
/// The window of a minute, in ticks.
const MINUTE: usize = 60;

/// Cases of one container and one window.
#[derive(Default)]
struct Cases {
    count: usize,
    inside: usize,
    bounds: Vec<f64>,
    unknown: usize,
}

impl Cases {
    /// Adds a figure with its relative bound.
    fn add(&mut self, figure: f64, bound: Option<f64>, truth: f64) {
        self.count += 1;
        match bound {
            Some(bound) => {
                self.inside += usize::from((figure - truth).abs() <= bound * figure.max(truth) + 1e-9);
                self.bounds.push(bound);
            }
            None => self.unknown += 1,
        }
    }
}

pub(super) fn tables(probes: &[Probe]) -> Result<Vec<Table>> {
    let text = "Synthetic recordings of a quiet machine with 16 CPUs: 40 W and 5 W for each busy CPU, noise of 0.3 \
                W, the kernel's CPU time late by 0 to 4 ms. 30 seeds. The energy of a container in the last second \
                and in the last minute against the truth.";
    let heads =
        ["probe", "CPU time in a second", "over", "n", "truth inside", "not stated", "median bound", "95th percentile"];
    let mut table = Table::new("Stated uncertainty", text, &heads);
    for probe in probes {
        let mut cases: Vec<[Cases; 2]> = CONTAINERS.iter().map(|_| Default::default()).collect();
        for seed in 0..SEEDS {
            let (recording, truth) = record(seed);
            let last = recording.account(TICKS, &probe.path)?;
            let before = [recording.account(TICKS - 1, &probe.path)?, recording.account(TICKS - MINUTE, &probe.path)?];
            for (at, (name, _)) in CONTAINERS.iter().enumerate() {
                for (window, before) in before.iter().enumerate() {
                    let figure = joules(&last, name) - joules(before, name);
                    cases[at][window].add(figure, bound(&last, name, window), truth[at][window]);
                }
            }
        }
        for ((name, _), windows) in CONTAINERS.iter().zip(&cases) {
            for (over, cases) in ["1 s", "1 min"].iter().zip(windows) {
                let at = |fraction| quantile(&cases.bounds, fraction).map_or_else(|| "–".to_owned(), percent);
                table.row(vec![
                    probe.label.to_owned(),
                    (*name).to_owned(),
                    (*over).to_owned(),
                    cases.count.to_string(),
                    part(cases.inside, cases.bounds.len()),
                    cases.unknown.to_string(),
                    at(0.5),
                    at(0.95),
                ]);
            }
        }
    }
    Ok(vec![table])
}

fn joules(account: &Account, container: &str) -> f64 {
    account.sum("wattcast_container_energy_joules_total", &[("container", container)])
}

/// The stated bound; that of the last second has no label in older probes.
fn bound(account: &Account, container: &str, window: usize) -> Option<f64> {
    let of =
        |window| account.value("wattcast_energy_uncertainty_ratio", &[("container", container), ("window", window)]);
    match window {
        0 => of("1s").or_else(|| of("")),
        _ => of("60s"),
    }
}

/// A recording, and the true joules of each container in the last second and the last minute.
fn record(seed: u64) -> (Recording, Vec<[f64; 2]>) {
    let names: Vec<&'static str> = CONTAINERS.iter().map(|(name, _)| *name).collect();
    let mut recording = Recording::new(1, CPUS, &names);
    let mut random = Random::new(seed);
    let mut truth = vec![[0.0; 2]; CONTAINERS.len()];
    // How late the kernel's time of each CPU was at the end of the tick before.
    let mut late = [0; CPUS];
    for tick in 0..TICKS {
        let mut ran = vec![Vec::new(); CONTAINERS.len()];
        let mut busy = 0.0;
        for (at, (_, own)) in CONTAINERS.iter().enumerate() {
            for (cpu, ns) in places(at, *own, tick, seed) {
                // A task that is not running at the end is not late.
                let running = random.uniform() < ns as f64 / 1e9;
                let now = if running { (random.uniform() * LAG_NS as f64) as u64 } else { 0 };
                let seen = (ns + late[cpu]).saturating_sub(now);
                late[cpu] = ns + late[cpu] - seen;
                ran[at].push((cpu, seen));
                let joules = ns as f64 / 1e9 * WATTS_OF_CPU;
                busy += joules;
                truth[at][0] += if tick == TICKS - 1 { joules } else { 0.0 };
                truth[at][1] += if tick >= TICKS - MINUTE { joules } else { 0.0 };
            }
        }
        recording.tick(&[IDLE + busy + NOISE * random.normal()], &ran);
    }
    (recording, truth)
}

/// The CPUs of a container in a tick, each with its nanoseconds: one CPU each, and the rest for the
/// others, whose load varies so that the idle power becomes known.
fn places(container: usize, own: u64, tick: usize, seed: u64) -> Vec<(usize, u64)> {
    if own > 0 {
        return vec![(container, own)];
    }
    let loads = [0.0, 0.004, 0.02, 0.06, 0.12, 0.25, 0.5];
    // An even load at the end, as in a farm.
    let load = if tick > TICKS - 2 * MINUTE { 0.3 } else { loads[(tick / 10 + seed as usize) % loads.len()] };
    (container..CPUS).map(|cpu| (cpu, (load * 1e9) as u64)).filter(|(_, ns)| *ns > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_truth_of_a_recording_is_that_of_its_power() {
        let (recording, truth) = record(1);
        assert_eq!(recording.len(), TICKS);
        // 100 ms of one CPU at 5 W.
        assert!((truth[2][0] - 0.5).abs() < 1e-9 && (truth[2][1] - 30.0).abs() < 1e-6, "{truth:?}");
        let (others, seconds) = (truth[5], 0.3 * 11.0);
        assert!((others[0] - seconds * WATTS_OF_CPU).abs() < 1e-6, "{others:?}");
    }

    #[test]
    fn a_figure_without_a_bound_is_not_inside() {
        let mut cases = Cases::default();
        cases.add(1.0, Some(0.1), 1.05);
        cases.add(1.0, Some(0.1), 1.5);
        cases.add(1.0, None, 1.0);
        assert_eq!((cases.count, cases.inside, cases.bounds.len(), cases.unknown), (3, 1, 2, 1));
    }
}
