//! Totals across restarts of the probe.

use super::*;
use crate::attribution::saved_totals::SavedTotals;

/// A probe that continues `saved`. The registry continued the containers `known`, and has found
/// those of `found` again in the first tick.
fn restarted(setup: Setup, saved: SavedTotals, known: &[u32], found: &[u32]) -> Machine {
    let mut accountant = Accountant::new(setup.clone(), IdlePolicy::Separate, 1 << 20);
    accountant.continue_totals(saved, known.iter().map(|number| Arc::new(container(*number))).collect(), 60 * SECOND);
    let mut raw = RawTick { zones: vec![Ok(5); setup.zones.len()], ..RawTick::default() };
    raw.changes.containers = found.iter().map(|number| Arc::new(container(*number))).collect();
    let ids = found.iter().map(|number| (key(u64::from(*number) + 10), ChargeTarget::Container(*number)));
    raw.changes.targets = std::iter::once((key(1), ChargeTarget::System)).chain(ids).collect();
    let rows = raw.changes.targets.iter().map(|(key, _)| (*key, vec![RunTime::default()])).collect();
    raw.cpu = Some(Ok(CpuReading { rows, overflow: vec![RunTime::default()], ..CpuReading::default() }));
    let mut this = Machine { accountant, raw };
    let first = this.tick(0);
    assert_eq!(first.accounts.iter().map(parts).sum::<Microjoules>(), first.zones[0].total);
    this.raw.changes = TickChanges::default();
    this
}

/// Three containers on one package, of which the next start recognises the first two.
fn saved(setup: Setup) -> (SavedTotals, Snapshot) {
    let mut machine = Machine::new(setup, IdlePolicy::Separate, 3);
    machine.uses(0, 90_000_001).runs(10, 0, SECOND / 10).runs(11, 0, SECOND / 5).runs(12, 0, SECOND / 10);
    machine.runs(1, 0, SECOND / 10);
    let last = machine.tick(SECOND);
    let saved = machine.accountant.save_totals(&[0, 1].into());
    assert_eq!(saved.check(), Ok(()));
    (saved, last)
}

/// A restarted probe counted from zero, so that a month was as long as its last start.
#[test]
fn totals_continue_after_a_restart_and_close() {
    let (saved, last) = saved(setup(&[package(0)], 1));
    let mut machine = restarted(setup(&[package(0)], 1), saved, &[0, 1], &[0]);
    let now = machine.tick(SECOND);
    let total = |snapshot: &Snapshot| snapshot.zones[0].total.0;
    assert_eq!((total(&last), total(&now)), (90_000_001, 90_000_001), "the time between is no energy");
    assert_eq!(attributed(&now, 0), attributed(&last, 0));
    assert_eq!(attributed(&now, 1), attributed(&last, 1), "not found yet, and shown");
    assert_eq!(now.accounts[0].retired.0, attributed(&last, 2), "not recognised");
    assert_eq!(now.accounts[0].system, last.accounts[0].system);
    machine.uses(0, 30_000_000).runs(10, 0, SECOND / 2);
    let next = machine.tick(SECOND);
    assert_eq!((total(&next), attributed(&next, 0)), (120_000_001, attributed(&last, 0) + 30_000_000));
    // The registry has not found it within the retention time.
    machine.raw.changes.ended = vec![1];
    machine.tick(SECOND);
    machine.raw.changes = TickChanges::default();
    let ended = machine.tick(SECOND);
    assert_eq!(ended.accounts[0].retired.0, attributed(&last, 1) + attributed(&last, 2));
    assert_eq!(ended.containers.len(), 1);
    let again = machine.accountant.save_totals(&[0].into());
    assert_eq!((again.check(), again.zones[0].total.0), (Ok(()), 120_000_001));
}

/// A counter that fails in the first tick must not make the page contradict itself.
#[test]
fn totals_continue_while_cpu_time_cannot_be_read() {
    let (saved, last) = saved(setup(&[package(0)], 1));
    let mut accountant = Accountant::new(setup(&[package(0)], 1), IdlePolicy::Separate, 1 << 20);
    accountant.continue_totals(saved, vec![Arc::new(container(0)), Arc::new(container(1))], SECOND);
    let raw = RawTick { zones: vec![Ok(5)], cpu: Some(Err("denied".into())), ..RawTick::default() };
    let first = accountant.tick(&raw);
    assert_conserved(&first);
    assert_eq!(attributed(&first, 1), attributed(&last, 1));
}

#[test]
fn another_source_does_not_continue_the_totals() {
    let (saved, _) = saved(setup(&[package(0)], 1));
    let other = Setup { origin: Some(Origin::Msr), ..setup(&[package(0)], 1) };
    let mut machine = restarted(other, saved.clone(), &[0, 1], &[0]);
    machine.uses(0, 7).runs(10, 0, SECOND / 2);
    let now = machine.tick(SECOND);
    assert_eq!((now.zones[0].total.0, attributed(&now, 0)), (7, 7));
    // And they are still there for a start with the source of before.
    let kept = machine.accountant.save_totals(&[0].into());
    assert_eq!((kept.zones.len(), kept.zones[1].total), (2, saved.zones[0].total));
}
