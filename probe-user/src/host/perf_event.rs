//! Opens a counter of the perf subsystem on one CPU: RAPL for energy, hardware counters for CPU
//! time.

#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

/// Opens event `config` of PMU `kind`, counting all of `cpu` from now on.
///
/// # Errors
/// `ENOENT` where the CPU has no such counter, `EACCES` without CAP_PERFMON, and others of man 2
/// perf_event_open.
pub(crate) fn open(kind: u32, config: u64, cpu: usize) -> io::Result<File> {
    let attributes = Attributes { kind, size: ATTRIBUTES_SIZE, config, ..Attributes::default() };
    let cpu = libc::c_int::try_from(cpu).map_err(io::Error::other)?;
    // SAFETY: `attributes` is a perf_event_attr of the size in its field `size` and outlives the
    // call; the kernel only reads it.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            -1 as libc::pid_t,
            cpu,
            -1 as libc::c_int,
            FLAG_CLOSE_ON_EXEC,
        )
    };
    let descriptor = libc::c_int::try_from(descriptor).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned it, so it has no other owner.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

/// `struct perf_event_attr` up to its first published size (include/uapi/linux/perf_event.h,
/// PERF_ATTR_SIZE_VER0): every kernel accepts it, and fields that are zero count everything, from
/// now on, without interrupts.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    config1: u64,
}

/// `PERF_FLAG_FD_CLOEXEC` of the same header.
const FLAG_CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;
const ATTRIBUTES_SIZE: u32 = 64;
const _: () = assert!(size_of::<Attributes>() == ATTRIBUTES_SIZE as usize);
