//! CPU time per cgroup and package: who ran, where, for how long.
//!
//! A tier reads cumulative nanoseconds per cgroup and CPU; [`Window`] turns two readings into what ran between them,
//! folded per package. Today there is one tier, the `sched_switch` program of [`switch`].

pub mod btf;
pub mod switch;
mod window;

pub use probe_ebpf::{CgroupKey, hierarchy};
pub use window::{Ran, Window};

/// Cumulative figures since the tier was started. Kept and refilled, so a tick allocates nothing in the steady state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Nanoseconds per possible CPU, by cgroup; never less than in the reading before.
    pub rows: Vec<(CgroupKey, Vec<u64>)>,
    /// Nanoseconds per CPU of cgroups beyond [`probe_ebpf::MAX_CGROUPS`].
    pub overflow_ns: Vec<u64>,
    /// Intervals whose start was not seen; their time is in no row.
    pub missed: u64,
}
