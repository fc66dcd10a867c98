//! The user's choices for the attribution.

use super::memory_share::MemoryPolicy;
use crate::{cpu::Weights, gpu::engines::EngineWeights};

/// Rules of the attribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    pub idle: IdlePolicy,
    /// By what the energy of memory is divided.
    pub memory: MemoryPolicy,
    /// Weights of CPU time.
    pub weights: Weights,
    /// Least and largest weight of a second next to a busy sibling that any program has, in
    /// thousandths.
    pub shared_range_milli: [u32; 2],
    /// Weights of the engine time of GPUs.
    pub engines: EngineWeights,
}

/// A second next to a busy sibling is worth 575 thousandths of a second alone: two busy threads of
/// a core do 15 % more than one.
pub const SHARED_MILLI: u64 = 575;

/// Where it was not measured: two busy threads of a core draw at least as much as one, and at most
/// twice as much.
pub const SHARED_RANGE_MILLI: [u32; 2] = [500, 1000];

impl Rules {
    /// The range of the weight of a second next to a busy sibling, in seconds alone.
    #[must_use]
    pub fn shared_range(&self) -> (f64, f64) {
        let [low, high] = self.shared_range_milli;
        (f64::from(low) / 1000.0, f64::from(high) / 1000.0)
    }
}

impl From<IdlePolicy> for Rules {
    fn from(idle: IdlePolicy) -> Self {
        Self {
            idle,
            memory: MemoryPolicy::default(),
            weights: Weights { shared_milli: SHARED_MILLI },
            shared_range_milli: SHARED_RANGE_MILLI,
            engines: EngineWeights::default(),
        }
    }
}

/// Idle energy attribution policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum IdlePolicy {
    /// Not attributed to containers: a row of its own
    #[default]
    Separate,
    /// Attributed in proportion to the dynamic energy, by CPU time
    Proportional,
    /// Attributed by the CPU that containers have reserved (cpu.max); the remainder is not
    /// attributed
    Reserved,
}
