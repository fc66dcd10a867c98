//! The probe on machines that move: the simulator over this machine's real load, and real descriptors of the kernel.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{path::Path, process::Command};

use support::{Probe, ebpf_and_docker, fixture};
use testkit::simulator::{Simulator, Spec};
use testkit::{
    eventually,
    fixture::unique,
    lock::{Resource, hold},
    or_skip, skip, sleep,
};

/// The oracle that every host-wide formula fails: equal work on two sockets of unequal watts.
#[test]
fn two_packages_at_three_to_one_give_equal_containers_joules_at_three_to_one() {
    let _cpus = hold(Resource::Cpus);
    let engine = or_skip!(ebpf_and_docker());
    if std::thread::available_parallelism().unwrap().get() < 2 {
        skip!("needs two CPUs");
    }
    let dir = tempfile::tempdir().unwrap();
    // Hardly any idle power: what is asked here is how the dynamic part is shared.
    let spec = Spec { packages: Some(2), idle: 0.05, busy: vec![30.0, 10.0], ..Spec::default() };
    let simulator = Simulator::start(dir.path(), &spec).unwrap();
    let cpus = std::thread::available_parallelism().unwrap().get();
    let probe = Probe::start(&[&format!("--path.sysfs={}", simulator.sysfs().display())]);
    assert_eq!(probe.source("powercap").0, "usable");
    let burn = |cpu: usize| {
        let name = unique("socket");
        let pinned = format!("--cpuset-cpus={cpu}");
        engine.start(&name, &[&pinned], Path::new("/bin/sh"), &["-c", "while :; do :; done"]).unwrap()
    };
    let containers = [burn(0), burn(cpus - 1)];
    let joules = |page: &support::Page, at: usize| -> f64 {
        page.all("wattcast_container_energy_joules_total")
            .filter(|sample| sample.label("container") == containers[at].name)
            .map(|sample| sample.value)
            .sum()
    };
    eventually(10.0, "both are known", || {
        let page = probe.fresh();
        joules(&page, 0) > 0.0 && joules(&page, 1) > 0.0
    });
    let dirs = containers.each_ref().map(|container| container.cgroup().unwrap());
    // CPU seconds by the kernel's own figure: nothing of the probe's is in what its joules are held against.
    let kernel = || dirs.each_ref().map(|dir| testkit::cgroup::usage_us(dir).unwrap() as f64 / 1e6);
    // Before and after each page: what it counts lies between the two.
    let look = || {
        let (before, page, after) = (kernel(), probe.fresh(), kernel());
        (page, [0, 1].map(|at| before[at].midpoint(after[at])))
    };
    let (before, cpu_before) = look();
    sleep(20.0);
    let (after, cpu_after) = look();
    let [fast, slow] = [0, 1].map(|at| joules(&after, at) - joules(&before, at));
    let [cpu_fast, cpu_slow] = [0, 1].map(|at| cpu_after[at] - cpu_before[at]);
    println!("{fast:.2} J in {cpu_fast:.2} CPU s, {slow:.2} J in {cpu_slow:.2} CPU s: {:.3} to 1", fast / slow);
    after.assert_closed();
    // Each got its own watts for its own time: 30 W and 10 W.
    for (joules, watts, cpu) in [(fast, 30.0, cpu_fast), (slow, 10.0, cpu_slow)] {
        assert!((joules / (watts * cpu) - 1.0).abs() <= 0.03, "{joules} J of {watts} W for {cpu} s");
    }
    // And where the machine let both run as long, their joules are three to one as they stand.
    if (cpu_fast / cpu_slow - 1.0).abs() < 0.01 {
        assert!((fast / slow / 3.0 - 1.0).abs() <= 0.03, "{fast} J and {slow} J");
    }
    let (_, detail) = probe.source("powercap");
    assert!(detail.contains("SIMULATED"), "{detail}");
    simulator.alive().unwrap();
}

#[test]
fn the_power_pmu_is_read_through_real_descriptors_before_anything_else() {
    let sysfs = fixture("perf-two-sockets").join("sys");
    let probe = Probe::start(&[&format!("--path.sysfs={}", sysfs.display()), "--power.distribution=20"]);
    let (state, detail) = probe.source("perf");
    if state == "denied" {
        skip!("{detail}");
    }
    assert_eq!((&*state, &*detail), ("usable", "2 packages, 2 zones"));
    // Between two regular ticks, so that the last is long beside what separates the readings of one look.
    sleep(2.6);
    let page = probe.fresh();
    for package in ["0", "1"] {
        let watts = page.get("wattcast_power_watts", &[("package", package), ("source", "perf")]);
        assert!((watts - 1.0).abs() < 0.02, "one watt for each CPU: {watts}");
        // A distribution of one watt, read twenty times a second.
        let at = |name: &str, labels: &[(&str, &str)]| {
            page.get(&format!("wattcast_power_distribution_watts_{name}"), &[&[("package", package)], labels].concat())
        };
        let count = at("count", &[]);
        assert!(count >= 20.0, "{count} readings");
        assert!((at("sum", &[]) / count - 1.0).abs() < 0.05);
        assert_eq!(at("bucket", &[("le", "2")]), count);
    }
    page.assert_closed();
    // No thread keeps what the start was allowed to do: capabilities are a thread's.
    if testkit::shell::is_root() {
        let mut threads = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", probe.program.pid())).unwrap() {
            let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
            assert_eq!(
                (&*field("CapEff:"), &*field("CapBnd:"), &*field("NoNewPrivs:")),
                ("0000000000000000", "0000000000000000", "1"),
                "{status}"
            );
            threads += 1;
        }
        assert!(threads >= 3, "the sampler, the server and the distribution: {threads}");
    }
    let without = Probe::start(&[&format!("--path.sysfs={}", sysfs.display())]);
    assert_eq!(without.fresh().all("wattcast_power_distribution_watts_count").count(), 0, "off unless asked for");
}

#[test]
fn registers_are_read_only_when_asked_for_by_name() {
    use std::os::unix::fs::FileExt as _;
    let tree = support::copy_fixture("client-psys");
    let device = tree.path().join("dev/cpu/0/msr");
    std::fs::create_dir_all(device.parent().unwrap()).unwrap();
    let file = std::fs::File::create(&device).unwrap();
    file.set_len(0x1000).unwrap();
    file.write_all_at(&(14u64 << 8).to_ne_bytes(), 0x606).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // 16 W: 262,144 steps of 2^-14 J a second, from just before the 32 bits are full.
            let start = std::time::Instant::now();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let steps = 0xffff_0000 + start.elapsed().as_micros() as u64 * 262_144 / 1_000_000;
                file.write_all_at(&(steps & 0xffff_ffff).to_ne_bytes(), 0x611).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let sysfs = format!("--path.sysfs={}", tree.path().join("sys").display());
        let (procfs, dev) = (tree.path().join("proc"), tree.path().join("dev"));
        let paths = [sysfs, format!("--path.procfs={}", procfs.display()), format!("--path.dev={}", dev.display())];
        let flags: Vec<&str> = paths.iter().map(String::as_str).chain(["--energy.source=msr"]).collect();
        let outcome = std::panic::catch_unwind(|| {
            let probe = Probe::start(&flags);
            assert_eq!(probe.source("msr").0, "usable");
            sleep(2.6);
            let page = probe.fresh();
            let watts = page.get("wattcast_power_watts", &[("zone", "package"), ("source", "msr")]);
            assert!((watts - 16.0).abs() < 0.5, "{watts}");
            assert_eq!(page.all("wattcast_energy_rejects_total").count(), 0);
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        outcome.unwrap();
    });
}

#[test]
fn the_doctor_says_what_is_there_and_ends_with_what_it_is_worth() {
    let doctor = |tree: &str, flags: &[&str]| {
        let root = fixture(tree);
        let output = Command::new(support::binary())
            .args(["doctor", "--log.level=error"])
            .args(flags)
            .arg(format!("--path.sysfs={}", root.join("sys").display()))
            .arg(format!("--path.procfs={}", root.join("proc").display()))
            .args(["--path.dev=/nowhere", "--docker.socket=/nowhere"])
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = doctor("guest-zero", &[]);
    assert_eq!(code, Some(3), "{text}");
    for words in [
        "does not move",
        "remedy: a guest shows",
        "Energy cannot be measured here. It would be modelled",
        "docker     absent",
    ] {
        assert!(text.contains(words), "{words}:\n{text}");
    }
    assert!(!text.lines().any(|line| line.contains("usable") && line.contains("intel-rapl")), "{text}");
    let (_, text) = doctor("mmio-twin", &[]);
    assert!(text.contains("left out: intel-rapl-mmio:0: the same joules as"), "{text}");
    let (_, text) = doctor("client-psys", &[]);
    assert!(text.contains("SMT        on"), "{text}");
    assert!(text.contains("wraps after 262143 J, limit 95 W"), "{text}");

    let (code, text) = doctor("perf-two-sockets", &["--json"]);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let perf = report["sources"].as_array().unwrap().iter().find(|source| source["name"] == "perf").unwrap();
    if perf["state"] == "denied" {
        skip!("perf_event_open is not allowed here");
    }
    assert_eq!((code, &report["measures"], &report["chosen"]), (Some(0), &true.into(), &"perf".into()));
    assert_eq!(perf["zones"].as_array().unwrap().len(), 2);
}

#[test]
fn what_was_learnt_of_idle_power_outlives_the_probe() {
    let sysfs = format!("--path.sysfs={}", fixture("perf-two-sockets").join("sys").display());
    let dir = tempfile::tempdir().unwrap();
    let state = format!("--state.dir={}", dir.path().join("state").display());
    let probe = Probe::start(&[&sysfs, &state]);
    if probe.source("perf").0 == "denied" || probe.source("cpu").0 != "usable" {
        skip!("needs perf_event_open and eBPF");
    }
    sleep(2.5);
    assert!(probe.program.stop().unwrap().success());
    let file = dir.path().join("state/idle.json");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("package of package 1"), "{text}");
    let again = Probe::start(&[&sysfs, &state]);
    assert!(again.program.log().contains("remembering what was learnt"), "{}", again.program.log());
    drop(again);
    std::fs::write(&file, "{").unwrap();
    let torn = Probe::start(&[&sysfs, &state]);
    assert!(torn.program.log().contains("--state.dir"), "{}", torn.program.log());
    torn.fresh().assert_closed();
}
