//! The NVML functions, as declared in nvml.h.
//!
//! All are called with pointers that the caller owns; each function checks them for null, and
//! cannot check more.

// The names are NVIDIA's, and the callers are outside this crate.
#![allow(non_snake_case, non_upper_case_globals, unreachable_pub)]
// NVML's opaque types have no alignment; what is behind the pointers is allocated here.
#![allow(clippy::cast_ptr_alignment)]

use std::{
    ffi::{c_char, c_uint, c_ulonglong},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use nvml_wrapper_sys::bindings::*;

use crate::{
    scenario::{Gpu, Instance},
    state::{self, RunningProcess},
};

static OWN_NS: AtomicU64 = AtomicU64::new(0);

/// CPU time of the functions in nanoseconds, so that a benchmark can report it separately.
#[unsafe(no_mangle)]
pub extern "C" fn fake_nvml_own_ns() -> u64 {
    OWN_NS.load(Ordering::Relaxed)
}

fn thread_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec that outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Measures the CPU time of a call.
struct Clock(u64);

impl Clock {
    fn start() -> Self {
        Self(thread_ns())
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        OWN_NS.fetch_add(thread_ns().saturating_sub(self.0), Ordering::Relaxed);
    }
}

fn code(name: &str) -> nvmlReturn_t {
    match name {
        "UNINITIALIZED" => nvmlReturn_enum_NVML_ERROR_UNINITIALIZED,
        "INVALID_ARGUMENT" => nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT,
        "NOT_SUPPORTED" => nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED,
        "NO_PERMISSION" => nvmlReturn_enum_NVML_ERROR_NO_PERMISSION,
        "NOT_FOUND" => nvmlReturn_enum_NVML_ERROR_NOT_FOUND,
        "DRIVER_NOT_LOADED" => nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED,
        "GPU_IS_LOST" => nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST,
        "RESET_REQUIRED" => nvmlReturn_enum_NVML_ERROR_RESET_REQUIRED,
        "LIB_RM_VERSION_MISMATCH" => nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        _ => nvmlReturn_enum_NVML_ERROR_UNKNOWN,
    }
}

const OK: nvmlReturn_t = nvmlReturn_enum_NVML_SUCCESS;
const INVALID: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
const NOT_SUPPORTED: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;
const NOT_FOUND: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_NOT_FOUND;
const SHORT: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;

/// A device as one call observes it.
struct DeviceView<'a> {
    index: usize,
    gpu: &'a Gpu,
    processes: &'a [RunningProcess],
    millijoules: f64,
}

/// The index of a device. Handles are indices plus one, so that none is null.
fn index(device: nvmlDevice_t) -> Option<usize> {
    (device as usize).checked_sub(1)
}

/// Runs a device function, unless the scenario defines an error for it.
fn with_device(name: &str, device: nvmlDevice_t, call: impl FnOnce(&DeviceView<'_>) -> nvmlReturn_t) -> nvmlReturn_t {
    let clock = Clock::start();
    let Some(index) = index(device) else { return INVALID };
    let mut state = state::current();
    if let Some(init) = &state.scenario.init {
        return code(init);
    }
    if state.is_lost(index) {
        return nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST;
    }
    let Some((gpu, processes, millijoules)) = state.device(index) else { return INVALID };
    let delay = gpu.delays.get(name).copied();
    if let Some(error) = gpu.errors.get(name) {
        return code(error);
    }
    let result = call(&DeviceView { index, gpu, processes, millijoules });
    drop(state);
    drop(clock);
    if let Some(delay) = delay {
        thread::sleep(Duration::from_millis(delay));
    }
    result
}

/// Writes a value to the caller's memory.
///
/// # Safety
/// `to` is null, or may be written.
unsafe fn write_value<T>(to: *mut T, value: T) -> nvmlReturn_t {
    if to.is_null() {
        return INVALID;
    }
    // SAFETY: not null, and owned by the caller.
    unsafe { to.write(value) };
    OK
}

/// Writes a list as NVML's functions do: `count` contains the capacity and receives the length;
/// without an array, only the length is returned, with the code `without_array`.
///
/// # Safety
/// `count` is null, or may be written; `to` is null, or has `count` elements.
unsafe fn write_list<T>(to: *mut T, count: *mut c_uint, list: Vec<T>, without_array: nvmlReturn_t) -> nvmlReturn_t {
    if count.is_null() {
        return INVALID;
    }
    let number = c_uint::try_from(list.len()).unwrap_or(c_uint::MAX);
    // SAFETY: not null, and owned by the caller.
    let capacity = unsafe { count.replace(number) };
    if to.is_null() {
        return if number == 0 { OK } else { without_array };
    }
    if capacity < number {
        return SHORT;
    }
    for (at, item) in list.into_iter().enumerate() {
        // SAFETY: within the capacity that the caller has passed.
        unsafe { to.add(at).write(item) };
    }
    OK
}

/// Writes a zero-terminated text.
///
/// # Safety
/// `to` is null, or may be written for `length` bytes.
unsafe fn write_text(to: *mut c_char, length: c_uint, text: &str) -> nvmlReturn_t {
    if to.is_null() || length as usize <= text.len() {
        return if to.is_null() { INVALID } else { SHORT };
    }
    for (at, byte) in text.bytes().chain([0]).enumerate() {
        // SAFETY: at most `length` bytes, which the caller has allocated.
        unsafe { to.add(at).write(byte.cast_signed()) };
    }
    OK
}

/// Rounds a value of the scenario to an integer; the values are small and not negative.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn rounded(value: f64) -> c_uint {
    value.round() as c_uint
}

/// Keeps this library loaded after dlclose: a driver's counters outlive the library, and here the
/// library plays the driver.
fn stay_loaded() {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: the address is that of a function in this library, and `info` outlives the call.
    if unsafe { libc::dladdr(nvmlInit_v2 as *const libc::c_void, &raw mut info) } != 0 && !info.dli_fname.is_null() {
        // SAFETY: the loader's name of a loaded library; the handle is never closed.
        unsafe { libc::dlopen(info.dli_fname, libc::RTLD_NOW | libc::RTLD_NODELETE) };
    }
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    stay_loaded();
    let state = state::current();
    match (&state.scenario.init, state.invalid) {
        (Some(init), _) => code(init),
        (None, true) => nvmlReturn_enum_NVML_ERROR_UNKNOWN,
        (None, false) => OK,
    }
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    OK
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(to: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: as NVML's.
    unsafe { write_text(to, length, concat!("fake-", env!("CARGO_PKG_VERSION"))) }
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    let gpus = state::current().scenario.gpu.len();
    // SAFETY: as NVML's.
    unsafe { write_value(count, c_uint::try_from(gpus).unwrap_or(0)) }
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(number: c_uint, to: *mut nvmlDevice_t) -> nvmlReturn_t {
    let handle = (number as usize + 1) as nvmlDevice_t;
    // SAFETY: as NVML's.
    with_device("nvmlDeviceGetHandleByIndex_v2", handle, |_| unsafe { write_value(to, handle) })
}

/// Functions that return one value.
macro_rules! values {
    ($($name:ident($view:ident) -> $type:ty { $value:expr })*) => {$(
        /// # Safety
        /// As NVML's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: nvmlDevice_t, to: *mut $type) -> nvmlReturn_t {
            with_device(stringify!($name), device, |$view| {
                let value: Result<$type, nvmlReturn_t> = $value;
                match value {
                    // SAFETY: as NVML's.
                    Ok(value) => unsafe { write_value(to, value) },
                    Err(code) => code,
                }
            })
        }
    )*};
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn millijoules(view: &DeviceView<'_>) -> Result<c_ulonglong, nvmlReturn_t> {
    // A real driver has counted for some time before the first call.
    if view.gpu.energy_counter {
        Ok(view.millijoules as c_ulonglong + 1_000_000 * u64::from(view.gpu.epoch == 0))
    } else {
        Err(NOT_SUPPORTED)
    }
}

fn rates(view: &DeviceView<'_>) -> Result<nvmlUtilization_t, nvmlReturn_t> {
    let percent = state::percent(view.processes);
    if view.gpu.mig {
        Err(NOT_SUPPORTED)
    } else {
        Ok(nvmlUtilization_t { gpu: rounded(percent[0]), memory: rounded(percent[1]) })
    }
}

fn memory(view: &DeviceView<'_>) -> nvmlMemory_v2_t {
    let (total, reserved) = (16u64 << 30, 256u64 << 20);
    let used = view.processes.iter().map(|process| process.config.memory).sum::<u64>().min(total - reserved);
    nvmlMemory_v2_t { version: 0, total, reserved, free: total - reserved - used, used }
}

values! {
    nvmlDeviceGetTotalEnergyConsumption(view) -> c_ulonglong { millijoules(view) }
    nvmlDeviceGetPowerUsage(view) -> c_uint { Ok(rounded(state::watts(view.gpu, view.processes) * 1000.0)) }
    nvmlDeviceGetEnforcedPowerLimit(view) -> c_uint { Ok(rounded(view.gpu.limit_watts * 1000.0)) }
    nvmlDeviceGetCurrentClocksThrottleReasons(view) -> c_ulonglong {
        Ok(u64::from(state::percent(view.processes).iter().all(|percent| *percent == 0.0)))
    }
    nvmlDeviceGetUtilizationRates(view) -> nvmlUtilization_t {
        rates(view)
    }
    nvmlDeviceGetMemoryInfo_v2(view) -> nvmlMemory_v2_t {
        Ok(memory(view))
    }
    nvmlDeviceGetCurrPcieLinkGeneration(_view) -> c_uint { Ok(3) }
    nvmlDeviceGetCurrPcieLinkWidth(_view) -> c_uint { Ok(8) }
    nvmlDeviceGetMaxPcieLinkGeneration(_view) -> c_uint { Ok(3) }
    nvmlDeviceGetMaxPcieLinkWidth(_view) -> c_uint { Ok(16) }
    nvmlDeviceGetMaxMigDeviceCount(view) -> c_uint { Ok(c_uint::try_from(view.gpu.instance.len()).unwrap_or(0)) }
    nvmlDeviceGetPcieReplayCounter(_view) -> c_uint { Ok(2) }
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: nvmlDevice_t, to: *mut c_char, length: c_uint) -> nvmlReturn_t {
    with_device("nvmlDeviceGetUUID", device, |view| {
        // "fake" in hexadecimal letters.
        let made = format!("GPU-fa4efa4e-fa4e-fa4e-fa4e-{:012x}", view.index);
        // SAFETY: as NVML's.
        unsafe { write_text(to, length, view.gpu.uuid.as_deref().unwrap_or(&made)) }
    })
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(device: nvmlDevice_t, to: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: as NVML's.
    with_device("nvmlDeviceGetName", device, |view| unsafe {
        write_text(to, length, &format!("fake {}", view.gpu.name))
    })
}

/// Functions that return two numbers.
macro_rules! pairs {
    ($($name:ident($view:ident) { $value:expr })*) => {$(
        /// # Safety
        /// As NVML's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: nvmlDevice_t, one: *mut c_uint, other: *mut c_uint) -> nvmlReturn_t {
            with_device(stringify!($name), device, |$view| {
                let value: Result<(c_uint, c_uint), nvmlReturn_t> = $value;
                match value {
                    // SAFETY: as NVML's.
                    Ok((first, second)) => unsafe { write_value(one, first).max(write_value(other, second)) },
                    Err(code) => code,
                }
            })
        }
    )*};
}

fn engine(view: &DeviceView<'_>, at: usize) -> Result<(c_uint, c_uint), nvmlReturn_t> {
    if view.gpu.mig { Err(NOT_SUPPORTED) } else { Ok((rounded(state::percent(view.processes)[at]), 100_000)) }
}

pairs! {
    nvmlDeviceGetEncoderUtilization(view) { engine(view, 2) }
    nvmlDeviceGetDecoderUtilization(view) { engine(view, 3) }
    nvmlDeviceGetJpgUtilization(view) { engine(view, 4) }
    nvmlDeviceGetOfaUtilization(view) { engine(view, 5) }
    nvmlDeviceGetMigMode(view) { Ok((c_uint::from(view.gpu.mig), c_uint::from(view.gpu.mig))) }
    nvmlDeviceGetPowerManagementLimitConstraints(view) { Ok((10_000, rounded(view.gpu.limit_watts * 1000.0))) }
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    _sensor: c_uint,
    to: *mut c_uint,
) -> nvmlReturn_t {
    let celsius = |view: &DeviceView<'_>| rounded(30.0 + state::watts(view.gpu, view.processes) / 3.0);
    // SAFETY: as NVML's.
    with_device("nvmlDeviceGetTemperature", device, |view| unsafe { write_value(to, celsius(view)) })
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetClockInfo(device: nvmlDevice_t, clock: c_uint, to: *mut c_uint) -> nvmlReturn_t {
    // Graphics, SM, memory, video (nvml.h, nvmlClockType_t).
    let megahertz = [1590, 1590, 5001, 1470];
    let value = megahertz.get(clock as usize).copied();
    // SAFETY: as NVML's.
    with_device("nvmlDeviceGetClockInfo", device, |_| value.map_or(INVALID, |value| unsafe { write_value(to, value) }))
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEncoderCapacity(
    device: nvmlDevice_t,
    codec_type: c_uint,
    to: *mut c_uint,
) -> nvmlReturn_t {
    with_device("nvmlDeviceGetEncoderCapacity", device, |view| {
        let left = 100.0 - state::percent(view.processes)[2];
        let has = view.gpu.codecs.iter().any(|name| codec(name) == codec_type);
        // SAFETY: as NVML's.
        if view.gpu.mig || !has { NOT_SUPPORTED } else { unsafe { write_value(to, rounded(left)) } }
    })
}

fn codec(name: &str) -> nvmlEncoderType_t {
    match name {
        "h264" => 0,
        "hevc" => 1,
        "av1" => 2,
        _ => 255,
    }
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEncoderSessions(
    device: nvmlDevice_t,
    count: *mut c_uint,
    to: *mut nvmlEncoderSessionInfo_t,
) -> nvmlReturn_t {
    with_device("nvmlDeviceGetEncoderSessions", device, |view| {
        if view.gpu.mig {
            return NOT_SUPPORTED;
        }
        let info = |process: &RunningProcess| {
            let pid = process.pid;
            let session = |session: &crate::scenario::Session| nvmlEncoderSessionInfo_t {
                sessionId: pid,
                pid,
                vgpuInstance: 0,
                codecType: codec(&session.codec),
                hResolution: session.width,
                vResolution: session.height,
                averageFps: session.fps,
                averageLatency: session.latency_us,
            };
            process.config.session.iter().map(session).collect::<Vec<_>>()
        };
        // SAFETY: as NVML's.
        unsafe { write_list(to, count, view.processes.iter().flat_map(info).collect(), OK) }
    })
}

/// Utilization samples of all processes since `last_seen`, in the newer structure.
fn samples(view: &DeviceView<'_>, last_seen: u64) -> Vec<nvmlProcessUtilizationInfo_v1_t> {
    let sample = |pid, at, percent: [f64; 6]| nvmlProcessUtilizationInfo_v1_t {
        timeStamp: at,
        pid,
        smUtil: rounded(percent[0]),
        memUtil: rounded(percent[1]),
        encUtil: rounded(percent[2]),
        decUtil: rounded(percent[3]),
        jpgUtil: rounded(percent[4]),
        ofaUtil: rounded(percent[5]),
    };
    let mut all = Vec::new();
    for process in view.processes {
        let at = state::sampled_us(view.gpu.period_ms, process.config.phase_ms);
        let percent = process.config.percent.all();
        if at > last_seen && percent.iter().any(|percent| *percent > 0.0) {
            all.push(sample(process.pid, at, percent));
        }
    }
    if view.gpu.junk {
        let at = state::unix_us();
        all.push(sample(1, last_seen.saturating_sub(5_000_000), [50.0; 6]));
        all.push(sample(1, at, [4_294_967_295.0, 0.0, 0.0, 0.0, 0.0, 0.0]));
        all.push(sample(0, at, [50.0; 6]));
    }
    all
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetProcessUtilization(
    device: nvmlDevice_t,
    to: *mut nvmlProcessUtilizationSample_t,
    count: *mut c_uint,
    last_seen: c_ulonglong,
) -> nvmlReturn_t {
    with_device("nvmlDeviceGetProcessUtilization", device, |view| {
        if view.gpu.mig {
            return NOT_SUPPORTED;
        }
        let old = |sample: nvmlProcessUtilizationInfo_v1_t| nvmlProcessUtilizationSample_t {
            pid: sample.pid,
            timeStamp: sample.timeStamp,
            smUtil: sample.smUtil,
            memUtil: sample.memUtil,
            encUtil: sample.encUtil,
            decUtil: sample.decUtil,
        };
        let list: Vec<_> = samples(view, last_seen).into_iter().map(old).collect();
        if list.is_empty() {
            return NOT_FOUND;
        }
        // SAFETY: as NVML's.
        unsafe { write_list(to, count, list, SHORT) }
    })
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetProcessesUtilizationInfo(
    device: nvmlDevice_t,
    request: *mut nvmlProcessesUtilizationInfo_v1_t,
) -> nvmlReturn_t {
    with_device("nvmlDeviceGetProcessesUtilizationInfo", device, |view| {
        // SAFETY: as NVML's: null, or the caller's to read and write.
        let Some(request) = (unsafe { request.as_mut() }) else { return INVALID };
        let version = u32::try_from(size_of::<nvmlProcessesUtilizationInfo_v1_t>()).unwrap_or(0) | 1 << 24;
        if request.version != version {
            return nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
        }
        if view.gpu.mig {
            return NOT_SUPPORTED;
        }
        let list = samples(view, request.lastSeenTimeStamp);
        if list.is_empty() {
            return NOT_FOUND;
        }
        // SAFETY: as NVML's.
        unsafe { write_list(request.procUtilArray, &raw mut request.processSamplesCount, list, SHORT) }
    })
}

fn running_processes(view: &DeviceView<'_>, graphics: bool) -> Vec<nvmlProcessInfo_t> {
    let info = |process: &RunningProcess| nvmlProcessInfo_t {
        pid: process.pid,
        usedGpuMemory: process.config.memory,
        gpuInstanceId: process.config.instance.unwrap_or(u32::MAX),
        computeInstanceId: process.config.instance.map_or(u32::MAX, |_| 0),
    };
    view.processes.iter().filter(|process| process.config.graphics == graphics).map(info).collect()
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    to: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    let name = "nvmlDeviceGetComputeRunningProcesses_v3";
    // SAFETY: as NVML's.
    with_device(name, device, |view| unsafe { write_list(to, count, running_processes(view, false), SHORT) })
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    to: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    let name = "nvmlDeviceGetGraphicsRunningProcesses_v3";
    // SAFETY: as NVML's.
    with_device(name, device, |view| unsafe { write_list(to, count, running_processes(view, true), SHORT) })
}

/// Handles of MIG devices are those of their device, with the place of the instance plus one above.
const MIG_SHIFT: u32 = 16;

/// The handle of the device of a MIG device, and the place of its instance.
fn mig_parts(device: nvmlDevice_t) -> Option<(nvmlDevice_t, usize)> {
    let place = (device as usize >> MIG_SHIFT).checked_sub(1)?;
    Some(((device as usize & ((1 << MIG_SHIFT) - 1)) as nvmlDevice_t, place))
}

/// Runs a function of a MIG device.
fn with_instance(name: &str, device: nvmlDevice_t, call: impl FnOnce(&Instance) -> nvmlReturn_t) -> nvmlReturn_t {
    let Some((parent, place)) = mig_parts(device) else { return INVALID };
    with_device(name, parent, |view| view.gpu.instance.get(place).map_or(INVALID, call))
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: nvmlDevice_t,
    number: c_uint,
    to: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    with_device("nvmlDeviceGetMigDeviceHandleByIndex", device, |view| {
        let place = number as usize;
        if place >= view.gpu.instance.len() {
            return NOT_FOUND;
        }
        let handle = (device as usize | (place + 1) << MIG_SHIFT) as nvmlDevice_t;
        // SAFETY: as NVML's.
        unsafe { write_value(to, handle) }
    })
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceId(device: nvmlDevice_t, to: *mut c_uint) -> nvmlReturn_t {
    // SAFETY: as NVML's.
    with_instance("nvmlDeviceGetGpuInstanceId", device, |instance| unsafe { write_value(to, instance.id) })
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetAttributes_v2(
    device: nvmlDevice_t,
    to: *mut nvmlDeviceAttributes_t,
) -> nvmlReturn_t {
    with_instance("nvmlDeviceGetAttributes_v2", device, |instance| {
        let attributes = nvmlDeviceAttributes_t {
            multiprocessorCount: instance.slices * 16,
            sharedCopyEngineCount: 1,
            sharedDecoderCount: instance.decoders,
            sharedEncoderCount: instance.encoders,
            sharedJpegCount: 0,
            sharedOfaCount: 0,
            gpuInstanceSliceCount: instance.slices,
            computeInstanceSliceCount: instance.slices,
            memorySizeMB: 1024,
        };
        // SAFETY: as NVML's.
        unsafe { write_value(to, attributes) }
    })
}

/// A sample of the counters of an instance.
#[derive(Clone, Copy, Default)]
struct GpmSample {
    device: usize,
    instance: c_uint,
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmSampleAlloc(to: *mut nvmlGpmSample_t) -> nvmlReturn_t {
    let sample = Box::into_raw(Box::new(GpmSample::default()));
    // SAFETY: as NVML's.
    unsafe { write_value(to, sample.cast()) }
}

/// # Safety
/// As NVML's: allocated by `nvmlGpmSampleAlloc`, and not freed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmSampleFree(sample: nvmlGpmSample_t) -> nvmlReturn_t {
    if sample.is_null() {
        return INVALID;
    }
    // SAFETY: as NVML's.
    drop(unsafe { Box::from_raw(sample.cast::<GpmSample>()) });
    OK
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmMigSampleGet(
    device: nvmlDevice_t,
    instance: c_uint,
    sample: nvmlGpmSample_t,
) -> nvmlReturn_t {
    with_device("nvmlGpmMigSampleGet", device, |view| {
        if !view.gpu.instance.iter().any(|known| known.id == instance) {
            return INVALID;
        }
        // SAFETY: as NVML's.
        unsafe { write_value(sample.cast(), GpmSample { device: view.index, instance }) }
    })
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmMetricsGet(request: *mut nvmlGpmMetricsGet_t) -> nvmlReturn_t {
    // SAFETY: as NVML's: null, or the caller's to read and write.
    let Some(request) = (unsafe { request.as_mut() }) else { return INVALID };
    if request.version != NVML_GPM_METRICS_GET_VERSION {
        return nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    // SAFETY: as NVML's: null, or a sample of `nvmlGpmSampleAlloc`.
    let Some(sample) = (unsafe { request.sample2.cast::<GpmSample>().as_ref() }) else { return INVALID };
    let handle = (sample.device + 1) as nvmlDevice_t;
    with_device("nvmlGpmMetricsGet", handle, |view| {
        let on: Vec<RunningProcess> =
            view.processes.iter().filter(|process| process.config.instance == Some(sample.instance)).cloned().collect();
        let percent = state::percent(&on);
        for metric in request.metrics.iter_mut().take(request.numMetrics as usize) {
            metric.nvmlReturn = OK;
            metric.value = match metric.metricId {
                nvmlGpmMetricId_t_NVML_GPM_METRIC_SM_UTIL => percent[0],
                nvmlGpmMetricId_t_NVML_GPM_METRIC_DRAM_BW_UTIL => percent[1],
                nvmlGpmMetricId_t_NVML_GPM_METRIC_NVDEC_0_UTIL => percent[3],
                _ => 0.0,
            };
        }
        OK
    })
}
