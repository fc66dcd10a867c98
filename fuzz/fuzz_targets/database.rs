//! Responses of a database, and the increase of a counter over any samples: no panic, and never
//! more than the sum of the samples.
#![no_main]

use results::energy::{
    counter::{Sample, growth},
    database::parse,
};

libfuzzer_sys::fuzz_target!(|input: (&[u8], Vec<(u32, u32)>, u16, u16)| {
    let (bytes, steps, start, long) = input;
    if let Ok(all) = parse(bytes) {
        for series in all {
            let _ = series.points();
        }
    }
    let (mut at, mut samples) = (0.0, Vec::new());
    for (distance, micro) in steps {
        at += f64::from(distance % 1000) + 0.001;
        samples.push(Sample { at, micro: micro.into() });
    }
    let (start, end) = (f64::from(start), f64::from(start) + f64::from(long) + 1.0);
    let increase = growth(&samples, start, end);
    let total: u64 = samples.iter().map(|sample| sample.micro).sum();
    assert!(increase.micro <= total);
    let mut with_first = increase.clone();
    with_first.add_first_value(&samples);
    assert!(with_first.micro <= total);
    assert!(increase.missing_before + increase.missing_after <= 2.0 * (end - start));
});
