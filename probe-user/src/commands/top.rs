//! `top`: the terminal view of a running probe, or of this machine where no probe runs.

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ::top::{ProbeSource, Source, SourceError, terminal};
use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::Config,
    endpoints::routes::Published,
    host::privileges,
    sampler::{Request, Sampler},
    start,
};

/// Containers that are listed; the rest is a sum.
const CONTAINERS: usize = 100;
/// Time for the view and the sampler to end after a signal.
const STOP_TIMEOUT: Duration = Duration::from_millis(400);
/// Time in addition to two ticks for the first figures of `--once`: opening takes a while.
const FIRST_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of checks for the end of a thread.
const STEP: Duration = Duration::from_millis(20);

/// What to show.
#[derive(Clone, Copy, Debug)]
pub struct TopRequest<'a> {
    /// The probe; `None` for the one at the configured address, if there is one.
    pub url: Option<&'a str>,
    /// Print one table instead of the view.
    pub once: bool,
    /// Print one answer as JSON instead of the view.
    pub json: bool,
    /// Time between two requests.
    pub interval: Duration,
}

/// Shows the view until a key or a signal ends it.
///
/// # Errors
/// When the URL is invalid, the privileges cannot be dropped, the terminal cannot be used, or there
/// is no answer to print.
pub fn run(config: &Config, request: &TopRequest<'_>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(show(config, request));
    // A file read that hangs must not delay the end.
    runtime.shutdown_background();
    outcome
}

/// Names of containers are requested on the runtime meanwhile.
async fn show(config: &Config, request: &TopRequest<'_>) -> Result<()> {
    let once = request.once || request.json || !terminal::is_interactive();
    let url = request.url.map_or_else(|| address(config), str::to_owned);
    let probe = ProbeSource::new(&url)?;
    let local = request.url.is_none() && (config.recording()?.is_some() || probe.is_absent());
    let sampler = if local {
        Some(LocalSampler::start(config)?)
    } else {
        privileges::drop_all(None::<fn() -> bool>).context("cannot drop the privileges of the start")?;
        None
    };
    let source: Box<dyn Source> = match &sampler {
        Some(sampler) => Box::new(sampler.source(once)),
        None => Box::new(probe),
    };

    let stop = Arc::new(AtomicBool::new(false));
    let (json, interval, stopped) = (request.json, request.interval, stop.clone());
    let view = thread::Builder::new().name("terminal".into()).spawn(move || -> Result<()> {
        if once { print(source, json) } else { Ok(terminal::run(source, interval, &stopped)?) }
    })?;
    wait_for_end(&view).await?;
    stop.store(true, Ordering::Relaxed);
    wait(&view).await;
    let ended = view.is_finished();
    if !ended && !once {
        // A terminal that has gone keeps the thread in a read.
        terminal::restore();
    }
    if let Some(sampler) = sampler {
        sampler.stop().await;
    }
    match (ended, once) {
        (true, _) => view.join().map_err(|_| anyhow::anyhow!("the view panicked"))?,
        (false, true) => bail!("a signal ended it before the first answer"),
        (false, false) => Ok(()),
    }
}

/// Returns at the end of the thread, or at a signal to end.
async fn wait_for_end(view: &JoinHandle<Result<()>>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let ended = async {
        while !view.is_finished() {
            tokio::time::sleep(STEP).await;
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
        () = ended => {}
    }
    Ok(())
}

/// Waits for the end of a thread, at most for [`STOP_TIMEOUT`].
async fn wait<T>(thread: &JoinHandle<T>) {
    let deadline = Instant::now() + STOP_TIMEOUT;
    while !thread.is_finished() && Instant::now() < deadline {
        tokio::time::sleep(STEP).await;
    }
}

fn print(mut source: Box<dyn Source>, json: bool) -> Result<()> {
    let text = terminal::print_once(&mut *source, json)?;
    match io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// The URL of the probe with this configuration.
fn address(config: &Config) -> String {
    let listening = config.addresses().first().map_or(SocketAddr::from(([127, 0, 0, 1], 9500)), |address| address.0);
    let host = match listening.ip() {
        IpAddr::V4(any) if any.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(any) if any.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        host => host,
    };
    format!("http://{}", SocketAddr::new(host, listening.port()))
}

/// The sampler of the probe without its server.
struct LocalSampler {
    published: Arc<Published>,
    requests: Sender<Request>,
    thread: JoinHandle<()>,
    /// Dropped by the thread when it ends, however it ends.
    alive: Weak<()>,
    tick: Duration,
}

impl LocalSampler {
    /// Opens the sources, drops the privileges and starts to sample. Keeps no history on disk: that
    /// is the service's.
    fn start(config: &Config) -> Result<Self> {
        let config = config.without_history();
        let mut opened = start::open(&config)?;
        privileges::drop_all(opened.trial_reading()).context("cannot drop the privileges of the start")?;
        let inputs = opened.start();
        let (requests, received) = mpsc::channel();
        let (tick, price) = (config.tick(), config.energy_price());
        let published = Arc::new(Published::new(tick, false, config.collectors(), price, requests.clone()));
        let (publisher, token) = (published.clone(), Arc::new(()));
        let alive = Arc::downgrade(&token);
        let thread = thread::Builder::new().name("sampler".into()).spawn(move || {
            let _token = token;
            Sampler::new(inputs).run(&received, |snapshot| publisher.publish(snapshot));
        })?;
        Ok(Self { published, requests, thread, alive, tick })
    }

    /// Its answers. With `complete`, the first answer waits for figures of a whole tick.
    fn source(&self, complete: bool) -> LocalSource {
        LocalSource {
            published: self.published.clone(),
            alive: self.alive.clone(),
            wait: complete.then(|| self.tick * 2 + FIRST_TIMEOUT),
        }
    }

    /// Ends the sampler, which saves the learnt idle power.
    async fn stop(self) {
        let _ = self.requests.send(Request::Stop);
        wait(&self.thread).await;
    }
}

/// Answers of a sampler in this process.
struct LocalSource {
    published: Arc<Published>,
    alive: Weak<()>,
    /// Time that the first answer may take.
    wait: Option<Duration>,
}

impl LocalSource {
    /// Waits for the second tick after the first, which is as long as the interval.
    fn wait_for_figures(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut first = None;
        while Instant::now() < deadline && self.alive.strong_count() > 0 {
            if let Some((sequence, _)) = self.published.now(0) {
                let first = *first.get_or_insert(sequence);
                if sequence >= first + 2 {
                    return;
                }
            }
            thread::sleep(STEP);
        }
    }
}

impl Source for LocalSource {
    fn place(&self) -> String {
        "this machine (no probe runs)".to_owned()
    }

    fn answer(&mut self) -> Result<String, SourceError> {
        if let Some(timeout) = self.wait.take() {
            self.wait_for_figures(timeout);
        }
        if self.alive.strong_count() == 0 {
            return Err(SourceError::Ended("the sampler ended".to_owned()));
        }
        let newest = self.published.now(CONTAINERS).map(|(_, answer)| String::from_utf8_lossy(&answer).into_owned());
        newest.ok_or_else(|| SourceError::Unavailable("the first tick is not complete".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn the_probe_is_looked_for_where_this_configuration_listens() {
        for (args, url) in [
            (&[][..], "http://127.0.0.1:9500"),
            (&["--port=9600"][..], "http://127.0.0.1:9600"),
            (&["--web.listen-address=:9700"][..], "http://[::1]:9700"),
            (&["--web.listen-address=0.0.0.0:9700"][..], "http://127.0.0.1:9700"),
            (&["--web.listen-address=192.0.2.1:9700"][..], "http://192.0.2.1:9700"),
        ] {
            let config = Config::parse_from([&["wattcast-probe"], args].concat());
            assert_eq!(address(&config), url);
        }
    }

    #[test]
    fn a_sampler_that_ended_is_no_dead_probe() {
        let (requests, _received) = mpsc::channel();
        let published = Arc::new(Published::new(Duration::from_secs(1), false, Vec::new(), None, requests));
        let token = Arc::new(());
        let mut source = LocalSource { published, alive: Arc::downgrade(&token), wait: None };
        assert!(matches!(source.answer(), Err(SourceError::Unavailable(_))));
        drop(token);
        assert!(matches!(source.answer(), Err(SourceError::Ended(_))));
    }
}
