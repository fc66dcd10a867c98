//! NVML functions that nvml-wrapper lacks, or whose wrapper fails for a whole list if it contains
//! one unknown codec.

#![allow(unsafe_code)]

use std::os::raw::c_uint;

use nvml_wrapper::{
    Device as Handle, GpmSample,
    enums::gpm::GpmMetricId,
    error::{NvmlError, nvml_sym, nvml_try, nvml_try_count},
    gpm::gpm_metrics_get,
};
use nvml_wrapper_sys::bindings as sys;

use super::{
    device::Session,
    engines::Engine,
    samples::{MAX_PROCESSES, UtilizationSample},
};

/// NVML's codec numbers (nvml.h, nvmlEncoderType_t), label values, and reading names. nvml-wrapper
/// does not know the third and would fail for the whole list.
pub(super) const CODECS: [(c_uint, &str, &str); 3] =
    [(0, "h264", "encoder_capacity_h264"), (1, "hevc", "encoder_capacity_hevc"), (2, "av1", "encoder_capacity_av1")];

pub(super) fn encoder_sessions(handle: &Handle<'_>) -> Result<Vec<Session>, NvmlError> {
    let call = nvml_sym(handle.nvml().lib().nvmlDeviceGetEncoderSessions.as_ref())?;
    let mut count: c_uint = 0;
    // SAFETY: the handle is of this library, and a null array requests only the count (nvml.h).
    nvml_try_count(unsafe { call(handle.handle(), &raw mut count, std::ptr::null_mut()) })?;
    if count == 0 {
        return Ok(Vec::new());
    }
    count = count.min(c_uint::try_from(MAX_PROCESSES).unwrap_or(c_uint::MAX));
    // SAFETY: integers, for which zero is a valid value.
    let mut sessions: Vec<sys::nvmlEncoderSessionInfo_t> = vec![unsafe { std::mem::zeroed() }; count as usize];
    // SAFETY: the array has `count` elements, and the library writes no more.
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

pub(super) fn capacity(handle: &Handle<'_>, codec: c_uint) -> Result<u32, NvmlError> {
    let call = nvml_sym(handle.nvml().lib().nvmlDeviceGetEncoderCapacity.as_ref())?;
    let mut percent: c_uint = 0;
    // SAFETY: the handle is of this library, and `percent` outlives the call.
    nvml_try(unsafe { call(handle.handle(), codec, &raw mut percent) })?;
    Ok(percent)
}

/// Utilization in percent of an engine that nvml-wrapper does not know.
pub(super) fn utilization(handle: &Handle<'_>, engine: Engine) -> Result<u32, NvmlError> {
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

/// The number of the GPU instance of a MIG device.
pub(super) fn instance_id(device: &Handle<'_>) -> Result<u32, NvmlError> {
    let call = nvml_sym(device.nvml().lib().nvmlDeviceGetGpuInstanceId.as_ref())?;
    let mut id: c_uint = 0;
    // SAFETY: the handle is of this library, and `id` outlives the call.
    nvml_try(unsafe { call(device.handle(), &raw mut id) })?;
    Ok(id)
}

/// A sample of an instance's counters between two readings. It belongs to the library that has
/// allocated it: after that library was unloaded it must not be used, and its memory is gone.
pub(super) struct InstanceSample(sys::nvmlGpmSample_t);

// SAFETY: a sample may be used on any thread, by one at a time (nvml.h), and has one owner.
unsafe impl Send for InstanceSample {}

/// Percentages of the counters of an instance since the sample `before`, which the new one
/// replaces; `None` without one, and for a counter that the board does not have.
pub(super) fn instance_metrics(
    handle: &Handle<'_>,
    instance: u32,
    before: &mut Option<InstanceSample>,
    metrics: &[GpmMetricId],
) -> Result<Option<Vec<Option<f64>>>, NvmlError> {
    let now = handle.gpm_mig_sample(instance)?;
    // SAFETY: this library has allocated it, `into_handle` gave up its ownership below, and it is
    // taken out of its place here, so that it is freed once.
    let last = before.take().map(|sample| unsafe { GpmSample::from_handle(handle.nvml(), sample.0) });
    let values = last.map(|last| gpm_metrics_get(handle.nvml(), &last, &now, metrics)).transpose();
    *before = Some(InstanceSample(now.into_handle()));
    let value = |result: Result<nvml_wrapper::struct_wrappers::gpm::GpmMetricResult, NvmlError>| {
        result.ok().map(|metric| metric.value)
    };
    Ok(values?.map(|values| values.into_iter().map(value).collect()))
}

/// Frees a sample of an instance that no longer exists.
pub(super) fn free_sample(handle: &Handle<'_>, sample: InstanceSample) {
    // SAFETY: as in `instance_metrics`; its owner is passed here.
    drop(unsafe { GpmSample::from_handle(handle.nvml(), sample.0) });
}

/// Utilization samples of each process since `last_seen_us`: with JPEG and OFA if the driver
/// reports them (R550), otherwise without.
pub(super) fn samples(handle: &Handle<'_>, last_seen_us: u64) -> Result<Vec<UtilizationSample>, NvmlError> {
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
        .map(|sample| UtilizationSample {
            pid: sample.pid,
            at_us: sample.timestamp,
            percent: [sample.sm_util, sample.mem_util, sample.enc_util, sample.dec_util, 0, 0],
        })
        .collect())
}

fn samples_of_all_engines(handle: &Handle<'_>, last_seen_us: u64) -> Result<Vec<UtilizationSample>, NvmlError> {
    type Request = sys::nvmlProcessesUtilizationInfo_v1_t;
    let call = nvml_sym(handle.nvml().lib().nvmlDeviceGetProcessesUtilizationInfo.as_ref())?;
    // NVML_STRUCT_VERSION(ProcessesUtilizationInfo, 1) of nvml.h: the size, with the version above
    // it.
    let version = c_uint::try_from(size_of::<Request>()).map_err(|_| NvmlError::InvalidArg)? | 1 << 24;
    let mut request = Request {
        version,
        processSamplesCount: 0,
        lastSeenTimeStamp: last_seen_us,
        procUtilArray: std::ptr::null_mut(),
    };
    // SAFETY: the handle is of this library, and a null array requests only the count (nvml.h).
    nvml_try_count(unsafe { call(handle.handle(), &raw mut request) })?;
    if request.processSamplesCount == 0 {
        return Ok(Vec::new());
    }
    // A few more, because processes may start between the two calls.
    let room = (request.processSamplesCount as usize + 8).min(16 * MAX_PROCESSES);
    // SAFETY: integers, for which zero is a valid value.
    let mut array: Vec<sys::nvmlProcessUtilizationInfo_v1_t> = vec![unsafe { std::mem::zeroed() }; room];
    request.processSamplesCount = c_uint::try_from(room).map_err(|_| NvmlError::InvalidArg)?;
    request.procUtilArray = array.as_mut_ptr();
    // SAFETY: the array has as many elements as the count, and outlives the call.
    nvml_try(unsafe { call(handle.handle(), &raw mut request) })?;
    array.truncate(request.processSamplesCount as usize);
    Ok(array
        .into_iter()
        .map(|sample| UtilizationSample {
            pid: sample.pid,
            at_us: sample.timeStamp,
            percent: [sample.smUtil, sample.memUtil, sample.encUtil, sample.decUtil, sample.jpgUtil, sample.ofaUtil],
        })
        .collect())
}
