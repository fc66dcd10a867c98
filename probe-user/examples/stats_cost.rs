//! Measures the cost of one tick of the stats collector (memory, network and block I/O), with a
//! real cgroup and network namespace for each container. Run by `cargo xtask bench`; needs root.
//! Prints `stats CONTAINERS MILLISECONDS`: the median CPU time of this thread per tick.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

use std::{
    fs,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command},
    sync::Arc,
};

use probe_user::{
    cgroup::hierarchy,
    containers::{
        Container,
        stats::{CgroupPath, StatsCollector},
    },
};

const TICKS: usize = 31;

struct Cleanup(Vec<Child>, Vec<PathBuf>);

impl Drop for Cleanup {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
        for dir in &self.1 {
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

fn main() {
    let cgroupfs = PathBuf::from("/sys/fs/cgroup");
    let trees: Vec<PathBuf> = ["", "unified", "memory", "blkio", "cpu"]
        .iter()
        .map(|name| cgroupfs.join(name))
        .filter(|dir| dir.join("cgroup.procs").exists())
        .collect();
    let v2 = trees.iter().any(|dir| dir.join("cgroup.controllers").exists());
    let mut cleanup = Cleanup(Vec::new(), Vec::new());
    let mut containers = Vec::new();
    for count in [50u32, 500] {
        while containers.len() < usize::try_from(count).unwrap() {
            let number = u32::try_from(containers.len()).unwrap();
            let name = format!("wattcast-stats-{}-{number}", std::process::id());
            let mut procs = Vec::new();
            for tree in &trees {
                fs::create_dir(tree.join(&name)).unwrap();
                cleanup.1.push(tree.join(&name));
                procs.push(fs::OpenOptions::new().write(true).open(tree.join(&name).join("cgroup.procs")).unwrap());
            }
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
            cleanup.0.push(command.spawn().unwrap());
            let hierarchy = if v2 { hierarchy::V2 } else { hierarchy::V1_CPU };
            containers.push((
                Arc::new(Container::new(number, format!("c{number}"), format!("{number:012}"), "docker")),
                [CgroupPath { hierarchy, path: format!("/{name}") }],
            ));
        }
        let mut stats = StatsCollector::new(&cgroupfs, "/proc".as_ref());
        let mut read = || {
            let start = cpu_ns();
            let rows = stats.read(containers.iter().map(|(container, cgroup_paths)| (container, &cgroup_paths[..])));
            assert!(rows.iter().all(|row| row.usage.memory.is_some() && row.usage.network.is_some()), "{:?}", rows[0]);
            cpu_ns() - start
        };
        // The first tick also opens the files.
        read();
        let mut ticks: Vec<u64> = (0..TICKS).map(|_| read()).collect();
        ticks.sort_unstable();
        println!("stats {count} {:.2}", f64::from(u32::try_from(ticks[TICKS / 2] / 1000).unwrap()) / 1000.0);
    }
}
