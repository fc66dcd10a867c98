//! The file of a calibration: what `wattcast-probe calibrate` measured of this machine, and when.
//! Its content is also the JSON that the command prints.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::state_file;
use crate::{
    energy::{
        processor::{self, Processor},
        zone::Origin,
    },
    host::topology::Topology,
    ledger::idle::{Estimate, Seed},
};

/// Name of the file in the state directory.
const FILE: &str = "calibration.json";
/// A machine of 16 packages with their memory and 16 GPUs has some 20 kB.
const MAX_FILE: u64 = 1 << 20;
const VERSION: u32 = 1;
const SECONDS_PER_DAY: u64 = 86_400;
/// Power above this is no figure of a zone, in watts.
const MAX_WATTS: f64 = 1e6;
/// A smaller part of the sleep power is no step: it is within the error of both.
const MIN_STEP: f64 = 0.05;

/// A measured figure with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl Figure {
    /// The larger half of the interval.
    #[must_use]
    pub fn half(&self) -> f64 {
        (self.high - self.value).max(self.value - self.low)
    }

    fn is_valid(&self) -> bool {
        self.low <= self.value && self.value <= self.high && self.low >= 0.0 && self.high < MAX_WATTS
    }

    fn estimate(&self) -> Estimate {
        Estimate { uw: millionths(self.value), low_uw: millionths(self.low), high_uw: millionths(self.high) }
    }
}

/// Watts that one more busy core adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MixFigure {
    /// The instructions that it runs: integer, vector, memory.
    pub mix: String,
    pub watts_per_core: Figure,
}

/// What a second next to a busy sibling is worth in seconds alone, with the same instructions on
/// both threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MixWeight {
    pub mix: String,
    pub weight: Figure,
}

/// Figures of one counter, in watts. What could not be measured is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ZoneFigures {
    /// Name of the zone, as in the file of learnt idle power.
    pub zone: String,
    pub sleep: Figure,
    /// What an awake package draws more than a sleeping one, without load.
    #[serde(default)]
    pub awake_step: Option<Figure>,
    /// What the first busy core of the machine adds to a sleeping package: the step and its own
    /// power.
    #[serde(default)]
    pub first_core: Option<Figure>,
    #[serde(default)]
    pub mixes: Vec<MixFigure>,
}

/// In place of a figure.
pub const NOT_MEASURED: &str = "not measured";

/// A GPU without work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuFigures {
    pub gpu: String,
    /// Where the power comes from.
    pub source: String,
    pub idle: Figure,
    /// Weights of the engines, which need an encode to be measured.
    pub engine_weights: String,
}

/// How one load is predicted by a model of the other loads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadError {
    pub load: String,
    /// Power above sleep of all packages, in watts.
    pub measured: f64,
    pub predicted: f64,
}

impl LoadError {
    /// The error relative to the measured power.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        (self.predicted - self.measured) / self.measured
    }
}

/// The error of a division by CPU time between two tenants with the same CPU time and other
/// instructions: the pair for which it is largest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MixError {
    pub cheaper: String,
    pub dearer: String,
    /// Relative to the energy that each caused: too much for the first, too little for the second.
    pub cheaper_ratio: f64,
    pub dearer_ratio: f64,
}

/// The machine that was calibrated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    /// Version of the microcode; empty where it is unknown.
    pub microcode: String,
    pub packages: usize,
    /// CPUs that are online.
    pub cpus: usize,
    /// A digest of the kernel's machine id, which itself is confidential (man 5 machine-id).
    pub id: String,
    /// Source of the energy: rapl for all of its readers.
    pub source: String,
}

impl Machine {
    /// The machine below these directories, with the energy of `origin`.
    #[must_use]
    pub fn read(rootfs: &Path, procfs: &Path, topology: &Topology, origin: Origin) -> Self {
        let id = fs::read_to_string(rootfs.join("etc/machine-id")).unwrap_or_default();
        let digest = Sha256::digest(format!("wattcast {}", id.trim()).as_bytes());
        let id = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let cpuinfo = processor::read_cpuinfo(procfs);
        Self {
            processor: Processor::parse(&cpuinfo).name,
            microcode: microcode(&cpuinfo),
            packages: topology.packages(false).len(),
            cpus: topology.cpus(false).count(),
            id,
            source: if origin.is_rapl() { "rapl" } else { origin.as_str() }.to_owned(),
        }
    }

    /// What distinguishes another machine from this one; `None` for the same.
    fn difference(&self, other: &Self) -> Option<String> {
        let text = |what: &str, other: &str, own: &str| (other != own).then(|| format!("{what} {other}, here {own}"));
        let count = |what: &str, other: usize, own: usize| text(what, &other.to_string(), &own.to_string());
        text("processor", &other.processor, &self.processor)
            .or_else(|| (other.id != self.id).then(|| "another machine id".to_owned()))
            .or_else(|| text("microcode", &other.microcode, &self.microcode))
            .or_else(|| count("packages:", other.packages, self.packages))
            .or_else(|| count("CPUs online:", other.cpus, self.cpus))
            .or_else(|| text("energy from", &other.source, &self.source))
    }
}

/// The microcode of the first CPU in `cpuinfo`; empty where it is unknown.
fn microcode(cpuinfo: &str) -> String {
    let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let version = fields.find(|(key, _)| key.trim() == "microcode").map_or("", |(_, version)| version.trim());
    version.chars().filter(|char| !char.is_control()).take(40).collect()
}

/// Content of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    pub version: u32,
    /// End of the measurement.
    pub unix_seconds: i64,
    /// Length of the measurement.
    pub seconds: f64,
    pub machine: Machine,
    pub zones: Vec<ZoneFigures>,
    /// A second next to a busy sibling, in seconds alone: the mean over the mixes, and an interval
    /// that contains those of all. Absent without siblings.
    #[serde(default)]
    pub smt_weight: Option<Figure>,
    /// That of each mix.
    #[serde(default)]
    pub smt_mixes: Vec<MixWeight>,
    #[serde(default)]
    pub gpus: Vec<GpuFigures>,
    /// Each load, predicted from the others.
    #[serde(default)]
    pub loads: Vec<LoadError>,
    #[serde(default)]
    pub mix_error: Option<MixError>,
    /// What disturbed the measurement, or could not be measured.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Calibration {
    /// A calibration of now, without figures yet.
    #[must_use]
    pub fn new(unix_seconds: i64, seconds: f64, machine: Machine) -> Self {
        Self {
            version: VERSION,
            unix_seconds,
            seconds,
            machine,
            zones: Vec::new(),
            smt_weight: None,
            smt_mixes: Vec::new(),
            gpus: Vec::new(),
            loads: Vec::new(),
            mix_error: None,
            notes: Vec::new(),
        }
    }

    /// Its age in words, in whole days.
    #[must_use]
    pub fn age(&self, now: i64) -> String {
        match self.age_seconds(now) / SECONDS_PER_DAY {
            0 => "today".to_owned(),
            1 => "1 day ago".to_owned(),
            days => format!("{days} days ago"),
        }
    }

    /// A clock that was set back makes it old too.
    fn age_seconds(&self, now: i64) -> u64 {
        self.unix_seconds.abs_diff(now)
    }

    /// Checks that it is of `machine` and not older than `max_days`.
    ///
    /// # Errors
    /// Why it is not used.
    pub fn check(&self, machine: &Machine, now: i64, max_days: u64) -> Result<(), String> {
        if let Some(difference) = machine.difference(&self.machine) {
            return Err(format!("of another machine: {difference}"));
        }
        if self.age_seconds(now) > max_days.saturating_mul(SECONDS_PER_DAY) {
            return Err(format!("too old: done {}, and --calibration.max-age is {max_days} days", self.age(now)));
        }
        Ok(())
    }

    /// What the estimation of idle power starts with, by zone.
    #[must_use]
    pub fn seeds(&self, max_days: u64) -> BTreeMap<String, Seed> {
        let until = self.unix_seconds.saturating_add_unsigned(max_days.saturating_mul(SECONDS_PER_DAY));
        let seed = |zone: &ZoneFigures| {
            let is_step = |step: &Figure| step.low > 0.0 && step.value > MIN_STEP * zone.sleep.value;
            let step = zone.awake_step.filter(is_step).map(|step| step.estimate());
            (zone.zone.clone(), Seed { idle: zone.sleep.estimate(), step, since: self.unix_seconds, until })
        };
        self.zones.iter().map(seed).collect()
    }

    /// The SMT weight in thousandths, between one half and one; `None` where it was not measured.
    #[must_use]
    pub fn shared_milli(&self) -> Option<u64> {
        self.smt_weight.map(|weight| (millionths(weight.value) / 1000).clamp(500, 1000))
    }

    /// The range of the SMT weight in thousandths, between one half and one. `None` unless several
    /// mixes were measured: one tells nothing of other programs.
    #[must_use]
    pub fn shared_range_milli(&self) -> Option<[u32; 2]> {
        let weight = self.smt_weight.filter(|_| self.smt_mixes.len() > 1)?;
        let ends = [millionths(weight.low) / 1000, millionths(weight.high).div_ceil(1000)];
        Some(ends.map(|milli| u32::try_from(milli).unwrap_or(1000).clamp(500, 1000)))
    }

    /// What it lacks, in words.
    #[must_use]
    pub fn gaps(&self) -> Vec<String> {
        let noted = self.notes.iter().filter(|note| note.contains(NOT_MEASURED)).cloned();
        let one_mix = (self.smt_weight.is_some() && self.smt_mixes.len() < 2)
            .then(|| "SMT weight measured with one mix of instructions, so its interval is not used".to_owned());
        let engines = self.gpus.iter().any(|gpu| gpu.engine_weights == NOT_MEASURED);
        let engines = engines.then(|| format!("engine weights of GPUs {NOT_MEASURED}"));
        noted.chain(one_mix).chain(engines).collect()
    }
}

/// The file.
#[derive(Clone, Debug)]
pub struct CalibrationFile {
    path: PathBuf,
}

/// Why the file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}. Write it again with `wattcast-probe calibrate`, or name another directory with --state.dir", path.display())]
pub struct CalibrationFileError {
    path: PathBuf,
    what: String,
}

impl CalibrationFile {
    /// The file in `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join(FILE) }
    }

    /// Path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its content; `None` without the file.
    ///
    /// # Errors
    /// When it exists and cannot be read.
    pub fn load(&self) -> Result<Option<Calibration>, CalibrationFileError> {
        let text = state_file::read(&self.path, MAX_FILE).map_err(|what| self.failed(what))?;
        text.map(|text| parse(&text)).transpose().map_err(|what| self.failed(what))
    }

    /// Replaces the file atomically.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, calibration: &Calibration) -> Result<(), CalibrationFileError> {
        let mut text = serde_json::to_vec_pretty(calibration).map_err(|error| self.failed(error.to_string()))?;
        text.push(b'\n');
        state_file::replace(&self.path, &text).map_err(|error| self.failed(error.to_string()))
    }

    /// Checks that the file can be written later, without writing anything. Call it after the
    /// privileges are dropped.
    ///
    /// # Errors
    /// When the directory, or the nearest one above it that exists, is not writable.
    pub fn check_writable(&self) -> Result<(), CalibrationFileError> {
        state_file::check_writable(&self.path).map_err(|what| self.failed(what))
    }

    fn failed(&self, what: String) -> CalibrationFileError {
        CalibrationFileError { path: self.path.clone(), what }
    }
}

/// Parses the content of the file.
///
/// # Errors
/// Why the content is invalid.
pub fn parse(text: &[u8]) -> Result<Calibration, String> {
    /// Read first, because another version has other fields.
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let invalid = |error: serde_json::Error| format!("not a calibration ({error})");
    let Version { version } = serde_json::from_slice(text).map_err(invalid)?;
    if version != VERSION {
        return Err(format!("version {version}, and this is {VERSION}"));
    }
    let calibration: Calibration = serde_json::from_slice(text).map_err(invalid)?;
    let of_zones = calibration.zones.iter().flat_map(|zone| {
        let mixes = zone.mixes.iter().map(|mix| &mix.watts_per_core);
        [&zone.sleep].into_iter().chain(&zone.awake_step).chain(&zone.first_core).chain(mixes)
    });
    let of_gpus = calibration.gpus.iter().map(|gpu| &gpu.idle);
    let of_threads = calibration.smt_mixes.iter().map(|mix| &mix.weight);
    if of_zones.chain(of_gpus).chain(of_threads).chain(&calibration.smt_weight).any(|figure| !figure.is_valid()) {
        return Err("a figure is negative, too large, or outside of its own interval".to_owned());
    }
    Ok(calibration)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 1e6, and float to int saturates")]
fn millionths(value: f64) -> u64 {
    (value * 1e6).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64) -> Figure {
        Figure { value, low: value - 0.25, high: value + 0.25 }
    }

    fn machine() -> Machine {
        Machine {
            processor: "Xeon".to_owned(),
            microcode: "0xb000040".to_owned(),
            packages: 2,
            cpus: 72,
            id: "0011223344556677".to_owned(),
            source: "rapl".to_owned(),
        }
    }

    fn calibration() -> Calibration {
        let zone = ZoneFigures {
            zone: "package of package 0".to_owned(),
            sleep: figure(12.5),
            awake_step: Some(figure(16.5)),
            first_core: Some(figure(24.0)),
            mixes: vec![MixFigure { mix: "integer".to_owned(), watts_per_core: figure(4.5) }],
        };
        Calibration {
            zones: vec![zone],
            smt_weight: Some(figure(0.75)),
            notes: vec!["a note".to_owned()],
            ..Calibration::new(1_700_000_000, 120.0, machine())
        }
    }

    const DAY: i64 = 86_400;

    #[test]
    fn a_calibration_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = CalibrationFile::new(&dir.path().join("state"));
        assert_eq!(file.load().unwrap(), None);
        file.check_writable().unwrap();
        file.save(&calibration()).unwrap();
        assert_eq!(file.load().unwrap(), Some(calibration()));
        assert_eq!(fs::read_dir(dir.path().join("state")).unwrap().count(), 1, "no draft remains");
    }

    #[test]
    fn a_torn_or_impossible_calibration_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = CalibrationFile::new(dir.path());
        file.save(&calibration()).unwrap();
        let text = fs::read_to_string(file.path()).unwrap();
        let wrong = [
            text[..text.len() / 2].to_owned(),
            String::new(),
            "[1]".to_owned(),
            text.replace("\"version\": 1", "\"version\": 2"),
            text.replace("\"value\": 12.5", "\"value\": -1.0"),
            text.replace("\"value\": 12.5", "\"value\": 1e999"),
            text.replace("\"value\": 12.5", "\"value\": null"),
            text.replace("\"value\": 16.5", "\"value\": 99.0"),
        ];
        for wrong in wrong {
            assert_ne!(wrong, text);
            fs::write(file.path(), &wrong).unwrap();
            let error = file.load().unwrap_err().to_string();
            assert!(error.contains("wattcast-probe calibrate"), "{error}");
        }
        let large = text + &" ".repeat(1 << 20);
        fs::write(file.path(), large).unwrap();
        assert!(file.load().unwrap_err().to_string().contains("larger than"));
    }

    #[test]
    fn a_calibration_of_another_machine_is_not_used() {
        let now = 1_700_000_000 + 3 * DAY;
        let check = |machine: &Machine| calibration().check(machine, now, 90);
        assert_eq!(check(&machine()), Ok(()));
        let here = Machine { microcode: "0xb000041".to_owned(), ..machine() };
        assert_eq!(check(&here).unwrap_err(), "of another machine: microcode 0xb000040, here 0xb000041");
        let here = Machine { id: "8811223344556677".to_owned(), ..machine() };
        assert_eq!(check(&here).unwrap_err(), "of another machine: another machine id");
        let here = Machine { source: "simulated".to_owned(), ..machine() };
        assert_eq!(check(&here).unwrap_err(), "of another machine: energy from rapl, here simulated");
        let here = Machine { cpus: 36, ..machine() };
        assert_eq!(check(&here).unwrap_err(), "of another machine: CPUs online: 72, here 36");
    }

    #[test]
    fn a_calibration_becomes_old() {
        let check = |days: i64| calibration().check(&machine(), 1_700_000_000 + days * DAY, 90);
        assert_eq!((check(89), check(-89)), (Ok(()), Ok(())));
        assert_eq!(check(91).unwrap_err(), "too old: done 91 days ago, and --calibration.max-age is 90 days");
        assert!(check(-91).is_err(), "of a clock that was set back");
        assert_eq!(calibration().age(1_700_000_000), "today");
        assert_eq!(calibration().age(1_700_000_000 + DAY), "1 day ago");
    }

    #[test]
    fn seeds_have_the_step_only_where_it_is_certain() {
        let seeds = calibration().seeds(90);
        let seed = seeds["package of package 0"];
        assert_eq!(seed.idle, Estimate { uw: 12_500_000, low_uw: 12_250_000, high_uw: 12_750_000 });
        assert_eq!(seed.step.map(|step| step.uw), Some(16_500_000));
        assert_eq!((seed.since, seed.until), (1_700_000_000, 1_700_000_000 + 90 * DAY));
        assert_eq!(calibration().shared_milli(), Some(750));
        let mut uncertain = calibration();
        uncertain.zones[0].awake_step = Some(Figure { value: 16.5, low: 0.0, high: 40.0 });
        uncertain.smt_weight = Some(figure(0.25));
        assert_eq!(uncertain.seeds(90)["package of package 0"].step, None);
        assert_eq!(uncertain.shared_milli(), Some(500));
    }

    #[test]
    fn the_smt_weight_has_a_range_only_of_several_mixes() {
        let weight = |value: f64| Figure { value, low: value - 0.03125, high: value + 0.03125 };
        let of_mix = |mix: &str, value: f64| MixWeight { mix: mix.to_owned(), weight: weight(value) };
        let mut one = Calibration { smt_mixes: vec![of_mix("integer", 0.75)], notes: Vec::new(), ..calibration() };
        assert_eq!(one.shared_range_milli(), None);
        assert!(one.gaps()[0].contains("with one mix"), "{:?}", one.gaps());
        one.smt_mixes.push(of_mix("vector", 0.625));
        one.smt_weight = Some(Figure { value: 0.6875, low: 0.46875, high: 0.765625 });
        assert_eq!((one.shared_range_milli(), one.gaps()), (Some([500, 766]), Vec::new()));
        assert_eq!(parse(&serde_json::to_vec(&one).unwrap()).unwrap(), one);
        one.notes = vec!["SMT weight not measured: a reason".to_owned(), "another note".to_owned()];
        one.gpus = vec![GpuFigures {
            gpu: "GPU-1".to_owned(),
            source: "nvml".to_owned(),
            idle: figure(30.0),
            engine_weights: NOT_MEASURED.to_owned(),
        }];
        assert_eq!(one.gaps(), ["SMT weight not measured: a reason", "engine weights of GPUs not measured"]);
    }

    #[test]
    fn the_machine_is_that_of_its_directories() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
        fs::write(dir.path().join("cpuinfo"), "model name\t: Xeon\nmicrocode\t: 0x1\n\nmicrocode\t: 0x2\n").unwrap();
        let read = || Machine::read(dir.path(), dir.path(), &Topology::read(dir.path()), Origin::Perf);
        let first = read();
        assert_eq!((&*first.processor, &*first.microcode, first.packages), ("Xeon", "0x1", 1));
        assert!(first.id.len() == 16 && !first.id.contains("0123456789"), "{}", first.id);
        assert_eq!(first, read());
        fs::write(dir.path().join("etc/machine-id"), "f\n").unwrap();
        assert_ne!(first.id, read().id);
    }
}
