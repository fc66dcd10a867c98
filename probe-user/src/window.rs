//! The ring of past ticks, and the answer to "what happened between these two moments".
//!
//! A ring is immutable: adding a tick gives a new one that shares all but the newest ticks with the old. So it travels
//! inside a snapshot, any number of requests read it, and nobody waits for anybody.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use serde::Serialize;

use crate::{
    containers::Container,
    ledger::{
        AccountId,
        uncertainty::{Bound, Sum},
    },
    topology::PackageId,
    units::Microjoules,
};

/// Ticks per sealed chunk: what adding one copies at most.
const CHUNK: usize = 64;
/// Two clocks that drift apart by more than this between two ticks did not drift: somebody set the wall clock.
/// NTP slews at no more than 500 ppm, 0.5 ms in a second; this leaves room for long ticks.
const STEP_NS: i64 = 20_000_000;

/// What one accounting root did in one tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AccountDelta {
    /// Which root.
    pub id: AccountId,
    /// Measured joules; `None` when the source gave nothing for this tick. The rest is zero then.
    pub measured: Option<Microjoules>,
    /// How many ticks in a row, this one the last, the joules are of: more than one after readings that failed.
    pub covers: u32,
    /// Microjoules by which the measured joules may be off at both ends together; not a number where nobody can say.
    pub off_uj: f32,
    /// Nobody's: idle power.
    pub idle: Microjoules,
    /// Nobody's: could not be given to anybody.
    pub unattributed: Microjoules,
    /// Outside of containers.
    pub system: Microjoules,
    /// Of containers without series.
    pub retired: Microjoules,
}

/// What one container was given of one root in one tick.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerDelta {
    /// Who.
    pub container: Arc<Container>,
    /// From which root.
    pub id: AccountId,
    /// Dynamic energy.
    pub joules: Microjoules,
    /// Its part of the idle energy.
    pub idle: Microjoules,
    /// How far the dynamic energy may be off; `None` where nobody can say, as for a model.
    pub bound: Option<Bound>,
}

/// What a container ran in a tick: who, on which package (`None` where nobody knows), nanoseconds.
pub type CpuDelta = (Arc<Container>, Option<PackageId>, u64);

/// One tick as the ring keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Number of the tick since the start.
    pub sequence: u64,
    /// End of the tick in unix nanoseconds, whole microseconds: what a double of unix seconds can hold, so that an edge
    /// that we printed is exact when it is asked for. Its start is the end of the tick before.
    pub unix_ns: i64,
    /// End of the tick on the monotonic clock.
    pub monotonic_ns: i64,
    /// Energy, by accounting root.
    pub accounts: Box<[AccountDelta]>,
    /// Joules of containers.
    pub energy: Box<[ContainerDelta]>,
    /// CPU time of containers.
    pub cpu: Box<[CpuDelta]>,
}

/// What glibc takes for a block: a word in front, in steps of 16 bytes, at least 32 (malloc/malloc.c, request2size).
fn block(bytes: usize) -> usize {
    (bytes + size_of::<usize>()).next_multiple_of(16).max(32)
}

/// The two counts in front of what an [`Arc`] holds.
const COUNTS: usize = 2 * size_of::<usize>();

impl Tick {
    /// What keeping it costs, in bytes: its own block, its lists, its place in the ring, and the containers that the tick
    /// before did not know. Those are shared by all ticks that name them.
    fn bytes(&self, before: Option<&Self>) -> usize {
        fn list<T>(list: &[T]) -> usize {
            if list.is_empty() { 0 } else { block(size_of_val(list)) }
        }
        let mut known: BTreeSet<u32> = before.into_iter().flat_map(Self::containers).map(|one| one.number).collect();
        let containers: usize = self
            .containers()
            .filter(|container| known.insert(container.number))
            .map(|container| {
                let texts = [&container.name, &container.id, &container.image];
                let texts = texts.iter().filter(|text| text.capacity() > 0).map(|text| block(text.capacity()));
                block(COUNTS + size_of::<Container>()) + texts.sum::<usize>()
            })
            .sum();
        let own = block(COUNTS + size_of::<Self>()) + size_of::<Kept>();
        own + list(&self.accounts) + list(&self.energy) + list(&self.cpu) + containers
    }

    fn containers(&self) -> impl Iterator<Item = &Container> {
        self.energy.iter().map(|delta| &*delta.container).chain(self.cpu.iter().map(|(container, ..)| &**container))
    }
}

/// A tick and what keeping it costs.
type Kept = (Arc<Tick>, usize);
/// A full chunk and the bytes it holds.
type Chunk = (Arc<[Kept]>, usize);

/// The past, newest last, bounded in bytes.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    sealed: VecDeque<Chunk>,
    open: Vec<Kept>,
    open_bytes: usize,
    bytes: usize,
    limit: usize,
}

/// Why a window cannot be answered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// `end` is not after `start`, or one is not a time.
    #[error("start {start} and end {end}: end must be later than start, both in unix seconds")]
    NotAWindow {
        /// As asked.
        start: f64,
        /// As asked.
        end: f64,
    },
    /// It starts before the oldest tick.
    #[error(
        "the window starts at {start:.3}, but this probe remembers only from {oldest:.3} on: what happened since its start, as far as --window.bytes allows"
    )]
    TooOld {
        /// As asked.
        start: f64,
        /// The earliest start that can be answered.
        oldest: f64,
    },
    /// It ends after the newest tick.
    #[error(
        "the window ends at {end:.3}, but the last tick was at {newest:.3}. Wait for the next tick, or POST /api/v1/mark for one now"
    )]
    TooNew {
        /// As asked.
        end: f64,
        /// The latest end that can be answered.
        newest: f64,
    },
    /// The wall clock was set inside it, or set back over it: unix times do not say which moments are meant.
    #[error("the wall clock was set by {by:+.3} s at {at:.3}: unix times across that moment are ambiguous")]
    ClockStep {
        /// When, on the new clock.
        at: f64,
        /// By how much.
        by: f64,
    },
}

impl Refusal {
    /// A word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAWindow { .. } => "not_a_window",
            Self::TooOld { .. } => "too_old",
            Self::TooNew { .. } => "too_new",
            Self::ClockStep { .. } => "clock_step",
        }
    }
}

/// Joules of one accounting root in a window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AccountSum {
    /// As the label `package`.
    pub package: String,
    /// As the label `zone`.
    pub zone: &'static str,
    /// As the label `source`.
    pub source: &'static str,
    /// All of it.
    pub measured_joules: f64,
    /// Of all containers with series.
    pub containers_joules: f64,
    /// Of containers without.
    pub retired_joules: f64,
    /// Outside of containers.
    pub system_joules: f64,
    /// Idle power.
    pub idle_joules: f64,
    /// Given to nobody.
    pub unattributed_joules: f64,
    /// The most that the true edges can have added to `measured_joules` over what the asked window holds.
    pub edge_error_joules: f64,
    /// Time in the window for which the source gave nothing; the joules above lack it.
    pub missing_seconds: f64,
    /// Joules by which `measured_joules` may be off for the true edges; absent where nobody can say, as for a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncertainty_joules: Option<f64>,
}

/// Joules of one container from one root.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EnergySum {
    /// As the label `package`.
    pub package: String,
    /// As the label `zone`.
    pub zone: &'static str,
    /// As the label `source`.
    pub source: &'static str,
    /// Dynamic energy given to it.
    pub joules: f64,
    /// Its part of the idle energy, under an idle policy that shares it.
    pub idle_joules: f64,
    /// The most that the true edges can have added.
    pub edge_error_joules: f64,
    /// Joules by which `joules` may be off for the true edges; absent where nobody can say, as for a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncertainty_joules: Option<f64>,
}

/// CPU time of one container on one package.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CpuSum {
    /// As the label `package`.
    pub package: String,
    /// CPU seconds.
    pub seconds: f64,
}

/// One container in a window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ContainerSum {
    /// As the label `container`.
    pub container: String,
    /// As the label `id`.
    pub id: String,
    /// As the label `image`.
    pub image: String,
    /// As the label `runtime`.
    pub runtime: &'static str,
    /// By root.
    pub energy: Vec<EnergySum>,
    /// By package.
    pub cpu: Vec<CpuSum>,
}

/// The answer: what happened between two ticks that enclose the window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// As asked, unix seconds.
    pub start: f64,
    /// As asked, unix seconds.
    pub end: f64,
    /// The tick at or before `start`: where the sums begin.
    pub from: f64,
    /// The tick at or after `end`: where the sums end.
    pub to: f64,
    /// `start - from`: time before the window that the sums hold.
    pub start_error_seconds: f64,
    /// `to - end`: time after the window that the sums hold.
    pub end_error_seconds: f64,
    /// Ticks summed.
    pub ticks: usize,
    /// By accounting root.
    pub accounts: Vec<AccountSum>,
    /// By container; one that used nothing is left out.
    pub containers: Vec<ContainerSum>,
}

impl Ring {
    /// An empty ring that keeps at most `limit` bytes of ticks, but always the two newest.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Adds a tick, and lets the oldest go where the limit asks for it.
    pub fn push(&mut self, tick: Tick) {
        debug_assert_eq!(tick.unix_ns % 1000, 0);
        let bytes = tick.bytes(self.ticks().next_back().map(|tick| &**tick));
        self.bytes += bytes;
        self.open_bytes += bytes;
        self.open.push((Arc::new(tick), bytes));
        while self.bytes > self.limit && self.open.len() + self.sealed.len() * CHUNK > 2 {
            if self.sealed.len() > 1 || self.open.len() > 1 {
                if let Some((_, bytes)) = self.sealed.pop_front() {
                    self.bytes -= bytes;
                    continue;
                }
            } else if let Some((chunk, bytes)) = self.sealed.pop_front() {
                // One chunk, and it is more than the limit: it goes tick by tick.
                self.open.splice(0..0, chunk.iter().cloned());
                self.open_bytes += bytes;
            }
            let (_, bytes) = self.open.remove(0);
            self.bytes -= bytes;
            self.open_bytes -= bytes;
        }
        if self.open.len() == CHUNK {
            let chunk: Arc<[Kept]> = std::mem::take(&mut self.open).into();
            self.sealed.push_back((chunk, std::mem::take(&mut self.open_bytes)));
        }
    }

    /// Every tick, oldest first.
    pub fn ticks(&self) -> impl DoubleEndedIterator<Item = &Arc<Tick>> {
        self.sealed.iter().flat_map(|(chunk, _)| chunk.iter()).chain(&self.open).map(|(tick, _)| tick)
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How far back it reaches, in nanoseconds that passed; a clock that was set changes nothing.
    #[must_use]
    pub fn span_ns(&self) -> i64 {
        let mut ticks = self.ticks();
        let oldest = ticks.next();
        let newest = ticks.next_back().or(oldest);
        newest.zip(oldest).map_or(0, |(newest, oldest)| newest.monotonic_ns - oldest.monotonic_ns)
    }

    /// Unix seconds of the oldest and the newest edge; `None` before the first tick.
    #[must_use]
    pub fn reach(&self) -> Option<(f64, f64)> {
        Some((seconds(self.ticks().next()?.unix_ns), seconds(self.ticks().next_back()?.unix_ns)))
    }

    /// The sums between the two ticks that enclose `start..end`, both in unix seconds.
    ///
    /// # Errors
    /// When the window is none, reaches past the ring on either side, or touches a moment at which the wall clock was
    /// set. Never a part of an answer.
    pub fn window(&self, start: f64, end: f64) -> Result<Answer, Refusal> {
        let (Some(start_ns), Some(end_ns)) = (nanoseconds(start), nanoseconds(end)) else {
            return Err(Refusal::NotAWindow { start, end });
        };
        if end_ns <= start_ns {
            return Err(Refusal::NotAWindow { start, end });
        }
        let ticks: Vec<&Arc<Tick>> = self.ticks().collect();
        let (Some(oldest), Some(newest)) = (ticks.first(), ticks.last()) else {
            return Err(Refusal::TooNew { end, newest: 0.0 });
        };
        // Runs of ticks between which nobody set the clock: in each, unix times grow. A clock that was set back makes two
        // runs hold the same times, and then nobody can tell which is meant.
        let runs: Vec<&[&Arc<Tick>]> = ticks.chunk_by(|before, after| step(before, after).is_none()).collect();
        let edges = |run: &[&Arc<Tick>]| (run[0].unix_ns, run[run.len() - 1].unix_ns);
        let mut enclosing = runs.iter().filter(|run| {
            let (low, high) = edges(run);
            low <= start_ns && end_ns <= high
        });
        if let (Some(run), None) = (enclosing.next(), enclosing.next()) {
            return Ok(sum(run, start, end, start_ns, end_ns));
        }
        let (first_run, last_run) = (runs[0], runs[runs.len() - 1]);
        if end_ns > newest.unix_ns && start_ns >= last_run[0].unix_ns {
            return Err(Refusal::TooNew { end, newest: seconds(newest.unix_ns) });
        }
        if start_ns < oldest.unix_ns && end_ns <= edges(first_run).1 {
            return Err(Refusal::TooOld { start, oldest: seconds(oldest.unix_ns) });
        }
        // Of several steps the newest is named: it is the one that the caller may remember.
        let steps = ticks.windows(2).rev().find_map(|pair| Some((pair[1].unix_ns, step(pair[0], pair[1])?)));
        Err(match steps {
            Some((at, by)) => Refusal::ClockStep { at: seconds(at), by: seconds(by) },
            // Larger than the ring on both sides.
            None => Refusal::TooOld { start, oldest: seconds(oldest.unix_ns) },
        })
    }
}

/// By how much the wall clock was set between two ticks; `None` when it only ran.
fn step(before: &Tick, after: &Tick) -> Option<i64> {
    let by = (after.unix_ns - before.unix_ns) - (after.monotonic_ns - before.monotonic_ns);
    (by.abs() > STEP_NS).then_some(by)
}

fn sum(run: &[&Arc<Tick>], start: f64, end: f64, start_ns: i64, end_ns: i64) -> Answer {
    let from = run.partition_point(|tick| tick.unix_ns <= start_ns) - 1;
    let to = run.partition_point(|tick| tick.unix_ns < end_ns);
    let inside = &run[from + 1..=to];
    // What an edge tick holds beyond the window lies between nothing and all of it, unless the edge is exact.
    let at_edge = |index: usize| {
        index == 0 && run[from].unix_ns != start_ns || index + 1 == inside.len() && run[to].unix_ns != end_ns
    };

    let mut accounts: BTreeMap<AccountId, AccountSums> = BTreeMap::new();
    let mut containers: BTreeMap<u32, Sums<'_>> = BTreeMap::new();
    for (index, tick) in inside.iter().enumerate() {
        let length = |index: usize| inside[index].monotonic_ns - run[from + index].monotonic_ns;
        let mut reaches_back = BTreeSet::new();
        for delta in &tick.accounts {
            let sums = accounts.entry(delta.id).or_default();
            let Some(measured) = delta.measured else {
                sums.missing_ns += length(index);
                continue;
            };
            // Joules of ticks that failed come with the reading after them; of those before the window too.
            let covers = usize::try_from(delta.covers).unwrap_or(usize::MAX);
            let first = (index + 1).saturating_sub(covers);
            sums.missing_ns -= (first..index).map(length).sum::<i64>();
            if covers > index + 1 {
                reaches_back.insert(delta.id);
            }
            sums.measured += measured;
            sums.idle += delta.idle;
            sums.unattributed += delta.unattributed;
            sums.system += delta.system;
            sums.retired += delta.retired;
            sums.off.get_or_insert((delta.off_uj, delta.off_uj)).1 = delta.off_uj;
            if at_edge(index) || reaches_back.contains(&delta.id) {
                sums.edge += measured;
            }
        }
        for delta in &tick.energy {
            let sums = containers.entry(delta.container.number).or_insert_with(|| Sums::new(&delta.container));
            sums.container = &delta.container;
            let energy = sums.energy.entry(delta.id).or_default();
            energy.joules += delta.joules;
            energy.idle += delta.idle;
            match delta.bound {
                Some(bound) => energy.bound.add(bound),
                None => energy.unbounded = true,
            }
            if at_edge(index) || reaches_back.contains(&delta.id) {
                energy.edge += delta.joules;
            }
            accounts.entry(delta.id).or_default().containers += delta.joules + delta.idle;
        }
        for (container, package, ns) in &tick.cpu {
            let sums = containers.entry(container.number).or_insert_with(|| Sums::new(container));
            let sum = sums.cpu.entry(*package).or_default();
            *sum = sum.saturating_add(*ns);
        }
    }
    Answer {
        start,
        end,
        from: seconds(run[from].unix_ns),
        to: seconds(run[to].unix_ns),
        start_error_seconds: seconds(start_ns - run[from].unix_ns),
        end_error_seconds: seconds(run[to].unix_ns - end_ns),
        ticks: inside.len(),
        accounts: accounts.into_iter().map(|(id, sums)| sums.shown(id)).collect(),
        containers: containers.into_values().map(Sums::shown).collect(),
    }
}

#[derive(Default)]
struct AccountSums {
    measured: Microjoules,
    containers: Microjoules,
    retired: Microjoules,
    system: Microjoules,
    idle: Microjoules,
    unattributed: Microjoules,
    edge: Microjoules,
    missing_ns: i64,
    /// What the first and the last tick may be off by: what lies between them cancels.
    off: Option<(f32, f32)>,
}

impl AccountSums {
    fn shown(self, id: AccountId) -> AccountSum {
        AccountSum {
            package: id.zone.package_label(),
            zone: id.zone.kind.as_str(),
            source: id.origin.as_str(),
            measured_joules: self.measured.joules(),
            containers_joules: self.containers.joules(),
            retired_joules: self.retired.joules(),
            system_joules: self.system.joules(),
            idle_joules: self.idle.joules(),
            unattributed_joules: self.unattributed.joules(),
            edge_error_joules: self.edge.joules(),
            missing_seconds: seconds(self.missing_ns),
            uncertainty_joules: self
                .off
                .map(|(first, last)| f64::from(first).midpoint(f64::from(last)) / 1e6)
                .filter(|off| off.is_finite()),
        }
    }
}

struct Sums<'a> {
    container: &'a Container,
    energy: BTreeMap<AccountId, EnergySums>,
    cpu: BTreeMap<Option<PackageId>, u64>,
}

#[derive(Default)]
struct EnergySums {
    joules: Microjoules,
    idle: Microjoules,
    /// What of the dynamic energy an edge tick holds.
    edge: Microjoules,
    bound: Sum,
    unbounded: bool,
}

impl<'a> Sums<'a> {
    fn new(container: &'a Container) -> Self {
        Self { container, energy: BTreeMap::new(), cpu: BTreeMap::new() }
    }

    fn shown(self) -> ContainerSum {
        ContainerSum {
            container: self.container.name.clone(),
            id: self.container.id.clone(),
            image: self.container.image.clone(),
            runtime: self.container.runtime,
            energy: self
                .energy
                .into_iter()
                .map(|(id, sums)| EnergySum {
                    package: id.zone.package_label(),
                    zone: id.zone.kind.as_str(),
                    source: id.origin.as_str(),
                    joules: sums.joules.joules(),
                    idle_joules: sums.idle.joules(),
                    edge_error_joules: sums.edge.joules(),
                    uncertainty_joules: (!sums.unbounded).then(|| sums.bound.total() / 1e6),
                })
                .collect(),
            cpu: self
                .cpu
                .into_iter()
                .map(|(package, ns)| CpuSum {
                    package: package_label(package),
                    seconds: seconds(i64::try_from(ns).unwrap_or(i64::MAX)),
                })
                .collect(),
        }
    }
}

/// The label value of a package that CPU time is told by.
pub(crate) fn package_label(package: Option<PackageId>) -> String {
    package.map_or_else(|| "all".to_owned(), |package| package.to_string())
}

/// Seconds for output.
#[expect(clippy::cast_precision_loss, reason = "output only; a double holds unix time to a quarter microsecond")]
pub(crate) fn seconds(ns: i64) -> f64 {
    ns as f64 / 1e9
}

/// Unix seconds as asked, in nanoseconds; `None` when it is not a time of this age.
#[expect(clippy::cast_possible_truncation, reason = "bounded before the cast")]
fn nanoseconds(seconds: f64) -> Option<i64> {
    const YEAR_2200: f64 = 7_258_118_400.0;
    (0.0..YEAR_2200).contains(&seconds).then(|| {
        // A double cannot hold unix nanoseconds; to the microsecond it is exact, and so is what we print.
        (seconds * 1e6).round() as i64 * 1000
    })
}

#[cfg(test)]
mod tests;
