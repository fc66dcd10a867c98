//! Estimated energy, for machines without energy counters. Always `source="model"`, never mixed
//! with measured energy.
//!
//! Without configured figures the wall power of the server is estimated from its processor and
//! size, and follows the curve of published servers. The zone of the machine has it; the packages
//! have the part that packages and their memory usually use. A guest has its CPUs' share of a usual
//! server of the generation. Each zone states a 90 % interval.
//!
//! Configured figures are those of a logical CPU: idle power, plus busy CPU seconds times the
//! additional power of a busy CPU, as packages, without a machine.
//!
//! Busy time is the probe's own count of CPU time, where it knows it by CPU, and else that of
//! `/proc/stat`, which the kernel samples in ticks. Steal time is excluded, because the hypervisor
//! gave that time, and its energy, to another guest.

mod interval;
mod meter;
mod server;
mod size;
mod table;

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt as _, path::PathBuf, time::Instant};

use units::Microjoules;

pub use self::interval::Interval;
use self::{
    meter::{Meter, PACKAGE_SHARE, PACKAGE_SHARES},
    server::Server,
    size::Size,
};
use super::{
    cpu_kinds::{EFFICIENT_SHARE, efficient},
    processor::Processor,
    source::{Source, SourceInventory, SourcePaths},
    zone::{Ceiling, Origin, Range, Zone, ZoneId, ZoneKind},
};
use crate::host::topology::{PackageId, Topology};

/// Largest `/proc/stat` that is read: a line for each of 8192 CPUs and each interrupt.
const MAX_STAT: usize = 16 << 20;

/// Power of a logical CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuPower {
    /// Microwatts of an idle CPU.
    pub idle_uw: u64,
    /// Microwatts of a CPU under full load; at least `idle_uw`.
    pub busy_uw: u64,
}

/// How the power follows from busy time.
enum Power {
    /// Configured: power of the two kinds of CPUs, performance and efficient.
    Cpus([CpuPower; 2]),
    /// Estimated.
    Server(Meter),
}

/// The modelled packages, and the modelled machine, of this machine.
pub struct Model {
    power: Power,
    efficient: Vec<usize>,
    stat: PathBuf,
    start: Instant,
    tick_ns: u64,
    inventory: SourceInventory,
    cpus: Vec<(usize, PackageId)>,
    file: Option<File>,
    text: Vec<u8>,
    /// Busy and stolen ticks of each CPU at its last reading. A CPU that was offline continues from
    /// there (kernel/sched/cputime.c keeps its counters), and a new CPU starts from its first
    /// reading.
    last: BTreeMap<usize, [u64; 2]>,
    /// The probe's own count of each CPU's busy nanoseconds: for the next reading, and at the last.
    /// Empty where it is unknown.
    counted: Vec<u64>,
    last_counted: Vec<u64>,
    /// Busy nanoseconds of each package since the start, by kind of CPU.
    busy: Vec<[u64; 2]>,
}

impl Model {
    /// One package zone for each package of the topology, and without configured `power` one of the
    /// machine, whose power is estimated.
    #[must_use]
    pub fn new(power: Option<CpuPower>, processor: &Processor, topology: &Topology, paths: &SourcePaths) -> Self {
        let stat = paths.procfs.join("stat");
        let efficient = efficient(&paths.sysfs);
        let packages = topology.packages(false);
        let cpus: Vec<(usize, PackageId)> = topology.cpus(false).collect();
        let mut ids: Vec<ZoneId> =
            packages.iter().map(|package| ZoneId { package: Some(*package), kind: ZoneKind::Package }).collect();
        let (power, of, intervals) = match power {
            Some(power) => (Power::Cpus(kinds(power)), "the configured power".to_owned(), vec![None; ids.len()]),
            None => {
                let server = Server::estimate(processor, Size::read(topology, &paths.sysfs, &paths.procfs));
                let (of, whole) = (server.describe(), server.interval());
                let mut intervals = vec![Some(of_package(whole)); ids.len()];
                intervals.push(Some(whole));
                ids.push(ZoneId { package: None, kind: ZoneKind::Machine });
                let weight = |package: &PackageId| -> u64 {
                    let own = cpus.iter().filter(|(_, of)| of == package);
                    own.map(|(cpu, _)| if efficient.contains(cpu) { u64::from(EFFICIENT_SHARE) } else { 1000 }).sum()
                };
                (Power::Server(Meter::new(server, packages.iter().map(weight).collect())), of, intervals)
            }
        };
        let zone = |(id, interval): (ZoneId, &Option<Interval>)| {
            let certainty = interval.map(|interval| certainty(id.kind, interval)).unwrap_or_default();
            let location = format!("power model of {of} over {}{certainty}", stat.display());
            Zone { ceiling: Ceiling::None, interval: *interval, ..Zone::microjoules(id, Range::Endless, location) }
        };
        let zones: Vec<Zone> = ids.into_iter().zip(&intervals).map(zone).collect();
        Self {
            power,
            efficient,
            file: File::open(&stat).ok(),
            stat,
            start: Instant::now(),
            tick_ns: 1_000_000_000 / rustix::param::clock_ticks_per_second(),
            cpus,
            text: Vec::new(),
            last: BTreeMap::new(),
            counted: Vec::new(),
            last_counted: Vec::new(),
            busy: vec![[0; 2]; packages.len()],
            inventory: SourceInventory { zones, ..SourceInventory::default() },
        }
    }

    /// Updates the busy time of each package.
    fn update_busy(&mut self) -> io::Result<()> {
        self.read_stat()?;
        for line in self.text.split(|byte| *byte == b'\n') {
            let Ok(line) = str::from_utf8(line) else { continue };
            let Some((cpu, ticks)) = busy_ticks(line) else { continue };
            let now = [ticks, stolen_ticks(line)];
            let last = self.last.insert(cpu, now).unwrap_or(now);
            let [sampled, stolen] = [0, 1].map(|of| now[of].saturating_sub(last[of]).saturating_mul(self.tick_ns));
            let counted = self.counted.get(cpu).zip(self.last_counted.get(cpu));
            // A task runs on in the count while the hypervisor runs another guest.
            let counted = counted.map(|(now, last)| now.saturating_sub(*last).saturating_sub(stolen));
            let package = self.cpus.iter().find(|(known, _)| *known == cpu).map(|(_, package)| *package);
            let is_of_cpu = |zone: &Zone| package.is_some() && zone.id.package == package;
            let zone = self.inventory.zones.iter().position(is_of_cpu).unwrap_or(0);
            let kind = usize::from(self.efficient.contains(&cpu));
            if let Some(sum) = self.busy.get_mut(zone).and_then(|sums| sums.get_mut(kind)) {
                *sum = sum.saturating_add(counted.unwrap_or(sampled));
            }
        }
        std::mem::swap(&mut self.counted, &mut self.last_counted);
        self.counted.clear();
        Ok(())
    }

    /// Reads the whole of `/proc/stat`.
    fn read_stat(&mut self) -> io::Result<()> {
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
                return Ok(());
            }
        }
    }
}

/// The configured power of both kinds of CPUs.
fn kinds(power: CpuPower) -> [CpuPower; 2] {
    let share = |microwatts: u64| microwatts / 1000 * u64::from(EFFICIENT_SHARE);
    [power, CpuPower { idle_uw: share(power.idle_uw), busy_uw: share(power.busy_uw) }]
}

/// The interval of a package: that of the machine, and the range of the package's share of it.
fn of_package(machine: Interval) -> Interval {
    let scale = |[low, high]: [i32; 2]| {
        let by = |thousandths: i32, share: i32| (1000 + thousandths) * share / PACKAGE_SHARE - 1000;
        [by(low, PACKAGE_SHARES[0]), by(high, PACKAGE_SHARES[1])]
    };
    Interval { idle: scale(machine.idle), full: scale(machine.full), energy: scale(machine.energy) }
}

/// What is uncertain about a zone, for people.
fn certainty(kind: ZoneKind, interval: Interval) -> String {
    let percent = |thousandths: i32| f64::from(thousandths) / 10.0;
    let share = match kind {
        ZoneKind::Package => format!(", {:.0} % of the machine with the memory", percent(PACKAGE_SHARE)),
        _ => String::new(),
    };
    format!("{share}, {}", interval.of_energy())
}

/// `cpuN user nice system idle iowait irq softirq steal guest guest_nice` (proc(5)); guest is part
/// of user.
fn busy_ticks(line: &str) -> Option<(usize, u64)> {
    // The line `cpu ` without a number is the sum of the others.
    let (cpu, rest) = line.strip_prefix("cpu")?.split_once(' ')?;
    let cpu = cpu.parse().ok()?;
    let fields = rest.split_ascii_whitespace();
    let fields: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    let at = |index: usize| fields.get(index).copied();
    Some((cpu, at(0)? + at(1)? + at(2)? + at(5).unwrap_or(0) + at(6).unwrap_or(0)))
}

/// The field `steal` of such a line.
fn stolen_ticks(line: &str) -> u64 {
    line.split_ascii_whitespace().nth(8).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// The energy of a package whose CPUs have a configured power.
fn configured(powers: &[CpuPower; 2], idle_uw: u64, elapsed_ns: u64, busy_ns: [u64; 2]) -> Microjoules {
    let dynamic: Microjoules = busy_ns
        .iter()
        .zip(powers)
        .map(|(ns, power)| Microjoules::from_power(power.busy_uw.saturating_sub(power.idle_uw), *ns))
        .sum();
    Microjoules::from_power(idle_uw, elapsed_ns) + dynamic
}

impl Source for Model {
    fn origin(&self) -> Origin {
        Origin::Model
    }

    fn inventory(&self) -> &SourceInventory {
        &self.inventory
    }

    /// The time is exact, where `/proc/stat` charges a tick to what runs at its end.
    fn note_busy(&mut self, busy_ns: &[u64]) {
        self.counted.clear();
        self.counted.extend_from_slice(busy_ns);
    }

    fn read(&mut self, out: &mut Vec<io::Result<u64>>) {
        let elapsed = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if let Err(error) = self.update_busy() {
            // The file may have been mounted again, or removed. The next reading opens it again.
            self.file = None;
            let (kind, text) = (error.kind(), format!("{}: {error}", self.stat.display()));
            out.extend(self.inventory.zones.iter().map(|_| Err(io::Error::new(kind, text.clone()))));
            return;
        }
        if let Power::Server(meter) = &mut self.power {
            let weighted = |[performance, efficient]: &[u64; 2]| {
                u128::from(*performance) * 1000 + u128::from(*efficient) * u128::from(EFFICIENT_SHARE)
            };
            let busy: Vec<u128> = self.busy.iter().map(weighted).collect();
            out.extend(meter.read(elapsed, &busy).iter().map(|energy| Ok(energy.0)));
            return;
        }
        for (zone, busy) in self.busy.iter().enumerate() {
            if let Power::Cpus(powers) = &self.power {
                out.push(Ok(configured(powers, self.idle_power(zone).unwrap_or(0), elapsed, *busy).0));
            }
        }
    }

    fn idle_power(&self, zone: usize) -> Option<u64> {
        let powers = match &self.power {
            Power::Server(meter) => return meter.idle_power(zone),
            Power::Cpus(powers) => powers,
        };
        let package = self.inventory.zones.get(zone)?.id.package?;
        let cpus = self.cpus.iter().filter(|(_, of)| *of == package);
        Some(cpus.map(|(cpu, _)| powers[usize::from(self.efficient.contains(cpu))].idle_uw).sum())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn busy_time_excludes_idle_steal_and_guest() {
        assert_eq!(busy_ticks("cpu3 10 2 30 999 50 4 5 77 6 7"), Some((3, 10 + 2 + 30 + 4 + 5)));
        assert_eq!(busy_ticks("cpu  10 2 30 999 50 4 5 77 6 7"), None);
        assert_eq!(busy_ticks("intr 1 2 3"), None);
        assert_eq!(busy_ticks("cpu0 1"), None);
    }

    const NOWHERE: &str = "/nowhere";

    fn model(power: CpuPower, sysfs: &Path, procfs: &Path) -> Model {
        let paths = SourcePaths { sysfs: sysfs.into(), procfs: procfs.into(), dev: NOWHERE.into(), host: None };
        Model::new(Some(power), &Processor::read(procfs), &Topology::read(sysfs), &paths)
    }

    fn read(model: &mut Model) -> u64 {
        let mut raw = Vec::new();
        model.read(&mut raw);
        raw.remove(0).unwrap()
    }

    #[test]
    fn a_busy_second_uses_the_modelled_power() {
        let dir = tempfile::tempdir().unwrap();
        let write = |user: u64| fs::write(dir.path().join("stat"), format!("cpu0 {user} 0 0 0 0 0 0 0 0 0\n")).unwrap();
        let power = CpuPower { idle_uw: 0, busy_uw: 3_000_000 };
        write(1_000_000);
        let mut model = model(power, Path::new(NOWHERE), dir.path());
        let before = read(&mut model);
        write(1_000_100);
        assert_eq!((before, read(&mut model)), (0, 3_000_000 * 100 * model.tick_ns / 1_000_000_000));
    }

    #[test]
    fn an_efficient_core_uses_less_power() {
        let dir = tempfile::tempdir().unwrap();
        for (pmu, cpus) in [("cpu_core", "0"), ("cpu_atom", "1")] {
            fs::create_dir_all(dir.path().join("devices").join(pmu)).unwrap();
            fs::write(dir.path().join("devices").join(pmu).join("cpus"), cpus).unwrap();
        }
        let write = |a: u64, b: u64| {
            fs::write(dir.path().join("stat"), format!("cpu0 {a} 0 0 0 0 0 0\ncpu1 {b} 0 0 0 0 0 0\n")).unwrap();
        };
        write(0, 0);
        let mut model = model(CpuPower { idle_uw: 0, busy_uw: 3_000_000 }, dir.path(), dir.path());
        read(&mut model);
        write(100, 0);
        let performance = read(&mut model);
        write(100, 100);
        let efficient = read(&mut model) - performance;
        assert_eq!((performance, efficient), (3_000_000, 999_000));
    }

    #[test]
    fn a_cpu_that_was_offline_is_not_counted_twice() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| fs::write(dir.path().join("stat"), text).unwrap();
        let power = CpuPower { idle_uw: 0, busy_uw: 1_000_000_000 };
        let both = |a: u64, b: u64| format!("cpu0 {a} 0 0 0 0 0 0\ncpu1 {b} 0 0 0 0 0 0\n");
        write(&both(1000, 5000));
        let mut model = model(power, Path::new(NOWHERE), dir.path());
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
        assert_eq!(
            ticks(&format!("{}cpu2 7000 0 0 0 0 0 0\n", both(1003, 5003))),
            6,
            "a new CPU starts at its first reading"
        );
    }

    #[test]
    fn idle_power_includes_every_cpu() {
        let topology = Topology::read(Path::new("/sys"));
        let power = CpuPower { idle_uw: 740_000, busy_uw: 3_500_000 };
        let model = model(power, Path::new("/sys"), Path::new("/proc"));
        let all: u64 = (0..model.zones().len()).map(|zone| model.idle_power(zone).unwrap()).sum();
        let cpus = u64::try_from(topology.cpus(false).count()).unwrap();
        let efficient = u64::try_from(model.efficient.len()).unwrap();
        assert_eq!(all, 740_000 * (cpus - efficient) + 740 * u64::from(EFFICIENT_SHARE) * efficient);
    }

    #[test]
    fn a_missing_proc_stat_is_an_error() {
        let power = CpuPower { idle_uw: 740_000, busy_uw: 3_500_000 };
        let mut model = model(power, Path::new(NOWHERE), Path::new(NOWHERE));
        let mut raw = Vec::new();
        model.read(&mut raw);
        assert!(raw[0].as_ref().unwrap_err().to_string().contains("/nowhere/stat"));
    }

    /// A tree without topology, so with one package and one CPU, and its processor.
    fn estimated(dir: &Path, cpuinfo: &str) -> Model {
        fs::write(dir.join("cpuinfo"), cpuinfo).unwrap();
        let paths = SourcePaths { sysfs: dir.into(), procfs: dir.into(), dev: NOWHERE.into(), host: None };
        Model::new(None, &Processor::read(dir), &Topology::read(dir), &paths)
    }

    const ICE_LAKE: &str = "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\nmodel name\t: Xeon\n";

    /// The wall power of servers was published as that of packages.
    #[test]
    fn a_package_is_a_part_of_the_machine_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("stat"), "cpu0 0 0 0 0 0 0 0 0 0 0\n").unwrap();
        let mut model = estimated(dir.path(), ICE_LAKE);
        let kinds: Vec<ZoneKind> = model.zones().iter().map(|zone| zone.id.kind).collect();
        assert_eq!(kinds, [ZoneKind::Package, ZoneKind::Machine]);
        let mut raw = Vec::new();
        model.read(&mut raw);
        assert_eq!(raw.len(), 2);
        let (package, machine) = (model.idle_power(0).unwrap(), model.idle_power(1).unwrap());
        assert_eq!(package, machine * 530 / 1000);
        let (inner, outer) = (model.zones()[0].interval.unwrap(), model.zones()[1].interval.unwrap());
        assert!(inner.energy[0] < outer.energy[0] && inner.energy[1] > outer.energy[1], "{inner:?} {outer:?}");
        let location = &model.zones()[1].location;
        assert!(location.contains("Ice Lake") && location.contains("90 % interval -"), "{location}");
        assert_eq!(super::super::zone::accounting_roots(model.zones()), [true, false]);
    }

    #[test]
    fn configured_power_has_no_machine_and_no_interval() {
        let model = model(CpuPower { idle_uw: 1, busy_uw: 2 }, Path::new(NOWHERE), Path::new(NOWHERE));
        assert_eq!((model.zones().len(), model.zones()[0].interval), (1, None));
    }

    /// `/proc/stat` charged a tick to whatever ran at its end, and never a task that slept then.
    #[test]
    fn counted_time_is_used_where_it_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let write = |user: u64, steal: u64| {
            fs::write(dir.path().join("stat"), format!("cpu0 {user} 0 0 0 0 0 0 {steal} 0 0\n")).unwrap();
        };
        write(0, 0);
        let mut model = model(CpuPower { idle_uw: 0, busy_uw: 1_000_000 }, Path::new(NOWHERE), dir.path());
        let tick = model.tick_ns;
        let busy_ns = |model: &mut Model, counted: &[u64]| {
            model.note_busy(counted);
            read(model) * 1000
        };
        assert_eq!(busy_ns(&mut model, &[5_000_000]), 0, "the first reading is a beginning");
        assert_eq!(busy_ns(&mut model, &[8_000_000]), 3_000_000, "below a tick");
        write(100, 0);
        assert_eq!(busy_ns(&mut model, &[9_000_000]), 4_000_000, "ticks are not counted twice");
        write(101, 0);
        assert_eq!(busy_ns(&mut model, &[]), 4_000_000 + tick, "unknown: ticks");
        write(101, 3);
        assert_eq!(busy_ns(&mut model, &[30_000_000]), 4_000_000 + tick, "known again: a beginning");
        write(101, 5);
        let counted = 30_000_000 + 7 * tick;
        assert_eq!(busy_ns(&mut model, &[counted]), 4_000_000 + 6 * tick, "without the two stolen ticks");
    }
}
