//! Faults of energy sources, replayed: what they add to the totals, and what is counted as lost.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use probe_user::{
    attribution::Accountant,
    energy::{
        counter::Reject,
        zone::{Origin, Range, Zone, ZoneId, ZoneKind},
    },
    host::{gpu_id::GpuId, topology::PackageId},
    ledger::IdlePolicy,
    snapshot::{AccountRow, Snapshot},
    tick::{
        RawTick, Setup, SourceChange, TickChanges,
        recording::{Reader, Writer},
    },
};

const SECOND: u64 = 1_000_000_000;

fn zone(kind: ZoneKind, origin: Option<Origin>) -> Zone {
    let package = matches!(kind, ZoneKind::Package).then(|| PackageId::whole(0));
    let id = ZoneId { package, kind };
    Zone { origin, ..Zone::microjoules(id, Range::Wraps(1 << 38), id.to_string()) }
}

fn setup(origin: Origin) -> Setup {
    Setup {
        host: String::new(),
        origin: Some(origin),
        zones: vec![zone(ZoneKind::Package, None)],
        idle_uw: vec![None],
        packages: vec![PackageId::whole(0)],
        cpu_packages: vec![Some(0)],
        cpu_weights: Vec::new(),
        smt: false,
        lag_ns: 0,
        cpu: None,
    }
}

/// A tick at a second, with readings in joules.
fn tick(second: u64, joules: &[u64]) -> RawTick {
    let at = second * SECOND;
    RawTick {
        unix_ns: 1_700_000_000_000_000_000 + i64::try_from(at).unwrap(),
        began_ns: at,
        energy_ns: at,
        cpu_ns: at,
        gpu_ns: at,
        zones: joules.iter().map(|joules| Ok(joules * 1_000_000)).collect(),
        ..RawTick::default()
    }
}

/// The snapshots of a recording of the ticks.
fn replay(setup: &Setup, ticks: &[RawTick]) -> Vec<Snapshot> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rec");
    let mut writer = Writer::create(&path, setup).unwrap();
    ticks.iter().for_each(|tick| writer.write(tick).unwrap());
    writer.finish().unwrap();
    let mut reader = Reader::open(&path).unwrap();
    let mut accountant = Accountant::new(reader.setup().clone(), IdlePolicy::Separate, 1 << 20);
    std::iter::from_fn(|| reader.next_tick().unwrap()).map(|tick| accountant.tick(&tick)).collect()
}

/// Kind, source and total in joules of each zone.
fn totals(snapshot: &Snapshot) -> Vec<(&str, Origin, u64)> {
    snapshot.zones.iter().map(|zone| (zone.id.kind.as_str(), zone.origin, zone.total.0 / 1_000_000)).collect()
}

fn assert_conserved(snapshot: &Snapshot) {
    for account in &snapshot.accounts {
        let AccountRow { id, retired, system, idle, unattributed, .. } = account;
        let zone = snapshot.zones.iter().find(|zone| (zone.id, zone.origin) == (id.zone, id.origin)).unwrap();
        assert_eq!(zone.total, *retired + *system + *idle + *unattributed, "{}", id.zone);
    }
}

#[test]
fn energy_of_a_suspension_is_not_energy_of_the_first_tick_after_it() {
    // Asleep, the package used 600 J in an hour, which is plausible within a second.
    let mut ticks = [tick(0, &[0]), tick(1, &[50]), tick(2, &[100]), tick(3, &[750]), tick(4, &[800])];
    ticks[3].suspended_ns = 3600 * SECOND;
    let snapshots = replay(&setup(Origin::Powercap), &ticks);
    let joules: Vec<u64> = snapshots.iter().map(|snapshot| totals(snapshot)[0].2).collect();
    assert_eq!(joules, [0, 50, 100, 100, 150]);
    let [(_, Reject::Suspended, 1)] = snapshots[4].rejects[..] else { panic!("{:?}", snapshots[4].rejects) };
    // Less than a tenth of a second is not a suspension.
    ticks[3].suspended_ns = SECOND / 20;
    assert_eq!(totals(&replay(&setup(Origin::Powercap), &ticks)[4])[0].2, 800);
}

#[test]
fn modelled_energy_does_not_count_a_suspension_and_loses_nothing() {
    let mut ticks = [tick(0, &[0]), tick(1, &[50]), tick(2, &[100])];
    ticks[2].suspended_ns = 3600 * SECOND;
    let snapshots = replay(&setup(Origin::Model), &ticks);
    assert_eq!((totals(&snapshots[2])[0].2, snapshots[2].rejects.len()), (100, 0));
}

#[test]
fn another_source_starts_at_zero_and_boards_continue() {
    let board = zone(ZoneKind::Gpu(GpuId::Nvidia(0xfa4e)), Some(Origin::Nvml));
    let dram = Zone { id: ZoneId { kind: ZoneKind::Dram, ..zone(ZoneKind::Package, None).id }, ..board.clone() };
    let zones = vec![zone(ZoneKind::Package, None), Zone { origin: None, ..dram }];
    let source = SourceChange { origin: Origin::Powercap, zones, idle_uw: vec![None; 2] };
    let mut ticks =
        [tick(0, &[0, 500]), tick(1, &[7, 530]), tick(2, &[90_000, 70_000, 560]), tick(3, &[90_040, 70_005, 590])];
    ticks[0].changes = TickChanges { zones: vec![board], ..TickChanges::default() };
    ticks[2].changes = TickChanges { source: Some(source), ..TickChanges::default() };
    let snapshots = replay(&setup(Origin::Model), &ticks);
    snapshots.iter().for_each(assert_conserved);
    assert_eq!(totals(&snapshots[1]), [("package", Origin::Model, 7), ("gpu", Origin::Replay, 30)]);
    let replayed = |package, dram, gpu| {
        [("package", Origin::Replay, package), ("dram", Origin::Replay, dram), ("gpu", Origin::Replay, gpu)]
    };
    assert_eq!(totals(&snapshots[2]), replayed(0, 0, 60));
    assert_eq!(totals(&snapshots[3]), replayed(40, 5, 90));
    assert_eq!(snapshots[3].accounts.len(), 3);
    assert!(snapshots[3].rejects.is_empty(), "{:?}", snapshots[3].rejects);
}

/// In a recording, all measured sources have one name.
#[test]
fn a_zone_that_another_source_reads_under_the_same_name_continues() {
    let source = SourceChange { origin: Origin::Perf, zones: vec![zone(ZoneKind::Package, None)], idle_uw: vec![None] };
    let mut ticks = [tick(0, &[0]), tick(1, &[50]), tick(2, &[7000]), tick(3, &[7030])];
    ticks[2].changes = TickChanges { source: Some(source), ..TickChanges::default() };
    let snapshots = replay(&setup(Origin::Powercap), &ticks);
    snapshots.iter().for_each(assert_conserved);
    let joules: Vec<_> = snapshots.iter().flat_map(totals).collect();
    assert_eq!(joules, [0, 50, 50, 80].map(|joules| ("package", Origin::Replay, joules)));
}
