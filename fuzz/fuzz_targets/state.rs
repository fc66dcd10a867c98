//! Any bytes as the state file, and its samples as a baseline.
#![no_main]

use libfuzzer_sys::fuzz_target;
use probe_user::{attribution::baseline_file, ledger::idle::Baseline};

fuzz_target!(|bytes: &[u8]| {
    for (_, zones) in baseline_file::parse(bytes).unwrap_or_default() {
        for samples in zones.values() {
            let _ = Baseline::restore(samples).estimate();
        }
    }
});
