//! The stack of compose.yaml on a Docker engine. Images are built from the programs of this
//! machine, because none may be available to pull.
//!
//! The probe, with only the privileges of the file, measures an ffmpeg in another container; the
//! analysis service runs as an unprivileged user on a read-only file system; both databases contain
//! the metrics.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use testkit::{
    api::Client,
    docker::Engine,
    lock::{Resource, hold},
    requires,
    shell::{output, programs, root, which},
    skip,
    wait::eventually_ok,
};
use xtask::local_images;

const PORTS: [u16; 17] =
    [80, 1935, 8428, 9090, 9093, 9100, 9500, 9501, 9502, 9503, 9504, 9505, 9506, 9510, 9511, 9600, 9728];
/// Without Grafana and cAdvisor, for which Debian has no packages.
const SERVICES: [&str; 7] = [
    "wattcast-probe",
    "wattcast-analysis",
    "nginx-rtmp",
    "victoriametrics",
    "prometheus",
    "alertmanager",
    "node-exporter",
];

/// The stack, which is removed when this is dropped.
struct Stack {
    compose: PathBuf,
    env: Vec<(&'static str, String)>,
}

impl Stack {
    fn call(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.compose);
        command.args(["--project-name", "wattcast-test"]).args(args).current_dir(root());
        output(command.envs(self.env.iter().map(|(name, value)| (*name, value.clone()))))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = self.call(&["down", "--volumes", "--timeout", "2"]);
        let ours = ["images", "--quiet", "--filter", "reference=wattcast-test-*"];
        let ids = output(Command::new("docker").args(ours)).unwrap_or_default();
        let _ = output(Command::new("docker").args(["rmi", "--force"]).args(ids.lines()));
    }
}

/// Waits until the condition holds.
fn eventually(stack: &Stack, what: &str, mut condition: impl FnMut() -> anyhow::Result<bool>) {
    eventually_ok(120.0, what, || match condition() {
        Ok(true) => Ok(()),
        other => Err(StackLog(stack, format!("{other:?}"))),
    });
}

/// An error that reads the logs of the stack when it is printed.
struct StackLog<'a>(&'a Stack, String);

impl std::fmt::Display for StackLog<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let logs = self.0.call(&["logs", "--tail=20", "--no-color"]).unwrap_or_default();
        write!(f, "{}\n{logs}", self.1)
    }
}

/// Builds images of both programs with the shipped Dockerfile, and of the other services from
/// installed packages; returns the environment variables that name them.
fn images(dir: &Path) -> Vec<(&'static str, String)> {
    let bin = programs().unwrap();
    let programs = dir.join("programs");
    fs::create_dir(&programs).unwrap();
    fs::create_dir(dir.join("state")).unwrap();
    for name in ["wattcast-probe", "wattcast-analysis"] {
        fs::copy(bin.join(name), programs.join(name)).unwrap();
    }
    // The tested service is not a static build: its base image includes its shared libraries.
    let base = "wattcast-test-base:latest";
    local_images::make(base, &[&bin.join("wattcast-probe"), &bin.join("wattcast-analysis")], &[], &[]).unwrap();
    let mut env = Vec::new();
    for (target, variable) in [("probe", "WATTCAST_PROBE_IMAGE"), ("analysis", "WATTCAST_ANALYSIS_IMAGE")] {
        let image = format!("wattcast-test-{target}:latest");
        let mut build = Command::new("docker");
        build
            .args(["build", "-q", "--target", target, "-t", &image, "-f"])
            .arg(root().join("deploy/docker/Dockerfile.dist"));
        for argument in ["PROGRAMS=programs", &format!("PROBE_BASE={base}"), &format!("ANALYSIS_BASE={base}")] {
            build.args(["--build-arg", argument]);
        }
        output(build.arg(dir).env("DOCKER_BUILDKIT", "0")).unwrap();
        env.push((variable, image));
    }
    for (name, variable) in [
        ("prometheus", "PROMETHEUS_IMAGE"),
        ("victoria-metrics", "VICTORIAMETRICS_IMAGE"),
        ("prometheus-alertmanager", "ALERTMANAGER_IMAGE"),
        ("prometheus-node-exporter", "NODE_EXPORTER_IMAGE"),
    ] {
        let program = which(name).unwrap();
        let image = format!("wattcast-test-{name}:latest");
        // Debian installs the templates of Alertmanager separately.
        let templates = ["default", "email"].map(|name| format!("/usr/share/prometheus/alertmanager/{name}.tmpl"));
        let templates = templates.each_ref().map(Path::new);
        let files: &[&Path] = if name.ends_with("alertmanager") { &templates } else { &[] };
        local_images::make(&image, &[&program], files, &[program.to_str().unwrap()]).unwrap();
        env.push((variable, image));
    }
    let (nginx, module) = (Path::new("/usr/sbin/nginx"), Path::new("/usr/lib/nginx/modules/ngx_rtmp_module.so"));
    // The path in Debian's configuration of the module.
    let named = Path::new("/usr/share/nginx/modules/ngx_rtmp_module.so");
    let enabled = Path::new("/etc/nginx/modules-enabled/50-mod-rtmp.conf");
    local_images::make(
        "wattcast-test-nginx:latest",
        &[nginx, module],
        &[named, enabled],
        &["/usr/sbin/nginx", "-g", "daemon off;"],
    )
    .unwrap();
    env.push(("NGINX_RTMP_IMAGE", "wattcast-test-nginx:latest".to_owned()));
    env
}

mod standard_ports {
    use super::*;

    #[test]
    fn stack_starts_and_measures_another_container() {
        requires!(
            root,
            docker,
            docker_compose,
            ffmpeg,
            prometheus,
            victoria_metrics,
            alertmanager,
            node_exporter,
            busybox,
            nginx_rtmp
        );
        let engine = Engine::find().unwrap();
        let _ports = hold(Resource::StandardPorts);
        if let Some(port) = PORTS.into_iter().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_err()) {
            skip!("port {port} is in use");
        }
        let dir = tempfile::tempdir().unwrap();
        let mut env = images(dir.path());
        let results = dir.path().join("results");
        fs::create_dir(&results).unwrap();
        fs::copy(
            root().join("analysis/tests/data/test_results_20240115_103000.json"),
            results.join("test_results_20240115_103000.json"),
        )
        .unwrap();
        for path in [dir.path(), &results] {
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        env.push(("RESULTS_DIR", results.to_str().unwrap().to_owned()));
        env.push(("ENERGY_COST_PER_KWH", "0.25".to_owned()));
        let mut create = Command::new("docker");
        create.args(["create", "--cap-add=PERFMON", "--cap-add=BPF", "wattcast-test-base:latest", "/bin/sh"]);
        match output(&mut create) {
            Ok(id) => drop(output(Command::new("docker").args(["rm", &id]))),
            Err(why) => {
                println!("this Docker engine does not support PERFMON and BPF; using older capabilities: {why:#}");
                env.push(("WATTCAST_CAP_ENERGY", "SYS_ADMIN".to_owned()));
                env.push(("WATTCAST_CAP_EBPF", "IPC_LOCK".to_owned()));
            }
        }
        let stack = Stack { compose: which("docker-compose").unwrap(), env };
        stack.call(&["down", "--volumes", "--timeout", "2"]).unwrap();
        let mut up = vec!["up", "-d", "--no-build"];
        up.extend(SERVICES);
        stack.call(&up).unwrap();

        // Health checks of the images.
        let container = |service: &str| stack.call(&["ps", "-q", service]).unwrap().trim().to_owned();
        let inspect = |service: &str, what: &str| {
            output(Command::new("docker").args(["inspect", "--format", what, &container(service)])).unwrap()
        };
        for service in ["wattcast-probe", "wattcast-analysis", "victoriametrics", "prometheus", "alertmanager"] {
            eventually(&stack, &format!("{service} is healthy"), || {
                Ok(inspect(service, "{{.State.Health.Status}}") == "healthy")
            });
        }
        // Least privilege: user 65534 for the analysis service, root without capabilities for the
        // probe.
        assert_eq!(
            inspect("wattcast-probe", "{{.HostConfig.Privileged}} {{.HostConfig.ReadonlyRootfs}}"),
            "false true"
        );
        assert_eq!(inspect("wattcast-analysis", "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}}"), "65534:65534 true");
        let status = |service: &str| {
            let pid = inspect(service, "{{.State.Pid}}");
            let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let of = |name: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name))
                    .unwrap()
                    .split_whitespace()
                    .next()
                    .unwrap()
                    .to_owned()
            };
            (of("Uid:"), of("CapEff:"), of("NoNewPrivs:"))
        };
        let none = "0000000000000000".to_owned();
        assert_eq!(status("wattcast-probe"), ("0".to_owned(), none.clone(), "1".to_owned()));
        assert_eq!(status("wattcast-analysis"), ("65534".to_owned(), none, "1".to_owned()));

        // The service can write its state directory only.
        let can_write = |path: &str| {
            let touch = format!(": > {path}");
            stack.call(&["exec", "-T", "wattcast-analysis", "/bin/sh", "-c", &touch]).is_ok()
        };
        assert!(can_write("/state/probe"));
        assert!(!can_write("/probe") && !can_write("/results/probe") && !can_write("/tmp/probe"));

        // An ffmpeg in another container. Docker forwards datagrams from its own address, which
        // does not identify the sender; a post carries the name of the stream.
        let name = format!("wattcast-other-{}", std::process::id());
        let args = "-nostdin -loglevel error -progress http://127.0.0.1:9506/progress/other -re -f lavfi \
             -i testsrc2=size=320x180:rate=15 -c:v libx264 -preset ultrafast -f null -";
        let args: Vec<&str> = args.split(' ').collect();
        let _container = engine.start(&name, &["--network", "host"], &which("ffmpeg").unwrap(), &args).unwrap();
        let page = |port: u16| Client::new(format!("http://127.0.0.1:{port}")).text("/metrics");
        eventually(&stack, "port 9500 has the energy of the other container", || {
            let samples = Client::new("http://127.0.0.1:9500").metrics()?;
            Ok(samples.iter().any(|sample| {
                sample.name == "wattcast_container_energy_joules_total"
                    && sample.label("container") == name
                    && sample.value > 0.0
            }) && samples.iter().any(|sample| sample.label("stream") == "other"))
        });
        let probe = page(9500).unwrap();
        assert!(probe.contains("wattcast_cpu_source_info{tier=\"switch\""), "eBPF without privileges: {probe}");
        // The same page, unless a tick with changes happens between the requests.
        eventually(&stack, "ports 9510 and 9500 have the same page", || {
            Ok(page(9510)?.lines().count() == page(9500)?.lines().count())
        });
        eventually(&stack, "port 9506 has the frames of the stream", || {
            Ok(page(9506)?.contains("wattcast_stream_frames_total{stream=\"other\""))
        });
        assert!(page(9502).unwrap().contains("results_scenarios_total 4\n"));
        eventually(&stack, "the price of the environment variable applies", || {
            Ok(page(9504)?.contains("wattcast_price_amount{item=\"energy\"") && page(9504)?.contains("} 0.25\n"))
        });
        for (database, port) in [("prometheus", 9090), ("victoriametrics", 8428)] {
            let count = |query: &str| -> anyhow::Result<usize> {
                let query: String = query
                    .bytes()
                    .map(|byte| {
                        if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }
                    })
                    .collect();
                let found =
                    Client::new(format!("http://127.0.0.1:{port}")).json(&format!("/api/v1/query?query={query}"))?;
                Ok(found["data"]["result"].as_array().map_or(0, Vec::len))
            };
            eventually(&stack, &format!("{database} has the energy of the other container"), || {
                Ok(count(&format!("rate(wattcast_container_energy_joules_total{{container=\"{name}\"}}[30s]) > 0"))?
                    > 0)
            });
            eventually(&stack, &format!("{database} has the results of rules"), || {
                Ok(count("instance:wattcast_power_watts:rate5m > 0")? > 0)
            });
            // Jobs of optional services may be down.
            eventually(&stack, &format!("{database} scrapes all ports of both programs"), || {
                Ok(count("up{service=~\".+\"} == 1")? >= 9)
            });
        }
        eventually(&stack, "port 9600 shows the running services as healthy", || {
            let page = page(9600)?;
            let healthy = |name: &str| {
                page.lines().any(|line| {
                    line.starts_with(&format!("wattcast_target_healthy{{target=\"{name}\"")) && line.ends_with(" 1")
                })
            };
            Ok(["cpu-exporter-go", "results-exporter", "node-exporter", "nginx-exporter"].into_iter().all(healthy))
        });
    }
}
