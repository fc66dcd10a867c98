//! The difference of two readings of CPU time, summed by package and weighted.

use std::collections::{BTreeMap, HashMap};

use probe_ebpf::{COUNTERS, CgroupKey, RunTime};

use super::reader::CpuReading;

/// Usage of a package by one cgroup, or several, in one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuUsage {
    /// Run time without and with a busy SMT sibling.
    pub time: RunTime,
    /// Weight for energy attribution: thousandths of nanoseconds of a performance core without a
    /// busy sibling.
    pub weight: u64,
    /// Cycles, instructions and cache misses; zero without hardware counters.
    pub counted: [u64; COUNTERS],
}

impl CpuUsage {
    /// Total run time in nanoseconds.
    #[must_use]
    pub fn ns(&self) -> u64 {
        self.time.ns()
    }

    /// Removes the fraction `part` / `whole` of every value, rounded down, and returns it.
    pub fn take(&mut self, part: u64, whole: u64) -> Self {
        let mut taken = Self::default();
        let cut = |from: &mut u64| {
            let off = u128::from(*from) * u128::from(part.min(whole)) / u128::from(whole.max(1));
            let off = u64::try_from(off).unwrap_or(0);
            *from -= off;
            off
        };
        taken.time.alone_ns = cut(&mut self.time.alone_ns);
        taken.time.shared_ns = cut(&mut self.time.shared_ns);
        taken.weight = cut(&mut self.weight);
        taken.counted = self.counted.each_mut().map(cut);
        taken
    }

    /// Adds another usage.
    pub fn add(&mut self, other: &Self) {
        self.time.alone_ns = self.time.alone_ns.saturating_add(other.time.alone_ns);
        self.time.shared_ns = self.time.shared_ns.saturating_add(other.time.shared_ns);
        self.weight = self.weight.saturating_add(other.weight);
        self.counted.iter_mut().zip(other.counted).for_each(|(sum, one)| *sum = sum.saturating_add(one));
    }
}

/// CPU usage of one cgroup in one window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupUsage {
    /// `None` for the time of cgroups without a slot.
    pub cgroup: Option<CgroupKey>,
    /// Usage by package index; a single value where the CPU is unknown.
    pub by_package: Vec<CpuUsage>,
}

/// Weights of run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    /// Weight of a second with a busy sibling, in thousandths of that of a second without.
    pub shared_milli: u64,
}

/// Usage of one CPU by one cgroup in one window.
#[derive(Clone, Copy, Debug, Default)]
struct CpuDelta {
    time: RunTime,
    counted: [u64; COUNTERS],
}

/// Run time and cycles of all CPUs with the same weight, by weight.
type MeanPace = BTreeMap<u64, (u64, u64)>;

/// Up to this run time, a counter may not have changed.
const SHORT_NS: u64 = 100_000;

/// Keeps the last reading and computes the difference to the next one.
#[derive(Debug)]
pub struct CpuWindow {
    /// Package index of each possible CPU; `None` for an offline CPU, which the topology does not
    /// contain.
    packages_of_cpus: Vec<Option<usize>>,
    packages: usize,
    weights: Weights,
    /// Weight of a second of each CPU, in thousandths; 1000 for a CPU that is not listed.
    cpu_weights: Vec<u32>,
    last: HashMap<CgroupKey, LastValues>,
    last_overflow: Vec<RunTime>,
    last_counter_time: [u64; 2],
    /// Run time of everything on each CPU in the last window.
    busy_ns: Vec<u64>,
    /// True when hardware counters ran all the time and on every CPU in the last window.
    counted: bool,
}

/// The last values of one cgroup, by CPU.
#[derive(Debug, Default)]
struct LastValues {
    row: Vec<RunTime>,
    counted: Vec<[u64; COUNTERS]>,
}

impl CpuWindow {
    /// Starts at `reading`: earlier run time is not counted.
    ///
    /// `packages_of_cpus[cpu]` is the package index of a CPU, below `packages`. A tier that does
    /// not know CPUs uses a single CPU and a single package.
    #[must_use]
    pub fn start(
        packages_of_cpus: Vec<Option<usize>>,
        packages: usize,
        weights: Weights,
        reading: &CpuReading,
    ) -> Self {
        debug_assert!(packages_of_cpus.iter().flatten().all(|package| *package < packages));
        let last = reading.rows.iter().enumerate().map(|(at, (key, row))| {
            let counted = reading.counted.get(at).cloned().unwrap_or_default();
            (*key, LastValues { row: row.clone(), counted })
        });
        Self {
            packages_of_cpus,
            packages,
            weights,
            cpu_weights: Vec::new(),
            last: last.collect(),
            last_overflow: reading.overflow.clone(),
            last_counter_time: reading.counter_time,
            busy_ns: Vec::new(),
            counted: false,
        }
    }

    /// Sets the weight of a second of each CPU, in thousandths of that of a performance core.
    #[must_use]
    pub fn with_cpu_weights(mut self, cpu_weights: Vec<u32>) -> Self {
        self.cpu_weights = cpu_weights;
        self
    }

    /// Run time of everything on each CPU in the last window, in nanoseconds; a single value where
    /// the CPU is unknown.
    #[must_use]
    pub fn busy_ns(&self) -> &[u64] {
        &self.busy_ns
    }

    /// True when hardware counters ran all the time and on every CPU in the last window: only then
    /// are their counts complete.
    #[must_use]
    pub fn counted(&self) -> bool {
        self.counted
    }

    fn cpu_weight(&self, cpu: usize) -> u64 {
        self.cpu_weights.get(cpu).copied().map_or(1000, u64::from)
    }

    /// Takes over the packages of a changed topology.
    pub fn update_packages(&mut self, packages_of_cpus: Vec<Option<usize>>) {
        debug_assert!(packages_of_cpus.iter().flatten().all(|package| *package < self.packages));
        self.packages_of_cpus = packages_of_cpus;
    }

    /// Usage since the last reading, without idle cgroups, in the order of the cgroups.
    pub fn advance(&mut self, reading: &CpuReading) -> Vec<CgroupUsage> {
        let mut all: Vec<(Option<CgroupKey>, Vec<CpuDelta>)> = Vec::new();
        for (at, (key, now)) in reading.rows.iter().enumerate() {
            let last = self.last.entry(*key).or_default();
            let counted = reading.counted.get(at);
            // Most cgroups of a host are idle: their rows are neither copied nor allocated.
            if last.row == *now {
                if let Some(counted) = counted {
                    last.counted.clone_from(counted);
                }
                continue;
            }
            let mut deltas = difference(&last.row, now);
            last.row.clone_from(now);
            if let Some(counted) = counted {
                count(&mut deltas, &last.counted, counted);
                last.counted.clone_from(counted);
            }
            if deltas.iter().any(|delta| delta.time != RunTime::default()) {
                all.push((Some(*key), deltas));
            }
        }
        all.sort_unstable_by_key(|(key, _)| *key);
        let deltas = difference(&self.last_overflow, &reading.overflow);
        self.last_overflow.clone_from(&reading.overflow);
        if deltas.iter().any(|delta| delta.time != RunTime::default()) {
            all.push((None, deltas));
        }
        self.busy_ns.clear();
        for (_, deltas) in &all {
            self.busy_ns.resize(self.busy_ns.len().max(deltas.len()), 0);
            self.busy_ns.iter_mut().zip(deltas).for_each(|(sum, delta)| *sum = sum.saturating_add(delta.time.ns()));
        }
        let mean_pace = self.mean_pace(reading, &all);
        self.counted = mean_pace.is_some();
        all.into_iter()
            .map(|(cgroup, deltas)| CgroupUsage { cgroup, by_package: self.fold(&deltas, mean_pace.as_ref()) })
            .collect()
    }

    /// Total run time and total cycles of the window by weight of the CPU, for weighting a CPU's
    /// time by its cycles per nanosecond relative to the mean. `None` if a counter did not run all
    /// the time or on every CPU: then cycles do not change the weight.
    ///
    /// The mean is that of CPUs with the same weight. The weight of an efficient core is that of a
    /// second, which includes its lower frequency; a common mean would count the frequency twice.
    fn mean_pace(&mut self, reading: &CpuReading, all: &[(Option<CgroupKey>, Vec<CpuDelta>)]) -> Option<MeanPace> {
        let [enabled, running] = reading.counter_time;
        let [enabled_before, running_before] = std::mem::replace(&mut self.last_counter_time, reading.counter_time);
        let ran_always = enabled.wrapping_sub(enabled_before) == running.wrapping_sub(running_before);
        if reading.counted.is_empty() || !ran_always {
            return None;
        }
        let mut paces = MeanPace::new();
        for (cpu, delta) in all.iter().flat_map(|(_, deltas)| deltas.iter().enumerate()) {
            let delta_ns = delta.time.ns();
            if delta_ns > SHORT_NS && delta.counted[0] == 0 {
                return None;
            }
            let (ns, cycles) = paces.entry(self.cpu_weight(cpu)).or_default();
            *ns = ns.saturating_add(delta_ns);
            *cycles = cycles.saturating_add(delta.counted[0]);
        }
        paces.retain(|_, (ns, cycles)| *ns > 0 && *cycles > 0);
        Some(paces)
    }

    /// Sums up the CPUs of each package. An unknown CPU counts for the first package: its time is
    /// real and must be attributed.
    fn fold(&self, deltas: &[CpuDelta], mean_pace: Option<&MeanPace>) -> Vec<CpuUsage> {
        let mut sums = vec![CpuUsage::default(); self.packages];
        for (cpu, delta) in deltas.iter().enumerate() {
            let weight = self.weight(cpu, delta, mean_pace);
            if let Some(sum) = sums.get_mut(self.packages_of_cpus.get(cpu).copied().flatten().unwrap_or(0)) {
                sum.add(&CpuUsage { time: delta.time, weight, counted: delta.counted });
            }
        }
        sums
    }

    fn weight(&self, cpu: usize, delta: &CpuDelta, mean_pace: Option<&MeanPace>) -> u64 {
        let RunTime { alone_ns, shared_ns } = delta.time;
        let time = alone_ns.saturating_mul(1000).saturating_add(shared_ns.saturating_mul(self.weights.shared_milli));
        let milli = self.cpu_weight(cpu);
        let time = u64::try_from(u128::from(time) * u128::from(milli) / 1000).unwrap_or(u64::MAX);
        let ns = delta.time.ns();
        match mean_pace.and_then(|paces| paces.get(&milli)) {
            // A shorter time has no reliable cycle count.
            Some((all_ns, all_cycles)) if ns > SHORT_NS => {
                // Each factor is below 2^64 and the quotients are near 1: this order avoids
                // overflow.
                let weighted = u128::from(time) * u128::from(delta.counted[0]) / u128::from(ns);
                let weight = weighted.saturating_mul(u128::from(*all_ns)) / u128::from(*all_cycles);
                u64::try_from(weight).unwrap_or(u64::MAX)
            }
            _ => time,
        }
    }

    /// Drops a cgroup whose slot in the kernel was freed.
    pub fn forget(&mut self, key: &CgroupKey) {
        self.last.remove(key);
    }
}

/// The difference on each CPU. Totals only grow; a reassigned slot starts from zero because
/// `forget` removed the last values.
fn difference(before: &[RunTime], now: &[RunTime]) -> Vec<CpuDelta> {
    let zeros = std::iter::repeat(&RunTime { alone_ns: 0, shared_ns: 0 });
    let delta = |(now, before): (&RunTime, &RunTime)| CpuDelta {
        time: RunTime {
            alone_ns: now.alone_ns.saturating_sub(before.alone_ns),
            shared_ns: now.shared_ns.saturating_sub(before.shared_ns),
        },
        counted: [0; COUNTERS],
    };
    now.iter().zip(before.iter().chain(zeros)).map(delta).collect()
}

fn count(deltas: &mut [CpuDelta], before: &[[u64; COUNTERS]], now: &[[u64; COUNTERS]]) {
    let before = before.iter().copied().chain(std::iter::repeat([0; COUNTERS]));
    for ((delta, now), before) in deltas.iter_mut().zip(now).zip(before) {
        for ((counted, now), before) in delta.counted.iter_mut().zip(now).zip(before) {
            *counted = now.wrapping_sub(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::hierarchy;

    const WEIGHTS: Weights = Weights { shared_milli: 575 };

    fn key(id: u64) -> CgroupKey {
        CgroupKey { id, hierarchy: hierarchy::V2 }
    }

    fn packages_of(all: &[usize]) -> Vec<Option<usize>> {
        all.iter().copied().map(Some).collect()
    }

    fn alone(ns: &[u64]) -> Vec<RunTime> {
        ns.iter().map(|ns| RunTime { alone_ns: *ns, shared_ns: 0 }).collect()
    }

    fn reading(rows: &[(u64, &[u64])], overflow: &[u64]) -> CpuReading {
        let rows = rows.iter().map(|(id, ns)| (key(*id), alone(ns))).collect();
        CpuReading { rows, overflow: alone(overflow), ..CpuReading::default() }
    }

    fn start(packages_of_cpus: &[usize], packages: usize, reading: &CpuReading) -> CpuWindow {
        CpuWindow::start(packages_of(packages_of_cpus), packages, WEIGHTS, reading)
    }

    /// The cgroups, and nanoseconds by package.
    fn ns(ran: &[CgroupUsage]) -> Vec<(Option<CgroupKey>, Vec<u64>)> {
        ran.iter().map(|ran| (ran.cgroup, ran.by_package.iter().map(CpuUsage::ns).collect())).collect()
    }

    #[test]
    fn cpus_fold_into_their_packages() {
        let mut window = start(&[0, 1, 0, 1], 2, &reading(&[(1, &[10, 10, 10, 10])], &[0; 4]));
        let ran = window.advance(&reading(&[(1, &[11, 12, 14, 18])], &[0; 4]));
        assert_eq!(ns(&ran), [(Some(key(1)), vec![5, 10])]);
    }

    #[test]
    fn time_before_start_is_ignored_and_new_cgroup_counts_fully() {
        let mut window = start(&[0], 1, &reading(&[(1, &[500])], &[7]));
        let ran = window.advance(&reading(&[(2, &[3]), (1, &[500])], &[7]));
        assert_eq!(ns(&ran), [(Some(key(2)), vec![3])]);
    }

    #[test]
    fn time_without_cgroup_is_in_the_window() {
        let mut window = start(&[0, 1], 2, &reading(&[], &[5, 5]));
        let ran = window.advance(&reading(&[], &[5, 9]));
        assert_eq!(ns(&ran), [(None, vec![0, 4])]);
    }

    #[test]
    fn unknown_cpu_is_counted_in_first_package() {
        let mut window = start(&[1], 2, &reading(&[], &[0]));
        assert_eq!(ns(&window.advance(&reading(&[(1, &[0, 4])], &[0]))), [(Some(key(1)), vec![4, 0])]);
    }

    #[test]
    fn new_cpu_is_counted_in_package_of_new_topology() {
        let mut window = CpuWindow::start(vec![Some(0), None], 2, WEIGHTS, &reading(&[(1, &[5, 5])], &[0, 0]));
        window.update_packages(packages_of(&[0, 1]));
        assert_eq!(ns(&window.advance(&reading(&[(1, &[9, 6])], &[0, 0]))), [(Some(key(1)), vec![4, 1])]);
    }

    #[test]
    fn smaller_total_counts_only_after_slot_was_freed() {
        let mut window = start(&[0], 1, &reading(&[(1, &[500])], &[0]));
        assert_eq!(window.advance(&reading(&[(1, &[400])], &[0])), []);
        window.forget(&key(1));
        assert_eq!(ns(&window.advance(&reading(&[(1, &[3])], &[0]))), [(Some(key(1)), vec![3])]);
    }

    #[test]
    fn time_with_busy_sibling_has_lower_weight() {
        let mut window = start(&[0], 1, &reading(&[], &[0]));
        let row = vec![RunTime { alone_ns: 2000, shared_ns: 1000 }];
        let ran = window.advance(&CpuReading {
            rows: vec![(key(1), row.clone())],
            overflow: alone(&[0]),
            ..CpuReading::default()
        });
        assert_eq!(ran[0].by_package, [CpuUsage { time: row[0], weight: 2000 * 1000 + 1000 * 575, counted: [0; 3] }]);
    }

    #[test]
    fn an_efficient_core_has_its_weight_with_and_without_cycles() {
        let second = 1_000_000_000;
        let weights = |cycles: Option<[u64; 2]>| {
            let begin = CpuReading { overflow: alone(&[0, 0]), ..CpuReading::default() };
            let mut window = start(&[0, 0], 1, &begin).with_cpu_weights(vec![1000, 333]);
            let counted = cycles.map(|[a, b]| vec![vec![[a, 0, 0], [0; 3]], vec![[0; 3], [b, 0, 0]]]);
            let reading = CpuReading {
                rows: vec![(key(1), alone(&[second, 0])), (key(2), alone(&[0, second]))],
                counted: counted.unwrap_or_default(),
                counter_time: [5, 5],
                overflow: alone(&[0, 0]),
                ..CpuReading::default()
            };
            window.advance(&reading).iter().map(|ran| ran.by_package[0].weight).collect::<Vec<_>>()
        };
        assert_eq!(weights(None), [1000 * second, 333 * second]);
        // The lower frequency is part of the weight.
        assert_eq!(weights(Some([5 * second, 3 * second])), [1000 * second, 333 * second]);
    }

    #[test]
    fn counts_of_an_idle_tick_are_not_counted_in_the_next() {
        let of = |ns: u64, cycles: u64| CpuReading {
            rows: vec![(key(1), alone(&[ns]))],
            counted: vec![vec![[cycles, 0, 0]]],
            overflow: alone(&[0]),
            ..CpuReading::default()
        };
        let mut window = start(&[0], 1, &of(10, 5));
        assert_eq!(window.advance(&of(10, 9)), []);
        assert_eq!(window.advance(&of(20, 12))[0].by_package[0].counted, [3, 0, 0]);
    }

    #[test]
    fn counters_weight_time_by_cycles() {
        let second = 1_000_000_000;
        let of = |cycles: [u64; 2], time: [u64; 2]| CpuReading {
            rows: vec![(key(1), alone(&[second])), (key(2), alone(&[second]))],
            counted: vec![vec![[cycles[0], 9, 7]], vec![[cycles[1], 0, 0]]],
            counter_time: time,
            overflow: alone(&[0]),
            ..CpuReading::default()
        };
        let weights = |reading: &CpuReading| {
            let mut window = start(&[0], 1, &CpuReading { overflow: alone(&[0]), ..CpuReading::default() });
            window.advance(reading).iter().map(|ran| ran.by_package[0].weight).collect::<Vec<_>>()
        };
        // At 3 GHz and at 1 GHz: three quarters and one quarter of the same sum.
        assert_eq!(weights(&of([3 * second, second], [5, 5])), [1500 * second, 500 * second]);
        // The counters were multiplexed for a part of the time, or did not count on one CPU.
        assert_eq!(weights(&of([3 * second, second], [5, 4])), [1000 * second, 1000 * second]);
        assert_eq!(weights(&of([3 * second, 0], [5, 5])), [1000 * second, 1000 * second]);
        let mut window = start(&[0], 1, &CpuReading { overflow: alone(&[0]), ..CpuReading::default() });
        assert_eq!(window.advance(&of([3 * second, second], [5, 5]))[0].by_package[0].counted, [3 * second, 9, 7]);
    }
}
