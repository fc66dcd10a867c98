//! Signals before the service serves.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

mod support;

use testkit::{program::stop_during_start, requires};

/// The kernel gives the first process of a container no default actions, so a stop during the start
/// was ignored.
#[test]
fn a_stop_during_the_start_ends_the_first_process_of_a_container() {
    requires!(root);
    assert_eq!(stop_during_start(&support::binary(), &["serve"]).unwrap(), Some(143));
}
