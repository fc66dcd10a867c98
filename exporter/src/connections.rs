//! How many connections are held, and for how long: what a peer that only opens them can take.
//!
//! A probe has file descriptors to keep, and a scraper needs one of them. So connections beyond a number wait in the
//! kernel's queue, and one that sends no whole request header in time, or takes no answer, is closed and makes room.

use std::{io, os::fd::AsRawFd as _, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tracing::warn;

/// Prometheus, a dashboard and a few people need ten; the usual limit of open files is 1024.
pub(crate) const MOST: usize = 128;
/// Longest from the start of a connection, or the end of a request on it, to the end of the next header. Longer than
/// the usual scrape intervals, so that a scraper's connection lives from scrape to scrape.
const PATIENCE: Duration = Duration::from_secs(65);
/// After a refused `accept` (no descriptors left, mostly): time for connections to end.
const BREATH: Duration = Duration::from_millis(100);

/// The limits of one listener.
pub(crate) struct Connections {
    most: usize,
    patience: Duration,
}

impl Default for Connections {
    fn default() -> Self {
        Self { most: MOST, patience: PATIENCE }
    }
}

impl Connections {
    /// At most so many at once.
    pub(crate) fn most(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    /// Serves until `stopped`, then lets requests in flight end.
    pub(crate) async fn serve(self, listener: TcpListener, router: Router, stopped: impl Future<Output = ()>) {
        let slots = Arc::new(Semaphore::new(self.most));
        let graceful = GracefulShutdown::new();
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(self.patience);
        tokio::pin!(stopped);
        loop {
            let slot = tokio::select! {
                // The semaphore is never closed.
                Ok(slot) = slots.clone().acquire_owned() => slot,
                () = &mut stopped => break,
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stopped => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(BREATH).await;
                    continue;
                }
            };
            if let Err(error) = abandon_after(&stream, self.patience) {
                warn!("cannot limit how long a peer may take an answer: {error}");
                continue;
            }
            let service = TowerToHyperService::new(router.clone());
            let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
            tokio::spawn(async move {
                // How a peer ends its connection is its own affair.
                let _ = connection.await;
                drop(slot);
            });
        }
        graceful.shutdown().await;
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

    /// Serves on a port of its own with room for four, until it is dropped.
    struct Server {
        address: std::net::SocketAddr,
        stop: Option<tokio::sync::oneshot::Sender<()>>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Server {
        fn start() -> Self {
            let (say, said) = mpsc::channel();
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                    say.send(listener.local_addr().unwrap()).unwrap();
                    // More than any socket's buffers hold.
                    let large = || async { "x".repeat(32 << 20) };
                    let router = Router::new().route("/", get(|| async { "here" })).route("/large", get(large));
                    let limits = Connections { most: 4, patience: Duration::from_millis(300) };
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

    #[test]
    fn connections_that_ask_nothing_do_not_keep_a_scraper_out() {
        let server = Server::start();
        let mut silent: Vec<_> = (0..10).map(|_| server.connect()).collect();
        // One that trickles is not better than one that is silent.
        silent[0].write_all(b"GET / HT").unwrap();
        assert!(ask(&mut server.connect()).ends_with("here"));
        assert_eq!(silent[1].read_to_end(&mut Vec::new()).unwrap(), 0, "closed");
    }

    #[test]
    fn a_connection_that_asked_once_and_rests_is_closed_too() {
        let server = Server::start();
        let mut stream = server.connect();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("here"), "answered, and then closed: {answer}");
    }

    #[test]
    fn peers_that_take_no_answer_do_not_keep_a_scraper_out() {
        let server = Server::start();
        let greedy: Vec<_> = (0..4)
            .map(|_| {
                let mut stream = server.connect();
                stream.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                stream
            })
            .collect();
        assert!(ask(&mut server.connect()).ends_with("here"));
        drop(greedy);
    }
}
