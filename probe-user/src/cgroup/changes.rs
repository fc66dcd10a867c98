//! Changes of the cgroup trees between two readings, as the kernel reports them.

use crate::cgroup::CgroupKey;

/// Cgroups that were created or removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupChanges {
    /// New cgroups with their paths from the root of their tree.
    pub created: Vec<(CgroupKey, String)>,
    /// Removed cgroups.
    pub removed: Vec<RemovedCgroup>,
    /// True when events are missing: only a scan of the trees finds all changes.
    pub incomplete: bool,
}

/// A removed cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemovedCgroup {
    pub key: CgroupKey,
    /// Total run time of its own tasks in nanoseconds; 0 where the program does not read it.
    pub ran_ns: u64,
    /// The CPU with the largest part of it.
    pub cpu: usize,
}

impl CgroupChanges {
    /// Number of changes that are kept while they are not taken.
    const MAX: usize = 65_536;

    /// Adds later changes.
    pub fn extend(&mut self, later: Self) {
        if self.created.len() + self.removed.len() > Self::MAX {
            *self = Self { incomplete: true, ..Self::default() };
        }
        self.created.extend(later.created);
        self.removed.extend(later.removed);
        self.incomplete |= later.incomplete;
    }
}
