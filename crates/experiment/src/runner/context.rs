//! What all steps of a run share: the runner with its journal and tools, and the execution
//! environments.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use results::energy::probe::Probe;

use super::{
    display::Display,
    environment::{EnvConfig, ExecutionEnv, remove_stale},
    error::{Exit, RunError},
    files::{SCRATCH, scratch_dir},
    journal::{Event, Journal, Repeat},
    plan::{Configuration, Isolation, Mode},
    record::Record,
    rtmp::RtmpServer,
    signals::{interruptible_sleep, stop_requested},
    tool::Tool,
};

/// A running experiment.
pub struct Runner<'a> {
    /// Results directory.
    pub dir: &'a Path,
    /// The probe that measures energy.
    pub probe: &'a Probe,
    /// Settings for execution environments.
    pub env_config: &'a EnvConfig,
    /// Path of the RTMP server's program, for live runs.
    pub live_server: &'a Path,
    /// How long to wait for the probe and for servers.
    pub timeout: Duration,
    /// The ffmpeg that encodes.
    pub ffmpeg: &'a Tool,
    /// The ffmpeg that scores, if quality is scored.
    pub scorer: Option<&'a Tool>,
    /// The progress display.
    pub display: &'a Display,
    /// The journal.
    pub journal: &'a mut Journal,
    /// The state according to the journal.
    pub record: &'a mut Record,
}

/// The execution environments of a run. Dropping it removes them and the scratch directory.
pub struct RunContext {
    pub(super) env: ExecutionEnv,
    pub(super) rtmp: Option<RtmpServer>,
    scratch: PathBuf,
}

impl RunContext {
    /// A context without environments.
    pub(super) fn empty() -> Self {
        Self { env: ExecutionEnv::None, rtmp: None, scratch: PathBuf::new() }
    }

    /// True when the probe no longer holds one of the leases.
    pub(super) fn is_lost(&self) -> bool {
        self.env.is_lost() || self.rtmp.as_ref().is_some_and(RtmpServer::is_lost)
    }
}

impl Drop for RunContext {
    fn drop(&mut self) {
        if !self.scratch.as_os_str().is_empty() {
            let _ = fs::remove_dir_all(&self.scratch);
        }
    }
}

/// Records a skipped repeat for each configuration without a successful one.
///
/// # Errors
/// When the journal cannot be written.
pub(super) fn skip_all(journal: &mut Journal, record: &mut Record, why: &str) -> io::Result<()> {
    for configuration in record.configurations.clone() {
        if record.successes(&configuration.id).next().is_none() {
            let n = record.next_repeat(&configuration.id);
            let event = Event::Repeat(Box::new(new_repeat(&configuration, n, 0, "skipped", why)));
            journal.write(&event)?;
            record.apply(event);
        }
    }
    Ok(())
}

/// A repeat without measurements.
pub(super) fn new_repeat(configuration: &Configuration, n: u32, block: u32, status: &str, detail: &str) -> Repeat {
    Repeat {
        configuration: configuration.id.clone(),
        n,
        block,
        status: status.to_owned(),
        detail: detail.to_owned(),
        ..Repeat::default()
    }
}

/// The error of a run that was stopped by a signal.
pub(super) fn stopped_error() -> RunError {
    RunError::new(
        Exit::Stopped,
        "stopped; all measurements up to now are kept. Continue with: wattcast-analysis run --resume (a search for quality or streams starts again)",
    )
}

/// Waits until the probe responds or the timeout is over; the preflight checks report a probe that
/// does not.
pub(super) fn wait_for_probe(probe: &Probe, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    while probe.alive().is_err_and(|why| why.is_transient())
        && Instant::now() < deadline
        && interruptible_sleep(Duration::from_millis(250))
    {}
}

/// The current time in nanoseconds since 1970.
pub(super) fn unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

impl Runner<'_> {
    /// Adds an event to the journal and to the record.
    pub(super) fn add_event(&mut self, event: Event) -> Result<(), RunError> {
        self.journal.write(&event)?;
        self.record.apply(event);
        Ok(())
    }

    /// Creates the scratch directory if it does not exist. A later run removes it if this one is
    /// killed.
    pub(super) fn create_scratch(&self) -> io::Result<PathBuf> {
        scratch_dir(self.dir)
    }

    /// The directory of output files and per-frame scores, next to the results.
    pub(super) fn artefacts_dir(&self) -> PathBuf {
        self.dir.join(format!("{}.files", self.journal.stem()))
    }

    /// Creates the execution environments.
    ///
    /// # Errors
    /// When an environment that the mode needs is not available.
    pub(super) fn create_context(&mut self) -> Result<RunContext, RunError> {
        remove_stale(self.dir, SCRATCH, |left| drop(fs::remove_dir_all(left)));
        let scratch = self.create_scratch()?;
        let mut context = RunContext { env: ExecutionEnv::None, rtmp: None, scratch };
        let isolation = self.record.plan().isolation;
        let live = self.record.plan().mode == Mode::Rtmp;
        let env = match self.env_config.create(isolation, "encoder") {
            Ok(ExecutionEnv::None) if live => Err("--place none".to_owned()),
            // Files are encoded by one process, so the energy of the host is comparable without
            // attribution.
            Err(why) if isolation == Isolation::Auto && !live => {
                self.display.log(&format!("  warning place: energy is that of the whole host, because\n  {why}"));
                Ok(ExecutionEnv::None)
            }
            other => other,
        };
        let rtmp = env.and_then(|env| {
            context.env = env;
            if live {
                let server = (self.record.plan().live_server, self.live_server);
                RtmpServer::start(self.env_config, isolation, server, &context.scratch, self.timeout).map(Some)
            } else {
                Ok(None)
            }
        });
        match rtmp {
            Ok(rtmp) => context.rtmp = rtmp,
            Err(_) if stop_requested() => return Err(stopped_error()),
            Err(why) => {
                let what = if live {
                    "a live run is refused: generator, server and encoder need a cgroup each, or the encoder is charged for all three"
                } else {
                    "the execution environment is not available"
                };
                let why = format!("{what}:\n  {why}");
                skip_all(self.journal, self.record, &why)?;
                return Err(RunError::new(Exit::Refused, why));
            }
        }
        let description = context.env.describe();
        self.display.log(&format!("  place   {description}"));
        self.add_event(Event::Environment { description })?;
        Ok(context)
    }
}
