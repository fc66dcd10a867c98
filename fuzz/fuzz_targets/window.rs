//! The times that a window is asked for.
#![no_main]

use probe_user::window::{Ring, Tick};

libfuzzer_sys::fuzz_target!(|asked: (f64, f64, Vec<(u32, u32)>)| {
    let (start, end, ticks) = asked;
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
            energy: Box::default(),
            cpu: Box::default(),
        });
    }
    if let Ok(answer) = ring.window(start, end) {
        // Asked times are rounded to the microsecond.
        assert!(answer.from <= start + 1e-6 && end <= answer.to + 1e-6);
    }
});
