//! The flags of `run`, and how they become a plan.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use cli::file::read_limited;

use super::{
    codec,
    energy_goal::EnergyGoal,
    environment::EnvConfig,
    frame_rate,
    plan::{self, AxisValues, Configuration, Isolation, LiveServer, Matrix, Mode, Plan, Protocol, TextOrNumber},
};
use results::settings::DataFlags;

/// Maximum size of a matrix or batch file in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Examples at the end of `run --help`.
pub const EXAMPLES: &str = "\
Examples:
  wattcast-analysis run --name quick --duration 60                           one configuration, three repeats
  wattcast-analysis run suite --encoder libx264,libx265 --bitrate 1M,2M,4M --analyze-quality --ci-target 2%
  wattcast-analysis run suite matrix.toml --repeats 5 --seed 7 --dry-run     print the configurations and their order
  wattcast-analysis run --resume                                             continue an interrupted run
  wattcast-analysis run multi --streams 4 --mode rtmp                        live, through nginx-rtmp
  wattcast-analysis run search quality --target-vmaf 93                      smallest bitrate that reaches VMAF 93
  wattcast-analysis run search streams                                       how many streams run in real time
  wattcast-analysis run search energy --target-vmaf 93                       least energy at that quality

A matrix file lists values per axis; every combination is measured:
  [matrix]
  encoder = [\"libx264\", \"libx265\"]
  preset = [\"veryfast\", \"medium\"]
  bitrate = [\"1M\", \"2M\", \"4M\"]
  [[exclude]]
  encoder = \"libx265\"
  preset = \"medium\"

Exit codes: 0 success; 1 some repeats failed, the rest is kept; 3 refused before anything was measured; 4 another run is active on this host;
5 results cannot be written; 64 usage error; 130 stopped by a signal";

/// Flags of `run`.
#[derive(Clone, Debug, Args)]
#[command(mut_args(|arg| arg.global(true)), after_help = EXAMPLES)]
#[command(mut_arg("results_dir", |arg| arg.visible_alias("output-dir")))]
pub struct Run {
    /// Kind of run; single by default
    #[command(subcommand)]
    pub kind: Option<RunKind>,

    /// Configurations
    #[command(flatten)]
    pub encode: EncodeFlags,

    /// Protocol
    #[command(flatten)]
    pub protocol: ProtocolFlags,

    /// Data sources and prices
    #[command(flatten)]
    pub shared: DataFlags,
}

/// Kind of run.
#[derive(Clone, Debug, Subcommand)]
pub enum RunKind {
    /// Measure one configuration
    Single,
    /// Measure several simultaneous streams; two unless --streams is set
    Multi,
    /// Measure all combinations of a matrix file or of value lists
    ///
    /// Without a matrix and lists, the suite of the legacy runner is measured.
    Suite {
        /// Matrix file (TOML)
        matrix: Option<PathBuf>,
    },
    /// Measure the scenarios of a legacy batch file (JSON) or of a matrix file (.toml)
    Batch {
        /// Batch or matrix file
        #[arg(required_unless_present = "legacy_file")]
        file: Option<PathBuf>,
        /// The same, as the legacy runner's flag
        #[arg(long = "file", value_name = "FILE", hide = true, conflicts_with = "file")]
        legacy_file: Option<PathBuf>,
    },
    /// Search for one value instead of measuring many configurations
    Search {
        /// Goal of the search
        #[command(subcommand)]
        goal: Goal,
    },
}

/// Goal of a search.
#[derive(Clone, Copy, Debug, PartialEq, Subcommand)]
pub enum Goal {
    /// Find the encoder, preset and rate that need the least energy for a quality
    ///
    /// Candidates are all of --encoder and --preset (ENCODER=PRESET for one encoder only), the
    /// fastest first. With --realtime they must keep up with real time.
    Energy(EnergyGoal),
    /// Find the smallest bitrate that reaches a VMAF score
    Quality {
        /// VMAF score to reach
        #[arg(long, value_name = "SCORE", default_value_t = 93.0)]
        target_vmaf: f64,
        /// Lower bound of the bitrate in kbit/s
        #[arg(long, value_name = "KBPS", default_value_t = 100)]
        min_bitrate: u32,
        /// Upper bound of the bitrate in kbit/s
        #[arg(long, value_name = "KBPS", default_value_t = 20_000)]
        max_bitrate: u32,
        /// Stop when the score exceeds the target by at most SCORE
        #[arg(long, value_name = "SCORE", default_value_t = 0.5)]
        tolerance: f64,
    },
    /// Find the most streams that are encoded in real time
    Streams {
        /// Most streams to try
        #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=256))]
        max_streams: u32,
    },
}

impl Goal {
    /// Describes the goal for the dry run.
    #[must_use]
    pub fn describe(&self) -> String {
        match *self {
            Self::Quality { target_vmaf, min_bitrate, max_bitrate, tolerance } => format!(
                "the smallest bitrate from {min_bitrate}k to {max_bitrate}k that reaches VMAF {target_vmaf}, within {tolerance}"
            ),
            Self::Streams { max_streams } => {
                format!("the most streams, up to {max_streams}, that are encoded in real time")
            }
            Self::Energy(goal) => goal.describe(),
        }
    }

    /// Checks the goal's values.
    fn check(&self, duration: Duration) -> Result<(), String> {
        match *self {
            Self::Quality { target_vmaf, min_bitrate, max_bitrate, tolerance } => {
                if !(0.0..=110.0).contains(&target_vmaf) || !(0.0..=50.0).contains(&tolerance) {
                    Err("--target-vmaf must be 0 to 110, and --tolerance 0 to 50".to_owned())
                } else if min_bitrate == 0 || min_bitrate >= max_bitrate || max_bitrate > 1_000_000 {
                    Err("--min-bitrate and --max-bitrate must be 1 to 1000000 kbit/s, the first below the second"
                        .to_owned())
                } else {
                    Ok(())
                }
            }
            // In a shorter time a stream falls behind by less than its reports tell.
            Self::Streams { .. } if duration < Duration::from_secs(2) => {
                Err("--duration: a search for streams needs 2 s and more".to_owned())
            }
            Self::Streams { .. } => Ok(()),
            Self::Energy(goal) => goal.check(),
        }
    }
}

/// Heading of the flags of configurations.
pub const CONFIGURATIONS: &str = "Configurations (comma-separated values form a suite)";
/// Heading of the flags of the measurement protocol.
pub const PROTOCOL: &str = "Protocol";

/// Flags of the configurations.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = CONFIGURATIONS)]
pub struct EncodeFlags {
    /// Name of the run; prefix of its scenario names
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    name: String,

    /// Number of simultaneous streams
    #[arg(long, alias = "count", value_name = "COUNT", value_delimiter = ',')]
    streams: Vec<u32>,

    /// Target bitrate in bit/s: 2500k, 5M [default: 2500k]
    #[arg(long, value_name = "BITRATE", value_delimiter = ',')]
    bitrate: Vec<String>,

    /// The legacy runner's list of a bitrate for each simultaneous stream, which is refused
    #[arg(long, value_name = "BITRATES", hide = true)]
    bitrates: Option<String>,

    /// Constant rate factor instead of a bitrate
    #[arg(long, value_name = "VALUE", value_delimiter = ',')]
    crf: Vec<u32>,

    /// Resolution: 1280x720 or 720p [default: 1280x720]
    #[arg(long, value_name = "SIZE", value_delimiter = ',')]
    resolution: Vec<String>,

    /// Frames per second: 30, 29.97 or 30000/1001 [default: 30]
    #[arg(long, value_name = "FPS", value_delimiter = ',', value_parser = frame_rate::parse)]
    fps: Vec<f64>,

    /// ffmpeg encoder; h264 and h265 mean libx264 and libx265 [default: libx264]
    #[arg(long, value_name = "ENCODER", value_delimiter = ',')]
    encoder: Vec<String>,

    /// Encoder preset [default: that of the encoder]
    #[arg(long, value_name = "PRESET", value_delimiter = ',')]
    preset: Vec<String>,

    /// Additional encoder arguments: --encoder-args='-threads 4'
    #[arg(long, value_name = "ARGS", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    encoder_args: String,

    /// Source video [default: a test pattern with noise, identical in every run]
    #[arg(long, value_name = "FILE")]
    source: Option<PathBuf>,

    /// Length of the encoded media: 60, 60s, 5m
    #[arg(
        long,
        alias = "scenario-duration",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = duration
    )]
    duration: Duration,

    /// Output of the encoder
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    mode: Mode,

    /// Read files in real time, like a live source
    #[arg(long)]
    realtime: bool,

    /// Score quality after all measurements: VMAF, PSNR, SSIM, XPSNR as available
    #[arg(long, visible_alias = "compute-quality")]
    analyze_quality: bool,

    /// VMAF model: version=vmaf_4k_v0.6.1 or path=FILE [default: that of libvmaf]
    #[arg(long, value_name = "MODEL", default_value = "", hide_default_value = true)]
    vmaf_model: String,

    /// ffmpeg that encodes
    #[arg(long, value_name = "PATH", env = "FFMPEG", default_value = "ffmpeg")]
    pub ffmpeg: PathBuf,

    /// ffmpeg that scores, if the encoding one lacks libvmaf [default: the same]
    #[arg(long, value_name = "PATH", env = "QUALITY_FFMPEG")]
    pub quality_ffmpeg: Option<PathBuf>,

    /// nginx with the RTMP module, for --mode rtmp
    #[arg(long, value_name = "PATH", default_value = "nginx")]
    nginx: PathBuf,

    /// MediaMTX instead of nginx, for --mode rtmp with HEVC, VP9 or AV1
    #[arg(long, value_name = "PATH")]
    mediamtx: Option<PathBuf>,
}

/// Flags of the measurement protocol.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = PROTOCOL)]
pub struct ProtocolFlags {
    /// Repeats of each configuration, at least
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,

    /// Repeat until the 95 % interval of the energy is within ±PERCENT of its mean: 2%
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    ci_target: Option<f64>,

    /// Repeats of each configuration, at most (with --ci-target)
    #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    max_repeats: u32,

    /// Seed of the order [default: random; recorded in the results]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,

    /// Time for live streams to settle; otherwise the longest warm-up
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    stabilization: Duration,

    /// Pause between two measurements
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    cooldown: Duration,

    /// Length of the idle power measurement before each block; 0 for none
    #[arg(
        long,
        alias = "baseline-duration",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = duration
    )]
    baseline: Duration,

    /// The legacy runner's flag for a baseline, which every run has
    #[arg(long, hide = true)]
    with_baseline: bool,

    /// Stop an encoder that makes no progress for this long
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    stall_timeout: Duration,

    /// How long to wait for the probe and for servers to be ready
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub wait_timeout: Duration,

    /// Do not wait for the probe to be ready
    #[arg(long)]
    pub skip_wait: bool,

    /// Isolation of the encoder, so that energy can be attributed to it
    #[arg(long = "place", value_name = "WHERE", value_enum, default_value_t)]
    isolation: Isolation,

    /// Parent cgroup, with --place cgroup [default: the runner's own cgroup]
    #[arg(long = "cgroup.parent", value_name = "DIR")]
    parent: Option<PathBuf>,

    /// Socket of the probe, with --place probe
    #[arg(long = "scope.socket", value_name = "PATH", default_value = "/run/wattcast/scope.sock")]
    socket: PathBuf,

    /// Image that contains ffmpeg, with --place container
    #[arg(long = "container.image", value_name = "IMAGE")]
    image: Option<String>,

    /// Container engine: docker or podman
    #[arg(long = "container.engine", value_name = "PATH", default_value = "docker")]
    engine: PathBuf,

    /// Path of ffmpeg in the image
    #[arg(long = "container.ffmpeg", value_name = "PATH", default_value = "ffmpeg")]
    container_ffmpeg: PathBuf,

    /// Additional volumes, HOST:CONTAINER or HOST:CONTAINER:ro
    #[arg(long = "container.volume", value_name = "VOLUME")]
    volumes: Vec<String>,

    /// Resume the newest unfinished run, or that of JOURNAL
    ///
    /// Complete repeats are kept if their output files have not changed.
    #[arg(long, value_name = "JOURNAL", num_args = 0..=1, require_equals = true)]
    pub resume: Option<Option<PathBuf>>,

    /// Print the configurations and their order without running them
    #[arg(long)]
    pub dry_run: bool,

    /// Print the results as JSON
    #[arg(long)]
    pub json: bool,

    /// Run even if preflight checks fail; the results record the failures
    #[arg(long)]
    pub force: bool,
}

/// The answer to `--bitrates`, whose meaning no flag has: the nearest name would measure something
/// else.
const NO_MIXED_BITRATES: &str = "--bitrates: simultaneous streams have one bitrate; \
     run suite --bitrate 1M,2M measures each bitrate, run multi --streams 2 --bitrate 2M two equal streams";

/// Parses `60`, as the legacy runner writes seconds, or `60s`.
fn duration(text: &str) -> Result<Duration, String> {
    let time = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?,
        Err(_) => humantime::parse_duration(text).map_err(|error| format!("{error}; write 60s or 5m"))?,
    };
    if time <= Duration::from_secs(86_400) { Ok(time) } else { Err("must be at most a day".to_owned()) }
}

fn percent(text: &str) -> Result<f64, String> {
    let number: f64 =
        text.trim_end_matches('%').trim().parse().map_err(|_| "must be a percentage, like 2%".to_owned())?;
    if (0.01..=100.0).contains(&number) { Ok(number / 100.0) } else { Err("must be 0.01% to 100%".to_owned()) }
}

impl Run {
    /// The plan that the flags and files describe, and remarks on it.
    ///
    /// # Errors
    /// When a flag or a file is invalid.
    pub fn plan(&self) -> Result<(Plan, Vec<String>), String> {
        let encode = &self.encode;
        let name = encode.name.trim();
        self.check_legacy_flags()?;
        let (configurations, mut notes) = self.configurations(name)?;
        let goal = match &self.kind {
            Some(RunKind::Search { goal }) => Some(goal),
            _ => None,
        };
        let protocol = &self.protocol;
        if let Some(goal) = goal {
            goal.check(encode.duration)?;
            if protocol.ci_target.is_some() || protocol.repeats != 3 {
                let how = match goal {
                    Goal::Energy(_) => "decides how often it repeats",
                    Goal::Quality { .. } | Goal::Streams { .. } => "measures each step once",
                };
                notes.push(format!("a search {how}: --repeats and --ci-target are ignored"));
            }
        }
        if encode.duration < Duration::from_millis(200) {
            return Err("--duration must be at least 0.2 s".to_owned());
        }
        if protocol.ci_target.is_some() && protocol.max_repeats < protocol.repeats {
            return Err("--max-repeats must not be below --repeats".to_owned());
        }
        if protocol.ci_target.is_some() && protocol.repeats < 2 {
            return Err("--ci-target: an interval needs at least --repeats 2".to_owned());
        }
        let mut plan = Plan {
            name: name.to_owned(),
            configurations,
            protocol: Protocol {
                duration: encode.duration,
                stabilization: protocol.stabilization,
                cooldown: protocol.cooldown,
                baseline: protocol.baseline,
                repeats: protocol.repeats,
                ci_target: protocol.ci_target,
                max_repeats: protocol.max_repeats.max(protocol.repeats),
                stall: protocol.stall_timeout,
                seed: protocol.seed.unwrap_or_else(|| fastrand::u64(..1 << 53)),
            },
            mode: encode.mode,
            live_server: if encode.mediamtx.is_some() { LiveServer::MediaMtx } else { LiveServer::Nginx },
            isolation: protocol.isolation,
            source: encode.source.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())),
            realtime: encode.realtime || matches!(goal, Some(Goal::Streams { .. })),
            search: goal.is_some(),
            steady: matches!(goal, Some(Goal::Streams { .. })),
            energy_search: None,
            quality: encode.analyze_quality || matches!(goal, Some(Goal::Quality { .. } | Goal::Energy(_))),
            vmaf_model: encode.vmaf_model.clone(),
            encoder_args: encode.encoder_args.split_whitespace().map(str::to_owned).collect(),
        };
        for configuration in &plan.configurations {
            let axes = &configuration.axes;
            codec::check(&axes.encoder, &axes.preset, plan.mode, plan.live_server)?;
        }
        if plan.mode == Mode::Rtmp && plan.search {
            return Err("search encodes files: leave out --mode rtmp".to_owned());
        }
        if plan.steady && plan.quality {
            return Err("a search for streams keeps no output to score: leave out --analyze-quality".to_owned());
        }
        if let Some(Goal::Energy(goal)) = goal {
            if plan.mode != Mode::File {
                return Err("a search for energy scores its files: leave out --mode null".to_owned());
            }
            plan.energy_search = Some(goal.search(&encode.axis_values(), plan.realtime, plan.protocol.seed)?);
        }
        Ok((plan, notes))
    }

    /// Refuses flags of the legacy runner that cannot have their meaning.
    fn check_legacy_flags(&self) -> Result<(), String> {
        if self.encode.bitrates.is_some() {
            return Err(NO_MIXED_BITRATES.to_owned());
        }
        if self.protocol.with_baseline && self.protocol.baseline.is_zero() {
            return Err("--with-baseline contradicts --baseline 0".to_owned());
        }
        Ok(())
    }

    /// True when a flag describes what is measured or how often, which a resumed run takes from its
    /// journal.
    #[must_use]
    pub fn describes_a_plan(&self) -> bool {
        let (encode, protocol) = (&self.encode, &self.protocol);
        self.kind.is_some()
            || encode.axis_values() != AxisValues::default()
            || !encode.name.is_empty()
            || encode.source.is_some()
            || protocol.seed.is_some()
            || protocol.ci_target.is_some()
    }

    /// Flags whose values differ from a plan. A flag with its default value, or with the value of
    /// the plan, does not.
    #[must_use]
    pub fn conflicts_with(&self, plan: &Plan) -> Vec<&'static str> {
        #[derive(clap::Parser)]
        struct Defaults {
            #[command(flatten)]
            encode: EncodeFlags,
            #[command(flatten)]
            protocol: ProtocolFlags,
        }
        let Ok(defaults) = <Defaults as clap::Parser>::try_parse_from(["run"]) else { return Vec::new() };
        let (encode, own, planned) = (&self.encode, &self.protocol, &plan.protocol);
        let (usual, usual_encode) = (&defaults.protocol, &defaults.encode);
        let arguments: Vec<&str> = encode.encoder_args.split_whitespace().collect();
        fn same<T: PartialEq>(own: T, usual: T, planned: T) -> bool {
            own == usual || own == planned
        }
        [
            ("--duration", same(encode.duration, usual_encode.duration, planned.duration)),
            ("--mode", same(encode.mode, usual_encode.mode, plan.mode)),
            ("--mediamtx", encode.mediamtx.is_none() || plan.live_server == LiveServer::MediaMtx),
            ("--realtime", !encode.realtime || plan.realtime),
            ("--analyze-quality", !encode.analyze_quality || plan.quality),
            ("--vmaf-model", encode.vmaf_model.is_empty() || encode.vmaf_model == plan.vmaf_model),
            ("--encoder-args", arguments.is_empty() || plan.encoder_args == arguments),
            ("--repeats", same(own.repeats, usual.repeats, planned.repeats)),
            ("--max-repeats", same(own.max_repeats, usual.max_repeats, planned.max_repeats)),
            ("--stabilization", same(own.stabilization, usual.stabilization, planned.stabilization)),
            ("--cooldown", same(own.cooldown, usual.cooldown, planned.cooldown)),
            ("--baseline", same(own.baseline, usual.baseline, planned.baseline)),
            ("--stall-timeout", same(own.stall_timeout, usual.stall_timeout, planned.stall)),
            ("--place", same(own.isolation, usual.isolation, plan.isolation)),
        ]
        .into_iter()
        .filter_map(|(flag, same)| (!same).then_some(flag))
        .collect()
    }

    /// What the goal and the axes of a resumed run change in its plan; nothing without a goal or a
    /// kind of run, and if they describe the same.
    ///
    /// # Errors
    /// When a flag is invalid.
    pub(super) fn differences_from(&self, plan: &Plan) -> Result<Vec<&'static str>, String> {
        if self.kind.is_none() {
            return Ok(Vec::new());
        }
        let (mut own, _) = self.plan()?;
        if let (Some(search), Some(planned)) = (&mut own.energy_search, &plan.energy_search) {
            search.seed = self.protocol.seed.unwrap_or(planned.seed);
            if !self.encode.realtime {
                search.realtime = planned.realtime;
            }
        }
        // The numbers of the plan were read from text, so those of the flags are too.
        let text = serde_json::to_string(&own).map_err(|error| error.to_string())?;
        let own: Plan = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let axes = |plan: &Plan| plan.configurations.iter().map(|one| one.axes.clone()).collect::<Vec<_>>();
        let protocol = &self.protocol;
        let is_same = [
            ("another kind of run", own.search == plan.search),
            ("another goal", own.energy_search == plan.energy_search),
            ("other configurations", axes(&own) == axes(plan)),
            ("--name", self.encode.name.is_empty() || own.name == plan.name),
            ("--source", own.source.is_none() || own.source == plan.source),
            ("--seed", protocol.seed.is_none_or(|seed| seed == plan.protocol.seed)),
            ("--ci-target", own.protocol.ci_target.is_none() || own.protocol.ci_target == plan.protocol.ci_target),
        ];
        Ok(is_same.into_iter().filter_map(|(flag, is_same)| (!is_same).then_some(flag)).collect())
    }

    fn configurations(&self, name: &str) -> Result<(Vec<Configuration>, Vec<String>), String> {
        let mut values = self.encode.axis_values();
        let matrix = |values: AxisValues| Matrix { matrix: values, ..Matrix::default() };
        let single = |configurations: Vec<Configuration>| match configurations.as_slice() {
            [_] => Ok((configurations, Vec::new())),
            _ => Err("several values form a suite: wattcast-analysis run suite …".to_owned()),
        };
        match &self.kind {
            None | Some(RunKind::Single) => {
                let (mut configurations, notes) = single(matrix(values).configurations(name)?)?;
                if !name.is_empty() {
                    name.clone_into(&mut configurations[0].name);
                }
                Ok((configurations, notes))
            }
            Some(RunKind::Search { goal: Goal::Energy(goal) }) => Ok((goal.configurations(&values, name)?, Vec::new())),
            Some(RunKind::Search { .. }) => single(matrix(values).configurations(name)?),
            Some(RunKind::Multi) => {
                if values.streams.is_empty() {
                    values.streams = vec![2];
                }
                single(matrix(values).configurations(name)?)
            }
            // Encoders and presets alone: the default suite for each of them.
            Some(RunKind::Suite { matrix: None })
                if (AxisValues { encoder: Vec::new(), preset: Vec::new(), ..values.clone() })
                    == AxisValues::default() =>
            {
                let pairs = matrix(values).configurations(name)?;
                let all = pairs.iter().flat_map(|pair| plan::default_suite(&pair.axes.encoder, &pair.axes.preset));
                Ok((plan::configurations(name, all.collect())?, Vec::new()))
            }
            Some(RunKind::Suite { matrix: None }) => Ok((matrix(values).configurations(name)?, Vec::new())),
            Some(RunKind::Suite { matrix: Some(file) }) => Ok((self.matrix(file)?.configurations(name)?, Vec::new())),
            Some(RunKind::Batch { file, legacy_file }) => {
                let file = file.as_ref().or(legacy_file.as_ref()).ok_or("run batch needs a file")?;
                self.batch(file, &values, name)
            }
        }
    }

    /// The configurations of a batch or matrix file, and remarks on them; `values` are the flags.
    fn batch(&self, file: &Path, values: &AxisValues, name: &str) -> Result<(Vec<Configuration>, Vec<String>), String> {
        if file.extension().is_some_and(|extension| extension == "toml") {
            return Ok((self.matrix(file)?.configurations(name)?, Vec::new()));
        }
        if *values != AxisValues::default() {
            return Err(
                "a batch file describes its scenarios; flags for them need a matrix (run suite FILE.toml)".to_owned()
            );
        }
        let text = read_limited(file, MAX_FILE).map_err(|error| format!("{}: {error}", file.display()))?;
        plan::parse_batch(&text, name).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// Reads a matrix file; values of flags replace those of the file.
    fn matrix(&self, file: &Path) -> Result<Matrix, String> {
        let failed = |error: String| format!("{}: {error}", file.display());
        let text = read_limited(file, MAX_FILE).map_err(|error| failed(error.to_string()))?;
        let mut matrix = Matrix::parse(&text).map_err(failed)?;
        matrix.matrix = self.encode.axis_values().or(matrix.matrix);
        Ok(matrix)
    }

    /// Settings for execution environments; encoders read and write `dir`.
    #[must_use]
    pub fn env_config(&self, dir: &Path) -> EnvConfig {
        let protocol = &self.protocol;
        EnvConfig {
            parent: protocol.parent.clone(),
            socket: protocol.socket.clone(),
            image: protocol.image.clone(),
            engine: protocol.engine.clone(),
            ffmpeg: protocol.container_ffmpeg.clone(),
            volumes: protocol.volumes.clone(),
            dir: dir.to_owned(),
        }
    }
}

impl EncodeFlags {
    /// The program of a live run's server.
    pub(super) fn live_server(&self, kind: LiveServer) -> PathBuf {
        match kind {
            LiveServer::Nginx => self.nginx.clone(),
            LiveServer::MediaMtx => self.mediamtx.clone().unwrap_or_else(|| PathBuf::from("mediamtx")),
        }
    }

    fn axis_values(&self) -> AxisValues {
        AxisValues {
            encoder: self.encoder.iter().map(|encoder| plan::canonical_encoder(encoder).to_owned()).collect(),
            preset: self.preset.iter().map(|preset| TextOrNumber::from(&**preset)).collect(),
            bitrate: self.bitrate.iter().map(|bitrate| TextOrNumber::from(&**bitrate)).collect(),
            crf: self.crf.clone(),
            resolution: self.resolution.clone(),
            fps: self.fps.clone(),
            streams: self.streams.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches as _;

    use super::*;

    fn parse(line: &str) -> Result<Run, clap::Error> {
        let command = Run::augment_args(clap::Command::new("run"));
        Run::from_arg_matches(&command.try_get_matches_from(line.split(' '))?)
    }

    #[test]
    fn flags_of_the_legacy_runner_have_their_meaning() {
        let line = "run multi --count 4 --with-baseline --baseline-duration 120 --scenario-duration 300";
        let (plan, _) = parse(line).unwrap().plan().unwrap();
        assert_eq!(plan.configurations[0].axes.streams, 4);
        let seconds = |time: Duration| time.as_secs();
        assert_eq!((seconds(plan.protocol.baseline), seconds(plan.protocol.duration)), (120, 300));
        let Some(RunKind::Batch { legacy_file: Some(file), .. }) = parse("run batch --file a.json").unwrap().kind
        else {
            panic!("--file is not the batch file");
        };
        assert_eq!(file, Path::new("a.json"));
        assert!(parse("run batch").is_err() && parse("run batch a.json --file b.json").is_err());
    }

    #[test]
    fn encoder_that_its_mode_cannot_carry_is_refused() {
        let plan = |line: &str| parse(line).unwrap().plan();
        let error = plan("run --encoder vp9 --mode rtmp").unwrap_err();
        assert!(error.starts_with("libvpx-vp9 (VP9) cannot be sent over RTMP of nginx"), "{error}");
        let (enhanced, _) = plan("run --encoder vp9 --mode rtmp --mediamtx /opt/mediamtx").unwrap();
        assert_eq!(enhanced.live_server, LiveServer::MediaMtx);
        assert!(plan("run --encoder h264_nvenc --preset veryfast").unwrap_err().contains("p1 (fastest) to p7"));
        // An excluded combination is not checked.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("matrix.toml");
        let text = "[matrix]\nencoder = [\"libx264\", \"h264_nvenc\"]\npreset = [\"veryfast\", \"p4\"]\n\
            [[exclude]]\nencoder = \"h264_nvenc\"\npreset = \"veryfast\"\n[[exclude]]\nencoder = \"libx264\"\npreset = \"p4\"\n";
        std::fs::write(&file, text).unwrap();
        assert_eq!(plan(&format!("run suite {}", file.display())).unwrap().0.configurations.len(), 2);
    }

    #[test]
    fn frame_rate_flag_takes_fractions() {
        let (plan, _) = parse("run suite --fps 30000/1001,29.97,25").unwrap().plan().unwrap();
        let rates: Vec<_> = plan.configurations.iter().map(|one| one.axes.frame_rate().text()).collect();
        assert_eq!(rates, ["30000/1001", "29.97", "25"]);
        assert!(parse("run --fps fast").unwrap_err().to_string().contains("30000/1001"));
    }

    /// Its outputs are cut off, so it scored nothing and did not say so.
    #[test]
    fn search_for_streams_refuses_to_score_quality() {
        let error = parse("run search streams --analyze-quality").unwrap().plan().unwrap_err();
        assert!(error.contains("leave out --analyze-quality"), "{error}");
        assert!(parse("run search streams").unwrap().plan().is_ok());
    }

    #[test]
    fn energy_search_has_a_candidate_for_each_encoder_and_preset() {
        let line = "run search energy --target-psnr 40 --encoder x264,x265 --preset veryfast,fast --max-kbps 4000";
        let (plan, _) = parse(line).unwrap().plan().unwrap();
        let search = plan.energy_search.unwrap();
        let labels: Vec<String> = search.candidates.iter().map(|candidate| candidate.label()).collect();
        assert_eq!(labels, ["libx264 veryfast", "libx264 fast", "libx265 veryfast", "libx265 fast"]);
        assert_eq!((search.target_vmaf, search.target_psnr, search.max_kbps), (None, Some(40.0), Some(4000)));
        assert!(plan.search && plan.quality && plan.configurations.len() == 4);
        let error = |flags: &str| parse(&format!("run search energy {flags}")).unwrap().plan().unwrap_err();
        assert!(error("--mode null").contains("leave out --mode null"));
        assert!(error("--bitrate 1M").contains("leave out --bitrate"));
        assert!(error("--target-vmaf 200").contains("0 to 110"));
    }

    /// A search could only be resumed without the flags that it was started with.
    #[test]
    fn flags_that_describe_the_plan_of_a_resumed_search_are_no_conflict() {
        let line = "run search energy --target-vmaf 93.3 --min-bitrate 300 --max-bitrate 4000 --fps 30000/1001";
        let (plan, _) = parse(&format!("{line} --seed 7")).unwrap().plan().unwrap();
        let journal: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        let differences = |line: &str| parse(line).unwrap().differences_from(&journal).unwrap();
        assert_eq!(differences(line), [""; 0], "without a seed it is that of the plan");
        assert_eq!(differences(&format!("{line} --seed 7")), [""; 0]);
        assert_eq!(differences(&format!("{line} --seed 8")), ["another goal", "--seed"]);
        assert_eq!(
            differences(&line.replace("--min-bitrate 300", "--min-bitrate 301")),
            ["another goal", "other configurations"]
        );
        assert_eq!(differences(&line.replace("93.3", "93.4")), ["another goal"]);
        assert_eq!(differences("run --resume"), [""; 0]);
        assert_eq!(differences("run search streams")[..2], ["another goal", "other configurations"]);
    }

    #[test]
    fn legacy_flag_without_equivalent_is_refused_with_its_replacement() {
        let error = |line: &str| parse(line).unwrap().plan().unwrap_err();
        assert!(error("run multi --count 2 --bitrates 1M,2M").contains("run suite --bitrate 1M,2M"));
        assert!(error("run single --with-baseline --baseline 0").contains("--baseline 0"));
    }
}
