//! A file of carbon intensities: any text gives readings in time order or an error; any price text
//! gives a finite price or none.
#![no_main]

use results::cost::{carbon::parse, money};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(readings) = parse(text) {
        assert!(readings.windows(2).all(|pair| pair[0].at < pair[1].at));
    }
    if let Ok(price) = money::decimal(text) {
        assert!(money::float(price).is_finite());
    }
});
