//! Jobs: processes with configured names, traced from exec to exit, so that the command line and
//! the CPU time are known even of a job that is shorter than a tick.
//!
//! The hooks are rare compared with context switches. A job ends with its last thread; the CPU
//! time of each thread is added up as the thread exits, because it cannot be read afterwards.

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
    atomic::add,
    kernel::{Probed, follow, tag},
    log,
    offsets::Object,
    offsets::{field, setting},
    threads,
};

/// CPU time of the exited threads of a job, by thread group.
#[btf_map]
static JOBS: HashMap<u32, u64, MAX_JOBS> = HashMap::new();

/// Start and end events, in order.
#[btf_map]
static JOB_EVENTS: RingBuf<JobEvent, JOB_EVENTS_BYTES> = RingBuf::new();

/// Name patterns to match. Filled by user space.
#[btf_map]
static NAMES: Array<JobName, JOB_NAMES> = Array::new();

/// Events lost because the ring was full.
#[btf_map]
static JOBS_LOST: Array<u64, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// `sched_process_exec(task, old_pid, bprm)`: runs after the new image and its arguments are in
/// place, in the context of the new program.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn job_started(_ctx: BtfTracePointContext) -> i32 {
    // SAFETY: a helper without arguments; `Probed` accepts any address.
    unsafe { report_start(bpf_get_current_task() as Object) }
}

/// Raw tracepoint variant, for kernels that refuse the typed program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn job_started_raw(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { report_start(bpf_get_current_task() as Object) }
}

/// `sched_process_exit(task)`: a thread exits, in its own context.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn job_ended(_ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { add_exit(bpf_get_current_task() as Object) }
}

/// Raw tracepoint variant, for kernels that refuse the typed program.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn job_ended_raw(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { add_exit(bpf_get_current_task() as Object) }
}

/// `sched_process_fork(parent, child)`: a thread created another, which has not run yet
/// (kernel/fork.c, kernel_clone). `parent` is the creator, which is the current task.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn thread_created(ctx: RawTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe {
        let created: Object = ctx.arg(1);
        let tgid: u32 = Probed::read(field!(created, TaskTgid));
        if JOBS.get_ptr(tgid).is_some() {
            threads::note_creator(bpf_get_current_task() as Object, created, tgid);
        }
    }
    0
}

/// Local UDP ports of jobs, by thread group. An iteration adds ports; user space removes them.
#[btf_map]
static JOB_UDP: HashMap<u32, [u16; JOB_PORTS], MAX_JOBS> = HashMap::new();

/// Context of an iterator over the open files of tasks (kernel/bpf/task_iter.c).
#[repr(C)]
pub struct FileIteration {
    meta: *const u8,
    task: Object,
    descriptor: u32,
    file: Object,
}

/// Records the local port of a UDP socket that a job has open. Its progress reports come from this
/// port, which the command line does not contain. User space iterates once when a job is new; this
/// needs no permission to inspect other processes.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn find_ports(iteration: *const FileIteration) -> i32 {
    const S_IFMT: u16 = 0o170_000;
    const S_IFSOCK: u16 = 0o140_000;
    const IPPROTO_UDP: u16 = 17;
    // SAFETY: the kernel passes such a context; `Probed` accepts any address.
    unsafe {
        let (task, file) = ((*iteration).task, (*iteration).file);
        if task.is_null() || file.is_null() {
            return 0;
        }
        let tgid: u32 = Probed::read(field!(task, TaskTgid));
        if JOBS.get_ptr(tgid).is_none() {
            return 0;
        }
        let inode = follow!(Probed, file, FileInode);
        if Probed::read::<u16>(field!(inode, InodeMode)) & S_IFMT != S_IFSOCK {
            return 0;
        }
        let socket = follow!(Probed, file, FilePrivate);
        let sock = follow!(Probed, socket, SocketSock);
        let port: u16 = Probed::read(field!(sock, SockPort));
        if Probed::read::<u16>(field!(sock, SockProtocol)) != IPPROTO_UDP || port == 0 {
            return 0;
        }
        match JOB_UDP.get_ptr_mut(tgid) {
            Some(ports) => {
                let ports = ports.cast::<u16>();
                let mut at = 0;
                while at < JOB_PORTS {
                    let entry = ports.add(at);
                    if *entry == port {
                        break;
                    }
                    if *entry == 0 {
                        *entry = port;
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

/// Whether the task's name matches one of the configured patterns.
///
/// # Safety
/// As [`Probed::read`].
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
/// `task` is the current task, and its user memory is that of the new program.
#[inline(always)]
unsafe fn report_start(task: Object) -> i32 {
    // SAFETY: the caller's contract; `Probed` accepts any address; the record is exclusive until it
    // is submitted.
    unsafe {
        if !is_job(task) {
            return 0;
        }
        let tgid: u32 = Probed::read(field!(task, TaskTgid));
        let signal = follow!(Probed, task, TaskSignal);
        let ended_ns: u64 = Probed::read(field!(signal, SignalSumSched));
        if JOBS.insert(tgid, ended_ns, 0).is_err() {
            count_lost(tgid);
            return 0;
        }
        let Some(mut record) = JOB_EVENTS.reserve_untyped::<JobStarted>(0) else {
            count_lost(tgid);
            return 0;
        };
        let event = record.as_mut_ptr();
        let head = head(task, tgid, JobEvent::STARTED);
        let mm = follow!(Probed, task, TaskMm);
        let start: u64 = Probed::read(field!(mm, MmArgStart));
        let length = Probed::read::<u64>(field!(mm, MmArgEnd)).wrapping_sub(start);
        let mut size = if length < JOB_ARGS as u64 { length } else { JOB_ARGS as u64 - 1 };
        // The compiler knows the bound and would optimise a mask away; the verifier may no longer
        // know it here.
        core::arch::asm!("{0} &= {1}", inout(reg) size, const JOB_ARGS as i32 - 1, options(pure, nomem, nostack, preserves_flags));
        let read = bpf_probe_read_user((&raw mut (*event).args).cast(), size as u32, start as *const _);
        (&raw mut (*event).head).write(JobEvent {
            ran_ns: head.ran_ns.wrapping_add(ended_ns),
            args_len: if read == 0 { size as u32 } else { 0 },
            args_complete: u32::from(read == 0 && size == length),
            ..head
        });
        record.submit(0);
        if read != 0 {
            log::arguments_unreadable(tgid, read);
        }
    }
    0
}

/// # Safety
/// As [`report_start`].
#[inline(always)]
unsafe fn add_exit(task: Object) -> i32 {
    // SAFETY: the caller's contract; the value is one word, to which the threads of a process may
    // add concurrently.
    unsafe {
        let tgid: u32 = Probed::read(field!(task, TaskTgid));
        let Some(sum) = JOBS.get_ptr_mut(tgid) else { return 0 };
        let ran: u64 = Probed::read(field!(task, TaskSumExec));
        add(sum, ran);
        threads::report_end(task, tgid, ran);
        let signal = follow!(Probed, task, TaskSignal);
        if Probed::read::<u32>(field!(signal, SignalLive)) != 0 {
            return 0;
        }
        // Threads that exit at this moment may still add to the sum, so user space reads the sum
        // when it reads the event.
        let Some(mut record) = JOB_EVENTS.reserve_untyped::<JobEvent>(0) else {
            count_lost(tgid);
            return 0;
        };
        let head = head(task, tgid, JobEvent::ENDED);
        record.as_mut_ptr().write(head);
        record.submit(0);
    }
    0
}

/// The part that all events have.
///
/// # Safety
/// As [`report_start`].
#[inline(always)]
unsafe fn head(task: Object, tgid: u32, kind: u32) -> JobEvent {
    // SAFETY: the caller's contract.
    unsafe {
        let set = follow!(Probed, task, TaskCgroups);
        let leaf = follow!(Probed, set, CssSetDflCgrp);
        let root = setting!(HAS_CPU) != 0 && Probed::read::<u32>(field!(leaf, CgroupLevel)) == 0;
        JobEvent {
            kind,
            tgid,
            cgroup: tag::<Probed>(set, leaf, root),
            ran_ns: Probed::read(field!(task, TaskSumExec)),
            at_ns: bpf_ktime_get_ns(),
            args_len: 0,
            args_complete: 0,
        }
    }
}

/// Counts an event of the job `tgid` that was lost because the ring or the table of jobs was full.
#[inline(always)]
fn count_lost(tgid: u32) {
    log::job_lost(tgid);
    if let Some(lost) = JOBS_LOST.get_ptr_mut(0) {
        // SAFETY: one word of the map, to which other CPUs may add concurrently.
        unsafe { add(lost, 1) };
    }
}
