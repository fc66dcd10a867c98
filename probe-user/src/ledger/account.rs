//! One tick of one accounting root: the split.

use std::collections::BTreeMap;

use super::book::Holder;
use crate::units::Microjoules;

/// A tick's joules, divided. The parts sum to what was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed<K> {
    /// Dynamic energy by claimant, in the order of the claimants' keys; claims of no weight are left out.
    pub shares: Vec<(K, Microjoules)>,
    /// What the package would have used with nobody running, as far as it is nobody's.
    pub idle: Microjoules,
    /// What of that was shared out, by container.
    pub idle_shares: Vec<(u32, Microjoules)>,
    /// Dynamic energy in a tick in which nobody ran. It is never carried over.
    pub unattributed: Microjoules,
}

/// Divides `measured` among `claims` in proportion to their weights.
///
/// `idle` is taken off first, clamped to what was measured. Rounding is by largest remainder: each share is the exact
/// quotient rounded down, and the microjoules left over go one each to the largest remainders, ties to the smaller key.
/// So the sum is exact, no share is off by a microjoule or more, and the order of the claims does not matter.
#[must_use]
pub fn close<K: Ord + Copy>(measured: Microjoules, idle: Microjoules, claims: &[(K, u64)]) -> Closed<K> {
    let idle = idle.min(measured);
    let dynamic = measured - idle;
    let weights: u128 = claims.iter().map(|(_, weight)| u128::from(*weight)).sum();
    if weights == 0 {
        return Closed { shares: Vec::new(), idle, idle_shares: Vec::new(), unattributed: dynamic };
    }
    let mut shares: Vec<(K, Microjoules, u128)> = claims
        .iter()
        .filter(|(_, weight)| *weight > 0)
        .map(|(key, weight)| {
            let product = u128::from(dynamic.0) * u128::from(*weight);
            // The quotient is at most `dynamic`, so it fits.
            let whole = u64::try_from(product / weights).unwrap_or(u64::MAX);
            (*key, Microjoules(whole), product % weights)
        })
        .collect();
    let given: Microjoules = shares.iter().map(|(_, share, _)| *share).sum();
    let mut left = (dynamic - given).0;
    shares.sort_unstable_by(|a, b| b.2.cmp(&a.2).then(a.0.cmp(&b.0)));
    for (_, share, _) in &mut shares {
        if left == 0 {
            break;
        }
        *share += Microjoules(1);
        left -= 1;
    }
    shares.sort_unstable_by_key(|(key, ..)| *key);
    Closed {
        shares: shares.into_iter().map(|(key, share, _)| (key, share)).collect(),
        idle,
        idle_shares: Vec::new(),
        unattributed: Microjoules::ZERO,
    }
}

/// Shares the idle energy of a closed account out to containers, in proportion to weights over everybody's. What falls to
/// others than containers stays idle; the sum stays exact.
pub fn share_idle(closed: &mut Closed<Holder>, weights: &[(Holder, u64)]) {
    let split = close(closed.idle, Microjoules::ZERO, weights);
    for (holder, share) in split.shares {
        if let Holder::Container(number) = holder
            && share > Microjoules::ZERO
        {
            closed.idle = closed.idle - share;
            closed.idle_shares.push((number, share));
        }
    }
}

/// Divides energy by the use of a GPU's engines. What was used by nobody who is known stays unattributed, and so does all of it where nothing
/// is known: it is never split evenly.
#[must_use]
pub fn close_by_use(measured: Microjoules, idle: Microjoules, claims: &[(Option<Holder>, u64)]) -> Closed<Holder> {
    let closed = close(measured, idle, claims);
    let mut known =
        Closed { shares: Vec::new(), idle: closed.idle, idle_shares: Vec::new(), unattributed: closed.unattributed };
    for (who, share) in closed.shares {
        match who {
            Some(holder) => known.shares.push((holder, share)),
            None => known.unattributed += share,
        }
    }
    known
}

impl Closed<Holder> {
    /// Adds another part of the same root, without idle energy of its own.
    pub fn merge(&mut self, part: &Self) {
        let mut sums: BTreeMap<Holder, Microjoules> = self.shares.drain(..).collect();
        for (holder, share) in &part.shares {
            *sums.entry(*holder).or_default() += *share;
        }
        self.shares.extend(sums);
        self.unattributed += part.unattributed;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn total(closed: &Closed<u32>) -> Microjoules {
        closed.shares.iter().map(|(_, share)| *share).sum::<Microjoules>() + closed.idle + closed.unattributed
    }

    #[test]
    fn shares_follow_the_weights() {
        let closed = close(Microjoules(100), Microjoules(20), &[(1, 3), (2, 1)]);
        assert_eq!(closed.shares, [(1, Microjoules(60)), (2, Microjoules(20))]);
        assert_eq!(closed.idle, Microjoules(20));
    }

    #[test]
    fn what_does_not_divide_goes_to_the_largest_remainder() {
        let closed = close(Microjoules(10), Microjoules::ZERO, &[(1, 1), (2, 1), (3, 1)]);
        assert_eq!(closed.shares, [(1, Microjoules(4)), (2, Microjoules(3)), (3, Microjoules(3))]);
    }

    #[test]
    fn with_nobody_running_it_is_unattributed() {
        let closed = close::<u32>(Microjoules(10), Microjoules(4), &[(1, 0)]);
        assert_eq!((closed.shares.len(), closed.idle, closed.unattributed), (0, Microjoules(4), Microjoules(6)));
    }

    #[test]
    fn idle_is_never_more_than_was_measured() {
        let closed = close(Microjoules(10), Microjoules(40), &[(1, 5)]);
        assert_eq!((closed.idle, closed.shares), (Microjoules(10), vec![(1, Microjoules::ZERO)]));
    }

    #[test]
    fn what_nobody_known_used_of_a_gpu_is_unattributed_and_so_is_all_where_nobody_is() {
        let claims = [(None, 1), (Some(Holder::Container(1)), 2), (Some(Holder::Container(2)), 1)];
        let closed = close_by_use(Microjoules(100), Microjoules(20), &claims);
        let given = [(Holder::Container(1), Microjoules(40)), (Holder::Container(2), Microjoules(20))];
        assert_eq!((&*closed.shares, closed.unattributed), (&given[..], Microjoules(20)));
        let nobody = close_by_use(Microjoules(100), Microjoules(20), &[]);
        assert_eq!((nobody.shares.len(), nobody.idle, nobody.unattributed), (0, Microjoules(20), Microjoules(80)));
    }

    #[test]
    fn idle_that_is_shared_out_is_no_longer_nobodys() {
        let holders = [(Holder::Container(1), 3), (Holder::Container(2), 0), (Holder::System, 1)];
        let mut closed = close(Microjoules(1000), Microjoules(402), &holders);
        share_idle(&mut closed, &holders);
        assert_eq!((closed.idle, &*closed.idle_shares), (Microjoules(100), &[(1, Microjoules(302))][..]));
        let mut nobody = close(Microjoules(1000), Microjoules(402), &[]);
        share_idle(&mut nobody, &[]);
        assert_eq!((nobody.idle, nobody.idle_shares.len()), (Microjoules(402), 0));
    }

    proptest! {
        #[test]
        fn the_account_closes_exactly_and_order_does_not_matter(
            measured in any::<u64>(),
            idle in any::<u64>(),
            mut claims in proptest::collection::btree_map(0u32..1000, any::<u64>(), 0..60).prop_map(Vec::from_iter),
            seed in any::<u64>(),
        ) {
            let closed = close(Microjoules(measured), Microjoules(idle), &claims);
            prop_assert_eq!(total(&closed), Microjoules(measured));
            let len = claims.len().max(1) as u64;
            claims.sort_by_key(|(key, _)| (u64::from(*key) ^ seed) % len);
            prop_assert_eq!(&close(Microjoules(measured), Microjoules(idle), &claims), &closed);
        }

        #[test]
        fn no_share_is_off_by_a_microjoule(
            measured in 0u64..1 << 40,
            claims in proptest::collection::btree_map(0u32..1000, 1u64..1 << 40, 1..60).prop_map(Vec::from_iter),
        ) {
            let weights: u128 = claims.iter().map(|(_, weight)| u128::from(*weight)).sum();
            let closed = close(Microjoules(measured), Microjoules::ZERO, &claims);
            for ((_, share), (_, weight)) in closed.shares.iter().zip(&claims) {
                let exact = u128::from(measured) * u128::from(*weight);
                let given = u128::from(share.0) * weights;
                prop_assert!(given.abs_diff(exact) < weights);
            }
        }
    }
}
