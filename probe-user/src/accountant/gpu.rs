//! The part of the arithmetic that is about GPUs: joules follow the engines that were used, and CPU time says nothing of them.
//!
//! A board is a root of its own. What lies inside another root (the graphics of a package, boards below a sensor of the whole platform) is
//! taken out of that root's dynamic joules and divided by use, and only the rest by CPU time.

use std::collections::{BTreeMap, BTreeSet};

use super::{Accountant, Given, Root, STILL_NS, microwatts};
use crate::{
    energy::{
        counter::{Counter, Step},
        zone::{ZoneKind, accounting_roots, holds_gpu},
    },
    gpu::{
        Worked,
        engines::{ENGINES, GpuId},
    },
    ledger::{
        AccountId, Closed, Holder, IdlePolicy, close_by_use, rest::Rest, share_idle, streams::UseClaims,
        uncertainty::Conditions,
    },
    tick::{News, RawTick},
    units::Microjoules,
};

/// What a zone of a GPU remembers between ticks.
#[derive(Default)]
pub(super) struct Engines {
    /// Who used it in ticks whose joules are still to come.
    pub(super) claims: UseClaims,
    /// True when something worked in one of them.
    worked: bool,
    /// Of a zone inside a root: its dynamic joules that the root has not divided yet.
    joules: Microjoules,
    pub(super) rest: Rest,
    /// Since when its counter has not been read.
    failing: Option<u64>,
    /// While its joules wait for word of who used it: the power that was shown last.
    pub(super) waits: Option<Option<f64>>,
    watts: Option<f64>,
}

impl Accountant {
    /// Counters that came after the start. A sensor of the whole platform, where it is the root, holds theirs.
    pub(super) fn add_zones(&mut self, news: &News) {
        for zone in &news.zones {
            self.counters.push(Counter::new(zone));
            self.moved.push(None);
            let rest = self.remembered.get(&zone.id.to_string()).map(|samples| Rest::remember(samples));
            self.engines.push(Engines { rest: rest.unwrap_or_default(), ..Engines::default() });
            self.setup.zones.push(zone.clone());
            self.setup.idle_uw.push(None);
        }
        let roots = accounting_roots(&self.setup.zones);
        self.roots.resize_with(roots.len(), || None);
        for (known, root) in self.roots.iter_mut().zip(roots) {
            *known = root.then(|| known.take().unwrap_or_default());
        }
        self.streams.extend(self.roots.len());
    }

    /// Notes who used which GPU, until the joules of its zone come.
    pub(super) fn count_engines(&mut self, raw: &RawTick) {
        for (gpu, Worked { uses, .. }) in &raw.gpus {
            for used in uses {
                if let Some(Holder::Container(number)) = used.holder
                    && self.containers.contains_key(&number)
                {
                    let sums = self.engine_times.entry((number, *gpu)).or_insert([0; ENGINES]);
                    sums.iter_mut().zip(used.times).for_each(|(sum, ns)| *sum = sum.saturating_add(ns));
                }
            }
        }
        for (zone, engines) in self.setup.zones.iter().zip(&mut self.engines) {
            let of_zone = |gpu: &GpuId| match zone.id.kind {
                ZoneKind::Gpu(own) => own == *gpu,
                ZoneKind::Uncore => matches!(gpu, GpuId::Integrated(_)),
                _ => false,
            };
            let mut told = false;
            for (_, worked) in raw.gpus.iter().filter(|(gpu, _)| of_zone(gpu)) {
                told = true;
                engines.worked |= !worked.rest;
                for used in &worked.uses {
                    claim(&mut engines.claims, (used.holder, used.job), self.rules.engines.weigh(&used.times));
                }
            }
            // Where nothing tells, graphics may have worked. What is late of a board comes with its joules.
            engines.worked |= !told && zone.id.kind == ZoneKind::Uncore;
        }
    }

    /// One reading of a board's counter. While somebody who used it has not been heard of it waits, and the next reading covers this tick too.
    pub(super) fn step_gpu(&mut self, index: usize, raw: &RawTick) -> Step {
        let kind = self.setup.zones[index].id.kind;
        let worked = raw.gpus.iter().find(|(gpu, _)| ZoneKind::Gpu(*gpu) == kind).map(|(_, worked)| worked);
        self.engines[index].waits = None;
        if worked.is_some_and(|worked| worked.anew) {
            self.counters[index].restart();
        }
        let step = match raw.zones.get(index) {
            Some(Ok(value)) => {
                self.engines[index].failing = None;
                let read = self.still_moves(index, *value, raw.gpu_ns);
                if let Err(error) = &read {
                    self.trouble_of_gpu(index, error);
                }
                if read.is_ok() && worked.is_some_and(|worked| worked.waits) {
                    self.engines[index].waits = Some(self.engines[index].watts);
                    return Step::Lost;
                }
                self.counters[index].advance(read.ok(), raw.gpu_ns)
            }
            Some(Err(error)) => {
                // That it is lost its source says at once; one reading that goes on failing is said here.
                let since = *self.engines[index].failing.get_or_insert(raw.energy_ns);
                if raw.energy_ns.saturating_sub(since) >= STILL_NS {
                    self.trouble_of_gpu(index, error);
                }
                self.counters[index].advance(None, raw.gpu_ns)
            }
            None => Step::Lost,
        };
        self.engines[index].watts = match step {
            Step::Grew(joules, ns) => joules.watts_over(ns),
            _ => None,
        };
        self.count_reject(index, step);
        step
    }

    fn trouble_of_gpu(&mut self, index: usize, error: &str) {
        let place = &self.setup.zones[index].place;
        self.gpu_trouble.get_or_insert_with(|| format!("{place}: {error}"));
    }

    /// Takes a zone that lies inside a root up to the moment at which the root divides it.
    pub(super) fn hold_inside(&mut self, index: usize, step: Step) {
        let engines = &mut self.engines[index];
        match step {
            Step::Grew(joules, ns) => {
                engines.rest.observe(ns, joules.0, !engines.worked);
                engines.worked = false;
                let rest = engines.rest.estimate().map_or(Microjoules::ZERO, |rest| Microjoules::of(rest.uw, ns));
                engines.joules += joules - rest;
            }
            Step::Doubted(_) | Step::Lost => {}
            Step::Start | Step::Rebased(_) => {
                (engines.claims, engines.joules) = (UseClaims::new(), Microjoules::ZERO);
            }
        }
    }

    /// Divides a GPU's joules by who used its engines.
    pub(super) fn divide_gpu(&mut self, index: usize, id: AccountId, root: &mut Root, now: &Conditions) -> Given {
        let engines = &mut self.engines[index];
        let claims = std::mem::take(&mut engines.claims);
        let weights = by_holder(&claims);
        let mut closed = close_by_use(now.measured, now.idle, &weights);
        if self.rules.idle == IdlePolicy::Proportional {
            // What falls to nobody who is known stays idle, as what falls to the system does.
            let weights: Vec<_> =
                weights.iter().map(|(who, weight)| (who.unwrap_or(Holder::System), *weight)).collect();
            share_idle(&mut closed, &summed(weights));
        }
        engines.rest.observe(now.length_ns, now.measured.0, !engines.worked);
        engines.worked = false;
        root.power_uw = microwatts(now.measured, now.length_ns);
        self.streams.divide_by_use(id.origin, &closed, &claims);
        Given { id, closed, bounds: BTreeMap::new(), unbounded: BTreeSet::new(), length_ns: now.length_ns }
    }

    /// True for a zone of a GPU that lies inside a root, which divides its joules by who used engines.
    pub(super) fn is_inside(&self, index: usize) -> bool {
        let id = self.setup.zones[index].id;
        self.roots[index].is_none()
            && self.setup.zones.iter().zip(&self.roots).any(|(outer, root)| root.is_some() && holds_gpu(outer.id, id))
    }

    /// A container's series end: what it used waits under another name.
    pub(super) fn end_engines(&mut self, number: u32) {
        self.engine_times.retain(|(container, _), _| *container != number);
        for engines in &mut self.engines {
            let ended = Some(Holder::Container(number));
            let of_ended: Vec<_> = engines.claims.extract_if(.., |(who, _), _| *who == ended).collect();
            for (_, weight) in of_ended {
                claim(&mut engines.claims, (Some(Holder::Retired), None), weight);
            }
        }
    }

    /// A job is shown no more: what it used waits as its container's.
    pub(super) fn fold_job(&mut self, number: u32) {
        for engines in &mut self.engines {
            let of_job: Vec<_> = engines.claims.extract_if(.., |(_, job), _| *job == Some(number)).collect();
            for ((who, _), weight) in of_job {
                claim(&mut engines.claims, (who, None), weight);
            }
        }
    }

    /// Divides what GPUs inside a root used; takes it off `rest`, of which `idle` is not theirs.
    pub(super) fn divide_inside(
        &mut self,
        id: AccountId,
        rest: &mut Microjoules,
        idle: Microjoules,
    ) -> Vec<(Closed<Holder>, UseClaims)> {
        let mut parts = Vec::new();
        for (zone, engines) in self.setup.zones.iter().zip(&mut self.engines) {
            if holds_gpu(id.zone, zone.id) {
                let claims = std::mem::take(&mut engines.claims);
                // What does not fit, because a look was late and now covers two ticks, is taken from the next.
                let joules = engines.joules.min(*rest - idle);
                engines.joules = engines.joules - joules;
                *rest = *rest - joules;
                parts.push((close_by_use(joules, Microjoules::ZERO, &by_holder(&claims)), claims));
            }
        }
        parts
    }
}

fn claim(claims: &mut UseClaims, who: (Option<Holder>, Option<u32>), weight: u64) {
    let sum = claims.entry(who).or_default();
    *sum = sum.saturating_add(weight);
}

/// The same without jobs, in order.
fn by_holder(claims: &UseClaims) -> Vec<(Option<Holder>, u64)> {
    summed(claims.iter().map(|((who, _), weight)| (*who, *weight)))
}

fn summed<K: Ord>(weights: impl IntoIterator<Item = (K, u64)>) -> Vec<(K, u64)> {
    let mut sums: BTreeMap<K, u64> = BTreeMap::new();
    for (who, weight) in weights {
        let sum = sums.entry(who).or_default();
        *sum = sum.saturating_add(weight);
    }
    sums.into_iter().collect()
}
