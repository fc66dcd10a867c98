//! The experiment runner: measures encoders and writes result files.
//!
//! [`flags`] describe a [`plan`]; `session` checks the machine ([`preflight`]) and opens the
//! [`journal`]; `protocol` executes the plan. Encoders ([`process`]) of an ffmpeg ([`tool`]) run
//! in an [`environment`] of their own, and read a [`source`] clip or a live stream ([`rtmp`]).
//! `measure` measures one repeat, `steady` one of streams that run, [`pace`] tells whether they
//! keep up with real time; `baseline` measures the idle power after its `calibration`; `scoring`
//! scores [`quality`] afterwards, `live_quality` that of samples of live streams, whose frames
//! `alignment` finds in the source. [`codec`] has what encoders need, [`frame_rate`] exact rates.
//! Each event is in the journal before the next step begins;
//! [`record`] is the state according to the journal, and [`output`] writes it to result files.
//! `search` looks for one value, `energy_search` for the configuration with the least energy, by
//! the flags of [`energy_goal`].

mod alignment;
mod baseline;
mod calibration;
pub mod codec;
pub mod context;
pub mod display;
mod dry_run;
pub mod energy_goal;
mod energy_search;
pub mod environment;
pub mod error;
pub mod files;
pub mod flags;
mod forecast;
pub mod frame_rate;
pub mod journal;
mod live_quality;
mod measure;
pub mod output;
pub mod pace;
pub mod plan;
pub mod preflight;
pub mod process;
mod protocol;
pub mod quality;
pub mod record;
pub mod rtmp;
pub mod sampler;
mod scoring;
mod search;
mod session;
pub mod signals;
pub mod source;
mod steady;
pub mod tool;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use results::{cost::Prices, energy::probe::Probe};

pub use error::{Exit, RunError};
pub use files::write_atomically;

use context::{Runner, skip_all, unix_ns};
use display::Display;
use dry_run::dry_run;
use flags::{Run, RunKind};
use journal::Event;
use preflight::{Check, CheckState};
use record::Record;
use session::Session;
use signals::{install_signal_handlers, stop_requested};

/// Runs an experiment as described by the flags.
///
/// # Errors
/// When the run ends early; all measurements up to then are kept.
pub fn run(flags: &Run, probe: &Probe, prices: &Prices) -> Result<Exit, RunError> {
    // Axes without a kind of run are too little to be compared with the plan.
    let is_partial = flags.kind.is_none() && flags.describes_a_plan();
    if flags.protocol.resume.is_some() && (is_partial || flags.protocol.dry_run) {
        let why = "--resume continues with the plan of the run: leave out --dry-run and flags that describe a plan";
        return Err(RunError::new(Exit::Usage, why));
    }
    if flags.protocol.dry_run {
        return dry_run(flags);
    }
    install_signal_handlers();
    let dir = create_results_dir(flags)?;
    let _lock = session::lock_host()?;
    let display = Display::new(flags.protocol.json);
    let env_config = flags.env_config(&dir);
    let session = Session::prepare(flags, &dir, &env_config, probe, &display).map_err(|error| match error.exit {
        Exit::Unwritable => RunError::new(error.exit, format!("{}: {}", dir.display(), error.message)),
        _ => error,
    })?;
    if stop_requested() {
        return Err(RunError::new(Exit::Stopped, "stopped before anything was measured"));
    }
    let Session { mut journal, mut record, checks, ffmpeg, scorer } = session;
    log_checks(&checks, &display);
    let failed: Vec<String> =
        preflight::failed(&checks).iter().map(|check| format!("{}: {}", check.check, check.detail)).collect();
    let event = Event::Preflight { checks };
    journal.write(&event)?;
    record.apply(event);
    let outcome = if !failed.is_empty() && !flags.protocol.force {
        let why = format!("refused before it began: {}", failed.join("; "));
        skip_all(&mut journal, &mut record, &why)?;
        let list = failed.join("\n  ");
        Err(RunError::new(
            Exit::Refused,
            format!("preflight checks failed, nothing was measured:\n  {list}\nFix the problem or pass --force"),
        ))
    } else {
        let live_server = flags.encode.live_server(record.plan().live_server);
        let mut runner = Runner {
            dir: &dir,
            probe,
            env_config: &env_config,
            live_server: &live_server,
            timeout: flags.protocol.wait_timeout,
            ffmpeg: &ffmpeg,
            scorer: scorer.as_ref(),
            display: &display,
            journal: &mut journal,
            record: &mut record,
        };
        match &flags.kind {
            _ if runner.record.plan().energy_search.is_some() => energy_search::run(&mut runner, prices),
            Some(RunKind::Search { goal }) if flags.protocol.resume.is_none() => search::run(&mut runner, *goal),
            _ => runner.run(),
        }
    };
    display.clear();
    let end = Event::End { status: status(&outcome, &record).to_owned(), unix_ns: unix_ns() };
    record.apply(end.clone());
    let files = output::write(&record, &dir, journal.stem(), prices)?;
    // The end is recorded last, so that a run whose results could not be written can be resumed.
    journal.write(&end)?;
    output::print(&files, &record, flags.protocol.json)?;
    outcome
}

/// Creates the results directory: that of the journal given with --resume, or that of the flags.
fn create_results_dir(flags: &Run) -> Result<PathBuf, RunError> {
    let dir = match &flags.protocol.resume {
        Some(Some(journal)) => match journal.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            Some(dir) => dir,
            None => Path::new("."),
        },
        _ => &flags.shared.results_dir,
    };
    let unwritable = |error: io::Error| {
        let dir = dir.display();
        let remedy = "set a writable directory with --results-dir, also called --output-dir";
        RunError::new(Exit::Unwritable, format!("{dir}: {error}; {remedy}"))
    };
    fs::create_dir_all(dir).map_err(unwritable)?;
    fs::canonicalize(dir).map_err(unwritable)
}

fn log_checks(checks: &[Check], display: &Display) {
    for check in checks {
        let word = match check.state {
            CheckState::Ok => continue,
            CheckState::Failed => "failed",
            CheckState::Warning => "warning",
            CheckState::Unavailable => "unknown",
        };
        display.log(&format!("  {word:<8}{}: {}", check.check, check.detail));
    }
}

/// The status of a run in its journal and results.
fn status(outcome: &Result<Exit, RunError>, record: &Record) -> &'static str {
    match outcome {
        Err(RunError { exit: Exit::Stopped, .. }) => "stopped",
        _ if record.repeats.iter().all(|repeat| repeat.status != "ok") => "failed",
        Err(_) | Ok(Exit::Partial) => "partial",
        Ok(_) => "ok",
    }
}
