//! The default command: sample and serve until a signal.

#![allow(unsafe_code)]

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use cli::program;
use http::{
    flags::ServerOptions,
    server::{self, Port},
};
use tracing::{info, warn};

use crate::{
    cgroup::leases::LeaseServer,
    config::Config,
    endpoints::routes::{self, GpuPages, Published, StatsPages},
    host::{
        availability::{Reason, SourceState, Unavailable, log_sources},
        privileges,
    },
    sampler::{Request, Sampler, SamplerInputs},
    start,
};

/// Binds the addresses, opens the sources, drops the privileges, and serves until a signal.
///
/// # Errors
/// When an address cannot be bound, a requested recording not read, the privileges not dropped, or
/// the sampler ended.
pub fn run(config: &Config, serving: &ServerOptions) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        info!("wattcast-probe {}", program::version());
        let listeners = server::bind(&config.addresses(), "--web.listen-address")?;
        let stats = server::bind(&config.stats_addresses(), "--stats.port")?;
        let gpus = server::bind(&config.gpu_addresses(), "--gpu.port")?;
        let inputs = open(config)?;
        if let Err(error) = serving.web.check_readable() {
            warn!("{error}; the file was read before the privileges were dropped, so later changes have no effect");
        }

        let (requests, received) = mpsc::channel();
        let published = Arc::new(Published::new(config.tick(), config.compat(), config.collectors(), requests.clone()));
        let (ended, sampler_ended) = tokio::sync::oneshot::channel::<()>();
        let publisher = published.clone();
        let sampler = thread::Builder::new().name("sampler".into()).spawn(move || {
            // Dropped whenever the thread ends, so that the server stops instead of serving stale
            // pages.
            let _ended = ended;
            Sampler::new(inputs).run(&received, |snapshot| publisher.publish(snapshot));
        })?;

        let watched = published.clone();
        let failed = async move {
            tokio::select! {
                _ = sampler_ended => {}
                () = watched.stuck() => {}
            }
        };
        let usage = Port::new(stats, Arc::new(StatsPages(published.clone())));
        let gpus = Port::new(gpus, Arc::new(GpuPages(published.clone())));
        let all = Port { extra_routes: routes::routes(published.clone()), ..Port::new(listeners, published) };
        let outcome = server::serve(serving, vec![all, usage, gpus], "sampler", failed).await;
        let _ = requests.send(Request::Stop);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while !sampler.is_finished() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        outcome?;
        if !sampler.is_finished() {
            warn!(
                "the sampler did not end within {} ms; stopping without it, and without saving the idle power",
                STOP_TIMEOUT.as_millis()
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

/// Time for the sampler to end its tick and to save the idle power, after the server has ended.
const STOP_TIMEOUT: Duration = Duration::from_millis(400);

/// Opens all sources, drops the privileges, and logs the state of each source.
fn open(config: &Config) -> Result<SamplerInputs> {
    let mut opened = start::open(config)?;
    let leases = config.lease_server();
    let remaining = privileges::drop_all(opened.trial_reading()).context("cannot drop the privileges of the start")?;
    for (capability, reason) in remaining {
        info!("keeping {capability}: {reason}");
    }
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
    trim_heap();
    log_sources(&inputs.sources);
    Ok(inputs)
}

/// Returns free memory to the kernel. The start parses several megabytes of BTF that are not needed
/// afterwards, and the allocator would keep them.
fn trim_heap() {
    // SAFETY: malloc_trim returns free memory to the kernel and touches nothing that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
