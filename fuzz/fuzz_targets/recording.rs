//! Any bytes as a recording: read, attributed, rendered.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use probe_user::{attribution::Accountant, endpoints::pages, ledger::IdlePolicy, tick::recording::Reader};

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut reader) = Reader::start(Path::new("fuzz"), bytes) else { return };
    let mut accountant = Accountant::new(reader.setup().clone(), IdlePolicy::Proportional, 1 << 16);
    while let Ok(Some(tick)) = reader.next_tick() {
        let page = pages::account(&accountant.tick(&tick)).expect("a page");
        assert!(std::str::from_utf8(page.text()).is_ok());
    }
});
