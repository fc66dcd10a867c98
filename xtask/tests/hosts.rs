//! One analysis service and one database with several probes, of which one dies, one is slow and
//! one has a wrong clock. `cargo xtask bench hosts` does the same with fifty.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use testkit::{requires, shell::programs};
use xtask::hosts_bench::{Plan, check};

#[test]
fn faulty_hosts_change_neither_the_pages_nor_the_bill_of_the_others() {
    requires!(victoria_metrics);
    let plan = Plan { programs: programs().unwrap(), hosts: 6, seconds: 20, refresh: None };
    let (table, page) = check(&plan).unwrap();
    assert!(table.contains("| 6 probes, one dead"), "{table}");
    assert!(page.iter().any(|sample| !sample.label("container").is_empty()), "the recording has containers");
}
