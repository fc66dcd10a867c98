//! Sensors of the board and the processor under `/sys/class/hwmon`, for machines without RAPL.
//!
//! Only known drivers that measure the processor or the whole machine are used, because others
//! measure a GPU or a disk. Where a driver reports power only, it is integrated over the time
//! between two readings, which is as exact as the averaging of the sensor.
//!
//! A machine may have several power meters. Those of NVIDIA Grace say what they measure. Of others,
//! one may be the total of the rest, which its value shows; otherwise they measure different parts.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use units::Microjoules;

use super::{
    counter_file::{CounterFile, REOPENED, number_in},
    source::{Source, SourceInventory},
    zone::{Ceiling, Origin, Range, UPDATE_NS, Zone, ZoneId, ZoneKind},
};
use crate::host::{
    availability::{Reason, Unavailable},
    topology::{PackageId, Topology},
};

/// What the sensors of a known driver cover.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Coverage {
    /// `energyN_input` with labels `EsocketN` (Documentation/hwmon/amd_energy.rst).
    Sockets,
    /// One processor per device: `power1_average` (Documentation/hwmon/fam15h_power.rst).
    Package,
    /// The machine: the ACPI power meter (Documentation/hwmon/acpi_power_meter.rst).
    Platform,
}

const DRIVERS: [(&str, Coverage); 3] =
    [("amd_energy", Coverage::Sockets), ("fam15h_power", Coverage::Package), ("power_meter", Coverage::Platform)];

/// Assumed averaging time of a power sensor without a stated interval.
const DEFAULT_AVERAGING_NS: u64 = 2_000_000_000;

/// Longest time that one power reading may cover. After a longer gap the energy is unknown.
const MAX_GAP_NS: u128 = 60_000_000_000;

/// More than any machine with such a sensor uses.
const MAX_POWER_UW: u64 = 20_000_000_000;

#[derive(Clone, Copy)]
enum Kind {
    /// Microjoules, 64 bits.
    Energy,
    /// Microwatts, with the integrated energy and the time of the last reading.
    Power { energy: Microjoules, last: Option<Instant> },
}

impl Kind {
    const POWER: Self = Self::Power { energy: Microjoules::ZERO, last: None };
}

/// An open sensor.
struct Sensor {
    file: CounterFile,
    kind: Kind,
}

impl Sensor {
    /// Energy so far, in microjoules.
    ///
    /// # Errors
    /// When it cannot be read, or shows an impossible power. [`REOPENED`] after a gap whose energy
    /// is unknown.
    fn read(&mut self) -> io::Result<u64> {
        let value = self.file.read()?;
        match &mut self.kind {
            Kind::Energy => Ok(value),
            // A machine that runs uses power. The sensor is broken, and its time stays unknown.
            Kind::Power { .. } if value == 0 || value > MAX_POWER_UW => {
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("{value} µW is an impossible power")))
            }
            Kind::Power { energy, last } => {
                let now = Instant::now();
                let ns = last.replace(now).map_or(0, |last| (now - last).as_nanos());
                if ns > MAX_GAP_NS {
                    return Err(io::Error::other(REOPENED));
                }
                *energy += Microjoules::from_power(value, u64::try_from(ns).unwrap_or(0));
                Ok(energy.0)
            }
        }
    }
}

/// A power meter that was found: its file, its averaging time, and what it says that it measures.
struct Meter {
    path: PathBuf,
    update_ns: u64,
    label: String,
}

/// What a power meter measures, by its label (`power1_oem_info`: what the firmware calls it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MeterPart {
    /// NVIDIA Grace: a processor with its memory and links.
    Socket(usize),
    /// NVIDIA Grace: a module, which is a socket with its GPU.
    Module,
    /// NVIDIA Grace: a part of a socket.
    InSocket,
    /// Unknown: the machine, or a part of it.
    Unknown,
}

impl MeterPart {
    /// NVIDIA Grace Performance Tuning Guide: `Module Power Socket 0`, `Grace Power Socket 0`, `CPU
    /// Power Socket 0`, `SysIO Power Socket 0`.
    fn of(label: &str) -> Self {
        let Some((what, socket)) = label.split_once(" Power Socket ") else { return Self::Unknown };
        match (what.trim(), socket.trim().parse()) {
            ("Grace", Ok(socket)) => Self::Socket(socket),
            ("Module", Ok(_)) => Self::Module,
            (_, Ok(_)) => Self::InSocket,
            (_, Err(_)) => Self::Unknown,
        }
    }
}

/// Readings that show whether one meter is the total of the others, and the time between them.
const TOTAL_READINGS: (usize, Duration) = (3, Duration::from_millis(20));

/// The meter that measures the sum of all others, within 3 % in each row of microwatts. Two meters
/// are not enough: both may measure one of two equal parts.
fn total(rows: &[Vec<u64>]) -> Option<usize> {
    let meters = rows.first()?.len();
    let is_total = |meter: &usize| {
        rows.iter().all(|row| {
            let others = row.iter().fold(0, |sum: u64, uw| sum.saturating_add(*uw)).saturating_sub(row[*meter]);
            row[*meter] > 0 && row[*meter].abs_diff(others) <= row[*meter] / 100 * 3
        })
    };
    (0..meters).filter(|_| meters > 2).find(is_total)
}

/// The open sensors.
pub struct Hwmon {
    inventory: SourceInventory,
    /// The sensors of each zone, whose sum is its counter.
    sensors: Vec<Vec<Sensor>>,
}

impl Hwmon {
    /// Opens every sensor of a known driver.
    ///
    /// # Errors
    /// `absent` without one, `denied` or `broken` when none can be opened.
    pub fn open(sysfs: &Path, topology: &Topology) -> Result<Self, Unavailable> {
        let class = sysfs.join("class/hwmon");
        let mut this = Self { inventory: SourceInventory::default(), sensors: Vec::new() };
        let mut devices: Vec<PathBuf> =
            fs::read_dir(&class).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        // In the order of their devices, which for processors is the order of PCI addresses. The
        // numbers depend on the order in which drivers load.
        devices.sort_by_cached_key(|dir| fs::canonicalize(dir.join("device")).unwrap_or_else(|_| dir.clone()));
        let mut packages = topology.packages(false).into_iter();
        let mut meters = Vec::new();
        for dir in devices {
            // Drivers with the older registration, as acpi_power_meter once had, have their files
            // in the directory of the device.
            let dir = if dir.join("name").exists() { dir } else { dir.join("device") };
            let name = fs::read_to_string(dir.join("name")).unwrap_or_default();
            let Some((driver, coverage)) = DRIVERS.iter().find(|(driver, _)| *driver == name.trim()) else { continue };
            match coverage {
                Coverage::Sockets => this.add_sockets(&dir, topology),
                Coverage::Package => {
                    // One device for each processor, in the order of their PCI addresses, as the
                    // packages are numbered.
                    if let Some(package) = packages.next() {
                        let id = ZoneId { package: Some(package), kind: ZoneKind::Package };
                        let meter = this.find_meter(&dir, driver).into_iter().collect();
                        this.add_meters(id, meter);
                    }
                }
                Coverage::Platform => meters.extend(this.find_meter(&dir, driver)),
            }
        }
        this.add_platform(meters, topology);
        if !this.inventory.zones.is_empty() {
            return Ok(this);
        }
        Err(this.inventory.refused.into_iter().next().map(|(_, why)| why).unwrap_or_else(|| {
            let known: Vec<_> = DRIVERS.iter().map(|(driver, _)| *driver).collect();
            Unavailable::new(
                Reason::Absent,
                format!(
                    "{}: no sensor of a driver that measures processors or machines ({})",
                    class.display(),
                    known.join(", ")
                ),
            )
        }))
    }

    fn add_sockets(&mut self, dir: &Path, topology: &Topology) {
        let labels = fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| {
            let file = entry.file_name().into_string().ok()?;
            let sensor = file.strip_suffix("_label").filter(|sensor| sensor.starts_with("energy"))?.to_owned();
            Some((sensor, fs::read_to_string(entry.path()).ok()?.trim().to_owned()))
        });
        let mut labels: Vec<_> = labels.collect();
        labels.sort_unstable();
        let packages = topology.packages(false);
        for (sensor, label) in labels {
            // The other sensors of this driver are single cores.
            let Some(socket) = label.strip_prefix("Esocket").and_then(|number| number.parse::<usize>().ok()) else {
                continue;
            };
            let Some(PackageId { package, .. }) = packages.get(socket) else {
                self.inventory
                    .left_out
                    .push(format!("{}: {label} is a socket that the topology does not contain", dir.display()));
                continue;
            };
            let id = ZoneId { package: Some(PackageId::whole(*package)), kind: ZoneKind::Package };
            if self.inventory.has(id) {
                self.inventory.left_out.push(format!("{}: a second counter of {id} ({label})", dir.display()));
                continue;
            }
            let sensors = vec![(dir.join(format!("{sensor}_input")), label)];
            self.add(sensors, id, Kind::Energy, 16, UPDATE_NS);
        }
    }

    /// The power meter of a device; `None` when it has none.
    fn find_meter(&mut self, dir: &Path, driver: &str) -> Option<Meter> {
        // The average is preferred, because a momentary value misses changes between two readings.
        let file = ["power1_average", "power1_input"].iter().map(|file| dir.join(file)).find(|file| file.exists());
        let Some(path) = file else {
            let what = format!("{}: {driver} without power1_average or power1_input", dir.display());
            self.inventory.left_out.push(what);
            return None;
        };
        let interval = number_in(&dir.join("power1_average_interval")).filter(|ms| *ms > 0);
        let update_ns = interval.map_or(DEFAULT_AVERAGING_NS, |ms| ms.saturating_mul(1_000_000));
        let label = fs::read_to_string(dir.join("power1_oem_info")).unwrap_or_default();
        let label = label.trim().chars().filter(|char| !char.is_control()).take(80).collect();
        Some(Meter { path, update_ns, label })
    }

    /// Adds the power meters of the machine: by their labels, or as its sum.
    fn add_platform(&mut self, meters: Vec<Meter>, topology: &Topology) {
        let packages = topology.packages(false);
        let mut sockets: BTreeMap<ZoneId, Vec<Meter>> = BTreeMap::new();
        let (mut modules, mut unknown) = (Vec::new(), Vec::new());
        for meter in meters {
            let why = match MeterPart::of(&meter.label) {
                MeterPart::Socket(socket) => match packages.get(socket) {
                    Some(package) => {
                        let id = ZoneId { package: Some(*package), kind: ZoneKind::Package };
                        let of_socket = sockets.entry(id).or_default();
                        if of_socket.is_empty() {
                            of_socket.push(meter);
                            continue;
                        }
                        "a second meter of one socket"
                    }
                    None => "a socket that the topology does not contain",
                },
                MeterPart::Module => {
                    modules.push(meter);
                    continue;
                }
                MeterPart::InSocket => "a part of its socket",
                MeterPart::Unknown => {
                    unknown.push(meter);
                    continue;
                }
            };
            self.leave_out(&meter, why);
        }
        let labelled = !sockets.is_empty() || !modules.is_empty();
        for (id, meters) in sockets {
            self.add_meters(id, meters);
        }
        let machine = if labelled {
            unknown.iter().for_each(|meter| self.leave_out(meter, "it may contain the labelled meters"));
            modules
        } else {
            self.without_parts(unknown)
        };
        self.add_meters(ZoneId { package: None, kind: ZoneKind::Psys }, machine);
    }

    /// The total alone, where one of the meters is the total of the others.
    fn without_parts(&mut self, mut meters: Vec<Meter>) -> Vec<Meter> {
        if meters.len() < 3 {
            return meters;
        }
        let power = |meter: &Meter| number_in(&meter.path);
        let mut rows = Vec::new();
        for _ in 0..TOTAL_READINGS.0 {
            let Some(row) = meters.iter().map(power).collect::<Option<Vec<u64>>>() else { return meters };
            rows.push(row);
            std::thread::sleep(TOTAL_READINGS.1);
        }
        let Some(total) = total(&rows) else { return meters };
        let total = meters.swap_remove(total);
        let why = format!("a part of {}, which is the sum of the others", total.path.display());
        meters.iter().for_each(|meter| self.leave_out(meter, &why));
        vec![total]
    }

    fn leave_out(&mut self, meter: &Meter, why: &str) {
        let label: &str = if meter.label.is_empty() { "no label" } else { &meter.label };
        self.inventory.left_out.push(format!("{} ({label}): {why}", meter.path.display()));
    }

    /// Adds a zone whose energy is the sum of meters; nothing without any.
    fn add_meters(&mut self, id: ZoneId, meters: Vec<Meter>) {
        let Some(update_ns) = meters.iter().map(|meter| meter.update_ns).max() else { return };
        if self.inventory.has(id) {
            meters.iter().for_each(|meter| self.leave_out(meter, &format!("a second meter of {id}")));
            return;
        }
        // Drivers do not state the resolution. Assumed is one watt, which is a joule over a second.
        let step_uj = 1_000_000 * u64::try_from(meters.len()).unwrap_or(1);
        self.add(
            meters.into_iter().map(|meter| (meter.path, meter.label)).collect(),
            id,
            Kind::POWER,
            step_uj,
            update_ns,
        );
    }

    /// Adds a zone of sensors, each with its label.
    fn add(&mut self, sensors: Vec<(PathBuf, String)>, id: ZoneId, kind: Kind, step_uj: u64, update_ns: u64) {
        let mut opened = Vec::new();
        let mut names = Vec::new();
        for (path, label) in sensors {
            let name = path.display().to_string();
            match File::open(&path) {
                Ok(file) => opened.push(Sensor { file: CounterFile::new(path, file), kind }),
                Err(error) => {
                    // Without one of its parts, the zone would look complete.
                    let why = Unavailable::new(Reason::of(&error), format!("{name}: {error}. Run the probe as root"));
                    self.inventory.refused.push((id, why));
                    return;
                }
            }
            names.push(if label.is_empty() { name } else { format!("{name} ({label})") });
        }
        let zone = Zone::microjoules(id, Range::Endless, location(&names));
        self.inventory.zones.push(Zone { step_uj, update_ns, ceiling: Ceiling::learned(id.kind), ..zone });
        self.sensors.push(opened);
    }
}

/// The names of all sensors of a zone, as far as they fit into a line.
fn location(names: &[String]) -> String {
    const MAX_NAMED: usize = 8;
    let named = names[..names.len().min(MAX_NAMED)].join(" + ");
    match names.len().saturating_sub(MAX_NAMED) {
        0 => named,
        more => format!("{named} + {more} more"),
    }
}

impl Source for Hwmon {
    fn origin(&self) -> Origin {
        Origin::Hwmon
    }

    fn inventory(&self) -> &SourceInventory {
        &self.inventory
    }

    fn read(&mut self, out: &mut Vec<io::Result<u64>>) {
        out.extend(self.sensors.iter_mut().map(|sensors| {
            // Every sensor is read, because each integrates over the time since its last reading.
            let values: Vec<io::Result<u64>> = sensors.iter_mut().map(Sensor::read).collect();
            values.into_iter().try_fold(0u64, |sum, value| Ok(sum.saturating_add(value?)))
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::energy::zone::accounting_roots;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = dir.path().join("class/hwmon").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn open(dir: &Path) -> Result<Hwmon, Unavailable> {
        Hwmon::open(dir, &Topology::read(Path::new("/nowhere")))
    }

    #[test]
    fn amd_energy_has_packages_and_its_cores_are_ignored() {
        let dir = tree(&[
            ("hwmon3/name", "amd_energy\n"),
            ("hwmon3/energy1_label", "Ecore000\n"),
            ("hwmon3/energy1_input", "5\n"),
            ("hwmon3/energy65_label", "Esocket0\n"),
            ("hwmon3/energy65_input", "7000\n"),
            ("hwmon3/energy66_label", "Esocket1\n"),
            ("hwmon3/energy66_input", "1\n"),
            ("hwmon4/name", "nvme\n"),
            ("hwmon4/power1_average", "5000000\n"),
        ]);
        let mut source = open(dir.path()).unwrap();
        assert_eq!(source.zones().len(), 1, "{:?}", source.zones());
        assert_eq!(source.inventory().left_out.len(), 1, "a second socket that the topology does not contain");
        let mut raw = Vec::new();
        source.read(&mut raw);
        assert_eq!(raw.remove(0).unwrap(), 7000);
    }

    #[test]
    fn platform_power_is_integrated_and_is_the_only_root() {
        let dir = tree(&[("hwmon0/name", "power_meter\n"), ("hwmon0/power1_average", "100000000\n")]);
        let mut source = open(dir.path()).unwrap();
        assert_eq!(source.zones()[0].id.to_string(), "psys of package all");
        assert_eq!(accounting_roots(source.zones()), [true]);
        let mut read = || {
            let mut raw = Vec::new();
            source.read(&mut raw);
            raw.remove(0).unwrap()
        };
        let start = Instant::now();
        assert_eq!(read(), 0);
        std::thread::sleep(std::time::Duration::from_millis(30));
        let energy = read();
        // 100 W over at least 30 ms, and at most over the elapsed time.
        let most = u64::try_from(start.elapsed().as_micros()).unwrap() * 100;
        assert!((3_000_000..=most).contains(&energy), "{energy} of at most {most}");
    }

    #[test]
    fn older_drivers_have_their_files_in_the_device_directory() {
        let dir = tree(&[
            ("hwmon3/device/name", "power_meter\n"),
            ("hwmon3/device/power1_average", "100000000\n"),
            ("hwmon3/device/power1_average_interval", "3000\n"),
        ]);
        let source = open(dir.path()).unwrap();
        assert_eq!(source.zones()[0].id.to_string(), "psys of package all");
        assert_eq!(source.zones()[0].update_ns, 3_000_000_000);
    }

    fn meters(meters: &[(&str, u64)]) -> tempfile::TempDir {
        let mut files = Vec::new();
        for (number, (label, watts)) in meters.iter().enumerate() {
            let file = |name: &str| format!("hwmon{number}/{name}");
            files.push((file("name"), "power_meter\n".to_owned()));
            files.push((file("power1_average"), format!("{}\n", watts * 1_000_000)));
            files.push((file("power1_oem_info"), format!("{label}\n")));
        }
        tree(&files.iter().map(|(file, text)| (&**file, &**text)).collect::<Vec<_>>())
    }

    /// Zones with the number of their meters, and how many meters are left out.
    fn zones(dir: &Path) -> (Vec<(String, usize)>, usize) {
        for cpu in [0, 1] {
            let topology = dir.join(format!("devices/system/cpu/cpu{cpu}/topology"));
            fs::create_dir_all(&topology).unwrap();
            fs::write(topology.join("physical_package_id"), cpu.to_string()).unwrap();
        }
        let source = Hwmon::open(dir, &Topology::read(dir)).unwrap();
        let zones = source.zones().iter().zip(&source.sensors);
        (zones.map(|(zone, sensors)| (zone.id.to_string(), sensors.len())).collect(), source.inventory().left_out.len())
    }

    fn named(names: &[(&str, usize)]) -> Vec<(String, usize)> {
        names.iter().map(|(name, meters)| ((*name).to_owned(), *meters)).collect()
    }

    #[test]
    fn meters_of_nvidia_grace_are_sockets_and_modules() {
        let dir = meters(&[
            ("Module Power Socket 0", 500),
            ("Grace Power Socket 0", 200),
            ("CPU Power Socket 0", 120),
            ("SysIO Power Socket 0", 40),
            ("Module Power Socket 1", 400),
            ("Grace Power Socket 1", 150),
        ]);
        let expected = named(&[("package of package 0", 1), ("package of package 1", 1), ("psys of package all", 2)]);
        assert_eq!(zones(dir.path()), (expected, 2));
    }

    #[test]
    fn meters_without_labels_are_summed() {
        let dir = meters(&[("", 100), ("", 250)]);
        assert_eq!(zones(dir.path()), (named(&[("psys of package all", 2)]), 0));
        let mut source = open(dir.path()).unwrap();
        assert_eq!(source.zones()[0].step_uj, 2_000_000);
        let mut read = || {
            let mut raw = Vec::new();
            source.read(&mut raw);
            raw.remove(0).unwrap()
        };
        let start = Instant::now();
        read();
        std::thread::sleep(Duration::from_millis(30));
        let energy = read();
        let most = u64::try_from(start.elapsed().as_micros()).unwrap() * 350;
        assert!((10_500_000..=most).contains(&energy), "{energy} of at most {most}");
    }

    #[test]
    fn a_meter_that_is_the_sum_of_the_others_is_used_alone() {
        let dir = meters(&[("", 100), ("", 352), ("", 250)]);
        assert_eq!(zones(dir.path()), (named(&[("psys of package all", 1)]), 2));
        let source = open(dir.path()).unwrap();
        assert!(source.zones()[0].location.contains("hwmon1/"), "{}", source.zones()[0].location);
        let apart = meters(&[("", 100), ("", 400), ("", 250)]);
        assert_eq!(zones(apart.path()), (named(&[("psys of package all", 3)]), 0));
        assert_eq!(total(&[vec![100, 350, 250], vec![100, 500, 250]]), None, "in one reading only");
        assert_eq!(total(&[vec![100, 100]]), None, "two equal parts");
    }

    #[test]
    fn without_a_known_driver_it_is_absent_and_lists_them() {
        let dir = tree(&[("hwmon0/name", "coretemp\n"), ("hwmon0/power1_input", "1\n")]);
        let why = open(dir.path()).err().unwrap();
        assert_eq!(why.reason, Reason::Absent);
        assert!(why.detail.contains("amd_energy"), "{why}");
    }
}
