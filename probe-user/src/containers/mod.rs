//! Workload identity: cgroup id -> container -> name and image.
//!
//! A container has one identity, its runtime's id, even if it spans several cgroups and trees. A
//! cgroup without a container is identified by its own id. Numbers of identities are never reused,
//! so the ledger can refer to them.

mod charge_target;
mod container;
mod continued;
mod docker_engine;
pub mod name_resolver;
pub mod path;
mod priority;
pub mod runtime_files;
pub mod stats;
mod task_finder;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

pub use charge_target::ChargeTarget;
pub(crate) use charge_target::LookedUp;
use charge_target::Targets;
pub use container::{Container, Runtime};
pub(crate) use continued::SavedContainer;
pub use docker_engine::docker_state;
use metrics::label;
use name_resolver::{NameReply, NameResolver};
use path::Workload;
use priority::{Class, Ranking, Standing};
use runtime_files::RuntimeFiles;
use serde::{Deserialize, Serialize};
use stats::CgroupPath;
use task_finder::{Question, TaskFinder};

use crate::cgroup::{CgroupKey, changes::CgroupChanges, hierarchy, known::KnownCgroups, tree::Trees};

/// Longest time a tick waits for the names of new containers.
const NAME_TIMEOUT: Duration = Duration::from_millis(150);
/// Delay before a failed name request is repeated. It doubles up to [`MAX_RETRY`], because an
/// engine may be busy starting that container, or stopped for an hour.
const MIN_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(30);
/// Interval between readings of all CPU limits, which may change while a container runs.
const LIMITS_INTERVAL: Duration = Duration::from_secs(10);
/// Two cgroups with the same identity belong to the same workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Identity {
    Container(String),
    Cgroup(CgroupKey),
    /// A containerd container with a name instead of an id: `namespace/name`.
    Task(String),
    /// A guest or a job of a scheduler, by the path of its topmost cgroup.
    Guest(String),
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
    /// True once it has used CPU time.
    ran: bool,
    /// When it ran last, or was found.
    last_ran: Instant,
    class: Class,
    gone_at: Option<Instant>,
    /// Number of its removed cgroups whose last reading is still to come.
    departing: usize,
    /// CPU limit of `cpu.max` in thousandths of a CPU; read only under the idle policy that needs
    /// it.
    reserved: Option<u64>,
    /// True while [`ContainerRegistry::note_cpu_limits`] provides it, so that no file is read.
    limit_provided: bool,
    /// Time of the next name request; `None` when the name is final.
    resolve_at: Option<Instant>,
    retry_delay: Duration,
    /// The container's cgroup in each tree; empty for other workloads.
    cgroup_paths: Vec<CgroupPath>,
}

impl ContainerRecord {
    fn new(
        container: Container,
        identity: Identity,
        cgroups: HashSet<CgroupKey>,
        ran: bool,
        class: Class,
        now: Instant,
    ) -> Self {
        Self {
            container: Arc::new(container),
            identity,
            cgroups,
            ran,
            last_ran: now,
            class,
            gone_at: None,
            departing: 0,
            reserved: None,
            limit_provided: false,
            resolve_at: None,
            retry_delay: MIN_RETRY,
            cgroup_paths: Vec::new(),
        }
    }

    fn standing(&self) -> Standing {
        match self.gone_at {
            Some(at) if self.departing == 0 => Standing::Over(at),
            Some(_) => Standing::Ending,
            None => Standing::Live { ran: self.ran, class: self.class, last_ran: self.last_ran },
        }
    }
}

/// The properties of a new workload.
struct NewWorkload<'a> {
    ran: bool,
    class: Class,
    runtime: &'static str,
    name: &'a str,
    id: &'a str,
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
    known: KnownCgroups,
    names: Option<NameResolver>,
    tasks: TaskFinder,
    limits: RegistryLimits,
    targets: Targets,
    /// The cgroups of the last reading, if each of them is in the system or in a container that is
    /// known to have run.
    settled: LookedUp,
    records: BTreeMap<u32, ContainerRecord>,
    numbers: HashMap<Identity, u32>,
    ranking: Ranking,
    next: u32,
    /// Cgroups found removed in this tick, and in the tick before. Only the next reading contains
    /// their last CPU time, so they are released one tick later.
    departing: [Vec<CgroupKey>; 2],
    /// The cgroups in `departing`.
    marked: HashSet<CgroupKey>,
    /// Containers whose series ended in this tick.
    ended: Vec<u32>,
    /// Workloads without series because of the limit; each is counted once, whatever the number of
    /// its cgroups.
    over_limit: HashMap<Identity, HashSet<CgroupKey>>,
    /// The workload of each of their cgroups.
    over_limit_cgroups: HashMap<CgroupKey, Identity>,
    /// Containers whose cgroups changed, so that their CPU limit must be read.
    limits_due: HashSet<u32>,
    /// When all CPU limits were read.
    limits_read: Option<Instant>,
    dropped: u64,
    unnamed: u64,
}

impl ContainerRegistry {
    /// An empty registry.
    #[must_use]
    pub fn new(trees: Trees, names: Option<NameResolver>, files: RuntimeFiles, limits: RegistryLimits) -> Self {
        Self {
            known: KnownCgroups::new(trees),
            names,
            tasks: TaskFinder::new(files),
            limits,
            targets: Targets::default(),
            settled: LookedUp::default(),
            records: BTreeMap::new(),
            numbers: HashMap::new(),
            ranking: Ranking::default(),
            next: 0,
            departing: [Vec::new(), Vec::new()],
            marked: HashSet::new(),
            ended: Vec::new(),
            over_limit: HashMap::new(),
            over_limit_cgroups: HashMap::new(),
            limits_due: HashSet::new(),
            limits_read: None,
            dropped: 0,
            unnamed: 0,
        }
    }

    /// Takes over the changes of the trees since the last tick. Call it after the reading, which
    /// may contain the new cgroups, and before [`Self::observe`].
    pub fn apply(&mut self, changes: CgroupChanges) {
        self.known.apply(changes);
    }

    /// Updates the registry with the cgroups of a reading. Returns the containers whose series end
    /// now.
    pub fn observe(&mut self, reading: impl Iterator<Item = CgroupKey> + Clone, now: Instant) -> Vec<u32> {
        let settled = self.settled.is_current(self.targets.changes(), reading.clone());
        let (unknown, retired) = if settled { Default::default() } else { self.note_reading(reading, now) };
        let mut complete = None;
        let is_unknown = |known: &KnownCgroups| unknown.iter().any(|key| known.path(key).is_none());
        if self.known.scan_is_due(now) || is_unknown(&self.known) && self.known.can_scan(now) {
            complete = Some(self.known.scan(now));
        }
        let running: HashSet<CgroupKey> = unknown.iter().chain(&retired).copied().collect();
        let mut new = self.known.take_created();
        new.extend(&unknown);
        if self.has_room(now) {
            new.extend(&retired);
        }
        self.insert_new(new, &running, now);
        if self.limits.reservations {
            self.read_reservations(now);
        } else {
            self.limits_due.clear();
        }
        for key in self.known.take_gone() {
            self.tasks.forget(&key);
            self.mark_gone(key, now);
        }
        for key in unknown {
            if self.known.live_path(&key).is_some() {
                continue;
            }
            if self.known.path(&key).is_some() {
                // It ran for the first time just before its removal.
                self.mark_gone(key, now);
            } else if complete == Some(true) {
                // It was created and removed between two ticks: its CPU time counts, but its path
                // is unknown.
                self.unnamed += 1;
                self.targets.insert(key, ChargeTarget::System);
                self.mark_gone(key, now);
            }
        }
        self.known.end_tick();
        self.resolve_names(now);
        self.retire_due(now)
    }

    /// Notes which containers have run. Returns the cgroups without series: unknown ones, and those
    /// over the limit.
    fn note_reading(
        &mut self,
        reading: impl Iterator<Item = CgroupKey> + Clone,
        now: Instant,
    ) -> (Vec<CgroupKey>, Vec<CgroupKey>) {
        let (mut unknown, mut retired) = (Vec::new(), Vec::new());
        let mut is_settled = true;
        for key in reading.clone() {
            let target = self.targets.get(&key);
            is_settled &= matches!(target, Some(ChargeTarget::Container(_) | ChargeTarget::System));
            match target {
                None => unknown.push(key),
                Some(ChargeTarget::Retired) if self.marked.contains(&key) => {}
                Some(ChargeTarget::Retired) => retired.push(key),
                Some(ChargeTarget::Container(number)) => {
                    if let Some(record) = self.records.get_mut(number).filter(|record| !record.ran) {
                        (record.ran, record.last_ran) = (true, now);
                        self.ranking.set(*number, record.standing());
                    }
                }
                Some(ChargeTarget::System) => {}
            }
        }
        if is_settled {
            self.settled.set(self.targets.changes(), reading);
        } else {
            self.settled.clear();
        }
        (unknown, retired)
    }

    /// Reads the CPU limits of containers with new or removed cgroups, and at intervals those of
    /// all.
    fn read_reservations(&mut self, now: Instant) {
        let all = self.limits_read.is_none_or(|at| now.duration_since(at) >= LIMITS_INTERVAL);
        let mut due = std::mem::take(&mut self.limits_due);
        if all {
            self.limits_read = Some(now);
            due.extend(self.records.iter().filter(|(_, record)| !record.limit_provided).map(|(number, _)| *number));
        }
        for number in due {
            let Some(record) = self.records.get_mut(&number) else { continue };
            let limits = record.cgroups.iter().filter_map(|key| {
                let path = self.known.live_path(key)?;
                self.known.trees().reserved(key, path)
            });
            record.reserved = limits.min();
        }
    }

    /// Takes over the CPU limits of containers in thousandths of a CPU, 0 without one, as the
    /// kernel's objects contain them. `None` leaves a container to its file.
    pub fn note_cpu_limits(&mut self, limits: impl Iterator<Item = (u32, Option<u64>)>) {
        if !self.limits.reservations {
            return;
        }
        for (number, limit) in limits {
            let Some(record) = self.records.get_mut(&number) else { continue };
            // A cgroup inside of the container may have a lower limit of its own.
            let limit = limit.filter(|_| record.cgroups.len() <= record.cgroup_paths.len());
            record.limit_provided = limit.is_some();
            if let Some(limit) = limit {
                record.reserved = Some(limit).filter(|limit| *limit > 0);
            }
        }
    }

    /// Whether a workload over the limit may fit now.
    fn has_room(&self, now: Instant) -> bool {
        self.records.len() < self.limits.containers || self.ranking.replaceable(true, Class::Confirmed, now).is_some()
    }

    /// Records which cgroups ran in the last tick.
    pub fn note_ran<'a>(&mut self, ran: impl Iterator<Item = &'a CgroupKey>, now: Instant) {
        for key in ran {
            if let Some(ChargeTarget::Container(number)) = self.targets.get(key)
                && let Some(record) = self.records.get_mut(number)
            {
                record.last_ran = now;
                self.ranking.set(*number, record.standing());
            }
        }
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
            self.marked.remove(key);
            let target = self.targets.remove(key);
            if let Some(ChargeTarget::Container(number)) = target
                && let Some(record) = self.records.get_mut(&number)
            {
                record.departing = record.departing.saturating_sub(1);
                self.ranking.set(number, record.standing());
            }
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

    /// Number of changes of charge targets so far.
    pub(crate) fn target_changes(&self) -> u64 {
        self.targets.changes()
    }

    /// Assigns a charge target to new cgroups. A container is inserted as soon as it exists, a
    /// plain cgroup only when it runs, because a host has many empty ones. `running` are the
    /// cgroups of the reading without series.
    fn insert_new(&mut self, mut new: Vec<CgroupKey>, running: &HashSet<CgroupKey>, now: Instant) {
        new.sort_unstable();
        new.dedup();
        self.find_tasks(&new);
        for key in new {
            // A workload that was over the limit before may fit now.
            if !matches!(self.targets.get(&key), None | Some(ChargeTarget::Retired)) {
                continue;
            }
            let Some(path) = self.known.path(&key).map(str::to_owned) else { continue };
            let ran = running.contains(&key);
            let target = match path::classify(&path) {
                Workload::System => ChargeTarget::System,
                Workload::Container { runtime, id } => {
                    let identity = Identity::Container(id.to_owned());
                    let new = NewWorkload { ran, class: Class::Likely, runtime, name: short(id), id: short(id) };
                    let target = self.insert(key, identity, &new, Some(now), now);
                    self.record_path(target, key.hierarchy, path::topmost(&path, id));
                    target
                }
                Workload::Guest { runtime, name, top } if ran || self.targets.contains_key(&key) => {
                    let id = format!("{runtime}:{top}");
                    let new = NewWorkload { ran, class: Class::Likely, runtime, name: &name, id: &id };
                    let target = self.insert(key, Identity::Guest(top.to_owned()), &new, None, now);
                    self.record_path(target, key.hierarchy, top);
                    target
                }
                Workload::Plain if let Some((namespace, id)) = self.tasks.task(&key, &path) => {
                    let whole = format!("{namespace}/{id}");
                    let new = NewWorkload { ran, class: Class::Confirmed, runtime: "containerd", name: id, id: &whole };
                    let target = self.insert(key, Identity::Task(whole.clone()), &new, None, now);
                    self.record_path(target, key.hierarchy, &format!("/{whole}"));
                    target
                }
                Workload::Plain if ran || self.targets.contains_key(&key) => {
                    let tree = if key.hierarchy == hierarchy::V1_CPU { "cgroup1" } else { "cgroup2" };
                    let id = format!("{tree}:{}", key.id);
                    let name = path.trim_start_matches('/');
                    let new = NewWorkload { ran: true, class: Class::Plain, runtime: "cgroup", name, id: &id };
                    self.insert(key, Identity::Cgroup(key), &new, None, now)
                }
                Workload::Plain | Workload::Guest { .. } => continue,
            };
            self.targets.insert(key, target);
        }
    }

    /// Finds out which of the new cgroups are tasks of containerd. One that is not may become a
    /// task until it runs.
    fn find_tasks(&mut self, new: &[CgroupKey]) {
        let questions = new.iter().filter_map(|key| {
            let open = match self.targets.get(key) {
                None => true,
                Some(ChargeTarget::Retired) => !self.tasks.is_known(key),
                Some(_) => false,
            };
            let path = self.known.path(key).filter(|_| open)?;
            matches!(path::classify(path), Workload::Plain).then(|| Question::new(*key, path))?
        });
        let questions = questions.collect();
        self.tasks.ask(questions, NAME_TIMEOUT);
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
    fn insert(
        &mut self,
        key: CgroupKey,
        identity: Identity,
        new: &NewWorkload<'_>,
        resolve_at: Option<Instant>,
        now: Instant,
    ) -> ChargeTarget {
        if let Some(number) = self.numbers.get(&identity) {
            if let Some(record) = self.records.get_mut(number) {
                record.cgroups.insert(key);
                record.ran |= new.ran;
                record.gone_at = None;
                self.ranking.set(*number, record.standing());
            }
            self.limits_due.insert(*number);
            return ChargeTarget::Container(*number);
        }
        if self.records.len() >= self.limits.containers && !self.make_room(new.ran, new.class, now) {
            self.dropped += u64::from(!self.over_limit.contains_key(&identity));
            self.over_limit_cgroups.insert(key, identity.clone());
            self.over_limit.entry(identity).or_default().insert(key);
            return ChargeTarget::Retired;
        }
        for cgroup in self.over_limit.remove(&identity).into_iter().flatten() {
            self.over_limit_cgroups.remove(&cgroup);
        }
        let number = self.next;
        self.next += 1;
        let container = Container::new(number, label::sanitize(new.name), label::sanitize(new.id), new.runtime);
        let record = ContainerRecord::new(container, identity, HashSet::from([key]), new.ran, new.class, now);
        self.add_record(number, ContainerRecord { resolve_at, ..record });
        self.limits_due.insert(number);
        ChargeTarget::Container(number)
    }

    fn add_record(&mut self, number: u32, record: ContainerRecord) {
        self.numbers.insert(record.identity.clone(), number);
        self.ranking.set(number, record.standing());
        self.records.insert(number, record);
    }

    /// Ends the series of one container early. Returns false when there is none that gives way.
    fn make_room(&mut self, new_one_runs: bool, class: Class, now: Instant) -> bool {
        let Some(number) = self.ranking.replaceable(new_one_runs, class, now) else { return false };
        self.end(number);
        true
    }

    fn end(&mut self, number: u32) {
        self.ranking.remove(number);
        if let Some(record) = self.records.remove(&number) {
            let departing = self.departing.iter().flatten().filter(|_| record.departing > 0);
            let departing = departing.filter(|key| self.targets.get(key) == Some(&ChargeTarget::Container(number)));
            let keys: Vec<CgroupKey> = record.cgroups.iter().chain(departing).copied().collect();
            for key in keys {
                self.targets.insert(key, ChargeTarget::Retired);
            }
            // A job that moved has a new row with the same identity.
            if self.numbers.get(&record.identity) == Some(&number) {
                self.numbers.remove(&record.identity);
            }
            self.ended.push(number);
        }
    }

    /// Marks a cgroup as removed.
    fn mark_gone(&mut self, key: CgroupKey, now: Instant) {
        let Some(target) = self.targets.get(&key).copied() else { return };
        if !self.marked.insert(key) {
            return;
        }
        self.departing[0].push(key);
        match target {
            ChargeTarget::Container(number) => {
                if let Some(record) = self.records.get_mut(&number) {
                    record.cgroups.remove(&key);
                    record.departing += 1;
                    self.limits_due.insert(number);
                    if record.cgroups.is_empty() {
                        record.gone_at = Some(now);
                    }
                    self.ranking.set(number, record.standing());
                }
            }
            ChargeTarget::Retired => {
                let identity = self.over_limit_cgroups.remove(&key);
                if let Some(identity) = identity
                    && let Some(cgroups) = self.over_limit.get_mut(&identity)
                {
                    cgroups.remove(&key);
                    if cgroups.is_empty() {
                        self.over_limit.remove(&identity);
                    }
                }
            }
            ChargeTarget::System => {}
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
                    (record.resolve_at, record.class) = (None, Class::Confirmed);
                }
                NameReply::NotFound => (record.resolve_at, record.class) = (None, Class::Plain),
                NameReply::Failed => {
                    record.resolve_at = Some(now + record.retry_delay);
                    record.retry_delay = (record.retry_delay * 2).min(MAX_RETRY);
                }
            }
            self.ranking.set(record.container.number, record.standing());
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
        // The cgroup must be known now: a job in a container that got its own row would be charged
        // twice.
        if self.known.path(key).is_none() && self.known.can_scan(now) {
            self.known.scan(now);
        }
        if !self.targets.contains_key(key) {
            self.insert_new(vec![*key], &HashSet::from([*key]), now);
        }
        match self.charge_target(key) {
            ChargeTarget::System => {}
            target => return (target, None),
        }
        let Some(path) = self.known.path(key).map(str::to_owned) else { return (ChargeTarget::System, None) };
        if let Some(unit) = path::unit(&path) {
            let (name, id) = (unit.to_owned(), format!("unit:{}", key.id));
            let new = NewWorkload { ran: true, class: Class::Confirmed, runtime: "systemd", name: &name, id: &id };
            let target = self.insert(*key, Identity::Unit(path.clone()), &new, None, now);
            self.targets.insert(*key, target);
            return (target, None);
        }
        if self.records.len() >= self.limits.containers && !self.make_room(true, Class::Likely, now) {
            self.dropped += 1;
            return (ChargeTarget::System, None);
        }
        let number = self.next;
        self.next += 1;
        let (name, id) = (label::sanitize(stream.unwrap_or("ffmpeg")), format!("job:{job}"));
        let container = Container::new(number, name, id, "process");
        let record =
            ContainerRecord::new(container, Identity::Process(job), HashSet::new(), true, Class::Confirmed, now);
        self.add_record(number, record);
        (ChargeTarget::System, Some(number))
    }

    /// Marks the row of a job as removed when the job ends.
    pub fn detach_job(&mut self, number: u32, now: Instant) {
        if let Some(record) = self.records.get_mut(&number) {
            record.gone_at = Some(now);
            self.ranking.set(number, record.standing());
        }
    }

    /// The workload's cgroup of a process, by its directory in procfs.
    #[must_use]
    pub fn cgroup_of(&self, process: &Path) -> Option<CgroupKey> {
        self.known.trees().cgroup_of_process(process)
    }

    fn retire_due(&mut self, now: Instant) -> Vec<u32> {
        let over = now.checked_sub(self.limits.retain).map(|at| self.ranking.over_until(at)).unwrap_or_default();
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
        let containers = self.records.values().filter(|record| {
            matches!(record.identity, Identity::Container(_) | Identity::Task(_) | Identity::Guest(_))
        });
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

    /// Number of existing containers of runtimes, with or without series.
    #[must_use]
    pub fn container_count(&self) -> usize {
        let of_runtime = |identity: &Identity| matches!(identity, Identity::Container(_) | Identity::Task(_));
        let live = self.records.values().filter(|record| record.gone_at.is_none() && of_runtime(&record.identity));
        live.count() + self.over_limit.keys().filter(|identity| of_runtime(identity)).count()
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
        self.known.incomplete_scans()
    }

    /// The name resolver; `None` when it is switched off.
    #[must_use]
    pub fn names(&self) -> Option<&NameResolver> {
        self.names.as_ref()
    }

    /// `v2`, `v1` or `hybrid`.
    #[must_use]
    pub fn layout(&self) -> &'static str {
        self.known.trees().layout()
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

    /// A restarted probe gave each container a new row.
    #[test]
    fn a_container_continues_its_row_after_a_restart() {
        let mut before = Host::new(10);
        let found = before.make(&format!("unified/docker/{A}"));
        let lost = before.make(&format!("unified/docker/{B}"));
        before.tick(0, &[found, lost]);
        let targets = [found, lost].map(|key| before.registry.charge_target(&key));
        let text = serde_json::to_vec(&before.registry.saved_containers()).unwrap();
        let mut after = Host::new(10);
        let now = after.now;
        let added = after.registry.continue_containers(serde_json::from_slice(&text).unwrap(), now);
        let mut ids: Vec<&str> = added.iter().map(|container| &*container.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, [&A[..12], &B[..12]]);
        let found = after.make(&format!("unified/docker/{A}"));
        let new = after.make("unified/job");
        assert!(after.tick(1, &[found, new]).1.is_empty());
        assert_eq!(after.registry.charge_target(&found), targets[0]);
        assert!(!targets.contains(&after.registry.charge_target(&new)), "no number is used twice");
        let ended = after.tick(301, &[found, new]).1;
        assert_eq!(ended.into_iter().map(ChargeTarget::Container).collect::<Vec<_>>(), [targets[1]]);
        // The limit of series holds for them too.
        let mut small = Host::new(1);
        assert_eq!(small.registry.continue_containers(serde_json::from_slice(&text).unwrap(), now).len(), 1);
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
    fn cpu_limit_that_is_provided_is_not_read_from_its_file() {
        let mut host = Host::new(10);
        let path = format!("unified/docker/{A}");
        let cgroup = host.make(&path);
        fs::write(host.path(&path).join("cpu.max"), "150000 100000\n").unwrap();
        let reserved = |host: &Host| host.registry.reservations().map(|(_, milli)| milli).collect::<Vec<_>>();
        host.tick(0, &[cgroup]);
        assert_eq!(reserved(&host), [1500]);
        let number = host.registry.containers().next().unwrap().number;
        for provided in [700, 0] {
            host.registry.note_cpu_limits([(number, Some(provided))].into_iter());
            host.tick(20, &[]);
            assert_eq!(reserved(&host), [provided]);
        }
        host.registry.note_cpu_limits([(number, None)].into_iter());
        host.tick(20, &[]);
        assert_eq!(reserved(&host), [1500]);
    }

    #[test]
    fn limits_of_other_containers_are_not_read_for_a_new_one() {
        let mut host = Host::new(10);
        let (a, b) = (format!("unified/docker/{A}"), format!("unified/docker/{B}"));
        let first = host.make(&a);
        let reserved = |host: &Host| host.registry.reservations().map(|(_, milli)| milli).collect::<Vec<_>>();
        host.tick(0, &[first]);
        host.make(&b);
        for path in [&a, &b] {
            fs::write(host.path(path).join("cpu.max"), "150000 100000\n").unwrap();
        }
        let second = host.make(&b);
        host.tick(1, &[second]);
        assert_eq!(reserved(&host), [0, 1500]);
        host.tick(10, &[]);
        assert_eq!(reserved(&host), [1500, 1500], "at intervals");
    }

    #[test]
    fn a_task_of_containerd_is_named_by_its_id_before_it_runs() {
        let mut host = Host::new(10);
        host.make("run/containerd/io.containerd.runtime.v2.task/default/enc");
        host.make("unified/default/other");
        let (idle, late) = (host.make("unified/default/enc"), host.make("unified/default/late"));
        host.tick(0, &[]);
        assert_eq!(host.labels(), [("enc", "default/enc", "containerd")]);
        assert_eq!(host.registry.charge_target(&idle), ChargeTarget::Container(0));
        // A cgroup that was no task when it was created is asked for when it runs.
        host.make("run/containerd/io.containerd.runtime.v2.task/default/late");
        host.tick(1, &[late]);
        assert_eq!(host.labels()[1..], [("late", "default/late", "containerd")]);
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

    /// A cgroup that was made by hand outranked containers after a restart.
    #[test]
    fn a_continued_cgroup_gives_way_to_a_container_as_before_the_restart() {
        let mut host = Host::new(1);
        let plain = host.make("unified/job");
        host.tick(0, &[plain]);
        let saved = host.registry.saved_containers();
        let (trees, files) = (Trees::find(host.dir.path()).unwrap(), RuntimeFiles::new(host.dir.path()));
        host.registry = ContainerRegistry::new(trees, None, files, host.registry.limits.clone());
        assert_eq!(host.registry.continue_containers(saved, host.now).len(), 1);
        host.tick(1, &[plain]);
        assert_eq!(host.labels()[0].2, "cgroup");
        let container = host.make(&format!("unified/docker/{A}"));
        host.tick(20, &[container]);
        assert_eq!(host.labels().iter().map(|labels| labels.2).collect::<Vec<_>>(), ["docker"]);
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

    /// A reading like the last one is not looked at again, unless something changed since.
    #[test]
    fn a_cgroup_of_the_same_reading_follows_its_target() {
        let mut host = Host::new(1);
        let idle = host.make(&format!("unified/docker/{A}"));
        host.tick(0, &[idle]);
        let changes = host.registry.target_changes();
        host.tick(1, &[idle]);
        assert_eq!(host.registry.target_changes(), changes);
        let busy = host.make(&format!("unified/docker/{B}"));
        // Over the limit, until the other one ends.
        host.tick(20, &[idle, busy]);
        host.tick(1, &[idle, busy]);
        assert_eq!(host.registry.charge_target(&busy), ChargeTarget::Retired);
        host.remove(&format!("unified/docker/{A}"));
        for _ in 0..3 {
            host.tick(20, &[busy]);
        }
        assert_eq!(host.registry.charge_target(&busy), ChargeTarget::Container(1));
        assert!(host.registry.target_changes() > changes);
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
