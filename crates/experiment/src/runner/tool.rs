//! An ffmpeg installation: its version, its capabilities, and the command lines of encoders.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    time::Duration,
};

use cli::suggest::nearest;
use serde::{Deserialize, Serialize};

use super::{
    environment::{EnvConfig, SpawnHandle},
    plan::{Axes, Isolation, Mode, Rate, parse_bitrate},
    process::{EncoderError, Process, wait_all},
};

/// How long a query may take; a container may have to start for it.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum output of a query in bytes: the lists of all filters and encoders have about 50 kB.
const MAX_OUTPUT: u64 = 4 << 20;

/// An installed ffmpeg.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// Path of the program.
    pub path: PathBuf,
    /// Version, `5.1.9-0+deb12u1`.
    pub version: String,
    /// The flags of its configure script.
    pub configuration: String,
    /// Names of its encoders.
    #[serde(skip)]
    pub encoders: BTreeSet<String>,
    /// Names of its filters.
    #[serde(skip)]
    pub filters: BTreeSet<String>,
}

impl Tool {
    /// Finds ffmpeg by its path or in PATH, and queries its capabilities.
    ///
    /// # Errors
    /// When there is none, or it does not respond like ffmpeg.
    pub fn find(program: &Path) -> Result<Self, String> {
        let path = find_program(program)
            .ok_or_else(|| format!("{} not found: install ffmpeg, or set its path with --ffmpeg", program.display()))?;
        Self::query(path.clone(), &|| Command::new(&path))
    }

    /// Queries the ffmpeg in the container image.
    ///
    /// # Errors
    /// When the engine cannot run it, or it does not respond like ffmpeg.
    pub fn in_container(config: &EnvConfig) -> Result<Self, String> {
        let env = config.create(Isolation::Container, "query")?;
        let handles = RefCell::new(Vec::new());
        let tool = Self::query(config.ffmpeg.clone(), &|| match env.command(&config.ffmpeg) {
            Ok((command, handle)) => {
                handles.borrow_mut().push(handle);
                command
            }
            Err(_) => Command::new(&config.engine),
        });
        handles.into_inner().iter().for_each(SpawnHandle::remove_container);
        tool
    }

    /// Queries the ffmpeg that `command` runs.
    fn query(path: PathBuf, command: &dyn Fn() -> Command) -> Result<Self, String> {
        let output = |args: &[&str]| output(command(), args, TIMEOUT);
        let version = output(&["-version"])?;
        let mut lines = version.lines();
        let first = lines.next().unwrap_or_default();
        let Some(rest) = first.strip_prefix("ffmpeg version ") else {
            return Err(format!("{}: prints {first:?}; is that ffmpeg?", path.display()));
        };
        let configuration = lines.find_map(|line| line.strip_prefix("configuration: ")).unwrap_or_default();
        Ok(Self {
            version: rest.split_whitespace().next().unwrap_or_default().to_owned(),
            configuration: configuration.to_owned(),
            encoders: second_column(&output(&["-hide_banner", "-encoders"])?),
            filters: second_column(&output(&["-hide_banner", "-filters"])?),
            path,
        })
    }

    /// An error message if this ffmpeg lacks an encoder, with the most similar name.
    #[must_use]
    pub fn missing_encoder(&self, encoder: &str) -> Option<String> {
        if self.encoders.contains(encoder) {
            return None;
        }
        let names = self.encoders.iter().map(String::as_str);
        let hint = nearest(encoder, names).map(|near| format!("; it has {near}")).unwrap_or_default();
        Some(format!("ffmpeg {} has no encoder {encoder:?}{hint}", self.version))
    }
}

/// The second word of each line: the name in ffmpeg's lists of encoders and filters.
fn second_column(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
}

/// Runs a command and returns its stdout.
fn output(mut command: Command, args: &[&str], timeout: Duration) -> Result<String, String> {
    let line = format!("{} {}", command.get_program().display(), args.join(" "));
    let (sender, receiver) = mpsc::channel();
    let process = Process::spawn_reading(command.args(args), move |stdout| {
        let mut bytes = Vec::new();
        let _ = stdout.take(MAX_OUTPUT).read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    let process = process.map_err(|error| format!("{line}: {error}"))?;
    wait_all(&mut [process], timeout, &mut |_| true).map_err(|error| match error {
        EncoderError::Stalled { .. } => {
            format!("{line}: no response in {}; is that ffmpeg?", humantime::format_duration(timeout))
        }
        EncoderError::Exited { cause, stderr, .. } => format!("{line}: ended with {cause}. {stderr}"),
        other => format!("{line}: {other}"),
    })?;
    // The process has exited, so all its output is in the pipe.
    let bytes = receiver.recv_timeout(timeout).map_err(|_| format!("{line}: exited, but its output did not end"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Finds a program by its path, or by its name in PATH.
#[must_use]
pub fn find_program(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Input of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub enum Input<'a> {
    /// A file, repeated up to the duration.
    File(&'a Path),
    /// The same, read in real time.
    RealTime(&'a Path),
    /// A live stream.
    Live(&'a str),
}

/// The arguments of an encoder: input, settings and output.
#[must_use]
pub fn encoder_arguments(
    axes: &Axes,
    input: &Input<'_>,
    seconds: f64,
    extra: &[String],
    mode: Mode,
    output: &str,
) -> Vec<String> {
    let mut all: Vec<String> =
        ["-nostdin", "-hide_banner", "-loglevel", "warning", "-progress", "pipe:1", "-stats_period", "0.2"]
            .map(str::to_owned)
            .to_vec();
    let mut push = |words: &[&str]| all.extend(words.iter().map(|word| (*word).to_owned()));
    match input {
        Input::File(path) | Input::RealTime(path) => {
            if matches!(input, Input::RealTime(_)) {
                push(&["-re"]);
            }
            push(&["-stream_loop", "-1", "-i", &path.to_string_lossy(), "-t", &seconds.to_string()]);
        }
        // By default ffmpeg waits five seconds for an audio stream.
        Input::Live(url) => push(&["-analyzeduration", "1000000", "-i", url]),
    }
    push(&["-map", "0:v:0", "-an", "-c:v", &axes.encoder]);
    if !axes.preset.is_empty() {
        // libvpx and libaom call the preset cpu-used.
        let flag =
            if axes.encoder.starts_with("libvpx") || axes.encoder == "libaom-av1" { "-cpu-used" } else { "-preset" };
        push(&[flag, &axes.preset]);
    }
    if axes.encoder == "libx264" && mode == Mode::Rtmp {
        push(&["-tune", "zerolatency"]);
    }
    match &axes.rate {
        Rate::Bitrate(bits) => {
            push(&["-b:v", bits]);
            // SVT-AV1 takes a maximum rate only with a CRF (libsvtav1.c); for libvpx and libaom it
            // means something else.
            if ["264", "265", "hevc"].iter().any(|family| axes.encoder.contains(family)) {
                let buffer = parse_bitrate(bits).map_or_else(|| bits.clone(), |bits| format!("{:.0}", bits * 2.0));
                push(&["-maxrate", bits, "-bufsize", &buffer]);
            }
        }
        Rate::Crf(crf) => {
            let crf = crf.to_string();
            if axes.encoder.ends_with("_nvenc") {
                push(&["-rc", "vbr", "-cq", &crf, "-b:v", "0"]);
            } else {
                push(&["-crf", &crf]);
                if axes.encoder.starts_with("libvpx") || axes.encoder == "libaom-av1" {
                    push(&["-b:v", "0"]);
                }
            }
        }
    }
    push(&["-pix_fmt", "yuv420p", "-g", &format!("{:.0}", (axes.fps * 2.0).max(1.0))]);
    all.extend(extra.iter().cloned());
    let mut push = |words: &[&str]| all.extend(words.iter().map(|word| (*word).to_owned()));
    match mode {
        Mode::Null => push(&["-f", "null", "-"]),
        // Without bitexact a Matroska file contains a random id, so identical encodes would differ.
        Mode::File => push(&["-fflags", "+bitexact", "-f", "matroska", "-y", output]),
        Mode::Rtmp => push(&["-f", "flv", output]),
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axes(encoder: &str, rate: Rate) -> Axes {
        Axes { encoder: encoder.into(), preset: "8".into(), rate, width: 640, height: 360, fps: 25.0, streams: 1 }
    }

    fn line(axes: &Axes, mode: Mode) -> String {
        encoder_arguments(
            axes,
            &Input::File(Path::new("in.y4m")),
            10.0,
            &["-threads".into(), "2".into()],
            mode,
            "out.mkv",
        )
        .join(" ")
    }

    #[test]
    fn arguments_match_the_encoder() {
        let x264 = line(&axes("libx264", Rate::Bitrate("2500k".into())), Mode::File);
        assert!(
            x264.contains("-stream_loop -1 -i in.y4m -t 10 ")
                && x264.contains("-preset 8 -b:v 2500k -maxrate 2500k -bufsize 5000000"),
            "{x264}"
        );
        assert!(x264.contains("-g 50 -threads 2 -fflags +bitexact -f matroska -y out.mkv"), "{x264}");
        let vp9 = line(&axes("libvpx-vp9", Rate::Crf(30)), Mode::Null);
        assert!(vp9.contains("-cpu-used 8 -crf 30 -b:v 0") && vp9.ends_with("-f null -"), "{vp9}");
        let av1 = line(&axes("libsvtav1", Rate::Bitrate("1M".into())), Mode::Null);
        assert!(av1.contains("-b:v 1M -pix_fmt") && !av1.contains("maxrate"), "{av1}");
        let nvenc = line(&axes("h264_nvenc", Rate::Crf(23)), Mode::Null);
        assert!(nvenc.contains("-cq 23 -b:v 0"), "{nvenc}");
        let live = line(&axes("libx264", Rate::Bitrate("1M".into())), Mode::Rtmp);
        assert!(live.contains("zerolatency") && live.ends_with("-f flv out.mkv"), "{live}");
    }

    #[test]
    fn a_program_that_is_not_ffmpeg_is_reported() {
        assert!(Tool::find(Path::new("/nonexistent/ffmpeg")).unwrap_err().contains("--ffmpeg"));
        assert!(Tool::find(Path::new("/bin/true")).unwrap_err().contains("is that ffmpeg?"));
        let hangs = output(Command::new("/bin/sleep"), &["60"], Duration::from_millis(300)).unwrap_err();
        assert!(hangs.starts_with("/bin/sleep 60: no response in 300ms"), "{hangs}");
        let fails = output(Command::new("/bin/sh"), &["-c", "echo broken >&2; exit 3"], TIMEOUT).unwrap_err();
        assert!(fails.ends_with("ended with code 3. broken"), "{fails}");
        let long = output(Command::new("/bin/sh"), &["-c", "head -c 300000 /dev/zero"], TIMEOUT).unwrap();
        assert_eq!(long.len(), 300_000, "more than a pipe buffer");
    }
}
