//! `calibrate`: measures idle power, the awake step, and the watts of this machine's cores with
//! loads of its own, and writes them to the state directory.
//!
//! The counters are only read, so a probe may run meanwhile. It reads the file at its next start.

mod fit;
mod loads;
mod meter;
mod plan;
mod quiet;
mod report;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, IsTerminal as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::thread::CpuSet;
use statistics::inference::Interval;

use self::{
    fit::{Measured, ZonePlace},
    loads::Load,
    meter::{Mean, Meter},
    plan::{Package, Phase},
    quiet::CpuTimes,
};
use crate::{
    attribution::calibration_file::{Calibration, CalibrationFile, Figure, GpuFigures, Machine, NOT_MEASURED},
    config::Config,
    energy::{
        self, SelectedSource, Source,
        zone::{Origin, ZoneKind},
    },
    gpu::GpuReader,
    host::{privileges, topology::Topology},
    start,
};

/// Interval between two readings of the GPUs.
const GPU_INTERVAL: Duration = Duration::from_millis(500);
/// The driver's start uses a CPU for up to some seconds, and is waited for as long as this.
const GPU_START: Duration = Duration::from_secs(10);

/// How to calibrate.
#[derive(Clone, Copy, Debug)]
pub struct CalibrateRequest {
    /// Length of the measurement.
    pub duration: Duration,
    /// Measure although the host is busy.
    pub force: bool,
    /// Print JSON.
    pub json: bool,
}

/// Measures, prints the result, and writes the file.
///
/// # Errors
/// When it is not root, energy is not measured by RAPL, the host is busy, the file cannot be
/// written, or a load cannot run.
pub fn run(config: &Config, request: &CalibrateRequest) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("calibrate needs root: only root may read the energy counters. Run it with sudo");
    }
    let Some(dir) = start::state_dir(config) else {
        bail!("there is no state directory for another machine's /sys: name one with --state.dir");
    };
    let paths = &config.paths;
    let topology = Topology::read(&paths.sysfs);
    let source = open_source(config, &topology)?;
    let origin = source.energy_origin();
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}; name another --state.dir", dir.display()))?;
    privileges::drop_all(None::<fn() -> bool>).context("cannot drop the privileges of the start")?;
    let file = CalibrationFile::new(&dir);
    file.check_writable()?;

    let mut session = Session::new(config, &topology, Meter::new(source))?;
    let cpus = topology.cpus(false).count();
    let others = quiet::check(&paths.procfs, cpus, request.duration, request.force)?;
    let began = Instant::now();
    let (measured, gpus) = session.measure(request)?;
    let machine = Machine::read(&paths.rootfs, &paths.procfs, &topology, origin);
    let mut calibration = Calibration::new(start::unix_seconds(), began.elapsed().as_secs_f64(), machine);
    let fit = fit::fit(&session.places, &plan::middle(&session.packages), &measured);
    if fit.zones.is_empty() {
        bail!("no sleep power was measured: {}", fit.notes.join("; "));
    }
    (calibration.zones, calibration.smt_weight, calibration.loads) = (fit.zones, fit.smt_weight, fit.loads);
    (calibration.smt_mixes, calibration.mix_error, calibration.gpus) = (fit.smt_mixes, fit.mix_error, gpus);
    calibration.notes.append(&mut session.notes);
    calibration.notes.extend(fit.notes);
    if others > quiet::limit(cpus) {
        calibration.notes.push(format!("other programs used {:.1} % of the CPUs before the start", others * 100.0));
    }
    file.save(&calibration)?;
    let text = if request.json {
        serde_json::to_string_pretty(&calibration)? + "\n"
    } else {
        report::text(&calibration, file.path())
    };
    // A failed write means that the reader has closed the pipe and needs no more.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// The source that a probe with these flags would use.
fn open_source(config: &Config, topology: &Topology) -> Result<Box<dyn Source>> {
    let paths = config.paths.source_paths();
    let SelectedSource { source, tried } = energy::choose(config.energy.source, None, &paths, topology);
    let reasons = || {
        let failed =
            tried.iter().filter_map(|state| Some(format!("{}: {}", state.source, state.state.as_ref().err()?.detail)));
        failed.collect::<Vec<_>>().join("; ")
    };
    match source {
        Some(source) if start::is_calibrated(source.energy_origin()) => Ok(source),
        Some(source) if source.origin() == Origin::Model => bail!(
            "there is no RAPL to calibrate, and a model is not calibrated: it computes power from a table ({}). \
             wattcast-probe doctor says how to enable RAPL",
            reasons()
        ),
        Some(source) => bail!(
            "calibration needs RAPL, and {} also contains other parts of the machine; \
             wattcast-probe doctor says how to enable RAPL",
            source.origin().as_str()
        ),
        None => bail!(
            "no source of energy that can be calibrated ({}). wattcast-probe doctor says how to enable RAPL",
            reasons()
        ),
    }
}

/// What a measurement needs.
struct Session<'a> {
    config: &'a Config,
    meter: Meter,
    packages: Vec<Package>,
    /// The package of each measured counter.
    places: Vec<ZonePlace>,
    cpus: usize,
    notes: Vec<String>,
}

impl<'a> Session<'a> {
    fn new(config: &'a Config, topology: &Topology, meter: Meter) -> Result<Self> {
        let per_die = meter.zones().iter().any(|zone| zone.id.package.is_some_and(|package| package.die.is_some()));
        let (packages, note) = plan::packages(topology, per_die);
        let allowed = loads::allowed()?;
        let all: Vec<usize> = topology.cpus(false).map(|(cpu, _)| cpu).collect();
        let denied = all.iter().filter(|cpu| **cpu >= CpuSet::MAX_CPU || !allowed.is_set(**cpu)).count();
        if denied > 0 {
            bail!(
                "this program may not run on {denied} of {} CPUs: start it outside of a cpuset, and without taskset",
                all.len()
            );
        }
        let place = |zone: &energy::zone::Zone| {
            let package = packages.iter().position(|package| Some(package.id) == zone.id.package)?;
            Some(ZonePlace { name: zone.id.to_string(), package, cores: zone.id.kind == ZoneKind::Package })
        };
        let places: Option<Vec<ZonePlace>> = meter.zones().iter().map(place).collect();
        let Some(places) = places.filter(|places| !places.is_empty()) else {
            bail!("a counter belongs to a package without CPUs in {}", config.paths.sysfs.display());
        };
        let notes = note.into_iter().chain(plan::unpaired(&packages)).collect();
        Ok(Self { config, meter, packages, places, cpus: all.len(), notes })
    }

    /// Runs all phases.
    fn measure(&mut self, request: &CalibrateRequest) -> Result<(Vec<Measured>, Vec<GpuFigures>)> {
        let phases = plan::phases(&self.packages);
        let schedule = plan::schedule(&phases, request.duration);
        let progress = Progress::new(request, phases.len());
        let (mut measured, mut gpus) = (Vec::with_capacity(phases.len()), Vec::new());
        for (phase, (settle, length)) in phases.into_iter().zip(schedule) {
            progress.begin(&phase, settle + length);
            let reader = if phase.mix.is_none() { self.watch_gpus() } else { None };
            let (means, others) = self.measure_phase(&phase, settle, length)?;
            if let Some(reader) = reader {
                let (figures, notes) = gpu_figures(reader.finish());
                gpus = figures;
                self.notes.extend(notes);
            }
            progress.end(settle + length);
            measured.push(Measured { phase, means, others, cpus: self.cpus });
        }
        progress.bar.finish_and_clear();
        Ok((measured, gpus))
    }

    fn measure_phase(&mut self, phase: &Phase, settle: Duration, length: Duration) -> Result<(Vec<Option<Mean>>, f64)> {
        let paths = &self.config.paths;
        let load = match phase.mix {
            Some(mix) => {
                let buffer = loads::buffer_size(&paths.sysfs, &paths.procfs, phase.cpus.len());
                Some(Load::start(mix, &phase.cpus, buffer)?)
            }
            None => None,
        };
        thread::sleep(settle);
        let before = CpuTimes::read(&paths.procfs)?;
        let means = self.meter.measure(length)?;
        let others = CpuTimes::read(&paths.procfs)?.others_since(&before, self.cpus);
        drop(load);
        Ok((means, others))
    }

    /// Reads the power of the GPUs in the idle phase; `None` where GPUs are not collected.
    fn watch_gpus(&self) -> Option<GpuWatch> {
        if !self.config.collectors.gpu() {
            return None;
        }
        let paths = self.config.gpu_paths();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (opened, ready) = mpsc::channel();
        let thread = thread::Builder::new().name("gpu".to_owned()).spawn(move || {
            let reader = GpuReader::open(&paths);
            // The receiver is gone after the timeout.
            let _ = opened.send(());
            let Ok(mut reader) = reader else { return BTreeMap::new() };
            let mut readings: GpuReadings = BTreeMap::new();
            while !stopped.load(Ordering::Relaxed) {
                let (_, gpus) = reader.poll(&[]);
                for gpu in gpus.iter().filter(|gpu| gpu.origin != Origin::Drm) {
                    let key = (format!("{} {}", gpu.name, gpu.id), gpu.origin.as_str());
                    let watts = readings.entry(key).or_default();
                    // A GPU that works for another program shows no idle power.
                    let milliwatts = gpu.telemetry.power_mw.filter(|_| gpu.idle);
                    watts.extend(milliwatts.map(|milliwatts| f64::from(milliwatts) / 1000.0));
                }
                if gpus.iter().all(|gpu| gpu.origin == Origin::Drm) {
                    // The kernel's drivers tell no power, and reading their files is work.
                    break;
                }
                thread::sleep(GPU_INTERVAL);
            }
            readings
        });
        // An error means that there is no thread, or that it takes longer.
        let _ = ready.recv_timeout(GPU_START);
        thread.ok().map(|thread| GpuWatch { stop, thread })
    }
}

/// Watts by GPU and source.
type GpuReadings = BTreeMap<(String, &'static str), Vec<f64>>;

/// The thread that reads the GPUs.
struct GpuWatch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<GpuReadings>,
}

impl GpuWatch {
    fn finish(self) -> GpuReadings {
        self.stop.store(true, Ordering::Relaxed);
        // A panic has been printed.
        self.thread.join().unwrap_or_default()
    }
}

/// The figures of each GPU, and notes on those that have none.
fn gpu_figures(readings: GpuReadings) -> (Vec<GpuFigures>, Vec<String>) {
    let (mut figures, mut notes) = (Vec::new(), Vec::new());
    for ((gpu, source), watts) in readings {
        let Some(idle) = mean_watts(&watts) else {
            notes.push(format!(
                "GPU {gpu}: idle power and engine weights {NOT_MEASURED}; it worked meanwhile, or tells no power"
            ));
            continue;
        };
        figures.push(GpuFigures { gpu, source: source.to_owned(), idle, engine_weights: NOT_MEASURED.to_owned() });
    }
    (figures, notes)
}

/// The mean of readings that scatter, with its 95 % interval; `None` for fewer than two.
fn mean_watts(watts: &[f64]) -> Option<Figure> {
    let interval = Interval::of(watts)?;
    let (low, high) = interval.bounds();
    Some(Figure { value: interval.mean, low: low.max(0.0), high })
}

/// A bar on a terminal, and a line per phase elsewhere; nothing with `--json`.
struct Progress {
    bar: ProgressBar,
    lines: bool,
}

impl Progress {
    fn new(request: &CalibrateRequest, phases: usize) -> Self {
        let terminal = io::stderr().is_terminal() && !request.json;
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(milliseconds(request.duration)), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:32} {percent:>3} %  {msg}") {
            bar.set_style(style);
        }
        let lines = !terminal && !request.json;
        let progress = Self { bar, lines };
        progress.line(&format!("{phases} phases, {} s", request.duration.as_secs()));
        progress
    }

    fn begin(&self, phase: &Phase, length: Duration) {
        self.bar.set_message(phase.name.clone());
        self.line(&format!("{:.1} s  {}", length.as_secs_f64(), phase.name));
    }

    fn end(&self, length: Duration) {
        self.bar.inc(milliseconds(length));
    }

    fn line(&self, line: &str) {
        if self.lines {
            // A closed stderr must not end the measurement.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }
}

fn milliseconds(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_power_of_a_gpu_has_the_interval_of_its_readings() {
        let figure = mean_watts(&[30.0, 32.0, 31.0, 31.0]).unwrap();
        assert!((figure.value - 31.0).abs() < 1e-9 && (figure.half() - 1.3).abs() < 0.01, "{figure:?}");
        assert_eq!(mean_watts(&[30.0]), None);
    }

    #[test]
    fn a_gpu_that_works_is_named_as_not_measured() {
        let key = |gpu: &str| (gpu.to_owned(), "nvml");
        let readings = GpuReadings::from([(key("A 1"), vec![30.0, 31.0]), (key("B 2"), Vec::new())]);
        let (figures, notes) = gpu_figures(readings);
        assert_eq!((figures.len(), &*figures[0].gpu, &*figures[0].engine_weights), (1, "A 1", NOT_MEASURED));
        assert_eq!(
            notes,
            ["GPU B 2: idle power and engine weights not measured; it worked meanwhile, or tells no power"]
        );
    }
}
