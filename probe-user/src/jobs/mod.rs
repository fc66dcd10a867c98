//! Jobs: the processes that encode. Who they are is told by the kernel side as they are executed, by their command lines, and by a
//! look at `/proc` for those that were there before; what they run, by their own CPU clocks.
//!
//! A process's clock is exact while the process lives and gone with it, so what it ran to its end comes from the kernel side, which adds
//! up its threads as they end. Without eBPF the last look stands.

pub mod command;

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use command::Command;
use serde::{Deserialize, Serialize};

use crate::{
    containers::Directory,
    cpu::{CgroupKey, Exec, Execs},
    ledger::Holder,
    state::{Reason, Unavailable},
    tick::News,
};

/// Jobs that are known at once, those that ended lately included.
const MAX_JOBS: usize = 1024;
/// How often `/proc` is looked at where no kernel side tells of beginnings.
const SCAN_EVERY: Duration = Duration::from_secs(5);
/// For how long a new job's port is looked for; ffmpeg opens it while it reads its command line.
const LOOK_FOR_PORTS: Duration = Duration::from_secs(30);
/// A job stays known for so long after its end, however short its series are shown: whoever keeps records must hear of it.
const SHOWN_AT_LEAST: Duration = Duration::from_secs(20);
/// For how long a job counts as new.
const YOUNG: Duration = Duration::from_secs(12);
/// How far a process's clock may seem to go back: what a running thread ran since the scheduler last looked.
const REUSED_NS: u64 = 100_000_000;
/// The inode of the first pid namespace (include/linux/proc_ns.h, PROC_PID_INIT_INO).
const FIRST_PIDS: u64 = 0xEFFF_FFFC;
/// Longest command line that is read.
const MAX_LINE: u64 = 64 << 10;

/// One job, as the accountant is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The probe's own number; never reused.
    pub number: u32,
    /// Whose time its own is a part of.
    pub holder: Holder,
    /// Where it has a row of its own, which is taken off `holder`'s: the container number of that row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<u32>,
    /// When it began, or was met.
    pub unix_ns: i64,
    /// What it does.
    pub command: Command,
}

impl Job {
    /// Who is given the joules that it is a part of.
    #[must_use]
    pub fn charged(&self) -> Holder {
        self.own.map_or(self.holder, Holder::Container)
    }
}

/// True where process numbers here are not the host's.
pub(crate) fn pids_are_elsewhere() -> bool {
    fs::metadata("/proc/self/ns/pid").is_ok_and(|meta| meta.ino() != FIRST_PIDS)
}

/// A process that was met.
struct Newcomer<'a> {
    tgid: u32,
    cgroup: CgroupKey,
    /// What it had run before it was this job.
    base_ns: u64,
    /// When it began, or was met.
    unix_ns: i64,
    /// Its command line.
    line: &'a [u8],
}

struct Live {
    tgid: u32,
    /// What the process had run when the job began.
    base_ns: u64,
    /// What the job ran, as far as known.
    ran_ns: u64,
    own: Option<u32>,
    met: Instant,
    ended: Option<Instant>,
    /// Ports that its datagrams may come from; empty until they are known.
    ports: Vec<u16>,
    /// Until when they are looked for.
    look_until: Option<Instant>,
    /// Looks in a row that found no such process, although no end was told.
    absent: u32,
}

/// A job's process, for whoever must tell its reports from others'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The number of the job.
    pub job: u32,
    /// On this host, while it lives.
    pub pid: Option<u32>,
    /// Local ports of its UDP sockets.
    pub ports: Vec<u16>,
}

/// How to know programs by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(pub Vec<String>);

impl Names {
    /// As the kernel side compares: it keeps 15 bytes of a name.
    fn matches(&self, comm: &str) -> bool {
        let kept = |text: &str| text.as_bytes()[..text.len().min(15)].to_vec();
        self.0.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => !start.is_empty() && comm.as_bytes().starts_with(&kept(start)),
            None => kept(comm) == kept(pattern),
        })
    }

    /// A command line without the interpreter of a script that has one of these names.
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

/// All jobs of this host.
pub struct Jobs {
    names: Names,
    execs: Result<Execs, Unavailable>,
    procfs: PathBuf,
    retain: Duration,
    live: BTreeMap<u32, Live>,
    by_tgid: HashMap<u32, u32>,
    next: u32,
    last_scan: Option<Instant>,
    lost: u64,
    dropped: u64,
    /// Other pids than the host's: nothing can be followed.
    elsewhere: bool,
}

impl Jobs {
    /// Knows nobody yet.
    #[must_use]
    pub fn new(names: Names, procfs: &Path, retain: Duration) -> Self {
        let patterns: Vec<_> = names.0.iter().map(|name| crate::cpu::exec_name(name)).collect();
        let elsewhere = pids_are_elsewhere();
        let execs = if elsewhere {
            // The kernel side tells the numbers that processes have there; here they are others'.
            Err(Unavailable::new(
                Reason::Absent,
                "this probe has pids of its own, and jobs are known by the host's: run it with the host's (docker: --pid=host; Kubernetes: hostPID)",
            ))
        } else {
            Execs::load(&patterns)
        };
        Self {
            elsewhere,
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

    /// The job that a process is, and its row where it has one of its own.
    #[must_use]
    pub fn of_process(&self, tgid: u32) -> Option<(u32, Option<u32>)> {
        let number = *self.by_tgid.get(&tgid)?;
        Some((number, self.live.get(&number)?.own))
    }

    /// Processes of jobs that began lately.
    pub fn recent(&self, now: Instant) -> impl Iterator<Item = u32> {
        let young = move |live: &&Live| live.ended.is_none() && now.duration_since(live.met) < YOUNG;
        self.live.values().filter(young).map(|live| live.tgid)
    }

    /// How beginnings are learnt.
    ///
    /// # Errors
    /// Why the kernel side does not tell: then jobs that live shorter than a look at `/proc` are not seen.
    pub fn state(&self) -> Result<(), Unavailable> {
        self.execs.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// Brings the jobs up to date: notes in `news` who began, ended and is forgotten, and gives what each ran since it began.
    /// `unix_ns` is now.
    pub fn observe(
        &mut self,
        now: Instant,
        unix_ns: i64,
        directory: &mut Directory,
        news: &mut News,
    ) -> Vec<(u32, u64)> {
        if self.elsewhere {
            return Vec::new();
        }
        let (events, lost) = match &mut self.execs {
            Ok(execs) => (execs.drain(), execs.lost()),
            Err(_) => (Vec::new(), 0),
        };
        for event in events {
            match event {
                Exec::Started { tgid, cgroup, before_ns, at_ns, args, whole } => {
                    let args = if whole { args } else { self.line(tgid).unwrap_or(args) };
                    let begun = unix_ns.saturating_sub(since(at_ns));
                    let newcomer = Newcomer { tgid, cgroup, base_ns: before_ns, unix_ns: begun, line: &args };
                    self.meet(&newcomer, now, directory, news);
                }
                Exec::Ended { tgid, ran_ns, .. } => self.end(tgid, ran_ns, now, directory, news),
            }
        }
        let blind = self.execs.is_err() && self.last_scan.is_none_or(|last| now.duration_since(last) >= SCAN_EVERY);
        if blind || self.last_scan.is_none() || lost != self.lost {
            (self.last_scan, self.lost) = (Some(now), lost);
            self.scan(now, unix_ns, directory, news);
        }
        let mut gone = Vec::new();
        for live in self.live.values_mut().filter(|live| live.ended.is_none()) {
            let clock = process_clock_ns(live.tgid);
            // A process that ran less than its job did is another, which has the number now.
            let own = clock.filter(|clock| clock.saturating_add(REUSED_NS) >= live.base_ns.saturating_add(live.ran_ns));
            match own {
                Some(clock) => {
                    live.ran_ns = live.ran_ns.max(clock.saturating_sub(live.base_ns));
                    live.absent = 0;
                }
                // Its end is in the ring, and will be read at the next look; or the ring was full, or there is none.
                None => {
                    live.absent += 1;
                    if self.execs.is_err() || live.absent > 1 || clock.is_some() {
                        gone.push(live.tgid);
                    }
                }
            }
        }
        for tgid in gone {
            self.end(tgid, None, now, directory, news);
        }
        self.find_ports(now);
        let clocks = self.live.iter().map(|(number, live)| (*number, live.ran_ns)).collect();
        let retain = self.retain.max(SHOWN_AT_LEAST);
        let over = |live: &Live| live.ended.is_some_and(|at| now.duration_since(at) >= retain);
        news.jobs_gone.extend(self.live.iter().filter(|(_, live)| over(live)).map(|(number, _)| *number));
        self.live.retain(|_, live| !over(live));
        news.jobs_dropped = self.dropped;
        clocks
    }

    /// Asks for the ports of new jobs that report by datagrams.
    fn find_ports(&mut self, now: Instant) {
        let wants = |live: &&mut Live| {
            live.ended.is_none() && live.ports.is_empty() && live.look_until.is_some_and(|until| now < until)
        };
        let mut seekers: Vec<&mut Live> = self.live.values_mut().filter(wants).collect();
        if seekers.is_empty() {
            return;
        }
        let Ok(execs) = &mut self.execs else { return };
        let tgids: Vec<u32> = seekers.iter().map(|live| live.tgid).collect();
        for (tgid, ports) in execs.ports(&tgids) {
            if let Some(live) = seekers.iter_mut().find(|live| live.tgid == tgid) {
                live.ports = ports;
            }
        }
    }

    fn meet(&mut self, newcomer: &Newcomer<'_>, now: Instant, directory: &mut Directory, news: &mut News) {
        let Newcomer { tgid, cgroup, base_ns, unix_ns, line } = *newcomer;
        // The same process, executed again, is another job: a wrapper of the same name became what it wraps.
        if self.by_tgid.contains_key(&tgid) {
            self.end(tgid, Some(base_ns), now, directory, news);
        }
        if self.live.len() >= MAX_JOBS && !self.make_room(news) {
            self.dropped += 1;
            return;
        }
        let number = self.next;
        self.next += 1;
        let command = Command::parse(self.names.without_interpreter(line));
        let (holder, own) = directory.adopt(&cgroup, number, command.stream(), now);
        self.by_tgid.insert(tgid, number);
        // Who reports by datagrams has a socket for it soon after its beginning.
        let progress = command.progress.as_ref().filter(|progress| progress.kind == "udp");
        let look_until = progress.map(|_| now + LOOK_FOR_PORTS);
        let ports = progress.and_then(|progress| progress.port).into_iter().collect();
        self.live.insert(
            number,
            Live { tgid, base_ns, ran_ns: 0, own, met: now, ended: None, ports, look_until, absent: 0 },
        );
        news.jobs.push(Job { number, holder, own, unix_ns, command });
    }

    /// Forgets the job that ended first; false when none has.
    fn make_room(&mut self, news: &mut News) -> bool {
        let ended = self.live.iter().filter_map(|(number, live)| Some((live.ended?, *number))).min();
        let Some((_, number)) = ended else { return false };
        self.live.remove(&number);
        news.jobs_gone.push(number);
        true
    }

    fn end(&mut self, tgid: u32, ran_ns: Option<u64>, now: Instant, directory: &mut Directory, news: &mut News) {
        let Some(number) = self.by_tgid.remove(&tgid) else { return };
        let Some(live) = self.live.get_mut(&number) else { return };
        if let Some(ran) = ran_ns {
            live.ran_ns = live.ran_ns.max(ran.saturating_sub(live.base_ns));
        }
        live.ended = Some(now);
        if let Some(own) = live.own {
            directory.bereave(own, now);
        }
        news.jobs_ended.push(number);
    }

    /// Meets everybody of a name that we look for whom we do not know.
    fn scan(&mut self, now: Instant, unix_ns: i64, directory: &mut Directory, news: &mut News) {
        let Ok(entries) = fs::read_dir(&self.procfs) else { return };
        let mut strangers = Vec::new();
        for entry in entries.flatten() {
            let Some(tgid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            if self.by_tgid.contains_key(&tgid) {
                continue;
            }
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if self.names.matches(comm.trim_end_matches('\n')) {
                strangers.push(tgid);
            }
        }
        for tgid in strangers {
            let (Some(clock), Some(line)) = (process_clock_ns(tgid), self.line(tgid)) else { continue };
            let Some(cgroup) = directory.cgroup_of(&self.procfs.join(tgid.to_string())) else { continue };
            if let Ok(execs) = &mut self.execs {
                // What its threads ran that have ended is what the process ran and its threads did not.
                execs.follow(tgid, clock.saturating_sub(threads_ns(&self.procfs, tgid)));
                // Gone meanwhile: nobody would tell of its end.
                if process_clock_ns(tgid).is_none() {
                    execs.unfollow(tgid);
                    continue;
                }
            }
            let newcomer = Newcomer { tgid, cgroup, base_ns: clock, unix_ns, line: &line };
            self.meet(&newcomer, now, directory, news);
        }
    }

    fn line(&self, tgid: u32) -> Option<Vec<u8>> {
        use io::Read as _;
        let mut line = Vec::new();
        let file = fs::File::open(self.procfs.join(tgid.to_string()).join("cmdline")).ok()?;
        file.take(MAX_LINE).read_to_end(&mut line).ok()?;
        (!line.is_empty()).then_some(line)
    }

    /// The process of a job, while it lives, and the ports that its datagrams come from, or came.
    #[must_use]
    pub fn process(&self, number: u32) -> Option<Process> {
        let live = self.live.get(&number)?;
        let pid = live.ended.is_none().then_some(live.tgid);
        Some(Process { job: number, pid, ports: live.ports.clone() })
    }

    /// True when what the kernel side tells can be read with the rights that this thread has.
    pub fn reads(&self) -> bool {
        self.execs.as_ref().map_or(true, Execs::reads)
    }

    /// Beginnings and ends that were not told, because too many came between two looks.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

/// Nanoseconds from a moment of `CLOCK_MONOTONIC` to now.
fn since(at_ns: u64) -> i64 {
    let now = clock_ns(libc::CLOCK_MONOTONIC).unwrap_or(at_ns);
    i64::try_from(now.saturating_sub(at_ns)).unwrap_or(0)
}

/// CPU time of a whole process, exited threads included; `None` when there is none of that number. Up to a tick of the scheduler behind
/// for each thread that runs.
pub fn process_clock_ns(tgid: u32) -> Option<u64> {
    // include/linux/posix-timers.h, make_process_cpuclock: the pid's complement above three bits, CPUCLOCK_SCHED.
    const CPUCLOCK_SCHED: libc::clockid_t = 2;
    let pid = libc::clockid_t::try_from(tgid).ok()?;
    clock_ns(!pid << 3 | CPUCLOCK_SCHED)
}

fn clock_ns(clock: libc::clockid_t) -> Option<u64> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec that outlives the call.
    if unsafe { libc::clock_gettime(clock, &raw mut now) } != 0 {
        return None;
    }
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    Some(part(now.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(now.tv_nsec)))
}

/// What the threads of a process ran that live now.
fn threads_ns(procfs: &Path, tgid: u32) -> u64 {
    let Ok(threads) = fs::read_dir(procfs.join(tgid.to_string()).join("task")) else { return 0 };
    let ran = threads.flatten().filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    ran.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_the_kernel_keeps() {
        let names = Names(vec!["ffmpeg".into(), "gst-*".into(), "a-very-long-program".into()]);
        assert!(names.matches("ffmpeg") && names.matches("gst-launch-1.0") && names.matches("a-very-long-pro"));
        assert!(!names.matches("ffmpeg2") && !names.matches("gst") && !names.matches(""));
        assert!(!Names(vec!["*".into(), "üüüüüüüüüüüü*".into()]).matches("sh"));
        let line = |words: &str| words.replace(' ', "\0").into_bytes();
        assert_eq!(names.without_interpreter(&line("/bin/bash /usr/bin/ffmpeg -y")), line("/usr/bin/ffmpeg -y"));
        for whole in ["/usr/bin/ffmpeg ffmpeg", "ffmpeg", "bash -c x", ""] {
            assert_eq!(names.without_interpreter(&line(whole)), line(whole));
        }
    }

    #[test]
    fn a_processs_clock_is_its_own() {
        let ours = clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID).unwrap();
        let seen = process_clock_ns(std::process::id()).unwrap();
        assert!(seen >= ours, "{seen} {ours}");
        assert_eq!(process_clock_ns(4_194_304), None, "beyond the largest pid");
    }
}
