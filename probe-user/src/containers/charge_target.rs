//! The row that energy is attributed to.

use serde::{Deserialize, Serialize};

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
