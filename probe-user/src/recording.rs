//! Recordings: the raw ticks of a machine in a file, and the same ticks out of it.
//!
//! A gzip stream of JSON lines: the first says what it is, of which version, and holds the setup; each other is one tick. CPU
//! time is written as what grew, by cgroup and CPU, so a quiet machine costs little. `zcat` shows it all; a plain file of
//! the same lines is read too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, Permissions},
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeSeq as _};

use crate::{
    cpu::{COUNTERS, CgroupKey, Queue, Reading, RunTime, Tier},
    energy::zone::{Origin, Zone},
    gpu::{Worked, engines::GpuId},
    jobs::{Job, command::MAX_OUTPUTS},
    tick::{News, RawTick, Setup},
    topology::MAX_CPUS,
};

const FORMAT: &str = "wattcast-recording";
/// Raised when an older reader would take a newer file wrong. 2: time beside a busy sibling, and hardware counters. 3: GPUs.
const VERSION: u32 = 3;
/// Longest line: a figure has up to 100 bytes, so a tick of 4096 cgroups that all ran on 64 CPUs has under 27 MB.
const MAX_LINE: u64 = 32 << 20;
/// Most counters and packages of a machine.
const MAX_ZONES: usize = 1024;
/// Most cgroups, and containers, that are believed to live at once.
const MAX_ITEMS: usize = 65_536;
/// Most figures of CPU time, by cgroup and CPU, or by cgroup and package, that are held at once.
const MAX_FIGURES: usize = 1 << 20;
/// Longest text in a line that becomes a label.
const MAX_TEXT: usize = 1024;
/// Longest reason why a tier does not serve.
const MAX_REASON: usize = 4096;
/// Ticks between two points up to which a torn file can be read.
const FLUSH_EVERY: u32 = 10;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    /// The probe that wrote it.
    probe: String,
    setup: Setup,
}

/// A reading, or what the reading said instead.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Value {
    Raw(u64),
    Failed(String),
}

/// What grew on one CPU, written as a list whose last zeros are left out: its number, nanoseconds alone, nanoseconds shared, and
/// hardware events.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Grown(usize, u64, #[serde(default)] u64, #[serde(default)] u64, #[serde(default)] u64, #[serde(default)] u64);

impl Serialize for Grown {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let numbers = [self.1, self.2, self.3, self.4, self.5];
        let used = numbers.iter().rposition(|number| *number != 0).map_or(1, |last| last + 1);
        let mut list = to.serialize_seq(Some(used + 1))?;
        list.serialize_element(&self.0)?;
        numbers[..used].iter().try_for_each(|number| list.serialize_element(number))?;
        list.end()
    }
}

/// Cumulative time, as the first files had it or as later ones.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Overflow {
    Alone(u64),
    Both(u64, u64),
}

impl Overflow {
    fn of(time: &RunTime) -> Self {
        if time.shared_ns == 0 { Self::Alone(time.alone_ns) } else { Self::Both(time.alone_ns, time.shared_ns) }
    }

    fn time(self) -> RunTime {
        match self {
            Self::Alone(alone_ns) => RunTime { alone_ns, shared_ns: 0 },
            Self::Both(alone_ns, shared_ns) => RunTime { alone_ns, shared_ns },
        }
    }
}

/// What a cgroup did on one CPU, cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cell {
    time: RunTime,
    counted: [u64; COUNTERS],
}

impl Cell {
    /// What grew on CPU `cpu` since `before`; nothing where nothing did.
    fn since(&self, cpu: usize, before: &Self) -> Option<Grown> {
        let time = |of: fn(&RunTime) -> u64| of(&self.time).saturating_sub(of(&before.time));
        let counted = |at: usize| self.counted[at].wrapping_sub(before.counted[at]);
        (self != before).then(|| {
            Grown(cpu, time(|time| time.alone_ns), time(|time| time.shared_ns), counted(0), counted(1), counted(2))
        })
    }

    /// Adds what grew; nothing where that is more than there can be.
    fn add(&mut self, grown: &Grown) -> Option<()> {
        self.time.alone_ns = self.time.alone_ns.checked_add(grown.1)?;
        self.time.shared_ns = self.time.shared_ns.checked_add(grown.2)?;
        for (sum, grown) in self.counted.iter_mut().zip([grown.3, grown.4, grown.5]) {
            *sum = sum.wrapping_add(grown);
        }
        Some(())
    }
}

/// A tick as a line. Names are short because there are many lines.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// Unix nanoseconds; then nanoseconds since the start: reading began, energy was read, CPU time was read.
    unix: i64,
    began: u64,
    energy: u64,
    cpu: u64,
    /// CPU time of the probe that recorded.
    #[serde(default)]
    own: u64,
    zones: Vec<Value>,
    /// By cgroup: CPU number and nanoseconds that grew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ran: Option<Vec<(CgroupKey, Vec<Grown>)>>,
    /// Waits and switches, cumulative, of the cgroups for which they changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    queues: Vec<(CgroupKey, Queue)>,
    /// Cumulative time of cgroups without a place, by CPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    overflow: Vec<Overflow>,
    /// Nanoseconds that hardware counters were wanted, and that they ran; cumulative.
    #[serde(default, skip_serializing_if = "is_never")]
    counter_time: [u64; 2],
    #[serde(default)]
    missed: u64,
    /// Why there is no CPU time in this tick.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
    /// CPU nanoseconds of each job since it began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    jobs: Vec<(u32, u64)>,
    /// When GPUs were read, and who used them.
    #[serde(default, skip_serializing_if = "is_nought")]
    gpu: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gpus: Vec<(GpuId, Worked)>,
    #[serde(default)]
    news: News,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_nought(ns: &u64) -> bool {
    *ns == 0
}

fn is_never(time: &[u64; 2]) -> bool {
    *time == [0, 0]
}

/// Why a recording cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file cannot be opened, read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not a recording, of another version, or torn.
    #[error("{}, line {line}: {what}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
}

/// A recording that is being written.
pub struct Writer {
    path: PathBuf,
    out: GzEncoder<BufWriter<File>>,
    last: BTreeMap<CgroupKey, Vec<Cell>>,
    queues: BTreeMap<CgroupKey, Queue>,
    ticks: u32,
}

impl Writer {
    /// Makes the file, or empties it, and writes its first line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, setup: &Setup) -> Result<Self, RecordingError> {
        let failed = |error| RecordingError::Io { path: path.to_owned(), error };
        // Written as root, often to where others may write: a link there must not choose another file. And who ran when, at a
        // tenth of a second, is nobody else's business.
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(path).map_err(failed)?;
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
        let out = GzEncoder::new(BufWriter::new(file), Compression::default());
        let mut this = Self { path: path.to_owned(), out, last: BTreeMap::new(), queues: BTreeMap::new(), ticks: 0 };
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            probe: exporter::program::VERSION.to_owned(),
            setup: setup.clone(),
        };
        this.line(&header).map_err(failed)?;
        Ok(this)
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")
    }

    /// Adds a tick.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, tick: &RawTick) -> Result<(), RecordingError> {
        for key in &tick.news.departed {
            self.last.remove(key);
            self.queues.remove(key);
        }
        let mut queues = Vec::new();
        let (mut ran, mut overflow, mut missed, mut failed) = (None, Vec::new(), 0, None);
        let mut counter_time = [0, 0];
        match &tick.cpu {
            None => {}
            Some(Err(error)) => failed = Some(error.clone()),
            Some(Ok(reading)) => {
                let mut rows = Vec::new();
                for (at, (key, now)) in reading.rows.iter().enumerate() {
                    let new = !self.last.contains_key(key);
                    let before = self.last.entry(*key).or_default();
                    before.resize(now.len(), Cell::default());
                    let counted = reading.counted.get(at).into_iter().flatten().copied();
                    let cells = now.iter().zip(counted.chain(std::iter::repeat([0; COUNTERS])));
                    let mut grown = Vec::new();
                    for ((cpu, (time, counted)), before) in cells.enumerate().zip(before) {
                        let cell = Cell { time: *time, counted };
                        grown.extend(cell.since(cpu, before));
                        *before = cell;
                    }
                    if new || !grown.is_empty() {
                        rows.push((*key, grown));
                    }
                }
                rows.sort_unstable_by_key(|(key, _)| *key);
                let new = reading.queues.iter().filter(|(key, queue)| self.queues.insert(*key, *queue) != Some(*queue));
                queues = new.copied().collect();
                queues.sort_unstable_by_key(|(key, _)| *key);
                (ran, missed) = (Some(rows), reading.missed);
                overflow.extend(reading.overflow.iter().map(Overflow::of));
                counter_time = reading.counter_time;
            }
        }
        let value = |value: &Result<u64, String>| match value {
            Ok(raw) => Value::Raw(*raw),
            Err(error) => Value::Failed(error.clone()),
        };
        let line = Line {
            unix: tick.unix_ns,
            began: tick.began_ns,
            energy: tick.energy_ns,
            cpu: tick.cpu_ns,
            own: tick.own_ns,
            zones: tick.zones.iter().map(value).collect(),
            ran,
            queues,
            overflow,
            counter_time,
            missed,
            failed,
            jobs: tick.jobs.clone(),
            gpu: tick.gpu_ns,
            gpus: tick.gpus.clone(),
            news: tick.news.clone(),
        };
        self.ticks += 1;
        let flush = self.ticks.is_multiple_of(FLUSH_EVERY);
        let written = self.line(&line).and_then(|()| if flush { self.out.flush() } else { Ok(()) });
        written.map_err(|error| RecordingError::Io { path: self.path.clone(), error })
    }

    /// Ends the file; gives how many ticks are in it.
    ///
    /// # Errors
    /// When the end cannot be written.
    pub fn finish(self) -> Result<u32, RecordingError> {
        let Self { path, out, ticks, .. } = self;
        let end = out.finish().and_then(|mut file| {
            file.flush()?;
            file.get_ref().sync_all()
        });
        end.map(|()| ticks).map_err(|error| RecordingError::Io { path, error })
    }
}

/// A recording that is being read. Its ticks come out as they went in. Its origin is [`Origin::Replay`], but what was modelled
/// when it was recorded is modelled still.
pub struct Reader<R = Box<dyn Read + Send>> {
    path: PathBuf,
    lines: BufReader<R>,
    line: u64,
    setup: Setup,
    probe: String,
    origin: Option<Origin>,
    totals: BTreeMap<CgroupKey, Vec<Cell>>,
    queues: BTreeMap<CgroupKey, Queue>,
    figures: usize,
    cpus: usize,
    known: BTreeSet<CgroupKey>,
    containers: BTreeSet<u32>,
    jobs: BTreeSet<u32>,
    last_energy_ns: Option<u64>,
    last_gpu_ns: u64,
    /// Counters that came after the first line.
    later: Vec<Zone>,
}

impl Reader {
    /// Opens a file and reads its first line.
    ///
    /// # Errors
    /// When it cannot be read, or is not a recording that this program knows.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let failed = |error| RecordingError::Io { path: path.to_owned(), error };
        let mut file = BufReader::new(File::open(path).map_err(failed)?);
        let zipped = file.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
        let bytes: Box<dyn Read + Send> = if zipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        Self::start(path, bytes)
    }
}

impl<R: Read> Reader<R> {
    /// Reads the first line of `bytes`; `path` is for messages.
    ///
    /// # Errors
    /// When they are not a recording that this program knows.
    pub fn start(path: &Path, bytes: R) -> Result<Self, RecordingError> {
        let empty = Setup {
            origin: None,
            zones: Vec::new(),
            idle_uw: Vec::new(),
            packages: Vec::new(),
            places: Vec::new(),
            smt: false,
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
            known: BTreeSet::new(),
            containers: BTreeSet::new(),
            jobs: BTreeSet::new(),
            last_energy_ns: None,
            last_gpu_ns: 0,
            later: Vec::new(),
        };
        let Some(first) = this.next_line()? else { return Err(this.wrong("the file is empty")) };
        let header: Header =
            serde_json::from_slice(&first).map_err(|error| this.wrong(format!("not a recording ({error})")))?;
        if header.format != FORMAT {
            return Err(this.wrong("not a recording of wattcast-probe"));
        }
        if !(1..=VERSION).contains(&header.version) {
            return Err(
                this.wrong(format!("version {} of the format; this probe knows 1 to {VERSION}", header.version))
            );
        }
        sound(&header.setup).map_err(|what| this.wrong(what))?;
        this.cpus = header.setup.columns().0.len();
        this.origin = header.setup.origin;
        this.probe = header.probe.chars().take(80).collect();
        this.setup = header.setup;
        this.setup.origin = this.setup.origin.map(replayed);
        this.setup.zones.iter_mut().for_each(|zone| zone.origin = zone.origin.map(replayed));
        Ok(this)
    }

    /// What holds for every tick.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Where the joules were recorded from, and the probe that did.
    #[must_use]
    pub fn recorded(&self) -> (Option<Origin>, &str) {
        (self.origin, &self.probe)
    }

    fn wrong(&self, what: impl Into<String>) -> RecordingError {
        RecordingError::Content { path: self.path.clone(), line: self.line, what: what.into() }
    }

    fn next_line(&mut self) -> Result<Option<Vec<u8>>, RecordingError> {
        let mut line = Vec::new();
        self.line += 1;
        let read = (&mut self.lines).take(MAX_LINE + 1).read_until(b'\n', &mut line);
        match read {
            Ok(0) => Ok(None),
            Ok(_) if line.last() == Some(&b'\n') => Ok(Some(line)),
            Ok(read) if u64::try_from(read).is_ok_and(|read| read > MAX_LINE) => Err(self.wrong("too long a line")),
            Ok(_) => Err(self.wrong("the file ends in the middle of a tick; all before it is whole")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.wrong("the file was not ended; all before this is whole"))
            }
            Err(error) => Err(RecordingError::Io { path: self.path.clone(), error }),
        }
    }

    /// The next tick; `None` at the end.
    ///
    /// # Errors
    /// When the file is torn or alien from here on. What came before stands.
    pub fn next_tick(&mut self) -> Result<Option<RawTick>, RecordingError> {
        let Some(text) = self.next_line()? else { return Ok(None) };
        let line: Line = serde_json::from_slice(&text).map_err(|error| self.wrong(format!("not a tick ({error})")))?;
        self.tick(line).map(Some).map_err(|what| self.wrong(what))
    }

    fn tick(&mut self, mut line: Line) -> Result<RawTick, String> {
        if !line.news.zones.is_empty() {
            // A counter that comes later is another kind than the machine's, and says how it is read.
            line.news.zones.iter_mut().for_each(|zone| zone.origin = zone.origin.map(replayed));
            self.later.extend(line.news.zones.iter().cloned());
            sound_zones(self.setup.zones.iter().chain(&self.later))?;
        }
        let zones = self.setup.zones.len() + self.later.len();
        if line.zones.len() != zones {
            return Err(format!("{} readings of {zones} counters", line.zones.len()));
        }
        if line.gpu < self.last_gpu_ns {
            return Err("time goes backwards".to_owned());
        }
        self.last_gpu_ns = line.gpu;
        let uses = line.gpus.iter().map(|(_, worked)| worked.uses.len());
        if line.gpus.len() > MAX_ZONES || uses.sum::<usize>() > MAX_ITEMS {
            return Err("more GPUs or users of them than a machine has".to_owned());
        }
        if line.energy < line.began
            || line.cpu < line.energy
            || self.last_energy_ns.is_some_and(|last| line.began < last)
        {
            return Err("time goes backwards".to_owned());
        }
        self.last_energy_ns = Some(line.energy);
        let texts = line.news.shown.iter().flat_map(|shown| [&shown.name, &shown.id, &shown.image]);
        if texts.into_iter().any(|text| text.len() > MAX_TEXT) {
            return Err("a container's name is too long".to_owned());
        }
        if let Some(places) = &line.news.places {
            check_places(places, self.setup.packages.len())?;
            if self.setup.knows_cpus() {
                self.cpus = self.cpus.max(places.len());
            }
        }
        for key in &line.news.departed {
            self.figures -= self.totals.remove(key).map_or(0, |totals| totals.len());
            self.known.remove(key);
            self.queues.remove(key);
        }
        self.queues.extend(line.queues);
        if self.queues.len() > MAX_ITEMS {
            return Err("more cgroups than a kernel counts".to_owned());
        }
        self.known.extend(line.news.holders.iter().map(|(key, _)| *key));
        self.containers.extend(line.news.shown.iter().map(|shown| shown.number));
        if line.news.reserved.iter().any(|(number, _)| !self.containers.contains(number)) {
            return Err("a reservation of nobody".to_owned());
        }
        if self.known.len() > MAX_ITEMS || self.containers.len() > MAX_ITEMS {
            return Err("more cgroups or containers than a machine has".to_owned());
        }
        for number in &line.news.ended {
            self.containers.remove(number);
        }
        self.jobs(&line.news)?;
        let cpu = match (line.ran, line.failed) {
            (_, Some(error)) => Some(Err(error)),
            (None, None) => None,
            (Some(ran), None) => {
                for (key, grown) in ran {
                    if self.totals.len() >= MAX_ITEMS {
                        return Err("more cgroups than a kernel counts".to_owned());
                    }
                    if self.totals.len().saturating_mul(self.setup.packages.len()) > MAX_FIGURES {
                        return Err("more cgroups and packages than a kernel counts".to_owned());
                    }
                    let totals = self.totals.entry(key).or_default();
                    for grown in grown {
                        let cpu = grown.0;
                        if cpu >= self.cpus {
                            return Err(format!("CPU {cpu} of a machine of {}", self.cpus));
                        }
                        if totals.len() <= cpu {
                            self.figures += cpu + 1 - totals.len();
                            totals.resize(cpu + 1, Cell::default());
                        }
                        if self.figures > MAX_FIGURES {
                            return Err("more CPU time than a kernel counts".to_owned());
                        }
                        totals[cpu].add(&grown).ok_or("more CPU time than there is")?;
                    }
                }
                if line.overflow.len() > MAX_CPUS {
                    return Err("more CPUs than a kernel has".to_owned());
                }
                let times = |cells: &Vec<Cell>| cells.iter().map(|cell| cell.time).collect();
                let rows = self.totals.iter().map(|(key, cells)| (*key, times(cells))).collect();
                let counts = self.setup.cpu.as_ref().is_some_and(|cpu| cpu.tier == Tier::Counters);
                let counted = self.totals.values().filter(|_| counts);
                let counted = counted.map(|cells| cells.iter().map(|cell| cell.counted).collect()).collect();
                let queues = self.queues.iter().map(|(key, queue)| (*key, *queue)).collect();
                let overflow = line.overflow.into_iter().map(Overflow::time).collect();
                let (counter_time, missed) = (line.counter_time, line.missed);
                Some(Ok(Reading { rows, counted, counter_time, queues, overflow, missed }))
            }
        };
        let value = |value| match value {
            Value::Raw(raw) => Ok(raw),
            Value::Failed(error) => Err(error),
        };
        Ok(RawTick {
            // Whole microseconds, as everything that is asked for.
            unix_ns: line.unix / 1000 * 1000,
            began_ns: line.began,
            energy_ns: line.energy,
            cpu_ns: line.cpu,
            own_ns: line.own,
            zones: line.zones.into_iter().map(value).collect(),
            cpu,
            jobs: line.jobs,
            gpu_ns: line.gpu,
            gpus: line.gpus,
            news: line.news,
        })
    }

    /// What a line says of jobs: not more of them than are followed, in texts of a length that labels have.
    fn jobs(&mut self, news: &News) -> Result<(), String> {
        self.jobs.extend(news.jobs.iter().map(|job| job.number));
        if self.jobs.len() > MAX_ITEMS {
            return Err("more jobs than a machine has".to_owned());
        }
        for number in &news.jobs_gone {
            self.jobs.remove(number);
        }
        let texts = news.jobs.iter().flat_map(|Job { command, .. }| {
            let outputs = command.outputs.iter();
            let of_outputs = outputs.flat_map(|out| [&out.name, &out.kind, &out.codec, &out.encoder, &out.preset]);
            let of_progress = command.progress.iter().flat_map(|progress| [&progress.kind, &progress.stream]);
            of_outputs.chain(of_progress).chain([&command.input])
        });
        if texts.into_iter().any(|text| text.len() > MAX_TEXT) {
            return Err("a job's name is too long".to_owned());
        }
        if news.jobs.iter().any(|job| job.command.outputs.len() > MAX_OUTPUTS) {
            return Err("a job of too many outputs".to_owned());
        }
        Ok(())
    }
}

/// What a setup must be for the arithmetic to hold.
fn sound(setup: &Setup) -> Result<(), String> {
    if setup.cpu.as_ref().is_some_and(|cpu| cpu.reason.len() > MAX_REASON) {
        return Err("a reason that is too long".to_owned());
    }
    if setup.packages.len() > MAX_ZONES || setup.packages.is_empty() {
        return Err("more packages than a machine has, or none".to_owned());
    }
    if setup.idle_uw.len() != setup.zones.len() {
        return Err("idle powers that do not fit the counters".to_owned());
    }
    sound_zones(setup.zones.iter())?;
    check_places(&setup.places, setup.packages.len())
}

fn sound_zones<'a>(zones: impl Iterator<Item = &'a Zone> + Clone) -> Result<(), String> {
    let mut ids: Vec<_> = zones.clone().take(MAX_ZONES + 1).map(|zone| zone.id).collect();
    if ids.len() > MAX_ZONES {
        return Err("more counters than a machine has".to_owned());
    }
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("two counters of one zone".to_owned());
    }
    if zones.clone().any(|zone| !zone.unit.is_sound() || zone.place.len() > MAX_TEXT) {
        return Err("a counter whose unit is nothing".to_owned());
    }
    Ok(())
}

/// What was measured when it was recorded is a replay's now; what was modelled is modelled still.
fn replayed(origin: Origin) -> Origin {
    if origin == Origin::Model { origin } else { Origin::Replay }
}

fn check_places(places: &[Option<usize>], packages: usize) -> Result<(), String> {
    if places.len() > MAX_CPUS || places.iter().flatten().any(|package| *package >= packages) {
        return Err("CPUs that are on no package".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        containers::Container,
        cpu::{Knows, hierarchy},
        energy::zone::{Range, Zone, ZoneId, ZoneKind},
        ledger::Holder,
        tick::Collected,
        topology::PackageId,
    };

    fn setup() -> Setup {
        let id = ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package };
        Setup {
            origin: Some(Origin::Perf),
            zones: vec![Zone::microjoules(id, Range::Wraps(1 << 38), "here".into())],
            idle_uw: vec![None],
            packages: vec![PackageId::whole(0)],
            places: vec![Some(0), Some(0)],
            smt: true,
            lag_ns: 4_000_000,
            cpu: Some(Collected::at_the_switch(true)),
        }
    }

    fn key(id: u64) -> CgroupKey {
        CgroupKey { id, hierarchy: hierarchy::V2 }
    }

    fn queues(second: u64) -> Vec<(CgroupKey, Queue)> {
        if second == 4 {
            return vec![];
        }
        let waits = [second; crate::cpu::WAIT_CLASSES];
        vec![(key(7), Queue { wait_ns: 1000 * second, waits, voluntary: second, involuntary: 2 * second })]
    }

    fn container() -> Container {
        Container::plain(0, "a \"name\"".into(), "0123".into(), "docker")
    }

    fn ticks() -> Vec<RawTick> {
        let tick = |second: u64, zone: Result<u64, String>, rows: Vec<(CgroupKey, Vec<RunTime>)>, news: News| RawTick {
            unix_ns: 1_700_000_000_000_000_000 + i64::try_from(second).unwrap() * 1_000_000_000,
            began_ns: second * 1_000_000_000,
            energy_ns: second * 1_000_000_000 + 10_000,
            cpu_ns: second * 1_000_000_000 + 50_000,
            own_ns: second * 700_000,
            zones: vec![zone],
            cpu: Some(Ok(Reading {
                rows,
                overflow: vec![RunTime::default(), RunTime { alone_ns: second, shared_ns: second / 2 }],
                missed: second,
                queues: queues(second),
                ..Reading::default()
            })),
            jobs: vec![(0, second * 1000)],
            gpu_ns: second * 1_000_000_000 + 70_000,
            gpus: Vec::new(),
            news,
        };
        let row = |ns: [u64; 2]| ns.map(RunTime::alone).to_vec();
        let both = RunTime { alone_ns: 0, shared_ns: 2 };
        let born = News { holders: vec![(key(7), Holder::Container(0))], shown: vec![container()], ..News::default() };
        let gone = News { departed: vec![key(7)], ended: vec![0], dropped: 3, ..News::default() };
        let mut broken = tick(3, Err("EIO".into()), vec![], News::default());
        broken.cpu = Some(Err("refused".into()));
        vec![
            tick(1, Ok(u64::MAX), vec![(key(3), row([10, 0])), (key(7), row([0, 0]))], born),
            tick(
                2,
                Ok(5),
                vec![(key(3), row([10, 5])), (key(7), vec![RunTime::alone(1 << 60), both])],
                News::default(),
            ),
            broken,
            tick(4, Ok(9), vec![(key(3), row([11, 5]))], gone),
        ]
    }

    fn record(path: &Path) {
        let mut writer = Writer::create(path, &setup()).unwrap();
        ticks().iter().for_each(|tick| writer.write(tick).unwrap());
        assert_eq!(writer.finish().unwrap(), 4);
    }

    /// Totals that were never above zero on the last CPUs need not come back.
    fn trimmed(mut tick: RawTick) -> RawTick {
        if let Some(Ok(reading)) = &mut tick.cpu {
            for (_, totals) in &mut reading.rows {
                while totals.last() == Some(&RunTime::default()) {
                    totals.pop();
                }
            }
        }
        tick
    }

    #[test]
    fn hardware_counters_and_a_tier_without_cpus_come_out_as_they_went_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.rec");
        let collected = |tier, cpus| Collected { tier, knows: Knows { cpus, siblings: cpus }, reason: "why".into() };
        let tick = |rows: Vec<(CgroupKey, Vec<RunTime>)>, counted, counter_time| RawTick {
            zones: vec![Ok(1)],
            cpu: Some(Ok(Reading { rows, counted, counter_time, ..Reading::default() })),
            ..RawTick::default()
        };
        let counted = vec![vec![[5, 0, 0], [u64::MAX, 6, 7]]];
        let ticks = [
            (collected(Tier::Counters, true), tick(vec![(key(7), vec![RunTime::alone(3); 2])], counted, [9, 8])),
            (collected(Tier::Files, false), tick(vec![(key(7), vec![RunTime::alone(3)])], vec![], [0, 0])),
        ];
        for (cpu, tick) in ticks {
            let setup = Setup { cpu: Some(cpu), ..setup() };
            let mut writer = Writer::create(&path, &setup).unwrap();
            writer.write(&tick).unwrap();
            writer.finish().unwrap();
            let reader = Reader::open(&path).unwrap();
            assert_eq!(reader.setup().cpu, setup.cpu);
            assert_eq!(read(reader), [tick]);
        }
    }

    #[test]
    fn gpus_come_out_as_they_went_in_and_two_counters_of_one_are_refused() {
        use crate::{
            energy::zone::{Ceiling, ZoneKind},
            gpu::{Shared, engines::ENGINES},
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.rec");
        let gpu = GpuId::Nvidia(0xfa4e);
        let id = ZoneId { package: None, kind: ZoneKind::Gpu(gpu) };
        let place = "GPU 0".to_owned();
        let board = |origin| Zone {
            ceiling: Ceiling::Limit(70_000_000),
            origin: Some(origin),
            ..Zone::microjoules(id, Range::Endless, place.clone())
        };
        let used = |holder, job| Shared { holder, job, times: [7; ENGINES] };
        let uses = vec![used(Some(Holder::Container(0)), Some(3)), used(None, None)];
        let came = |origin| News { zones: vec![board(origin)], ..News::default() };
        let tick = |news: News| RawTick {
            zones: vec![Ok(1), Ok(2)],
            gpu_ns: 5,
            gpus: vec![(gpu, Worked { waits: true, uses: uses.clone(), ..Worked::default() })],
            news,
            ..RawTick::default()
        };
        let first = RawTick { zones: vec![Ok(1)], ..RawTick::default() };
        let write = |ticks: &[RawTick]| {
            let mut writer = Writer::create(&path, &setup()).unwrap();
            ticks.iter().for_each(|tick| writer.write(tick).unwrap());
            writer.finish().unwrap();
        };
        write(&[first.clone(), tick(came(Origin::Nvml)), tick(News::default())]);
        let expected = [first.clone(), tick(came(Origin::Replay)), tick(News::default())];
        assert_eq!(read(Reader::open(&path).unwrap()), expected);
        write(&[first, tick(came(Origin::Nvml)), tick(came(Origin::Nvml))]);
        let mut reader = Reader::open(&path).unwrap();
        let refused = std::iter::from_fn(|| reader.next_tick().transpose()).find_map(Result::err).unwrap();
        assert!(refused.to_string().contains("two counters of one zone"), "{refused}");
    }

    #[test]
    fn a_file_of_the_first_version_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.rec");
        record(&path);
        let mut text = String::new();
        MultiGzDecoder::new(File::open(&path).unwrap()).read_to_string(&mut text).unwrap();
        let first = text.lines().next().unwrap();
        let mut header: serde_json::Value = serde_json::from_str(first).unwrap();
        header["version"] = 1.into();
        header["setup"]["cpu"] = true.into();
        let line = "{\"unix\":0,\"began\":0,\"energy\":1,\"cpu\":2,\"zones\":[1],\"ran\":[[{\"id\":7,\"hierarchy\":0},\
                    [[1,5]]]],\"overflow\":[0,4]}\n";
        let old = format!("{header}\n{line}");
        let mut reader = Reader::start(&path, old.as_bytes()).unwrap();
        assert_eq!(reader.setup().cpu, Some(Collected::at_the_switch(false)));
        let reading = reader.next_tick().unwrap().unwrap().cpu.unwrap().unwrap();
        assert_eq!(reading.rows, [(key(7), vec![RunTime::default(), RunTime::alone(5)])]);
        assert_eq!(reading.overflow, [RunTime::default(), RunTime::alone(4)]);
    }

    fn read(mut reader: Reader<impl Read>) -> Vec<RawTick> {
        std::iter::from_fn(|| reader.next_tick().unwrap()).collect()
    }

    #[test]
    fn what_went_in_comes_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.rec");
        record(&path);
        let reader = Reader::open(&path).unwrap();
        assert_eq!(*reader.setup(), Setup { origin: Some(Origin::Replay), ..setup() });
        assert_eq!(reader.recorded().0, Some(Origin::Perf));
        let expected: Vec<_> = ticks().into_iter().map(trimmed).collect();
        assert_eq!(read(reader), expected);
        // The same lines without the compression.
        let mut plain = Vec::new();
        MultiGzDecoder::new(File::open(&path).unwrap()).read_to_end(&mut plain).unwrap();
        assert_eq!(read(Reader::start(&path, &*plain).unwrap()), expected);
    }

    #[test]
    fn what_was_modelled_is_modelled_still() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.rec");
        let modelled = Setup { origin: Some(Origin::Model), idle_uw: vec![Some(1)], ..setup() };
        Writer::create(&path, &modelled).unwrap().finish().unwrap();
        assert_eq!(Reader::open(&path).unwrap().setup().origin, Some(Origin::Model));
    }

    #[test]
    fn it_is_its_owners_alone_and_no_link_leads_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let (precious, link) = (dir.path().join("precious"), dir.path().join("a.rec"));
        std::fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, &link).unwrap();
        assert!(Writer::create(&link, &setup()).is_err());
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        let path = dir.path().join("b.rec");
        Writer::create(&path, &setup()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_small_file_cannot_ask_for_much_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.rec");
        record(&path);
        let mut plain = String::new();
        MultiGzDecoder::new(File::open(&path).unwrap()).read_to_string(&mut plain).unwrap();
        let header = plain.lines().next().unwrap();
        let tick = |ran: &str| {
            format!("{header}\n{{\"unix\":0,\"began\":0,\"energy\":0,\"cpu\":0,\"zones\":[0],\"ran\":[{ran}]}}\n")
        };
        let ran = |id: usize, cpu: usize| format!("[{{\"id\":{id},\"hierarchy\":0}},[[{cpu},1]]]");
        let read = |text: &str| {
            let mut reader = Reader::start(&path, text.as_bytes()).unwrap();
            reader.next_tick().map(|tick| tick.is_some()).map_err(|error| error.to_string())
        };
        assert_eq!(read(&tick(&ran(1, 1))), Ok(true));
        assert!(read(&tick(&ran(1, 8000))).unwrap_err().contains("CPU 8000 of a machine of 2"));
        let many: Vec<String> = (0..=MAX_ITEMS).map(|id| ran(id, 1)).collect();
        assert!(read(&tick(&many.join(","))).unwrap_err().contains("more cgroups"));
    }

    #[test]
    fn a_torn_file_is_read_up_to_where_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.rec");
        record(&path);
        let mut plain = Vec::new();
        MultiGzDecoder::new(File::open(&path).unwrap()).read_to_end(&mut plain).unwrap();
        let end = plain.len() - 20;
        let mut reader = Reader::start(&path, &plain[..end]).unwrap();
        let whole = (0..3).filter(|_| reader.next_tick().unwrap().is_some()).count();
        assert_eq!(whole, 3);
        let error = reader.next_tick().unwrap_err().to_string();
        assert!(error.contains("line 5") && error.contains("middle of a tick"), "{error}");
    }

    #[test]
    fn alien_files_and_other_versions_are_said() {
        let path = Path::new("x.rec");
        for (text, word) in [
            ("", "empty"),
            ("hello\n", "not a recording"),
            ("{\"format\":\"other\",\"version\":1}\n", "not a recording"),
        ] {
            let error = Reader::start(path, text.as_bytes()).err().unwrap().to_string();
            assert!(error.contains(word) && error.contains("x.rec"), "{error}");
        }
        let mut header = serde_json::to_value(Header {
            format: FORMAT.into(),
            version: VERSION,
            probe: String::new(),
            setup: setup(),
        })
        .unwrap();
        let mut open = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut changed = header.clone();
            change(&mut changed);
            header = header.clone();
            let text = format!("{changed}\n");
            Reader::start(path, text.as_bytes()).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(open(&|_| {}), "");
        assert!(open(&|header| header["version"] = 4.into()).contains("version 4"));
        assert!(open(&|header| header["setup"]["places"] = serde_json::json!([7])).contains("on no package"));
        assert!(
            open(&|header| header["setup"]["zones"][0]["unit"]["denominator"] = 0.into()).contains("unit is nothing")
        );
        assert!(open(&|header| header["setup"]["idle_uw"] = serde_json::json!([])).contains("do not fit"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..3000) {
            let path = Path::new("x");
            let _ = Reader::start(path, &*bytes);
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("a.rec");
            record(&file);
            let mut plain = Vec::new();
            MultiGzDecoder::new(File::open(&file).unwrap()).read_to_end(&mut plain).unwrap();
            let at = at.min(plain.len());
            let end = (at + bytes.len()).min(plain.len());
            plain.splice(at..end, bytes);
            if let Ok(mut reader) = Reader::start(path, &*plain) {
                while let Ok(Some(_)) = reader.next_tick() {}
            }
        }
    }
}
