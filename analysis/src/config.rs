//! The command line: flags over environment over defaults.

use std::{fs, io, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use cli::{help::Shown, log::LogFlags, program};
use http::{
    flags::WebFlags,
    listen::{ListenAddress, with_port},
};

use crate::{
    advise::Objective,
    bill::flags::Bill,
    settings::{HealthFlags, parse_interval},
    streams::{nginx::StreamLabel, receive::Pipe},
};
use experiment::{
    compare::Metric,
    runner::flags::{CONFIGURATIONS, PROTOCOL},
};
use results::settings::{CLIENT, DataFlags, PRICES, RUNS, SOURCES};

/// Energy, quality and cost of encoding runs, as metrics and reports
#[derive(Clone, Debug, Parser)]
#[command(name = "wattcast-analysis", version = program::version(), max_term_width = 110)]
pub struct Config {
    #[command(subcommand)]
    pub command: Command,
}

/// The shared flags that commands show in addition to their own.
pub const SHOWN: &[Shown] = &[
    Shown { command: "serve", flags: &["*"] },
    Shown { command: "advise", flags: &[RUNS, PRICES, "probe-url", "database.url"] },
    Shown { command: "backfill", flags: &[RUNS, SOURCES] },
    Shown { command: "run", flags: &[CONFIGURATIONS, PROTOCOL, RUNS, "probe-url"] },
    Shown { command: "compare", flags: &["energy.scope", "probe-url", "database.url"] },
    Shown { command: "report", flags: &[RUNS, PRICES, "probe-url", "database.url"] },
    Shown { command: "check", flags: &["Health", CLIENT] },
    Shown { command: "bill", flags: &[SOURCES, PRICES] },
];

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serve metrics of runs, live streams and exporter health
    ///
    /// Ports: 9502 (results), 9503 (quality), 9504 (cost), 9506 (ffmpeg progress), 9600 (health of
    /// every exporter), 9728 (media servers). Needs no privileges.
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Box<Serve>),
    /// Recommend a configuration from measured runs
    ///
    /// Prints the efficiency ranking and the Pareto front, the best configuration for a target
    /// quality, and the predicted power of a number of streams. Exit code: 0, or 3 if no
    /// configuration can be recommended for --target-vmaf.
    #[command(after_help = ADVISE_EXAMPLES)]
    Advise(Advise),
    /// Write all runs into VictoriaMetrics with the time of each run
    #[command(after_help = BACKFILL_EXAMPLES)]
    Backfill(Backfill),
    /// Charge energy, cost and carbon of a period to streams, containers or teams
    ///
    /// The rows sum to the energy that the hosts measured. Times without data are named.
    #[command(after_help = BILL_EXAMPLES)]
    Bill(Box<Bill>),
    /// Measure energy, time and quality of encoder configurations
    Run(Box<experiment::runner::flags::Run>),
    /// Compare two runs, or the configurations of one, for statistically significant differences
    ///
    /// Exit code: 0 if nothing became worse, 1 if something did, 3 if not everything is comparable.
    /// With --by: 0, or 3 if nothing is comparable.
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare(Box<Compare>),
    /// Write an HTML report of a run: plots, intervals, Bjøntegaard deltas, warnings
    #[command(after_help = REPORT_EXAMPLES)]
    Report(Box<Report>),
    /// Check the health of every exporter of the stack once
    ///
    /// A healthy exporter is reachable and complete, and its data is current. Exit code: 0 if all
    /// required targets are healthy, else 1.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Box<Check>),
    /// Check the health of a running service, for container health checks
    ///
    /// Uses plain HTTP. Exit code: 0 if the service is healthy, else 1.
    Healthcheck {
        /// Address of the service
        #[arg(value_name = "HOST:PORT", default_value = "127.0.0.1:9502")]
        address: String,
    },
    /// Print shell completions
    ///
    /// Example: wattcast-analysis completions bash > /etc/bash_completion.d/wattcast-analysis
    Completions { shell: Shell },
    /// Print the manual page, or write those of all commands to a directory
    Man {
        /// Output directory, for example /usr/local/share/man/man1
        dir: Option<PathBuf>,
    },
}

const CHECK_EXAMPLES: &str = "\
Examples:
  wattcast-analysis check                                                   the stack of this host
  wattcast-analysis check --targets probe=https://enc-1:9500 --client.ca-file=ca.pem
  wattcast-analysis check --scrape-config=/etc/prometheus/prometheus.yml --json
  wattcast-analysis check --compare http://enc-1:9510 http://enc-1:9500     legacy and new exporter";

const SERVE_EXAMPLES: &str = "\
Examples:
  wattcast-analysis serve                                               all pages, on 127.0.0.1
  wattcast-analysis serve --results-dir=/srv/runs --energy.price=0.30 --currency=EUR
  wattcast-analysis serve --probe-url=enc-1=http://enc-1:9500,enc-2=http://enc-2:9500";

const ADVISE_EXAMPLES: &str = "\
Examples:
  wattcast-analysis advise                                              ranking of the newest run
  wattcast-analysis advise --target-vmaf 93 --objective energy          least energy at this quality
  wattcast-analysis advise --target-vmaf 93 --streams 20 --json         with the power of 20 streams";

const BACKFILL_EXAMPLES: &str = "\
Examples:
  wattcast-analysis backfill --database.url http://127.0.0.1:8428       all runs of ./test_results
  wattcast-analysis backfill --dry-run | head                           the lines, without sending";

const REPORT_EXAMPLES: &str = "\
Examples:
  wattcast-analysis report                                              of the newest run
  wattcast-analysis report test_results_20261130_120000.json --output=- > report.html";

const COMPARE_EXAMPLES: &str = "\
Examples:
  wattcast-analysis compare before.json after.json                 all configurations, metrics
  wattcast-analysis compare before.json after.json --threshold 2%  ignore less than 2 %
  wattcast-analysis compare a.json b.json --metrics energy --json
  wattcast-analysis compare run.json --by encoder                  the encoders of one run
  wattcast-analysis compare run.json --by preset -v                all rows too";

const BILL_EXAMPLES: &str = "\
Examples:
  wattcast-analysis bill --month=2026-11 --database.url=http://127.0.0.1:8428
  wattcast-analysis bill --month=2026-11 --by=label --label=team --format=csv --output=bill.csv
  wattcast-analysis bill --from=2026-11-01 --to=2026-11-08 --by=stream --source=log";

#[derive(Clone, Debug, Args)]
pub struct Compare {
    /// Baseline result file
    #[arg(value_name = "BASELINE")]
    pub baseline: PathBuf,

    /// Candidate result file
    #[arg(value_name = "CANDIDATE", required_unless_present = "by")]
    pub candidate: Option<PathBuf>,

    /// Compare the configurations of one file by a dimension: encoder, preset, resolution, rate, …
    ///
    /// Its first value in the file is the baseline of the others.
    #[arg(long, value_name = "DIMENSION", conflicts_with = "candidate")]
    pub by: Option<String>,

    /// Print all rows of --by too
    #[arg(short, long, requires = "by")]
    pub verbose: bool,

    /// Metrics to compare
    #[arg(long, value_name = "METRIC", value_enum, value_delimiter = ',', default_values_t = Metric::ALL)]
    pub metrics: Vec<Metric>,

    /// Smallest difference to report, for example 2%
    #[arg(long, value_name = "PERCENT", default_value = "0%", value_parser = parse_threshold)]
    pub threshold: f64,

    /// Exit with 0 even if a configuration or metric is missing in one run
    #[arg(long)]
    pub allow_missing: bool,

    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub shared: DataFlags,
}

#[derive(Clone, Debug, Args)]
pub struct Report {
    /// Result file [default: the newest in the results directory]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Output file, - for standard output [default: the result file's path with .html]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    #[command(flatten)]
    pub shared: DataFlags,
}

fn parse_threshold(text: &str) -> Result<f64, String> {
    let number: f64 = text.trim_end_matches('%').trim().parse().map_err(|_| "not a percentage; write 2%".to_owned())?;
    if (0.0..=1000.0).contains(&number) { Ok(number / 100.0) } else { Err("0% to 1000%".to_owned()) }
}

#[derive(Clone, Debug, Args)]
// The configuration file of `serve` is read whole, so all its flags exist here; prices are hidden.
#[command(mut_args(|arg| { let hidden = HIDDEN.contains(&arg.get_id().as_str()); arg.hide(hidden) }))]
pub struct Check {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,

    /// Log requests and responses
    #[arg(long)]
    pub debug: bool,

    /// The legacy checker's flag, without effect
    #[arg(long)]
    pub no_unicode: bool,

    /// Compare the metrics of two exporters instead, each a URL or a saved page
    ///
    /// Exit code: 0 if all names and labels of the first exist in the second.
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"])]
    pub compare: Vec<String>,

    /// Longest time to wait until all data is known to be current
    ///
    /// For exporters whose values change slowly and that report no timestamps.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub wait: Duration,

    /// Interval over which rates of counters are compared
    #[arg(long = "compare.over", value_name = "DURATION", default_value = "5s", value_parser = parse_interval)]
    pub over: Duration,

    #[command(flatten)]
    pub health: HealthFlags,

    #[command(flatten)]
    pub shared: DataFlags,
}

/// Flags of runs and prices, and a flag without effect, which `check` hides.
const HIDDEN: [&str; 19] = [
    "results_dir",
    "database_url",
    "database_write_url",
    "database_tenant",
    "scope",
    "energy_price",
    "cpu_price",
    "legacy_energy_price",
    "legacy_cpu_price",
    "gpu_price",
    "node_price",
    "compute_model",
    "currency",
    "report",
    "rate_max_age",
    "pue",
    "carbon",
    "region",
    "no_unicode",
];

#[derive(Clone, Debug, Args)]
pub struct Advise {
    #[command(flatten)]
    pub shared: DataFlags,

    /// Number of newest runs to show
    ///
    /// A recommendation is of the newest run with quality scores, up to the tenth.
    #[arg(long = "results.keep", value_name = "COUNT", default_value_t = 1)]
    pub keep: usize,

    /// Minimum VMAF: recommend the best configuration that reaches it
    #[arg(long = "target-vmaf", value_name = "SCORE", value_parser = parse_vmaf)]
    pub vmaf: Option<f64>,

    /// Only configurations with this output size, for example 1080p or 1920x1080, or all outputs,
    /// 1920x1080@30,1280x720@30
    #[arg(long, value_name = "SIZE")]
    pub resolution: Option<String>,

    /// Quantity to minimise
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub objective: Objective,

    /// Number of streams: recommend for it, and predict the power
    #[arg(long, value_name = "COUNT")]
    pub streams: Option<u32>,

    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Backfill {
    #[command(flatten)]
    pub shared: DataFlags,

    /// Print the lines instead of sending them
    #[arg(long)]
    pub dry_run: bool,
}

fn parse_vmaf(text: &str) -> Result<f64, String> {
    let score: f64 = text.parse().map_err(|_| "not a score; write 93".to_owned())?;
    if (0.0..=110.0).contains(&score) { Ok(score) } else { Err("0 to 110".to_owned()) }
}

#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// Number of newest runs to serve
    #[arg(long = "results.keep", value_name = "COUNT", default_value_t = 10)]
    pub keep: usize,

    /// Maximum number of scenarios; older runs are dropped beyond it
    ///
    /// The newest run is always complete.
    #[arg(long = "limit.scenarios", value_name = "COUNT", default_value_t = 1000)]
    pub scenarios: usize,

    /// Age after which the newest run counts as stale
    #[arg(long = "results.stale", value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    pub stale: Duration,

    /// Longest interval between scans of the results directory
    ///
    /// A new file triggers a scan at once where inotify works.
    #[arg(long = "cache-ttl", value_name = "DURATION", default_value = "60s", value_parser = parse_refresh)]
    pub ttl: Duration,

    /// File for the state of alerts, so that a restart does not send them again
    #[arg(long = "alerts.state", value_name = "FILE")]
    pub alerts_state: Option<PathBuf>,

    /// External URL of this service, for links in alerts [default: http://127.0.0.1:9502/]
    #[arg(long = "web.external-url", value_name = "URL")]
    pub external_url: Option<String>,

    /// Listen address HOST:PORT or :PORT, repeatable [default: 127.0.0.1:9502]
    #[arg(long = "web.listen-address", value_name = "ADDRESS")]
    listen: Vec<ListenAddress>,

    /// Port on 127.0.0.1, without --web.listen-address
    #[arg(long, value_name = "PORT", env = "RESULTS_EXPORTER_PORT", default_value_t = 9502)]
    port: u16,

    /// Port of the quality metrics, on the same hosts
    #[arg(long = "qoe.port", value_name = "PORT", env = "QOE_EXPORTER_PORT", default_value_t = 9503)]
    qoe_port: u16,

    /// Port of the cost metrics, on the same hosts
    #[arg(long = "cost.port", value_name = "PORT", env = "COST_EXPORTER_PORT", default_value_t = 9504)]
    cost_port: u16,

    /// Port of ffmpeg progress (HTTP and UDP) and its metrics, on the same hosts
    #[arg(long = "ffmpeg.port", value_name = "PORT", env = "FFMPEG_EXPORTER_PORT", default_value_t = 9506)]
    ffmpeg_port: u16,

    /// File with the token that progress requests need
    ///
    /// Requests carry it as ?token=… or as Authorization: Bearer …. UDP is disabled with a token,
    /// as datagrams carry none. The environment variable FFMPEG_PROGRESS_TOKEN may hold the token.
    #[arg(long = "ffmpeg.token-file", value_name = "FILE", env = "FFMPEG_PROGRESS_TOKEN_FILE")]
    token_file: Option<PathBuf>,

    /// Unix socket for -progress unix:PATH, writable by owner and group
    #[arg(long = "ffmpeg.socket", value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Named pipe for -progress PATH of one stream, created if missing; repeatable
    #[arg(long = "ffmpeg.pipe", value_name = "STREAM=PATH")]
    pub pipes: Vec<Pipe>,

    /// Maximum number of streams with their own series
    #[arg(long = "limit.streams", value_name = "COUNT", default_value_t = 256)]
    pub streams: usize,

    /// Retention of a stream's series after its last report
    #[arg(long = "retain.dead", value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    pub retain: Duration,

    /// File for a JSON line per ended job [default: RESULTS_DIR/streams.ndjson]
    #[arg(long = "streams.record", value_name = "FILE", env = "STREAMS_RECORD")]
    record: Option<PathBuf>,

    /// Port of the metrics of media servers, on the same hosts
    #[arg(long = "nginx.port", value_name = "PORT", env = "NGINX_EXPORTER_PORT", default_value_t = 9728)]
    nginx_port: u16,

    /// Statistics page of nginx's RTMP module
    #[arg(long = "nginx.url", value_name = "URL", env = "NGINX_STAT_URL", default_value = "http://127.0.0.1/stat")]
    pub nginx: String,

    /// API of MediaMTX, or its page of metrics [default: ports 9997 and 9998 of this host]
    ///
    /// An empty value disables it.
    #[arg(long = "mediamtx.url", value_name = "URL", env = "MEDIAMTX_URL")]
    pub mediamtx: Option<String>,

    /// HTTP API of SRS [default: http://127.0.0.1:1985]
    ///
    /// An empty value disables it.
    #[arg(long = "srs.url", value_name = "URL", env = "SRS_API_URL")]
    pub srs: Option<String>,

    /// Label value of a media server's stream, whose name is usually its key
    #[arg(long = "nginx.stream-label", value_name = "LABEL", value_enum, default_value_t)]
    pub stream_label: StreamLabel,

    /// Interval between reads of each media server
    #[arg(long = "nginx.interval", value_name = "DURATION", default_value = "5s", value_parser = parse_refresh)]
    pub nginx_interval: Duration,

    /// Disable the legacy metric names (results_scenario_avg_fps, …)
    #[arg(long)]
    no_compat_metrics: bool,

    /// Port of the health metrics, on the same hosts
    #[arg(long = "health.port", value_name = "PORT", env = "HEALTH_CHECK_PORT", default_value_t = 9600)]
    health_port: u16,

    #[command(flatten)]
    pub shared: DataFlags,

    #[command(flatten)]
    pub health: HealthFlags,

    #[command(flatten)]
    pub web: WebFlags,

    #[cfg(feature = "export")]
    #[command(flatten)]
    export: export::flags::ExportFlags,

    #[command(flatten)]
    pub log: LogFlags,
}

impl Serve {
    /// The receivers that metrics are pushed to.
    ///
    /// # Errors
    /// A URL or a file that cannot be used.
    #[cfg(feature = "export")]
    pub fn export_settings(&self) -> Result<export::flags::ExportSettings, String> {
        self.export.settings("wattcast-analysis")
    }

    /// Listen addresses of the results port.
    #[must_use]
    pub fn addresses(&self) -> Vec<ListenAddress> {
        if self.listen.is_empty() {
            vec![ListenAddress(([127, 0, 0, 1], self.port).into())]
        } else {
            self.listen.clone()
        }
    }

    #[must_use]
    pub fn qoe_addresses(&self) -> Vec<ListenAddress> {
        with_port(&self.addresses(), self.qoe_port)
    }

    #[must_use]
    pub fn cost_addresses(&self) -> Vec<ListenAddress> {
        with_port(&self.addresses(), self.cost_port)
    }

    #[must_use]
    pub fn ffmpeg_addresses(&self) -> Vec<ListenAddress> {
        with_port(&self.addresses(), self.ffmpeg_port)
    }

    #[must_use]
    pub fn nginx_addresses(&self) -> Vec<ListenAddress> {
        with_port(&self.addresses(), self.nginx_port)
    }

    /// Whether to serve the legacy metric names.
    #[must_use]
    pub fn compat(&self) -> bool {
        !self.no_compat_metrics
    }

    #[must_use]
    pub fn health_addresses(&self) -> Vec<ListenAddress> {
        with_port(&self.addresses(), self.health_port)
    }

    /// Token of progress requests; not a flag, as every user can read a command line.
    ///
    /// # Errors
    /// The file is unreadable or empty; an empty token would admit every request.
    pub fn token(&self) -> io::Result<Option<String>> {
        let text = match &self.token_file {
            Some(file) => fs::read_to_string(file)?,
            None => match std::env::var("FFMPEG_PROGRESS_TOKEN") {
                Ok(text) => text,
                Err(_) => return Ok(None),
            },
        };
        let token = text.trim();
        if token.is_empty() { Err(io::Error::other("the token is empty")) } else { Ok(Some(token.to_owned())) }
    }

    /// File of ended jobs; `None` without a results directory.
    #[must_use]
    pub fn record(&self) -> Option<PathBuf> {
        let dir = &self.shared.results_dir;
        self.record.clone().or_else(|| dir.is_dir().then(|| dir.join("streams.ndjson")))
    }
}

fn parse_refresh(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| format!("{error}; write 2s or 500ms"))?;
    let range = Duration::from_millis(100)..=Duration::from_secs(3600);
    if range.contains(&interval) { Ok(interval) } else { Err("100ms to 1h".into()) }
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
    fn an_invalid_argument_is_answered_with_a_hint() {
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
