//! The HTML pages of the running service.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

mod support;

use std::path::Path;

use support::{NO_SERVER, Service, write};
use testkit::wait::eventually_ok;

const SAMPLE: &str = include_str!("data/test_results_20240115_103000.json");
const PATHS: [&str; 7] = ["/overview", "/results", "/quality", "/cost", "/streams", "/exporters", "/runbooks"];

fn start(dir: &Path) -> Service {
    write(dir, "20240115_103000", SAMPLE);
    write(
        dir,
        "20240116_000000",
        r#"{"host":"<script>alert(1)</script>","scenarios":[{"name":"<script>alert(2)</script>","duration":10,
        "total_frames":300,"energy_joules":30,"vmaf_score":90}]}"#,
    );
    let service = Service::start(dir, NO_SERVER, &[]);
    service.eventually("both runs", |page| page.contains("results_scenarios_total 5\n"));
    service
}

#[test]
fn every_port_has_pages_and_its_index_page() {
    let dir = tempfile::tempdir().unwrap();
    let service = start(dir.path());
    for port in 0..6 {
        let client = service.port(port);
        let home = client.text("/").unwrap();
        assert!(home.contains("<nav aria-label=\"Pages\">") && !home.contains("<script"), "{port}: {home}");
        assert!(client.text("/index").unwrap().contains("<a href=\"/metrics\">"), "{port}");
        assert!(client.text("/static/style.css").unwrap().contains("table.data"), "{port}");
        assert_eq!(client.text("/health").unwrap(), "OK");
        // Ports that receive progress serve no results.
        let has_all = ![1, 2].contains(&port);
        for path in PATHS {
            let (status, page) = client.get(path).unwrap();
            assert_eq!(status == 200, has_all, "{port}{path}: {status}");
            assert!(!page.contains("<script"), "{port}{path}: {page}");
        }
    }
    let results = service.client.text("/results?sort=-energy").unwrap();
    assert!(results.contains("&lt;script&gt;alert(1)") && results.contains("&lt;script&gt;alert(2)"), "{results}");
}

#[test]
fn reports_files_and_comparisons_of_served_runs_only() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret.json"), "{\"secret\":1}").unwrap();
    let service = start(dir.path());
    let client = &service.client;
    assert!(client.text("/results/20240116_000000/report").unwrap().contains("&lt;script&gt;alert(2)"));
    assert!(client.text("/results/20240115_103000/file").unwrap().contains("scenarios"));
    let compared = client.text("/compare?baseline=20240115_103000&candidate=20240116_000000").unwrap();
    assert!(compared.contains("Comparison of two runs") && compared.contains("class=\"banner"), "{compared}");
    for path in [
        "/results/secret/file",
        "/results/..%2fsecret/file",
        "/results/%2e%2e%2fsecret.json/report",
        "/results/20240115_103000%00/file",
        "/results/%2fetc%2fpasswd/file",
        "/compare?baseline=20240115_103000&candidate=..%2fsecret",
        "/static/..%2f..%2fsecret",
    ] {
        let (status, body) = client.get(path).unwrap();
        assert!((400..500).contains(&status) && !body.contains("\"secret\""), "{path}: {status} {body}");
    }
}

#[test]
fn an_empty_directory_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path(), NO_SERVER, &[]);
    eventually_ok(20.0, "the advice", || {
        let page = service.client.text("/").map_err(|error| error.to_string())?;
        if page.contains("No runs yet in") && page.contains("wattcast-analysis run") { Ok(()) } else { Err(page) }
    });
}
