//! Who a cgroup is: cgroup id -> container -> name and image.
//!
//! One workload is one identity: a container by its runtime's id, however many cgroups and trees it spans; a cgroup made
//! by hand by its own id. Identities are numbered once and never reused, so the ledger can hold numbers.

pub mod docker;
pub mod files;
pub mod path;
pub mod stats;
pub mod tree;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use docker::{Names, Said};
use exporter::label;
use files::Files;
use path::Workload;
use serde::{Deserialize, Deserializer, Serialize};
use stats::Home;
use tree::{Scan, Trees};

use crate::{
    cpu::{CgroupKey, hierarchy},
    ledger::Holder,
};

/// How long a tick may wait for the names of containers that it sees for the first time.
const NAME_PATIENCE: Duration = Duration::from_millis(150);
/// A name that could not be had is asked for again after the first time, doubled each time up to the second: an engine may be busy with the very container that it starts, or
/// away for an hour.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Without a cgroup that is new to us, how often the trees are looked at for cgroups that have gone.
const SCAN_EVERY: Duration = Duration::from_secs(10);

/// What the outside is told of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The probe's own number; never reused.
    pub number: u32,
    /// The label `container`: the name, or the short id when there is none.
    pub name: String,
    /// The label `id`: the first 12 digits of the container's id, or the cgroup's id.
    pub id: String,
    /// The label `image`; empty when unknown.
    pub image: String,
    /// The label `runtime`: `docker`, `containerd`, …, `cgroup` for one made by hand.
    #[serde(deserialize_with = "runtime")]
    pub runtime: Runtime,
    /// The pod that it is in; empty outside of Kubernetes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// That pod's namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Labels that the user wants to see, and their values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<(String, String)>,
}

impl Container {
    /// Without a pod and labels.
    #[must_use]
    pub fn plain(number: u32, name: String, id: String, runtime: Runtime) -> Self {
        let (image, pod, namespace) = (String::new(), String::new(), String::new());
        Self { number, name, id, image, runtime, pod, namespace, labels: Vec::new() }
    }

    /// Labels that only containers of pods have.
    #[must_use]
    pub fn of_pod(&self) -> Vec<(&'static str, &str)> {
        if self.pod.is_empty() { Vec::new() } else { vec![("pod", &self.pod), ("namespace", &self.namespace)] }
    }
}

/// One of a few words. By a name of its own, because serde takes every visible `&str` for borrowed from its input.
pub type Runtime = &'static str;

/// A runtime out of a recording: one that we know, for the label's values are bounded.
fn runtime<'de, D: Deserializer<'de>>(from: D) -> Result<&'static str, D::Error> {
    let text = String::deserialize(from)?;
    let known = ["docker", "containerd", "crio", "podman", "cgroup", "systemd", "process"];
    Ok(known.into_iter().find(|known| *known == text).unwrap_or("unknown"))
}

/// What makes two cgroups the same workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Identity {
    Container(String),
    Cgroup(CgroupKey),
    /// A container of containerd that goes by a name of its own, and not by an id: namespace and name.
    Task(String),
    /// A systemd unit in which a job runs, by the path of its cgroup.
    Unit(String),
    /// A job in a cgroup that it shares with others, by its number.
    Process(u32),
}

#[derive(Debug)]
struct Record {
    shown: Arc<Container>,
    identity: Identity,
    cgroups: HashSet<CgroupKey>,
    /// Anybody who may make cgroups can make one that looks like a container; one that ran goes before.
    ran: bool,
    gone_at: Option<Instant>,
    /// Thousandths of a CPU that it may use at most, by `cpu.max`; asked for only under the policy that needs it.
    reserved: Option<u64>,
    /// When its name is to be asked for again; `None` when there is nothing to ask.
    ask_at: Option<Instant>,
    /// How long the next time is waited.
    ask_after: Duration,
    /// Where its files are, one of each tree; only of containers.
    homes: Vec<Home>,
}

/// Limits of what is held.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most containers with series of their own.
    pub containers: usize,
    /// How long a container's series stay after it has gone.
    pub retain: Duration,
    /// Whether to read how many CPUs containers have reserved.
    pub reservations: bool,
    /// Labels of containers to be shown.
    pub labels: Vec<String>,
}

/// Everything known about cgroups.
pub struct Directory {
    trees: Trees,
    names: Option<Names>,
    files: Files,
    limits: Limits,
    holders: HashMap<CgroupKey, Holder>,
    records: BTreeMap<u32, Record>,
    numbers: HashMap<Identity, u32>,
    next: u32,
    last_scan: Option<Instant>,
    /// What the last look at the trees saw.
    seen: HashMap<CgroupKey, String>,
    /// Cgroups seen gone in this tick, and in the one before. What they ran up to their end is only in the reading
    /// that follows, so they are let go one tick later.
    leaving: [Vec<CgroupKey>; 2],
    /// Containers whose series ended in this tick.
    ended: Vec<u32>,
    /// Workloads without series now, so that each is counted once however many cgroups it has.
    shut_out: HashSet<Identity>,
    dropped: u64,
    unnamed: u64,
    incomplete_scans: u64,
}

impl Directory {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(trees: Trees, names: Option<Names>, files: Files, limits: Limits) -> Self {
        Self {
            trees,
            names,
            files,
            limits,
            holders: HashMap::new(),
            records: BTreeMap::new(),
            numbers: HashMap::new(),
            next: 0,
            last_scan: None,
            seen: HashMap::new(),
            leaving: [Vec::new(), Vec::new()],
            ended: Vec::new(),
            shut_out: HashSet::new(),
            dropped: 0,
            unnamed: 0,
            incomplete_scans: 0,
        }
    }

    /// Brings the directory up to date with every cgroup of a reading. Returns the containers whose series end now.
    pub fn observe(&mut self, reading: impl Iterator<Item = CgroupKey>, now: Instant) -> Vec<u32> {
        let mut placeless = HashSet::new();
        let mut strangers = false;
        for key in reading {
            match self.holders.get(&key) {
                None => {
                    strangers = true;
                    placeless.insert(key);
                }
                Some(Holder::Retired) => {
                    placeless.insert(key);
                }
                Some(Holder::Container(number)) => {
                    if let Some(record) = self.records.get_mut(number) {
                        record.ran = true;
                    }
                }
                Some(Holder::System) => {}
            }
        }
        let due = self.last_scan.is_none_or(|last| now.duration_since(last) >= SCAN_EVERY);
        if due || strangers {
            self.last_scan = Some(now);
            let Scan { live, complete } = self.trees.scan();
            self.meet(&live, &placeless, now);
            if self.limits.reservations {
                for record in self.records.values_mut() {
                    let limits = record.cgroups.iter().filter_map(|key| self.trees.reserved(key, live.get(key)?));
                    record.reserved = limits.min();
                }
            }
            if complete {
                self.bury(&live, now);
            } else {
                self.incomplete_scans += 1;
            }
            self.seen = live;
        }
        self.christen(now);
        self.retire(now)
    }

    /// Ends the tick: the cgroups whose last reading was just posted. Their slots in the kernel can be freed.
    ///
    /// `ran` tells whether a cgroup ran in this tick. One that did keeps its slot for another: its last reading may be
    /// still to come, and a total that is freed too early is lost.
    pub fn depart(&mut self, ran: impl Fn(&CgroupKey) -> bool) -> Vec<CgroupKey> {
        let [now, before] = &mut self.leaving;
        let (stay, gone): (Vec<_>, Vec<_>) = std::mem::take(before).into_iter().partition(ran);
        *before = std::mem::take(now);
        before.extend(stay);
        for key in &gone {
            self.holders.remove(key);
        }
        gone
    }

    /// Who is charged for what this cgroup runs.
    #[must_use]
    pub fn holder(&self, key: &CgroupKey) -> Holder {
        self.holders.get(key).copied().unwrap_or(Holder::System)
    }

    /// The same; `None` for a cgroup that was never met.
    #[must_use]
    pub fn known_holder(&self, key: &CgroupKey) -> Option<Holder> {
        self.holders.get(key).copied()
    }

    /// Gives every new cgroup its holder. Containers are met as soon as they exist; a plain cgroup when it runs, for a
    /// host has many empty ones. `running` holds those of the reading that have no series.
    fn meet(&mut self, live: &HashMap<CgroupKey, String>, running: &HashSet<CgroupKey>, now: Instant) {
        // One that found no place before may find one now.
        let open = |key: &CgroupKey| matches!(self.holders.get(key), None | Some(Holder::Retired));
        let mut new: Vec<(&CgroupKey, &String)> = live.iter().filter(|(key, _)| open(key)).collect();
        new.sort_unstable();
        for (key, path) in new {
            match path::classify(path) {
                Workload::System => {
                    self.holders.insert(*key, Holder::System);
                }
                Workload::Container { runtime, id } => {
                    let ask_at = Some(now);
                    let identity = Identity::Container(id.to_owned());
                    let ran = running.contains(key);
                    let holder = self.admit(*key, identity, ran, runtime, short(id), short(id), ask_at);
                    self.lives_at(holder, key.hierarchy, path::topmost(path, id));
                    self.holders.insert(*key, holder);
                }
                Workload::Plain if let Some((namespace, id)) = self.files.task(path) => {
                    let whole = format!("{namespace}/{id}");
                    let identity = Identity::Task(whole.clone());
                    let holder = self.admit(*key, identity, running.contains(key), "containerd", id, &whole, None);
                    self.lives_at(holder, key.hierarchy, &format!("/{whole}"));
                    self.holders.insert(*key, holder);
                }
                Workload::Plain if running.contains(key) || self.holders.contains_key(key) => {
                    let tree = if key.hierarchy == hierarchy::V1_CPU { "cgroup1" } else { "cgroup2" };
                    let id = format!("{tree}:{}", key.id);
                    let name = path.trim_start_matches('/');
                    let holder = self.admit(*key, Identity::Cgroup(*key), true, "cgroup", name, &id, None);
                    self.holders.insert(*key, holder);
                }
                Workload::Plain => {}
            }
        }
        for key in running {
            if !self.holders.contains_key(key) {
                // Born and gone between two ticks: its time is real, its name was never seen.
                self.unnamed += 1;
                self.holders.insert(*key, Holder::System);
            }
        }
    }

    /// Notes where a container's files are: its topmost cgroup in each tree.
    fn lives_at(&mut self, holder: Holder, hierarchy: u64, path: &str) {
        if let Holder::Container(number) = holder
            && let Some(record) = self.records.get_mut(&number)
            && !record.homes.iter().any(|home| home.hierarchy == hierarchy)
        {
            record.homes.push(Home { hierarchy, path: path.to_owned() });
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what is known of a newcomer; its callers are few")]
    fn admit(
        &mut self,
        key: CgroupKey,
        identity: Identity,
        ran: bool,
        runtime: &'static str,
        name: &str,
        id: &str,
        ask_at: Option<Instant>,
    ) -> Holder {
        if let Some(number) = self.numbers.get(&identity) {
            if let Some(record) = self.records.get_mut(number) {
                record.cgroups.insert(key);
                record.ran |= ran;
                record.gone_at = None;
            }
            return Holder::Container(*number);
        }
        if self.records.len() >= self.limits.containers && !self.make_room(ran) {
            self.dropped += u64::from(self.shut_out.insert(identity));
            return Holder::Retired;
        }
        self.shut_out.remove(&identity);
        let number = self.next;
        self.next += 1;
        let shown = Container::plain(number, label::clean(name), label::clean(id), runtime);
        self.numbers.insert(identity.clone(), number);
        let cgroups = HashSet::from([key]);
        self.records.insert(
            number,
            Record {
                shown: Arc::new(shown),
                identity,
                cgroups,
                ran,
                gone_at: None,
                reserved: None,
                ask_at,
                ask_after: ASK_AGAIN.0,
                homes: Vec::new(),
            },
        );
        Holder::Container(number)
    }

    /// Ends the series of one container before its time: of the one that has been gone for longest, or, for a newcomer
    /// that runs, of one that never ran. False when there is none.
    fn make_room(&mut self, for_one_that_runs: bool) -> bool {
        let gone = self.records.iter().filter(|(number, _)| self.is_over(**number));
        let gone = gone.min_by_key(|(_, record)| record.gone_at).map(|(number, _)| *number);
        let idle = || self.records.iter().find(|(_, record)| !record.ran).map(|(number, _)| *number);
        let Some(number) = gone.or_else(|| for_one_that_runs.then(idle).flatten()) else { return false };
        self.end(number);
        true
    }

    /// True when a container is gone and its last reading was posted.
    fn is_over(&self, number: u32) -> bool {
        self.records.get(&number).is_some_and(|record| record.gone_at.is_some())
            && !self.leaving.iter().flatten().any(|key| self.holders.get(key) == Some(&Holder::Container(number)))
    }

    fn end(&mut self, number: u32) {
        if let Some(record) = self.records.remove(&number) {
            for key in &record.cgroups {
                self.holders.insert(*key, Holder::Retired);
            }
            self.numbers.remove(&record.identity);
            self.ended.push(number);
        }
    }

    /// Notes the cgroups that live no more. Only a complete scan can tell.
    fn bury(&mut self, live: &HashMap<CgroupKey, String>, now: Instant) {
        self.shut_out.retain(|identity| match identity {
            Identity::Cgroup(key) => live.contains_key(key),
            Identity::Container(id) => live.values().any(|path| path.contains(id.as_str())),
            Identity::Task(task) => live.values().any(|path| path.contains(task.as_str())),
            Identity::Unit(unit) => live.values().any(|path| path == unit),
            Identity::Process(_) => false,
        });
        let noted: HashSet<CgroupKey> = self.leaving.iter().flatten().copied().collect();
        for (key, holder) in &self.holders {
            if live.contains_key(key) || noted.contains(key) {
                continue;
            }
            self.leaving[0].push(*key);
            if let Holder::Container(number) = holder
                && let Some(record) = self.records.get_mut(number)
            {
                record.cgroups.remove(key);
                if record.cgroups.is_empty() {
                    record.gone_at = Some(now);
                }
            }
        }
    }

    /// Puts names where only ids were known. A tick waits for the names of newcomers only, and only while Docker answers.
    fn christen(&mut self, now: Instant) {
        let Some(names) = &mut self.names else { return };
        let mut newcomers = false;
        for record in self.records.values_mut().filter(|record| record.gone_at.is_none()) {
            if let Identity::Container(id) = &record.identity
                && let Some(at) = record.ask_at
                && at <= now
            {
                newcomers |= at == now;
                names.request(id, record.shown.runtime);
                record.ask_at = Some(now + ASK_AGAIN.1);
            }
        }
        let patience = if newcomers && names.state().is_ok() { NAME_PATIENCE } else { Duration::ZERO };
        for (id, said) in names.collect(patience) {
            let number = self.numbers.get(&Identity::Container(id));
            let Some(record) = number.and_then(|number| self.records.get_mut(number)) else { continue };
            match said {
                Said::Named(told) => {
                    // A file may know of a container and not its name.
                    let name = if told.name.is_empty() { record.shown.name.clone() } else { label::clean(&told.name) };
                    let chosen = |wanted: &String| Some((wanted.clone(), label::clean(told.labels.get(wanted)?)));
                    record.shown = Arc::new(Container {
                        name,
                        image: label::clean(&told.image),
                        pod: label::clean(&told.pod),
                        namespace: label::clean(&told.namespace),
                        labels: self.limits.labels.iter().filter_map(chosen).collect(),
                        ..(*record.shown).clone()
                    });
                    record.ask_at = None;
                }
                Said::Unknown => record.ask_at = None,
                Said::Nothing => {
                    record.ask_at = Some(now + record.ask_after);
                    record.ask_after = (record.ask_after * 2).min(ASK_AGAIN.1);
                }
            }
        }
    }

    /// Finds the row for a job of this number in the cgroup `key`: whose time its own is a part of, and the row of its own where it has one.
    ///
    /// In a container, or a cgroup made by hand, it is a part of that. A systemd unit that runs a job becomes a workload as a whole. In
    /// what is left, a login's session or the root, a job has a row of its own: merged with the shell beside it it would be nobody's.
    pub fn adopt(&mut self, key: &CgroupKey, job: u32, stream: Option<&str>, now: Instant) -> (Holder, Option<u32>) {
        // A cgroup that was made since the last look is looked at now: with a row of its own, a job in a container would be billed
        // in both.
        if !self.seen.contains_key(key) {
            self.seen = self.trees.scan().live;
        }
        if !self.holders.contains_key(key) {
            let live = std::mem::take(&mut self.seen);
            self.meet(&live, &HashSet::from([*key]), now);
            self.seen = live;
        }
        match self.holder(key) {
            Holder::System => {}
            holder => return (holder, None),
        }
        if let Some(path) = self.seen.get(key).cloned()
            && let Some(unit) = path::unit(&path)
        {
            let (name, id) = (unit.to_owned(), format!("unit:{}", key.id));
            let holder = self.admit(*key, Identity::Unit(path.clone()), true, "systemd", &name, &id, None);
            self.holders.insert(*key, holder);
            return (holder, None);
        }
        if self.records.len() >= self.limits.containers && !self.make_room(true) {
            self.dropped += 1;
            return (Holder::System, None);
        }
        let number = self.next;
        self.next += 1;
        let (name, id) = (label::clean(stream.unwrap_or("ffmpeg")), format!("job:{job}"));
        let shown = Arc::new(Container::plain(number, name, id, "process"));
        let identity = Identity::Process(job);
        self.numbers.insert(identity.clone(), number);
        let cgroups = HashSet::new();
        self.records.insert(
            number,
            Record {
                shown,
                identity,
                cgroups,
                ran: true,
                gone_at: None,
                reserved: None,
                ask_at: None,
                ask_after: ASK_AGAIN.0,
                homes: Vec::new(),
            },
        );
        (Holder::System, Some(number))
    }

    /// Notes that the job whose row this is has ended.
    pub fn bereave(&mut self, number: u32, now: Instant) {
        if let Some(record) = self.records.get_mut(&number) {
            record.gone_at = Some(now);
        }
    }

    /// The workload's cgroup of a process, by its directory in procfs.
    #[must_use]
    pub fn cgroup_of(&self, process: &Path) -> Option<CgroupKey> {
        self.trees.of_process(process)
    }

    fn retire(&mut self, now: Instant) -> Vec<u32> {
        let retain = self.limits.retain;
        let due = |record: &Record| record.gone_at.is_some_and(|at| now.duration_since(at) >= retain);
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
        self.records.values().map(|record| &record.shown)
    }

    /// Every container of a runtime, with where its files are.
    pub fn homes(&self) -> impl Iterator<Item = (&Arc<Container>, &[Home])> {
        let containers = self
            .records
            .values()
            .filter(|record| matches!(record.identity, Identity::Container(_) | Identity::Task(_)));
        containers.map(|record| (&record.shown, &*record.homes))
    }

    /// Thousandths of CPUs that containers have reserved; those without a limit have reserved none.
    pub fn reservations(&self) -> impl Iterator<Item = (u32, u64)> {
        self.records
            .iter()
            .filter(|_| self.limits.reservations)
            .map(|(number, record)| (*number, record.reserved.unwrap_or(0)))
    }

    /// What is shown of one container.
    #[must_use]
    pub fn container(&self, number: u32) -> Option<&Arc<Container>> {
        self.records.get(&number).map(|record| &record.shown)
    }

    /// Containers that got no series because the ceiling was reached.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Cgroups that ran and had gone before they could be named.
    #[must_use]
    pub fn unnamed(&self) -> u64 {
        self.unnamed
    }

    /// Looks at the cgroup trees that could not see all of them.
    #[must_use]
    pub fn incomplete_scans(&self) -> u64 {
        self.incomplete_scans
    }

    /// How the source of names stands; `None` when it is switched off.
    #[must_use]
    pub fn names(&self) -> Option<&Names> {
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
        directory: Directory,
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
                Limits { containers, retain: Duration::from_secs(300), reservations: true, labels: Vec::new() };
            let files = Files::new(dir.path());
            Self { directory: Directory::new(trees, None, files, limits), dir, now: Instant::now() }
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

        /// Moves it out of the trees, where it keeps its inode number: a filesystem gives that of a
        /// removed directory to the next.
        fn remove(&self, path: &str) {
            let away = self.path(&format!("away-{}", testkit::fixture::unique("cgroup")));
            fs::rename(self.path(path), away).unwrap();
        }

        /// One tick: returns what departed and what retired.
        fn tick(&mut self, seconds: u64, reading: &[CgroupKey]) -> (Vec<CgroupKey>, Vec<u32>) {
            self.now += Duration::from_secs(seconds);
            let retired = self.directory.observe(reading.iter().copied(), self.now);
            (self.directory.depart(|_| false), retired)
        }

        fn shown(&self) -> Vec<(&str, &str, &str)> {
            self.directory.containers().map(|c| (&*c.name, &*c.id, c.runtime)).collect()
        }
    }

    /// A job is met as soon as it is executed, which may be before anybody looked at its cgroup.
    #[test]
    fn a_job_in_a_container_that_nobody_has_met_is_a_part_of_it_and_has_no_row_of_its_own() {
        let mut host = Host::new(10);
        host.tick(1, &[]);
        let keys = [
            host.make(&format!("unified/docker-{A}.scope")),
            host.make("unified/encode"),
            host.make("unified/system.slice/encode@1.service"),
            host.make("unified/user.slice/user-0.slice/session-1.scope"),
        ];
        let now = host.now;
        let adopted: Vec<_> =
            (0..).zip(&keys).map(|(job, key)| host.directory.adopt(key, job, Some("cam"), now)).collect();
        assert!(adopted[..3].iter().all(|(holder, own)| matches!(holder, Holder::Container(_)) && own.is_none()));
        let (Holder::System, Some(own)) = adopted[3] else { panic!("{adopted:?}") };
        let runtimes: Vec<&str> = host.shown().iter().map(|shown| shown.2).collect();
        assert_eq!(runtimes, ["docker", "cgroup", "systemd", "process"]);
        // Its row goes with it, once its time is over.
        host.directory.bereave(own, host.now);
        assert_eq!(host.tick(301, &keys).1, [own]);
    }

    #[test]
    fn a_container_in_both_trees_is_one_container() {
        let mut host = Host::new(10);
        let v2 = host.make(&format!("unified/docker/{A}"));
        let v1 = host.make(&format!("cpu/docker/{A}"));
        host.tick(0, &[v2]);
        assert_eq!(host.shown(), [("aaaa456789ab", "aaaa456789ab", "docker")]);
        assert_eq!(host.directory.holder(&v1), host.directory.holder(&v2));
    }

    #[test]
    fn plain_cgroups_are_met_when_they_run_and_each_tree_is_told_apart() {
        let mut host = Host::new(10);
        let (v2, v1) = (host.make("unified/job"), host.make("cpu/job"));
        host.make("unified/never-runs");
        host.tick(0, &[v2]);
        host.tick(1, &[v2, v1]);
        let ids = [format!("cgroup2:{}", v2.id), format!("cgroup1:{}", v1.id)];
        assert_eq!(host.shown(), [("job", &*ids[0], "cgroup"), ("job", &*ids[1], "cgroup")]);
        assert_ne!(host.directory.holder(&v1), host.directory.holder(&v2));
    }

    #[test]
    fn a_limit_of_cpu_time_is_a_reservation() {
        let mut host = Host::new(10);
        let (a, b) = (format!("unified/docker/{A}"), format!("cpu/docker/{B}"));
        let (v2, v1) = (host.make(&a), host.make(&b));
        let reserved = |host: &Host| host.directory.reservations().map(|(_, milli)| milli).collect::<Vec<_>>();
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
        let numbers: Vec<_> = host.directory.containers().map(|container| container.id.as_str()).collect();
        let expected = if numbers[0].starts_with('a') { [0, 500] } else { [500, 0] };
        assert_eq!(reserved(&host), expected);
    }

    #[test]
    fn a_dead_container_stays_for_the_retention_then_retires() {
        let mut host = Host::new(10);
        let path = format!("unified/docker/{A}");
        let key = host.make(&path);
        host.tick(0, &[key]);
        host.remove(&path);
        host.tick(10, &[key]);
        assert_eq!(host.tick(299, &[key]), (vec![key], vec![]));
        assert_eq!(host.shown().len(), 1);
        assert_eq!(host.tick(1, &[]).1, [0]);
        assert_eq!(host.shown().len(), 0);
    }

    #[test]
    fn without_retention_it_retires_after_its_last_reading_not_before() {
        let mut host = Host::new(10);
        host.directory.limits.retain = Duration::ZERO;
        let path = format!("unified/docker/{A}");
        let key = host.make(&path);
        host.tick(0, &[key]);
        host.remove(&path);
        assert_eq!(host.tick(10, &[key]).1, Vec::<u32>::new());
        assert_eq!(host.tick(1, &[key]), (vec![key], vec![]));
        assert_eq!(host.tick(1, &[]).1, [0]);
    }

    #[test]
    fn what_a_container_ran_up_to_its_end_is_still_its_own() {
        let mut host = Host::new(10);
        let path = format!("unified/docker/{A}");
        let key = host.make(&path);
        host.tick(0, &[key]);
        host.remove(&path);
        host.directory.observe([key].into_iter(), host.now + Duration::from_secs(10));
        assert_eq!(host.directory.holder(&key), Holder::Container(0), "in the tick in which it is seen gone");
        assert_eq!(host.directory.depart(|_| false), []);
        host.directory.observe([key].into_iter(), host.now + Duration::from_secs(11));
        assert_eq!(host.directory.holder(&key), Holder::Container(0), "and in the one whose reading is the last");
        assert_eq!(host.directory.depart(|_| false), [key]);
    }

    #[test]
    fn a_container_that_restarts_within_the_retention_keeps_its_series() {
        let mut host = Host::new(10);
        let path = format!("unified/docker/{A}");
        let key = host.make(&path);
        host.tick(0, &[key]);
        host.remove(&path);
        host.tick(10, &[]);
        let again = host.make(&path);
        host.tick(10, &[again]);
        assert_eq!(host.directory.holder(&again), Holder::Container(0));
        assert_eq!(host.tick(1000, &[]).1, Vec::<u32>::new());
    }

    #[test]
    fn beyond_the_ceiling_containers_are_counted_not_shown() {
        let mut host = Host::new(1);
        let first = host.make(&format!("unified/docker/{A}"));
        host.tick(0, &[first]);
        let second = host.make(&format!("unified/docker/{B}"));
        host.tick(1, &[second]);
        assert_eq!(host.directory.holder(&second), Holder::Retired);
        assert_eq!((host.directory.dropped(), host.shown().len()), (1, 1));
    }

    #[test]
    fn one_that_runs_takes_the_place_of_one_that_never_did() {
        let mut host = Host::new(1);
        let idle = host.make(&format!("unified/docker/{A}"));
        host.tick(0, &[]);
        assert_eq!(host.directory.holder(&idle), Holder::Container(0));
        let busy = host.make(&format!("unified/docker/{B}"));
        let (_, ended) = host.tick(1, &[busy]);
        assert_eq!((ended, host.directory.holder(&busy)), (vec![0], Holder::Container(1)));
        assert_eq!(host.directory.holder(&idle), Holder::Retired);
        // Now it runs too, and nobody has to go for it.
        host.tick(20, &[busy, idle]);
        assert_eq!(host.directory.holder(&idle), Holder::Retired);
        assert_eq!((host.directory.holder(&busy), host.directory.dropped()), (Holder::Container(1), 1));
    }

    #[test]
    fn a_container_without_a_place_is_counted_once_whatever_its_cgroups() {
        let mut host = Host::new(1);
        let first = host.make(&format!("unified/docker/{A}"));
        host.tick(0, &[first]);
        let (v2, v1) = (host.make(&format!("unified/docker/{B}")), host.make(&format!("cpu/docker/{B}")));
        host.tick(1, &[first, v2, v1]);
        assert_eq!(host.directory.dropped(), 1);
    }

    #[test]
    fn a_scan_that_could_not_see_everything_buries_nobody() {
        let mut host = Host::new(10);
        let key = host.make(&format!("unified/docker/{A}"));
        host.tick(0, &[key]);
        fs::rename(host.path("unified"), host.path("away")).unwrap();
        assert_eq!(host.tick(20, &[key]).0, []);
        assert_eq!(host.tick(20, &[key]).0, []);
        assert_eq!(host.directory.holder(&key), Holder::Container(0));
        assert_eq!(host.directory.incomplete_scans(), 2);
    }

    #[test]
    fn a_cgroup_that_still_runs_keeps_its_slot() {
        let mut host = Host::new(10);
        let path = format!("unified/docker/{A}");
        let key = host.make(&path);
        host.tick(0, &[key]);
        host.remove(&path);
        host.tick(10, &[key]);
        for seconds in 11..15 {
            host.directory.observe([key].into_iter(), host.now + Duration::from_secs(seconds));
            assert_eq!(host.directory.depart(|_| true), []);
        }
        assert_eq!(host.directory.depart(|_| false), [key]);
    }

    #[test]
    fn when_there_is_room_again_the_ones_without_series_get_theirs() {
        let mut host = Host::new(1);
        let (first, second) = (format!("unified/docker/{A}"), format!("unified/docker/{B}"));
        let (a, b) = (host.make(&first), host.make(&second));
        host.tick(0, &[a, b]);
        let [shut_out, holder] = if host.directory.holder(&a) == Holder::Retired { [a, b] } else { [b, a] };
        host.tick(20, &[a, b]);
        assert_eq!(host.directory.dropped(), 1, "counted once");
        host.remove(if holder == a { &first } else { &second });
        host.tick(20, &[a, b]);
        host.tick(20, &[a, b]);
        // Long before the retention is over: a living one needs the place.
        let (_, retired) = host.tick(20, &[shut_out]);
        assert_eq!(retired, [0]);
        assert_eq!(host.directory.holder(&shut_out), Holder::Container(1));
    }

    #[test]
    fn a_cgroup_that_went_before_it_was_named_is_the_systems_and_counted() {
        let mut host = Host::new(10);
        let ghost = CgroupKey { id: 999_999_999, hierarchy: hierarchy::V2 };
        host.tick(0, &[ghost]);
        assert_eq!(host.directory.holder(&ghost), Holder::System);
        assert_eq!(host.directory.unnamed(), 1);
        assert_eq!(host.tick(1, &[ghost]).0, [ghost]);
        assert_eq!(host.directory.unnamed(), 1);
    }
}
