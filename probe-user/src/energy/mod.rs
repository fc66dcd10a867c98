//! Energy sources: selects a source and reads its counters.
//!
//! A [`Source`] returns raw counters only; [`counter`] turns them into joules that only increase. A
//! source is usable when it has an accounting root whose counter moves, because some guests offer
//! zones that always read 0.

pub mod counter;
pub(crate) mod counter_file;
pub mod cpu_kinds;
pub mod guest;
pub mod hwmon;
pub(crate) mod integral;
pub mod model;
pub mod msr;
pub mod perf;
pub mod power_histogram;
pub mod powercap;
pub mod processor;
pub mod residency;
mod search;
mod source;
pub mod zone;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

pub use counter_file::REOPENED;
pub use search::SourceSearch;
pub use source::{HostSettings, Source, SourceInventory, SourcePaths};

use guest::HostEnergy;
use hwmon::Hwmon;
use model::{CpuPower, Model};
use msr::Msr;
use perf::Perf;
use powercap::Powercap;
use processor::Processor;
use zone::{Origin, Zone, ZoneKind, accounting_roots};

use crate::host::{
    availability::{Reason, SourceState, Unavailable},
    topology::Topology,
};

/// Value of `--energy.source`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SourceChoice {
    /// First usable of perf, powercap, hwmon, and the model
    #[default]
    Auto,
    /// RAPL through the power PMU of the kernel, without fallback
    Perf,
    /// RAPL through /sys/class/powercap, without fallback
    Powercap,
    /// RAPL registers through /dev/cpu/N/msr, without fallback; never selected by auto
    Msr,
    /// Power or energy sensor of the board (hwmon, SCMI, Raspberry Pi), without fallback
    Hwmon,
    /// Probe of the host of this virtual machine (--energy.host.url), without fallback
    Host,
    /// Power model over CPU usage, labelled source="model" everywhere
    Model,
    /// Recording of --replay.file
    Replay,
}

impl SourceChoice {
    /// The sources to try, in order.
    fn origins(self) -> &'static [Origin] {
        match self {
            Self::Auto => &[Origin::Perf, Origin::Powercap, Origin::Hwmon, Origin::Model],
            Self::Perf => &[Origin::Perf],
            Self::Powercap => &[Origin::Powercap],
            Self::Msr => &[Origin::Msr],
            Self::Hwmon => &[Origin::Hwmon],
            Self::Host => &[Origin::Host],
            Self::Model => &[Origin::Model],
            Self::Replay => &[],
        }
    }
}

/// RAPL updates every millisecond: a counter that moves is accepted within this time.
const MOVEMENT_TIMEOUT: Duration = Duration::from_millis(100);
/// Time for a counter that advances once a second or two, as a sensor of the board does, or starts
/// late. All sources are waited for together.
const PATIENCE: Duration = Duration::from_millis(2500);
/// Minimum number of readings before a counter is considered as not moving, for a start that is
/// descheduled for the timeout.
const MIN_READINGS: u32 = 20;

/// The selected source, and the state of every source that was tried.
pub struct SelectedSource {
    /// `None` when no source is usable.
    pub source: Option<Box<dyn Source>>,
    /// The tried sources, in order.
    pub tried: Vec<SourceState>,
}

/// Tries the sources of `choice` in order, and selects the first usable one.
#[must_use]
pub fn choose(
    choice: SourceChoice,
    power: Option<CpuPower>,
    paths: &SourcePaths,
    topology: &Topology,
) -> SelectedSource {
    let order = choice.origins();
    let mut tried = Vec::new();
    // A source without a package or its memory is better than a model, and worse than a complete
    // source.
    let mut partial: Option<Box<dyn Source>> = None;
    // Sources whose counters stood still, by their place in `tried`. Some counters advance once a
    // second, or start late, so all of these are read for longer before there is only the model.
    let mut still: Vec<(usize, StandingSource)> = Vec::new();
    let began = Instant::now();
    for origin in order {
        if *origin == Origin::Model {
            if partial.is_some() {
                break;
            }
            if let Some((place, source)) = first_to_move(&mut still, began) {
                tried[place] = source_state(&*source);
                return SelectedSource { source: Some(source), tried };
            }
        }
        let opened = open(*origin, power, paths, topology).and_then(|source| match check_movement(source) {
            Movement::Moves(source) => Ok(source),
            Movement::Stands(source) => {
                let why = source.why.clone();
                still.push((tried.len(), source));
                Err(why)
            }
            Movement::Unusable(why) => Err(why),
        });
        match opened {
            Ok(source) if missing_zones(&*source).is_some() => {
                tried.push(source_state(&*source));
                partial.get_or_insert(source);
            }
            Ok(source) => {
                tried.push(source_state(&*source));
                return SelectedSource { source: Some(source), tried };
            }
            Err(why) => tried.push(refused_state(*origin, why, choice)),
        }
    }
    if partial.is_none()
        && let Some((place, source)) = first_to_move(&mut still, began)
    {
        tried[place] = source_state(&*source);
        return SelectedSource { source: Some(source), tried };
    }
    SelectedSource { source: partial, tried }
}

/// Reads all sources that stood still until one moves, up to [`PATIENCE`] after `began`.
fn first_to_move(still: &mut Vec<(usize, StandingSource)>, began: Instant) -> Option<(usize, Box<dyn Source>)> {
    while !still.is_empty() && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
        let moved = still.iter_mut().position(|(_, source)| source.moves());
        if let Some(at) = moved {
            let (place, source) = still.swap_remove(at);
            return Some((place, source.source));
        }
    }
    None
}

/// Opens one source, whether its counters move or not.
///
/// # Errors
/// Why it cannot be used.
pub fn open(
    origin: Origin,
    power: Option<CpuPower>,
    paths: &SourcePaths,
    topology: &Topology,
) -> Result<Box<dyn Source>, Unavailable> {
    let processor = Processor::read(&paths.procfs);
    Ok(match origin {
        Origin::Perf => {
            let mut perf = Perf::open(&paths.sysfs, topology, &processor)?;
            if let Ok(powercap) = Powercap::open(&paths.sysfs, topology, &processor) {
                perf.adopt_limits(powercap.zones());
            }
            Box::new(perf)
        }
        Origin::Powercap => Box::new(Powercap::open(&paths.sysfs, topology, &processor)?),
        Origin::Msr => Box::new(Msr::open(&paths.dev, topology, &processor)?),
        Origin::Hwmon => Box::new(Hwmon::open_board(paths, topology)?),
        Origin::Host => Box::new(HostEnergy::open(paths.host.as_ref(), topology)?),
        Origin::Model => Box::new(Model::new(power, &processor, topology, paths)),
        Origin::Replay => return Err(Unavailable::new(Reason::Absent, "a recording is opened by its file")),
        Origin::Simulated => return Err(Unavailable::new(Reason::Absent, "a simulated tree is opened as powercap")),
        Origin::Scmi | Origin::Pmic => {
            return Err(Unavailable::new(Reason::Absent, "sensors of a board are opened as hwmon"));
        }
        Origin::Nvml | Origin::NvmlPower | Origin::Fake | Origin::Drm | Origin::DrmPower => {
            return Err(Unavailable::new(Reason::Absent, "GPUs are read in addition to the other counters"));
        }
    })
}

/// True for the name of a source of the energy of packages or the machine, as in [`SourceState`].
#[must_use]
pub fn is_source(name: &str) -> bool {
    [Origin::Perf, Origin::Powercap, Origin::Msr, Origin::Hwmon, Origin::Host, Origin::Model]
        .iter()
        .any(|origin| origin.as_str() == name)
}

/// State of a source that was tried and cannot be used.
fn refused_state(origin: Origin, why: Unavailable, choice: SourceChoice) -> SourceState {
    let wanted = choice.origins().len() == 1;
    SourceState { source: origin.as_str(), state: Err(why), detail: String::new(), wanted }
}

/// State of an open source, with its content.
pub fn source_state(source: &dyn Source) -> SourceState {
    let zones = source.zones();
    let packages = zones.iter().filter(|zone| zone.id.kind == ZoneKind::Package).count();
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let mut detail = format!("{}, {}", plural(packages, "package"), plural(zones.len(), "zone"));
    for (zone, why) in &source.inventory().refused {
        detail.push_str(&format!("; without {zone} ({})", why.reason));
    }
    // The name of a model says so itself.
    if let Some(unmeasured) = source.energy_origin().unmeasured().filter(|_| source.origin().is_measured()) {
        detail.push_str(&format!("; {unmeasured}: nothing of this is measured"));
    }
    SourceState {
        source: source.origin().as_str(),
        state: missing_zones(source).map_or(Ok(()), Err),
        detail,
        wanted: true,
    }
}

/// Why the energy is incomplete: a package or its memory exists and cannot be read.
pub fn missing_zones(source: &dyn Source) -> Option<Unavailable> {
    let root = |kind| matches!(kind, ZoneKind::Package | ZoneKind::Dram);
    let (zone, why) = source.inventory().refused.iter().find(|(zone, _)| root(zone.kind))?;
    Some(Unavailable::new(why.reason, format!("{zone} is missing in every sum: {}", why.detail)))
}

/// Waits until the counter of an accounting root moves, as long as [`choose`] does.
///
/// # Errors
/// When none moves, or none can be read.
pub fn wait_for_movement(source: Box<dyn Source>) -> Result<Box<dyn Source>, Unavailable> {
    let began = Instant::now();
    match check_movement(source) {
        Movement::Moves(source) => Ok(source),
        Movement::Unusable(why) => Err(why),
        Movement::Stands(source) => {
            let why = source.why.clone();
            first_to_move(&mut vec![(0, source)], began).map(|(_, source)| source).ok_or(why)
        }
    }
}

/// The source, if every one of its accounting roots moves within [`PATIENCE`] and none is missing.
fn replacement(mut source: Box<dyn Source>) -> Result<Box<dyn Source>, Unavailable> {
    if let Some(why) = missing_zones(&*source) {
        return Err(why);
    }
    // As in [`check_movement`].
    if source.origin() == Origin::Host {
        return Ok(source);
    }
    let mut still: Vec<(usize, Option<u64>)> = roots(source.zones()).into_iter().map(|zone| (zone, None)).collect();
    let began = Instant::now();
    loop {
        let mut raw = Vec::new();
        source.read(&mut raw);
        still.retain_mut(|(zone, first)| match (&raw[*zone], *first) {
            (Ok(now), Some(before)) => before == *now,
            (Ok(now), None) => {
                *first = Some(*now);
                true
            }
            (Err(_), _) => true,
        });
        let Some((zone, _)) = still.first() else { return Ok(source) };
        if began.elapsed() >= PATIENCE {
            let location = &source.zones()[*zone].location;
            return Err(Unavailable::new(Reason::Broken, format!("{location} cannot be read, or does not move")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the counters of a source move within a short time.
enum Movement {
    Moves(Box<dyn Source>),
    Stands(StandingSource),
    Unusable(Unavailable),
}

/// A source whose counters did not move yet.
struct StandingSource {
    source: Box<dyn Source>,
    roots: Vec<usize>,
    /// The first value of each counter that was read.
    first: Vec<Option<u64>>,
    why: Unavailable,
}

impl StandingSource {
    /// Reads the counters of the accounting roots once. Returns true when one has moved.
    fn moves(&mut self) -> bool {
        let mut raw = Vec::new();
        self.source.read(&mut raw);
        self.roots.iter().any(|root| match (self.first[*root], &raw[*root]) {
            (Some(before), Ok(now)) => before != *now,
            // It can be read only now.
            (None, Ok(now)) => {
                self.first[*root] = Some(*now);
                false
            }
            (_, Err(_)) => false,
        })
    }
}

/// The accounting roots among the zones of a source.
fn roots(zones: &[Zone]) -> Vec<usize> {
    accounting_roots(zones).iter().enumerate().filter_map(|(zone, root)| root.then_some(zone)).collect()
}

fn check_movement(mut source: Box<dyn Source>) -> Movement {
    // A guest may use nothing for a while, and its host has checked the counters.
    if source.origin() == Origin::Host {
        return Movement::Moves(source);
    }
    let roots = roots(source.zones());
    let Some(first_root) = roots.first().copied() else {
        let why = "it has no zone that counts for the energy of the machine";
        return Movement::Unusable(Unavailable::new(Reason::Absent, why));
    };
    let mut read = || {
        let mut raw = Vec::new();
        source.read(&mut raw);
        raw
    };
    let first = read();
    let start = Instant::now();
    let (mut failed, mut readings) = (None, 0);
    while start.elapsed() < MOVEMENT_TIMEOUT || readings < MIN_READINGS {
        readings += 1;
        std::thread::sleep(Duration::from_millis(2));
        let next = read();
        for root in &roots {
            match (&first[*root], &next[*root]) {
                (Ok(before), Ok(now)) if before != now => return Movement::Moves(source),
                (Err(error), _) | (_, Err(error)) => failed = Some((Reason::of(error), error.to_string())),
                _ => {}
            }
        }
    }
    let zone = &source.zones()[first_root];
    let why = match failed {
        Some((reason, error)) => Unavailable::new(reason, format!("{}: {error}", zone.location)),
        None => Unavailable::new(
            Reason::Broken,
            format!(
                "{} stands at {} and does not move. This happens in a guest whose hypervisor offers RAPL without counting it",
                zone.location,
                first[first_root].as_ref().copied().unwrap_or(0)
            ),
        ),
    };
    let first = first.into_iter().map(Result::ok).collect();
    Movement::Stands(StandingSource { source, roots, first, why })
}
