//! One test for each known error of energy exporters, on file trees that represent machines.
//!
//! The numbers are those of the project's initial checklist. There is no test for number 14, energy
//! of GPUs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use probe_user::{
    attribution::Accountant,
    cgroup::{CgroupKey, hierarchy},
    containers::{ChargeTarget, Container},
    cpu::{CpuReading, RunTime},
    energy::{
        Source,
        counter::Reject,
        perf::Perf,
        powercap::Powercap,
        processor::Processor,
        zone::{Ceiling, Origin, Range, Zone, ZoneId, ZoneKind, accounting_roots},
    },
    host::{
        availability::{Reason, Unavailable},
        topology::{PackageId, Topology},
    },
    ledger::IdlePolicy,
    snapshot::Snapshot,
    tick::{CpuTierInfo, RawTick, Setup, TickChanges},
};
use support::{Probe, Tick, copy_fixture, ebpf, fixture};
use testkit::{
    cgroup::{self, Cgroup, usage_us, wait_for_usage},
    fixture::unique,
    or_skip,
    program::Burner,
    skip, sleep,
    wait::eventually_ok,
};
use units::Microjoules;

const SECOND: u64 = 1_000_000_000;

fn open(tree: &Path) -> Result<Powercap, Unavailable> {
    let sysfs = tree.join("sys");
    Powercap::open(&sysfs, &Topology::read(&sysfs), &Processor::read(&tree.join("proc")))
}

fn zone_names(source: &dyn Source) -> Vec<String> {
    source.zones().iter().map(|zone| zone.id.to_string()).collect()
}

fn roots(source: &dyn Source) -> Vec<String> {
    let roots = accounting_roots(source.zones());
    source.zones().iter().zip(roots).filter(|(_, root)| *root).map(|(zone, _)| zone.id.to_string()).collect()
}

fn counter(tree: &Path, zone: &str) -> PathBuf {
    tree.join("sys/class/powercap").join(zone).join("energy_uj")
}

fn read(source: &mut dyn Source) -> Vec<Result<u64, String>> {
    let mut raw: Vec<io::Result<u64>> = Vec::new();
    source.read(&mut raw);
    raw.into_iter().map(|value| value.map_err(|error| error.to_string())).collect()
}

fn package(number: u32) -> ZoneId {
    ZoneId { package: Some(PackageId::whole(number)), kind: ZoneKind::Package }
}

fn setup(zones: &[Zone], topology: &Topology) -> Setup {
    let per_die = zones.iter().any(|zone| zone.id.package.is_some_and(|package| package.die.is_some()));
    let packages = topology.packages(per_die);
    let place = |package| packages.iter().position(|known| *known == package);
    Setup {
        host: String::new(),
        origin: Some(Origin::Powercap),
        idle_uw: vec![None; zones.len()],
        zones: zones.to_vec(),
        cpu_packages: topology.cpus(per_die).map(|(_, package)| place(package)).collect(),
        packages,
        smt: false,
        cpu_weights: Vec::new(),
        lag_ns: 0,
        cpu: Some(CpuTierInfo::switch_tier(true)),
    }
}

/// A source that is read tick by tick. Container 0 runs on the CPUs in `ran`.
struct Ledger<'a> {
    source: &'a mut dyn Source,
    accountant: Accountant,
    raw: RawTick,
}

impl<'a> Ledger<'a> {
    fn new(source: &'a mut dyn Source, topology: &Topology) -> Self {
        let setup = setup(source.zones(), topology);
        let cpus = setup.cpu_packages.len();
        let key = CgroupKey { id: 7, hierarchy: hierarchy::V2 };
        let container = Container::new(0, "c".into(), "c".into(), "docker");
        let changes = TickChanges {
            targets: vec![(key, ChargeTarget::Container(0))],
            containers: vec![Arc::new(container)],
            ..TickChanges::default()
        };
        let cpu = CpuReading {
            rows: vec![(key, vec![RunTime::default(); cpus])],
            overflow: vec![RunTime::default(); cpus],
            ..CpuReading::default()
        };
        let raw = RawTick { cpu: Some(Ok(cpu)), changes, ..RawTick::default() };
        let mut this = Self { source, accountant: Accountant::new(setup, IdlePolicy::Separate, 0), raw };
        this.tick(0, &[]);
        this.raw.changes = TickChanges::default();
        this
    }

    fn tick(&mut self, ns: u64, ran: &[(usize, u64)]) -> Snapshot {
        if let Some(Ok(reading)) = &mut self.raw.cpu {
            for (cpu, ns) in ran {
                reading.rows[0].1[*cpu].alone_ns += ns;
            }
        }
        self.raw.zones = read(self.source);
        self.raw.began_ns += ns;
        self.raw.energy_ns += ns;
        self.raw.cpu_ns += ns;
        self.accountant.tick(&self.raw)
    }
}

fn total(snapshot: &Snapshot, zone: usize) -> u64 {
    snapshot.zones[zone].total.0
}

#[test]
fn trap_01_wraps_are_corrected_with_the_range_of_the_zone() {
    let tree = copy_fixture("server-dram");
    let mut source = open(tree.path()).unwrap();
    // The largest value plus one step of 2^-14 J, and dram's own smaller range.
    assert_eq!(source.zones()[0].range, Range::Wraps(262_143_328_850 + 62));
    let dram = source.zones().iter().position(|zone| zone.id.kind == ZoneKind::Dram).unwrap();
    assert_eq!(source.zones()[dram].range, Range::Wraps(65_712_999_613 + 16));
    let set = |energy: u64| fs::write(counter(tree.path(), "intel-rapl:0"), format!("{energy}\n")).unwrap();
    set(262_143_328_850 - 9_999_999);
    let topology = Topology::read(&tree.path().join("sys"));
    let mut ledger = Ledger::new(&mut source, &topology);
    set(39_999_938);
    assert_eq!(total(&ledger.tick(SECOND, &[]), 0), 49_999_999);
    set(139_999_938);
    assert_eq!(total(&ledger.tick(SECOND, &[]), 0), 149_999_999, "the total grows although the counter wrapped");
}

#[test]
fn trap_01_without_a_range_a_fall_is_rejected_and_counted() {
    let tree = copy_fixture("no-range");
    let mut source = open(tree.path()).unwrap();
    assert_eq!(source.zones()[0].range, Range::Unknown);
    let set = |energy: u64| fs::write(counter(tree.path(), "intel-rapl:0"), format!("{energy}\n")).unwrap();
    let topology = Topology::read(&tree.path().join("sys"));
    let mut ledger = Ledger::new(&mut source, &topology);
    set(500);
    let fell = ledger.tick(SECOND, &[]);
    assert_eq!((total(&fell, 0), &*fell.rejects), (0, &[(package(0), Reject::RangeUnknown, 1)][..]));
    set(700);
    assert_eq!(total(&ledger.tick(SECOND, &[]), 0), 200);
}

#[test]
fn trap_01_a_gap_over_half_the_wrap_time_is_rejected() {
    let tree = copy_fixture("amd");
    let mut source = open(tree.path()).unwrap();
    let set = |energy: u64| fs::write(counter(tree.path(), "intel-rapl:0"), format!("{energy}\n")).unwrap();
    let topology = Topology::read(&tree.path().join("sys"));
    let mut ledger = Ledger::new(&mut source, &topology);
    set(281_000_000);
    assert_eq!(total(&ledger.tick(SECOND, &[]), 0), 280_000_000);
    // At 280 W half of the range of 65,532 J passes in 117 s.
    set(30_000_000_000);
    let after = ledger.tick(130 * SECOND, &[]);
    assert_eq!((total(&after, 0), after.rejects[0].1), (280_000_000, Reject::Gap));
}

#[test]
fn trap_02_nothing_is_counted_twice() {
    let mut client = open(&fixture("client-psys")).unwrap();
    assert_eq!(
        zone_names(&client),
        ["package of package 0", "core of package 0", "uncore of package 0", "psys of package all"]
    );
    assert_eq!(roots(&client), ["package of package 0"]);
    let topology = Topology::read(&fixture("client-psys").join("sys"));
    let snapshot = Ledger::new(&mut client, &topology).tick(SECOND, &[]);
    assert_eq!(snapshot.accounts.len(), 1);

    let twin = open(&fixture("mmio-twin")).unwrap();
    assert_eq!(zone_names(&twin), ["package of package 0", "core of package 0"]);
    assert!(twin.zones()[0].location.contains("intel-rapl:0"), "the MSR zone is used, not its MMIO duplicate");
    assert!(
        twin.inventory().left_out[0].contains("intel-rapl-mmio:0: a duplicate of"),
        "{:?}",
        twin.inventory().left_out
    );

    // Memory is a separate root on each socket.
    let server = open(&fixture("server-dram")).unwrap();
    assert_eq!(
        roots(&server),
        ["package of package 0", "dram of package 0", "package of package 1", "dram of package 1"]
    );
}

#[test]
fn trap_03_psys_is_exported_but_not_attributed() {
    let mut source = open(&fixture("psys-between")).unwrap();
    assert_eq!(zone_names(&source), ["package of package 0", "psys of package all", "package of package 1"]);
    let topology = Topology::read(&fixture("psys-between").join("sys"));
    let snapshot = Ledger::new(&mut source, &topology).tick(SECOND, &[(0, 1)]);
    assert_eq!(snapshot.zones.len(), 3);
    let accounts: Vec<_> = snapshot.accounts.iter().map(|account| account.id.zone).collect();
    assert_eq!(accounts, [package(0), package(1)]);
}

#[test]
fn trap_04_packages_follow_zone_names_and_the_topology() {
    let tree = copy_fixture("psys-between");
    let mut source = open(tree.path()).unwrap();
    let topology = Topology::read(&tree.path().join("sys"));
    let mut ledger = Ledger::new(&mut source, &topology);
    // intel-rapl:2 is package 1, and CPU 1 is on it.
    fs::write(counter(tree.path(), "intel-rapl:2"), "2000400\n").unwrap();
    let snapshot = ledger.tick(SECOND, &[(1, 5)]);
    assert_eq!(snapshot.accounts[1].containers[0].1, Microjoules(400));
    assert!(snapshot.accounts[0].containers.is_empty());
}

#[test]
fn trap_04_each_die_is_a_separate_domain() {
    let tree = copy_fixture("multi-die");
    let mut source = open(tree.path()).unwrap();
    let topology = Topology::read(&tree.path().join("sys"));
    let mut ledger = Ledger::new(&mut source, &topology);
    fs::write(counter(tree.path(), "intel-rapl:2"), "3000900\n").unwrap();
    // CPU 2 is on package 1, die 0.
    let snapshot = ledger.tick(SECOND, &[(2, 5)]);
    let account = snapshot.accounts.iter().find(|account| !account.containers.is_empty()).unwrap();
    assert_eq!((account.id.zone.package_label(), account.containers[0].1), ("1-die-0".to_owned(), Microjoules(900)));
}

#[test]
fn trap_05_a_counter_of_one_amd_core_is_not_used() {
    let source = open(&fixture("amd")).unwrap();
    assert_eq!(zone_names(&source), ["package of package 0"]);
    assert!(source.inventory().left_out[0].contains("a single core"), "{:?}", source.inventory().left_out);
    // An older kernel reports the same counter for two dies; it is used once.
    let legacy = open(&fixture("amd-die-names")).unwrap();
    assert_eq!(zone_names(&legacy), ["package of package 0"]);
}

#[test]
fn trap_05_core_counters_of_the_kernel_are_summed() {
    let tree = fixture("perf-amd-cores");
    let sysfs = tree.join("sys");
    let mut source = match Perf::open(&sysfs, &Topology::read(&sysfs), &Processor::read(&tree.join("proc"))) {
        Ok(source) => source,
        Err(why) if why.reason == Reason::Denied => skip!("{why}"),
        Err(why) => panic!("{why}"),
    };
    assert_eq!(zone_names(&source), ["package of package 0", "core of package 0"]);
    // The duration of one reading must be negligible compared to the interval between two readings.
    let mut undisturbed = || {
        eventually_ok(20.0, "all counters are read within 1 ms", || {
            let start = Instant::now();
            let counters = read(&mut source);
            if start.elapsed() < Duration::from_millis(1) { Ok(counters) } else { Err("it took longer") }
        })
    };
    let before = undisturbed();
    sleep(0.2);
    let after = undisturbed();
    let increase = |zone: usize| after[zone].clone().unwrap() - before[zone].clone().unwrap();
    let ratio = increase(1) as f64 / increase(0) as f64;
    assert!((1.9..2.1).contains(&ratio), "two cores with one watt each, and a package with one watt: {ratio}");
}

#[test]
fn trap_06_power_uses_measured_time_and_skew_is_exported() {
    let tree = copy_fixture("client-psys");
    let mut source = open(tree.path()).unwrap();
    let topology = Topology::read(&tree.path().join("sys"));
    let mut ledger = Ledger::new(&mut source, &topology);
    fs::write(counter(tree.path(), "intel-rapl:0"), "31000000\n").unwrap();
    ledger.raw.cpu_ns += 700_000;
    let snapshot = ledger.tick(3 * SECOND / 2, &[]);
    assert_eq!(snapshot.zones[0].watts, Some(20.0), "30 J in the measured 1.5 s, not in the configured interval");
    assert_eq!(snapshot.skew_ns, 700_000);
}

#[test]
fn trap_07_a_task_that_never_switches_is_charged() {
    or_skip!(ebpf());
    let name = unique("spin");
    let cgroup = Cgroup::create(&cgroup::v2().unwrap(), &name).unwrap();
    let probe = Probe::start(&["--energy.source=model"]);
    let burner = Burner::start(0, &[&cgroup]).unwrap();
    wait_for_usage(&cgroup.dir, 1.0);
    let usage = || Duration::from_micros(usage_us(&cgroup.dir).unwrap()).as_secs_f64();
    let (before, ours) = (usage(), probe.fresh().cpu(&name));
    // The kernel updates its figure at its scheduler tick, or when the task stops. Until then a
    // page that contains the current run is ahead of it.
    burner.pause();
    sleep(0.02);
    let after = usage();
    drop(burner);
    assert!(ours >= 0.98 * before && ours <= after + 0.001, "{ours} s, kernel {before} to {after} s");
}

#[test]
fn trap_08_and_09_a_reused_id_is_a_new_container() {
    let tree = copy_fixture("client-psys");
    let mut source = open(tree.path()).unwrap();
    let topology = Topology::read(&tree.path().join("sys"));
    let mut ledger = Ledger::new(&mut source, &topology);
    let key = CgroupKey { id: 7, hierarchy: hierarchy::V2 };
    let set = |joules: u64| {
        fs::write(counter(tree.path(), "intel-rapl:0"), format!("{}\n", 1_000_000 + joules * 1_000_000)).unwrap();
    };
    set(10);
    assert_eq!(ledger.tick(SECOND, &[(0, 500)]).accounts[0].containers[0].1, Microjoules(10_000_000));
    // The container ends, and another one gets the same cgroup id at once, with counters from zero.
    let other = Container::new(1, "d".into(), "d".into(), "docker");
    ledger.raw.changes = TickChanges {
        departed: vec![key],
        targets: vec![(key, ChargeTarget::Container(1))],
        containers: vec![Arc::new(other)],
        ..TickChanges::default()
    };
    if let Some(Ok(reading)) = &mut ledger.raw.cpu {
        reading.rows[0].1[0] = RunTime::default();
    }
    set(15);
    let snapshot = ledger.tick(SECOND, &[(0, 3)]);
    let joules: Vec<_> =
        snapshot.accounts[0].containers.iter().map(|(container, uj)| (container.number, uj.0)).collect();
    assert_eq!(joules, [(0, 10_000_000), (1, 5_000_000)]);
    ledger.raw.changes = TickChanges { ended: vec![0], ..TickChanges::default() };
    set(16);
    let snapshot = ledger.tick(SECOND, &[(0, 3)]);
    assert_eq!(snapshot.accounts[0].retired, Microjoules(10_000_000));
}

#[test]
fn trap_10_a_removed_or_reset_counter_never_falls() {
    let tree = copy_fixture("client-psys");
    let mut source = open(tree.path()).unwrap();
    let topology = Topology::read(&tree.path().join("sys"));
    let mut ledger = Ledger::new(&mut source, &topology);
    let file = counter(tree.path(), "intel-rapl:0");
    fs::write(&file, "51000000\n").unwrap();
    assert_eq!(total(&ledger.tick(SECOND, &[]), 0), 50_000_000);
    // The driver was reloaded and counts from zero. A wrap would mean 262 kJ in a second.
    fs::write(&file, "1000\n").unwrap();
    let reset = ledger.tick(SECOND, &[]);
    assert_eq!((total(&reset, 0), reset.rejects[0].1), (50_000_000, Reject::Implausible));
    fs::write(&file, "20001000\n").unwrap();
    assert_eq!(total(&ledger.tick(SECOND, &[]), 0), 70_000_000, "the total continues from there");
    fs::remove_file(&file).unwrap();
    let gone = ledger.tick(SECOND, &[]);
    assert_eq!((total(&gone, 0), gone.zones[0].watts), (70_000_000, None));
}

#[test]
fn trap_11_a_spike_is_rejected_and_counted() {
    let tree = copy_fixture("server-dram");
    let mut source = open(tree.path()).unwrap();
    assert_eq!(source.zones()[0].ceiling, Ceiling::Limit(125_000_000));
    let topology = Topology::read(&tree.path().join("sys"));
    let mut ledger = Ledger::new(&mut source, &topology);
    let file = counter(tree.path(), "intel-rapl:0");
    // 9 kW for a processor with a limit of 125 W.
    fs::write(&file, "9001000000\n").unwrap();
    let spike = ledger.tick(SECOND, &[]);
    assert_eq!((total(&spike, 0), &*spike.rejects), (0, &[(package(0), Reject::Implausible, 1)][..]));
    fs::write(&file, "201000000\n").unwrap();
    assert_eq!(total(&ledger.tick(SECOND, &[]), 0), 200_000_000, "the energy of both seconds is included");
}

/// Runs `action` on a thread without capabilities, like root in a container.
fn without_capabilities<T: Send>(action: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                caps::clear(None, caps::CapSet::Effective).unwrap();
                action()
            })
            .join()
            .unwrap()
    })
}

fn forbid(path: &Path) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
}

#[test]
fn trap_12_a_missing_permission_is_reported() {
    let tree = copy_fixture("denied");
    forbid(&counter(tree.path(), "intel-rapl:1"));
    let partial = without_capabilities(|| open(tree.path()).unwrap());
    let lacks = probe_user::energy::missing_zones(&partial).unwrap();
    assert_eq!(lacks.reason, Reason::Denied);
    assert!(lacks.detail.contains("package of package 1 is missing in every sum"), "{lacks}");
    forbid(&counter(tree.path(), "intel-rapl:0"));
    let why = without_capabilities(|| open(tree.path()).err().unwrap());
    assert_eq!(why.reason, Reason::Denied);
    assert!(why.detail.contains("root"), "{why}");
}

#[test]
fn trap_12_an_unreadable_counter_is_reported_as_broken() {
    let tree = fixture("einval");
    let sysfs = format!("--path.sysfs={}", tree.join("sys").display());
    let probe = Probe::start(&[&sysfs, "--energy.source=powercap"]);
    let (state, detail) = probe.source("powercap");
    // Without privileges the file cannot even be opened.
    assert!(state == "broken" && detail.contains("Invalid argument") || state == "denied", "{state}: {detail}");
    let page = probe.fresh();
    assert_eq!(page.get("wattcast_source_up", &[("source", "powercap")]), 0.0);
    assert_eq!(page.all("wattcast_energy_joules_total").count(), 0, "no data without a working source");
}

#[test]
fn trap_13_two_scrapers_at_1_hz_and_5_hz_change_no_value() {
    const TICK: f64 = 0.5;
    let sysfs = fixture("perf-two-sockets").join("sys");
    let probe = Probe::start(&[&format!("--path.sysfs={}", sysfs.display()), "--tick=500ms"]);
    let missed = || probe.metrics().get("wattcast_ticks_missed_total", &[]);
    let pages = Mutex::new(Vec::new());
    let scrape = |times: u32, pause: f64| {
        for _ in 0..times {
            pages.lock().unwrap().push(probe.client.text("/metrics").unwrap());
            sleep(pause);
        }
    };
    // A busy machine misses a tick now and then. If the scrapers delayed ticks, every round would
    // miss some.
    let (mut undisturbed, mut rounds, mut seconds) = (false, 0u8, 0.0);
    while !undisturbed && rounds < 3 {
        let (before, start) = (missed(), Instant::now());
        thread::scope(|scope| {
            scope.spawn(|| scrape(5, 1.0));
            scope.spawn(|| scrape(25, 0.2));
        });
        rounds += 1;
        seconds += start.elapsed().as_secs_f64();
        undisturbed = missed() == before;
    }
    assert!(undisturbed, "two scrapers cause missed ticks in every round");
    let pages = pages.into_inner().unwrap();
    assert_eq!(pages.len(), 30 * usize::from(rounds));
    // A tick is identified by its energy. All pages of one tick are identical except for the
    // metrics of the probe's own process.
    let of_tick = |line: &&str| !line.contains("process_") && !line.starts_with('#');
    let mut ticks = std::collections::BTreeMap::<String, Vec<String>>::new();
    for page in &pages {
        let joules = page.lines().find(|line| line.starts_with("wattcast_energy_joules_total")).unwrap();
        let samples: Vec<&str> = page.lines().filter(of_tick).collect();
        ticks.entry(joules.to_owned()).or_default().push(samples.join("\n"));
    }
    for (tick, pages) in &ticks {
        assert!(pages.windows(2).all(|pair| pair[0] == pair[1]), "{tick}");
    }
    // With 30 scrapes per round there are as many ticks as without: one per interval, and one at
    // each end of a round.
    let (observed, due) = (ticks.len() as f64, seconds / TICK);
    assert!(observed >= 0.6 * due && observed <= due + 2.0 * f64::from(rounds), "{observed} ticks in {seconds} s");
}

#[test]
fn trap_15_counters_that_always_read_zero_are_broken() {
    let source = open(&fixture("guest-zero")).unwrap();
    let why = probe_user::energy::wait_for_movement(Box::new(source)).err().unwrap();
    assert_eq!(why.reason, Reason::Broken);
    assert!(why.detail.contains("stands at 0") && why.detail.contains("hypervisor"), "{why}");
}

/// Legacy metric names with two sockets: neither overwrites the other.
#[test]
fn legacy_metrics_are_correct_for_two_sockets() {
    let sysfs = fixture("perf-two-sockets").join("sys");
    let probe = Probe::start(&[&format!("--path.sysfs={}", sysfs.display()), "--tick=30s"]);
    if probe.source("perf").0 == "denied" {
        skip!("perf_event_open is not allowed here");
    }
    let Tick { before, page, seconds } = probe.undisturbed_tick(0.3);
    for package in ["0", "1"] {
        let legacy = [("package", &*format!("package-{package}")), ("zone", &*format!("package_{package}"))];
        let primary = [("package", package), ("zone", "package"), ("source", "perf")];
        let joules = page.get("rapl_energy_joules_total", &legacy);
        assert_eq!(joules, page.get("wattcast_energy_joules_total", &primary));
        let increase = joules - before.get("rapl_energy_joules_total", &legacy);
        assert!((increase / seconds - 1.0).abs() < 0.02, "one watt: {increase} J in {seconds} s");
        let watts = page.get("rapl_power_watts", &legacy);
        assert!((watts - 1.0).abs() < 0.02, "one watt: {watts}");
    }
    assert_eq!((page.get("rapl_zones_discovered", &[]), page.get("rapl_available", &[])), (2.0, 1.0));
    page.assert_conserved();
}
