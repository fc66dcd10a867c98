//! What ran between two readings, folded per package.

use std::collections::HashMap;

use super::{CgroupKey, Reading};

/// What one cgroup ran in one window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Who; `None` is the time of cgroups that found no place in the kernel's map.
    pub cgroup: Option<CgroupKey>,
    /// Nanoseconds, by package index.
    pub by_package: Vec<u64>,
}

/// Holds the last reading and takes the difference to the next.
#[derive(Debug)]
pub struct Window {
    /// Package index of each possible CPU; `None` for one that the topology does not know, because it is offline.
    place: Vec<Option<usize>>,
    packages: usize,
    last: HashMap<CgroupKey, Vec<u64>>,
    last_overflow: Vec<u64>,
}

impl Window {
    /// Starts at `reading`: what ran before it is nobody's.
    ///
    /// `place[cpu]` is the package index of a CPU, below `packages`.
    #[must_use]
    pub fn start(place: Vec<Option<usize>>, packages: usize, reading: &Reading) -> Self {
        debug_assert!(place.iter().flatten().all(|package| *package < packages));
        Self {
            place,
            packages,
            last: reading.rows.iter().cloned().collect(),
            last_overflow: reading.overflow_ns.clone(),
        }
    }

    /// Takes the packages of a topology that was read again.
    pub fn replace(&mut self, place: Vec<Option<usize>>) {
        debug_assert!(place.iter().flatten().all(|package| *package < self.packages));
        self.place = place;
    }

    /// What ran since the last reading, idle cgroups left out, in the order of the cgroups.
    pub fn advance(&mut self, reading: &Reading) -> Vec<Ran> {
        let mut all = Vec::with_capacity(reading.rows.len());
        for (key, now) in &reading.rows {
            let before = self.last.entry(*key).or_default();
            let by_package = fold(&self.place, self.packages, before, now);
            before.clone_from(now);
            if by_package.iter().any(|ns| *ns > 0) {
                all.push(Ran { cgroup: Some(*key), by_package });
            }
        }
        all.sort_unstable_by_key(|ran| ran.cgroup);
        let by_package = fold(&self.place, self.packages, &self.last_overflow, &reading.overflow_ns);
        self.last_overflow.clone_from(&reading.overflow_ns);
        if by_package.iter().any(|ns| *ns > 0) {
            all.push(Ran { cgroup: None, by_package });
        }
        all
    }

    /// Drops a cgroup whose slot in the kernel was freed.
    pub fn forget(&mut self, key: &CgroupKey) {
        self.last.remove(key);
    }
}

/// Sums the growth of each CPU into its package. A CPU that the topology does not know counts for the first package:
/// its time is real and must be in the account.
fn fold(place: &[Option<usize>], packages: usize, before: &[u64], now: &[u64]) -> Vec<u64> {
    let mut sums = vec![0u64; packages];
    for (cpu, now) in now.iter().enumerate() {
        let before = before.get(cpu).copied().unwrap_or(0);
        // Totals only grow; a slot that was freed and taken again starts from nothing, because `forget` said so.
        let grown = now.saturating_sub(before);
        if let Some(sum) = sums.get_mut(place.get(cpu).copied().flatten().unwrap_or(0)) {
            *sum = sum.saturating_add(grown);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::hierarchy;

    fn key(id: u64) -> CgroupKey {
        CgroupKey { id, hierarchy: hierarchy::V2 }
    }

    fn places(all: &[usize]) -> Vec<Option<usize>> {
        all.iter().copied().map(Some).collect()
    }

    fn reading(rows: &[(u64, &[u64])], overflow: &[u64]) -> Reading {
        Reading {
            rows: rows.iter().map(|(id, ns)| (key(*id), ns.to_vec())).collect(),
            overflow_ns: overflow.to_vec(),
            missed: 0,
            ..Reading::default()
        }
    }

    #[test]
    fn cpus_fold_into_their_packages() {
        let mut window = Window::start(places(&[0, 1, 0, 1]), 2, &reading(&[(1, &[10, 10, 10, 10])], &[0; 4]));
        let ran = window.advance(&reading(&[(1, &[11, 12, 14, 18])], &[0; 4]));
        assert_eq!(ran, [Ran { cgroup: Some(key(1)), by_package: vec![5, 10] }]);
    }

    #[test]
    fn time_before_the_start_is_nobodys_and_a_newcomer_counts_whole() {
        let mut window = Window::start(places(&[0]), 1, &reading(&[(1, &[500])], &[7]));
        let ran = window.advance(&reading(&[(2, &[3]), (1, &[500])], &[7]));
        assert_eq!(ran, [Ran { cgroup: Some(key(2)), by_package: vec![3] }]);
    }

    #[test]
    fn time_without_a_name_is_still_in_the_window() {
        let mut window = Window::start(places(&[0, 1]), 2, &reading(&[], &[5, 5]));
        let ran = window.advance(&reading(&[], &[5, 9]));
        assert_eq!(ran, [Ran { cgroup: None, by_package: vec![0, 4] }]);
    }

    #[test]
    fn a_cpu_beyond_the_topology_is_counted_in_the_first_package() {
        let mut window = Window::start(places(&[1]), 2, &reading(&[], &[0]));
        assert_eq!(window.advance(&reading(&[(1, &[0, 4])], &[0]))[0].by_package, [4, 0]);
    }

    #[test]
    fn a_cpu_that_comes_online_is_placed_where_the_new_topology_says() {
        let mut window = Window::start(vec![Some(0), None], 2, &reading(&[(1, &[5, 5])], &[0, 0]));
        window.replace(places(&[0, 1]));
        assert_eq!(window.advance(&reading(&[(1, &[9, 6])], &[0, 0]))[0].by_package, [4, 1]);
    }

    #[test]
    fn a_total_that_shrank_is_not_billed_again_unless_its_slot_was_freed() {
        let mut window = Window::start(places(&[0]), 1, &reading(&[(1, &[500])], &[0]));
        assert_eq!(window.advance(&reading(&[(1, &[400])], &[0])), []);
        window.forget(&key(1));
        assert_eq!(window.advance(&reading(&[(1, &[3])], &[0]))[0].by_package, [3]);
    }
}
