//! Result files of the legacy exporters: variants A, B and C, which share a list `scenarios` and
//! most field names.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use units::Microjoules;

use crate::{
    energy::{EnergyReading, Scope},
    run::{Output, Quality, Samples, Scenario, Score, Variant},
};

/// The variant of a file. It depends only on which keys exist, so that edited copies are
/// recognised.
pub(super) fn variant(file: &Map<String, Value>, rows: &[Value]) -> Variant {
    if file.get("test_metadata").is_some() {
        return Variant::C;
    }
    let has = |name: &str| rows.iter().any(|row| row.get(name).is_some());
    if has("encoder") || has("outputs") || (file.contains_key("test_date") && !has("encoder_type")) {
        Variant::A
    } else {
        Variant::B
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
    #[serde(default)]
    outputs: Option<Vec<LegacyOutputRow>>,
    #[serde(default)]
    streams: Option<u32>,
    #[serde(default)]
    viewers: Option<f64>,
    #[serde(default)]
    vmaf_score: Option<f64>,
    #[serde(default)]
    psnr_score: Option<f64>,
    #[serde(default)]
    ssim_score: Option<f64>,
    #[serde(default, deserialize_with = "count")]
    dropped_frames: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    total_frames: Option<u64>,
    #[serde(default)]
    power_watts: Option<Vec<f64>>,
    #[serde(default)]
    cpu_usage_cores: Option<Vec<f64>>,
    #[serde(default)]
    step_seconds: Option<f64>,
    #[serde(default, deserialize_with = "count")]
    pixels_processed: Option<u64>,
    #[serde(default)]
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
    match Value::deserialize(from)? {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(format!("{number}k")),
        Value::Null => Ok(String::new()),
        other => Err(serde::de::Error::custom(format!("bitrate {other} is neither text nor a number"))),
    }
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
pub(super) fn scenario(row: &Map<String, Value>) -> Result<Scenario, String> {
    let read = Row::deserialize(row).map_err(|error| error.to_string())?;
    let outputs = read.outputs.unwrap_or_default().into_iter().map(|output| {
        let size = Scenario { resolution: output.resolution.clone(), ..Scenario::default() }.size();
        let (width, height) = size.ok_or_else(|| format!("invalid resolution {:?} of an output", output.resolution))?;
        let fps = amount(output.fps.or(read.fps), "fps")?.unwrap_or_default();
        Ok(Output { width, height, fps })
    });
    let outputs = outputs.collect::<Result<Vec<_>, String>>()?;
    let watts = read.power_watts.unwrap_or_default();
    let cores = read.cpu_usage_cores.unwrap_or_default();
    for (name, values) in [("power_watts", &watts), ("cpu_usage_cores", &cores)] {
        for value in values {
            amount(Some(*value), name)?;
        }
    }
    let energy = amount(read.energy_joules, "energy_joules")?;
    // 0 means unknown, as for scores.
    let counters = energy.filter(|joules| *joules > 0.0).map(|joules| EnergyReading {
        scope: Scope::Host,
        source: "file".to_owned(),
        joules: Microjoules::from_joules(joules),
        edge_error: 0.0,
    });
    // The legacy scheduler writes 0 for an unknown score.
    let score = |value: Option<f64>, max: f64| {
        value.filter(|value| *value > 0.0 && *value <= max).map(|value| Score { value, ..Score::default() })
    };
    let step = amount(read.step_seconds, "step_seconds")?.filter(|step| *step > 0.0);
    Ok(Scenario {
        name: read.name,
        bitrate: read.bitrate,
        encoder: read.encoder_type.or(read.encoder).unwrap_or_default(),
        preset: read.preset.unwrap_or_default(),
        resolution: read.resolution.unwrap_or_default(),
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
            vmaf: score(read.vmaf_score, 110.0),
            psnr: score(read.psnr_score, f64::MAX),
            ssim: score(read.ssim_score, 1.0),
        },
        start: amount(read.start_time, "start_time")?,
        end: amount(read.end_time, "end_time")?,
        samples: Samples { step, watts, cores },
        counters: counters.into_iter().collect(),
        reserved_cores: amount(read.reserved_cores, "reserved_cores")?,
        media_seconds: amount(read.media_seconds, "media_seconds")?,
        gpu_seconds: amount(read.gpu_seconds, "gpu_seconds")?,
        container: read.container.filter(|name| !name.is_empty()),
        host: read.host.filter(|name| !name.is_empty()),
        file_qoe: amount(read.qoe_score, "qoe_score")?,
        ..Scenario::default()
    })
}
