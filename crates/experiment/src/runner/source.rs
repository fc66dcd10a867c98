//! Source clips: raw video for each resolution and frame rate, made before anything is measured, so
//! that encoders are not charged for decoding, scaling or generating. A clip is identified by its
//! SHA-256.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    files::make_atomically,
    plan::{Axes, Plan, short_digest},
    process::run_ffmpeg,
    signals::stop_requested,
    tool::Tool,
};

/// Longest clip in seconds; encoders repeat it for longer media. A second of raw 1080p at 30 fps
/// has 93 MB.
pub const MAX_CLIP_SECONDS: f64 = 10.0;

/// Directory of clips in the results directory; missing clips are made again.
pub const CLIPS_DIR: &str = ".wattcast-sources";

/// A source clip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clip {
    /// File, relative to the results directory.
    pub file: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Description of the original source.
    pub origin: String,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Frames per second.
    pub fps: f64,
    /// Number of frames.
    pub frames: u64,
}

impl Clip {
    /// True when a configuration with these axes encodes this clip.
    #[must_use]
    pub fn is_for(&self, axes: &Axes) -> bool {
        (self.width, self.height) == (axes.width, axes.height) && self.fps == axes.fps
    }
}

/// SHA-256 and size of a file.
///
/// # Errors
/// When the file cannot be read, or a stop is requested.
pub fn hash_file(file: &Path) -> io::Result<(String, u64)> {
    // Reading a pipe may block, and a device may never end.
    if !fs::metadata(file)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut input = File::open(file)?;
    let (mut hash, mut buffer, mut bytes) = (Sha256::new(), vec![0; 1 << 20], 0u64);
    loop {
        if stop_requested() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "stopped"));
        }
        let length = input.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        hash.update(&buffer[..length]);
        bytes += u64::try_from(length).unwrap_or(0);
    }
    Ok((hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), bytes))
}

/// Makes the clip of a configuration, or reuses an existing one with the same source, resolution,
/// rate and length.
///
/// # Errors
/// When the source cannot be read, the clip cannot be written, or a stop is requested.
pub fn prepare_clip(plan: &Plan, axes: &Axes, ffmpeg: &Tool, dir: &Path) -> Result<Clip, String> {
    let seconds = plan.protocol.duration.as_secs_f64().min(MAX_CLIP_SECONDS);
    let origin = match &plan.source {
        None => format!("testsrc2 with noise, {seconds} s"),
        Some(path) => {
            let (sha256, _) = hash_file(path).map_err(|error| format!("{}: {error}", path.display()))?;
            format!("{} (sha256 {sha256}), the first {seconds} s", path.display())
        }
    };
    let key = format!("{origin} {}x{} {}", axes.width, axes.height, axes.fps);
    let clips = Path::new(CLIPS_DIR);
    fs::create_dir_all(dir.join(clips)).map_err(|error| format!("{}: {error}", dir.join(clips).display()))?;
    let name = clips.join(format!("{}x{}-{}-{}.y4m", axes.width, axes.height, axes.fps, short_digest(key.as_bytes())));
    let file = dir.join(&name);
    if !file.exists() {
        make_atomically(dir, &file, |draft| make_clip(plan, axes, ffmpeg, seconds, draft))?;
    }
    let (sha256, bytes) = hash_file(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let frames = count_raw_frames(&file, bytes, axes)?;
    Ok(Clip { file: name, sha256, origin, width: axes.width, height: axes.height, fps: axes.fps, frames })
}

/// Writes a clip to `draft` as raw YUV4MPEG2, from the plan's source or from a test pattern.
fn make_clip(plan: &Plan, axes: &Axes, ffmpeg: &Tool, seconds: f64, draft: &Path) -> Result<(), String> {
    let (width, height, fps, length) = (axes.width, axes.height, axes.frame_rate().text(), seconds.to_string());
    let pattern =
        format!("testsrc2=size={width}x{height}:rate={fps}:duration={seconds},noise=alls=4:allf=t:all_seed=1");
    let scaled = format!("fps={fps},scale={width}:{height}:flags=bicubic");
    let mut args = match &plan.source {
        None => ["-y", "-f", "lavfi", "-i", &pattern].map(OsStr::new).to_vec(),
        Some(path) => {
            let after = ["-t", &length, "-map", "0:v:0", "-vf", &scaled].map(OsStr::new);
            [&[OsStr::new("-y"), OsStr::new("-i"), path.as_os_str()][..], &after].concat()
        }
    };
    args.extend(["-an", "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe"].map(OsStr::new));
    args.push(draft.as_os_str());
    let made = run_ffmpeg(&ffmpeg.path, &args, plan.protocol.stall);
    match made {
        _ if stop_requested() => Err("stopped".to_owned()),
        made => made.map_err(|why| format!("cannot read the source: {why}")),
    }
}

/// Number of frames of a raw file, computed from its length: a header line, then six bytes and
/// three planes per frame (yuv4mpeg(5)).
fn count_raw_frames(file: &Path, bytes: u64, axes: &Axes) -> Result<u64, String> {
    let failed = |error: io::Error| format!("{}: {error}", file.display());
    let mut header = Vec::new();
    BufReader::new(File::open(file).map_err(failed)?.take(4096)).read_until(b'\n', &mut header).map_err(failed)?;
    let each = u64::from(axes.width) * u64::from(axes.height) * 3 / 2 + 6;
    let body = bytes.saturating_sub(u64::try_from(header.len()).unwrap_or(0));
    if body == 0 || body % each != 0 {
        return Err(format!("{}: {body} bytes are not whole frames; remove the file to make it again", file.display()));
    }
    Ok(body / each)
}
