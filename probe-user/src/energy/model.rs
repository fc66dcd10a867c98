//! Energy of a linear power model, for machines without energy counters: idle power, plus busy CPU
//! seconds times the additional power of a busy CPU. Always `source="model"`, never mixed with
//! measured energy.
//!
//! The model is linear. Real power is not linear in load, by about as much as processors differ
//! from each other, and only a linear model gives the same energy for a minute as for the sum of
//! its seconds.
//!
//! Busy seconds come from `/proc/stat`, so the model works without eBPF. Steal time is excluded,
//! because the hypervisor gave that time, and its energy, to another guest. A guest is charged for
//! the CPUs that it has, which is its share of the host.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt as _, path::PathBuf, time::Instant};

use units::Microjoules;

use super::{
    cpu_kinds::{EFFICIENT_SHARE, efficient},
    processor::{Processor, Vendor},
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

impl CpuPower {
    const fn milliwatts(idle: u64, busy: u64) -> Self {
        Self { idle_uw: idle * 1000, busy_uw: busy * 1000 }
    }
}

/// Mean watts of a logical CPU at idle and at full load, by processor generation, as Cloud Carbon
/// Footprint derived them from SPECpower_ssj2008 results (cloud-carbon-footprint, GCP constants
/// MIN_WATTS/MAX_WATTS_BY_COMPUTE_PROCESSOR; method: cloudcarbonfootprint.org, Methodology,
/// Appendix I).
const GENERATIONS: [(&str, CpuPower); 10] = [
    ("Sandy Bridge", CpuPower::milliwatts(2170, 8580)),
    ("Ivy Bridge", CpuPower::milliwatts(3040, 8250)),
    ("Haswell", CpuPower::milliwatts(1000, 4740)),
    ("Broadwell", CpuPower::milliwatts(710, 3690)),
    ("Skylake", CpuPower::milliwatts(650, 4260)),
    ("Cascade Lake", CpuPower::milliwatts(640, 3970)),
    ("Coffee Lake", CpuPower::milliwatts(1140, 5420)),
    ("EPYC 1st gen", CpuPower::milliwatts(820, 2550)),
    ("EPYC 2nd gen", CpuPower::milliwatts(470, 1690)),
    ("EPYC 3rd gen", CpuPower::milliwatts(450, 2020)),
];
/// For generations that are not in the table: the averages of the same source for AWS servers.
const UNKNOWN: (&str, CpuPower) = ("an average server", CpuPower::milliwatts(740, 3500));

/// The power model of a processor's generation. Model numbers: arch/x86/include/asm/intel-family.h,
/// and AMD's PPRs.
fn generation(processor: &Processor) -> (&'static str, CpuPower) {
    let name = match (processor.vendor, processor.family, processor.model) {
        (Vendor::Intel, 6, 0x2a | 0x2d) => "Sandy Bridge",
        (Vendor::Intel, 6, 0x3a | 0x3e) => "Ivy Bridge",
        (Vendor::Intel, 6, 0x3c | 0x3f | 0x45 | 0x46) => "Haswell",
        (Vendor::Intel, 6, 0x3d | 0x47 | 0x4f | 0x56) => "Broadwell",
        // Several generations have this number. The second digit of the name distinguishes them
        // (Gold 6130, Gold 6230).
        (Vendor::Intel, 6, 0x55) if second_scalable(&processor.name) => "Cascade Lake",
        (Vendor::Intel, 6, 0x55 | 0x4e | 0x5e) => "Skylake",
        (Vendor::Intel, 6, 0x8e | 0x9e) => "Coffee Lake",
        (Vendor::Amd, 0x17, 0x01) => "EPYC 1st gen",
        (Vendor::Amd, 0x17, 0x31) => "EPYC 2nd gen",
        (Vendor::Amd, 0x19, 0x01) => "EPYC 3rd gen",
        _ => return UNKNOWN,
    };
    GENERATIONS.into_iter().find(|(known, _)| *known == name).unwrap_or(UNKNOWN)
}

fn second_scalable(name: &str) -> bool {
    name.split([' ', '-']).any(|word| {
        let digits = word.as_bytes();
        digits.len() >= 4 && digits[..4].iter().all(u8::is_ascii_digit) && digits[1] == b'2'
    })
}

/// The modelled packages of this machine.
pub struct Model {
    /// Power of the two kinds of CPUs: performance, efficient.
    powers: [CpuPower; 2],
    efficient: Vec<usize>,
    stat: PathBuf,
    start: Instant,
    tick_ns: u64,
    inventory: SourceInventory,
    cpus: Vec<(usize, PackageId)>,
    file: Option<File>,
    text: Vec<u8>,
    /// Busy ticks of each CPU at its last reading. A CPU that was offline continues from there
    /// (kernel/sched/cputime.c keeps its counters), and a new CPU starts from its first reading.
    last: BTreeMap<usize, u64>,
    /// Busy ticks of each zone since the start, by kind of CPU.
    busy: Vec<[u64; 2]>,
}

impl Model {
    /// One package zone for each package of the topology. Without `power`, the generation of the
    /// processor determines the power.
    #[must_use]
    pub fn new(power: Option<CpuPower>, processor: &Processor, topology: &Topology, paths: &SourcePaths) -> Self {
        let stat = paths.procfs.join("stat");
        let (of, power) = power.map_or_else(|| generation(processor), |power| ("the configured power", power));
        let share = |microwatts: u64| microwatts / 1000 * u64::from(EFFICIENT_SHARE);
        let powers = [power, CpuPower { idle_uw: share(power.idle_uw), busy_uw: share(power.busy_uw) }];
        let zones: Vec<Zone> = topology
            .packages(false)
            .into_iter()
            .map(|package| {
                let id = ZoneId { package: Some(package), kind: ZoneKind::Package };
                let location = format!("power model of {of} over {}", stat.display());
                Zone { ceiling: Ceiling::None, ..Zone::microjoules(id, Range::Endless, location) }
            })
            .collect();
        let hertz = rustix::param::clock_ticks_per_second();
        Self {
            powers,
            efficient: efficient(&paths.sysfs),
            file: File::open(&stat).ok(),
            stat,
            start: Instant::now(),
            tick_ns: 1_000_000_000 / hertz,
            cpus: topology.cpus(false).collect(),
            text: Vec::new(),
            last: BTreeMap::new(),
            busy: vec![[0; 2]; zones.len()],
            inventory: SourceInventory { zones, ..SourceInventory::default() },
        }
    }

    /// Updates the busy ticks of each zone.
    fn update_busy(&mut self) -> io::Result<()> {
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
            let package = self.cpus.iter().find(|(known, _)| *known == cpu).map(|(_, package)| *package);
            let zone = self.inventory.zones.iter().position(|zone| zone.id.package == package).unwrap_or(0);
            let kind = usize::from(self.efficient.contains(&cpu));
            if let Some(sum) = self.busy.get_mut(zone).and_then(|sums| sums.get_mut(kind)) {
                *sum = sum.saturating_add(ticks.saturating_sub(last));
            }
        }
        Ok(())
    }
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

impl Source for Model {
    fn origin(&self) -> Origin {
        Origin::Model
    }

    fn inventory(&self) -> &SourceInventory {
        &self.inventory
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
        for (zone, busy) in self.busy.iter().enumerate() {
            let idle = Microjoules::from_power(self.idle_power(zone).unwrap_or(0), elapsed);
            let dynamic: Microjoules = busy
                .iter()
                .zip(&self.powers)
                .map(|(ticks, power)| {
                    Microjoules::from_power(
                        power.busy_uw.saturating_sub(power.idle_uw),
                        ticks.saturating_mul(self.tick_ns),
                    )
                })
                .sum();
            out.push(Ok((idle + dynamic).0));
        }
    }

    fn idle_power(&self, zone: usize) -> Option<u64> {
        let package = self.inventory.zones.get(zone)?.id.package?;
        let cpus = self.cpus.iter().filter(|(_, of)| *of == package);
        Some(cpus.map(|(cpu, _)| self.powers[usize::from(self.efficient.contains(cpu))].idle_uw).sum())
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
        let paths = SourcePaths { sysfs: sysfs.into(), procfs: procfs.into(), dev: NOWHERE.into() };
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
    fn the_generation_follows_from_the_model_number() {
        let of = |vendor, family, model, name: &str| {
            generation(&Processor { vendor, family, model, name: name.to_owned() }).0
        };
        assert_eq!(of(Vendor::Intel, 6, 0x55, "Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz"), "Skylake");
        assert_eq!(of(Vendor::Intel, 6, 0x55, "Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz"), "Cascade Lake");
        assert_eq!(of(Vendor::Amd, 0x17, 0x31, "AMD EPYC 7742"), "EPYC 2nd gen");
        assert_eq!(of(Vendor::Other, 0, 0, ""), UNKNOWN.0);
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
        let mut model = model(UNKNOWN.1, Path::new(NOWHERE), Path::new(NOWHERE));
        let mut raw = Vec::new();
        model.read(&mut raw);
        assert!(raw[0].as_ref().unwrap_err().to_string().contains("/nowhere/stat"));
    }
}
