//! The web configuration: any text gives what it says or a reason, and no reason holds a key or a hash.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(why) = exporter::web::parse_file(text) {
        assert!(!why.is_empty());
    }
});
