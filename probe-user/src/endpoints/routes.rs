//! HTTP routes: `/api/v1/window`, `/api/v1/mark`, `/api/v1/sources`, `/api/v1/streams`, those of
//! the live page, and the pages of the three ports.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
        mpsc,
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use axum::{
    Json, Router,
    body::Bytes,
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
use units::{Microjoules, model_interval::ModelInterval, provenance::Unmeasured};

use crate::{
    containers::ChargeTarget,
    endpoints::{
        error::{error_response, starting},
        gpu_page,
        live::{self, Live, ShownRecording},
        pages,
        price::EnergyPrice,
        stats_page,
    },
    energy::{
        model::Interval,
        zone::{Origin, ZoneId, ZoneKind},
    },
    gpu::engines::Engine,
    host::availability::SourceState,
    jobs::{JobProcess, command_line::CommandLine},
    ledger::streams::JobUsage,
    sampler::{MarkReply, Request},
    snapshot::{
        Snapshot,
        history::{Tick, WindowError, seconds, seconds_of},
    },
};

/// Path of the page of links and tables, for people without scripts.
const OVERVIEW: &str = "/overview";
/// Maximum number of pending marks. They share ticks, so this limits only memory.
const MAX_PENDING_MARKS: usize = 64;

/// A page of a tick.
#[derive(Clone, Copy)]
enum PageKind {
    Metrics,
    Usage,
    Gpus,
}

impl PageKind {
    const ALL: [Self; 3] = [Self::Metrics, Self::Usage, Self::Gpus];
}

/// The last snapshot and its pages. Each is rendered at most once, when it is first needed: between
/// two scrapes there are many ticks whose pages are read by no program.
struct TickPages {
    snapshot: Arc<Snapshot>,
    compat: bool,
    /// By [`PageKind`]; `None` in one that could not be rendered.
    rendered: [OnceLock<Option<Arc<Page>>>; 3],
    /// The time of the tick, on both clocks: that of the pages too, whenever they are rendered.
    at: Instant,
    time: SystemTime,
}

impl TickPages {
    fn new(snapshot: Arc<Snapshot>, compat: bool) -> Self {
        let (at, time) = (Instant::now(), SystemTime::now());
        Self { snapshot, compat, rendered: Default::default(), at, time }
    }

    /// A page, rendered by the first call; `None` where it cannot be rendered.
    fn get(&self, kind: PageKind) -> Option<Arc<Page>> {
        let render = || {
            let page = match kind {
                PageKind::Metrics => pages::page(&self.snapshot, self.compat),
                PageKind::Usage => page::render("stats", stats_page::families(&self.snapshot, self.compat)),
                PageKind::Gpus => page::render("gpu", gpu_page::families(&self.snapshot, self.compat)),
            };
            // /health reports it.
            let page = page.inspect_err(|error| error!("cannot render the page: {error}")).ok()?;
            Some(Arc::new(page.as_of(self.time)))
        };
        self.rendered[kind as usize].get_or_init(render).clone()
    }

    /// The pages of all ports.
    fn all(&self) -> Vec<Arc<Page>> {
        PageKind::ALL.into_iter().filter_map(|kind| self.get(kind)).collect()
    }

    fn is_broken(&self) -> bool {
        self.rendered.iter().any(|page| matches!(page.get(), Some(None)))
    }
}

/// Passes the latest snapshot from the sampler to requests; neither waits for the other.
pub struct Published {
    current: ArcSwapOption<TickPages>,
    /// By [`PageKind`]: whether the page of the last tick was requested (1), and of the one before
    /// (2).
    requested: [AtomicU8; 3],
    tick: Duration,
    compat: bool,
    collectors: Vec<&'static str>,
    marks: Semaphore,
    sampler: mpsc::Sender<Request>,
    /// Start of the probe in Unix seconds.
    started: f64,
    live: Arc<Live>,
    /// True for a recording that is looked at: its ticks do not become stale.
    is_recording: bool,
}

impl Published {
    /// Without a snapshot yet. Data is stale after several times `tick`; `compat` adds the legacy
    /// metric names; `collectors` are the enabled ones; `price` is for the cost per hour of the
    /// live page.
    #[must_use]
    pub fn new(
        tick: Duration,
        compat: bool,
        collectors: Vec<&'static str>,
        price: Option<EnergyPrice>,
        sampler: mpsc::Sender<Request>,
    ) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let (current, marks) = (ArcSwapOption::empty(), Semaphore::new(MAX_PENDING_MARKS));
        let (live, requested) = (Arc::new(Live::new(started, tick, None, price)), Default::default());
        Self { current, requested, tick, compat, collectors, marks, sampler, started, live, is_recording: false }
    }

    /// For a recording that is looked at; `tick` is the length of its ticks.
    #[must_use]
    pub fn of_recording(
        tick: Duration,
        recording: ShownRecording,
        price: Option<EnergyPrice>,
        sampler: mpsc::Sender<Request>,
    ) -> Self {
        let this = Self::new(tick, false, vec!["energy", "cpu", "ffmpeg", "probe"], None, sampler);
        let live = Arc::new(Live::new(this.started, tick, Some(recording), price));
        Self { live, is_recording: true, ..this }
    }

    /// Sets the ticks before the start, oldest first, for the live page.
    pub fn set_past(&self, ticks: Vec<Arc<Tick>>) {
        self.live.set_past(ticks);
    }

    /// The number of the last tick, and the answer of `/api/v1/now` with at most `containers`
    /// containers; `None` before the first.
    #[must_use]
    pub fn now(&self, containers: usize) -> Option<(u64, Bytes)> {
        self.live.now(containers)
    }

    /// Ends the events of the live page, because the program ends.
    pub fn end_events(&self) {
        self.live.end();
    }

    /// Publishes a snapshot. A page that was requested in each of the last two ticks is rendered in
    /// advance: where clients read every tick, the first of them does not wait for it.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        let pages = TickPages::new(snapshot.clone(), self.compat);
        for kind in PageKind::ALL {
            let requested = &self.requested[kind as usize];
            let before = requested.swap(0, Ordering::Relaxed);
            requested.fetch_or((before & 1) << 1, Ordering::Relaxed);
            if before == 3 {
                pages.get(kind);
            }
        }
        self.current.store(Some(Arc::new(pages)));
        // After the page of metrics, so that a client of an event finds its tick there.
        self.live.publish(&snapshot);
    }

    /// False while a page of the last tick is not rendered yet.
    fn is_rendered(&self, kind: PageKind) -> bool {
        self.current.load().as_ref().is_none_or(|pages| pages.rendered[kind as usize].get().is_some())
    }

    /// A page of the last tick, for a request; `None` before the first.
    fn requested(&self, kind: PageKind) -> Option<Arc<Page>> {
        self.requested[kind as usize].fetch_or(1, Ordering::Relaxed);
        self.current.load_full()?.get(kind)
    }

    /// What is pushed: the enabled collectors of all ports, at the end of their tick; `None` before
    /// the first.
    #[cfg(feature = "export")]
    #[must_use]
    pub fn export(&self) -> Option<export::exporter::Reading> {
        let published = self.current.load();
        let pages = published.as_ref()?;
        let end_ns = u64::try_from(pages.snapshot.unix_ns).ok().filter(|ns| *ns > 0)?;
        let page = Page::select(&pages.all(), |collector| self.collectors.contains(&collector));
        Some(export::exporter::Reading { at: UNIX_EPOCH + Duration::from_nanos(end_ns), pages: vec![Arc::new(page)] })
    }

    /// The last snapshot, the start of the probe in Unix seconds, and the time between two ticks.
    #[must_use]
    pub fn latest(&self) -> Option<(Arc<Snapshot>, f64, Duration)> {
        let published = self.current.load();
        published.as_ref().map(|published| (published.snapshot.clone(), self.started, self.tick))
    }

    /// Age from which data is stale.
    fn max_age(&self) -> Duration {
        (self.tick * 5).max(Duration::from_secs(5))
    }

    /// Ends when no tick was published for so long that the sampler must be stuck. The program then
    /// ends, because it would serve old values as current ones.
    pub async fn stuck(&self) {
        /// So that a wake-up right at the limit is beyond it.
        const MARGIN: Duration = Duration::from_millis(100);
        let limit = (self.tick * 10).max(Duration::from_secs(30));
        let began = Instant::now();
        loop {
            let age = self.current.load().as_ref().map_or(began, |published| published.at).elapsed();
            if age > limit {
                error!("no tick for {:.0} s: the sampler is stuck, and the program ends", age.as_secs_f64());
                return;
            }
            // Not at intervals: nothing can be too old before, and each wake-up keeps a package
            // from its deeper sleep.
            tokio::time::sleep(limit - age + MARGIN).await;
        }
    }

    fn stale(&self) -> Option<String> {
        let published = self.current.load();
        match &*published {
            None => Some("no measurement yet".to_owned()),
            Some(_) if self.is_recording => None,
            Some(published) if published.is_broken() => Some("the page cannot be rendered".to_owned()),
            Some(published) if published.at.elapsed() > self.max_age() => {
                Some(format!("the last tick was {:.1} s ago", published.at.elapsed().as_secs_f64()))
            }
            Some(_) => None,
        }
    }
}

impl Pages for Published {
    fn page(&self) -> Option<Arc<Page>> {
        self.requested(PageKind::Metrics)
    }

    fn is_rendered(&self) -> bool {
        Self::is_rendered(self, PageKind::Metrics)
    }

    /// The main port can serve the pages of all ports.
    fn pages(&self) -> Vec<Arc<Page>> {
        self.current.load_full().iter().flat_map(|pages| pages.all()).collect()
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

    /// The live page is at `/`.
    fn index_path(&self) -> &'static str {
        OVERVIEW
    }

    fn index_page(&self) -> IndexPage {
        let link = |path: &str, what: &str| (path.to_owned(), what.to_owned());
        let mut index = IndexPage {
            name: "wattcast-probe".into(),
            about: "Energy and CPU time of this host, attributed to its containers.".into(),
            version: program::version().into(),
            links: vec![
                link("/", "live page"),
                link("/metrics", "metrics for Prometheus"),
                link("/health", "health of the probe"),
                link("/ready", "availability of the required sources"),
                link("/api/v1/sources", "state of every source, with remedies"),
                link("/api/v1/streams", "running and recent ffmpeg jobs and their energy"),
                link("/api/v1/window", "energy and CPU seconds between two times: ?start=UNIX&end=UNIX"),
                link("/api/v1/now", "the state of the host as JSON"),
                link("/api/v1/series", "power of the last minutes by layer and container: ?seconds=900&step=5"),
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
                .map(|source| Vec::from([source.source, source.word(), source.text()].map(str::to_owned)))
                .collect(),
        ));
        if !snapshot.intervals.is_empty() {
            let row = |(id, interval): &(ZoneId, Interval)| {
                vec![id.kind.as_str().to_owned(), id.package_label(), interval.of_energy().to_string()]
            };
            index.tables.push((
                "Modelled energy".into(),
                heads(&["zone", "package", "the truth, against the figure shown"]),
                snapshot.intervals.iter().map(row).collect(),
            ));
        }
        index.tables.push((
            "Containers".into(),
            heads(&["container", "image", "watts", "source", "uncertainty, 60 s", "CPU seconds"]),
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
                        snapshot.uncertainty_text(row),
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
        self.0.requested(PageKind::Usage)
    }

    fn is_rendered(&self) -> bool {
        self.0.is_rendered(PageKind::Usage)
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
        self.0.requested(PageKind::Gpus)
    }

    fn is_rendered(&self) -> bool {
        self.0.is_rendered(PageKind::Gpus)
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
        let sources = sources.map(|source| Vec::from([source.source, source.word(), source.text()].map(str::to_owned)));
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

/// The API routes and the live page of the probe. Where the metrics are at `/`, there is no page.
pub fn routes(state: Arc<Published>, telemetry_path: &str) -> Router {
    let page = if telemetry_path == "/" { Router::new() } else { web::router(web::Program::Probe) };
    Router::new()
        .route("/api/v1/window", get(window))
        .route("/api/v1/mark", post(mark))
        .route("/api/v1/sources", get(sources))
        .route("/api/v1/streams", get(streams))
        .with_state(state.clone())
        .merge(live::routes(state.live.clone()))
        .merge(page)
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
    /// How far the energy of each modelled zone may be from the truth.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    model_intervals: Vec<ZoneInterval>,
}

/// The interval of a modelled zone.
#[derive(Serialize)]
struct ZoneInterval {
    package: String,
    zone: &'static str,
    /// 90 % interval of its energy, as the truth per estimate, over all loads.
    model_interval_ratio: ModelInterval,
}

/// The intervals of the energy of a source.
fn intervals_of(snapshot: &Snapshot, source: &str) -> Vec<ZoneInterval> {
    let zones = snapshot.intervals.iter().filter(|_| source == Origin::Model.as_str());
    let interval = |(id, interval): &(ZoneId, Interval)| ZoneInterval {
        package: id.package_label(),
        zone: id.kind.as_str(),
        model_interval_ratio: interval.of_energy(),
    };
    zones.map(interval).collect()
}

async fn sources(State(state): State<Arc<Published>>) -> Json<Vec<SourceResponse>> {
    let published = state.current.load_full();
    let sources = published.iter().flat_map(|published| {
        let snapshot = &published.snapshot;
        snapshot.sources.iter().map(move |source| {
            let used = snapshot.unmeasured_of(source.source).into_iter().next();
            let unmeasured = used.or(Unmeasured::of(source.source)).filter(|_| source.state.is_ok());
            (source, unmeasured, intervals_of(snapshot, source.source))
        })
    });
    Json(
        sources
            .map(|(source, unmeasured, model_intervals)| SourceResponse {
                source: source.source,
                state: source.word(),
                detail: source.text().to_owned(),
                wanted: source.wanted,
                banner: unmeasured.map(Unmeasured::banner),
                model_intervals,
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
    /// How its energy is divided among its streams: process, pixels, outputs, stages.
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
    /// GPU engines that it used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gpu_engines: Vec<EngineResponse>,
    /// Its streams that media servers receive.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    published: Vec<PublishedResponse<'a>>,
    #[serde(flatten)]
    command: &'a CommandLine,
}

/// A stream that media servers receive.
#[derive(Serialize)]
struct PublishedResponse<'a> {
    /// Label `stream`.
    stream: &'a str,
    /// Its energy as in `wattcast_stream_energy_joules_total`, all sources: successive jobs of the
    /// stream continue one row.
    joules: f64,
    /// Digests of application and key.
    targets: Vec<&'a str>,
}

/// The streams of a job that are published at media servers.
fn published_streams<'a>(running: &'a JobUsage, snapshot: &Snapshot) -> Vec<PublishedResponse<'a>> {
    let outputs = &running.job.command.outputs;
    let is_only = running.streams.len() == 1;
    let all = running.streams.iter().filter_map(|(id, ..)| {
        let own = outputs.iter().filter(|output| is_only || output.name == id.name);
        let targets: Vec<&str> = own.flat_map(|output| output.targets.iter().map(String::as_str)).collect();
        if targets.is_empty() {
            return None;
        }
        let rows = snapshot.streams.iter().filter(|row| row.id == *id);
        let joules = rows.map(|row| row.joules).sum::<Microjoules>().joules();
        Some(PublishedResponse { stream: &id.name, joules, targets })
    });
    all.collect()
}

/// Time of full use of an engine of a GPU.
#[derive(Serialize)]
struct EngineResponse {
    /// Label `gpu`.
    gpu: String,
    /// Label `engine`.
    engine: &'static str,
    /// Since the start of the probe.
    seconds: f64,
}

/// The engines that a job used, or all processes of a GPU (`None`).
fn engines(snapshot: &Snapshot, job: Option<u32>) -> Vec<EngineResponse> {
    let own = snapshot.engine_use.iter().filter(|((_, user), _)| *user == job);
    let used = own.flat_map(|((gpu, _), times)| {
        Engine::ALL.into_iter().zip(times).filter(|(_, ns)| **ns > 0).map(move |(engine, ns)| EngineResponse {
            gpu: gpu.to_string(),
            engine: engine.as_str(),
            seconds: seconds_of(*ns),
        })
    });
    used.collect()
}

/// CPU time of the machine, for forecasts of how many more streams it carries.
#[derive(Serialize)]
struct HostResponse {
    /// End of the tick in Unix seconds, to which all CPU time in this response refers.
    time: f64,
    /// CPUs that are online.
    cpus: usize,
    /// True if CPUs share cores.
    smt: bool,
    /// True if time next to a busy sibling is known; otherwise all time is in `alone_seconds`.
    siblings_known: bool,
    /// CPU seconds since the start of the probe, of all processes and the kernel.
    alone_seconds: f64,
    shared_seconds: f64,
}

impl HostResponse {
    /// `None` if CPU time is not collected.
    fn of(snapshot: &Snapshot) -> Option<Self> {
        snapshot.cpu.as_ref()?;
        let host = snapshot.host_cpu;
        Some(Self {
            time: seconds(snapshot.unix_ns),
            cpus: host.online,
            smt: snapshot.smt,
            siblings_known: host.siblings_known,
            alone_seconds: seconds_of(host.time.alone_ns),
            shared_seconds: seconds_of(host.time.shared_ns),
        })
    }
}

#[derive(Serialize)]
struct StreamsResponse<'a> {
    /// Start of the probe in Unix seconds; job numbers start again with it.
    probe_started: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<HostResponse>,
    /// GPU engines, as used by all processes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gpu_engines: Vec<EngineResponse>,
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
    let Some(published) = published else { return starting() };
    let snapshot = &published.snapshot;
    let containers = pages::containers_by_number(snapshot);
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
            cpu_seconds: seconds_of(running.ran_ns),
            joules: running.joules.values().copied().sum::<Microjoules>().joules(),
            source: origins(running, snapshot),
            gpu_engines: engines(snapshot, Some(job.number)),
            published: published_streams(running, snapshot),
            command: &job.command,
        }
    });
    let (host, gpu_engines) = (HostResponse::of(snapshot), engines(snapshot, None));
    Json(StreamsResponse { probe_started: state.started, host, gpu_engines, jobs: jobs.collect() }).into_response()
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
    let Some(published) = published else { return starting() };
    match published.snapshot.window(start, end) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> Published {
        Published::new(Duration::from_secs(1), true, vec!["energy"], None, mpsc::channel().0)
    }

    fn tick(sequence: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot { sequence, ..Snapshot::default() })
    }

    /// Which pages of the last tick are rendered.
    fn rendered(published: &Published) -> [bool; 3] {
        published.current.load().as_ref().unwrap().rendered.each_ref().map(|page| page.get().is_some())
    }

    /// Each tick rendered three pages, of which nearly none was read.
    #[test]
    fn pages_are_rendered_for_their_readers_alone() {
        let published = Arc::new(published());
        assert!(published.page().is_none());
        let next = |sequence| {
            published.publish(tick(sequence));
            rendered(&published)
        };
        assert_eq!(next(0), [false; 3]);
        let page = published.page().unwrap();
        assert!(Arc::ptr_eq(&page, &published.page().unwrap()), "once for all clients");
        assert_eq!(rendered(&published), [true, false, false]);
        assert_eq!(next(1), [true, false, false], "a client waited before the first tick, too");
        assert!(!Arc::ptr_eq(&page, &published.page().unwrap()), "of its own tick");
        assert_eq!(next(2), [true, false, false], "in advance for clients of every tick");
        assert_eq!(next(3), [false; 3], "which have left");
        published.page().unwrap();
        assert_eq!(next(4), [false; 3], "a client that comes now and then");
        StatsPages(published.clone()).page().unwrap();
        assert_eq!(rendered(&published), [false, true, false]);
        assert_eq!(published.pages().len(), 3);
    }

    #[test]
    fn a_page_has_the_time_of_its_tick() {
        let published = published();
        published.publish(tick(0));
        let after = SystemTime::now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(published.page().unwrap().rendered_at() <= after);
        assert!(published.pages().iter().all(|page| page.rendered_at() <= after));
    }
}
