//! Opens every source at the start, with the privileges of the start. A source that cannot be
//! opened has a state with the reason; it does not stop the probe.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tracing::{info, warn};

use crate::{
    attribution::{
        Accountant,
        baseline_file::{BaselineFile, ZoneSamples},
        calibration_file::{Calibration, CalibrationFile, Machine},
        totals_file::{self, SavedState, TotalsFile},
    },
    cgroup::tree::Trees,
    config::Config,
    containers::{
        ContainerRegistry, RegistryLimits, name_resolver::NameResolver, runtime_files::RuntimeFiles,
        stats::StatsCollector,
    },
    cpu::{self, TierChoice, UsageIterator},
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
    ledger::{IdlePolicy, Rules, idle::Seed},
    past::PastInputs,
    reference::{self, PreparedMeter, ReferenceMeters},
    sampler::{ContinuedTotals, SamplerInputs},
    tick::{
        Collectors, Replay, Setup, TickSource, collect,
        recording::{HISTORY_DIR, HistoryRecorder, Reader, segments},
    },
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
    let (mut collectors, mut sources) = collectors(config);
    collectors.measure_programs(&config.paths.procfs);
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
    let calibration = usable_calibration(config, &setup);
    let rules = rules(config, calibration.as_ref());
    let mut accountant = accountant(config, setup.clone(), rules);
    let mut learnt = ZoneSamples::new();
    if let Some(file) = &baselines {
        match file.load() {
            Ok(samples) if !samples.is_empty() => {
                info!("idle power: restored from {}", file.path().display());
                accountant.restore_baselines(&samples);
                learnt = samples;
            }
            Ok(_) => {}
            Err(error) => warn!("{error}"),
        }
    }
    let seeds = calibration.as_ref().map(|calibration| calibration.seeds(config.energy.calibration_age));
    let seeds = seeds.unwrap_or_default();
    // After the samples, which replace what is known of a zone.
    accountant.seed_baselines(seeds.clone());
    let history = PreparedHistory::new(config, setup, rules, learnt, seeds);
    let source = TickSource::Live(Box::new(collectors));
    let inputs = SamplerInputs {
        interval: config.tick,
        source,
        accountant,
        histogram: None,
        histogram_hertz: config.energy.distribution,
        reference: ReferenceMeters::default(),
        baselines,
        calibrated_at: calibration.map(|calibration| calibration.unix_seconds),
        history: None,
        totals: None,
        continues: None,
        sources,
    };
    Ok(PreparedSampler { inputs, histogram, reference, history })
}

/// The sampler's inputs, and the sources of the threads of sub-second power and of meters. Those
/// threads start after the privileges are dropped, because a thread keeps those that it was started
/// with.
pub struct PreparedSampler {
    inputs: SamplerInputs,
    histogram: Option<(Box<dyn Source>, u32)>,
    reference: Vec<PreparedMeter>,
    history: Option<PreparedHistory>,
}

/// The history on disk, before its thread was started.
struct PreparedHistory {
    directory: PathBuf,
    setup: Setup,
    keep: Duration,
    /// Taken by the first that asks for them.
    past: Option<PastInputs>,
}

impl PreparedHistory {
    /// The history in the state directory; `None` where none is kept, and unless the directory was
    /// named, as a service does: several probes that are started by hand would mix their ticks.
    fn new(
        config: &Config,
        setup: Setup,
        rules: Rules,
        baselines: ZoneSamples,
        seeds: BTreeMap<String, Seed>,
    ) -> Option<Self> {
        let keep = config.history.keep;
        let directory = config.energy.state.as_ref().filter(|_| !keep.is_zero())?.join(HISTORY_DIR);
        let past = PastInputs {
            segments: segments(&directory),
            rules,
            is_measured: setup.machine_origin().is_none_or(Origin::is_measured),
            baselines,
            seeds,
            sample_age: config.energy.sample_age * 3600,
            // As much again as the ring may have would be too much for what is rarely looked at.
            bytes: config.limits.window_bytes / 2,
        };
        Some(Self { directory, setup, keep, past: Some(past) })
    }
}

impl PreparedSampler {
    /// A trial reading of the eBPF maps; `None` where no map is in use.
    pub fn trial_reading(&mut self) -> Option<impl FnOnce() -> bool + Send> {
        match &mut self.inputs.source {
            TickSource::Live(collectors) => collectors.trial_reading(),
            TickSource::Replay(_) => None,
        }
    }

    /// What the ticks before the start are read from; `None` without a history.
    pub fn take_past(&mut self) -> Option<PastInputs> {
        self.history.as_mut()?.past.take()
    }

    /// Continues the totals of the probe that ended last on this boot, and saves those of this one
    /// at its end. For the service only: a command that runs meanwhile must not take its totals.
    /// Call it after the privileges are dropped, because the file is written without them too.
    pub fn continue_totals(&mut self, config: &Config) {
        let ports: Vec<u16> = config.addresses().iter().map(|address| address.0.port()).collect();
        let dir = self.inputs.baselines.as_ref().and_then(|file| file.path().parent());
        if let Some(file) = dir.and_then(|dir| TotalsFile::new(dir, &config.paths.sysfs, &ports)) {
            match file.take() {
                Ok(Some(SavedState { totals, containers, continuity, boot_ns })) => {
                    info!("energy totals: continued from {}", file.path().display());
                    let known = self.inputs.source.continue_containers(containers);
                    let keep_ns = u64::try_from(config.limits.retain.as_nanos()).unwrap_or(u64::MAX);
                    self.inputs.accountant.continue_totals(totals, known, keep_ns);
                    self.inputs.continues = Some(ContinuedTotals { continuity, boot_ns });
                }
                Ok(None) => {}
                Err(error) => warn!("{error}"),
            }
            self.inputs.totals = Some(file);
        }
        // A recording has series of its own.
        if matches!(self.inputs.source, TickSource::Live(_)) {
            totals_file::mark_start(&ports);
        }
    }

    /// Starts these threads, and reports a state directory that cannot be written.
    /// Call it after the privileges are dropped.
    #[must_use]
    pub fn start(self) -> SamplerInputs {
        let Self { mut inputs, histogram, reference, history } = self;
        if let Some(PreparedHistory { directory, setup, keep, .. }) = history {
            match HistoryRecorder::start(directory, setup, keep) {
                Ok(recorder) => inputs.history = Some(recorder),
                Err(error) => warn!("cannot start a thread for the history: {error}. Ticks are not kept for a restart"),
            }
        }
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

/// The configured rules, with the SMT weight of a calibration and its range unless a weight is
/// configured.
fn rules(config: &Config, calibration: Option<&Calibration>) -> Rules {
    let mut rules = config.rules();
    let Some(calibration) = calibration.filter(|_| !config.cpu.names_smt_weight()) else { return rules };
    if let Some(milli) = calibration.shared_milli() {
        rules.weights.shared_milli = milli;
    }
    if let Some(range) = calibration.shared_range_milli() {
        rules.shared_range_milli = range;
    }
    rules
}

fn accountant(config: &Config, setup: Setup, rules: Rules) -> Accountant {
    let mut accountant = Accountant::new(setup, rules, config.limits.window_bytes);
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
    let accountant = accountant(config, reader.setup().clone(), config.rules());
    let source = TickSource::Replay(Box::new(Replay::new(reader)));
    let inputs = SamplerInputs {
        interval: config.tick,
        source,
        accountant,
        histogram: None,
        histogram_hertz: None,
        reference: ReferenceMeters::default(),
        baselines: None,
        calibrated_at: None,
        history: None,
        totals: None,
        continues: None,
        sources,
    };
    Ok(PreparedSampler { inputs, histogram: None, reference: Vec::new(), history: None })
}

/// Opens the sources of the machine, and returns the state of each.
pub fn collectors(config: &Config) -> (Collectors, Vec<SourceState>) {
    let topology = Topology::read(&config.paths.sysfs);
    let (mut of_cgroups, mut of_jobs, mut of_gpus) = (Vec::new(), Vec::new(), Vec::new());
    // Their drivers take longest, and open on a thread of their own.
    let gpus = config.collectors.gpu().then(|| gpus(config, &mut of_gpus)).flatten();
    let registry = config.collectors.cpu().then(|| registry(config, &mut of_cgroups)).flatten();
    // The kernel verifies the programs of the CPU tier for tens of milliseconds, during which this
    // thread opens the rest. The threads end before any privilege is dropped.
    let ((selected, search), jobs, cpu, usage) = std::thread::scope(|scope| {
        let cpu = config.collectors.cpu().then(|| {
            let (tier, paths, topology) = (config.cpu.tier, config.paths.cpu_paths(), &topology);
            scope.spawn(move || cpu::choose(tier, &paths, topology))
        });
        // The tier `files` asks for a probe without eBPF programs.
        let with_iterator = registry.is_some() && config.collectors.stats() && config.cpu.tier != TierChoice::Files;
        let usage = with_iterator.then(|| scope.spawn(|| UsageIterator::load(&config.paths.cgroupfs)));
        let energy = energy_source(config, &topology);
        let jobs = registry.is_some().then(|| jobs(config, &mut of_jobs)).flatten();
        let cpu = cpu.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let usage = usage.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        (energy, jobs, cpu, usage)
    });
    let SelectedSource { source, tried: mut sources } = selected;
    if !topology.is_known() {
        let why = format!(
            "{}: no CPU has a package id; the machine counts as one package. Name sysfs with --path.sysfs",
            config.paths.sysfs.join("devices/system/cpu").display()
        );
        sources.push(SourceState::new("topology", Err(Unavailable::new(Reason::Absent, why)), false));
    }
    sources.extend(of_cgroups);
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
    sources.extend(of_jobs);
    sources.extend(of_gpus);
    let mut stats = (registry.is_some() && config.collectors.stats())
        .then(|| StatsCollector::new(&config.paths.cgroupfs, &config.paths.procfs));
    if let (Some(stats), Some(usage)) = (&mut stats, usage) {
        match usage {
            Ok(iterator) => {
                tracing::debug!("containers: {}", iterator.detail());
                stats.use_iterator(iterator);
            }
            Err(why) => tracing::info!("containers: memory and block I/O come from files, one by one: {why}"),
        }
    }
    let opened = collect::OpenedSources { source, search, cpu, registry, jobs, stats, gpus };
    (Collectors::new(opened, topology, config.paths.sysfs.clone()), sources)
}

/// The energy source, and the search for another one.
fn energy_source(config: &Config, topology: &Topology) -> (SelectedSource, Option<SourceSearch>) {
    if !config.collectors.energy() {
        return (SelectedSource { source: None, tried: Vec::new() }, None);
    }
    let (power, paths) = (config.energy.cpu_power(), config.paths.source_paths());
    let selected = energy::choose(config.energy.source, power, &paths, topology);
    let search = SourceSearch::new(config.energy.source, power, paths, selected.source.as_deref());
    (selected, search)
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

/// The state directory; `None` without one, and for a tree of files instead of a machine.
#[must_use]
pub fn state_dir(config: &Config) -> Option<PathBuf> {
    let root = rustix::process::geteuid().is_root();
    match &config.energy.state {
        Some(dir) => Some(dir.clone()),
        None if root && config.paths.sysfs == Path::new("/sys") => Some(STATE_DIR.into()),
        None => None,
    }
}

/// True for a source whose idle power and weights can be calibrated: a model computes them from a
/// table, and a sensor of the board has other parts of the machine in it.
#[must_use]
pub fn is_calibrated(origin: Origin) -> bool {
    origin.is_rapl() || origin == Origin::Simulated
}

/// The calibration of this machine with the energy of `origin`; `None` where there is none.
///
/// # Errors
/// Why the file is not used: another machine, too old, not readable.
pub fn calibration(config: &Config, origin: Origin) -> Result<Option<Calibration>, String> {
    let Some(dir) = state_dir(config).filter(|_| is_calibrated(origin)) else { return Ok(None) };
    let Some(calibration) = CalibrationFile::new(&dir).load().map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let paths = &config.paths;
    let machine = Machine::read(&paths.rootfs, &paths.procfs, &Topology::read(&paths.sysfs), origin);
    calibration.check(&machine, unix_seconds(), config.energy.calibration_age)?;
    Ok(Some(calibration))
}

/// The time in unix seconds.
#[must_use]
pub fn unix_seconds() -> i64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec
}

/// The calibration of this machine. One that cannot be used is logged.
fn usable_calibration(config: &Config, setup: &Setup) -> Option<Calibration> {
    match calibration(config, setup.machine_origin()?) {
        Ok(calibration) => {
            let calibration = calibration?;
            info!("calibration: done {} on this machine", calibration.age(unix_seconds()));
            Some(calibration)
        }
        Err(why) => {
            warn!("calibration ignored: {why}");
            None
        }
    }
}

/// The file of learnt idle power; `None` without a state directory, and for a tree of files instead
/// of a machine.
fn baseline_file(config: &Config, setup: &Setup) -> Option<BaselineFile> {
    let dir = state_dir(config)?;
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
