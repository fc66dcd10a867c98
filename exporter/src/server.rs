//! The HTTP side: `/metrics`, `/health`, `/ready`, `/`, and whatever routes a program adds.
//!
//! A handler hands out what was rendered before it was asked; it reads nothing, waits for nothing and changes nothing.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{Html, IntoResponse},
    routing::get,
};
use bytes::Bytes;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tracing::{info, warn};

use crate::{
    connections::{self, Connections},
    landing::Landing,
    listen::Listen,
    page,
};

/// What a program shows to the outside.
pub trait Pages: Send + Sync + 'static {
    /// The rendered metrics; `None` before the first.
    fn metrics(&self) -> Option<Bytes>;
    /// Empty when alive. A line here means the program itself has stopped working and a restart is due.
    fn unhealthy(&self) -> Option<String>;
    /// What is missing for the answers to be whole: a wanted source, fresh data. Empty when ready.
    fn unready(&self) -> Vec<String>;
    /// The page for people.
    fn landing(&self) -> Landing;
}

/// The routes that every program serves. Anything else is 404.
pub fn routes(pages: Arc<dyn Pages>) -> Router {
    Router::new()
        .route("/", get(landing))
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .with_state(pages)
}

type Shown = State<Arc<dyn Pages>>;

async fn landing(State(pages): Shown) -> Html<String> {
    Html(pages.landing().html())
}

async fn metrics(State(pages): Shown) -> impl IntoResponse {
    match pages.metrics() {
        Some(body) => (StatusCode::OK, [(CONTENT_TYPE, page::CONTENT_TYPE)], body),
        None => (
            StatusCode::SERVICE_UNAVAILABLE,
            [(CONTENT_TYPE, "text/plain; charset=utf-8")],
            Bytes::from_static(b"nothing measured yet; try again in a second\n"),
        ),
    }
}

async fn health(State(pages): Shown) -> (StatusCode, String) {
    match pages.unhealthy() {
        None => (StatusCode::OK, "OK".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn ready(State(pages): Shown) -> (StatusCode, String) {
    let missing = pages.unready();
    if missing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, missing.iter().map(|line| format!("{line}\n")).collect())
    }
}

/// A listen address that cannot be had, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}. {}", hint(source))]
pub struct BindError {
    address: Listen,
    source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "Another program has the port; stop it, or choose one with --web.listen-address",
        io::ErrorKind::PermissionDenied => "Ports below 1024 need root; choose another with --web.listen-address",
        _ => "Choose an address of this machine with --web.listen-address",
    }
}

/// Takes every address, or none.
///
/// # Errors
/// The first address that cannot be had.
pub async fn bind(addresses: &[Listen]) -> Result<Vec<TcpListener>, BindError> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for address in addresses {
        let wildcard = address.0.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let listener = match TcpListener::bind(address.0).await {
            // `:9500` on a kernel without IPv6.
            Err(error) if wildcard && error.kind() != io::ErrorKind::AddrInUse => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.0.port())).await
            }
            taken => taken,
        };
        listeners.push(listener.map_err(|source| BindError { address: *address, source })?);
    }
    Ok(listeners)
}

/// Where the listeners really listen; a port of 0 was chosen by the kernel.
#[must_use]
pub fn addresses(listeners: &[TcpListener]) -> Vec<SocketAddr> {
    listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
}

/// Requests in flight when the program is told to stop have this long to end.
const GRACE: Duration = Duration::from_secs(3);

/// Why serving ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listener or a signal handler failed for good.
    #[error("serving ended: {0}")]
    Io(#[from] io::Error),
    /// The thread whose work is shown went away.
    #[error("the {0} ended by itself; this is a bug, please report the log above")]
    WorkerEnded(&'static str),
}

/// A port: where it listens, what it answers, and how many connections it holds at once.
pub struct Port {
    /// Its listeners.
    pub listeners: Vec<TcpListener>,
    /// Its routes.
    pub router: Router,
    /// Connections of each listener; more wait.
    pub most: usize,
}

impl Port {
    /// With room for scrapers, a dashboard and a few people.
    #[must_use]
    pub fn new(listeners: Vec<TcpListener>, router: Router) -> Self {
        Self { listeners, router, most: connections::MOST }
    }
}

/// Serves until SIGINT or SIGTERM, or until the worker whose pages are shown ends: `worker` names it, `ended` is done
/// then. Requests in flight are given a moment to end.
///
/// # Errors
/// When a listener fails, or the worker ended first.
pub async fn serve(ports: Vec<Port>, worker: &'static str, ended: impl Future) -> Result<(), ServeError> {
    for address in ports.iter().flat_map(|port| addresses(&port.listeners)) {
        info!("listening on http://{address}/");
    }
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut servers = JoinSet::new();
    let each = ports.into_iter().flat_map(|Port { listeners, router, most }| {
        listeners.into_iter().map(move |listener| (listener, router.clone(), most))
    });
    for (listener, router, most) in each {
        let (router, mut stopped) = (router.clone(), stopped.clone());
        servers.spawn(async move {
            let stopped = async move {
                // An error means that the sender is gone, which is as good a reason to stop.
                let _ = stopped.wait_for(|stopped| *stopped).await;
            };
            Connections::most(most).serve(listener, router, stopped).await;
        });
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        _ = ended => Err(ServeError::WorkerEnded(worker)),
        // None ends before it is told to, unless it panics.
        Some(done) = servers.join_next() => done.map_err(|error| ServeError::Io(io::Error::other(error))),
    };
    info!("stopping");
    let _ = stop.send(true);
    if tokio::time::timeout(GRACE, servers.join_all()).await.is_err() {
        warn!("a request did not end in {} s; leaving it", GRACE.as_secs());
    }
    outcome
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    use super::*;

    struct Fixed {
        sick: bool,
    }

    impl Pages for Fixed {
        fn metrics(&self) -> Option<Bytes> {
            (!self.sick).then(|| Bytes::from_static(b"up 1\n"))
        }

        fn unhealthy(&self) -> Option<String> {
            self.sick.then(|| "the sampler stopped".to_owned())
        }

        fn unready(&self) -> Vec<String> {
            if self.sick { vec!["no data".to_owned(), "no source".to_owned()] } else { vec![] }
        }

        fn landing(&self) -> Landing {
            Landing { name: "test".into(), ..Landing::default() }
        }
    }

    fn ask(sick: bool, path: &str) -> (StatusCode, String) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = routes(Arc::new(Fixed { sick })).oneshot(request).await.unwrap();
            let status = response.status();
            let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
            (status, String::from_utf8(body.to_vec()).unwrap())
        })
    }

    #[test]
    fn a_well_program_answers() {
        assert_eq!(ask(false, "/metrics"), (StatusCode::OK, "up 1\n".into()));
        assert_eq!(ask(false, "/health"), (StatusCode::OK, "OK".into()));
        assert_eq!(ask(false, "/ready").0, StatusCode::OK);
        assert!(ask(false, "/").1.contains("<h1>test</h1>"));
        assert_eq!(ask(false, "/nothing").0, StatusCode::NOT_FOUND);
    }

    #[test]
    fn a_sick_one_says_why() {
        assert_eq!(ask(true, "/metrics").0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ask(true, "/health"), (StatusCode::SERVICE_UNAVAILABLE, "the sampler stopped\n".into()));
        assert_eq!(ask(true, "/ready"), (StatusCode::SERVICE_UNAVAILABLE, "no data\nno source\n".into()));
    }
}
