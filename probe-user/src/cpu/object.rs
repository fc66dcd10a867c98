//! The object that holds the programs: opened for this kernel, with the maps made for this machine.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader, Pod,
    maps::Map,
    programs::{Program, ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun as _},
};

use super::{
    btf::{Btf, BtfError},
    fields,
    mapped::Mapped,
    offsets::Known,
};
use crate::{
    snapshot::ProgramRow,
    state::{Reason, Unavailable},
};

/// Built by `cargo xtask build-ebpf`; empty when it was not run before this crate was built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/wattcast.bpf.o"));

const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Numbers that the machine's CPUs may have, from 0: the last of `/sys/devices/system/cpu/possible`, plus one.
pub(super) fn possible_cpus() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = text.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.map_or(1, |last| last.saturating_add(1)).min(probe_ebpf::MAX_CPUS)
}

/// The smallest ring, for who does not use it.
pub(super) const PAGE: u32 = 4096;

/// The kernel's memory that banks may take. 4,096 slots of 600 CPUs fit, counters left out; more CPUs have fewer slots.
const BANKS_BYTES: usize = 192 << 20;
/// Slots of even the largest machine.
const LEAST_SLOTS: usize = 256;

/// Slots of each bank on a machine of so many CPUs, where a slot takes so many bytes on each.
pub(super) fn slots_for(possible: usize, bytes: usize) -> usize {
    let mut slots = probe_ebpf::MAX_CGROUPS;
    while slots > LEAST_SLOTS && slots.saturating_mul(possible).saturating_mul(bytes) > BANKS_BYTES {
        slots /= 2;
    }
    slots
}

/// The object, its maps made, no program loaded yet.
pub(super) struct Object {
    /// Owns the programs; the kernel detaches them when this goes.
    pub(super) ebpf: Ebpf,
    /// The kernel's types, for loading typed programs; a dozen megabytes, to be dropped when all are loaded.
    pub(super) btf: Option<AyaBtf>,
}

impl Object {
    /// Makes the maps, with `sizes` by name, and tells the programs what `resolve` finds in the kernel's types and what `more` says.
    ///
    /// # Errors
    /// `absent` when the kernel lacks BTF, or this binary the programs; `denied` when this process may not make maps; `broken`
    /// when the kernel is not one that we know.
    pub(super) fn open(
        resolve: impl Fn(&Btf<'_>) -> Result<Known, BtfError>,
        more: &[(&'static str, u64)],
        sizes: &[(&'static str, u32)],
    ) -> Result<(Self, Known), Unavailable> {
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
        let mut known = Btf::parse(&bytes).and_then(|btf| resolve(&btf)).map_err(|error| {
            let reason = if matches!(error, BtfError::Malformed(_)) { Reason::Broken } else { Reason::Absent };
            Unavailable::new(reason, format!("{error}. This kernel is not one that Wattcast knows"))
        })?;
        known.settings.extend_from_slice(more);
        let mut object = Words::of(OBJECT);
        fields::put(object.bytes(), &known.fields)
            .map_err(|what| Unavailable::new(Reason::Broken, format!("the eBPF object: {what}")))?;
        raise_memlock();
        let btf = AyaBtf::from_sys_fs().map_err(|error| refused("read the kernel's BTF", &error))?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf));
        for (name, value) in &known.settings {
            loader.override_global(name, value, true);
        }
        for (name, size) in sizes {
            loader.map_max_entries(name, *size);
        }
        let ebpf = loader.load(object.bytes()).map_err(|error| refused("load the maps", &error))?;
        drop(loader);
        Ok((Self { ebpf, btf: Some(btf) }, known))
    }

    /// The programs, and the kernel's types to load them with; neither after [`Self::loaded`].
    pub(super) fn types(&mut self) -> Option<(&mut Ebpf, &AyaBtf)> {
        Some((&mut self.ebpf, self.btf.as_ref()?))
    }

    /// Says that nothing more is to be loaded.
    pub(super) fn loaded(&mut self) {
        self.btf = None;
    }

    /// A map by its name. It stays ours: a program finds its maps by our descriptors when it is loaded.
    ///
    /// # Errors
    /// When the object has none of that name.
    pub(super) fn map(&self, name: &'static str) -> Result<&Map, Unavailable> {
        self.ebpf.map(name).ok_or_else(|| lacks(name))
    }

    /// An array of the kernel side in our memory.
    ///
    /// # Errors
    /// When the object has no such array, or it cannot be mapped.
    pub(super) fn mapped<T: Pod>(&self, name: &'static str) -> Result<Mapped<T>, Unavailable> {
        Mapped::of(self.map(name)?)
            .map_err(|error| Unavailable::new(Reason::of(&error), format!("cannot map {name}: {error}")))
    }

    /// A map to be changed by calls.
    ///
    /// # Errors
    /// When the object has none of that name.
    pub(super) fn take(&mut self, name: &'static str) -> Result<Map, Unavailable> {
        self.ebpf.take_map(name).ok_or_else(|| lacks(name))
    }

    /// A program by its name.
    ///
    /// # Errors
    /// When the object has none of that name.
    pub(super) fn program<'a, P>(&'a mut self, name: &'static str) -> Result<&'a mut P, Unavailable>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name).ok_or_else(|| lacks(name))?;
        program.try_into().map_err(|error| refused("use its programs", &error))
    }

    /// Loads a program that user space runs.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn load_runnable(&mut self, name: &'static str) -> Result<(), Unavailable> {
        self.program::<RawTracePoint>(name)?.load().map_err(|error| refused(&format!("load {name}"), &error))
    }

    /// Runs a program once, on a CPU or where we are. False when that CPU is not online.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn run(&self, name: &str, cpu: Option<u32>) -> Result<bool, ProgramError> {
        let Some(Program::RawTracePoint(program)) = self.ebpf.program(name) else {
            return Err(ProgramError::UnexpectedProgramType);
        };
        match program.test_run(RawTracePointRunOptions { cpu, ..RawTracePointRunOptions::new() }) {
            Ok(_) => Ok(true),
            // net/bpf/test_run.c, bpf_prog_test_run_raw_tp: the CPU is possible but not online.
            Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENXIO) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What programs cost, from their descriptors' fdinfo (kernel/bpf/syscall.c, bpf_prog_show_fdinfo), which needs no privilege.
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

fn lacks(name: &str) -> Unavailable {
    Unavailable::new(Reason::Broken, format!("the eBPF object lacks {name}"))
}

/// Bytes at an address that eight divides, which the reader of the object wants.
struct Words(Vec<u64>, usize);

impl Words {
    fn of(bytes: &[u8]) -> Self {
        let words = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        Self(words.collect(), bytes.len())
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: our own words, as bytes, for as long as we are borrowed; their number of bytes is at least the length.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.1) }
    }
}

/// Before 5.11 maps are charged to RLIMIT_MEMLOCK, whose default is far too small; a failure shows when a map is made.
fn raise_memlock() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is a valid rlimit that outlives the call.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

/// The state behind an error of aya, with the whole chain of causes on one line.
pub(super) fn refused(what: &str, error: &(dyn std::error::Error + 'static)) -> Unavailable {
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
        // A program that the verifier refuses is refused with EACCES too.
        if let Some(complaint) = complaint(&text) {
            denied = false;
            chain = vec![format!("the verifier says: {complaint}")];
            break;
        }
        next = cause.source();
    }
    let chain = chain.join(": ");
    if denied {
        Unavailable::new(
            Reason::Denied,
            format!("may not {what} ({chain}). Run as root, or with CAP_BPF and CAP_PERFMON"),
        )
    } else {
        Unavailable::new(Reason::Broken, format!("cannot {what}: {chain}"))
    }
}

/// What the verifier complained of: its log is pages long, and the complaint is the last line before the statistics.
fn complaint(text: &str) -> Option<&str> {
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
    fn the_verifiers_complaint_is_found_at_the_end_of_its_log() {
        let text = "syscall failed. Verifier output: 0: R1=ctx()\n1: (79) r1 = *(u64 *)(r1 +8)\nR6 invalid mem access 'scalar'\n\
                    processed 12 insns (limit 1000000) max_states_per_insn 0\n";
        assert_eq!(complaint(text), Some("R6 invalid mem access 'scalar'"));
        assert_eq!(complaint("syscall failed. Verifier output: "), None);
        assert_eq!(complaint("Operation not permitted"), None);
    }
}
