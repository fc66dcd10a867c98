//! Parses ffmpeg command lines: inputs, outputs, encoder, size, frame rate, bitrate.
//!
//! Command lines contain secrets: user info and tokens in URLs, and in RTMP the stream's name is
//! its key. Of a URL only its kind is exported and, for an output that needs a name, a digest.

use serde::{Deserialize, Serialize};

use super::{switches::is_switch, target::targets};

/// Longest text that is taken from a command line, in characters.
const MAX_TEXT: usize = 64;
/// Maximum number of outputs of one job; further outputs are ignored.
pub const MAX_OUTPUTS: usize = 16;
/// Maximum number of words that are parsed.
const MAX_WORDS: usize = 4096;

/// One job's command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommandLine {
    /// Kind of the first input: `file`, `lavfi`, `pipe`, `device`, or a protocol.
    pub input: String,
    /// True when the input is read in real time: `-re`, or a live protocol.
    pub paced: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    pub outputs: Vec<Output>,
}

/// Destination of a job's progress reports (`-progress`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// `udp`, `http`, `unix`, `pipe`, `file`.
    pub kind: String,
    /// The name of the stream in the address; empty if it contains none.
    pub stream: String,
    /// The local UDP port, if the address contains it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Output {
    /// The stem of a file; otherwise the kind with a digest of the address.
    pub name: String,
    /// `file`, `null`, `pipe`, or a protocol.
    pub kind: String,
    /// `h264`, `hevc`, `av1`, …, `copy`; empty if the command line does not contain it.
    pub codec: String,
    /// The encoder as requested; empty if the command line does not contain it.
    pub encoder: String,
    /// The preset as requested; empty if the command line does not contain it.
    pub preset: String,
    /// Width and height in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<(u32, u32)>,
    /// Frames per 1000 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub millifps: Option<u32>,
    /// Bits per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitrate: Option<u64>,
    /// True when the command line excludes pictures: `-vn`, `-map` of other streams only, or a
    /// format for sound or subtitles.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub without_video: bool,
    /// Digests of application and key at a media server, for which several outputs may have the
    /// same; empty for outputs that are not published.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
}

impl Output {
    /// True when no picture is encoded for this output: its pictures are copied, or it has none.
    #[must_use]
    pub fn encodes_no_picture(&self) -> bool {
        self.without_video || self.codec == "copy"
    }

    /// Pixels per 1000 seconds, if size and frame rate are known: the weight of this output in its
    /// job.
    #[must_use]
    pub fn pixels(&self, millifps: Option<u32>) -> Option<u64> {
        let (width, height) = self.size?;
        u64::from(width).checked_mul(u64::from(height))?.checked_mul(u64::from(self.millifps.or(millifps)?))
    }
}

/// Formats, and endings of files, that hold no moving pictures.
const WITHOUT_PICTURES: [&str; 15] = [
    "aac", "ac3", "adts", "ass", "eac3", "f32le", "mp2", "mp3", "s16le", "s24le", "s32le", "srt", "vtt", "wav",
    "webvtt",
];

impl CommandLine {
    /// Parses the words of a command line, each terminated by a NUL. The first word is the program.
    #[must_use]
    pub fn parse(line: &[u8]) -> Self {
        let words: Vec<String> = line
            .strip_suffix(&[0])
            .unwrap_or(line)
            .split(|byte| *byte == 0)
            .skip(1)
            .take(MAX_WORDS)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let mut this = Self::default();
        let (mut words, mut options) = (words.into_iter().peekable(), OutputOptions::default());
        while let Some(word) = words.next() {
            match word.strip_prefix('-').filter(|name| !name.is_empty()) {
                None => this.add_output(&word, std::mem::take(&mut options)),
                // The word after `--` is an output, whatever it begins with.
                Some("-") => {
                    if let Some(address) = words.next() {
                        this.add_output(&address, std::mem::take(&mut options));
                    }
                }
                Some(name) if is_switch(option_name(name), words.peek().map(String::as_str)) => {
                    this.paced |= name == "re";
                    options.no_video |= name == "vn";
                }
                Some("i") => {
                    if let Some(address) = words.next() {
                        let (format, paced) = (std::mem::take(&mut options).format, this.paced);
                        let kind = input_kind(&address, &format);
                        this.paced = paced || matches!(kind, "rtmp" | "rtsp" | "srt" | "udp" | "rtp" | "device");
                        if this.input.is_empty() {
                            kind.clone_into(&mut this.input);
                        }
                    }
                }
                Some("progress") => this.progress = words.next().map(|address| Progress::parse(&address)),
                Some("readrate") => this.paced |= words.next().is_some(),
                Some(name) => {
                    if let Some(value) = words.next() {
                        options.set(name, &value);
                    }
                }
            }
        }
        this
    }

    fn add_output(&mut self, address: &str, options: OutputOptions) {
        if self.outputs.len() >= MAX_OUTPUTS {
            return;
        }
        let (kind, name) = output(address, &options.format);
        let without_video = options.without_video(address);
        let targets = targets(address, &options.format);
        let codec = if options.encoder == "copy" { "copy" } else { codec(&options.encoder) };
        self.outputs.push(Output {
            name,
            kind: truncate(&kind),
            codec: codec.to_owned(),
            encoder: truncate(&options.encoder),
            preset: truncate(&options.preset),
            size: options.size,
            millifps: options.millifps,
            bitrate: options.bitrate,
            without_video,
            targets,
        });
    }

    /// The name of the whole job: the stream of its progress reports, or the name of its only
    /// output.
    #[must_use]
    pub fn stream(&self) -> Option<&str> {
        let of_progress = self.progress.as_ref().map(|progress| &*progress.stream).filter(|name| !name.is_empty());
        of_progress.or(match &*self.outputs {
            [only] => Some(&only.name),
            _ => None,
        })
    }
}

/// Options in front of an input or output.
#[derive(Default)]
struct OutputOptions {
    format: String,
    encoder: String,
    preset: String,
    size: Option<(u32, u32)>,
    millifps: Option<u32>,
    bitrate: Option<u64>,
    /// True after `-vn`.
    no_video: bool,
    /// True after the first `-map`.
    mapped: bool,
    /// The inputs of which `-map` selects pictures, or streams whose kind it does not say.
    picture_maps: Vec<String>,
}

/// An option's name without its stream specifier.
fn option_name(name: &str) -> &str {
    name.split(':').next().unwrap_or(name)
}

/// True if the option applies to video, or to all streams.
fn for_video(name: &str) -> bool {
    name.split(':').nth(1).is_none_or(|stream| stream.starts_with(['v', 'V']) || stream.parse::<u32>().is_ok())
}

impl OutputOptions {
    fn set(&mut self, name: &str, value: &str) {
        if !for_video(name) {
            return;
        }
        match option_name(name) {
            "f" => self.format = truncate(value),
            "c" | "codec" | "vcodec" => self.encoder = truncate(value),
            "preset" | "cpu-used" | "speed" => self.preset = truncate(value),
            "s" => self.size = parse_size(value).or(self.size),
            "r" => self.millifps = parse_rate(value).or(self.millifps),
            "b" | "vb" => self.bitrate = parse_bitrate(value).or(self.bitrate),
            "map" => self.map(value),
            "vf" | "filter" => {
                for filter in value.split([',', ';']) {
                    self.filter(filter);
                }
            }
            _ => {}
        }
    }

    /// Applies a stream selection: `0`, `0:v:0`, `1:a?`, `[label]`; `-0:v` removes.
    fn map(&mut self, value: &str) {
        // Before 7.0 the stream to synchronize with follows after a comma.
        let selected = value.split(',').next().unwrap_or(value).trim_end_matches('?');
        let (input, kind) = selected.split_once(':').unwrap_or((selected, ""));
        if let Some(input) = input.strip_prefix('-') {
            if matches!(kind, "" | "v") {
                self.picture_maps.retain(|mapped| mapped != input);
            }
            return;
        }
        self.mapped = true;
        // A number, a program or a filter's label can be a picture.
        if !matches!(kind.split(':').next(), Some("a" | "s" | "d" | "t")) {
            self.picture_maps.push(input.to_owned());
        }
    }

    /// True when the output at `address` gets no pictures.
    fn without_video(&self, address: &str) -> bool {
        let format = if self.format.is_empty() { stem_and_ending(address).1 } else { &self.format };
        self.no_video
            || (self.mapped && self.picture_maps.is_empty())
            || WITHOUT_PICTURES.contains(&&*format.to_ascii_lowercase())
    }

    fn filter(&mut self, filter: &str) {
        let Some((name, arguments)) = filter.split_once('=') else { return };
        match name.rsplit(']').next().unwrap_or(name) {
            "scale" => self.size = parse_scale(arguments).or(self.size),
            "fps" => self.millifps = parse_rate(arguments.trim_start_matches("fps=")).or(self.millifps),
            _ => {}
        }
    }
}

/// Parses `1280x720`, `hd720`.
fn parse_size(text: &str) -> Option<(u32, u32)> {
    let named = |text: &str| {
        Some(match text {
            "vga" => (640, 480),
            "hd480" => (852, 480),
            "hd720" => (1280, 720),
            "hd1080" => (1920, 1080),
            "uhd2160" => (3840, 2160),
            _ => return None,
        })
    };
    named(text).or_else(|| {
        let (width, height) = text.split_once('x')?;
        bounded_size(width.parse().ok()?, height.parse().ok()?)
    })
}

/// Parses `1280:720`, `w=1280:h=720`. The result is `None` if one side depends on the input's
/// aspect ratio.
fn parse_scale(text: &str) -> Option<(u32, u32)> {
    let mut sides = text.split(':').map(|side| side.rsplit('=').next().unwrap_or(side));
    let first = sides.next()?;
    if first.contains('x') {
        return parse_size(first);
    }
    bounded_size(first.parse().ok()?, sides.next()?.parse().ok()?)
}

fn bounded_size(width: u32, height: u32) -> Option<(u32, u32)> {
    let side = 1..=65_536;
    (side.contains(&width) && side.contains(&height)).then_some((width, height))
}

/// Parses `25`, `29.97`, `30000/1001`, `ntsc`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded before the cast")]
fn parse_rate(text: &str) -> Option<u32> {
    let number = match text {
        "ntsc" => 30_000.0 / 1001.0,
        "pal" => 25.0,
        "film" => 24.0,
        _ => match text.split_once(['/', ':']) {
            Some((numerator, denominator)) => numerator.parse::<f64>().ok()? / denominator.parse::<f64>().ok()?,
            None => text.parse().ok()?,
        },
    };
    (number > 0.0 && number <= 1000.0).then(|| (number * 1000.0).round() as u32)
}

/// Parses `2500k`, `5M`, `800000`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded before the cast")]
fn parse_bitrate(text: &str) -> Option<u64> {
    let text = text.strip_suffix('B').map_or((text, 1.0), |bytes| (bytes, 8.0));
    let (digits, unit) = match text.0.char_indices().last()? {
        (at, 'k' | 'K') => (&text.0[..at], 1e3),
        (at, 'M') => (&text.0[..at], 1e6),
        (at, 'G') => (&text.0[..at], 1e9),
        _ => (text.0, 1.0),
    };
    let number = digits.parse::<f64>().ok()? * unit * text.1;
    (number > 0.0 && number < 1e12).then(|| number.round() as u64)
}

/// The codec of an encoder.
fn codec(encoder: &str) -> &'static str {
    let known: [(&str, &[&str]); 10] = [
        ("h264", &["264", "avc"]),
        ("hevc", &["265", "hevc"]),
        ("av1", &["av1", "rav1e"]),
        ("vp9", &["vp9"]),
        ("vp8", &["vpx", "vp8"]),
        ("vvc", &["vvc", "266"]),
        ("mpeg2video", &["mpeg2"]),
        ("prores", &["prores"]),
        ("mjpeg", &["mjpeg"]),
        ("ffv1", &["ffv1"]),
    ];
    let encoder = if encoder == "libvpx-vp9" { "vp9" } else { encoder };
    let found = known.into_iter().find(|(_, parts)| parts.iter().any(|part| encoder.contains(part)));
    found.map_or(if encoder.is_empty() { "" } else { "other" }, |(codec, _)| codec)
}

/// The scheme of an address. Unlisted schemes become `other`, which bounds the label's values.
fn scheme(address: &str) -> Option<&'static str> {
    let (scheme, _) = address.split_once(':')?;
    let known = [
        ("rtmp", &["rtmp", "rtmps", "rtmpt", "rtmpe"][..]),
        ("rtsp", &["rtsp", "rtsps"]),
        ("http", &["http", "https", "hls"]),
        ("srt", &["srt"]),
        ("udp", &["udp", "udplite"]),
        ("rtp", &["rtp", "srtp"]),
        ("tcp", &["tcp", "tls"]),
        ("unix", &["unix"]),
        ("pipe", &["pipe", "fd"]),
        ("file", &["file"]),
        ("rist", &["rist"]),
        ("ftp", &["ftp", "sftp"]),
        ("icecast", &["icecast"]),
        ("concat", &["concat"]),
    ];
    let scheme = scheme.to_ascii_lowercase();
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|character| character.is_ascii_alphanumeric() || "+.-".contains(character));
    // Any valid scheme counts as a protocol, as in ffmpeg: the rest of the address may contain
    // secrets.
    let found = known.into_iter().find(|(_, names)| names.contains(&&*scheme)).map(|(kind, _)| kind);
    found.or(is_scheme.then_some("other"))
}

fn input_kind(address: &str, format: &str) -> &'static str {
    match format {
        "lavfi" => return "lavfi",
        "v4l2" | "x11grab" | "alsa" | "pulse" | "decklink" | "kmsgrab" | "fbdev" => return "device",
        _ => {}
    }
    match address {
        "-" => "pipe",
        _ if address.starts_with("/dev/") => "device",
        _ => scheme(address).unwrap_or("file"),
    }
}

/// Kind and name of an output.
fn output(address: &str, format: &str) -> (String, String) {
    let kind = match (format, address) {
        ("null", _) => "null",
        ("tee", _) => "tee",
        (_, "-") => "pipe",
        _ => scheme(address).unwrap_or("file"),
    };
    let name = match kind {
        "null" => "null".to_owned(),
        "pipe" => "pipe".to_owned(),
        "file" => truncate(stem(address)),
        _ => format!("{kind}-{}", digest(address)),
    };
    (kind.to_owned(), name)
}

/// The name of a file without directories and extension.
fn stem(address: &str) -> &str {
    stem_and_ending(address).0
}

/// The name of a file without directories, and its extension, which may be empty.
fn stem_and_ending(address: &str) -> (&str, &str) {
    let path = address.strip_prefix("file:").unwrap_or(address);
    let last = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or("file");
    last.rsplit_once('.').filter(|(stem, _)| !stem.is_empty()).unwrap_or((last, ""))
}

/// Eight hexadecimal digits that distinguish secrets without revealing them.
#[must_use]
pub fn digest(secret: &str) -> String {
    metrics::label::digest(secret)
}

impl Progress {
    fn parse(address: &str) -> Self {
        let kind = match address {
            "-" => "pipe",
            _ => scheme(address).unwrap_or("file"),
        };
        // The stream's name is the last part of the path.
        let (bare, query) = address.split_once('?').unwrap_or((address, ""));
        let path = match bare.split_once("://") {
            Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
            None => "",
        };
        let stream = match kind {
            "udp" | "http" | "tcp" => path.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default(),
            // A named pipe: its name is the stream's.
            "file" => stem(address),
            _ => "",
        };
        let port = query.split('&').find_map(|pair| pair.strip_prefix("localport=")?.parse().ok());
        Self { kind: kind.to_owned(), stream: metrics::label::sanitize(stream), port }
    }
}

/// Removes control characters and truncates to [`MAX_TEXT`] characters.
fn truncate(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> CommandLine {
        CommandLine::parse(format!("{}\0", line.replace(' ', "\0")).as_bytes())
    }

    #[test]
    fn an_encode_with_one_output_is_parsed_completely() {
        let command = parse(
            "ffmpeg -y -hide_banner -f lavfi -i testsrc=size=320x240 -c:v libx264 -preset veryfast -b:v 2500k -s 1280x720 -r 30000/1001 \
             -c:a aac -b:a 128k /out/cam.one.mp4",
        );
        assert_eq!((&*command.input, command.paced), ("lavfi", false));
        let [output] = &*command.outputs else { panic!("{command:?}") };
        assert_eq!((&*output.name, &*output.kind), ("cam.one", "file"));
        assert_eq!((&*output.codec, &*output.encoder, &*output.preset), ("h264", "libx264", "veryfast"));
        assert_eq!((output.size, output.millifps, output.bitrate), (Some((1280, 720)), Some(29_970), Some(2_500_000)));
        assert_eq!(command.stream(), Some("cam.one"));
    }

    #[test]
    fn a_ladder_has_one_output_for_each_rung_and_no_name() {
        let command = parse(
            "ffmpeg -re -i in.mkv -vf scale=1920:1080 -c:v libx265 hi.mkv -filter:v scale=w=640:h=360,fps=25 -c:v h264_nvenc lo.mkv",
        );
        assert!(command.paced);
        let outputs: Vec<_> =
            command.outputs.iter().map(|output| (&*output.name, &*output.codec, output.size)).collect();
        assert_eq!(outputs, [("hi", "hevc", Some((1920, 1080))), ("lo", "h264", Some((640, 360)))]);
        assert_eq!(command.stream(), None);
        assert_eq!(command.outputs[1].pixels(None), Some(640 * 360 * 25_000));
        assert_eq!(command.outputs[0].pixels(Some(30_000)), Some(1920 * 1080 * 30_000));
    }

    /// The outputs of a command line: their names, and whether pictures are encoded for them.
    fn encoded(line: &str) -> Vec<(String, bool)> {
        let outputs = parse(line).outputs;
        outputs.iter().map(|output| (output.name.clone(), !output.encodes_no_picture())).collect()
    }

    #[test]
    fn switches_and_options_with_a_value_make_no_outputs() {
        for (line, name) in [
            ("ffmpeg -y -seek_timestamp 1 -ss 10 -i in.mp4 -c:v libx264 seekbug.mp4", "seekbug"),
            ("ffmpeg -y -noauto_conversion_filters -i in.mp4 -c:v libx264 convbug.mp4", "convbug"),
            ("ffmpeg -y -display_hflip -i in.mp4 -c:v libx264 flipbug.mp4", "flipbug"),
            ("ffmpeg -display_vflip:v:0 -noaccurate_seek -print_graphs -i in.mp4 flip.mp4", "flip"),
            ("ffmpeg -autorotate 0 -i in.mp4 -filter_threads 2 -noautoscale turned.mp4", "turned"),
            ("ffmpeg -autorotate -i in.mp4 -y turned.mp4", "turned"),
            ("ffmpeg -i in.mp4 -c:v libx264 -- -dash.mp4", "-dash"),
        ] {
            let outputs = parse(line).outputs;
            let names: Vec<_> = outputs.iter().map(|output| &*output.name).collect();
            assert_eq!(names, [name], "{line}");
        }
    }

    #[test]
    fn copies_sound_and_subtitles_encode_no_picture() {
        for options in [
            "-c copy",
            "-c:v copy -c:a aac",
            "-codec copy",
            "-codec:v:0 copy",
            "-vcodec copy",
            "-vn",
            "-map 0:a",
            "-map 0:a:0? -map 1:s",
            "-map 0 -map -0:v",
            "-f wav",
        ] {
            let line = format!("ffmpeg -i in.mp4 -c:v libx264 picture.mp4 {options} rest.mkv");
            assert_eq!(encoded(&line), [("picture".to_owned(), true), ("rest".to_owned(), false)], "{options}");
        }
        for options in ["-c:a copy", "-an", "-map 0:a -map 0:v", "-map 0", "-map 0:1", "-map [out]", "-map 1 -map -0:v"]
        {
            let line = format!("ffmpeg -vn -i in.mp3 -i in.mp4 {options} picture.mkv");
            assert_eq!(encoded(&line), [("picture".to_owned(), true)], "{options}");
        }
        assert_eq!(encoded("ffmpeg -i in.mp4 sound.WAV"), [("sound".to_owned(), false)]);
    }

    #[test]
    fn progress_addresses_give_kind_stream_and_port() {
        for (address, kind, stream, port) in [
            ("udp://127.0.0.1:9506/cam1", "udp", "cam1", None),
            ("udp://127.0.0.1:9506/cam1?localport=4000&pkt_size=1", "udp", "cam1", Some(4000)),
            ("http://user:secret@127.0.0.1:9506/progress/cam1?token=secret", "http", "cam1", None),
            ("unix:/run/wattcast/progress.sock", "unix", "", None),
            ("pipe:1", "pipe", "", None),
            ("-", "pipe", "", None),
            ("/run/wattcast/cam1.fifo", "file", "cam1", None),
        ] {
            let command = parse(&format!("ffmpeg -progress {address} -i a a.mp4 b.mp4"));
            let expected = Progress { kind: kind.into(), stream: stream.into(), port };
            assert_eq!(command.progress, Some(expected), "{address}");
        }
    }

    #[test]
    fn secrets_in_addresses_are_not_exported() {
        let command = parse(
            "ffmpeg -progress http://u:hunter2@h/progress/a?token=hunter2 -i rtmp://u:hunter2@h/app/hunter2 -c copy -f flv \
             rtmp://live/app/hunter2 -f flv rtmpts://h/app/hunter2 amqp://u:hunter2@h -f mpegts srt://h:1?streamid=hunter2&passphrase=hunter2 -c:v libx264 https://h/hunter2/up.mp4?k=hunter2",
        );
        let json = serde_json::to_string(&command).unwrap();
        assert!(!json.contains("hunter2"), "{json}");
        assert_eq!(command.outputs.len(), 5);
        let progress = parse("ffmpeg -progress async:http://h/p/hunter2?token=hunter2 -i a b.mp4").progress.unwrap();
        assert_eq!((&*progress.kind, &*progress.stream), ("other", ""));
        assert!(command.outputs[0].name.starts_with("rtmp-") && command.outputs[0].codec == "copy");
        assert_ne!(command.outputs[0].name, parse("ffmpeg -i a -f flv rtmp://live/app/other").outputs[0].name);
        assert_eq!(command.outputs[0].targets, command.outputs[1].targets, "the same stream at another host");
        assert_eq!(command.outputs[0].targets, [digest("app/hunter2")]);
    }

    #[test]
    fn numbers_are_parsed_as_in_ffmpeg_or_rejected() {
        assert_eq!(
            [parse_bitrate("2500k"), parse_bitrate("5M"), parse_bitrate("800000"), parse_bitrate("1kB")],
            [Some(2_500_000), Some(5_000_000), Some(800_000), Some(8000)]
        );
        assert_eq!([parse_bitrate(""), parse_bitrate("k"), parse_bitrate("-1"), parse_bitrate("1e99")], [None; 4]);
        assert_eq!(
            [parse_rate("25"), parse_rate("ntsc"), parse_rate("0"), parse_rate("1/0"), parse_rate("x")],
            [Some(25_000), Some(29_970), None, None, None]
        );
        assert_eq!(
            [parse_size("hd720"), parse_size("0x1"), parse_size("axb"), parse_scale("-2:720"), parse_scale("1280x720")],
            [Some((1280, 720)), None, None, None, Some((1280, 720))]
        );
    }

    proptest! {
        #[test]
        fn no_line_causes_a_panic_or_unbounded_output(line in prop::collection::vec(any::<u8>(), 0..2000)) {
            let command = CommandLine::parse(&line);
            prop_assert!(command.outputs.len() <= MAX_OUTPUTS);
            for output in &command.outputs {
                prop_assert!([&output.name, &output.kind, &output.encoder, &output.preset].iter().all(|text| text.chars().count() <= MAX_TEXT + 16));
            }
        }
    }
}
