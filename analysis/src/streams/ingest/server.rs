//! Streams of media servers in one form: what MediaMTX, SRS and nginx's RTMP module say of each.
//!
//! What a server does not say is unknown, never zero. Names are kept as the server writes them, and
//! shown as [`StreamLabel`] says, because the name of a stream is usually its publishing key.

use std::time::Duration;

use client::{Access, Client, ClientError, ConnectError, Reply};
use metrics::label;

use crate::streams::nginx::{NginxStream, Stat, StreamLabel};

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Largest answer in bytes. MediaMTX writes a kilobyte for each path and its connections on its
/// page of metrics.
const MAX_ANSWER: u64 = 32 << 20;
/// Maximum number of streams of a server that are read; more are counted.
pub const MAX_READ: usize = 32_768;
/// Streams that are requested at once.
pub(super) const PAGE: usize = 500;
/// Longest name of a stream in bytes.
const MAX_NAME: usize = 1024;

/// A stream of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStream {
    /// Application, or the part of the path before the last slash.
    pub app: String,
    /// Name, or the last part of the path.
    pub name: String,
    /// Bytes from the publisher since the start of the stream.
    pub received: Option<u64>,
    /// Bytes to all viewers since the start of the stream.
    pub sent: Option<u64>,
    /// Clients that read it.
    pub viewers: Option<u64>,
    /// Clients or sources that write it.
    pub publishers: Option<u64>,
}

impl ServerStream {
    /// Without figures, for the path `APP/NAME` or `NAME`.
    #[must_use]
    pub fn of_path(path: &str) -> Self {
        let path = path.trim_matches('/');
        let (app, name) = path.rsplit_once('/').unwrap_or(("", path));
        Self { app: limited(app), name: limited(name), ..Self::default() }
    }

    /// The digest by which the output of an encoder is recognised: that of `APP/NAME`.
    #[must_use]
    pub fn digest(&self) -> String {
        if self.app.is_empty() {
            label::digest(&self.name)
        } else {
            label::digest(&format!("{}/{}", self.app, self.name))
        }
    }

    /// The labels `app` and `stream`. With [`StreamLabel::Off`] the stream is not shown.
    #[must_use]
    pub fn labels(&self, label: StreamLabel) -> (String, String) {
        let name = match label {
            StreamLabel::Name => label::sanitize(&self.name),
            StreamLabel::Hash | StreamLabel::Off => self.digest(),
        };
        (label::sanitize(&self.app), name)
    }
}

/// The beginning of a name, at most [`MAX_NAME`] bytes.
pub(super) fn limited(text: &str) -> String {
    let end = text.char_indices().map(|(at, character)| at + character.len_utf8()).take_while(|end| *end <= MAX_NAME);
    text[..end.last().unwrap_or(0)].to_owned()
}

/// What a server says at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    pub streams: Vec<ServerStream>,
    /// Streams that exist and are not in `streams`.
    pub unread: u64,
}

impl ServerStats {
    /// The streams of nginx, the sum of its workers. Its page has no names where streams are not
    /// labelled, because the sum is by label.
    #[must_use]
    pub fn of_nginx(stat: &Stat, label: StreamLabel) -> Self {
        let all = stat.application_streams.values().fold(0, |sum: u64, count| sum.saturating_add(*count));
        if label == StreamLabel::Off {
            return Self { streams: Vec::new(), unread: all };
        }
        let stream = |stream: &NginxStream| ServerStream {
            app: stream.application.clone(),
            name: stream.name.clone(),
            received: Some(stream.bytes[0]),
            sent: Some(stream.bytes[1]),
            viewers: Some(stream.clients.saturating_sub(stream.publishers)),
            publishers: Some(stream.publishers),
        };
        Self { streams: stat.streams.iter().map(stream).collect(), unread: stat.streams_dropped }
    }
}

/// Why a server's streams are unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// Nothing answers at the address.
    #[error("{0}")]
    Absent(String),
    /// It refuses the request.
    #[error("{0}")]
    Denied(String),
    /// It answers with something else.
    #[error("{0}")]
    Broken(String),
}

impl ServerError {
    /// The label `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Absent(_) => "absent",
            Self::Denied(_) => "denied",
            Self::Broken(_) => "broken",
        }
    }
}

/// A client for a server, without a connection yet.
///
/// # Errors
/// The address is invalid or contains a password.
pub(super) fn connect(url: &str) -> Result<Client, ClientError> {
    Client::new(url, &Access::default(), TIMEOUT, MAX_ANSWER)
}

/// Requests a part of a server's API. Errors name the host and never the path, which may have a
/// key.
pub(super) fn get(client: &Client, path: &str, query: &[(&str, &str)]) -> Result<Reply, ServerError> {
    let host = client.display_url();
    let reply = client.get(path, query).map_err(|error| match error {
        ClientError::Unreachable { cause: ConnectError::Unreachable, .. } => {
            ServerError::Absent(format!("{host}: cannot be reached"))
        }
        ClientError::Unreachable { cause: ConnectError::Timeout, .. } => {
            ServerError::Broken(format!("{host}: no answer within {} s", TIMEOUT.as_secs()))
        }
        ClientError::Unreachable { .. } => ServerError::Broken(format!("{host}: no valid answer of HTTP")),
        other => ServerError::Broken(other.to_string()),
    })?;
    match reply.status {
        200 => Ok(reply),
        401 | 403 => Err(ServerError::Denied(format!(
            "{host}: status {}; allow this host to read it without a password",
            reply.status
        ))),
        status => Err(ServerError::Broken(format!("{host}: status {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_at_its_last_slash() {
        let parts = |path: &str| {
            let stream = ServerStream::of_path(path);
            (stream.app, stream.name)
        };
        assert_eq!(parts("live/key"), ("live".to_owned(), "key".to_owned()));
        assert_eq!(parts("/a/b/c/"), ("a/b".to_owned(), "c".to_owned()));
        assert_eq!(parts("cam"), (String::new(), "cam".to_owned()));
        assert_eq!(ServerStream::of_path("live/key").digest(), label::digest("live/key"));
        assert_eq!(ServerStream::of_path("cam").digest(), label::digest("cam"));
        assert_eq!(ServerStream::of_path(&"ü".repeat(4000)).name.len(), MAX_NAME);
    }

    #[test]
    fn a_name_is_shown_only_if_configured() {
        let stream = ServerStream::of_path("live/hunter2");
        for label in [StreamLabel::Hash, StreamLabel::Off] {
            assert_eq!(stream.labels(label), ("live".to_owned(), label::digest("live/hunter2")));
        }
        assert_eq!(stream.labels(StreamLabel::Name).1, "hunter2");
    }
}
