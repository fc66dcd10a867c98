//! What is to be run: cells from flags, a matrix or a list of scenarios; how often, and in which order. A plan is written into the journal whole, so a run that is
//! resumed goes on as it was begun.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use exporter::nearest::explain;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::run;

/// Most cells of a run: each is run several times.
pub const MOST_CELLS: usize = 10_000;

/// What bounds the size of the output.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rate {
    /// Bits per second, as ffmpeg takes it: `2500k`.
    Bitrate(String),
    /// Constant quality, as the encoder counts it.
    Crf(u32),
}

impl Rate {
    /// As people say it: `2500k`, `crf 23`.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Bitrate(bits) => bits.clone(),
            Self::Crf(crf) => format!("crf {crf}"),
        }
    }

    /// Bits per second, where they are bounded.
    #[must_use]
    pub fn bits(&self) -> Option<f64> {
        match self {
            Self::Bitrate(text) => bits(text),
            Self::Crf(_) => None,
        }
    }
}

/// Bits per second that an encoder can be asked for: a kilobit to ten gigabits.
#[must_use]
pub fn bits(text: &str) -> Option<f64> {
    // Without spaces: it stands on a command line as it is.
    run::bits(text).filter(|bits| (1e3..=1e10).contains(bits) && text.trim() == text)
}

/// One configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Axes {
    /// As ffmpeg calls it: `libx264`.
    pub encoder: String,
    /// Of the encoder; empty for its own default.
    #[serde(default)]
    pub preset: String,
    /// What bounds the output.
    pub rate: Rate,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Frames per second.
    pub fps: f64,
    /// At once.
    pub streams: u32,
}

/// One configuration, named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// A digest of the axes: the same in every run.
    pub id: String,
    /// The label `scenario`.
    pub name: String,
    /// What is set.
    pub axes: Axes,
}

impl Cell {
    /// Names it after what is set, behind what the user calls the run.
    #[must_use]
    pub fn new(prefix: &str, axes: Axes) -> Self {
        let id = short_digest(&serde_json::to_vec(&axes).unwrap_or_default());
        let mut words: Vec<String> = Vec::new();
        words.extend((!prefix.is_empty()).then(|| prefix.to_owned()));
        words.push(axes.encoder.clone());
        words.extend((!axes.preset.is_empty()).then(|| axes.preset.clone()));
        words.extend([axes.rate.text(), format!("{}x{}", axes.width, axes.height), format!("{} fps", axes.fps)]);
        words.extend((axes.streams > 1).then(|| format!("{} streams", axes.streams)));
        Self { id, name: words.join(" "), axes }
    }
}

/// The first half of a SHA-256, in hexadecimal.
#[must_use]
pub fn short_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Where what is encoded goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nowhere: energy alone. Quality needs one encoding more, after the measurement
    Null,
    /// Into a file, whose quality is known afterwards
    #[default]
    File,
    /// Live, through nginx-rtmp: generator, server and encoder each in a cgroup of their own
    Rtmp,
}

/// Where the encoder runs, so that what it uses can be told from what others use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Where {
    /// The first of cgroup, probe and container that can be had; for files none is enough
    #[default]
    Auto,
    /// In a cgroup below our own, which must be delegated to us (systemd-run --user --scope -p Delegate=yes)
    Cgroup,
    /// In a scope that the probe holds for us (its --scope.socket)
    Probe,
    /// In a container of --container.image
    Container,
    /// Nowhere of its own: the joules are the whole host's
    None,
}

/// How long things take, and how often they are done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// Length of what is encoded.
    pub duration: Duration,
    /// Before the window: of a live run for its streams to settle, else the most that is encoded unmeasured until power is flat.
    pub stabilization: Duration,
    /// Between two measurements.
    pub cooldown: Duration,
    /// The host without load, before each block.
    pub baseline: Duration,
    /// Each cell, at least.
    pub repeats: u32,
    /// Half of the 95 % interval over the mean that is small enough; without it `repeats` is all.
    pub ci_target: Option<f64>,
    /// Each cell, at most.
    pub max_repeats: u32,
    /// Without progress for so long an encoder hangs.
    pub stall: Duration,
    /// Of the order.
    pub seed: u64,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What the user calls it.
    pub name: String,
    /// What is run.
    pub cells: Vec<Cell>,
    /// How.
    pub protocol: Protocol,
    /// To where.
    pub mode: Mode,
    /// Where.
    pub place: Where,
    /// What is encoded; generated where there is none.
    pub source: Option<PathBuf>,
    /// Whether files are read as fast as they would be shown, as a live source is.
    pub realtime: bool,
    /// Whether it looks for one value: then its cells are found on the way.
    #[serde(default)]
    pub search: bool,
    /// Whether the pictures are scored.
    pub quality: bool,
    /// The VMAF model, `version=vmaf_v0.6.1` or `path=FILE`; the library's own default where empty.
    pub vmaf_model: String,
    /// Arguments for every encoder, after ours.
    pub encoder_args: Vec<String>,
}

impl Plan {
    /// The order of a block: each of `cells` once, shuffled by the seed. Drift of the machine falls on all alike (randomised complete blocks).
    #[must_use]
    pub fn order(&self, block: u32, mut cells: Vec<usize>) -> Vec<usize> {
        fastrand::Rng::with_seed(self.protocol.seed.wrapping_add(u64::from(block))).shuffle(&mut cells);
        cells
    }

    /// Seconds that the least number of repeats takes with the longest warm-up, where an encoder is as fast as the source is shown.
    #[must_use]
    pub fn about_seconds(&self) -> f64 {
        let protocol = &self.protocol;
        let each = protocol.duration + protocol.cooldown;
        let each =
            each.as_secs_f64() + if self.mode == Mode::Rtmp { protocol.stabilization.as_secs_f64() } else { 0.0 };
        let cells = f64::from(u32::try_from(self.cells.len()).unwrap_or(u32::MAX));
        let warm_up = if self.mode == Mode::Rtmp { 0.0 } else { protocol.stabilization.as_secs_f64() };
        warm_up + f64::from(protocol.repeats) * (cells * each + protocol.baseline.as_secs_f64())
    }
}

/// Lists of values, of which every combination is a cell.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lists {
    /// As ffmpeg calls them.
    pub encoder: Vec<String>,
    /// Of the encoders.
    pub preset: Vec<Word>,
    /// Bits per second.
    pub bitrate: Vec<Word>,
    /// Constant quality.
    pub crf: Vec<u32>,
    /// `1280x720` or `720p`.
    pub resolution: Vec<String>,
    /// Frames per second.
    pub fps: Vec<f64>,
    /// At once.
    pub streams: Vec<u32>,
}

/// A word that may be written as a number: svtav1's presets, bitrates in bits.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Word {
    /// As text.
    Text(String),
    /// As a number.
    Number(i64),
}

impl Word {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
        }
    }
}

impl From<&str> for Word {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// What a cell must have to be left out, or one more cell.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pattern {
    encoder: Option<String>,
    preset: Option<Word>,
    bitrate: Option<Word>,
    crf: Option<u32>,
    resolution: Option<String>,
    fps: Option<f64>,
    streams: Option<u32>,
}

/// A matrix file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Matrix {
    /// Every combination of these.
    pub matrix: Lists,
    /// These besides; what one does not name is the first of its list.
    pub include: Vec<Pattern>,
    /// Without these: all that has what one names.
    pub exclude: Vec<Pattern>,
}

/// Pixels of `1280x720`, or of `720p` at 16:9.
///
/// # Errors
/// What is wrong with it.
pub fn resolution(text: &str) -> Result<(u32, u32), String> {
    let wrong = || format!("{text:?} is no size; write 1280x720 or 720p");
    let (width, height): (u32, u32) = match (text.split_once('x'), text.strip_suffix('p')) {
        (Some((width, height)), _) => (width.parse().map_err(|_| wrong())?, height.parse().map_err(|_| wrong())?),
        (None, Some(height)) => {
            let height: u32 = height.parse().map_err(|_| wrong())?;
            (height.saturating_mul(16).div_ceil(9).next_multiple_of(2), height)
        }
        (None, None) => return Err(wrong()),
    };
    let fits = |pixels: u32| (16..=16_384).contains(&pixels) && pixels.is_multiple_of(2);
    if fits(width) && fits(height) {
        Ok((width, height))
    } else {
        Err(format!("{text:?}: width and height are even, 16 to 16384"))
    }
}

impl Matrix {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong, with the nearest right name.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| explain(&error.to_string()))
    }

    /// All cells, each once, in the order of the lists; behind `prefix`, the name of the run.
    ///
    /// # Errors
    /// What of it is no configuration.
    pub fn cells(&self, prefix: &str) -> Result<Vec<Cell>, String> {
        let lists = self.matrix.or_defaults();
        let rates: Vec<Rate> = rates(&lists);
        let mut all = Vec::new();
        for encoder in &lists.encoder {
            for preset in &lists.preset {
                for rate in &rates {
                    for size in &lists.resolution {
                        for fps in &lists.fps {
                            for streams in &lists.streams {
                                if all.len() > MOST_CELLS {
                                    return Err(format!("more than {MOST_CELLS} combinations"));
                                }
                                all.push(axes(encoder, &preset.text(), rate, size, *fps, *streams)?);
                            }
                        }
                    }
                }
            }
        }
        for pattern in &self.exclude {
            if *pattern == Pattern::default() {
                return Err("an [[exclude]] that names nothing leaves nothing".to_owned());
            }
            let size = pattern.resolution.as_deref().map(resolution).transpose()?;
            let before = all.len();
            all.retain(|axes| !pattern.fits(axes, size));
            if all.len() == before {
                return Err(format!("an [[exclude]] leaves nothing out: {pattern:?}"));
            }
        }
        for more in &self.include {
            let rate = match (&more.crf, &more.bitrate) {
                (Some(_), Some(_)) => return Err("an [[include]] has a crf or a bitrate".to_owned()),
                (Some(crf), None) => Rate::Crf(*crf),
                (None, Some(bitrate)) => Rate::Bitrate(bitrate.text()),
                (None, None) => rates[0].clone(),
            };
            all.push(axes(
                more.encoder.as_ref().unwrap_or(&lists.encoder[0]),
                &more.preset.as_ref().unwrap_or(&lists.preset[0]).text(),
                &rate,
                more.resolution.as_ref().unwrap_or(&lists.resolution[0]),
                more.fps.unwrap_or(lists.fps[0]),
                more.streams.unwrap_or(lists.streams[0]),
            )?);
        }
        cells(prefix, all)
    }
}

/// Each configuration once.
///
/// # Errors
/// When nothing is left.
pub fn cells(prefix: &str, all: Vec<Axes>) -> Result<Vec<Cell>, String> {
    let mut known = BTreeSet::new();
    let mut cells: Vec<Cell> = all.into_iter().map(|axes| Cell::new(prefix, axes)).collect();
    cells.retain(|cell| known.insert(cell.id.clone()));
    if cells.is_empty() { Err("nothing is left to run".to_owned()) } else { Ok(cells) }
}

fn rates(lists: &Lists) -> Vec<Rate> {
    let bitrates = lists.bitrate.iter().map(|bitrate| Rate::Bitrate(bitrate.text()));
    bitrates.chain(lists.crf.iter().map(|crf| Rate::Crf(*crf))).collect()
}

fn axes(encoder: &str, preset: &str, rate: &Rate, size: &str, fps: f64, streams: u32) -> Result<Axes, String> {
    let (width, height) = resolution(size)?;
    let word = |text: &str| !text.starts_with('-') && !text.contains(char::is_whitespace);
    if encoder.is_empty() || !word(encoder) || !word(preset) {
        return Err(format!("{encoder:?}, {preset:?}: an encoder or preset is one word"));
    }
    if let Rate::Bitrate(text) = rate
        && bits(text).is_none()
    {
        return Err(format!("{text:?} is no bitrate; write 2500k or 5M"));
    }
    if matches!(rate, Rate::Crf(crf) if *crf > 255) {
        return Err("a crf is 0 to 255".to_owned());
    }
    if !(1.0..=1000.0).contains(&fps) {
        return Err(format!("{fps} frames a second: 1 to 1000"));
    }
    if !(1..=256).contains(&streams) {
        return Err(format!("{streams} streams: 1 to 256"));
    }
    Ok(Axes {
        encoder: known_as(encoder).to_owned(),
        preset: preset.to_owned(),
        rate: rate.clone(),
        width,
        height,
        fps,
        streams,
    })
}

impl Lists {
    /// These, and what they do not list as `other` has it.
    #[must_use]
    pub fn over(self, other: Self) -> Self {
        fn or<T>(first: Vec<T>, second: Vec<T>) -> Vec<T> {
            if first.is_empty() { second } else { first }
        }
        let rates = self.bitrate.is_empty() && self.crf.is_empty();
        Self {
            encoder: or(self.encoder, other.encoder),
            preset: or(self.preset, other.preset),
            bitrate: if rates { other.bitrate } else { self.bitrate },
            crf: if rates { other.crf } else { self.crf },
            resolution: or(self.resolution, other.resolution),
            fps: or(self.fps, other.fps),
            streams: or(self.streams, other.streams),
        }
    }

    /// What is not listed is what the replaced runner had.
    fn or_defaults(&self) -> Self {
        fn or<T: Clone>(given: &[T], default: T) -> Vec<T> {
            if given.is_empty() { vec![default] } else { given.to_vec() }
        }
        Self {
            encoder: or(&self.encoder, "libx264".to_owned()),
            preset: or(&self.preset, Word::from("")),
            bitrate: if self.crf.is_empty() { or(&self.bitrate, Word::from("2500k")) } else { self.bitrate.clone() },
            crf: self.crf.clone(),
            resolution: or(&self.resolution, "1280x720".to_owned()),
            fps: or(&self.fps, 30.0),
            streams: or(&self.streams, 1),
        }
    }
}

impl Pattern {
    /// True when a cell has all that is named; `size` is the pattern's, read.
    fn fits(&self, axes: &Axes, size: Option<(u32, u32)>) -> bool {
        let is = |known: &Option<String>, value: &str| known.as_deref().is_none_or(|known| known == value);
        let rate = match &axes.rate {
            // 2.5M and 2500k are one.
            Rate::Bitrate(text) => {
                let wanted = self.bitrate.as_ref().map(Word::text);
                self.crf.is_none() && wanted.is_none_or(|wanted| bits(&wanted) == bits(text))
            }
            Rate::Crf(crf) => self.bitrate.is_none() && self.crf.is_none_or(|known| known == *crf),
        };
        rate && is(&self.encoder.as_deref().map(|encoder| known_as(encoder).to_owned()), &axes.encoder)
            && is(&self.preset.as_ref().map(Word::text), &axes.preset)
            && size.is_none_or(|size| size == (axes.width, axes.height))
            && self.fps.is_none_or(|fps| fps == axes.fps)
            && self.streams.is_none_or(|streams| streams == axes.streams)
    }
}

/// The suite of the replaced runner, of encodes in place of its baseline scenario: each block has a baseline of its own.
#[must_use]
pub fn default_suite(encoder: &str, preset: &str) -> Vec<Axes> {
    let one = |bitrate: &str, size: &str, fps: f64, streams: u32| {
        axes(encoder, preset, &Rate::Bitrate(bitrate.to_owned()), size, fps, streams).ok()
    };
    [
        one("1M", "1280x720", 30.0, 1),
        one("2500k", "1280x720", 30.0, 1),
        one("5M", "1280x720", 30.0, 1),
        one("10M", "1280x720", 30.0, 1),
        one("2500k", "854x480", 30.0, 1),
        one("2500k", "1920x1080", 30.0, 1),
        one("5M", "1280x720", 60.0, 1),
        one("2500k", "1280x720", 30.0, 2),
        one("2500k", "1280x720", 30.0, 4),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A scenario of the replaced runner's batch files.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    count: Option<u32>,
    #[serde(default)]
    bitrate: Option<Word>,
    #[serde(default)]
    bitrates: Vec<Word>,
    #[serde(default)]
    resolution: Option<String>,
    #[serde(default)]
    fps: Option<f64>,
    #[serde(default)]
    encoder: Option<String>,
    #[serde(default)]
    preset: Option<Word>,
    /// One length for a whole run, so that its cells can be compared.
    #[serde(default)]
    duration: Option<f64>,
    #[serde(default)]
    stabilization: Option<f64>,
    #[serde(default)]
    cooldown: Option<f64>,
    #[serde(default)]
    outputs: Option<serde_json::Value>,
}

/// Reads a batch file: a list of scenarios, or `{"scenarios": […]}`, in JSON. Gives the cells, and what of it could not be kept.
///
/// # Errors
/// What is wrong with it.
pub fn batch(text: &str, prefix: &str) -> Result<(Vec<Cell>, Vec<String>), String> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum File {
        Bare(Vec<serde_json::Value>),
        Named { scenarios: Vec<serde_json::Value> },
    }
    let File::Bare(rows) = (match serde_json::from_str(text).map_err(|error| error.to_string())? {
        File::Named { scenarios } => File::Bare(scenarios),
        bare @ File::Bare(_) => bare,
    }) else {
        return Err("a list of scenarios, or {\"scenarios\": […]}".to_owned());
    };
    let (mut all, mut notes) = (Vec::new(), Vec::new());
    for (at, row) in rows.into_iter().enumerate() {
        let row: Written = serde_json::from_value(row)
            .map_err(|error| format!("scenario {}: {}", at + 1, explain(&error.to_string())))?;
        let named = |what: &str| format!("scenario {} ({:?}): {what}", at + 1, row.name);
        if row.kind.as_deref() == Some("baseline") {
            notes.push(named("every block has a baseline of its own; this one is passed over"));
            continue;
        }
        if row.outputs.is_some() {
            notes.push(named("several outputs of one encoder are not run; its first size is"));
        }
        if row.duration.is_some() || row.stabilization.is_some() || row.cooldown.is_some() {
            notes.push(named("times are of the whole run: --duration, --stabilization, --cooldown"));
        }
        let default = Word::from("2500k");
        let (bitrate, streams) = match row.bitrates.as_slice() {
            [] => (row.bitrate.as_ref().unwrap_or(&default), row.count.unwrap_or(1)),
            [first, rest @ ..] => {
                if rest.iter().any(|other| other != first) {
                    return Err(named("streams of different bitrates are not one cell; run each by itself"));
                }
                (first, u32::try_from(row.bitrates.len()).unwrap_or(u32::MAX))
            }
        };
        let axes = axes(
            row.encoder.as_deref().map_or("libx264", |encoder| known_as(encoder)),
            &row.preset.as_ref().map(Word::text).unwrap_or_default(),
            &Rate::Bitrate(bitrate.text()),
            row.resolution.as_deref().unwrap_or("1280x720"),
            row.fps.unwrap_or(30.0),
            streams,
        )
        .map_err(|why| named(&why))?;
        let mut cell = Cell::new(prefix, axes);
        if !row.name.is_empty() {
            cell.name = row.name;
        }
        all.push(cell);
    }
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut once = Vec::new();
    for cell in all {
        if known.insert(cell.id.clone()) {
            once.push(cell);
        } else {
            notes.push(format!("{:?} is the same configuration as one before it, and is run with that", cell.name));
        }
    }
    if once.is_empty() { Err("nothing is left to run".to_owned()) } else { Ok((once, notes)) }
}

/// The replaced runner's names of encoders.
#[must_use]
pub fn known_as(encoder: &str) -> &str {
    match encoder {
        "h264" | "x264" => "libx264",
        "h265" | "hevc" | "x265" => "libx265",
        "av1" => "libsvtav1",
        "vp9" => "libvpx-vp9",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(cells: Vec<Cell>) -> Plan {
        Plan {
            name: String::new(),
            cells,
            protocol: Protocol {
                duration: Duration::from_secs(10),
                stabilization: Duration::ZERO,
                cooldown: Duration::from_secs(5),
                baseline: Duration::from_secs(30),
                repeats: 3,
                ci_target: None,
                max_repeats: 10,
                stall: Duration::from_secs(30),
                seed: 7,
            },
            mode: Mode::File,
            place: Where::Auto,
            source: None,
            realtime: false,
            search: false,
            quality: false,
            vmaf_model: String::new(),
            encoder_args: Vec::new(),
        }
    }

    const MATRIX: &str = r#"
        [matrix]
        encoder = ["libx264", "libx265"]
        preset = ["veryfast"]
        bitrate = ["500k", "1M", 2000000]
        resolution = ["360p"]
        [[exclude]]
        encoder = "libx265"
        bitrate = "1M"
        [[include]]
        encoder = "libsvtav1"
        preset = 8
        crf = 35
        [[include]]
        encoder = "libx264"
    "#;

    #[test]
    fn a_matrix_is_its_combinations_without_what_is_excluded_and_with_what_is_included() {
        let cells = Matrix::parse(MATRIX).unwrap().cells("a").unwrap();
        let names: Vec<&str> = cells.iter().map(|cell| &*cell.name).collect();
        assert_eq!(
            names,
            [
                "a libx264 veryfast 500k 640x360 30 fps",
                "a libx264 veryfast 1M 640x360 30 fps",
                "a libx264 veryfast 2000000 640x360 30 fps",
                "a libx265 veryfast 500k 640x360 30 fps",
                "a libx265 veryfast 2000000 640x360 30 fps",
                "a libsvtav1 8 crf 35 640x360 30 fps",
            ],
            "what is included twice stands once"
        );
        // The same configuration has the same id in every run, whatever the run is called.
        assert_eq!(cells[0].id, Matrix::parse(MATRIX).unwrap().cells("b").unwrap()[0].id);
    }

    #[test]
    fn what_is_no_matrix_is_said_with_the_nearest_right_name() {
        for (text, word) in [
            ("[matrix]\nencodr = [\"libx264\"]", "encoder"),
            ("[matrix]\nbitrate = [\"fast\"]", "2500k or 5M"),
            ("[matrix]\nresolution = [\"big\"]", "720p"),
            ("[matrix]\nresolution = [\"641x360\"]", "even"),
            ("[matrix]\nstreams = [0]", "1 to 256"),
            ("[matrix]\nfps = [0.0]", "1 to 1000"),
            ("[matrix]\nencoder = [\"-i /etc/passwd\"]", "one word"),
            ("[[exclude]]\n", "names nothing"),
            ("[[exclude]]\nencoder = \"libx264\"", "nothing is left"),
            ("[[include]]\ncrf = 3\nbitrate = \"1M\"", "crf or a bitrate"),
        ] {
            let error = Matrix::parse(text).and_then(|matrix| matrix.cells("")).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        let many =
            format!("[matrix]\ncrf = {:?}\nstreams = {:?}", (0..200).collect::<Vec<_>>(), (1..100).collect::<Vec<_>>());
        assert!(Matrix::parse(&many).unwrap().cells("").unwrap_err().contains("combinations"));
    }

    #[test]
    fn a_seed_is_an_order_and_blocks_have_different_ones() {
        let plan = plan(cells("", default_suite("libx264", "")).unwrap());
        let all: Vec<usize> = (0..plan.cells.len()).collect();
        let first = plan.order(0, all.clone());
        assert_eq!(first, plan.order(0, all.clone()));
        assert_ne!(first, plan.order(1, all.clone()));
        let mut sorted = first;
        sorted.sort_unstable();
        assert_eq!(sorted, all);
    }

    #[test]
    fn batch_files_of_the_replaced_runner_are_read() {
        let text = r#"{"scenarios": [
            {"type": "baseline", "name": "Baseline", "duration": 120},
            {"type": "single", "name": "one", "bitrate": "2500k", "resolution": "640x360", "fps": 30, "encoder": "h264", "preset": "veryfast"},
            {"type": "multi", "name": "two", "count": 2, "bitrate": "1M"},
            {"type": "multi", "name": "three", "bitrates": ["1M", "1M", "1M"]}]}"#;
        let (cells, notes) = batch(text, "").unwrap();
        let shown: Vec<_> = cells.iter().map(|cell| (&*cell.name, cell.axes.streams, &*cell.axes.encoder)).collect();
        assert_eq!(shown, [("one", 1, "libx264"), ("two", 2, "libx264"), ("three", 3, "libx264")]);
        assert!(notes.len() == 1 && notes[0].contains("baseline"), "{notes:?}");
        assert!(batch("[{\"bitrates\": [\"1M\", \"2M\"]}]", "").unwrap_err().contains("different bitrates"));
        assert!(batch("[{\"presett\": \"x\"}]", "").unwrap_err().contains("preset"));
        assert!(batch("{}", "").is_err() && batch("[]", "").is_err());
    }

    #[test]
    fn bitrates_are_those_of_ffmpeg() {
        assert_eq!(["2500k", "5M", "800000", "1.5M"].map(bits), [Some(2.5e6), Some(5e6), Some(8e5), Some(1.5e6)]);
        assert_eq!(["", "0k", "k", "-1M", "inf", "5MB", "nan"].map(bits), [None; 7]);
    }
}
