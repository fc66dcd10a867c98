//! The answer of `/api/v1/series`: power by layer and container over the past, in steps of wall
//! time.
//!
//! A tick belongs to the steps that it overlaps, in proportion to the overlap. So a step has the
//! energy of its own time, whatever the phase of the ticks, and a step without a tick is a gap.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    columns::{Columns, EdgeBounds, Energy, Layers, float, is_gpu, load, rounded},
    now::key,
};
use crate::{
    containers::Container,
    snapshot::history::{self, Tick, seconds},
};

/// Most points of an answer.
const MAX_POINTS: i64 = 2000;
/// Points of an answer without `step`.
const DEFAULT_POINTS: i64 = 450;
/// Longest period of an answer: a day.
const MAX_SECONDS: u32 = 86_400;
/// Most containers of an answer.
const MAX_CONTAINERS: usize = 500;
/// Most values of all containers of an answer, some two megabytes.
const MAX_VALUES: i64 = 200_000;
/// Longest key of a container that is looked up.
const MAX_KEY: usize = 2048;
const SECOND: i64 = 1_000_000_000;

/// A request. Numbers outside of the limits are the nearest limit.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct SeriesQuery {
    #[serde(default = "quarter_of_an_hour")]
    seconds: u32,
    step: Option<f64>,
    #[serde(default = "few")]
    containers: usize,
    container: Option<String>,
}

fn quarter_of_an_hour() -> u32 {
    900
}

fn few() -> usize {
    8
}

/// A request within the limits; the same answer has the same request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SeriesRequest {
    points: i64,
    step_ns: i64,
    containers: usize,
    container: Option<String>,
}

impl SeriesQuery {
    /// The request with a step that is a multiple of the tick; `None` where a number is not one.
    pub(super) fn request(self, tick: Duration) -> Option<SeriesRequest> {
        let length = i64::from(self.seconds.clamp(1, MAX_SECONDS)) * SECOND;
        let tick_ns = i64::try_from(tick.as_nanos()).unwrap_or(SECOND).max(1);
        let wanted = match self.step {
            None => length / DEFAULT_POINTS,
            Some(step) if step.is_finite() && step >= 0.0 => {
                let step = Duration::try_from_secs_f64(step.min(f64::from(MAX_SECONDS))).ok()?;
                i64::try_from(step.as_nanos()).ok()?
            }
            Some(_) => return None,
        };
        let least = wanted.max((length + MAX_POINTS - 1) / MAX_POINTS).max(1);
        let step_ns = (least + tick_ns - 1) / tick_ns * tick_ns;
        let points = ((length + step_ns - 1) / step_ns).clamp(1, MAX_POINTS);
        let most = usize::try_from(MAX_VALUES / points).unwrap_or(MAX_CONTAINERS);
        Some(SeriesRequest {
            points,
            step_ns,
            containers: self.containers.min(MAX_CONTAINERS).min(most),
            container: self.container.filter(|key| key.len() <= MAX_KEY),
        })
    }
}

/// What happened at a time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Event {
    pub(super) time: f64,
    pub(super) text: String,
}

#[derive(Serialize)]
pub(super) struct SeriesResponse {
    start: f64,
    end: f64,
    step: f64,
    time: Vec<f64>,
    host: Vec<Option<f64>>,
    uncertainty: Vec<Option<f64>>,
    layers: SeriesLayers,
    containers: Vec<ContainerSeries>,
    events: Vec<Event>,
}

#[derive(Serialize)]
struct SeriesLayers {
    idle: Vec<Option<f64>>,
    awake: Vec<Option<f64>>,
    system: Vec<Option<f64>>,
    gpu: Vec<Option<f64>>,
    retired: Vec<Option<f64>>,
    unattributed: Vec<Option<f64>>,
    other_containers: Vec<Option<f64>>,
}

#[derive(Serialize)]
struct ContainerSeries {
    key: String,
    name: String,
    watts: Vec<Option<f64>>,
}

/// A container in the period.
struct Entry {
    key: String,
    name: String,
    joules: f64,
}

/// The containers of the period. One that has another name, or that a restarted probe found again,
/// is the same.
#[derive(Default)]
struct Entries {
    all: Vec<Entry>,
    by_key: HashMap<String, usize>,
    /// By address. The ticks keep every container that is in here.
    by_address: HashMap<usize, usize>,
}

impl Entries {
    fn index(&mut self, container: &Arc<Container>) -> usize {
        let Self { all, by_key, by_address } = self;
        *by_address.entry(Arc::as_ptr(container).addr()).or_insert_with(|| {
            let key = key(container);
            let index = *by_key.entry(key.clone()).or_insert_with(|| {
                all.push(Entry { key, name: String::new(), joules: 0.0 });
                all.len() - 1
            });
            all[index].name.clone_from(&container.name);
            index
        })
    }

    /// The indices of the containers with series of their own, largest first.
    fn selected(&self, request: &SeriesRequest) -> Vec<usize> {
        if let Some(key) = &request.container {
            return self.by_key.get(key).copied().into_iter().collect();
        }
        let mut order: Vec<usize> = (0..self.all.len()).filter(|index| self.all[*index].joules > 0.0).collect();
        order.sort_by(|one, other| {
            let (one, other) = (&self.all[*one], &self.all[*other]);
            other.joules.total_cmp(&one.joules).then_with(|| one.key.cmp(&other.key))
        });
        order.truncate(request.containers);
        order
    }
}

/// One step of the answer.
#[derive(Clone, Default)]
struct Step {
    energy: Energy,
    bounds: EdgeBounds,
    /// By position in the selection.
    containers: Vec<f64>,
}

/// The steps of an answer.
struct Steps {
    first: i64,
    step_ns: i64,
    all: Vec<Step>,
}

impl Steps {
    /// The steps that end with the one of `newest_ns`.
    fn new(newest_ns: i64, request: &SeriesRequest) -> Self {
        let last = (newest_ns - 1).div_euclid(request.step_ns);
        let points = usize::try_from(request.points).unwrap_or(1);
        let first = last - request.points + 1;
        Self { first, step_ns: request.step_ns, all: vec![Step::default(); points] }
    }

    fn start_ns(&self) -> i64 {
        self.first * self.step_ns
    }

    /// The steps that a tick overlaps, and the part of it in each.
    fn overlaps(&self, end_ns: i64, length_ns: f64) -> Vec<(usize, f64)> {
        let length = whole(length_ns).max(1);
        let start_ns = end_ns.saturating_sub(length);
        let (first, last) = (start_ns.div_euclid(self.step_ns), (end_ns - 1).div_euclid(self.step_ns));
        let here = first.max(self.first)..=last.min(self.first + points(&self.all) - 1);
        let part = |step: i64| {
            let (begin, end) = (step * self.step_ns, (step + 1) * self.step_ns);
            let overlap = end.min(end_ns) - begin.max(start_ns);
            Some((usize::try_from(step - self.first).ok()?, float(overlap) / float(length)))
        };
        here.filter_map(part).collect()
    }
}

/// The answer over `ticks`, oldest first; the first `past` of them are from before the start.
/// `others` are events that the ticks do not show.
pub(super) fn answer(ticks: &[Arc<Tick>], past: usize, others: &[Event], request: &SeriesRequest) -> SeriesResponse {
    let newest_ns = ticks.last().map_or(0, |tick| tick.unix_ns);
    let mut steps = Steps::new(newest_ns, request);
    let first = first_of_period(ticks, steps.start_ns());
    let period: Vec<&Tick> = ticks[first..].iter().map(|tick| &**tick).collect();
    let columns = Columns::with_break(period, past.checked_sub(first));
    let known: Vec<(usize, Energy)> = columns.range().filter_map(|at| Some((at, columns.energy(at)?))).collect();

    let mut entries = Entries::default();
    for (at, energy) in &known {
        let inside: f64 = steps.overlaps(columns.tick(*at).unix_ns, energy.ns).iter().map(|(_, part)| part).sum();
        for (row, part) in columns.rows(*at).filter(|(row, _)| !is_gpu(row.id)) {
            let index = entries.index(row.container);
            entries.all[index].joules += load(row).joules() * part * inside;
        }
    }
    let selected = entries.selected(request);
    let mut positions = vec![None; entries.all.len()];
    selected.iter().enumerate().for_each(|(position, index)| positions[*index] = Some(position));
    for (at, energy) in &known {
        let overlaps = steps.overlaps(columns.tick(*at).unix_ns, energy.ns);
        for (step, part) in &overlaps {
            let step = &mut steps.all[*step];
            step.energy.add(energy, *part);
            step.containers.resize(selected.len(), 0.0);
            columns.bounds(*at).for_each(|(id, bound_uj)| step.bounds.add(id, bound_uj));
        }
        for (row, part) in columns.rows(*at).filter(|(row, _)| !is_gpu(row.id)) {
            let Some(position) = positions[entries.index(row.container)] else { continue };
            for (step, overlap) in &overlaps {
                steps.all[*step].containers[position] += load(row).joules() * part * overlap;
            }
        }
    }
    let shown = selected.iter().map(|index| &entries.all[*index]);
    let mut events = events(&columns);
    events.extend_from_slice(others);
    response(&steps, shown, events)
}

fn response<'a>(steps: &Steps, shown: impl Iterator<Item = &'a Entry>, mut events: Vec<Event>) -> SeriesResponse {
    let layer = |part: fn(&Layers<f64>) -> f64| -> Vec<Option<f64>> {
        steps.all.iter().map(|step| step.energy.watts(part(&step.energy.layers))).collect()
    };
    let others = |step: &Step| step.energy.layers.containers - step.containers.iter().sum::<f64>();
    let of_container = |position: usize| -> Vec<Option<f64>> {
        let joules = |step: &Step| step.containers.get(position).copied().unwrap_or(0.0);
        steps.all.iter().map(|step| step.energy.watts(joules(step))).collect()
    };
    let containers = shown.enumerate().map(|(position, entry)| ContainerSeries {
        key: entry.key.clone(),
        name: entry.name.clone(),
        watts: of_container(position),
    });
    let ends = (1..=points(&steps.all)).map(|at| seconds((steps.first + at) * steps.step_ns));
    let time: Vec<f64> = ends.collect();
    let (start, end) = (seconds(steps.start_ns()), time.last().copied().unwrap_or(0.0));
    events.retain(|event| (start..=end).contains(&event.time));
    events.sort_by(|one, other| one.time.total_cmp(&other.time));
    SeriesResponse {
        start,
        end,
        step: seconds(steps.step_ns),
        host: steps.all.iter().map(|step| step.energy.watts(step.energy.host)).collect(),
        uncertainty: steps.all.iter().map(|step| step.energy.watts(step.bounds.joules()?)).collect(),
        layers: SeriesLayers {
            idle: layer(|layers| layers.idle),
            awake: layer(|layers| layers.awake),
            system: layer(|layers| layers.system),
            gpu: layer(|layers| layers.gpu),
            retired: layer(|layers| layers.retired),
            unattributed: layer(|layers| layers.unattributed),
            // A difference of sums of doubles: never a little below zero.
            other_containers: steps.all.iter().map(|step| step.energy.watts(others(step).max(0.0))).collect(),
        },
        containers: containers.collect(),
        events,
        time,
    }
}

/// The first tick that is needed: that in which the period starts, and some before it, because a
/// later reading may cover them too.
fn first_of_period(ticks: &[Arc<Tick>], start_ns: i64) -> usize {
    const BEFORE: usize = 8;
    ticks.iter().rposition(|tick| tick.unix_ns <= start_ns).unwrap_or(0).saturating_sub(BEFORE)
}

/// The restarts of the probe and the steps of the wall clock that the ticks show.
fn events(columns: &Columns<'_>) -> Vec<Event> {
    let event = |at: usize| {
        let (before, after) = (columns.tick(at - 1), columns.tick(at));
        let text = if columns.is_break(at) && after.sequence > 0 {
            "older ticks of this run are not kept".to_owned()
        } else if columns.is_break(at) || after.monotonic_ns <= before.monotonic_ns {
            "probe restarted".to_owned()
        } else {
            let by = seconds(history::step(before, after)?);
            let why = if by > 0.0 { "was set, or the machine was suspended" } else { "was set" };
            format!("the clock {why}: {by:+.1} s")
        };
        Some(Event { time: seconds(after.unix_ns), text })
    };
    columns.range().filter_map(event).collect()
}

/// Power of the containers in one tick, by key: the largest `limit`, and the rest.
pub(super) fn containers_of_tick(columns: &Columns<'_>, at: usize, limit: usize) -> (BTreeMap<String, f64>, f64) {
    let mut entries = Entries::default();
    for (row, part) in columns.rows(at).filter(|(row, _)| !is_gpu(row.id)) {
        let index = entries.index(row.container);
        entries.all[index].joules += load(row).joules() * part;
    }
    let request = SeriesRequest { points: 1, step_ns: 1, containers: limit, container: None };
    let length_ns = columns.length_ns(at).unwrap_or(f64::INFINITY);
    let selected = entries.selected(&request);
    let power = |index: &usize| entries.all[*index].joules * 1e9 / length_ns;
    let shown: BTreeMap<String, f64> =
        selected.iter().map(|index| (entries.all[*index].key.clone(), rounded(power(index)))).collect();
    let all: f64 = (0..entries.all.len()).map(|index| power(&index)).sum();
    (shown, rounded((all - selected.iter().map(power).sum::<f64>()).max(0.0)))
}

fn points(steps: &[Step]) -> i64 {
    i64::try_from(steps.len()).unwrap_or(MAX_POINTS)
}

#[expect(clippy::cast_possible_truncation, reason = "a length of time below 2^53 ns, or the largest number")]
fn whole(ns: f64) -> i64 {
    ns as i64
}
