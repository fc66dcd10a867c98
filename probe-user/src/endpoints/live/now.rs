//! The answer of `/api/v1/now`: the state of the host, its containers and its streams.
//!
//! Totals are those of the page of metrics of the same tick. Watts are means over the last ten
//! seconds; those of a board, over the last tick.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use cli::program;
use serde::Serialize;
use units::{Microjoules, provenance::Unmeasured};

use super::{
    about::About,
    columns::{Columns, Energy, Layers, float, is_gpu, rounded},
};
use crate::{
    containers::Container,
    endpoints::{pages, price::EnergyPrice},
    energy::zone::ZoneKind,
    gpu::{GpuStatus, engines::Engine},
    ledger::{
        AccountId,
        streams::{JobUsage, StreamId},
        uncertainty::{Bound, BoundSum},
    },
    snapshot::{
        ContainerRow, Snapshot,
        history::{IDLE_NOT_LEARNT, Tick, seconds, seconds_of},
    },
};

/// Time that the watts are means over.
const WINDOW: Duration = Duration::from_secs(10);
/// Most streams in an answer.
const MAX_STREAMS: usize = 50;

/// Figures of one tick that the ring does not have. They are kept for the time of the window.
pub(super) struct Sample {
    pub(super) sequence: u64,
    monotonic_ns: i64,
    /// Energy of each stream since the start.
    streams: Vec<(StreamId, Microjoules)>,
    /// CPU nanoseconds of each job.
    jobs: Vec<(u32, u64)>,
    /// Nanoseconds that each container waited in run queues.
    waits: Vec<(u32, u64)>,
}

impl Sample {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let waits =
            snapshot.containers.iter().filter_map(|row| Some((row.container.number, row.queue.as_ref()?.wait_ns)));
        Self {
            sequence: snapshot.sequence,
            monotonic_ns: snapshot.ring.ticks().next_back().map_or(0, |tick| tick.monotonic_ns),
            streams: stream_energy(snapshot).into_iter().map(|(id, joules)| (id.clone(), joules)).collect(),
            jobs: snapshot.jobs.iter().map(|usage| (usage.job.number, usage.ran_ns)).collect(),
            waits: waits.collect(),
        }
    }

    /// True if a window that ends at `newest` begins at this sample or after it.
    pub(super) fn is_before_window(&self, newest: &Self) -> bool {
        let length = newest.monotonic_ns.saturating_sub(self.monotonic_ns);
        length < 0 || length >= i64::try_from(WINDOW.as_nanos()).unwrap_or(i64::MAX)
    }
}

/// Energy since the start by stream, all sources together.
fn stream_energy(snapshot: &Snapshot) -> BTreeMap<&StreamId, Microjoules> {
    let mut energy: BTreeMap<&StreamId, Microjoules> = BTreeMap::new();
    for row in &snapshot.streams {
        *energy.entry(&row.id).or_default() += row.joules;
    }
    energy
}

/// Growth between two samples per second of the time between them.
#[derive(Clone, Copy)]
struct Rates<'a> {
    before: Option<&'a Sample>,
    ns: f64,
}

impl<'a> Rates<'a> {
    fn new(before: Option<&'a Sample>, snapshot: &Snapshot) -> Self {
        let now = snapshot.ring.ticks().next_back().map_or(0, |tick| tick.monotonic_ns);
        let ns = before.map_or(0, |sample| now.saturating_sub(sample.monotonic_ns));
        Self { before: before.filter(|_| ns > 0), ns: float(ns) }
    }

    /// Growth of a number of nanoseconds, in seconds per second.
    fn cores(self, figures: impl Fn(&'a Sample) -> &'a [(u32, u64)], number: u32, now: u64) -> Option<f64> {
        let (_, before) = figures(self.before?).iter().find(|(known, _)| *known == number)?;
        Some(rounded(nanoseconds(now.saturating_sub(*before)) / self.ns))
    }

    /// Power of a stream. One that was not there before has used all of its energy since.
    fn stream_watts(self, id: &StreamId, now: Microjoules) -> Option<f64> {
        let known = self.before?.streams.binary_search_by(|(known, _)| known.cmp(id));
        let before = known.ok().and_then(|at| self.before?.streams.get(at)).map(|(_, joules)| *joules);
        let before = before.unwrap_or_default();
        Some(rounded((now - before).joules() * 1e9 / self.ns))
    }
}

/// Energy of the containers in the period, by number.
#[derive(Default)]
struct ContainerSums {
    /// With that of being awake and that of boards.
    joules: f64,
    gpu: f64,
    bounds: HashMap<AccountId, BoundSum>,
    unbounded: bool,
    cpu_ns: u64,
}

/// Sums over the period.
struct Sums {
    energy: Energy,
    /// Length of all ticks, with and without energy.
    all_ns: f64,
    containers: HashMap<u32, ContainerSums>,
}

impl Sums {
    fn new(columns: &Columns<'_>) -> Self {
        let mut this = Self { energy: Energy::default(), all_ns: 0.0, containers: HashMap::new() };
        for at in columns.range() {
            let Some(length) = columns.length_ns(at) else { continue };
            this.all_ns += length;
            for (container, _, ns) in columns.tick(at).cpu.iter() {
                let sums = this.containers.entry(container.number).or_default();
                sums.cpu_ns = sums.cpu_ns.saturating_add(ns);
            }
            if let Some(energy) = columns.energy(at) {
                this.energy.add(&energy, 1.0);
                this.add_rows(columns, at);
            }
        }
        this
    }

    fn add_rows(&mut self, columns: &Columns<'_>, at: usize) {
        for (row, part) in columns.rows(at) {
            let sums = self.containers.entry(row.container.number).or_default();
            let joules = row.joules.joules() * part;
            sums.joules += joules;
            if is_gpu(row.id) {
                sums.gpu += joules;
            }
            match row.bound {
                Some(Bound { random, systematic }) => {
                    let bound = Bound { random: random * part, systematic: systematic * part };
                    sums.bounds.entry(row.id).or_default().add(bound);
                }
                None => sums.unbounded |= joules > 0.0,
            }
        }
    }
}

#[derive(Serialize)]
pub(super) struct NowResponse<'a> {
    time: f64,
    sequence: u64,
    tick_seconds: Option<f64>,
    window_seconds: f64,
    host: &'a str,
    version: &'a str,
    started: f64,
    /// Start of `joules`, which may be before that of the probe; absent where it is not known.
    totals_since: Option<f64>,
    /// These are absent without a configured price.
    currency: Option<&'a str>,
    price_per_joule: Option<f64>,
    /// Of the host.
    cost_per_hour: Option<f64>,
    banners: Vec<Banner<'a>>,
    idle_known: bool,
    idle_note: Option<&'static str>,
    watts: Watts,
    joules: Joules,
    containers: Vec<ContainerNow<'a>>,
    other_containers: OtherContainers,
    streams: Vec<StreamNow<'a>>,
    sources: Vec<SourceNow<'a>>,
    gpus: Vec<GpuNow<'a>>,
}

#[derive(Serialize)]
struct Banner<'a> {
    kind: &'a str,
    text: &'a str,
}

#[derive(Serialize)]
struct Watts {
    host: Option<f64>,
    layers: Layers<Option<f64>>,
}

#[derive(Serialize)]
struct Joules {
    measured: f64,
    layers: Layers<f64>,
}

#[derive(Serialize)]
struct ContainerNow<'a> {
    key: String,
    name: &'a str,
    image: &'a str,
    runtime: &'a str,
    /// All dynamic energy, as `joules`.
    watts: Option<f64>,
    uncertainty_watts: Option<f64>,
    share: Option<f64>,
    joules: f64,
    cpu_cores: Option<f64>,
    wait_cores: Option<f64>,
    gpu_watts: Option<f64>,
}

#[derive(Serialize)]
struct OtherContainers {
    count: usize,
    watts: Option<f64>,
}

#[derive(Serialize)]
struct StreamNow<'a> {
    key: String,
    name: &'a str,
    container: Option<String>,
    state: &'static str,
    codec: &'a str,
    watts: Option<f64>,
    joules: f64,
    // What only the programs know that read the progress reports. It is part of the answer, so
    // that a page reads both the same way.
    joules_per_frame: Option<f64>,
    fps: Option<f64>,
    speed: Option<f64>,
    media_seconds: Option<f64>,
    vmaf: Option<f64>,
    /// Absent without a configured price.
    cost_per_hour: Option<f64>,
    cpu_cores: Option<f64>,
    wait_cores: Option<f64>,
}

#[derive(Serialize)]
struct SourceNow<'a> {
    name: &'a str,
    state: &'static str,
    detail: &'a str,
    /// What to do is in the sentence about the state.
    remedy: Option<&'a str>,
}

#[derive(Serialize)]
struct GpuNow<'a> {
    id: String,
    name: &'a str,
    watts: Option<f64>,
    engines: BTreeMap<&'static str, f64>,
}

/// Identity of a container in answers: the same for as long as it lives, also after the probe was
/// restarted.
pub(super) fn key(container: &Container) -> String {
    let id = if container.id.is_empty() { &container.name } else { &container.id };
    format!("{}/{id}", container.runtime)
}

/// The ticks of the period, oldest first, with the one that is its start.
fn recent_ticks(snapshot: &Snapshot) -> Vec<&Tick> {
    let window = i64::try_from(WINDOW.as_nanos()).unwrap_or(i64::MAX);
    let mut ticks: Vec<&Tick> = Vec::new();
    for tick in snapshot.ring.ticks().rev() {
        ticks.push(tick);
        if ticks[0].monotonic_ns.saturating_sub(tick.monotonic_ns) >= window {
            break;
        }
    }
    ticks.reverse();
    ticks
}

/// The totals of the page of metrics, by layer.
pub(super) fn totals(snapshot: &Snapshot) -> (Microjoules, Layers<Microjoules>) {
    let (mut measured, mut layers) = (Microjoules::ZERO, Layers::<Microjoules>::default());
    let sum = |shares: &[(Arc<Container>, Microjoules)]| shares.iter().map(|(_, joules)| *joules).sum::<Microjoules>();
    for account in &snapshot.accounts {
        let zone = snapshot.zones.iter().find(|zone| (zone.id, zone.origin) == (account.id.zone, account.id.origin));
        let (containers, idle_shares) = (sum(&account.containers), sum(&account.idle_shares));
        let parts = containers + idle_shares + account.retired + account.system + account.idle + account.unattributed;
        // The account of a counter that is no longer read has only its parts.
        measured += zone.map_or(parts, |zone| zone.total);
        if is_gpu(account.id) {
            layers.gpu += parts;
            continue;
        }
        let awake = sum(&account.awake_shares);
        layers.awake += awake;
        layers.containers += containers - awake;
        layers.idle += account.idle + idle_shares;
        layers.system += account.system;
        layers.retired += account.retired;
        layers.unattributed += account.unattributed;
    }
    (measured, layers)
}

/// The answer for a snapshot, with at most `limit` containers. `before` is the sample at the start
/// of the period.
pub(super) fn answer<'a>(
    about: &'a About,
    snapshot: &'a Snapshot,
    before: Option<&Sample>,
    limit: usize,
) -> NowResponse<'a> {
    let columns = Columns::new(recent_ticks(snapshot));
    let sums = Sums::new(&columns);
    let rates = Rates::new(before, snapshot);
    let (measured, layers) = totals(snapshot);
    let (containers, other_containers) = containers(snapshot, &sums, rates, limit);
    let host_watts = sums.energy.watts(sums.energy.host);
    let idle_known = !snapshot.idle_states.is_empty() && !snapshot.is_idle_unknown();
    NowResponse {
        time: seconds(snapshot.unix_ns),
        sequence: snapshot.sequence,
        tick_seconds: snapshot.length_ns.map(seconds_of),
        window_seconds: sums.energy.ns / 1e9,
        host: &about.host,
        version: program::VERSION,
        started: about.started,
        totals_since: snapshot.continuity.since_unix_ns.map(seconds),
        currency: about.price.as_ref().map(|price| &*price.currency),
        price_per_joule: about.price.as_ref().map(EnergyPrice::per_joule),
        cost_per_hour: about.price.as_ref().zip(host_watts).map(|(price, watts)| price.per_hour(watts)),
        banners: banners(about, snapshot.unmeasured()),
        idle_known,
        idle_note: (!idle_known).then_some(IDLE_NOT_LEARNT),
        watts: Watts { host: host_watts, layers: sums.energy.layers.map(|joules| sums.energy.watts(joules)) },
        joules: Joules { measured: measured.joules(), layers: layers.map(Microjoules::joules) },
        containers,
        other_containers,
        streams: streams(snapshot, rates, about.price.as_ref()),
        sources: sources(snapshot),
        gpus: snapshot.gpus.iter().map(|status| gpu(snapshot, status)).collect(),
    }
}

fn banners(about: &About, unmeasured: BTreeSet<Unmeasured>) -> Vec<Banner<'_>> {
    let recording = about.recording.as_deref().map(|text| Banner { kind: "RECORDING", text });
    // A file that is opened to be looked at is a recording, and that is said once.
    let kinds = unmeasured.into_iter().filter(|kind| recording.is_none() || *kind != Unmeasured::Replay);
    let kinds = kinds.map(|kind| Banner { kind: kind.word(), text: kind.banner() });
    let kinds: Vec<Banner<'_>> = kinds.collect();
    recording.into_iter().chain(kinds).collect()
}

fn containers<'a>(
    snapshot: &'a Snapshot,
    sums: &Sums,
    rates: Rates<'_>,
    limit: usize,
) -> (Vec<ContainerNow<'a>>, OtherContainers) {
    let mut joules: HashMap<u32, Microjoules> = HashMap::new();
    for (container, energy) in snapshot.accounts.iter().flat_map(|account| &account.containers) {
        *joules.entry(container.number).or_default() += *energy;
    }
    let gpus = snapshot.accounts.iter().any(|account| is_gpu(account.id));
    let none = ContainerSums::default();
    let of = |row: &ContainerRow| sums.containers.get(&row.container.number).unwrap_or(&none);
    let mut rows: Vec<&ContainerRow> = snapshot.containers.iter().collect();
    rows.sort_by(|one, other| {
        let order = of(other).joules.total_cmp(&of(one).joules);
        order.then_with(|| one.container.name.cmp(&other.container.name))
    });
    let (shown, others) = rows.split_at(rows.len().min(limit));
    let energy = &sums.energy;
    let counted_ns = (snapshot.cpu.is_some() && sums.all_ns > 0.0).then_some(sums.all_ns);
    let now = |row: &&'a ContainerRow| {
        let (container, queue, sums) = (&*row.container, row.queue.as_ref(), of(row));
        let bound = || sums.bounds.values().map(BoundSum::total).sum::<f64>() / 1e6;
        let known = !(sums.unbounded || sums.bounds.is_empty() && sums.joules > 0.0);
        ContainerNow {
            key: key(container),
            name: &container.name,
            image: &container.image,
            runtime: container.runtime,
            watts: energy.watts(sums.joules),
            uncertainty_watts: energy.watts(bound()).filter(|_| known),
            share: (energy.host > 0.0).then(|| rounded(sums.joules / energy.host)),
            joules: joules.get(&container.number).copied().unwrap_or_default().joules(),
            cpu_cores: counted_ns.map(|all_ns| rounded(nanoseconds(sums.cpu_ns) / all_ns)),
            wait_cores: queue.and_then(|queue| rates.cores(|sample| &sample.waits, container.number, queue.wait_ns)),
            gpu_watts: energy.watts(sums.gpu).filter(|_| gpus),
        }
    };
    let other = others.iter().map(|row| of(row).joules).sum::<f64>();
    (shown.iter().map(now).collect(), OtherContainers { count: others.len(), watts: energy.watts(other) })
}

/// What is known of the jobs of a stream.
#[derive(Clone, Copy, Default)]
struct StreamJobs {
    running: bool,
    cpu_cores: Option<f64>,
}

/// The jobs of each stream. A job with several streams divides its CPU time as its energy.
fn jobs<'a>(snapshot: &'a Snapshot, rates: Rates<'_>) -> BTreeMap<&'a StreamId, StreamJobs> {
    let mut streams: BTreeMap<&StreamId, StreamJobs> = BTreeMap::new();
    for JobUsage { job, streams: of_job, ran_ns, ended, .. } in &snapshot.jobs {
        let cores = rates.cores(|sample| &sample.jobs, job.number, *ran_ns);
        let weights = of_job.iter().fold(0, |sum: u64, (_, weight, _)| sum.saturating_add(*weight));
        for (id, weight, _) in of_job {
            let stream = streams.entry(id).or_default();
            stream.running |= ended.is_none();
            if let (Some(cores), true) = (cores, weights > 0) {
                let part = cores * nanoseconds(*weight) / nanoseconds(weights);
                stream.cpu_cores = Some(rounded(stream.cpu_cores.unwrap_or(0.0) + part));
            }
        }
    }
    streams
}

fn streams<'a>(snapshot: &'a Snapshot, rates: Rates<'_>, price: Option<&EnergyPrice>) -> Vec<StreamNow<'a>> {
    let containers = pages::containers_by_number(snapshot);
    let jobs = jobs(snapshot, rates);
    let mut energy = stream_energy(snapshot);
    for id in jobs.keys() {
        energy.entry(*id).or_default();
    }
    let stream = |(id, joules): (&'a StreamId, Microjoules)| {
        let [container, container_id] = pages::stream_container(&containers, id)?;
        let StreamJobs { running, cpu_cores } = jobs.get(id).copied().unwrap_or_default();
        let watts = rates.stream_watts(id, joules);
        Some(StreamNow {
            key: format!("{}/{container_id}/{}/{}", id.name, id.codec, id.basis.as_str()),
            name: &id.name,
            container: (!container.is_empty()).then_some(container),
            state: if running { "running" } else { "ended" },
            codec: &id.codec,
            watts,
            joules: joules.joules(),
            joules_per_frame: None,
            fps: None,
            speed: None,
            media_seconds: None,
            vmaf: None,
            cost_per_hour: price.zip(watts).map(|(price, watts)| price.per_hour(watts)),
            cpu_cores: cpu_cores.filter(|_| running),
            wait_cores: None,
        })
    };
    let mut streams: Vec<StreamNow<'a>> = energy.into_iter().filter_map(stream).collect();
    streams.sort_by(|one, other| {
        let order = |stream: &StreamNow<'_>| (Reverse(stream.state == "running"), -stream.watts.unwrap_or(0.0));
        let ((ended, idle), (other_ended, other_idle)) = (order(one), order(other));
        ended.cmp(&other_ended).then(idle.total_cmp(&other_idle))
    });
    streams.truncate(MAX_STREAMS);
    streams
}

fn sources(snapshot: &Snapshot) -> Vec<SourceNow<'_>> {
    let source = snapshot.sources.iter().map(|source| SourceNow {
        name: source.source,
        state: source.word(),
        detail: source.text(),
        remedy: None,
    });
    source.collect()
}

fn gpu<'a>(snapshot: &Snapshot, status: &'a GpuStatus) -> GpuNow<'a> {
    let zone = snapshot.zones.iter().find(|zone| zone.id.kind == ZoneKind::Gpu(status.gpu.id));
    let engines = Engine::ALL.into_iter().zip(status.gpu.telemetry.engines);
    GpuNow {
        id: status.gpu.id.to_string(),
        name: &status.gpu.name,
        watts: zone.and_then(|zone| zone.watts).map(rounded),
        engines: engines.filter_map(|(engine, ratio)| Some((engine.as_str(), ratio?))).collect(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a length of time or a weight, for output")]
fn nanoseconds(ns: u64) -> f64 {
    ns as f64
}
