//! SRS: its HTTP API (`/api/v1/streams` and `/api/v1/clients`).
//!
//! The list of streams counts the publisher among the clients; the list of clients says which of
//! them publish, and is used where all of it can be read (trunk/src/app/srs_app_statistic.cpp).

use std::collections::HashMap;

use client::Client;
use serde::Deserialize;

use super::{
    json::{flag, id, number},
    server::{MAX_READ, PAGE, ServerError, ServerStats, ServerStream, get, limited},
};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamsAnswer {
    #[serde(deserialize_with = "number")]
    code: Option<u64>,
    streams: Option<Vec<StreamItem>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamItem {
    #[serde(deserialize_with = "id")]
    id: String,
    name: Option<String>,
    app: Option<String>,
    #[serde(deserialize_with = "number")]
    clients: Option<u64>,
    #[serde(deserialize_with = "number")]
    send_bytes: Option<u64>,
    #[serde(deserialize_with = "number")]
    recv_bytes: Option<u64>,
    publish: Option<Publish>,
    /// `publishing` or `idling`, in version 2.
    status: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Publish {
    #[serde(deserialize_with = "flag")]
    active: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClientsAnswer {
    #[serde(deserialize_with = "number")]
    code: Option<u64>,
    clients: Option<Vec<ClientItem>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClientItem {
    #[serde(deserialize_with = "id")]
    id: String,
    /// The id of its stream.
    #[serde(deserialize_with = "id")]
    stream: String,
    #[serde(deserialize_with = "flag")]
    publish: Option<bool>,
}

/// A stream with its id.
pub type IdStream = (String, ServerStream);
/// The client's id, and the id of its stream with whether the client publishes it.
pub type StreamClient = (String, (String, bool));

fn check_code(code: Option<u64>) -> Result<(), String> {
    match code {
        None | Some(0) => Ok(()),
        Some(code) => Err(format!("SRS answers with code {code}")),
    }
}

/// Parses a part of `/api/v1/streams`.
///
/// # Errors
/// It is not such a list.
pub fn parse_streams(answer: &[u8]) -> Result<Vec<IdStream>, String> {
    let refused = || "not a list of streams of SRS".to_owned();
    let answer: StreamsAnswer = serde_json::from_slice(answer).map_err(|_| refused())?;
    check_code(answer.code)?;
    let streams = answer.streams.ok_or_else(refused)?.into_iter().filter_map(|item| {
        let active = item.publish.and_then(|publish| publish.active);
        let active = active.or_else(|| item.status.map(|status| status == "publishing"));
        let publishers = active.map(u64::from);
        let stream = ServerStream {
            app: limited(&item.app.unwrap_or_default()),
            name: limited(&item.name?),
            received: item.recv_bytes,
            sent: item.send_bytes,
            viewers: item.clients.zip(publishers).map(|(clients, publishers)| clients.saturating_sub(publishers)),
            publishers,
        };
        Some((item.id, stream))
    });
    Ok(streams.take(MAX_READ).collect())
}

/// Parses a part of `/api/v1/clients`.
///
/// # Errors
/// It is not such a list, or does not say of each client whether it publishes.
pub fn parse_clients(answer: &[u8]) -> Result<Vec<StreamClient>, String> {
    let refused = || "not a list of clients of SRS".to_owned();
    let answer: ClientsAnswer = serde_json::from_slice(answer).map_err(|_| refused())?;
    check_code(answer.code)?;
    let clients = answer.clients.ok_or_else(refused)?.into_iter();
    let client = |item: ClientItem| Some((item.id, (item.stream, item.publish?)));
    clients.take(MAX_READ).map(client).collect::<Option<_>>().ok_or_else(refused)
}

/// Requests streams and clients.
///
/// # Errors
/// The streams cannot be read. Without the clients, the streams have what they say themselves.
pub(super) fn read(client: &Client) -> Result<ServerStats, ServerError> {
    let broken = |why: String| ServerError::Broken(format!("{}: {why}", client.display_url()));
    let (streams, complete) = read_all(client, "/api/v1/streams", |answer| parse_streams(answer).map_err(broken))?;
    let clients = read_all(client, "/api/v1/clients", |answer| parse_clients(answer).map_err(broken));
    let clients = clients.ok().filter(|(_, complete)| *complete).map(|(clients, _)| clients);
    // How many more there are is not known.
    Ok(ServerStats { streams: with_clients(streams, clients), unread: u64::from(!complete) })
}

/// Requests a list of entries with their ids in parts, up to [`MAX_READ`] entries. Returns false if
/// there may be more.
fn read_all<T>(
    client: &Client,
    path: &str,
    parse: impl Fn(&[u8]) -> Result<Vec<(String, T)>, ServerError>,
) -> Result<(Vec<(String, T)>, bool), ServerError> {
    let (mut all, mut complete): (Vec<(String, T)>, bool) = (Vec::new(), false);
    let count = PAGE.to_string();
    while !complete && all.len() < MAX_READ {
        let part = parse(&get(client, path, &[("start", &all.len().to_string()), ("count", &count)])?.body)?;
        // Version 1 sends the whole list to each request.
        let both = all.first().zip(part.first());
        let is_repeated = both.is_some_and(|(first, again)| !first.0.is_empty() && first.0 == again.0);
        complete = is_repeated || part.len() != PAGE;
        if !is_repeated {
            all.extend(part);
        }
    }
    // One that ends meanwhile moves others to another part.
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    all.dedup_by(|other, one| !one.0.is_empty() && other.0 == one.0);
    Ok((all, complete))
}

/// The streams with the clients that are known.
#[must_use]
pub fn with_clients(streams: Vec<IdStream>, clients: Option<Vec<StreamClient>>) -> Vec<ServerStream> {
    let Some(clients) = clients else { return streams.into_iter().map(|(_, stream)| stream).collect() };
    let mut counts: HashMap<String, [u64; 2]> = HashMap::new();
    for (_, (stream, publishes)) in clients {
        counts.entry(stream).or_default()[usize::from(publishes)] += 1;
    }
    let with_counts = |(id, stream): IdStream| {
        let [viewers, publishers] = counts.get(&id).copied().unwrap_or_default();
        ServerStream { viewers: Some(viewers), publishers: Some(publishers), ..stream }
    };
    streams.into_iter().map(with_counts).collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// Answers as SRS 5 writes them (`SrsStatisticStream::dumps` and `SrsStatisticClient::dumps`).
    const STREAMS: &str = include_str!("../../../tests/data/srs_streams.json");
    const CLIENTS: &str = include_str!("../../../tests/data/srs_clients.json");
    /// An answer of SRS 2: numbers as ids, and a status (`SrsStatistic::dumps_streams`).
    const OLD_STREAMS: &str = include_str!("../../../tests/data/srs_streams_old.json");

    fn stream(viewers: u64, publishers: u64) -> ServerStream {
        ServerStream {
            received: Some(40_000_000),
            sent: Some(80_000_000),
            viewers: Some(viewers),
            publishers: Some(publishers),
            ..ServerStream::of_path("live/hunter2")
        }
    }

    #[test]
    fn the_publisher_is_no_viewer() {
        let streams = parse_streams(STREAMS.as_bytes()).unwrap();
        assert_eq!(with_clients(streams.clone(), None)[0], stream(2, 1));
        let clients = parse_clients(CLIENTS.as_bytes()).unwrap();
        let all = with_clients(streams, Some(clients));
        assert_eq!(all[0], stream(2, 1));
        let idle = (all[1].viewers, all[1].publishers);
        assert_eq!((all.len(), &*all[1].name, idle), (2, "idle", (Some(0), Some(0))));
    }

    #[test]
    fn an_old_version_is_read_by_its_status() {
        let streams = parse_streams(OLD_STREAMS.as_bytes()).unwrap();
        assert_eq!((&*streams[0].0, &streams[0].1), ("3107", &stream(2, 1)));
    }

    #[test]
    fn missing_fields_are_unknown_and_not_zero() {
        let streams = parse_streams(br#"{"streams": [{"name": "a", "clients": 3, "send_bytes": "x"}, {}]}"#).unwrap();
        let known = ServerStream { name: "a".into(), ..ServerStream::default() };
        assert_eq!(streams, [(String::new(), known)]);
        assert!(parse_clients(br#"{"clients": [{"stream": "1"}]}"#).is_err());
    }

    #[test]
    fn answers_of_other_programs_are_refused() {
        for answer in ["", "{}", "[]", "<html>", r#"{"code": 2048}"#, r#"{"code": 1, "streams": []}"#] {
            assert!(parse_streams(answer.as_bytes()).is_err(), "{answer}");
            assert!(parse_clients(answer.as_bytes()).is_err(), "{answer}");
        }
    }

    #[test]
    fn ten_thousand_streams_are_read_once_each() {
        let mut json = String::from(r#"{"code": 0, "streams": ["#);
        for number in 0..10_000 {
            let comma = if number == 0 { "" } else { "," };
            let rest = r#""app": "live", "clients": 2, "recv_bytes": 1, "publish": {"active": true}"#;
            write!(json, r#"{comma}{{"id": "vid-{number}", "name": "s{number}", {rest}, "send_bytes": {number}}}"#)
                .unwrap();
        }
        json.push_str("]}");
        let streams = parse_streams(json.as_bytes()).unwrap();
        assert_eq!(streams.len(), 10_000);
        assert_eq!(streams.iter().filter_map(|(_, stream)| stream.sent).sum::<u64>(), 49_995_000);
        assert!(streams.iter().all(|(_, stream)| stream.viewers == Some(1)));
    }

    proptest! {
        #[test]
        fn no_answer_causes_a_panic(at in 0..STREAMS.len(), byte in any::<u8>()) {
            for text in [STREAMS, CLIENTS] {
                let mut changed = text.as_bytes().to_vec();
                let at = at % changed.len();
                changed[at] = byte;
                let _ = parse_streams(&changed);
                let _ = parse_clients(&changed);
            }
        }
    }
}
