//! Energy of past ticks by layer, for the live page.
//!
//! A reading that covers several ticks is distributed among them by time, so that a failed reading
//! is no gap followed by a peak. A tick whose energy is not known yet, or never will be, has none:
//! it is a gap, not zero.

use std::ops::Range;

use serde::Serialize;
use units::Microjoules;

use crate::{
    energy::zone::ZoneKind,
    ledger::AccountId,
    snapshot::history::{AccountDelta, EnergyRow, Settlement, Tick},
};

/// The parts of the energy of a host. Together they are all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Layers<T> {
    pub(super) idle: T,
    /// The part of containers that being awake costs, where it is known separately.
    pub(super) awake: T,
    pub(super) system: T,
    /// Dynamic energy of containers, without `awake` and without GPUs.
    pub(super) containers: T,
    /// All energy of boards, whatever used it.
    pub(super) gpu: T,
    pub(super) retired: T,
    pub(super) unattributed: T,
}

impl<T> Layers<T> {
    pub(super) fn map<U>(self, f: impl Fn(T) -> U) -> Layers<U> {
        Layers {
            idle: f(self.idle),
            awake: f(self.awake),
            system: f(self.system),
            containers: f(self.containers),
            gpu: f(self.gpu),
            retired: f(self.retired),
            unattributed: f(self.unattributed),
        }
    }
}

impl Layers<f64> {
    /// Adds a part of other layers.
    pub(super) fn add(&mut self, other: &Self, part: f64) {
        self.idle += other.idle * part;
        self.awake += other.awake * part;
        self.system += other.system * part;
        self.containers += other.containers * part;
        self.gpu += other.gpu * part;
        self.retired += other.retired * part;
        self.unattributed += other.unattributed * part;
    }
}

/// True for a board.
pub(super) fn is_gpu(id: AccountId) -> bool {
    matches!(id.zone.kind, ZoneKind::Gpu(_))
}

/// Ticks in a row without energy of a board after which the host is shown without it.
const LOST_TICKS: u32 = 10;

/// True for a board that has not been read for long: it has fallen off the bus, or its driver was
/// unloaded. Its source says so; the power of everything else is still measured.
fn is_lost(delta: &AccountDelta) -> bool {
    let is_unread = delta.measured.is_none() && delta.settlement == Settlement::Exact;
    is_gpu(delta.id) && is_unread && delta.covers > LOST_TICKS
}

/// Measured energy in joules, with its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Energy {
    /// Time that it covers, in nanoseconds.
    pub(super) ns: f64,
    /// As the counters measured it.
    pub(super) host: f64,
    pub(super) layers: Layers<f64>,
}

impl Energy {
    /// Adds a part of the energy of other ticks.
    pub(super) fn add(&mut self, other: &Self, part: f64) {
        self.ns += other.ns * part;
        self.host += other.host * part;
        self.layers.add(&other.layers, part);
    }

    /// Mean power of a part of it; `None` where nothing was measured.
    pub(super) fn watts(&self, joules: f64) -> Option<f64> {
        (self.ns > 0.0).then(|| rounded(joules * 1e9 / self.ns))
    }
}

/// Watts, CPUs or a share to the millionth: more digits are only noise on the wire.
pub(super) fn rounded(value: f64) -> f64 {
    let rounded = (value * 1e6).round() / 1e6;
    // No negative zero.
    if rounded == 0.0 { 0.0 } else { rounded }
}

/// Half of the bounds at both ends of some ticks, by account. Those between them cancel.
#[derive(Clone, Debug, Default)]
pub(super) struct EdgeBounds(Vec<(AccountId, f64, f64)>);

impl EdgeBounds {
    pub(super) fn add(&mut self, id: AccountId, bound_uj: f32) {
        let bound = f64::from(bound_uj) / 1e6;
        match self.0.iter_mut().find(|(known, ..)| *known == id) {
            Some((_, _, last)) => *last = bound,
            None => self.0.push((id, bound, bound)),
        }
    }

    /// Bound in joules; `None` where it is unknown, as for a model.
    pub(super) fn joules(&self) -> Option<f64> {
        let sum = self.0.iter().map(|(_, first, last)| first.midpoint(*last)).sum::<f64>();
        (!self.0.is_empty() && sum.is_finite()).then_some(sum)
    }
}

/// A part of a reading that belongs to one tick.
struct Part {
    id: AccountId,
    /// Tick and position of the reading.
    source: usize,
    account: usize,
    fraction: f64,
    /// Energy that is measured and waits for its split, of which only the sum is known.
    unsplit: Option<Microjoules>,
}

/// Consecutive ticks with their energy.
pub(super) struct Columns<'a> {
    ticks: Vec<&'a Tick>,
    /// The oldest known tick of this run: it does not begin where the one before ends.
    break_at: Option<usize>,
    parts: Vec<Vec<Part>>,
}

impl<'a> Columns<'a> {
    /// From ticks of this run, oldest first. The first is the start of the second, and has no
    /// energy.
    pub(super) fn new(ticks: Vec<&'a Tick>) -> Self {
        Self::with_break(ticks, None)
    }

    /// As [`Self::new`]. The tick at `break_at`, and those after it, are of another run.
    pub(super) fn with_break(ticks: Vec<&'a Tick>, break_at: Option<usize>) -> Self {
        let parts = ticks.iter().map(|_| Vec::new()).collect();
        let mut this = Self { ticks, break_at, parts };
        for at in 1..this.ticks.len() {
            this.add_split(at);
        }
        for at in 1..this.ticks.len() {
            this.add_unsplit(at);
        }
        this
    }

    /// The positions of all ticks with a start.
    pub(super) fn range(&self) -> Range<usize> {
        1..self.ticks.len().max(1)
    }

    pub(super) fn tick(&self, at: usize) -> &'a Tick {
        self.ticks[at]
    }

    /// True for the oldest known tick of this run, after ticks of another.
    pub(super) fn is_break(&self, at: usize) -> bool {
        self.break_at == Some(at)
    }

    /// Length of a tick in nanoseconds; `None` across a restart.
    pub(super) fn length_ns(&self, at: usize) -> Option<f64> {
        if self.is_break(at) {
            return None;
        }
        let before = self.ticks.get(at.checked_sub(1)?)?;
        let length = self.ticks[at].monotonic_ns.checked_sub(before.monotonic_ns)?;
        (length > 0).then(|| float(length))
    }

    fn add_split(&mut self, at: usize) {
        let tick = self.ticks[at];
        for (account, delta) in tick.accounts.iter().enumerate().filter(|(_, delta)| delta.measured.is_some()) {
            let covers = usize::try_from(delta.covers).unwrap_or(usize::MAX).max(1);
            let first = (at + 1).saturating_sub(covers).max(1);
            self.distribute(delta, (at, account), first, covers, None);
        }
    }

    /// Energy of a board that was measured since the last such reading, or the last split.
    fn add_unsplit(&mut self, at: usize) {
        let tick = self.ticks[at];
        for (account, delta) in tick.accounts.iter().enumerate().filter(|(_, delta)| delta.measured.is_none()) {
            let Settlement::Waiting(sum) = delta.settlement else { continue };
            if self.parts[at].iter().any(|part| part.id == delta.id) {
                continue;
            }
            let of = |at: usize| self.ticks[at].accounts.iter().find(|other| other.id == delta.id);
            // A sum of before a restart has nothing to do with it.
            let mut of_run = (0..at).rev().take_while(|before| self.length_ns(before + 1).is_some());
            let known = of_run.find_map(|at| match of(at) {
                None => Some((at, Microjoules::ZERO)),
                Some(other) => match (other.measured, other.settlement) {
                    (None, Settlement::Waiting(before)) => Some((at, before)),
                    (Some(_), _) => Some((at, Microjoules::ZERO)),
                    (None, _) => None,
                },
            });
            if let Some((last, before)) = known {
                self.distribute(delta, (at, account), last + 1, at - last, Some(sum - before));
            }
        }
    }

    /// Distributes a reading among the ticks from `first` to its own, by time. If it covers more
    /// ticks than there are, these have a proportional part.
    fn distribute(
        &mut self,
        delta: &AccountDelta,
        (source, account): (usize, usize),
        first: usize,
        covers: usize,
        unsplit: Option<Microjoules>,
    ) {
        let lengths: Vec<f64> = (first..=source).map(|at| self.length_ns(at).unwrap_or(0.0)).collect();
        let missing = covers.max(lengths.len()) - lengths.len();
        let known = lengths.iter().sum::<f64>();
        let all = if missing == 0 { known } else { known * count(covers) / count(lengths.len()) };
        for (at, length) in (first..=source).zip(lengths) {
            // Alone without a division, so that it is exact.
            let fraction = if covers == 1 { 1.0 } else { length / all };
            if length > 0.0 && fraction.is_finite() {
                self.parts[at].push(Part { id: delta.id, source, account, fraction, unsplit });
            }
        }
    }

    fn parts_of(&self, at: usize) -> &[Part] {
        self.parts.get(at).map(Vec::as_slice).unwrap_or_default()
    }

    /// The energy of a tick; `None` where a part of it is unknown.
    pub(super) fn energy(&self, at: usize) -> Option<Energy> {
        let ns = self.length_ns(at)?;
        let (tick, parts) = (self.ticks[at], self.parts_of(at));
        let known = |delta: &AccountDelta| parts.iter().any(|part| part.id == delta.id) || is_lost(delta);
        if tick.accounts.is_empty() || parts.is_empty() || !tick.accounts.iter().all(known) {
            return None;
        }
        let mut sum = Energy { ns, ..Energy::default() };
        for part in parts {
            let delta = &self.ticks[part.source].accounts[part.account];
            let joules = |energy: Microjoules| energy.joules() * part.fraction;
            let measured = joules(part.unsplit.or(delta.measured).unwrap_or_default());
            sum.host += measured;
            if is_gpu(part.id) {
                sum.layers.gpu += measured;
                continue;
            }
            sum.layers.idle += joules(delta.idle);
            sum.layers.system += joules(delta.system);
            sum.layers.retired += joules(delta.retired);
            sum.layers.unattributed += joules(delta.unattributed);
        }
        for (row, fraction) in self.rows(at).filter(|(row, _)| !is_gpu(row.id)) {
            sum.layers.containers += load(row).joules() * fraction;
            sum.layers.awake += row.awake.joules() * fraction;
            sum.layers.idle += row.idle.joules() * fraction;
        }
        Some(sum)
    }

    /// The energy of containers in a tick, and the part of each row that belongs to it.
    pub(super) fn rows(&self, at: usize) -> impl Iterator<Item = (EnergyRow<'a>, f64)> + '_ {
        let parts = self.parts_of(at);
        let mut sources: Vec<usize> = parts.iter().map(|part| part.source).collect();
        sources.sort_unstable();
        sources.dedup();
        sources.into_iter().flat_map(move |source| {
            let tick = self.ticks[source];
            tick.energy.iter().filter_map(move |row| {
                let of = |part: &&Part| part.source == source && part.id == row.id && part.unsplit.is_none();
                parts.iter().find(of).map(|part| (row, part.fraction))
            })
        })
    }

    /// The bounds of the readings of a tick.
    pub(super) fn bounds(&self, at: usize) -> impl Iterator<Item = (AccountId, f32)> + '_ {
        let split = self.parts_of(at).iter().filter(|part| part.unsplit.is_none());
        split.map(|part| (part.id, self.ticks[part.source].accounts[part.account].bound_uj))
    }
}

/// The dynamic energy of a row without that of being awake.
pub(super) fn load(row: EnergyRow<'_>) -> Microjoules {
    row.joules - row.awake
}

#[expect(clippy::cast_precision_loss, reason = "lengths of time, for output")]
pub(super) fn float(ns: i64) -> f64 {
    ns as f64
}

#[expect(clippy::cast_precision_loss, reason = "a number of ticks")]
fn count(ticks: usize) -> f64 {
    ticks as f64
}
