//! `record`: writes the raw ticks of this machine to a file.

use std::{
    io::IsTerminal as _,
    path::Path,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    attribution::Accountant,
    config::Config,
    host::{availability::log_sources, privileges},
    ledger::IdlePolicy,
    start,
    tick::{Collectors, recording::Writer},
};

/// Records into `file` until a signal, or for `time`. Requests for container names run on the
/// runtime meanwhile.
///
/// # Errors
/// When the file cannot be written, the privileges not dropped, or the recorder panicked.
pub fn run(config: &Config, file: &Path, time: Option<Duration>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = mpsc::channel();
    runtime.block_on(async {
        let (mut collectors, sources) = start::collectors(config);
        // Created with the rights of the caller, so before the privileges are dropped.
        let writer = Writer::create(file, &collectors.setup())?;
        privileges::drop_all(collectors.trial_reading()).context("cannot drop the privileges of the start")?;
        log_sources(&sources);
        let interval = config.tick();
        let recorder = thread::Builder::new()
            .name("recorder".into())
            .spawn(move || record(collectors, writer, interval, time, &stopped))?;
        let mut terminate = signal(SignalKind::terminate())?;
        let ended = async {
            while !recorder.is_finished() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
            () = ended => {}
        }
        let _ = stop.send(());
        let ticks = recorder.join().map_err(|_| anyhow::anyhow!("the recorder panicked"))??;
        eprintln!("{}: {ticks} ticks", file.display());
        Ok(())
    })
}

/// Writes one tick per `interval`; returns how many.
fn record(
    mut collectors: Collectors,
    mut writer: Writer,
    interval: Duration,
    time: Option<Duration>,
    stopped: &Receiver<()>,
) -> Result<u32> {
    let mut accountant = Accountant::new(collectors.setup(), IdlePolicy::Separate, 0);
    let (start, mut due, mut ticks) = (Instant::now(), Instant::now(), 0);
    let (show_progress, mut runs) = (std::io::stderr().is_terminal(), Vec::new());
    loop {
        collectors.note_energy_broken(accountant.trouble().is_some());
        let raw = collectors.read(accountant.ran(), &mut runs);
        writer.write(raw)?;
        // The accountant determines which cgroups ran. The slots of removed cgroups that did not
        // run can be freed.
        accountant.tick(raw);
        ticks += 1;
        if show_progress {
            eprint!("\r  {ticks} ticks, {:.0} s ", start.elapsed().as_secs_f64());
        }
        due += interval;
        let wait = due.saturating_duration_since(Instant::now());
        let stop = !matches!(stopped.recv_timeout(wait), Err(RecvTimeoutError::Timeout));
        if stop || time.is_some_and(|time| start.elapsed() >= time) {
            break;
        }
    }
    if show_progress {
        eprintln!();
    }
    Ok(writer.finish()?)
}
