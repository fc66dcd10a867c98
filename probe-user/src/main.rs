//! wattcast-probe: open everything as root, drop the privileges, sample, serve.

use std::{
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use exporter::{program, server};
use probe_user::{
    config::Config,
    privileges,
    routes::{self, Board},
    sampler::{Request, Sampler},
    start,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

/// Requests in flight when we are told to stop have this long to end.
const GRACE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let config: Config = match program::parse() {
        Ok(config) => config,
        Err(code) => return code,
    };
    program::log(config.log_level());
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wattcast-probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        info!("wattcast-probe {}", program::version());
        let listeners = server::bind(&config.addresses()).await?;
        let mut parts = start::open(config);
        let kept = privileges::drop_all(parts.cpu.as_mut()).context("cannot drop the privileges of the start")?;
        for (capability, reason) in kept {
            info!("keeping {capability}: {reason}");
        }
        for source in &parts.sources {
            match &source.state {
                Ok(()) => info!("{}: usable, {}", source.source, source.detail),
                Err(why) => warn!("{}: {why}", source.source),
            }
        }

        let (requests, asked) = mpsc::channel();
        let board = Arc::new(Board::new(config.tick(), config.compat(), requests.clone()));
        let (ended, sampler_ended) = tokio::sync::oneshot::channel::<()>();
        let publish = board.clone();
        let sampler = thread::Builder::new().name("sampler".into()).spawn(move || {
            // Dropped however the thread ends, so that the program never serves a dead sampler's last page for long.
            let _ended = ended;
            Sampler::new(parts).run(&asked, |snapshot| publish.publish(snapshot));
        })?;

        for address in server::addresses(&listeners) {
            info!("listening on http://{address}/");
        }
        let router = server::routes(board.clone()).merge(routes::routes(board));
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let serving = tokio::spawn(server::serve(listeners, router, move || {
            let mut stopped = stopped.clone();
            async move {
                // An error means that the sender is gone, which is as good a reason to stop.
                let _ = stopped.wait_for(|stopped| *stopped).await;
            }
        }));

        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let outcome = tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            _ = sampler_ended => Err(anyhow::anyhow!("the sampler ended by itself; this is a bug, please report the log above")),
        };
        info!("stopping");
        let _ = requests.send(Request::Stop);
        let _ = stop.send(true);
        match tokio::time::timeout(GRACE, serving).await {
            Ok(done) => done??,
            Err(_) => warn!("a request did not end in {} s; leaving it", GRACE.as_secs()),
        }
        outcome?;
        if sampler.join().is_err() {
            bail!("the sampler panicked");
        }
        Ok(())
    })
}
