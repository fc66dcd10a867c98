//! Writes a recording.

use std::{
    collections::BTreeMap,
    fs::{File, Permissions},
    io::{self, BufWriter, Write},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use serde::Serialize;

use super::format::{
    CpuTotals, FLUSH_INTERVAL, FORMAT, Growth, Header, Line, Overflow, RecordingError, VERSION, Value,
};
use crate::{
    cgroup::CgroupKey,
    cpu::{COUNTERS, CpuReading, RunQueueStats},
    tick::raw::{RawTick, Setup},
};

/// A recording that is being written.
pub struct Writer {
    path: PathBuf,
    out: GzEncoder<BufWriter<File>>,
    last: BTreeMap<CgroupKey, Vec<CpuTotals>>,
    queues: BTreeMap<CgroupKey, RunQueueStats>,
    ticks: u32,
}

impl Writer {
    /// Creates or truncates the file, and writes its first line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, setup: &Setup) -> Result<Self, RecordingError> {
        Self::create_compressed(path, setup, Compression::default())
    }

    /// As [`Self::create`], with less compression, for a file that is written all the time.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn create_fast(path: &Path, setup: &Setup) -> Result<Self, RecordingError> {
        Self::create_compressed(path, setup, Compression::fast())
    }

    fn create_compressed(path: &Path, setup: &Setup, compression: Compression) -> Result<Self, RecordingError> {
        let failed = |error| RecordingError::Io { path: path.to_owned(), error };
        // The file is written as root, often in a directory where others may write: a link there
        // must not select another file. And only its owner may read which program ran when, to a
        // tenth of a second.
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(path).map_err(failed)?;
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
        let out = GzEncoder::new(BufWriter::new(file), compression);
        let mut this = Self { path: path.to_owned(), out, last: BTreeMap::new(), queues: BTreeMap::new(), ticks: 0 };
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            probe: cli::program::VERSION.to_owned(),
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
        for key in &tick.changes.departed {
            self.last.remove(key);
            self.queues.remove(key);
        }
        let mut line = Line {
            unix: tick.unix_ns,
            began: tick.began_ns,
            energy: tick.energy_ns,
            cpu: tick.cpu_ns,
            own: tick.own_ns,
            programs: tick.programs_ns,
            suspended: tick.suspended_ns,
            zones: tick.zones.iter().map(Value::from).collect(),
            residency: tick.residency.clone(),
            ran: None,
            queues: Vec::new(),
            overflow: Vec::new(),
            counter_time: [0, 0],
            missed: 0,
            failed: None,
            jobs: tick.jobs.clone(),
            stages: tick.stages.clone(),
            gpu: tick.gpu_ns,
            gpus: tick.gpus.clone(),
            changes: tick.changes.clone(),
        };
        match &tick.cpu {
            None => {}
            Some(Err(error)) => line.failed = Some(error.clone()),
            Some(Ok(reading)) => {
                line.ran = Some(self.growth(reading));
                line.queues = self.changed_queues(reading);
                line.overflow = reading.overflow.iter().map(Overflow::from).collect();
                (line.counter_time, line.missed) = (reading.counter_time, reading.missed);
            }
        }
        self.ticks += 1;
        let flush = self.ticks.is_multiple_of(FLUSH_INTERVAL);
        let written = self.line(&line).and_then(|()| if flush { self.out.flush() } else { Ok(()) });
        written.map_err(|error| RecordingError::Io { path: self.path.clone(), error })
    }

    /// Growth since the last reading, of cgroups that are new or ran.
    fn growth(&mut self, reading: &CpuReading) -> Vec<(CgroupKey, Vec<Growth>)> {
        let mut rows = Vec::new();
        for (at, (key, times)) in reading.rows.iter().enumerate() {
            let new = !self.last.contains_key(key);
            let last = self.last.entry(*key).or_default();
            last.resize(times.len(), CpuTotals::default());
            let counted = reading.counted.get(at).into_iter().flatten().copied();
            let totals = times.iter().zip(counted.chain(std::iter::repeat([0; COUNTERS])));
            let mut grown = Vec::new();
            for ((cpu, (time, counted)), last) in totals.enumerate().zip(last) {
                let now = CpuTotals { time: *time, counted };
                grown.extend(now.since(cpu, last));
                *last = now;
            }
            if new || !grown.is_empty() {
                rows.push((*key, grown));
            }
        }
        rows.sort_unstable_by_key(|(key, _)| *key);
        rows
    }

    fn changed_queues(&mut self, reading: &CpuReading) -> Vec<(CgroupKey, RunQueueStats)> {
        let changed = reading.queues.iter().filter(|(key, queue)| self.queues.insert(*key, *queue) != Some(*queue));
        let mut queues: Vec<_> = changed.copied().collect();
        queues.sort_unstable_by_key(|(key, _)| *key);
        queues
    }

    /// Completes the file. Returns the number of its ticks.
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
