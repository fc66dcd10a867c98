//! Result files of schema 2 (`docs/results-schema.md`), which `wattcast-analysis run` writes.
//! Energy is the increase of counters over a window, in whole microjoules. Each key contains its
//! unit.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use units::Microjoules;

use super::legacy::{amount, count};
use crate::{
    energy::{EnergyReading, Scope, merged},
    run::{Baseline, Output, Quality, Samples, Scenario, Score},
};

/// The value of the key `schema`.
pub const SCHEMA: &str = "wattcast/results/2";

/// Reads `null` like an absent key, as the default value.
fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The keys that all configurations share.
#[derive(Debug, Deserialize)]
pub(super) struct FileHeader {
    #[serde(default)]
    pub(super) host: Option<Host>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) baselines: Vec<BaselineRow>,
}

/// The host of the run.
#[derive(Debug, Deserialize)]
pub(super) struct Host {
    pub(super) name: String,
}

/// A measurement of the host without load.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct BaselineRow {
    id: String,
    power_watts: Mean,
}

#[derive(Clone, Debug, Deserialize)]
struct Mean {
    mean: f64,
}

/// A configuration with its repeats.
#[derive(Debug, Deserialize)]
struct ConfigurationRow {
    #[serde(default, deserialize_with = "null_as_default")]
    id: String,
    #[serde(default, deserialize_with = "null_as_default")]
    name: String,
    #[serde(default, deserialize_with = "null_as_default")]
    axes: Axes,
    #[serde(default)]
    baseline: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    quality: Vec<ScoreRow>,
    #[serde(default, deserialize_with = "null_as_default")]
    repeats: Vec<RepeatRow>,
}

#[derive(Debug, Default, Deserialize)]
struct Axes {
    #[serde(default, deserialize_with = "null_as_default")]
    encoder: String,
    #[serde(default, deserialize_with = "null_as_default")]
    preset: String,
    #[serde(default, deserialize_with = "null_as_default")]
    bitrate: String,
    #[serde(default)]
    width: Option<u32>,
    #[serde(default)]
    height: Option<u32>,
    #[serde(default)]
    frames_per_second: Option<f64>,
    #[serde(default)]
    streams: Option<u32>,
    #[serde(default, deserialize_with = "null_as_default")]
    outputs: Vec<OutputRow>,
}

#[derive(Debug, Deserialize)]
struct OutputRow {
    width: u32,
    height: u32,
    frames_per_second: f64,
}

#[derive(Debug, Deserialize)]
struct RepeatRow {
    #[serde(default)]
    n: Option<u32>,
    status: String,
    #[serde(default, deserialize_with = "null_as_default")]
    detail: String,
    #[serde(default)]
    window: Option<Window>,
    #[serde(default)]
    container: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    frames: Frames,
    #[serde(default, deserialize_with = "count")]
    bytes: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    pixels: Option<u64>,
    #[serde(default)]
    media_seconds: Option<f64>,
    #[serde(default)]
    frames_per_second: Option<f64>,
    #[serde(default)]
    viewers: Option<f64>,
    #[serde(default, deserialize_with = "null_as_default")]
    energy: Vec<EnergyRow>,
    #[serde(default)]
    cpu: Option<RepeatCpu>,
    #[serde(default)]
    gpu_seconds: Option<f64>,
    #[serde(default)]
    baseline: Option<String>,
    #[serde(default)]
    samples: Option<SampleRows>,
    #[serde(default, deserialize_with = "null_as_default")]
    quality: Vec<ScoreRow>,
}

#[derive(Debug, Deserialize)]
struct Window {
    start_unix_ns: u64,
    end_unix_ns: u64,
    #[serde(default)]
    seconds: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
struct Frames {
    #[serde(default, deserialize_with = "count")]
    encoded: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    dropped: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct EnergyRow {
    scope: String,
    source: String,
    microjoules: u64,
    #[serde(default, deserialize_with = "null_as_default")]
    edge_error_microjoules: u64,
}

#[derive(Debug, Deserialize)]
struct RepeatCpu {
    nanoseconds: u64,
    #[serde(default)]
    reserved_cores: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct SampleRows {
    step_seconds: f64,
    #[serde(default, deserialize_with = "null_as_default")]
    power_watts: Vec<f64>,
    #[serde(default, deserialize_with = "null_as_default")]
    cpu_cores: Vec<f64>,
}

#[derive(Clone, Debug, Deserialize)]
struct ScoreRow {
    metric: String,
    #[serde(default)]
    value: Option<f64>,
    #[serde(default, deserialize_with = "null_as_default")]
    model: String,
    #[serde(default, deserialize_with = "null_as_default")]
    version: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pooling: String,
}

fn quality(rows: &[ScoreRow]) -> Quality {
    let find = |metric: &str, max: f64| {
        let row = rows.iter().find(|row| row.metric == metric)?;
        let value = row.value.filter(|value| (0.0..=max).contains(value))?;
        Some(Score { value, model: row.model.clone(), version: row.version.clone(), pooling: row.pooling.clone() })
    };
    // Newer VMAF models go up to 110. Identical pictures have an infinite PSNR, which ffmpeg
    // limits.
    Quality { vmaf: find("vmaf", 110.0), psnr: find("psnr", 1000.0), ssim: find("ssim", 1.0) }
}

/// Nanoseconds in seconds; a double has microsecond resolution for unix times.
fn seconds(ns: u64) -> f64 {
    std::time::Duration::from_nanos(ns).as_secs_f64()
}

/// The scenarios of the configuration with this index, at most `max`: one for each successful
/// repeat. Other repeats are added to `problems`.
pub(super) fn scenarios(
    row: &Map<String, Value>,
    header: &FileHeader,
    index: usize,
    max: usize,
    problems: &mut Vec<String>,
) -> Result<Vec<Scenario>, String> {
    let configuration = ConfigurationRow::deserialize(row).map_err(|error| error.to_string())?;
    let axes = &configuration.axes;
    let name = [&configuration.name, &configuration.id].into_iter().find(|name| !name.is_empty());
    let name = name.ok_or("neither name nor id")?;
    let baseline = |id: &String| -> Result<Baseline, String> {
        let row = header.baselines.iter().find(|baseline| baseline.id == *id);
        let watts = row.ok_or_else(|| format!("baseline {id:?} is not in the file"))?.power_watts.mean;
        Ok(Baseline { id: id.clone(), watts: amount(Some(watts), "power of a baseline")?.unwrap_or_default() })
    };
    let shared = quality(&configuration.quality);
    let mut scenarios = Vec::new();
    if configuration.repeats.len() > max {
        problems.push(format!("{name}: {} repeats; only the first {max} are served", configuration.repeats.len()));
    }
    for repeat in configuration.repeats.into_iter().take(max) {
        let number = repeat.n.unwrap_or_default();
        if repeat.status != "ok" {
            problems.push(format!("{name}, repeat {number}: {} {}", repeat.status, repeat.detail));
            continue;
        }
        let counters: Vec<EnergyReading> =
            repeat.energy.iter().map(|row| reading(row, number)).collect::<Result<_, String>>()?;
        let own = quality(&repeat.quality);
        let window = repeat.window.as_ref();
        let length =
            window.map(|window| window.seconds.unwrap_or(seconds(window.end_unix_ns) - seconds(window.start_unix_ns)));
        scenarios.push(Scenario {
            name: name.clone(),
            bitrate: axes.bitrate.clone(),
            encoder: axes.encoder.clone(),
            preset: axes.preset.clone(),
            resolution: axes.width.zip(axes.height).map(|(w, h)| format!("{w}x{h}")).unwrap_or_default(),
            fps: amount(axes.frames_per_second, "frames_per_second")?.filter(|fps| *fps > 0.0),
            outputs: axes
                .outputs
                .iter()
                .map(|rung| Output { width: rung.width, height: rung.height, fps: rung.frames_per_second })
                .collect(),
            streams: axes.streams.filter(|streams| *streams > 0),
            viewers: amount(repeat.viewers, "viewers")?,
            duration: amount(length, "length of the window")?,
            avg_fps: amount(repeat.frames_per_second, "frames_per_second")?,
            dropped_frames: repeat.frames.dropped,
            total_frames: repeat.frames.encoded,
            pixels: repeat.pixels,
            bytes: repeat.bytes,
            media_seconds: amount(repeat.media_seconds, "media_seconds")?,
            quality_is_shared: own == Quality::default(),
            quality: Quality {
                vmaf: own.vmaf.or_else(|| shared.vmaf.clone()),
                psnr: own.psnr.or_else(|| shared.psnr.clone()),
                ssim: own.ssim.or_else(|| shared.ssim.clone()),
            },
            start: window.map(|window| seconds(window.start_unix_ns)),
            end: window.map(|window| seconds(window.end_unix_ns)),
            samples: repeat.samples.map(samples).transpose()?.unwrap_or_default(),
            counters: merged(counters),
            cpu_seconds: repeat.cpu.as_ref().map(|cpu| seconds(cpu.nanoseconds)),
            reserved_cores: amount(repeat.cpu.and_then(|cpu| cpu.reserved_cores), "reserved_cores")?,
            gpu_seconds: amount(repeat.gpu_seconds, "gpu_seconds")?,
            container: repeat.container.filter(|name| !name.is_empty()),
            // The baseline of the repeat's own block is preferred.
            baseline: repeat.baseline.as_ref().or(configuration.baseline.as_ref()).map(baseline).transpose()?,
            configuration: Some(index),
            ..Scenario::default()
        });
    }
    Ok(scenarios)
}

fn reading(row: &EnergyRow, repeat: u32) -> Result<EnergyReading, String> {
    let scope = match &*row.scope {
        "host" => Scope::Host,
        "container" => Scope::Container,
        other => return Err(format!("repeat {repeat}: energy of scope {other:?}; expected host or container")),
    };
    Ok(EnergyReading {
        scope,
        source: metrics::label::sanitize(&row.source),
        joules: Microjoules(row.microjoules),
        edge_error: Microjoules(row.edge_error_microjoules).joules(),
    })
}

fn samples(rows: SampleRows) -> Result<Samples, String> {
    for value in rows.power_watts.iter().chain(&rows.cpu_cores) {
        amount(Some(*value), "a sample")?;
    }
    Ok(Samples {
        step: amount(Some(rows.step_seconds), "step_seconds")?.filter(|step| *step > 0.0),
        watts: rows.power_watts,
        cores: rows.cpu_cores,
    })
}
