//! Answers of `--reference.url`: any bytes give a power that a machine can have, or none.
#![no_main]

use probe_user::parsers::meter_answer;

libfuzzer_sys::fuzz_target!(|input: (&[u8], &str, f64, u16)| {
    let (answer, field, scale, watts) = input;
    for pointer in ["", "/PowerControl/0/PowerConsumedWatts", field] {
        for power in [meter_answer(answer, pointer, scale), meter_answer(answer, pointer, 1.0)] {
            assert!(power.is_none_or(|microwatts| (1..=100_000_000_000).contains(&microwatts)));
        }
    }
    let expected = (watts > 0).then_some(u64::from(watts) * 1_000_000);
    assert_eq!(meter_answer(format!(" {watts}\n").as_bytes(), "", 1.0), expected);
    for number in [format!("{watts}"), format!("\"{watts}\"")] {
        let json = format!("{{\"power\": [{{\"watts\": {number}}}]}}");
        assert_eq!(meter_answer(json.as_bytes(), "/power/0/watts", 1.0), expected);
    }
});
