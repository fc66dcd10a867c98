//! Energy of memory as the probe divides it, against the measured energy.
//!
//! The data is the time series of one node. Each window of it plays a tenant: a tick holds ten
//! windows from anywhere, one after another, as if ten programs had taken turns. The probe divides
//! the measured energy of the tick by what each did, and what a tenant gets is compared with what
//! was measured in its window.

use std::path::Path;

use anyhow::Result;

use statistics::quantile;

use super::{
    csv::Csv,
    probe::Probe,
    synthetic::{Account, Random, Recording, Run},
    table::{Table, errors, percent},
};

const FILE: &str = "kepler-nx12-rapl.csv";
/// Seconds between two rows.
const SECONDS: u64 = 3;
/// CPUs of the machine here: in no row are more than 29 of them busy.
const CPUS: usize = 32;
/// Rows of a window.
const WINDOWS: [(&str, usize); 2] = [("3 s", 1), ("1 min", 20)];
/// Windows in a tick.
const TENANTS: usize = 10;
/// The power below which memory lies in this fraction of the time is taken as its idle power.
const ASLEEP: f64 = 0.05;
/// The container that runs while the probe learns.
const BEFORE: &str = "before";

/// One row, or several: mean watts, and what ran in a second.
#[derive(Clone, Copy, Default)]
pub(super) struct Window {
    memory: f64,
    package: f64,
    /// CPUs in use.
    cpus: f64,
    /// Cycles, instructions, cache misses.
    events: [f64; 3],
}

impl Window {
    /// All rows of the file.
    pub(super) fn read(data: &Path) -> Result<Vec<Self>> {
        let csv = Csv::read(&data.join(FILE))?;
        let (memory, package) = (csv.numbers("dram_power")?, csv.numbers("package_power")?);
        // Milliseconds a second, whatever the name says: 1000 of them have 2 billion cycles.
        let time = csv.numbers("bpf_cpu_time_us")?;
        let [cycles, instructions, misses] =
            [csv.numbers("cpu_cycles")?, csv.numbers("cpu_instructions")?, csv.numbers("cache_miss")?];
        let row = |at: usize| Self {
            memory: memory[at],
            package: package[at],
            cpus: time[at] / 1e3,
            events: [cycles[at], instructions[at], misses[at]],
        };
        Ok((0..memory.len()).map(row).collect())
    }

    /// The mean of several.
    fn mean(windows: &[Self]) -> Self {
        let mean = |of: &dyn Fn(&Self) -> f64| windows.iter().map(of).sum::<f64>() / windows.len() as f64;
        Self {
            memory: mean(&|window| window.memory),
            package: mean(&|window| window.package),
            cpus: mean(&|window| window.cpus),
            events: [0, 1, 2].map(|event| mean(&|window| window.events[event])),
        }
    }

    /// What runs in so many seconds, spread evenly over all CPUs.
    fn runs(&self, seconds: u64) -> Vec<Run> {
        let part = |of_second: f64| (of_second * seconds as f64 / CPUS as f64) as u64;
        (0..CPUS).map(|cpu| Run { cpu, ns: part(self.cpus * 1e9), events: self.events.map(part) }).collect()
    }

    /// Share of time in which any CPU runs.
    fn awake(&self) -> f64 {
        1.0 - (1.0 - (self.cpus / CPUS as f64).min(1.0)).powi(CPUS as i32)
    }

    /// Adds the whole series, as one container.
    pub(super) fn replay(rows: &[Self], recording: &mut Recording) {
        for row in rows {
            recording.tick_with_events(SECONDS, &[row.package, row.memory], row.awake(), &[(0, row.runs(SECONDS))]);
        }
    }

    /// A recording of this machine, with its first tick and no time yet. The idle power of its
    /// memory is given in watts, or to be learnt.
    pub(super) fn recording(names: &[&str], idle: Option<f64>) -> Recording {
        let mut recording = Recording::new(1, CPUS, names).with_memory(idle).with_counters().with_residency();
        recording.tick_with_events(0, &[], 0.0, &[]);
        recording
    }
}

pub(super) fn tables(data: &Path, probes: &[Probe]) -> Result<Vec<Table>> {
    let rows = Window::read(data)?;
    let text = "One Xeon node (kepler-model-db). The probe sees each window of the time series as a tenant: a tick \
                holds ten windows from anywhere, one after another. Idle power: learnt by the probe, which sees the \
                time series as it is before; or given, as the power below which memory lies in 5 % of the time \
                (asleep), or that without misses (intercept of a line), which contains the step between sleep and \
                awake. What the probe gives a tenant of the memory's measured energy, with the idle energy that it \
                knows, is compared with what was measured in its window. In the wrong place: half the sum of all \
                differences, relative to the energy above that asleep. Error: of the energy of a window. Divided \
                by: as the probe says of the last tick.";
    let heads = [
        "probe",
        "window",
        "policy",
        "divided by",
        "idle power",
        "n",
        "in the wrong place",
        "median error",
        "95th percentile",
    ];
    let mut table = Table::new("Memory", text, &heads);
    let asleep = quantile(&rows.iter().map(|row| row.memory).collect::<Vec<_>>(), ASLEEP).unwrap_or_default();
    let idle = [("learnt", None), ("asleep", Some(asleep)), ("without misses", Some(without_misses(&rows)))];
    for (name, length) in WINDOWS {
        for (how, watts) in idle {
            let (recording, windows) = record(&rows, length, watts);
            for probe in probes {
                for (policy, flags) in policies(probe, probes, watts) {
                    let account = recording.account_with(recording.len(), &probe.path, flags)?;
                    let head = [probe.label, name, *policy].map(str::to_owned);
                    let seconds = length as u64 * SECONDS;
                    table.row(head.into_iter().chain(cells(&account, &windows, seconds, (how, asleep))).collect());
                }
            }
        }
    }
    Ok(vec![table])
}

/// A policy, and the flags for it.
type Policy = (&'static str, &'static [&'static str]);

/// The policies of a probe's rows. An older probe has no flag, and divides no memory: one row says
/// that.
fn policies(probe: &Probe, probes: &[Probe], idle: Option<f64>) -> &'static [Policy] {
    let newest = probes.last().is_some_and(|last| last.path == probe.path);
    match (newest, idle) {
        (true, _) => &[("misses", &["--memory.policy=misses"]), ("cpu-time", &["--memory.policy=cpu-time"])],
        (false, None) => &[("–", &[])],
        (false, Some(_)) => &[],
    }
}

/// Watts without misses: the intercept of the least squares line.
fn without_misses(rows: &[Window]) -> f64 {
    let mean = Window::mean(rows);
    let (mut covariance, mut variance) = (0.0, 0.0);
    for row in rows {
        let misses = row.events[2] - mean.events[2];
        covariance += misses * (row.memory - mean.memory);
        variance += misses * misses;
    }
    if variance > 0.0 { mean.memory - covariance / variance * mean.events[2] } else { mean.memory }
}

/// The series, unless the idle power is given, then its windows as tenants in ticks of ten, in any
/// order. A rest is left out.
fn record(rows: &[Window], length: usize, idle: Option<f64>) -> (Recording, Vec<Window>) {
    let mut windows: Vec<Window> = rows.chunks_exact(length).map(Window::mean).collect();
    let mut random = Random::new(1);
    for at in (1..windows.len()).rev() {
        windows.swap(at, (random.uniform() * (at + 1) as f64) as usize);
    }
    windows.truncate(windows.len() / TENANTS * TENANTS);
    let names: Vec<String> =
        std::iter::once(BEFORE.to_owned()).chain((0..windows.len()).map(|at| format!("w{at}"))).collect();
    let mut recording = Window::recording(&names.iter().map(String::as_str).collect::<Vec<_>>(), idle);
    if idle.is_none() {
        Window::replay(rows, &mut recording);
    }
    let seconds = length as u64 * SECONDS;
    for (tick, tenants) in windows.chunks_exact(TENANTS).enumerate() {
        let mean = Window::mean(tenants);
        let awake = tenants.iter().map(Window::awake).sum::<f64>() / TENANTS as f64;
        let runs = tenants.iter().enumerate();
        let ran: Vec<_> = runs.map(|(at, tenant)| (1 + tick * TENANTS + at, tenant.runs(seconds))).collect();
        recording.tick_with_events(TENANTS as u64 * seconds, &[mean.package, mean.memory], awake, &ran);
    }
    (recording, windows)
}

/// What the probe did, and how far each tenant's energy is from the measured. `how` the idle power
/// is known, and the power asleep.
fn cells(account: &Account, windows: &[Window], seconds: u64, (how, asleep): (&str, f64)) -> Vec<String> {
    let zone = [("zone", "dram")];
    let got = account.sums("wattcast_container_energy_joules_total", &zone, "container");
    let seconds = seconds as f64;
    let idle = account.value("wattcast_idle_power_watts", &zone);
    let difference = |(at, window): (usize, &Window)| {
        let dynamic = got.get(&format!("w{at}")).copied().unwrap_or_default();
        (dynamic + (idle.unwrap_or_default() - window.memory) * seconds).abs()
    };
    let differences: Vec<f64> = windows.iter().enumerate().map(difference).collect();
    let above: f64 = windows.iter().map(|window| (window.memory - asleep).max(0.0) * seconds).sum();
    let misplaced = differences.iter().sum::<f64>() / 2.0 / above;
    let relative: Vec<f64> =
        differences.iter().zip(windows).map(|(error, window)| error / (window.memory * seconds)).collect();
    let [count, median, high] = errors(&relative);
    let by = account.label("wattcast_attribution_weight_info", &zone, "weight");
    let by = if by.is_empty() { "nothing".to_owned() } else { by };
    let idle = match (idle, account.value("wattcast_awake_power_watts", &zone)) {
        (Some(idle), Some(step)) => format!("{how}: {idle:.1} W, awake {step:.1} W more"),
        (Some(idle), None) => format!("{how}: {idle:.1} W"),
        (None, _) => format!("{how}: unknown"),
    };
    vec![by, idle, count, percent(misplaced), median, high]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(at: usize) -> Window {
        let busy = (at % 8) as f64;
        Window { memory: 40.0 + busy, package: 30.0 + 4.0 * busy, cpus: busy, events: [2e9 * busy, 1e9 * busy, 1e6] }
    }

    #[test]
    fn every_window_is_a_tenant_once_and_their_energy_is_that_of_the_ticks() {
        let rows: Vec<Window> = (0..64).map(window).collect();
        let (recording, windows) = record(&rows, 2, None);
        // The first tick, the series, and three ticks of ten windows; two windows are left out.
        assert_eq!((windows.len(), recording.len()), (30, 1 + 64 + 3));
        assert_eq!(record(&rows, 2, Some(40.0)).0.len(), 1 + 3);
        let joined = Window::mean(&rows[..2]);
        assert_eq!((joined.memory, joined.cpus, joined.events), (40.5, 0.5, [1e9, 5e8, 1e6]));
    }

    #[test]
    fn the_intercept_is_the_power_without_misses() {
        let row = |misses: f64| Window { memory: 45.0 + misses / 1e6, events: [0.0, 0.0, misses], ..window(0) };
        assert!((without_misses(&[row(0.0), row(1e6), row(5e6)]) - 45.0).abs() < 1e-9);
        assert_eq!(without_misses(&[row(1e6); 3]), 46.0, "all alike");
    }

    #[test]
    fn a_window_runs_evenly_on_all_cpus() {
        let runs = window(4).runs(3);
        assert_eq!((runs.len(), runs[0].ns, runs[31].events), (32, 375_000_000, [750_000_000, 375_000_000, 93_750]));
        assert_eq!((window(0).awake(), Window { cpus: 32.0, ..window(1) }.awake()), (0.0, 1.0));
        assert!((window(1).awake() - 0.638).abs() < 0.001, "{}", window(1).awake());
    }
}
