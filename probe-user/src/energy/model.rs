//! Joules from a power line, for machines that measure none: idle watts, plus busy CPU seconds times the watts that a
//! busy CPU adds. Always `source="model"`, never mixed with a measurement.
//!
//! Busy seconds come from `/proc/stat`, so the model works without eBPF. Steal is not ours: the hypervisor gave that
//! time, and its joules, to somebody else.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use super::{
    Source,
    zone::{Origin, Range, Zone, ZoneId, ZoneKind},
};
use crate::{
    topology::{PackageId, Topology},
    units::Microjoules,
};

/// The largest `/proc/stat` that is read: a line for each of 8192 CPUs and each interrupt.
const MAX_STAT: usize = 16 << 20;

/// Watts per logical CPU.
///
/// The defaults are the averages that Cloud Carbon Footprint derived from SPECpower results for AWS's servers, CPU only:
/// 0.74 W at idle, 3.5 W at full load (cloudcarbonfootprint.org, Methodology, Appendix I).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerLine {
    /// Microwatts of a CPU that does nothing.
    pub idle_uw: u64,
    /// Microwatts of a CPU that never rests; not less than `idle_uw`.
    pub busy_uw: u64,
}

impl Default for PowerLine {
    fn default() -> Self {
        Self { idle_uw: 740_000, busy_uw: 3_500_000 }
    }
}

/// The modelled packages of this machine.
pub struct Model {
    line: PowerLine,
    stat: PathBuf,
    start: Instant,
    tick_ns: u64,
    zones: Vec<Zone>,
    cpus: Vec<(usize, PackageId)>,
    file: Option<File>,
    text: Vec<u8>,
    /// Busy ticks of each CPU when it was last seen. A CPU that goes offline and comes back goes on from there
    /// (kernel/sched/cputime.c keeps its counters), and one that is new starts from what it shows first.
    last: BTreeMap<usize, u64>,
    /// Busy ticks of each zone since the start.
    busy: Vec<u64>,
}

impl Model {
    /// One package zone for each package of the topology.
    #[must_use]
    pub fn new(line: PowerLine, topology: &Topology, procfs: &Path) -> Self {
        let stat = procfs.join("stat");
        let zones = topology
            .packages(false)
            .into_iter()
            .map(|package| Zone {
                id: ZoneId { package: Some(package), kind: ZoneKind::Package },
                range: Range::Endless,
                place: format!("power line over {}", stat.display()),
            })
            .collect();
        let zones: Vec<Zone> = zones;
        let busy = vec![0; zones.len()];
        // SAFETY: sysconf takes a number and returns one.
        let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        let hertz = u64::try_from(hertz).ok().filter(|hertz| *hertz > 0).unwrap_or(100);
        Self {
            line,
            stat,
            start: Instant::now(),
            tick_ns: 1_000_000_000 / hertz,
            zones,
            cpus: topology.cpus(false).collect(),
            file: File::open(procfs.join("stat")).ok(),
            text: Vec::new(),
            last: BTreeMap::new(),
            busy,
        }
    }

    /// Brings the busy ticks of each zone up to date.
    fn count(&mut self) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(File::open(&self.stat)?),
        };
        self.text.clear();
        let mut at = 0;
        loop {
            const STEP: usize = 1 << 16;
            self.text.resize(at + STEP, 0);
            let read = file.read_at(&mut self.text[at..], u64::try_from(at).unwrap_or(u64::MAX))?;
            at += read;
            self.text.truncate(at);
            if read == 0 || at > MAX_STAT {
                break;
            }
        }
        for line in self.text.split(|byte| *byte == b'\n') {
            let Some((cpu, ticks)) = str::from_utf8(line).ok().and_then(busy_ticks) else { continue };
            let last = self.last.insert(cpu, ticks).unwrap_or(ticks);
            let place = self.cpus.iter().find(|(known, _)| *known == cpu).map(|(_, package)| *package);
            let zone = self.zones.iter().position(|zone| zone.id.package == place).unwrap_or(0);
            if let Some(sum) = self.busy.get_mut(zone) {
                *sum = sum.saturating_add(ticks.saturating_sub(last));
            }
        }
        Ok(())
    }
}

/// `cpuN user nice system idle iowait irq softirq steal guest guest_nice` (proc(5)); guest is inside user already.
fn busy_ticks(line: &str) -> Option<(usize, u64)> {
    // The line `cpu ` without a number sums the others.
    let (cpu, rest) = line.strip_prefix("cpu")?.split_once(' ')?;
    let cpu = cpu.parse().ok()?;
    let fields = rest.split_ascii_whitespace();
    let fields: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    let at = |index: usize| fields.get(index).copied();
    Some((cpu, at(0)? + at(1)? + at(2)? + at(5).unwrap_or(0) + at(6).unwrap_or(0)))
}

impl Source for Model {
    fn origin(&self) -> Origin {
        Origin::Model
    }

    fn zones(&self) -> &[Zone] {
        &self.zones
    }

    fn read(&mut self, out: &mut Vec<io::Result<u64>>) {
        let elapsed = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if let Err(error) = self.count() {
            // Mounted anew, or gone: the next reading opens it again.
            self.file = None;
            let (kind, text) = (error.kind(), format!("{}: {error}", self.stat.display()));
            out.extend(self.zones.iter().map(|_| Err(io::Error::new(kind, text.clone()))));
            return;
        }
        for (zone, busy) in self.busy.iter().enumerate() {
            let busy_ns = busy.saturating_mul(self.tick_ns);
            let idle = Microjoules::of(self.idle_power(zone).unwrap_or(0), elapsed);
            let dynamic = Microjoules::of(self.line.busy_uw.saturating_sub(self.line.idle_uw), busy_ns);
            out.push(Ok((idle + dynamic).0));
        }
    }

    fn idle_power(&self, zone: usize) -> Option<u64> {
        let package = self.zones.get(zone)?.id.package?;
        let cpus = self.cpus.iter().filter(|(_, place)| *place == package).count();
        Some(self.line.idle_uw.saturating_mul(u64::try_from(cpus).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn busy_is_what_the_cpu_did_for_us() {
        assert_eq!(busy_ticks("cpu3 10 2 30 999 50 4 5 77 6 7"), Some((3, 10 + 2 + 30 + 4 + 5)));
        assert_eq!(busy_ticks("cpu  10 2 30 999 50 4 5 77 6 7"), None);
        assert_eq!(busy_ticks("intr 1 2 3"), None);
        assert_eq!(busy_ticks("cpu0 1"), None);
    }

    #[test]
    fn a_busy_second_costs_what_the_line_says() {
        let dir = tempfile::tempdir().unwrap();
        let write = |user: u64| fs::write(dir.path().join("stat"), format!("cpu0 {user} 0 0 0 0 0 0 0 0 0\n")).unwrap();
        let line = PowerLine { idle_uw: 0, busy_uw: 3_000_000 };
        write(1_000_000);
        let mut model = Model::new(line, &Topology::read(Path::new("/nowhere")), dir.path());
        let mut raw = Vec::new();
        model.read(&mut raw);
        write(1_000_100);
        model.read(&mut raw);
        let raw: Vec<_> = raw.into_iter().map(Result::unwrap).collect();
        assert_eq!(raw, [0, 3_000_000 * 100 * model.tick_ns / 1_000_000_000]);
    }

    #[test]
    fn a_cpu_that_goes_and_comes_back_is_not_billed_twice() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| fs::write(dir.path().join("stat"), text).unwrap();
        let line = PowerLine { idle_uw: 0, busy_uw: 1_000_000_000 };
        let both = |a: u64, b: u64| format!("cpu0 {a} 0 0 0 0 0 0\ncpu1 {b} 0 0 0 0 0 0\n");
        write(&both(1000, 5000));
        let mut model = Model::new(line, &Topology::read(Path::new("/nowhere")), dir.path());
        let mut ticks = |text: &str| {
            write(text);
            let mut raw = Vec::new();
            model.read(&mut raw);
            raw[0].as_ref().unwrap() / (1000 * model.tick_ns / 1000)
        };
        assert_eq!(ticks(&both(1000, 5000)), 0);
        assert_eq!(ticks(&both(1001, 5002)), 3);
        assert_eq!(ticks("cpu0 1002 0 0 0 0 0 0\n"), 4);
        assert_eq!(ticks(&both(1003, 5002)), 5);
        assert_eq!(ticks(&format!("{}cpu2 7000 0 0 0 0 0 0\n", both(1003, 5003))), 6, "a new CPU starts where it is");
    }

    #[test]
    fn idle_power_is_known_and_counts_every_cpu() {
        let topology = Topology::read(Path::new("/sys"));
        let model = Model::new(PowerLine::default(), &topology, Path::new("/proc"));
        let all: u64 = (0..model.zones().len()).map(|zone| model.idle_power(zone).unwrap()).sum();
        assert_eq!(all, 740_000 * u64::try_from(topology.cpus(false).count()).unwrap());
    }

    #[test]
    fn without_proc_stat_it_says_so() {
        let mut model = Model::new(PowerLine::default(), &Topology::read(Path::new("/nowhere")), Path::new("/nowhere"));
        let mut raw = Vec::new();
        model.read(&mut raw);
        assert!(raw[0].as_ref().unwrap_err().to_string().contains("/nowhere/stat"));
    }
}
