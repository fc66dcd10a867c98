//! Where joules come from: choosing a source, and reading it.
//!
//! A source gives raw counters and nothing else ([`Source`]); [`counter`] turns them into joules that only grow. A source is
//! usable when it has an accounting root whose counter moves: some guests offer zones that read 0 for ever.

pub mod counter;
pub mod hwmon;
pub mod model;
pub mod msr;
pub mod perf;
pub mod powercap;
pub mod processor;
pub mod zone;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use hwmon::Hwmon;
use model::{Model, PowerLine};
use msr::Msr;
use perf::Perf;
use powercap::Powercap;
use processor::Processor;
use zone::{Origin, Zone, ZoneId, ZoneKind, accounting_roots};

use crate::{
    state::{Reason, SourceState, Unavailable},
    topology::Topology,
};

/// What opening a source found. It stays the same for as long as the source lives.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Its counters.
    pub zones: Vec<Zone>,
    /// Zones that are there and give nothing to us, with the reasons.
    pub refused: Vec<(ZoneId, Unavailable)>,
    /// What is there and deliberately left out (twins, one core's counter), for people.
    pub left_out: Vec<String>,
    /// True when the counters are marked as made up.
    pub simulated: bool,
}

impl Found {
    fn has(&self, id: ZoneId) -> bool {
        self.zones.iter().any(|zone| zone.id == id)
    }

    /// Usable when a package was found; else why the first that was refused was, else `absent`.
    fn require_packages(&self, absent: impl FnOnce() -> String) -> Result<(), Unavailable> {
        if self.zones.iter().any(|zone| zone.id.kind == ZoneKind::Package) {
            return Ok(());
        }
        let refused = self.refused.iter().find(|(id, _)| id.kind == ZoneKind::Package).or(self.refused.first());
        Err(refused.map_or_else(|| Unavailable::new(Reason::Absent, absent()), |(_, why)| why.clone()))
    }

    /// The packages among the zones, with a second handle to each; `None` when one cannot be had.
    fn packages<T>(&self, handles: &[T], again: impl Fn(&T) -> io::Result<T>) -> Option<(Self, Vec<T>)> {
        let packages = self.zones.iter().zip(handles).filter(|(zone, _)| zone.id.kind == ZoneKind::Package);
        let copied = packages.map(|(zone, handle)| Ok((zone.clone(), again(handle)?)));
        let (zones, handles) = copied.collect::<io::Result<Vec<_>>>().ok()?.into_iter().unzip();
        Some((Self { zones, simulated: self.simulated, ..Self::default() }, handles))
    }
}

/// Something that counts joules.
pub trait Source: Send {
    /// How its joules are obtained.
    fn origin(&self) -> Origin;

    /// What was found when it was opened.
    fn found(&self) -> &Found;

    /// Its counters.
    fn zones(&self) -> &[Zone] {
        &self.found().zones
    }

    /// Reads every counter once, in its own counts, in the order of [`Source::zones`].
    fn read(&mut self, out: &mut Vec<io::Result<u64>>);

    /// Another handle to the counters of the packages, for a reader of its own pace; `None` where there is no sense in one.
    fn packages(&self) -> Option<Box<dyn Source>> {
        None
    }

    /// Idle power of a zone in microwatts, where the source knows it by construction.
    fn idle_power(&self, _zone: usize) -> Option<u64> {
        None
    }
}

/// What the user asked for with `--energy.source`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// The best that works: perf, powercap, hwmon, then the model
    #[default]
    Auto,
    /// RAPL through the kernel's power PMU, or nothing
    Perf,
    /// RAPL through /sys/class/powercap, or nothing
    Powercap,
    /// RAPL from the registers through /dev/cpu/N/msr, or nothing; never chosen by itself
    Msr,
    /// A power or energy sensor under /sys/class/hwmon, or nothing
    Hwmon,
    /// A power line over CPU use; flagged source="model" everywhere
    Model,
    /// A recording, with --replay.file
    Replay,
}

/// RAPL counts every millisecond, a sensor of the board every second or two: a counter that has not moved in this time is
/// not going to.
const MOVES_WITHIN: Duration = Duration::from_millis(100);
const SENSOR_MOVES_WITHIN: Duration = Duration::from_millis(2500);
/// And it was read so often: a start that the machine held up for all of that time has not seen it stand.
const MOVES_IN: u32 = 20;

/// Where sources look.
#[derive(Clone, Debug)]
pub struct Places {
    /// `/sys`.
    pub sysfs: PathBuf,
    /// `/proc`.
    pub procfs: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
}

/// What was chosen, and how everything that was tried stands.
pub struct Chosen {
    /// The source, when one is usable.
    pub source: Option<Box<dyn Source>>,
    /// Every source that was tried, in order.
    pub tried: Vec<SourceState>,
}

/// Tries the sources that `choice` allows, in order, and takes the first usable one.
#[must_use]
pub fn choose(choice: Choice, line: Option<PowerLine>, places: &Places, topology: &Topology) -> Chosen {
    let order: &[Origin] = match choice {
        Choice::Auto => &[Origin::Perf, Origin::Powercap, Origin::Hwmon, Origin::Model],
        Choice::Perf => &[Origin::Perf],
        Choice::Powercap => &[Origin::Powercap],
        Choice::Msr => &[Origin::Msr],
        Choice::Hwmon => &[Origin::Hwmon],
        Choice::Model => &[Origin::Model],
        Choice::Replay => &[],
    };
    let mut tried = Vec::new();
    // A source that lacks a package or its memory is better than a model, and worse than one that lacks nothing.
    let mut partial: Option<Box<dyn Source>> = None;
    for origin in order {
        if *origin == Origin::Model && partial.is_some() {
            break;
        }
        match open(*origin, line, places, topology).and_then(moving) {
            Ok(source) if lacks(&*source).is_some() => {
                tried.push(state(&*source));
                partial.get_or_insert(source);
            }
            Ok(source) => {
                tried.push(state(&*source));
                return Chosen { source: Some(source), tried };
            }
            Err(why) => tried.push(SourceState {
                source: origin.as_str(),
                state: Err(why),
                detail: String::new(),
                wanted: order.len() == 1,
            }),
        }
    }
    Chosen { source: partial, tried }
}

/// Opens one source, moving or not.
///
/// # Errors
/// Why it cannot be used.
pub fn open(
    origin: Origin,
    line: Option<PowerLine>,
    places: &Places,
    topology: &Topology,
) -> Result<Box<dyn Source>, Unavailable> {
    let processor = Processor::read(&places.procfs);
    Ok(match origin {
        Origin::Perf => {
            let mut perf = Perf::open(&places.sysfs, topology, &processor)?;
            if let Ok(powercap) = Powercap::open(&places.sysfs, topology, &processor) {
                perf.bound(powercap.zones());
            }
            Box::new(perf)
        }
        Origin::Powercap => Box::new(Powercap::open(&places.sysfs, topology, &processor)?),
        Origin::Msr => Box::new(Msr::open(&places.dev, topology, &processor)?),
        Origin::Hwmon => Box::new(Hwmon::open(&places.sysfs, topology)?),
        Origin::Model => Box::new(Model::new(line, &processor, topology, places)),
        Origin::Replay => return Err(Unavailable::new(Reason::Absent, "a recording is opened by its file")),
        Origin::Nvml | Origin::NvmlPower | Origin::Fake | Origin::Drm => {
            return Err(Unavailable::new(Reason::Absent, "a GPU is read beside the machine's other counters"));
        }
    })
}

/// How a usable source stands, and what it offers.
pub fn state(source: &dyn Source) -> SourceState {
    let zones = source.zones();
    let packages = zones.iter().filter(|zone| zone.id.kind == ZoneKind::Package).count();
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let mut detail = format!("{}, {}", plural(packages, "package"), plural(zones.len(), "zone"));
    for (zone, why) in &source.found().refused {
        detail.push_str(&format!("; without {zone} ({})", why.reason));
    }
    if source.found().simulated {
        detail.push_str("; SIMULATED: nothing of this is measured");
    }
    SourceState { source: source.origin().as_str(), state: lacks(source).map_or(Ok(()), Err), detail, wanted: true }
}

/// Why the account is not whole: a package or its memory is there and cannot be read.
pub fn lacks(source: &dyn Source) -> Option<Unavailable> {
    let root = |kind| matches!(kind, ZoneKind::Package | ZoneKind::Dram);
    let (zone, why) = source.found().refused.iter().find(|(zone, _)| root(zone.kind))?;
    Some(Unavailable::new(why.reason, format!("{zone} is missing in every sum: {}", why.detail)))
}

/// Waits until an accounting root moves.
///
/// # Errors
/// When none does, or none can be read.
pub fn moving(mut source: Box<dyn Source>) -> Result<Box<dyn Source>, Unavailable> {
    let roots: Vec<usize> =
        accounting_roots(source.zones()).iter().enumerate().filter_map(|(zone, root)| root.then_some(zone)).collect();
    let Some(first_root) = roots.first().copied() else {
        return Err(Unavailable::new(Reason::Absent, "it has no zone that the machine's energy could be summed from"));
    };
    let patience = if source.origin() == Origin::Hwmon { SENSOR_MOVES_WITHIN } else { MOVES_WITHIN };
    let mut read = || {
        let mut raw = Vec::new();
        source.read(&mut raw);
        raw
    };
    let first = read();
    let start = Instant::now();
    let (mut failed, mut readings) = (None, 0);
    while start.elapsed() < patience || readings < MOVES_IN {
        readings += 1;
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
    let zone = &source.zones()[first_root];
    Err(match failed {
        Some((reason, error)) => Unavailable::new(reason, format!("{}: {error}", zone.place)),
        None => Unavailable::new(
            Reason::Broken,
            format!(
                "{} stands at {} and does not move. A guest whose hypervisor offers RAPL without counting it reads so",
                zone.place,
                first[first_root].as_ref().copied().unwrap_or(0)
            ),
        ),
    })
}
