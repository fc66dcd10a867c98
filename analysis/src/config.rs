//! The command line: flags over environment over defaults.

use std::{fs, io, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use exporter::{
    listen::{Listen, all_beside},
    program,
};

use crate::streams::{nginx::StreamLabel, receive::Pipe};

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
    /// Serve the newest run of a results directory on port 9502, ffmpeg's progress on 9506, nginx-rtmp on 9728. Needs no privileges
    Serve(Serve),
}

/// Flags of `serve`.
#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// Directory of test_results_YYYYMMDD_HHMMSS.json files
    #[arg(long, value_name = "DIR", env = "RESULTS_DIR", default_value = "./test_results")]
    pub results_dir: PathBuf,

    /// The probe that saw the runs
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9500")]
    pub probe_url: String,

    /// How often the directory is looked at
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = refresh)]
    pub refresh: Duration,

    /// Address to listen on, HOST:PORT or :PORT; may be given several times [default: 127.0.0.1:9502]
    #[arg(long = "web.listen-address", value_name = "ADDRESS")]
    listen: Vec<Listen>,

    /// Port on 127.0.0.1, where no --web.listen-address is given
    #[arg(long, value_name = "PORT", env = "RESULTS_EXPORTER_PORT", default_value_t = 9502)]
    port: u16,

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

    /// Money for a kilowatt hour
    #[arg(long = "energy.price", value_name = "PRICE", env = "ENERGY_COST_PER_KWH", default_value_t = 0.12, value_parser = program::price)]
    pub price: f64,

    /// In which currency
    #[arg(long, value_name = "ISO4217", env = "CURRENCY", default_value = "USD")]
    pub currency: String,

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
        self.record.clone().or_else(|| self.results_dir.is_dir().then(|| self.results_dir.join("streams.ndjson")))
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
            (&["wattcast-analysis", "serve", "--refresh=2"][..], "2s or 500ms"),
        ] {
            let error = Config::try_parse_from(args).unwrap_err().to_string();
            assert!(error.contains(hint), "{args:?}: {error}");
        }
    }
}
