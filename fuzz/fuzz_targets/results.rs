//! A result file: any bytes give a run or a reason, and what a run gives is three pages without faults, a report and a comparison with itself that finds nothing.
#![no_main]

use std::sync::Arc;

use analysis::{
    compare::{Metric, Verdict, compare},
    cost::{self, Prices},
    energy::{Scope, Sources},
    figures, qoe, report, results, store,
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
        page::render("runs", results::families(&model)),
        page::render("runs", qoe::families(&model, &[90.0])),
        page::render("runs", cost::page::families(&model, &prices)),
    ] {
        let page = page.expect("a page");
        let page = std::str::from_utf8(page.text()).expect("text");
        assert_eq!(page::faults(page), Vec::<String>::new());
    }
    let found = compare(&model, &model, &Metric::ALL, 0.0);
    assert!(found.rows.iter().all(|row| matches!(row.verdict, Verdict::Same | Verdict::Unknown)));
    let _ = found.table();
    let value = serde_json::from_slice(bytes).unwrap_or_default();
    assert!(report::html(&model, &value, &prices).starts_with("<!doctype html>"));
});
