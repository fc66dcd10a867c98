//! The HTTP API of a running probe: marks, windows and pages. Needs no privileges.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    collections::HashMap,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use support::Probe;
use testkit::{eventually, requires, sleep};

fn model() -> Probe {
    Probe::start(&["--energy.source=model", "--no-collector.cpu"])
}

#[test]
fn marks_are_exact_edges_of_a_window() {
    let probe = Probe::start(&["--energy.source=model", "--no-collector.cpu", "--tick=200ms"]);
    let start = probe.client.mark().unwrap();
    let ticks = || probe.metrics().get("wattcast_tick_jitter_seconds_count", &[]);
    let before = ticks();
    eventually(10.0, "two regular ticks lie between the marks", || ticks() >= before + 2.0);
    let end = probe.client.mark().unwrap();
    let answer = probe.client.json(&format!("/api/v1/window?start={start}&end={end}")).unwrap();
    assert_eq!((answer["from"].as_f64(), answer["to"].as_f64()), (Some(start), Some(end)));
    assert_eq!((answer["start_error_seconds"].as_f64(), answer["end_error_seconds"].as_f64()), (Some(0.0), Some(0.0)));
    let account = &answer["accounts"][0];
    assert_eq!((account["source"].as_str(), account["edge_error_joules"].as_f64()), (Some("model"), Some(0.0)));
    let number = |key: &str| account[key].as_f64().unwrap();
    let parts =
        ["containers", "retired", "system", "idle", "unattributed"].map(|part| number(&format!("{part}_joules")));
    assert!((parts.iter().sum::<f64>() - number("measured_joules")).abs() < 1e-6, "{account}");
    assert!(number("measured_joules") > 0.0);
}

#[test]
fn the_first_page_has_power() {
    let probe = Probe::start(&["--energy.source=model", "--no-collector.cpu", "--tick=30s"]);
    assert!(probe.metrics().all("wattcast_power_watts").count() > 0);
}

#[test]
fn modelled_energy_has_the_same_interval_in_every_view() {
    let probe = Probe::start(&["--energy.source=model", "--no-collector.cpu", "--tick=200ms"]);
    let start = probe.client.mark().unwrap();
    let end = probe.client.mark().unwrap();
    let answer = probe.client.json(&format!("/api/v1/window?start={start}&end={end}")).unwrap();
    let account = &answer["accounts"][0];
    let limits = [0, 1].map(|at| account["model_interval_ratio"][at].as_f64().unwrap());
    assert!(limits[0] < 1.0 && limits[1] > 1.0, "{account}");
    let (package, zone) = (account["package"].as_str().unwrap(), account["zone"].as_str().unwrap());
    for (bound, limit) in ["lower", "upper"].into_iter().zip(limits) {
        let labels = [("package", package), ("zone", zone), ("load", "all"), ("bound", bound)];
        assert_eq!(probe.metrics().get("wattcast_model_interval_ratio", &labels), limit);
    }
    let sources = probe.client.json("/api/v1/sources").unwrap();
    let model = sources.as_array().unwrap().iter().find(|source| source["source"] == "model").unwrap();
    let mut zones = model["model_intervals"].as_array().unwrap().iter();
    let own = zones.find(|one| one["package"] == package && one["zone"] == zone).unwrap();
    assert_eq!(own["model_interval_ratio"], account["model_interval_ratio"]);
    let [low, high] = limits.map(|limit| format!("{:+.0} %", (limit - 1.0) * 100.0));
    let landing = probe.client.text("/overview").unwrap();
    assert!(landing.contains(&format!("90 % interval {low} … {high}")), "{landing}");
}

#[test]
fn an_incomplete_window_is_rejected_with_a_reason() {
    let probe = model();
    let now = probe.client.mark().unwrap();
    let window = |query: &str| {
        let (status, body) = probe.client.get(&format!("/api/v1/window{query}")).unwrap();
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        (
            status,
            body["code"].as_str().unwrap_or_default().to_owned(),
            body["error"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let (status, code, error) = window(&format!("?start={}&end={now}", now - 3600.0));
    assert_eq!((status, &*code), (410, "too_old"), "{error}");
    assert!(error.contains("but the oldest tick is at"), "{error}");
    let (status, code, error) = window(&format!("?start={now}&end={}", now + 60.0));
    assert_eq!((status, &*code), (425, "too_new"), "{error}");
    assert!(error.contains("/api/v1/mark"), "{error}");
    for query in ["", "?start=1", "?start=a&end=b", "?start=2&end=1", "?start=NaN&end=1", "?start=-1&end=1e400"] {
        let (status, code, error) = window(query);
        assert_eq!((status, &*code), (400, "not_a_window"), "{query}: {error}");
    }
}

#[test]
fn concurrent_marks_share_ticks() {
    // All ticks belong to marks, except for the first regular one soon after the start.
    let probe = Probe::start(&["--energy.source=model", "--no-collector.cpu", "--tick=30s"]);
    let start = Instant::now();
    let ticks: HashMap<u64, u32> = std::thread::scope(|scope| {
        let mark = || {
            let client = probe.client.clone();
            (0..5).map(|_| client.mark().unwrap().to_bits()).collect::<Vec<u64>>()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(mark)).collect();
        let mut all = HashMap::new();
        for tick in threads.into_iter().flat_map(|thread| thread.join().unwrap()) {
            *all.entry(tick).or_default() += 1;
        }
        all
    });
    let took = start.elapsed().as_secs_f64();
    assert_eq!(ticks.values().sum::<u32>(), 40, "every mark was answered");
    // Ticks start at least 0.1 s apart, and all of them started while marks were requested. The
    // time of a tick is read a moment after its start, so the times of two ticks may be closer
    // together.
    let spaces = ticks.len() as f64 - 1.0;
    assert!(spaces * 0.1 <= took, "{} ticks in {took} s", ticks.len());
    assert!(ticks.len() < 40, "marks that wait together share a tick: {ticks:?}");
}

#[test]
fn a_get_request_sets_no_mark() {
    let probe = model();
    assert_eq!(probe.client.get("/api/v1/mark").unwrap().0, 405);
}

#[test]
fn two_scrapers_change_no_value() {
    let probe = Probe::start(&["--energy.source=model", "--no-collector.cpu", "--tick=500ms"]);
    let stop = AtomicBool::new(false);
    // There is one page per tick, whatever the number of scrapes.
    let pages: Vec<(String, String)> = std::thread::scope(|scope| {
        let reader = |pause: f64| {
            let (probe, stop) = (&probe, &stop);
            move || {
                let mut pages = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let page = probe.client.text("/metrics").unwrap();
                    let tick =
                        page.lines().find(|line| line.starts_with("wattcast_tick_jitter_seconds_count")).unwrap();
                    pages.push((tick.to_owned(), page.clone()));
                    sleep(pause);
                }
                pages
            }
        };
        let threads = [scope.spawn(reader(0.01)), scope.spawn(reader(0.06))];
        // Wait for enough ticks, with several scrapes of each.
        let count = || probe.metrics().get("wattcast_tick_jitter_seconds_count", &[]);
        let first = count();
        eventually(30.0, "seven ticks", || {
            sleep(0.1);
            count() >= first + 7.0
        });
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut by_tick: HashMap<String, String> = HashMap::new();
    for (tick, page) in &pages {
        let first = by_tick.entry(tick.clone()).or_insert_with(|| page.clone());
        assert_eq!(first, page, "the page of one tick changed");
    }
    assert!(by_tick.len() >= 6 && pages.len() > 3 * by_tick.len(), "{} ticks, {} pages", by_tick.len(), pages.len());
}

#[test]
fn the_documentation_lists_the_metrics_of_the_code() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    metrics::docs::check(&file, "probe 9500", probe_user::endpoints::metrics::DEFS).unwrap();
    metrics::docs::check(&file, "probe 9501", probe_user::endpoints::STATS_DEFS).unwrap();
    metrics::docs::check(&file, "probe 9505", probe_user::endpoints::GPU_DEFS).unwrap();
    metrics::docs::check(&file, "refused", http::rejections::DEFS).unwrap();
    let shared: Vec<_> = cli::program::DEFS.iter().chain(metrics::process::DEFS).copied().collect();
    metrics::docs::check(&file, "every port", &shared).unwrap();
}

#[test]
fn promtool_accepts_the_primary_metrics() {
    requires!(promtool);
    let probe = Probe::start(&["--energy.source=model", "--no-collector.cpu", "--no-compat-metrics"]);
    probe.client.mark().unwrap();
    let page = probe.client.text("/metrics").unwrap();
    let result = testkit::shell::feed(Command::new("promtool").args(["check", "metrics"]), &page).unwrap();
    assert_eq!(result, (true, String::new()));
}

#[test]
fn all_pages_are_served_and_well_formed() {
    let probe = model();
    assert_eq!(probe.client.text("/health").unwrap(), "OK");
    assert_eq!(probe.client.get("/ready").unwrap(), (200, "ready\n".into()));
    let landing = probe.client.text("/overview").unwrap();
    assert!(landing.contains("wattcast-probe") && landing.contains("<td>model</td><td>usable</td>"), "{landing}");
    assert_eq!(probe.client.get("/nothing").unwrap().0, 404);
    probe.client.mark().unwrap();
    let page = probe.client.text("/metrics").unwrap();
    assert_eq!(metrics::page::faults(&page), Vec::<String>::new());
    probe.metrics().assert_conserved();
}
