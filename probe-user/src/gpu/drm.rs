//! Engine time by process on Intel and AMD GPUs, from the fdinfo files of the kernel's drivers.
//!
//! `/proc/PID/fdinfo/FD` of a file below `/dev/dri` contains the time for which its client kept
//! each engine busy (Documentation/gpu/drm-usage-stats.rst; i915 from 5.19, amdgpu from 5.14, xe
//! from 6.11). Reading that of another user's process needs CAP_SYS_PTRACE.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    device::{GpuReading, GpuTelemetry, ProcessUsage},
    engines::{ENGINES, Engine, EngineTimes},
};
use crate::{
    energy::zone::Origin,
    host::availability::{Reason, Unavailable},
    host::gpu_id::{GpuId, Pci},
};

/// Interval of the scans of all processes. New jobs are scanned in every tick until they have
/// opened a GPU.
const SCAN_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum number of tracked clients.
const MAX_CLIENTS: usize = 1024;
/// Maximum size of a file: a client has about forty lines.
const MAX_FDINFO_BYTES: u64 = 64 << 10;
/// Integrated GPUs of Intel processors always have this address (Intel, datasheets, "Processor
/// Graphics": bus 0, device 2, function 0).
const INTEL_INTEGRATED: Pci = Pci { domain: 0, bus: 0, device: 2, function: 0 };

/// Values of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientInfo {
    /// `i915`, `xe` or `amdgpu`.
    pub driver: String,
    pub pci: Pci,
    /// Client id on that device; the same for every copy of the file descriptor.
    pub client: u64,
    /// Busy time of each engine type in nanoseconds, summed over its engines.
    pub busy_ns: EngineTimes,
    /// Busy and total cycles, where the driver counts cycles.
    pub cycles: [(u64, u64); ENGINES],
    /// Number of engines of each type.
    pub engines: [u32; ENGINES],
}

/// The engine type for a driver's engine name.
fn engine(name: &str) -> Option<Engine> {
    Some(match name {
        // Names of i915 and amdgpu, then of xe.
        "render" | "compute" | "gfx" | "rcs" | "ccs" => Engine::Sm,
        "copy" | "dma" | "bcs" => Engine::Copy,
        "video" | "vcs" => Engine::Video,
        "video-enhance" | "vecs" => Engine::VideoEnhance,
        "dec" | "vpe" => Engine::Decoder,
        "enc" | "enc_1" => Engine::Encoder,
        "jpeg" => Engine::Jpeg,
        _ => return None,
    })
}

/// Parses the fdinfo of a client; `None` if it is not a DRM client with engine times.
#[must_use]
pub fn parse(text: &str) -> Option<ClientInfo> {
    let (mut driver, mut pci, mut client) = (None, None, None);
    let (mut busy_ns, mut cycles, mut engines) = ([0u64; ENGINES], [(0u64, 0u64); ENGINES], [0u32; ENGINES]);
    let mut has_engines = false;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let Some(key) = key.strip_prefix("drm-") else { continue };
        let value = value.trim();
        let number = || value.split_ascii_whitespace().next()?.parse::<u64>().ok();
        match key {
            "driver" => driver = Some(value.chars().filter(char::is_ascii_graphic).take(32).collect::<String>()),
            "pdev" => pci = value.parse().ok(),
            "client-id" => client = number(),
            _ => {
                let of = |prefix: &str| engine(key.strip_prefix(prefix)?).map(Engine::index);
                // Several engines of a driver may have the same type here: their times add up,
                // their total cycles are the same.
                if let (Some(at), Some(count)) = (of("engine-capacity-"), number()) {
                    engines[at] = engines[at].saturating_add(u32::try_from(count).unwrap_or(0));
                } else if let (Some(at), Some(ns)) = (of("engine-"), number()) {
                    busy_ns[at] = busy_ns[at].saturating_add(ns);
                    has_engines = true;
                } else if let (Some(at), Some(passed)) = (of("total-cycles-"), number()) {
                    cycles[at].1 = cycles[at].1.max(passed);
                } else if let (Some(at), Some(busy)) = (of("cycles-"), number()) {
                    cycles[at].0 = cycles[at].0.saturating_add(busy);
                    has_engines = true;
                }
            }
        }
    }
    has_engines.then_some(())?;
    Some(ClientInfo { driver: driver?, pci: pci?, client: client?, busy_ns, cycles, engines })
}

/// A tracked client.
struct Client {
    pid: u32,
    file: PathBuf,
    last: ClientInfo,
    read_at: Instant,
}

/// GPUs with drivers of the kernel.
pub(super) struct Drm {
    procfs: PathBuf,
    /// Driver of each GPU.
    cards: BTreeMap<Pci, String>,
    clients: HashMap<(Pci, u64), Client>,
    /// Clients whose file was closed since the last scan; another copy of it may still be open.
    closed: HashMap<(Pci, u64), ClientInfo>,
    last_scan: Option<Instant>,
    last_poll: Option<Instant>,
    denied: bool,
    /// Clients over the limit, since the start.
    over_limit: u64,
    /// Number of engines of each type, as far as it is known.
    engine_counts: BTreeMap<Pci, [u32; ENGINES]>,
}

impl Drm {
    /// Finds the devices.
    pub(super) fn open(sysfs: &Path, procfs: &Path) -> Self {
        let mut cards = BTreeMap::new();
        let nodes = fs::read_dir(sysfs.join("class/drm")).into_iter().flatten().flatten();
        for node in nodes.filter(|node| node.file_name().to_string_lossy().starts_with("renderD")) {
            let device = node.path().join("device");
            let name = |path: io::Result<PathBuf>| Some(path.ok()?.file_name()?.to_str()?.to_owned());
            let driver = name(fs::read_link(device.join("driver")));
            let pci = name(fs::canonicalize(&device)).and_then(|name| name.parse().ok());
            if let (Some(driver), Some(pci)) = (driver, pci)
                && matches!(&*driver, "i915" | "xe" | "amdgpu")
            {
                cards.insert(pci, driver);
            }
        }
        Self {
            procfs: procfs.to_owned(),
            cards,
            clients: HashMap::new(),
            closed: HashMap::new(),
            last_scan: None,
            last_poll: None,
            denied: false,
            over_limit: 0,
            engine_counts: BTreeMap::new(),
        }
    }

    /// Whether there is no GPU.
    pub(super) fn is_empty(&self) -> bool {
        self.cards.is_empty()
    }

    /// State of the source.
    pub(super) fn state(&self) -> Result<(), Unavailable> {
        if self.cards.is_empty() {
            return Err(Unavailable::new(Reason::Absent, "no GPU of Intel or AMD with a render node"));
        }
        if self.denied {
            return Err(Unavailable::new(
                Reason::Denied,
                "cannot read open files of other processes: permission denied; grant CAP_SYS_PTRACE, or mount /proc without hidepid",
            ));
        }
        Ok(())
    }

    /// Description of the GPUs for `doctor` and the sources.
    pub(super) fn detail(&self) -> String {
        let all: Vec<_> = self.cards.iter().map(|(pci, driver)| format!("{} ({driver})", id(*pci, driver))).collect();
        format!("{}; engine time by process from the kernel", all.join(", "))
    }

    /// Reads every client once. `jobs` are processes that may have opened a GPU since the last
    /// poll.
    pub(super) fn poll(&mut self, jobs: &[u32], gpus: &mut Vec<GpuReading>) {
        if self.cards.is_empty() {
            return;
        }
        let now = Instant::now();
        let first = self.last_poll.is_none();
        if self.last_scan.is_none_or(|at| now.duration_since(at) >= SCAN_INTERVAL) {
            self.last_scan = Some(now);
            self.denied = false;
            let entries = fs::read_dir(&self.procfs).into_iter().flatten().flatten();
            let pids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
            pids.into_iter().for_each(|pid| self.add_clients(pid, now, first));
            self.closed.clear();
        } else {
            jobs.iter().for_each(|pid| self.add_clients(*pid, now, false));
        }

        let mut uses: BTreeMap<Pci, BTreeMap<u32, EngineTimes>> = BTreeMap::new();
        let closed = &mut self.closed;
        self.clients.retain(|key, client| {
            let Some(info) = read(&client.file).filter(|info| (info.pci, info.client) == *key) else {
                closed.insert(*key, client.last.clone());
                return false;
            };
            let pci = &key.0;
            let used = busy_since(&client.last, &info, now.saturating_duration_since(client.read_at));
            let sums = uses.entry(*pci).or_default().entry(client.pid).or_insert([0; ENGINES]);
            sums.iter_mut().zip(used).for_each(|(sum, ns)| *sum = sum.saturating_add(ns));
            let engine_counts = self.engine_counts.entry(*pci).or_insert([0; ENGINES]);
            for ((known, count), busy) in
                engine_counts.iter_mut().zip(info.engines).zip(info.busy_ns.iter().zip(info.cycles))
            {
                // A driver that reports no number has one engine of each type with a value.
                let reported = u32::from(*busy.0 > 0 || busy.1.1 > 0);
                *known = (*known).max(count).max(reported);
            }
            (client.last, client.read_at) = (info, now);
            true
        });
        let span = self.last_poll.replace(now).map(|before| now - before);
        for (pci, driver) in &self.cards {
            let by_pid = uses.remove(pci).unwrap_or_default();
            let mut telemetry = GpuTelemetry::default();
            if let (Some(span), Some(engine_counts)) =
                (span.filter(|span| !span.is_zero()), self.engine_counts.get(pci))
            {
                for engine in Engine::ALL {
                    let busy: u64 = by_pid.values().map(|times| times[engine.index()]).sum();
                    let count = engine_counts[engine.index()];
                    if count > 0 {
                        let max = span.as_secs_f64() * f64::from(count);
                        telemetry.engines[engine.index()] =
                            Some((Duration::from_nanos(busy).as_secs_f64() / max).min(1.0));
                    }
                }
            }
            let used = |(pid, times): (u32, EngineTimes)| ProcessUsage { pid, times, at_us: 0 };
            let uses: Vec<ProcessUsage> =
                by_pid.into_iter().map(used).filter(|used| used.times.iter().any(|ns| *ns > 0)).collect();
            gpus.push(GpuReading {
                id: id(*pci, driver),
                index: None,
                name: driver.clone(),
                origin: Origin::Drm,
                state: self.state(),
                zone: None,
                raw: None,
                mig: false,
                telemetry,
                sessions: Vec::new(),
                process_memory: Vec::new(),
                idle: uses.is_empty() && !self.denied,
                complete: true,
                counter_reset: false,
                uses,
                unavailable: BTreeMap::new(),
                dropped: [0, 0, self.over_limit],
            });
        }
    }

    /// Adds the DRM clients of a process. At the first poll, earlier usage is ignored, because its
    /// energy is not counted either. Later, a client's usage counts from its start, but at most
    /// since the last poll, and, where the driver counts cycles, from the next poll on.
    fn add_clients(&mut self, pid: u32, now: Instant, first: bool) {
        let process = self.procfs.join(pid.to_string());
        let files = match fs::read_dir(process.join("fd")) {
            Ok(files) => files,
            Err(error) => {
                self.denied |= error.kind() == io::ErrorKind::PermissionDenied;
                return;
            }
        };
        for file in files.flatten() {
            match fs::read_link(file.path()) {
                Ok(target) if target.starts_with("/dev/dri") => {}
                Ok(_) => continue,
                Err(error) => {
                    self.denied |= error.kind() == io::ErrorKind::PermissionDenied;
                    continue;
                }
            }
            let file = process.join("fdinfo").join(file.file_name());
            let Some(info) = read(&file).filter(|info| self.cards.contains_key(&info.pci)) else { continue };
            let key = (info.pci, info.client);
            if self.clients.len() >= MAX_CLIENTS && !self.clients.contains_key(&key) {
                self.over_limit += 1;
                continue;
            }
            let start = self.last_poll.unwrap_or(now);
            let closed = self.closed.get(&key).cloned();
            self.clients.entry(key).or_insert_with(|| {
                let last = match closed {
                    Some(closed) => closed,
                    None if first => info,
                    None => ClientInfo { busy_ns: [0; ENGINES], ..info },
                };
                Client { pid, file, last, read_at: start }
            });
        }
    }
}

fn id(pci: Pci, driver: &str) -> GpuId {
    if pci == INTEL_INTEGRATED && matches!(driver, "i915" | "xe") { GpuId::Integrated(pci) } else { GpuId::Card(pci) }
}

fn read(file: &Path) -> Option<ClientInfo> {
    use io::Read as _;
    let mut text = String::new();
    fs::File::open(file).ok()?.take(MAX_FDINFO_BYTES).read_to_string(&mut text).ok()?;
    parse(&text)
}

/// Busy time of a client between two readings, limited to the time that passed.
fn busy_since(before: &ClientInfo, now: &ClientInfo, span: Duration) -> EngineTimes {
    let span_ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    let mut used = [0; ENGINES];
    for (at, used) in used.iter_mut().enumerate() {
        let max = span_ns.saturating_mul(u64::from(now.engines[at].max(1)));
        let ns = now.busy_ns[at].saturating_sub(before.busy_ns[at]);
        let (busy, passed) = (
            now.cycles[at].0.saturating_sub(before.cycles[at].0),
            now.cycles[at].1.saturating_sub(before.cycles[at].1),
        );
        let by_cycles = u128::from(span_ns) * u128::from(busy) / u128::from(passed.max(1));
        *used = ns.saturating_add(u64::try_from(by_cycles).unwrap_or(u64::MAX)).min(max);
    }
    used
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const I915: &str = "pos:\t0\nflags:\t02100002\nmnt_id:\t26\nino:\t685\ndrm-driver:\ti915\ndrm-client-id:\t7\ndrm-pdev:\t0000:00:02.0\n\
        drm-total-system0:\t100 KiB\ndrm-engine-render:\t1000 ns\ndrm-engine-copy:\t0 ns\ndrm-engine-video:\t250000000 ns\n\
        drm-engine-capacity-video:\t2\ndrm-engine-video-enhance:\t5 ns\n";
    const XE: &str = "drm-driver: xe\ndrm-client-id: 3\ndrm-pdev: 0000:03:00.0\ndrm-cycles-vcs: 500\ndrm-total-cycles-vcs: 2000\n\
        drm-engine-capacity-vcs: 2\ndrm-cycles-rcs: 0\ndrm-total-cycles-rcs: 2000\n";

    #[test]
    fn parses_fdinfo_of_i915_and_xe() {
        let info = parse(I915).unwrap();
        assert_eq!(
            (&*info.driver, info.client, id(info.pci, &info.driver).to_string()),
            ("i915", 7, "integrated-0000:00:02.0".into())
        );
        assert_eq!(info.busy_ns[Engine::Video.index()], 250_000_000);
        assert_eq!((info.busy_ns[Engine::VideoEnhance.index()], info.engines[Engine::Video.index()]), (5, 2));
        let info = parse(XE).unwrap();
        assert_eq!(info.cycles[Engine::Video.index()], (500, 2000));
        assert_eq!(id(info.pci, &info.driver).to_string(), "0000:03:00.0");
        for text in [
            "",
            "pos:\t0\nflags:\t02\n",
            "drm-driver: i915\ndrm-client-id: 7\n",
            "drm-driver: simpledrm\ndrm-pdev: 0000:00:01.0\ndrm-client-id: 1",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn cycles_are_converted_to_time() {
        let now = parse(XE).unwrap();
        let before = ClientInfo { cycles: [(0, 0); ENGINES], ..now.clone() };
        assert_eq!(busy_since(&before, &now, Duration::from_secs(1))[Engine::Video.index()], 250_000_000);
    }

    fn tree() -> (tempfile::TempDir, Drm) {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("sys/devices/pci0000:00/0000:00:02.0");
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(dir.path().join("sys/bus/pci/drivers/i915")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("sys/bus/pci/drivers/i915"), device.join("driver")).unwrap();
        let node = dir.path().join("sys/class/drm/renderD128");
        fs::create_dir_all(&node).unwrap();
        std::os::unix::fs::symlink(&device, node.join("device")).unwrap();
        fs::create_dir_all(dir.path().join("proc")).unwrap();
        let drm = Drm::open(&dir.path().join("sys"), &dir.path().join("proc"));
        (dir, drm)
    }

    fn client(dir: &Path, pid: u32, fd: u32, client: u32, video_ns: u64) {
        let process = dir.join("proc").join(pid.to_string());
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::create_dir_all(process.join("fdinfo")).unwrap();
        let _ = std::os::unix::fs::symlink("/dev/dri/renderD128", process.join("fd").join(fd.to_string()));
        let text = I915
            .replace("drm-client-id:\t7", &format!("drm-client-id:\t{client}"))
            .replace("250000000", &video_ns.to_string());
        fs::write(process.join("fdinfo").join(fd.to_string()), text).unwrap();
    }

    fn poll(drm: &mut Drm, jobs: &[u32]) -> Vec<(u32, u64)> {
        let mut gpus = Vec::new();
        drm.poll(jobs, &mut gpus);
        gpus[0].uses.iter().map(|used| (used.pid, used.times[Engine::Video.index()])).collect()
    }

    #[test]
    fn client_with_two_files_counts_once_and_job_from_its_start() {
        let (dir, mut drm) = tree();
        client(dir.path(), 10, 3, 1, 5_000_000);
        client(dir.path(), 10, 4, 1, 5_000_000);
        assert_eq!(poll(&mut drm, &[]), [], "earlier usage is ignored");
        std::thread::sleep(Duration::from_millis(20));
        client(dir.path(), 10, 3, 1, 8_000_000);
        client(dir.path(), 10, 4, 1, 8_000_000);
        client(dir.path(), 11, 3, 2, 2_000_000);
        assert_eq!(poll(&mut drm, &[11]), [(10, 3_000_000), (11, 2_000_000)]);
        fs::remove_dir_all(dir.path().join("proc/10")).unwrap();
        assert_eq!(poll(&mut drm, &[11]), []);
        assert!(drm.state().is_ok());
    }

    #[test]
    fn client_over_limit_is_counted() {
        let (dir, mut drm) = tree();
        let max = u32::try_from(MAX_CLIENTS).unwrap();
        (0..=max).for_each(|number| client(dir.path(), 10, number, number, 0));
        let mut gpus = Vec::new();
        drm.poll(&[], &mut gpus);
        assert_eq!((drm.clients.len(), gpus[0].dropped), (MAX_CLIENTS, [0, 0, 1]));
    }

    #[test]
    fn absent_without_gpu() {
        let empty = tempfile::tempdir().unwrap();
        let drm = Drm::open(empty.path(), empty.path());
        assert_eq!(drm.state().unwrap_err().reason, Reason::Absent);
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text in "(drm-[a-z-]{0,20}: ?[0-9a-z:. ]{0,30}\n|.{0,40}\n){0,20}") {
            let _ = parse(&text);
        }
    }
}
