//! The scenario as time passes: energy grows by what is used, the file is read again, GPUs are lost.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::scenario::{Gpu, Process, Scenario, VARIABLE};

/// How often the file's time, and the processes of a name, are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// All that there is between two calls.
pub(crate) struct World {
    path: Option<PathBuf>,
    changed: Option<SystemTime>,
    looked: Option<Instant>,
    pub(crate) scenario: Scenario,
    /// Why the scenario cannot be read.
    pub(crate) wrong: bool,
    devices: Vec<Device>,
}

/// What a device has counted.
struct Device {
    epoch: u64,
    millijoules: f64,
    shown: f64,
    at: Instant,
    calls: u64,
    processes: Vec<Found>,
}

/// A process of the scenario that is there.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) pid: u32,
    pub(crate) what: Process,
}

static WORLD: Mutex<World> = Mutex::new(World {
    path: None,
    changed: None,
    looked: None,
    scenario: Scenario { init: None, gpu: Vec::new() },
    wrong: false,
    devices: Vec::new(),
});

/// The world as it is now.
pub(crate) fn now() -> MutexGuard<'static, World> {
    let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    world.pass();
    world
}

/// Microseconds of the wall clock.
pub(crate) fn unix_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(0)
}

/// The end of the sampling period that was whole last, of a process whose periods end so much later than others'.
pub(crate) fn sampled_us(period_ms: u64, phase_ms: u64) -> u64 {
    let (period, phase) = (period_ms.max(1) * 1000, phase_ms * 1000);
    unix_us().saturating_sub(phase) / period * period + phase
}

impl World {
    /// Brings everything up to now.
    fn pass(&mut self) {
        let now = Instant::now();
        for (device, gpu) in self.devices.iter_mut().zip(&self.scenario.gpu) {
            let grown = watts(gpu, &device.processes) * (now - device.at).as_secs_f64() * 1000.0;
            device.millijoules += grown;
            if !gpu.stands_still {
                device.shown += grown;
            }
            device.at = now;
        }
        if self.looked.is_some_and(|at| now - at < LOOK_EVERY) {
            return;
        }
        self.looked = Some(now);
        let path = self.path.get_or_insert_with(|| std::env::var_os(VARIABLE).unwrap_or_default().into());
        let changed = fs::metadata(&*path).and_then(|meta| meta.modified()).ok();
        if changed != self.changed || changed.is_none() {
            self.changed = changed;
            let read = fs::read_to_string(&*path).map_err(|error| error.to_string());
            match read.and_then(|text| Scenario::parse(&text)) {
                Ok(scenario) => (self.scenario, self.wrong) = (scenario, false),
                Err(error) => {
                    if !self.wrong {
                        eprintln!("fake-nvml: {}: {error}", path.display());
                    }
                    self.wrong = true;
                }
            }
        }
        let comms = comms(&self.scenario);
        for (at, gpu) in self.scenario.gpu.iter().enumerate() {
            if self.devices.len() == at {
                self.devices.push(Device {
                    epoch: gpu.epoch,
                    millijoules: 0.0,
                    shown: 0.0,
                    at: now,
                    calls: 0,
                    processes: Vec::new(),
                });
            }
            let device = &mut self.devices[at];
            if device.epoch != gpu.epoch {
                (device.epoch, device.millijoules, device.shown) = (gpu.epoch, 0.0, 0.0);
            }
            device.processes = gpu.process.iter().flat_map(|what| found(what, &comms)).collect();
        }
        self.devices.truncate(self.scenario.gpu.len());
    }

    /// A device by its number, counting the call.
    pub(crate) fn device(&mut self, index: usize) -> Option<(&Gpu, &[Found], f64)> {
        let (gpu, device) = (self.scenario.gpu.get(index)?, self.devices.get_mut(index)?);
        device.calls += 1;
        Some((gpu, &device.processes, device.shown))
    }

    /// True for a device that does not answer any more.
    pub(crate) fn is_lost(&self, index: usize) -> bool {
        let (Some(gpu), Some(device)) = (self.scenario.gpu.get(index), self.devices.get(index)) else { return false };
        gpu.lost || gpu.lost_after_calls > 0 && device.calls > gpu.lost_after_calls
    }
}

/// Percent of each engine that all use together, 100 at most.
pub(crate) fn percent(processes: &[Found]) -> [f64; 6] {
    let mut sums = [0.0; 6];
    for process in processes {
        sums.iter_mut().zip(process.what.percent.all()).for_each(|(sum, percent)| *sum += percent);
    }
    sums.map(|sum| sum.min(100.0))
}

/// What a device uses now.
pub(crate) fn watts(gpu: &Gpu, processes: &[Found]) -> f64 {
    let of_engines =
        gpu.engine_watts.all().into_iter().zip(percent(processes)).map(|(watts, percent)| watts * percent / 100.0);
    gpu.idle_watts + of_engines.sum::<f64>()
}

fn found(what: &Process, comms: &HashMap<String, Vec<u32>>) -> Vec<Found> {
    let of = |pid| Found { pid, what: what.clone() };
    let named = what.comm.iter().filter_map(|comm| comms.get(comm)).flatten().copied();
    what.pid.into_iter().chain(named).map(of).collect()
}

/// Every process that lives, by its name, where the scenario asks for names.
fn comms(scenario: &Scenario) -> HashMap<String, Vec<u32>> {
    let mut all: HashMap<String, Vec<u32>> = HashMap::new();
    if !scenario.gpu.iter().flat_map(|gpu| &gpu.process).any(|process| process.comm.is_some()) {
        return all;
    }
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Ok(comm) = fs::read_to_string(entry.path().join("comm")) {
            all.entry(comm.trim_end().to_owned()).or_default().push(pid);
        }
    }
    all
}
