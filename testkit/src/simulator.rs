//! A powercap tree whose energy follows this machine's real load, for machines without RAPL.
//!
//! What it writes is a simulation: a file in the tree marks it, and the probe says so. Never publish a number from it.

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

/// RAPL updates about this often.
const UPDATE: Duration = Duration::from_millis(1);
/// Updates between two looks at the load.
const LOOK: u64 = 5;
/// 2^-14 J, the step of Intel's counters, in nanojoules.
const STEP_NJ: u128 = 61_035;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Sockets; `None` for what the machine says.
    pub packages: Option<u32>,
    /// Watts of a package at rest.
    pub idle: f64,
    /// Watts that a busy CPU adds, by package; the last goes for the rest.
    pub busy: Vec<f64>,
    /// Joules after which a counter wraps.
    pub range: f64,
    /// Whether there are zones beside the packages.
    pub parts: bool,
}

/// What else a package shows, in thousandths of it: core and uncore are inside, memory stands beside it.
const PARTS: [(&str, u128); 3] = [("core", 700), ("uncore", 100), ("dram", 150)];
/// Thousandths of all packages that the whole platform takes.
const PLATFORM: u128 = 1400;

impl Default for Spec {
    fn default() -> Self {
        Self { packages: None, idle: 8.0, busy: vec![12.0], range: 262_143.328_85, parts: false }
    }
}

/// The running simulation. Its counters stand when this is dropped.
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

/// A counter that shows so many thousandths of an energy.
struct Zone {
    file: File,
    milli: u128,
}

impl Zone {
    fn make(dir: &Path, name: &str, range_nj: u128, milli: u128) -> Result<Self> {
        write(&dir.join("name"), name)?;
        write(&dir.join("enabled"), "1")?;
        write(&dir.join("max_energy_range_uj"), &(range_nj / 1000).to_string())?;
        let energy = dir.join("energy_uj");
        write(&energy, &format!("{:<15}", 0))?;
        Ok(Self { file: fs::OpenOptions::new().write(true).open(&energy)?, milli })
    }

    fn show(&self, energy_nj: u128, range_nj: u128) -> Result<()> {
        // The hardware shows whole steps, and starts again at zero after the last.
        let shown = energy_nj * self.milli / 1000 / STEP_NJ * STEP_NJ % (range_nj + STEP_NJ) / 1000;
        // One write, always of one length, so that no reader finds an empty or a shorter file.
        self.file.write_all_at(format!("{shown:<15}\n").as_bytes(), 0)?;
        Ok(())
    }
}

impl Simulator {
    /// Writes the tree under `dir` and starts to move its counters.
    ///
    /// # Errors
    /// When it cannot be written, or the machine's load not be read.
    pub fn start(dir: &Path, spec: &Spec) -> Result<Self> {
        ensure!(
            !spec.busy.is_empty() && spec.idle >= 0.0 && spec.busy.iter().all(|watts| *watts >= 0.0),
            "watts below 0"
        );
        ensure!(spec.range >= 1.0, "a range below 1 J");
        let sysfs = dir.join("sys");
        let cpus: Vec<usize> = busy_ns(&stat()?, hertz()).into_iter().map(|(cpu, _)| cpu).collect();
        ensure!(!cpus.is_empty(), "/proc/stat lists no CPU");
        let place = |at: usize, cpu: usize| -> u32 {
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
            let package = place(at, *cpu);
            write(
                &sysfs.join(format!("devices/system/cpu/cpu{cpu}/topology/physical_package_id")),
                &package.to_string(),
            )?;
            match packages.iter_mut().find(|(known, _)| *known == package) {
                Some((_, cpus)) => cpus.push(*cpu),
                None => packages.push((package, vec![*cpu])),
            }
        }
        // The probe reads this as any other tree, and says by this file that nothing in it was measured.
        write(&sysfs.join("class/powercap/simulated-by-wattcast"), "cargo xtask sim-rapl")?;
        let range_nj = nano(spec.range);
        let mut running = Vec::new();
        for (at, (package, cpus)) in packages.into_iter().enumerate() {
            let zone = sysfs.join(format!("class/powercap/intel-rapl:{at}"));
            let mut zones = vec![Zone::make(&zone, &format!("package-{package}"), range_nj, 1000)?];
            if spec.parts {
                for (number, (name, milli)) in PARTS.iter().enumerate() {
                    let dir = sysfs.join(format!("class/powercap/intel-rapl:{at}:{number}"));
                    zones.push(Zone::make(&dir, name, range_nj, *milli)?);
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
                Some(Zone::make(&dir, "psys", range_nj, PLATFORM)?)
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

    /// What to give the probe as `--path.sysfs`.
    #[must_use]
    pub fn sysfs(&self) -> &Path {
        &self.sysfs
    }

    /// An error when it has ended by itself.
    ///
    /// # Errors
    /// When it has.
    pub fn alive(&self) -> Result<()> {
        match &self.thread {
            Some(thread) if !thread.is_finished() => Ok(()),
            _ => bail!("the simulation ended by itself: the tree cannot be written, or /proc/stat not be read"),
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
        // The kernel counts hundredths of a second; looking more often would only be load.
        if update.is_multiple_of(LOOK) {
            busy = busy_ns(&stat()?, hertz);
        }
        let ns = (now - at).as_nanos();
        at = now;
        for package in &mut packages {
            let ran = |all: &[(usize, u64)]| -> u64 {
                all.iter().filter(|(cpu, _)| package.cpus.contains(cpu)).map(|(_, ns)| *ns).sum()
            };
            let grown = u128::from(ran(&busy).saturating_sub(ran(&last)));
            package.energy_nj += (idle_nw * ns + package.busy_nw * grown) / 1_000_000_000;
            for zone in &package.zones {
                zone.show(package.energy_nj, range_nj)?;
            }
        }
        if let Some(platform) = platform {
            platform.show(packages.iter().map(|package| package.energy_nj).sum(), range_nj)?;
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
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    fs::write(path, format!("{text}\n")).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_of_two_sockets_counts_at_least_its_idle_power_and_wraps() {
        let dir = tempfile::tempdir().unwrap();
        // 400 W of a range of 20 J: it comes round twenty times a second.
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
