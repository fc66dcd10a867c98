//! The eBPF programs with real cgroups and containers, compared with the kernel's own counters.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use support::{Page, Probe, ebpf, ebpf_and_docker};
use testkit::{
    cgroup::{self, Cgroup, busy_seconds, usage_us, wait_for_usage},
    docker::Container,
    eventually,
    fixture::unique,
    lock::{Resource, hold},
    or_skip,
    program::Burner,
    requires, skip, sleep,
    wait::eventually_ok,
};

/// The probe's CPU seconds of a container, and the kernel's counter just before and after the
/// probe's tick. The reading is repeated until these two values are close enough for the required
/// precision.
fn compare_with_kernel(probe: &Probe, name: &str, dir: &Path) -> (f64, f64, f64) {
    eventually_ok(60.0, "a tick takes less than 0.2 % of the cgroup's CPU time", || {
        // A mark soon after another tick waits; after this pause it does not.
        sleep(0.12);
        let before = used(dir);
        let page = probe.fresh();
        let after = used(dir);
        if after - before <= 0.002 * after { Ok((page.cpu(name), before, after)) } else { Err(after - before) }
    })
}

/// The kernel's CPU seconds of a cgroup.
fn used(dir: &Path) -> f64 {
    std::time::Duration::from_micros(usage_us(dir).unwrap()).as_secs_f64()
}

/// The kernel's value at the time of the tick is between the two readings; the probe may deviate
/// from that range by 0.5 %.
fn assert_agrees(when: &str, (ours, before, after): (f64, f64, f64)) {
    println!("{when}: probe {ours:.6} s, kernel {before:.6} to {after:.6} s");
    let truth = ours.clamp(before, after);
    assert!((ours - truth).abs() <= 0.005 * truth, "{when}: {ours} s, kernel {before} to {after} s");
}

/// Energy of all packages: that of these containers, and all dynamic energy.
fn joules(page: &Page, containers: &[Container]) -> [f64; 2] {
    let sum = |name: &str, counts: &dyn Fn(&str) -> bool| -> f64 {
        let rows = page.all(name).filter(|row| row.label("zone") == "package" && counts(row.label("container")));
        rows.map(|row| row.value).sum()
    };
    let ours = |name: &str| containers.iter().any(|container| container.name == name);
    let [measured, idle] = ["wattcast_energy_joules_total", "wattcast_idle_energy_joules_total"];
    [sum("wattcast_container_energy_joules_total", &ours), sum(measured, &|_| true) - sum(idle, &|_| true)]
}

/// Two containers with a busy loop each, compared with the kernel while they run and when paused.
#[test]
fn two_containers_agree_with_kernel_running_and_idle() {
    let engine = or_skip!(ebpf_and_docker());
    let probe = Probe::start(&[]);
    let cpus = std::thread::available_parallelism().unwrap().get();
    let containers = [0, 1 % cpus].map(|cpu| {
        let flags = [&*format!("--cpuset-cpus={cpu}")];
        engine.start(&unique("burn"), &flags, Path::new("/bin/sh"), &["-c", "while :; do :; done"]).unwrap()
    });
    let dirs: [PathBuf; 2] = containers.each_ref().map(|container| container.cgroup().unwrap());
    let own_seconds = || dirs.iter().map(|dir| used(dir)).sum::<f64>();
    eventually(60.0, "Docker has returned their names", || {
        let page = probe.fresh();
        containers.iter().all(|container| page.cpu(&container.name) > 0.0)
    });
    let ([own_before, all_before], busy_before, cpu_before) =
        (joules(&probe.fresh(), &containers), busy_seconds(), own_seconds());
    for seconds in [2.0, 3.0, 4.0] {
        for (container, dir) in containers.iter().zip(&dirs) {
            wait_for_usage(dir, seconds);
            assert_agrees(&format!("after {seconds} s"), compare_with_kernel(&probe, &container.name, dir));
        }
        probe.fresh().assert_conserved();
    }
    // Their part of the dynamic energy equals their part of the CPU time that the kernel counts.
    let ([own, all], busy, cpu) = (joules(&probe.fresh(), &containers), busy_seconds(), own_seconds());
    let rest = 1.0 - (own - own_before) / (all - all_before);
    let others = 1.0 - (cpu - cpu_before) / (busy - busy_before);
    println!("of others: {:.2} % of dynamic energy, {:.2} % of CPU time", 100.0 * rest, 100.0 * others);
    assert!((rest - others).abs() < 0.05, "{rest} {others}");
    // Without other load it is below the limit that the README states.
    assert!(rest < 0.15 || others > 0.10, "{rest} {others}");
    assert!(own > own_before);

    for container in &containers {
        container.pause();
    }
    for (container, dir) in containers.iter().zip(&dirs) {
        assert_agrees("idle", compare_with_kernel(&probe, &container.name, dir));
    }
    probe.fresh().assert_conserved();
}

/// One identity on v1, hybrid and v2: one name and one charge, whichever tree a workload is in.
#[test]
fn cgroup_in_either_or_both_trees_is_charged_once() {
    or_skip!(ebpf());
    let v2 = cgroup::v2().unwrap();
    let Some(v1) = cgroup::v1_cpu() else { skip!("no v1 cpu tree is mounted") };
    let names = ["only-v2", "only-v1", "both"].map(unique);
    let [only_v2, only_v1, both] = &names;
    let in_v2 = Cgroup::create(&v2, only_v2).unwrap();
    let in_v1 = Cgroup::create(&v1, only_v1).unwrap();
    let (both_v2, both_v1) = (Cgroup::create(&v2, both).unwrap(), Cgroup::create(&v1, both).unwrap());

    let probe = Probe::start(&[]);
    let start = std::time::Instant::now();
    let burners = [
        Burner::start(0, &[&in_v2]).unwrap(),
        Burner::start(0, &[&in_v1]).unwrap(),
        Burner::start(0, &[&both_v2, &both_v1]).unwrap(),
    ];
    let ran = || burners.each_ref().map(|burner| burner.cpu_time().as_secs_f64());
    eventually(60.0, "each has run for a second", || ran().iter().all(|seconds| *seconds > 1.0));
    let (before, page) = (ran(), probe.fresh());
    let wall = start.elapsed().as_secs_f64();
    // The kernel updates the clock of another process at its scheduler tick, or when it stops.
    // Until then a page that contains the current run is ahead of that clock.
    burners.iter().for_each(Burner::pause);
    sleep(0.02);
    let after = ran();
    burners.iter().for_each(Burner::resume);

    let rows = |name: &String| {
        page.all("wattcast_container_cpu_seconds_total").filter(|row| row.label("container") == name).count()
    };
    assert_eq!(names.each_ref().map(rows), [1, 1, 1], "one package, one row each");
    for (at, name) in names.iter().enumerate() {
        let cpu = page.cpu(name);
        println!("{name}: {cpu:.3} s, kernel {:.3} to {:.3} s", before[at], after[at]);
        assert!(cpu >= 0.98 * before[at] && cpu <= after[at], "{name}: {cpu} s, {before:?} to {after:?}");
    }
    let sum: f64 = names.iter().map(|name| page.cpu(name)).sum();
    assert!(sum <= 1.001 * wall, "charged more than one CPU can run: {sum} s of {wall} s");
    page.assert_conserved();
    drop(burners);
    for (name, cgroup) in [(only_v2, &in_v2), (both, &both_v2)] {
        assert_agrees(name, compare_with_kernel(&probe, name, &cgroup.dir));
    }
}

/// ffmpeg in a container: its name, its image, its energy, and its series after it has ended.
#[test]
fn transcode_in_container_has_name_image_and_energy() {
    requires!(ffmpeg);
    let engine = or_skip!(ebpf_and_docker());
    let probe = Probe::start(&["--retain.dead=4s"]);
    let name = unique("ffmpeg");
    let args = "-nostdin -loglevel error -re -f lavfi -i testsrc2=size=640x360:rate=25 -c:v libx264 -f null -";
    let args: Vec<&str> = args.split(' ').collect();
    let container = engine.start(&name, &[], &testkit::shell::which("ffmpeg").unwrap(), &args).unwrap();
    let dir = container.cgroup().unwrap();
    let id = &container.id[..12];
    let labels = [("container", &*name), ("id", id), ("image", testkit::docker::IMAGE), ("runtime", "docker")];
    let joules = |page: &Page| page.find("wattcast_container_energy_joules_total", &labels);
    eventually(60.0, "the container has energy under its name", || joules(&probe.fresh()) > Some(0.0));
    let page = probe.metrics();
    assert!(page.all("wattcast_container_energy_joules_total").all(|sample| sample.label("source") == "model"));
    assert_eq!(page.find("wattcast_conservation_error_joules", &[]), Some(0.0));

    // It ends as after its last frame. Its total stays for the retention time, and is then in the
    // retired row.
    eventually(60.0, "ffmpeg ends", || {
        // The first process of a container ignores the signal until ffmpeg has installed a handler.
        let _ = engine.call(&["kill", "--signal", "INT", &name]);
        !dir.exists()
    });
    let total = joules(&probe.fresh()).unwrap();
    // The probe checks for removed cgroups when a new one appears, or after ten seconds.
    Cgroup::create(&cgroup::v2().unwrap(), &unique("other")).unwrap().run_nothing().unwrap();
    let mut unchanged = 0;
    eventually(60.0, "the container is retired", || {
        let now = joules(&probe.fresh());
        assert!(
            now.is_none_or(|now| now == total),
            "the series of an ended container are constant: {now:?} J, {total} J"
        );
        unchanged += usize::from(now.is_some());
        now.is_none()
    });
    assert!(unchanged >= 2, "its series stay for the retention time");
    let page = probe.fresh();
    page.assert_conserved();
    assert!(page.get("wattcast_retired_energy_joules_total", &[]) >= total);
}

/// Processes shorter than a tick are counted.
#[test]
fn short_processes_in_one_cgroup_are_all_counted() {
    or_skip!(ebpf());
    let name = unique("short");
    let cgroup = Cgroup::create(&cgroup::v2().unwrap(), &name).unwrap();
    let probe = Probe::start(&[]);
    for _ in 0..200 {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done"]);
        cgroup.enter(&mut command).unwrap();
        assert!(command.status().unwrap().success());
    }
    assert_agrees("200 short processes", compare_with_kernel(&probe, &name, &cgroup.dir));
}

/// These tests fill the eBPF maps of every probe on this machine.
mod whole_machine {
    use super::*;

    /// More cgroups than the eBPF maps and the limit of series allow: the excess is counted, and no
    /// energy is lost. At the log level debug, the eBPF programs report it.
    #[test]
    fn cgroups_over_all_limits_are_counted_and_energy_is_conserved() {
        let _cpus = hold(Resource::Cpus);
        or_skip!(ebpf());
        let tree = cgroup::v2().unwrap();
        let prefix = unique("many");
        let probe = Probe::start(&["--limit.containers=20", "--retain.dead=1s"]);
        let logging = Probe::start(&["--limit.containers=20", "--energy.source=model", "--log.level=debug"]);
        let mut all = Vec::new();
        for number in 0..probe_ebpf::MAX_CGROUPS + 50 {
            let cgroup = Cgroup::create(&tree, &format!("{prefix}-{number}")).unwrap();
            cgroup.run_nothing().unwrap();
            all.push(cgroup);
        }
        let dropped = |page: &Page| page.get("wattcast_series_dropped_total", &[]);
        eventually(30.0, "3000 containers are without series", || dropped(&probe.fresh()) >= 3000.0);
        let page = probe.fresh();
        page.assert_conserved();
        assert!(page.get("wattcast_cpu_overflow_seconds_total", &[]) > 0.0);
        assert!(page.all("wattcast_container_energy_joules_total").count() <= 20);
        assert!(page.get("wattcast_retired_energy_joules_total", &[]) > 0.0, "their energy is in the retired row");

        let message = "no slot is free for the cgroup ";
        // Messages beyond the ring's size are lost: another cgroup without a slot is another
        // message.
        let late = format!("{prefix}-late");
        eventually_ok(30.0, "the eBPF programs report the full table", || {
            let cgroup = Cgroup::create(&tree, &late).unwrap();
            cgroup.run_nothing().unwrap();
            drop(cgroup);
            let log = logging.program.log();
            if log.contains(message) { Ok(()) } else { Err(log) }
        });
        let [before, after] = [0.0, 2.0].map(|wait| {
            sleep(wait);
            logging.program.log().matches(message).count()
        });
        assert!(after - before <= 100, "{} lines in two seconds", after - before);
        assert!(!probe.program.log().contains(message), "not at the default level");
        drop(logging);

        // After they are removed, slots are free again.
        drop(all);
        let name = unique("after");
        let cgroup = Cgroup::create(&tree, &name).unwrap();
        let _burner = Burner::start(0, &[&cgroup]).unwrap();
        eventually(60.0, "a new cgroup is named", || probe.fresh().cpu(&name) > 0.0);
        probe.fresh().assert_conserved();
    }
}

/// After its start the probe has no capability that could be abused.
#[test]
fn running_probe_has_no_capabilities() {
    or_skip!(ebpf());
    let probe = Probe::start(&[]);
    probe.fresh();
    for task in fs::read_dir(format!("/proc/{}/task", probe.program.pid())).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(line(set), "0000000000000000", "{set}");
        }
        assert_eq!(line("NoNewPrivs:"), "1");
    }
}

/// Two tasks compete for one CPU: their wait times and context switches equal the kernel's own
/// counters of the tasks.
#[test]
fn waits_and_context_switches_equal_kernel_counters() {
    or_skip!(ebpf());
    let name = unique("queue");
    let cgroup = Cgroup::create(&cgroup::v2().unwrap(), &name).unwrap();
    let probe = Probe::start(&["--energy.source=model"]);
    let burners = [Burner::start(0, &[&cgroup]).unwrap(), Burner::start(0, &[&cgroup]).unwrap()];
    // Seconds of waiting, voluntary and involuntary switches, all tasks.
    let kernel = || {
        let mut sums = [0.0; 3];
        for burner in &burners {
            let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", burner.pid())).unwrap();
            let delay: f64 = read("schedstat").split_whitespace().nth(1).unwrap().parse().unwrap();
            sums[0] += delay / 1e9;
            let status = read("status");
            for (at, field) in [(1, "voluntary_ctxt_switches:"), (2, "nonvoluntary_ctxt_switches:")] {
                let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
                sums[at] += line.trim().parse::<f64>().unwrap();
            }
        }
        sums
    };
    let container = ("container", &*name);
    let ours = |page: &Page| {
        let switches = |kind: &str| page.get("wattcast_container_context_switches_total", &[container, ("kind", kind)]);
        let wait = page.get("wattcast_container_runqueue_wait_seconds_sum", &[container]);
        [wait, switches("voluntary"), switches("involuntary")]
    };
    // The kernel counts a wait when it ends, the probe at the next context switch. While the cgroup
    // is frozen both have counted all waits.
    let frozen = || {
        cgroup.freeze().unwrap();
        let page = probe.fresh();
        let kernel = kernel();
        cgroup.thaw().unwrap();
        (page, kernel)
    };
    eventually(20.0, "the cgroup is known", || probe.fresh().cpu(&name) > 0.0);
    // Compare two frozen states, to exclude what the shells did before they entered the cgroup.
    let (first, kernel_first) = frozen();
    eventually(60.0, "they have waited for a second and were preempted a hundred times", || {
        let now = kernel();
        now[0] - kernel_first[0] > 1.0 && now[2] - kernel_first[2] > 100.0
    });
    let (page, kernel_last) = frozen();
    let (first, last) = (ours(&first), ours(&page));
    let [waited, voluntary, involuntary] = [0, 1, 2].map(|at| last[at] - first[at]);
    let [kernel_waited, kernel_voluntary, kernel_involuntary] = [0, 1, 2].map(|at| kernel_last[at] - kernel_first[at]);
    println!("{waited} s waited, {voluntary} voluntary, {involuntary} involuntary");
    println!("kernel: {kernel_waited} s waited, {kernel_voluntary} voluntary, {kernel_involuntary} involuntary");
    assert!((waited - kernel_waited).abs() <= 0.05, "{waited} s waited, kernel {kernel_waited} s");
    assert!(
        (involuntary - kernel_involuntary).abs() <= 0.03 * kernel_involuntary + 5.0,
        "{involuntary} switches, kernel {kernel_involuntary}"
    );
    assert!(voluntary <= 0.1 * kernel_involuntary, "busy loops do not block: {voluntary}");
    let count = page.get("wattcast_container_runqueue_wait_seconds_count", &[container]);
    assert_eq!(count, last[1] + last[2], "each context switch has a wait, which may be zero");
    let buckets =
        page.all("wattcast_container_runqueue_wait_seconds_bucket").filter(|row| row.label("container") == name);
    assert_eq!(buckets.count(), 12);
}

/// The probe reports its own cost.
#[test]
fn probe_reports_its_own_cost() {
    let _bpf_stats = hold(Resource::BpfStats);
    or_skip!(ebpf());
    let probe = Probe::start(&["--energy.source=model"]);
    let own = |page: &Page, part: &str| {
        page.find("wattcast_self_energy_joules_total", &[("source", "model"), ("part", part)])
    };
    eventually(30.0, "the probe has used energy", || own(&probe.fresh(), "process") > Some(0.0));
    let page = probe.fresh();
    let (process, system) =
        (own(&page, "process").unwrap(), page.get("wattcast_system_energy_joules_total", &[("source", "model")]));
    assert!(process < system, "{process} J of {system} J");
    assert!(page.get("wattcast_self_wakeups_total", &[]) > 0.0);
    // Measured in the first seconds, then estimated every ten seconds.
    eventually(60.0, "its eBPF programs have used energy", || own(&probe.fresh(), "ebpf") > Some(0.0));
    probe.fresh().assert_conserved();
    // Restores the setting however the test ends.
    struct RestoreStats(String);
    const BPF_STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";
    impl Drop for RestoreStats {
        fn drop(&mut self) {
            let _ = fs::write(BPF_STATS, self.0.trim());
        }
    }
    let _before = RestoreStats(fs::read_to_string(BPF_STATS).unwrap());
    fs::write(BPF_STATS, "1").unwrap();
    // Enough runs that one which the hypervisor interrupts does not matter in the mean.
    eventually(60.0, "they have run often enough", || {
        let page = probe.fresh();
        ["sched_switch", "charge_running"]
            .iter()
            .all(|program| page.find("wattcast_bpf_runs_total", &[("program", program)]) > Some(100.0))
    });
    let page = probe.fresh();
    for program in ["sched_switch", "charge_running"] {
        let labels = [("program", program)];
        let runs = page.get("wattcast_bpf_runs_total", &labels);
        let seconds = page.get("wattcast_bpf_run_seconds_total", &labels);
        assert!(runs > 0.0 && seconds > 0.0 && seconds / runs < 0.001, "{program}: {seconds} s in {runs} runs");
    }
}
