//! Energy of the probe itself: of its process, and of its eBPF programs.

use units::Microjoules;

use super::Accountant;
use crate::{
    attribution::root::{RootSplit, UsageByTarget, sum_usage},
    cpu::Tier,
    energy::zone::ZoneKind,
    ledger::MemoryPolicy,
    snapshot::OwnRow,
    tick::RawTick,
};

impl Accountant {
    /// Adds the energy of the probe in a tick.
    pub(super) fn add_own_energy(&mut self, raw: &RawTick, splits: &[RootSplit], usage: &UsageByTarget) {
        let ran_ns = sum_usage(usage.values().flatten()).ns();
        let dynamic_of = |kinds: &[ZoneKind]| -> Microjoules {
            let roots = splits.iter().filter(|split| kinds.contains(&split.id.zone.kind));
            roots.flat_map(|split| split.split.shares.iter().map(|(_, energy)| *energy)).sum()
        };
        let dynamic = (!splits.is_empty())
            .then(|| [dynamic_of(&[ZoneKind::Package, ZoneKind::Psys]), dynamic_of(&[ZoneKind::Dram])]);
        self.own.process.add(raw.own_ns, ran_ns, dynamic, false);
        if let Some(now_ns) = raw.programs_ns {
            // It is estimated every few ticks.
            self.own.programs.add(now_ns, ran_ns, dynamic, true);
        }
    }

    /// The rows of the probe's energy; none without CPU time or energy of the machine.
    pub(super) fn own_rows(&self) -> Vec<OwnRow> {
        let (Some(origin), Some(cpu)) = (self.setup.machine_origin(), &self.setup.cpu) else { return Vec::new() };
        let zones = || self.setup.zones.iter().zip(&self.roots).filter(|(_, root)| root.is_some());
        let platform = zones().all(|(zone, _)| zone.id.kind != ZoneKind::Package)
            && zones().any(|(zone, _)| zone.id.kind == ZoneKind::Psys);
        let processor = (if platform { ZoneKind::Psys } else { ZoneKind::Package }, Some(origin));
        // Memory that is attributed to nothing has no row: the probe's part is unknown, not zero.
        let attributed = match self.rules.memory {
            MemoryPolicy::Misses | MemoryPolicy::CpuTime => true,
            MemoryPolicy::MissesOnly => cpu.tier == Tier::Counters,
            MemoryPolicy::Unattributed => false,
        };
        let memory = zones().map(|(zone, _)| zone).find(|zone| zone.id.kind == ZoneKind::Dram && attributed);
        let memory = (ZoneKind::Dram, memory.and_then(|zone| self.setup.origin_of(zone)));
        let programs = self.own.programs.is_known().then_some(("ebpf", &self.own.programs));
        let mut rows = Vec::new();
        for (part, own) in [Some(("process", &self.own.process)), programs].into_iter().flatten() {
            for ((zone, origin), energy) in [processor, memory].into_iter().zip(own.energy) {
                rows.extend(origin.map(|origin| OwnRow { part, zone, origin, energy }));
            }
        }
        rows
    }
}
