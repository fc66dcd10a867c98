//! The recording rules of the legacy names: complete, valid, and equal to the pages of the
//! compatibility layer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeSet, fs, path::Path, process::Command, thread, time::Duration};

use metrics::parse::Sample;
use serde_json::{Value, json};
use testkit::{
    api::Client,
    eventually,
    program::Program,
    requires,
    shell::{output, programs, root, which},
    simulator::{MARK, Simulator, Spec},
};
use xtask::shipped_config::PortMap;

const RULES: &str = "deploy/prometheus/legacy-names.rules.yml";
/// The group whose values are other means than those of the pages.
const NEAR: &str = "legacy-near";
/// Ports with legacy names, and the job that scrapes each.
const PAGES: [(u16, &str); 8] = [
    (9500, "rapl-power"),
    (9501, "docker-stats"),
    (9505, "gpu-exporter-go"),
    (9502, "results-exporter"),
    (9503, "qoe-exporter"),
    (9504, "cost-exporter"),
    (9506, "ffmpeg-stats"),
    (9600, "exporter-health"),
];

/// A report of ffmpeg after this many frames of 25 per second.
fn report(frames: u32) -> String {
    format!(
        "frame={frames}\nfps=25.0\nstream_0_0_q=23.0\nbitrate=1000.0kbits/s\ntotal_size={}\nout_time_us={}\n\
         dup_frames=0\ndrop_frames=3\nspeed=1.0x\nprogress=continue\n",
        frames * 5000,
        frames * 40_000
    )
}

/// Group and name of every rule.
fn rules() -> Vec<(String, String)> {
    let file: Value = serde_saphyr::from_str(&fs::read_to_string(root().join(RULES)).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let groups = file["groups"].as_array().unwrap();
    let of_group = |group: &Value| -> Vec<(String, String)> {
        let rules = group["rules"].as_array().unwrap();
        rules.iter().map(|rule| (text(&group["name"]), text(&rule["record"]))).collect()
    };
    groups.iter().flat_map(of_group).collect()
}

/// Names in the first column of rows of the generated tables.
fn documented(filter: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `") && filter(line));
    rows.map(|line| line.split('`').nth(1).unwrap().to_owned()).collect()
}

#[test]
fn every_legacy_name_has_a_rule_or_a_line_of_the_migration_page() {
    let page = fs::read_to_string(root().join("docs/migrate.md")).unwrap();
    let without_rule = page.split("<!-- no rule -->").nth(1).unwrap().split("<!-- /no rule -->").next().unwrap();
    let legacy = documented(|line| line.contains("*(kept for existing queries)*"));
    let recorded: BTreeSet<String> = rules().into_iter().map(|(_, name)| name).collect();
    let lost: Vec<&String> = legacy
        .iter()
        .filter(|name| !recorded.contains(*name) && !without_rule.contains(&format!("`{name}`")))
        .collect();
    assert!(lost.is_empty(), "neither a rule nor a line in docs/migrate.md: {lost:?}");
    let invented: Vec<&String> =
        recorded.iter().filter(|name| !name.contains(':') && !legacy.contains(*name)).collect();
    assert!(invented.is_empty(), "rules for names that no page has: {invented:?}");
    let both: Vec<&String> = recorded.iter().filter(|name| without_rule.contains(&format!("`{name}`"))).collect();
    assert!(both.is_empty(), "listed without a rule: {both:?}");
}

/// The queries of the migration page contain no name that no page has.
#[test]
fn the_migration_page_names_only_existing_metrics() {
    let page = fs::read_to_string(root().join("docs/migrate.md")).unwrap();
    let known = documented(|_| true);
    let is_name = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_';
    let names = page.split(|char| !is_name(char)).filter(|word| word.starts_with("wattcast_"));
    let unknown: Vec<&str> = names.filter(|name| !known.contains(*name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn the_rules_are_valid_and_pass_their_cases() {
    requires!(promtool);
    output(Command::new("promtool").args(["check", "rules"]).arg(root().join(RULES))).unwrap();
    let cases = ["test", "rules", "legacy-names.test.yml"];
    output(Command::new("promtool").args(cases).current_dir(root().join("deploy/prometheus"))).unwrap();
    if let Some(vmalert) = which("vmalert") {
        let rule = format!("-rule={}", root().join(RULES).display());
        output(Command::new(vmalert).arg("-dryRun").arg(rule)).unwrap();
    }
}

/// Both programs with every kind of legacy series: measured energy, a board, runs, a stream and
/// targets.
struct Programs {
    ports: PortMap,
    _all: Vec<Program>,
    _simulator: Simulator,
}

impl Programs {
    fn start(dir: &Path) -> Self {
        let (bin, ports) = (programs().unwrap(), PortMap::allocate().unwrap());
        let spec = Spec { packages: Some(2), parts: true, ..Spec::default() };
        let simulator = Simulator::start(dir, &spec).unwrap();
        // A tree with the mark is not measured, and has no legacy names.
        fs::remove_file(simulator.sysfs().join(MARK)).unwrap();
        let gpu = dir.join("gpu.toml");
        fs::write(&gpu, "[[gpu]]\nname = \"T4\"\nidle_watts = 10.0\n").unwrap();
        let mut probe = Command::new(bin.join("wattcast-probe"));
        probe.env("FAKE_NVML_SCENARIO", &gpu).arg("--path.nvml").arg(bin.join("libfake_nvml.so"));
        probe.arg("--path.sysfs").arg(simulator.sysfs()).arg("--state.dir").arg(dir).args(ports.probe_flags());
        let probe = Program::start("probe", &mut probe, dir).unwrap();

        let results = dir.join("results");
        fs::create_dir(&results).unwrap();
        for entry in fs::read_dir(root().join("analysis/tests/data")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, results.join(path.file_name().unwrap())).unwrap();
        }
        let mut analysis = Command::new(bin.join("wattcast-analysis"));
        analysis.args(["serve", "--cpu.price=0.50", "--health.interval=2s", "--results-dir"]).arg(&results);
        analysis.arg(format!(
            "--health.targets=cpu-exporter-go=http://127.0.0.1:{}/metrics,gone=http://127.0.0.1:1/metrics",
            ports.port(9500)
        ));
        analysis.args(ports.analysis_flags());
        let analysis = Program::start("analysis", &mut analysis, dir).unwrap();
        Self { ports, _all: vec![probe, analysis], _simulator: simulator }
    }

    fn client(&self, port: u16) -> Client {
        Client::new(format!("http://127.0.0.1:{}", self.ports.port(port)))
    }

    /// Waits until a page has a series with this name.
    fn wait(&self, port: u16, name: &str) {
        let client = self.client(port);
        eventually(60.0, name, || {
            client.metrics().is_ok_and(|samples| samples.iter().any(|sample| sample.name == name))
        });
    }

    /// The samples of every page.
    fn pages(&self) -> Vec<(u16, &'static str, Vec<Sample>)> {
        let agent = ureq::Agent::new_with_defaults();
        self.wait(9506, "ffmpeg_exporter_up");
        for frames in [100, 125] {
            agent.post(self.client(9506).url("/progress/cam")).send(report(frames).as_bytes()).unwrap();
            thread::sleep(Duration::from_secs(1));
        }
        let needed = [
            (9500, "rapl_power_watts"),
            (9505, "gpu_utilization_percent"),
            (9502, "results_scenario_total_energy_joules"),
            (9503, "qoe_vmaf_score"),
            (9504, "cost_total"),
            (9506, "ffmpeg_quality_score"),
            (9600, "exporter_healthy"),
        ];
        for (port, name) in needed {
            self.wait(port, name);
        }
        PAGES.iter().map(|(port, job)| (*port, *job, self.client(*port).metrics().unwrap())).collect()
    }
}

/// A series of a promtool test: constant, with the labels of the scraper.
fn series(name: &str, labels: &[(String, String)], port: u16, job: &str, value: f64) -> Value {
    let escape = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    // An empty label is no label.
    let own = labels.iter().filter(|(_, value)| !value.is_empty());
    let mut all: Vec<String> = own.map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
    all.extend([format!("instance=\"host:{port}\""), format!("job=\"{job}\"")]);
    json!({ "series": format!("{name}{{{}}}", all.join(",")), "values": format!("{value}x12") })
}

#[test]
fn the_rules_give_the_values_of_the_compatibility_pages() {
    requires!(root, promtool);
    let dir = tempfile::tempdir().unwrap();
    let running = Programs::start(dir.path());
    let pages = running.pages();
    drop(running);
    let rules = rules();
    let exact: BTreeSet<&str> = rules.iter().filter(|(group, _)| group != NEAR).map(|(_, name)| &**name).collect();
    let recorded: BTreeSet<&str> = rules.iter().map(|(_, name)| &**name).collect();
    let (mut inputs, mut compared) = (Vec::new(), BTreeSet::new());
    for (port, job, samples) in &pages {
        inputs.push(series("up", &[], *port, job, 1.0));
        for sample in samples.iter().filter(|sample| sample.value.is_finite()) {
            let is_part = sample.label("energy_coverage") == "part";
            if !recorded.contains(&*sample.name) {
                inputs.push(series(&sample.name, &sample.labels, *port, job, sample.value));
            } else if exact.contains(&*sample.name) && !is_part {
                compared.insert(sample.name.clone());
                inputs.push(series(&format!("page_{}", sample.name), &sample.labels, *port, job, sample.value));
            }
        }
    }
    // Each query returns what differs by more than rounding, or is on one side only.
    let differs = |name: &&str| {
        json!({
            "expr": format!(
                "(abs({name} - page_{name}) > 1e-9 * abs(page_{name})) or ({name} unless page_{name}) or (page_{name} unless {name})"
            ),
            "eval_time": "50s",
            "exp_samples": [],
        })
    };
    let queries: Vec<Value> = exact.iter().filter(|name| !name.contains(':')).map(differs).collect();
    let cases = json!({
        "rule_files": [root().join(RULES)],
        "evaluation_interval": "5s",
        "tests": [{ "interval": "5s", "input_series": inputs, "promql_expr_test": queries }],
    });
    let file = dir.path().join("cases.yml");
    fs::write(&file, cases.to_string()).unwrap();
    output(Command::new("promtool").args(["test", "rules"]).arg(&file)).unwrap();
    // The comparison covers every kind of page.
    for name in [
        "rapl_power_watts",
        "rapl_energy_joules_total",
        "gpu_utilization_percent",
        "results_scenario_mean_power_watts",
        "qoe_vmaf_score",
        "cost_total",
        "cost_compute_load_aware",
        "ffmpeg_quality_score",
        "exporter_has_data",
    ] {
        assert!(compared.contains(name), "no page has {name}: {compared:?}");
    }
}
