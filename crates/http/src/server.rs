//! The HTTP server of a program. Every port serves
//!
//! - the metrics, at `--web.telemetry-path`
//! - `/health`: 200 while the program works, else 503 with the reason
//! - `/ready`: 200 once the data is complete, else 503 with what is missing
//! - `/`: the index page, or a page of the program with the index page at another path
//!
//! and the routes that the program adds, all behind TLS, authentication and the rate limit of
//! [`crate::web`].
//!
//! A handler returns what was rendered before the request: it reads no source, does not block and
//! changes nothing. Only authentication can take time; passwords are hashed on a separate thread.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Router,
    extract::{Query, Request, State},
    http::{
        HeaderMap, HeaderName, StatusCode,
        header::{
            ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, DATE, LAST_MODIFIED,
            RETRY_AFTER, VARY, WWW_AUTHENTICATE,
        },
    },
    middleware::{Next, from_fn_with_state},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use sd_notify::NotifyState;
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tracing::{debug, info, warn};

use crate::{
    connections::{self, ConnectionServer},
    flags::ServerOptions,
    index_page::IndexPage,
    listen::ListenAddress,
    negotiate::negotiate,
    peers::{InFlight, Peer},
    rejections::{self, Reason},
    web::{AuthResult, WebConfig},
};
use cli::program;
use metrics::page::Page;

/// The content that a program serves on one port.
pub trait Pages: Send + Sync + 'static {
    /// The rendered metrics; `None` before the first tick.
    fn page(&self) -> Option<Arc<Page>>;
    /// This port's page, and pages of other ports of the same snapshot whose collectors can be
    /// selected here too.
    fn pages(&self) -> Vec<Arc<Page>> {
        self.page().into_iter().collect()
    }
    /// False while [`Self::page`] would render: it is then called on another thread, and other
    /// requests do not wait for it.
    fn is_rendered(&self) -> bool {
        true
    }
    /// Names of the collectors that `collect[]` and `exclude[]` can select.
    fn collectors(&self) -> Vec<&'static str>;
    /// The reason why the program has stopped working and needs a restart; `None` if it is healthy.
    fn unhealthy(&self) -> Option<String>;
    /// What is missing, one line each: a required source, fresh data. Empty if ready.
    fn unready(&self) -> Vec<String>;
    /// The content of the index page.
    fn index_page(&self) -> IndexPage;
    /// The path of the index page. Another one where the program has a page of its own at `/`.
    fn index_path(&self) -> &'static str {
        "/"
    }
}

/// Maximum size of a page that is sent uncompressed, in bytes.
const MAX_UNCOMPRESSED_BYTES: usize = 1024;

struct RouteState {
    pages: Arc<dyn Pages>,
    telemetry_path: String,
    /// Held while a page is rendered: one thread does it, for all requests.
    rendering: tokio::sync::Mutex<()>,
}

impl RouteState {
    async fn page(&self) -> Option<Arc<Page>> {
        if self.pages.is_rendered() {
            return self.pages.page();
        }
        let _rendering = self.rendering.lock().await;
        if self.pages.is_rendered() {
            return self.pages.page();
        }
        let pages = self.pages.clone();
        tokio::task::spawn_blocking(move || pages.page()).await.ok().flatten()
    }
}

/// The routes of every program.
fn routes(pages: Arc<dyn Pages>, telemetry_path: &str) -> Router {
    let router =
        Router::new().route("/health", get(health)).route("/ready", get(ready)).route(telemetry_path, get(metrics));
    let index_path = pages.index_path();
    let router = if telemetry_path == index_path { router } else { router.route(index_path, get(index)) };
    let (telemetry_path, rendering) = (telemetry_path.to_owned(), tokio::sync::Mutex::default());
    router.with_state(Arc::new(RouteState { pages, telemetry_path, rendering }))
}

async fn index(State(state): State<Arc<RouteState>>) -> Html<String> {
    let mut index = state.pages.index_page();
    for (path, _) in &mut index.links {
        if path == "/metrics" {
            path.clone_from(&state.telemetry_path);
        }
    }
    Html(index.html())
}

async fn metrics(
    State(state): State<Arc<RouteState>>,
    query: Result<Query<Vec<(String, String)>>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Response {
    const TEXT: (HeaderName, &str) = (CONTENT_TYPE, "text/plain; charset=utf-8");
    let error = |status: StatusCode, message: String| (status, [TEXT], message).into_response();
    let Some(page) = state.page().await else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "no measurement yet; try again in a second\n".to_owned());
    };
    let Ok(Query(query)) = query else {
        return error(StatusCode::BAD_REQUEST, "invalid query; expected ?collect[]=NAME\n".to_owned());
    };
    let page = match collector_filter(&state.pages.collectors(), &query) {
        Err(message) => return error(StatusCode::BAD_REQUEST, message),
        Ok(CollectorFilter::All) => page,
        Ok(CollectorFilter::Only(names)) => {
            let all = state.pages.pages();
            let first = all.first().cloned().unwrap_or(page);
            first.cached_selection(format!("+{}", names.join("+")), || {
                Page::select(&all, |collector| names.contains(&collector))
            })
        }
        Ok(CollectorFilter::Except(names)) => page.cached_selection(format!("-{}", names.join("-")), || {
            Page::select(std::slice::from_ref(&page), |collector| !names.contains(&collector))
        }),
    };
    let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut negotiated = negotiate(header(ACCEPT), header(ACCEPT_ENCODING));
    negotiated.format.gzip &= page.text().len() > MAX_UNCOMPRESSED_BYTES;
    let body: Bytes = page.body(negotiated.format);
    let mut response = (StatusCode::OK, [(CONTENT_TYPE, negotiated.content_type())], body).into_response();
    let out = response.headers_mut();
    out.insert(VARY, axum::http::HeaderValue::from_static("Accept, Accept-Encoding"));
    if negotiated.format.gzip {
        out.insert(CONTENT_ENCODING, axum::http::HeaderValue::from_static("gzip"));
    }
    // Together with Date this is the age of the page, without a common clock. It must not be later
    // than Date (RFC 9110, 8.8.2.1), which it would be after the clock was set back.
    let at = page.rendered_at().min(SystemTime::now());
    if let Ok(at) = axum::http::HeaderValue::from_str(&httpdate::fmt_http_date(at)) {
        out.insert(LAST_MODIFIED, at);
    }
    response
}

/// The collectors that a query selects.
#[derive(Debug, PartialEq)]
enum CollectorFilter {
    All,
    Only(Vec<&'static str>),
    Except(Vec<&'static str>),
}

/// The filter of a query, as in `node_exporter`: `collect[]` names collectors to include,
/// `exclude[]` collectors to leave out. Both together are an error, and so is an unknown name.
fn collector_filter(known: &[&'static str], query: &[(String, String)]) -> Result<CollectorFilter, String> {
    let named = |key: &str| -> Result<Vec<&'static str>, String> {
        let names = query.iter().filter(|(name, _)| name.trim_end_matches("[]") == key).map(|(_, value)| value);
        let names: Result<Vec<&'static str>, String> = names
            .map(|name| {
                let collector = known.iter().find(|known| *known == name);
                collector
                    .copied()
                    .ok_or_else(|| format!("unknown collector {name:?}; available: {}\n", known.join(", ")))
            })
            .collect();
        // Sorted and distinct, so that equal selections have the same cache key.
        let mut names = names?;
        names.sort_unstable();
        names.dedup();
        Ok(names)
    };
    match (named("collect")?, named("exclude")?) {
        (only, except) if only.is_empty() && except.is_empty() => Ok(CollectorFilter::All),
        (only, except) if except.is_empty() => Ok(CollectorFilter::Only(only)),
        (only, except) if only.is_empty() => Ok(CollectorFilter::Except(except)),
        _ => Err("collect[] and exclude[] cannot be used together; remove one of them\n".to_owned()),
    }
}

async fn health(State(state): State<Arc<RouteState>>) -> (StatusCode, String) {
    match state.pages.unhealthy() {
        None => (StatusCode::OK, "OK".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn ready(State(state): State<Arc<RouteState>>) -> (StatusCode, String) {
    let missing = state.pages.unready();
    if missing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, missing.iter().map(|line| format!("{line}\n")).collect())
    }
}

/// Access control of a port, applied to every request.
struct Guard {
    web: Arc<WebConfig>,
    telemetry_path: String,
    /// Maximum concurrent scrapes; each counts until its last byte was sent. 0 is unlimited.
    max_requests: usize,
    in_flight: Arc<AtomicUsize>,
    /// Paths whose routes authenticate requests themselves.
    self_authenticated: &'static [&'static str],
}

async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let mut response = admit(&guard, request, next).await;
    // hyper's own Date is cached until the clock has passed it: it would stay ahead for as long as
    // the clock was set back.
    if let Ok(now) = axum::http::HeaderValue::from_str(&httpdate::fmt_http_date(SystemTime::now())) {
        response.headers_mut().insert(DATE, now);
    }
    for (name, value) in guard.web.headers() {
        response.headers_mut().insert(name, value);
    }
    response
}

/// All routes of a port, behind access control.
fn guarded(
    pages: Arc<dyn Pages>,
    extra_routes: Router,
    self_authenticated: &'static [&'static str],
    options: &ServerOptions,
) -> Router {
    let state = Guard {
        web: options.web.clone(),
        telemetry_path: options.telemetry_path.clone(),
        max_requests: options.max_requests,
        in_flight: Arc::default(),
        self_authenticated,
    };
    routes(pages, &options.telemetry_path).merge(extra_routes).layer(from_fn_with_state(Arc::new(state), guard))
}

/// True if `path` is one of `roots` or below it; whole path segments are compared.
fn is_below(path: &str, roots: &[&str]) -> bool {
    roots.iter().any(|root| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// Passes an allowed request to its route, or returns a rejection.
async fn admit(guard: &Guard, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Arc<Peer>>().cloned();
    if !guard.web.within_rate_limit() {
        return reject(StatusCode::TOO_MANY_REQUESTS, Reason::TooMany, "Too many requests\n".to_owned());
    }
    let from = peer.as_ref().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.from);
    if let Err(text) = guard.web.check_host(request.headers(), from) {
        return reject(StatusCode::MISDIRECTED_REQUEST, Reason::Host, text);
    }
    if !is_below(request.uri().path(), guard.self_authenticated) {
        match guard.web.authenticate(request.headers().get(AUTHORIZATION), from).await {
            AuthResult::Allowed => {}
            AuthResult::Unauthorized => {
                return reject(StatusCode::UNAUTHORIZED, Reason::Unauthorized, "Unauthorized\n".to_owned());
            }
            AuthResult::TooMany => {
                return reject(StatusCode::TOO_MANY_REQUESTS, Reason::TooMany, "Too many requests\n".to_owned());
            }
        }
    }
    if guard.max_requests == 0 || request.uri().path() != guard.telemetry_path {
        return next.run(request).await;
    }
    let (in_flight, count) = InFlight::new(&guard.in_flight);
    // A peer that does not read its response does not block other scrapes: it is evicted.
    let evict_slow =
        || peer.as_ref().and_then(|peer| peer.peers.upgrade()).is_some_and(|peers| peers.evict_slow(Instant::now()));
    if count > guard.max_requests && !evict_slow() {
        let message = format!(
            "Limit of concurrent requests reached ({}, --web.max-requests), try again later.\n",
            guard.max_requests
        );
        return reject(StatusCode::SERVICE_UNAVAILABLE, Reason::MaxRequests, message);
    }
    let response = next.run(request).await;
    if let Some(peer) = peer {
        peer.hold_until_sent(in_flight);
    }
    response
}

/// Counts a rejection and builds its response, which closes the connection so that a rejected peer
/// does not occupy it.
fn reject(status: StatusCode, reason: Reason, text: String) -> Response {
    rejections::count(reason, 1);
    let mut response = (status, [(CONNECTION, "close"), (RETRY_AFTER, "1")], text).into_response();
    if status == StatusCode::UNAUTHORIZED {
        let headers = response.headers_mut();
        headers.remove(RETRY_AFTER);
        // Without a charset user name and password are limited to ASCII (RFC 7617).
        let challenge = axum::http::HeaderValue::from_static("Basic realm=\"wattcast\", charset=\"UTF-8\"");
        headers.insert(WWW_AUTHENTICATE, challenge);
    }
    response
}

/// A listen address that cannot be bound. The message contains a remedy.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}. {}", hint(error, flag))]
pub struct BindError {
    address: ListenAddress,
    /// Not the source of this error, whose message contains it already.
    error: io::Error,
    flag: &'static str,
}

fn hint(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("Stop the other program or choose another port with {flag}"),
        io::ErrorKind::PermissionDenied => format!("Ports below 1024 need root; choose another port with {flag}"),
        _ => "Choose an address of this machine with --web.listen-address".to_owned(),
    }
}

/// Binds all addresses. `flag` is the flag that sets their port.
///
/// # Errors
/// The first address that cannot be bound; the other listeners are closed.
pub fn bind(addresses: &[ListenAddress], flag: &'static str) -> Result<Vec<TcpListener>, BindError> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for address in addresses {
        let wildcard = address.0.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let listener = match listen(address.0) {
            // `:9500` falls back to IPv4 on a kernel without IPv6.
            Err(error) if wildcard && error.kind() != io::ErrorKind::AddrInUse => {
                listen((Ipv4Addr::UNSPECIFIED, address.0.port()).into())
            }
            result => result,
        };
        listeners.push(listener.map_err(|error| BindError { address: *address, error, flag })?);
    }
    Ok(listeners)
}

/// Length of the accept queue; the kernel limits it to net.core.somaxconn. A full queue delays a
/// scraper by a second.
const LISTEN_BACKLOG: u32 = 1024;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart can bind the port while old connections are in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

/// The bound addresses of listeners, with the port that the kernel chose instead of 0.
#[must_use]
pub fn addresses(listeners: &[TcpListener]) -> Vec<SocketAddr> {
    listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
}

/// Time for requests in flight to complete after a termination signal.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);

/// A failure of [`serve`].
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listener or a signal handler failed permanently.
    #[error("serving ended: {0}")]
    Io(#[from] io::Error),
    /// The worker thread that produces the pages ended.
    #[error("the {0} ended unexpectedly; this is a bug, please report the log above")]
    WorkerEnded(&'static str),
}

/// One port of a program.
pub struct Port {
    /// The listeners, one for each address.
    pub listeners: Vec<TcpListener>,
    /// The content.
    pub pages: Arc<dyn Pages>,
    /// Routes in addition to those of every port.
    pub extra_routes: Router,
    /// Paths whose routes check a secret of their own; users of the web configuration are not
    /// required there.
    pub self_authenticated: &'static [&'static str],
    /// Maximum connections of each listener.
    pub max_connections: usize,
}

impl Port {
    /// A port without extra routes, with the default limit of 128 connections.
    #[must_use]
    pub fn new(listeners: Vec<TcpListener>, pages: Arc<dyn Pages>) -> Self {
        Self {
            listeners,
            pages,
            extra_routes: Router::new(),
            self_authenticated: &[],
            max_connections: connections::DEFAULT_MAX_CONNECTIONS,
        }
    }
}

/// Serves until SIGINT or SIGTERM, or until `ended` completes, which means that the worker named
/// `worker` has ended. Requests in flight have a few seconds to complete.
///
/// # Errors
/// If a listener or a signal handler fails, or the worker ends.
pub async fn serve(
    options: &ServerOptions,
    ports: Vec<Port>,
    worker: &'static str,
    ended: impl Future,
) -> Result<(), ServeError> {
    let web = &options.web;
    for address in ports.iter().flat_map(|port| addresses(&port.listeners)) {
        info!("listening on {}://{address}/", web.scheme());
    }
    let public = ports.iter().flat_map(|port| addresses(&port.listeners)).find(|address| !address.ip().is_loopback());
    if let (Some(address), false) = (public, web.requires_credentials()) {
        warn!(
            "{address} is readable without authentication; require passwords or certificates with --web.config.file \
             (SECURITY.md)"
        );
    }
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut servers = JoinSet::new();
    let pages: Vec<_> = ports.iter().map(|port| port.pages.clone()).collect();
    let share = connection_share(&ports);
    for Port { listeners, pages, extra_routes, self_authenticated, max_connections } in ports {
        let max_connections = share.map_or(max_connections, |(available, required)| {
            (max_connections.saturating_mul(available) / required).max(MIN_CONNECTIONS)
        });
        let router = guarded(pages, extra_routes, self_authenticated, options);
        for listener in listeners {
            let (router, server, mut stopped) =
                (router.clone(), ConnectionServer::new(max_connections, web.clone()), stopped.clone());
            servers.spawn(async move {
                let stopped = async move {
                    // An error means that the sender was dropped, which is a reason to stop too.
                    let _ = stopped.wait_for(|stopped| *stopped).await;
                };
                server.serve(listener, router, stopped).await;
            });
        }
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        _ = ended => Err(ServeError::WorkerEnded(worker)),
        never = notify_systemd(&pages) => match never {},
        // A server only ends before the stop signal if it panics.
        Some(done) = servers.join_next() => done.map_err(|error| ServeError::Io(io::Error::other(error))),
    };
    info!("stopping");
    notify(&[NotifyState::Stopping]);
    let _ = stop.send(true);
    if tokio::time::timeout(SHUTDOWN_GRACE, servers.join_all()).await.is_err() {
        warn!("a request did not complete within {} ms and is aborted", SHUTDOWN_GRACE.as_millis());
    }
    outcome
}

/// File descriptors reserved for everything except connections: logs, files, perf counters, eBPF
/// programs, outgoing requests.
const RESERVED_DESCRIPTORS: usize = 512;
/// The fewest connections of a listener: at this number a scraper still replaces an idle one.
const MIN_CONNECTIONS: usize = 4;

/// Descriptors for connections at a limit of open files. Below a few hundred the program itself
/// opens less, but it cannot work without: it keeps three quarters.
fn available_connections(limit: usize) -> usize {
    limit - RESERVED_DESCRIPTORS.min(limit / 4 * 3)
}

/// Available and required connections if the limit of open files is too low for all ports; `None`
/// if it suffices.
fn connection_share(ports: &[Port]) -> Option<(usize, usize)> {
    let of_port = |port: &Port| port.max_connections.saturating_add(2).saturating_mul(port.listeners.len());
    let required = ports.iter().map(of_port).sum::<usize>();
    let available = available_connections(program::raise_open_file_limit());
    if required <= available {
        return None;
    }
    warn!(
        "the limit of open files leaves {available} connections, {required} are required; raise it (ulimit -n, LimitNOFILE)"
    );
    Some((available, required))
}

/// Notifies systemd once every port has a page, and then feeds its watchdog, if enabled, while the
/// program is healthy (sd_notify(3)).
async fn notify_systemd(pages: &[Arc<dyn Pages>]) -> std::convert::Infallible {
    while pages.iter().any(|pages| pages.page().is_none()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    notify(&[NotifyState::Ready]);
    let Some(timeout) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        tokio::time::sleep(timeout / 2).await;
        // Without this notification systemd restarts the program, which an unhealthy one needs.
        if pages.iter().all(|pages| pages.unhealthy().is_none()) {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!("cannot notify systemd: {error}");
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    use super::*;
    use metrics::{
        family::{Def, Family},
        page,
    };

    static UP: Def = Def::gauge("up", &[], "Up.");

    #[test]
    fn program_keeps_descriptors_at_every_limit_of_open_files() {
        for (limit, available) in [(0, 0), (64, 16), (256, 64), (1024, 512), (524_288, 523_776)] {
            assert_eq!(available_connections(limit), available, "{limit}");
        }
    }

    struct Fixed {
        broken: bool,
    }

    impl Pages for Fixed {
        fn page(&self) -> Option<Arc<Page>> {
            (!self.broken).then(|| Arc::new(page::render("t", [Family::new(&UP).with(&[], 1.0)]).unwrap()))
        }

        fn collectors(&self) -> Vec<&'static str> {
            vec!["t"]
        }

        fn unhealthy(&self) -> Option<String> {
            self.broken.then(|| "the sampler stopped".to_owned())
        }

        fn unready(&self) -> Vec<String> {
            if self.broken { vec!["no data".to_owned(), "no source".to_owned()] } else { vec![] }
        }

        fn index_page(&self) -> IndexPage {
            let links = vec![("/metrics".to_owned(), "for Prometheus".to_owned())];
            IndexPage { name: "test".into(), links, ..IndexPage::default() }
        }
    }

    fn respond(broken: bool, telemetry_path: &str, request: Request<Body>) -> (StatusCode, HeaderMap, String) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let response = routes(Arc::new(Fixed { broken }), telemetry_path).oneshot(request).await.unwrap();
            let (parts, body) = response.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
        })
    }

    fn fetch(broken: bool, path: &str) -> (StatusCode, String) {
        let (status, _, body) = respond(broken, "/metrics", Request::get(path).body(Body::empty()).unwrap());
        (status, body)
    }

    const PAGE: &str = "# HELP up Up.\n# TYPE up gauge\nup 1\n";

    #[test]
    fn healthy_program_serves_its_routes() {
        assert_eq!(fetch(false, "/metrics"), (StatusCode::OK, PAGE.into()));
        assert_eq!(fetch(false, "/health"), (StatusCode::OK, "OK".into()));
        assert_eq!(fetch(false, "/ready").0, StatusCode::OK);
        assert!(fetch(false, "/").1.contains("<h1>test</h1>"));
        assert_eq!(fetch(false, "/nothing").0, StatusCode::NOT_FOUND);
    }

    /// A page that takes until `/health` was answered.
    struct Slow {
        rendered: std::sync::atomic::AtomicUsize,
        health_answered: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
    }

    impl Pages for Slow {
        fn page(&self) -> Option<Arc<Page>> {
            if !self.is_rendered() {
                let answered = self.health_answered.lock().unwrap();
                answered.recv_timeout(std::time::Duration::from_secs(60)).expect("no answer while a page is rendered");
                self.rendered.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
            Fixed { broken: false }.page()
        }

        fn is_rendered(&self) -> bool {
            self.rendered.load(std::sync::atomic::Ordering::SeqCst) > 0
        }

        fn collectors(&self) -> Vec<&'static str> {
            Vec::new()
        }

        fn unhealthy(&self) -> Option<String> {
            None
        }

        fn unready(&self) -> Vec<String> {
            Vec::new()
        }

        fn index_page(&self) -> IndexPage {
            IndexPage::default()
        }
    }

    #[test]
    fn requests_are_answered_while_a_page_is_rendered_once_for_all() {
        let (answered, receiver) = std::sync::mpsc::channel();
        let pages = Arc::new(Slow { rendered: 0.into(), health_answered: receiver.into() });
        let router = routes(pages.clone(), "/metrics");
        let get = |path: &str| router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let all = async {
            let health = async {
                let response = get("/health").await;
                answered.send(()).unwrap();
                response
            };
            tokio::join!(get("/metrics"), get("/metrics"), health)
        };
        let (one, two, health) = runtime.block_on(all);
        assert_eq!([one, two, health].map(|response| response.unwrap().status()), [StatusCode::OK; 3]);
        assert_eq!(pages.rendered.load(std::sync::atomic::Ordering::SeqCst), 1);
    }

    #[test]
    fn date_is_not_left_to_a_cache() {
        let options =
            ServerOptions { web: WebConfig::load(None).unwrap(), telemetry_path: "/metrics".into(), max_requests: 0 };
        let router = guarded(Arc::new(Fixed { broken: false }), Router::new(), &[], &options);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let request = Request::get("/metrics").body(Body::empty()).unwrap();
        let response = runtime.block_on(router.oneshot(request)).unwrap();
        let time = |name: HeaderName| httpdate::parse_http_date(response.headers()[name].to_str().unwrap()).unwrap();
        assert!(SystemTime::now().duration_since(time(DATE)).unwrap() < Duration::from_secs(5));
        assert!(time(LAST_MODIFIED) <= time(DATE));
    }

    #[test]
    fn unhealthy_program_responds_with_the_reason() {
        assert_eq!(fetch(true, "/metrics").0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(fetch(true, "/health"), (StatusCode::SERVICE_UNAVAILABLE, "the sampler stopped\n".into()));
        assert_eq!(fetch(true, "/ready"), (StatusCode::SERVICE_UNAVAILABLE, "no data\nno source\n".into()));
    }

    #[test]
    fn metrics_are_served_at_the_telemetry_path() {
        let at =
            |telemetry: &str, path: &str| respond(false, telemetry, Request::get(path).body(Body::empty()).unwrap());
        assert_eq!(at("/energy", "/energy").2, PAGE);
        assert_eq!(at("/energy", "/metrics").0, StatusCode::NOT_FOUND);
        assert!(at("/energy", "/").2.contains("href=\"/energy\""));
        assert_eq!(at("/", "/").2, PAGE);
    }

    #[test]
    fn metrics_have_the_requested_format() {
        let request = Request::get("/metrics").header(ACCEPT, "application/openmetrics-text;version=1.0.0");
        let (_, headers, body) = respond(false, "/metrics", request.body(Body::empty()).unwrap());
        assert_eq!(headers[CONTENT_TYPE], metrics::openmetrics::CONTENT_TYPE);
        assert!(body.ends_with("up 1\n# EOF\n") && headers.contains_key(LAST_MODIFIED) && headers.contains_key(VARY));
    }

    #[test]
    fn collectors_are_selected_as_in_node_exporter() {
        assert_eq!(fetch(false, "/metrics?collect[]=t").1, PAGE);
        assert_eq!(fetch(false, "/metrics?collect%5B%5D=t").1, PAGE);
        assert_eq!(fetch(false, "/metrics?exclude[]=t"), (StatusCode::OK, String::new()));
        for (path, word) in [
            ("/metrics?collect[]=x", "available: t"),
            ("/metrics?exclude[]=x", "available: t"),
            ("/metrics?collect[]=t&exclude[]=t", "together"),
        ] {
            let (status, message) = fetch(false, path);
            assert!(status == StatusCode::BAD_REQUEST && message.contains(word), "{path}: {message}");
        }
    }

    /// A server with a web configuration. It stops when it is dropped.
    struct Server {
        address: SocketAddr,
        stop: Option<tokio::sync::oneshot::Sender<()>>,
        thread: Option<std::thread::JoinHandle<()>>,
        _dir: tempfile::TempDir,
    }

    struct Large;

    impl Pages for Large {
        fn page(&self) -> Option<Arc<Page>> {
            static LONG: Def = Def::gauge("long", &["text"], "Long.");
            // More than any socket's buffers hold.
            let text = "x".repeat(32 << 20);
            Some(Arc::new(page::render("t", [Family::new(&LONG).with(&[&text], 1.0)]).unwrap()))
        }

        fn collectors(&self) -> Vec<&'static str> {
            Vec::new()
        }

        fn unhealthy(&self) -> Option<String> {
            None
        }

        fn unready(&self) -> Vec<String> {
            Vec::new()
        }

        fn index_page(&self) -> IndexPage {
            IndexPage::default()
        }
    }

    impl Server {
        fn start(pages: Arc<dyn Pages>, max_requests: usize, web: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("web.yml");
            std::fs::write(&file, web).unwrap();
            let options = ServerOptions {
                web: WebConfig::load(Some(&file)).unwrap(),
                telemetry_path: "/metrics".into(),
                max_requests,
            };
            let (sender, receiver) = std::sync::mpsc::channel();
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let listener = bind(&["127.0.0.1:0".parse().unwrap()], "--port").unwrap().remove(0);
                    sender.send(listener.local_addr().unwrap()).unwrap();
                    let extra_routes = Router::new()
                        .route("/progress/{name}", get(|| async { "own" }))
                        .route("/progressing", get(|| async { "other" }));
                    let router = guarded(pages, extra_routes, &["/progress"], &options);
                    let server = ConnectionServer::new(16, options.web.clone());
                    server.serve(listener, router, async { drop(stopped.await) }).await;
                });
            });
            Self { address: receiver.recv().unwrap(), stop: Some(stop), thread: Some(thread), _dir: dir }
        }

        fn connect(&self, path: &str, headers: &str) -> std::net::TcpStream {
            let mut stream = std::net::TcpStream::connect(self.address).unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
            std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
            stream
        }

        /// The response up to the end of the connection.
        fn fetch(&self, path: &str, headers: &str) -> String {
            let mut stream = self.connect(path, headers);
            let mut response = Vec::new();
            let _ = std::io::Read::read_to_end(&mut stream, &mut response);
            String::from_utf8_lossy(&response).into_owned()
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.stop.take().unwrap().send(());
            let _ = self.thread.take().unwrap().join();
        }
    }

    const CLOSE: &str = "Connection: close\r\n";

    #[test]
    fn only_scrapes_count_and_until_their_last_byte() {
        let server = Server::start(Arc::new(Large), 1, "{}");
        let mut slow = Vec::new();
        testkit::eventually(60.0, "a scrape next to a slow one is rejected", || {
            // The response has begun when its first byte is readable. From then on, until the peer
            // counts as slow, no other scrape is answered.
            slow.push(server.connect("/metrics", ""));
            slow[slow.len() - 1].peek(&mut [0]).unwrap();
            let mut status = [0; 12];
            std::io::Read::read_exact(&mut server.connect("/metrics", CLOSE), &mut status).unwrap();
            status == *b"HTTP/1.1 503"
        });
        assert!(server.fetch("/health", CLOSE).starts_with("HTTP/1.1 200"), "not a scrape");
        // The slow peers are still connected, but block other scrapes only for a while.
        let answered = || server.fetch("/metrics", CLOSE).starts_with("HTTP/1.1 200");
        testkit::eventually(60.0, "a scrape next to slow ones is answered", answered);
    }

    #[test]
    fn rejected_connections_close_and_prefixes_need_users() {
        let hash = bcrypt::hash("pass", 4).unwrap();
        let server = Server::start(Arc::new(Fixed { broken: false }), 0, &format!("basic_auth_users: {{me: {hash}}}"));
        // The requests have no `Connection: close`: the test ends only because the server closes
        // the connections.
        for path in ["/metrics", "/health", "/nothing", "/progressing", "/progressX/a"] {
            let response = server.fetch(path, "");
            assert!(
                response.starts_with("HTTP/1.1 401") && response.contains("www-authenticate: Basic"),
                "{path}: {response}"
            );
        }
        assert!(server.fetch("/progress/a", CLOSE).ends_with("own"), "it authenticates requests itself");
        // base64 of me:pass.
        let credentials = format!("Authorization: Basic bWU6cGFzcw==\r\n{CLOSE}");
        assert!(server.fetch("/metrics", &credentials).starts_with("HTTP/1.1 200"));
        assert!(server.fetch("/nothing", &credentials).starts_with("HTTP/1.1 404"));
    }

    #[test]
    fn rate_limit_applies_to_all_paths_together() {
        let server = Server::start(Arc::new(Fixed { broken: false }), 0, "rate_limit: {interval: 1h, burst: 3}");
        let status = |path: &str| server.fetch(path, CLOSE)[9..12].to_owned();
        let statuses = ["/metrics", "/progress/a", "/health", "/metrics", "/progress/a"].map(status);
        assert_eq!(statuses, ["200", "200", "200", "429", "429"]);
    }

    /// A page of another site reads the metrics through a browser of this host.
    #[test]
    fn browser_with_a_foreign_host_is_refused_and_a_scraper_is_not() {
        let server = Server::start(Arc::new(Fixed { broken: false }), 0, "");
        let browser = server.fetch("/", "User-Agent: Mozilla/5.0\r\nHost: evil.example\r\n");
        assert!(browser.starts_with("HTTP/1.1 421 ") && browser.contains("DNS rebinding"), "{browser}");
        let scraper = server.fetch("/", "User-Agent: Prometheus/3.0\r\nHost: host.example\r\nConnection: close\r\n");
        assert!(!scraper.starts_with("HTTP/1.1 421 "), "{scraper}");
    }

    /// The message named another flag, and its cause twice.
    #[test]
    fn taken_port_is_reported_with_its_flag_and_its_cause_once() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listen = [address.to_string().parse().unwrap()];
        let error = runtime.block_on(async { bind(&listen, "--stats.port").unwrap_err() });
        let expected =
            "Address already in use (os error 98). Stop the other program or choose another port with --stats.port";
        assert_eq!(error.to_string(), format!("cannot listen on {address}: {expected}"));
        assert!(std::error::Error::source(&error).is_none());
    }

    #[test]
    fn large_page_is_compressed_if_accepted() {
        let server = Server::start(Arc::new(Large), 0, "{}");
        let mut stream = server.connect("/metrics", &format!("Accept-Encoding: gzip\r\n{CLOSE}"));
        let mut response = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut response).unwrap();
        let head = response.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
        assert!(String::from_utf8_lossy(&response[..head]).contains("content-encoding: gzip"));
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&response[head + 4..]), &mut plain).unwrap();
        assert!(plain.starts_with(b"# HELP long") && plain.len() > 32 << 20);
    }
}
