//! Answers of a source of carbon intensity: any bytes give a reading or an error.

#![no_main]

use results::cost::{
    carbon::{Api, CarbonSettings},
    money,
};

libfuzzer_sys::fuzz_target!(|input: (&[u8], &str)| {
    let settings = CarbonSettings {
        url: Some("http://127.0.0.1:1/".to_owned()),
        field: Some(input.1.to_owned()),
        ..CarbonSettings::default()
    };
    let Ok(Some(api)) = Api::new(&settings, "SE") else { return };
    if let Ok(reading) = api.read(input.0, jiff::Timestamp::UNIX_EPOCH) {
        assert!(money::float(reading.grams).is_finite());
    }
});
