//! Preflight checks. Conditions that make results wrong fail; conditions that make them doubtful
//! are warnings. The results contain all checks.

#![allow(unsafe_code)]

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    codec::needs_newer_ffmpeg,
    plan::{ALL_SAMPLES_BYTES, Mode, Plan, SAMPLE_BYTES, SAMPLE_SECONDS, short_digest},
    source::MAX_CLIP_SECONDS,
    tool::Tool,
};
use results::energy::{SourceError, probe::Probe};

/// CPU utilisation above which the load check warns and fails.
const BUSY: (f64, f64) = (0.05, 0.30);
/// Length of the load measurement.
const LOAD_INTERVAL: Duration = Duration::from_secs(1);

/// Result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckState {
    /// As expected.
    Ok,
    /// Results are doubtful.
    Warning,
    /// Results would be wrong; the run is refused.
    Failed,
    /// Unknown.
    Unavailable,
}

/// One preflight check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Name of the check.
    pub check: String,
    /// Its result.
    pub state: CheckState,
    /// What was found, and what to do.
    pub detail: String,
}

impl Check {
    /// Creates a check with its result.
    #[must_use]
    pub fn new(check: &str, state: CheckState, detail: impl Into<String>) -> Self {
        Self { check: check.to_owned(), state, detail: detail.into() }
    }
}

/// The checks that failed.
#[must_use]
pub fn failed(checks: &[Check]) -> Vec<&Check> {
    checks.iter().filter(|check| check.state == CheckState::Failed).collect()
}

/// Numbers of the available CPUs.
fn cpus() -> std::ops::Range<usize> {
    0..thread::available_parallelism().map_or(1, usize::from)
}

fn read_trimmed(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Checks the machine: frequencies, SMT, load, clock, memory and power supply.
#[must_use]
pub fn machine() -> Vec<Check> {
    let mut all = vec![governor(), turbo(), smt(), load(), clock(), swap()];
    all.extend(battery());
    all
}

fn governor() -> Check {
    let governors: Vec<String> = cpus()
        .filter_map(|cpu| read_trimmed(&format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor")))
        .collect();
    match governors.first() {
        None => Check::new(
            "governor",
            CheckState::Unavailable,
            "no cpufreq, as in most guests; the host controls frequencies",
        ),
        Some(first) if governors.iter().any(|other| other != first) => Check::new(
            "governor",
            CheckState::Warning,
            "CPUs have different governors; set the same: cpupower frequency-set -g performance",
        ),
        Some(first) if first == "performance" => Check::new("governor", CheckState::Ok, first.as_str()),
        Some(first) => Check::new(
            "governor",
            CheckState::Warning,
            format!(
                "{first}: frequencies follow the load; for repeatable results: cpupower frequency-set -g performance"
            ),
        ),
    }
}

fn turbo() -> Check {
    let intel = read_trimmed("/sys/devices/system/cpu/intel_pstate/no_turbo").map(|off| off == "0");
    let other = read_trimmed("/sys/devices/system/cpu/cpufreq/boost").map(|on| on == "1");
    match intel.or(other) {
        None => Check::new("turbo", CheckState::Unavailable, "the kernel does not report whether boost is on"),
        Some(false) => Check::new("turbo", CheckState::Ok, "off"),
        Some(true) => {
            Check::new("turbo", CheckState::Warning, "on: power depends on temperature and varies between repeats")
        }
    }
}

fn smt() -> Check {
    match read_trimmed("/sys/devices/system/cpu/smt/active").as_deref() {
        Some("0") => Check::new("smt", CheckState::Ok, "off"),
        Some("1") => {
            Check::new("smt", CheckState::Warning, "on: energy of a core shared by two threads is split by weight")
        }
        _ => Check::new("smt", CheckState::Unavailable, "the kernel does not report SMT"),
    }
}

/// Busy and total jiffies of the machine.
fn jiffies() -> Option<(f64, f64)> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let words: Vec<f64> =
        stat.lines().next()?.split_whitespace().skip(1).take(8).filter_map(|word| word.parse().ok()).collect();
    let all: f64 = words.iter().sum();
    // user nice system idle iowait irq softirq steal
    Some((all - words.get(3)? - words.get(4)?, all))
}

fn load() -> Check {
    let before = jiffies();
    thread::sleep(LOAD_INTERVAL);
    let busy =
        before.zip(jiffies()).map(|((busy, all), (busy_now, all_now))| (busy_now - busy) / (all_now - all).max(1.0));
    match busy {
        None => Check::new("load", CheckState::Unavailable, "/proc/stat cannot be read"),
        Some(busy) => {
            let state = if busy > BUSY.1 {
                CheckState::Failed
            } else if busy > BUSY.0 {
                CheckState::Warning
            } else {
                CheckState::Ok
            };
            Check::new("load", state, format!("{:.0} % of the CPU time was used before the run", busy * 100.0))
        }
    }
}

fn clock() -> Check {
    // SAFETY: an all-zero timex is valid; zero modes change nothing.
    let mut time: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `time` is valid for writes.
    let state = unsafe { libc::adjtimex(&raw mut time) };
    if state < 0 {
        return Check::new(
            "clock",
            CheckState::Unavailable,
            "the kernel does not report whether the clock is synchronised",
        );
    }
    if time.status & libc::STA_UNSYNC != 0 {
        return Check::new(
            "clock",
            CheckState::Warning,
            "not synchronised; if the clock is set during a window, that repeat is lost",
        );
    }
    Check::new("clock", CheckState::Ok, "synchronised")
}

fn swap() -> Check {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| -> Option<u64> {
        memory.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    match kib("SwapTotal:").zip(kib("SwapFree:")) {
        None => Check::new("swap", CheckState::Unavailable, "/proc/meminfo does not report swap"),
        Some((all, free)) if all > free => Check::new(
            "swap",
            CheckState::Warning,
            format!("{} MiB are swapped out: an encoder may wait for memory", (all - free) / 1024),
        ),
        Some(_) => Check::new("swap", CheckState::Ok, "no memory is swapped out"),
    }
}

fn battery() -> Option<Check> {
    let supplies: Vec<PathBuf> =
        fs::read_dir("/sys/class/power_supply").ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let read = |dir: &Path, file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default().trim().to_owned();
    let discharging = supplies.iter().any(|dir| read(dir, "type") == "Battery" && read(dir, "status") == "Discharging");
    discharging.then(|| Check::new("battery", CheckState::Warning, "on battery, which changes power management"))
}

/// Checks the probe: whether it is available, whether energy is measured, and whether other
/// encoders run.
#[must_use]
pub fn probe(probe: &Probe) -> Vec<Check> {
    let sources = match probe.sources() {
        Ok(sources) => sources,
        Err(why) => return vec![Check::new("energy", CheckState::Failed, why.to_string())],
    };
    let usable = |name: &str| sources.iter().find(|source| source.source == name && source.state == "usable");
    let measured = ["perf", "powercap", "msr", "hwmon", "host", "replay"].into_iter().find_map(usable);
    let energy = match (measured, usable("model")) {
        (Some(source), _) => match &source.banner {
            Some(banner) => Check::new("energy", CheckState::Warning, format!("{}: {banner}", source.source)),
            None => Check::new("energy", CheckState::Ok, format!("{}: {}", source.source, source.detail)),
        },
        (None, Some(_)) => Check::new(
            "energy",
            CheckState::Warning,
            "modelled from CPU time: no energy counter can be read (run wattcast-probe doctor for the reason)",
        ),
        (None, None) => Check::new(
            "energy",
            CheckState::Failed,
            "the probe has no energy source; run wattcast-probe doctor for the reason",
        ),
    };
    let cpu = match usable("cpu") {
        Some(source) => Check::new("cpu time", CheckState::Ok, source.detail.clone()),
        None => Check::new("cpu time", CheckState::Failed, "the probe has no CPU times, so it cannot attribute energy"),
    };
    let broken = sources.iter().filter(|source| source.wanted && source.state != "usable");
    let broken = broken
        .map(|source| Check::new(&source.source, CheckState::Warning, format!("{}: {}", source.state, source.detail)));
    let mut all = vec![energy, cpu];
    all.extend(broken.filter(|check| !["cpu", "energy"].contains(&&*check.check)));
    let fake = usable("nvml").and_then(|source| source.banner.as_deref());
    all.extend(fake.map(|banner| Check::new("GPU energy", CheckState::Warning, banner)));
    all.push(other_encoders(probe));
    all
}

fn other_encoders(probe: &Probe) -> Check {
    match probe.jobs() {
        Ok(jobs) => {
            let running = jobs.running();
            if running == 0 {
                Check::new("other encoders", CheckState::Ok, "none")
            } else {
                Check::new(
                    "other encoders",
                    CheckState::Warning,
                    format!("{running} run on this host; they share power and caches with the measured one"),
                )
            }
        }
        Err(SourceError::NotYet(_)) => Check::new("other encoders", CheckState::Unavailable, "the probe is starting"),
        Err(why) => Check::new("other encoders", CheckState::Unavailable, why.to_string()),
    }
}

/// Checks ffmpeg's encoders and filters, and the disk space.
#[must_use]
pub fn tools(plan: &Plan, ffmpeg: &Tool, scorer: Option<&Tool>, dir: &Path) -> Vec<Check> {
    let mut all = vec![Check::new("ffmpeg", CheckState::Ok, format!("{} {}", ffmpeg.path.display(), ffmpeg.version))];
    let mut encoders: Vec<&str> =
        plan.configurations.iter().map(|configuration| &*configuration.axes.encoder).collect();
    encoders.sort_unstable();
    encoders.dedup();
    let missing =
        |encoder: &&str| ffmpeg.missing_encoder(encoder).or_else(|| needs_newer_ffmpeg(encoder, plan, &ffmpeg.version));
    let missing: Vec<String> = encoders.iter().filter_map(missing).collect();
    let state = match missing.len() {
        0 => CheckState::Ok,
        some if some == encoders.len() => CheckState::Failed,
        _ => CheckState::Warning,
    };
    all.push(Check::new("encoders", state, if missing.is_empty() { encoders.join(", ") } else { missing.join("; ") }));
    if plan.quality {
        let has = |filter: &str| scorer.is_some_and(|tool| tool.filters.contains(filter));
        let absent: Vec<&str> =
            ["libvmaf", "psnr", "ssim", "xpsnr"].into_iter().filter(|filter| !has(filter)).collect();
        all.push(if absent.is_empty() {
            Check::new("quality", CheckState::Ok, "libvmaf, psnr, ssim, xpsnr")
        } else {
            let name = scorer.map(|tool| tool.version.clone()).unwrap_or_default();
            let detail = format!(
                "ffmpeg {name} has no {}; these scores will be unavailable. Set another ffmpeg with --quality-ffmpeg",
                absent.join(", ")
            );
            Check::new("quality", CheckState::Warning, detail)
        });
    }
    all.push(disk_space(plan, dir));
    all
}

/// Compares the free disk space with the size of clips and output files.
fn disk_space(plan: &Plan, dir: &Path) -> Check {
    let seconds = plan.protocol.duration.as_secs_f64();
    let mut clips: Vec<(u32, u32, u64)> = Vec::new();
    let (mut raw, mut files, mut samples, mut pieces) = (0.0, 0.0, 0.0_f64, 0.0_f64);
    for configuration in &plan.configurations {
        let axes = &configuration.axes;
        let pixels = f64::from(axes.width) * f64::from(axes.height) * 1.5 * axes.fps;
        let key = (axes.width, axes.height, axes.fps.to_bits());
        if !clips.contains(&key) {
            clips.push(key);
            raw += pixels * seconds.min(MAX_CLIP_SECONDS);
        }
        // Without a target rate, a twentieth of the raw size is ample.
        let rate = axes.rate.bits().map_or(pixels / 20.0, |bits| bits / 8.0);
        match plan.mode {
            // Each stream has a kept file and one being written.
            Mode::File => files += 2.0 * rate * seconds * f64::from(axes.streams),
            // Each repeat has a sample of its first stream, and two pieces of a second are compared
            // at a time.
            Mode::Rtmp if plan.quality => {
                let sample = (2.0 * rate * f64::from(SAMPLE_SECONDS)).min(f64::from(SAMPLE_BYTES));
                samples += sample * f64::from(plan.protocol.repeats);
                pieces = pieces.max(2.0 * pixels);
            }
            Mode::Null | Mode::Rtmp => {}
        }
    }
    let mut more = 0.0;
    if let Some(search) = &plan.energy_search {
        // There is one configuration for each candidate, at the middle of its rates.
        let each = files / 2.0 / count(plan.configurations.len().max(1));
        let encodes = search.estimate();
        files = each * (count(encodes.expected) + 1.0);
        more = each * (count(encodes.most) + 1.0) - files;
    }
    let needed = raw + files + samples.min(f64::from(ALL_SAMPLES_BYTES)) + pieces;
    space_check(free_bytes(dir), needed, more, dir)
}

/// Compares the free space in bytes with what is needed, and with what a search may need in
/// addition.
fn space_check(free: Option<f64>, needed: f64, more: f64, dir: &Path) -> Check {
    let mb = |bytes: f64| format!("{:.0} MB", bytes / 1e6);
    let Some(free) = free else {
        return Check::new("disk", CheckState::Unavailable, "the file system does not report free space");
    };
    let is_free = format!("{} are free in {}", mb(free), dir.display());
    if free < needed {
        return Check::new("disk", CheckState::Failed, format!("{is_free}, and about {} are needed", mb(needed)));
    }
    if free < needed + more {
        let most = mb(needed + more);
        let why = format!("{is_free}; about {} are needed, and up to {most} if many candidates are close", mb(needed));
        return Check::new("disk", CheckState::Warning, why);
    }
    Check::new("disk", CheckState::Ok, format!("{} are free, about {} are needed", mb(free), mb(needed)))
}

/// Converts a count of encodes, which is small.
fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "bytes, for a comparison and a message")]
fn free_bytes(dir: &Path) -> Option<f64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail as f64 * stat.f_frsize as f64)
}

/// Facts about the machine, for the results.
#[must_use]
pub fn machine_facts() -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let count = |name: &str| {
        let mut all: Vec<&str> = cpuinfo.lines().filter(|line| line.starts_with(name)).collect();
        all.sort_unstable();
        all.dedup();
        all.len()
    };
    let id = read_trimmed("/etc/machine-id").filter(|id| !id.is_empty());
    json!({
        "machine_id_sha256": id.map(|id| short_digest(id.as_bytes())),
        "cpu": {
            "model": of("model name"),
            "microcode": of("microcode"),
            "sockets": count("physical id").max(1),
            "threads": cpus().count(),
            "governor": read_trimmed("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            "smt": read_trimmed("/sys/devices/system/cpu/smt/active").map(|active| active == "1"),
        },
        "kernel": read_trimmed("/proc/sys/kernel/osrelease"),
        "virtualization": cpuinfo.contains(" hypervisor").then_some("guest"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A search keeps the files of all its encodes, and its check counted one for each candidate.
    #[test]
    fn disk_space_of_a_search_is_that_of_its_encodes() {
        let dir = Path::new("/results");
        let state = |free: Option<f64>| space_check(free, 10e6, 90e6, dir).state;
        assert_eq!(state(Some(9e6)), CheckState::Failed);
        assert_eq!(state(Some(50e6)), CheckState::Warning);
        assert_eq!(state(Some(101e6)), CheckState::Ok);
        assert_eq!(state(None), CheckState::Unavailable);
        let detail = space_check(Some(50e6), 10e6, 90e6, dir).detail;
        assert!(detail.starts_with("50 MB are free in /results; about 10 MB are needed, and up to 100 MB"), "{detail}");
        assert_eq!(count(3), 3.0);
    }
}
