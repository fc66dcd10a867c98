//! The status page of the RTMP module, and the metrics rendered from it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|page: &[u8]| {
    use analysis::streams::nginx::{StreamLabel, families, parse};
    if let Ok(stat) = parse(page) {
        assert!(metrics::page::render("nginx", families(&Ok(stat), StreamLabel::Name)).is_ok());
    }
});
