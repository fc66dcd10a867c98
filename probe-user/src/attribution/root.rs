//! Accounting roots: their state between two ticks, and the split of their energy in one tick.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use units::Microjoules;

use crate::{
    containers::ChargeTarget,
    cpu::CpuUsage,
    ledger::{AccountId, Split, basis::Basis, fitted_weight::FittedWeight, idle::Baseline, uncertainty::Bound},
};

/// CPU usage of each target, by package index.
pub(super) type UsageByTarget = BTreeMap<ChargeTarget, Vec<CpuUsage>>;

/// State of an accounting root between two ticks.
#[derive(Default)]
pub(super) struct Root {
    /// CPU usage of ticks whose energy has not been read yet.
    pub(super) pending: BTreeMap<ChargeTarget, CpuUsage>,
    /// CPU usage of the whole machine in those ticks, and the time in which the root was awake.
    pub(super) pending_host: BTreeMap<ChargeTarget, CpuUsage>,
    pub(super) pending_awake_ns: u64,
    /// True when hardware counters did not run all the time in one of those ticks.
    pub(super) pending_uncounted: bool,
    /// Number of those ticks.
    pub(super) pending_ticks: u32,
    /// True when the counter rejected a reading in one of those ticks.
    pub(super) rejected: bool,
    /// Mean power of the last accepted tick, in microwatts.
    pub(super) power_uw: u64,
    pub(super) baseline: Baseline,
    pub(super) fitted: FittedWeight,
    /// What divided the energy of the last accepted tick, where that is not always CPU time.
    pub(super) basis: Option<Basis>,
}

impl Root {
    pub(super) fn add_pending(&mut self, load: Load) {
        add_usage(&mut self.pending, load.claims);
        add_usage(&mut self.pending_host, load.host.iter().map(|(target, usage)| (*target, *usage)));
        self.pending_awake_ns = self.pending_awake_ns.saturating_add(load.awake_ns);
        self.pending_uncounted |= !load.counted;
        self.pending_ticks = self.pending_ticks.saturating_add(1);
    }

    /// Moves the load of the ticks without energy to `load`.
    pub(super) fn take_pending(&mut self, load: &mut Load) {
        add_usage(&mut load.claims, std::mem::take(&mut self.pending));
        if !self.pending_host.is_empty() {
            add_usage(Rc::make_mut(&mut load.host), std::mem::take(&mut self.pending_host));
        }
        load.awake_ns = load.awake_ns.saturating_add(self.pending_awake_ns);
        load.counted &= !self.pending_uncounted;
    }

    pub(super) fn clear_pending(&mut self) {
        (self.pending, self.pending_host) = (BTreeMap::new(), BTreeMap::new());
        (self.pending_awake_ns, self.pending_ticks) = (0, 0);
        (self.pending_uncounted, self.rejected) = (false, false);
    }
}

/// Load of one root in the ticks that its energy covers.
pub(super) struct Load {
    /// CPU usage that splits the load energy of the root.
    pub(super) claims: BTreeMap<ChargeTarget, CpuUsage>,
    /// CPU usage of the whole machine, which splits the energy of being awake; empty where it is
    /// that of the root. All roots of a tick share it.
    pub(super) host: Rc<BTreeMap<ChargeTarget, CpuUsage>>,
    /// Time in which the root was awake; all of it where that is unknown.
    pub(super) awake_ns: u64,
    /// True when hardware counters ran all the time and on every CPU.
    pub(super) counted: bool,
    /// End in unix seconds of a tick that tells the power at its load; `None` for other ticks.
    pub(super) sample_at: Option<i64>,
}

/// How the load energy of a root is divided in one tick.
pub(super) struct Division<'a> {
    /// What divides it, as the weight of each usage.
    pub(super) claims: Cow<'a, BTreeMap<ChargeTarget, CpuUsage>>,
    pub(super) basis: Basis,
    /// Error of that weight relative to the power of the load, where it is known.
    pub(super) error: Option<f64>,
}

fn add_usage(all: &mut BTreeMap<ChargeTarget, CpuUsage>, more: impl IntoIterator<Item = (ChargeTarget, CpuUsage)>) {
    for (target, usage) in more {
        all.entry(target).or_default().add(&usage);
    }
}

/// The energy of one root in one tick, split among targets.
#[derive(Clone)]
pub(super) struct RootSplit {
    pub(super) id: AccountId,
    pub(super) split: Split<ChargeTarget>,
    pub(super) bounds: BTreeMap<u32, Bound>,
    /// Containers without a bound: a part of their energy was split by engine use.
    pub(super) unbounded: BTreeSet<u32>,
    pub(super) length_ns: u64,
}

/// The sum of several usages.
pub(super) fn sum_usage<'a>(usages: impl IntoIterator<Item = &'a CpuUsage>) -> CpuUsage {
    usages.into_iter().fold(CpuUsage::default(), |mut sum, usage| {
        sum.add(usage);
        sum
    })
}

/// Mean power in microwatts.
pub(super) fn microwatts(energy: Microjoules, ns: u64) -> u64 {
    u64::try_from(u128::from(energy.0) * 1_000_000_000 / u128::from(ns.max(1))).unwrap_or(u64::MAX)
}
