//! Deployment files, as far as they can be checked without a cluster or a running systemd: units,
//! manifests, compose file, generated configurations.

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
fn units_have_a_low_exposure_level() {
    requires!(systemd_analyze);
    for unit in ["wattcast-probe.service", "wattcast-analysis.service"] {
        let path = root().join("deploy/systemd").join(unit);
        let printed =
            output(Command::new("systemd-analyze").args(["security", "--offline=true", "--no-pager"]).arg(path))
                .unwrap();
        let level = printed.lines().find(|line| line.contains("Overall exposure level")).unwrap();
        let score: f64 = level.split(": ").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
        println!("{level}");
        assert!(score <= 3.0, "{level}");
    }
}

/// Lines of `SystemCallFilter=` apply in order: a line with `~` removes calls that earlier lines
/// allowed.
#[test]
fn units_allow_the_needed_system_calls() {
    requires!(systemd_analyze);
    let calls = |set: &str| -> Vec<String> {
        if !set.starts_with('@') {
            return vec![set.to_owned()];
        }
        let mut open = vec![set.to_owned()];
        let mut all = Vec::new();
        while let Some(set) = open.pop() {
            let printed = output(Command::new("systemd-analyze").args(["syscall-filter", "--no-pager", &set])).unwrap();
            for line in printed.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
            {
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
        let mut allowed = std::collections::BTreeSet::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
            let (is_removed, sets) = line.strip_prefix('~').map_or((false, line), |sets| (true, sets));
            for call in sets.split_whitespace().flat_map(calls) {
                if is_removed {
                    allowed.remove(&call)
                } else {
                    allowed.insert(call)
                };
            }
        }
        for call in needed {
            assert!(allowed.contains(*call), "{unit} does not allow {call}");
        }
    }
}

#[test]
fn pods_are_unprivileged_and_scrapes_honor_labels() {
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
    // Access to a runtime socket equals root on the node: no mounted directory may contain one.
    let volumes = find("DaemonSet")["spec"]["template"]["spec"]["volumes"].clone();
    for path in volumes.as_array().unwrap().iter().filter_map(|volume| volume["hostPath"]["path"].as_str()) {
        let known = ["/sys", "/proc", "/var/lib/wattcast"].contains(&path);
        assert!(
            known || path.ends_with("/io.containerd.runtime.v2.task") || path.ends_with("/storage/overlay-containers"),
            "{path}"
        );
    }
    assert_eq!(find("Deployment")["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"], true);
    // Each port of a service exists in its container.
    for (service, container) in all.iter().filter(|document| document["kind"] == "Service").zip([&probe, &analysis]) {
        let ports: Vec<&Value> = container["ports"].as_array().unwrap().iter().map(|port| &port["name"]).collect();
        for port in service["spec"]["ports"].as_array().unwrap() {
            assert!(ports.contains(&&port["targetPort"]), "{port}");
        }
    }
    // Each scraped port exists in a service, and its job name is that of the Prometheus
    // configuration.
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
fn compose_file_has_all_services_and_profiles() {
    requires!(docker_compose);
    let compose = which("docker-compose").unwrap();
    // With the default file name, and with an explicit one.
    let all = output(Command::new(&compose).args(["config", "--services"]).current_dir(root())).unwrap();
    let named =
        Command::new(&compose).args(["-f", "compose.yaml", "config", "--services"]).current_dir(root()).output();
    assert!(named.unwrap().status.success());
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
    // docker-compose 1.29 lists services of all profiles.
    let file: Value = serde_saphyr::from_str(&fs::read_to_string(root().join("compose.yaml")).unwrap()).unwrap();
    for (name, service) in file["services"].as_object().unwrap() {
        let has_profile = service["profiles"].as_array().is_some_and(|profiles| profiles[0] == "nvidia");
        assert_eq!(has_profile, name == "dcgm-exporter", "{name}");
        assert_eq!(service["privileged"] == true, name == "cadvisor", "{name}");
    }
}

#[test]
fn generated_files_are_up_to_date_and_valid() {
    xtask::generate::fresh().unwrap();
    if which("amtool").is_some() {
        for file in ["deploy/alertmanager/alertmanager.yml", "deploy/compose/alertmanager.yml"] {
            output(Command::new("amtool").arg("check-config").arg(root().join(file))).unwrap();
        }
    }
    if which("promtool").is_some() {
        // Its relative paths of rules are valid in that directory.
        output(Command::new("promtool").args(["check", "config"]).arg(root().join("deploy/prometheus/prometheus.yml")))
            .unwrap();
    }
}
