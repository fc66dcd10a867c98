//! The state of the simulated GPUs over time: energy accumulates, the scenario file is reloaded,
//! GPUs are lost.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::scenario::{Gpu, Process, Scenario, VARIABLE};

/// Interval at which the file's modification time and the processes of a name are checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The state between two calls.
pub(crate) struct State {
    path: Option<PathBuf>,
    modified: Option<SystemTime>,
    checked: Option<Instant>,
    pub(crate) scenario: Scenario,
    /// True if the scenario file cannot be read.
    pub(crate) invalid: bool,
    devices: Vec<Device>,
}

/// State of one device.
struct Device {
    epoch: u64,
    /// Value of the energy counter in millijoules.
    counter_mj: f64,
    updated: Instant,
    calls: u64,
    processes: Vec<RunningProcess>,
}

/// A process that uses a device.
#[derive(Clone, Debug)]
pub(crate) struct RunningProcess {
    pub(crate) pid: u32,
    pub(crate) config: Process,
}

static STATE: Mutex<State> = Mutex::new(State {
    path: None,
    modified: None,
    checked: None,
    scenario: Scenario { init: None, gpu: Vec::new() },
    invalid: false,
    devices: Vec::new(),
});

/// Locks the state and updates it.
pub(crate) fn current() -> MutexGuard<'static, State> {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    state.update();
    state
}

/// Microseconds of the wall clock.
pub(crate) fn unix_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(0)
}

/// The end of the last complete sampling period of a process with this offset.
pub(crate) fn sampled_us(period_ms: u64, phase_ms: u64) -> u64 {
    let (period, phase) = (period_ms.max(1) * 1000, phase_ms * 1000);
    unix_us().saturating_sub(phase) / period * period + phase
}

impl State {
    /// Advances the state to the current time.
    fn update(&mut self) {
        let now = Instant::now();
        for (device, gpu) in self.devices.iter_mut().zip(&self.scenario.gpu) {
            if !gpu.stands_still {
                let delta_s = (now - device.updated).as_secs_f64();
                device.counter_mj += watts(gpu, &device.processes) * delta_s * 1000.0;
            }
            device.updated = now;
        }
        if self.checked.is_some_and(|at| now - at < CHECK_INTERVAL) {
            return;
        }
        self.checked = Some(now);
        let path = self.path.get_or_insert_with(|| std::env::var_os(VARIABLE).unwrap_or_default().into());
        let modified = fs::metadata(&*path).and_then(|meta| meta.modified()).ok();
        if modified != self.modified || modified.is_none() {
            self.modified = modified;
            let read = fs::read_to_string(&*path).map_err(|error| error.to_string());
            match read.and_then(|text| Scenario::parse(&text)) {
                Ok(scenario) => (self.scenario, self.invalid) = (scenario, false),
                Err(error) => {
                    if !self.invalid {
                        eprintln!("fake-nvml: {}: {error}", path.display());
                    }
                    self.invalid = true;
                }
            }
        }
        let comms = comms(&self.scenario);
        for (at, gpu) in self.scenario.gpu.iter().enumerate() {
            if self.devices.len() == at {
                self.devices.push(Device {
                    epoch: gpu.epoch,
                    counter_mj: 0.0,
                    updated: now,
                    calls: 0,
                    processes: Vec::new(),
                });
            }
            let device = &mut self.devices[at];
            if device.epoch != gpu.epoch {
                (device.epoch, device.counter_mj) = (gpu.epoch, 0.0);
            }
            device.processes = gpu.process.iter().flat_map(|config| running(config, &comms)).collect();
        }
        self.devices.truncate(self.scenario.gpu.len());
    }

    /// A device by index; counts the call.
    pub(crate) fn device(&mut self, index: usize) -> Option<(&Gpu, &[RunningProcess], f64)> {
        let (gpu, device) = (self.scenario.gpu.get(index)?, self.devices.get_mut(index)?);
        device.calls += 1;
        Some((gpu, &device.processes, device.counter_mj))
    }

    /// Whether a device has fallen off the bus.
    pub(crate) fn is_lost(&self, index: usize) -> bool {
        let (Some(gpu), Some(device)) = (self.scenario.gpu.get(index), self.devices.get(index)) else { return false };
        gpu.lost || gpu.lost_after_calls > 0 && device.calls > gpu.lost_after_calls
    }
}

/// Total utilization of each engine in percent, 100 at most.
pub(crate) fn percent(processes: &[RunningProcess]) -> [f64; 6] {
    let mut sums = [0.0; 6];
    for process in processes {
        sums.iter_mut().zip(process.config.percent.all()).for_each(|(sum, percent)| *sum += percent);
    }
    sums.map(|sum| sum.min(100.0))
}

/// Current power of a device.
pub(crate) fn watts(gpu: &Gpu, processes: &[RunningProcess]) -> f64 {
    let engine_watts =
        gpu.engine_watts.all().into_iter().zip(percent(processes)).map(|(watts, percent)| watts * percent / 100.0);
    gpu.idle_watts + engine_watts.sum::<f64>()
}

fn running(config: &Process, comms: &HashMap<String, Vec<u32>>) -> Vec<RunningProcess> {
    let process = |pid| RunningProcess { pid, config: config.clone() };
    let named = config.comm.iter().filter_map(|comm| comms.get(comm)).flatten().copied();
    config.pid.into_iter().chain(named).map(process).collect()
}

/// All running processes by name; empty if the scenario selects none by name.
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
