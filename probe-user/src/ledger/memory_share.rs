//! The weights by which the energy of memory is divided.
//!
//! Memory works for the misses of the last-level cache, and for nothing else: on a Xeon node, what
//! it draws above its power without misses follows misses more than CPU time (docs/accuracy.md).
//!
//! Only the part that grows with load may be divided like this. Memory also draws more whenever the
//! machine is awake, whatever misses; with that step left in, misses
//! are a worse key than CPU time. So the step is divided by CPU time, and so is everything while
//! it is not known (or the sum of sleep power and step, of a machine that never sleeps).
//!
//! A miss does not tell which socket's memory it goes to. A package with next to no misses of its
//! own works for those of the others, so that its memory is divided by all of them; otherwise a
//! program that runs for a millisecond there would get all of it.

use std::collections::BTreeMap;

use super::basis::Basis;
use crate::cpu::CpuUsage;

/// Place of the misses among the hardware events of [`CpuUsage::counted`].
const LLC_MISSES: usize = 2;
/// Below this fraction (one over it) of the misses of a package on average, those of a package are
/// not its own work.
const MIN_LOCAL_PART: u64 = 16;

/// Energy attribution policy of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum MemoryPolicy {
    /// By cache misses where they are counted, else by CPU time
    #[default]
    Misses,
    /// By cache misses where they are counted, else not attributed
    MissesOnly,
    /// By CPU time
    CpuTime,
    /// Not attributed to containers
    Unattributed,
}

/// The claimants of a package's memory, each with the weight that divides its energy as `weight` of
/// the usage.
///
/// `local` is the usage of the package, `all` that of every package with the number of packages.
/// `counted` is true when the hardware counters ran all the time on every CPU, and the part of the
/// energy is known that follows no misses: only then are the misses complete, and so is their part.
#[must_use]
pub fn memory_claims<K: Ord + Copy>(
    local: &BTreeMap<K, CpuUsage>,
    (all, packages): (&BTreeMap<K, CpuUsage>, usize),
    counted: bool,
    policy: MemoryPolicy,
) -> (Basis, BTreeMap<K, CpuUsage>) {
    let weighed = |of: &BTreeMap<K, CpuUsage>, weight: fn(&CpuUsage) -> u64| -> BTreeMap<K, CpuUsage> {
        let usages = of.iter().map(|(key, usage)| (*key, CpuUsage { weight: weight(usage), ..*usage }));
        usages.filter(|(_, usage)| usage.weight > 0).collect()
    };
    let misses: fn(&CpuUsage) -> u64 = |usage| usage.counted[LLC_MISSES];
    let sum = |of: &BTreeMap<K, CpuUsage>| of.values().map(|usage| u128::from(misses(usage))).sum::<u128>();
    let (on_package, everywhere) = (sum(local), sum(all));
    let by_misses = matches!(policy, MemoryPolicy::Misses | MemoryPolicy::MissesOnly);
    if by_misses && counted && on_package.max(everywhere) > 0 {
        let packages = u128::try_from(packages).unwrap_or(1);
        let own_work = on_package.saturating_mul(packages).saturating_mul(u128::from(MIN_LOCAL_PART)) >= everywhere;
        return if on_package > 0 && own_work {
            (Basis::Misses, weighed(local, misses))
        } else {
            (Basis::HostMisses, weighed(all, misses))
        };
    }
    match policy {
        MemoryPolicy::CpuTime | MemoryPolicy::Misses => (Basis::Time, weighed(local, |usage| usage.weight)),
        MemoryPolicy::Unattributed | MemoryPolicy::MissesOnly => (Basis::Nothing, BTreeMap::new()),
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

    fn weights(claims: &BTreeMap<u32, CpuUsage>) -> Vec<(u32, u64)> {
        claims.iter().map(|(key, usage)| (*key, usage.weight)).collect()
    }

    #[test]
    fn memory_follows_misses_and_not_cpu_time() {
        for policy in [MemoryPolicy::Misses, MemoryPolicy::MissesOnly] {
            let (basis, claims) = memory_claims(&local(), (&local(), 1), true, policy);
            assert_eq!((basis, weights(&claims)), (Basis::Misses, vec![(1, 3000), (2, 1000)]));
        }
        let (basis, claims) = memory_claims(&local(), (&local(), 1), true, MemoryPolicy::CpuTime);
        assert_eq!((basis, weights(&claims)), (Basis::Time, vec![(1, 500), (2, 500)]));
        let (basis, claims) = memory_claims(&local(), (&local(), 1), true, MemoryPolicy::Unattributed);
        assert_eq!((basis, claims.len()), (Basis::Nothing, 0));
    }

    #[test]
    fn without_complete_misses_the_user_decides() {
        let by = |policy| {
            let (basis, claims) = memory_claims(&local(), (&local(), 1), false, policy);
            (basis, weights(&claims))
        };
        for policy in [MemoryPolicy::CpuTime, MemoryPolicy::Misses] {
            assert_eq!(by(policy), (Basis::Time, vec![(1, 500), (2, 500)]));
        }
        for policy in [MemoryPolicy::Unattributed, MemoryPolicy::MissesOnly] {
            assert_eq!(by(policy), (Basis::Nothing, Vec::new()));
        }
        // A tick in which nothing missed says nothing either.
        let none = map(&[(1, 500, 0)]);
        assert_eq!(memory_claims(&none, (&none, 1), true, MemoryPolicy::Misses).0, Basis::Time);
    }

    /// A daemon on the empty socket would get all energy of its memory.
    #[test]
    fn memory_of_an_idle_socket_is_not_that_of_its_only_program() {
        let all = map(&[(1, 1000, 1_000_000), (2, 2, 900)]);
        let empty_socket = map(&[(2, 2, 900)]);
        let (basis, claims) = memory_claims(&empty_socket, (&all, 2), true, MemoryPolicy::Misses);
        assert_eq!((basis, weights(&claims)), (Basis::HostMisses, vec![(1, 1_000_000), (2, 900)]));
        // One that works there has it.
        let all = map(&[(1, 1000, 1_000_000), (2, 500, 300_000)]);
        let busy_socket = map(&[(2, 500, 300_000)]);
        assert_eq!(memory_claims(&busy_socket, (&all, 2), true, MemoryPolicy::Misses).0, Basis::Misses);
    }

    proptest! {
        #[test]
        fn a_division_by_misses_loses_nothing(
            rows in proptest::collection::btree_map(0u32..50, (any::<u64>(), any::<u64>()), 0..20),
            measured in any::<u64>(),
            packages in 0usize..5,
            counted in any::<bool>(),
            policy in proptest::sample::select(vec![
                MemoryPolicy::Misses, MemoryPolicy::MissesOnly, MemoryPolicy::CpuTime, MemoryPolicy::Unattributed,
            ]),
        ) {
            let local: BTreeMap<u32, CpuUsage> =
                rows.iter().map(|(key, (weight, misses))| (*key, usage(*weight, *misses))).collect();
            let (basis, claims) = memory_claims(&local, (&local, packages), counted, policy);
            let split = split_proportionally(Microjoules(measured), Microjoules::ZERO, &weights(&claims));
            let parts: u128 = split.shares.iter().map(|(_, share)| u128::from(share.0)).sum();
            prop_assert_eq!(parts + u128::from(split.unattributed.0), u128::from(measured));
            prop_assert!(counted || basis != Basis::Misses);
        }
    }
}
