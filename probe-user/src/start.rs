//! Opening everything the probe reads, while it still may. What cannot be had is a state, not an end.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tracing::{info, warn};

use crate::{
    accountant::Accountant,
    baselines::StateFile,
    config::Config,
    containers::{Directory, Limits, docker::Names, files::Files, stats::Stats, tree::Trees},
    cpu,
    distribution::Distribution,
    energy::{self, Choice, Chosen, Source, processor::Processor},
    feed::{Feed, Replay},
    gpu::Gpus,
    instruments::{self, Instruments},
    jobs::Jobs,
    ledger::IdlePolicy,
    recording::Reader,
    sampler::Parts,
    state::{Reason, SourceState, Unavailable},
    tick::Setup,
    topology::Topology,
};

/// Where systemd would keep the state of a service of this name.
const STATE_DIR: &str = "/var/lib/wattcast";

/// Opens every source that the configuration allows. Must run inside the runtime that serves, which asks Docker.
///
/// # Errors
/// When a recording that was asked for cannot be read.
pub fn open(config: &Config) -> Result<Opened> {
    if config.energy.source == Choice::Replay {
        return replay(config);
    }
    let (instruments, mut sources) = instruments(config);
    let setup = instruments.setup();
    let distribution = config.energy.distribution.and_then(|hertz| match packages_again(instruments.source()) {
        Ok(source) => Some((source, hertz)),
        Err(why) => {
            sources.push(SourceState { source: "power", state: Err(why), detail: String::new(), wanted: true });
            None
        }
    });
    let state = state_file(config, &setup);
    let mut accountant = accountant(config, setup);
    if let Some(state) = &state {
        match state.load() {
            Ok(baselines) if !baselines.is_empty() => {
                info!("idle power: remembering what was learnt before");
                accountant.remember(&baselines);
            }
            Ok(_) => {}
            Err(error) => warn!("{error}"),
        }
    }
    let feed = Feed::Live(Box::new(instruments));
    Ok(Opened {
        parts: Parts { tick: config.tick, feed, accountant, distribution: None, state, sources },
        distribution,
    })
}

/// What was opened, and what is to be started when the privileges are gone: a thread keeps what it was born with.
pub struct Opened {
    parts: Parts,
    distribution: Option<(Box<dyn Source>, u32)>,
}

impl Opened {
    /// What reads the kernel side, to try what it may do without privileges: CPU time, and jobs.
    pub fn kernel_side(&mut self) -> (Option<&mut dyn cpu::Reader>, Option<&mut Jobs>) {
        match &mut self.parts.feed {
            Feed::Live(instruments) => instruments.kernel_side(),
            Feed::Replay(_) => (None, None),
        }
    }

    /// Starts what runs beside the sampler. Only after the privileges are gone.
    #[must_use]
    pub fn start(self) -> Parts {
        let Self { mut parts, distribution } = self;
        if let Some((source, hertz)) = distribution {
            let started = Distribution::start(source, hertz);
            let state = started.as_ref().map(|_| ()).map_err(|error| {
                Unavailable::new(Reason::Broken, format!("no thread for the distribution of power: {error}"))
            });
            parts.sources.push(SourceState { source: "power", state, detail: format!("{hertz} Hz"), wanted: true });
            parts.distribution = started.ok();
        }
        parts
    }
}

fn accountant(config: &Config, setup: Setup) -> Accountant {
    Accountant::new(setup, config.rules(), config.limits.window_bytes)
}

fn replay(config: &Config) -> Result<Opened> {
    let path = config.recording()?.context("no recording is wanted")?;
    let reader = Reader::open(path)?;
    let (origin, probe) = reader.recorded();
    let detail = format!(
        "{}, recorded from {} by probe {probe}",
        path.display(),
        origin.map_or("nothing", |origin| origin.as_str())
    );
    let sources = vec![SourceState { source: "replay", state: Ok(()), detail, wanted: true }];
    let accountant = accountant(config, reader.setup().clone());
    let feed = Feed::Replay(Box::new(Replay::new(reader)));
    let parts = Parts { tick: config.tick, feed, accountant, distribution: None, state: None, sources };
    Ok(Opened { parts, distribution: None })
}

/// Opens what touches the machine, and says how each source stands.
pub fn instruments(config: &Config) -> (Instruments, Vec<SourceState>) {
    let topology = Topology::read(&config.paths.sysfs);
    let Chosen { source, tried: mut sources } = if config.collectors.energy() {
        energy::choose(config.energy.source, config.energy.line(), &config.paths.places(), &topology)
    } else {
        Chosen { source: None, tried: Vec::new() }
    };
    if !topology.is_known() {
        sources.push(SourceState {
            source: "topology",
            state: Err(Unavailable::new(
                Reason::Absent,
                format!(
                    "{}: no CPU says which package it is on; the machine counts as one. Name sysfs with --path.sysfs",
                    config.paths.sysfs.join("devices/system/cpu").display()
                ),
            )),
            detail: String::new(),
            wanted: false,
        });
    }

    let cpu = config.collectors.cpu().then(|| cpu::choose(config.cpu.tier, &config.paths.cpu_places(), &topology));
    let directory = cpu.is_some().then(|| directory(config, &mut sources)).flatten();
    let cpu = match cpu {
        Some(Ok(chosen)) => {
            let layout = directory.as_ref().map_or("no cgroups", Directory::layout);
            let (tier, how, reason) = (chosen.reader.tier(), chosen.reader.detail(), chosen.reason());
            let not_better = if reason.is_empty() { String::new() } else { format!(". Not better, because: {reason}") };
            let detail = format!("tier {tier}: {how}, cgroup {layout}{not_better}");
            sources.push(SourceState { source: "cpu", state: Ok(()), detail, wanted: true });
            Some(chosen)
        }
        Some(Err(why)) => {
            sources.push(SourceState { source: "cpu", state: Err(why), detail: String::new(), wanted: true });
            None
        }
        None => None,
    };
    let jobs = directory.is_some().then(|| jobs(config, &mut sources)).flatten();
    let stats = (directory.is_some() && config.collectors.stats())
        .then(|| Stats::new(&config.paths.cgroupfs, &config.paths.procfs));
    let gpus = config.collectors.gpu().then(|| gpus(config, &mut sources)).flatten();
    let opened = instruments::Opened { source, cpu, directory, jobs, stats, gpus };
    (Instruments::new(opened, topology, config.paths.sysfs.clone()), sources)
}

fn directory(config: &Config, sources: &mut Vec<SourceState>) -> Option<Directory> {
    let trees = match Trees::find(&config.paths.cgroupfs) {
        Ok(trees) => trees,
        Err(error) => {
            sources.push(SourceState {
                source: "cgroups",
                state: Err(Unavailable::new(
                    Reason::of(&error),
                    format!("{error}. Everything counts as system; name the mount with --path.cgroupfs"),
                )),
                detail: String::new(),
                wanted: true,
            });
            return None;
        }
    };
    let files = Files::new(&config.paths.rootfs);
    let names = config.collectors.docker().then(|| {
        let names = Names::start(&tokio::runtime::Handle::current(), &config.paths.docker_socket, files.clone());
        sources.push(SourceState {
            source: "docker",
            state: names.state(),
            detail: format!("names from {}", config.paths.docker_socket.display()),
            wanted: config.collectors.wants_docker(),
        });
        names
    });
    let limits = Limits {
        containers: config.limits.containers,
        retain: config.limits.retain,
        // A recording may be accounted under any policy.
        labels: config.collectors.container_labels(),
        reservations: config.energy.idle_policy == IdlePolicy::Reserved || config.job().is_some(),
    };
    Some(Directory::new(trees, names, files, limits))
}

/// Who encodes. Without the kernel side jobs are found by looking at `/proc`, and what is shorter than that is not seen.
fn jobs(config: &Config, sources: &mut Vec<SourceState>) -> Option<Jobs> {
    if !config.collectors.ffmpeg() {
        return None;
    }
    let jobs = Jobs::new(config.ffmpeg.names(), &config.paths.procfs, config.limits.retain);
    sources.push(SourceState {
        source: "jobs",
        state: jobs.state(),
        detail: format!("eBPF at exec and exit of {}", config.ffmpeg.names().0.join(", ")),
        wanted: false,
    });
    Some(jobs)
}

/// GPUs are opened on a thread of their own, and say how they stand when they have.
fn gpus(config: &Config, sources: &mut Vec<SourceState>) -> Option<Gpus> {
    match Gpus::start(config.gpu_places()) {
        Ok(gpus) => {
            if config.collectors.wants_gpu() {
                let state = Err(Unavailable::new(Reason::Absent, "is being opened"));
                sources.push(SourceState { source: "nvml", state, detail: String::new(), wanted: true });
            }
            Some(gpus)
        }
        Err(why) => {
            sources.push(SourceState { source: "nvml", state: Err(why), detail: String::new(), wanted: true });
            None
        }
    }
}

/// A second handle to the packages, for the thread of sub-second power.
fn packages_again(source: Option<&dyn Source>) -> Result<Box<dyn Source>, Unavailable> {
    let nothing = |what: &str| Unavailable::new(Reason::Absent, format!("{what}: no distribution of power"));
    let source = source.ok_or_else(|| nothing("nothing measures energy"))?;
    source
        .packages()
        .ok_or_else(|| nothing(&format!("{} has nothing to show between two ticks", source.origin().as_str())))
}

/// The state file, where there is a place for it. A tree of files is no machine.
fn state_file(config: &Config, setup: &Setup) -> Option<StateFile> {
    // SAFETY: geteuid takes nothing, touches nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let dir: PathBuf = match &config.energy.state {
        Some(dir) => dir.clone(),
        None if root && config.paths.sysfs == Path::new("/sys") => STATE_DIR.into(),
        None => return None,
    };
    // A model learns nothing, but a GPU may come: then the directory is made when there is something to keep.
    let learns = !setup.modelled() && setup.origin.is_some();
    if let (true, Err(error)) = (learns, std::fs::create_dir_all(&dir)) {
        warn!(
            "{}: {error}. Idle power is learnt anew at each start; name another directory with --state.dir",
            dir.display()
        );
        return None;
    }
    Some(StateFile::new(&dir, &config.paths.sysfs, &Processor::read(&config.paths.procfs), setup))
}
