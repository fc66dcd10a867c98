//! Any bytes as the state file, and its samples as a memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use probe_user::{baselines, ledger::idle::Baseline};

fuzz_target!(|bytes: &[u8]| {
    for (_, zones) in baselines::parse(bytes).unwrap_or_default() {
        for samples in zones.values() {
            let _ = Baseline::remember(samples).estimate();
        }
    }
});
