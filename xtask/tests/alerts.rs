//! An alert on its whole way: a source of energy breaks under the running probe, a real Prometheus with the shipped rules sees it, a real Alertmanager with the shipped
//! settings tells the receiver that they name, which shows it; and it is over when the source is back.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::{fs, process::Command};

use testkit::{
    api::Client,
    databases::Database,
    eventually,
    program::Program,
    requires,
    shell::{programs, which},
    simulator::{Simulator, Spec},
    wait::eventually_ok,
};
use xtask::places::{Places, short_intervals, short_rules};

/// Of each step from a source to the receiver, where intervals are short.
const PATIENCE: f64 = 150.0;

#[test]
fn a_lost_source_reaches_the_receiver_and_is_over_when_it_is_back() {
    requires!(root, prometheus, promtool, alertmanager);
    let (bin, dir) = (programs().unwrap(), tempfile::tempdir().unwrap());
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
    fs::write(&file, short_intervals(&places.put_into("deploy/compose/alertmanager.yml", "").unwrap())).unwrap();
    let mut command = Command::new(which("prometheus-alertmanager").unwrap());
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--storage.path={}", dir.path().join("alerts").display()));
    command.arg(format!("--web.listen-address={}", at(9093))).arg("--cluster.listen-address=");
    let _alertmanager = Program::start("alertmanager", &mut command, dir.path()).unwrap();

    let rules = dir.path().join("rules");
    short_rules(&rules).unwrap();
    // Remote writes have no VictoriaMetrics to go to.
    let config = short_intervals(&places.put_into("deploy/compose/prometheus.yml", "http://127.0.0.1:1").unwrap());
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
    eventually(PATIENCE, "the source is seen well", seen);
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
    eventually_ok(PATIENCE, "the receiver shows it", || {
        let landing = landing()?;
        let shown = landing.contains("WattcastSourceLost") && landing.contains("Source powercap of");
        if shown { Ok(()) } else { Err(landing) }
    });
    assert!(page().unwrap().contains("wattcast_alerts_firing{severity=\"critical\"} 1\n"), "{}", page().unwrap());
    let log = analysis.log();
    assert_eq!(log.lines().filter(|line| line.contains("alert WattcastSourceLost (critical)")).count(), 1, "{log}");
    // The link leads somewhere.
    let runbooks = Client::new(format!("http://{}", at(9600))).text("/runbooks").unwrap();
    assert!(runbooks.contains("id=\"wattcastsourcelost\""));

    let _simulator = Simulator::start(dir.path(), &Spec::default()).unwrap();
    eventually_ok(PATIENCE, "the receiver has it no more", || {
        let landing = landing()?;
        if landing.contains("WattcastSourceLost") { Err(landing) } else { Ok(()) }
    });
    assert!(analysis.log().contains("alert WattcastSourceLost is over"), "{}", analysis.log());
}
