//! Opens every source at the start, with the privileges of the start. A source that cannot be
//! opened has a state with the reason; it does not stop the probe.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tracing::{info, warn};

use crate::{
    attribution::{Accountant, baseline_file::BaselineFile},
    cgroup::tree::Trees,
    config::Config,
    containers::{
        ContainerRegistry, RegistryLimits, name_resolver::NameResolver, runtime_files::RuntimeFiles,
        stats::StatsCollector,
    },
    cpu,
    energy::{
        self, SelectedSource, Source, SourceChoice, SourceSearch, power_histogram::PowerHistogram,
        processor::Processor, zone::Origin,
    },
    gpu::GpuCollector,
    host::{
        availability::{Reason, SourceState, Unavailable},
        topology::Topology,
    },
    jobs::Jobs,
    ledger::IdlePolicy,
    reference::{self, PreparedMeter, ReferenceMeters},
    sampler::SamplerInputs,
    tick::{Collectors, Replay, Setup, TickSource, collect, recording::Reader},
};

/// The state directory that systemd would use for this service.
const STATE_DIR: &str = "/var/lib/wattcast";

/// Opens every source that the configuration enables. Must run inside the runtime of the server,
/// because container names are requested on it.
///
/// # Errors
/// When the configured recording cannot be read.
pub fn open(config: &Config) -> Result<PreparedSampler> {
    if config.energy.source == SourceChoice::Replay {
        return replay(config);
    }
    let (collectors, mut sources) = collectors(config);
    let setup = collectors.setup();
    let histogram = config.energy.distribution.and_then(|hertz| match duplicate_packages(collectors.source()) {
        Ok(source) => Some((source, hertz)),
        Err(why) => {
            sources.push(SourceState::new("power", Err(why), true));
            None
        }
    });
    let board = collectors.source().is_some_and(|source| source.origin() == Origin::Hwmon);
    let settings = config.reference.settings(config.collectors.energy());
    let reference = reference::open(&settings, &config.paths.source_paths(), board);
    let baselines = baseline_file(config, &setup);
    let mut accountant = accountant(config, setup);
    if let Some(file) = &baselines {
        match file.load() {
            Ok(samples) if !samples.is_empty() => {
                info!("idle power: restored from {}", file.path().display());
                accountant.restore_baselines(&samples);
            }
            Ok(_) => {}
            Err(error) => warn!("{error}"),
        }
    }
    let source = TickSource::Live(Box::new(collectors));
    let inputs = SamplerInputs {
        interval: config.tick,
        source,
        accountant,
        histogram: None,
        histogram_hertz: config.energy.distribution,
        reference: ReferenceMeters::default(),
        baselines,
        sources,
    };
    Ok(PreparedSampler { inputs, histogram, reference })
}

/// The sampler's inputs, and the sources of the threads of sub-second power and of meters. Those
/// threads start after the privileges are dropped, because a thread keeps those that it was started
/// with.
pub struct PreparedSampler {
    inputs: SamplerInputs,
    histogram: Option<(Box<dyn Source>, u32)>,
    reference: Vec<PreparedMeter>,
}

impl PreparedSampler {
    /// A trial reading of the eBPF maps; `None` where no map is in use.
    pub fn trial_reading(&mut self) -> Option<impl FnOnce() -> bool + Send> {
        match &mut self.inputs.source {
            TickSource::Live(collectors) => collectors.trial_reading(),
            TickSource::Replay(_) => None,
        }
    }

    /// Starts these threads, and reports a state directory that cannot be written.
    /// Call it after the privileges are dropped.
    #[must_use]
    pub fn start(self) -> SamplerInputs {
        let Self { mut inputs, histogram, reference } = self;
        inputs.reference = ReferenceMeters::start(reference, &mut inputs.sources);
        if let Some(Err(error)) = inputs.baselines.as_ref().map(BaselineFile::check_writable) {
            warn!("{error}");
        }
        if let Some((source, hertz)) = histogram {
            let started = PowerHistogram::start(source, hertz);
            let state = started.as_ref().map(|_| format!("{hertz} Hz")).map_err(|error| {
                Unavailable::new(Reason::Broken, format!("cannot start the thread of sub-second power: {error}"))
            });
            inputs.sources.push(SourceState::new("power", state, true));
            inputs.histogram = started.ok();
        }
        inputs
    }
}

fn accountant(config: &Config, setup: Setup) -> Accountant {
    let mut accountant = Accountant::new(setup, config.rules(), config.limits.window_bytes);
    accountant.set_sample_age(config.energy.sample_age * 3600);
    accountant
}

fn replay(config: &Config) -> Result<PreparedSampler> {
    let path = config.recording()?.context("no recording is configured")?;
    let reader = Reader::open(path)?;
    let (origin, probe) = reader.recorded();
    let detail = format!(
        "{}, recorded from {} by probe {probe}",
        path.display(),
        origin.map_or("nothing", |origin| origin.as_str())
    );
    let sources = vec![SourceState::new("replay", Ok(detail), true)];
    let accountant = accountant(config, reader.setup().clone());
    let source = TickSource::Replay(Box::new(Replay::new(reader)));
    let inputs = SamplerInputs {
        interval: config.tick,
        source,
        accountant,
        histogram: None,
        histogram_hertz: None,
        reference: ReferenceMeters::default(),
        baselines: None,
        sources,
    };
    Ok(PreparedSampler { inputs, histogram: None, reference: Vec::new() })
}

/// Opens the sources of the machine, and returns the state of each.
pub fn collectors(config: &Config) -> (Collectors, Vec<SourceState>) {
    let topology = Topology::read(&config.paths.sysfs);
    let SelectedSource { source, tried: mut sources } = if config.collectors.energy() {
        energy::choose(config.energy.source, config.energy.cpu_power(), &config.paths.source_paths(), &topology)
    } else {
        SelectedSource { source: None, tried: Vec::new() }
    };
    let search = config.collectors.energy().then(|| {
        let (power, paths) = (config.energy.cpu_power(), config.paths.source_paths());
        SourceSearch::new(config.energy.source, power, paths, source.as_deref())
    });
    let search = search.flatten();
    if !topology.is_known() {
        let why = format!(
            "{}: no CPU has a package id; the machine counts as one package. Name sysfs with --path.sysfs",
            config.paths.sysfs.join("devices/system/cpu").display()
        );
        sources.push(SourceState::new("topology", Err(Unavailable::new(Reason::Absent, why)), false));
    }

    let cpu = config.collectors.cpu().then(|| cpu::choose(config.cpu.tier, &config.paths.cpu_paths(), &topology));
    let registry = cpu.is_some().then(|| registry(config, &mut sources)).flatten();
    let cpu = match cpu {
        Some(Ok(selected)) => {
            let layout = registry.as_ref().map_or("no cgroups", ContainerRegistry::layout);
            let (tier, how, reason) = (selected.reader.tier(), selected.reader.detail(), selected.reason());
            let not_better = if reason.is_empty() { String::new() } else { format!(". Not better, because: {reason}") };
            let detail = format!("tier {tier}: {how}, cgroup {layout}{not_better}");
            sources.push(SourceState::new("cpu", Ok(detail), true));
            Some(selected)
        }
        Some(Err(why)) => {
            sources.push(SourceState::new("cpu", Err(why), true));
            None
        }
        None => None,
    };
    let jobs = registry.is_some().then(|| jobs(config, &mut sources)).flatten();
    let stats = (registry.is_some() && config.collectors.stats())
        .then(|| StatsCollector::new(&config.paths.cgroupfs, &config.paths.procfs));
    let gpus = config.collectors.gpu().then(|| gpus(config, &mut sources)).flatten();
    let opened = collect::OpenedSources { source, search, cpu, registry, jobs, stats, gpus };
    (Collectors::new(opened, topology, config.paths.sysfs.clone()), sources)
}

fn registry(config: &Config, sources: &mut Vec<SourceState>) -> Option<ContainerRegistry> {
    let trees = match Trees::find(&config.paths.cgroupfs) {
        Ok(trees) => trees,
        Err(error) => {
            let what = format!("{error}. Everything counts as system; name the mount with --path.cgroupfs");
            sources.push(SourceState::new("cgroups", Err(Unavailable::new(Reason::of(&error), what)), true));
            return None;
        }
    };
    let files = RuntimeFiles::new(&config.paths.rootfs);
    let names = config.collectors.docker().then(|| {
        let names = NameResolver::start(&tokio::runtime::Handle::current(), &config.paths.docker_socket, files.clone());
        sources.push(SourceState {
            source: "docker",
            state: names.state(),
            detail: format!("names from {}", config.paths.docker_socket.display()),
            wanted: config.collectors.wants_docker(),
        });
        names
    });
    let limits = RegistryLimits {
        containers: config.limits.containers,
        retain: config.limits.retain,
        labels: config.collectors.container_labels(),
        // A recording may be replayed under any policy.
        reservations: config.energy.idle_policy == IdlePolicy::Reserved || config.subcommand().is_some(),
    };
    Some(ContainerRegistry::new(trees, names, files, limits))
}

/// Encoder processes. Without eBPF jobs are discovered by scans of `/proc`, which miss jobs shorter
/// than the scan interval.
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

/// GPUs. Their drivers open on a separate thread, which then updates their state.
fn gpus(config: &Config, sources: &mut Vec<SourceState>) -> Option<GpuCollector> {
    match GpuCollector::start(config.gpu_paths()) {
        Ok(gpus) => {
            if config.collectors.wants_gpu() {
                let opening = Unavailable::new(Reason::Absent, "is being opened");
                sources.push(SourceState::new("nvml", Err(opening), true));
            }
            Some(gpus)
        }
        Err(why) => {
            sources.push(SourceState::new("nvml", Err(why), true));
            None
        }
    }
}

/// A second handle to the packages, for the thread of sub-second power.
fn duplicate_packages(source: Option<&dyn Source>) -> Result<Box<dyn Source>, Unavailable> {
    let absent = |what: &str| Unavailable::new(Reason::Absent, format!("{what}: no distribution of power"));
    let source = source.ok_or_else(|| absent("no source of energy"))?;
    source.packages().ok_or_else(|| absent(&format!("{} has no readings between two ticks", source.origin().as_str())))
}

/// The file of learnt idle power; `None` without a state directory, and for a tree of files instead
/// of a machine.
fn baseline_file(config: &Config, setup: &Setup) -> Option<BaselineFile> {
    let root = rustix::process::geteuid().is_root();
    let dir: PathBuf = match &config.energy.state {
        Some(dir) => dir.clone(),
        None if root && config.paths.sysfs == Path::new("/sys") => STATE_DIR.into(),
        None => return None,
    };
    // A model learns nothing, but a GPU may appear later. Then the directory is created with the
    // first content.
    let learns = !setup.modelled() && setup.origin.is_some();
    if let (true, Err(error)) = (learns, std::fs::create_dir_all(&dir)) {
        warn!(
            "{}: {error}. Idle power is learnt again at each start; name another directory with --state.dir",
            dir.display()
        );
        return None;
    }
    let file = BaselineFile::new(&dir, &config.paths.sysfs, &Processor::read(&config.paths.procfs), setup);
    // While there is nothing to learn, only a directory that was named must be writable.
    let needed = learns || config.energy.state.is_some();
    (needed || file.check_writable().is_ok()).then_some(file)
}
