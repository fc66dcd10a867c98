//! Energy totals since the start, by accounting root.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use units::Microjoules;

use super::split::Split;
use crate::{
    containers::ChargeTarget,
    energy::zone::{Origin, ZoneId},
};

/// An accounting root and the source of its energy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AccountId {
    pub zone: ZoneId,
    pub origin: Origin,
}

/// The totals of one accounting root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Separate from the parts below, so that tests can compare their sum with it.
    pub measured: Microjoules,
    /// Dynamic energy by container.
    pub containers: BTreeMap<u32, Microjoules>,
    /// Idle energy attributed to containers.
    pub idle_shares: BTreeMap<u32, Microjoules>,
    /// Energy of being awake by container, which is included in `containers`.
    pub awake_shares: BTreeMap<u32, Microjoules>,
    /// Energy of containers whose series ended or exceeded the limit.
    pub retired: Microjoules,
    /// Dynamic energy of everything outside of containers.
    pub system: Microjoules,
    /// Idle energy that is not attributed to any container.
    pub idle: Microjoules,
    /// Dynamic energy that is not attributed.
    pub unattributed: Microjoules,
}

impl Account {
    /// True if the parts sum to the measured energy, and that is the `total` of the counter.
    #[must_use]
    pub fn closes_with(&self, total: Microjoules) -> bool {
        let shares = self.containers.values().chain(self.idle_shares.values());
        let others = [self.retired, self.system, self.idle, self.unattributed];
        let parts: u128 = shares.chain(&others).map(|part| u128::from(part.0)).sum();
        parts == u128::from(self.measured.0) && self.measured == total
    }

    /// Keeps the containers for which `keep` is true, and moves the energy of the others to the
    /// retired rows.
    pub fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.awake_shares.retain(|number, _| keep(*number));
        for shares in [&mut self.containers, &mut self.idle_shares] {
            let retired: Microjoules =
                shares.iter().filter(|(number, _)| !keep(**number)).map(|(_, energy)| *energy).sum();
            self.retired += retired;
            shares.retain(|number, _| keep(*number));
        }
    }
}

/// The accounts of all roots since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    accounts: BTreeMap<AccountId, Account>,
}

impl Totals {
    /// Creates the account, so that it is visible before its first energy.
    pub fn open(&mut self, id: AccountId) {
        self.accounts.entry(id).or_default();
    }

    /// The account, empty if it is not open.
    #[must_use]
    pub fn account(&self, id: AccountId) -> Account {
        self.accounts.get(&id).cloned().unwrap_or_default()
    }

    /// Continues an account of an earlier probe.
    pub fn continue_account(&mut self, id: AccountId, account: Account) {
        self.accounts.insert(id, account);
    }

    /// Ends the series of an account, because its energy is no longer read.
    pub fn close(&mut self, id: AccountId) {
        self.accounts.remove(&id);
    }

    /// Adds one tick of one root.
    pub fn add(&mut self, id: AccountId, measured: Microjoules, split: &Split<ChargeTarget>) {
        let account = self.accounts.entry(id).or_default();
        account.measured += measured;
        account.idle += split.idle;
        account.unattributed += split.unattributed;
        for (target, share) in &split.shares {
            match target {
                ChargeTarget::Container(number) => *account.containers.entry(*number).or_default() += *share,
                ChargeTarget::System => account.system += *share,
                ChargeTarget::Retired => account.retired += *share,
            }
        }
        for (number, share) in &split.idle_shares {
            *account.idle_shares.entry(*number).or_default() += *share;
        }
        for (number, share) in &split.awake_shares {
            *account.awake_shares.entry(*number).or_default() += *share;
        }
    }

    /// Moves the energy of a container to the retired rows, because its series end.
    pub fn retire(&mut self, number: u32) {
        for account in self.accounts.values_mut() {
            account.awake_shares.remove(&number);
            for shares in [&mut account.containers, &mut account.idle_shares] {
                if let Some(joules) = shares.remove(&number) {
                    account.retired += joules;
                }
            }
        }
    }

    /// Every account, in order.
    pub fn accounts(&self) -> impl Iterator<Item = (&AccountId, &Account)> {
        self.accounts.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        energy::zone::ZoneKind,
        host::topology::PackageId,
        ledger::{share_idle, split_proportionally},
    };

    fn id(package: u32) -> AccountId {
        AccountId {
            zone: ZoneId { package: Some(PackageId::whole(package)), kind: ZoneKind::Package },
            origin: Origin::Model,
        }
    }

    fn parts(account: &Account) -> Microjoules {
        account.containers.values().chain(account.idle_shares.values()).copied().sum::<Microjoules>()
            + account.retired
            + account.system
            + account.idle
            + account.unattributed
    }

    #[derive(Clone, Debug)]
    enum Event {
        Tick(u32, u32, u32, u32, Vec<(ChargeTarget, u64)>),
        Retire(u32),
    }

    fn event() -> impl Strategy<Value = Event> {
        let target = prop_oneof![
            8 => (0u32..6).prop_map(ChargeTarget::Container),
            1 => Just(ChargeTarget::System),
            1 => Just(ChargeTarget::Retired),
        ];
        let claims = proptest::collection::btree_map(target, 0u64..1000, 0..8).prop_map(Vec::from_iter);
        prop_oneof![
            4 => (0u32..2, any::<u32>(), any::<u32>(), any::<u32>(), claims)
                .prop_map(|(p, m, a, i, c)| Event::Tick(p, m, a, i, c)),
            1 => (0u32..6).prop_map(Event::Retire),
        ]
    }

    proptest! {
        #[test]
        fn parts_sum_to_the_measured_energy_after_any_history(events in proptest::collection::vec(event(), 0..80)) {
            let mut totals = Totals::default();
            let mut measured = [0u64; 2];
            for event in events {
                let before = totals.clone();
                match event {
                    Event::Tick(package, joules, awake, idle, claims) => {
                        let whole = Microjoules(u64::from(joules) + u64::from(awake));
                        measured[package as usize] += whole.0;
                        let joules = Microjoules(u64::from(joules));
                        let mut split = split_proportionally(joules, Microjoules(u64::from(idle)), &claims);
                        share_idle(&mut split, &claims);
                        // Everything but one target ran on this package; all of them woke it.
                        let on_host: Vec<_> = claims.iter().skip(1).copied().collect();
                        let awake = Microjoules(u64::from(awake));
                        split.add_awake(&split_proportionally(awake, Microjoules::ZERO, &on_host));
                        totals.add(id(package), whole, &split);
                    }
                    Event::Retire(number) => totals.retire(number),
                }
                for (id, account) in totals.accounts() {
                    prop_assert_eq!(parts(account), account.measured);
                    for (number, awake) in &account.awake_shares {
                        prop_assert!(account.containers.get(number).is_some_and(|all| all >= awake));
                    }
                    let package = id.zone.package.unwrap().package as usize;
                    prop_assert_eq!(account.measured, Microjoules(measured[package]));
                    if let Some(was) = before.accounts.get(id) {
                        prop_assert!(account.retired >= was.retired && account.idle >= was.idle);
                        prop_assert!(account.system >= was.system && account.unattributed >= was.unattributed);
                    }
                }
            }
        }
    }
}
