//! The `--web.*` flags of both programs, named like those of exporter-toolkit.

use std::{path::PathBuf, sync::Arc};

use clap::Args;

use crate::web::{WebConfig, WebConfigError};

/// The `--web.*` flags except the listen addresses, whose defaults differ between the programs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Web")]
pub struct WebFlags {
    /// Web configuration file: TLS, client certificates, basic auth, rate limit
    ///
    /// The YAML format of exporter-toolkit. The file and its certificates are reloaded after a
    /// change.
    #[arg(long = "web.config.file", value_name = "FILE")]
    pub config_file: Option<PathBuf>,

    /// Path of the metrics on every port
    #[arg(long = "web.telemetry-path", value_name = "PATH", default_value = "/metrics", value_parser = telemetry_path)]
    pub telemetry_path: String,

    /// Maximum concurrent scrapes per port; more get status 503, 0 is unlimited
    #[arg(long = "web.max-requests", value_name = "COUNT", default_value_t = 40)]
    pub max_requests: usize,
}

impl WebFlags {
    /// Reads the web configuration file.
    ///
    /// # Errors
    /// If the file is invalid, or it or a file that it names cannot be read.
    pub fn load(&self) -> Result<ServerOptions, WebConfigError> {
        Ok(ServerOptions {
            web: WebConfig::load(self.config_file.as_deref())?,
            telemetry_path: self.telemetry_path.clone(),
            max_requests: self.max_requests,
        })
    }
}

/// The options of [`crate::server::serve`].
pub struct ServerOptions {
    /// TLS, authentication and rate limit of all ports.
    pub web: Arc<WebConfig>,
    /// Path of the metrics on every port.
    pub telemetry_path: String,
    /// Maximum concurrent scrapes per port; 0 is unlimited.
    pub max_requests: usize,
}

fn telemetry_path(text: &str) -> Result<String, String> {
    let valid = text.starts_with('/') && text.chars().all(|c| c.is_ascii_alphanumeric() || "/-_.~".contains(c));
    if !valid {
        return Err("expected a path that begins with /, for example /metrics".to_owned());
    }
    let taken = ["/api/", "/progress", "/static/"].iter().any(|start| text.starts_with(start));
    if taken || ["/health", "/ready", "/runbooks"].contains(&text) {
        return Err(format!("{text} is reserved; choose another path"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_or_invalid_path_is_rejected() {
        assert!(telemetry_path("/metrics").is_ok() && telemetry_path("/").is_ok());
        // Two routes of one path would end the program.
        for path in ["metrics", "/health", "/runbooks", "/api/v1/window", "/static/style.css", "/{a}", "/*", ""] {
            assert!(telemetry_path(path).is_err(), "{path}");
        }
    }
}
