//! eBPF programs in the kernel: loading, attaching and running them, by system calls.
//!
//! aya loads a typed program only with a parsed copy of the kernel's types, and its loader makes a
//! second one. Each takes 15 to 20 MB and 50 ms of CPU time, for one number: the id of the type
//! that the program is attached to. Programs and maps are loaded without types of their own, which
//! the kernel needs only for features that these programs do not use, such as callbacks.

#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use aya_obj::generated::bpf_insn;
use thiserror::Error;

use super::iterators::descriptor;

/// Why a program was not loaded or attached.
#[derive(Debug, Error)]
pub(super) enum ProgramError {
    /// The object has no such program, or it was loaded before.
    #[error("the eBPF object has no program {0}")]
    Missing(&'static str),
    /// The kernel has nothing of that name to attach to.
    #[error("this kernel has no {0}")]
    NoTarget(String),
    /// The kernel refused the program.
    #[error("the BPF_PROG_LOAD syscall returned {error}. Verifier output: {log}")]
    Refused {
        #[source]
        error: io::Error,
        log: String,
    },
    /// Another system call failed.
    #[error("`{call}` failed")]
    Call {
        call: &'static str,
        #[source]
        error: io::Error,
    },
}

/// How a program is run.
#[derive(Clone, Copy)]
pub(super) enum ProgramKind {
    /// At a tracepoint, with untyped arguments, or by user space.
    Raw,
    /// At the tracepoint with this type id.
    TypedTracepoint(u32),
    /// For every object of the iterator with this type id.
    Iterator(u32),
}

/// `union bpf_attr` for `BPF_PROG_LOAD`, up to `attach_btf_id` (include/uapi/linux/bpf.h, 5.5).
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_kind: u32,
    types: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    attach_type_id: u32,
}

/// Loads a program, and returns its descriptor.
///
/// # Errors
/// When the kernel refuses it: with the messages of its verifier.
pub(super) fn load(name: &str, license: &CStr, code: &[bpf_insn], kind: ProgramKind) -> Result<OwnedFd, ProgramError> {
    /// `BPF_LOG_STATS` (include/linux/bpf_verifier.h): the messages without the trace of every
    /// instruction, which has megabytes and of which nothing is reported.
    const MESSAGES: u32 = 4;
    const LOG_BYTES: usize = 64 << 10;
    const RETRIES: usize = 5;
    let mut attributes = attributes(name, license, code, kind)?;
    let mut result = load_once(&attributes);
    for _ in 0..RETRIES {
        // A signal interrupted the verifier.
        if !matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EAGAIN)) {
            break;
        }
        result = load_once(&attributes);
    }
    // A second time with a log, because a log makes loading slower.
    result.or_else(|_| {
        let mut log = vec![0u8; LOG_BYTES];
        attributes.log_level = MESSAGES;
        attributes.log_size = u32::try_from(LOG_BYTES).unwrap_or(u32::MAX);
        attributes.log = log.as_mut_ptr().expose_provenance() as u64;
        load_once(&attributes).map_err(|error| {
            let length = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            ProgramError::Refused { error, log: String::from_utf8_lossy(&log[..length]).into_owned() }
        })
    })
}

fn attributes(name: &str, license: &CStr, code: &[bpf_insn], kind: ProgramKind) -> Result<Load, ProgramError> {
    const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
    const BPF_PROG_TYPE_TRACING: u32 = 26;
    const BPF_TRACE_RAW_TP: u32 = 23;
    const BPF_TRACE_ITER: u32 = 28;
    let (kind, attach_kind, attach_type_id) = match kind {
        ProgramKind::Raw => (BPF_PROG_TYPE_RAW_TRACEPOINT, 0, 0),
        ProgramKind::TypedTracepoint(id) => (BPF_PROG_TYPE_TRACING, BPF_TRACE_RAW_TP, id),
        ProgramKind::Iterator(id) => (BPF_PROG_TYPE_TRACING, BPF_TRACE_ITER, id),
    };
    // The kernel keeps 15 bytes of a name.
    let mut short = [0; 16];
    short.iter_mut().zip(name.bytes().take(15)).for_each(|(to, from)| *to = from);
    Ok(Load {
        kind,
        instructions: u32::try_from(code.len())
            .map_err(|error| ProgramError::Call { call: "bpf_prog_load", error: io::Error::other(error) })?,
        code: code.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: short,
        interface: 0,
        attach_kind,
        types: 0,
        function_size: 0,
        functions: 0,
        function_count: 0,
        line_size: 0,
        lines: 0,
        line_count: 0,
        attach_type_id,
    })
}

fn load_once(attributes: &Load) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    // SAFETY: the size is that of the structure. It, and the code, license and log that it points
    // to, outlive the call.
    let descriptor_or_error =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, std::ptr::from_ref(attributes), size_of::<Load>()) };
    descriptor(descriptor_or_error)
}

/// Attaches a raw program to a tracepoint, or a typed one to the tracepoint that it was loaded for.
/// It is detached when the returned link is closed.
///
/// # Errors
/// When the kernel refuses, or has no such tracepoint.
pub(super) fn attach(program: &OwnedFd, tracepoint: Option<&CStr>) -> Result<OwnedFd, ProgramError> {
    /// `union bpf_attr`, `raw_tracepoint`.
    #[repr(C)]
    struct Open {
        name: u64,
        program: u32,
        unused: u32,
    }
    const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
    let failed = |error| ProgramError::Call { call: "bpf_raw_tracepoint_open", error };
    let open = Open {
        name: tracepoint.map_or(0, |name| name.as_ptr().expose_provenance() as u64),
        program: number(program).map_err(failed)?,
        unused: 0,
    };
    // SAFETY: the size is that of the structure, and it and the name outlive the call.
    let link = unsafe { libc::syscall(libc::SYS_bpf, BPF_RAW_TRACEPOINT_OPEN, &raw const open, size_of::<Open>()) };
    descriptor(link).map_err(failed)
}

/// Runs a raw program once with arguments of zero, on `cpu` or on the current CPU.
///
/// # Errors
/// When the kernel refuses; `ENXIO` for a CPU that is offline.
pub(super) fn run(program: &OwnedFd, cpu: Option<u32>) -> io::Result<()> {
    /// `union bpf_attr`, `test`, up to `cpu` (5.10).
    #[repr(C)]
    struct Run {
        program: u32,
        result: u32,
        data_in_size: u32,
        data_out_size: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        context_in_size: u32,
        context_out_size: u32,
        context_in: u64,
        context_out: u64,
        flags: u32,
        cpu: u32,
    }
    const BPF_PROG_TEST_RUN: libc::c_long = 10;
    const BPF_F_TEST_RUN_ON_CPU: u32 = 1;
    /// `MAX_BPF_FUNC_ARGS` (include/linux/bpf.h).
    const ARGUMENTS: usize = 12;
    let arguments = [0u64; ARGUMENTS];
    // The kernel writes the result and the duration.
    let mut run = Run {
        program: number(program)?,
        result: 0,
        data_in_size: 0,
        data_out_size: 0,
        data_in: 0,
        data_out: 0,
        repeat: 0,
        duration: 0,
        context_in_size: u32::try_from(size_of_val(&arguments)).map_err(io::Error::other)?,
        context_out_size: 0,
        context_in: (&raw const arguments).expose_provenance() as u64,
        context_out: 0,
        flags: if cpu.is_some() { BPF_F_TEST_RUN_ON_CPU } else { 0 },
        cpu: cpu.unwrap_or(0),
    };
    // SAFETY: the size is that of the structure, and it and the arguments outlive the call.
    let failed = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut run, size_of::<Run>()) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Fills the only element of the array `map`, and makes it read-only for user space, so that the
/// verifier knows the values and removes branches that are never taken.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn fill_constants(map: u32, value: &[u8]) -> io::Result<()> {
    const BPF_MAP_FREEZE: libc::c_long = 22;
    // SAFETY: the map was created with elements of the size of `value`.
    unsafe { set_element(map, 0, value) }?;
    // SAFETY: the size is that of the number, which outlives the call.
    let failed = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_FREEZE, &raw const map, size_of::<u32>()) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets an element of a map (`BPF_MAP_UPDATE_ELEM`), also of a map of descriptors, for which aya
/// has no call.
///
/// # Errors
/// When the kernel refuses.
///
/// # Safety
/// The map has keys of four bytes, and values of the size of `value`.
pub(super) unsafe fn set_element(map: u32, key: u32, value: &[u8]) -> io::Result<()> {
    /// The first fields of `union bpf_attr` for map elements (include/uapi/linux/bpf.h).
    #[repr(C)]
    struct Element {
        map: u32,
        unused: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
    let element = Element {
        map,
        unused: 0,
        key: (&raw const key).expose_provenance() as u64,
        value: value.as_ptr().expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: the size is that of the structure. It, and the key and value that it points to,
    // outlive the call; the caller knows the sizes of those.
    let failed =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, &raw const element, size_of::<Element>()) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn number(descriptor: &OwnedFd) -> io::Result<u32> {
    u32::try_from(descriptor.as_raw_fd()).map_err(io::Error::other)
}
