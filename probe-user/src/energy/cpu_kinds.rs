//! The two kinds of cores of a hybrid processor. The power model and the division of measured
//! energy use the same weight.

use std::{fs, path::Path};

use super::perf::parse_cpus;

/// Power of an efficient core of a hybrid processor, in thousandths of that of a performance core.
/// An assumption, because no known source has one figure for all hybrid processors.
pub const EFFICIENT_SHARE: u32 = 333;

/// The efficient cores: the PMU `cpu_atom` of a hybrid processor lists them; empty on others.
pub(super) fn efficient(sysfs: &Path) -> Vec<usize> {
    let list = |pmu: &str| fs::read_to_string(sysfs.join(format!("devices/{pmu}/cpus"))).ok();
    // A processor with Atom cores only has no `cpu_core`, and its generation has its own power.
    match (list("cpu_core"), list("cpu_atom")) {
        (Some(_), Some(atom)) => parse_cpus(&atom).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Weight of a second of each CPU, in thousandths; empty when all CPUs are of one kind.
#[must_use]
pub fn cpu_weights(sysfs: &Path) -> Vec<u32> {
    let efficient = efficient(sysfs);
    let Some(last) = efficient.iter().max() else { return Vec::new() };
    // A CPU beyond the last one has the weight of a performance core.
    let weight = |cpu| if efficient.contains(&cpu) { EFFICIENT_SHARE } else { 1000 };
    (0..=*last).take(probe_ebpf::MAX_CPUS).map(weight).collect()
}
