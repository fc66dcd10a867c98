//! What is encoded: a clip for each size and rate of frames, raw, made before anything is measured, so that neither decoding nor scaling nor generating is charged to an
//! encoder. What it is, is said by the digest of its bytes.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    encode::{aside, stopped},
    plan::{Axes, Plan, short_digest},
    tool::Tool,
};

/// Longest clip that is kept raw, in seconds; longer ones begin again. A second of 1080p at 30 frames is 93 MB.
pub const LONGEST: f64 = 10.0;

/// Of clips, in the directory of results: made anew whenever they are not there.
pub const HOME: &str = ".wattcast-sources";

/// A clip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clip {
    /// Where it is; below the directory of results where it is ours.
    pub file: PathBuf,
    /// Of its bytes.
    pub sha256: String,
    /// What it was made from.
    pub origin: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Frames per second.
    pub fps: f64,
    /// How many.
    pub frames: u64,
}

impl Clip {
    /// True when it is what such a cell encodes.
    #[must_use]
    pub fn is_for(&self, axes: &Axes) -> bool {
        (self.width, self.height) == (axes.width, axes.height) && self.fps == axes.fps
    }
}

/// The digest of a file's bytes, and how many.
///
/// # Errors
/// When it cannot be read.
pub fn digest(file: &Path) -> io::Result<(String, u64)> {
    // A pipe is waited for, and a device has no end.
    if !fs::metadata(file)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no file"));
    }
    let (mut from, mut hash, mut buffer, mut bytes) = (File::open(file)?, Sha256::new(), vec![0; 1 << 20], 0u64);
    loop {
        if stopped() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "stopped"));
        }
        let length = from.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        hash.update(&buffer[..length]);
        bytes += u64::try_from(length).unwrap_or(0);
    }
    Ok((hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), bytes))
}

/// Makes the clip of a cell, or finds it: the same source, size, rate and length are one file.
///
/// # Errors
/// When the source cannot be read, or the disk is full.
pub fn prepare(plan: &Plan, axes: &Axes, ffmpeg: &Tool, dir: &Path) -> Result<Clip, String> {
    let seconds = plan.protocol.duration.as_secs_f64().min(LONGEST);
    let origin = match &plan.source {
        None => format!("testsrc2 with noise, {seconds} s"),
        Some(path) => {
            let of = digest(path).map_err(|error| format!("{}: {error}", path.display()))?;
            format!("{} (sha256 {}), the first {seconds} s", path.display(), of.0)
        }
    };
    let key = format!("{origin} {}x{} {}", axes.width, axes.height, axes.fps);
    let home = Path::new(HOME);
    fs::create_dir_all(dir.join(home)).map_err(|error| format!("{}: {error}", dir.join(home).display()))?;
    let name = home.join(format!("{}x{}-{}-{}.y4m", axes.width, axes.height, axes.fps, short_digest(key.as_bytes())));
    let file = dir.join(&name);
    if !file.exists() {
        let (width, height, fps, length) = (axes.width, axes.height, axes.fps, seconds.to_string());
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
        let draft = file.with_extension("part");
        args.extend(["-an", "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe"].map(OsStr::new));
        args.push(draft.as_os_str());
        let made = aside(&ffmpeg.path, &args, plan.protocol.stall);
        if stopped() || made.is_err() {
            let _ = fs::remove_file(&draft);
            return Err(match made {
                Err(why) if !stopped() => format!("the source cannot be read: {why}"),
                _ => "stopped".to_owned(),
            });
        }
        fs::rename(&draft, &file).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    let (sha256, bytes) = digest(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let frames = frames(&file, bytes, axes)?;
    Ok(Clip { file: name, sha256, origin, width: axes.width, height: axes.height, fps: axes.fps, frames })
}

/// How many frames a raw file has, by its length: a line, then six bytes and three planes for each (yuv4mpeg(5)).
fn frames(file: &Path, bytes: u64, axes: &Axes) -> Result<u64, String> {
    let said = |error: io::Error| format!("{}: {error}", file.display());
    let mut head = Vec::new();
    BufReader::new(File::open(file).map_err(said)?.take(4096)).read_until(b'\n', &mut head).map_err(said)?;
    let each = u64::from(axes.width) * u64::from(axes.height) * 3 / 2 + 6;
    let body = bytes.saturating_sub(u64::try_from(head.len()).unwrap_or(0));
    if body == 0 || body % each != 0 {
        return Err(format!("{}: {body} bytes are no whole frames; remove it, and it is made anew", file.display()));
    }
    Ok(body / each)
}
