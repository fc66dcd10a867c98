//! The weights by which the energy of memory is divided.
//!
//! Memory works for the misses of the last-level cache, and for nothing else: on a Xeon node of
//! kepler-model-db, DRAM power follows cache misses (correlation 0.81) more than CPU time (0.60).
//! Where misses are not counted, the user chooses: by CPU time, or not at all.
//!
//! Only the part that grows with load may be divided like this. Memory also draws more whenever the
//! machine is awake (10 W of 75 W on that node), whatever misses; with that step left in, misses
//! are a worse key than CPU time (`cargo xtask accuracy`).
//!
//! A miss does not tell which socket's memory it goes to. A package with next to no misses of its
//! own works for those of the others, so that its memory is divided by all of them; otherwise a
//! program that runs for a millisecond there would get all of it.

use std::collections::BTreeMap;

use crate::cpu::CpuUsage;

/// Place of the misses among the hardware events of [`CpuUsage::counted`].
const LLC_MISSES: usize = 2;
/// Below this fraction (one over it) of the misses of a package on average, those of a package are
/// not its own work.
const MIN_LOCAL_PART: u64 = 16;

/// How the energy of memory is divided where misses are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum MemoryPolicy {
    /// Not attributed to containers
    #[default]
    Unattributed,
    /// By CPU time on the package
    CpuTime,
}

/// What the energy of memory was divided by in a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryBasis {
    /// Misses of the last-level cache on the package.
    Misses,
    /// Misses on all packages, because there were next to none on this one.
    AllMisses,
    /// Weighted CPU time.
    CpuTime,
    /// Nothing: it stays unattributed.
    Nothing,
}

impl MemoryBasis {
    /// Value of a label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Misses => "llc_misses",
            Self::AllMisses => "llc_misses_all",
            Self::CpuTime => "cpu_time",
            Self::Nothing => "none",
        }
    }
}

/// The weights of the claimants of a package's memory, in the order of the keys.
///
/// `local` is the usage of the package, `all` that of every package with the number of packages.
/// `counted` is true when the hardware counters ran all the time on every CPU: only then are the
/// misses complete.
#[must_use]
pub fn memory_weights<K: Ord + Copy>(
    local: &BTreeMap<K, CpuUsage>,
    (all, packages): (&BTreeMap<K, CpuUsage>, usize),
    counted: bool,
    policy: MemoryPolicy,
) -> (MemoryBasis, Vec<(K, u64)>) {
    let weights = |of: &BTreeMap<K, CpuUsage>, weight: fn(&CpuUsage) -> u64| -> Vec<(K, u64)> {
        of.iter().map(|(key, usage)| (*key, weight(usage))).filter(|(_, weight)| *weight > 0).collect()
    };
    let misses: fn(&CpuUsage) -> u64 = |usage| usage.counted[LLC_MISSES];
    let sum = |of: &BTreeMap<K, CpuUsage>| of.values().map(|usage| u128::from(misses(usage))).sum::<u128>();
    let (on_package, everywhere) = (sum(local), sum(all));
    if counted && on_package.max(everywhere) > 0 {
        let packages = u128::try_from(packages).unwrap_or(1);
        let own_work = on_package.saturating_mul(packages).saturating_mul(u128::from(MIN_LOCAL_PART)) >= everywhere;
        return if on_package > 0 && own_work {
            (MemoryBasis::Misses, weights(local, misses))
        } else {
            (MemoryBasis::AllMisses, weights(all, misses))
        };
    }
    match policy {
        MemoryPolicy::CpuTime => (MemoryBasis::CpuTime, weights(local, |usage| usage.weight)),
        MemoryPolicy::Unattributed => (MemoryBasis::Nothing, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use units::Microjoules;

    use super::*;
    use crate::ledger::split_proportionally;

    fn usage(weight: u64, misses: u64) -> CpuUsage {
        CpuUsage { weight, counted: [weight, weight, misses], ..CpuUsage::default() }
    }

    fn map(rows: &[(u32, u64, u64)]) -> BTreeMap<u32, CpuUsage> {
        rows.iter().map(|(key, weight, misses)| (*key, usage(*weight, *misses))).collect()
    }

    /// Equal CPU time and misses of 3 to 1.
    fn local() -> BTreeMap<u32, CpuUsage> {
        map(&[(1, 500, 3000), (2, 500, 1000)])
    }

    #[test]
    fn memory_follows_misses_and_not_cpu_time() {
        let (basis, weights) = memory_weights(&local(), (&local(), 1), true, MemoryPolicy::CpuTime);
        assert_eq!((basis, &*weights), (MemoryBasis::Misses, &[(1, 3000), (2, 1000)][..]));
    }

    #[test]
    fn without_complete_misses_the_user_decides() {
        let by = |policy| memory_weights(&local(), (&local(), 1), false, policy);
        assert_eq!(by(MemoryPolicy::CpuTime), (MemoryBasis::CpuTime, vec![(1, 500), (2, 500)]));
        assert_eq!(by(MemoryPolicy::Unattributed), (MemoryBasis::Nothing, Vec::new()));
        // A tick in which nothing missed says nothing either.
        let none = map(&[(1, 500, 0)]);
        assert_eq!(memory_weights(&none, (&none, 1), true, MemoryPolicy::CpuTime).0, MemoryBasis::CpuTime);
    }

    /// A daemon on the empty socket would get all energy of its memory.
    #[test]
    fn memory_of_an_idle_socket_is_not_that_of_its_only_program() {
        let all = map(&[(1, 1000, 1_000_000), (2, 2, 900)]);
        let empty_socket = map(&[(2, 2, 900)]);
        let (basis, weights) = memory_weights(&empty_socket, (&all, 2), true, MemoryPolicy::Unattributed);
        assert_eq!((basis, &*weights), (MemoryBasis::AllMisses, &[(1, 1_000_000), (2, 900)][..]));
        // One that works there has it.
        let all = map(&[(1, 1000, 1_000_000), (2, 500, 300_000)]);
        let busy_socket = map(&[(2, 500, 300_000)]);
        assert_eq!(memory_weights(&busy_socket, (&all, 2), true, MemoryPolicy::Unattributed).0, MemoryBasis::Misses);
    }

    proptest! {
        #[test]
        fn a_division_by_misses_loses_nothing(
            rows in proptest::collection::btree_map(0u32..50, (any::<u64>(), any::<u64>()), 0..20),
            measured in any::<u64>(),
            packages in 0usize..5,
            counted in any::<bool>(),
            by_time in any::<bool>(),
        ) {
            let local: BTreeMap<u32, CpuUsage> =
                rows.iter().map(|(key, (weight, misses))| (*key, usage(*weight, *misses))).collect();
            let policy = if by_time { MemoryPolicy::CpuTime } else { MemoryPolicy::Unattributed };
            let (basis, weights) = memory_weights(&local, (&local, packages), counted, policy);
            let split = split_proportionally(Microjoules(measured), Microjoules::ZERO, &weights);
            let parts: u128 = split.shares.iter().map(|(_, share)| u128::from(share.0)).sum();
            prop_assert_eq!(parts + u128::from(split.unattributed.0), u128::from(measured));
            prop_assert!(counted || basis != MemoryBasis::Misses);
        }
    }
}
