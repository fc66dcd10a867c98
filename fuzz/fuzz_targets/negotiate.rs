//! `Accept` and `Accept-Encoding`: any two headers select a format.
#![no_main]

libfuzzer_sys::fuzz_target!(|headers: (&str, &str)| {
    let answer = http::negotiate::negotiate(headers.0, headers.1);
    assert!(answer.content_type().contains("version="));
});
