//! The trait of energy sources, and the inventory of counters of a source.

use std::{io, path::PathBuf};

use super::zone::{Origin, Zone, ZoneId, ZoneKind};
use crate::host::availability::{Reason, Unavailable};

/// The counters that a source found when it was opened. The inventory does not change afterwards.
#[derive(Clone, Debug, Default)]
pub struct SourceInventory {
    pub zones: Vec<Zone>,
    /// Zones that exist and cannot be read, with the reasons.
    pub refused: Vec<(ZoneId, Unavailable)>,
    /// Zones that are left out on purpose (duplicates, counters of a single core), for people.
    pub left_out: Vec<String>,
}

impl SourceInventory {
    pub(super) fn has(&self, id: ZoneId) -> bool {
        self.zones.iter().any(|zone| zone.id == id)
    }

    /// Checks that a package was found. The error is that of the first refused zone, or `absent`
    /// without any.
    pub(super) fn require_packages(&self, absent: impl FnOnce() -> String) -> Result<(), Unavailable> {
        if self.zones.iter().any(|zone| zone.id.kind == ZoneKind::Package) {
            return Ok(());
        }
        let refused = self.refused.iter().find(|(id, _)| id.kind == ZoneKind::Package).or(self.refused.first());
        Err(refused.map_or_else(|| Unavailable::new(Reason::Absent, absent()), |(_, why)| why.clone()))
    }

    /// The packages among the zones, with a second handle for each; `None` when one cannot be
    /// opened.
    pub(super) fn packages<T>(&self, handles: &[T], duplicate: impl Fn(&T) -> io::Result<T>) -> Option<(Self, Vec<T>)> {
        let packages = self.zones.iter().zip(handles).filter(|(zone, _)| zone.id.kind == ZoneKind::Package);
        let copied = packages.map(|(zone, handle)| Ok((zone.clone(), duplicate(handle)?)));
        let (zones, handles) = copied.collect::<io::Result<Vec<_>>>().ok()?.into_iter().unzip();
        Some((Self { zones, ..Self::default() }, handles))
    }
}

/// A source of energy counters.
pub trait Source: Send {
    fn origin(&self) -> Origin;

    fn inventory(&self) -> &SourceInventory;

    fn zones(&self) -> &[Zone] {
        &self.inventory().zones
    }

    /// The origin of the energy, which for a simulated tree is not that of the source that reads
    /// it. All zones of a source have the same.
    fn energy_origin(&self) -> Origin {
        self.zones().first().and_then(|zone| zone.origin).unwrap_or(self.origin())
    }

    /// Reads every counter once, in its own unit, in the order of [`Source::zones`].
    fn read(&mut self, out: &mut Vec<io::Result<u64>>);

    /// Takes the busy nanoseconds of each CPU since the start, by its number, before a reading;
    /// empty where they are unknown. Only a source that computes energy from them uses them.
    fn note_busy(&mut self, _busy_ns: &[u64]) {}

    /// A second source with the counters of the packages, for a reader with another interval;
    /// `None` where that is not useful.
    fn packages(&self) -> Option<Box<dyn Source>> {
        None
    }

    /// Idle power of a zone in microwatts, where it is a property of the source.
    fn idle_power(&self, _zone: usize) -> Option<u64> {
        None
    }
}

/// Where the host of a virtual machine answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSettings {
    /// `https://HOST:9500`, or `vsock://2:9500`.
    pub url: String,
    pub token_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
}

/// Paths of the sources.
#[derive(Clone, Debug)]
pub struct SourcePaths {
    /// `/sys`.
    pub sysfs: PathBuf,
    /// `/proc`.
    pub procfs: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
    /// The host's probe, in a virtual machine.
    pub host: Option<HostSettings>,
}
