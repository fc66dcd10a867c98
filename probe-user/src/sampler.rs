//! The schedule: when to tick, and who is told.
//!
//! One thread, its own monotonic clock, measured intervals: instruments -> accountant -> snapshot. Requests never reach it,
//! but for marks: "take an extra tick now", which are spaced apart and share ticks.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use exporter::family::Buckets;
use tokio::sync::oneshot;
use tracing::warn;

use crate::{
    accountant::Accountant,
    baselines::StateFile,
    distribution::Distribution,
    feed::Feed,
    snapshot::{CollectorRow, Snapshot},
    state::{SourceState, set_found, set_state},
    window::seconds,
};

/// A tick for a mark is at least this far from other ticks: power at a finer grain is a side channel (PLATYPUS), and a tick has a cost.
pub const SPACING: Duration = Duration::from_millis(100);
/// The first interval is short, so that the first whole page is there soon after the start.
const FIRST_INTERVAL: Duration = Duration::from_millis(200);
/// Bounds of the jitter histogram in seconds.
const JITTER_BOUNDS: [f64; 9] = [0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];

/// What the outside may ask of the sampler.
#[derive(Debug)]
pub enum Request {
    /// Take a tick soon and say when it was.
    Mark(oneshot::Sender<Marked>),
    /// End after the tick under way.
    Stop,
}

/// The tick that answered a mark.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Marked {
    /// Its number.
    pub sequence: u64,
    /// Its end in unix seconds: an exact edge for `/api/v1/window`.
    pub unix_seconds: f64,
}

/// How often what was learnt of idle power is written down.
const SAVE_EVERY: Duration = Duration::from_secs(300);

/// What the sampler works with.
pub struct Parts {
    /// Interval between ticks.
    pub tick: Duration,
    /// Where the ticks come from.
    pub feed: Feed,
    /// The arithmetic.
    pub accountant: Accountant,
    /// Sub-second power, where it is asked for.
    pub distribution: Option<Distribution>,
    /// Where what was learnt of idle power is kept.
    pub state: Option<StateFile>,
    /// How every source stood at the start. The states of energy, cpu and docker are kept up to date from here.
    pub sources: Vec<SourceState>,
}

/// The state between two ticks.
pub struct Sampler {
    parts: Parts,
    sources: Arc<[SourceState]>,
    jitter: Buckets,
    ticks_missed: u64,
    collectors: Vec<CollectorRow>,
    saved: Instant,
    saving: Option<JoinHandle<()>>,
    /// CPU time of the Docker engine at the last tick.
    engine_ns: Option<u64>,
}

impl Sampler {
    /// Ready for its first tick, which is the point that everything counts from.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            sources: parts.sources.clone().into(),
            jitter: Buckets {
                cumulative: JITTER_BOUNDS.iter().map(|bound| (*bound, 0)).collect(),
                ..Buckets::default()
            },
            ticks_missed: 0,
            collectors: Vec::new(),
            saved: Instant::now(),
            saving: None,
            engine_ns: None,
            parts,
        }
    }

    /// Ticks until told to stop. Each snapshot is published before the marks that asked for it are answered.
    pub fn run(mut self, requests: &mpsc::Receiver<Request>, publish: impl Fn(Arc<Snapshot>)) {
        let mut marks: Vec<oneshot::Sender<Marked>> = Vec::new();
        let mut last = Instant::now();
        let mut newest = Arc::new(self.tick().unwrap_or_default());
        publish(newest.clone());
        let mut due = Instant::now() + self.interval().min(FIRST_INTERVAL);
        loop {
            // Whoever asks soon after a tick waits; whoever asks meanwhile, or shortly before a regular tick, shares it.
            let wake = if marks.is_empty() || !self.parts.feed.takes_marks() { due } else { due.min(last + SPACING) };
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
            } else if marks.is_empty() || !self.parts.feed.takes_marks() {
                continue;
            }
            last = now;
            // A recording that has ended shows its last tick for as long as anybody looks.
            newest = Arc::new(match self.tick() {
                Some(snapshot) => snapshot,
                None => self.again(&newest),
            });
            let marked = Marked { sequence: newest.sequence, unix_seconds: seconds(newest.unix_ns) };
            publish(newest.clone());
            if regular {
                due += self.interval();
            }
            for reply in marks.drain(..) {
                // Whoever asked may have gone.
                let _ = reply.send(marked);
            }
            // On schedule, not from now: lateness must not add up.
            while due <= Instant::now() {
                due += self.interval();
                self.ticks_missed += 1;
            }
            // The tick of a mark stands for the regular one that would follow at once.
            if !regular && due < last + SPACING {
                due += self.interval();
            }
        }
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
        self.parts.feed.interval(self.parts.tick)
    }

    /// Waits until drivers of GPUs have opened, for at most so long.
    pub fn settle(&mut self, most: Duration) {
        self.parts.feed.settle(most);
    }

    /// One tick; `None` when there are no more.
    pub fn tick(&mut self) -> Option<Snapshot> {
        let Parts { feed, accountant, .. } = &mut self.parts;
        let raw = feed.read(accountant.ran(), &mut self.collectors)?;
        let mut snapshot = accountant.tick(raw);
        self.dress(&mut snapshot);
        if self.saved.elapsed() >= SAVE_EVERY {
            self.saved = Instant::now();
            self.save_aside();
        }
        Some(snapshot)
    }

    fn again(&mut self, shown: &Snapshot) -> Snapshot {
        let mut snapshot = shown.clone();
        self.dress(&mut snapshot);
        snapshot
    }

    /// Adds what only the sampler knows.
    fn dress(&mut self, snapshot: &mut Snapshot) {
        for (name, state) in self.parts.feed.states(self.parts.accountant.trouble()) {
            set_state(&mut self.parts.sources, name, state);
        }
        for (name, state, detail) in self.parts.feed.gpu_states(self.parts.accountant.gpu_trouble()) {
            set_found(&mut self.parts.sources, name, state, detail);
        }
        if *self.sources != *self.parts.sources {
            self.sources = self.parts.sources.clone().into();
        }
        snapshot.sources = self.sources.clone();
        snapshot.collectors.clone_from(&self.collectors);
        snapshot.jitter.clone_from(&self.jitter);
        snapshot.ticks_missed = self.ticks_missed;
        snapshot.programs = self.parts.feed.programs();
        snapshot.processes = self.parts.feed.processes();
        snapshot.gpus = self.parts.feed.gpus().to_vec();
        self.dress_usage(snapshot);
        if let Some(distribution) = &self.parts.distribution {
            snapshot.power = distribution.snapshot();
        }
    }

    fn dress_usage(&mut self, snapshot: &mut Snapshot) {
        let (usage, engines, memory) = self.parts.feed.usage();
        (snapshot.usage, snapshot.engines, snapshot.machine_memory) = (usage.to_vec(), engines.to_vec(), memory);
        let engine = engines.iter().find(|engine| engine.name == "dockerd").map(|engine| engine.cpu_ns);
        let grown = engine.zip(self.engine_ns).and_then(|(now, before)| now.checked_sub(before));
        self.engine_ns = engine;
        let length = snapshot.length_ns.filter(|length| *length > 0);
        #[expect(clippy::cast_precision_loss, reason = "a ratio of two lengths of time, for output")]
        let ratio = |(ns, of): (u64, u64)| ns as f64 / of as f64;
        snapshot.engine_cpu_ratio = grown.zip(length).map(ratio);
    }

    /// Saves on a thread of its own: a slow disk must not delay a tick.
    fn save_aside(&mut self) {
        if self.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            return;
        }
        let Some(state) = self.parts.state.clone() else { return };
        let baselines = self.parts.accountant.baselines();
        let job = move || {
            if let Err(error) = state.save(&baselines) {
                warn!("{error}");
            }
        };
        match std::thread::Builder::new().name("state".into()).spawn(job) {
            Ok(saving) => self.saving = Some(saving),
            Err(error) => warn!("cannot save what was learnt of idle power: {error}"),
        }
    }

    fn save(&self) {
        if let Some(state) = &self.parts.state
            && let Err(error) = state.save(&self.parts.accountant.baselines())
        {
            warn!("{error}");
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // Two that write the same draft at once would spoil it. A thread that panicked has said so already.
        let _ = self.saving.take().map(JoinHandle::join);
        self.save();
    }
}
