//! Totals since the start: every account, every holder, nothing lost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::account::Closed;
use crate::{
    energy::zone::{Origin, ZoneId},
    units::Microjoules,
};

/// One accounting root and where its joules come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId {
    /// The root.
    pub zone: ZoneId,
    /// The source.
    pub origin: Origin,
}

/// Who is given joules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// A container or plain cgroup, by the probe's own number for it.
    Container(u32),
    /// The root cgroup, system units, kernel threads, this probe.
    System,
    /// Containers beyond the ceiling: they never got a series.
    Retired,
}

/// The totals of one accounting root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Kept apart from the parts below, so that their sum can be checked against it.
    pub measured: Microjoules,
    /// Dynamic, by container.
    pub containers: BTreeMap<u32, Microjoules>,
    /// Idle that was shared out, by container.
    pub idle_shares: BTreeMap<u32, Microjoules>,
    /// Of containers whose series have gone or never fitted.
    pub retired: Microjoules,
    /// Of everything that runs outside of containers.
    pub system: Microjoules,
    /// Of nobody: what the hardware uses when nothing runs.
    pub idle: Microjoules,
    /// Of nobody: dynamic energy that could not be given to anybody.
    pub unattributed: Microjoules,
}

/// All accounts since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    accounts: BTreeMap<AccountId, Account>,
}

impl Book {
    /// Makes the account visible before anything was measured.
    pub fn open(&mut self, id: AccountId) {
        self.accounts.entry(id).or_default();
    }

    /// Adds one tick of one account.
    pub fn post(&mut self, id: AccountId, measured: Microjoules, closed: &Closed<Holder>) {
        let account = self.accounts.entry(id).or_default();
        account.measured += measured;
        account.idle += closed.idle;
        account.unattributed += closed.unattributed;
        for (holder, share) in &closed.shares {
            match holder {
                Holder::Container(number) => *account.containers.entry(*number).or_default() += *share,
                Holder::System => account.system += *share,
                Holder::Retired => account.retired += *share,
            }
        }
        for (number, share) in &closed.idle_shares {
            *account.idle_shares.entry(*number).or_default() += *share;
        }
    }

    /// Moves a container's joules to the retired rows; its series end.
    pub fn retire(&mut self, number: u32) {
        for account in self.accounts.values_mut() {
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
        ledger::{close, share_idle},
        topology::PackageId,
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
        Tick(u32, u32, u32, Vec<(Holder, u64)>),
        Retire(u32),
    }

    fn event() -> impl Strategy<Value = Event> {
        let holder = prop_oneof![
            8 => (0u32..6).prop_map(Holder::Container),
            1 => Just(Holder::System),
            1 => Just(Holder::Retired),
        ];
        let claims = proptest::collection::btree_map(holder, 0u64..1000, 0..8).prop_map(Vec::from_iter);
        prop_oneof![
            4 => (0u32..2, any::<u32>(), any::<u32>(), claims).prop_map(|(p, m, i, c)| Event::Tick(p, m, i, c)),
            1 => (0u32..6).prop_map(Event::Retire),
        ]
    }

    proptest! {
        #[test]
        fn the_book_closes_after_any_history(events in proptest::collection::vec(event(), 0..80)) {
            let mut book = Book::default();
            let mut measured = [0u64; 2];
            for event in events {
                let before = book.clone();
                match event {
                    Event::Tick(package, joules, idle, claims) => {
                        measured[package as usize] += u64::from(joules);
                        let joules = Microjoules(u64::from(joules));
                        let mut closed = close(joules, Microjoules(u64::from(idle)), &claims);
                        share_idle(&mut closed, &claims);
                        book.post(id(package), joules, &closed);
                    }
                    Event::Retire(number) => book.retire(number),
                }
                for (id, account) in book.accounts() {
                    prop_assert_eq!(parts(account), account.measured);
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
