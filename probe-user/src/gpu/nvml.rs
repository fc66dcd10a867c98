//! NVIDIA's management library (NVML): loading it, reloading it after a loss, and reading devices.
//!
//! It is loaded at run time and may lack any function, so each reading has its own state. A call
//! may block for long or forever when a GPU hangs: this code runs on the thread of
//! [`super::GpuCollector`], never on the sampler's.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nvml_wrapper::{
    Device as Handle, Nvml,
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{Clock, TemperatureSensor},
    enums::device::UsedGpuMemory,
    error::NvmlError,
    struct_wrappers::device::ProcessInfo,
};
use units::Unit;

use super::{
    calls::{self, CODECS},
    device::{Clocks, GpuReading, GpuTelemetry, Link, Memory, ProcessMemory, ProcessUsage, Session},
    engines::{ENGINES, Engine},
    mig::Instances,
    samples::{MAX_PROCESSES, Samples, unix_us, usage_by_sessions},
};
use crate::{
    energy::{
        integral::Integral,
        zone::{Ceiling, Origin, Range, Zone, ZoneId, ZoneKind},
    },
    host::{
        availability::{Reason, Unavailable},
        gpu_id::GpuId,
    },
};

/// Name of the library for the dynamic loader.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// Prefix of the driver version that the library for tests reports.
const FAKE: &str = "fake";
/// Maximum number of devices.
const MAX_GPUS: u32 = 64;
/// Interval of slowly changing readings: temperatures, clocks, memory, limits, PCIe.
const SLOW_INTERVAL: Duration = Duration::from_secs(5);
/// First and longest interval between attempts to load a missing library or a lost device; the
/// interval doubles while they fail.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// An energy counter that does not change within this time after the start does not work. Boards
/// update it every 20 to 100 ms (arXiv 2312.02741).
const COUNTER_TEST_TIME: Duration = Duration::from_millis(300);
/// When the energy of a device cannot be read for this long, the library is loaded again, although
/// the device answers otherwise.
const ENERGY_PATIENCE: Duration = Duration::from_secs(10);
/// Maximum age of a reading, by the same source.
const UPDATE_NS: u64 = 100_000_000;

/// The library and its devices.
pub(super) struct Nvidia {
    /// Configured path of the library.
    path: Option<PathBuf>,
    nvml: Option<Nvml>,
    driver: String,
    /// True for the library for tests.
    fake: bool,
    devices: Vec<Device>,
    /// Errors of devices without a valid UUID.
    unidentified: Vec<String>,
    /// Number of devices over the limit.
    over_limit: u32,
    state: Result<(), Unavailable>,
    retry: Retry,
}

/// When to reload the library.
struct Retry {
    at: Option<Instant>,
    interval: Duration,
}

impl Retry {
    /// Whether the retry is due. Only this call clears the time, so that a retry that becomes due
    /// while devices are read is not postponed.
    fn is_due(&mut self, now: Instant) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }

    /// Sets the time of the next retry, if none is set. The interval grows only if devices are
    /// known, because a retry without a library costs nothing.
    fn schedule(&mut self, now: Instant, healthy: bool, devices_known: bool) {
        if healthy {
            (self.at, self.interval) = (None, RETRY.0);
        } else if self.at.is_none() {
            self.at = Some(now + self.interval);
            self.interval = if devices_known { (self.interval * 2).min(RETRY.1) } else { RETRY.0 };
        }
    }
}

/// Failures of a device's energy reading.
#[derive(Debug, Default)]
struct EnergyFailures {
    /// Time of the first one in a row.
    since: Option<Instant>,
    /// True when the library was loaded again since the last reading.
    reloaded: bool,
}

impl EnergyFailures {
    fn failed(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Returns true when the counter may have been reset since the last reading.
    fn succeeded(&mut self) -> bool {
        std::mem::take(self).reloaded
    }

    fn persist(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= ENERGY_PATIENCE)
    }
}

/// One device; it is kept while the probe runs.
struct Device {
    id: GpuId,
    index: u32,
    name: String,
    energy: EnergySource,
    ceiling: Ceiling,
    mig: bool,
    state: Result<(), Unavailable>,
    /// Readings that the device does not provide, and why.
    unavailable: BTreeMap<&'static str, Reason>,
    samples: Samples,
    /// Its instances in MIG mode.
    instances: Instances,
    /// Time of the last reading.
    last_read: Option<Instant>,
    energy_failures: EnergyFailures,
    /// True when the energy since the last reading is unknown, because the counter may have been
    /// reset or the power was not read.
    counter_reset: bool,
    slow_at: Option<Instant>,
    telemetry: GpuTelemetry,
    process_memory: Vec<ProcessMemory>,
}

/// Source of a device's energy.
#[derive(Clone, Copy, Debug)]
enum EnergySource {
    /// The device's energy counter.
    Counter,
    /// Power, integrated here.
    Power(Integral),
    /// Neither energy nor power is available.
    Nothing,
}

impl EnergySource {
    /// Unit, step in microjoules, origin and description of the energy, for a library of this
    /// origin.
    fn zone_source(self, origin: Origin) -> Option<(Unit, u64, Origin, &'static str)> {
        let integrated = if origin == Origin::Nvml { Origin::NvmlPower } else { origin };
        match self {
            Self::Counter => Some((Unit::MILLIJOULE, 1000, origin, "nvmlDeviceGetTotalEnergyConsumption")),
            Self::Power(..) => Some((Unit::MICROJOULE, 1, integrated, "nvmlDeviceGetPowerUsage, integrated")),
            Self::Nothing => None,
        }
    }
}

/// Whether the error affects the whole device, not only one reading.
fn is_fatal(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::GpuLost
            | NvmlError::ResetRequired
            | NvmlError::Uninitialized
            | NvmlError::DriverNotLoaded
            | NvmlError::LibRmVersionMismatch
    )
}

fn reason(error: &NvmlError) -> Reason {
    match error {
        NvmlError::NotSupported
        | NvmlError::FailedToLoadSymbol(_)
        | NvmlError::FunctionNotFound
        | NvmlError::DriverNotLoaded
        | NvmlError::LibloadingError(_)
        | NvmlError::LibraryNotFound => Reason::Absent,
        NvmlError::NoPermission | NvmlError::OperatingSystem => Reason::Denied,
        _ => Reason::Broken,
    }
}

/// State of a library that cannot be used.
fn library_unavailable(error: &NvmlError, library: &OsStr) -> Unavailable {
    let library = library.to_string_lossy();
    if let NvmlError::LibloadingError(error) = error
        && Path::new(&*library).exists()
    {
        return Unavailable::new(Reason::Broken, format!("{library} cannot be loaded: {error}"));
    }
    let detail = match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => format!(
            "{library} not found: no NVIDIA driver. In a container, provide the driver (docker: --gpus=all), or set the library with --path.nvml"
        ),
        NvmlError::DriverNotLoaded => {
            "the library exists and the driver is not loaded: run modprobe nvidia, and see dmesg".to_owned()
        }
        // The first user of a GPU creates the device files; the probe has dropped the capability
        // to.
        _ if Path::new("/proc/driver/nvidia/version").exists() && !Path::new("/dev/nvidiactl").exists() => {
            "the driver is loaded and /dev/nvidiactl does not exist: run nvidia-modprobe -u -c 0, or start nvidia-persistenced".to_owned()
        }
        NvmlError::NoPermission | NvmlError::OperatingSystem => {
            "cannot open the driver: permission denied; run as root, and provide /dev/nvidiactl and /dev/nvidiaN to a container".to_owned()
        }
        NvmlError::LibRmVersionMismatch => {
            "library and kernel module have two versions, as after an update: load the new module, or restart the machine".to_owned()
        }
        error => format!("{library}: {error}"),
    };
    Unavailable::new(reason(error), detail)
}

fn device_lost(error: &NvmlError) -> Unavailable {
    let detail = match error {
        NvmlError::GpuLost => {
            "the GPU has fallen off the bus; see dmesg for the Xid; a reset or a cold start may recover it"
        }
        NvmlError::ResetRequired => "the GPU needs a reset: run nvidia-smi --gpu-reset while no process uses it",
        NvmlError::LibRmVersionMismatch => "the driver was replaced while its library was loaded",
        _ => "the driver was unloaded",
    };
    Unavailable::new(Reason::Broken, format!("{detail} ({error}). Its counters keep their values; it is retried"))
}

/// Takes a reading that the device may not provide. Returns `None` if it does not; fails if the
/// device is lost.
fn read_optional<T>(
    unavailable: &mut BTreeMap<&'static str, Reason>,
    name: &'static str,
    reading: impl FnOnce() -> Result<T, NvmlError>,
) -> Result<Option<T>, NvmlError> {
    // Absent and denied readings stay so until the library is loaded again.
    if matches!(unavailable.get(name), Some(Reason::Absent | Reason::Denied)) {
        return Ok(None);
    }
    match reading() {
        Ok(value) => {
            unavailable.remove(name);
            Ok(Some(value))
        }
        Err(error) if is_fatal(&error) => Err(error),
        Err(error) => {
            unavailable.insert(name, reason(&error));
            Ok(None)
        }
    }
}

/// Reads a list of the driver that may be empty, and that may grow between the queries of its
/// length and of its elements.
fn read_list<T>(list: impl Fn() -> Result<Vec<T>, NvmlError>) -> Result<Vec<T>, NvmlError> {
    let retried = || match list() {
        Err(NvmlError::InsufficientSize(_)) => list(),
        other => other,
    };
    match retried() {
        // These mean that no process used the GPU (rust-nvml/nvml-wrapper#56).
        Err(NvmlError::NotFound | NvmlError::NoData) => Ok(Vec::new()),
        other => other,
    }
}

impl Nvidia {
    /// Loads the library and opens its devices.
    pub(super) fn open(path: Option<PathBuf>) -> Self {
        let mut this = Self {
            path,
            nvml: None,
            driver: String::new(),
            fake: false,
            devices: Vec::new(),
            unidentified: Vec::new(),
            over_limit: 0,
            state: Ok(()),
            retry: Retry { at: None, interval: RETRY.0 },
        };
        this.load();
        this
    }

    /// Time before which no device can appear; `None` if there is one.
    pub(super) fn sleep_until(&self) -> Option<Instant> {
        self.retry.at.filter(|_| self.devices.is_empty())
    }

    /// State of the source.
    pub(super) fn state(&self) -> Result<(), Unavailable> {
        self.state.clone()?;
        match self.devices.iter().find_map(|device| device.state.as_ref().err().map(|why| (device, why))) {
            Some((device, why)) => {
                Err(Unavailable::new(why.reason, format!("GPU {} ({}): {}", device.index, device.id, why.detail)))
            }
            None if !self.unidentified.is_empty() => {
                Err(Unavailable::new(Reason::Broken, self.unidentified.join("; ")))
            }
            None if self.over_limit > 0 => Err(Unavailable::new(
                Reason::Broken,
                format!("{} GPUs beyond the first {MAX_GPUS} are not read", self.over_limit),
            )),
            None => Ok(()),
        }
    }

    /// Description of library and devices for `doctor` and the sources.
    pub(super) fn detail(&self) -> String {
        let mut detail = format!("{} GPUs, driver {}", self.devices.len(), self.driver);
        if self.devices.len() == 1 {
            detail = format!("1 GPU, driver {}", self.driver);
        }
        let count = |kind: fn(&EnergySource) -> bool| self.devices.iter().filter(|device| kind(&device.energy)).count();
        let integrated = count(|energy| matches!(energy, EnergySource::Power(..)));
        if integrated > 0 {
            detail += &format!("; {integrated} without a working energy counter: power is integrated");
        }
        let without = count(|energy| matches!(energy, EnergySource::Nothing));
        if without > 0 {
            detail += &format!("; {without} report neither energy nor power");
        }
        let mig = self.devices.iter().filter(|device| device.mig).count();
        if mig > 0 {
            detail += &format!(
                "; {mig} in MIG mode: the driver reports no usage by process, the energy is divided by the counters of \
                 the instances where these exist, and otherwise stays unattributed"
            );
        }
        if self.fake {
            detail += "; FAKE: nothing is measured, this library is for tests";
        }
        detail
    }

    fn load(&mut self) {
        let library = self.path.as_deref().map_or(OsStr::new(LIBRARY), |path| path.as_os_str()).to_owned();
        match Nvml::builder().lib_path(&library).init() {
            Ok(nvml) => {
                self.driver = nvml.sys_driver_version().unwrap_or_else(|_| "unknown".to_owned());
                self.fake = self.driver.starts_with(FAKE);
                self.state = self.refresh_devices(&nvml).map_err(|error| library_unavailable(&error, &library));
                if self.state.is_ok() && self.devices.is_empty() && self.unidentified.is_empty() {
                    self.state = Err(Unavailable::new(Reason::Absent, "the driver is loaded and has no GPU"));
                }
                self.nvml = Some(nvml);
            }
            Err(error) => self.state = Err(library_unavailable(&error, &library)),
        }
        self.schedule_retry();
    }

    /// Schedules a reload of the library while it, or one of its devices, is unusable.
    fn schedule_retry(&mut self) {
        // Devices over the limit are no reason to reload.
        let now = Instant::now();
        let works = |device: &Device| device.state.is_ok() && !device.energy_failures.persist(now);
        let devices = self.devices.iter().all(works) && self.unidentified.is_empty();
        self.retry.schedule(now, self.state.is_ok() && devices, !self.devices.is_empty());
    }

    /// Updates the list of devices. Known devices are found by UUID, because indices may change.
    fn refresh_devices(&mut self, nvml: &Nvml) -> Result<(), NvmlError> {
        self.unidentified.clear();
        let (mut new, mut listed) = (Vec::new(), Vec::new());
        let count = nvml.device_count()?;
        self.over_limit = count.saturating_sub(MAX_GPUS);
        for index in 0..count.min(MAX_GPUS) {
            let opened = nvml.device_by_index(index).and_then(|handle| Ok((handle.uuid()?, handle)));
            let (uuid, handle) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    // A known device that is lost has a state of its own.
                    if !self.devices.iter().any(|known| known.index == index) {
                        self.unidentified.push(format!("GPU {index}: {error}"));
                    }
                    continue;
                }
            };
            let Ok(id) = uuid.parse::<GpuId>() else {
                self.unidentified.push(format!("GPU {index} has an invalid UUID: {uuid:?}"));
                continue;
            };
            listed.push(id);
            let mig = handle.mig_mode().is_ok_and(|mode| mode.current == 1);
            if let Some(known) = self.devices.iter_mut().find(|known| known.id == id) {
                if known.state.is_err() || known.energy_failures.persist(Instant::now()) {
                    // The counter value does not show whether the driver was reloaded: a reset
                    // counter may already be higher. A device that was usable all the time, while
                    // another one was retried, continues to count.
                    known.samples.restart();
                    (known.last_read, known.energy_failures.reloaded) = (None, true);
                }
                (known.index, known.mig, known.state, known.slow_at) = (index, mig, Ok(()), None);
                known.unavailable.clear();
                continue;
            }
            let milliwatts = handle
                .power_management_limit_constraints()
                .map(|limits| limits.max_limit)
                .or_else(|_| handle.enforced_power_limit());
            new.push(Device {
                id,
                index,
                name: metrics::label::sanitize(&handle.name().unwrap_or_else(|_| "unknown".to_owned())),
                energy: EnergySource::Nothing,
                ceiling: milliwatts.map_or(Ceiling::learned(ZoneKind::Gpu(id)), |milliwatts| {
                    Ceiling::Limit(u64::from(milliwatts) * 1000)
                }),
                mig,
                state: Ok(()),
                unavailable: BTreeMap::new(),
                samples: Samples::start(),
                instances: Instances::default(),
                last_read: None,
                energy_failures: EnergyFailures::default(),
                counter_reset: false,
                slow_at: None,
                telemetry: GpuTelemetry::default(),
                process_memory: Vec::new(),
            });
        }
        // The index of a device that is no longer listed may be that of another one now.
        for device in self.devices.iter_mut().filter(|device| device.state.is_ok() && !listed.contains(&device.id)) {
            device.state = Err(Unavailable::new(
                Reason::Broken,
                "the driver does not list the GPU any longer; see dmesg. Its counters keep their values; it is retried",
            ));
        }
        let counters_work: Vec<bool> = working_counters(nvml, &new);
        for (mut device, counter_works) in new.into_iter().zip(counters_work) {
            let power = || nvml.device_by_index(device.index).and_then(|handle| handle.power_usage());
            device.energy = match counter_works {
                true => EnergySource::Counter,
                false if power().is_ok() => EnergySource::Power(Integral::ZERO),
                false => EnergySource::Nothing,
            };
            self.devices.push(device);
        }
        Ok(())
    }

    /// Loads the library again when that is due, which may take seconds.
    pub(super) fn reload_when_due(&mut self) {
        if self.retry.is_due(Instant::now()) {
            // Unload it first: an open library does not notice changes of the driver. Samples of
            // instances belong to it.
            self.devices.iter_mut().for_each(|device| device.instances = Instances::default());
            self.nvml = None;
            self.load();
        }
    }

    /// Reads every device once; `at` is the time of the energy readings.
    pub(super) fn poll(&mut self, at: Instant, gpus: &mut Vec<GpuReading>) {
        let nvml = self.nvml.as_ref();
        // Read the energy of all devices first, so that the readings belong to one moment.
        let raw: Vec<Option<Result<u64, String>>> =
            self.devices.iter_mut().map(|device| device.read_energy(nvml)).collect();
        let origin = if self.fake { Origin::Fake } else { Origin::Nvml };
        for (device, raw) in self.devices.iter_mut().zip(raw) {
            gpus.push(device.read(nvml, raw, origin, at));
        }
        self.schedule_retry();
    }
}

/// For each device, whether it has an energy counter that changes.
fn working_counters(nvml: &Nvml, devices: &[Device]) -> Vec<bool> {
    let read = |device: &Device| nvml.device_by_index(device.index)?.total_energy_consumption();
    let first: Vec<Option<u64>> = devices.iter().map(|device| read(device).ok()).collect();
    let mut moved = vec![false; devices.len()];
    let end = Instant::now() + COUNTER_TEST_TIME;
    let pending = |moved: &[bool]| moved.iter().zip(&first).any(|(moved, first)| !moved && first.is_some());
    while pending(&moved) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
        for ((device, first), moved) in devices.iter().zip(&first).zip(&mut moved) {
            *moved |= first.is_some() && read(device).is_ok_and(|now| Some(now) != *first);
        }
    }
    moved
}

impl Device {
    fn handle<'n>(&self, nvml: Option<&'n Nvml>) -> Result<Handle<'n>, NvmlError> {
        nvml.ok_or(NvmlError::DriverNotLoaded)?.device_by_index(self.index)
    }

    fn zone(&self, origin: Origin) -> Option<Zone> {
        let id = ZoneId { package: None, kind: ZoneKind::Gpu(self.id) };
        let (unit, step_uj, origin, function) = self.energy.zone_source(origin)?;
        Some(Zone {
            id,
            unit,
            range: Range::Endless,
            step_uj,
            update_ns: UPDATE_NS,
            ceiling: self.ceiling,
            location: format!("GPU {}: {function}", self.index),
            origin: Some(origin),
            interval: None,
            error_milli: None,
        })
    }

    fn read_energy(&mut self, nvml: Option<&Nvml>) -> Option<Result<u64, String>> {
        if self.state.is_err() {
            self.pause_power();
            return (!matches!(self.energy, EnergySource::Nothing)).then(|| Err("the GPU is lost".to_owned()));
        }
        let handle = self.handle(nvml);
        let read = match &mut self.energy {
            EnergySource::Nothing => return None,
            EnergySource::Counter => handle.and_then(|handle| handle.total_energy_consumption()),
            EnergySource::Power(integral) => handle.and_then(|handle| handle.power_usage()).map(|milliwatts| {
                self.counter_reset |= !integral.add(u64::from(milliwatts) * 1000, Instant::now());
                integral.energy().0
            }),
        };
        Some(match read {
            Ok(value) => {
                self.unavailable.remove("energy");
                self.counter_reset |= self.energy_failures.succeeded();
                Ok(value)
            }
            Err(error) => {
                self.pause_power();
                if is_fatal(&error) {
                    self.state = Err(device_lost(&error));
                } else {
                    self.unavailable.insert("energy", reason(&error));
                    if reason(&error) == Reason::Broken {
                        self.energy_failures.failed(Instant::now());
                    }
                }
                Err(error.to_string())
            }
        })
    }

    /// No energy is interpolated over the time up to the next power reading.
    fn pause_power(&mut self) {
        if let EnergySource::Power(integral) = &mut self.energy {
            integral.pause();
        }
    }

    fn read(
        &mut self,
        nvml: Option<&Nvml>,
        raw: Option<Result<u64, String>>,
        origin: Origin,
        now: Instant,
    ) -> GpuReading {
        let mut usage = DeviceUsage { complete: true, ..DeviceUsage::default() };
        if self.state.is_ok() {
            match self.handle(nvml).and_then(|handle| self.read_usage(&handle, now)) {
                Ok(device_usage) => usage = device_usage,
                Err(error) if is_fatal(&error) => self.state = Err(device_lost(&error)),
                Err(error) => self.state = Err(Unavailable::new(reason(&error), error.to_string())),
            }
        }
        if self.state.is_err() {
            // The previous values are no longer valid.
            (self.telemetry, self.slow_at) = (GpuTelemetry::default(), None);
            self.process_memory.clear();
        }
        GpuReading {
            id: self.id,
            index: Some(self.index),
            name: self.name.clone(),
            origin,
            state: self.state.clone(),
            zone: self.zone(origin),
            raw,
            mig: self.mig,
            telemetry: self.telemetry.clone(),
            sessions: usage.sessions,
            process_memory: self.process_memory.clone(),
            uses: usage.uses,
            idle: usage.idle,
            unavailable: self.unavailable.clone(),
            dropped: self.samples.dropped,
            counter_reset: std::mem::take(&mut self.counter_reset),
            complete: usage.complete,
        }
    }

    fn read_usage(&mut self, handle: &Handle<'_>, now: Instant) -> Result<DeviceUsage, NvmlError> {
        let unix_us = unix_us();
        let unavailable = &mut self.unavailable;
        let telemetry = &mut self.telemetry;
        telemetry.power_mw = read_optional(unavailable, "power", || handle.power_usage())?;
        telemetry.throttle =
            read_optional(unavailable, "throttle", || handle.current_throttle_reasons())?.map(|reasons| reasons.bits());
        let rates = read_optional(unavailable, "utilization", || handle.utilization_rates())?;
        let encoder = read_optional(unavailable, "encoder", || handle.encoder_utilization())?;
        let decoder = read_optional(unavailable, "decoder", || handle.decoder_utilization())?;
        let jpeg = read_optional(unavailable, "jpeg", || calls::utilization(handle, Engine::Jpeg))?;
        let ofa = read_optional(unavailable, "ofa", || calls::utilization(handle, Engine::Ofa))?;
        telemetry.engines = [None; ENGINES];
        for (engine, percent) in [
            (Engine::Sm, rates.as_ref().map(|rates| rates.gpu)),
            (Engine::Memory, rates.as_ref().map(|rates| rates.memory)),
            (Engine::Encoder, encoder.map(|encoder| encoder.utilization)),
            (Engine::Decoder, decoder.map(|decoder| decoder.utilization)),
            (Engine::Jpeg, jpeg),
            (Engine::Ofa, ofa),
        ] {
            // More than 100 % is a driver error.
            telemetry.engines[engine.index()] =
                percent.filter(|percent| *percent <= 100).map(|percent| f64::from(percent) / 100.0);
        }
        let sessions =
            read_optional(unavailable, "encoder_sessions", || read_list(|| calls::encoder_sessions(handle)))?;
        let since_us = self.samples.since_us(unix_us);
        let samples =
            read_optional(unavailable, "process_utilization", || read_list(|| calls::samples(handle, since_us)))?;
        let mut instances = None;
        if self.mig {
            let on = |process: ProcessInfo| Some((process.pid, process.gpu_instance_id?));
            let running: Vec<_> = running_processes(handle, unavailable)?.into_iter().filter_map(on).collect();
            instances = read_optional(unavailable, "instances", || self.instances.read(handle, &running, now))?;
        }
        if self.slow_at.is_none_or(|at| now.duration_since(at) >= SLOW_INTERVAL) {
            self.slow_at = Some(now);
            read_slow(handle, unavailable, telemetry)?;
            self.process_memory = read_process_memory(handle, unavailable)?;
        }

        let sessions = sessions.unwrap_or_default();
        let span = self.last_read.replace(now).map_or(Duration::ZERO, |before| now.duration_since(before));
        let reported = self.telemetry.engines.iter().flatten();
        let engines_idle = reported.clone().next().is_some() && reported.into_iter().all(|ratio| *ratio == 0.0);
        // What a driver answers of processes in MIG mode is not their use.
        let (uses, complete) = match samples.filter(|_| instances.is_none()) {
            Some(samples) => {
                let uses = self.samples.fold(&samples, unix_us, span);
                let busy = !engines_idle || !sessions.is_empty() || !uses.is_empty();
                let complete = self.samples.is_complete(busy, now, unix_us);
                (uses, complete)
            }
            None => {
                let mut uses = instances.clone().unwrap_or_default();
                let encoding = self.telemetry.engines[Engine::Encoder.index()].unwrap_or(0.0);
                usage_by_sessions(&mut uses, &sessions, encoding, span, unix_us);
                (uses, true)
            }
        };
        let counted = instances.is_some() && self.instances.are_counted();
        let idle = (engines_idle || counted) && sessions.is_empty() && uses.is_empty();
        Ok(DeviceUsage { sessions, uses, idle, complete })
    }
}

/// Usage of a device in one reading.
#[derive(Default)]
struct DeviceUsage {
    sessions: Vec<Session>,
    uses: Vec<ProcessUsage>,
    idle: bool,
    complete: bool,
}

/// Reads slowly changing values.
fn read_slow(
    handle: &Handle<'_>,
    unavailable: &mut BTreeMap<&'static str, Reason>,
    telemetry: &mut GpuTelemetry,
) -> Result<(), NvmlError> {
    telemetry.limit_mw = read_optional(unavailable, "power_limit", || handle.enforced_power_limit())?;
    telemetry.celsius = read_optional(unavailable, "temperature", || handle.temperature(TemperatureSensor::Gpu))?;
    telemetry.memory = read_optional(unavailable, "memory", || handle.memory_info())?.map(|memory| Memory {
        total: memory.total,
        used: memory.used,
        free: memory.free,
        reserved: memory.reserved,
    });
    telemetry.clocks = read_optional(unavailable, "clocks", || {
        Ok(Clocks {
            graphics_mhz: handle.clock_info(Clock::Graphics)?,
            sm_mhz: handle.clock_info(Clock::SM)?,
            memory_mhz: handle.clock_info(Clock::Memory)?,
            video_mhz: handle.clock_info(Clock::Video).ok(),
        })
    })?;
    telemetry.link = read_optional(unavailable, "pcie", || {
        Ok(Link {
            generation: handle.current_pcie_link_gen()?,
            width: handle.current_pcie_link_width()?,
            max_generation: handle.max_pcie_link_gen()?,
            max_width: handle.max_pcie_link_width()?,
            replays: handle.pcie_replay_counter().ok(),
        })
    })?;
    telemetry.headroom = Vec::new();
    for (codec, name, reading) in CODECS {
        if let Some(percent) =
            read_optional(unavailable, reading, || calls::capacity(handle, codec))?.filter(|percent| *percent <= 100)
        {
            telemetry.headroom.push((name, f64::from(percent) / 100.0));
        }
    }
    Ok(())
}

/// All processes, compute and graphics: a process that only uses NVENC may be in either list.
fn running_processes(
    handle: &Handle<'_>,
    unavailable: &mut BTreeMap<&'static str, Reason>,
) -> Result<Vec<ProcessInfo>, NvmlError> {
    let compute = read_optional(unavailable, "compute_processes", || read_list(|| handle.running_compute_processes()))?;
    let graphics =
        read_optional(unavailable, "graphics_processes", || read_list(|| handle.running_graphics_processes()))?;
    Ok(compute.into_iter().chain(graphics).flatten().take(MAX_PROCESSES).collect())
}

/// Memory of all processes.
fn read_process_memory(
    handle: &Handle<'_>,
    unavailable: &mut BTreeMap<&'static str, Reason>,
) -> Result<Vec<ProcessMemory>, NvmlError> {
    let mut all: BTreeMap<u32, u64> = BTreeMap::new();
    for process in running_processes(handle, unavailable)? {
        // A process in both lists has the same memory in both.
        let bytes = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => bytes,
            UsedGpuMemory::Unavailable => 0,
        };
        let max = all.entry(process.pid).or_default();
        *max = bytes.max(*max);
    }
    Ok(all.into_iter().map(|(pid, bytes)| ProcessMemory { pid, bytes: (bytes > 0).then_some(bytes) }).collect())
}

/// Throttle reasons of a GPU, with the label `reason` of `wattcast_gpu_throttle`.
pub(crate) const THROTTLE_REASONS: [(ThrottleReasons, &str); 9] = [
    (ThrottleReasons::GPU_IDLE, "idle"),
    (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "applications_clocks"),
    (ThrottleReasons::SW_POWER_CAP, "power_cap"),
    (ThrottleReasons::HW_SLOWDOWN, "hw_slowdown"),
    (ThrottleReasons::SYNC_BOOST, "sync_boost"),
    (ThrottleReasons::SW_THERMAL_SLOWDOWN, "sw_thermal"),
    (ThrottleReasons::HW_THERMAL_SLOWDOWN, "hw_thermal"),
    (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power_brake"),
    (ThrottleReasons::DISPLAY_CLOCK_SETTING, "display_clock"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_distinguishes_counter_integrated_power_and_fake() {
        let origin = |energy: EnergySource, library| energy.zone_source(library).map(|(_, _, origin, _)| origin);
        assert_eq!(origin(EnergySource::Counter, Origin::Nvml), Some(Origin::Nvml));
        assert_eq!(origin(EnergySource::Power(Integral::ZERO), Origin::Nvml), Some(Origin::NvmlPower));
        assert_eq!(origin(EnergySource::Nothing, Origin::Nvml), None);
        for energy in [EnergySource::Counter, EnergySource::Power(Integral::ZERO)] {
            assert_eq!(origin(energy, Origin::Fake), Some(Origin::Fake));
        }
        assert!(Origin::Nvml.is_measured() && Origin::NvmlPower.is_measured() && !Origin::Fake.is_measured());
    }

    #[test]
    fn a_device_whose_energy_keeps_failing_is_opened_again_and_returns_once() {
        let start = Instant::now();
        let mut failures = EnergyFailures::default();
        failures.failed(start);
        failures.failed(start + ENERGY_PATIENCE / 2);
        assert!(!failures.persist(start + ENERGY_PATIENCE / 2) && failures.persist(start + ENERGY_PATIENCE));
        // The library was loaded twice before the counter could be read.
        failures.reloaded = true;
        failures.failed(start + ENERGY_PATIENCE * 2);
        failures.reloaded = true;
        assert_eq!([failures.succeeded(), failures.succeeded()], [true, false]);
        // A failure that passes without another library loses no energy.
        failures.failed(start);
        assert!(!failures.succeeded());
    }

    #[test]
    fn retry_due_while_reading_devices_is_not_postponed() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut retry = Retry { at: None, interval: RETRY.0 };
        retry.schedule(start, false, true);
        // The poll starts before the retry is due and ends after it.
        assert!(!retry.is_due(start + RETRY.0 - second));
        retry.schedule(start + RETRY.0 + second, false, true);
        assert!(retry.is_due(start + RETRY.0 + second) && !retry.is_due(start + RETRY.0 * 9));
        // The interval doubles after each failure, up to the maximum; it is reset after a success.
        let mut waits = Vec::new();
        for _ in 0..4 {
            retry.schedule(start, false, true);
            waits.push((retry.at.unwrap() - start).as_secs());
            assert!(retry.is_due(start + RETRY.1));
        }
        assert_eq!(waits, [20, 40, 60, 60]);
        retry.schedule(start, true, true);
        retry.schedule(start, false, true);
        assert_eq!(retry.at, Some(start + RETRY.0));
    }
}
