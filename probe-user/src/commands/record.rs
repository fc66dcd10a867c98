//! `record`: writes the raw ticks of this machine to a file.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use cli::{
    number::{bytes, short},
    terminal::View,
};
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
        let (interval, path) = (config.tick(), file.to_owned());
        let recorder = thread::Builder::new()
            .name("recorder".into())
            .spawn(move || record(collectors, writer, interval, Progress::new(path, time), &stopped))?;
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
        let size = fs::metadata(file).map_or_else(|_| String::new(), |meta| format!(", {}", bytes(meta.len())));
        eprintln!("{}: {ticks} ticks{size}", file.display());
        Ok(())
    })
}

/// The progress on a terminal, at most once per second.
struct Progress {
    path: PathBuf,
    /// Duration of the recording; `None` until a signal.
    time: Option<Duration>,
    start: Instant,
    shown: Option<u64>,
    view: View,
}

impl Progress {
    fn new(path: PathBuf, time: Option<Duration>) -> Self {
        Self { path, time, start: Instant::now(), shown: None, view: View::stderr() }
    }

    /// True if the recording has its duration.
    fn is_complete(&self) -> bool {
        self.time.is_some_and(|time| self.start.elapsed() >= time)
    }

    fn show(&mut self, ticks: u32) {
        let elapsed = self.start.elapsed();
        if !self.view.is_terminal || self.shown == Some(elapsed.as_secs()) {
            return;
        }
        self.shown = Some(elapsed.as_secs());
        // The size is left out where the directory can no longer be read without privileges.
        let size = fs::metadata(&self.path).ok().map(|meta| meta.len());
        let text = progress_text(elapsed, self.time, ticks, size);
        // Spaces cover a longer line before this one, up to the width of the terminal.
        let width = self.view.columns.saturating_sub(3).min(60);
        eprint!("\r  {text:<width$}");
    }

    /// Ends the line.
    fn end(&self) {
        if self.shown.is_some() {
            eprintln!();
        }
    }
}

fn progress_text(elapsed: Duration, time: Option<Duration>, ticks: u32, size: Option<u64>) -> String {
    let of = time.map_or_else(String::new, |time| format!(" of {}", short(time.as_secs_f64())));
    let size = size.map_or_else(String::new, |size| format!(", {}", bytes(size)));
    format!("{}{of} s, {ticks} ticks{size}", elapsed.as_secs())
}

/// Writes one tick per `interval`; returns how many.
fn record(
    mut collectors: Collectors,
    mut writer: Writer,
    interval: Duration,
    mut progress: Progress,
    stopped: &Receiver<()>,
) -> Result<u32> {
    let mut accountant = Accountant::new(collectors.setup(), IdlePolicy::Separate, 0);
    let (mut due, mut ticks, mut runs) = (Instant::now(), 0, Vec::new());
    loop {
        collectors.note_energy_broken(accountant.trouble().is_some());
        let raw = collectors.read(accountant.ran(), &mut runs);
        writer.write(raw)?;
        // The accountant determines which cgroups ran. The slots of removed cgroups that did not
        // run can be freed.
        accountant.tick(raw);
        ticks += 1;
        progress.show(ticks);
        due += interval;
        let wait = due.saturating_duration_since(Instant::now());
        let stop = !matches!(stopped.recv_timeout(wait), Err(RecvTimeoutError::Timeout));
        if stop || progress.is_complete() {
            break;
        }
    }
    progress.end();
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_names_time_ticks_and_bytes() {
        let (elapsed, minute) = (Duration::from_millis(12_345), Duration::from_secs(60));
        assert_eq!(progress_text(elapsed, Some(minute), 123, Some(34_512)), "12 of 60 s, 123 ticks, 34.5 kB");
        assert_eq!(progress_text(elapsed, None, 123, None), "12 s, 123 ticks");
    }
}
