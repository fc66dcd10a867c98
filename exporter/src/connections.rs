//! How many connections are held, and for how long: what a peer that only opens them can take.
//!
//! A program has file descriptors to keep, and a scraper needs one of them. So there is a number of places; when all are taken, whoever matters least
//! ([`crate::peers`]) makes room for whoever comes. And one that sends no whole request header in time, or takes no answer, is closed in any case.

use std::{
    io,
    os::fd::AsRawFd as _,
    pin::Pin,
    sync::Arc,
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
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tracing::{debug, info, warn};

use crate::{
    peers::{Peer, Peers, Phase, Place},
    refused::{self, Why},
    web::Web,
};

/// Prometheus, a dashboard and a few people need ten; the usual limit of open files is 1024.
pub(crate) const MOST: usize = 128;
/// Longest from the start of a connection, or the end of a request on it, to the end of the next header. Longer than
/// the usual scrape intervals, so that a scraper's connection lives from scrape to scrape.
const PATIENCE: Duration = Duration::from_secs(65);
/// Largest header of a request, with what has come of its body; hyper's own limit is 400 kB, which many connections hold at once.
const MAX_HEADER: usize = 32 << 10;
/// Longest for shaking hands.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After a refused `accept` (no descriptors left, mostly): time for connections to end.
const BREATH: Duration = Duration::from_millis(100);

/// The limits of one listener.
pub(crate) struct Connections {
    pub(crate) most: usize,
    pub(crate) patience: Duration,
    pub(crate) web: Arc<Web>,
}

impl Connections {
    /// At most so many at once, behind these doors.
    pub(crate) fn most(most: usize, web: Arc<Web>) -> Self {
        Self { most, patience: PATIENCE, web }
    }

    /// Serves until `stopped`, then lets requests in flight end.
    pub(crate) async fn serve(self, listener: TcpListener, router: Router, stopped: impl Future<Output = ()>) {
        let peers = Peers::new(self.most);
        let graceful = GracefulShutdown::new();
        let mut refusing = false;
        let (ending, ended) = watch::channel(false);
        tokio::pin!(stopped);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stopped => break,
            };
            let (stream, from) = match accepted {
                Ok((stream, address)) => (stream, address.ip()),
                // The peer has gone again before we came.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    if !std::mem::replace(&mut refusing, true) {
                        warn!("cannot accept connections: {error}");
                    }
                    // Somebody who holds a descriptor for nothing gives it back.
                    refused::count(Why::NoRoom, u64::from(peers.tell_one(Instant::now())));
                    tokio::time::sleep(BREATH).await;
                    continue;
                }
            };
            if std::mem::take(&mut refusing) {
                info!("connections are accepted again");
            }
            // Without either a peer is served all the same.
            let _ = stream.set_nodelay(true);
            if let Err(error) = abandon_after(&stream, self.patience) {
                debug!("cannot limit how long a peer may take an answer: {error}");
            }
            let told = tokio::select! {
                told = peers.room() => told,
                () = &mut stopped => break,
            };
            refused::count(Why::NoRoom, told);
            let place = peers.enter(from);
            tokio::spawn(connection(
                stream,
                place,
                self.web.clone(),
                router.clone(),
                self.patience,
                (graceful.watcher(), ended.clone()),
            ));
        }
        // Who has not even shaken hands is waited for by nobody.
        let _ = ending.send(true);
        graceful.shutdown().await;
    }
}

/// Serves one connection, until it ends, or its place is needed. How a peer ends its connection is its own affair.
async fn connection(
    stream: TcpStream,
    place: Place,
    web: Arc<Web>,
    router: Router,
    patience: Duration,
    (watcher, mut ended): (Watcher, watch::Receiver<bool>),
) {
    let peer = place.peer.clone();
    let served = async {
        match web.acceptor() {
            None => answer(stream, peer.clone(), router, patience, watcher).await,
            Some(acceptor) => {
                let shaken = tokio::select! {
                    shaken = tokio::time::timeout(HANDSHAKE.min(patience), acceptor.accept(stream)) => shaken,
                    // An error means that nobody serves any more.
                    _ = ended.wait_for(|ended| *ended) => return,
                };
                match shaken {
                    Ok(Ok(stream)) => answer(stream, peer.clone(), router, patience, watcher).await,
                    Ok(Err(error)) => {
                        refused::count(Why::Handshake, 1);
                        debug!("a TLS handshake failed: {error}");
                    }
                    Err(_) => refused::count(Why::Handshake, 1),
                }
            }
        }
    };
    tokio::select! {
        () = served => {}
        () = place.peer.told_to_leave() => {}
    }
}

async fn answer<S>(stream: S, peer: Arc<Peer>, router: Router, patience: Duration, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = Watched { inner: TowerToHyperService::new(router), peer: peer.clone() };
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(MAX_HEADER);
    let io = TokioIo::new(Flushed { inner: stream, peer });
    let _ = watcher.watch(http.serve_connection(io, service)).await;
}

/// Sees requests come and answers leave.
struct Watched {
    inner: TowerToHyperService<Router>,
    peer: Arc<Peer>,
}

impl Service<Request<Incoming>> for Watched {
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.peer.set(Phase::Working);
        request.extensions_mut().insert(self.peer.clone());
        let (answer, peer) = (self.inner.call(request), self.peer.clone());
        Box::pin(async move {
            let answer = answer.await;
            peer.set(Phase::Answering);
            answer
        })
    }
}

/// Sees when everything was written: hyper flushes what is below when its own buffer is empty.
struct Flushed<S> {
    inner: S,
    peer: Arc<Peer>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Flushed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if read.is_ready() {
            self.peer.heard();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Flushed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        if flushed.is_ready() {
            self.peer.flushed();
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

/// Lets the kernel end a connection whose peer takes nothing of what is there for it: sent and not acknowledged, or not even
/// sent because its window is shut (tcp(7), TCP_USER_TIMEOUT).
fn abandon_after(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    let milliseconds = libc::c_uint::try_from(patience.as_millis()).unwrap_or(libc::c_uint::MAX);
    let size = libc::socklen_t::try_from(size_of_val(&milliseconds)).unwrap_or(0);
    // SAFETY: the descriptor is the stream's own, and the value outlives the call, which copies as many bytes as it is told.
    let outcome = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            (&raw const milliseconds).cast(),
            size,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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

    fn ask(stream: &mut TcpStream) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Serves on a port of its own, until it is dropped.
    struct Server {
        address: std::net::SocketAddr,
        stop: Option<tokio::sync::oneshot::Sender<()>>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Server {
        fn start(most: usize, patience: Duration) -> Self {
            let (say, said) = mpsc::channel();
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                    say.send(listener.local_addr().unwrap()).unwrap();
                    // More than any socket's buffers hold.
                    let large = || async { "x".repeat(32 << 20) };
                    let router = Router::new().route("/", get(|| async { "here" })).route("/large", get(large)).route(
                        "/post",
                        axum::routing::post(|body: axum::body::Bytes| async move { body.len().to_string() }),
                    );
                    let limits = Connections { most, patience, web: Web::open(None).unwrap() };
                    limits.serve(listener, router, async { drop(stopped.await) }).await;
                });
            });
            Self { address: said.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
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

    /// Longer than any test takes: what a test shows then is not the doing of this limit.
    const NEVER: Duration = Duration::from_secs(3600);

    #[test]
    fn connections_that_ask_nothing_do_not_keep_a_scraper_out() {
        let server = Server::start(4, NEVER);
        let mut silent: Vec<_> = (0..10).map(|_| server.connect()).collect();
        // One that trickles is not better than one that is silent.
        silent[0].write_all(b"GET / HT").unwrap();
        assert!(ask(&mut server.connect()).ends_with("here"));
        let ended = silent[0].read(&mut [0]);
        assert!(matches!(ended, Ok(0)) || ended.is_err(), "the first had to leave");
    }

    #[test]
    fn a_connection_that_asked_once_and_rests_is_closed_in_time() {
        // Long enough to ask in, whatever else the machine does.
        let server = Server::start(4, Duration::from_secs(2));
        let mut stream = server.connect();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("here"), "answered, and then closed: {answer}");
    }

    #[test]
    fn peers_that_take_no_answer_do_not_keep_a_scraper_out() {
        let server = Server::start(4, NEVER);
        let greedy: Vec<_> = (0..8)
            .map(|_| {
                let mut stream = server.connect();
                stream.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                stream
            })
            .collect();
        assert!(ask(&mut server.connect()).ends_with("here"));
        drop(greedy);
    }

    #[test]
    fn posts_that_stop_do_not_keep_a_scraper_out() {
        let server = Server::start(4, NEVER);
        let posts: Vec<_> = (0..8)
            .map(|_| {
                let mut stream = server.connect();
                stream.write_all(b"POST /post HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
                stream
            })
            .collect();
        assert!(ask(&mut server.connect()).ends_with("here"));
        drop(posts);
    }

    #[test]
    fn a_header_has_an_end() {
        let server = Server::start(4, NEVER);
        let with = |bytes: usize| {
            let mut stream = server.connect();
            let head = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: {}\r\n\r\n", "x".repeat(bytes));
            // It may be told to go before it has said all.
            let _ = stream.write_all(head.as_bytes());
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            answer
        };
        assert!(with(MAX_HEADER / 2).ends_with("here"));
        assert!(!with(2 * MAX_HEADER).contains("200 OK"));
    }

    #[test]
    fn who_asks_again_and_again_does_not_keep_a_scraper_out() {
        let server = Server::start(4, NEVER);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let mut stream = server.connect();
                        // Until it has to leave.
                        while stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").is_ok()
                            && stream.read(&mut [0; 512]).is_ok_and(|read| read > 0)
                            && !stop.load(std::sync::atomic::Ordering::Relaxed)
                        {}
                    }
                });
            }
            let answered = (0..50).filter(|_| ask(&mut server.connect()).ends_with("here")).count();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(answered, 50);
        });
    }

    #[test]
    fn ten_thousand_connections_that_ask_nothing_do_not_keep_a_scraper_out() {
        if crate::program::raise_open_files() < 12_000 {
            testkit::skip!("fewer than 12000 open files are allowed");
        }
        let server = Server::start(MOST, NEVER);
        let mut silent = Vec::new();
        for _ in 0..100 {
            // Fewer than the shortest queue of a kernel (net.core.somaxconn): a full one makes the next wait for a second.
            silent.extend((0..100).map(|_| server.connect()));
            assert!(ask(&mut server.connect()).ends_with("here"));
        }
    }
}
