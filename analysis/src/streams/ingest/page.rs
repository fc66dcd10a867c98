//! The metrics of media servers, the same for each: `wattcast_ingest_*` on port 9728.

use std::time::Instant;

use metrics::family::{Def, Families, Family};

use super::{Ingest, encoders::EncoderRow, totals::ServerTotals};
use crate::streams::nginx::StreamLabel;

const SERVER: &[&str] = &["server"];
const STREAM: &[&str] = &["server", "app", "stream"];
const ENERGY: &[&str] = &["app", "stream", "source"];
const FIGURE: &[&str] = &["scope", "app", "stream", "source"];

static UP: Def = Def::gauge(
    "wattcast_ingest_up",
    &["server", "reason"],
    "1 while the streams of a media server (nginx, mediamtx, srs) can be read, 0 with the reason otherwise: absent, \
     denied, broken.",
);
static STREAMS: Def = Def::gauge("wattcast_ingest_streams", SERVER, "Streams of a media server.");
static VIEWERS: Def = Def::gauge(
    "wattcast_ingest_viewers",
    SERVER,
    "Clients of a media server that read a stream; absent where it does not say.",
);
static PUBLISHERS: Def =
    Def::gauge("wattcast_ingest_publishers", SERVER, "Clients and sources of a media server that write a stream.");
static RECEIVED: Def =
    Def::counter("wattcast_ingest_received_bytes_total", SERVER, "Bytes received for all streams of a media server.");
static SENT: Def =
    Def::counter("wattcast_ingest_sent_bytes_total", SERVER, "Bytes sent to all viewers of a media server.");
static DROPPED: Def = Def::gauge(
    "wattcast_ingest_streams_dropped",
    SERVER,
    "Streams of a media server without own series because of the limit of 512.",
);
static STREAM_VIEWERS: Def =
    Def::gauge("wattcast_ingest_stream_viewers", STREAM, "Clients that read a stream; absent after its end.");
static STREAM_PUBLISHERS: Def =
    Def::gauge("wattcast_ingest_stream_publishers", STREAM, "Clients and sources that write a stream.");
static STREAM_RECEIVED: Def = Def::counter(
    "wattcast_ingest_stream_received_bytes_total",
    STREAM,
    "Bytes received for the streams of this name, one publisher after another.",
);
static STREAM_SENT: Def = Def::counter(
    "wattcast_ingest_stream_sent_bytes_total",
    STREAM,
    "Bytes sent to the viewers of the streams of this name.",
);
static VIEWER_SECONDS: Def = Def::counter(
    "wattcast_ingest_stream_viewer_seconds_total",
    STREAM,
    "Time of all viewers of a stream in seconds, by their number at each reading; times without an answer are left \
     out.",
);
static JOULES: Def = Def::counter(
    "wattcast_ingest_encoder_joules_total",
    ENERGY,
    "Energy of the encoders that publish a stream, since both were first seen and while the server answers: growth of \
     the probe's wattcast_stream_energy_joules_total. Encoder and stream have the same digest of application and name.",
);
static PER_VIEWER_HOUR: Def = Def::gauge(
    "wattcast_ingest_energy_per_viewer_hour_joules",
    FIGURE,
    "Energy of encoders per hour that a viewer watched, over the last 5 minutes. scope: stream, or all (every stream \
     whose encoder is known). Contains neither the media server nor idle energy.",
);
static PER_GIGABYTE: Def = Def::gauge(
    "wattcast_ingest_energy_per_gigabyte_joules",
    FIGURE,
    "Energy of encoders per 10^9 bytes sent to viewers, over the last 5 minutes. scope: stream, or all (every stream \
     whose encoder is known). Contains neither the media server nor idle energy.",
);

/// Every metric of media servers, in the order of the page.
pub static DEFS: &[&Def] = &[
    &UP,
    &STREAMS,
    &VIEWERS,
    &PUBLISHERS,
    &RECEIVED,
    &SENT,
    &DROPPED,
    &STREAM_VIEWERS,
    &STREAM_PUBLISHERS,
    &STREAM_RECEIVED,
    &STREAM_SENT,
    &VIEWER_SECONDS,
    &JOULES,
    &PER_VIEWER_HOUR,
    &PER_GIGABYTE,
];

impl Ingest {
    /// The families of the page, in order.
    #[must_use]
    pub fn families(&self, now: Instant) -> Vec<Family> {
        let mut all = Families::new(DEFS);
        // What is not known is absent.
        let mut push = |def: &'static Def, labels: &[&str], value: Option<f64>| {
            if let Some(value) = value.filter(|value| value.is_finite()) {
                all.push(def, labels, value);
            }
        };
        for (server, (state, totals)) in &self.servers {
            let reason = state.as_ref().map_or_else(|why| why.reason(), |()| "");
            push(&UP, &[server, reason], Some(f64::from(u8::from(state.is_ok()))));
            if state.is_ok() {
                push_server(&mut push, server, totals, self.label);
            }
        }
        if self.label != StreamLabel::Off {
            for row in self.encoders.rows(now) {
                let (app, stream) = row.labels;
                for (source, joules) in row.joules {
                    push(&JOULES, &[app, stream, source], Some(*joules));
                }
                push_figures(&mut push, "stream", &row);
            }
        }
        push_figures(&mut push, "all", &self.encoders.all(now));
        all.into_vec()
    }

    /// Why a server that the user has named cannot be read.
    #[must_use]
    pub fn problem(&self, server: &str) -> Option<String> {
        let (state, _) = self.servers.get(server)?;
        state.as_ref().err().map(|why| format!("{server}: {why}"))
    }
}

fn push_server(
    push: &mut impl FnMut(&'static Def, &[&str], Option<f64>),
    server: &str,
    totals: &ServerTotals,
    label: StreamLabel,
) {
    let labels = [server];
    push(&STREAMS, &labels, Some(float(totals.streams)));
    push(&VIEWERS, &labels, totals.viewers.map(float));
    push(&PUBLISHERS, &labels, totals.publishers.map(float));
    push(&RECEIVED, &labels, totals.bytes.received.map(float));
    push(&SENT, &labels, totals.bytes.sent.map(float));
    // None has series, which is no limit.
    if label == StreamLabel::Off {
        return;
    }
    push(&DROPPED, &labels, Some(float(totals.dropped)));
    for ((app, stream), row) in &totals.rows {
        let labels: [&str; 3] = [server, app, stream];
        push(&STREAM_VIEWERS, &labels, row.viewers.map(float));
        push(&STREAM_PUBLISHERS, &labels, row.publishers.map(float));
        push(&STREAM_RECEIVED, &labels, row.bytes.received.map(float));
        push(&STREAM_SENT, &labels, row.bytes.sent.map(float));
        push(&VIEWER_SECONDS, &labels, row.viewer_ms.map(|milliseconds| float(milliseconds) / 1000.0));
    }
}

fn push_figures(push: &mut impl FnMut(&'static Def, &[&str], Option<f64>), scope: &str, row: &EncoderRow<'_>) {
    let (app, stream) = row.labels;
    let sources: Vec<&str> = row.joules.keys().map(String::as_str).collect();
    let source = sources.join("+");
    let labels: [&str; 4] = [scope, app, stream, &source];
    push(&PER_VIEWER_HOUR, &labels, row.figures.joules_per_viewer_hour);
    push(&PER_GIGABYTE, &labels, row.figures.joules_per_gigabyte);
}

#[expect(clippy::cast_precision_loss, reason = "a count, for output")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use results::energy::jobs::Jobs;

    use super::{
        super::{
            mediamtx,
            server::{ServerError, ServerStats},
        },
        *,
    };

    const PATHS: &[u8] = include_bytes!("../../../tests/data/mediamtx_paths.json");

    fn text(label: StreamLabel, read: &Result<ServerStats, ServerError>) -> String {
        let (mut ingest, now) = (Ingest::new(label, Duration::from_secs(5)), Instant::now());
        ingest.observe("mediamtx", read.as_ref().map_err(Clone::clone), &Arc::new(Jobs::default()), now);
        let page = metrics::page::render("nginx", ingest.families(now)).unwrap();
        String::from_utf8(page.text().to_vec()).unwrap()
    }

    fn stats() -> ServerStats {
        ServerStats { streams: mediamtx::parse_paths(PATHS).unwrap().streams, unread: 0 }
    }

    #[test]
    fn a_key_is_on_the_page_only_if_configured() {
        let read = Ok(stats());
        let hash = text(StreamLabel::Hash, &read);
        assert!(!hash.contains("hunter2") && hash.contains("wattcast_ingest_stream_viewers{"), "{hash}");
        let name = "wattcast_ingest_stream_viewers{server=\"mediamtx\",app=\"live\",stream=\"hunter2\"} 3\n";
        assert!(text(StreamLabel::Name, &read).contains(name));
        let off = text(StreamLabel::Off, &read);
        assert!(!off.contains("stream=") && off.contains("wattcast_ingest_viewers{server=\"mediamtx\"} 3\n"), "{off}");
    }

    #[test]
    fn a_server_without_an_answer_has_a_reason_and_no_zeros() {
        let text = text(StreamLabel::Hash, &Err(ServerError::Denied("status 401".to_owned())));
        assert!(text.contains("wattcast_ingest_up{server=\"mediamtx\",reason=\"denied\"} 0\n"), "{text}");
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 1, "{text}");
    }
}
