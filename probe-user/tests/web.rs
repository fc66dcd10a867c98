//! Both programs with TLS and passwords, and under many connections. The tests use the real
//! Prometheus, the real VictoriaMetrics, openssl's certificates, and the OpenMetrics parser of
//! prometheus_client.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use support::Probe;
use testkit::{
    api::Client,
    certs::{Authority, PASSWORD},
    ports::free_port,
    program::Program,
    requires,
    shell::{feed, output, programs},
    skip,
    wait::eventually_ok,
};

const USER: Option<(&str, &str)> = Some(("prom", PASSWORD.0));

fn analysis() -> PathBuf {
    programs().unwrap().join("wattcast-analysis")
}

/// A probe without the sources that take time to open.
fn probe(dir: &Path, flags: &[&str]) -> Program {
    let mut command = Command::new(support::binary());
    command.args(["--web.listen-address=127.0.0.1:0", "--energy.source=model", "--no-collector.docker"]).args(flags);
    Program::start_with_state("probe", &mut command, dir).unwrap()
}

fn address(url: &str) -> &str {
    url.split_once("://").unwrap().1
}

#[test]
fn scrapes_over_tls_go_on_while_certificates_change() {
    requires!(openssl, prometheus, victoria_metrics);
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap().unwrap();
    authority.issue("server", "localhost").unwrap();
    let web = authority.web("server", "").unwrap();
    let flag = format!("--web.config.file={}", web.display());
    let mut probe = probe(dir.path(), &[&flag]);
    let (ca, password) = (authority.ca(), dir.path().join("password"));
    let results = dir.path().join("results");
    fs::create_dir(&results).unwrap();
    let mut command = Command::new(analysis());
    command.args(["serve", "--web.listen-address=127.0.0.1:0", &flag, "--probe-url", &probe.address(0).unwrap()]);
    command.arg("--results-dir").arg(&results).arg("--client.ca-file").arg(&ca).arg("--client.username=prom");
    command.arg("--client.password-file").arg(&password);
    let mut service = Program::start("analysis", &mut command, dir.path()).unwrap();

    // The analysis service can read the probe with the configured client credentials.
    let mut urls: Vec<String> = (0..3).map(|port| probe.address(port).unwrap()).collect();
    urls.extend((0..6).map(|port| service.address(port).unwrap()));
    let of_service = Client::secure(&urls[3], &ca, USER, None).unwrap();
    eventually_ok(30.0, "the analysis reads the probe", || {
        let page = of_service.text("/metrics").unwrap_or_default();
        let up = page.contains("wattcast_source_up{source=\"probe\",reason=\"\"} 1");
        if up { Ok(()) } else { Err(service.log()) }
    });

    let targets = urls.iter().map(|url| format!("'{}'", address(url))).collect::<Vec<_>>().join(", ");
    let config = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: wattcast\n  scheme: https\n  \
         tls_config: {{ca_file: {}}}\n  basic_auth: {{username: prom, password_file: {}}}\n  static_configs:\n  - targets: [{targets}]\n",
        ca.display(),
        password.display()
    );
    let file = dir.path().join("prometheus.yml");
    fs::write(&file, config).unwrap();
    let (p_port, v_port) = (free_port().unwrap(), free_port().unwrap());
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--storage.tsdb.path={}", dir.path().join("p").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{p_port}"));
    let _prometheus = Program::start("prometheus", &mut command, dir.path()).unwrap();
    let mut command = Command::new("victoria-metrics");
    command.arg(format!("-promscrape.config={}", file.display()));
    command.arg(format!("-storageDataPath={}", dir.path().join("v").display()));
    command.arg(format!("-httpListenAddr=127.0.0.1:{v_port}"));
    command.args(["-search.latencyOffset=0s", "-memory.allowedPercent=10"]);
    let _victoria = Program::start("victoria", &mut command, dir.path()).unwrap();
    let databases = [p_port, v_port].map(|port| Client::new(format!("http://127.0.0.1:{port}")));
    let query = |database: &Client, query: &str| -> Vec<f64> {
        let Ok(answer) = database.json(&format!("/api/v1/query?query={query}")) else { return Vec::new() };
        let rows = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        rows.iter().filter_map(|row| row["value"][1].as_str()?.parse().ok()).collect()
    };
    eventually_ok(60.0, "all targets are up", || {
        let up = databases.each_ref().map(|database| query(database, "up==1").len());
        if up.iter().all(|up| *up == urls.len()) { Ok(()) } else { Err(format!("{up:?} of {}", urls.len())) }
    });

    // Load: each scrape opens a new connection, to one port of each program.
    let (stop, scrapes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = [0, 0, 3, 3]
        .map(|port| {
            let (url, ca, stop, scrapes) = (urls[port].clone(), ca.clone(), stop.clone(), scrapes.clone());
            thread::spawn(move || -> Vec<String> {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match Client::secure(&url, &ca, USER, None).unwrap().get("/metrics") {
                        Ok((200, _)) => {}
                        other => failed.push(format!("{other:?}")),
                    }
                    scrapes.fetch_add(1, Ordering::Relaxed);
                    // Both programs and both databases need CPU time as well.
                    thread::sleep(Duration::from_millis(10));
                }
                failed
            })
        })
        .into_iter()
        .collect();
    let mut serials = vec![authority.serial(address(&urls[0])).unwrap()];
    for round in 0..4 {
        authority.issue("next", "localhost").unwrap();
        let [(pem, new_pem), (key, new_key)] = ["pem", "key"]
            .map(|kind| (dir.path().join(format!("server.{kind}")), dir.path().join(format!("next.{kind}"))));
        if round % 2 == 0 {
            fs::rename(new_pem, pem).unwrap();
            fs::rename(new_key, key).unwrap();
        } else {
            // As a careless script does it: the files are overwritten one after the other, and for
            // a moment certificate and key do not match.
            fs::copy(new_pem, pem).unwrap();
            thread::sleep(Duration::from_millis(1500));
            fs::copy(new_key, key).unwrap();
        }
        serials.push(eventually_ok(10.0, "both programs serve the next certificate", || {
            let [serial, second] = [0, 3].map(|port: usize| authority.serial(address(&urls[port])).unwrap());
            let next = serial != serials[round] && serial == second;
            if next { Ok(serial) } else { Err(format!("{serials:?}\n{}", probe.log())) }
        }));
    }
    // Both databases still scrape every target under this load.
    for (name, database) in ["Prometheus", "VictoriaMetrics"].iter().zip(&databases) {
        eventually_ok(30.0, name, || {
            let up = query(database, "max_over_time(up[5s])");
            let all = up.len() == urls.len() && up.iter().all(|up| *up >= 1.0);
            if all { Ok(()) } else { Err(format!("{up:?}")) }
        });
    }
    stop.store(true, Ordering::Relaxed);
    let failed: Vec<String> = load.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    let scrapes = scrapes.load(Ordering::Relaxed);
    assert!(failed.is_empty() && scrapes > 20, "{} of {scrapes} failed: {:?}", failed.len(), failed.first());
    println!("{scrapes} scrapes with one connection each during four changes of certificate, none failed");
    for (name, database) in ["Prometheus", "VictoriaMetrics"].iter().zip(&databases) {
        // A failed handshake ends at once. Longer scrapes failed because the machine was busy.
        let failed = query(database, "count_over_time((up == 0 and scrape_duration_seconds < 0.9)[10s:500ms])");
        assert!(failed.is_empty(), "{name}: {failed:?}");
        assert!(!query(database, "wattcast_energy_joules_total").is_empty(), "{name}");
    }
    assert!(!probe.log().contains(PASSWORD.0) && !service.log().contains(PASSWORD.0));
}

#[test]
fn requests_without_password_or_certificate_are_rejected() {
    requires!(openssl);
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap().unwrap();
    authority.issue("server", "localhost").unwrap();
    let (cert, key) = authority.issue("scraper", "scraper.example").unwrap();
    let (other_cert, other_key) = authority.issue("other", "other.example").unwrap();
    let more = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n  client_allowed_sans: [scraper.example]\n  \
                min_version: TLS13\nhttp_server_config:\n  headers: {X-Content-Type-Options: nosniff}";
    let web = authority.web("server", more).unwrap();
    let mut probe = probe(dir.path(), &["--no-collector.cpu", &format!("--web.config.file={}", web.display())]);
    let (url, ca) = (probe.address(0).unwrap(), authority.ca());
    let health = |user, identity| Client::secure(&url, &ca, user, identity).unwrap().get("/health");
    let identity = Some((&*cert, &*key));
    assert_eq!(health(USER, identity).unwrap(), (200, "OK".into()));
    assert_eq!(health(None, identity).unwrap().0, 401);
    assert_eq!(health(Some(("prom", "wrong")), identity).unwrap().0, 401);
    assert_eq!(health(Some(("root", PASSWORD.0)), identity).unwrap().0, 401);
    assert!(health(USER, None).is_err(), "without a certificate");
    assert!(health(USER, Some((&other_cert, &other_key))).is_err(), "with the certificate of another client");
    for path in ["/", "/metrics", "/ready", "/api/v1/sources", "/nothing"] {
        let client = Client::secure(&url, &ca, None, identity).unwrap();
        assert_eq!(client.get(path).unwrap().0, 401, "{path}");
    }
    let script = format!("openssl s_client -tls1_2 -connect {} </dev/null", address(&url));
    assert!(output(Command::new("sh").args(["-c", &script])).is_err(), "a TLS version below the minimum");
    probe.alive().unwrap();
}

#[test]
fn ten_thousand_connections_do_not_stop_a_scrape() {
    const SILENT: usize = 10_000;
    if cli::program::raise_open_file_limit() < 12_000 {
        skip!("fewer than 12000 open files are allowed");
    }
    let probe = Probe::start(&["--energy.source=model", "--no-collector.cpu"]);
    let at = address(&probe.client.url("")).to_owned();
    let mut silent = Vec::with_capacity(SILENT);
    for _ in 0..SILENT / 100 {
        silent.extend((0..100).map(|_| TcpStream::connect(&at).unwrap()));
        // Each request opens a new connection, like a scraper that has just started.
        assert_eq!(Client::new(format!("http://{at}")).get("/health").unwrap().0, 200);
    }
    for _ in 0..10 {
        let page = Client::new(format!("http://{at}")).text("/metrics").unwrap();
        assert!(page.contains("wattcast_energy_joules_total"));
    }
    let sum = |page: &support::Page| {
        page.0.iter().filter(|row| row.name == "wattcast_web_refused_total").map(|row| row.value).sum::<f64>()
    };
    let refused = sum(&probe.fresh());
    assert!(refused > 9000.0, "silent connections were closed: {refused}");
}

#[test]
fn a_hundred_scrapers_change_no_value() {
    const SCRAPES: usize = 20;
    let probe = Probe::start(&["--energy.source=model"]);
    let url = probe.client.url("");
    let scrape = || {
        let client = Client::new(url.clone());
        (0..SCRAPES).filter(|_| client.text("/metrics").is_err()).count()
    };
    let errors: usize = thread::scope(|scope| {
        let all: Vec<_> = (0..100).map(|_| scope.spawn(scrape)).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(errors, 0);
    let page = probe.fresh();
    let error = page.0.iter().filter(|row| row.name == "wattcast_conservation_error_joules");
    assert!(error.clone().count() > 0 && error.clone().all(|row| row.value == 0.0));
    let missed =
        page.0.iter().find(|row| row.name == "wattcast_web_refused_total" && row.label("reason") == "max_requests");
    assert_eq!(missed.unwrap().value, 0.0);
}

#[test]
fn prometheus_client_parses_every_page_as_openmetrics() {
    const CHECK: &str = "import sys\nfrom prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
                         print(sum(len(f.samples) for f in parse(sys.stdin.read())))";
    let python = testkit::require::python("import prometheus_client.openmetrics.parser");
    let Some((python, _)) = python else { skip!("no Python has prometheus_client (python3-prometheus-client)") };
    let dir = tempfile::tempdir().unwrap();
    let name = "job \\\"a\\\"\\n\\\\ 😀";
    let run = format!(
        r#"{{"scenarios":[{{"name":"{name}","bitrate":"1k","total_frames":10,"vmaf_score":90,"energy_joules":5,"duration":5,"cpu_usage_cores":[1],"pixels_processed":100}}]}}"#
    );
    fs::write(dir.path().join("test_results_20240115_103000.json"), run).unwrap();
    let scenario = dir.path().join("gpu.toml");
    fs::write(&scenario, "[[gpu]]\nname = \"T \\\"4\\\"\\n😀\"\nidle_watts = 10.0\n").unwrap();
    let mut command = Command::new(support::binary());
    command.args(["--web.listen-address=127.0.0.1:0", "--energy.source=model"]);
    command.arg("--path.nvml").arg(support::fake_nvml()).env("FAKE_NVML_SCENARIO", &scenario);
    let mut probe = Program::start_with_state("probe", &mut command, dir.path()).unwrap();
    let mut command = Command::new(analysis());
    command.args(["serve", "--web.listen-address=127.0.0.1:0", "--probe-url", &probe.address(0).unwrap()]);
    let mut service = Program::start("analysis", command.arg("--results-dir").arg(dir.path()), dir.path()).unwrap();
    let mut pages: Vec<Client> = (0..3).map(|port| probe.client_of(port).unwrap()).collect();
    pages.extend((0..6).map(|port| service.client_of(port).unwrap()));
    eventually_ok(20.0, "both programs export the names", || {
        let exported = [2, 3].map(|page: usize| pages[page].text("/metrics").unwrap().contains('😀'));
        if exported == [true; 2] { Ok(()) } else { Err(probe.log()) }
    });
    for client in &pages {
        let (_, kind, page) = client.get_as("/metrics", "application/openmetrics-text;version=1.0.0").unwrap();
        assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
        let (valid, output) = feed(Command::new(python).args(["-c", CHECK]), &page).unwrap();
        assert!(valid, "{}: {output}\n{page}", client.url("/metrics"));
        let ours = metrics::parse::parse(&page).unwrap();
        assert_eq!(output.trim().parse::<usize>().unwrap(), ours.samples.len(), "{}", client.url("/metrics"));
        let text = client.text("/metrics").unwrap();
        assert_eq!(metrics::page::faults(&text), Vec::<String>::new());
    }
}

#[test]
fn systemd_gets_ready_watchdog_and_stopping_notifications() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut command = Command::new(support::binary());
    command.args(["--web.listen-address=127.0.0.1:0", "--energy.source=model", "--no-collector.cpu"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    let mut probe = Program::start_with_state("probe", &mut command, dir.path()).unwrap();
    let receive = || {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).trim().to_owned()
    };
    assert_eq!(receive(), "READY=1");
    assert_eq!(Client::new(probe.address(0).unwrap()).get("/metrics").unwrap().0, 200, "not before there is a page");
    assert_eq!([receive(), receive()], ["WATCHDOG=1", "WATCHDOG=1"]);
    probe.stop().unwrap();
    let last = std::iter::repeat_with(receive).find(|message| message != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
}

#[test]
fn a_request_in_flight_is_answered_before_shutdown() {
    // The second mark has to wait, because two ticks are at least 0.1 s apart.
    let probe = Probe::start(&["--energy.source=model", "--no-collector.cpu", "--tick=30s"]);
    probe.client.mark().unwrap();
    let mut stream = TcpStream::connect(address(&probe.client.url(""))).unwrap();
    stream.write_all(b"POST /api/v1/mark HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").unwrap();
    // This request is answered after the connection above, which is older, was accepted.
    probe.client.text("/health").unwrap();
    let status = probe.program.stop().unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(status.success() && answer.starts_with("HTTP/1.1 200"), "{status}: {answer}");
}
