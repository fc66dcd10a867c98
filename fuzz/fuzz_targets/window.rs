//! Start and end times of window requests.
#![no_main]

use probe_user::snapshot::history::{Ring, Tick};

libfuzzer_sys::fuzz_target!(|input: (f64, f64, Vec<(u32, u32)>)| {
    let (start, end, ticks) = input;
    let mut ring = Ring::new(1 << 16);
    let (mut unix_ns, mut monotonic_ns) = (0, 0);
    for (sequence, (unix_us, monotonic_us)) in ticks.into_iter().enumerate() {
        unix_ns += i64::from(unix_us) * 1000;
        monotonic_ns += i64::from(monotonic_us) * 1000 + 1;
        ring.push(Tick {
            sequence: sequence as u64,
            unix_ns,
            monotonic_ns,
            accounts: Box::default(),
            energy: Default::default(),
            cpu: Default::default(),
        });
    }
    if let Ok(window) = ring.window(start, end) {
        // Requested times are rounded to the microsecond.
        assert!(window.from <= start + 1e-6 && end <= window.to + 1e-6);
    }
});
