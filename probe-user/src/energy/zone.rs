//! What an energy counter measures, and which counters may be summed.
//!
//! package contains core and uncore; DRAM and GPUs stand beside package; psys contains all of it. So the accounting roots are
//! the packages, their DRAM and the GPUs, each once: everything else is published and never summed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{gpu::engines::GpuId, topology::PackageId, units::Unit};

/// Where a joule's figure came from; the label `source`. A modelled joule is never shown as a measured one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The kernel's `power` PMU.
    Perf,
    /// `/sys/class/powercap`.
    Powercap,
    /// The registers themselves.
    Msr,
    /// A sensor of the board or the processor under `/sys/class/hwmon`.
    Hwmon,
    /// NVIDIA's counter of a board's energy.
    Nvml,
    /// NVIDIA's figure of a board's power, integrated here: the board has no counter.
    NvmlPower,
    /// A library that stands in for NVIDIA's in tests and demonstrations; no hardware was asked.
    Fake,
    /// What the kernel's graphics drivers say. They tell use of engines, and no joules.
    Drm,
    /// A power curve; no hardware was asked.
    Model,
    /// A recording; whatever it was recorded from.
    Replay,
}

impl Origin {
    /// What a model is called wherever it could be taken for a measurement.
    pub const MODEL: &'static str = "model";

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Perf => "perf",
            Self::Powercap => "powercap",
            Self::Msr => "msr",
            Self::Hwmon => "hwmon",
            Self::Nvml => "nvml",
            Self::NvmlPower => "nvml_power",
            Self::Fake => "fake",
            Self::Drm => "drm",
            Self::Model => Self::MODEL,
            Self::Replay => "replay",
        }
    }

    /// True for the ways to read RAPL, whose joules the `rapl_*` names may carry.
    #[must_use]
    pub fn is_rapl(self) -> bool {
        matches!(self, Self::Perf | Self::Powercap | Self::Msr)
    }

    /// False where the joules are a calculation, or nobody's here and now.
    #[must_use]
    pub fn is_measured(self) -> bool {
        !matches!(self, Self::Model | Self::Replay | Self::Fake)
    }
}

/// The part of the machine a counter covers; the label `zone`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ZoneKind {
    /// A processor package: cores, caches, memory controller.
    Package,
    /// The memory of a package; on servers not inside its package zone.
    Dram,
    /// The cores of a package.
    Core,
    /// What of a client package is not core: mostly the integrated GPU.
    Uncore,
    /// The whole platform.
    Psys,
    /// A graphics board, memory and all.
    Gpu(GpuId),
}

impl ZoneKind {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Package => "package",
            Self::Dram => "dram",
            Self::Core => "core",
            Self::Uncore => "uncore",
            Self::Psys => "psys",
            Self::Gpu(_) => "gpu",
        }
    }
}

/// Which counter: a zone of a package, or of the whole platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ZoneId {
    /// `None` for psys and GPUs, which belong to no package.
    pub package: Option<PackageId>,
    /// What it covers there.
    pub kind: ZoneKind,
}

impl ZoneId {
    /// The label `package`: `0`, `0-die-1`, the name of a GPU, or `all` for the platform.
    #[must_use]
    pub fn package_label(&self) -> String {
        if let ZoneKind::Gpu(gpu) = self.kind {
            return gpu.to_string();
        }
        self.package.map_or_else(|| "all".to_owned(), |package| package.to_string())
    }
}

impl fmt::Display for ZoneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let ZoneKind::Gpu(gpu) = self.kind {
            return gpu.fmt(f);
        }
        write!(f, "{} of package {}", self.kind.as_str(), self.package_label())
    }
}

/// How far a counter counts before it starts again at zero, in its own counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Range {
    /// Modulo this many.
    Wraps(u64),
    /// Never within the life of a machine.
    Endless,
    /// The range file is missing or unreadable: a fall cannot be told from a wrap.
    Unknown,
}

/// What is too much to be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ceiling {
    /// The hardware's own power limit in microwatts.
    Limit(u64),
    /// No limit is known: what the zone used lately tells, and below this many microwatts anything is believed.
    Learned(u64),
    /// The figure is made here and cannot jump.
    None,
}

impl Ceiling {
    /// For a zone that states no limit. The floors are meant to be above what any one such zone uses, so that the first load
    /// after a quiet time is believed; they are an assumption, no data sheet's figure.
    #[must_use]
    pub fn learned(kind: ZoneKind) -> Self {
        Self::Learned(match kind {
            ZoneKind::Package | ZoneKind::Core | ZoneKind::Uncore => 1_000_000_000,
            ZoneKind::Gpu(_) => 2_000_000_000,
            ZoneKind::Dram => 200_000_000,
            ZoneKind::Psys => 4_000_000_000,
        })
    }
}

/// RAPL updates every 0.976 ms (Intel SDM 14.10.3).
pub const UPDATE_NS: u64 = 1_000_000;

/// One counter that a source reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// What it measures.
    pub id: ZoneId,
    /// Microjoules in one count.
    pub unit: Unit,
    /// Its range.
    pub range: Range,
    /// Microjoules in the smallest step that the hardware makes, rounded up; at least one.
    pub step_uj: u64,
    /// How old a reading may be: how often the counter is updated, or the time that a sensor averages over.
    pub update_ns: u64,
    /// What is too much.
    pub ceiling: Ceiling,
    /// Where it is read, for people.
    pub place: String,
    /// How its joules are obtained, where that is another way than the machine's other zones have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

impl Zone {
    /// A zone whose counts are microjoules, with no limit known.
    #[must_use]
    pub fn microjoules(id: ZoneId, range: Range, place: String) -> Self {
        let ceiling = Ceiling::learned(id.kind);
        Self { id, unit: Unit::MICROJOULE, range, step_uj: 1, update_ns: UPDATE_NS, ceiling, place, origin: None }
    }
}

/// True for each zone whose joules are divided, and whose sum is the machine's measured energy: packages with their memory, and GPUs.
/// A sensor of the whole platform is one only where there are no packages; then it holds GPUs too.
#[must_use]
pub fn accounting_roots(zones: &[Zone]) -> Vec<bool> {
    let packages = zones.iter().any(|zone| zone.id.kind == ZoneKind::Package);
    let platform = !packages && zones.iter().any(|zone| zone.id.kind == ZoneKind::Psys);
    zones
        .iter()
        .map(|zone| match zone.id.kind {
            ZoneKind::Package => true,
            ZoneKind::Dram => packages,
            ZoneKind::Psys => !packages,
            ZoneKind::Gpu(_) => !platform,
            ZoneKind::Core | ZoneKind::Uncore => false,
        })
        .collect()
}

/// True where `outer`'s joules hold `inner`'s, and `inner`'s are those of GPUs: what of the root is shared by who used engines.
#[must_use]
pub fn holds_gpu(outer: ZoneId, inner: ZoneId) -> bool {
    match (outer.kind, inner.kind) {
        // On clients "uncore" is the plane of the graphics; servers have no such zone (Intel SDM 14.10.4).
        (ZoneKind::Package, ZoneKind::Uncore) => outer.package == inner.package,
        (ZoneKind::Psys, ZoneKind::Gpu(_)) => true,
        _ => false,
    }
}
