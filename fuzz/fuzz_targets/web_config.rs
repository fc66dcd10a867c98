//! Web configurations: any text gives settings or an error without keys and hashes.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(why) = http::web::parse_file(text) {
        assert!(!why.is_empty());
    }
});
