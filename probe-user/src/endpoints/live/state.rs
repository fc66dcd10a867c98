//! What the live page's API keeps between ticks, and what it renders on request.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use axum::{
    body::Bytes,
    http::{
        StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{
    about::{About, ShownRecording},
    columns::{Columns, EdgeBounds, Layers, rounded},
    now::{self, NowResponse, Sample},
    series::{self, Event, SeriesRequest},
};
use crate::{
    endpoints::{
        error::{error_response, starting},
        price::EnergyPrice,
    },
    energy::counter::Reject,
    host::availability::SourceState,
    snapshot::{
        Snapshot,
        history::{Tick, seconds},
    },
};

#[cfg(test)]
mod tests;

/// Most clients of `/api/v1/events`.
pub(super) const MAX_CLIENTS: usize = 96;
/// Most answers that are kept for a tick. A page needs two.
const MAX_ANSWERS: usize = 32;
/// Most bytes of all of them.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// Most events that are kept.
const MAX_EVENTS: usize = 100;
/// Most samples that are kept: ten seconds of the shortest ticks.
const MAX_SAMPLES: usize = 101;
/// Containers of `/api/v1/now` without `containers`, and the most of them.
pub(super) const DEFAULT_CONTAINERS: usize = 20;
pub(super) const MAX_CONTAINERS: usize = 500;
/// Containers of the column of an event.
const COLUMN_CONTAINERS: usize = 50;

/// A tick, and its event once it was rendered.
pub(super) struct LiveTick {
    snapshot: Arc<Snapshot>,
    event: OnceLock<Bytes>,
}

/// What subscribers wait for.
#[derive(Clone)]
pub(super) enum Feed {
    Starting,
    Tick(Arc<LiveTick>),
    /// The program ends.
    End,
}

/// What was seen of past ticks.
#[derive(Default)]
struct Seen {
    samples: VecDeque<Arc<Sample>>,
    events: VecDeque<Event>,
    sources: Option<Arc<[SourceState]>>,
    /// Number of suspensions of the machine.
    suspended: u64,
}

impl Seen {
    fn event(&mut self, unix_ns: i64, text: String) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event { time: seconds(unix_ns), text });
    }

    /// Notes what changed with a tick.
    fn observe(&mut self, snapshot: &Snapshot) {
        let suspended = snapshot.rejects.iter().filter(|(_, why, _)| *why == Reject::Suspended);
        let suspended = suspended.map(|(.., count)| *count).max().unwrap_or(0);
        if suspended > self.suspended {
            self.event(snapshot.unix_ns, "the machine was suspended".to_owned());
        }
        self.suspended = suspended;
        let before = self.sources.replace(snapshot.sources.clone());
        if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, &snapshot.sources)) {
            for source in snapshot.sources.iter() {
                let was = before.iter().find(|other| other.source == source.source);
                match (was.map(|was| was.state.is_ok()), &source.state) {
                    (Some(true), Err(why)) => {
                        self.event(snapshot.unix_ns, format!("source {} lost: {why}", source.source));
                    }
                    (Some(false), Ok(())) => {
                        self.event(snapshot.unix_ns, format!("source {} is back", source.source));
                    }
                    _ => {}
                }
            }
        }
        let sample = Arc::new(Sample::of(snapshot));
        // The newest sample before the window is its start, also where a tick is longer than it.
        let has_later_start =
            |samples: &VecDeque<Arc<Sample>>| samples.get(1).is_some_and(|next| next.is_before_window(&sample));
        while self.samples.len() >= MAX_SAMPLES || has_later_start(&self.samples) {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }
}

/// A request whose answer is kept for the tick.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Request {
    Now(usize),
    Series(SeriesRequest),
}

/// The answers of one tick.
#[derive(Default)]
struct Answers {
    sequence: u64,
    by_request: BTreeMap<Request, Bytes>,
}

/// The state behind the live page.
pub(in crate::endpoints) struct Live {
    about: About,
    feed: watch::Sender<Feed>,
    /// The last tick, also after the end.
    last: ArcSwapOption<LiveTick>,
    clients: Arc<Semaphore>,
    seen: Mutex<Seen>,
    /// Ticks before the start.
    past: ArcSwapOption<Vec<Arc<Tick>>>,
    answers: Mutex<Answers>,
    /// Held while an answer is computed: equal requests at one time are computed once.
    computing: Arc<tokio::sync::Mutex<()>>,
}

impl Live {
    pub(in crate::endpoints) fn new(
        started: f64,
        tick: Duration,
        recording: Option<ShownRecording>,
        price: Option<EnergyPrice>,
    ) -> Self {
        let (host, recording) = match recording {
            // The machine that shows it is not the one that it is of.
            Some(ShownRecording { host, about }) => (host, Some(about)),
            None => (cli::host::name().unwrap_or_default(), None),
        };
        Self {
            about: About { host, started, tick, recording, price },
            feed: watch::Sender::new(Feed::Starting),
            last: ArcSwapOption::empty(),
            clients: Arc::new(Semaphore::new(MAX_CLIENTS)),
            seen: Mutex::default(),
            past: ArcSwapOption::empty(),
            answers: Mutex::default(),
            computing: Arc::default(),
        }
    }

    /// Publishes a tick. A snapshot of the same tick with other states of sources is no event.
    pub(in crate::endpoints) fn publish(&self, snapshot: &Arc<Snapshot>) {
        let same = self.last.load().as_ref().is_some_and(|last| last.snapshot.sequence == snapshot.sequence);
        if !same {
            lock(&self.seen).observe(snapshot);
        }
        // Once the ring is full, its ticks no longer follow those before the start.
        let is_full = || snapshot.ring.ticks().next().is_some_and(|oldest| oldest.sequence > 0);
        if self.past.load().is_some() && is_full() {
            self.past.store(None);
        }
        let tick = Arc::new(LiveTick { snapshot: snapshot.clone(), event: OnceLock::new() });
        self.last.store(Some(tick.clone()));
        if !same {
            // Never after the end: a client that reads slowly would miss it.
            self.feed.send_if_modified(|feed| {
                let goes_on = !matches!(feed, Feed::End);
                if goes_on {
                    *feed = Feed::Tick(tick);
                }
                goes_on
            });
        }
    }

    /// Sets the ticks before the start, oldest first.
    pub(in crate::endpoints) fn set_past(&self, ticks: Vec<Arc<Tick>>) {
        self.past.store(Some(Arc::new(ticks)));
        lock(&self.answers).by_request.clear();
    }

    /// The answer of `/api/v1/now` and the number of its tick; `None` before the first.
    pub(in crate::endpoints) fn now(&self, containers: usize) -> Option<(u64, Bytes)> {
        let tick = self.last.load_full()?;
        Some((tick.snapshot.sequence, self.render_now(&tick.snapshot, containers.min(MAX_CONTAINERS))))
    }

    /// Ends the events of all clients.
    pub(in crate::endpoints) fn end(&self) {
        self.feed.send_replace(Feed::End);
    }

    /// The start of the period that ends with a tick.
    fn sample_before(&self, sequence: u64) -> Option<Arc<Sample>> {
        lock(&self.seen).samples.iter().find(|sample| sample.sequence < sequence).cloned()
    }

    fn render_now(&self, snapshot: &Snapshot, containers: usize) -> Bytes {
        let before = self.sample_before(snapshot.sequence);
        json(&now::answer(&self.about, snapshot, before.as_deref(), containers))
    }

    fn render_series(&self, snapshot: &Snapshot, request: &SeriesRequest) -> Bytes {
        let past = self.past.load_full();
        let mut ticks: Vec<Arc<Tick>> = past.iter().flat_map(|past| past.iter()).cloned().collect();
        let before = ticks.len();
        ticks.extend(snapshot.ring.ticks().cloned());
        let events: Vec<Event> = lock(&self.seen).events.iter().cloned().collect();
        json(&series::answer(&ticks, before, &events, request))
    }

    /// The length of a tick.
    pub(super) fn tick(&self) -> Duration {
        self.about.tick
    }

    /// A receiver of the ticks from now on; `None` for more clients than the limit.
    pub(super) fn subscribe(&self) -> Option<(watch::Receiver<Feed>, OwnedSemaphorePermit)> {
        let permit = self.clients.clone().try_acquire_owned().ok()?;
        let mut feed = self.feed.subscribe();
        let ended = matches!(*feed.borrow(), Feed::End);
        if ended {
            // A client that comes after the end sees it too.
            feed.mark_changed();
        }
        Some((feed, permit))
    }

    /// The event of a tick, rendered by the first client that needs it.
    pub(super) fn event(&self, tick: &LiveTick) -> Bytes {
        let render = || -> Bytes {
            let snapshot = &tick.snapshot;
            let before = self.sample_before(snapshot.sequence);
            let now = now::answer(&self.about, snapshot, before.as_deref(), DEFAULT_CONTAINERS);
            let data = json(&TickEvent { now, column: column(snapshot) });
            let head = format!("event: tick\nid: {}\ndata: ", snapshot.sequence);
            [head.as_bytes(), &data, b"\n\n"].concat().into()
        };
        tick.event.get_or_init(render).clone()
    }

    /// The answer to a request for the last tick, computed once per tick.
    pub(super) async fn answer(self: Arc<Self>, request: Request) -> Response {
        let Some(tick) = self.last.load_full() else { return starting() };
        let known = |live: &Self, sequence: u64| -> Option<Bytes> {
            let mut answers = lock(&live.answers);
            // One that waited for long must not discard the answers of a newer tick.
            if answers.sequence < sequence {
                *answers = Answers { sequence, by_request: BTreeMap::new() };
            }
            if answers.sequence == sequence { answers.by_request.get(&request).cloned() } else { None }
        };
        if let Some(answer) = known(&self, tick.snapshot.sequence) {
            return json_response(answer);
        }
        // Owned by the computation, because that goes on where the client has gone: clients that
        // ask and leave must not make many run at one time.
        let computing = self.computing.clone().lock_owned().await;
        // There may be a newer tick by now.
        let snapshot = self.last.load_full().unwrap_or(tick).snapshot.clone();
        if let Some(answer) = known(&self, snapshot.sequence) {
            return json_response(answer);
        }
        let live = self.clone();
        let compute = move || {
            let _computing = computing;
            let answer = match &request {
                Request::Now(containers) => live.render_now(&snapshot, *containers),
                Request::Series(series) => live.render_series(&snapshot, series),
            };
            live.keep(snapshot.sequence, request, &answer);
            answer
        };
        match tokio::task::spawn_blocking(compute).await {
            Ok(answer) => json_response(answer),
            Err(_) => error_response(StatusCode::INTERNAL_SERVER_ERROR, "failed", "the answer could not be computed"),
        }
    }

    /// Keeps an answer for other requests of its tick.
    fn keep(&self, sequence: u64, request: Request, answer: &Bytes) {
        let mut answers = lock(&self.answers);
        let bytes = answers.by_request.values().map(Bytes::len).sum::<usize>().saturating_add(answer.len());
        if answers.sequence == sequence && answers.by_request.len() < MAX_ANSWERS && bytes <= MAX_ANSWER_BYTES {
            answers.by_request.insert(request, answer.clone());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An answer on one line. Numbers that are not finite are null.
fn json(answer: &impl Serialize) -> Bytes {
    serde_json::to_vec(answer).unwrap_or_else(|_| b"null".to_vec()).into()
}

fn json_response(answer: Bytes) -> Response {
    ([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], answer).into_response()
}

#[derive(Serialize)]
struct TickEvent<'a> {
    now: NowResponse<'a>,
    column: Column,
}

/// One tick as a point of the series.
#[derive(Serialize)]
struct Column {
    time: f64,
    host: Option<f64>,
    uncertainty: Option<f64>,
    layers: ColumnLayers,
    /// Watts by key.
    containers: BTreeMap<String, f64>,
}

#[derive(Serialize)]
struct ColumnLayers {
    #[serde(flatten)]
    all: Layers<Option<f64>>,
    /// The part of `containers` of those that are not listed.
    other_containers: Option<f64>,
}

fn column(snapshot: &Snapshot) -> Column {
    // A reading after failed ones covers these too.
    const TICKS: usize = 9;
    let mut ticks: Vec<&Tick> = snapshot.ring.ticks().rev().take(TICKS).map(|tick| &**tick).collect();
    ticks.reverse();
    let columns = Columns::new(ticks);
    let at = columns.range().end - 1;
    let energy = columns.energy(at);
    let mut bounds = EdgeBounds::default();
    columns.bounds(at).for_each(|(id, bound_uj)| bounds.add(id, bound_uj));
    let (containers, other) = match energy {
        Some(_) => series::containers_of_tick(&columns, at, COLUMN_CONTAINERS),
        None => Default::default(),
    };
    let power = |joules: f64| energy.and_then(|energy| energy.watts(joules));
    Column {
        time: seconds(snapshot.unix_ns),
        host: energy.and_then(|energy| energy.watts(energy.host)),
        uncertainty: bounds.joules().and_then(power),
        layers: ColumnLayers {
            all: energy.unwrap_or_default().layers.map(power),
            other_containers: energy.map(|_| rounded(other)),
        },
        containers,
    }
}
