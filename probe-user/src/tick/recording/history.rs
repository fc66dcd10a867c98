//! The last hour of ticks on disk: recordings in segments, each complete by itself.
//!
//! The sampler hands a copy of each tick to a thread, which writes it; a slow disk costs ticks in
//! the file and never delays one. The last tick of a segment is also the first of the next, so
//! consecutive segments have no gap. The oldest segments are removed when they are too old, or all
//! together too large.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tracing::warn;

use super::{format::RecordingError, writer::Writer};
use crate::{
    cgroup::CgroupKey,
    containers::{ChargeTarget, Container},
    energy::zone::Zone,
    jobs::{Job, stage::StageTimes},
    tick::raw::{RawTick, Setup, TickChanges},
};

/// Directory below the state directory.
pub const HISTORY_DIR: &str = "history";
/// Maximum size of all segments together in bytes.
pub const HISTORY_BYTES: u64 = 64 << 20;
/// Segments of the kept time. One more is being written.
const SEGMENTS: u32 = 6;
/// Size at which a segment ends before its time.
const SEGMENT_BYTES: u64 = HISTORY_BYTES / 8;
/// A file that is larger was not written here, and is not read.
const MAX_SEGMENT_BYTES: u64 = 2 * SEGMENT_BYTES;
/// Ticks between two looks at the size of the segment.
const SIZE_INTERVAL: u32 = 10;
/// Ticks that may wait for the disk.
const QUEUE: usize = 8;
/// Maximum time for writing the last ticks at the end.
const STOP_TIMEOUT: Duration = Duration::from_millis(200);
/// Maximum number of directory entries that are read.
const MAX_FILES: usize = 4096;
const PREFIX: &str = "ticks-";
const SUFFIX: &str = ".rec";

/// A segment on disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    /// Unix microseconds of its first tick.
    pub start_us: u64,
    pub path: PathBuf,
    pub bytes: u64,
}

impl Segment {
    /// True for a file that is larger than a segment can be.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.bytes > MAX_SEGMENT_BYTES
    }
}

/// The segments in a directory, oldest first. Other files are left alone.
#[must_use]
pub fn segments(directory: &Path) -> Vec<Segment> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let segment = |entry: fs::DirEntry| {
        let name = entry.file_name();
        let number = name.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let digits = number.len() == 20 && number.bytes().all(|byte| byte.is_ascii_digit());
        let (path, metadata) = (entry.path(), entry.metadata().ok()?);
        // The metadata of an entry are those of a link itself.
        (digits && metadata.is_file()).then_some(())?;
        Some(Segment { start_us: number.parse().ok()?, path, bytes: metadata.len() })
    };
    let mut segments: Vec<Segment> = entries.take(MAX_FILES).filter_map(Result::ok).filter_map(segment).collect();
    segments.sort_unstable();
    segments
}

/// Removes the segments that ended more than `keep` before `now_us`, those that began after it,
/// and the oldest ones above `limit` bytes.
fn remove_old(directory: &Path, now_us: u64, keep: Duration, limit: u64) {
    let segments = segments(directory);
    let oldest = now_us.saturating_sub(u64::try_from(keep.as_micros()).unwrap_or(u64::MAX));
    let mut bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    for (at, segment) in segments.iter().enumerate() {
        // A segment ends where the next begins; the newest ended just now.
        let is_old = segments.get(at + 1).is_some_and(|next| next.start_us <= oldest);
        // From before the clock was set back: for as long as it is the newest by name it would
        // never be old, and every later segment would be removed in its place.
        let is_ahead = segment.start_us > now_us;
        if !is_old && !is_ahead && bytes <= limit {
            continue;
        }
        bytes = bytes.saturating_sub(segment.bytes);
        if let Err(error) = fs::remove_file(&segment.path) {
            warn!("{}: {error}. The file is no longer needed; remove it", segment.path.display());
        }
    }
}

/// What a segment must begin with: the state that the ticks before it have built up.
struct Known {
    setup: Setup,
    /// Counters of boards, which follow those of the setup.
    zones: Vec<Zone>,
    targets: BTreeMap<CgroupKey, ChargeTarget>,
    containers: BTreeMap<u32, Arc<Container>>,
    reserved: BTreeMap<u32, u64>,
    jobs: BTreeMap<u32, Job>,
    ended_jobs: BTreeSet<u32>,
    stages: BTreeMap<u32, StageTimes>,
}

impl Known {
    fn new(setup: Setup) -> Self {
        Self {
            setup,
            zones: Vec::new(),
            targets: BTreeMap::new(),
            containers: BTreeMap::new(),
            reserved: BTreeMap::new(),
            jobs: BTreeMap::new(),
            ended_jobs: BTreeSet::new(),
            stages: BTreeMap::new(),
        }
    }

    /// Applies what holds from a tick on.
    fn apply(&mut self, raw: &RawTick) {
        let changes = &raw.changes;
        for key in &changes.departed {
            self.targets.remove(key);
        }
        if let Some(cpu_packages) = &changes.cpu_packages {
            self.setup.cpu_packages.clone_from(cpu_packages);
        }
        if let Some(source) = &changes.source {
            self.setup.origin = Some(source.origin);
            self.setup.zones.clone_from(&source.zones);
            self.setup.idle_uw.clone_from(&source.idle_uw);
        }
        self.zones.extend(changes.zones.iter().cloned());
        self.targets.extend(changes.targets.iter().copied());
        self.containers.extend(changes.containers.iter().map(|container| (container.number, container.clone())));
        self.reserved.extend(changes.reserved.iter().copied());
        self.jobs.extend(changes.jobs.iter().map(|job| (job.number, job.clone())));
        for (number, target, own) in &changes.jobs_moved {
            if let Some(job) = self.jobs.get_mut(number) {
                (job.charge_target, job.own_container) = (*target, *own);
            }
        }
        self.ended_jobs.extend(changes.jobs_ended.iter().copied());
        self.stages.extend(raw.stages.iter().cloned());
        for number in &changes.jobs_gone {
            self.jobs.remove(number);
            self.ended_jobs.remove(number);
            self.stages.remove(number);
        }
    }

    /// Applies what ends with a tick.
    fn complete(&mut self, changes: &TickChanges) {
        for number in &changes.ended {
            self.containers.remove(number);
            self.reserved.remove(number);
        }
    }

    /// A tick as the first of a segment.
    fn first(&self, raw: &RawTick) -> RawTick {
        let changes = &raw.changes;
        let reserved = self.reserved.iter().filter(|(number, _)| self.containers.contains_key(*number));
        let ended_jobs = self.ended_jobs.iter().filter(|number| self.jobs.contains_key(*number));
        let state = TickChanges {
            zones: self.zones.clone(),
            targets: self.targets.iter().map(|(key, target)| (*key, *target)).collect(),
            containers: self.containers.values().cloned().collect(),
            reserved: reserved.map(|(number, milli)| (*number, *milli)).collect(),
            ended: changes.ended.clone(),
            dropped: changes.dropped,
            unnamed: changes.unnamed,
            jobs: self.jobs.values().cloned().collect(),
            jobs_ended: ended_jobs.copied().collect(),
            jobs_dropped: changes.jobs_dropped,
            scans_incomplete: changes.scans_incomplete,
            ..TickChanges::default()
        };
        let stages = self.stages.iter().map(|(number, parts)| (*number, parts.clone())).collect();
        RawTick { changes: state, stages, ..raw.clone() }
    }
}

enum Message {
    /// The first tick of a segment.
    Start(Box<(Setup, RawTick)>),
    Tick(Box<RawTick>),
}

/// The sampler's end of the history.
pub struct HistoryRecorder {
    known: Known,
    keep: Duration,
    /// `None` once the thread has ended, and at the end.
    sender: Option<SyncSender<Message>>,
    /// A tick that was written, whose buffers take the next copy.
    written: Receiver<Box<RawTick>>,
    thread: Option<JoinHandle<()>>,
    /// Set by the thread when the segment is full.
    full: Arc<AtomicBool>,
    /// End of the first tick of the segment, on the clock of the ticks; `None` before it.
    start_ns: Option<u64>,
}

impl HistoryRecorder {
    /// Starts the thread. The directory is created with the first tick.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(directory: PathBuf, setup: Setup, keep: Duration) -> io::Result<Self> {
        Self::with_queue(directory, setup, keep, QUEUE)
    }

    fn with_queue(directory: PathBuf, setup: Setup, keep: Duration, queue: usize) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(queue);
        let (returned, written) = sync_channel(1);
        let full = Arc::new(AtomicBool::new(false));
        let open = None;
        let writer = SegmentWriter { directory, keep, full: full.clone(), returned, open, ticks: 0, is_failing: false };
        let thread = thread::Builder::new().name("history".into()).spawn(move || writer.run(&receiver))?;
        let (known, sender, thread) = (Known::new(setup), Some(sender), Some(thread));
        Ok(Self { known, keep, sender, written, thread, full, start_ns: None })
    }

    /// Adds a tick. Never waits: a tick that finds the queue full is not in the history, and the
    /// next one begins a segment.
    pub fn record(&mut self, raw: &RawTick) {
        if self.sender.is_none() {
            return;
        }
        self.known.apply(raw);
        let length = self.keep / SEGMENTS;
        let age = self.start_ns.map(|start| Duration::from_nanos(raw.energy_ns.saturating_sub(start)));
        let is_due = self.full.swap(false, Ordering::Relaxed) || age.is_some_and(|age| age >= length);
        if self.start_ns.is_some() {
            let mut copy = self.written.try_recv().unwrap_or_default();
            *copy = std::mem::take(&mut *copy).with_copy_of(raw);
            if !self.send(Message::Tick(copy)) {
                self.start_ns = None;
            }
        }
        if is_due || self.start_ns.is_none() {
            let first = (self.known.setup.clone(), self.known.first(raw));
            self.start_ns = self.send(Message::Start(Box::new(first))).then_some(raw.energy_ns);
        }
        self.known.complete(&raw.changes);
    }

    fn send(&mut self, message: Message) -> bool {
        let Some(sender) = &self.sender else { return false };
        match sender.try_send(message) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => false,
            Err(TrySendError::Disconnected(_)) => {
                self.sender = None;
                false
            }
        }
    }
}

impl Drop for HistoryRecorder {
    fn drop(&mut self) {
        self.sender = None;
        let Some(thread) = self.thread.take() else { return };
        // What is not written by then is missing in the file, as after a crash.
        let deadline = Instant::now() + STOP_TIMEOUT;
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The thread's end.
struct SegmentWriter {
    directory: PathBuf,
    keep: Duration,
    full: Arc<AtomicBool>,
    returned: SyncSender<Box<RawTick>>,
    open: Option<(Writer, PathBuf)>,
    ticks: u32,
    /// True from a failure, which is logged, to the next success.
    is_failing: bool,
}

impl SegmentWriter {
    fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(message) = messages.recv() {
            let outcome = match message {
                Message::Start(first) => self.begin(&first.0, &first.1),
                Message::Tick(tick) => {
                    let outcome = self.add(&tick);
                    // One is enough, unless the disk is slow.
                    let _ = self.returned.try_send(tick);
                    outcome
                }
            };
            match outcome {
                // Without a segment nothing was written.
                Ok(()) => self.is_failing &= self.open.is_none(),
                Err(error) => self.fail(&error),
            }
        }
        if let Some((writer, _)) = self.open.take()
            && let Err(error) = writer.finish()
        {
            self.fail(&error);
        }
    }

    /// Ends the segment until the next one is due: a full disk is not tried at every tick.
    fn fail(&mut self, error: &RecordingError) {
        self.open = None;
        if !self.is_failing {
            warn!(
                "{error}. Ticks are not kept for a restart; name another directory with --state.dir, or --history.keep=0"
            );
        }
        self.is_failing = true;
    }

    fn begin(&mut self, setup: &Setup, tick: &RawTick) -> Result<(), RecordingError> {
        if let Some((writer, _)) = self.open.take() {
            writer.finish()?;
        }
        let start_us = u64::try_from(tick.unix_ns / 1000).unwrap_or(0);
        let failed = |error| RecordingError::Io { path: self.directory.clone(), error };
        fs::create_dir_all(&self.directory).map_err(failed)?;
        remove_old(&self.directory, start_us, self.keep, HISTORY_BYTES - SEGMENT_BYTES);
        let path = self.directory.join(format!("{PREFIX}{start_us:020}{SUFFIX}"));
        let mut writer = Writer::create_fast(&path, setup)?;
        writer.write(tick)?;
        self.open = Some((writer, path));
        self.ticks = 0;
        Ok(())
    }

    fn add(&mut self, tick: &RawTick) -> Result<(), RecordingError> {
        let Some((writer, path)) = &mut self.open else { return Ok(()) };
        writer.write(tick)?;
        self.ticks += 1;
        if self.ticks.is_multiple_of(SIZE_INTERVAL) && fs::metadata(path).is_ok_and(|file| file.len() > SEGMENT_BYTES) {
            self.full.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cgroup::hierarchy,
        cpu::{CpuReading, RunTime},
        energy::zone::{Origin, Range, ZoneId, ZoneKind},
        host::topology::PackageId,
        jobs::stage::StagePart,
        tick::{CpuTierInfo, recording::Reader},
    };

    const SECOND: u64 = 1_000_000_000;

    fn setup() -> Setup {
        let id = ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package };
        Setup {
            host: String::new(),
            origin: Some(Origin::Powercap),
            zones: vec![Zone::microjoules(id, Range::Endless, "there".to_owned())],
            idle_uw: vec![None],
            packages: vec![PackageId::whole(0)],
            cpu_packages: vec![Some(0)],
            smt: false,
            cpu_weights: Vec::new(),
            lag_ns: 0,
            cpu: Some(CpuTierInfo::switch_tier(true)),
        }
    }

    /// A tick at a second, in which a cgroup of a container has run for half of the time.
    fn tick(second: u64, changes: TickChanges) -> RawTick {
        let key = CgroupKey { id: 7, hierarchy: hierarchy::V2 };
        let now = second * SECOND;
        RawTick {
            unix_ns: i64::try_from(now).unwrap() + 1_700_000_000 * 1_000_000_000,
            began_ns: now,
            energy_ns: now,
            cpu_ns: now,
            zones: vec![Ok(second * 10_000_000)],
            cpu: Some(Ok(CpuReading {
                rows: vec![(key, vec![RunTime { alone_ns: now / 2, shared_ns: 0 }])],
                ..CpuReading::default()
            })),
            changes,
            ..RawTick::default()
        }
    }

    fn came(name: &str) -> TickChanges {
        let container = Container::new(1, name.to_owned(), "000000000001".to_owned(), "docker");
        let key = CgroupKey { id: 7, hierarchy: hierarchy::V2 };
        TickChanges {
            targets: vec![(key, ChargeTarget::Container(1))],
            containers: vec![Arc::new(container)],
            ..TickChanges::default()
        }
    }

    fn read(segment: &Segment) -> Vec<RawTick> {
        let mut reader = Reader::open(&segment.path).unwrap();
        std::iter::from_fn(|| reader.next_tick().unwrap()).collect()
    }

    #[test]
    fn every_segment_is_complete_and_continues_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join(HISTORY_DIR);
        let keep = Duration::from_secs(60);
        let mut recorder = HistoryRecorder::with_queue(directory.clone(), setup(), keep, 100).unwrap();
        for second in 0..25 {
            let changes = if second == 0 { came("a\"b<script>") } else { TickChanges::default() };
            recorder.record(&tick(second, changes));
        }
        recorder.sender = None;
        recorder.thread.take().unwrap().join().unwrap();
        let segments = segments(&directory);
        assert_eq!(segments.len(), 3, "{segments:?}");
        let ticks: Vec<Vec<RawTick>> = segments.iter().map(read).collect();
        assert_eq!(ticks.iter().map(Vec::len).collect::<Vec<_>>(), [11, 11, 5]);
        for pair in ticks.windows(2) {
            assert_eq!(pair[0].last().unwrap().unix_ns, pair[1][0].unix_ns);
        }
        for first in ticks.iter().map(|ticks| &ticks[0]) {
            assert_eq!(first.changes.containers[0].name, "a\"b<script>");
            assert_eq!(first.changes.targets.len(), 1);
        }
    }

    #[test]
    fn other_files_are_left_alone_and_old_segments_removed() {
        let dir = tempfile::tempdir().unwrap();
        let name = |second: u64| format!("{PREFIX}{:020}{SUFFIX}", second * 1_000_000);
        for file in [&*name(100), &*name(200), &*name(300), "ticks-1.rec", "notes.txt"] {
            fs::write(dir.path().join(file), [0; 100]).unwrap();
        }
        std::os::unix::fs::symlink(dir.path().join("notes.txt"), dir.path().join(name(50))).unwrap();
        let starts = || segments(dir.path()).iter().map(|one| one.start_us / 1_000_000).collect::<Vec<_>>();
        assert_eq!(starts(), [100, 200, 300]);
        remove_old(dir.path(), 320 * 1_000_000, Duration::from_secs(60), 1000);
        assert_eq!(starts(), [200, 300], "200 ended at 300, which is 20 s ago");
        remove_old(dir.path(), 320 * 1_000_000, Duration::from_secs(60), 150);
        assert_eq!(starts(), [300]);
        assert!(dir.path().join("notes.txt").exists() && dir.path().join("ticks-1.rec").exists());
    }

    #[test]
    fn a_segment_from_before_the_clock_was_set_back_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        for second in [100_u64, 200, 5000] {
            fs::write(dir.path().join(format!("{PREFIX}{:020}{SUFFIX}", second * 1_000_000)), [0; 100]).unwrap();
        }
        remove_old(dir.path(), 220 * 1_000_000, Duration::from_secs(600), 1000);
        let starts: Vec<u64> = segments(dir.path()).iter().map(|one| one.start_us / 1_000_000).collect();
        assert_eq!(starts, [100, 200]);
    }

    #[test]
    fn a_container_that_ended_is_not_in_the_next_segment() {
        let mut known = Known::new(setup());
        known.apply(&tick(0, came("a")));
        let last = TickChanges { ended: vec![1], ..TickChanges::default() };
        known.apply(&tick(1, last.clone()));
        let first = known.first(&tick(1, last.clone()));
        assert_eq!((first.changes.containers.len(), first.changes.ended), (1, vec![1]));
        known.complete(&last);
        assert!(known.first(&tick(2, TickChanges::default())).changes.containers.is_empty());
    }

    #[test]
    fn a_segment_begins_with_the_stages_of_jobs_that_do_not_run() {
        let mut known = Known::new(setup());
        let stages = vec![(5, vec![(StagePart::OTHER, 7)])];
        known.apply(&RawTick { stages: stages.clone(), ..tick(0, TickChanges::default()) });
        let quiet = tick(1, TickChanges::default());
        known.apply(&quiet);
        assert_eq!(known.first(&quiet).stages, stages);
        known.apply(&tick(2, TickChanges { jobs_gone: vec![5], ..TickChanges::default() }));
        assert!(known.first(&quiet).stages.is_empty());
    }
}
