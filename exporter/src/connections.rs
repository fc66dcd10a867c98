//! How many connections are held, and for how long: what a peer that only opens them can take.
//!
//! A probe has file descriptors to keep, and a scraper needs one of them. So connections beyond a number wait in the
//! kernel's queue, and one that sends no whole request header in time is closed and makes room.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tracing::warn;

/// Prometheus, a dashboard and a few people need ten; the usual limit of open files is 1024.
const MOST: usize = 128;
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

    #[test]
    fn connections_that_ask_nothing_do_not_keep_a_scraper_out() {
        let (say, said) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                say.send(listener.local_addr().unwrap()).unwrap();
                let router = Router::new().route("/", get(|| async { "here" }));
                let limits = Connections { most: 4, patience: Duration::from_millis(300) };
                limits.serve(listener, router, async { drop(stopped.await) }).await;
            });
        });
        let address = said.recv().unwrap();
        let mut silent: Vec<_> = (0..10).map(|_| TcpStream::connect(address).unwrap()).collect();
        // One that trickles is not better than one that is silent.
        silent[0].write_all(b"GET / HT").unwrap();
        let mut scraper = TcpStream::connect(address).unwrap();
        assert!(ask(&mut scraper).ends_with("here"));
        let mut rest = Vec::new();
        assert_eq!(silent[1].read_to_end(&mut rest).unwrap(), 0, "closed");
        stop.send(()).unwrap();
        server.join().unwrap();
    }
}
