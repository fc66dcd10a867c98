//! Totals across restarts of the probe.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::fs;

use support::{Page, Probe};
use testkit::{eventually, sleep};

/// Energy of all packages in joules.
fn total(page: &Page) -> f64 {
    page.all("wattcast_energy_joules_total")
        .filter(|sample| sample.label("zone") == "package")
        .map(|sample| sample.value)
        .sum()
}

/// Each restart was a reset of every counter, so that what a container used in a month was only in
/// the database.
#[test]
fn totals_continue_after_a_clean_end_and_start_at_zero_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let state = format!("--state.dir={}", dir.path().display());
    let flags = ["--energy.source=model", &*state];
    let file = dir.path().join("totals.json");

    // Until an end had the time to save them.
    let ended = (0..10).find_map(|_| {
        let _ = fs::remove_file(&file);
        let first = Probe::start(&flags);
        eventually(20.0, "energy", || total(&first.fresh()) > 0.0);
        let last = first.fresh();
        last.assert_conserved();
        assert_eq!(last.get("wattcast_totals_restarts_total", &[]), 0.0);
        first.end().then_some((last.get("wattcast_totals_start_timestamp_seconds", &[]), total(&last)))
    });
    let (start, before) = ended.unwrap();
    assert!(file.exists());

    sleep(1.2);
    let second = Probe::start(&flags);
    let page = second.metrics();
    page.assert_conserved();
    assert!(total(&page) >= before, "{} {before}", total(&page));
    assert_eq!(page.get("wattcast_totals_start_timestamp_seconds", &[]), start);
    assert_eq!(page.get("wattcast_totals_restarts_total", &[]), 1.0);
    let gap = page.get("wattcast_totals_gap_seconds_total", &[]);
    assert!((1.2..60.0).contains(&gap), "{gap}");
    // A file that stayed would be continued again after a crash, with old values.
    assert!(!file.exists());
    eventually(20.0, "more energy", || total(&second.fresh()) > before);
    second.fresh().assert_conserved();
    let killed = std::process::Command::new("kill").args(["-KILL", &second.program.pid().to_string()]).status();
    assert!(killed.unwrap().success());
    drop(second);

    let third = Probe::start(&flags);
    let page = third.metrics();
    page.assert_conserved();
    assert_eq!(page.get("wattcast_totals_restarts_total", &[]), 0.0);
    assert!(page.get("wattcast_totals_start_timestamp_seconds", &[]) > start);
}
