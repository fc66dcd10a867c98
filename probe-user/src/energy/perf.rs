//! RAPL through the `power` PMU of the kernel: 64-bit counters in 2^-32 J, which the kernel
//! unwraps.
//!
//! One descriptor per zone and package, opened once (CAP_PERFMON) and read afterwards without
//! privileges. The `cpumask` of the PMU lists one CPU per package. The package follows from the
//! topology, never from the position in the list.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use units::Unit;

use super::{
    processor::{Processor, Vendor},
    source::{Source, SourceInventory},
    zone::{Ceiling, Origin, Range, UPDATE_NS, Zone, ZoneId, ZoneKind},
};
use crate::host::{
    availability::{Reason, Unavailable},
    perf_event,
    topology::{PackageId, Topology},
};

/// The PMU of packages, and AMD's PMU of single cores, which newer kernels have.
const POWER: &str = "power";
const CORES: &str = "power_core";

/// The open events.
pub struct Perf {
    inventory: SourceInventory,
    /// Descriptors of each zone. A zone of cores has one for each core, and their sum is its
    /// counter.
    files: Vec<Vec<File>>,
}

impl Perf {
    /// Opens every energy event of the PMU.
    ///
    /// # Errors
    /// `absent` without the PMU or without an event for packages, `denied` when it may not be
    /// opened, `broken` when its description is invalid.
    pub fn open(sysfs: &Path, topology: &Topology, processor: &Processor) -> Result<Self, Unavailable> {
        let dir = find(sysfs, POWER).ok_or_else(|| {
            Unavailable::new(
                Reason::Absent,
                format!(
                    "{}: no such PMU. The machine has no RAPL, is a guest, or the module rapl is not loaded \
                     (CONFIG_PERF_EVENTS_INTEL_RAPL; modprobe rapl)",
                    sysfs.join("bus/event_source/devices").join(POWER).display()
                ),
            )
        })?;
        let mut this = Self { inventory: SourceInventory::default(), files: Vec::new() };
        // AMD's counter covers the package. Kernels from 6.9 on treat each core complex as a die
        // and list one CPU of each, although every event reads the same register ("perf/x86/rapl:
        // Fix the energy-pkg event for AMD CPUs").
        let dies = processor.vendor != Vendor::Amd;
        this.add(&dir, topology, dies)?;
        this.inventory
            .require_packages(|| format!("{}: it has no event energy-pkg, which happens in guests", dir.display()))?;
        if let Some(cores) = find(sysfs, CORES) {
            // Cores are not accounting roots, so a failure is only reported.
            if let Err(why) = this.add(&cores, topology, dies) {
                this.inventory.left_out.push(format!("{}: {why}", cores.display()));
            }
        }
        Ok(this)
    }

    /// Adopts the power limits of another source for the same zones, because the PMU has none.
    pub(super) fn adopt_limits(&mut self, known: &[Zone]) {
        for zone in &mut self.inventory.zones {
            if let Some(known) = known.iter().find(|known| known.id == zone.id) {
                zone.ceiling = known.ceiling;
            }
        }
    }

    fn add(&mut self, dir: &Path, topology: &Topology, dies: bool) -> Result<(), Unavailable> {
        let broken = |what: String| Unavailable::new(Reason::Broken, format!("{}: {what}", dir.display()));
        let text = |file: &str| fs::read_to_string(dir.join(file));
        let number = |file: &str| text(file).ok().and_then(|text| text.trim().parse::<u32>().ok());
        let kind = number("type").ok_or_else(|| broken("its type is not a number".to_owned()))?;
        let cpus = text("cpumask").map_err(|error| broken(format!("cpumask: {error}")))?;
        let cpus = parse_cpus(&cpus).ok_or_else(|| broken("its cpumask is not a list of CPUs".to_owned()))?;
        let events = dir.join("events");
        let entries = fs::read_dir(&events).map_err(|error| broken(format!("events: {error}")))?;
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| name.starts_with("energy-") && !name.contains('.'));
        names.sort_unstable();
        for name in names {
            let event = match OpenEvent::read(&events, &name, kind) {
                Ok(event) => event,
                Err(what) => {
                    self.inventory.left_out.push(format!("{}: {what}", events.join(&name).display()));
                    continue;
                }
            };
            for (id, cpus) in event.zones(&cpus, topology, dies) {
                match cpus.iter().map(|cpu| event.open(*cpu)).collect::<io::Result<Vec<_>>>() {
                    Ok(files) => {
                        self.inventory.zones.push(Zone {
                            id,
                            unit: event.unit,
                            range: Range::Endless,
                            // The step of the hardware: usually 2^-14 J on Intel, less on AMD.
                            step_uj: event.unit.step_uj().max(62),
                            update_ns: UPDATE_NS,
                            ceiling: Ceiling::learned(id.kind),
                            location: format!("{} on CPU {}", events.join(&name).display(), cpus[0]),
                            origin: None,
                        });
                        self.files.push(files);
                    }
                    Err(error) => self.inventory.refused.push((id, denied(&events.join(&name), &error))),
                }
            }
        }
        Ok(())
    }
}

fn denied(event: &Path, error: &io::Error) -> Unavailable {
    let hint = match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            "Run the probe as root, or with CAP_PERFMON (in a container, the seccomp profile must allow perf_event_open)"
        }
        Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP) => "The processor does not count this",
        _ => "The kernel refused the event",
    };
    let reason = match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => Reason::Denied,
        Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP) => Reason::Absent,
        _ => Reason::Broken,
    };
    Unavailable::new(reason, format!("{}: {error}. {hint}", event.display()))
}

/// Directory of a PMU, below the buses or below the devices.
fn find(sysfs: &Path, name: &str) -> Option<PathBuf> {
    ["bus/event_source/devices", "devices"]
        .iter()
        .map(|dir| sysfs.join(dir).join(name))
        .find(|dir| dir.join("type").exists())
}

/// `0-2,8`: a list of CPUs as the kernel prints it.
pub(super) fn parse_cpus(text: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= crate::host::topology::MAX_CPUS || first > last {
            return None;
        }
        all.extend(first..=last);
    }
    (!all.is_empty()).then_some(all)
}

/// One energy event of a PMU.
struct OpenEvent {
    kind: u32,
    config: u64,
    unit: Unit,
    zone: ZoneKind,
}

impl OpenEvent {
    fn read(events: &Path, name: &str, kind: u32) -> Result<Self, String> {
        let zone = match name {
            "energy-pkg" => ZoneKind::Package,
            "energy-ram" => ZoneKind::Dram,
            "energy-cores" | "energy-core" => ZoneKind::Core,
            "energy-gpu" => ZoneKind::Uncore,
            "energy-psys" => ZoneKind::Psys,
            _ => return Err("an unknown event".to_owned()),
        };
        let text = |file: String| fs::read_to_string(events.join(&file)).map_err(|error| format!("{file}: {error}"));
        let unit = text(format!("{name}.unit"))?;
        if unit.trim() != "Joules" {
            return Err(format!("its unit is {:?}, not Joules", unit.trim()));
        }
        let scale = text(format!("{name}.scale"))?;
        let unit = Unit::parse_joules(&scale).ok_or_else(|| format!("its scale {:?} is not a number", scale.trim()))?;
        let config = text(name.to_owned())?;
        // `event=0x02`: bits 0 to 7 of config (format/event).
        let config = config
            .trim()
            .strip_prefix("event=0x")
            .and_then(|hex| u64::from_str_radix(hex, 16).ok())
            .filter(|config| *config <= 0xff)
            .ok_or_else(|| format!("{:?} is not event=0xNN", config.trim()))?;
        Ok(Self { kind, config, unit, zone })
    }

    /// The zones of this event, each with the CPUs to open it on.
    fn zones(&self, cpus: &[usize], topology: &Topology, dies: bool) -> Vec<(ZoneId, Vec<usize>)> {
        if self.zone == ZoneKind::Psys {
            // Every CPU reads the counter of the whole platform.
            return cpus
                .first()
                .map(|cpu| (ZoneId { package: None, kind: self.zone }, vec![*cpu]))
                .into_iter()
                .collect();
        }
        // More CPUs than packages are dies, unless they are cores.
        let mut packages: Vec<_> = cpus.iter().filter_map(|cpu| topology.domain(*cpu, false)).collect();
        packages.sort_unstable();
        packages.dedup();
        let cores =
            self.zone == ZoneKind::Core && cpus.len() > packages.len() && cpus.len() > topology.packages(true).len();
        let per_die = dies && !cores && cpus.len() > packages.len();
        let mut zones: BTreeMap<PackageId, Vec<usize>> = BTreeMap::new();
        for cpu in cpus {
            // A CPU without topology belongs to no package.
            if let Some(package) = topology.domain(*cpu, per_die) {
                let listed = zones.entry(package).or_default();
                if cores || listed.is_empty() {
                    listed.push(*cpu);
                }
            }
        }
        zones.into_iter().map(|(package, cpus)| (ZoneId { package: Some(package), kind: self.zone }, cpus)).collect()
    }

    fn open(&self, cpu: usize) -> io::Result<File> {
        perf_event::open(self.kind, self.config, cpu)
    }
}

impl Source for Perf {
    fn origin(&self) -> Origin {
        Origin::Perf
    }

    fn inventory(&self) -> &SourceInventory {
        &self.inventory
    }

    fn read(&mut self, out: &mut Vec<io::Result<u64>>) {
        out.extend(self.files.iter().map(|files| {
            files.iter().try_fold(0u64, |sum, mut file| {
                let mut count = [0; 8];
                // Events support read() and not pread(), because they have no position.
                file.read_exact(&mut count)?;
                Ok(sum.wrapping_add(u64::from_ne_bytes(count)))
            })
        }));
    }

    fn packages(&self) -> Option<Box<dyn Source>> {
        let (inventory, files) =
            self.inventory.packages(&self.files, |files| files.iter().map(File::try_clone).collect())?;
        Some(Box::new(Self { inventory, files }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topology(cpus: &[(usize, u32, u32)]) -> (tempfile::TempDir, Topology) {
        let dir = tempfile::tempdir().unwrap();
        for (cpu, package, die) in cpus {
            let at = dir.path().join(format!("devices/system/cpu/cpu{cpu}/topology"));
            fs::create_dir_all(&at).unwrap();
            fs::write(at.join("physical_package_id"), package.to_string()).unwrap();
            fs::write(at.join("die_id"), die.to_string()).unwrap();
        }
        let topology = Topology::read(dir.path());
        (dir, topology)
    }

    fn event(zone: ZoneKind) -> OpenEvent {
        OpenEvent { kind: 1, config: 0, unit: Unit::MICROJOULE, zone }
    }

    fn display(zones: &[(ZoneId, Vec<usize>)]) -> Vec<String> {
        zones.iter().map(|(id, cpus)| format!("{id}: {cpus:?}")).collect()
    }

    #[test]
    fn the_package_of_a_cpu_follows_from_the_topology() {
        // CPU 0 is on socket 1 here.
        let (_dir, topology) = topology(&[(0, 1, 0), (1, 0, 0), (2, 1, 0), (3, 0, 0)]);
        let zones = event(ZoneKind::Package).zones(&[0, 1], &topology, true);
        assert_eq!(display(&zones), ["package of package 0: [1]", "package of package 1: [0]"]);
    }

    #[test]
    fn more_cpus_than_packages_are_dies_or_cores() {
        let (_dir, topology) = topology(&[(0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 0, 1)]);
        let dies = event(ZoneKind::Package).zones(&[0, 2], &topology, true);
        assert_eq!(display(&dies), ["package of package 0-die-0: [0]", "package of package 0-die-1: [2]"]);
        let one = event(ZoneKind::Package).zones(&[0, 2], &topology, false);
        assert_eq!(display(&one), ["package of package 0: [0]"], "one counter for all dies");
        let cores = event(ZoneKind::Core).zones(&[0, 1, 2, 3], &topology, true);
        assert_eq!(display(&cores), ["core of package 0: [0, 1, 2, 3]"]);
    }

    #[test]
    fn psys_is_one_zone_for_any_cpumask() {
        let (_dir, topology) = topology(&[(0, 0, 0), (1, 1, 0)]);
        assert_eq!(display(&event(ZoneKind::Psys).zones(&[0, 1], &topology, true)), ["psys of package all: [0]"]);
    }

    #[test]
    fn a_cpumask_is_a_list_of_numbers_and_ranges() {
        assert_eq!(parse_cpus("0-2,8\n"), Some(vec![0, 1, 2, 8]));
        for wrong in ["", "x", "3-1", "0-99999999", "1,,x"] {
            assert_eq!(parse_cpus(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_cpumasks_do_not_panic(text in ".{0,30}") {
            let _ = parse_cpus(&text);
        }
    }
}
