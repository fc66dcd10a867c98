//! What an energy counter measures, and which counters may be summed.
//!
//! package contains core and uncore; DRAM stands beside package; psys contains all of it. So the accounting roots are
//! the packages and their DRAM, each once: everything else is published and never summed.

use std::fmt;

use crate::topology::PackageId;

/// Where a joule's figure came from; the label `source`. A modelled joule is never shown as a measured one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// `/sys/class/powercap`.
    Powercap,
    /// A power curve; no hardware was asked.
    Model,
}

impl Origin {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Powercap => "powercap",
            Self::Model => "model",
        }
    }

    /// False where the joules are a calculation.
    #[must_use]
    pub fn is_measured(self) -> bool {
        self != Self::Model
    }
}

/// The part of the machine a counter covers; the label `zone`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

    /// True for the zones whose joules are divided, and whose sum is the machine's measured energy.
    #[must_use]
    pub fn is_accounting_root(self) -> bool {
        matches!(self, Self::Package | Self::Dram)
    }
}

/// Which counter: a zone of a package, or of the whole platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

/// How far a counter counts before it starts again at zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Modulo this many microjoules.
    Wraps(u64),
    /// Never within the life of a machine.
    Endless,
    /// The range file is missing or unreadable: a fall cannot be told from a wrap.
    Unknown,
}

/// One counter that a source reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// What it measures.
    pub id: ZoneId,
    /// Its range.
    pub range: Range,
    /// Where it is read, for people.
    pub place: String,
}
