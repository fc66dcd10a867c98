//! Power of a socket on which nothing runs, and which a thread on the other socket keeps awake: who
//! gets it.

use anyhow::Result;

use statistics::quantile;

use super::{
    broadwell::{Broadwell, CPUS, NOISE, PINNED},
    probe::Probe,
    synthetic::{Account, Random, Recording},
    table::{Table, errors, percent},
};

/// What runs on one socket: its name, its run in the data, and its threads.
const LOADS: [(&str, &str, usize); 5] = [
    ("1 busy loop", "busywait", 1),
    ("1 thread of integers", "compute", 1),
    ("4 threads of copies", "stream_copy_4", 4),
    ("8 threads of copies", "stream_copy_8", 8),
    ("16 threads of copies", "stream_copy_16", 16),
];
/// What the probe saw before: seconds, threads.
const BEFORE: [(usize, usize); 5] = [(600, 0), (60, 1), (120, 8), (120, 16), (300, 0)];
/// Seconds of the load that is looked at.
const SECONDS: usize = 300;

/// Where the energy above idle of one socket went, relative to it.
#[derive(Clone, Copy)]
struct Shares {
    encoder: f64,
    daemon: f64,
}

pub(super) fn tables(data: &Broadwell, probes: &[Probe]) -> Result<Vec<Table>> {
    let text = "Xeon Broadwell with two sockets (ICPE 2024): a container runs on one socket, a daemon runs 2 ms a \
                second on each CPU of the other. Share of what the other socket draws above idle (measured) that \
                the container and the daemon get, after 15 minutes with idle times and other loads; both \
                directions. Error: of the energy of both sockets above idle that the container gets. Expected: at \
                least 90 % and at most 10 %.";
    let heads = ["probe", "load", "n", "container, least", "daemon, most", "median error", "95th percentile"];
    let mut table = Table::new("Energy of the other socket", text, &heads);
    for probe in probes {
        let (mut all, mut all_errors) = (Vec::new(), Vec::new());
        for (name, workload, threads) in LOADS {
            let (mut rows, mut wrong) = (Vec::new(), Vec::new());
            for (seed, pinned) in (1..).zip(PINNED) {
                let [busy, other] = shares(data, probe, pinned, (workload, threads), seed)?;
                rows.push(other.0);
                let (got, truth) = (busy.0.encoder * busy.1 + other.0.encoder * other.1, busy.1 + other.1);
                wrong.push((got / truth - 1.0).abs());
            }
            table.row(row(probe, name, &rows, &wrong));
            all.extend(rows);
            all_errors.extend(wrong);
        }
        table.row(row(probe, "all", &all, &all_errors));
    }
    Ok(vec![table])
}

fn row(probe: &Probe, name: &str, shares: &[Shares], wrong: &[f64]) -> Vec<String> {
    let [count, median, high] = errors(wrong);
    let of = |value: fn(&Shares) -> f64, fraction| {
        let values: Vec<f64> = shares.iter().map(value).collect();
        quantile(&values, fraction).map(percent).unwrap_or_default()
    };
    let (least, most) = (of(|shares| shares.encoder, 0.0), of(|shares| shares.daemon, 1.0));
    vec![probe.label.to_owned(), name.to_owned(), count, least, most, median, high]
}

/// The shares of the busy and of the other socket, each with its joules above idle.
fn shares(
    data: &Broadwell,
    probe: &Probe,
    (config, busy): (&str, usize),
    (workload, threads): (&str, usize),
    seed: u64,
) -> Result<[(Shares, f64); 2]> {
    let mut recording = Recording::new(2, CPUS, &["encoder", "daemon"]);
    let mut random = Random::new(seed);
    let other = 1 - busy;
    let daemon: Vec<(usize, u64)> = (other * CPUS..(other + 1) * CPUS).map(|cpu| (cpu, 2_000_000)).collect();
    let idle = data.at(config, 0)?;
    let mut above = [0.0; 2];
    let mut run = |seconds: usize, watts: [f64; 2], threads: usize, recording: &mut Recording| {
        let encoder: Vec<(usize, u64)> = (0..threads).map(|cpu| (busy * CPUS + cpu, 1_000_000_000)).collect();
        let mut sums = [0.0; 2];
        for _ in 0..seconds {
            let noisy = watts.map(|watts| watts + NOISE * random.normal());
            recording.tick(&noisy, &[encoder.clone(), daemon.clone()]);
            sums.iter_mut().zip(noisy).zip(idle).for_each(|((sum, watts), idle)| *sum += watts - idle);
        }
        above = sums;
    };
    for (seconds, threads) in BEFORE {
        run(seconds, data.at(config, threads)?, threads, &mut recording);
    }
    let start = recording.len();
    run(SECONDS, data.watts(config, workload)?, threads, &mut recording);
    let (first, last) = (recording.account(start, &probe.path)?, recording.account(recording.len(), &probe.path)?);
    let of = |package: usize| {
        let label = package.to_string();
        let got = |container: &str| {
            let labels = [("container", container), ("package", &*label), ("zone", "package")];
            let joules = |account: &Account| account.sum("wattcast_container_energy_joules_total", &labels);
            (joules(&last) - joules(&first)) / above[package]
        };
        (Shares { encoder: got("encoder"), daemon: got("daemon") }, above[package])
    };
    Ok([of(busy), of(other)])
}
