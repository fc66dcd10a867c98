//! Totals that the next start of the probe continues: their types, and the check that they close.

use serde::{Deserialize, Serialize};
use units::Microjoules;

use crate::{
    energy::zone::Origin,
    ledger::{Account, AccountId, streams::SavedStream},
};

/// The total of one counter, with its account if it is an accounting root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedZone {
    pub(crate) id: AccountId,
    pub(crate) total: Microjoules,
    pub(crate) account: Option<Account>,
}

/// All totals of energy since their start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedTotals {
    pub(crate) zones: Vec<SavedZone>,
    pub(crate) streams: Vec<SavedStream>,
    /// Energy of the probe's process without that of memory.
    pub(crate) own: Option<(Origin, Microjoules)>,
    /// Energy of memory of the process, and of packages and memory of the eBPF programs.
    #[serde(default)]
    pub(crate) own_parts: [Microjoules; 3],
}

impl SavedTotals {
    /// Checks that every account closes: its parts sum to its measured energy, which is the total
    /// of its counter.
    ///
    /// # Errors
    /// The zone whose account does not close.
    pub(crate) fn check(&self) -> Result<(), String> {
        for SavedZone { id, total, account } in &self.zones {
            if account.as_ref().is_some_and(|account| !account.closes_with(*total)) {
                return Err(format!("the account of {} ({}) does not close", id.zone, id.origin.as_str()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        energy::zone::{ZoneId, ZoneKind},
        host::topology::PackageId,
    };

    #[test]
    fn an_account_that_does_not_close_is_refused() {
        let zone = ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package };
        let account = Account {
            measured: Microjoules(10),
            containers: [(3, Microjoules(4))].into(),
            awake_shares: [(3, Microjoules(1))].into(),
            system: Microjoules(6),
            ..Account::default()
        };
        let id = AccountId { zone, origin: Origin::Perf };
        let saved = |total: u64, account: Account| SavedTotals {
            zones: vec![SavedZone { id, total: Microjoules(total), account: Some(account) }],
            ..SavedTotals::default()
        };
        assert_eq!(saved(10, account.clone()).check(), Ok(()));
        assert!(saved(11, account.clone()).check().is_err(), "another total than the counter");
        let more = Account { system: Microjoules(7), ..account };
        assert!(saved(10, more).check().unwrap_err().contains("does not close"));
    }
}
