//! A file of carbon intensities: any text gives readings in the order of time, or a reason; and a price of any text is one, or none.
#![no_main]

use analysis::cost::{carbon::parse, money};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(readings) = parse(text) {
        assert!(readings.windows(2).all(|pair| pair[0].at < pair[1].at));
    }
    if let Ok(price) = money::decimal(text) {
        assert!(money::float(price).is_finite());
    }
});
