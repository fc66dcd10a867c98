//! Who asks whom in the stack: one list of jobs, from which come the configurations of Prometheus and VictoriaMetrics, on one host and in compose, and the addresses of
//! Grafana's data sources and of Alertmanager's receiver. `cargo xtask generate` writes them, and a test holds the files against this.

use std::{fmt::Write as _, path::PathBuf};

use testkit::shell::root;

/// A job of ours or of what stands beside us.
struct Job {
    /// Its name in Prometheus; queries made for the replaced stack contain it.
    name: &'static str,
    /// Its name in VictoriaMetrics, where the replaced stack had another.
    victoria: Option<&'static str>,
    /// The label `service` of the replaced stack.
    service: Option<&'static str>,
    port: u16,
    /// Who answers in compose.
    host: &'static str,
    /// Why it is there, where that is not plain.
    about: &'static str,
}

const fn job(name: &'static str, service: &'static str, port: u16, host: &'static str) -> Job {
    Job { name, victoria: None, service: Some(service), port, host, about: "" }
}

const fn other(name: &'static str, port: u16, host: &'static str) -> Job {
    Job { name, victoria: None, service: None, port, host, about: "" }
}

const JOBS: [Job; 16] = [
    Job {
        victoria: Some("cpu-power-go"),
        about: "The names of jobs are those that queries of the replaced exporters use.",
        ..job("rapl-power", "power-monitoring", 9500, "wattcast-probe")
    },
    job("docker-stats", "docker-overhead", 9501, "wattcast-probe"),
    job("gpu-exporter-go", "gpu", 9505, "wattcast-probe"),
    job("results-exporter", "analysis", 9502, "wattcast-analysis"),
    job("qoe-exporter", "quality", 9503, "wattcast-analysis"),
    // Its series have a label `service` of their own.
    other("cost-exporter", 9504, "wattcast-analysis"),
    job("ffmpeg-stats", "encoding", 9506, "wattcast-analysis"),
    job("exporter-health", "monitoring", 9600, "wattcast-analysis"),
    job("nginx-rtmp", "nginx-rtmp", 9728, "wattcast-analysis"),
    Job {
        about: "Of others: the host, its containers by cAdvisor, NVIDIA's DCGM, and the stack itself.",
        ..job("node-exporter", "host", 9100, "node-exporter")
    },
    job("cadvisor", "containers", 8080, "cadvisor"),
    job("dcgm", "gpu", 9400, "dcgm-exporter"),
    other("victoriametrics", 8428, "victoriametrics"),
    other("prometheus", 9090, "prometheus"),
    other("alertmanager", 9093, "alertmanager"),
    other("grafana", 3000, "grafana"),
];

/// Where the programs run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Host,
    Compose,
}

const MADE: &str = "# Made by `cargo xtask generate` from xtask/src/scrape.rs; change it there.\n";

impl Place {
    fn address(self, host: &str, port: u16) -> String {
        match self {
            Self::Host => format!("127.0.0.1:{port}"),
            Self::Compose => format!("{host}:{port}"),
        }
    }
}

fn jobs(place: Place, victoria: bool) -> String {
    let mut text = "scrape_configs:\n".to_owned();
    for job in &JOBS {
        if !job.about.is_empty() {
            let _ = writeln!(text, "  # {}", job.about);
        }
        let name = job.victoria.filter(|_| victoria).unwrap_or(job.name);
        let _ = writeln!(text, "  - job_name: {name}\n    static_configs:");
        let _ = writeln!(text, "      - targets: [\"{}\"]", place.address(job.host, job.port));
        if let Some(service) = job.service {
            let _ = writeln!(text, "        labels: {{ service: {service} }}");
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}

fn prometheus(place: Place) -> String {
    let mut text = format!(
        "{MADE}# Every series belongs to one port, so nothing is stored twice. A target that is not there is down, and nothing else.\n\
         # Kept for 7 days: --storage.tsdb.retention.time=7d\n\
         global:\n  scrape_interval: 5s\n  scrape_timeout: 5s\n  evaluation_interval: 15s\n\n\
         rule_files:\n  - rules/energy.yml\n  - rules/cost.yml\n  - rules/equivalents.yml\n  - rules/alerts.yml\n\n\
         alerting:\n  alertmanagers:\n    - static_configs:\n        - targets: [\"{}\"]\n\n",
        place.address("alertmanager", 9093)
    );
    let write = format!(
        "remote_write:\n  - url: http://{}/api/v1/write\n    write_relabel_configs:\n      - source_labels: [__name__]\n        \
         regex: \".+:.+|ALERTS\"\n        action: keep\n",
        place.address("victoriametrics", 8428)
    );
    match place {
        Place::Compose => {
            text.push_str(
                "# VictoriaMetrics scrapes for itself, each second; what rules make of it is worked out once, here.\n",
            );
            text.push_str(&write);
        }
        Place::Host => {
            text.push_str("# Beside a VictoriaMetrics, so that what rules make is there too:\n");
            write.lines().for_each(|line| text.extend(["# ", line, "\n"]));
        }
    }
    text + "\n" + &jobs(place, false)
}

fn victoria(place: Place) -> String {
    format!(
        "{MADE}# For -promscrape.config. Kept for 30 days: -retentionPeriod=30d. VictoriaMetrics evaluates no rules: Prometheus writes what they make, or vmalert\n\
         # reads the files of deploy/prometheus/rules.\n\
         global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\n\n{}",
        jobs(place, true)
    )
}

/// `timeInterval` is the interval of the scrapes: Grafana makes `$__rate_interval` from it.
fn sources(place: Place) -> String {
    let source = |name: &str, uid: &str, url: String, interval: &str, first: bool| {
        format!(
            "  - name: {name}\n    uid: {uid}\n    type: prometheus\n    access: proxy\n    url: http://{url}\n    isDefault: {first}\n    \
             editable: false\n    jsonData:\n      timeInterval: {interval}\n"
        )
    };
    format!(
        "{MADE}# The UIDs are those that existing dashboards use. `timeInterval` is the interval of the scrapes: $__rate_interval is made from it.\n\
         apiVersion: 1\ndatasources:\n{}{}",
        source("VictoriaMetrics", "DS_VICTORIAMETRICS", place.address("victoriametrics", 8428), "1s", true),
        source("Prometheus", "DS_PROMETHEUS", place.address("prometheus", 9090), "5s", false),
    )
}

/// Receivers are the user's to name; until then alerts go to the analysis service, which logs each and shows them on port 9600.
fn alertmanager(place: Place) -> String {
    format!(
        r##"{MADE}# `amtool check-config` likes it. Alerts go to wattcast-analysis, which logs each change and shows them on the page of port 9600. For people who are to be
# woken, put a receiver of your own beside it:
#
#   - name: mail
#     email_configs: [{{ to: ops@example.org, from: alerts@example.org, smarthost: "smtp.example.org:587", auth_username: alerts, auth_password_file: /etc/alertmanager/mail }}]
#   - name: slack
#     slack_configs: [{{ api_url_file: /etc/alertmanager/slack, channel: "#encoding" }}]
route:
  receiver: wattcast
  group_by: [alertname, instance]
  group_wait: 10s
  group_interval: 1m
  repeat_interval: 2h

receivers:
  - name: wattcast
    webhook_configs:
      - url: http://{}/api/v1/alerts
        send_resolved: true
        max_alerts: 500

inhibit_rules:
  # What is critical need not be said as a warning too.
  - source_matchers: [severity="critical"]
    target_matchers: [severity="warning"]
    equal: [alertname, instance]
  - source_matchers: [alertname="HighCpuPackagePowerCritical"]
    target_matchers: [alertname="HighCpuPackagePower"]
    equal: [instance]
  - source_matchers: [alertname="HighGpuPowerCritical"]
    target_matchers: [alertname="HighGpuPower"]
    equal: [instance]
"##,
        place.address("wattcast-analysis", 9600)
    )
}

/// The files, with what should be in them.
#[must_use]
pub fn files() -> Vec<(PathBuf, String)> {
    let at = |path: &str| root().join(path);
    vec![
        (at("deploy/prometheus/prometheus.yml"), prometheus(Place::Host)),
        (at("deploy/victoriametrics/victoriametrics.yml"), victoria(Place::Host)),
        (at("grafana/provisioning/datasources/wattcast.yml"), sources(Place::Host)),
        (at("deploy/alertmanager/alertmanager.yml"), alertmanager(Place::Host)),
        (at("deploy/compose/alertmanager.yml"), alertmanager(Place::Compose)),
        (at("deploy/compose/prometheus.yml"), prometheus(Place::Compose)),
        (at("deploy/compose/victoriametrics.yml"), victoria(Place::Compose)),
        (at("deploy/compose/datasources.yml"), sources(Place::Compose)),
    ]
}

/// The ports that are scraped, with who answers there in compose.
pub fn ports() -> impl Iterator<Item = (u16, &'static str)> {
    JOBS.iter().map(|job| (job.port, job.host))
}
