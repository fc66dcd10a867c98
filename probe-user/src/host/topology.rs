//! Package and die of each CPU, from sysfs, also below `--path.sysfs`. Never from directory numbers
//! or the order of a list.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use serde::{Deserialize, Serialize};

/// The most CPUs a kernel can be built for (CONFIG_NR_CPUS of x86).
pub const MAX_CPUS: usize = 8192;

/// One RAPL domain: a package, or one die of it where the hardware counts per die (Cascade
/// Lake-AP).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PackageId {
    /// `physical_package_id`.
    pub package: u32,
    /// `die_id`, only where zones are named `package-N-die-M`.
    pub die: Option<u32>,
}

impl PackageId {
    /// A package with one counter for all its dies.
    #[must_use]
    pub fn whole(package: u32) -> Self {
        Self { package, die: None }
    }
}

/// Value of the label: `0`, or `0-die-1`.
impl fmt::Display for PackageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.package)?;
        self.die.map_or(Ok(()), |die| write!(f, "-die-{die}"))
    }
}

/// Package, die and core of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CpuLocation {
    cpu: usize,
    package: u32,
    die: u32,
    core: u32,
}

/// The CPUs of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    cpus: Vec<CpuLocation>,
    known: bool,
    /// True when SMT can be switched on while the probe runs.
    threads: bool,
}

impl Topology {
    /// Reads `devices/system/cpu` under `sysfs`.
    ///
    /// An offline CPU has a directory without `topology`, so it is left out until it comes online.
    /// On a machine without any topology every CPU belongs to package 0, and a machine without any
    /// CPU directory has one CPU.
    #[must_use]
    pub fn read(sysfs: &Path) -> Self {
        let dir = sysfs.join("devices/system/cpu");
        let cpus: Vec<usize> = fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("cpu")?.parse().ok())
            .collect();
        let id = |cpu: usize, file: &str| {
            let text = fs::read_to_string(dir.join(format!("cpu{cpu}/topology/{file}"))).ok()?;
            // -1 where the architecture has no such id (drivers/base/topology.c).
            text.trim().parse::<u32>().ok()
        };
        let locate = |cpu: usize| {
            let package = id(cpu, "physical_package_id")?;
            // A CPU without a core id counts as a core.
            let core = id(cpu, "core_id").or_else(|| u32::try_from(cpu).ok()).unwrap_or(0);
            Some(CpuLocation { cpu, package, die: id(cpu, "die_id").unwrap_or(0), core })
        };
        let mut locations: Vec<CpuLocation> = cpus.iter().filter_map(|cpu| locate(*cpu)).collect();
        let known = !locations.is_empty();
        if !known {
            locations.extend(cpus.into_iter().map(|cpu| CpuLocation {
                cpu,
                package: 0,
                die: 0,
                core: u32::try_from(cpu).unwrap_or(0),
            }));
        }
        if locations.is_empty() {
            locations.push(CpuLocation { cpu: 0, package: 0, die: 0, core: 0 });
        }
        locations.sort_unstable_by_key(|location| location.cpu);
        // The other states cannot change (Documentation/ABI/testing/sysfs-devices-system-cpu).
        let control = fs::read_to_string(dir.join("smt/control")).unwrap_or_default();
        Self { cpus: locations, known, threads: matches!(control.trim(), "on" | "off") }
    }

    /// False when sysfs has no topology, and one package is assumed.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// Number of dies of a package with CPUs.
    #[must_use]
    pub fn dies(&self, package: u32) -> usize {
        let mut dies: Vec<_> =
            self.cpus.iter().filter(|location| location.package == package).map(|location| location.die).collect();
        dies.sort_unstable();
        dies.dedup();
        dies.len()
    }

    /// The package and die of a CPU.
    #[must_use]
    pub fn domain(&self, cpu: usize, per_die: bool) -> Option<PackageId> {
        self.cpus.iter().find(|location| location.cpu == cpu).map(|location| location.domain(per_die))
    }

    /// True when two CPUs share a core, or can after SMT is switched on.
    #[must_use]
    pub fn has_smt(&self) -> bool {
        if self.threads {
            return true;
        }
        let mut cores: Vec<_> =
            self.cpus.iter().map(|location| (location.package, location.die, location.core)).collect();
        cores.sort_unstable();
        cores.windows(2).any(|pair| pair[0] == pair[1])
    }

    /// The sibling of each CPU number, which is the other CPU of its core; `None` without a
    /// sibling.
    ///
    /// # Errors
    /// When a core has more than two threads, because then time is not either alone or next to one
    /// sibling.
    pub fn siblings(&self) -> Result<Vec<Option<usize>>, String> {
        let mut cores: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for location in &self.cpus {
            cores.entry((location.package, location.die, location.core)).or_default().push(location.cpu);
        }
        let mut all = vec![None; self.cpus.iter().map(|location| location.cpu + 1).max().unwrap_or(0)];
        for cpus in cores.values() {
            match cpus[..] {
                [_] => {}
                [one, other] => (all[one], all[other]) = (Some(other), Some(one)),
                _ => {
                    return Err(format!(
                        "{} threads per core: time next to a busy sibling is not distinguished",
                        cpus.len()
                    ));
                }
            }
        }
        Ok(all)
    }

    /// The packages or dies with CPUs, in order.
    #[must_use]
    pub fn packages(&self, per_die: bool) -> Vec<PackageId> {
        let mut all: Vec<_> = self.cpus.iter().map(|location| location.domain(per_die)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The package of a machine that has a single one.
    #[must_use]
    pub fn only_package(&self) -> Option<PackageId> {
        match &*self.packages(false) {
            [package] => Some(*package),
            _ => None,
        }
    }

    /// The package or die of each CPU: `(cpu, domain)`, ascending.
    pub fn cpus(&self, per_die: bool) -> impl Iterator<Item = (usize, PackageId)> + '_ {
        self.cpus.iter().map(move |location| (location.cpu, location.domain(per_die)))
    }
}

impl CpuLocation {
    fn domain(self, per_die: bool) -> PackageId {
        PackageId { package: self.package, die: per_die.then_some(self.die) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(cpus: &[(usize, &str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (cpu, package, die) in cpus {
            let at = dir.path().join(format!("devices/system/cpu/cpu{cpu}/topology"));
            fs::create_dir_all(&at).unwrap();
            fs::write(at.join("physical_package_id"), package).unwrap();
            fs::write(at.join("die_id"), die).unwrap();
        }
        fs::create_dir_all(dir.path().join("devices/system/cpu/cpufreq")).unwrap();
        dir
    }

    #[test]
    fn packages_follow_from_the_topology_and_not_from_cpu_order() {
        let dir = tree(&[(0, "1\n", "0\n"), (1, "0\n", "0\n"), (10, "1\n", "1\n"), (2, "0\n", "1\n")]);
        let topology = Topology::read(dir.path());
        assert_eq!(topology.packages(false), [PackageId::whole(0), PackageId::whole(1)]);
        assert_eq!(
            topology.packages(true).iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["0-die-0", "0-die-1", "1-die-0", "1-die-1"]
        );
        let cpus: Vec<_> = topology.cpus(false).map(|(cpu, domain)| (cpu, domain.package)).collect();
        assert_eq!(cpus, [(0, 1), (1, 0), (2, 0), (10, 1)]);
    }

    #[test]
    fn siblings_are_cpus_of_one_core() {
        let dir = tree(&[(0, "0\n", "0\n"), (1, "0\n", "0\n")]);
        assert!(!Topology::read(dir.path()).has_smt());
        for cpu in 0..2 {
            fs::write(dir.path().join(format!("devices/system/cpu/cpu{cpu}/topology/core_id")), "7\n").unwrap();
        }
        assert!(Topology::read(dir.path()).has_smt());
        // Two cores with SMT off, which can be switched on.
        fs::write(dir.path().join("devices/system/cpu/cpu0/topology/core_id"), "6\n").unwrap();
        fs::create_dir_all(dir.path().join("devices/system/cpu/smt")).unwrap();
        for (control, may) in [("off\n", true), ("notsupported\n", false), ("forceoff\n", false)] {
            fs::write(dir.path().join("devices/system/cpu/smt/control"), control).unwrap();
            assert_eq!(Topology::read(dir.path()).has_smt(), may, "{control}");
        }
        fs::write(dir.path().join("devices/system/cpu/cpu0/topology/core_id"), "7\n").unwrap();
        assert_eq!(Topology::read(dir.path()).siblings(), Ok(vec![Some(1), Some(0)]));
        assert_eq!(Topology::read(dir.path()).dies(0), 1);
    }

    #[test]
    fn an_offline_cpu_has_no_package_yet() {
        let dir = tree(&[(0, "0\n", "0\n"), (1, "1\n", "0\n")]);
        fs::create_dir_all(dir.path().join("devices/system/cpu/cpu2")).unwrap();
        assert_eq!(Topology::read(dir.path()).cpus(false).map(|(cpu, _)| cpu).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn a_machine_without_package_ids_has_one_package() {
        let dir = tree(&[(0, "-1\n", ""), (1, "-1\n", "")]);
        assert_eq!(Topology::read(dir.path()).packages(false), [PackageId::whole(0)]);
        assert_eq!(Topology::read(dir.path()).cpus(false).count(), 2);
        assert_eq!(Topology::read(Path::new("/nowhere")).packages(false), [PackageId::whole(0)]);
        assert!(!Topology::read(dir.path()).is_known() && !Topology::read(Path::new("/nowhere")).is_known());
    }
}
