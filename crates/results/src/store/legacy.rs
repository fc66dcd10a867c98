//! Result files of the legacy exporters: variants A, B and C, which share a list `scenarios` and
//! most field names.

use metrics::label::sanitize;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use units::Microjoules;

use super::json::{MAX_OUTPUTS, few, present, samples, score};
use crate::{
    energy::{EnergyReading, Scope},
    run::{Output, Quality, Samples, Scenario, Score, Variant},
};

/// Largest energy of a scenario, in joules: a gigawatt for an hour, and a fifth of what microjoules
/// hold in 64 bits.
const MAX_JOULES: f64 = 3.6e12;

/// Keys of the rows by which the variants differ.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RowKeys {
    #[serde(deserialize_with = "present")]
    encoder: bool,
    #[serde(deserialize_with = "present")]
    outputs: bool,
    #[serde(deserialize_with = "present")]
    encoder_type: bool,
}

impl RowKeys {
    /// Adds the keys of a row.
    pub(super) fn add(&mut self, row: &RawValue) {
        let keys = serde_json::from_str::<Self>(row.get()).unwrap_or_default();
        self.encoder |= keys.encoder;
        self.outputs |= keys.outputs;
        self.encoder_type |= keys.encoder_type;
    }

    /// The variant of a file. It depends only on which keys exist, so that edited copies are
    /// recognised.
    pub(super) fn variant(self, has_test_metadata: bool, has_test_date: bool) -> Variant {
        if has_test_metadata {
            Variant::C
        } else if self.encoder || self.outputs || (has_test_date && !self.encoder_type) {
            Variant::A
        } else {
            Variant::B
        }
    }
}

/// A row with the keys of all three variants.
#[derive(Deserialize)]
struct Row {
    name: String,
    #[serde(default, deserialize_with = "bitrate")]
    bitrate: String,
    #[serde(default)]
    encoder: Option<String>,
    #[serde(default)]
    encoder_type: Option<String>,
    #[serde(default)]
    preset: Option<String>,
    #[serde(default)]
    resolution: Option<String>,
    #[serde(default)]
    fps: Option<f64>,
    #[serde(default)]
    avg_fps: Option<f64>,
    #[serde(default)]
    duration: Option<f64>,
    #[serde(default)]
    start_time: Option<f64>,
    #[serde(default)]
    end_time: Option<f64>,
    #[serde(default, deserialize_with = "few")]
    outputs: Vec<LegacyOutputRow>,
    #[serde(default)]
    streams: Option<u32>,
    #[serde(default)]
    viewers: Option<f64>,
    #[serde(default, deserialize_with = "score")]
    vmaf_score: Option<f64>,
    #[serde(default, deserialize_with = "score")]
    psnr_score: Option<f64>,
    #[serde(default, deserialize_with = "score")]
    ssim_score: Option<f64>,
    #[serde(default, deserialize_with = "count")]
    dropped_frames: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    total_frames: Option<u64>,
    #[serde(default, deserialize_with = "samples")]
    power_watts: Vec<f64>,
    #[serde(default, deserialize_with = "samples")]
    cpu_usage_cores: Vec<f64>,
    #[serde(default)]
    step_seconds: Option<f64>,
    #[serde(default, deserialize_with = "count")]
    pixels_processed: Option<u64>,
    #[serde(default, deserialize_with = "score")]
    qoe_score: Option<f64>,
    #[serde(default)]
    energy_joules: Option<f64>,
    #[serde(default)]
    container: Option<String>,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    gpu_seconds: Option<f64>,
    #[serde(default)]
    reserved_cores: Option<f64>,
    #[serde(default)]
    media_seconds: Option<f64>,
}

#[derive(Deserialize)]
struct LegacyOutputRow {
    resolution: String,
    #[serde(default)]
    fps: Option<f64>,
}

/// A bitrate: `"2500k"`, or a number, which is in kilobits in all three variants.
fn bitrate<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = <&'de RawValue>::deserialize(from)?.get();
    let read = match text.as_bytes().first() {
        Some(b'"') => serde_json::from_str(text).map_err(|error| error.to_string()),
        Some(b'-' | b'0'..=b'9') => match serde_json::from_str::<serde_json::Number>(text) {
            Ok(number) => Ok(format!("{number}k")),
            Err(error) => Err(error.to_string()),
        },
        Some(b'n') => Ok(String::new()),
        _ => Err("neither text nor a number".to_owned()),
    };
    read.map_err(|error| serde::de::Error::custom(format!("bitrate: {error}")))
}

/// A whole number, also in the notation `3612.0`.
pub(super) fn count<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(from)? else { return Ok(None) };
    let whole = number.as_f64().filter(|value| value.fract() == 0.0 && (0.0..9e15).contains(value));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, and below 2^53")]
    let count = number.as_u64().or(whole.map(|value| value as u64));
    count.map(Some).ok_or_else(|| serde::de::Error::custom(format!("{number} is not a whole number")))
}

/// Checks that a value is finite and not negative.
pub(super) fn amount(value: Option<f64>, name: &str) -> Result<Option<f64>, String> {
    match value {
        Some(value) if !value.is_finite() || value < 0.0 => Err(format!("{name} is {value}")),
        value => Ok(value),
    }
}

/// The scenario of a row.
pub(super) fn scenario(row: &RawValue) -> Result<Scenario, String> {
    let read: Row = serde_json::from_str(row.get()).map_err(|error| error.to_string())?;
    if read.outputs.len() > MAX_OUTPUTS {
        return Err(format!("more than {MAX_OUTPUTS} outputs"));
    }
    let outputs = read.outputs.into_iter().map(|output| {
        let size = Scenario { resolution: output.resolution.clone(), ..Scenario::default() }.size();
        let (width, height) = size.ok_or_else(|| format!("invalid resolution {:?} of an output", output.resolution))?;
        let fps = amount(output.fps.or(read.fps), "fps")?.unwrap_or_default();
        Ok(Output { width, height, fps })
    });
    let outputs = outputs.collect::<Result<Vec<_>, String>>()?;
    let energy = amount(read.energy_joules, "energy_joules")?;
    if let Some(joules) = energy.filter(|joules| *joules > MAX_JOULES) {
        return Err(format!("energy_joules is {joules:e}, more than {MAX_JOULES:e}"));
    }
    // 0 means unknown, as for scores.
    let counters = energy.filter(|joules| *joules > 0.0).map(|joules| EnergyReading {
        scope: Scope::Host,
        source: "file".to_owned(),
        joules: Microjoules::from_joules(joules),
        edge_error: 0.0,
        model_interval: None,
    });
    // The legacy scheduler writes 0 for an unknown score.
    let known = |value: Option<f64>, max: f64| {
        value.filter(|value| *value > 0.0 && *value <= max).map(|value| Score { value, ..Score::default() })
    };
    let step = amount(read.step_seconds, "step_seconds")?.filter(|step| *step > 0.0);
    Ok(Scenario {
        name: sanitize(&read.name),
        bitrate: sanitize(&read.bitrate),
        encoder: sanitize(&read.encoder_type.or(read.encoder).unwrap_or_default()),
        preset: sanitize(&read.preset.unwrap_or_default()),
        resolution: sanitize(&read.resolution.unwrap_or_default()),
        fps: amount(read.fps, "fps")?.filter(|fps| *fps > 0.0),
        outputs,
        streams: read.streams.filter(|streams| *streams > 0),
        viewers: amount(read.viewers, "viewers")?,
        duration: amount(read.duration, "duration")?,
        avg_fps: amount(read.avg_fps, "avg_fps")?,
        dropped_frames: read.dropped_frames,
        total_frames: read.total_frames,
        pixels: read.pixels_processed,
        quality: Quality {
            vmaf: known(read.vmaf_score, 110.0),
            psnr: known(read.psnr_score, f64::MAX),
            ssim: known(read.ssim_score, 1.0),
        },
        start: amount(read.start_time, "start_time")?,
        end: amount(read.end_time, "end_time")?,
        samples: Samples { step, watts: read.power_watts, cores: read.cpu_usage_cores },
        counters: counters.into_iter().collect(),
        reserved_cores: amount(read.reserved_cores, "reserved_cores")?,
        media_seconds: amount(read.media_seconds, "media_seconds")?,
        gpu_seconds: amount(read.gpu_seconds, "gpu_seconds")?,
        container: read.container.filter(|name| !name.is_empty()),
        host: read.host.filter(|name| !name.is_empty()),
        file_qoe: read.qoe_score.filter(|score| *score >= 0.0),
        ..Scenario::default()
    })
}
