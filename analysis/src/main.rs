//! wattcast-analysis: serve what runs cost.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, mpsc},
    thread,
};

use analysis::{
    config::{Command, Config, Serve},
    serve::{self, Loader},
    streams::{
        book::Book,
        names::Known,
        nginx::Nginx,
        receive::{self, Inlet},
        record::{Price, Record},
        watch::{self, Watch},
    },
    window::Probe,
};
use anyhow::{Context as _, Result};
use exporter::{
    program,
    server::{self, Port},
};
use tracing::{info, warn};

fn main() -> ExitCode {
    let Config { command: Command::Serve(config) } = match program::parse() {
        Ok(config) => config,
        Err(code) => return code,
    };
    program::log(&config.log_level);
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wattcast-analysis: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Serve) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        info!("wattcast-analysis {}", program::version());
        let listeners = server::bind(&config.addresses()).await?;
        let (mut ports, stops) = streams(config).await?;
        let sheet = Arc::new(serve::sheet(config.refresh));
        let (stop_loader, stopped) = mpsc::channel();
        let (ended, loader_ended) = tokio::sync::oneshot::channel::<()>();
        let loader = Loader::new(&config.results_dir, Probe::new(&config.probe_url), config.refresh);
        let publish = sheet.clone();
        thread::Builder::new().name("loader".into()).spawn(move || {
            let _ended = ended;
            loader.run(&publish, &stopped);
        })?;
        ports.insert(0, Port::new(listeners, server::routes(sheet)));
        let outcome = server::serve(ports, "loader", loader_ended).await;
        drop((stop_loader, stops));
        Ok(outcome?)
    })
}

/// Opens every way in for streams, and starts the threads that show them; those end when what is given with the ports is dropped.
async fn streams(config: &Serve) -> Result<(Vec<Port>, Vec<mpsc::Sender<()>>)> {
    let [ffmpeg, nginx] = watch::sheets(config.nginx_interval);
    let taken = server::bind(&config.ffmpeg_addresses()).await?;
    let book = Arc::new(Mutex::new(Book::new(config.streams, config.retain)));
    let token =
        config.token().context("the token for posts of progress (--ffmpeg.token-file, FFMPEG_PROGRESS_TOKEN)")?;
    let inlet = Inlet::new(book, Known::default(), token.as_deref());
    if token.is_none() {
        for address in server::addresses(&taken) {
            let socket = tokio::net::UdpSocket::bind(address).await.with_context(|| {
                format!("cannot take datagrams on {address}; choose another port with --ffmpeg.port")
            })?;
            info!("taking datagrams of progress on udp://{address}");
            let inlet = inlet.clone();
            tokio::spawn(async move {
                if let Err(error) = receive::datagrams(socket, inlet).await {
                    warn!("no datagrams of progress any more: {error}");
                }
            });
        }
    }
    if let Some(path) = &config.socket {
        receive::unix(path, inlet.clone()).with_context(|| format!("cannot listen on {}", path.display()))?;
    }
    for pipe in &config.pipes {
        receive::fifo(pipe, inlet.clone()).with_context(|| format!("cannot read the pipe {}", pipe.path.display()))?;
    }
    let price = Price { per_kwh: config.price, currency: config.currency.clone() };
    let record = config.record().map(|path| Record::open(&path, price));
    let router = server::routes(ffmpeg.clone()).merge(receive::routes(inlet.clone()));
    // A stream holds a connection for as long as it lasts, and scrapers must find room beside them.
    let ports = vec![
        Port { most: config.streams.saturating_add(128), ..Port::new(taken, router) },
        Port::new(server::bind(&config.nginx_addresses()).await?, server::routes(nginx.clone())),
    ];
    let watcher = Watch::new(inlet, Probe::new(&config.probe_url), record);
    let (stop_watch, stopped_watch) = mpsc::channel();
    thread::Builder::new().name("streams".into()).spawn(move || watcher.run(&ffmpeg, &stopped_watch))?;
    let (server, shown, every) = (Nginx::new(&config.nginx), config.stream_label, config.nginx_interval);
    let (stop_nginx, stopped_nginx) = mpsc::channel();
    thread::Builder::new()
        .name("nginx".into())
        .spawn(move || watch::nginx(&server, shown, every, &nginx, &stopped_nginx))?;
    Ok((ports, vec![stop_watch, stop_nginx]))
}
