//! A result file: any bytes give a run or a reason, and what a run gives is a page without faults.
#![no_main]

use analysis::{results, results::Row, store};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(run) = store::parse("20240115_103000", bytes) else { return };
    let rows: Vec<_> = run.scenarios.iter().map(|scenario| Row { scenario: scenario.clone(), energy: None }).collect();
    let page = exporter::page::render(results::families(Some((&run, &rows)), 0, &[])).expect("a page");
    let page = std::str::from_utf8(&page).expect("text");
    assert_eq!(exporter::page::faults(page), Vec::<String>::new());
});
