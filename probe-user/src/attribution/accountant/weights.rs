//! By what the energy of a root is divided, and what its ticks tell of its power.

use std::borrow::Cow;

use units::Microjoules;

use super::Accountant;
use crate::{
    attribution::root::{Division, Load, Root, sum_usage},
    cpu::Tier,
    energy::zone::{ZoneId, ZoneKind},
    ledger::{
        MemoryPolicy,
        basis::Basis,
        idle::{IdleState, Observation},
        memory_claims,
    },
};

impl Accountant {
    /// How the load energy of a root is divided. Memory follows its misses only where what it draws
    /// without them is known, of which the step between sleep and awake is a large part.
    pub(super) fn division<'a>(&self, index: usize, id: ZoneId, root: &Root, load: &'a Load) -> Division<'a> {
        if id.kind == ZoneKind::Dram {
            let all = if load.host.is_empty() { (&load.claims, 1) } else { (&*load.host, self.setup.packages.len()) };
            // A source that defines the idle power has no step.
            let exact = self.setup.idle_uw.get(index).copied().flatten().is_some();
            let base = root.baseline.state() == IdleState::Base;
            let separated = exact || base || self.step_estimate(index, root).is_some();
            let (basis, claims) = memory_claims(&load.claims, all, load.counted && separated, self.rules.memory);
            return Division { claims: Cow::Owned(claims), basis, error: None };
        }
        let shared_milli = self.rules.weights.shared_milli;
        let mix = if load.counted { root.fitted.weigh(&load.claims, shared_milli) } else { None };
        let (basis, claims) = match mix {
            Some(claims) => (Basis::Mix, Cow::Owned(claims)),
            None if load.counted && self.counts_events() => (Basis::Cycles, Cow::Borrowed(&load.claims)),
            None => (Basis::Time, Cow::Borrowed(&load.claims)),
        };
        Division { claims, basis, error: root.fitted.error(basis) }
    }

    /// True where a root is not always divided by CPU time.
    pub(super) fn is_weight_shown(&self, id: ZoneId) -> bool {
        id.kind == ZoneKind::Dram || self.counts_events()
    }

    fn counts_events(&self) -> bool {
        self.setup.cpu.as_ref().is_some_and(|cpu| cpu.tier == Tier::Counters)
    }

    /// Adds a tick, in which a root drew `energy`, to what is learnt of it: idle power and step,
    /// and what the events on a package cost. On processors with two kinds of cores an event does
    /// not cost the same everywhere.
    pub(super) fn learn(&self, id: ZoneId, root: &mut Root, load: &Load, (ns, energy): (u64, Microjoules)) {
        let Some(unix_seconds) = load.sample_at else { return };
        // Also a tick without any use, in which it slept.
        if id.kind != ZoneKind::Dram || self.rules.memory != MemoryPolicy::Unattributed {
            root.baseline.observe(Observation {
                unix_seconds,
                ns,
                weight: sum_usage(load.claims.values()).weight,
                capacity: self.capacity(id),
                awake_ns: load.awake_ns,
                uj: energy.0,
            });
        }
        let fits = id.kind == ZoneKind::Package && self.counts_events() && self.setup.cpu_weights.is_empty();
        if fits && load.counted && !self.setup.modelled() {
            root.fitted.observe((ns, energy.0, load.awake_ns), &load.claims, self.rules.weights.shared_milli);
        }
    }
}
