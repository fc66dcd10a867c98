//! Types of a tick: raw counters, raw totals and the changes of cgroups, containers and jobs.
//! Nothing in it is computed.
//!
//! This is the input of the attribution and the content of a recording. It is all that passes from
//! the part of the probe that touches the machine to the part that is arithmetic.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    cgroup::CgroupKey,
    containers::{ChargeTarget, Container},
    cpu::{CpuReading, Tier, TierCapabilities},
    energy::zone::{Origin, Zone, ZoneKind},
    gpu::GpuUsage,
    host::{gpu_id::GpuId, topology::PackageId},
    jobs::{Job, stage::StageTimes},
};

/// Properties of the machine and its counters that hold for every tick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Name of the host; empty where a recording does not contain it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// The source of the energy; `None` without one.
    pub origin: Option<Origin>,
    /// The counters, in the order of [`RawTick::zones`]. Those of GPUs follow as
    /// [`TickChanges::zones`].
    pub zones: Vec<Zone>,
    /// Idle power of each counter in microwatts, where it is a property of the source.
    pub idle_uw: Vec<Option<u64>>,
    /// The packages, in the order of all figures by package.
    pub packages: Vec<PackageId>,
    /// Package index of each CPU; `None` for a CPU that was offline.
    #[serde(rename = "places")]
    pub cpu_packages: Vec<Option<usize>>,
    /// Weight of a second of each CPU, in thousandths of a performance core; empty when all CPUs
    /// are of one kind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpu_weights: Vec<u32>,
    /// True when two CPUs share a core.
    pub smt: bool,
    /// Maximum delay of the CPU time of a running task in a reading: one period of the scheduler's
    /// tick, or less where the tier knows how long the task has run since.
    pub lag_ns: u64,
    /// The tier of CPU time; `None` when CPU time is not collected.
    #[serde(deserialize_with = "any_version")]
    pub cpu: Option<CpuTierInfo>,
}

/// The tier that reads CPU time, and its properties on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTierInfo {
    pub tier: Tier,
    #[serde(rename = "knows")]
    pub capabilities: TierCapabilities,
    /// Why no better tier is in use; empty when there is none.
    #[serde(default)]
    pub reason: String,
}

impl CpuTierInfo {
    /// The tier `switch`, with or without time next to a busy sibling.
    #[must_use]
    pub fn switch_tier(siblings: bool) -> Self {
        let capabilities = TierCapabilities { cpus: true, siblings };
        Self { tier: Tier::Switch, capabilities, reason: String::new() }
    }
}

/// Version 1 of recordings has a boolean here: true for the tier `switch` without siblings.
fn any_version<'de, D: Deserializer<'de>>(from: D) -> Result<Option<CpuTierInfo>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Version {
        First(bool),
        Later(Option<CpuTierInfo>),
    }
    Ok(match Version::deserialize(from)? {
        Version::First(false) => None,
        Version::First(true) => Some(CpuTierInfo::switch_tier(false)),
        Version::Later(info) => info,
    })
}

impl Setup {
    /// True when the energy of the machine is modelled, here or in the recording. That of GPUs
    /// never is.
    #[must_use]
    pub fn modelled(&self) -> bool {
        self.origin == Some(Origin::Model)
    }

    /// The origin of the energy of the machine, GPUs excepted; `None` without a source.
    #[must_use]
    pub fn machine_origin(&self) -> Option<Origin> {
        let zone = self.zones.iter().find(|zone| !matches!(zone.id.kind, ZoneKind::Gpu(_)));
        self.origin.map(|origin| zone.and_then(|zone| zone.origin).unwrap_or(origin))
    }

    /// The source of a zone's energy.
    #[must_use]
    pub fn origin_of(&self, zone: &Zone) -> Option<Origin> {
        zone.origin.or(self.origin)
    }

    /// Package index of each column of a CPU reading, and the number of packages. A tier without
    /// per-CPU time has one column.
    #[must_use]
    pub fn usage_columns(&self) -> (Vec<Option<usize>>, usize) {
        if self.has_per_cpu_usage() { (self.cpu_packages.clone(), self.packages.len()) } else { (vec![Some(0)], 1) }
    }

    /// True when CPU time is known by CPU.
    #[must_use]
    pub fn has_per_cpu_usage(&self) -> bool {
        self.cpu.as_ref().is_none_or(|cpu| cpu.capabilities.cpus)
    }

    /// The packages of CPU usage, in order; a single `None` where usage is not known by package. A
    /// machine with one package always has it.
    #[must_use]
    pub fn usage_packages(&self) -> Vec<Option<PackageId>> {
        if self.has_per_cpu_usage() || self.packages.len() == 1 {
            self.packages.iter().copied().map(Some).collect()
        } else {
            vec![None]
        }
    }

    /// Number of CPUs of each package.
    #[must_use]
    pub fn cpus(&self) -> Vec<u64> {
        let mut cpus = vec![0; self.packages.len()];
        for package in self.cpu_packages.iter().flatten() {
            if let Some(count) = cpus.get_mut(*package) {
                *count += 1;
            }
        }
        cpus
    }
}

/// Another energy source: its counters take the place of those of the source before, and energy is
/// counted from its first reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceChange {
    pub origin: Origin,
    /// Its counters, in the order of [`RawTick::zones`], in which those of GPUs follow.
    pub zones: Vec<Zone>,
    /// Idle power of each counter in microwatts, where it is a property of the source.
    pub idle_uw: Vec<Option<u64>>,
}

/// Changes of cgroups, containers, counters and jobs since the tick before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TickChanges {
    /// Cgroups whose slots in the kernel were freed before this reading.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub departed: Vec<CgroupKey>,
    /// The energy source that is read from this tick on, when it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceChange>,
    /// New counters: of GPUs, whose drivers open after the start, or are loaded later.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<Zone>,
    /// Package index of each CPU, after a CPU came online.
    #[serde(rename = "places", skip_serializing_if = "Option::is_none")]
    pub cpu_packages: Option<Vec<Option<usize>>>,
    /// New or changed charge targets of cgroups.
    #[serde(rename = "holders", skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<(CgroupKey, ChargeTarget)>,
    /// Containers that are new or have a new name.
    #[serde(rename = "shown", skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<Arc<Container>>,
    /// New or changed CPU reservations of containers, in thousandths of a CPU.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reserved: Vec<(u32, u64)>,
    /// Containers whose series end after this tick.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ended: Vec<u32>,
    /// Number of containers since the start that got no series.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropped: u64,
    /// Number of cgroups since the start that ran and could not be identified.
    #[serde(skip_serializing_if = "is_zero")]
    pub unnamed: u64,
    /// Jobs that started.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<Job>,
    /// Running jobs that moved into another cgroup: number, charge target, and the container number
    /// of the job's own row.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub jobs_moved: Vec<(u32, ChargeTarget, Option<u32>)>,
    /// Jobs that ended: their CPU time is final.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub jobs_ended: Vec<u32>,
    /// Jobs that are no longer shown after this tick.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub jobs_gone: Vec<u32>,
    /// Number of jobs since the start that exceeded the limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub jobs_dropped: u64,
    /// Number of cgroup scans since the start that were incomplete.
    #[serde(skip_serializing_if = "is_zero")]
    pub scans_incomplete: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// One tick of raw data. Times are nanoseconds on the monotonic clock since the start, except
/// `unix_ns`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawTick {
    /// Wall clock at the end of the energy reading, in whole microseconds.
    pub unix_ns: i64,
    /// Start of the energy reading.
    pub began_ns: u64,
    /// End of the energy reading, which is the end of the tick.
    pub energy_ns: u64,
    /// End of the CPU reading.
    pub cpu_ns: u64,
    /// Time of the GPU reading.
    pub gpu_ns: u64,
    /// CPU time of the probe's own process since its start.
    pub own_ns: u64,
    /// CPU time of the eBPF programs in the time of other tasks, since it is known: nanoseconds per
    /// run, as measured at the start, times runs, renewed every few ticks.
    pub programs_ns: Option<u64>,
    /// Time for which the machine was suspended since the tick before. The other times do not
    /// include it, except `unix_ns`.
    pub suspended_ns: u64,
    /// Every counter, or the error of its reading.
    pub zones: Vec<Result<u64, String>>,
    /// Cycles asleep and all cycles of each package since the start of the counters; empty without
    /// counters.
    pub residency: Vec<Option<[u64; 2]>>,
    /// CPU time, or the error of its reading; `None` when it is not collected.
    pub cpu: Option<Result<CpuReading, String>>,
    /// CPU nanoseconds of each job since its start.
    pub jobs: Vec<(u32, u64)>,
    /// CPU nanoseconds of the parts of jobs since their start, where they changed: their sum may
    /// differ from the job's by what ran between the two readings.
    pub stages: Vec<(u32, StageTimes)>,
    /// Use of each GPU since the tick before.
    pub gpus: Vec<(GpuId, GpuUsage)>,
    pub changes: TickChanges,
}

impl RawTick {
    /// A copy of a tick in the buffers of `self`, whose CPU reading is the largest part of a tick
    /// and as large in each.
    #[must_use]
    pub(crate) fn with_copy_of(self, other: &Self) -> Self {
        let cpu = match (self.cpu, &other.cpu) {
            (Some(Ok(mut reading)), Some(Ok(other))) => {
                reading.copy_from(other);
                Some(Ok(reading))
            }
            (_, other) => other.clone(),
        };
        Self {
            cpu,
            unix_ns: other.unix_ns,
            began_ns: other.began_ns,
            energy_ns: other.energy_ns,
            cpu_ns: other.cpu_ns,
            gpu_ns: other.gpu_ns,
            own_ns: other.own_ns,
            programs_ns: other.programs_ns,
            suspended_ns: other.suspended_ns,
            zones: other.zones.clone(),
            residency: other.residency.clone(),
            jobs: other.jobs.clone(),
            stages: other.stages.clone(),
            gpus: other.gpus.clone(),
            changes: other.changes.clone(),
        }
    }
}
