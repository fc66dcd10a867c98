//! The `sched_switch` tier: loads the kernel side, closes the open slice of every CPU, reads the map.
//!
//! Loading needs CAP_BPF and CAP_PERFMON; reading afterwards needs none (5.19 and later), so the probe drops both.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Btf as AyaBtf, EbpfLoader,
    maps::{MapData, PerCpuArray, PerCpuHashMap},
    programs::{BtfTracePoint, Program, ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun as _},
};
use probe_ebpf::{CgroupKey, CgroupTime, CpuState, WAIT_CLASSES};

use super::{
    Queue, Reading,
    btf::{Btf, BtfError},
};
use crate::{
    snapshot::ProgramRow,
    state::{Reason, Unavailable},
};

/// Built by `cargo xtask build-ebpf`; empty when it was not run before this crate was built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/wattcast.bpf.o"));

/// The program that user space runs on each CPU.
const KICK: &str = "charge_running";

const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The loaded programs and their maps. Dropping it detaches them.
pub struct Switch {
    cgroups: PerCpuHashMap<MapData, CgroupKey, CgroupTime>,
    cpus: PerCpuArray<MapData, CpuState>,
    possible: u32,
    /// The kernel's 32-bit counts, and what they add up to.
    queues: HashMap<CgroupKey, (Counts, Queue)>,
    /// False where the kernel does not count waits.
    counts_waits: bool,
    /// Owns the programs; the kernel detaches them when this goes.
    ebpf: aya::Ebpf,
}

impl Switch {
    /// Loads and attaches the programs, and sets every CPU's starting point.
    ///
    /// # Errors
    /// `absent` when the kernel lacks BTF, a field or BPF; `denied` when this process may not load programs;
    /// `broken` when the kernel refuses them for another reason.
    pub fn load() -> Result<Self, Unavailable> {
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
        let offsets = Btf::parse(&bytes).and_then(|btf| Offsets::resolve(&btf)).map_err(|error| {
            Unavailable::new(Reason::Broken, format!("{error}. This kernel is not one that Wattcast knows"))
        })?;
        raise_memlock();

        let btf = AyaBtf::from_sys_fs().map_err(|error| refused("read the kernel's BTF", &error))?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf));
        for (name, value) in &offsets.0 {
            loader.override_global(name, value, true);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| refused("load the maps", &error))?;

        let missing = || Unavailable::new(Reason::Broken, "the eBPF object lacks a program or a map");
        let kick: &mut RawTracePoint = ebpf
            .program_mut(KICK)
            .ok_or_else(missing)?
            .try_into()
            .map_err(|error| refused("use its programs", &error))?;
        kick.load().map_err(|error| refused("load charge_running", &error))?;
        let switch: &mut BtfTracePoint = ebpf
            .program_mut("sched_switch")
            .ok_or_else(missing)?
            .try_into()
            .map_err(|error| refused("use its programs", &error))?;
        switch.load("sched_switch", &btf).map_err(|error| refused("load sched_switch", &error))?;
        switch.attach().map_err(|error| refused("attach sched_switch", &error))?;

        let cgroups = PerCpuHashMap::try_from(ebpf.take_map("CGROUPS").ok_or_else(missing)?)
            .map_err(|error| refused("open the map CGROUPS", &error))?;
        let cpus = PerCpuArray::try_from(ebpf.take_map("CPUS").ok_or_else(missing)?)
            .map_err(|error| refused("open the map CPUS", &error))?;
        let possible = aya::util::nr_cpus().ok().and_then(|count| u32::try_from(count).ok()).unwrap_or(1);
        let counts_waits = offsets.0.iter().any(|(name, at)| *name == "TASK_RUN_DELAY" && *at != 0);
        let this = Self { cgroups, cpus, possible, queues: HashMap::new(), counts_waits, ebpf };
        this.close_open_slices().map_err(|error| refused("run charge_running", &error))?;
        Ok(this)
    }

    /// Charges what runs on each CPU at this moment, so that a task that never switches is in the reading too.
    fn close_open_slices(&self) -> Result<(), ProgramError> {
        let Some(Program::RawTracePoint(kick)) = self.ebpf.program(KICK) else {
            return Err(ProgramError::UnexpectedProgramType);
        };
        for cpu in 0..self.possible {
            let options = RawTracePointRunOptions { cpu: Some(cpu), ..RawTracePointRunOptions::new() };
            match kick.test_run(options) {
                Ok(_) => {}
                // net/bpf/test_run.c, bpf_prog_test_run_raw_tp: the CPU is possible but not online.
                Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENXIO) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Fills `out` with the totals as of now; a running task is at most one scheduler tick behind.
    ///
    /// # Errors
    /// When the kernel refuses a call that it granted before.
    pub fn read(&mut self, out: &mut Reading) -> io::Result<()> {
        self.close_open_slices().map_err(io::Error::other)?;
        out.rows.clear();
        out.queues.clear();
        for row in &self.cgroups {
            let (key, values) = row.map_err(io::Error::other)?;
            out.rows.push((key, values.iter().map(|time| time.run_ns).collect()));
            if self.counts_waits {
                let (last, total) = self.queues.entry(key).or_default();
                let now = Counts::of(values.iter());
                total.add(&now.since(last));
                *last = now;
                out.queues.push((key, *total));
            }
        }
        let states = self.cpus.get(&0, 0).map_err(io::Error::other)?;
        out.overflow_ns.clear();
        out.overflow_ns.extend(states.iter().map(|state| state.overflow_ns));
        out.missed = states.iter().map(|state| state.missed).sum();
        Ok(())
    }

    /// What each program cost, from its descriptor's fdinfo (kernel/bpf/syscall.c, bpf_prog_show_fdinfo), which needs no privilege.
    /// Empty while `kernel.bpf_stats_enabled` is 0.
    #[must_use]
    pub fn costs(&self) -> Vec<ProgramRow> {
        let cost = |name: &'static str| {
            let descriptor = self.ebpf.program(name)?.fd().ok()?.as_fd().as_raw_fd();
            let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
            let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
            let (run_ns, runs) = (field("run_time_ns:")?, field("run_cnt:")?);
            (runs > 0).then_some(ProgramRow { name, run_ns, runs })
        };
        ["sched_switch", KICK].into_iter().filter_map(cost).collect()
    }

    /// Frees the slot of a cgroup that is gone. Its totals are lost: read first.
    pub fn forget(&mut self, key: &CgroupKey) {
        // Already gone is what was wanted.
        let _ = self.cgroups.remove(key);
        self.queues.remove(key);
    }
}

/// Counts of all CPUs, summed as the kernel keeps them: modulo 2^32, which a sum does not change.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    wait_ns: u64,
    waits: [u32; WAIT_CLASSES],
    voluntary: u32,
    involuntary: u32,
}

impl Counts {
    fn of<'a>(cpus: impl Iterator<Item = &'a CgroupTime>) -> Self {
        cpus.fold(Self::default(), |mut sum, cpu| {
            sum.wait_ns = sum.wait_ns.wrapping_add(cpu.wait_ns);
            sum.waits.iter_mut().zip(cpu.waits).for_each(|(sum, count)| *sum = sum.wrapping_add(count));
            sum.voluntary = sum.voluntary.wrapping_add(cpu.voluntary);
            sum.involuntary = sum.involuntary.wrapping_add(cpu.involuntary);
            sum
        })
    }

    /// What came since `last`: between two ticks no count comes round.
    fn since(&self, last: &Self) -> Queue {
        let mut waits = [0; WAIT_CLASSES];
        for ((grown, now), last) in waits.iter_mut().zip(self.waits).zip(last.waits) {
            *grown = u64::from(now.wrapping_sub(last));
        }
        Queue {
            wait_ns: self.wait_ns.wrapping_sub(last.wait_ns),
            waits,
            voluntary: u64::from(self.voluntary.wrapping_sub(last.voluntary)),
            involuntary: u64::from(self.involuntary.wrapping_sub(last.involuntary)),
        }
    }
}

/// Values for the globals of probe-ebpf/src/offsets.rs.
struct Offsets(Vec<(&'static str, u64)>);

impl Offsets {
    fn resolve(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let field = |name, structure: &str, path: &[&str]| btf.field(structure, path).map(|at| (name, at));
        let mut all = vec![
            field("TASK_PID", "task_struct", &["pid"])?,
            field("TASK_SUM_EXEC", "task_struct", &["se", "sum_exec_runtime"])?,
            field("TASK_PREV_SUM_EXEC", "task_struct", &["se", "prev_sum_exec_runtime"])?,
            field("TASK_POLICY", "task_struct", &["policy"])?,
            field("TASK_PRIO", "task_struct", &["prio"])?,
            field("TASK_CGROUPS", "task_struct", &["cgroups"])?,
            field("CSS_SET_DFL_CGRP", "css_set", &["dfl_cgrp"])?,
            field("CSS_CGROUP", "cgroup_subsys_state", &["cgroup"])?,
            field("CGROUP_LEVEL", "cgroup", &["level"])?,
            field("CGROUP_KN", "cgroup", &["kn"])?,
            field("KERNFS_ID", "kernfs_node", &["id"])?,
        ];
        // Zero switches the counting of waits and switches off.
        all.push(("TASK_RUN_DELAY", btf.field("task_struct", &["sched_info", "run_delay"]).unwrap_or(0)));
        let state = btf.field("task_struct", &["__state"]).or_else(|_| btf.field("task_struct", &["state"]));
        all.push(("TASK_STATE", state?));
        // Zero switches the v1 lookup off: a kernel without the cpu controller has no v1 cpu cgroups either.
        let v1 = match btf.enumerator("cgroup_subsys_id", "cpu_cgrp_id") {
            Some(index) => btf.field("css_set", &["subsys"])? + u64::from(index) * size_of::<usize>() as u64,
            None => 0,
        };
        all.push(("CSS_SET_CPU", v1));
        Ok(Self(all))
    }
}

/// Before 5.11 maps are charged to RLIMIT_MEMLOCK, whose default is far too small; a failure shows when a map is made.
fn raise_memlock() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is a valid rlimit that outlives the call.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

/// The state behind an error of aya, with the whole chain of causes on one line.
fn refused(what: &str, error: &(dyn std::error::Error + 'static)) -> Unavailable {
    let mut chain = Vec::new();
    let mut denied = false;
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            denied |= io.kind() == io::ErrorKind::PermissionDenied;
        }
        // The verifier's log is pages long; its first line names the complaint.
        let text = cause.to_string();
        let line = text.lines().next().unwrap_or_default().to_owned();
        if chain.last() != Some(&line) {
            chain.push(line);
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
