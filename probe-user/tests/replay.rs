//! Recordings: golden ones that lie here, and fresh ones of this machine. The same file gives the same account, to the byte.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use probe_user::{
    accountant::Accountant,
    containers::Container,
    cpu::{CgroupKey, Reading, RunTime, hierarchy},
    energy::zone::{Ceiling, Origin, Range, Zone, ZoneId, ZoneKind},
    ledger::{Holder, IdlePolicy},
    recording::{Reader, Writer},
    snapshot::Snapshot,
    tick::{Collected, News, RawTick, Setup},
    topology::PackageId,
    units::Unit,
};
use support::Probe;
use testkit::{eventually, skip};

const SECOND: u64 = 1_000_000_000;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(name)
}

/// What `wattcast-probe account` prints.
fn account(file: &Path) -> (Option<i32>, String, String) {
    let output = Command::new(support::binary()).arg("account").arg(file).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Two sockets that use 20 W each at rest; a busy CPU adds 30 W on one and 10 W on the other. A container is pinned to each. Loads
/// vary for 200 s, then both run at full for 100 s. Counters step and wrap as the hardware's.
fn three_to_one(path: &Path) {
    let package = |number| ZoneId { package: Some(PackageId::whole(number)), kind: ZoneKind::Package };
    let zone = |number| Zone {
        unit: Unit::joules_shifted(14).unwrap(),
        step_uj: 62,
        ceiling: Ceiling::Limit(100_000_000),
        ..Zone::microjoules(package(number), Range::Wraps(1 << 26), format!("simulated package {number}"))
    };
    let setup = Setup {
        origin: Some(Origin::Powercap),
        zones: vec![zone(0), zone(1)],
        idle_uw: vec![None, None],
        packages: vec![PackageId::whole(0), PackageId::whole(1)],
        places: vec![Some(0), Some(1)],
        smt: false,
        lag_ns: 0,
        cpu: Some(Collected::at_the_switch(true)),
    };
    let key = |id| CgroupKey { id, hierarchy: hierarchy::V2 };
    let shown = |number: u32| Container {
        number,
        name: format!("encoder-{number}"),
        id: format!("00000000000{number}"),
        image: "encoder:1".into(),
        ..Container::plain(number, String::new(), String::new(), "docker")
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
        // 2^-14 J steps of 26 bits: each counter comes round every few minutes.
        let raw = |microjoules: u64| Ok(microjoules * (1 << 14) / 1_000_000 % (1 << 26));
        let at = second * SECOND;
        let news = if second == 0 {
            let holders = vec![(key(10), Holder::Container(0)), (key(11), Holder::Container(1))];
            News { holders, shown: vec![shown(0), shown(1)], ..News::default() }
        } else {
            News::default()
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
            zones: vec![raw(joules[0]), raw(joules[1])],
            cpu: Some(Ok(Reading { rows, overflow: vec![RunTime::default(); 2], ..Reading::default() })),
            jobs: Vec::new(),
            gpu_ns: 0,
            gpus: Vec::new(),
            news,
        };
        writer.write(&tick).unwrap();
    }
    writer.finish().unwrap();
}

fn given(snapshot: &Snapshot, number: u32) -> f64 {
    let accounts = snapshot.accounts.iter().flat_map(|account| &account.containers);
    accounts.filter(|(container, _)| container.number == number).map(|(_, uj)| uj.joules()).sum()
}

fn play(file: &Path, until: usize) -> Snapshot {
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
fn two_packages_at_three_to_one_are_replayed_within_a_thousandth() {
    let file = golden("three-to-one.rec");
    if std::env::var_os("WATTCAST_WRITE_RECORDINGS").is_some() {
        three_to_one(&file);
    }
    let (before, after) = (play(&file, 201), play(&file, 301));
    let [fast, slow] = [0, 1].map(|number| given(&after, number) - given(&before, number));
    println!("{fast} J and {slow} J in 100 s: {:.5} to 1", fast / slow);
    assert!((fast / slow / 3.0 - 1.0).abs() < 0.001, "{fast} J and {slow} J");
    assert!((fast / 3000.0 - 1.0).abs() < 0.001, "30 W for 100 s: {fast} J");
    for row in &after.idle {
        assert!(row.estimate.uw.abs_diff(20_000_000) < 10_000, "{row:?}");
    }
    assert!(after.rejects.is_empty(), "{:?}", after.rejects);
}

#[test]
fn a_golden_recording_gives_its_account_to_the_byte() {
    let names: Vec<String> = fs::read_dir(golden(""))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok()?.strip_suffix(".rec").map(str::to_owned))
        .collect();
    assert!(names.len() >= 2, "{names:?}");
    for name in names {
        let (code, first, said) = account(&golden(&format!("{name}.rec")));
        assert_eq!(code, Some(0), "{name}: {said}");
        assert_eq!(first, account(&golden(&format!("{name}.rec"))).1, "{name}: twice the same");
        assert_eq!(exporter::page::faults(&first), Vec::<String>::new(), "{name}");
        let expected = golden(&format!("{name}.account"));
        if std::env::var_os("WATTCAST_WRITE_RECORDINGS").is_some() {
            fs::write(&expected, &first).unwrap();
        }
        assert!(
            fs::read_to_string(&expected).unwrap() == first,
            "{name}: the account is another than it was; if that is meant: WATTCAST_WRITE_RECORDINGS=1 cargo test"
        );
        let errors: Vec<_> = first.lines().filter(|line| line.starts_with("wattcast_conservation_error")).collect();
        assert!(!errors.is_empty() && errors.iter().all(|line| line.ends_with(" 0")), "{errors:?}");
    }
}

#[test]
fn a_fresh_recording_replays_as_it_was_and_plays_as_a_source() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("now.rec");
    let sysfs = support::fixture("perf-two-sockets").join("sys");
    let output = Command::new(support::binary())
        .args(["record", "--time=1s", "--tick=100ms", "--log.level=warn"])
        .arg(format!("--path.sysfs={}", sysfs.display()))
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    if said.contains("perf: denied") {
        skip!("perf_event_open is not allowed here");
    }
    let (code, text, _) = account(&file);
    assert_eq!(code, Some(0));
    assert!(text.contains("source=\"replay\"") && !text.contains("source=\"perf\""), "{text}");
    assert!(!text.contains("rapl_"), "an old recording is not what RAPL says now");

    let flag = format!("--replay.file={}", file.display());
    let probe = Probe::start(&["--energy.source=replay", "--tick=100ms", &flag]);
    assert!(probe.source("replay").1.contains("recorded from perf"));
    eventually(10.0, "the recording ends", || probe.source("replay").0 == "broken");
    assert!(probe.source("replay").1.contains("has ended"));
    let page = probe.metrics();
    page.assert_closed();
    let joules = |page: &support::Page| page.get("wattcast_energy_joules_total", &[("package", "0")]);
    // Where it ends is where the offline account ends, and it stays there.
    let line = text.lines().find(|line| line.starts_with("wattcast_energy_joules_total{package=\"0\"")).unwrap();
    assert_eq!(line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap(), joules(&page));
    let ticks = |page: &support::Page| page.get("wattcast_tick_jitter_seconds_count", &[]);
    eventually(10.0, "five more ticks", || ticks(&probe.metrics()) >= ticks(&page) + 5.0);
    assert_eq!(joules(&probe.metrics()), joules(&page));
}

#[test]
fn what_is_no_recording_is_said_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let alien = dir.path().join("alien");
    fs::write(&alien, "hello\n").unwrap();
    for (file, word) in [(Path::new("/nowhere/x.rec"), "No such file"), (&*alien, "not a recording")] {
        let (code, _, said) = account(file);
        assert_eq!(code, Some(1));
        assert!(said.contains(word) && said.trim().lines().count() == 1, "{said}");
    }
    let output = Command::new(support::binary()).args(["--energy.source=replay", "--port=0"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("--replay.file"), "{said}");
}
