//! The schedule: takes a tick per interval, and publishes its snapshot.
//!
//! One thread with its own monotonic clock and measured intervals: tick source -> accountant ->
//! snapshot. The only requests that reach it are marks, which ask for an extra tick now. Extra
//! ticks have a minimum distance, and marks share them.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use metrics::family::Buckets;
use tokio::sync::oneshot;
use tracing::warn;
use units::Microjoules;

use crate::{
    attribution::{
        Accountant,
        baseline_file::BaselineFile,
        totals_file::{SavedState, TotalsFile},
    },
    energy::{
        self,
        power_histogram::PowerHistogram,
        zone::{Origin, ZoneKind},
    },
    host::{
        availability::{Reason, SourceState, Unavailable, update_or_add, update_state},
        process::{clock_ns, voluntary_switches},
    },
    reference::{CounterReading, ReferenceMeters},
    snapshot::{Continuity, Snapshot, history::seconds},
    tick::{CollectorRow, TickSource, recording::HistoryRecorder},
};

/// Minimum distance of an extra tick from other ticks: power at a finer grain is a side channel
/// (PLATYPUS), and ticks have a cost.
pub const SPACING: Duration = Duration::from_millis(100);
/// Interval between the two ticks of the start. The first page is that of the second of them,
/// because there is no power before it. A counter that moves once a millisecond is off by up to 3 %
/// in it.
const START_INTERVAL: Duration = Duration::from_millis(30);
/// The first regular interval is short too, because it replaces that page.
const FIRST_INTERVAL: Duration = Duration::from_millis(200);
/// Bounds of the jitter histogram in seconds.
const JITTER_BOUNDS: [f64; 9] = [0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];

/// A request to the sampler.
#[derive(Debug)]
pub enum Request {
    /// Take a tick soon and return its time.
    Mark(oneshot::Sender<MarkReply>),
    /// End after the current tick.
    Stop,
}

/// The tick of a mark.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MarkReply {
    /// Number of the tick.
    pub sequence: u64,
    /// End of the tick in unix seconds: an exact edge for `/api/v1/window`.
    pub unix_seconds: f64,
}

/// Shortest interval between two log lines about slow ticks.
const SLOW_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Interval between two saves of the learnt idle power.
const SAVE_INTERVAL: Duration = Duration::from_secs(300);

/// What the sampler needs.
pub struct SamplerInputs {
    /// Interval between ticks.
    pub interval: Duration,
    pub source: TickSource,
    pub accountant: Accountant,
    /// Sub-second power, where it is enabled and the energy source has it.
    pub histogram: Option<PowerHistogram>,
    /// Readings of sub-second power in a second, where it is enabled.
    pub histogram_hertz: Option<u32>,
    /// Meters of the whole machine, which are compared with the counters.
    pub reference: ReferenceMeters,
    /// The file of learnt idle power.
    pub baselines: Option<BaselineFile>,
    /// When the calibration in use was done, in unix seconds.
    pub calibrated_at: Option<i64>,
    /// Keeps the ticks for a restart.
    pub history: Option<HistoryRecorder>,
    /// The file of totals that the next start continues.
    pub(crate) totals: Option<TotalsFile>,
    /// The totals of an earlier probe that this one continues.
    pub(crate) continues: Option<ContinuedTotals>,
    /// State of every source at the start. The sampler updates those of energy, CPU time, names,
    /// jobs and GPUs.
    pub sources: Vec<SourceState>,
}

/// Totals that this probe continues.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ContinuedTotals {
    pub(crate) continuity: Continuity,
    /// Time of the last tick of the earlier probe, on the clock since the boot.
    pub(crate) boot_ns: u64,
}

/// The state between two ticks.
pub struct Sampler {
    inputs: SamplerInputs,
    sources: Arc<[SourceState]>,
    jitter: Buckets,
    ticks_missed: u64,
    /// When a slow tick was logged last.
    slow_logged: Option<Instant>,
    collectors: Vec<CollectorRow>,
    saved: Instant,
    saving: Option<JoinHandle<()>>,
    /// CPU time of the Docker engine at the last tick.
    engine_ns: Option<u64>,
    continuity: Continuity,
    /// Time of the last tick on the clock since the boot; absent before the first.
    ticked_boot_ns: Option<u64>,
}

impl Sampler {
    /// Ready for the first tick, which is the starting point of all totals.
    #[must_use]
    pub fn new(inputs: SamplerInputs) -> Self {
        Self {
            sources: inputs.sources.clone().into(),
            jitter: Buckets {
                cumulative: JITTER_BOUNDS.iter().map(|bound| (*bound, 0)).collect(),
                ..Buckets::default()
            },
            ticks_missed: 0,
            slow_logged: None,
            collectors: Vec::new(),
            saved: Instant::now(),
            saving: None,
            engine_ns: None,
            continuity: Continuity::default(),
            ticked_boot_ns: None,
            inputs,
        }
    }

    /// Takes ticks until a request to stop. A snapshot is published before the replies to its marks
    /// are sent.
    pub fn run(&mut self, requests: &mpsc::Receiver<Request>, publish: impl Fn(Arc<Snapshot>)) {
        let mut marks: Vec<oneshot::Sender<MarkReply>> = Vec::new();
        let first = self.tick().unwrap_or_default();
        std::thread::sleep(self.interval().min(START_INTERVAL));
        let mut last = Instant::now();
        let mut newest = Arc::new(self.tick().unwrap_or(first));
        publish(newest.clone());
        let mut due = Instant::now() + self.interval().min(FIRST_INTERVAL);
        loop {
            // A mark soon after a tick waits. Marks that arrive meanwhile, or shortly before a
            // regular tick, share it.
            let wake =
                if marks.is_empty() || !self.inputs.source.takes_marks() { due } else { due.min(last + SPACING) };
            match requests.recv_timeout(wake.saturating_duration_since(Instant::now())) {
                Ok(Request::Mark(reply)) => {
                    marks.push(reply);
                    continue;
                }
                Ok(Request::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            let regular = now >= due;
            if regular {
                self.observe_jitter(now - due);
            } else if marks.is_empty() || !self.inputs.source.takes_marks() {
                continue;
            }
            last = now;
            let began = Instant::now();
            // A recording that has ended keeps its last tick.
            newest = Arc::new(match self.tick() {
                Some(snapshot) => snapshot,
                None => self.refresh(&newest),
            });
            self.report_slow_tick(began.elapsed());
            let marked = MarkReply { sequence: newest.sequence, unix_seconds: seconds(newest.unix_ns) };
            publish(newest.clone());
            if regular {
                due += self.interval();
            }
            for reply in marks.drain(..) {
                // The client may have disconnected.
                let _ = reply.send(marked);
            }
            // On schedule and not from now, because delays must not accumulate.
            while due <= Instant::now() {
                due += self.interval();
                self.ticks_missed += 1;
            }
            // The tick of a mark replaces a regular tick that would follow at once.
            if !regular && due < last + SPACING {
                due += self.interval();
            }
        }
    }

    /// Logs a tick that took longer than its interval, at most once a minute.
    fn report_slow_tick(&mut self, took: Duration) {
        let interval = self.inputs.interval;
        if took <= interval || self.slow_logged.is_some_and(|at| at.elapsed() < SLOW_LOG_INTERVAL) {
            return;
        }
        self.slow_logged = Some(Instant::now());
        let rest = CollectorRow {
            name: "attribution",
            seconds: took.as_secs_f64() - self.collectors.iter().map(|row| row.seconds).sum::<f64>(),
            success: true,
        };
        let slowest = self.collectors.iter().chain([&rest]).max_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let (name, seconds) = slowest.map_or(("attribution", 0.0), |row| (row.name, row.seconds));
        warn!(
            "a tick took {:.2} s, longer than the interval of {:.2} s; most of it in {name} ({seconds:.2} s). Raise --tick, or lower \
             the number of cgroups",
            took.as_secs_f64(),
            interval.as_secs_f64()
        );
    }

    fn observe_jitter(&mut self, late: Duration) {
        let late = late.as_secs_f64();
        for (bound, count) in &mut self.jitter.cumulative {
            *count += u64::from(late <= *bound);
        }
        self.jitter.count += 1;
        self.jitter.sum += late;
    }

    fn interval(&self) -> Duration {
        self.inputs.source.interval(self.inputs.interval)
    }

    /// Waits until the drivers of GPUs are open, at most for `timeout`.
    pub fn wait_for_gpus(&mut self, timeout: Duration) {
        self.inputs.source.wait_for_gpus(timeout);
    }

    /// Takes one tick; `None` at the end of a recording.
    pub fn tick(&mut self) -> Option<Snapshot> {
        let SamplerInputs { source, accountant, history, .. } = &mut self.inputs;
        source.note_energy_broken(accountant.trouble().is_some());
        let raw = source.read(accountant.ran(), &mut self.collectors)?;
        if let Some(history) = history {
            history.record(raw);
        }
        let mut snapshot = accountant.tick(raw);
        self.note_tick(snapshot.unix_ns);
        if !self.inputs.reference.is_empty() {
            self.inputs.reference.observe(&counter_reading(&snapshot));
        }
        self.complete(&mut snapshot);
        if self.saved.elapsed() >= SAVE_INTERVAL {
            self.saved = Instant::now();
            self.save_in_background();
        }
        Some(snapshot)
    }

    /// Notes the time of a tick, and with the first one the gap since the last tick of the earlier
    /// probe whose totals continue.
    fn note_tick(&mut self, unix_ns: i64) {
        let now = clock_ns(libc::CLOCK_BOOTTIME);
        if self.ticked_boot_ns.is_none() {
            self.continuity = match self.inputs.continues.take() {
                Some(ContinuedTotals { continuity, boot_ns }) => Continuity {
                    restarts: continuity.restarts.saturating_add(1),
                    gap_ns: continuity.gap_ns.saturating_add(now.unwrap_or(boot_ns).saturating_sub(boot_ns)),
                    ..continuity
                },
                None => Continuity { since_unix_ns: Some(unix_ns), ..Continuity::default() },
            };
        }
        self.ticked_boot_ns = now;
    }

    /// The last snapshot with current states.
    fn refresh(&mut self, last: &Snapshot) -> Snapshot {
        let mut snapshot = last.clone();
        self.complete(&mut snapshot);
        snapshot
    }

    /// Adds the states of the sources, the collectors and the sampler's own figures.
    fn complete(&mut self, snapshot: &mut Snapshot) {
        if let Some(tried) = self.inputs.source.take_tried() {
            self.follow_source(tried);
        }
        for (name, state) in self.inputs.source.states(self.inputs.accountant.trouble()) {
            update_state(&mut self.inputs.sources, name, state);
        }
        for (name, state, detail) in self.inputs.source.gpu_states(self.inputs.accountant.gpu_trouble()) {
            update_or_add(&mut self.inputs.sources, name, state, detail);
        }
        for (name, state, detail) in self.inputs.reference.states() {
            update_or_add(&mut self.inputs.sources, name, state, detail);
        }
        snapshot.reference = self.inputs.reference.rows();
        if *self.sources != *self.inputs.sources {
            self.sources = self.inputs.sources.clone().into();
        }
        snapshot.sources = self.sources.clone();
        snapshot.collectors.clone_from(&self.collectors);
        snapshot.jitter.clone_from(&self.jitter);
        snapshot.ticks_missed = self.ticks_missed;
        snapshot.calibrated_at = self.inputs.calibrated_at;
        snapshot.continuity = self.continuity;
        snapshot.programs = self.inputs.source.programs();
        snapshot.wakeups = voluntary_switches();
        snapshot.processes = self.inputs.source.processes();
        snapshot.gpus = self.inputs.source.gpus().to_vec();
        self.add_usage(snapshot);
        if let Some(histogram) = &self.inputs.histogram {
            snapshot.power = histogram.snapshot();
        }
    }

    /// Takes over the states of the energy sources after another one was taken into use.
    fn follow_source(&mut self, mut tried: Vec<SourceState>) {
        let SamplerInputs { source, sources, histogram, histogram_hertz, .. } = &mut self.inputs;
        // The others keep the reason why they are not in use; none of them is required any longer.
        for mut state in std::mem::take(sources) {
            if !energy::is_source(state.source) {
                tried.push(state);
            } else if !tried.iter().any(|new| new.source == state.source) {
                if state.state.is_ok() {
                    let why = Unavailable::new(Reason::Absent, "not in use: another source measures");
                    (state.state, state.detail) = (Err(why), String::new());
                }
                state.wanted = false;
                tried.push(state);
            }
        }
        *sources = tried;
        let Some(hertz) = *histogram_hertz else { return };
        if let Some(before) = histogram.take() {
            before.detach();
        }
        let state = match source.packages() {
            Some(packages) => match PowerHistogram::start(packages, hertz) {
                Ok(started) => {
                    *histogram = Some(started);
                    Ok(())
                }
                Err(error) => Err(Unavailable::new(Reason::Broken, format!("cannot start its thread: {error}"))),
            },
            None => Err(Unavailable::new(Reason::Absent, "the source has no readings between two ticks")),
        };
        let detail = if state.is_ok() { format!("{hertz} Hz") } else { String::new() };
        update_or_add(sources, "power", state, detail);
    }

    fn add_usage(&mut self, snapshot: &mut Snapshot) {
        let (usage, engines, memory) = self.inputs.source.usage();
        (snapshot.usage, snapshot.engines, snapshot.machine_memory) = (usage.to_vec(), engines.to_vec(), memory);
        snapshot.container_count = self.inputs.source.container_count();
        let engine = engines.iter().find(|engine| engine.name == "dockerd").map(|engine| engine.cpu_ns);
        let grown = engine.zip(self.engine_ns).and_then(|(now, before)| now.checked_sub(before));
        self.engine_ns = engine;
        let length = snapshot.length_ns.filter(|length| *length > 0);
        #[expect(clippy::cast_precision_loss, reason = "a ratio of two lengths of time, for output")]
        let ratio = |(ns, of): (u64, u64)| ns as f64 / of as f64;
        snapshot.engine_cpu_ratio = grown.zip(length).map(ratio);
    }

    /// Saves on a separate thread, because a slow disk must not delay a tick.
    fn save_in_background(&mut self) {
        if self.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            return;
        }
        let Some(file) = self.inputs.baselines.clone() else { return };
        let baselines = self.inputs.accountant.baselines();
        let save = move || {
            if let Err(error) = file.save(&baselines) {
                warn!("{error}");
            }
        };
        match std::thread::Builder::new().name("state".into()).spawn(save) {
            Ok(saving) => self.saving = Some(saving),
            Err(error) => warn!("cannot start a thread to save the learnt idle power: {error}"),
        }
    }

    fn save(&self) {
        if let Some(file) = &self.inputs.baselines
            && let Err(error) = file.save(&self.inputs.accountant.baselines())
        {
            warn!("{error}");
        }
    }

    /// Saves the totals for the next start. Not after a panic, which may have left a tick half
    /// posted, and not before the first tick.
    fn save_totals(&self) {
        let (Some(file), Some(boot_ns)) = (&self.inputs.totals, self.ticked_boot_ns) else { return };
        if std::thread::panicking() {
            return;
        }
        let containers = self.inputs.source.saved_containers();
        let kept = containers.iter().map(|saved| saved.container.number).collect();
        let totals = self.inputs.accountant.save_totals(&kept);
        let state = SavedState { totals, containers, continuity: self.continuity, boot_ns };
        if let Err(error) = file.save(&state) {
            warn!("{error}");
        }
    }
}

/// The sum of the counters of the machine at the end of a tick: packages, memory and boards, each
/// once. A model is no counter, and a sensor of the platform would contain the others.
fn counter_reading(snapshot: &Snapshot) -> CounterReading {
    let roots = snapshot.accounts.iter().map(|account| account.id);
    let counted = roots.filter(|id| id.origin != Origin::Model && id.zone.kind != ZoneKind::Psys);
    let mut reading = CounterReading {
        at: Instant::now(),
        counters: Vec::new(),
        energy: Microjoules::ZERO,
        rejects: snapshot.rejects.iter().fold(0, |sum: u64, (_, _, count)| sum.saturating_add(*count)),
    };
    for id in counted {
        if let Some(zone) = snapshot.zones.iter().find(|zone| (zone.id, zone.origin) == (id.zone, id.origin)) {
            reading.counters.push((zone.id, zone.origin));
            reading.energy += zone.total;
        }
    }
    reading
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // First, because the time for the end is short, and these are nowhere else.
        self.save_totals();
        // Two threads must not write the same file at once. A thread that panicked has logged it
        // already.
        let _ = self.saving.take().map(JoinHandle::join);
        self.save();
    }
}
