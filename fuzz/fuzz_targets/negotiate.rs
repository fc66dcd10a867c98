//! `Accept` and `Accept-Encoding`: any two headers have an answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|headers: (&str, &str)| {
    let answer = exporter::negotiate::negotiate(headers.0, headers.1);
    assert!(answer.content_type().contains("version="));
});
