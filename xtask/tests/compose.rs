//! The stack of deploy/compose.yaml, brought up by a real Docker engine. No image can be counted on to be pulled: bases and the programs of others are made from what this
//! machine has. What is looked at: the probe, with the rights that the file gives it and no more, measures an ffmpeg in a container beside it; the analysis service is
//! nobody, in a file system that it cannot write; and both databases have what the one measured and the other shows.

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
/// Grafana and cAdvisor are in no package here.
const SERVICES: [&str; 7] = [
    "wattcast-probe",
    "wattcast-analysis",
    "nginx-rtmp",
    "victoriametrics",
    "prometheus",
    "alertmanager",
    "node-exporter",
];

/// The stack, taken down again at the end.
struct Stack {
    compose: PathBuf,
    env: Vec<(&'static str, String)>,
}

impl Stack {
    fn call(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.compose);
        command.args(["--project-name", "wattcast-test"]).args(args).current_dir(root());
        // COMPOSE_FILE stands in .env, as for a user.
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

/// Each step that the stack takes by itself.
fn eventually(stack: &Stack, what: &str, mut condition: impl FnMut() -> anyhow::Result<bool>) {
    eventually_ok(120.0, what, || match condition() {
        Ok(true) => Ok(()),
        other => Err(StackLog(stack, format!("{other:?}"))),
    });
}

/// Shows the logs of the stack only when the last error is shown.
struct StackLog<'a>(&'a Stack, String);

impl std::fmt::Display for StackLog<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let logs = self.0.call(&["logs", "--tail=20", "--no-color"]).unwrap_or_default();
        write!(f, "{}\n{logs}", self.1)
    }
}

/// Images of both programs by the shipped Dockerfile, on bases made here, and of others from their packages.
fn images(dir: &Path) -> Vec<(&'static str, String)> {
    let bin = programs().unwrap();
    let programs = dir.join("programs");
    fs::create_dir(&programs).unwrap();
    fs::create_dir(dir.join("state")).unwrap();
    for name in ["wattcast-probe", "wattcast-analysis"] {
        fs::copy(bin.join(name), programs.join(name)).unwrap();
    }
    // A debug build of the service is no static one: it gets what it is linked to.
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
        // Debian keeps Alertmanager's templates beside it.
        let templates = ["default", "email"].map(|name| format!("/usr/share/prometheus/alertmanager/{name}.tmpl"));
        let templates = templates.each_ref().map(Path::new);
        let files: &[&Path] = if name.ends_with("alertmanager") { &templates } else { &[] };
        local_images::make(&image, &[&program], files, &[program.to_str().unwrap()]).unwrap();
        env.push((variable, image));
    }
    let (nginx, module) = (Path::new("/usr/sbin/nginx"), Path::new("/usr/lib/nginx/modules/ngx_rtmp_module.so"));
    // By the path that Debian's own file of modules has.
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
    fn the_stack_comes_up_and_the_probe_measures_its_neighbour() {
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
            skip!("port {port} is taken");
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
                println!("this Docker engine does not know PERFMON and BPF, so it is the older capabilities: {why:#}");
                env.push(("WATTCAST_CAP_ENERGY", "SYS_ADMIN".to_owned()));
                env.push(("WATTCAST_CAP_EBPF", "IPC_LOCK".to_owned()));
            }
        }
        let stack = Stack { compose: which("docker-compose").unwrap(), env };
        stack.call(&["down", "--volumes", "--timeout", "2"]).unwrap();
        let mut up = vec!["up", "-d", "--no-build"];
        up.extend(SERVICES);
        stack.call(&up).unwrap();

        // What images say of themselves.
        let container = |service: &str| stack.call(&["ps", "-q", service]).unwrap().trim().to_owned();
        let inspect = |service: &str, what: &str| {
            output(Command::new("docker").args(["inspect", "--format", what, &container(service)])).unwrap()
        };
        for service in ["wattcast-probe", "wattcast-analysis", "victoriametrics", "prometheus", "alertmanager"] {
            eventually(&stack, &format!("{service} is healthy"), || {
                Ok(inspect(service, "{{.State.Health.Status}}") == "healthy")
            });
        }
        // Least privilege: user 65534 for the analysis service, root without capabilities for the probe.
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

        // What it may write is its own state, and nothing else of its file system.
        let may = |path: &str| {
            let touch = format!(": > {path}");
            stack.call(&["exec", "-T", "wattcast-analysis", "/bin/sh", "-c", &touch]).is_ok()
        };
        assert!(may("/state/probe") && !may("/probe") && !may("/results/probe") && !may("/tmp/probe"));

        // An ffmpeg in another container. Docker forwards datagrams from its own address, which does not
        // identify the sender; a post carries the name of the stream.
        let name = format!("wattcast-neighbour-{}", std::process::id());
        let args = [
            "-nostdin",
            "-loglevel",
            "error",
            "-progress",
            "http://127.0.0.1:9506/progress/neighbour",
            "-re",
            "-f",
            "lavfi",
            "-i",
            "testsrc2=size=320x180:rate=15",
            "-c:v",
            "libx264",
            "-preset",
            "ultrafast",
            "-f",
            "null",
            "-",
        ];
        let _neighbour = engine.start(&name, &["--network", "host"], &which("ffmpeg").unwrap(), &args).unwrap();
        let page = |port: u16| Client::new(format!("http://127.0.0.1:{port}")).text("/metrics");
        eventually(&stack, "the neighbour's joules are on 9500", || {
            let samples = Client::new("http://127.0.0.1:9500").metrics()?;
            Ok(samples.iter().any(|sample| {
                sample.name == "wattcast_container_energy_joules_total"
                    && sample.label("container") == name
                    && sample.value > 0.0
            }) && samples.iter().any(|sample| sample.label("stream") == "neighbour"))
        });
        let probe = page(9500).unwrap();
        assert!(probe.contains("wattcast_cpu_source_info{tier=\"switch\""), "eBPF without privileges: {probe}");
        // Two looks at one page, unless a tick with news came between.
        eventually(&stack, "9510 shows what 9500 shows", || {
            Ok(page(9510)?.lines().count() == page(9500)?.lines().count())
        });
        eventually(&stack, "frames of the stream are on 9506", || {
            Ok(page(9506)?.contains("wattcast_stream_frames_total{stream=\"neighbour\""))
        });
        assert!(page(9502).unwrap().contains("results_scenarios_total 4\n"));
        eventually(&stack, "the price of the environment is in force", || {
            Ok(page(9504)?.contains("wattcast_price_amount{item=\"energy\"") && page(9504)?.contains("} 0.25\n"))
        });
        for (database, port) in [("prometheus", 9090), ("victoriametrics", 8428)] {
            let ask = |query: &str| -> anyhow::Result<usize> {
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
            eventually(&stack, &format!("{database} has the neighbour's joules"), || {
                Ok(ask(&format!("rate(wattcast_container_energy_joules_total{{container=\"{name}\"}}[30s]) > 0"))? > 0)
            });
            eventually(&stack, &format!("{database} has what the rules make"), || {
                Ok(ask("instance:wattcast_power_watts:rate5m > 0")? > 0)
            });
            // Ours are all up; what is not there is down, and nothing else.
            eventually(&stack, &format!("{database} scrapes every port of ours"), || {
                Ok(ask("up{service=~\".+\"} == 1")? >= 9)
            });
        }
        eventually(&stack, "what runs is healthy on 9600", || {
            let page = page(9600)?;
            let healthy = |name: &str| {
                page.lines().any(|line| {
                    line.starts_with(&format!("wattcast_target_healthy{{target=\"{name}\"")) && line.ends_with(" 1")
                })
            };
            Ok(["rapl-power", "results-exporter", "node-exporter", "nginx-rtmp"].into_iter().all(healthy))
        });
    }
}
