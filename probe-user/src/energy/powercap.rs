//! RAPL through `/sys/class/powercap`: the driver of the kernel reads the MSRs, MMIO or TPMI.
//!
//! Zones are identified by their `name` files; directory numbers have no meaning (psys may be
//! between two packages). Descriptors are opened once, as root, and read by `pread` afterwards,
//! which works without privileges.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    counter_file::{CounterFile, number_in},
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
        let names: Vec<(&String, &PathBuf, ZoneId)> =
            dirs.iter().filter_map(|(name, dir)| Some((name, dir, identify(name, dir, &dirs)?))).collect();
        let separate = separate_dies(&names, processor);
        let mut inventory = SourceInventory::default();
        let origin = class.join(SIMULATED).exists().then_some(Origin::Simulated);
        let mut files = Vec::new();
        // The MMIO duplicates come last: a zone with the name of an earlier one counts the same
        // energy again (prometheus/procfs#396).
        let (first, duplicates): (Vec<_>, Vec<_>) = dirs.iter().partition(|(name, _)| !name.starts_with(MMIO));
        for (name, dir) in first.into_iter().chain(duplicates) {
            let Some(id) = identify(name, dir, &dirs).map(|id| normalize(id, topology, processor, &separate)) else {
                inventory.left_out.push(format!("{name}: its name is unknown, or it is below no package"));
                continue;
            };
            // Another controller may name a package where this one names its dies.
            let same = |zone: &&Zone| {
                let packages = (zone.id.package.map(|of| of.package), id.package.map(|of| of.package));
                let whole =
                    zone.id.package.is_none_or(|of| of.die.is_none()) || id.package.is_none_or(|of| of.die.is_none());
                zone.id == id || name.starts_with(MMIO) && zone.id.kind == id.kind && packages.0 == packages.1 && whole
            };
            if let Some(original) = inventory.zones.iter().find(same) {
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
                        origin,
                        ..Zone::microjoules(id, range, path.display().to_string())
                    });
                    files.push(CounterFile::new(path, file));
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
        for package in topology.packages(false).into_iter().filter(|_| topology.is_known()) {
            let id = ZoneId { package: Some(package), kind: ZoneKind::Package };
            let known =
                |zone: &ZoneId| zone.kind == id.kind && zone.package.is_some_and(|of| of.package == package.package);
            let mut zones =
                inventory.zones.iter().map(|zone| zone.id).chain(inventory.refused.iter().map(|(id, _)| *id));
            if !zones.any(|zone| known(&zone)) {
                let why = format!("{}: no zone for package {package}, whose CPUs are online", class.display());
                inventory.refused.push((id, Unavailable::new(Reason::Absent, why)));
            }
        }
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
    number_in(&dir.join("max_energy_range_uj"))
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
    let enabled = fs::read_to_string(dir.join("enabled")).map_or(true, |text| text.trim() != "0");
    let limits = (0..4).flat_map(|constraint| {
        ["power_limit_uw", "max_power_uw"].map(|what| number_in(&dir.join(format!("constraint_{constraint}_{what}"))))
    });
    limits.flatten().filter(|limit| *limit > 0).max().filter(|_| enabled)
}

/// Dies are separate zones where a package has several and their counters differ. The names of the
/// zones decide, not the topology, which some kernels and guests report without dies. On AMD older
/// kernels name zones by die although each reads the counter of the package
/// (rapl_msrs_are_pkg_scope came later): such counters agree.
fn separate_dies(zones: &[(&String, &PathBuf, ZoneId)], processor: &Processor) -> BTreeSet<u32> {
    let mut dies: BTreeMap<u32, BTreeMap<u32, &PathBuf>> = BTreeMap::new();
    for (_, dir, id) in zones.iter().filter(|(name, _, id)| !name.starts_with(MMIO) && id.kind == ZoneKind::Package) {
        if let Some(PackageId { package, die: Some(die) }) = id.package {
            dies.entry(package).or_default().entry(die).or_insert(dir);
        }
    }
    let separate = |dirs: &BTreeMap<u32, &PathBuf>| {
        let mut dirs = dirs.values();
        match (dirs.next(), dirs.next()) {
            (Some(first), Some(second)) => processor.vendor != Vendor::Amd || !agree(first, second),
            _ => false,
        }
    };
    dies.iter().filter(|(_, dirs)| separate(dirs)).map(|(package, _)| *package).collect()
}

/// Whether two zones read the same counter: the second lies between two readings of the first.
fn agree(first: &Path, second: &Path) -> bool {
    const ROUNDS: usize = 5;
    let value = |dir: &Path| number_in(&dir.join("energy_uj"));
    let agrees = (0..ROUNDS).filter(|_| match (value(first), value(second), value(first)) {
        (Some(before), Some(other), Some(after)) => (before..=after).contains(&other),
        // What cannot be read cannot be proven to differ.
        _ => true,
    });
    // One round may meet a wrap.
    agrees.count() + 1 >= ROUNDS
}

/// The zone of a whole package, unless its dies are separate.
fn normalize(id: ZoneId, topology: &Topology, processor: &Processor, separate: &BTreeSet<u32>) -> ZoneId {
    let package = id.package.map(|package| {
        let alone = topology.is_known() && topology.dies(package.package) <= 1;
        let whole = (alone || processor.vendor == Vendor::Amd) && !separate.contains(&package.package);
        if whole { PackageId::whole(package.package) } else { package }
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
        let duplicate = |counter: &CounterFile| counter.try_clone();
        let (inventory, files) = self.inventory.packages(&self.files, duplicate)?;
        Some(Box::new(Self { inventory, files }))
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

    #[test]
    fn zones_of_a_marked_tree_are_simulated() {
        let dir = tree(&[("intel-rapl:0", "package-0", 1, Some(262_143_328_850))]);
        let origins = |source: &Powercap| (source.origin(), source.energy_origin());
        assert_eq!(origins(&open(dir.path()).unwrap()), (Origin::Powercap, Origin::Powercap));
        fs::write(dir.path().join("class/powercap").join(SIMULATED), "").unwrap();
        let source = open(dir.path()).unwrap();
        assert_eq!(origins(&source), (Origin::Powercap, Origin::Simulated));
        assert!(super::super::source_state(&source).detail.contains("SIMULATED"));
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

    /// A topology that knows one die only, as in some guests: half of the energy was left out.
    #[test]
    fn dies_that_the_topology_does_not_know_are_not_duplicates() {
        let dir = tree(&[("intel-rapl:0", "package-0-die-0", 1, None), ("intel-rapl:1", "package-0-die-1", 900, None)]);
        let cpu = dir.path().join("devices/system/cpu/cpu0/topology");
        fs::create_dir_all(&cpu).unwrap();
        for (file, value) in [("physical_package_id", "0"), ("die_id", "0"), ("core_id", "0")] {
            fs::write(cpu.join(file), value).unwrap();
        }
        let source = open(dir.path()).unwrap();
        assert_eq!(zones(&source), ["package of package 0-die-0", "package of package 0-die-1"]);
    }

    #[test]
    fn zones_of_one_counter_are_duplicates_and_others_are_not() {
        let dir = tree(&[
            ("intel-rapl:0", "package-0-die-0", 5, None),
            ("intel-rapl:1", "package-0-die-1", 5, None),
            ("intel-rapl:2", "package-0-die-2", 900, None),
        ]);
        let zone = |number: usize| dir.path().join(format!("class/powercap/intel-rapl:{number}"));
        assert!(agree(&zone(0), &zone(1)) && !agree(&zone(0), &zone(2)));
    }

    #[test]
    fn a_package_without_a_zone_is_reported() {
        let dir = tree(&[("intel-rapl:0", "package-0", 1, None)]);
        for cpu in ["0", "1"] {
            let topology = dir.path().join(format!("devices/system/cpu/cpu{cpu}/topology"));
            fs::create_dir_all(&topology).unwrap();
            fs::write(topology.join("physical_package_id"), cpu).unwrap();
        }
        let missing = crate::energy::missing_zones(&open(dir.path()).unwrap()).unwrap();
        assert!(missing.detail.contains("package of package 1 is missing"), "{missing}");
    }

    /// The driver was loaded again, or the package went offline and came back.
    #[test]
    fn a_zone_that_returns_is_opened_again_and_counts_from_there() {
        let dir = tree(&[("intel-rapl:0", "package-0", 5, None)]);
        let file = dir.path().join("class/powercap/intel-rapl:0/energy_uj");
        let mut source = open(dir.path()).unwrap();
        let mut read = || {
            let mut raw = Vec::new();
            source.read(&mut raw);
            raw.remove(0).map_err(|error| error.to_string())
        };
        assert_eq!(read(), Ok(5));
        fs::remove_file(&file).unwrap();
        assert!(read().is_err());
        fs::write(&file, "900").unwrap();
        std::thread::sleep(super::super::counter_file::RETRY_INTERVAL);
        assert_eq!(read(), Err(super::super::counter_file::REOPENED.to_owned()));
        assert_eq!(read(), Ok(900));
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
