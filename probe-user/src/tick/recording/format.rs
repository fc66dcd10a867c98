//! The lines of a recording, and its limits.

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize, Serializer, ser::SerializeSeq as _};

use crate::{
    cgroup::CgroupKey,
    cpu::{COUNTERS, RunQueueStats, RunTime},
    gpu::GpuUsage,
    host::gpu_id::GpuId,
    jobs::stage::StageTimes,
    tick::raw::{Setup, TickChanges},
};

pub(super) const FORMAT: &str = "wattcast-recording";
/// Raised when an older reader would misread a newer file: a field that it ignores must not change
/// what it attributes. 2: time next to a busy sibling, and hardware counters. 3: GPUs. 4: jobs that
/// move into another cgroup, energy sources that change, and suspension. 5: sleep time of packages.
/// 6: stages of jobs.
pub(super) const VERSION: u32 = 6;
/// Longest line. A figure has up to 100 bytes, so a tick of 4096 cgroups that all ran on 64 CPUs
/// has less than 27 MB.
pub(super) const MAX_LINE: u64 = 32 << 20;
/// Maximum number of counters, packages and GPUs of a machine.
pub(super) const MAX_ZONES: usize = 1024;
/// Maximum number of cgroups, and of containers, at one time.
pub(super) const MAX_ITEMS: usize = 65_536;
/// Maximum number of figures of CPU time at one time, by cgroup and CPU, or by cgroup and package.
pub(super) const MAX_FIGURES: usize = 1 << 20;
/// Longest text that becomes a label.
pub(super) const MAX_TEXT: usize = 1024;
/// Longest reason why a better tier is not in use.
pub(super) const MAX_REASON: usize = 4096;
/// Interval in ticks between the points up to which a truncated file can be read.
pub(super) const FLUSH_INTERVAL: u32 = 10;

/// Why a recording cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file cannot be opened, read or written.
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    /// The file is not a recording, has another version, or is truncated. Lines are counted from 1.
    #[error("{}, line {line}: {what}", path.display())]
    Content { path: PathBuf, line: u64, what: String },
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) format: String,
    pub(super) version: u32,
    /// Version of the probe that wrote the file.
    pub(super) probe: String,
    pub(super) setup: Setup,
}

/// A counter reading, or the error of the reading.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Value {
    Raw(u64),
    Failed(String),
}

impl From<&Result<u64, String>> for Value {
    fn from(value: &Result<u64, String>) -> Self {
        match value {
            Ok(raw) => Self::Raw(*raw),
            Err(error) => Self::Failed(error.clone()),
        }
    }
}

impl From<Value> for Result<u64, String> {
    fn from(value: Value) -> Self {
        match value {
            Value::Raw(raw) => Ok(raw),
            Value::Failed(error) => Err(error),
        }
    }
}

/// Growth on one CPU, written as a list without its trailing zeros: CPU number, nanoseconds alone,
/// nanoseconds shared, hardware events.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Growth(
    pub(super) usize,
    u64,
    #[serde(default)] u64,
    #[serde(default)] u64,
    #[serde(default)] u64,
    #[serde(default)] u64,
);

impl Serialize for Growth {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let numbers = [self.1, self.2, self.3, self.4, self.5];
        let used = numbers.iter().rposition(|number| *number != 0).map_or(1, |last| last + 1);
        let mut list = to.serialize_seq(Some(used + 1))?;
        list.serialize_element(&self.0)?;
        numbers[..used].iter().try_for_each(|number| list.serialize_element(number))?;
        list.end()
    }
}

/// Cumulative time of cgroups without a slot. Version 1 has one number.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Overflow {
    Alone(u64),
    Both(u64, u64),
}

impl From<&RunTime> for Overflow {
    fn from(time: &RunTime) -> Self {
        if time.shared_ns == 0 { Self::Alone(time.alone_ns) } else { Self::Both(time.alone_ns, time.shared_ns) }
    }
}

impl From<Overflow> for RunTime {
    fn from(overflow: Overflow) -> Self {
        match overflow {
            Overflow::Alone(alone_ns) => Self { alone_ns, shared_ns: 0 },
            Overflow::Both(alone_ns, shared_ns) => Self { alone_ns, shared_ns },
        }
    }
}

/// Cumulative figures of one cgroup on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuTotals {
    pub(super) time: RunTime,
    pub(super) counted: [u64; COUNTERS],
}

impl CpuTotals {
    /// Growth on CPU `cpu` since `before`; `None` without growth.
    pub(super) fn since(&self, cpu: usize, before: &Self) -> Option<Growth> {
        let time = |of: fn(&RunTime) -> u64| of(&self.time).saturating_sub(of(&before.time));
        let counted = |at: usize| self.counted[at].wrapping_sub(before.counted[at]);
        (self != before).then(|| {
            Growth(cpu, time(|time| time.alone_ns), time(|time| time.shared_ns), counted(0), counted(1), counted(2))
        })
    }

    /// Adds growth; `None` where the sum overflows.
    pub(super) fn add(&mut self, growth: &Growth) -> Option<()> {
        self.time.alone_ns = self.time.alone_ns.checked_add(growth.1)?;
        self.time.shared_ns = self.time.shared_ns.checked_add(growth.2)?;
        for (sum, growth) in self.counted.iter_mut().zip([growth.3, growth.4, growth.5]) {
            *sum = sum.wrapping_add(growth);
        }
        Some(())
    }
}

/// A tick as a line. The names are short because there are many lines.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Line {
    /// Unix nanoseconds; then nanoseconds since the start: start and end of the energy reading, end
    /// of the CPU reading.
    pub(super) unix: i64,
    pub(super) began: u64,
    pub(super) energy: u64,
    pub(super) cpu: u64,
    /// CPU time of the probe that recorded.
    #[serde(default)]
    pub(super) own: u64,
    /// CPU time of its eBPF programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) programs: Option<u64>,
    /// Time of suspension since the line before.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) suspended: u64,
    pub(super) zones: Vec<Value>,
    /// Cumulative cycles asleep and all cycles, by package.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) residency: Vec<Option<[u64; 2]>>,
    /// Growth of CPU time by cgroup and CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ran: Option<Vec<(CgroupKey, Vec<Growth>)>>,
    /// Cumulative run-queue figures of the cgroups where they changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) queues: Vec<(CgroupKey, RunQueueStats)>,
    /// Cumulative time of cgroups without a slot, by CPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) overflow: Vec<Overflow>,
    /// Cumulative nanoseconds for which hardware counters were enabled, and for which they ran.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) counter_time: [u64; 2],
    #[serde(default)]
    pub(super) missed: u64,
    /// Why the tick has no CPU time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failed: Option<String>,
    /// CPU nanoseconds of each job since its start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) jobs: Vec<(u32, u64)>,
    /// CPU nanoseconds of the parts of jobs since their start, where they changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) stages: Vec<(u32, StageTimes)>,
    /// Time of the GPU reading.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) gpu: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) gpus: Vec<(GpuId, GpuUsage)>,
    #[serde(default, rename = "news")]
    pub(super) changes: TickChanges,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
