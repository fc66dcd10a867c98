//! The tariff of a configuration file: any text gives a tariff or an error; a tariff splits a week
//! without gaps.
#![no_main]

use results::cost::tariff::{Tariff, TariffSettings};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(settings) = toml::from_str::<TariffSettings>(text) else { return };
    let Ok(tariff) = Tariff::new(rust_decimal::Decimal::ONE, &settings) else { return };
    let at = |second| jiff::Timestamp::from_second(second).expect("a moment");
    let pieces = tariff.split(at(1_774_700_000), at(1_775_304_800)).expect("a week");
    assert_eq!(pieces.iter().map(|piece| piece.0).sum::<i64>(), 604_800 * 1_000_000_000);
});
