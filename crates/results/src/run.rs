//! Runs and scenarios as read from result files.
//!
//! A run is one result file; a scenario is one measurement in it. Any field may be absent, which is
//! not zero. The text of the file is kept too, so that unknown keys are not lost.

use std::{collections::BTreeMap, sync::Arc};

use units::Microjoules;

use crate::energy::reading::{EnergyReading, Scope};

/// One result file.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The time in the name of the file, `YYYYMMDD_HHMMSS`: the label `run`.
    pub id: String,
    /// The format of the file.
    pub variant: Variant,
    /// The host of the run.
    pub host: Option<String>,
    /// The scenarios in the order of the file, each with a distinct label set.
    pub scenarios: Vec<Scenario>,
    /// Rows that could not be read, with the reason.
    pub problems: Vec<String>,
    /// The file as strict JSON, with all keys.
    pub text: String,
}

/// The formats of result files (`docs/results-schema.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The legacy Python runner: `encoder`, `preset`, `fps`, `outputs`, and a `test_date` in local
    /// time.
    A,
    /// The sample of the legacy exporters: `encoder_type`, `avg_fps`, power samples.
    B,
    /// The legacy scheduler: `test_metadata`, one mean power instead of samples, a start time that
    /// is the time of queueing.
    C,
    /// Wattcast's schema 2, with counters instead of samples.
    V2,
}

impl Variant {
    /// The value of the label `variant`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::C => "c",
            Self::V2 => "2",
        }
    }
}

/// One output of an encoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Output {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Frames per second.
    pub fps: f64,
}

/// A quality score and the method of its calculation. Scores of different models are not
/// comparable.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    /// VMAF 0 to 100, PSNR in dB, SSIM 0 to 1.
    pub value: f64,
    /// The model, `vmaf_v0.6.1`; empty if unknown.
    pub model: String,
    /// Version of the library; empty if unknown.
    pub version: String,
    /// Pooling over frames, `mean`, `mean_mse` or `harmonic_mean`; empty if unknown.
    pub pooling: String,
    /// Half the width of the 95 % interval over the pieces of a live stream; absent for a file, of
    /// which every frame is scored.
    pub half_width: Option<f64>,
}

/// Scores of the encoded pictures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quality {
    /// VMAF, 0 to 100; newer models up to 110.
    pub vmaf: Option<Score>,
    /// PSNR in dB.
    pub psnr: Option<Score>,
    /// SSIM, 0 to 1.
    pub ssim: Option<Score>,
}

/// Equidistant samples of power and CPU use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    /// Interval between samples in seconds.
    pub step: Option<f64>,
    /// Power of the host in watts.
    pub watts: Vec<f64>,
    /// Busy CPUs.
    pub cores: Vec<f64>,
}

/// Power of the host without load.
#[derive(Clone, Debug, PartialEq)]
pub struct Baseline {
    /// The id by which configurations reference the baseline.
    pub id: String,
    /// Mean power in watts.
    pub watts: f64,
}

/// The value of [`Scenario::ladder`] if the outputs are unknown.
pub const UNKNOWN: &str = "unknown";

/// One scenario: a measurement of one configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scenario {
    /// The label `scenario`.
    pub name: String,
    /// Requested bitrate, `2500k` or `5M`.
    pub bitrate: String,
    /// Encoder, `libx264`; `none` without encoding.
    pub encoder: String,
    /// Preset of the encoder.
    pub preset: String,
    /// Resolution `WIDTHxHEIGHT`, as in the file.
    pub resolution: String,
    /// Requested frames per second.
    pub fps: Option<f64>,
    /// The outputs, if the file lists them.
    pub outputs: Vec<Output>,
    /// Concurrent streams.
    pub streams: Option<u32>,
    /// Number of viewers.
    pub viewers: Option<f64>,
    /// Duration in seconds, measured or else requested.
    pub duration: Option<f64>,
    /// Achieved frames per second.
    pub avg_fps: Option<f64>,
    /// Dropped frames.
    pub dropped_frames: Option<u64>,
    /// Encoded frames.
    pub total_frames: Option<u64>,
    /// Encoded pixels of all streams and outputs.
    pub pixels: Option<u64>,
    /// Bytes of output.
    pub bytes: Option<u64>,
    /// Seconds of encoded media of all streams.
    pub media_seconds: Option<f64>,
    /// Quality scores.
    pub quality: Quality,
    /// True if the scores belong to the configuration and all of its repeats share them.
    pub quality_is_shared: bool,
    /// Start of the window in unix seconds.
    pub start: Option<f64>,
    /// End of the window in unix seconds.
    pub end: Option<f64>,
    /// Samples of the runner.
    pub samples: Samples,
    /// Energy counters of the file.
    pub counters: Vec<EnergyReading>,
    /// CPU time of the file, in seconds.
    pub cpu_seconds: Option<f64>,
    /// CPUs that were reserved.
    pub reserved_cores: Option<f64>,
    /// Seconds for which a GPU was reserved.
    pub gpu_seconds: Option<f64>,
    /// Name or short id of the container that encoded.
    pub container: Option<String>,
    /// The host, if it differs from that of the run.
    pub host: Option<String>,
    /// The baseline that is subtracted.
    pub baseline: Option<Baseline>,
    /// Quality-of-experience score of the file, 1 to 5.
    pub file_qoe: Option<f64>,
    /// Index of the configuration that this scenario repeats; absent in files without repeats.
    pub configuration: Option<usize>,
    /// The axes of the configuration with their values as text; absent in files without axes.
    pub axes: Option<Arc<BTreeMap<String, String>>>,
    /// SHA-256 of the encoded source, in hexadecimal; empty if the file does not contain it.
    pub content_digest: String,
    /// True if the probe knew the idle power in the whole window, false if the energy of the
    /// container includes a part of the idle energy; absent if the file does not say.
    pub idle_known: Option<bool>,
}

impl Scenario {
    /// Length in seconds: the measured duration, else the length of the window.
    #[must_use]
    pub fn seconds(&self) -> Option<f64> {
        let positive = |seconds: &f64| *seconds > 0.0;
        self.duration.filter(positive).or_else(|| Some(self.end? - self.start?).filter(positive))
    }

    /// Start and end of the window whose energy is requested, in unix seconds. For a scenario that
    /// was queued before it ran, the start in the file is too early and is calculated from end and
    /// duration (defect 14 of the legacy exporters, which integrated over a whole day).
    #[must_use]
    pub fn window(&self) -> Option<(f64, f64)> {
        let (start, end) = (self.start?, self.end?);
        let length = end - start;
        let start = match self.duration {
            Some(duration) if duration > 0.0 && length > duration * 1.05 + 1.0 => end - duration,
            _ => start,
        };
        (end > start && start >= 0.0).then_some((start, end))
    }

    /// True for a scenario that measures the host without load: its name has the word `baseline` or
    /// `idle` and it encodes nothing. The name alone does not suffice, because H.264 has a baseline
    /// profile.
    #[must_use]
    pub fn is_baseline(&self) -> bool {
        let name = self.name.to_lowercase();
        let words: Vec<&str> = name.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
        // `baseline-2` and `baseline2` are numbered.
        let names_idle =
            |word: &&str| matches!(word.trim_end_matches(|c: char| c.is_ascii_digit()), "baseline" | "idle");
        words.iter().any(names_idle) && !names_encoding(&words) && !self.encodes()
    }

    /// True if any figure of the file is of encoded media.
    fn encodes(&self) -> bool {
        // An engine, or a class of encoders, is also stated where nothing was encoded.
        let encoder = self.encoder.trim().to_lowercase();
        let no_encoder = ["", "none", "n/a", "null", "auto", "ffmpeg", "gstreamer", "cpu", "gpu"];
        [self.total_frames, self.pixels, self.bytes].iter().flatten().any(|count| *count > 0)
            || self.media_seconds.is_some_and(|seconds| seconds > 0.0)
            || self.bits_per_second().is_some()
            || !no_encoder.contains(&&*encoder)
    }

    /// Bits per second of one stream, the sum of a comma-separated list; `None` for `0k`.
    #[must_use]
    pub fn bits_per_second(&self) -> Option<f64> {
        let sum = self.bitrate.split(',').map(parse_bitrate).sum::<Option<f64>>()?;
        (sum > 0.0).then_some(sum)
    }

    /// Width and height in pixels.
    #[must_use]
    pub fn size(&self) -> Option<(u32, u32)> {
        let (width, height) = self.resolution.trim().split_once(['x', 'X', '×'])?;
        Some((width.trim().parse().ok()?, height.trim().parse().ok()?))
    }

    /// Concurrent streams: from the file, else from the name (`4 streams @ 5000k`, `2_stream`,
    /// `single stream`).
    #[must_use]
    pub fn stream_count(&self) -> Option<u32> {
        self.streams.or_else(|| streams_in_name(&self.name))
    }

    /// The outputs, largest first. If the file lists none, resolution and frame rate are one
    /// output.
    #[must_use]
    pub fn ladder_outputs(&self) -> Vec<Output> {
        let mut outputs = self.outputs.clone();
        if outputs.is_empty()
            && let Some((width, height)) = self.size()
            && let Some(fps) = self.fps.or(self.avg_fps)
        {
            outputs.push(Output { width, height, fps });
        }
        outputs.sort_by_key(|output| std::cmp::Reverse((output.width, output.height)));
        outputs
    }

    /// The outputs as text, `1920x1080@30,1280x720@30`, or [`UNKNOWN`]. Scenarios with equal
    /// ladders are comparable.
    #[must_use]
    pub fn ladder(&self) -> String {
        let outputs = self.ladder_outputs();
        if outputs.is_empty() {
            return UNKNOWN.to_owned();
        }
        // Frame rates are rounded, so that 29.97 and 30 are equal. A label has no 300 digits.
        let rung = |output: &Output| format!("{}x{}@{:.0}", output.width, output.height, output.fps.clamp(0.0, 1e6));
        outputs.iter().map(rung).collect::<Vec<_>>().join(",")
    }

    /// The sum of the file's energy counters of a scope; `None` without any.
    #[must_use]
    pub fn stated(&self, scope: Scope) -> Option<Microjoules> {
        let mut counters = self.counters.iter().filter(|counter| counter.scope == scope).peekable();
        counters.peek()?;
        Some(counters.map(|counter| counter.joules).sum())
    }
}

/// Parses a bitrate in the notation of ffmpeg, `2500k`, `5M` or `800000`, to bits per second.
#[must_use]
pub fn parse_bitrate(text: &str) -> Option<f64> {
    let text = text.trim();
    let (digits, factor) = match text.chars().last()? {
        'k' | 'K' => (&text[..text.len() - 1], 1e3),
        'm' | 'M' => (&text[..text.len() - 1], 1e6),
        'g' | 'G' => (&text[..text.len() - 1], 1e9),
        _ => (text, 1.0),
    };
    digits.trim().parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate >= 0.0).map(|rate| rate * factor)
}

/// True if the words of a name, in lower case, say that something is encoded: a profile (`baseline
/// profile`, `constrained baseline`) or a codec.
fn names_encoding(words: &[&str]) -> bool {
    let codecs = ["264", "265", "avc", "hevc", "av1", "vp8", "vp9", "mpeg2", "mpeg4"];
    words.iter().any(|word| {
        let codec = word.trim_start_matches("lib").trim_start_matches(['h', 'x']);
        matches!(*word, "profile" | "constrained") || codecs.contains(word) || codecs.contains(&codec)
    })
}

/// The number before the word `stream` or `streams` of a name, or 1 for `single stream`.
///
/// It must stand by itself, with nothing but spaces, `-`, `_` or an opening bracket before it: that
/// of `1080p30-stream` is a frame rate, and that of `h264 stream` or `h-264 stream` a codec.
fn streams_in_name(name: &str) -> Option<u32> {
    let name = name.to_lowercase();
    name.match_indices("stream").find_map(|(at, word)| {
        let after = name[at + word.len()..].strip_prefix('s').unwrap_or(&name[at + word.len()..]);
        if after.starts_with(char::is_alphabetic) {
            // `streaming`, `streamer`
            return None;
        }
        let head = name[..at].trim_end_matches(is_separator);
        let rest = head.trim_end_matches(|c: char| c.is_ascii_digit());
        if rest.len() == head.len() {
            let before = head.strip_suffix("single")?;
            return (!before.ends_with(char::is_alphanumeric)).then_some(1);
        }
        let stands_alone = rest.chars().next_back().is_none_or(|c| is_separator(c) || matches!(c, '(' | '[' | '{'));
        let word_before = rest.trim_end_matches(is_separator).rsplit(|c: char| !c.is_alphanumeric()).next();
        if !stands_alone || word_before.is_some_and(|word| NUMBERED.contains(&word)) {
            return None;
        }
        head[rest.len()..].parse().ok().filter(|count| (1..=10_000).contains(count))
    })
}

/// Words whose number is a part of their name, or their value.
const NUMBERED: [&str; 12] = ["h", "x", "mpeg", "vp", "av", "ac", "crf", "cq", "qp", "level", "layer", "preset"];

fn is_separator(c: char) -> bool {
    matches!(c, ' ' | '-' | '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_count_is_read_from_the_name() {
        for (name, count) in [
            ("2 streams @ 2500k", Some(2)),
            ("4_streams", Some(4)),
            ("single stream @ 1500k", Some(1)),
            ("mixed streams", None),
            ("1080p 12-stream farm", Some(12)),
            ("baseline idle", None),
            ("0 streams", None),
            ("99999999999 streams", None),
            ("1080p30-streaming", None),
            ("1080p30 stream", None),
            ("720p 30-streaming", None),
            ("h264 stream", None),
            ("H.264 stream", None),
            ("h-264 stream", None),
            ("mpeg-4 stream", None),
            ("crf 23 stream", None),
            ("29.97 stream", None),
            ("x264 30000/1001 stream", None),
            ("x264 1M 30000/1001 fps 2 streams", Some(2)),
            ("streaming with 4 streams", Some(4)),
            ("h264 (4 streams)", Some(4)),
            ("h264-4-streams", Some(4)),
            ("4streams", Some(4)),
            ("single-stream", Some(1)),
        ] {
            assert_eq!(streams_in_name(name), count, "{name}");
        }
    }

    #[test]
    fn bitrates_have_the_notation_of_ffmpeg() {
        let rate = |text: &str| Scenario { bitrate: text.into(), ..Scenario::default() }.bits_per_second();
        for (text, bits) in [
            ("2500k", Some(2.5e6)),
            ("5M", Some(5e6)),
            ("0k", None),
            ("2500k,1M", Some(3.5e6)),
            ("128000", Some(128e3)),
            ("", None),
            ("fast", None),
            ("-1k", None),
            ("µ", None),
        ] {
            assert_eq!(rate(text), bits, "{text}");
        }
    }

    #[test]
    fn window_of_a_queued_scenario_starts_when_it_ran() {
        let scenario =
            |start, end, duration| Scenario { start: Some(start), end: Some(end), duration, ..Scenario::default() };
        assert_eq!(scenario(0.0, 123_841.0, Some(1.0)).window(), Some((123_840.0, 123_841.0)));
        assert_eq!(scenario(10.0, 130.4, Some(120.0)).window(), Some((10.0, 130.4)));
        assert_eq!(scenario(10.0, 20.0, None).window(), Some((10.0, 20.0)));
        assert_eq!(scenario(20.0, 10.0, None).window(), None);
        assert_eq!(scenario(20.0, 20.0, Some(0.0)).window(), None);
    }

    #[test]
    fn baseline_profile_is_not_a_baseline_scenario() {
        let named =
            |name: &str, bitrate: &str| Scenario { name: name.into(), bitrate: bitrate.into(), ..Scenario::default() };
        assert!(named("Baseline (Idle)", "0k").is_baseline());
        assert!(!named("x264 baseline profile 1M", "1M").is_baseline());
        let encodes = Scenario { total_frames: Some(300), ..named("baseline crf 23", "") };
        assert!(!encodes.is_baseline());
        for name in
            ["x264 baseline profile crf 23", "h264_baseline", "Constrained Baseline", "middle", "H.264 baseline"]
        {
            assert!(!named(name, "").is_baseline(), "{name}");
        }
        for name in ["baseline idle", "Baseline-2", "baseline1", "idle_host"] {
            assert!(named(name, "").is_baseline(), "{name}");
        }
        assert!(!Scenario { encoder: "libx264".into(), ..named("baseline", "") }.is_baseline());
        assert!(Scenario { encoder: "none".into(), ..named("baseline", "") }.is_baseline());
    }

    #[test]
    fn ladder_lists_outputs_from_the_largest() {
        let output = |width, height, fps| Output { width, height, fps };
        let outputs = vec![output(1280, 720, 30.0), output(1920, 1080, 29.97)];
        assert_eq!(Scenario { outputs, ..Scenario::default() }.ladder(), "1920x1080@30,1280x720@30");
        let one = Scenario { resolution: "640x360".into(), fps: Some(25.0), ..Scenario::default() };
        assert_eq!((one.ladder(), Scenario::default().ladder()), ("640x360@25".to_owned(), "unknown".to_owned()));
    }
}
