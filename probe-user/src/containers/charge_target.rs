//! The row that energy is attributed to.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::cgroup::CgroupKey;

/// The target that energy and CPU time are charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChargeTarget {
    /// A container or plain cgroup, by the probe's own number for it.
    Container(u32),
    /// The root cgroup, system units, kernel threads, this probe.
    System,
    /// Containers over the limit, which have no series.
    Retired,
}

/// The target of each cgroup.
#[derive(Debug, Default)]
pub(super) struct Targets {
    by_cgroup: HashMap<CgroupKey, ChargeTarget>,
    changes: u64,
}

impl Targets {
    pub(super) fn get(&self, key: &CgroupKey) -> Option<&ChargeTarget> {
        self.by_cgroup.get(key)
    }

    pub(super) fn contains_key(&self, key: &CgroupKey) -> bool {
        self.by_cgroup.contains_key(key)
    }

    pub(super) fn insert(&mut self, key: CgroupKey, target: ChargeTarget) {
        self.changes += u64::from(self.by_cgroup.insert(key, target) != Some(target));
    }

    pub(super) fn remove(&mut self, key: &CgroupKey) -> Option<ChargeTarget> {
        let removed = self.by_cgroup.remove(key);
        self.changes += u64::from(removed.is_some());
        removed
    }

    /// Number of changes so far.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }
}

/// Cgroups whose targets were looked up. The same ones need no other look while no target changes:
/// from tick to tick, most hosts run the same cgroups.
#[derive(Debug, Default)]
pub(crate) struct LookedUp {
    /// [`Targets::changes`] at that time.
    at: Option<u64>,
    cgroups: Vec<CgroupKey>,
}

impl LookedUp {
    /// Whether nothing has changed for `cgroups`, in their order.
    pub(crate) fn is_current(&self, changes: u64, cgroups: impl Iterator<Item = CgroupKey>) -> bool {
        self.at == Some(changes) && cgroups.eq(self.cgroups.iter().copied())
    }

    pub(crate) fn set(&mut self, changes: u64, cgroups: impl Iterator<Item = CgroupKey>) {
        self.at = Some(changes);
        self.cgroups.clear();
        self.cgroups.extend(cgroups);
    }

    pub(crate) fn clear(&mut self) {
        self.at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::hierarchy;

    /// What was looked up must not outlive a change.
    #[test]
    fn the_same_cgroups_are_current_until_a_target_changes() {
        let [one, two] = [1, 2].map(|id| CgroupKey { id, hierarchy: hierarchy::V2 });
        let (mut targets, mut looked_up) = (Targets::default(), LookedUp::default());
        assert!(!looked_up.is_current(targets.changes(), [one].into_iter()), "not looked up yet");
        targets.insert(one, ChargeTarget::System);
        looked_up.set(targets.changes(), [one, two].into_iter());
        let is_current = |targets: &Targets, looked_up: &mut LookedUp| {
            let current = looked_up.is_current(targets.changes(), [one, two].into_iter());
            looked_up.set(targets.changes(), [one, two].into_iter());
            current
        };
        targets.insert(one, ChargeTarget::System);
        assert!(is_current(&targets, &mut looked_up), "no change");
        for cgroups in [vec![one], vec![two, one], vec![one, two, two], vec![]] {
            assert!(!looked_up.is_current(targets.changes(), cgroups.into_iter()));
        }
        targets.insert(one, ChargeTarget::Container(1));
        assert!(!is_current(&targets, &mut looked_up));
        assert_eq!(targets.remove(&one), Some(ChargeTarget::Container(1)));
        assert!(!is_current(&targets, &mut looked_up));
        assert_eq!(targets.remove(&one), None);
        assert!(is_current(&targets, &mut looked_up));
        looked_up.clear();
        assert!(!is_current(&targets, &mut looked_up));
    }
}
