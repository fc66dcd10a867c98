//! Energy zones: what a counter covers, and which counters may be summed.
//!
//! A package contains core and uncore; DRAM and GPUs are separate from it; psys and machine
//! contain everything. So the accounting roots are the packages, their DRAM and the GPUs, each
//! once. All other zones are exported and never summed.

use std::fmt;

use serde::{Deserialize, Serialize};
use units::{Unit, provenance::Unmeasured};

use super::model::Interval;
use crate::host::{gpu_id::GpuId, topology::PackageId};

/// Source of energy; the label `source`. Energy that was not measured is never shown as measured:
/// [`Origin::unmeasured`] has the banner of every surface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The kernel's `power` PMU.
    Perf,
    /// `/sys/class/powercap`.
    Powercap,
    /// A powercap tree that a program writes, and marks as such. Its zones have this origin; it is
    /// read like any other tree, as [`Origin::Powercap`].
    Simulated,
    /// The model-specific registers.
    Msr,
    /// A sensor of the board or the processor under `/sys/class/hwmon`.
    Hwmon,
    /// Power domains of Arm's firmware, integrated by the probe. Read with the sensors of the
    /// board.
    Scmi,
    /// Rails of a Raspberry Pi's power management chip, integrated by the probe. Read with the
    /// sensors of the board.
    Pmic,
    /// The probe of the host, in a virtual machine: what the host attributes to it.
    Host,
    /// NVIDIA's energy counter of a board.
    Nvml,
    /// NVIDIA's power of a board, integrated by the probe, because the board has no energy counter.
    NvmlPower,
    /// The stand-in for NVIDIA's library in tests and demonstrations, without hardware.
    Fake,
    /// The graphics drivers of the kernel: engine time, and the energy counter of a board.
    Drm,
    /// A board's power from its graphics driver, integrated by the probe, because the board has no
    /// energy counter.
    DrmPower,
    /// A power model, without hardware.
    Model,
    /// A recording, whatever its source was.
    Replay,
}

impl Origin {
    /// Label value of a model.
    pub const MODEL: &'static str = Unmeasured::Model.source();

    /// Value of the label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Perf => "perf",
            Self::Powercap => "powercap",
            Self::Simulated => Unmeasured::Simulated.source(),
            Self::Msr => "msr",
            Self::Hwmon => "hwmon",
            Self::Scmi => "scmi",
            Self::Pmic => "pmic",
            Self::Host => "host",
            Self::Nvml => "nvml",
            Self::NvmlPower => "nvml_power",
            Self::Fake => Unmeasured::Fake.source(),
            Self::Drm => "drm",
            Self::DrmPower => "drm_power",
            Self::Model => Self::MODEL,
            Self::Replay => Unmeasured::Replay.source(),
        }
    }

    /// True for the sources that read RAPL. Only their energy is exported under the names `rapl_*`.
    #[must_use]
    pub fn is_rapl(self) -> bool {
        matches!(self, Self::Perf | Self::Powercap | Self::Msr)
    }

    /// Why this energy is not measured; `None` when it is.
    #[must_use]
    pub fn unmeasured(self) -> Option<Unmeasured> {
        match self {
            Self::Model => Some(Unmeasured::Model),
            Self::Simulated => Some(Unmeasured::Simulated),
            Self::Fake => Some(Unmeasured::Fake),
            Self::Replay => Some(Unmeasured::Replay),
            Self::Perf
            | Self::Powercap
            | Self::Msr
            | Self::Hwmon
            | Self::Scmi
            | Self::Pmic
            | Self::Host
            | Self::Nvml
            | Self::NvmlPower
            | Self::Drm
            | Self::DrmPower => None,
        }
    }

    /// False for energy that is modelled, replayed or simulated.
    #[must_use]
    pub fn is_measured(self) -> bool {
        self.unmeasured().is_none()
    }

    /// What a recording's energy of this origin is when it is replayed: a replay where it was
    /// measured for the recording; otherwise as little measured as before.
    #[must_use]
    pub fn replayed(self) -> Self {
        if self.is_measured() { Self::Replay } else { self }
    }

    /// The name under which the state of the source is shown: that of the reader, not of
    /// what wrote the counters.
    #[must_use]
    pub fn reader(self) -> &'static str {
        match self {
            Self::Simulated => Self::Powercap.as_str(),
            Self::NvmlPower | Self::Fake => Self::Nvml.as_str(),
            Self::DrmPower => Self::Drm.as_str(),
            Self::Scmi | Self::Pmic => Self::Hwmon.as_str(),
            other => other.as_str(),
        }
    }
}

/// The part of the machine that a counter covers; the label `zone`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ZoneKind {
    /// A processor package: cores, caches, memory controller.
    Package,
    /// The memory of a package. On servers the zone of the package does not include it.
    Dram,
    /// The cores of a package.
    Core,
    /// Client packages: everything except the cores, mostly the integrated GPU.
    Uncore,
    /// The whole platform.
    Psys,
    /// The whole machine at the wall, with power supplies and fans, as a model estimates it.
    Machine,
    /// A graphics board, including its memory.
    Gpu(GpuId),
}

impl ZoneKind {
    /// Value of the label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Package => "package",
            Self::Dram => "dram",
            Self::Core => "core",
            Self::Uncore => "uncore",
            Self::Psys => "psys",
            Self::Machine => "machine",
            Self::Gpu(_) => "gpu",
        }
    }
}

/// Identity of a counter: a zone of a package, or of the whole platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ZoneId {
    /// `None` for psys, machine and GPUs, which belong to no package, and for a counter of all
    /// packages, or of their memory, together. Only psys contains GPU boards.
    pub package: Option<PackageId>,
    pub kind: ZoneKind,
}

impl ZoneId {
    /// Value of the label `package`: `0`, `0-die-1`, the name of a GPU, or `all` for the platform
    /// and for all packages together.
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

/// Range of a counter before it starts again at zero, in its own unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Range {
    /// Modulo this number of counts.
    Wraps(u64),
    /// No wrap within the life of a machine.
    Endless,
    /// The range file is missing or unreadable: a decrease cannot be distinguished from a wrap.
    Unknown,
}

/// Highest plausible power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ceiling {
    /// The power limit of the hardware in microwatts.
    Limit(u64),
    /// No limit is known: the limit follows the recent power of the zone, and is at least this many
    /// microwatts.
    Learned(u64),
    /// The figure is computed by the probe and cannot jump.
    None,
}

impl Ceiling {
    /// The ceiling of a zone without a known limit. The minima are above the power of any such
    /// zone, so that the first load after an idle time is accepted. They are assumptions and not
    /// from a data sheet.
    #[must_use]
    pub fn learned(kind: ZoneKind) -> Self {
        Self::Learned(match kind {
            ZoneKind::Package | ZoneKind::Core | ZoneKind::Uncore => 1_000_000_000,
            ZoneKind::Gpu(_) => 2_000_000_000,
            ZoneKind::Dram => 200_000_000,
            ZoneKind::Psys | ZoneKind::Machine => 4_000_000_000,
        })
    }
}

/// RAPL updates every 0.976 ms (Intel SDM 14.10.3).
pub const UPDATE_NS: u64 = 1_000_000;

/// A counter of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    pub id: ZoneId,
    /// Microjoules per count.
    pub unit: Unit,
    pub range: Range,
    /// Microjoules in the smallest step of the hardware, rounded up; at least one.
    pub step_uj: u64,
    /// Maximum age of a reading: the update interval of the counter, or the averaging time of a
    /// sensor.
    pub update_ns: u64,
    pub ceiling: Ceiling,
    /// Path or name of the counter, for people.
    #[serde(rename = "place")]
    pub location: String,
    /// The source of its energy, where it differs from the other zones of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// How certain the figures are, where they are estimated and the error is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// Error bound of the figures that the source itself states, in thousandths. The probe adds its
    /// own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_milli: Option<u32>,
}

impl Zone {
    /// A zone that counts microjoules, without a known limit.
    #[must_use]
    pub fn microjoules(id: ZoneId, range: Range, location: String) -> Self {
        let ceiling = Ceiling::learned(id.kind);
        Self {
            id,
            unit: Unit::MICROJOULE,
            range,
            step_uj: 1,
            update_ns: UPDATE_NS,
            ceiling,
            location,
            origin: None,
            interval: None,
            error_milli: None,
        }
    }
}

/// True for each zone whose energy is split among targets: packages with their memory, and GPUs.
/// Their sum is the measured energy of the machine. A sensor of the whole platform is an accounting
/// root only without packages, and then contains the GPUs.
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
            ZoneKind::Core | ZoneKind::Uncore | ZoneKind::Machine => false,
        })
        .collect()
}

/// True when the energy of `outer` includes that of the GPU zone `inner`, which is split by engine
/// use.
#[must_use]
pub fn contains_gpu(outer: ZoneId, inner: ZoneId) -> bool {
    match (outer.kind, inner.kind) {
        // On clients the zone "uncore" is the graphics plane; servers have no such zone (Intel SDM
        // 14.10.4).
        (ZoneKind::Package, ZoneKind::Uncore) => outer.package == inner.package,
        (ZoneKind::Psys, ZoneKind::Gpu(_)) => true,
        _ => false,
    }
}
