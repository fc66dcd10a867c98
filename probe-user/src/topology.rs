//! Which package and die each CPU belongs to, from sysfs.
//!
//! Under `--path.sysfs` too, so a tree decides what a socket is. Never from directory numbers or list order.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use serde::{Deserialize, Serialize};

/// The most CPUs a kernel can be built for (CONFIG_NR_CPUS of x86).
pub const MAX_CPUS: usize = 8192;

/// One RAPL domain: a package, or one die of it where the hardware counts per die (Cascade Lake-AP).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PackageId {
    /// `physical_package_id`.
    pub package: u32,
    /// `die_id`, only where zones are named `package-N-die-M`.
    pub die: Option<u32>,
}

impl PackageId {
    /// A package that is counted as a whole.
    #[must_use]
    pub fn whole(package: u32) -> Self {
        Self { package, die: None }
    }
}

/// The label value: `0`, or `0-die-1`.
impl fmt::Display for PackageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.package)?;
        self.die.map_or(Ok(()), |die| write!(f, "-die-{die}"))
    }
}

/// Where one CPU sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    cpu: usize,
    package: u32,
    die: u32,
    core: u32,
}

/// The machine's CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    places: Vec<Place>,
    known: bool,
    /// True when the machine has threads that may be switched on while we run.
    #[serde(default)]
    threads: bool,
}

impl Topology {
    /// Reads `devices/system/cpu` under `sysfs`.
    ///
    /// An offline CPU has a directory without `topology`: where it belongs is known when it comes online, and until then
    /// it is left out. On a machine without any topology every CPU belongs to package 0; without any CPU there is one.
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
            // -1 where the architecture does not know (drivers/base/topology.c).
            text.trim().parse::<u32>().ok()
        };
        let place = |cpu: usize| {
            let package = id(cpu, "physical_package_id")?;
            // Without a core of its own in the files, a CPU is a core.
            let core = id(cpu, "core_id").or_else(|| u32::try_from(cpu).ok()).unwrap_or(0);
            Some(Place { cpu, package, die: id(cpu, "die_id").unwrap_or(0), core })
        };
        let mut places: Vec<Place> = cpus.iter().filter_map(|cpu| place(*cpu)).collect();
        let known = !places.is_empty();
        if !known {
            places.extend(cpus.into_iter().map(|cpu| Place {
                cpu,
                package: 0,
                die: 0,
                core: u32::try_from(cpu).unwrap_or(0),
            }));
        }
        if places.is_empty() {
            places.push(Place { cpu: 0, package: 0, die: 0, core: 0 });
        }
        places.sort_unstable_by_key(|place| place.cpu);
        // Documentation/ABI/testing/sysfs-devices-system-cpu: the other states cannot change any more.
        let control = fs::read_to_string(dir.join("smt/control")).unwrap_or_default();
        Self { places, known, threads: matches!(control.trim(), "on" | "off") }
    }

    /// False when nothing was read, and one package is assumed.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// How many dies of a package hold CPUs.
    #[must_use]
    pub fn dies(&self, package: u32) -> usize {
        let mut dies: Vec<_> =
            self.places.iter().filter(|place| place.package == package).map(|place| place.die).collect();
        dies.sort_unstable();
        dies.dedup();
        dies.len()
    }

    /// The package and die of a CPU.
    #[must_use]
    pub fn domain(&self, cpu: usize, per_die: bool) -> Option<PackageId> {
        self.places.iter().find(|place| place.cpu == cpu).map(|place| place.domain(per_die))
    }

    /// True when two CPUs share a core, or may come to.
    #[must_use]
    pub fn has_smt(&self) -> bool {
        if self.threads {
            return true;
        }
        let mut cores: Vec<_> = self.places.iter().map(|place| (place.package, place.die, place.core)).collect();
        cores.sort_unstable();
        cores.windows(2).any(|pair| pair[0] == pair[1])
    }

    /// The CPU that shares a core with each CPU, by number; none where it has the core for itself.
    ///
    /// # Errors
    /// What is unusual, where a core has more than two threads: whom a moment is shared with is not a yes or no there.
    pub fn siblings(&self) -> Result<Vec<Option<usize>>, String> {
        let mut cores: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for place in &self.places {
            cores.entry((place.package, place.die, place.core)).or_default().push(place.cpu);
        }
        let mut all = vec![None; self.places.iter().map(|place| place.cpu + 1).max().unwrap_or(0)];
        for cpus in cores.values() {
            match cpus[..] {
                [_] => {}
                [one, other] => (all[one], all[other]) = (Some(other), Some(one)),
                _ => return Err(format!("{} threads on a core: time beside a busy one is not told apart", cpus.len())),
            }
        }
        Ok(all)
    }

    /// True when everything in it could be of a machine; one that was read from a recording may be anything.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        (1..=MAX_CPUS).contains(&self.places.len()) && self.places.iter().all(|place| place.cpu < MAX_CPUS)
    }

    /// The domains that hold CPUs, in order.
    #[must_use]
    pub fn packages(&self, per_die: bool) -> Vec<PackageId> {
        let mut all: Vec<_> = self.places.iter().map(|place| place.domain(per_die)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The domain of each CPU: `(cpu, domain)`, ascending.
    pub fn cpus(&self, per_die: bool) -> impl Iterator<Item = (usize, PackageId)> + '_ {
        self.places.iter().map(move |place| (place.cpu, place.domain(per_die)))
    }
}

impl Place {
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
    fn packages_come_from_the_topology_not_from_cpu_order() {
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
        // Two cores, whose other threads are off and may be switched on.
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
    fn a_machine_that_does_not_know_its_packages_has_one() {
        let dir = tree(&[(0, "-1\n", ""), (1, "-1\n", "")]);
        assert_eq!(Topology::read(dir.path()).packages(false), [PackageId::whole(0)]);
        assert_eq!(Topology::read(dir.path()).cpus(false).count(), 2);
        assert_eq!(Topology::read(Path::new("/nowhere")).packages(false), [PackageId::whole(0)]);
        assert!(!Topology::read(dir.path()).is_known() && !Topology::read(Path::new("/nowhere")).is_known());
    }
}
