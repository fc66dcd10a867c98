//! Meters of the whole machine next to simulated counters: a sensor in a tree of files, a real HTTP
//! server, and a file.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use support::{Page, Probe};
use testkit::{
    eventually,
    simulator::{Simulator, Spec},
    wait::eventually_ok,
};

/// An HTTP server that gives the same answer to each request, and keeps the requests.
fn server(status: &'static str, body: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let kept = requests.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            kept.lock().unwrap().push(String::from_utf8_lossy(&request[..length]).into_owned());
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(body.as_bytes());
        }
    });
    (url, requests)
}

fn simulated(dir: &Path) -> Simulator {
    Simulator::start(dir, &Spec { packages: Some(1), ..Spec::default() }).unwrap()
}

/// A probe that reads the simulated counters, and no sources that take time to open.
fn probe(simulator: &Simulator, flags: &[&str]) -> Probe {
    let sysfs = format!("--path.sysfs={}", simulator.sysfs().display());
    let common =
        [&*sysfs, "--energy.source=powercap", "--cpu.tier=files", "--no-collector.docker", "--no-collector.gpu"];
    Probe::start(&[&common[..], flags].concat())
}

/// The page once the meter has power and energy.
fn measured(probe: &Probe, meter: &str) -> Page {
    eventually_ok(30.0, "the meter has energy", || {
        let page = probe.metrics();
        let energy = page.find("wattcast_reference_energy_joules_total", &[("meter", meter)]);
        let power = page.find("wattcast_reference_power_watts", &[("meter", meter)]);
        if energy > Some(0.0) && power.is_some() { Ok(page) } else { Err(format!("{energy:?} J, {power:?} W")) }
    })
}

#[test]
fn a_power_meter_of_the_board_is_a_source_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let simulator = simulated(dir.path());
    let device = simulator.sysfs().join("class/hwmon/hwmon2");
    fs::create_dir_all(&device).unwrap();
    fs::write(device.join("name"), "power_meter\n").unwrap();
    fs::write(device.join("power1_average"), "180000000\n").unwrap();
    let probe = probe(&simulator, &[]);
    let page = measured(&probe, "power_meter");
    let labels = [("meter", "power_meter"), ("source", "hwmon")];
    let watts = page.get("wattcast_reference_power_watts", &labels);
    assert!((watts - 180.0).abs() < 2.0, "{watts} W");
    assert_eq!(probe.source("power_meter").0, "usable");
    // It changes no account, and is no zone.
    page.assert_conserved();
    assert_eq!(page.find("wattcast_energy_joules_total", &[("zone", "psys")]), None);
    // Hours of load are needed for a comparison.
    assert_eq!(page.find("wattcast_reference_residual_ratio", &[]), None);
}

#[test]
fn an_endpoint_is_read_with_its_password_and_shows_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let simulator = simulated(dir.path());
    let (url, requests) = server("200 OK", r#"{"PowerControl":[{"PowerConsumedWatts":344.5}]}"#);
    let password = dir.path().join("password");
    fs::write(&password, "hunter2\n").unwrap();
    let probe = probe(
        &simulator,
        &[
            &format!("--reference.url={url}/redfish/v1/Chassis/1/Power?token=geheim"),
            "--reference.field=/PowerControl/0/PowerConsumedWatts",
            "--reference.interval=1s",
            "--reference.name=bmc",
            "--reference.username=metrics",
            &format!("--reference.password-file={}", password.display()),
        ],
    );
    let page = measured(&probe, "bmc");
    assert_eq!(page.get("wattcast_reference_power_watts", &[("meter", "bmc"), ("source", "http")]), 344.5);
    let request = requests.lock().unwrap()[0].to_lowercase();
    assert!(request.starts_with("get /redfish/v1/chassis/1/power?token=geheim"), "{request}");
    // metrics:hunter2
    assert!(request.contains("authorization: basic bwv0cmljczpodw50zxiy"), "{request}");
    let shown = format!("{} {:?}", probe.program.log(), probe.client.text("/api/v1/sources").unwrap());
    assert!(!shown.contains("hunter2") && !shown.contains("geheim"), "{shown}");
}

#[test]
fn an_endpoint_that_never_answers_delays_no_tick_and_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let simulator = simulated(dir.path());
    // Accepted by the kernel, and read by no program.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("--reference.url=http://{}", listener.local_addr().unwrap());
    let probe = probe(&simulator, &[&url, "--reference.interval=1s", "--tick=200ms"]);
    eventually(30.0, "the state of the meter", || probe.source("reference").0 == "broken");
    let page = probe.fresh();
    assert_eq!(page.find("wattcast_reference_power_watts", &[]), None);
    assert_eq!(page.get("wattcast_reference_energy_joules_total", &[("meter", "wall")]), 0.0);
    let longest = page.get("wattcast_collector_duration_seconds", &[("collector", "energy")]);
    assert!(longest < 1.0, "{longest} s");
    let (code, ready) = probe.client.get("/ready").unwrap();
    assert!(code == 503 && ready.contains("reference"), "{code} {ready}");
    let Probe { program, .. } = probe;
    let began = Instant::now();
    assert!(program.stop().unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn each_fault_of_an_endpoint_has_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let simulator = simulated(dir.path());
    for (status, body, state, word) in [
        ("401 Unauthorized", "", "denied", "--reference.username"),
        ("404 Not Found", "", "absent", "the path of --reference.url"),
        ("500 Internal Server Error", "", "broken", "500"),
        ("302 Found", "", "broken", "302"),
        ("200 OK", "<html>", "broken", "no number"),
        ("200 OK", "0", "broken", "impossible power"),
    ] {
        let (url, _requests) = server(status, body);
        let probe = probe(&simulator, &[&format!("--reference.url={url}"), "--reference.interval=1s"]);
        eventually_ok(20.0, "the state of the meter", || {
            let found = probe.source("reference");
            if found.0 == state && found.1.contains(word) { Ok(()) } else { Err(format!("{found:?}")) }
        });
        assert_eq!(probe.fresh().find("wattcast_reference_power_watts", &[]), None, "{status}");
    }
}

#[test]
fn a_file_in_another_unit_is_scaled() {
    let dir = tempfile::tempdir().unwrap();
    let simulator = simulated(dir.path());
    let file = dir.path().join("milliwatts");
    fs::write(&file, "98500\n").unwrap();
    let flag = format!("--reference.file={}", file.display());
    let probe = probe(&simulator, &[&flag, "--reference.scale=0.001", "--reference.interval=1s"]);
    let page = measured(&probe, "wall");
    assert_eq!(page.get("wattcast_reference_power_watts", &[("meter", "wall"), ("source", "file")]), 98.5);
    fs::remove_file(&file).unwrap();
    eventually(20.0, "the file is absent", || probe.source("reference").0 == "absent");
    assert_eq!(probe.fresh().find("wattcast_reference_power_watts", &[]), None);
}
