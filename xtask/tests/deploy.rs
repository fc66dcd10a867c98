//! What is shipped for deployment, as far as it can be looked at without a cluster or a systemd that runs: units, manifests, compose file, images' descriptions.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::{fs, process::Command};

use serde_json::Value;
use testkit::requires;
use testkit::shell::{output, root, which};

fn documents(file: &str) -> Vec<Value> {
    let text = fs::read_to_string(root().join(file)).unwrap();
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

#[test]
fn the_units_are_hardened_as_systemd_itself_counts_it() {
    requires!(systemd_analyze);
    for unit in ["wattcast-probe.service", "wattcast-analysis.service"] {
        let path = root().join("deploy/systemd").join(unit);
        let said = output(Command::new("systemd-analyze").args(["security", "--offline=true", "--no-pager"]).arg(path))
            .unwrap();
        let level = said.lines().find(|line| line.contains("Overall exposure level")).unwrap();
        let score: f64 = level.split(": ").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
        println!("{level}");
        assert!(score <= 3.0, "{level}");
    }
}

/// The lines of a unit go on from each other, and a set that is taken away takes what a line before let in.
#[test]
fn what_the_probe_calls_is_what_its_unit_lets_through() {
    requires!(systemd_analyze);
    let calls = |set: &str| -> Vec<String> {
        if !set.starts_with('@') {
            return vec![set.to_owned()];
        }
        let mut open = vec![set.to_owned()];
        let mut all = Vec::new();
        while let Some(set) = open.pop() {
            let said = output(Command::new("systemd-analyze").args(["syscall-filter", "--no-pager", &set])).unwrap();
            for line in said.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
                if line.starts_with('@') { open.push(line.to_owned()) } else { all.push(line.to_owned()) }
            }
        }
        all
    };
    for (unit, needed) in [
        (
            "wattcast-probe.service",
            &["bpf", "perf_event_open", "capset", "prctl", "prlimit64", "sched_setaffinity", "socket", "epoll_wait"][..],
        ),
        (
            "wattcast-analysis.service",
            &["prlimit64", "socket", "epoll_wait", "inotify_add_watch", "clone3", "futex"][..],
        ),
    ] {
        let text = fs::read_to_string(root().join("deploy/systemd").join(unit)).unwrap();
        let mut let_through = std::collections::BTreeSet::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
            let (away, sets) = line.strip_prefix('~').map_or((false, line), |sets| (true, sets));
            for call in sets.split_whitespace().flat_map(calls) {
                if away {
                    let_through.remove(&call)
                } else {
                    let_through.insert(call)
                };
            }
        }
        for call in needed {
            assert!(let_through.contains(*call), "{unit} kills {call}");
        }
    }
}

#[test]
fn nothing_in_the_cluster_is_privileged_and_labels_of_the_measured_stay() {
    let all = documents("deploy/kubernetes/wattcast.yaml");
    let find = |kind: &str| all.iter().find(|document| document["kind"] == kind).unwrap();
    let container = |kind: &str| find(kind)["spec"]["template"]["spec"]["containers"][0].clone();
    let (probe, analysis) = (container("DaemonSet"), container("Deployment"));
    for container in [&probe, &analysis] {
        let rights = &container["securityContext"];
        assert!(rights["privileged"].is_null() && rights["allowPrivilegeEscalation"] == false, "{rights}");
        assert!(rights["readOnlyRootFilesystem"] == true && rights["capabilities"]["drop"][0] == "ALL", "{rights}");
    }
    assert_eq!(probe["securityContext"]["runAsUser"], 0);
    // A socket of a runtime is root on the node: nothing is mounted that has one in it.
    let volumes = find("DaemonSet")["spec"]["template"]["spec"]["volumes"].clone();
    for path in volumes.as_array().unwrap().iter().filter_map(|volume| volume["hostPath"]["path"].as_str()) {
        let known = ["/sys", "/proc", "/var/lib/wattcast"].contains(&path);
        assert!(
            known || path.ends_with("/io.containerd.runtime.v2.task") || path.ends_with("/storage/overlay-containers"),
            "{path}"
        );
    }
    assert_eq!(find("Deployment")["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"], true);
    // Each port of a service leads to one that the container has.
    for (service, container) in all.iter().filter(|document| document["kind"] == "Service").zip([&probe, &analysis]) {
        let ports: Vec<&Value> = container["ports"].as_array().unwrap().iter().map(|port| &port["name"]).collect();
        for port in service["spec"]["ports"].as_array().unwrap() {
            assert!(ports.contains(&&port["targetPort"]), "{port}");
        }
    }
    // And each that is scraped one of a service, with the name of a job that queries know.
    let jobs = fs::read_to_string(root().join("deploy/prometheus/prometheus.yml")).unwrap();
    for monitor in documents("deploy/kubernetes/servicemonitor.yaml") {
        for endpoint in monitor["spec"]["endpoints"].as_array().unwrap() {
            assert_eq!(endpoint["honorLabels"], true, "{endpoint}");
            let job = endpoint["relabelings"][0]["replacement"].as_str().unwrap();
            assert!(jobs.contains(&format!("job_name: {job}\n")), "{job}");
            let named = |document: &Value| {
                document["spec"]["ports"].as_array().unwrap().iter().any(|port| port["name"] == endpoint["port"])
            };
            assert!(all.iter().filter(|document| document["kind"] == "Service").any(named), "{endpoint}");
        }
    }
}

#[test]
fn compose_takes_the_file_from_where_people_stand() {
    requires!(docker_compose);
    let compose = which("docker-compose").unwrap();
    // In the directory of the tree, by .env; and beside the file.
    let all = output(Command::new(&compose).args(["config", "--services"]).current_dir(root())).unwrap();
    let beside = Command::new(&compose)
        .args(["-f", "compose.yaml", "config", "--services"])
        .current_dir(root().join("deploy"))
        .output();
    assert!(beside.unwrap().status.success());
    for service in [
        "wattcast-probe",
        "wattcast-analysis",
        "nginx-rtmp",
        "victoriametrics",
        "prometheus",
        "alertmanager",
        "grafana",
        "node-exporter",
        "cadvisor",
    ] {
        assert!(all.lines().any(|line| line == service), "{all}");
    }
    // Asked for its services, 1.29 names those of every profile.
    let file: Value = serde_saphyr::from_str(&fs::read_to_string(root().join("deploy/compose.yaml")).unwrap()).unwrap();
    for (name, service) in file["services"].as_object().unwrap() {
        let own = service["profiles"].as_array().is_some_and(|profiles| profiles[0] == "nvidia");
        assert_eq!(own, name == "dcgm-exporter", "{name}");
        assert_eq!(service["privileged"] == true, name == "cadvisor", "{name}");
    }
}

#[test]
fn every_file_that_is_made_is_what_its_description_says() {
    xtask::generate::fresh().unwrap();
    if which("amtool").is_some() {
        for file in ["deploy/alertmanager/alertmanager.yml", "deploy/compose/alertmanager.yml"] {
            output(Command::new("amtool").arg("check-config").arg(root().join(file))).unwrap();
        }
    }
    if which("promtool").is_some() {
        // Beside the host's configuration the rules lie as it names them.
        output(Command::new("promtool").args(["check", "config"]).arg(root().join("deploy/prometheus/prometheus.yml")))
            .unwrap();
    }
}
