//! Energy of memory, divided by cache misses and by CPU time, against the measured energy.
//!
//! The data is the time series of one node. Each window takes the part of a tenant: the energy
//! above idle of all windows together is divided among them by what each did, and compared with
//! what was measured in it.

use std::path::Path;

use anyhow::Result;

use statistics::quantile;

use super::{
    csv::Csv,
    table::{Table, errors, percent},
};

const FILE: &str = "kepler-nx12-rapl.csv";
/// Rows of a window: the rows are 3 s apart.
const WINDOWS: [(&str, usize); 2] = [("3 s", 1), ("1 min", 20)];
/// The power below which memory lies in this fraction of the time is taken as its idle power.
const ASLEEP: f64 = 0.05;

/// One window: watts, and events in it.
#[derive(Clone, Copy, Default)]
struct Window {
    watts: f64,
    misses: f64,
    cpu: f64,
}

pub(super) fn tables(data: &Path) -> Result<Vec<Table>> {
    let csv = Csv::read(&data.join(FILE))?;
    let (watts, misses, cpu) =
        (csv.numbers("dram_power")?, csv.numbers("cache_miss")?, csv.numbers("bpf_cpu_time_us")?);
    let rows: Vec<Window> =
        watts.into_iter().zip(misses).zip(cpu).map(|((watts, misses), cpu)| Window { watts, misses, cpu }).collect();
    let text = "One Xeon node (kepler-model-db). The energy above idle of all windows is divided among them as \
                among tenants, and compared with the measured energy of each. Idle: the power below which memory \
                lies in 5 % of the time, or that without misses (intercept of a line), which contains the step \
                between sleep and awake. In the wrong place: half the sum of all differences, relative to the \
                energy above idle. Error: of the energy of a window, idle included.";
    let heads = ["window", "idle", "divided by", "n", "in the wrong place", "median error", "95th percentile"];
    let mut table = Table::new("Memory", text, &heads);
    let all: Vec<f64> = rows.iter().map(|row| row.watts).collect();
    let (asleep, awake) = (quantile(&all, ASLEEP).unwrap_or_default(), intercept(&rows));
    for (name, length) in WINDOWS {
        let windows = join(&rows, length);
        for (idle, watts) in [("asleep", asleep), ("without misses", awake)] {
            for (by, shares) in [("misses", by(&windows, |w| w.misses)), ("CPU time", by(&windows, |w| w.cpu))] {
                table.row(row([name, idle, by], &windows, watts, &shares));
            }
        }
        let shares = with_step(&windows, asleep, awake);
        table.row(row([name, "asleep", "CPU time for the step, misses for the rest"], &windows, asleep, &shares));
    }
    Ok(vec![table])
}

/// The means of `length` rows each; a rest is left out.
fn join(rows: &[Window], length: usize) -> Vec<Window> {
    let count = length as f64;
    let mean = |rows: &[Window]| {
        let sum = |of: fn(&Window) -> f64| rows.iter().map(of).sum::<f64>() / count;
        Window { watts: sum(|w| w.watts), misses: sum(|w| w.misses), cpu: sum(|w| w.cpu) }
    };
    rows.chunks_exact(length).map(mean).collect()
}

/// Watts without misses: the intercept of the least squares line.
fn intercept(windows: &[Window]) -> f64 {
    let count = windows.len().max(1) as f64;
    let mean = |of: fn(&Window) -> f64| windows.iter().map(of).sum::<f64>() / count;
    let (watts, misses) = (mean(|w| w.watts), mean(|w| w.misses));
    let (mut covariance, mut variance) = (0.0, 0.0);
    for window in windows {
        covariance += (window.misses - misses) * (window.watts - watts);
        variance += (window.misses - misses).powi(2);
    }
    if variance > 0.0 { watts - covariance / variance * misses } else { watts }
}

/// The share of each window by a weight; none where all weights are zero.
fn by(windows: &[Window], weight: fn(&Window) -> f64) -> Vec<f64> {
    let sum: f64 = windows.iter().map(weight).sum();
    windows.iter().map(|window| if sum > 0.0 { weight(window) / sum } else { 0.0 }).collect()
}

/// Energy above `idle`, by window, in watts.
fn above(windows: &[Window], idle: f64) -> Vec<f64> {
    windows.iter().map(|window| (window.watts - idle).max(0.0)).collect()
}

/// The step from sleep to awake by CPU time, the rest by misses.
fn with_step(windows: &[Window], asleep: f64, awake: f64) -> Vec<f64> {
    let dynamic: Vec<f64> = above(windows, asleep);
    let total: f64 = dynamic.iter().sum();
    let step: f64 = dynamic.iter().map(|watts| watts.min(awake - asleep)).sum::<f64>() / total;
    let (cpu, misses) = (by(windows, |w| w.cpu), by(windows, |w| w.misses));
    cpu.iter().zip(misses).map(|(cpu, misses)| step * cpu + (1.0 - step) * misses).collect()
}

/// Divides the energy above `idle` by `shares`, and compares.
fn row(names: [&str; 3], windows: &[Window], idle: f64, shares: &[f64]) -> Vec<String> {
    let dynamic = above(windows, idle);
    let total: f64 = dynamic.iter().sum();
    let differences: Vec<f64> =
        dynamic.iter().zip(shares).map(|(measured, share)| (share * total - measured).abs()).collect();
    let misplaced = differences.iter().sum::<f64>() / 2.0 / total;
    let relative: Vec<f64> = differences.iter().zip(windows).map(|(error, window)| error / window.watts).collect();
    let [count, median, high] = errors(&relative);
    let [window, idle_name, by] = names.map(str::to_owned);
    let idle_name = format!("{idle_name} ({idle:.1} W)");
    vec![window, idle_name, by, count, percent(misplaced), median, high]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node whose memory draws 40 W asleep, 10 W more while a program runs, and a watt for each
    /// miss.
    fn windows() -> Vec<Window> {
        let window = |at: u32| {
            let (busy, misses) = (at % 2 == 1, if at % 4 == 3 { 20.0 } else { 0.0 });
            let watts = 40.0 + if busy { 10.0 } else { 0.0 } + misses;
            Window { watts, misses, cpu: if busy { 1.0 } else { 0.0 } }
        };
        (0..40).map(window).collect()
    }

    fn wrong(shares: &[f64]) -> f64 {
        let cells = row(["", "", ""], &windows(), 40.0, shares);
        cells[4].trim_end_matches(" %").parse().unwrap()
    }

    #[test]
    fn misses_alone_misplace_the_step_and_with_it_nothing() {
        let (misses, cpu) = (by(&windows(), |w| w.misses), by(&windows(), |w| w.cpu));
        assert_eq!((wrong(&misses), wrong(&cpu)), (25.0, 25.0));
        assert_eq!(wrong(&with_step(&windows(), 40.0, 50.0)), 0.0);
    }

    #[test]
    fn the_intercept_is_the_power_without_misses() {
        // The mean of the windows without misses.
        assert!((intercept(&windows()) - 130.0 / 3.0).abs() < 1e-9, "{}", intercept(&windows()));
        let joined = join(&windows(), 4);
        assert_eq!((joined.len(), joined[0].watts, joined[0].misses), (10, 50.0, 5.0));
        assert_eq!(intercept(&joined), 50.0, "all alike");
    }
}
