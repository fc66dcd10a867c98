//! Idle power that the probe learns on synthetic machines whose truth is known, in the situations
//! in which an intercept misleads.

use anyhow::Result;

use super::{
    probe::Probe,
    synthetic::{Cell, Random, Recording},
    table::{Table, errors, part},
};

const CPUS: usize = 16;
const NOISE: f64 = 1.0;
const SEEDS: u64 = 10;
/// Largest error of an estimate that is stated.
const WITHIN: f64 = 0.1;

/// A situation. Functions of the progress (0 to 1) of the recording, and of numbers between 0 and 1
/// that wander.
struct Case {
    name: &'static str,
    ticks: usize,
    siblings: bool,
    /// Load (0 to 1).
    load: fn(f64, f64) -> f64,
    /// Watts at a progress, a load, and a share of the second tenant.
    power: fn(f64, f64, f64) -> f64,
    /// Idle power at the end.
    truth: f64,
}

const CASES: [Case; 8] = [
    Case {
        name: "SMT, load 0.55 to 0.98",
        ticks: 1200,
        siblings: true,
        load: |_, wander| 0.55 + 0.43 * wander,
        power: |_, load, _| siblings(load),
        truth: 45.0,
    },
    Case {
        name: "SMT, load 0.02 to 0.98",
        ticks: 1200,
        siblings: true,
        load: |_, wander| 0.02 + 0.96 * wander,
        power: |_, load, _| siblings(load),
        truth: 45.0,
    },
    Case {
        name: "power limit from half load on",
        ticks: 1200,
        siblings: false,
        load: |_, wander| 0.5 + 0.499 * wander,
        power: |_, load, _| (45.0 + 320.0 * load).min(205.0),
        truth: 45.0,
    },
    Case {
        name: "straight line, from half load on",
        ticks: 1200,
        siblings: false,
        load: |_, wander| 0.5 + 0.499 * wander,
        power: |_, load, _| 45.0 + 160.0 * load,
        truth: 45.0,
    },
    Case {
        name: "straight line, load 0.05 to 0.95",
        ticks: 1200,
        siblings: false,
        load: |_, wander| 0.05 + 0.9 * wander,
        power: |_, load, _| 45.0 + 160.0 * load,
        truth: 45.0,
    },
    Case {
        name: "idle power falls from 90 to 40 W, 24 minutes ago",
        ticks: 2400,
        siblings: false,
        load: |_, wander| 0.05 + 0.75 * wander,
        power: |progress, load, _| 160.0 * load + if progress < 0.4 { 90.0 } else { 40.0 },
        truth: 40.0,
    },
    Case {
        name: "12 W of uncore at night, at low load",
        ticks: 2400,
        siblings: false,
        load: |progress, wander| if progress < 0.6 { 0.2 + 0.6 * wander } else { 0.02 + 0.1 * wander },
        power: |progress, load, _| 45.0 + 160.0 * load + if progress < 0.6 { 0.0 } else { 12.0 },
        truth: 45.0,
    },
    Case {
        name: "a second tenant with more watts, whose share wanders",
        ticks: 2400,
        siblings: false,
        load: |_, wander| 0.1 + 0.8 * wander,
        power: |_, load, second| 45.0 + load * (120.0 + 80.0 * second),
        truth: 45.0,
    },
];

/// 144 W for the first threads of all cores, and 15 % of it for the second ones. First threads are
/// filled first, as the scheduler does.
fn siblings(load: f64) -> f64 {
    let threads = 2.0 * load;
    45.0 + 144.0 * (threads.min(1.0) + 0.15 * (threads - 1.0).max(0.0))
}

/// Share of the busy time with a busy sibling.
fn shared(load: f64) -> f64 {
    if load > 0.5 { (2.0 * load - 1.0) / load } else { 0.0 }
}

pub(super) fn tables(probes: &[Probe]) -> Result<Vec<Table>> {
    let text = "Synthetic machine with 16 CPUs and 1 W of noise, loads that wander, ten seeds. Idle power at the \
                end of 20 or 40 minutes, where there is an estimate (of sleep power, or of sleep and awake power \
                together: they are the same here).";
    let heads = [
        "probe",
        "situation",
        "n",
        "estimated",
        "median error",
        "95th percentile",
        "truth inside the interval",
        "within 10 % or unknown",
    ];
    let mut table = Table::new("Idle power and its interval", text, &heads);
    for case in &CASES {
        for probe in probes {
            let (mut wrong, mut inside, mut good) = (Vec::new(), 0, 0);
            for seed in 0..SEEDS {
                let Some((estimate, low, high)) = replay(case, probe, seed)? else {
                    good += 1;
                    continue;
                };
                let error = (estimate - case.truth).abs() / case.truth;
                wrong.push(error);
                inside += usize::from((low..=high).contains(&case.truth));
                good += usize::from(error <= WITHIN);
            }
            let cases = usize::try_from(SEEDS)?;
            let [known, median, high] = errors(&wrong);
            table.row(vec![
                probe.label.to_owned(),
                case.name.to_owned(),
                cases.to_string(),
                known,
                median,
                high,
                part(inside, wrong.len()),
                part(good, cases),
            ]);
        }
    }
    Ok(vec![table])
}

/// The estimate with its interval; `None` where it is unknown.
fn replay(case: &Case, probe: &Probe, seed: u64) -> Result<Option<(f64, f64, f64)>> {
    let recording = record(case, seed);
    let account = recording.account(recording.len(), &probe.path)?;
    let bound = |bound| account.value("wattcast_idle_power_interval_watts", &[("package", "0"), ("bound", bound)]);
    let estimate = account.value("wattcast_idle_power_watts", &[("package", "0")]);
    Ok(estimate.map(|watts| (watts, bound("lower").unwrap_or(watts), bound("upper").unwrap_or(watts))))
}

fn record(case: &Case, seed: u64) -> Recording {
    let recording = Recording::new(1, CPUS, &["one", "two"]);
    let mut recording = if case.siblings { recording.with_siblings() } else { recording };
    let mut random = Random::new(seed);
    let (mut wander, mut second) = (0.5, 0.5);
    for tick in 0..case.ticks {
        let progress = tick as f64 / case.ticks as f64;
        wander = step(wander, 0.05, &mut random);
        second = step(second, 0.01, &mut random);
        let load = (case.load)(progress, wander);
        let watts = (case.power)(progress, load, second) + NOISE * random.normal();
        let ran: Vec<Vec<Cell>> =
            [1.0 - second, second].iter().map(|share| cells(load * share, shared(load))).collect();
        let ran = if case.siblings { ran } else { ran.iter().map(|cells| alone(cells)).collect() };
        recording.tick_with_siblings(&[watts], &ran);
    }
    recording
}

/// The next number of a walk between 0 and 1.
fn step(value: f64, pace: f64, random: &mut Random) -> f64 {
    (value + pace * random.normal()).clamp(0.0, 1.0)
}

/// A load on all CPUs alike, of which a part is next to a busy sibling.
fn cells(load: f64, shared: f64) -> Vec<Cell> {
    let ns = (load * 1e9) as u64;
    let next = (load * 1e9 * shared) as u64;
    (0..CPUS).map(|cpu| (cpu, ns - next.min(ns), next.min(ns))).collect()
}

fn alone(cells: &[Cell]) -> Vec<Cell> {
    cells.iter().map(|(cpu, alone, shared)| (*cpu, alone + shared, 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_of_siblings_bends_at_half_load() {
        assert_eq!((siblings(0.0), siblings(0.5)), (45.0, 189.0));
        assert!((siblings(1.0) - 210.6).abs() < 1e-9);
        assert_eq!((shared(0.5), shared(1.0)), (0.0, 1.0));
        let cell = cells(0.8, shared(0.8))[0];
        assert_eq!(alone(&[cell])[0], (0, 800_000_000, 0));
    }

    #[test]
    fn a_case_has_its_ticks_and_stays_within_its_loads() {
        for case in &CASES {
            assert_eq!(record(case, 1).len(), case.ticks, "{}", case.name);
            for wander in [0.0, 1.0] {
                assert!((0.0..=1.0).contains(&(case.load)(0.9, wander)), "{}", case.name);
            }
        }
    }
}
