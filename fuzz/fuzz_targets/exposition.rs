//! Pages of metrics of other programs: any text is a page or says in which line it is none; every sample has a name, and belongs to a family.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    match exporter::parse::parse(text) {
        Ok(page) => {
            for sample in &page.samples {
                assert!(!sample.name.is_empty());
                assert!(sample.name.starts_with(page.family(&sample.name)));
            }
        }
        Err(error) => assert!(error.line >= 1 && error.line <= text.lines().count()),
    }
});
