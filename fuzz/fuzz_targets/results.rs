//! A result file: any bytes give a run or a reason, and what a run gives is three pages without faults.
#![no_main]

use std::sync::Arc;

use analysis::{
    cost::{self, Prices},
    energy::{Scope, Sources},
    figures, qoe, results, store,
};
use exporter::page;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(run) = store::parse("20240115_103000", bytes) else { return };
    let run = Arc::new(run);
    // What the file says for itself; nobody is asked.
    let answers = run.scenarios.iter().map(|scenario| Sources::in_file(scenario)).collect();
    let prices = Prices::defaults();
    let model = figures::model(&[(run, answers)], Scope::Host, &prices);
    for page in [
        page::render(results::families(&model)),
        page::render(qoe::families(&model, &[90.0])),
        page::render(cost::page::families(&model, &prices)),
    ] {
        let page = page.expect("a page");
        let page = std::str::from_utf8(&page).expect("text");
        assert_eq!(page::faults(page), Vec::<String>::new());
    }
});
