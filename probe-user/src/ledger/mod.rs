//! Pure arithmetic on integer microjoules: the split of measured energy, and its totals. No I/O and
//! no clock.
//!
//! Invariant, exact for every accounting root, in every tick and since the start: `containers +
//! retired + system + idle + unattributed == measured`. A container has its dynamic energy and,
//! under a policy that attributes idle energy, its part of that. Its part of the energy that waking
//! packages costs is included in its dynamic energy, and known separately.

pub mod awake;
pub mod basis;
pub mod fitted_weight;
pub mod gpu_idle;
pub mod idle;
mod memory_share;
mod own_energy;
mod rules;
mod split;
mod stages;
pub mod streams;
mod totals;
pub mod uncertainty;

pub use memory_share::{MemoryPolicy, memory_claims};
pub use own_energy::OwnEnergy;
pub use rules::{IdlePolicy, Rules, SHARED_MILLI, SHARED_RANGE_MILLI};
pub use split::{Split, share_idle, split_by_engine_use, split_proportionally};
pub use totals::{Account, AccountId, Totals};
