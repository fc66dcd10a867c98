//! The complete attribution, on machines whose counters are set by the tests.

use proptest::prelude::*;
use units::Unit;

use super::*;
use crate::{
    cgroup::hierarchy,
    cpu::{CpuReading, RunTime, Tier, TierCapabilities, Weights},
    energy::zone::{Ceiling, Origin, Range, Zone},
    host::topology::PackageId,
    ledger::idle::IdleState,
    snapshot::{AccountRow, OwnRow},
    tick::CpuTierInfo,
};

mod capacity;
mod gpu;
mod guest;
mod saved;
mod weights;

const SECOND: u64 = 1_000_000_000;

fn package(number: u32) -> ZoneId {
    ZoneId { package: Some(PackageId::whole(number)), kind: ZoneKind::Package }
}

fn key(id: u64) -> CgroupKey {
    CgroupKey { id, hierarchy: hierarchy::V2 }
}

fn container(number: u32) -> Container {
    let id = format!("{number:012}");
    Container::new(number, format!("c{number}"), id, "docker")
}

/// Zones of a machine with one CPU on each of `packages` packages.
fn setup(zones: &[ZoneId], packages: u32) -> Setup {
    Setup {
        host: String::new(),
        origin: Some(Origin::Powercap),
        zones: zones
            .iter()
            .map(|id| Zone { ceiling: Ceiling::None, ..Zone::microjoules(*id, Range::Wraps(1 << 38), id.to_string()) })
            .collect(),
        idle_uw: vec![None; zones.len()],
        packages: (0..packages).map(PackageId::whole).collect(),
        cpu_packages: (0..packages as usize).map(Some).collect(),
        smt: false,
        lag_ns: 0,
        cpu_weights: Vec::new(),
        cpu: Some(CpuTierInfo::switch_tier(true)),
    }
}

/// A machine whose counters a test sets. Container `n` runs in cgroup `n + 10`, everything else in
/// cgroup 1.
struct Machine {
    accountant: Accountant,
    raw: RawTick,
}

impl Machine {
    fn new(setup: Setup, policy: IdlePolicy, containers: u32) -> Self {
        Self::with(setup, policy.into(), containers)
    }

    fn with(setup: Setup, rules: Rules, containers: u32) -> Self {
        let cpus = setup.usage_columns().0.len();
        let mut raw = RawTick { zones: vec![Ok(0); setup.zones.len()], ..RawTick::default() };
        raw.changes.containers = (0..containers).map(|number| Arc::new(container(number))).collect();
        let ids = (0..containers).map(|number| (key(u64::from(number) + 10), ChargeTarget::Container(number)));
        raw.changes.targets = std::iter::once((key(1), ChargeTarget::System)).chain(ids).collect();
        let rows = raw.changes.targets.iter().map(|(key, _)| (*key, vec![RunTime::default(); cpus])).collect();
        raw.cpu = Some(Ok(CpuReading { rows, overflow: vec![RunTime::default(); cpus], ..CpuReading::default() }));
        let mut this = Self { accountant: Accountant::new(setup, rules, 1 << 20), raw };
        this.tick(0);
        this.raw.changes = TickChanges::default();
        this
    }

    /// Adds energy of a zone since the tick before.
    fn uses(&mut self, zone: usize, uj: u64) -> &mut Self {
        if let Ok(raw) = &mut self.raw.zones[zone] {
            *raw += uj;
        }
        self
    }

    /// Adds CPU time of a cgroup since the tick before.
    fn runs(&mut self, id: u64, cpu: usize, ns: u64) -> &mut Self {
        let Some(Ok(reading)) = &mut self.raw.cpu else { panic!("no CPU time") };
        let row = reading.rows.iter_mut().find(|(known, _)| *known == key(id)).unwrap();
        row.1[cpu].alone_ns += ns;
        self
    }

    fn tick(&mut self, ns: u64) -> Snapshot {
        self.raw.unix_ns += i64::try_from(ns).unwrap() / 1000 * 1000;
        self.raw.energy_ns += ns;
        self.raw.began_ns = self.raw.energy_ns;
        self.raw.cpu_ns = self.raw.energy_ns;
        let snapshot = self.accountant.tick(&self.raw);
        assert_conserved(&snapshot);
        snapshot
    }
}

fn parts(account: &AccountRow) -> Microjoules {
    let shares = account.containers.iter().chain(&account.idle_shares).map(|(_, uj)| *uj);
    shares.sum::<Microjoules>() + account.retired + account.system + account.idle + account.unattributed
}

fn assert_conserved(snapshot: &Snapshot) {
    for account in &snapshot.accounts {
        let zone = snapshot.zones.iter().find(|zone| zone.id == account.id.zone).unwrap();
        assert_eq!(parts(account), zone.total, "{}", zone.id);
    }
}

/// Dynamic microjoules of a container, from all roots.
fn attributed(snapshot: &Snapshot, number: u32) -> u64 {
    let of = |account: &AccountRow| {
        let own = account.containers.iter().filter(|(container, _)| container.number == number);
        own.map(|(_, uj)| uj.0).sum::<u64>()
    };
    snapshot.accounts.iter().map(of).sum()
}

/// Compares the parts of the account in every window that ends with the last tick.
fn assert_windows_conserved(ring: &Ring) {
    let Some((oldest, newest)) = ring.reach() else { return };
    let mut start = oldest;
    while start < newest {
        let response = ring.window(start, newest).unwrap();
        for account in &response.accounts {
            let parts = [
                account.containers_joules,
                account.retired_joules,
                account.system_joules,
                account.idle_joules,
                account.unattributed_joules,
                account.unsettled_joules,
            ];
            let sum: Microjoules = parts.into_iter().map(Microjoules::from_joules).sum();
            assert_eq!(sum, Microjoules::from_joules(account.measured_joules), "{start}");
            let rows = response.containers.iter().flat_map(|row| &row.energy);
            let rows = rows.filter(|row| (&row.package, row.zone) == (&account.package, account.zone));
            let rows: Microjoules = rows.map(|row| Microjoules::from_joules(row.joules + row.idle_joules)).sum();
            assert_eq!(rows, Microjoules::from_joules(account.containers_joules), "{start}");
        }
        start += 1.0;
    }
}

/// The smallest case: a row that was removed before its first tick.
#[test]
fn energy_of_a_row_removed_before_its_first_tick_is_retired() {
    use crate::jobs::{Job, command_line::CommandLine};
    for policy in [IdlePolicy::Separate, IdlePolicy::Proportional, IdlePolicy::Reserved] {
        let mut exact = setup(&[package(0)], 1);
        exact.idle_uw = vec![Some(1_000_000)];
        let mut machine = Machine::new(exact, policy, 1);
        let command = CommandLine::parse(b"ffmpeg\0-i\0a\0cam.mp4\0");
        let job = Job { number: 5, charge_target: ChargeTarget::System, own_container: Some(7), unix_ns: 0, command };
        machine.raw.changes.jobs = vec![job];
        machine.raw.changes.reserved = vec![(7, 500)];
        machine.raw.jobs = vec![(5, SECOND)];
        machine.uses(0, 5_000_000).runs(1, 0, SECOND);
        let snapshot = machine.tick(SECOND);
        let account = &snapshot.accounts[0];
        assert_eq!((account.retired.0, account.containers.len(), account.idle.0), (4_000_000, 0, 1_000_000));
        // The job itself has its energy.
        assert_eq!(snapshot.streams[0].joules.0, 4_000_000);
        assert_windows_conserved(&snapshot.ring);
    }
}

#[test]
fn two_packages_at_three_to_one_give_three_to_one() {
    let mut machine = Machine::new(setup(&[package(0), package(1)], 2), IdlePolicy::Separate, 2);
    let mut last = Snapshot::default();
    for _ in 0..60 {
        machine.uses(0, 30_000_000).uses(1, 10_000_000).runs(10, 0, SECOND).runs(11, 1, SECOND);
        last = machine.tick(SECOND);
    }
    assert_eq!((attributed(&last, 0), attributed(&last, 1)), (60 * 30_000_000, 60 * 10_000_000));
}

#[test]
fn a_second_next_to_a_busy_sibling_has_the_configured_weight() {
    let machine = |rules: Rules| {
        let mut smt = setup(&[package(0)], 1);
        smt.smt = true;
        let mut machine = Machine::with(smt, rules, 2);
        // One runs alone for a second, the other next to a busy sibling for a second.
        machine.uses(0, 1_575_000).runs(10, 0, SECOND);
        let Some(Ok(reading)) = &mut machine.raw.cpu else { panic!("no CPU time") };
        reading.rows.iter_mut().find(|(known, _)| *known == key(11)).unwrap().1[0].shared_ns += SECOND;
        machine.tick(SECOND)
    };
    let default = machine(IdlePolicy::Separate.into());
    assert_eq!((attributed(&default, 0), attributed(&default, 1)), (1_000_000, 575_000));
    assert_eq!(default.containers[1].cpu[0].time, RunTime { alone_ns: 0, shared_ns: SECOND });
    assert_eq!((default.smt, default.shared_milli), (true, 575));
    let whole = machine(Rules { weights: Weights { shared_milli: 1000 }, ..IdlePolicy::Separate.into() });
    assert_eq!(attributed(&whole, 0).abs_diff(attributed(&whole, 1)), 0);
}

#[test]
fn without_per_package_usage_each_package_is_split_like_all() {
    let mut coarse = setup(&[package(0), package(1)], 2);
    let capabilities = TierCapabilities { cpus: false, siblings: false };
    coarse.cpu = Some(CpuTierInfo { tier: Tier::Files, capabilities, reason: String::new() });
    coarse.cpu_packages = vec![Some(0), Some(1)];
    let mut machine = Machine::with(coarse.clone(), IdlePolicy::Separate.into(), 2);
    machine.uses(0, 30_000_000).uses(1, 10_000_000).runs(10, 0, 3 * SECOND / 2).runs(11, 0, SECOND / 2);
    let snapshot = machine.tick(SECOND);
    assert_eq!(
        (attributed(&snapshot, 0), attributed(&snapshot, 1)),
        (30_000_000, 10_000_000),
        "three quarters of both"
    );
    assert_eq!(snapshot.packages, [None]);
    assert_eq!(snapshot.containers[0].cpu[0].ns(), 3 * SECOND / 2);
    // All of it may have run on the other package, up to the capacity of that package.
    let exact = {
        let mut machine = Machine::new(setup(&[package(0), package(1)], 2), IdlePolicy::Separate, 2);
        machine.uses(0, 30_000_000).uses(1, 10_000_000).runs(10, 0, SECOND).runs(10, 1, SECOND / 2).runs(
            11,
            1,
            SECOND / 2,
        );
        machine.tick(SECOND)
    };
    let bound = |snapshot: &Snapshot, at: usize| snapshot.containers[at].uncertainty.unwrap();
    assert!(bound(&snapshot, 1) > bound(&exact, 1), "{} {}", bound(&snapshot, 1), bound(&exact, 1));
    // A machine with one package has no such uncertainty.
    let mut one = setup(&[package(0)], 1);
    one.cpu = coarse.cpu;
    let mut machine = Machine::with(one, IdlePolicy::Separate.into(), 1);
    machine.uses(0, 1000).runs(10, 0, SECOND);
    assert_eq!(machine.tick(SECOND).packages, [Some(PackageId::whole(0))]);
}

#[test]
fn energy_after_failed_readings_goes_to_all_that_ran_meanwhile() {
    let mut machine = Machine::new(setup(&[package(0)], 1), IdlePolicy::Separate, 2);
    machine.uses(0, 10).runs(10, 0, 100);
    machine.tick(SECOND);
    let real = machine.raw.zones[0].clone();
    machine.raw.zones[0] = Err("EIO".into());
    machine.runs(10, 0, 300);
    let lost = machine.tick(SECOND);
    assert_eq!(machine.accountant.trouble(), Some("package of package 0: EIO"));
    assert_eq!(
        (attributed(&lost, 0), lost.zones[0].watts),
        (10, None),
        "the total stays, and the power is unknown and not zero"
    );
    machine.raw.zones[0] = real;
    machine.uses(0, 4000).runs(11, 0, 100);
    let back = machine.tick(SECOND);
    assert_eq!((attributed(&back, 0), attributed(&back, 1)), (10 + 3000, 1000));
    assert_eq!(machine.accountant.trouble(), None);
    // The energy covers both ticks.
    assert_eq!(back.zones[0].watts, Some(0.002));
}

#[test]
fn energy_waits_for_the_cpu_time_of_its_tick() {
    let mut machine = Machine::new(setup(&[package(0)], 1), IdlePolicy::Separate, 1);
    let reading = machine.raw.cpu.replace(Err("refused".into()));
    machine.uses(0, 1000);
    assert_eq!(machine.tick(SECOND).accounts[0].unattributed, Microjoules::ZERO);
    machine.raw.cpu = reading;
    machine.uses(0, 500).runs(10, 0, 7);
    assert_eq!(attributed(&machine.tick(SECOND), 0), 1500);
}

#[test]
fn energy_without_cpu_time_is_unattributed_after_a_while() {
    let mut machine = Machine::new(setup(&[package(0)], 1), IdlePolicy::Separate, 1);
    machine.raw.cpu = Some(Err("refused".into()));
    for _ in 0..MAX_INCOMPLETE_TICKS {
        machine.uses(0, 100);
        assert_eq!(machine.tick(SECOND).zones[0].total, Microjoules::ZERO);
    }
    machine.uses(0, 100);
    let snapshot = machine.tick(SECOND);
    let all = Microjoules(100 * (u64::from(MAX_INCOMPLETE_TICKS) + 1));
    assert_eq!(
        (snapshot.zones[0].total, snapshot.accounts[0].unattributed),
        (all, all),
        "the counter was read in every tick"
    );
}

/// The first CPU time after an outage is that of the whole outage, and the energy that of one tick.
#[test]
fn the_first_cpu_time_after_an_outage_tells_no_idle_power() {
    let mut machine = Machine::new(setup(&[package(0)], 1), IdlePolicy::Separate, 1);
    let samples = |machine: &Machine| machine.accountant.roots[0].as_ref().unwrap().baseline.samples().len();
    let cpu = machine.raw.cpu.replace(Err("unavailable".to_owned()));
    for _ in 0..MAX_INCOMPLETE_TICKS + 2 {
        machine.uses(0, 30_000_000).tick(SECOND);
    }
    machine.raw.cpu = cpu;
    let snapshot = machine.uses(0, 30_000_000).runs(10, 0, 2 * SECOND).tick(SECOND);
    assert_eq!((samples(&machine), snapshot.awake.len()), (0, 0));
    let snapshot = machine.uses(0, 30_000_000).runs(10, 0, SECOND / 2).tick(SECOND);
    assert_eq!((samples(&machine), snapshot.awake[0].awake.share), (1, 0.5));
}

#[test]
fn repeated_implausible_readings_become_a_state() {
    let mut limited = setup(&[package(0)], 1);
    limited.zones[0].ceiling = Ceiling::Learned(1_000_000);
    let mut machine = Machine::new(limited, IdlePolicy::Separate, 1);
    for tick in 0..=MAX_INCOMPLETE_TICKS {
        assert_eq!(machine.accountant.trouble(), None, "tick {tick}");
        machine.uses(0, 1_000_000_000);
        machine.tick(SECOND);
    }
    assert!(machine.accountant.trouble().unwrap().contains("implausible readings in a row"));
}

#[test]
fn a_single_implausible_reading_loses_no_energy() {
    let mut limited = setup(&[package(0)], 1);
    limited.zones[0].ceiling = Ceiling::Limit(100_000_000);
    let mut machine = Machine::new(limited, IdlePolicy::Separate, 2);
    machine.uses(0, 50_000_000).runs(10, 0, 1);
    machine.tick(SECOND);
    machine.uses(0, 9_000_000_000).runs(10, 0, 3);
    let rejected = machine.tick(SECOND);
    assert_eq!(rejected.rejects, [(package(0), Reject::Implausible, 1)]);
    assert_eq!(attributed(&rejected, 0), 50_000_000);
    machine.raw.zones[0] = Ok(130_000_000);
    machine.runs(11, 0, 1);
    let after = machine.tick(SECOND);
    assert_eq!((attributed(&after, 0), attributed(&after, 1)), (50_000_000 + 60_000_000, 20_000_000));
}

#[test]
fn a_counter_that_stops_moving_is_unavailable_and_not_idle() {
    let mut machine = Machine::new(setup(&[package(0)], 1), IdlePolicy::Separate, 1);
    machine.uses(0, 500).runs(10, 0, 1);
    machine.tick(SECOND);
    for _ in 0..4 {
        machine.tick(SECOND);
        assert_eq!(machine.accountant.trouble(), None);
    }
    let stalled = machine.tick(SECOND);
    assert!(machine.accountant.trouble().unwrap().contains("stands at 500 for 5 s"));
    assert_eq!(stalled.zones[0].watts, None, "the power is unknown and not zero");
    machine.uses(0, 100);
    machine.tick(SECOND);
    assert_eq!(machine.accountant.trouble(), None);
}

#[test]
fn memory_is_a_root_and_the_platform_only_without_packages() {
    let dram = ZoneId { kind: ZoneKind::Dram, ..package(0) };
    let psys = ZoneId { package: None, kind: ZoneKind::Psys };
    let mut machine = Machine::new(setup(&[package(0), dram, psys], 1), IdlePolicy::Separate, 1);
    machine.uses(0, 700).uses(1, 50).uses(2, 900).runs(10, 0, 1);
    let snapshot = machine.tick(SECOND);
    let roots: Vec<_> = snapshot.accounts.iter().map(|account| account.id.zone.kind).collect();
    assert_eq!(roots, [ZoneKind::Package, ZoneKind::Dram]);
    assert_eq!((attributed(&snapshot, 0), snapshot.accounts[1].unattributed), (750, Microjoules::ZERO));

    let mut board = Machine::new(setup(&[psys], 2), IdlePolicy::Separate, 2);
    board.uses(0, 900).runs(10, 0, 1).runs(11, 1, 2);
    let snapshot = board.tick(SECOND);
    assert_eq!((attributed(&snapshot, 0), attributed(&snapshot, 1)), (300, 600), "by the CPU time of all packages");
}

/// Runs one container at varying loads until the idle power of 5 W is known.
fn calibrated(policy: IdlePolicy, containers: u32) -> Machine {
    let mut machine = Machine::new(setup(&[package(0)], 1), policy, containers);
    for second in 0..400u64 {
        let busy = (second * 37 % 90) * SECOND / 100;
        machine.uses(0, 5_000_000 + busy / 100).runs(10, 0, busy);
        machine.tick(SECOND);
    }
    machine
}

#[test]
fn learnt_idle_power_is_subtracted_and_can_be_restored() {
    let mut machine = calibrated(IdlePolicy::Separate, 1);
    let before = machine.tick(SECOND);
    let row = before.idle[0];
    assert!(row.estimate.uw.abs_diff(5_000_000) < 100_000 && row.calibrated, "{row:?}");
    machine.uses(0, 7_000_000).runs(10, 0, SECOND / 2);
    let after = machine.tick(SECOND);
    let dynamic = attributed(&after, 0) - attributed(&before, 0);
    assert!(dynamic.abs_diff(2_000_000) < 100_000, "{dynamic}");

    // Another accountant restores it.
    let mut again = Machine::new(setup(&[package(0)], 1), IdlePolicy::Separate, 1);
    again.accountant.restore_baselines(&machine.accountant.baselines());
    assert!(again.tick(SECOND).idle[0].estimate.uw.abs_diff(5_000_000) < 100_000);
}

#[test]
fn idle_policies_attribute_idle_energy_in_separate_rows() {
    let shared = |snapshot: &Snapshot, number: u32| {
        let rows = snapshot.accounts[0].idle_shares.iter();
        rows.filter(|(container, _)| container.number == number).map(|(_, uj)| uj.0).sum::<u64>()
    };
    let mut machine = calibrated(IdlePolicy::Proportional, 2);
    let before = machine.tick(SECOND);
    machine.uses(0, 9_000_000).runs(10, 0, SECOND / 2).runs(11, 0, SECOND / 4).runs(1, 0, SECOND / 4);
    let after = machine.tick(SECOND);
    let idle = after.idle[0].estimate.uw;
    assert!((shared(&after, 0) - shared(&before, 0)).abs_diff(idle / 2) <= 1);
    assert!((shared(&after, 1) - shared(&before, 1)).abs_diff(idle / 4) <= 1);

    let mut machine = calibrated(IdlePolicy::Reserved, 2);
    machine.raw.changes.reserved = vec![(1, 250)];
    machine.uses(0, 9_000_000).runs(10, 0, SECOND);
    let after = machine.tick(SECOND);
    assert!(shared(&after, 1).abs_diff(after.idle[0].estimate.uw / 4) <= 1, "a quarter of the one CPU is reserved");
    assert_eq!(shared(&after, 0), 0);

    // The share of a container that ends moves to the retired row.
    machine.raw.changes = TickChanges { ended: vec![1], ..TickChanges::default() };
    let ended = machine.tick(SECOND);
    assert_eq!(shared(&ended, 1), 0);
    assert!(ended.accounts[0].retired >= Microjoules(shared(&after, 1)));
}

#[test]
fn the_energy_of_the_probe_is_its_share_of_all_cpu_time() {
    let mut machine = Machine::new(setup(&[package(0), package(1)], 2), IdlePolicy::Separate, 1);
    machine.raw.own_ns = 10;
    machine.uses(0, 800).uses(1, 200).runs(1, 0, 30).runs(10, 1, 70);
    let own = |energy: u64| {
        vec![OwnRow { part: "process", zone: ZoneKind::Package, origin: Origin::Powercap, energy: Microjoules(energy) }]
    };
    assert_eq!(machine.tick(SECOND).own, own(100), "a tenth of all CPU time, of 1000 dynamic");
    // Without energy in this tick, its CPU time counts for the next.
    machine.raw.zones = vec![Err("EIO".into()), Err("EIO".into())];
    machine.raw.own_ns = 30;
    machine.runs(1, 0, 100);
    machine.tick(SECOND);
    machine.raw.zones = vec![Ok(1200), Ok(200)];
    machine.raw.own_ns = 60;
    machine.runs(1, 0, 100);
    assert_eq!(machine.tick(SECOND).own, own(100 + 100), "50 of 200, of 400 dynamic");
}

/// The programs run in the time of other tasks: their energy is shown, and no account has it twice.
#[test]
fn the_energy_of_the_programs_is_shown_and_changes_no_account() {
    let mut with = Machine::new(setup(&[package(0)], 1), IdlePolicy::Separate, 1);
    let mut without = Machine::new(setup(&[package(0)], 1), IdlePolicy::Separate, 1);
    let mut last = None;
    for (second, programs_ns) in [(1, None), (2, Some(50)), (3, Some(50)), (4, Some(60))] {
        for machine in [&mut with, &mut without] {
            machine.raw.own_ns = second * 10;
            machine.uses(0, 1000).runs(10, 0, 100);
        }
        with.raw.programs_ns = programs_ns;
        let (shown, hidden) = (with.tick(SECOND), without.tick(SECOND));
        assert_eq!(shown.accounts, hidden.accounts);
        assert_eq!(hidden.own.len(), 1, "without programs they have no row");
        last = Some(shown.own);
    }
    let rows = last.unwrap().into_iter().map(|row| (row.part, row.energy.0)).collect::<Vec<_>>();
    assert_eq!(rows, [("process", 400), ("ebpf", 100)], "10 of 200, of 2000 dynamic");
}

#[test]
fn a_model_has_no_bound() {
    let mut modelled = setup(&[package(0)], 1);
    modelled.origin = Some(Origin::Model);
    modelled.idle_uw = vec![Some(1_000_000)];
    let mut machine = Machine::new(modelled, IdlePolicy::Separate, 1);
    machine.uses(0, 3_000_000).runs(10, 0, SECOND);
    let snapshot = machine.tick(SECOND);
    assert_eq!(snapshot.containers[0].uncertainty, None);
    assert!(!snapshot.idle[0].calibrated);
    let window = snapshot.ring.window(0.0, 1.0).unwrap();
    assert_eq!(
        (window.accounts[0].uncertainty_joules, window.containers[0].energy[0].uncertainty_joules),
        (None, None)
    );
}

/// Simulates the errors of the hardware: a counter with steps that is updated every millisecond,
/// and CPU time that is read later than the energy, with a delay of running time slices.
#[test]
fn the_true_energy_is_within_the_bound_in_95_percent_of_windows() {
    const STEP: f64 = 61.035;
    const IDLE: f64 = 8.0;
    const WATTS_A_CPU: f64 = 12.0;
    const LAG: u64 = 4_000_000;
    let mut random = 0x1234_5678_9abc_def1_u64;
    let mut below = |end: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % end
    };
    let mut setup = setup(&[package(0)], 1);
    setup.cpu_packages = vec![Some(0); 4];
    setup.lag_ns = LAG;
    setup.zones[0].step_uj = 62;
    setup.zones[0].unit = Unit::joules_shifted(14).unwrap();
    setup.zones[0].range = Range::Wraps(1 << 32);
    let mut machine = Machine::new(setup, IdlePolicy::Separate, 2);

    // Loads change every 100 ms, and energy and CPU time are linear in between. Two containers and
    // the system, 4 CPUs.
    let mut loads: Vec<[f64; 3]> = Vec::new();
    let seconds = 700usize;
    for slot in 0..(seconds + 2) * 10 {
        let level = [0.1, 0.5, 1.0, 0.3, 0.0, 0.8, 0.2][slot / 50 % 7];
        let mut jitter = || f64::from(u32::try_from(below(1000)).unwrap()) / 1000.0;
        loads.push([2.0 * level * jitter(), 1.5 * level * jitter(), 0.2 * jitter()]);
    }
    let mut sums = vec![[0.0; 3]];
    for load in &loads {
        let last = *sums.last().unwrap();
        sums.push([0, 1, 2].map(|target: usize| last[target] + load[target] * 0.1));
    }
    // CPU seconds of each until a time.
    let ran = |seconds: f64| -> [f64; 3] {
        let slot = (seconds * 10.0).floor();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test's seconds")]
        let at = slot as usize;
        [0, 1, 2].map(|target: usize| sums[at][target] + loads[at][target] * (seconds - slot / 10.0))
    };
    let joules = |seconds: f64| IDLE * seconds + WATTS_A_CPU * ran(seconds).iter().sum::<f64>();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test's joules")]
    let whole = |value: f64| value as u64;

    let mut truth = vec![[0.0; 3]];
    let mut ring = Ring::default();
    for second in 1..=seconds {
        let at = f64::from(u32::try_from(second).unwrap());
        let ns = u64::try_from(second).unwrap() * SECOND;
        // The counter shows an update that is up to a millisecond old.
        let shown = at - f64::from(u32::try_from(below(1_000_000)).unwrap()) / 1e9;
        machine.raw.zones[0] = Ok(whole(joules(shown) * 1e6 / STEP));
        // CPU time is read up to 2 ms later, and lags by up to a tick of the scheduler.
        let skew = below(2_000_000);
        let Some(Ok(reading)) = &mut machine.raw.cpu else { panic!("no CPU time") };
        for (target, id) in [(0, 10), (1, 11), (2, 1)] {
            let behind = below(LAG + 1);
            let read =
                at + f64::from(u32::try_from(skew).unwrap()) / 1e9 - f64::from(u32::try_from(behind).unwrap()) / 1e9;
            let row = reading.rows.iter_mut().find(|(known, _)| *known == key(id)).unwrap();
            row.1[0].alone_ns = row.1[0].alone_ns.max(whole(ran(read)[target] * 1e9));
        }
        (machine.raw.began_ns, machine.raw.energy_ns, machine.raw.cpu_ns) = (ns, ns, ns + skew);
        machine.raw.unix_ns = i64::try_from(ns).unwrap();
        let snapshot = machine.accountant.tick(&machine.raw);
        assert_conserved(&snapshot);
        ring = snapshot.ring;
        truth.push(ran(at).map(|cpu| cpu * WATTS_A_CPU));
    }
    // From here on the idle power is known. Before, the bound includes all of it.
    let mut relative = Vec::new();
    for length in [1usize, 5, 20, 60] {
        let (mut inside, mut all, mut sizes) = (0, 0, Vec::new());
        for start in (300..seconds - length).step_by(3) {
            let edge = |at: usize| f64::from(u32::try_from(at).unwrap());
            let response = ring.window(edge(start), edge(start + length)).unwrap();
            for (target, name) in ["c0", "c1"].into_iter().enumerate() {
                let Some(row) = response.containers.iter().find(|row| row.container == name) else { continue };
                let (energy, bound) = (row.energy[0].joules, row.energy[0].uncertainty_joules.unwrap());
                let true_joules = truth[start + length][target] - truth[start][target];
                all += 1;
                inside += u32::from((energy - true_joules).abs() <= bound);
                if energy > 1.0 {
                    sizes.push(bound / energy);
                }
            }
        }
        sizes.sort_unstable_by(f64::total_cmp);
        let median = sizes[sizes.len() / 2];
        println!("{length} s: {inside} of {all} inside, median bound {:.2} %", 100.0 * median);
        assert!(f64::from(inside) >= 0.95 * f64::from(all), "{length} s: {inside} of {all}");
        relative.push(median);
    }
    assert!(relative.windows(2).all(|pair| pair[1] < pair[0]), "{relative:?}");
}

/// The last minute was the sum of ticks on both sides of a night.
#[test]
fn the_last_minute_begins_again_after_a_suspension_and_lost_energy() {
    let mut machine = Machine::new(setup(&[package(0)], 1), IdlePolicy::Separate, 1);
    let second = |machine: &mut Machine| {
        machine.uses(0, 10_000_000).runs(10, 0, SECOND / 10).runs(1, 0, SECOND / 10).tick(SECOND).containers[0].minute
    };
    let is_known_after_a_minute = |machine: &mut Machine| {
        let first = (0..59).filter_map(|_| second(machine)).count();
        (first, second(machine).is_some())
    };
    // The first tick only starts the counters.
    assert_eq!(is_known_after_a_minute(&mut machine), (0, true));
    machine.raw.suspended_ns = 3600 * SECOND;
    assert_eq!(second(&mut machine), None);
    machine.raw.suspended_ns = 0;
    assert_eq!(is_known_after_a_minute(&mut machine), (0, true));
    // The monotonic clock stood still, but the counter returned with another value.
    machine.raw.zones[0] = Err(REOPENED.to_owned());
    machine.tick(SECOND);
    machine.raw.zones[0] = Ok(0);
    machine.tick(SECOND);
    assert_eq!(is_known_after_a_minute(&mut machine), (0, true));
}

/// A container with 100 ms of CPU time a second next to a large one, whose running time slices are
/// up to 4 ms behind: its joules of the last minute.
#[test]
fn the_last_minute_of_a_small_container_is_within_five_percent() {
    const IDLE_UW: u64 = 40_000_000;
    const UW_A_CPU: u64 = 20_000_000;
    const SMALL_NS: u64 = SECOND / 10;
    const LAG: u64 = 4_000_000;
    let mut random = 0x1234_5678_9abc_def1_u64;
    let mut below = |end: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % end
    };
    let mut setup = setup(&[package(0)], 1);
    setup.cpu_packages = vec![Some(0); 4];
    setup.lag_ns = LAG;
    let mut machine = Machine::new(setup, IdlePolicy::Separate, 2);
    let (mut large_ns, mut small_ns) = (0, 0);
    let (mut inside, mut all, mut sizes) = (0, 0, Vec::new());
    for second in 0..900usize {
        // Milliseconds of CPU time of the large one.
        let level = [0, 100, 400, 800, 1500, 2500][second / 10 % 6];
        let ran = level * 1_000_000;
        machine.uses(0, IDLE_UW + (ran + SMALL_NS) * UW_A_CPU / SECOND);
        (large_ns, small_ns) = (large_ns + ran, small_ns + SMALL_NS);
        // A tenth of the readings find the small one running.
        let behind = if below(10) == 0 { below(LAG + 1) } else { 0 };
        let read = [(10, large_ns - ran.min(below(LAG + 1) * level / 1000)), (11, small_ns - behind)];
        let Some(Ok(reading)) = &mut machine.raw.cpu else { panic!("no CPU time") };
        for (cpu, (id, ns)) in read.into_iter().enumerate() {
            let row = reading.rows.iter_mut().find(|(known, _)| *known == key(id)).unwrap();
            row.1[cpu].alone_ns = row.1[cpu].alone_ns.max(ns);
        }
        let snapshot = machine.tick(SECOND);
        let Some(minute) = snapshot.containers[1].minute.filter(|_| second > 300) else { continue };
        let float = |count: u64| f64::from(u32::try_from(count).unwrap());
        let truth = float(minute.ns / SECOND) * float(SMALL_NS) / 1e9 * float(UW_A_CPU);
        all += 1;
        inside += u32::from((minute.uj - truth).abs() <= minute.bound_uj);
        sizes.push(minute.bound_uj / minute.uj);
    }
    sizes.sort_unstable_by(f64::total_cmp);
    let median = sizes[sizes.len() / 2];
    assert!(all > 500 && f64::from(inside) >= 0.95 * f64::from(all), "{inside} of {all}");
    assert!(median > 0.0 && median <= 0.05, "{median}");
}

/// One second of a machine with two packages: energy of each, and container, package and CPU time
/// of each run.
type Moment = (u32, u32, Vec<(u32, bool, u32)>);

fn moments() -> impl Strategy<Value = Vec<Moment>> {
    let ran = proptest::collection::vec((0u32..3, any::<bool>(), 0u32..1_000_000), 0..6);
    proptest::collection::vec((0u32..200_000_000, 0u32..200_000_000, ran), 1..40)
}

fn replay(zones: &[ZoneId], moments: &[Moment], halves: bool) -> Snapshot {
    let mut machine = Machine::new(setup(zones, 2), IdlePolicy::Separate, 3);
    let at = |id: ZoneId| zones.iter().position(|zone| *zone == id).unwrap();
    let mut last = Snapshot::default();
    for (a, b, ran) in moments {
        let parts: u64 = if halves { 2 } else { 1 };
        for _ in 0..parts {
            // Even numbers, so that the halves are integers.
            machine.uses(at(package(0)), u64::from(*a) * 2 / parts).uses(at(package(1)), u64::from(*b) * 2 / parts);
            for (number, second, ns) in ran {
                machine.runs(u64::from(*number) + 10, usize::from(*second), u64::from(*ns) * 2 / parts);
            }
            last = machine.tick(SECOND / parts);
        }
    }
    last
}

proptest! {
    #[test]
    fn halving_the_tick_leaves_totals_unchanged(moments in moments()) {
        let (whole, half) = (replay(&[package(0), package(1)], &moments, false), replay(&[package(0), package(1)], &moments, true));
        for (whole, half) in whole.zones.iter().zip(&half.zones) {
            prop_assert_eq!(whole.total, half.total);
        }
        for number in 0..3 {
            // Each split rounds a share by less than a microjoule.
            let max = 2 * u64::try_from(moments.len()).unwrap() * 2;
            prop_assert!(attributed(&whole, number).abs_diff(attributed(&half, number)) <= max);
        }
    }

    #[test]
    fn renumbering_zones_changes_nothing(moments in moments()) {
        let one = replay(&[package(0), package(1)], &moments, false);
        let other = replay(&[package(1), package(0)], &moments, false);
        prop_assert_eq!(&one.accounts, &other.accounts);
    }

    /// Containers and jobs come and go at a limit of 1, 2 or 3 rows. A row without room is not
    /// announced, and its cgroups and jobs name it all the same.
    #[test]
    fn pages_and_windows_are_conserved_under_churn_at_the_limit(
        limit in 1usize..=3,
        ticks in proptest::collection::vec(
            (
                proptest::collection::vec((0u32..8, any::<bool>(), 0u64..SECOND), 0..5),
                proptest::option::weighted(0.9, 0u64..90_000_000),
                proptest::option::weighted(0.9, 0u64..90_000),
                any::<bool>(),
            ),
            1..30,
        ),
        policy in prop_oneof![
            Just(IdlePolicy::Separate), Just(IdlePolicy::Proportional), Just(IdlePolicy::Reserved)
        ],
    ) {
        use crate::jobs::{Job, command_line::CommandLine};
        let mut exact = setup(&[package(0)], 1);
        exact.idle_uw = vec![Some(5_000_000)];
        let mut machine = Machine::new(exact, policy, 8);
        machine.raw.changes.ended = (0..8).collect();
        machine.tick(SECOND);
        machine.raw.changes = TickChanges::default();
        machine.add_zone(gpu::board(gpu::BOARD));
        let (mut rows, mut package_uj, mut board_mj, mut next) = (Vec::new(), 0, 0, 100);
        for (ran, energy, board_energy, pending) in ticks {
            let mut changes = TickChanges::default();
            let mut uses = Vec::new();
            machine.raw.jobs.clear();
            for (number, is_job, ns) in ran {
                let row = if is_job {
                    next += 1;
                    let command = CommandLine::parse(b"ffmpeg\0-i\0a\0cam.mp4\0");
                    let (charge_target, own_container) = (ChargeTarget::System, Some(next));
                    changes.jobs.push(Job { number: next, charge_target, own_container, unix_ns: 0, command });
                    machine.raw.jobs.push((next, ns));
                    machine.runs(1, 0, ns);
                    next
                } else {
                    machine.runs(u64::from(number) + 10, 0, ns);
                    number
                };
                uses.push(gpu::used(Some(row), crate::gpu::engines::Engine::Sm, ns));
                changes.reserved.push((row, 300));
                // Every second row finds no room, and is not announced.
                if ns % 2 == 0 && !rows.contains(&row) {
                    changes.containers.push(Arc::new(container(row)));
                    rows.push(row);
                }
                while rows.len() > limit {
                    changes.ended.push(rows.remove(0));
                }
            }
            package_uj += energy.unwrap_or(1_000_000);
            board_mj += board_energy.unwrap_or(1_000);
            machine.raw.zones[0] = energy.map(|_| package_uj).ok_or_else(|| "late".to_owned());
            machine.raw.zones[1] = board_energy.map(|_| board_mj).ok_or_else(|| "late".to_owned());
            machine.raw.changes = changes;
            machine.set_usage(gpu::BOARD, uses);
            machine.raw.gpus[0].1.pending = pending;
            // `tick` compares every account with its counter.
            let snapshot = machine.second();
            machine.raw.changes = TickChanges::default();
            assert_windows_conserved(&snapshot.ring);
        }
    }

    #[test]
    fn totals_are_conserved_and_monotonic_for_any_readings(
        readings in proptest::collection::vec(
            (proptest::option::of(any::<u64>()), proptest::option::of(0u64..1 << 40), 1u64..10 * SECOND, any::<bool>()),
            1..40,
        ),
        policy in prop_oneof![
            Just(IdlePolicy::Separate), Just(IdlePolicy::Proportional), Just(IdlePolicy::Reserved)
        ],
    ) {
        let mut machine = Machine::new(setup(&[package(0), package(1)], 2), policy, 2);
        let mut before: BTreeMap<ZoneId, Microjoules> = BTreeMap::new();
        for (a, b, dt, ran) in readings {
            machine.raw.zones = vec![a.ok_or_else(String::new), b.ok_or_else(String::new)];
            if ran {
                machine.runs(10, 0, dt / 3).runs(11, 1, dt / 2).runs(1, 0, dt / 5);
            }
            let snapshot = machine.tick(dt);
            for zone in &snapshot.zones {
                let last = before.insert(zone.id, zone.total).unwrap_or_default();
                prop_assert!(zone.total >= last);
            }
        }
    }
}

/// Microjoules of each container from one root, and of these the energy of being awake.
fn from_root(snapshot: &Snapshot, root: usize, number: u32) -> (u64, u64) {
    let account = &snapshot.accounts[root];
    let of = |rows: &[(Arc<Container>, Microjoules)]| {
        rows.iter().filter(|(container, _)| container.number == number).map(|(_, uj)| uj.0).sum::<u64>()
    };
    (of(&account.containers), of(&account.awake_shares))
}

/// Microjoules of a second of each package of a Xeon of two sockets: idle, and with one busy thread
/// on socket 0 (Broadwell, ddr4-2x16gb-2400-socket0 in the artifact of "An Experimental Setup to
/// Evaluate RAPL Energy Counters for Heterogeneous Memory", ICPE 2024).
const ASLEEP: [u64; 2] = [14_900_000, 12_590_000];
const BUSY: [u64; 2] = [34_660_000, 29_010_000];

/// One second in which a daemon runs 2 ms on socket 1, and perhaps a thread on socket 0.
fn broadwell(machine: &mut Machine, busy: bool) -> Snapshot {
    let uj = if busy { BUSY } else { ASLEEP };
    machine.uses(0, uj[0]).uses(1, uj[1]).runs(11, 1, 2_000_000);
    if busy {
        machine.runs(10, 0, SECOND);
    }
    machine.tick(SECOND)
}

/// A machine of two sockets whose sleep power and step are known.
fn awakened() -> Machine {
    let mut machine = Machine::new(setup(&[package(0), package(1)], 2), IdlePolicy::Separate, 2);
    for second in 0..80 {
        broadwell(&mut machine, second >= 40);
    }
    machine
}

/// All that the empty socket used above idle was given to a daemon that ran 2 ms a second there.
#[test]
fn a_busy_thread_pays_for_the_socket_that_it_wakes() {
    let mut machine = awakened();
    let before = broadwell(&mut machine, true);
    let mut after = Snapshot::default();
    for _ in 0..100 {
        after = broadwell(&mut machine, true);
    }
    let grown = |number| {
        let ((all, awake), (all_before, awake_before)) = (from_root(&after, 1, number), from_root(&before, 1, number));
        (all - all_before, awake - awake_before)
    };
    let above = 100 * (BUSY[1] - ASLEEP[1]);
    let (thread, daemon) = (grown(0), grown(1));
    assert!(thread.0 * 10 >= above * 9, "{thread:?} of {above}");
    assert!(daemon.0 * 10 <= above, "{daemon:?} of {above}");
    assert_eq!(thread.0, thread.1, "it ran on the other socket");
    assert_eq!(after.idle_states[1].state, IdleState::Known);
    assert!(after.steps[0].estimate.uw.abs_diff(BUSY[1] - ASLEEP[1]) < 10_000, "{:?}", after.steps);
    assert_eq!(after.awake[0].awake.source, AwakeSource::Estimated);
    assert!(after.containers[0].minute.is_some());
    assert_windows_conserved(&after.ring);
}

/// Residency counters replace the estimate: socket 1 sleeps while a thread runs on socket 0.
#[test]
fn a_package_that_sleeps_by_its_counters_has_no_awake_energy() {
    let mut machine = awakened();
    machine.raw.residency = vec![Some([0, 0]), Some([0, 0])];
    let before = broadwell(&mut machine, true);
    machine.raw.residency = vec![Some([0, 1000]), Some([1000, 1000])];
    machine.uses(0, BUSY[0]).uses(1, ASLEEP[1]).runs(10, 0, SECOND).runs(11, 1, 2_000_000);
    let after = machine.tick(SECOND);
    assert_eq!((after.awake[1].awake.share, after.awake[1].awake.source), (0.0, AwakeSource::Cstate));
    assert_eq!(from_root(&after, 1, 0), from_root(&before, 1, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn energy_of_being_awake_is_conserved_and_a_part_of_the_containers(moments in moments()) {
        let mut machine = awakened();
        let mut ring = Ring::default();
        for (a, b, ran) in moments {
            machine.uses(0, u64::from(a)).uses(1, u64::from(b));
            for (number, second, ns) in ran {
                // Container 2 does not exist here.
                machine.runs(u64::from(number.min(1)) + 10, usize::from(second), u64::from(ns) * 300);
            }
            // `tick` compares every account with its counter.
            let snapshot = machine.tick(SECOND);
            for root in 0..2 {
                for number in 0..2 {
                    let (all, awake) = from_root(&snapshot, root, number);
                    prop_assert!(awake <= all);
                }
            }
            ring = snapshot.ring;
        }
        assert_windows_conserved(&ring);
    }
}

/// A job next to a shell: its CPU time moves from the system to its own row, and energy is
/// conserved.
#[test]
fn the_time_of_a_job_with_its_own_row_is_not_the_systems() {
    use crate::jobs::{Job, command_line::CommandLine};
    let mut machine = Machine::new(setup(&[package(0), package(1)], 2), IdlePolicy::Separate, 1);
    let command = CommandLine::parse(b"ffmpeg\0-i\0a\0cam.mp4\0");
    let job = Job { number: 5, charge_target: ChargeTarget::System, own_container: Some(7), unix_ns: 0, command };
    machine.raw.changes.containers = vec![Arc::new(Container { runtime: "process", ..container(7) })];
    machine.raw.changes.jobs = vec![job];
    // The system ran for three seconds, one of them on the other package; the job for two thirds of
    // that.
    machine.raw.jobs = vec![(5, 2 * SECOND)];
    machine.uses(0, 4_000_000).uses(1, 4_000_000).runs(1, 0, 2 * SECOND).runs(1, 1, SECOND).runs(10, 1, SECOND);
    let first = machine.tick(2 * SECOND);
    // Two thirds of the first package, and two thirds of the system's half of the other.
    assert_eq!(attributed(&first, 7), 2_666_667 + 1_333_333);
    let [stream] = &*first.streams else { panic!("{:?}", first.streams) };
    assert_eq!((&*stream.id.name, stream.joules.0), ("cam", attributed(&first, 7)));
    // A clock ahead of the system's CPU time takes all of it, and no more.
    machine.raw.changes = TickChanges::default();
    machine.raw.jobs = vec![(5, 10 * SECOND)];
    machine.uses(0, 1_000_000).runs(1, 0, SECOND);
    let second = machine.tick(SECOND);
    assert_eq!(attributed(&second, 7) - attributed(&first, 7), 1_000_000);
    assert_eq!(second.streams[0].joules.0, attributed(&second, 7));
}

/// A segment of the history begins in the middle of a job: its second tick gave the job's row all
/// CPU time of the system.
#[test]
fn what_a_job_ran_before_the_first_tick_is_in_no_tick() {
    use crate::jobs::{Job, command_line::CommandLine};
    let mut machine = Machine::new(setup(&[package(0)], 1), IdlePolicy::Separate, 1);
    machine.accountant = Accountant::new(setup(&[package(0)], 1), IdlePolicy::Separate, 1 << 20);
    let command = CommandLine::parse(b"ffmpeg\0-i\0a\0cam.mp4\0");
    let job = Job { number: 5, charge_target: ChargeTarget::System, own_container: Some(7), unix_ns: 0, command };
    machine.raw.changes.containers = vec![Arc::new(Container { runtime: "process", ..container(7) })];
    machine.raw.changes.jobs = vec![job];
    machine.raw.jobs = vec![(5, 100 * SECOND)];
    machine.tick(SECOND);
    machine.raw.changes = TickChanges::default();
    machine.raw.jobs = vec![(5, 100 * SECOND + SECOND / 4)];
    let second = machine.uses(0, 4_000_000).runs(1, 0, SECOND).tick(SECOND);
    assert_eq!((attributed(&second, 7), second.streams[0].joules.0), (1_000_000, 1_000_000));
}

/// A source that counts whole packages where the topology has dies, as the model does.
#[test]
fn a_package_is_split_by_the_cpu_time_of_all_of_its_dies() {
    let mut setup = setup(&[package(0)], 2);
    setup.packages = (0..2).map(|die| PackageId { package: 0, die: Some(die) }).collect();
    let mut machine = Machine::new(setup, IdlePolicy::Separate, 2);
    let snapshot = machine.uses(0, 4_000_000).runs(10, 0, SECOND / 4).runs(11, 1, SECOND / 4 * 3).tick(SECOND);
    assert_eq!([0, 1].map(|number| attributed(&snapshot, number)), [1_000_000, 3_000_000]);
}

/// The figures of an idle cgroup are skipped, which must not hide it from its container.
#[test]
fn queues_of_an_idle_cgroup_follow_its_target() {
    let queue = |voluntary| RunQueueStats { voluntary, ..RunQueueStats::default() };
    let mut machine = Machine::new(setup(&[package(0)], 1), IdlePolicy::Separate, 3);
    let mut tick = |all: &[(u64, u64)], changes: TickChanges| {
        let Some(Ok(reading)) = &mut machine.raw.cpu else { panic!("no CPU time") };
        reading.queues = all.iter().map(|(id, count)| (key(*id), queue(*count))).collect();
        machine.raw.changes = changes;
        let rows = machine.tick(SECOND).containers;
        rows.iter().map(|row| row.queue.map(|queue| queue.voluntary)).collect::<Vec<_>>()
    };
    let targets =
        |number| TickChanges { targets: vec![(key(10), ChargeTarget::Container(number))], ..TickChanges::default() };
    assert_eq!(tick(&[], TickChanges::default()), [None; 3]);
    // One that has not switched yet has a row of zeros.
    assert_eq!(tick(&[(10, 0), (11, 7)], TickChanges::default()), [Some(0), Some(7), None]);
    assert_eq!(tick(&[(10, 0), (11, 7)], TickChanges::default()), [Some(0), Some(7), None]);
    assert_eq!(tick(&[(10, 4), (11, 7)], TickChanges::default()), [Some(4), Some(7), None]);
    assert_eq!(tick(&[(10, 4), (11, 7)], targets(2)), [Some(4), Some(7), Some(0)], "moved without a switch");
    assert_eq!(tick(&[(10, 9), (11, 7)], TickChanges::default()), [Some(4), Some(7), Some(5)]);
    let again = TickChanges { ended: vec![1], ..TickChanges::default() };
    assert_eq!(tick(&[(10, 9), (11, 7)], again), [Some(4), Some(5)]);
    let again = TickChanges { containers: vec![Arc::new(container(1))], ..TickChanges::default() };
    assert_eq!(tick(&[(10, 9), (11, 7)], again), [Some(4), Some(0), Some(5)], "as for a new one");
}

/// A container that did not run has the power of its zones too: zero, not none.
#[test]
fn idle_containers_have_a_power_of_zero() {
    let mut machine = Machine::new(setup(&[package(0)], 1), IdlePolicy::Separate, 2);
    machine.uses(0, 1_000_000).runs(10, 0, SECOND).tick(SECOND);
    let rows = machine.uses(0, 1_000_000).runs(10, 0, SECOND).tick(SECOND).containers;
    let watts: Vec<_> = rows.iter().map(|row| row.watts.to_vec()).collect();
    assert_eq!(watts, [vec![("package", Origin::Powercap, 1.0)], vec![("package", Origin::Powercap, 0.0)]]);
}
