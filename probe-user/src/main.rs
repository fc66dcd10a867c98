//! wattcast-probe: open everything as root, drop the privileges, sample, serve.

use std::{
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
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
use tracing::{info, warn};

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
        give_back_memory();
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

        let router = server::routes(board.clone()).merge(routes::routes(board));
        let outcome = server::serve(listeners, router, "sampler", sampler_ended).await;
        let _ = requests.send(Request::Stop);
        outcome?;
        if sampler.join().is_err() {
            bail!("the sampler panicked");
        }
        Ok(())
    })
}

/// The start reads the kernel's BTF, several megabytes that are never needed again; the allocator would keep them.
fn give_back_memory() {
    // SAFETY: malloc_trim returns free memory to the kernel and touches nothing that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
