//! The running service with result files and HTTP.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

mod support;

use support::{NO_SERVER, Service, write};
use testkit::{
    requires,
    shell::{feed, output},
    wait::{Deadline, eventually_ok},
};

const SAMPLE: &str = include_str!("data/test_results_20240115_103000.json");

/// A probe with the same response to every request.
fn probe(status: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    url
}

#[test]
fn new_files_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path(), NO_SERVER, &[]);
    service.eventually("an empty directory serves nothing", |page| page.contains("results_scenarios_total 0\n"));
    let (status, why) = service.client.get("/ready").unwrap();
    assert_eq!((status, why.contains("no test_results_")), (503, true), "{why}");
    write(dir.path(), "20240115_103000", SAMPLE);
    let page = service.eventually("the sample", |page| page.contains("results_scenarios_total 4\n"));
    assert!(page.contains("run=\"20240115_103000\""));
    assert_eq!(metrics::page::faults(&page), Vec::<String>::new());
    assert_eq!(service.client.get("/ready").unwrap().0, 200);
    assert!(page.contains("wattcast_results_watched 1\n"), "{page}");
    write(dir.path(), "20240116_000000", r#"{"scenarios":[{"name":"newer"}]}"#);
    let page = service.eventually("the newer run too", |page| page.contains("results_scenarios_total 5\n"));
    assert!(page.contains("run=\"20240116_000000\"") && page.contains("run=\"20240115_103000\""), "{page}");
    assert!(page.contains("results_file_stale 0\n") && page.contains("results_file_age_seconds "), "{page}");
}

#[test]
fn invalid_files_are_logged_once_and_the_rest_is_served() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "20240115_103000", SAMPLE);
    write(dir.path(), "20240115_110000", &SAMPLE[..700]);
    write(dir.path(), "20240115_120000", "\u{0}\u{1}binary");
    let service = Service::start(dir.path(), NO_SERVER, &[]);
    let page = service.eventually("the valid file", |page| page.contains("results_scenarios_total 4\n"));
    assert!(page.contains("wattcast_results_problems 2\n"), "{page}");
    assert!(page.contains("wattcast_source_up{source=\"results\",reason=\"broken\"} 0\n"), "{page}");
    // A new file causes another scan of all of them.
    write(dir.path(), "20240115_130000", r#"{"scenarios":[{"name":"another"}]}"#);
    service.eventually("the next scan", |page| page.contains("results_scenarios_total 5\n"));
    let log = service.log();
    for file in ["110000", "120000"] {
        assert_eq!(log.lines().filter(|line| line.contains(file) && line.contains("WARN")).count(), 1, "{log}");
    }
    // An incomplete file becomes complete.
    write(dir.path(), "20240115_120000", r#"{"scenarios":[{"name":"complete now"}]}"#);
    service.eventually("the completed file", |page| page.contains("scenarios_total 6\n"));
}

#[test]
fn a_missing_directory_is_reported_and_served_later() {
    let dir = tempfile::tempdir().unwrap();
    let results = dir.path().join("later");
    let service = Service::start(&results, NO_SERVER, &[]);
    let (status, why) = service.client.get("/ready").unwrap();
    assert_eq!((status, why.contains("--results-dir")), (503, true), "{why}");
    assert_eq!(service.client.text("/health").unwrap(), "OK");
    fs::create_dir(&results).unwrap();
    write(&results, "20240115_103000", SAMPLE);
    service.eventually("the sample", |page| page.contains("results_scenarios_total 4\n"));
}

const WITH_TIMES: &str = r#"{"scenarios":[{"name":"a","start_time":1700000000,"end_time":1700000010.5,
    "total_frames":250,"container":"enc"}]}"#;

#[test]
fn a_scenario_with_times_gets_its_energy_from_the_probe() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "20240115_103000", WITH_TIMES);
    let url = probe(
        "200 OK",
        r#"{"accounts":[{"package":"0","zone":"package","source":"powercap","measured_joules":100.5,
        "edge_error_joules":0,"missing_seconds":0}],"containers":[{"container":"enc","id":"x","energy":[
        {"source":"powercap","joules":50,"edge_error_joules":0}]}]}"#,
    );
    let service = Service::start(dir.path(), &url, &[]);
    let page = service.eventually("joules", |page| page.contains("wattcast_run_energy_joules"));
    let labels =
        r#"{scenario="a",bitrate="",encoder="",run="20240115_103000",scope="container",source="powercap",way="probe"}"#;
    assert!(page.contains(&format!("wattcast_run_energy_joules{labels} 50\n")), "{page}");
    assert!(page.contains(&format!("wattcast_run_energy_per_frame_joules{labels} 0.2\n")), "{page}");
    assert!(page.contains("scope=\"host\",source=\"powercap\",way=\"probe\"} 100.5\n"), "{page}");
}

#[test]
fn the_page_has_the_reason_of_missing_energy() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "20240115_103000", WITH_TIMES);
    let service = Service::start(dir.path(), &probe("410 Gone", r#"{"code":"too_old","error":"only from 5 on"}"#), &[]);
    service.eventually("the error of the probe", |page| page.contains("reason=\"too_old\"} 0\n"));
    let unreachable = Service::start(dir.path(), NO_SERVER, &[]);
    unreachable.eventually("no probe", |page| page.contains("reason=\"unreachable\"} 0\n"));
    assert!(unreachable.log().contains("--probe-url"), "{}", unreachable.log());
}

#[test]
fn the_documentation_lists_the_metrics_of_the_code() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    metrics::docs::check(&file, "analysis 9502", &analysis::pages::scenarios::defs()).unwrap();
    metrics::docs::check(&file, "analysis 9503", &analysis::pages::quality::defs()).unwrap();
    metrics::docs::check(&file, "analysis 9504", &analysis::pages::cost::defs()).unwrap();
    metrics::docs::check(&file, "analysis history", analysis::backfill::DEFS).unwrap();
    metrics::docs::check(&file, "analysis 9506", analysis::streams::page::DEFS).unwrap();
    metrics::docs::check(&file, "analysis 9728", analysis::streams::nginx::DEFS).unwrap();
    metrics::docs::check(&file, "analysis 9728 ingest", analysis::streams::ingest::page::DEFS).unwrap();
    metrics::docs::check(&file, "analysis 9600", analysis::health::page::DEFS).unwrap();
}

#[test]
fn promtool_finds_nothing_without_the_legacy_names() {
    requires!(promtool);
    let dir = tempfile::tempdir().unwrap();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/test_results_20240115_103000.json");
    fs::copy(sample, dir.path().join("test_results_20240115_103000.json")).unwrap();
    let service = Service::start(dir.path(), NO_SERVER, &["--no-compat-metrics"]);
    service.eventually("the run", |page| page.contains("wattcast_run_info"));
    service.eventually_at(5, "targets", |page| page.contains("wattcast_target_state"));
    for port in 0..6 {
        let page = service.port(port).text("/metrics").unwrap();
        assert!(!page.contains("exporter_up") && !page.contains("exporter_alive") && !page.is_empty());
        let (_, output) = feed(Command::new("promtool").args(["check", "metrics"]), &page).unwrap();
        // The names of the nginx exporter are kept.
        let output: Vec<_> = output.lines().filter(|line| !line.starts_with("nginx_rtmp_")).collect();
        assert!(output.is_empty(), "port {port}: {output:?}");
    }
}

#[test]
fn the_migration_table_has_every_legacy_name() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let metrics = fs::read_to_string(root.join("metrics.md")).unwrap();
    let operations = fs::read_to_string(root.join("operations.md")).unwrap();
    let kept = metrics.lines().filter(|line| line.contains("*(kept for existing queries)*"));
    let names: Vec<&str> = kept.filter_map(|line| line.split('`').nth(1)).collect();
    assert!(names.len() > 80, "{names:?}");
    let missing: Vec<_> = names.iter().filter(|name| !operations.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
    // The successors in the table exist.
    let rows = operations
        .lines()
        .filter(|line| line.starts_with("| `") && names.iter().any(|name| line.contains(&format!("`{name}`"))));
    let successors =
        rows.flat_map(|row| row.split('`').skip(1).step_by(2)).filter(|word| word.starts_with("wattcast_"));
    let unknown: Vec<_> = successors.filter(|name| !metrics.contains(&format!("| `{name}` |"))).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// Like a result file of the legacy exporters: 240 scenarios with 118 distinct names.
#[test]
fn scenarios_with_equal_names_have_their_own_series() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<String> = (0..240)
        .map(|number| {
            let kind = number % 118;
            format!(
                r#"{{"name":"job \"{kind}\"","bitrate":"{kind}k","total_frames":10,"vmaf_score":90,"energy_joules":1{number},
                "duration":5,"cpu_usage_cores":[1],"pixels_processed":100}}"#
            )
        })
        .collect();
    write(dir.path(), "20240115_103000", &format!("{{\"scenarios\":[{}]}}", rows.join(",")));
    let service = Service::start(dir.path(), NO_SERVER, &[]);
    service.eventually("all of them", |page| page.contains("results_scenarios_total 240\n"));
    for (port, metric) in [(0, "wattcast_run_energy_joules{"), (3, "qoe_vmaf_score{"), (4, "cost_total{")] {
        let page = service.port(port).text("/metrics").unwrap();
        assert_eq!(metrics::page::faults(&page), Vec::<String>::new());
        assert_eq!(page.lines().filter(|line| line.starts_with(metric)).count(), 240, "{metric}");
    }
}

#[test]
fn promtool_accepts_the_recording_rules() {
    requires!(promtool);
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus");
    let run = |args: &[&str]| output(Command::new("promtool").args(args).current_dir(deploy.join("rules"))).unwrap();
    run(&["check", "rules", "--lint=all", "cost.yml"]);
    run(&["test", "rules", "cost.test.yml"]);
    run(&["check", "config", "../prometheus.yml"]);
}

#[test]
fn promtool_finds_nothing_in_the_primary_metrics() {
    requires!(promtool);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "20240115_103000", SAMPLE);
    write(dir.path(), "20240116_103000", WITH_TIMES);
    let service = Service::start(dir.path(), NO_SERVER, &[]);
    service.eventually("a page", |page| page.contains("wattcast_run_energy_available"));
    for port in [0, 3, 4] {
        let page = service.port(port).text("/metrics").unwrap();
        assert!(page.contains("# TYPE wattcast_"), "{page}");
        // Legacy names are skipped by block, one per family.
        let mut primary = String::new();
        for block in page.split_inclusive("# HELP ").flat_map(|part| part.split("# HELP ")) {
            if block.starts_with("wattcast_") || block.starts_with("process_") {
                primary.push_str("# HELP ");
                primary.push_str(block);
            }
        }
        let output = feed(Command::new("promtool").args(["check", "metrics"]), &primary).unwrap();
        assert_eq!(output, (true, String::new()), "port {port}");
    }
}

/// A page of megabytes exceeds the buffers of a connection: a client that does not read it keeps
/// its connection until another one needs it.
#[test]
fn slow_readers_of_large_pages_do_not_block_a_scrape() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<String> = (0..1200)
        .map(|number| {
            format!(
                r#"{{"name":"scenario {number} with a name that is as long as people make them","bitrate":"{number}k",
                "total_frames":10,"vmaf_score":90,"energy_joules":5,"duration":5,"cpu_usage_cores":[1],"pixels_processed":9}}"#
            )
        })
        .collect();
    write(dir.path(), "20240115_103000", &format!("{{\"scenarios\":[{}]}}", rows.join(",")));
    let service = Service::start(dir.path(), NO_SERVER, &["--web.max-requests=10"]);
    let page = service.eventually("all of them", |page| page.contains("results_scenarios_total 1200\n"));
    println!("a page of {} bytes", page.len());
    assert!(page.len() > 6_000_000, "it must exceed the socket buffers: {}", page.len());
    let at = service.client.url("").trim_start_matches("http://").to_owned();
    let request = |seconds| {
        let mut stream = TcpStream::connect(&at).unwrap();
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.set_read_timeout(Some(Duration::from_secs(seconds))).unwrap();
        stream
    };
    // Ten seconds without a byte is a blocked scrape; on a busy machine, ten seconds of its share.
    let read_page = || {
        let (mut stream, mut answer, mut buffer) = (request(1), Vec::new(), vec![0; 64 << 10]);
        let mut deadline = Deadline::after(Duration::from_secs(10));
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return answer,
                Ok(length) => {
                    answer.extend_from_slice(&buffer[..length]);
                    deadline = Deadline::after(Duration::from_secs(10));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock && !deadline.passed() => {}
                Err(error) => panic!("{error} after {} bytes", answer.len()),
            }
        }
    };
    let mut slow: Vec<TcpStream> = (0..200).map(|_| request(10)).collect();
    for _ in 0..20 {
        // Each with its own connection; a rejected scraper tries again.
        let answer = eventually_ok(20.0, "a page", || {
            let answer = read_page();
            let status = String::from_utf8_lossy(&answer[..12]).into_owned();
            assert!(["HTTP/1.1 200", "HTTP/1.1 503"].contains(&&*status), "{status}");
            if status.ends_with("200") { Ok(answer) } else { Err(status) }
        });
        assert!(String::from_utf8(answer).unwrap().contains("results_scenarios_total 1200\n"));
    }
    // Some of the slow connections must have been closed to make room.
    let cut = slow.iter_mut().map(|stream| {
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest) {
            Ok(_) => rest.len() < page.len(),
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        }
    });
    assert!(cut.filter(|cut| *cut).take(3).count() == 3, "no slow connection was closed");
}
