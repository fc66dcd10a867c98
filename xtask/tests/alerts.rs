//! The whole path of an alert: an energy source of the running probe breaks, Prometheus fires the
//! shipped rule, Alertmanager notifies the receiver of the shipped configuration, which shows the
//! alert until the source is back.

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
use xtask::shipped_config::{PortMap, short_intervals, short_rules};

/// Seconds for each step from the source to the receiver, with short intervals.
const TIMEOUT: f64 = 150.0;

#[test]
fn lost_source_alert_reaches_the_receiver_and_resolves() {
    requires!(root, prometheus, promtool, alertmanager);
    let (bin, dir) = (programs().unwrap(), tempfile::tempdir().unwrap());
    let ports = PortMap::allocate().unwrap();
    let simulator = Simulator::start(dir.path(), &Spec::default()).unwrap();
    let at = |port: u16| format!("127.0.0.1:{}", ports.port(port));

    let mut command = Command::new(bin.join("wattcast-probe"));
    command.arg("--path.sysfs").arg(simulator.sysfs()).args(["--no-collector.cpu", "--state.dir"]).arg(dir.path());
    command.args(ports.probe_flags());
    let mut probe = Program::start("probe", &mut command, dir.path()).unwrap();
    probe.client().unwrap();

    let mut command = Command::new(bin.join("wattcast-analysis"));
    command.args(["serve", "--results-dir"]).arg(dir.path()).args(ports.analysis_flags());
    command.arg("--health.interval=1h");
    let mut analysis = Program::start("analysis", &mut command, dir.path()).unwrap();
    analysis.client().unwrap();

    let file = dir.path().join("alertmanager.yml");
    fs::write(&file, short_intervals(&ports.substitute("deploy/compose/alertmanager.yml", "").unwrap())).unwrap();
    let mut command = Command::new(which("prometheus-alertmanager").unwrap());
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--storage.path={}", dir.path().join("alerts").display()));
    command.arg(format!("--web.listen-address={}", at(9093))).arg("--cluster.listen-address=");
    let _alertmanager = Program::start("alertmanager", &mut command, dir.path()).unwrap();

    let rules = dir.path().join("rules");
    short_rules(&rules).unwrap();
    // No VictoriaMetrics: remote writes go to a closed port.
    let config = short_intervals(&ports.substitute("deploy/compose/prometheus.yml", "http://127.0.0.1:1").unwrap());
    let database = Database::prometheus(&[], &config, Some(&rules)).unwrap();

    let page = || Client::new(format!("http://{}", at(9600))).text("/metrics").map_err(|error| error.to_string());
    let index_page = || Client::new(format!("http://{}", at(9600))).text("/").map_err(|error| error.to_string());
    let source_is_up = || {
        let found = Client::new(&database.url).json("/api/v1/query?query=wattcast_source_up").unwrap();
        found["data"]["result"]
            .as_array()
            .unwrap()
            .iter()
            .any(|series| series["metric"]["source"] == "powercap" && series["value"][1] == "1")
    };
    eventually(TIMEOUT, "Prometheus has the source up", source_is_up);
    assert!(!index_page().unwrap().contains("WattcastSourceLost"));

    // The probe keeps its file descriptors open, so the content of the files must break.
    let sysfs = simulator.sysfs().to_owned();
    drop(simulator);
    for entry in fs::read_dir(sysfs.join("class/powercap")).unwrap() {
        let energy = entry.unwrap().path().join("energy_uj");
        if energy.exists() {
            fs::write(energy, "nonsense\n").unwrap();
        }
    }
    eventually_ok(TIMEOUT, "the receiver shows the alert", || {
        let index_page = index_page()?;
        let shown = index_page.contains("WattcastSourceLost") && index_page.contains("Source powercap of");
        if shown { Ok(()) } else { Err(index_page) }
    });
    assert!(page().unwrap().contains("wattcast_alerts_firing{severity=\"critical\"} 1\n"), "{}", page().unwrap());
    let log = analysis.log();
    assert_eq!(log.lines().filter(|line| line.contains("alert WattcastSourceLost (critical)")).count(), 1, "{log}");
    // The runbook link has a target.
    let runbooks = Client::new(format!("http://{}", at(9600))).text("/runbooks").unwrap();
    assert!(runbooks.contains("id=\"wattcastsourcelost\""));

    let _simulator = Simulator::start(dir.path(), &Spec::default()).unwrap();
    eventually_ok(TIMEOUT, "the receiver no longer shows the alert", || {
        let index_page = index_page()?;
        if index_page.contains("WattcastSourceLost") { Err(index_page) } else { Ok(()) }
    });
    assert!(analysis.log().contains("alert WattcastSourceLost resolved"), "{}", analysis.log());
}
