//! Windows of the history, checked against known ticks.

use proptest::prelude::*;

use super::*;
use crate::{
    energy::zone::{Origin, ZoneId, ZoneKind},
    ledger::uncertainty::Bound,
};

const SECOND: i64 = 1_000_000_000;
const EPOCH: i64 = 1_700_000_000 * SECOND;

fn account() -> AccountId {
    AccountId { zone: ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package }, origin: Origin::Model }
}

fn container(number: u32) -> Arc<Container> {
    Arc::new(Container {
        number,
        name: format!("c{number}"),
        id: format!("{number}"),
        image: "image".into(),
        runtime: "docker",
        ..Container::new(0, String::new(), String::new(), "docker")
    })
}

/// A tick that ends `at` seconds after the epoch, with ten joules: six of container 1, four idle.
fn tick(sequence: u64, unix_s: f64, monotonic_s: f64) -> Tick {
    #[expect(clippy::cast_possible_truncation, reason = "small by construction")]
    let ns = |s: f64| (s * 1e6).round() as i64 * 1000;
    Tick {
        sequence,
        unix_ns: EPOCH + ns(unix_s),
        monotonic_ns: ns(monotonic_s),
        accounts: Box::new([AccountDelta {
            id: account(),
            measured: Some(Microjoules(10_000_000)),
            covers: 1,
            bound_uj: 200_000.0,
            idle: Microjoules(4_000_000),
            unattributed: Microjoules::ZERO,
            system: Microjoules::ZERO,
            retired: Microjoules::ZERO,
            settlement: Settlement::Exact,
            idle_known: true,
        }]),
        energy: vec![ContainerDelta {
            container: container(1),
            id: account(),
            joules: Microjoules(6_000_000),
            awake: Microjoules(1_000_000),
            idle: Microjoules::ZERO,
            bound: Some(Bound { random: 100_000.0, systematic: 10_000.0 }),
        }]
        .into(),
        cpu: vec![(container(1), Some(PackageId::whole(0)), 500_000_000_u64)].into(),
    }
}

fn ring(times: &[(f64, f64)]) -> Ring {
    let mut ring = Ring::new(1 << 20);
    for (sequence, (unix, monotonic)) in times.iter().enumerate() {
        ring.push(tick(sequence as u64, *unix, *monotonic));
    }
    ring
}

fn steady(ticks: u32) -> Ring {
    ring(&(0..ticks).map(|at| (f64::from(at), f64::from(at))).collect::<Vec<_>>())
}

fn at(offset: f64) -> f64 {
    seconds(EPOCH) + offset
}

#[test]
fn an_exact_window_has_no_edge_error() {
    let response = steady(20).window(at(3.0), at(8.0)).unwrap();
    assert_eq!((response.from, response.to, response.ticks), (at(3.0), at(8.0), 5));
    assert_eq!((response.start_error_seconds, response.end_error_seconds), (0.0, 0.0));
    let account = &response.accounts[0];
    assert_eq!((account.measured_joules, account.idle_joules, account.containers_joules), (50.0, 20.0, 30.0));
    assert_eq!((account.edge_error_joules, account.missing_seconds), (0.0, 0.0));
    let container = &response.containers[0];
    assert_eq!((container.energy[0].joules, container.cpu[0].seconds), (30.0, 2.5));
    assert_eq!((account.awake_joules, container.energy[0].awake_joules), (5.0, 5.0));
}

#[test]
fn a_window_between_ticks_is_widened_with_its_edge_error() {
    let response = steady(20).window(at(3.25), at(7.5)).unwrap();
    assert_eq!((response.from, response.to, response.ticks), (at(3.0), at(8.0), 5));
    assert_eq!((response.start_error_seconds, response.end_error_seconds), (0.25, 0.5));
    assert_eq!(response.accounts[0].edge_error_joules, 20.0);
    assert_eq!(response.containers[0].energy[0].edge_error_joules, 12.0);
    let inside_one = steady(20).window(at(3.25), at(3.5)).unwrap();
    assert_eq!((inside_one.ticks, inside_one.accounts[0].edge_error_joules), (1, 10.0));
}

#[test]
fn a_window_outside_of_the_history_has_an_error_code() {
    let ring = steady(20);
    let code = |start: f64, end: f64| ring.window(start, end).unwrap_err().code();
    assert_eq!(code(at(-1.0), at(5.0)), "too_old");
    assert_eq!(code(at(-1.0), at(50.0)), "too_old");
    assert_eq!(code(at(5.0), at(19.5)), "too_new");
    assert_eq!(code(at(50.0), at(60.0)), "too_new");
    assert_eq!(code(at(5.0), at(5.0)), "not_a_window");
    assert_eq!(code(f64::NAN, at(5.0)), "not_a_window");
    assert_eq!(code(at(5.0), f64::INFINITY), "not_a_window");
    assert_eq!(code(-5.0, at(5.0)), "not_a_window");
    assert_eq!(Ring::new(1000).window(at(1.0), at(2.0)).unwrap_err().code(), "too_new");
}

#[test]
fn a_window_across_a_clock_step_is_refused() {
    // Set forward by an hour after the fifth tick.
    let forward =
        ring(&(0..10).map(|i| (f64::from(i) + if i > 4 { 3600.0 } else { 0.0 }, f64::from(i))).collect::<Vec<_>>());
    let error = forward.window(at(3.0), at(3607.0)).unwrap_err();
    assert_eq!(error, WindowError::ClockStep { at: at(3605.0), by: 3600.0 });
    assert_eq!(forward.window(at(100.0), at(200.0)).unwrap_err().code(), "clock_step");
    assert_eq!(forward.window(at(1.0), at(3.0)).unwrap().ticks, 2);
    assert_eq!(forward.window(at(3606.0), at(3608.0)).unwrap().ticks, 2);
    assert_eq!(forward.window(at(3608.0), at(3700.0)).unwrap_err().code(), "too_new");
    assert_eq!(forward.window(at(-9.0), at(3.0)).unwrap_err().code(), "too_old");
}

#[test]
fn ambiguous_times_after_a_clock_set_back_are_refused() {
    // Ticks at 0..9, then the clock is set back by five seconds: 5..9 exist twice.
    let back = ring(&(0..20).map(|i| (f64::from(i) - if i > 9 { 5.0 } else { 0.0 }, f64::from(i))).collect::<Vec<_>>());
    assert_eq!(back.window(at(6.0), at(8.0)).unwrap_err(), WindowError::ClockStep { at: at(5.0), by: -5.0 });
    assert_eq!(back.window(at(1.0), at(3.0)).unwrap().ticks, 2);
    assert_eq!(back.window(at(11.0), at(13.0)).unwrap().ticks, 2);
}

#[test]
fn a_failed_reading_is_missing_time_and_not_zero_joules() {
    let mut ring = steady(5);
    let mut lost = tick(5, 5.0, 5.0);
    lost.accounts[0] = AccountDelta { measured: None, idle: Microjoules::ZERO, ..lost.accounts[0] };
    lost.energy = EnergyRows::default();
    ring.push(lost);
    let response = ring.window(at(2.0), at(5.0)).unwrap();
    assert_eq!((response.accounts[0].measured_joules, response.accounts[0].missing_seconds), (20.0, 1.0));
}

#[test]
fn late_energy_belongs_to_the_ticks_of_failed_readings() {
    let mut ring = steady(5);
    let mut lost = tick(5, 5.0, 5.0);
    lost.accounts[0] = AccountDelta { measured: None, idle: Microjoules::ZERO, ..lost.accounts[0] };
    lost.energy = EnergyRows::default();
    ring.push(lost);
    let mut late = tick(6, 6.0, 6.0);
    late.accounts[0].measured = Some(Microjoules(20_000_000));
    late.accounts[0].covers = 2;
    ring.push(late);
    let whole = ring.window(at(2.0), at(6.0)).unwrap();
    let account = &whole.accounts[0];
    assert_eq!((account.measured_joules, account.missing_seconds, account.edge_error_joules), (40.0, 0.0, 0.0));
    // A window that begins between the two includes earlier energy, and reports it as edge error.
    let part = ring.window(at(5.0), at(6.0)).unwrap();
    assert_eq!((part.accounts[0].measured_joules, part.accounts[0].edge_error_joules), (20.0, 20.0));
}

fn board() -> AccountId {
    let kind = ZoneKind::Gpu(crate::host::gpu_id::GpuId::Nvidia(7));
    AccountId { zone: ZoneId { package: None, kind }, origin: Origin::Nvml }
}

/// A tick of a board without a split.
fn unsplit(sequence: u32, settlement: Settlement) -> Tick {
    let mut tick = tick(u64::from(sequence), f64::from(sequence), f64::from(sequence));
    tick.accounts = Box::new([AccountDelta { settlement, ..AccountDelta::unmeasured(board()) }]);
    tick.energy = EnergyRows::default();
    tick
}

/// A tick of a board: three parts of a split for container 1, one part unattributed.
fn split(sequence: u32, covers: u32, uj: u64) -> Tick {
    let mut tick = unsplit(sequence, Settlement::Exact);
    tick.accounts[0].measured = Some(Microjoules(uj));
    tick.accounts[0].covers = covers;
    tick.accounts[0].unattributed = Microjoules(uj - uj / 4 * 3);
    let (joules, idle) = (Microjoules(uj / 4 * 3), Microjoules::ZERO);
    let awake = Microjoules::ZERO;
    tick.energy =
        vec![ContainerDelta { container: container(1), id: board(), joules, awake, idle, bound: None }].into();
    tick
}

fn assert_parts(account: &AccountSum) {
    let uj = |joules: f64| Microjoules::from_joules(joules);
    let parts = [
        account.containers_joules,
        account.retired_joules,
        account.system_joules,
        account.idle_joules,
        account.unattributed_joules,
        account.unsettled_joules,
    ];
    assert_eq!(parts.map(uj).into_iter().sum::<Microjoules>(), uj(account.measured_joules));
}

#[test]
fn a_window_that_ends_before_its_split_has_the_measured_energy() {
    let mut ring = Ring::new(1 << 20);
    (0..4).for_each(|sequence| ring.push(split(sequence, 1, 4_000_000)));
    ring.push(unsplit(4, Settlement::Waiting(Microjoules(6_000_000))));
    let early = ring.window(at(2.0), at(4.0)).unwrap();
    let account = &early.accounts[0];
    assert_eq!((account.measured_joules, account.unsettled_joules, account.missing_seconds), (10.0, 6.0, 0.0));
    assert_eq!((account.containers_joules, early.containers[0].energy[0].edge_error_joules), (3.0, 6.0));
    assert_parts(account);
    // A tick without a reading, and then the split of all three.
    ring.push(unsplit(5, Settlement::Exact));
    assert_eq!(ring.window(at(2.0), at(5.0)).unwrap().accounts[0].missing_seconds, 1.0);
    ring.push(split(6, 3, 16_000_000));
    let later = ring.window(at(2.0), at(4.0)).unwrap();
    let account = &later.accounts[0];
    assert_eq!((account.measured_joules, account.unsettled_joules, account.missing_seconds), (10.0, 0.0, 0.0));
    assert_eq!((account.containers_joules, account.edge_error_joules), (7.5, 0.0));
    // The division among the ticks of the split is an estimate for the container.
    assert_eq!(later.containers[0].energy[0].edge_error_joules, 4.5);
    assert_parts(account);
    // The rest is on the other side, by time where the board was not read.
    let rest = ring.window(at(4.0), at(6.0)).unwrap();
    assert_eq!((rest.accounts[0].measured_joules, rest.accounts[0].missing_seconds), (10.0, 0.0));
    let unread = ring.window(at(4.0), at(5.0)).unwrap();
    assert_eq!((unread.accounts[0].measured_joules, unread.accounts[0].edge_error_joules), (5.0, 5.0));
    assert_parts(&unread.accounts[0]);
}

#[test]
fn a_window_that_begins_before_a_split_leaves_out_earlier_energy() {
    let mut ring = Ring::new(1 << 20);
    ring.push(split(0, 1, 4_000_000));
    ring.push(unsplit(1, Settlement::Waiting(Microjoules(1_000_000))));
    ring.push(unsplit(2, Settlement::Waiting(Microjoules(3_000_000))));
    let response = ring.window(at(1.0), at(2.0)).unwrap();
    let account = &response.accounts[0];
    assert_eq!((account.measured_joules, account.unsettled_joules, account.missing_seconds), (2.0, 2.0, 0.0));
}

#[test]
fn idle_power_unknown_in_a_part_of_the_window_is_reported() {
    let mut ring = steady(5);
    let mut unknown = tick(5, 5.0, 5.0);
    unknown.accounts[0].idle_known = false;
    ring.push(unknown);
    let known = |start: f64, end: f64| {
        let response = ring.window(at(start), at(end)).unwrap();
        (response.accounts[0].idle_known, response.accounts[0].idle_known_seconds)
    };
    assert_eq!((known(1.0, 4.0), known(1.0, 5.0), known(4.0, 5.0)), ((true, 3.0), (false, 3.0), (false, 0.0)));
}

#[test]
fn unknown_idle_power_is_noted_where_energy_is_divided() {
    let note = |kind: ZoneKind, containers: u64| {
        let mut ring = steady(5);
        let mut unknown = tick(5, 5.0, 5.0);
        unknown.accounts[0].idle_known = false;
        unknown.accounts[0].id.zone.kind = kind;
        let row = unknown.energy.iter().next().unwrap().to_delta();
        let (id, joules) = (unknown.accounts[0].id, Microjoules(containers));
        unknown.energy = vec![ContainerDelta { id, joules, ..row }].into();
        ring.push(unknown);
        ring.window(at(4.0), at(5.0)).unwrap().accounts[0].idle_note
    };
    assert_eq!(note(ZoneKind::Package, 0), Some(IDLE_NOT_LEARNT));
    assert_eq!((note(ZoneKind::Dram, 0), note(ZoneKind::Dram, 1)), (None, Some(IDLE_NOT_LEARNT)));
    assert_eq!(steady(5).window(at(1.0), at(4.0)).unwrap().accounts[0].idle_note, None);
}

#[test]
fn a_longer_window_has_a_smaller_relative_uncertainty() {
    let ring = steady(200);
    let relative = |seconds: f64| {
        let response = ring.window(at(1.0), at(1.0 + seconds)).unwrap();
        let (account, energy) = (&response.accounts[0], &response.containers[0].energy[0]);
        (
            account.uncertainty_joules.unwrap() / account.measured_joules,
            energy.uncertainty_joules.unwrap() / energy.joules,
        )
    };
    let (short, long) = (relative(1.0), relative(100.0));
    assert!(long.0 < short.0 / 50.0 && long.1 < short.1 / 5.0, "{short:?} {long:?}");
}

#[test]
fn the_ring_respects_its_limit_and_reports_its_reach() {
    let one = tick(0, 0.0, 0.0).bytes(None);
    for limit in [0, one, 10 * one, 62 * one, 63 * one, 64 * one, 65 * one, 66 * one, 100 * one, 100 * one + 1] {
        let mut ring = Ring::new(limit);
        for i in 0u32..1000 {
            ring.push(tick(u64::from(i), f64::from(i), f64::from(i)));
            assert!(ring.bytes() <= limit.max(2 * one), "{} bytes of {limit}", ring.bytes());
            assert!(ring.ticks().count() >= 2.min(i as usize + 1));
        }
        let (oldest, newest) = ring.reach().unwrap();
        assert_eq!(newest, at(999.0));
        assert_eq!(seconds(ring.span_ns()), newest - oldest);
        assert!(ring.window(oldest, newest).is_ok());
        assert_eq!(ring.window(oldest - 1.0, newest).unwrap_err().code(), "too_old");
    }
}

/// A row of a container had 160 bytes, and the history of 500 containers was three minutes.
#[test]
fn the_history_of_500_containers_is_nearly_a_quarter_of_an_hour() {
    let containers: Vec<Arc<Container>> = (0..500).map(container).collect();
    let mut ring = Ring::new(16 << 20);
    for second in 0u32..1000 {
        let mut tick = tick(u64::from(second), f64::from(second), f64::from(second));
        let row = tick.energy.iter().next().unwrap().to_delta();
        tick.energy = containers.iter().map(|one| ContainerDelta { container: one.clone(), ..row.clone() }).collect();
        let cpu = |one: &Arc<Container>| (one.clone(), Some(PackageId::whole(0)), 900_000_000_u64);
        tick.cpu = containers.iter().map(cpu).collect::<Vec<_>>().into();
        ring.push(tick);
    }
    assert!(ring.span_ns() >= 800 * SECOND, "{} s", ring.span_ns() / SECOND);
}

#[test]
fn a_clone_does_not_change_when_the_original_grows() {
    let old = steady(100);
    let mut new = old.clone();
    for i in 100u32..300 {
        new.push(tick(u64::from(i), f64::from(i), f64::from(i)));
    }
    assert_eq!((old.ticks().count(), new.ticks().count()), (100, 300));
    assert_eq!(old.window(at(98.0), at(99.0)), new.window(at(98.0), at(99.0)));
}

proptest! {
    #[test]
    fn adjacent_windows_add_up_and_edges_enclose(
        gaps in proptest::collection::vec(100u32..3000, 3..200),
        picks in proptest::collection::vec(any::<u16>(), 3),
        cuts in proptest::collection::vec(0.0f64..1.0, 2),
    ) {
        let mut now = 0.0;
        let mut times = vec![(0.0, 0.0)];
        for gap in gaps {
            now += f64::from(gap) / 1000.0;
            times.push((now, now));
        }
        let ring = ring(&times);
        let mut edges: Vec<usize> = picks.iter().map(|pick| usize::from(*pick) % times.len()).collect();
        edges.sort_unstable();
        edges.dedup();
        prop_assume!(edges.len() == 3);
        let joules = |a: usize, b: usize| {
            let response = ring.window(at(times[a].0), at(times[b].0)).unwrap();
            (response.accounts[0].measured_joules, response.containers[0].energy[0].joules)
        };
        let (whole, left, right) = (joules(edges[0], edges[2]), joules(edges[0], edges[1]), joules(edges[1], edges[2]));
        prop_assert_eq!(whole, (left.0 + right.0, left.1 + right.1));

        let (start, end) = (now * cuts[0].min(cuts[1]), now * cuts[0].max(cuts[1]));
        if let Ok(response) = ring.window(at(start), at(end)) {
            prop_assert!(response.from <= response.start && response.end <= response.to);
            prop_assert!(response.start_error_seconds >= 0.0 && response.end_error_seconds >= 0.0);
            prop_assert!(response.accounts[0].edge_error_joules <= response.accounts[0].measured_joules);
        }
    }

    #[test]
    fn settled_ticks_are_conserved_across_chunks(
        steps in proptest::collection::vec((0u64..5_000_000, 0u8..4), 3..150),
        limit in prop_oneof![Just(4000usize), Just(1 << 20)],
    ) {
        let mut ring = Ring::new(limit);
        let (mut all, mut since, mut covers) = (0, 0, 1);
        for (sequence, (uj, how)) in (0u32..).zip(&steps) {
            since += uj;
            match how {
                0 => ring.push(unsplit(sequence, Settlement::Exact)),
                1 | 2 => ring.push(unsplit(sequence, Settlement::Waiting(Microjoules(since)))),
                _ => {
                    ring.push(split(sequence, covers, since));
                    all += since;
                    (since, covers) = (0, 0);
                }
            }
            covers += 1;
        }
        prop_assert_eq!(ring.bytes(), ring.open_bytes + ring.sealed.iter().map(|(_, bytes)| bytes).sum::<usize>());
        for tick in ring.ticks() {
            let mut delta = tick.accounts[0];
            let parts: Microjoules = delta.parts().map(|part| *part).into_iter().sum();
            let rows: Microjoules = tick.energy.iter().map(|row| row.joules + row.idle).sum();
            prop_assert_eq!(parts + rows, delta.measured.unwrap_or_default());
        }
        if limit > 4000 {
            let sum: Microjoules = ring.ticks().filter_map(|tick| tick.accounts[0].measured).sum();
            prop_assert_eq!(sum, Microjoules(all));
        }
    }

    #[test]
    fn any_window_has_a_result_or_an_error(start in any::<f64>(), end in any::<f64>()) {
        let _ = steady(3).window(start, end);
        let _ = steady(3).window(at(start % 5.0), at(end % 5.0));
    }
}
