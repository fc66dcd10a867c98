//! Cost of one reading of each source and of the arithmetic of a tick, with 4, 8, 16 and 64 zones.
//! Run by `cargo xtask bench`. Prints lines `SOURCE ZONES MICROSECONDS`: CPU time of this thread,
//! median of batches.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

use std::{fs, os::unix::fs::FileExt as _, path::Path};

use probe_user::{
    attribution::Accountant,
    energy::{
        Source, SourcePaths,
        hwmon::Hwmon,
        model::Model,
        msr::Msr,
        perf::Perf,
        powercap::Powercap,
        processor::{Processor, Vendor},
    },
    host::topology::Topology,
    ledger::IdlePolicy,
    tick::{RawTick, Setup},
};

const BATCHES: usize = 31;
const READINGS: u32 = 200;

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("{text}\n")).unwrap();
}

/// A machine with `packages` sockets of one CPU each; only the first two CPUs are real ones.
fn tree(dir: &Path, packages: usize) {
    for cpu in 0..packages {
        write(&dir.join(format!("devices/system/cpu/cpu{cpu}/topology/physical_package_id")), &cpu.to_string());
        let zone = dir.join(format!("class/powercap/intel-rapl:{cpu}"));
        write(&zone.join("name"), &format!("package-{cpu}"));
        write(&zone.join("energy_uj"), "123456789");
        write(&zone.join("max_energy_range_uj"), "262143328850");
        let sensor = dir.join("class/hwmon/hwmon0");
        write(&sensor.join("name"), "amd_energy");
        write(&sensor.join(format!("energy{}_label", cpu + 1)), &format!("Esocket{cpu}"));
        write(&sensor.join(format!("energy{}_input", cpu + 1)), "123456789");
        let msr = dir.join(format!("dev/cpu/{cpu}/msr"));
        write(&msr, "");
        let file = fs::OpenOptions::new().write(true).open(msr).unwrap();
        file.set_len(0x1000).unwrap();
        file.write_all_at(&(14u64 << 8).to_ne_bytes(), 0x606).unwrap();
        file.write_all_at(&5u64.to_ne_bytes(), 0x611).unwrap();
    }
}

fn cpu_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec that outlives the call.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) }, 0);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

fn median(mut job: impl FnMut()) -> f64 {
    let mut batches: Vec<u64> = (0..BATCHES)
        .map(|_| {
            let start = cpu_ns();
            (0..READINGS).for_each(|_| job());
            (cpu_ns() - start) / u64::from(READINGS)
        })
        .collect();
    batches.sort_unstable();
    f64::from(u32::try_from(batches[BATCHES / 2]).unwrap()) / 1000.0
}

fn measure(name: &str, source: &mut dyn Source) {
    let mut raw = Vec::new();
    let cost = median(|| {
        raw.clear();
        source.read(&mut raw);
    });
    assert!(raw.iter().all(Result::is_ok), "{name}: {raw:?}");
    println!("{name} {} {cost:.2}", source.zones().len());
}

fn main() {
    for zones in [4usize, 8, 16, 64] {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path(), zones);
        let topology = Topology::read(dir.path());
        let intel = Processor { vendor: Vendor::Intel, family: 6, model: 85, name: String::new() };
        let paths =
            SourcePaths { sysfs: dir.path().into(), procfs: "/proc".into(), dev: dir.path().join("dev"), host: None };
        let mut powercap = Powercap::open(dir.path(), &topology, &intel).unwrap();
        measure("powercap", &mut powercap);
        measure("msr", &mut Msr::open(&paths.dev, &topology, &intel).unwrap());
        measure("hwmon", &mut Hwmon::open(dir.path(), &topology).unwrap());
        measure("model", &mut Model::new(None, &intel, &topology, &paths));
        perf(zones, dir.path());

        let setup = Setup {
            host: String::new(),
            origin: Some(powercap.origin()),
            zones: powercap.zones().to_vec(),
            idle_uw: vec![None; zones],
            packages: topology.packages(false),
            cpu_packages: (0..zones).map(Some).collect(),
            smt: false,
            cpu_weights: Vec::new(),
            lag_ns: 0,
            cpu: None,
        };
        let mut accountant = Accountant::new(setup, IdlePolicy::Separate, 0);
        let mut raw = RawTick { zones: vec![Ok(0); zones], ..RawTick::default() };
        let cost = median(|| {
            raw.energy_ns += 1_000_000_000;
            raw.cpu_ns = raw.energy_ns;
            raw.zones.iter_mut().flatten().for_each(|value| *value += 1_000_000);
            accountant.tick(&raw);
        });
        println!("arithmetic {zones} {cost:.2}");
    }
}

/// As many descriptors of the kernel's CPU clock as zones, on the CPUs that there are: events of
/// one CPU, by turns.
fn perf(zones: usize, dir: &Path) {
    let cpus = std::thread::available_parallelism().unwrap().get();
    let pmu = dir.join("bus/event_source/devices/power");
    write(&pmu.join("type"), "1");
    write(&pmu.join("cpumask"), &format!("0-{}", cpus - 1));
    for (file, text) in [("energy-pkg", "event=0x00"), ("energy-pkg.scale", "1e-9"), ("energy-pkg.unit", "Joules")] {
        write(&pmu.join("events").join(file), text);
    }
    let topology = Topology::read(dir);
    let mut sources: Vec<Perf> = Vec::new();
    while sources.iter().map(|source| source.zones().len()).sum::<usize>() < zones {
        match Perf::open(dir, &topology, &Processor::read(dir)) {
            Ok(source) => sources.push(source),
            Err(why) => {
                println!("# perf: {why}");
                return;
            }
        }
    }
    let mut raw = Vec::new();
    let cost = median(|| {
        raw.clear();
        sources.iter_mut().for_each(|source| source.read(&mut raw));
    });
    println!("perf {} {cost:.2}", raw.len());
}
