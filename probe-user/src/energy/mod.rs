//! Where joules come from: choosing a source, and reading it once a tick.
//!
//! A source gives raw counters ([`Source`]); [`Meter`] turns them into joules that only grow. A source is usable when it
//! has an accounting root whose counter moves: some guests offer zones that read 0 for ever.

pub mod counter;
pub mod model;
pub mod powercap;
pub mod zone;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    time::{Duration, Instant},
};

use counter::{Counter, Reject, Step};
use model::{Model, PowerLine};
use powercap::Powercap;
use zone::{Origin, Zone, ZoneId};

use crate::{
    state::{Reason, SourceState, Unavailable},
    topology::Topology,
    units::Microjoules,
};

/// Something that counts joules.
pub trait Source: Send {
    /// How its joules are obtained.
    fn origin(&self) -> Origin;

    /// Its counters; the same for as long as the source lives.
    fn zones(&self) -> &[Zone];

    /// Reads every counter once, in microjoules, in the order of [`Source::zones`].
    fn read(&mut self, out: &mut Vec<io::Result<u64>>);

    /// Zones that are there and give nothing to us, with the reasons.
    fn refused(&self) -> &[(ZoneId, Unavailable)] {
        &[]
    }

    /// Idle power of a zone in microwatts, where the source knows it by construction.
    fn idle_power(&self, _zone: usize) -> Option<u64> {
        None
    }
}

/// What the user asked for with `--energy.source`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// The best that works: powercap, then the model
    #[default]
    Auto,
    /// RAPL through /sys/class/powercap, or nothing
    Powercap,
    /// A power line over CPU use; flagged source="model" everywhere
    Model,
}

/// RAPL counts every millisecond; a counter that has not moved in this time is not going to.
const MOVES_WITHIN: Duration = Duration::from_millis(100);

/// An accounting root that stands still for this long is not measuring: the least package uses a counter step in less
/// than a millisecond. Longer than any update interval of the sources we know.
const STILL: Duration = Duration::from_secs(5);

/// What was chosen, and how everything that was tried stands.
pub struct Chosen {
    /// The meter, when a source is usable.
    pub meter: Option<Meter>,
    /// Every source that was tried, in order.
    pub tried: Vec<SourceState>,
}

/// Tries the sources that `choice` allows, in order, and takes the first usable one.
#[must_use]
pub fn choose(choice: Choice, line: PowerLine, sysfs: &Path, procfs: &Path, topology: &Topology) -> Chosen {
    let mut tried = Vec::new();
    if choice != Choice::Model {
        match Powercap::open(sysfs).map(|source| Box::new(source) as Box<dyn Source>).and_then(moving) {
            Ok(source) => {
                let meter = Meter::new(source);
                tried.push(usable(&meter));
                return Chosen { meter: Some(meter), tried };
            }
            Err(why) => tried.push(SourceState {
                source: Origin::Powercap.as_str(),
                state: Err(why),
                detail: String::new(),
                wanted: choice == Choice::Powercap,
            }),
        }
    }
    if choice == Choice::Powercap {
        return Chosen { meter: None, tried };
    }
    let meter = Meter::new(Box::new(Model::new(line, topology, procfs)));
    tried.push(usable(&meter));
    Chosen { meter: Some(meter), tried }
}

fn usable(meter: &Meter) -> SourceState {
    let zones = meter.zones();
    let packages = zones.iter().filter(|zone| zone.id.kind == zone::ZoneKind::Package).count();
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let mut detail = format!("{}, {}", plural(packages, "package"), plural(zones.len(), "zone"));
    for (zone, why) in meter.source.refused() {
        detail.push_str(&format!("; without {zone} ({})", why.reason));
    }
    SourceState { source: meter.origin().as_str(), state: meter.lacks().map_or(Ok(()), Err), detail, wanted: true }
}

/// Waits until an accounting root moves.
fn moving(mut source: Box<dyn Source>) -> Result<Box<dyn Source>, Unavailable> {
    let roots: Vec<usize> =
        (0..source.zones().len()).filter(|zone| source.zones()[*zone].id.kind.is_accounting_root()).collect();
    let mut read = || {
        let mut raw = Vec::new();
        source.read(&mut raw);
        raw
    };
    let first = read();
    let start = Instant::now();
    let mut failed = None;
    while start.elapsed() < MOVES_WITHIN {
        std::thread::sleep(Duration::from_millis(2));
        let next = read();
        for root in &roots {
            match (&first[*root], &next[*root]) {
                (Ok(before), Ok(now)) if before != now => return Ok(source),
                (Err(error), _) | (_, Err(error)) => failed = Some((Reason::of(error), error.to_string())),
                _ => {}
            }
        }
    }
    let zone = &source.zones()[roots[0]];
    Err(match failed {
        Some((reason, error)) => Unavailable::new(reason, format!("{}: {error}", zone.place)),
        None => Unavailable::new(
            Reason::Broken,
            format!(
                "{} stands at {} and does not move. A guest whose hypervisor offers RAPL without counting it reads so",
                zone.place,
                first[roots[0]].as_ref().copied().unwrap_or(0)
            ),
        ),
    })
}

/// What one zone did in one tick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneTick {
    /// Joules of the tick; `None` when nothing can be said about it.
    pub grown: Option<Microjoules>,
    /// Everything accepted since the start.
    pub total: Microjoules,
    /// Why the reading failed, when it did.
    pub error: Option<String>,
    /// Idle power in microwatts, where the source knows it.
    pub idle_uw: Option<u64>,
}

/// A source with its counters unwrapped.
pub struct Meter {
    source: Box<dyn Source>,
    counters: Vec<Counter>,
    rejects: BTreeMap<(usize, Reject), u64>,
    raw: Vec<io::Result<u64>>,
    /// The last value of each zone, and when it came.
    moved: Vec<Option<(u64, Instant)>>,
}

impl Meter {
    /// Counts from the first [`Meter::tick`].
    #[must_use]
    pub fn new(source: Box<dyn Source>) -> Self {
        let counters = source.zones().iter().map(|zone| Counter::new(zone.range)).collect();
        let moved = vec![None; source.zones().len()];
        Self { source, counters, rejects: BTreeMap::new(), raw: Vec::new(), moved }
    }

    /// How the joules are obtained.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.source.origin()
    }

    /// The counters, in the order of [`Meter::tick`].
    #[must_use]
    pub fn zones(&self) -> &[Zone] {
        self.source.zones()
    }

    /// Why the account is not whole: an accounting root that is there and cannot be read.
    #[must_use]
    pub fn lacks(&self) -> Option<Unavailable> {
        let (zone, why) = self.source.refused().iter().find(|(zone, _)| zone.kind.is_accounting_root())?;
        Some(Unavailable::new(why.reason, format!("{zone} is missing in every sum: {}", why.detail)))
    }

    /// Reads every counter once.
    pub fn tick(&mut self, now: Instant) -> Vec<ZoneTick> {
        self.raw.clear();
        self.source.read(&mut self.raw);
        for ((zone, raw), moved) in self.source.zones().iter().zip(&mut self.raw).zip(&mut self.moved) {
            if let Ok(value) = raw {
                match moved {
                    Some((last, since)) if last == value => {
                        let still = now.saturating_duration_since(*since);
                        if still >= STILL && zone.id.kind.is_accounting_root() {
                            *raw = Err(io::Error::other(format!("stands at {value} for {} s", still.as_secs())));
                        }
                    }
                    _ => *moved = Some((*value, now)),
                }
            }
        }
        let mut all = Vec::with_capacity(self.counters.len());
        for (zone, (counter, raw)) in self.counters.iter_mut().zip(&self.raw).enumerate() {
            let step = counter.advance(raw.as_ref().ok().copied());
            if let Step::Rejected(reason) = step {
                *self.rejects.entry((zone, reason)).or_default() += 1;
            }
            all.push(ZoneTick {
                grown: match step {
                    Step::Grew(grown) => Some(grown),
                    Step::Start | Step::Rejected(_) | Step::Lost => None,
                },
                total: counter.total(),
                error: raw.as_ref().err().map(|error| {
                    let place = self.source.zones().get(zone).map_or("", |zone| &zone.place);
                    format!("{place}: {error}")
                }),
                idle_uw: self.source.idle_power(zone),
            });
        }
        all
    }

    /// Readings refused since the start, by zone and reason.
    #[must_use]
    pub fn rejects(&self) -> &BTreeMap<(usize, Reject), u64> {
        &self.rejects
    }
}
