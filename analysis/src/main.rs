//! wattcast-analysis: what runs used, what it was worth, what it cost.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, mpsc},
};

use analysis::{
    advise::{self, Question},
    alerts::{Book as AlertBook, post::Posts},
    backfill::{self, Target},
    config::{Advise, Backfill, Command, Config, Serve},
    cost::{Origin, Prices, budget},
    energy::{Answer, OnHost, Round, probe::Probe},
    figures,
    follow::{Follower, Live},
    run::Run,
    serve::{Given, Loader, Sheets, spawn},
    store::shelf::Shelf,
    streams::{
        book::Book,
        names::Known,
        nginx::Nginx,
        receive::{self, Inlet},
        record::{Price, Record},
        watch::{self, Watch},
    },
};
use anyhow::{Context as _, Result, bail};
use arc_swap::ArcSwap;
use exporter::{
    program,
    server::{self, Port},
};
use tracing::{info, warn};

fn main() -> ExitCode {
    let Config { command } = match program::parse() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let outcome = match &command {
        Command::Serve(config) => {
            program::log(&config.log_level);
            serve(config)
        }
        Command::Advise(config) => {
            program::log("error");
            advise(config)
        }
        Command::Backfill(config) => {
            program::log("error");
            backfill(config)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wattcast-analysis: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: &Serve) -> Result<()> {
    let setup = config.shared.setup()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        info!("wattcast-analysis {}", program::version());
        let listeners = server::bind(&config.addresses()).await?;
        let qoe = server::bind(&config.qoe_addresses()).await?;
        let cost = server::bind(&config.cost_addresses()).await?;
        say_defaults(&setup.prices);
        let home = config.external_url.clone().unwrap_or_else(|| {
            let address = server::addresses(&listeners).first().map(ToString::to_string);
            format!("http://{}/", address.unwrap_or_else(|| "127.0.0.1:9502".to_owned()))
        });
        let (mut ports, mut stops) = streams(config, setup.nearest, &setup.prices).await?;
        let sheets = Arc::new(Sheets::default());
        let live = Arc::new(ArcSwap::from_pointee(Live::default()));
        let follower = Follower {
            source: setup.carbon,
            budgets: setup.budgets,
            prices: setup.prices.clone(),
            database: setup.sources.database.clone(),
            probes: setup.sources.probes.iter().map(OnHost::named).collect(),
            hours: budget::Known::default(),
        };
        let given = Given {
            sources: setup.sources,
            prices: setup.prices,
            scope: setup.scope,
            targets: setup.targets,
            rules: setup.rules,
            posts: Posts::start(&setup.webhooks, &home, config.alerts_state.as_deref()).context("webhook")?,
            book: AlertBook::open(config.alerts_state.as_deref()),
            stale: config.stale,
        };
        let loader = Loader::new(&config.shared.results_dir, config.keep, config.scenarios, config.ttl, given);
        let (ended, loader_ended) = tokio::sync::oneshot::channel::<()>();
        let (shown, read) = (sheets.clone(), live.clone());
        stops.push(spawn("loader", move |stop| {
            let _ended = ended;
            loader.run(&shown, &read, stop);
        })?);
        let (gone, follower_ended) = tokio::sync::oneshot::channel::<()>();
        stops.push(spawn("follower", move |stop| {
            let _gone = gone;
            follower.run(&live, stop);
        })?);
        ports.insert(0, Port::new(listeners, server::routes(sheets.results.clone())));
        ports.push(Port::new(qoe, server::routes(sheets.qoe.clone())));
        ports.push(Port::new(cost, server::routes(sheets.cost.clone())));
        let ended = async {
            tokio::select! {
                _ = loader_ended => {}
                _ = follower_ended => {}
            }
        };
        let outcome = server::serve(ports, "loader or follower", ended).await;
        drop(stops);
        Ok(outcome?)
    })
}

/// A price that nobody gave is said to be none of the user's, before it is on any page.
fn say_defaults(prices: &Prices) {
    if prices.energy_origin == Origin::Default {
        info!(
            "no price of energy was given; costs are at the default of {} {} for a kilowatt hour (--energy.price)",
            prices.energy_now(jiff::Timestamp::now()),
            prices.currency
        );
    }
    if prices.core_hour.origin == Origin::Default {
        info!(
            "no price of CPU time was given; costs are at the default of {} {} for a core for an hour (--cpu.price)",
            prices.core_hour.amount, prices.currency
        );
    }
}

fn advise(config: &Advise) -> Result<()> {
    let setup = config.shared.setup()?;
    let mut shelf = Shelf::new(&config.shared.results_dir, config.keep, usize::MAX);
    shelf.look();
    if shelf.runs().is_empty() {
        bail!("{}", shelf.problems().join("\n"));
    }
    for problem in shelf.problems() {
        eprintln!("{problem}");
    }
    let mut round = Round::default();
    let mut asked = |run: &Arc<Run>| {
        let ask = |scenario| setup.sources.ask(run, scenario, &Answer::default(), &mut round);
        (run.clone(), run.scenarios.iter().map(ask).collect())
    };
    let runs: Vec<_> = shelf.runs().iter().map(|(_, run)| asked(run)).collect();
    let model = figures::model(&runs, setup.scope, &setup.prices);
    let question = Question {
        vmaf: config.vmaf,
        resolution: config.resolution.clone(),
        objective: config.objective,
        streams: config.streams,
    };
    let default = [setup.prices.energy_origin, setup.prices.core_hour.origin].contains(&Origin::Default);
    let advice = advise::advise(&model, &question, &setup.prices.currency, default);
    if config.json {
        println!("{}", serde_json::to_string_pretty(&advice)?);
    } else {
        print!("{}", advice.table());
    }
    Ok(())
}

fn backfill(config: &Backfill) -> Result<()> {
    let mut setup = config.shared.setup()?;
    if !setup.probe_is_named {
        // Nobody said that there is one; runs of last year wait for no probe.
        setup.sources.probes.clear();
    }
    let mut out = std::io::stdout().lock();
    let mut target = if config.dry_run { Target::Text(&mut out) } else { Target::database(&setup.database)? };
    let done = backfill::backfill(&config.shared.results_dir, &setup, &mut target)?;
    eprintln!("{} runs, {} samples written; {} files passed over", done.runs, done.samples, done.skipped);
    if done.open > 0 {
        bail!(
            "{} scenarios were left out: a probe or database that may know their joules did not answer; run this again when it does",
            done.open
        );
    }
    Ok(())
}

/// Opens every way in for streams, and starts the threads that show them; those end when what is given with the ports is dropped.
async fn streams(config: &Serve, probe: Probe, prices: &Prices) -> Result<(Vec<Port>, Vec<mpsc::Sender<()>>)> {
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
    let price = Price::new(prices);
    let record = config.record().map(|path| Record::open(&path, price));
    let router = server::routes(ffmpeg.clone()).merge(receive::routes(inlet.clone()));
    // A stream holds a connection for as long as it lasts, and scrapers must find room beside them.
    let ports = vec![
        Port { most: config.streams.saturating_add(128), ..Port::new(taken, router) },
        Port::new(server::bind(&config.nginx_addresses()).await?, server::routes(nginx.clone())),
    ];
    let watcher = Watch::new(inlet, probe, record);
    let stop_watch = spawn("streams", move |stop| watcher.run(&ffmpeg, stop))?;
    let (server, shown, every) = (Nginx::new(&config.nginx), config.stream_label, config.nginx_interval);
    let stop_nginx = spawn("nginx", move |stop| watch::nginx(&server, shown, every, &nginx, stop))?;
    Ok((ports, vec![stop_watch, stop_nginx]))
}
