//! Result files of schema 2 (`docs/results-schema.md`), which `wattcast-analysis run` writes.
//! Energy is the increase of counters over a window, in whole microjoules. Each key contains its
//! unit.

use std::{collections::BTreeMap, sync::Arc};

use metrics::label::sanitize;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, value::RawValue};
use units::{Microjoules, model_interval::ModelInterval};

use super::{
    json::{MAX_OUTPUTS, few, for_each_element, for_each_entry, samples, score},
    legacy::{amount, count},
    problems::Problems,
};
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

/// Maximum number of axes of a configuration that are compared, and maximum length of the JSON of
/// one. The runner writes about a dozen.
const MAX_AXES: usize = 32;
const MAX_AXIS: usize = 4096;
/// Maximum number of baselines of a file. The runner measures one before each block.
const MAX_BASELINES: usize = 10_000;

/// What all configurations of a file share.
#[derive(Debug, Default)]
pub(super) struct FileHeader {
    /// Name of the host.
    pub(super) host: Option<String>,
    baselines: BTreeMap<String, f64>,
}

impl FileHeader {
    /// The header of the keys `host` and `baselines`. An invalid one is a problem, and absent.
    pub(super) fn new(host: Option<&RawValue>, baselines: Option<&RawValue>, problems: &mut Problems) -> Self {
        let mut header = Self::default();
        match host.map(|host| serde_json::from_str::<Option<Host>>(host.get())) {
            Some(Ok(host)) => header.host = host.map(|host| host.name),
            Some(Err(error)) => problems.add(format!("the host is left out: {error}")),
            None => {}
        }
        let mut number = 0;
        let each = &mut |row: &RawValue| {
            number += 1;
            match serde_json::from_str::<BaselineRow>(row.get()) {
                Ok(row) if header.baselines.len() < MAX_BASELINES => {
                    header.baselines.entry(sanitize(&row.id)).or_insert(row.power_watts.mean);
                }
                Ok(_) => problems.add(format!("baseline {number} is left out: more than {MAX_BASELINES}")),
                Err(error) => problems.add(format!("baseline {number} is left out: {error}")),
            }
        };
        let read = baselines.filter(|rows| rows.get() != "null").map(|rows| for_each_element(rows, each));
        if let Some(Err(error)) = read {
            problems.add(format!("the baselines are left out: {error}"));
        }
        header
    }

    fn baseline(&self, id: &str) -> Result<Baseline, String> {
        let id = sanitize(id);
        let watts = *self.baselines.get(&id).ok_or_else(|| format!("baseline {id:?} is not in the file"))?;
        Ok(Baseline { watts: amount(Some(watts), "power of a baseline")?.unwrap_or_default(), id })
    }
}

/// The host of the run.
#[derive(Debug, Deserialize)]
struct Host {
    name: String,
}

/// A measurement of the host without load.
#[derive(Debug, Deserialize)]
struct BaselineRow {
    id: String,
    power_watts: Mean,
}

#[derive(Debug, Deserialize)]
struct Mean {
    mean: f64,
}

/// A configuration. Its axes and repeats are read one by one.
#[derive(Debug, Deserialize)]
struct ConfigurationRow<'a> {
    #[serde(default, deserialize_with = "null_as_default")]
    id: String,
    #[serde(default, deserialize_with = "null_as_default")]
    name: String,
    #[serde(borrow, default)]
    axes: Option<&'a RawValue>,
    #[serde(default)]
    baseline: Option<String>,
    #[serde(default, deserialize_with = "few")]
    quality: Vec<ScoreRow>,
    #[serde(borrow, default)]
    repeats: Option<&'a RawValue>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
}

/// The encoded source.
#[derive(Debug, Deserialize)]
struct Content {
    sha256: String,
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
    #[serde(default, deserialize_with = "few")]
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
    #[serde(default, deserialize_with = "few")]
    energy: Vec<EnergyRow>,
    #[serde(default)]
    idle_known: Option<bool>,
    #[serde(default)]
    cpu: Option<RepeatCpu>,
    #[serde(default)]
    gpu_seconds: Option<f64>,
    #[serde(default)]
    baseline: Option<String>,
    #[serde(default)]
    samples: Option<SampleRows>,
    #[serde(default, deserialize_with = "few")]
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
    #[serde(default)]
    model_interval_ratio: Option<ModelInterval>,
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
    #[serde(default, deserialize_with = "samples")]
    power_watts: Vec<f64>,
    #[serde(default, deserialize_with = "samples")]
    cpu_cores: Vec<f64>,
}

#[derive(Clone, Debug, Deserialize)]
struct ScoreRow {
    metric: String,
    #[serde(default, deserialize_with = "score")]
    value: Option<f64>,
    #[serde(default, deserialize_with = "null_as_default")]
    model: String,
    #[serde(default, deserialize_with = "null_as_default")]
    version: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pooling: String,
    #[serde(default)]
    ci95: Option<[f64; 2]>,
}

fn quality(rows: &[ScoreRow]) -> Quality {
    let find = |metric: &str, max: f64| {
        let row = rows.iter().find(|row| row.metric == metric)?;
        let value = row.value.filter(|value| (0.0..=max).contains(value))?;
        let [model, version, pooling] = [&row.model, &row.version, &row.pooling].map(|text| sanitize(text));
        let half_width = row.ci95.map(|[low, high]| (high - low) / 2.0).filter(|half| half.is_finite() && *half >= 0.0);
        Some(Score { value, model, version, pooling, half_width })
    };
    // Newer VMAF models go up to 110. Identical pictures have an infinite PSNR, which is no score.
    Quality { vmaf: find("vmaf", 110.0), psnr: find("psnr", 1000.0), ssim: find("ssim", 1.0) }
}

/// Nanoseconds in seconds; a double has microsecond resolution for unix times.
fn seconds(ns: u64) -> f64 {
    std::time::Duration::from_nanos(ns).as_secs_f64()
}

/// Adds the scenarios of the configuration with this index, at most `max`: one for each successful
/// repeat. Other repeats are added to `problems`.
///
/// # Errors
/// If the configuration itself is invalid; then it has no scenarios.
pub(super) fn add_scenarios(
    row: &RawValue,
    header: &FileHeader,
    index: usize,
    max: usize,
    problems: &mut Problems,
    add: &mut dyn FnMut(Scenario, &mut Problems),
) -> Result<(), String> {
    let configuration: ConfigurationRow<'_> = serde_json::from_str(row.get()).map_err(|error| error.to_string())?;
    let shared = SharedFields::new(&configuration, index)?;
    let Some(repeats) = configuration.repeats else { return Ok(()) };
    let name = &shared.scenario.name;
    let mut count = 0;
    let each = &mut |repeat: &RawValue| {
        count += 1;
        if count > max {
            return;
        }
        match serde_json::from_str::<RepeatRow>(repeat.get()) {
            Ok(repeat) if repeat.status != "ok" => {
                let number = repeat.n.unwrap_or_default();
                problems.add(format!("{name}, repeat {number}: {} {}", repeat.status, repeat.detail));
            }
            Ok(repeat) => {
                let number = repeat.n.unwrap_or_default();
                match shared.scenario_of(repeat, &configuration, header) {
                    Ok(scenario) => add(scenario, problems),
                    Err(error) => problems.add(format!("{name}, repeat {number} is left out: {error}")),
                }
            }
            Err(error) => problems.add(format!("{name}, repeat in place {count} is left out: {error}")),
        }
    };
    for_each_element(repeats, each).map_err(|error| format!("repeats: {error}"))?;
    if count > max {
        problems.add(format!("{name}: {count} repeats; only the first {max} are served"));
    }
    Ok(())
}

/// What the repeats of a configuration share.
struct SharedFields {
    /// A scenario with the fields that all repeats have.
    scenario: Scenario,
    quality: Quality,
}

impl SharedFields {
    fn new(configuration: &ConfigurationRow<'_>, index: usize) -> Result<Self, String> {
        let name = [&configuration.name, &configuration.id].into_iter().find(|name| !name.is_empty());
        let name = sanitize(name.ok_or("neither name nor id")?);
        let json = configuration.axes.map_or("null", RawValue::get);
        let axes: Axes =
            serde_json::from_str::<Option<Axes>>(json).map_err(|error| error.to_string())?.unwrap_or_default();
        let content = configuration.content.and_then(|content| serde_json::from_str::<Content>(content.get()).ok());
        if axes.outputs.len() > MAX_OUTPUTS {
            return Err(format!("more than {MAX_OUTPUTS} outputs"));
        }
        let output = |rung: &OutputRow| {
            let fps = amount(Some(rung.frames_per_second), "frames_per_second")?.unwrap_or_default();
            Ok(Output { width: rung.width, height: rung.height, fps })
        };
        let scenario = Scenario {
            name,
            bitrate: sanitize(&axes.bitrate),
            encoder: sanitize(&axes.encoder),
            preset: sanitize(&axes.preset),
            resolution: axes.width.zip(axes.height).map(|(w, h)| format!("{w}x{h}")).unwrap_or_default(),
            fps: amount(axes.frames_per_second, "frames_per_second")?.filter(|fps| *fps > 0.0),
            outputs: axes.outputs.iter().map(output).collect::<Result<Vec<_>, String>>()?,
            streams: axes.streams.filter(|streams| *streams > 0),
            configuration: Some(index),
            axes: axis_texts(configuration.axes).map(Arc::new),
            content_digest: content.map(|content| sanitize(&content.sha256)).unwrap_or_default(),
            ..Scenario::default()
        };
        Ok(Self { scenario, quality: quality(&configuration.quality) })
    }

    /// The scenario of a successful repeat.
    fn scenario_of(
        &self,
        repeat: RepeatRow,
        configuration: &ConfigurationRow<'_>,
        header: &FileHeader,
    ) -> Result<Scenario, String> {
        let counters: Vec<EnergyReading> = repeat.energy.iter().map(reading).collect::<Result<_, String>>()?;
        let own = quality(&repeat.quality);
        let window = repeat.window.as_ref();
        let length =
            window.map(|window| window.seconds.unwrap_or(seconds(window.end_unix_ns) - seconds(window.start_unix_ns)));
        // The baseline of the repeat's own block is preferred.
        let baseline = repeat.baseline.as_deref().or(configuration.baseline.as_deref());
        Ok(Scenario {
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
                vmaf: own.vmaf.or_else(|| self.quality.vmaf.clone()),
                psnr: own.psnr.or_else(|| self.quality.psnr.clone()),
                ssim: own.ssim.or_else(|| self.quality.ssim.clone()),
            },
            start: window.map(|window| seconds(window.start_unix_ns)),
            end: window.map(|window| seconds(window.end_unix_ns)),
            samples: repeat.samples.map(samples_of).transpose()?.unwrap_or_default(),
            counters: merged(counters),
            idle_known: repeat.idle_known,
            cpu_seconds: repeat.cpu.as_ref().map(|cpu| seconds(cpu.nanoseconds)),
            reserved_cores: amount(repeat.cpu.and_then(|cpu| cpu.reserved_cores), "reserved_cores")?,
            gpu_seconds: amount(repeat.gpu_seconds, "gpu_seconds")?,
            container: repeat.container.filter(|name| !name.is_empty()),
            baseline: baseline.map(|id| header.baseline(id)).transpose()?,
            ..self.scenario.clone()
        })
    }
}

/// All axes with their values as text: a string itself, other values as compact JSON.
fn axis_texts(axes: Option<&RawValue>) -> Option<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    let each = &mut |name: String, value: &RawValue| {
        let json = value.get();
        let text = if json.len() > MAX_AXIS {
            metrics::label::digest(json)
        } else {
            match serde_json::from_str(json) {
                Ok(Value::String(text)) => text,
                Ok(value) => value.to_string(),
                Err(_) => json.to_owned(),
            }
        };
        if all.len() < MAX_AXES {
            all.insert(sanitize(&name), text);
        }
    };
    for_each_entry(axes?.get(), each).ok()?;
    Some(all)
}

fn reading(row: &EnergyRow) -> Result<EnergyReading, String> {
    let scope = match &*row.scope {
        "host" => Scope::Host,
        "container" => Scope::Container,
        other => return Err(format!("energy of scope {other:?}; expected host or container")),
    };
    Ok(EnergyReading {
        scope,
        source: sanitize(&row.source),
        joules: Microjoules(row.microjoules),
        edge_error: Microjoules(row.edge_error_microjoules).joules(),
        model_interval: row.model_interval_ratio,
    })
}

fn samples_of(rows: SampleRows) -> Result<Samples, String> {
    Ok(Samples {
        step: amount(Some(rows.step_seconds), "step_seconds")?.filter(|step| *step > 0.0),
        watts: rows.power_watts,
        cores: rows.cpu_cores,
    })
}
