//! An alert on its whole way: a source of energy breaks under the running probe, a real Prometheus with the shipped rules sees it, a real Alertmanager with the shipped
//! settings tells the receiver that they name, which shows it; and it is over when the source is back.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use testkit::{
    api::Client,
    databases::Database,
    program::Program,
    shell::{is_root, programs, root, which},
    simulator::{Simulator, Spec},
};
use xtask::places::Places;

fn eventually(what: &str, mut so: impl FnMut() -> Result<bool, String>) {
    let end = Instant::now() + Duration::from_secs(150);
    loop {
        let last = match so() {
            Ok(true) => return,
            Ok(false) => String::new(),
            Err(last) => last,
        };
        assert!(Instant::now() < end, "not within 150 s: {what}\n{last}");
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// The shipped waits are for people: minutes become seconds, and nothing else changes.
fn hurried(text: &str) -> String {
    let mut text = text.to_owned();
    for (shipped, here) in [
        ("for: 1m", "for: 2s"),
        ("scrape_interval: 5s", "scrape_interval: 1s"),
        ("scrape_timeout: 5s", "scrape_timeout: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 1s"),
        ("interval: 15s", "interval: 1s"),
        ("group_wait: 10s", "group_wait: 1s"),
        ("group_interval: 1m", "group_interval: 2s"),
    ] {
        text = text.replace(shipped, here);
    }
    text
}

#[test]
fn a_lost_source_reaches_the_receiver_and_is_over_when_it_is_back() {
    let missing = ["prometheus", "promtool", "prometheus-alertmanager"].into_iter().find(|name| which(name).is_none());
    if let Some(name) = missing {
        println!("skipped: {name} is not in PATH");
        return;
    }
    if !is_root() {
        println!("skipped: the probe's sources need root");
        return;
    }
    let (bin, dir) = (programs(&["probe-user", "analysis"]).unwrap(), tempfile::tempdir().unwrap());
    let places = Places::choose().unwrap();
    let simulator = Simulator::start(dir.path(), &Spec::default()).unwrap();
    let at = |port: u16| format!("127.0.0.1:{}", places.port(port));

    let mut command = Command::new(bin.join("wattcast-probe"));
    command.arg("--path.sysfs").arg(simulator.sysfs()).args(["--no-collector.cpu", "--state.dir"]).arg(dir.path());
    command.arg(format!("--web.listen-address={}", at(9500)));
    command.arg(format!("--stats.port={}", places.port(9501))).arg(format!("--gpu.port={}", places.port(9505)));
    let mut probe = Program::start("probe", &mut command, dir.path()).unwrap();
    probe.client().unwrap();

    let mut command = Command::new(bin.join("wattcast-analysis"));
    command.args(["serve", "--results-dir"]).arg(dir.path()).arg(format!("--probe-url=http://{}", at(9500)));
    command.arg(format!("--web.listen-address={}", at(9502))).arg("--health.interval=1h");
    for (flag, port) in [("qoe", 9503), ("cost", 9504), ("ffmpeg", 9506), ("health", 9600), ("nginx", 9728)] {
        command.arg(format!("--{flag}.port={}", places.port(port)));
    }
    let mut analysis = Program::start("analysis", &mut command, dir.path()).unwrap();
    analysis.client().unwrap();

    let file = dir.path().join("alertmanager.yml");
    fs::write(&file, hurried(&places.put_into("deploy/compose/alertmanager.yml", "").unwrap())).unwrap();
    let mut command = Command::new(which("prometheus-alertmanager").unwrap());
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--storage.path={}", dir.path().join("alerts").display()));
    command.arg(format!("--web.listen-address={}", at(9093))).arg("--cluster.listen-address=");
    let _alertmanager = Program::start("alertmanager", &mut command, dir.path()).unwrap();

    let rules = dir.path().join("rules");
    fs::create_dir(&rules).unwrap();
    for entry in fs::read_dir(root().join("deploy/prometheus/rules")).unwrap() {
        let path = entry.unwrap().path();
        let text = hurried(&fs::read_to_string(&path).unwrap());
        fs::write(rules.join(path.file_name().unwrap()), text).unwrap();
    }
    // Nobody takes what is written to a VictoriaMetrics here.
    let config = hurried(&places.put_into("deploy/compose/prometheus.yml", "http://127.0.0.1:1").unwrap());
    let database = Database::prometheus(&[], &config, Some(&rules)).unwrap();

    let page = || Client::new(format!("http://{}", at(9600))).text("/metrics").map_err(|error| error.to_string());
    let landing = || Client::new(format!("http://{}", at(9600))).text("/").map_err(|error| error.to_string());
    let seen = || {
        let found = Client::new(&database.url).json("/api/v1/query?query=wattcast_source_up").unwrap();
        found["data"]["result"]
            .as_array()
            .unwrap()
            .iter()
            .any(|series| series["metric"]["source"] == "powercap" && series["value"][1] == "1")
    };
    eventually("the source is seen well", || Ok(seen()));
    assert!(!landing().unwrap().contains("WattcastSourceLost"));

    // The probe keeps its descriptors, so what breaks is what it reads through them.
    let sysfs = simulator.sysfs().to_owned();
    drop(simulator);
    for entry in fs::read_dir(sysfs.join("class/powercap")).unwrap() {
        let energy = entry.unwrap().path().join("energy_uj");
        if energy.exists() {
            fs::write(energy, "nonsense\n").unwrap();
        }
    }
    eventually("the receiver shows it", || {
        let landing = landing()?;
        Ok(landing.contains("WattcastSourceLost") && landing.contains("Source powercap of"))
    });
    assert!(page().unwrap().contains("wattcast_alerts_firing{severity=\"critical\"} 1\n"), "{}", page().unwrap());
    let log = analysis.log();
    assert_eq!(log.lines().filter(|line| line.contains("alert WattcastSourceLost (critical)")).count(), 1, "{log}");
    // The link leads somewhere.
    let runbooks = Client::new(format!("http://{}", at(9600))).text("/runbooks").unwrap();
    assert!(runbooks.contains("id=\"wattcastsourcelost\""));

    let _simulator = Simulator::start(dir.path(), &Spec::default()).unwrap();
    eventually("the receiver has it no more", || Ok(!landing()?.contains("WattcastSourceLost")));
    assert!(analysis.log().contains("alert WattcastSourceLost is over"), "{}", analysis.log());
}
