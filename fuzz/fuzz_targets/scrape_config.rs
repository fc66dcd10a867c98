//! A Prometheus' configuration, and targets of the command line: any text gives targets or a reason, and every target has a name and a URL.
#![no_main]

use std::path::Path;

use analysis::{client::Access, health::{scrape, target}};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let of_file = scrape::scraped_text(text, Path::new("/etc"), target::MAX_AGE).map(|(all, _)| all).unwrap_or_default();
    for target in of_file.into_iter().chain(target::given(text, &Access::default(), target::MAX_AGE)) {
        assert!(!target.name.is_empty() && target.url.contains("://"));
    }
});
