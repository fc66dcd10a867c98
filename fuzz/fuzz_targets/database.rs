//! What a database answers, and the growth of a counter of any samples: no panic, and no more than the counter could have grown.
#![no_main]

use analysis::energy::{
    counter::{Sample, growth},
    database::parse,
};

libfuzzer_sys::fuzz_target!(|input: (&[u8], Vec<(u32, u32)>, u16, u16)| {
    let (bytes, steps, start, long) = input;
    if let Ok(series) = parse(bytes) {
        for one in series {
            let _ = one.points();
        }
    }
    let (mut at, mut samples) = (0.0, Vec::new());
    for (distance, micro) in steps {
        at += f64::from(distance % 1000) + 0.001;
        samples.push(Sample { at, micro: micro.into() });
    }
    let (start, end) = (f64::from(start), f64::from(start) + f64::from(long) + 1.0);
    let grown = growth(&samples, start, end);
    let most: u64 = samples.iter().map(|sample| sample.micro).sum();
    assert!(grown.micro <= most);
    let mut born = grown.clone();
    born.add_birth(&samples);
    assert!(born.micro <= most);
    assert!(grown.missing_before + grown.missing_after <= 2.0 * (end - start));
});
