//! A receiver: its address, its headers, and what its answers mean.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use cli::file::read_limited;
use client::{Client, Reply};
use prost::Message as _;

use crate::{counters::Destination, message::ExportResponse};

/// Largest file of headers, in bytes.
const MAX_HEADERS: u64 = 64 << 10;
/// Longest time to wait for which a receiver can ask.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// Names and values.
pub(crate) type Headers = Vec<(String, String)>;

/// A receiver of one protocol.
pub(crate) struct Endpoint {
    pub(crate) destination: Destination,
    pub(crate) client: Client,
    /// Headers of every request.
    pub(crate) headers: Headers,
    /// File with more headers. It is read for each request, so secrets in it can change.
    pub(crate) headers_file: Option<PathBuf>,
}

/// The result of a request.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    /// Accepted, without a number of points that are not.
    Delivered { rejected: u64, why: String },
    /// Not accepted now. The same request may be accepted later, at the earliest after the time
    /// that the receiver names.
    Later { after: Option<Duration>, why: String },
    /// Not acceptable.
    Rejected(String),
}

impl fmt::Debug for Endpoint {
    /// Without headers, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.destination.as_str(), self.display_url())
    }
}

impl Endpoint {
    /// Scheme and host, for messages.
    pub(crate) fn display_url(&self) -> &str {
        self.client.display_url()
    }

    /// Sends one request.
    pub(crate) fn send(&self, body: &[u8]) -> Outcome {
        let from_file = match self.headers_file.as_deref().map(headers_of_file).transpose() {
            Ok(headers) => headers.unwrap_or_default(),
            Err(why) => return Outcome::Later { after: None, why },
        };
        let all = self.headers.iter().chain(&from_file);
        let headers: Vec<(&str, &str)> = all.map(|(name, value)| (&**name, &**value)).collect();
        match self.client.post("", &headers, body) {
            Ok(reply) => outcome(self.destination, &reply),
            Err(error) => Outcome::Later { after: None, why: error.to_string() },
        }
    }
}

/// What an answer means, by the specifications of OTLP (OTLP/HTTP Response) and of remote write 1.0
/// (Retries & Backoff), with one exception: by both, a sender must not repeat a request after 401,
/// 403, 407 or 408. It is repeated here, because the files with credentials are read again for each
/// request: a replaced secret then delivers what was refused before.
fn outcome(destination: Destination, reply: &Reply) -> Outcome {
    let why = || {
        let excerpt = reply.excerpt();
        let colon = if excerpt.is_empty() { "" } else { ": " };
        format!("status {}{colon}{excerpt}", reply.status)
    };
    match reply.status {
        200..=299 => delivered(destination, &reply.body),
        // The specifications allow only those from 429 on.
        401 | 403 | 407 | 408 | 429 | 502 | 503 | 504 => {
            Outcome::Later { after: retry_after(reply, SystemTime::now()), why: why() }
        }
        500..=599 if destination == Destination::RemoteWrite => {
            Outcome::Later { after: retry_after(reply, SystemTime::now()), why: why() }
        }
        _ => Outcome::Rejected(why()),
    }
}

/// An OTLP receiver can reject a part of a request; an answer that is no message rejects nothing.
fn delivered(destination: Destination, body: &[u8]) -> Outcome {
    let partial = match destination {
        Destination::Otlp => ExportResponse::decode(body).ok().and_then(|response| response.partial_success),
        Destination::RemoteWrite => None,
    };
    let partial = partial.unwrap_or_default();
    let rejected = u64::try_from(partial.rejected_data_points).unwrap_or_default();
    let message = partial.error_message.chars().map(|c| if c.is_control() { ' ' } else { c });
    Outcome::Delivered { rejected, why: message.take(160).collect() }
}

/// `Retry-After`: seconds or a date.
fn retry_after(reply: &Reply, now: SystemTime) -> Option<Duration> {
    let text = reply.headers.get("retry-after")?.to_str().ok()?.trim();
    let after = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(after.min(MAX_RETRY_AFTER))
}

/// The headers of a file, one in each line: `name: value` or `name=value`. Lines that are empty or
/// start with # are comments.
///
/// # Errors
/// The file cannot be read, or a line is no header; the line is not shown, because it may be a
/// secret.
pub(crate) fn headers_of_file(file: &Path) -> Result<Headers, String> {
    let failed = |why: &dyn fmt::Display| format!("{}: {why}", file.display());
    let text = read_limited(file, MAX_HEADERS).map_err(|error| failed(&error))?;
    let lines = text.lines().map(str::trim).enumerate();
    let wanted = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let header = |(at, line): (usize, &str)| {
        let (name, value) = line.split_once([':', '=']).ok_or_else(|| failed(&invalid(at + 1)))?;
        checked(name.trim(), value.trim()).ok_or_else(|| failed(&invalid(at + 1)))
    };
    wanted.map(header).collect()
}

fn invalid(line: usize) -> String {
    format!("line {line} is no header; write NAME: VALUE")
}

/// A header, if HTTP allows its name and value.
pub(crate) fn checked(name: &str, value: &str) -> Option<(String, String)> {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let valid =
        !name.is_empty() && name.chars().all(token) && value.chars().all(|c| c == '\t' || (' '..='~').contains(&c));
    valid.then(|| (name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::PartialSuccess;

    fn reply(status: u16, header: Option<&'static str>, body: &[u8]) -> Reply {
        let mut reply = Reply { status, headers: Default::default(), body: body.to_owned() };
        if let Some(value) = header {
            reply.headers.insert("retry-after", value.parse().unwrap());
        }
        reply
    }

    #[test]
    fn answers_mean_what_the_protocols_define() {
        use Destination::{Otlp, RemoteWrite};
        for (status, otlp, remote_write) in [
            (200, "delivered", "delivered"),
            (204, "delivered", "delivered"),
            (400, "rejected", "rejected"),
            (401, "later", "later"),
            (403, "later", "later"),
            (407, "later", "later"),
            (408, "later", "later"),
            (404, "rejected", "rejected"),
            (413, "rejected", "rejected"),
            (429, "later", "later"),
            (500, "rejected", "later"),
            (503, "later", "later"),
            (301, "rejected", "rejected"),
        ] {
            let word = |destination| match outcome(destination, &reply(status, None, b"no")) {
                Outcome::Delivered { .. } => "delivered",
                Outcome::Later { .. } => "later",
                Outcome::Rejected(_) => "rejected",
            };
            assert_eq!((word(Otlp), word(RemoteWrite)), (otlp, remote_write), "{status}");
        }
    }

    #[test]
    fn a_receiver_names_the_time_to_wait() {
        let after = |header| retry_after(&reply(503, Some(header), b""), SystemTime::UNIX_EPOCH);
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Thu, 01 Jan 1970 00:00:09 GMT"), Some(Duration::from_secs(9)));
        assert_eq!(after("100000"), Some(MAX_RETRY_AFTER));
        assert_eq!(after("soon"), None);
    }

    #[test]
    fn partly_rejected_points_are_counted() {
        let partial_success = Some(PartialSuccess { rejected_data_points: 3, error_message: "too old".into() });
        let body = ExportResponse { partial_success }.encode_to_vec();
        let expected = Outcome::Delivered { rejected: 3, why: "too old".into() };
        assert_eq!(outcome(Destination::Otlp, &reply(200, None, &body)), expected);
        let expected = Outcome::Delivered { rejected: 0, why: String::new() };
        assert_eq!(outcome(Destination::Otlp, &reply(200, None, b"{}")), expected);
    }

    #[test]
    fn headers_come_from_lines_and_a_fault_shows_no_secret() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            headers_of_file(file.path())
        };
        let all = read("# tenant\nX-Scope-OrgID: 7\n\nAuthorization=Basic dXNlcjpw==\n").unwrap();
        let expected = [("X-Scope-OrgID", "7"), ("Authorization", "Basic dXNlcjpw==")];
        assert_eq!(all, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let error = read("a: b\nsecret").unwrap_err();
        assert!(error.contains("line 2") && !error.contains("secret"), "{error}");
        assert!(read("na me: x").is_err() && read(": x").is_err() && read("a: \u{e4}").is_err());
    }

    proptest! {
        #[test]
        fn any_answer_is_understood(body in prop::collection::vec(any::<u8>(), 0..64)) {
            let is_delivered = matches!(delivered(Destination::Otlp, &body), Outcome::Delivered { .. });
            prop_assert!(is_delivered);
        }
    }
}
