//! The functions, as nvml.h declares them.
//!
//! All are called with pointers that the caller owns, as NVIDIA's are; each checks them for null and no more, for there is no more to check.

// The names are NVIDIA's, and the callers are outside of this crate.
#![allow(non_snake_case, unreachable_pub)]

use std::{
    ffi::{c_char, c_uint, c_ulonglong},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use nvml_wrapper_sys::bindings::*;

use crate::{
    scenario::Gpu,
    world::{self, Found},
};

static OWN_NS: AtomicU64 = AtomicU64::new(0);

/// CPU nanoseconds that the functions have taken themselves, so that a benchmark can show them apart.
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

/// Counts what a call takes.
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

/// A device as a call sees it.
struct Seen<'a> {
    index: usize,
    gpu: &'a Gpu,
    processes: &'a [Found],
    millijoules: f64,
}

/// Handles are numbers of devices, one up: none is null.
fn index(device: nvmlDevice_t) -> Option<usize> {
    (device as usize).checked_sub(1)
}

/// Runs a function of a device, unless the scenario has another answer for it.
fn on(name: &str, device: nvmlDevice_t, call: impl FnOnce(&Seen<'_>) -> nvmlReturn_t) -> nvmlReturn_t {
    let clock = Clock::start();
    let Some(index) = index(device) else { return INVALID };
    let mut world = world::now();
    if let Some(init) = &world.scenario.init {
        return code(init);
    }
    if world.is_lost(index) {
        return nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST;
    }
    let Some((gpu, processes, millijoules)) = world.device(index) else { return INVALID };
    let delay = gpu.delays.get(name).copied();
    if let Some(error) = gpu.errors.get(name) {
        return code(error);
    }
    let answer = call(&Seen { index, gpu, processes, millijoules });
    drop(world);
    drop(clock);
    if let Some(delay) = delay {
        thread::sleep(Duration::from_millis(delay));
    }
    answer
}

/// Writes an answer where the caller wants it.
///
/// # Safety
/// `to` is null, or may be written.
unsafe fn give<T>(to: *mut T, value: T) -> nvmlReturn_t {
    if to.is_null() {
        return INVALID;
    }
    // SAFETY: not null, and the caller's to write.
    unsafe { to.write(value) };
    OK
}

/// Writes a list as NVML's functions do: `count` holds the room and gets the number; without an array it gets the number alone.
///
/// # Safety
/// `count` is null, or may be written; `to` is null, or holds as many as `count` says.
unsafe fn give_list<T>(to: *mut T, count: *mut c_uint, list: Vec<T>, unasked: nvmlReturn_t) -> nvmlReturn_t {
    if count.is_null() {
        return INVALID;
    }
    let number = c_uint::try_from(list.len()).unwrap_or(c_uint::MAX);
    // SAFETY: not null, and the caller's.
    let room = unsafe { count.replace(number) };
    if to.is_null() {
        return if number == 0 { OK } else { unasked };
    }
    if room < number {
        return SHORT;
    }
    for (at, item) in list.into_iter().enumerate() {
        // SAFETY: within the room that the caller has stated.
        unsafe { to.add(at).write(item) };
    }
    OK
}

/// Writes a text and its end.
///
/// # Safety
/// `to` is null, or has room for `length` bytes.
unsafe fn give_text(to: *mut c_char, length: c_uint, text: &str) -> nvmlReturn_t {
    if to.is_null() || length as usize <= text.len() {
        return if to.is_null() { INVALID } else { SHORT };
    }
    for (at, byte) in text.bytes().chain([0]).enumerate() {
        // SAFETY: at most `length` bytes, which the caller has room for.
        unsafe { to.add(at).write(byte.cast_signed()) };
    }
    OK
}

/// Whole numbers of NVML's, from what a scenario has; they are small and not negative.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(value: f64) -> c_uint {
    value.round() as c_uint
}

/// Keeps this library loaded when it is closed: what a driver has counted outlives the library, and here the library is the driver.
fn stay() {
    let mut found = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: the address is of a function in this library, and `found` outlives the call.
    if unsafe { libc::dladdr(nvmlInit_v2 as *const libc::c_void, &raw mut found) } != 0 && !found.dli_fname.is_null() {
        // SAFETY: the loader's own name of a library that is loaded; the handle is never closed.
        unsafe { libc::dlopen(found.dli_fname, libc::RTLD_NOW | libc::RTLD_NODELETE) };
    }
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    stay();
    let world = world::now();
    match (&world.scenario.init, world.wrong) {
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
    unsafe { give_text(to, length, concat!("fake-", env!("CARGO_PKG_VERSION"))) }
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    let gpus = world::now().scenario.gpu.len();
    // SAFETY: as NVML's.
    unsafe { give(count, c_uint::try_from(gpus).unwrap_or(0)) }
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(number: c_uint, to: *mut nvmlDevice_t) -> nvmlReturn_t {
    let handle = (number as usize + 1) as nvmlDevice_t;
    // SAFETY: as NVML's.
    on("nvmlDeviceGetHandleByIndex_v2", handle, |_| unsafe { give(to, handle) })
}

/// Functions that give one value.
macro_rules! values {
    ($($name:ident($seen:ident) -> $type:ty { $value:expr })*) => {$(
        /// # Safety
        /// As NVML's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: nvmlDevice_t, to: *mut $type) -> nvmlReturn_t {
            on(stringify!($name), device, |$seen| {
                let value: Result<$type, nvmlReturn_t> = $value;
                match value {
                    // SAFETY: as NVML's.
                    Ok(value) => unsafe { give(to, value) },
                    Err(code) => code,
                }
            })
        }
    )*};
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn millijoules(seen: &Seen<'_>) -> Result<c_ulonglong, nvmlReturn_t> {
    // A driver has counted for long before anybody looks.
    if seen.gpu.energy_counter {
        Ok(seen.millijoules as c_ulonglong + 1_000_000 * u64::from(seen.gpu.epoch == 0))
    } else {
        Err(NOT_SUPPORTED)
    }
}

fn rates(seen: &Seen<'_>) -> Result<nvmlUtilization_t, nvmlReturn_t> {
    let percent = world::percent(seen.processes);
    if seen.gpu.mig {
        Err(NOT_SUPPORTED)
    } else {
        Ok(nvmlUtilization_t { gpu: whole(percent[0]), memory: whole(percent[1]) })
    }
}

fn memory(seen: &Seen<'_>) -> nvmlMemory_v2_t {
    let (total, reserved) = (16u64 << 30, 256u64 << 20);
    let used = seen.processes.iter().map(|process| process.what.memory).sum::<u64>().min(total - reserved);
    nvmlMemory_v2_t { version: 0, total, reserved, free: total - reserved - used, used }
}

values! {
    nvmlDeviceGetTotalEnergyConsumption(seen) -> c_ulonglong { millijoules(seen) }
    nvmlDeviceGetPowerUsage(seen) -> c_uint { Ok(whole(world::watts(seen.gpu, seen.processes) * 1000.0)) }
    nvmlDeviceGetEnforcedPowerLimit(seen) -> c_uint { Ok(whole(seen.gpu.limit_watts * 1000.0)) }
    nvmlDeviceGetCurrentClocksThrottleReasons(seen) -> c_ulonglong {
        Ok(u64::from(world::percent(seen.processes).iter().all(|percent| *percent == 0.0)))
    }
    nvmlDeviceGetUtilizationRates(seen) -> nvmlUtilization_t {
        rates(seen)
    }
    nvmlDeviceGetMemoryInfo_v2(seen) -> nvmlMemory_v2_t {
        Ok(memory(seen))
    }
    nvmlDeviceGetCurrPcieLinkGeneration(_seen) -> c_uint { Ok(3) }
    nvmlDeviceGetCurrPcieLinkWidth(_seen) -> c_uint { Ok(8) }
    nvmlDeviceGetMaxPcieLinkGeneration(_seen) -> c_uint { Ok(3) }
    nvmlDeviceGetMaxPcieLinkWidth(_seen) -> c_uint { Ok(16) }
    nvmlDeviceGetPcieReplayCounter(_seen) -> c_uint { Ok(2) }
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: nvmlDevice_t, to: *mut c_char, length: c_uint) -> nvmlReturn_t {
    on("nvmlDeviceGetUUID", device, |seen| {
        // "fake" in hexadecimal letters.
        let made = format!("GPU-fa4efa4e-fa4e-fa4e-fa4e-{:012x}", seen.index);
        // SAFETY: as NVML's.
        unsafe { give_text(to, length, seen.gpu.uuid.as_deref().unwrap_or(&made)) }
    })
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(device: nvmlDevice_t, to: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: as NVML's.
    on("nvmlDeviceGetName", device, |seen| unsafe { give_text(to, length, &format!("fake {}", seen.gpu.name)) })
}

/// Functions that give two numbers.
macro_rules! pairs {
    ($($name:ident($seen:ident) { $value:expr })*) => {$(
        /// # Safety
        /// As NVML's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: nvmlDevice_t, one: *mut c_uint, other: *mut c_uint) -> nvmlReturn_t {
            on(stringify!($name), device, |$seen| {
                let value: Result<(c_uint, c_uint), nvmlReturn_t> = $value;
                match value {
                    // SAFETY: as NVML's.
                    Ok((first, second)) => unsafe { give(one, first).max(give(other, second)) },
                    Err(code) => code,
                }
            })
        }
    )*};
}

fn engine(seen: &Seen<'_>, at: usize) -> Result<(c_uint, c_uint), nvmlReturn_t> {
    if seen.gpu.mig { Err(NOT_SUPPORTED) } else { Ok((whole(world::percent(seen.processes)[at]), 100_000)) }
}

pairs! {
    nvmlDeviceGetEncoderUtilization(seen) { engine(seen, 2) }
    nvmlDeviceGetDecoderUtilization(seen) { engine(seen, 3) }
    nvmlDeviceGetJpgUtilization(seen) { engine(seen, 4) }
    nvmlDeviceGetOfaUtilization(seen) { engine(seen, 5) }
    nvmlDeviceGetMigMode(seen) { Ok((c_uint::from(seen.gpu.mig), c_uint::from(seen.gpu.mig))) }
    nvmlDeviceGetPowerManagementLimitConstraints(seen) { Ok((10_000, whole(seen.gpu.limit_watts * 1000.0))) }
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    _sensor: c_uint,
    to: *mut c_uint,
) -> nvmlReturn_t {
    let celsius = |seen: &Seen<'_>| whole(30.0 + world::watts(seen.gpu, seen.processes) / 3.0);
    // SAFETY: as NVML's.
    on("nvmlDeviceGetTemperature", device, |seen| unsafe { give(to, celsius(seen)) })
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetClockInfo(device: nvmlDevice_t, clock: c_uint, to: *mut c_uint) -> nvmlReturn_t {
    // Graphics, SM, memory, video (nvml.h, nvmlClockType_t).
    let megahertz = [1590, 1590, 5001, 1470];
    let value = megahertz.get(clock as usize).copied();
    // SAFETY: as NVML's.
    on("nvmlDeviceGetClockInfo", device, |_| value.map_or(INVALID, |value| unsafe { give(to, value) }))
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEncoderCapacity(
    device: nvmlDevice_t,
    asked: c_uint,
    to: *mut c_uint,
) -> nvmlReturn_t {
    on("nvmlDeviceGetEncoderCapacity", device, |seen| {
        let left = 100.0 - world::percent(seen.processes)[2];
        let has = seen.gpu.codecs.iter().any(|name| codec(name) == asked);
        // SAFETY: as NVML's.
        if seen.gpu.mig || !has { NOT_SUPPORTED } else { unsafe { give(to, whole(left)) } }
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
    on("nvmlDeviceGetEncoderSessions", device, |seen| {
        if seen.gpu.mig {
            return NOT_SUPPORTED;
        }
        let of = |process: &Found| {
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
            process.what.session.iter().map(session).collect::<Vec<_>>()
        };
        // SAFETY: as NVML's.
        unsafe { give_list(to, count, seen.processes.iter().flat_map(of).collect(), OK) }
    })
}

/// What each process used since `last_seen`, in the fields of the newer structure.
fn samples(seen: &Seen<'_>, last_seen: u64) -> Vec<nvmlProcessUtilizationInfo_v1_t> {
    let sample = |pid, at, percent: [f64; 6]| nvmlProcessUtilizationInfo_v1_t {
        timeStamp: at,
        pid,
        smUtil: whole(percent[0]),
        memUtil: whole(percent[1]),
        encUtil: whole(percent[2]),
        decUtil: whole(percent[3]),
        jpgUtil: whole(percent[4]),
        ofaUtil: whole(percent[5]),
    };
    let mut all = Vec::new();
    for process in seen.processes {
        let at = world::sampled_us(seen.gpu.period_ms, process.what.phase_ms);
        let percent = process.what.percent.all();
        if at > last_seen && percent.iter().any(|percent| *percent > 0.0) {
            all.push(sample(process.pid, at, percent));
        }
    }
    if seen.gpu.junk {
        let at = world::unix_us();
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
    on("nvmlDeviceGetProcessUtilization", device, |seen| {
        if seen.gpu.mig {
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
        let list: Vec<_> = samples(seen, last_seen).into_iter().map(old).collect();
        if list.is_empty() {
            return NOT_FOUND;
        }
        // SAFETY: as NVML's.
        unsafe { give_list(to, count, list, SHORT) }
    })
}

/// # Safety
/// As NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetProcessesUtilizationInfo(
    device: nvmlDevice_t,
    asked: *mut nvmlProcessesUtilizationInfo_v1_t,
) -> nvmlReturn_t {
    on("nvmlDeviceGetProcessesUtilizationInfo", device, |seen| {
        // SAFETY: as NVML's: null, or the caller's to read and write.
        let Some(asked) = (unsafe { asked.as_mut() }) else { return INVALID };
        let version = u32::try_from(size_of::<nvmlProcessesUtilizationInfo_v1_t>()).unwrap_or(0) | 1 << 24;
        if asked.version != version {
            return nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
        }
        if seen.gpu.mig {
            return NOT_SUPPORTED;
        }
        let list = samples(seen, asked.lastSeenTimeStamp);
        if list.is_empty() {
            return NOT_FOUND;
        }
        // SAFETY: as NVML's.
        unsafe { give_list(asked.procUtilArray, &raw mut asked.processSamplesCount, list, SHORT) }
    })
}

fn running(seen: &Seen<'_>, graphics: bool) -> Vec<nvmlProcessInfo_t> {
    let of = |process: &Found| nvmlProcessInfo_t {
        pid: process.pid,
        usedGpuMemory: process.what.memory,
        gpuInstanceId: u32::MAX,
        computeInstanceId: u32::MAX,
    };
    seen.processes.iter().filter(|process| process.what.graphics == graphics).map(of).collect()
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
    on(name, device, |seen| unsafe { give_list(to, count, running(seen, false), SHORT) })
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
    on(name, device, |seen| unsafe { give_list(to, count, running(seen, true), SHORT) })
}
