//! NVIDIA's management library: opening it, losing it, and what it says of every device.
//!
//! It is loaded at run time and every function of it may be missing, so each reading has a state of its own. A call may take long or
//! never return when a GPU hangs: this runs on the thread of [`super::Gpus`], never on the sampler's.

use std::{
    collections::{BTreeMap, HashMap, HashSet, btree_map::Entry},
    ffi::OsStr,
    os::raw::c_uint,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nvml_wrapper::{
    Device as Handle, Nvml,
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{Clock, TemperatureSensor},
    enums::device::UsedGpuMemory,
    error::{NvmlError, nvml_sym, nvml_try, nvml_try_count},
};
use nvml_wrapper_sys::bindings as sys;

use super::{
    Clocks, Facts, Gpu, Link, Memory, Resident, Session, Use,
    engines::{ENGINES, Engine, GpuId},
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
/// Processes of one device that are looked at; the rest go without a name.
pub(super) const MAX_PROCESSES: usize = 1024;
/// How often what changes slowly is read: temperatures, clocks, memory, limits, the bus.
const SLOW_EVERY: Duration = Duration::from_secs(5);
/// How often a library that is not there, or a device that was lost, is tried again; doubled up to the second while it fails.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// A counter that has not moved in this time at the start does not count. Boards update it every 20 to 100 ms (arXiv 2312.02741).
const MOVES_WITHIN: Duration = Duration::from_millis(300);
/// How old a reading may be, by the same source.
const UPDATE_NS: u64 = 100_000_000;
/// The longest sampling period of the driver's: "may be between 1 second and 1/6 second, depending on the product" (nvml.h,
/// nvmlUtilization_t).
const PERIOD_US: u64 = 1_000_000;
/// How far back samples are asked for.
const ASKED_US: u64 = 3 * PERIOD_US;
/// A process of which nothing was heard for so long is met anew.
const FORGOTTEN_US: u64 = 60 * PERIOD_US;
/// A sample from further ahead than this is of another clock.
const AHEAD_US: u64 = 1_000_000;

/// The library and its devices.
pub(super) struct Nvidia {
    library: Option<PathBuf>,
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
    retry_at: Option<Instant>,
    retry_after: Duration,
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
            "{library} is not here: no NVIDIA driver. In a container give it the driver (docker: --gpus=all), or name the library with --nvml.library"
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
    pub(super) fn open(library: Option<PathBuf>) -> Self {
        let mut this = Self {
            library,
            nvml: None,
            driver: String::new(),
            fake: false,
            devices: Vec::new(),
            nameless: Vec::new(),
            beyond: 0,
            state: Ok(()),
            retry_at: None,
            retry_after: RETRY.0,
        };
        this.load();
        this
    }

    /// Until when there is nothing to look at; `None` where there is something.
    pub(super) fn sleeps_until(&self) -> Option<Instant> {
        self.retry_at.filter(|_| self.devices.is_empty())
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
        let library = self.library.as_deref().map_or(OsStr::new(LIBRARY), |path| path.as_os_str()).to_owned();
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
        let well = self.devices.iter().all(|device| device.state.is_ok()) && self.nameless.is_empty();
        if self.state.is_ok() && well {
            (self.retry_at, self.retry_after) = (None, RETRY.0);
        } else if self.retry_at.is_none_or(|at| at <= Instant::now()) {
            self.retry_at = Some(Instant::now() + self.retry_after);
            // Trying costs nothing where there is no library.
            let known = !self.devices.is_empty();
            self.retry_after = if known { (self.retry_after * 2).min(RETRY.1) } else { RETRY.0 };
        }
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
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
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
        let jpeg = ask(refused, "jpeg", || utilization(handle, Engine::Jpeg))?;
        let ofa = ask(refused, "ofa", || utilization(handle, Engine::Ofa))?;
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
        let sessions = ask(refused, "encoder_sessions", || listed(|| encoder_sessions(handle)))?;
        let since_us = self.samples.since_us(unix_us);
        let samples = ask(refused, "process_utilization", || listed(|| samples(handle, since_us)))?;
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
        if let Some(percent) = ask(refused, reading, || capacity(handle, codec))?.filter(|percent| *percent <= 100) {
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

/// One process in one sampling period of the driver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) pid: u32,
    /// End of the period, microseconds of the wall clock.
    pub(super) at_us: u64,
    /// Of SM, memory, encoder, decoder, JPEG, OFA.
    pub(super) percent: [u32; 6],
}

/// The samples of one device, process by process: each has a clock of its own, a second or more from the others' in one answer of the driver
/// (Syllo/nvtop#110).
#[derive(Debug, Default)]
pub(super) struct Samples {
    /// What is not after this, in microseconds of the wall clock, was before we looked.
    floor_us: u64,
    /// The newest sample of each process that was counted.
    last: HashMap<u32, u64>,
    /// Who has been heard of since all that were active had been.
    fresh: HashSet<u32>,
    /// Since when somebody is waited for.
    waits: Option<Instant>,
    /// Samples that were too old, that could not be true, and of processes that found no room.
    dropped: [u64; 3],
}

impl Samples {
    /// Counts from now.
    fn start() -> Self {
        Self { floor_us: unix_us(), ..Self::default() }
    }

    /// After a loss: what was used meanwhile is nobody's.
    fn restart(&mut self) {
        *self = Self { dropped: self.dropped, ..Self::start() };
    }

    /// From when on to ask the driver: some time before now, for a process's newest sample may be older than another's.
    fn since_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(ASKED_US).max(self.floor_us)
    }

    /// Adds up what each process used: percent of an engine times the time that a sample stands for, which begins at the process's sample before
    /// it, and for one that was silent a sampling period earlier. `span` is the time since the look before.
    ///
    /// The driver's buffer may hold old samples and absurd ones (Syllo/nvtop#91, #110): what is not after the process's last, and what
    /// is more than an engine has or later than now, is dropped and counted.
    fn fold(&mut self, samples: &[Sample], now_us: u64, span: Duration) -> Vec<Use> {
        let span_us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        // A clock that was set back must not make every sample to come an old one.
        if self.floor_us > now_us.saturating_add(AHEAD_US) {
            self.floor_us = now_us;
        }
        self.last.retain(|_, at| *at <= now_us.saturating_add(AHEAD_US) && at.saturating_add(FORGOTTEN_US) > now_us);
        let mut good = Vec::new();
        for sample in samples {
            let last = self.last.get(&sample.pid).copied();
            let impossible = sample.pid == 0
                || sample.at_us > now_us.saturating_add(AHEAD_US)
                || sample.percent.iter().any(|percent| *percent > 100);
            if impossible {
                self.dropped[1] += 1;
            } else if sample.at_us <= self.floor_us || last.is_some_and(|last| sample.at_us < last) {
                self.dropped[0] += 1;
            } else if last != Some(sample.at_us) {
                good.push(*sample);
            }
        }
        good.sort_unstable_by_key(|sample| sample.at_us);
        let mut uses: BTreeMap<u32, Use> = BTreeMap::new();
        for sample in good {
            let room = uses.len() < MAX_PROCESSES;
            let used = match uses.entry(sample.pid) {
                Entry::Vacant(_) if !room => {
                    self.dropped[2] += 1;
                    continue;
                }
                entry => entry.or_insert(Use { pid: sample.pid, times: [0; ENGINES], at_us: 0 }),
            };
            let (begun, longest) = match self.last.insert(sample.pid, sample.at_us) {
                Some(last) => (last, span_us.saturating_add(2 * PERIOD_US)),
                None => (self.floor_us, span_us.min(PERIOD_US)),
            };
            let ns = (sample.at_us - begun.min(sample.at_us)).min(longest).saturating_mul(1000);
            used.at_us = sample.at_us;
            for (engine, percent) in used.times.iter_mut().zip(sample.percent) {
                *engine = engine.saturating_add(ns / 100 * u64::from(percent));
            }
            self.fresh.insert(sample.pid);
        }
        uses.into_values().filter(|used| used.times.iter().any(|ns| *ns > 0)).collect()
    }

    /// True when everybody who was active lately has been heard of, so that joules can be shared: else all of a tick's would go to whoever's
    /// sample came first. Nobody is waited for longer than two periods.
    fn settled(&mut self, busy: bool, now: Instant, now_us: u64) -> bool {
        let active = |at: &u64| at.saturating_add(2 * PERIOD_US) > now_us;
        let mut awaited = self.last.iter().filter(|(pid, at)| active(at) && !self.fresh.contains(pid));
        let heard = !busy || !self.fresh.is_empty() && awaited.next().is_none();
        let since = *self.waits.get_or_insert(now);
        if !heard && now.duration_since(since) < Duration::from_micros(2 * PERIOD_US) {
            return false;
        }
        (self.waits, self.fresh) = (None, HashSet::new());
        true
    }
}

/// Where the driver tells no use by process, the owners of encoder sessions share the time of the encoder, by the pixels that each delivers.
fn by_sessions(uses: &mut Vec<Use>, sessions: &[Session], encoding: f64, span: Duration, at_us: u64) {
    let encoder = Engine::Encoder.index();
    let pixels: u64 = sessions.iter().map(Session::pixels).sum();
    if encoding <= 0.0 || pixels == 0 {
        return;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a percentage")]
    let percent = (encoding * 100.0).round() as u64;
    let busy_ns = u64::try_from(span.as_nanos() / 100).unwrap_or(u64::MAX).saturating_mul(percent);
    for session in sessions {
        let part = u128::from(busy_ns) * u128::from(session.pixels()) / u128::from(pixels);
        let ns = u64::try_from(part).unwrap_or(u64::MAX);
        match uses.iter_mut().find(|used| used.pid == session.pid) {
            Some(used) => used.times[encoder] = used.times[encoder].saturating_add(ns),
            None if ns > 0 => {
                let mut times = [0; ENGINES];
                times[encoder] = ns;
                uses.push(Use { pid: session.pid, times, at_us });
            }
            None => {}
        }
    }
}

/// NVML's numbers of codecs (nvml.h, nvmlEncoderType_t). The wrapper does not know the third, and would refuse the whole list.
const CODECS: [(c_uint, &str, &str); 3] =
    [(0, "h264", "encoder_capacity_h264"), (1, "hevc", "encoder_capacity_hevc"), (2, "av1", "encoder_capacity_av1")];

fn encoder_sessions(handle: &Handle<'_>) -> Result<Vec<Session>, NvmlError> {
    let call = nvml_sym(handle.nvml().lib().nvmlDeviceGetEncoderSessions.as_ref())?;
    let mut count: c_uint = 0;
    // SAFETY: the handle is of this library, and a null array asks for the count alone (nvml.h).
    nvml_try_count(unsafe { call(handle.handle(), &raw mut count, std::ptr::null_mut()) })?;
    if count == 0 {
        return Ok(Vec::new());
    }
    count = count.min(c_uint::try_from(MAX_PROCESSES).unwrap_or(c_uint::MAX));
    // SAFETY: plain numbers, for which zeros are values.
    let mut sessions: Vec<sys::nvmlEncoderSessionInfo_t> = vec![unsafe { std::mem::zeroed() }; count as usize];
    // SAFETY: the array holds `count` of them, and the library writes no more.
    nvml_try(unsafe { call(handle.handle(), &raw mut count, sessions.as_mut_ptr()) })?;
    sessions.truncate(count as usize);
    Ok(sessions
        .into_iter()
        .map(|session| Session {
            pid: session.pid,
            codec: CODECS
                .iter()
                .find(|(number, ..)| *number == session.codecType)
                .map_or("other", |(_, name, _)| *name),
            width: session.hResolution,
            height: session.vResolution,
            fps: session.averageFps,
            latency_us: session.averageLatency,
        })
        .collect())
}

fn capacity(handle: &Handle<'_>, codec: c_uint) -> Result<u32, NvmlError> {
    let call = nvml_sym(handle.nvml().lib().nvmlDeviceGetEncoderCapacity.as_ref())?;
    let mut percent: c_uint = 0;
    // SAFETY: the handle is of this library, and `percent` outlives the call.
    nvml_try(unsafe { call(handle.handle(), codec, &raw mut percent) })?;
    Ok(percent)
}

/// Use of an engine that the wrapper does not know, in percent.
fn utilization(handle: &Handle<'_>, engine: Engine) -> Result<u32, NvmlError> {
    let lib = handle.nvml().lib();
    let call = match engine {
        Engine::Jpeg => nvml_sym(lib.nvmlDeviceGetJpgUtilization.as_ref())?,
        _ => nvml_sym(lib.nvmlDeviceGetOfaUtilization.as_ref())?,
    };
    let (mut percent, mut period): (c_uint, c_uint) = (0, 0);
    // SAFETY: the handle is of this library, and both numbers outlive the call.
    nvml_try(unsafe { call(handle.handle(), &raw mut percent, &raw mut period) })?;
    Ok(percent)
}

/// What each process used since `last_seen_us`: with JPEG and OFA where the driver tells them (R550), else without.
fn samples(handle: &Handle<'_>, last_seen_us: u64) -> Result<Vec<Sample>, NvmlError> {
    match samples_of_all_engines(handle, last_seen_us) {
        Err(
            NvmlError::FailedToLoadSymbol(_)
            | NvmlError::NotSupported
            | NvmlError::InvalidArg
            | NvmlError::FunctionNotFound,
        ) => {}
        other => return other,
    }
    Ok(handle
        .process_utilization_stats(last_seen_us)?
        .into_iter()
        .map(|sample| Sample {
            pid: sample.pid,
            at_us: sample.timestamp,
            percent: [sample.sm_util, sample.mem_util, sample.enc_util, sample.dec_util, 0, 0],
        })
        .collect())
}

fn samples_of_all_engines(handle: &Handle<'_>, last_seen_us: u64) -> Result<Vec<Sample>, NvmlError> {
    type Asked = sys::nvmlProcessesUtilizationInfo_v1_t;
    let call = nvml_sym(handle.nvml().lib().nvmlDeviceGetProcessesUtilizationInfo.as_ref())?;
    // NVML_STRUCT_VERSION(ProcessesUtilizationInfo, 1) of nvml.h: the size, and the version above it.
    let version = c_uint::try_from(size_of::<Asked>()).map_err(|_| NvmlError::InvalidArg)? | 1 << 24;
    let mut asked =
        Asked { version, processSamplesCount: 0, lastSeenTimeStamp: last_seen_us, procUtilArray: std::ptr::null_mut() };
    // SAFETY: the handle is of this library, and a null array asks for the count alone (nvml.h).
    nvml_try_count(unsafe { call(handle.handle(), &raw mut asked) })?;
    if asked.processSamplesCount == 0 {
        return Ok(Vec::new());
    }
    // More than we ask for, because processes come meanwhile.
    let room = (asked.processSamplesCount as usize + 8).min(16 * MAX_PROCESSES);
    // SAFETY: plain numbers, for which zeros are values.
    let mut array: Vec<sys::nvmlProcessUtilizationInfo_v1_t> = vec![unsafe { std::mem::zeroed() }; room];
    asked.processSamplesCount = c_uint::try_from(room).map_err(|_| NvmlError::InvalidArg)?;
    asked.procUtilArray = array.as_mut_ptr();
    // SAFETY: the array holds as many as the count says, and outlives the call.
    nvml_try(unsafe { call(handle.handle(), &raw mut asked) })?;
    array.truncate(asked.processSamplesCount as usize);
    Ok(array
        .into_iter()
        .map(|sample| Sample {
            pid: sample.pid,
            at_us: sample.timeStamp,
            percent: [sample.smUtil, sample.memUtil, sample.encUtil, sample.decUtil, sample.jpgUtil, sample.ofaUtil],
        })
        .collect())
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

/// Microseconds of the wall clock, which the driver stamps its samples with.
fn unix_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000_000_000;

    fn sample(pid: u32, at_us: u64, encoder: u32) -> Sample {
        Sample { pid, at_us, percent: [0, 0, encoder, 0, 0, 0] }
    }

    fn encoder_ns(uses: &[Use], pid: u32) -> u64 {
        uses.iter().find(|used| used.pid == pid).map_or(0, |used| used.times[Engine::Encoder.index()])
    }

    fn samples(floor_us: u64) -> Samples {
        Samples { floor_us, ..Samples::default() }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_sample_stands_for_the_time_since_the_one_before_it() {
        let mut known = samples(NOW - 1_000_000);
        let both = [sample(7, NOW - 400_000, 50), sample(7, NOW, 100), sample(8, NOW, 10)];
        let uses = known.fold(&both, NOW, SECOND);
        // 0.6 s at half, 0.4 s at full; 1 s at a tenth.
        assert_eq!((encoder_ns(&uses, 7), encoder_ns(&uses, 8)), (700_000_000, 100_000_000));
        // The driver gives them again, and they count once.
        assert_eq!((known.fold(&both[1..], NOW, SECOND), known.dropped), (vec![], [0, 0, 0]));
    }

    #[test]
    fn each_process_has_a_clock_of_its_own() {
        // Two that use the same, whose samples come half a second apart, and one of them only in every other answer.
        let mut known = samples(NOW);
        let (mut sums, mut now) = ([0, 0], NOW);
        for second in 1..=20 {
            now = NOW + second * 1_000_000;
            let mut answer = vec![sample(1, now - 100_000, 40)];
            if second % 2 == 0 {
                answer.push(sample(2, now - 600_000, 40));
            }
            let uses = known.fold(&answer, now, SECOND);
            sums = [sums[0] + encoder_ns(&uses, 1), sums[1] + encoder_ns(&uses, 2)];
        }
        let expected = |at: u64| (at - NOW) * 1000 / 100 * 40;
        assert_eq!(sums[0], expected(now - 100_000));
        // What the slower one did before its first sample counts for one period.
        assert_eq!(sums[1], expected(now - 600_000) - 160_000_000);
        assert_eq!(known.dropped, [0, 0, 0]);
    }

    #[test]
    fn joules_wait_until_all_who_are_active_were_heard_of_and_not_for_ever() {
        let mut known = samples(NOW);
        let start = Instant::now();
        let tick = |number: u64| (NOW + number * 200_000, start + Duration::from_millis(200 * number));
        let mut settled = Vec::new();
        for number in 1..=20 {
            let (now_us, now) = tick(number);
            // Samples of a second's period, in ticks of a fifth.
            let answer: Vec<Sample> = match number % 5 {
                0 => vec![sample(1, now_us, 30)],
                2 => vec![sample(2, now_us, 30)],
                _ => vec![],
            };
            known.fold(&answer, now_us, Duration::from_millis(200));
            if known.settled(true, now, now_us) {
                settled.push(number);
            }
        }
        assert_eq!(settled, [2, 7, 12, 17], "when the slower of both was heard of");
        // One that is silent is not waited for longer than two periods; and at rest nobody is.
        let (now_us, now) = tick(21);
        assert!(!known.settled(true, now, now_us) && known.settled(true, now + 2 * SECOND, now_us + 2_000_000));
        assert!(known.settled(false, now + 2 * SECOND, now_us + 2_000_000));
    }

    #[test]
    fn neither_a_loss_nor_a_clock_that_is_set_makes_a_sample_stand_for_longer_than_there_was() {
        let mut known = samples(NOW);
        known.fold(&[sample(7, NOW + 1, 50)], NOW + 1, SECOND);
        // An hour ahead.
        let later = NOW + 3_600_000_000;
        assert_eq!(encoder_ns(&known.fold(&[sample(7, later, 50)], later, SECOND), 7), 500_000_000);
        // And back again.
        let uses = known.fold(&[sample(7, NOW + 2_000_000, 50)], NOW + 2_000_000, SECOND);
        assert_eq!(encoder_ns(&uses, 7), 500_000_000);
        known.restart();
        assert_eq!(known.fold(&[sample(7, NOW, 50)], unix_us(), SECOND), [], "before the loss");
    }

    #[test]
    fn what_is_old_is_dropped_and_so_is_what_cannot_be() {
        let mut known = samples(NOW - 500_000);
        let bad = [
            sample(7, NOW - 500_000, 50),
            sample(7, NOW - 600_000, 50),
            sample(8, NOW, 101),
            sample(0, NOW, 5),
            sample(9, NOW + 2_000_000, 5),
        ];
        assert_eq!((known.fold(&bad, NOW, SECOND), known.dropped), (vec![], [2, 3, 0]));
    }

    #[test]
    fn who_finds_no_room_is_counted() {
        let mut known = samples(NOW - 1_000_000);
        let most = u32::try_from(MAX_PROCESSES).unwrap();
        let all: Vec<Sample> = (1..=most + 1).map(|pid| sample(pid, NOW, 1)).collect();
        assert_eq!(known.fold(&all, NOW, SECOND).len(), MAX_PROCESSES);
        assert_eq!(known.dropped, [0, 0, 1]);
    }

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
    fn where_no_samples_are_told_the_encoder_is_shared_by_the_pixels_of_its_sessions() {
        let session = |pid, width, fps| Session { pid, codec: "h264", width, height: 1000, fps, latency_us: 0 };
        let sessions = [session(1, 3000, 30), session(2, 1000, 30), session(1, 0, 30)];
        let mut uses = Vec::new();
        by_sessions(&mut uses, &sessions, 0.4, SECOND, NOW);
        assert_eq!((encoder_ns(&uses, 1), encoder_ns(&uses, 2)), (300_000_000, 100_000_000));
    }

    proptest! {
        /// Whatever the driver's buffer holds, nobody used an engine for longer than there was time.
        #[test]
        fn nobody_uses_an_engine_longer_than_there_was_time(
            samples in prop::collection::vec((0u32..5, 0u64..3_000_000, prop::array::uniform6(0u32..120)), 0..60),
        ) {
            let samples: Vec<Sample> =
                samples.into_iter().map(|(pid, back, percent)| Sample { pid, at_us: NOW + 500_000 - back, percent }).collect();
            let floor = NOW - 1_000_000;
            let mut known = self::samples(floor);
            let count = samples.len();
            let uses = known.fold(&samples, NOW, SECOND);
            for used in &uses {
                prop_assert!(used.times.iter().all(|ns| *ns <= (used.at_us - floor) * 1000), "{used:?}");
            }
            prop_assert!(usize::try_from(known.dropped.iter().sum::<u64>()).unwrap() <= count);
        }
    }
}
