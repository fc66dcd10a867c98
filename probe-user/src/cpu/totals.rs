//! What the tiers without a program at the switch add up: who grew by how much, and the rest of what all ran.

use std::collections::HashMap;

use probe_ebpf::{CgroupKey, RunTime};

use super::Reading;

/// Nanoseconds by column: one for each CPU, or a single one.
pub(super) type Columns = Vec<u64>;

/// Cumulative nanoseconds by cgroup, since the start.
#[derive(Debug)]
pub(super) struct Totals {
    rows: HashMap<CgroupKey, Columns>,
    /// Whose the rest is: the cgroup above all.
    root: CgroupKey,
    /// What others were seen to run beyond what all ran, because they were read a moment later; to be taken off next time.
    ahead: Columns,
}

/// More than others can be ahead by the order of reading. Where it comes to more, the two figures are kept by different clocks (the v2
/// root's `cpu.stat` is sampled at the scheduler's tick, the others' are not), and the difference must not grow into a debt.
const AHEAD_NS: u64 = 100_000_000;

impl Totals {
    /// Nobody ran yet.
    pub(super) fn new(root: CgroupKey) -> Self {
        Self { rows: HashMap::new(), root, ahead: Vec::new() }
    }

    /// Adds what grew: `all` is what everybody ran, `rows` what each cgroup's own tasks ran of it. The rest is the root's: its own
    /// tasks, kernel threads, and cgroups that came and went between two looks.
    pub(super) fn add(&mut self, all: &[u64], rows: &[(CgroupKey, Columns)]) {
        let mut sum = std::mem::take(&mut self.ahead);
        sum.resize(all.len(), 0);
        for (key, grown) in rows.iter().filter(|(key, _)| *key != self.root) {
            sum.iter_mut().zip(grown).for_each(|(sum, ns)| *sum = sum.saturating_add(*ns));
            // Who never ran is nobody yet.
            if grown.iter().any(|ns| *ns > 0) {
                add(self.rows.entry(*key).or_default(), grown);
            }
        }
        let rest: Columns = all.iter().zip(&sum).map(|(all, sum)| all.saturating_sub(*sum)).collect();
        self.ahead = all.iter().zip(&sum).map(|(all, sum)| sum.saturating_sub(*all).min(AHEAD_NS)).collect();
        add(self.rows.entry(self.root).or_default(), &rest);
    }

    /// Writes them down.
    pub(super) fn fill(&self, out: &mut Reading) {
        let width = self.ahead.len();
        out.rows.resize_with(self.rows.len(), || (self.root, Vec::new()));
        for ((to, row), (key, total)) in out.rows.iter_mut().zip(&self.rows) {
            *to = *key;
            row.clear();
            row.extend(total.iter().map(|ns| RunTime { alone_ns: *ns, shared_ns: 0 }));
            row.resize(width, RunTime::default());
        }
        out.overflow.clear();
        out.overflow.resize(width, RunTime::default());
    }

    /// Lets a cgroup go that is gone.
    pub(super) fn forget(&mut self, key: &CgroupKey) {
        self.rows.remove(key);
    }
}

fn add(total: &mut Columns, grown: &[u64]) {
    total.resize(total.len().max(grown.len()), 0);
    total.iter_mut().zip(grown).for_each(|(sum, ns)| *sum = sum.saturating_add(*ns));
}

#[cfg(test)]
mod tests {
    use probe_ebpf::hierarchy;

    use super::*;

    fn key(id: u64) -> CgroupKey {
        CgroupKey { id, hierarchy: hierarchy::V2 }
    }

    fn of(totals: &Totals, id: u64) -> Option<Vec<u64>> {
        let mut reading = Reading::default();
        totals.fill(&mut reading);
        let row = reading.rows.into_iter().find(|(row, _)| *row == key(id))?.1;
        Some(row.iter().map(|time| time.alone_ns).collect())
    }

    #[test]
    fn the_rest_of_what_all_ran_is_the_roots() {
        let mut totals = Totals::new(key(1));
        totals.add(&[10, 20], &[(key(2), vec![3, 0]), (key(3), vec![0, 0])]);
        assert_eq!((of(&totals, 2), of(&totals, 3), of(&totals, 1)), (Some(vec![3, 0]), None, Some(vec![7, 20])));
        // A row that is gone leaves what it had not been seen to run to the root.
        totals.add(&[5, 0], &[]);
        assert_eq!(of(&totals, 1), Some(vec![12, 20]));
    }

    #[test]
    fn who_was_read_later_is_not_billed_twice_and_nothing_falls() {
        let mut totals = Totals::new(key(1));
        totals.add(&[10], &[(key(2), vec![13])]);
        assert_eq!(of(&totals, 1), Some(vec![0]));
        totals.add(&[10], &[(key(2), vec![4])]);
        assert_eq!(of(&totals, 1), Some(vec![3]), "3 of the 10 were billed the time before");
    }
}
