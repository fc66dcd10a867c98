//! Metrics of port 9728 from the statistics page of nginx's RTMP module, or of its fork
//! nginx-http-flv-module, whose page has another root element.
//!
//! The name of an RTMP stream is usually its publishing key, so the label is a digest unless
//! configured otherwise. A slow or broken server delays only its own thread, never a request.

use std::{collections::BTreeMap, time::Duration};

use cli::program;
use metrics::{
    family::{Def, Families, Family},
    label, process,
};
use quick_xml::{Reader, events::Event};

use client::{Access, Client, ClientError};

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Largest page in bytes, that of 10,000 streams with some clients: a stream has about 1 kB, and
/// each of its clients 300 bytes.
const MAX_PAGE: u64 = 32 << 20;
/// Maximum nesting of elements; the module has eight levels.
const MAX_DEPTH: usize = 32;
/// Longest text of an element in bytes.
const MAX_TEXT: usize = 1024;
/// Maximum number of streams with their own series.
pub const MAX_STREAMS: usize = 512;
/// Root elements of the page: of the module and of its fork.
const ROOTS: [&str; 2] = ["rtmp", "http-flv"];

/// The value of the label `stream`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum StreamLabel {
    /// Eight hexadecimal digits of a digest of application and name
    #[default]
    Hash,
    /// The name, for servers whose stream names are not secret
    Name,
    /// No series of streams, only of applications
    Off,
}

/// A stream of the statistics page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NginxStream {
    pub application: String,
    pub name: String,
    /// Time since the start.
    pub time_ms: u64,
    /// Bits per second, in and out.
    pub bits: [u64; 2],
    /// Bytes since the start, in and out.
    pub bytes: [u64; 2],
    /// Number of clients, including the publisher.
    pub clients: u64,
    pub publishers: u64,
    /// Messages dropped for its clients.
    pub dropped: u64,
    /// Video codec such as `H264`, empty if unknown.
    pub video: String,
    /// Audio codec, empty if unknown.
    pub audio: String,
    pub width: u64,
    pub height: u64,
    pub fps: f64,
}

impl NginxStream {
    /// Adds a stream that has the same label: the module writes a space for each byte beyond ASCII
    /// (`ngx_rtmp_stat_escape`), and two server blocks may have an application and a stream of the
    /// same name. Properties are those of the first one that has them.
    pub fn merge(&mut self, other: &Self) {
        self.time_ms = self.time_ms.max(other.time_ms);
        for (own, more) in self.bits.iter_mut().zip(other.bits).chain(self.bytes.iter_mut().zip(other.bytes)) {
            *own = own.saturating_add(more);
        }
        for (own, more) in [
            (&mut self.clients, other.clients),
            (&mut self.publishers, other.publishers),
            (&mut self.dropped, other.dropped),
        ] {
            *own = own.saturating_add(more);
        }
        for (own, more) in [(&mut self.video, &other.video), (&mut self.audio, &other.audio)] {
            if own.is_empty() {
                own.clone_from(more);
            }
        }
        if self.width == 0 {
            (self.width, self.height, self.fps) = (other.width, other.height, other.fps);
        }
    }

    /// The labels of its series, application and stream.
    #[must_use]
    pub fn labels(&self, label: StreamLabel) -> (String, String) {
        (label::sanitize(&self.application), stream_label(&self.application, &self.name, label))
    }
}

/// The statistics page of one worker of the server, or the sum of several.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stat {
    /// Process id of the worker; 0 if the page has none.
    pub pid: u64,
    /// Number of workers.
    pub workers: u64,
    /// Accepted connections since the server's start.
    pub accepted: u64,
    /// Seconds since the server's start.
    pub uptime: u64,
    /// Bits per second, in and out.
    pub bits: [u64; 2],
    /// Bytes, in and out.
    pub bytes: [u64; 2],
    /// Number of clients by application.
    pub applications: BTreeMap<String, u64>,
    /// Number of streams by application, with those that are dropped.
    pub application_streams: BTreeMap<String, u64>,
    pub streams: Vec<NginxStream>,
    /// Number of streams beyond [`MAX_STREAMS`].
    pub streams_dropped: u64,
}

/// The statistics page could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatError {
    /// The server does not answer, or with an error status.
    #[error("{0}; start nginx, or set the URL of its statistics page with --nginx.url")]
    Unreachable(String),
    /// The page is not from the RTMP module.
    #[error("{0}")]
    Invalid(String),
}

impl StatError {
    /// The label `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "absent",
            Self::Invalid(_) => "broken",
        }
    }
}

/// An nginx server by the URL of its statistics page.
pub struct Nginx(Client);

impl Nginx {
    /// Prepares requests, without a connection yet.
    ///
    /// # Errors
    /// The URL is invalid or contains a password.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        Client::new(url, &Access::default(), TIMEOUT, MAX_PAGE).map(Self)
    }

    /// Requests and parses the page.
    ///
    /// # Errors
    /// There is no response in time, or the page is too large or invalid.
    pub fn stat(&self) -> Result<Stat, StatError> {
        let reply = self.0.get("", &[]).map_err(|error| StatError::Unreachable(error.to_string()))?;
        if reply.status != 200 {
            return Err(StatError::Unreachable(format!("{}: status {}", self.0.display_url(), reply.status)));
        }
        parse(&reply.body).map_err(|error| StatError::Invalid(format!("{}: {error}", self.0.display_url())))
    }
}

/// Parses the statistics page. Only the predefined entities of XML are expanded, so a page cannot
/// grow.
///
/// # Errors
/// The page is incomplete, or not from the RTMP module.
pub fn parse(page: &[u8]) -> Result<Stat, String> {
    let mut reader = Reader::from_reader(page);
    let (mut stat, mut path): (Stat, Vec<String>) = (Stat { workers: 1, ..Stat::default() }, Vec::new());
    let (mut application, mut stream) = (String::new(), NginxStream::default());
    let (mut text, mut buffer, mut is_rtmp) = (String::new(), Vec::new(), false);
    loop {
        match reader.read_event_into(&mut buffer).map_err(|error| format!("not XML: {error}"))? {
            Event::Start(start) => {
                if path.len() >= MAX_DEPTH {
                    return Err("nested too deep for a page of the RTMP module".to_owned());
                }
                let name = String::from_utf8_lossy(start.name().as_ref()).chars().take(32).collect::<String>();
                is_rtmp |= path.is_empty() && ROOTS.contains(&&*name);
                match &*name {
                    "application" => application.clear(),
                    "stream" => stream = NginxStream { application: application.clone(), ..NginxStream::default() },
                    _ => {}
                }
                path.push(name);
                text.clear();
            }
            Event::Empty(empty) => {
                let inside = path.last().map(String::as_str);
                if empty.name().as_ref() == b"publishing" && inside == Some("client") {
                    stream.publishers += 1;
                }
            }
            // A name that is not UTF-8 does not cost the page.
            Event::Text(piece) => push(&mut text, &String::from_utf8_lossy(&piece)),
            Event::CData(piece) => push(&mut text, &String::from_utf8_lossy(&piece)),
            Event::GeneralRef(entity) => match &*entity {
                b"lt" => push(&mut text, "<"),
                b"gt" => push(&mut text, ">"),
                b"amp" => push(&mut text, "&"),
                b"quot" => push(&mut text, "\""),
                b"apos" => push(&mut text, "'"),
                // Custom entities and character numbers, which the module does not write.
                _ => push(&mut text, "\u{fffd}"),
            },
            Event::End(_) => {
                let Some(name) = path.pop() else { return Err("an end tag without a start tag".to_owned()) };
                end_element(&name, &path, &text, &mut stat, &mut application, &mut stream);
                text.clear();
            }
            Event::Eof if !path.is_empty() => return Err("the page is incomplete".to_owned()),
            Event::Eof if !is_rtmp => return Err("not a page of the RTMP module".to_owned()),
            Event::Eof => return Ok(stat),
            Event::Decl(_) | Event::PI(_) | Event::DocType(_) | Event::Comment(_) => {}
        }
        buffer.clear();
    }
}

/// Appends a piece up to [`MAX_TEXT`].
fn push(text: &mut String, piece: &str) {
    let room = MAX_TEXT.saturating_sub(text.len());
    text.extend(piece.chars().scan(0, |length, character| {
        *length += character.len_utf8();
        (*length <= room).then_some(character)
    }));
}

/// Stores the text of an element that has ended inside the elements of `path`.
fn end_element(
    name: &str,
    path: &[String],
    untrimmed: &str,
    stat: &mut Stat,
    application: &mut String,
    stream: &mut NginxStream,
) {
    let text = untrimmed.trim();
    let number = || text.parse::<u64>().unwrap_or(0);
    let parent = path.last().map(String::as_str).unwrap_or_default();
    match (parent, name) {
        ("rtmp" | "http-flv", "pid") => stat.pid = number(),
        ("rtmp" | "http-flv", "naccepted") => stat.accepted = number(),
        ("rtmp" | "http-flv", "uptime") => stat.uptime = number(),
        ("rtmp" | "http-flv", "bw_in") => stat.bits[0] = number(),
        ("rtmp" | "http-flv", "bw_out") => stat.bits[1] = number(),
        ("rtmp" | "http-flv", "bytes_in") => stat.bytes[0] = number(),
        ("rtmp" | "http-flv", "bytes_out") => stat.bytes[1] = number(),
        ("application", "name") => text.clone_into(application),
        ("live" | "play", "nclients") => {
            let clients = stat.applications.entry(application.clone()).or_default();
            *clients = clients.saturating_add(number());
        }
        // Spaces stand for bytes beyond ASCII, so their number is part of the name.
        ("stream", "name") => untrimmed.clone_into(&mut stream.name),
        ("stream", "time") => stream.time_ms = number(),
        ("stream", "bw_in") => stream.bits[0] = number(),
        ("stream", "bw_out") => stream.bits[1] = number(),
        ("stream", "bytes_in") => stream.bytes[0] = number(),
        ("stream", "bytes_out") => stream.bytes[1] = number(),
        ("stream", "nclients") => stream.clients = number(),
        ("client", "publishing") => stream.publishers += 1,
        ("client", "dropped") => stream.dropped = stream.dropped.saturating_add(number()),
        ("video", "width") => stream.width = number(),
        ("video", "height") => stream.height = number(),
        ("video", "frame_rate") => {
            stream.fps = text.parse().ok().filter(|fps: &f64| fps.is_finite() && *fps >= 0.0).unwrap_or(0.0);
        }
        ("video", "codec") => text.clone_into(&mut stream.video),
        ("audio", "codec") => text.clone_into(&mut stream.audio),
        (_, "stream") => {
            let stream = std::mem::take(stream);
            *stat.application_streams.entry(stream.application.clone()).or_default() += 1;
            if stat.streams.len() < MAX_STREAMS {
                stat.streams.push(stream);
            } else {
                stat.streams_dropped += 1;
            }
        }
        _ => {}
    }
}

const APPLICATION: &[&str] = &["application"];
const STREAM: &[&str] = &["application", "stream"];

static NGINX_UP: Def = Def::gauge(
    "nginx_rtmp_up",
    &["reason"],
    "1 while the RTMP statistics page is readable, 0 with the reason otherwise: absent, broken.",
)
.compat();
static CONNECTIONS: Def =
    Def::gauge("nginx_rtmp_connections", &[], "Clients of all applications, including publishers.");
static STREAMS: Def = Def::gauge("nginx_rtmp_streams", &[], "Streams of all applications.");
static IN_NOW: Def =
    Def::gauge("nginx_rtmp_bandwidth_in_bytes", &[], "Bytes received per second, as reported by the server.");
static OUT_NOW: Def =
    Def::gauge("nginx_rtmp_bandwidth_out_bytes", &[], "Bytes sent per second, as reported by the server.");
static ACCEPTED: Def =
    Def::counter("nginx_rtmp_accepted_connections_total", &[], "Connections accepted by the server's workers.");
static UPTIME: Def =
    Def::gauge("nginx_rtmp_uptime_seconds", &[], "Seconds since the server's configuration was loaded.");
static RECEIVED: Def = Def::counter("nginx_rtmp_received_bytes_total", &[], "Bytes received by the server's workers.");
static SENT: Def = Def::counter("nginx_rtmp_sent_bytes_total", &[], "Bytes sent by the server's workers.");
static APP_CLIENTS: Def =
    Def::gauge("nginx_rtmp_application_clients", APPLICATION, "Clients of an application, including publishers.");
static APP_STREAMS: Def = Def::gauge("nginx_rtmp_application_streams", APPLICATION, "Streams of an application.");
static CLIENTS: Def = Def::gauge("nginx_rtmp_stream_clients", STREAM, "Clients of a stream, including its publisher.");
static PUBLISHERS: Def = Def::gauge("nginx_rtmp_stream_publishers", STREAM, "Publishing clients of a stream.");
static AGE: Def = Def::gauge("nginx_rtmp_stream_duration_seconds", STREAM, "Seconds since the start of a stream.");
static STREAM_IN_NOW: Def =
    Def::gauge("nginx_rtmp_stream_bandwidth_in_bytes", STREAM, "Bytes received per second for a stream.");
static STREAM_OUT_NOW: Def =
    Def::gauge("nginx_rtmp_stream_bandwidth_out_bytes", STREAM, "Bytes sent per second for a stream, to all players.");
static STREAM_IN: Def =
    Def::counter("nginx_rtmp_stream_received_bytes_total", STREAM, "Bytes received for the streams of this name.");
static STREAM_OUT: Def =
    Def::counter("nginx_rtmp_stream_sent_bytes_total", STREAM, "Bytes sent for the streams of this name.");
static DROPPED_MESSAGES: Def =
    Def::gauge("nginx_rtmp_stream_dropped_messages", STREAM, "Messages dropped for a stream's current clients.");
static INFO: Def = Def::gauge(
    "nginx_rtmp_stream_info",
    &["application", "stream", "video_codec", "audio_codec", "resolution", "fps"],
    "Always 1; properties of a stream as reported by its publisher.",
);
static STREAMS_DROPPED: Def =
    Def::gauge("nginx_rtmp_streams_dropped", &[], "Streams without own series because of the limit of 512.");
static WORKERS: Def = Def::gauge(
    "nginx_rtmp_workers",
    &[],
    "Workers of the server whose pages the figures are the sum of: each answers with its own.",
);

/// Every metric of the port, in the order of the page.
pub static DEFS: &[&Def] = &[
    &NGINX_UP,
    &CONNECTIONS,
    &STREAMS,
    &IN_NOW,
    &OUT_NOW,
    &ACCEPTED,
    &UPTIME,
    &RECEIVED,
    &SENT,
    &APP_CLIENTS,
    &APP_STREAMS,
    &CLIENTS,
    &PUBLISHERS,
    &AGE,
    &STREAM_IN_NOW,
    &STREAM_OUT_NOW,
    &STREAM_IN,
    &STREAM_OUT,
    &DROPPED_MESSAGES,
    &INFO,
    &STREAMS_DROPPED,
    &WORKERS,
];

/// The families of the page, in order.
#[must_use]
pub fn families(stat: &Result<Stat, StatError>, label: StreamLabel) -> Vec<Family> {
    let mut all = Families::new(DEFS);
    let mut push = |def: &'static Def, labels: &[&str], value: f64| all.push(def, labels, value);
    match stat {
        Err(why) => push(&NGINX_UP, &[why.reason()], 0.0),
        Ok(stat) => {
            push(&NGINX_UP, &[""], 1.0);
            push(&CONNECTIONS, &[], float(total(&stat.applications)));
            push(&STREAMS, &[], float(total(&stat.application_streams)));
            for (def, value) in [(&IN_NOW, stat.bits[0]), (&OUT_NOW, stat.bits[1])] {
                push(def, &[], float(value) / 8.0);
            }
            for (def, value) in [
                (&ACCEPTED, stat.accepted),
                (&UPTIME, stat.uptime),
                (&RECEIVED, stat.bytes[0]),
                (&SENT, stat.bytes[1]),
                (&STREAMS_DROPPED, stat.streams_dropped),
                (&WORKERS, stat.workers),
            ] {
                push(def, &[], float(value));
            }
            let mut applications: BTreeMap<String, [u64; 2]> = BTreeMap::new();
            for (name, clients) in &stat.applications {
                let sum = &mut applications.entry(label::sanitize(name)).or_default()[0];
                *sum = sum.saturating_add(*clients);
            }
            for (name, streams) in &stat.application_streams {
                applications.entry(label::sanitize(name)).or_default()[1] += streams;
            }
            for (application, [clients, streams]) in &applications {
                push(&APP_CLIENTS, &[application], float(*clients));
                push(&APP_STREAMS, &[application], float(*streams));
            }
            if label != StreamLabel::Off {
                for (labels, (stream, _)) in by_labels(&stat.streams, label) {
                    push_stream(&mut push, [&labels.0, &labels.1], &stream);
                }
            }
        }
    }
    let mut all = all.into_vec();
    all.push(program::build_info());
    all.extend(process::families());
    all
}

/// The label of a stream: see [`StreamLabel`].
#[must_use]
pub fn stream_label(application: &str, name: &str, label: StreamLabel) -> String {
    match label {
        StreamLabel::Hash => label::digest(&format!("{application}/{name}")),
        StreamLabel::Name => label::sanitize(name),
        StreamLabel::Off => String::new(),
    }
}

/// The streams by their labels, and how many streams each is the sum of.
#[must_use]
pub fn by_labels(streams: &[NginxStream], label: StreamLabel) -> BTreeMap<(String, String), (NginxStream, u64)> {
    let mut all: BTreeMap<(String, String), (NginxStream, u64)> = BTreeMap::new();
    for stream in streams {
        all.entry(stream.labels(label))
            .and_modify(|(sum, count)| {
                sum.merge(stream);
                *count += 1;
            })
            .or_insert_with(|| (stream.clone(), 1));
    }
    all
}

fn push_stream(push: &mut impl FnMut(&'static Def, &[&str], f64), labels: [&str; 2], stream: &NginxStream) {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds, for output")]
    let age = stream.time_ms as f64 / 1000.0;
    push(&AGE, &labels, age);
    for (def, value) in [
        (&CLIENTS, stream.clients),
        (&PUBLISHERS, stream.publishers),
        (&STREAM_IN, stream.bytes[0]),
        (&STREAM_OUT, stream.bytes[1]),
        (&DROPPED_MESSAGES, stream.dropped),
    ] {
        push(def, &labels, float(value));
    }
    push(&STREAM_IN_NOW, &labels, float(stream.bits[0]) / 8.0);
    push(&STREAM_OUT_NOW, &labels, float(stream.bits[1]) / 8.0);
    let size = if stream.width > 0 && stream.height > 0 {
        format!("{}x{}", stream.width, stream.height)
    } else {
        String::new()
    };
    let fps = if stream.fps > 0.0 { format!("{}", stream.fps) } else { String::new() };
    let (video, audio) = (label::sanitize(&stream.video), label::sanitize(&stream.audio));
    push(&INFO, &[labels[0], labels[1], &video, &audio, &size, &fps], 1.0);
}

fn total(counts: &BTreeMap<String, u64>) -> u64 {
    counts.values().fold(0, |sum, count| sum.saturating_add(*count))
}

#[expect(clippy::cast_precision_loss, reason = "a count, for output")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::streams::ingest::server::ServerStats;

    /// A shortened page of the module; tests/streams.rs reads a real one.
    const PAGE: &str = r#"<?xml version="1.0" encoding="utf-8" ?><?xml-stylesheet type="text/xsl" href="stat.xsl" ?>
<rtmp><nginx_version>1.22.1</nginx_version><pid>7</pid><uptime>12</uptime><naccepted>5</naccepted><bw_in>800</bw_in><bytes_in>1000</bytes_in>
<bw_out>1600</bw_out><bytes_out>2000</bytes_out><server><application><name>live</name><live><stream><name>key&amp;1</name><time>2500</time>
<bw_in>800</bw_in><bytes_in>900</bytes_in><bw_out>1600</bw_out><bytes_out>1800</bytes_out><client><id>2</id><dropped>3</dropped></client>
<client><id>1</id><dropped>0</dropped><publishing/><active/></client><meta><video><width>640</width><height>360</height><frame_rate>25</frame_rate>
<codec>H264</codec></video><audio><codec>AAC</codec></audio></meta><nclients>2</nclients><publishing/><active/></stream><nclients>2</nclients></live>
</application></server></rtmp>"#;

    #[test]
    fn a_statistics_page_is_parsed() {
        let stat = parse(PAGE.as_bytes()).unwrap();
        assert_eq!((stat.accepted, stat.uptime, stat.bits, stat.bytes), (5, 12, [800, 1600], [1000, 2000]));
        assert_eq!(stat.applications, BTreeMap::from([("live".to_owned(), 2)]));
        let expected = NginxStream {
            application: "live".into(),
            name: "key&1".into(),
            time_ms: 2500,
            bits: [800, 1600],
            bytes: [900, 1800],
            clients: 2,
            publishers: 1,
            dropped: 3,
            video: "H264".into(),
            audio: "AAC".into(),
            width: 640,
            height: 360,
            fps: 25.0,
        };
        assert_eq!(stat.streams, [expected]);
    }

    #[test]
    fn a_stream_name_is_on_the_page_only_if_configured() {
        let text = |label| {
            let page = metrics::page::render("nginx", families(&Ok(parse(PAGE.as_bytes()).unwrap()), label)).unwrap();
            String::from_utf8(page.text().to_vec()).unwrap()
        };
        assert!(
            !text(StreamLabel::Hash).contains("key") && text(StreamLabel::Hash).contains("nginx_rtmp_stream_clients{")
        );
        assert!(text(StreamLabel::Name).contains("stream=\"key&1\""));
        assert!(!text(StreamLabel::Off).contains("nginx_rtmp_stream_clients{"));
    }

    #[test]
    fn errors_contain_no_password() {
        let why = Nginx::new("http://127.0.0.1:1/stat?token=hunter2").unwrap().stat().unwrap_err().to_string();
        assert!(why.contains("http://127.0.0.1:1") && !why.contains("hunter2"), "{why}");
        for url in ["http://u:hunter2@127.0.0.1:1/stat", "u:hunter2@127.0.0.1:1", "127.0.0.1:1/hunter2"] {
            let why = Nginx::new(url).err().unwrap().to_string();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn entity_bombs_and_incomplete_pages_are_rejected() {
        let bomb = r#"<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><rtmp><server><application>
            <name>&b;</name></application></server></rtmp>"#;
        assert_eq!(parse(bomb.as_bytes()).unwrap().streams, []);
        assert!(parse(&"<rtmp>".repeat(100).into_bytes()).unwrap_err().contains("too deep"));
        assert!(parse(b"<html></html>").unwrap_err().contains("not a page of the RTMP"));
        assert!(parse(&PAGE.as_bytes()[..PAGE.len() - 20]).is_err());
        let long = format!("<rtmp><application><name>{}</name></application></rtmp>", "x".repeat(1 << 20));
        assert!(parse(long.as_bytes()).is_ok());
    }

    fn text_of(page: &str, label: StreamLabel) -> String {
        let page = metrics::page::render("nginx", families(&Ok(parse(page.as_bytes()).unwrap()), label)).unwrap();
        String::from_utf8(page.text().to_vec()).unwrap()
    }

    #[test]
    fn the_page_of_the_http_flv_fork_is_read() {
        let fork = PAGE.replace("<rtmp>", "<http-flv>").replace("</rtmp>", "</http-flv>");
        assert_eq!(parse(fork.as_bytes()).unwrap(), parse(PAGE.as_bytes()).unwrap());
    }

    #[test]
    fn ten_thousand_streams_are_counted_and_512_have_series() {
        let one = |number: u32| {
            let name = format!("<name>s{number}</name>");
            let client = "<client><id>1</id><publishing/></client>";
            format!("<stream>{name}<bytes_in>7</bytes_in>{client}<nclients>2</nclients></stream>")
        };
        let streams: String = (0..10_000).map(one).collect();
        let page = format!(
            "<http-flv><server><application><name>live</name><live>{streams}</live></application></server></http-flv>"
        );
        let stat = parse(page.as_bytes()).unwrap();
        assert_eq!((stat.streams.len(), stat.streams_dropped), (MAX_STREAMS, 10_000 - 512));
        let text = text_of(&page, StreamLabel::Hash);
        assert!(text.contains("\nnginx_rtmp_streams 10000\n") && text.contains("\nnginx_rtmp_streams_dropped 9488\n"));
        let stats = ServerStats::of_nginx(&stat, StreamLabel::Hash);
        let first = &stats.streams[0];
        assert_eq!((stats.unread, first.viewers, first.publishers, first.received), (9488, Some(1), Some(1), Some(7)));
        let off = ServerStats::of_nginx(&stat, StreamLabel::Off);
        assert_eq!((off.streams.len(), off.unread), (0, 10_000));
    }

    #[test]
    fn streams_whose_names_have_no_ascii_are_added_up() {
        let stream = |spaces: usize, bytes: u64| {
            let name = " ".repeat(spaces);
            format!("<stream><name>{name}</name><bytes_in>{bytes}</bytes_in><nclients>1</nclients></stream>")
        };
        let page = format!(
            "<rtmp><server><application><name>live</name><live>{}{}{}</live></application></server></rtmp>",
            stream(9, 19),
            stream(9, 11),
            stream(6, 5)
        );
        for label in [StreamLabel::Hash, StreamLabel::Name] {
            let text = text_of(&page, label);
            let values = |name: &str| -> Vec<f64> {
                let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
                let mut values: Vec<f64> =
                    lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
                values.sort_by(f64::total_cmp);
                values
            };
            assert_eq!(values("nginx_rtmp_stream_received_bytes_total"), [5.0, 30.0], "{text}");
            assert_eq!(values("nginx_rtmp_stream_clients"), [1.0, 2.0]);
            assert!(text.contains("\nnginx_rtmp_streams 3\n") && text.contains("\nnginx_rtmp_streams_dropped 0\n"));
        }
    }

    proptest! {
        #[test]
        fn no_page_causes_a_panic(page in prop::collection::vec(any::<u8>(), 0..500), at in 0..PAGE.len(), byte in any::<u8>()) {
            let _ = parse(&page);
            let mut changed = PAGE.as_bytes().to_vec();
            changed[at] = byte;
            if let Ok(stat) = parse(&changed) {
                prop_assert!(metrics::page::render("nginx", families(&Ok(stat), StreamLabel::Name)).is_ok());
            }
        }
    }
}
