//! Receives progress reports of ffmpeg by UDP, HTTP, a Unix socket and named pipes.
//!
//! Every source is read as fast as it sends, so that no encoder waits for us. Reports over the
//! limit are counted and dropped.
//!
//! Any process can send datagrams, from any number of ports. Senders that the probe does not know
//! share a limited number of places, and never take those of known ones.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Path as UrlPath, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use ffmpeg::{Parser, Report};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use tokio::{
    io::AsyncReadExt as _,
    net::{UdpSocket, UnixListener, unix::pipe},
};
use tracing::{info, warn};

use super::{
    names::StreamNames,
    table::{SourceId, StreamTable},
};

/// Largest datagram in bytes.
const MAX_DATAGRAM: usize = 64 << 10;
/// Maximum number of remembered senders of datagrams that the probe does not know.
const MAX_UNNAMED_SENDERS: usize = 1024;
/// Senders with the port of one job: one for each of its network namespaces.
const MAX_SENDERS_OF_PORT: usize = 4;
/// Datagrams of one sender: per second, and at once. ffmpeg sends two per second; what a stopped
/// service finds in its socket buffer is some 300.
const SENDER_RATE: (f64, f64) = (100.0, 512.0);
/// Time after which a silent sender is forgotten: usually, and while there is no place for more.
const SILENCE: (Duration, Duration) = (Duration::from_secs(60), NAME_TIMEOUT);
/// Time to wait until the probe knows the stream of a sender.
const NAME_TIMEOUT: Duration = Duration::from_secs(6);
/// Idle timeout of an HTTP request; ffmpeg reports twice a second unless `-stats_period` is set.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Maximum number of connections of the Unix socket.
const MAX_CONNECTIONS: usize = 256;

/// State shared by all transports.
#[derive(Clone)]
pub struct ProgressReceiver {
    table: Arc<Mutex<StreamTable>>,
    names: StreamNames,
    token: Option<Arc<str>>,
    next_source: Arc<AtomicU64>,
    rejected: Arc<AtomicU64>,
    /// Datagrams dropped, by [`DatagramDrop`].
    dropped_datagrams: Arc<[AtomicU64; 2]>,
}

/// Why a datagram is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DatagramDrop {
    /// There is no place for another sender.
    Senders,
    /// The sender sends too many.
    Rate,
}

/// The name of a stream, or the address of its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SourceName {
    name: String,
    is_address: bool,
}

impl SourceName {
    fn known(name: String) -> Self {
        Self { name, is_address: false }
    }

    fn address(name: String) -> Self {
        Self { name, is_address: true }
    }
}

impl ProgressReceiver {
    /// Reports go into the table; HTTP requests must carry the token, if there is one.
    #[must_use]
    pub fn new(table: Arc<Mutex<StreamTable>>, names: StreamNames, token: Option<&str>) -> Self {
        Self {
            table,
            names,
            token: token.map(Into::into),
            next_source: Arc::default(),
            rejected: Arc::default(),
            dropped_datagrams: Arc::default(),
        }
    }

    /// The locked table of streams.
    pub fn table(&self) -> MutexGuard<'_, StreamTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream names known to the probe.
    #[must_use]
    pub fn names(&self) -> &StreamNames {
        &self.names
    }

    /// Number of requests with a missing or wrong token.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Number of dropped datagrams by reason.
    #[must_use]
    pub fn dropped_datagrams(&self) -> [(&'static str, u64); 2] {
        let count = |reason: DatagramDrop| self.dropped_datagrams[reason as usize].load(Ordering::Relaxed);
        [("senders", count(DatagramDrop::Senders)), ("rate", count(DatagramDrop::Rate))]
    }

    fn count_datagram(&self, reason: DatagramDrop) {
        self.dropped_datagrams[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn new_source(&self) -> SourceId {
        self.next_source.fetch_add(1, Ordering::Relaxed)
    }

    fn report(&self, source: SourceId, name: &str, report: Report) {
        self.table().report(source, name, report, Instant::now());
    }

    fn report_as(&self, source: SourceId, name: &SourceName, report: Report) {
        let (mut table, now) = (self.table(), Instant::now());
        match name.is_address {
            false => table.report(source, &name.name, report, now),
            true => table.report_unnamed(source, &name.name, report, now),
        };
    }

    /// Adds the first report of a source whose name was unknown since `since`.
    fn report_delayed(&self, source: SourceId, name: &SourceName, report: Report, since: Instant) {
        self.report_as(source, name, report);
        self.table().set_earlier_start(source, since.elapsed());
    }
}

/// `POST /progress/STREAM`, which `-progress http://HOST:9506/progress/STREAM` sends as one request
/// per job.
pub fn routes(receiver: ProgressReceiver) -> Router {
    Router::new().route("/progress/{stream}", post(progress).put(progress)).with_state(receiver)
}

#[derive(Deserialize)]
struct TokenQuery {
    token: Option<String>,
}

async fn progress(
    State(receiver): State<ProgressReceiver>,
    UrlPath(stream): UrlPath<String>,
    Query(query): Query<TokenQuery>,
    headers: HeaderMap,
    mut body: Body,
) -> Response {
    if let Some(token) = &receiver.token {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let presented = query.token.as_deref().or(bearer).unwrap_or_default();
        if !constant_time_eq(token.as_bytes(), presented.as_bytes()) {
            receiver.rejected.fetch_add(1, Ordering::Relaxed);
            return (StatusCode::UNAUTHORIZED, "the token is missing or wrong; add ?token=… to the URL\n")
                .into_response();
        }
    }
    let (source, mut parser, mut reports) = (receiver.new_source(), Parser::default(), 0u64);
    // A killed encoder ends its request early; one whose host has failed times out.
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(IDLE_TIMEOUT, body.frame()).await {
        if let Ok(piece) = frame.into_data() {
            parser.feed(&piece, |report| {
                reports += 1;
                receiver.report(source, &stream, report);
            });
        }
    }
    if reports == 0 {
        return (StatusCode::BAD_REQUEST, "the request contains no progress report of ffmpeg\n").into_response();
    }
    StatusCode::NO_CONTENT.into_response()
}

/// Compares in a time that does not depend on the position of the first difference.
fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// A number of events per second, with a larger number at once.
struct RateLimit {
    left: f64,
    at: Instant,
}

impl RateLimit {
    fn new((_, at_once): (f64, f64), now: Instant) -> Self {
        Self { left: at_once, at: now }
    }

    fn admits(&mut self, (per_second, at_once): (f64, f64), now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * per_second).min(at_once);
        self.at = now;
        let is_admitted = self.left >= 1.0;
        if is_admitted {
            self.left -= 1.0;
        }
        is_admitted
    }
}

/// A sender of datagrams.
struct Sender {
    source: SourceId,
    parser: Parser,
    name: Option<SourceName>,
    since: Instant,
    last_seen: Instant,
    rate: RateLimit,
    /// The newest report before the name was known; its counters are totals, so earlier reports are
    /// not needed.
    pending: Option<Report>,
}

impl Sender {
    /// True if the probe knows its stream.
    fn is_known(&self) -> bool {
        self.name.as_ref().is_some_and(|name| !name.is_address)
    }
}

/// All senders of datagrams.
struct Senders {
    receiver: ProgressReceiver,
    senders: HashMap<SocketAddr, Sender>,
    /// Number of senders that the probe does not know.
    unnamed: usize,
    resolved_at: Instant,
}

impl Senders {
    fn new(receiver: ProgressReceiver, now: Instant) -> Self {
        Self { receiver, senders: HashMap::new(), unnamed: 0, resolved_at: now }
    }

    fn receive(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) {
        if let Err(reason) = self.add(from, datagram, now) {
            self.receiver.count_datagram(reason);
        }
        if now.saturating_duration_since(self.resolved_at) >= Duration::from_secs(1) {
            self.resolve_names(now);
        }
    }

    /// Adds the reports of a datagram.
    fn add(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> Result<(), DatagramDrop> {
        if !self.senders.contains_key(&from) {
            self.admit(from, now)?;
        }
        let receiver = &self.receiver;
        let Some(sender) = self.senders.get_mut(&from) else { return Ok(()) };
        if !sender.rate.admits(SENDER_RATE, now) {
            return Err(DatagramDrop::Rate);
        }
        sender.last_seen = now;
        let mut ended = false;
        let (source, name, pending) = (sender.source, &sender.name, &mut sender.pending);
        sender.parser.feed(datagram, |report| {
            ended |= report.end;
            match name {
                Some(name) => receiver.report_as(source, name, report),
                None => *pending = Some(report),
            }
        });
        if ended && sender.name.is_some() {
            // Another job may get the port next.
            let was_known = sender.is_known();
            self.senders.remove(&from);
            self.unnamed = self.unnamed.saturating_sub(usize::from(!was_known));
        }
        Ok(())
    }

    /// Finds a place for a new sender; one that the probe knows always has one.
    fn admit(&mut self, from: SocketAddr, now: Instant) -> Result<(), DatagramDrop> {
        let name = self.receiver.names.by_port(from.port());
        let has_place = match name {
            Some(_) => {
                let known = self.senders.iter().filter(|(_, sender)| sender.is_known());
                known.filter(|(address, _)| address.port() == from.port()).count() < MAX_SENDERS_OF_PORT
            }
            None => self.unnamed < MAX_UNNAMED_SENDERS,
        };
        if !has_place {
            return Err(DatagramDrop::Senders);
        }
        self.unnamed += usize::from(name.is_none());
        let sender = Sender {
            source: self.receiver.new_source(),
            parser: Parser::default(),
            name: name.map(SourceName::known),
            since: now,
            last_seen: now,
            rate: RateLimit::new(SENDER_RATE, now),
            pending: None,
        };
        self.senders.insert(from, sender);
        Ok(())
    }

    /// Names the senders without a name: as the probe knows them, or by their address after
    /// [`NAME_TIMEOUT`]. Forgets senders that are silent.
    fn resolve_names(&mut self, now: Instant) {
        self.resolved_at = now;
        let silence = if self.unnamed >= MAX_UNNAMED_SENDERS { SILENCE.1 } else { SILENCE.0 };
        let receiver = &self.receiver;
        self.senders.retain(|address, sender| {
            if sender.name.is_none() {
                let waited = now.saturating_duration_since(sender.since) >= NAME_TIMEOUT;
                let fallback = || {
                    let name = format!("udp-{}-{}", address.ip().to_canonical(), address.port());
                    waited.then(|| SourceName::address(name))
                };
                sender.name = receiver.names.by_port(address.port()).map(SourceName::known).or_else(fallback);
                if let Some(name) = &sender.name
                    && let Some(report) = sender.pending.take()
                {
                    receiver.report_delayed(sender.source, name, report, sender.since);
                    if report.end {
                        return false;
                    }
                }
            }
            let limit = if sender.is_known() { SILENCE.0 } else { silence };
            now.saturating_duration_since(sender.last_seen) < limit
        });
        self.unnamed = self.senders.values().filter(|sender| !sender.is_known()).count();
    }
}

/// Receives datagrams until the socket fails. Not for use with a token, which datagrams cannot
/// carry.
///
/// # Errors
/// The socket has failed.
pub async fn datagrams(socket: UdpSocket, receiver: ProgressReceiver) -> io::Result<()> {
    let mut senders = Senders::new(receiver, Instant::now());
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        match tokio::time::timeout(Duration::from_secs(1), socket.recv_from(&mut buffer)).await {
            Ok(Ok((length, from))) => senders.receive(from, &buffer[..length], Instant::now()),
            // An ICMP error for something that we never sent.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => senders.resolve_names(Instant::now()),
        }
    }
}

/// Listens on a Unix socket for `-progress unix:PATH`. The stream's name is resolved by the
/// sender's process id.
///
/// # Errors
/// The socket cannot be created, or another file has this path.
pub fn unix_socket(path: &Path, receiver: ProgressReceiver) -> io::Result<()> {
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        // A socket that an earlier process left is replaced, but not one that is in use.
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another program listens on it"));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // Connecting needs write permission, which the group gets; the directory may restrict access
    // further.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let mut stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!("cannot accept on the progress socket: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let receiver = receiver.clone();
            tokio::spawn(async move {
                let _slot = slot;
                let pid = stream.peer_cred().ok().and_then(|peer| u32::try_from(peer.pid()?).ok());
                let name = |receiver: &ProgressReceiver| Some(SourceName::known(receiver.names.by_process(pid?)?));
                let fallback =
                    || SourceName::address(pid.map_or_else(|| "unix".to_owned(), |pid| format!("unix-{pid}")));
                let mut source = UnnamedSource::new(&receiver);
                let mut buffer = vec![0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    source.feed(&receiver, &buffer[..length], || name(&receiver), fallback);
                }
                source.end(&receiver, || name(&receiver), fallback);
            });
        }
    });
    Ok(())
}

/// A source whose stream name may become known after its first reports.
struct UnnamedSource {
    source: SourceId,
    parser: Parser,
    name: Option<SourceName>,
    since: Instant,
    pending: Option<Report>,
}

impl UnnamedSource {
    fn new(receiver: &ProgressReceiver) -> Self {
        Self {
            source: receiver.new_source(),
            parser: Parser::default(),
            name: None,
            since: Instant::now(),
            pending: None,
        }
    }

    fn feed(
        &mut self,
        receiver: &ProgressReceiver,
        piece: &[u8],
        resolve: impl Fn() -> Option<SourceName>,
        fallback: impl Fn() -> SourceName,
    ) {
        if self.name.is_none() {
            self.name = resolve().or_else(|| (self.since.elapsed() >= NAME_TIMEOUT).then(fallback));
            // The next report has the same totals, but not the time of the first one.
            if let (Some(name), Some(report)) = (&self.name, self.pending.take()) {
                receiver.report_delayed(self.source, name, report, self.since);
            }
        }
        let (source, name, pending) = (self.source, &self.name, &mut self.pending);
        self.parser.feed(piece, |report| match name {
            Some(name) => receiver.report_as(source, name, report),
            None => *pending = Some(report),
        });
    }

    /// Adds the last report of a source that is still without a name.
    fn end(
        self,
        receiver: &ProgressReceiver,
        resolve: impl Fn() -> Option<SourceName>,
        fallback: impl Fn() -> SourceName,
    ) {
        if let Some(report) = self.pending {
            receiver.report_delayed(self.source, &resolve().unwrap_or_else(fallback), report, self.since);
        }
    }
}

/// A named pipe with the reports of one stream, `STREAM=PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipe {
    pub stream: String,
    /// Created if missing.
    pub path: PathBuf,
}

impl std::str::FromStr for Pipe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((stream, path)) if !stream.is_empty() && !path.is_empty() => {
                Ok(Self { stream: stream.to_owned(), path: path.into() })
            }
            _ => Err("write STREAM=PATH, for example cam1=/run/wattcast/cam1".to_owned()),
        }
    }
}

/// Reads a named pipe forever. Both ends are opened, so that neither ffmpeg nor we wait for the
/// other side.
///
/// # Errors
/// The pipe cannot be created or opened.
pub fn named_pipe(pipe: &Pipe, receiver: ProgressReceiver) -> io::Result<()> {
    if !pipe.path.exists() {
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe.path, 0o620.into())?;
        // Independent of the umask, the group may write reports.
        std::fs::set_permissions(&pipe.path, std::fs::Permissions::from_mode(0o620))?;
    }
    let mut reader = pipe::OpenOptions::new().read_write(true).open_receiver(&pipe.path)?;
    let stream = pipe.stream.clone();
    tokio::spawn(async move {
        let (mut source, mut parser, mut ended) = (receiver.new_source(), Parser::default(), false);
        let mut buffer = vec![0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut buffer).await {
            parser.feed(&buffer[..length], |report| {
                // The end of a job and the first report of the next one may come in one piece.
                if std::mem::replace(&mut ended, report.end) {
                    source = receiver.new_source();
                }
                receiver.report(source, &stream, report);
            });
        }
        info!("named pipe of stream {stream} closed");
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_compared_completely() {
        assert!(
            constant_time_eq(b"secret", b"secret")
                && !constant_time_eq(b"secret", b"secreT")
                && !constant_time_eq(b"secret", b"")
                && !constant_time_eq(b"s", b"secret")
        );
    }

    #[test]
    fn a_pipe_has_a_stream_and_a_path() {
        assert_eq!("a=/x=y".parse(), Ok(Pipe { stream: "a".into(), path: "/x=y".into() }));
        assert!("a".parse::<Pipe>().is_err() && "=x".parse::<Pipe>().is_err() && "a=".parse::<Pipe>().is_err());
    }
    fn senders(now: Instant) -> Senders {
        let table = Arc::new(Mutex::new(StreamTable::new(8, Duration::from_secs(300))));
        let names = StreamNames::default();
        let jobs = r#"{"probe_started": 1.5, "jobs": [{"job": 1, "streams": ["cam"], "udp_ports": [4000]}]}"#;
        names.update(serde_json::from_str(jobs).unwrap());
        Senders::new(ProgressReceiver::new(table, names, None), now)
    }

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn datagram(frames: u64) -> Vec<u8> {
        format!("frame={frames}\nprogress=continue\n").into_bytes()
    }

    #[test]
    fn unknown_senders_do_not_starve_a_named_stream() {
        let start = Instant::now();
        let mut senders = senders(start);
        for second in 0..20u64 {
            for number in 0..3000u64 {
                let now = start + Duration::from_millis(second * 1000 + number / 3);
                senders.receive(address(10_000 + (number % 1100) as u16), &datagram(second), now);
                if number % 1500 == 0 {
                    senders.receive(address(4000), &datagram(second * 50 + number / 60), now);
                }
            }
        }
        let frames = senders.receiver.table().streams().find(|(name, _)| *name == "cam").map(|(_, cam)| cam.frames);
        assert_eq!(frames, Some(19 * 50 + 25));
        assert!(senders.senders.len() <= MAX_UNNAMED_SENDERS + 1);
        let [(_, no_place), (_, too_many)] = senders.receiver.dropped_datagrams();
        assert!(no_place > 0 && too_many == 0, "{no_place} {too_many}");
    }

    #[test]
    fn unknown_senders_with_its_port_do_not_keep_out_a_named_stream() {
        let start = Instant::now();
        let mut senders = senders(start);
        let other = |host: u8| -> SocketAddr { ([10, 0, 0, host], 5000).into() };
        for now in [start, start + NAME_TIMEOUT] {
            for host in 1..=4 {
                senders.receive(other(host), &datagram(1), now);
            }
        }
        let jobs = r#"{"probe_started": 1.5, "jobs": [{"job": 2, "streams": ["late"], "udp_ports": [5000]}]}"#;
        senders.receiver.names().update(serde_json::from_str(jobs).unwrap());
        senders.receive(address(5000), &datagram(7), start + NAME_TIMEOUT);
        let table = senders.receiver.table();
        assert_eq!(table.streams().find(|(name, _)| *name == "late").map(|(_, late)| late.frames), Some(7));
    }

    #[test]
    fn one_sender_cannot_send_without_limit() {
        let start = Instant::now();
        let mut senders = senders(start);
        for frames in 0..2000 {
            senders.receive(address(4000), &datagram(frames), start);
        }
        assert_eq!(senders.receiver.dropped_datagrams(), [("senders", 0), ("rate", 2000 - 512)]);
        senders.receive(address(4000), &datagram(5000), start + Duration::from_secs(1));
        let table = senders.receiver.table();
        assert_eq!(table.streams().map(|(_, cam)| cam.frames).collect::<Vec<_>>(), [5000]);
    }
}
