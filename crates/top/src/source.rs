//! Where the answers of `/api/v1/now` come from.

use std::time::Duration;

use client::{Access, Client, ClientError, ConnectError};

/// Containers that are requested; the rest is a sum.
const CONTAINERS: &str = "100";
/// Maximum duration of a request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of an answer in bytes. With 100 containers it has some 50 kB.
const MAX_ANSWER: u64 = 8 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SourceError {
    /// There may be one later.
    #[error("{0}")]
    Unavailable(String),
    /// There will never be one again.
    #[error("{0}")]
    Ended(String),
}

/// A source of answers.
pub trait Source: Send {
    /// Where the answers come from, for the title.
    fn place(&self) -> String;

    /// The newest answer, as JSON. It may block for some seconds.
    ///
    /// # Errors
    /// When there is none.
    fn answer(&mut self) -> Result<String, SourceError>;
}

/// A running probe.
#[derive(Debug)]
pub struct ProbeSource {
    client: Client,
}

impl ProbeSource {
    /// A probe with the base URL, which is not connected to yet.
    ///
    /// # Errors
    /// When the URL is invalid.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        Ok(Self { client: Client::new(url, &Access::default(), TIMEOUT, MAX_ANSWER)? })
    }

    /// True if nothing accepts connections at the address.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        let refused =
            |error: &ClientError| matches!(error, ClientError::Unreachable { cause: ConnectError::Unreachable, .. });
        self.client.get("/health", &[]).is_err_and(|error| refused(&error))
    }
}

impl Source for ProbeSource {
    fn place(&self) -> String {
        self.client.display_url().to_owned()
    }

    fn answer(&mut self) -> Result<String, SourceError> {
        let unavailable = SourceError::Unavailable;
        let reply = self.client.get("/api/v1/now", &[("containers", CONTAINERS)]);
        let reply = reply.map_err(|error| match error {
            // The place is shown already.
            ClientError::Unreachable { why, .. } => unavailable(why),
            error => unavailable(error.to_string()),
        })?;
        match reply.status {
            200 => String::from_utf8(reply.body).map_err(|_| unavailable("the answer is not UTF-8".to_owned())),
            401 | 403 => {
                Err(unavailable("access is denied; the probe's page in a browser asks for the password".into()))
            }
            404 => Err(unavailable("no /api/v1/now: the program is no probe, or older than this one".to_owned())),
            status => Err(unavailable(format!("status {status}: {}", reply.excerpt()))),
        }
    }
}
