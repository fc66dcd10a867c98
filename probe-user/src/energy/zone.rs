//! What an energy counter measures, and which counters may be summed.
//!
//! package contains core and uncore; DRAM stands beside package; psys contains all of it. So the accounting roots are
//! the packages and their DRAM, each once: everything else is published and never summed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{topology::PackageId, units::Unit};

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
        !matches!(self, Self::Model | Self::Replay)
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
        }
    }
}

/// Which counter: a zone of a package, or of the whole platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ZoneId {
    /// `None` for psys, which belongs to no package.
    pub package: Option<PackageId>,
    /// What it covers there.
    pub kind: ZoneKind,
}

impl ZoneId {
    /// The label `package`: `0`, `0-die-1`, or `all` for the platform.
    #[must_use]
    pub fn package_label(&self) -> String {
        self.package.map_or_else(|| "all".to_owned(), |package| package.to_string())
    }
}

impl fmt::Display for ZoneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
}

impl Zone {
    /// A zone whose counts are microjoules, with no limit known.
    #[must_use]
    pub fn microjoules(id: ZoneId, range: Range, place: String) -> Self {
        let ceiling = Ceiling::learned(id.kind);
        Self { id, unit: Unit::MICROJOULE, range, step_uj: 1, update_ns: UPDATE_NS, ceiling, place }
    }
}

/// True for each zone whose joules are divided, and whose sum is the machine's measured energy: packages with their memory.
/// A sensor of the whole platform is one only where there is nothing else, for it holds the others.
#[must_use]
pub fn accounting_roots(zones: &[Zone]) -> Vec<bool> {
    let packages = zones.iter().any(|zone| zone.id.kind == ZoneKind::Package);
    zones
        .iter()
        .map(|zone| match zone.id.kind {
            ZoneKind::Package => true,
            ZoneKind::Dram => packages,
            ZoneKind::Psys => !packages,
            ZoneKind::Core | ZoneKind::Uncore => false,
        })
        .collect()
}
