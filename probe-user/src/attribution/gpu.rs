//! GPU zones: their energy is attributed by the use of their engines, which is independent of CPU
//! time.
//!
//! A board is an accounting root of its own. A zone inside another root (the integrated graphics of
//! a package, or boards below a sensor of the whole platform) is taken out of that root's dynamic
//! energy and split by engine use; only the remainder is split by CPU time.

use std::collections::BTreeMap;

use units::Microjoules;

use crate::{
    containers::ChargeTarget,
    energy::{
        counter::Step,
        zone::{Zone, ZoneId, ZoneKind, contains_gpu},
    },
    gpu::{EngineUsage, GpuUsage, engines::EngineWeights},
    host::gpu_id::GpuId,
    ledger::{
        IdlePolicy, Split, gpu_idle::GpuIdle, share_idle, split_by_engine_use, streams::EngineClaims,
        uncertainty::Conditions,
    },
};

/// State of one GPU zone between two ticks.
#[derive(Default)]
pub(super) struct GpuZone {
    /// Engine use whose energy has not been read yet.
    pub(super) claims: EngineClaims,
    /// True when an engine worked since the last energy reading.
    busy: bool,
    /// Of a zone inside a root: dynamic energy that the root has not split yet.
    dynamic: Microjoules,
    pub(super) idle: GpuIdle,
    /// Time of the first failed reading in a row.
    pub(super) failing_since: Option<u64>,
    /// Set while the zone waits for the usage of a process: the power to show meanwhile.
    pub(super) waiting: Option<Option<f64>>,
    /// While it waits: measured energy since the last split.
    pub(super) unsettled: Option<Microjoules>,
    /// Mean power over the last energy reading.
    pub(super) watts: Option<f64>,
}

impl GpuZone {
    pub(super) fn new(idle: GpuIdle) -> Self {
        Self { idle, ..Self::default() }
    }

    /// Adds the engine use of a tick. Its energy may be read in a later tick.
    pub(super) fn add_usage(&mut self, zone: ZoneId, gpus: &[(GpuId, GpuUsage)], weights: &EngineWeights) {
        let in_zone = |gpu: &GpuId| match zone.kind {
            ZoneKind::Gpu(own) => own == *gpu,
            ZoneKind::Uncore => matches!(gpu, GpuId::Integrated(_)),
            _ => false,
        };
        let mut reported = false;
        for (_, usage) in gpus.iter().filter(|(gpu, _)| in_zone(gpu)) {
            reported = true;
            self.busy |= !usage.idle;
            for EngineUsage { charge_target, job, times } in &usage.uses {
                add_claim(&mut self.claims, (*charge_target, *job), weights.weigh(times));
            }
        }
        // Integrated graphics without any usage report may have worked. A late report of a board
        // arrives with its energy.
        self.busy |= !reported && zone.kind == ZoneKind::Uncore;
    }

    /// Adds a reading of a zone that lies inside a root, until the root is split.
    pub(super) fn accumulate(&mut self, step: Step) {
        match step {
            Step::Grew(energy, ns) => {
                self.observe_idle(ns, energy);
                let idle = self.idle.estimate().map_or(Microjoules::ZERO, |idle| Microjoules::from_power(idle.uw, ns));
                self.dynamic += energy - idle;
            }
            Step::Rejected(_) | Step::Failed => {}
            Step::Start | Step::Rebased(_) => {
                (self.claims, self.dynamic) = (EngineClaims::new(), Microjoules::ZERO);
            }
        }
    }

    /// Splits the energy of a board by engine use. Returns the claims too, for the jobs.
    pub(super) fn split(&mut self, now: &Conditions, policy: IdlePolicy) -> (Split<ChargeTarget>, EngineClaims) {
        let claims = std::mem::take(&mut self.claims);
        let weights = by_target(&claims);
        let mut split = split_by_engine_use(now.measured, now.idle, &weights);
        if policy == IdlePolicy::Proportional {
            // The part of unknown processes stays idle, like the part of the system.
            let weights = weights.iter().map(|(target, weight)| (target.unwrap_or(ChargeTarget::System), *weight));
            share_idle(&mut split, &sum_by_key(weights));
        }
        self.observe_idle(now.length_ns, now.measured);
        (split, claims)
    }

    fn observe_idle(&mut self, ns: u64, energy: Microjoules) {
        self.idle.observe(ns, energy.0, !self.busy);
        self.busy = false;
    }

    /// Moves the claims of a container whose series end to the retired row.
    pub(super) fn retire_container(&mut self, number: u32) {
        let container = Some(ChargeTarget::Container(number));
        let claims: Vec<_> = self.claims.extract_if(.., |(target, _), _| *target == container).collect();
        for (_, weight) in claims {
            add_claim(&mut self.claims, (Some(ChargeTarget::Retired), None), weight);
        }
    }

    /// Moves the claims of a removed job to its container.
    pub(super) fn remove_job(&mut self, number: u32) {
        let claims: Vec<_> = self.claims.extract_if(.., |(_, job), _| *job == Some(number)).collect();
        for ((target, _), weight) in claims {
            add_claim(&mut self.claims, (target, None), weight);
        }
    }
}

/// Splits the energy of the GPU zones inside `root` by engine use, and subtracts it from
/// `remaining`, the root's energy. `idle` is the idle part of `remaining`, which is not theirs.
pub(super) fn split_inside(
    zones: &[Zone],
    gpu_zones: &mut [GpuZone],
    root: ZoneId,
    remaining: &mut Microjoules,
    idle: Microjoules,
) -> Vec<(Split<ChargeTarget>, EngineClaims)> {
    let mut parts = Vec::new();
    for (_, gpu) in zones.iter().zip(gpu_zones).filter(|(zone, _)| contains_gpu(root, zone.id)) {
        let claims = std::mem::take(&mut gpu.claims);
        // After a late reading the zone covers two ticks and may exceed this one: the surplus is
        // split in the next tick.
        let energy = gpu.dynamic.min(*remaining - idle);
        gpu.dynamic = gpu.dynamic - energy;
        *remaining = *remaining - energy;
        parts.push((split_by_engine_use(energy, Microjoules::ZERO, &by_target(&claims)), claims));
    }
    parts
}

fn add_claim(claims: &mut EngineClaims, key: (Option<ChargeTarget>, Option<u32>), weight: u64) {
    let sum = claims.entry(key).or_default();
    *sum = sum.saturating_add(weight);
}

/// The claims of each target, all jobs together, in order.
fn by_target(claims: &EngineClaims) -> Vec<(Option<ChargeTarget>, u64)> {
    sum_by_key(claims.iter().map(|((target, _), weight)| (*target, *weight)))
}

fn sum_by_key<K: Ord>(weights: impl IntoIterator<Item = (K, u64)>) -> Vec<(K, u64)> {
    let mut sums: BTreeMap<K, u64> = BTreeMap::new();
    for (key, weight) in weights {
        let sum = sums.entry(key).or_default();
        *sum = sum.saturating_add(weight);
    }
    sums.into_iter().collect()
}
