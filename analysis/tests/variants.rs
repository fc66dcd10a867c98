//! Formats of result files: each is parsed without losing fields, and our own matches its schema.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::{path::Path, process::Command};

use proptest::prelude::*;
use results::{
    energy::{EnergyMethod, EnergySources, Scope},
    run::{Run, Variant},
    store,
};
use serde_json::{Value, json};
use testkit::{require, requires, shell::output};
use units::Microjoules;

const TWO: &str = include_str!("data/test_results_20261120_120000.json");

/// A file of the Python runner, as in analysis.md.
const A: &str = r#"{"test_date": "2026-01-15T10:30:00", "scenarios": [
    {"name": "Baseline (Idle)", "bitrate": "0k", "resolution": "N/A", "fps": 0, "duration": 120, "encoder": "none", "preset": null,
     "start_time": 1768473000.25, "end_time": 1768473120.25, "outputs": null},
    {"name": "3 streams ladder", "bitrate": "2500k,1000k", "resolution": "1920x1080", "fps": 30, "duration": 300, "encoder": "h264_nvenc",
     "preset": "p4", "start_time": 1768473200, "end_time": 1768473500, "viewers": 12, "gpu_power": {"mean_watts": 61.5},
     "outputs": [{"resolution": "1280x720", "fps": 30}, {"resolution": "1920x1080", "fps": 30}]}]}"#;

/// A file of the scheduler.
const C: &str = r#"{"test_date": "2026-01-15T10:30:00Z", "test_metadata": {"timestamp": "x", "platform": "distributed", "source": "scheduler"},
    "scenarios": [
    {"name": "job-1", "bitrate": "0k", "duration": 1.5, "encoder_type": "ffmpeg", "start_time": 1768400000, "end_time": 1768473500,
     "power_watts": [50.5], "step_seconds": 1.5},
    {"name": "job-2", "bitrate": 2500, "duration": 10, "encoder_type": "auto", "start_time": 1768473500, "end_time": 1768473510,
     "energy_joules": 505.25, "efficiency_score": 7, "qoe_score": 4.2}]}"#;

/// The file as a run kept it.
fn kept(run: &Run) -> Value {
    serde_json::from_str(&run.text).unwrap()
}

#[test]
fn every_format_is_detected_without_loss() {
    let sample = include_str!("data/test_results_20240115_103000.json");
    for (text, variant, count) in
        [(A, Variant::A, 2), (sample, Variant::B, 4), (C, Variant::C, 2), (TWO, Variant::V2, 2)]
    {
        let run = store::parse("x", text.as_bytes()).unwrap();
        assert_eq!((run.variant, run.scenarios.len()), (variant, count));
        assert_eq!(kept(&run), serde_json::from_str::<Value>(text).unwrap());
    }
}

#[test]
fn runner_and_scheduler_files_are_interpreted() {
    let run = store::parse("x", A.as_bytes()).unwrap();
    let [rest, ladder] = &*run.scenarios else { panic!("{run:?}") };
    assert!(rest.is_baseline() && rest.bits_per_second().is_none() && rest.fps.is_none());
    assert_eq!((ladder.stream_count(), ladder.bits_per_second(), ladder.viewers), (Some(3), Some(3.5e6), Some(12.0)));
    assert_eq!(
        (&*ladder.encoder, &*ladder.preset, &*ladder.ladder()),
        ("h264_nvenc", "p4", "1920x1080@30,1280x720@30")
    );
    let run = store::parse("x", C.as_bytes()).unwrap();
    let [mean, stated] = &*run.scenarios else { panic!("{run:?}") };
    assert_eq!(mean.window(), Some((1_768_473_498.5, 1_768_473_500.0)), "start_time is when the job was queued");
    let energy = |at: usize| EnergySources::from_file(&run.scenarios[at]).energy.unwrap();
    assert_eq!(
        (energy(0).total(Scope::Host), energy(0).coverage),
        (Some(Microjoules(75_750_000)), Some(1.0)),
        "mean power times length"
    );
    assert_eq!(
        (energy(1).total(Scope::Host), energy(1).method),
        (Some(Microjoules(505_250_000)), EnergyMethod::Counters)
    );
    assert_eq!((&*stated.bitrate, stated.file_qoe), ("2500k", Some(4.2)));
}

#[test]
fn schema_2_files_have_counters_and_failures() {
    let run = store::parse("20261120_120000", TWO.as_bytes()).unwrap();
    assert_eq!(run.host.as_deref(), Some("enc-1"));
    assert_eq!(run.problems, ["x264 veryfast 4M, repeat 2: failed encoder ended with signal 9"]);
    let [first, third] = &*run.scenarios else { panic!("{run:?}") };
    assert_eq!((&*first.name, &*third.name), ("x264 veryfast 4M", "x264 veryfast 4M #2"));
    assert_eq!((first.window(), first.seconds()), (Some((1_795_176_060.0, 1_795_176_160.5)), Some(100.5)));
    let energy = EnergySources::from_file(first).energy.unwrap();
    assert_eq!((energy.method, energy.total(Scope::Host)), (EnergyMethod::Counters, Some(Microjoules(8_100_000_001))));
    assert_eq!(energy.total(Scope::Container), Some(Microjoules(4_000_000_000)));
    assert_eq!((first.cpu_seconds, first.reserved_cores, first.media_seconds), (Some(150.25), Some(4.0), Some(200.0)));
    let vmaf = first.quality.vmaf.as_ref().unwrap();
    assert_eq!((vmaf.value, &*vmaf.model, &*vmaf.pooling), (93.25, "vmaf_v0.6.1", "mean"));
    assert_eq!(first.quality.psnr.as_ref().map(|score| score.value), Some(41.5));
    assert!(first.quality.ssim.is_none() && third.quality.vmaf.is_some());
    assert_eq!(first.baseline.as_ref().map(|baseline| baseline.watts), Some(21.5));
    for (wrong, word) in [
        (TWO.replace("results/2", "results/3"), "its schema is"),
        (TWO.replace("\"cells\"", "\"sells\""), "without a list `cells`"),
    ] {
        assert!(store::parse("x", wrong.as_bytes()).unwrap_err().contains(word), "{word}");
    }
    let lost = store::parse("x", TWO.replace("\"baseline\": \"b1\"", "\"baseline\": \"b9\"").as_bytes()).unwrap();
    assert!(lost.scenarios.is_empty() && lost.problems[0].contains("b9"), "{:?}", lost.problems);
}

/// Validated with the Python package jsonschema.
#[test]
fn the_schema_accepts_the_example_and_rejects_faults() {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/results-schema.json");
    requires!(jsonschema);
    let (python, _) = require::python("import jsonschema").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let faulty = [
        ("energy.json", "\"microjoules\": 2100000000", "\"microjoules\": -1"),
        ("status.json", "\"status\": \"failed\"", "\"status\": \"sort of\""),
        ("schema.json", "results/2", "results/3"),
        ("scope.json", "\"scope\": \"container\"", "\"scope\": \"planet\""),
    ];
    let mut files = vec![dir.path().join("whole.json")];
    std::fs::write(&files[0], TWO).unwrap();
    for (name, from, to) in faulty {
        files.push(dir.path().join(name));
        std::fs::write(dir.path().join(name), TWO.replace(from, to)).unwrap();
    }
    let program = "import json, sys, jsonschema\n\
                   schema = json.load(open(sys.argv[1]))\n\
                   kind = getattr(jsonschema, 'Draft202012Validator', jsonschema.Draft7Validator)\n\
                   kind.check_schema(schema)\n\
                   for name in sys.argv[2:]:\n    \
                       print(len(list(kind(schema).iter_errors(json.load(open(name))))))";
    let counts = output(Command::new(python).args(["-c", program]).arg(&schema).args(&files)).unwrap();
    let counts: Vec<&str> = counts.lines().collect();
    assert_eq!((counts.len(), counts[0]), (files.len(), "0"));
    for (count, file) in counts[1..].iter().zip(&files[1..]) {
        assert_ne!(*count, "0", "{}", file.display());
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e9f64..1e9).prop_map(Value::from),
        "[a-z \"\\\\\n]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            proptest::collection::btree_map("[a-z_]{1,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Unknown fields of rows and files are kept.
    #[test]
    fn unknown_fields_are_kept(extra in proptest::collection::btree_map("x_[a-z]{1,8}", any_json(), 0..6), count in 1usize..4) {
        let extra: serde_json::Map<String, Value> = extra.into_iter().collect();
        let rows: Vec<Value> = (0..count).map(|number| {
            let mut row = extra.clone();
            row.insert("name".into(), json!(format!("s{number}")));
            Value::Object(row)
        }).collect();
        let mut file = extra.clone();
        file.insert("scenarios".into(), Value::Array(rows));
        let file = Value::Object(file);
        let run = store::parse("x", file.to_string().as_bytes()).unwrap();
        prop_assert!(run.problems.is_empty());
        prop_assert_eq!(kept(&run), serde_json::from_str::<Value>(&file.to_string()).unwrap());
    }
}
