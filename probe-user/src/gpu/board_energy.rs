//! Energy of a graphics board, from the graphics driver of the kernel: a counter where the board
//! has one, otherwise its power, integrated here.
//!
//! xe and i915 count microjoules: `energyN_input` of the hwmon device with their name, where the
//! label `card` is the whole card and `pkg` its chip with the memory
//! (Documentation/ABI/testing/sysfs-driver-intel-xe-hwmon, sysfs-driver-intel-i915-hwmon,
//! drivers/gpu/drm/xe/xe_hwmon.c). amdgpu counts in `gpu_metrics` on its accelerators, and has
//! `power1_average` or `power1_input` on all boards (Documentation/gpu/amdgpu/thermal.rst).
//!
//! Files are opened once, when the thread has dropped its capabilities already: they belong to
//! root, and the probe stays uid 0. A driver that is loaded again has other files, which are
//! searched when a reading fails. The sensors of a board that its driver has suspended are not
//! read, because reading would resume it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use units::Unit;

use crate::{
    energy::{
        REOPENED,
        counter_file::{CounterFile, label_in, number_in},
        integral::Integral,
        zone::{Ceiling, Origin, Range, Zone, ZoneId, ZoneKind},
    },
    host::{
        availability::{Reason, Unavailable},
        gpu_id::GpuId,
    },
};

/// Error of the reading of a board that its driver has suspended: it is no failure.
pub const ASLEEP: &str = "is suspended";
/// Interval between two searches for the sensor of a board without one, or whose sensor fails.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Assumed age of a reading of a counter. Drivers do not state it; that of NVIDIA's boards is up to
/// this.
const COUNTER_UPDATE_NS: u64 = 100_000_000;
/// Assumed averaging time of a power without a stated one.
const POWER_AVERAGING_NS: u64 = 1_000_000_000;
/// More than any board uses.
const MAX_POWER_UW: u64 = 5_000_000_000;
/// Microjoules of a step of Intel's counters, which is 2^-14 J (xe_hwmon.c, ENERGY_UNIT).
const INTEL_STEP_UJ: u64 = 62;
/// Longest part of `gpu_metrics` that is read.
const METRICS_BYTES: usize = 128;

/// What a sensor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantity {
    /// Microjoules.
    Energy,
    /// Steps of 2^-16 J, at this offset of `gpu_metrics`.
    Metrics(usize),
    /// Microwatts.
    Power,
}

/// A file of a sensor, and how it is read.
enum Input {
    Number(CounterFile),
    Metrics(File),
}

/// An open sensor.
struct Sensor {
    quantity: Quantity,
    path: PathBuf,
    /// What it covers, as the driver calls it: `card`, `pkg`, `PPT`.
    label: String,
    input: Input,
    averaging_ns: Option<u64>,
    /// Power limit of the board in microwatts.
    limit_uw: Option<u64>,
}

impl Sensor {
    fn value(&mut self) -> io::Result<u64> {
        match (&mut self.input, self.quantity) {
            (Input::Metrics(file), Quantity::Metrics(offset)) => energy_in_metrics(file, offset),
            (Input::Number(file), Quantity::Power) => file.read().and_then(plausible),
            (Input::Number(file), _) => file.read(),
            (Input::Metrics(_), _) => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn plausible(microwatts: u64) -> io::Result<u64> {
    if microwatts <= MAX_POWER_UW {
        return Ok(microwatts);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("{microwatts} µW is an impossible power")))
}

/// The energy of one board.
pub(super) struct BoardEnergy {
    /// The directory of the board in sysfs.
    device: PathBuf,
    driver: String,
    /// `None` until a sensor was found.
    sensor: Option<Sensor>,
    /// Why the last search or reading failed.
    problem: Option<Unavailable>,
    integral: Integral,
    searched: Option<Instant>,
    asleep: bool,
    /// True when the energy since the last reading is unknown, because the counter may have been
    /// reset or the power was not read.
    reset: bool,
}

impl BoardEnergy {
    /// Searches the sensor of the board in `device`, its directory in sysfs.
    pub(super) fn open(device: &Path, driver: &str) -> Self {
        let mut this = Self {
            device: device.to_owned(),
            driver: driver.to_owned(),
            sensor: None,
            problem: None,
            integral: Integral::ZERO,
            searched: None,
            asleep: is_asleep(device),
            reset: false,
        };
        if !this.asleep {
            this.search(Instant::now());
        }
        this
    }

    /// Energy so far in the unit of [`BoardEnergy::zone`]; `None` while no sensor is known. The
    /// error of a suspended board is [`ASLEEP`].
    pub(super) fn read(&mut self, now: Instant) -> Option<Result<u64, String>> {
        if is_asleep(&self.device) {
            self.asleep = true;
            self.integral.pause();
            return self.sensor.is_some().then(|| Err(ASLEEP.to_owned()));
        }
        // A counter that was without power starts at zero, or was extended by the driver as if it
        // had wrapped.
        self.reset |= std::mem::take(&mut self.asleep) && self.sensor.is_some();
        if self.sensor.is_none() {
            self.search(now);
        }
        let error = match self.sensor.as_mut()?.value() {
            Ok(value) => return Some(Ok(self.count(value, now))),
            Err(error) => error,
        };
        self.integral.pause();
        if error.to_string() == REOPENED {
            self.reset = true;
        } else if self.search(now)
            && let Some(value) = self.sensor.as_mut().and_then(|sensor| sensor.value().ok())
        {
            self.reset = true;
            return Some(Ok(self.count(value, now)));
        }
        let location = self.sensor.as_ref().map(|sensor| sensor.path.display().to_string()).unwrap_or_default();
        self.problem = Some(Unavailable::new(Reason::of(&error), format!("{location}: {error}")));
        Some(Err(error.to_string()))
    }

    fn count(&mut self, value: u64, now: Instant) -> u64 {
        self.problem = None;
        match self.sensor.as_ref().map(|sensor| sensor.quantity) {
            Some(Quantity::Power) => {
                self.reset |= !self.integral.add(value, now);
                self.integral.energy().0
            }
            _ => value,
        }
    }

    /// Searches the sensor, at most once in an interval. A sensor that was known is replaced only
    /// by one of the same quantity and part, because its zone stays the same. Returns true when one
    /// was found.
    fn search(&mut self, now: Instant) -> bool {
        if self.searched.is_some_and(|at| now.saturating_duration_since(at) < RETRY_INTERVAL) {
            return false;
        }
        self.searched = Some(now);
        match find(&self.device, &self.driver) {
            Ok(found) => {
                let same = |known: &Sensor| (known.quantity, &known.label) == (found.quantity, &found.label);
                if self.sensor.as_ref().is_none_or(same) {
                    (self.sensor, self.problem) = (Some(found), None);
                    return true;
                }
                false
            }
            Err(why) => {
                self.problem = Some(why);
                false
            }
        }
    }

    /// The zone of the board, once its sensor is known.
    pub(super) fn zone(&self, gpu: GpuId) -> Option<Zone> {
        let sensor = self.sensor.as_ref()?;
        let id = ZoneId { package: None, kind: ZoneKind::Gpu(gpu) };
        let label = if sensor.label.is_empty() { String::new() } else { format!(" ({})", sensor.label) };
        let limit = sensor.limit_uw.map_or(Ceiling::learned(id.kind), Ceiling::Limit);
        let (unit, step_uj, update_ns, ceiling, origin, how) = match sensor.quantity {
            Quantity::Energy => (Unit::MICROJOULE, INTEL_STEP_UJ, COUNTER_UPDATE_NS, limit, Origin::Drm, ""),
            Quantity::Metrics(_) => {
                (Unit::joules_shifted(16)?, 16, COUNTER_UPDATE_NS, limit, Origin::Drm, ", energy_accumulator")
            }
            Quantity::Power => {
                let averaging_ns = sensor.averaging_ns.unwrap_or(POWER_AVERAGING_NS);
                (Unit::MICROJOULE, 1, averaging_ns, Ceiling::None, Origin::DrmPower, ", integrated")
            }
        };
        let location = format!("{}{label}{how}", sensor.path.display());
        let zone = Zone::microjoules(id, Range::Endless, location);
        Some(Zone { unit, step_uj, update_ns, ceiling, origin: Some(origin), ..zone })
    }

    /// Whether the counter may have been reset since the last call.
    pub(super) fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.reset)
    }

    /// Why the board has no energy now; `None` while it has, or is suspended.
    pub(super) fn problem(&self) -> Option<&Unavailable> {
        self.problem.as_ref().filter(|_| !self.asleep)
    }

    /// What is read, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self.sensor.as_ref().map(|sensor| sensor.quantity) {
            Some(Quantity::Energy | Quantity::Metrics(_)) => "energy counter",
            Some(Quantity::Power) => "power, integrated",
            None if self.asleep => "suspended",
            None => "no energy",
        }
    }
}

/// True for a board that its driver has suspended (Documentation/ABI/testing/sysfs-devices-power).
fn is_asleep(device: &Path) -> bool {
    fs::read_to_string(device.join("power/runtime_status")).is_ok_and(|status| status.trim() == "suspended")
}

/// The directories of the driver's own hwmon devices. i915 has others for its parts (`i915_gt0`).
fn hwmon_dirs(device: &Path, driver: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(device.join("hwmon")).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = |dir: &PathBuf| fs::read_to_string(dir.join("name")).is_ok_and(|name| name.trim() == driver);
    let mut dirs: Vec<PathBuf> = entries.filter(named).collect();
    dirs.sort_unstable();
    dirs
}

/// True when the package of the processor contains the GPU: it has a northbridge
/// (Documentation/gpu/amdgpu/thermal.rst: "Northbridge voltage (APUs only)"), whose label is
/// `vddnb` (drivers/gpu/drm/amd/pm/amdgpu_pm.c). Its power includes that of the cores.
pub(super) fn has_northbridge(device: &Path) -> bool {
    let label = |dir: &PathBuf| fs::read_to_string(dir.join("in1_label")).is_ok_and(|label| label.trim() == "vddnb");
    hwmon_dirs(device, "amdgpu").iter().any(label)
}

/// True for a board of Intel, whatever its address: xe and i915 count the energy of boards only
/// (xe_hwmon.c, i915_hwmon.c: IS_DGFX), that of integrated graphics is in the package.
pub(super) fn counts_energy(device: &Path, driver: &str) -> bool {
    hwmon_dirs(device, driver).iter().any(|dir| !counters(dir).is_empty())
}

/// Rank, path and label of the energy counters of a board. None is read.
fn counters(dir: &Path) -> Vec<(u32, PathBuf, String)> {
    let counter = |number: u32| {
        let path = dir.join(format!("energy{number}_input"));
        let label = label_in(&dir.join(format!("energy{number}_label")));
        rank(&label).filter(|_| path.exists()).map(|rank| (rank, path, label))
    };
    (1..=4).filter_map(counter).collect()
}

/// A file that may be the sensor of a board.
struct Candidate {
    quantity: Quantity,
    path: PathBuf,
    label: String,
    averaging_ns: Option<u64>,
    limit_uw: Option<u64>,
}

impl Candidate {
    /// Opens it, and reads it once.
    fn open(self) -> io::Result<(Sensor, u64)> {
        let Self { quantity, path, label, averaging_ns, limit_uw } = self;
        let file = File::open(&path)?;
        let input = match quantity {
            Quantity::Metrics(_) => Input::Metrics(file),
            Quantity::Energy | Quantity::Power => Input::Number(CounterFile::new(path.clone(), file)),
        };
        let mut sensor = Sensor { quantity, path, label, input, averaging_ns, limit_uw };
        let value = sensor.value()?;
        Ok((sensor, value))
    }
}

/// The best sensor of a board. One that reads 0 is taken only where no other is above: xe answers 0
/// when it cannot read its counter.
fn find(device: &Path, driver: &str) -> Result<Sensor, Unavailable> {
    let (mut zero, mut refused) = (None, None);
    for candidate in candidates(device, driver) {
        let path = candidate.path.clone();
        match candidate.open() {
            Ok((sensor, 0)) => {
                zero.get_or_insert(sensor);
            }
            Ok((sensor, _)) => return Ok(sensor),
            Err(error) => {
                let why = format!("{}: {error}", path.display());
                refused.get_or_insert_with(|| Unavailable::new(Reason::of(&error), why));
            }
        }
    }
    let absent = || Unavailable::new(Reason::Absent, format!("{}: no sensor of {driver}", device.display()));
    zero.ok_or_else(|| refused.unwrap_or_else(absent))
}

/// The files that exist, the best first: the whole card before its chip, counters before powers, a
/// mean power before a momentary one.
fn candidates(device: &Path, driver: &str) -> Vec<Candidate> {
    let (mut energies, mut powers) = (Vec::new(), Vec::new());
    for dir in hwmon_dirs(device, driver) {
        let limit_uw = limit(&dir);
        for (rank, path, label) in counters(&dir) {
            let quantity = Quantity::Energy;
            energies.push((rank, Candidate { quantity, path, label, averaging_ns: None, limit_uw }));
        }
        let interval = number_in(&dir.join("power1_average_interval")).filter(|ms| *ms > 0);
        for (file, averaging_ns) in
            [("power1_average", interval.map(|ms| ms.saturating_mul(1_000_000))), ("power1_input", None)]
        {
            let (path, label) = (dir.join(file), label_in(&dir.join("power1_label")));
            if path.exists() {
                powers.push(Candidate { quantity: Quantity::Power, path, label, averaging_ns, limit_uw });
            }
        }
    }
    energies.sort_by_key(|(rank, _)| *rank);
    let metrics = device.join("gpu_metrics");
    let accumulator = File::open(&metrics).ok().and_then(|file| metrics_offset(&file)).map(|offset| Candidate {
        quantity: Quantity::Metrics(offset),
        path: metrics,
        label: String::new(),
        averaging_ns: None,
        limit_uw: powers.first().and_then(|power| power.limit_uw),
    });
    energies.into_iter().map(|(_, candidate)| candidate).chain(accumulator).chain(powers).collect()
}

/// Order of the energy sensors of a board; `None` for one of a part (`vram`).
fn rank(label: &str) -> Option<u32> {
    match label.strip_prefix("energy_").unwrap_or(label) {
        "card" => Some(0),
        // i915 has one sensor and no label.
        "" => Some(1),
        "pkg" => Some(2),
        _ => None,
    }
}

/// The highest power limit of a board in microwatts; a limit of 0 is disabled.
fn limit(dir: &Path) -> Option<u64> {
    let files = ["power1_max", "power1_cap", "power1_cap_max", "power1_rated_max", "power1_crit", "power2_max"];
    files.iter().filter_map(|file| number_in(&dir.join(file))).filter(|limit| (1..=MAX_POWER_UW).contains(limit)).max()
}

/// Where `gpu_metrics` has the energy, whose unit is documented from version 1.4 on: 2^-16 J
/// (drivers/gpu/drm/amd/include/kgd_pp_interface.h, `gpu_metrics_v1_4` to `gpu_metrics_v1_8`).
/// Versions 2 and 3 are those of integrated GPUs.
fn metrics_offset(file: &File) -> Option<usize> {
    let mut header = [0; 4];
    file.read_exact_at(&mut header, 0).ok()?;
    match (header[2], header[3]) {
        (1, 6) => Some(16),
        (1, 4 | 7 | 8) => Some(24),
        (1, 5) => Some(88),
        _ => None,
    }
}

/// The energy in `gpu_metrics`. The driver fills what a board does not report with ones.
fn energy_in_metrics(file: &File, offset: usize) -> io::Result<u64> {
    // The file has one content per reading from its start on.
    let mut metrics = [0; METRICS_BYTES];
    let length = file.read_at(&mut metrics, 0)?;
    let bytes: Option<[u8; 8]> = metrics[..length].get(offset..offset + 8).and_then(|bytes| bytes.try_into().ok());
    let energy = bytes.map(u64::from_ne_bytes).filter(|energy| *energy != u64::MAX);
    energy.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no energy in gpu_metrics"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::gpu_id::Pci;

    const BOARD: GpuId = GpuId::Card(Pci { domain: 0, bus: 3, device: 0, function: 0 });

    fn write(device: &Path, file: &str, text: impl AsRef<[u8]>) {
        let path = device.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn board(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(file, text)| write(dir.path(), file, format!("{text}\n")));
        dir
    }

    fn location(energy: &BoardEnergy) -> String {
        energy.zone(BOARD).unwrap().location
    }

    #[test]
    fn the_whole_card_comes_before_its_chip_and_parts_are_left_out() {
        let dir = board(&[
            ("hwmon/hwmon4/name", "xe"),
            ("hwmon/hwmon4/energy1_input", "700"),
            ("hwmon/hwmon4/energy1_label", "vram"),
            ("hwmon/hwmon4/energy2_input", "500"),
            ("hwmon/hwmon4/energy2_label", "energy_pkg"),
            ("hwmon/hwmon4/energy3_input", "900"),
            ("hwmon/hwmon4/energy3_label", "card"),
            ("hwmon/hwmon4/power1_max", "190000000"),
            ("hwmon/hwmon5/name", "i915_gt0"),
            ("hwmon/hwmon5/energy1_input", "9"),
        ]);
        let mut energy = BoardEnergy::open(dir.path(), "xe");
        assert_eq!(energy.read(Instant::now()), Some(Ok(900)));
        let zone = energy.zone(BOARD).unwrap();
        assert!(zone.location.ends_with("energy3_input (card)"), "{}", zone.location);
        assert_eq!((zone.origin, zone.ceiling), (Some(Origin::Drm), Ceiling::Limit(190_000_000)));
        // xe answers 0 where it cannot read the counter of the card.
        write(dir.path(), "hwmon/hwmon4/energy3_input", "0\n");
        assert!(location(&BoardEnergy::open(dir.path(), "xe")).ends_with("(energy_pkg)"));
    }

    #[test]
    fn power_is_integrated_and_says_so() {
        let dir = board(&[("hwmon/hwmon0/name", "amdgpu"), ("hwmon/hwmon0/power1_average", "35000000")]);
        let mut energy = BoardEnergy::open(dir.path(), "amdgpu");
        let start = Instant::now();
        // A second at 35 W, and a gap of which nothing is known.
        for (second, microjoules, reset) in [(0, 0, false), (1, 35_000_000, false), (90, 35_000_000, true)] {
            assert_eq!(energy.read(start + Duration::from_secs(second)), Some(Ok(microjoules)));
            assert_eq!(energy.take_reset(), reset, "{second}");
        }
        let zone = energy.zone(BOARD).unwrap();
        assert_eq!((zone.origin, zone.ceiling), (Some(Origin::DrmPower), Ceiling::None));
        assert!(zone.location.ends_with("power1_average, integrated"), "{}", zone.location);
    }

    #[test]
    fn absent_denied_broken_and_zero_differ() {
        let absent = board(&[("hwmon/hwmon0/name", "nvme"), ("hwmon/hwmon0/power1_input", "5")]);
        let mut energy = BoardEnergy::open(absent.path(), "xe");
        assert_eq!((energy.read(Instant::now()), energy.problem().unwrap().reason), (None, Reason::Absent));
        let broken = board(&[("hwmon/hwmon0/name", "xe"), ("hwmon/hwmon0/energy1_input", "-1")]);
        let energy = BoardEnergy::open(broken.path(), "xe");
        assert_eq!(energy.problem().unwrap().reason, Reason::Broken);
        let zero = board(&[("hwmon/hwmon0/name", "xe"), ("hwmon/hwmon0/energy1_input", "0")]);
        let mut energy = BoardEnergy::open(zero.path(), "xe");
        assert_eq!((energy.read(Instant::now()), energy.problem()), (Some(Ok(0)), None));
        let impossible = board(&[("hwmon/hwmon0/name", "amdgpu"), ("hwmon/hwmon0/power1_input", "6000000000")]);
        assert_eq!(BoardEnergy::open(impossible.path(), "amdgpu").problem().unwrap().reason, Reason::Broken);
        let denied = board(&[("hwmon/hwmon0/name", "xe"), ("hwmon/hwmon0/energy1_input", "5")]);
        let file = denied.path().join("hwmon/hwmon0/energy1_input");
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o0)).unwrap();
        // Root with all capabilities may read it anyway.
        if File::open(&file).is_err() {
            assert_eq!(BoardEnergy::open(denied.path(), "xe").problem().unwrap().reason, Reason::Denied);
        }
    }

    #[test]
    fn a_driver_that_is_loaded_again_counts_from_its_new_sensor() {
        let dir = board(&[("hwmon/hwmon3/name", "xe"), ("hwmon/hwmon3/energy1_input", "5000")]);
        let mut energy = BoardEnergy::open(dir.path(), "xe");
        let start = Instant::now();
        assert_eq!((energy.read(start), energy.take_reset()), (Some(Ok(5000)), false));
        fs::remove_dir_all(dir.path().join("hwmon/hwmon3")).unwrap();
        assert!(energy.read(start + RETRY_INTERVAL).unwrap().is_err());
        assert_eq!(energy.problem().unwrap().reason, Reason::Absent, "the card has vanished");
        // Its number is another one, and another kind of sensor is no replacement.
        write(dir.path(), "hwmon/hwmon7/name", "xe\n");
        write(dir.path(), "hwmon/hwmon7/power1_input", "9\n");
        assert!(energy.read(start + 2 * RETRY_INTERVAL).unwrap().is_err());
        write(dir.path(), "hwmon/hwmon7/energy1_input", "40\n");
        assert_eq!((energy.read(start + 3 * RETRY_INTERVAL), energy.take_reset()), (Some(Ok(40)), true));
        assert_eq!((energy.read(start + 3 * RETRY_INTERVAL), energy.take_reset()), (Some(Ok(40)), false));
        assert_eq!(energy.problem(), None);
    }

    #[test]
    fn a_suspended_board_is_not_read_and_counts_again_when_it_wakes() {
        let dir = board(&[
            ("hwmon/hwmon3/name", "xe"),
            ("hwmon/hwmon3/energy1_input", "5000"),
            ("power/runtime_status", "suspended"),
        ]);
        let mut energy = BoardEnergy::open(dir.path(), "xe");
        let start = Instant::now();
        assert_eq!((energy.read(start), energy.kind(), energy.problem()), (None, "suspended", None));
        write(dir.path(), "power/runtime_status", "active\n");
        assert_eq!((energy.read(start), energy.take_reset()), (Some(Ok(5000)), false));
        write(dir.path(), "power/runtime_status", "suspended\n");
        assert_eq!(energy.read(start), Some(Err(ASLEEP.to_owned())));
        assert_eq!(energy.problem(), None, "it is no failure");
        write(dir.path(), "power/runtime_status", "active\n");
        assert_eq!((energy.read(start), energy.take_reset()), (Some(Ok(5000)), true));
    }

    #[test]
    fn energy_of_accelerators_is_in_their_metrics() {
        let dir = board(&[("hwmon/hwmon0/name", "amdgpu"), ("hwmon/hwmon0/power1_input", "90000000")]);
        for (version, offset) in [([1, 4], 24), ([1, 5], 88), ([1, 6], 16), ([1, 8], 24)] {
            let mut metrics = vec![0xffu8; METRICS_BYTES + 40];
            metrics[2..4].copy_from_slice(&version);
            metrics[offset..offset + 8].copy_from_slice(&(3u64 << 16).to_ne_bytes());
            write(dir.path(), "gpu_metrics", &metrics);
            let mut energy = BoardEnergy::open(dir.path(), "amdgpu");
            let raw = energy.read(Instant::now()).unwrap().unwrap();
            let zone = energy.zone(BOARD).unwrap();
            assert_eq!((zone.unit.microjoules(raw).0, zone.origin), (3_000_000, Some(Origin::Drm)), "{version:?}");
        }
        // The unit of older versions is not documented, and 2 is that of integrated GPUs.
        for version in [[1, 3], [2, 4], [1, 9]] {
            let mut metrics = vec![1u8; METRICS_BYTES];
            metrics[2..4].copy_from_slice(&version);
            write(dir.path(), "gpu_metrics", &metrics);
            assert!(location(&BoardEnergy::open(dir.path(), "amdgpu")).contains("integrated"), "{version:?}");
        }
        // A board that does not report it has ones there.
        let mut metrics = vec![0xffu8; METRICS_BYTES];
        metrics[2..4].copy_from_slice(&[1, 4]);
        write(dir.path(), "gpu_metrics", &metrics);
        assert!(location(&BoardEnergy::open(dir.path(), "amdgpu")).contains("integrated"));
    }
}
