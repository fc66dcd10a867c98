//! What the accountant reports after each tick: an entry of the history, and a snapshot.

use std::{
    collections::{BTreeMap, btree_map},
    iter::Peekable,
    sync::Arc,
};

use units::Microjoules;

use super::Accountant;
use crate::{
    attribution::root::{Root, RootSplit, UsageByTarget, sum_usage},
    containers::{ChargeTarget, Container},
    cpu::CpuUsage,
    energy::zone::{Origin, Zone, ZoneKind},
    ledger::{MemoryPolicy, basis::Basis, idle::IdleState, uncertainty::Recent},
    snapshot::{
        AccountRow, AwakeRow, ContainerRow, HostCpu, IdleRow, IdleStateRow, Snapshot, StreamRow, WeightRow, ZoneRow,
        history::{AccountDelta, ContainerDelta, Tick},
    },
    tick::RawTick,
};

impl Accountant {
    /// Adds the tick to the history.
    pub(super) fn push_history(
        &mut self,
        raw: &RawTick,
        accounts: Vec<AccountDelta>,
        splits: &[RootSplit],
        usage: &UsageByTarget,
    ) {
        let (mut cpu, packages) = (Vec::new(), self.setup.usage_packages());
        for (target, by_package) in usage {
            if let ChargeTarget::Container(number) = target
                && let Some(container) = self.containers.get(number)
            {
                let used = packages.iter().zip(by_package).filter(|(_, usage)| usage.ns() > 0);
                cpu.extend(used.map(|(package, usage)| (container.clone(), *package, usage.ns())));
            }
        }
        self.ring.push(Tick {
            sequence: self.sequence,
            unix_ns: raw.unix_ns,
            monotonic_ns: i64::try_from(raw.energy_ns).unwrap_or(i64::MAX),
            accounts: accounts.into(),
            energy: splits.iter().flat_map(|split| self.container_deltas(split)).collect(),
            cpu: cpu.into(),
        });
    }

    fn container_deltas(&self, root: &RootSplit) -> Vec<ContainerDelta> {
        let RootSplit { id, split, bounds, unbounded, .. } = root;
        let idle: BTreeMap<u32, Microjoules> = split.idle_shares.iter().copied().collect();
        let awake: BTreeMap<u32, Microjoules> = split.awake_shares.iter().copied().collect();
        let mut energy: BTreeMap<u32, Microjoules> = idle.keys().map(|number| (*number, Microjoules::ZERO)).collect();
        for (target, share) in &split.shares {
            if let ChargeTarget::Container(number) = target {
                energy.insert(*number, *share);
            }
        }
        // Shares by engine use have no bound, and neither have those of a model.
        let bounded = !matches!(id.zone.kind, ZoneKind::Gpu(_)) && id.origin != Origin::Model;
        let delta = |(number, joules)| {
            Some(ContainerDelta {
                container: self.containers.get(&number)?.clone(),
                id: *id,
                joules,
                awake: awake.get(&number).copied().unwrap_or_default(),
                idle: idle.get(&number).copied().unwrap_or_default(),
                bound: (bounded && !unbounded.contains(&number))
                    .then(|| bounds.get(&number).copied().unwrap_or_default()),
            })
        };
        energy.into_iter().filter_map(delta).collect()
    }

    pub(super) fn snapshot(
        &self,
        raw: &RawTick,
        length_ns: Option<u64>,
        zones: Vec<ZoneRow>,
        splits: &[RootSplit],
        usage: &UsageByTarget,
    ) -> Snapshot {
        let by_container = |shares: &BTreeMap<u32, Microjoules>| -> Vec<(Arc<Container>, Microjoules)> {
            let mut containers = Ascending::new(&self.containers);
            shares.iter().filter_map(|(number, uj)| Some((containers.get(*number)?.clone(), *uj))).collect()
        };
        let accounts = self
            .totals
            .accounts()
            .map(|(id, account)| AccountRow {
                id: *id,
                containers: by_container(&account.containers),
                idle_shares: by_container(&account.idle_shares),
                awake_shares: by_container(&account.awake_shares),
                retired: account.retired,
                system: account.system,
                idle: account.idle,
                unattributed: account.unattributed,
            })
            .collect();
        let idle = (0..self.roots.len()).filter_map(|index| {
            let estimate = self.idle_estimate(index, self.roots[index].as_ref()?)?;
            let exact = self.setup.idle_uw.get(index).copied().flatten().is_some();
            Some(IdleRow { id: self.setup.zones[index].id, estimate, calibrated: !exact })
        });
        Snapshot {
            sequence: self.sequence,
            unix_ns: raw.unix_ns,
            length_ns,
            skew_ns: raw.cpu_ns.saturating_sub(raw.began_ns),
            zones,
            accounts,
            idle: idle.collect(),
            idle_states: self.idle_states(),
            steps: self.steps(),
            awake: self.awake_rows(),
            weights: self.weight_rows(),
            intervals: self.setup.zones.iter().filter_map(|zone| Some((zone.id, zone.interval?))).collect(),
            containers: self.container_rows(splits, usage, length_ns),
            packages: self.setup.usage_packages(),
            rejects: self
                .rejects
                .iter()
                .map(|((zone, reason), count)| (self.setup.zones[*zone].id, *reason, *count))
                .collect(),
            containers_dropped: raw.changes.dropped,
            cgroups_unnamed: raw.changes.unnamed,
            scans_incomplete: raw.changes.scans_incomplete,
            cpu: self.setup.cpu.clone(),
            host_cpu: HostCpu {
                time: self.host_time,
                online: self.setup.cpu_packages.iter().flatten().count(),
                siblings_known: self.setup.cpu.as_ref().is_some_and(|cpu| cpu.capabilities.siblings),
            },
            smt: self.setup.smt,
            shared_milli: self.rules.weights.shared_milli,
            counter_time: self.counter_time,
            cpu_overflow_ns: self.cpu_overflow_ns,
            cpu_intervals_missed: self.cpu_missed,
            own: self.own_rows(),
            streams: self
                .streams
                .totals()
                .map(|(id, origin, joules)| {
                    let parts = self.streams.stage_energy(id, origin);
                    StreamRow { id: id.clone(), origin, joules, parts }
                })
                .collect(),
            stream_times: self.streams.stage_times().map(|(id, times)| (id.clone(), times)).collect(),
            engine_times: self
                .engine_times
                .iter()
                .filter_map(|((number, gpu), times)| Some((self.containers.get(number)?.clone(), *gpu, *times)))
                .collect(),
            engine_use: self.engine_use.clone(),
            engine_weights: self.rules.engines,
            jobs: self.streams.jobs().cloned().collect(),
            jobs_dropped: raw.changes.jobs_dropped.saturating_add(self.streams.dropped()),
            ring: self.ring.clone(),
            ..Snapshot::default()
        }
    }

    /// What is known of the idle power of each root that is divided by CPU time.
    fn idle_states(&self) -> Vec<IdleStateRow> {
        let zones = self.setup.zones.iter().zip(&self.roots).enumerate();
        let row = |(index, (zone, root)): (usize, (&Zone, &Option<Root>))| {
            let divided = match zone.id.kind {
                ZoneKind::Package | ZoneKind::Psys => true,
                ZoneKind::Dram => self.rules.memory != MemoryPolicy::Unattributed,
                _ => false,
            };
            let root = root.as_ref().filter(|_| divided)?;
            let exact = self.setup.idle_uw.get(index).copied().flatten().is_some();
            let state = if exact { IdleState::Known } else { root.baseline.state() };
            Some(IdleStateRow { id: zone.id, state })
        };
        zones.filter_map(row).collect()
    }

    /// The step between sleep and awake of each root where it is known.
    fn steps(&self) -> Vec<IdleRow> {
        let zones = self.setup.zones.iter().zip(&self.roots).enumerate();
        let row = |(index, (zone, root)): (usize, (&Zone, &Option<Root>))| {
            let estimate = self.step_estimate(index, root.as_ref()?)?;
            Some(IdleRow { id: zone.id, estimate, calibrated: true })
        };
        zones.filter_map(row).collect()
    }

    /// By what the load energy of each root was divided, where that is not always CPU time.
    fn weight_rows(&self) -> Vec<WeightRow> {
        let row = |(zone, root): (&Zone, &Option<Root>)| {
            let root = root.as_ref()?;
            let basis = root.basis?;
            let known = [Basis::Time, Basis::Cycles, Basis::Mix].into_iter();
            let errors = known.filter_map(|basis| Some((basis, root.fitted.error(basis)?))).collect();
            Some(WeightRow { id: zone.id, basis, costs: root.fitted.costs(basis), errors })
        };
        self.setup.zones.iter().zip(&self.roots).filter_map(row).collect()
    }

    fn awake_rows(&self) -> Vec<AwakeRow> {
        let packages = self.setup.packages.iter().zip(&self.awake);
        packages.filter_map(|(package, awake)| Some(AwakeRow { package: *package, awake: (*awake)? })).collect()
    }

    fn container_rows(&self, splits: &[RootSplit], usage: &UsageByTarget, length_ns: Option<u64>) -> Vec<ContainerRow> {
        let cpu_ratio = |number: u32| {
            let ns = usage.get(&ChargeTarget::Container(number)).map_or(0, |usage| sum_usage(usage).ns());
            length_ns.filter(|length| *length > 0).map(|length| ratio(ns, length))
        };
        let mut sums: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        // Memory that is not attributed has a power that no container is known to use.
        let whole = |root: &&RootSplit| match root.id.zone.kind {
            ZoneKind::Package | ZoneKind::Psys | ZoneKind::Gpu(_) => true,
            ZoneKind::Dram => !root.split.shares.is_empty(),
            _ => false,
        };
        // Boards are taken from their last split, which stands while the next energy waits.
        let machine = splits.iter().filter(|root| !matches!(root.id.zone.kind, ZoneKind::Gpu(_)));
        let roots: Vec<&RootSplit> = machine.chain(&self.gpu_splits).filter(whole).collect();
        // A container that did not run has a known power of 0 W, which differs from an unknown
        // power.
        let mut known: Vec<(&'static str, Origin, f64)> =
            roots.iter().map(|root| (root.id.zone.kind.as_str(), root.id.origin, 0.0)).collect();
        known.sort_unstable_by_key(|(zone, origin, _)| (*zone, *origin));
        known.dedup_by_key(|(zone, origin, _)| (*zone, *origin));
        // Of those that ran: most containers of a host are idle.
        let mut watts: BTreeMap<u32, Vec<(&'static str, Origin, f64)>> = BTreeMap::new();
        for RootSplit { id, split, bounds, length_ns, .. } in roots {
            let key = (id.zone.kind.as_str(), id.origin);
            for (target, energy) in &split.shares {
                let ChargeTarget::Container(number) = target else { continue };
                let mut powers = watts.entry(*number).or_insert_with(|| known.clone()).iter_mut();
                if let Some((.., power)) = powers.find(|(zone, origin, _)| (*zone, *origin) == key) {
                    *power += energy.watts_over(*length_ns).unwrap_or(0.0);
                }
                if let Some(bound) = bounds.get(number) {
                    let (bound_uj, energy_uj) = sums.entry(*number).or_default();
                    *bound_uj += bound.total();
                    *energy_uj += energy.joules() * 1e6;
                }
            }
        }
        let known: Arc<[_]> = known.into();
        let unused: Arc<[_]> = vec![CpuUsage::default(); self.setup.usage_packages().len()].into();
        let (mut cpu, mut queues) = (Ascending::new(&self.cpu), Ascending::new(&self.queues));
        let mut recent = Ascending::new(&self.recent);
        let row = |container: &Arc<Container>| {
            let number = container.number;
            ContainerRow {
                container: container.clone(),
                cpu_ratio: cpu_ratio(number),
                cpu: cpu.get(number).unwrap_or(&unused).clone(),
                watts: watts.remove(&number).map_or_else(|| known.clone(), Into::into),
                queue: queues.get(number).copied(),
                uncertainty: sums.get(&number).filter(|(_, uj)| *uj > 0.0).map(|(bound_uj, uj)| bound_uj / uj),
                minute: recent.get(number).and_then(Recent::minute).filter(|minute| minute.uj > 0.0),
            }
        };
        self.containers.values().map(row).collect()
    }
}

/// Looks up ascending numbers in one pass over a map.
struct Ascending<'a, V>(Peekable<btree_map::Iter<'a, u32, V>>);

impl<'a, V> Ascending<'a, V> {
    fn new(map: &'a BTreeMap<u32, V>) -> Self {
        Self(map.iter().peekable())
    }

    /// The value of a number, which is larger than in the call before.
    fn get(&mut self, number: u32) -> Option<&'a V> {
        while self.0.next_if(|(known, _)| **known < number).is_some() {}
        self.0.next_if(|(known, _)| **known == number).map(|(_, value)| value)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio of two lengths of time, for output")]
fn ratio(ns: u64, of: u64) -> f64 {
    ns as f64 / of as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascending_numbers_are_found_as_in_the_map() {
        let map: BTreeMap<u32, u32> = [1, 2, 5, 9].map(|number| (number, number * 10)).into();
        for wanted in [vec![0, 1, 2, 3, 5, 8, 9, 10], vec![2, 9], vec![9], vec![]] {
            let mut ascending = Ascending::new(&map);
            assert!(wanted.iter().all(|number| ascending.get(*number) == map.get(number)), "{wanted:?}");
        }
    }
}
