//! Jobs: the processes that encode. Who they are is told by the kernel side as they are executed, by their command lines, and by a
//! look at `/proc` for those that were there before; what they run, by their own CPU clocks.
//!
//! A process's clock is exact while the process lives and gone with it, so what it ran to its end comes from the kernel side, which adds
//! up its threads as they end. Without eBPF the last look stands.

pub mod command;

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use command::Command;
use serde::{Deserialize, Serialize};

use crate::{
    containers::Directory,
    cpu::{CgroupKey, Exec, Execs},
    ledger::Holder,
    state::Unavailable,
    tick::News,
};

/// Jobs that are known at once, those that ended lately included.
const MAX_JOBS: usize = 1024;
/// How often `/proc` is looked at where no kernel side tells of beginnings.
const SCAN_EVERY: Duration = Duration::from_secs(5);
/// For how long a new job's port is looked for; ffmpeg opens it while it reads its command line.
const LOOK_FOR_PORTS: Duration = Duration::from_secs(30);
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

struct Live {
    tgid: u32,
    /// What the process had run when the job began.
    base_ns: u64,
    /// What the job ran, as far as known.
    ran_ns: u64,
    own: Option<u32>,
    ended: Option<Instant>,
    /// Ports that its datagrams may come from; empty until they are known.
    ports: Vec<u16>,
    /// Until when they are looked for.
    look_until: Option<Instant>,
}

/// A job's process, for whoever must tell its reports from others'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The number of the job.
    pub job: u32,
    /// On this host.
    pub pid: u32,
    /// Local ports of its UDP sockets.
    pub ports: Vec<u16>,
}

/// How to know programs by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(pub Vec<String>);

impl Names {
    fn matches(&self, comm: &str) -> bool {
        self.0.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => comm.starts_with(&start[..start.len().min(15)]),
            None => comm == pattern.get(..15).unwrap_or(pattern),
        })
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
}

impl Jobs {
    /// Knows nobody yet.
    #[must_use]
    pub fn new(names: Names, procfs: &Path, retain: Duration) -> Self {
        let patterns: Vec<_> = names.0.iter().map(|name| crate::cpu::exec_name(name)).collect();
        Self {
            execs: Execs::load(&patterns),
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
        let (events, lost) = match &mut self.execs {
            Ok(execs) => (execs.drain(), execs.lost()),
            Err(_) => (Vec::new(), 0),
        };
        for event in events {
            match event {
                Exec::Started { tgid, cgroup, before_ns, at_ns, args, whole } => {
                    let args = if whole { args } else { self.line(tgid).unwrap_or(args) };
                    let begun = unix_ns.saturating_sub(since(at_ns));
                    self.meet(tgid, cgroup, before_ns, begun, &args, directory, news);
                }
                Exec::Ended { tgid, ran_ns, .. } => self.end(tgid, ran_ns, now, directory, news),
            }
        }
        let blind = self.execs.is_err() && self.last_scan.is_none_or(|last| now.duration_since(last) >= SCAN_EVERY);
        if blind || self.last_scan.is_none() || lost != self.lost {
            (self.last_scan, self.lost) = (Some(now), lost);
            self.scan(unix_ns, directory, news);
        }
        let mut gone = Vec::new();
        for live in self.live.values_mut().filter(|live| live.ended.is_none()) {
            match process_clock_ns(live.tgid) {
                Some(clock) => live.ran_ns = live.ran_ns.max(clock.saturating_sub(live.base_ns)),
                // Its end is in the ring, and will be read at the next look; or there is no ring.
                None if self.execs.is_err() => gone.push(live.tgid),
                None => {}
            }
        }
        for tgid in gone {
            self.end(tgid, None, now, directory, news);
        }
        self.find_ports(now);
        let retain = self.retain;
        let over = |live: &Live| live.ended.is_some_and(|at| now.duration_since(at) >= retain);
        news.jobs_gone.extend(self.live.iter().filter(|(_, live)| over(live)).map(|(number, _)| *number));
        self.live.retain(|_, live| !over(live));
        news.jobs_dropped = self.dropped;
        self.live.iter().map(|(number, live)| (*number, live.ran_ns)).collect()
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

    #[expect(clippy::too_many_arguments, reason = "what is known of a newcomer; there are two callers")]
    fn meet(
        &mut self,
        tgid: u32,
        cgroup: CgroupKey,
        base_ns: u64,
        unix_ns: i64,
        line: &[u8],
        directory: &mut Directory,
        news: &mut News,
    ) {
        // The same process, executed again: it goes on as what it was.
        if self.by_tgid.contains_key(&tgid) {
            return;
        }
        if self.live.len() >= MAX_JOBS && !self.make_room(news) {
            self.dropped += 1;
            return;
        }
        let number = self.next;
        self.next += 1;
        let command = Command::parse(line);
        let (holder, own) = directory.adopt(&cgroup, number, command.stream());
        self.by_tgid.insert(tgid, number);
        // Who reports by datagrams has a socket for it soon after its beginning.
        let progress = command.progress.as_ref().filter(|progress| progress.kind == "udp");
        let look_until = progress.map(|_| Instant::now() + LOOK_FOR_PORTS);
        let ports = progress.and_then(|progress| progress.port).into_iter().collect();
        self.live.insert(number, Live { tgid, base_ns, ran_ns: 0, own, ended: None, ports, look_until });
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
    fn scan(&mut self, unix_ns: i64, directory: &mut Directory, news: &mut News) {
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
            }
            self.meet(tgid, cgroup, clock, unix_ns, &line, directory, news);
        }
    }

    fn line(&self, tgid: u32) -> Option<Vec<u8>> {
        use io::Read as _;
        let mut line = Vec::new();
        let file = fs::File::open(self.procfs.join(tgid.to_string()).join("cmdline")).ok()?;
        file.take(MAX_LINE).read_to_end(&mut line).ok()?;
        (!line.is_empty()).then_some(line)
    }

    /// The process of a job that lives, and the ports that its datagrams may come from.
    #[must_use]
    pub fn process(&self, number: u32) -> Option<Process> {
        let live = self.live.get(&number).filter(|live| live.ended.is_none())?;
        Some(Process { job: number, pid: live.tgid, ports: live.ports.clone() })
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
    }

    #[test]
    fn a_processs_clock_is_its_own() {
        let ours = clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID).unwrap();
        let seen = process_clock_ns(std::process::id()).unwrap();
        assert!(seen >= ours, "{seen} {ours}");
        assert_eq!(process_clock_ns(4_194_304), None, "beyond the largest pid");
    }
}
