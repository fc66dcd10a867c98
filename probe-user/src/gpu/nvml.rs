//! NVIDIA's management library: opening it, losing it, and what it says of every device.
//!
//! It is loaded at run time and every function of it may be missing, so each reading has a state of its own. A call may take long or
//! never return when a GPU hangs: this runs on the thread of [`super::Gpus`], never on the sampler's.

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
};

use super::{
    Clocks, Facts, Gpu, Link, Memory, Resident, Session, Use,
    calls::{self, CODECS},
    engines::{ENGINES, Engine, GpuId},
    samples::{MAX_PROCESSES, Samples, by_sessions, unix_us},
};
use crate::{
    energy::zone::{Ceiling, Origin, Range, Zone, ZoneId, ZoneKind},
    state::{Reason, Unavailable},
    units::Unit,
};

/// The driver's library, as the loader finds it.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// What the driver of the tests' library calls itself.
const FAKE: &str = "fake";
/// Devices of one machine.
const MAX_GPUS: u32 = 64;
/// How often what changes slowly is read: temperatures, clocks, memory, limits, the bus.
const SLOW_EVERY: Duration = Duration::from_secs(5);
/// How often a library that is not there, or a device that was lost, is tried again; doubled up to the second while it fails.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// A counter that has not moved in this time at the start does not count. Boards update it every 20 to 100 ms (arXiv 2312.02741).
const MOVES_WITHIN: Duration = Duration::from_millis(300);
/// How old a reading may be, by the same source.
const UPDATE_NS: u64 = 100_000_000;

/// The library and its devices.
pub(super) struct Nvidia {
    /// Where the library is, if not where the loader finds it.
    path: Option<PathBuf>,
    nvml: Option<Nvml>,
    driver: String,
    /// True where the library is the tests'.
    fake: bool,
    devices: Vec<Device>,
    /// Devices that are there and gave no name.
    nameless: Vec<String>,
    /// How many there are for which there is no room.
    beyond: u32,
    state: Result<(), Unavailable>,
    retry: Retry,
}

/// When to open the library again.
struct Retry {
    at: Option<Instant>,
    after: Duration,
}

impl Retry {
    /// True once it is time. Only this takes the moment away: one that came while the devices were being read is not put off.
    fn is_due(&mut self, now: Instant) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }

    /// Sets the next moment, where there is none. `known` are devices that may come back; trying costs nothing where there is no library.
    fn plan(&mut self, now: Instant, well: bool, known: bool) {
        if well {
            (self.at, self.after) = (None, RETRY.0);
        } else if self.at.is_none() {
            self.at = Some(now + self.after);
            self.after = if known { (self.after * 2).min(RETRY.1) } else { RETRY.0 };
        }
    }
}

/// One device, for as long as the probe lives.
struct Device {
    id: GpuId,
    index: u32,
    name: String,
    energy: Energy,
    ceiling: Ceiling,
    mig: bool,
    state: Result<(), Unavailable>,
    /// Readings that it refuses, and why.
    refused: BTreeMap<&'static str, Reason>,
    samples: Samples,
    /// When it was looked at last.
    looked: Option<Instant>,
    /// True when its driver may have counted from zero since the look before.
    anew: bool,
    slow_at: Option<Instant>,
    facts: Facts,
    residents: Vec<Resident>,
}

/// Where a device's joules come from.
#[derive(Clone, Copy, Debug)]
enum Energy {
    /// Its own counter.
    Counter,
    /// Its power, integrated here: microjoules so far, and the last reading in milliwatts with its time.
    Power(u64, Option<(u32, Instant)>),
    /// Nothing tells.
    Nothing,
}

impl Energy {
    /// Unit and step in microjoules of what is counted, how its joules are obtained, and where, by a library of this origin.
    fn counted(self, origin: Origin) -> Option<(Unit, u64, Origin, &'static str)> {
        let integrated = if origin == Origin::Nvml { Origin::NvmlPower } else { origin };
        match self {
            Self::Counter => Some((Unit::MILLIJOULE, 1000, origin, "nvmlDeviceGetTotalEnergyConsumption")),
            Self::Power(..) => Some((Unit::MICROJOULE, 1, integrated, "nvmlDeviceGetPowerUsage, integrated")),
            Self::Nothing => None,
        }
    }
}

/// What ends a look at a device, and what only ends one reading.
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

/// What to tell of a library that cannot be used.
fn unusable(error: &NvmlError, library: &OsStr) -> Unavailable {
    let library = library.to_string_lossy();
    if let NvmlError::LibloadingError(error) = error
        && Path::new(&*library).exists()
    {
        return Unavailable::new(Reason::Broken, format!("{library} cannot be loaded: {error}"));
    }
    let detail = match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => format!(
            "{library} is not here: no NVIDIA driver. In a container give it the driver (docker: --gpus=all), or name the library with --path.nvml"
        ),
        NvmlError::DriverNotLoaded => {
            "the library is here and the driver is not loaded: modprobe nvidia, and look at dmesg".to_owned()
        }
        // Whoever uses a GPU first makes them, and the probe has dropped the right to.
        _ if Path::new("/proc/driver/nvidia/version").exists() && !Path::new("/dev/nvidiactl").exists() => {
            "the driver is loaded and /dev/nvidiactl is not there: nvidia-modprobe -u -c 0, or let nvidia-persistenced run".to_owned()
        }
        NvmlError::NoPermission | NvmlError::OperatingSystem => {
            "the driver may not be opened: run as root, and give a container /dev/nvidiactl and /dev/nvidiaN".to_owned()
        }
        NvmlError::LibRmVersionMismatch => {
            "library and kernel module are of two versions, as after an update: load the new module, or start the machine anew".to_owned()
        }
        error => format!("{library}: {error}"),
    };
    Unavailable::new(reason(error), detail)
}

fn lost(error: &NvmlError) -> Unavailable {
    let what = match error {
        NvmlError::GpuLost => {
            "the GPU has fallen off the bus; dmesg tells the Xid, and a reset or a cold start brings it back"
        }
        NvmlError::ResetRequired => "the GPU wants a reset: nvidia-smi --gpu-reset, when nothing uses it",
        NvmlError::LibRmVersionMismatch => "the driver was exchanged under its library",
        _ => "the driver was unloaded",
    };
    Unavailable::new(Reason::Broken, format!("{what} ({error}). Its counters stand; it is tried again"))
}

/// Asks for a reading that the device may not have. Gives nothing where it does not; fails where the device is lost.
fn ask<T>(
    refused: &mut BTreeMap<&'static str, Reason>,
    what: &'static str,
    reading: impl FnOnce() -> Result<T, NvmlError>,
) -> Result<Option<T>, NvmlError> {
    // What is not there or not allowed stays so until the library is opened again.
    if matches!(refused.get(what), Some(Reason::Absent | Reason::Denied)) {
        return Ok(None);
    }
    match reading() {
        Ok(value) => {
            refused.remove(what);
            Ok(Some(value))
        }
        Err(error) if is_fatal(&error) => Err(error),
        Err(error) => {
            refused.insert(what, reason(&error));
            Ok(None)
        }
    }
}

/// A list of the driver's that may be empty, and that may grow between asking for its length and for itself.
fn listed<T>(list: impl Fn() -> Result<Vec<T>, NvmlError>) -> Result<Vec<T>, NvmlError> {
    let again = || match list() {
        Err(NvmlError::InsufficientSize(_)) => list(),
        other => other,
    };
    match again() {
        // What "no process used anything" looks like (rust-nvml/nvml-wrapper#56).
        Err(NvmlError::NotFound | NvmlError::NoData) => Ok(Vec::new()),
        other => other,
    }
}

impl Nvidia {
    /// Opens the library and its devices.
    pub(super) fn open(path: Option<PathBuf>) -> Self {
        let mut this = Self {
            path,
            nvml: None,
            driver: String::new(),
            fake: false,
            devices: Vec::new(),
            nameless: Vec::new(),
            beyond: 0,
            state: Ok(()),
            retry: Retry { at: None, after: RETRY.0 },
        };
        this.load();
        this
    }

    /// Until when there is nothing to look at; `None` where there is something.
    pub(super) fn sleeps_until(&self) -> Option<Instant> {
        self.retry.at.filter(|_| self.devices.is_empty())
    }

    /// How the library stands.
    pub(super) fn state(&self) -> Result<(), Unavailable> {
        self.state.clone()?;
        match self.devices.iter().find_map(|device| device.state.as_ref().err().map(|why| (device, why))) {
            Some((device, why)) => {
                Err(Unavailable::new(why.reason, format!("GPU {} ({}): {}", device.index, device.id, why.detail)))
            }
            None if !self.nameless.is_empty() => Err(Unavailable::new(Reason::Broken, self.nameless.join("; "))),
            None if self.beyond > 0 => Err(Unavailable::new(
                Reason::Broken,
                format!("{} GPUs beyond the first {MAX_GPUS} are not read", self.beyond),
            )),
            None => Ok(()),
        }
    }

    /// What was found, for people.
    pub(super) fn detail(&self) -> String {
        let mut detail = format!("{} GPUs, driver {}", self.devices.len(), self.driver);
        if self.devices.len() == 1 {
            detail = format!("1 GPU, driver {}", self.driver);
        }
        let of = |kind: fn(&Energy) -> bool| self.devices.iter().filter(|device| kind(&device.energy)).count();
        let integrated = of(|energy| matches!(energy, Energy::Power(..)));
        if integrated > 0 {
            detail += &format!("; {integrated} without an energy counter that counts: power is integrated");
        }
        let nothing = of(|energy| matches!(energy, Energy::Nothing));
        if nothing > 0 {
            detail += &format!("; {nothing} tell neither energy nor power");
        }
        let mig = self.devices.iter().filter(|device| device.mig).count();
        if mig > 0 {
            detail += &format!("; {mig} in MIG mode: who uses its engines is not told, its joules stay unattributed");
        }
        if self.fake {
            detail += "; FAKE: nothing of this is measured, the library is made for tests";
        }
        detail
    }

    fn load(&mut self) {
        let library = self.path.as_deref().map_or(OsStr::new(LIBRARY), |path| path.as_os_str()).to_owned();
        match Nvml::builder().lib_path(&library).init() {
            Ok(nvml) => {
                self.driver = nvml.sys_driver_version().unwrap_or_else(|_| "unknown".to_owned());
                self.fake = self.driver.starts_with(FAKE);
                self.state = self.devices_of(&nvml).map_err(|error| unusable(&error, &library));
                if self.state.is_ok() && self.devices.is_empty() && self.nameless.is_empty() {
                    self.state = Err(Unavailable::new(Reason::Absent, "the driver is loaded and has no GPU"));
                }
                self.nvml = Some(nvml);
            }
            Err(error) => self.state = Err(unusable(&error, &library)),
        }
        self.plan_retry();
    }

    /// When to open the library again: while it, or one of its devices, cannot be used.
    fn plan_retry(&mut self) {
        // Opening it again does not make room.
        let devices = self.devices.iter().all(|device| device.state.is_ok()) && self.nameless.is_empty();
        self.retry.plan(Instant::now(), self.state.is_ok() && devices, !self.devices.is_empty());
    }

    /// Meets the devices: those of before by their names, whatever their numbers are now.
    fn devices_of(&mut self, nvml: &Nvml) -> Result<(), NvmlError> {
        self.nameless.clear();
        let mut new = Vec::new();
        let count = nvml.device_count()?;
        self.beyond = count.saturating_sub(MAX_GPUS);
        for index in 0..count.min(MAX_GPUS) {
            let met = nvml.device_by_index(index).and_then(|handle| Ok((handle.uuid()?, handle)));
            let (uuid, handle) = match met {
                Ok(met) => met,
                Err(error) => {
                    // One that we know and that is lost says so by itself.
                    if !self.devices.iter().any(|known| known.index == index) {
                        self.nameless.push(format!("GPU {index}: {error}"));
                    }
                    continue;
                }
            };
            let Ok(id) = uuid.parse::<GpuId>() else {
                self.nameless.push(format!("GPU {index} has a name that is none: {uuid:?}"));
                continue;
            };
            let mig = handle.mig_mode().is_ok_and(|mode| mode.current == 1);
            if let Some(known) = self.devices.iter_mut().find(|known| known.id == id) {
                if known.state.is_err() {
                    // Whether its driver was loaded anew cannot be told from a counter that is higher: a young one may be. One that
                    // was well all the time, while another was tried again, counts on.
                    known.samples.restart();
                    (known.looked, known.anew) = (None, true);
                }
                (known.index, known.mig, known.state, known.slow_at) = (index, mig, Ok(()), None);
                known.refused.clear();
                continue;
            }
            let milliwatts = handle
                .power_management_limit_constraints()
                .map(|limits| limits.max_limit)
                .or_else(|_| handle.enforced_power_limit());
            new.push(Device {
                id,
                index,
                name: exporter::label::clean(&handle.name().unwrap_or_else(|_| "unknown".to_owned())),
                energy: Energy::Nothing,
                ceiling: milliwatts.map_or(Ceiling::learned(ZoneKind::Gpu(id)), |milliwatts| {
                    Ceiling::Limit(u64::from(milliwatts) * 1000)
                }),
                mig,
                state: Ok(()),
                refused: BTreeMap::new(),
                samples: Samples::start(),
                looked: None,
                anew: false,
                slow_at: None,
                facts: Facts::default(),
                residents: Vec::new(),
            });
        }
        let counts: Vec<bool> = counting(nvml, &new);
        for (mut device, counts) in new.into_iter().zip(counts) {
            let power = || nvml.device_by_index(device.index).and_then(|handle| handle.power_usage());
            device.energy = match counts {
                true => Energy::Counter,
                false if power().is_ok() => Energy::Power(0, None),
                false => Energy::Nothing,
            };
            self.devices.push(device);
        }
        Ok(())
    }

    /// Looks at every device once.
    /// Gives when their energy was read.
    pub(super) fn look(&mut self, gpus: &mut Vec<Gpu>) -> Instant {
        if self.retry.is_due(Instant::now()) {
            // Shut down first: a library that is open does not see what changed below it.
            self.nvml = None;
            self.load();
        }
        let nvml = self.nvml.as_ref();
        // Energy of all first, so that they are of one moment: now, for the library may have taken seconds to open.
        let at = Instant::now();
        let raw: Vec<Option<Result<u64, String>>> =
            self.devices.iter_mut().map(|device| device.read_energy(nvml)).collect();
        let origin = if self.fake { Origin::Fake } else { Origin::Nvml };
        for (device, raw) in self.devices.iter_mut().zip(raw) {
            gpus.push(device.look(nvml, raw, origin, at));
        }
        self.plan_retry();
        at
    }
}

/// Which of the devices have an energy counter that moves.
fn counting(nvml: &Nvml, devices: &[Device]) -> Vec<bool> {
    let read = |device: &Device| nvml.device_by_index(device.index)?.total_energy_consumption();
    let first: Vec<Option<u64>> = devices.iter().map(|device| read(device).ok()).collect();
    let mut moved = vec![false; devices.len()];
    let end = Instant::now() + MOVES_WITHIN;
    let waits = |moved: &[bool]| moved.iter().zip(&first).any(|(moved, first)| !moved && first.is_some());
    while waits(&moved) && Instant::now() < end {
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
        let (unit, step_uj, origin, how) = self.energy.counted(origin)?;
        Some(Zone {
            id,
            unit,
            range: Range::Endless,
            step_uj,
            update_ns: UPDATE_NS,
            ceiling: self.ceiling,
            place: format!("GPU {}: {how}", self.index),
            origin: Some(origin),
        })
    }

    fn read_energy(&mut self, nvml: Option<&Nvml>) -> Option<Result<u64, String>> {
        if self.state.is_err() {
            self.forget_power();
            return (!matches!(self.energy, Energy::Nothing)).then(|| Err("the GPU is lost".to_owned()));
        }
        let handle = self.handle(nvml);
        let read = match &mut self.energy {
            Energy::Nothing => return None,
            Energy::Counter => handle.and_then(|handle| handle.total_energy_consumption()),
            Energy::Power(sum, last) => handle.and_then(|handle| handle.power_usage()).map(|milliwatts| {
                let now = Instant::now();
                if let Some((before, at)) = last.replace((milliwatts, now)) {
                    let mean_mw = u128::from(before) + u128::from(milliwatts);
                    // Milliwatts times nanoseconds, twice: 2 · 10^6 of them are a microjoule.
                    let grown = mean_mw * (now - at).as_nanos() / 2_000_000;
                    *sum = sum.saturating_add(u64::try_from(grown).unwrap_or(u64::MAX));
                }
                *sum
            }),
        };
        Some(match read {
            Ok(value) => {
                self.refused.remove("energy");
                Ok(value)
            }
            Err(error) => {
                self.forget_power();
                if is_fatal(&error) {
                    self.state = Err(lost(&error));
                } else {
                    self.refused.insert("energy", reason(&error));
                }
                Err(error.to_string())
            }
        })
    }

    /// What is used from now to the next reading is not known, and a line over a gap would be a guess.
    fn forget_power(&mut self) {
        if let Energy::Power(_, last) = &mut self.energy {
            *last = None;
        }
    }

    fn look(&mut self, nvml: Option<&Nvml>, raw: Option<Result<u64, String>>, origin: Origin, now: Instant) -> Gpu {
        let mut read = Read { settled: true, ..Read::default() };
        if self.state.is_ok() {
            match self.handle(nvml).and_then(|handle| self.read(&handle, now)) {
                Ok(of_device) => read = of_device,
                Err(error) if is_fatal(&error) => self.state = Err(lost(&error)),
                Err(error) => self.state = Err(Unavailable::new(reason(&error), error.to_string())),
            }
        }
        if self.state.is_err() {
            // Nothing of what it said before holds.
            (self.facts, self.slow_at) = (Facts::default(), None);
            self.residents.clear();
        }
        Gpu {
            id: self.id,
            index: Some(self.index),
            name: self.name.clone(),
            origin,
            state: self.state.clone(),
            zone: self.zone(origin),
            raw,
            mig: self.mig,
            facts: self.facts.clone(),
            sessions: read.sessions,
            residents: self.residents.clone(),
            uses: read.uses,
            rest: read.rest,
            refused: self.refused.clone(),
            dropped: self.samples.dropped,
            anew: std::mem::take(&mut self.anew),
            settled: read.settled,
        }
    }

    fn read(&mut self, handle: &Handle<'_>, now: Instant) -> Result<Read, NvmlError> {
        let unix_us = unix_us();
        let refused = &mut self.refused;
        let facts = &mut self.facts;
        facts.power_mw = ask(refused, "power", || handle.power_usage())?;
        facts.throttle = ask(refused, "throttle", || handle.current_throttle_reasons())?.map(|reasons| reasons.bits());
        let rates = ask(refused, "utilization", || handle.utilization_rates())?;
        let encoder = ask(refused, "encoder", || handle.encoder_utilization())?;
        let decoder = ask(refused, "decoder", || handle.decoder_utilization())?;
        let jpeg = ask(refused, "jpeg", || calls::utilization(handle, Engine::Jpeg))?;
        let ofa = ask(refused, "ofa", || calls::utilization(handle, Engine::Ofa))?;
        facts.engines = [None; ENGINES];
        for (engine, percent) in [
            (Engine::Sm, rates.as_ref().map(|rates| rates.gpu)),
            (Engine::Memory, rates.as_ref().map(|rates| rates.memory)),
            (Engine::Encoder, encoder.map(|encoder| encoder.utilization)),
            (Engine::Decoder, decoder.map(|decoder| decoder.utilization)),
            (Engine::Jpeg, jpeg),
            (Engine::Ofa, ofa),
        ] {
            // More than all of it is a driver's slip, and not a figure.
            facts.engines[engine.index()] =
                percent.filter(|percent| *percent <= 100).map(|percent| f64::from(percent) / 100.0);
        }
        let sessions = ask(refused, "encoder_sessions", || listed(|| calls::encoder_sessions(handle)))?;
        let since_us = self.samples.since_us(unix_us);
        let samples = ask(refused, "process_utilization", || listed(|| calls::samples(handle, since_us)))?;
        if self.slow_at.is_none_or(|at| now.duration_since(at) >= SLOW_EVERY) {
            self.slow_at = Some(now);
            read_slow(handle, refused, facts)?;
            self.residents = residents(handle, refused)?;
        }

        let sessions = sessions.unwrap_or_default();
        let span = self.looked.replace(now).map_or(Duration::ZERO, |before| now.duration_since(before));
        let told = self.facts.engines.iter().flatten();
        let quiet = told.clone().next().is_some() && told.into_iter().all(|ratio| *ratio == 0.0);
        let (uses, settled) = match samples {
            Some(samples) => {
                let uses = self.samples.fold(&samples, unix_us, span);
                let busy = !quiet || !sessions.is_empty() || !uses.is_empty();
                let settled = self.samples.settled(busy, now, unix_us);
                (uses, settled)
            }
            None => {
                let mut uses = Vec::new();
                let encoding = self.facts.engines[Engine::Encoder.index()].unwrap_or(0.0);
                by_sessions(&mut uses, &sessions, encoding, span, unix_us);
                (uses, true)
            }
        };
        let rest = quiet && sessions.is_empty() && uses.is_empty();
        Ok(Read { sessions, uses, rest, settled })
    }
}

/// What one look at a device says of who uses it.
#[derive(Default)]
struct Read {
    sessions: Vec<Session>,
    uses: Vec<Use>,
    rest: bool,
    settled: bool,
}

/// What changes slowly.
fn read_slow(
    handle: &Handle<'_>,
    refused: &mut BTreeMap<&'static str, Reason>,
    facts: &mut Facts,
) -> Result<(), NvmlError> {
    facts.limit_mw = ask(refused, "power_limit", || handle.enforced_power_limit())?;
    facts.celsius = ask(refused, "temperature", || handle.temperature(TemperatureSensor::Gpu))?;
    facts.memory = ask(refused, "memory", || handle.memory_info())?.map(|memory| Memory {
        total: memory.total,
        used: memory.used,
        free: memory.free,
        reserved: memory.reserved,
    });
    facts.clocks = ask(refused, "clocks", || {
        Ok(Clocks {
            graphics_mhz: handle.clock_info(Clock::Graphics)?,
            sm_mhz: handle.clock_info(Clock::SM)?,
            memory_mhz: handle.clock_info(Clock::Memory)?,
            video_mhz: handle.clock_info(Clock::Video).ok(),
        })
    })?;
    facts.link = ask(refused, "pcie", || {
        Ok(Link {
            generation: handle.current_pcie_link_gen()?,
            width: handle.current_pcie_link_width()?,
            most_generation: handle.max_pcie_link_gen()?,
            most_width: handle.max_pcie_link_width()?,
            replays: handle.pcie_replay_counter().ok(),
        })
    })?;
    facts.headroom = Vec::new();
    for (codec, name, reading) in CODECS {
        if let Some(percent) =
            ask(refused, reading, || calls::capacity(handle, codec))?.filter(|percent| *percent <= 100)
        {
            facts.headroom.push((name, f64::from(percent) / 100.0));
        }
    }
    Ok(())
}

/// Everybody who holds the device, compute and graphics: a transcode by NVENC alone may stand in either.
fn residents(handle: &Handle<'_>, refused: &mut BTreeMap<&'static str, Reason>) -> Result<Vec<Resident>, NvmlError> {
    let compute = ask(refused, "compute_processes", || listed(|| handle.running_compute_processes()))?;
    let graphics = ask(refused, "graphics_processes", || listed(|| handle.running_graphics_processes()))?;
    let mut all: BTreeMap<u32, u64> = BTreeMap::new();
    for process in compute.into_iter().chain(graphics).flatten().take(MAX_PROCESSES) {
        // Who stands in both lists holds one piece of memory.
        let bytes = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => bytes,
            UsedGpuMemory::Unavailable => 0,
        };
        let most = all.entry(process.pid).or_default();
        *most = bytes.max(*most);
    }
    Ok(all.into_iter().map(|(pid, bytes)| Resident { pid, bytes: (bytes > 0).then_some(bytes) }).collect())
}

/// Why a GPU does not run as fast as it might, by the bit that says so; the label `reason` of `wattcast_gpu_throttle`.
pub(crate) const THROTTLES: [(ThrottleReasons, &str); 9] = [
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
    fn integrated_power_is_never_shown_as_a_counter_and_a_fake_never_as_either() {
        let origin = |energy: Energy, library| energy.counted(library).map(|(_, _, origin, _)| origin);
        assert_eq!(origin(Energy::Counter, Origin::Nvml), Some(Origin::Nvml));
        assert_eq!(origin(Energy::Power(0, None), Origin::Nvml), Some(Origin::NvmlPower));
        assert_eq!(origin(Energy::Nothing, Origin::Nvml), None);
        for energy in [Energy::Counter, Energy::Power(0, None)] {
            assert_eq!(origin(energy, Origin::Fake), Some(Origin::Fake));
        }
        assert!(Origin::Nvml.is_measured() && Origin::NvmlPower.is_measured() && !Origin::Fake.is_measured());
    }

    #[test]
    fn a_moment_that_comes_while_devices_are_read_is_not_put_off() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut retry = Retry { at: None, after: RETRY.0 };
        retry.plan(start, false, true);
        // The look begins before the moment and ends after it.
        assert!(!retry.is_due(start + RETRY.0 - second));
        retry.plan(start + RETRY.0 + second, false, true);
        assert!(retry.is_due(start + RETRY.0 + second) && !retry.is_due(start + RETRY.0 * 9));
        // Twice as long after each that failed, up to the most; from the beginning once all is well.
        let mut waits = Vec::new();
        for _ in 0..4 {
            retry.plan(start, false, true);
            waits.push((retry.at.unwrap() - start).as_secs());
            assert!(retry.is_due(start + RETRY.1));
        }
        assert_eq!(waits, [20, 40, 60, 60]);
        retry.plan(start, true, true);
        retry.plan(start, false, true);
        assert_eq!(retry.at, Some(start + RETRY.0));
    }
}
