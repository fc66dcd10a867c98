//! Sensors of the board and the processor under `/sys/class/hwmon`, for machines without RAPL.
//!
//! Only known drivers that measure the processor or the whole machine are used, because others
//! measure a GPU or a disk. Where a driver reports power only, it is integrated over the time
//! between two readings, which is as exact as the averaging of the sensor.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Instant,
};

use units::Microjoules;

use super::{
    counter_file::CounterFile,
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

enum Kind {
    /// Microjoules, 64 bits.
    Energy,
    /// Microwatts, with the integrated energy and the time of the last reading.
    Power { energy: Microjoules, last: Option<Instant> },
}

/// The open sensors.
pub struct Hwmon {
    inventory: SourceInventory,
    sensors: Vec<(CounterFile, Kind)>,
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
                        this.add_power(&dir, id, driver);
                    }
                }
                Coverage::Platform => this.add_power(&dir, ZoneId { package: None, kind: ZoneKind::Psys }, driver),
            }
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
            self.add(dir.join(format!("{sensor}_input")), id, Kind::Energy, 16, UPDATE_NS);
        }
    }

    fn add_power(&mut self, dir: &Path, id: ZoneId, driver: &str) {
        if self.inventory.has(id) {
            self.inventory.left_out.push(format!("{}: a second {driver} for {id}", dir.display()));
            return;
        }
        // The average is preferred, because a momentary value misses changes between two readings.
        let file = ["power1_average", "power1_input"].iter().map(|file| dir.join(file)).find(|file| file.exists());
        match file {
            // Drivers do not state the resolution. Assumed is one watt, which is a joule over a
            // second.
            Some(file) => {
                let interval = fs::read_to_string(dir.join("power1_average_interval")).ok();
                let interval = interval.and_then(|text| text.trim().parse::<u64>().ok()).filter(|ms| *ms > 0);
                let update_ns = interval.map_or(DEFAULT_AVERAGING_NS, |ms| ms.saturating_mul(1_000_000));
                self.add(file, id, Kind::Power { energy: Microjoules::ZERO, last: None }, 1_000_000, update_ns);
            }
            None => {
                self.inventory
                    .left_out
                    .push(format!("{}: {driver} without power1_average or power1_input", dir.display()));
            }
        }
    }

    fn add(&mut self, path: PathBuf, id: ZoneId, kind: Kind, step_uj: u64, update_ns: u64) {
        match File::open(&path) {
            Ok(file) => {
                let ceiling = Ceiling::learned(id.kind);
                let zone = Zone::microjoules(id, Range::Endless, path.display().to_string());
                self.inventory.zones.push(Zone { step_uj, update_ns, ceiling, ..zone });
                self.sensors.push((CounterFile::new(path, file), kind));
            }
            Err(error) => self.inventory.refused.push((
                id,
                Unavailable::new(Reason::of(&error), format!("{}: {error}. Run the probe as root", path.display())),
            )),
        }
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
        out.extend(self.sensors.iter_mut().map(|(file, kind)| {
            let value = file.read()?;
            match kind {
                Kind::Energy => Ok(value),
                // A machine that runs uses power. The sensor is broken, and its time stays unknown.
                Kind::Power { .. } if value == 0 || value > MAX_POWER_UW => {
                    Err(io::Error::new(io::ErrorKind::InvalidData, format!("{value} µW is an impossible power")))
                }
                Kind::Power { energy, last } => {
                    let now = Instant::now();
                    let ns = last.replace(now).map_or(0, |last| (now - last).as_nanos());
                    if ns > MAX_GAP_NS {
                        // The energy of the gap is unknown. The counter restarts, and its decrease
                        // is detected as a reset.
                        *energy = Microjoules::ZERO;
                        return Ok(0);
                    }
                    *energy += Microjoules::from_power(value, u64::try_from(ns).unwrap_or(0));
                    Ok(energy.0)
                }
            }
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

    #[test]
    fn without_a_known_driver_it_is_absent_and_lists_them() {
        let dir = tree(&[("hwmon0/name", "coretemp\n"), ("hwmon0/power1_input", "1\n")]);
        let why = open(dir.path()).err().unwrap();
        assert_eq!(why.reason, Reason::Absent);
        assert!(why.detail.contains("amd_energy"), "{why}");
    }
}
