//! The loads of a calibration: threads of this program, each pinned to a CPU, that run one mix of
//! instructions until they are stopped. They end with the program.

#![allow(unsafe_code)]

use std::{
    collections::BTreeSet,
    fs,
    hint::black_box,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Rounds of a loop between two looks at the flag that stops it: some microseconds.
const ROUNDS: u32 = 10_000;
/// Words of a cache line of 64 bytes.
const LINE: usize = 8;
/// Limits of the buffer of a thread, in bytes.
const MIN_BUFFER: u64 = 8 << 20;
const MAX_BUFFER: u64 = 256 << 20;
/// The buffers of all threads have at most this part of the free memory.
const MEMORY_PART: u64 = 8;
/// Used where sysfs does not tell the sizes of the last caches.
const USUAL_CACHE: u64 = 32 << 20;
/// Time in which all threads must run.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A mix of instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mix {
    /// Shifts, multiplications and branches on registers.
    Integer,
    /// Vector multiply-adds on registers: AVX where the CPU has it.
    Vector,
    /// Reads and writes of a buffer that is larger than the last cache.
    Memory,
}

impl Mix {
    pub(super) const ALL: [Self; 3] = [Self::Integer, Self::Vector, Self::Memory];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Vector => "vector",
            Self::Memory => "memory",
        }
    }
}

/// Running threads, which end when this is dropped.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts a thread on each of `cpus`, and returns when all of them run. A buffer of the memory
    /// mix has `buffer` bytes.
    ///
    /// # Errors
    /// When a thread cannot be started, or not be pinned.
    pub(super) fn start(mix: Mix, cpus: &[usize], buffer: u64) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        // From here on an error stops the threads that were started already.
        let mut load = Self { stop, threads: Vec::with_capacity(cpus.len()) };
        let (ready, started) = mpsc::channel();
        for cpu in cpus.iter().copied() {
            let (stop, ready) = (load.stop.clone(), ready.clone());
            let run = move || run(mix, cpu, buffer, &stop, &ready);
            let thread = thread::Builder::new().name(format!("load-{cpu}")).spawn(run);
            load.threads.push(thread.context("cannot start a thread for a load")?);
        }
        for _ in cpus {
            match started.recv_timeout(START_TIMEOUT) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => bail!("a thread of the load does not run after {} s", START_TIMEOUT.as_secs()),
            }
        }
        Ok(load)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic has been printed.
            let _ = thread.join();
        }
    }
}

/// Pins this thread and runs the mix until it is stopped.
fn run(mix: Mix, cpu: usize, buffer: u64, stop: &AtomicBool, ready: &Sender<Result<()>>) {
    let pinned = pin(cpu);
    let failed = pinned.is_err();
    // Touched before the measurement, because the kernel clears each page at its first use.
    let words = if mix == Mix::Memory && !failed { usize::try_from(buffer).unwrap_or(usize::MAX) / 8 } else { 0 };
    let mut memory = vec![0u64; words];
    memory.iter_mut().step_by(LINE).for_each(|word| *word = 1);
    // The receiver is gone only after an error of another thread.
    let _ = ready.send(pinned);
    if failed {
        return;
    }
    let mut states = [0x2545_f491_4f6c_dd1d, 0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];
    while !stop.load(Ordering::Relaxed) {
        match mix {
            Mix::Integer => states = integer(states),
            Mix::Vector => vector(),
            Mix::Memory => walk(&mut memory, stop),
        }
    }
    black_box(states);
}

fn pin(cpu: usize) -> Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        bail!("CPU {cpu} cannot be selected: the largest number is {}", CpuSet::MAX_CPU - 1);
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
        .map_err(|error| anyhow!("cannot run on CPU {cpu}: {error}. It may be offline, or outside of the cpuset"))
}

/// The CPUs on which this program may run.
///
/// # Errors
/// When the kernel does not tell them.
pub(super) fn allowed() -> Result<CpuSet> {
    sched_getaffinity(None).map_err(|error| anyhow!("cannot read the CPUs on which this program may run: {error}"))
}

/// Numbers of xorshift64*, each followed by one of two operations at random. Four independent
/// chains keep the units busy: a single one leaves most of a core to its sibling thread.
fn integer(mut states: [u64; 4]) -> [u64; 4] {
    for _ in 0..ROUNDS / 4 {
        for state in &mut states {
            *state ^= *state >> 12;
            *state ^= *state << 25;
            *state ^= *state >> 27;
            let product = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
            *state = if *state & 1 == 0 { product } else { state.rotate_left(17) | 1 };
        }
    }
    black_box(states)
}

fn vector() {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the CPU has both features.
        unsafe { multiply_add() };
        return;
    }
    multiply_and_add();
}

/// Eight independent chains of fused multiply-adds on eight floats each: both vector units are
/// busy all the time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,fma")]
fn multiply_add() {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
    let (factor, addend) = (_mm256_set1_ps(0.999_9), _mm256_set1_ps(0.000_1));
    let mut chains = [_mm256_set1_ps(black_box(1.5)); 8];
    for _ in 0..ROUNDS {
        for chain in &mut chains {
            *chain = _mm256_fmadd_ps(*chain, factor, addend);
        }
    }
    black_box(chains);
}

/// The same for other CPUs: the compiler uses the vectors that all of them have (SSE2, NEON).
fn multiply_and_add() {
    let mut chains = [black_box(1.5f32); 64];
    for _ in 0..ROUNDS / 8 {
        for chain in &mut chains {
            *chain = *chain * 0.999_9 + 0.000_1;
        }
    }
    black_box(chains);
}

/// Adds one to a word of every cache line.
fn walk(memory: &mut [u64], stop: &AtomicBool) {
    for part in memory.chunks_mut(1 << 16) {
        for line in part.chunks_mut(LINE) {
            line[0] = line[0].wrapping_add(1);
        }
        black_box(&mut *part);
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Bytes of the buffer of each of `threads` threads: together twice the last caches of the machine,
/// within what is free.
pub(super) fn buffer_size(sysfs: &Path, procfs: &Path, threads: usize) -> u64 {
    let count = |count: usize| u64::try_from(count.max(1)).unwrap_or(u64::MAX);
    let wanted = last_caches(sysfs).unwrap_or(USUAL_CACHE).saturating_mul(2) / count(threads);
    let free = free_memory(procfs).unwrap_or(MEMORY_PART * MAX_BUFFER) / MEMORY_PART / count(threads);
    wanted.clamp(MIN_BUFFER, MAX_BUFFER).min(free)
}

/// Bytes of the last caches of all CPUs: a processor of several chiplets has one for each.
fn last_caches(sysfs: &Path) -> Option<u64> {
    let read = |path: PathBuf| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let caches_of = |cpu: PathBuf| fs::read_dir(cpu.join("cache")).into_iter().flatten().flatten();
    let cpus = fs::read_dir(sysfs.join("devices/system/cpu")).ok()?.flatten().map(|cpu| cpu.path());
    let caches = cpus.flat_map(caches_of).filter_map(|index| {
        let path = index.path();
        let level = read(path.join("level"))?.parse::<u8>().ok()?;
        Some((level, read(path.join("shared_cpu_list"))?, parse_size(&read(path.join("size"))?)?))
    });
    let caches: BTreeSet<(u8, String, u64)> = caches.collect();
    let last = caches.last()?.0;
    Some(caches.iter().filter(|(level, ..)| *level == last).map(|(.., size)| *size).sum())
}

/// A size such as `36608K` (Documentation/ABI/testing/sysfs-devices-system-cpu).
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 1 << 10),
        b'M' => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Bytes of `MemAvailable` in `meminfo`.
fn free_memory(procfs: &Path) -> Option<u64> {
    let text = fs::read_to_string(procfs.join("meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mix_runs_on_its_cpu_and_ends() {
        let allowed = allowed().unwrap();
        let cpu = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
        for mix in Mix::ALL {
            let load = Load::start(mix, &[cpu], 1 << 20).unwrap();
            assert!(load.threads.iter().all(|thread| !thread.is_finished()));
            drop(load);
        }
    }

    #[test]
    fn a_cpu_that_does_not_exist_is_an_error() {
        let error = Load::start(Mix::Integer, &[CpuSet::MAX_CPU - 1], 0).err().unwrap().to_string();
        assert!(error.contains("cannot run on CPU"), "{error}");
        let error = Load::start(Mix::Integer, &[usize::MAX], 0).err().unwrap().to_string();
        assert!(error.contains("largest number"), "{error}");
    }

    #[test]
    fn the_buffer_is_larger_than_the_cache_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        // Two packages, whose first CPUs are 0 and 1, and a second CPU of the first package.
        for (cpu, package) in [(0, "0,2"), (1, "1"), (2, "0,2")] {
            let cache = dir.path().join(format!("devices/system/cpu/cpu{cpu}/cache"));
            let own = cpu.to_string();
            let caches = [("1", "48K\n", &*own), ("2", "2048K\n", &*own), ("3", "36M\n", package)];
            for (index, (level, size, cpus)) in caches.into_iter().enumerate() {
                let index = cache.join(format!("index{index}"));
                fs::create_dir_all(&index).unwrap();
                fs::write(index.join("level"), level).unwrap();
                fs::write(index.join("size"), size).unwrap();
                fs::write(index.join("shared_cpu_list"), cpus).unwrap();
            }
        }
        let size = |threads| buffer_size(dir.path(), dir.path(), threads);
        assert_eq!(size(4), 36 << 20);
        assert_eq!((size(1), size(1000)), (144 << 20, MEMORY_PART * MAX_BUFFER / MEMORY_PART / 1000));
        fs::write(dir.path().join("meminfo"), "MemTotal: 9 kB\nMemAvailable:  65536 kB\n").unwrap();
        assert_eq!(size(4), 2 << 20, "an eighth of the free memory, for all threads");
        assert_eq!((parse_size("x"), parse_size(""), parse_size("9")), (None, None, Some(9)));
        assert_eq!(parse_size("18446744073709551615K"), None);
    }
}
