//! The model of a run that every page is made from.
//!
//! A run is one result file; a scenario is one measured configuration in it. Every field may be missing, and a missing one is not
//! zero. What the file says stays beside it, as it was read: nothing of a file is lost by being understood.

use std::sync::Arc;

use exporter::units::Microjoules;
use serde_json::{Map, Value};

use crate::energy::{Joules, Scope};

/// One result file, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The time in the file's name, `YYYYMMDD_HHMMSS`: the label `run`.
    pub id: String,
    /// Which of the known shapes the file has.
    pub variant: Variant,
    /// The host that it ran on, where the file says so.
    pub host: Option<String>,
    /// In the order of the file, each label set once.
    pub scenarios: Vec<Scenario>,
    /// Rows that could not be read: which, and why.
    pub problems: Vec<String>,
    /// Everything beside the scenarios, as read.
    pub rest: Map<String, Value>,
}

/// The shapes of result files (`docs/results-schema.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Of the Python runner: `encoder`, `preset`, `fps`, `outputs`, and a `test_date` in local time.
    A,
    /// Of the first exporters' sample: `encoder_type`, `avg_fps`, samples of power.
    B,
    /// Of the scheduler: `test_metadata`, one mean of the power instead of samples, a start that is the time of queueing.
    C,
    /// Our own, with counters instead of samples.
    V2,
}

impl Variant {
    /// As a label.
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
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Frames per second.
    pub fps: f64,
}

/// A quality score and how it was made; scores of two models are not to be compared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    /// VMAF 0 to 100, PSNR in dB, SSIM 0 to 1.
    pub value: f64,
    /// `vmaf_v0.6.1`; empty where the file does not say.
    pub model: String,
    /// Of the library.
    pub version: String,
    /// `mean`, `harmonic_mean`, …
    pub pooling: String,
}

/// What a picture is worth.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quality {
    /// 0 to 100.
    pub vmaf: Option<Score>,
    /// In dB.
    pub psnr: Option<Score>,
    /// 0 to 1.
    pub ssim: Option<Score>,
}

/// Power and CPU use at equal distances.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    /// Seconds between two of them.
    pub step: Option<f64>,
    /// Watts of the host.
    pub watts: Vec<f64>,
    /// CPUs busy.
    pub cores: Vec<f64>,
}

/// Mean power without load.
#[derive(Clone, Debug, PartialEq)]
pub struct Baseline {
    /// What cells call it.
    pub id: String,
    /// Watts.
    pub watts: f64,
}

/// The outputs of a scenario of which nobody says them.
pub const UNKNOWN: &str = "unknown";

/// One scenario.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scenario {
    /// The label `scenario`.
    pub name: String,
    /// As it was asked for: `2500k`, `5M`.
    pub bitrate: String,
    /// The encoder: `libx264`, `none`.
    pub encoder: String,
    /// Of the encoder.
    pub preset: String,
    /// `WIDTHxHEIGHT`, as the file has it.
    pub resolution: String,
    /// Frames per second that were asked for.
    pub fps: Option<f64>,
    /// Where there are several, or the file lists them.
    pub outputs: Vec<Output>,
    /// Streams at once.
    pub streams: Option<u32>,
    /// People who watched.
    pub viewers: Option<f64>,
    /// Seconds, measured or else asked for.
    pub duration: Option<f64>,
    /// Frames per second that were reached.
    pub avg_fps: Option<f64>,
    /// Frames lost.
    pub dropped_frames: Option<u64>,
    /// Frames encoded.
    pub total_frames: Option<u64>,
    /// Pixels encoded, all streams and outputs.
    pub pixels: Option<u64>,
    /// Bytes written.
    pub bytes: Option<u64>,
    /// Seconds of media encoded, all streams.
    pub media_seconds: Option<f64>,
    /// What the pictures are worth.
    pub quality: Quality,
    /// True where those scores are the configuration's, and not of this repeat alone: one measurement, however often it was run.
    pub quality_is_shared: bool,
    /// Start of the window in unix seconds.
    pub start: Option<f64>,
    /// End of the window in unix seconds.
    pub end: Option<f64>,
    /// What the runner sampled.
    pub samples: Samples,
    /// Joules that the file brings.
    pub counters: Vec<Joules>,
    /// CPU seconds that the file brings.
    pub cpu_seconds: Option<f64>,
    /// CPUs that were kept for it.
    pub reserved_cores: Option<f64>,
    /// Seconds that it kept a GPU.
    pub gpu_seconds: Option<f64>,
    /// The container that did the work, by name or short id, where the runner knew it.
    pub container: Option<String>,
    /// The host that it ran on, where it is not the run's.
    pub host: Option<String>,
    /// The mean power that is to be taken off.
    pub baseline: Option<Baseline>,
    /// A score on a scale of 1 to 5 that the file brings.
    pub file_qoe: Option<f64>,
    /// Which cell of the file it repeats, where the file has repeats.
    pub cell: Option<usize>,
    /// The row, as read; repeats of a cell share it.
    pub raw: Arc<Map<String, Value>>,
}

impl Scenario {
    /// Length in seconds: as measured, else as the window says.
    #[must_use]
    pub fn seconds(&self) -> Option<f64> {
        let positive = |seconds: &f64| *seconds > 0.0;
        self.duration.filter(positive).or_else(|| Some(self.end? - self.start?).filter(positive))
    }

    /// The window whose joules can be asked for, in unix seconds. Where a scenario was queued before it ran, its start is too early,
    /// and its end and duration are what is known: defect 14 of the replaced exporters, which took a day for a second.
    #[must_use]
    pub fn window(&self) -> Option<(f64, f64)> {
        let (start, end) = (self.start?, self.end?);
        let asked = end - start;
        let start = match self.duration {
            Some(ran) if ran > 0.0 && asked > ran * 1.05 + 1.0 => end - ran,
            _ => start,
        };
        (end > start && start >= 0.0).then_some((start, end))
    }

    /// True for the scenario that measures the host without load: it is called so, and encodes nothing. H.264 has a profile of that name.
    #[must_use]
    pub fn is_baseline(&self) -> bool {
        let name = self.name.to_lowercase();
        let named = name.contains("baseline") || name.contains("idle");
        named && self.total_frames.unwrap_or(0) == 0 && self.bits_per_second().is_none()
    }

    /// Bits per second of one stream: `2500k`, `5M`, and the sum of a list. Nothing for `0k`.
    #[must_use]
    pub fn bits_per_second(&self) -> Option<f64> {
        let sum = self.bitrate.split(',').map(bits).sum::<Option<f64>>()?;
        (sum > 0.0).then_some(sum)
    }

    /// Width and height.
    #[must_use]
    pub fn size(&self) -> Option<(u32, u32)> {
        let (width, height) = self.resolution.trim().split_once(['x', 'X', '×'])?;
        Some((width.trim().parse().ok()?, height.trim().parse().ok()?))
    }

    /// Streams at once: as the file says, else as the name does (`4 streams @ 5000k`, `2_stream`, `single stream`).
    #[must_use]
    pub fn stream_count(&self) -> Option<u32> {
        self.streams.or_else(|| streams_of(&self.name))
    }

    /// The outputs, the largest first; one that is made of resolution and rate where the file lists none.
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

    /// Which scenarios are comparable: `1920x1080@30,1280x720@30`, or `unknown`.
    #[must_use]
    pub fn ladder(&self) -> String {
        let outputs = self.ladder_outputs();
        if outputs.is_empty() {
            return UNKNOWN.to_owned();
        }
        // 29.97 and 30 are one rung.
        let rung = |output: &Output| format!("{}x{}@{:.0}", output.width, output.height, output.fps);
        outputs.iter().map(rung).collect::<Vec<_>>().join(",")
    }

    /// The energy that the file states, by scope.
    #[must_use]
    pub fn stated(&self, scope: Scope) -> Option<Microjoules> {
        let mut all = self.counters.iter().filter(|row| row.scope == scope).peekable();
        all.peek()?;
        Some(all.map(|row| row.joules).sum())
    }
}

/// Bits per second of `2500k`, `5M` or `800000`, as ffmpeg takes them; nothing of anything else.
#[must_use]
pub fn bits(text: &str) -> Option<f64> {
    let text = text.trim();
    let (digits, factor) = match text.chars().last()? {
        'k' | 'K' => (&text[..text.len() - 1], 1e3),
        'm' | 'M' => (&text[..text.len() - 1], 1e6),
        'g' | 'G' => (&text[..text.len() - 1], 1e9),
        _ => (text, 1.0),
    };
    digits.trim().parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate >= 0.0).map(|rate| rate * factor)
}

/// The number before the first `stream`, or one for `single`.
fn streams_of(name: &str) -> Option<u32> {
    let name = name.to_lowercase();
    let at = name.find("stream")?;
    let head = name[..at].trim_end_matches([' ', '-', '_']);
    let digits = head.len() - head.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    if digits > 0 {
        return head[head.len() - digits..].parse().ok().filter(|count| (1..=10_000).contains(count));
    }
    head.ends_with("single").then_some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_counted_by_what_the_name_says() {
        for (name, count) in [
            ("2 streams @ 2500k", Some(2)),
            ("4_streams", Some(4)),
            ("single stream @ 1500k", Some(1)),
            ("mixed streams", None),
            ("1080p 12-stream farm", Some(12)),
            ("baseline idle", None),
            ("0 streams", None),
            ("99999999999 streams", None),
        ] {
            assert_eq!(streams_of(name), count, "{name}");
        }
    }

    #[test]
    fn bitrates_are_read_as_ffmpeg_writes_them() {
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
    fn a_start_that_is_the_time_of_queueing_is_not_the_window() {
        let scenario =
            |start, end, duration| Scenario { start: Some(start), end: Some(end), duration, ..Scenario::default() };
        assert_eq!(scenario(0.0, 123_841.0, Some(1.0)).window(), Some((123_840.0, 123_841.0)));
        assert_eq!(scenario(10.0, 130.4, Some(120.0)).window(), Some((10.0, 130.4)));
        assert_eq!(scenario(10.0, 20.0, None).window(), Some((10.0, 20.0)));
        assert_eq!(scenario(20.0, 10.0, None).window(), None);
        assert_eq!(scenario(20.0, 20.0, Some(0.0)).window(), None);
    }

    #[test]
    fn a_profile_is_no_host_without_load() {
        let named =
            |name: &str, bitrate: &str| Scenario { name: name.into(), bitrate: bitrate.into(), ..Scenario::default() };
        assert!(named("Baseline (Idle)", "0k").is_baseline());
        assert!(!named("x264 baseline profile 1M", "1M").is_baseline());
        let encodes = Scenario { total_frames: Some(300), ..named("baseline crf 23", "") };
        assert!(!encodes.is_baseline());
    }

    #[test]
    fn a_ladder_is_its_outputs_from_the_largest_on() {
        let output = |width, height, fps| Output { width, height, fps };
        let outputs = vec![output(1280, 720, 30.0), output(1920, 1080, 29.97)];
        assert_eq!(Scenario { outputs, ..Scenario::default() }.ladder(), "1920x1080@30,1280x720@30");
        let one = Scenario { resolution: "640x360".into(), fps: Some(25.0), ..Scenario::default() };
        assert_eq!((one.ladder(), Scenario::default().ladder()), ("640x360@25".to_owned(), "unknown".to_owned()));
    }
}
