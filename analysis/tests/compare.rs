//! Comparisons and reports of complete result files: verdicts, incomparable metrics, and hostile
//! input.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::sync::Arc;

use experiment::{
    compare::{Comparison, Metric, Verdict, by::compare_by, compare, refusals},
    report,
};
use results::{
    cost::Prices,
    energy::{EnergySources, Scope},
    model::Model,
    store,
};
use serde_json::{Value, json};

/// A repeat with energy of the host from `source`, and an output size.
fn repeat(n: usize, joules: f64, source: &str, bytes: u64) -> Value {
    json!({
        "n": n, "status": "ok", "frames": { "encoded": 300, "dropped": 0 }, "bytes": bytes, "media_seconds": 10.0,
        "window": { "start_unix_ns": 1_795_176_000_000_000_000_u64 + n as u64 * 20_000_000_000, "end_unix_ns": 1_795_176_010_000_000_000_u64 + n as u64 * 20_000_000_000, "seconds": 10.0 },
        "energy": [{ "scope": "host", "domain": "package-0", "source": source, "microjoules": (joules * 1e6).round() as u64 }],
    })
}

fn cell(bitrate: &str, repeats: Vec<Value>) -> Value {
    json!({
        "name": format!("x264 {bitrate}"), "content": { "sha256": "c" }, "repeats": repeats,
        "axes": { "encoder": "libx264", "preset": "fast", "bitrate": bitrate, "width": 640, "height": 360, "frames_per_second": 30, "streams": 1 },
    })
}

fn file(cells: Vec<Value>) -> Value {
    json!({ "schema": "wattcast/results/2", "run": { "id": "r", "started": "2026-11-20T12:00:00Z", "status": "ok", "seed": 1 }, "host": { "name": "h" }, "cells": cells })
}

fn model(file: &Value) -> Model {
    let run = Arc::new(store::parse("20261120_120000", file.to_string().as_bytes()).unwrap());
    let answers = run.scenarios.iter().map(EnergySources::from_file).collect();
    Model::new(&[(run, answers)], Scope::Container, &Prices::defaults())
}

fn of(a: &Value, b: &Value) -> Comparison {
    compare(&model(a), &model(b), &Metric::ALL, 0.0)
}

fn verdicts(found: &Comparison, metric: Metric) -> Vec<Verdict> {
    found.rows.iter().filter(|row| row.metric == metric).map(|row| row.verdict).collect()
}

fn plain(joules: &[f64]) -> Value {
    let repeats = joules.iter().enumerate().map(|(n, joules)| repeat(n + 1, *joules, "perf", 625_000));
    file(vec![cell("500k", repeats.collect())])
}

#[test]
fn differences_are_found_and_constant_values_are_the_same() {
    let (few, more) = (plain(&[10.0, 10.1, 10.2]), plain(&[12.0, 12.1, 12.3]));
    let found = of(&few, &more);
    assert_eq!(verdicts(&found, Metric::Energy), [Verdict::Worse]);
    assert_eq!(verdicts(&found, Metric::Rate), [Verdict::Same]);
    assert_eq!(verdicts(&of(&more, &few), Metric::Energy), [Verdict::Better]);
    for count in [7, 10, 20] {
        let found = of(&plain(&[0.1; 3]), &plain(&vec![0.1; count]));
        assert_eq!((verdicts(&found, Metric::Energy), found.is_incomplete()), (vec![Verdict::Same], false), "{count}");
    }
    // From zero to something.
    assert_eq!(verdicts(&of(&plain(&[0.0; 3]), &plain(&[50.0; 3])), Metric::Energy), [Verdict::Worse]);
}

#[test]
fn incomparable_metrics_have_a_reason_and_are_incomplete() {
    let a = plain(&[10.0, 10.1, 10.2]);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut file = a.clone();
        change(&mut file["cells"][0]);
        file
    };
    let failed = with(&|cell| {
        for repeat in cell["repeats"].as_array_mut().unwrap() {
            repeat["status"] = json!("failed");
        }
    });
    let other_source = with(&|cell| cell["content"]["sha256"] = json!("d"));
    let modelled = with(&|cell| {
        for repeat in cell["repeats"].as_array_mut().unwrap() {
            repeat["energy"][0]["source"] = json!("model");
        }
    });
    let mixed = with(&|cell| cell["repeats"][1]["energy"][0]["source"] = json!("model"));
    let larger = with(&|cell| cell["axes"]["width"] = json!(1280));
    let single = plain(&[10.0]);
    for (what, b, word) in [
        ("failed", &failed, "missing or failed in the candidate"),
        ("another source", &other_source, "different sources"),
        ("modelled", &modelled, "energy from different sources"),
        ("mixed", &mixed, "missing in at least one of the runs"),
        ("another size", &larger, "missing or failed in the candidate"),
        ("single", &single, "a single measurement has no variance"),
    ] {
        let found = of(&a, b);
        let energy = found.rows.iter().find(|row| row.metric == Metric::Energy).unwrap();
        assert!(energy.verdict == Verdict::Unknown && energy.why.contains(word), "{what}: {energy:?}");
        assert!(found.is_incomplete(), "{what}");
    }
}

#[test]
fn a_score_shared_by_all_repeats_is_not_tested() {
    let scored = |value: f64| {
        let mut file = plain(&[10.0, 10.1, 10.2]);
        file["cells"][0]["quality"] = json!([{ "metric": "vmaf", "value": value, "model": "m", "pooling": "mean" }]);
        file
    };
    let found = of(&scored(90.0), &scored(89.9));
    assert_eq!(verdicts(&found, Metric::Vmaf), [Verdict::Unknown]);
    let model = model(&scored(90.0));
    let intervals = analysis::pages::quality::families(&model, &[])
        .find(|family| family.def().name == "wattcast_cell_vmaf_interval_score")
        .unwrap();
    assert_eq!(intervals.rows().count(), 0, "a single value has no interval");
}

#[test]
fn curves_have_bjontegaard_deltas_unless_sources_differ() {
    let curve = |factor: f64, content: &str| {
        let cells = [("500k", 80.0), ("1M", 88.0), ("2M", 93.0), ("4M", 96.0)].map(|(bitrate, vmaf)| {
            let rate = experiment::runner::plan::parse_bitrate(bitrate).unwrap();
            let repeats = [1.0, 1.01, 0.99].iter().enumerate().map(|(n, noise)| {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of a test")]
                let mut one = repeat(n + 1, factor * rate / 1e5 * noise, "perf", (rate * 10.0 / 8.0 * factor) as u64);
                one["quality"] = json!([{ "metric": "vmaf", "value": vmaf, "model": "m", "pooling": "mean" }]);
                one
            });
            let mut cell = cell(bitrate, repeats.collect());
            cell["content"]["sha256"] = json!(content);
            cell
        });
        file(cells.to_vec())
    };
    let found = of(&curve(1.0, "c"), &curve(1.2, "c"));
    for (measure, wanted) in [("BD-rate", 20.0), ("BD-energy", 20.0)] {
        let delta = found.curves.iter().find(|delta| delta.measure == measure).unwrap();
        assert!(
            (delta.percent.unwrap() - wanted).abs() < 0.01 && (delta.akima_percent.unwrap() - wanted).abs() < 0.01,
            "{delta:?}"
        );
        let (low, high) = delta.interval_percent.unwrap();
        assert!(low <= wanted + 0.01 && high >= wanted - 0.01, "{delta:?}");
    }
    let refused = of(&curve(1.0, "c"), &curve(1.2, "d"));
    assert!(
        refused
            .curves
            .iter()
            .all(|delta| delta.refused.as_deref().is_some_and(|why| why.contains("different sources")))
    );
    let lines = refusals(&refused.curves);
    assert!(lines.len() == 1 && lines[0].contains("BD-rate, BD-energy"), "a reason is told once: {lines:?}");
}

#[test]
fn runs_with_known_and_unknown_idle_power_are_not_compared() {
    let with = |known: Option<bool>| {
        let mut file = plain(&[10.0, 10.1, 10.2]);
        for repeat in file["cells"][0]["repeats"].as_array_mut().unwrap() {
            let joules = repeat["energy"][0]["microjoules"].as_u64().unwrap() / 10;
            let container =
                json!({ "scope": "container", "domain": "package-0", "source": "perf", "microjoules": joules });
            repeat["energy"].as_array_mut().unwrap().push(container);
            if let Some(known) = known {
                repeat["idle_known"] = json!(known);
            }
        }
        file
    };
    let energy = |found: &Comparison| found.rows.iter().find(|row| row.metric == Metric::Energy).unwrap().clone();
    let different = of(&with(Some(true)), &with(Some(false)));
    let row = energy(&different);
    assert!(row.verdict == Verdict::Unknown && row.why.contains("idle power") && row.incomplete, "{row:?}");
    // A file that does not say is compared, with a note.
    let old = of(&with(None), &with(Some(true)));
    assert_eq!(energy(&old).verdict, Verdict::Same);
    assert!(old.notes.iter().any(|note| note.contains("baseline does not say")), "{:?}", old.notes);
    assert!(of(&with(Some(true)), &with(Some(true))).notes.is_empty());
}

#[test]
fn encoders_of_one_run_are_compared_in_one_line() {
    let encoder = |encoder: &str, joules: f64| {
        let noise = [0.99, 1.0, 1.01].iter().enumerate();
        let repeats = noise.map(|(n, noise)| repeat(n + 1, joules * noise, "perf", 625_000));
        let mut cell = cell("500k", repeats.collect());
        (cell["name"], cell["axes"]["encoder"]) = (json!(format!("{encoder} 500k")), json!(encoder));
        cell
    };
    let run = model(&file(vec![encoder("libx264", 10.0), encoder("libx265", 20.0)]));
    let found = compare_by(&run, "encoder", &Metric::ALL, 0.0).unwrap();
    let text = found.text(false);
    let line =
        "By encoder: the energy per frame of libx265 is 100 % higher than that of libx264 in 1 of 1 configuration.";
    assert_eq!(text.lines().collect::<Vec<_>>(), [line], "no curves, so no deltas");
    assert!(!found.is_empty() && found.text(true).contains("WORSE"), "{}", found.text(true));
    let error = |by: &str| compare_by(&run, by, &Metric::ALL, 0.0).unwrap_err();
    assert!(error("encodr").contains("did you mean encoder?"), "{}", error("encodr"));
    assert!(error("resolution").contains("nothing to compare"), "{}", error("resolution"));
}

#[test]
fn curves_of_one_run_have_their_deltas_as_sentences() {
    let encoder = |encoder: &str, factor: f64| {
        [("500k", 80.0), ("1M", 88.0), ("2M", 93.0), ("4M", 96.0)].map(|(bitrate, vmaf)| {
            let rate = experiment::runner::plan::parse_bitrate(bitrate).unwrap();
            let repeats = [1.0, 1.01, 0.99].iter().enumerate().map(|(n, noise)| {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of a test")]
                let mut one = repeat(n + 1, factor * rate / 1e5 * noise, "perf", (rate * 10.0 / 8.0) as u64);
                one["quality"] = json!([{ "metric": "vmaf", "value": vmaf, "model": "m", "pooling": "mean" }]);
                one
            });
            let mut cell = cell(bitrate, repeats.collect());
            (cell["name"], cell["axes"]["encoder"]) = (json!(format!("{encoder} {bitrate}")), json!(encoder));
            cell
        })
    };
    let run = model(&file([encoder("libx264", 1.0), encoder("libx265", 1.5)].concat()));
    let found = compare_by(&run, "encoder", &[Metric::Energy], 0.0).unwrap();
    let start = "By encoder: for the same VMAF the energy use of libx265 is 50 % higher than that of libx264 (95 %: ";
    let text = found.text(false);
    assert!(text.starts_with(start), "{text}");
    assert!(text.contains("\n  for the same VMAF the energy use of libx265 fast is"), "{text}");
}

#[test]
fn tables_have_readable_numbers() {
    let few = plain(&[10.0, 10.1, 10.2]);
    let table = of(&few, &few).table();
    assert!(table.contains("500 kbit/s → 500 kbit/s") && !table.contains("e5"), "{table}");
}

#[test]
fn a_report_escapes_its_input_and_always_ends() {
    let html = |file: &Value| report::html(&model(file), file, &Prices::defaults());
    let evil = "<script>alert(1)</script>";
    let mut file = plain(&[10.0, 10.1, 10.2]);
    for path in ["/run/id", "/run/started", "/run/status", "/host/name", "/cells/0/name", "/cells/0/axes/encoder"] {
        *file.pointer_mut(path).unwrap() = json!(evil);
    }
    file["run"]["seed"] = json!(evil);
    file["run"]["name"] = json!(evil);
    file["preflight"] = json!([{ "check": evil, "state": evil, "detail": evil }]);
    file["baselines"] = json!([{ "id": evil, "note": evil, "power_watts": { "mean": 1.0, "count": 3 } }]);
    file["tools"] = json!({ "ffmpeg": { "version": evil } });
    let page = html(&file);
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "{page}");

    for (what, change) in [
        ("watts", json!({ "samples": { "step_seconds": 1.0, "power_watts": [1.7e308, 0.0, 3.0] } })),
        ("tiny media", json!({ "media_seconds": 1e-290 })),
        ("huge media", json!({ "media_seconds": 1e300 })),
        ("no energy", json!({ "energy": [] })),
        ("no frames", json!({ "frames": {} })),
        ("many samples", json!({ "samples": { "step_seconds": 0.001, "power_watts": vec![5.0; 100_000] } })),
    ] {
        let mut file = plain(&[10.0, 10.1, 10.2]);
        for repeat in file["cells"][0]["repeats"].as_array_mut().unwrap() {
            repeat.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            repeat["quality"] = json!([{ "metric": "vmaf", "value": 90.0, "model": "m", "pooling": "mean" }]);
        }
        let page = html(&file);
        assert!(page.ends_with("</html>\n") && page.len() < 2_000_000, "{what}: {}", page.len());
        if what == "no energy" {
            assert!(page.contains("No energy is known"), "{page}");
        }
    }
    assert!(html(&plain(&[])).ends_with("</html>\n"));
}
