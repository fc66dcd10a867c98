//! Threads of jobs: which thread created each, and the run time of each that exits.
//!
//! ffmpeg names the threads of its scheduler after what they do. The threads of a library, such as
//! an encoder's workers, have the name of the thread that opened it or one of the library's own, so
//! only their creator shows what they work for. The kernel does not keep it.

use aya_ebpf::{
    btf_maps::{HashMap, RingBuf},
    macros::btf_map,
};
use probe_ebpf::{JOB_THREADS, THREAD_ENDS_BYTES, ThreadEnd};

use crate::{
    kernel::Probed,
    log,
    offsets::{Object, field},
};

/// The creators of the threads of jobs by thread, in the form of [`ThreadEnd::creator`].
#[btf_map]
static CREATORS: HashMap<u32, [u64; 2], JOB_THREADS> = HashMap::new();

/// Exited threads, in order. The run time of one without room is in no stage of its job.
#[btf_map]
static THREAD_ENDS: RingBuf<ThreadEnd, THREAD_ENDS_BYTES> = RingBuf::new();

/// Notes which thread created the thread `created` of the job `tgid`.
///
/// # Safety
/// As [`Probed::read`].
#[inline(always)]
pub unsafe fn note_creator(creator: Object, created: Object, tgid: u32) {
    // SAFETY: the caller's contract; a value of the map is two words, which no program changes.
    unsafe {
        let creator_tid: u32 = Probed::read(field!(creator, TaskPid));
        let mut name = [0u64; 2];
        if creator_tid != tgid {
            name = Probed::read(field!(creator, TaskComm));
            if let Some(first) = CREATORS.get_ptr(creator_tid)
                && (*first)[0] != 0
            {
                name = *first;
            }
        }
        let tid: u32 = Probed::read(field!(created, TaskPid));
        let _ = CREATORS.insert(tid, name, 0);
    }
}

/// Reports that a thread of the job `tgid` exits. Its name is read now, because a thread may be
/// named after it was created.
///
/// # Safety
/// As [`Probed::read`].
#[inline(always)]
pub unsafe fn report_end(task: Object, tgid: u32, ran_ns: u64) {
    // SAFETY: as [`note_creator`]; the record is exclusive until it is submitted.
    unsafe {
        let tid: u32 = Probed::read(field!(task, TaskPid));
        let (creator, creator_known) = match CREATORS.get_ptr(tid) {
            Some(creator) => (*creator, 1),
            None => ([0; 2], 0),
        };
        let name: [u64; 2] = Probed::read(field!(task, TaskComm));
        if let Some(mut record) = THREAD_ENDS.reserve_untyped::<ThreadEnd>(0) {
            record.as_mut_ptr().write(ThreadEnd { tgid, tid, ran_ns, name, creator, creator_known });
            record.submit(0);
        } else {
            log::thread_lost(tgid);
        }
        let _ = CREATORS.remove(tid);
    }
}
