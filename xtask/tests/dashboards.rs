//! `cargo xtask check-dashboards`: every query of every dashboard and rule has an answer in a running stack.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use testkit::skip;

#[test]
fn every_query_of_dashboards_and_rules_has_an_answer_in_both_databases() {
    if let Err(reason) = xtask::check_dashboards::check().unwrap() {
        skip!("dashboards: {reason}");
    }
}
