//! `cargo xtask up --demo` end to end: both programs and ffmpeg, with its energy on screen and in
//! the metrics.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    net::TcpListener,
    process::{Command, Stdio},
};

use testkit::{
    api::Client,
    cgroup::busy_seconds,
    eventually,
    lock::{Resource, hold},
    requires,
    shell::root,
    skip,
};

const PORTS: [u16; 8] = [9500, 9501, 9502, 9503, 9504, 9505, 9506, 9728];

/// A running `up`, which is interrupted when this is dropped.
struct Up(std::process::Child);

impl Up {
    fn interrupt(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        let pid = libc::pid_t::try_from(self.0.id()).unwrap();
        // SAFETY: the child was not waited for, so the pid is still its own.
        unsafe { libc::kill(pid, libc::SIGINT) };
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.interrupt();
        let _ = self.0.wait();
    }
}

mod standard_ports {
    use super::*;

    #[test]
    fn demo_shows_the_same_energy_on_screen_and_in_metrics() {
        requires!(root, ffmpeg);
        let _ports = hold(Resource::StandardPorts);
        if let Some(port) = PORTS.into_iter().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_err()) {
            skip!("port {port} is in use");
        }
        // The service runs as user 65534, which needs access.
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let results = dir.path().join("results");
        let [screen_path, steps_path] = ["screen.txt", "steps.txt"].map(|name| dir.path().join(name));
        let screen = || fs::read_to_string(&screen_path).unwrap_or_default();
        let steps = || fs::read_to_string(&steps_path).unwrap_or_default();
        let mut up = Up(Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(["up", "--demo", "--demo-seconds", "6", "--results-dir"])
            .arg(&results)
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(fs::File::create(&screen_path).unwrap())
            .stderr(fs::File::create(&steps_path).unwrap())
            .spawn()
            .unwrap());
        let mut until = |seconds: f64, what: &str, text: &dyn Fn() -> String| {
            eventually(seconds, what, || {
                assert!(up.0.try_wait().unwrap().is_none(), "up ended:\n{}\n{}", steps(), screen());
                text().contains(what)
            });
        };
        // Includes building the programs, if necessary.
        until(600.0, "runs in ", &steps);
        let busy_before = busy_seconds();
        until(120.0, "wrote ", &steps);
        let busy = busy_seconds() - busy_before;
        until(60.0, "Containers, updated every second", &screen);
        let screen = screen();
        println!("{screen}");
        let number = |unit: &str| -> f64 {
            let line =
                screen.lines().find(|line| line.contains(unit)).unwrap_or_else(|| panic!("no {unit} in:\n{screen}"));
            line.split_whitespace().find_map(|word| word.parse().ok()).unwrap()
        };
        let joules = number("J dynamic");
        assert!(joules > 0.0 && number("J per frame") > 0.0);
        // "Result of run 20240115_103000, container NAME, source: model"
        let result = screen.lines().find_map(|line| line.strip_prefix("Result of run ")).unwrap();
        let (run, rest) = result.split_once(", container ").unwrap();
        let (name, _) = rest.split_once(", source: ").unwrap();
        assert!(screen.contains("MODELLED") || !screen.contains("source: model"), "modelled energy must be labelled");

        // The metrics have the figures of the screen.
        let probe = Client::new("http://127.0.0.1:9500").metrics().unwrap();
        let container: Vec<_> = probe
            .iter()
            .filter(|sample| {
                sample.name == "wattcast_container_energy_joules_total" && sample.label("container") == name
            })
            .collect();
        assert_eq!(container.len(), 1, "{name} has one row");
        assert!(container[0].value >= joules * 0.99, "{} J on 9500, {joules} J on screen", container[0].value);

        // Most of the dynamic energy belongs to the container, unless other processes ran.
        let share = screen.split(" % of dynamic").next().and_then(|text| text.rsplit(' ').next()?.parse::<f64>().ok());
        let share = share.unwrap_or_else(|| panic!("no share of dynamic energy in:\n{screen}"));
        let cpu = |sample: &&testkit::api::Sample| {
            sample.name == "wattcast_container_cpu_seconds_total" && sample.label("container") == name
        };
        let others = 1.0 - probe.iter().filter(cpu).map(|sample| sample.value).sum::<f64>() / busy;
        println!("{share} % system and unattributed, other processes used {:.1} % of the CPU time", 100.0 * others);
        assert!(share < 15.0 || others > 0.10, "{share} %, other processes used {others} of the CPU time:\n{screen}");
        let results_page = Client::new("http://127.0.0.1:9502").metrics().unwrap();
        let of_run: Vec<_> = results_page.iter().filter(|sample| sample.label("run") == run).collect();
        let energy = of_run.iter().find(|s| s.name == "wattcast_run_energy_joules" && s.label("scope") == "container");
        assert!((energy.unwrap().value - joules).abs() < 0.01, "{energy:?}, {joules} J on screen");
        assert!(of_run.iter().any(|sample| sample.name == "results_scenario_total_frames" && sample.value >= 100.0));

        // The cost on port 9504 is that of the host energy on port 9502.
        let host: f64 = of_run
            .iter()
            .filter(|sample| sample.name == "wattcast_run_energy_joules" && sample.label("scope") == "host")
            .map(|sample| sample.value)
            .sum();
        let cost = Client::new("http://127.0.0.1:9504").metrics().unwrap();
        let paid = cost.iter().find(|s| s.name == "cost_energy_load_aware" && s.label("run") == run).unwrap().value;
        assert!((paid / 0.12 * 3.6e6 - host).abs() < 1e-6, "{paid} for {host} J");
        assert!(screen.contains(", the default price"), "{screen}");

        // Ctrl-C stops both programs.
        up.interrupt();
        assert!(up.0.wait().unwrap().success());
        for port in [9500, 9502] {
            assert!(TcpListener::bind(("127.0.0.1", port)).is_ok(), "a process still listens on {port}");
        }
    }
}
