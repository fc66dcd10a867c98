//! What is looked at before anything is measured. Everything is written down; what would make the figures wrong refuses the run, what makes them doubtful is a warning.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    plan::{Mode, Plan},
    tool::Tool,
};
use crate::energy::{Refused, probe::Probe};

/// More of the CPUs busy before we begin is somebody else's work.
const BUSY: (f64, f64) = (0.05, 0.30);
/// For how long it is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// Figures are doubtful for it.
    Warning,
    /// Figures would be wrong; the run is refused.
    Failed,
    /// Nobody can tell.
    Unavailable,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub check: String,
    /// How it stands.
    pub state: State,
    /// What was seen, and what to do.
    pub detail: String,
}

impl Check {
    /// One.
    #[must_use]
    pub fn new(check: &str, state: State, detail: impl Into<String>) -> Self {
        Self { check: check.to_owned(), state, detail: detail.into() }
    }
}

/// Those that refuse.
#[must_use]
pub fn refusals(checks: &[Check]) -> Vec<&Check> {
    checks.iter().filter(|check| check.state == State::Failed).collect()
}

/// CPUs that are there.
fn cpus() -> std::ops::Range<usize> {
    0..thread::available_parallelism().map_or(1, usize::from)
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The machine: frequencies, threads, clock, memory, power, who else is busy.
#[must_use]
pub fn machine() -> Vec<Check> {
    let mut all = vec![governor(), turbo(), smt(), load(), clock(), swap()];
    all.extend(battery());
    all
}

fn governor() -> Check {
    let governors: Vec<String> =
        cpus().filter_map(|cpu| text(&format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"))).collect();
    match governors.first() {
        None => {
            Check::new("governor", State::Unavailable, "no cpufreq here, as in most guests: frequencies are the host's")
        }
        Some(first) if governors.iter().any(|other| other != first) => Check::new(
            "governor",
            State::Warning,
            "CPUs have different governors; set one: cpupower frequency-set -g performance",
        ),
        Some(first) if first == "performance" => Check::new("governor", State::Ok, first.as_str()),
        Some(first) => Check::new(
            "governor",
            State::Warning,
            format!(
                "{first}: frequencies follow the load; for figures that repeat: cpupower frequency-set -g performance"
            ),
        ),
    }
}

fn turbo() -> Check {
    let intel = text("/sys/devices/system/cpu/intel_pstate/no_turbo").map(|off| off == "0");
    let other = text("/sys/devices/system/cpu/cpufreq/boost").map(|on| on == "1");
    match intel.or(other) {
        None => Check::new("turbo", State::Unavailable, "nobody says whether frequencies are boosted"),
        Some(false) => Check::new("turbo", State::Ok, "off"),
        Some(true) => Check::new("turbo", State::Warning, "on: power depends on temperature; repeats tell how much"),
    }
}

fn smt() -> Check {
    match text("/sys/devices/system/cpu/smt/active").as_deref() {
        Some("0") => Check::new("smt", State::Ok, "off"),
        Some("1") => Check::new("smt", State::Warning, "on: what two threads of one core use is shared by a weight"),
        _ => Check::new("smt", State::Unavailable, "nobody says"),
    }
}

/// Busy and all jiffies of the machine.
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
    thread::sleep(LOOK);
    let busy =
        before.zip(jiffies()).map(|((busy, all), (busy_now, all_now))| (busy_now - busy) / (all_now - all).max(1.0));
    match busy {
        None => Check::new("load", State::Unavailable, "/proc/stat cannot be read"),
        Some(busy) => {
            let state = if busy > BUSY.1 {
                State::Failed
            } else if busy > BUSY.0 {
                State::Warning
            } else {
                State::Ok
            };
            Check::new("load", state, format!("{:.0} % of the CPUs were busy before we began", busy * 100.0))
        }
    }
}

fn clock() -> Check {
    // SAFETY: all zero is a question that sets nothing.
    let mut asked: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: ours to be written.
    let state = unsafe { libc::adjtimex(&raw mut asked) };
    if state < 0 {
        return Check::new("clock", State::Unavailable, "the kernel does not say whether the clock is kept");
    }
    if asked.status & libc::STA_UNSYNC != 0 {
        return Check::new(
            "clock",
            State::Warning,
            "nobody keeps the clock; if it is set during a window, that repeat is lost",
        );
    }
    Check::new("clock", State::Ok, "kept")
}

fn swap() -> Check {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| -> Option<u64> {
        memory.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    match kib("SwapTotal:").zip(kib("SwapFree:")) {
        None => Check::new("swap", State::Unavailable, "/proc/meminfo does not say"),
        Some((all, free)) if all > free => Check::new(
            "swap",
            State::Warning,
            format!("{} MiB are swapped out: an encoder may wait for its memory", (all - free) / 1024),
        ),
        Some(_) => Check::new("swap", State::Ok, "nothing is swapped out"),
    }
}

fn battery() -> Option<Check> {
    let supplies: Vec<PathBuf> =
        fs::read_dir("/sys/class/power_supply").ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let says = |dir: &Path, file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default().trim().to_owned();
    let discharging = supplies.iter().any(|dir| says(dir, "type") == "Battery" && says(dir, "status") == "Discharging");
    discharging.then(|| Check::new("battery", State::Warning, "runs on a battery, which changes how power is managed"))
}

/// The probe: whether it is there, whether what it says is measured, and who else encodes.
#[must_use]
pub fn probe(probe: &Probe) -> Vec<Check> {
    let sources = match probe.sources() {
        Ok(sources) => sources,
        Err(why) => return vec![Check::new("energy", State::Failed, why.to_string())],
    };
    let usable = |name: &str| sources.iter().find(|source| source.source == name && source.state == "usable");
    let measured = ["perf", "powercap", "msr", "hwmon", "replay"].into_iter().find_map(usable);
    let energy = match (measured, usable("model")) {
        (Some(source), _) => Check::new("energy", State::Ok, format!("{}: {}", source.source, source.detail)),
        (None, Some(_)) => Check::new(
            "energy",
            State::Warning,
            "modelled from CPU time, not measured: no counter can be read here (wattcast-probe doctor says why)",
        ),
        (None, None) => {
            Check::new("energy", State::Failed, "the probe has no source of energy; wattcast-probe doctor says why")
        }
    };
    let cpu = match usable("cpu") {
        Some(source) => Check::new("cpu time", State::Ok, source.detail.clone()),
        None => Check::new("cpu time", State::Failed, "the probe does not know who ran: joules cannot be told apart"),
    };
    let broken = sources.iter().filter(|source| source.wanted && source.state != "usable");
    let broken =
        broken.map(|source| Check::new(&source.source, State::Warning, format!("{}: {}", source.state, source.detail)));
    let mut all = vec![energy, cpu];
    all.extend(broken.filter(|check| !["cpu", "energy"].contains(&&*check.check)));
    all.push(others(probe));
    all
}

fn others(probe: &Probe) -> Check {
    match probe.jobs() {
        Ok(jobs) => {
            let running = jobs.running();
            if running == 0 {
                Check::new("other encoders", State::Ok, "none")
            } else {
                Check::new(
                    "other encoders",
                    State::Warning,
                    format!("{running} run on this host; they share its power and its caches"),
                )
            }
        }
        Err(Refused::NotYet(_)) => Check::new("other encoders", State::Unavailable, "the probe is starting"),
        Err(why) => Check::new("other encoders", State::Unavailable, why.to_string()),
    }
}

/// What encodes and scores: encoders of all cells, filters for scores, and room for what is written.
#[must_use]
pub fn tools(plan: &Plan, ffmpeg: &Tool, scorer: Option<&Tool>, dir: &Path) -> Vec<Check> {
    let mut all = vec![Check::new("ffmpeg", State::Ok, format!("{} {}", ffmpeg.path.display(), ffmpeg.version))];
    let mut encoders: Vec<&str> = plan.cells.iter().map(|cell| &*cell.axes.encoder).collect();
    encoders.sort_unstable();
    encoders.dedup();
    let missing: Vec<String> = encoders.iter().filter_map(|encoder| ffmpeg.cannot(encoder)).collect();
    let state = match missing.len() {
        0 => State::Ok,
        some if some == encoders.len() => State::Failed,
        _ => State::Warning,
    };
    all.push(Check::new("encoders", state, if missing.is_empty() { encoders.join(", ") } else { missing.join("; ") }));
    if plan.quality {
        let has = |filter: &str| scorer.is_some_and(|tool| tool.filters.contains(filter));
        let absent: Vec<&str> =
            ["libvmaf", "psnr", "ssim", "xpsnr"].into_iter().filter(|filter| !has(filter)).collect();
        all.push(if absent.is_empty() {
            Check::new("quality", State::Ok, "libvmaf, psnr, ssim, xpsnr")
        } else {
            let name = scorer.map(|tool| tool.version.clone()).unwrap_or_default();
            let detail = format!(
                "ffmpeg {name} has no {}; those scores will say unavailable. --quality-ffmpeg names another",
                absent.join(", ")
            );
            Check::new("quality", State::Warning, detail)
        });
    }
    all.push(room(plan, dir));
    all
}

/// Bytes that raw clips and encoded files will take at most, against what is free.
fn room(plan: &Plan, dir: &Path) -> Check {
    let seconds = plan.protocol.duration.as_secs_f64();
    let mut clips: Vec<(u32, u32, u64)> = Vec::new();
    let (mut raw, mut files) = (0.0, 0.0);
    for cell in &plan.cells {
        let axes = &cell.axes;
        let pixels = f64::from(axes.width) * f64::from(axes.height) * 1.5 * axes.fps;
        let key = (axes.width, axes.height, axes.fps.to_bits());
        if !clips.contains(&key) {
            clips.push(key);
            raw += pixels * seconds.min(super::source::LONGEST);
        }
        if plan.mode == Mode::File {
            // One file a stream stays, one is being written; where nothing bounds the rate, a twentieth of the pictures is much.
            let rate = axes.rate.bits().map_or(pixels / 20.0, |bits| bits / 8.0);
            files += 2.0 * rate * seconds * f64::from(axes.streams);
        }
    }
    let needed = raw + files;
    match free(dir) {
        None => Check::new("disk", State::Unavailable, "nobody says how much is free"),
        Some(free) if free < needed => Check::new(
            "disk",
            State::Failed,
            format!("{:.0} MB are free in {}, and about {:.0} MB are needed", free / 1e6, dir.display(), needed / 1e6),
        ),
        Some(free) => Check::new(
            "disk",
            State::Ok,
            format!("{:.0} MB are free, about {:.0} MB are needed", free / 1e6, needed / 1e6),
        ),
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes, for a comparison and for people")]
fn free(dir: &Path) -> Option<f64> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zero is a valid one.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a text with its end, and ours to be written.
    let done = unsafe { libc::statvfs(path.as_ptr(), &raw mut found) };
    (done == 0).then_some(found.f_bavail as f64 * found.f_frsize as f64)
}

/// What the results say of the machine.
#[must_use]
pub fn facts() -> Value {
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
    let id = text("/etc/machine-id").filter(|id| !id.is_empty());
    json!({
        "machine_id_sha256": id.map(|id| super::plan::short_digest(id.as_bytes())),
        "cpu": {
            "model": of("model name"),
            "microcode": of("microcode"),
            "sockets": count("physical id").max(1),
            "threads": cpus().count(),
            "governor": text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            "smt": text("/sys/devices/system/cpu/smt/active").map(|active| active == "1"),
        },
        "kernel": text("/proc/sys/kernel/osrelease"),
        "virtualization": cpuinfo.contains(" hypervisor").then_some("guest"),
    })
}
