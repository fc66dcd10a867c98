//! RAPL through `/sys/class/powercap`: the driver of the kernel reads the MSRs, MMIO or TPMI.
//!
//! Zones are identified by their `name` files; directory numbers have no meaning (psys may be
//! between two packages). Descriptors are opened once, as root, and read by `pread` afterwards,
//! which works without privileges.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{
    processor::{Processor, Vendor},
    source::{Source, SourceInventory},
    zone::{Ceiling, Origin, Range, Zone, ZoneId, ZoneKind},
};
use crate::host::{
    availability::{Reason, Unavailable},
    topology::{PackageId, Topology},
};

/// Hardware counters have 32 bits. The range file contains the largest value, one step below the
/// wrap.
const STEPS: u64 = 1 << 32;

/// The control type for the same counters through memory-mapped registers.
const MMIO: &str = "intel-rapl-mmio";

/// The file that marks a tree of `cargo xtask sim-rapl`.
const SIMULATED: &str = "simulated-by-wattcast";

/// The open counters below `/sys/class/powercap`.
pub struct Powercap {
    inventory: SourceInventory,
    files: Vec<CounterFile>,
}

struct CounterFile {
    file: File,
    last: Option<u64>,
}

impl Powercap {
    /// Finds and opens every zone under `sysfs`.
    ///
    /// # Errors
    /// `absent` without a tree or without an accounting root in it, `denied` when a counter may not
    /// be opened, `broken` when none can be.
    pub fn open(sysfs: &Path, topology: &Topology, processor: &Processor) -> Result<Self, Unavailable> {
        let class = sysfs.join("class/powercap");
        let mut dirs = BTreeMap::new();
        collect(&class, &mut dirs).map_err(|error| {
            Unavailable::new(
                Reason::of(&error),
                format!(
                    "{}: {error}. The machine has no RAPL, is a guest, or the module intel_rapl_msr is not loaded",
                    class.display()
                ),
            )
        })?;
        let mut inventory = SourceInventory { simulated: class.join(SIMULATED).exists(), ..SourceInventory::default() };
        let mut files = Vec::new();
        // The MMIO duplicates come last: a zone with the name of an earlier one counts the same
        // energy again (prometheus/procfs#396).
        let (first, duplicates): (Vec<_>, Vec<_>) = dirs.iter().partition(|(name, _)| !name.starts_with(MMIO));
        for (name, dir) in first.into_iter().chain(duplicates) {
            let Some(id) = identify(name, dir, &dirs).map(|id| normalize(id, topology, processor)) else {
                inventory.left_out.push(format!("{name}: its name is unknown, or it is below no package"));
                continue;
            };
            if let Some(original) = inventory.zones.iter().find(|zone| zone.id == id) {
                inventory.left_out.push(format!("{name}: a duplicate of {}", original.location));
                continue;
            }
            if id.kind == ZoneKind::Core && processor.vendor == Vendor::Amd {
                // MSR 0xC001029A counts a single core, and the driver reads it on one CPU
                // (intel_rapl_msr.c).
                inventory.left_out.push(format!("{name}: on AMD the counter of a single core"));
                continue;
            }
            let path = dir.join("energy_uj");
            match File::open(&path) {
                Ok(file) => {
                    let range = range(dir);
                    inventory.zones.push(Zone {
                        step_uj: step(range),
                        ceiling: limit(dir).map_or(Ceiling::learned(id.kind), Ceiling::Limit),
                        ..Zone::microjoules(id, range, path.display().to_string())
                    });
                    files.push(CounterFile { file, last: None });
                }
                Err(error) => {
                    let hint = "Counters are readable by root only since 5.10 (PLATYPUS): run the probe as root";
                    let why = Unavailable::new(Reason::of(&error), format!("{}: {error}. {hint}", path.display()));
                    inventory.refused.push((id, why));
                }
            }
        }
        inventory.require_packages(|| {
            format!("{}: no zone named package-N. The machine has no RAPL, or hides it", class.display())
        })?;
        // A duplicate that could be opened replaces the refused zone.
        let refused = std::mem::take(&mut inventory.refused);
        inventory.refused = refused.into_iter().filter(|(id, _)| !inventory.has(*id)).collect();
        Ok(Self { inventory, files })
    }
}

/// Every zone directory by name, at any depth. The class directory contains links to all of them; a
/// plain copy of the tree may contain subzones inside their parents only.
fn collect(dir: &Path, zones: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Control types (`intel-rapl`) have no number, hence no counter.
        if !name.starts_with("intel-rapl") || !name.contains(':') || zones.contains_key(&name) {
            continue;
        }
        let path = entry.path();
        zones.insert(name, path.clone());
        // A zone that was removed meanwhile has no subzones.
        let _ = collect(&path, zones);
    }
    Ok(())
}

/// Identity of a zone; `None` when its name is unknown or it is below no package.
fn identify(name: &str, dir: &Path, all: &BTreeMap<String, PathBuf>) -> Option<ZoneId> {
    let text = fs::read_to_string(dir.join("name")).ok()?;
    let text = text.trim();
    if let Some(package) = package_of(text) {
        return Some(ZoneId { package: Some(package), kind: ZoneKind::Package });
    }
    if text == "psys" {
        return Some(ZoneId { package: None, kind: ZoneKind::Psys });
    }
    let kind = match text {
        "core" => ZoneKind::Core,
        "uncore" => ZoneKind::Uncore,
        "dram" => ZoneKind::Dram,
        _ => return None,
    };
    // `intel-rapl:0:2` is a part of `intel-rapl:0`.
    let mut parent = name;
    while let Some((outer, _)) = parent.rsplit_once(':') {
        parent = outer;
        if let Some(id) = all.get(parent).and_then(|dir| identify(parent, dir, all))
            && id.kind == ZoneKind::Package
        {
            return Some(ZoneId { package: id.package, kind });
        }
    }
    None
}

/// `package-0`, `package-1-die-0` (drivers/powercap/intel_rapl_common.c: physical package and die
/// numbers).
fn package_of(name: &str) -> Option<PackageId> {
    let rest = name.strip_prefix("package-")?;
    let (package, die) = match rest.split_once("-die-") {
        Some((package, die)) => (package, Some(die.parse().ok()?)),
        None => (rest, None),
    };
    Some(PackageId { package: package.parse().ok()?, die })
}

/// The range file contains the largest value; the counter wraps one step later.
fn range(dir: &Path) -> Range {
    fs::read_to_string(dir.join("max_energy_range_uj"))
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .filter(|max| *max > 0)
        .map_or(Range::Unknown, |max| Range::Wraps(max.saturating_add(max.div_ceil(STEPS - 1))))
}

/// Microjoules in a step of the counter.
fn step(range: Range) -> u64 {
    match range {
        Range::Wraps(modulus) => modulus.div_ceil(STEPS).max(1),
        // 2^-14 J, the coarsest usual step.
        Range::Endless | Range::Unknown => 62,
    }
}

/// The highest power limit of the zone, in microwatts. A limit of 0 was never set, and a disabled
/// zone has none. TPMI shows a disabled limit as a huge number, which limits nothing.
fn limit(dir: &Path) -> Option<u64> {
    let number = |file: String| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
    let enabled = fs::read_to_string(dir.join("enabled")).map_or(true, |text| text.trim() != "0");
    let limits = (0..4).flat_map(|constraint| {
        ["power_limit_uw", "max_power_uw"].map(|what| number(format!("constraint_{constraint}_{what}")))
    });
    limits.flatten().filter(|limit| *limit > 0).max().filter(|_| enabled)
}

/// Older kernels name AMD's zones by die although each reads the counter of the package
/// (rapl_msrs_are_pkg_scope came later): they cover the package, and are duplicates. The same
/// applies to the only die of a package.
fn normalize(id: ZoneId, topology: &Topology, processor: &Processor) -> ZoneId {
    let package = id.package.map(|package| {
        let alone = topology.is_known() && topology.dies(package.package) <= 1;
        if alone || processor.vendor == Vendor::Amd { PackageId::whole(package.package) } else { package }
    });
    ZoneId { package, ..id }
}

impl Source for Powercap {
    fn origin(&self) -> Origin {
        Origin::Powercap
    }

    fn inventory(&self) -> &SourceInventory {
        &self.inventory
    }

    fn read(&mut self, out: &mut Vec<io::Result<u64>>) {
        out.extend(self.files.iter_mut().map(CounterFile::read));
    }

    fn packages(&self) -> Option<Box<dyn Source>> {
        let duplicate = |counter: &CounterFile| Ok(CounterFile { file: counter.file.try_clone()?, last: None });
        let (inventory, files) = self.inventory.packages(&self.files, duplicate)?;
        Some(Box::new(Self { inventory, files }))
    }
}

impl CounterFile {
    fn read(&mut self) -> io::Result<u64> {
        let mut buffer = [0; 32];
        let length = self.file.read_at(&mut buffer, 0)?;
        let value = std::str::from_utf8(&buffer[..length])
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a number"))?;
        // A counter that does not move may have been removed. Then sysfs refuses the read, but a
        // copy of the tree on a plain file system does not, so the link count is checked too.
        if self.last.replace(value) == Some(value) && self.file.metadata()?.nlink() == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the counter was removed"));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree with the layout of the kernel: `(directory, name, energy, range)`.
    pub(crate) fn tree(zones: &[(&str, &str, u64, Option<u64>)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (at, name, energy, range) in zones {
            let zone = dir.path().join("class/powercap").join(at);
            fs::create_dir_all(&zone).unwrap();
            fs::write(zone.join("name"), format!("{name}\n")).unwrap();
            fs::write(zone.join("energy_uj"), format!("{energy}\n")).unwrap();
            if let Some(range) = range {
                fs::write(zone.join("max_energy_range_uj"), format!("{range}\n")).unwrap();
            }
        }
        dir
    }

    fn open(dir: &Path) -> Result<Powercap, Unavailable> {
        Powercap::open(dir, &Topology::read(dir), &Processor::read(dir))
    }

    fn zones(source: &Powercap) -> Vec<String> {
        source.zones().iter().map(|zone| zone.id.to_string()).collect()
    }

    #[test]
    fn zones_are_identified_by_name_and_parent() {
        let dir = tree(&[
            ("intel-rapl:0", "package-1", 10, Some(100)),
            ("intel-rapl:0/intel-rapl:0:0", "dram", 11, Some(100)),
            ("intel-rapl:1", "psys", 12, Some(100)),
            ("intel-rapl:2", "package-0", 13, None),
            ("intel-rapl:2/intel-rapl:2:0", "core", 14, Some(100)),
            ("intel-rapl-mmio:0", "package-0", 13, Some(100)),
        ]);
        let mut source = open(dir.path()).unwrap();
        assert_eq!(
            zones(&source),
            [
                "package of package 1",
                "dram of package 1",
                "psys of package all",
                "package of package 0",
                "core of package 0"
            ]
        );
        assert_eq!(source.zones()[3].range, Range::Unknown);
        let mut raw = Vec::new();
        source.read(&mut raw);
        assert_eq!(raw.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [10, 11, 12, 13, 14]);
    }

    #[test]
    fn dies_are_separate_zones() {
        let dir = tree(&[("intel-rapl:0", "package-0-die-0", 1, None), ("intel-rapl:1", "package-0-die-1", 2, None)]);
        let source = open(dir.path()).unwrap();
        assert_eq!(zones(&source), ["package of package 0-die-0", "package of package 0-die-1"]);
    }

    #[test]
    fn the_counter_wraps_one_step_after_its_largest_value() {
        let dir = tree(&[("intel-rapl:0", "package-0", 1, Some(262_143_328_850))]);
        let source = open(dir.path()).unwrap();
        // 2^32 steps of 61.035 µJ.
        assert_eq!(source.zones()[0].range, Range::Wraps(262_143_328_850 + 62));
    }

    #[test]
    fn a_missing_tree_is_absent() {
        let why = open(Path::new("/nowhere")).err().unwrap();
        assert_eq!(why.reason, Reason::Absent);
        assert!(why.detail.contains("intel_rapl_msr"), "{why}");
        let dir = tree(&[("intel-rapl:0", "psys", 1, None)]);
        assert_eq!(open(dir.path()).err().unwrap().reason, Reason::Absent);
    }

    #[test]
    fn a_removed_or_empty_counter_is_an_error_and_not_zero() {
        let dir = tree(&[("intel-rapl:0", "package-0", 5, None), ("intel-rapl:1", "package-1", 5, None)]);
        let mut source = open(dir.path()).unwrap();
        source.read(&mut Vec::new());
        fs::remove_file(dir.path().join("class/powercap/intel-rapl:0/energy_uj")).unwrap();
        fs::write(dir.path().join("class/powercap/intel-rapl:1/energy_uj"), "").unwrap();
        let mut raw = Vec::new();
        source.read(&mut raw);
        assert_eq!(raw[0].as_ref().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(raw[1].as_ref().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_zone_that_cannot_be_read_is_reported() {
        let dir = tree(&[("intel-rapl:0", "package-0", 5, None), ("intel-rapl:1", "package-1", 5, None)]);
        // A link to itself cannot be opened, not even by root.
        let other = dir.path().join("class/powercap/intel-rapl:1/energy_uj");
        fs::remove_file(&other).unwrap();
        std::os::unix::fs::symlink("energy_uj", &other).unwrap();
        let source = open(dir.path()).unwrap();
        assert_eq!(zones(&source), ["package of package 0"]);
        assert_eq!(source.inventory().refused[0].0.to_string(), "package of package 1");
        let missing = crate::energy::missing_zones(&source).unwrap();
        assert!(missing.detail.contains("package of package 1 is missing"), "{missing}");
    }
}
