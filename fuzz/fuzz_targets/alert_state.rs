//! The files of active alerts and of queued notifications: any text is a state, a queue or an
//! error; the alerts of a state end once, and a queue is limited.
#![no_main]

use analysis::alerts::{AlertState, Evaluation, webhook::parse_queue};
use jiff::Timestamp;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(mut state) = AlertState::parse(text) {
        let active = state.active();
        assert_eq!(state.update(Evaluation::default(), Timestamp::UNIX_EPOCH).len(), active);
        assert!(state.update(Evaluation::default(), Timestamp::UNIX_EPOCH).len() <= active);
    }
    if let Ok(queue) = parse_queue(text) {
        assert!(queue.len() <= 1000);
    }
});
