//! The ffmpeg at hand: what it is, what it can, and the command lines that it is given.

use std::{
    collections::BTreeSet,
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    time::Duration,
};

use exporter::nearest::nearest;
use serde::{Deserialize, Serialize};

use super::{
    encode::{Running, Trouble, wait},
    plan::{Axes, Mode, Rate},
};

/// How long one may take to say what it can; a container has to start for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer: the lists of all filters and encoders are some 50 kB.
const MOST: u64 = 4 << 20;

/// What is known of one ffmpeg.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// Where it is.
    pub path: PathBuf,
    /// `5.1.9-0+deb12u1`.
    pub version: String,
    /// What it was configured with.
    pub configuration: String,
    /// Its encoders.
    #[serde(skip)]
    pub encoders: BTreeSet<String>,
    /// Its filters.
    #[serde(skip)]
    pub filters: BTreeSet<String>,
}

impl Tool {
    /// Finds it, by a path or in PATH, and asks it what it can.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn find(given: &Path) -> Result<Self, String> {
        let path = which(given)
            .ok_or_else(|| format!("there is no {}: install ffmpeg, or name one with --ffmpeg", given.display()))?;
        Self::asked(path.clone(), &|| Command::new(&path))
    }

    /// Asks one, wherever `command` runs it: a container has its own.
    ///
    /// # Errors
    /// What is wrong.
    pub fn asked(path: PathBuf, command: &dyn Fn() -> Command) -> Result<Self, String> {
        let said = |args: &[&str]| said(command(), args, PATIENCE);
        let version = said(&["-version"])?;
        let mut lines = version.lines();
        let first = lines.next().unwrap_or_default();
        let Some(rest) = first.strip_prefix("ffmpeg version ") else {
            return Err(format!("{}: says {first:?}; is that ffmpeg?", path.display()));
        };
        let configuration = lines.find_map(|line| line.strip_prefix("configuration: ")).unwrap_or_default();
        Ok(Self {
            version: rest.split_whitespace().next().unwrap_or_default().to_owned(),
            configuration: configuration.to_owned(),
            encoders: second_words(&said(&["-hide_banner", "-encoders"])?),
            filters: second_words(&said(&["-hide_banner", "-filters"])?),
            path,
        })
    }

    /// Why it cannot encode so; `None` where it can.
    #[must_use]
    pub fn cannot(&self, encoder: &str) -> Option<String> {
        if self.encoders.contains(encoder) {
            return None;
        }
        let video = self.encoders.iter().map(String::as_str);
        let hint = nearest(encoder, video).map(|near| format!("; it has {near}")).unwrap_or_default();
        Some(format!("ffmpeg {} has no encoder {encoder:?}{hint}", self.version))
    }
}

/// The second word of every line of a list of ffmpeg's: below a line of dashes, or, as of filters, after three signs.
fn second_words(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
}

fn said(mut command: Command, args: &[&str], patience: Duration) -> Result<String, String> {
    let line = format!("{} {}", command.get_program().display(), args.join(" "));
    let (sender, heard) = mpsc::channel();
    let one = Running::listen(command.args(args), move |from| {
        let mut text = Vec::new();
        let _ = from.take(MOST).read_to_end(&mut text);
        let _ = sender.send(text);
    });
    let one = one.map_err(|error| format!("{line}: {error}"))?;
    wait(&mut [one], patience, &mut |_| true).map_err(|trouble| match trouble {
        Trouble::Hangs { .. } => {
            format!("{line}: no answer in {}; is that ffmpeg?", humantime::format_duration(patience))
        }
        Trouble::Ended { how, said, .. } => format!("{line}: ended with {how}. {said}"),
        other => format!("{line}: {other}"),
    })?;
    // It has ended, so that all it said is in the pipe.
    let text = heard.recv_timeout(patience).map_err(|_| format!("{line}: it has ended, and its answer has not"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A program by its path, or by its name in PATH.
#[must_use]
pub fn which(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Where an encoder's input comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Input<'a> {
    /// A file, from its beginning and again until the length is full.
    File(&'a Path),
    /// The same, as fast as it would be shown.
    Paced(&'a Path),
    /// A live stream.
    Live(&'a str),
}

/// The arguments of one encoder, behind the program: input, what is set, and where it goes.
#[must_use]
pub fn arguments(
    axes: &Axes,
    input: &Input<'_>,
    seconds: f64,
    more: &[String],
    mode: Mode,
    output: &str,
) -> Vec<String> {
    let mut all: Vec<String> =
        ["-nostdin", "-hide_banner", "-loglevel", "warning", "-progress", "pipe:1", "-stats_period", "0.2"]
            .map(str::to_owned)
            .to_vec();
    let mut push = |words: &[&str]| all.extend(words.iter().map(|word| (*word).to_owned()));
    match input {
        Input::File(path) | Input::Paced(path) => {
            if matches!(input, Input::Paced(_)) {
                push(&["-re"]);
            }
            push(&["-stream_loop", "-1", "-i", &path.to_string_lossy(), "-t", &seconds.to_string()]);
        }
        // A stream without sound is waited for five seconds otherwise, for its sound to come.
        Input::Live(url) => push(&["-analyzeduration", "1000000", "-i", url]),
    }
    push(&["-map", "0:v:0", "-an", "-c:v", &axes.encoder]);
    if !axes.preset.is_empty() {
        // What libvpx and libaom call speed is a preset everywhere else.
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
            // SVT-AV1 takes a ceiling with a crf only (libsvtav1.c), libvpx and libaom mean something else by it.
            if ["264", "265", "hevc"].iter().any(|family| axes.encoder.contains(family)) {
                let buffer = super::plan::bits(bits).map_or_else(|| bits.clone(), |bits| format!("{:.0}", bits * 2.0));
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
    all.extend(more.iter().cloned());
    let mut push = |words: &[&str]| all.extend(words.iter().map(|word| (*word).to_owned()));
    match mode {
        Mode::Null => push(&["-f", "null", "-"]),
        // Without bitexact a Matroska file has a number of its own in it, and no two are the same.
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
        arguments(axes, &Input::File(Path::new("in.y4m")), 10.0, &["-threads".into(), "2".into()], mode, "out.mkv")
            .join(" ")
    }

    #[test]
    fn each_encoder_is_told_in_its_own_words() {
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
    fn a_program_that_is_no_ffmpeg_is_said_so() {
        assert!(Tool::find(Path::new("/nonexistent/ffmpeg")).unwrap_err().contains("--ffmpeg"));
        assert!(Tool::find(Path::new("/bin/true")).unwrap_err().contains("is that ffmpeg?"));
        let hangs = said(Command::new("/bin/sleep"), &["60"], Duration::from_millis(300)).unwrap_err();
        assert!(hangs.starts_with("/bin/sleep 60: no answer in 300ms"), "{hangs}");
        let fails = said(Command::new("/bin/sh"), &["-c", "echo broken >&2; exit 3"], PATIENCE).unwrap_err();
        assert!(fails.ends_with("ended with code 3. broken"), "{fails}");
        let long = said(Command::new("/bin/sh"), &["-c", "head -c 300000 /dev/zero"], PATIENCE).unwrap();
        assert_eq!(long.len(), 300_000, "more than a pipe holds");
    }
}
