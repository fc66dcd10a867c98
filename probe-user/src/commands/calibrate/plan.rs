//! The phases of a calibration: which CPUs run which mix of instructions, and for how long.

use std::time::Duration;

use super::loads::Mix;
use crate::{
    attribution::calibration_file::NOT_MEASURED,
    host::topology::{PackageId, Topology},
};

/// The idle phase is longer than a load, because sleep power is in every other figure.
const IDLE_WEIGHT: u32 = 3;
/// Time before each phase that is not measured, in which clocks and fans settle: a part of the
/// phase, within these limits.
const SETTLE_PART: u32 = 6;
const LONGEST_SETTLE: Duration = Duration::from_secs(3);

/// The cores of a package: the CPU of one thread of each, and that of the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) id: PackageId,
    pub(super) cores: Vec<(usize, Option<usize>)>,
}

/// The packages of the machine, and why second threads of cores are not known.
pub(super) fn packages(topology: &Topology, per_die: bool) -> (Vec<Package>, Option<String>) {
    let (siblings, why) = match topology.siblings() {
        Ok(siblings) => (siblings, None),
        Err(why) => (Vec::new(), Some(format!("SMT weight {NOT_MEASURED}: {why}"))),
    };
    let ids = topology.packages(per_die).into_iter();
    let mut packages: Vec<Package> = ids.map(|id| Package { id, cores: Vec::new() }).collect();
    for (cpu, id) in topology.cpus(per_die) {
        let sibling = siblings.get(cpu).copied().flatten();
        // The second thread of a core is listed with the first.
        if sibling.is_none_or(|sibling| sibling > cpu)
            && let Some(package) = packages.iter_mut().find(|package| package.id == id)
        {
            package.cores.push((cpu, sibling));
        }
    }
    (packages, why)
}

/// One load, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Phase {
    pub(super) name: String,
    /// `None` without a load.
    pub(super) mix: Option<Mix>,
    pub(super) cpus: Vec<usize>,
    /// Number of busy cores by package.
    pub(super) cores: Vec<usize>,
    /// True if both threads of these cores are busy.
    pub(super) both: bool,
}

impl Phase {
    fn idle(packages: &[Package]) -> Self {
        Self { name: "idle".to_owned(), mix: None, cpus: Vec::new(), cores: vec![0; packages.len()], both: false }
    }

    /// A mix on the first `cores` cores of each package.
    fn load(packages: &[Package], mix: Mix, cores: Vec<usize>, both: bool) -> Self {
        let first = packages.iter().zip(&cores).flat_map(|(package, cores)| &package.cores[..*cores]);
        let cpus = first.flat_map(|(one, other)| [Some(*one), other.filter(|_| both)]).flatten().collect();
        let all: usize = packages.iter().map(|package| package.cores.len()).sum();
        let of = if both { ", both threads" } else { "" };
        let busy = |(package, cores): (&Package, &usize)| (*cores > 0).then(|| package.id.to_string());
        let busy: Vec<String> = packages.iter().zip(&cores).filter_map(busy).collect();
        let sum: usize = cores.iter().sum();
        let name = format!("{sum} of {all} cores{of}, package {}, {}", busy.join("+"), mix.as_str());
        Self { name, mix: Some(mix), cpus, cores, both }
    }

    fn weight(&self) -> u32 {
        if self.mix.is_none() { IDLE_WEIGHT } else { 1 }
    }
}

/// The number of cores of each package at which the mixes are compared.
pub(super) fn middle(packages: &[Package]) -> Vec<usize> {
    part(packages, 2)
}

fn part(packages: &[Package], of: usize) -> Vec<usize> {
    packages.iter().map(|package| (package.cores.len() / of).max(1).min(package.cores.len())).collect()
}

/// All phases, without repetitions.
///
/// - idle: sleep power;
/// - a core of each package in turn: the first core, and the step of the packages without load;
/// - a part, half, and all of the cores: the step of a single package, and the bend of the curve;
/// - both threads of half the cores: the SMT weight. More cores than one have a larger signal;
/// - the other mixes on half the cores, and on both threads of them: the watts of each, and its SMT
///   weight, which differs by what two threads compete for.
pub(super) fn phases(packages: &[Package]) -> Vec<Phase> {
    let mut phases = vec![Phase::idle(packages)];
    let mut add = |mix, cores: Vec<usize>, both| {
        let phase = Phase::load(packages, mix, cores, both);
        if !phases.contains(&phase) {
            phases.push(phase);
        }
    };
    for busy in 0..packages.len() {
        let one = |(at, package): (usize, &Package)| usize::from(at == busy).min(package.cores.len());
        add(Mix::Integer, packages.iter().enumerate().map(one).collect(), false);
    }
    for of in [4, 2, 1] {
        add(Mix::Integer, part(packages, of), false);
    }
    let middle = middle(packages);
    let threads = if is_paired(packages) { &[false, true][..] } else { &[false] };
    if threads.contains(&true) {
        add(Mix::Integer, middle.clone(), true);
    }
    for both in threads {
        add(Mix::Vector, middle.clone(), *both);
        add(Mix::Memory, middle.clone(), *both);
    }
    phases
}

/// True when all cores on which the mixes are compared have two threads.
fn is_paired(packages: &[Package]) -> bool {
    let middle = middle(packages);
    let mut first = packages.iter().zip(&middle).flat_map(|(package, cores)| &package.cores[..*cores]);
    first.all(|(_, other)| other.is_some())
}

/// Why the SMT weight is not measured on a machine that has cores with two threads; `None` where it
/// is, and on other machines.
pub(super) fn unpaired(packages: &[Package]) -> Option<String> {
    let cores = || packages.iter().flat_map(|package| &package.cores);
    let (all, single) = (cores().count(), cores().filter(|(_, other)| other.is_none()).count());
    (single < all && !is_paired(packages)).then(|| {
        format!("SMT weight {NOT_MEASURED}: {single} of {all} cores have one thread, as those of hybrid processors")
    })
}

/// Time to settle and time to measure of each phase, together `length`.
pub(super) fn schedule(phases: &[Phase], length: Duration) -> Vec<(Duration, Duration)> {
    let parts: u32 = phases.iter().map(Phase::weight).sum();
    let part = length / parts.max(1);
    let settle = (part / SETTLE_PART).min(LONGEST_SETTLE);
    phases.iter().map(|phase| (settle, part * phase.weight() - settle)).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Packages with this number of cores, each with two threads where `smt`.
    pub(in super::super) fn machine(packages: u32, cores: usize, smt: bool) -> Vec<Package> {
        let package = |id: u32| {
            let first = id as usize * cores;
            let core = |core| (first + core, smt.then_some(1000 + first + core));
            Package { id: PackageId::whole(id), cores: (0..cores).map(core).collect() }
        };
        (0..packages).map(package).collect()
    }

    fn names(packages: &[Package]) -> Vec<String> {
        phases(packages).into_iter().map(|phase| phase.name).collect()
    }

    #[test]
    fn phases_separate_sleep_step_cores_threads_and_mixes() {
        let two = machine(2, 8, true);
        assert_eq!(
            names(&two),
            [
                "idle",
                "1 of 16 cores, package 0, integer",
                "1 of 16 cores, package 1, integer",
                "4 of 16 cores, package 0+1, integer",
                "8 of 16 cores, package 0+1, integer",
                "16 of 16 cores, package 0+1, integer",
                "8 of 16 cores, both threads, package 0+1, integer",
                "8 of 16 cores, package 0+1, vector",
                "8 of 16 cores, package 0+1, memory",
                "8 of 16 cores, both threads, package 0+1, vector",
                "8 of 16 cores, both threads, package 0+1, memory",
            ]
        );
        let both = &phases(&two)[6];
        assert_eq!(both.cpus.len(), 16);
        assert!(both.cpus.starts_with(&[0, 1000, 1, 1001]), "{:?}", both.cpus);
        assert_eq!(phases(&two)[1].cores, [1, 0]);
    }

    #[test]
    fn a_small_machine_has_no_phase_twice() {
        assert_eq!(
            names(&machine(1, 2, false)),
            [
                "idle",
                "1 of 2 cores, package 0, integer",
                "2 of 2 cores, package 0, integer",
                "1 of 2 cores, package 0, vector",
                "1 of 2 cores, package 0, memory"
            ]
        );
        assert_eq!(phases(&machine(1, 1, true)).len(), 7, "idle, one, both threads, and each for two mixes");
    }

    /// Six cores with two threads, and eight with one: half of all are not only the first.
    #[test]
    fn a_hybrid_processor_without_an_smt_weight_says_so() {
        let mut hybrid = machine(1, 14, true);
        hybrid[0].cores[6..].iter_mut().for_each(|(_, other)| *other = None);
        assert!(phases(&hybrid).iter().all(|phase| !phase.both));
        let why = unpaired(&hybrid).unwrap();
        assert_eq!(why, "SMT weight not measured: 8 of 14 cores have one thread, as those of hybrid processors");
        assert_eq!((unpaired(&machine(2, 8, true)), unpaired(&machine(2, 8, false))), (None, None));
    }

    #[test]
    fn the_schedule_has_the_requested_length() {
        let phases = phases(&machine(2, 8, true));
        let schedule = schedule(&phases, Duration::from_secs(130));
        let sum: Duration = schedule.iter().map(|(settle, measure)| *settle + *measure).sum();
        assert_eq!(sum, Duration::from_secs(130));
        assert_eq!(schedule[0].0 + schedule[0].1, Duration::from_secs(30));
    }

    #[test]
    fn the_second_thread_of_a_core_is_listed_with_the_first() {
        let dir = tempfile::tempdir().unwrap();
        for (cpu, core) in [(0, 0), (1, 1), (2, 0), (3, 1)] {
            let at = dir.path().join(format!("devices/system/cpu/cpu{cpu}/topology"));
            std::fs::create_dir_all(&at).unwrap();
            std::fs::write(at.join("physical_package_id"), "0\n").unwrap();
            std::fs::write(at.join("core_id"), format!("{core}\n")).unwrap();
        }
        let (packages, why) = packages(&Topology::read(dir.path()), false);
        assert_eq!(packages, [Package { id: PackageId::whole(0), cores: vec![(0, Some(2)), (1, Some(3))] }]);
        assert_eq!(why, None);
    }
}
