//! Prometheus configurations and targets of the command line: any text gives targets or an error;
//! every target has a name and a URL.
#![no_main]

use std::path::Path;

use analysis::health::{scrape_config, target};
use client::Access;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let in_file =
        scrape_config::parse(text, Path::new("/etc"), target::MAX_AGE).map(|(all, _)| all).unwrap_or_default();
    for target in in_file.into_iter().chain(target::parse(text, &Access::default(), target::MAX_AGE)) {
        assert!(!target.name.is_empty() && target.url.contains("://"));
    }
});
