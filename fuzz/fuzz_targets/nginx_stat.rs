//! The RTMP module's page, and the metrics made of it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|page: &[u8]| {
    use analysis::streams::nginx::{StreamLabel, families, parse};
    if let Ok(stat) = parse(page) {
        assert!(exporter::page::render("nginx", families(&Ok(stat), StreamLabel::Name)).is_ok());
    }
});
