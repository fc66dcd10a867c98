//! Programs of some names as they begin and end, from the kernel side: with their command lines, and with what they ran altogether.

use std::{
    io::Read as _,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use aya::{
    maps::{Array, HashMap as BpfMap, MapData, MapError, RingBuf},
    programs::{
        BtfTracePoint, Iter, ProgramError, RawTracePoint, raw_trace_point::RawTracePointLink, tp_btf::BtfTracePointLink,
    },
};
use probe_ebpf::{CgroupKey, JOB_ARGS, JOB_EVENTS_BYTES, JOB_NAMES, JOB_PORTS, JobEvent, JobName, MAX_JOBS};

use super::{
    mapped::Mapped,
    object::{Object, refused},
    offsets, walk,
};
use crate::state::Unavailable;

/// Hook, typed program, and its twin for kernels that refuse it.
const PROGRAMS: [(&str, &str, &str); 2] =
    [("sched_process_exec", "job_started", "job_started_raw"), ("sched_process_exit", "job_ended", "job_ended_raw")];

/// The iterator that finds ports.
const PORTS: &str = "find_ports";

/// What happened to a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exec {
    /// It began.
    Started {
        /// Its thread group.
        tgid: u32,
        /// Where it runs.
        cgroup: CgroupKey,
        /// What the process had run before, as whoever executed it.
        before_ns: u64,
        /// `CLOCK_MONOTONIC`.
        at_ns: u64,
        /// Its command line, words ended by zeros.
        args: Vec<u8>,
        /// False when the line is longer than that.
        whole: bool,
    },
    /// Its last thread ended.
    Ended {
        /// Its thread group.
        tgid: u32,
        /// `CLOCK_MONOTONIC`.
        at_ns: u64,
        /// What the process ran altogether; `None` when that is not known.
        ran_ns: Option<u64>,
    },
}

/// The loaded programs and their maps. Dropping it detaches them.
pub struct Execs {
    events: RingBuf<MapData>,
    jobs: BpfMap<MapData, u32, u64>,
    ports: BpfMap<MapData, u32, [u16; JOB_PORTS]>,
    /// Where the kernel has no such iterator, ports are what command lines say.
    walk: Option<OwnedFd>,
    lost: Mapped<u64>,
    /// What keeps the programs attached.
    _links: Vec<Attached>,
}

/// A program that is attached for as long as this lives, whatever becomes of the object that it was loaded from.
enum Attached {
    Typed(#[expect(dead_code, reason = "held, not used")] BtfTracePointLink),
    Raw(#[expect(dead_code, reason = "held, not used")] RawTracePointLink),
}

/// A name as the programs compare it: a `*` at the end stands for any rest. The kernel keeps 15 bytes of a name.
#[must_use]
pub fn name(pattern: &str) -> JobName {
    let (bytes, open) = pattern.strip_suffix('*').map_or((pattern.as_bytes(), false), |start| (start.as_bytes(), true));
    let length = bytes.len().min(15);
    let (mut name, mut mask) = ([0u8; 16], [0u8; 16]);
    name[..length].copy_from_slice(&bytes[..length]);
    // Without a star the zero after the name must be there too, unless the kernel cut it.
    let compared = if open { length } else { (length + 1).min(16) };
    mask[..compared].fill(0xff);
    let words = |bytes: [u8; 16]| {
        let [low, high] = [&bytes[..8], &bytes[8..]].map(|half| half.try_into().map_or(0, u64::from_ne_bytes));
        [low, high]
    };
    JobName { name: words(name), mask: words(mask) }
}

impl Execs {
    /// Loads and attaches the programs, for at most [`JOB_NAMES`] names.
    ///
    /// # Errors
    /// `absent` when the kernel lacks BTF, a field or BPF; `denied` when this process may not load programs; `broken` when the kernel
    /// refuses them for another reason.
    pub fn load(names: &[JobName]) -> Result<Self, Unavailable> {
        let unused = ["CPUS", "TIMES", "WAITS", "COUNTS", "OWNERS", "SLOTS", "FREE", "BASES"];
        let mut sizes = unused.map(|name| (name, 1)).to_vec();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        sizes.extend([
            ("JOBS", number(MAX_JOBS)),
            ("JOB_UDP", number(MAX_JOBS)),
            ("JOB_EVENTS", number(JOB_EVENTS_BYTES)),
        ]);
        let (mut object, _) = Object::open(offsets::jobs, &[], &sizes)?;
        let mut table: Array<MapData, JobName> =
            Array::try_from(object.take("NAMES")?).map_err(|error| refused("open the map NAMES", &error))?;
        for (at, name) in (0u32..).zip(names.iter().take(JOB_NAMES)) {
            table.set(at, *name, 0).map_err(|error| refused("fill the map NAMES", &error))?;
        }
        let lost = object.mapped("JOBS_LOST")?;
        let mut links = Vec::new();
        for (hook, typed, raw) in PROGRAMS {
            links.push(match attach(&mut object, hook, typed) {
                Ok(link) => Attached::Typed(link),
                Err(typed) => {
                    let program: &mut RawTracePoint = object.program(raw)?;
                    let attached = (|| {
                        program.load()?;
                        let link = program.attach(hook)?;
                        program.take_link(link)
                    })();
                    Attached::Raw(attached.map_err(|error: ProgramError| {
                        let why = refused(&format!("attach {hook}"), &error);
                        let before = refused("do it with types", &typed).detail;
                        Unavailable::new(why.reason, format!("{}; before: {before}", why.detail))
                    })?)
                }
            });
        }
        let walk = link_ports(&mut object);
        if let Err(error) = &walk {
            tracing::debug!("ports of jobs are only known from their command lines: {error}");
        }
        let ports =
            BpfMap::try_from(object.take("JOB_UDP")?).map_err(|error| refused("open the map JOB_UDP", &error))?;
        let events = RingBuf::try_from(object.take("JOB_EVENTS")?).map_err(|error| refused("open the ring", &error))?;
        let jobs = BpfMap::try_from(object.take("JOBS")?).map_err(|error| refused("open the map JOBS", &error))?;
        // Maps and programs are the kernel's now: what is open keeps them, and the object's own copy can go.
        drop((table, object));
        Ok(Self { events, jobs, ports, walk: walk.ok(), lost, _links: links })
    }

    /// What happened since the last look, in order.
    pub fn drain(&mut self) -> Vec<Exec> {
        let mut all = Vec::new();
        while let Some(record) = self.events.next() {
            all.extend(parse(&record));
        }
        for at in 0..all.len() {
            let (before, after) = all.split_at_mut(at + 1);
            if let Some(Exec::Ended { tgid, ran_ns, .. }) = before.last_mut()
                // The number may be another's by now, whose sum stands there.
                && !after.iter().any(|event| matches!(event, Exec::Started { tgid: later, .. } if later == tgid))
            {
                *ran_ns = self.jobs.get(tgid, 0).ok();
                let _ = self.jobs.remove(tgid);
            }
        }
        all
    }

    /// Follows a process that had begun before; its threads that have ended ran `ended_ns`.
    pub fn follow(&mut self, tgid: u32, ended_ns: u64) {
        let _ = self.jobs.insert(tgid, ended_ns, 0);
    }

    /// Follows a process no more.
    pub fn unfollow(&mut self, tgid: u32) {
        let _ = self.jobs.remove(&tgid);
    }

    /// True when the maps can be read with the rights that this thread has.
    #[must_use]
    pub fn reads(&self) -> bool {
        // No process has this number.
        !matches!(self.jobs.get(&0, 0), Err(MapError::SyscallError(_)))
    }

    /// The ports that jobs of these thread groups send datagrams from, of those that have such a socket by now.
    pub fn ports(&mut self, tgids: &[u32]) -> Vec<(u32, Vec<u16>)> {
        let Some(Ok(mut walk)) = self.walk.as_ref().map(walk::begin) else { return Vec::new() };
        let mut nothing = [0; 64];
        while matches!(walk.read(&mut nothing), Ok(1..)) {}
        let mut all = Vec::new();
        for tgid in tgids {
            if let Ok(ports) = self.ports.get(tgid, 0) {
                all.push((*tgid, ports.into_iter().filter(|port| *port != 0).collect()));
            }
        }
        // What the walk found of others is theirs to ask for.
        let found: Vec<u32> = self.ports.keys().flatten().collect();
        for tgid in found {
            let _ = self.ports.remove(&tgid);
        }
        all
    }

    /// Events that found no room, since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.get(0)
    }
}

fn link_ports(object: &mut Object) -> Result<OwnedFd, Box<dyn std::error::Error>> {
    let (ebpf, btf) = object.types().ok_or(ProgramError::NotLoaded)?;
    let program: &mut Iter = ebpf.program_mut(PORTS).ok_or(ProgramError::NotLoaded)?.try_into()?;
    program.load("task_file", btf)?;
    Ok(walk::link_all(program.fd()?.as_fd().as_raw_fd())?)
}

fn attach(object: &mut Object, hook: &str, name: &str) -> Result<BtfTracePointLink, ProgramError> {
    let (ebpf, btf) = object.types().ok_or(ProgramError::NotLoaded)?;
    let program: &mut BtfTracePoint = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
    program.load(hook, btf)?;
    let link = program.attach()?;
    program.take_link(link)
}

/// One record of the ring. Its writer is our own program; a length that is not one of its two is not believed.
fn parse(record: &[u8]) -> Option<Exec> {
    let word = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(record.get(at..at + 8)?.try_into().ok()?));
    let (kind, tgid, at_ns) = (word(0)?, word(4)?, long(24)?);
    match kind {
        JobEvent::STARTED => {
            let length = usize::try_from(word(32)?).ok()?.min(JOB_ARGS);
            let args = record.get(size_of::<JobEvent>()..)?.get(..length)?.to_vec();
            let (cgroup, before_ns) = (CgroupKey::of(long(8)?), long(16)?);
            Some(Exec::Started { tgid, cgroup, before_ns, at_ns, args, whole: word(36)? != 0 })
        }
        JobEvent::ENDED => Some(Exec::Ended { tgid, at_ns, ran_ns: None }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_compared_whole_a_star_stands_for_the_rest() {
        let comm = |text: &str| name(text).name;
        let matches = |pattern: &str, text: &str| {
            let JobName { name, mask } = name(pattern);
            name.iter().zip(mask).zip(comm(text)).all(|((name, mask), comm)| (name ^ comm) & mask == 0)
        };
        assert!(matches("ffmpeg", "ffmpeg") && !matches("ffmpeg", "ffmpegx") && !matches("ffmpeg", "ffmpe"));
        assert!(matches("ffmpeg*", "ffmpeg") && matches("ffmpeg*", "ffmpeg-7.1"));
        assert!(matches("a-very-long-program", "a-very-long-pro"), "the kernel cuts at 15");
    }
}
