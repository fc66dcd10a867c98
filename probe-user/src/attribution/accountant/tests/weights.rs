//! Division by what hardware counters tell: memory by misses, packages by a fitted mix.

use super::*;
use crate::ledger::basis::Basis;

fn dram() -> ZoneId {
    ZoneId { kind: ZoneKind::Dram, ..package(0) }
}

/// A machine of one package with hardware counters.
fn counting(zones: &[ZoneId], cpus: usize) -> Setup {
    let capabilities = TierCapabilities { cpus: true, siblings: true };
    Setup {
        cpu: Some(CpuTierInfo { tier: Tier::Counters, capabilities, reason: String::new() }),
        cpu_packages: vec![Some(0); cpus],
        ..setup(zones, 1)
    }
}

impl Machine {
    /// Adds CPU time of a cgroup with the events in it.
    fn counts(&mut self, id: u64, cpu: usize, ns: u64, events: [u64; 3]) -> &mut Self {
        self.runs(id, cpu, ns);
        let Some(Ok(reading)) = &mut self.raw.cpu else { panic!("no CPU time") };
        let at = reading.rows.iter().position(|(known, _)| *known == key(id)).unwrap();
        let cpus = reading.rows[at].1.len();
        reading.counted.resize(reading.rows.len(), vec![[0; 3]; cpus]);
        reading.counted[at][cpu].iter_mut().zip(events).for_each(|(sum, events)| *sum += events);
        self
    }
}

/// Dynamic microjoules of a container from one kind of zone.
fn of_zone(snapshot: &Snapshot, kind: ZoneKind, number: u32) -> u64 {
    let accounts = snapshot.accounts.iter().filter(|account| account.id.zone.kind == kind);
    let rows = accounts.flat_map(|account| &account.containers);
    rows.filter(|(container, _)| container.number == number).map(|(_, uj)| uj.0).sum()
}

fn basis(snapshot: &Snapshot, kind: ZoneKind) -> Basis {
    snapshot.weights.iter().find(|row| row.id.kind == kind).unwrap().basis
}

fn with_policy(memory: MemoryPolicy) -> Rules {
    Rules { memory, ..IdlePolicy::Separate.into() }
}

/// A second of CPU time for each of two containers, with misses of three to one.
fn three_misses_to_one(machine: &mut Machine) -> Snapshot {
    machine.counts(10, 0, SECOND, [1_000_000, 1_000_000, 3000]);
    machine.counts(11, 1, SECOND, [1_000_000, 1_000_000, 1000]);
    machine.tick(SECOND)
}

#[test]
fn memory_without_counters_is_divided_by_cpu_time_or_not_at_all() {
    let run = |policy| {
        let mut machine = Machine::with(setup(&[package(0), dram()], 1), with_policy(policy), 2);
        machine.uses(0, 900).uses(1, 40).runs(10, 0, 3).runs(11, 0, 1);
        let snapshot = machine.tick(SECOND);
        let of = |number| of_zone(&snapshot, ZoneKind::Dram, number);
        (basis(&snapshot, ZoneKind::Dram), of(0), of(1), snapshot.accounts[1].unattributed.0)
    };
    assert_eq!(run(MemoryPolicy::Misses), (Basis::Time, 30, 10, 0));
    assert_eq!(run(MemoryPolicy::CpuTime), (Basis::Time, 30, 10, 0));
    assert_eq!(run(MemoryPolicy::MissesOnly), (Basis::Nothing, 0, 0, 40));
    assert_eq!(run(MemoryPolicy::Unattributed), (Basis::Nothing, 0, 0, 40));
}

#[test]
fn idle_energy_of_memory_is_divided_by_cpu_time() {
    let mut known = counting(&[package(0), dram()], 2);
    known.idle_uw = vec![None, Some(2_000_000)];
    let mut machine = Machine::with(known, IdlePolicy::Proportional.into(), 2);
    machine.uses(0, 9_000_000).uses(1, 6_000_000);
    let snapshot = three_misses_to_one(&mut machine);
    let memory = snapshot.accounts.iter().find(|account| account.id.zone == dram()).unwrap();
    let idle: Vec<u64> = memory.idle_shares.iter().map(|(_, uj)| uj.0).collect();
    assert_eq!((basis(&snapshot, ZoneKind::Dram), idle), (Basis::Misses, vec![1_000_000; 2]));
    assert_eq!([0, 1].map(|number| of_zone(&snapshot, ZoneKind::Dram, number)), [3_000_000, 1_000_000]);
}

/// Five minutes of a machine with 16 CPUs that sleeps every fifth second and else is awake, whose
/// memory draws 3 W asleep, 2 W more awake, and up to 6 W for its load.
fn learnt() -> Machine {
    let mut machine = Machine::new(counting(&[package(0), dram()], 16), IdlePolicy::Separate, 2);
    for second in 0..400u64 {
        let busy = (second * 37 % 60) * SECOND / 100;
        let awake = second % 5 != 0;
        machine.uses(0, 5_000_000).uses(1, 3_000_000);
        for cpu in (0..16).filter(|_| awake) {
            let ns = if cpu == 0 { SECOND } else { busy };
            machine.uses(0, ns / 200).uses(1, ns * 6 / 16_000).counts(10, cpu, ns, [ns, ns, ns / 1000]);
        }
        machine.uses(0, if awake { 8_000_000 } else { 0 }).uses(1, if awake { 2_000_000 } else { 0 });
        machine.tick(SECOND);
    }
    machine
}

/// The idle energy of memory follows no misses, nor does the step between sleep and awake, and
/// neither does anything while they are unknown.
#[test]
fn memory_follows_misses_once_sleep_and_step_are_known() {
    let mut machine = Machine::new(counting(&[package(0), dram()], 16), IdlePolicy::Separate, 2);
    machine.uses(0, 9_000_000).uses(1, 7_000_000);
    let first = three_misses_to_one(&mut machine);
    assert_eq!((basis(&first, ZoneKind::Dram), basis(&first, ZoneKind::Package)), (Basis::Time, Basis::Cycles));
    assert_eq!((of_zone(&first, ZoneKind::Dram, 0), of_zone(&first, ZoneKind::Dram, 1)), (3_500_000, 3_500_000));

    let mut machine = learnt();
    let before = machine.uses(0, 5_000_000).uses(1, 3_000_000).tick(SECOND);
    assert!(before.idle_states.iter().any(|row| row.id == dram() && row.state == IdleState::Known));
    machine.uses(0, 20_000_000).uses(1, 9_000_000);
    let after = three_misses_to_one(&mut machine);
    assert_eq!(basis(&after, ZoneKind::Dram), Basis::Misses);
    let grown = |number| of_zone(&after, ZoneKind::Dram, number) - of_zone(&before, ZoneKind::Dram, number);
    // Half of the step of 2 J, and three quarters or one of the 4 J of the load.
    let (more, less) = (grown(0), grown(1));
    assert!(more.abs_diff(4_000_000) < 200_000 && less.abs_diff(2_000_000) < 200_000, "{more} {less}");
    // The package still follows cycles.
    let of = |snapshot, number| of_zone(snapshot, ZoneKind::Package, number);
    let packages = [0, 1].map(|number| of(&after, number) - of(&before, number));
    assert!(packages[0].abs_diff(packages[1]) <= 2, "{packages:?}");
}

#[test]
fn incomplete_counts_divide_no_memory() {
    let mut machine = learnt();
    machine.uses(0, 20_000_000).uses(1, 9_000_000).counts(10, 0, SECOND, [9, 9, 9]);
    // The counters of the other CPU stand still.
    let snapshot = machine.runs(11, 1, SECOND).tick(SECOND);
    assert_eq!((basis(&snapshot, ZoneKind::Dram), basis(&snapshot, ZoneKind::Package)), (Basis::Time, Basis::Time));
}

/// Instructions and misses of 1000 cycles, and microjoules of a second at 3 GHz, of three programs.
/// A cycle costs 1 nJ, an instruction 0.5 and a miss 30.
const PROGRAMS: [([u64; 2], u64); 3] = [([3000, 1], 7_590_000), ([1000, 20], 6_300_000), ([400, 0], 3_600_000)];

/// The joules of programs with unequal cycles were those of their CPU time, 23 % too few to 60 %
/// too many.
#[test]
fn programs_with_unequal_cycles_get_their_own_joules() {
    let replay = || {
        let mut known = counting(&[package(0)], 3);
        known.idle_uw = vec![Some(20_000_000)];
        let mut machine = Machine::new(known, IdlePolicy::Separate, 3);
        let (mut truth, mut before) = ([0; 3], Snapshot::default());
        let mut random = 1u64;
        let mut share = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % 101
        };
        for tick in 0..400 {
            machine.uses(0, 5 * 20_000_000);
            for (at, (of_cycle, uj)) in PROGRAMS.iter().enumerate() {
                let percent = share();
                let cycles = percent * 150_000_000;
                let [instructions, misses] = of_cycle.map(|count| count * cycles / 1000);
                machine.uses(0, 5 * uj * percent / 100);
                machine.counts(at as u64 + 10, at, 5 * SECOND * percent / 100, [cycles, instructions, misses]);
                if tick >= 300 {
                    truth[at] += 5 * uj * percent / 100;
                }
            }
            let snapshot = machine.tick(5 * SECOND);
            if tick == 299 {
                before = snapshot;
            } else if tick == 399 {
                return (truth, before, snapshot);
            }
        }
        panic!("no tick")
    };
    let (truth, before, after) = replay();
    assert_eq!(basis(&after, ZoneKind::Package), Basis::Mix);
    for (number, truth) in (0..).zip(truth) {
        let got = attributed(&after, number) - attributed(&before, number);
        assert!(got.abs_diff(truth) * 50 < truth, "{got} {truth}");
    }
    let row = &after.weights[0];
    assert_eq!(row.costs.iter().map(|(weight, _)| *weight).collect::<Vec<_>>(), ["cycles", "instructions", "misses"]);
    assert_eq!(
        row.errors.iter().map(|(basis, _)| *basis).collect::<Vec<_>>(),
        [Basis::Time, Basis::Cycles, Basis::Mix]
    );
    assert!(row.errors[2].1 < 0.2 * row.errors[1].1, "{row:?}");
    let again = replay();
    assert_eq!((again.2.weights, again.2.accounts), (after.weights, after.accounts), "replayable");
}
