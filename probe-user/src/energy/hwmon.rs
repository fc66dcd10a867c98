//! Sensors of the board and the processor under `/sys/class/hwmon`: what is left where RAPL is not.
//!
//! Only drivers that are known to measure the processor or the whole machine are believed; a GPU's or a disk's power is not
//! the processor's. Where a driver gives watts only, they are integrated over the time between two readings, which is as good as
//! the sensor's own averaging.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use super::{
    Found, Source,
    zone::{Ceiling, Origin, Range, UPDATE_NS, Zone, ZoneId, ZoneKind},
};
use crate::{
    state::{Reason, Unavailable},
    topology::{PackageId, Topology},
    units::Microjoules,
};

/// What a known driver's sensors cover.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Covers {
    /// `energyN_input` with labels `EsocketN` (Documentation/hwmon/amd_energy.rst).
    Sockets,
    /// One processor per device: `power1_average` (Documentation/hwmon/fam15h_power.rst).
    Package,
    /// The machine: ACPI's power meter (Documentation/hwmon/acpi_power_meter.rst).
    Platform,
}

const DRIVERS: [(&str, Covers); 3] =
    [("amd_energy", Covers::Sockets), ("fam15h_power", Covers::Package), ("power_meter", Covers::Platform)];

/// What a power sensor that states no interval is taken to average over.
const AVERAGES_NS: u64 = 2_000_000_000;

/// Longest that one reading of watts may stand for: beyond it nobody knows what happened meanwhile.
const LONGEST_NS: u128 = 60_000_000_000;

enum Kind {
    /// Microjoules, 64 bits.
    Energy,
    /// Microwatts; what they added up to, and when they were read last.
    Power { counted: Microjoules, last: Option<Instant> },
}

/// The sensors that were found.
pub struct Hwmon {
    found: Found,
    sensors: Vec<(File, Kind)>,
}

impl Hwmon {
    /// Opens every sensor of a known driver.
    ///
    /// # Errors
    /// `absent` without one, `denied` or `broken` when none can be opened.
    pub fn open(sysfs: &Path, topology: &Topology) -> Result<Self, Unavailable> {
        let class = sysfs.join("class/hwmon");
        let mut this = Self { found: Found::default(), sensors: Vec::new() };
        let mut devices: Vec<PathBuf> =
            fs::read_dir(&class).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        // By the devices behind them, which for processors is the order of PCI addresses; numbers are given as drivers load.
        devices.sort_by_cached_key(|dir| fs::canonicalize(dir.join("device")).unwrap_or_else(|_| dir.clone()));
        let mut packages = topology.packages(false).into_iter();
        for dir in devices {
            // Drivers that register in the older way keep their files with the device, as acpi_power_meter long did.
            let dir = if dir.join("name").exists() { dir } else { dir.join("device") };
            let name = fs::read_to_string(dir.join("name")).unwrap_or_default();
            let Some((driver, covers)) = DRIVERS.iter().find(|(driver, _)| *driver == name.trim()) else { continue };
            match covers {
                Covers::Sockets => this.sockets(&dir, topology),
                Covers::Package => {
                    // One device for each processor, in the order of their PCI addresses, as the packages are numbered.
                    if let Some(package) = packages.next() {
                        let id = ZoneId { package: Some(package), kind: ZoneKind::Package };
                        this.power(&dir, id, driver);
                    }
                }
                Covers::Platform => this.power(&dir, ZoneId { package: None, kind: ZoneKind::Psys }, driver),
            }
        }
        if !this.found.zones.is_empty() {
            return Ok(this);
        }
        Err(this.found.refused.into_iter().next().map(|(_, why)| why).unwrap_or_else(|| {
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

    fn sockets(&mut self, dir: &Path, topology: &Topology) {
        let labels = fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| {
            let file = entry.file_name().into_string().ok()?;
            let sensor = file.strip_suffix("_label").filter(|sensor| sensor.starts_with("energy"))?.to_owned();
            Some((sensor, fs::read_to_string(entry.path()).ok()?.trim().to_owned()))
        });
        let mut labels: Vec<_> = labels.collect();
        labels.sort_unstable();
        let packages = topology.packages(false);
        for (sensor, label) in labels {
            // Its other sensors are single cores.
            let Some(socket) = label.strip_prefix("Esocket").and_then(|number| number.parse::<usize>().ok()) else {
                continue;
            };
            let Some(PackageId { package, .. }) = packages.get(socket) else {
                self.found
                    .left_out
                    .push(format!("{}: {label} is a socket that the topology does not have", dir.display()));
                continue;
            };
            let id = ZoneId { package: Some(PackageId::whole(*package)), kind: ZoneKind::Package };
            self.add(dir.join(format!("{sensor}_input")), id, Kind::Energy, 16, UPDATE_NS);
        }
    }

    fn power(&mut self, dir: &Path, id: ZoneId, driver: &str) {
        if self.found.has(id) {
            self.found.left_out.push(format!("{}: a second {driver} for {id}", dir.display()));
            return;
        }
        // The average where there is one: a momentary value misses what happened between two readings.
        let file = ["power1_average", "power1_input"].iter().map(|file| dir.join(file)).find(|file| file.exists());
        match file {
            // Taken to be good to a watt, which over a second is a joule; drivers do not say.
            Some(file) => {
                let interval = fs::read_to_string(dir.join("power1_average_interval")).ok();
                let interval = interval.and_then(|text| text.trim().parse::<u64>().ok()).filter(|ms| *ms > 0);
                let update_ns = interval.map_or(AVERAGES_NS, |ms| ms.saturating_mul(1_000_000));
                self.add(file, id, Kind::Power { counted: Microjoules::ZERO, last: None }, 1_000_000, update_ns);
            }
            None => {
                self.found.left_out.push(format!("{}: {driver} without power1_average or power1_input", dir.display()));
            }
        }
    }

    fn add(&mut self, path: PathBuf, id: ZoneId, kind: Kind, step_uj: u64, update_ns: u64) {
        match File::open(&path) {
            Ok(file) => {
                let ceiling = Ceiling::learned(id.kind);
                let zone = Zone::microjoules(id, Range::Endless, path.display().to_string());
                self.found.zones.push(Zone { step_uj, update_ns, ceiling, ..zone });
                self.sensors.push((file, kind));
            }
            Err(error) => self.found.refused.push((
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

    fn found(&self) -> &Found {
        &self.found
    }

    fn read(&mut self, out: &mut Vec<io::Result<u64>>) {
        out.extend(self.sensors.iter_mut().map(|(file, kind)| {
            let mut buffer = [0; 32];
            let length = file.read_at(&mut buffer, 0)?;
            let value: u64 = str::from_utf8(&buffer[..length])
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a number"))?;
            match kind {
                Kind::Energy => Ok(value),
                Kind::Power { counted, last } => {
                    let now = Instant::now();
                    let ns = last.replace(now).map_or(0, |last| (now - last).as_nanos());
                    if ns > LONGEST_NS {
                        // What was used meanwhile is unknown: the counter starts anew, and by its fall the ledger knows.
                        *counted = Microjoules::ZERO;
                        return Ok(0);
                    }
                    *counted += Microjoules::of(value, u64::try_from(ns).unwrap_or(0));
                    Ok(counted.0)
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
    fn sockets_of_amd_energy_are_packages_and_its_cores_are_not() {
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
        assert_eq!(source.found().left_out.len(), 1, "a second socket that this topology does not have");
        let mut raw = Vec::new();
        source.read(&mut raw);
        assert_eq!(raw.remove(0).unwrap(), 7000);
    }

    #[test]
    fn watts_of_the_machine_are_integrated_and_are_the_root_where_nothing_else_is() {
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
        let counted = read();
        // 100 W over at least 30 ms, and not longer than this took.
        let most = u64::try_from(start.elapsed().as_micros()).unwrap() * 100;
        assert!((3_000_000..=most).contains(&counted), "{counted} of at most {most}");
    }

    #[test]
    fn the_files_of_older_drivers_are_with_the_device() {
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
    fn without_a_known_driver_it_is_absent_and_says_which_it_knows() {
        let dir = tree(&[("hwmon0/name", "coretemp\n"), ("hwmon0/power1_input", "1\n")]);
        let why = open(dir.path()).err().unwrap();
        assert_eq!(why.reason, Reason::Absent);
        assert!(why.detail.contains("amd_energy"), "{why}");
    }
}
