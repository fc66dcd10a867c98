//! The command line: flags over environment over defaults.

use std::{fs, io, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use exporter::{
    flags::{LogFlags, WebFlags},
    listen::{Listen, all_beside},
    program,
};

use crate::{
    advise::Objective,
    compare::Metric,
    settings::{Health, Shared, often},
    streams::{nginx::StreamLabel, receive::Pipe},
};

/// Turns the runs of a results directory into metrics, with the joules that the probe measured.
#[derive(Clone, Debug, Parser)]
#[command(name = "wattcast-analysis", version = program::version(), max_term_width = 110)]
pub struct Config {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The sub-commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serve the newest runs of a results directory on ports 9502 (results), 9503 (quality) and 9504 (cost), ffmpeg's progress on 9506, nginx-rtmp on 9728, the health of
    /// every exporter on 9600. Needs no privileges
    Serve(Box<Serve>),
    /// Say which configuration to take: ranks, what nothing beats, the cheapest for a quality, the power of more streams
    Advise(Advise),
    /// Write the history of all runs into VictoriaMetrics, each number at the time of its run
    Backfill(Backfill),
    /// Measure encoders: joules, time and quality of configurations, often enough to know how sure they are
    Run(Box<crate::runner::flags::Run>),
    /// Whether the second of two runs is another than the first. Ends with 0 when nothing became worse, 1 when something did, 3 when not all can be compared
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare(Box<Compare>),
    /// One page of HTML with everything in a run: plots, intervals, Bjøntegaard's measures, what is doubtful
    Report(Box<Report>),
    /// Look at every exporter of the stack once: reachable, complete, of now? Ends with 0 when all that is wanted is healthy, else with 1
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Box<Check>),
    /// Ask a running one whether it is alive, without TLS: for the health checks of containers. Exit 0 when it is, 1 when not
    Healthcheck {
        /// Where it listens
        #[arg(value_name = "HOST:PORT", default_value = "127.0.0.1:9502")]
        address: String,
    },
    /// Print what a shell needs to complete the command line, for example: wattcast-analysis completions bash > /etc/bash_completion.d/wattcast-analysis
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page, or write those of all commands into a directory
    Man {
        /// The directory, /usr/local/share/man/man1
        dir: Option<PathBuf>,
    },
}

const CHECK_EXAMPLES: &str = "\
Examples:
  wattcast-analysis check                                                   the stack of this host
  wattcast-analysis check --targets probe=https://enc-1:9500 --client.ca-file=ca.pem
  wattcast-analysis check --scrape-config=/etc/prometheus/prometheus.yml --json
  wattcast-analysis check --compare http://enc-1:9510 http://enc-1:9500     a replaced exporter beside the new one";

const COMPARE_EXAMPLES: &str = "\
Examples:
  wattcast-analysis compare before.json after.json                      every configuration, in energy, time, rate and VMAF
  wattcast-analysis compare before.json after.json --threshold 2%       a gate that lets less than 2 % pass
  wattcast-analysis compare a.json b.json --metrics energy --json";

/// Flags of `compare`.
#[derive(Clone, Debug, Args)]
pub struct Compare {
    /// The result file that is compared with
    #[arg(value_name = "A")]
    pub first: PathBuf,

    /// The result file that is compared
    #[arg(value_name = "B")]
    pub second: PathBuf,

    /// In what
    #[arg(long, value_name = "METRIC", value_enum, value_delimiter = ',', default_values_t = Metric::ALL)]
    pub metrics: Vec<Metric>,

    /// Differences of less than this are of no interest, however sure they are: 2%
    #[arg(long, value_name = "PERCENT", default_value = "0%", value_parser = threshold)]
    pub threshold: f64,

    /// End with 0 although a configuration or a figure of one run is missing in the other
    #[arg(long)]
    pub allow_missing: bool,

    /// JSON instead of a table
    #[arg(long)]
    pub json: bool,

    /// What is read, whom to ask, what things cost
    #[command(flatten)]
    pub shared: Shared,
}

/// Flags of `report`.
#[derive(Clone, Debug, Args)]
pub struct Report {
    /// The result file [default: the newest of the results directory]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Where to write it; - is standard output [default: beside the results, with .html]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// What is read, whom to ask, what things cost
    #[command(flatten)]
    pub shared: Shared,
}

fn threshold(text: &str) -> Result<f64, String> {
    let number: f64 = text.trim_end_matches('%').trim().parse().map_err(|_| "give percent, 2%".to_owned())?;
    if (0.0..=1000.0).contains(&number) { Ok(number / 100.0) } else { Err("0% to 1000%".to_owned()) }
}

/// Flags of `check`.
#[derive(Clone, Debug, Args)]
// A file that serve reads is read whole, and flags of prices win over it; who only checks need not see them.
#[command(mut_args(|arg| { let hidden = PRICES.contains(&arg.get_id().as_str()); arg.hide(hidden) }))]
pub struct Check {
    /// JSON instead of a table
    #[arg(long)]
    pub json: bool,

    /// Log what is asked and answered
    #[arg(long)]
    pub debug: bool,

    /// Instead lay two exporters beside each other, by URL, or by a file with a page: ends with 0 when all names and labels of the first are in the second
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"])]
    pub compare: Vec<String>,

    /// Look again for so long, until everything has shown that its data is of now: for what changes slowly and does not say its age
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub wait: Duration,

    /// Over which time the rates of counters are compared
    #[arg(long = "compare.over", value_name = "DURATION", default_value = "5s", value_parser = often)]
    pub over: Duration,

    /// What is looked at
    #[command(flatten)]
    pub health: Health,

    /// What is read, whom to ask, what things cost
    #[command(flatten)]
    pub shared: Shared,
}

/// Flags of runs and their costs.
const PRICES: [&str; 16] = [
    "results_dir",
    "database_url",
    "database_write_url",
    "database_tenant",
    "scope",
    "energy_price",
    "cpu_price",
    "gpu_price",
    "node_price",
    "compute_model",
    "currency",
    "report",
    "rate_max_age",
    "pue",
    "carbon",
    "region",
];

/// Flags of `advise`.
#[derive(Clone, Debug, Args)]
pub struct Advise {
    /// What is read, whom to ask, what things cost
    #[command(flatten)]
    pub shared: Shared,

    /// Runs that are looked at, the newest first
    #[arg(long = "results.keep", value_name = "COUNT", default_value_t = 1)]
    pub keep: usize,

    /// The least VMAF: recommends the best that reaches it
    #[arg(long = "target-vmaf", value_name = "SCORE", value_parser = vmaf)]
    pub vmaf: Option<f64>,

    /// Only outputs of this size: 1080p, or 1920x1080
    #[arg(long, value_name = "SIZE")]
    pub resolution: Option<String>,

    /// What is to be small
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub objective: Objective,

    /// Predict the host's power with so many streams
    #[arg(long, value_name = "COUNT")]
    pub streams: Option<u32>,

    /// JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Flags of `backfill`.
#[derive(Clone, Debug, Args)]
pub struct Backfill {
    /// What is read, whom to ask, what things cost
    #[command(flatten)]
    pub shared: Shared,

    /// Print the lines instead of sending them
    #[arg(long)]
    pub dry_run: bool,
}

fn vmaf(text: &str) -> Result<f64, String> {
    let score: f64 = text.parse().map_err(|_| "give a score, for example 93".to_owned())?;
    if (0.0..=110.0).contains(&score) { Ok(score) } else { Err("0 to 110".to_owned()) }
}

/// Flags of `serve`.
#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// Runs that stay visible, the newest first
    #[arg(long = "results.keep", value_name = "COUNT", default_value_t = 10)]
    pub keep: usize,

    /// Scenarios of them all, beyond which older runs are left out; the newest stays whole
    #[arg(long = "limit.scenarios", value_name = "COUNT", default_value_t = 1000)]
    pub scenarios: usize,

    /// A newest run that is older is stale
    #[arg(long = "results.stale", value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    pub stale: Duration,

    /// The directory is looked at when the kernel tells of a new file, and at the latest after this long
    #[arg(long = "cache-ttl", value_name = "DURATION", default_value = "60s", value_parser = refresh)]
    pub ttl: Duration,

    /// File that keeps which alerts were told, so that a restart tells none again
    #[arg(long = "alerts.state", value_name = "FILE")]
    pub alerts_state: Option<PathBuf>,

    /// URL of this service, as receivers of alerts reach it [default: http://127.0.0.1:9502/]
    #[arg(long = "web.external-url", value_name = "URL")]
    pub external_url: Option<String>,

    /// Address to listen on, HOST:PORT or :PORT; may be given several times [default: 127.0.0.1:9502]
    #[arg(long = "web.listen-address", value_name = "ADDRESS")]
    listen: Vec<Listen>,

    /// Port on 127.0.0.1, where no --web.listen-address is given
    #[arg(long, value_name = "PORT", env = "RESULTS_EXPORTER_PORT", default_value_t = 9502)]
    port: u16,

    /// Port for what the pictures are worth, on the same hosts
    #[arg(long = "qoe.port", value_name = "PORT", env = "QOE_EXPORTER_PORT", default_value_t = 9503)]
    qoe_port: u16,

    /// Port for what runs cost, on the same hosts
    #[arg(long = "cost.port", value_name = "PORT", env = "COST_EXPORTER_PORT", default_value_t = 9504)]
    cost_port: u16,

    /// Port for ffmpeg's progress and what it says, on the same hosts: HTTP posts, datagrams and the metrics
    #[arg(long = "ffmpeg.port", value_name = "PORT", env = "FFMPEG_EXPORTER_PORT", default_value_t = 9506)]
    ffmpeg_port: u16,

    /// File that holds what a post of progress must carry, as ?token=… or Authorization: Bearer …; then no datagrams are taken, for they
    /// carry none. Or the token itself in the environment: FFMPEG_PROGRESS_TOKEN
    #[arg(long = "ffmpeg.token-file", value_name = "FILE", env = "FFMPEG_PROGRESS_TOKEN_FILE")]
    token_file: Option<PathBuf>,

    /// Unix socket for -progress unix:PATH; it is made for its owner and group
    #[arg(long = "ffmpeg.socket", value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Named pipe for -progress PATH of one stream, made where nothing stands; may be given several times
    #[arg(long = "ffmpeg.pipe", value_name = "STREAM=PATH")]
    pub pipes: Vec<Pipe>,

    /// Most streams with series of their own
    #[arg(long = "limit.streams", value_name = "COUNT", default_value_t = 256)]
    pub streams: usize,

    /// How long the series of a stream stay after its last report
    #[arg(long = "retain.dead", value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    pub retain: Duration,

    /// File that gets a line of JSON for each job that ended [default: streams.ndjson in the results directory, where that exists]
    #[arg(long = "streams.record", value_name = "FILE", env = "STREAMS_RECORD")]
    record: Option<PathBuf>,

    /// Port for what nginx's RTMP module says, on the same hosts
    #[arg(long = "nginx.port", value_name = "PORT", env = "NGINX_EXPORTER_PORT", default_value_t = 9728)]
    nginx_port: u16,

    /// The RTMP module's page
    #[arg(long = "nginx.url", value_name = "URL", env = "NGINX_STAT_URL", default_value = "http://127.0.0.1/stat")]
    pub nginx: String,

    /// What stands for the name of an RTMP stream, which is usually its key
    #[arg(long = "nginx.stream-label", value_name = "WHAT", value_enum, default_value_t)]
    pub stream_label: StreamLabel,

    /// How often nginx is asked
    #[arg(long = "nginx.interval", value_name = "DURATION", default_value = "5s", value_parser = refresh)]
    pub nginx_interval: Duration,

    /// Leave out the metric names of the Go and Python exporters (results_scenario_avg_fps, …)
    #[arg(long)]
    no_compat_metrics: bool,

    /// Port for the health of every exporter, on the same hosts
    #[arg(long = "health.port", value_name = "PORT", env = "HEALTH_CHECK_PORT", default_value_t = 9600)]
    health_port: u16,

    /// What is read, whom to ask, what things cost
    #[command(flatten)]
    pub shared: Shared,

    /// What is looked at
    #[command(flatten)]
    pub health: Health,

    /// How pages are served
    #[command(flatten)]
    pub web: WebFlags,

    /// What is logged, and how
    #[command(flatten)]
    pub log: LogFlags,
}

impl Serve {
    /// Where to listen.
    #[must_use]
    pub fn addresses(&self) -> Vec<Listen> {
        if self.listen.is_empty() { vec![Listen(([127, 0, 0, 1], self.port).into())] } else { self.listen.clone() }
    }

    /// Where to listen with what the pictures are worth.
    #[must_use]
    pub fn qoe_addresses(&self) -> Vec<Listen> {
        all_beside(&self.addresses(), self.qoe_port)
    }

    /// Where to listen with what runs cost.
    #[must_use]
    pub fn cost_addresses(&self) -> Vec<Listen> {
        all_beside(&self.addresses(), self.cost_port)
    }

    /// Where to listen for ffmpeg's progress.
    #[must_use]
    pub fn ffmpeg_addresses(&self) -> Vec<Listen> {
        all_beside(&self.addresses(), self.ffmpeg_port)
    }

    /// Where to listen with what nginx says.
    #[must_use]
    pub fn nginx_addresses(&self) -> Vec<Listen> {
        all_beside(&self.addresses(), self.nginx_port)
    }

    /// Whether to serve the names of the exporters we replace.
    #[must_use]
    pub fn compat(&self) -> bool {
        !self.no_compat_metrics
    }

    /// Where to listen with how every exporter stands.
    #[must_use]
    pub fn health_addresses(&self) -> Vec<Listen> {
        all_beside(&self.addresses(), self.health_port)
    }

    /// What a post of progress must carry; never from the command line, which everybody can read.
    ///
    /// # Errors
    /// When the file cannot be read, or is empty: nobody is let in by an accident.
    pub fn token(&self) -> io::Result<Option<String>> {
        let text = match &self.token_file {
            Some(file) => fs::read_to_string(file)?,
            None => match std::env::var("FFMPEG_PROGRESS_TOKEN") {
                Ok(text) => text,
                Err(_) => return Ok(None),
            },
        };
        let token = text.trim();
        if token.is_empty() { Err(io::Error::other("an empty token")) } else { Ok(Some(token.to_owned())) }
    }

    /// Where ended jobs are kept; `None` where there is no place for them.
    #[must_use]
    pub fn record(&self) -> Option<PathBuf> {
        let dir = &self.shared.results_dir;
        self.record.clone().or_else(|| dir.is_dir().then(|| dir.join("streams.ndjson")))
    }
}

fn refresh(text: &str) -> Result<Duration, String> {
    let refresh = humantime::parse_duration(text).map_err(|error| format!("{error}; write 2s or 500ms"))?;
    let range = Duration::from_millis(100)..=Duration::from_secs(3600);
    if range.contains(&refresh) { Ok(refresh) } else { Err("100ms to 1h".into()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Config::command().debug_assert();
    }

    #[test]
    fn a_wrong_word_is_answered_with_the_nearest_right_one() {
        for (args, hint) in [
            (&["wattcast-analysis", "sevre"][..], "serve"),
            (&["wattcast-analysis", "serve", "--result-dir=x"][..], "--results-dir"),
            (&["wattcast-analysis", "serve", "--cache-ttl=2"][..], "2s or 500ms"),
            (&["wattcast-analysis", "serve", "--energy.price=cheap"][..], "0.12"),
            (&["wattcast-analysis", "advise", "--target-vmaf=1000"][..], "0 to 110"),
        ] {
            let error = Config::try_parse_from(args).unwrap_err().to_string();
            assert!(error.contains(hint), "{args:?}: {error}");
        }
    }
}
