//! Splits the energy of one accounting root in one tick.

use std::collections::BTreeMap;

use units::Microjoules;

use crate::containers::ChargeTarget;

/// The energy of one tick, split. The parts sum exactly to the measured energy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split<K> {
    /// Dynamic energy by claimant, in the order of the keys; claims of weight 0 are left out.
    pub shares: Vec<(K, Microjoules)>,
    /// Idle energy that is not attributed to any container.
    pub idle: Microjoules,
    /// Idle energy that is attributed to containers.
    pub idle_shares: Vec<(u32, Microjoules)>,
    /// Energy of being awake by container, which is included in `shares`.
    pub awake_shares: Vec<(u32, Microjoules)>,
    /// Dynamic energy without claims. It is never carried over to another tick.
    pub unattributed: Microjoules,
}

/// Splits `measured` among `claims` in proportion to their weights.
///
/// `idle` is subtracted first, clamped to `measured`. Rounding is by largest remainder: each share
/// is the exact quotient rounded down, and the remaining microjoules go one each to the largest
/// remainders, ties to the smaller key. So the sum is exact, every share is off by less than a
/// microjoule, and the order of the claims does not matter.
#[must_use]
pub fn split_proportionally<K: Ord + Copy>(measured: Microjoules, idle: Microjoules, claims: &[(K, u64)]) -> Split<K> {
    let idle = idle.min(measured);
    let dynamic = measured - idle;
    let shares = divide(dynamic.0, claims);
    Split {
        unattributed: if shares.is_empty() { dynamic } else { Microjoules::ZERO },
        shares: shares.into_iter().map(|(key, share)| (key, Microjoules(share))).collect(),
        idle,
        idle_shares: Vec::new(),
        awake_shares: Vec::new(),
    }
}

/// Divides `whole` among `claims` in proportion to their weights, by largest remainder; empty if
/// all weights are zero.
pub(super) fn divide<K: Ord + Copy>(whole: u64, claims: &[(K, u64)]) -> Vec<(K, u64)> {
    let weights: u128 = claims.iter().map(|(_, weight)| u128::from(*weight)).sum();
    if weights == 0 {
        return Vec::new();
    }
    let mut shares: Vec<(K, u64, u128)> = claims
        .iter()
        .filter(|(_, weight)| *weight > 0)
        .map(|(key, weight)| {
            let product = u128::from(whole) * u128::from(*weight);
            // The quotient is at most `whole`, so it fits.
            (*key, u64::try_from(product / weights).unwrap_or(u64::MAX), product % weights)
        })
        .collect();
    let rounded_down: u64 = shares.iter().map(|(_, share, _)| *share).sum();
    let mut remaining = whole.saturating_sub(rounded_down);
    shares.sort_unstable_by(|a, b| b.2.cmp(&a.2).then(a.0.cmp(&b.0)));
    for (_, share, _) in &mut shares {
        if remaining == 0 {
            break;
        }
        *share += 1;
        remaining -= 1;
    }
    shares.sort_unstable_by_key(|(key, ..)| *key);
    shares.into_iter().map(|(key, share, _)| (key, share)).collect()
}

/// Attributes the idle energy of a split to containers, in proportion to the weights of all
/// targets. The part of targets other than containers stays idle. The sum stays exact.
pub fn share_idle(split: &mut Split<ChargeTarget>, weights: &[(ChargeTarget, u64)]) {
    for (target, share) in split_proportionally(split.idle, Microjoules::ZERO, weights).shares {
        if let ChargeTarget::Container(number) = target
            && share > Microjoules::ZERO
        {
            split.idle = split.idle - share;
            split.idle_shares.push((number, share));
        }
    }
}

/// Splits energy by the use of a GPU's engines. The part of unknown processes stays unattributed,
/// and so does everything without claims: energy is never split evenly.
#[must_use]
pub fn split_by_engine_use(
    measured: Microjoules,
    idle: Microjoules,
    claims: &[(Option<ChargeTarget>, u64)],
) -> Split<ChargeTarget> {
    let Split { shares, idle, idle_shares, awake_shares, mut unattributed } =
        split_proportionally(measured, idle, claims);
    let mut known = Vec::new();
    for (target, share) in shares {
        match target {
            Some(target) => known.push((target, share)),
            None => unattributed += share,
        }
    }
    Split { shares: known, idle, idle_shares, awake_shares, unattributed }
}

impl Split<ChargeTarget> {
    /// Adds another part of the same root, which has no idle energy of its own.
    pub fn merge(&mut self, part: &Self) {
        let mut sums: BTreeMap<ChargeTarget, Microjoules> = self.shares.drain(..).collect();
        for (target, share) in &part.shares {
            *sums.entry(*target).or_default() += *share;
        }
        self.shares.extend(sums);
        self.unattributed += part.unattributed;
    }

    /// Adds the energy of being awake, which was split among everything that ran on the machine.
    pub fn add_awake(&mut self, awake: &Self) {
        self.merge(awake);
        self.awake_shares.extend(awake.shares.iter().filter_map(|(target, share)| match target {
            ChargeTarget::Container(number) if *share > Microjoules::ZERO => Some((*number, *share)),
            _ => None,
        }));
    }

    /// Moves the shares of containers without series to the retired row, and their idle shares to
    /// the idle energy. The sum stays exact.
    pub fn retire_unknown(&mut self, is_known: impl Fn(u32) -> bool) {
        let mut retired = Microjoules::ZERO;
        self.shares.retain(|(target, share)| match target {
            ChargeTarget::Container(number) if !is_known(*number) => {
                retired += *share;
                false
            }
            _ => true,
        });
        if retired > Microjoules::ZERO {
            match self.shares.iter_mut().find(|(target, _)| *target == ChargeTarget::Retired) {
                Some((_, share)) => *share += retired,
                // The last key in order.
                None => self.shares.push((ChargeTarget::Retired, retired)),
            }
        }
        self.awake_shares.retain(|(number, _)| is_known(*number));
        let mut idle = self.idle;
        self.idle_shares.retain(|(number, share)| {
            let known = is_known(*number);
            if !known {
                idle += *share;
            }
            known
        });
        self.idle = idle;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn total(split: &Split<u32>) -> Microjoules {
        split.shares.iter().map(|(_, share)| *share).sum::<Microjoules>() + split.idle + split.unattributed
    }

    #[test]
    fn shares_follow_the_weights() {
        let split = split_proportionally(Microjoules(100), Microjoules(20), &[(1, 3), (2, 1)]);
        assert_eq!(split.shares, [(1, Microjoules(60)), (2, Microjoules(20))]);
        assert_eq!(split.idle, Microjoules(20));
    }

    #[test]
    fn the_remainder_goes_to_the_largest_fractions() {
        let split = split_proportionally(Microjoules(10), Microjoules::ZERO, &[(1, 1), (2, 1), (3, 1)]);
        assert_eq!(split.shares, [(1, Microjoules(4)), (2, Microjoules(3)), (3, Microjoules(3))]);
    }

    #[test]
    fn energy_without_claims_is_unattributed() {
        let split = split_proportionally::<u32>(Microjoules(10), Microjoules(4), &[(1, 0)]);
        assert_eq!((split.shares.len(), split.idle, split.unattributed), (0, Microjoules(4), Microjoules(6)));
    }

    #[test]
    fn idle_is_at_most_the_measured_energy() {
        let split = split_proportionally(Microjoules(10), Microjoules(40), &[(1, 5)]);
        assert_eq!((split.idle, split.shares), (Microjoules(10), vec![(1, Microjoules::ZERO)]));
    }

    #[test]
    fn gpu_energy_of_unknown_processes_is_unattributed() {
        let claims = [(None, 1), (Some(ChargeTarget::Container(1)), 2), (Some(ChargeTarget::Container(2)), 1)];
        let split = split_by_engine_use(Microjoules(100), Microjoules(20), &claims);
        let expected = [(ChargeTarget::Container(1), Microjoules(40)), (ChargeTarget::Container(2), Microjoules(20))];
        assert_eq!((&*split.shares, split.unattributed), (&expected[..], Microjoules(20)));
        let unclaimed = split_by_engine_use(Microjoules(100), Microjoules(20), &[]);
        assert_eq!(
            (unclaimed.shares.len(), unclaimed.idle, unclaimed.unattributed),
            (0, Microjoules(20), Microjoules(80))
        );
    }

    #[test]
    fn shared_idle_energy_is_attributed_to_containers() {
        let targets = [(ChargeTarget::Container(1), 3), (ChargeTarget::Container(2), 0), (ChargeTarget::System, 1)];
        let mut split = split_proportionally(Microjoules(1000), Microjoules(402), &targets);
        share_idle(&mut split, &targets);
        assert_eq!((split.idle, &*split.idle_shares), (Microjoules(100), &[(1, Microjoules(302))][..]));
        let mut unclaimed = split_proportionally(Microjoules(1000), Microjoules(402), &[]);
        share_idle(&mut unclaimed, &[]);
        assert_eq!((unclaimed.idle, unclaimed.idle_shares.len()), (Microjoules(402), 0));
    }

    #[test]
    fn the_energy_of_being_awake_is_a_part_of_the_shares() {
        let container = ChargeTarget::Container;
        // One busy container on another package, and a daemon on this one.
        let mut split = split_proportionally(Microjoules(1000), Microjoules(300), &[(container(2), 1)]);
        let host = [(ChargeTarget::System, 2), (container(1), 96), (container(2), 2)];
        split.add_awake(&split_proportionally(Microjoules(500), Microjoules::ZERO, &host));
        let shares = [(ChargeTarget::System, 10), (container(1), 480), (container(2), 710)];
        let mut sorted = split.shares.clone();
        sorted.sort_unstable_by_key(|(target, _)| *target);
        let mut expected = shares.map(|(target, uj)| (target, Microjoules(uj)));
        expected.sort_unstable_by_key(|(target, _)| *target);
        assert_eq!(sorted, expected);
        assert_eq!(split.awake_shares, [(1, Microjoules(480)), (2, Microjoules(10))]);
        split.retire_unknown(|number| number == 2);
        assert_eq!(split.awake_shares, [(2, Microjoules(10))]);
        let mut nothing_ran = split_proportionally::<ChargeTarget>(Microjoules(5), Microjoules::ZERO, &[]);
        nothing_ran.add_awake(&split_proportionally(Microjoules(7), Microjoules::ZERO, &[]));
        assert_eq!((nothing_ran.unattributed, nothing_ran.awake_shares.len()), (Microjoules(12), 0));
    }

    proptest! {
        #[test]
        fn parts_sum_exactly_and_order_does_not_matter(
            measured in any::<u64>(),
            idle in any::<u64>(),
            mut claims in proptest::collection::btree_map(0u32..1000, any::<u64>(), 0..60).prop_map(Vec::from_iter),
            seed in any::<u64>(),
        ) {
            let split = split_proportionally(Microjoules(measured), Microjoules(idle), &claims);
            prop_assert_eq!(total(&split), Microjoules(measured));
            let len = claims.len().max(1) as u64;
            claims.sort_by_key(|(key, _)| (u64::from(*key) ^ seed) % len);
            prop_assert_eq!(&split_proportionally(Microjoules(measured), Microjoules(idle), &claims), &split);
        }

        #[test]
        fn no_share_is_off_by_a_microjoule(
            measured in 0u64..1 << 40,
            claims in proptest::collection::btree_map(0u32..1000, 1u64..1 << 40, 1..60).prop_map(Vec::from_iter),
        ) {
            let weights: u128 = claims.iter().map(|(_, weight)| u128::from(*weight)).sum();
            let split = split_proportionally(Microjoules(measured), Microjoules::ZERO, &claims);
            for ((_, share), (_, weight)) in split.shares.iter().zip(&claims) {
                let exact = u128::from(measured) * u128::from(*weight);
                let actual = u128::from(share.0) * weights;
                prop_assert!(actual.abs_diff(exact) < weights);
            }
        }
    }
}
