//! The command line: flags over environment over defaults.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use exporter::{
    flags::{LogFlags, Serving, WebFlags},
    listen::{Listen, all_beside},
    program::{self, FileFlags},
    web::WebError,
};
use probe_ebpf::JOB_NAMES;

use crate::{
    cpu::{self, Weights},
    energy::{Choice, Places, model::PowerLine},
    gpu::{self, engines::EngineWeights},
    jobs,
    ledger::{IdlePolicy, Rules, SHARED_MILLI},
    scopes::{MOST, Scopes},
    state::Unavailable,
};

/// Ticks closer than this are refused: finer power is a side channel (PLATYPUS).
pub const SHORTEST_TICK: Duration = Duration::from_millis(100);
/// Ticks further apart than this would let a 32-bit energy counter wrap unseen on a busy server.
pub const LONGEST_TICK: Duration = Duration::from_secs(30);

const EXAMPLES: &str = "\
Examples:
  wattcast-probe                                   everything that works here, on 127.0.0.1:9500
  wattcast-probe --web.listen-address=:9500        reachable from outside
  wattcast-probe --energy.source=powercap          RAPL or nothing; never a model
  wattcast-probe --path.sysfs=/host/sys            from inside a container, with the host's /sys mounted there
  wattcast-probe doctor                            what can be measured here, and what to do about the rest
  wattcast-probe exec -- ffmpeg -i a.mp4 b.mp4     what one command costs
  wattcast-probe record day.rec                    keep the raw ticks, until Ctrl-C
  wattcast-probe account day.rec                   the account of a recording, the same every time

Run it as root. It opens the energy counters, loads its eBPF programs and drops its privileges.";

const EXEC_EXAMPLES: &str = "\
Examples:
  wattcast-probe exec -- ffmpeg -i in.mp4 -c:v libx264 out.mp4     joules, watts, frames and joules a frame
  wattcast-probe exec --json --output=cost.json -- make            for a script; the output of make stays as it is";

/// Measures the energy and CPU time of this host and divides them among its containers.
#[derive(Clone, Debug, Parser)]
#[command(name = "wattcast-probe", version = program::version(), after_help = EXAMPLES, max_term_width = 110)]
// Every flag may stand before or after the command.
#[command(mut_args(|arg| arg.global(true)))]
// Not the one of the service, which knows other keys.
#[command(mut_arg("config_file_path", |arg| arg.env("WATTCAST_PROBE_CONFIG")))]
pub struct Config {
    /// Without one: sample and serve
    #[command(subcommand)]
    pub(crate) command: Option<Job>,

    #[command(flatten)]
    pub(crate) web: Web,

    #[command(flatten)]
    pub(crate) paths: Paths,

    /// Time between two ticks: 100ms to 30s
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = tick)]
    pub(crate) tick: Duration,

    #[command(flatten)]
    pub(crate) energy: Energy,

    #[command(flatten)]
    pub(crate) cpu: Cpu,

    #[command(flatten)]
    pub(crate) gpu: Gpu,

    #[command(flatten)]
    pub(crate) ffmpeg: Ffmpeg,

    #[command(flatten)]
    pub(crate) scope: Scope,

    #[command(flatten)]
    pub(crate) collectors: Collectors,

    #[command(flatten)]
    pub(crate) limits: Limits,

    /// Leave out the metric names of the Go and Python exporters (rapl_power_watts, …)
    #[arg(long)]
    pub(crate) no_compat_metrics: bool,

    /// What is logged, and how
    #[command(flatten)]
    pub log: LogFlags,

    /// Where all this may stand, too
    #[command(flatten)]
    pub file: FileFlags,
}

impl Config {
    /// Where to listen.
    #[must_use]
    pub fn addresses(&self) -> Vec<Listen> {
        self.web.addresses()
    }

    /// Where to listen with what containers use; nowhere without that collector.
    #[must_use]
    pub fn stats_addresses(&self) -> Vec<Listen> {
        if !self.collectors.stats() || !self.collectors.cpu() {
            return Vec::new();
        }
        all_beside(&self.web.addresses(), self.web.stats_port)
    }

    /// Where GPUs are listened for; nowhere when they are not read.
    #[must_use]
    pub fn gpu_addresses(&self) -> Vec<Listen> {
        if !self.collectors.gpu() {
            return Vec::new();
        }
        all_beside(&self.web.addresses(), self.web.gpu_port)
    }

    /// Makes the scopes for runs, where they are wanted; while the probe still may.
    #[must_use]
    pub fn scopes(&self) -> Option<Result<Scopes, Unavailable>> {
        let socket = self.scope.socket.as_deref()?;
        Some(Scopes::open(&self.paths.cgroupfs, socket, self.scope.group.as_deref(), self.scope.count))
    }

    /// Where GPUs are looked for.
    #[must_use]
    pub fn gpu_places(&self) -> gpu::Places {
        gpu::Places { nvml: self.gpu.nvml.clone(), sysfs: self.paths.sysfs.clone(), procfs: self.paths.procfs.clone() }
    }

    /// Time between two ticks.
    #[must_use]
    pub fn tick(&self) -> Duration {
        self.tick
    }

    /// Whether to serve the names of the exporters we replace.
    #[must_use]
    pub fn compat(&self) -> bool {
        !self.no_compat_metrics
    }

    /// What no single flag shows to be wrong.
    ///
    /// # Errors
    /// A line that says what does not fit.
    pub fn check(&self) -> Result<(), String> {
        if self.ffmpeg.matches.len() > JOB_NAMES {
            return Err(format!(
                "--ffmpeg.match takes at most {JOB_NAMES} names; a * at the end of one stands for any rest"
            ));
        }
        if self.energy.idle.is_some() != self.energy.busy.is_some() {
            return Err("--energy.model.idle-watts and --energy.model.busy-watts: both, or neither".to_owned());
        }
        match self.energy.line() {
            Some(line) if line.idle_uw > line.busy_uw => {
                Err("--energy.model.idle-watts is above --energy.model.busy-watts: load never saves power".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// What the user decides of the arithmetic.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules { idle: self.energy.idle_policy, weights: self.cpu.weights(), engines: self.gpu.weights }
    }

    /// The recording that is played; none where energy comes from elsewhere.
    ///
    /// # Errors
    /// When one is wanted and not named.
    pub fn recording(&self) -> anyhow::Result<Option<&Path>> {
        match (self.energy.source, &self.energy.replay) {
            (Choice::Replay, None) => {
                anyhow::bail!("--energy.source=replay plays a recording: name it with --replay.file=FILE")
            }
            (Choice::Replay, Some(file)) => Ok(Some(file)),
            _ => Ok(None),
        }
    }

    /// How pages are served.
    ///
    /// # Errors
    /// What is wrong with the web configuration.
    pub fn serving(&self) -> Result<Serving, WebError> {
        self.web.shared.open()
    }

    /// The collectors that are on and have families, by the names that `?collect[]=` takes.
    #[must_use]
    pub fn collectors(&self) -> Vec<&'static str> {
        let on = &self.collectors;
        let all = [
            ("energy", on.energy() || on.gpu()),
            ("cpu", on.cpu()),
            ("ffmpeg", on.cpu() && on.ffmpeg()),
            ("stats", on.cpu() && on.stats()),
            ("gpu", on.gpu()),
            ("probe", true),
        ];
        all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
    }

    /// What to do instead of serving.
    #[must_use]
    pub fn job(&self) -> Option<&Job> {
        self.command.as_ref()
    }

    /// What to log. A command that is run has the terminal to itself, unless it was asked for more.
    #[must_use]
    pub fn log_level(&self) -> &str {
        match (&*self.log.level, &self.command) {
            ("info", Some(Job::Exec { .. })) => "error",
            (level, _) => level,
        }
    }

    /// The same for one command: nobody is asked for names, and nothing but energy, CPU time and cgroups is read.
    #[must_use]
    pub fn for_one_command(&self) -> Self {
        let mut this = self.clone();
        this.collectors.only_energy_and_cpu();
        this
    }
}

/// What to do instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Job {
    /// Say what can be measured here, what not, why, and what to do; exit 0 when energy can be measured, 3 when only modelled
    Doctor {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Keep the raw ticks of this machine in a file, until Ctrl-C or for a time
    Record {
        /// The file; it is made, or emptied
        file: PathBuf,
        /// How long
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        time: Option<Duration>,
    },
    /// Run a command in a cgroup of its own, and say at its end what it cost; ends with the command's exit code
    #[command(after_help = EXEC_EXAMPLES)]
    Exec {
        /// For programs: one line of JSON
        #[arg(long)]
        json: bool,
        /// Where the report goes instead of standard error
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Money for a kilowatt hour
        #[arg(long, value_name = "PRICE", env = "ENERGY_COST_PER_KWH", default_value_t = 0.12, value_parser = program::price)]
        price: f64,
        /// In which currency
        #[arg(long, value_name = "ISO4217", env = "CURRENCY", default_value = "USD")]
        currency: String,
        /// The command and its arguments, after --
        #[arg(required = true, last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Ask a running one whether it is alive, without TLS: for the health checks of containers. Exit 0 when it is, 1 when not
    Healthcheck {
        /// Where it listens
        #[arg(value_name = "HOST:PORT", default_value = "127.0.0.1:9500")]
        address: String,
    },
    /// Print what a shell needs to complete the command line, for example: wattcast-probe completions bash > /etc/bash_completion.d/wattcast-probe
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page, or write those of all commands into a directory
    Man {
        /// The directory, /usr/local/share/man/man1
        dir: Option<PathBuf>,
    },
    /// Print the account of a recording as metrics; the same every time
    Account {
        /// The recording
        file: PathBuf,
    },
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Web")]
pub(crate) struct Web {
    /// Address to listen on, HOST:PORT or :PORT; may be given several times [default: 127.0.0.1:9500]
    #[arg(long = "web.listen-address", value_name = "ADDRESS")]
    listen: Vec<Listen>,

    /// Port on 127.0.0.1, where no --web.listen-address is given
    #[arg(long, value_name = "PORT", env = "CPU_EXPORTER_PORT", default_value_t = 9500)]
    port: u16,

    /// Port for what containers use (docker_*), on the same hosts
    #[arg(long = "stats.port", value_name = "PORT", env = "DOCKER_STATS_PORT", default_value_t = 9501)]
    stats_port: u16,

    /// Port for GPUs (gpu_*), on the same hosts
    #[arg(long = "gpu.port", value_name = "PORT", env = "GPU_EXPORTER_PORT", default_value_t = 9505)]
    gpu_port: u16,

    #[command(flatten)]
    shared: WebFlags,
}

impl Web {
    /// The addresses that the flags and the environment add up to.
    pub(crate) fn addresses(&self) -> Vec<Listen> {
        if self.listen.is_empty() { vec![Listen(([127, 0, 0, 1], self.port).into())] } else { self.listen.clone() }
    }
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Paths")]
pub(crate) struct Paths {
    /// Where sysfs is: powercap zones and CPU topology
    #[arg(long = "path.sysfs", value_name = "DIR", default_value = "/sys")]
    pub(crate) sysfs: PathBuf,

    /// Where procfs is: CPU use for the power model
    #[arg(long = "path.procfs", value_name = "DIR", default_value = "/proc")]
    pub(crate) procfs: PathBuf,

    /// Where devices are: cpu/N/msr
    #[arg(long = "path.dev", value_name = "DIR", default_value = "/dev")]
    pub(crate) dev: PathBuf,

    /// Where the cgroup trees are
    #[arg(long = "path.cgroupfs", value_name = "DIR", default_value = "/sys/fs/cgroup")]
    pub(crate) cgroupfs: PathBuf,

    /// Where the host's root is: the files that container runtimes keep of their containers
    #[arg(long = "path.rootfs", value_name = "DIR", default_value = "/")]
    pub(crate) rootfs: PathBuf,

    /// Docker's socket, for the names of containers
    #[arg(long = "docker.socket", value_name = "PATH", default_value = "/var/run/docker.sock")]
    pub(crate) docker_socket: PathBuf,
}

impl Paths {
    /// Where energy sources look.
    pub(crate) fn places(&self) -> Places {
        Places { sysfs: self.sysfs.clone(), procfs: self.procfs.clone(), dev: self.dev.clone() }
    }

    /// Where the tiers of CPU time look.
    pub(crate) fn cpu_places(&self) -> cpu::Places {
        cpu::Places { cgroupfs: self.cgroupfs.clone(), procfs: self.procfs.clone() }
    }
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "CPU time")]
pub(crate) struct Cpu {
    /// How CPU time is counted; a tier that is asked for by name is not replaced by another
    #[arg(long = "cpu.tier", value_name = "TIER", value_enum, default_value_t)]
    pub(crate) tier: cpu::Choice,

    /// What a second beside a busy hyperthread is worth of a second alone, 0.5 to 1 [default: 0.575]
    #[arg(long = "cpu.smt-weight", value_name = "WEIGHT", value_parser = milli)]
    smt_weight: Option<u64>,
}

impl Cpu {
    /// What CPU time is worth.
    pub(crate) fn weights(&self) -> Weights {
        Weights { shared_milli: self.smt_weight.unwrap_or(SHARED_MILLI) }
    }
}

/// A weight between a half and one, in thousandths.
fn milli(text: &str) -> Result<u64, String> {
    let weight: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if !(0.5..=1.0).contains(&weight) {
        return Err("two busy threads of a core are worth at least one and at most two: 0.5 to 1".to_owned());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 500 and 1000")]
    Ok((weight * 1000.0).round() as u64)
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Energy")]
pub(crate) struct Energy {
    /// Where joules come from
    #[arg(long = "energy.source", value_name = "SOURCE", value_enum, default_value_t)]
    pub(crate) source: Choice,

    /// The recording that --energy.source=replay plays
    #[arg(long = "replay.file", value_name = "FILE")]
    pub(crate) replay: Option<PathBuf>,

    /// The model's watts of an idle logical CPU [default: by the processor's generation]
    #[arg(long = "energy.model.idle-watts", value_name = "WATTS", value_parser = microwatts)]
    idle: Option<u64>,

    /// The model's watts of a fully busy logical CPU [default: by the processor's generation]
    #[arg(long = "energy.model.busy-watts", value_name = "WATTS", value_parser = microwatts)]
    busy: Option<u64>,

    /// Whose the idle energy is
    #[arg(long = "idle.policy", value_name = "POLICY", value_enum, default_value_t)]
    pub(crate) idle_policy: IdlePolicy,

    /// Read packages this many times a second, 10 to 50, for the distribution of power [default: off]
    #[arg(long = "power.distribution", value_name = "HERTZ", value_parser = clap::value_parser!(u32).range(10..=50))]
    pub(crate) distribution: Option<u32>,

    /// Where what was learnt of idle power is kept [default: /var/lib/wattcast for this machine's own /sys, as root]
    #[arg(long = "state.dir", value_name = "DIR", env = "STATE_DIRECTORY")]
    pub(crate) state: Option<PathBuf>,
}

impl Energy {
    /// The user's power line for the model.
    pub(crate) fn line(&self) -> Option<PowerLine> {
        Some(PowerLine { idle_uw: self.idle?, busy_uw: self.busy? })
    }
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "GPUs")]
pub(crate) struct Gpu {
    /// NVIDIA's management library [default: libnvidia-ml.so.1, as the loader finds it]
    #[arg(long = "path.nvml", value_name = "FILE", env = "NVML_LIBRARY")]
    pub(crate) nvml: Option<PathBuf>,

    /// What a second of a GPU's engine is worth of one of its shaders when joules are shared, ENGINE=WEIGHT,… [default:
    /// sm=1,memory=0.5,encoder=0.3,decoder=0.3,jpeg=0.1,ofa=0.1,video=0.3,video_enhance=0.1,copy=0.1]
    #[arg(long = "gpu.engine-weights", value_name = "WEIGHTS", default_value = "", hide_default_value = true)]
    weights: EngineWeights,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Jobs")]
pub(crate) struct Ffmpeg {
    /// Programs whose processes are jobs, by name, up to four; a * at the end stands for any rest
    #[arg(long = "ffmpeg.match", value_name = "NAME", value_delimiter = ',', default_value = "ffmpeg", num_args = 1)]
    matches: Vec<String>,
}

impl Ffmpeg {
    /// The names.
    pub(crate) fn names(&self) -> jobs::Names {
        jobs::Names(self.matches.clone())
    }
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Scopes for runs")]
pub(crate) struct Scope {
    /// Unix socket on which wattcast-analysis run gets a cgroup of its own for what it measures, where it may make none; without it there is none
    #[arg(long = "scope.socket", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// Group that may use the socket, besides root
    #[arg(long = "scope.group", value_name = "NAME", requires = "socket")]
    pub(crate) group: Option<String>,

    /// How many may be held at once: a live run takes three
    #[arg(long = "scope.count", value_name = "COUNT", default_value_t = 6, value_parser = scopes)]
    pub(crate) count: usize,
}

fn scopes(text: &str) -> Result<usize, String> {
    let count = text.parse().map_err(|_| "give a number".to_owned())?;
    if (1..=MOST).contains(&count) { Ok(count) } else { Err(format!("1 to {MOST}")) }
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Collectors")]
pub(crate) struct Collectors {
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

    /// Jobs: which processes encode, and what for (default: on)
    #[arg(long = "collector.ffmpeg", overrides_with = "without_ffmpeg")]
    with_ffmpeg: bool,
    #[arg(long = "no-collector.ffmpeg", overrides_with = "with_ffmpeg", hide = true)]
    without_ffmpeg: bool,

    /// Memory, network and block I/O of containers, on a port of their own (default: on)
    #[arg(long = "collector.stats", overrides_with = "without_stats")]
    with_stats: bool,
    #[arg(long = "no-collector.stats", overrides_with = "with_stats", hide = true)]
    without_stats: bool,

    /// GPUs: energy, engines, who uses them, on a port of their own (default: on)
    #[arg(long = "collector.gpu", overrides_with = "without_gpu")]
    with_gpu: bool,
    #[arg(long = "no-collector.gpu", overrides_with = "with_gpu", hide = true)]
    without_gpu: bool,

    /// Names of containers from the Docker socket and other runtimes' files (default: on). Each has its --no-collector.NAME
    #[arg(long = "collector.docker", overrides_with = "without_docker")]
    with_docker: bool,
    #[arg(long = "no-collector.docker", overrides_with = "with_docker", hide = true)]
    without_docker: bool,

    /// Labels of containers to show, in wattcast_container_label_info
    #[arg(long = "container.labels", value_name = "NAME", value_delimiter = ',')]
    labels: Vec<String>,
}

impl Collectors {
    /// GPUs are energy too.
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

    /// True when the user asked for GPUs by name, so that their absence is a fault.
    pub(crate) fn wants_gpu(&self) -> bool {
        self.with_gpu
    }

    pub(crate) fn stats(&self) -> bool {
        !self.without_stats
    }

    pub(crate) fn docker(&self) -> bool {
        !self.without_docker
    }

    /// True when the user asked for Docker by name, so that its absence is a fault.
    pub(crate) fn wants_docker(&self) -> bool {
        self.with_docker
    }
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct Limits {
    /// How long the series of a container stay after its end
    #[arg(long = "retain.dead", value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    pub(crate) retain: Duration,

    /// Most containers with series of their own; the joules of others are in the retired row
    #[arg(long = "limit.containers", value_name = "COUNT", default_value_t = 512)]
    pub(crate) containers: usize,

    /// Most memory for the past that /api/v1/window answers from
    #[arg(long = "window.bytes", value_name = "BYTES", default_value_t = 16 << 20)]
    pub(crate) window_bytes: usize,
}

fn tick(text: &str) -> Result<Duration, String> {
    let tick = humantime::parse_duration(text).map_err(|error| format!("{error}; write 1s or 500ms"))?;
    if (SHORTEST_TICK..=LONGEST_TICK).contains(&tick) {
        Ok(tick)
    } else {
        Err("a tick lasts 100ms to 30s: finer power readings are a side channel, coarser ones miss counter wraps"
            .into())
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded before the cast")]
fn microwatts(text: &str) -> Result<u64, String> {
    let watts: f64 = text.parse().map_err(|_| "give watts, for example 3.5".to_owned())?;
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
    fn without_flags_it_listens_on_loopback_and_collects_everything() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.web.addresses(), ["127.0.0.1:9500".parse().unwrap()]);
        assert_eq!(config.tick, Duration::from_secs(1));
        assert_eq!(config.energy.line(), None);
        let on = &config.collectors;
        assert!(on.energy() && on.cpu() && on.docker() && !on.wants_docker());
    }

    #[test]
    fn watts_that_fall_with_load_are_refused() {
        let watts = |idle: &str, busy: &str| {
            parse(&[&format!("--energy.model.idle-watts={idle}"), &format!("--energy.model.busy-watts={busy}")])
        };
        assert!(watts("1", "4").unwrap().check().is_ok());
        assert!(parse(&["--energy.model.busy-watts=4"]).unwrap().check().unwrap_err().contains("idle-watts"));
        assert!(watts("4", "1").unwrap().check().unwrap_err().contains("busy-watts"));
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
    fn a_wrong_flag_or_value_is_answered_with_the_nearest_right_one() {
        for (args, hint) in [
            (&["--web.listen-adress=:1"][..], "--web.listen-address"),
            (&["--energy.source=powercpa"][..], "powercap"),
            (&["--no-collector.cpus"][..], "--no-collector.cpu"),
            (&["--tick=1"][..], "1s or 500ms"),
            (&["--tick=1ms"][..], "100ms to 30s"),
            (&["--web.listen-address=9500"][..], "127.0.0.1:9500"),
            (&["--energy.model.busy-watts=-1"][..], "0 to 10000"),
            (&["--power.distribution=1000"][..], "10..=50"),
            (&["--idle.policy=proportion"][..], "proportional"),
            (&["--gpu.engine-weights=nvenc=1"][..], "encoder"),
            (&["docter"][..], "doctor"),
        ] {
            let error = parse(args).unwrap_err();
            assert!(error.contains(hint), "{args:?}: {error}");
        }
    }
}
