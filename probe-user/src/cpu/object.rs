//! The eBPF object: prepared for the running kernel, with maps sized for this machine.

#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
};

use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader, Pod,
    maps::Map,
    programs::{
        BtfTracePoint, Iter, Program, ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun as _,
        tp_btf::BtfTracePointLinkId,
    },
};

use super::{
    btf::{Btf, BtfError},
    mapped_array::MappedArray,
    offsets::KernelLayout,
    relocation,
};
use crate::{
    cpu::reader::ProgramRow,
    host::availability::{Reason, Unavailable},
};

/// Built by `cargo xtask build-ebpf`; empty if that was not run before this crate was built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/wattcast.bpf.o"));

const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Number of possible CPUs: the last number in `/sys/devices/system/cpu/possible`, plus one.
pub(super) fn possible_cpus() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = text.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.map_or(1, |last| last.saturating_add(1)).min(probe_ebpf::MAX_CPUS)
}

/// The smallest ring buffer, for loaders that do not use it.
pub(super) const PAGE: u32 = 4096;

/// Maximum kernel memory of the banks. 4,096 slots fit for 600 CPUs without hardware counters;
/// machines with more CPUs get fewer slots.
const MAX_BANK_BYTES: usize = 192 << 20;
/// Number of slots on the largest machine.
const MIN_SLOTS: usize = 256;

/// Number of slots per bank, for `possible` CPUs and `bytes` per slot and CPU.
pub(super) fn slots_for(possible: usize, bytes: usize) -> usize {
    let mut slots = probe_ebpf::MAX_CGROUPS;
    while slots > MIN_SLOTS && slots.saturating_mul(possible).saturating_mul(bytes) > MAX_BANK_BYTES {
        slots /= 2;
    }
    slots
}

/// The object with its maps created and no program loaded yet.
pub(super) struct BpfObject {
    /// Owns the programs; the kernel detaches them when it is dropped.
    ebpf: Ebpf,
    /// The kernel's BTF, for loading typed programs; about 12 MB, dropped when all are loaded.
    btf: Option<AyaBtf>,
}

impl BpfObject {
    /// Creates the maps with the given sizes, and sets the offsets and settings that `resolve`
    /// finds in the kernel's BTF, plus the `extra` settings.
    ///
    /// # Errors
    /// `absent` when the kernel lacks BTF, or this binary has no programs; `denied` when this
    /// process may not create maps; `broken` when the kernel's layout is unsupported.
    pub(super) fn open(
        resolve: impl Fn(&Btf<'_>) -> Result<KernelLayout, BtfError>,
        extra: &[(&'static str, u64)],
        sizes: &[(&'static str, u32)],
    ) -> Result<(Self, KernelLayout), Unavailable> {
        if OBJECT.is_empty() {
            return Err(Unavailable::new(
                Reason::Absent,
                "this binary was built without its eBPF programs. Run `cargo xtask build-ebpf` and build again",
            ));
        }
        let bytes = std::fs::read(KERNEL_BTF).map_err(|error| {
            Unavailable::new(
                Reason::of(&error),
                format!("{KERNEL_BTF}: {error}. The kernel needs CONFIG_DEBUG_INFO_BTF=y (5.5 or later)"),
            )
        })?;
        let mut layout = Btf::parse(&bytes).and_then(|btf| resolve(&btf)).map_err(|error| {
            let reason = if matches!(error, BtfError::Malformed(_)) { Reason::Broken } else { Reason::Absent };
            Unavailable::new(reason, format!("{error}. Wattcast does not support this kernel"))
        })?;
        layout.settings.extend_from_slice(extra);
        let mut object = AlignedBytes::of(OBJECT);
        relocation::patch_offsets(object.bytes(), &layout.fields)
            .map_err(|error| Unavailable::new(Reason::Broken, format!("cannot patch the eBPF object: {error}")))?;
        raise_memlock();
        let btf = AyaBtf::from_sys_fs().map_err(|error| load_error("read the kernel's BTF", &error))?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf));
        for (name, value) in &layout.settings {
            loader.override_global(name, value, true);
        }
        for (name, size) in sizes {
            loader.map_max_entries(name, *size);
        }
        let ebpf = loader.load(object.bytes()).map_err(|error| load_error("load the maps", &error))?;
        drop(loader);
        Ok((Self { ebpf, btf: Some(btf) }, layout))
    }

    /// The programs, and the kernel's BTF to load them with; `None` after [`Self::drop_btf`].
    fn programs_and_btf(&mut self) -> Option<(&mut Ebpf, &AyaBtf)> {
        Some((&mut self.ebpf, self.btf.as_ref()?))
    }

    /// Frees the kernel's BTF after the last program was loaded.
    pub(super) fn drop_btf(&mut self) {
        self.btf = None;
    }

    /// A map by name. The object keeps it: a program refers to its maps by file descriptor when it
    /// is loaded.
    ///
    /// # Errors
    /// When the object has no map of that name.
    pub(super) fn map(&self, name: &'static str) -> Result<&Map, Unavailable> {
        self.ebpf.map(name).ok_or_else(|| missing(name))
    }

    /// Maps an array into this process.
    ///
    /// # Errors
    /// When the object has no such array, or it cannot be mapped.
    pub(super) fn mapped<T: Pod>(&self, name: &'static str) -> Result<MappedArray<T>, Unavailable> {
        MappedArray::new(self.map(name)?)
            .map_err(|error| Unavailable::new(Reason::of(&error), format!("cannot map {name}: {error}")))
    }

    /// Takes a map out of the object, for access by system calls.
    ///
    /// # Errors
    /// When the object has no map of that name.
    pub(super) fn take(&mut self, name: &'static str) -> Result<Map, Unavailable> {
        self.ebpf.take_map(name).ok_or_else(|| missing(name))
    }

    /// A program by name.
    ///
    /// # Errors
    /// When the object has no program of that name.
    pub(super) fn program<'a, P>(&'a mut self, name: &'static str) -> Result<&'a mut P, Unavailable>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name).ok_or_else(|| missing(name))?;
        program.try_into().map_err(|error| load_error("use a program", &error))
    }

    /// Loads a program that user space runs.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn load_runnable(&mut self, name: &'static str) -> Result<(), Unavailable> {
        self.program::<RawTracePoint>(name)?.load().map_err(|error| load_error(&format!("load {name}"), &error))
    }

    /// Loads a typed tracepoint program and attaches it. The program keeps the link.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn attach_typed(
        &mut self,
        name: &str,
        tracepoint: &str,
    ) -> Result<(&mut BtfTracePoint, BtfTracePointLinkId), ProgramError> {
        let (ebpf, btf) = self.programs_and_btf().ok_or(ProgramError::NotLoaded)?;
        let program: &mut BtfTracePoint = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
        program.load(tracepoint, btf)?;
        let link = program.attach()?;
        Ok((program, link))
    }

    /// Loads an iterator over `target` objects, and returns the descriptor of the program.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn load_iterator(&mut self, name: &str, target: &str) -> Result<RawFd, ProgramError> {
        let (ebpf, btf) = self.programs_and_btf().ok_or(ProgramError::NotLoaded)?;
        let program: &mut Iter = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
        program.load(target, btf)?;
        Ok(program.fd()?.as_fd().as_raw_fd())
    }

    /// Runs a program once, on `cpu` or on the current CPU. Returns false if that CPU is offline.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn run(&self, name: &str, cpu: Option<u32>) -> Result<bool, ProgramError> {
        let Some(Program::RawTracePoint(program)) = self.ebpf.program(name) else {
            return Err(ProgramError::UnexpectedProgramType);
        };
        match program.test_run(RawTracePointRunOptions { cpu, ..RawTracePointRunOptions::new() }) {
            Ok(_) => Ok(true),
            // net/bpf/test_run.c, bpf_prog_test_run_raw_tp: the CPU is possible but offline.
            Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENXIO) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Run count and run time of programs, from the fdinfo of their descriptors
    /// (kernel/bpf/syscall.c, bpf_prog_show_fdinfo), which needs no privilege.
    /// Empty while `kernel.bpf_stats_enabled` is 0.
    pub(super) fn costs(&self, names: &[&'static str]) -> Vec<ProgramRow> {
        let cost = |name: &'static str| {
            let descriptor = self.ebpf.program(name)?.fd().ok()?.as_fd().as_raw_fd();
            let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
            let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
            let (run_ns, runs) = (field("run_time_ns:")?, field("run_cnt:")?);
            (runs > 0).then_some(ProgramRow { name, run_ns, runs })
        };
        names.iter().copied().filter_map(cost).collect()
    }
}

fn missing(name: &str) -> Unavailable {
    Unavailable::new(Reason::Broken, format!("the eBPF object has no {name}"))
}

/// Bytes aligned to 8, which the ELF reader requires.
struct AlignedBytes(Vec<u64>, usize);

impl AlignedBytes {
    fn of(bytes: &[u8]) -> Self {
        let words = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        Self(words.collect(), bytes.len())
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the words are borrowed for as long as the result, and they contain at least that
        // many bytes.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.1) }
    }
}

/// Raises RLIMIT_MEMLOCK: before 5.11 maps are charged to it, and its default is too small. A
/// failure shows when a map is created.
fn raise_memlock() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is a valid rlimit that outlives the call.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

/// Converts an error from aya, with its whole chain of causes on one line.
pub(super) fn load_error(action: &str, error: &(dyn std::error::Error + 'static)) -> Unavailable {
    let mut chain = Vec::new();
    let mut denied = false;
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            denied |= io.kind() == io::ErrorKind::PermissionDenied;
        }
        let text = cause.to_string();
        let line = text.lines().next().unwrap_or_default().to_owned();
        if chain.last() != Some(&line) {
            chain.push(line);
        }
        // A program that the verifier rejects also fails with EACCES.
        if let Some(message) = verifier_message(&text) {
            denied = false;
            chain = vec![format!("verifier: {message}")];
            break;
        }
        next = cause.source();
    }
    let chain = chain.join(": ");
    if denied {
        Unavailable::new(
            Reason::Denied,
            format!("not permitted to {action} ({chain}). Run as root, or with CAP_BPF and CAP_PERFMON"),
        )
    } else {
        Unavailable::new(Reason::Broken, format!("cannot {action}: {chain}"))
    }
}

/// The verifier's error message: its log is pages long, and the message is the last line before the
/// statistics.
fn verifier_message(text: &str) -> Option<&str> {
    let (_, log) = text.split_once("Verifier output:")?;
    let statistics = ["processed ", "verification time", "stack depth", "max_states"];
    let lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .filter(|line| !statistics.iter().any(|start| line.starts_with(start)))
        .nth_back(0)
        .filter(|_| log.lines().count() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verifier_message_is_last_line_before_statistics() {
        let text = "syscall failed. Verifier output: 0: R1=ctx()\n1: (79) r1 = *(u64 *)(r1 +8)\nR6 invalid mem access 'scalar'\n\
                    processed 12 insns (limit 1000000) max_states_per_insn 0\n";
        assert_eq!(verifier_message(text), Some("R6 invalid mem access 'scalar'"));
        assert_eq!(verifier_message("syscall failed. Verifier output: "), None);
        assert_eq!(verifier_message("Operation not permitted"), None);
    }
}
