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
    codec,
    environment::{EnvConfig, SpawnHandle},
    plan::{Axes, Isolation, Mode},
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

/// The arguments of an encoder: input, settings and output. It encodes a file for so many seconds,
/// or until it is stopped if they are infinite.
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
    push(codec::device(&axes.encoder));
    match input {
        Input::File(path) | Input::RealTime(path) => {
            if matches!(input, Input::RealTime(_)) {
                push(&["-re"]);
            }
            push(&["-stream_loop", "-1", "-i", &path.to_string_lossy()]);
            if seconds.is_finite() {
                push(&["-t", &seconds.to_string()]);
            }
        }
        // By default ffmpeg waits five seconds for an audio stream.
        Input::Live(url) => push(&["-analyzeduration", "1000000", "-i", url]),
    }
    push(&["-map", "0:v:0", "-an", "-c:v", &axes.encoder]);
    if !axes.preset.is_empty() {
        push(&[codec::preset_option(&axes.encoder), &axes.preset]);
    }
    if mode == Mode::Rtmp {
        push(codec::low_delay(&axes.encoder, &axes.rate));
    }
    let rate: Vec<String> = codec::rate_control(&axes.encoder, &axes.rate);
    push(&rate.iter().map(String::as_str).collect::<Vec<_>>());
    push(codec::pixel_format(&axes.encoder));
    // A key frame every two seconds.
    push(&["-g", &axes.frame_rate().frames_in(2).to_string()]);
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
    use crate::runner::plan::{LiveServer, Rate};

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
    fn arguments_of_hardware_encoders_name_their_device() {
        let line = |encoder: &str, preset: &str, mode| {
            let axes = Axes { preset: preset.into(), ..axes(encoder, Rate::Bitrate("1M".into())) };
            encoder_arguments(&axes, &Input::Live("rtmp://in"), 0.0, &[], mode, "out").join(" ")
        };
        let input = "-analyzeduration 1000000 -i rtmp://in -map 0:v:0 -an -c:v";
        let limited = "-b:v 1M -maxrate 1M -bufsize 2000000";
        for (encoder, preset, expected) in [
            ("h264_nvenc", "p4", format!("{input} h264_nvenc -preset p4 -rc vbr {limited} -pix_fmt yuv420p -g 50")),
            ("hevc_nvenc", "p1", format!("{input} hevc_nvenc -preset p1 -rc vbr {limited} -pix_fmt yuv420p -g 50")),
            ("av1_nvenc", "p7", format!("{input} av1_nvenc -preset p7 -rc vbr {limited} -pix_fmt yuv420p -g 50")),
            (
                "hevc_qsv",
                "fast",
                format!(
                    "-init_hw_device qsv=hw -filter_hw_device hw {input} hevc_qsv -preset fast {limited} \
                     -vf format=nv12,hwupload=extra_hw_frames=64,format=qsv -g 50"
                ),
            ),
            (
                "h264_vaapi",
                "4",
                format!(
                    "-init_hw_device vaapi=hw -filter_hw_device hw {input} h264_vaapi -compression_level 4 {limited} \
                     -vf format=nv12,hwupload -g 50"
                ),
            ),
        ] {
            let found = line(encoder, preset, Mode::Null);
            assert!(found.ends_with(&format!("-stats_period 0.2 {expected} -f null -")), "{found}\n{expected}");
        }
        let live = line("hevc_nvenc", "p1", Mode::Rtmp);
        assert!(live.contains("-preset p1 -tune ll -rc vbr") && live.ends_with("-f flv out"), "{live}");
    }

    /// The whole command line of every codec that enhanced RTMP carries, as MediaMTX takes it.
    #[test]
    fn arguments_of_live_encoders_are_those_of_enhanced_rtmp() {
        let line = |encoder: &str, preset: &str, rate: Rate| {
            let axes = Axes { preset: preset.into(), fps: 30_000.0 / 1001.0, ..axes(encoder, rate) };
            encoder_arguments(&axes, &Input::Live("rtmp://in"), 0.0, &[], Mode::Rtmp, "rtmp://out").join(" ")
        };
        let (bits, input) =
            (|| Rate::Bitrate("2M".into()), "-analyzeduration 1000000 -i rtmp://in -map 0:v:0 -an -c:v");
        let (limited, end) = ("-b:v 2M -maxrate 2M -bufsize 4000000", "-g 60 -f flv rtmp://out");
        for (encoder, preset, expected) in [
            (
                "libx265",
                "fast",
                format!("{input} libx265 -preset fast -tune zerolatency {limited} -pix_fmt yuv420p {end}"),
            ),
            (
                "libvpx-vp9",
                "8",
                format!(
                    "{input} libvpx-vp9 -cpu-used 8 -deadline realtime -lag-in-frames 0 -b:v 2M -pix_fmt yuv420p {end}"
                ),
            ),
            (
                "libaom-av1",
                "8",
                format!(
                    "{input} libaom-av1 -cpu-used 8 -usage realtime -lag-in-frames 0 -b:v 2M -pix_fmt yuv420p {end}"
                ),
            ),
            (
                "libsvtav1",
                "10",
                format!(
                    "{input} libsvtav1 -preset 10 -svtav1-params rc=2:pred-struct=1 -b:v 2M -pix_fmt yuv420p {end}"
                ),
            ),
            (
                "av1_nvenc",
                "p4",
                format!("{input} av1_nvenc -preset p4 -tune ll -rc vbr {limited} -pix_fmt yuv420p {end}"),
            ),
            (
                "hevc_qsv",
                "veryfast",
                format!(
                    "-init_hw_device qsv=hw -filter_hw_device hw {input} hevc_qsv -preset veryfast -async_depth 1 -bf 0 \
                     {limited} -vf format=nv12,hwupload=extra_hw_frames=64,format=qsv {end}"
                ),
            ),
            (
                "vp9_vaapi",
                "4",
                format!(
                    "-init_hw_device vaapi=hw -filter_hw_device hw {input} vp9_vaapi -compression_level 4 -bf 0 {limited} \
                     -vf format=nv12,hwupload {end}"
                ),
            ),
        ] {
            let found = line(encoder, preset, bits());
            assert!(found.ends_with(&format!("-stats_period 0.2 {expected}")), "{found}\n{expected}");
            assert_eq!(codec::check(encoder, preset, Mode::Rtmp, LiveServer::MediaMtx), Ok(()));
        }
        let quality = line("libsvtav1", "10", Rate::Crf(35));
        assert!(quality.contains("-svtav1-params pred-struct=1 -crf 35 -pix_fmt yuv420p -g 60 -f flv"), "{quality}");
    }

    #[test]
    fn muxer_of_a_command_line_is_that_of_the_table_of_codecs() {
        for encoder in ["libx264", "libx265", "libvpx-vp9", "libsvtav1", "h264_vaapi", "hevc_nvenc", "av1_qsv", "mpeg4"]
        {
            for mode in [Mode::File, Mode::Null, Mode::Rtmp] {
                let Some(muxer) = codec::Codec::of(encoder).muxer(mode, LiveServer::MediaMtx) else { continue };
                let words = encoder_arguments(&axes(encoder, Rate::Crf(30)), &Input::Live("in"), 0.0, &[], mode, "out");
                let at = words.iter().rposition(|word| word == "-f").unwrap();
                assert_eq!(words[at + 1], muxer, "{encoder} {mode:?}");
            }
        }
    }

    #[test]
    fn key_frame_interval_is_two_seconds_of_the_exact_rate() {
        for (fps, group) in [(30_000.0 / 1001.0, "-g 60 "), (29.97, "-g 60 "), (12.5, "-g 25 "), (1.0, "-g 2 ")] {
            let line = line(&Axes { fps, ..axes("libx264", Rate::Crf(23)) }, Mode::Null);
            assert!(line.contains(group), "{line}");
        }
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
