//! Virtual machines whose energy the host states.

use super::*;

fn guest(error_milli: Option<u32>) -> Machine {
    let mut setup = Setup { origin: Some(Origin::Host), ..setup(&[package(0)], 1) };
    setup.zones[0].error_milli = error_milli;
    Machine::new(setup, IdlePolicy::Separate, 1)
}

#[test]
fn a_guest_that_uses_nothing_for_a_while_is_not_broken() {
    let mut machine = guest(None);
    machine.uses(0, 5_000_000).runs(10, 0, SECOND).tick(SECOND);
    for _ in 0..20 {
        machine.tick(SECOND);
        assert_eq!(machine.accountant.trouble(), None);
    }
    let snapshot = machine.uses(0, 3_000_000).runs(10, 0, SECOND).tick(SECOND);
    assert_eq!(snapshot.zones[0].total, Microjoules(8_000_000));
}

#[test]
fn the_error_that_the_host_states_is_added_to_the_own() {
    let uncertainty = |error_milli| {
        let mut machine = guest(error_milli);
        machine.uses(0, 5_000_000).runs(10, 0, SECOND / 2).runs(1, 0, SECOND / 2).tick(SECOND);
        let snapshot = machine.uses(0, 5_000_000).runs(10, 0, SECOND / 2).runs(1, 0, SECOND / 2).tick(SECOND);
        snapshot.containers[0].uncertainty.unwrap()
    };
    let added = uncertainty(Some(50)) - uncertainty(None);
    assert!((added - 0.05).abs() < 1e-9, "{added}");
}
