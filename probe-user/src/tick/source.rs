//! Source of raw ticks: the machine, or a recording.

use std::{collections::HashSet, sync::Arc, time::Duration};

use super::{
    collect::{CollectorRow, Collectors},
    raw::RawTick,
    recording::Reader,
};
use crate::{
    cgroup::CgroupKey,
    containers::{
        Container, SavedContainer,
        stats::{EngineRow, UsageRow},
    },
    cpu::ProgramRow,
    energy::{Source, zone::Origin},
    gpu,
    host::availability::{Reason, SourceState, Unavailable},
    jobs::JobProcess,
};

/// A source of raw ticks.
pub enum TickSource {
    /// The machine, read on request.
    Live(Box<Collectors>),
    /// A recording, replayed at its recorded pace.
    Replay(Box<Replay>),
}

/// A recording that is being replayed.
pub struct Replay {
    reader: Reader,
    next: Option<RawTick>,
    current: RawTick,
    /// Why there are no more ticks.
    ended: Option<String>,
}

impl Replay {
    /// Ready for the first tick.
    #[must_use]
    pub fn new(reader: Reader) -> Self {
        let mut this = Self { reader, next: None, current: RawTick::default(), ended: None };
        this.advance();
        this
    }

    fn advance(&mut self) {
        self.next = match self.reader.next_tick() {
            Ok(Some(tick)) => Some(tick),
            Ok(None) => {
                self.ended.get_or_insert_with(|| "the recording has ended".to_owned());
                None
            }
            Err(error) => {
                self.ended.get_or_insert_with(|| error.to_string());
                None
            }
        };
    }
}

/// Minimum interval between two ticks of a replay.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

impl TickSource {
    /// The next tick; `None` at the end of a recording. `ran` are the cgroups that ran in the tick
    /// before.
    pub fn read(&mut self, ran: &HashSet<CgroupKey>, collectors: &mut Vec<CollectorRow>) -> Option<&RawTick> {
        match self {
            Self::Live(machine) => Some(machine.read(ran, collectors)),
            Self::Replay(replay) => {
                collectors.clear();
                replay.current = replay.next.take()?;
                replay.advance();
                Some(&replay.current)
            }
        }
    }

    /// Time until the next tick, where `tick` is the configured interval.
    #[must_use]
    pub fn interval(&self, tick: Duration) -> Duration {
        match self {
            Self::Live(_) => tick,
            Self::Replay(replay) => match &replay.next {
                Some(next) => {
                    Duration::from_nanos(next.energy_ns.saturating_sub(replay.current.energy_ns)).max(MIN_INTERVAL)
                }
                None => tick,
            },
        }
    }

    /// True when extra ticks can be taken for marks.
    #[must_use]
    pub fn takes_marks(&self) -> bool {
        matches!(self, Self::Live(_))
    }

    /// Notes whether the energy of the last tick was incomplete.
    pub fn note_energy_broken(&mut self, broken: bool) {
        if let Self::Live(collectors) = self {
            collectors.note_energy_broken(broken);
        }
    }

    /// The states of the energy sources, once after another one was taken into use.
    pub fn take_tried(&mut self) -> Option<Vec<SourceState>> {
        match self {
            Self::Live(collectors) => collectors.take_tried(),
            Self::Replay(_) => None,
        }
    }

    /// A second source with the counters of the packages, where the source in use has one.
    #[must_use]
    pub fn packages(&self) -> Option<Box<dyn Source>> {
        match self {
            Self::Live(collectors) => collectors.source().and_then(Source::packages),
            Self::Replay(_) => None,
        }
    }

    /// Run time of the eBPF programs.
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramRow> {
        match self {
            Self::Live(collectors) => collectors.programs(),
            Self::Replay(_) => Vec::new(),
        }
    }

    /// The processes of running jobs.
    #[must_use]
    pub fn processes(&self) -> Vec<JobProcess> {
        match self {
            Self::Live(collectors) => collectors.processes(),
            Self::Replay(_) => Vec::new(),
        }
    }

    /// Memory, network and I/O of containers and engines, and the memory of the machine in bytes.
    #[must_use]
    pub fn usage(&self) -> (&[UsageRow], &[EngineRow], u64) {
        match self {
            Self::Live(collectors) => collectors.usage(),
            Self::Replay(_) => (&[], &[], 0),
        }
    }

    /// The containers that the next start can recognise.
    #[must_use]
    pub(crate) fn saved_containers(&self) -> Vec<SavedContainer> {
        match self {
            Self::Live(collectors) => collectors.saved_containers(),
            Self::Replay(_) => Vec::new(),
        }
    }

    /// Continues the containers of an earlier probe; returns those that were added.
    pub(crate) fn continue_containers(&mut self, saved: Vec<SavedContainer>) -> Vec<Arc<Container>> {
        match self {
            Self::Live(collectors) => collectors.continue_containers(saved),
            Self::Replay(_) => Vec::new(),
        }
    }

    /// Number of existing containers of runtimes, whatever the limit of series.
    #[must_use]
    pub fn container_count(&self) -> usize {
        match self {
            Self::Live(collectors) => collectors.container_count(),
            Self::Replay(_) => 0,
        }
    }

    /// Telemetry of the GPUs.
    #[must_use]
    pub fn gpus(&self) -> &[gpu::GpuStatus] {
        match self {
            Self::Live(collectors) => collectors.gpus(),
            Self::Replay(_) => &[],
        }
    }

    /// State of the GPU drivers, with details. `trouble` is the accountant's problem with their
    /// energy.
    #[must_use]
    pub fn gpu_states(&self, trouble: Option<&str>) -> Vec<(&'static str, Result<(), Unavailable>, String)> {
        match self {
            Self::Live(collectors) => collectors.gpu_states(trouble),
            Self::Replay(_) => Vec::new(),
        }
    }

    /// Waits until the drivers of GPUs are open, at most for `timeout`.
    pub fn wait_for_gpus(&mut self, timeout: Duration) {
        if let Self::Live(collectors) = self {
            collectors.wait_for_gpus(timeout);
        }
    }

    /// Current state of the sources. `trouble` is the accountant's problem with the energy.
    #[must_use]
    pub fn states(&self, trouble: Option<&str>) -> Vec<(&'static str, Result<(), Unavailable>)> {
        match self {
            Self::Live(collectors) => collectors.states(trouble),
            Self::Replay(replay) => {
                let ended = replay.ended.as_deref().filter(|_| replay.next.is_none());
                let state = ended.or(trouble).map_or(Ok(()), |why| Err(Unavailable::new(Reason::Broken, why)));
                vec![(Origin::Replay.as_str(), state)]
            }
        }
    }
}
