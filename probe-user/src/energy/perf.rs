//! RAPL through the kernel's `power` PMU: 64-bit counters in 2^-32 J, which the kernel itself unwraps.
//!
//! One descriptor per zone and package, opened once (CAP_PERFMON), read afterwards without privileges. Which CPUs stand for
//! a package is the PMU's `cpumask`; which package that is, the topology says, never the position in the list.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::{
    Found, Source,
    processor::{Processor, Vendor},
    zone::{Ceiling, Origin, Range, UPDATE_NS, Zone, ZoneId, ZoneKind},
};
use crate::{
    perf_event,
    state::{Reason, Unavailable},
    topology::{PackageId, Topology},
    units::Unit,
};

/// The PMU of packages, and AMD's of single cores, where the kernel has it.
const POWER: &str = "power";
const CORES: &str = "power_core";

/// Open events, zone by zone.
pub struct Perf {
    found: Found,
    /// Descriptors of each zone; a zone made of cores has one for each, and their sum is its counter.
    files: Vec<Vec<File>>,
}

impl Perf {
    /// Opens every energy event of the PMU.
    ///
    /// # Errors
    /// `absent` without the PMU or without an event for packages, `denied` when it may not be opened, `broken` when its
    /// description makes no sense.
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
        let mut this = Self { found: Found::default(), files: Vec::new() };
        // AMD's counter is the package's. Kernels from 6.9 on take each of its core complexes for a die and list one CPU of
        // each, although every event reads the same register ("perf/x86/rapl: Fix the energy-pkg event for AMD CPUs").
        let dies = processor.vendor != Vendor::Amd;
        this.add(&dir, topology, dies)?;
        this.found.require_packages(|| {
            format!("{}: it has no event energy-pkg; a guest may be shown such a PMU", dir.display())
        })?;
        if let Some(cores) = find(sysfs, CORES) {
            // Beside the point of the account: a PMU that cannot be used here is only said.
            if let Err(why) = this.add(&cores, topology, dies) {
                this.found.left_out.push(format!("{}: {why}", cores.display()));
            }
        }
        Ok(this)
    }

    /// Takes the limits that another source knows of the same zones: the PMU states none.
    pub(super) fn bound(&mut self, known: &[Zone]) {
        for zone in &mut self.found.zones {
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
            let event = match Event::read(&events, &name, kind) {
                Ok(event) => event,
                Err(what) => {
                    self.found.left_out.push(format!("{}: {what}", events.join(&name).display()));
                    continue;
                }
            };
            for (id, cpus) in event.places(&cpus, topology, dies) {
                match cpus.iter().map(|cpu| event.open(*cpu)).collect::<io::Result<Vec<_>>>() {
                    Ok(files) => {
                        self.found.zones.push(Zone {
                            id,
                            unit: event.unit,
                            range: Range::Endless,
                            // The hardware's step: 2^-14 J of Intel's usual ones, coarser than AMD's.
                            step_uj: event.unit.step_uj().max(62),
                            update_ns: UPDATE_NS,
                            ceiling: Ceiling::learned(id.kind),
                            place: format!("{} on CPU {}", events.join(&name).display(), cpus[0]),
                            origin: None,
                        });
                        self.files.push(files);
                    }
                    Err(error) => self.found.refused.push((id, denied(&events.join(&name), &error))),
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

/// The PMU's directory: where buses list it, or where devices are.
fn find(sysfs: &Path, name: &str) -> Option<PathBuf> {
    ["bus/event_source/devices", "devices"]
        .iter()
        .map(|place| sysfs.join(place).join(name))
        .find(|dir| dir.join("type").exists())
}

/// `0-2,8`: a list of CPUs as the kernel prints it.
pub(super) fn parse_cpus(text: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= crate::topology::MAX_CPUS || first > last {
            return None;
        }
        all.extend(first..=last);
    }
    (!all.is_empty()).then_some(all)
}

/// One energy event of a PMU.
struct Event {
    kind: u32,
    config: u64,
    unit: Unit,
    zone: ZoneKind,
}

impl Event {
    fn read(events: &Path, name: &str, kind: u32) -> Result<Self, String> {
        let zone = match name {
            "energy-pkg" => ZoneKind::Package,
            "energy-ram" => ZoneKind::Dram,
            "energy-cores" | "energy-core" => ZoneKind::Core,
            "energy-gpu" => ZoneKind::Uncore,
            "energy-psys" => ZoneKind::Psys,
            _ => return Err("an event that we do not know".to_owned()),
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
    fn places(&self, cpus: &[usize], topology: &Topology, dies: bool) -> Vec<(ZoneId, Vec<usize>)> {
        if self.zone == ZoneKind::Psys {
            // The whole platform, whichever CPU is asked.
            return cpus
                .first()
                .map(|cpu| (ZoneId { package: None, kind: self.zone }, vec![*cpu]))
                .into_iter()
                .collect();
        }
        // More CPUs than packages stand for dies, unless they are cores.
        let mut packages: Vec<_> = cpus.iter().filter_map(|cpu| topology.domain(*cpu, false)).collect();
        packages.sort_unstable();
        packages.dedup();
        let cores =
            self.zone == ZoneKind::Core && cpus.len() > packages.len() && cpus.len() > topology.packages(true).len();
        let per_die = dies && !cores && cpus.len() > packages.len();
        let mut places: BTreeMap<PackageId, Vec<usize>> = BTreeMap::new();
        for cpu in cpus {
            // A CPU that the topology does not know cannot be placed.
            if let Some(package) = topology.domain(*cpu, per_die) {
                let place = places.entry(package).or_default();
                if cores || place.is_empty() {
                    place.push(*cpu);
                }
            }
        }
        places.into_iter().map(|(package, cpus)| (ZoneId { package: Some(package), kind: self.zone }, cpus)).collect()
    }

    fn open(&self, cpu: usize) -> io::Result<File> {
        perf_event::open(self.kind, self.config, cpu)
    }
}

impl Source for Perf {
    fn origin(&self) -> Origin {
        Origin::Perf
    }

    fn found(&self) -> &Found {
        &self.found
    }

    fn read(&mut self, out: &mut Vec<io::Result<u64>>) {
        out.extend(self.files.iter().map(|files| {
            files.iter().try_fold(0u64, |sum, mut file| {
                let mut count = [0; 8];
                // The kernel answers read(), not pread(): events have no position.
                file.read_exact(&mut count)?;
                Ok(sum.wrapping_add(u64::from_ne_bytes(count)))
            })
        }));
    }

    fn packages(&self) -> Option<Box<dyn Source>> {
        let (found, files) = self.found.packages(&self.files, |files| files.iter().map(File::try_clone).collect())?;
        Some(Box::new(Self { found, files }))
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

    fn event(zone: ZoneKind) -> Event {
        Event { kind: 1, config: 0, unit: Unit::MICROJOULE, zone }
    }

    fn shown(places: &[(ZoneId, Vec<usize>)]) -> Vec<String> {
        places.iter().map(|(id, cpus)| format!("{id}: {cpus:?}")).collect()
    }

    #[test]
    fn a_package_is_what_the_topology_says_of_the_cpu() {
        // CPU 0 is on socket 1 here.
        let (_dir, topology) = topology(&[(0, 1, 0), (1, 0, 0), (2, 1, 0), (3, 0, 0)]);
        let places = event(ZoneKind::Package).places(&[0, 1], &topology, true);
        assert_eq!(shown(&places), ["package of package 0: [1]", "package of package 1: [0]"]);
    }

    #[test]
    fn more_cpus_than_packages_are_dies_or_cores() {
        let (_dir, topology) = topology(&[(0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 0, 1)]);
        let dies = event(ZoneKind::Package).places(&[0, 2], &topology, true);
        assert_eq!(shown(&dies), ["package of package 0-die-0: [0]", "package of package 0-die-1: [2]"]);
        let one = event(ZoneKind::Package).places(&[0, 2], &topology, false);
        assert_eq!(shown(&one), ["package of package 0: [0]"], "one counter, whatever its dies are called");
        let cores = event(ZoneKind::Core).places(&[0, 1, 2, 3], &topology, true);
        assert_eq!(shown(&cores), ["core of package 0: [0, 1, 2, 3]"]);
    }

    #[test]
    fn psys_is_one_whatever_the_mask() {
        let (_dir, topology) = topology(&[(0, 0, 0), (1, 1, 0)]);
        assert_eq!(shown(&event(ZoneKind::Psys).places(&[0, 1], &topology, true)), ["psys of package all: [0]"]);
    }

    #[test]
    fn a_mask_is_a_list_of_numbers_and_ranges() {
        assert_eq!(parse_cpus("0-2,8\n"), Some(vec![0, 1, 2, 8]));
        for wrong in ["", "x", "3-1", "0-99999999", "1,,x"] {
            assert_eq!(parse_cpus(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_mask_makes_it_panic(text in ".{0,30}") {
            let _ = parse_cpus(&text);
        }
    }
}
