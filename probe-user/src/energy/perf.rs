//! RAPL through the `power` PMU of the kernel: 64-bit counters in 2^-32 J, which the kernel
//! unwraps.
//!
//! One descriptor per zone and package, opened at the start (CAP_PERFMON) and read afterwards
//! without privileges. The `cpumask` of the PMU lists one CPU per package. The package follows from
//! the topology, never from the position in the list.
//!
//! An event that has ended is opened again on any CPU of its package. The kernel moves the events
//! of a CPU that goes offline to another CPU of the package; without one it ends them, and their
//! count stands (kernel/events/core.c, perf_event_exit_cpu_context).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use units::Unit;

use super::{
    counter::STALL_NS,
    counter_file::REOPENED,
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
    /// Events of each zone. A zone of cores has one for each core, and their sum is its counter.
    events: Vec<Vec<EventFile>>,
}

/// An event that stands still for this long may have ended, and is opened again in this interval.
const REOPEN_INTERVAL: Duration = Duration::from_nanos(STALL_NS);
/// Maximum number of CPUs on which an event is opened again.
const MAX_CPUS_TRIED: usize = 16;

/// Opens an event on a CPU.
type OpenOn = Arc<dyn Fn(usize) -> io::Result<File> + Send + Sync>;

/// An open event, which is opened again after it has ended.
struct EventFile {
    file: File,
    open: OpenOn,
    /// The CPUs that read the same register.
    cpus: Vec<usize>,
    /// False for parts of a package, which may be switched off and stand still.
    always_moves: bool,
    /// The last count, and when it was first read.
    last: Option<(u64, Instant)>,
    /// True when the package was offline, so that this event has ended even if it may stand still.
    ended: bool,
    /// The new event, until it has counted something.
    candidate: Option<File>,
    tried: Option<Instant>,
    /// Why it cannot be opened again.
    refused: Option<io::Error>,
}

impl EventFile {
    fn new(file: File, open: OpenOn, cpus: Vec<usize>, always_moves: bool) -> Self {
        Self { file, open, cpus, always_moves, last: None, ended: false, candidate: None, tried: None, refused: None }
    }

    /// A second handle.
    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self::new(self.file.try_clone()?, self.open.clone(), self.cpus.clone(), self.always_moves))
    }

    /// The count at `now`.
    ///
    /// # Errors
    /// When the event has ended. [`REOPENED`] once, when another one counts in its place.
    fn read(&mut self, now: Instant) -> io::Result<u64> {
        let count = read_count(&self.file);
        let ended = match (&count, self.last) {
            (Ok(count), Some((last, since))) if last == *count => {
                self.always_moves && now.saturating_duration_since(since) >= REOPEN_INTERVAL || self.ended
            }
            (Ok(count), _) => {
                (self.last, self.ended) = (Some((*count, now)), false);
                false
            }
            (Err(_), _) => true,
        };
        if !ended {
            return count;
        }
        if self.reopen(now) {
            return Err(io::Error::other(REOPENED));
        }
        match &self.refused {
            Some(why) => Err(io::Error::new(
                why.kind(),
                format!("the event has ended with its package and cannot be opened again: {why}; restart the probe"),
            )),
            None => count,
        }
    }

    /// Opens the event again, at most once in an interval. Returns true when the new event counts:
    /// it starts at zero, and a CPU that is not ready yet stays there.
    fn reopen(&mut self, now: Instant) -> bool {
        if let Some(candidate) = self.candidate.take() {
            if read_count(&candidate).is_ok_and(|count| count > 0) {
                (self.file, self.last, self.ended) = (candidate, None, false);
                return true;
            }
            self.candidate = Some(candidate);
        }
        if self.tried.is_some_and(|at| now.saturating_duration_since(at) < REOPEN_INTERVAL) {
            return false;
        }
        self.tried = Some(now);
        self.refused = None;
        self.candidate = None;
        for cpu in &self.cpus {
            match (self.open)(*cpu) {
                Ok(file) => {
                    self.candidate = Some(file);
                    return false;
                }
                // The other CPUs may be online. A denied one is the reason that has a remedy.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.refused = Some(error),
                Err(_) => {}
            }
        }
        false
    }
}

fn read_count(mut file: &File) -> io::Result<u64> {
    let mut count = [0; 8];
    // Events support read() and not pread(), because they have no position.
    file.read_exact(&mut count)?;
    Ok(u64::from_ne_bytes(count))
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
        let mut this = Self { inventory: SourceInventory::default(), events: Vec::new() };
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
                let opened = cpus.iter().map(|cpu| event.open(*cpu, event.cpus(id, cpus.len(), *cpu, topology)));
                match opened.collect::<io::Result<Vec<_>>>() {
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
                            interval: None,
                            error_milli: None,
                        });
                        self.events.push(files);
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

/// `0-2,8`: a list of CPUs as the kernel prints it, in ascending order. A CPU that appears twice
/// would count twice.
pub(crate) fn parse_cpus(text: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        let ascending = first <= last && all.last().is_none_or(|before| first > *before);
        if last >= crate::host::topology::MAX_CPUS || !ascending {
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

    /// The CPUs on which the event of a zone can be opened instead of on `cpu`, which comes first:
    /// all of its package. A zone of several cores has an event for each, which only `cpu` counts.
    fn cpus(&self, id: ZoneId, events: usize, cpu: usize, topology: &Topology) -> Vec<usize> {
        let mut cpus = vec![cpu];
        if events == 1 {
            let per_die = id.package.is_some_and(|package| package.die.is_some());
            let same = topology.cpus(per_die).filter(|(_, of)| id.package.is_none_or(|package| package == *of));
            cpus.extend(same.map(|(other, _)| other).filter(|other| *other != cpu).take(MAX_CPUS_TRIED - 1));
        }
        cpus
    }

    fn open(&self, cpu: usize, cpus: Vec<usize>) -> io::Result<EventFile> {
        let (kind, config) = (self.kind, self.config);
        let open = move |cpu| perf_event::open(kind, config, cpu);
        let always_moves = !matches!(self.zone, ZoneKind::Core | ZoneKind::Uncore);
        Ok(EventFile::new(open(cpu)?, Arc::new(open), cpus, always_moves))
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
        let now = Instant::now();
        let first = out.len();
        out.extend(
            self.events
                .iter_mut()
                .map(|events| events.iter_mut().try_fold(0u64, |sum, event| Ok(sum.wrapping_add(event.read(now)?)))),
        );
        // A package that was offline ended all its events, also those that may stand still.
        for (zone, value) in self.inventory.zones.iter().zip(&out[first..]) {
            if zone.id.kind == ZoneKind::Package && value.as_ref().is_err_and(|error| error.to_string() == REOPENED) {
                let parts = self.inventory.zones.iter().zip(&mut self.events);
                let parts = parts.filter(|(part, _)| {
                    part.id.package == zone.id.package && matches!(part.id.kind, ZoneKind::Core | ZoneKind::Uncore)
                });
                parts.for_each(|(_, events)| events.iter_mut().for_each(|event| event.ended = true));
            }
        }
    }

    fn packages(&self) -> Option<Box<dyn Source>> {
        let (inventory, events) =
            self.inventory.packages(&self.events, |events| events.iter().map(EventFile::try_clone).collect())?;
        Some(Box::new(Self { inventory, events }))
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
        for wrong in ["", "x", "3-1", "0-99999999", "1,,x", "0-2,2", "8,0", "0-4,1-3"] {
            assert_eq!(parse_cpus(wrong), None, "{wrong}");
        }
    }

    /// A file of counts, read one after the other; its end is the end of the event.
    fn counts(counts: &[u64]) -> File {
        use std::io::{Seek as _, Write as _};
        let mut file = tempfile::tempfile().unwrap();
        counts.iter().for_each(|count| file.write_all(&count.to_ne_bytes()).unwrap());
        file.rewind().unwrap();
        file
    }

    fn read_at(event: &mut EventFile, seconds: u64, start: Instant) -> Result<u64, String> {
        event.read(start + Duration::from_secs(seconds)).map_err(|error| error.to_string())
    }

    /// CPU 0 stays offline.
    fn second_cpu(cpu: usize, new: &[u64]) -> io::Result<File> {
        if cpu == 1 { Ok(counts(new)) } else { Err(io::Error::from_raw_os_error(libc::ENODEV)) }
    }

    #[test]
    fn an_event_that_ended_is_opened_on_another_cpu_of_its_package() {
        let open: OpenOn = Arc::new(|cpu| second_cpu(cpu, &[7, 9]));
        let mut event = EventFile::new(counts(&[3, 5]), open, vec![0, 1], true);
        let start = Instant::now();
        assert_eq!([0, 1].map(|at| read_at(&mut event, at, start)), [Ok(3), Ok(5)]);
        assert!(read_at(&mut event, 2, start).is_err());
        assert_eq!(read_at(&mut event, 3, start), Err(REOPENED.to_owned()));
        assert_eq!(read_at(&mut event, 4, start), Ok(9));
    }

    #[test]
    fn an_event_whose_count_stands_is_opened_again() {
        let open: OpenOn = Arc::new(|cpu| second_cpu(cpu, &[0, 7, 9]));
        let mut event = EventFile::new(counts(&[5; 9]), open.clone(), vec![0, 1], true);
        let start = Instant::now();
        for at in [0, 4, 5] {
            assert_eq!(read_at(&mut event, at, start), Ok(5));
        }
        assert_eq!(read_at(&mut event, 6, start), Ok(5), "the new event has counted nothing yet");
        assert_eq!(read_at(&mut event, 7, start), Err(REOPENED.to_owned()));
        assert_eq!(read_at(&mut event, 8, start), Ok(9));
        let mut part = EventFile::new(counts(&[5; 9]), open, vec![1], false);
        assert_eq!([0, 20, 40].map(|at| read_at(&mut part, at, start)), [Ok(5), Ok(5), Ok(5)], "it may stand");
    }

    #[test]
    fn an_event_that_may_not_be_opened_again_is_denied() {
        let open: OpenOn = Arc::new(|_| Err(io::Error::from_raw_os_error(libc::EACCES)));
        let mut event = EventFile::new(counts(&[5]), open, vec![0], true);
        event.read(Instant::now()).unwrap();
        let error = event.read(Instant::now()).unwrap_err();
        assert_eq!(Reason::of(&error), Reason::Denied);
        assert!(error.to_string().contains("restart the probe"), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_cpumasks_do_not_panic(text in ".{0,30}") {
            let _ = parse_cpus(&text);
        }
    }
}
