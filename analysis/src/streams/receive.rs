//! Takes ffmpeg's reports: datagrams, HTTP posts, a Unix socket, named pipes. Every source is read as fast as it sends, whatever the rest of
//! the program does, so that no encoder ever waits for us; what cannot be kept is counted and thrown away.

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
use exporter::progress::{Parser, Report};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use tokio::{
    io::AsyncReadExt as _,
    net::{UdpSocket, UnixListener, unix::pipe},
};
use tracing::{info, warn};

use super::{
    book::{Book, SourceId},
    names::Known,
};

/// Largest datagram that is looked at.
const MAX_DATAGRAM: usize = 64 << 10;
/// Senders of datagrams that are told apart at once.
const MAX_PEERS: usize = 1024;
/// For how long a sender without a name is waited for to get one from the probe.
const NAMELESS: Duration = Duration::from_secs(6);
/// A post that brings nothing for so long is over; ffmpeg reports twice a second unless `-stats_period` says otherwise.
const SILENT: Duration = Duration::from_secs(600);
/// Connections of the Unix socket at once.
const MAX_CONNECTIONS: usize = 256;

/// What all ways in share.
#[derive(Clone)]
pub struct Inlet {
    book: Arc<Mutex<Book>>,
    known: Known,
    token: Option<Arc<str>>,
    next: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
}

impl Inlet {
    /// Into this book; posts must carry the token where there is one.
    #[must_use]
    pub fn new(book: Arc<Mutex<Book>>, known: Known, token: Option<&str>) -> Self {
        Self { book, known, token: token.map(Into::into), next: Arc::default(), refused: Arc::default() }
    }

    /// The streams.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the probe told.
    #[must_use]
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// Posts that had the wrong token, or none.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn source(&self) -> SourceId {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn report(&self, source: SourceId, name: &str, report: Report) {
        self.book().report(source, name, report, Instant::now());
    }

    /// The first report under a name that came later than the source, by so much.
    fn report_late(&self, source: SourceId, name: &str, report: Report, since: Instant) {
        let mut book = self.book();
        book.report(source, name, report, Instant::now());
        book.heard_before(source, since.elapsed());
    }
}

/// `POST /progress/STREAM`, as `-progress http://HOST:9506/progress/STREAM` sends it: one request for the whole job.
pub fn routes(inlet: Inlet) -> Router {
    Router::new().route("/progress/{stream}", post(progress).put(progress)).with_state(inlet)
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
}

async fn progress(
    State(inlet): State<Inlet>,
    UrlPath(stream): UrlPath<String>,
    Query(given): Query<Token>,
    headers: HeaderMap,
    mut body: Body,
) -> Response {
    if let Some(token) = &inlet.token {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let given = given.token.as_deref().or(bearer).unwrap_or_default();
        if !same(token.as_bytes(), given.as_bytes()) {
            inlet.refused.fetch_add(1, Ordering::Relaxed);
            return (StatusCode::UNAUTHORIZED, "the token is missing or wrong: add ?token=… to the address\n")
                .into_response();
        }
    }
    let (source, mut parser, mut taken) = (inlet.source(), Parser::default(), 0u64);
    // An encoder that was killed ends its request in the middle; one whose host vanished says nothing more.
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENT, body.frame()).await {
        if let Ok(piece) = frame.into_data() {
            parser.feed(&piece, |report| {
                taken += 1;
                inlet.report(source, &stream, report);
            });
        }
    }
    if taken == 0 {
        return (StatusCode::BAD_REQUEST, "no report of ffmpeg's -progress in this request\n").into_response();
    }
    StatusCode::NO_CONTENT.into_response()
}

/// Takes as long for a wrong token as for the right one.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// One sender of datagrams.
struct Peer {
    source: SourceId,
    parser: Parser,
    name: Option<String>,
    since: Instant,
    at: Instant,
    /// The newest report that came before the name: its figures are totals, so nothing is lost with those before it.
    waiting: Option<Report>,
}

/// Takes datagrams until the socket fails. With a token none are taken: a datagram carries no name and no token.
///
/// # Errors
/// When the socket fails for good.
pub async fn datagrams(socket: UdpSocket, inlet: Inlet) -> io::Result<()> {
    let mut peers: HashMap<SocketAddr, Peer> = HashMap::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    let mut tidied = Instant::now();
    loop {
        let (length, from) = match tokio::time::timeout(Duration::from_secs(1), socket.recv_from(&mut buffer)).await {
            Ok(Ok(datagram)) => datagram,
            // What came back of something that we never sent.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                settle(&mut peers, &inlet);
                continue;
            }
        };
        let now = Instant::now();
        if !peers.contains_key(&from) && peers.len() >= MAX_PEERS {
            let oldest = peers.iter().min_by_key(|(_, peer)| peer.at).map(|(address, _)| *address);
            oldest.map(|address| peers.remove(&address));
        }
        let peer = peers.entry(from).or_insert_with(|| Peer {
            source: inlet.source(),
            parser: Parser::default(),
            name: None,
            since: now,
            at: now,
            waiting: None,
        });
        peer.at = now;
        let mut ended = false;
        let (parser, source, name, waiting) = (&mut peer.parser, peer.source, &peer.name, &mut peer.waiting);
        parser.feed(&buffer[..length], |report| {
            ended |= report.end;
            match name {
                Some(name) => inlet.report(source, name, report),
                None => *waiting = Some(report),
            }
        });
        // The port may be another job's next.
        if ended && peer.name.is_some() {
            peers.remove(&from);
        }
        if tidied.elapsed() >= Duration::from_secs(1) || ended {
            tidied = now;
            settle(&mut peers, &inlet);
        }
    }
}

/// Gives names to senders that have none: the probe's, or after a time their address.
fn settle(peers: &mut HashMap<SocketAddr, Peer>, inlet: &Inlet) {
    peers.retain(|address, peer| {
        if peer.name.is_none() {
            let waited = peer.since.elapsed() >= NAMELESS;
            let fallback = || waited.then(|| format!("udp-{}-{}", address.ip().to_canonical(), address.port()));
            peer.name = inlet.known.by_port(address.port()).or_else(fallback);
            if let Some(name) = &peer.name
                && let Some(report) = peer.waiting.take()
            {
                inlet.report_late(peer.source, name, report, peer.since);
                if report.end {
                    return false;
                }
            }
        }
        peer.at.elapsed() < Duration::from_secs(60)
    });
}

/// Makes a Unix socket at `path`, for `-progress unix:PATH`, and takes connections of whoever may write to it. A stream's name is that of the
/// sender's process.
///
/// # Errors
/// When there is no such place, or something else stands there.
pub fn unix(path: &Path, inlet: Inlet) -> io::Result<()> {
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        // Left by a life before; one that is served is not ours to take.
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another program serves it"));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // To connect is to write: the group may, and whoever the directory lets in is decided by the directory.
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
            let inlet = inlet.clone();
            tokio::spawn(async move {
                let _slot = slot;
                let pid = stream.peer_cred().ok().and_then(|peer| u32::try_from(peer.pid()?).ok());
                let name = |inlet: &Inlet| pid.and_then(|pid| inlet.known.by_process(pid));
                let fallback = || pid.map_or_else(|| "unix".to_owned(), |pid| format!("unix-{pid}"));
                let mut source = Unnamed::new(&inlet);
                let mut buffer = vec![0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    source.feed(&inlet, &buffer[..length], || name(&inlet), fallback);
                }
                source.end(&inlet, || name(&inlet), fallback);
            });
        }
    });
    Ok(())
}

/// A source whose name comes later than its first reports.
struct Unnamed {
    source: SourceId,
    parser: Parser,
    name: Option<String>,
    since: Instant,
    waiting: Option<Report>,
}

impl Unnamed {
    fn new(inlet: &Inlet) -> Self {
        Self { source: inlet.source(), parser: Parser::default(), name: None, since: Instant::now(), waiting: None }
    }

    fn feed(&mut self, inlet: &Inlet, piece: &[u8], ask: impl Fn() -> Option<String>, fallback: impl Fn() -> String) {
        if self.name.is_none() {
            self.name = ask().or_else(|| (self.since.elapsed() >= NAMELESS).then(fallback));
            // Its figures are totals: the next report has them too, but not when it was heard first.
            if let (Some(name), Some(report)) = (&self.name, self.waiting.take()) {
                inlet.report_late(self.source, name, report, self.since);
            }
        }
        let (source, name, waiting) = (self.source, &self.name, &mut self.waiting);
        self.parser.feed(piece, |report| match name {
            Some(name) => inlet.report(source, name, report),
            None => *waiting = Some(report),
        });
    }

    /// What never got a name goes by another.
    fn end(self, inlet: &Inlet, ask: impl Fn() -> Option<String>, fallback: impl Fn() -> String) {
        if let Some(report) = self.waiting {
            inlet.report_late(self.source, &ask().unwrap_or_else(fallback), report, self.since);
        }
    }
}

/// A named pipe for one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipe {
    /// The stream.
    pub stream: String,
    /// The pipe; it is made where nothing stands.
    pub path: PathBuf,
}

impl std::str::FromStr for Pipe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((stream, path)) if !stream.is_empty() && !path.is_empty() => {
                Ok(Self { stream: stream.to_owned(), path: path.into() })
            }
            _ => Err("give STREAM=PATH, for example cam1=/run/wattcast/cam1".to_owned()),
        }
    }
}

/// Reads a named pipe for ever. Both ends are opened, so that ffmpeg never waits for a reader, nor we for a writer.
///
/// # Errors
/// When the pipe cannot be made or opened.
pub fn fifo(pipe: &Pipe, inlet: Inlet) -> io::Result<()> {
    if !pipe.path.exists() {
        let path = std::ffi::CString::new(pipe.path.as_os_str().as_encoded_bytes()).map_err(io::Error::other)?;
        // SAFETY: the path ends in a zero and outlives the call.
        if unsafe { libc::mkfifo(path.as_ptr(), 0o620) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // Whatever the mask of this process: the group may report.
        std::fs::set_permissions(&pipe.path, std::fs::Permissions::from_mode(0o620))?;
    }
    let mut reader = pipe::OpenOptions::new().read_write(true).open_receiver(&pipe.path)?;
    let stream = pipe.stream.clone();
    tokio::spawn(async move {
        let (mut source, mut parser) = (inlet.source(), Parser::default());
        let mut buffer = vec![0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut buffer).await {
            let mut ended = false;
            parser.feed(&buffer[..length], |report| {
                inlet.report(source, &stream, report);
                ended |= report.end;
            });
            if ended {
                source = inlet.source();
            }
        }
        info!("the pipe of stream {stream} ended");
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_compared_whole() {
        assert!(
            same(b"secret", b"secret")
                && !same(b"secret", b"secreT")
                && !same(b"secret", b"")
                && !same(b"s", b"secret")
        );
    }

    #[test]
    fn a_pipe_is_a_stream_and_a_path() {
        assert_eq!("a=/x=y".parse(), Ok(Pipe { stream: "a".into(), path: "/x=y".into() }));
        assert!("a".parse::<Pipe>().is_err() && "=x".parse::<Pipe>().is_err() && "a=".parse::<Pipe>().is_err());
    }
}
