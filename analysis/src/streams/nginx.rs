//! nginx's RTMP module: its `/stat` page as metrics of port 9728.
//!
//! In RTMP a stream's name is usually the key that lets one publish, so the label is a digest unless the user wants the name. A server
//! that is slow or broken holds up its own thread, never a request.

use std::{collections::BTreeMap, time::Duration};

use exporter::{
    family::{Def, Families, Family},
    label, process, program,
};
use quick_xml::{Reader, events::Event};

use crate::client::{Access, Client, Failed};

/// Longest that the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Largest page that is taken: a stream has a kilobyte, and each of its clients three hundred bytes.
const MAX_PAGE: u64 = 8 << 20;
/// Deepest element: the module nests eight.
const MAX_DEPTH: usize = 32;
/// Longest text of an element.
const MAX_TEXT: usize = 1024;
/// Streams with series of their own.
const MAX_STREAMS: usize = 512;

/// What stands for a stream's name in the label `stream`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum StreamLabel {
    /// Eight digits of a digest of application and name
    #[default]
    Hash,
    /// The name itself: for servers whose names are no keys
    Name,
    /// Nothing: figures by application only
    Off,
}

/// One stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stream {
    /// Its application.
    pub application: String,
    /// Its name.
    pub name: String,
    /// Milliseconds.
    pub time_ms: u64,
    /// Bits a second, in and out.
    pub bits: [u64; 2],
    /// Bytes since it began, in and out.
    pub bytes: [u64; 2],
    /// Clients, the publisher included.
    pub clients: u64,
    /// Clients that publish.
    pub publishers: u64,
    /// Messages that its clients lost.
    pub dropped: u64,
    /// `H264` and the like; empty when unknown.
    pub video: String,
    /// As above.
    pub audio: String,
    /// As above.
    pub width: u64,
    /// As above.
    pub height: u64,
    /// As above.
    pub fps: f64,
}

/// One page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stat {
    /// Connections since the server's start.
    pub accepted: u64,
    /// Seconds.
    pub uptime: u64,
    /// Bits a second, in and out.
    pub bits: [u64; 2],
    /// Bytes, in and out.
    pub bytes: [u64; 2],
    /// Clients by application.
    pub applications: BTreeMap<String, u64>,
    /// Streams.
    pub streams: Vec<Stream>,
    /// Streams beyond those.
    pub more: u64,
}

/// Why there is no page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoStat {
    /// The server did not answer.
    #[error("{0}. Start nginx, or name its page with --nginx.url")]
    Unreachable(String),
    /// The page is none of the module's.
    #[error("{0}")]
    NotStat(String),
}

impl NoStat {
    /// The label `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "absent",
            Self::NotStat(_) => "broken",
        }
    }
}

/// A server by the address of its page.
pub struct Nginx(Client);

impl Nginx {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When that is no URL, or has a password in it.
    pub fn new(url: &str) -> Result<Self, Failed> {
        Client::new(url, &Access::default(), TIMEOUT, MAX_PAGE).map(Self)
    }

    /// Asks for the page.
    ///
    /// # Errors
    /// When it does not come in time, is too long, or is not the module's.
    pub fn stat(&self) -> Result<Stat, NoStat> {
        let reply = self.0.get("", &[]).map_err(|error| NoStat::Unreachable(error.to_string()))?;
        if reply.status != 200 {
            return Err(NoStat::Unreachable(format!("{}: status {}", self.0.shown(), reply.status)));
        }
        parse(&reply.body).map_err(|what| NoStat::NotStat(format!("{}: {what}", self.0.shown())))
    }
}

/// Reads the module's page. Of entities only those that XML itself has are known, so nothing in a page can be made to grow.
///
/// # Errors
/// What is wrong with a page that is torn or another's.
pub fn parse(page: &[u8]) -> Result<Stat, String> {
    let mut reader = Reader::from_reader(page);
    let (mut stat, mut path): (Stat, Vec<String>) = (Stat::default(), Vec::new());
    let (mut application, mut stream) = (String::new(), Stream::default());
    let (mut text, mut buffer, mut rtmp) = (String::new(), Vec::new(), false);
    loop {
        match reader.read_event_into(&mut buffer).map_err(|error| format!("not XML: {error}"))? {
            Event::Start(start) => {
                if path.len() >= MAX_DEPTH {
                    return Err("nested too deep for the RTMP module's page".to_owned());
                }
                let name = String::from_utf8_lossy(start.name().as_ref()).chars().take(32).collect::<String>();
                rtmp |= path.is_empty() && name == "rtmp";
                match &*name {
                    "application" => application.clear(),
                    "stream" => stream = Stream { application: application.clone(), ..Stream::default() },
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
            Event::Text(piece) => {
                let piece = piece.decode().map_err(|error| format!("not text: {error}"))?;
                push(&mut text, &piece);
            }
            Event::CData(piece) => push(&mut text, &String::from_utf8_lossy(&piece)),
            Event::GeneralRef(entity) => match &*entity {
                b"lt" => push(&mut text, "<"),
                b"gt" => push(&mut text, ">"),
                b"amp" => push(&mut text, "&"),
                b"quot" => push(&mut text, "\""),
                b"apos" => push(&mut text, "'"),
                // An entity of the page's own, or a number: neither does the module write.
                _ => push(&mut text, "\u{fffd}"),
            },
            Event::End(_) => {
                let Some(name) = path.pop() else { return Err("an element that ends and never began".to_owned()) };
                close(&name, &path, text.trim(), &mut stat, &mut application, &mut stream);
                text.clear();
            }
            Event::Eof if !path.is_empty() => return Err("the page ends in the middle".to_owned()),
            Event::Eof if !rtmp => return Err("not the RTMP module's page".to_owned()),
            Event::Eof => return Ok(stat),
            Event::Decl(_) | Event::PI(_) | Event::DocType(_) | Event::Comment(_) => {}
        }
        buffer.clear();
    }
}

fn push(text: &mut String, piece: &str) {
    let room = MAX_TEXT.saturating_sub(text.len());
    text.extend(piece.chars().scan(0, |length, character| {
        *length += character.len_utf8();
        (*length <= room).then_some(character)
    }));
}

/// An element has ended, with this text, in those elements.
fn close(name: &str, path: &[String], text: &str, stat: &mut Stat, application: &mut String, stream: &mut Stream) {
    let number = || text.parse::<u64>().unwrap_or(0);
    let parent = path.last().map(String::as_str).unwrap_or_default();
    match (parent, name) {
        ("rtmp", "naccepted") => stat.accepted = number(),
        ("rtmp", "uptime") => stat.uptime = number(),
        ("rtmp", "bw_in") => stat.bits[0] = number(),
        ("rtmp", "bw_out") => stat.bits[1] = number(),
        ("rtmp", "bytes_in") => stat.bytes[0] = number(),
        ("rtmp", "bytes_out") => stat.bytes[1] = number(),
        ("application", "name") => text.clone_into(application),
        ("live" | "play", "nclients") => *stat.applications.entry(application.clone()).or_default() += number(),
        ("stream", "name") => text.clone_into(&mut stream.name),
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
            if stat.streams.len() < MAX_STREAMS {
                stat.streams.push(stream);
            } else {
                stat.more += 1;
            }
        }
        _ => {}
    }
}

const APPLICATION: &[&str] = &["application"];
const STREAM: &[&str] = &["application", "stream"];

static NGINX_UP: Def =
    Def::gauge("nginx_rtmp_up", &["reason"], "1 when the server's page was read; 0 with the reason absent or broken.")
        .seed();
static CONNECTIONS: Def =
    Def::gauge("nginx_rtmp_connections", &[], "Clients of all applications, publishers included.");
static STREAMS: Def = Def::gauge("nginx_rtmp_streams", &[], "Streams of all applications.");
static IN_NOW: Def =
    Def::gauge("nginx_rtmp_bandwidth_in_bytes", &[], "Bytes a second that the server receives, as it says itself.");
static OUT_NOW: Def =
    Def::gauge("nginx_rtmp_bandwidth_out_bytes", &[], "Bytes a second that the server sends, as it says itself.");
static ACCEPTED: Def =
    Def::counter("nginx_rtmp_accepted_connections_total", &[], "Connections since the server's start.");
static UPTIME: Def = Def::gauge("nginx_rtmp_uptime_seconds", &[], "Seconds since the server's start.");
static RECEIVED: Def =
    Def::counter("nginx_rtmp_received_bytes_total", &[], "Bytes that the server received since its start.");
static SENT: Def = Def::counter("nginx_rtmp_sent_bytes_total", &[], "Bytes that the server sent since its start.");
static APP_CLIENTS: Def =
    Def::gauge("nginx_rtmp_application_clients", APPLICATION, "Clients of an application, publishers included.");
static APP_STREAMS: Def = Def::gauge("nginx_rtmp_application_streams", APPLICATION, "Streams of an application.");
static CLIENTS: Def = Def::gauge("nginx_rtmp_stream_clients", STREAM, "Clients of a stream, its publisher included.");
static PUBLISHERS: Def = Def::gauge("nginx_rtmp_stream_publishers", STREAM, "Clients that publish a stream.");
static AGE: Def = Def::gauge("nginx_rtmp_stream_duration_seconds", STREAM, "Seconds since a stream began.");
static STREAM_IN_NOW: Def =
    Def::gauge("nginx_rtmp_stream_bandwidth_in_bytes", STREAM, "Bytes a second received of a stream.");
static STREAM_OUT_NOW: Def =
    Def::gauge("nginx_rtmp_stream_bandwidth_out_bytes", STREAM, "Bytes a second sent of a stream, to all its players.");
static STREAM_IN: Def =
    Def::counter("nginx_rtmp_stream_received_bytes_total", STREAM, "Bytes received of a stream since it began.");
static STREAM_OUT: Def =
    Def::counter("nginx_rtmp_stream_sent_bytes_total", STREAM, "Bytes sent of a stream since it began.");
static LOST: Def =
    Def::gauge("nginx_rtmp_stream_dropped_messages", STREAM, "Messages that a stream's present clients lost.");
static INFO: Def = Def::gauge(
    "nginx_rtmp_stream_info",
    &["application", "stream", "video_codec", "audio_codec", "resolution", "fps"],
    "1; what a stream's publisher said of it.",
);
static MORE: Def = Def::gauge(
    "nginx_rtmp_streams_dropped",
    &[],
    "Streams without series of their own, because there are more than 512.",
);

/// Every metric of this port, in the order of the page.
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
    &LOST,
    &INFO,
    &MORE,
];

/// The page's families, in order.
#[must_use]
pub fn families(stat: &Result<Stat, NoStat>, shown: StreamLabel) -> Vec<Family> {
    let mut all = Families::new(DEFS);
    let mut push = |def: &'static Def, labels: &[&str], value: f64| all.push(def, labels, value);
    match stat {
        Err(why) => push(&NGINX_UP, &[why.reason()], 0.0),
        Ok(stat) => {
            push(&NGINX_UP, &[""], 1.0);
            push(&CONNECTIONS, &[], float(stat.applications.values().sum()));
            push(&STREAMS, &[], float(stat.streams.len() as u64 + stat.more));
            for (def, value) in [(&IN_NOW, stat.bits[0]), (&OUT_NOW, stat.bits[1])] {
                push(def, &[], float(value) / 8.0);
            }
            for (def, value) in [
                (&ACCEPTED, stat.accepted),
                (&UPTIME, stat.uptime),
                (&RECEIVED, stat.bytes[0]),
                (&SENT, stat.bytes[1]),
                (&MORE, stat.more),
            ] {
                push(def, &[], float(value));
            }
            let mut applications: BTreeMap<String, [u64; 2]> = BTreeMap::new();
            for (name, clients) in &stat.applications {
                applications.entry(label::clean(name)).or_default()[0] += clients;
            }
            for stream in &stat.streams {
                applications.entry(label::clean(&stream.application)).or_default()[1] += 1;
            }
            for (application, [clients, streams]) in &applications {
                push(&APP_CLIENTS, &[application], float(*clients));
                push(&APP_STREAMS, &[application], float(*streams));
            }
            if shown != StreamLabel::Off {
                // Two servers blocks may have an application, and a stream, of one name.
                let mut seen = std::collections::HashSet::new();
                for stream in &stat.streams {
                    row(&mut push, stream, shown, &mut seen);
                }
            }
        }
    }
    let mut all = all.into_vec();
    all.push(program::build_info());
    all.extend(process::families());
    all
}

/// What stands for a stream outside: see [`StreamLabel`].
#[must_use]
pub fn stream_label(application: &str, name: &str, shown: StreamLabel) -> String {
    match shown {
        StreamLabel::Hash => label::digest(&format!("{application}/{name}")),
        StreamLabel::Name => label::clean(name),
        StreamLabel::Off => String::new(),
    }
}

fn row(
    push: &mut impl FnMut(&'static Def, &[&str], f64),
    stream: &Stream,
    shown: StreamLabel,
    seen: &mut std::collections::HashSet<(String, String)>,
) {
    let (application, name) =
        (label::clean(&stream.application), stream_label(&stream.application, &stream.name, shown));
    if !seen.insert((application.clone(), name.clone())) {
        return;
    }
    let labels = [&*application, &*name];
    #[expect(clippy::cast_precision_loss, reason = "milliseconds, for output")]
    let age = stream.time_ms as f64 / 1000.0;
    push(&AGE, &labels, age);
    for (def, value) in [
        (&CLIENTS, stream.clients),
        (&PUBLISHERS, stream.publishers),
        (&STREAM_IN, stream.bytes[0]),
        (&STREAM_OUT, stream.bytes[1]),
        (&LOST, stream.dropped),
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
    let (video, audio) = (label::clean(&stream.video), label::clean(&stream.audio));
    push(&INFO, &[labels[0], labels[1], &video, &audio, &size, &fps], 1.0);
}

#[expect(clippy::cast_precision_loss, reason = "a count, for output")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the module writes it, shortened; tests/streams.rs reads a real one.
    const PAGE: &str = r#"<?xml version="1.0" encoding="utf-8" ?><?xml-stylesheet type="text/xsl" href="stat.xsl" ?>
<rtmp><nginx_version>1.22.1</nginx_version><pid>7</pid><uptime>12</uptime><naccepted>5</naccepted><bw_in>800</bw_in><bytes_in>1000</bytes_in>
<bw_out>1600</bw_out><bytes_out>2000</bytes_out><server><application><name>live</name><live><stream><name>key&amp;1</name><time>2500</time>
<bw_in>800</bw_in><bytes_in>900</bytes_in><bw_out>1600</bw_out><bytes_out>1800</bytes_out><client><id>2</id><dropped>3</dropped></client>
<client><id>1</id><dropped>0</dropped><publishing/><active/></client><meta><video><width>640</width><height>360</height><frame_rate>25</frame_rate>
<codec>H264</codec></video><audio><codec>AAC</codec></audio></meta><nclients>2</nclients><publishing/><active/></stream><nclients>2</nclients></live>
</application></server></rtmp>"#;

    #[test]
    fn a_page_is_understood() {
        let stat = parse(PAGE.as_bytes()).unwrap();
        assert_eq!((stat.accepted, stat.uptime, stat.bits, stat.bytes), (5, 12, [800, 1600], [1000, 2000]));
        assert_eq!(stat.applications, BTreeMap::from([("live".to_owned(), 2)]));
        let expected = Stream {
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
    fn a_streams_name_is_not_told_unless_it_is_asked_for() {
        let text = |shown| {
            let page = exporter::page::render("nginx", families(&Ok(parse(PAGE.as_bytes()).unwrap()), shown)).unwrap();
            String::from_utf8(page.text().to_vec()).unwrap()
        };
        assert!(
            !text(StreamLabel::Hash).contains("key") && text(StreamLabel::Hash).contains("nginx_rtmp_stream_clients{")
        );
        assert!(text(StreamLabel::Name).contains("stream=\"key&1\""));
        assert!(!text(StreamLabel::Off).contains("nginx_rtmp_stream_clients{"));
    }

    #[test]
    fn what_is_said_of_a_server_holds_no_password() {
        let why = Nginx::new("http://127.0.0.1:1/stat?token=hunter2").unwrap().stat().unwrap_err().to_string();
        assert!(why.contains("http://127.0.0.1:1") && !why.contains("hunter2"), "{why}");
        for url in ["http://u:hunter2@127.0.0.1:1/stat", "u:hunter2@127.0.0.1:1", "127.0.0.1:1/hunter2"] {
            let why = Nginx::new(url).err().unwrap().to_string();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn bombs_and_torn_pages_are_refused() {
        let bomb = r#"<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><rtmp><server><application>
            <name>&b;</name></application></server></rtmp>"#;
        assert_eq!(parse(bomb.as_bytes()).unwrap().streams, []);
        assert!(parse(&"<rtmp>".repeat(100).into_bytes()).unwrap_err().contains("too deep"));
        assert!(parse(b"<html></html>").unwrap_err().contains("not the RTMP"));
        assert!(parse(&PAGE.as_bytes()[..PAGE.len() - 20]).is_err());
        let long = format!("<rtmp><application><name>{}</name></application></rtmp>", "x".repeat(1 << 20));
        assert!(parse(long.as_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn no_page_makes_it_panic(page in prop::collection::vec(any::<u8>(), 0..500), at in 0..PAGE.len(), byte in any::<u8>()) {
            let _ = parse(&page);
            let mut changed = PAGE.as_bytes().to_vec();
            changed[at] = byte;
            if let Ok(stat) = parse(&changed) {
                prop_assert!(exporter::page::render("nginx", families(&Ok(stat), StreamLabel::Name)).is_ok());
            }
        }
    }
}
