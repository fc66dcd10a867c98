//! Any bytes as the files of the state directory, and the samples of one as a baseline.
#![no_main]

use libfuzzer_sys::fuzz_target;
use probe_user::{attribution::baseline_file, ledger::idle::Baseline, parsers};

fuzz_target!(|bytes: &[u8]| {
    let _ = parsers::totals(bytes, "");
    for (_, zones) in baseline_file::parse(bytes).unwrap_or_default() {
        for samples in zones.values() {
            let _ = Baseline::restore(samples).estimate();
        }
    }
});
