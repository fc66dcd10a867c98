//! Measures the cost of one tick of the stats collector: memory, CPU limit, network and block I/O
//! of containers, from files and through the eBPF iterator, in turns. Run by `cargo xtask bench`;
//! needs root.
//!
//! Prints `SOURCE CONTAINERS MILLISECONDS`, the median CPU time of this thread per tick, and lines
//! that start with `#`: quartiles, and the allocations of the last ticks, of which there are none.
//! Of 50 and 500 containers, each has a process in a network namespace of its own. The cgroups of
//! 4,000 are empty.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use probe_user::{
    cgroup::hierarchy,
    containers::{
        Container,
        stats::{CgroupPath, StatsCollector},
    },
    cpu::UsageIterator,
};

const TICKS: usize = 33;

/// Counts the allocations of the process.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: passes every call on to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The processes and cgroups of the measurement.
struct Cleanup(Vec<Child>, Vec<PathBuf>);

impl Drop for Cleanup {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
        // The cgroups in a cgroup come after it.
        for dir in self.1.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

fn cpu_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec that outlives the call.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) }, 0);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// Starts a process in the given cgroups, with a network of its own.
fn sleeper(cgroups: &[PathBuf]) -> Child {
    let open = |dir: &PathBuf| fs::OpenOptions::new().write(true).open(dir.join("cgroup.procs")).unwrap();
    let procs: Vec<fs::File> = cgroups.iter().map(open).collect();
    let mut command = Command::new("sleep");
    command.arg("600");
    // SAFETY: only async-signal-safe calls; the descriptors were opened before the fork.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            procs.iter().try_for_each(|mut procs| procs.write_all(b"0"))?;
            if libc::unshare(libc::CLONE_NEWNET) == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
    }
    command.spawn().unwrap()
}

type Target = (Arc<Container>, [CgroupPath; 1]);

/// CPU nanoseconds and allocations of one tick.
fn tick(stats: &mut StatsCollector, containers: &[Target]) -> (u64, u64) {
    let (start, allocations) = (cpu_ns(), ALLOCATIONS.load(Ordering::Relaxed));
    stats.read(containers.iter().map(|(container, cgroup_paths)| (container, &cgroup_paths[..])));
    // All but the scan for engines in every sixtieth tick.
    stats.read_engines();
    (cpu_ns() - start, ALLOCATIONS.load(Ordering::Relaxed) - allocations)
}

fn measure(cgroupfs: &Path, containers: &[Target], processes: bool) {
    let files = StatsCollector::new(cgroupfs, "/proc".as_ref());
    let mut iterator = StatsCollector::new(cgroupfs, "/proc".as_ref());
    let mut sources = vec![("files", files)];
    let (start, cpu) = (Instant::now(), cpu_ns());
    match UsageIterator::load(cgroupfs) {
        Ok(loaded) => {
            let cpu = (cpu_ns() - cpu) / 1000;
            println!("# iterator loaded in {:.1} ms, {cpu} us of CPU time", start.elapsed().as_secs_f64() * 1e3);
            println!("# {}", loaded.detail());
            iterator.use_iterator(loaded);
            sources.push(("iterator", iterator));
        }
        Err(why) => println!("# no iterator: {why}"),
    }
    let count = containers.len();
    let mut costs = vec![Vec::new(); sources.len()];
    let mut allocations = vec![0; sources.len()];
    // The first ticks also open files and find the rows.
    const WARM: usize = 25;
    for round in 0..WARM + TICKS {
        for (index, (_, stats)) in sources.iter_mut().enumerate() {
            let (cost, allocated) = tick(stats, containers);
            if round >= WARM {
                costs[index].push(cost);
                allocations[index] += allocated;
            }
        }
    }
    for (index, (name, stats)) in sources.iter().enumerate() {
        let complete = |row: &&probe_user::containers::stats::UsageRow| {
            row.usage.memory.is_some() && row.usage.block.is_some() && (row.usage.network.is_some() || !processes)
        };
        assert_eq!(stats.rows().iter().filter(complete).count(), count, "{name}: {:?}", stats.rows()[0]);
        let costs = &mut costs[index];
        costs.sort_unstable();
        let ms = |at: usize| f64::from(u32::try_from(costs[at] / 100).unwrap()) / 10_000.0;
        println!("{name} {count} {:.3}", ms(TICKS / 2));
        println!("# {name} {count} quartiles {:.3} {:.3}", ms(TICKS / 4), ms(3 * TICKS / 4));
        println!("# {name} {count} allocations in {TICKS} ticks {}", allocations[index]);
    }
}

fn main() {
    let cgroupfs = PathBuf::from("/sys/fs/cgroup");
    let all: Vec<PathBuf> = ["", "unified", "memory", "blkio", "cpu"]
        .iter()
        .map(|name| cgroupfs.join(name))
        .filter(|dir| dir.join("cgroup.procs").exists())
        .collect();
    let v2 = all.iter().any(|dir| dir.join("cgroup.controllers").exists());
    let top = format!("wattcast-stats-{}", std::process::id());
    let mut cleanup = Cleanup(Vec::new(), Vec::new());
    for tree in &all {
        fs::create_dir(tree.join(&top)).unwrap();
        cleanup.1.push(tree.join(&top));
        let controllers = fs::read_to_string(tree.join(&top).join("cgroup.controllers")).unwrap_or_default();
        let wanted: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
        let _ = fs::write(tree.join(&top).join("cgroup.subtree_control"), wanted.join(" "));
    }
    let mut containers: Vec<Target> = Vec::new();
    let counts = std::env::args().nth(1).map_or(vec![50u32, 500, 4000], |count| vec![count.parse().unwrap()]);
    for count in counts {
        let processes = count <= 500 && std::env::args().nth(2).is_none();
        while containers.len() < usize::try_from(count).unwrap() {
            let number = u32::try_from(containers.len()).unwrap();
            let name = format!("{top}/{number}");
            let dirs: Vec<PathBuf> = all.iter().map(|tree| tree.join(&name)).collect();
            for dir in &dirs {
                fs::create_dir(dir).unwrap();
                cleanup.1.push(dir.clone());
            }
            if processes {
                cleanup.0.push(sleeper(&dirs));
            }
            let hierarchy = if v2 { hierarchy::V2 } else { hierarchy::V1_CPU };
            containers.push((
                Arc::new(Container::new(number, format!("c{number}"), format!("{number:012}"), "docker")),
                [CgroupPath { hierarchy, path: format!("/{name}") }],
            ));
        }
        measure(&cgroupfs, &containers, processes);
    }
}
