//! The energy of this virtual machine, as the probe of its host measures it.
//!
//! The host attributes to each guest what its processors used, and answers the probe in the guest
//! with that counter: over HTTP with a token, or over vsock, where the hypervisor says which guest
//! asks. An answer has an epoch, which changes where the counter begins again. While there is no
//! answer, or only an old one, the source is broken, and its energy is not zero; the next answer
//! of the same epoch covers the time since the last one.

use std::{
    io::{self, Read as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use client::{Access, Client, ClientError, ConnectError};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use units::provenance::Unmeasured;

use super::{
    counter_file::REOPENED,
    source::{HostSettings, Source, SourceInventory},
    zone::{Ceiling, Origin, Range, Zone, ZoneId, ZoneKind},
};
use crate::host::{
    availability::{Reason, Unavailable},
    topology::Topology,
};

/// Path of the answer on the host's main port.
pub const GUEST_PATH: &str = "/api/v1/guest";
/// Port of the host for vsock, where the address names none: that of HTTP.
const VSOCK_PORT: u32 = 9500;
/// The host, for its guests (linux/vm_sockets.h).
const HOST_CID: u32 = 2;
/// Longest time of one answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum size of an answer, which has some hundred bytes.
const MAX_ANSWER: u64 = 16 << 10;
/// Time between two requests.
const INTERVAL: Duration = Duration::from_secs(1);
/// Age of an answer from which the counter is broken, at least, and in ticks of the host.
const MAX_AGE: (Duration, u32) = (Duration::from_secs(10), 3);
/// Longest tick of a host.
const LONGEST_TICK: f64 = 60.0;
/// Longest epoch in bytes.
const MAX_EPOCH: usize = 256;

/// What a host answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostAnswer {
    /// The guest's name on the host.
    #[serde(default)]
    pub guest: String,
    /// Changes where the counters begin again.
    pub epoch: String,
    /// Energy of the guest in microjoules, of the host's packages.
    pub package_microjoules: u64,
    /// The same of their memory; absent where the host does not measure it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dram_microjoules: Option<u64>,
    /// Time between two updates of the counters.
    pub tick_seconds: f64,
    /// Relative bound of the guest's energy in the last minute; absent while it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncertainty_ratio: Option<f64>,
    /// The host's source.
    pub source: String,
}

impl HostAnswer {
    /// Parses an answer.
    ///
    /// # Errors
    /// It is no answer of a host's probe, or has an impossible value.
    pub(crate) fn parse(answer: &[u8]) -> Result<Self, String> {
        let this: Self = serde_json::from_slice(answer).map_err(|_| "not the answer of a probe".to_owned())?;
        let is_ratio = this.uncertainty_ratio.is_none_or(|ratio| (0.0..=1.0).contains(&ratio));
        if this.epoch.is_empty() || this.epoch.len() > MAX_EPOCH || this.source.len() > MAX_EPOCH {
            return Err("an answer without epoch and source".to_owned());
        }
        if !(this.tick_seconds > 0.0 && this.tick_seconds <= LONGEST_TICK && is_ratio) {
            return Err("an answer with an impossible value".to_owned());
        }
        Ok(this)
    }

    fn tick(&self) -> Duration {
        Duration::try_from_secs_f64(self.tick_seconds).unwrap_or(INTERVAL)
    }

    /// The origin of the energy, where the host itself does not measure it.
    fn unmeasured(&self) -> Option<Origin> {
        Unmeasured::of(&self.source).map(|kind| match kind {
            Unmeasured::Model => Origin::Model,
            Unmeasured::Simulated => Origin::Simulated,
            Unmeasured::Fake => Origin::Fake,
            Unmeasured::Replay => Origin::Replay,
        })
    }
}

/// How the host is reached.
enum Endpoint {
    Http(Box<Client>),
    Vsock { cid: u32, port: u32 },
}

impl Endpoint {
    fn new(settings: &HostSettings) -> Result<Self, Unavailable> {
        let url = settings.url.trim();
        if let Some(address) = url.strip_prefix("vsock:") {
            let (cid, port) = vsock_address(address.trim_start_matches('/')).ok_or_else(|| {
                Unavailable::new(Reason::Broken, "--energy.host.url: write vsock://2:9500, the host and its port")
            })?;
            return Ok(Self::Vsock { cid, port });
        }
        let access = Access {
            ca_file: settings.ca_file.clone(),
            bearer_token_file: settings.token_file.clone(),
            ..Access::default()
        };
        let base = url.trim_end_matches('/');
        let base = base.strip_suffix(GUEST_PATH).unwrap_or(base);
        let client = Client::new(base, &access, TIMEOUT, MAX_ANSWER);
        let client = client.map_err(|why| Unavailable::new(Reason::Broken, format!("--energy.host.url: {why}")))?;
        Ok(Self::Http(Box::new(client)))
    }

    /// For messages; contains no secret.
    fn name(&self) -> String {
        match self {
            Self::Http(client) => client.display_url().to_owned(),
            Self::Vsock { cid, port } => format!("vsock://{cid}:{port}"),
        }
    }

    fn read(&self) -> Result<HostAnswer, Unavailable> {
        let answer = match self {
            Self::Http(client) => read_http(client),
            Self::Vsock { cid, port } => read_vsock(*cid, *port).map_err(|error| {
                let reason = match error.raw_os_error() {
                    Some(libc::ENODEV | libc::EAFNOSUPPORT) => Reason::Absent,
                    _ => Reason::Broken,
                };
                Unavailable::new(reason, error.to_string())
            }),
        };
        let at_host = |why: Unavailable| Unavailable::new(why.reason, format!("{}: {}", self.name(), why.detail));
        let parsed = answer.and_then(|answer| {
            HostAnswer::parse(&answer).map_err(|why| Unavailable::new(Reason::Broken, refusal(&answer).unwrap_or(why)))
        });
        parsed.map_err(at_host)
    }
}

/// `2:9500`, `2` or nothing.
fn vsock_address(text: &str) -> Option<(u32, u32)> {
    let (cid, port) = text.split_once(':').unwrap_or((text, ""));
    let number = |text: &str, default: u32| if text.is_empty() { Some(default) } else { text.parse().ok() };
    Some((number(cid, HOST_CID)?, number(port, VSOCK_PORT)?))
}

/// The error in an answer of the probe's API.
fn refusal(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    let refusal: Refusal = serde_json::from_slice(answer).ok()?;
    Some(refusal.error.chars().filter(|character| !character.is_control()).take(200).collect())
}

fn read_http(client: &Client) -> Result<Vec<u8>, Unavailable> {
    let fault = |reason, why: String| Unavailable::new(reason, why);
    let reply = client.get(GUEST_PATH, &[]).map_err(|error| match error {
        ClientError::Unreachable { cause, why, .. } => match cause {
            ConnectError::Unreachable => fault(Reason::Absent, "cannot be reached".to_owned()),
            ConnectError::Timeout => fault(Reason::Broken, format!("no answer within {} s", TIMEOUT.as_secs())),
            ConnectError::Tls => fault(Reason::Broken, format!("TLS failed: {why}; see --energy.host.ca-file")),
            ConnectError::Protocol => fault(Reason::Broken, "no valid answer of HTTP".to_owned()),
        },
        other => fault(Reason::Broken, other.to_string()),
    })?;
    let because = || refusal(&reply.body).map(|why| format!(": {why}")).unwrap_or_default();
    match reply.status {
        200 => Ok(reply.body),
        status @ (401 | 403) => {
            Err(fault(Reason::Denied, format!("status {status}{}; set --energy.host.token-file", because())))
        }
        status => Err(fault(Reason::Broken, format!("status {status}{}", because()))),
    }
}

/// An answer over vsock: the host sends it to each connection, and closes it.
fn read_vsock(cid: u32, port: u32) -> io::Result<Vec<u8>> {
    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    // The kernel limits the time of a connection to two seconds.
    socket.connect(&SockAddr::vsock(cid, port))?;
    let mut answer = Vec::new();
    (&socket).take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(answer)
}

/// The last answer, and when it came.
struct Polled {
    answer: Result<HostAnswer, String>,
    at: Instant,
}

/// The counters of this guest.
pub struct HostEnergy {
    inventory: SourceInventory,
    polled: Arc<Mutex<Polled>>,
    /// The epoch of the counters that were read last.
    epoch: Option<String>,
    /// What the first answer said of the source.
    unmeasured: Option<Origin>,
    max_age: Duration,
    /// Ends the thread when this is dropped.
    _stop: mpsc::Sender<()>,
}

impl HostEnergy {
    /// Requests a first answer, and starts a thread that requests the next ones.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn open(settings: Option<&HostSettings>, topology: &Topology) -> Result<Self, Unavailable> {
        let settings = settings.ok_or_else(|| {
            Unavailable::new(Reason::Absent, "no host is set: --energy.host.url=https://HOST:9500, or vsock://2:9500")
        })?;
        let endpoint = Endpoint::new(settings)?;
        let name = endpoint.name();
        let first = endpoint.read()?;
        let (unmeasured, max_age) = (first.unmeasured(), MAX_AGE.0.max(first.tick() * MAX_AGE.1));
        let inventory = SourceInventory { zones: zones(&first, topology, &name), ..SourceInventory::default() };
        let polled = Arc::new(Mutex::new(Polled { answer: Ok(first), at: Instant::now() }));
        let (stop, stopped) = mpsc::channel();
        let for_thread = polled.clone();
        let poll = move || poll(&endpoint, &for_thread, &stopped);
        thread::Builder::new().name("host".into()).spawn(poll).map_err(|error| {
            Unavailable::new(Reason::Broken, format!("cannot start the thread that asks the host: {error}"))
        })?;
        Ok(Self { inventory, polled, epoch: None, unmeasured, max_age, _stop: stop })
    }

    /// The current answer.
    fn current(&mut self) -> Result<HostAnswer, String> {
        let polled = lock(&self.polled);
        let answer = polled.answer.clone()?;
        let age = polled.at.elapsed();
        drop(polled);
        if age > self.max_age {
            return Err(format!("the last answer of the host is {} s old", age.as_secs()));
        }
        if answer.unmeasured() != self.unmeasured {
            return Err(format!("the host's energy is now of another kind ({}); restart the probe", answer.source));
        }
        let before = self.epoch.replace(answer.epoch.clone());
        if before.is_some_and(|before| before != answer.epoch) { Err(REOPENED.to_owned()) } else { Ok(answer) }
    }
}

fn lock(polled: &Mutex<Polled>) -> MutexGuard<'_, Polled> {
    polled.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Requests answers until `stopped` is disconnected.
fn poll(endpoint: &Endpoint, polled: &Mutex<Polled>, stopped: &mpsc::Receiver<()>) {
    while matches!(stopped.recv_timeout(INTERVAL), Err(mpsc::RecvTimeoutError::Timeout)) {
        let answer = endpoint.read().map_err(|why| why.detail);
        *lock(polled) = Polled { answer, at: Instant::now() };
    }
}

/// The zones of a guest: a package with its memory, or, where the guest has several packages, all
/// together, because the host's packages are not those of the guest. It is not psys: the host's row
/// of a guest has no energy of boards, and those that are passed to the guest are read there.
fn zones(first: &HostAnswer, topology: &Topology, name: &str) -> Vec<Zone> {
    let package = topology.only_package();
    let dram = first.dram_microjoules.map(|_| ZoneKind::Dram);
    let ids = [Some(ZoneKind::Package), dram].into_iter().flatten().map(|kind| ZoneId { package, kind });
    // A reading is as old as the host's tick and the request.
    let update_ns = u64::try_from((first.tick() + INTERVAL).as_nanos()).unwrap_or(u64::MAX);
    let zone = |id: ZoneId| Zone {
        update_ns,
        // The host has refused what is impossible; a guest may also use nothing for a while.
        ceiling: Ceiling::None,
        origin: first.unmeasured(),
        error_milli: first.uncertainty_ratio.map(thousandths),
        ..Zone::microjoules(id, Range::Endless, format!("{name}{GUEST_PATH}"))
    };
    ids.map(zone).collect()
}

/// Thousandths of a ratio from 0 to 1, rounded up.
fn thousandths(ratio: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded before the cast")]
    let milli = (ratio.clamp(0.0, 1.0) * 1000.0).ceil() as u32;
    milli
}

/// The value of a zone in an answer.
fn value(kind: ZoneKind, answer: &HostAnswer) -> Result<u64, String> {
    match kind {
        ZoneKind::Dram => answer.dram_microjoules.ok_or_else(|| "the host measures no memory any more".to_owned()),
        _ => Ok(answer.package_microjoules),
    }
}

impl Source for HostEnergy {
    fn origin(&self) -> Origin {
        Origin::Host
    }

    fn inventory(&self) -> &SourceInventory {
        &self.inventory
    }

    fn read(&mut self, out: &mut Vec<io::Result<u64>>) {
        let answer = self.current();
        let read = |zone: &Zone| match &answer {
            Ok(answer) => value(zone.id.kind, answer).map_err(io::Error::other),
            Err(why) => Err(io::Error::other(why.clone())),
        };
        out.extend(self.inventory.zones.iter().map(read));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::TcpListener,
        sync::atomic::{AtomicU64, Ordering},
    };

    use super::*;
    use crate::{
        energy::zone::{accounting_roots, contains_gpu},
        host::gpu_id::GpuId,
    };

    fn answer(epoch: &str, package: u64, source: &str) -> String {
        format!(
            r#"{{"guest": "vm", "epoch": "{epoch}", "package_microjoules": {package}, "dram_microjoules": 7,
            "tick_seconds": 0.5, "uncertainty_ratio": 0.0301, "source": "{source}"}}"#
        )
    }

    #[test]
    fn answers_of_other_programs_and_impossible_values_are_refused() {
        assert_eq!(HostAnswer::parse(answer("a", 5, "perf").as_bytes()).unwrap().package_microjoules, 5);
        for wrong in ["", "{}", "[]", "<html>", r#"{"code": "starting", "error": "x"}"#] {
            assert!(HostAnswer::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let text = answer("a", 5, "perf");
        for (from, to) in [("0.5", "0"), ("0.5", "1e9"), ("0.0301", "-1"), ("\"a\"", "\"\""), (": 5", ": -5")] {
            assert!(HostAnswer::parse(text.replace(from, to).as_bytes()).is_err(), "{to}");
        }
    }

    #[test]
    fn the_address_of_the_host_over_vsock_has_defaults() {
        assert_eq!(vsock_address("2:9600"), Some((2, 9600)));
        assert_eq!((vsock_address(""), vsock_address("3")), (Some((2, 9500)), Some((3, 9500))));
        assert_eq!((vsock_address("x"), vsock_address("2:x")), (None, None));
    }

    fn host(answers: impl Fn(u64) -> String + Send + 'static) -> HostSettings {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            let number = AtomicU64::new(0);
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let body = answers(number.fetch_add(1, Ordering::Relaxed));
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        HostSettings { url, token_file: None, ca_file: None }
    }

    fn one_package() -> (tempfile::TempDir, Topology) {
        packages(1)
    }

    /// A machine with one CPU in each package.
    fn packages(count: u32) -> (tempfile::TempDir, Topology) {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..count {
            let cpu = dir.path().join(format!("devices/system/cpu/cpu{number}/topology"));
            std::fs::create_dir_all(&cpu).unwrap();
            std::fs::write(cpu.join("physical_package_id"), format!("{number}\n")).unwrap();
        }
        std::fs::write(dir.path().join("devices/system/cpu/online"), format!("0-{}\n", count - 1)).unwrap();
        let topology = Topology::read(dir.path());
        (dir, topology)
    }

    fn read(source: &mut HostEnergy) -> Vec<Result<u64, String>> {
        let mut out = Vec::new();
        source.read(&mut out);
        out.into_iter().map(|value| value.map_err(|error| error.to_string())).collect()
    }

    /// What is read once it differs from `before`.
    fn next(source: &mut HostEnergy, before: &[Result<u64, String>]) -> Vec<Result<u64, String>> {
        testkit::wait::eventually_ok(20.0, "another answer", || {
            let now = read(source);
            if now == before { Err(format!("{now:?}")) } else { Ok(now) }
        })
    }

    #[test]
    fn a_missing_answer_is_broken_and_the_next_one_loses_nothing() {
        let current = Arc::new(Mutex::new(answer("a", 100, "perf")));
        let answers = current.clone();
        let settings = host(move |_| answers.lock().unwrap().clone());
        let set = |answer: String| *current.lock().unwrap() = answer;
        let (_dir, topology) = one_package();
        let mut source = HostEnergy::open(Some(&settings), &topology).unwrap();
        let kinds: Vec<ZoneKind> = source.zones().iter().map(|zone| zone.id.kind).collect();
        assert_eq!(kinds, [ZoneKind::Package, ZoneKind::Dram]);
        assert_eq!((source.zones()[0].error_milli, source.energy_origin()), (Some(31), Origin::Host));
        assert_eq!(read(&mut source), [Ok(100), Ok(7)]);
        set("<html>".to_owned());
        let broken = next(&mut source, &[Ok(100), Ok(7)]);
        assert!(
            broken.iter().all(|value| value.as_ref().is_err_and(|why| why.contains("not the answer"))),
            "{broken:?}"
        );
        set(answer("a", 250, "perf"));
        assert_eq!(next(&mut source, &broken), [Ok(250), Ok(7)]);
        // The host was restarted: its counter is another one.
        set(answer("b", 10, "perf"));
        let reopened = next(&mut source, &[Ok(250), Ok(7)]);
        assert_eq!(reopened, [Err(REOPENED.to_owned()), Err(REOPENED.to_owned())]);
        assert_eq!(read(&mut source), [Ok(10), Ok(7)]);
        source.max_age = Duration::ZERO;
        assert!(read(&mut source)[0].as_ref().is_err_and(|why| why.contains("old")));
    }

    /// Several packages were the whole platform, of which a board that is passed to the guest would
    /// be a part: its energy was taken from that of the processors.
    #[test]
    fn boards_of_a_guest_with_several_packages_are_outside_of_them() {
        let first = HostAnswer::parse(answer("a", 5, "perf").as_bytes()).unwrap();
        let (_dir, topology) = packages(2);
        let mut zones = zones(&first, &topology, "host");
        let names: Vec<String> = zones.iter().map(|zone| zone.id.to_string()).collect();
        assert_eq!(names, ["package of package all", "dram of package all"]);
        let board = ZoneId { package: None, kind: ZoneKind::Gpu(GpuId::Nvidia(7)) };
        assert!(zones.iter().all(|zone| !contains_gpu(zone.id, board)));
        zones.push(Zone::microjoules(board, Range::Endless, "a board".to_owned()));
        assert_eq!(accounting_roots(&zones), [true, true, true]);
    }

    #[test]
    fn energy_that_the_host_does_not_measure_is_not_measured_here() {
        let (_dir, topology) = one_package();
        let mut source = HostEnergy::open(Some(&host(|_| answer("a", 1, "model"))), &topology).unwrap();
        assert_eq!((source.origin(), source.energy_origin()), (Origin::Host, Origin::Model));
        source.unmeasured = None;
        assert!(read(&mut source)[0].as_ref().is_err_and(|why| why.contains("another kind")));
    }

    #[test]
    fn a_host_that_cannot_be_reached_is_absent() {
        let (_dir, topology) = one_package();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let settings = HostSettings { url: format!("http://{free}"), token_file: None, ca_file: None };
        let why = HostEnergy::open(Some(&settings), &topology).err().unwrap();
        assert_eq!((why.reason, why.detail), (Reason::Absent, format!("http://{free}: cannot be reached")));
        assert_eq!(HostEnergy::open(None, &topology).err().unwrap().reason, Reason::Absent);
    }
}
