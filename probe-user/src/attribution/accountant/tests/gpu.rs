//! Machines with GPUs.

use super::*;
use crate::{
    gpu::{
        ASLEEP, EngineUsage, GpuUsage,
        engines::{ENGINES, Engine},
    },
    host::gpu_id::Pci,
};

pub(super) const BOARD: GpuId = GpuId::Nvidia(7);
const INTEGRATED: GpuId = GpuId::Integrated(Pci { domain: 0, bus: 0, device: 2, function: 0 });
/// Counts of a board per watt and second.
const WATT: u64 = 1000;

pub(super) fn board(gpu: GpuId) -> Zone {
    let id = ZoneId { package: None, kind: ZoneKind::Gpu(gpu) };
    Zone {
        unit: Unit::MILLIJOULE,
        ceiling: Ceiling::None,
        origin: Some(Origin::Nvml),
        ..Zone::microjoules(id, Range::Endless, "a board".into())
    }
}

/// A machine with one package, and a board from the second tick on.
fn with_board(policy: IdlePolicy) -> Machine {
    let mut machine = Machine::new(setup(&[package(0)], 1), policy, 2);
    machine.add_zone(board(BOARD));
    machine
}

pub(super) fn used(container: Option<u32>, engine: Engine, ns: u64) -> EngineUsage {
    let mut times = [0; ENGINES];
    times[engine.index()] = ns;
    EngineUsage { charge_target: container.map(ChargeTarget::Container), job: None, times }
}

impl Machine {
    /// Adds a counter after the start.
    pub(super) fn add_zone(&mut self, zone: Zone) {
        self.raw.changes.zones.push(zone);
        self.raw.zones.push(Ok(0));
        self.tick(SECOND);
        self.raw.changes = TickChanges::default();
    }

    /// Sets the use of a GPU in the next tick.
    pub(super) fn set_usage(&mut self, gpu: GpuId, uses: Vec<EngineUsage>) -> &mut Self {
        self.raw.gpus = vec![(gpu, GpuUsage { idle: uses.is_empty(), uses, ..GpuUsage::default() })];
        self
    }

    pub(super) fn second(&mut self) -> Snapshot {
        self.raw.gpu_ns += SECOND;
        self.tick(SECOND)
    }
}

fn board_account(snapshot: &Snapshot) -> AccountRow {
    let boards = |account: &&AccountRow| matches!(account.id.zone.kind, ZoneKind::Gpu(_));
    snapshot.accounts.iter().find(boards).unwrap().clone()
}

fn of(account: &AccountRow, number: u32) -> u64 {
    account.containers.iter().find(|(container, _)| container.number == number).map_or(0, |(_, uj)| uj.0)
}

#[test]
fn energy_follows_the_engines_and_not_the_cpu() {
    let mut machine = with_board(IdlePolicy::Separate);
    // Container 0 encodes without CPU time. Container 1 uses the shaders, and all of the CPU.
    let uses = vec![used(Some(0), Engine::Encoder, SECOND), used(Some(1), Engine::Sm, SECOND / 2)];
    machine.set_usage(BOARD, uses).uses(1, 80 * WATT).uses(0, 10_000_000).runs(11, 0, SECOND);
    let snapshot = machine.second();
    let board = board_account(&snapshot);
    // A second of the encoder has the weight of 0.3 s of the shaders, and half a second of the
    // shaders 0.5.
    assert_eq!((of(&board, 0), of(&board, 1)), (30_000_000, 50_000_000));
    assert_eq!(board.id.origin, Origin::Nvml);
    assert_eq!((attributed(&snapshot, 0), attributed(&snapshot, 1)), (30_000_000, 60_000_000));
    let times = &snapshot.engine_times;
    assert_eq!((times.len(), times[0].1, times[0].2[Engine::Encoder.index()]), (2, BOARD, SECOND));
    let watts = &snapshot.containers[0].watts;
    assert_eq!(watts.iter().find(|(zone, ..)| *zone == "gpu"), Some(&("gpu", Origin::Nvml, 30.0)));
}

#[test]
fn unclaimed_energy_is_unattributed_and_never_split_evenly() {
    let mut machine = with_board(IdlePolicy::Separate);
    let board = board_account(&machine.set_usage(BOARD, vec![]).uses(1, 50 * WATT).second());
    assert_eq!((board.unattributed.0, board.containers.len()), (50_000_000, 0));
    // The part of a process that ended during the tick goes to no other process.
    let uses = vec![used(None, Engine::Encoder, SECOND), used(Some(0), Engine::Encoder, SECOND)];
    let board = board_account(&machine.set_usage(BOARD, uses).uses(1, 50 * WATT).second());
    assert_eq!((board.unattributed.0, of(&board, 0)), (75_000_000, 25_000_000));
}

/// Its counter stands still for longer than that of a board that works, and may have been reset.
#[test]
fn a_suspended_board_is_no_trouble_and_its_energy_is_not_guessed() {
    let mut machine = with_board(IdlePolicy::Separate);
    let uses = || vec![used(Some(0), Engine::Encoder, SECOND)];
    let measured = |snapshot: &Snapshot| snapshot.zones[1].total.0;
    machine.set_usage(BOARD, uses()).uses(1, 50 * WATT).second();
    let awake = machine.raw.zones[1].clone();
    machine.raw.zones[1] = Err(ASLEEP.to_owned());
    for _ in 0..10 {
        assert_eq!(measured(&machine.set_usage(BOARD, vec![]).second()), 50_000_000);
        assert_eq!(machine.accountant.gpu_trouble(), None);
    }
    // The driver says that the counter may be another one.
    machine.raw.zones[1] = awake;
    machine.set_usage(BOARD, uses());
    machine.raw.gpus[0].1.counter_reset = true;
    assert_eq!(measured(&machine.uses(1, 900_000 * WATT).second()), 50_000_000);
    let on = machine.set_usage(BOARD, uses()).uses(1, 20 * WATT).second();
    assert_eq!((measured(&on), of(&board_account(&on), 0)), (70_000_000, 70_000_000));
}

#[test]
fn idle_power_is_learnt_and_not_attributed() {
    for (policy, idle, shared) in [(IdlePolicy::Separate, 10, 0), (IdlePolicy::Proportional, 0, 10)] {
        let mut machine = with_board(policy);
        for _ in 0..10 {
            machine.set_usage(BOARD, vec![]).uses(1, 10 * WATT).second();
        }
        let before = board_account(&machine.set_usage(BOARD, vec![]).uses(1, 10 * WATT).second());
        let snapshot = machine.set_usage(BOARD, vec![used(Some(0), Engine::Sm, SECOND)]).uses(1, 60 * WATT).second();
        let after = board_account(&snapshot);
        assert_eq!(of(&after, 0), 50_000_000);
        assert_eq!((after.idle - before.idle).0, idle * 1_000_000);
        let shares: u64 = after.idle_shares.iter().map(|(_, uj)| uj.0).sum();
        assert_eq!(shares, shared * 1_000_000);
        let known = snapshot.idle.iter().find(|row| matches!(row.id.kind, ZoneKind::Gpu(_))).unwrap();
        assert_eq!((known.estimate, known.calibrated), (Estimate::exact(10_000_000), true));
        let learnt = machine.accountant.baselines();
        assert_eq!(learnt[&known.id.to_string()].len(), 8, "samples right after work are left out");
        let mut again = Machine::new(setup(&[package(0)], 1), policy, 0);
        again.accountant.restore_baselines(&learnt);
        again.add_zone(board(BOARD));
        assert_eq!(again.set_usage(BOARD, vec![]).uses(1, WATT).second().idle.len(), 1);
    }
}

#[test]
fn a_gpu_that_was_unavailable_keeps_its_total_and_claims() {
    let mut machine = with_board(IdlePolicy::Separate);
    machine.set_usage(BOARD, vec![used(Some(0), Engine::Sm, SECOND)]).uses(1, 40 * WATT).second();
    let good = machine.raw.zones[1].clone();
    for _ in 0..3 {
        machine.raw.zones[1] = Err("lost".into());
        let snapshot = machine.set_usage(BOARD, vec![used(Some(1), Engine::Sm, SECOND)]).uses(0, 1000).second();
        assert_eq!(board_account(&snapshot).containers.len(), 1);
        assert_eq!(machine.accountant.trouble(), None, "the packages are available");
    }
    // Available again, and its counter continued: container 1 used all of the 120 J.
    machine.raw.zones[1] = good;
    let snapshot = machine.set_usage(BOARD, vec![used(Some(1), Engine::Sm, SECOND)]).uses(1, 120 * WATT).second();
    assert_eq!((of(&board_account(&snapshot), 0), of(&board_account(&snapshot), 1)), (40_000_000, 120_000_000));
    // Available after a reload of the driver: it counts from zero, and the energy until then is
    // unknown.
    machine.raw.zones[1] = Ok(5);
    let snapshot = machine.set_usage(BOARD, vec![used(Some(1), Engine::Sm, SECOND)]).second();
    assert_eq!(of(&board_account(&snapshot), 1), 120_000_000);
    assert_eq!(snapshot.rejects.iter().map(|(_, reason, _)| *reason).collect::<Vec<_>>(), [Reject::Fell]);
    let snapshot = machine.set_usage(BOARD, vec![used(Some(0), Engine::Sm, SECOND)]).uses(1, 10 * WATT).second();
    assert_eq!((of(&board_account(&snapshot), 0), of(&board_account(&snapshot), 1)), (50_000_000, 120_000_000));
}

#[test]
fn a_stalled_gpu_counter_is_a_state_of_the_gpu_only() {
    let mut machine = with_board(IdlePolicy::Separate);
    let mut last = Snapshot::default();
    for _ in 0..8 {
        last = machine
            .set_usage(BOARD, vec![used(Some(0), Engine::Sm, SECOND)])
            .uses(0, 1_000_000)
            .runs(10, 0, SECOND)
            .second();
    }
    assert_eq!(machine.accountant.trouble(), None);
    assert!(machine.accountant.gpu_trouble().unwrap().contains("stands at 0"));
    assert_eq!(board_account(&last).containers.iter().map(|(_, uj)| uj.0).sum::<u64>(), 0);
    machine.set_usage(BOARD, vec![]).uses(1, WATT).second();
    assert_eq!(machine.accountant.gpu_trouble(), None);
}

#[test]
fn energy_waits_for_pending_usage_and_power_is_kept_meanwhile() {
    let mut machine = with_board(IdlePolicy::Separate);
    machine.set_usage(BOARD, vec![used(Some(0), Engine::Sm, SECOND)]).uses(1, 40 * WATT).second();
    // The sample of container 1 is a tick later than that of container 0; each used the GPU for
    // both seconds.
    machine.set_usage(BOARD, vec![used(Some(0), Engine::Sm, 2 * SECOND)]);
    machine.raw.gpus[0].1.pending = true;
    let pending = machine.uses(1, 60 * WATT).second();
    assert_eq!((of(&board_account(&pending), 0), of(&board_account(&pending), 1)), (40_000_000, 0));
    let watts = |snapshot: &Snapshot| snapshot.zones[1].watts;
    assert_eq!(watts(&pending), Some(40.0), "no gap, and no zero");
    assert_eq!(pending.containers[0].watts.iter().find(|(zone, ..)| *zone == "gpu").unwrap().2, 40.0);
    let complete = machine.set_usage(BOARD, vec![used(Some(1), Engine::Sm, 2 * SECOND)]).uses(1, 60 * WATT).second();
    assert_eq!((of(&board_account(&complete), 0), of(&board_account(&complete), 1)), (100_000_000, 60_000_000));
    assert_eq!(watts(&complete), Some(60.0));
}

#[test]
fn a_window_that_ends_while_the_split_waits_is_whole_later() {
    let mut machine = with_board(IdlePolicy::Separate);
    let start = machine.set_usage(BOARD, vec![used(Some(0), Engine::Sm, SECOND)]).uses(1, 40 * WATT).second();
    machine.set_usage(BOARD, vec![used(Some(0), Engine::Sm, SECOND)]);
    machine.raw.gpus[0].1.pending = true;
    let end = machine.uses(1, 60 * WATT).second();
    let window = |snapshot: &Snapshot| {
        let (_, from) = start.ring.reach().unwrap();
        let (_, to) = end.ring.reach().unwrap();
        let response = snapshot.ring.window(from, to).unwrap();
        let account = response.accounts.iter().find(|account| account.zone == "gpu").unwrap();
        assert_eq!(account.missing_seconds, 0.0);
        (account.measured_joules, account.unsettled_joules, account.containers_joules)
    };
    assert_eq!(window(&end), (60.0, 60.0, 0.0));
    // The board is polled at times of its own: the next tick is longer than the time since then.
    machine.set_usage(BOARD, vec![used(Some(1), Engine::Sm, SECOND)]).uses(1, 20 * WATT);
    machine.raw.gpu_ns += SECOND / 10;
    let later = machine.tick(3 * SECOND);
    assert_eq!(window(&later), (60.0, 0.0, 60.0));
    assert_windows_conserved(&later.ring);
}

#[test]
fn a_board_whose_reading_keeps_failing_is_reported() {
    let mut machine = with_board(IdlePolicy::Separate);
    machine.raw.zones[1] = Err("an internal driver error".into());
    for second in 0..8 {
        machine.set_usage(BOARD, vec![]).uses(0, 1000).second();
        assert_eq!(machine.accountant.gpu_trouble().is_some(), second >= 5, "{second}");
    }
    machine.raw.zones[1] = Ok(7);
    machine.set_usage(BOARD, vec![]).second();
    assert_eq!(machine.accountant.gpu_trouble(), None);
}

#[test]
fn a_counter_that_may_have_been_reset_restarts_at_any_value() {
    let mut machine = with_board(IdlePolicy::Separate);
    machine.set_usage(BOARD, vec![]).uses(1, 5 * WATT).second();
    machine.set_usage(BOARD, vec![]);
    machine.raw.gpus[0].1.counter_reset = true;
    let before = board_account(&machine.uses(1, 900 * WATT).second());
    assert_eq!(parts(&before).0, 5_000_000);
    assert_eq!(parts(&board_account(&machine.set_usage(BOARD, vec![]).uses(1, 5 * WATT).second())).0, 10_000_000);
}

#[test]
fn a_late_poll_moves_its_energy_to_the_next_tick() {
    let mut machine = with_board(IdlePolicy::Separate);
    let late = || Err("has not answered yet".to_owned());
    let mut counter = 0;
    for second in 0..10u64 {
        counter += 30 * WATT;
        if second % 3 == 1 {
            machine.raw.zones[1] = late();
            machine.raw.gpus.clear();
            machine.tick(SECOND);
        } else {
            machine.raw.gpu_ns = machine.raw.energy_ns + SECOND;
            machine.raw.zones[1] = Ok(counter);
            machine.set_usage(BOARD, vec![used(Some(0), Engine::Encoder, SECOND)]).tick(SECOND);
        }
    }
    let snapshot = machine.second();
    assert_eq!(of(&board_account(&snapshot), 0), 300_000_000);
}

fn zone(kind: ZoneKind, package: Option<u32>) -> ZoneId {
    ZoneId { package: package.map(PackageId::whole), kind }
}

#[test]
fn integrated_gpu_energy_is_split_by_engine_use() {
    let zones = [package(0), zone(ZoneKind::Uncore, Some(0))];
    let mut machine = Machine::new(setup(&zones, 1), IdlePolicy::Separate, 2);
    // 30 W, of which the graphics use 12 W. Container 0 encodes there, and container 1 uses the
    // CPU.
    machine.set_usage(INTEGRATED, vec![used(Some(0), Engine::Video, SECOND)]);
    machine.uses(0, 30_000_000).uses(1, 12_000_000).runs(10, 0, SECOND / 10).runs(11, 0, SECOND / 10 * 9);
    let snapshot = machine.second();
    assert_eq!((attributed(&snapshot, 0), attributed(&snapshot, 1)), (12_000_000 + 1_800_000, 16_200_000));
    assert_eq!(snapshot.accounts.len(), 1, "uncore is inside its package and no root");
    // Without usage reports its energy is unattributed, and does not go to the container on the
    // CPU.
    machine.raw.gpus.clear();
    machine.uses(0, 30_000_000).uses(1, 12_000_000).runs(11, 0, SECOND);
    let snapshot = machine.second();
    assert_eq!(attributed(&snapshot, 1), 16_200_000 + 18_000_000);
    assert_eq!(snapshot.accounts[0].unattributed.0, 12_000_000);
}

#[test]
fn an_idle_integrated_gpu_may_stand_still() {
    let zones = [package(0), zone(ZoneKind::Uncore, Some(0))];
    let mut machine = Machine::new(setup(&zones, 1), IdlePolicy::Separate, 1);
    for _ in 0..10 {
        machine.set_usage(INTEGRATED, vec![]).uses(0, 5_000_000).runs(10, 0, SECOND);
        machine.second();
    }
    assert_eq!((machine.accountant.trouble(), machine.accountant.gpu_trouble()), (None, None));
}

#[test]
fn a_board_below_a_platform_sensor_is_not_counted_twice() {
    let mut machine = Machine::new(setup(&[zone(ZoneKind::Psys, None)], 1), IdlePolicy::Separate, 2);
    machine.add_zone(board(BOARD));
    machine.set_usage(BOARD, vec![used(Some(0), Engine::Encoder, SECOND)]);
    machine.uses(0, 200_000_000).uses(1, 80 * WATT).runs(11, 0, SECOND);
    let snapshot = machine.second();
    assert_eq!((attributed(&snapshot, 0), attributed(&snapshot, 1)), (80_000_000, 120_000_000));
    assert_eq!(snapshot.accounts.len(), 1);
}

/// A virtual machine with several packages has one counter for them, which does not contain the
/// boards that are passed to it.
#[test]
fn boards_are_outside_of_what_all_packages_use_together() {
    let mut machine = Machine::new(setup(&[zone(ZoneKind::Package, None)], 2), IdlePolicy::Separate, 2);
    machine.add_zone(board(BOARD));
    machine.set_usage(BOARD, vec![used(Some(0), Engine::Encoder, SECOND)]);
    machine.uses(0, 200_000_000).uses(1, 80 * WATT).runs(10, 0, SECOND).runs(11, 1, SECOND);
    let snapshot = machine.second();
    assert_eq!((attributed(&snapshot, 0), attributed(&snapshot, 1)), (80_000_000 + 100_000_000, 100_000_000));
    assert_eq!(snapshot.accounts.len(), 2);
}

#[test]
fn a_container_that_ends_before_its_energy_is_retired() {
    let mut machine = with_board(IdlePolicy::Separate);
    machine.raw.zones[1] = Err("late".into());
    machine.raw.changes.ended = vec![0];
    machine.set_usage(BOARD, vec![used(Some(0), Engine::Sm, SECOND)]).second();
    machine.raw.changes = TickChanges::default();
    machine.raw.zones[1] = Ok(30 * WATT);
    let board = board_account(&machine.set_usage(BOARD, vec![]).second());
    assert_eq!((board.retired.0, board.containers.len()), (30_000_000, 0));
}

#[derive(Clone, Debug)]
struct Second {
    joules: Option<u64>,
    uses: Vec<(Option<u32>, usize, u64)>,
}

fn seconds() -> impl Strategy<Value = Vec<Second>> {
    let used = (prop::option::of(0u32..3), 0..ENGINES, 0u64..2 * SECOND);
    let second = (prop::option::weighted(0.9, 0u64..300_000), prop::collection::vec(used, 0..6));
    prop::collection::vec(second.prop_map(|(joules, uses)| Second { joules, uses }), 1..30)
}

proptest! {
    /// For any use and any failures, the account of every board is conserved, and a container
    /// without use gets no energy.
    #[test]
    fn boards_conserve_energy_and_unused_means_no_energy(moments in seconds()) {
        let mut machine = Machine::new(setup(&[package(0)], 1), IdlePolicy::Proportional, 3);
        machine.add_zone(board(BOARD));
        machine.add_zone(board(GpuId::Nvidia(8)));
        let (mut counter, mut ever) = (0, [false; 3]);
        for Second { joules, uses } in moments {
            let uses: Vec<EngineUsage> = uses.iter().map(|(container, engine, ns)| used(*container, Engine::ALL[*engine], *ns)).collect();
            for used in &uses {
                if let (Some(ChargeTarget::Container(number)), true) = (used.charge_target, used.times.iter().any(|ns| *ns > 0)) {
                    ever[number as usize] = true;
                }
            }
            counter += joules.unwrap_or(1);
            machine.raw.zones[1] = joules.map(|_| counter).ok_or_else(|| "lost".to_owned());
            // `tick` compares every account with its counter.
            let snapshot = machine.set_usage(BOARD, uses).uses(0, 1000).uses(2, 500).second();
            for (number, ever) in (0..3).zip(ever) {
                prop_assert!(ever || attributed(&snapshot, number) == 0);
            }
            let other = snapshot.accounts.iter().find(|account| account.id.zone.kind == ZoneKind::Gpu(GpuId::Nvidia(8)));
            prop_assert_eq!(other.unwrap().containers.len(), 0);
        }
    }
}
