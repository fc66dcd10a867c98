//! `wattcast-analysis serve`.

use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use analysis::{
    alerts::{
        AlertState,
        webhook::{self, WebhookSender},
    },
    config::Serve,
    health::{
        alertmanager::{self, SharedAlertLog},
        checker::{CheckPlan, HealthChecker},
        page as health_page,
        target::OwnExporters,
    },
    live::{LiveState, LiveUpdater},
    loader::{Loader, LoaderSetup, ResultPages, spawn},
    rendered_page::RenderedPage,
    settings::{self, ServiceSettings},
    streams::{
        ingest::sources::MediaServer,
        job_log::{EnergyPrice, JobLog},
        media_page::MediaPage,
        names::StreamNames,
        nginx::Nginx,
        receive::{self, ProgressReceiver},
        table::StreamTable,
        updater::{self, StreamUpdater},
    },
    web::{
        frame::Section,
        overview::ProbeLink,
        site::{self, SectionPages, Site, SitePages},
    },
};
use anyhow::{Context as _, Result, bail};
use arc_swap::ArcSwap;
use cli::{log, program};
use http::{
    flags::ServerOptions,
    server::{self, Pages, Port},
};
use results::{
    cost::{PriceOrigin, Prices, budget},
    energy::{HostProbe, probe::Probe},
    settings::DataSettings,
};
use tokio::{net::TcpListener, sync::Semaphore};
use toml::Table;
use tracing::{info, warn};
use ureq::http::Uri;

use super::{exit_code, read_settings, report_check};

/// Runs the command.
pub(crate) fn run(config: &Serve, file: &Table) -> ExitCode {
    log::start(&config.log.level, config.log.format);
    if config.shared.file.check {
        return report_check(check_configuration(config, file));
    }
    match read_configuration(config, file) {
        Ok(configuration) => exit_code(serve(config, configuration)),
        Err(error) => report_check(Err(error)),
    }
}

/// The validated configuration of the service.
struct Configuration {
    data: DataSettings,
    service: ServiceSettings,
    server: ServerOptions,
}

/// Reads all files of the configuration, without a request or a bound port.
fn read_configuration(config: &Serve, file: &Table) -> Result<Configuration> {
    let (data, service) = read_settings(&config.shared, file)?;
    let configuration = Configuration { data, service, server: config.web.load()? };
    configuration.check_plan(config, Vec::new())?;
    read_token(config)?;
    webhook::check(&configuration.service.webhooks).context("webhook")?;
    Nginx::new(&config.nginx).context("--nginx.url")?;
    media_servers(config)?;
    #[cfg(feature = "export")]
    config.export_settings().map_err(anyhow::Error::msg)?;
    Ok(configuration)
}

/// The media servers in addition to nginx.
fn media_servers(config: &Serve) -> Result<Vec<MediaServer>> {
    let mediamtx = MediaServer::mediamtx(config.mediamtx.as_deref()).context("--mediamtx.url")?;
    let srs = MediaServer::srs(config.srs.as_deref()).context("--srs.url")?;
    Ok(mediamtx.into_iter().chain(srs).collect())
}

fn read_token(config: &Serve) -> Result<Option<String>> {
    config.token().context("cannot read the token of progress requests (--ffmpeg.token-file, FFMPEG_PROGRESS_TOKEN)")
}

/// Also reports errors that `serve` itself would only log.
fn check_configuration(config: &Serve, file: &Table) -> Result<()> {
    check_targets(&read_configuration(config, file)?.check_plan(config, Vec::new())?)
}

/// Checks the settings of all targets.
pub(crate) fn check_targets(plan: &CheckPlan) -> Result<()> {
    match HealthChecker::new(plan).settings_errors().as_slice() {
        [] => Ok(()),
        errors => bail!("{}", errors.join("\n")),
    }
}

impl Configuration {
    /// The targets of the health check; `addresses` are the bound addresses of our ports, by
    /// default port.
    fn check_plan(&self, config: &Serve, addresses: Vec<(u16, SocketAddr)>) -> Result<CheckPlan> {
        let client = &config.shared.client;
        let scheme = self.server.web.scheme();
        let own = OwnExporters {
            probes: self.data.probes.clone(),
            telemetry_path: self.server.telemetry_path.clone(),
            addresses,
            // A certificate is valid for a host name.
            host: config.external_url.as_deref().and_then(|url| host_of(url, scheme)),
            ..OwnExporters::local(scheme, &client.access())
        };
        let mut plan = settings::check_plan(&config.health, &self.service.targets, client, &own)?;
        // Its page is as old as the last request to nginx.
        for target in plan.targets.iter_mut().filter(|target| target.name == "nginx-exporter") {
            target.max_age = target.max_age.max(config.nginx_interval * 3);
        }
        Ok(plan)
    }

    /// URL of the service for links in alerts.
    fn external_url(&self, config: &Serve, listeners: &[TcpListener]) -> String {
        config.external_url.clone().unwrap_or_else(|| {
            let address = server::addresses(listeners).first().map(ToString::to_string);
            format!("{}://{}/", self.server.web.scheme(), address.unwrap_or_else(|| "127.0.0.1:9502".to_owned()))
        })
    }
}

/// The host of a URL with this scheme.
fn host_of(url: &str, scheme: &str) -> Option<String> {
    let url: Uri = url.parse().ok()?;
    url.host().filter(|_| url.scheme_str() == Some(scheme)).map(str::to_owned)
}

fn serve(config: &Serve, configuration: Configuration) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve_ports(config, configuration))
}

/// Binds all ports, starts the threads that write their pages, and serves until a termination
/// signal.
async fn serve_ports(config: &Serve, configuration: Configuration) -> Result<()> {
    info!("wattcast-analysis {}", program::version());
    let results = server::bind(&config.addresses(), "--web.listen-address")?;
    let quality = server::bind(&config.qoe_addresses(), "--qoe.port")?;
    let cost = server::bind(&config.cost_addresses(), "--cost.port")?;
    let health = server::bind(&config.health_addresses(), "--health.port")?;
    log_default_prices(&configuration.data.prices);
    let external_url = configuration.external_url(config, &results);
    let requires_credentials = configuration.server.web.requires_credentials();
    let streams = start_streams(config, &configuration.data, requires_credentials).await?;

    let bound = [
        (9502, &results),
        (9503, &quality),
        (9504, &cost),
        (9506, &streams.ffmpeg.listeners),
        (9728, &streams.nginx.listeners),
    ];
    let first = |listeners: &[TcpListener]| server::addresses(listeners).first().copied();
    let addresses = bound.into_iter().filter_map(|(port, listeners)| Some((port, first(listeners)?))).collect();
    let plan = configuration.check_plan(config, addresses)?;

    let Configuration { data, service, server: options } = configuration;
    let StreamPorts { ffmpeg, nginx, mut threads } = streams;
    let (scope, probes) = (data.compared_scope, probe_links(&data));
    let (pages, results_ended) = start_results(config, data, service, &external_url, &mut threads)?;
    let (health_page, alerts, health_ended) = start_health(config, &plan, &mut threads)?;
    #[cfg(feature = "export")]
    let exporter = start_export(config, exported_pages(&pages, &health_page, [&ffmpeg, &nginx]))?;
    let site = Arc::new(Site {
        view: pages.view.clone(),
        pages: section_pages(&pages, &health_page, [&ffmpeg, &nginx]),
        probes,
        results_dir: config.shared.results_dir.clone(),
        scope,
        telemetry_path: options.telemetry_path.clone(),
        external_url,
        work: Arc::new(Semaphore::new(1)),
    });
    let health = site_port(health, health_page, &site, Section::Health);
    let ports = vec![
        site_port(results, pages.results, &site, Section::Overview),
        stream_port(ffmpeg, &site),
        stream_port(nginx, &site),
        site_port(quality, pages.quality, &site, Section::Quality),
        site_port(cost, pages.cost, &site, Section::Cost),
        Port { extra_routes: health.extra_routes.merge(alertmanager::routes(alerts)), ..health },
    ];
    let [loader_ended, updater_ended] = results_ended;
    let ended = async {
        tokio::select! {
            _ = loader_ended => {}
            _ = updater_ended => {}
            _ = health_ended => {}
        }
    };
    let result = server::serve(&options, ports, "loader, live updater or health checker", ended).await;
    #[cfg(feature = "export")]
    if let Some(exporter) = exporter {
        exporter.finish(EXPORT_TIMEOUT);
    }
    drop(threads);
    Ok(result?)
}

/// Time to push the last pages and what is queued, after the end of the server.
#[cfg(feature = "export")]
const EXPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The pages whose metrics are pushed.
#[cfg(feature = "export")]
fn exported_pages(pages: &ResultPages, health: &Arc<RenderedPage>, streams: [&Port; 2]) -> Vec<Arc<dyn Pages>> {
    let mut all: Vec<Arc<dyn Pages>> =
        vec![pages.results.clone(), pages.quality.clone(), pages.cost.clone(), health.clone()];
    all.extend(streams.map(|port| port.pages.clone()));
    all
}

/// Starts the threads that push metrics; `None` without a receiver. As with a scrape, the samples
/// have the time at which a page is read: most pages change rarely.
#[cfg(feature = "export")]
fn start_export(config: &Serve, all: Vec<Arc<dyn Pages>>) -> Result<Option<export::exporter::Exporter>> {
    let settings = config.export_settings().map_err(anyhow::Error::msg)?;
    let source = move || {
        let pages: Vec<_> = all.iter().filter_map(|pages| pages.page()).collect();
        let at = std::time::SystemTime::now();
        (!pages.is_empty()).then_some(export::exporter::Reading { at, pages })
    };
    export::exporter::Exporter::start(settings, Box::new(source)).context("cannot start the threads that push metrics")
}

/// A port that serves all HTML pages; its `/` is one of them.
fn site_port(listeners: Vec<TcpListener>, pages: Arc<dyn Pages>, site: &Arc<Site>, section: Section) -> Port {
    Port { extra_routes: site::routes(site, section), ..Port::new(listeners, Arc::new(SitePages(pages))) }
}

/// A port of streams. It may be open to hosts that only send progress, so it serves the page of
/// streams alone, with links to the port of results.
fn stream_port(port: Port, site: &Arc<Site>) -> Port {
    let extra_routes = port.extra_routes.merge(site::outer_routes(site, Section::Streams));
    Port { pages: Arc::new(SitePages(port.pages)), extra_routes, ..port }
}

/// The pages from which the site takes tables.
fn section_pages(pages: &ResultPages, health: &Arc<RenderedPage>, streams: [&Port; 2]) -> SectionPages {
    SectionPages {
        results: pages.results.clone(),
        quality: pages.quality.clone(),
        cost: pages.cost.clone(),
        health: health.clone(),
        streams: streams.map(|port| port.pages.clone()),
    }
}

/// The probes for the overview.
fn probe_links(data: &DataSettings) -> Vec<ProbeLink> {
    let link = |(name, probe): (String, Probe)| ProbeLink { name, url: site::public_url(probe.url()) };
    data.sources.probes.iter().map(HostProbe::with_label).map(link).collect()
}

/// Reports default prices in the log, so that they are not taken for configured ones.
fn log_default_prices(prices: &Prices) {
    if prices.energy_origin == PriceOrigin::Default {
        info!(
            "no energy price configured (--energy.price); using the default of {} {} per kilowatt hour",
            prices.energy_price(jiff::Timestamp::now()),
            prices.currency
        );
    }
    if prices.core_hour.is_none() {
        info!(
            "no price of CPU time configured (--cpu.price); only the legacy cost names include it, at {} {} per core-hour",
            results::cost::legacy_core_hour(),
            prices.currency
        );
    }
}

/// Resolves when a thread ends.
type Ended = tokio::sync::oneshot::Receiver<()>;

/// Senders that stop the threads when they are dropped.
type Threads = Vec<mpsc::Sender<()>>;

/// Starts a thread, and reports its end.
fn start_thread(
    name: &str,
    threads: &mut Threads,
    run: impl FnOnce(&mpsc::Receiver<()>) + Send + 'static,
) -> Result<Ended> {
    let (guard, ended) = tokio::sync::oneshot::channel::<()>();
    threads.push(spawn(name, move |stop| {
        let _guard = guard;
        run(stop);
    })?);
    Ok(ended)
}

/// Starts the threads of ports 9502, 9503 and 9504: the loader and the live updater.
fn start_results(
    config: &Serve,
    data: DataSettings,
    service: ServiceSettings,
    external_url: &str,
    threads: &mut Threads,
) -> Result<(ResultPages, [Ended; 2])> {
    let pages = ResultPages::new(config.compat());
    let live = Arc::new(ArcSwap::from_pointee(LiveState::default()));
    let updater = LiveUpdater {
        carbon_source: data.carbon,
        budgets: data.budgets,
        prices: data.prices.clone(),
        database: data.sources.database.clone(),
        probes: data.sources.probes.iter().map(HostProbe::with_label).collect(),
        hours: budget::HourlyCosts::default(),
    };
    let state_file = config.alerts_state.as_deref();
    let setup = LoaderSetup {
        sources: data.sources,
        prices: data.prices,
        scope: data.scope,
        vmaf_targets: data.vmaf_targets,
        rules: service.rules,
        webhooks: WebhookSender::start(&service.webhooks, external_url, state_file).context("webhook")?,
        alerts: AlertState::open(state_file),
        stale: config.stale,
        compat: config.compat(),
    };
    let loader = Loader::new(&config.shared.results_dir, config.keep, config.scenarios, config.ttl, setup);
    let (loader_pages, loader_live) = (pages.clone(), live.clone());
    let loader_ended = start_thread("loader", threads, move |stop| loader.run(&loader_pages, &loader_live, stop))?;
    let updater_ended = start_thread("updater", threads, move |stop| updater.run(&live, stop))?;
    Ok((pages, [loader_ended, updater_ended]))
}

/// Starts the thread of port 9600.
fn start_health(
    config: &Serve,
    plan: &CheckPlan,
    threads: &mut Threads,
) -> Result<(Arc<RenderedPage>, SharedAlertLog, Ended)> {
    let page = Arc::new(RenderedPage::new(
        "wattcast-analysis: health",
        "Health of every exporter: reachable, complete, current data.",
        &["health"],
        config.compat(),
        plan.interval * 3 + plan.max_duration() + Duration::from_secs(120),
    ));
    for job in &plan.skipped {
        info!("skipped job of the scrape configuration: {job}");
    }
    let (checker, interval, alerts) = (HealthChecker::new(plan), plan.interval, SharedAlertLog::default());
    let (thread_page, thread_alerts) = (page.clone(), alerts.clone());
    let ended = start_thread("health", threads, move |stop| {
        health_page::run(checker, interval, &thread_alerts, &thread_page, stop);
    })?;
    Ok((page, alerts, ended))
}

/// Ports 9506 and 9728, and the threads that write their pages.
struct StreamPorts {
    ffmpeg: Port,
    nginx: Port,
    threads: Threads,
}

/// Opens all transports of progress reports, and starts the threads of the stream ports.
async fn start_streams(config: &Serve, data: &DataSettings, requires_credentials: bool) -> Result<StreamPorts> {
    let [ffmpeg_page, nginx_page] = updater::pages(config.nginx_interval, config.compat());
    let listeners = server::bind(&config.ffmpeg_addresses(), "--ffmpeg.port")?;
    let table = Arc::new(Mutex::new(StreamTable::new(config.streams, config.retain)));
    let token = read_token(config)?;
    let names = StreamNames::default();
    let receiver = ProgressReceiver::new(table, names.clone(), token.as_deref());
    if token.is_none() {
        receive_datagrams(&server::addresses(&listeners), &receiver, requires_credentials).await?;
    }
    if let Some(path) = &config.socket {
        receive::unix_socket(path, receiver.clone()).with_context(|| format!("cannot listen on {}", path.display()))?;
    }
    for pipe in &config.pipes {
        receive::named_pipe(pipe, receiver.clone())
            .with_context(|| format!("cannot read the pipe {}", pipe.path.display()))?;
    }
    let log = config.record().map(|path| JobLog::open(&path, EnergyPrice::new(&data.prices)));
    let port = Port::new(listeners, ffmpeg_page.clone());
    let ffmpeg = Port {
        extra_routes: receive::routes(receiver.clone()),
        // With a token, progress requests need no user as well: ffmpeg can have only one of them in
        // its URL.
        self_authenticated: if token.is_some() { &["/progress"] } else { &[] },
        // Each stream keeps a connection open; scrapes need connections in addition.
        max_connections: port.max_connections.saturating_add(config.streams),
        ..port
    };
    let nginx = Port::new(server::bind(&config.nginx_addresses(), "--nginx.port")?, nginx_page.clone());
    let updater = StreamUpdater::new(receiver, data.first_probe.clone(), log);
    let media = Arc::new(MediaPage::new(nginx_page, names, config.stream_label, config.nginx_interval));
    let (server, nginx_media) = (Nginx::new(&config.nginx)?, media.clone());
    let mut threads = vec![
        spawn("streams", move |stop| updater.run(&ffmpeg_page, stop))?,
        spawn("nginx", move |stop| nginx_media.run_nginx(&server, stop))?,
    ];
    for server in media_servers(config)? {
        let media = media.clone();
        threads.push(spawn(server.name, move |stop| media.run_server(&server, stop))?);
    }
    Ok(StreamPorts { ffmpeg, nginx, threads })
}

/// Receives datagrams of progress on all addresses, except on network addresses of a server with
/// credentials.
async fn receive_datagrams(
    addresses: &[SocketAddr],
    receiver: &ProgressReceiver,
    requires_credentials: bool,
) -> Result<()> {
    for &address in addresses {
        if requires_credentials && !address.ip().is_loopback() {
            warn!(
                "UDP progress disabled on {address}, because datagrams carry no credentials; use HTTP, or 127.0.0.1 on \
                 this machine"
            );
            continue;
        }
        let socket = tokio::net::UdpSocket::bind(address).await.with_context(|| {
            format!("cannot receive datagrams on {address}; choose another port with --ffmpeg.port")
        })?;
        info!("receiving progress datagrams on udp://{address}");
        let receiver = receiver.clone();
        tokio::spawn(async move {
            if let Err(error) = receive::datagrams(socket, receiver).await {
                warn!("progress datagrams are no longer received: {error}");
            }
        });
    }
    Ok(())
}
