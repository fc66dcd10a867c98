//! The real eBPF program against real cgroups and real containers, held against the kernel's own figures.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::path::Path;

use support::{Page, Probe, ebpf, ebpf_and_docker};
use testkit::{
    cgroup::{self, Cgroup, usage_us},
    docker::Container,
    program::Burner,
};
use testkit::{
    eventually,
    fixture::unique,
    lock::{Resource, hold},
    or_skip, skip, sleep,
};

/// The probe's CPU seconds of a container at the moment of a tick, and the kernel's figures right before and after it.
/// The two are a bracket; it is taken again until it is narrow beside what is asked of the figure.
fn beside_the_kernel(probe: &Probe, name: &str, dir: &Path) -> (f64, f64, f64) {
    let seconds = |us: u64| f64::from(u32::try_from(us).unwrap()) / 1e6;
    for _ in 0..20 {
        // A mark that follows another tick too closely waits; after this pause it does not.
        sleep(0.12);
        let before = seconds(usage_us(dir).unwrap());
        probe.client.mark().unwrap();
        let after = seconds(usage_us(dir).unwrap());
        let ours = probe.metrics().cpu(name);
        if after - before <= 0.002 * after {
            return (ours, before, after);
        }
    }
    panic!("no mark was answered in time to say what the kernel's figure was");
}

/// The kernel's figure at the tick's own time lies between the two readings; the probe may miss that range by 0.5 %.
fn assert_agrees(when: &str, (ours, before, after): (f64, f64, f64)) {
    println!("{when}: probe {ours:.6} s, kernel {before:.6} to {after:.6} s");
    let truth = ours.clamp(before, after);
    assert!((ours - truth).abs() <= 0.005 * truth, "{when}: {ours} s, kernel {before} to {after} s");
}

/// Seconds that all CPUs were busy since boot, from `/proc/stat`.
fn busy_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let fields: Vec<f64> =
        stat.lines().next().unwrap().split_whitespace().skip(1).map(|f| f.parse().unwrap()).collect();
    // user nice system idle iowait irq softirq, in hundredths.
    (fields[0] + fields[1] + fields[2] + fields[5] + fields[6]) / 100.0
}

/// Two containers burn a core each for 20 s: held against the kernel while they run, and when they rest.
#[test]
fn two_containers_agree_with_the_kernel_running_and_idle() {
    let _cpus = hold(Resource::Cpus);
    let engine = or_skip!(ebpf_and_docker());
    let busy_before = busy_seconds();
    let probe = Probe::start(&[]);
    let burn = |cpu: usize| {
        let name = unique("burn");
        let flags = [&*format!("--cpuset-cpus={cpu}")];
        engine.start(&name, &flags, Path::new("/bin/sh"), &["-c", "while :; do :; done"]).unwrap()
    };
    let cpus = std::thread::available_parallelism().unwrap().get();
    let containers: Vec<Container> = vec![burn(0), burn(1 % cpus)];
    let dirs: Vec<_> = containers.iter().map(|container| container.cgroup().unwrap()).collect();
    for second in [5, 10, 15, 20] {
        sleep(5.0);
        for (container, dir) in containers.iter().zip(&dirs) {
            assert_agrees(&format!("running {second} s"), beside_the_kernel(&probe, &container.name, dir));
        }
        probe.fresh().assert_closed();
    }
    for container in &containers {
        engine.call(&["pause", &container.name]).unwrap();
    }
    sleep(1.5);
    for (container, dir) in containers.iter().zip(&dirs) {
        assert_agrees("idle", beside_the_kernel(&probe, &container.name, dir));
    }
    let account = probe.fresh().assert_closed();
    // What the containers did not get is what the kernel says that others ran, and where nothing else of weight ran
    // it is below the share that the README states.
    let rest = account.system_and_unattributed() / account.dynamic();
    let busy = busy_seconds() - busy_before;
    let own: f64 = dirs.iter().map(|dir| f64::from(u32::try_from(usage_us(dir).unwrap()).unwrap()) / 1e6).sum();
    let others = 1.0 - own / busy;
    println!("system and unattributed: {:.2} % of dynamic energy, others ran {:.2} %", 100.0 * rest, 100.0 * others);
    assert!((rest - others).abs() < 0.05, "{account:?}");
    assert!(rest < 0.15 || others > 0.10, "{account:?}");
    assert!(account.containers() > 0.0);
    for container in &containers {
        engine.call(&["unpause", &container.name]).unwrap();
    }
}

/// One identity on v1, hybrid and v2: named once, billed once, whichever tree a workload lives in.
#[test]
fn a_cgroup_in_either_tree_or_in_both_is_billed_once() {
    let _cpus = hold(Resource::Cpus);
    or_skip!(ebpf());
    let v2 = cgroup::v2().unwrap();
    let Some(v1) = cgroup::v1_cpu() else { skip!("no v1 cpu tree is mounted") };
    let [only_v2, only_v1, both] = ["only-v2", "only-v1", "both"].map(unique);
    let in_v2 = Cgroup::create(&v2, &only_v2).unwrap();
    let in_v1 = Cgroup::create(&v1, &only_v1).unwrap();
    let (both_v2, both_v1) = (Cgroup::create(&v2, &both).unwrap(), Cgroup::create(&v1, &both).unwrap());

    let probe = Probe::start(&[]);
    let start = std::time::Instant::now();
    let burners = [
        Burner::start(0, &[&in_v2]).unwrap(),
        Burner::start(0, &[&in_v1]).unwrap(),
        Burner::start(0, &[&both_v2, &both_v1]).unwrap(),
    ];
    sleep(6.0);
    let page = probe.fresh();
    let wall = start.elapsed().as_secs_f64();

    let named =
        |name: &str| page.all("wattcast_container_cpu_seconds_total").filter(|s| s.label("container") == name).count();
    assert_eq!([&only_v2, &only_v1, &both].map(|name| named(name)), [1, 1, 1], "one package, one row each");
    for name in [&only_v2, &only_v1, &both] {
        let cpu = page.cpu(name);
        println!("{name}: {cpu:.3} s of {wall:.3} s");
        assert!(cpu > 0.2 * wall, "three share one CPU, so each has about a third");
    }
    let sum: f64 = [&only_v2, &only_v1, &both].iter().map(|name| page.cpu(name)).sum();
    assert!(sum <= 1.001 * wall, "billed more than one CPU can give: {sum} s of {wall} s");
    page.assert_closed();
    drop(burners);
    sleep(0.3);
    for (name, cgroup) in [(&only_v2, &in_v2), (&both, &both_v2)] {
        assert_agrees(name, beside_the_kernel(&probe, name, &cgroup.dir));
    }
}

/// A real ffmpeg in a real container: its name, its image, its joules, and what stays of it when it has gone.
#[test]
fn a_transcode_in_a_container_has_a_name_an_image_and_joules() {
    let _cpus = hold(Resource::Cpus);
    let engine = or_skip!(ebpf_and_docker());
    let Some(ffmpeg) = testkit::shell::which("ffmpeg") else { skip!("ffmpeg is not in PATH") };
    let probe = Probe::start(&["--retain.dead=12s"]);
    let name = unique("ffmpeg");
    let container = engine
        .start(
            &name,
            &[],
            &ffmpeg,
            &[
                "-nostdin",
                "-loglevel",
                "error",
                "-re",
                "-f",
                "lavfi",
                "-i",
                "testsrc2=size=640x360:rate=25",
                "-t",
                "4",
                "-c:v",
                "libx264",
                "-f",
                "null",
                "-",
            ],
        )
        .unwrap();
    let id = &container.id[..12];
    let labels = [("container", &*name), ("id", id), ("image", testkit::docker::IMAGE), ("runtime", "docker")];
    let joules = |page: &Page| page.find("wattcast_container_energy_joules_total", &labels);
    eventually(5.0, "the container has joules under its own name", || joules(&probe.fresh()) > Some(0.0));
    let page = probe.metrics();
    assert!(page.all("wattcast_container_energy_joules_total").all(|sample| sample.label("source") == "model"));
    assert_eq!(page.find("wattcast_conservation_error_joules", &[]), Some(0.0));

    // It ends by itself; its total stays for the retention, and then is in the retired row.
    eventually(10.0, "ffmpeg ends", || {
        engine.call(&["ps", "-q", "--filter", &format!("name={name}")]).unwrap().is_empty()
    });
    let total = joules(&probe.fresh()).unwrap();
    sleep(2.0);
    assert_eq!(joules(&probe.fresh()), Some(total), "a dead container's series stand still");
    eventually(30.0, "the container is retired", || joules(&probe.fresh()).is_none());
    let page = probe.fresh();
    page.assert_closed();
    assert!(page.get("wattcast_retired_energy_joules_total", &[]) >= total);
}

/// A program that lives shorter than a tick leaves its CPU time in the account.
#[test]
fn many_short_lives_in_one_cgroup_are_all_counted() {
    let _cpus = hold(Resource::Cpus);
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
    assert_agrees("200 short lives", beside_the_kernel(&probe, &name, &cgroup.dir));
}

/// More cgroups than the kernel side and the series ceiling hold: what falls over is counted, and nothing is lost.
#[test]
fn cgroups_beyond_every_ceiling_are_counted_and_the_account_closes() {
    let _cpus = hold(Resource::Cpus);
    or_skip!(ebpf());
    let tree = cgroup::v2().unwrap();
    let prefix = unique("many");
    let probe = Probe::start(&["--limit.containers=20", "--retain.dead=1s"]);
    let mut all = Vec::new();
    for number in 0..probe_ebpf::MAX_CGROUPS + 50 {
        let cgroup = Cgroup::create(&tree, &format!("{prefix}-{number}")).unwrap();
        let mut command = std::process::Command::new("/bin/true");
        cgroup.enter(&mut command).unwrap();
        assert!(command.status().unwrap().success());
        all.push(cgroup);
    }
    sleep(1.5);
    let page = probe.fresh();
    page.assert_closed();
    assert!(page.get("wattcast_cpu_overflow_seconds_total", &[]) > 0.0);
    assert!(page.all("wattcast_container_energy_joules_total").count() <= 20);
    let dropped = page.get("wattcast_series_dropped_total", &[]);
    assert!(dropped >= 3000.0, "{dropped} containers without series");
    assert!(page.get("wattcast_retired_energy_joules_total", &[]) > 0.0, "their joules are in the retired row");

    // When they have gone, there is room again.
    drop(all);
    let name = unique("after");
    let cgroup = Cgroup::create(&tree, &name).unwrap();
    let _burner = Burner::start(0, &[&cgroup]).unwrap();
    eventually(40.0, "a newcomer is named", || probe.fresh().cpu(&name) > 0.0);
    probe.fresh().assert_closed();
}

/// What the probe holds after its start: nothing that could be abused.
#[test]
fn the_running_probe_has_no_capabilities() {
    or_skip!(ebpf());
    let probe = Probe::start(&[]);
    probe.fresh();
    for task in std::fs::read_dir(format!("/proc/{}/task", probe.program.pid())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(line(set), "0000000000000000", "{set}");
        }
        assert_eq!(line("NoNewPrivs:"), "1");
    }
}

/// Two that want one CPU: what each waited, and how often it was switched out, are the kernel's own figures of the tasks.
#[test]
fn waits_and_switches_are_what_the_kernel_counts_of_the_tasks() {
    let _cpus = hold(Resource::Cpus);
    or_skip!(ebpf());
    let name = unique("queue");
    let cgroup = Cgroup::create(&cgroup::v2().unwrap(), &name).unwrap();
    let probe = Probe::start(&["--energy.source=model"]);
    let burners = [Burner::start(0, &[&cgroup]).unwrap(), Burner::start(0, &[&cgroup]).unwrap()];
    // Seconds of waiting, voluntary and involuntary switches, all tasks; what they were before they entered is small.
    let kernel = || {
        let mut sums = [0.0; 3];
        for burner in &burners {
            let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", burner.pid())).unwrap();
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
    sleep(3.0);
    let ours = |page: &Page| {
        let who = [("container", &*name)];
        let switches = |kind: &str| page.get("wattcast_container_context_switches_total", &[who[0], ("kind", kind)]);
        let wait = page.get("wattcast_container_runqueue_wait_seconds_sum", &who);
        [wait, switches("voluntary"), switches("involuntary")]
    };
    // From one look to the next, so that what the shells did before they were in the cgroup is in neither.
    let kernel_start = kernel();
    let (first, kernel_first) = (ours(&probe.fresh()), kernel());
    sleep(3.0);
    let kernel_before = kernel();
    let page = probe.fresh();
    let kernel_after = kernel();
    let last = ours(&page);
    let grown: Vec<f64> = last.iter().zip(first).map(|(last, first)| last - first).collect();
    println!(
        "{grown:?} s waited, voluntary, involuntary; kernel {kernel_first:?} to {kernel_before:?} and {kernel_after:?}"
    );
    let least = kernel_before[0] - kernel_first[0];
    let most = kernel_after[0] - kernel_start[0];
    assert!(least > 1.0, "they were in each other's way: {least} s");
    // A wait is counted when its stint ends: two turns of a few milliseconds may be under way at either look.
    assert!(grown[0] >= least - 0.05 && grown[0] <= most + 0.05, "{} s waited, kernel {least} to {most} s", grown[0]);
    let (fewest, involuntary) = (kernel_before[2] - kernel_first[2], kernel_after[2] - kernel_start[2]);
    let slack = 0.03 * involuntary + 5.0;
    assert!(
        grown[2] >= fewest - slack && grown[2] <= involuntary + slack,
        "{} switches, kernel {fewest} to {involuntary}",
        grown[2]
    );
    assert!(grown[1] <= 0.1 * involuntary, "hogs do not leave by themselves: {grown:?}");
    let count = page.get("wattcast_container_runqueue_wait_seconds_count", &[("container", &name)]);
    assert_eq!(count, last[1] + last[2], "each stint that ended had waited, be it for no time");
    let buckets =
        page.all("wattcast_container_runqueue_wait_seconds_bucket").filter(|row| row.label("container") == name);
    assert_eq!(buckets.count(), 12);
}

/// The probe says what it costs itself.
#[test]
fn the_probe_states_its_own_cost() {
    let _cpus = hold(Resource::Cpus);
    or_skip!(ebpf());
    let probe = Probe::start(&["--energy.source=model"]);
    sleep(2.2);
    let page = probe.fresh();
    let own = page.get("wattcast_self_energy_joules_total", &[("source", "model")]);
    let system = page.get("wattcast_system_energy_joules_total", &[("source", "model")]);
    assert!(own > 0.0 && own < system, "{own} J of {system} J");
    // As it was, however this ends.
    struct Switch(String);
    const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
    impl Drop for Switch {
        fn drop(&mut self) {
            let _ = std::fs::write(SWITCH, self.0.trim());
        }
    }
    let _before = Switch(std::fs::read_to_string(SWITCH).unwrap());
    std::fs::write(SWITCH, "1").unwrap();
    // So many that one which the hypervisor interrupts is nothing in their mean.
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
