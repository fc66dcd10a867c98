//! HTTP routes: `/api/v1/window`, `/api/v1/mark`, `/api/v1/sources`, `/api/v1/streams`, and the
//! pages of the three ports.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, mpsc},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use cli::program;
use http::{index_page::IndexPage, server::Pages};
use metrics::page::{self, Page};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};
use tracing::error;
use units::{Microjoules, provenance::Unmeasured};

use crate::{
    containers::{ChargeTarget, Container},
    endpoints::{gpu_page, pages, stats_page},
    energy::zone::{Origin, ZoneKind},
    gpu::engines::Engine,
    host::availability::SourceState,
    jobs::{JobProcess, command_line::CommandLine},
    ledger::streams::JobUsage,
    sampler::{MarkReply, Request},
    snapshot::{
        Snapshot,
        history::{WindowError, seconds},
    },
};

/// Maximum number of pending marks. They share ticks, so this limits only memory.
const MAX_PENDING_MARKS: usize = 64;

/// The last snapshot and its rendered pages.
struct RenderedPages {
    snapshot: Arc<Snapshot>,
    metrics: Arc<Page>,
    usage: Arc<Page>,
    gpus: Arc<Page>,
    at: Instant,
}

/// Passes the latest snapshot from the sampler to requests; neither waits for the other.
pub struct Published {
    current: ArcSwapOption<RenderedPages>,
    tick: Duration,
    compat: bool,
    collectors: Vec<&'static str>,
    marks: Semaphore,
    sampler: mpsc::Sender<Request>,
    /// Start of the probe in Unix seconds.
    started: f64,
}

impl Published {
    /// Without a snapshot yet. Data is stale after several times `tick`; `compat` adds the legacy
    /// metric names; `collectors` are the enabled ones.
    #[must_use]
    pub fn new(tick: Duration, compat: bool, collectors: Vec<&'static str>, sampler: mpsc::Sender<Request>) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let (current, marks) = (ArcSwapOption::empty(), Semaphore::new(MAX_PENDING_MARKS));
        Self { current, tick, compat, collectors, marks, sampler, started }
    }

    /// Renders a snapshot once and publishes it.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        let render = |snapshot: &Snapshot| -> Result<[Arc<Page>; 3], page::Error> {
            Ok([
                pages::page(snapshot, self.compat)?,
                page::render("stats", stats_page::families(snapshot, self.compat))?,
                page::render("gpu", gpu_page::families(snapshot, self.compat))?,
            ]
            .map(Arc::new))
        };
        match render(&snapshot) {
            Ok([metrics, usage, gpus]) => {
                self.current.store(Some(Arc::new(RenderedPages {
                    snapshot,
                    metrics,
                    usage,
                    gpus,
                    at: Instant::now(),
                })));
            }
            // The previous page stays, and /health reports it when it becomes stale.
            Err(error) => error!("cannot render the page: {error}"),
        }
    }

    /// Age from which data is stale.
    fn max_age(&self) -> Duration {
        (self.tick * 5).max(Duration::from_secs(5))
    }

    /// Ends when no tick was published for so long that the sampler must be stuck. The program then
    /// ends, because it would serve old values as current ones.
    pub async fn stuck(&self) {
        const CHECK_INTERVAL: Duration = Duration::from_secs(1);
        let limit = (self.tick * 10).max(Duration::from_secs(30));
        let began = Instant::now();
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            let age = self.current.load().as_ref().map_or(began, |published| published.at).elapsed();
            if age > limit {
                error!("no tick for {:.0} s: the sampler is stuck, and the program ends", age.as_secs_f64());
                return;
            }
        }
    }

    fn stale(&self) -> Option<String> {
        let published = self.current.load();
        match &*published {
            None => Some("no measurement yet".to_owned()),
            Some(published) if published.at.elapsed() > self.max_age() => {
                Some(format!("the last tick was {:.1} s ago", published.at.elapsed().as_secs_f64()))
            }
            Some(_) => None,
        }
    }
}

impl Pages for Published {
    fn page(&self) -> Option<Arc<Page>> {
        self.current.load().as_ref().map(|published| published.metrics.clone())
    }

    /// The main port can serve the pages of all ports.
    fn pages(&self) -> Vec<Arc<Page>> {
        let published = self.current.load();
        let all = published.iter().flat_map(|pages| [pages.metrics.clone(), pages.usage.clone(), pages.gpus.clone()]);
        all.collect()
    }

    fn collectors(&self) -> Vec<&'static str> {
        self.collectors.clone()
    }

    fn unhealthy(&self) -> Option<String> {
        // Before the first tick the probe is starting, which is not a failure.
        self.current.load().as_ref().and_then(|_| self.stale())
    }

    fn unready(&self) -> Vec<String> {
        let mut missing: Vec<String> = self.stale().into_iter().collect();
        if let Some(published) = &*self.current.load() {
            let sources = published.snapshot.sources.iter().filter(|source| source.wanted);
            missing.extend(sources.filter_map(SourceState::problem));
        }
        missing
    }

    fn index_page(&self) -> IndexPage {
        let link = |path: &str, what: &str| (path.to_owned(), what.to_owned());
        let mut index = IndexPage {
            name: "wattcast-probe".into(),
            about: "Energy and CPU time of this host, attributed to its containers.".into(),
            version: program::version().into(),
            links: vec![
                link("/metrics", "metrics for Prometheus"),
                link("/health", "health of the probe"),
                link("/ready", "availability of the required sources"),
                link("/api/v1/sources", "state of every source, with remedies"),
                link("/api/v1/streams", "running and recent ffmpeg jobs and their energy"),
                link("/api/v1/window", "energy and CPU seconds between two times: ?start=UNIX&end=UNIX"),
            ],
            ..IndexPage::default()
        };
        let published = self.current.load();
        let Some(published) = &*published else { return index };
        let snapshot = &published.snapshot;
        index.banners = banners(snapshot.unmeasured());
        let heads = |heads: &[&str]| heads.iter().map(|head| (*head).to_owned()).collect::<Vec<_>>();
        index.tables.push((
            "Sources".into(),
            heads(&["source", "state", ""]),
            snapshot
                .sources
                .iter()
                .map(|source| match &source.state {
                    Ok(()) => vec![source.source.into(), "usable".into(), source.detail.clone()],
                    Err(why) => vec![source.source.into(), why.reason.to_string(), why.detail.clone()],
                })
                .collect(),
        ));
        index.tables.push((
            "Containers".into(),
            heads(&["container", "image", "watts", "source", "CPU seconds"]),
            snapshot
                .containers
                .iter()
                .map(|row| {
                    let cpu = row.cpu.iter().fold(0, |sum: u64, share| sum.saturating_add(share.ns()));
                    let package = row.watts.iter().find(|(zone, ..)| *zone == "package");
                    vec![
                        row.container.name.clone(),
                        row.container.image.clone(),
                        package.map_or_else(|| "–".to_owned(), |(_, _, watts)| format!("{watts:.2}")),
                        package.map_or_else(String::new, |(_, origin, _)| origin.as_str().to_owned()),
                        format!("{:.2}", Duration::from_nanos(cpu).as_secs_f64()),
                    ]
                })
                .collect(),
        ));
        index
    }
}

/// The pages of port 9501: resource usage of containers.
pub struct StatsPages(pub Arc<Published>);

impl Pages for StatsPages {
    fn page(&self) -> Option<Arc<Page>> {
        self.0.current.load().as_ref().map(|published| published.usage.clone())
    }

    fn collectors(&self) -> Vec<&'static str> {
        vec!["stats"]
    }

    fn unhealthy(&self) -> Option<String> {
        self.0.unhealthy()
    }

    fn unready(&self) -> Vec<String> {
        self.0.stale().into_iter().collect()
    }

    fn index_page(&self) -> IndexPage {
        let mut index = IndexPage {
            name: "wattcast-probe: containers".into(),
            about: "Memory, network and block I/O of the containers of this host.".into(),
            version: program::version().into(),
            links: vec![
                ("/metrics".into(), "metrics for Prometheus".into()),
                ("/health".into(), "health of the probe".into()),
            ],
            ..IndexPage::default()
        };
        let published = self.0.current.load();
        let Some(published) = &*published else { return index };
        index.banners = banners(published.snapshot.unmeasured());
        let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "–".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
        let rows = published.snapshot.usage.iter().map(|row| {
            let (network, block) = (row.usage.network, row.usage.block);
            vec![
                row.container.name.clone(),
                row.container.image.clone(),
                bytes(row.usage.working),
                bytes(network.map(|bytes| bytes.inward)),
                bytes(network.map(|bytes| bytes.outward)),
                bytes(block.map(|bytes| bytes.inward)),
                bytes(block.map(|bytes| bytes.outward)),
            ]
        });
        let heads = ["container", "image", "memory", "received", "sent", "read", "written"].map(str::to_owned).to_vec();
        index.tables.push(("Containers".into(), heads, rows.collect()));
        index
    }
}

/// The pages of port 9505: GPUs.
pub struct GpuPages(pub Arc<Published>);

impl Pages for GpuPages {
    fn page(&self) -> Option<Arc<Page>> {
        self.0.current.load().as_ref().map(|published| published.gpus.clone())
    }

    fn collectors(&self) -> Vec<&'static str> {
        vec!["gpu"]
    }

    fn unhealthy(&self) -> Option<String> {
        self.0.unhealthy()
    }

    fn unready(&self) -> Vec<String> {
        let mut missing: Vec<String> = self.0.stale().into_iter().collect();
        if let Some(published) = &*self.0.current.load() {
            let gpu = published.snapshot.sources.iter().filter(|source| matches!(source.source, "nvml" | "drm"));
            missing.extend(gpu.filter(|source| source.wanted).filter_map(SourceState::problem));
        }
        missing
    }

    fn index_page(&self) -> IndexPage {
        let mut index = IndexPage {
            name: "wattcast-probe: GPUs".into(),
            about: "Energy, engines and encoder sessions of the GPUs of this host.".into(),
            version: program::version().into(),
            links: vec![
                ("/metrics".into(), "metrics for Prometheus".into()),
                ("/health".into(), "health of the probe".into()),
                ("/ready".into(), "availability of the GPUs".into()),
            ],
            ..IndexPage::default()
        };
        let published = self.0.current.load();
        let Some(published) = &*published else { return index };
        index.banners = banners(published.snapshot.unmeasured_of(Origin::Nvml.reader()));
        let heads = |heads: &[&str]| heads.iter().map(|head| (*head).to_owned()).collect::<Vec<_>>();
        let sources = published.snapshot.sources.iter().filter(|source| matches!(source.source, "nvml" | "drm"));
        let sources = sources.map(|source| match &source.state {
            Ok(()) => vec![source.source.into(), "usable".into(), source.detail.clone()],
            Err(why) => vec![source.source.into(), why.reason.to_string(), why.detail.clone()],
        });
        index.tables.push(("Sources".into(), heads(&["source", "state", ""]), sources.collect()));
        let rows = published.snapshot.gpus.iter().map(|row| {
            let telemetry = &row.gpu.telemetry;
            let zone = published.snapshot.zones.iter().find(|zone| zone.id.kind == ZoneKind::Gpu(row.gpu.id));
            let percent = |engine: Engine| {
                telemetry.engines[engine.index()]
                    .map_or_else(|| "–".to_owned(), |ratio| format!("{:.0} %", ratio * 100.0))
            };
            let watts = zone.and_then(|zone| zone.watts);
            vec![
                row.gpu.id.to_string(),
                row.gpu.name.clone(),
                zone.map_or(row.gpu.origin, |zone| zone.origin).as_str().to_owned(),
                watts.map_or_else(|| "–".to_owned(), |watts| format!("{watts:.2}")),
                percent(Engine::Sm),
                percent(if row.gpu.index.is_some() { Engine::Encoder } else { Engine::Video }),
                percent(Engine::Decoder),
                row.sessions.len().to_string(),
            ]
        });
        let columns = ["GPU", "model", "source", "watts", "shaders", "encoder", "decoder", "sessions"];
        index.tables.push(("GPUs".into(), heads(&columns), rows.collect()));
        index
    }
}

fn banners(unmeasured: BTreeSet<Unmeasured>) -> Vec<String> {
    unmeasured.into_iter().map(|kind| kind.banner().to_owned()).collect()
}

/// The API routes of the probe.
pub fn routes(state: Arc<Published>) -> Router {
    Router::new()
        .route("/api/v1/window", get(window))
        .route("/api/v1/mark", post(mark))
        .route("/api/v1/sources", get(sources))
        .route("/api/v1/streams", get(streams))
        .with_state(state)
}

/// An error for programs.
#[derive(Serialize)]
struct ErrorResponse {
    code: &'static str,
    error: String,
}

fn error_response(status: StatusCode, code: &'static str, error: impl Into<String>) -> Response {
    (status, Json(ErrorResponse { code, error: error.into() })).into_response()
}

/// The state of one source, with a remedy.
#[derive(Serialize)]
struct SourceResponse {
    source: &'static str,
    /// `usable`, `absent`, `denied`, `broken`.
    state: &'static str,
    detail: String,
    wanted: bool,
    /// The sentence about its energy, when nothing of it is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    banner: Option<&'static str>,
}

async fn sources(State(state): State<Arc<Published>>) -> Json<Vec<SourceResponse>> {
    let published = state.current.load_full();
    let sources = published.iter().flat_map(|published| {
        let snapshot = &published.snapshot;
        snapshot.sources.iter().map(move |source| {
            let used = snapshot.unmeasured_of(source.source).into_iter().next();
            (source, used.or(Unmeasured::of(source.source)).filter(|_| source.state.is_ok()))
        })
    });
    Json(
        sources
            .map(|(source, unmeasured)| SourceResponse {
                source: source.source,
                state: source.state.as_ref().map_or_else(|why| why.reason.as_str(), |()| "usable"),
                detail: source.state.as_ref().map_or_else(|why| why.detail.clone(), |()| source.detail.clone()),
                wanted: source.wanted,
                banner: unmeasured.map(Unmeasured::banner),
            })
            .collect(),
    )
}

/// One job, with its energy since it started.
#[derive(Serialize)]
struct JobResponse<'a> {
    /// The probe's own number for it; never reused while the probe runs.
    job: u32,
    /// The names of its streams, as in the label `stream`.
    streams: Vec<&'a str>,
    /// How its energy is divided among its streams: process, pixels, outputs.
    share: &'static str,
    container: &'a str,
    id: &'a str,
    image: &'a str,
    /// The process id on the host, while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// Local UDP ports of its progress reports.
    #[serde(skip_serializing_if = "<[u16]>::is_empty")]
    udp_ports: &'a [u16],
    /// Unix seconds.
    started: f64,
    /// From when on its CPU seconds and joules are counted: its start, or later if the job was
    /// found while it ran, as after a restart of the probe.
    counted_since_seconds: f64,
    ended: Option<f64>,
    cpu_seconds: f64,
    joules: f64,
    /// Sources of its energy; `perf+nvml` if a part of it is a GPU's.
    source: String,
    #[serde(flatten)]
    command: &'a CommandLine,
}

#[derive(Serialize)]
struct StreamsResponse<'a> {
    /// Start of the probe in Unix seconds; job numbers start again with it.
    probe_started: f64,
    jobs: Vec<JobResponse<'a>>,
}

/// The sources of a job's energy, without duplicates.
fn origins(running: &JobUsage, snapshot: &Snapshot) -> String {
    let machine = snapshot.zones.first().map(|zone| zone.origin);
    let mut all: Vec<_> = machine.into_iter().chain(running.joules.keys().copied()).map(Origin::as_str).collect();
    let mut unique = BTreeSet::new();
    all.retain(|source| unique.insert(*source));
    all.join("+")
}

async fn streams(State(state): State<Arc<Published>>) -> Response {
    let published = state.current.load_full();
    let Some(published) = published else {
        return error_response(
            StatusCode::SERVICE_UNAVAILABLE,
            "starting",
            "no measurement yet; try again in a second",
        );
    };
    let snapshot = &published.snapshot;
    let containers: HashMap<u32, &Container> =
        snapshot.containers.iter().map(|row| (row.container.number, &*row.container)).collect();
    let processes: HashMap<u32, &JobProcess> =
        snapshot.processes.iter().map(|process| (process.job, process)).collect();
    let jobs = snapshot.jobs.iter().map(|running| {
        let job = &running.job;
        let number = job.own_container.or(match job.charge_target {
            ChargeTarget::Container(number) => Some(number),
            _ => None,
        });
        let container = number.and_then(|number| containers.get(&number)).copied();
        let process = processes.get(&job.number);
        JobResponse {
            job: job.number,
            streams: running.streams.iter().map(|(id, ..)| &*id.name).collect(),
            share: running.streams.first().map_or("", |(id, ..)| id.basis.as_str()),
            container: container.map_or("", |container| &container.name),
            id: container.map_or("", |container| &container.id),
            image: container.map_or("", |container| &container.image),
            pid: process.and_then(|process| process.pid),
            udp_ports: process.map(|process| &*process.ports).unwrap_or_default(),
            started: seconds(process.and_then(|process| process.began_ns).unwrap_or(job.unix_ns)),
            counted_since_seconds: seconds(job.unix_ns),
            ended: running.ended.map(seconds),
            cpu_seconds: seconds(i64::try_from(running.ran_ns).unwrap_or(i64::MAX)),
            joules: running.joules.values().copied().sum::<Microjoules>().joules(),
            source: origins(running, snapshot),
            command: &job.command,
        }
    });
    Json(StreamsResponse { probe_started: state.started, jobs: jobs.collect() }).into_response()
}

#[derive(Deserialize)]
struct WindowQuery {
    start: f64,
    end: f64,
}

async fn window(State(state): State<Arc<Published>>, query: Result<Query<WindowQuery>, QueryRejection>) -> Response {
    let Ok(Query(WindowQuery { start, end })) = query else {
        return error_response(
            StatusCode::BAD_REQUEST,
            "not_a_window",
            "start and end must be Unix seconds: /api/v1/window?start=1700000000.5&end=1700000030",
        );
    };
    let published = state.current.load_full();
    let Some(published) = published else {
        return error_response(
            StatusCode::SERVICE_UNAVAILABLE,
            "starting",
            "no measurement yet; try again in a second",
        );
    };
    match published.snapshot.ring.window(start, end) {
        Ok(answer) => Json(answer).into_response(),
        Err(refusal) => {
            let status = match refusal {
                WindowError::InvalidRange { .. } => StatusCode::BAD_REQUEST,
                WindowError::TooOld { .. } => StatusCode::GONE,
                WindowError::TooNew { .. } => StatusCode::TOO_EARLY,
                WindowError::ClockStep { .. } => StatusCode::CONFLICT,
            };
            error_response(status, refusal.code(), refusal.to_string())
        }
    }
}

#[derive(Serialize)]
struct MarkResponse {
    /// An exact edge for `/api/v1/window`, in Unix seconds.
    time: f64,
    /// The tick's number.
    tick: u64,
}

async fn mark(State(state): State<Arc<Published>>) -> Response {
    let Ok(_slot) = state.marks.try_acquire() else {
        return error_response(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_marks",
            format!("{MAX_PENDING_MARKS} marks are already pending; try again in 0.1 s"),
        );
    };
    let (reply, answer) = oneshot::channel();
    let stopped = || error_response(StatusCode::SERVICE_UNAVAILABLE, "stopped", "the sampler has stopped");
    if state.sampler.send(Request::Mark(reply)).is_err() {
        return stopped();
    }
    match tokio::time::timeout(state.max_age(), answer).await {
        Ok(Ok(MarkReply { sequence, unix_seconds })) => {
            Json(MarkResponse { time: unix_seconds, tick: sequence }).into_response()
        }
        Ok(Err(_)) => stopped(),
        Err(_) => error_response(StatusCode::SERVICE_UNAVAILABLE, "busy", "the sampler did not take a tick in time"),
    }
}
