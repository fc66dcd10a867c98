//! Where raw ticks come from: the machine, or a recording of one.

use std::{collections::HashSet, time::Duration};

use crate::{
    containers::stats::{EngineRow, UsageRow},
    cpu::CgroupKey,
    energy::zone::Origin,
    gpu,
    instruments::Instruments,
    jobs::Process,
    recording::Reader,
    snapshot::{CollectorRow, ProgramRow},
    state::{Reason, Unavailable},
    tick::RawTick,
};

/// A source of raw ticks.
pub enum Feed {
    /// The machine, whenever it is asked.
    Live(Box<Instruments>),
    /// A recording, at its own pace.
    Replay(Box<Replay>),
}

/// A recording that is played.
pub struct Replay {
    reader: Reader,
    next: Option<RawTick>,
    now: RawTick,
    ended: Option<String>,
}

impl Replay {
    /// Ready at its first tick.
    #[must_use]
    pub fn new(reader: Reader) -> Self {
        let mut this = Self { reader, next: None, now: RawTick::default(), ended: None };
        this.turn();
        this
    }

    fn turn(&mut self) {
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

/// The shortest time between two ticks of a replay, whatever the file says.
const SHORTEST: Duration = Duration::from_millis(1);

impl Feed {
    /// The next tick; `None` when a recording has no more. `ran` are the cgroups that ran in the tick before.
    pub fn read(&mut self, ran: &HashSet<CgroupKey>, collectors: &mut Vec<CollectorRow>) -> Option<&RawTick> {
        match self {
            Self::Live(instruments) => Some(instruments.read(ran, collectors)),
            Self::Replay(replay) => {
                collectors.clear();
                replay.now = replay.next.take()?;
                replay.turn();
                Some(&replay.now)
            }
        }
    }

    /// How long until the next tick, where `tick` is the configured interval.
    #[must_use]
    pub fn interval(&self, tick: Duration) -> Duration {
        match self {
            Self::Live(_) => tick,
            Self::Replay(replay) => match &replay.next {
                Some(next) => Duration::from_nanos(next.energy_ns.saturating_sub(replay.now.energy_ns)).max(SHORTEST),
                None => tick,
            },
        }
    }

    /// True when a tick can be taken for a mark.
    #[must_use]
    pub fn takes_marks(&self) -> bool {
        matches!(self, Self::Live(_))
    }

    /// What the programs inside the kernel cost.
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramRow> {
        match self {
            Self::Live(instruments) => instruments.programs(),
            Self::Replay(_) => Vec::new(),
        }
    }

    /// The processes of jobs that run.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        match self {
            Self::Live(instruments) => instruments.processes(),
            Self::Replay(_) => Vec::new(),
        }
    }

    /// What containers and engines use besides CPU time, and what memory the machine has.
    #[must_use]
    pub fn usage(&self) -> (&[UsageRow], &[EngineRow], u64) {
        match self {
            Self::Live(instruments) => instruments.usage(),
            Self::Replay(_) => (&[], &[], 0),
        }
    }

    /// What GPUs say.
    #[must_use]
    pub fn gpus(&self) -> &[gpu::Shown] {
        match self {
            Self::Live(instruments) => instruments.gpus(),
            Self::Replay(_) => &[],
        }
    }

    /// How the drivers of GPUs stand, with what was found. `trouble` is what the accountant says of their energy.
    #[must_use]
    pub fn gpu_states(&self, trouble: Option<&str>) -> Vec<(&'static str, Result<(), Unavailable>, String)> {
        match self {
            Self::Live(instruments) => instruments.gpu_states(trouble),
            Self::Replay(_) => Vec::new(),
        }
    }

    /// Waits until drivers of GPUs have opened, for at most so long.
    pub fn settle(&mut self, most: Duration) {
        if let Self::Live(instruments) = self {
            instruments.settle(most);
        }
    }

    /// How the sources stand now. `trouble` is what the accountant says of the energy.
    #[must_use]
    pub fn states(&self, trouble: Option<&str>) -> Vec<(&'static str, Result<(), Unavailable>)> {
        match self {
            Self::Live(instruments) => instruments.states(trouble),
            Self::Replay(replay) => {
                let ended = replay.ended.as_deref().filter(|_| replay.next.is_none());
                let state = ended.or(trouble).map_or(Ok(()), |why| Err(Unavailable::new(Reason::Broken, why)));
                vec![(Origin::Replay.as_str(), state)]
            }
        }
    }
}
