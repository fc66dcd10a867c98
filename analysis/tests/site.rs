//! The service with other services: databases with TLS and passwords, alert receivers, a carbon
//! intensity source, several hosts, and a history.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

mod support;

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};
use support::{Database, NO_SERVER, Series, Service, file, free_port, now, write};
use testkit::{
    eventually,
    program::Program,
    requires,
    shell::{output, which},
    wait::eventually_ok,
};

const SAMPLE: &str = include_str!("data/test_results_20240115_103000.json");

/// A request that a server received.
#[derive(Clone, Debug, Default)]
struct Request {
    path: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

/// A server that stores requests and sends configured responses.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(respond: impl Fn(&Request, usize) -> (u16, String) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let stored = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = read(&stream) else { continue };
                let count = {
                    let mut stored = stored.lock().unwrap();
                    stored.push(request.clone());
                    stored.len()
                };
                let (status, body) = respond(&request, count);
                let head =
                    format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    fn eventually(&self, what: &str, so: impl Fn(&[Request]) -> bool) -> Vec<Request> {
        eventually_ok(20.0, what, || {
            let requests = self.requests();
            if so(&requests) { Ok(requests) } else { Err(format!("{requests:?}")) }
        })
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = HashMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some(Request { path, headers, body })
}

fn run(command: &str, results: &Path, flags: &[&str]) -> Output {
    let mut all = Command::new(support::binary());
    all.arg(command).arg("--results-dir").arg(results).args(flags).env_remove("PROBE_URL").output().unwrap()
}

/// Waits until the service has logged a text.
fn wait_for_log(service: &Service, word: &str) {
    let found = || if service.log().contains(word) { Ok(()) } else { Err(service.log()) };
    eventually_ok(20.0, word, found);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A counter of one host that grows by `watts`, an hour of samples at 15 s that ended ten minutes
/// ago.
fn an_hour(host: &str, watts: u64) -> (u64, Series) {
    let start = (now() - 4200) / 60 * 60;
    let samples = (0..240).map(|number| (start + number * 15, number * 15 * watts * 1_000_000)).collect();
    let labels = format!("instance=\"{host}:9500\",package=\"0\",zone=\"package\",source=\"perf\"");
    (start, Series { name: "wattcast_energy_joules_total", labels, samples })
}

#[test]
fn a_database_with_tls_password_and_tenant_is_queried() {
    requires!(nginx, openssl, victoria_metrics);
    let nginx = which("nginx").unwrap_or_else(|| "/usr/sbin/nginx".into());
    let (start, series) = an_hour("enc-1", 40);
    let database = Database::victoria(&[series]);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let make = |args: &[&str]| output(Command::new("openssl").args(args).current_dir(dir.path())).unwrap();
    make(&[
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test",
        "-days", "2",
    ]);
    make(&["req", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "csr.pem", "-subj", "/CN=localhost"]);
    fs::write(at("ext"), "subjectAltName=DNS:localhost").unwrap();
    make(&[
        "x509",
        "-req",
        "-in",
        "csr.pem",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-out",
        "cert.pem",
        "-days",
        "2",
        "-extfile",
        "ext",
    ]);
    let hash = make(&["passwd", "-apr1", "pa55word"]);
    fs::write(at("users"), format!("reader:{hash}\n")).unwrap();
    let port = free_port();
    let config = format!(
        "daemon off; pid {0}/pid; error_log {0}/error.log; worker_processes 1; user root;\n\
         events {{}}\n\
         http {{ access_log {0}/access.log; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;\n\
         uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
         server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {0}/cert.pem; ssl_certificate_key {0}/key.pem;\n\
         location /select/7/prometheus/ {{ auth_basic x; auth_basic_user_file {0}/users; proxy_pass {1}/; }}\n\
         location /select/8/prometheus/ {{ if ($http_authorization != \"Bearer t0ken\") {{ return 401; }} proxy_pass {1}/; }} }} }}\n",
        dir.path().display(),
        database.url
    );
    fs::write(at("nginx.conf"), config).unwrap();
    let mut proxy = Program::start("nginx", Command::new(nginx).arg("-c").arg(at("nginx.conf")), dir.path()).unwrap();
    eventually_ok(20.0, "nginx listens", || {
        proxy.alive().unwrap();
        TcpStream::connect(("127.0.0.1", port)).map_err(|error| format!("{error}: {}", proxy.log()))
    });
    file(dir.path(), "password", "pa55word\n");
    file(dir.path(), "token", "t0ken\n");
    let results = at("results");
    fs::create_dir(&results).unwrap();
    let row =
        json!({"scenarios": [{"name": "a", "host": "enc-1", "start_time": start + 600, "end_time": start + 1200}]});
    write(&results, "20260101_000000", &row.to_string());
    let common = format!("url = \"https://localhost:{port}\"\nca_file = \"{}\"", at("ca.pem").display());
    let basic = format!("tenant = \"7\"\nusername = \"reader\"\npassword_file = \"{}\"", at("password").display());
    let bearer = format!("tenant = \"8\"\nbearer_token_file = \"{}\"", at("token").display());
    for (name, how) in [("basic.toml", &basic), ("bearer.toml", &bearer)] {
        let settings = file(dir.path(), name, &format!("[database]\n{common}\n{how}\n"));
        let service =
            Service::start(&results, NO_SERVER, &["--config.file", settings.to_str().unwrap(), "--log.level=trace"]);
        let page = service.eventually(name, |page| page.contains("way=\"database\"} 24000\n"));
        let index = service.client.text("/").unwrap();
        for text in [&page, &index, &service.log()] {
            assert!(!text.contains("pa55word") && !text.contains("t0ken"), "{name}: a secret was shown");
        }
    }
    // Without the CA or with a wrong password there is no energy, and the log has the reason.
    file(dir.path(), "wrong", "nothing");
    let without = format!("[database]\nurl = \"https://localhost:{port}\"\n{basic}\n");
    let wrong = format!("[database]\n{common}\n{}\n", basic.replace("/password\"", "/wrong\""));
    for (name, settings, word) in [("roots.toml", without, "certificate"), ("wrong.toml", wrong, "401")] {
        let settings = file(dir.path(), name, &settings);
        let service = Service::start(&results, NO_SERVER, &["--config.file", settings.to_str().unwrap()]);
        service
            .eventually(name, |page| page.contains("scope=\"host\"") || page.contains("wattcast_run_energy_available"));
        wait_for_log(&service, word);
        assert!(!service.page().contains("way=\"database\""));
    }
}

/// With a receiver that fails at first: start and end of an alert arrive once, signed.
#[test]
fn start_and_end_of_an_alert_are_sent_once() {
    let receiver = Server::start(|_, count| if count <= 2 { (503, "later".into()) } else { (200, String::new()) });
    let dir = tempfile::tempdir().unwrap();
    let results = dir.path().join("results");
    fs::create_dir(&results).unwrap();
    let secret = file(dir.path(), "secret", "k3y\n");
    let settings = format!(
        "[[webhook]]\nname = \"ops\"\nurl = \"{}/hook\"\nsecret_file = \"{}\"\n\
         [[rule]]\nname = \"LowQuality\"\nmetric = \"vmaf\"\nbelow = 90\nseverity = \"critical\"\n\
         [[rule]]\nname = \"FramesLost\"\nmetric = \"drop_ratio\"\nabove = 0.01\n",
        receiver.url,
        secret.display()
    );
    let settings = file(dir.path(), "wattcast.toml", &settings);
    let state = dir.path().join("alerts.json");
    let flags = ["--config.file", settings.to_str().unwrap(), "--alerts.state", state.to_str().unwrap()];
    let row = |vmaf: f64| json!({"scenarios": [{"name": "live \"1\"", "bitrate": "2M", "vmaf_score": vmaf, "total_frames": 100, "dropped_frames": 0}]});
    let other = json!({"scenarios": [{"name": "other", "vmaf_score": 60}]});
    write(&results, "20260101_000000", &row(80.0).to_string());
    {
        let service = Service::start(&results, NO_SERVER, &flags);
        receiver.eventually("the third attempt", |requests| requests.len() >= 3);
        write(&results, "20260102_000000", &row(70.0).to_string());
        service.eventually("the second run", |page| page.contains("run=\"20260102_000000\""));
        // Notifications are in order: one of the second run would come before that of another
        // scenario.
        write(&results, "20251231_000000", &other.to_string());
        receiver.eventually("the alert of another scenario", |requests| requests.len() >= 4);
        // A delivery that was not saved is repeated after the next start.
        let queue = || fs::read_to_string(state.with_extension("0.waiting")).unwrap_or_default();
        eventually(20.0, "the delivery is saved", || queue().trim() == "[]");
    }
    let requests = receiver.requests();
    assert_eq!(requests.len(), 4, "an active alert is not sent again: {requests:?}");
    let body = |number: usize| -> Value { serde_json::from_slice(&requests[number].body).unwrap() };
    assert_eq!(body(3)["alerts"][0]["labels"]["scenario"], "other");
    let attempts = &requests[..3];
    let same = |name: &str| attempts.iter().all(|one| one.headers[name] == requests[0].headers[name]);
    assert!(same("idempotency-key") && attempts.iter().all(|one| one.body == requests[0].body && one.path == "/hook"));
    let signature = &requests[2].headers["x-wattcast-signature"];
    let unix: i64 = signature.trim_start_matches("t=").split(',').next().unwrap().parse().unwrap();
    assert_eq!(*signature, analysis::alerts::webhook::signature("k3y", unix, &requests[2].body));
    let body = body(2);
    assert_eq!((&body["status"], &body["version"], &body["receiver"]), (&json!("firing"), &json!("4"), &json!("ops")));
    assert_eq!(body["alerts"][0]["labels"]["scenario"], "live \"1\"");
    assert_eq!(body["commonLabels"]["severity"], "critical");
    // A restart repeats nothing, and the end of an earlier alert is sent.
    let service = Service::start(&results, NO_SERVER, &flags);
    service.eventually("all runs", |page| page.contains("run=\"20260102_000000\""));
    write(&results, "20260103_000000", &row(95.0).to_string());
    let requests = receiver.eventually("the resolved alert", |requests| requests.len() >= 5);
    let body: Value = serde_json::from_slice(&requests[4].body).unwrap();
    assert_eq!((requests.len(), &body["status"]), (5, &json!("resolved")));
    assert_eq!(
        body["alerts"][0]["fingerprint"],
        serde_json::from_slice::<Value>(&requests[0].body).unwrap()["alerts"][0]["fingerprint"]
    );
    assert!(!service.log().contains("k3y"));
}

/// A receiver that is down during a restart of the service gets the notification once; rejected
/// ones are kept in a file.
#[test]
fn a_queued_notification_is_sent_after_a_restart() {
    let port = free_port();
    let dir = tempfile::tempdir().unwrap();
    let results = dir.path().join("results");
    fs::create_dir(&results).unwrap();
    let state = dir.path().join("alerts.json");
    let settings = |url: &str| {
        let text = format!("[[webhook]]\nurl = \"{url}\"\n[[rule]]\nname = \"Low\"\nmetric = \"vmaf\"\nbelow = 90\n");
        file(dir.path(), "wattcast.toml", &text)
    };
    let down = settings(&format!("http://127.0.0.1:{port}/hook"));
    let flags = ["--config.file", down.to_str().unwrap(), "--alerts.state", state.to_str().unwrap()];
    write(&results, "20260101_000000", &json!({"scenarios": [{"name": "a", "vmaf_score": 50}]}).to_string());
    let queue = dir.path().join("alerts.0.waiting");
    {
        let service = Service::start(&results, NO_SERVER, &flags);
        wait_for_log(&service, "retry in");
        assert!(fs::read_to_string(&queue).unwrap().contains("firing"));
    }
    let receiver = Server::start(|_, _| (410, "never again".into()));
    settings(&format!("{}/hook", receiver.url));
    let service = Service::start(&results, NO_SERVER, &flags);
    let requests = receiver.eventually("the queued notification", |requests| !requests.is_empty());
    assert!(text(&requests[0].body).contains("\"alertname\":\"Low\""), "{requests:?}");
    let dead = dir.path().join("alerts.0.dead");
    eventually(20.0, "the rejected notification is kept and no longer queued", || {
        let is_empty = fs::read_to_string(&queue).is_ok_and(|text| text == "[]");
        is_empty && fs::read_to_string(&dead).is_ok_and(|lines| lines.lines().count() == 1)
    });
    wait_for_log(&service, "given up: status 410");
    assert_eq!(receiver.requests().len(), 1);
}

#[test]
fn carbon_intensity_has_its_origin_and_time() {
    let since = now() - 600;
    let stamp = rfc3339(since);
    let answer = json!({"zone": "SE", "carbonIntensity": 36, "datetime": stamp, "isEstimated": true}).to_string();
    let source = Server::start(move |request, _| {
        let known =
            request.headers.get("auth-token").map(String::as_str) == Some("t0ken") && request.path == "/latest?zone=SE";
        if known { (200, answer.clone()) } else { (403, "unknown token".into()) }
    });
    let dir = tempfile::tempdir().unwrap();
    let token = file(dir.path(), "token", "t0ken");
    let settings = format!(
        "[carbon]\nurl = \"{}/latest?zone={{region}}\"\ntoken_file = \"{}\"\n[energy]\npue = 1.5\n",
        source.url,
        token.display()
    );
    let settings = file(dir.path(), "wattcast.toml", &settings);
    let results = dir.path().join("results");
    fs::create_dir(&results).unwrap();
    let at = now() - 400;
    let row = |start: u64| json!({"name": format!("at {start}"), "start_time": start, "end_time": start + 100, "energy_joules": 3.6e6});
    write(&results, "20260101_000000", &json!({"scenarios": [row(at), row(at - 86400)]}).to_string());
    let service = Service::start(&results, NO_SERVER, &["--config.file", settings.to_str().unwrap(), "--region=SE"]);
    let page = service.eventually_at(4, "a footprint", |page| page.contains("wattcast_cost_carbon_grams{"));
    // 1 kWh of the machine is 1.5 kWh of the building.
    assert!(page.contains(&format!("wattcast_cost_carbon_grams{{scenario=\"at {at}\",bitrate=\"\",encoder=\"\",run=\"20260101_000000\",origin=\"http\"}} 54\n")), "{page}");
    assert!(
        !page.contains(&format!("wattcast_cost_carbon_grams{{scenario=\"at {}\"", at - 86400)),
        "yesterday is unknown: {page}"
    );
    for line in [
        "wattcast_carbon_intensity_grams{origin=\"http\",region=\"SE\",estimated=\"true\"} 36".to_owned(),
        format!("wattcast_carbon_intensity_timestamp_seconds{{origin=\"http\",region=\"SE\"}} {since}"),
        "wattcast_energy_carbon_grams 0.000015".to_owned(),
        "wattcast_price_amount{item=\"energy\",currency=\"USD\",origin=\"default\"} 0.12".to_owned(),
    ] {
        assert!(page.contains(&format!("{line}\n")), "{line}\n{page}");
    }
    assert!(service.port(4).text("/").unwrap().contains("default, not configured"));
    assert!(!service.log().contains("t0ken"));
}

/// RFC 3339 of unix seconds, in UTC.
fn rfc3339(unix: u64) -> String {
    output(Command::new("date").args(["-u", "-d", &format!("@{unix}"), "+%Y-%m-%dT%H:%M:%S.000Z"])).unwrap()
}

#[test]
fn a_budget_has_spending_burn_rate_and_forecast() {
    requires!(victoria_metrics);
    // 40 days of 1 kW, scraped twice; a host outside the budget; and a host with counters of the
    // platform (2 kW) and of a GPU in it.
    let until = now() / 300 * 300;
    let count = 40 * 24 * 12;
    let series = |host: &str, job: &str, zone: &str, watts: u64| Series {
        name: "wattcast_energy_joules_total",
        labels: format!("instance=\"{host}:9500\",job=\"{job}\",package=\"0\",zone=\"{zone}\",source=\"perf\""),
        samples: (0..=count).map(|number| (until - (count - number) * 300, number * 300 * watts * 1_000_000)).collect(),
    };
    let all = [
        series("enc-1", "rapl", "package", 1000),
        series("enc-1", "copy", "package", 1000),
        series("enc-2", "rapl", "package", 7000),
        series("enc-3", "rapl", "psys", 2000),
        series("enc-3", "rapl", "gpu", 500),
    ];
    let database = Database::victoria(&all);
    let dir = tempfile::tempdir().unwrap();
    let settings = format!(
        "[energy]\nprice = 1\n[tariff]\ntime_zone = \"UTC\"\n[database]\nurl = \"{}\"\n\
         [[budget]]\nname = \"studio\"\namount = 720\nhosts = [\"enc-1\"]\n\
         [[budget]]\nname = \"platform\"\namount = 720\nhosts = [\"enc-3\"]\n\
         [[budget]]\nname = \"abroad\"\namount = 720\ncurrency = \"EUR\"\nhosts = [\"all\"]\n",
        database.url
    );
    let settings = file(dir.path(), "wattcast.toml", &settings);
    let service = Service::start(dir.path(), NO_SERVER, &["--config.file", settings.to_str().unwrap()]);
    let page = service.eventually_at(4, "the budget", |page| page.contains("wattcast_budget_spent_amount{"));
    let value = |name: &str| -> f64 {
        let found = page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}\n{page}"));
        found.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    let month = output(Command::new("date").args(["-u", "+%d %H %M"])).unwrap();
    let [day, hour, minute] = month.split(' ').map(|part| part.parse::<f64>().unwrap()).collect::<Vec<_>>()[..] else {
        panic!("{month}")
    };
    let hours = (day - 1.0) * 24.0 + hour + minute / 60.0;
    let spent = value("wattcast_budget_spent_amount{budget=\"studio\",currency=\"USD\"}");
    // 1 kWh and 1 USD an hour; five minutes and a scrape at the edges.
    assert!((spent - hours).abs() < 0.3 + hours * 0.01, "{spent} of {hours}");
    let platform = value("wattcast_budget_spent_amount{budget=\"platform\",currency=\"USD\"}");
    assert!((platform / 2.0 - spent).abs() < 0.1 + hours * 0.01, "the platform includes the GPU: {platform}");
    assert_eq!(value("wattcast_budget_unknown_seconds{budget=\"studio\"}"), 0.0);
    let middle = value("wattcast_budget_forecast_amount{budget=\"studio\",currency=\"USD\",bound=\"middle\"}");
    assert!((28.0 * 24.0 - 8.0..=31.0 * 24.0 + 8.0).contains(&middle), "{middle}");
    assert!(value("wattcast_budget_forecast_error_ratio{budget=\"studio\"}") < 0.01);
    let burn = value("wattcast_budget_burn_ratio{budget=\"studio\",window=\"24h\"}");
    assert!((0.9..1.1).contains(&burn), "{burn}");
    assert!(page.contains("wattcast_budget_up{budget=\"abroad\",reason=\"no_rate\"} 0\n"), "{page}");
    assert_eq!(value("wattcast_budget_amount{budget=\"studio\",currency=\"USD\"}"), 720.0);
}

#[test]
fn backfill_writes_runs_with_their_own_timestamps() {
    requires!(victoria_metrics);
    let database = Database::victoria(&[]);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "20240115_103000", SAMPLE);
    write(dir.path(), "20240115_113000", "torn");
    let done = run("backfill", dir.path(), &["--database.url", &database.url]);
    assert!(done.status.success() && text(&done.stderr).contains("1 runs"), "{}", text(&done.stderr));
    // A second backfill changes nothing.
    assert!(run("backfill", dir.path(), &["--database.url", &database.url]).status.success());
    database.flush();
    let export = |name: &str| -> Vec<Value> {
        let url = format!("{}/api/v1/export", database.url);
        let mut reply = ureq::get(url)
            .query("match[]", name)
            .query("start", "1705000000")
            .query("end", "1706000000")
            .call()
            .unwrap();
        let lines = reply.body_mut().read_to_string().unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let energy = export("wattcast_run_energy_joules{scenario=\"2 streams @ 2500k\"}");
    assert_eq!(energy.len(), 1);
    assert_eq!(energy[0]["timestamps"][0], 1_705_315_920_500_u64);
    assert_eq!(energy[0]["values"][0], 2077.5);
    let samples = export("wattcast_run_power_sample_watts{scenario=\"2 streams @ 2500k\"}");
    let times = samples[0]["timestamps"].as_array().unwrap();
    let mut apart: Vec<u64> = times.iter().map(|time| time.as_u64().unwrap()).collect();
    apart.dedup();
    assert_eq!((apart[0], apart[1], apart.len()), (1_705_315_800_000, 1_705_315_805_000, 10));
    assert_eq!(export("cost_total_load_aware").len(), 4);
    assert_eq!(export("qoe_vmaf_score").len(), 3);
    let dry = run("backfill", dir.path(), &["--dry-run"]);
    assert!(text(&dry.stdout).contains("qoe_vmaf_score{scenario=\"2 streams @ 2500k\",bitrate=\"2500k\",encoder=\"libx264\",run=\"20240115_103000\"} 92.5 1705315920500\n"));
    // A configured probe may have more energy, so nothing is written without its answer.
    let open = run("backfill", dir.path(), &["--dry-run", "--probe-url", NO_SERVER]);
    assert!(
        !open.status.success() && text(&open.stderr).contains("4 scenarios were left out"),
        "{}",
        text(&open.stderr)
    );
    assert!(!text(&open.stdout).contains("run_energy_joules"), "{}", text(&open.stdout));
    let nowhere = run("backfill", dir.path(), &[]);
    assert!(!nowhere.status.success() && text(&nowhere.stderr).contains("--database.url"), "{}", text(&nowhere.stderr));
}

/// Two encoders with four bitrates each, and 1 to 4 streams of one of them.
fn measured() -> String {
    let row = |encoder: &str, kbit: u32, vmaf: f64, joules: f64| {
        json!({"name": format!("{encoder} {kbit}k"), "bitrate": format!("{kbit}k"), "encoder_type": encoder, "resolution": "1920x1080",
            "fps": 30, "duration": 100, "total_frames": 3000, "vmaf_score": vmaf, "energy_joules": joules, "cpu_usage_cores": [2, 2], "step_seconds": 100})
    };
    let mut rows = vec![
        row("libx264", 1000, 78.0, 3000.0),
        row("libx264", 2000, 88.0, 3200.0),
        row("libx264", 4000, 94.0, 3600.0),
        row("libx264", 8000, 97.0, 4400.0),
        row("libx265", 1000, 86.0, 7000.0),
        row("libx265", 2000, 93.5, 7400.0),
        row("libx265", 4000, 96.5, 8200.0),
        // Worse than libx264 at 2000k in everything.
        row("mpeg2video", 4000, 80.0, 9000.0),
    ];
    for streams in 1..=4 {
        rows.push(json!({"name": format!("{streams} streams"), "streams": streams, "bitrate": "3000k", "encoder_type": "libx264", "resolution": "1280x720",
            "fps": 30, "duration": 100, "energy_joules": 2000 + 1500 * streams}));
    }
    json!({"scenarios": rows}).to_string()
}

#[test]
fn advise_recommends_the_best_and_does_not_extrapolate() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "20260101_000000", &measured());
    let advise_with_code = |flags: &[&str], code: i32| -> Value {
        let out = run("advise", dir.path(), &[&["--json"], flags].concat());
        assert_eq!(out.status.code(), Some(code), "{}", text(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let advise = |flags: &[&str]| advise_with_code(flags, 0);
    let advice = advise(&["--target-vmaf=93", "--resolution=1080p"]);
    assert_eq!(advice["recommendation"]["Ok"]["scenario"], "libx264 4000k");
    let between = advice["recommendation"]["Ok"]["interpolated_joules_per_media_second"].as_f64().unwrap();
    assert!((32.0..36.0).contains(&between), "{between}");
    let pareto: Vec<&str> = advice["scenarios"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["pareto"] == true)
        .map(|one| one["scenario"].as_str().unwrap())
        .collect();
    assert!(
        pareto.contains(&"libx264 4000k") && pareto.contains(&"libx265 2000k"),
        "less bitrate for more energy: {pareto:?}"
    );
    assert!(!pareto.contains(&"mpeg2video 4000k"), "{pareto:?}");
    assert_eq!(
        advise(&["--target-vmaf=93", "--resolution=1080p", "--objective=bitrate"])["recommendation"]["Ok"]["scenario"],
        "libx265 2000k"
    );
    // What was asked for has no answer.
    let error = &advise_with_code(&["--target-vmaf=99", "--resolution=1080p"], 3)["recommendation"]["Err"];
    assert!(error.as_str().unwrap().contains("best is 97"), "{error}");
    let predicted = &advise(&["--streams=3", "--resolution=720p"])["predictions"][0]["Ok"];
    assert!(
        (predicted["watts"].as_f64().unwrap() - 65.0).abs() < 1e-9
            && predicted["leave_one_out_error"].as_f64().unwrap() < 1e-9
    );
    let beyond = &advise(&["--streams=9", "--resolution=720p"])["predictions"][0]["Err"];
    assert!(beyond.as_str().unwrap().contains("outside"), "{beyond}");
    let few = &advise(&["--streams=2", "--resolution=1080p"])["predictions"][0]["Err"];
    assert!(few.as_str().unwrap().contains("three different"), "{few}");
    let table = text(&run("advise", dir.path(), &["--target-vmaf=93", "--resolution=1080p"]).stdout);
    assert!(table.contains("Recommended: libx264 4000k") && table.contains("that of energy is the default"), "{table}");
    println!("{table}");
    let nothing = run("advise", &dir.path().join("nowhere"), &[]);
    assert!(!nothing.status.success() && text(&nothing.stderr).contains("--results-dir"));
}

/// A file of schema 2: name, output height, number of streams, joules of three repeats and VMAF of
/// each configuration. The joules are of the host, a tenth of them of the container.
fn repeated(configurations: &[(&str, u32, u32, [f64; 3], f64)]) -> String {
    let cell = |(name, height, streams, joules, vmaf): &(&str, u32, u32, [f64; 3], f64)| {
        let repeat = |(n, joules): (usize, &f64)| {
            let energy = |scope: &str, part: f64| json!({"scope": scope, "source": "perf", "microjoules": (joules * part * 1e6).round() as u64});
            json!({"n": n + 1, "status": "ok", "frames": {"encoded": 300, "dropped": 0}, "bytes": 437_500, "media_seconds": 10.0,
                "container": "enc", "energy": [energy("host", 1.0), energy("container", 0.1)],
                "window": {"start_unix_ns": 1_795_176_000_000_000_000_u64, "end_unix_ns": 1_795_176_010_000_000_000_u64, "seconds": 10.0},
                "quality": [{"metric": "vmaf", "value": vmaf, "model": "m", "pooling": "mean"}]})
        };
        let repeats: Vec<Value> = joules.iter().enumerate().map(repeat).collect();
        json!({"name": name, "repeats": repeats, "axes": {"encoder": "libx264", "preset": "fast", "bitrate": "500k",
            "width": height * 16 / 9, "height": height, "frames_per_second": 30, "streams": streams}})
    };
    let cells: Vec<Value> = configurations.iter().map(cell).collect();
    json!({"schema": "wattcast/results/2", "run": {"id": "r", "started": "2026-11-20T12:00:00Z", "status": "ok"},
        "host": {"name": "h"}, "cells": cells})
    .to_string()
}

#[test]
fn advise_and_report_have_the_same_figures() {
    let dir = tempfile::tempdir().unwrap();
    // The first repeat of "wide" is the best of all; its mean is not.
    let file = repeated(&[
        ("low", 720, 1, [10.0, 10.1, 10.2], 95.0),
        ("wide", 720, 1, [9.0, 11.0, 11.5], 95.0),
        ("high", 720, 1, [20.0, 20.1, 20.2], 95.0),
    ]);
    write(dir.path(), "20261120_120000", &file);
    let out = run("advise", dir.path(), &["--json", "--target-vmaf=90"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let advice: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(advice["recommendation"]["Ok"]["scenario"], "low");
    assert_eq!(advice["recommendation"]["Ok"]["ties"], json!(["wide"]), "their intervals overlap");
    let row = |name: &str| {
        let all = advice["scenarios"].as_array().unwrap();
        all.iter().find(|one| one["scenario"].as_str().unwrap().starts_with(name)).unwrap().clone()
    };
    assert_eq!((&row("low")["rank"], &row("wide")["rank"], &row("high")["rank"]), (&json!(1), &json!(1), &json!(3)));
    assert_eq!((&row("low")["scope"], &row("low")["repeats"]), (&json!("container"), &json!(3)));
    // As measured, not the 500k that were requested.
    assert_eq!(row("low")["bits_per_second"], json!(350_000.0));
    // 10.1 J, a tenth of it of the container, over 10 s of media; half width: 4.303 · s / √3.
    let table = text(&run("advise", dir.path(), &["--target-vmaf=90"]).stdout);
    let report = text(&run("report", dir.path(), &["--output=-"]).stdout);
    for page in [&table, &report] {
        assert!(page.contains("0.101 ± 0.0025") || page.contains("0.1010 ± 0.0025"), "{page}");
    }
    let host = text(&run("advise", dir.path(), &["--energy.scope=host"]).stdout);
    assert!(host.contains("1.010 ± 0.025") && host.contains("host perf"), "{host}");
}

#[test]
fn advise_recommends_within_one_output_and_number_of_streams() {
    let dir = tempfile::tempdir().unwrap();
    let file = repeated(&[
        ("small", 360, 1, [1.0, 1.1, 1.2], 95.0),
        ("large", 720, 1, [10.0, 10.1, 10.2], 95.0),
        ("four", 720, 4, [5.0, 5.1, 5.2], 95.0),
    ]);
    write(dir.path(), "20261120_120000", &file);
    let recommendation = |flags: &[&str]| {
        let out = run("advise", dir.path(), &[&["--json", "--target-vmaf=90"], flags].concat());
        serde_json::from_slice::<Value>(&out.stdout).unwrap()["recommendation"].clone()
    };
    let several = recommendation(&[])["Err"].as_str().unwrap().to_owned();
    assert!(several.contains("640x360@30, 1280x720@30") || several.contains("1280x720@30, 640x360@30"), "{several}");
    assert!(several.contains("--resolution"), "{several}");
    let streams = recommendation(&["--resolution=720p"])["Err"].as_str().unwrap().to_owned();
    assert!(streams.contains("1, 4") && streams.contains("--streams"), "{streams}");
    assert_eq!(recommendation(&["--resolution=720p", "--streams=4"])["Ok"]["scenario"], "four");
    assert_eq!(recommendation(&["--resolution=720p", "--streams=1"])["Ok"]["scenario"], "large");
    let none = recommendation(&["--resolution=720p", "--streams=2"])["Err"].as_str().unwrap().to_owned();
    assert!(none.contains("1, 4 streams"), "{none}");
}

#[test]
fn a_live_run_does_not_hide_the_newest_run_with_scores() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "20261120_120000", &repeated(&[("scored", 720, 1, [10.0, 10.1, 10.2], 95.0)]));
    let mut live: Value = serde_json::from_str(&repeated(&[("live", 720, 1, [10.0, 10.1, 10.2], 95.0)])).unwrap();
    for repeat in live["cells"][0]["repeats"].as_array_mut().unwrap() {
        repeat.as_object_mut().unwrap().remove("quality");
    }
    write(dir.path(), "20261121_120000", &live.to_string());
    let out = run("advise", dir.path(), &["--json", "--target-vmaf=90"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let advice: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(advice["recommendation"]["Ok"]["scenario"], "scored");
    // Without a target only the newest run is shown.
    let newest = text(&run("advise", dir.path(), &[]).stdout);
    assert!(newest.contains("live") && !newest.contains("scored"), "{newest}");
}

#[test]
fn a_report_without_measurements_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "20260101_000000", r#"{"scenarios": []}"#);
    let empty = run("report", dir.path(), &["--output=-"]);
    assert!(!empty.status.success() && empty.stdout.is_empty(), "{}", text(&empty.stdout));
    assert!(text(&empty.stderr).contains("20260101_000000"), "{}", text(&empty.stderr));
    let nowhere = run("report", &dir.path().join("nowhere"), &[]);
    assert!(!nowhere.status.success() && text(&nowhere.stderr).contains("--results-dir"), "{}", text(&nowhere.stderr));
}

#[test]
fn energy_at_equal_quality_is_not_extrapolated() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "20260101_000000", &measured());
    let service = Service::start(dir.path(), NO_SERVER, &[]);
    let page = service.eventually_at(3, "curves", |page| page.contains("wattcast_quality_equal_energy_joules{"));
    let at = |encoder: &str, vmaf: &str| -> Option<f64> {
        let start = format!("wattcast_quality_equal_energy_joules{{run=\"20260101_000000\",encoder=\"{encoder}\"");
        let row = page.lines().find(|line| line.starts_with(&start) && line.contains(&format!("vmaf=\"{vmaf}\"")))?;
        row.rsplit_once(' ').unwrap().1.parse().ok()
    };
    // scipy: exp(PchipInterpolator([78, 88, 94, 97], log([30, 32, 36, 44]))(90))
    assert!(at("libx264", "90").is_some_and(|joules| (joules - 32.816_271_523_924_2).abs() < 1e-9), "{page}");
    assert!(at("libx265", "90").is_some_and(|joules| (70.0..74.0).contains(&joules)), "{page}");
    assert_eq!((at("libx265", "80"), at("libx264", "80").is_some()), (None, true));
}

#[test]
fn energy_of_several_hosts_is_not_summed() {
    let probe = |joules: u64, container: &'static str| {
        Server::start(move |_, _| {
            let accounts = json!([{"package": "0", "zone": "package", "source": "perf", "measured_joules": joules, "edge_error_joules": 0, "missing_seconds": 0}]);
            let energy = json!([{"source": "perf", "joules": joules / 2, "edge_error_joules": 0}]);
            let containers = json!([{"container": container, "id": "x", "energy": energy, "cpu": [{"package": "0", "seconds": 3.5}]}]);
            (200, json!({"accounts": accounts, "containers": containers}).to_string())
        })
    };
    let (one, two) = (probe(100, "cam"), probe(700, "other"));
    let dir = tempfile::tempdir().unwrap();
    let row = |name: &str, more: Value| {
        let mut row = json!({"name": name, "start_time": 1000, "end_time": 1010});
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row
    };
    let rows = [
        row("by host", json!({"host": "enc-2"})),
        row("by container", json!({"container": "cam"})),
        row("by neither", json!({})),
        row("elsewhere", json!({"host": "enc-3"})),
    ];
    write(dir.path(), "20260101_000000", &json!({"scenarios": rows}).to_string());
    let probes = format!("enc-1={},enc-2={}", one.url, two.url);
    let service = Service::start(dir.path(), &probes, &[]);
    let page = service.eventually("all probes have answered", |page| {
        page.contains(
            "scenario=\"elsewhere\",bitrate=\"\",encoder=\"\",run=\"20260101_000000\",reason=\"no_probe\"} 0\n",
        )
    });
    let energy: Vec<&str> = page.lines().filter(|line| line.starts_with("wattcast_run_energy_joules{")).collect();
    let has = |name: &str, scope: &str, joules: &str| {
        energy.iter().any(|line| {
            line.contains(&format!("\"{name}\"")) && line.contains(scope) && line.ends_with(&format!(" {joules}"))
        })
    };
    assert!(
        has("by host", "host", "700") && has("by container", "host", "100") && has("by container", "container", "50"),
        "{energy:?}"
    );
    assert!(
        !energy.iter().any(|line| line.contains("neither") || line.contains("elsewhere") || line.ends_with(" 800")),
        "{energy:?}"
    );
    assert!(
        page.contains(
            "scenario=\"by neither\",bitrate=\"\",encoder=\"\",run=\"20260101_000000\",reason=\"which_host\"} 0\n"
        ),
        "{page}"
    );
    assert!(page.contains("wattcast_run_cpu_seconds{scenario=\"by container\",bitrate=\"\",encoder=\"\",run=\"20260101_000000\"} 3.5\n"), "{page}");
}
