//! End-to-end tests of GPUs: the real NVML wrapper with a fake library, real processes and
//! containers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use fake_nvml::scenario::{Engines, Gpu, Instance, Process, Scenario, Session, VARIABLE};
use support::{Page, Probe, Workload, ebpf, ebpf_and_docker};
use testkit::{
    cgroup::{self, Cgroup},
    eventually,
    fixture::unique,
    or_skip,
    program::{Burner, kill_on_parent_exit, raise_priority},
    requires,
    shell::which,
    skip, sleep,
    wait::eventually_ok,
};

const UUID: &str = "GPU-fa4efa4e-fa4e-fa4e-fa4e-000000000000";
const BOARD: [(&str, &str); 2] = [("package", UUID), ("zone", "gpu")];

/// The flag that makes a probe load the fake library.
fn flag() -> String {
    format!("--path.nvml={}", support::fake_nvml().display())
}

/// A probe with a scenario that the test can change. Other tests do not see its GPUs.
struct Bench {
    probe: Probe,
    gpus: testkit::api::Client,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn start(scenario: &Scenario, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("scenario.toml");
        std::fs::write(&file, scenario.text()).unwrap();
        let library = flag();
        let all: Vec<&str> = [&*library, "--energy.source=model"].into_iter().chain(flags.iter().copied()).collect();
        let mut command = Command::new(support::binary());
        let mut probe = Probe::start_command(command.env(VARIABLE, &file), &all);
        let ports = if flags.contains(&"--no-collector.cpu") { 1 } else { 2 };
        let gpus = probe.program.client_of(ports).unwrap();
        Self { probe, gpus, file, _dir: dir }
    }

    /// Replaces the scenario file atomically.
    fn change(&self, scenario: &Scenario) {
        let draft = self.file.with_extension("draft");
        std::fs::write(&draft, scenario.text()).unwrap();
        std::fs::rename(draft, &self.file).unwrap();
    }

    /// Metrics of a tick that includes a GPU poll.
    fn page(&self) -> Page {
        page_with_gpu_poll(&self.probe)
    }

    /// Waits until the driver responds again; returns metrics that show it, and a time at which
    /// the GPU was still lost.
    ///
    /// The poll that a page shows began after the previous page was requested. While a page shows
    /// the loss, the GPU was therefore lost at that time or later.
    fn wait_until_back(&self) -> (Page, Instant) {
        let start = Instant::now();
        let (mut lost, mut before) = (start, start);
        let page = eventually_ok(25.0, "the GPU is back", || {
            let requested = Instant::now();
            let page = self.page();
            if page.get("wattcast_source_up", &[("source", "nvml")]) == 1.0 {
                return Ok(page);
            }
            (lost, before) = (before, requested);
            Err("it is lost")
        });
        (page, lost)
    }

    fn gpu_page(&self) -> Page {
        Page(self.gpus.metrics().unwrap())
    }

    /// Waits until the driver is open; the probe itself does not wait for it.
    fn wait_until_open(&self) {
        eventually(10.0, "the driver is opened", || {
            let sources = self.probe.client.json("/api/v1/sources").unwrap();
            sources.as_array().unwrap().iter().any(|source| source["source"] == "nvml")
        });
    }
}

/// Metrics of a tick that includes a GPU poll. A tick without one has no power, and its GPU energy
/// is in a later tick.
fn page_with_gpu_poll(probe: &Probe) -> Page {
    eventually_ok(15.0, "a tick includes a GPU poll", || {
        let page = probe.fresh();
        let late = page.find("wattcast_collector_success", &[("collector", "gpu")]) == Some(0.0);
        if late { Err("the poll was late") } else { Ok(page) }
    })
}

fn one(gpu: Gpu) -> Scenario {
    Scenario { init: None, gpu: vec![gpu] }
}

fn uses(pid: u32, percent: Engines) -> Process {
    Process { pid: Some(pid), percent, ..Process::default() }
}

fn encoder(percent: f64) -> Engines {
    Engines { encoder: percent, ..Engines::default() }
}

fn joules(page: &Page, container: &str) -> f64 {
    let labels = [("container", container), ("zone", "gpu"), ("source", "fake")];
    page.find("wattcast_container_energy_joules_total", &labels).unwrap_or(0.0)
}

fn of_board(page: &Page, name: &str) -> f64 {
    page.get(name, &BOARD)
}

#[test]
fn gpu_energy_of_two_containers_follows_engine_use() {
    let engine = or_skip!(ebpf_and_docker());
    let start = |what| engine.start(&unique(what), &[], Path::new("/bin/sleep"), &["600"]).unwrap();
    let (encodes, computes) = (start("enc"), start("sm"));
    let pid = |name: &str| engine.call(&["inspect", "--format={{.State.Pid}}", name]).unwrap().trim().parse().unwrap();
    let bench = Bench::start(&one(Gpu::default()), &["--tick=500ms"]);
    bench.wait_until_open();
    // It takes three seconds and five idle samples.
    eventually(30.0, "the idle power is known", || bench.page().find("wattcast_idle_power_watts", &BOARD).is_some());
    let idle_watts = bench.page().get("wattcast_idle_power_watts", &BOARD);
    assert!((idle_watts - 10.0).abs() < 0.2, "{idle_watts}");

    // 18 W of the encoder alone, and 30 W of half of the shaders. Their weights are 0.3 and 0.5.
    let session = Session { fps: 50, ..Session::default() };
    let encoding = Process {
        session: vec![session],
        memory: 300 << 20,
        graphics: true,
        ..uses(pid(&encodes.name), encoder(100.0))
    };
    let computing = uses(pid(&computes.name), Engines { sm: 50.0, ..Engines::default() });
    bench.change(&one(Gpu { process: vec![encoding, computing], ..Gpu::default() }));
    let page = |name: &str| {
        let page = bench.page();
        (
            joules(&page, name),
            of_board(&page, "wattcast_energy_joules_total"),
            of_board(&page, "wattcast_idle_energy_joules_total"),
        )
    };
    eventually(10.0, "both have energy", || page(&encodes.name).0 > 0.0 && page(&computes.name).0 > 0.0);
    let before = bench.page();
    sleep(3.0);
    let after = bench.page();
    let increase = |name: &str| joules(&after, name) - joules(&before, name);
    let board_increase = |name: &str| of_board(&after, name) - of_board(&before, name);
    let (encoder, shaders, board) =
        (increase(&encodes.name), increase(&computes.name), board_increase("wattcast_energy_joules_total"));
    println!(
        "encoder {encoder:.2} J, shaders {shaders:.2} J, board {board:.2} J, idle {:.2} J",
        board_increase("wattcast_idle_energy_joules_total")
    );
    assert!((encoder / shaders - 0.6).abs() < 0.02, "{encoder} {shaders}");
    assert!((encoder / board - 18.0 / 58.0).abs() < 0.01, "{encoder} of {board}");
    assert!(board_increase("wattcast_unattributed_energy_joules_total").abs() < 0.02 * board);
    after.assert_conserved();

    let watts = |name: &str| after.get("wattcast_container_power_watts", &[("container", name), ("zone", "gpu")]);
    assert!((watts(&encodes.name) - 18.0).abs() < 2.0, "{}", watts(&encodes.name));
    let busy = |page: &Page, name: &str, engine: &str| {
        page.find("wattcast_container_gpu_engine_seconds_total", &[("container", name), ("engine", engine)])
    };
    let used = |name, engine| busy(&after, name, engine).unwrap() - busy(&before, name, engine).unwrap();
    // The elapsed time according to the board's energy, at 58 W. The driver's samples lag by up to
    // a tenth of a second.
    let seconds = board / 58.0;
    assert!((used(&encodes.name, "encoder") / seconds - 1.0).abs() < 0.1, "of {seconds} s");
    assert!((used(&computes.name, "sm") / seconds - 0.5).abs() < 0.05, "of {seconds} s");
    assert!(busy(&after, &encodes.name, "sm").is_none());

    let gpus = bench.gpu_page();
    let labels = [("gpu", UUID), ("name", "fake T4"), ("source", "fake")];
    assert_eq!(gpus.get("wattcast_gpu_encoder_sessions", &[labels[0], ("codec", "all")]), 1.0);
    let session = [("container", &*encodes.name), ("codec", "h264"), ("resolution", "1920x1080")];
    assert_eq!(gpus.get("wattcast_gpu_encoder_session_fps", &session), 50.0);
    assert_eq!(gpus.get("wattcast_gpu_encoder_session_latency_seconds", &session), 0.004);
    assert_eq!(gpus.get("wattcast_gpu_engine_utilization_ratio", &[labels[0], ("engine", "encoder")]), 1.0);
    assert_eq!(gpus.get("wattcast_gpu_encoder_headroom_ratio", &[labels[0], ("codec", "av1")]), 0.0);
    let memory = [("container", &*encodes.name), ("gpu", UUID)];
    eventually(8.0, "memory is read", || {
        bench.gpu_page().find("wattcast_container_gpu_memory_bytes", &memory) == Some(f64::from(300 << 20))
    });
}

#[test]
fn energy_of_a_dead_process_is_unattributed() {
    or_skip!(ebpf());
    let (mut dies, stays) = (Workload::start(&unique("dies")), Workload::start(&unique("stays")));
    let process = vec![uses(dies.pid(), encoder(60.0)), uses(stays.pid(), encoder(20.0))];
    let bench = Bench::start(&one(Gpu { process, junk: true, ..Gpu::default() }), &[]);
    eventually(10.0, "both have energy", || {
        let page = bench.page();
        joules(&page, dies.name()) > 0.0 && joules(&page, stays.name()) > 0.0
    });
    dies.kill();
    let before = bench.page();
    sleep(1.5);
    let after = bench.page();
    let board = of_board(&after, "wattcast_energy_joules_total") - of_board(&before, "wattcast_energy_joules_total");
    let unattributed = of_board(&after, "wattcast_unattributed_energy_joules_total")
        - of_board(&before, "wattcast_unattributed_energy_joules_total");
    let other = joules(&after, stays.name()) - joules(&before, stays.name());
    println!("of {board:.2} J {unattributed:.2} are unattributed, the other process has {other:.2}");
    // Three quarters belonged to the dead process, which is not reaped and which the driver still
    // reports.
    assert!((unattributed / board - 0.75).abs() < 0.02 && (other / board - 0.25).abs() < 0.02);
    assert!(joules(&after, dies.name()) - joules(&before, dies.name()) < 0.01 * board);
    after.assert_conserved();
    let gpus = bench.gpu_page();
    let dropped = |reason| gpus.get("wattcast_gpu_samples_dropped_total", &[("gpu", UUID), ("reason", reason)]);
    assert!(dropped("stale") > 0.0 && dropped("impossible") > 0.0 && dropped("unknown") > 0.0);
}

#[test]
fn equal_usage_with_different_sample_times_gets_equal_energy() {
    or_skip!(ebpf());
    let (one_user, other) = (Workload::start(&unique("one")), Workload::start(&unique("other")));
    // Periods of one second, half a second apart, with ticks shorter than a period and equal to it.
    let late = |process: Process| Process { phase_ms: 500, ..process };
    let process = vec![uses(one_user.pid(), encoder(40.0)), late(uses(other.pid(), encoder(40.0)))];
    let gpu = Gpu { process, period_ms: 1000, ..Gpu::default() };
    let benches = ["--tick=200ms", "--tick=1s"].map(|tick| (tick, Bench::start(&one(gpu.clone()), &[tick])));
    for (_, bench) in &benches {
        eventually(15.0, "both have energy", || {
            let page = bench.page();
            joules(&page, one_user.name()) > 0.0 && joules(&page, other.name()) > 0.0
        });
    }
    let timed = |bench: &Bench| (Instant::now(), bench.page(), Instant::now());
    let before = benches.each_ref().map(|(_, bench)| timed(bench));
    // Requests in between must not matter: each causes a tick.
    for _ in 0..16 {
        sleep(0.5);
        benches.iter().for_each(|(_, bench)| drop(bench.page()));
    }
    let after = benches.each_ref().map(|(_, bench)| timed(bench));
    for (((tick, _), before), after) in benches.iter().zip(&before).zip(&after) {
        let (least, most) = ((after.0 - before.2).as_secs_f64(), (after.2 - before.0).as_secs_f64());
        let (before, after) = (&before.1, &after.1);
        let increase = |of: &dyn Fn(&Page) -> f64| of(after) - of(before);
        let (first, second) =
            (increase(&|page| joules(page, one_user.name())), increase(&|page| joules(page, other.name())));
        let unattributed = increase(&|page| of_board(page, "wattcast_unattributed_energy_joules_total"));
        println!("{tick}: {first:.2} J, {second:.2} J, unattributed {unattributed:.2} J");
        // The energy of a second or two may be on either side of the window's edges.
        assert!((first / second - 1.0).abs() < 0.2, "{tick}: {first} {second}");
        assert!(unattributed < 0.02 * (first + second), "{tick}: {unattributed}");
        let seconds = |page: &Page, workload: &Workload| {
            page.get(
                "wattcast_container_gpu_engine_seconds_total",
                &[("container", workload.name()), ("engine", "encoder")],
            )
        };
        for workload in [&one_user, &other] {
            let busy = increase(&|page| seconds(page, workload));
            // One-second samples may be on either side of the window's edges.
            let expected = 0.4 * least - 0.9..0.4 * most + 0.9;
            assert!(expected.contains(&busy), "{tick}: {busy} s at 40 % of {least} to {most} s");
        }
        assert!(after.find("wattcast_power_watts", &BOARD).is_some(), "no gaps while energy is pending");
        after.assert_conserved();
    }
}

#[test]
fn lost_gpu_is_reported_and_counts_again_when_back() {
    or_skip!(ebpf());
    let workload = Workload::start(&unique("lost"));
    let working = Gpu { process: vec![uses(workload.pid(), encoder(50.0))], ..Gpu::default() };
    // A second board, which works all the time.
    let two = |gpu: Gpu| Scenario { init: None, gpu: vec![gpu, Gpu { idle_watts: 40.0, ..Gpu::default() }] };
    let bench = Bench::start(&two(working.clone()), &[]);
    eventually(10.0, "it has energy", || joules(&bench.page(), workload.name()) > 5.0);
    assert_eq!(bench.probe.client.get("/ready").unwrap().0, 200);
    // The energy of the second board.
    let second_board = || {
        let other = UUID.replace("000000000000", "000000000001");
        let requested = Instant::now();
        let page = bench.page();
        let joules = page.get("wattcast_energy_joules_total", &[("package", &other), ("zone", "gpu")]);
        (requested, joules, Instant::now())
    };
    let begin = second_board();
    // The number of calls makes the loss happen in the middle of a poll.
    bench.change(&two(Gpu { lost_after_calls: 1, ..working.clone() }));
    eventually(5.0, "the loss is detected", || bench.probe.source("nvml").0 == "broken");
    let (_, detail) = bench.probe.source("nvml");
    assert!(detail.contains("fallen off the bus") && detail.contains(UUID), "{detail}");
    let lost = bench.page();
    let gpus = bench.gpu_page();
    assert_eq!(gpus.get("wattcast_gpu_up", &[("gpu", UUID), ("reason", "broken")]), 0.0);
    let has_temperature = |of: &str| gpus.find("wattcast_gpu_temperature_celsius", &[("gpu", of)]).is_some();
    assert!(
        !has_temperature(UUID) && has_temperature(&UUID.replace("000000000000", "000000000001")),
        "the previous values of the lost GPU are not shown"
    );
    assert_eq!(gpus.get("gpu_count", &[]), 2.0, "a lost GPU is still counted");
    let (ready, why) = bench.gpus.get("/ready").unwrap();
    assert!(ready == 503 && why.contains("nvml"), "{ready} {why}");
    assert_eq!(bench.gpus.text("/health").unwrap(), "OK", "a liveness probe must not restart it over a lost GPU");
    sleep(1.0);
    assert_eq!(
        of_board(&bench.page(), "wattcast_energy_joules_total"),
        of_board(&lost, "wattcast_energy_joules_total")
    );
    assert!(bench.page().find("wattcast_power_watts", &BOARD).is_none(), "power is absent, not zero");

    // The driver is reloaded: it counts from zero.
    bench.change(&two(Gpu { epoch: 1, ..working }));
    let (back, away) = bench.wait_until_back();
    let since = away.elapsed().as_secs_f64();
    let measured = |page: &Page| of_board(page, "wattcast_energy_joules_total");
    assert!(measured(&back) >= measured(&lost));
    // The energy used during the loss is unknown and must not be invented: the GPU uses 19 W, and
    // was last known to be lost `since` seconds ago.
    let invented = measured(&back) - measured(&lost);
    assert!(invented < 19.5 * since, "{invented} J in {since} s");
    let mut later = bench.page();
    eventually(10.0, "it counts on", || {
        later = bench.page();
        measured(&later) > measured(&back) + 10.0
    });
    assert!(joules(&later, workload.name()) > joules(&back, workload.name()));
    later.assert_conserved();
    // The library was reloaded in the meantime; the second board must have lost no energy.
    let (from, to) = (begin, second_board());
    let joules = to.1 - from.1;
    let (least, most) = ((to.0 - from.2).as_secs_f64(), (to.2 - from.0).as_secs_f64());
    // A poll may be one tick old if the GPU thread was late.
    assert!(joules > 39.0 * least - 8.0 && joules < 41.0 * most + 8.0, "{joules} J at 40 W in {least} to {most} s");
}

#[test]
fn power_is_integrated_without_counter_and_stuck_is_broken() {
    let scenario = |gpus: [Gpu; 3]| Scenario { init: None, gpu: gpus.into() };
    let without = Gpu { energy_counter: false, idle_watts: 20.0, ..Gpu::default() };
    let all = [
        without.clone(),
        Gpu { stands_still: true, idle_watts: 30.0, ..Gpu::default() },
        Gpu { idle_watts: 40.0, ..Gpu::default() },
    ];
    let bench = Bench::start(&scenario(all.clone()), &["--no-collector.cpu"]);
    bench.wait_until_open();
    let (_, detail) = bench.probe.source("nvml");
    assert!(detail.contains("3 GPUs") && detail.contains("2 without a working energy counter"), "{detail}");
    assert!(detail.contains("FAKE"), "{detail}");
    bench.page();
    let before = bench.page();
    sleep(4.0);
    let after = bench.page();
    let uuid = |number: usize| format!("{}{number}", UUID.strip_suffix('0').unwrap());
    let increase = |number: usize| {
        let joules =
            |page: &Page| page.get("wattcast_energy_joules_total", &[("package", &uuid(number)), ("zone", "gpu")]);
        joules(&after) - joules(&before)
    };
    // Boards with 20, 30 and 40 W during the same time.
    assert!((increase(0) / increase(2) - 0.5).abs() < 0.02 && (increase(1) / increase(2) - 0.75).abs() < 0.02);
    after.assert_conserved();
    let [first, second, third] = all;
    bench.change(&scenario([first, second, Gpu { stands_still: true, ..third }]));
    eventually(15.0, "the source is broken", || bench.probe.source("nvml").0 == "broken");
    let (_, detail) = bench.probe.source("nvml");
    assert!(detail.contains("stands at") && detail.contains("GPU 2"), "{detail}");
    assert_eq!(bench.probe.source("model").0, "usable");
}

#[test]
fn power_is_not_integrated_while_gpu_is_lost() {
    let without = Gpu { energy_counter: false, idle_watts: 20.0, ..Gpu::default() };
    let bench = Bench::start(&one(without.clone()), &["--no-collector.cpu"]);
    bench.wait_until_open();
    let measured = |page: &Page| page.get("wattcast_energy_joules_total", &BOARD);
    eventually(10.0, "it has energy", || {
        bench.page().find("wattcast_energy_joules_total", &BOARD).is_some_and(|joules| joules > 5.0)
    });
    bench.change(&one(Gpu { lost_after_calls: 1, ..without.clone() }));
    eventually(10.0, "it is lost", || bench.probe.source("nvml").0 == "broken");
    let (lost, start) = (measured(&bench.page()), Instant::now());
    bench.change(&one(without));
    let (back, away) = bench.wait_until_back();
    let (gap, since) = ((away - start).as_secs_f64(), away.elapsed().as_secs_f64());
    let joules = measured(&back) - lost;
    // It was lost for most of the time, at 20 W, and is measured since. The gap must not be
    // interpolated.
    println!("lost for {gap:.1} s, back for {since:.1} s: {joules:.2} J");
    assert!(gap > since && joules < 20.5 * since, "{joules} J, back for {since} s");
}

#[test]
fn missing_library_driver_device_and_permission_differ() {
    let dir = tempfile::tempdir().unwrap();
    let missing = format!("--path.nvml={}", dir.path().join("libnvidia-ml.so.1").display());
    let no_text = dir.path().join("text.so");
    std::fs::write(&no_text, "not a library").unwrap();
    let bad = format!("--path.nvml={}", no_text.display());
    for (flag, state, text) in [(&*missing, "absent", "no NVIDIA driver"), (&*bad, "broken", "cannot be loaded")] {
        let mut probe = Probe::start(&["--energy.source=model", "--no-collector.cpu", flag]);
        let gpus = probe.program.client_of(1).unwrap();
        eventually(10.0, "the library is tried", || gpus.text("/").is_ok_and(|page| page.contains("<td>nvml</td>")));
        let (actual, detail) = probe.source("nvml");
        assert!(actual == state && detail.contains(text), "{actual} {detail}");
        let page = Page(gpus.metrics().unwrap());
        assert_eq!((page.get("gpu_count", &[]), page.get("gpu_exporter_alive", &[])), (0.0, 1.0));
        assert_eq!(gpus.get("/ready").unwrap().0, 200, "GPUs are not required");
        let without = probe.metrics();
        assert!(without.all("wattcast_collector_duration_seconds").all(|row| row.label("collector") != "gpu"));
    }
    for (init, state, text) in [
        (Some("DRIVER_NOT_LOADED"), "absent", "modprobe nvidia"),
        (Some("NO_PERMISSION"), "denied", "/dev/nvidiactl"),
        (Some("LIB_RM_VERSION_MISMATCH"), "broken", "two versions"),
        (None, "absent", "has no GPU"),
    ] {
        let scenario = Scenario { init: init.map(str::to_owned), gpu: Vec::new() };
        let bench = Bench::start(&scenario, &["--no-collector.cpu", "--collector.gpu"]);
        eventually(10.0, "the library is tried", || !bench.probe.source("nvml").1.contains("being opened"));
        let (actual, detail) = bench.probe.source("nvml");
        assert!(actual == state && detail.contains(text), "{init:?}: {actual} {detail}");
        assert_eq!(bench.gpus.get("/ready").unwrap().0, 503, "GPUs are required");
        if init == Some("DRIVER_NOT_LOADED") {
            // The module is loaded while the probe runs.
            bench.change(&one(Gpu::default()));
            eventually(20.0, "the GPU is found", || bench.probe.source("nvml").0 == "usable");
            assert!(bench.page().find("wattcast_energy_joules_total", &BOARD).is_some());
        }
    }
}

#[test]
fn unsupported_readings_are_absent_with_a_reason() {
    let errors = [
        ("nvmlDeviceGetTemperature", "NOT_SUPPORTED"),
        ("nvmlDeviceGetEnforcedPowerLimit", "NO_PERMISSION"),
        ("nvmlDeviceGetUtilizationRates", "UNKNOWN"),
        ("nvmlDeviceGetProcessesUtilizationInfo", "NOT_SUPPORTED"),
        ("nvmlDeviceGetCurrPcieLinkWidth", "NOT_SUPPORTED"),
    ];
    let errors = errors.map(|(function, code)| (function.to_owned(), code.to_owned())).into();
    let mig = Gpu { mig: true, process: vec![uses(std::process::id(), encoder(50.0))], ..Gpu::default() };
    let bench = Bench::start(
        &Scenario {
            init: None,
            gpu: vec![Gpu { errors, codecs: vec!["h264".into(), "hevc".into()], ..Gpu::default() }, mig],
        },
        &["--no-collector.cpu"],
    );
    bench.wait_until_open();
    // A second poll does not change the result of the first.
    bench.page();
    bench.page();
    let page = bench.gpu_page();
    for (reading, reason, family) in [
        ("temperature", "absent", "gpu_temperature_celsius"),
        ("power_limit", "denied", "gpu_power_limit_watts"),
        ("utilization", "broken", "gpu_utilization_percent"),
    ] {
        let labels = [("gpu", UUID), ("reading", reading), ("reason", reason)];
        assert_eq!(page.get("wattcast_gpu_reading_up", &labels), 0.0);
        assert!(page.find(family, &[("gpu_uuid", UUID)]).is_none(), "{family}");
    }
    // An unsupported codec does not hide the supported ones.
    let headroom = |codec| page.find("wattcast_gpu_encoder_headroom_ratio", &[("gpu", UUID), ("codec", codec)]);
    assert_eq!((headroom("h264"), headroom("hevc"), headroom("av1")), (Some(1.0), Some(1.0), None));
    // The older function is the fallback for the newer one.
    assert!(page.find("wattcast_gpu_reading_up", &[("gpu", UUID), ("reading", "process_utilization")]).is_none());
    let mig = "GPU-fa4efa4e-fa4e-fa4e-fa4e-000000000001";
    assert!(page.find("gpu_encoder_utilization_percent", &[("gpu_uuid", mig)]).is_none());
    assert!(page.find("wattcast_gpu_encoder_sessions", &[("gpu", mig)]).is_none());
    let labels = [("gpu", mig), ("reading", "process_utilization"), ("reason", "absent")];
    assert_eq!(page.get("wattcast_gpu_reading_up", &labels), 0.0);
    assert_eq!(page.get("wattcast_gpu_info", &[("gpu", mig), ("mig", "true")]), 1.0);
    let account = bench.page();
    let of = |name: &str| account.get(name, &[("package", mig), ("zone", "gpu")]);
    assert_eq!(of("wattcast_unattributed_energy_joules_total"), of("wattcast_energy_joules_total"));
    assert!(bench.probe.source("nvml").1.contains("1 in MIG mode"));
}

#[test]
fn energy_of_mig_instances_follows_their_own_counters() {
    or_skip!(ebpf());
    let start = |what| Workload::start(&unique(what));
    let (large, small, one_of_two, other_of_two) = (start("large"), start("small"), start("one"), start("other"));
    let half = Engines { sm: 50.0, ..Engines::default() };
    let on = |workload: &Workload, instance: u32, percent| Process {
        instance: Some(instance),
        ..uses(workload.pid(), percent)
    };
    let instance = |id, slices| Instance { id, slices, ..Instance::default() };
    // Two instances of four and of two slices, each half used, and one that two containers share.
    let shared = Engines { sm: 25.0, ..Engines::default() };
    let process =
        vec![on(&large, 1, half), on(&small, 2, half), on(&one_of_two, 3, shared), on(&other_of_two, 3, shared)];
    let gpu =
        Gpu { mig: true, instance: vec![instance(1, 4), instance(2, 2), instance(3, 1)], process, ..Gpu::default() };
    let bench = Bench::start(&one(gpu.clone()), &["--tick=500ms"]);
    bench.wait_until_open();
    eventually(15.0, "both have energy", || {
        let page = bench.page();
        joules(&page, large.name()) > 0.0 && joules(&page, small.name()) > 0.0
    });
    let before = bench.page();
    sleep(3.0);
    let after = bench.page();
    let increase = |name: &str| joules(&after, name) - joules(&before, name);
    let of = |name: &str| of_board(&after, name) - of_board(&before, name);
    let (board, unattributed) = (of("wattcast_energy_joules_total"), of("wattcast_unattributed_energy_joules_total"));
    let (large, small) = (increase(large.name()), increase(small.name()));
    println!("{large:.2} J and {small:.2} J of {board:.2} J, {unattributed:.2} J of an instance that two share");
    assert!((large / small - 2.0).abs() < 0.05, "{large} {small}");
    assert!((unattributed / board - 1.0 / 7.0).abs() < 0.02, "{unattributed} of {board}");
    assert!(increase(one_of_two.name()) < 0.01 * board && increase(other_of_two.name()) < 0.01 * board);
    after.assert_conserved();
    // The counters do not include encoders: with these nothing is divided.
    let encoders = Gpu { instance: vec![Instance { encoders: 1, ..Instance::default() }], ..gpu };
    let bench = Bench::start(&one(encoders), &["--tick=500ms"]);
    bench.wait_until_open();
    eventually(10.0, "the reason is known", || {
        let labels = [("gpu", UUID), ("reading", "instances"), ("reason", "absent")];
        bench.gpu_page().find("wattcast_gpu_reading_up", &labels) == Some(0.0)
    });
}

#[test]
fn gpus_over_the_limit_are_reported() {
    let bench = Bench::start(&Scenario { init: None, gpu: vec![Gpu::default(); 65] }, &["--no-collector.cpu"]);
    bench.wait_until_open();
    let (state, detail) = bench.probe.source("nvml");
    assert!(state == "broken" && detail.contains("1 GPUs beyond the first 64"), "{state} {detail}");
    bench.page().assert_conserved();
    assert!(capabilities(bench.probe.program.pid()).iter().all(|(_, sets)| *sets == [0, 0]));
    let page = bench.gpu_page();
    assert_eq!((page.get("gpu_count", &[]), page.all("wattcast_gpu_energy_joules_total").count()), (64.0, 64));
}

#[test]
fn failing_energy_reading_is_broken_although_gpu_responds() {
    let bench = Bench::start(&one(Gpu::default()), &["--no-collector.cpu", "--tick=500ms"]);
    bench.wait_until_open();
    bench.page();
    let errors = [("nvmlDeviceGetTotalEnergyConsumption".to_owned(), "UNKNOWN".to_owned())].into();
    bench.change(&one(Gpu { errors, ..Gpu::default() }));
    eventually(15.0, "the source is broken", || bench.probe.source("nvml").0 == "broken");
    assert!(bench.probe.source("nvml").1.contains("GPU 0"), "{}", bench.probe.source("nvml").1);
    let labels = [("gpu", UUID), ("reading", "energy"), ("reason", "broken")];
    assert_eq!(bench.gpu_page().get("wattcast_gpu_reading_up", &labels), 0.0);
    bench.change(&one(Gpu::default()));
    eventually(10.0, "the source is usable again", || bench.probe.source("nvml").0 == "usable");
    bench.page().assert_conserved();
}

#[test]
fn hanging_driver_does_not_delay_ticks() {
    let bench = Bench::start(&one(Gpu::default()), &["--tick=200ms", "--no-collector.cpu"]);
    bench.wait_until_open();
    let delays = [("nvmlDeviceGetPowerUsage".to_owned(), 9000)].into();
    bench.change(&one(Gpu { delays, ..Gpu::default() }));
    let hangs = || bench.probe.source("nvml").0 == "broken";
    eventually(12.0, "the hang is detected", hangs);
    // Take the page of a tick that started after that.
    bench.probe.fresh();
    let detail = bench.probe.source("nvml").1;
    assert!(detail.contains("does not respond"), "{detail}");
    let gpus = bench.gpu_page();
    assert_eq!(gpus.get("wattcast_gpu_up", &[("gpu", UUID), ("reason", "broken")]), 0.0);
    assert!(gpus.find("gpu_power_draw_watts", &[("gpu_uuid", UUID)]).is_none(), "the previous values are not shown");
    let package = |page: &Page| page.get("wattcast_energy_joules_total", &[("zone", "package")]);
    let missed = |page: &Page| page.get("wattcast_ticks_missed_total", &[]);
    let ticks = |page: &Page| page.get("wattcast_tick_jitter_seconds_count", &[]);
    // A busy machine may miss a tick now and then; waiting for the driver would delay all of them.
    eventually_ok(20.0, "five ticks during one hang are on time", || {
        let before = bench.probe.fresh();
        eventually(10.0, "the ticks go on", || ticks(&bench.probe.metrics()) >= ticks(&before) + 5.0);
        let after = bench.probe.fresh();
        assert!(package(&after) > package(&before));
        let count = missed(&after) - missed(&before);
        if count == 0.0 && hangs() { Ok(()) } else { Err(format!("{count} missed")) }
    });
    bench.change(&one(Gpu::default()));
    eventually(25.0, "the driver responds again", || bench.probe.source("nvml").0 == "usable");
    bench.page().assert_conserved();
}

#[test]
fn stream_has_gpu_energy_and_its_session_has_its_name() {
    or_skip!(ebpf());
    requires!(ffmpeg);
    let bench = Bench::start(&one(Gpu::default()), &["--tick=500ms"]);
    bench.wait_until_open();
    let cgroup = Cgroup::create(&cgroup::v2().unwrap(), &unique("stream")).unwrap();
    let (name, dir) = (unique("cam"), tempfile::tempdir().unwrap());
    let mut command = Command::new("ffmpeg");
    command.args("-nostdin -loglevel error -re -f lavfi -i testsrc2=size=640x360:rate=25:duration=600 -c:v libx264 -preset ultrafast -s 640x360 -r 25".split(' '));
    command.args(["-metadata", &format!("title={name}"), "-f", "mpegts"]).arg(dir.path().join(format!("{name}.ts")));
    cgroup.enter(&mut command).unwrap();
    kill_on_parent_exit(&mut command);
    let mut child = command.spawn().unwrap();
    let container = cgroup.dir.file_name().unwrap().to_str().unwrap().to_owned();
    let job = || {
        let jobs = bench.probe.client.json("/api/v1/streams").unwrap();
        jobs["jobs"].as_array().unwrap().iter().find(|job| job["streams"][0] == *name).cloned()
    };
    eventually(20.0, "the job is known", || job().is_some());
    let session = Session { width: 640, height: 360, fps: 20, ..Session::default() };
    bench.change(&one(Gpu {
        process: vec![Process { session: vec![session], ..uses(child.id(), encoder(40.0)) }],
        ..Gpu::default()
    }));
    let find = |page: &Page, source: &str| {
        page.find("wattcast_stream_energy_joules_total", &[("stream", &name), ("source", source)])
    };
    eventually(20.0, "the stream has energy of CPU and GPU", || {
        let page = bench.page();
        find(&page, "fake").is_some_and(|joules| joules > 1.0) && find(&page, "model").is_some()
    });
    let page = bench.page();
    // It is the only stream of the container, so it gets all of the container's GPU energy.
    let (stream, all) = (find(&page, "fake").unwrap(), joules(&page, &container));
    assert!((stream / all - 1.0).abs() < 0.05, "{stream} of {all}");
    let gpus = bench.gpu_page();
    let labels = [("stream", &*name), ("container", &*container)];
    assert_eq!(gpus.get("wattcast_gpu_encoder_session_fps", &labels), 20.0);
    assert_eq!(gpus.get("wattcast_gpu_encoder_session_target_fps", &labels), 25.0);
    assert_eq!(job().unwrap()["source"], "model+fake");
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn gpu_page_has_legacy_names_and_passes_promtool() {
    let process = Process {
        pid: Some(std::process::id()),
        memory: 1 << 30,
        percent: Engines { sm: 12.0, memory: 7.0, encoder: 55.0, decoder: 33.0, ..Engines::default() },
        session: vec![Session { codec: "av1".into(), ..Session::default() }],
        ..Process::default()
    };
    let two = Scenario {
        init: None,
        gpu: vec![Gpu { process: vec![process], ..Gpu::default() }, Gpu { name: "A \"2\"\n".into(), ..Gpu::default() }],
    };
    let bench = Bench::start(&two, &["--no-collector.cpu"]);
    bench.wait_until_open();
    bench.page();
    let page = bench.gpu_page();
    let first = [("gpu_id", "0"), ("gpu_name", "fake T4"), ("gpu_uuid", UUID)];
    for (name, value) in [
        ("gpu_power_draw_watts", 10.0 + 60.0 * 0.12 + 18.0 * 0.55 + 12.0 * 0.33),
        ("gpu_power_limit_watts", 150.0),
        ("gpu_utilization_percent", 12.0),
        ("gpu_memory_utilization_percent", 7.0),
        ("gpu_encoder_utilization_percent", 55.0),
        ("gpu_decoder_utilization_percent", 33.0),
        ("gpu_memory_used_bytes", f64::from(1 << 30)),
        ("gpu_memory_total_bytes", 16.0 * f64::from(1 << 30)),
        ("gpu_clocks_graphics_mhz", 1590.0),
        ("gpu_clocks_sm_mhz", 1590.0),
        ("gpu_clocks_memory_mhz", 5001.0),
    ] {
        assert!((page.get(name, &first) - value).abs() < 1e-6 * value, "{name}: {}", page.get(name, &first));
        assert!(page.find(name, &[("gpu_id", "1")]).is_some(), "{name} of the second");
    }
    assert!(page.find("gpu_temperature_celsius", &first).is_some());
    assert_eq!((page.get("gpu_count", &[]), page.get("gpu_exporter_alive", &[])), (2.0, 1.0));
    assert_eq!(page.get("gpu_exporter_info", &[("language", "rust")]), 1.0);
    // A line break in a model name must not break the page.
    let text = bench.gpus.text("/metrics").unwrap();
    assert_eq!(metrics::page::faults(&text), Vec::<String>::new());
    let index_page = bench.gpus.text("/").unwrap();
    assert!(index_page.contains(UUID) && index_page.contains("FAKE"), "{index_page}");
    // Each metric family is on one port only.
    let all = bench.probe.client.text("/metrics").unwrap();
    assert!(!all.contains("\nwattcast_gpu_power_watts") && !all.contains("\ngpu_count"));
    let Some(promtool) = which("promtool") else { skip!("promtool is not in PATH") };
    let plain = Bench::start(&two, &["--no-collector.cpu", "--no-compat-metrics"]);
    plain.wait_until_open();
    plain.page();
    for text in [plain.gpus.text("/metrics").unwrap(), plain.probe.client.text("/metrics").unwrap()] {
        let result = testkit::shell::feed(Command::new(&promtool).args(["check", "metrics"]), &text).unwrap();
        assert_eq!(result, (true, String::new()));
    }
}

#[test]
fn recording_with_gpus_replays_to_the_same_account() {
    or_skip!(ebpf());
    let workload = Workload::start(&unique("rec"));
    let dir = tempfile::tempdir().unwrap();
    let (scenario, file) = (dir.path().join("scenario.toml"), dir.path().join("a.rec"));
    let gpu = Gpu { process: vec![uses(workload.pid(), encoder(50.0))], ..Gpu::default() };
    std::fs::write(&scenario, one(gpu).text()).unwrap();
    let probe = || Command::new(support::binary());
    let flags = ["--energy.source=model", &flag(), "--tick=200ms", "record", "--time=5s"];
    let done = probe().env(VARIABLE, &scenario).args(flags).arg(&file).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let account = || {
        let done = probe().arg("account").arg(&file).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap()
    };
    let text = account();
    assert_eq!(text, account());
    let page = Page(metrics::parse::parse(&text).unwrap().samples);
    // A replay of energy that was never measured is not a replay of measured energy.
    let labels = [("container", workload.name()), ("zone", "gpu"), ("source", "fake")];
    let (attributed, all) =
        (page.get("wattcast_container_energy_joules_total", &labels), of_board(&page, "wattcast_energy_joules_total"));
    // The energy up to the first usage sample is unattributed.
    assert!(attributed > 20.0 && attributed <= all && attributed > 0.8 * all, "{attributed} of {all}");
    assert!(page.find("wattcast_conservation_error_joules", &BOARD) == Some(0.0));
}

#[test]
fn exec_cost_includes_gpu_energy() {
    or_skip!(ebpf());
    let dir = tempfile::tempdir().unwrap();
    let scenario = dir.path().join("scenario.toml");
    // A unique process name.
    let program = dir.path().join("gpu-job");
    std::fs::copy(which("sleep").unwrap(), &program).unwrap();
    let process = Process { comm: Some("gpu-job".into()), percent: encoder(100.0), ..Process::default() };
    std::fs::write(&scenario, one(Gpu { process: vec![process], ..Gpu::default() }).text()).unwrap();
    let doctor = Command::new(support::binary())
        .env(VARIABLE, &scenario)
        .args(["doctor", "--json", "--log.level=error", &flag()])
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let detail = |name: &str| {
        let gpus = report["gpus"].as_array().unwrap();
        gpus.iter().find(|gpu| gpu["name"] == name).unwrap()["detail"].as_str().unwrap().to_owned()
    };
    assert!(detail("nvml").contains("FAKE") && detail(UUID).contains("nvmlDeviceGetTotalEnergyConsumption"));
    let done = Command::new(support::binary())
        .env(VARIABLE, &scenario)
        .args(["--energy.source=model", &flag(), "--tick=500ms", "exec", "--json", "--as-root", "--"])
        .arg(&program)
        .arg("4")
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let cost: serde_json::Value = serde_json::from_slice(&done.stderr).unwrap();
    let gpu = cost["zones"].as_array().unwrap().iter().find(|zone| zone["zone"] == "gpu").unwrap();
    let joules = gpu["joules"].as_f64().unwrap();
    println!("{gpu}");
    // 28 W for four seconds; the idle power is unknown, and the driver's samples are up to a tick
    // late at both ends.
    let seconds = cost["seconds"].as_f64().unwrap();
    assert!(joules > 60.0 && joules < 28.0 * (seconds + 0.5), "{joules} J in {seconds} s");
    assert_eq!(gpu["source"], "fake");
}

#[test]
fn integrated_gpu_energy_follows_engine_use() {
    or_skip!(ebpf());
    let encodes = Workload::start(&unique("qsv"));
    let neighbour_cgroup = Cgroup::create(&cgroup::v2().unwrap(), &unique("cpu")).unwrap();
    let neighbour = neighbour_cgroup.dir.file_name().unwrap().to_str().unwrap().to_owned();
    let _burner = Burner::start(0, &[&neighbour_cgroup]).unwrap();
    let tree = support::copy_fixture("client-psys");
    let sys = tree.path().join("sys");
    let proc = integrated(&sys, encodes.pid());
    let zones = zones(&sys);
    let package = zones.iter().find(|(name, _)| name.starts_with("package")).unwrap().1.clone();
    let uncore = zones.iter().find(|(name, _)| name == "uncore").unwrap().1.clone();
    let _driver = Driver::start(encodes.pid(), &proc, package, uncore);
    let flags = [format!("--path.sysfs={}", sys.display()), format!("--path.procfs={}", proc.display())];
    let flags: Vec<&str> =
        flags.iter().map(String::as_str).chain(["--energy.source=powercap", "--tick=500ms"]).collect();
    let mut probe = Probe::start(&flags);
    let gpus = probe.program.client_of(2).unwrap();
    let of = |page: &Page, name: &str| {
        page.find("wattcast_container_energy_joules_total", &[("container", name), ("zone", "package")]).unwrap_or(0.0)
    };
    eventually(15.0, "it has energy", || of(&probe.fresh(), encodes.name()) > 0.0);
    let before = page_with_gpu_poll(&probe);
    sleep(4.0);
    let after = page_with_gpu_poll(&probe);
    let all = |page: &Page, zone| page.get("wattcast_energy_joules_total", &[("zone", zone)]);
    let increase = |name: &str| of(&after, name) - of(&before, name);
    let (encoder, neighbour_joules) = (increase(encodes.name()), increase(&neighbour));
    let (package, graphics) =
        (all(&after, "package") - all(&before, "package"), all(&after, "uncore") - all(&before, "uncore"));
    println!(
        "of {package:.2} J the graphics used {graphics:.2}; {encoder:.2} J were attributed to the encoder without CPU time, {neighbour_joules:.2} to its neighbour"
    );
    assert!((encoder / graphics - 1.0).abs() < 0.15, "{encoder} of {graphics}");
    assert!(
        neighbour_joules > 0.0 && neighbour_joules <= 1.05 * (package - graphics),
        "{neighbour_joules} of {package} without {graphics}"
    );
    after.assert_conserved();
    let labels = [("container", encodes.name()), ("gpu", "integrated-0000:00:02.0"), ("engine", "video")];
    assert!(after.get("wattcast_container_gpu_engine_seconds_total", &labels) > 1.0);
    assert_eq!(probe.source("drm").0, "usable");
    // The capability to read files of other users is only on one thread, and effective only while
    // it reads them.
    let ptrace = 1u64 << 19;
    for (thread, [permitted, effective]) in capabilities(probe.program.pid()) {
        assert_eq!(permitted, if thread == "gpu" { ptrace } else { 0 }, "{thread}");
        assert!(effective & !permitted == 0, "{thread}");
    }
    let page = Page(gpus.metrics().unwrap());
    let labels = [("source", "drm"), ("engine", "video")];
    let ratio = page.get("wattcast_gpu_engine_utilization_ratio", &labels);
    assert!((0.1..0.7).contains(&ratio), "{ratio}");
    assert_eq!(page.get("gpu_count", &[]), 0.0, "the legacy names are only for NVIDIA's GPUs");
}

/// Simulates the counters of a machine whose package uses 20 W, 8 W of them in its graphics, where
/// a process keeps a video engine busy for a third of the time. They stop when this is dropped.
struct Driver {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    fn start(pid: u32, proc: &Path, package: PathBuf, uncore: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, proc) = (stop.clone(), proc.to_owned());
        let thread = thread::spawn(move || {
            raise_priority();
            let (start, mut before) = (Instant::now(), 0);
            while !stopped.load(Ordering::Relaxed) {
                let now = u64::try_from(start.elapsed().as_micros()).unwrap();
                count(&package, 20 * (now - before));
                count(&uncore, 8 * (now - before));
                client(&proc, pid, now * 330);
                before = now;
                sleep(0.01);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Adds microjoules to a counter with one write over the previous value, because the kernel's file
/// is never empty. The energy of a zone that cannot be read in one tick is in the next one, which
/// may be outside the measured time.
fn count(file: &Path, uj: u64) {
    let now: u64 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
    let mut open = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    open.write_all(format!("{}\n", now + uj).as_bytes()).unwrap();
}

/// Permitted and effective capabilities of each thread of a probe, by thread name.
fn capabilities(pid: u32) -> Vec<(String, [u64; 2])> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let of = |dir: PathBuf| {
        // A thread may end between the two readings.
        let status = std::fs::read_to_string(dir.join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        let set = |name| u64::from_str_radix(&field(name), 16).unwrap();
        Some((field("Name:"), [set("CapPrm:"), set("CapEff:")]))
    };
    tasks.filter_map(|task| of(task.path())).collect()
}

/// Adds an integrated GPU to a machine's tree; returns a procfs in which a process has it open, and
/// the rest is that of this machine.
fn integrated(sys: &Path, pid: u32) -> PathBuf {
    use std::os::unix::fs::symlink;
    let device = sys.join("devices/pci0000:00/0000:00:02.0");
    std::fs::create_dir_all(&device).unwrap();
    let driver = sys.join("bus/pci/drivers/i915");
    std::fs::create_dir_all(&driver).unwrap();
    symlink(&driver, device.join("driver")).unwrap();
    let node = sys.join("class/drm/renderD128");
    std::fs::create_dir_all(&node).unwrap();
    symlink(&device, node.join("device")).unwrap();
    let proc = sys.parent().unwrap().join("proc-of-test");
    std::fs::create_dir_all(&proc).unwrap();
    for entry in ["stat", "cpuinfo", "self", "meminfo", "uptime", "cgroups", "mounts", "filesystems"] {
        symlink(Path::new("/proc").join(entry), proc.join(entry)).unwrap();
    }
    let process = proc.join(pid.to_string());
    std::fs::create_dir_all(process.join("fd")).unwrap();
    std::fs::create_dir_all(process.join("fdinfo")).unwrap();
    for entry in ["cgroup", "stat", "comm"] {
        symlink(Path::new("/proc").join(pid.to_string()).join(entry), process.join(entry)).unwrap();
    }
    symlink("/dev/dri/renderD128", process.join("fd/7")).unwrap();
    client(&proc, pid, 0);
    proc
}

/// Writes the driver's fdinfo of the open file.
fn client(proc: &Path, pid: u32, video_ns: u64) {
    let file = proc.join(format!("{pid}/fdinfo/7"));
    let draft = proc.join(format!("{pid}/draft"));
    let text = format!(
        "pos:\t0\nflags:\t02100002\ndrm-driver:\ti915\ndrm-client-id:\t5\ndrm-pdev:\t0000:00:02.0\ndrm-engine-render:\t0 ns\ndrm-engine-video:\t{video_ns} ns\n"
    );
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(draft, file).unwrap();
}

/// Name and energy counter of every powercap zone.
fn zones(sys: &Path) -> Vec<(String, PathBuf)> {
    let below = |dir: &Path| {
        let dirs = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
        dirs.filter(|path| path.join("energy_uj").exists()).collect::<Vec<_>>()
    };
    let packages = below(&sys.join("class/powercap"));
    let all = packages.iter().flat_map(|package| below(package)).chain(packages.clone());
    all.map(|zone| (std::fs::read_to_string(zone.join("name")).unwrap().trim().to_owned(), zone.join("energy_uj")))
        .collect()
}
