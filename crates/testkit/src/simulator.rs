//! A simulated powercap tree whose energy follows the load of this machine, for machines without
//! RAPL.
//!
//! A file in the tree marks the simulation, and the probe reports it. Do not publish its numbers.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Update interval of RAPL.
const UPDATE: Duration = Duration::from_millis(1);
/// Updates per reading of the load.
const UPDATES_PER_READING: u64 = 5;
/// 2^-14 J, the resolution of Intel's counters, in nanojoules.
const STEP_NJ: u128 = 61_035;

/// The file below `sys` that marks the tree: by it the probe reports that nothing is measured.
pub const MARK: &str = "class/powercap/simulated-by-wattcast";

/// Parameters of the simulation.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Number of sockets; `None` for that of the machine.
    pub packages: Option<u32>,
    /// Idle power of a package in watts.
    pub idle: f64,
    /// Additional power per busy CPU in watts, by package; the last applies to the rest.
    pub busy: Vec<f64>,
    /// Joules after which a counter wraps.
    pub range: f64,
    /// True to simulate further zones: core, uncore, dram and psys.
    pub parts: bool,
}

/// Further zones of a package, in thousandths of its energy: core and uncore are parts of it, dram
/// is separate.
const PARTS: [(&str, u128); 3] = [("core", 700), ("uncore", 100), ("dram", 150)];
/// Energy of the platform in thousandths of that of all packages.
const PLATFORM: u128 = 1400;

impl Default for Spec {
    fn default() -> Self {
        Self { packages: None, idle: 8.0, busy: vec![12.0], range: 262_143.328_85, parts: false }
    }
}

/// A running simulation, which stops when this is dropped.
pub struct Simulator {
    sysfs: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

struct Package {
    zones: Vec<Zone>,
    cpus: Vec<usize>,
    busy_nw: u128,
    energy_nj: u128,
}

/// A counter of `milli` thousandths of an energy.
struct Zone {
    file: File,
    milli: u128,
}

impl Zone {
    fn create(dir: &Path, name: &str, range_nj: u128, milli: u128) -> Result<Self> {
        write(&dir.join("name"), name)?;
        write(&dir.join("enabled"), "1")?;
        write(&dir.join("max_energy_range_uj"), &(range_nj / 1000).to_string())?;
        let energy = dir.join("energy_uj");
        write(&energy, &format!("{:<15}", 0))?;
        Ok(Self { file: fs::OpenOptions::new().write(true).open(&energy)?, milli })
    }

    fn write(&self, energy_nj: u128, range_nj: u128) -> Result<()> {
        // The hardware counts whole steps, and wraps to zero after the last.
        let microjoules = energy_nj * self.milli / 1000 / STEP_NJ * STEP_NJ % (range_nj + STEP_NJ) / 1000;
        // One write of constant length, so that no reader sees an empty or partial file.
        self.file.write_all_at(format!("{microjoules:<15}\n").as_bytes(), 0)?;
        Ok(())
    }
}

impl Simulator {
    /// Writes the tree to `dir` and starts to update its counters.
    ///
    /// # Errors
    /// When the tree cannot be written, or the load of the machine cannot be read.
    pub fn start(dir: &Path, spec: &Spec) -> Result<Self> {
        ensure!(
            !spec.busy.is_empty() && spec.idle >= 0.0 && spec.busy.iter().all(|watts| *watts >= 0.0),
            "power must not be negative"
        );
        ensure!(spec.range >= 1.0, "the range must be at least 1 J");
        let sysfs = dir.join("sys");
        let cpus: Vec<usize> = busy_ns(&stat()?, hertz()).into_iter().map(|(cpu, _)| cpu).collect();
        ensure!(!cpus.is_empty(), "/proc/stat lists no CPU");
        let package_of = |at: usize, cpu: usize| -> u32 {
            match spec.packages {
                Some(packages) => u32::try_from(at * packages.max(1) as usize / cpus.len()).unwrap_or(0),
                None => fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id"))
                    .ok()
                    .and_then(|text| text.trim().parse().ok())
                    .unwrap_or(0),
            }
        };
        let mut packages: Vec<(u32, Vec<usize>)> = Vec::new();
        for (at, cpu) in cpus.iter().enumerate() {
            let package = package_of(at, *cpu);
            write(
                &sysfs.join(format!("devices/system/cpu/cpu{cpu}/topology/physical_package_id")),
                &package.to_string(),
            )?;
            match packages.iter_mut().find(|(known, _)| *known == package) {
                Some((_, cpus)) => cpus.push(*cpu),
                None => packages.push((package, vec![*cpu])),
            }
        }
        write(&sysfs.join(MARK), "cargo xtask sim-rapl")?;
        let range_nj = nano(spec.range);
        let mut running = Vec::new();
        for (at, (package, cpus)) in packages.into_iter().enumerate() {
            let zone = sysfs.join(format!("class/powercap/intel-rapl:{at}"));
            let mut zones = vec![Zone::create(&zone, &format!("package-{package}"), range_nj, 1000)?];
            if spec.parts {
                for (number, (name, milli)) in PARTS.iter().enumerate() {
                    let dir = sysfs.join(format!("class/powercap/intel-rapl:{at}:{number}"));
                    zones.push(Zone::create(&dir, name, range_nj, *milli)?);
                }
            }
            let busy = spec.busy.get(at).or(spec.busy.last()).copied().unwrap_or(0.0);
            let limit = (spec.idle + busy * cpus.len() as f64) * 2.0 + 10.0;
            write(&zone.join("constraint_0_power_limit_uw"), &(nano(limit) / 1000).to_string())?;
            running.push(Package { zones, cpus, busy_nw: nano(busy), energy_nj: 0 });
        }
        let platform = match spec.parts {
            true => {
                let dir = sysfs.join(format!("class/powercap/intel-rapl:{}", running.len()));
                Some(Zone::create(&dir, "psys", range_nj, PLATFORM)?)
            }
            false => None,
        };
        let (stop, idle_nw) = (Arc::new(AtomicBool::new(false)), nano(spec.idle));
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name("sim-rapl".into())
            .spawn(move || drive(running, platform.as_ref(), idle_nw, range_nj, &stopped))?;
        Ok(Self { sysfs, stop, thread: Some(thread) })
    }

    /// The value of the probe's `--path.sysfs`.
    #[must_use]
    pub fn sysfs(&self) -> &Path {
        &self.sysfs
    }

    /// Checks that the simulation runs.
    ///
    /// # Errors
    /// When it has ended.
    pub fn alive(&self) -> Result<()> {
        match &self.thread {
            Some(thread) if !thread.is_finished() => Ok(()),
            _ => bail!("the simulation ended: the tree cannot be written, or /proc/stat cannot be read"),
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn drive(
    mut packages: Vec<Package>,
    platform: Option<&Zone>,
    idle_nw: u128,
    range_nj: u128,
    stop: &AtomicBool,
) -> Result<()> {
    let hertz = hertz();
    let mut last = busy_ns(&stat()?, hertz);
    let mut busy = last.clone();
    let mut at = Instant::now();
    for update in 1u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        thread::sleep(UPDATE);
        let now = Instant::now();
        // The kernel counts hundredths of a second; more readings would only add load.
        if update.is_multiple_of(UPDATES_PER_READING) {
            busy = busy_ns(&stat()?, hertz);
        }
        let ns = (now - at).as_nanos();
        at = now;
        for package in &mut packages {
            let ran = |all: &[(usize, u64)]| -> u64 {
                all.iter().filter(|(cpu, _)| package.cpus.contains(cpu)).map(|(_, ns)| *ns).sum()
            };
            let busy_ns = u128::from(ran(&busy).saturating_sub(ran(&last)));
            package.energy_nj += (idle_nw * ns + package.busy_nw * busy_ns) / 1_000_000_000;
            for zone in &package.zones {
                zone.write(package.energy_nj, range_nj)?;
            }
        }
        if let Some(platform) = platform {
            platform.write(packages.iter().map(|package| package.energy_nj).sum(), range_nj)?;
        }
        last.clone_from(&busy);
    }
    Ok(())
}

fn stat() -> Result<String> {
    let mut text = String::new();
    File::open("/proc/stat").and_then(|mut file| file.read_to_string(&mut text)).context("cannot read /proc/stat")?;
    Ok(text)
}

fn hertz() -> u64 {
    // SAFETY: sysconf takes a number and returns one.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|hertz| *hertz > 0).unwrap_or(100)
}

/// Busy nanoseconds of each CPU since boot: user, nice, system, irq, softirq.
fn busy_ns(stat: &str, hertz: u64) -> Vec<(usize, u64)> {
    let line = |line: &str| -> Option<(usize, u64)> {
        let (cpu, rest) = line.strip_prefix("cpu")?.split_once(' ')?;
        let fields: Vec<u64> = rest.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
        let ticks: u64 = [0, 1, 2, 5, 6].iter().filter_map(|at| fields.get(*at)).sum();
        Some((cpu.parse().ok()?, ticks * (1_000_000_000 / hertz)))
    };
    stat.lines().filter_map(line).collect()
}

fn nano(value: f64) -> u128 {
    (value * 1e9).round() as u128
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    fs::write(path, format!("{text}\n")).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_two_sockets_increase_and_wrap() {
        let dir = tempfile::tempdir().unwrap();
        // 400 W with a range of 20 J wrap 20 times per second.
        let spec = Spec { packages: Some(2), idle: 400.0, busy: vec![3.0, 1.0], range: 20.0, parts: false };
        let simulator = Simulator::start(dir.path(), &spec).unwrap();
        let energy = || -> u64 {
            let text = fs::read_to_string(simulator.sysfs().join("class/powercap/intel-rapl:0/energy_uj")).unwrap();
            text.trim().parse().unwrap()
        };
        let (mut last, mut wraps) = (energy(), 0);
        let end = Instant::now() + Duration::from_secs(20);
        while wraps < 3 && Instant::now() < end {
            let now = energy();
            assert!(now <= 20_000_000, "{now}");
            wraps += u32::from(now < last);
            last = now;
            thread::sleep(Duration::from_millis(2));
        }
        assert!(wraps >= 3);
        simulator.alive().unwrap();
    }
}
