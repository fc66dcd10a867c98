//! Control groups: their keys, the mounted trees, and the cgroups that the probe lends to
//! unprivileged runners.

pub mod changes;
pub mod known;
pub mod leases;
pub mod tree;

pub use probe_ebpf::{CgroupKey, hierarchy};
