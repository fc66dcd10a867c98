//! A program at the switch that does nothing: what the others' cost is held against.

use aya::programs::BtfTracePoint;

use super::{
    object::{Object, PAGE, refused},
    offsets,
};
use crate::{snapshot::ProgramRow, state::Unavailable};

const NAME: &str = "empty";

/// The loaded program. Dropping it detaches it.
pub struct Empty {
    object: Object,
}

impl Empty {
    /// Loads and attaches it.
    ///
    /// # Errors
    /// As for a tier.
    pub fn load() -> Result<Self, Unavailable> {
        let small = ["CPUS", "TIMES", "WAITS", "COUNTS", "OWNERS", "SLOTS", "FREE", "BASES", "JOBS", "JOB_UDP"];
        let mut sizes = small.map(|name| (name, 1)).to_vec();
        sizes.push(("JOB_EVENTS", PAGE));
        let (mut object, _) = Object::open(offsets::switch, &[], &sizes)?;
        let attached = (|| {
            let (ebpf, btf) = object.types().ok_or(aya::programs::ProgramError::NotLoaded)?;
            let program = ebpf.program_mut(NAME).ok_or(aya::programs::ProgramError::NotLoaded)?;
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load("sched_switch", btf)?;
            program.attach()
        })();
        attached.map_err(|error| refused("attach the empty program", &error))?;
        Ok(Self { object })
    }

    /// What it cost; empty while `kernel.bpf_stats_enabled` is 0.
    #[must_use]
    pub fn costs(&self) -> Vec<ProgramRow> {
        self.object.costs(&[NAME])
    }
}
