//! What one reading of a GPU contains.

use std::collections::BTreeMap;

use super::engines::{ENGINES, EngineTimes};
use crate::{
    energy::zone::{Origin, Zone},
    host::availability::{Reason, Unavailable},
    host::gpu_id::GpuId,
};

/// One reading of a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuReading {
    pub id: GpuId,
    /// NVIDIA's index, which may change between two starts of the driver.
    pub index: Option<u32>,
    /// Model name.
    pub name: String,
    /// Where the reading comes from.
    pub origin: Origin,
    pub state: Result<(), Unavailable>,
    /// The energy counter, if the GPU has its own.
    pub zone: Option<Zone>,
    /// Value of the energy counter.
    pub raw: Option<Result<u64, String>>,
    /// True in MIG mode: the driver reports no usage by process.
    pub mig: bool,
    pub telemetry: GpuTelemetry,
    /// Open encoder sessions.
    pub sessions: Vec<Session>,
    /// Memory by process.
    pub process_memory: Vec<ProcessMemory>,
    /// Engine time by process since the previous reading.
    pub uses: Vec<ProcessUsage>,
    /// True when no engine was used, as far as the driver reports it.
    pub idle: bool,
    /// True when all recently active processes were reported, so that the energy can be
    /// attributed.
    pub complete: bool,
    /// True when the energy counter may have been reset since the previous reading.
    pub counter_reset: bool,
    /// Values that the driver does not provide, and why.
    pub unavailable: BTreeMap<&'static str, Reason>,
    /// Samples dropped since the start: stale, impossible, and of processes over the limit.
    pub dropped: [u64; 3],
}

/// Values that the driver reports; `None` if it does not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuTelemetry {
    /// Power in milliwatts; the averaging period depends on the chip (arXiv 2312.02741).
    pub power_mw: Option<u32>,
    /// Enforced power limit in milliwatts.
    pub limit_mw: Option<u32>,
    /// Temperature of the chip.
    pub celsius: Option<u32>,
    /// Utilization of each engine type, 0 to 1, over the driver's sampling period.
    pub engines: [Option<f64>; ENGINES],
    pub memory: Option<Memory>,
    /// Current clocks.
    pub clocks: Option<Clocks>,
    /// Throttle reasons: bits of `THROTTLE_REASONS`.
    pub throttle: Option<u64>,
    /// PCIe link.
    pub link: Option<Link>,
    /// Free encoder capacity by codec, 0 to 1.
    pub headroom: Vec<(&'static str, f64)>,
}

/// Memory of a GPU in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    pub used: u64,
    pub free: u64,
    pub reserved: u64,
}

/// Clocks of a GPU in megahertz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    pub graphics_mhz: u32,
    pub sm_mhz: u32,
    pub memory_mhz: u32,
    pub video_mhz: Option<u32>,
}

/// The PCIe link: current and maximum generation and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub generation: u32,
    pub width: u32,
    pub max_generation: u32,
    pub max_width: u32,
    /// Replayed packets since the driver was loaded.
    pub replays: Option<u32>,
}

/// One encoder session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub pid: u32,
    /// `h264`, `hevc`, `av1`.
    pub codec: &'static str,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Frames per second, the driver's moving average.
    pub fps: u32,
    /// Encode latency per frame in microseconds, the driver's moving average.
    pub latency_us: u32,
}

impl Session {
    /// Pixels per second.
    pub(super) fn pixels(&self) -> u64 {
        u64::from(self.width).saturating_mul(u64::from(self.height)).saturating_mul(u64::from(self.fps))
    }
}

/// A process that has memory on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Process id on the host.
    pub pid: u32,
    /// Bytes, if the driver reports them.
    pub bytes: Option<u64>,
}

/// Engine time of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessUsage {
    /// Process id on the host.
    pub pid: u32,
    /// Other processes that the time is of too, where the driver does not divide it.
    pub shared_with: Vec<u32>,
    /// Nanoseconds of full use by engine.
    pub times: EngineTimes,
    /// Time of the last sample, microseconds of the wall clock; 0 for now.
    pub at_us: u64,
}
