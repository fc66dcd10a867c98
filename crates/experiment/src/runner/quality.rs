//! Quality scores: VMAF, PSNR, SSIM and XPSNR, computed with ffmpeg's filters after all
//! measurements. Frames are compared only if both videos have the same number of frames at the same
//! times. The scores of all frames are kept.

use std::{collections::BTreeMap, ffi::OsStr, fs, path::Path, thread, time::Duration};

use serde::{Deserialize, Serialize};

use super::{frame_rate::FrameRate, process::run_ffmpeg, signals::stop_requested, tool::Tool};
use statistics::{inference::Interval, mean, quantile};

/// A pooled score, or why it is unavailable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PooledScore {
    /// `vmaf`, `psnr`, `ssim`, `xpsnr`.
    pub metric: String,
    /// 0 to 100 for VMAF, dB for PSNR and XPSNR, 0 to 1 for SSIM.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<f64>,
    /// VMAF model or filter.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub model: String,
    /// Version of libvmaf or ffmpeg.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub version: String,
    /// `mean`, `mean_mse` (PSNR), `square_mean_root` (XPSNR), `harmonic_mean`, `p1`, `p5`, `min`.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub pooling: String,
    /// 95 % interval of the value over the pieces of a live stream; absent for a whole file and
    /// for a single piece.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ci95: Option<[f64; 2]>,
    /// Number of pieces of a live stream that were scored; absent for a whole file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pieces: Option<u32>,
    /// Why there is no score.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unavailable: Option<String>,
}

/// The metrics and the filters that compute them.
const METRICS: [(&str, &str); 4] = [("vmaf", "libvmaf"), ("psnr", "psnr"), ("ssim", "ssim"), ("xpsnr", "xpsnr")];

/// PSNR and XPSNR of a frame that is identical to the source, in dB: infinite, which JSON cannot
/// hold. It stands for "at least", and is never added to other frames' values.
const IDENTICAL: f64 = 100.0;

/// Decibels for ten times the mean squared error, of which PSNR is the logarithm, and for ten times
/// its root, of which XPSNR is.
const PSNR_SCALE: f64 = 10.0;
const XPSNR_SCALE: f64 = 20.0;

/// Scores of all frames, by metric.
pub type Frames = BTreeMap<String, Vec<f64>>;

/// What to score.
#[derive(Clone, Debug)]
pub struct ScoreRequest<'a> {
    /// The source clip, repeated up to the duration.
    pub reference: &'a Path,
    /// The encoded video.
    pub distorted: &'a Path,
    /// Duration of the encoded video.
    pub seconds: f64,
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// Frames per second.
    pub fps: f64,
    /// VMAF model, `version=…` or `path=…`; empty for the default.
    pub model: &'a str,
    /// Time without progress after which ffmpeg is stopped.
    pub stall: Duration,
}

/// Number of metrics for which a tool has the filter.
#[must_use]
pub fn supported_metrics(tool: &Tool) -> usize {
    METRICS.iter().filter(|(_, filter)| tool.filters.contains(*filter)).count()
}

/// All metrics as unavailable.
#[must_use]
pub fn all_unavailable(why: &str) -> Vec<PooledScore> {
    METRICS.iter().map(|(metric, _)| unavailable(metric, why)).collect()
}

fn unavailable(metric: &str, why: &str) -> PooledScore {
    PooledScore {
        metric: metric.to_owned(),
        value: None,
        model: String::new(),
        version: String::new(),
        pooling: String::new(),
        ci95: None,
        pieces: None,
        unavailable: Some(why.to_owned()),
    }
}

/// The pooled scores of a metric with the frames' scores, or that it is infinite.
fn pooled_scores(metric: &str, scores: &[f64], model: &str, version: &str) -> Vec<PooledScore> {
    let made_by = |score: PooledScore| PooledScore { model: model.to_owned(), version: version.to_owned(), ..score };
    let pooled = pool(metric, scores);
    if pooled.is_empty() {
        return vec![made_by(unavailable(metric, "infinite: every frame is identical to the source"))];
    }
    let row = |(pooling, value): (&str, f64)| {
        made_by(PooledScore {
            value: Some(value),
            pooling: pooling.to_owned(),
            unavailable: None,
            ..unavailable(metric, "")
        })
    };
    pooled.into_iter().map(row).collect()
}

/// Computes all metrics. Logs of the filters go to `scratch` and are removed. Returns the pooled
/// scores and those of all frames.
///
/// # Errors
/// When a stop is requested.
pub fn score(request: &ScoreRequest<'_>, tool: &Tool, scratch: &Path) -> Result<(Vec<PooledScore>, Frames), String> {
    if let Err(why) = check_alignment(request, tool, scratch) {
        return if stop_requested() { Err("stopped".to_owned()) } else { Ok((all_unavailable(&why), Frames::new())) };
    }
    let supported = METRICS.into_iter().filter(|(_, filter)| tool.filters.contains(*filter));
    let mut frames = Frames::new();
    let mut failed: BTreeMap<&str, String> = BTreeMap::new();
    let mut versions: BTreeMap<&str, (String, String)> = BTreeMap::new();
    for (metric, filter) in supported {
        let log = scratch.join(format!("{metric}.log"));
        match run_filter(request, tool, metric, filter, &log) {
            Ok((scores, scored_by)) => {
                frames.insert(metric.to_owned(), scores);
                versions.insert(metric, scored_by);
            }
            Err(_) if stop_requested() => return Err("stopped".to_owned()),
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
                "ffmpeg {} has no filter {filter}; set an ffmpeg that has it with --quality-ffmpeg, for example from the Python package imageio-ffmpeg or from BtbN",
                tool.version
            );
            all.push(unavailable(metric, failed.get(metric).unwrap_or(&absent)));
            continue;
        };
        let (model, version) = versions.remove(metric).unwrap_or_default();
        all.extend(pooled_scores(metric, scores, &model, &version));
    }
    Ok((all, frames))
}

/// Combines the scores of equally long pieces to those of a video, with the interval of the value
/// over the pieces. The first `lead` frames of each piece are left out. A metric that one of the
/// pieces lacks is unavailable.
///
/// Neighbouring frames have similar scores, so that an interval over frames would be too narrow: a
/// piece is one value.
#[must_use]
pub fn combine(pieces: &[(Vec<PooledScore>, Frames)], lead: usize) -> (Vec<PooledScore>, Frames) {
    let (mut all, mut frames) = (Vec::new(), Frames::new());
    let count = u32::try_from(pieces.len()).ok();
    for (metric, _) in METRICS {
        let rows: Vec<_> = pieces.iter().map(|(pooled, _)| pooled.iter().find(|row| row.metric == metric)).collect();
        let of_metric = pieces.iter().filter_map(|(_, frames)| frames.get(metric)?.get(lead..));
        let each: Vec<&[f64]> = of_metric.filter(|part| !part.is_empty()).collect();
        if each.len() < pieces.len() {
            let why = rows.iter().flatten().find_map(|row| row.unavailable.as_deref());
            all.push(unavailable(metric, why.unwrap_or("a piece has no score")));
            continue;
        }
        let (model, version) =
            rows.iter().flatten().next().map_or(("", ""), |row| (row.model.as_str(), row.version.as_str()));
        let joined = each.concat();
        let mut pooled = pooled_scores(metric, &joined, model, version);
        pooled.iter_mut().for_each(|row| row.pieces = count);
        if let Some(first) = pooled.first_mut() {
            first.ci95 = first.value.and_then(|_| interval_over(metric, &each));
        }
        all.extend(pooled);
        frames.insert(metric.to_owned(), joined);
    }
    (all, frames)
}

/// 95 % interval of the first pooled score over equally long pieces, by Student's t. That of
/// decibels is the interval of the mean distortion, and has no bound if the distortion may be zero.
fn interval_over(metric: &str, pieces: &[&[f64]]) -> Option<[f64; 2]> {
    let first = |piece: &&[f64]| pool(metric, piece).first().map(|(_, value)| *value);
    let scale = match metric {
        "psnr" => PSNR_SCALE,
        "xpsnr" => XPSNR_SCALE,
        _ => {
            let values = pieces.iter().map(first).collect::<Option<Vec<f64>>>()?;
            let (low, high) = Interval::of(&values)?.bounds();
            return Some([low, high]);
        }
    };
    let distortion = |piece: &&[f64]| first(piece).map_or(0.0, |value| 10.0_f64.powf(-value / scale));
    let (low, high) = Interval::of(&pieces.iter().map(distortion).collect::<Vec<_>>())?.bounds();
    let bounds = [-scale * high.log10(), -scale * low.log10()];
    bounds.iter().all(|bound| bound.is_finite()).then_some(bounds)
}

/// Pooled scores of the frames of a metric, by the names of [`PooledScore::pooling`]; the first is
/// the score of the video. Only finite values are returned.
#[must_use]
pub fn pool(metric: &str, scores: &[f64]) -> Vec<(&'static str, f64)> {
    match metric {
        "psnr" => pool_decibels(scores, "mean_mse", PSNR_SCALE),
        "xpsnr" => pool_decibels(scores, "square_mean_root", XPSNR_SCALE),
        _ => pool_linear(scores),
    }
}

/// Pooled decibels: those of the mean distortion, of its high percentiles and of its maximum. A
/// mean of decibels would hide bad frames behind good ones, and an identical frame, which has no
/// distortion, would make it infinite.
///
/// The distortion of PSNR is the mean squared error, as in the average that ffmpeg prints
/// (`get_psnr` in libavfilter/vf_psnr.c); that of XPSNR is its square root (`get_avg_xpsnr` in
/// vf_xpsnr.c). Both are relative to the largest sample value.
fn pool_decibels(scores: &[f64], name: &'static str, scale: f64) -> Vec<(&'static str, f64)> {
    let distortion = |score: &f64| if *score >= IDENTICAL { 0.0 } else { 10.0_f64.powf(-score / scale) };
    let all: Vec<f64> = scores.iter().map(distortion).collect();
    [(name, mean(&all)), ("p1", quantile(&all, 0.99)), ("p5", quantile(&all, 0.95)), ("min", quantile(&all, 1.0))]
        .into_iter()
        .filter_map(|(pooling, distortion)| Some((pooling, -scale * distortion?.log10())))
        .filter(|(_, value)| value.is_finite())
        .collect()
}

/// Pooled scores: mean, harmonic mean, low percentiles and minimum. Like in libvmaf, the harmonic
/// mean adds one before inverting, so that a score of zero does not dominate.
fn pool_linear(scores: &[f64]) -> Vec<(&'static str, f64)> {
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
    .filter(|(_, value)| value.is_finite())
    .collect()
}

/// Parses scores that were stored as JSON: the pooled ones and those of all frames.
///
/// # Errors
/// If the text is none, or a value is outside of the range of its metric.
pub fn parse_scores(text: &str) -> Result<(Vec<PooledScore>, Frames), String> {
    let (pooled, frames): (Vec<PooledScore>, Frames) = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let in_range = |metric: &str, value: f64| match metric {
        "vmaf" => (0.0..=110.0).contains(&value),
        // The structural similarity of opposite pictures is negative.
        "ssim" => (-1.0..=1.0).contains(&value),
        // The error of a sample is at most its largest value.
        "psnr" => (0.0..=1000.0).contains(&value),
        // Weights may exceed one.
        "xpsnr" => (-100.0..=1000.0).contains(&value),
        _ => false,
    };
    let is_valid = |score: &PooledScore| in_range(&score.metric, score.value.unwrap_or_default());
    let mut all_frames = frames.iter().flat_map(|(metric, scores)| scores.iter().map(move |score| (&**metric, *score)));
    if pooled.iter().all(is_valid) && all_frames.all(|(metric, score)| in_range(metric, score)) {
        Ok((pooled, frames))
    } else {
        Err("a score is out of range".to_owned())
    }
}

/// Runs one filter on both videos. Returns the scores of all frames, and the model and version that
/// computed them.
fn run_filter(
    request: &ScoreRequest<'_>,
    tool: &Tool,
    metric: &str,
    filter: &str,
    log: &Path,
) -> Result<(Vec<f64>, (String, String)), String> {
    let (width, height) = if metric == "vmaf" { model_resolution(request.size, request.model) } else { request.size };
    // Frames are matched by number, because check_alignment has verified their times. Matching by
    // time fails for containers with millisecond timestamps: frames are compared with their
    // neighbours, which costs 20 VMAF points and more (ab-av1#63, vmaf#611).
    let times = frame_number_times(FrameRate::of(request.fps));
    let normalize = format!("{times},scale={width}:{height}:flags=bicubic,format=yuv420p");
    let threads = thread::available_parallelism().map_or(1, usize::from);
    // The path is part of a filter argument, in which these characters are special.
    let path = log.display().to_string();
    if path.contains(['\'', ':', '\\', ',', ';', '[', ']', '=']) {
        return Err(format!(
            "{path}: the path contains a character that filters do not accept; set another --output-dir"
        ));
    }
    let options = match metric {
        "vmaf" => {
            let model = if request.model.is_empty() {
                String::new()
            } else {
                format!(":model={}", request.model.replace(':', "\\\\:"))
            };
            format!("log_path={path}:log_fmt=json:n_threads={threads}{model}:shortest=1")
        }
        _ => format!("stats_file={path}:shortest=1"),
    };
    let graph = format!("[0:v]{normalize}[a];[1:v]{normalize}[b];[a][b]{filter}={options}");
    let length = request.seconds.to_string();
    let mut args = vec![OsStr::new("-i"), request.distorted.as_os_str()];
    args.extend(["-stream_loop", "-1", "-t", &length, "-i"].map(OsStr::new));
    args.push(request.reference.as_os_str());
    args.extend(["-filter_complex", &graph, "-f", "null", "-"].map(OsStr::new));
    run_ffmpeg(&tool.path, &args, request.stall).map_err(|why| format!("{filter}: {why}"))?;
    let text = fs::read(log).map_err(|error| format!("{filter} wrote no log: {error}"))?;
    // Old versions of libvmaf write `nan` and `inf`, which are no JSON (Netflix/vmaf#848).
    let (text, _) = if metric == "vmaf" {
        results::store::json::strict(text)
    } else {
        (String::from_utf8_lossy(&text).into_owned(), 0)
    };
    let scored = match metric {
        "vmaf" => parse_libvmaf_log(&text, request.model)?,
        _ => (parse_frame_log(&text, metric), (filter.to_owned(), format!("ffmpeg {}", tool.version))),
    };
    // A missing frame would shift all that follow, and a shorter video would shorten the log.
    let (count, expected) = (scored.0.len(), expected_frames(request));
    if results::convert::float(u64::try_from(count).unwrap_or(u64::MAX)) == expected {
        Ok(scored)
    } else {
        Err(format!("misaligned: {count} of {expected} frames were scored"))
    }
}

/// Filters that give each frame the time of its number.
pub(super) fn frame_number_times(rate: FrameRate) -> String {
    format!("settb=AVTB,setpts=N*{}/({}*TB)", rate.denominator(), rate.numerator())
}

/// Number of encoded frames.
fn expected_frames(request: &ScoreRequest<'_>) -> f64 {
    (request.seconds * request.fps).round()
}

/// The resolution at which a VMAF model compares videos. Models assume a screen of 1080 or 2160
/// lines, watched from three times its height, and smaller videos scaled to fill it (Netflix/vmaf,
/// resource/doc/models.md and faq.md).
fn model_resolution((width, height): (u32, u32), model: &str) -> (u32, u32) {
    let lines = if ["4k", "2160"].iter().any(|word| model.contains(word)) { 2160.0 } else { 1080.0 };
    let (long, short) = (f64::from(width.max(height)), f64::from(width.min(height)));
    let scale = (lines * 16.0 / 9.0 / long).min(lines / short);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "pixels of a screen")]
    let even = |pixels: u32| ((f64::from(pixels) * scale / 2.0).round() as u32 * 2).max(2);
    (even(width), even(height))
}

/// Parses the log of libvmaf. Returns the scores of all frames, and the model and version.
///
/// # Errors
/// When the text is no such log.
pub fn parse_libvmaf_log(text: &str, model: &str) -> Result<(Vec<f64>, (String, String)), String> {
    #[derive(Deserialize)]
    struct Log {
        version: String,
        frames: Vec<Frame>,
    }
    #[derive(Deserialize)]
    struct Frame {
        metrics: Metrics,
    }
    // The other metrics are features of the model.
    #[derive(Deserialize)]
    struct Metrics {
        #[serde(default)]
        vmaf: Option<f64>,
    }
    let log: Log = serde_json::from_str(text).map_err(|error| format!("invalid log of libvmaf: {error}"))?;
    let score = |(at, frame): (usize, &Frame)| {
        frame
            .metrics
            .vmaf
            .ok_or_else(|| format!("invalid log of libvmaf: frame {at} has no score, or one that is no number"))
    };
    let scores = log.frames.iter().enumerate().map(score).collect::<Result<Vec<_>, _>>()?;
    // The default model of the filter (vf_libvmaf.c).
    let name = if model.is_empty() { "version=vmaf_v0.6.1" } else { model };
    let name = name.strip_prefix("version=").or_else(|| name.strip_prefix("path=")).unwrap_or(name);
    Ok((scores, (name.to_owned(), log.version)))
}

/// Parses the log of psnr, ssim or xpsnr, which has a line per frame. The PSNR of identical frames
/// is infinite; 100 dB stands for it, and for anything above.
#[must_use]
pub fn parse_frame_log(text: &str, metric: &str) -> Vec<f64> {
    let value = |line: &str| -> Option<f64> {
        let after = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned);
        let number = |text: &str| {
            if text == "inf" { Some(IDENTICAL) } else { text.parse::<f64>().ok().filter(|value| value.is_finite()) }
        };
        match metric {
            "psnr" => number(&after("psnr_avg:")?).map(|value| value.min(IDENTICAL)),
            "ssim" => number(&after("All:")?),
            // n: 1  XPSNR y: 37.0  XPSNR u: 40.1  XPSNR v: 40.0. The planes are weighted 6:1:1, as
            // usual for 4:2:0.
            _ => {
                if !line.starts_with("n:") {
                    return None;
                }
                let words: Vec<&str> = line.split_whitespace().collect();
                let plane =
                    |name: &str| words.iter().position(|word| *word == name).and_then(|at| number(words.get(at + 1)?));
                let planes = [(6.0, plane("y:")?), (1.0, plane("u:")?), (1.0, plane("v:")?)];
                // An identical plane has no finite value that could be added to the others.
                let differing = planes.into_iter().filter(|(_, value)| *value < IDENTICAL);
                let (weight, sum) =
                    differing.fold((0.0, 0.0), |(all, sum), (weight, value)| (all + weight, sum + weight * value));
                Some(if weight > 0.0 { sum / weight } else { IDENTICAL })
            }
        }
    };
    text.lines().filter_map(value).collect()
}

/// Checks that the encoded video has the expected number of frames at the expected times. Reads
/// packets without decoding.
fn check_alignment(request: &ScoreRequest<'_>, tool: &Tool, scratch: &Path) -> Result<(), String> {
    let distorted = frame_times(request.distorted, tool, scratch, request.stall)?;
    let expected = expected_frames(request);
    if distorted.is_empty() {
        return Err("the file contains no frames".to_owned());
    }
    let count = f64::from(u32::try_from(distorted.len()).unwrap_or(u32::MAX));
    if (count - expected).abs() > 0.5 {
        return Err(format!("misaligned: {count} frames were encoded, {expected} were expected"));
    }
    for (at, time) in (0u32..).zip(&distorted) {
        let off = time - distorted[0] - f64::from(at) / request.fps;
        if off.abs() > 0.5 / request.fps {
            return Err(format!("misaligned: frame {at} is {off:+.3} s off"));
        }
    }
    Ok(())
}

/// Number of frames in a file. `scratch` is used for a temporary file.
///
/// # Errors
/// When the file cannot be read.
pub fn count_frames(file: &Path, tool: &Tool, scratch: &Path, stall: Duration) -> Result<usize, String> {
    frame_times(file, tool, scratch, stall).map(|times| times.len())
}

/// Presentation times of all frames in seconds, sorted. Reads packets without decoding.
pub(super) fn frame_times(file: &Path, tool: &Tool, scratch: &Path, stall: Duration) -> Result<Vec<f64>, String> {
    let failed = |error: String| format!("{}: {error}", file.display());
    let listing = scratch.join("frames.log");
    let mut args = vec![OsStr::new("-y"), OsStr::new("-i"), file.as_os_str()];
    args.extend(["-map", "0:v:0", "-c", "copy", "-f", "framecrc"].map(OsStr::new));
    args.push(listing.as_os_str());
    let text = run_ffmpeg(&tool.path, &args, stall)
        .and_then(|()| fs::read_to_string(&listing).map_err(|error| error.to_string()));
    let _ = fs::remove_file(&listing);
    parse_framecrc(&text.map_err(failed)?)
}

/// Parses a listing of ffmpeg's framecrc muxer into sorted presentation times in seconds.
///
/// # Errors
/// When the text is no such listing.
pub fn parse_framecrc(text: &str) -> Result<Vec<f64>, String> {
    let mut unit = None;
    let mut all = Vec::new();
    for line in text.lines() {
        if let Some(base) = line.strip_prefix("#tb 0: ") {
            let (above, below) = base.split_once('/').ok_or("invalid framecrc listing: no time base")?;
            let parts = above.trim().parse::<f64>().ok().zip(below.trim().parse::<f64>().ok());
            unit = parts.filter(|(above, below)| *above > 0.0 && *below > 0.0).map(|(above, below)| above / below);
        } else if !line.starts_with('#') && !line.trim().is_empty() {
            // stream, dts, pts, duration, size, checksum
            let shown = line.split(',').nth(2).and_then(|pts| pts.trim().parse::<f64>().ok());
            all.push(shown.zip(unit).map(|(pts, unit)| pts * unit).ok_or("invalid framecrc listing")?);
        }
    }
    all.sort_by(f64::total_cmp);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_all_filters_are_parsed() {
        let psnr =
            "n:1 mse_avg:0.52 mse_y:0.61 psnr_avg:50.95 psnr_y:50.30\nn:2 mse_avg:0.00 psnr_avg:inf psnr_y:inf\n";
        assert_eq!(parse_frame_log(psnr, "psnr"), [50.95, 100.0]);
        let ssim = "n:1 Y:0.998 U:0.997 V:0.996 All:0.997500 (26.020600)\n";
        assert_eq!(parse_frame_log(ssim, "ssim"), [0.9975]);
        let xpsnr = "n:    1  XPSNR y: 40.0000  XPSNR u: 44.0000  XPSNR v: 44.0000\nXPSNR average, 1 frames  y: 40.0000  u: 44.0000  v: 44.0000  (minimum: 40.0000)\n";
        assert_eq!(parse_frame_log(xpsnr, "xpsnr"), [41.0]);
        let vmaf = r#"{"version":"3.0.0","fps":1,"frames":[{"frameNum":0,"metrics":{"vmaf":91.5}},{"frameNum":1,"metrics":{"vmaf":93.5}}]}"#;
        let (scores, scored_by) = parse_libvmaf_log(vmaf, "").unwrap();
        assert_eq!((scores, scored_by), (vec![91.5, 93.5], ("vmaf_v0.6.1".to_owned(), "3.0.0".to_owned())));
        assert_eq!(parse_libvmaf_log(vmaf, "version=vmaf_4k_v0.6.1").unwrap().1.0, "vmaf_4k_v0.6.1");
        assert!(
            parse_libvmaf_log("{}", "").is_err()
                && parse_libvmaf_log(r#"{"version":"3","frames":[{"metrics":{}}]}"#, "").is_err()
        );
    }

    #[test]
    fn models_compare_at_their_screen_resolution() {
        assert_eq!(model_resolution((640, 360), ""), (1920, 1080));
        assert_eq!(model_resolution((3840, 2160), ""), (1920, 1080));
        assert_eq!(model_resolution((1280, 720), "version=vmaf_4k_v0.6.1"), (3840, 2160));
        assert_eq!(
            [(854, 480), (640, 480), (720, 1280)].map(|size| model_resolution(size, "")),
            [(1920, 1080), (1440, 1080), (1080, 1920)]
        );
        assert_eq!(model_resolution((1920, 800), ""), (1920, 800));
    }

    #[test]
    fn pooling_matches_libvmaf() {
        let pooled: BTreeMap<_, _> = pool("vmaf", &[90.0, 80.0, 0.0, 100.0]).into_iter().collect();
        assert_eq!((pooled["mean"], pooled["min"]), (67.5, 0.0));
        // 4 / (1/91 + 1/81 + 1/1 + 1/101) - 1
        assert!((pooled["harmonic_mean"] - 2.871_5).abs() < 1e-3, "{pooled:?}");
        assert!(pooled["p1"] < pooled["p5"] && pooled["p5"] < 80.0);
    }

    #[test]
    fn psnr_is_pooled_by_the_mean_squared_error() {
        // Two frames with mean squared errors of 100 and 300: that of the video is 200.
        let decibels = |error: f64| 10.0 * (255.0 * 255.0 / error).log10();
        let pooled = pool("psnr", &[decibels(100.0), decibels(300.0)]);
        assert_eq!(pooled[0].0, "mean_mse");
        assert!((pooled[0].1 - decibels(200.0)).abs() < 1e-9, "{pooled:?}");
        assert!((pooled[3].1 - decibels(300.0)).abs() < 1e-9, "{pooled:?}");
    }

    #[test]
    fn identical_frames_add_no_decibels() {
        let bad = "n:1 mse_avg:2819.01 psnr_avg:13.63 psnr_y:13.63\n";
        let same = "n:2 mse_avg:0.00 psnr_avg:inf psnr_y:inf\n";
        let pooled = pool("psnr", &parse_frame_log(&format!("{bad}{same}"), "psnr"));
        // Half of the error is 3.01 dB.
        assert!((pooled[0].1 - 16.64).abs() < 0.01, "{pooled:?}");
        assert!(pool("psnr", &parse_frame_log(&same.repeat(2), "psnr")).is_empty(), "infinite");
        let pooled = pool("xpsnr", &[40.0, IDENTICAL]);
        assert!((pooled[0].1 - 46.02).abs() < 0.01 && pooled[0].0 == "square_mean_root", "{pooled:?}");
        let chroma = "n:    1  XPSNR y: 40.0000  XPSNR u: inf  XPSNR v: inf\n";
        assert_eq!(parse_frame_log(chroma, "xpsnr"), [40.0]);
    }

    fn piece(metric: &str, scores: &[f64]) -> (Vec<PooledScore>, Frames) {
        (pooled_scores(metric, scores, "m", "1"), Frames::from([(metric.to_owned(), scores.to_vec())]))
    }

    #[test]
    fn pieces_of_a_stream_have_one_value_each() {
        // The first frame of each piece leads in.
        let pieces = [[0.0, 90.0, 92.0], [0.0, 80.0, 82.0], [0.0, 88.0, 90.0]].map(|scores| piece("vmaf", &scores));
        let (pooled, frames) = combine(&pieces, 1);
        let vmaf = pooled.iter().find(|row| row.pooling == "mean").unwrap();
        assert_eq!((vmaf.value, vmaf.pieces, &*vmaf.model), (Some(87.0), Some(3), "m"));
        // Student's interval of 91, 81 and 89.
        let expected = Interval::of(&[91.0, 81.0, 89.0]).unwrap().bounds();
        assert_eq!(vmaf.ci95, Some([expected.0, expected.1]));
        assert_eq!(pooled.iter().filter(|row| row.ci95.is_some()).count(), 1, "{pooled:?}");
        assert_eq!(frames["vmaf"], [90.0, 92.0, 80.0, 82.0, 88.0, 90.0]);
        let lacking = pooled.iter().find(|row| row.metric == "psnr").unwrap();
        assert!(lacking.value.is_none() && lacking.unavailable.is_some(), "{lacking:?}");
        let (single, _) = combine(&pieces[..1], 1);
        assert!(single[0].value == Some(91.0) && single[0].ci95.is_none() && single[0].pieces == Some(1));
    }

    #[test]
    fn interval_of_decibels_is_that_of_the_distortion() {
        let pieces = [[40.0, 40.0], [41.0, 41.0], [40.5, 40.5]].map(|scores| piece("psnr", &scores));
        let (pooled, _) = combine(&pieces, 0);
        let psnr = pooled.iter().find(|row| row.metric == "psnr").unwrap();
        let ([low, high], value) = (psnr.ci95.unwrap(), psnr.value.unwrap());
        assert!(low < value && value < high && high - value > value - low, "{low} {value} {high}");
        // Half of the frames are identical, so the distortion may be zero.
        let pieces = [[40.0, 40.0], [IDENTICAL, IDENTICAL]].map(|scores| piece("psnr", &scores));
        let (pooled, _) = combine(&pieces, 0);
        let psnr = pooled.iter().find(|row| row.metric == "psnr").unwrap();
        assert!(psnr.value.is_some() && psnr.ci95.is_none(), "{psnr:?}");
    }

    #[test]
    fn score_that_is_no_number_makes_the_metric_unavailable() {
        let log = |score: &str| {
            let log = format!(r#"{{"version":"2","frames":[{{"metrics":{{"vmaf":{score},"motion":inf}}}}]}}"#);
            parse_libvmaf_log(&results::store::json::strict(log.into_bytes()).0, "")
        };
        assert_eq!(log("90.5").unwrap().0, [90.5]);
        assert!(log("nan").unwrap_err().contains("frame 0"));
    }

    #[test]
    fn stored_scores_are_checked() {
        let stored = |value: &str| {
            parse_scores(&format!(
                r#"[[{{"metric":"psnr","value":{value},"pooling":"mean_mse"}}],{{"psnr":[41,{value}]}}]"#
            ))
        };
        assert_eq!(stored("40.5").unwrap().1["psnr"], [41.0, 40.5]);
        assert!(stored("-3").is_err() && stored("1e308").is_err() && parse_scores("[]").is_err());
    }

    #[test]
    fn frame_times_are_sorted() {
        let listing = "#software: Lavf\n#tb 0: 1/1000\n0, 0, 0, 33, 10, 0xab\n0, 33, 100, 33, 10, 0xab\n0, 67, 33, 33, 10, 0xab\n";
        assert_eq!(parse_framecrc(listing).unwrap(), [0.0, 0.033, 0.1]);
        assert!(parse_framecrc("0, 0, 0\n").is_err() && parse_framecrc("#tb 0: 1/0\n0, 0, 0\n").is_err());
        assert!(parse_framecrc("").unwrap().is_empty());
    }
}
