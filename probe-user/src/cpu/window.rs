//! What ran between two readings, folded per package and weighed.

use std::collections::HashMap;

use super::{COUNTERS, CgroupKey, Reading, RunTime};

/// What somebody ran on a package in one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Nanoseconds alone and beside a busy sibling.
    pub time: RunTime,
    /// What that is worth when joules are shared: thousandths of nanoseconds alone.
    pub weight: u64,
    /// Cycles, instructions and cache misses; zero without hardware counters.
    pub counted: [u64; COUNTERS],
}

impl Share {
    /// Nanoseconds, alone or not.
    #[must_use]
    pub fn ns(&self) -> u64 {
        self.time.ns()
    }

    /// Takes `part` of `whole` of everything off this, rounded down, and gives it.
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

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.time.alone_ns = self.time.alone_ns.saturating_add(other.time.alone_ns);
        self.time.shared_ns = self.time.shared_ns.saturating_add(other.time.shared_ns);
        self.weight = self.weight.saturating_add(other.weight);
        self.counted.iter_mut().zip(other.counted).for_each(|(sum, one)| *sum = sum.saturating_add(one));
    }
}

/// What one cgroup ran in one window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Who; `None` is the time of cgroups that found no place in the kernel's map.
    pub cgroup: Option<CgroupKey>,
    /// By package index; a single one where nobody knows on which CPU.
    pub by_package: Vec<Share>,
}

/// What time is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    /// Thousandths of a second alone that a second beside a busy sibling is worth.
    pub shared_milli: u64,
}

/// What one cgroup ran on one CPU in one window.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    time: RunTime,
    counted: [u64; COUNTERS],
}

/// Time too short for a counter to have moved for sure.
const SHORT_NS: u64 = 100_000;

/// Holds the last reading and takes the difference to the next.
#[derive(Debug)]
pub struct Window {
    /// Package index of each possible CPU; `None` for one that the topology does not know, because it is offline.
    place: Vec<Option<usize>>,
    packages: usize,
    weights: Weights,
    last: HashMap<CgroupKey, Last>,
    last_overflow: Vec<RunTime>,
    last_counter_time: [u64; 2],
}

/// The last figures of one cgroup, by CPU.
#[derive(Debug, Default)]
struct Last {
    row: Vec<RunTime>,
    counted: Vec<[u64; COUNTERS]>,
}

impl Window {
    /// Starts at `reading`: what ran before it is nobody's.
    ///
    /// `place[cpu]` is the package index of a CPU, below `packages`; both for a single one where the tier knows no CPUs.
    #[must_use]
    pub fn start(place: Vec<Option<usize>>, packages: usize, weights: Weights, reading: &Reading) -> Self {
        debug_assert!(place.iter().flatten().all(|package| *package < packages));
        let last = reading.rows.iter().enumerate().map(|(at, (key, row))| {
            let counted = reading.counted.get(at).cloned().unwrap_or_default();
            (*key, Last { row: row.clone(), counted })
        });
        Self {
            place,
            packages,
            weights,
            last: last.collect(),
            last_overflow: reading.overflow.clone(),
            last_counter_time: reading.counter_time,
        }
    }

    /// Takes the packages of a topology that was read again.
    pub fn replace(&mut self, place: Vec<Option<usize>>) {
        debug_assert!(place.iter().flatten().all(|package| *package < self.packages));
        self.place = place;
    }

    /// What ran since the last reading, idle cgroups left out, in the order of the cgroups.
    pub fn advance(&mut self, reading: &Reading) -> Vec<Ran> {
        let mut all: Vec<(Option<CgroupKey>, Vec<Cell>)> = Vec::with_capacity(reading.rows.len());
        for (at, (key, now)) in reading.rows.iter().enumerate() {
            let last = self.last.entry(*key).or_default();
            let mut cells = grown(&last.row, now);
            last.row.clone_from(now);
            if let Some(counted) = reading.counted.get(at) {
                count(&mut cells, &last.counted, counted);
                last.counted.clone_from(counted);
            }
            if cells.iter().any(|cell| cell.time != RunTime::default()) {
                all.push((Some(*key), cells));
            }
        }
        all.sort_unstable_by_key(|(key, _)| *key);
        let cells = grown(&self.last_overflow, &reading.overflow);
        self.last_overflow.clone_from(&reading.overflow);
        if cells.iter().any(|cell| cell.time != RunTime::default()) {
            all.push((None, cells));
        }
        let pace = self.pace(reading, &all);
        all.into_iter().map(|(cgroup, cells)| Ran { cgroup, by_package: self.fold(&cells, pace) }).collect()
    }

    /// What all ran, in nanoseconds and in cycles: then a nanosecond is worth as many cycles as the CPU made in it, beside the mean.
    /// Nothing where a counter did not run all the time, or not everywhere: then all nanoseconds are worth the same.
    fn pace(&mut self, reading: &Reading, all: &[(Option<CgroupKey>, Vec<Cell>)]) -> Option<(u64, u64)> {
        let [wanted, ran] = reading.counter_time;
        let [wanted_before, ran_before] = std::mem::replace(&mut self.last_counter_time, reading.counter_time);
        let whole = wanted.wrapping_sub(wanted_before) == ran.wrapping_sub(ran_before);
        if reading.counted.is_empty() || !whole {
            return None;
        }
        let (mut ns, mut cycles) = (0u64, 0u64);
        for cell in all.iter().flat_map(|(_, cells)| cells) {
            let cell_ns = cell.time.ns();
            if cell_ns > SHORT_NS && cell.counted[0] == 0 {
                return None;
            }
            ns = ns.saturating_add(cell_ns);
            cycles = cycles.saturating_add(cell.counted[0]);
        }
        (ns > 0 && cycles > 0).then_some((ns, cycles))
    }

    /// Sums each CPU into its package. A CPU that the topology does not know counts for the first package: its time is real and
    /// must be in the account.
    fn fold(&self, cells: &[Cell], pace: Option<(u64, u64)>) -> Vec<Share> {
        let mut sums = vec![Share::default(); self.packages];
        for (cpu, cell) in cells.iter().enumerate() {
            let weight = self.weight(cell, pace);
            if let Some(sum) = sums.get_mut(self.place.get(cpu).copied().flatten().unwrap_or(0)) {
                sum.add(&Share { time: cell.time, weight, counted: cell.counted });
            }
        }
        sums
    }

    fn weight(&self, cell: &Cell, pace: Option<(u64, u64)>) -> u64 {
        let RunTime { alone_ns, shared_ns } = cell.time;
        let time = alone_ns.saturating_mul(1000).saturating_add(shared_ns.saturating_mul(self.weights.shared_milli));
        let ns = cell.time.ns();
        match pace {
            // Too short to say what it cost.
            Some((all_ns, all_cycles)) if ns > SHORT_NS => {
                // Each factor is below 2^64 and the quotients are near 1: the order keeps the product in range.
                let paced = u128::from(time) * u128::from(cell.counted[0]) / u128::from(ns);
                let weight = paced.saturating_mul(u128::from(all_ns)) / u128::from(all_cycles);
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

/// What grew on each CPU. Totals only grow; a slot that was freed and taken again starts from nothing, because `forget` said so.
fn grown(before: &[RunTime], now: &[RunTime]) -> Vec<Cell> {
    let zeros = std::iter::repeat(&RunTime { alone_ns: 0, shared_ns: 0 });
    let cell = |(now, before): (&RunTime, &RunTime)| Cell {
        time: RunTime {
            alone_ns: now.alone_ns.saturating_sub(before.alone_ns),
            shared_ns: now.shared_ns.saturating_sub(before.shared_ns),
        },
        counted: [0; COUNTERS],
    };
    now.iter().zip(before.iter().chain(zeros)).map(cell).collect()
}

fn count(cells: &mut [Cell], before: &[[u64; COUNTERS]], now: &[[u64; COUNTERS]]) {
    let before = before.iter().copied().chain(std::iter::repeat([0; COUNTERS]));
    for ((cell, now), before) in cells.iter_mut().zip(now).zip(before) {
        for ((counted, now), before) in cell.counted.iter_mut().zip(now).zip(before) {
            *counted = now.wrapping_sub(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::hierarchy;

    const WEIGHTS: Weights = Weights { shared_milli: 575 };

    fn key(id: u64) -> CgroupKey {
        CgroupKey { id, hierarchy: hierarchy::V2 }
    }

    fn places(all: &[usize]) -> Vec<Option<usize>> {
        all.iter().copied().map(Some).collect()
    }

    fn alone(ns: &[u64]) -> Vec<RunTime> {
        ns.iter().map(|ns| RunTime { alone_ns: *ns, shared_ns: 0 }).collect()
    }

    fn reading(rows: &[(u64, &[u64])], overflow: &[u64]) -> Reading {
        let rows = rows.iter().map(|(id, ns)| (key(*id), alone(ns))).collect();
        Reading { rows, overflow: alone(overflow), ..Reading::default() }
    }

    fn start(place: &[usize], packages: usize, reading: &Reading) -> Window {
        Window::start(places(place), packages, WEIGHTS, reading)
    }

    /// Who ran, and nanoseconds by package.
    fn ns(ran: &[Ran]) -> Vec<(Option<CgroupKey>, Vec<u64>)> {
        ran.iter().map(|ran| (ran.cgroup, ran.by_package.iter().map(Share::ns).collect())).collect()
    }

    #[test]
    fn cpus_fold_into_their_packages() {
        let mut window = start(&[0, 1, 0, 1], 2, &reading(&[(1, &[10, 10, 10, 10])], &[0; 4]));
        let ran = window.advance(&reading(&[(1, &[11, 12, 14, 18])], &[0; 4]));
        assert_eq!(ns(&ran), [(Some(key(1)), vec![5, 10])]);
    }

    #[test]
    fn time_before_the_start_is_nobodys_and_a_newcomer_counts_whole() {
        let mut window = start(&[0], 1, &reading(&[(1, &[500])], &[7]));
        let ran = window.advance(&reading(&[(2, &[3]), (1, &[500])], &[7]));
        assert_eq!(ns(&ran), [(Some(key(2)), vec![3])]);
    }

    #[test]
    fn time_without_a_name_is_still_in_the_window() {
        let mut window = start(&[0, 1], 2, &reading(&[], &[5, 5]));
        let ran = window.advance(&reading(&[], &[5, 9]));
        assert_eq!(ns(&ran), [(None, vec![0, 4])]);
    }

    #[test]
    fn a_cpu_beyond_the_topology_is_counted_in_the_first_package() {
        let mut window = start(&[1], 2, &reading(&[], &[0]));
        assert_eq!(ns(&window.advance(&reading(&[(1, &[0, 4])], &[0]))), [(Some(key(1)), vec![4, 0])]);
    }

    #[test]
    fn a_cpu_that_comes_online_is_placed_where_the_new_topology_says() {
        let mut window = Window::start(vec![Some(0), None], 2, WEIGHTS, &reading(&[(1, &[5, 5])], &[0, 0]));
        window.replace(places(&[0, 1]));
        assert_eq!(ns(&window.advance(&reading(&[(1, &[9, 6])], &[0, 0]))), [(Some(key(1)), vec![4, 1])]);
    }

    #[test]
    fn a_total_that_shrank_is_not_billed_again_unless_its_slot_was_freed() {
        let mut window = start(&[0], 1, &reading(&[(1, &[500])], &[0]));
        assert_eq!(window.advance(&reading(&[(1, &[400])], &[0])), []);
        window.forget(&key(1));
        assert_eq!(ns(&window.advance(&reading(&[(1, &[3])], &[0]))), [(Some(key(1)), vec![3])]);
    }

    #[test]
    fn time_beside_a_busy_sibling_is_worth_less_and_counted_apart() {
        let mut window = start(&[0], 1, &reading(&[], &[0]));
        let row = vec![RunTime { alone_ns: 2000, shared_ns: 1000 }];
        let ran =
            window.advance(&Reading { rows: vec![(key(1), row.clone())], overflow: alone(&[0]), ..Reading::default() });
        assert_eq!(ran[0].by_package, [Share { time: row[0], weight: 2000 * 1000 + 1000 * 575, counted: [0; 3] }]);
    }

    #[test]
    fn with_counters_a_second_is_worth_the_cycles_that_were_made_in_it() {
        let second = 1_000_000_000;
        let of = |cycles: [u64; 2], time: [u64; 2]| Reading {
            rows: vec![(key(1), alone(&[second])), (key(2), alone(&[second]))],
            counted: vec![vec![[cycles[0], 9, 7]], vec![[cycles[1], 0, 0]]],
            counter_time: time,
            overflow: alone(&[0]),
            ..Reading::default()
        };
        let weights = |reading: &Reading| {
            let mut window = start(&[0], 1, &Reading { overflow: alone(&[0]), ..Reading::default() });
            window.advance(reading).iter().map(|ran| ran.by_package[0].weight).collect::<Vec<_>>()
        };
        // At 3 GHz and at 1 GHz: three quarters and one quarter of the same sum.
        assert_eq!(weights(&of([3 * second, second], [5, 5])), [1500 * second, 500 * second]);
        // The hardware was lent to somebody else for a part of the time, or did not count somewhere.
        assert_eq!(weights(&of([3 * second, second], [5, 4])), [1000 * second, 1000 * second]);
        assert_eq!(weights(&of([3 * second, 0], [5, 5])), [1000 * second, 1000 * second]);
        let mut window = start(&[0], 1, &Reading { overflow: alone(&[0]), ..Reading::default() });
        assert_eq!(window.advance(&of([3 * second, second], [5, 5]))[0].by_package[0].counted, [3 * second, 9, 7]);
    }
}
