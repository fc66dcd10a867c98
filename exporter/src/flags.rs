//! The flags that both programs share, in exporter-toolkit's names.

use std::{path::PathBuf, sync::Arc};

use clap::Args;

use crate::{
    log::LogFormat,
    web::{Web, WebError},
};

/// How pages are served. Addresses are each program's own: their ports differ.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Web")]
pub struct WebFlags {
    /// TLS, client certificates, basic auth, rate limit: exporter-toolkit's YAML, read again when it or a certificate changes
    #[arg(long = "web.config.file", value_name = "FILE")]
    pub config_file: Option<PathBuf>,

    /// Path of the metrics, on every port
    #[arg(long = "web.telemetry-path", value_name = "PATH", default_value = "/metrics", value_parser = telemetry_path)]
    pub telemetry_path: String,

    /// Requests that are answered at once, on each port; further ones get 503. 0 is any number
    #[arg(long = "web.max-requests", value_name = "COUNT", default_value_t = 40)]
    pub max_requests: usize,
}

impl WebFlags {
    /// Reads what they name.
    ///
    /// # Errors
    /// What is wrong with the web configuration.
    pub fn open(&self) -> Result<Serving, WebError> {
        Ok(Serving {
            web: Web::open(self.config_file.as_deref())?,
            telemetry_path: self.telemetry_path.clone(),
            max_requests: self.max_requests,
        })
    }
}

/// What [`crate::server::serve`] needs to know.
pub struct Serving {
    /// The doors.
    pub web: Arc<Web>,
    /// Path of the metrics.
    pub telemetry_path: String,
    /// Requests at once, on each port; 0 is any number.
    pub max_requests: usize,
}

/// What is logged, and how.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogFlags {
    /// What to log: error, warn, info, debug, trace
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info",
          value_parser = ["error", "warn", "info", "debug", "trace"])]
    pub level: String,

    /// In which form
    #[arg(long = "log.format", value_name = "FORMAT", value_enum, default_value_t)]
    pub format: LogFormat,
}

fn telemetry_path(text: &str) -> Result<String, String> {
    let plain = text.starts_with('/') && text.chars().all(|c| c.is_ascii_alphanumeric() || "/-_.~".contains(c));
    if !plain {
        return Err("give a path that begins with /, for example /metrics".to_owned());
    }
    if ["/health", "/ready", "/runbooks"].contains(&text) || text.starts_with("/api/") || text.starts_with("/progress")
    {
        return Err(format!("{text} has a meaning already; take another"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_taken_is_refused() {
        assert!(telemetry_path("/metrics").is_ok() && telemetry_path("/").is_ok());
        for path in ["metrics", "/health", "/runbooks", "/api/v1/window", "/{a}", "/*", ""] {
            assert!(telemetry_path(path).is_err(), "{path}");
        }
    }
}
