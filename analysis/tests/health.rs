//! The health checker on real sockets: every state of a target, the legacy metric names, and the
//! command line.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::{Command, Output},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use metrics::parse::{Sample, parse};
use support::{Database, NO_SERVER, Service, write};
use testkit::{
    certs::{Authority, PASSWORD},
    program::Program,
    requires,
};

/// A server on its own port that sends what `respond` returns.
fn server(respond: impl Fn() -> String + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(respond().as_bytes());
        }
    });
    format!("http://{address}/metrics")
}

fn page(headers: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn date(seconds_ago: i64) -> String {
    let ago = Duration::from_secs(seconds_ago.unsigned_abs());
    let at = if seconds_ago < 0 { SystemTime::now() + ago } else { SystemTime::now() - ago };
    httpdate::fmt_http_date(at)
}

/// A page with a value that changes.
fn changing() -> impl Fn() -> String {
    let count = Arc::new(AtomicUsize::new(0));
    move || {
        let date = date(0);
        page(&format!("Date: {date}\r\n"), &format!("moves_total {}\n", count.fetch_add(1, Ordering::Relaxed)))
    }
}

/// A target in each state: name, URL, state.
fn targets_in_each_state(silent: &TcpListener) -> Vec<(&'static str, String, &'static str)> {
    let text = "Content-Type: text/plain; version=0.0.4\r\n";
    let dated = |body: &'static str| move || page(&format!("{text}Date: {}\r\n", date(0)), body);
    vec![
        ("t-healthy", server(changing()), "healthy"),
        ("t-down", format!("{NO_SERVER}/metrics"), "down"),
        ("t-hanging", format!("http://{}/metrics", silent.local_addr().unwrap()), "hanging"),
        ("t-html", server(|| page("Content-Type: text/html\r\n", "<html>It works!</html>")), "wrong_type"),
        ("t-nonsense", server(dated("this is no page")), "wrong_type"),
        ("t-empty", server(dated("# TYPE x gauge\n")), "empty"),
        ("t-still", server(dated("x 1\n")), "unproven"),
        (
            "t-stale",
            server(move || page(&format!("{text}Date: {}\r\nLast-Modified: {}\r\n", date(0), date(600)), "x 1\n")),
            "stale",
        ),
        ("t-behind", server(|| page(&format!("Date: {}\r\n", date(3600)), "x 1\n")), "clock"),
        ("t-ahead", server(|| page(&format!("Date: {}\r\n", date(-3600)), "x 1\n")), "clock"),
        (
            "t-broken",
            server(|| "HTTP/1.1 503 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_owned()),
            "status",
        ),
        (
            "t-closed",
            server(|| "HTTP/1.1 401 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_owned()),
            "denied",
        ),
    ]
}

fn check(args: &[&str]) -> Output {
    Command::new(support::binary()).arg("check").args(args).output().unwrap()
}

fn targets(all: &[(&str, String, &str)]) -> String {
    all.iter().map(|(name, url, _)| format!("{name}={url}")).collect::<Vec<_>>().join(",")
}

/// Waits until the page of a service shows each target in its state.
fn wait_for_states(service: &Service, all: &[(&str, String, &str)]) -> String {
    // Every round repeats all checks, so a target that was slow once has its state in the next one.
    service.eventually_at(5, "all states", |page| {
        all.iter().all(|(name, _, state)| {
            let row = page.lines().filter(|line| line.starts_with("wattcast_target_state{"));
            row.filter(|line| line.ends_with(" 1") && line.contains(&format!("state=\"{state}\"")))
                .any(|line| line.contains(&format!("target=\"{name}\"")))
        })
    })
}

/// The value of a family for a target and another label.
fn value(page: &[Sample], name: &str, target: &str, more: (&str, &str)) -> Option<f64> {
    let row = page.iter().find(|row| {
        row.name == name
            && [row.label("target"), row.label("exporter")].contains(&target)
            && row.label(more.0) == more.1
    });
    row.map(|row| row.value)
}

/// Every family agrees with the state of each target, including those with legacy names.
fn assert_all_families_agree(page: &[Sample], all: &[(&str, String, &str)]) {
    for (name, url, state) in all {
        let value = |family: &str, more| value(page, family, name, more);
        assert_eq!(value("wattcast_target_state", ("state", state)), Some(1.0), "{name}: {state}");
        let healthy = Some(f64::from(u8::from(*state == "healthy")));
        assert_eq!(value("wattcast_target_healthy", ("url", url)), healthy, "{name}");
        assert_eq!(value("exporter_healthy", ("url", url)), healthy, "{name}");
        assert_eq!(value("exporter_health_status", ("", "")), healthy, "{name}");
        let reached = f64::from(u8::from(!["down", "hanging", "tls"].contains(state)));
        assert_eq!(value("exporter_reachable", ("", "")), Some(reached), "{name}");
        assert_eq!(value("exporter_response_time_ms", ("url", url)).is_some(), reached > 0.0, "{name}");
        assert!(value("exporter_last_check_timestamp", ("", "")).unwrap() > 1.7e9);
    }
}

/// The table of `check` shows each target in its state.
fn assert_table(table: &str, all: &[(&str, String, &str)]) {
    for (name, _, state) in all {
        let row = table.lines().find(|line| line.split_whitespace().next() == Some(name));
        assert_eq!(row.and_then(|row| row.split_whitespace().nth(1)), Some(*state), "{table}");
    }
}

#[test]
fn the_page_shows_every_state() {
    let (dir, silent) = (tempfile::tempdir().unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let all = targets_in_each_state(&silent);
    let flag = format!("--health.targets={}", targets(&all));
    let service = Service::start(dir.path(), NO_SERVER, &[&flag, "--health.timeout=1s", "--health.interval=1s"]);
    let page = wait_for_states(&service, &all);
    assert_eq!(metrics::page::faults(&page), Vec::<String>::new());
    let page = parse(&page).unwrap().samples;
    assert_all_families_agree(&page, &all);
    let skew = |name| value(&page, "wattcast_target_clock_skew_seconds", name, ("", "")).unwrap();
    assert!((skew("t-behind") + 3600.0).abs() < 2.0 && (skew("t-ahead") - 3600.0).abs() < 2.0);
    let row = |name: &str| page.iter().find(|row| row.name == name).unwrap().value;
    let number = f64::from(u32::try_from(all.len()).unwrap());
    assert_eq!((row("exporter_total"), row("exporter_healthy_total")), (number, 1.0));
    let has_data = |name| value(&page, "exporter_has_data", name, ("", ""));
    assert_eq!((has_data("t-healthy"), has_data("t-empty")), (Some(1.0), Some(0.0)));
    assert_eq!(value(&page, "exporter_metric_count", "t-still", ("", "")), Some(1.0));
}

#[test]
fn table_and_exit_code_of_check_show_every_state() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let all = targets_in_each_state(&silent);
    let done = check(&[&format!("--targets={}", targets(&all)), "--timeout=5"]);
    let table = String::from_utf8(done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(1), "{table}");
    assert_table(&table, &all);
    let done = check(&[&format!("--targets={}", targets(&all[..1])), "--debug"]);
    let output = String::from_utf8(done.stderr).unwrap();
    assert!(output.contains("level=DEBUG") && output.contains("status=200"), "{output}");
    let done = check(&[&format!("--targets={}", targets(&all[..1])), "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(
        (done.status.code(), &json["healthy"], &json["targets"][0]["state"]),
        (Some(0), &true.into(), &"healthy".into())
    );
}

/// The service behind TLS and a password, and the authority that signed its certificate.
fn secured(dir: &Path, flags: &[&str]) -> (Authority, Program) {
    let authority = Authority::new(dir).unwrap().unwrap();
    authority.issue("server", "localhost").unwrap();
    let web = authority.web("server", "").unwrap();
    let mut command = Command::new(support::binary());
    command.args(["serve", "--web.listen-address=127.0.0.1:0", "--probe-url", NO_SERVER]).args(flags);
    command.arg("--results-dir").arg(dir).arg(format!("--web.config.file={}", web.display()));
    (authority, Program::start("secured", &mut command, dir).unwrap())
}

#[test]
fn a_tls_target_is_healthy_with_ca_and_password_only() {
    requires!(openssl);
    let dir = tempfile::tempdir().unwrap();
    let (authority, mut program) = secured(dir.path(), &[]);
    let all = [("t-tls", format!("{}/metrics", program.address(0).unwrap()), "tls")];
    let results = tempfile::tempdir().unwrap();
    let flag = format!("--health.targets={}", targets(&all));
    let service = Service::start(results.path(), NO_SERVER, &[&flag, "--health.timeout=5s", "--health.interval=1s"]);
    let page = parse(&wait_for_states(&service, &all)).unwrap().samples;
    assert_all_families_agree(&page, &all);
    let target = format!("--targets={}", targets(&all));
    let done = check(&[&target, "--timeout=5"]);
    assert_eq!(done.status.code(), Some(1));
    assert_table(&String::from_utf8(done.stdout).unwrap(), &all);
    // With CA and password the target is healthy.
    let at = |name: &str| dir.path().join(name).display().to_string();
    let client = [format!("--client.ca-file={}", authority.ca().display()), "--client.username=prom".to_owned()];
    let done = check(&[&target, &client[0], &client[1], &format!("--client.password-file={}", at("password"))]);
    let output = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success() && output.contains("healthy"), "{output}");
    fs::write(dir.path().join("wrong"), format!("{}x", PASSWORD.0)).unwrap();
    let done = check(&[&target, &client[0], &client[1], &format!("--client.password-file={}", at("wrong"))]);
    let output = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.code() == Some(1) && output.contains("denied") && !output.contains(PASSWORD.0), "{output}");
}

#[test]
fn a_stopped_program_is_hanging() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "20240115_103000", r#"{"scenarios":[{"name":"a","energy_joules":5,"duration":5}]}"#);
    let watched = Service::start(dir.path(), NO_SERVER, &[]);
    let other = tempfile::tempdir().unwrap();
    let target = format!("--health.targets=results-exporter={}", watched.client.url("/metrics"));
    let checker = Service::start(other.path(), NO_SERVER, &[&target, "--health.timeout=5s", "--health.interval=1s"]);
    checker.eventually_at(5, "healthy", |page| page.contains("exporter_healthy_total 1\n"));
    // SAFETY: the process is our child and was not waited for.
    let signal = |signal| unsafe { libc::kill(libc::pid_t::try_from(watched.pid()).unwrap(), signal) };
    signal(libc::SIGSTOP);
    let page = checker.eventually_at(5, "hanging", |page| page.contains("state=\"hanging\"} 1"));
    assert!(page.contains("exporter_healthy_total 0\n"));
    signal(libc::SIGCONT);
    checker.eventually_at(5, "healthy again", |page| page.contains("exporter_healthy_total 1\n"));
    let log = checker.log();
    let count =
        |word: &str| log.lines().filter(|line| line.contains("results-exporter") && line.contains(word)).count();
    assert_eq!((count("hanging"), count("healthy again")), (1, 1), "each change once: {log}");
}

#[test]
fn an_unready_target_is_unhealthy_and_gets_no_password() {
    let dir = tempfile::tempdir().unwrap();
    let password = support::file(dir.path(), "password", "hunter2");
    let requests = Arc::new(Mutex::new(Vec::new()));
    let server_requests = requests.clone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap();
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let now = format!("Date: {0}\r\nLast-Modified: {0}\r\n", date(0));
            let answer = if request.starts_with("GET /ready ") {
                "HTTP/1.1 503 No\r\nConnection: close\r\nContent-Length: 23\r\n\r\npowercap: broken: stands".to_owned()
            } else {
                page(&now, "wattcast_energy_joules_total 5\nwattcast_tick_seconds 1\n")
            };
            // Before the response, after which the test reads them.
            server_requests.lock().unwrap().push(request);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let file = support::file(
        dir.path(),
        "wattcast.toml",
        &format!(
            "[client]\nusername = \"u\"\npassword-file = {password:?}\n[[health.target]]\nname = \"wattcast-probe\"\nurl = \"{url}\"\n"
        ),
    );
    let done = check(&["--config.file", file.to_str().unwrap()]);
    let output = String::from_utf8(done.stdout).unwrap();
    assert!(
        done.status.code() == Some(1) && output.contains("unready") && output.contains("powercap: broken"),
        "{output}"
    );
    let requests = requests.lock().unwrap();
    assert!(
        requests.len() == 2 && requests.iter().all(|request| !request.to_lowercase().contains("authorization")),
        "{requests:?}"
    );
}

#[test]
fn invalid_settings_of_a_target_do_not_stop_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let file = support::file(
        dir.path(),
        "wattcast.toml",
        &format!(
            "[[health.target]]\nname = \"t-bad\"\nurl = \"https://h\"\naccess = {{ ca_file = \"/nowhere.pem\" }}\n[[health.target]]\nname = \"t-well\"\nurl = \"{}\"\n",
            server(changing())
        ),
    );
    let done = check(&["--config.file", file.to_str().unwrap()]);
    let output = String::from_utf8(done.stdout).unwrap();
    assert!(
        output.contains("settings") && output.contains("/nowhere.pem") && output.contains("1 healthy, 1 unhealthy"),
        "{output}"
    );
    let done = check(&["--config.file", file.to_str().unwrap(), "--config.check"]);
    let output = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.code() == Some(64) && output.contains("/nowhere.pem"), "{output}");
    let done = check(&["--config.file", file.to_str().unwrap(), "--health.skip=t-bad"]);
    assert_eq!(done.status.code(), Some(0));
    let done = check(&["--config.file", file.to_str().unwrap(), "--health.skip=t-bda"]);
    assert!(done.status.code() == Some(64) && String::from_utf8_lossy(&done.stderr).contains("mean t-bad?"));
}

#[test]
fn a_certificate_with_another_key_is_a_configuration_error() {
    requires!(openssl);
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap().unwrap();
    let (cert, _) = authority.issue("one", "one").unwrap();
    let (_, key) = authority.issue("other", "other").unwrap();
    let flags = [format!("--client.cert-file={}", cert.display()), format!("--client.key-file={}", key.display())];
    let done = check(&["--config.check", &flags[0], &flags[1]]);
    let output = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.code() == Some(64) && output.contains("one.pem"), "{output}");
}

#[test]
fn hanging_targets_are_checked_concurrently() {
    let (dir, silent) = (tempfile::tempdir().unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let url = |number: usize| format!("http://{}/{number}", silent.local_addr().unwrap());
    let all = (0..48).map(|number| format!("t{number}={}", url(number))).collect::<Vec<_>>().join(",");
    let began = Instant::now();
    let done = check(&[&format!("--targets={all}"), "--timeout=1", "--results-dir", dir.path().to_str().unwrap()]);
    let output = String::from_utf8(done.stdout).unwrap();
    assert!(output.contains("0 healthy, 48 unhealthy"), "{output}");
    // One after the other, the timeouts alone would take 48 s.
    assert!(began.elapsed() < Duration::from_secs(40));
}

#[test]
fn the_default_targets_are_checked_without_flags() {
    let done = check(&["--json", "--timeout=1"]);
    let json: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let names: Vec<_> =
        json["targets"].as_array().unwrap().iter().map(|target| target["target"].as_str().unwrap()).collect();
    for name in [
        "nginx-exporter",
        "cpu-exporter-go",
        "node-exporter",
        "ffmpeg-exporter",
        "gpu-exporter",
        "wattcast-probe",
        "victoriametrics",
        "grafana",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus/prometheus.yml");
    let done = check(&["--json", "--timeout=1", "--scrape-config", file.to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(json["targets"].as_array().unwrap().iter().any(|target| target["target"] == "rapl-power"));
}

#[test]
fn two_exporters_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("old.prom");
    fs::write(&old, "# TYPE rapl_power_watts gauge\nrapl_power_watts{zone=\"package_0\"} 5\ngone 1\n# TYPE c_total counter\nc_total 9\n").unwrap();
    let new = server(|| {
        page("", "# TYPE rapl_power_watts gauge\nrapl_power_watts{zone=\"package_0\",package=\"package-0\"} 6\n")
    });
    let done = check(&["--compare", old.to_str().unwrap(), &new, "--compare.over=100ms"]);
    let output = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.code() == Some(1) && output.contains("LOST: family") && output.contains("+20.0 %"), "{output}");
    let done = check(&["--compare", &new, &new, "--compare.over=100ms", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((done.status.code(), &json["complete"]), (Some(0), &true.into()));
}

#[test]
fn config_check_reports_invalid_settings() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wattcast.toml");
    let run = |text: &str, more: &[&str]| {
        fs::write(&file, text).unwrap();
        let mut command = Command::new(support::binary());
        command.args(["serve", "--config.check", "--config.file", file.to_str().unwrap()]).args(more);
        let out = command.output().unwrap();
        (out.status.code(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
    };
    let (code, output) = run(
        "results-dir = \"x\"\n[web]\nlisten-address = [\":9502\"]\n[health]\ninterval = \"10s\"\n[[health.target]]\nname = \"a\"\nurl = \"http://a:1\"\n",
        &[],
    );
    assert!(code == Some(0) && output.contains("is valid"), "{output}");
    for (text, more, word) in [
        ("[web]\nlisten-adress = \":1\"", &[][..], "web.listen-address"),
        ("[health]\nintervall = \"1s\"", &[], "health.interval"),
        ("[[health.target]]\nname = \"a\"\nurl = \"http://a\"\nexpects = []", &[], "did you mean expect?"),
        ("[health]\ninterval = \"1y\"", &[], "100ms to 1d"),
        ("[[health.target]]\nname = \"a\"\nurl = \"a:1\"", &[], "http://"),
        ("", &["--web.config.file=/nowhere.yml"], "/nowhere.yml"),
        ("", &["--client.ca-file=/nowhere.pem", "--probe-url=https://x"], "/nowhere.pem"),
    ] {
        let (code, output) = run(text, more);
        assert!(code == Some(64) && output.contains(word), "{text}: {code:?} {output}");
    }
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/analysis/wattcast-analysis.toml");
    let (code, output) = run(&fs::read_to_string(shipped).unwrap(), &[]);
    assert!(code == Some(0), "{output}");
}

#[test]
fn the_log_has_the_configured_format() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path(), NO_SERVER, &["--log.format=json"]);
    service.page();
    for line in service.log().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string() && line["msg"].is_string() && line["time"].is_string(), "{line}");
    }
}

#[test]
fn a_progress_request_needs_a_token_but_no_user() {
    requires!(openssl);
    let dir = tempfile::tempdir().unwrap();
    let token = support::file(dir.path(), "token", "t0ken");
    let (authority, mut service) = secured(dir.path(), &["--ffmpeg.token-file", token.to_str().unwrap()]);
    let url = service.address(1).unwrap();
    let post = |token: &str| {
        let script = format!(
            "printf 'frame=1\\nprogress=end\\n' | curl -s -o /dev/null -w '%{{http_code}}' --cacert {} --data-binary @- '{url}/progress/cam?token={token}'",
            authority.ca().display()
        );
        testkit::shell::output(Command::new("sh").args(["-c", &script])).unwrap()
    };
    assert_eq!((&*post("wrong"), &*post("t0ken")), ("401", "204"));
}

/// Common exporters without Wattcast's conventions must be healthy too.
#[test]
fn node_exporter_and_databases_are_healthy() {
    requires!(node_exporter, victoria_metrics, prometheus, promtool);
    let samples = vec![(1_700_000_000, 1)];
    let victoria = Database::victoria(&[]);
    let prometheus = Database::prometheus(&[support::Series { name: "x_total", labels: String::new(), samples }]);
    let (dir, port) = (tempfile::tempdir().unwrap(), support::free_port());
    let mut command = Command::new("prometheus-node-exporter");
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let _node = Program::start("node_exporter", &mut command, dir.path()).unwrap();
    let targets = format!(
        "--health.targets=node-exporter=http://127.0.0.1:{port}/metrics,victoriametrics={}/metrics,prometheus={}/metrics",
        victoria.url, prometheus.url
    );
    let service = Service::start(dir.path(), NO_SERVER, &[&targets, "--health.interval=1s"]);
    let page = service.eventually_at(5, "all three are healthy", |page| page.contains("exporter_healthy_total 3\n"));
    assert!(page.contains("exporter_total 3\n"), "{page}");
}

/// Webhook requests with another format, too large or too slow are rejected, and valid alerts are
/// shown.
#[test]
fn alerts_are_received_shown_and_resolved() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path(), NO_SERVER, &["--health.interval=1h"]);
    let at = service.port(5).url("").trim_start_matches("http://").to_owned();
    let post = |headers: &str, body: &str| -> String {
        let mut stream = std::net::TcpStream::connect(&at).unwrap();
        let request = format!("POST /api/v1/alerts HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n{body}");
        // The server need not read a request to its end that it rejects by its headers.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    let alert = |status: &str| {
        format!(
            r#"{{"version":"4","alerts":[{{"status":"{status}","labels":{{"alertname":"Hot","severity":"warning","host":"<b>"}},"annotations":{{"summary":"it is <hot>"}}}}]}}"#
        )
    };
    let json = |body: &str| format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    let firing = alert("firing");
    assert_eq!(post(&format!("Content-Type: text/plain\r\nContent-Length: {}\r\n", firing.len()), &firing), "415");
    assert_eq!(post(&json("{}"), "{}"), "400");
    let large = format!("{}{}", " ".repeat(1 << 20), firing);
    assert_eq!(post(&json(&large), &large), "413");
    // A body that never arrives.
    assert_eq!(post("Content-Type: application/json\r\nContent-Length: 100\r\n", "{"), "408");
    assert_eq!(post(&json(&firing), &firing), "204");
    service
        .eventually_at(5, "the alert fires", |page| page.contains("wattcast_alerts_firing{severity=\"warning\"} 1\n"));
    let index = service.port(5).text("/").unwrap();
    assert!(index.contains("it is &lt;hot&gt;") && !index.contains("<hot>"), "{index}");
    let resolved = alert("resolved");
    assert_eq!(post(&json(&resolved), &resolved), "204");
    service.eventually_at(5, "the alert is resolved", |page| {
        page.contains("wattcast_alerts_firing{severity=\"warning\"} 0\n")
    });
    assert_eq!(service.log().lines().filter(|line| line.contains("alert Hot")).count(), 2, "{}", service.log());
}
