//! The Helm chart and the manifests are valid, and start the same containers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use testkit::skip;

#[test]
fn the_chart_renders_valid_objects_and_the_containers_of_the_manifest() {
    if let Err(reason) = xtask::chart::check().unwrap() {
        skip!("chart: {reason}");
    }
}
