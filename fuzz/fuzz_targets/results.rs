//! Result files: any bytes give a run or an error; a run gives three valid pages, a report, and a
//! comparison with itself without differences.
#![no_main]

use std::sync::Arc;

use analysis::pages::{self, quality, scenarios};
use experiment::{
    compare::{Metric, Verdict, compare},
    report,
};
use metrics::page;
use results::{
    cost::Prices,
    energy::{EnergySources, Scope},
    model::Model,
    store,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(run) = store::parse("20240115_103000", bytes) else { return };
    // The kept text is strict JSON, whatever the file was.
    let value: serde_json::Value = serde_json::from_str(&run.text).unwrap_or_default();
    let run = Arc::new(run);
    // Only sources in the file; neither probe nor database.
    let answers = run.scenarios.iter().map(|scenario| EnergySources::from_file(scenario)).collect();
    let prices = Prices::defaults();
    let model = Model::new(&[(run, answers)], Scope::Host, &prices);
    for page in [
        page::render("runs", scenarios::families(&model)),
        page::render("runs", quality::families(&model, &[90.0])),
        page::render("runs", pages::cost::families(&model, &prices)),
    ] {
        let page = page.expect("a page");
        let page = std::str::from_utf8(page.text()).expect("text");
        assert_eq!(page::faults(page), Vec::<String>::new());
    }
    let found = compare(&model, &model, &Metric::ALL, 0.0);
    assert!(found.rows.iter().all(|row| matches!(row.verdict, Verdict::Same | Verdict::Unknown)));
    let _ = found.table();
    assert!(report::html(&model, &value, &prices).starts_with("<!doctype html>"));
});
