//! Cost of polling GPUs per tick, with 1 and 8 GPUs and 8 processes on each: reading, attribution
//! and arithmetic. Run by `cargo xtask bench`. Prints lines `PART GPUS MICROSECONDS`: CPU time,
//! median of batches. The CPU time of the fake NVML library itself is reported separately.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

use std::process::{Child, Command};

use clap::Parser as _;
use fake_nvml::scenario::{Engines, Gpu, Process, Scenario, Session, VARIABLE};
use probe_user::{attribution::Accountant, config::Config, ledger::IdlePolicy, start, tick::Collectors};

const BATCHES: usize = 15;
const TICKS: u32 = 20;
const PROCESSES: usize = 8;

fn cpu_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec that outlives the call.
    assert_eq!(unsafe { libc::clock_gettime(clock, &raw mut now) }, 0);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// CPU time that the loaded fake library has used.
fn library_ns(library: &std::path::Path) -> u64 {
    let name = std::ffi::CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: the library is already loaded, and this returns another handle to it.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
    assert!(!handle.is_null());
    // SAFETY: a zero-terminated name, and the handle of an open library.
    let symbol = unsafe { libc::dlsym(handle, c"fake_nvml_own_ns".as_ptr()) };
    assert!(!symbol.is_null());
    // SAFETY: this is the function's declaration in fake-nvml.
    let own: extern "C" fn() -> u64 = unsafe { std::mem::transmute(symbol) };
    let ns = own();
    // SAFETY: the handle was opened above.
    unsafe { libc::dlclose(handle) };
    ns
}

fn gpus(count: usize, processes: &[Child]) -> Scenario {
    let gpu = |at: usize| Gpu {
        process: processes[at * PROCESSES..(at + 1) * PROCESSES]
            .iter()
            .map(|child| Process {
                pid: Some(child.id()),
                percent: Engines { sm: 2.0, encoder: 10.0, decoder: 5.0, ..Engines::default() },
                session: vec![Session::default()],
                memory: 1 << 20,
                ..Process::default()
            })
            .collect(),
        ..Gpu::default()
    };
    Scenario { init: None, gpu: (0..count).map(gpu).collect() }
}

fn main() {
    let dir = std::env::temp_dir().join(format!("wattcast-gpu-cost-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let scenario = dir.join("scenario.toml");
    let exe = std::env::current_exe().unwrap();
    let library = exe.ancestors().nth(2).unwrap().join("deps/libfake_nvml.so");
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var(VARIABLE, &scenario) };
    let mut processes: Vec<Child> =
        (0..8 * PROCESSES).map(|_| Command::new("sleep").arg("600").spawn().unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    for count in [1, 8] {
        std::fs::write(&scenario, gpus(count, &processes).text()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        let flags = ["--no-collector.docker", "--no-collector.stats", "--energy.source=model", "--cpu.tier=files"];
        let library_flag = format!("--path.nvml={}", library.display());
        let config =
            |more: &str| Config::parse_from([&["wattcast-probe"], &flags[..], &[&*library_flag, more]].concat());
        let mut all = Probe::start(&config("--collector.gpu"));
        let mut none = Probe::start(&config("--no-collector.gpu"));
        all.collectors.wait_for_gpus(std::time::Duration::from_secs(10));
        let mut costs: Vec<(u64, u64)> = (0..BATCHES)
            .map(|_| {
                let own = library_ns(&library);
                let with = all.ticks();
                let own = library_ns(&library) - own;
                let without = none.ticks();
                (with.saturating_sub(without + own) / u64::from(TICKS), own / u64::from(TICKS))
            })
            .collect();
        // Check that every process of every GPU was reported.
        let reported = all.collectors.gpus().iter().map(|status| (status.gpu.uses.len(), status.sessions.len()));
        assert_eq!(reported.collect::<Vec<_>>(), vec![(PROCESSES, PROCESSES); count]);
        costs.sort_unstable();
        let (probe, own) = costs[BATCHES / 2];
        let micro = |ns: u64| f64::from(u32::try_from(ns).unwrap()) / 1000.0;
        println!("probe {count} {:.2}", micro(probe));
        println!("library {count} {:.2}", micro(own));
    }
    for process in &mut processes {
        let _ = process.kill();
        let _ = process.wait();
    }
    let _ = std::fs::remove_dir_all(dir);
}

struct Probe {
    collectors: Collectors,
    accountant: Accountant,
}

impl Probe {
    fn start(config: &Config) -> Self {
        let collectors = start::collectors(config).0;
        let accountant = Accountant::new(collectors.setup(), IdlePolicy::Separate, 0);
        Self { collectors, accountant }
    }

    /// CPU time of the process over some ticks, including the GPU thread.
    fn ticks(&mut self) -> u64 {
        let mut collectors = Vec::new();
        let start = cpu_ns(libc::CLOCK_PROCESS_CPUTIME_ID);
        for _ in 0..TICKS {
            self.accountant.tick(self.collectors.read(&Default::default(), &mut collectors));
            // The driver's sampling period is a tenth of a second.
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        cpu_ns(libc::CLOCK_PROCESS_CPUTIME_ID) - start
    }
}
