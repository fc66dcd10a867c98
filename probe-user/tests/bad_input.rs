//! What goes wrong on real machines: each is one line that says what, why and what to do, and the rest keeps working.

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

use support::{Guest, Probe, ebpf};
use testkit::{eventually, or_skip, program::urgent, requires, wait::eventually_ok};

fn run(args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = Command::new(support::binary()).args(args).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_wrong_flag_or_value_ends_with_64_and_the_nearest_right_one() {
    for (args, hint) in [
        (&["--collector.cpus"][..], "--collector.cpu"),
        (&["--path.sysf=/sys"][..], "--path.sysfs"),
        (&["--energy.source=modle"][..], "model"),
        (&["--tick=fast"][..], "500ms"),
    ] {
        let (code, said) = run(args);
        assert_eq!(code, Some(64), "{args:?}: {said}");
        assert!(said.contains(hint), "{args:?}: {said}");
    }
    assert_eq!(run(&["--help"]).0, Some(0));
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file_and_that_over_the_defaults() {
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
    let (code, said, shown) =
        check("tick = \"2s\"\n[collector]\ncpu = false\n[web]\nmax_requests = 3", None, &["--config.check"]);
    assert!(code == Some(0) && shown.contains("right"), "{said}");
    // Which port was wanted shows where it cannot be had.
    let [of_file, of_environment, of_line] = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = |taken: &TcpListener| taken.local_addr().unwrap().port().to_string();
    let text = format!("port = {}\n[stats]\nport = 0", port(&of_file));
    let flag = format!("--port={}", port(&of_line));
    for (environment, args, wanted) in [
        (None, &[][..], &of_file),
        (Some(port(&of_environment)), &[], &of_environment),
        (Some(port(&of_environment)), &[&*flag], &of_line),
    ] {
        let (code, said, _) = check(&text, environment.as_deref(), args);
        assert!(code == Some(1) && said.contains(&format!("127.0.0.1:{}", port(wanted))), "{said}");
    }
    for (text, hint) in [
        ("tik = \"1s\"", "did you mean tick?"),
        ("[energy]\nsorce = \"perf\"", "energy.source"),
        ("tick = \"1ms\"", "100ms to 30s"),
        ("[energy.model]\nidle-watts = 1", "both, or neither"),
        ("tick", "line 1"),
    ] {
        let (code, said, _) = check(text, None, &["--config.check"]);
        assert!(code == Some(64) && said.contains(hint), "{text}: {said}");
    }
}

#[test]
fn the_shipped_configuration_is_right() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/probe/wattcast-probe.toml");
    let (code, said) = run(&["--config.check", "--config.file", file.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}");
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
fn who_listens_outward_without_a_password_is_warned() {
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
        let mut program = testkit::program::Program::start("probe", &mut command, dir.path()).unwrap();
        // Nobody is answered before it is said.
        program.client().unwrap().text("/health").unwrap();
        program.log()
    };
    assert!(log("0.0.0.0:0").contains("SECURITY.md"));
    assert!(!log("127.0.0.1:0").contains("SECURITY.md"));
}

#[test]
fn a_taken_port_is_said_in_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, said) = run(&["--web.listen-address", &address, "--log.level=error"]);
    assert_eq!(code, Some(1));
    assert_eq!(said.trim().lines().count(), 1, "{said}");
    assert!(said.contains(&address) && said.contains("--web.listen-address"), "{said}");
}

#[test]
fn without_root_it_models_energy_and_says_what_it_may_not() {
    requires!(root);
    // A copy that every user can reach.
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
    page.assert_closed();
    assert_eq!(probe.client.text("/health").unwrap(), "OK");
    let (status, why) = probe.client.get("/ready").unwrap();
    assert_eq!(status, 503);
    assert!(why.contains("cpu: "), "{why}");
}

#[test]
fn a_kernel_without_btf_or_that_refuses_ebpf_is_said_so_and_the_rest_works() {
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
        // Without a wish, the files serve, and the reason is said.
        let probe = Probe::start_command(&mut wrapped(), &["--energy.source=model"]);
        let (is, detail) = probe.source("cpu");
        assert!(is == "usable" && detail.starts_with("tier files: "), "{is}: {detail}");
        let page = probe.fresh();
        let info = page.all("wattcast_cpu_source_info").next().unwrap();
        assert_eq!(info.label("tier"), "files");
        assert!(info.label("reason").contains(&format!("switch {state}: ")), "{}", info.label("reason"));
        assert_eq!(page.get("wattcast_source_up", &[("source", "cpu")]), 1.0);
        page.assert_closed();

        let probe = Probe::start_command(&mut wrapped(), &["--energy.source=model", "--cpu.tier=switch"]);
        let (is, detail) = probe.source("cpu");
        assert_eq!(is, state, "{detail}");
        assert!(words.iter().all(|word| detail.contains(word)), "{detail}");
        let page = probe.fresh();
        assert_eq!(page.get("wattcast_source_up", &[("source", "cpu"), ("reason", state)]), 0.0);
        page.assert_closed();
        assert!(probe.client.get("/ready").unwrap().1.contains("cpu: "));
    }
}

#[test]
fn missing_paths_and_a_missing_docker_are_absent_and_the_rest_works() {
    let flags = ["--path.sysfs=/nowhere", "--docker.socket=/nowhere/docker.sock", "--path.cgroupfs=/nowhere"];
    let probe = Probe::start(&flags);
    for source in ["powercap", "cgroups"] {
        let (state, detail) = probe.source(source);
        assert_eq!(state, "absent", "{source}: {detail}");
        assert!(detail.contains("/nowhere"), "{detail}");
    }
    probe.fresh().assert_closed();

    let probe = Probe::start(&["--docker.socket=/nowhere/docker.sock"]);
    let (state, detail) = probe.source("docker");
    assert_eq!(state, "absent");
    assert!(detail.contains("--docker.socket"), "{detail}");
    assert_eq!(probe.fresh().get("wattcast_source_up", &[("source", "docker"), ("reason", "absent")]), 0.0);
    assert!(!probe.client.get("/ready").unwrap().1.contains("docker"), "nobody asked for Docker");
    let wanted = Probe::start(&["--docker.socket=/nowhere/docker.sock", "--collector.docker"]);
    assert!(wanted.client.get("/ready").unwrap().1.contains("docker: absent"));
}

#[test]
fn a_docker_socket_that_never_answers_is_broken_and_delays_nothing() {
    or_skip!(ebpf());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let probe = Probe::start(&[&format!("--docker.socket={}", socket.display())]);
    // A container by its cgroup; no runtime knows it.
    let id = format!("{:012x}{:052x}", std::process::id(), 1);
    let _guest = Guest::start(&format!("docker-{id}.scope"));
    eventually(10.0, "the socket is called broken", || probe.source("docker").0 == "broken");
    eventually(10.0, "it goes by its id", || probe.fresh().cpu(&id[..12]) > 0.0);
    // A machine that is busy elsewhere misses a tick now and then; a socket that was waited for
    // would make all late.
    let ticks = |page: &support::Page| page.get("wattcast_tick_jitter_seconds_count", &[]);
    let missed = |page: &support::Page| page.get("wattcast_ticks_missed_total", &[]);
    eventually_ok(10.0, "three ticks are on time", || {
        let before = probe.fresh();
        eventually(10.0, "the ticks go on", || ticks(&probe.metrics()) >= ticks(&before) + 3.0);
        let count = missed(&probe.fresh()) - missed(&before);
        if count == 0.0 { Ok(()) } else { Err(format!("{count} missed")) }
    });
}

/// A powercap tree that a thread moves, as hardware would: 30 W on each of two packages.
struct Machine {
    dir: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Machine {
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
            urgent();
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

impl Machine {
    /// Nothing is written any more when this is done.
    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.halt();
    }
}

#[test]
fn a_source_that_vanishes_is_broken_and_its_counters_stop_where_they_stood() {
    let mut machine = Machine::start();
    let sysfs = format!("--path.sysfs={}", machine.dir.path().display());
    let probe = Probe::start(&[&sysfs, "--energy.source=powercap", "--tick=200ms"]);
    let zone = |package| [("package", package), ("zone", "package"), ("source", "powercap")];
    eventually(10.0, "energy is measured", || {
        probe.fresh().find("wattcast_energy_joules_total", &zone("1")) > Some(0.0)
    });
    let page = probe.fresh();
    page.assert_closed();
    assert!(page.find("rapl_power_watts", &[("package", "package-1"), ("zone", "package_1")]).is_some());
    assert_eq!(page.get("rapl_available", &[]), 1.0);

    fs::remove_file(Machine::counter(machine.dir.path(), 1)).unwrap();
    // The open descriptor still reads, so the file must stop moving before the probe can tell.
    machine.halt();
    eventually(15.0, "powercap is broken", || probe.source("powercap").0 == "broken");
    let stood = probe.fresh().get("wattcast_energy_joules_total", &zone("1"));
    assert!(stood > 0.0);
    testkit::sleep(0.6);
    let page = probe.fresh();
    assert_eq!(page.get("wattcast_energy_joules_total", &zone("1")), stood, "it stands, and is not zero");
    assert_eq!(page.find("wattcast_power_watts", &zone("1")), None, "no watts are known");
    assert_eq!(page.get("wattcast_source_up", &[("source", "powercap"), ("reason", "broken")]), 0.0);
    page.assert_closed();
    let (status, why) = probe.client.get("/ready").unwrap();
    assert_eq!((status, why.contains("powercap: broken")), (503, true), "{why}");
    assert_eq!(probe.client.text("/health").unwrap(), "OK", "a lost source is no reason for a restart");
    assert!(probe.program.log().contains("powercap: broken"), "{}", probe.program.log());
}

#[test]
fn zones_that_read_zero_for_ever_are_not_used() {
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

/// Passes a socket on to the real engine's, until it is told to go away.
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
fn a_docker_that_goes_away_is_absent_and_usable_again_when_it_is_back() {
    or_skip!(ebpf());
    requires!(docker);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let _first = relay(&socket);
    let probe = Probe::start(&[&format!("--docker.socket={}", socket.display())]);
    eventually(15.0, "the engine answers", || probe.source("docker").0 == "usable");
    fs::remove_file(&socket).unwrap();
    // Nobody asks for a name meanwhile: it is looked at all the same, every ten seconds.
    eventually(30.0, "the socket is gone", || probe.source("docker").0 == "absent");
    let page = probe.fresh();
    assert_eq!(page.get("wattcast_source_up", &[("source", "docker"), ("reason", "absent")]), 0.0);
    let _second = relay(&socket);
    eventually(30.0, "the engine is back", || probe.source("docker").0 == "usable");
}
