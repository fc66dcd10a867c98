//! `cargo xtask check-dashboards`: every query of every dashboard and rule has data in a running
//! stack.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use testkit::skip;

#[test]
fn queries_of_dashboards_and_rules_have_data_in_both_databases() {
    if let Err(reason) = xtask::check_dashboards::check().unwrap() {
        skip!("dashboards: {reason}");
    }
}
