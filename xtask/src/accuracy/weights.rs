//! Energy of programs whose cycles draw different power, as the probe divides it: by CPU time, by
//! cycles, and by a mix of what hardware counters count.

use std::path::Path;

use anyhow::Result;

use super::{
    memory::Window,
    probe::Probe,
    synthetic::{Account, Random, Recording, Run},
    table::{Table, errors, percent},
};

/// Watts without load, and standard deviation of the watts of a second.
const BASE: f64 = 40.0;
const NOISE: f64 = 0.5;
/// Joules of a cycle, an instruction, a cache miss.
const COSTS: [f64; 3] = [1e-9, 0.5e-9, 30e-9];
/// CPUs of each program, next to each other.
const CPUS: usize = 5;
/// Seconds after which loads change, of the recording, and of its end that is looked at.
const EVEN: usize = 20;
const LENGTH: usize = 3000;
const END: usize = 600;
const SEEDS: u64 = 5;

/// A program.
struct Program {
    name: &'static str,
    hertz: f64,
    /// Instructions and misses of a cycle.
    of_cycle: [f64; 2],
    /// Its power relative to that of its events: the units that they work in are not counted.
    unseen: f64,
}

const PROGRAMS: [Program; 3] = [
    Program { name: "integer", hertz: 3.4e9, of_cycle: [2.5, 0.0005], unseen: 1.0 },
    Program { name: "vector", hertz: 2.8e9, of_cycle: [1.6, 0.003], unseen: 1.1 },
    Program { name: "memory", hertz: 3.0e9, of_cycle: [0.4, 0.02], unseen: 1.0 },
];

/// What a machine counts, and how many of the events.
const COUNTED: [(&str, usize); 3] = [("CPU time", 0), ("cycles", 1), ("cycles, instructions, misses", 3)];

pub(super) fn tables(data: &Path, probes: &[Probe]) -> Result<Vec<Table>> {
    Ok(vec![synthetic(probes)?, measured(data, probes)?])
}

fn synthetic(probes: &[Probe]) -> Result<Table> {
    let text = "Synthetic machine with 16 CPUs and 0.5 W of noise on which three programs run, whose loads change \
                every 20 seconds: a cycle of them draws 2.3, 2.1 and 1.8 nJ, one of them 10 % more than its events \
                tell, at frequencies of their own. Dynamic energy of each in the last ten minutes of fifty, after \
                idle times and all loads; five seeds. On servers a compute loop draws 19 % (Broadwell) to 45 % (Ice \
                Lake) more than a busy loop for the same CPU seconds (ICPE 2024).";
    let heads = ["probe", "counted", "divided by", "n", "median error", "95th percentile", "largest"];
    let mut table = Table::new("Programs with unequal cycles", text, &heads);
    for probe in probes {
        for (name, events) in COUNTED {
            let (mut wrong, mut by) = (Vec::new(), String::new());
            for seed in 0..SEEDS {
                let (recording, truth) = record(seed, events);
                let first = recording.account(recording.len() - END, &probe.path)?;
                let last = recording.account(recording.len(), &probe.path)?;
                let got = |name: &str| joules(&last, name) - joules(&first, name);
                let errors = PROGRAMS.iter().zip(truth).map(|(program, truth)| got(program.name) / truth - 1.0);
                wrong.extend(errors.map(f64::abs));
                by = last.label("wattcast_attribution_weight_info", &[("zone", "package")], "weight");
            }
            let largest = percent(wrong.iter().copied().fold(0.0, f64::max));
            let [count, median, high] = errors(&wrong);
            // An older probe, and one without counters, does not say it.
            let by = if by.is_empty() { "–".to_owned() } else { by };
            table.row(vec![probe.label.to_owned(), name.to_owned(), by, count, median, high, largest]);
        }
    }
    Ok(table)
}

fn joules(account: &Account, container: &str) -> f64 {
    account.sum("wattcast_container_energy_joules_total", &[("container", container)])
}

/// A recording in which so many of the events are counted, and the joules of each program at its
/// end.
fn record(seed: u64, events: usize) -> (Recording, [f64; 3]) {
    let names = PROGRAMS.each_ref().map(|program| program.name);
    let mut recording = Recording::new(1, 16, &names);
    if events > 0 {
        recording = recording.with_counters();
    }
    let mut random = Random::new(seed);
    let (mut truth, mut loads) = ([0.0; 3], [0.0; 3]);
    for tick in 0..=LENGTH {
        if tick % EVEN == 0 {
            // Every eighth time nearly idle.
            let most = if (tick / EVEN).is_multiple_of(8) { 0.002 } else { 1.0 };
            loads = [0.0; 3].map(|_: f64| most * random.uniform());
        }
        let mut watts = BASE + NOISE * random.normal();
        let mut ran = Vec::new();
        for (at, (program, load)) in PROGRAMS.iter().zip(loads).enumerate() {
            let (runs, joules) = program.run(at * CPUS, load, events);
            watts += joules;
            truth[at] += if tick > LENGTH - END { joules } else { 0.0 };
            ran.push((at, runs));
        }
        recording.tick_with_events(1, &[watts], 1.0, &ran);
    }
    (recording, truth)
}

impl Program {
    /// A second at a load on each of its CPUs, the events that are counted of it, and its joules.
    fn run(&self, first_cpu: usize, load: f64, events: usize) -> (Vec<Run>, f64) {
        let cycles = load * self.hertz;
        let [instructions, misses] = self.of_cycle.map(|of_cycle| of_cycle * cycles);
        let all = [cycles, instructions, misses];
        let mut counted = all.map(|count| count as u64);
        counted[events..].fill(0);
        let run = |cpu| Run { cpu, ns: (load * 1e9) as u64, events: counted };
        let joules: f64 = all.iter().zip(COSTS).map(|(count, cost)| count * cost).sum();
        ((first_cpu..first_cpu + CPUS).map(run).collect(), joules * self.unseen * CPUS as f64)
    }
}

/// How well each weight predicts the power of a real package.
fn measured(data: &Path, probes: &[Probe]) -> Result<Table> {
    let text = "One Xeon node (kepler-model-db), the probe's own cross-validation at the end of its time series: \
                error of the power of the load in the last half hour by each weight, for times that were left out \
                of its fit, relative to that power; and the weight that the probe used.";
    let heads = ["probe", "by CPU time", "by cycles", "by a mix", "used"];
    let mut table = Table::new("Weights on a real package", text, &heads);
    let mut recording = Window::recording(&["all"], None);
    Window::replay(&Window::read(data)?, &mut recording);
    for probe in probes {
        let account = recording.account(recording.len(), &probe.path)?;
        let error = |weight: &str| {
            let labels = [("weight", weight)];
            let ratio = account.value("wattcast_attribution_weight_error_ratio", &labels);
            ratio.map_or_else(|| "–".to_owned(), percent)
        };
        let used = account.label("wattcast_attribution_weight_info", &[("zone", "package")], "weight");
        let used = if used.is_empty() { "–".to_owned() } else { used };
        table.row(vec![probe.label.to_owned(), error("time"), error("cycles"), error("mix"), used]);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_cost_what_the_text_says() {
        let of_cycle = |program: &Program| {
            let (runs, joules) = program.run(0, 1.0, 3);
            joules / runs.iter().map(|run| run.events[0] as f64).sum::<f64>() * 1e9
        };
        let costs = PROGRAMS.each_ref().map(|program| (of_cycle(program) * 10.0).round() / 10.0);
        assert_eq!(costs, [2.3, 2.1, 1.8]);
    }

    #[test]
    fn only_counted_events_are_in_a_recording() {
        let events = |count| PROGRAMS[1].run(5, 0.5, count).0[0].events;
        assert_eq!((events(0), events(1)[1..].iter().sum::<u64>()), ([0; 3], 0));
        assert_eq!(events(3), [1_400_000_000, 2_240_000_000, 4_200_000]);
        let (recording, truth) = record(1, 3);
        assert_eq!(recording.len(), LENGTH + 1);
        assert!(truth.iter().all(|joules| *joules > 1000.0), "{truth:?}");
    }
}
