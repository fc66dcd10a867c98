//! wattcast-analysis: what runs used, what it was worth, what it cost.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use analysis::{
    advise::{self, Question},
    alerts::{
        Book as AlertBook,
        post::{self as posts, Posts},
    },
    backfill::{self, Target},
    compare::{Verdict, compare as compare_models},
    config::{Advise, Backfill, Check, Command, Compare, Config, Report, Serve},
    cost::{Origin, Prices, budget},
    energy::{Answer, OnHost, Round, Scope},
    figures::{self, Model},
    follow::{Follower, Live},
    health::{
        compare::{Side, compare},
        notices::{self, Notices},
        page as health_page, report as health_report,
        round::{Plan, Round as Looks},
        target::Ours,
    },
    report,
    run::Run,
    runner::{self, Early, End, flags::Run as RunFlags},
    serve::{Given, Loader, Sheets, spawn},
    settings::{self, OWN, Setup},
    sheet::Sheet,
    store::{self, shelf::Shelf},
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
    file::read_whole,
    flags::Serving,
    log::{self, LogFormat},
    program,
    server::{self, Port},
};
use serde_json::Value;
use toml::Table;
use tracing::{info, warn};
use ureq::http::Uri;

fn main() -> ExitCode {
    let (Config { command }, file) = match program::parse(OWN) {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    let quiet = || log::start("error", LogFormat::Logfmt);
    let outcome = match &command {
        Command::Serve(config) => {
            log::start(&config.log.level, config.log.format);
            if config.shared.file.check {
                return program::checked(checked(config, &file).map_err(|error| format!("{error:#}")));
            }
            match opened(config, &file) {
                Ok(opened) => serve(config, opened),
                Err(error) => return program::checked(Err(format!("{error:#}"))),
            }
        }
        Command::Advise(Advise { shared, .. }) | Command::Backfill(Backfill { shared, .. }) if shared.file.check => {
            return program::checked(shared.setup(&file).map(|_| ()).map_err(|error| format!("{error:#}")));
        }
        Command::Run(asked) if asked.shared.file.check => {
            let plan = || asked.plan().map_err(|why| format!("the command line: {why}"));
            return program::checked(
                asked.shared.setup(&file).map_err(|error| format!("{error:#}")).and_then(|_| plan()).map(|_| ()),
            );
        }
        Command::Advise(config) => {
            quiet();
            advise(config, &file)
        }
        Command::Backfill(config) => {
            quiet();
            backfill(config, &file)
        }
        Command::Run(config) => {
            quiet();
            return match run(config, &file) {
                Ok(end) => end.code(),
                Err(early) => {
                    eprintln!("wattcast-analysis: {early}");
                    early.end.code()
                }
            };
        }
        Command::Compare(config) => {
            quiet();
            match compare_runs(config, &file) {
                Ok(code) => return code,
                // Not that something became worse.
                Err(error) => return program::checked(Err(format!("{error:#}"))),
            }
        }
        Command::Report(config) => {
            quiet();
            report_run(config, &file)
        }
        Command::Check(config) => {
            log::start(if config.debug { "debug" } else { "error" }, LogFormat::Logfmt);
            let plan = match to_check(config, &file) {
                Ok(plan) => plan,
                // Not that something is unhealthy.
                Err(error) => return program::checked(Err(format!("{error:#}"))),
            };
            if config.shared.file.check {
                return program::checked(usable(&plan).map_err(|error| format!("{error:#}")));
            }
            match check(config, &plan) {
                Ok(true) => Ok(()),
                Ok(false) => return ExitCode::FAILURE,
                // Nor is what cannot be read lost.
                Err(error) => return program::checked(Err(format!("{error:#}"))),
            }
        }
        Command::Healthcheck { address } => exporter::healthcheck::healthcheck(address).map_err(anyhow::Error::msg),
        Command::Completions { shell } => {
            program::completions::<Config>(*shell);
            Ok(())
        }
        Command::Man { dir } => program::manual::<Config>(dir.as_deref()).context("the manual pages"),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wattcast-analysis: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that the configuration names, read and put together; nothing is asked or bound yet.
fn opened(config: &Serve, file: &Table) -> Result<(Setup, Serving)> {
    let setup = config.shared.setup(file)?;
    let serving = config.web.open()?;
    plan(config, &setup, &serving, Vec::new())?;
    config.token().context("the token for posts of progress (--ffmpeg.token-file, FFMPEG_PROGRESS_TOKEN)")?;
    posts::usable(&setup.webhooks).context("webhook")?;
    Nginx::new(&config.nginx).context("--nginx.url")?;
    Ok((setup, serving))
}

/// What of the configuration would only be found while it is used.
fn checked(config: &Serve, file: &Table) -> Result<()> {
    let (setup, serving) = opened(config, file)?;
    usable(&plan(config, &setup, &serving, Vec::new())?)
}

fn usable(plan: &Plan) -> Result<()> {
    match Looks::new(plan).troubles().as_slice() {
        [] => Ok(()),
        troubles => bail!("{}", troubles.join("\n")),
    }
}

/// What the health checker looks at; `addresses` are those of our own ports, as far as they are known.
fn plan(config: &Serve, setup: &Setup, serving: &Serving, addresses: Vec<(u16, SocketAddr)>) -> Result<Plan> {
    let client = &config.shared.client;
    let ours = Ours {
        probes: setup.probes.clone(),
        telemetry: serving.telemetry_path.clone(),
        addresses,
        // A certificate is for a name.
        host: config.external_url.as_deref().and_then(|url| host_of(url, serving.web.scheme())),
        ..Ours::usual(serving.web.scheme(), &client.access())
    };
    let mut plan = settings::plan(&config.health, setup, client, &ours)?;
    // Its page is as old as the last time that nginx was asked.
    for target in plan.targets.iter_mut().filter(|target| target.name == "nginx-exporter") {
        target.max_age = target.max_age.max(config.nginx_interval * 3);
    }
    Ok(plan)
}

/// The host of a URL with this scheme.
fn host_of(url: &str, scheme: &str) -> Option<String> {
    let url: Uri = url.parse().ok()?;
    url.host().filter(|_| url.scheme_str() == Some(scheme)).map(str::to_owned)
}

fn serve(config: &Serve, (setup, serving): (Setup, Serving)) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        info!("wattcast-analysis {}", program::version());
        let listeners = server::bind(&config.addresses())?;
        let qoe = server::bind(&config.qoe_addresses())?;
        let cost = server::bind(&config.cost_addresses())?;
        let health = server::bind(&config.health_addresses())?;
        say_defaults(&setup.prices);
        let home = config.external_url.clone().unwrap_or_else(|| {
            let address = server::addresses(&listeners).first().map(ToString::to_string);
            format!("{}://{}/", serving.web.scheme(), address.unwrap_or_else(|| "127.0.0.1:9502".to_owned()))
        });
        let (mut ports, mut stops) = streams(config, &setup, serving.web.is_guarded()).await?;
        let mut addresses = Vec::new();
        let taken =
            [(9502, &listeners), (9503, &qoe), (9504, &cost), (9506, &ports[0].listeners), (9728, &ports[1].listeners)];
        for (usual, listeners) in taken {
            addresses.extend(server::addresses(listeners).first().map(|address| (usual, *address)));
        }
        let plan = plan(config, &setup, &serving, addresses)?;
        let looks = Looks::new(&plan);
        let sheets = Arc::new(Sheets::new(config.compat()));
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
            compat: config.compat(),
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
        let health_sheet = Arc::new(Sheet::new(
            "wattcast-analysis: health",
            "Whether every exporter of the stack can be reached, is complete, and shows data of now.",
            &["health"],
            config.compat(),
            plan.interval * 3 + plan.longest() + Duration::from_secs(120),
        ));
        for job in &plan.left_out {
            info!("a job of the scrape configuration is not looked at: {job}");
        }
        let (shown, notices) = (health_sheet.clone(), Notices::default());
        let told = notices.clone();
        let (over, health_ended) = tokio::sync::oneshot::channel::<()>();
        stops.push(spawn("health", move |stop| {
            let _over = over;
            health_page::run(looks, plan.interval, &told, &shown, stop);
        })?);
        ports.insert(0, Port::new(listeners, sheets.results.clone()));
        ports.push(Port::new(qoe, sheets.qoe.clone()));
        ports.push(Port::new(cost, sheets.cost.clone()));
        ports.push(Port { more: notices::routes(notices), ..Port::new(health, health_sheet) });
        let ended = async {
            tokio::select! {
                _ = loader_ended => {}
                _ = follower_ended => {}
                _ = health_ended => {}
            }
        };
        let outcome = server::serve(&serving, ports, "loader, follower or health checker", ended).await;
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

/// What `check` looks at, and how.
fn to_check(config: &Check, file: &Table) -> Result<Plan> {
    let setup = config.shared.setup(file)?;
    let access = config.shared.client.access();
    // The service is reached as the probe is, unless its authorities say that both are behind TLS.
    let secure = access.ca_file.is_some() || setup.probes.first().is_some_and(|(_, url, _)| url.starts_with("https"));
    let mut ours = Ours::usual(if secure { "https" } else { "http" }, &access);
    if setup.probe_is_named {
        ours.probes.clone_from(&setup.probes);
    }
    settings::plan(&config.health, &setup, &config.shared.client, &ours)
}

/// On standard output; a reader that went away has read enough.
fn say(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// True when all is well.
fn check(config: &Check, plan: &Plan) -> Result<bool> {
    let access = config.shared.client.access();
    if let [old, new] = &*config.compare {
        let side = |text: &String| Side::new(text, &access, config.health.timeout).map_err(anyhow::Error::msg);
        let (old, new) = (side(old)?, side(new)?);
        eprintln!("comparing over {:.0} s", config.over.as_secs_f64());
        let comparison = compare(&old, &new, config.over).map_err(anyhow::Error::msg)?;
        let json = || serde_json::to_string(&comparison).map(|text| text + "\n");
        say(&if config.json { json()? } else { comparison.table() });
        return Ok(comparison.complete);
    }
    let (began, mut round) = (Instant::now(), Looks::new(plan));
    round.look(|pause| {
        eprintln!("looking again in {:.0} s, whether values move", pause.as_secs_f64());
        std::thread::sleep(pause);
        false
    });
    while round.is_unproven() && began.elapsed() < config.wait {
        eprintln!("not everything has moved yet; looking again, for {:.0} s at most", config.wait.as_secs_f64());
        std::thread::sleep(Duration::from_secs(5).min(config.wait));
        round.look_again();
    }
    if config.json {
        say(&(health_report::json(&round)? + "\n"));
    } else {
        let left_out = plan.left_out.iter().map(|job| format!("not looked at: {job}\n"));
        say(&(health_report::table(&round) + &left_out.collect::<String>()));
    }
    Ok(health_report::is_well(&round))
}

fn advise(config: &Advise, file: &Table) -> Result<()> {
    let setup = config.shared.setup(file)?;
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
    let json = || serde_json::to_string_pretty(&advice).map(|text| text + "\n");
    say(&if config.json { json()? } else { advice.table() });
    Ok(())
}

fn run(asked: &RunFlags, file: &Table) -> Result<End, Early> {
    let setup = asked.shared.setup(file).map_err(|error| Early::new(End::Usage, format!("{error:#}")))?;
    runner::run(asked, &setup.nearest, &setup.prices)
}

/// A result file as one model, its joules from wherever they are to be had.
fn model_of(path: &Path, setup: &Setup, named: bool) -> Result<(Model, Value)> {
    let bytes = read_whole(path, store::MAX_FILE).with_context(|| path.display().to_string())?.into_bytes();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let id = stem.strip_prefix("test_results_").unwrap_or(&stem);
    let run = store::parse(id, &bytes).map_err(anyhow::Error::msg).with_context(|| path.display().to_string())?;
    for problem in &run.problems {
        eprintln!("{}: {problem}", path.display());
    }
    let (run, mut round) = (Arc::new(run), Round::default());
    let answers =
        run.scenarios.iter().map(|one| setup.sources.ask(&run, one, &Answer::default(), &mut round)).collect();
    // The encoder's own joules, where they are known and nobody asks for others: the host's hold everybody's.
    let scope = if named { setup.scope } else { Scope::Container };
    let model = figures::model(&[(run, answers)], scope, &setup.prices);
    Ok((model, serde_json::from_slice(&bytes)?))
}

/// What `compare` ends with when nothing became worse, as far as it could be compared, and not all could.
const NOT_COMPARED: u8 = 3;

fn compare_runs(config: &Compare, file: &Table) -> Result<ExitCode> {
    let setup = config.shared.setup(file)?;
    let (first, second) = {
        let named = config.shared.scope.is_some();
        (model_of(&config.first, &setup, named)?.0, model_of(&config.second, &setup, named)?.0)
    };
    let found = compare_models(&first, &second, &config.metrics, config.threshold);
    let text = if config.json { serde_json::to_string_pretty(&found)? + "\n" } else { found.table() };
    // A reader that went away has read enough.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    let nothing = found.rows.iter().all(|row| row.verdict == Verdict::Unknown);
    Ok(ExitCode::from(if found.count(Verdict::Worse) > 0 {
        1
    } else if nothing || found.is_incomplete() && !config.allow_missing {
        NOT_COMPARED
    } else {
        0
    }))
}

fn report_run(config: &Report, file: &Table) -> Result<()> {
    let setup = config.shared.setup(file)?;
    let path = match &config.file {
        Some(path) => path.clone(),
        None => {
            let mut all = store::list(&config.shared.results_dir)?;
            let newest = if all.is_empty() { None } else { Some(all.remove(0)) };
            newest.context("there is no result file yet")?.path
        }
    };
    let (model, value) = model_of(&path, &setup, config.shared.scope.is_some())?;
    let page = report::html(&model, &value, &setup.prices);
    match &config.output {
        Some(output) if output.as_os_str() == "-" => std::io::stdout().lock().write_all(page.as_bytes())?,
        output => {
            let to = output.clone().unwrap_or_else(|| path.with_extension("html"));
            runner::publish(&to, page.as_bytes()).with_context(|| to.display().to_string())?;
            println!("{}", to.display());
        }
    }
    Ok(())
}

fn backfill(config: &Backfill, file: &Table) -> Result<()> {
    let mut setup = config.shared.setup(file)?;
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
async fn streams(config: &Serve, setup: &Setup, guarded: bool) -> Result<(Vec<Port>, Vec<mpsc::Sender<()>>)> {
    let [ffmpeg, nginx] = watch::sheets(config.nginx_interval, config.compat());
    let taken = server::bind(&config.ffmpeg_addresses())?;
    let book = Arc::new(Mutex::new(Book::new(config.streams, config.retain)));
    let token =
        config.token().context("the token for posts of progress (--ffmpeg.token-file, FFMPEG_PROGRESS_TOKEN)")?;
    let inlet = Inlet::new(book, Known::default(), token.as_deref());
    if token.is_none() {
        for address in server::addresses(&taken) {
            if guarded && !address.ip().is_loopback() {
                warn!(
                    "no datagrams of progress on {address}: they carry no password, and everybody else has to; posts do, and ffmpeg on this machine may use 127.0.0.1"
                );
                continue;
            }
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
    let price = Price::new(&setup.prices);
    let record = config.record().map(|path| Record::open(&path, price));
    let of_ffmpeg = Port::new(taken, ffmpeg.clone());
    let ports = vec![
        Port {
            more: receive::routes(inlet.clone()),
            // With a token of their own, posts need no user besides: ffmpeg takes one of the two in its URL.
            own: if token.is_some() { &["/progress"] } else { &[] },
            // A stream holds a connection for as long as it lasts, and scrapers must find room beside them.
            most: of_ffmpeg.most.saturating_add(config.streams),
            ..of_ffmpeg
        },
        Port::new(server::bind(&config.nginx_addresses())?, nginx.clone()),
    ];
    let watcher = Watch::new(inlet, setup.nearest.clone(), record);
    let stop_watch = spawn("streams", move |stop| watcher.run(&ffmpeg, stop))?;
    let (server, shown, every) = (Nginx::new(&config.nginx)?, config.stream_label, config.nginx_interval);
    let stop_nginx = spawn("nginx", move |stop| watch::nginx(&server, shown, every, &nginx, stop))?;
    Ok((ports, vec![stop_watch, stop_nginx]))
}
