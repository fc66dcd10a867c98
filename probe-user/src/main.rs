//! wattcast-probe: open everything as root, drop the privileges, sample, serve. Or record, account, or look at the machine.

use std::{
    io::{IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use exporter::{
    flags::Serving,
    layers::Own,
    log, program,
    server::{self, Port},
};
use probe_user::{
    accountant::Accountant,
    config::{Config, Job},
    doctor, exec,
    ledger::IdlePolicy,
    pages, privileges,
    recording::{Reader, Writer},
    routes::{self, Board, GpuPages, StatsPages},
    sampler::{Parts, Request, Sampler},
    scopes::Scopes,
    start,
    state::{Reason, SourceState, Unavailable},
};
use tracing::{info, warn};

/// What `doctor` ends with when energy can only be modelled.
const ONLY_MODELLED: u8 = 3;

fn main() -> ExitCode {
    let config: Config = match program::parse(Own::default()) {
        Ok((config, _)) => config,
        Err(code) => return code,
    };
    log::start(config.log_level(), config.log.format);
    if let Err(why) = config.check() {
        eprintln!("error: {why}");
        return ExitCode::from(program::EX_USAGE);
    }
    if config.file.check {
        return program::checked(checked(&config).map_err(|error| format!("{error:#}")));
    }
    let outcome = match config.job() {
        None => match config.serving() {
            Ok(serving) => serve(&config, &serving),
            Err(error) => return program::checked(Err(error.to_string())),
        },
        Some(Job::Record { file, time }) => record(&config, file, *time),
        Some(Job::Account { file }) => account(&config, file),
        Some(Job::Exec { json, output, price, currency, command }) => {
            let asked = exec::Asked { command, price: *price, currency };
            return match cost(&config, &asked, *json, output.as_deref()) {
                Ok(code) => code,
                Err(error) => {
                    eprintln!("wattcast-probe: {error:#}");
                    // As shells say it of a command that could not be started.
                    ExitCode::from(127)
                }
            };
        }
        Some(Job::Healthcheck { address }) => exporter::healthcheck::healthcheck(address).map_err(anyhow::Error::msg),
        Some(Job::Completions { shell }) => {
            program::completions::<Config>(*shell);
            Ok(())
        }
        Some(Job::Man { dir }) => program::manual::<Config>(dir.as_deref()).context("the manual pages"),
        Some(Job::Doctor { json }) => {
            let report = doctor::examine(&config);
            let text = if *json { report.json() } else { report.text() };
            // A reader that went away has read enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return if report.measures() { ExitCode::SUCCESS } else { ExitCode::from(ONLY_MODELLED) };
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wattcast-probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn cost(config: &Config, asked: &exec::Asked<'_>, json: bool, output: Option<&Path>) -> Result<ExitCode> {
    let mut file =
        output.map(|path| std::fs::File::create(path).with_context(|| path.display().to_string())).transpose()?;
    let cost = exec::run(&config.for_one_command(), asked)?;
    let text = if json { cost.json() } else { cost.text() };
    // The command has run, and its code is what counts; a report that cannot be written where it should is shown.
    let written = file.as_mut().map(|file| file.write_all(text.as_bytes()));
    match written {
        Some(Ok(())) => {}
        Some(Err(error)) => eprintln!("wattcast-probe: the report cannot be written: {error}\n{text}"),
        None => eprint!("{text}"),
    }
    Ok(ExitCode::from(u8::try_from(cost.exit_code).unwrap_or(1)))
}

/// Reads what the configuration names.
fn checked(config: &Config) -> Result<()> {
    config.serving()?;
    if let Some(file) = config.recording()? {
        Reader::open(file)?;
    }
    Ok(())
}

fn serve(config: &Config, serving: &Serving) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        info!("wattcast-probe {}", program::version());
        let listeners = server::bind(&config.addresses())?;
        let stats = server::bind(&config.stats_addresses())?;
        let gpus = server::bind(&config.gpu_addresses())?;
        let parts = open(config)?;
        if let Err(error) = serving.web.can_be_read_again() {
            warn!("{error}; it was read as root with all privileges, which are gone now, so it will not be read again when it changes");
        }

        let (requests, asked) = mpsc::channel();
        let board = Arc::new(Board::new(config.tick(), config.compat(), config.collectors(), requests.clone()));
        let (ended, sampler_ended) = tokio::sync::oneshot::channel::<()>();
        let publish = board.clone();
        let sampler = thread::Builder::new().name("sampler".into()).spawn(move || {
            // Dropped however the thread ends, so that the program never serves a dead sampler's last page for long.
            let _ended = ended;
            Sampler::new(parts).run(&asked, |snapshot| publish.publish(snapshot));
        })?;

        let usage = Port::new(stats, Arc::new(StatsPages(board.clone())));
        let gpus = Port::new(gpus, Arc::new(GpuPages(board.clone())));
        let all = Port { more: routes::routes(board.clone()), ..Port::new(listeners, board) };
        let outcome = server::serve(serving, vec![all, usage, gpus], "sampler", sampler_ended).await;
        let _ = requests.send(Request::Stop);
        outcome?;
        if sampler.join().is_err() {
            bail!("the sampler panicked");
        }
        Ok(())
    })
}

/// Opens everything, drops the privileges, and says how the sources stand.
fn open(config: &Config) -> Result<Parts> {
    let mut opened = start::open(config)?;
    let scopes = config.scopes();
    let (cpu, jobs) = opened.kernel_side();
    let kept = privileges::drop_all(cpu, jobs).context("cannot drop the privileges of the start")?;
    for (capability, reason) in kept {
        info!("keeping {capability}: {reason}");
    }
    let mut parts = opened.start();
    if let Some(scopes) = scopes {
        let detail = scopes.as_ref().map(Scopes::detail).unwrap_or_default();
        let state = scopes.and_then(|scopes| {
            scopes.start().map_err(|error| Unavailable::new(Reason::Broken, format!("no thread for scopes: {error}")))
        });
        parts.sources.push(SourceState { source: "scopes", state, detail, wanted: true });
    }
    give_back_memory();
    say(&parts.sources);
    Ok(parts)
}

fn say(sources: &[SourceState]) {
    for source in sources {
        match &source.state {
            Ok(()) => info!("{}: usable, {}", source.source, source.detail),
            Err(why) => warn!("{}: {why}", source.source),
        }
    }
}

/// Keeps raw ticks until a signal or for a time. Names of containers are asked for on the runtime, which runs meanwhile.
fn record(config: &Config, file: &Path, time: Option<Duration>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = mpsc::channel();
    runtime.block_on(async {
        let (mut instruments, sources) = start::instruments(config);
        // The file belongs to whoever starts us, so it is made before the privileges go.
        let mut writer = Writer::create(file, &instruments.setup())?;
        let (cpu, jobs) = instruments.kernel_side();
        privileges::drop_all(cpu, jobs).context("cannot drop the privileges of the start")?;
        say(&sources);
        let mut accountant = Accountant::new(instruments.setup(), IdlePolicy::Separate, 0);
        let (tick, start) = (config.tick(), Instant::now());
        let worker = thread::Builder::new().name("recorder".into()).spawn(move || -> Result<u32> {
            let (mut collectors, mut due, mut ticks) = (Vec::new(), Instant::now(), 0);
            let watched = std::io::stderr().is_terminal();
            loop {
                let raw = instruments.read(accountant.ran(), &mut collectors);
                writer.write(raw)?;
                // What ran decides which cgroups' slots can be freed.
                accountant.tick(raw);
                ticks += 1;
                if watched {
                    eprint!("\r  {ticks} ticks, {:.0} s ", start.elapsed().as_secs_f64());
                }
                due += tick;
                let wait = due.saturating_duration_since(Instant::now());
                let told = !matches!(stopped.recv_timeout(wait), Err(mpsc::RecvTimeoutError::Timeout));
                if told || time.is_some_and(|time| start.elapsed() >= time) {
                    break;
                }
            }
            if watched {
                eprintln!();
            }
            Ok(writer.finish()?)
        })?;
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let ended = async {
            while !worker.is_finished() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
            () = ended => {}
        }
        let _ = stop.send(());
        let ticks = worker.join().map_err(|_| anyhow::anyhow!("the recorder panicked"))??;
        eprintln!("{}: {ticks} ticks", file.display());
        Ok(())
    })
}

/// Runs the ledger over a recording and prints where it ends.
fn account(config: &Config, file: &Path) -> Result<()> {
    let mut reader = Reader::open(file)?;
    let mut accountant = Accountant::new(reader.setup().clone(), config.rules(), 0);
    let mut last = None;
    let torn = loop {
        match reader.next_tick() {
            Ok(Some(tick)) => last = Some(accountant.tick(&tick)),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    let Some(snapshot) = last else { bail!("{}: no tick in it", file.display()) };
    let page = pages::account(&snapshot)?;
    std::io::stdout().write_all(page.text())?;
    match torn {
        None => Ok(()),
        Some(error) => Err(error).context("the account above ends early"),
    }
}

/// The start reads the kernel's BTF, several megabytes that are never needed again; the allocator would keep them.
fn give_back_memory() {
    // SAFETY: malloc_trim returns free memory to the kernel and touches nothing that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
