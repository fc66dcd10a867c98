//! GPUs: energy, engine time and encoder sessions, attributed to workloads.
//!
//! GPUs are read on a separate thread, because a driver may block for any time. The sampler
//! requests a poll at the beginning of a tick, waits a moment for the result, and uses a late
//! result in the next tick. Each poll carries the time at which it was taken.

mod board_energy;
mod calls;
mod device;
mod drm;
pub mod engines;
mod mig;
mod nvml;
mod processes;
mod samples;

pub use board_energy::ASLEEP;
pub use device::{Clocks, GpuReading, GpuTelemetry, Link, Memory, ProcessMemory, ProcessUsage, Session};
pub use drm::{ClientInfo as DrmInfo, parse as parse_drm};

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use caps::{CapSet, Capability, CapsHashSet};
use drm::Drm;
use engines::{ENGINES, EngineTimes};
use nvml::Nvidia;
use processes::{ProcessOwner, ProcessTable};
use serde::{Deserialize, Serialize};
use tracing::info;

use crate::{
    containers::{ChargeTarget, ContainerRegistry},
    host::{
        availability::{Reason, Unavailable},
        gpu_id::GpuId,
        privileges,
    },
    jobs::Jobs,
};
pub(crate) use nvml::THROTTLE_REASONS;

const PTRACE: Capability = Capability::CAP_SYS_PTRACE;
/// How long a tick waits for the thread. A later result is used in the next tick.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// After this time without a result, the driver counts as hanging.
const HANG_TIMEOUT: Duration = Duration::from_secs(5);

/// Usage of one GPU in one tick, for energy attribution.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuUsage {
    /// True when no engine was used, as far as the driver reports it.
    #[serde(default, rename = "rest")]
    pub idle: bool,
    /// True when an active process was not reported yet: attribution of the energy is postponed.
    #[serde(default, rename = "waits", skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
    /// True when the energy counter may have been reset.
    #[serde(default, rename = "anew", skip_serializing_if = "std::ops::Not::not")]
    pub counter_reset: bool,
    /// Usage by workload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uses: Vec<EngineUsage>,
}

/// Engine time of one workload in a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineUsage {
    /// `None` where the process has ended, or its cgroup is unknown.
    #[serde(rename = "holder")]
    pub charge_target: Option<ChargeTarget>,
    /// Number of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<u32>,
    /// Nanoseconds of full use by engine.
    pub times: EngineTimes,
}

/// An encoder session with the workload that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributedSession {
    pub session: Session,
    pub charge_target: Option<ChargeTarget>,
    /// Number of the job.
    pub job: Option<u32>,
}

/// The last reading of a GPU, with workloads.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuStatus {
    pub gpu: GpuReading,
    /// Encoder sessions with their workloads.
    pub sessions: Vec<AttributedSession>,
    /// Memory in bytes by workload.
    pub memory: BTreeMap<ChargeTarget, u64>,
    /// Usage samples of processes that had ended or are unknown, since the start.
    pub unknown: u64,
}

/// The result of one poll of all GPUs.
pub(crate) struct GpuPoll {
    pub(crate) at: Instant,
    /// Duration of the poll.
    duration: Duration,
    pub(crate) gpus: Vec<GpuReading>,
    /// No GPU can appear before this time.
    sleep_until: Option<Instant>,
    states: [(&'static str, Result<(), Unavailable>, String); 2],
}

/// Paths of the sources.
#[derive(Clone, Debug, Default)]
pub struct GpuPaths {
    /// NVIDIA's library; by default the loader's search path is used.
    pub nvml: Option<PathBuf>,
    /// `/sys`.
    pub sysfs: PathBuf,
    /// `/proc`.
    pub procfs: PathBuf,
}

/// Reads all GPUs, on its own thread.
pub struct GpuReader {
    nvidia: Nvidia,
    drm: Drm,
}

impl GpuReader {
    /// Drops the capabilities that this thread does not need permanently, and opens the drivers:
    /// their libraries never run with more.
    ///
    /// # Errors
    /// When capabilities cannot be dropped; then nothing is opened.
    pub fn open(paths: &GpuPaths) -> anyhow::Result<Self> {
        let drm = Drm::open(&paths.sysfs, &paths.procfs);
        // Needed to read fdinfo files of other users' processes.
        let needs: CapsHashSet = if drm.is_empty() { CapsHashSet::new() } else { [PTRACE].into() };
        privileges::keep_only(&needs)?;
        if caps::read(None, CapSet::Permitted)?.contains(&PTRACE) {
            info!("keeping {PTRACE} on the GPU thread: needed to read the engine time of other users' processes");
            caps::drop(None, CapSet::Effective, PTRACE)?;
        }
        Ok(Self { nvidia: Nvidia::open(paths.nvml.clone()), drm })
    }

    /// Reads every GPU once, and returns the time of the energy readings. `jobs` are recently
    /// started processes.
    pub fn poll(&mut self, jobs: &[u32]) -> (Instant, Vec<GpuReading>) {
        let mut gpus = Vec::new();
        // Loading a library may take seconds. After it, the energy of all boards is read, so that
        // the readings belong to one moment; the usage comes later.
        self.nvidia.reload_when_due();
        let at = Instant::now();
        self.drm.read_energy();
        self.nvidia.poll(at, &mut gpus);
        if !self.drm.is_empty() {
            // Effective only while files are read, never in a driver's library. Without it, the
            // files of other users' processes are denied, which is a state of the source.
            let raised = caps::read(None, CapSet::Permitted).is_ok_and(|held| held.contains(&PTRACE))
                && caps::raise(None, CapSet::Effective, PTRACE).is_ok();
            self.drm.poll(jobs, &mut gpus);
            if raised {
                let _ = caps::drop(None, CapSet::Effective, PTRACE);
            }
        }
        (at, gpus)
    }

    /// State and details of NVIDIA's library and of the kernel's drivers.
    pub fn states(&self) -> [(&'static str, Result<(), Unavailable>, String); 2] {
        [
            ("nvml", self.nvidia.state(), self.nvidia.detail()),
            ("drm", self.drm.state(), if self.drm.is_empty() { String::new() } else { self.drm.detail() }),
        ]
    }

    /// Time before which no GPU can appear; `None` if there is one.
    fn sleep_until(&self) -> Option<Instant> {
        self.nvidia.sleep_until().filter(|_| self.drm.is_empty())
    }
}

/// The workload that two processes are of; without a job where theirs differ.
fn common(one: Option<ProcessOwner>, other: Option<ProcessOwner>) -> Option<ProcessOwner> {
    let (one, other) = (one?, other?);
    let job = one.job.filter(|_| one.job == other.job);
    (one.charge_target == other.charge_target).then_some(ProcessOwner { job, ..one })
}

/// The sampler's handle of the GPU thread.
pub struct GpuCollector {
    requests: Sender<Vec<u32>>,
    results: Receiver<GpuPoll>,
    /// Time of the pending request.
    requested: Option<Instant>,
    processes: ProcessTable,
    statuses: Vec<GpuStatus>,
    states: [(&'static str, Result<(), Unavailable>, String); 2],
    unknown: BTreeMap<GpuId, u64>,
    sleep_until: Option<Instant>,
    /// True after the first poll.
    opened: bool,
    /// True after the thread has ended.
    ended: bool,
}

impl GpuCollector {
    /// Starts the thread, which drops unneeded capabilities before it opens anything. The first
    /// poll ends when the drivers are open, which may take seconds.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(paths: GpuPaths) -> Result<Self, Unavailable> {
        let processes = ProcessTable::new(&paths.procfs);
        let (requests, requested) = mpsc::channel::<Vec<u32>>();
        let (sender, results) = mpsc::channel();
        let thread = std::thread::Builder::new().name("gpu".into()).spawn(move || {
            let mut reader = match GpuReader::open(&paths) {
                Ok(reader) => reader,
                Err(error) => {
                    // The thread must not run with more capabilities than it needs.
                    tracing::error!("GPUs are not read: cannot drop privileges: {error}");
                    return;
                }
            };
            let mut jobs = Vec::new();
            loop {
                let start = Instant::now();
                let (at, gpus) = reader.poll(&jobs);
                let poll = GpuPoll {
                    at,
                    duration: start.elapsed(),
                    gpus,
                    sleep_until: reader.sleep_until(),
                    states: reader.states(),
                };
                if sender.send(poll).is_err() {
                    return;
                }
                match requested.recv() {
                    Ok(now) => jobs = now,
                    Err(_) => return,
                }
            }
        });
        thread.map_err(|error| Unavailable::new(Reason::Broken, format!("cannot start the GPU thread: {error}")))?;
        let opening = || Err(Unavailable::new(Reason::Absent, "the driver is being opened"));
        Ok(Self {
            requests,
            results,
            requested: Some(Instant::now()),
            processes,
            statuses: Vec::new(),
            states: [("nvml", opening(), String::new()), ("drm", opening(), String::new())],
            unknown: BTreeMap::new(),
            sleep_until: None,
            opened: false,
            ended: false,
        })
    }

    /// Waits for the first poll, for at most `timeout`. Its result belongs to no tick and is
    /// discarded.
    pub fn wait_until_open(&mut self, timeout: Duration) {
        self.receive(timeout);
    }

    /// Whether a poll is pending.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.opened && self.requested.is_some()
    }

    /// Requests a poll, unless one is pending. `jobs` are recently started processes.
    pub fn request_poll(&mut self, jobs: Vec<u32>) {
        let sleeps = self.sleep_until.is_some_and(|until| Instant::now() < until);
        if !sleeps && self.requested.is_none() && self.requests.send(jobs).is_ok() {
            self.requested = Some(Instant::now());
        }
    }

    /// Requests the next poll at once if the last one took longer than a tick waits. Then every
    /// tick has a result, which may be one tick old.
    pub(crate) fn request_early_poll(&mut self, late: &GpuPoll, jobs: Vec<u32>) {
        if late.duration > POLL_TIMEOUT {
            self.request_poll(jobs);
        }
    }

    /// Why the thread returns no results; `None` while it does.
    fn failure(&self) -> Option<&'static str> {
        if self.ended {
            return Some("the GPU thread has ended; see the log");
        }
        self.requested
            .is_some_and(|since| since.elapsed() > HANG_TIMEOUT)
            .then_some("the driver does not respond: a GPU or its driver hangs; see dmesg")
    }

    /// The result of the requested poll, if it arrives soon.
    pub(crate) fn take_poll(&mut self) -> Option<GpuPoll> {
        // Drivers may take seconds to open, and the first tick does not wait for them.
        let poll = self.receive(if self.opened { POLL_TIMEOUT } else { Duration::ZERO });
        if let (None, Some(why)) = (&poll, self.failure()) {
            // The previous values are no longer valid.
            for status in &mut self.statuses {
                status.gpu.state = Err(Unavailable::new(Reason::Broken, why));
                status.gpu.telemetry = GpuTelemetry::default();
                status.sessions.clear();
                status.memory.clear();
            }
        }
        poll
    }

    fn receive(&mut self, timeout: Duration) -> Option<GpuPoll> {
        let since = self.requested?;
        // Do not wait for a slow driver in every tick.
        let timeout = if self.opened && since.elapsed() > timeout { Duration::ZERO } else { timeout };
        match self.results.recv_timeout(timeout) {
            Ok(poll) => {
                (self.requested, self.opened) = (None, true);
                self.states.clone_from(&poll.states);
                self.sleep_until = poll.sleep_until;
                Some(poll)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                self.ended = true;
                None
            }
        }
    }

    /// Attributes usage, sessions and memory to workloads, and stores the poll as status.
    pub(crate) fn attribute(
        &mut self,
        poll: GpuPoll,
        registry: Option<&ContainerRegistry>,
        jobs: Option<&Jobs>,
    ) -> Vec<(GpuId, GpuUsage)> {
        self.processes.refresh();
        let processes = &mut self.processes;
        let mut owner = |pid, at_us| processes.owner(pid, at_us, registry?, jobs);
        let mut all = Vec::new();
        self.statuses.clear();
        for gpu in poll.gpus {
            let unknown = self.unknown.entry(gpu.id).or_default();
            // The usage of several processes of a container is summed up.
            let mut uses: BTreeMap<(Option<ChargeTarget>, Option<u32>), EngineTimes> = BTreeMap::new();
            for used in &gpu.uses {
                // What processes of several workloads used together belongs to none of them.
                let mut workload = owner(used.pid, used.at_us);
                for pid in &used.shared_with {
                    workload = common(workload, owner(*pid, used.at_us));
                }
                *unknown += u64::from(workload.is_none());
                let key = (workload.map(|owner| owner.charge_target), workload.and_then(|owner| owner.job));
                let sums = uses.entry(key).or_insert([0; ENGINES]);
                sums.iter_mut().zip(used.times).for_each(|(sum, ns)| *sum = sum.saturating_add(ns));
            }
            let uses = uses
                .into_iter()
                .map(|((charge_target, job), times)| EngineUsage { charge_target, job, times })
                .collect();
            all.push((
                gpu.id,
                GpuUsage { idle: gpu.idle, pending: !gpu.complete, counter_reset: gpu.counter_reset, uses },
            ));
            let sessions = gpu.sessions.iter().map(|session| {
                let workload = owner(session.pid, 0);
                AttributedSession {
                    session: session.clone(),
                    charge_target: workload.map(|owner| owner.charge_target),
                    job: workload.and_then(|owner| owner.job),
                }
            });
            let sessions = sessions.collect();
            let mut memory: BTreeMap<ChargeTarget, u64> = BTreeMap::new();
            for process in &gpu.process_memory {
                if let (Some(workload), Some(bytes)) = (owner(process.pid, 0), process.bytes) {
                    let sum = memory.entry(workload.charge_target).or_default();
                    *sum = sum.saturating_add(bytes);
                }
            }
            self.statuses.push(GpuStatus { sessions, memory, unknown: *unknown, gpu });
        }
        all
    }

    /// The last poll, with workloads.
    #[must_use]
    pub fn statuses(&self) -> &[GpuStatus] {
        &self.statuses
    }

    /// State and details of each driver.
    #[must_use]
    pub fn states(&self) -> Vec<(&'static str, Result<(), Unavailable>, String)> {
        let mut states = self.states.to_vec();
        if let Some(why) = self.failure() {
            // An absent driver does not hang.
            let present = |state: &Result<(), Unavailable>| {
                !self.opened || state.as_ref().err().is_none_or(|why| why.reason == Reason::Broken)
            };
            for (_, state, _) in states.iter_mut().filter(|(_, state, _)| present(state)) {
                *state = Err(Unavailable::new(Reason::Broken, why));
            }
        } else if !self.opened {
            return Vec::new();
        }
        if self.processes.in_foreign_pid_namespace() {
            for (_, state, _) in states.iter_mut().filter(|(_, state, _)| state.is_ok()) {
                *state = Err(Unavailable::new(
                    Reason::Absent,
                    "GPU usage cannot be attributed: the probe runs in its own pid namespace. Run it in the host's (docker: --pid=host; \
                     Kubernetes: hostPID)",
                ));
            }
        }
        states
    }
}
