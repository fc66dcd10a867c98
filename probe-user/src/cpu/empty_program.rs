//! A `sched_switch` program that does nothing: the baseline for the cost of the other programs.

use super::{
    object::{BpfObject, PAGE, load_error},
    offsets,
};
use crate::{cpu::reader::ProgramRow, host::availability::Unavailable};

const NAME: &str = "empty";

/// The loaded program. Dropping this detaches it.
pub struct EmptyProgram {
    object: BpfObject,
}

impl EmptyProgram {
    /// Loads and attaches the program.
    ///
    /// # Errors
    /// As for a tier.
    pub fn load() -> Result<Self, Unavailable> {
        let small = ["CPUS", "TIMES", "COUNTS", "OWNERS", "SLOTS", "FREE", "BASES", "JOBS", "JOB_UDP", "CREATORS"];
        let mut sizes = small.map(|name| (name, 1)).to_vec();
        sizes.extend(["JOB_EVENTS", "THREAD_ENDS", "CGROUP_EVENTS", "MOVES"].map(|name| (name, PAGE)));
        let (mut object, _) = BpfObject::open(offsets::switch, &[], &sizes, &[])?;
        object.attach_typed(NAME, c"sched_switch").map_err(|error| load_error("attach the empty program", &error))?;
        object.drop_unloaded();
        Ok(Self { object })
    }

    /// Run count and run time; empty while `kernel.bpf_stats_enabled` is 0.
    #[must_use]
    pub fn costs(&self) -> Vec<ProgramRow> {
        self.object.costs(&[NAME])
    }
}
