//! Workload identity: cgroup id -> container -> name and image.
//!
//! A container has one identity, its runtime's id, even if it spans several cgroups and trees. A
//! cgroup without a container is identified by its own id. Numbers of identities are never reused,
//! so the ledger can refer to them.

mod charge_target;
mod container;
pub mod name_resolver;
pub mod path;
pub mod runtime_files;
pub mod stats;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

pub use charge_target::ChargeTarget;
pub use container::{Container, Runtime};
use metrics::label;
use name_resolver::{NameReply, NameResolver};
use path::Workload;
use runtime_files::RuntimeFiles;
use stats::CgroupPath;

use crate::cgroup::{
    CgroupKey, hierarchy,
    tree::{Scan, Trees},
};

/// Longest time a tick waits for the names of new containers.
const NAME_TIMEOUT: Duration = Duration::from_millis(150);
/// Delay before a failed name request is repeated. It doubles up to [`MAX_RETRY`], because an
/// engine may be busy starting that container, or stopped for an hour.
const MIN_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(30);
/// Interval between scans for removed cgroups; a new cgroup triggers a scan at once.
const SCAN_INTERVAL: Duration = Duration::from_secs(10);

/// Two cgroups with the same identity belong to the same workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Identity {
    Container(String),
    Cgroup(CgroupKey),
    /// A containerd container with a name instead of an id: `namespace/name`.
    Task(String),
    /// A systemd unit with a job in it, by the path of its cgroup.
    Unit(String),
    /// A job that shares its cgroup with other processes, by its number.
    Process(u32),
}

#[derive(Debug)]
struct ContainerRecord {
    container: Arc<Container>,
    identity: Identity,
    cgroups: HashSet<CgroupKey>,
    /// True once it has used CPU time. Any process that may create cgroups can create one that
    /// looks like a container, so containers that ran have priority when series are scarce.
    ran: bool,
    gone_at: Option<Instant>,
    /// CPU limit of `cpu.max` in thousandths of a CPU; read only under the idle policy that needs
    /// it.
    reserved: Option<u64>,
    /// Time of the next name request; `None` when the name is final.
    resolve_at: Option<Instant>,
    retry_delay: Duration,
    /// The container's cgroup in each tree; empty for other workloads.
    cgroup_paths: Vec<CgroupPath>,
}

impl ContainerRecord {
    fn new(container: Container, identity: Identity, cgroups: HashSet<CgroupKey>, ran: bool) -> Self {
        Self {
            container: Arc::new(container),
            identity,
            cgroups,
            ran,
            gone_at: None,
            reserved: None,
            resolve_at: None,
            retry_delay: MIN_RETRY,
            cgroup_paths: Vec::new(),
        }
    }
}

/// Configuration of the registry.
#[derive(Clone, Debug)]
pub struct RegistryLimits {
    /// Maximum number of containers with series of their own.
    pub containers: usize,
    /// Time for which the series of a removed container are kept.
    pub retain: Duration,
    /// True to read the CPU limits of containers.
    pub reservations: bool,
    /// Names of the container labels to export.
    pub labels: Vec<String>,
}

/// All cgroups and containers of the host.
pub struct ContainerRegistry {
    trees: Trees,
    names: Option<NameResolver>,
    files: RuntimeFiles,
    limits: RegistryLimits,
    targets: HashMap<CgroupKey, ChargeTarget>,
    records: BTreeMap<u32, ContainerRecord>,
    numbers: HashMap<Identity, u32>,
    next: u32,
    last_scan: Option<Instant>,
    /// The paths of all cgroups in the last scan.
    last_paths: HashMap<CgroupKey, String>,
    /// Cgroups found removed in this tick, and in the tick before. Only the next reading contains
    /// their last CPU time, so they are released one tick later.
    departing: [Vec<CgroupKey>; 2],
    /// Containers whose series ended in this tick.
    ended: Vec<u32>,
    /// Workloads without series because of the limit; each is counted once, whatever the number of
    /// its cgroups.
    over_limit: HashSet<Identity>,
    dropped: u64,
    unnamed: u64,
    incomplete_scans: u64,
}

impl ContainerRegistry {
    /// An empty registry.
    #[must_use]
    pub fn new(trees: Trees, names: Option<NameResolver>, files: RuntimeFiles, limits: RegistryLimits) -> Self {
        Self {
            trees,
            names,
            files,
            limits,
            targets: HashMap::new(),
            records: BTreeMap::new(),
            numbers: HashMap::new(),
            next: 0,
            last_scan: None,
            last_paths: HashMap::new(),
            departing: [Vec::new(), Vec::new()],
            ended: Vec::new(),
            over_limit: HashSet::new(),
            dropped: 0,
            unnamed: 0,
            incomplete_scans: 0,
        }
    }

    /// Updates the registry with the cgroups of a reading. Returns the containers whose series end
    /// now.
    pub fn observe(&mut self, reading: impl Iterator<Item = CgroupKey>, now: Instant) -> Vec<u32> {
        let mut without_series = HashSet::new();
        let mut any_unknown = false;
        for key in reading {
            match self.targets.get(&key) {
                None => {
                    any_unknown = true;
                    without_series.insert(key);
                }
                Some(ChargeTarget::Retired) => {
                    without_series.insert(key);
                }
                Some(ChargeTarget::Container(number)) => {
                    if let Some(record) = self.records.get_mut(number) {
                        record.ran = true;
                    }
                }
                Some(ChargeTarget::System) => {}
            }
        }
        let due = self.last_scan.is_none_or(|last| now.duration_since(last) >= SCAN_INTERVAL);
        if due || any_unknown {
            self.last_scan = Some(now);
            let Scan { live, complete } = self.trees.scan();
            self.insert_new(&live, &without_series, now);
            if self.limits.reservations {
                for record in self.records.values_mut() {
                    let limits = record.cgroups.iter().filter_map(|key| self.trees.reserved(key, live.get(key)?));
                    record.reserved = limits.min();
                }
            }
            if complete {
                self.mark_gone(&live, now);
            } else {
                self.incomplete_scans += 1;
            }
            self.last_paths = live;
        }
        self.resolve_names(now);
        self.retire_due(now)
    }

    /// Ends the tick: returns the cgroups whose last reading was just posted, so that their slots
    /// in the kernel can be freed.
    ///
    /// `ran` is true for a cgroup that ran in this tick. Such a cgroup keeps its slot for one more
    /// tick: its last reading may be still to come, and a total that is freed too early is lost.
    pub fn take_departed(&mut self, ran: impl Fn(&CgroupKey) -> bool) -> Vec<CgroupKey> {
        let [now, before] = &mut self.departing;
        let (stay, gone): (Vec<_>, Vec<_>) = std::mem::take(before).into_iter().partition(ran);
        *before = std::mem::take(now);
        before.extend(stay);
        for key in &gone {
            self.targets.remove(key);
        }
        gone
    }

    /// The target that is charged for the CPU time of this cgroup.
    #[must_use]
    pub fn charge_target(&self, key: &CgroupKey) -> ChargeTarget {
        self.targets.get(key).copied().unwrap_or(ChargeTarget::System)
    }

    /// The same; `None` for a cgroup that is not in the registry.
    #[must_use]
    pub fn known_charge_target(&self, key: &CgroupKey) -> Option<ChargeTarget> {
        self.targets.get(key).copied()
    }

    /// Assigns a charge target to every new cgroup. A container is inserted as soon as it exists, a
    /// plain cgroup only when it runs, because a host has many empty ones. `running` are the
    /// cgroups of the reading without series.
    fn insert_new(&mut self, live: &HashMap<CgroupKey, String>, running: &HashSet<CgroupKey>, now: Instant) {
        // A workload that was over the limit before may fit now.
        let open = |key: &CgroupKey| matches!(self.targets.get(key), None | Some(ChargeTarget::Retired));
        let mut new: Vec<(&CgroupKey, &String)> = live.iter().filter(|(key, _)| open(key)).collect();
        new.sort_unstable();
        for (key, path) in new {
            match path::classify(path) {
                Workload::System => {
                    self.targets.insert(*key, ChargeTarget::System);
                }
                Workload::Container { runtime, id } => {
                    let resolve_at = Some(now);
                    let identity = Identity::Container(id.to_owned());
                    let ran = running.contains(key);
                    let target = self.insert(*key, identity, ran, runtime, short(id), short(id), resolve_at);
                    self.record_path(target, key.hierarchy, path::topmost(path, id));
                    self.targets.insert(*key, target);
                }
                Workload::Plain if let Some((namespace, id)) = self.files.task(path) => {
                    let whole = format!("{namespace}/{id}");
                    let identity = Identity::Task(whole.clone());
                    let target = self.insert(*key, identity, running.contains(key), "containerd", id, &whole, None);
                    self.record_path(target, key.hierarchy, &format!("/{whole}"));
                    self.targets.insert(*key, target);
                }
                Workload::Plain if running.contains(key) || self.targets.contains_key(key) => {
                    let tree = if key.hierarchy == hierarchy::V1_CPU { "cgroup1" } else { "cgroup2" };
                    let id = format!("{tree}:{}", key.id);
                    let name = path.trim_start_matches('/');
                    let target = self.insert(*key, Identity::Cgroup(*key), true, "cgroup", name, &id, None);
                    self.targets.insert(*key, target);
                }
                Workload::Plain => {}
            }
        }
        for key in running {
            if !self.targets.contains_key(key) {
                // It was created and removed between two ticks: its CPU time counts, but its path
                // is unknown.
                self.unnamed += 1;
                self.targets.insert(*key, ChargeTarget::System);
            }
        }
    }

    /// Records a container's topmost cgroup in a tree.
    fn record_path(&mut self, target: ChargeTarget, hierarchy: u64, path: &str) {
        if let ChargeTarget::Container(number) = target
            && let Some(record) = self.records.get_mut(&number)
            && !record.cgroup_paths.iter().any(|other| other.hierarchy == hierarchy)
        {
            record.cgroup_paths.push(CgroupPath { hierarchy, path: path.to_owned() });
        }
    }

    /// Adds a cgroup to its workload, which is created when it is new.
    #[expect(clippy::too_many_arguments, reason = "the properties of a new workload; there are few callers")]
    fn insert(
        &mut self,
        key: CgroupKey,
        identity: Identity,
        ran: bool,
        runtime: &'static str,
        name: &str,
        id: &str,
        resolve_at: Option<Instant>,
    ) -> ChargeTarget {
        if let Some(number) = self.numbers.get(&identity) {
            if let Some(record) = self.records.get_mut(number) {
                record.cgroups.insert(key);
                record.ran |= ran;
                record.gone_at = None;
            }
            return ChargeTarget::Container(*number);
        }
        if self.records.len() >= self.limits.containers && !self.make_room(ran) {
            self.dropped += u64::from(self.over_limit.insert(identity));
            return ChargeTarget::Retired;
        }
        self.over_limit.remove(&identity);
        let number = self.next;
        self.next += 1;
        let container = Container::new(number, label::sanitize(name), label::sanitize(id), runtime);
        self.numbers.insert(identity.clone(), number);
        let record = ContainerRecord::new(container, identity, HashSet::from([key]), ran);
        self.records.insert(number, ContainerRecord { resolve_at, ..record });
        ChargeTarget::Container(number)
    }

    /// Ends the series of one container early: of the one that was removed first, or, if the new
    /// container runs, of one that never ran. Returns false when there is no such container.
    fn make_room(&mut self, new_one_runs: bool) -> bool {
        let gone = self.records.iter().filter(|(number, _)| self.is_over(**number));
        let gone = gone.min_by_key(|(_, record)| record.gone_at).map(|(number, _)| *number);
        let idle = || self.records.iter().find(|(_, record)| !record.ran).map(|(number, _)| *number);
        let Some(number) = gone.or_else(|| new_one_runs.then(idle).flatten()) else { return false };
        self.end(number);
        true
    }

    /// True when a container was removed and its last reading was posted.
    fn is_over(&self, number: u32) -> bool {
        self.records.get(&number).is_some_and(|record| record.gone_at.is_some())
            && !self
                .departing
                .iter()
                .flatten()
                .any(|key| self.targets.get(key) == Some(&ChargeTarget::Container(number)))
    }

    fn end(&mut self, number: u32) {
        if let Some(record) = self.records.remove(&number) {
            for key in &record.cgroups {
                self.targets.insert(*key, ChargeTarget::Retired);
            }
            self.numbers.remove(&record.identity);
            self.ended.push(number);
        }
    }

    /// Marks the cgroups that are missing in a scan as removed. The scan must be complete.
    fn mark_gone(&mut self, live: &HashMap<CgroupKey, String>, now: Instant) {
        self.over_limit.retain(|identity| match identity {
            Identity::Cgroup(key) => live.contains_key(key),
            Identity::Container(id) => live.values().any(|path| path.contains(id.as_str())),
            Identity::Task(task) => live.values().any(|path| path.contains(task.as_str())),
            Identity::Unit(unit) => live.values().any(|path| path == unit),
            Identity::Process(_) => false,
        });
        let marked: HashSet<CgroupKey> = self.departing.iter().flatten().copied().collect();
        for (key, target) in &self.targets {
            if live.contains_key(key) || marked.contains(key) {
                continue;
            }
            self.departing[0].push(*key);
            if let ChargeTarget::Container(number) = target
                && let Some(record) = self.records.get_mut(number)
            {
                record.cgroups.remove(key);
                if record.cgroups.is_empty() {
                    record.gone_at = Some(now);
                }
            }
        }
    }

    /// Requests and applies names. A tick waits only for the names of new containers, and only
    /// while Docker responds.
    fn resolve_names(&mut self, now: Instant) {
        let Some(names) = &mut self.names else { return };
        let mut any_new = false;
        for record in self.records.values_mut().filter(|record| record.gone_at.is_none()) {
            if let Identity::Container(id) = &record.identity
                && let Some(at) = record.resolve_at
                && at <= now
            {
                any_new |= at == now;
                names.request(id, record.container.runtime);
                record.resolve_at = Some(now + MAX_RETRY);
            }
        }
        let timeout = if any_new && names.state().is_ok() { NAME_TIMEOUT } else { Duration::ZERO };
        for (id, reply) in names.collect(timeout) {
            let number = self.numbers.get(&Identity::Container(id));
            let Some(record) = number.and_then(|number| self.records.get_mut(number)) else { continue };
            match reply {
                NameReply::Found(metadata) => {
                    // The file of a runtime may list a container without its name.
                    let name = match &*metadata.name {
                        "" => record.container.name.clone(),
                        name => label::sanitize(name),
                    };
                    let select = |key: &String| Some((key.clone(), label::sanitize(metadata.labels.get(key)?)));
                    record.container = Arc::new(Container {
                        name,
                        image: label::sanitize(&metadata.image),
                        pod: label::sanitize(&metadata.pod),
                        namespace: label::sanitize(&metadata.namespace),
                        labels: self.limits.labels.iter().filter_map(select).collect(),
                        ..(*record.container).clone()
                    });
                    record.resolve_at = None;
                }
                NameReply::NotFound => record.resolve_at = None,
                NameReply::Failed => {
                    record.resolve_at = Some(now + record.retry_delay);
                    record.retry_delay = (record.retry_delay * 2).min(MAX_RETRY);
                }
            }
        }
    }

    /// Assigns a job in the cgroup `key` to a workload. Returns the charge target of that cgroup,
    /// and the container number of the job's own row where it has one.
    ///
    /// A job in a container or in a plain cgroup is a part of that. A systemd unit with a job
    /// becomes a workload. In all other places (login session, root cgroup) the job gets a row of
    /// its own, so that it is not merged with the shell that started it.
    pub fn attach_job(
        &mut self,
        key: &CgroupKey,
        job: u32,
        stream: Option<&str>,
        now: Instant,
    ) -> (ChargeTarget, Option<u32>) {
        // A cgroup created since the last scan must be scanned now: a job in a container that got
        // its own row would be charged twice.
        if !self.last_paths.contains_key(key) {
            self.last_paths = self.trees.scan().live;
        }
        if !self.targets.contains_key(key) {
            let live = std::mem::take(&mut self.last_paths);
            self.insert_new(&live, &HashSet::from([*key]), now);
            self.last_paths = live;
        }
        match self.charge_target(key) {
            ChargeTarget::System => {}
            target => return (target, None),
        }
        if let Some(path) = self.last_paths.get(key).cloned()
            && let Some(unit) = path::unit(&path)
        {
            let (name, id) = (unit.to_owned(), format!("unit:{}", key.id));
            let target = self.insert(*key, Identity::Unit(path.clone()), true, "systemd", &name, &id, None);
            self.targets.insert(*key, target);
            return (target, None);
        }
        if self.records.len() >= self.limits.containers && !self.make_room(true) {
            self.dropped += 1;
            return (ChargeTarget::System, None);
        }
        let number = self.next;
        self.next += 1;
        let (name, id) = (label::sanitize(stream.unwrap_or("ffmpeg")), format!("job:{job}"));
        let container = Container::new(number, name, id, "process");
        let identity = Identity::Process(job);
        self.numbers.insert(identity.clone(), number);
        self.records.insert(number, ContainerRecord::new(container, identity, HashSet::new(), true));
        (ChargeTarget::System, Some(number))
    }

    /// Marks the row of a job as removed when the job ends.
    pub fn detach_job(&mut self, number: u32, now: Instant) {
        if let Some(record) = self.records.get_mut(&number) {
            record.gone_at = Some(now);
        }
    }

    /// The workload's cgroup of a process, by its directory in procfs.
    #[must_use]
    pub fn cgroup_of(&self, process: &Path) -> Option<CgroupKey> {
        self.trees.cgroup_of_process(process)
    }

    fn retire_due(&mut self, now: Instant) -> Vec<u32> {
        let retain = self.limits.retain;
        let due = |record: &ContainerRecord| record.gone_at.is_some_and(|at| now.duration_since(at) >= retain);
        let over: Vec<u32> = self
            .records
            .iter()
            .filter(|(number, record)| due(record) && self.is_over(**number))
            .map(|(number, _)| *number)
            .collect();
        for number in over {
            self.end(number);
        }
        std::mem::take(&mut self.ended)
    }

    /// Every container with series, by number.
    pub fn containers(&self) -> impl Iterator<Item = &Arc<Container>> {
        self.records.values().map(|record| &record.container)
    }

    /// Every container of a runtime, with its cgroup in each tree.
    pub fn cgroup_paths(&self) -> impl Iterator<Item = (&Arc<Container>, &[CgroupPath])> {
        let containers = self
            .records
            .values()
            .filter(|record| matches!(record.identity, Identity::Container(_) | Identity::Task(_)));
        containers.map(|record| (&record.container, &*record.cgroup_paths))
    }

    /// CPU limit of each container in thousandths of a CPU; 0 without a limit.
    pub fn reservations(&self) -> impl Iterator<Item = (u32, u64)> {
        self.records
            .iter()
            .filter(|_| self.limits.reservations)
            .map(|(number, record)| (*number, record.reserved.unwrap_or(0)))
    }

    /// The labels of one container.
    #[must_use]
    pub fn container(&self, number: u32) -> Option<&Arc<Container>> {
        self.records.get(&number).map(|record| &record.container)
    }

    /// Number of containers without series because the limit was reached.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Number of cgroups that ran and were removed before their path was read.
    #[must_use]
    pub fn unnamed(&self) -> u64 {
        self.unnamed
    }

    /// Number of scans that could not read all cgroups.
    #[must_use]
    pub fn incomplete_scans(&self) -> u64 {
        self.incomplete_scans
    }

    /// The name resolver; `None` when it is switched off.
    #[must_use]
    pub fn names(&self) -> Option<&NameResolver> {
        self.names.as_ref()
    }

    /// `v2`, `v1` or `hybrid`.
    #[must_use]
    pub fn layout(&self) -> &'static str {
        self.trees.layout()
    }
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const A: &str = "aaaa456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const B: &str = "bbbb456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    struct Host {
        dir: tempfile::TempDir,
        registry: ContainerRegistry,
        now: Instant,
    }

    impl Host {
        fn new(containers: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for tree in ["unified", "cpu"] {
                fs::create_dir_all(dir.path().join(tree)).unwrap();
            }
            fs::write(dir.path().join("unified/cgroup.controllers"), "").unwrap();
            fs::write(dir.path().join("cpu/tasks"), "").unwrap();
            let trees = Trees::find(dir.path()).unwrap();
            let limits =
                RegistryLimits { containers, retain: Duration::from_secs(300), reservations: true, labels: Vec::new() };
            let files = RuntimeFiles::new(dir.path());
            Self { registry: ContainerRegistry::new(trees, None, files, limits), dir, now: Instant::now() }
        }

        fn path(&self, path: &str) -> std::path::PathBuf {
            self.dir.path().join(path)
        }

        fn make(&self, path: &str) -> CgroupKey {
            use std::os::unix::fs::MetadataExt as _;
            fs::create_dir_all(self.path(path)).unwrap();
            let hierarchy = if path.starts_with("cpu") { hierarchy::V1_CPU } else { hierarchy::V2 };
            CgroupKey { id: fs::metadata(self.path(path)).unwrap().ino(), hierarchy }
        }

        /// Moves a cgroup out of the trees. It keeps its inode number, which a file system would
        /// reuse after a removal.
        fn remove(&self, path: &str) {
            let away = self.path(&format!("away-{}", testkit::fixture::unique("cgroup")));
            fs::rename(self.path(path), away).unwrap();
        }

        /// One tick: returns the departed cgroups and the retired containers.
        fn tick(&mut self, seconds: u64, reading: &[CgroupKey]) -> (Vec<CgroupKey>, Vec<u32>) {
            self.now += Duration::from_secs(seconds);
            let retired = self.registry.observe(reading.iter().copied(), self.now);
            (self.registry.take_departed(|_| false), retired)
        }

        fn labels(&self) -> Vec<(&str, &str, &str)> {
            self.registry.containers().map(|c| (&*c.name, &*c.id, c.runtime)).collect()
        }
    }

    /// A job is attached as soon as it is executed, which may be before the first scan of its
    /// cgroup.
    #[test]
    fn a_job_in_an_unscanned_container_has_no_row_of_its_own() {
        let mut host = Host::new(10);
        host.tick(1, &[]);
        let keys = [
            host.make(&format!("unified/docker-{A}.scope")),
            host.make("unified/encode"),
            host.make("unified/system.slice/encode@1.service"),
            host.make("unified/user.slice/user-0.slice/session-1.scope"),
        ];
        let now = host.now;
        let attached: Vec<_> =
            (0..).zip(&keys).map(|(job, key)| host.registry.attach_job(key, job, Some("cam"), now)).collect();
        assert!(
            attached[..3].iter().all(|(target, own)| matches!(target, ChargeTarget::Container(_)) && own.is_none())
        );
        let (ChargeTarget::System, Some(own)) = attached[3] else { panic!("{attached:?}") };
        let runtimes: Vec<&str> = host.labels().iter().map(|labels| labels.2).collect();
        assert_eq!(runtimes, ["docker", "cgroup", "systemd", "process"]);
        // The row is removed after the retention time.
        host.registry.detach_job(own, host.now);
        assert_eq!(host.tick(301, &keys).1, [own]);
    }

    #[test]
    fn a_container_in_both_trees_is_one_container() {
        let mut host = Host::new(10);
        let v2 = host.make(&format!("unified/docker/{A}"));
        let v1 = host.make(&format!("cpu/docker/{A}"));
        host.tick(0, &[v2]);
        assert_eq!(host.labels(), [("aaaa456789ab", "aaaa456789ab", "docker")]);
        assert_eq!(host.registry.charge_target(&v1), host.registry.charge_target(&v2));
    }

    #[test]
    fn plain_cgroups_are_added_when_they_run_one_for_each_tree() {
        let mut host = Host::new(10);
        let (v2, v1) = (host.make("unified/job"), host.make("cpu/job"));
        host.make("unified/never-runs");
        host.tick(0, &[v2]);
        host.tick(1, &[v2, v1]);
        let ids = [format!("cgroup2:{}", v2.id), format!("cgroup1:{}", v1.id)];
        assert_eq!(host.labels(), [("job", &*ids[0], "cgroup"), ("job", &*ids[1], "cgroup")]);
        assert_ne!(host.registry.charge_target(&v1), host.registry.charge_target(&v2));
    }

    #[test]
    fn a_cpu_limit_is_a_reservation() {
        let mut host = Host::new(10);
        let (a, b) = (format!("unified/docker/{A}"), format!("cpu/docker/{B}"));
        let (v2, v1) = (host.make(&a), host.make(&b));
        let reserved = |host: &Host| host.registry.reservations().map(|(_, milli)| milli).collect::<Vec<_>>();
        host.tick(0, &[v2]);
        host.tick(1, &[v1]);
        assert_eq!(reserved(&host), [0, 0]);
        fs::write(host.path(&a).join("cpu.max"), "150000 100000\n").unwrap();
        fs::write(host.path(&b).join("cpu.cfs_quota_us"), "-1\n").unwrap();
        fs::write(host.path(&b).join("cpu.cfs_period_us"), "100000\n").unwrap();
        host.tick(20, &[]);
        assert_eq!(reserved(&host), [1500, 0]);
        fs::write(host.path(&a).join("cpu.max"), "max 100000\n").unwrap();
        fs::write(host.path(&b).join("cpu.cfs_quota_us"), "50000\n").unwrap();
        host.tick(20, &[]);
        let numbers: Vec<_> = host.registry.containers().map(|container| container.id.as_str()).collect();
        let expected = if numbers[0].starts_with('a') { [0, 500] } else { [500, 0] };
        assert_eq!(reserved(&host), expected);
    }

    #[test]
    fn a_removed_container_retires_after_the_retention_time() {
        let mut host = Host::new(10);
        let path = format!("unified/docker/{A}");
        let key = host.make(&path);
        host.tick(0, &[key]);
        host.remove(&path);
        host.tick(10, &[key]);
        assert_eq!(host.tick(299, &[key]), (vec![key], vec![]));
        assert_eq!(host.labels().len(), 1);
        assert_eq!(host.tick(1, &[]).1, [0]);
        assert_eq!(host.labels().len(), 0);
    }

    #[test]
    fn without_retention_a_container_retires_after_its_last_reading() {
        let mut host = Host::new(10);
        host.registry.limits.retain = Duration::ZERO;
        let path = format!("unified/docker/{A}");
        let key = host.make(&path);
        host.tick(0, &[key]);
        host.remove(&path);
        assert_eq!(host.tick(10, &[key]).1, Vec::<u32>::new());
        assert_eq!(host.tick(1, &[key]), (vec![key], vec![]));
        assert_eq!(host.tick(1, &[]).1, [0]);
    }

    #[test]
    fn a_removed_container_is_charged_for_its_last_reading() {
        let mut host = Host::new(10);
        let path = format!("unified/docker/{A}");
        let key = host.make(&path);
        host.tick(0, &[key]);
        host.remove(&path);
        host.registry.observe([key].into_iter(), host.now + Duration::from_secs(10));
        assert_eq!(
            host.registry.charge_target(&key),
            ChargeTarget::Container(0),
            "in the tick in which the removal is found"
        );
        assert_eq!(host.registry.take_departed(|_| false), []);
        host.registry.observe([key].into_iter(), host.now + Duration::from_secs(11));
        assert_eq!(
            host.registry.charge_target(&key),
            ChargeTarget::Container(0),
            "and in the one whose reading is the last"
        );
        assert_eq!(host.registry.take_departed(|_| false), [key]);
    }

    #[test]
    fn a_container_restarted_within_the_retention_keeps_its_series() {
        let mut host = Host::new(10);
        let path = format!("unified/docker/{A}");
        let key = host.make(&path);
        host.tick(0, &[key]);
        host.remove(&path);
        host.tick(10, &[]);
        let again = host.make(&path);
        host.tick(10, &[again]);
        assert_eq!(host.registry.charge_target(&again), ChargeTarget::Container(0));
        assert_eq!(host.tick(1000, &[]).1, Vec::<u32>::new());
    }

    #[test]
    fn containers_over_the_limit_are_counted_without_series() {
        let mut host = Host::new(1);
        let first = host.make(&format!("unified/docker/{A}"));
        host.tick(0, &[first]);
        let second = host.make(&format!("unified/docker/{B}"));
        host.tick(1, &[second]);
        assert_eq!(host.registry.charge_target(&second), ChargeTarget::Retired);
        assert_eq!((host.registry.dropped(), host.labels().len()), (1, 1));
    }

    #[test]
    fn a_running_container_replaces_one_that_never_ran() {
        let mut host = Host::new(1);
        let idle = host.make(&format!("unified/docker/{A}"));
        host.tick(0, &[]);
        assert_eq!(host.registry.charge_target(&idle), ChargeTarget::Container(0));
        let busy = host.make(&format!("unified/docker/{B}"));
        let (_, ended) = host.tick(1, &[busy]);
        assert_eq!((ended, host.registry.charge_target(&busy)), (vec![0], ChargeTarget::Container(1)));
        assert_eq!(host.registry.charge_target(&idle), ChargeTarget::Retired);
        // The idle one runs now, but both have run: none is replaced.
        host.tick(20, &[busy, idle]);
        assert_eq!(host.registry.charge_target(&idle), ChargeTarget::Retired);
        assert_eq!((host.registry.charge_target(&busy), host.registry.dropped()), (ChargeTarget::Container(1), 1));
    }

    #[test]
    fn a_container_over_the_limit_is_counted_once_for_all_cgroups() {
        let mut host = Host::new(1);
        let first = host.make(&format!("unified/docker/{A}"));
        host.tick(0, &[first]);
        let (v2, v1) = (host.make(&format!("unified/docker/{B}")), host.make(&format!("cpu/docker/{B}")));
        host.tick(1, &[first, v2, v1]);
        assert_eq!(host.registry.dropped(), 1);
    }

    #[test]
    fn an_incomplete_scan_removes_no_container() {
        let mut host = Host::new(10);
        let key = host.make(&format!("unified/docker/{A}"));
        host.tick(0, &[key]);
        fs::rename(host.path("unified"), host.path("away")).unwrap();
        assert_eq!(host.tick(20, &[key]).0, []);
        assert_eq!(host.tick(20, &[key]).0, []);
        assert_eq!(host.registry.charge_target(&key), ChargeTarget::Container(0));
        assert_eq!(host.registry.incomplete_scans(), 2);
    }

    #[test]
    fn a_removed_cgroup_that_still_runs_keeps_its_slot() {
        let mut host = Host::new(10);
        let path = format!("unified/docker/{A}");
        let key = host.make(&path);
        host.tick(0, &[key]);
        host.remove(&path);
        host.tick(10, &[key]);
        for seconds in 11..15 {
            host.registry.observe([key].into_iter(), host.now + Duration::from_secs(seconds));
            assert_eq!(host.registry.take_departed(|_| true), []);
        }
        assert_eq!(host.registry.take_departed(|_| false), [key]);
    }

    #[test]
    fn a_container_over_the_limit_gets_series_when_one_ends() {
        let mut host = Host::new(1);
        let (first, second) = (format!("unified/docker/{A}"), format!("unified/docker/{B}"));
        let (a, b) = (host.make(&first), host.make(&second));
        host.tick(0, &[a, b]);
        let [over_limit, with_series] =
            if host.registry.charge_target(&a) == ChargeTarget::Retired { [a, b] } else { [b, a] };
        host.tick(20, &[a, b]);
        assert_eq!(host.registry.dropped(), 1, "counted once");
        host.remove(if with_series == a { &first } else { &second });
        host.tick(20, &[a, b]);
        host.tick(20, &[a, b]);
        // Before the end of the retention time, because a running container needs the series.
        let (_, retired) = host.tick(20, &[over_limit]);
        assert_eq!(retired, [0]);
        assert_eq!(host.registry.charge_target(&over_limit), ChargeTarget::Container(1));
    }

    #[test]
    fn a_cgroup_removed_before_its_scan_counts_as_system() {
        let mut host = Host::new(10);
        let ghost = CgroupKey { id: 999_999_999, hierarchy: hierarchy::V2 };
        host.tick(0, &[ghost]);
        assert_eq!(host.registry.charge_target(&ghost), ChargeTarget::System);
        assert_eq!(host.registry.unnamed(), 1);
        assert_eq!(host.tick(1, &[ghost]).0, [ghost]);
        assert_eq!(host.registry.unnamed(), 1);
    }
}
