//! The streams of MediaMTX and SRS on port 9728, from recorded answers, joined with the encoders of
//! a probe.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use metrics::label;
use support::{NO_SERVER, Service};
use testkit::{api::Sample, wait::eventually_ok};

/// A server that answers each path with a body, or with 404; returns its URL.
fn serve(answer: impl Fn(&str) -> Option<String> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default();
            let (status, body) = match answer(path) {
                Some(body) => ("200 OK", body),
                None => ("404 Not Found", String::new()),
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        }
    });
    url
}

fn recorded(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
}

fn mediamtx() -> String {
    serve(|path| path.starts_with("/v3/paths/list?").then(|| recorded("mediamtx_paths.json")))
}

fn srs() -> String {
    serve(|path| match path.split('?').next() {
        Some("/api/v1/streams") => Some(recorded("srs_streams.json")),
        Some("/api/v1/clients") => Some(recorded("srs_clients.json")),
        _ => None,
    })
}

/// A probe with one encoder that publishes `live/hunter2`, ten joules more at each request.
fn probe() -> String {
    static REQUESTS: AtomicU64 = AtomicU64::new(0);
    serve(|path| {
        let joules = 1000 + 10 * REQUESTS.fetch_add(1, Ordering::Relaxed);
        let target = label::digest("live/hunter2");
        path.starts_with("/api/v1/streams").then(|| {
            format!(
                r#"{{"probe_started": 1.5, "jobs": [{{"job": 1, "streams": ["rtmp-1"], "container": "enc", "source": "perf",
                "published": [{{"stream": "rtmp-1", "joules": {joules}.5, "targets": ["{target}"]}}]}}]}}"#
            )
        })
    })
}

fn start(probe: &str, flags: &[&str]) -> (Service, tempfile::TempDir) {
    let results = tempfile::tempdir().unwrap();
    let no_nginx = format!("--nginx.url={NO_SERVER}/stat");
    let all = [&[&*no_nginx, "--nginx.interval=300ms"][..], flags].concat();
    (Service::start(results.path(), probe, &all), results)
}

fn value(page: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let has =
        |sample: &&Sample| sample.name == name && labels.iter().all(|(label, value)| sample.label(label) == *value);
    page.iter().find(has).map(|sample| sample.value)
}

/// Waits for a page with a sample.
fn page_with(service: &Service, name: &str, labels: &[(&str, &str)]) -> Vec<Sample> {
    let client = service.port(2);
    eventually_ok(20.0, name, || {
        let page = client.metrics().map_err(|error| format!("{error:#}\n{}", service.log()))?;
        if value(&page, name, labels).is_some() {
            Ok(page)
        } else {
            Err(format!("{}\n{}", client.text("/metrics").unwrap_or_default(), service.log()))
        }
    })
}

#[test]
fn both_servers_have_the_same_names_and_no_key_is_shown() {
    let (mediamtx, srs) = (format!("--mediamtx.url={}", mediamtx()), format!("--srs.url={}", srs()));
    let (service, _results) = start(NO_SERVER, &[&mediamtx, &srs]);
    page_with(&service, "wattcast_ingest_viewers", &[("server", "mediamtx")]);
    let page = page_with(&service, "wattcast_ingest_viewers", &[("server", "srs")]);
    let stream = label::digest("live/hunter2");
    for (server, received, sent, viewers) in
        [("mediamtx", 123_456_789.0, 370_370_367.0, 3.0), ("srs", 40_000_000.0, 80_000_000.0, 2.0)]
    {
        let of = |name: &str| {
            let labels = [("server", server), ("app", "live"), ("stream", &*stream)];
            value(&page, &format!("wattcast_ingest_stream_{name}"), &labels)
        };
        assert_eq!(of("received_bytes_total"), Some(received), "{server}");
        assert_eq!(of("sent_bytes_total"), Some(sent), "{server}");
        assert_eq!((of("viewers"), of("publishers")), (Some(viewers), Some(1.0)), "{server}");
        assert_eq!(value(&page, "wattcast_ingest_up", &[("server", server)]), Some(1.0));
        assert_eq!(value(&page, "wattcast_ingest_streams", &[("server", server)]), Some(2.0));
    }
    assert_eq!(value(&page, "wattcast_ingest_up", &[("server", "nginx"), ("reason", "absent")]), Some(0.0));
    assert_eq!(value(&page, "wattcast_ingest_streams", &[("server", "nginx")]), None, "unknown is not zero");
    for text in [service.port(2).text("/metrics").unwrap(), service.log()] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_stream_of_srs_has_all_of_its_viewers() {
    // 1,199 of them and the publisher, in parts.
    let clients = |path: &str| -> String {
        let from = path.split("start=").nth(1).and_then(|rest| rest.split('&').next()?.parse().ok()).unwrap_or(0);
        let client =
            |number: u32| format!(r#"{{"id": "c{number}", "stream": "vid-0l2s9p8", "publish": {}}}"#, number == 1199);
        let part: Vec<String> = (from..1200).take(500).map(client).collect();
        format!(r#"{{"code": 0, "clients": [{}]}}"#, part.join(","))
    };
    let url = serve(move |path| match path.split('?').next() {
        Some("/api/v1/streams") => Some(recorded("srs_streams.json")),
        Some("/api/v1/clients") => Some(clients(path)),
        _ => None,
    });
    let (service, _results) = start(NO_SERVER, &[&format!("--srs.url={url}"), "--mediamtx.url="]);
    let page = page_with(&service, "wattcast_ingest_viewers", &[("server", "srs")]);
    assert_eq!(value(&page, "wattcast_ingest_viewers", &[("server", "srs")]), Some(1199.0));
}

#[test]
fn the_page_of_metrics_of_mediamtx_serves_too() {
    let url = serve(|path| (path == "/metrics").then(|| recorded("mediamtx_metrics.txt")));
    let (service, _results) = start(NO_SERVER, &[&format!("--mediamtx.url={url}/metrics"), "--srs.url="]);
    let page = page_with(&service, "wattcast_ingest_viewers", &[("server", "mediamtx")]);
    assert_eq!(value(&page, "wattcast_ingest_viewers", &[]), Some(3.0));
    assert_eq!(value(&page, "wattcast_ingest_up", &[("server", "srs")]), None, "it is switched off");
}

#[test]
fn an_encoder_is_joined_with_its_stream_by_the_digest_of_the_key() {
    let mediamtx = format!("--mediamtx.url={}", mediamtx());
    let (service, _results) = start(&probe(), &[&mediamtx, "--srs.url="]);
    let stream = label::digest("live/hunter2");
    let labels = [("app", "live"), ("stream", &*stream), ("source", "perf")];
    let page = page_with(&service, "wattcast_ingest_encoder_joules_total", &labels);
    let joules = value(&page, "wattcast_ingest_encoder_joules_total", &labels).unwrap();
    assert!(joules < 1000.0 && joules % 10.0 == 0.0, "{joules} J: what was used before the join is left out");
    // No figure before a minute.
    assert_eq!(value(&page, "wattcast_ingest_energy_per_viewer_hour_joules", &[]), None);
}

#[test]
fn a_server_that_was_named_and_is_absent_makes_the_page_unready() {
    let (service, _results) = start(NO_SERVER, &[&format!("--srs.url={NO_SERVER}"), "--mediamtx.url="]);
    page_with(&service, "wattcast_ingest_up", &[("server", "srs"), ("reason", "absent")]);
    let (status, text) = service.port(2).get("/ready").unwrap();
    assert_eq!(status, 503);
    assert!(text.contains("srs: http://127.0.0.1:1: cannot be reached"), "{text}");
}
