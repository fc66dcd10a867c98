//! Time that packages sleep, through the `cstate_pkg` PMU of the kernel.
//!
//! The events `cN-residency` count cycles of the time stamp counter in one sleep state each, and
//! the states exclude each other (arch/x86/events/intel/cstate.c). The event `tsc` of the PMU `msr`
//! on the same CPU counts all of them. Both are opened at the start and read without privileges
//! afterwards. A machine without these PMUs has no such figures, and nothing stands in for them.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::perf::parse_cpus;
use crate::host::{
    perf_event,
    topology::{PackageId, Topology},
};

/// Open counters of the packages.
pub struct Residency {
    /// By package, in the order of all figures by package.
    packages: Vec<Option<Counters>>,
}

/// The counters of one package.
struct Counters {
    /// One for each sleep state.
    states: Vec<File>,
    /// Cycles of the time stamp counter.
    all: File,
}

impl Residency {
    /// Opens the counters of `packages`; `None` where the machine has none, or they may not be
    /// opened.
    #[must_use]
    pub fn open(sysfs: &Path, topology: &Topology, packages: &[PackageId]) -> Option<Self> {
        let (states, clock) = (Pmu::find(sysfs, "cstate_pkg")?, Pmu::find(sysfs, "msr")?);
        let cpus = parse_cpus(&fs::read_to_string(states.dir.join("cpumask")).ok()?)?;
        let residencies = states.events(|name| name.starts_with('c') && name.ends_with("-residency"));
        let tsc = clock.events(|name| name == "tsc");
        let tsc = *tsc.first()?;
        if residencies.is_empty() {
            return None;
        }
        let of_package = |package: &PackageId| {
            // The PMU has one CPU for each package, or for each die.
            let exact = |cpu: &&usize| topology.domain(**cpu, package.die.is_some()) == Some(*package);
            let whole =
                |cpu: &&usize| topology.domain(**cpu, false).is_some_and(|domain| domain.package == package.package);
            let cpu = *cpus.iter().find(exact).or_else(|| cpus.iter().find(whole))?;
            let open = |config: &u64| perf_event::open(states.kind, *config, cpu);
            let opened = residencies.iter().map(open).collect::<io::Result<Vec<File>>>();
            Some(Counters { states: opened.ok()?, all: perf_event::open(clock.kind, tsc, cpu).ok()? })
        };
        let packages: Vec<Option<Counters>> = packages.iter().map(of_package).collect();
        packages.iter().any(Option::is_some).then_some(Self { packages })
    }

    /// Cycles asleep and all cycles since the start, by package; `None` where they cannot be read.
    pub fn read(&self, out: &mut Vec<Option<[u64; 2]>>) {
        out.clear();
        out.extend(self.packages.iter().map(|counters| {
            let Counters { states, all } = counters.as_ref()?;
            let asleep = states.iter().try_fold(0u64, |sum, state| Some(sum.wrapping_add(count(state)?)))?;
            Some([asleep, count(all)?])
        }));
    }
}

fn count(mut file: &File) -> Option<u64> {
    let mut count = [0; 8];
    file.read_exact(&mut count).ok()?;
    Some(u64::from_ne_bytes(count))
}

/// A PMU in sysfs.
struct Pmu {
    dir: PathBuf,
    kind: u32,
}

impl Pmu {
    fn find(sysfs: &Path, name: &str) -> Option<Self> {
        let dirs = ["bus/event_source/devices", "devices"].map(|dir| sysfs.join(dir).join(name));
        dirs.into_iter().find_map(|dir| {
            let kind = fs::read_to_string(dir.join("type")).ok()?.trim().parse().ok()?;
            Some(Self { dir, kind })
        })
    }

    /// Configurations of the events whose name is wanted, in the order of their names.
    fn events(&self, wanted: impl Fn(&str) -> bool) -> Vec<u64> {
        let entries = fs::read_dir(self.dir.join("events")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| !name.contains('.') && wanted(name));
        names.sort_unstable();
        let config = |name: &String| {
            let text = fs::read_to_string(self.dir.join("events").join(name)).ok()?;
            u64::from_str_radix(text.trim().strip_prefix("event=0x")?, 16).ok()
        };
        names.iter().filter_map(config).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn events_of_sleep_states_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert!(Residency::open(root, &Topology::read(root), &[PackageId::whole(0)]).is_none(), "no such PMU");
        write(root, "devices/cstate_pkg/type", "22\n");
        let events = [("c6-residency", "event=0x02\n"), ("c2-residency", "event=0x00\n"), ("other", "event=0x7\n")];
        for (name, text) in events {
            write(root, &format!("devices/cstate_pkg/events/{name}"), text);
        }
        let pmu = Pmu::find(root, "cstate_pkg").unwrap();
        assert_eq!((pmu.kind, pmu.events(|name| name.ends_with("-residency"))), (22, vec![0, 2]));
    }
}
