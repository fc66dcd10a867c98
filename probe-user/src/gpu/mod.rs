//! GPUs: what each of them used, which engines worked, and for whom.
//!
//! All of it is read on a thread of its own, which a driver may hold up for as long as it likes: the sampler asks at the beginning of a
//! tick, waits a moment for the answer, and takes what is late with the next tick. A look has the time at which it was taken.

mod calls;
mod drm;
pub mod engines;
mod nvml;
mod samples;
mod who;

pub use drm::{Info as DrmInfo, parse as parse_drm};

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use caps::{CapSet, Capability, CapsHashSet};
use drm::Drm;
use engines::{ENGINES, EngineTimes, GpuId};
use nvml::Nvidia;
use serde::{Deserialize, Serialize};
use tracing::info;
use who::Processes;

use crate::{
    containers::Directory,
    energy::zone::{Origin, Zone},
    jobs::Jobs,
    ledger::Holder,
    privileges,
    state::{Reason, Unavailable},
};
pub(crate) use nvml::THROTTLES;

const PTRACE: Capability = Capability::CAP_SYS_PTRACE;
/// How long a tick waits for the thread. Longer answers come with the next tick.
const PATIENCE: Duration = Duration::from_millis(100);
/// An answer that takes longer than this is a driver that hangs.
const HANGS: Duration = Duration::from_secs(5);

/// What a look at one GPU gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// Which.
    pub id: GpuId,
    /// NVIDIA's number of it, which may change from one start to the next.
    pub index: Option<u32>,
    /// Its model.
    pub name: String,
    /// Who says all this.
    pub origin: Origin,
    /// Whether it can be used.
    pub state: Result<(), Unavailable>,
    /// Its energy counter; absent where it has none of its own.
    pub zone: Option<Zone>,
    /// What the counter reads.
    pub raw: Option<Result<u64, String>>,
    /// True where it is cut into instances, of which nothing is told.
    pub mig: bool,
    /// What it says of itself.
    pub facts: Facts,
    /// Who encodes on it.
    pub sessions: Vec<Session>,
    /// Who has memory on it.
    pub residents: Vec<Resident>,
    /// What each process used since the look before.
    pub uses: Vec<Use>,
    /// True when nothing was used at all, as far as can be told.
    pub rest: bool,
    /// True when all who used it lately have been heard of: joules can be shared.
    pub settled: bool,
    /// True when its counter may have begun anew since the look before.
    pub anew: bool,
    /// Readings that it does not give, and why.
    pub refused: BTreeMap<&'static str, Reason>,
    /// Samples that were too old, that could not be true, and of users that found no room, since the start.
    pub dropped: [u64; 3],
}

/// What a GPU says of itself. What is absent was not told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Milliwatts; what they are a mean of differs by chip (arXiv 2312.02741).
    pub power_mw: Option<u32>,
    /// The limit that the driver enforces, milliwatts.
    pub limit_mw: Option<u32>,
    /// Of the chip.
    pub celsius: Option<u32>,
    /// Use of each kind of engine, 0 to 1, over the driver's own sampling period.
    pub engines: [Option<f64>; ENGINES],
    /// Bytes.
    pub memory: Option<Memory>,
    /// Now.
    pub clocks: Option<Clocks>,
    /// Bits of [`THROTTLES`].
    pub throttle: Option<u64>,
    /// The bus.
    pub link: Option<Link>,
    /// What of the encoder's capacity is left, by codec, 0 to 1.
    pub headroom: Vec<(&'static str, f64)>,
}

/// Memory of a GPU in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Memory {
    pub total: u64,
    pub used: u64,
    pub free: u64,
    pub reserved: u64,
}

/// Clocks of a GPU in megahertz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Clocks {
    pub graphics_mhz: u32,
    pub sm_mhz: u32,
    pub memory_mhz: u32,
    pub video_mhz: Option<u32>,
}

/// The link to the PCI bus, now and at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Link {
    pub generation: u32,
    pub width: u32,
    pub most_generation: u32,
    pub most_width: u32,
    /// Packets that had to be sent again since the driver was loaded.
    pub replays: Option<u32>,
}

/// One encoder session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Whose.
    pub pid: u32,
    /// `h264`, `hevc`, `av1`.
    pub codec: &'static str,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Frames a second, the driver's moving average.
    pub fps: u32,
    /// Microseconds from a frame's coming to its end, the driver's moving average.
    pub latency_us: u32,
}

impl Session {
    /// Pixels a second.
    fn pixels(&self) -> u64 {
        u64::from(self.width).saturating_mul(u64::from(self.height)).saturating_mul(u64::from(self.fps))
    }
}

/// A process that has memory on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Its number on the host.
    pub pid: u32,
    /// How much, where the driver tells it.
    pub bytes: Option<u64>,
}

/// What a process used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Its number on the host.
    pub pid: u32,
    /// For how long, engine by engine.
    pub times: EngineTimes,
    /// When last, microseconds of the wall clock; 0 where that is now.
    pub at_us: u64,
}

/// One GPU in one tick, as the accountant is told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worked {
    /// True when nothing was used, as far as can be told.
    #[serde(default)]
    pub rest: bool,
    /// True when somebody who uses it has not been heard of yet: the joules wait.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits: bool,
    /// True when the counter may have begun anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anew: bool,
    /// Who used what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uses: Vec<Shared>,
}

/// What somebody used of a GPU in a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// Who; `None` where the process has ended, or its cgroup is not known.
    pub holder: Option<Holder>,
    /// Which of its jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<u32>,
    /// For how long, engine by engine.
    pub times: EngineTimes,
}

/// A session, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// What the driver says.
    pub session: Session,
    /// Who.
    pub holder: Option<Holder>,
    /// Which job.
    pub job: Option<u32>,
}

/// A GPU as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// What was read.
    pub gpu: Gpu,
    /// Who encodes on it.
    pub encoding: Vec<Encoding>,
    /// Memory on it in bytes, by who has it.
    pub memory: BTreeMap<Holder, u64>,
    /// Uses of processes that had ended or are not known, since the start.
    pub unknown: u64,
}

/// One answer of the thread.
pub(crate) struct Look {
    pub(crate) at: Instant,
    /// How long it took.
    took: Duration,
    pub(crate) gpus: Vec<Gpu>,
    /// Until when there is nothing to look at.
    sleep_until: Option<Instant>,
    states: [(&'static str, Result<(), Unavailable>, String); 2],
}

/// What is read, and where.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// NVIDIA's library, where it is not the loader's.
    pub nvml: Option<PathBuf>,
    /// `/sys`.
    pub sysfs: PathBuf,
    /// `/proc`.
    pub procfs: PathBuf,
}

/// Reads everything; lives on the thread.
pub struct Reader {
    nvidia: Nvidia,
    drm: Drm,
}

impl Reader {
    /// Drops what this thread does not need, for good, and opens what there is: the drivers' libraries never run with more.
    ///
    /// # Errors
    /// When the kernel refuses to drop; then nothing is opened.
    pub fn open(places: &Places) -> anyhow::Result<Self> {
        let drm = Drm::open(&places.sysfs, &places.procfs);
        // Files of other users' processes, where they tell of engines.
        let needs: CapsHashSet = if drm.is_empty() { CapsHashSet::new() } else { [PTRACE].into() };
        privileges::keep_only(&needs)?;
        if caps::read(None, CapSet::Permitted)?.contains(&PTRACE) {
            info!(
                "keeping {PTRACE} on the thread of GPUs: the kernel asks for it to tell engine time of other users' processes"
            );
            caps::drop(None, CapSet::Effective, PTRACE)?;
        }
        Ok(Self { nvidia: Nvidia::open(places.nvml.clone()), drm })
    }

    /// Looks at every GPU once, and says when its energy was read. `jobs` are processes that began lately.
    pub fn look(&mut self, jobs: &[u32]) -> (Instant, Vec<Gpu>) {
        let mut gpus = Vec::new();
        let at = self.nvidia.look(&mut gpus);
        if !self.drm.is_empty() {
            // In effect only while files are read, and never in a driver's library. Without it others' files are refused, which is a state.
            let raised = caps::read(None, CapSet::Permitted).is_ok_and(|held| held.contains(&PTRACE))
                && caps::raise(None, CapSet::Effective, PTRACE).is_ok();
            self.drm.look(jobs, &mut gpus);
            if raised {
                let _ = caps::drop(None, CapSet::Effective, PTRACE);
            }
        }
        (at, gpus)
    }

    /// How NVIDIA's library and the kernel's drivers stand, with what was found.
    pub fn states(&self) -> [(&'static str, Result<(), Unavailable>, String); 2] {
        [
            ("nvml", self.nvidia.state(), self.nvidia.detail()),
            ("drm", self.drm.state(), if self.drm.is_empty() { String::new() } else { self.drm.detail() }),
        ]
    }

    /// Until when there is nothing to look at; `None` where there is something.
    fn sleeps_until(&self) -> Option<Instant> {
        self.nvidia.sleeps_until().filter(|_| self.drm.is_empty())
    }
}

/// The sampler's end of the thread.
pub struct Gpus {
    ask: Sender<Vec<u32>>,
    answers: Receiver<Look>,
    /// Since when an answer is awaited.
    asked: Option<Instant>,
    processes: Processes,
    shown: Vec<Shown>,
    states: [(&'static str, Result<(), Unavailable>, String); 2],
    unknown: BTreeMap<GpuId, u64>,
    sleep_until: Option<Instant>,
    /// True once the first look has come.
    opened: bool,
    /// True when the thread is no more.
    ended: bool,
}

impl Gpus {
    /// Starts the thread, which drops what it does not need before it opens anything. The first look comes when the
    /// drivers have opened, which may take them seconds.
    ///
    /// # Errors
    /// When there is no thread.
    pub fn start(places: Places) -> Result<Self, Unavailable> {
        let processes = Processes::new(&places.procfs);
        let (ask, asked) = mpsc::channel::<Vec<u32>>();
        let (answer, answers) = mpsc::channel();
        let thread = std::thread::Builder::new().name("gpu".into()).spawn(move || {
            let mut reader = match Reader::open(&places) {
                Ok(reader) => reader,
                Err(error) => {
                    // With rights that it should not have it does not go on.
                    tracing::error!("GPUs are not read: cannot drop privileges: {error}");
                    return;
                }
            };
            let mut jobs = Vec::new();
            loop {
                let began = Instant::now();
                let (at, gpus) = reader.look(&jobs);
                let look = Look {
                    at,
                    took: began.elapsed(),
                    gpus,
                    sleep_until: reader.sleeps_until(),
                    states: reader.states(),
                };
                if answer.send(look).is_err() {
                    return;
                }
                match asked.recv() {
                    Ok(now) => jobs = now,
                    Err(_) => return,
                }
            }
        });
        thread.map_err(|error| Unavailable::new(Reason::Broken, format!("no thread for GPUs: {error}")))?;
        let opening = || Err(Unavailable::new(Reason::Absent, "is being opened"));
        Ok(Self {
            ask,
            answers,
            asked: Some(Instant::now()),
            processes,
            shown: Vec::new(),
            states: [("nvml", opening(), String::new()), ("drm", opening(), String::new())],
            unknown: BTreeMap::new(),
            sleep_until: None,
            opened: false,
            ended: false,
        })
    }

    /// Waits for the first look, for at most so long. What it says is not a tick's, and is let go.
    pub fn settle(&mut self, most: Duration) {
        self.take(most);
    }

    /// True while an answer is awaited.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.opened && self.asked.is_some()
    }

    /// Asks for a look, unless the last one is still awaited. `jobs` are processes that began lately.
    pub fn ask(&mut self, jobs: Vec<u32>) {
        let sleeps = self.sleep_until.is_some_and(|until| Instant::now() < until);
        if !sleeps && self.asked.is_none() && self.ask.send(jobs).is_ok() {
            self.asked = Some(Instant::now());
        }
    }

    /// Asks for the next look at once, where one takes longer than a tick waits: so every tick has a look, if one that is a tick old.
    pub(crate) fn ask_early(&mut self, late: &Look, jobs: Vec<u32>) {
        if late.took > PATIENCE {
            self.ask(jobs);
        }
    }

    /// Why nothing comes from the thread any more; `None` while it answers.
    fn silent(&self) -> Option<&'static str> {
        if self.ended {
            return Some("the thread of GPUs has ended; the log says why");
        }
        self.asked
            .is_some_and(|since| since.elapsed() > HANGS)
            .then_some("does not answer: a GPU or its driver hangs; see dmesg")
    }

    /// The look that was asked for, if it is there soon.
    pub(crate) fn answer(&mut self) -> Option<Look> {
        // Drivers may take seconds to open, and the first page does not wait for them.
        let look = self.take(if self.opened { PATIENCE } else { Duration::ZERO });
        if let (None, Some(why)) = (&look, self.silent()) {
            // What was said before does not hold.
            for shown in &mut self.shown {
                shown.gpu.state = Err(Unavailable::new(Reason::Broken, why));
                shown.gpu.facts = Facts::default();
                shown.encoding.clear();
                shown.memory.clear();
            }
        }
        look
    }

    fn take(&mut self, most: Duration) -> Option<Look> {
        let since = self.asked?;
        // A driver that is slow is not waited for in every tick.
        let most = if self.opened && since.elapsed() > most { Duration::ZERO } else { most };
        match self.answers.recv_timeout(most) {
            Ok(look) => {
                (self.asked, self.opened) = (None, true);
                self.states.clone_from(&look.states);
                self.sleep_until = look.sleep_until;
                Some(look)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                self.ended = true;
                None
            }
        }
    }

    /// Says who used what, and keeps the look to be shown.
    pub(crate) fn resolve(
        &mut self,
        look: Look,
        directory: Option<&Directory>,
        jobs: Option<&Jobs>,
    ) -> Vec<(GpuId, Worked)> {
        self.processes.refresh();
        let processes = &mut self.processes;
        let mut owner = |pid, at_us| processes.owner(pid, at_us, directory?, jobs);
        let mut all = Vec::new();
        self.shown.clear();
        for gpu in look.gpus {
            let unknown = self.unknown.entry(gpu.id).or_default();
            // Several processes of one container are one share.
            let mut uses: BTreeMap<(Option<Holder>, Option<u32>), EngineTimes> = BTreeMap::new();
            for used in &gpu.uses {
                let who = owner(used.pid, used.at_us);
                *unknown += u64::from(who.is_none());
                let sums = uses.entry((who.map(|who| who.holder), who.and_then(|who| who.job))).or_insert([0; ENGINES]);
                sums.iter_mut().zip(used.times).for_each(|(sum, ns)| *sum = sum.saturating_add(ns));
            }
            let uses = uses.into_iter().map(|((holder, job), times)| Shared { holder, job, times }).collect();
            all.push((gpu.id, Worked { rest: gpu.rest, waits: !gpu.settled, anew: gpu.anew, uses }));
            let encoding = gpu.sessions.iter().map(|session| {
                let who = owner(session.pid, 0);
                Encoding {
                    session: session.clone(),
                    holder: who.map(|who| who.holder),
                    job: who.and_then(|who| who.job),
                }
            });
            let encoding = encoding.collect();
            let mut memory: BTreeMap<Holder, u64> = BTreeMap::new();
            for resident in &gpu.residents {
                if let (Some(who), Some(bytes)) = (owner(resident.pid, 0), resident.bytes) {
                    let sum = memory.entry(who.holder).or_default();
                    *sum = sum.saturating_add(bytes);
                }
            }
            self.shown.push(Shown { encoding, memory, unknown: *unknown, gpu });
        }
        all
    }

    /// The last look.
    #[must_use]
    pub fn shown(&self) -> &[Shown] {
        &self.shown
    }

    /// How the drivers stand, with what was found.
    #[must_use]
    pub fn states(&self) -> Vec<(&'static str, Result<(), Unavailable>, String)> {
        let mut states = self.states.to_vec();
        if let Some(why) = self.silent() {
            // What is not there does not hang.
            let there = |state: &Result<(), Unavailable>| {
                !self.opened || state.as_ref().err().is_none_or(|why| why.reason == Reason::Broken)
            };
            for (_, state, _) in states.iter_mut().filter(|(_, state, _)| there(state)) {
                *state = Err(Unavailable::new(Reason::Broken, why));
            }
        } else if !self.opened {
            return Vec::new();
        }
        if self.processes.elsewhere() {
            for (_, state, _) in states.iter_mut().filter(|(_, state, _)| state.is_ok()) {
                *state = Err(Unavailable::new(
                    Reason::Absent,
                    "GPUs are read, and who uses them is not known: this probe has pids of its own. Run it with the host's (docker: --pid=host; \
                     Kubernetes: hostPID)",
                ));
            }
        }
        states
    }
}
