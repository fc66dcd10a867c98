//! The hardware counters of tier `counters`: cycles, instructions and last-level cache misses of
//! each CPU.

#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, RawFd},
};

use super::program;
use crate::host::{
    availability::{Reason, Unavailable},
    perf_event,
    topology::Topology,
};
use probe_ebpf::COUNTERS;

/// `PERF_TYPE_HARDWARE` with `PERF_COUNT_HW_CPU_CYCLES`, `_INSTRUCTIONS` and `_CACHE_MISSES`; the
/// last one counts last-level cache misses on common processors
/// (include/uapi/linux/perf_event.h; arch/x86/events/intel/core.c, `intel_perfmon_event_map`).
const HARDWARE: [(u32, u64); COUNTERS] = [(0, 0), (0, 1), (0, 3)];

/// The maps through which the programs read the counters, in the same order.
pub(super) const MAPS: [&str; COUNTERS] = ["CYCLES", "INSTRUCTIONS", "CACHE_MISSES"];

/// Open perf counters, by CPU.
pub struct PerfCounters {
    files: Vec<(usize, [File; COUNTERS])>,
    /// PMU type and event of each.
    events: [(u32, u64); COUNTERS],
}

impl PerfCounters {
    /// Opens the hardware counters on every online CPU.
    ///
    /// # Errors
    /// `absent` where the machine has no such counters, as most guests; `denied` without
    /// CAP_PERFMON.
    pub fn hardware(topology: &Topology) -> Result<Self, Unavailable> {
        let cpus: Vec<usize> = topology.cpus(false).map(|(cpu, _)| cpu).collect();
        Self::open(&cpus, HARDWARE).map_err(|error| {
            let reason = match error.raw_os_error() {
                Some(libc::ENOENT | libc::EOPNOTSUPP | libc::ENODEV) => Reason::Absent,
                _ => Reason::of(&error),
            };
            let detail = match reason {
                Reason::Absent => "this processor, or its hypervisor, provides no hardware counters".to_owned(),
                _ => format!("cannot open hardware counters: {error}"),
            };
            Unavailable::new(reason, detail)
        })
    }

    /// Opens arbitrary counters, given as PMU type and event of each.
    ///
    /// # Errors
    /// The kernel's error for the first counter that it refuses.
    pub fn open(cpus: &[usize], events: [(u32, u64); COUNTERS]) -> io::Result<Self> {
        let files = cpus.iter().map(|cpu| Ok((*cpu, open_on(*cpu, events)?))).collect::<io::Result<_>>()?;
        Ok(Self { files, events })
    }

    /// Opens the counters of one CPU in the place of those that it had.
    pub(super) fn reopen(&mut self, cpu: usize) -> io::Result<()> {
        let opened = open_on(cpu, self.events)?;
        match self.files.iter_mut().find(|(known, _)| *known == cpu) {
            Some((_, files)) => *files = opened,
            None => self.files.push((cpu, opened)),
        }
        Ok(())
    }

    /// The descriptors of one CPU's counters, for a test that ends them.
    #[must_use]
    pub fn descriptors(&self, cpu: usize) -> Option<[RawFd; COUNTERS]> {
        let (_, files) = self.files.iter().find(|(known, _)| *known == cpu)?;
        Some(files.each_ref().map(|file| file.as_raw_fd()))
    }

    /// Stores one counter's descriptor of each CPU, or of `only` one, in the map through which the
    /// programs read it.
    pub(super) fn store(&self, counter: usize, map: RawFd, only: Option<usize>) -> io::Result<()> {
        let map = u32::try_from(map).map_err(io::Error::other)?;
        for (cpu, files) in self.files.iter().filter(|(cpu, _)| only.is_none_or(|only| only == *cpu)) {
            let cpu = u32::try_from(*cpu).map_err(io::Error::other)?;
            // SAFETY: the keys of these maps are numbers of CPUs, and the values are descriptors.
            unsafe { program::set_element(map, cpu, &files[counter].as_raw_fd().to_ne_bytes()) }?;
        }
        Ok(())
    }
}

/// Opens the counters of one CPU.
fn open_on(cpu: usize, events: [(u32, u64); COUNTERS]) -> io::Result<[File; COUNTERS]> {
    let open = |at: usize| perf_event::open(events[at].0, events[at].1, cpu);
    Ok([open(0)?, open(1)?, open(2)?])
}
