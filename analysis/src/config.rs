//! The command line: flags over environment over defaults.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use exporter::{listen::Listen, program};

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
    /// Serve the newest run of a results directory on port 9502. Needs no privileges
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
