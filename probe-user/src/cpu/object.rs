//! The eBPF object: prepared for the running kernel, with maps sized for this machine.

#![allow(unsafe_code)]

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet, hash_map::Entry},
    ffi::{CStr, CString},
    fmt::Display,
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
        unix::fs::FileExt as _,
    },
};

use aya::{
    Pod,
    maps::{Map, MapData},
};
use aya_obj::{
    Object,
    generated::{bpf_insn, bpf_map_type},
};
use flate2::bufread::ZlibDecoder;

use super::{
    btf::{Btf, BtfError},
    kernel_types::{self, KernelTypes},
    mapped_array::{MappedArray, MappedBanks},
    offsets::KernelLayout,
    program::{self, ProgramError, ProgramKind},
    program_log::{self, ProgramLog},
    relocation,
};
use crate::{
    cpu::reader::ProgramRow,
    host::availability::{Reason, Unavailable},
};

/// Built by `cargo xtask build-ebpf`, in the format of zlib; empty if that was not run before this
/// crate was built.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/wattcast.bpf.o.zlib"));

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
    /// The attached programs. The kernel detaches them when these are closed.
    links: Vec<OwnedFd>,
    /// The loaded programs, none of which is closed before the object.
    programs: HashMap<&'static str, OwnedFd>,
    /// The figures of those that were asked for, so that a reading opens no file.
    costs: RefCell<HashMap<&'static str, File>>,
    maps: HashMap<String, Map>,
    /// The instructions of the programs that are not loaded, by name.
    code: HashMap<String, Vec<bpf_insn>>,
    license: CString,
    /// The type ids that typed programs are attached to, by name.
    targets: Vec<(&'static str, u32)>,
}

impl BpfObject {
    /// Creates the maps with the given `sizes`, in elements, and sizes of elements, `values`, in
    /// bytes, and sets the offsets and settings that `resolve` finds in the kernel's BTF, plus the
    /// `extra` settings.
    ///
    /// # Errors
    /// `absent` when the kernel lacks BTF, or this binary has no programs; `denied` when this
    /// process may not create maps; `broken` when the kernel's layout is unsupported.
    pub(super) fn open(
        resolve: impl Fn(&Btf<'_>) -> Result<KernelLayout, BtfError>,
        extra: &[(&'static str, u64)],
        sizes: &[(&'static str, u32)],
        values: &[(&'static str, u32)],
    ) -> Result<(Self, KernelLayout), Unavailable> {
        if OBJECT.is_empty() {
            return Err(Unavailable::new(
                Reason::Absent,
                "this binary was built without its eBPF programs. Run `cargo xtask build-ebpf` and build again",
            ));
        }
        let mut layout = running_layout(resolve)?;
        layout.settings.extend_from_slice(extra);
        raise_memlock();
        let level = program_log::level();
        let mut object = parse(&layout, level)?;
        let definitions = std::mem::take(&mut object.maps);
        let (mut maps, mut descriptors) = (HashMap::new(), Vec::new());
        for (name, definition) in &definitions {
            let given = |all: &[(&str, u32)]| all.iter().find(|(known, _)| *known == name).map(|(_, size)| *size);
            let size = given(sizes).or_else(|| program_log::ring_bytes(name, level));
            let (map, descriptor) = create_map(name, definition, size, given(values))?;
            maps.insert(name.clone(), map);
            descriptors.push((name.as_str(), descriptor, definition));
        }
        let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        object
            .relocate_maps(descriptors.into_iter(), &sections)
            .and_then(|()| object.relocate_calls(&sections))
            .map_err(|error| load_error("link the eBPF object", &error))?;
        let Object { programs, mut functions, license, .. } = object;
        let code = programs.into_iter().filter_map(|(name, program)| {
            functions.remove(&program.function_key()).map(|function| (name, function.instructions))
        });
        let code = code.collect();
        let targets = layout.targets.clone();
        let (links, programs, costs) = (Vec::new(), HashMap::new(), RefCell::default());
        Ok((Self { links, programs, costs, maps, code, license, targets }, layout))
    }

    /// Frees the programs that were not loaded.
    pub(super) fn drop_unloaded(&mut self) {
        self.code = HashMap::new();
    }

    /// Frees the programs that were not loaded, and the maps that were not taken.
    pub(super) fn drop_unused(&mut self) {
        self.drop_unloaded();
        self.maps = HashMap::new();
    }

    /// The links of the attached programs, which stay attached without the object.
    pub(super) fn into_links(self) -> Vec<OwnedFd> {
        self.links
    }

    /// A map by name. The object keeps it: a program refers to its maps by file descriptor when it
    /// is loaded.
    ///
    /// # Errors
    /// When the object has no map of that name.
    pub(super) fn map(&self, name: &'static str) -> Result<&Map, Unavailable> {
        self.maps.get(name).ok_or_else(|| missing(name))
    }

    /// The messages of the programs; `None` where they write none.
    pub(super) fn log(&self) -> Option<ProgramLog> {
        ProgramLog::open(self.maps.get(program_log::RING)?)
    }

    /// Maps an array into this process.
    ///
    /// # Errors
    /// When the object has no such array, or it cannot be mapped.
    pub(super) fn mapped<T: Pod>(&self, name: &'static str) -> Result<MappedArray<T>, Unavailable> {
        MappedArray::new(self.map(name)?)
            .map_err(|error| Unavailable::new(Reason::of(&error), format!("cannot map {name}: {error}")))
    }

    /// Maps the state and bank of each CPU into this process.
    ///
    /// # Errors
    /// As [`Self::mapped`].
    pub(super) fn mapped_banks(&self, cpus: usize, slots: usize) -> Result<MappedBanks, Unavailable> {
        MappedBanks::new(self.map("CPUS")?, cpus, slots)
            .map_err(|error| Unavailable::new(Reason::of(&error), format!("cannot map CPUS: {error}")))
    }

    /// Takes a map out of the object, for access by system calls.
    ///
    /// # Errors
    /// When the object has no map of that name.
    pub(super) fn take(&mut self, name: &'static str) -> Result<Map, Unavailable> {
        self.maps.remove(name).ok_or_else(|| missing(name))
    }

    /// Loads a program, unless it was loaded ahead.
    fn load(&mut self, name: &'static str, kind: ProgramKind) -> Result<&OwnedFd, ProgramError> {
        match self.programs.entry(name) {
            Entry::Occupied(loaded) => Ok(&*loaded.into_mut()),
            Entry::Vacant(place) => {
                let code = self.code.get(name).ok_or(ProgramError::Missing(name))?;
                let program = program::load(name, &self.license, code, kind)?;
                self.code.remove(name);
                Ok(&*place.insert(program))
            }
        }
    }

    /// Loads a program that user space runs and a typed tracepoint program at the same time: the
    /// kernel verifies each for milliseconds, on the CPU of the thread that loads it. A program
    /// that it refuses is loaded again where it is needed, which reports why.
    pub(super) fn load_ahead(&mut self, runnable: &'static str, typed: &'static str, tracepoint: &CStr) {
        let target = self.target(&format!("btf_trace_{}", tracepoint.to_string_lossy()));
        let (Ok(target), Some(code)) = (target, self.code.get(runnable)) else { return };
        let (license, typed_code) = (&self.license, self.code.get(typed));
        let (first, second) = std::thread::scope(|scope| {
            let first = scope.spawn(|| program::load(runnable, license, code, ProgramKind::Raw).ok());
            let kind = ProgramKind::TypedTracepoint(target);
            let second = typed_code.and_then(|code| program::load(typed, license, code, kind).ok());
            (first.join().ok().flatten(), second)
        });
        for (name, program) in [(runnable, first), (typed, second)] {
            if let Some(program) = program {
                self.code.remove(name);
                self.programs.insert(name, program);
            }
        }
    }

    /// The type id of a target.
    fn target(&self, name: &str) -> Result<u32, ProgramError> {
        let found = self.targets.iter().find(|(known, _)| *known == name);
        found.map(|(_, id)| *id).ok_or_else(|| ProgramError::NoTarget(name.to_owned()))
    }

    /// Loads a program that user space runs.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn load_runnable(&mut self, name: &'static str) -> Result<(), Unavailable> {
        self.load(name, ProgramKind::Raw).map(|_| ()).map_err(|error| load_error(&format!("load {name}"), &error))
    }

    /// Loads a raw tracepoint program and attaches it, until the object or its links are dropped.
    ///
    /// # Errors
    /// When the kernel refuses it, or has no such tracepoint.
    pub(super) fn attach_raw(&mut self, name: &'static str, tracepoint: &CStr) -> Result<(), ProgramError> {
        let program = self.load(name, ProgramKind::Raw)?;
        let link = program::attach(program, Some(tracepoint))?;
        self.links.push(link);
        Ok(())
    }

    /// Loads a typed tracepoint program and attaches it, until the object or its links are dropped.
    ///
    /// # Errors
    /// When the kernel refuses it, or has no such tracepoint.
    pub(super) fn attach_typed(&mut self, name: &'static str, tracepoint: &CStr) -> Result<(), ProgramError> {
        let id = self.target(&format!("btf_trace_{}", tracepoint.to_string_lossy()))?;
        let program = self.load(name, ProgramKind::TypedTracepoint(id))?;
        let link = program::attach(program, None)?;
        self.links.push(link);
        Ok(())
    }

    /// Loads an iterator over `target` objects, and returns the descriptor of the program.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn load_iterator(&mut self, name: &'static str, target: &str) -> Result<RawFd, ProgramError> {
        let id = self.target(&format!("bpf_iter_{target}"))?;
        Ok(self.load(name, ProgramKind::Iterator(id))?.as_raw_fd())
    }

    /// Runs a program once, on `cpu` or on the current CPU. Returns false if that CPU is offline.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn run(&self, name: &'static str, cpu: Option<u32>) -> Result<bool, ProgramError> {
        match program::run(self.programs.get(name).ok_or(ProgramError::Missing(name))?, cpu) {
            Ok(()) => Ok(true),
            // net/bpf/test_run.c, bpf_prog_test_run_raw_tp: the CPU is possible but offline.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(false),
            Err(error) => Err(ProgramError::Call { call: "bpf_prog_test_run", error }),
        }
    }

    /// Run count and run time of programs, from the fdinfo of their descriptors
    /// (kernel/bpf/syscall.c, bpf_prog_show_fdinfo), which needs no privilege.
    /// Empty while `kernel.bpf_stats_enabled` is 0.
    pub(super) fn costs(&self, names: &[&'static str]) -> Vec<ProgramRow> {
        let mut files = self.costs.borrow_mut();
        let cost = |name: &'static str| {
            let file = match files.entry(name) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let descriptor = self.programs.get(name)?.as_raw_fd();
                    new.insert(File::open(format!("/proc/self/fdinfo/{descriptor}")).ok()?)
                }
            };
            // Some 15 short lines, printed for each reading at the beginning.
            let mut buffer = [0; 2048];
            let length = file.read_at(&mut buffer, 0).ok()?;
            let text = std::str::from_utf8(&buffer[..length]).ok()?;
            let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
            let (run_ns, runs) = (field("run_time_ns:")?, field("run_cnt:")?);
            (runs > 0).then_some(ProgramRow { name, run_ns, runs })
        };
        names.iter().copied().filter_map(cost).collect()
    }
}

/// The layout of the running kernel.
fn running_layout(resolve: impl Fn(&Btf<'_>) -> Result<KernelLayout, BtfError>) -> Result<KernelLayout, Unavailable> {
    let types = KernelTypes::open().map_err(|error| {
        let path = kernel_types::PATH;
        let what = format!("{path}: {error}. The kernel needs CONFIG_DEBUG_INFO_BTF=y (5.5 or later)");
        Unavailable::new(Reason::of(&error), what)
    })?;
    Btf::parse(types.bytes()).and_then(|btf| resolve(&btf)).map_err(|error| {
        let reason = if matches!(error, BtfError::Malformed(_)) { Reason::Broken } else { Reason::Absent };
        Unavailable::new(reason, format!("{error}. Wattcast does not support this kernel"))
    })
}

/// The object of this binary, with the offsets and settings of `layout`, and the level of messages.
fn parse(layout: &KernelLayout, level: u8) -> Result<Object, Unavailable> {
    let broken =
        |error: &dyn Display| Unavailable::new(Reason::Broken, format!("cannot patch the eBPF object: {error}"));
    let mut unpacked = Vec::new();
    ZlibDecoder::new(OBJECT).read_to_end(&mut unpacked).map_err(|error| broken(&error))?;
    let mut bytes = AlignedBytes::of(&unpacked);
    drop(unpacked);
    relocation::patch(bytes.bytes(), &layout.fields, &layout.settings).map_err(|error| broken(&error))?;
    let mut object = Object::parse(bytes.bytes()).map_err(|error| broken(&error))?;
    let level = [level];
    object
        .patch_map_data(HashMap::from([(program_log::LEVEL, (level.as_slice(), true))]))
        .map_err(|error| broken(&error))?;
    Ok(object)
}

/// Creates a map, with `size` elements of `value` bytes where these are given, and returns its
/// descriptor too.
///
/// # Errors
/// When the kernel refuses it, or the object has a kind of map that no loader uses.
fn create_map(
    name: &str,
    definition: &aya_obj::Map,
    size: Option<u32>,
    value: Option<u32>,
) -> Result<(Map, RawFd), Unavailable> {
    let broken = |error: String| Unavailable::new(Reason::Broken, format!("cannot load the map {name}: {error}"));
    let kind = bpf_map_type::try_from(definition.map_type())
        .map_err(|_| broken(format!("kind {} is unknown", definition.map_type())))?;
    let mut size = size.unwrap_or(definition.max_entries());
    let mut value_size = value.unwrap_or(definition.value_size());
    if matches!(kind, bpf_map_type::BPF_MAP_TYPE_RINGBUF) {
        // A power of two of whole pages, which have up to 64 kB.
        let page = u32::try_from(rustix::param::page_size()).map_err(|error| broken(error.to_string()))?;
        (size, value_size) = (size.max(page).next_power_of_two(), 0);
    }
    let (key_size, flags) = (definition.key_size(), definition.map_flags());
    let plain = aya_obj::Map::new_from_params(definition.map_type(), key_size, value_size, size, flags);
    let data = MapData::create(plain, name, None).map_err(|error| load_error("load the maps", &error))?;
    let descriptor = data.fd().as_fd().as_raw_fd();
    if !definition.data().is_empty() {
        u32::try_from(descriptor)
            .map_err(io::Error::other)
            .and_then(|descriptor| program::fill_constants(descriptor, definition.data()))
            .map_err(|error| load_error("fill a map", &error))?;
    }
    let map = match kind {
        bpf_map_type::BPF_MAP_TYPE_ARRAY => Map::Array(data),
        bpf_map_type::BPF_MAP_TYPE_HASH => Map::HashMap(data),
        bpf_map_type::BPF_MAP_TYPE_STACK => Map::Stack(data),
        bpf_map_type::BPF_MAP_TYPE_RINGBUF => Map::RingBuf(data),
        bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY => Map::PerCpuArray(data),
        bpf_map_type::BPF_MAP_TYPE_PERF_EVENT_ARRAY => Map::PerfEventArray(data),
        _ => return Err(broken(format!("kind {} is not used", definition.map_type()))),
    };
    Ok((map, descriptor))
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

/// Converts an error of loading, with its whole chain of causes on one line.
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
