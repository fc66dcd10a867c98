//! Cumulative run time for the tiers without a `sched_switch` program.

use std::collections::HashMap;

use probe_ebpf::{CgroupKey, RunTime};

use super::reader::CpuReading;

/// Nanoseconds by column: one for each CPU, or a single one for all.
pub(super) type Columns = Vec<u64>;

/// Cumulative nanoseconds by cgroup, since the start.
#[derive(Debug)]
pub(super) struct UsageTotals {
    rows: HashMap<CgroupKey, Columns>,
    /// The root cgroup, which gets the remainder.
    root: CgroupKey,
    /// Run time of the other cgroups in excess of the total, because they were read a moment
    /// later; subtracted next time.
    excess: Columns,
}

/// Limit for the excess, more than the order of reading can cause. A larger difference has another
/// cause: the two counters use different clocks (the v2 root's `cpu.stat` is sampled at the
/// scheduler's tick, the others are not), and it must not accumulate.
const MAX_EXCESS_NS: u64 = 100_000_000;

impl UsageTotals {
    /// Starts at zero.
    pub(super) fn new(root: CgroupKey) -> Self {
        Self { rows: HashMap::new(), root, excess: Vec::new() }
    }

    /// Adds one interval: `all` is the run time of all tasks, `rows` that of each cgroup's own
    /// tasks. The remainder goes to the root: its own tasks, kernel threads, and cgroups that
    /// existed only between two scans.
    pub(super) fn add(&mut self, all: &[u64], rows: &[(CgroupKey, Columns)]) {
        let mut sum = std::mem::take(&mut self.excess);
        sum.resize(all.len(), 0);
        for (key, delta) in rows.iter().filter(|(key, _)| *key != self.root) {
            sum.iter_mut().zip(delta).for_each(|(sum, ns)| *sum = sum.saturating_add(*ns));
            // A cgroup that never ran gets no row.
            if delta.iter().any(|ns| *ns > 0) {
                add(self.rows.entry(*key).or_default(), delta);
            }
        }
        let remainder: Columns = all.iter().zip(&sum).map(|(all, sum)| all.saturating_sub(*sum)).collect();
        self.excess = all.iter().zip(&sum).map(|(all, sum)| sum.saturating_sub(*all).min(MAX_EXCESS_NS)).collect();
        add(self.rows.entry(self.root).or_default(), &remainder);
    }

    /// Writes the totals to `out`.
    pub(super) fn fill(&self, out: &mut CpuReading) {
        let width = self.excess.len();
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

    /// Removes a cgroup that no longer exists.
    pub(super) fn forget(&mut self, key: &CgroupKey) {
        self.rows.remove(key);
    }
}

fn add(total: &mut Columns, delta: &[u64]) {
    total.resize(total.len().max(delta.len()), 0);
    total.iter_mut().zip(delta).for_each(|(sum, ns)| *sum = sum.saturating_add(*ns));
}

#[cfg(test)]
mod tests {
    use probe_ebpf::hierarchy;

    use super::*;

    fn key(id: u64) -> CgroupKey {
        CgroupKey { id, hierarchy: hierarchy::V2 }
    }

    fn of(totals: &UsageTotals, id: u64) -> Option<Vec<u64>> {
        let mut reading = CpuReading::default();
        totals.fill(&mut reading);
        let row = reading.rows.into_iter().find(|(row, _)| *row == key(id))?.1;
        Some(row.iter().map(|time| time.alone_ns).collect())
    }

    #[test]
    fn root_gets_the_remainder_of_the_total() {
        let mut totals = UsageTotals::new(key(1));
        totals.add(&[10, 20], &[(key(2), vec![3, 0]), (key(3), vec![0, 0])]);
        assert_eq!((of(&totals, 2), of(&totals, 3), of(&totals, 1)), (Some(vec![3, 0]), None, Some(vec![7, 20])));
        // The run time of a removed row that was not read in time goes to the root.
        totals.add(&[5, 0], &[]);
        assert_eq!(of(&totals, 1), Some(vec![12, 20]));
    }

    #[test]
    fn cgroup_read_later_is_not_charged_twice() {
        let mut totals = UsageTotals::new(key(1));
        totals.add(&[10], &[(key(2), vec![13])]);
        assert_eq!(of(&totals, 1), Some(vec![0]));
        totals.add(&[10], &[(key(2), vec![4])]);
        assert_eq!(of(&totals, 1), Some(vec![3]), "3 of the 10 were charged the time before");
    }
}
