//! Exec and exit events of processes with configured names, from eBPF programs: with command lines
//! and total CPU time; and the exits of their threads.

use std::{
    ffi::CStr,
    io::{self, Read as _},
    os::fd::OwnedFd,
};

use aya::maps::{Array, HashMap as BpfMap, MapData, MapError};
use probe_ebpf::{
    CgroupKey, JOB_ARGS, JOB_EVENTS_BYTES, JOB_NAMES, JOB_PORTS, JOB_THREADS, JobEvent, JobName, MAX_JOBS,
    THREAD_ENDS_BYTES, ThreadEnd,
};

use super::{
    iterators,
    mapped_array::MappedArray,
    object::{BpfObject, PAGE, load_error},
    offsets,
    program_log::{self, ProgramLog},
    ring::Ring,
};
use crate::host::availability::Unavailable;

/// Hook, typed program, and its raw tracepoint variant for kernels that refuse the typed one.
const PROGRAMS: [(&CStr, &str, &str); 2] =
    [(c"sched_process_exec", "job_started", "job_started_raw"), (c"sched_process_exit", "job_ended", "job_ended_raw")];

/// The program that notes which thread creates another.
const CREATIONS: (&CStr, &str) = (c"sched_process_fork", "thread_created");

/// The iterator that finds the local UDP ports of jobs.
const PORTS: &str = "find_ports";

/// An exec or exit of a traced process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// A program was executed.
    Started {
        /// Thread group.
        tgid: u32,
        /// Cgroup of the process.
        cgroup: CgroupKey,
        /// CPU time of the process before the exec.
        before_ns: u64,
        /// Time of the event, `CLOCK_MONOTONIC`.
        at_ns: u64,
        /// Command line; each argument ends with a zero byte.
        args: Vec<u8>,
        /// False when the command line was truncated.
        args_complete: bool,
    },
    /// The last thread exited.
    Ended {
        /// Thread group.
        tgid: u32,
        /// Time of the event, `CLOCK_MONOTONIC`.
        at_ns: u64,
        /// Total CPU time of the process; `None` if unknown.
        ran_ns: Option<u64>,
    },
}

/// Which thread created a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ThreadCreator {
    /// Not known: the thread is older than the probe, or the kernel refused the program.
    #[default]
    Unknown,
    /// The main thread of its process.
    Main,
    /// Another thread, whose creator is followed up to one that the main thread created: its name
    /// when it created the first of them.
    Thread(String),
}

/// A thread of a job that exited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedThread {
    /// Thread group of the job.
    pub tgid: u32,
    /// The thread.
    pub tid: u32,
    /// Its total run time.
    pub ran_ns: u64,
    /// Its last name.
    pub name: String,
    /// Which thread created it.
    pub creator: ThreadCreator,
}

/// The loaded programs and their maps. Dropping this detaches the programs.
pub struct ExecTracer {
    events: Ring,
    jobs: BpfMap<MapData, u32, u64>,
    thread_ends: Ring,
    creators: BpfMap<MapData, u32, [u64; 2]>,
    ports: BpfMap<MapData, u32, [u16; JOB_PORTS]>,
    /// Link of the iterator over open files; without it, ports are known only from command lines.
    port_iterator: Option<OwnedFd>,
    lost: MappedArray<u64>,
    log: Option<ProgramLog>,
    /// Keeps the programs attached.
    _links: Vec<OwnedFd>,
}

/// Converts a name pattern to the form that the programs compare; a trailing `*` matches any rest.
/// The kernel keeps 15 bytes of a name.
#[must_use]
pub fn comm_pattern(pattern: &str) -> JobName {
    let (bytes, prefix) =
        pattern.strip_suffix('*').map_or((pattern.as_bytes(), false), |start| (start.as_bytes(), true));
    let length = bytes.len().min(15);
    let (mut name, mut mask) = ([0u8; 16], [0u8; 16]);
    name[..length].copy_from_slice(&bytes[..length]);
    // Without a star, the zero after the name must match too, unless the kernel truncated the name.
    let compared = if prefix { length } else { (length + 1).min(16) };
    mask[..compared].fill(0xff);
    let words = |bytes: [u8; 16]| {
        let [low, high] = [&bytes[..8], &bytes[8..]].map(|half| half.try_into().map_or(0, u64::from_ne_bytes));
        [low, high]
    };
    JobName { name: words(name), mask: words(mask) }
}

impl ExecTracer {
    /// Loads and attaches the programs, for at most [`JOB_NAMES`] names.
    ///
    /// # Errors
    /// `absent` when the kernel lacks BTF, a field or BPF; `denied` when this process may not load
    /// programs; `broken` when the kernel refuses them for another reason.
    pub fn load(names: &[JobName]) -> Result<Self, Unavailable> {
        program_log::or_without(|| Self::start(names))
    }

    fn start(names: &[JobName]) -> Result<Self, Unavailable> {
        let unused = ["CPUS", "TIMES", "COUNTS", "OWNERS", "SLOTS", "FREE", "BASES"];
        let mut sizes = unused.map(|name| (name, 1)).to_vec();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        sizes.extend([
            ("JOBS", number(MAX_JOBS)),
            ("JOB_UDP", number(MAX_JOBS)),
            ("CREATORS", number(JOB_THREADS)),
            ("THREAD_ENDS", number(THREAD_ENDS_BYTES)),
            ("JOB_EVENTS", number(JOB_EVENTS_BYTES)),
            ("CGROUP_EVENTS", PAGE),
            ("MOVES", PAGE),
        ]);
        let (mut object, _) = BpfObject::open(offsets::jobs, &[], &sizes, &[])?;
        let mut table: Array<MapData, JobName> =
            Array::try_from(object.take("NAMES")?).map_err(|error| load_error("open the map NAMES", &error))?;
        for (at, name) in (0u32..).zip(names.iter().take(JOB_NAMES)) {
            table.set(at, *name, 0).map_err(|error| load_error("fill the map NAMES", &error))?;
        }
        let lost = object.mapped("JOBS_LOST")?;
        for (hook, typed, raw) in PROGRAMS {
            attach(&mut object, hook, typed, raw)?;
        }
        let (hook, program) = CREATIONS;
        if let Err(error) = object.attach_raw(program, hook) {
            tracing::debug!("the creators of threads are unknown, cannot attach the program: {error}");
        }
        let port_iterator =
            object.load_iterator(PORTS, "task_file").map_err(io::Error::other).and_then(iterators::link_all);
        if let Err(error) = &port_iterator {
            tracing::debug!("UDP ports of jobs are known only from command lines, cannot load the iterator: {error}");
        }
        let ports =
            BpfMap::try_from(object.take("JOB_UDP")?).map_err(|error| load_error("open the map JOB_UDP", &error))?;
        let events = Ring::new("JOB_EVENTS", &object.take("JOB_EVENTS")?)
            .map_err(|error| load_error("open the ring", &error))?;
        let jobs = BpfMap::try_from(object.take("JOBS")?).map_err(|error| load_error("open the map JOBS", &error))?;
        let thread_ends = Ring::new("THREAD_ENDS", &object.take("THREAD_ENDS")?)
            .map_err(|error| load_error("open THREAD_ENDS", &error))?;
        let creators =
            BpfMap::try_from(object.take("CREATORS")?).map_err(|error| load_error("open the map CREATORS", &error))?;
        // The kernel keeps programs and maps while their links are open, so the object can be
        // dropped.
        drop(table);
        let (log, port_iterator) = (object.log(), port_iterator.ok());
        let links = object.into_links();
        Ok(Self { events, jobs, thread_ends, creators, ports, port_iterator, lost, log, _links: links })
    }

    /// Events since the last call, in order.
    pub fn drain(&mut self) -> Vec<ExecEvent> {
        let mut all = Vec::new();
        self.events.drain(|record| all.extend(parse(record)));
        self.log.iter_mut().for_each(ProgramLog::drain);
        for at in 0..all.len() {
            let (before, after) = all.split_at_mut(at + 1);
            if let Some(ExecEvent::Ended { tgid, ran_ns, .. }) = before.last_mut()
                // The id may have been reused, and the sum then belongs to the new process.
                && !after.iter().any(|event| matches!(event, ExecEvent::Started { tgid: later, .. } if later == tgid))
            {
                *ran_ns = self.jobs.get(tgid, 0).ok();
                let _ = self.jobs.remove(tgid);
            }
        }
        all
    }

    /// Threads of jobs that exited since the last call, in order.
    pub fn drain_threads(&mut self) -> Vec<EndedThread> {
        let mut all = Vec::new();
        self.thread_ends.drain(|record| all.extend(parse_thread(record)));
        all
    }

    /// Which thread created a running thread.
    #[must_use]
    pub fn creator(&self, tid: u32) -> ThreadCreator {
        self.creators.get(&tid, 0).map_or(ThreadCreator::Unknown, |name| creator_of(&comm(name)))
    }

    /// Tracks a process that was started before; its exited threads ran for `ended_ns`.
    pub fn track(&mut self, tgid: u32, ended_ns: u64) {
        let _ = self.jobs.insert(tgid, ended_ns, 0);
    }

    /// Stops tracking a process.
    pub fn untrack(&mut self, tgid: u32) {
        let _ = self.jobs.remove(&tgid);
    }

    /// Whether this thread's capabilities suffice to read the maps.
    #[must_use]
    pub fn can_read(&self) -> bool {
        // No process has the id 0.
        !matches!(self.jobs.get(&0, 0), Err(MapError::SyscallError(_)))
    }

    /// Local UDP ports of the given thread groups, for those that have such a socket open.
    pub fn ports(&mut self, tgids: &[u32]) -> Vec<(u32, Vec<u16>)> {
        let Some(Ok(mut iteration)) = self.port_iterator.as_ref().map(iterators::open) else { return Vec::new() };
        let mut buffer = [0; 64];
        while matches!(iteration.read(&mut buffer), Ok(1..)) {}
        let mut all = Vec::new();
        for tgid in tgids {
            if let Ok(ports) = self.ports.get(tgid, 0) {
                all.push((*tgid, ports.into_iter().filter(|port| *port != 0).collect()));
            }
        }
        // Remove all entries; jobs that were not requested now are found again by the next
        // iteration.
        let found: Vec<u32> = self.ports.keys().flatten().collect();
        for tgid in found {
            let _ = self.ports.remove(&tgid);
        }
        all
    }

    /// Events lost since the start because the ring was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.get(0)
    }
}

/// Attaches the typed program, or the raw one where the kernel refuses that.
fn attach(object: &mut BpfObject, hook: &CStr, typed: &'static str, raw: &'static str) -> Result<(), Unavailable> {
    let Err(typed) = object.attach_typed(typed, hook) else { return Ok(()) };
    object.attach_raw(raw, hook).map_err(|error| {
        let why = load_error(&format!("attach {}", hook.to_string_lossy()), &error);
        let typed = load_error("attach the typed program", &typed).detail;
        Unavailable::new(why.reason, format!("{}; {typed}", why.detail))
    })
}

/// The text of a `comm`, as the programs report it.
fn comm(words: [u64; 2]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The creator with that name, which is empty for the main thread.
fn creator_of(name: &str) -> ThreadCreator {
    if name.is_empty() { ThreadCreator::Main } else { ThreadCreator::Thread(name.to_owned()) }
}

/// Parses one record of the ring of exited threads; `None` if it is not whole.
pub(crate) fn parse_thread(record: &[u8]) -> Option<EndedThread> {
    let word = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(record.get(at..at + 8)?.try_into().ok()?));
    if record.len() < size_of::<ThreadEnd>() {
        return None;
    }
    let name = |at: usize| Some(comm([long(at)?, long(at + 8)?]));
    let creator = if long(48)? == 0 { ThreadCreator::Unknown } else { creator_of(&name(32)?) };
    Some(EndedThread { tgid: word(0)?, tid: word(4)?, ran_ns: long(8)?, name: name(16)?, creator })
}

/// Parses one record of the ring; `None` if its length matches neither event type.
pub(crate) fn parse(record: &[u8]) -> Option<ExecEvent> {
    let word = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(record.get(at..at + 8)?.try_into().ok()?));
    let (kind, tgid, at_ns) = (word(0)?, word(4)?, long(24)?);
    match kind {
        JobEvent::STARTED => {
            let length = usize::try_from(word(32)?).ok()?.min(JOB_ARGS);
            let args = record.get(size_of::<JobEvent>()..)?.get(..length)?.to_vec();
            let (cgroup, before_ns) = (CgroupKey::of(long(8)?), long(16)?);
            Some(ExecEvent::Started { tgid, cgroup, before_ns, at_ns, args, args_complete: word(36)? != 0 })
        }
        JobEvent::ENDED => Some(ExecEvent::Ended { tgid, at_ns, ran_ns: None }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_matches_whole_name_or_prefix_with_star() {
        let comm = |text: &str| comm_pattern(text).name;
        let matches = |pattern: &str, text: &str| {
            let JobName { name, mask } = comm_pattern(pattern);
            name.iter().zip(mask).zip(comm(text)).all(|((name, mask), comm)| (name ^ comm) & mask == 0)
        };
        assert!(matches("ffmpeg", "ffmpeg") && !matches("ffmpeg", "ffmpegx") && !matches("ffmpeg", "ffmpe"));
        assert!(matches("ffmpeg*", "ffmpeg") && matches("ffmpeg*", "ffmpeg-7.1"));
        assert!(matches("a-very-long-program", "a-very-long-pro"), "the kernel truncates to 15 bytes");
    }

    #[test]
    fn records_of_exited_threads_are_parsed() {
        let padded = |name: &str| {
            let mut bytes = [0u8; 16];
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            bytes
        };
        let record = |name: &str, creator: &str, known: u64| {
            let head = [7u32.to_ne_bytes(), 9u32.to_ne_bytes()].concat();
            [&*head, &5u64.to_ne_bytes(), &padded(name), &padded(creator), &known.to_ne_bytes()].concat()
        };
        let parsed = |creator: &str, known: u64| parse_thread(&record("vf#0:0", creator, known)).unwrap();
        let end = parsed("enc0:0:libx264", 1);
        assert_eq!((end.tgid, end.tid, end.ran_ns, &*end.name), (7, 9, 5, "vf#0:0"));
        assert_eq!(end.creator, ThreadCreator::Thread("enc0:0:libx264".to_owned()));
        assert_eq!((parsed("", 1).creator, parsed("", 0).creator), (ThreadCreator::Main, ThreadCreator::Unknown));
        assert_eq!(parse_thread(&record("sixteen-bytes-xx", "", 1)).unwrap().name, "sixteen-bytes-xx");
        assert_eq!((parse_thread(&record("a", "", 1)[..55]), parse_thread(&[])), (None, None));
    }

    #[test]
    fn hostile_records_of_the_ring_are_bounded_or_refused() {
        let record = |kind: u32, length: u32, args: &[u8]| {
            let numbers = [u64::MAX, 5, 6].map(u64::to_ne_bytes).concat();
            [&kind.to_ne_bytes()[..], &7u32.to_ne_bytes(), &*numbers, &length.to_ne_bytes(), &[0; 4], args].concat()
        };
        let whole = record(JobEvent::STARTED, 3, b"ab\0garbage");
        let Some(ExecEvent::Started { tgid: 7, before_ns: 5, at_ns: 6, args, args_complete: false, .. }) =
            parse(&whole)
        else {
            panic!("{:?}", parse(&whole))
        };
        assert_eq!(args, b"ab\0");
        assert_eq!(parse(&record(JobEvent::ENDED, 0, b"")), Some(ExecEvent::Ended { tgid: 7, at_ns: 6, ran_ns: None }));
        let long = record(JobEvent::STARTED, u32::MAX, &[b'x'; JOB_ARGS + 1]);
        assert!(matches!(parse(&long), Some(ExecEvent::Started { args, .. }) if args.len() == JOB_ARGS));
        for broken in [record(JobEvent::STARTED, 4, b"abc"), record(9, 0, b""), whole[..39].to_vec(), Vec::new()] {
            assert_eq!(parse(&broken), None);
        }
    }
}
