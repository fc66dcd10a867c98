//! The history of past ticks, and the sums over a window of it.
//!
//! Clones of a ring share all ticks except the newest. A clone is part of every snapshot, so any
//! number of requests read the history without a lock.

mod rows;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use serde::Serialize;
use units::{Microjoules, model_interval::ModelInterval};

pub use self::rows::{ContainerCpuDelta, ContainerDelta, CpuRows, EnergyRow, EnergyRows};
use self::rows::{block, list_bytes};
use crate::{
    containers::Container,
    energy::zone::ZoneKind,
    host::topology::PackageId,
    ledger::{AccountId, uncertainty::BoundSum},
};

/// Ticks per sealed chunk, which is the most that a clone copies.
const CHUNK: usize = 64;
/// If wall clock and monotonic clock differ by more than this between two ticks, the wall clock was
/// set. NTP slews by at most 500 ppm, 0.5 ms in a second; this leaves room for long ticks.
const STEP_NS: i64 = 20_000_000;

/// What views say instead of an uncertainty while the idle power is unknown: idle energy is divided
/// like dynamic energy then, and the bound is about as large as the energy.
pub const IDLE_NOT_LEARNT: &str = "idle not learnt yet";

/// How the energy of a tick is known at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Settlement {
    /// The counter was read and its energy was split.
    #[default]
    Exact,
    /// The counter was read, and the split waits for the use of a process: the energy since the
    /// last split. `measured` is `None`.
    Waiting(Microjoules),
    /// The counter was read. A later split, which covers more ticks, was distributed.
    Divided,
    /// The counter was not read. A later reading was distributed by time.
    Estimated,
}

/// Energy of one accounting root in one tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AccountDelta {
    pub id: AccountId,
    /// Measured energy; `None` when the source returned none for this tick. The other fields are
    /// zero then.
    pub measured: Option<Microjoules>,
    /// Number of ticks that the energy covers, this tick the last: more than one after failed
    /// readings. Without measured energy: how many ticks in a row lack it.
    pub covers: u32,
    /// Bound of the error of the measured energy at both ends together, in microjoules; not a
    /// number where it is unknown.
    pub bound_uj: f32,
    /// Idle energy that is not attributed to any container.
    pub idle: Microjoules,
    /// Dynamic energy that is not attributed.
    pub unattributed: Microjoules,
    /// Dynamic energy outside of containers.
    pub system: Microjoules,
    /// Energy of containers without series.
    pub retired: Microjoules,
    pub settlement: Settlement,
    /// True when the idle power of the root was known.
    pub idle_known: bool,
}

impl AccountDelta {
    /// A tick without measured energy.
    #[must_use]
    pub fn unmeasured(id: AccountId) -> Self {
        let zero = Microjoules::ZERO;
        Self {
            id,
            measured: None,
            covers: 1,
            bound_uj: f32::NAN,
            idle: zero,
            unattributed: zero,
            system: zero,
            retired: zero,
            settlement: Settlement::Exact,
            idle_known: false,
        }
    }

    /// The parts of the measured energy that belong to no container with series.
    fn parts(&mut self) -> [&mut Microjoules; 4] {
        [&mut self.idle, &mut self.unattributed, &mut self.system, &mut self.retired]
    }
}

/// One past tick.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Number of the tick since the start.
    pub sequence: u64,
    /// End of the tick in unix nanoseconds, in whole microseconds. A double of unix seconds holds
    /// it exactly, so that a printed edge is exact in a request. The start of the tick is the end
    /// of the tick before.
    pub unix_ns: i64,
    /// End of the tick on the monotonic clock.
    pub monotonic_ns: i64,
    /// Energy, by accounting root.
    pub accounts: Box<[AccountDelta]>,
    /// Energy of containers.
    pub energy: EnergyRows,
    /// CPU time of containers.
    pub cpu: CpuRows,
}

/// The two reference counts of an [`Arc`].
const COUNTS: usize = 2 * size_of::<usize>();

impl Tick {
    /// Memory of the tick in bytes: its own block, its lists, its entry in the ring, and the
    /// containers that the tick before does not contain. All ticks with a container share it.
    fn bytes(&self, before: Option<&Self>) -> usize {
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
        let own = block(COUNTS + size_of::<Self>()) + size_of::<SizedTick>();
        own + list_bytes(&self.accounts) + self.energy.bytes() + self.cpu.bytes() + containers
    }

    fn containers(&self) -> impl Iterator<Item = &Container> {
        self.energy.iter().map(|row| &**row.container).chain(self.cpu.iter().map(|(container, ..)| &**container))
    }
}

/// A tick and its memory in bytes.
type SizedTick = (Arc<Tick>, usize);
/// A full chunk and its memory in bytes.
type Chunk = (Arc<[SizedTick]>, usize);

/// Past ticks, newest last, bounded in bytes.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    sealed: VecDeque<Chunk>,
    open: Vec<SizedTick>,
    open_bytes: usize,
    bytes: usize,
    limit: usize,
}

/// Why a window cannot be summed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WindowError {
    /// `end` is not later than `start`, or one of them is not a time.
    #[error("start {start} and end {end}: end must be later than start, both in unix seconds")]
    InvalidRange { start: f64, end: f64 },
    /// It starts before the oldest tick.
    #[error(
        "the window starts at {start:.3}, but the oldest tick is at {oldest:.3}: the probe keeps the ticks since its start, up to --window.bytes"
    )]
    TooOld {
        start: f64,
        /// The earliest possible start.
        oldest: f64,
    },
    /// It ends after the newest tick.
    #[error(
        "the window ends at {end:.3}, but the last tick was at {newest:.3}. Wait for the next tick, or POST /api/v1/mark for one now"
    )]
    TooNew {
        end: f64,
        /// The latest possible end.
        newest: f64,
    },
    /// The wall clock was set inside the window, or set back over it, so its unix times are
    /// ambiguous.
    #[error("the wall clock was set by {by:+.3} s at {at:.3}: unix times across that moment are ambiguous")]
    ClockStep {
        /// Time of the step, on the new clock.
        at: f64,
        /// Seconds of the step.
        by: f64,
    },
}

impl WindowError {
    /// Identifier for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidRange { .. } => "not_a_window",
            Self::TooOld { .. } => "too_old",
            Self::TooNew { .. } => "too_new",
            Self::ClockStep { .. } => "clock_step",
        }
    }
}

/// Energy of one accounting root in a window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AccountSum {
    /// As the label `package`.
    pub package: String,
    /// As the label `zone`.
    pub zone: &'static str,
    /// As the label `source`.
    pub source: &'static str,
    pub measured_joules: f64,
    /// All containers with series.
    pub containers_joules: f64,
    /// The part of `containers_joules` that being awake costs, where it is known separately.
    pub awake_joules: f64,
    /// Containers without series.
    pub retired_joules: f64,
    /// Dynamic energy outside of containers.
    pub system_joules: f64,
    /// Idle energy that is not attributed to any container.
    pub idle_joules: f64,
    pub unattributed_joules: f64,
    /// Measured energy at the end of the window that is not split yet, because a GPU has not
    /// reported the use of a process. It is part of `measured_joules` and of no row above. Asked
    /// again some seconds later, the window has it in the other parts.
    pub unsettled_joules: f64,
    /// Maximum energy in `measured_joules` from outside of the requested window, between its edges
    /// and those of the ticks.
    pub edge_error_joules: f64,
    /// Time in the window without energy readings; its energy is missing above.
    pub missing_seconds: f64,
    /// True when the idle power was known in every tick of the window. While it is unknown, idle
    /// energy is attributed like dynamic energy.
    pub idle_known: bool,
    /// Time in the window in which the idle power was known.
    pub idle_known_seconds: f64,
    /// Bound of the error of `measured_joules` between `from` and `to`; absent where it is unknown,
    /// as for a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncertainty_joules: Option<f64>,
    /// 90 % interval of modelled energy, as the truth per estimate, over all loads; absent if it is
    /// measured, or if the power of the model was configured. The snapshot sets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_interval_ratio: Option<ModelInterval>,
    /// [`IDLE_NOT_LEARNT`] if the idle power was unknown in a part of the window: the uncertainty
    /// of containers then says little more than that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_note: Option<&'static str>,
}

/// Energy of one container from one root in a window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EnergySum {
    /// As the label `package`.
    pub package: String,
    /// As the label `zone`.
    pub zone: &'static str,
    /// As the label `source`.
    pub source: &'static str,
    /// Dynamic energy.
    pub joules: f64,
    /// The part of `joules` that being awake costs, where it is known separately.
    pub awake_joules: f64,
    /// Its part of the idle energy, under a policy that attributes idle energy.
    pub idle_joules: f64,
    /// Maximum dynamic energy from outside of the requested window, and energy inside of it that
    /// is not split yet and may belong to the container.
    pub edge_error_joules: f64,
    /// Bound of the error of `joules` between `from` and `to`; absent where it is unknown, as for a
    /// model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncertainty_joules: Option<f64>,
}

/// CPU time of one container on one package.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CpuSum {
    /// As the label `package`.
    pub package: String,
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
    /// By accounting root.
    pub energy: Vec<EnergySum>,
    /// By package.
    pub cpu: Vec<CpuSum>,
}

/// Sums between the two ticks that enclose the requested window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WindowResponse {
    /// Requested start in unix seconds.
    pub start: f64,
    /// Requested end in unix seconds.
    pub end: f64,
    /// Start of the sums: the tick at or before `start`.
    pub from: f64,
    /// End of the sums: the tick at or after `end`.
    pub to: f64,
    /// `start - from`: time before the requested window that the sums include.
    pub start_error_seconds: f64,
    /// `to - end`: time after the requested window that the sums include.
    pub end_error_seconds: f64,
    /// Number of ticks in the sums.
    pub ticks: usize,
    /// By accounting root.
    pub accounts: Vec<AccountSum>,
    /// By container; containers without usage are left out.
    pub containers: Vec<ContainerSum>,
}

impl Ring {
    /// An empty ring that keeps at most `limit` bytes of ticks, and always the two newest.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Adds a tick, and removes the oldest ticks above the limit.
    pub fn push(&mut self, mut tick: Tick) {
        debug_assert_eq!(tick.unix_ns % 1000, 0);
        for index in 0..tick.accounts.len() {
            self.settle(&mut tick, index);
        }
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
                // The only chunk exceeds the limit, so its ticks are removed one by one.
                self.open.splice(0..0, chunk.iter().cloned());
                self.open_bytes += bytes;
            }
            let (_, bytes) = self.open.remove(0);
            self.bytes -= bytes;
            self.open_bytes -= bytes;
        }
        if self.open.len() == CHUNK {
            let chunk: Arc<[SizedTick]> = std::mem::take(&mut self.open).into();
            self.sealed.push_back((chunk, std::mem::take(&mut self.open_bytes)));
        }
    }

    /// Distributes the energy of a GPU that covers several ticks among these ticks: by the energy
    /// measured in each of them, and by time where the GPU was not read. Each part of the split is
    /// distributed in the same proportion, so every tick is conserved. A window that ends in one of
    /// the ticks is then complete.
    fn settle(&mut self, tick: &mut Tick, index: usize) {
        let delta = tick.accounts[index];
        let id = delta.id;
        let before = usize::try_from(delta.covers).unwrap_or(usize::MAX).saturating_sub(1);
        let (Some(measured), true) = (delta.measured, matches!(id.zone.kind, ZoneKind::Gpu(_))) else { return };
        if before == 0 || before >= CHUNK {
            return;
        }
        // The covered ticks, and the one before them: its end is their start.
        let mut covered: Vec<Arc<Tick>> = self.ticks().rev().take(before + 1).cloned().collect();
        covered.reverse();
        if covered.len() <= before {
            return;
        }
        let Some(sums) = settled_sums(&covered, tick.monotonic_ns, id, measured) else { return };
        let mut parts = TickParts::of(tick, index);
        if parts.sum() != measured {
            return;
        }
        let mut known = Microjoules::ZERO;
        let mut settled = Vec::with_capacity(before);
        for (tick, (sum, settlement)) in covered.into_iter().skip(1).zip(sums) {
            let mut tick = Tick::clone(&tick);
            parts.take(sum - known).write(&mut tick, AccountDelta { settlement, covers: 1, ..delta });
            known = sum;
            settled.push(tick);
        }
        tick.energy = tick.energy.iter().filter(|row| row.id != id).map(EnergyRow::to_delta).collect();
        parts.write(tick, AccountDelta { settlement: Settlement::Exact, covers: 1, ..delta });
        self.replace_newest(settled);
    }

    /// Replaces the newest ticks, oldest of them first.
    fn replace_newest(&mut self, mut ticks: Vec<Tick>) {
        let in_open = ticks.len().min(self.open.len());
        let open = ticks.split_off(ticks.len() - in_open);
        let first = self.open.len() - in_open;
        if !ticks.is_empty()
            && let Some((chunk, bytes)) = self.sealed.pop_back()
        {
            // Snapshots keep the old chunk.
            let mut copy = chunk.to_vec();
            let first = copy.len().saturating_sub(ticks.len());
            let (old, new) = replace(&mut copy[first..], ticks);
            self.bytes = self.bytes - old + new;
            self.sealed.push_back((copy.into(), bytes - old + new));
        }
        let (old, new) = replace(&mut self.open[first..], open);
        self.bytes = self.bytes - old + new;
        self.open_bytes = self.open_bytes - old + new;
    }

    /// Every tick, oldest first.
    pub fn ticks(&self) -> impl DoubleEndedIterator<Item = &Arc<Tick>> {
        self.sealed.iter().flat_map(|(chunk, _)| chunk.iter()).chain(&self.open).map(|(tick, _)| tick)
    }

    /// Memory of all ticks in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Time between the oldest and the newest tick in nanoseconds, by the monotonic clock.
    #[must_use]
    pub fn span_ns(&self) -> i64 {
        let mut ticks = self.ticks();
        let oldest = ticks.next();
        let newest = ticks.next_back().or(oldest);
        newest.zip(oldest).map_or(0, |(newest, oldest)| newest.monotonic_ns - oldest.monotonic_ns)
    }

    /// Unix seconds of the oldest and the newest tick; `None` before the first tick.
    #[must_use]
    pub fn reach(&self) -> Option<(f64, f64)> {
        Some((seconds(self.ticks().next()?.unix_ns), seconds(self.ticks().next_back()?.unix_ns)))
    }

    /// The sums between the two ticks that enclose `start..end`, both in unix seconds.
    ///
    /// # Errors
    /// When the range is invalid, exceeds the history on either side, or contains a moment at which
    /// the wall clock was set. There are no partial responses.
    pub fn window(&self, start: f64, end: f64) -> Result<WindowResponse, WindowError> {
        let (Some(start_ns), Some(end_ns)) = (nanoseconds(start), nanoseconds(end)) else {
            return Err(WindowError::InvalidRange { start, end });
        };
        if end_ns <= start_ns {
            return Err(WindowError::InvalidRange { start, end });
        }
        let ticks: Vec<&Arc<Tick>> = self.ticks().collect();
        let (Some(oldest), Some(newest)) = (ticks.first(), ticks.last()) else {
            return Err(WindowError::TooNew { end, newest: 0.0 });
        };
        // Runs of ticks without a step of the wall clock: in each run, unix times grow. After a
        // step back two runs may contain the same times, and then the request is ambiguous.
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
            return Err(WindowError::TooNew { end, newest: seconds(newest.unix_ns) });
        }
        if start_ns < oldest.unix_ns && end_ns <= edges(first_run).1 {
            return Err(WindowError::TooOld { start, oldest: seconds(oldest.unix_ns) });
        }
        // The newest of several steps is reported, because it is the one that the caller is likely
        // to know.
        let steps = ticks.windows(2).rev().find_map(|pair| Some((pair[1].unix_ns, step(pair[0], pair[1])?)));
        Err(match steps {
            Some((at, by)) => WindowError::ClockStep { at: seconds(at), by: seconds(by) },
            // The window exceeds the history on both sides.
            None => WindowError::TooOld { start, oldest: seconds(oldest.unix_ns) },
        })
    }
}

/// Replaces ticks. Returns their memory before and after.
fn replace(old: &mut [SizedTick], ticks: Vec<Tick>) -> (usize, usize) {
    let (mut before, mut after) = (0, 0);
    for (slot, tick) in old.iter_mut().zip(ticks) {
        // The size is that of the old tick plus its new rows, whose containers the newest tick
        // shares.
        let bytes = (slot.1 + tick.energy.bytes()).saturating_sub(slot.0.energy.bytes());
        (before, after) = (before + slot.1, after + bytes);
        *slot = (Arc::new(tick), bytes);
    }
    (before, after)
}

/// Energy since the last split at the end of each covered tick, and how it is known. The first of
/// `covered` is the tick before them; the tick after them ends at `end_ns` and has all of it.
/// `None` unless all of them wait for the energy.
fn settled_sums(
    covered: &[Arc<Tick>],
    end_ns: i64,
    id: AccountId,
    measured: Microjoules,
) -> Option<Vec<(Microjoules, Settlement)>> {
    let start_ns = covered.first()?.monotonic_ns;
    let mut sums = Vec::with_capacity(covered.len());
    let mut known = (start_ns, Microjoules::ZERO);
    for (index, tick) in covered.iter().enumerate().skip(1) {
        let delta = tick.accounts.iter().find(|delta| delta.id == id)?;
        if delta.measured.is_some() {
            return None;
        }
        if let Settlement::Waiting(sum) = delta.settlement {
            known = (tick.monotonic_ns, sum.max(known.1).min(measured));
            sums.push((known.1, Settlement::Divided));
            continue;
        }
        let next = covered[index + 1..].iter().find_map(|tick| {
            let delta = tick.accounts.iter().find(|delta| delta.id == id)?;
            match delta.settlement {
                Settlement::Waiting(sum) => Some((tick.monotonic_ns, sum.max(known.1).min(measured))),
                _ => None,
            }
        });
        let (next_ns, next_sum) = next.unwrap_or((end_ns, measured));
        let length = |ns: i64| u64::try_from(ns - known.0).unwrap_or(0);
        let part = u128::from((next_sum - known.1).0) * u128::from(length(tick.monotonic_ns).min(length(next_ns)))
            / u128::from(length(next_ns).max(1));
        known = (tick.monotonic_ns, known.1 + Microjoules(u64::try_from(part).unwrap_or(0)));
        sums.push((known.1, Settlement::Estimated));
    }
    Some(sums)
}

/// All parts of the energy of one account in one tick.
struct TickParts {
    /// Those of [`AccountDelta::parts`].
    account: [Microjoules; 4],
    containers: Vec<ContainerDelta>,
}

impl TickParts {
    fn of(tick: &Tick, index: usize) -> Self {
        let mut delta = tick.accounts[index];
        let containers = tick.energy.iter().filter(|row| row.id == delta.id).map(EnergyRow::to_delta).collect();
        Self { account: delta.parts().map(|part| *part), containers }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Microjoules> {
        self.account.iter_mut().chain(self.containers.iter_mut().flat_map(|row| [&mut row.joules, &mut row.idle]))
    }

    fn sum(&mut self) -> Microjoules {
        self.all().map(|part| *part).sum()
    }

    /// Removes `energy`, at most all, in proportion to the parts, and returns it. The sums of the
    /// first parts are rounded, so no part exceeds what it has and the total is exact.
    fn take(&mut self, energy: Microjoules) -> Self {
        let whole = self.sum();
        let energy = energy.min(whole);
        let scale = |sum: Microjoules| {
            let part = u128::from(sum.0) * u128::from(energy.0) / u128::from(whole.0.max(1));
            Microjoules(u64::try_from(part).unwrap_or(u64::MAX))
        };
        let mut taken = Self { account: self.account, containers: self.containers.clone() };
        let mut sum = Microjoules::ZERO;
        for (part, taken) in self.all().zip(taken.all()) {
            let before = scale(sum);
            sum += *part;
            *taken = scale(sum) - before;
            *part = *part - *taken;
        }
        taken
    }

    /// Writes the parts into a tick that has none of this account.
    fn write(mut self, tick: &mut Tick, delta: AccountDelta) {
        let measured = Some(self.sum());
        let mut delta = AccountDelta { measured, ..delta };
        for (to, from) in delta.parts().into_iter().zip(self.account) {
            *to = from;
        }
        if let Some(known) = tick.accounts.iter_mut().find(|known| known.id == delta.id) {
            *known = delta;
        }
        let own = self.containers.into_iter().filter(|row| row.joules + row.idle > Microjoules::ZERO);
        tick.energy = tick.energy.iter().map(EnergyRow::to_delta).chain(own).collect();
    }
}

/// How the energy of an account is known at the end of a tick.
fn settlement(tick: &Tick, id: AccountId) -> Settlement {
    tick.accounts.iter().find(|delta| delta.id == id).map_or(Settlement::Exact, |delta| delta.settlement)
}

/// Energy that had been measured and not split yet at the end of the last of `ticks`.
fn waiting_before(ticks: &[&Arc<Tick>], id: AccountId) -> Microjoules {
    let entries = ticks.iter().rev().map_while(|tick| tick.accounts.iter().find(|delta| delta.id == id));
    let mut waiting = entries.take_while(|delta| delta.measured.is_none());
    let sum = waiting.find_map(|delta| match delta.settlement {
        Settlement::Waiting(sum) => Some(sum),
        _ => None,
    });
    sum.unwrap_or(Microjoules::ZERO)
}

/// Step of the wall clock between two ticks in nanoseconds; `None` without a step.
pub(crate) fn step(before: &Tick, after: &Tick) -> Option<i64> {
    let by = (after.unix_ns - before.unix_ns) - (after.monotonic_ns - before.monotonic_ns);
    (by.abs() > STEP_NS).then_some(by)
}

fn sum(run: &[&Arc<Tick>], start: f64, end: f64, start_ns: i64, end_ns: i64) -> WindowResponse {
    let from = run.partition_point(|tick| tick.unix_ns <= start_ns) - 1;
    let to = run.partition_point(|tick| tick.unix_ns < end_ns);
    let inside = &run[from + 1..=to];
    // The part of an edge tick outside of the window lies between nothing and all of it, unless the
    // edge is exact.
    let at_edge = |index: usize| {
        index == 0 && run[from].unix_ns != start_ns || index + 1 == inside.len() && run[to].unix_ns != end_ns
    };

    let mut accounts: BTreeMap<AccountId, AccountSums> = BTreeMap::new();
    let mut containers: BTreeMap<u32, ContainerSums<'_>> = BTreeMap::new();
    for (index, tick) in inside.iter().enumerate() {
        let length = |index: usize| inside[index].monotonic_ns - run[from + index].monotonic_ns;
        let mut reaches_back = BTreeSet::new();
        // At an edge of the window whose division is estimated, the energy of a container may be
        // from the other side.
        let mut divided = BTreeSet::new();
        for delta in &tick.accounts {
            let sums = accounts.entry(delta.id).or_default();
            sums.ns += length(index);
            if delta.idle_known {
                sums.idle_known_ns += length(index);
            }
            let Some(measured) = delta.measured else {
                sums.missing_ns += length(index);
                sums.unsplit_ns += length(index);
                if let Settlement::Waiting(energy) = delta.settlement {
                    let before = sums.waiting.map_or_else(|| waiting_before(&run[..=from], delta.id), |(_, end)| end);
                    let start = sums.waiting.map_or(before, |(start, _)| start);
                    sums.waiting = Some((start, energy));
                    sums.waiting_ns = sums.unsplit_ns;
                    if at_edge(index) {
                        sums.edge += energy - before;
                    }
                }
                continue;
            };
            (sums.waiting, sums.unsplit_ns) = (None, 0);
            let start = if index == 0 { settlement(run[from], delta.id) } else { Settlement::Exact };
            let end = if index + 1 == inside.len() { delta.settlement } else { Settlement::Exact };
            let estimated = start == Settlement::Estimated || end == Settlement::Estimated;
            if estimated || start == Settlement::Divided || end == Settlement::Divided {
                divided.insert(delta.id);
            }
            // The energy of ticks with failed readings is in the reading after them, also that of
            // ticks before the window.
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
            sums.bounds.get_or_insert((delta.bound_uj, delta.bound_uj)).1 = delta.bound_uj;
            if at_edge(index) || reaches_back.contains(&delta.id) || estimated {
                sums.edge += measured;
            }
        }
        for delta in tick.energy.iter() {
            let sums = containers.entry(delta.container.number).or_insert_with(|| ContainerSums::new(delta.container));
            sums.container = delta.container;
            let energy = sums.energy.entry(delta.id).or_default();
            energy.joules += delta.joules;
            energy.awake += delta.awake;
            energy.idle += delta.idle;
            match delta.bound {
                Some(bound) => energy.bound.add(bound),
                None => energy.unbounded = true,
            }
            if at_edge(index) || reaches_back.contains(&delta.id) || divided.contains(&delta.id) {
                energy.edge += delta.joules;
            }
            let account = accounts.entry(delta.id).or_default();
            account.containers += delta.joules + delta.idle;
            account.awake += delta.awake;
        }
        for (container, package, ns) in tick.cpu.iter() {
            let sums = containers.entry(container.number).or_insert_with(|| ContainerSums::new(container));
            let sum = sums.cpu.entry(package).or_default();
            *sum = sum.saturating_add(ns);
        }
    }
    for (id, sums) in &mut accounts {
        let Some((start, end)) = sums.waiting else { continue };
        sums.unsettled = end - start;
        sums.measured += sums.unsettled;
        sums.missing_ns -= sums.waiting_ns;
        for energy in containers.values_mut().filter_map(|container| container.energy.get_mut(id)) {
            energy.edge += sums.unsettled;
        }
    }
    WindowResponse {
        start,
        end,
        from: seconds(run[from].unix_ns),
        to: seconds(run[to].unix_ns),
        start_error_seconds: seconds(start_ns - run[from].unix_ns),
        end_error_seconds: seconds(run[to].unix_ns - end_ns),
        ticks: inside.len(),
        accounts: accounts.into_iter().map(|(id, sums)| sums.into_sum(id)).collect(),
        containers: containers.into_values().map(ContainerSums::into_sum).collect(),
    }
}

#[derive(Default)]
struct AccountSums {
    measured: Microjoules,
    containers: Microjoules,
    awake: Microjoules,
    retired: Microjoules,
    system: Microjoules,
    idle: Microjoules,
    unattributed: Microjoules,
    edge: Microjoules,
    missing_ns: i64,
    ns: i64,
    idle_known_ns: i64,
    /// Measured energy without a split: at the start of the window and at the last reading, since
    /// the last split.
    waiting: Option<(Microjoules, Microjoules)>,
    /// Time in the window since the last split, up to the last reading and up to the last tick.
    waiting_ns: i64,
    unsplit_ns: i64,
    /// The energy of `waiting` in the window.
    unsettled: Microjoules,
    /// Bounds of the first and the last tick; those between them cancel.
    bounds: Option<(f32, f32)>,
}

impl AccountSums {
    fn into_sum(self, id: AccountId) -> AccountSum {
        let idle_known = self.idle_known_ns == self.ns;
        // Memory and boards without energy of containers have nothing to learn for.
        let divided = matches!(id.zone.kind, ZoneKind::Package | ZoneKind::Psys) || self.containers > Microjoules::ZERO;
        AccountSum {
            package: id.zone.package_label(),
            zone: id.zone.kind.as_str(),
            source: id.origin.as_str(),
            measured_joules: self.measured.joules(),
            containers_joules: self.containers.joules(),
            awake_joules: self.awake.joules(),
            retired_joules: self.retired.joules(),
            system_joules: self.system.joules(),
            idle_joules: self.idle.joules(),
            unattributed_joules: self.unattributed.joules(),
            unsettled_joules: self.unsettled.joules(),
            edge_error_joules: self.edge.joules(),
            missing_seconds: seconds(self.missing_ns),
            idle_known,
            idle_known_seconds: seconds(self.idle_known_ns),
            uncertainty_joules: self
                .bounds
                .map(|(first, last)| f64::from(first).midpoint(f64::from(last)) / 1e6)
                .filter(|bound| bound.is_finite()),
            model_interval_ratio: None,
            idle_note: (divided && !idle_known).then_some(IDLE_NOT_LEARNT),
        }
    }
}

struct ContainerSums<'a> {
    container: &'a Container,
    energy: BTreeMap<AccountId, EnergySums>,
    cpu: BTreeMap<Option<PackageId>, u64>,
}

#[derive(Default)]
struct EnergySums {
    joules: Microjoules,
    awake: Microjoules,
    idle: Microjoules,
    /// Dynamic energy of the edge ticks.
    edge: Microjoules,
    bound: BoundSum,
    unbounded: bool,
}

impl<'a> ContainerSums<'a> {
    fn new(container: &'a Container) -> Self {
        Self { container, energy: BTreeMap::new(), cpu: BTreeMap::new() }
    }

    fn into_sum(self) -> ContainerSum {
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
                    awake_joules: sums.awake.joules(),
                    idle_joules: sums.idle.joules(),
                    edge_error_joules: sums.edge.joules(),
                    uncertainty_joules: (!sums.unbounded).then(|| sums.bound.total() / 1e6),
                })
                .collect(),
            cpu: self
                .cpu
                .into_iter()
                .map(|(package, ns)| CpuSum { package: package_label(package), seconds: seconds_of(ns) })
                .collect(),
        }
    }
}

/// Value of the label `package` of CPU time.
pub(crate) fn package_label(package: Option<PackageId>) -> String {
    package.map_or_else(|| "all".to_owned(), |package| package.to_string())
}

/// Seconds for output.
#[expect(clippy::cast_precision_loss, reason = "output only; a double holds unix time to a quarter microsecond")]
pub(crate) fn seconds(ns: i64) -> f64 {
    ns as f64 / 1e9
}

/// A length of time in seconds, for output.
pub(crate) fn seconds_of(ns: u64) -> f64 {
    seconds(i64::try_from(ns).unwrap_or(i64::MAX))
}

/// Requested unix seconds in nanoseconds; `None` outside of the years 1970 to 2200.
#[expect(clippy::cast_possible_truncation, reason = "bounded before the cast")]
fn nanoseconds(seconds: f64) -> Option<i64> {
    const YEAR_2200: f64 = 7_258_118_400.0;
    (0.0..YEAR_2200).contains(&seconds).then(|| {
        // A double cannot hold unix nanoseconds. To the microsecond it is exact, and printed times
        // are in microseconds.
        (seconds * 1e6).round() as i64 * 1000
    })
}

#[cfg(test)]
mod tests;
