//! Metrics pages of other programs: any text is a page or an error with a line number; every sample
//! has a name and belongs to a family.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    match metrics::parse::parse(text) {
        Ok(page) => {
            for sample in &page.samples {
                assert!(!sample.name.is_empty());
                assert!(sample.name.starts_with(page.family(&sample.name)));
            }
        }
        Err(error) => assert!(error.line >= 1 && error.line <= text.lines().count()),
    }
});
