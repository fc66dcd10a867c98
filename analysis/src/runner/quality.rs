//! What pictures are worth: VMAF, PSNR, SSIM and XPSNR by the filters of an ffmpeg, after everything was measured. Frames are compared only when both sides have the same
//! number of them at the same times; every frame's score is kept, and what a score is called is what made it.

use std::{collections::BTreeMap, ffi::OsStr, fs, path::Path, thread, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    encode::{aside, stopped},
    tool::Tool,
};
use crate::statistics::{mean, quantile};

/// A score, pooled, or why there is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// `vmaf`, `psnr`, `ssim`, `xpsnr`.
    pub metric: String,
    /// 0 to 100, dB, 0 to 1, dB.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<f64>,
    /// What made it.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub model: String,
    /// Of the library, or of ffmpeg.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub version: String,
    /// `mean`, `harmonic_mean`, `p1`, `p5`, `min`.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub pooling: String,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unavailable: Option<String>,
}

/// What is asked for, and the filter that makes it.
const METRICS: [(&str, &str); 4] = [("vmaf", "libvmaf"), ("psnr", "psnr"), ("ssim", "ssim"), ("xpsnr", "xpsnr")];

/// The scores of every frame, by metric.
pub type Frames = BTreeMap<String, Vec<f64>>;

/// One thing to be scored.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// What was encoded.
    pub reference: &'a Path,
    /// What came out.
    pub distorted: &'a Path,
    /// Length of what was encoded; a shorter reference begins again.
    pub seconds: f64,
    /// Pixels.
    pub size: (u32, u32),
    /// Frames per second.
    pub fps: f64,
    /// `version=…` or `path=…`; empty for the library's own.
    pub model: &'a str,
    /// An ffmpeg that makes no progress for so long has hung.
    pub stall: Duration,
}

/// How many metrics a tool can give at all.
#[must_use]
pub fn able(tool: &Tool) -> usize {
    METRICS.iter().filter(|(_, filter)| tool.filters.contains(*filter)).count()
}

/// All four as not to be had.
#[must_use]
pub fn unavailable(why: &str) -> Vec<Scored> {
    METRICS.iter().map(|(metric, _)| none(metric, why)).collect()
}

fn none(metric: &str, why: &str) -> Scored {
    Scored {
        metric: metric.to_owned(),
        value: None,
        model: String::new(),
        version: String::new(),
        pooling: String::new(),
        unavailable: Some(why.to_owned()),
    }
}

/// Scores. The logs of the filters are written into `scratch`, and are ours to remove. Gives what was pooled, and every frame.
///
/// # Errors
/// When it was stopped.
pub fn score(asked: &Question<'_>, tool: &Tool, scratch: &Path) -> Result<(Vec<Scored>, Frames), String> {
    if let Err(why) = aligned(asked, tool, scratch) {
        return if stopped() { Err("stopped".to_owned()) } else { Ok((unavailable(&why), Frames::new())) };
    }
    let there: Vec<(&str, &str)> = METRICS.into_iter().filter(|(_, filter)| tool.filters.contains(*filter)).collect();
    let mut frames = Frames::new();
    let mut failed: BTreeMap<&str, String> = BTreeMap::new();
    let mut versions: BTreeMap<&str, (String, String)> = BTreeMap::new();
    for (metric, filter) in there {
        let log = scratch.join(format!("{metric}.log"));
        match one(asked, tool, metric, filter, &log) {
            Ok((scores, made_by)) => {
                frames.insert(metric.to_owned(), scores);
                versions.insert(metric, made_by);
            }
            Err(_) if stopped() => return Err("stopped".to_owned()),
            Err(why) => {
                failed.insert(metric, why);
            }
        }
        let _ = fs::remove_file(&log);
    }
    let mut all = Vec::new();
    for (metric, filter) in METRICS {
        let Some(scores) = frames.get(metric) else {
            let absent = format!(
                "ffmpeg {} has no filter {filter}; the builds of the Python package imageio-ffmpeg and of BtbN have it (--quality-ffmpeg)",
                tool.version
            );
            all.push(none(metric, failed.get(metric).unwrap_or(&absent)));
            continue;
        };
        let (model, version) = versions.remove(metric).unwrap_or_default();
        for (pooling, value) in pools(scores) {
            all.push(Scored {
                metric: metric.to_owned(),
                value: Some(value),
                model: model.clone(),
                version: version.clone(),
                pooling: pooling.to_owned(),
                unavailable: None,
            });
        }
    }
    Ok((all, frames))
}

/// Mean, harmonic mean as libvmaf has it (one is added before and taken off after, so that a frame of nothing is no infinity), and what the worst frames are.
fn pools(scores: &[f64]) -> Vec<(&'static str, f64)> {
    let inverse: Vec<f64> = scores.iter().map(|score| 1.0 / (score + 1.0)).collect();
    [
        ("mean", mean(scores)),
        ("harmonic_mean", mean(&inverse).map(|mean| 1.0 / mean - 1.0)),
        ("p1", quantile(scores, 0.01)),
        ("p5", quantile(scores, 0.05)),
        ("min", quantile(scores, 0.0)),
    ]
    .into_iter()
    .filter_map(|(pooling, value)| Some((pooling, value?)))
    .collect()
}

/// Runs one filter over both, and reads what it wrote of every frame. Gives the scores with what made them.
fn one(
    asked: &Question<'_>,
    tool: &Tool,
    metric: &str,
    filter: &str,
    log: &Path,
) -> Result<(Vec<f64>, (String, String)), String> {
    let (width, height) = asked.size;
    // Frame by frame, by number: both sides were seen to have the same ones at the same times. By time, a file that keeps whole milliseconds lays every other frame
    // beside the one before it, and loses 20 points of VMAF and more (ab-av1#63, vmaf#611).
    let fps = asked.fps;
    let (width, height) = if metric == "vmaf" { seen(width, height, asked.model) } else { (width, height) };
    let same = format!("settb=AVTB,setpts=N/({fps}*TB),scale={width}:{height}:flags=bicubic,format=yuv420p");
    let threads = thread::available_parallelism().map_or(1, usize::from);
    // The log's name stands in a filter's argument, where these mean something; ours has none of them, unless the directory has.
    let path = log.display().to_string();
    if path.contains(['\'', ':', '\\', ',', ';', '[', ']', '=']) {
        return Err(format!("{path}: a name with such signs cannot be given to a filter; choose another --output-dir"));
    }
    let options = match metric {
        "vmaf" => {
            let model = if asked.model.is_empty() {
                String::new()
            } else {
                format!(":model={}", asked.model.replace(':', "\\\\:"))
            };
            format!("log_path={path}:log_fmt=json:n_threads={threads}{model}:shortest=1")
        }
        _ => format!("stats_file={path}:shortest=1"),
    };
    let graph = format!("[0:v]{same}[a];[1:v]{same}[b];[a][b]{filter}={options}");
    let length = asked.seconds.to_string();
    let mut args = vec![OsStr::new("-i"), asked.distorted.as_os_str()];
    args.extend(["-stream_loop", "-1", "-t", &length, "-i"].map(OsStr::new));
    args.push(asked.reference.as_os_str());
    args.extend(["-filter_complex", &graph, "-f", "null", "-"].map(OsStr::new));
    aside(&tool.path, &args, asked.stall).map_err(|why| format!("{filter}: {why}"))?;
    let text = fs::read_to_string(log).map_err(|error| format!("{filter} wrote no log: {error}"))?;
    let found = match metric {
        "vmaf" => of_libvmaf(&text, asked.model)?,
        _ => (of_lines(&text, metric), (filter.to_owned(), format!("ffmpeg {}", tool.version))),
    };
    // A frame that a decoder leaves out would move all that follow, and a side that is short would end the log.
    let (there, wanted) = (found.0.len(), frames_in(asked));
    if crate::figures::float(u64::try_from(there).unwrap_or(u64::MAX)) == wanted {
        Ok(found)
    } else {
        Err(format!("misaligned: {there} of {wanted} frames were scored"))
    }
}

/// How many frames went in.
fn frames_in(asked: &Question<'_>) -> f64 {
    (asked.seconds * asked.fps).round()
}

/// The size at which a model sees pictures: its own, as far as their shape allows. Models are of a screen, 1080 or 2160 lines high, from three of its heights away; smaller
/// pictures fill it, as they do when they are watched (Netflix/vmaf, resource/doc/models.md and faq.md).
fn seen(width: u32, height: u32, model: &str) -> (u32, u32) {
    let lines = if ["4k", "2160"].iter().any(|word| model.contains(word)) { 2160.0 } else { 1080.0 };
    let (long, short) = (f64::from(width.max(height)), f64::from(width.min(height)));
    let by = (lines * 16.0 / 9.0 / long).min(lines / short);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "pixels of a screen")]
    let even = |pixels: u32| ((f64::from(pixels) * by / 2.0).round() as u32 * 2).max(2);
    (even(width), even(height))
}

/// The log of libvmaf: a score for each frame, and its version.
///
/// # Errors
/// When it is no such log.
pub fn of_libvmaf(text: &str, model: &str) -> Result<(Vec<f64>, (String, String)), String> {
    #[derive(Deserialize)]
    struct Log {
        version: String,
        frames: Vec<Frame>,
    }
    #[derive(Deserialize)]
    struct Frame {
        metrics: BTreeMap<String, f64>,
    }
    let log: Log = serde_json::from_str(text).map_err(|error| format!("the log of libvmaf: {error}"))?;
    let scores = log.frames.iter().map(|frame| frame.metrics.get("vmaf").copied()).collect::<Option<Vec<_>>>();
    let scores = scores.ok_or("the log of libvmaf has a frame without a score")?;
    // What the filter takes without a model (vf_libvmaf.c).
    let name = if model.is_empty() { "version=vmaf_v0.6.1" } else { model };
    let name = name.strip_prefix("version=").or_else(|| name.strip_prefix("path=")).unwrap_or(name);
    Ok((scores, (name.to_owned(), log.version)))
}

/// The log of psnr, ssim or xpsnr: a line for each frame. Identical pictures have no finite PSNR; 100 dB stands for it, which no two that differ reach.
#[must_use]
pub fn of_lines(text: &str, metric: &str) -> Vec<f64> {
    let value = |line: &str| -> Option<f64> {
        let after = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned);
        let number = |text: &str| {
            if text == "inf" { Some(100.0) } else { text.parse::<f64>().ok().filter(|value| value.is_finite()) }
        };
        match metric {
            "psnr" => number(&after("psnr_avg:")?).map(|value| value.min(100.0)),
            "ssim" => number(&after("All:")?),
            // n: 1  XPSNR y: 37.0  XPSNR u: 40.1  XPSNR v: 40.0. The planes are weighted 6:1:1, as their PSNR usually is for 4:2:0.
            _ => {
                if !line.starts_with("n:") {
                    return None;
                }
                let words: Vec<&str> = line.split_whitespace().collect();
                let plane =
                    |name: &str| words.iter().position(|word| *word == name).and_then(|at| number(words.get(at + 1)?));
                Some(((6.0 * plane("y:")? + plane("u:")? + plane("v:")?) / 8.0).min(100.0))
            }
        }
    };
    text.lines().filter_map(value).collect()
}

/// True when both sides have the same frames at the same times: by their packets, which is quick, and says so when not.
fn aligned(asked: &Question<'_>, tool: &Tool, scratch: &Path) -> Result<(), String> {
    let distorted = times(asked.distorted, tool, scratch, asked.stall)?;
    let wanted = frames_in(asked);
    if distorted.is_empty() {
        return Err("nothing in it can be shown".to_owned());
    }
    let count = f64::from(u32::try_from(distorted.len()).unwrap_or(u32::MAX));
    if (count - wanted).abs() > 0.5 {
        return Err(format!("misaligned: {count} frames came out of {wanted} that went in"));
    }
    for (at, time) in (0u32..).zip(&distorted) {
        let off = time - distorted[0] - f64::from(at) / asked.fps;
        if off.abs() > 0.5 / asked.fps {
            return Err(format!("misaligned: frame {at} is {off:+.3} s off"));
        }
    }
    Ok(())
}

/// How many frames a file has. They are listed in `scratch` meanwhile.
///
/// # Errors
/// When it cannot be read.
pub fn count(file: &Path, tool: &Tool, scratch: &Path, stall: Duration) -> Result<usize, String> {
    times(file, tool, scratch, stall).map(|times| times.len())
}

/// When each frame of a file is shown, in order, in seconds; packets are read, not decoded.
fn times(file: &Path, tool: &Tool, scratch: &Path, stall: Duration) -> Result<Vec<f64>, String> {
    let said = |error: String| format!("{}: {error}", file.display());
    let listing = scratch.join("frames.log");
    let mut args = vec![OsStr::new("-y"), OsStr::new("-i"), file.as_os_str()];
    args.extend(["-map", "0:v:0", "-c", "copy", "-f", "framecrc"].map(OsStr::new));
    args.push(listing.as_os_str());
    let text =
        aside(&tool.path, &args, stall).and_then(|()| fs::read_to_string(&listing).map_err(|error| error.to_string()));
    let _ = fs::remove_file(&listing);
    of_framecrc(&text.map_err(said)?)
}

/// The times of a listing of frames, in order.
///
/// # Errors
/// When it is no such listing.
pub fn of_framecrc(text: &str) -> Result<Vec<f64>, String> {
    let mut unit = None;
    let mut all = Vec::new();
    for line in text.lines() {
        if let Some(base) = line.strip_prefix("#tb 0: ") {
            let (above, below) = base.split_once('/').ok_or("a listing of frames without a unit of time")?;
            let parts = above.trim().parse::<f64>().ok().zip(below.trim().parse::<f64>().ok());
            unit = parts.filter(|(above, below)| *above > 0.0 && *below > 0.0).map(|(above, below)| above / below);
        } else if !line.starts_with('#') && !line.trim().is_empty() {
            // stream, dts, pts, duration, size, checksum
            let shown = line.split(',').nth(2).and_then(|pts| pts.trim().parse::<f64>().ok());
            all.push(shown.zip(unit).map(|(pts, unit)| pts * unit).ok_or("a listing of frames that is none")?);
        }
    }
    all.sort_by(f64::total_cmp);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_the_filters_are_read_frame_by_frame() {
        let psnr =
            "n:1 mse_avg:0.52 mse_y:0.61 psnr_avg:50.95 psnr_y:50.30\nn:2 mse_avg:0.00 psnr_avg:inf psnr_y:inf\n";
        assert_eq!(of_lines(psnr, "psnr"), [50.95, 100.0]);
        let ssim = "n:1 Y:0.998 U:0.997 V:0.996 All:0.997500 (26.020600)\n";
        assert_eq!(of_lines(ssim, "ssim"), [0.9975]);
        let xpsnr = "n:    1  XPSNR y: 40.0000  XPSNR u: 44.0000  XPSNR v: 44.0000\nXPSNR average, 1 frames  y: 40.0000  u: 44.0000  v: 44.0000  (minimum: 40.0000)\n";
        assert_eq!(of_lines(xpsnr, "xpsnr"), [41.0]);
        let vmaf = r#"{"version":"3.0.0","fps":1,"frames":[{"frameNum":0,"metrics":{"vmaf":91.5}},{"frameNum":1,"metrics":{"vmaf":93.5}}]}"#;
        let (scores, made_by) = of_libvmaf(vmaf, "").unwrap();
        assert_eq!((scores, made_by), (vec![91.5, 93.5], ("vmaf_v0.6.1".to_owned(), "3.0.0".to_owned())));
        assert_eq!(of_libvmaf(vmaf, "version=vmaf_4k_v0.6.1").unwrap().1.0, "vmaf_4k_v0.6.1");
        assert!(
            of_libvmaf("{}", "").is_err() && of_libvmaf(r#"{"version":"3","frames":[{"metrics":{}}]}"#, "").is_err()
        );
    }

    #[test]
    fn a_model_sees_its_own_screen() {
        assert_eq!(seen(640, 360, ""), (1920, 1080));
        assert_eq!(seen(3840, 2160, ""), (1920, 1080));
        assert_eq!(seen(1280, 720, "version=vmaf_4k_v0.6.1"), (3840, 2160));
        assert_eq!(
            (seen(854, 480, ""), seen(640, 480, ""), seen(720, 1280, "")),
            ((1920, 1080), (1440, 1080), (1080, 1920))
        );
        assert_eq!(seen(1920, 800, ""), (1920, 800));
    }

    #[test]
    fn pools_are_those_of_libvmaf_and_of_the_worst_frames() {
        let pooled: BTreeMap<_, _> = pools(&[90.0, 80.0, 0.0, 100.0]).into_iter().collect();
        assert_eq!((pooled["mean"], pooled["min"]), (67.5, 0.0));
        // 4 / (1/91 + 1/81 + 1/1 + 1/101) - 1
        assert!((pooled["harmonic_mean"] - 2.871_5).abs() < 1e-3, "{pooled:?}");
        assert!(pooled["p1"] < pooled["p5"] && pooled["p5"] < 80.0);
    }

    #[test]
    fn frames_are_put_in_the_order_in_which_they_are_shown() {
        let listing = "#software: Lavf\n#tb 0: 1/1000\n0, 0, 0, 33, 10, 0xab\n0, 33, 100, 33, 10, 0xab\n0, 67, 33, 33, 10, 0xab\n";
        assert_eq!(of_framecrc(listing).unwrap(), [0.0, 0.033, 0.1]);
        assert!(of_framecrc("0, 0, 0\n").is_err() && of_framecrc("#tb 0: 1/0\n0, 0, 0\n").is_err());
        assert!(of_framecrc("").unwrap().is_empty());
    }
}
