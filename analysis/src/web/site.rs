//! Serves the pages. Reports and comparisons are computed at the request, one at a time and on a
//! thread of their own; everything else was computed before it.
//!
//! A request names runs by id, and only ids of runs that were read match: no part of a request
//! becomes a path.

use std::{
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::Duration,
};

use ::web::Program;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path as UrlPath, Query, State, rejection::QueryRejection},
    http::{
        HeaderMap, HeaderName, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY,
            RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
        },
        uri::Authority,
    },
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use experiment::{
    compare::{Metric, compare},
    report,
};
use http::{index_page::IndexPage, server::Pages};
use http_body_util::{BodyExt as _, Full};
use metrics::page::Page;
use results::{energy::Scope, repeats::configurations, run::Run, store};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::warn;

use super::{
    comparison,
    frame::{Frame, POLICY, Section, Tone, note},
    overview::{self, ProbeLink, Summary},
    quality, results as runs, runbooks, tables,
    view::{NOT_READ, ResultsView, RunSummary, SharedView},
};
use crate::rendered_page::Table;

/// Policy of a report, which is a file of its own with a style sheet inside, allowed by its hash.
/// The sandbox gives it no script and no access to our origin, whatever a result file contains.
static REPORT_POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = BASE64_STANDARD.encode(Sha256::digest(report::STYLE).as_slice());
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; sandbox"
    )
});
/// Policy of a result file.
const FILE_POLICY: &str = "default-src 'none'; frame-ancestors 'none'; sandbox";
/// Reports and result files that are sent at a time. Each is in memory until its last byte was
/// sent, and peers may read slowly.
static SENDING: Semaphore = Semaphore::const_new(8);
/// Longest time that a report or comparison waits for the one before it.
const WAIT: Duration = Duration::from_secs(10);

/// The pages of the ports, from which sections take banners and tables.
pub struct SectionPages {
    pub results: Arc<dyn Pages>,
    pub quality: Arc<dyn Pages>,
    pub cost: Arc<dyn Pages>,
    pub health: Arc<dyn Pages>,
    /// Of the ffmpeg port and of the nginx port.
    pub streams: [Arc<dyn Pages>; 2],
}

/// What the pages show.
pub struct Site {
    pub view: SharedView,
    pub pages: SectionPages,
    pub probes: Vec<ProbeLink>,
    pub results_dir: PathBuf,
    /// Scope of energy of reports and comparisons, as of the commands.
    pub scope: Scope,
    /// Path of the metrics on every port.
    pub telemetry_path: String,
    /// URL of the port that serves all pages, for ports that do not.
    pub external_url: String,
    /// One permit: a report or a comparison takes all of a CPU.
    pub work: Arc<Semaphore>,
}

impl Site {
    /// The document frame of ports that serve all pages.
    fn own_frame(&self) -> Frame {
        Frame { base: String::new(), telemetry_path: self.telemetry_path.clone() }
    }

    /// The document frame of the other ports.
    fn outer_frame(&self, request: &HeaderMap) -> Frame {
        let url = self.external_url.trim_end_matches('/');
        let base = on_host_of(request, url).unwrap_or_else(|| url.to_owned());
        Frame { base, telemetry_path: self.telemetry_path.clone() }
    }

    /// The document of a section without a query.
    fn document(&self, section: Section, frame: &Frame) -> String {
        let view = self.view.load();
        let view = view.as_deref();
        let content = match section {
            Section::Overview => self.overview(view),
            Section::Results => self.results(view, runs::Sort::default()),
            Section::Quality => self.quality(view, None),
            Section::Cost => self.cost(view),
            Section::Streams => tables_of(&self.pages.streams),
            Section::Health => tables_of(std::slice::from_ref(&self.pages.health)),
            Section::Runbooks => (Vec::new(), runbooks::BODY.clone()),
        };
        with_banners(frame, section, &content)
    }

    fn overview(&self, view: Option<&ResultsView>) -> (Vec<String>, String) {
        let streams: Vec<Table> = self.pages.streams.iter().flat_map(|pages| pages.index_page().tables).collect();
        let health = self.pages.health.index_page().tables;
        let summary =
            Summary { view, results_dir: &self.results_dir, probes: &self.probes, health: &health, streams: &streams };
        (self.pages.results.index_page().banners, overview::body(&summary))
    }

    fn results(&self, view: Option<&ResultsView>, sort: runs::Sort) -> (Vec<String>, String) {
        let index = self.pages.results.index_page();
        (index.banners, runs::body(view, sort, &self.results_dir, &index.tables))
    }

    fn quality(&self, view: Option<&ResultsView>, run: Option<&str>) -> (Vec<String>, String) {
        let index = self.pages.quality.index_page();
        (index.banners, quality::body(view, run, &index.tables))
    }

    fn cost(&self, view: Option<&ResultsView>) -> (Vec<String>, String) {
        let (banners, tables) = tables_of(std::slice::from_ref(&self.pages.cost));
        let budgets = view.map_or_else(String::new, |view| super::budgets::body(&view.budgets));
        (banners, budgets + &tables)
    }
}

/// The document of a section, with its banners at the top.
fn with_banners(frame: &Frame, section: Section, (banners, body): &(Vec<String>, String)) -> String {
    let banners: String = banners.iter().map(|text| Tone::Warn.banner(text)).collect();
    frame.document(section, section.title(), &(banners + body))
}

/// The URL with the host of the request, if its own host stands for every interface: no browser on
/// another machine can open that.
fn on_host_of(request: &HeaderMap, url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let port = ["0.0.0.0", "[::]"].into_iter().find_map(|any| rest.strip_prefix(any))?;
    if !port.is_empty() && !port.starts_with(':') {
        return None;
    }
    let host: Authority = request.get(HOST)?.to_str().ok()?.parse().ok()?;
    Some(format!("{scheme}://{}{port}", host.host()))
}

/// Banners and tables of ports.
fn tables_of(pages: &[Arc<dyn Pages>]) -> (Vec<String>, String) {
    let (mut banners, mut body) = (Vec::new(), String::new());
    for IndexPage { about, banners: own, tables: all, .. } in pages.iter().map(|pages| pages.index_page()) {
        banners.extend(own);
        body += &note(&about);
        for table in &all {
            body += &tables::table(table);
        }
        if all.iter().all(|(_, _, rows)| rows.is_empty()) {
            body += &note("Nothing to show yet.");
        }
    }
    (banners, body)
}

/// The pages of one port whose `/` is a page of the site.
pub struct SitePages(pub Arc<dyn Pages>);

impl Pages for SitePages {
    fn page(&self) -> Option<Arc<Page>> {
        self.0.page()
    }

    fn pages(&self) -> Vec<Arc<Page>> {
        self.0.pages()
    }

    fn collectors(&self) -> Vec<&'static str> {
        self.0.collectors()
    }

    fn unhealthy(&self) -> Option<String> {
        self.0.unhealthy()
    }

    fn unready(&self) -> Vec<String> {
        self.0.unready()
    }

    fn index_page(&self) -> IndexPage {
        self.0.index_page()
    }

    fn index_path(&self) -> &'static str {
        "/index"
    }
}

/// All pages, with `home` at `/`. A path that the metrics have is left to them.
pub fn routes(site: &Arc<Site>, home: Section) -> Router {
    let all: [(&str, MethodRouter<Arc<Site>>); 10] = [
        (Section::Overview.path(), get(|state: State<Arc<Site>>| section(state, Section::Overview))),
        (Section::Results.path(), get(results_page)),
        (Section::Quality.path(), get(quality_page)),
        (Section::Cost.path(), get(|state: State<Arc<Site>>| section(state, Section::Cost))),
        (Section::Streams.path(), get(|state: State<Arc<Site>>| section(state, Section::Streams))),
        (Section::Health.path(), get(|state: State<Arc<Site>>| section(state, Section::Health))),
        (Section::Runbooks.path(), get(|state: State<Arc<Site>>| section(state, Section::Runbooks))),
        ("/results/{run}/report", get(report_page)),
        ("/results/{run}/file", get(result_file)),
        ("/compare", get(compare_page)),
    ];
    let mut router = Router::new();
    for (path, handler) in all {
        if path != site.telemetry_path {
            router = router.route(path, handler);
        }
    }
    router.with_state(site.clone()).merge(home_route(site, home, |site, _| site.own_frame())).merge(static_routes())
}

/// The section `home` at `/` alone, for a port whose navigation leads to the port with all pages.
pub fn outer_routes(site: &Arc<Site>, home: Section) -> Router {
    home_route(site, home, Site::outer_frame).merge(static_routes())
}

/// The section `home` at `/`, in the frame of a request.
fn home_route(site: &Arc<Site>, home: Section, frame: fn(&Site, &HeaderMap) -> Frame) -> Router {
    if site.telemetry_path == "/" {
        return Router::new();
    }
    let site = site.clone();
    let document = move |request: HeaderMap| {
        std::future::ready(page(StatusCode::OK, site.document(home, &frame(&site, &request))))
    };
    Router::new().route("/", get(document))
}

/// The style sheet and the icon.
fn static_routes() -> Router {
    ::web::router(Program::Analysis)
}

async fn section(State(site): State<Arc<Site>>, section: Section) -> Response {
    page(StatusCode::OK, site.document(section, &site.own_frame()))
}

#[derive(Debug, Default, Deserialize)]
struct ResultsQuery {
    sort: Option<String>,
}

async fn results_page(State(site): State<Arc<Site>>, query: Result<Query<ResultsQuery>, QueryRejection>) -> Response {
    let sort = query.ok().and_then(|Query(query)| query.sort).unwrap_or_default();
    let view = site.view.load();
    let content = site.results(view.as_deref(), runs::Sort::parse(&sort));
    page(StatusCode::OK, with_banners(&site.own_frame(), Section::Results, &content))
}

#[derive(Debug, Default, Deserialize)]
struct QualityQuery {
    run: Option<String>,
}

async fn quality_page(State(site): State<Arc<Site>>, query: Result<Query<QualityQuery>, QueryRejection>) -> Response {
    let run = query.ok().and_then(|Query(query)| query.run);
    let view = site.view.load();
    let content = site.quality(view.as_deref(), run.as_deref());
    page(StatusCode::OK, with_banners(&site.own_frame(), Section::Quality, &content))
}

#[derive(Debug, Default, Deserialize)]
struct CompareQuery {
    #[serde(default)]
    baseline: String,
    #[serde(default)]
    candidate: String,
}

async fn compare_page(State(site): State<Arc<Site>>, query: Result<Query<CompareQuery>, QueryRejection>) -> Response {
    let CompareQuery { baseline, candidate } = query.map(|Query(query)| query).unwrap_or_default();
    let refused = |status: StatusCode, why: &str| failed(&site, status, &comparison::choose(why));
    if baseline.is_empty() || candidate.is_empty() || baseline == candidate {
        return refused(StatusCode::BAD_REQUEST, "A comparison needs two different runs.");
    }
    let Some(view) = site.view.load_full() else { return not_read(&site) };
    let runs = [&baseline, &candidate].map(|id| view.run(id).map(|summary| summary.run.clone()));
    let [Some(before), Some(after)] = runs else {
        return refused(StatusCode::NOT_FOUND, "One of the runs is not among those that are served.");
    };
    let scope = site.scope;
    let body = work(&site, move || {
        let (before, after) = (view.model_of(&before, scope), view.model_of(&after, scope));
        comparison::body(&baseline, &candidate, &compare(&before, &after, &Metric::ALL, 0.0))
    });
    match body.await {
        Some(body) => {
            page(StatusCode::OK, site.own_frame().document(Section::Results, "Comparison of two runs", &body))
        }
        None => busy(&site),
    }
}

async fn report_page(State(site): State<Arc<Site>>, UrlPath(id): UrlPath<String>) -> Response {
    let Some(view) = site.view.load_full() else { return not_read(&site) };
    let Some(summary) = view.run(&id).cloned() else { return unknown_run(&site) };
    let Ok(sending) = SENDING.try_acquire() else { return busy(&site) };
    let scope = site.scope;
    match work(&site, move || report_of(&view, &summary, scope)).await {
        Some(Ok(text)) => {
            let headers =
                [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, REPORT_POLICY.as_str())];
            (headers, COMMON_HEADERS, counted(text, sending)).into_response()
        }
        Some(Err(why)) => failed(&site, StatusCode::SERVICE_UNAVAILABLE, &Tone::Warn.banner(&why)),
        None => busy(&site),
    }
}

/// The report of a run, or why there is none.
fn report_of(view: &ResultsView, summary: &RunSummary, scope: Scope) -> Result<String, String> {
    let model = view.model_of(&summary.run, scope);
    if configurations(&model).is_empty() {
        return Err("Nothing to report: no scenario of this run was measured successfully.".to_owned());
    }
    let run = read_again(summary)?;
    // Absent where a text in the file is no Unicode: the report then lacks the runner's details.
    Ok(report::html(&model, &report::details(&run.text), &view.prices))
}

/// A body that counts as being sent until it was sent, or its connection has ended.
fn counted(text: String, sending: SemaphorePermit<'static>) -> Body {
    Body::new(Full::<Bytes>::from(text).map_frame(move |frame| {
        let _held = &sending;
        frame
    }))
}

async fn result_file(State(site): State<Arc<Site>>, UrlPath(id): UrlPath<String>) -> Response {
    let Some(view) = site.view.load_full() else { return not_read(&site) };
    let Some(summary) = view.run(&id).cloned() else { return unknown_run(&site) };
    let Ok(sending) = SENDING.try_acquire() else { return busy(&site) };
    // The id is that of a run: digits and an underscore.
    let attachment = format!("attachment; filename=\"test_results_{}.json\"", summary.run.id);
    match work(&site, move || read_again(&summary)).await {
        Some(Ok(run)) => {
            let headers = [(CONTENT_TYPE, "application/json"), (CONTENT_SECURITY_POLICY, FILE_POLICY)];
            let body = counted(run.text, sending);
            (headers, [(CONTENT_DISPOSITION, attachment)], COMMON_HEADERS, body).into_response()
        }
        Some(Err(why)) => failed(&site, StatusCode::SERVICE_UNAVAILABLE, &Tone::Warn.banner(&why)),
        None => busy(&site),
    }
}

/// Reads the file of a run again, as the text is not kept. What is returned was read as the same
/// result file: a link that now leads to another file is not served.
fn read_again(summary: &RunSummary) -> Result<Run, String> {
    let gone = |why: String| {
        // The path is for the log only.
        warn!("cannot show the result file of run {}: {why}", summary.run.id);
        "The result file cannot be read any more; the log of the service says why.".to_owned()
    };
    let run = store::read(&summary.file).map_err(|error| gone(error.to_string()))?;
    if run.scenarios == summary.run.scenarios {
        Ok(run)
    } else {
        Err("The result file has changed and is being read again; try again in a minute.".to_owned())
    }
}

/// Computes something on a thread of its own, one at a time. `None` if the one before takes too
/// long, or if it panicked.
async fn work<T: Send + 'static>(site: &Site, compute: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let permit = tokio::time::timeout(WAIT, site.work.clone().acquire_owned()).await.ok()?.ok()?;
    // The permit lasts as long as the work, also if the client has closed the connection.
    let computed = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        compute()
    });
    computed.await.ok()
}

/// Headers of every response of the site.
const COMMON_HEADERS: [(HeaderName, &str); 3] =
    [(CACHE_CONTROL, "no-store"), (X_CONTENT_TYPE_OPTIONS, "nosniff"), (REFERRER_POLICY, "no-referrer")];

fn page(status: StatusCode, document: String) -> Response {
    let headers = [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, POLICY)];
    (status, headers, COMMON_HEADERS, document).into_response()
}

/// A page that says what is wrong; `body` is HTML.
fn failed(site: &Site, status: StatusCode, body: &str) -> Response {
    page(status, site.own_frame().document(Section::Results, Section::Results.title(), body))
}

fn unknown_run(site: &Site) -> Response {
    let body = comparison::choose("This run is not among those that are served.");
    failed(site, StatusCode::NOT_FOUND, &body)
}

fn not_read(site: &Site) -> Response {
    let body = note(NOT_READ);
    with_retry(failed(site, StatusCode::SERVICE_UNAVAILABLE, &body))
}

fn busy(site: &Site) -> Response {
    let body = Tone::Warn.banner("Another report or comparison is being computed or sent; try again in a minute.");
    with_retry(failed(site, StatusCode::SERVICE_UNAVAILABLE, &body))
}

fn with_retry(mut response: Response) -> Response {
    response.headers_mut().insert(RETRY_AFTER, axum::http::HeaderValue::from_static("5"));
    response
}

/// The address of a probe for people: scheme, host and port. `None` for a URL with a path, which
/// may be secret, as user name and password are.
#[must_use]
pub fn public_url(url: &str) -> Option<String> {
    let uri: ureq::http::Uri = url.parse().ok()?;
    let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
    let host = uri.host().filter(|host| !host.is_empty() && matches!(uri.path(), "" | "/") && uri.query().is_none())?;
    let port = uri.port_u16().map_or_else(String::new, |port| format!(":{port}"));
    Some(format!("{scheme}://{host}{port}/"))
}

#[cfg(test)]
mod tests;
