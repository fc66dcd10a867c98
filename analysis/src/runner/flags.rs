//! The command line of `run`, and what it means: a plan, and how to reach what carries it out.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use exporter::file::read_whole;

use super::{
    place::Places,
    plan::{self, Axes, Cell, Lists, Matrix, Mode, Plan, Protocol, Where, Word},
};
use crate::settings::Shared;

/// Largest matrix or batch file.
const MOST: u64 = 1 << 20;

/// The end of `run --help`.
pub const EXAMPLES: &str = "\
Examples:
  wattcast-analysis run --name quick --duration 60                           one encode, measured three times
  wattcast-analysis run suite --encoder libx264,libx265 --bitrate 1M,2M,4M --analyze-quality --ci-target 2%
  wattcast-analysis run suite matrix.toml --repeats 5 --seed 7 --dry-run     what would be run, in which order
  wattcast-analysis run --resume                                             go on with the run that was cut off
  wattcast-analysis run multi --streams 4 --mode rtmp                        live, through nginx-rtmp
  wattcast-analysis run search quality --target-vmaf 93                      the bitrate that reaches it
  wattcast-analysis run search streams                                       how many streams this host keeps up with

A matrix file lists values, of which every combination is run:
  [matrix]
  encoder = [\"libx264\", \"libx265\"]
  preset = [\"veryfast\", \"medium\"]
  bitrate = [\"1M\", \"2M\", \"4M\"]
  [[exclude]]
  encoder = \"libx265\"
  preset = \"medium\"

Exit codes: 0 all is well; 1 something failed, and the rest is kept; 3 refused before anything was measured; 4 another run measures on this host;
5 the results cannot be written; 64 the command line is wrong; 130 stopped";

/// Flags of `run`.
#[derive(Clone, Debug, Args)]
#[command(mut_args(|arg| arg.global(true)), after_help = EXAMPLES)]
#[command(mut_arg("results_dir", |arg| arg.visible_alias("output-dir")))]
pub struct Run {
    /// What to run; single without one
    #[command(subcommand)]
    pub what: Option<What>,

    /// What is encoded
    #[command(flatten)]
    pub cell: CellFlags,

    /// How it is measured
    #[command(flatten)]
    pub protocol: ProtocolFlags,

    /// What is read, whom to ask, what things cost
    #[command(flatten)]
    pub shared: Shared,
}

/// What is run.
#[derive(Clone, Debug, Subcommand)]
pub enum What {
    /// One configuration
    Single,
    /// Several streams at once, two unless --streams says otherwise
    Multi,
    /// Every combination of a matrix file, or of the lists that flags have (--encoder libx264,libx265); without either, the replaced runner's suite
    Suite {
        /// The matrix, TOML
        matrix: Option<PathBuf>,
    },
    /// The scenarios of a batch file of the replaced runner, JSON; or a matrix, by its ending .toml
    Batch {
        /// The file
        file: PathBuf,
    },
    /// Look for one value instead of measuring many
    Search {
        /// For what
        #[command(subcommand)]
        goal: Goal,
    },
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Subcommand)]
pub enum Goal {
    /// The smallest bitrate that reaches a VMAF
    Quality {
        /// The VMAF
        #[arg(long, value_name = "SCORE", default_value_t = 93.0)]
        target_vmaf: f64,
        /// From, in kilobits per second
        #[arg(long, value_name = "KBPS", default_value_t = 100)]
        min_bitrate: u32,
        /// To, in kilobits per second
        #[arg(long, value_name = "KBPS", default_value_t = 20_000)]
        max_bitrate: u32,
        /// So far above it is near enough
        #[arg(long, value_name = "SCORE", default_value_t = 0.5)]
        tolerance: f64,
    },
    /// The most streams that are encoded as fast as they are shown
    Streams {
        /// At most
        #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=256))]
        max_streams: u32,
    },
}

impl Goal {
    /// For people.
    #[must_use]
    pub fn describe(&self) -> String {
        match *self {
            Self::Quality { target_vmaf, min_bitrate, max_bitrate, tolerance } => format!(
                "the smallest bitrate from {min_bitrate}k to {max_bitrate}k that reaches VMAF {target_vmaf}, to within {tolerance}"
            ),
            Self::Streams { max_streams } => {
                format!("the most streams, up to {max_streams}, that are encoded as fast as they are shown")
            }
        }
    }

    /// Whether it can be looked for.
    fn check(&self, duration: Duration) -> Result<(), String> {
        match *self {
            Self::Quality { target_vmaf, min_bitrate, max_bitrate, tolerance } => {
                if !(0.0..=110.0).contains(&target_vmaf) || !(0.0..=50.0).contains(&tolerance) {
                    Err("--target-vmaf is 0 to 110, --tolerance 0 to 50".to_owned())
                } else if min_bitrate == 0 || min_bitrate >= max_bitrate || max_bitrate > 1_000_000 {
                    Err("--min-bitrate and --max-bitrate: 1 to 1000000 kilobits, the first below the second".to_owned())
                } else {
                    Ok(())
                }
            }
            // Half a second is allowed for a start, which must be little of it.
            Self::Streams { .. } if duration < Duration::from_secs(2) => {
                Err("--duration: whether streams keep up shows in 2 s and more".to_owned())
            }
            Self::Streams { .. } => Ok(()),
        }
    }
}

/// What is encoded.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What is encoded; several values with commas are a suite")]
pub struct CellFlags {
    /// What the run is called; stands before the names of its scenarios
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    name: String,

    /// Streams at once
    #[arg(long, value_name = "COUNT", value_delimiter = ',')]
    streams: Vec<u32>,

    /// Bits per second: 2500k, 5M [default: 2500k]
    #[arg(long, value_name = "BITRATE", value_delimiter = ',')]
    bitrate: Vec<String>,

    /// Constant quality instead of a bitrate
    #[arg(long, value_name = "VALUE", value_delimiter = ',')]
    crf: Vec<u32>,

    /// 1280x720, or 720p [default: 1280x720]
    #[arg(long, value_name = "SIZE", value_delimiter = ',')]
    resolution: Vec<String>,

    /// Frames per second [default: 30]
    #[arg(long, value_name = "FPS", value_delimiter = ',')]
    fps: Vec<f64>,

    /// As ffmpeg calls it; h264, h265 are libx264, libx265 [default: libx264]
    #[arg(long, value_name = "ENCODER", value_delimiter = ',')]
    encoder: Vec<String>,

    /// Of the encoder [default: its own]
    #[arg(long, value_name = "PRESET", value_delimiter = ',')]
    preset: Vec<String>,

    /// More arguments for the encoder, in one word: --encoder-args='-threads 4'
    #[arg(long, value_name = "ARGS", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    encoder_args: String,

    /// What is encoded [default: a pattern with noise, the same in every run]
    #[arg(long, value_name = "FILE")]
    source: Option<PathBuf>,

    /// Length of what is encoded: 60, 60s, 5m
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = time)]
    duration: Duration,

    /// Where what is encoded goes
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    mode: Mode,

    /// Read files as fast as they are shown, as a live source is
    #[arg(long)]
    realtime: bool,

    /// Score the pictures once everything is measured: VMAF, PSNR, SSIM, XPSNR, as far as an ffmpeg at hand has them
    #[arg(long, visible_alias = "compute-quality")]
    analyze_quality: bool,

    /// The VMAF model: version=vmaf_4k_v0.6.1 or path=FILE [default: the library's]
    #[arg(long, value_name = "MODEL", default_value = "", hide_default_value = true)]
    vmaf_model: String,

    /// The ffmpeg that encodes
    #[arg(long, value_name = "PATH", env = "FFMPEG", default_value = "ffmpeg")]
    pub ffmpeg: PathBuf,

    /// The ffmpeg that scores, where the one that encodes has no libvmaf [default: the same]
    #[arg(long, value_name = "PATH", env = "QUALITY_FFMPEG")]
    pub quality_ffmpeg: Option<PathBuf>,

    /// The nginx with the RTMP module, for --mode rtmp
    #[arg(long, value_name = "PATH", default_value = "nginx")]
    pub nginx: PathBuf,
}

/// How it is measured.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "How it is measured")]
pub struct ProtocolFlags {
    /// How often each configuration is measured, at least
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,

    /// Go on until half the 95 % interval of the joules is below so much of their mean: 2%
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    ci_target: Option<f64>,

    /// How often at most, with --ci-target
    #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    max_repeats: u32,

    /// Of the order [default: another in each run, and written down]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,

    /// Before a measurement: of live streams, for them to settle; else the longest warm-up, which ends when power is flat
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = time)]
    stabilization: Duration,

    /// Between two measurements
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = time)]
    cooldown: Duration,

    /// The host without load, before each block of repeats; 0 for none
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = time)]
    baseline: Duration,

    /// An encoder that reports nothing new for so long hangs, and is ended
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = time)]
    stall_timeout: Duration,

    /// Longest wait for the probe, and for a server, to be ready
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = time)]
    pub wait_timeout: Duration,

    /// Do not wait for them
    #[arg(long)]
    pub skip_wait: bool,

    /// Where encoders run
    #[arg(long, value_name = "WHERE", value_enum, default_value_t)]
    place: Where,

    /// A cgroup that is ours to use, with --place cgroup [default: the one that we are in]
    #[arg(long = "cgroup.parent", value_name = "DIR")]
    parent: Option<PathBuf>,

    /// The probe's socket, with --place probe
    #[arg(long = "scope.socket", value_name = "PATH", default_value = "/run/wattcast/scope.sock")]
    socket: PathBuf,

    /// An image with ffmpeg, with --place container
    #[arg(long = "container.image", value_name = "IMAGE")]
    image: Option<String>,

    /// What runs containers: docker, podman
    #[arg(long = "container.engine", value_name = "PATH", default_value = "docker")]
    engine: PathBuf,

    /// ffmpeg in the image
    #[arg(long = "container.ffmpeg", value_name = "PATH", default_value = "ffmpeg")]
    inside: PathBuf,

    /// More volumes of containers, HOST:CONTAINER[:ro]
    #[arg(long = "container.volume", value_name = "VOLUME")]
    volumes: Vec<String>,

    /// Go on with the newest run in the directory that did not end well, or with a journal; what was measured is kept, where its files are unchanged
    #[arg(long, value_name = "JOURNAL", num_args = 0..=1, require_equals = true)]
    pub resume: Option<Option<PathBuf>>,

    /// Say what would be run, and run nothing
    #[arg(long)]
    pub dry_run: bool,

    /// The results on standard output, for programs
    #[arg(long)]
    pub json: bool,

    /// Measure although a check refuses; the results say which
    #[arg(long)]
    pub force: bool,
}

/// `60`, as the replaced runner has it, or `60s`.
fn time(text: &str) -> Result<Duration, String> {
    let time = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?,
        Err(_) => humantime::parse_duration(text).map_err(|error| format!("{error}; write 60s or 5m"))?,
    };
    if time <= Duration::from_secs(86_400) { Ok(time) } else { Err("up to a day".to_owned()) }
}

fn percent(text: &str) -> Result<f64, String> {
    let number: f64 = text.trim_end_matches('%').trim().parse().map_err(|_| "give percent, 2%".to_owned())?;
    if (0.01..=100.0).contains(&number) { Ok(number / 100.0) } else { Err("0.01% to 100%".to_owned()) }
}

impl Run {
    /// The plan that flags and files make, and what is to be said of them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn plan(&self) -> Result<(Plan, Vec<String>), String> {
        let cell = &self.cell;
        let name = cell.name.trim();
        let (cells, mut notes) = self.cells(name)?;
        if let Some(What::Search { goal }) = &self.what {
            goal.check(cell.duration)?;
            if self.protocol.ci_target.is_some() || self.protocol.repeats != 3 {
                notes.push("a search measures each step once: --repeats and --ci-target are passed over".to_owned());
            }
        }
        let protocol = &self.protocol;
        if cell.duration < Duration::from_millis(200) {
            return Err("--duration: nothing shorter than 0.2 s is measured".to_owned());
        }
        if protocol.ci_target.is_some() && protocol.max_repeats < protocol.repeats {
            return Err("--max-repeats is below --repeats".to_owned());
        }
        if protocol.ci_target.is_some() && protocol.repeats < 2 {
            return Err("--ci-target: an interval needs --repeats 2 at least".to_owned());
        }
        let plan = Plan {
            name: name.to_owned(),
            cells,
            protocol: Protocol {
                duration: cell.duration,
                stabilization: protocol.stabilization,
                cooldown: protocol.cooldown,
                baseline: protocol.baseline,
                repeats: protocol.repeats,
                ci_target: protocol.ci_target,
                max_repeats: protocol.max_repeats.max(protocol.repeats),
                stall: protocol.stall_timeout,
                seed: protocol.seed.unwrap_or_else(|| fastrand::u64(..1 << 53)),
            },
            mode: cell.mode,
            place: protocol.place,
            source: cell.source.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())),
            realtime: cell.realtime || matches!(self.what, Some(What::Search { goal: Goal::Streams { .. } })),
            search: matches!(self.what, Some(What::Search { .. })),
            quality: cell.analyze_quality || matches!(self.what, Some(What::Search { goal: Goal::Quality { .. } })),
            vmaf_model: cell.vmaf_model.clone(),
            encoder_args: cell.encoder_args.split_whitespace().map(str::to_owned).collect(),
        };
        if plan.mode == Mode::Rtmp
            && let Some(why) = plan.cells.iter().find_map(|cell| super::rtmp::cannot_carry(&cell.axes.encoder))
        {
            return Err(why);
        }
        if plan.mode == Mode::Rtmp && matches!(self.what, Some(What::Search { .. })) {
            return Err("search encodes files: leave --mode rtmp out".to_owned());
        }
        Ok((plan, notes))
    }

    /// True where something is said of what is run, or how often: what a run that is resumed has already.
    #[must_use]
    pub fn names_a_plan(&self) -> bool {
        let (cell, protocol) = (&self.cell, &self.protocol);
        self.what.is_some()
            || cell.lists() != Lists::default()
            || !cell.name.is_empty()
            || cell.source.is_some()
            || protocol.seed.is_some()
            || protocol.ci_target.is_some()
    }

    /// Flags that say another than a plan does. What is as it is without a flag says nothing; what a configuration file said when the run was begun says the same again.
    #[must_use]
    pub fn contradicts(&self, plan: &Plan) -> Vec<&'static str> {
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            cell: CellFlags,
            #[command(flatten)]
            protocol: ProtocolFlags,
        }
        let Ok(usual) = <Alone as clap::Parser>::try_parse_from(["run"]) else { return Vec::new() };
        let (cell, own, then) = (&self.cell, &self.protocol, &plan.protocol);
        let words: Vec<&str> = cell.encoder_args.split_whitespace().collect();
        let time = |own: Duration, usual: Duration, then: Duration| own == usual || own == then;
        [
            ("--duration", time(cell.duration, usual.cell.duration, then.duration)),
            ("--mode", cell.mode == usual.cell.mode || cell.mode == plan.mode),
            ("--realtime", !cell.realtime || plan.realtime),
            ("--analyze-quality", !cell.analyze_quality || plan.quality),
            ("--vmaf-model", cell.vmaf_model.is_empty() || cell.vmaf_model == plan.vmaf_model),
            ("--encoder-args", words.is_empty() || plan.encoder_args == words),
            ("--repeats", own.repeats == usual.protocol.repeats || own.repeats == then.repeats),
            ("--max-repeats", own.max_repeats == usual.protocol.max_repeats || own.max_repeats == then.max_repeats),
            ("--stabilization", time(own.stabilization, usual.protocol.stabilization, then.stabilization)),
            ("--cooldown", time(own.cooldown, usual.protocol.cooldown, then.cooldown)),
            ("--baseline", time(own.baseline, usual.protocol.baseline, then.baseline)),
            ("--stall-timeout", time(own.stall_timeout, usual.protocol.stall_timeout, then.stall)),
            ("--place", own.place == usual.protocol.place || own.place == plan.place),
        ]
        .into_iter()
        .filter_map(|(flag, so)| (!so).then_some(flag))
        .collect()
    }

    fn cells(&self, name: &str) -> Result<(Vec<Cell>, Vec<String>), String> {
        let lists = self.cell.lists();
        let listed = Matrix { matrix: lists.clone(), ..Matrix::default() };
        let one = |cells: Vec<Cell>| match cells.as_slice() {
            [_] => Ok((cells, Vec::new())),
            _ => Err("several values are a suite: wattcast-analysis run suite …".to_owned()),
        };
        match &self.what {
            None | Some(What::Single | What::Search { .. }) => one(listed.cells(name)?).map(|(mut cells, notes)| {
                // One that is named is called so, and not after what it has.
                if !name.is_empty() && !matches!(self.what, Some(What::Search { .. })) {
                    name.clone_into(&mut cells[0].name);
                }
                (cells, notes)
            }),
            Some(What::Multi) => {
                let mut lists = lists;
                if lists.streams.is_empty() {
                    lists.streams = vec![2];
                }
                one(Matrix { matrix: lists, ..Matrix::default() }.cells(name)?)
            }
            // Encoders and presets alone: the usual suite for each of them.
            Some(What::Suite { matrix: None })
                if (Lists { encoder: Vec::new(), preset: Vec::new(), ..lists.clone() }) == Lists::default() =>
            {
                let pairs = listed.cells(name)?;
                let all = pairs.iter().flat_map(|cell| plan::default_suite(&cell.axes.encoder, &cell.axes.preset));
                Ok((plan::cells(name, all.collect())?, Vec::new()))
            }
            Some(What::Suite { matrix: None }) => Ok((listed.cells(name)?, Vec::new())),
            Some(What::Suite { matrix: Some(file) }) => Ok((self.matrix(file)?.cells(name)?, Vec::new())),
            Some(What::Batch { file }) if file.extension().is_some_and(|ending| ending == "toml") => {
                Ok((self.matrix(file)?.cells(name)?, Vec::new()))
            }
            Some(What::Batch { .. }) if lists != Lists::default() => Err(
                "a batch file says what each scenario is; flags of that kind go with a matrix (run suite FILE.toml)"
                    .to_owned(),
            ),
            Some(What::Batch { file }) => {
                let text = read_whole(file, MOST).map_err(|error| format!("{}: {error}", file.display()))?;
                plan::batch(&text, name).map_err(|error| format!("{}: {error}", file.display()))
            }
        }
    }

    /// A file, over which lists of flags win.
    fn matrix(&self, file: &Path) -> Result<Matrix, String> {
        let said = |error: String| format!("{}: {error}", file.display());
        let text = read_whole(file, MOST).map_err(|error| said(error.to_string()))?;
        let mut matrix = Matrix::parse(&text).map_err(said)?;
        matrix.matrix = self.cell.lists().over(matrix.matrix);
        Ok(matrix)
    }

    /// Where encoders can be put; `dir` is what they read and write.
    #[must_use]
    pub fn places(&self, dir: &Path) -> Places {
        let protocol = &self.protocol;
        Places {
            parent: protocol.parent.clone(),
            socket: protocol.socket.clone(),
            image: protocol.image.clone(),
            engine: protocol.engine.clone(),
            ffmpeg: protocol.inside.clone(),
            volumes: protocol.volumes.clone(),
            dir: dir.to_owned(),
        }
    }
}

impl CellFlags {
    fn lists(&self) -> Lists {
        Lists {
            encoder: self.encoder.iter().map(|encoder| plan::known_as(encoder).to_owned()).collect(),
            preset: self.preset.iter().map(|preset| Word::from(&**preset)).collect(),
            bitrate: self.bitrate.iter().map(|bitrate| Word::from(&**bitrate)).collect(),
            crf: self.crf.clone(),
            resolution: self.resolution.clone(),
            fps: self.fps.clone(),
            streams: self.streams.clone(),
        }
    }
}

/// The cell of a search at another value.
#[must_use]
pub fn at(prefix: &str, axes: &Axes, change: impl FnOnce(&mut Axes)) -> Cell {
    let mut axes = axes.clone();
    change(&mut axes);
    Cell::new(prefix, axes)
}
