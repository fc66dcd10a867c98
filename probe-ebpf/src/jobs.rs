//! Jobs: programs of some names, from the moment that they are executed to their end, so that one that lives shorter than a tick is
//! known by its command line and by what it ran.
//!
//! Both hooks are rare events, not switches. The end of a job is the end of its last thread; what its threads ran is added up as each of
//! them ends, for when the process is gone nobody can be asked.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, RingBuf},
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_current_task, bpf_probe_read_user},
    },
    macros::{btf_map, btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use probe_ebpf::{JOB_ARGS, JOB_EVENTS_BYTES, JOB_NAMES, JOB_PORTS, JobEvent, JobName, JobStarted, MAX_JOBS};

use crate::{
    kernel::{Object, Probed, Read, follow, tag},
    offsets::{HAS_CPU, field},
};

/// What the threads of a job ran that have ended, by its thread group.
#[btf_map]
static JOBS: HashMap<u32, u64, MAX_JOBS> = HashMap::new();

/// Beginnings and ends, in order.
#[btf_map]
static JOB_EVENTS: RingBuf<JobEvent, JOB_EVENTS_BYTES> = RingBuf::new();

/// The names that are looked for. Filled by user space.
#[btf_map]
static NAMES: Array<JobName, JOB_NAMES> = Array::new();

/// Events that found no room.
#[btf_map]
static JOBS_LOST: Array<u64, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// `sched_process_exec(task, old_pid, bprm)`: after the new image and its arguments are in place, in the new program's own context.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn job_started(_ctx: BtfTracePointContext) -> i32 {
    // SAFETY: a helper without arguments; `Probed` takes any address.
    unsafe { started(bpf_get_current_task() as Object) }
}

/// The same for kernels that refuse the typed program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn job_started_raw(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { started(bpf_get_current_task() as Object) }
}

/// `sched_process_exit(task)`: a thread ends, in its own context.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn job_ended(_ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { ended(bpf_get_current_task() as Object) }
}

/// The same for kernels that refuse the typed program.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn job_ended_raw(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { ended(bpf_get_current_task() as Object) }
}

/// The ports that jobs send datagrams from, by thread group. A walk adds to it; user space takes out.
#[btf_map]
static JOB_UDP: HashMap<u32, [u16; JOB_PORTS], MAX_JOBS> = HashMap::new();

/// What an iterator over the files of tasks is called with (kernel/bpf/task_iter.c).
#[repr(C)]
pub struct OpenFile {
    meta: *const u8,
    task: Object,
    descriptor: u32,
    file: Object,
}

/// Notes the local port of a UDP socket that a job has open: what its reports come from, which its command line does not say. A walk is made
/// when such a job is new, and needs no right to look into other processes.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn find_ports(visit: *const OpenFile) -> i32 {
    const S_IFMT: u16 = 0o170_000;
    const S_IFSOCK: u16 = 0o140_000;
    const IPPROTO_UDP: u16 = 17;
    // SAFETY: the kernel calls with such a context; `Probed` takes any address.
    unsafe {
        let (task, file) = ((*visit).task, (*visit).file);
        if task.is_null() || file.is_null() {
            return 0;
        }
        let tgid: u32 = Probed::read(field!(task, TaskTgid));
        if JOBS.get_ptr(tgid).is_none() {
            return 0;
        }
        let inode = follow::<Probed>(field!(file, FileInode));
        if Probed::read::<u16>(field!(inode, InodeMode)) & S_IFMT != S_IFSOCK {
            return 0;
        }
        let socket = follow::<Probed>(field!(file, FilePrivate));
        let sock = follow::<Probed>(field!(socket, SocketSock));
        let port: u16 = Probed::read(field!(sock, SockPort));
        if Probed::read::<u16>(field!(sock, SockProtocol)) != IPPROTO_UDP || port == 0 {
            return 0;
        }
        match JOB_UDP.get_ptr_mut(tgid) {
            Some(ports) => {
                let ports = ports.cast::<u16>();
                let mut at = 0;
                while at < JOB_PORTS {
                    let place = ports.add(at);
                    if *place == port {
                        break;
                    }
                    if *place == 0 {
                        *place = port;
                        break;
                    }
                    at += 1;
                }
            }
            None => {
                let _ = JOB_UDP.insert(tgid, [port, 0, 0, 0], 0);
            }
        }
    }
    0
}

/// True for a name that the probe looks for.
///
/// # Safety
/// As [`Read::read`].
#[inline(always)]
unsafe fn is_job(task: Object) -> bool {
    // SAFETY: the caller's contract.
    let [low, high]: [u64; 2] = unsafe { Probed::read(field!(task, TaskComm)) };
    let mut at = 0;
    while at < JOB_NAMES as u32 {
        if let Some(name) = NAMES.get(at)
            && name.mask[0] != 0
            && (low ^ name.name[0]) & name.mask[0] == 0
            && (high ^ name.name[1]) & name.mask[1] == 0
        {
            return true;
        }
        at += 1;
    }
    false
}

/// # Safety
/// `task` is the current one, whose user memory is that of the new program.
#[inline(always)]
unsafe fn started(task: Object) -> i32 {
    // SAFETY: the caller's contract; `Probed` takes any address; the record is ours until it is submitted.
    unsafe {
        if !is_job(task) {
            return 0;
        }
        let tgid: u32 = Probed::read(field!(task, TaskTgid));
        let signal = follow::<Probed>(field!(task, TaskSignal));
        let ended_ns: u64 = Probed::read(field!(signal, SignalSumSched));
        if JOBS.insert(tgid, ended_ns, 0).is_err() {
            lose();
            return 0;
        }
        let Some(mut record) = JOB_EVENTS.reserve_untyped::<JobStarted>(0) else {
            lose();
            return 0;
        };
        let event = record.as_mut_ptr();
        let head = head(task, tgid, JobEvent::STARTED);
        let mm = follow::<Probed>(field!(task, TaskMm));
        let start: u64 = Probed::read(field!(mm, MmArgStart));
        let whole = Probed::read::<u64>(field!(mm, MmArgEnd)).wrapping_sub(start);
        let mut size = if whole < JOB_ARGS as u64 { whole } else { JOB_ARGS as u64 - 1 };
        // The compiler knows the bound and would leave a mask out; a verifier may have forgotten it.
        core::arch::asm!("{0} &= {1}", inout(reg) size, const JOB_ARGS as i32 - 1, options(pure, nomem, nostack, preserves_flags));
        let read = bpf_probe_read_user((&raw mut (*event).args).cast(), size as u32, start as *const _);
        (&raw mut (*event).head).write(JobEvent {
            ran_ns: head.ran_ns.wrapping_add(ended_ns),
            args: if read == 0 { size as u32 } else { 0 },
            whole: u32::from(read == 0 && size == whole),
            ..head
        });
        record.submit(0);
    }
    0
}

/// # Safety
/// As [`started`].
#[inline(always)]
unsafe fn ended(task: Object) -> i32 {
    // SAFETY: the caller's contract; the value is one word, which threads of one process may add to at once.
    unsafe {
        let tgid: u32 = Probed::read(field!(task, TaskTgid));
        let Some(sum) = JOBS.get_ptr_mut(tgid) else { return 0 };
        let ran: u64 = Probed::read(field!(task, TaskSumExec));
        add(sum, ran);
        let signal = follow::<Probed>(field!(task, TaskSignal));
        if Probed::read::<u32>(field!(signal, SignalLive)) != 0 {
            return 0;
        }
        // Others that end in this moment add to the sum yet, so it is read when the event is.
        let Some(mut record) = JOB_EVENTS.reserve_untyped::<JobEvent>(0) else {
            lose();
            return 0;
        };
        let head = head(task, tgid, JobEvent::ENDED);
        record.as_mut_ptr().write(head);
        record.submit(0);
    }
    0
}

/// What every event says.
///
/// # Safety
/// As [`started`].
#[inline(always)]
unsafe fn head(task: Object, tgid: u32, kind: u32) -> JobEvent {
    // SAFETY: the caller's contract.
    unsafe {
        let set = follow::<Probed>(field!(task, TaskCgroups));
        let leaf = follow::<Probed>(field!(set, CssSetDflCgrp));
        let root = HAS_CPU.load() != 0 && Probed::read::<u32>(field!(leaf, CgroupLevel)) == 0;
        JobEvent {
            kind,
            tgid,
            cgroup: tag::<Probed>(set, leaf, root),
            ran_ns: Probed::read(field!(task, TaskSumExec)),
            at_ns: bpf_ktime_get_ns(),
            args: 0,
            whole: 0,
        }
    }
}

/// Counts an event that found no room.
fn lose() {
    if let Some(lost) = JOBS_LOST.get_ptr_mut(0) {
        // SAFETY: one word of the map, which other CPUs may add to at once.
        unsafe { add(lost, 1) };
    }
}

/// Adds to a word of a map that other CPUs may add to at once. The instruction is older than what the compiler makes of
/// `AtomicU64::fetch_add`, which this target has only for newer machines.
///
/// # Safety
/// `word` is the value of a map's element.
#[inline(always)]
unsafe fn add(word: *mut u64, by: u64) {
    // SAFETY: the caller's contract; one instruction that changes this word and nothing else.
    unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) by, options(nostack)) }
}
