//! Energy of graphics boards and of boards without RAPL, on file trees that represent machines:
//! what is read, and that the account closes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
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
        hwmon::Hwmon,
        zone::{Origin, Range, Zone, ZoneId, ZoneKind, accounting_roots},
    },
    gpu::{ASLEEP, EngineUsage, GpuPaths, GpuReader, GpuReading, GpuUsage},
    host::{
        availability::Reason,
        topology::{PackageId, Topology},
    },
    ledger::IdlePolicy,
    snapshot::{AccountRow, Snapshot},
    tick::{CpuTierInfo, RawTick, Setup, TickChanges},
};
use support::copy_fixture;
use units::Microjoules;

const SECOND: u64 = 1_000_000_000;
const BOARD: &str = "sys/devices/pci0000:00/0000:00:01.0/0000:03:00.0";

/// A copy of a machine with its links, which the file `links` of its tree lists.
fn machine(name: &str) -> tempfile::TempDir {
    let tree = copy_fixture(name);
    for line in fs::read_to_string(tree.path().join("links")).unwrap_or_default().lines() {
        let (link, target) = line.split_once(' ').unwrap();
        let link = tree.path().join(link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(target, link).unwrap();
    }
    tree
}

fn setup(origin: Origin, zones: &[Zone], topology: &Topology) -> Setup {
    let packages = topology.packages(false);
    let place = |package| packages.iter().position(|known| *known == package);
    Setup {
        host: String::new(),
        origin: Some(origin),
        idle_uw: vec![None; zones.len()],
        zones: zones.to_vec(),
        cpu_packages: topology.cpus(false).map(|(_, package)| place(package)).collect(),
        packages,
        smt: false,
        cpu_weights: Vec::new(),
        lag_ns: 0,
        cpu: Some(CpuTierInfo::switch_tier(true)),
    }
}

/// Container `n` runs in cgroup `n`.
fn first_changes(containers: u32) -> TickChanges {
    let key = |number: u32| CgroupKey { id: u64::from(number), hierarchy: hierarchy::V2 };
    let named = |number: u32| Container::new(number, format!("c{number}"), format!("c{number}"), "docker");
    TickChanges {
        targets: (0..containers).map(|number| (key(number), ChargeTarget::Container(number))).collect(),
        containers: (0..containers).map(|number| Arc::new(named(number))).collect(),
        ..TickChanges::default()
    }
}

/// Asserts that the parts of every account are its measured energy.
fn assert_conserved(snapshot: &Snapshot) {
    for account in &snapshot.accounts {
        let AccountRow { id, containers, idle_shares, retired, system, idle, unattributed, .. } = account;
        let shares: Microjoules = containers.iter().chain(idle_shares).map(|(_, energy)| *energy).sum();
        let zone = snapshot.zones.iter().find(|zone| (zone.id, zone.origin) == (id.zone, id.origin)).unwrap();
        assert_eq!(zone.total, shares + *retired + *system + *idle + *unattributed, "{}", id.zone);
    }
}

/// A machine with a package and the boards of a tree, tick by tick. Process 10 is in container 0,
/// process 11 in container 1.
struct Host {
    reader: GpuReader,
    accountant: Accountant,
    raw: RawTick,
    boards: Vec<String>,
    last: Vec<GpuReading>,
}

impl Host {
    fn new(tree: &Path) -> Self {
        let nvml = Some(tree.join("libnvidia-ml.so.1"));
        let paths = GpuPaths { nvml, sysfs: tree.join("sys"), procfs: tree.join("proc") };
        let id = ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package };
        let zones = [Zone::microjoules(id, Range::Endless, "a package".into())];
        let setup = setup(Origin::Powercap, &zones, &Topology::read(&paths.sysfs));
        let cpus = setup.cpu_packages.len();
        let changes = first_changes(2);
        let rows = changes.targets.iter().map(|(key, _)| (*key, vec![RunTime::default(); cpus])).collect();
        let cpu = CpuReading { rows, overflow: vec![RunTime::default(); cpus], ..CpuReading::default() };
        let mut this = Self {
            reader: GpuReader::open(&paths).unwrap(),
            accountant: Accountant::new(setup, IdlePolicy::Separate, 0),
            raw: RawTick { cpu: Some(Ok(cpu)), changes, zones: vec![Ok(0)], ..RawTick::default() },
            boards: Vec::new(),
            last: Vec::new(),
        };
        this.tick(0);
        this
    }

    /// Reads the GPUs and advances the clock. The package uses a watt.
    fn tick(&mut self, ns: u64) -> Snapshot {
        let (_, gpus) = self.reader.poll(&[]);
        let package = self.raw.zones[0].clone().unwrap() + ns / 1000;
        self.raw.zones = vec![Ok(package)];
        self.raw.gpus.clear();
        for gpu in &gpus {
            let uses = gpu.uses.iter().map(|used| EngineUsage {
                charge_target: Some(ChargeTarget::Container(used.pid - 10)),
                job: None,
                times: used.times,
            });
            let usage = GpuUsage {
                idle: gpu.idle,
                pending: !gpu.complete,
                counter_reset: gpu.counter_reset,
                uses: uses.collect(),
            };
            self.raw.gpus.push((gpu.id, usage));
            let (Some(zone), Some(raw)) = (&gpu.zone, &gpu.raw) else { continue };
            if !self.boards.contains(&gpu.id.to_string()) {
                self.boards.push(gpu.id.to_string());
                self.raw.changes.zones.push(zone.clone());
            }
            self.raw.zones.push(raw.clone());
        }
        for at in [&mut self.raw.began_ns, &mut self.raw.energy_ns, &mut self.raw.cpu_ns, &mut self.raw.gpu_ns] {
            *at += ns;
        }
        self.last = gpus;
        let snapshot = self.accountant.tick(&self.raw);
        self.raw.changes = TickChanges::default();
        assert_conserved(&snapshot);
        snapshot
    }
}

/// Capabilities belong to a thread, and reading GPUs drops them: the test is on one of its own.
fn on_its_own_thread(test: impl FnOnce() + Send) {
    thread::scope(|scope| scope.spawn(test).join()).unwrap();
}

fn add(file: &Path, more: u64) {
    let before: u64 = fs::read_to_string(file).unwrap().trim().parse().unwrap();
    fs::write(file, format!("{}\n", before + more)).unwrap();
}

/// Replaces the value of a line of a process's fdinfo.
fn set(tree: &Path, file: &str, key: &str, value: &str) {
    let path = tree.join("proc").join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(key), "{text}");
    let lines = text.lines().map(|line| match line.split_once(':') {
        Some((name, _)) if name == key => format!("{key}:\t{value}\n"),
        _ => format!("{line}\n"),
    });
    fs::write(path, lines.collect::<Vec<_>>().concat()).unwrap();
}

fn account_of_board(snapshot: &Snapshot) -> &AccountRow {
    snapshot.accounts.iter().find(|account| matches!(account.id.zone.kind, ZoneKind::Gpu(_))).unwrap()
}

/// Joules of a container, to the nearest.
fn joules(account: &AccountRow, number: u32) -> u64 {
    let of = account.containers.iter().filter(|(container, _)| container.number == number);
    (of.map(|(_, energy)| energy.0).sum::<u64>() + 500_000) / 1_000_000
}

#[test]
fn energy_of_an_arc_board_follows_its_video_engines_and_rests_apart() {
    on_its_own_thread(|| {
        let tree = machine("arc-xe");
        let counter = tree.path().join(BOARD).join("hwmon/hwmon3/energy1_input");
        let mut host = Host::new(tree.path());
        assert_eq!(host.last[0].id.to_string(), "0000:03:00.0");
        // It rests at 8 W. Three seconds pass before that counts.
        for _ in 0..12 {
            add(&counter, 8_000_000);
            host.tick(SECOND);
        }
        add(&counter, 8_000_000);
        let before = host.tick(SECOND);
        let idle = account_of_board(&before).idle;
        // Two processes use its video engines at 3 to 1, and 40 W more.
        set(tree.path(), "10/fdinfo/5", "drm-cycles-vcs", "600000");
        set(tree.path(), "11/fdinfo/6", "drm-cycles-vcs", "200000");
        for file in ["10/fdinfo/5", "11/fdinfo/6"] {
            set(tree.path(), file, "drm-total-cycles-vcs", "2000000");
        }
        add(&counter, 48_000_000);
        thread::sleep(Duration::from_millis(20));
        let after = host.tick(SECOND);
        let account = account_of_board(&after);
        assert_eq!(account.id.origin, Origin::Drm);
        assert_eq!((joules(account, 0), joules(account, 1)), (30, 10));
        assert_eq!((account.idle - idle).0, 8_000_000);
        assert!(host.last[0].zone.as_ref().unwrap().location.ends_with("energy1_input (card)"));
    });
}

#[test]
fn the_counter_of_i915_is_that_of_the_device_and_not_of_a_part() {
    on_its_own_thread(|| {
        let tree = machine("arc-i915");
        let mut host = Host::new(tree.path());
        add(&tree.path().join(BOARD).join("hwmon/hwmon3/energy1_input"), 20_000_000);
        add(&tree.path().join(BOARD).join("hwmon/hwmon4/energy1_input"), 15_000_000);
        thread::sleep(Duration::from_millis(20));
        set(tree.path(), "10/fdinfo/5", "drm-engine-video", "12000000 ns");
        set(tree.path(), "11/fdinfo/6", "drm-engine-video", "4000000 ns");
        let snapshot = host.tick(SECOND);
        let account = account_of_board(&snapshot);
        assert_eq!((joules(account, 0), joules(account, 1)), (15, 5));
    });
}

#[test]
fn power_of_a_radeon_is_integrated_and_follows_its_video_engines() {
    on_its_own_thread(|| {
        let tree = machine("radeon");
        // Before the first reading.
        let start = Instant::now();
        let mut host = Host::new(tree.path());
        thread::sleep(Duration::from_millis(50));
        // One encodes and one decodes: both weigh the same.
        set(tree.path(), "10/fdinfo/5", "drm-engine-enc", "30000000 ns");
        set(tree.path(), "11/fdinfo/6", "drm-engine-dec", "10000000 ns");
        let snapshot = host.tick(SECOND);
        let most = u64::try_from(start.elapsed().as_micros()).unwrap() * 49;
        let account = account_of_board(&snapshot);
        assert_eq!(account.id.origin, Origin::DrmPower);
        let energy = |number: u32| account.containers.iter().find(|(of, _)| of.number == number).unwrap().1.0;
        let (encodes, decodes) = (energy(0), energy(1));
        // 48 W for at least 50 ms, all of which was used.
        assert!((2_400_000..=most).contains(&(encodes + decodes)), "{encodes} + {decodes}, at most {most}");
        assert!(encodes.abs_diff(3 * decodes) <= 3, "{encodes} {decodes}");
        assert_eq!(account.unattributed.0, 0);
    });
}

#[test]
fn power_of_an_amd_processor_with_graphics_is_in_its_package_only() {
    on_its_own_thread(|| {
        let tree = machine("amd-apu");
        let mut host = Host::new(tree.path());
        thread::sleep(Duration::from_millis(20));
        set(tree.path(), "10/fdinfo/5", "drm-engine-enc", "10000000 ns");
        let snapshot = host.tick(SECOND);
        assert_eq!(host.last[0].id.to_string(), "integrated-0000:c4:00.0");
        assert!(host.last[0].zone.is_none() && !host.last[0].uses.is_empty(), "engine time, and no energy of its own");
        assert_eq!((snapshot.zones.len(), snapshot.zones[0].total.0), (1, 1_000_000));
    });
}

/// The driver extends a counter that was reset as if it had wrapped: 2^32 steps of 2^-14 J.
#[test]
fn a_jump_of_the_counter_is_no_energy_and_counting_goes_on() {
    on_its_own_thread(|| {
        let tree = machine("arc-xe");
        let counter = tree.path().join(BOARD).join("hwmon/hwmon3/energy1_input");
        let mut host = Host::new(tree.path());
        let measured = |snapshot: &Snapshot| snapshot.zones[1].total.0 / 1_000_000;
        let mut totals = Vec::new();
        for more in [50, 262_144, 50, 50] {
            add(&counter, more * 1_000_000);
            totals.push(measured(&host.tick(SECOND)));
        }
        assert_eq!(totals, [50, 50, 100, 150]);
    });
}

#[test]
fn a_driver_that_is_loaded_again_and_a_suspended_board_are_states() {
    on_its_own_thread(|| {
        let tree = machine("arc-xe");
        let board = tree.path().join(BOARD);
        let mut host = Host::new(tree.path());
        let measured = |snapshot: &Snapshot| snapshot.zones[1].total.0 / 1_000_000;
        add(&board.join("hwmon/hwmon3/energy1_input"), 50_000_000);
        assert_eq!(measured(&host.tick(SECOND)), 50);
        // Suspended: it is not read, which would resume it.
        fs::write(board.join("power/runtime_status"), "suspended\n").unwrap();
        add(&board.join("hwmon/hwmon3/energy1_input"), 70_000_000);
        for _ in 0..7 {
            assert_eq!(measured(&host.tick(SECOND)), 50);
        }
        assert_eq!(host.last[0].raw, Some(Err(ASLEEP.to_owned())));
        assert_eq!((host.accountant.gpu_trouble(), &host.last[0].state), (None, &Ok(())));
        fs::write(board.join("power/runtime_status"), "active\n").unwrap();
        assert_eq!(measured(&host.tick(SECOND)), 50, "what it used meanwhile is unknown");
        add(&board.join("hwmon/hwmon3/energy1_input"), 5_000_000);
        assert_eq!(measured(&host.tick(SECOND)), 55);
        // Loaded again: another number, and a counter from zero.
        fs::rename(board.join("hwmon/hwmon3"), board.join("gone")).unwrap();
        fs::remove_file(board.join("gone/energy1_input")).unwrap();
        host.tick(SECOND);
        assert!(host.last[0].raw.as_ref().unwrap().is_err());
        assert_eq!(host.last[0].unavailable.get("energy"), Some(&Reason::Absent));
        fs::write(board.join("gone/energy1_input"), "0\n").unwrap();
        fs::write(board.join("gone/energy2_input"), "0\n").unwrap();
        fs::rename(board.join("gone"), board.join("hwmon/hwmon8")).unwrap();
        thread::sleep(Duration::from_millis(1100));
        assert_eq!(measured(&host.tick(SECOND)), 55);
        add(&board.join("hwmon/hwmon8/energy1_input"), 9_000_000);
        assert_eq!(measured(&host.tick(SECOND)), 64);
        assert_eq!(host.last[0].unavailable.get("energy"), None);
    });
}

/// A source that is read tick by tick in real time. Container 0 runs on all CPUs of package 0.
fn account(tree: &Path, between: impl Fn()) -> (Hwmon, Snapshot) {
    let sysfs = tree.join("sys");
    let topology = Topology::read(&sysfs);
    let mut source = Hwmon::open(&sysfs, &topology).unwrap();
    let setup = setup(source.origin(), source.zones(), &topology);
    let on_first: Vec<bool> = setup.cpu_packages.iter().map(|package| *package == Some(0)).collect();
    let changes = first_changes(1);
    let rows = changes.targets.iter().map(|(key, _)| (*key, vec![RunTime::default(); on_first.len()])).collect();
    let overflow = vec![RunTime::default(); on_first.len()];
    let cpu = CpuReading { rows, overflow, ..CpuReading::default() };
    let mut accountant = Accountant::new(setup, IdlePolicy::Separate, 0);
    let mut raw = RawTick { cpu: Some(Ok(cpu)), changes, ..RawTick::default() };
    let start = Instant::now();
    let mut tick = |raw: &mut RawTick| {
        let mut values = Vec::new();
        source.read(&mut values);
        raw.zones = values.into_iter().map(|value| value.map_err(|error| error.to_string())).collect();
        let at = u64::try_from(start.elapsed().as_nanos()).unwrap();
        (raw.began_ns, raw.energy_ns, raw.cpu_ns) = (at, at, at);
        accountant.tick(raw)
    };
    tick(&mut raw);
    raw.changes = TickChanges::default();
    // Much longer than the time between the readings of two sensors on a loaded machine.
    thread::sleep(Duration::from_millis(600));
    between();
    if let Some(Ok(reading)) = &mut raw.cpu {
        let cpus = reading.rows[0].1.iter_mut().zip(&on_first).filter(|(_, first)| **first);
        cpus.for_each(|(time, _)| time.alone_ns += 100_000_000);
    }
    let snapshot = tick(&mut raw);
    assert!(!snapshot.accounts.is_empty(), "no account");
    assert_conserved(&snapshot);
    (source, snapshot)
}

/// Zone, whether it is counted, its source, and its watts relative to the first.
fn zones(source: &Hwmon, snapshot: &Snapshot) -> Vec<(String, bool, &'static str, f64)> {
    let first = snapshot.zones[0].total.joules();
    let rows = snapshot.zones.iter().zip(accounting_roots(source.zones()));
    let row = |(zone, root): (&probe_user::snapshot::ZoneRow, bool)| {
        (zone.id.to_string(), root, zone.origin.as_str(), zone.total.joules() / first)
    };
    rows.map(row).collect()
}

#[track_caller]
fn assert_zones(tree: &str, expected: &[(&str, bool, &str, f64)]) -> Hwmon {
    let tree = copy_fixture(tree);
    let (source, snapshot) = account(tree.path(), || {});
    let actual = zones(&source, &snapshot);
    assert_eq!(actual.len(), expected.len(), "{actual:?}");
    for ((name, root, origin, ratio), expected) in actual.iter().zip(expected) {
        assert_eq!((&**name, *root, *origin), (expected.0, expected.1, expected.2), "{actual:?}");
        // The sensors are read one after the other.
        assert!((ratio / expected.3 - 1.0).abs() < 0.2, "{actual:?}");
    }
    source
}

#[test]
fn nvidia_grace_has_a_package_for_each_socket_and_its_modules_are_the_machine() {
    let packages = [("package of package 0", true, "hwmon", 1.0), ("package of package 1", true, "hwmon", 0.75)];
    let machine = ("psys of package all", false, "hwmon", 4.6);
    let source = assert_zones("nvidia-grace", &[packages[0], packages[1], machine]);
    // Of each socket its cores and its links, which it contains.
    assert_eq!(source.inventory().left_out.len(), 4, "{:?}", source.inventory().left_out);
    assert_eq!(source.zones()[0].update_ns, 50_000_000);
}

#[test]
fn ampere_altra_has_a_package_of_two_parts_for_each_socket() {
    let expected = [("package of package 0", true, "hwmon", 1.0), ("package of package 1", true, "hwmon", 0.5625)];
    let source = assert_zones("ampere-altra", &expected);
    let location = &source.zones()[0].location;
    assert!(location.contains("(CPU power) + ") && location.contains("(IO power)"), "{location}");
}

#[test]
fn power_domains_of_arm_are_the_package_and_count_once() {
    let source = assert_zones("arm-scmi", &[("package of package 0", true, "scmi", 1.0)]);
    let location = &source.zones()[0].location;
    assert!(location.contains("(soc) + ") && location.contains("(ddr)"), "{location}");
    assert_eq!(source.inventory().left_out.len(), 2, "a cluster and the graphics are parts of the chip");
    assert_eq!(source.zones()[0].update_ns, 100_000_000);
}

#[test]
fn sockets_of_zenergy_are_packages() {
    let tree = copy_fixture("amd-zenergy");
    let file = |number: u32| -> PathBuf { tree.path().join(format!("sys/class/hwmon/hwmon2/energy{number}_input")) };
    let (source, snapshot) = account(tree.path(), || {
        add(&file(1), 900_000);
        add(&file(5), 9_000_000);
        add(&file(6), 3_000_000);
    });
    let totals: Vec<(String, u64)> = snapshot.zones.iter().map(|zone| (zone.id.to_string(), zone.total.0)).collect();
    let expected = [("package of package 0", 9_000_000), ("package of package 1", 3_000_000)];
    assert_eq!(totals, expected.map(|(name, energy)| (name.to_owned(), energy)));
    assert_eq!(accounting_roots(source.zones()), [true, true]);
}
