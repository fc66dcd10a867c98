//! One tick as it was read: raw counters, raw totals and who is who, with nothing computed from them.
//!
//! This is what the accountant works on, what a recording keeps, and all that passes between the two sides of the probe:
//! the one that touches the machine, and the one that is arithmetic.

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    containers::Container,
    cpu::{CgroupKey, Knows, Reading, Tier},
    energy::zone::{Origin, Zone},
    gpu::{Worked, engines::GpuId},
    jobs::Job,
    ledger::Holder,
    topology::PackageId,
};

/// What holds for every tick: the counters, and what the machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Where the joules come from; `None` when nothing gives any.
    pub origin: Option<Origin>,
    /// The counters, in the order of [`RawTick::zones`]; those of GPUs follow as [`News::zones`].
    pub zones: Vec<Zone>,
    /// Idle power of each counter in microwatts, where the source knows it by construction.
    pub idle_uw: Vec<Option<u64>>,
    /// The packages, in the order of everything that is by package.
    pub packages: Vec<PackageId>,
    /// Package index of each CPU; `None` for one that was offline.
    pub places: Vec<Option<usize>>,
    /// True when two CPUs share a core.
    pub smt: bool,
    /// How far the kernel's figure for a running task may be behind: one period of the scheduler's tick.
    pub lag_ns: u64,
    /// How CPU time is collected; `None` when it is not.
    #[serde(deserialize_with = "of_any_age")]
    pub cpu: Option<Collected>,
}

/// How CPU time is collected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// By which tier.
    pub tier: Tier,
    /// What it tells apart.
    pub knows: Knows,
    /// Why no better tier serves; empty when there is none better.
    #[serde(default)]
    pub reason: String,
}

impl Collected {
    /// At each switch, on machines whose CPUs have no siblings, or where those were not told apart.
    #[must_use]
    pub fn at_the_switch(siblings: bool) -> Self {
        Self { tier: Tier::Switch, knows: Knows { cpus: true, siblings }, reason: String::new() }
    }
}

/// The first recordings said no more than whether: then it was at each switch, and siblings were not told apart.
fn of_any_age<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Collected>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Age {
        First(bool),
        Later(Option<Collected>),
    }
    Ok(match Age::deserialize(from)? {
        Age::First(false) => None,
        Age::First(true) => Some(Collected::at_the_switch(false)),
        Age::Later(collected) => collected,
    })
}

impl Setup {
    /// True when the machine's joules are calculated, here or where they were recorded. Those of GPUs never are.
    #[must_use]
    pub fn modelled(&self) -> bool {
        self.origin == Some(Origin::Model)
    }

    /// How the joules of a zone are obtained.
    #[must_use]
    pub fn origin_of(&self, zone: &Zone) -> Option<Origin> {
        zone.origin.or(self.origin)
    }

    /// Package index of each column of a reading, and how many there are: the machine's, or a single one where the tier knows no CPUs.
    #[must_use]
    pub fn columns(&self) -> (Vec<Option<usize>>, usize) {
        if self.knows_cpus() { (self.places.clone(), self.packages.len()) } else { (vec![Some(0)], 1) }
    }

    /// True when it is known on which CPU somebody ran.
    #[must_use]
    pub fn knows_cpus(&self) -> bool {
        self.cpu.as_ref().is_none_or(|cpu| cpu.knows.cpus)
    }

    /// The packages that CPU time is told by, one for each column's worth of a reading; `None` for all of them together. Where there
    /// is only one, it is known.
    #[must_use]
    pub fn told_packages(&self) -> Vec<Option<PackageId>> {
        if self.knows_cpus() || self.packages.len() == 1 {
            self.packages.iter().copied().map(Some).collect()
        } else {
            vec![None]
        }
    }

    /// How many CPUs each package has.
    #[must_use]
    pub fn cpus(&self) -> Vec<u64> {
        let mut cpus = vec![0; self.packages.len()];
        for package in self.places.iter().flatten() {
            if let Some(count) = cpus.get_mut(*package) {
                *count += 1;
            }
        }
        cpus
    }
}

/// What changed among cgroups and containers since the tick before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct News {
    /// Cgroups whose slots in the kernel were freed before this reading.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub departed: Vec<CgroupKey>,
    /// Counters that are there from now on: of GPUs, whose drivers open after the start, or are loaded later.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<Zone>,
    /// Package index of each CPU, when a CPU came online.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub places: Option<Vec<Option<usize>>>,
    /// Who is charged for what a cgroup runs, where that is new.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<(CgroupKey, Holder)>,
    /// Containers that are new, or have a name now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shown: Vec<Container>,
    /// Thousandths of a CPU that a container has reserved, where that is new.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reserved: Vec<(u32, u64)>,
    /// Containers whose series end after this tick.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ended: Vec<u32>,
    /// Containers that got no series since the start.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropped: u64,
    /// Cgroups that ran and could not be named since the start.
    #[serde(skip_serializing_if = "is_zero")]
    pub unnamed: u64,
    /// Jobs that began.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<Job>,
    /// Jobs that ended: what they ran is final now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub jobs_ended: Vec<u32>,
    /// Jobs that are shown no more after this tick.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub jobs_gone: Vec<u32>,
    /// Jobs that found no room since the start.
    #[serde(skip_serializing_if = "is_zero")]
    pub jobs_dropped: u64,
    /// Scans that could not see every cgroup since the start.
    #[serde(skip_serializing_if = "is_zero")]
    pub scans_incomplete: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// One tick as it was read. Times are nanoseconds on the monotonic clock since the start, but for `unix_ns`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawTick {
    /// Wall clock at the end of the energy reading, whole microseconds.
    pub unix_ns: i64,
    /// When the reading of energy began.
    pub began_ns: u64,
    /// When it ended: the moment that the tick's joules end at.
    pub energy_ns: u64,
    /// When the reading of CPU time ended.
    pub cpu_ns: u64,
    /// When the counters of GPUs were read.
    pub gpu_ns: u64,
    /// CPU time of the probe's own process since it began.
    pub own_ns: u64,
    /// Every counter, or why it gave nothing.
    pub zones: Vec<Result<u64, String>>,
    /// CPU time, or why there is none; `None` when it is not collected.
    pub cpu: Option<Result<Reading, String>>,
    /// CPU nanoseconds of each job since it began.
    pub jobs: Vec<(u32, u64)>,
    /// Who used which GPU, since the tick before.
    pub gpus: Vec<(GpuId, Worked)>,
    /// What changed.
    pub news: News,
}
