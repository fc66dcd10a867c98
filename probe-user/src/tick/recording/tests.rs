//! Round trips, versions and invalid files.

use std::{fs::File, io::Read, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use flate2::read::MultiGzDecoder;
use proptest::prelude::*;

use super::{
    Reader, Writer,
    format::{FORMAT, Header, MAX_ITEMS, VERSION},
};
use crate::{
    cgroup::{CgroupKey, hierarchy},
    containers::{ChargeTarget, Container},
    cpu::{CpuReading, RunQueueStats, RunTime, Tier, TierCapabilities},
    energy::zone::{Origin, Range, Zone, ZoneId, ZoneKind},
    gpu::GpuUsage,
    host::{gpu_id::GpuId, topology::PackageId},
    jobs::stage::{Stage, StagePart, StageTimes},
    tick::raw::{CpuTierInfo, RawTick, Setup, SourceChange, TickChanges},
};

fn setup() -> Setup {
    let id = ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package };
    Setup {
        host: "edge-7".to_owned(),
        origin: Some(Origin::Perf),
        zones: vec![Zone::microjoules(id, Range::Wraps(1 << 38), "here".into())],
        idle_uw: vec![None],
        packages: vec![PackageId::whole(0)],
        cpu_packages: vec![Some(0), Some(0)],
        smt: true,
        cpu_weights: Vec::new(),
        lag_ns: 4_000_000,
        cpu: Some(CpuTierInfo::switch_tier(true)),
    }
}

fn key(id: u64) -> CgroupKey {
    CgroupKey { id, hierarchy: hierarchy::V2 }
}

fn queues(second: u64) -> Vec<(CgroupKey, RunQueueStats)> {
    if second == 4 {
        return vec![];
    }
    let waits = [second; crate::cpu::WAIT_BUCKETS];
    vec![(key(7), RunQueueStats { wait_ns: 1000 * second, waits, voluntary: second, involuntary: 2 * second })]
}

fn stages(second: u64) -> Vec<(u32, StageTimes)> {
    if second == 3 {
        return vec![];
    }
    vec![(0, vec![(StagePart::of_output(Stage::Encode, 1), second * 900), (StagePart::OTHER, second)])]
}

fn container() -> Container {
    Container::new(0, "a \"name\"".into(), "0123".into(), "docker")
}

fn ticks() -> Vec<RawTick> {
    let tick =
        |second: u64, zone: Result<u64, String>, rows: Vec<(CgroupKey, Vec<RunTime>)>, changes: TickChanges| RawTick {
            unix_ns: 1_700_000_000_000_000_000 + i64::try_from(second).unwrap() * 1_000_000_000,
            began_ns: second * 1_000_000_000,
            energy_ns: second * 1_000_000_000 + 10_000,
            cpu_ns: second * 1_000_000_000 + 50_000,
            own_ns: second * 700_000,
            programs_ns: (second > 1).then_some(second * 300_000),
            suspended_ns: (second / 3) * 9_000_000_000,
            zones: vec![zone],
            residency: vec![Some([second, 2 * second])],
            cpu: Some(Ok(CpuReading {
                rows,
                overflow: vec![RunTime::default(), RunTime { alone_ns: second, shared_ns: second / 2 }],
                missed: second,
                queues: queues(second),
                ..CpuReading::default()
            })),
            jobs: vec![(0, second * 1000)],
            stages: stages(second),
            gpu_ns: second * 1_000_000_000 + 70_000,
            gpus: Vec::new(),
            changes,
        };
    let row = |ns: [u64; 2]| ns.map(RunTime::alone).to_vec();
    let both = RunTime { alone_ns: 0, shared_ns: 2 };
    let created = TickChanges {
        targets: vec![(key(7), ChargeTarget::Container(0))],
        containers: vec![Arc::new(container())],
        ..TickChanges::default()
    };
    let gone = TickChanges {
        departed: vec![key(7)],
        ended: vec![0],
        dropped: 3,
        jobs_moved: vec![(5, ChargeTarget::System, Some(0)), (6, ChargeTarget::Container(0), None)],
        ..TickChanges::default()
    };
    let mut broken = tick(3, Err("EIO".into()), vec![], TickChanges::default());
    broken.cpu = Some(Err("refused".into()));
    vec![
        tick(1, Ok(u64::MAX), vec![(key(3), row([10, 0])), (key(7), row([0, 0]))], created),
        tick(
            2,
            Ok(5),
            vec![(key(3), row([10, 5])), (key(7), vec![RunTime::alone(1 << 60), both])],
            TickChanges::default(),
        ),
        broken,
        tick(4, Ok(9), vec![(key(3), row([11, 5]))], gone),
    ]
}

fn record(path: &Path) {
    let mut writer = Writer::create(path, &setup()).unwrap();
    ticks().iter().for_each(|tick| writer.write(tick).unwrap());
    assert_eq!(writer.finish().unwrap(), 4);
}

/// Trailing zeros of the last CPUs are not recorded.
fn trimmed(mut tick: RawTick) -> RawTick {
    if let Some(Ok(reading)) = &mut tick.cpu {
        for (_, totals) in &mut reading.rows {
            while totals.last() == Some(&RunTime::default()) {
                totals.pop();
            }
        }
    }
    tick
}

#[test]
fn hardware_counters_and_a_tier_without_cpus_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rec");
    let info = |tier, cpus| CpuTierInfo {
        tier,
        capabilities: TierCapabilities { cpus, siblings: cpus },
        reason: "why".into(),
    };
    let tick = |rows: Vec<(CgroupKey, Vec<RunTime>)>, counted, counter_time| RawTick {
        zones: vec![Ok(1)],
        cpu: Some(Ok(CpuReading { rows, counted, counter_time, ..CpuReading::default() })),
        ..RawTick::default()
    };
    let counted = vec![vec![[5, 0, 0], [u64::MAX, 6, 7]]];
    let ticks = [
        (info(Tier::Counters, true), tick(vec![(key(7), vec![RunTime::alone(3); 2])], counted, [9, 8])),
        (info(Tier::Files, false), tick(vec![(key(7), vec![RunTime::alone(3)])], vec![], [0, 0])),
    ];
    for (cpu, tick) in ticks {
        let setup = Setup { cpu: Some(cpu), ..setup() };
        let mut writer = Writer::create(&path, &setup).unwrap();
        writer.write(&tick).unwrap();
        writer.finish().unwrap();
        let reader = Reader::open(&path).unwrap();
        assert_eq!(reader.setup().cpu, setup.cpu);
        assert_eq!(read(reader), [tick]);
    }
}

#[test]
fn gpus_round_trip_and_two_counters_of_one_zone_are_refused() {
    use crate::{
        energy::zone::{Ceiling, ZoneKind},
        gpu::{EngineUsage, engines::ENGINES},
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rec");
    let gpu = GpuId::Nvidia(0xfa4e);
    let id = ZoneId { package: None, kind: ZoneKind::Gpu(gpu) };
    let location = "GPU 0".to_owned();
    let board = |origin| Zone {
        ceiling: Ceiling::Limit(70_000_000),
        origin: Some(origin),
        ..Zone::microjoules(id, Range::Endless, location.clone())
    };
    let used = |charge_target, job| EngineUsage { charge_target, job, times: [7; ENGINES] };
    let uses = vec![used(Some(ChargeTarget::Container(0)), Some(3)), used(None, None)];
    let came = |origin| TickChanges { zones: vec![board(origin)], ..TickChanges::default() };
    let tick = |changes: TickChanges| RawTick {
        zones: vec![Ok(1), Ok(2)],
        gpu_ns: 5,
        gpus: vec![(gpu, GpuUsage { pending: true, uses: uses.clone(), ..GpuUsage::default() })],
        changes,
        ..RawTick::default()
    };
    let first = RawTick { zones: vec![Ok(1)], ..RawTick::default() };
    let write = |ticks: &[RawTick]| {
        let mut writer = Writer::create(&path, &setup()).unwrap();
        ticks.iter().for_each(|tick| writer.write(tick).unwrap());
        writer.finish().unwrap();
    };
    write(&[first.clone(), tick(came(Origin::Nvml)), tick(TickChanges::default())]);
    let expected = [first.clone(), tick(came(Origin::Replay)), tick(TickChanges::default())];
    assert_eq!(read(Reader::open(&path).unwrap()), expected);
    write(&[first, tick(came(Origin::Nvml)), tick(came(Origin::Nvml))]);
    let mut reader = Reader::open(&path).unwrap();
    let refused = std::iter::from_fn(|| reader.next_tick().transpose()).find_map(Result::err).unwrap();
    assert!(refused.to_string().contains("two counters of one zone"), "{refused}");
}

#[test]
fn another_energy_source_round_trips_and_has_its_own_counters() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rec");
    let id = |kind| ZoneId { package: Some(PackageId::whole(0)), kind };
    let zones = [ZoneKind::Package, ZoneKind::Dram]
        .map(|kind| Zone::microjoules(id(kind), Range::Endless, "there".to_owned()))
        .to_vec();
    let change = |origin, idle_uw| SourceChange { origin, zones: zones.clone(), idle_uw };
    let tick = |source, readings: &[u64]| RawTick {
        zones: readings.iter().map(|raw| Ok(*raw)).collect(),
        changes: TickChanges { source, ..TickChanges::default() },
        ..RawTick::default()
    };
    let write = |change: SourceChange| {
        let mut writer = Writer::create(&path, &Setup { origin: Some(Origin::Model), ..setup() }).unwrap();
        [tick(None, &[1]), tick(Some(change), &[2, 3]), tick(None, &[4, 5])]
            .iter()
            .for_each(|tick| writer.write(tick).unwrap());
        writer.finish().unwrap();
    };
    write(change(Origin::Powercap, vec![None; 2]));
    let replayed = change(Origin::Replay, vec![None; 2]);
    let expected = [tick(None, &[1]), tick(Some(replayed), &[2, 3]), tick(None, &[4, 5])];
    assert_eq!(read(Reader::open(&path).unwrap()), expected);
    write(change(Origin::Powercap, vec![None]));
    let mut reader = Reader::open(&path).unwrap();
    reader.next_tick().unwrap();
    assert!(reader.next_tick().unwrap_err().to_string().contains("do not fit"));
}

#[test]
fn a_file_of_version_1_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rec");
    record(&path);
    let mut text = String::new();
    MultiGzDecoder::new(File::open(&path).unwrap()).read_to_string(&mut text).unwrap();
    let first = text.lines().next().unwrap();
    let mut header: serde_json::Value = serde_json::from_str(first).unwrap();
    header["version"] = 1.into();
    header["setup"]["cpu"] = true.into();
    header["setup"].as_object_mut().unwrap().remove("host");
    let line = "{\"unix\":0,\"began\":0,\"energy\":1,\"cpu\":2,\"zones\":[1],\"ran\":[[{\"id\":7,\"hierarchy\":0},\
                [[1,5]]]],\"overflow\":[0,4]}\n";
    let old = format!("{header}\n{line}");
    let mut reader = Reader::start(&path, old.as_bytes()).unwrap();
    assert_eq!((&*reader.setup().host, &reader.setup().cpu), ("", &Some(CpuTierInfo::switch_tier(false))));
    let reading = reader.next_tick().unwrap().unwrap().cpu.unwrap().unwrap();
    assert_eq!(reading.rows, [(key(7), vec![RunTime::default(), RunTime::alone(5)])]);
    assert_eq!(reading.overflow, [RunTime::default(), RunTime::alone(4)]);
}

fn read(mut reader: Reader<impl Read>) -> Vec<RawTick> {
    std::iter::from_fn(|| reader.next_tick().unwrap()).collect()
}

#[test]
fn a_recording_round_trips() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rec");
    record(&path);
    let reader = Reader::open(&path).unwrap();
    assert_eq!(*reader.setup(), Setup { origin: Some(Origin::Replay), ..setup() });
    assert_eq!(reader.recorded().0, Some(Origin::Perf));
    let expected: Vec<_> = ticks().into_iter().map(trimmed).collect();
    assert_eq!(read(reader), expected);
    // The same lines without the compression.
    let mut plain = Vec::new();
    MultiGzDecoder::new(File::open(&path).unwrap()).read_to_end(&mut plain).unwrap();
    assert_eq!(read(Reader::start(&path, &*plain).unwrap()), expected);
}

#[test]
fn modelled_energy_stays_modelled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rec");
    let modelled = Setup { origin: Some(Origin::Model), idle_uw: vec![Some(1)], ..setup() };
    Writer::create(&path, &modelled).unwrap().finish().unwrap();
    assert_eq!(Reader::open(&path).unwrap().setup().origin, Some(Origin::Model));
}

#[test]
fn simulated_energy_stays_simulated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rec");
    let mut simulated = Setup { origin: Some(Origin::Powercap), ..setup() };
    simulated.zones.iter_mut().for_each(|zone| zone.origin = Some(Origin::Simulated));
    Writer::create(&path, &simulated).unwrap().finish().unwrap();
    let reader = Reader::open(&path).unwrap();
    assert_eq!(reader.setup().machine_origin(), Some(Origin::Simulated));
    assert_eq!(reader.recorded().0, Some(Origin::Simulated));
}

#[test]
fn the_file_is_private_and_links_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (precious, link) = (dir.path().join("precious"), dir.path().join("a.rec"));
    std::fs::write(&precious, "precious").unwrap();
    std::os::unix::fs::symlink(&precious, &link).unwrap();
    assert!(Writer::create(&link, &setup()).is_err());
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    let path = dir.path().join("b.rec");
    Writer::create(&path, &setup()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_small_file_cannot_allocate_much_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rec");
    record(&path);
    let mut plain = String::new();
    MultiGzDecoder::new(File::open(&path).unwrap()).read_to_string(&mut plain).unwrap();
    let header = plain.lines().next().unwrap();
    let tick = |ran: &str| {
        format!("{header}\n{{\"unix\":0,\"began\":0,\"energy\":0,\"cpu\":0,\"zones\":[0],\"ran\":[{ran}]}}\n")
    };
    let ran = |id: usize, cpu: usize| format!("[{{\"id\":{id},\"hierarchy\":0}},[[{cpu},1]]]");
    let read = |text: &str| {
        let mut reader = Reader::start(&path, text.as_bytes()).unwrap();
        reader.next_tick().map(|tick| tick.is_some()).map_err(|error| error.to_string())
    };
    assert_eq!(read(&tick(&ran(1, 1))), Ok(true));
    assert!(read(&tick(&ran(1, 8000))).unwrap_err().contains("CPU 8000 of a machine of 2"));
    let many: Vec<String> = (0..=MAX_ITEMS).map(|id| ran(id, 1)).collect();
    assert!(read(&tick(&many.join(","))).unwrap_err().contains("more cgroups"));
}

#[test]
fn a_copy_in_the_buffers_of_any_tick_is_that_tick() {
    let all: Vec<RawTick> = std::iter::once(RawTick::default()).chain(ticks()).collect();
    for (before, tick) in all.iter().flat_map(|before| all.iter().map(move |tick| (before, tick))) {
        assert_eq!(before.clone().with_copy_of(tick), *tick);
    }
}

#[test]
fn a_truncated_file_is_read_up_to_its_last_complete_tick() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rec");
    record(&path);
    let mut plain = Vec::new();
    MultiGzDecoder::new(File::open(&path).unwrap()).read_to_end(&mut plain).unwrap();
    let end = plain.len() - 20;
    let mut reader = Reader::start(&path, &plain[..end]).unwrap();
    let whole = (0..3).filter(|_| reader.next_tick().unwrap().is_some()).count();
    assert_eq!(whole, 3);
    let error = reader.next_tick().unwrap_err().to_string();
    assert!(error.contains("line 5") && error.contains("middle of a tick"), "{error}");
}

#[test]
fn other_files_and_versions_are_reported() {
    let path = Path::new("x.rec");
    for (text, word) in
        [("", "empty"), ("hello\n", "not a recording"), ("{\"format\":\"other\",\"version\":1}\n", "not a recording")]
    {
        let error = Reader::start(path, text.as_bytes()).err().unwrap().to_string();
        assert!(error.contains(word) && error.contains("x.rec"), "{error}");
    }
    let mut header =
        serde_json::to_value(Header { format: FORMAT.into(), version: VERSION, probe: String::new(), setup: setup() })
            .unwrap();
    let mut open = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut changed = header.clone();
        change(&mut changed);
        header = header.clone();
        let text = format!("{changed}\n");
        Reader::start(path, text.as_bytes()).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(open(&|_| {}), "");
    assert!(open(&|header| header["version"] = 7.into()).contains("version 7"));
    assert!(open(&|header| header["setup"]["places"] = serde_json::json!([7])).contains("on no package"));
    assert!(open(&|header| header["setup"]["zones"][0]["unit"]["denominator"] = 0.into()).contains("invalid unit"));
    assert!(open(&|header| header["setup"]["idle_uw"] = serde_json::json!([])).contains("do not fit"));
    assert!(open(&|header| header["setup"]["host"] = "x".repeat(2000).into()).contains("host name"));
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..3000) {
        let path = Path::new("x");
        let _ = Reader::start(path, &*bytes);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.rec");
        record(&file);
        let mut plain = Vec::new();
        MultiGzDecoder::new(File::open(&file).unwrap()).read_to_end(&mut plain).unwrap();
        let at = at.min(plain.len());
        let end = (at + bytes.len()).min(plain.len());
        plain.splice(at..end, bytes);
        if let Ok(mut reader) = Reader::start(path, &*plain) {
            while let Ok(Some(_)) = reader.next_tick() {}
        }
    }
}
