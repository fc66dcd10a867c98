//! The default command: sample and serve until a signal.

#![allow(unsafe_code)]

use std::{
    sync::{Arc, mpsc},
    thread,
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
    runtime.block_on(async {
        info!("wattcast-probe {}", program::version());
        let listeners = server::bind(&config.addresses())?;
        let stats = server::bind(&config.stats_addresses())?;
        let gpus = server::bind(&config.gpu_addresses())?;
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

        let usage = Port::new(stats, Arc::new(StatsPages(published.clone())));
        let gpus = Port::new(gpus, Arc::new(GpuPages(published.clone())));
        let all = Port { extra_routes: routes::routes(published.clone()), ..Port::new(listeners, published) };
        let outcome = server::serve(serving, vec![all, usage, gpus], "sampler", sampler_ended).await;
        let _ = requests.send(Request::Stop);
        outcome?;
        if sampler.join().is_err() {
            bail!("the sampler panicked");
        }
        Ok(())
    })
}

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
