//! Errors on real machines: each is reported in one line with reason and remedy, and everything
//! else keeps working.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::FileExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use support::{Probe, Workload, ebpf};
use testkit::{eventually, or_skip, program::raise_priority, requires, wait::eventually_ok};

fn run(args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = Command::new(support::binary()).args(args).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_wrong_flag_or_value_exits_with_64_and_a_suggestion() {
    for (args, hint) in [
        (&["--collector.cpus"][..], "--collector.cpu"),
        (&["--path.sysf=/sys"][..], "--path.sysfs"),
        (&["--energy.source=modle"][..], "model"),
        (&["--tick=fast"][..], "500ms"),
    ] {
        let (code, stderr) = run(args);
        assert_eq!(code, Some(64), "{args:?}: {stderr}");
        assert!(stderr.contains(hint), "{args:?}: {stderr}");
    }
    assert_eq!(run(&["--help"]).0, Some(0));
}

#[test]
fn precedence_is_flag_environment_file_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("probe.toml");
    let check = |text: &str, environment: Option<&str>, args: &[&str]| {
        fs::write(&file, text).unwrap();
        let mut command = Command::new(support::binary());
        command.args(["--config.file", file.to_str().unwrap(), "--log.level=warn"]).args(args);
        if let Some(port) = environment {
            command.env("CPU_EXPORTER_PORT", port);
        }
        let out = command.output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap(), String::from_utf8(out.stdout).unwrap())
    };
    let (code, stderr, stdout) =
        check("tick = \"2s\"\n[collector]\ncpu = false\n[web]\nmax_requests = 3", None, &["--config.check"]);
    assert!(code == Some(0) && stdout.contains("valid"), "{stderr}");
    // The ports are in use, so the error shows which one was configured.
    let [file_port, environment_port, flag_port] = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = |taken: &TcpListener| taken.local_addr().unwrap().port().to_string();
    let text = format!("port = {}\n[stats]\nport = 0", port(&file_port));
    let flag = format!("--port={}", port(&flag_port));
    for (environment, args, expected) in [
        (None, &[][..], &file_port),
        (Some(port(&environment_port)), &[], &environment_port),
        (Some(port(&environment_port)), &[&*flag], &flag_port),
    ] {
        let (code, stderr, _) = check(&text, environment.as_deref(), args);
        assert!(code == Some(1) && stderr.contains(&format!("127.0.0.1:{}", port(expected))), "{stderr}");
    }
    for (text, hint) in [
        ("tik = \"1s\"", "did you mean tick?"),
        ("[energy]\nsorce = \"perf\"", "energy.source"),
        ("tick = \"1ms\"", "100ms to 30s"),
        ("[energy.model]\nidle-watts = 1", "must be set together"),
        ("tick", "line 1"),
    ] {
        let (code, stderr, _) = check(text, None, &["--config.check"]);
        assert!(code == Some(64) && stderr.contains(hint), "{text}: {stderr}");
    }
}

#[test]
fn the_shipped_configuration_is_valid() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/probe/wattcast-probe.toml");
    let (code, stderr) = run(&["--config.check", "--config.file", file.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn manual_and_completions_come_from_the_same_definitions() {
    let print = |args: &[&str]| {
        let out = Command::new(support::binary()).args(args).output().unwrap();
        assert!(out.status.success());
        String::from_utf8(out.stdout).unwrap()
    };
    assert!(print(&["man"]).contains("\\-\\-web.telemetry\\-path"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(print(&["completions", shell]).contains("web.config.file"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    print(&["man", dir.path().to_str().unwrap()]);
    assert!(dir.path().join("wattcast-probe.1").exists() && dir.path().join("wattcast-probe-doctor.1").exists());
}

#[test]
fn listening_on_all_interfaces_without_password_logs_a_warning() {
    let log = |address: &str| {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(support::binary());
        command.args([
            "--energy.source=model",
            "--no-collector.cpu",
            "--no-collector.gpu",
            "--web.listen-address",
            address,
        ]);
        let mut program = testkit::program::Program::start_with_state("probe", &mut command, dir.path()).unwrap();
        // The warning is logged before the first request is answered.
        program.client().unwrap().text("/health").unwrap();
        program.log()
    };
    assert!(log("0.0.0.0:0").contains("SECURITY.md"));
    assert!(!log("127.0.0.1:0").contains("SECURITY.md"));
}

#[test]
fn a_port_in_use_is_a_one_line_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, stderr) = run(&["--web.listen-address", &address, "--log.level=error"]);
    assert_eq!(code, Some(1));
    assert_eq!(stderr.trim().lines().count(), 1, "{stderr}");
    assert!(stderr.contains(&address) && stderr.contains("--web.listen-address"), "{stderr}");
}

#[test]
fn without_root_energy_is_modelled_and_denied_is_reported() {
    requires!(root);
    // A copy that every user can execute.
    let dir = tempfile::Builder::new().prefix("wattcast-test").tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let copy = dir.path().join("probe");
    fs::copy(support::binary(), &copy).unwrap();
    let mut command = Command::new(&copy);
    command.uid(65_534).gid(65_534);
    let probe = Probe::start_command(&mut command, &["--cpu.tier=switch"]);
    let (state, detail) = probe.source("cpu");
    assert!(matches!(&*state, "denied" | "absent"), "{state}: {detail}");
    assert!(detail.contains("root") || detail.contains("BTF") || detail.contains("build-ebpf"), "{detail}");
    let page = probe.fresh();
    assert_eq!(page.get("wattcast_source_up", &[("source", "cpu")]), 0.0);
    assert_eq!(page.get("wattcast_source_up", &[("source", "model")]), 1.0);
    page.assert_conserved();
    assert_eq!(probe.client.text("/health").unwrap(), "OK");
    let (status, why) = probe.client.get("/ready").unwrap();
    assert_eq!(status, 503);
    assert!(why.contains("cpu: "), "{why}");
}

#[test]
fn without_btf_or_ebpf_files_are_used_and_the_reason_reported() {
    or_skip!(ebpf());
    let without_btf = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\""];
    // Root in a container without capabilities.
    let without_capabilities = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    for (wrapper, state, words) in [
        (&without_btf[..], "absent", ["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"]),
        (&without_capabilities[..], "denied", ["root", "CAP_BPF"]),
    ] {
        let wrapped = || {
            let mut command = Command::new(wrapper[0]);
            command.args(&wrapper[1..]).arg(support::binary());
            command
        };
        // With the default tier, cgroup files are used, and the reason is reported.
        let probe = Probe::start_command(&mut wrapped(), &["--energy.source=model"]);
        let (is, detail) = probe.source("cpu");
        assert!(is == "usable" && detail.starts_with("tier files: "), "{is}: {detail}");
        let page = probe.fresh();
        let info = page.all("wattcast_cpu_source_info").next().unwrap();
        assert_eq!(info.label("tier"), "files");
        assert!(info.label("reason").contains(&format!("switch {state}: ")), "{}", info.label("reason"));
        assert_eq!(page.get("wattcast_source_up", &[("source", "cpu")]), 1.0);
        page.assert_conserved();

        let probe = Probe::start_command(&mut wrapped(), &["--energy.source=model", "--cpu.tier=switch"]);
        let (is, detail) = probe.source("cpu");
        assert_eq!(is, state, "{detail}");
        assert!(words.iter().all(|word| detail.contains(word)), "{detail}");
        let page = probe.fresh();
        assert_eq!(page.get("wattcast_source_up", &[("source", "cpu"), ("reason", state)]), 0.0);
        page.assert_conserved();
        assert!(probe.client.get("/ready").unwrap().1.contains("cpu: "));
    }
}

#[test]
fn missing_paths_and_a_missing_docker_socket_are_absent() {
    let flags = ["--path.sysfs=/nowhere", "--docker.socket=/nowhere/docker.sock", "--path.cgroupfs=/nowhere"];
    let probe = Probe::start(&flags);
    for source in ["powercap", "cgroups"] {
        let (state, detail) = probe.source(source);
        assert_eq!(state, "absent", "{source}: {detail}");
        assert!(detail.contains("/nowhere"), "{detail}");
    }
    probe.fresh().assert_conserved();

    let probe = Probe::start(&["--docker.socket=/nowhere/docker.sock"]);
    let (state, detail) = probe.source("docker");
    assert_eq!(state, "absent");
    assert!(detail.contains("--docker.socket"), "{detail}");
    assert_eq!(probe.fresh().get("wattcast_source_up", &[("source", "docker"), ("reason", "absent")]), 0.0);
    assert!(!probe.client.get("/ready").unwrap().1.contains("docker"), "Docker was not enabled explicitly");
    let wanted = Probe::start(&["--docker.socket=/nowhere/docker.sock", "--collector.docker"]);
    assert!(wanted.client.get("/ready").unwrap().1.contains("docker: absent"));
}

#[test]
fn a_docker_socket_that_hangs_is_broken_and_delays_no_tick() {
    or_skip!(ebpf());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let probe = Probe::start(&[&format!("--docker.socket={}", socket.display())]);
    // A cgroup with a container's name; no runtime has this container.
    let id = format!("{:012x}{:052x}", std::process::id(), 1);
    let _workload = Workload::start(&format!("docker-{id}.scope"));
    eventually(10.0, "the socket is broken", || probe.source("docker").0 == "broken");
    eventually(10.0, "its id is its name", || probe.fresh().cpu(&id[..12]) > 0.0);
    // A busy machine misses a tick now and then. Waiting for the socket would delay all ticks.
    let ticks = |page: &support::Page| page.get("wattcast_tick_jitter_seconds_count", &[]);
    let missed = |page: &support::Page| page.get("wattcast_ticks_missed_total", &[]);
    eventually_ok(10.0, "three ticks are on time", || {
        let before = probe.fresh();
        eventually(10.0, "the ticks go on", || ticks(&probe.metrics()) >= ticks(&before) + 3.0);
        let count = missed(&probe.fresh()) - missed(&before);
        if count == 0.0 { Ok(()) } else { Err(format!("{count} missed")) }
    });
}

/// A powercap tree that a thread updates like hardware: 30 W on each of two packages.
struct FakePowercap {
    dir: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl FakePowercap {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for package in 0..2 {
            let zone = dir.path().join(format!("class/powercap/intel-rapl:{package}"));
            fs::create_dir_all(&zone).unwrap();
            fs::write(zone.join("name"), format!("package-{package}\n")).unwrap();
            fs::write(zone.join("max_energy_range_uj"), "262143328850\n").unwrap();
            fs::write(zone.join("energy_uj"), "0\n").unwrap();
            let cpu = dir.path().join(format!("devices/system/cpu/cpu{package}/topology"));
            fs::create_dir_all(&cpu).unwrap();
            fs::write(cpu.join("physical_package_id"), format!("{package}\n")).unwrap();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, path) = (stop.clone(), dir.path().to_owned());
        let thread = std::thread::spawn(move || {
            raise_priority();
            let files =
                [0, 1].map(|package| fs::OpenOptions::new().write(true).open(Self::counter(&path, package)).unwrap());
            let start = std::time::Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let microjoules = start.elapsed().as_micros() * 30;
                for file in &files {
                    file.write_all_at(format!("{microjoules:<15}\n").as_bytes(), 0).unwrap();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { dir, stop, thread: Some(thread) }
    }

    fn counter(dir: &Path, package: u32) -> PathBuf {
        dir.join(format!("class/powercap/intel-rapl:{package}/energy_uj"))
    }
}

impl FakePowercap {
    /// Stops the updates and waits for the last one.
    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

impl Drop for FakePowercap {
    fn drop(&mut self) {
        self.halt();
    }
}

#[test]
fn counters_of_a_source_that_disappears_keep_their_value() {
    let mut machine = FakePowercap::start();
    let sysfs = format!("--path.sysfs={}", machine.dir.path().display());
    let probe = Probe::start(&[&sysfs, "--energy.source=powercap", "--tick=200ms"]);
    let zone = |package| [("package", package), ("zone", "package"), ("source", "powercap")];
    eventually(10.0, "energy is measured", || {
        probe.fresh().find("wattcast_energy_joules_total", &zone("1")) > Some(0.0)
    });
    let page = probe.fresh();
    page.assert_conserved();
    assert!(page.find("rapl_power_watts", &[("package", "package-1"), ("zone", "package_1")]).is_some());
    assert_eq!(page.get("rapl_available", &[]), 1.0);

    fs::remove_file(FakePowercap::counter(machine.dir.path(), 1)).unwrap();
    // The open file descriptor can still be read, so the updates must stop before the probe
    // notices.
    machine.halt();
    eventually(15.0, "powercap is broken", || probe.source("powercap").0 == "broken");
    let last = probe.fresh().get("wattcast_energy_joules_total", &zone("1"));
    assert!(last > 0.0);
    testkit::sleep(0.6);
    let page = probe.fresh();
    assert_eq!(page.get("wattcast_energy_joules_total", &zone("1")), last, "the value is kept and not zero");
    assert_eq!(page.find("wattcast_power_watts", &zone("1")), None, "power is unknown");
    assert_eq!(page.get("wattcast_source_up", &[("source", "powercap"), ("reason", "broken")]), 0.0);
    page.assert_conserved();
    let (status, why) = probe.client.get("/ready").unwrap();
    assert_eq!((status, why.contains("powercap: broken")), (503, true), "{why}");
    assert_eq!(probe.client.text("/health").unwrap(), "OK", "a lost source is no reason for a restart");
    assert!(probe.program.log().contains("powercap: broken"), "{}", probe.program.log());
}

#[test]
fn zones_that_always_read_zero_are_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let zone = dir.path().join("class/powercap/intel-rapl:0");
    fs::create_dir_all(&zone).unwrap();
    for (file, text) in [("name", "package-0\n"), ("energy_uj", "0\n"), ("max_energy_range_uj", "262143328850\n")] {
        fs::write(zone.join(file), text).unwrap();
    }
    let sysfs = format!("--path.sysfs={}", dir.path().display());
    let probe = Probe::start(&[&sysfs]);
    let (state, detail) = probe.source("powercap");
    assert_eq!(state, "broken");
    assert!(detail.contains("does not move"), "{detail}");
    let page = probe.fresh();
    assert!(page.all("wattcast_energy_joules_total").all(|sample| sample.label("source") == "model"));
    assert_eq!(page.find("rapl_power_watts", &[]), None, "a model is never called RAPL");

    let strict = Probe::start(&[&sysfs, "--energy.source=powercap"]);
    assert_eq!(strict.fresh().all("wattcast_energy_joules_total").count(), 0, "no source, no joules");
    assert_eq!(strict.client.get("/ready").unwrap().0, 503);
}

/// A proxy of the real Docker socket.
fn relay(to: &Path) -> std::os::unix::net::UnixListener {
    use std::os::unix::net::{UnixListener, UnixStream};
    let listener = UnixListener::bind(to).unwrap();
    let accepted = listener.try_clone().unwrap();
    std::thread::spawn(move || {
        for client in accepted.incoming().map_while(Result::ok) {
            let Ok(engine) = UnixStream::connect("/var/run/docker.sock") else { return };
            for (mut from, mut to) in [(&client, &engine), (&engine, &client)]
                .map(|(from, to)| (from.try_clone().unwrap(), to.try_clone().unwrap()))
            {
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            }
        }
    });
    listener
}

#[test]
fn a_docker_socket_that_returns_is_usable_again() {
    or_skip!(ebpf());
    requires!(docker);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let _first = relay(&socket);
    let probe = Probe::start(&[&format!("--docker.socket={}", socket.display())]);
    eventually(15.0, "the engine answers", || probe.source("docker").0 == "usable");
    fs::remove_file(&socket).unwrap();
    // The socket is checked every ten seconds, without name requests too.
    eventually(30.0, "the socket is gone", || probe.source("docker").0 == "absent");
    let page = probe.fresh();
    assert_eq!(page.get("wattcast_source_up", &[("source", "docker"), ("reason", "absent")]), 0.0);
    let _second = relay(&socket);
    eventually(30.0, "the engine is back", || probe.source("docker").0 == "usable");
}
