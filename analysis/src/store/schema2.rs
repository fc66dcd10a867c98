//! Result files of schema 2, our own: `docs/results-schema.md`. Energy is counters at the edges of a window, in whole microjoules; every unit is
//! in its key.

use exporter::units::Microjoules;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::legacy::{amount, count};
use crate::{
    energy::{Joules, Scope, merged},
    run::{Baseline, Output, Quality, Samples, Scenario, Score},
};

/// What `schema` says in such a file.
pub const SCHEMA: &str = "wattcast/results/2";

/// `null` is not known, as a key that is absent is.
fn or_nothing<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// What all cells share.
#[derive(Debug, Deserialize)]
pub(super) struct Head {
    #[serde(default)]
    pub(super) host: Option<Host>,
    #[serde(default, deserialize_with = "or_nothing")]
    pub(super) baselines: Vec<Rest>,
}

/// Where it ran.
#[derive(Debug, Deserialize)]
pub(super) struct Host {
    pub(super) name: String,
}

/// The host without load.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Rest {
    id: String,
    power_watts: Mean,
}

#[derive(Clone, Debug, Deserialize)]
struct Mean {
    mean: f64,
}

/// A configuration, with every time that it was run.
#[derive(Debug, Deserialize)]
struct Cell {
    #[serde(default, deserialize_with = "or_nothing")]
    id: String,
    #[serde(default, deserialize_with = "or_nothing")]
    name: String,
    #[serde(default, deserialize_with = "or_nothing")]
    axes: Axes,
    #[serde(default)]
    baseline: Option<String>,
    #[serde(default, deserialize_with = "or_nothing")]
    quality: Vec<Scored>,
    #[serde(default, deserialize_with = "or_nothing")]
    repeats: Vec<Repeat>,
}

#[derive(Debug, Default, Deserialize)]
struct Axes {
    #[serde(default, deserialize_with = "or_nothing")]
    encoder: String,
    #[serde(default, deserialize_with = "or_nothing")]
    preset: String,
    #[serde(default, deserialize_with = "or_nothing")]
    bitrate: String,
    #[serde(default)]
    width: Option<u32>,
    #[serde(default)]
    height: Option<u32>,
    #[serde(default)]
    frames_per_second: Option<f64>,
    #[serde(default)]
    streams: Option<u32>,
    #[serde(default, deserialize_with = "or_nothing")]
    outputs: Vec<Rung>,
}

#[derive(Debug, Deserialize)]
struct Rung {
    width: u32,
    height: u32,
    frames_per_second: f64,
}

#[derive(Debug, Deserialize)]
struct Repeat {
    #[serde(default)]
    n: Option<u32>,
    status: String,
    #[serde(default, deserialize_with = "or_nothing")]
    detail: String,
    #[serde(default)]
    window: Option<Window>,
    #[serde(default)]
    container: Option<String>,
    #[serde(default, deserialize_with = "or_nothing")]
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
    #[serde(default, deserialize_with = "or_nothing")]
    energy: Vec<Energy>,
    #[serde(default)]
    cpu: Option<Cpu>,
    #[serde(default)]
    gpu_seconds: Option<f64>,
    #[serde(default)]
    baseline: Option<String>,
    #[serde(default)]
    samples: Option<Sampled>,
    #[serde(default, deserialize_with = "or_nothing")]
    quality: Vec<Scored>,
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
struct Energy {
    scope: String,
    source: String,
    microjoules: u64,
    #[serde(default, deserialize_with = "or_nothing")]
    edge_error_microjoules: u64,
}

#[derive(Debug, Deserialize)]
struct Cpu {
    nanoseconds: u64,
    #[serde(default)]
    reserved_cores: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Sampled {
    step_seconds: f64,
    #[serde(default, deserialize_with = "or_nothing")]
    power_watts: Vec<f64>,
    #[serde(default, deserialize_with = "or_nothing")]
    cpu_cores: Vec<f64>,
}

#[derive(Clone, Debug, Deserialize)]
struct Scored {
    metric: String,
    #[serde(default)]
    value: Option<f64>,
    #[serde(default, deserialize_with = "or_nothing")]
    model: String,
    #[serde(default, deserialize_with = "or_nothing")]
    version: String,
    #[serde(default, deserialize_with = "or_nothing")]
    pooling: String,
}

fn quality(all: &[Scored]) -> Quality {
    let find = |metric: &str, most: f64| {
        let scored = all.iter().find(|scored| scored.metric == metric)?;
        let value = scored.value.filter(|value| (0.0..=most).contains(value))?;
        let (model, version) = (scored.model.clone(), scored.version.clone());
        Some(Score { value, model, version, pooling: scored.pooling.clone() })
    };
    // The newest models of VMAF go to 110; identical pictures have an infinite PSNR, which ffmpeg caps.
    Quality { vmaf: find("vmaf", 110.0), psnr: find("psnr", 1000.0), ssim: find("ssim", 1.0) }
}

/// Seconds of nanoseconds since 1970, for which a double has a microsecond.
fn seconds(ns: u64) -> f64 {
    std::time::Duration::from_nanos(ns).as_secs_f64()
}

/// The scenarios of one cell: one for each repeat that ended well. What did not is named in `problems`.
pub(super) fn scenarios(
    row: &Map<String, Value>,
    head: &Head,
    number_of_cell: usize,
    room: usize,
    problems: &mut Vec<String>,
) -> Result<Vec<Scenario>, String> {
    let cell = Cell::deserialize(row).map_err(|error| error.to_string())?;
    let axes = &cell.axes;
    let name = [&cell.name, &cell.id].into_iter().find(|name| !name.is_empty()).ok_or("neither name nor id")?;
    let baseline = |id: &String| -> Result<Baseline, String> {
        let found = head.baselines.iter().find(|baseline| baseline.id == *id);
        let watts = found.ok_or_else(|| format!("its baseline {id:?} is not in the file"))?.power_watts.mean;
        Ok(Baseline { id: id.clone(), watts: amount(Some(watts), "a baseline's power")?.unwrap_or_default() })
    };
    let mut all = Vec::new();
    if cell.repeats.len() > room {
        problems.push(format!("{name}: {} repeats; there is room for {room}", cell.repeats.len()));
    }
    for repeat in cell.repeats.into_iter().take(room) {
        let number = repeat.n.unwrap_or_default();
        if repeat.status != "ok" {
            problems.push(format!("{name}, repeat {number}: {} {}", repeat.status, repeat.detail));
            continue;
        }
        let counters = repeat.energy.iter().map(|energy| {
            let scope = match &*energy.scope {
                "host" => Scope::Host,
                "container" => Scope::Container,
                other => return Err(format!("repeat {number}: energy of scope {other:?}; host or container")),
            };
            Ok(Joules {
                scope,
                source: exporter::label::clean(&energy.source),
                joules: Microjoules(energy.microjoules),
                edge_error: Microjoules(energy.edge_error_microjoules).joules(),
            })
        });
        let counters: Vec<Joules> = counters.collect::<Result<_, String>>()?;
        let sampled = repeat.samples.unwrap_or(Sampled { step_seconds: 0.0, power_watts: vec![], cpu_cores: vec![] });
        for value in sampled.power_watts.iter().chain(&sampled.cpu_cores) {
            amount(Some(*value), "a sample")?;
        }
        let own = quality(&repeat.quality);
        let shared = quality(&cell.quality);
        let pick = |own: Option<Score>, shared: Option<Score>| own.or(shared);
        let window = repeat.window.as_ref();
        let measured =
            window.map(|window| window.seconds.unwrap_or(seconds(window.end_unix_ns) - seconds(window.start_unix_ns)));
        all.push(Scenario {
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
            duration: amount(measured, "the window's length")?,
            avg_fps: amount(repeat.frames_per_second, "frames_per_second")?,
            dropped_frames: repeat.frames.dropped,
            total_frames: repeat.frames.encoded,
            pixels: repeat.pixels,
            bytes: repeat.bytes,
            media_seconds: amount(repeat.media_seconds, "media_seconds")?,
            quality_is_shared: own == Quality::default(),
            quality: Quality {
                vmaf: pick(own.vmaf, shared.vmaf),
                psnr: pick(own.psnr, shared.psnr),
                ssim: pick(own.ssim, shared.ssim),
            },
            start: window.map(|window| seconds(window.start_unix_ns)),
            end: window.map(|window| seconds(window.end_unix_ns)),
            samples: Samples {
                step: amount(Some(sampled.step_seconds), "step_seconds")?.filter(|step| *step > 0.0),
                watts: sampled.power_watts,
                cores: sampled.cpu_cores,
            },
            counters: merged(counters),
            cpu_seconds: repeat.cpu.as_ref().map(|cpu| seconds(cpu.nanoseconds)),
            reserved_cores: amount(repeat.cpu.and_then(|cpu| cpu.reserved_cores), "reserved_cores")?,
            gpu_seconds: amount(repeat.gpu_seconds, "gpu_seconds")?,
            container: repeat.container.filter(|name| !name.is_empty()),
            // Of its own block, where the file says so.
            baseline: repeat.baseline.as_ref().or(cell.baseline.as_ref()).map(baseline).transpose()?,
            cell: Some(number_of_cell),
            ..Scenario::default()
        });
    }
    Ok(all)
}
