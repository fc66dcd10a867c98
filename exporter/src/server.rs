//! The HTTP side: the page of metrics, `/health`, `/ready`, `/`, and whatever routes a program adds, behind the doors of [`crate::web`].
//!
//! A handler hands out what was rendered before it was asked; it reads nothing, waits for nothing and changes nothing. What may wait is before it: who asks
//! is looked up, and a password that nobody has shown before is checked on a thread of its own.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Query, Request, State},
    http::{
        HeaderMap, HeaderName, StatusCode,
        header::{
            ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, LAST_MODIFIED,
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
    connections::{self, Connections},
    flags::Serving,
    landing::Landing,
    listen::Listen,
    negotiate::negotiate,
    page::Page,
    peers::{Held, Peer},
    program,
    refused::{self, Why},
    web::{Verdict, Web},
};

/// What a program shows to the outside on one port.
pub trait Pages: Send + Sync + 'static {
    /// The rendered page; `None` before the first.
    fn page(&self) -> Option<Arc<Page>>;
    /// The page, and pages of other ports, of the same moment, whose collectors can be asked for by name here.
    fn pages(&self) -> Vec<Arc<Page>> {
        self.page().into_iter().collect()
    }
    /// The collectors that can be asked for here.
    fn collectors(&self) -> Vec<&'static str>;
    /// Empty when alive. A line here means the program itself has stopped working and a restart is due.
    fn unhealthy(&self) -> Option<String>;
    /// What is missing for the answers to be whole: a wanted source, fresh data. Empty when ready.
    fn unready(&self) -> Vec<String>;
    /// The page for people.
    fn landing(&self) -> Landing;
}

/// Small enough to be sent as it is.
const NOT_WORTH_IT: usize = 1024;

struct Shown {
    pages: Arc<dyn Pages>,
    telemetry: String,
}

/// The routes that every program serves. Anything else is 404.
fn routes(pages: Arc<dyn Pages>, telemetry: &str) -> Router {
    let router = Router::new().route("/health", get(health)).route("/ready", get(ready)).route(telemetry, get(metrics));
    let router = if telemetry == "/" { router } else { router.route("/", get(landing)) };
    router.with_state(Arc::new(Shown { pages, telemetry: telemetry.to_owned() }))
}

async fn landing(State(shown): State<Arc<Shown>>) -> Html<String> {
    let mut landing = shown.pages.landing();
    for (path, _) in &mut landing.links {
        if path == "/metrics" {
            path.clone_from(&shown.telemetry);
        }
    }
    Html(landing.html())
}

async fn metrics(
    State(shown): State<Arc<Shown>>,
    query: Result<Query<Vec<(String, String)>>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Response {
    const TEXT: (HeaderName, &str) = (CONTENT_TYPE, "text/plain; charset=utf-8");
    let said = |status: StatusCode, what: String| (status, [TEXT], what).into_response();
    let Some(page) = shown.pages.page() else {
        return said(StatusCode::SERVICE_UNAVAILABLE, "nothing measured yet; try again in a second\n".to_owned());
    };
    let query = match query {
        Ok(Query(query)) => query,
        Err(_) => return said(StatusCode::BAD_REQUEST, "the query cannot be read; write ?collect[]=NAME\n".to_owned()),
    };
    let page = match wanted(&shown.pages.collectors(), &query) {
        Err(why) => return said(StatusCode::BAD_REQUEST, why),
        Ok(Wanted::Page) => page,
        Ok(Wanted::Only(names)) => {
            let all = shown.pages.pages();
            let first = all.first().cloned().unwrap_or(page);
            first.selected(format!("+{}", names.join("+")), || {
                Page::select(&all, |collector| names.contains(&collector))
            })
        }
        Ok(Wanted::Without(names)) => {
            let without = || Page::select(std::slice::from_ref(&page), |collector| !names.contains(&collector));
            page.selected(format!("-{}", names.join("-")), without)
        }
    };
    let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut answer = negotiate(header(ACCEPT), header(ACCEPT_ENCODING));
    answer.form.gzip &= page.text().len() > NOT_WORTH_IT;
    let body: Bytes = page.body(answer.form);
    let mut response = (StatusCode::OK, [(CONTENT_TYPE, answer.content_type())], body).into_response();
    let out = response.headers_mut();
    out.insert(VARY, axum::http::HeaderValue::from_static("Accept, Accept-Encoding"));
    if answer.form.gzip {
        out.insert(CONTENT_ENCODING, axum::http::HeaderValue::from_static("gzip"));
    }
    // How old the page is, for whoever wants to know whether we still measure: beside Date it needs no common clock.
    if let Ok(at) = axum::http::HeaderValue::from_str(&httpdate::fmt_http_date(page.at())) {
        out.insert(LAST_MODIFIED, at);
    }
    response
}

/// What of the page a query asks for.
#[derive(Debug, PartialEq)]
enum Wanted {
    Page,
    Only(Vec<&'static str>),
    Without(Vec<&'static str>),
}

/// As `node_exporter` has it: `collect[]` names what to give, `exclude[]` what to leave out, both together are a mistake, and so is an unknown name.
fn wanted(known: &[&'static str], query: &[(String, String)]) -> Result<Wanted, String> {
    let named = |key: &str| -> Result<Vec<&'static str>, String> {
        let names = query.iter().filter(|(name, _)| name.trim_end_matches("[]") == key).map(|(_, value)| value);
        let names: Result<Vec<&'static str>, String> = names
            .map(|name| {
                let found = known.iter().find(|known| *known == name);
                found.copied().ok_or_else(|| format!("no collector {name:?} here; there are: {}\n", known.join(", ")))
            })
            .collect();
        // In one order, and once each, so that the same wish has the same words.
        let mut names = names?;
        names.sort_unstable();
        names.dedup();
        Ok(names)
    };
    match (named("collect")?, named("exclude")?) {
        (only, without) if only.is_empty() && without.is_empty() => Ok(Wanted::Page),
        (only, without) if without.is_empty() => Ok(Wanted::Only(only)),
        (only, without) if only.is_empty() => Ok(Wanted::Without(without)),
        _ => Err("collect[] and exclude[] together mean nothing; give one of them\n".to_owned()),
    }
}

async fn health(State(shown): State<Arc<Shown>>) -> (StatusCode, String) {
    match shown.pages.unhealthy() {
        None => (StatusCode::OK, "OK".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn ready(State(shown): State<Arc<Shown>>) -> (StatusCode, String) {
    let missing = shown.pages.unready();
    if missing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, missing.iter().map(|line| format!("{line}\n")).collect())
    }
}

/// What every request passes.
struct Gate {
    web: Arc<Web>,
    telemetry: String,
    /// Scrapes that are answered at once, up to their last byte; 0 is any number.
    most: usize,
    in_flight: Arc<AtomicUsize>,
    /// Paths below which a route looks after who may come by itself.
    own: &'static [&'static str],
}

async fn gate(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let mut response = pass(&gate, request, next).await;
    for (name, value) in gate.web.headers() {
        response.headers_mut().insert(name, value);
    }
    response
}

/// All routes of a port, behind its doors.
fn guarded(pages: Arc<dyn Pages>, more: Router, own: &'static [&'static str], serving: &Serving) -> Router {
    let telemetry = serving.telemetry_path.clone();
    let door = Gate { web: serving.web.clone(), telemetry, most: serving.max_requests, in_flight: Arc::default(), own };
    routes(pages, &serving.telemetry_path).merge(more).layer(from_fn_with_state(Arc::new(door), gate))
}

/// True below one of the paths, which end where a word of a path ends.
fn is_below(path: &str, roots: &[&str]) -> bool {
    roots.iter().any(|root| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

async fn pass(gate: &Gate, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Arc<Peer>>().cloned();
    if !gate.web.has_room() {
        return refuse(StatusCode::TOO_MANY_REQUESTS, Why::TooMany, "Too many requests\n".to_owned());
    }
    if !is_below(request.uri().path(), gate.own) {
        let from = peer.as_ref().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.from);
        match gate.web.judge(request.headers().get(AUTHORIZATION), from).await {
            Verdict::Welcome => {}
            Verdict::Unauthorized => {
                return refuse(StatusCode::UNAUTHORIZED, Why::Unauthorized, "Unauthorized\n".to_owned());
            }
            Verdict::TooMany => {
                return refuse(StatusCode::TOO_MANY_REQUESTS, Why::TooMany, "Too many requests\n".to_owned());
            }
        }
    }
    if gate.most == 0 || request.uri().path() != gate.telemetry {
        return next.run(request).await;
    }
    let (held, now) = Held::take(&gate.in_flight);
    // Whoever does not take an answer does not keep others from theirs.
    let makes_room =
        || peer.as_ref().and_then(|peer| peer.peers.upgrade()).is_some_and(|all| all.tell_slow(Instant::now()));
    if now > gate.most && !makes_room() {
        let why =
            format!("Limit of concurrent requests reached ({}, --web.max-requests), try again later.\n", gate.most);
        return refuse(StatusCode::SERVICE_UNAVAILABLE, Why::MaxRequests, why);
    }
    let response = next.run(request).await;
    if let Some(peer) = peer {
        peer.hold(held);
    }
    response
}

/// An answer that ends the connection: who is not let in does not stay in the door.
fn refuse(status: StatusCode, why: Why, text: String) -> Response {
    refused::count(why, 1);
    let mut response = (status, [(CONNECTION, "close"), (RETRY_AFTER, "1")], text).into_response();
    if status == StatusCode::UNAUTHORIZED {
        let headers = response.headers_mut();
        headers.remove(RETRY_AFTER);
        // Without a charset the words are ASCII (RFC 7617); ours take any.
        let ask = axum::http::HeaderValue::from_static("Basic realm=\"wattcast\", charset=\"UTF-8\"");
        headers.insert(WWW_AUTHENTICATE, ask);
    }
    response
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
pub fn bind(addresses: &[Listen]) -> Result<Vec<TcpListener>, BindError> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for address in addresses {
        let wildcard = address.0.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let listener = match listen(address.0) {
            // `:9500` on a kernel without IPv6.
            Err(error) if wildcard && error.kind() != io::ErrorKind::AddrInUse => {
                listen((Ipv4Addr::UNSPECIFIED, address.0.port()).into())
            }
            taken => taken,
        };
        listeners.push(listener.map_err(|source| BindError { address: *address, source })?);
    }
    Ok(listeners)
}

/// Connections that the kernel holds until we come, as far as it is allowed to (net.core.somaxconn): a queue that is full makes a scraper wait for a second.
const QUEUE: u32 = 1024;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // As every server does on Unix: a port that was ours a moment ago is ours again.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
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

/// A port: where it listens, what it shows, and how many connections it holds at once.
pub struct Port {
    /// Its listeners.
    pub listeners: Vec<TcpListener>,
    /// What it shows.
    pub pages: Arc<dyn Pages>,
    /// Routes besides.
    pub more: Router,
    /// Paths below which those routes ask for a secret of their own, and no user of the web configuration is asked for.
    pub own: &'static [&'static str],
    /// Connections of each listener.
    pub most: usize,
}

impl Port {
    /// With room for scrapers, a dashboard and a few people.
    #[must_use]
    pub fn new(listeners: Vec<TcpListener>, pages: Arc<dyn Pages>) -> Self {
        Self { listeners, pages, more: Router::new(), own: &[], most: connections::MOST }
    }
}

/// Serves until SIGINT or SIGTERM, or until the worker whose pages are shown ends: `worker` names it, `ended` is done
/// then. Requests in flight are given a moment to end.
///
/// # Errors
/// When a listener fails, or the worker ended first.
pub async fn serve(
    serving: &Serving,
    ports: Vec<Port>,
    worker: &'static str,
    ended: impl Future,
) -> Result<(), ServeError> {
    let web = &serving.web;
    for address in ports.iter().flat_map(|port| addresses(&port.listeners)) {
        info!("listening on {}://{address}/", web.scheme());
    }
    let outward = ports.iter().flat_map(|port| addresses(&port.listeners)).find(|address| !address.ip().is_loopback());
    if let (Some(address), false) = (outward, web.is_guarded()) {
        warn!(
            "whoever reaches {address} can read it; --web.config.file asks for a password or a certificate (SECURITY.md)"
        );
    }
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut servers = JoinSet::new();
    let pages: Vec<_> = ports.iter().map(|port| port.pages.clone()).collect();
    let part = room(&ports);
    for Port { listeners, pages, more, own, most } in ports {
        let most = part.map_or(most, |(part, of)| (most.saturating_mul(part) / of).max(8));
        let router = guarded(pages, more, own, serving);
        for listener in listeners {
            let (router, connections, mut stopped) =
                (router.clone(), Connections::most(most, web.clone()), stopped.clone());
            servers.spawn(async move {
                let stopped = async move {
                    // An error means that the sender is gone, which is as good a reason to stop.
                    let _ = stopped.wait_for(|stopped| *stopped).await;
                };
                connections.serve(listener, router, stopped).await;
            });
        }
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        _ = ended => Err(ServeError::WorkerEnded(worker)),
        never = tell_the_manager(&pages) => match never {},
        // None ends before it is told to, unless it panics.
        Some(done) = servers.join_next() => done.map_err(|error| ServeError::Io(io::Error::other(error))),
    };
    info!("stopping");
    tell(&[NotifyState::Stopping]);
    let _ = stop.send(true);
    if tokio::time::timeout(GRACE, servers.join_all()).await.is_err() {
        warn!("a request did not end in {} s; leaving it", GRACE.as_secs());
    }
    outcome
}

/// Descriptors for all else: logs, files, counters, programs in the kernel, what we ask ourselves.
const RESERVE: usize = 512;

/// Which part of the connections that the ports want there are descriptors for; `None` for all of them.
fn room(ports: &[Port]) -> Option<(usize, usize)> {
    let wanted =
        ports.iter().map(|port| port.most.saturating_add(2).saturating_mul(port.listeners.len())).sum::<usize>();
    let there = program::raise_open_files().saturating_sub(RESERVE).max(64);
    if wanted <= there {
        return None;
    }
    warn!(
        "only {there} connections fit beside all else that has descriptors, {wanted} are wanted; raise the limit of open files (ulimit -n, LimitNOFILE)"
    );
    Some((there, wanted))
}

/// Tells systemd that every port has something to show, and from then on, where it wants to know, that the program works (sd_notify(3)).
async fn tell_the_manager(pages: &[Arc<dyn Pages>]) -> std::convert::Infallible {
    while pages.iter().any(|pages| pages.page().is_none()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tell(&[NotifyState::Ready]);
    let Some(patience) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        tokio::time::sleep(patience / 2).await;
        // What is told no more is ended and started again, which is what a program that has stopped working needs.
        if pages.iter().all(|pages| pages.unhealthy().is_none()) {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!("cannot tell the service manager: {error}");
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    use super::*;
    use crate::{
        family::{Def, Family},
        page,
    };

    static UP: Def = Def::gauge("up", &[], "Up.");

    struct Fixed {
        sick: bool,
    }

    impl Pages for Fixed {
        fn page(&self) -> Option<Arc<Page>> {
            (!self.sick).then(|| Arc::new(page::render("t", [Family::new(&UP).with(&[], 1.0)]).unwrap()))
        }

        fn collectors(&self) -> Vec<&'static str> {
            vec!["t"]
        }

        fn unhealthy(&self) -> Option<String> {
            self.sick.then(|| "the sampler stopped".to_owned())
        }

        fn unready(&self) -> Vec<String> {
            if self.sick { vec!["no data".to_owned(), "no source".to_owned()] } else { vec![] }
        }

        fn landing(&self) -> Landing {
            let links = vec![("/metrics".to_owned(), "for Prometheus".to_owned())];
            Landing { name: "test".into(), links, ..Landing::default() }
        }
    }

    fn answer(sick: bool, telemetry: &str, request: Request<Body>) -> (StatusCode, HeaderMap, String) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let response = routes(Arc::new(Fixed { sick }), telemetry).oneshot(request).await.unwrap();
            let (parts, body) = response.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
        })
    }

    fn ask(sick: bool, path: &str) -> (StatusCode, String) {
        let (status, _, body) = answer(sick, "/metrics", Request::get(path).body(Body::empty()).unwrap());
        (status, body)
    }

    const PAGE: &str = "# HELP up Up.\n# TYPE up gauge\nup 1\n";

    #[test]
    fn a_well_program_answers() {
        assert_eq!(ask(false, "/metrics"), (StatusCode::OK, PAGE.into()));
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

    #[test]
    fn the_page_is_where_it_was_wanted() {
        let at =
            |telemetry: &str, path: &str| answer(false, telemetry, Request::get(path).body(Body::empty()).unwrap());
        assert_eq!(at("/energy", "/energy").2, PAGE);
        assert_eq!(at("/energy", "/metrics").0, StatusCode::NOT_FOUND);
        assert!(at("/energy", "/").2.contains("href=\"/energy\""));
        assert_eq!(at("/", "/").2, PAGE);
    }

    #[test]
    fn the_page_comes_in_the_form_that_was_asked_for() {
        let request = Request::get("/metrics").header(ACCEPT, "application/openmetrics-text;version=1.0.0");
        let (_, headers, body) = answer(false, "/metrics", request.body(Body::empty()).unwrap());
        assert_eq!(headers[CONTENT_TYPE], crate::openmetrics::CONTENT_TYPE);
        assert!(body.ends_with("up 1\n# EOF\n") && headers.contains_key(LAST_MODIFIED) && headers.contains_key(VARY));
    }

    #[test]
    fn collectors_are_chosen_as_node_exporter_lets_them() {
        assert_eq!(ask(false, "/metrics?collect[]=t").1, PAGE);
        assert_eq!(ask(false, "/metrics?collect%5B%5D=t").1, PAGE);
        assert_eq!(ask(false, "/metrics?exclude[]=t"), (StatusCode::OK, String::new()));
        for (path, word) in [
            ("/metrics?collect[]=x", "there are: t"),
            ("/metrics?exclude[]=x", "there are: t"),
            ("/metrics?collect[]=t&exclude[]=t", "together"),
        ] {
            let (status, why) = ask(false, path);
            assert!(status == StatusCode::BAD_REQUEST && why.contains(word), "{path}: {why}");
        }
    }

    /// Serves the fixed page, or a large one, behind a web configuration, until it is dropped.
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

        fn landing(&self) -> Landing {
            Landing::default()
        }
    }

    impl Server {
        fn start(pages: Arc<dyn Pages>, max_requests: usize, web: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("web.yml");
            std::fs::write(&file, web).unwrap();
            let serving =
                Serving { web: Web::open(Some(&file)).unwrap(), telemetry_path: "/metrics".into(), max_requests };
            let (say, said) = std::sync::mpsc::channel();
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let listener = bind(&["127.0.0.1:0".parse().unwrap()]).unwrap().remove(0);
                    say.send(listener.local_addr().unwrap()).unwrap();
                    let own = Router::new()
                        .route("/progress/{name}", get(|| async { "own" }))
                        .route("/progressing", get(|| async { "other" }));
                    let router = guarded(pages, own, &["/progress"], &serving);
                    let connections = Connections::most(16, serving.web.clone());
                    connections.serve(listener, router, async { drop(stopped.await) }).await;
                });
            });
            Self { address: said.recv().unwrap(), stop: Some(stop), thread: Some(thread), _dir: dir }
        }

        fn connect(&self, path: &str, headers: &str) -> std::net::TcpStream {
            let mut stream = std::net::TcpStream::connect(self.address).unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
            std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
            stream
        }

        /// What comes until the connection ends.
        fn ask(&self, path: &str, headers: &str) -> String {
            let mut stream = self.connect(path, headers);
            let mut answer = Vec::new();
            let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
            String::from_utf8_lossy(&answer).into_owned()
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
    fn scrapes_count_until_their_last_byte_and_nothing_else_counts() {
        let server = Server::start(Arc::new(Large), 1, "{}");
        let mut slow = Vec::new();
        testkit::eventually(60.0, "a scrape beside a slow one is refused", || {
            // Its answer has begun when something of it is there; from then on, until it counts as
            // slow, no other scrape is answered.
            slow.push(server.connect("/metrics", ""));
            slow[slow.len() - 1].peek(&mut [0]).unwrap();
            let mut status = [0; 12];
            std::io::Read::read_exact(&mut server.connect("/metrics", CLOSE), &mut status).unwrap();
            status == *b"HTTP/1.1 503"
        });
        assert!(server.ask("/health", CLOSE).starts_with("HTTP/1.1 200"), "no scrape");
        // The slow ones are still there, and keep others out only for a while.
        let answered = || server.ask("/metrics", CLOSE).starts_with("HTTP/1.1 200");
        testkit::eventually(60.0, "a scrape beside slow ones is answered", answered);
    }

    #[test]
    fn who_is_refused_does_not_stay_and_a_prefix_is_no_path() {
        let hash = bcrypt::hash("pass", 4).unwrap();
        let server = Server::start(Arc::new(Fixed { sick: false }), 0, &format!("basic_auth_users: {{me: {hash}}}"));
        // Without `Connection: close` of its own: the answer ends the connection, or this would wait for ever.
        for path in ["/metrics", "/health", "/nothing", "/progressing", "/progressX/a"] {
            let answer = server.ask(path, "");
            assert!(
                answer.starts_with("HTTP/1.1 401") && answer.contains("www-authenticate: Basic"),
                "{path}: {answer}"
            );
        }
        assert!(server.ask("/progress/a", CLOSE).ends_with("own"), "it looks after itself");
        // base64 of me:pass.
        let known = format!("Authorization: Basic bWU6cGFzcw==\r\n{CLOSE}");
        assert!(server.ask("/metrics", &known).starts_with("HTTP/1.1 200"));
        assert!(server.ask("/nothing", &known).starts_with("HTTP/1.1 404"));
    }

    #[test]
    fn a_rate_is_for_all_together() {
        let server = Server::start(Arc::new(Fixed { sick: false }), 0, "rate_limit: {interval: 1h, burst: 3}");
        let status = |path: &str| server.ask(path, CLOSE)[9..12].to_owned();
        let all: Vec<_> = ["/metrics", "/progress/a", "/health", "/metrics", "/progress/a"].map(status).into();
        assert_eq!(all, ["200", "200", "200", "429", "429"]);
    }

    #[test]
    fn a_large_page_is_compressed_for_who_takes_it() {
        let server = Server::start(Arc::new(Large), 0, "{}");
        let mut stream = server.connect("/metrics", &format!("Accept-Encoding: gzip\r\n{CLOSE}"));
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut answer).unwrap();
        let head = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
        assert!(String::from_utf8_lossy(&answer[..head]).contains("content-encoding: gzip"));
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&answer[head + 4..]), &mut plain).unwrap();
        assert!(plain.starts_with(b"# HELP long") && plain.len() > 32 << 20);
    }
}
