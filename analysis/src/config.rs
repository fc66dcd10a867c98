//! The command line: flags over environment over defaults.

use std::{fs, io, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use exporter::{
    listen::{Listen, all_beside},
    program,
};

use crate::{
    advise::Objective,
    settings::Shared,
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
    /// Serve the newest runs of a results directory on ports 9502 (results), 9503 (quality) and 9504 (cost), ffmpeg's progress on 9506, nginx-rtmp on 9728. Needs
    /// no privileges
    Serve(Box<Serve>),
    /// Say which configuration to take: ranks, what nothing beats, the cheapest for a quality, the power of more streams
    Advise(Advise),
    /// Write the history of all runs into VictoriaMetrics, each number at the time of its run
    Backfill(Backfill),
}

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
    /// What is read, whom to ask, what things cost
    #[command(flatten)]
    pub shared: Shared,

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

    /// What to log: error, warn, info, debug, trace
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info",
          value_parser = ["error", "warn", "info", "debug", "trace"])]
    pub log_level: String,
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
