//! Energy of a long period by workload and stream, from the samples of a probe's counters.
//!
//! Samples are added in batches, in the order of time, so that a month needs no more memory than
//! its longest batch. The energy between two samples is spread over the slots of the period in
//! whole microjoules that sum to it; a decrease is a reset, after which a counter started from
//! zero. Counters that restarted above their old value are recognised by the start of the probe's
//! totals, and so are those that continue where an earlier probe ended. A counter that appears
//! while its host was sampled before started from zero after the sample before; so did one that
//! appears again after it was missing in samples of its host, as a container that was away for
//! days.
//!
//! Several scrapers of one probe are one counter: at each time the samples of only one are used,
//! and those of another where it has a gap.

use std::collections::{BTreeMap, BTreeSet};

use super::counter::Sample;

/// Longest distance of two samples that is no gap, in microseconds: Prometheus' own limit of
/// staleness.
pub const GAP_US: i64 = 300_000_000;
/// Distance that the samples of another scraper keep from those of the first, in microseconds:
/// their clocks may differ, and values in the wrong order would be a reset.
const SKEW_US: i64 = 5_000_000;
/// Starts of which a counter keeps its last value: a probe may continue the totals of one before
/// the last, from a state directory that another one did not use.
const MAX_FORMER: usize = 4;
/// Maximum number of counters of a period. Each has a number for every slot.
pub const MAX_COUNTERS: usize = 20_000;
/// Maximum of counters times slots: 512 MiB. A year has a dozen times the slots of a month.
pub(crate) const MAX_NUMBERS: usize = 64 << 20;

/// Metrics of the host.
pub const HOST_METRICS: [&str; 7] = [
    ENERGY,
    "wattcast_system_energy_joules_total",
    "wattcast_idle_energy_joules_total",
    "wattcast_unattributed_energy_joules_total",
    START,
    RESTARTS,
    UNCOUNTED,
];
/// Metrics of workloads and streams.
pub const WORKLOAD_METRICS: [&str; 6] = [
    "wattcast_container_energy_joules_total",
    "wattcast_container_awake_energy_joules_total",
    "wattcast_container_idle_energy_joules_total",
    "wattcast_stream_energy_joules_total",
    BOUND,
    LABEL_INFO,
];
const ENERGY: &str = "wattcast_energy_joules_total";
const START: &str = "wattcast_totals_start_timestamp_seconds";
const RESTARTS: &str = "wattcast_totals_restarts_total";
const UNCOUNTED: &str = "wattcast_totals_gap_seconds_total";
const BOUND: &str = "wattcast_energy_uncertainty_watts";
const LABEL_INFO: &str = "wattcast_container_label_info";

/// The slots of a period, in each of which price and carbon intensity are constant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Unix microseconds, ascending; one more than slots.
    edges: Vec<i64>,
}

impl Slots {
    /// The slots between `edges` in unix microseconds.
    #[must_use]
    pub fn new(mut edges: Vec<i64>) -> Self {
        edges.sort_unstable();
        edges.dedup();
        Self { edges }
    }

    /// Number of slots.
    #[must_use]
    pub fn count(&self) -> usize {
        self.edges.len().saturating_sub(1)
    }

    /// Start of the first slot.
    #[must_use]
    pub fn start(&self) -> i64 {
        self.edges.first().copied().unwrap_or_default()
    }

    /// End of the last slot.
    #[must_use]
    pub fn end(&self) -> i64 {
        self.edges.last().copied().unwrap_or_default()
    }

    /// Start and end of each slot.
    pub fn iter(&self) -> impl Iterator<Item = (i64, i64)> + '_ {
        self.edges.windows(2).map(|pair| (pair[0], pair[1]))
    }

    /// Spreads `whole`, which grew evenly from `from` to `to`, over the slots. What lies outside of
    /// the period is left out. Parts of adjacent slots always sum to the whole.
    pub fn spread(&self, (from, to): (i64, i64), whole: u64, into: &mut [u64]) {
        if to <= from {
            return;
        }
        let part = |edge: i64| -> u64 {
            let passed = u128::from(edge.clamp(from, to).abs_diff(from));
            // At most `whole`.
            u64::try_from(u128::from(whole) * passed / u128::from(to.abs_diff(from))).unwrap_or(whole)
        };
        let first = self.edges.partition_point(|edge| *edge <= from).saturating_sub(1);
        for (slot, sum) in into.iter_mut().enumerate().skip(first) {
            let (Some(start), Some(end)) = (self.edges.get(slot), self.edges.get(slot + 1)) else { break };
            if *start >= to {
                break;
            }
            *sum = sum.saturating_add(part(*end) - part(*start));
        }
    }
}

/// The samples of one series in one batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CounterSeries {
    /// The metric, one of [`HOST_METRICS`] or [`WORKLOAD_METRICS`].
    pub metric: String,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// In the order of time.
    pub samples: Vec<Sample>,
}

impl CounterSeries {
    fn label(&self, name: &str) -> &str {
        self.labels.get(name).map(String::as_str).unwrap_or_default()
    }

    fn key(&self) -> CounterKey {
        let stream = match &*self.metric {
            "wattcast_stream_energy_joules_total" => {
                // A container that gets its name later is the same; a job of its own has no id.
                let container = if self.label("id").is_empty() { self.label("container") } else { "" };
                [self.label("stream"), self.label("codec"), self.label("share"), container].map(str::to_owned).to_vec()
            }
            _ => Vec::new(),
        };
        CounterKey { metric: self.metric.clone(), id: self.label("id").to_owned(), stream, root: self.root() }
    }

    fn root(&self) -> RootKey {
        ["package", "zone", "source"].map(|name| self.label(name).to_owned())
    }
}

/// Labels of an accounting root: package, zone, source.
type RootKey = [String; 3];

/// Identity of a counter on its host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct CounterKey {
    metric: String,
    id: String,
    /// Stream, codec, share, and the container of a stream without an id; empty for others.
    stream: Vec<String>,
    root: RootKey,
}

/// A counter, and the last of its samples.
#[derive(Clone, Debug, Default)]
struct Counter {
    last: Option<(i64, u64)>,
    /// The labels of the series that the last samples are from.
    labels: BTreeMap<String, String>,
    slots: Vec<u64>,
    /// Microseconds between samples within the period, without gaps.
    sampled_us: u64,
    /// Energy between the samples around the edges of the period, of which a part was interpolated.
    edge: u64,
    /// Last values before resets, with the start of the totals then; the newest last.
    former: Vec<(u64, u64)>,
}

impl Counter {
    /// Keeps the last value under one start of the totals, and returns that under another one if
    /// the counter continues it.
    fn resume(&mut self, (old, value): (Option<u64>, u64), now: (Option<u64>, u64)) -> Option<u64> {
        if let Some(old) = old {
            self.former.retain(|(start, _)| *start != old);
            self.former.push((old, value));
            let excess = self.former.len().saturating_sub(MAX_FORMER);
            self.former.drain(..excess);
        }
        let known = self.former.iter().find(|(start, _)| Some(*start) == now.0);
        known.map(|(_, value)| *value).filter(|value| *value <= now.1)
    }

    /// Adds the growth from the last sample to this one.
    fn step(&mut self, slots: &Slots, before: (i64, u64), after: (i64, u64), reset: bool) {
        let whole = if reset || after.1 < before.1 { after.1 } else { after.1 - before.1 };
        self.slots.resize(slots.count(), 0);
        slots.spread((before.0, after.0), whole, &mut self.slots);
        let (from, to) = (before.0.max(slots.start()), after.0.min(slots.end()));
        if from >= to {
            return;
        }
        if from > before.0 || to < after.0 {
            self.edge = self.edge.saturating_add(whole);
        }
        if after.0 - before.0 <= GAP_US {
            self.sampled_us = self.sampled_us.saturating_add(to.abs_diff(from));
        }
    }
}

/// A time of a host without samples, or whose energy was not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Start in unix microseconds.
    pub from: i64,
    /// End in unix microseconds.
    pub to: i64,
    /// Microseconds whose energy is in no counter, at most. The energy of the others is known; only
    /// when in the gap it was used is not.
    pub uncounted_us: u64,
}

impl Gap {
    /// Length in microseconds.
    #[must_use]
    pub fn length_us(&self) -> u64 {
        self.to.abs_diff(self.from)
    }

    /// True if its samples are too far apart to tell when its energy was used; false for a short
    /// restart.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.length_us() > GAP_US.unsigned_abs()
    }
}

/// Energy of one workload in microjoules by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadUsage {
    /// The label `id`.
    pub id: String,
    /// The newest value of the label `container`.
    pub name: String,
    /// The newest value of the label `namespace`; empty outside of Kubernetes.
    pub namespace: String,
    /// Labels of the container that the probe exports.
    pub labels: BTreeMap<String, String>,
    /// Dynamic energy, with that of being awake.
    pub dynamic: Vec<u64>,
    /// Its part for keeping packages awake.
    pub awake: Vec<u64>,
    /// Idle energy that the probe's policy attributed.
    pub idle: Vec<u64>,
    /// Microseconds in which it was sampled; absent where the source does not tell.
    pub sampled_us: Option<u64>,
    /// Bound of the error of the dynamic energy in microjoules, as if all errors had the same sign;
    /// absent unless it is known for nearly all of the time.
    pub bound: Option<u64>,
    /// Values of the label `source`.
    pub sources: BTreeSet<String>,
}

/// Energy of one stream in microjoules by slot: a part of its container's dynamic energy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamUsage {
    /// The label `stream`.
    pub stream: String,
    /// The label `container`.
    pub container: String,
    /// The label `id` of the container; empty for a job with a row of its own.
    pub id: String,
    /// Dynamic energy.
    pub dynamic: Vec<u64>,
    /// Microseconds in which it was sampled.
    pub sampled_us: u64,
    /// Values of the label `source`.
    pub sources: BTreeSet<String>,
}

/// Energy of one host in the period, in microjoules by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostUsage {
    /// The host as the database or the configuration names it.
    pub host: String,
    /// Measured energy of all accounting roots. All other rows are parts of it.
    pub measured: Vec<u64>,
    /// Dynamic energy outside of workloads.
    pub system: Vec<u64>,
    /// Idle energy that is not attributed to workloads.
    pub idle: Vec<u64>,
    /// Dynamic energy that is not attributed.
    pub unattributed: Vec<u64>,
    /// All workloads.
    pub workloads: Vec<WorkloadUsage>,
    /// All streams.
    pub streams: Vec<StreamUsage>,
    /// Times without samples or uncounted energy, in order.
    pub gaps: Vec<Gap>,
    /// Measured energy between the samples around the edges of the period.
    pub edge: u64,
    /// Microseconds in which the host was sampled.
    pub sampled_us: u64,
    /// Values of the label `source` of the roots.
    pub sources: BTreeSet<String>,
}

/// The state of one host between two batches.
#[derive(Clone, Debug, Default)]
struct HostState {
    counters: BTreeMap<CounterKey, Counter>,
    /// Last values of the start of the totals, their restarts and their uncounted time.
    continuity: [Option<u64>; 3],
    /// From when on the totals have which start, in order.
    starts: Vec<(i64, u64)>,
    last_sample: Option<i64>,
    gaps: Vec<Gap>,
    sampled_us: u64,
    /// Sample times of this batch, with the last one before it.
    times: Vec<i64>,
    /// Pairs of adjacent times between which all counters started again. A workload may have its
    /// next sample long after one.
    resets: Vec<(i64, i64)>,
    /// Pairs between which the probe was restarted, whether its totals continued or not.
    restarts: Vec<(i64, i64)>,
    /// Times in which the host was sampled, without gaps, in order: start and end.
    sampled: Vec<(i64, i64)>,
    /// The bound of power over time by id.
    bounds: BTreeMap<String, Bound>,
    info: BTreeMap<String, WorkloadInfo>,
}

/// The bound of a workload's power over time.
#[derive(Clone, Debug, Default)]
struct Bound {
    /// The labels of the series that the last samples are from.
    labels: BTreeMap<String, String>,
    last: Option<(i64, u64)>,
    /// Its integral in microjoules, and the microseconds in which it is known.
    microjoules: u64,
    known_us: u64,
}

impl Bound {
    fn step(&mut self, slots: &Slots, before: (i64, u64), after: (i64, u64)) {
        let (from, to) = (before.0.max(slots.start()), after.0.min(slots.end()));
        if to <= from || after.0 - before.0 > GAP_US {
            return;
        }
        let length = to.abs_diff(from);
        let microjoules = u128::from(after.1.max(before.1)) * u128::from(length) / 1_000_000;
        self.microjoules = self.microjoules.saturating_add(u64::try_from(microjoules).unwrap_or(u64::MAX));
        self.known_us = self.known_us.saturating_add(length);
    }
}

#[derive(Clone, Debug, Default)]
struct WorkloadInfo {
    name: String,
    namespace: String,
    labels: BTreeMap<String, String>,
}

/// Collects the usage of all hosts of a period.
#[derive(Clone, Debug)]
pub struct UsageBuilder {
    slots: Slots,
    hosts: BTreeMap<String, HostState>,
}

/// More counters than [`MAX_COUNTERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "more than {} counters, or too many for so long a period; name one host with --host, or a shorter period",
    MAX_COUNTERS
)]
pub struct TooManyCounters;

impl UsageBuilder {
    /// Without samples yet.
    #[must_use]
    pub fn new(slots: Slots) -> Self {
        Self { slots, hosts: BTreeMap::new() }
    }

    /// Adds the samples of all [`HOST_METRICS`] of one batch, by host. They come before those of
    /// its workloads, because they tell where counters started again.
    ///
    /// # Errors
    /// If there are too many counters.
    pub fn add_hosts(&mut self, batch: Vec<(String, CounterSeries)>) -> Result<(), TooManyCounters> {
        for state in self.hosts.values_mut() {
            state.times = Vec::new();
        }
        for (host, all) in by_host(batch) {
            let state = self.hosts.entry(host).or_default();
            state.note_times(&self.slots, &all);
            state.add(&self.slots, all);
            state.last_sample = state.times.last().copied().or(state.last_sample);
        }
        self.check_size()
    }

    /// Adds the samples of [`WORKLOAD_METRICS`] of the same batch, by host.
    ///
    /// # Errors
    /// If there are too many counters.
    pub fn add_workloads(&mut self, batch: Vec<(String, CounterSeries)>) -> Result<(), TooManyCounters> {
        for (host, all) in by_host(batch) {
            // A host without samples of its own has no account that a workload could be a part of.
            let Some(state) = self.hosts.get_mut(&host) else { continue };
            let (info, counters): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|series| series.metric == BOUND || series.metric == LABEL_INFO);
            state.add(&self.slots, counters);
            let (bounds, info): (Vec<_>, Vec<_>) = info.into_iter().partition(|series| series.metric == BOUND);
            state.add_bounds(&self.slots, bounds);
            for series in info {
                let labels = &mut state.info.entry(series.label("id").to_owned()).or_default().labels;
                labels.insert(series.label("label").to_owned(), series.label("value").to_owned());
            }
        }
        self.check_size()
    }

    fn check_size(&self) -> Result<(), TooManyCounters> {
        let count: usize = self.hosts.values().map(|state| state.counters.len()).sum();
        let is_too_much = count > MAX_COUNTERS || count.saturating_mul(self.slots.count()) > MAX_NUMBERS;
        if is_too_much { Err(TooManyCounters) } else { Ok(()) }
    }

    /// The usage of all hosts, in the order of their names.
    #[must_use]
    pub fn finish(self) -> Vec<HostUsage> {
        let slots = self.slots;
        self.hosts.into_iter().map(|(host, state)| state.finish(host, &slots)).collect()
    }
}

/// The series of each host.
fn by_host(batch: Vec<(String, CounterSeries)>) -> BTreeMap<String, Vec<CounterSeries>> {
    let mut hosts: BTreeMap<String, Vec<CounterSeries>> = BTreeMap::new();
    for (host, series) in batch {
        hosts.entry(host).or_default().push(series);
    }
    hosts
}

impl HostState {
    /// Notes the times of a batch, its gaps, and where counters started again.
    fn note_times(&mut self, slots: &Slots, all: &[CounterSeries]) {
        let roots = || all.iter().filter(|series| series.metric == ENERGY);
        let times = roots().flat_map(|series| &series.samples).map(microseconds);
        let times: BTreeSet<i64> = times.filter(|at| Some(*at) > self.last_sample).collect();
        self.times = self.last_sample.into_iter().chain(times).collect();
        let gauges = [START, RESTARTS, UNCOUNTED].map(|name| {
            let series = all.iter().filter(|series| series.metric == name);
            let samples = series.flat_map(|series| &series.samples).map(|sample| (microseconds(sample), sample.micro));
            samples.collect::<BTreeMap<i64, u64>>()
        });
        let at = |time: i64| gauges.each_ref().map(|values| values.get(&time).copied());
        let fell = self.all_fell(all);
        if self.last_sample.is_none()
            && let Some(first) = self.times.first().copied()
        {
            self.continuity = at(first);
            self.starts.extend(self.continuity[0].map(|start| (first, start)));
            if first - slots.start() > GAP_US {
                // The first sample may be after the end: one is needed there for the edge.
                let to = first.min(slots.end());
                self.gaps.push(Gap { from: slots.start(), to, uncounted_us: to.abs_diff(slots.start()) });
            }
        }
        for pair in self.times.clone().windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let ([start_before, restarts_before, uncounted_before], now) = (self.continuity, at(to));
            let [start, restarts, uncounted] = now;
            // A probe that does not tell the start of its totals never continues them.
            let is_reset = if start.is_some() { start != start_before } else { fell.contains(&to) };
            if is_reset {
                self.resets.push((from, to));
                self.starts.extend(start.map(|start| (to, start)));
            }
            if is_reset || restarts.is_some_and(|restarts| Some(restarts) != restarts_before) {
                self.restarts.push((from, to));
            }
            let grown = uncounted.unwrap_or(0).saturating_sub(uncounted_before.unwrap_or(0));
            // A gauge that is missing once has not changed: else its return would be a reset.
            self.continuity = std::array::from_fn(|at| now[at].or(self.continuity[at]));
            self.note_interval(slots, from, to, if is_reset { to.abs_diff(from) } else { grown });
        }
    }

    /// Times at which every accounting root is below its value before.
    fn all_fell(&self, all: &[CounterSeries]) -> BTreeSet<i64> {
        let mut falls: BTreeMap<i64, bool> = BTreeMap::new();
        let mut by_key: BTreeMap<CounterKey, Vec<CounterSeries>> = BTreeMap::new();
        for series in all.iter().filter(|series| series.metric == ENERGY) {
            by_key.entry(series.key()).or_default().push(series.clone());
        }
        for (key, series) in by_key {
            // As they are counted: a fall in the samples of each scraper would be a reset for each.
            let known = self.counters.get(&key);
            let mut last = known.and_then(|counter| counter.last);
            let Some((samples, _)) = merged(series, known.map(|counter| &counter.labels)) else { continue };
            for sample in &samples {
                let at = microseconds(sample);
                if let Some((_, before)) = last.filter(|(before, _)| *before < at) {
                    *falls.entry(at).or_insert(true) &= sample.micro < before;
                }
                last = Some((at, sample.micro));
            }
        }
        falls.into_iter().filter(|(_, all)| *all).map(|(at, _)| at).collect()
    }

    fn note_interval(&mut self, slots: &Slots, from: i64, to: i64, uncounted_us: u64) {
        if to - from <= GAP_US {
            match self.sampled.last_mut() {
                Some((_, end)) if *end == from => *end = to,
                _ => self.sampled.push((from, to)),
            }
        }
        let (start, end) = (from.max(slots.start()), to.min(slots.end()));
        if start >= end {
            return;
        }
        let is_long = to - from > GAP_US;
        if !is_long {
            self.sampled_us = self.sampled_us.saturating_add(end.abs_diff(start));
        }
        if is_long || uncounted_us > 0 {
            self.gaps.push(Gap { from: start, to: end, uncounted_us: uncounted_us.min(end.abs_diff(start)) });
        }
    }

    /// True if a counter without samples between two times was missing in those of its host for
    /// longer than a gap: its row had ended, and a row that begins again begins at zero.
    fn was_away(&self, from: i64, to: i64) -> bool {
        let inside = self.sampled.iter().map(|(start, end)| (*end.min(&to) - *start.max(&from)).max(0));
        to - from > GAP_US && inside.sum::<i64>() > GAP_US
    }

    /// The start of the totals at a time; `None` if the probe does not tell it.
    fn start_at(&self, at: i64) -> Option<u64> {
        self.starts.iter().rev().find(|(from, _)| *from <= at).map(|(_, start)| *start)
    }

    /// Adds the counters of a batch.
    fn add(&mut self, slots: &Slots, all: Vec<CounterSeries>) {
        let mut by_key: BTreeMap<CounterKey, Vec<CounterSeries>> = BTreeMap::new();
        for series in all.into_iter().filter(|series| series.metric.ends_with("_joules_total")) {
            by_key.entry(series.key()).or_default().push(series);
        }
        for (key, series) in by_key {
            let known = self.counters.get(&key).map(|counter| &counter.labels);
            let Some((samples, newest)) = merged(series, known) else { continue };
            if key.metric == "wattcast_container_energy_joules_total" {
                let info = self.info.entry(key.id.clone()).or_default();
                let label = |name: &str| newest.get(name).cloned().unwrap_or_default();
                (info.name, info.namespace) = (label("container"), label("namespace"));
            }
            // Each probe numbers the rows of single jobs from zero.
            let breaks = if key.id.starts_with("job:") { &self.restarts } else { &self.resets };
            let of_host = HOST_METRICS.contains(&&*key.metric);
            let mut counter = self.counters.remove(&key).unwrap_or_default();
            counter.labels = newest;
            for sample in samples {
                let now = (microseconds(&sample), sample.micro);
                let before = match counter.last {
                    Some(last) if last.0 >= now.0 => continue,
                    Some(last) if of_host || !self.was_away(last.0, now.0) => Some(last),
                    _ => self.times.iter().rev().find(|at| **at < now.0).map(|at| (*at, 0)),
                };
                if let Some(before) = before {
                    let reset = breaks.iter().any(|(from, to)| before.0 <= *from && now.0 >= *to);
                    // Jobs are numbered from zero by each probe, so none continues.
                    let continues = reset && counter.last == Some(before) && !key.id.starts_with("job:");
                    let starts = [before.0, now.0].map(|at| self.start_at(at));
                    let former = continues.then(|| counter.resume((starts[0], before.1), (starts[1], now.1))).flatten();
                    counter.step(slots, (before.0, former.unwrap_or(before.1)), now, reset && former.is_none());
                }
                counter.last = Some(now);
            }
            self.counters.insert(key, counter);
        }
    }

    /// Adds the bounds of the power of workloads, one for each, however many scrape it.
    fn add_bounds(&mut self, slots: &Slots, all: Vec<CounterSeries>) {
        let mut by_id: BTreeMap<String, Vec<CounterSeries>> = BTreeMap::new();
        for series in all {
            by_id.entry(series.label("id").to_owned()).or_default().push(series);
        }
        for (id, series) in by_id {
            let own = self.bounds.entry(id).or_default();
            let Some((samples, newest)) = merged(series, Some(&own.labels)) else { continue };
            own.labels = newest;
            for sample in &samples {
                let now = (microseconds(sample), sample.micro);
                match own.last {
                    Some(last) if last.0 >= now.0 => continue,
                    Some(last) => own.step(slots, last, now),
                    None => {}
                }
                own.last = Some(now);
            }
        }
    }

    fn finish(mut self, host: String, slots: &Slots) -> HostUsage {
        if let Some(last) = self.last_sample
            && slots.end() - last > GAP_US
        {
            let from = last.max(slots.start());
            self.gaps.push(Gap { from, to: slots.end(), uncounted_us: slots.end().abs_diff(from) });
        }
        self.gaps.sort_by_key(|gap| (gap.from, gap.to));
        // Only accounting roots have an idle row; other zones are parts of these.
        let idle_rows = self.counters.keys().filter(|key| key.metric == "wattcast_idle_energy_joules_total");
        let roots: BTreeSet<RootKey> = idle_rows.map(|key| key.root.clone()).collect();
        let empty = || vec![0; slots.count()];
        let mut usage = HostUsage {
            host,
            measured: empty(),
            system: empty(),
            idle: empty(),
            unattributed: empty(),
            gaps: self.gaps,
            sampled_us: self.sampled_us,
            ..HostUsage::default()
        };
        let mut workloads: BTreeMap<String, WorkloadUsage> = BTreeMap::new();
        let mut streams: BTreeMap<[String; 3], StreamUsage> = BTreeMap::new();
        for (key, counter) in &self.counters {
            if key.stream.is_empty() && !roots.contains(&key.root) {
                continue;
            }
            match &*key.metric {
                ENERGY => {
                    add_slots(&mut usage.measured, &counter.slots);
                    usage.edge = usage.edge.saturating_add(counter.edge);
                    usage.sources.insert(key.root[2].clone());
                }
                "wattcast_system_energy_joules_total" => add_slots(&mut usage.system, &counter.slots),
                "wattcast_idle_energy_joules_total" => add_slots(&mut usage.idle, &counter.slots),
                "wattcast_unattributed_energy_joules_total" => add_slots(&mut usage.unattributed, &counter.slots),
                "wattcast_stream_energy_joules_total" => add_stream(&mut streams, key, counter, slots),
                _ => add_workload(&mut workloads, key, counter, slots),
            }
        }
        for (id, row) in &mut workloads {
            if let Some(info) = self.info.remove(id) {
                (row.name, row.namespace, row.labels) = (info.name, info.namespace, info.labels);
            }
            // Nearly all: the first minute of each run has none.
            let sampled = row.sampled_us.unwrap_or(0);
            let known = self.bounds.get(id).filter(|bound| bound.known_us >= sampled / 20 * 19);
            row.bound = known.map(|bound| bound.microjoules);
        }
        usage.workloads = workloads.into_values().collect();
        usage.streams = streams.into_values().collect();
        usage
    }
}

/// Adds a counter of a stream.
fn add_stream(streams: &mut BTreeMap<[String; 3], StreamUsage>, key: &CounterKey, counter: &Counter, slots: &Slots) {
    let [stream, outside] = [0, 3].map(|at| key.stream.get(at).cloned().unwrap_or_default());
    let row = streams.entry([stream.clone(), key.id.clone(), outside]).or_default();
    (row.stream, row.id) = (stream, key.id.clone());
    row.container = counter.labels.get("container").cloned().unwrap_or_default();
    row.dynamic.resize(slots.count(), 0);
    add_slots(&mut row.dynamic, &counter.slots);
    row.sampled_us = row.sampled_us.max(counter.sampled_us);
    row.sources.insert(key.root[2].clone());
}

/// Adds a counter of a workload.
fn add_workload(workloads: &mut BTreeMap<String, WorkloadUsage>, key: &CounterKey, counter: &Counter, slots: &Slots) {
    let row = workloads.entry(key.id.clone()).or_default();
    row.id.clone_from(&key.id);
    for part in [&mut row.dynamic, &mut row.awake, &mut row.idle] {
        part.resize(slots.count(), 0);
    }
    let part = match &*key.metric {
        "wattcast_container_awake_energy_joules_total" => &mut row.awake,
        "wattcast_container_idle_energy_joules_total" => &mut row.idle,
        _ => &mut row.dynamic,
    };
    add_slots(part, &counter.slots);
    row.sampled_us = row.sampled_us.max(Some(counter.sampled_us));
    row.sources.insert(key.root[2].clone());
}

/// Adds the energy of each slot.
pub fn add_slots(sums: &mut [u64], more: &[u64]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum = sum.saturating_add(*more);
    }
}

/// The samples of one counter, and the labels of the last one; `None` without samples. A counter
/// may have several series: it got another name, whose samples follow, or two jobs scrape it.
/// Values of two scrapes at nearly the same time may be in the wrong order, which would be a reset,
/// so only one is used at a time; another one fills its gaps.
fn merged(
    mut all: Vec<CounterSeries>,
    known: Option<&BTreeMap<String, String>>,
) -> Option<(Vec<Sample>, BTreeMap<String, String>)> {
    // The series of before first, then the one with the most samples.
    all.sort_by_key(|series| (Some(&series.labels) != known, std::cmp::Reverse(series.samples.len())));
    let mut taken: Vec<(i64, i64)> = Vec::new();
    let mut samples: Vec<Sample> = Vec::new();
    let mut newest: Option<(i64, BTreeMap<String, String>)> = None;
    for CounterSeries { labels, samples: more, .. } in all {
        let is_free = |at: i64| taken.iter().all(|(from, to)| at < *from - SKEW_US || at > *to + SKEW_US);
        let free: Vec<Sample> = more.into_iter().filter(|sample| is_free(microseconds(sample))).collect();
        let Some(last) = free.last().map(microseconds) else { continue };
        if newest.as_ref().is_none_or(|(at, _)| *at < last) {
            newest = Some((last, labels));
        }
        for run in free.chunk_by(|one, next| microseconds(next) - microseconds(one) <= GAP_US) {
            if let [first, ..] = run
                && let Some(last) = run.last()
            {
                taken.push((microseconds(first), microseconds(last)));
            }
        }
        samples.extend(free);
    }
    samples.sort_by(|one, other| one.at.total_cmp(&other.at));
    newest.map(|(_, labels)| (samples, labels))
}

/// The time of a sample in unix microseconds.
#[expect(clippy::cast_possible_truncation, reason = "float to int casts saturate")]
pub(super) fn microseconds(sample: &Sample) -> i64 {
    (sample.at * 1e6).round() as i64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3_600_000_000;

    /// A series of `metric`; `samples` are seconds and microjoules.
    fn series(metric: &str, id: &str, samples: &[(u32, u64)]) -> (String, CounterSeries) {
        let labels = [("package", "0"), ("zone", "package"), ("source", "perf"), ("id", id), ("container", id)];
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let samples = samples.iter().map(|(at, micro)| Sample { at: f64::from(*at), micro: *micro }).collect();
        ("enc-1".to_owned(), CounterSeries { metric: metric.to_owned(), labels, samples })
    }

    /// One hour from 1000 s on, in one slot. The host has an idle row, as each root has.
    fn usage(mut host: Vec<(String, CounterSeries)>, workloads: Vec<(String, CounterSeries)>) -> HostUsage {
        let seconds = |sample: &Sample| u32::try_from(microseconds(sample) / 1_000_000).unwrap();
        let idle: Vec<(u32, u64)> = host[0].1.samples.iter().map(|sample| (seconds(sample), 0)).collect();
        host.push(series("wattcast_idle_energy_joules_total", "", &idle));
        let mut builder = UsageBuilder::new(Slots::new(vec![1_000_000_000, 1_000_000_000 + HOUR]));
        builder.add_hosts(host).unwrap();
        builder.add_workloads(workloads).unwrap();
        builder.finish().remove(0)
    }

    const CONTAINER: &str = "wattcast_container_energy_joules_total";

    #[test]
    fn a_workload_that_appears_counts_from_zero_and_a_host_does_not() {
        let host = vec![series(ENERGY, "", &[(1010, 500), (1070, 600), (1130, 700)])];
        let found = usage(
            host,
            vec![series(CONTAINER, "a", &[(1070, 40), (1130, 90)]), series(CONTAINER, "b", &[(1010, 7), (1070, 9)])],
        );
        assert_eq!(found.measured, [200], "what the host used before its first sample is not of this period");
        assert_eq!(found.workloads.iter().map(|row| row.dynamic[0]).collect::<Vec<_>>(), [90, 2]);
    }

    /// A container whose counter after a restart of its host was above the value before lost what
    /// it had used before.
    #[test]
    fn a_reset_above_the_old_value_is_recognised() {
        let host = || {
            vec![
                series(ENERGY, "", &[(1000, 500), (1060, 600), (1120, 900), (1180, 1000)]),
                series(START, "", &[(1000, 1), (1060, 1), (1120, 5), (1180, 5)]),
            ]
        };
        let workloads = vec![series(CONTAINER, "a", &[(1000, 10), (1060, 20), (1120, 30), (1180, 31)])];
        let found = usage(host(), workloads.clone());
        assert_eq!((found.measured[0], found.workloads[0].dynamic[0]), (100 + 900 + 100, 10 + 30 + 1));
        assert_eq!(found.gaps[0], Gap { from: 1_060_000_000, to: 1_120_000_000, uncounted_us: 60_000_000 });
        // The same values of one start have no reset.
        let mut same = host();
        same[1] = series(START, "", &[(1000, 1), (1060, 1), (1120, 1), (1180, 1)]);
        let found = usage(same, workloads);
        assert_eq!(
            (found.measured[0], found.workloads[0].dynamic[0], found.gaps.len()),
            (500, 21, 1),
            "only the one up to the end"
        );
    }

    /// A probe continued totals from before another one with another state directory: all that they
    /// had was added to the bill once more.
    #[test]
    fn totals_that_are_continued_later_count_from_where_they_ended() {
        let host = vec![
            series(ENERGY, "", &[(1000, 500), (1060, 600), (1120, 10), (1180, 60), (1240, 640), (1300, 700)]),
            series(START, "", &[(1000, 1), (1060, 1), (1120, 5), (1180, 5), (1240, 1), (1300, 1)]),
        ];
        let workloads = vec![
            series(CONTAINER, "a", &[(1000, 50), (1060, 60), (1120, 1), (1180, 6), (1240, 64), (1300, 70)]),
            // Not seen by the other probe.
            series(CONTAINER, "b", &[(1000, 7), (1060, 8), (1240, 9), (1300, 9)]),
        ];
        let found = usage(host, workloads);
        assert_eq!(found.measured[0], 100 + 10 + 50 + 40 + 60);
        assert_eq!(found.workloads.iter().map(|row| row.dynamic[0]).collect::<Vec<_>>(), [10 + 1 + 5 + 4 + 6, 2]);
    }

    /// The counters were added to the bill once more when the gauge of their start returned.
    #[test]
    fn a_sample_without_the_start_is_no_reset() {
        let host = vec![
            series(ENERGY, "", &[(1000, 500), (1060, 600), (1120, 700)]),
            series(START, "", &[(1000, 1), (1120, 1)]),
        ];
        let found = usage(host, vec![series(CONTAINER, "a", &[(1000, 10), (1060, 20), (1120, 30)])]);
        assert_eq!((found.measured[0], found.workloads[0].dynamic[0], found.gaps.len()), (200, 20, 1));
    }

    #[test]
    fn a_host_of_the_next_period_has_a_gap_up_to_the_end_only() {
        let host = vec![series(ENERGY, "", &[(4700, 500), (4760, 600)])];
        let found = usage(host, Vec::new());
        let gap = Gap { from: 1_000_000_000, to: 4_600_000_000, uncounted_us: 3_600_000_000 };
        assert_eq!((found.gaps, found.measured), (vec![gap], vec![0]));
    }

    #[test]
    fn a_restart_that_continues_has_a_gap_and_no_reset() {
        let host = vec![
            series(ENERGY, "", &[(1000, 500), (1060, 600), (2060, 610)]),
            series(START, "", &[(1000, 1), (1060, 1), (2060, 1)]),
            series(RESTARTS, "", &[(1000, 0), (1060, 0), (2060, 1_000_000)]),
            series(UNCOUNTED, "", &[(1000, 0), (1060, 0), (2060, 990_000_000)]),
        ];
        let jobs = vec![series(CONTAINER, "job:0", &[(1000, 10), (1060, 20), (2060, 50)])];
        let found = usage(host, jobs);
        assert_eq!(found.measured[0], 110);
        assert_eq!(found.workloads[0].dynamic[0], 10 + 50, "job 0 of another probe is another job");
        assert_eq!(found.gaps[0], Gap { from: 1_060_000_000, to: 2_060_000_000, uncounted_us: 990_000_000 });
        assert_eq!(found.gaps[1].uncounted_us, 4_600_000_000 - 2_060_000_000, "and nothing up to the end");
    }

    #[test]
    fn a_renamed_container_and_a_second_scrape_are_one_counter() {
        let host = vec![series(ENERGY, "", &[(1000, 0), (1060, 100), (1120, 200), (1180, 300)])];
        let mut named = series(CONTAINER, "a", &[(1120, 30), (1180, 45)]);
        named.1.labels.insert("container".into(), "web".into());
        let mut again = series(CONTAINER, "a", &[(1001, 9), (1061, 11)]);
        again.1.labels.insert("job".into(), "copy".into());
        let found = usage(host, vec![series(CONTAINER, "a", &[(1000, 10), (1060, 20), (1110, 28)]), again, named]);
        assert_eq!(found.workloads.len(), 1);
        assert_eq!((&*found.workloads[0].name, found.workloads[0].dynamic[0]), ("web", 35));
    }

    /// Two Prometheus servers that scrape one probe doubled the bound.
    #[test]
    fn a_bound_that_two_servers_scrape_counts_once() {
        let host = || vec![series(ENERGY, "", &[(1000, 0), (1060, 100), (1120, 200), (1180, 300)])];
        let replica = |name: &str, metric: &str, samples: &[(u32, u64)]| {
            let mut one = series(metric, "a", samples);
            one.1.labels.insert("replica".into(), name.into());
            one
        };
        let watts: Vec<(u32, u64)> = [1000, 1060, 1120, 1180].map(|at| (at, 2_000_000)).to_vec();
        let later: Vec<(u32, u64)> = watts.iter().map(|(at, micro)| (at + 7, *micro)).collect();
        let energy: Vec<(u32, u64)> = [(1000, 10), (1060, 20), (1120, 30), (1180, 40)].to_vec();
        let one = usage(host(), vec![replica("a", CONTAINER, &energy), replica("a", BOUND, &watts)]);
        // 2 W for 180 s.
        assert_eq!(one.workloads[0].bound, Some(360_000_000));
        let both = vec![
            replica("a", CONTAINER, &energy),
            replica("b", CONTAINER, &energy),
            replica("a", BOUND, &watts),
            replica("b", BOUND, &later[..3]),
        ];
        let two = usage(host(), both);
        assert_eq!((two.workloads[0].bound, two.workloads[0].dynamic[0]), (Some(360_000_000), 30));
    }

    #[test]
    fn another_server_fills_the_gap_of_the_first() {
        let first: Vec<(u32, u64)> = [1000, 1060, 3000, 3060].map(|at| (at, u64::from(at))).to_vec();
        let second: Vec<(u32, u64)> = (1..34).map(|n| (1001 + n * 60, u64::from(1001 + n * 60))).collect();
        let mut other = series(ENERGY, "", &second);
        other.1.labels.insert("replica".into(), "b".into());
        // The first has its series from before.
        let labels = series(ENERGY, "", &first).1.labels.clone();
        let (samples, _) = merged(vec![other.1, series(ENERGY, "", &first).1], Some(&labels)).unwrap();
        let times: Vec<i64> = samples.iter().map(|sample| microseconds(sample) / 1_000_000).collect();
        assert_eq!((times[..4].to_vec(), times.len()), (vec![1000, 1060, 1121, 1181], 4 + 32));
        assert!(samples.windows(2).all(|pair| pair[0].micro < pair[1].micro), "none is used twice");
    }

    /// Two servers that scrape a probe without the start of its totals saw two resets.
    #[test]
    fn a_fall_that_two_servers_see_is_one_reset() {
        let one = series(ENERGY, "", &[(1000, 500), (1060, 600), (1120, 50), (1180, 90)]);
        let mut other = series(ENERGY, "", &[(1007, 501), (1067, 40), (1127, 60)]);
        other.1.labels.insert("replica".into(), "b".into());
        assert_eq!(usage(vec![one, other], Vec::new()).measured[0], 100 + 50 + 40);
    }

    /// The energy of a container that was away for days was spread over them.
    #[test]
    fn a_workload_that_was_away_begins_again_at_zero() {
        let times: Vec<(u32, u64)> = (0..60).map(|n| (1000 + n * 60, u64::from(n))).collect();
        let early = [(1000, 10), (1060, 20)];
        let of = |later: &[(u32, u64)]| {
            let samples = [&early[..], later].concat();
            let slots = Slots::new(vec![1_000_000_000, 2_000_000_000, 1_000_000_000 + HOUR]);
            let mut builder = UsageBuilder::new(slots);
            builder
                .add_hosts(vec![series(ENERGY, "", &times), series("wattcast_idle_energy_joules_total", "", &times)])
                .unwrap();
            builder.add_workloads(vec![series(CONTAINER, "a", &samples)]).unwrap();
            builder.finish().remove(0).workloads.remove(0)
        };
        // Half an hour later, below and above its old value: all of it is of the last minute.
        for (value, next) in [(5, 6), (50, 51)] {
            let row = of(&[(4060, value), (4120, next)]);
            assert_eq!(row.dynamic, [10, value + 1], "{value}");
            assert_eq!(row.sampled_us, Some(60_000_000 * 3));
        }
        // Five minutes without a sample are none: one scrape in five may fail.
        assert_eq!(of(&[(1360, 50)]).dynamic, [40, 0]);
    }

    #[test]
    fn batches_give_what_one_batch_gives() {
        let samples: Vec<(u32, u64)> = (0..50).map(|n| (900 + n * 60, u64::from(n) * 1_000_003 % 20_000_000)).collect();
        let all =
            |part: &[(u32, u64)]| vec![series(ENERGY, "", part), series("wattcast_idle_energy_joules_total", "", part)];
        let slots = Slots::new((0..=12).map(|n| 1_000_000_000 + n * 100_000_000).collect());
        let mut whole = UsageBuilder::new(slots.clone());
        whole.add_hosts(all(&samples)).unwrap();
        let mut parts = UsageBuilder::new(slots);
        // The last sample of a batch is the first of the next one too.
        for at in (0..49).step_by(7) {
            parts.add_hosts(all(&samples[at..(at + 8).min(50)])).unwrap();
        }
        assert_eq!(whole.finish(), parts.finish());
    }

    proptest! {
        /// The parts of a growth always sum to it, wherever the edges are.
        #[test]
        fn spread_energy_sums_to_the_whole(
            whole in any::<u64>(), from in 0i64..1000, length in 1i64..5000, edges in prop::collection::vec(0i64..6000, 1..20)
        ) {
            let mut edges = edges;
            edges.extend([-1, 6001]);
            let slots = Slots::new(edges);
            let mut into = vec![0; slots.count()];
            slots.spread((from, from + length), whole, &mut into);
            prop_assert_eq!(into.iter().map(|part| u128::from(*part)).sum::<u128>(), u128::from(whole));
        }
    }
}
