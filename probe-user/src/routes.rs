//! The feed: `/api/v1/window`, `/api/v1/mark`, `/api/v1/sources` and `/api/v1/streams`, and what the shared server asks of us.

use std::{
    collections::HashMap,
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
use exporter::{
    landing::Landing,
    page::{self, Page},
    program,
    server::Pages,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};
use tracing::error;

use crate::{
    containers::Container,
    energy::zone::{Origin, ZoneKind},
    gpu::engines::Engine,
    gpu_page,
    jobs::{Process, command::Command},
    ledger::{Holder, streams::Running},
    pages,
    sampler::{Marked, Request},
    snapshot::Snapshot,
    state::SourceState,
    stats_page,
    units::Microjoules,
    window::{Refusal, seconds},
};

/// Marks that may wait at once; they share ticks, so this bounds memory, not service.
const MAX_MARKS: usize = 64;

/// What was published last.
struct Published {
    snapshot: Arc<Snapshot>,
    metrics: Arc<Page>,
    usage: Arc<Page>,
    gpus: Arc<Page>,
    at: Instant,
}

/// Where the sampler puts its newest snapshot, and where requests find it. Neither waits for the other.
pub struct Board {
    published: ArcSwapOption<Published>,
    tick: Duration,
    compat: bool,
    collectors: Vec<&'static str>,
    marks: Semaphore,
    sampler: mpsc::Sender<Request>,
    /// Unix seconds.
    started: f64,
}

impl Board {
    /// An empty board. `tick` tells when data is stale; `compat` adds the names of the exporters we replace;
    /// `collectors` are those that are on.
    #[must_use]
    pub fn new(tick: Duration, compat: bool, collectors: Vec<&'static str>, sampler: mpsc::Sender<Request>) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let (published, marks) = (ArcSwapOption::empty(), Semaphore::new(MAX_MARKS));
        Self { published, tick, compat, collectors, marks, sampler, started }
    }

    /// Renders a snapshot, once, and shows it from now on.
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
                self.published.store(Some(Arc::new(Published { snapshot, metrics, usage, gpus, at: Instant::now() })));
            }
            // The page before stays, grows stale and is reported so.
            Err(error) => error!("cannot render the page: {error}"),
        }
    }

    /// Data older than this is stale.
    fn patience(&self) -> Duration {
        (self.tick * 5).max(Duration::from_secs(5))
    }

    fn stale(&self) -> Option<String> {
        let published = self.published.load();
        match &*published {
            None => Some("nothing was measured yet".to_owned()),
            Some(published) if published.at.elapsed() > self.patience() => {
                Some(format!("the last tick was {:.1} s ago", published.at.elapsed().as_secs_f64()))
            }
            Some(_) => None,
        }
    }
}

impl Pages for Board {
    fn page(&self) -> Option<Arc<Page>> {
        self.published.load().as_ref().map(|published| published.metrics.clone())
    }

    /// So that one port can be asked for everything.
    fn pages(&self) -> Vec<Arc<Page>> {
        let published = self.published.load();
        let all = published.iter().flat_map(|shown| [shown.metrics.clone(), shown.usage.clone(), shown.gpus.clone()]);
        all.collect()
    }

    fn collectors(&self) -> Vec<&'static str> {
        self.collectors.clone()
    }

    fn unhealthy(&self) -> Option<String> {
        // Before the first tick the program is starting, not sick.
        self.published.load().as_ref().and_then(|_| self.stale())
    }

    fn unready(&self) -> Vec<String> {
        let mut missing: Vec<String> = self.stale().into_iter().collect();
        if let Some(published) = &*self.published.load() {
            let sources = published.snapshot.sources.iter().filter(|source| source.wanted);
            missing.extend(sources.filter_map(SourceState::why_not));
        }
        missing
    }

    fn landing(&self) -> Landing {
        let link = |path: &str, what: &str| (path.to_owned(), what.to_owned());
        let mut landing = Landing {
            name: "wattcast-probe".into(),
            about: "Measures the energy and CPU time of this host and divides them among its containers.".into(),
            version: program::version().into(),
            links: vec![
                link("/metrics", "for Prometheus"),
                link("/health", "alive?"),
                link("/ready", "is every wanted source there?"),
                link("/api/v1/sources", "how every source stands, and what to do about it"),
                link("/api/v1/streams", "ffmpeg jobs that run or ended lately: what they are and what they cost"),
                link("/api/v1/window", "joules and CPU seconds between two moments: ?start=UNIX&end=UNIX"),
            ],
            tables: Vec::new(),
        };
        let published = self.published.load();
        let Some(published) = &*published else { return landing };
        let snapshot = &published.snapshot;
        let heads = |heads: &[&str]| heads.iter().map(|head| (*head).to_owned()).collect::<Vec<_>>();
        landing.tables.push((
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
        landing.tables.push((
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
        landing
    }
}

/// The same board as port 9501 shows it: what containers use.
pub struct StatsPages(pub Arc<Board>);

impl Pages for StatsPages {
    fn page(&self) -> Option<Arc<Page>> {
        self.0.published.load().as_ref().map(|published| published.usage.clone())
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

    fn landing(&self) -> Landing {
        let mut landing = Landing {
            name: "wattcast-probe: containers".into(),
            about: "What the containers of this host use besides energy: memory, network, block I/O.".into(),
            version: program::version().into(),
            links: vec![("/metrics".into(), "for Prometheus".into()), ("/health".into(), "alive?".into())],
            tables: Vec::new(),
        };
        let published = self.0.published.load();
        let Some(published) = &*published else { return landing };
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
        landing.tables.push(("Containers".into(), heads, rows.collect()));
        landing
    }
}

/// The same board as port 9505 shows it: GPUs.
pub struct GpuPages(pub Arc<Board>);

impl Pages for GpuPages {
    fn page(&self) -> Option<Arc<Page>> {
        self.0.published.load().as_ref().map(|published| published.gpus.clone())
    }

    fn collectors(&self) -> Vec<&'static str> {
        vec!["gpu"]
    }

    fn unhealthy(&self) -> Option<String> {
        self.0.unhealthy()
    }

    fn unready(&self) -> Vec<String> {
        let mut missing: Vec<String> = self.0.stale().into_iter().collect();
        if let Some(published) = &*self.0.published.load() {
            let ours = published.snapshot.sources.iter().filter(|source| matches!(source.source, "nvml" | "drm"));
            missing.extend(ours.filter(|source| source.wanted).filter_map(SourceState::why_not));
        }
        missing
    }

    fn landing(&self) -> Landing {
        let mut landing = Landing {
            name: "wattcast-probe: GPUs".into(),
            about: "What the GPUs of this host use, which of their engines work, and who encodes on them.".into(),
            version: program::version().into(),
            links: vec![
                ("/metrics".into(), "for Prometheus".into()),
                ("/health".into(), "alive?".into()),
                ("/ready".into(), "do the GPUs that were found answer?".into()),
            ],
            tables: Vec::new(),
        };
        let published = self.0.published.load();
        let Some(published) = &*published else { return landing };
        let heads = |heads: &[&str]| heads.iter().map(|head| (*head).to_owned()).collect::<Vec<_>>();
        let sources = published.snapshot.sources.iter().filter(|source| matches!(source.source, "nvml" | "drm"));
        let sources = sources.map(|source| match &source.state {
            Ok(()) => vec![source.source.into(), "usable".into(), source.detail.clone()],
            Err(why) => vec![source.source.into(), why.reason.to_string(), why.detail.clone()],
        });
        landing.tables.push(("Sources".into(), heads(&["source", "state", ""]), sources.collect()));
        let rows = published.snapshot.gpus.iter().map(|shown| {
            let facts = &shown.gpu.facts;
            let zone = published.snapshot.zones.iter().find(|zone| zone.id.kind == ZoneKind::Gpu(shown.gpu.id));
            let percent = |engine: Engine| {
                facts.engines[engine.index()].map_or_else(|| "–".to_owned(), |ratio| format!("{:.0} %", ratio * 100.0))
            };
            let watts = zone.and_then(|zone| zone.watts);
            vec![
                shown.gpu.id.to_string(),
                shown.gpu.name.clone(),
                zone.map_or(shown.gpu.origin, |zone| zone.origin).as_str().to_owned(),
                watts.map_or_else(|| "–".to_owned(), |watts| format!("{watts:.2}")),
                percent(Engine::Sm),
                percent(if shown.gpu.index.is_some() { Engine::Encoder } else { Engine::Video }),
                percent(Engine::Decoder),
                shown.encoding.len().to_string(),
            ]
        });
        let columns = ["GPU", "model", "source", "watts", "shaders", "encoder", "decoder", "sessions"];
        landing.tables.push(("GPUs".into(), heads(&columns), rows.collect()));
        landing
    }
}

/// The routes that only the probe has.
pub fn routes(board: Arc<Board>) -> Router {
    Router::new()
        .route("/api/v1/window", get(window))
        .route("/api/v1/mark", post(mark))
        .route("/api/v1/sources", get(sources))
        .route("/api/v1/streams", get(streams))
        .with_state(board)
}

/// A refusal in a form that programs can read.
#[derive(Serialize)]
struct Problem {
    code: &'static str,
    error: String,
}

fn problem(status: StatusCode, code: &'static str, error: impl Into<String>) -> Response {
    (status, Json(Problem { code, error: error.into() })).into_response()
}

/// How one source stands, with the line that says what to do.
#[derive(Serialize)]
struct SourceAnswer {
    source: &'static str,
    /// `usable`, `absent`, `denied`, `broken`.
    state: &'static str,
    detail: String,
    wanted: bool,
}

async fn sources(State(board): State<Arc<Board>>) -> Json<Vec<SourceAnswer>> {
    let published = board.published.load_full();
    let sources = published.iter().flat_map(|published| &*published.snapshot.sources);
    Json(
        sources
            .map(|source| SourceAnswer {
                source: source.source,
                state: source.state.as_ref().map_or_else(|why| why.reason.as_str(), |()| "usable"),
                detail: source.state.as_ref().map_or_else(|why| why.detail.clone(), |()| source.detail.clone()),
                wanted: source.wanted,
            })
            .collect(),
    )
}

/// One job, with what it cost since it began.
#[derive(Serialize)]
struct JobAnswer<'a> {
    /// The probe's own number for it; never reused while the probe runs.
    job: u32,
    /// The names of its streams, as in the label `stream`.
    streams: Vec<&'a str>,
    /// How its streams' parts of it are found: process, pixels, outputs.
    share: &'static str,
    container: &'a str,
    id: &'a str,
    image: &'a str,
    /// Its process on this host, while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// What its datagrams may come from.
    #[serde(skip_serializing_if = "<[u16]>::is_empty")]
    udp_ports: &'a [u16],
    /// Unix seconds.
    started: f64,
    ended: Option<f64>,
    cpu_seconds: f64,
    joules: f64,
    /// How its joules were obtained; `perf+nvml` where a part is a GPU's.
    source: String,
    #[serde(flatten)]
    command: &'a Command,
}

#[derive(Serialize)]
struct StreamsAnswer<'a> {
    /// When the probe was started; numbers of jobs begin anew with it.
    probe_started: f64,
    jobs: Vec<JobAnswer<'a>>,
}

/// How a job's joules were obtained.
fn origins(running: &Running, snapshot: &Snapshot) -> String {
    let of_packages = snapshot.zones.first().map(|zone| zone.origin);
    let mut all: Vec<_> = of_packages.into_iter().chain(running.joules.keys().copied()).map(Origin::as_str).collect();
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|source| seen.insert(*source));
    all.join("+")
}

async fn streams(State(board): State<Arc<Board>>) -> Response {
    let published = board.published.load_full();
    let Some(published) = published else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "starting", "nothing was measured yet; try again in a second");
    };
    let snapshot = &published.snapshot;
    let containers: HashMap<u32, &Container> =
        snapshot.containers.iter().map(|row| (row.container.number, &*row.container)).collect();
    let processes: HashMap<u32, &Process> = snapshot.processes.iter().map(|process| (process.job, process)).collect();
    let jobs = snapshot.jobs.iter().map(|running| {
        let job = &running.job;
        let number = job.own.or(match job.holder {
            Holder::Container(number) => Some(number),
            _ => None,
        });
        let container = number.and_then(|number| containers.get(&number)).copied();
        let process = processes.get(&job.number);
        JobAnswer {
            job: job.number,
            streams: running.streams.iter().map(|(id, ..)| &*id.name).collect(),
            share: running.streams.first().map_or("", |(id, ..)| id.by.as_str()),
            container: container.map_or("", |container| &container.name),
            id: container.map_or("", |container| &container.id),
            image: container.map_or("", |container| &container.image),
            pid: process.and_then(|process| process.pid),
            udp_ports: process.map(|process| &*process.ports).unwrap_or_default(),
            started: seconds(job.unix_ns),
            ended: running.ended.map(seconds),
            cpu_seconds: seconds(i64::try_from(running.ran_ns).unwrap_or(i64::MAX)),
            joules: running.joules.values().copied().sum::<Microjoules>().joules(),
            source: origins(running, snapshot),
            command: &job.command,
        }
    });
    Json(StreamsAnswer { probe_started: board.started, jobs: jobs.collect() }).into_response()
}

#[derive(Deserialize)]
struct Asked {
    start: f64,
    end: f64,
}

async fn window(State(board): State<Arc<Board>>, asked: Result<Query<Asked>, QueryRejection>) -> Response {
    let Ok(Query(Asked { start, end })) = asked else {
        return problem(
            StatusCode::BAD_REQUEST,
            "not_a_window",
            "give start and end in unix seconds: /api/v1/window?start=1700000000.5&end=1700000030",
        );
    };
    let published = board.published.load_full();
    let Some(published) = published else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "starting", "nothing was measured yet; try again in a second");
    };
    match published.snapshot.ring.window(start, end) {
        Ok(answer) => Json(answer).into_response(),
        Err(refusal) => {
            let status = match refusal {
                Refusal::NotAWindow { .. } => StatusCode::BAD_REQUEST,
                Refusal::TooOld { .. } => StatusCode::GONE,
                Refusal::TooNew { .. } => StatusCode::TOO_EARLY,
                Refusal::ClockStep { .. } => StatusCode::CONFLICT,
            };
            problem(status, refusal.code(), refusal.to_string())
        }
    }
}

#[derive(Serialize)]
struct MarkAnswer {
    /// An exact edge for `/api/v1/window`, unix seconds.
    time: f64,
    /// The tick's number.
    tick: u64,
}

async fn mark(State(board): State<Arc<Board>>) -> Response {
    let Ok(_slot) = board.marks.try_acquire() else {
        return problem(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_marks",
            format!("{MAX_MARKS} marks are waiting already; try again in 0.1 s"),
        );
    };
    let (reply, answer) = oneshot::channel();
    let gone = || problem(StatusCode::SERVICE_UNAVAILABLE, "stopped", "the sampler has stopped");
    if board.sampler.send(Request::Mark(reply)).is_err() {
        return gone();
    }
    match tokio::time::timeout(board.patience(), answer).await {
        Ok(Ok(Marked { sequence, unix_seconds })) => {
            Json(MarkAnswer { time: unix_seconds, tick: sequence }).into_response()
        }
        Ok(Err(_)) => gone(),
        Err(_) => problem(StatusCode::SERVICE_UNAVAILABLE, "busy", "the sampler did not take a tick in time"),
    }
}
