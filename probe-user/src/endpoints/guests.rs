//! The energy of virtual machines, for the probes in them: over HTTP with a token of each guest,
//! and over vsock, where the kernel says which guest asks. A guest reads its own row and no other.
//!
//! The answer is made from the last snapshot. Its counters are those of the guest's row, with its
//! share of idle energy where the policy gives one, and begin again with a new epoch.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use cli::file::read_limited;
use http::server::Pages as _;
use metrics::label;
use sha2::{Digest as _, Sha256};
use socket2::{Domain, SockAddr, Socket, Type};
use tracing::warn;
use units::Microjoules;

use super::{
    error::{error_response, starting},
    routes::Published,
};
use crate::{
    containers::{
        Container,
        path::{Workload, classify},
    },
    energy::{
        guest::{GUEST_PATH, HostAnswer},
        zone::{Origin, ZoneKind},
    },
    snapshot::Snapshot,
};

/// Paths that check a secret of their own.
pub const SELF_AUTHENTICATED: &[&str] = &[GUEST_PATH];
/// Maximum size of the file of tokens.
const MAX_TOKENS: u64 = 1 << 20;
/// Longest command line that is searched for the number of a guest.
const MAX_COMMAND: u64 = 256 << 10;
/// Any address of this host (linux/vm_sockets.h).
const ANY_CID: u32 = u32::MAX;
/// Maximum number of guests whose processes are remembered.
const MAX_GUESTS: usize = 4096;
/// Shortest time between two searches of all processes, which a guest that is not found causes.
const SEARCH_INTERVAL: Duration = Duration::from_secs(5);
/// Pause after a connection that cannot be accepted.
const RETRY: Duration = Duration::from_secs(1);

/// A guest that may read its energy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestToken {
    /// The label `container` or `id` of its row.
    pub name: String,
    /// SHA-256 of its token.
    digest: [u8; 32],
}

/// Parses the file of tokens: a name and 64 hexadecimal digits on each line; `#` begins a comment.
///
/// # Errors
/// The first invalid line, without its content.
pub fn parse_tokens(text: &str) -> Result<Vec<GuestToken>, String> {
    let (mut all, mut digests): (Vec<GuestToken>, BTreeSet<[u8; 32]>) = (Vec::new(), BTreeSet::new());
    for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let parts = line.rsplit_once(char::is_whitespace).map(|(name, digest)| (name.trim(), digest));
        let token = parts.and_then(|(name, digest)| Some(GuestToken { name: name.to_owned(), digest: hex(digest)? }));
        let token = token.filter(|token| !token.name.is_empty());
        let token =
            token.ok_or_else(|| format!("line {number}: write NAME and the SHA-256 of the token in hexadecimal"))?;
        if !digests.insert(token.digest) {
            return Err(format!("line {number}: the same token as another guest"));
        }
        all.push(token);
    }
    Ok(all)
}

/// 64 hexadecimal digits.
fn hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// The guest with this token. Each digest is compared whole, and with each guest's, so the time
/// says nothing.
#[must_use]
pub fn guest_of<'a>(tokens: &'a [GuestToken], presented: &[u8]) -> Option<&'a str> {
    // The file has the digest of nothing where a token was missing when its line was written.
    if presented.is_empty() {
        return None;
    }
    let digest: [u8; 32] = Sha256::digest(presented).into();
    let mut found = None;
    for token in tokens {
        let difference = token.digest.iter().zip(digest).fold(0, |sum, (own, other)| sum | (own ^ other));
        if difference == 0 {
            found = Some(&*token.name);
        }
    }
    found
}

/// Reads the file of tokens.
///
/// # Errors
/// It cannot be read, or has an invalid line.
pub fn read_tokens(file: &Path) -> Result<Vec<GuestToken>, String> {
    let at = |why: String| format!("{}: {why}", file.display());
    let text = read_limited(file, MAX_TOKENS).map_err(|error| at(error.to_string()))?;
    parse_tokens(&text).map_err(at)
}

#[derive(Clone)]
struct Guests {
    published: Arc<Published>,
    tokens: PathBuf,
}

/// The route for guests with a token. The file is read at each request, so tokens can be changed
/// while the probe runs.
pub fn routes(published: Arc<Published>, tokens: &Path) -> Router {
    let guests = Guests { published, tokens: tokens.to_owned() };
    Router::new().route(GUEST_PATH, get(guest)).with_state(guests)
}

async fn guest(State(guests): State<Guests>, headers: HeaderMap) -> Response {
    let read = tokio::task::spawn_blocking(move || read_tokens(&guests.tokens)).await;
    let tokens = match read.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(tokens) => tokens,
        Err(why) => {
            warn!("--guest.tokens-file: {why}");
            let why = "the host cannot read its file of tokens; its log says why";
            return error_response(StatusCode::SERVICE_UNAVAILABLE, "tokens", why);
        }
    };
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let Some(name) = guest_of(&tokens, bearer.unwrap_or_default().trim().as_bytes()) else {
        return error_response(StatusCode::UNAUTHORIZED, "token", "the token is missing or wrong");
    };
    match answer(&guests.published, |container| container.name == name || container.id == name) {
        Ok(answer) => Json(answer).into_response(),
        Err(Missing::Start) => starting(),
        Err(missing) => error_response(StatusCode::SERVICE_UNAVAILABLE, missing.code(), missing.text()),
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Missing {
    /// No tick has ended.
    Start,
    /// The last tick is too old.
    Stale(String),
    /// The host has no energy counter.
    Source,
    /// The guest has no row.
    Row,
    /// Workloads of several runtimes have its name.
    Name,
}

impl Missing {
    fn code(&self) -> &'static str {
        match self {
            Self::Start => "starting",
            Self::Stale(_) => "stale",
            Self::Source => "no_source",
            Self::Row => "no_row",
            Self::Name => "ambiguous_name",
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Start => "no measurement yet; try again in a second".to_owned(),
            Self::Stale(why) => why.clone(),
            Self::Source => "the host has no energy source".to_owned(),
            Self::Row => "the host has no row for this guest; compare its name with the label container".to_owned(),
            Self::Name => "several workloads of the host have this name; write the label id instead".to_owned(),
        }
    }
}

fn answer(published: &Published, is_guest: impl Fn(&Container) -> bool) -> Result<HostAnswer, Missing> {
    let (snapshot, started, tick) = published.latest().ok_or(Missing::Start)?;
    if let Some(why) = published.unhealthy() {
        return Err(Missing::Stale(why));
    }
    of_snapshot(&snapshot, started, tick, is_guest)
}

/// The counters of the newest row of a guest.
fn of_snapshot(
    snapshot: &Snapshot,
    started: f64,
    tick: Duration,
    is_guest: impl Fn(&Container) -> bool,
) -> Result<HostAnswer, Missing> {
    let rows: Vec<_> = snapshot.containers.iter().filter(|row| is_guest(&row.container)).collect();
    let row = rows.iter().copied().max_by_key(|row| row.container.number).ok_or(Missing::Row)?;
    if rows.iter().any(|other| other.container.runtime != row.container.runtime) {
        return Err(Missing::Name);
    }
    let source = source(snapshot).ok_or(Missing::Source)?;
    let number = row.container.number;
    let energy = |kinds: &[ZoneKind]| -> Microjoules {
        let accounts = snapshot.accounts.iter().filter(|account| kinds.contains(&account.id.zone.kind));
        let shares = accounts.flat_map(|account| account.containers.iter().chain(&account.idle_shares));
        shares.filter(|(container, _)| container.number == number).map(|(_, energy)| *energy).sum()
    };
    let has_memory = snapshot.accounts.iter().any(|account| account.id.zone.kind == ZoneKind::Dram);
    Ok(HostAnswer {
        guest: row.container.name.clone(),
        epoch: format!("{started}-{number}-{}", row.container.id),
        // A host has packages, or a sensor of the whole platform.
        package_microjoules: energy(&[ZoneKind::Package, ZoneKind::Psys]).0,
        dram_microjoules: has_memory.then(|| energy(&[ZoneKind::Dram]).0),
        tick_seconds: tick.as_secs_f64(),
        uncertainty_ratio: row
            .minute
            .map(|minute| minute.ratio())
            .or(row.uncertainty.map(|ratio| ratio.clamp(0.0, 1.0))),
        source: source.as_str().to_owned(),
    })
}

/// The source of the host's energy. One that is not measured comes first, because it must not look
/// measured in the guest.
fn source(snapshot: &Snapshot) -> Option<Origin> {
    let origins = || snapshot.zones.iter().filter(|zone| is_machine(zone.id.kind)).map(|zone| zone.origin);
    origins().find(|origin| !origin.is_measured()).or_else(|| origins().next())
}

/// True for the zones that an answer contains.
fn is_machine(kind: ZoneKind) -> bool {
    matches!(kind, ZoneKind::Package | ZoneKind::Dram | ZoneKind::Psys)
}

/// Answers guests on a port of vsock. Each connection gets one answer and is closed; nothing is
/// read from it.
///
/// # Errors
/// The kernel has no vsock, or the port is in use.
pub fn serve_vsock(port: u32, published: Arc<Published>, procfs: PathBuf) -> io::Result<()> {
    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    socket.bind(&SockAddr::vsock(ANY_CID, port))?;
    socket.listen(16)?;
    let finder = GuestFinder { procfs, known: HashMap::new(), searched: None };
    let serve = move || accept_guests(&socket, &published, finder);
    thread::Builder::new().name("vsock".into()).spawn(serve).map(|_| ())
}

fn accept_guests(socket: &Socket, published: &Published, mut finder: GuestFinder) {
    loop {
        match socket.accept() {
            Ok((peer, address)) => {
                let cid = address.as_vsock_address().map(|(cid, _)| cid);
                let row = cid.and_then(|cid| finder.find(cid));
                send(&peer, &vsock_answer(published, row));
            }
            Err(error) => {
                warn!("vsock: {error}");
                thread::sleep(RETRY);
            }
        }
    }
}

/// The answer for the guest with this row.
fn vsock_answer(published: &Published, row: Option<Row>) -> Vec<u8> {
    let missing = || "the host finds no cgroup of this guest alone (QEMU with guest-cid)".to_owned();
    let answer = row.ok_or_else(missing).and_then(|(runtime, name)| {
        let is_guest = |container: &Container| container.runtime == runtime && container.name == name;
        answer(published, is_guest).map_err(|missing| missing.text())
    });
    let json = match answer {
        Ok(answer) => serde_json::to_vec(&answer),
        Err(error) => serde_json::to_vec(&serde_json::json!({ "error": error })),
    };
    json.unwrap_or_default()
}

fn send(peer: &Socket, answer: &[u8]) {
    let mut writer = peer;
    // A new connection has room for an answer. A guest that leaves none must not delay others.
    let sent = peer.set_nonblocking(true).and_then(|()| writer.write_all(answer));
    // A guest that does not wait for its answer asks again.
    let _ = sent.and_then(|()| peer.shutdown(Shutdown::Write));
}

/// The labels `runtime` and `container` of a row.
type Row = (&'static str, String);

/// The row of the workload in a cgroup; `None` for a container, and for what has no row.
fn row_of(path: &str) -> Option<Row> {
    let (runtime, name) = match classify(path) {
        Workload::Guest { runtime, name, .. } => (runtime, name),
        Workload::Plain => ("cgroup", path.trim_matches('/').into()),
        Workload::Container { .. } | Workload::System => return None,
    };
    Some((runtime, label::sanitize(&name)))
}

/// Finds the process of a guest by its number in QEMU's command line.
struct GuestFinder {
    procfs: PathBuf,
    /// Process ids by number.
    known: HashMap<u32, u32>,
    /// When all processes were searched.
    searched: Option<Instant>,
}

impl GuestFinder {
    /// The row of the guest with this number; `None` where no process has it, processes of several
    /// workloads, or a workload with several guests.
    fn find(&mut self, cid: u32) -> Option<Row> {
        let is_due = self.searched.is_none_or(|at| at.elapsed() >= SEARCH_INTERVAL);
        if is_due && self.process(cid).is_none() {
            self.search();
        }
        self.row_of_process(self.process(cid)?)
    }

    /// The known process with this number, if it still has it.
    fn process(&self, cid: u32) -> Option<u32> {
        self.known.get(&cid).copied().filter(|pid| self.cid_of(*pid) == Some(cid))
    }

    /// Finds all guests.
    fn search(&mut self) {
        self.searched = Some(Instant::now());
        let pids = fs::read_dir(&self.procfs).into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let found = pids.filter_map(|pid| Some((self.cid_of(pid)?, pid, self.row_of_process(pid))));
        let found: Vec<(u32, u32, Option<Row>)> = found.take(MAX_GUESTS).collect();
        let is_alone =
            |cid: u32, row: &Option<Row>| found.iter().all(|(other, _, its)| (*other == cid) == (its == row));
        let alone = found.iter().filter(|(cid, _, row)| row.is_some() && is_alone(*cid, row));
        self.known = alone.map(|(cid, pid, _)| (*cid, *pid)).collect();
    }

    fn row_of_process(&self, pid: u32) -> Option<Row> {
        row_of(&self.cgroup_of(pid)?)
    }

    fn cid_of(&self, pid: u32) -> Option<u32> {
        let file = fs::File::open(self.procfs.join(pid.to_string()).join("cmdline")).ok()?;
        let mut line = Vec::new();
        file.take(MAX_COMMAND).read_to_end(&mut line).ok()?;
        guest_cid(&line)
    }

    fn cgroup_of(&self, pid: u32) -> Option<String> {
        let text = read_limited(&self.procfs.join(pid.to_string()).join("cgroup"), 64 << 10).ok()?;
        cgroup_path(&text)
    }
}

/// The number of the guest in a command line of QEMU, as a property of its vsock device. Other
/// words do not count, because a user may choose them, as the name of a machine.
#[must_use]
pub fn guest_cid(line: &[u8]) -> Option<u32> {
    let mut words = line.split(|byte| *byte == 0);
    while let Some(word) = words.next() {
        if matches!(word, b"-device" | b"--device")
            && let Some(cid) = words.next().and_then(device_cid)
        {
            return Some(cid);
        }
    }
    None
}

/// The number in a device: `vhost-vsock-pci,guest-cid=3`, or the same as JSON.
fn device_cid(device: &[u8]) -> Option<u32> {
    let is_vsock = |driver: &str| driver.starts_with("vhost-vsock");
    if device.starts_with(b"{") {
        let device: serde_json::Value = serde_json::from_slice(device).ok()?;
        let driver = device.get("driver").and_then(serde_json::Value::as_str);
        let cid = device.get("guest-cid").filter(|_| driver.is_some_and(is_vsock))?;
        return u32::try_from(cid.as_u64()?).ok();
    }
    let (driver, properties) = std::str::from_utf8(device).ok()?.split_once(',')?;
    let mut properties = properties.split(',').filter(|_| is_vsock(driver));
    properties.find_map(|property| property.strip_prefix("guest-cid="))?.parse().ok()
}

/// The path in `/proc/PID/cgroup`: that of v2, else that of the cpu controller.
fn cgroup_path(text: &str) -> Option<String> {
    let lines = || text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let v2 = lines().find(|(controllers, path)| controllers.is_empty() && *path != "/");
    let v1 = || lines().find(|(controllers, _)| controllers.split(',').any(|name| name == "cpu"));
    v2.or_else(v1).map(|(_, path)| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        energy::zone::ZoneId,
        ledger::AccountId,
        snapshot::{AccountRow, ContainerRow, ZoneRow},
    };

    fn digest(token: &str) -> String {
        Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_token_belongs_to_one_guest() {
        let text = format!("# guests\n\nwin10  {}\n/qemu.slice/101.scope\t{}\n", digest("a"), digest("b"));
        let tokens = parse_tokens(&text).unwrap();
        assert_eq!(guest_of(&tokens, b"a"), Some("win10"));
        assert_eq!(guest_of(&tokens, b"b"), Some("/qemu.slice/101.scope"));
        assert_eq!((guest_of(&tokens, b"c"), guest_of(&tokens, b""), guest_of(&[], b"")), (None, None, None));
        let of_nothing = parse_tokens(&format!("win10 {}", digest(""))).unwrap();
        assert_eq!(guest_of(&of_nothing, b""), None);
    }

    #[test]
    fn an_invalid_file_of_tokens_is_refused_without_its_content() {
        let twice = format!("a {0}\nb {0}", digest("hunter2"));
        for text in ["win10", "win10 hunter2", &*digest("a"), &*twice, &*format!("a {}\nb +f", digest("a"))] {
            let why = parse_tokens(text).unwrap_err();
            assert!(why.starts_with("line ") && !why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn the_number_of_a_guest_is_in_its_command_line() {
        for line in [
            "qemu-system-x86_64\0-device\0vhost-vsock-pci,id=vsock0,guest-cid=3,vhostfd=27\0",
            "kvm\0-device\0{\"driver\":\"vhost-vsock-pci\",\"guest-cid\":3,\"vhostfd\":\"27\"}\0",
            "kvm\0-name\0guest=vhost-vsock,guest-cid=4\0-device\0virtio-rng\0-device\0vhost-vsock-pci,guest-cid=3\0",
        ] {
            assert_eq!(guest_cid(line.as_bytes()), Some(3));
        }
        for other in [
            "cat\0/x",
            "sh\0guest-cid=3\0",
            "kvm\0-device\0vhost-vsock-pci,guest-cid=x\0",
            "kvm\0-device\0vhost-vsock-pci,guest-cid=99999999999\0",
            "kvm\0-device\0virtio-blk-pci,serial=vhost-vsock,guest-cid=3\0",
            "kvm\0-device\0{\"driver\":\"virtio-blk-pci\",\"guest-cid\":3}\0",
            "kvm\0-device\0{\0-device",
        ] {
            assert_eq!(guest_cid(other.as_bytes()), None, "{other:?}");
        }
    }

    #[test]
    fn a_guest_is_found_by_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let process = |pid: u32, line: &str, cgroup: &str| {
            let at = dir.path().join(pid.to_string());
            fs::create_dir_all(&at).unwrap();
            fs::write(at.join("cmdline"), line).unwrap();
            fs::write(at.join("cgroup"), cgroup).unwrap();
        };
        let scope = "/machine.slice/machine-qemu\\x2d1\\x2dwin10.scope/libvirt/emulator";
        let qemu = |cid: u32| format!("qemu\0-device\0vhost-vsock-pci,guest-cid={cid}\0");
        process(7, &qemu(3), &format!("0::{scope}\n"));
        process(8, &qemu(4), "5:cpu,cpuacct:/vm4\n0::/\n");
        process(9, "sh\0", "0::/\n");
        let row = |runtime, name: &str| Some((runtime, name.to_owned()));
        let mut finder = GuestFinder { procfs: dir.path().to_owned(), known: HashMap::new(), searched: None };
        assert_eq!((finder.find(3), finder.find(4)), (row("libvirt", "win10"), row("cgroup", "vm4")));
        assert_eq!((finder.find(5), finder.known.len()), (None, 2));
        let docker = format!("/docker/{}", "0123456789abcdef".repeat(4));
        assert_eq!((row_of("/"), row_of("/user.slice/session-1.scope"), row_of(&docker)), (None, None, None));
        // A second guest in the cgroup of another, whose row then has both.
        process(10, &qemu(5), "0::/vm4/nested\n");
        process(11, &qemu(6), "0::/vm4\n");
        finder.searched = None;
        assert_eq!(finder.find(6), None);
        assert_eq!((finder.find(4), finder.find(3), finder.known.len()), (None, row("libvirt", "win10"), 2));
        // Another process pretends to be the guest.
        process(12, &qemu(3), "0::/other\n");
        (finder.searched, finder.known) = (None, HashMap::new());
        assert_eq!(finder.find(3), None);
    }

    #[test]
    fn an_answer_is_the_sum_of_the_newest_row() {
        let container =
            |number: u32| Arc::new(Container::new(number, "win10".to_owned(), format!("/vm{number}"), "libvirt"));
        let id = |package: u32, kind, origin| AccountId {
            zone: ZoneId { package: Some(crate::host::topology::PackageId::whole(package)), kind },
            origin,
        };
        let account = |id: AccountId, own: u64, idle: u64| AccountRow {
            id,
            containers: vec![(container(1), Microjoules(1000)), (container(2), Microjoules(own))],
            idle_shares: vec![(container(2), Microjoules(idle))],
            awake_shares: vec![(container(2), Microjoules(1))],
            retired: Microjoules::ZERO,
            system: Microjoules::ZERO,
            idle: Microjoules::ZERO,
            unattributed: Microjoules::ZERO,
        };
        let row = |number: u32| ContainerRow {
            container: container(number),
            cpu: Arc::default(),
            cpu_ratio: None,
            watts: Arc::default(),
            queue: None,
            uncertainty: Some(3.0),
            minute: None,
        };
        let ids = [
            id(0, ZoneKind::Package, Origin::Perf),
            id(1, ZoneKind::Package, Origin::Perf),
            id(0, ZoneKind::Dram, Origin::Perf),
        ];
        let zone = |id: AccountId| ZoneRow { id: id.zone, origin: id.origin, total: Microjoules::ZERO, watts: None };
        let mut snapshot = Snapshot {
            zones: ids.map(zone).to_vec(),
            accounts: vec![account(ids[0], 5, 2), account(ids[1], 7, 0), account(ids[2], 3, 0)],
            containers: vec![row(1), row(2)],
            ..Snapshot::default()
        };
        let read = |snapshot: &Snapshot, name: &str| {
            of_snapshot(snapshot, 1.5, Duration::from_secs(1), |container| container.name == name)
        };
        let answer = read(&snapshot, "win10").unwrap();
        assert_eq!((answer.package_microjoules, answer.dram_microjoules), (14, Some(3)));
        assert_eq!((&*answer.epoch, &*answer.source, answer.uncertainty_ratio), ("1.5-2-/vm2", "perf", Some(1.0)));
        let json = serde_json::to_vec(&answer).unwrap();
        assert_eq!(HostAnswer::parse(&json), Ok(answer));
        assert_eq!(read(&snapshot, "other"), Err(Missing::Row));
        let same_name = Container::new(3, "win10".to_owned(), "0a".to_owned(), "docker");
        snapshot.containers.push(ContainerRow { container: Arc::new(same_name), ..row(2) });
        assert_eq!(read(&snapshot, "win10"), Err(Missing::Name));
        snapshot.containers.pop();
        snapshot.zones[1].origin = Origin::Simulated;
        assert_eq!(read(&snapshot, "win10").unwrap().source, "simulated", "a part that is not measured is named");
        snapshot.zones.clear();
        assert_eq!(read(&snapshot, "win10"), Err(Missing::Source));
    }
}
