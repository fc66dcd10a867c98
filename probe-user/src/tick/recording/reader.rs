//! Reads a recording.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;

use super::format::{
    CpuTotals, FORMAT, Growth, Header, Line, MAX_FIGURES, MAX_ITEMS, MAX_LINE, MAX_REASON, MAX_TEXT, MAX_ZONES,
    RecordingError, VERSION,
};
use crate::{
    cgroup::CgroupKey,
    cpu::{CpuReading, RunQueueStats, RunTime, Tier},
    energy::zone::{Origin, Zone},
    host::topology::MAX_CPUS,
    jobs::{
        Job,
        command_line::MAX_OUTPUTS,
        stage::{MAX_PARTS, StageTimes},
    },
    tick::raw::{RawTick, Setup, TickChanges},
};

/// A recording that is being read. Its origin is [`Origin::Replay`]; energy that was not measured
/// for it keeps its origin.
pub struct Reader<R = Box<dyn Read + Send>> {
    path: PathBuf,
    lines: BufReader<R>,
    line: u64,
    setup: Setup,
    probe: String,
    origin: Option<Origin>,
    totals: BTreeMap<CgroupKey, Vec<CpuTotals>>,
    queues: BTreeMap<CgroupKey, RunQueueStats>,
    /// Number of figures in `totals`.
    figures: usize,
    cpus: usize,
    cgroups: BTreeSet<CgroupKey>,
    containers: BTreeSet<u32>,
    jobs: BTreeSet<u32>,
    last_energy_ns: Option<u64>,
    last_gpu_ns: u64,
    /// Counters that were added after the first line.
    added_zones: Vec<Zone>,
}

impl Reader {
    /// Opens a file and reads its first line.
    ///
    /// # Errors
    /// When it cannot be read, or is not a recording of a known version.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let failed = |error| RecordingError::Io { path: path.to_owned(), error };
        let mut file = BufReader::new(File::open(path).map_err(failed)?);
        let gzip = file.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
        let bytes: Box<dyn Read + Send> = if gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        Self::start(path, bytes)
    }
}

impl<R: Read> Reader<R> {
    /// Reads the first line of `bytes`; `path` is for messages.
    ///
    /// # Errors
    /// When they are not a recording of a known version.
    pub fn start(path: &Path, bytes: R) -> Result<Self, RecordingError> {
        let empty = Setup {
            host: String::new(),
            origin: None,
            zones: Vec::new(),
            idle_uw: Vec::new(),
            packages: Vec::new(),
            cpu_packages: Vec::new(),
            smt: false,
            cpu_weights: Vec::new(),
            lag_ns: 0,
            cpu: None,
        };
        let mut this = Self {
            path: path.to_owned(),
            lines: BufReader::new(bytes),
            line: 0,
            setup: empty,
            probe: String::new(),
            origin: None,
            totals: BTreeMap::new(),
            queues: BTreeMap::new(),
            figures: 0,
            cpus: 0,
            cgroups: BTreeSet::new(),
            containers: BTreeSet::new(),
            jobs: BTreeSet::new(),
            last_energy_ns: None,
            last_gpu_ns: 0,
            added_zones: Vec::new(),
        };
        let Some(first) = this.next_line()? else { return Err(this.error("the file is empty")) };
        let header: Header =
            serde_json::from_slice(&first).map_err(|error| this.error(format!("not a recording ({error})")))?;
        if header.format != FORMAT {
            return Err(this.error("not a recording of wattcast-probe"));
        }
        if !(1..=VERSION).contains(&header.version) {
            return Err(this
                .error(format!("version {} of the format; this probe reads versions 1 to {VERSION}", header.version)));
        }
        check_setup(&header.setup).map_err(|what| this.error(what))?;
        this.cpus = header.setup.usage_columns().0.len();
        this.origin = header.setup.machine_origin();
        this.probe = header.probe.chars().take(80).collect();
        this.setup = header.setup;
        this.setup.origin = this.setup.origin.map(Origin::replayed);
        this.setup.zones.iter_mut().for_each(|zone| zone.origin = zone.origin.map(Origin::replayed));
        Ok(this)
    }

    /// Properties of the recorded machine.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The source of the recorded energy, and the version of the probe that recorded it.
    #[must_use]
    pub fn recorded(&self) -> (Option<Origin>, &str) {
        (self.origin, &self.probe)
    }

    fn error(&self, what: impl Into<String>) -> RecordingError {
        RecordingError::Content { path: self.path.clone(), line: self.line, what: what.into() }
    }

    fn next_line(&mut self) -> Result<Option<Vec<u8>>, RecordingError> {
        let mut line = Vec::new();
        self.line += 1;
        let read = (&mut self.lines).take(MAX_LINE + 1).read_until(b'\n', &mut line);
        match read {
            Ok(0) => Ok(None),
            Ok(_) if line.last() == Some(&b'\n') => Ok(Some(line)),
            Ok(read) if u64::try_from(read).is_ok_and(|read| read > MAX_LINE) => {
                Err(self.error("the line is too long"))
            }
            Ok(_) => Err(self.error("the file ends in the middle of a tick; the ticks before it are complete")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.error("the file is truncated; the ticks before this line are complete"))
            }
            Err(error) => Err(RecordingError::Io { path: self.path.clone(), error }),
        }
    }

    /// The next tick; `None` at the end.
    ///
    /// # Errors
    /// When the file is truncated or invalid from here on. The ticks before are valid.
    pub fn next_tick(&mut self) -> Result<Option<RawTick>, RecordingError> {
        let Some(text) = self.next_line()? else { return Ok(None) };
        let line: Line = serde_json::from_slice(&text).map_err(|error| self.error(format!("not a tick ({error})")))?;
        self.tick(line).map(Some).map_err(|what| self.error(what))
    }

    fn tick(&mut self, mut line: Line) -> Result<RawTick, String> {
        self.replace_source(&mut line)?;
        self.add_zones(&mut line)?;
        self.check_gpus(&line)?;
        self.check_times(&line)?;
        if line.residency.len() > self.setup.packages.len() {
            return Err("residency of more packages than the machine has".to_owned());
        }
        self.update_containers(&mut line)?;
        self.update_jobs(&line.changes)?;
        check_stages(&line.stages)?;
        let cpu = match (line.ran.take(), line.failed.take()) {
            (_, Some(error)) => Some(Err(error)),
            (None, None) => None,
            (Some(ran), None) => {
                self.add_growth(ran)?;
                Some(Ok(self.cpu_reading(&line)?))
            }
        };
        Ok(RawTick {
            // Whole microseconds, like all times in requests.
            unix_ns: line.unix / 1000 * 1000,
            began_ns: line.began,
            energy_ns: line.energy,
            cpu_ns: line.cpu,
            own_ns: line.own,
            programs_ns: line.programs,
            suspended_ns: line.suspended,
            zones: line.zones.into_iter().map(Into::into).collect(),
            residency: line.residency,
            cpu,
            jobs: line.jobs,
            stages: line.stages,
            gpu_ns: line.gpu,
            gpus: line.gpus,
            changes: line.changes,
        })
    }

    fn replace_source(&mut self, line: &mut Line) -> Result<(), String> {
        let Some(change) = &mut line.changes.source else { return Ok(()) };
        change.origin = change.origin.replayed();
        change.zones.iter_mut().for_each(|zone| zone.origin = zone.origin.map(Origin::replayed));
        check_source(&change.zones, &change.idle_uw)?;
        self.setup.origin = Some(change.origin);
        self.setup.zones.clone_from(&change.zones);
        self.setup.idle_uw.clone_from(&change.idle_uw);
        check_zones(self.setup.zones.iter().chain(&self.added_zones))
    }

    fn add_zones(&mut self, line: &mut Line) -> Result<(), String> {
        if !line.changes.zones.is_empty() {
            // An added counter has another source than the machine's counters, and names it.
            line.changes.zones.iter_mut().for_each(|zone| zone.origin = zone.origin.map(Origin::replayed));
            self.added_zones.extend(line.changes.zones.iter().cloned());
            check_zones(self.setup.zones.iter().chain(&self.added_zones))?;
        }
        let zones = self.setup.zones.len() + self.added_zones.len();
        if line.zones.len() != zones {
            return Err(format!("{} readings of {zones} counters", line.zones.len()));
        }
        Ok(())
    }

    fn check_gpus(&mut self, line: &Line) -> Result<(), String> {
        if line.gpu < self.last_gpu_ns {
            return Err("time goes backwards".to_owned());
        }
        self.last_gpu_ns = line.gpu;
        let uses = line.gpus.iter().map(|(_, usage)| usage.uses.len());
        if line.gpus.len() > MAX_ZONES || uses.sum::<usize>() > MAX_ITEMS {
            return Err("more GPUs or users of them than a machine has".to_owned());
        }
        Ok(())
    }

    fn check_times(&mut self, line: &Line) -> Result<(), String> {
        let overlaps = self.last_energy_ns.is_some_and(|last| line.began < last);
        if line.energy < line.began || line.cpu < line.energy || overlaps {
            return Err("time goes backwards".to_owned());
        }
        self.last_energy_ns = Some(line.energy);
        Ok(())
    }

    /// Applies the changes of cgroups and containers, within the limits.
    fn update_containers(&mut self, line: &mut Line) -> Result<(), String> {
        let changes = &line.changes;
        let texts = changes.containers.iter().flat_map(|container| [&container.name, &container.id, &container.image]);
        if texts.into_iter().any(|text| text.len() > MAX_TEXT) {
            return Err("a container's name is too long".to_owned());
        }
        if let Some(cpu_packages) = &changes.cpu_packages {
            check_cpu_packages(cpu_packages, self.setup.packages.len())?;
            if self.setup.has_per_cpu_usage() {
                self.cpus = self.cpus.max(cpu_packages.len());
            }
        }
        for key in &changes.departed {
            self.figures -= self.totals.remove(key).map_or(0, |totals| totals.len());
            self.cgroups.remove(key);
            self.queues.remove(key);
        }
        self.queues.extend(std::mem::take(&mut line.queues));
        if self.queues.len() > MAX_ITEMS {
            return Err("more cgroups than a kernel counts".to_owned());
        }
        self.cgroups.extend(changes.targets.iter().map(|(key, _)| *key));
        self.containers.extend(changes.containers.iter().map(|container| container.number));
        if changes.reserved.iter().any(|(number, _)| !self.containers.contains(number)) {
            return Err("a reservation of an unknown container".to_owned());
        }
        if self.cgroups.len() > MAX_ITEMS || self.containers.len() > MAX_ITEMS {
            return Err("more cgroups or containers than a machine has".to_owned());
        }
        for number in &changes.ended {
            self.containers.remove(number);
        }
        Ok(())
    }

    /// Applies the changes of jobs, within the limits.
    fn update_jobs(&mut self, changes: &TickChanges) -> Result<(), String> {
        self.jobs.extend(changes.jobs.iter().map(|job| job.number));
        if self.jobs.len() > MAX_ITEMS {
            return Err("more jobs than a machine has".to_owned());
        }
        for number in &changes.jobs_gone {
            self.jobs.remove(number);
        }
        let texts = changes.jobs.iter().flat_map(|Job { command, .. }| {
            let outputs = command.outputs.iter();
            let of_outputs = outputs.flat_map(|out| [&out.name, &out.kind, &out.codec, &out.encoder, &out.preset]);
            let of_progress = command.progress.iter().flat_map(|progress| [&progress.kind, &progress.stream]);
            of_outputs.chain(of_progress).chain([&command.input])
        });
        if texts.into_iter().any(|text| text.len() > MAX_TEXT) {
            return Err("a job's name is too long".to_owned());
        }
        if changes.jobs.iter().any(|job| job.command.outputs.len() > MAX_OUTPUTS) {
            return Err("a job with too many outputs".to_owned());
        }
        Ok(())
    }

    /// Adds the growth of CPU time to the totals, within the limits of memory.
    fn add_growth(&mut self, ran: Vec<(CgroupKey, Vec<Growth>)>) -> Result<(), String> {
        for (key, grown) in ran {
            if self.totals.len() >= MAX_ITEMS {
                return Err("more cgroups than a kernel counts".to_owned());
            }
            if self.totals.len().saturating_mul(self.setup.packages.len()) > MAX_FIGURES {
                return Err("more cgroups and packages than a kernel counts".to_owned());
            }
            let totals = self.totals.entry(key).or_default();
            for growth in grown {
                let cpu = growth.0;
                if cpu >= self.cpus {
                    return Err(format!("CPU {cpu} of a machine of {}", self.cpus));
                }
                if totals.len() <= cpu {
                    self.figures += cpu + 1 - totals.len();
                    totals.resize(cpu + 1, CpuTotals::default());
                }
                if self.figures > MAX_FIGURES {
                    return Err("more CPU time than a kernel counts".to_owned());
                }
                totals[cpu].add(&growth).ok_or("more CPU time than 64 bits hold")?;
            }
        }
        Ok(())
    }

    /// The totals as a reading.
    fn cpu_reading(&self, line: &Line) -> Result<CpuReading, String> {
        if line.overflow.len() > MAX_CPUS {
            return Err("more CPUs than a kernel has".to_owned());
        }
        let times = |totals: &Vec<CpuTotals>| totals.iter().map(|totals| totals.time).collect();
        let counts = self.setup.cpu.as_ref().is_some_and(|cpu| cpu.tier == Tier::Counters);
        let counted = self.totals.values().filter(|_| counts);
        Ok(CpuReading {
            rows: self.totals.iter().map(|(key, totals)| (*key, times(totals))).collect(),
            counted: counted.map(|totals| totals.iter().map(|totals| totals.counted).collect()).collect(),
            counter_time: line.counter_time,
            queues: self.queues.iter().map(|(key, queue)| (*key, *queue)).collect(),
            overflow: line.overflow.iter().map(|time| RunTime::from(*time)).collect(),
            missed: line.missed,
        })
    }
}

fn check_stages(stages: &[(u32, StageTimes)]) -> Result<(), String> {
    let is_output = |output: Option<u8>| output.is_none_or(|output| usize::from(output) < MAX_OUTPUTS);
    let valid = |parts: &StageTimes| parts.len() <= MAX_PARTS && parts.iter().all(|(part, _)| is_output(part.output));
    if stages.len() > MAX_ITEMS || !stages.iter().all(|(_, parts)| valid(parts)) {
        return Err("more stages than a job has".to_owned());
    }
    Ok(())
}

/// The conditions on a setup that the attribution relies on.
fn check_setup(setup: &Setup) -> Result<(), String> {
    if setup.cpu.as_ref().is_some_and(|cpu| cpu.reason.len() > MAX_REASON) {
        return Err("a reason that is too long".to_owned());
    }
    if setup.host.len() > MAX_TEXT {
        return Err("a host name that is too long".to_owned());
    }
    if setup.packages.len() > MAX_ZONES || setup.packages.is_empty() {
        return Err("more packages than a machine has, or none".to_owned());
    }
    if setup.cpu_weights.len() > probe_ebpf::MAX_CPUS {
        return Err("more CPU weights than a machine has CPUs".to_owned());
    }
    check_source(&setup.zones, &setup.idle_uw)?;
    check_cpu_packages(&setup.cpu_packages, setup.packages.len())
}

fn check_source(zones: &[Zone], idle_uw: &[Option<u64>]) -> Result<(), String> {
    if idle_uw.len() != zones.len() {
        return Err("idle powers that do not fit the counters".to_owned());
    }
    check_zones(zones.iter())
}

fn check_zones<'a>(zones: impl Iterator<Item = &'a Zone> + Clone) -> Result<(), String> {
    let mut ids: Vec<_> = zones.clone().take(MAX_ZONES + 1).map(|zone| zone.id).collect();
    if ids.len() > MAX_ZONES {
        return Err("more counters than a machine has".to_owned());
    }
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("two counters of one zone".to_owned());
    }
    if zones.clone().any(|zone| !zone.unit.is_valid() || zone.location.len() > MAX_TEXT) {
        return Err("a counter with an invalid unit".to_owned());
    }
    Ok(())
}

fn check_cpu_packages(cpu_packages: &[Option<usize>], packages: usize) -> Result<(), String> {
    if cpu_packages.len() > MAX_CPUS || cpu_packages.iter().flatten().any(|package| *package >= packages) {
        return Err("CPUs that are on no package".to_owned());
    }
    Ok(())
}
