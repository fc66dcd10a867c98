//! MediaMTX: its API (`/v3/paths/list`) and its page of metrics.
//!
//! Figures have two names: `inboundBytes` and `paths_inbound_bytes` in newer versions, and
//! `bytesReceived` and `paths_bytes_received` in all (internal/defs/api_path.go and
//! internal/metrics/metrics.go of MediaMTX).

use std::collections::BTreeMap;

use client::Client;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    json::number,
    server::{MAX_READ, PAGE, ServerError, ServerStats, ServerStream, get},
};

/// A page of `/v3/paths/list`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PathList {
    #[serde(deserialize_with = "number")]
    item_count: Option<u64>,
    #[serde(deserialize_with = "number")]
    page_count: Option<u64>,
    items: Option<Vec<PathItem>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PathItem {
    name: Option<String>,
    ready: Option<bool>,
    available: Option<bool>,
    source: Option<IgnoredAny>,
    readers: Option<Vec<IgnoredAny>>,
    #[serde(deserialize_with = "number")]
    inbound_bytes: Option<u64>,
    #[serde(deserialize_with = "number")]
    outbound_bytes: Option<u64>,
    #[serde(deserialize_with = "number")]
    bytes_received: Option<u64>,
    #[serde(deserialize_with = "number")]
    bytes_sent: Option<u64>,
}

impl PathItem {
    fn stream(self) -> Option<ServerStream> {
        let publishers = match self.available.or(self.ready) {
            Some(ready) => Some(u64::from(ready)),
            None => self.source.map(|_| 1),
        };
        Some(ServerStream {
            received: self.inbound_bytes.or(self.bytes_received),
            sent: self.outbound_bytes.or(self.bytes_sent),
            viewers: self.readers.map(|readers| u64::try_from(readers.len()).unwrap_or(u64::MAX)),
            publishers,
            ..ServerStream::of_path(&self.name?)
        })
    }
}

/// A part of the list of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathPage {
    pub streams: Vec<ServerStream>,
    /// Number of all paths; `None` if the server does not say.
    pub all: Option<u64>,
    /// Number of pages; `None` if the server does not say.
    pub pages: Option<u64>,
}

/// Parses a page of `/v3/paths/list`.
///
/// # Errors
/// It is not such a list.
pub fn parse_paths(answer: &[u8]) -> Result<PathPage, String> {
    let list: PathList = serde_json::from_slice(answer).map_err(|_| "not a list of paths of MediaMTX".to_owned())?;
    let (all, pages) = (list.item_count, list.page_count);
    let items = match list.items {
        Some(items) => items,
        None if all.is_some() => Vec::new(),
        None => return Err("not a list of paths of MediaMTX".to_owned()),
    };
    let streams = items.into_iter().filter_map(PathItem::stream).take(MAX_READ).collect();
    Ok(PathPage { streams, all, pages })
}

/// Requests all pages of the list of paths.
///
/// # Errors
/// The first page that cannot be read.
pub(super) fn read_api(client: &Client) -> Result<ServerStats, ServerError> {
    let size = PAGE.to_string();
    let (mut stats, mut all) = (ServerStats::default(), None);
    for page in 0..MAX_READ.div_ceil(PAGE) {
        let reply = get(client, "/v3/paths/list", &[("itemsPerPage", &size), ("page", &page.to_string())])?;
        let list =
            parse_paths(&reply.body).map_err(|why| ServerError::Broken(format!("{}: {why}", client.display_url())))?;
        all = list.all.or(all);
        stats.streams.extend(list.streams);
        let pages = list.pages.unwrap_or(1);
        if u64::try_from(page + 1).is_ok_and(|read| read >= pages) || stats.streams.len() >= MAX_READ {
            break;
        }
    }
    // One that is added meanwhile moves another to the next page.
    stats.streams.sort_by(|one, other| (&one.app, &one.name).cmp(&(&other.app, &other.name)));
    stats.streams.dedup_by(|other, one| other.app == one.app && other.name == one.name);
    let read = u64::try_from(stats.streams.len()).unwrap_or(u64::MAX);
    stats.unread = all.map_or(0, |all| all.saturating_sub(read));
    Ok(stats)
}

/// Parses the page of metrics.
///
/// # Errors
/// It is no page of metrics, or not of MediaMTX.
pub fn parse_metrics(page: &[u8]) -> Result<ServerStats, String> {
    let text = metrics::parse::decode(page).map_err(|why| why.to_string())?;
    let page = metrics::parse::parse(&text).map_err(|why| why.to_string())?;
    if !page.samples.iter().any(|sample| sample.name == "paths") {
        return Err("no metrics of MediaMTX".to_owned());
    }
    let (mut streams, mut unread): (BTreeMap<&str, ServerStream>, u64) = (BTreeMap::new(), 0);
    for sample in &page.samples {
        let path = sample.label("name");
        // Without a path there is one row without labels.
        if path.is_empty() || !sample.name.starts_with("paths") {
            continue;
        }
        if streams.len() >= MAX_READ && !streams.contains_key(path) {
            unread += u64::from(sample.name == "paths");
            continue;
        }
        let stream = streams.entry(path).or_insert_with(|| ServerStream::of_path(path));
        let Some(value) = whole(sample.value) else { continue };
        match &*sample.name {
            "paths" if !sample.label("state").is_empty() => {
                stream.publishers = Some(u64::from(value > 0 && sample.label("state") == "ready"));
            }
            // One row for each type of reader.
            "paths_readers" => stream.viewers = Some(stream.viewers.unwrap_or(0).saturating_add(value)),
            "paths_inbound_bytes" | "paths_bytes_received" => stream.received = Some(value),
            "paths_outbound_bytes" | "paths_bytes_sent" => stream.sent = Some(value),
            _ => {}
        }
    }
    Ok(ServerStats { streams: streams.into_values().collect(), unread })
}

/// Requests the page of metrics, of which the client has the address.
///
/// # Errors
/// It cannot be read.
pub(super) fn read_metrics(client: &Client) -> Result<ServerStats, ServerError> {
    let reply = get(client, "", &[])?;
    // The line of a fault may have a key.
    let broken = |_| ServerError::Broken(format!("{}: no page of metrics of MediaMTX", client.display_url()));
    parse_metrics(&reply.body).map_err(broken)
}

/// A count as the page writes it.
fn whole(value: f64) -> Option<u64> {
    // 2^63, far more bytes than a server sends.
    const LIMIT: f64 = 9.2e18;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded before the cast")]
    let whole = (0.0..LIMIT).contains(&value).then_some(value as u64);
    whole
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// An answer of the API with the fields of internal/defs/api_path.go at commit 01fead40, shown
    /// with two paths.
    const PATHS: &str = include_str!("../../../tests/data/mediamtx_paths.json");
    /// The same paths as an older version shows them: without the fields that it lacks.
    const OLD_PATHS: &str = include_str!("../../../tests/data/mediamtx_paths_old.json");
    /// A page as internal/metrics/metrics.go writes it at commit 03ca4e53.
    const METRICS: &str = include_str!("../../../tests/data/mediamtx_metrics.txt");

    fn streams() -> Vec<ServerStream> {
        vec![
            ServerStream {
                received: Some(123_456_789),
                sent: Some(370_370_367),
                viewers: Some(3),
                publishers: Some(1),
                ..ServerStream::of_path("live/hunter2")
            },
            ServerStream {
                received: Some(0),
                sent: Some(0),
                viewers: Some(0),
                publishers: Some(0),
                ..ServerStream::of_path("waiting")
            },
        ]
    }

    #[test]
    fn both_versions_of_the_api_have_the_same_streams() {
        for text in [PATHS, OLD_PATHS] {
            let page = parse_paths(text.as_bytes()).unwrap();
            assert_eq!((page.all, page.pages), (Some(2), Some(1)));
            assert_eq!(page.streams, streams());
        }
    }

    #[test]
    fn the_page_of_metrics_has_the_streams_of_the_api() {
        let stats = parse_metrics(METRICS.as_bytes()).unwrap();
        assert_eq!((stats.streams, stats.unread), (streams(), 0));
        let empty = "# Paths\npaths 0\npaths_inbound_bytes 0\n";
        assert_eq!(parse_metrics(empty.as_bytes()).unwrap(), ServerStats::default());
    }

    #[test]
    fn missing_fields_are_unknown_and_not_zero() {
        let page = parse_paths(br#"{"itemCount": 1, "items": [{"name": "a", "new": {"field": []}}]}"#).unwrap();
        assert_eq!(page.streams, [ServerStream::of_path("a")]);
        let strange = br#"{"items": [{"name": "a", "bytesSent": "12", "inboundBytes": -1, "source": null}, {}]}"#;
        assert_eq!(parse_paths(strange).unwrap().streams, [ServerStream::of_path("a")]);
        let stats = parse_metrics(b"paths{name=\"a\"} 1\npaths_bytes_sent{name=\"a\"} NaN\n").unwrap();
        assert_eq!((stats.streams[0].sent, stats.streams[0].viewers), (None, None));
    }

    #[test]
    fn answers_of_other_programs_are_refused() {
        for answer in ["", "{}", "[]", "<html>", r#"{"status": "error", "error": "x"}"#] {
            assert!(parse_paths(answer.as_bytes()).is_err(), "{answer}");
        }
        for page in ["", "up 1\n", "<html></html>"] {
            assert!(parse_metrics(page.as_bytes()).is_err(), "{page}");
        }
    }

    #[test]
    fn ten_thousand_paths_are_read_once_each() {
        let (mut json, mut text) = (String::from(r#"{"itemCount": 10000, "pageCount": 1, "items": ["#), String::new());
        for number in 0..10_000 {
            let comma = if number == 0 { "" } else { "," };
            let item = r#""ready": true, "readers": [{"type": "rtmpConn", "id": "1"}], "bytesReceived": 1"#;
            write!(json, r#"{comma}{{"name": "live/{number}", {item}, "bytesSent": {number}}}"#).unwrap();
            writeln!(text, "paths{{name=\"live/{number}\",state=\"ready\"}} 1").unwrap();
            writeln!(text, "paths_bytes_sent{{name=\"live/{number}\",state=\"ready\"}} {number}").unwrap();
        }
        json.push_str("]}");
        let (api, page) = (parse_paths(json.as_bytes()).unwrap(), parse_metrics(text.as_bytes()).unwrap());
        assert_eq!((api.streams.len(), page.streams.len()), (10_000, 10_000));
        let sent = |streams: &[ServerStream]| streams.iter().filter_map(|stream| stream.sent).sum::<u64>();
        assert_eq!((sent(&api.streams), sent(&page.streams)), (49_995_000, 49_995_000));
    }

    proptest! {
        #[test]
        fn no_answer_causes_a_panic(at in 0..PATHS.len(), byte in any::<u8>()) {
            for text in [PATHS, METRICS] {
                let mut changed = text.as_bytes().to_vec();
                let at = at % changed.len();
                changed[at] = byte;
                let _ = parse_paths(&changed);
                let _ = parse_metrics(&changed);
            }
        }
    }
}
