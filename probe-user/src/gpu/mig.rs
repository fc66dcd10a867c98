//! Use of a GPU in MIG mode, from the performance counters of its instances.
//!
//! In this mode the driver reports no use by process. From Hopper on each GPU instance has counters
//! of its own (nvml.h, `nvmlGpmMigSampleGet`), between two samples of which they are percentages of
//! the instance. NVML has no energy of an instance: the energy of the board is divided by this use.
//! What processes of several containers use in one instance cannot be divided further. The counters
//! do not include encoders, so on a board whose instances have some nothing is divided.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use nvml_wrapper::{Device as Handle, enums::gpm::GpmMetricId, error::NvmlError};

use super::{
    calls::{self, InstanceSample},
    device::ProcessUsage,
    engines::{ENGINES, Engine},
};

/// Interval at which the instances are listed again.
const LIST_INTERVAL: Duration = Duration::from_secs(5);
/// The most compute instances of a board that are listed; hardware has 7 slices.
const MAX_DEVICES: u32 = 64;

/// The counters, and the engine that each belongs to. One of the shaders and of the memory covers
/// the instance, others one engine.
const METRICS: [(GpmMetricId, Engine); 20] = [
    (GpmMetricId::SmUtil, Engine::Sm),
    (GpmMetricId::DramBwUtil, Engine::Memory),
    (GpmMetricId::Nvdec0Util, Engine::Decoder),
    (GpmMetricId::Nvdec1Util, Engine::Decoder),
    (GpmMetricId::Nvdec2Util, Engine::Decoder),
    (GpmMetricId::Nvdec3Util, Engine::Decoder),
    (GpmMetricId::Nvdec4Util, Engine::Decoder),
    (GpmMetricId::Nvdec5Util, Engine::Decoder),
    (GpmMetricId::Nvdec6Util, Engine::Decoder),
    (GpmMetricId::Nvdec7Util, Engine::Decoder),
    (GpmMetricId::Nvjpg0Util, Engine::Jpeg),
    (GpmMetricId::Nvjpg1Util, Engine::Jpeg),
    (GpmMetricId::Nvjpg2Util, Engine::Jpeg),
    (GpmMetricId::Nvjpg3Util, Engine::Jpeg),
    (GpmMetricId::Nvjpg4Util, Engine::Jpeg),
    (GpmMetricId::Nvjpg5Util, Engine::Jpeg),
    (GpmMetricId::Nvjpg6Util, Engine::Jpeg),
    (GpmMetricId::Nvjpg7Util, Engine::Jpeg),
    (GpmMetricId::Nvofa0Util, Engine::Ofa),
    (GpmMetricId::Nvofa1Util, Engine::Ofa),
];

/// Size of an instance: slices, and engines of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    slices: u32,
    encoders: u32,
    decoders: u32,
    jpegs: u32,
    ofas: u32,
}

impl Size {
    fn add(self, other: Self) -> Self {
        Self {
            slices: self.slices.saturating_add(other.slices),
            encoders: self.encoders.saturating_add(other.encoders),
            decoders: self.decoders.saturating_add(other.decoders),
            jpegs: self.jpegs.saturating_add(other.jpegs),
            ofas: self.ofas.saturating_add(other.ofas),
        }
    }
}

/// One GPU instance.
#[derive(Default)]
struct Instance {
    size: Size,
    /// The last sample and its time.
    sample: Option<InstanceSample>,
    sampled: Option<Instant>,
}

/// The instances of a board. To be replaced when the library is loaded again: the samples belong to
/// the library before.
#[derive(Default)]
pub(super) struct Instances {
    all: BTreeMap<u32, Instance>,
    listed: Option<Instant>,
    /// True when the use of every instance since the last reading is known.
    counted: bool,
}

impl Instances {
    /// Engine time of each instance since the last reading, with the processes that are on it.
    /// `running` are pairs of a process and its instance.
    ///
    /// # Errors
    /// When the board is lost, or has no counters of all that its instances may use.
    pub(super) fn read(
        &mut self,
        handle: &Handle<'_>,
        running: &[(u32, u32)],
        now: Instant,
    ) -> Result<Vec<ProcessUsage>, NvmlError> {
        if self.listed.is_none_or(|at| now.saturating_duration_since(at) >= LIST_INTERVAL) {
            self.list(handle)?;
            self.listed = Some(now);
        }
        let board = self.all.values().fold(Size::default(), |sum, instance| sum.add(instance.size));
        if board.encoders > 0 {
            return Err(NvmlError::NotSupported);
        }
        let ids = METRICS.map(|(id, _)| id);
        let mut uses = Vec::new();
        self.counted = !self.all.is_empty();
        for (id, instance) in &mut self.all {
            let values = calls::instance_metrics(handle, *id, &mut instance.sample, &ids)?;
            let before = instance.sampled.replace(now);
            let (Some(values), Some(before)) = (values, before) else {
                self.counted = false;
                continue;
            };
            let span = now.saturating_duration_since(before);
            let times = engine_times(&values, instance.size, board, span);
            if times.iter().any(|ns| *ns > 0) {
                // Without a process it is use of one that has ended.
                let mut pids = running.iter().filter(|(_, on)| on == id).map(|(pid, _)| *pid);
                let pid = pids.next().unwrap_or(0);
                uses.push(ProcessUsage { pid, shared_with: pids.collect(), times, at_us: 0 });
            }
        }
        Ok(uses)
    }

    /// True when the last reading has the use of every instance: without any, it is idle.
    pub(super) fn are_counted(&self) -> bool {
        self.counted
    }

    /// Reads which instances there are, and their sizes.
    fn list(&mut self, handle: &Handle<'_>) -> Result<(), NvmlError> {
        let mut found: BTreeMap<u32, Size> = BTreeMap::new();
        for index in 0..handle.mig_device_count()?.min(MAX_DEVICES) {
            // Indices without a device are not an error (nvml.h, nvmlDeviceGetMaxMigDeviceCount).
            let Ok(device) = handle.mig_device_by_index(index) else { continue };
            let id = calls::instance_id(&device)?;
            let attributes = device.attributes()?;
            // Compute instances of one GPU instance have the same of it.
            found.entry(id).or_insert(Size {
                slices: attributes.gpu_instance_slice_count,
                encoders: attributes.shared_encoder_count,
                decoders: attributes.shared_decoder_count,
                jpegs: attributes.shared_jpeg_count,
                ofas: attributes.shared_ofa_count,
            });
        }
        self.all.retain(|id, instance| {
            let kept = found.contains_key(id);
            if !kept && let Some(sample) = instance.sample.take() {
                calls::free_sample(handle, sample);
            }
            kept
        });
        for (id, size) in found {
            self.all.entry(id).or_default().size = size;
        }
        Ok(())
    }
}

/// Nanoseconds of full use of the board's engines, by percentages in the order of [`METRICS`]:
/// those of the shaders and the memory are of the instance's part of the board, those of single
/// engines are parts of all engines of their kind.
fn engine_times(values: &[Option<f64>], size: Size, board: Size, span: Duration) -> [u64; ENGINES] {
    let span_ns = span.as_nanos();
    let mut times = [0; ENGINES];
    for ((_, engine), value) in METRICS.iter().zip(values) {
        // More than 100 % is a driver error.
        let Some(percent) = value.filter(|percent| (0.0..=100.0).contains(percent)) else { continue };
        let (part, whole) = match engine {
            Engine::Decoder => (1, board.decoders),
            Engine::Jpeg => (1, board.jpegs),
            Engine::Ofa => (1, board.ofas),
            _ => (size.slices, board.slices),
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a percentage")]
        let millis = (percent * 1000.0).round() as u32;
        let ns = span_ns * u128::from(millis) * u128::from(part) / (100_000 * u128::from(whole.max(1)));
        let time = &mut times[engine.index()];
        *time = u64::try_from(ns).unwrap_or(u64::MAX).saturating_add(*time);
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_of_an_instance_is_a_part_of_the_board() {
        let one = Size { slices: 1, decoders: 1, jpegs: 1, ..Size::default() };
        let three = Size { slices: 3, decoders: 3, jpegs: 1, ofas: 1, ..Size::default() };
        let board = one.add(three);
        let mut values = vec![None; METRICS.len()];
        (values[0], values[2], values[3]) = (Some(80.0), Some(50.0), Some(50.0));
        let second = Duration::from_secs(1);
        let times = engine_times(&values, three, board, second);
        assert_eq!(times[Engine::Sm.index()], 600_000_000, "80 % of three of four slices");
        assert_eq!(times[Engine::Decoder.index()], 250_000_000, "one of four decoders");
        values[0] = Some(101.0);
        assert_eq!(engine_times(&values, one, board, second)[Engine::Sm.index()], 0, "an error of the driver");
        assert_eq!(engine_times(&values, Size::default(), Size::default(), second)[Engine::Memory.index()], 0);
    }
}
