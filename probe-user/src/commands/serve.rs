//! The default command: sample and serve until a signal.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use cli::program;
use http::{
    flags::ServerOptions,
    server::{self, Port},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::{
    cgroup::leases::LeaseServer,
    config::Config,
    endpoints::{
        guests,
        routes::{self, GpuPages, Published, StatsPages},
    },
    host::{
        availability::{Reason, SourceState, Unavailable, log_sources},
        memory, privileges,
    },
    past::PastInputs,
    sampler::{Request, Sampler, SamplerInputs},
    start,
};

/// Binds the addresses, opens the sources, drops the privileges, and serves until a signal.
///
/// # Errors
/// When an address cannot be bound, a requested recording not read, the privileges not dropped, or
/// the sampler ended.
pub fn run(config: &Config, serving: &ServerOptions) -> Result<()> {
    memory::configure_allocator();
    let mappings = memory::program_mappings();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        info!("wattcast-probe {}", program::version());
        let listeners = server::bind(&config.addresses(), "--web.listen-address")?;
        let stats = server::bind(&config.stats_addresses(), "--stats.port")?;
        let gpus = server::bind(&config.gpu_addresses(), "--gpu.port")?;
        let (inputs, past) = open(config)?;
        if let Err(error) = serving.web.check_readable() {
            warn!("{error}; the file was read before the privileges were dropped, so later changes have no effect");
        }

        let (requests, received) = mpsc::channel();
        let (tick, price) = (config.tick(), config.energy_price());
        let published =
            Arc::new(Published::new(tick, config.compat(), config.collectors(), price, requests.clone()));
        let (ended, sampler_ended) = tokio::sync::oneshot::channel::<()>();
        let publisher = published.clone();
        let is_saving = Arc::new(AtomicBool::new(false));
        let saves = is_saving.clone();
        let sampler = thread::Builder::new().name("sampler".into()).spawn(move || {
            // Dropped whenever the thread ends, so that the server stops instead of serving stale
            // pages.
            let _ended = ended;
            let ticks = Cell::new(0u32);
            let mut sampler = Sampler::new(inputs);
            sampler.run(&received, |snapshot| {
                publisher.publish(snapshot);
                ticks.set(ticks.get().saturating_add(1));
                if ticks.get() == START_TICKS {
                    memory::release_start(&mappings);
                }
            });
            saves.store(true, Ordering::Relaxed);
            drop(sampler);
        })?;

        #[cfg(feature = "export")]
        let exporter = start_export(config, &published)?;
        let watched = published.clone();
        let failed = async move {
            tokio::select! {
                _ = sampler_ended => {}
                () = watched.stuck() => {}
            }
            watched.end_events();
        };
        let usage = Port::new(stats, Arc::new(StatsPages(published.clone())));
        let gpus = Port::new(gpus, Arc::new(GpuPages(published.clone())));
        if let Some(past) = past {
            let published = published.clone();
            past.load_in_background(move |ticks| published.set_past(ticks));
        }
        tokio::spawn(end_events(published.clone()));
        let mut extra_routes = routes::routes(published.clone(), &serving.telemetry_path);
        if let Some(port) = config.guests.vsock {
            guests::serve_vsock(port, published.clone(), config.paths.procfs.clone())
                .with_context(|| format!("cannot listen on vsock port {port} (--guest.vsock-port)"))?;
        }
        let mut self_authenticated: &'static [&'static str] = &[];
        if let Some(tokens) = &config.guests.tokens {
            extra_routes = extra_routes.merge(guests::routes(published.clone(), tokens));
            self_authenticated = guests::SELF_AUTHENTICATED;
        }
        let all = Port { extra_routes, self_authenticated, ..Port::new(listeners, published) };
        let outcome = server::serve(serving, vec![all, usage, gpus], "sampler", failed).await;
        let _ = requests.send(Request::Stop);
        let stopped = Instant::now();
        let timeout = || if is_saving.load(Ordering::Relaxed) { SAVE_TIMEOUT } else { STOP_TIMEOUT };
        while !sampler.is_finished() && stopped.elapsed() < timeout() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        #[cfg(feature = "export")]
        if let Some(exporter) = exporter {
            exporter.finish(EXPORT_TIMEOUT);
        }
        outcome?;
        if !sampler.is_finished() {
            warn!(
                "the sampler did not end within {} ms; stopping without it, and perhaps without saving totals and idle power",
                timeout().as_millis()
            );
        } else if sampler.join().is_err() {
            bail!("the sampler panicked");
        }
        Ok(())
    });
    // A file read that hangs, on the file system of a container runtime, must not delay the end.
    runtime.shutdown_background();
    outcome
}

/// Ticks after which everything that is opened in the background, such as drivers, is open.
const START_TICKS: u32 = 10;

/// Time for the sampler to end its tick, after the server has ended: a source may hang.
const STOP_TIMEOUT: Duration = Duration::from_millis(400);

/// Time for it to end its tick and to save totals and idle power, which a disk that other programs
/// keep busy delays. Docker ends a container after 10 s.
const SAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time to push what the last tick and the queue have, after the end of the sampler.
#[cfg(feature = "export")]
const EXPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts the threads that push metrics; `None` without a receiver. They read what was published,
/// and start after the privileges are dropped.
#[cfg(feature = "export")]
fn start_export(config: &Config, published: &Arc<Published>) -> Result<Option<export::exporter::Exporter>> {
    let settings = config.export_settings().map_err(anyhow::Error::msg)?;
    let published = published.clone();
    export::exporter::Exporter::start(settings, Box::new(move || published.export()))
        .context("cannot start the threads that push metrics")
}

/// Ends the events of the live page with the signal that ends the server, which waits for its
/// responses.
pub(super) async fn end_events(published: Arc<Published>) {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    published.end_events();
}

/// Opens all sources, drops the privileges, and logs the state of each source.
fn open(config: &Config) -> Result<(SamplerInputs, Option<PastInputs>)> {
    let mut opened = start::open(config)?;
    let past = opened.take_past();
    let leases = config.lease_server();
    let remaining = privileges::drop_all(opened.trial_reading()).context("cannot drop the privileges of the start")?;
    for (capability, reason) in remaining {
        info!("keeping {capability}: {reason}");
    }
    opened.continue_totals(config);
    let mut inputs = opened.start();
    if let Some(leases) = leases {
        let detail = leases.as_ref().map(LeaseServer::detail).unwrap_or_default();
        let state = leases.and_then(|leases| {
            leases
                .start()
                .map_err(|error| Unavailable::new(Reason::Broken, format!("cannot start a thread for scopes: {error}")))
        });
        inputs.sources.push(SourceState { source: "scopes", state, detail, wanted: true });
    }
    if let Some(file) = &config.guests.tokens {
        let tokens = guests::read_tokens(file).map(|tokens| format!("tokens of {} guests", tokens.len()));
        let state = tokens.map_err(|why| Unavailable::new(Reason::Broken, format!("--guest.tokens-file: {why}")));
        inputs.sources.push(SourceState::new("guests", state, true));
    }
    memory::trim_heap();
    log_sources(&inputs.sources);
    Ok((inputs, past))
}
