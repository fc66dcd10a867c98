//! Metrics that the service pushes: what a receiver stores equals `/metrics`.

#![cfg(feature = "export")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::process::Command;

use metrics::family::Def;
use support::{Database, NO_SERVER, Service};
use testkit::{api::Client, eventually, receiver::Receiver, requires, wait::eventually_ok};

#[test]
fn prometheus_stores_the_figures_of_every_port_once() {
    requires!(prometheus, promtool);
    let (database, dir) = (Database::prometheus(&[]), tempfile::tempdir().unwrap());
    let url = format!("--remote-write.url={}/api/v1/write", database.url);
    let service = Service::start(dir.path(), NO_SERVER, &[&url, "--push.interval=1s"]);
    let client = Client::new(&database.url);
    // Every port has the metrics of the process.
    eventually_ok(30.0, "the start of the process", || {
        let samples = service.client.metrics().unwrap();
        let started = samples.iter().find(|sample| sample.name == "process_start_time_seconds").unwrap().value;
        let answer =
            client.json("/api/v1/query?query=process_start_time_seconds").map_err(|error| error.to_string())?;
        let stored: Option<f64> = answer["data"]["result"][0]["value"][1].as_str().and_then(|text| text.parse().ok());
        let job = answer["data"]["result"][0]["metric"]["job"].as_str();
        let rows = answer["data"]["result"].as_array().map_or(0, Vec::len);
        if (stored, job, rows) == (Some(started), Some("wattcast-analysis"), 1) {
            Ok(())
        } else {
            Err(answer.to_string())
        }
    });
    for name in ["wattcast_results_files", "wattcast_target_healthy"] {
        eventually(30.0, name, || {
            let answer = client.json(&format!("/api/v1/query?query={name}")).unwrap();
            !answer["data"]["result"].as_array().unwrap().is_empty()
        });
    }
}

#[test]
fn otlp_requests_have_the_headers_of_the_protocol() {
    let (receiver, dir) = (Receiver::start().unwrap(), tempfile::tempdir().unwrap());
    let url = format!("--otlp.endpoint={}", receiver.url());
    let _service = Service::start(dir.path(), NO_SERVER, &[&url, "--push.interval=1s"]);
    eventually(30.0, "a request", || !receiver.accepted().is_empty());
    let request = receiver.accepted().remove(0);
    assert_eq!(request.path, "/v1/metrics");
    let header = |name: &str| request.headers[name].clone();
    assert_eq!(header("content-type"), "application/x-protobuf");
    assert_eq!(header("content-encoding"), "gzip");
    assert!(header("user-agent").starts_with("wattcast-analysis/"));
}

/// They ended the service, although nothing was to be pushed.
#[test]
fn variables_for_other_programs_do_not_end_the_service() {
    let code = |args: &[&str]| {
        let others = [
            ("OTEL_METRIC_EXPORT_INTERVAL", "500"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b,"),
        ];
        let mut command = Command::new(support::binary());
        command.args(["serve", "--config.check"]).args(args).envs(others);
        command.output().unwrap().status.code()
    };
    assert_eq!(code(&[]), Some(0));
    assert_eq!(code(&["--otlp.endpoint=http://127.0.0.1:4318"]), Some(0));
    assert_eq!(code(&["--push.timeout=10"]), Some(64), "a flag is the service's own");
}

#[test]
fn no_two_metrics_have_one_name_in_opentelemetry() {
    let mut defs: Vec<&'static Def> = analysis::pages::scenarios::defs();
    defs.extend(analysis::pages::quality::defs());
    defs.extend(analysis::pages::cost::defs());
    for other in [
        analysis::streams::page::DEFS,
        analysis::streams::nginx::DEFS,
        analysis::streams::ingest::page::DEFS,
        analysis::health::page::DEFS,
        export::counters::DEFS,
        cli::program::DEFS,
        metrics::process::DEFS,
    ] {
        defs.extend(other.iter().copied());
    }
    let conflicts = export::names::conflicts(&defs);
    assert!(conflicts.is_empty(), "{conflicts:?}");
    let unknown = export::names::unknown(&defs, &["nginx_rtmp_", "wattcast_ingest_", "wattcast_stream_"]);
    assert!(unknown.is_empty(), "{unknown:?}");
}
