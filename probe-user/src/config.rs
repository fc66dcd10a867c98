//! The command line: flags over environment over defaults.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use cli::{
    help::Shown,
    log::LogFlags,
    program::{self, ConfigFileFlags},
};
use http::{
    flags::{ServerOptions, WebFlags},
    listen::{ListenAddress, with_port},
    web::WebConfigError,
};
use probe_ebpf::JOB_NAMES;

use crate::{
    cgroup::leases::{LeaseServer, MAX_LEASES},
    cpu::{self, Weights},
    endpoints::EnergyPrice,
    energy::{HostSettings, SourceChoice, SourcePaths, model::CpuPower},
    gpu::{self, engines::EngineWeights},
    host::availability::Unavailable,
    jobs,
    ledger::{IdlePolicy, MemoryPolicy, Rules, SHARED_MILLI, SHARED_RANGE_MILLI},
    reference::{BOARD_METER, MeterSettings},
};

/// Shortest allowed tick: power readings at a higher rate are a side channel (PLATYPUS).
pub const SHORTEST_TICK: Duration = Duration::from_millis(100);
/// Longest allowed tick: between longer ticks a 32-bit energy counter of a busy server could wrap
/// unnoticed.
pub const LONGEST_TICK: Duration = Duration::from_secs(30);

/// Port of `view` on 127.0.0.1: a probe may run on its own.
const VIEW_PORT: u16 = 9510;

/// Minimum of `--limit.containers` for `exec`.
const EXEC_CONTAINERS: usize = 16_384;

const EXAMPLES: &str = "\
Examples:
  wattcast-probe                                   all available sources, on 127.0.0.1:9500
  wattcast-probe --web.listen-address=:9500        listen on all interfaces
  wattcast-probe --energy.source=powercap          only RAPL, never a model
  wattcast-probe --path.sysfs=/host/sys            in a container with the host's /sys
  wattcast-probe doctor                            check which sources are available
  wattcast-probe calibrate                         measure this machine's idle power and weights, 2 minutes
  wattcast-probe top                               terminal view of the running probe
  wattcast-probe exec -- ffmpeg -i a.mp4 b.mp4     energy and cost of one command
  wattcast-probe record day.rec                    record raw samples until Ctrl-C
  wattcast-probe account day.rec                   print the metrics of a recording
  wattcast-probe view day.rec                      look at a recording in the browser

Run it as root. It opens the energy counters, loads its eBPF programs and drops its privileges.";

const EXEC_EXAMPLES: &str = "\
Examples:
  wattcast-probe exec -- ffmpeg -i in.mp4 out.mp4       energy, power, frames, energy per frame
  wattcast-probe exec --json --output=cost.json -- make for scripts; make prints what it prints
  wattcast-probe exec --repeat 10 --warmup 1 -- make    mean of ten builds, with its interval
  wattcast-probe exec --versus -- ffmpeg -i in.mp4 a.mp4 -- ffmpeg -i in.mp4 -c:v libx265 b.mp4
                                                        ten repeats of each, A B B A …

Under sudo the command runs as the user that called sudo, without --as-root. Its environment is
the one that sudo made, so HOME may be that of root: sudo --preserve-env=HOME keeps the user's.";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  wattcast-probe doctor                            this machine, with a remedy for what is missing
  wattcast-probe doctor --json                     for scripts; exit status 3 if only a model works
  wattcast-probe doctor --energy.source=powercap   only this source counts";

const TOP_EXAMPLES: &str = "\
Examples:
  wattcast-probe top                                  the running probe; without one, this machine
  wattcast-probe top --url=http://edge-7:9500         the probe of another host
  wattcast-probe top --once                           one table, for a pipe or a log";

const RECORD_EXAMPLES: &str = "\
Examples:
  wattcast-probe record day.rec                    until Ctrl-C
  wattcast-probe record hour.rec --time=1h         for an hour
  wattcast-probe account hour.rec                  the metrics of what was recorded";

/// The shared flags that subcommands show. All others are in the help text of the program.
pub const SHOWN: &[Shown] = &[
    Shown { command: "doctor", flags: &["energy.source", "cpu.tier"] },
    Shown { command: "calibrate", flags: &["state.dir"] },
    Shown { command: "record", flags: &["tick", "energy.source"] },
    Shown { command: "exec", flags: &["tick", "energy.source", "Prices"] },
    Shown { command: "top", flags: &["tick", "energy.source", "Prices"] },
    Shown { command: "view", flags: &["web.listen-address", "idle.policy", "Prices"] },
    Shown { command: "account", flags: &["idle.policy"] },
];

const CALIBRATE_EXAMPLES: &str = "\
Examples:
  wattcast-probe calibrate                         then restart the probe, which reads the file at its start
  wattcast-probe calibrate --duration=5m --json    narrower intervals, for scripts
  wattcast-probe calibrate --force                 next to other work; the result is less certain

A probe may run meanwhile: the counters are only read. Needs root and RAPL; a model is not calibrated.";

/// Shortest and longest calibration: with less the counters tell nothing, and with more a piece of
/// a phase could be longer than a counter needs to wrap.
const CALIBRATION_LENGTHS: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(300);

/// Measure energy and CPU time of this host and attribute them to containers
#[derive(Clone, Debug, Parser)]
#[command(name = "wattcast-probe", version = program::version(), after_help = EXAMPLES, max_term_width = 110)]
// Every flag is accepted before and after the subcommand.
#[command(mut_args(|arg| arg.global(true)))]
// The analysis service has a configuration file of its own, with other keys.
#[command(mut_arg("config_file_path", |arg| arg.env("WATTCAST_PROBE_CONFIG")))]
pub struct Config {
    #[command(subcommand)]
    pub(crate) command: Option<ProbeCommand>,

    #[command(flatten)]
    pub(crate) web: ListenFlags,

    #[command(flatten)]
    pub(crate) paths: PathFlags,

    /// Time between two ticks: 100ms to 30s
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_tick, help_heading = "Energy")]
    pub(crate) tick: Duration,

    #[command(flatten)]
    pub(crate) energy: EnergyFlags,

    #[command(flatten)]
    pub(crate) prices: PriceFlags,

    #[command(flatten)]
    pub(crate) reference: ReferenceFlags,

    #[command(flatten)]
    pub(crate) cpu: CpuFlags,

    #[command(flatten)]
    pub(crate) gpu: GpuFlags,

    #[command(flatten)]
    pub(crate) ffmpeg: JobFlags,

    #[command(flatten)]
    pub(crate) scope: ScopeFlags,

    #[command(flatten)]
    pub(crate) guests: GuestFlags,

    #[command(flatten)]
    pub(crate) collectors: CollectorFlags,

    #[command(flatten)]
    pub(crate) limits: LimitFlags,

    #[command(flatten)]
    pub(crate) history: HistoryFlags,

    #[cfg(feature = "export")]
    #[command(flatten)]
    pub(crate) export: export::flags::ExportFlags,

    /// Omit the metric names of the legacy exporters (rapl_power_watts, …)
    #[arg(long, help_heading = "Limits")]
    pub(crate) no_compat_metrics: bool,

    #[command(flatten)]
    pub log: LogFlags,

    #[command(flatten)]
    pub file: ConfigFileFlags,
}

impl Config {
    /// Addresses of the main port.
    #[must_use]
    pub fn addresses(&self) -> Vec<ListenAddress> {
        self.web.addresses()
    }

    /// Addresses of the port for container usage; empty if that collector is off.
    #[must_use]
    pub fn stats_addresses(&self) -> Vec<ListenAddress> {
        if !self.collectors.stats() || !self.collectors.cpu() {
            return Vec::new();
        }
        with_port(&self.web.addresses(), self.web.stats_port)
    }

    /// Addresses of the port for GPUs; empty if that collector is off.
    #[must_use]
    pub fn gpu_addresses(&self) -> Vec<ListenAddress> {
        if !self.collectors.gpu() {
            return Vec::new();
        }
        with_port(&self.web.addresses(), self.web.gpu_port)
    }

    /// Creates the cgroups for leases, if a socket is configured. Needs the privileges of the
    /// start.
    #[must_use]
    pub fn lease_server(&self) -> Option<Result<LeaseServer, Unavailable>> {
        let socket = self.scope.socket.as_deref()?;
        Some(LeaseServer::open(&self.paths.cgroupfs, socket, self.scope.group.as_deref(), self.scope.count))
    }

    /// Paths of the GPU drivers' interfaces.
    #[must_use]
    pub fn gpu_paths(&self) -> gpu::GpuPaths {
        gpu::GpuPaths {
            nvml: self.gpu.nvml.clone(),
            sysfs: self.paths.sysfs.clone(),
            procfs: self.paths.procfs.clone(),
        }
    }

    /// Time between two ticks.
    #[must_use]
    pub fn tick(&self) -> Duration {
        self.tick
    }

    /// The price for the cost per hour of the live page; `None` unless it is configured.
    #[must_use]
    pub fn energy_price(&self) -> Option<EnergyPrice> {
        Some(EnergyPrice { per_kwh: self.prices.price?, currency: self.prices.currency.clone() })
    }

    /// True if the metric names of the legacy exporters are served.
    #[must_use]
    pub fn compat(&self) -> bool {
        !self.no_compat_metrics
    }

    /// Addresses for a recording that is shown: those that were named, else the port above those of
    /// a running probe.
    #[must_use]
    pub fn view_addresses(&self) -> Vec<ListenAddress> {
        if self.web.listen.is_empty() {
            vec![ListenAddress(([127, 0, 0, 1], VIEW_PORT).into())]
        } else {
            self.addresses()
        }
    }

    /// Checks combinations of flags.
    ///
    /// # Errors
    /// The first combination that is not allowed.
    pub fn check(&self) -> Result<(), String> {
        if self.ffmpeg.matches.len() > JOB_NAMES {
            return Err(format!(
                "--ffmpeg.match accepts at most {JOB_NAMES} names; a * at the end of a name matches any suffix"
            ));
        }
        if self.energy.idle.is_some() != self.energy.busy.is_some() {
            return Err("--energy.model.idle-watts and --energy.model.busy-watts must be set together".to_owned());
        }
        self.reference.check()?;
        if self.energy.source == SourceChoice::Host && self.paths.host_url.is_none() {
            return Err("--energy.source=host needs the host: --energy.host.url=https://HOST:9500".to_owned());
        }
        // Other commands push nothing, and the variables of OpenTelemetry may be set for others.
        #[cfg(feature = "export")]
        if self.command.is_none() {
            self.export_settings()?;
        }
        if let Some(ProbeCommand::Exec(flags)) = &self.command {
            flags.commands()?;
        }
        match self.energy.cpu_power() {
            Some(power) if power.idle_uw > power.busy_uw => {
                Err("--energy.model.idle-watts must not be above --energy.model.busy-watts".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// The configured directories that do not exist: what, why, and what to do, one line each. The
    /// sources in them count as absent. The defaults are not checked: where they are missing, that
    /// is a property of the machine.
    #[must_use]
    pub fn path_faults(&self) -> Vec<String> {
        let paths = &self.paths;
        let all = [
            ("--path.sysfs", &paths.sysfs, "/sys", "sysfs, for example /host/sys in a container"),
            ("--path.procfs", &paths.procfs, "/proc", "procfs, for example /host/proc in a container"),
            ("--path.cgroupfs", &paths.cgroupfs, "/sys/fs/cgroup", "the cgroup trees"),
            ("--path.rootfs", &paths.rootfs, "/", "the host's root directory"),
        ];
        let fault = |(flag, path, default, what): (&str, &PathBuf, &str, &str)| {
            let why = match path.metadata() {
                Ok(meta) if meta.is_dir() => return None,
                Ok(_) => "not a directory".to_owned(),
                Err(error) => error.to_string(),
            };
            let fault = format!("{flag}={}: {why}. Name the mount point of {what}", path.display());
            (path != Path::new(default)).then_some(fault)
        };
        all.into_iter().filter_map(fault).collect()
    }

    /// The receivers that metrics are pushed to.
    ///
    /// # Errors
    /// A URL or a file that cannot be used.
    #[cfg(feature = "export")]
    pub fn export_settings(&self) -> Result<export::flags::ExportSettings, String> {
        self.export.settings("wattcast-probe")
    }

    /// The configured attribution rules.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules {
            idle: self.energy.idle_policy,
            memory: self.energy.memory_policy,
            weights: self.cpu.weights(),
            shared_range_milli: SHARED_RANGE_MILLI,
            engines: self.gpu.weights,
        }
    }

    /// The recording to replay; `None` for other energy sources.
    ///
    /// # Errors
    /// If replay is configured without a file.
    pub fn recording(&self) -> anyhow::Result<Option<&Path>> {
        match (self.energy.source, &self.energy.replay) {
            (SourceChoice::Replay, None) => {
                anyhow::bail!("--energy.source=replay needs a recording: set --replay.file=FILE")
            }
            (SourceChoice::Replay, Some(file)) => Ok(Some(file)),
            _ => Ok(None),
        }
    }

    /// Opens the configuration of the web server.
    ///
    /// # Errors
    /// If the web configuration is not valid.
    pub fn serving(&self) -> Result<ServerOptions, WebConfigError> {
        self.web.shared.load()
    }

    /// Names of the enabled collectors that have metrics, as used in `?collect[]=`.
    #[must_use]
    pub fn collectors(&self) -> Vec<&'static str> {
        let flags = &self.collectors;
        let all = [
            ("energy", flags.energy() || flags.gpu()),
            ("cpu", flags.cpu()),
            ("ffmpeg", flags.cpu() && flags.ffmpeg()),
            ("stats", flags.cpu() && flags.stats()),
            ("gpu", flags.gpu()),
            ("probe", true),
        ];
        all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
    }

    /// The subcommand; `None` to serve.
    #[must_use]
    pub fn subcommand(&self) -> Option<&ProbeCommand> {
        self.command.as_ref()
    }

    /// The log level. `exec`, `calibrate` and `top` log only errors by default, because they use
    /// the terminal.
    #[must_use]
    pub fn log_level(&self) -> &str {
        let uses_terminal = matches!(
            self.command,
            Some(ProbeCommand::Exec(_) | ProbeCommand::Calibrate { .. } | ProbeCommand::Top { .. })
        );
        match &*self.log.level {
            "info" if uses_terminal => "error",
            level => level,
        }
    }

    /// The configuration for `exec`: without container names, jobs and usage statistics.
    #[must_use]
    pub fn for_one_command(&self) -> Self {
        let mut this = self.without_history();
        this.collectors.only_energy_and_cpu();
        // No page shows the rows, and the command must have one on a host with many cgroups.
        this.limits.containers = this.limits.containers.max(EXEC_CONTAINERS);
        this
    }

    /// The configuration for a command whose ticks are not kept: the history is that of the
    /// service.
    #[must_use]
    pub fn without_history(&self) -> Self {
        let mut this = self.clone();
        this.history.keep = Duration::ZERO;
        this
    }
}

#[derive(Clone, Debug, Subcommand)]
pub enum ProbeCommand {
    /// Check which sources are available and how to enable the rest
    ///
    /// Exit status: 0 if energy can be measured, 3 if it can only be modelled.
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Measure idle power and the weights of attribution with loads of its own
    ///
    /// Runs about two minutes of pinned loads on a quiet host, prints what it learnt, and writes
    /// calibration.json to --state.dir.
    #[command(after_help = CALIBRATE_EXAMPLES)]
    Calibrate {
        /// Length of the measurement: 10s to 5m
        #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_calibration_length)]
        duration: Duration,
        /// Measure although other programs use the CPUs
        #[arg(long)]
        force: bool,
        /// Print the content of the file instead of tables
        #[arg(long)]
        json: bool,
    },
    /// Record raw samples to FILE
    ///
    /// Recording ends with Ctrl-C or after --time.
    #[command(after_help = RECORD_EXAMPLES)]
    Record {
        /// File to write; an existing file is overwritten
        file: PathBuf,
        /// Length of the recording
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        time: Option<Duration>,
    },
    /// Show power by container and stream in the terminal
    ///
    /// Reads a running probe; samples this machine if there is none. The key ? shows all keys.
    #[command(after_help = TOP_EXAMPLES)]
    Top {
        /// URL of a probe [default: that of this configuration, http://127.0.0.1:9500]
        #[arg(long, value_name = "URL")]
        url: Option<String>,
        /// Print one table and exit, as without a terminal
        #[arg(long)]
        once: bool,
        /// Print the answer of /api/v1/now and exit
        #[arg(long)]
        json: bool,
        /// Time between two updates: 100ms to 60s
        #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_interval)]
        interval: Duration,
    },
    /// Run a command in its own cgroup and report its energy and cost
    ///
    /// The exit status is the command's. Under sudo the command runs as the user that called sudo,
    /// with that user's groups in /etc/group; the environment, HOME included, stays as sudo set it.
    #[command(after_help = EXEC_EXAMPLES)]
    Exec(ExecFlags),
    /// Check a running probe, without TLS, for the health checks of containers
    ///
    /// Exit status: 0 if it is healthy, 1 if not.
    Healthcheck {
        /// Address of the running probe
        #[arg(value_name = "HOST:PORT", default_value = "127.0.0.1:9500")]
        address: String,
    },
    /// Print a shell completion script
    ///
    /// Example: wattcast-probe completions bash > /etc/bash_completion.d/wattcast-probe
    Completions {
        /// Shell of the script
        shell: Shell,
    },
    /// Print the manual page, or write those of all commands to a directory
    Man {
        /// Directory, for example /usr/local/share/man/man1
        dir: Option<PathBuf>,
    },
    /// Show a recording in the live page
    ///
    /// The page is static: it ends with the recording. Ends with Ctrl-C.
    View {
        /// Recording to show
        file: PathBuf,
    },
    /// Replay a recording and print its metrics (deterministic)
    Account {
        /// Recording to replay
        file: PathBuf,
    },
}

/// Flags of `exec`.
#[derive(Clone, Debug, Args)]
pub struct ExecFlags {
    /// Print the report as one line of JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Print CSV, one line per repeat
    #[arg(long, conflicts_with = "json")]
    pub(crate) csv: bool,
    /// Write the report to FILE instead of standard error
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Measure COUNT times, report means with 95 % intervals [default: 1, with --versus 10]
    ///
    /// The first run that fails ends the series.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: Option<u32>,
    /// Run each command COUNT times before it is measured
    #[arg(long, value_name = "COUNT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) warmup: u32,
    /// Compare two commands in alternating order: -- COMMAND … -- COMMAND …
    ///
    /// The first -- starts command A, the next one command B. Write a command that has a -- of its
    /// own as: sh -c 'git log -- file'.
    #[arg(long)]
    pub(crate) versus: bool,
    /// Run the command as root, also under sudo
    #[arg(long)]
    pub(crate) as_root: bool,
    /// Command and arguments, after --
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl ExecFlags {
    /// Repeats of each command when two are compared.
    const COMPARED: u32 = 10;

    /// Measured repeats of each command.
    pub(crate) fn repeats(&self) -> u32 {
        self.repeat.unwrap_or(if self.versus { Self::COMPARED } else { 1 })
    }

    /// True if the report is one on several runs.
    pub(crate) fn is_series(&self) -> bool {
        self.versus || self.repeats() > 1
    }

    /// The commands: one, or two with `--versus`.
    ///
    /// # Errors
    /// When `--versus` has no two commands.
    pub(crate) fn commands(&self) -> Result<Vec<&[OsString]>, String> {
        if !self.versus {
            return Ok(vec![&self.command]);
        }
        let all: Vec<&[OsString]> = self.command.split(|word| word == "--").collect();
        if all.len() == 2 && all.iter().all(|words| !words.is_empty()) {
            return Ok(all);
        }
        Err("--versus needs two commands: exec --versus -- COMMAND … -- COMMAND …; \
             write a command that has a -- of its own as sh -c '…'"
            .to_owned())
    }
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Web")]
pub(crate) struct ListenFlags {
    /// Address to listen on, HOST:PORT or :PORT; repeatable [default: 127.0.0.1:9500]
    #[arg(long = "web.listen-address", value_name = "ADDRESS")]
    listen: Vec<ListenAddress>,

    /// Port on 127.0.0.1, used without --web.listen-address
    #[arg(long, value_name = "PORT", env = "CPU_EXPORTER_PORT", default_value_t = 9500)]
    port: u16,

    /// Port for resource usage of containers (docker_*), on the same hosts
    #[arg(long = "stats.port", value_name = "PORT", env = "DOCKER_STATS_PORT", default_value_t = 9501)]
    stats_port: u16,

    /// Port for GPUs (gpu_*), on the same hosts
    #[arg(long = "gpu.port", value_name = "PORT", env = "GPU_EXPORTER_PORT", default_value_t = 9505)]
    gpu_port: u16,

    #[command(flatten)]
    shared: WebFlags,
}

impl ListenFlags {
    /// The configured addresses.
    pub(crate) fn addresses(&self) -> Vec<ListenAddress> {
        if self.listen.is_empty() {
            vec![ListenAddress(([127, 0, 0, 1], self.port).into())]
        } else {
            self.listen.clone()
        }
    }
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Paths")]
pub(crate) struct PathFlags {
    /// Mount point of sysfs: powercap zones and CPU topology
    #[arg(long = "path.sysfs", value_name = "DIR", default_value = "/sys")]
    pub(crate) sysfs: PathBuf,

    /// Mount point of procfs: CPU use for the power model
    #[arg(long = "path.procfs", value_name = "DIR", default_value = "/proc")]
    pub(crate) procfs: PathBuf,

    /// Directory of devices: cpu/N/msr
    #[arg(long = "path.dev", value_name = "DIR", default_value = "/dev")]
    pub(crate) dev: PathBuf,

    /// Mount point of the cgroup trees
    #[arg(long = "path.cgroupfs", value_name = "DIR", default_value = "/sys/fs/cgroup")]
    pub(crate) cgroupfs: PathBuf,

    /// Root directory of the host: state files of container runtimes
    #[arg(long = "path.rootfs", value_name = "DIR", default_value = "/")]
    pub(crate) rootfs: PathBuf,

    /// Docker socket, for the names of containers
    #[arg(
        long = "docker.socket",
        value_name = "PATH",
        default_value = "/var/run/docker.sock",
        help_heading = "Collectors"
    )]
    pub(crate) docker_socket: PathBuf,

    /// Probe of this virtual machine's host, https://HOST:9500 or vsock://2:9500
    ///
    /// For --energy.source=host, which divides what the host attributes to this machine.
    #[arg(long = "energy.host.url", value_name = "URL", help_heading = "Energy")]
    host_url: Option<String>,

    /// File with this machine's token for --energy.host.url; vsock needs none
    #[arg(long = "energy.host.token-file", value_name = "FILE", help_heading = "Energy")]
    host_token: Option<PathBuf>,

    /// PEM file of the CA of --energy.host.url [default: the system's]
    #[arg(long = "energy.host.ca-file", value_name = "FILE", help_heading = "Energy")]
    host_ca: Option<PathBuf>,
}

impl PathFlags {
    /// Paths of the energy sources.
    pub(crate) fn source_paths(&self) -> SourcePaths {
        let host = self.host_url.as_ref().map(|url| HostSettings {
            url: url.clone(),
            token_file: self.host_token.clone(),
            ca_file: self.host_ca.clone(),
        });
        SourcePaths { sysfs: self.sysfs.clone(), procfs: self.procfs.clone(), dev: self.dev.clone(), host }
    }

    /// Paths of the CPU time tiers.
    pub(crate) fn cpu_paths(&self) -> cpu::CpuPaths {
        cpu::CpuPaths { cgroupfs: self.cgroupfs.clone(), procfs: self.procfs.clone() }
    }
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "CPU time")]
pub(crate) struct CpuFlags {
    /// Tier that counts CPU time; only auto falls back to another tier
    #[arg(long = "cpu.tier", value_name = "TIER", value_enum, default_value_t)]
    pub(crate) tier: cpu::TierChoice,

    /// Weight of CPU time with a busy hyperthread sibling, 0.5 to 1 [default: calibrated or 0.575]
    #[arg(long = "cpu.smt-weight", value_name = "WEIGHT", value_parser = parse_weight)]
    smt_weight: Option<u64>,
}

impl CpuFlags {
    /// Weights of CPU time.
    pub(crate) fn weights(&self) -> Weights {
        Weights { shared_milli: self.smt_weight.unwrap_or(SHARED_MILLI) }
    }

    /// True if the user has set the weight.
    pub(crate) fn names_smt_weight(&self) -> bool {
        self.smt_weight.is_some()
    }
}

fn parse_calibration_length(text: &str) -> Result<Duration, String> {
    let length = humantime::parse_duration(text).map_err(|error| format!("{error}; write 2m"))?;
    if CALIBRATION_LENGTHS.contains(&length) { Ok(length) } else { Err("10s to 5m".into()) }
}

/// Parses a weight between 0.5 and 1 to thousandths.
fn parse_weight(text: &str) -> Result<u64, String> {
    let weight: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if !(0.5..=1.0).contains(&weight) {
        return Err("a weight must be 0.5 to 1".to_owned());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 500 and 1000")]
    Ok((weight * 1000.0).round() as u64)
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Energy")]
pub(crate) struct EnergyFlags {
    /// Energy source
    #[arg(long = "energy.source", value_name = "SOURCE", value_enum, default_value_t)]
    pub(crate) source: SourceChoice,

    /// Recording for --energy.source=replay
    #[arg(long = "replay.file", value_name = "FILE")]
    pub(crate) replay: Option<PathBuf>,

    /// Model: watts of an idle logical CPU [default: estimated for the server]
    #[arg(long = "energy.model.idle-watts", value_name = "WATTS", value_parser = parse_microwatts)]
    idle: Option<u64>,

    /// Model: watts of a fully busy logical CPU [default: estimated for the server]
    #[arg(long = "energy.model.busy-watts", value_name = "WATTS", value_parser = parse_microwatts)]
    busy: Option<u64>,

    /// Idle energy attribution policy
    #[arg(long = "idle.policy", value_name = "POLICY", value_enum, default_value_t)]
    pub(crate) idle_policy: IdlePolicy,

    /// Memory energy attribution policy
    #[arg(long = "memory.policy", value_name = "POLICY", value_enum, default_value_t)]
    pub(crate) memory_policy: MemoryPolicy,

    /// Age limit of readings from which idle and awake power are learnt
    #[arg(long = "idle.sample-age", value_name = "HOURS", default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=720))]
    pub(crate) sample_age: u64,

    /// Age limit of a calibration
    #[arg(long = "calibration.max-age", value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=3650))]
    pub(crate) calibration_age: u64,

    /// Sampling rate of the power distribution, 10 to 50 Hz [default: off]
    #[arg(long = "power.distribution", value_name = "HERTZ", value_parser = clap::value_parser!(u32).range(10..=50))]
    pub(crate) distribution: Option<u32>,

    /// Directory for the learnt idle power, the calibration, and totals across restarts
    ///
    /// Default: /var/lib/wattcast, if the probe runs as root and reads the machine's own /sys.
    #[arg(long = "state.dir", value_name = "DIR", env = "STATE_DIRECTORY")]
    pub(crate) state: Option<PathBuf>,
}

impl EnergyFlags {
    /// The configured power of the model.
    pub(crate) fn cpu_power(&self) -> Option<CpuPower> {
        Some(CpuPower { idle_uw: self.idle?, busy_uw: self.busy? })
    }
}

// Names and variables are those of `wattcast-analysis`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Prices")]
pub(crate) struct PriceFlags {
    /// Price of a kilowatt hour [default: none, 0.12 for exec]
    ///
    /// With it the live page and top show the cost per hour. No metric contains it: costs of runs,
    /// tariffs and PUE are settings of wattcast-analysis.
    #[arg(
        long = "energy.price",
        alias = "price",
        value_name = "PRICE",
        env = "ENERGY_COST_PER_KWH",
        value_parser = program::price
    )]
    price: Option<f64>,

    /// Currency of the price
    #[arg(long, value_name = "ISO4217", env = "CURRENCY", default_value = "USD", value_parser = program::currency)]
    pub(crate) currency: String,
}

impl PriceFlags {
    /// Price of a kilowatt hour for the report on a command: the configured one, or the default of
    /// `wattcast-analysis`.
    pub(crate) fn of_command(&self) -> f64 {
        const DEFAULT: f64 = 0.12;
        self.price.unwrap_or(DEFAULT)
    }
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Reference meter")]
pub(crate) struct ReferenceFlags {
    /// Address of a meter that measures this machine, for comparison with its counters
    ///
    /// A Redfish resource of the management controller, or a smart plug. Never attributed.
    #[arg(long = "reference.url", value_name = "URL")]
    meter_url: Option<String>,

    /// File with the power of a meter that measures this machine, instead of --reference.url
    #[arg(long = "reference.file", value_name = "FILE")]
    meter_file: Option<PathBuf>,

    /// JSON pointer to the power, for example /PowerControl/0/PowerConsumedWatts
    ///
    /// Default: the answer, or the content of the file, is the number itself.
    #[arg(long = "reference.field", value_name = "POINTER", default_value = "", hide_default_value = true)]
    meter_field: String,

    /// Watts of one unit of the power, for example 0.001 for milliwatts
    #[arg(long = "reference.scale", value_name = "WATTS", default_value_t = 1.0, value_parser = parse_scale)]
    meter_scale: f64,

    /// Time between two readings: 1s to 60s
    #[arg(long = "reference.interval", value_name = "DURATION", default_value = "5s", value_parser = parse_meter_interval)]
    meter_interval: Duration,

    /// Name of the meter in labels
    #[arg(long = "reference.name", value_name = "NAME", default_value = "wall")]
    meter_name: String,

    /// User name for --reference.url
    #[arg(long = "reference.username", value_name = "NAME")]
    meter_username: Option<String>,

    /// File with the password for --reference.url
    #[arg(long = "reference.password-file", value_name = "FILE")]
    meter_password: Option<PathBuf>,

    /// File with the bearer token for --reference.url
    #[arg(long = "reference.bearer-token-file", value_name = "FILE")]
    meter_token: Option<PathBuf>,

    /// PEM file of the CA of --reference.url [default: the system's]
    #[arg(long = "reference.ca-file", value_name = "FILE")]
    meter_ca: Option<PathBuf>,

    /// Power meters of the board under /sys/class/hwmon (default: on)
    #[arg(long = "reference.hwmon", overrides_with = "without_hwmon")]
    with_hwmon: bool,
    #[arg(long = "no-reference.hwmon", overrides_with = "with_hwmon", hide = true)]
    without_hwmon: bool,
}

impl ReferenceFlags {
    fn check(&self) -> Result<(), String> {
        if self.meter_url.is_some() && self.meter_file.is_some() {
            return Err("--reference.url and --reference.file cannot be set together".to_owned());
        }
        // Two meters with one name would be one series.
        if self.meter_name.is_empty() || self.meter_name == BOARD_METER {
            return Err(format!("--reference.name must not be empty, nor {BOARD_METER}, which is the board's"));
        }
        if !self.meter_field.is_empty() && !self.meter_field.starts_with('/') {
            return Err(
                "--reference.field is a JSON pointer and starts with a slash: /PowerControl/0/PowerConsumedWatts"
                    .into(),
            );
        }
        Ok(())
    }

    /// The configured meters. The sensors of the board are left out if energy is not collected.
    pub(crate) fn settings(&self, energy: bool) -> MeterSettings {
        let mut settings = MeterSettings {
            url: self.meter_url.clone(),
            file: self.meter_file.clone(),
            field: self.meter_field.clone(),
            scale: self.meter_scale,
            interval: self.meter_interval,
            name: self.meter_name.clone(),
            hwmon: energy && !self.without_hwmon,
            ..MeterSettings::default()
        };
        settings.access.username.clone_from(&self.meter_username);
        settings.access.password_file.clone_from(&self.meter_password);
        settings.access.bearer_token_file.clone_from(&self.meter_token);
        settings.access.ca_file.clone_from(&self.meter_ca);
        settings
    }
}

fn parse_scale(text: &str) -> Result<f64, String> {
    let scale: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if scale > 0.0 && scale.is_finite() { Ok(scale) } else { Err("a scale must be above 0".into()) }
}

fn parse_meter_interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| format!("{error}; write 5s"))?;
    let allowed = Duration::from_secs(1)..=Duration::from_secs(60);
    if allowed.contains(&interval) { Ok(interval) } else { Err("1s to 60s".into()) }
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "GPUs")]
pub(crate) struct GpuFlags {
    /// NVIDIA's management library [default: libnvidia-ml.so.1 in the loader's path]
    #[arg(long = "path.nvml", value_name = "FILE", env = "NVML_LIBRARY")]
    pub(crate) nvml: Option<PathBuf>,

    /// Weights of GPU engines relative to the shaders, ENGINE=WEIGHT,…
    ///
    /// Default: sm=1, memory=0.5, encoder=0.3, decoder=0.3, jpeg=0.1, ofa=0.1, video=0.3,
    /// video_enhance=0.1, copy=0.1
    #[arg(long = "gpu.engine-weights", value_name = "WEIGHTS", default_value = "", hide_default_value = true)]
    weights: EngineWeights,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Jobs")]
pub(crate) struct JobFlags {
    /// Names of programs tracked as jobs, at most four; NAME* matches any suffix
    #[arg(long = "ffmpeg.match", value_name = "NAME", value_delimiter = ',', default_value = "ffmpeg", num_args = 1)]
    matches: Vec<String>,
}

impl JobFlags {
    pub(crate) fn names(&self) -> jobs::ProgramNames {
        jobs::ProgramNames(self.matches.clone())
    }
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Cgroup leases")]
pub(crate) struct ScopeFlags {
    /// Unix socket that leases cgroups to wattcast-analysis run [default: none]
    ///
    /// Needed if wattcast-analysis has no permission to create cgroups.
    #[arg(long = "scope.socket", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// Group that may use the socket in addition to root
    #[arg(long = "scope.group", value_name = "NAME", requires = "socket")]
    pub(crate) group: Option<String>,

    /// Number of cgroups that can be leased at once; a live run needs three
    #[arg(long = "scope.count", value_name = "COUNT", default_value_t = 6, value_parser = parse_scope_count)]
    pub(crate) count: usize,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Guests")]
pub(crate) struct GuestFlags {
    /// File with the guests that may read their energy over HTTP: NAME SHA256-OF-TOKEN per line
    ///
    /// NAME is the label container or id of the guest's row. Each guest reads only its own.
    #[arg(long = "guest.tokens-file", value_name = "FILE")]
    pub(crate) tokens: Option<PathBuf>,

    /// Port on which guests read their energy over vsock, for example 9500 [default: none]
    ///
    /// The hypervisor says which guest asks, so no token is needed. QEMU only.
    #[arg(long = "guest.vsock-port", value_name = "PORT")]
    pub(crate) vsock: Option<u32>,
}

fn parse_scope_count(text: &str) -> Result<usize, String> {
    let count = text.parse().map_err(|_| "not a number".to_owned())?;
    if (1..=MAX_LEASES).contains(&count) { Ok(count) } else { Err(format!("1 to {MAX_LEASES}")) }
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Collectors")]
pub(crate) struct CollectorFlags {
    /// Energy counters or the model (default: on)
    #[arg(long = "collector.energy", overrides_with = "without_energy")]
    with_energy: bool,
    #[arg(long = "no-collector.energy", overrides_with = "with_energy", hide = true)]
    without_energy: bool,

    /// CPU time per container (default: on)
    #[arg(long = "collector.cpu", overrides_with = "without_cpu")]
    with_cpu: bool,
    #[arg(long = "no-collector.cpu", overrides_with = "with_cpu", hide = true)]
    without_cpu: bool,

    /// ffmpeg jobs (default: on)
    #[arg(long = "collector.ffmpeg", overrides_with = "without_ffmpeg")]
    with_ffmpeg: bool,
    #[arg(long = "no-collector.ffmpeg", overrides_with = "with_ffmpeg", hide = true)]
    without_ffmpeg: bool,

    /// Memory, network and block I/O of containers, on --stats.port (default: on)
    #[arg(long = "collector.stats", overrides_with = "without_stats")]
    with_stats: bool,
    #[arg(long = "no-collector.stats", overrides_with = "with_stats", hide = true)]
    without_stats: bool,

    /// GPUs: energy, engines and their users, on --gpu.port (default: on)
    #[arg(long = "collector.gpu", overrides_with = "without_gpu")]
    with_gpu: bool,
    #[arg(long = "no-collector.gpu", overrides_with = "with_gpu", hide = true)]
    without_gpu: bool,

    /// Container names from the Docker socket and runtimes' files (default: on)
    ///
    /// Every collector can be switched off with --no-collector.NAME.
    #[arg(long = "collector.docker", overrides_with = "without_docker")]
    with_docker: bool,
    #[arg(long = "no-collector.docker", overrides_with = "with_docker", hide = true)]
    without_docker: bool,

    /// Container labels to export in wattcast_container_label_info
    #[arg(long = "container.labels", value_name = "NAME", value_delimiter = ',')]
    labels: Vec<String>,
}

impl CollectorFlags {
    /// Switches the other collectors off. GPUs stay on, because they have energy.
    fn only_energy_and_cpu(&mut self) {
        (self.without_docker, self.without_ffmpeg, self.without_stats) = (true, true, true);
    }

    pub(crate) fn energy(&self) -> bool {
        !self.without_energy
    }

    pub(crate) fn cpu(&self) -> bool {
        !self.without_cpu
    }

    pub(crate) fn container_labels(&self) -> Vec<String> {
        let mut labels = self.labels.clone();
        labels.sort_unstable();
        labels.dedup();
        labels
    }

    pub(crate) fn ffmpeg(&self) -> bool {
        !self.without_ffmpeg
    }

    pub(crate) fn gpu(&self) -> bool {
        !self.without_gpu
    }

    /// True if GPUs were enabled explicitly, which makes their absence a fault.
    pub(crate) fn wants_gpu(&self) -> bool {
        self.with_gpu
    }

    pub(crate) fn stats(&self) -> bool {
        !self.without_stats
    }

    pub(crate) fn docker(&self) -> bool {
        !self.without_docker
    }

    /// True if Docker was enabled explicitly, which makes its absence a fault.
    pub(crate) fn wants_docker(&self) -> bool {
        self.with_docker
    }
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitFlags {
    /// Time for which the series of a removed container are kept
    #[arg(long = "retain.dead", value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    pub(crate) retain: Duration,

    /// Maximum number of containers with series; the energy of others is retired
    #[arg(long = "limit.containers", value_name = "COUNT", default_value_t = 512)]
    pub(crate) containers: usize,

    /// Maximum memory of the tick history behind /api/v1/window
    #[arg(long = "window.bytes", value_name = "BYTES", default_value_t = 16 << 20)]
    pub(crate) window_bytes: usize,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct HistoryFlags {
    /// Time for which ticks are kept on disk for the live page; 0 for none
    ///
    /// Nothing is kept unless --state.dir is set, as in the service.
    #[arg(long = "history.keep", value_name = "DURATION", default_value = "1h", value_parser = parse_keep)]
    pub(crate) keep: Duration,
}

/// Parses a time of up to a day; 0 needs no unit.
fn parse_keep(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(86_400);
    let keep = match text {
        "0" => Duration::ZERO,
        _ => humantime::parse_duration(text).map_err(|error| format!("{error}; write 1h, or 0 for none"))?,
    };
    if keep.is_zero() || (Duration::from_secs(60)..=LONGEST).contains(&keep) {
        Ok(keep)
    } else {
        Err("1m to 1d, or 0 for none".into())
    }
}

fn parse_tick(text: &str) -> Result<Duration, String> {
    let tick = humantime::parse_duration(text).map_err(|error| format!("{error}; write 1s or 500ms"))?;
    if (SHORTEST_TICK..=LONGEST_TICK).contains(&tick) {
        Ok(tick)
    } else {
        Err("a tick must be 100ms to 30s: shorter power readings are a side channel, longer ones miss counter wraps"
            .into())
    }
}

/// Parses the time between two updates of `top`.
fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| format!("{error}; write 1s or 500ms"))?;
    let allowed = SHORTEST_TICK..=Duration::from_secs(60);
    if allowed.contains(&interval) { Ok(interval) } else { Err("100ms to 60s".into()) }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded before the cast")]
fn parse_microwatts(text: &str) -> Result<u64, String> {
    let watts: f64 = text.parse().map_err(|_| "not a number of watts, for example 3.5".to_owned())?;
    if (0.0..=10_000.0).contains(&watts) { Ok((watts * 1e6).round() as u64) } else { Err("0 to 10000 watts".into()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(args: &[&str]) -> Result<Config, String> {
        Config::try_parse_from([&["wattcast-probe"], args].concat()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Config::command().debug_assert();
    }

    #[test]
    fn defaults_are_loopback_and_all_collectors() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.web.addresses(), ["127.0.0.1:9500".parse().unwrap()]);
        assert_eq!(config.tick, Duration::from_secs(1));
        assert_eq!(config.energy.cpu_power(), None);
        let flags = &config.collectors;
        assert!(flags.energy() && flags.cpu() && flags.docker() && !flags.wants_docker());
    }

    #[test]
    fn idle_watts_above_busy_watts_are_rejected() {
        let watts = |idle: &str, busy: &str| {
            parse(&[&format!("--energy.model.idle-watts={idle}"), &format!("--energy.model.busy-watts={busy}")])
        };
        assert!(watts("1", "4").unwrap().check().is_ok());
        assert!(parse(&["--energy.model.busy-watts=4"]).unwrap().check().unwrap_err().contains("idle-watts"));
        assert!(watts("4", "1").unwrap().check().unwrap_err().contains("busy-watts"));
    }

    /// A `--path.sysfs` that does not exist was accepted without a word.
    #[test]
    fn a_missing_path_is_reported_with_its_flag() {
        assert!(parse(&["--path.sysfs=/sys", "--path.rootfs=/"]).unwrap().path_faults().is_empty());
        assert_eq!(
            parse(&["--path.sysfs=/nowhere", "--path.cgroupfs=/proc/self/stat"]).unwrap().path_faults(),
            [
                "--path.sysfs=/nowhere: No such file or directory (os error 2). Name the mount point of sysfs, for example /host/sys in a container",
                "--path.cgroupfs=/proc/self/stat: not a directory. Name the mount point of the cgroup trees",
            ]
        );
    }

    #[test]
    fn a_reference_meter_is_one_endpoint_or_one_file() {
        let check = |args: &[&str]| parse(args).unwrap().check();
        assert!(check(&["--reference.url=https://bmc/redfish", "--reference.field=/a/0"]).is_ok());
        assert!(
            check(&["--reference.url=https://bmc/", "--reference.file=/run/watts"]).unwrap_err().contains("together")
        );
        assert!(check(&["--reference.file=/run/watts", "--reference.field=a"]).unwrap_err().contains("slash"));
        assert!(check(&["--reference.name=power_meter"]).unwrap_err().contains("board"));
        for wrong in
            ["--reference.scale=0", "--reference.scale=NaN", "--reference.scale=inf", "--reference.interval=1ms"]
        {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
        let flags = parse(&["--no-reference.hwmon"]).unwrap().reference;
        assert!(!flags.settings(true).hwmon && !parse(&[]).unwrap().reference.settings(false).hwmon);
    }

    #[test]
    fn the_host_as_source_needs_its_address() {
        assert!(parse(&["--energy.source=host"]).unwrap().check().unwrap_err().contains("--energy.host.url"));
        let config = parse(&["--energy.source=host", "--energy.host.url=vsock://2:9500"]).unwrap();
        assert!(config.check().is_ok() && config.paths.source_paths().host.is_some());
        assert!(parse(&[]).unwrap().paths.source_paths().host.is_none());
    }

    fn exec_flags(args: &[&str]) -> ExecFlags {
        match parse(&[&["exec"], args].concat()).unwrap().command {
            Some(ProbeCommand::Exec(flags)) => flags,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_a_configured_price_is_shown_and_exec_has_a_default() {
        let price = |args: &[&str]| {
            let config = parse(args).unwrap();
            (config.energy_price(), config.prices.of_command())
        };
        let set = EnergyPrice { per_kwh: 0.3, currency: "EUR".to_owned() };
        assert!((set.per_hour(1000.0) - 0.3).abs() < 1e-12);
        let before = price(&["--energy.price=0.30", "--currency=EUR", "exec", "--", "true"]);
        let after = price(&["exec", "--price=0.30", "--currency=eur", "--", "true"]);
        assert_eq!((before, after), ((Some(set.clone()), 0.3), (Some(set), 0.3)));
        // The variables of the environment of a build machine.
        if std::env::var_os("ENERGY_COST_PER_KWH").is_none() {
            assert_eq!(price(&["exec", "--", "true"]), (None, 0.12));
        }
        assert!(parse(&["--energy.price=-1"]).is_err() && parse(&["--currency=euros"]).is_err());
    }

    #[test]
    fn exec_splits_two_commands_at_the_next_separator() {
        let flags = exec_flags(&["--versus", "--", "sleep", "1", "--", "sleep", "--help"]);
        assert_eq!(flags.commands().unwrap(), [["sleep", "1"], ["sleep", "--help"]]);
        assert_eq!((flags.repeats(), flags.warmup, flags.is_series()), (10, 0, true));
        let one = exec_flags(&["--", "git", "log", "--", "file"]);
        assert_eq!(one.commands().unwrap(), [["git", "log", "--", "file"]], "without --versus it is the command's");
        assert_eq!((one.repeats(), one.is_series()), (1, false));
        let flags = exec_flags(&["--repeat=3", "--warmup=2", "--versus", "--", "a", "--", "b"]);
        assert_eq!((flags.repeats(), flags.warmup), (3, 2));
    }

    #[test]
    fn exec_without_two_commands_to_compare_is_refused() {
        for words in [&["a"][..], &["a", "--"], &["--", "b"], &["a", "--", "b", "--", "c"], &["a", "--", "--", "b"]] {
            let config = parse(&[&["exec", "--versus", "--"], words].concat()).unwrap();
            assert!(config.check().unwrap_err().contains("sh -c"), "{words:?}");
        }
        for wrong in ["--repeat=0", "--repeat=1001", "--warmup=101"] {
            assert!(parse(&["exec", wrong, "--", "true"]).is_err(), "{wrong}");
        }
        assert!(parse(&["exec", "--csv", "--json", "--", "true"]).is_err());
    }

    #[test]
    fn listen_addresses_add_up_and_the_last_collector_flag_wins() {
        let config = parse(&["--web.listen-address=:1", "--web.listen-address=[::1]:2", "--port=3"]).unwrap();
        assert_eq!(config.web.addresses().len(), 2);
        assert_eq!(parse(&["--port=3"]).unwrap().web.addresses(), ["127.0.0.1:3".parse().unwrap()]);
        assert!(!parse(&["--no-collector.cpu"]).unwrap().collectors.cpu());
        assert!(parse(&["--no-collector.cpu", "--collector.cpu"]).unwrap().collectors.cpu());
        assert!(!parse(&["--collector.docker", "--no-collector.docker"]).unwrap().collectors.docker());
    }

    #[test]
    fn an_error_for_a_wrong_flag_or_value_suggests_a_valid_one() {
        for (args, hint) in [
            (&["--web.listen-adress=:1"][..], "--web.listen-address"),
            (&["--energy.source=powercpa"][..], "powercap"),
            (&["--no-collector.cpus"][..], "--no-collector.cpu"),
            (&["--tick=1"][..], "1s or 500ms"),
            (&["--tick=1ms"][..], "100ms to 30s"),
            (&["--history.keep=1"][..], "1h, or 0"),
            (&["--history.keep=1s"][..], "1m to 1d"),
            (&["--web.listen-address=9500"][..], "127.0.0.1:9500"),
            (&["--energy.model.busy-watts=-1"][..], "0 to 10000"),
            (&["--power.distribution=1000"][..], "10..=50"),
            (&["--idle.policy=proportion"][..], "proportional"),
            (&["--memory.policy=cpu"][..], "misses-only"),
            (&["--gpu.engine-weights=nvenc=1"][..], "encoder"),
            (&["docter"][..], "doctor"),
            (&["calibrate", "--duration=1s"][..], "10s to 5m"),
            (&["top", "--interval=1ms"][..], "100ms to 60s"),
        ] {
            let error = parse(args).unwrap_err();
            assert!(error.contains(hint), "{args:?}: {error}");
        }
    }
}
