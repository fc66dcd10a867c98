//! Jobs: the ffmpeg processes. eBPF reports each one when it is executed; a scan of `/proc` finds
//! those that were started before the probe. The CPU time of a job is its process's CPU clock.
//!
//! That clock is exact while the process runs and disappears with it. The final CPU time therefore
//! comes from eBPF, which sums up the threads as they exit. Without eBPF the last reading of the
//! clock is the final value. What each stage of ffmpeg ran is read from its threads.
//!
//! A process may be moved into another cgroup while it runs: started by a service, which then puts
//! it into a container. Its cgroup is therefore compared at every tick, and a job is charged where
//! its process is.

pub mod command_line;
pub(crate) mod placement;
pub mod stage;
mod switches;
mod target;
mod threads;

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use command_line::CommandLine;
use placement::Placement;
use serde::{Deserialize, Serialize};
use stage::StageTimes;
use threads::{MAX_READS, StageClock};

use crate::{
    cgroup::CgroupKey,
    containers::{ChargeTarget, ContainerRegistry},
    cpu::{EndedThread, ExecEvent, ExecTracer, ThreadCreator},
    host::{
        availability::{Reason, Unavailable},
        process::{clock_ns, elapsed_since, in_other_pid_namespace, process_clock_ns, stat_number, threads_clock_ns},
    },
};

/// Maximum number of jobs, including those that ended recently.
const MAX_JOBS: usize = 1024;
/// Interval between scans of `/proc` without eBPF.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);
/// Time for which the UDP port of a new job is searched; ffmpeg opens it while it parses its
/// command line.
const PORT_LOOKUP: Duration = Duration::from_secs(30);
/// Minimum time for which an ended job is kept, even if its series end earlier: the analysis
/// service must see its end.
const MIN_RETENTION: Duration = Duration::from_secs(20);
/// Age up to which a job counts as recent.
const RECENT: Duration = Duration::from_secs(12);
/// How far a process's clock may appear to go back: the time a thread ran since the scheduler last
/// updated it.
const CLOCK_TOLERANCE_NS: u64 = 100_000_000;
/// Longest command line that is read.
const MAX_LINE: u64 = 64 << 10;

/// One job, as passed to the accountant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The probe's own number; never reused.
    pub number: u32,
    /// The charge target of the cgroup that the job runs in.
    #[serde(rename = "holder")]
    pub charge_target: ChargeTarget,
    /// The container number of the job's own row, if it has one. Its energy is taken off that of
    /// `charge_target`.
    #[serde(rename = "own", default, skip_serializing_if = "Option::is_none")]
    pub own_container: Option<u32>,
    /// Start of the job, or the time at which it was found.
    pub unix_ns: i64,
    pub command: CommandLine,
}

impl Job {
    /// The target that the job's energy is charged to.
    #[must_use]
    pub fn charged_to(&self) -> ChargeTarget {
        self.own_container.map_or(self.charge_target, ChargeTarget::Container)
    }
}

/// A process that becomes a job.
struct NewJob<'a> {
    tgid: u32,
    cgroup: CgroupKey,
    /// CPU time of the process before the job started.
    base_ns: u64,
    /// Start of the job, or the time at which it was found.
    unix_ns: i64,
    /// Start of the process, if it was found later.
    began_ns: Option<i64>,
    line: &'a [u8],
}

struct TrackedJob {
    tgid: u32,
    /// CPU time of the process before the job started.
    base_ns: u64,
    /// CPU time of the job up to the last reading.
    ran_ns: u64,
    /// The same by stage, up to the last reading of its threads.
    stages: StageClock,
    /// The charge target of the cgroup that it runs in.
    charge_target: ChargeTarget,
    own_container: Option<u32>,
    placement: Placement,
    /// Name for a row of its own.
    stream: Option<String>,
    started: Instant,
    /// Start of the process in unix nanoseconds, if it was found later.
    began_ns: Option<i64>,
    ended: Option<Instant>,
    /// Local UDP ports; empty until they are found.
    ports: Vec<u16>,
    find_ports_until: Option<Instant>,
    /// Number of consecutive readings without this process although its end was not reported.
    absent: u32,
}

/// A job's process. The analysis service uses it to assign progress reports to jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobProcess {
    /// The number of the job.
    pub job: u32,
    /// The process id on the host, while the process runs.
    pub pid: Option<u32>,
    /// Local ports of its UDP sockets.
    pub ports: Vec<u16>,
    /// Start of the process in unix nanoseconds, if it was found later, as after a restart of the
    /// probe: what it used before is not counted.
    pub began_ns: Option<i64>,
}

/// Changes of the jobs since the last observation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobChanges {
    /// CPU nanoseconds of every job since its start.
    pub clocks: Vec<(u32, u64)>,
    /// CPU nanoseconds of the parts of jobs since their start, for jobs whose threads have stages
    /// and ran.
    pub stages: Vec<(u32, StageTimes)>,
    pub started: Vec<Job>,
    /// Jobs that moved into another cgroup: number, charge target of that cgroup, and the container
    /// number of the job's own row.
    pub moved: Vec<(u32, ChargeTarget, Option<u32>)>,
    /// Jobs that ended: their CPU time is final.
    pub ended: Vec<u32>,
    /// Jobs that were forgotten.
    pub removed: Vec<u32>,
    /// Number of jobs since the probe's start that exceeded the limit.
    pub dropped: u64,
}

/// Names of the programs whose processes are jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramNames(pub Vec<String>);

impl ProgramNames {
    /// Compares names as the eBPF program does: the kernel keeps only 15 bytes of a name.
    fn matches(&self, comm: &str) -> bool {
        let truncated = |text: &str| text.as_bytes()[..text.len().min(15)].to_vec();
        self.0.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => !start.is_empty() && comm.as_bytes().starts_with(&truncated(start)),
            None => truncated(comm) == truncated(pattern),
        })
    }

    /// Removes the interpreter from the command line of a script that has one of these names.
    fn without_interpreter<'a>(&self, line: &'a [u8]) -> &'a [u8] {
        let mut words = line.split(|byte| *byte == 0);
        let job = |word: Option<&[u8]>| {
            let name = word.and_then(|word| word.rsplit(|byte| *byte == b'/').next());
            name.is_some_and(|name| self.matches(&String::from_utf8_lossy(name)))
        };
        let first = words.next();
        if job(first) || !job(words.next()) {
            return line;
        }
        first.and_then(|first| line.get(first.len() + 1..)).unwrap_or(line)
    }
}

/// All jobs of the host.
pub struct Jobs {
    names: ProgramNames,
    execs: Result<ExecTracer, Unavailable>,
    procfs: PathBuf,
    retain: Duration,
    live: BTreeMap<u32, TrackedJob>,
    by_tgid: HashMap<u32, u32>,
    next: u32,
    last_scan: Option<Instant>,
    lost: u64,
    dropped: u64,
    /// True in a pid namespace other than the host's, where no process can be followed.
    other_pid_namespace: bool,
}

impl Jobs {
    /// Starts tracing; no job is known yet.
    #[must_use]
    pub fn new(names: ProgramNames, procfs: &Path, retain: Duration) -> Self {
        let patterns: Vec<_> = names.0.iter().map(|name| crate::cpu::comm_pattern(name)).collect();
        let other_pid_namespace = in_other_pid_namespace();
        let execs = if other_pid_namespace {
            // eBPF reports pids of the host's namespace, which belong to other processes here.
            Err(Unavailable::new(
                Reason::Absent,
                "the probe runs in its own pid namespace, but jobs are identified by the host's pids: run it in the host's namespace (docker: --pid=host; Kubernetes: hostPID)",
            ))
        } else {
            ExecTracer::load(&patterns)
        };
        Self {
            other_pid_namespace,
            execs,
            names,
            procfs: procfs.to_owned(),
            retain,
            live: BTreeMap::new(),
            by_tgid: HashMap::new(),
            next: 0,
            last_scan: None,
            lost: 0,
            dropped: 0,
        }
    }

    /// The number of the job of a process, and the container number of the job's own row if it has
    /// one.
    #[must_use]
    pub fn job_of_process(&self, tgid: u32) -> Option<(u32, Option<u32>)> {
        let number = *self.by_tgid.get(&tgid)?;
        Some((number, self.live.get(&number)?.own_container))
    }

    /// Processes of jobs that started recently.
    pub fn recently_started(&self, now: Instant) -> impl Iterator<Item = u32> {
        let recent = move |live: &&TrackedJob| live.ended.is_none() && now.duration_since(live.started) < RECENT;
        self.live.values().filter(recent).map(|live| live.tgid)
    }

    /// The state of the eBPF tracer.
    ///
    /// # Errors
    /// Why it is not available. Then jobs that are shorter than the scan interval are missed.
    pub fn state(&self) -> Result<(), Unavailable> {
        self.execs.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// Updates the jobs and returns what changed. `unix_ns` is the current time.
    pub fn observe(&mut self, now: Instant, unix_ns: i64, registry: &mut ContainerRegistry) -> JobChanges {
        let mut changes = JobChanges::default();
        if self.other_pid_namespace {
            return changes;
        }
        let (events, lost) = match &mut self.execs {
            Ok(execs) => (execs.drain(), execs.lost()),
            Err(_) => (Vec::new(), 0),
        };
        for event in events {
            match event {
                ExecEvent::Started { tgid, cgroup, before_ns, at_ns, args, args_complete } => {
                    let args = if args_complete { args } else { self.command_line(tgid).unwrap_or(args) };
                    let started_ns = unix_ns.saturating_sub(elapsed_since(at_ns));
                    let new_job =
                        NewJob { tgid, cgroup, base_ns: before_ns, unix_ns: started_ns, began_ns: None, line: &args };
                    self.start_job(&new_job, now, registry, &mut changes);
                }
                ExecEvent::Ended { tgid, ran_ns, .. } => self.end_job(tgid, ran_ns, now, registry, &mut changes),
            }
        }
        let poll = self.execs.is_err() && self.last_scan.is_none_or(|last| now.duration_since(last) >= SCAN_INTERVAL);
        if poll || self.last_scan.is_none() || lost != self.lost {
            (self.last_scan, self.lost) = (Some(now), lost);
            self.scan(now, unix_ns, registry, &mut changes);
        }
        let mut gone = Vec::new();
        for live in self.live.values_mut().filter(|live| live.ended.is_none()) {
            let clock = process_clock_ns(live.tgid);
            // A clock below the job's CPU time belongs to a new process with the same pid.
            let job_clock = clock
                .filter(|clock| clock.saturating_add(CLOCK_TOLERANCE_NS) >= live.base_ns.saturating_add(live.ran_ns));
            match job_clock {
                Some(clock) => {
                    live.ran_ns = live.ran_ns.max(clock.saturating_sub(live.base_ns));
                    live.absent = 0;
                }
                // The end of the process is in the ring buffer and is read in the next tick, unless
                // the buffer was full or there is no eBPF.
                None => {
                    live.absent += 1;
                    if self.execs.is_err() || live.absent > 1 || clock.is_some() {
                        gone.push(live.tgid);
                    }
                }
            }
        }
        for tgid in gone {
            self.end_job(tgid, None, now, registry, &mut changes);
        }
        changes.stages = self.read_stages(now);
        self.follow_moves(now, registry, &mut changes);
        self.find_ports(now);
        changes.clocks = self.live.iter().map(|(number, live)| (*number, live.ran_ns)).collect();
        let retain = self.retain.max(MIN_RETENTION);
        let expired = |live: &TrackedJob| live.ended.is_some_and(|at| now.duration_since(at) >= retain);
        changes.removed.extend(self.live.iter().filter(|(_, live)| expired(live)).map(|(number, _)| *number));
        self.live.retain(|_, live| !expired(live));
        changes.dropped = self.dropped;
        changes
    }

    /// The CPU time by stage of the jobs that ran. It is read after the clocks, so the parts of a
    /// job sum to a little more than its clock, and to less only where a thread was not seen.
    fn read_stages(&mut self, now: Instant) -> Vec<(u32, StageTimes)> {
        let mut ended: HashMap<u32, Vec<EndedThread>> = HashMap::new();
        if let Ok(execs) = &mut self.execs {
            // After the events of jobs: the threads of a job exit before its end is reported.
            for thread in execs.drain_threads() {
                ended.entry(thread.tgid).or_default().push(thread);
            }
        }
        let execs = self.execs.as_ref().ok();
        let creator_of = |tid| execs.map_or(ThreadCreator::Unknown, |execs| execs.creator(tid));
        let (mut reads, mut changed) = (MAX_READS, Vec::new());
        // The newest job first, which has the threads where a process executed a program twice.
        for (number, live) in self.live.iter_mut().rev() {
            if live.ended.is_some_and(|at| at != now) {
                continue;
            }
            let ended = ended.remove(&live.tgid).unwrap_or_default();
            // A process that was not found in this tick is not read: its pid may be another's.
            let running = live.ended.is_none() && live.absent == 0;
            let process = running.then(|| self.procfs.join(live.tgid.to_string()));
            live.stages.advance(process.as_deref(), &ended, creator_of, &mut reads);
            if live.ended.is_some() {
                live.stages.finish();
            }
            changed.extend(live.stages.take_changed().map(|parts| (*number, parts)));
        }
        changed.reverse();
        changed
    }

    /// Charges jobs whose processes moved into another cgroup to that cgroup.
    fn follow_moves(&mut self, now: Instant, registry: &mut ContainerRegistry, changes: &mut JobChanges) {
        // A process that was not found in this tick is not compared: its pid may be another's.
        let running = self.live.iter_mut().filter(|(_, live)| live.ended.is_none() && live.absent == 0);
        for (number, live) in running {
            let process = self.procfs.join(live.tgid.to_string());
            let Some(cgroup) = live.placement.follow(&process, registry) else { continue };
            // Its row ends first, because a job has one row at most.
            if let Some(container) = live.own_container {
                registry.detach_job(container, now);
            }
            let (target, own) = registry.attach_job(&cgroup, *number, live.stream.as_deref(), now);
            if (target, own) != (live.charge_target, live.own_container) {
                (live.charge_target, live.own_container) = (target, own);
                changes.moved.push((*number, target, own));
            }
        }
    }

    /// Finds the UDP ports of new jobs that send progress reports as datagrams.
    fn find_ports(&mut self, now: Instant) {
        let wants = |live: &&mut TrackedJob| {
            live.ended.is_none() && live.ports.is_empty() && live.find_ports_until.is_some_and(|until| now < until)
        };
        let mut waiting: Vec<&mut TrackedJob> = self.live.values_mut().filter(wants).collect();
        if waiting.is_empty() {
            return;
        }
        let Ok(execs) = &mut self.execs else { return };
        let tgids: Vec<u32> = waiting.iter().map(|live| live.tgid).collect();
        for (tgid, ports) in execs.ports(&tgids) {
            if let Some(live) = waiting.iter_mut().find(|live| live.tgid == tgid) {
                live.ports = ports;
            }
        }
    }

    fn start_job(
        &mut self,
        new_job: &NewJob<'_>,
        now: Instant,
        registry: &mut ContainerRegistry,
        changes: &mut JobChanges,
    ) {
        let NewJob { tgid, cgroup, base_ns, unix_ns, began_ns, line } = *new_job;
        // A process that executes again is a new job: a wrapper script of the same name starts the
        // real program.
        if self.by_tgid.contains_key(&tgid) {
            self.end_job(tgid, Some(base_ns), now, registry, changes);
        }
        if self.live.len() >= MAX_JOBS && !self.make_room(changes) {
            self.dropped += 1;
            return;
        }
        let number = self.next;
        self.next += 1;
        let command = CommandLine::parse(self.names.without_interpreter(line));
        let placement = Placement::start(&self.procfs.join(tgid.to_string()), cgroup, registry);
        let (charge_target, own_container) = registry.attach_job(&placement.cgroup, number, command.stream(), now);
        self.by_tgid.insert(tgid, number);
        // A job that reports over UDP opens its socket soon after its start.
        let progress = command.progress.as_ref().filter(|progress| progress.kind == "udp");
        let find_ports_until = progress.map(|_| now + PORT_LOOKUP);
        let ports = progress.and_then(|progress| progress.port).into_iter().collect();
        self.live.insert(
            number,
            TrackedJob {
                tgid,
                base_ns,
                ran_ns: 0,
                stages: StageClock::new(tgid, base_ns),
                charge_target,
                own_container,
                placement,
                stream: command.stream().map(str::to_owned),
                started: now,
                began_ns,
                ended: None,
                ports,
                find_ports_until,
                absent: 0,
            },
        );
        changes.started.push(Job { number, charge_target, own_container, unix_ns, command });
    }

    /// Removes the job that ended first. Returns false if none has ended.
    fn make_room(&mut self, changes: &mut JobChanges) -> bool {
        let ended = self.live.iter().filter_map(|(number, live)| Some((live.ended?, *number))).min();
        let Some((_, number)) = ended else { return false };
        self.live.remove(&number);
        changes.removed.push(number);
        true
    }

    fn end_job(
        &mut self,
        tgid: u32,
        ran_ns: Option<u64>,
        now: Instant,
        registry: &mut ContainerRegistry,
        changes: &mut JobChanges,
    ) {
        let Some(number) = self.by_tgid.remove(&tgid) else { return };
        let Some(live) = self.live.get_mut(&number) else { return };
        if let Some(ran) = ran_ns {
            live.ran_ns = live.ran_ns.max(ran.saturating_sub(live.base_ns));
        }
        live.ended = Some(now);
        if let Some(container) = live.own_container {
            registry.detach_job(container, now);
        }
        changes.ended.push(number);
    }

    /// Starts a job for every matching process in `/proc` that has none yet.
    fn scan(&mut self, now: Instant, unix_ns: i64, registry: &mut ContainerRegistry, changes: &mut JobChanges) {
        let Ok(entries) = fs::read_dir(&self.procfs) else { return };
        let mut new_tgids = Vec::new();
        for entry in entries.flatten() {
            let Some(tgid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            if self.by_tgid.contains_key(&tgid) {
                continue;
            }
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if self.names.matches(comm.trim_end_matches('\n')) {
                new_tgids.push(tgid);
            }
        }
        for tgid in new_tgids {
            let (Some(clock), Some(line)) = (process_clock_ns(tgid), self.command_line(tgid)) else { continue };
            let Some(cgroup) = registry.cgroup_of(&self.procfs.join(tgid.to_string())) else { continue };
            if let Ok(execs) = &mut self.execs {
                // CPU time of exited threads: that of the process less that of its current threads.
                execs.track(tgid, clock.saturating_sub(threads_clock_ns(&self.procfs, tgid)));
                // The process has exited meanwhile, and its end would not be reported.
                if process_clock_ns(tgid).is_none() {
                    execs.untrack(tgid);
                    continue;
                }
            }
            let began_ns = began_ns(&self.procfs.join(tgid.to_string()), unix_ns);
            let new_job = NewJob { tgid, cgroup, base_ns: clock, unix_ns, began_ns, line: &line };
            self.start_job(&new_job, now, registry, changes);
            if let Some(live) = self.by_tgid.get(&tgid).and_then(|number| self.live.get_mut(number)) {
                live.stages.skip_past(&self.procfs.join(tgid.to_string()));
            }
        }
    }

    fn command_line(&self, tgid: u32) -> Option<Vec<u8>> {
        use io::Read as _;
        let mut line = Vec::new();
        let file = fs::File::open(self.procfs.join(tgid.to_string()).join("cmdline")).ok()?;
        file.take(MAX_LINE).read_to_end(&mut line).ok()?;
        (!line.is_empty()).then_some(line)
    }

    /// The process of a job while it runs, and its UDP ports, which are kept after its end.
    #[must_use]
    pub fn process(&self, number: u32) -> Option<JobProcess> {
        let live = self.live.get(&number)?;
        let pid = live.ended.is_none().then_some(live.tgid);
        Some(JobProcess { job: number, pid, ports: live.ports.clone(), began_ns: live.began_ns })
    }

    /// True if the eBPF events can be read with the current privileges of this thread.
    pub fn can_read(&self) -> bool {
        self.execs.as_ref().map_or(true, ExecTracer::can_read)
    }

    /// Number of starts and ends that were lost because the ring buffer was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

/// Start of a running process in unix nanoseconds, in the resolution of the kernel: 10 ms. `now_ns`
/// is the current time.
fn began_ns(process: &Path, now_ns: i64) -> Option<i64> {
    let ticks = start_ticks(&fs::read(process.join("stat")).ok()?)?;
    let began = u128::from(ticks) * 1_000_000_000 / u128::from(rustix::param::clock_ticks_per_second().max(1));
    let age = clock_ns(libc::CLOCK_BOOTTIME)?.saturating_sub(u64::try_from(began).ok()?);
    Some(now_ns.saturating_sub(i64::try_from(age).ok()?))
}

/// The start of a process since the boot, in clock ticks, in the text of its `/proc/PID/stat`.
fn start_ticks(stat: &[u8]) -> Option<u64> {
    stat_number(stat, 22)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A probe that was restarted in mid-stream gave the job the time of its own start.
    #[test]
    fn a_job_that_runs_already_has_the_start_of_its_process() {
        let fields: Vec<String> = (4..30).map(|field: u32| field.to_string()).collect();
        for name in ["ffmpeg", ") R 1 2 (", "a b"] {
            let stat = format!("7 ({name}) R {}\n", fields.join(" "));
            assert_eq!(start_ticks(stat.as_bytes()), Some(22), "{name}");
        }
        assert_eq!((start_ticks(b"7 (a) R 1 2"), start_ticks(b"")), (None, None));
        let now = 1_800_000_000_000_000_000;
        let began = began_ns(Path::new("/proc/self"), now).unwrap();
        let day = 86_400 * 1_000_000_000;
        assert!(began <= now && began > now - day, "{began}");
    }

    #[test]
    fn names_match_in_the_15_bytes_that_the_kernel_keeps() {
        let names = ProgramNames(vec!["ffmpeg".into(), "gst-*".into(), "a-very-long-program".into()]);
        assert!(names.matches("ffmpeg") && names.matches("gst-launch-1.0") && names.matches("a-very-long-pro"));
        assert!(!names.matches("ffmpeg2") && !names.matches("gst") && !names.matches(""));
        assert!(!ProgramNames(vec!["*".into(), "üüüüüüüüüüüü*".into()]).matches("sh"));
        let line = |words: &str| words.replace(' ', "\0").into_bytes();
        assert_eq!(names.without_interpreter(&line("/bin/bash /usr/bin/ffmpeg -y")), line("/usr/bin/ffmpeg -y"));
        for whole in ["/usr/bin/ffmpeg ffmpeg", "ffmpeg", "bash -c x", ""] {
            assert_eq!(names.without_interpreter(&line(whole)), line(whole));
        }
    }
}
