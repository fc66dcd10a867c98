//! The live page's API of the real program: its answers, a restart, and recordings.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{fs, path::Path, process::Command};

use serde_json::Value;
use support::Probe;
use testkit::{program::Program, wait::eventually_ok};

fn model(flags: &[&str]) -> Probe {
    let all = [&["--energy.source=model", "--no-collector.cpu", "--no-collector.gpu", "--tick=100ms"], flags].concat();
    Probe::start(&all)
}

/// The known values of a column.
fn known(column: &Value) -> Vec<f64> {
    column.as_array().unwrap().iter().filter_map(Value::as_f64).collect()
}

#[test]
fn the_page_and_its_data_are_served() {
    let probe = model(&[]);
    let page = probe.client.text("/").unwrap();
    assert!(page.contains("<!doctype html>") && page.contains("/overview"), "{page}");
    eventually_ok(10.0, "some ticks with power", || {
        let now = probe.client.json("/api/v1/now").unwrap_or_default();
        if now["watts"]["host"].as_f64().is_some_and(|watts| watts > 0.0) { Ok(()) } else { Err(now) }
    });
    let now = probe.client.json("/api/v1/now?containers=5").unwrap();
    assert_eq!(now["banners"][0]["kind"], "MODELLED");
    let layers = now["watts"]["layers"].as_object().unwrap().values().filter_map(Value::as_f64);
    assert!((layers.sum::<f64>() - now["watts"]["host"].as_f64().unwrap()).abs() < 1e-4, "{now}");
    let series = probe.client.json("/api/v1/series?seconds=10&step=0.1").unwrap();
    assert!(!known(&series["host"]).is_empty(), "{series}");
    for wrong in ["/api/v1/series?step=x", "/api/v1/series?seconds=-1", "/api/v1/now?containers=x"] {
        let (status, answer) = probe.client.get(wrong).unwrap();
        assert!(status == 400 && answer.contains("invalid_query"), "{wrong}: {answer}");
    }
}

#[test]
fn a_price_is_shown_in_the_page_and_in_no_metric() {
    let now = |probe: &Probe| {
        eventually_ok(10.0, "a tick", || {
            let now = probe.client.json("/api/v1/now").unwrap_or_default();
            if now["time"].is_number() { Ok(now) } else { Err(now) }
        })
    };
    let probe = model(&["--energy.price=0.36", "--currency=EUR"]);
    let priced = now(&probe);
    assert_eq!(priced["currency"], "EUR");
    assert!((priced["price_per_joule"].as_f64().unwrap() - 1e-7).abs() < 1e-15, "{priced}");
    assert!(!probe.client.text("/metrics").unwrap().contains("EUR"));
    // A build machine may have the variable of the flag.
    if std::env::var_os("ENERGY_COST_PER_KWH").is_none() {
        let unpriced = now(&model(&[]));
        assert!(unpriced["currency"].is_null() && unpriced["price_per_joule"].is_null(), "{unpriced}");
    }
}

#[test]
fn ticks_survive_a_restart_and_the_gap_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let state = format!("--state.dir={}", dir.path().display());
    let before = model(&[&state]);
    let points = |probe: &Probe| {
        let series = probe.client.json("/api/v1/series?seconds=60&step=0.1").unwrap_or_default();
        let points = if series["host"].is_array() { known(&series["host"]).len() } else { 0 };
        (points, series)
    };
    eventually_ok(20.0, "two seconds of ticks", || {
        let (points, series) = points(&before);
        if points >= 20 { Ok(()) } else { Err(series) }
    });
    assert!(before.program.stop().unwrap().success());
    let segments: Vec<_> = fs::read_dir(dir.path().join("history")).unwrap().collect();
    assert_eq!(segments.len(), 1, "{segments:?}");
    // Neither is a file of the history.
    fs::write(dir.path().join("history/ticks-00000000000000000001.rec"), "torn").unwrap();
    fs::write(dir.path().join("history/other"), "foreign").unwrap();

    let after = model(&[&state]);
    eventually_ok(20.0, "the ticks before the restart", || {
        let (points, series) = points(&after);
        let restarted = series["events"]
            .as_array()
            .is_some_and(|events| events.iter().any(|event| event["text"] == "probe restarted"));
        if restarted && points >= 20 { Ok(()) } else { Err(series) }
    });
    let none = model(&[&state, "--history.keep=0"]);
    assert!(none.client.json("/api/v1/series?seconds=60").unwrap()["events"].as_array().unwrap().is_empty());
}

#[test]
fn a_recording_is_shown_in_the_page() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/three-to-one.rec");
    let logs = tempfile::tempdir().unwrap();
    let mut command = Command::new(support::binary());
    command.arg("view").arg(&golden).arg("--web.listen-address=127.0.0.1:0");
    let mut program = Program::start("view", &mut command, logs.path()).unwrap();
    let client = program.client().unwrap();
    assert!(client.text("/").unwrap().contains("<!doctype html>"));
    let now = client.json("/api/v1/now").unwrap();
    assert_eq!(now["banners"][0]["kind"], "RECORDING");
    let text = now["banners"][0]["text"].as_str().unwrap();
    assert!(text.contains("three-to-one.rec, from ") && !text.contains("cut off"), "{text}");
    assert_eq!(now["host"], "", "the recording is of another host than this one, and has no name");
    let series = client.json("/api/v1/series?seconds=300&step=1").unwrap();
    assert!(known(&series["host"]).len() > 250, "{series}");
    assert_eq!(series["containers"].as_array().unwrap().len(), 2);
    assert_eq!(client.text("/health").unwrap(), "OK");
    assert!(program.stop().unwrap().success());
}
