//! Intel's and AMD's GPUs: engine time by process from the fdinfo files of the kernel's drivers,
//! and the energy of their boards.
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
    board_energy::{BoardEnergy, counts_energy, has_northbridge},
    device::{GpuReading, GpuTelemetry, ProcessUsage},
    engines::{ENGINES, Engine, EngineTimes},
};
use crate::{
    energy::{processor::Processor, zone::Origin},
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
/// Graphics": bus 0, device 2, function 0). In a virtual machine a board may have it too.
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

/// A GPU; it is kept while the probe runs.
struct Card {
    driver: String,
    id: GpuId,
    /// `None` for an integrated GPU, whose energy is in the counter of its package.
    energy: Option<BoardEnergy>,
    /// The last reading of the energy.
    raw: Option<Result<u64, String>>,
    /// False after the driver was removed, until it is back.
    listed: bool,
}

impl Card {
    fn open(pci: Pci, driver: String, device: &Path, procfs: &Path) -> Self {
        let is_integrated = match &*driver {
            "amdgpu" => is_apu(device, procfs),
            _ => pci == INTEL_INTEGRATED && !counts_energy(device, &driver),
        };
        let id = if is_integrated { GpuId::Integrated(pci) } else { GpuId::Card(pci) };
        let energy = matches!(id, GpuId::Card(_)).then(|| BoardEnergy::open(device, &driver));
        Self { driver, id, energy, raw: None, listed: true }
    }

    fn state(&self) -> Result<(), Unavailable> {
        if self.listed {
            return Ok(());
        }
        let why = format!(
            "{}: {} does not list the GPU any longer; see dmesg. Its counters keep their values, and continue when it is back",
            self.id, self.driver
        );
        Err(Unavailable::new(Reason::Broken, why))
    }

    /// Driver and kind of energy, for people.
    fn detail(&self) -> String {
        match self.energy.as_ref().map(|energy| (energy.kind(), energy.problem())) {
            None => format!("{} ({}, energy in that of its package)", self.id, self.driver),
            Some((kind, None)) => format!("{} ({}, {kind})", self.id, self.driver),
            Some((kind, Some(why))) => format!("{} ({}, {kind}: {why})", self.id, self.driver),
        }
    }
}

/// GPUs with drivers of the kernel.
pub(super) struct Drm {
    sysfs: PathBuf,
    procfs: PathBuf,
    cards: BTreeMap<Pci, Card>,
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
        let mut this = Self {
            sysfs: sysfs.to_owned(),
            procfs: procfs.to_owned(),
            cards: BTreeMap::new(),
            clients: HashMap::new(),
            closed: HashMap::new(),
            last_scan: None,
            last_poll: None,
            denied: false,
            over_limit: 0,
            engine_counts: BTreeMap::new(),
        };
        this.refresh_cards();
        this
    }

    /// Adds GPUs that appeared, and notes those whose driver is no longer there.
    fn refresh_cards(&mut self) {
        let mut found = listed(&self.sysfs);
        for (pci, card) in &mut self.cards {
            card.listed = found.remove(pci).is_some_and(|(driver, _)| driver == card.driver);
        }
        for (pci, (driver, device)) in found {
            self.cards.insert(pci, Card::open(pci, driver, &device, &self.procfs));
        }
    }

    /// Reads the energy of every board, before the longer readings of a poll.
    pub(super) fn read_energy(&mut self) {
        let now = Instant::now();
        for card in self.cards.values_mut() {
            card.raw = card.energy.as_mut().and_then(|energy| energy.read(now));
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
        self.cards.values().try_for_each(Card::state)
    }

    /// Description of the GPUs for `doctor` and the sources.
    pub(super) fn detail(&self) -> String {
        let all: Vec<_> = self.cards.values().map(Card::detail).collect();
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
            self.refresh_cards();
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
        let (denied, over_limit) = (self.denied.then(|| self.state()), self.over_limit);
        for (pci, card) in &mut self.cards {
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
            let used = |(pid, times)| ProcessUsage { pid, shared_with: Vec::new(), times, at_us: 0 };
            let uses: Vec<ProcessUsage> =
                by_pid.into_iter().map(used).filter(|used| used.times.iter().any(|ns| *ns > 0)).collect();
            let problem = card.energy.as_ref().and_then(BoardEnergy::problem);
            let unavailable = problem.map(|why| ("energy", why.reason)).into_iter().collect();
            gpus.push(GpuReading {
                id: card.id,
                index: None,
                name: card.driver.clone(),
                origin: Origin::Drm,
                state: denied.clone().unwrap_or_else(|| card.state()),
                zone: card.energy.as_ref().and_then(|energy| energy.zone(card.id)),
                raw: card.raw.take(),
                mig: false,
                telemetry,
                sessions: Vec::new(),
                process_memory: Vec::new(),
                idle: uses.is_empty() && denied.is_none(),
                complete: true,
                counter_reset: card.energy.as_mut().is_some_and(BoardEnergy::take_reset),
                uses,
                unavailable,
                dropped: [0, 0, over_limit],
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

/// Driver and directory of every GPU with a render node and a driver whose fdinfo is known.
fn listed(sysfs: &Path) -> BTreeMap<Pci, (String, PathBuf)> {
    let mut cards = BTreeMap::new();
    let nodes = fs::read_dir(sysfs.join("class/drm")).into_iter().flatten().flatten();
    for node in nodes.filter(|node| node.file_name().to_string_lossy().starts_with("renderD")) {
        let device = node.path().join("device");
        let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
        let driver = fs::read_link(device.join("driver")).ok().and_then(|driver| name(&driver));
        // The node is a link that goes with the driver, and the directory of the device stays.
        let Ok(device) = fs::canonicalize(&device) else { continue };
        let pci = name(&device).and_then(|name| name.parse().ok());
        if let (Some(driver), Some(pci)) = (driver, pci)
            && matches!(&*driver, "i915" | "xe" | "amdgpu")
        {
            cards.insert(pci, (driver, device));
        }
    }
    cards
}

/// True when the package of an AMD processor contains the GPU. An accelerator with processor cores
/// has no northbridge, and the name of the processor is its own.
fn is_apu(device: &Path, procfs: &Path) -> bool {
    has_northbridge(device) || Processor::read(procfs).name.contains("Instinct MI300A")
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
        assert_eq!((&*info.driver, info.client, info.pci), ("i915", 7, INTEL_INTEGRATED));
        assert_eq!(info.busy_ns[Engine::Video.index()], 250_000_000);
        assert_eq!((info.busy_ns[Engine::VideoEnhance.index()], info.engines[Engine::Video.index()]), (5, 2));
        let info = parse(XE).unwrap();
        assert_eq!(info.cycles[Engine::Video.index()], (500, 2000));
        assert_eq!(info.pci.to_string(), "0000:03:00.0");
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

    /// A board of `driver` at 0000:03:00.0, with the files of its hwmon device.
    fn board(dir: &Path, driver: &str, files: &[(&str, &str)]) {
        board_at(dir, "pci0000:00/0000:00:01.0/0000:03:00.0", driver, files);
    }

    fn board_at(dir: &Path, device: &str, driver: &str, files: &[(&str, &str)]) {
        let device = dir.join("sys/devices").join(device);
        let hwmon = device.join("hwmon/hwmon2");
        fs::create_dir_all(&hwmon).unwrap();
        for (file, text) in [("name", driver)].iter().chain(files) {
            fs::write(hwmon.join(file), format!("{text}\n")).unwrap();
        }
        let drivers = dir.join("sys/bus/pci/drivers").join(driver);
        fs::create_dir_all(&drivers).unwrap();
        std::os::unix::fs::symlink(drivers, device.join("driver")).unwrap();
        let node = dir.join("sys/class/drm/renderD129");
        fs::create_dir_all(&node).unwrap();
        std::os::unix::fs::symlink(&device, node.join("device")).unwrap();
        fs::create_dir_all(dir.join("proc")).unwrap();
    }

    fn read_all(drm: &mut Drm) -> Vec<GpuReading> {
        let mut gpus = Vec::new();
        drm.read_energy();
        drm.poll(&[], &mut gpus);
        gpus
    }

    #[test]
    fn a_board_has_energy_and_an_integrated_gpu_has_none_of_its_own() {
        let (dir, _) = tree();
        board(dir.path(), "xe", &[("energy1_input", "7000"), ("energy1_label", "card")]);
        let mut drm = Drm::open(&dir.path().join("sys"), &dir.path().join("proc"));
        let gpus = read_all(&mut drm);
        let summary: Vec<_> =
            gpus.iter().map(|gpu| (gpu.id.to_string(), gpu.raw.clone(), gpu.zone.is_some())).collect();
        let expected = [("integrated-0000:00:02.0", None, false), ("0000:03:00.0", Some(Ok(7000)), true)];
        assert_eq!(summary, expected.map(|(id, raw, zone)| (id.to_owned(), raw, zone)));
        assert!(gpus.iter().all(|gpu| gpu.unavailable.is_empty()), "an integrated GPU lacks no reading");
        assert!(drm.detail().contains("0000:03:00.0 (xe, energy counter)"), "{}", drm.detail());
    }

    /// A virtual machine has the board that is passed to it where processors have their graphics.
    #[test]
    fn a_board_at_the_address_of_integrated_graphics_has_energy() {
        for (driver, files, counted) in [
            ("xe", &[("energy1_input", "7000"), ("energy1_label", "card")][..], true),
            ("i915", &[("energy1_input", "7000")][..], true),
            ("i915", &[("energy1_input", "7000"), ("energy1_label", "vram")][..], false),
            ("i915", &[][..], false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            board_at(dir.path(), "pci0000:00/0000:00:02.0", driver, files);
            let mut drm = Drm::open(&dir.path().join("sys"), &dir.path().join("proc"));
            let gpu = read_all(&mut drm).remove(0);
            let is_board = matches!(gpu.id, GpuId::Card(pci) if pci == INTEL_INTEGRATED);
            assert_eq!((is_board, gpu.raw.is_some()), (counted, counted), "{driver} {files:?}");
        }
    }

    /// The power of a processor with graphics includes its cores, which the package counts too.
    #[test]
    fn an_amd_processor_with_graphics_is_not_counted_twice() {
        let power = ("power1_average", "15000000");
        for (files, cpu, counted) in [
            (&[power, ("in1_label", "vddnb")][..], "AMD Ryzen 7 7840U", false),
            (&[power][..], "AMD Instinct MI300A Accelerator", false),
            (&[power][..], "AMD EPYC 9654", true),
        ] {
            let dir = tempfile::tempdir().unwrap();
            board(dir.path(), "amdgpu", files);
            fs::write(dir.path().join("proc/cpuinfo"), format!("model name\t: {cpu}\n")).unwrap();
            let mut drm = Drm::open(&dir.path().join("sys"), &dir.path().join("proc"));
            let gpu = read_all(&mut drm).remove(0);
            let board = matches!(gpu.id, GpuId::Card(_));
            assert_eq!((board, gpu.raw.is_some(), gpu.zone.is_some()), (counted, counted, counted), "{cpu}");
        }
    }

    #[test]
    fn a_card_that_vanishes_is_broken_until_it_is_back() {
        let dir = tempfile::tempdir().unwrap();
        board(dir.path(), "xe", &[("energy1_input", "7000")]);
        let mut drm = Drm::open(&dir.path().join("sys"), &dir.path().join("proc"));
        assert_eq!(read_all(&mut drm)[0].state, Ok(()));
        let sys = |path: &str| dir.path().join("sys").join(path);
        let hwmon = "devices/pci0000:00/0000:00:01.0/0000:03:00.0/hwmon";
        fs::rename(sys("class/drm/renderD129"), sys("renderD129")).unwrap();
        fs::remove_dir_all(sys(hwmon)).unwrap();
        drm.last_scan = None;
        let gone = read_all(&mut drm).remove(0);
        assert_eq!(gone.state.unwrap_err().reason, Reason::Broken);
        assert!(gone.zone.is_some() && gone.raw.unwrap().is_err(), "its counter keeps its value");
        assert_eq!(drm.state().unwrap_err().reason, Reason::Broken);
        // The driver is loaded again: another number, and a counter that starts at zero.
        fs::rename(sys("renderD129"), sys("class/drm/renderD129")).unwrap();
        fs::create_dir_all(sys(hwmon).join("hwmon9")).unwrap();
        fs::write(sys(hwmon).join("hwmon9/name"), "xe\n").unwrap();
        fs::write(sys(hwmon).join("hwmon9/energy1_input"), "3\n").unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        drm.last_scan = None;
        let back = read_all(&mut drm).remove(0);
        assert_eq!((back.state, back.raw, back.counter_reset), (Ok(()), Some(Ok(3)), true));
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
