//! Machines with GPUs.

use super::*;
use crate::gpu::{
    Shared, Worked,
    engines::{ENGINES, Engine, Pci},
};

const BOARD: GpuId = GpuId::Nvidia(7);
const INTEGRATED: GpuId = GpuId::Integrated(Pci { domain: 0, bus: 0, device: 2, function: 0 });
/// A watt for a second, in the counts of a board.
const WATT: u64 = 1000;

fn board(gpu: GpuId) -> Zone {
    let id = ZoneId { package: None, kind: ZoneKind::Gpu(gpu) };
    Zone {
        unit: Unit::MILLIJOULE,
        ceiling: Ceiling::None,
        origin: Some(Origin::Nvml),
        ..Zone::microjoules(id, Range::Endless, "a board".into())
    }
}

/// A machine of one package and a board that is there from the second tick on.
fn with_board(policy: IdlePolicy) -> Machine {
    let mut machine = Machine::new(setup(&[package(0)], 1), policy, 2);
    machine.comes(board(BOARD));
    machine
}

fn used(container: Option<u32>, engine: Engine, ns: u64) -> Shared {
    let mut times = [0; ENGINES];
    times[engine.index()] = ns;
    Shared { holder: container.map(Holder::Container), job: None, times }
}

impl Machine {
    /// A counter that was not there at the start.
    fn comes(&mut self, zone: Zone) {
        self.raw.news.zones.push(zone);
        self.raw.zones.push(Ok(0));
        self.tick(SECOND);
        self.raw.news = News::default();
    }

    /// Who used a GPU in the tick to come.
    fn works(&mut self, gpu: GpuId, uses: Vec<Shared>) -> &mut Self {
        self.raw.gpus = vec![(gpu, Worked { rest: uses.is_empty(), uses, ..Worked::default() })];
        self
    }

    fn second(&mut self) -> Snapshot {
        self.raw.gpu_ns += SECOND;
        self.tick(SECOND)
    }
}

fn of_board(snapshot: &Snapshot) -> AccountRow {
    let boards = |account: &&AccountRow| matches!(account.id.zone.kind, ZoneKind::Gpu(_));
    snapshot.accounts.iter().find(boards).unwrap().clone()
}

fn of(account: &AccountRow, number: u32) -> u64 {
    account.containers.iter().find(|(container, _)| container.number == number).map_or(0, |(_, uj)| uj.0)
}

#[test]
fn joules_follow_the_engines_and_not_the_cpu() {
    let mut machine = with_board(IdlePolicy::Separate);
    // Container 0 encodes and hardly computes; container 1 has the shaders, and nobody has the CPU but it.
    let uses = vec![used(Some(0), Engine::Encoder, SECOND), used(Some(1), Engine::Sm, SECOND / 2)];
    machine.works(BOARD, uses).uses(1, 80 * WATT).uses(0, 10_000_000).runs(11, 0, SECOND);
    let snapshot = machine.second();
    let board = of_board(&snapshot);
    // A second of the encoder is worth 0.3 s of the shaders, and half a second of the shaders 0.5.
    assert_eq!((of(&board, 0), of(&board, 1)), (30_000_000, 50_000_000));
    assert_eq!(board.id.origin, Origin::Nvml);
    assert_eq!((given(&snapshot, 0), given(&snapshot, 1)), (30_000_000, 60_000_000));
    let times = &snapshot.engine_times;
    assert_eq!((times.len(), times[0].1, times[0].2[Engine::Encoder.index()]), (2, BOARD, SECOND));
    let watts = &snapshot.containers[0].watts;
    assert_eq!(watts.iter().find(|(zone, ..)| *zone == "gpu"), Some(&("gpu", Origin::Nvml, 30.0)));
}

#[test]
fn what_is_known_of_nobody_is_nobodys_and_never_split_evenly() {
    let mut machine = with_board(IdlePolicy::Separate);
    let board = of_board(&machine.works(BOARD, vec![]).uses(1, 50 * WATT).second());
    assert_eq!((board.unattributed.0, board.containers.len()), (50_000_000, 0));
    // A process that ended in the middle of the tick has its part, and nobody else gets it.
    let uses = vec![used(None, Engine::Encoder, SECOND), used(Some(0), Engine::Encoder, SECOND)];
    let board = of_board(&machine.works(BOARD, uses).uses(1, 50 * WATT).second());
    assert_eq!((board.unattributed.0, of(&board, 0)), (75_000_000, 25_000_000));
}

#[test]
fn the_power_at_rest_is_learnt_and_is_nobodys() {
    for (policy, idle, shared) in [(IdlePolicy::Separate, 10, 0), (IdlePolicy::Proportional, 0, 10)] {
        let mut machine = with_board(policy);
        for _ in 0..10 {
            machine.works(BOARD, vec![]).uses(1, 10 * WATT).second();
        }
        let before = of_board(&machine.works(BOARD, vec![]).uses(1, 10 * WATT).second());
        let snapshot = machine.works(BOARD, vec![used(Some(0), Engine::Sm, SECOND)]).uses(1, 60 * WATT).second();
        let after = of_board(&snapshot);
        assert_eq!(of(&after, 0), 50_000_000);
        assert_eq!((after.idle - before.idle).0, idle * 1_000_000);
        let shares: u64 = after.idle_shares.iter().map(|(_, uj)| uj.0).sum();
        assert_eq!(shares, shared * 1_000_000);
        let known = snapshot.idle.iter().find(|row| matches!(row.id.kind, ZoneKind::Gpu(_))).unwrap();
        assert_eq!((known.estimate, known.calibrated), (Estimate::exact(10_000_000), true));
        let learnt = machine.accountant.baselines();
        assert_eq!(learnt[&known.id.to_string()].len(), 8, "what settles is left out");
        let mut again = Machine::new(setup(&[package(0)], 1), policy, 0);
        again.accountant.remember(&learnt);
        again.comes(board(BOARD));
        assert_eq!(again.works(BOARD, vec![]).uses(1, WATT).second().idle.len(), 1);
    }
}

#[test]
fn a_gpu_that_is_lost_and_comes_back_keeps_its_total_and_who_used_it_meanwhile() {
    let mut machine = with_board(IdlePolicy::Separate);
    machine.works(BOARD, vec![used(Some(0), Engine::Sm, SECOND)]).uses(1, 40 * WATT).second();
    let good = machine.raw.zones[1].clone();
    for _ in 0..3 {
        machine.raw.zones[1] = Err("lost".into());
        let snapshot = machine.works(BOARD, vec![used(Some(1), Engine::Sm, SECOND)]).uses(0, 1000).second();
        assert_eq!(of_board(&snapshot).containers.len(), 1);
        assert_eq!(machine.accountant.trouble(), None, "the packages are well");
    }
    // Back, and it counted on: of 120 J container 1 has what it used, for a second more too.
    machine.raw.zones[1] = good;
    let snapshot = machine.works(BOARD, vec![used(Some(1), Engine::Sm, SECOND)]).uses(1, 120 * WATT).second();
    assert_eq!((of(&of_board(&snapshot), 0), of(&of_board(&snapshot), 1)), (40_000_000, 120_000_000));
    // Back from a reload of the driver: it counts from zero, and what it used meanwhile nobody knows.
    machine.raw.zones[1] = Ok(5);
    let snapshot = machine.works(BOARD, vec![used(Some(1), Engine::Sm, SECOND)]).second();
    assert_eq!(of(&of_board(&snapshot), 1), 120_000_000);
    assert_eq!(snapshot.rejects.iter().map(|(_, reason, _)| *reason).collect::<Vec<_>>(), [Reject::Fell]);
    let snapshot = machine.works(BOARD, vec![used(Some(0), Engine::Sm, SECOND)]).uses(1, 10 * WATT).second();
    assert_eq!((of(&of_board(&snapshot), 0), of(&of_board(&snapshot), 1)), (50_000_000, 120_000_000));
}

#[test]
fn a_counter_of_a_gpu_that_stands_still_is_a_state_of_the_gpu_alone() {
    let mut machine = with_board(IdlePolicy::Separate);
    let mut last = Snapshot::default();
    for _ in 0..8 {
        last = machine
            .works(BOARD, vec![used(Some(0), Engine::Sm, SECOND)])
            .uses(0, 1_000_000)
            .runs(10, 0, SECOND)
            .second();
    }
    assert_eq!(machine.accountant.trouble(), None);
    assert!(machine.accountant.gpu_trouble().unwrap().contains("stands at 0"));
    assert_eq!(of_board(&last).containers.iter().map(|(_, uj)| uj.0).sum::<u64>(), 0);
    machine.works(BOARD, vec![]).uses(1, WATT).second();
    assert_eq!(machine.accountant.gpu_trouble(), None);
}

#[test]
fn joules_wait_for_word_of_who_used_it_and_what_is_shown_stands_meanwhile() {
    let mut machine = with_board(IdlePolicy::Separate);
    machine.works(BOARD, vec![used(Some(0), Engine::Sm, SECOND)]).uses(1, 40 * WATT).second();
    // Container 1's sample comes a tick later than container 0's; each used it for both seconds.
    machine.works(BOARD, vec![used(Some(0), Engine::Sm, 2 * SECOND)]);
    machine.raw.gpus[0].1.waits = true;
    let waits = machine.uses(1, 60 * WATT).second();
    assert_eq!((of(&of_board(&waits), 0), of(&of_board(&waits), 1)), (40_000_000, 0));
    let watts = |snapshot: &Snapshot| snapshot.zones[1].watts;
    assert_eq!(watts(&waits), Some(40.0), "no gap, and no zero");
    assert_eq!(waits.containers[0].watts.iter().find(|(zone, ..)| *zone == "gpu").unwrap().2, 40.0);
    let heard = machine.works(BOARD, vec![used(Some(1), Engine::Sm, 2 * SECOND)]).uses(1, 60 * WATT).second();
    assert_eq!((of(&of_board(&heard), 0), of(&of_board(&heard), 1)), (100_000_000, 60_000_000));
    assert_eq!(watts(&heard), Some(60.0));
}

#[test]
fn a_reading_of_a_board_that_goes_on_failing_is_said() {
    let mut machine = with_board(IdlePolicy::Separate);
    machine.raw.zones[1] = Err("an internal driver error".into());
    for second in 0..8 {
        machine.works(BOARD, vec![]).uses(0, 1000).second();
        assert_eq!(machine.accountant.gpu_trouble().is_some(), second >= 5, "{second}");
    }
    machine.raw.zones[1] = Ok(7);
    machine.works(BOARD, vec![]).second();
    assert_eq!(machine.accountant.gpu_trouble(), None);
}

#[test]
fn a_counter_that_may_have_begun_anew_counts_from_there_even_if_it_is_higher() {
    let mut machine = with_board(IdlePolicy::Separate);
    machine.works(BOARD, vec![]).uses(1, 5 * WATT).second();
    machine.works(BOARD, vec![]);
    machine.raw.gpus[0].1.anew = true;
    let before = of_board(&machine.uses(1, 900 * WATT).second());
    assert_eq!(parts(&before).0, 5_000_000);
    assert_eq!(parts(&of_board(&machine.works(BOARD, vec![]).uses(1, 5 * WATT).second())).0, 10_000_000);
}

#[test]
fn a_look_that_is_late_moves_its_joules_to_the_next_tick_and_none_is_lost() {
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
            machine.works(BOARD, vec![used(Some(0), Engine::Encoder, SECOND)]).tick(SECOND);
        }
    }
    let snapshot = machine.second();
    assert_eq!(of(&of_board(&snapshot), 0), 300_000_000);
}

fn zone(kind: ZoneKind, package: Option<u32>) -> ZoneId {
    ZoneId { package: package.map(PackageId::whole), kind }
}

#[test]
fn an_integrated_gpu_s_joules_go_to_who_used_its_engines_inside_the_package() {
    let zones = [package(0), zone(ZoneKind::Uncore, Some(0))];
    let mut machine = Machine::new(setup(&zones, 1), IdlePolicy::Separate, 2);
    // 30 W, of which 12 W by the graphics: container 0 encodes there, container 1 computes beside it.
    machine.works(INTEGRATED, vec![used(Some(0), Engine::Video, SECOND)]);
    machine.uses(0, 30_000_000).uses(1, 12_000_000).runs(10, 0, SECOND / 10).runs(11, 0, SECOND / 10 * 9);
    let snapshot = machine.second();
    assert_eq!((given(&snapshot, 0), given(&snapshot, 1)), (12_000_000 + 1_800_000, 16_200_000));
    assert_eq!(snapshot.accounts.len(), 1, "uncore is no account: it is inside its package");
    // Where nothing tells who used them they are nobody's, and not those of the neighbour on the CPU.
    machine.raw.gpus.clear();
    machine.uses(0, 30_000_000).uses(1, 12_000_000).runs(11, 0, SECOND);
    let snapshot = machine.second();
    assert_eq!(given(&snapshot, 1), 16_200_000 + 18_000_000);
    assert_eq!(snapshot.accounts[0].unattributed.0, 12_000_000);
}

#[test]
fn graphics_that_rest_stand_still_and_that_is_no_fault() {
    let zones = [package(0), zone(ZoneKind::Uncore, Some(0))];
    let mut machine = Machine::new(setup(&zones, 1), IdlePolicy::Separate, 1);
    for _ in 0..10 {
        machine.works(INTEGRATED, vec![]).uses(0, 5_000_000).runs(10, 0, SECOND);
        machine.second();
    }
    assert_eq!((machine.accountant.trouble(), machine.accountant.gpu_trouble()), (None, None));
}

#[test]
fn below_a_sensor_of_the_whole_platform_a_board_is_a_part_and_not_counted_twice() {
    let mut machine = Machine::new(setup(&[zone(ZoneKind::Psys, None)], 1), IdlePolicy::Separate, 2);
    machine.comes(board(BOARD));
    machine.works(BOARD, vec![used(Some(0), Engine::Encoder, SECOND)]);
    machine.uses(0, 200_000_000).uses(1, 80 * WATT).runs(11, 0, SECOND);
    let snapshot = machine.second();
    assert_eq!((given(&snapshot, 0), given(&snapshot, 1)), (80_000_000, 120_000_000));
    assert_eq!(snapshot.accounts.len(), 1);
}

#[test]
fn whoever_ends_before_its_joules_come_is_retired_with_them() {
    let mut machine = with_board(IdlePolicy::Separate);
    machine.raw.zones[1] = Err("late".into());
    machine.raw.news.ended = vec![0];
    machine.works(BOARD, vec![used(Some(0), Engine::Sm, SECOND)]).second();
    machine.raw.news = News::default();
    machine.raw.zones[1] = Ok(30 * WATT);
    let board = of_board(&machine.works(BOARD, vec![]).second());
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
    /// Whatever is used and whatever is lost, every board's account closes, and nobody gets joules without having used it.
    #[test]
    fn every_board_s_account_closes_and_who_used_nothing_gets_nothing(moments in seconds()) {
        let mut machine = Machine::new(setup(&[package(0)], 1), IdlePolicy::Proportional, 3);
        machine.comes(board(BOARD));
        machine.comes(board(GpuId::Nvidia(8)));
        let (mut counter, mut ever) = (0, [false; 3]);
        for Second { joules, uses } in moments {
            let uses: Vec<Shared> = uses.iter().map(|(who, engine, ns)| used(*who, Engine::ALL[*engine], *ns)).collect();
            for used in &uses {
                if let (Some(Holder::Container(number)), true) = (used.holder, used.times.iter().any(|ns| *ns > 0)) {
                    ever[number as usize] = true;
                }
            }
            counter += joules.unwrap_or(1);
            machine.raw.zones[1] = joules.map(|_| counter).ok_or_else(|| "lost".to_owned());
            // `tick` holds every account against its counter.
            let snapshot = machine.works(BOARD, uses).uses(0, 1000).uses(2, 500).second();
            for (number, ever) in (0..3).zip(ever) {
                prop_assert!(ever || given(&snapshot, number) == 0);
            }
            let other = snapshot.accounts.iter().find(|account| account.id.zone.kind == ZoneKind::Gpu(GpuId::Nvidia(8)));
            prop_assert_eq!(other.unwrap().containers.len(), 0);
        }
    }
}
