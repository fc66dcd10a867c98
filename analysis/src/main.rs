//! wattcast-analysis: serve what runs cost.

use std::{
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
};

use analysis::{
    config::{Command, Config, Serve},
    serve::{Board, Loader},
    window::Probe,
};
use anyhow::Result;
use exporter::{program, server};
use tracing::info;

fn main() -> ExitCode {
    let Config { command: Command::Serve(config) } = match program::parse() {
        Ok(config) => config,
        Err(code) => return code,
    };
    program::log(&config.log_level);
    match serve(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wattcast-analysis: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: &Serve) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        info!("wattcast-analysis {}", program::version());
        let listeners = server::bind(&config.addresses()).await?;
        let board = Arc::new(Board::new(config.refresh));
        let (stop_loader, stopped) = mpsc::channel();
        let (ended, loader_ended) = tokio::sync::oneshot::channel::<()>();
        let loader = Loader::new(&config.results_dir, Probe::new(&config.probe_url));
        let publish = board.clone();
        thread::Builder::new().name("loader".into()).spawn(move || {
            let _ended = ended;
            loader.run(&publish, &stopped);
        })?;
        let outcome = server::serve(vec![(listeners, server::routes(board))], "loader", loader_ended).await;
        drop(stop_loader);
        Ok(outcome?)
    })
}
