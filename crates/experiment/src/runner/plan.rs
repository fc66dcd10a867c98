//! The plan of a run: its configurations, the number of repeats and their order. The journal
//! contains the whole plan, so that a resumed run continues unchanged.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use cli::suggest::with_suggestion;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::frame_rate::{self, FrameRate};
use crate::search::energy::EnergySearch;
use results::run;

/// Most configurations of a run.
pub const MAX_CONFIGURATIONS: usize = 10_000;

/// Length of the sample of a live stream that is scored, in seconds: the longest source clip, and
/// the start up to a key frame.
pub const SAMPLE_SECONDS: u32 = 12;
/// Maximum size of such a sample in bytes; a longer one is cut.
pub const SAMPLE_BYTES: u32 = 32 << 20;
/// Maximum size of all samples of a run that wait for their scores; further repeats have none.
pub const ALL_SAMPLES_BYTES: u32 = 1 << 30;

/// Rate control of an encoder.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rate {
    /// Target bit rate as ffmpeg takes it: `2500k`.
    Bitrate(String),
    /// Constant rate factor.
    Crf(u32),
}

impl Rate {
    /// Text for names: `2500k`, `crf 23`.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Bitrate(bits) => bits.clone(),
            Self::Crf(crf) => format!("crf {crf}"),
        }
    }

    /// Target in bits per second, if there is one.
    #[must_use]
    pub fn bits(&self) -> Option<f64> {
        match self {
            Self::Bitrate(text) => parse_bitrate(text),
            Self::Crf(_) => None,
        }
    }
}

/// Parses a bit rate between 1 kbit/s and 10 Gbit/s.
#[must_use]
pub fn parse_bitrate(text: &str) -> Option<f64> {
    // Surrounding spaces are refused because ffmpeg's command line contains the text unchanged.
    run::parse_bitrate(text).filter(|bits| (1e3..=1e10).contains(bits) && text.trim() == text)
}

/// The settings of a configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Axes {
    /// Encoder as ffmpeg names it: `libx264`.
    pub encoder: String,
    /// Encoder preset; empty for the encoder's default.
    #[serde(default)]
    pub preset: String,
    /// Rate control.
    pub rate: Rate,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Frames per second: the double nearest to the exact rate.
    pub fps: f64,
    /// Number of simultaneous streams.
    pub streams: u32,
}

impl Axes {
    /// The exact frame rate.
    #[must_use]
    pub fn frame_rate(&self) -> FrameRate {
        FrameRate::of(self.fps)
    }
}

/// A named configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    /// Digest of the axes; the same in every run.
    pub id: String,
    /// Value of the label `scenario`.
    pub name: String,
    /// The settings.
    pub axes: Axes,
}

impl Configuration {
    /// Names the configuration `prefix`, then its settings.
    #[must_use]
    pub fn new(prefix: &str, axes: Axes) -> Self {
        let id = short_digest(&serde_json::to_vec(&axes).unwrap_or_default());
        let mut words: Vec<String> = Vec::new();
        words.extend((!prefix.is_empty()).then(|| prefix.to_owned()));
        words.push(axes.encoder.clone());
        words.extend((!axes.preset.is_empty()).then(|| axes.preset.clone()));
        let frame_rate = format!("{} fps", axes.frame_rate().text());
        words.extend([axes.rate.text(), format!("{}x{}", axes.width, axes.height), frame_rate]);
        words.extend((axes.streams > 1).then(|| format!("{} streams", axes.streams)));
        Self { id, name: words.join(" "), axes }
    }
}

/// The first 8 bytes of a SHA-256 in hexadecimal.
#[must_use]
pub fn short_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Where the encoded video goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Discard the output; quality is scored with one additional encode
    Null,
    /// Write a file, whose quality can be scored
    #[default]
    File,
    /// Stream live; generator, RTMP server and encoder have a cgroup each
    Rtmp,
}

/// The server of a live run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LiveServer {
    /// nginx with the RTMP module, for H.264.
    #[default]
    Nginx,
    /// MediaMTX, for codecs that need enhanced RTMP.
    MediaMtx,
}

/// How the encoder is separated from other processes, so that energy can be attributed to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// First available of cgroup, probe and container; for files also none
    #[default]
    Auto,
    /// Cgroup below the runner's own, which must be delegated (systemd Delegate=yes)
    Cgroup,
    /// Cgroup leased from the probe (its --scope.socket)
    Probe,
    /// Container of --container.image
    Container,
    /// No separation: energy is that of the whole host
    None,
}

/// Durations and repeats of the measurements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// Length of the encoded media.
    pub duration: Duration,
    /// Live streams: time to settle before the window. Otherwise the longest warm-up.
    pub stabilization: Duration,
    /// Pause between two measurements.
    pub cooldown: Duration,
    /// Length of the idle power measurement before each block.
    pub baseline: Duration,
    /// Repeats of each configuration, at least.
    pub repeats: u32,
    /// Relative half width of the 95 % interval at which repeating stops; `None` for exactly
    /// `repeats`.
    pub ci_target: Option<f64>,
    /// Repeats of each configuration, at most.
    pub max_repeats: u32,
    /// Time without progress after which an encoder is stopped.
    pub stall: Duration,
    /// Seed of the order of configurations.
    pub seed: u64,
}

/// The plan of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the run.
    pub name: String,
    /// Configurations to measure.
    #[serde(rename = "cells")]
    pub configurations: Vec<Configuration>,
    /// Durations and repeats.
    pub protocol: Protocol,
    /// Where the encoded video goes.
    pub mode: Mode,
    /// The server of a live run.
    #[serde(default)]
    pub live_server: LiveServer,
    /// How encoders are separated from other processes.
    #[serde(rename = "place")]
    pub isolation: Isolation,
    /// Source file; a generated pattern when `None`.
    pub source: Option<PathBuf>,
    /// True when files are read in real time, like a live source.
    pub realtime: bool,
    /// True for a search, which adds configurations as it goes.
    #[serde(default)]
    pub search: bool,
    /// True where streams are measured while they run, and then stopped, instead of from their
    /// start to their end.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub steady: bool,
    /// The search for the least energy, if it is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub energy_search: Option<EnergySearch>,
    /// True when quality is scored.
    pub quality: bool,
    /// VMAF model, `version=vmaf_v0.6.1` or `path=FILE`; the library's default when empty.
    pub vmaf_model: String,
    /// Additional arguments for every encoder.
    pub encoder_args: Vec<String>,
}

impl Plan {
    /// The order of a block: `configurations`, shuffled by the seed. In randomised complete blocks,
    /// drift of the machine affects all configurations alike.
    #[must_use]
    pub fn order(&self, block: u32, mut configurations: Vec<usize>) -> Vec<usize> {
        fastrand::Rng::with_seed(self.protocol.seed.wrapping_add(u64::from(block))).shuffle(&mut configurations);
        configurations
    }

    /// Seconds that a repeat of a live run takes in addition to its window: the streams settle
    /// before it, and one of them is sampled after it.
    #[must_use]
    pub fn live_seconds(&self) -> f64 {
        match (self.mode, self.quality) {
            (Mode::Null | Mode::File, _) => 0.0,
            (Mode::Rtmp, false) => self.protocol.stabilization.as_secs_f64(),
            (Mode::Rtmp, true) => self.protocol.stabilization.as_secs_f64() + f64::from(SAMPLE_SECONDS),
        }
    }

    /// Estimated duration in seconds with the fewest repeats and the longest warm-up, for encoders
    /// that work in real time.
    #[must_use]
    pub fn estimated_seconds(&self) -> f64 {
        let protocol = &self.protocol;
        let warm_up = if self.mode == Mode::Rtmp { 0.0 } else { protocol.stabilization.as_secs_f64() };
        let each = (protocol.duration + protocol.cooldown).as_secs_f64() + self.live_seconds();
        let count = f64::from(u32::try_from(self.configurations.len()).unwrap_or(u32::MAX));
        warm_up + f64::from(protocol.repeats) * (count * each + protocol.baseline.as_secs_f64())
    }
}

/// Values of each axis; every combination is a configuration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AxisValues {
    /// Encoders as ffmpeg names them.
    pub encoder: Vec<String>,
    /// Encoder presets.
    pub preset: Vec<TextOrNumber>,
    /// Target bit rates.
    pub bitrate: Vec<TextOrNumber>,
    /// Constant rate factors.
    pub crf: Vec<u32>,
    /// Resolutions, `1280x720` or `720p`.
    pub resolution: Vec<String>,
    /// Frames per second.
    #[serde(deserialize_with = "frame_rate::list")]
    pub fps: Vec<f64>,
    /// Numbers of simultaneous streams.
    pub streams: Vec<u32>,
}

/// A text that may be written as a number, like SVT-AV1's presets and bit rates in bits.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum TextOrNumber {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

impl TextOrNumber {
    /// The text, or the number as text.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
        }
    }
}

impl From<&str> for TextOrNumber {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// Axis values of an `[[include]]` or `[[exclude]]` entry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pattern {
    encoder: Option<String>,
    preset: Option<TextOrNumber>,
    bitrate: Option<TextOrNumber>,
    crf: Option<u32>,
    resolution: Option<String>,
    #[serde(deserialize_with = "frame_rate::optional")]
    fps: Option<f64>,
    streams: Option<u32>,
}

/// A matrix file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Matrix {
    /// Values of which every combination is included.
    pub matrix: AxisValues,
    /// Additional configurations; an axis that an entry omits has the first value of its list.
    pub include: Vec<Pattern>,
    /// Configurations to leave out: those that match all axes of an entry.
    pub exclude: Vec<Pattern>,
}

/// Parses `1280x720`, or `720p` at 16:9, to width and height.
///
/// # Errors
/// When the text is no resolution, or width or height is odd or out of range.
pub fn resolution(text: &str) -> Result<(u32, u32), String> {
    let invalid = || format!("{text:?} is no resolution; write 1280x720 or 720p");
    let (width, height): (u32, u32) = match (text.split_once('x'), text.strip_suffix('p')) {
        (Some((width, height)), _) => (width.parse().map_err(|_| invalid())?, height.parse().map_err(|_| invalid())?),
        (None, Some(height)) => {
            let height: u32 = height.parse().map_err(|_| invalid())?;
            (height.saturating_mul(16).div_ceil(9).next_multiple_of(2), height)
        }
        (None, None) => return Err(invalid()),
    };
    let is_valid = |pixels: u32| (16..=16_384).contains(&pixels) && pixels.is_multiple_of(2);
    if is_valid(width) && is_valid(height) {
        Ok((width, height))
    } else {
        Err(format!("{text:?}: width and height must be even, 16 to 16384"))
    }
}

impl Matrix {
    /// Parses a matrix file.
    ///
    /// # Errors
    /// When the text is no matrix; the message suggests the most similar key.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| with_suggestion(&error.to_string()))
    }

    /// The distinct configurations in the order of the lists. Their names start with `prefix`, the
    /// name of the run.
    ///
    /// # Errors
    /// When a value is invalid, or an entry has no effect.
    pub fn configurations(&self, prefix: &str) -> Result<Vec<Configuration>, String> {
        let values = self.matrix.with_defaults();
        let mut all = values.combinations()?;
        for pattern in &self.exclude {
            if *pattern == Pattern::default() {
                return Err("an [[exclude]] without axes would leave out everything".to_owned());
            }
            let size = pattern.resolution.as_deref().map(resolution).transpose()?;
            let before = all.len();
            all.retain(|axes| !pattern.matches(axes, size));
            if all.len() == before {
                return Err(format!("an [[exclude]] matches no configuration: {pattern:?}"));
            }
        }
        for pattern in &self.include {
            all.push(pattern.axes(&values)?);
        }
        configurations(prefix, all)
    }
}

/// Names the configurations and removes duplicates.
///
/// # Errors
/// When there are none.
pub fn configurations(prefix: &str, all: Vec<Axes>) -> Result<Vec<Configuration>, String> {
    let mut known = BTreeSet::new();
    let mut distinct: Vec<Configuration> = all.into_iter().map(|axes| Configuration::new(prefix, axes)).collect();
    distinct.retain(|configuration| known.insert(configuration.id.clone()));
    if distinct.is_empty() { Err(NO_CONFIGURATIONS.to_owned()) } else { Ok(distinct) }
}

const NO_CONFIGURATIONS: &str = "no configurations are left to run";

/// The Cartesian product; the right element varies fastest.
fn product<A: Clone, B: Clone>(left: &[A], right: &[B]) -> Vec<(A, B)> {
    left.iter().flat_map(|a| right.iter().map(move |b| (a.clone(), b.clone()))).collect()
}

fn axes(encoder: &str, preset: &str, rate: Rate, size: &str, fps: f64, streams: u32) -> Result<Axes, String> {
    let (width, height) = resolution(size)?;
    let is_word = |text: &str| !text.starts_with('-') && !text.contains(char::is_whitespace);
    if encoder.is_empty() || !is_word(encoder) || !is_word(preset) {
        return Err(format!("{encoder:?}, {preset:?}: encoder and preset must be one word each"));
    }
    if let Rate::Bitrate(text) = &rate
        && parse_bitrate(text).is_none()
    {
        return Err(format!("{text:?} is no bit rate; write 2500k or 5M"));
    }
    if matches!(rate, Rate::Crf(crf) if crf > 255) {
        return Err("crf must be 0 to 255".to_owned());
    }
    FrameRate::exact(fps)?;
    if !(1..=256).contains(&streams) {
        return Err(format!("{streams} streams: must be 1 to 256"));
    }
    Ok(Axes {
        encoder: canonical_encoder(encoder).to_owned(),
        preset: preset.to_owned(),
        rate,
        width,
        height,
        fps,
        streams,
    })
}

impl AxisValues {
    /// These values; axes without values take those of `fallback`.
    #[must_use]
    pub fn or(self, fallback: Self) -> Self {
        fn or<T>(values: Vec<T>, fallback: Vec<T>) -> Vec<T> {
            if values.is_empty() { fallback } else { values }
        }
        // Bit rates and CRFs are alternatives, so either list replaces both.
        let no_rates = self.bitrate.is_empty() && self.crf.is_empty();
        Self {
            encoder: or(self.encoder, fallback.encoder),
            preset: or(self.preset, fallback.preset),
            bitrate: if no_rates { fallback.bitrate } else { self.bitrate },
            crf: if no_rates { fallback.crf } else { self.crf },
            resolution: or(self.resolution, fallback.resolution),
            fps: or(self.fps, fallback.fps),
            streams: or(self.streams, fallback.streams),
        }
    }

    /// Fills axes without values with the defaults of the legacy runner.
    fn with_defaults(&self) -> Self {
        self.clone().or(Self {
            encoder: vec!["libx264".to_owned()],
            preset: vec![TextOrNumber::from("")],
            bitrate: vec![TextOrNumber::from("2500k")],
            crf: Vec::new(),
            resolution: vec!["1280x720".to_owned()],
            fps: vec![30.0],
            streams: vec![1],
        })
    }

    fn rates(&self) -> Vec<Rate> {
        let bitrates = self.bitrate.iter().map(|bitrate| Rate::Bitrate(bitrate.text()));
        bitrates.chain(self.crf.iter().map(|crf| Rate::Crf(*crf))).collect()
    }

    /// Every combination of the values; the last axis varies fastest.
    fn combinations(&self) -> Result<Vec<Axes>, String> {
        let rates = self.rates();
        let lengths = [
            self.encoder.len(),
            self.preset.len(),
            rates.len(),
            self.resolution.len(),
            self.fps.len(),
            self.streams.len(),
        ];
        let count = lengths.into_iter().try_fold(1, usize::checked_mul);
        if count.is_none_or(|count| count > MAX_CONFIGURATIONS) {
            return Err(format!("more than {MAX_CONFIGURATIONS} combinations"));
        }
        let encoders = product(&product(&self.encoder, &self.preset), &rates);
        let outputs = product(&product(&self.resolution, &self.fps), &self.streams);
        product(&encoders, &outputs)
            .into_iter()
            .map(|(((encoder, preset), rate), ((size, fps), streams))| {
                axes(&encoder, &preset.text(), rate, &size, fps, streams)
            })
            .collect()
    }
}

impl Pattern {
    /// True when a configuration has all values of the entry; `size` is the parsed resolution.
    fn matches(&self, axes: &Axes, size: Option<(u32, u32)>) -> bool {
        let same = |wanted: Option<&str>, value: &str| wanted.is_none_or(|wanted| wanted == value);
        let same_rate = match &axes.rate {
            // 2.5M equals 2500k.
            Rate::Bitrate(text) => {
                let wanted = self.bitrate.as_ref().map(TextOrNumber::text);
                self.crf.is_none() && wanted.is_none_or(|wanted| parse_bitrate(&wanted) == parse_bitrate(text))
            }
            Rate::Crf(crf) => self.bitrate.is_none() && self.crf.is_none_or(|wanted| wanted == *crf),
        };
        same_rate
            && same(self.encoder.as_deref().map(canonical_encoder), &axes.encoder)
            && same(self.preset.as_ref().map(TextOrNumber::text).as_deref(), &axes.preset)
            && size.is_none_or(|size| size == (axes.width, axes.height))
            && self.fps.is_none_or(|fps| fps == axes.fps)
            && self.streams.is_none_or(|streams| streams == axes.streams)
    }

    /// The configuration that the entry describes; omitted axes have the first of `values`.
    fn axes(&self, values: &AxisValues) -> Result<Axes, String> {
        let rate = match (&self.crf, &self.bitrate) {
            (Some(_), Some(_)) => return Err("an [[include]] needs either a crf or a bitrate".to_owned()),
            (Some(crf), None) => Rate::Crf(*crf),
            (None, Some(bitrate)) => Rate::Bitrate(bitrate.text()),
            (None, None) => values.rates().swap_remove(0),
        };
        axes(
            self.encoder.as_ref().unwrap_or(&values.encoder[0]),
            &self.preset.as_ref().unwrap_or(&values.preset[0]).text(),
            rate,
            self.resolution.as_ref().unwrap_or(&values.resolution[0]),
            self.fps.unwrap_or(values.fps[0]),
            self.streams.unwrap_or(values.streams[0]),
        )
    }
}

/// The suite of the legacy runner without its baseline scenario: each block has its own idle power
/// measurement.
#[must_use]
pub fn default_suite(encoder: &str, preset: &str) -> Vec<Axes> {
    let one = |bitrate: &str, size: &str, fps: f64, streams: u32| {
        axes(encoder, preset, Rate::Bitrate(bitrate.to_owned()), size, fps, streams).ok()
    };
    [
        one("1M", "1280x720", 30.0, 1),
        one("2500k", "1280x720", 30.0, 1),
        one("5M", "1280x720", 30.0, 1),
        one("10M", "1280x720", 30.0, 1),
        one("2500k", "854x480", 30.0, 1),
        one("2500k", "1920x1080", 30.0, 1),
        one("5M", "1280x720", 60.0, 1),
        one("2500k", "1280x720", 30.0, 2),
        one("2500k", "1280x720", 30.0, 4),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A scenario of the legacy runner's batch file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchScenario {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    count: Option<u32>,
    #[serde(default)]
    bitrate: Option<TextOrNumber>,
    #[serde(default)]
    bitrates: Vec<TextOrNumber>,
    #[serde(default)]
    resolution: Option<String>,
    #[serde(default, deserialize_with = "frame_rate::optional")]
    fps: Option<f64>,
    #[serde(default)]
    encoder: Option<String>,
    #[serde(default)]
    preset: Option<TextOrNumber>,
    /// Ignored: all configurations of a run have the same duration, so that they can be compared.
    #[serde(default)]
    duration: Option<f64>,
    #[serde(default)]
    stabilization: Option<f64>,
    #[serde(default)]
    cooldown: Option<f64>,
    #[serde(default)]
    outputs: Option<serde_json::Value>,
}

impl BatchScenario {
    /// Remarks on settings that are not supported.
    fn notes(&self) -> impl Iterator<Item = &'static str> {
        let times = self.duration.is_some() || self.stabilization.is_some() || self.cooldown.is_some();
        let outputs = "several outputs of one encoder are not supported; only its first resolution is encoded";
        let durations = "durations apply to the whole run; use --duration, --stabilization, --cooldown";
        [self.outputs.is_some().then_some(outputs), times.then_some(durations)].into_iter().flatten()
    }

    fn axes(&self) -> Result<Axes, String> {
        let default = TextOrNumber::from("2500k");
        let (bitrate, streams) = match self.bitrates.as_slice() {
            [] => (self.bitrate.as_ref().unwrap_or(&default), self.count.unwrap_or(1)),
            [first, rest @ ..] => {
                if rest.iter().any(|other| other != first) {
                    return Err("streams of one configuration cannot have different bitrates".to_owned());
                }
                (first, u32::try_from(self.bitrates.len()).unwrap_or(u32::MAX))
            }
        };
        axes(
            self.encoder.as_deref().unwrap_or("libx264"),
            &self.preset.as_ref().map(TextOrNumber::text).unwrap_or_default(),
            Rate::Bitrate(bitrate.text()),
            self.resolution.as_deref().unwrap_or("1280x720"),
            self.fps.unwrap_or(30.0),
            streams,
        )
    }
}

/// Parses a batch file, a JSON list of scenarios or `{"scenarios": […]}`. Returns the
/// configurations, and remarks on what is not supported.
///
/// # Errors
/// When the file or one of its scenarios is invalid.
pub fn parse_batch(text: &str, prefix: &str) -> Result<(Vec<Configuration>, Vec<String>), String> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum File {
        List(Vec<serde_json::Value>),
        Object { scenarios: Vec<serde_json::Value> },
    }
    let (File::List(rows) | File::Object { scenarios: rows }) =
        serde_json::from_str(text).map_err(|error| error.to_string())?;
    let (mut distinct, mut notes, mut known) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (at, row) in rows.into_iter().enumerate() {
        let scenario: BatchScenario = serde_json::from_value(row)
            .map_err(|error| format!("scenario {}: {}", at + 1, with_suggestion(&error.to_string())))?;
        let named = |what: &str| format!("scenario {} ({:?}): {what}", at + 1, scenario.name);
        if scenario.kind.as_deref() == Some("baseline") {
            notes.push(named("ignored; each block has its own baseline"));
            continue;
        }
        notes.extend(scenario.notes().map(named));
        let mut configuration = Configuration::new(prefix, scenario.axes().map_err(|why| named(&why))?);
        if !scenario.name.is_empty() {
            configuration.name.clone_from(&scenario.name);
        }
        if known.insert(configuration.id.clone()) {
            distinct.push(configuration);
        } else {
            notes.push(format!(
                "{:?} is the same configuration as an earlier one and is not repeated",
                configuration.name
            ));
        }
    }
    if distinct.is_empty() { Err(NO_CONFIGURATIONS.to_owned()) } else { Ok((distinct, notes)) }
}

/// ffmpeg's name of an encoder that may be given by the legacy runner's name.
#[must_use]
pub fn canonical_encoder(encoder: &str) -> &str {
    match encoder {
        "h264" | "x264" => "libx264",
        "h265" | "hevc" | "x265" => "libx265",
        "av1" => "libsvtav1",
        "vp9" => "libvpx-vp9",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(configurations: Vec<Configuration>) -> Plan {
        Plan {
            name: String::new(),
            configurations,
            protocol: Protocol {
                duration: Duration::from_secs(10),
                stabilization: Duration::ZERO,
                cooldown: Duration::from_secs(5),
                baseline: Duration::from_secs(30),
                repeats: 3,
                ci_target: None,
                max_repeats: 10,
                stall: Duration::from_secs(30),
                seed: 7,
            },
            mode: Mode::File,
            live_server: LiveServer::Nginx,
            isolation: Isolation::Auto,
            source: None,
            realtime: false,
            search: false,
            steady: false,
            energy_search: None,
            quality: false,
            vmaf_model: String::new(),
            encoder_args: Vec::new(),
        }
    }

    const MATRIX: &str = r#"
        [matrix]
        encoder = ["libx264", "libx265"]
        preset = ["veryfast"]
        bitrate = ["500k", "1M", 2000000]
        resolution = ["360p"]
        [[exclude]]
        encoder = "libx265"
        bitrate = "1M"
        [[include]]
        encoder = "libsvtav1"
        preset = 8
        crf = 35
        [[include]]
        encoder = "libx264"
    "#;

    #[test]
    fn a_matrix_applies_exclude_and_include() {
        let configurations = Matrix::parse(MATRIX).unwrap().configurations("a").unwrap();
        let names: Vec<&str> = configurations.iter().map(|configuration| &*configuration.name).collect();
        assert_eq!(
            names,
            [
                "a libx264 veryfast 500k 640x360 30 fps",
                "a libx264 veryfast 1M 640x360 30 fps",
                "a libx264 veryfast 2000000 640x360 30 fps",
                "a libx265 veryfast 500k 640x360 30 fps",
                "a libx265 veryfast 2000000 640x360 30 fps",
                "a libsvtav1 8 crf 35 640x360 30 fps",
            ],
            "duplicates are removed"
        );
        // The id does not depend on the name of the run.
        assert_eq!(configurations[0].id, Matrix::parse(MATRIX).unwrap().configurations("b").unwrap()[0].id);
    }

    #[test]
    fn errors_of_a_matrix_suggest_a_fix() {
        for (text, word) in [
            ("[matrix]\nencodr = [\"libx264\"]", "encoder"),
            ("[matrix]\nbitrate = [\"fast\"]", "2500k or 5M"),
            ("[matrix]\nresolution = [\"big\"]", "720p"),
            ("[matrix]\nresolution = [\"641x360\"]", "even"),
            ("[matrix]\nstreams = [0]", "1 to 256"),
            ("[matrix]\nfps = [0.0]", "1 to 1000"),
            ("[matrix]\nencoder = [\"-i /etc/passwd\"]", "one word"),
            ("[[exclude]]\n", "without axes"),
            ("[[exclude]]\nencoder = \"libx264\"", "no configurations are left"),
            ("[[include]]\ncrf = 3\nbitrate = \"1M\"", "either a crf or a bitrate"),
        ] {
            let error = Matrix::parse(text).and_then(|matrix| matrix.configurations("")).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        let many =
            format!("[matrix]\ncrf = {:?}\nstreams = {:?}", (0..200).collect::<Vec<_>>(), (1..100).collect::<Vec<_>>());
        assert!(Matrix::parse(&many).unwrap().configurations("").unwrap_err().contains("combinations"));
    }

    #[test]
    fn frame_rate_of_a_configuration_is_exact() {
        let text = "[matrix]\nfps = [30, 29.97, \"30000/1001\", 12.5]\n[[exclude]]\nfps = \"25/2\"";
        let configurations = Matrix::parse(text).unwrap().configurations("").unwrap();
        let names = configurations.iter().map(|configuration| configuration.name.rsplit_once("720 ").unwrap().1);
        assert_eq!(names.collect::<Vec<_>>(), ["30 fps", "29.97 fps", "30000/1001 fps"]);
        let error = |fps: &str| Matrix::parse(&format!("[matrix]\nfps = [{fps}]"))?.configurations("").map(drop);
        assert!(error("29.97002997").unwrap_err().contains("30000/1001"));
        assert!(error("\"30/0\"").unwrap_err().contains("no frame rate"));
        let (batch, _) = parse_batch("[{\"fps\": \"24000/1001\"}]", "").unwrap();
        assert_eq!(batch[0].axes.frame_rate().text(), "24000/1001");
    }

    #[test]
    fn id_of_a_configuration_does_not_change_between_versions() {
        let axes = default_suite("libx264", "").swap_remove(0);
        let json = r#"{"encoder":"libx264","preset":"","rate":{"bitrate":"1M"},"width":1280,"height":720,"fps":30.0,"streams":1}"#;
        assert_eq!(serde_json::to_string(&axes).unwrap(), json);
    }

    #[test]
    fn the_seed_determines_an_order_per_block() {
        let plan = plan(configurations("", default_suite("libx264", "")).unwrap());
        let all: Vec<usize> = (0..plan.configurations.len()).collect();
        let first = plan.order(0, all.clone());
        assert_eq!(first, plan.order(0, all.clone()));
        assert_ne!(first, plan.order(1, all.clone()));
        let mut sorted = first;
        sorted.sort_unstable();
        assert_eq!(sorted, all);
    }

    #[test]
    fn legacy_batch_files_are_parsed() {
        let text = r#"{"scenarios": [
            {"type": "baseline", "name": "Baseline", "duration": 120},
            {"type": "single", "name": "one", "bitrate": "2500k", "resolution": "640x360", "fps": 30, "encoder": "h264", "preset": "veryfast"},
            {"type": "multi", "name": "two", "count": 2, "bitrate": "1M"},
            {"type": "multi", "name": "three", "bitrates": ["1M", "1M", "1M"]}]}"#;
        let (configurations, notes) = parse_batch(text, "").unwrap();
        let shown: Vec<_> = configurations
            .iter()
            .map(|configuration| (&*configuration.name, configuration.axes.streams, &*configuration.axes.encoder))
            .collect();
        assert_eq!(shown, [("one", 1, "libx264"), ("two", 2, "libx264"), ("three", 3, "libx264")]);
        assert!(notes.len() == 1 && notes[0].contains("baseline"), "{notes:?}");
        assert!(parse_batch("[{\"bitrates\": [\"1M\", \"2M\"]}]", "").unwrap_err().contains("different bitrates"));
        assert!(parse_batch("[{\"presett\": \"x\"}]", "").unwrap_err().contains("preset"));
        assert!(parse_batch("{}", "").is_err() && parse_batch("[]", "").is_err());
    }

    #[test]
    fn bit_rates_are_parsed_like_ffmpeg_does() {
        assert_eq!(
            ["2500k", "5M", "800000", "1.5M"].map(parse_bitrate),
            [Some(2.5e6), Some(5e6), Some(8e5), Some(1.5e6)]
        );
        assert_eq!(["", "0k", "k", "-1M", "inf", "5MB", "nan"].map(parse_bitrate), [None; 7]);
    }
}
