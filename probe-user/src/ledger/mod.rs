//! Pure arithmetic: measured joules in, a closed account out. No I/O, no clock.
//!
//! Invariant, per accounting root, every tick and since the start, exact in integer microjoules:
//! `containers + retired + system + idle + unattributed == measured`, where a container has its dynamic energy and, under an
//! idle policy that shares, its part of the idle energy.

mod account;
mod book;
pub mod idle;
pub mod rest;
pub mod streams;
pub mod uncertainty;

pub use account::{Closed, close, close_by_use, share_idle};
pub use book::{Account, AccountId, Book, Holder};

use crate::{cpu::Weights, gpu::engines::EngineWeights};

/// What the user decides of the arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whose idle energy is.
    pub idle: IdlePolicy,
    /// What CPU time is worth.
    pub weights: Weights,
    /// What time of a GPU's engines is worth.
    pub engines: EngineWeights,
}

/// A second beside a busy sibling is worth 575 thousandths of one alone: two busy threads of a core do 15 % more than one.
pub const SHARED_MILLI: u64 = 575;

impl From<IdlePolicy> for Rules {
    fn from(idle: IdlePolicy) -> Self {
        Self { idle, weights: Weights { shared_milli: SHARED_MILLI }, engines: EngineWeights::default() }
    }
}

/// Whose idle energy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum IdlePolicy {
    /// Nobody's: it stays in its own row
    #[default]
    Separate,
    /// Shared like the dynamic energy, by CPU time
    Proportional,
    /// Shared by the CPUs that containers have reserved (cpu.max); the rest stays nobody's
    Reserved,
}
