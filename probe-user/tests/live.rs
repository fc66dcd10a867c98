//! The probe with counters that change: simulated RAPL driven by the machine's real load, and real
//! perf descriptors.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use support::{Page, Probe, ebpf_and_docker, fixture};
use testkit::{
    cgroup::{usage_us, wait_for_usage},
    eventually,
    fixture::unique,
    or_skip,
    program::raise_priority,
    requires,
    simulator::{Simulator, Spec},
    skip, sleep,
    wait::eventually_ok,
};
use units::provenance::Unmeasured;

/// Equal work on two sockets with different power. A formula for the whole host fails this test.
#[test]
fn two_packages_at_three_to_one_share_energy_three_to_one() {
    requires!(two_cpus);
    let engine = or_skip!(ebpf_and_docker());
    let dir = tempfile::tempdir().unwrap();
    // Almost no idle power, because this tests the division of dynamic energy.
    let spec = Spec { packages: Some(2), idle: 0.05, busy: vec![30.0, 10.0], ..Spec::default() };
    let simulator = Simulator::start(dir.path(), &spec).unwrap();
    let cpus = thread::available_parallelism().unwrap().get();
    let probe = Probe::start(&[&format!("--path.sysfs={}", simulator.sysfs().display())]);
    assert_eq!(probe.source("powercap").0, "usable");
    let containers = [0, cpus - 1].map(|cpu| {
        let pinned = format!("--cpuset-cpus={cpu}");
        engine.start(&unique("socket"), &[&pinned], Path::new("/bin/sh"), &["-c", "while :; do :; done"]).unwrap()
    });
    let dirs = containers.each_ref().map(|container| container.cgroup().unwrap());
    let joules = |page: &Page| {
        containers.each_ref().map(|container| -> f64 {
            let rows = page.all("wattcast_container_energy_joules_total");
            rows.filter(|row| row.label("container") == container.name).map(|row| row.value).sum()
        })
    };
    eventually(60.0, "both have energy", || joules(&probe.fresh()).iter().all(|joules| *joules > 0.0));
    // CPU seconds from the kernel, so that the expected energy does not depend on the probe.
    let kernel = || dirs.each_ref().map(|dir| Duration::from_micros(usage_us(dir).unwrap()).as_secs_f64());
    // CPU seconds before and after each page; the page's value is between the two.
    let scrape = || {
        eventually_ok(60.0, "a page is scraped within 0.02 CPU seconds", || {
            let (before, page, after) = (kernel(), probe.fresh(), kernel());
            let narrow = [0, 1].iter().all(|at| after[*at] - before[*at] <= 0.02);
            if narrow { Ok((page, [0, 1].map(|at| before[at].midpoint(after[at])))) } else { Err("it took longer") }
        })
    };
    let (before, cpu_before) = scrape();
    dirs.iter().zip(cpu_before).for_each(|(dir, cpu)| wait_for_usage(dir, cpu + 3.0));
    let (after, cpu_after) = scrape();
    let [fast, slow] = [0, 1].map(|at| joules(&after)[at] - joules(&before)[at]);
    let [cpu_fast, cpu_slow] = [0, 1].map(|at| cpu_after[at] - cpu_before[at]);
    println!("{fast:.2} J in {cpu_fast:.2} CPU s, {slow:.2} J in {cpu_slow:.2} CPU s: {:.3} to 1", fast / slow);
    after.assert_conserved();
    // Each container's energy is its CPU time times the power of its socket: 30 W and 10 W.
    for (joules, watts, cpu) in [(fast, 30.0, cpu_fast), (slow, 10.0, cpu_slow)] {
        assert!((joules / (watts * cpu) - 1.0).abs() <= 0.03, "{joules} J of {watts} W for {cpu} s");
    }
    // With equal CPU time the ratio of the energies is 3.
    if (cpu_fast / cpu_slow - 1.0).abs() < 0.01 {
        assert!((fast / slow / 3.0 - 1.0).abs() <= 0.03, "{fast} J and {slow} J");
    }
    let (_, detail) = probe.source("powercap");
    assert!(detail.contains("SIMULATED"), "{detail}");
    let sources = probe.client.json("/api/v1/sources").unwrap();
    let powercap = sources.as_array().unwrap().iter().find(|source| source["source"] == "powercap").unwrap();
    let banner = Unmeasured::Simulated.banner();
    assert_eq!(powercap["banner"], banner);
    assert!(probe.client.text("/overview").unwrap().contains(banner));
    assert!(after.all("wattcast_energy_joules_total").all(|row| row.label("source") == "simulated"));
    assert_eq!(after.all("rapl_power_watts").count(), 0, "simulated energy is never called RAPL");
    simulator.alive().unwrap();
}

#[test]
fn the_power_pmu_is_read_through_real_perf_descriptors() {
    let sysfs = format!("--path.sysfs={}", fixture("perf-two-sockets").join("sys").display());
    let probe = Probe::start(&[&sysfs, "--tick=30s", "--power.distribution=20"]);
    let (state, detail) = probe.source("perf");
    if state == "denied" {
        skip!("{detail}");
    }
    assert_eq!((&*state, &*detail), ("usable", "2 packages, 2 zones"));
    let page = probe.undisturbed_tick(0.3).page;
    for package in ["0", "1"] {
        let watts = page.get("wattcast_power_watts", &[("package", package), ("source", "perf")]);
        assert!((watts - 1.0).abs() < 0.02, "one watt for each CPU: {watts}");
    }
    // A distribution of one watt, sampled at up to 20 Hz.
    let distribution = |page: &Page, package: &str, name: &str, labels: &[(&str, &str)]| {
        let name = format!("wattcast_power_distribution_watts_{name}");
        page.get(&name, &[&[("package", package)], labels].concat())
    };
    let page = eventually_ok(60.0, "twenty readings of each package", || {
        let page = probe.fresh();
        let counts = ["0", "1"].map(|package| distribution(&page, package, "count", &[]));
        if counts.iter().all(|count| *count >= 20.0) { Ok(page) } else { Err(format!("{counts:?}")) }
    });
    for package in ["0", "1"] {
        let at = |name: &str, labels: &[(&str, &str)]| distribution(&page, package, name, labels);
        let (count, mean) = (at("count", &[]), at("sum", &[]) / at("count", &[]));
        assert!((mean - 1.0).abs() < 0.05, "{mean} W in {count} readings");
        assert_eq!(at("bucket", &[("le", "2")]), count);
    }
    page.assert_conserved();
    // Capabilities belong to a thread, so every thread must have dropped them.
    if testkit::shell::is_root() {
        let mut threads = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", probe.program.pid())).unwrap() {
            let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
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
    let without = Probe::start(&[&sysfs]);
    assert_eq!(without.fresh().all("wattcast_power_distribution_watts_count").count(), 0, "off by default");
}

#[test]
fn registers_are_read_only_with_an_explicit_flag() {
    const PACKAGE_ENERGY: u64 = 0x611;
    let tree = support::copy_fixture("client-psys");
    let device = tree.path().join("dev/cpu/0/msr");
    fs::create_dir_all(device.parent().unwrap()).unwrap();
    let file = fs::File::create(&device).unwrap();
    file.set_len(0x1000).unwrap();
    file.write_all_at(&(14u64 << 8).to_ne_bytes(), 0x606).unwrap();
    let set = |steps: u64| file.write_all_at(&(steps & 0xffff_ffff).to_ne_bytes(), PACKAGE_ENERGY).unwrap();
    let flags = [
        format!("--path.sysfs={}", tree.path().join("sys").display()),
        format!("--path.procfs={}", tree.path().join("proc").display()),
        format!("--path.dev={}", tree.path().join("dev").display()),
        "--energy.source=msr".to_owned(),
        "--tick=30s".to_owned(),
    ];
    // The probe rejects registers that do not change, so this one changes until the probe has
    // started.
    let started = AtomicBool::new(false);
    let (probe, steps) = thread::scope(|scope| {
        let moving = scope.spawn(|| {
            raise_priority();
            let mut steps = 0xffff_0000;
            while !started.load(Ordering::Relaxed) {
                steps += 1;
                set(steps);
                thread::sleep(Duration::from_millis(1));
            }
            steps
        });
        // The probe is killed when the thread that starts it ends.
        let probe = std::panic::catch_unwind(|| Probe::start(&flags.each_ref().map(String::as_str)));
        started.store(true, Ordering::Relaxed);
        (probe.unwrap(), moving.join().unwrap())
    });
    assert_eq!(probe.source("msr").0, "usable");
    probe.first_regular_tick();
    let joules = |page: &Page| page.get("wattcast_energy_joules_total", &[("zone", "package"), ("source", "msr")]);
    let (start, before) = (probe.client.mark().unwrap(), probe.metrics());
    sleep(0.4);
    // 8 J are 131,072 steps of 2^-14 J, so the 32-bit counter wraps.
    assert!(steps + (8 << 14) > 1 << 32);
    set(steps + (8 << 14));
    let (end, page) = (probe.client.mark().unwrap(), probe.metrics());
    let increase = joules(&page) - joules(&before);
    assert!((increase - 8.0).abs() < 1e-5, "{increase} J");
    let watts = page.get("wattcast_power_watts", &[("zone", "package"), ("source", "msr")]);
    let expected = 8.0 / (end - start);
    assert!((watts / expected - 1.0).abs() < 0.01, "{watts} W, 8 J in {} s", end - start);
    assert_eq!(page.all("wattcast_energy_rejects_total").count(), 0);
}

#[test]
fn doctor_reports_sources_and_exits_with_their_quality() {
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
        "remedy: in a guest the hypervisor",
        "Energy cannot be measured here. It would be modelled",
        "docker       absent",
    ] {
        assert!(text.contains(words), "{words}:\n{text}");
    }
    assert!(!text.lines().any(|line| line.contains("usable") && line.contains("intel-rapl")), "{text}");
    let (_, text) = doctor("mmio-twin", &[]);
    assert!(text.contains("left out: intel-rapl-mmio:0: a duplicate of"), "{text}");
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
fn learnt_idle_power_survives_a_restart() {
    let sysfs = format!("--path.sysfs={}", fixture("perf-two-sockets").join("sys").display());
    let dir = tempfile::tempdir().unwrap();
    let state = format!("--state.dir={}", dir.path().join("state").display());
    let probe = Probe::start(&[&sysfs, &state]);
    if probe.source("perf").0 == "denied" || probe.source("cpu").0 != "usable" {
        skip!("needs perf_event_open and eBPF");
    }
    // Ticks are combined to one sample of load and power after 0.9 s.
    let learn = |probe: Probe| {
        let start = probe.client.mark().unwrap();
        eventually(20.0, "a second of ticks", || probe.client.mark().unwrap() - start > 1.0);
        probe.end()
    };
    // Until an end had the time to save it.
    assert!(learn(probe) || (0..9).any(|_| learn(Probe::start(&[&sysfs, &state]))));
    let file = dir.path().join("state/idle.json");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("package of package 1"), "{text}");
    let again = Probe::start(&[&sysfs, &state]);
    assert!(again.program.log().contains("idle power: restored from"), "{}", again.program.log());
    drop(again);
    fs::write(&file, "{").unwrap();
    let corrupt = Probe::start(&[&sysfs, &state]);
    assert!(corrupt.program.log().contains("--state.dir"), "{}", corrupt.program.log());
    corrupt.fresh().assert_conserved();
}
