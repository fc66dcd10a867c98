//! Any bytes as the file of a calibration: its seeds are ordered intervals, and its weight is one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use probe_user::{attribution::calibration_file, ledger::idle::Baseline};

fuzz_target!(|bytes: &[u8]| {
    let Ok(calibration) = calibration_file::parse(bytes) else { return };
    assert!(calibration.shared_milli().is_none_or(|milli| (500..=1000).contains(&milli)));
    if let Some([low, high]) = calibration.shared_range_milli() {
        let weight = calibration.shared_milli().expect("a weight has a range");
        assert!(500 <= low && u64::from(low) <= weight && weight <= u64::from(high) && high <= 1000);
    }
    let _ = (calibration.age(0), calibration.gaps());
    for seed in calibration.seeds(90).into_values() {
        assert!(seed.idle.low_uw <= seed.idle.uw && seed.idle.uw <= seed.idle.high_uw);
        let mut baseline = Baseline::default();
        baseline.seed(Some(seed));
        // Its end may be before any time.
        assert_eq!(baseline.estimate(), (seed.until >= 0).then_some(seed.idle));
    }
});
