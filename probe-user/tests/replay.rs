//! Recordings: golden files, and a new one of this machine. The same file gives the same metrics,
//! byte for byte.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use probe_user::{
    attribution::Accountant,
    cgroup::{CgroupKey, hierarchy},
    containers::{ChargeTarget, Container},
    cpu::{CpuReading, RunTime},
    energy::zone::{Ceiling, Origin, Range, Zone, ZoneId, ZoneKind},
    host::topology::PackageId,
    ledger::IdlePolicy,
    snapshot::Snapshot,
    tick::{
        CpuTierInfo, RawTick, Setup, TickChanges,
        recording::{Reader, Writer},
    },
};
use support::Probe;
use testkit::{eventually, skip};
use units::Unit;

const SECOND: u64 = 1_000_000_000;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(name)
}

/// Exit code, output and messages of `wattcast-probe account`.
fn account(file: &Path) -> (Option<i32>, String, String) {
    let output = Command::new(support::binary()).arg("account").arg(file).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Two sockets with an idle power of 20 W each; a busy CPU adds 30 W on one and 10 W on the other.
/// A container is pinned to each. Loads vary for 200 s, then both are at full load for 100 s. The
/// counters have the steps and wraps of hardware.
fn three_to_one(path: &Path) {
    let package = |number| ZoneId { package: Some(PackageId::whole(number)), kind: ZoneKind::Package };
    let zone = |number| Zone {
        unit: Unit::joules_shifted(14).unwrap(),
        step_uj: 62,
        ceiling: Ceiling::Limit(100_000_000),
        ..Zone::microjoules(package(number), Range::Wraps(1 << 26), format!("simulated package {number}"))
    };
    let setup = Setup {
        host: String::new(),
        origin: Some(Origin::Powercap),
        zones: vec![zone(0), zone(1)],
        idle_uw: vec![None, None],
        packages: vec![PackageId::whole(0), PackageId::whole(1)],
        cpu_packages: vec![Some(0), Some(1)],
        smt: false,
        cpu_weights: Vec::new(),
        lag_ns: 0,
        cpu: Some(CpuTierInfo::switch_tier(true)),
    };
    let key = |id| CgroupKey { id, hierarchy: hierarchy::V2 };
    let container = |number: u32| Container {
        number,
        name: format!("encoder-{number}"),
        id: format!("00000000000{number}"),
        image: "encoder:1".into(),
        ..Container::new(number, String::new(), String::new(), "docker")
    };
    let mut writer = Writer::create(path, &setup).unwrap();
    let (mut ran, mut joules) = ([0u64; 2], [0u64; 2]);
    for second in 0..=300u64 {
        if second > 0 {
            let percent = if second <= 200 { second * 37 % 90 } else { 100 };
            for package in 0..2 {
                ran[package] += percent * SECOND / 100;
                joules[package] += 20_000_000 + [300_000, 100_000][package] * percent;
            }
        }
        // Steps of 2^-14 J in 26 bits: each counter wraps every few minutes.
        let raw = |microjoules: u64| Ok(microjoules * (1 << 14) / 1_000_000 % (1 << 26));
        let at = second * SECOND;
        let changes = if second == 0 {
            let targets = vec![(key(10), ChargeTarget::Container(0)), (key(11), ChargeTarget::Container(1))];
            TickChanges {
                targets,
                containers: vec![Arc::new(container(0)), Arc::new(container(1))],
                ..TickChanges::default()
            }
        } else {
            TickChanges::default()
        };
        let rows = vec![
            (key(10), vec![RunTime::alone(ran[0]), RunTime::default()]),
            (key(11), vec![RunTime::default(), RunTime::alone(ran[1])]),
        ];
        let tick = RawTick {
            unix_ns: 1_700_000_000_000_000_000 + i64::try_from(at).unwrap(),
            began_ns: at,
            energy_ns: at + 20_000,
            cpu_ns: at + 60_000,
            own_ns: second * 500_000,
            programs_ns: None,
            suspended_ns: 0,
            zones: vec![raw(joules[0]), raw(joules[1])],
            residency: Vec::new(),
            cpu: Some(Ok(CpuReading { rows, overflow: vec![RunTime::default(); 2], ..CpuReading::default() })),
            jobs: Vec::new(),
            stages: Vec::new(),
            gpu_ns: 0,
            gpus: Vec::new(),
            changes,
        };
        writer.write(&tick).unwrap();
    }
    writer.finish().unwrap();
}

fn attributed(snapshot: &Snapshot, number: u32) -> f64 {
    let accounts = snapshot.accounts.iter().flat_map(|account| &account.containers);
    accounts.filter(|(container, _)| container.number == number).map(|(_, uj)| uj.joules()).sum()
}

fn replay(file: &Path, until: usize) -> Snapshot {
    let mut reader = Reader::open(file).unwrap();
    let mut accountant = Accountant::new(reader.setup().clone(), IdlePolicy::Separate, 1 << 20);
    let mut last = None;
    for _ in 0..until {
        let Some(tick) = reader.next_tick().unwrap() else { break };
        last = Some(accountant.tick(&tick));
    }
    last.unwrap()
}

#[test]
fn two_packages_at_three_to_one_replay_within_a_thousandth() {
    let file = golden("three-to-one.rec");
    if std::env::var_os("WATTCAST_WRITE_RECORDINGS").is_some() {
        three_to_one(&file);
    }
    let (before, after) = (replay(&file, 201), replay(&file, 301));
    let [fast, slow] = [0, 1].map(|number| attributed(&after, number) - attributed(&before, number));
    println!("{fast} J and {slow} J in 100 s: {:.5} to 1", fast / slow);
    assert!((fast / slow / 3.0 - 1.0).abs() < 0.001, "{fast} J and {slow} J");
    assert!((fast / 3000.0 - 1.0).abs() < 0.001, "30 W for 100 s: {fast} J");
    for row in &after.idle {
        assert!(row.estimate.uw.abs_diff(20_000_000) < 10_000, "{row:?}");
    }
    assert!(after.rejects.is_empty(), "{:?}", after.rejects);
}

#[test]
fn golden_recordings_replay_byte_for_byte() {
    let names: Vec<String> = fs::read_dir(golden(""))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok()?.strip_suffix(".rec").map(str::to_owned))
        .collect();
    assert!(names.len() >= 2, "{names:?}");
    for name in names {
        let (code, first, messages) = account(&golden(&format!("{name}.rec")));
        assert_eq!(code, Some(0), "{name}: {messages}");
        assert_eq!(first, account(&golden(&format!("{name}.rec"))).1, "{name}: not deterministic");
        assert_eq!(metrics::page::faults(&first), Vec::<String>::new(), "{name}");
        let expected = golden(&format!("{name}.account"));
        if std::env::var_os("WATTCAST_WRITE_RECORDINGS").is_some() {
            fs::write(&expected, &first).unwrap();
        }
        assert!(
            fs::read_to_string(&expected).unwrap() == first,
            "{name}: the metrics have changed; to accept them run WATTCAST_WRITE_RECORDINGS=1 cargo test"
        );
        let errors: Vec<_> = first.lines().filter(|line| line.starts_with("wattcast_conservation_error")).collect();
        assert!(!errors.is_empty() && errors.iter().all(|line| line.ends_with(" 0")), "{errors:?}");
    }
}

#[test]
fn a_new_recording_replays_offline_and_as_a_source() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("now.rec");
    let sysfs = support::fixture("perf-two-sockets").join("sys");
    let output = Command::new(support::binary())
        .args(["record", "--time=1s", "--tick=100ms", "--log.level=warn"])
        .arg(format!("--path.sysfs={}", sysfs.display()))
        .arg(&file)
        .output()
        .unwrap();
    let messages = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{messages}");
    if messages.contains("perf: denied") {
        skip!("perf_event_open is not allowed here");
    }
    let (code, text, _) = account(&file);
    assert_eq!(code, Some(0));
    assert!(text.contains("source=\"replay\"") && !text.contains("source=\"perf\""), "{text}");
    assert!(!text.contains("rapl_"), "a recording is not a reading of RAPL");

    let flag = format!("--replay.file={}", file.display());
    let probe = Probe::start(&["--energy.source=replay", "--tick=100ms", &flag]);
    assert!(probe.source("replay").1.contains("recorded from perf"));
    eventually(10.0, "the recording ends", || probe.source("replay").0 == "broken");
    assert!(probe.source("replay").1.contains("has ended"));
    let page = probe.metrics();
    page.assert_conserved();
    let joules = |page: &support::Page| page.get("wattcast_energy_joules_total", &[("package", "0")]);
    // It ends with the totals of the offline replay, and keeps them.
    let line = text.lines().find(|line| line.starts_with("wattcast_energy_joules_total{package=\"0\"")).unwrap();
    assert_eq!(line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap(), joules(&page));
    let ticks = |page: &support::Page| page.get("wattcast_tick_jitter_seconds_count", &[]);
    eventually(10.0, "five more ticks", || ticks(&probe.metrics()) >= ticks(&page) + 5.0);
    assert_eq!(joules(&probe.metrics()), joules(&page));
}

#[test]
fn an_invalid_recording_is_reported_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let invalid = dir.path().join("invalid");
    fs::write(&invalid, "hello\n").unwrap();
    for (file, word) in [(Path::new("/nowhere/x.rec"), "No such file"), (&*invalid, "not a recording")] {
        let (code, _, messages) = account(file);
        assert_eq!(code, Some(1));
        assert!(messages.contains(word) && messages.trim().lines().count() == 1, "{messages}");
    }
    let output = Command::new(support::binary()).args(["--energy.source=replay", "--port=0"]).output().unwrap();
    let messages = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && messages.contains("--replay.file"), "{messages}");
}
