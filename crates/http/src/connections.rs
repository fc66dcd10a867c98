//! Limits of connections, so that peers cannot exhaust the file descriptors that a scraper and the
//! program need.
//!
//! The number of connections is limited. At the limit, a new connection evicts the least important
//! one ([`crate::peers`]). A peer that does not complete its request header in time, or does not
//! read its response, is disconnected in any case. Where the process has no descriptor left all the
//! same, a connection of any listener is closed for the new one.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{Router, body::Body, response::Response};
use hyper::{Request, body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tracing::{debug, info, warn};

use crate::{
    peers::{ConnectionSlot, Peer, Peers, Phase},
    rejections::{self, Reason},
    web::WebConfig,
};

/// Prometheus, a dashboard and a few users need ten connections; the usual limit of open files is
/// 1024.
pub(crate) const DEFAULT_MAX_CONNECTIONS: usize = 128;
/// Timeout from the start of a connection, or the end of a request, to the end of the next request
/// header. It exceeds usual scrape intervals, so that a scraper reuses its connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(65);
/// Maximum size of a request header with the buffered part of its body. The default of hyper, 400
/// kB, is too much per connection.
const MAX_HEADER_BYTES: usize = 32 << 10;
/// Timeout of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed `accept`, usually for lack of file descriptors, in which connections can
/// end.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Time without a failed `accept` after which a condition has ended. At the limit of descriptors
/// failures and successes alternate.
const ACCEPT_QUIET: Duration = Duration::from_secs(60);

/// Why connections are not accepted. All listeners fail for the same reasons, so it is one for the
/// process.
static ACCEPT_FAILURES: Mutex<AcceptFailures> = Mutex::new(AcceptFailures { last: None, logged: Vec::new() });

/// The condition that connections are not accepted, logged once from its start to its end.
struct AcceptFailures {
    /// The last failure of a condition that has not ended.
    last: Option<Instant>,
    /// The errors of this condition.
    logged: Vec<Option<i32>>,
}

impl AcceptFailures {
    /// Records a failure. Returns whether it is to be logged: the first with this error.
    fn failed(&mut self, error: &io::Error, now: Instant) -> bool {
        self.accepted(now);
        self.last = Some(now);
        let code = error.raw_os_error();
        let is_new = !self.logged.contains(&code);
        if is_new {
            self.logged.push(code);
        }
        is_new
    }

    /// Records an accepted connection. Returns whether a condition has ended before.
    fn accepted(&mut self, now: Instant) -> bool {
        let ended = self.last.is_some_and(|last| now.saturating_duration_since(last) >= ACCEPT_QUIET);
        if ended {
            *self = Self { last: None, logged: Vec::new() };
        }
        ended
    }
}

/// Serves the connections of one listener, within limits.
pub(crate) struct ConnectionServer {
    max_connections: usize,
    idle_timeout: Duration,
    web: Arc<WebConfig>,
}

impl ConnectionServer {
    pub(crate) fn new(max_connections: usize, web: Arc<WebConfig>) -> Self {
        Self { max_connections, idle_timeout: IDLE_TIMEOUT, web }
    }

    /// Serves until `stopped`, then completes requests in flight.
    pub(crate) async fn serve(self, listener: TcpListener, router: Router, stopped: impl Future<Output = ()>) {
        let peers = Peers::new(self.max_connections);
        let graceful = GracefulShutdown::new();
        let (shutdown, shutdown_started) = watch::channel(false);
        tokio::pin!(stopped);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stopped => break,
            };
            let (stream, from) = match accepted {
                Ok((stream, address)) => (stream, address.ip()),
                // The peer has closed the connection before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    if accept_failures(|failures| failures.failed(&error, Instant::now())) {
                        warn!("cannot accept connections: {error}{}", advice(&error));
                    }
                    // An idle connection is closed to free its descriptor.
                    let evicted = Peers::evict_one_of_any_listener(Instant::now());
                    rejections::count(Reason::NoRoom, u64::from(evicted));
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            };
            if accept_failures(|failures| failures.accepted(Instant::now())) {
                info!("connections are accepted again");
            }
            // Failures of both options are harmless.
            let _ = stream.set_nodelay(true);
            if let Err(error) = set_user_timeout(&stream, self.idle_timeout) {
                debug!("cannot set TCP_USER_TIMEOUT: {error}");
            }
            let evicted = tokio::select! {
                evicted = peers.wait_for_slot() => evicted,
                () = &mut stopped => break,
            };
            rejections::count(Reason::NoRoom, evicted);
            tokio::spawn(serve_connection(
                stream,
                peers.add(from),
                self.web.clone(),
                router.clone(),
                self.idle_timeout,
                (graceful.watcher(), shutdown_started.clone()),
            ));
        }
        // Shutdown does not wait for pending TLS handshakes.
        let _ = shutdown.send(true);
        graceful.shutdown().await;
    }
}

/// What can be done about a failure.
fn advice(error: &io::Error) -> &'static str {
    if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) {
        ". Idle ones are closed for new ones; raise the limit of open files (ulimit -n, LimitNOFILE)"
    } else {
        ""
    }
}

fn accept_failures(record: impl FnOnce(&mut AcceptFailures) -> bool) -> bool {
    record(&mut ACCEPT_FAILURES.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Serves one connection until it ends or is evicted. Errors of the connection are the peer's and
/// are not reported.
async fn serve_connection(
    stream: TcpStream,
    slot: ConnectionSlot,
    web: Arc<WebConfig>,
    router: Router,
    idle_timeout: Duration,
    (watcher, mut shutdown_started): (Watcher, watch::Receiver<bool>),
) {
    let peer = slot.peer.clone();
    let served = async {
        match web.acceptor() {
            None => serve_http(stream, peer.clone(), router, idle_timeout, watcher).await,
            Some(acceptor) => {
                let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT.min(idle_timeout), acceptor.accept(stream));
                let handshake = tokio::select! {
                    result = handshake => result,
                    // An error means that the server has ended.
                    _ = shutdown_started.wait_for(|started| *started) => return,
                };
                match handshake {
                    Ok(Ok(stream)) => serve_http(stream, peer.clone(), router, idle_timeout, watcher).await,
                    Ok(Err(error)) => {
                        rejections::count(Reason::Handshake, 1);
                        debug!("a TLS handshake failed: {error}");
                    }
                    Err(_) => rejections::count(Reason::Handshake, 1),
                }
            }
        }
    };
    tokio::select! {
        () = served => {}
        () = slot.peer.evicted() => {}
    }
}

async fn serve_http<S>(stream: S, peer: Arc<Peer>, router: Router, idle_timeout: Duration, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = PhaseService { inner: TowerToHyperService::new(router), peer: peer.clone() };
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(idle_timeout).max_buf_size(MAX_HEADER_BYTES);
    let io = TokioIo::new(PhaseStream { inner: stream, peer });
    let _ = watcher.watch(http.serve_connection(io, service)).await;
}

/// Records in the peer's phase when a request arrives and when its response is ready.
struct PhaseService {
    inner: TowerToHyperService<Router>,
    peer: Arc<Peer>,
}

impl Service<Request<Incoming>> for PhaseService {
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.peer.set_phase(Phase::Processing);
        request.extensions_mut().insert(self.peer.clone());
        let (response, peer) = (self.inner.call(request), self.peer.clone());
        Box::pin(async move {
            let response = response.await;
            peer.set_phase(Phase::Responding);
            response
        })
    }
}

/// Records in the peer's phase when data arrives and when the response was written: hyper flushes
/// the stream when its own buffer is empty.
struct PhaseStream<S> {
    inner: S,
    peer: Arc<Peer>,
}

impl<S: AsyncRead + Unpin> AsyncRead for PhaseStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if read.is_ready() {
            self.peer.received();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PhaseStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        if flushed.is_ready() {
            self.peer.sent();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// Sets TCP_USER_TIMEOUT (tcp(7)): the kernel ends a connection whose peer does not acknowledge
/// data, or keeps its receive window closed, for this long.
fn set_user_timeout(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    Ok(set_tcp_user_timeout(stream, milliseconds)?)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpStream,
        sync::mpsc,
    };

    use axum::routing::get;

    use super::*;

    fn fetch(stream: &mut TcpStream) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }

    /// A server on a port chosen by the kernel. It stops when it is dropped.
    struct Server {
        address: std::net::SocketAddr,
        stop: Option<tokio::sync::oneshot::Sender<()>>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Server {
        fn start(max_connections: usize, idle_timeout: Duration) -> Self {
            let (sender, receiver) = mpsc::channel();
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                    sender.send(listener.local_addr().unwrap()).unwrap();
                    // Larger than the buffers of any socket.
                    let large = || async { "x".repeat(32 << 20) };
                    let router = Router::new().route("/", get(|| async { "here" })).route("/large", get(large)).route(
                        "/post",
                        axum::routing::post(|body: axum::body::Bytes| async move { body.len().to_string() }),
                    );
                    let web = WebConfig::load(None).unwrap();
                    let server = ConnectionServer { max_connections, idle_timeout, web };
                    server.serve(listener, router, async { drop(stopped.await) }).await;
                });
            });
            Self { address: receiver.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
        }

        fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).unwrap()
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.stop.take().unwrap().send(());
            let _ = self.thread.take().unwrap().join();
        }
    }

    /// An idle timeout that no test reaches.
    const NEVER: Duration = Duration::from_secs(3600);

    #[test]
    fn alternating_failures_to_accept_are_logged_once() {
        let mut failures = AcceptFailures { last: None, logged: Vec::new() };
        let error = |code: i32| io::Error::from_raw_os_error(code);
        let (full, table_full) = (error(24), error(23));
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut now = start;
        assert!(!failures.accepted(now));
        for round in 0..1000 {
            assert_eq!(failures.failed(&full, now), round == 0, "round {round}");
            assert!(!failures.accepted(now));
            now += second;
        }
        assert!(failures.failed(&table_full, now) && !failures.failed(&table_full, now), "another error");
        assert!(failures.accepted(now + ACCEPT_QUIET) && !failures.accepted(now + ACCEPT_QUIET), "ended once");
        assert!(failures.failed(&full, now + ACCEPT_QUIET), "a new condition");
        assert!(failures.failed(&full, now + 3 * ACCEPT_QUIET), "and one after a quiet time without a connection");
    }

    #[test]
    fn silent_connections_do_not_block_a_scraper() {
        let server = Server::start(4, NEVER);
        let mut silent: Vec<_> = (0..10).map(|_| server.connect()).collect();
        // A partial request counts as silent.
        silent[0].write_all(b"GET / HT").unwrap();
        assert!(fetch(&mut server.connect()).ends_with("here"));
        let end = silent[0].read(&mut [0]);
        assert!(matches!(end, Ok(0)) || end.is_err(), "the first one is evicted");
    }

    #[test]
    fn idle_connection_is_closed_after_the_timeout() {
        // Long enough for one request on a busy machine.
        let server = Server::start(4, Duration::from_secs(2));
        let mut stream = server.connect();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(
            response.starts_with("HTTP/1.1 200") && response.ends_with("here"),
            "answered, then closed: {response}"
        );
    }

    #[test]
    fn peers_that_read_no_response_do_not_block_a_scraper() {
        let server = Server::start(4, NEVER);
        let slow: Vec<_> = (0..8)
            .map(|_| {
                let mut stream = server.connect();
                stream.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                stream
            })
            .collect();
        assert!(fetch(&mut server.connect()).ends_with("here"));
        drop(slow);
    }

    #[test]
    fn stalled_posts_do_not_block_a_scraper() {
        let server = Server::start(4, NEVER);
        let posts: Vec<_> = (0..8)
            .map(|_| {
                let mut stream = server.connect();
                stream.write_all(b"POST /post HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
                stream
            })
            .collect();
        assert!(fetch(&mut server.connect()).ends_with("here"));
        drop(posts);
    }

    #[test]
    fn oversized_header_is_rejected() {
        let server = Server::start(4, NEVER);
        let with = |bytes: usize| {
            let mut stream = server.connect();
            let head = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: {}\r\n\r\n", "x".repeat(bytes));
            // The server may close the connection before the header was sent.
            let _ = stream.write_all(head.as_bytes());
            let mut response = String::new();
            let _ = stream.read_to_string(&mut response);
            response
        };
        assert!(with(MAX_HEADER_BYTES / 2).ends_with("here"));
        assert!(!with(2 * MAX_HEADER_BYTES).contains("200 OK"));
    }

    #[test]
    fn constant_requests_do_not_block_a_scraper() {
        let server = Server::start(4, NEVER);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let mut stream = server.connect();
                        // Until the connection is evicted.
                        while stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").is_ok()
                            && stream.read(&mut [0; 512]).is_ok_and(|read| read > 0)
                            && !stop.load(std::sync::atomic::Ordering::Relaxed)
                        {}
                    }
                });
            }
            let answered = (0..50).filter(|_| fetch(&mut server.connect()).ends_with("here")).count();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(answered, 50);
        });
    }

    #[test]
    fn ten_thousand_silent_connections_do_not_block_a_scraper() {
        if cli::program::raise_open_file_limit() < 12_000 {
            testkit::skip!("fewer than 12000 open files are allowed");
        }
        let server = Server::start(DEFAULT_MAX_CONNECTIONS, NEVER);
        let mut silent = Vec::new();
        for _ in 0..100 {
            // Fewer than the shortest accept queue (net.core.somaxconn), because a full queue
            // delays the next connection.
            silent.extend((0..100).map(|_| server.connect()));
            assert!(fetch(&mut server.connect()).ends_with("here"));
        }
    }
}
