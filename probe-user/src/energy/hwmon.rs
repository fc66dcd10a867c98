//! Sensors of the board and the processor under `/sys/class/hwmon`, for machines without RAPL.
//!
//! Only known drivers that measure the processor or the whole machine are used, because others
//! measure a GPU or a disk. Where a driver reports power only, it is integrated over the time
//! between two readings, which is as exact as the averaging of the sensor.
//!
//! A machine may have several power meters. Those of NVIDIA Grace say what they measure. Of others,
//! one may be the total of the rest, which its value shows; otherwise they measure different parts.
//!
//! Where no such driver exists, the sensors that other subsystems have in its place are used: the
//! power domains of Arm's firmware, then the rails of a Raspberry Pi. Their zones name their
//! source.

mod pmic;
mod scmi;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use self::{
    pmic::Rails,
    scmi::{Domain, Domains},
};
use super::{
    counter_file::{CounterFile, REOPENED, label_in, number_in},
    integral::Integral,
    source::{Source, SourceInventory, SourcePaths},
    zone::{Ceiling, Origin, Range, UPDATE_NS, Zone, ZoneId, ZoneKind},
};
use crate::host::{
    availability::{Reason, Unavailable},
    topology::{PackageId, Topology},
};

/// What the sensors of a known driver cover.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Coverage {
    /// `energyN_input` with labels `EsocketN` (Documentation/hwmon/amd_energy.rst). `zenergy` is
    /// the same driver outside the kernel, readable by every user.
    Sockets,
    /// One processor per device: `power1_average` (Documentation/hwmon/fam15h_power.rst).
    Package,
    /// One processor per device, in two parts: its cores (`CPU power`) and the rest of the chip
    /// (`IO power`), `power1_input` and `power2_input` (drivers/hwmon/xgene-hwmon.c). X-Gene, eMAG
    /// and Altra have it.
    Parts,
    /// The machine: the ACPI power meter (Documentation/hwmon/acpi_power_meter.rst).
    Platform,
}

const DRIVERS: [(&str, Coverage); 5] = [
    ("amd_energy", Coverage::Sockets),
    ("zenergy", Coverage::Sockets),
    ("fam15h_power", Coverage::Package),
    ("apm_xgene", Coverage::Parts),
    ("power_meter", Coverage::Platform),
];

/// Assumed averaging time of a power sensor without a stated interval, or of a momentary value.
const DEFAULT_AVERAGING_NS: u64 = 2_000_000_000;

/// Assumed resolution of the rails of a Raspberry Pi: a step of the converter of the largest rail,
/// some milliamperes at a volt, over a second.
const RAILS_STEP_UJ: u64 = 10_000;

/// More than any machine with such a sensor uses.
const MAX_POWER_UW: u64 = 20_000_000_000;

#[derive(Clone, Copy)]
enum Kind {
    /// Microjoules, 64 bits.
    Energy,
    /// Microwatts, integrated here. A part that may be switched off may read 0.
    Power { integral: Integral, part: bool },
}

impl Kind {
    const POWER: Self = Self::Power { integral: Integral::ZERO, part: false };
    const PART: Self = Self::Power { integral: Integral::ZERO, part: true };
}

/// Where a sensor is read.
enum Input {
    File(CounterFile),
    /// The firmware of a Raspberry Pi.
    Rails(Rails),
}

impl Input {
    fn read(&mut self) -> io::Result<u64> {
        match self {
            Self::File(file) => file.read(),
            Self::Rails(rails) => rails.microwatts(),
        }
    }
}

/// An open sensor.
struct Sensor {
    input: Input,
    kind: Kind,
}

impl Sensor {
    /// Energy so far, in microjoules.
    ///
    /// # Errors
    /// When it cannot be read, or shows an impossible power. [`REOPENED`] after a gap whose energy
    /// is unknown.
    fn read(&mut self) -> io::Result<u64> {
        let value = self.input.read()?;
        match &mut self.kind {
            Kind::Energy => Ok(value),
            // A machine that runs uses power. The sensor is broken; a short time is interpolated
            // when it is back.
            Kind::Power { part, .. } if value == 0 && !*part || value > MAX_POWER_UW => {
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("{value} µW is an impossible power")))
            }
            Kind::Power { integral, .. } => {
                let known = integral.add(value, Instant::now());
                known.then(|| integral.energy().0).ok_or_else(|| io::Error::other(REOPENED))
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
                Coverage::Parts => {
                    if let Some(package) = packages.next() {
                        let id = ZoneId { package: Some(package), kind: ZoneKind::Package };
                        let parts = this.find_parts(&dir, driver);
                        this.add_meters(id, parts);
                    }
                }
                Coverage::Platform => meters.extend(this.find_meter(&dir, driver)),
            }
        }
        this.add_platform(meters, topology);
        if this.inventory.zones.is_empty() && this.inventory.refused.is_empty() {
            this.add_domains(&sysfs.join("class/powercap"), topology);
        }
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

    /// Opens every sensor as [`Hwmon::open`] does, and the rails of a Raspberry Pi on a machine
    /// that has none.
    ///
    /// # Errors
    /// As [`Hwmon::open`]; `denied` or `broken` where the rails exist and cannot be read.
    pub fn open_board(paths: &SourcePaths, topology: &Topology) -> Result<Self, Unavailable> {
        let why = match Self::open(&paths.sysfs, topology) {
            Err(why) if why.reason == Reason::Absent => why,
            opened => return opened,
        };
        match Rails::open(&paths.dev) {
            Ok((rails, path)) => Ok(Self::of_rails(rails, &path, topology)),
            Err(rails) if rails.reason == Reason::Absent => Err(why),
            Err(rails) => Err(rails),
        }
    }

    /// The rails of a board, which together are all that it measures of the machine.
    fn of_rails(rails: Rails, path: &Path, topology: &Topology) -> Self {
        let id = main_board(topology);
        let location = format!("{} (rails of the power management chip)", path.display());
        let zone = Zone {
            step_uj: RAILS_STEP_UJ,
            update_ns: DEFAULT_AVERAGING_NS,
            origin: Some(Origin::Pmic),
            ..Zone::microjoules(id, Range::Endless, location)
        };
        let inventory = SourceInventory { zones: vec![zone], ..SourceInventory::default() };
        Self { inventory, sensors: vec![vec![Sensor { input: Input::Rails(rails), kind: Kind::POWER }]] }
    }

    /// Adds the power domains of Arm's firmware, which together measure the machine, as far as it
    /// is measured.
    fn add_domains(&mut self, class: &Path, topology: &Topology) {
        let Domains { measured, left_out } = Domains::find(class);
        self.inventory.left_out.extend(left_out);
        let meter = |domain: Domain| Meter {
            path: domain.power,
            update_ns: domain.averaging_ns.unwrap_or(DEFAULT_AVERAGING_NS),
            label: domain.label,
        };
        let meters: Vec<Meter> = measured.into_iter().map(meter).collect();
        // One of several domains may be switched off.
        let kind = if meters.len() > 1 { Kind::PART } else { Kind::POWER };
        self.add_power(main_board(topology), meters, kind);
        self.inventory.zones.iter_mut().for_each(|zone| zone.origin = Some(Origin::Scmi));
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
        Some(Meter { path, update_ns, label: label_in(&dir.join("power1_oem_info")) })
    }

    /// The two power meters of a processor; none where one is missing, because the rest would look
    /// complete.
    fn find_parts(&mut self, dir: &Path, driver: &str) -> Vec<Meter> {
        let part = |number: u32| {
            let path = dir.join(format!("power{number}_input"));
            let label = label_in(&dir.join(format!("power{number}_label")));
            path.exists().then_some(Meter { path, update_ns: DEFAULT_AVERAGING_NS, label })
        };
        match [part(1), part(2)] {
            [Some(cores), Some(rest)] => vec![cores, rest],
            _ => {
                let what = format!("{}: {driver} without power1_input or power2_input", dir.display());
                self.inventory.left_out.push(what);
                Vec::new()
            }
        }
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
        self.add_power(id, meters, Kind::POWER);
    }

    fn add_power(&mut self, id: ZoneId, meters: Vec<Meter>, kind: Kind) {
        let Some(update_ns) = meters.iter().map(|meter| meter.update_ns).max() else { return };
        if self.inventory.has(id) {
            meters.iter().for_each(|meter| self.leave_out(meter, &format!("a second meter of {id}")));
            return;
        }
        // Drivers do not state the resolution. Assumed is one watt, which is a joule over a second.
        let step_uj = 1_000_000 * u64::try_from(meters.len()).unwrap_or(1);
        let sensors = meters.into_iter().map(|meter| (meter.path, meter.label)).collect();
        self.add(sensors, id, kind, step_uj, update_ns);
    }

    /// Adds a zone of sensors, each with its label.
    fn add(&mut self, sensors: Vec<(PathBuf, String)>, id: ZoneId, kind: Kind, step_uj: u64, update_ns: u64) {
        let mut opened = Vec::new();
        let mut names = Vec::new();
        for (path, label) in sensors {
            let name = path.display().to_string();
            match File::open(&path) {
                Ok(file) => opened.push(Sensor { input: Input::File(CounterFile::new(path, file)), kind }),
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

/// The zone of sensors of the main board: the package, or all packages together. It is not psys,
/// because they do not measure graphics boards, which psys contains.
fn main_board(topology: &Topology) -> ZoneId {
    ZoneId { package: topology.only_package(), kind: ZoneKind::Package }
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
    fn zenergy_is_read_as_amd_energy_and_counts_no_socket_twice() {
        let mut files = vec![("hwmon2/name", "zenergy\n"), ("hwmon2/energy1_label", "Esocket0\n")];
        files.extend([("hwmon2/energy1_input", "900\n"), ("hwmon2/energy2_label", "Ecore000\n")]);
        files.extend([("hwmon2/energy2_input", "5\n"), ("hwmon5/name", "amd_energy\n")]);
        files.extend([("hwmon5/energy65_label", "Esocket0\n"), ("hwmon5/energy65_input", "900\n")]);
        let dir = tree(&files);
        let source = open(dir.path()).unwrap();
        assert_eq!(source.zones().len(), 1, "{:?}", source.zones());
        assert_eq!((source.inventory().left_out.len(), source.sensors[0].len()), (1, 1));
    }

    #[test]
    fn a_processor_in_two_parts_needs_both() {
        let (name, both) = (("hwmon1/name", "apm_xgene\n"), ("hwmon1/power2_input", "20000000\n"));
        let cores = [("hwmon1/power1_input", "40000000\n"), ("hwmon1/power1_label", "CPU power\n")];
        let dir = tree(&[name, both, cores[0], cores[1]]);
        assert_eq!(zones(dir.path()), (named(&[("package of package 0", 2)]), 0));
        let half = tree(&[name, cores[0]]);
        assert_eq!(open(half.path()).err().unwrap().reason, Reason::Absent);
    }

    fn domains(domains: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (number, (name, power)) in domains.iter().enumerate() {
            let zone = dir.path().join(format!("class/powercap/arm-scmi:{number}"));
            fs::create_dir_all(&zone).unwrap();
            fs::write(zone.join("name"), format!("{name}\n")).unwrap();
            fs::write(zone.join("power_uw"), format!("{power}\n")).unwrap();
        }
        dir
    }

    #[test]
    fn power_domains_are_the_machine_and_name_their_source() {
        let dir = domains(&[("cpu", "8000000"), ("gpu", "0")]);
        let mut source = open(dir.path()).unwrap();
        assert_eq!((source.origin(), source.energy_origin()), (Origin::Hwmon, Origin::Scmi));
        assert!(!source.zones()[0].origin.unwrap().is_rapl(), "no counter of RAPL, whatever its directory");
        let mut raw = Vec::new();
        source.read(&mut raw);
        assert_eq!(raw.remove(0).unwrap(), 0, "a domain that is switched off is no failure");
        // The only domain of a machine that runs is never switched off.
        let off = domains(&[("soc", "0")]);
        open(off.path()).unwrap().read(&mut raw);
        assert_eq!(raw.remove(0).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    /// They were the whole machine, of which boards would be a part.
    #[test]
    fn power_domains_of_several_packages_do_not_contain_boards() {
        let dir = domains(&[("soc", "8000000")]);
        for (cpu, package) in [(0, 0), (1, 1)] {
            let cpu = dir.path().join(format!("devices/system/cpu/cpu{cpu}/topology"));
            fs::create_dir_all(&cpu).unwrap();
            fs::write(cpu.join("physical_package_id"), format!("{package}\n")).unwrap();
        }
        fs::write(dir.path().join("devices/system/cpu/online"), "0-1\n").unwrap();
        assert_eq!(main_board(&Topology::read(dir.path())).to_string(), "package of package all");
        assert_eq!(main_board(&Topology::read(Path::new("/nowhere"))).to_string(), "package of package 0");
    }

    #[test]
    fn sensors_of_a_driver_come_before_power_domains() {
        let dir = domains(&[("soc", "8000000")]);
        let meter = dir.path().join("class/hwmon/hwmon0");
        fs::create_dir_all(&meter).unwrap();
        fs::write(meter.join("name"), "power_meter\n").unwrap();
        fs::write(meter.join("power1_average"), "30000000\n").unwrap();
        assert_eq!(open(dir.path()).unwrap().energy_origin(), Origin::Hwmon);
    }

    #[test]
    fn rails_of_a_board_are_integrated() {
        const RAILS: &str = "VDD_CORE_A current(7)=5.0A\nVDD_CORE_V volt(15)=0.8V\n";
        let topology = Topology::read(Path::new("/nowhere"));
        let mut source = Hwmon::of_rails(pmic::answering(RAILS), Path::new("/dev/vcio"), &topology);
        assert_eq!(source.zones()[0].id.to_string(), "package of package 0");
        assert_eq!((source.energy_origin(), source.energy_origin().reader()), (Origin::Pmic, "hwmon"));
        assert_eq!(source.zones()[0].update_ns, DEFAULT_AVERAGING_NS, "a momentary value");
        assert_eq!(accounting_roots(source.zones()), [true]);
        let mut read = || {
            let mut raw = Vec::new();
            source.read(&mut raw);
            raw.remove(0).unwrap()
        };
        let start = Instant::now();
        assert_eq!(read(), 0);
        std::thread::sleep(Duration::from_millis(30));
        let energy = read();
        let most = u64::try_from(start.elapsed().as_micros()).unwrap() * 4;
        assert!((120_000..=most).contains(&energy), "{energy} of at most {most}");
    }

    #[test]
    fn without_a_known_driver_it_is_absent_and_lists_them() {
        let dir = tree(&[("hwmon0/name", "coretemp\n"), ("hwmon0/power1_input", "1\n")]);
        let why = open(dir.path()).err().unwrap();
        assert_eq!(why.reason, Reason::Absent);
        assert!(why.detail.contains("amd_energy"), "{why}");
    }
}
