//! The user's choices for the attribution.

use crate::{cpu::Weights, gpu::engines::EngineWeights};

/// Rules of the attribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    pub idle: IdlePolicy,
    /// Weights of CPU time.
    pub weights: Weights,
    /// Weights of the engine time of GPUs.
    pub engines: EngineWeights,
}

/// A second next to a busy sibling is worth 575 thousandths of a second alone: two busy threads of
/// a core do 15 % more than one.
pub const SHARED_MILLI: u64 = 575;

impl From<IdlePolicy> for Rules {
    fn from(idle: IdlePolicy) -> Self {
        Self { idle, weights: Weights { shared_milli: SHARED_MILLI }, engines: EngineWeights::default() }
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
