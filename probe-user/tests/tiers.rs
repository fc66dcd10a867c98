//! The tiers of CPU time, compared with the kernel's own counters; all tiers must meet the same
//! limits.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use probe_user::{
    cgroup::{CgroupKey, hierarchy},
    cpu::{self, CpuPaths, CpuReader, CpuReading, PerfCounters, RunTime, SwitchTier, Tier},
    host::{availability::Reason, topology::Topology},
};
use support::{Page, Probe, ebpf, ebpf_and_docker, fixture};
use testkit::{
    cgroup::{self, Cgroup, usage_us, wait_for_usage},
    eventually,
    fixture::unique,
    lock::{Resource, hold},
    or_skip,
    program::{Burner, kill_on_parent_exit},
    requires, skip, sleep,
    wait::Deadline,
};

fn paths() -> CpuPaths {
    CpuPaths { cgroupfs: "/sys/fs/cgroup".into(), procfs: "/proc".into() }
}

fn key(cgroup: &Cgroup) -> CgroupKey {
    use std::os::unix::fs::MetadataExt as _;
    CgroupKey { id: fs::metadata(&cgroup.dir).unwrap().ino(), hierarchy: hierarchy::V2 }
}

fn cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// Every tier that this kernel supports without hardware counters, and the raw tracepoint variant,
/// all loaded at the same time.
fn readers() -> Vec<(&'static str, Box<dyn CpuReader>)> {
    let topology = Topology::read("/sys".as_ref());
    let raw = SwitchTier::load_with(Ok(vec![None; cpus()]), None, false).unwrap();
    let mut all: Vec<(&str, Box<dyn CpuReader>)> = vec![("raw tracepoint variant", Box::new(raw))];
    for tier in [Tier::Switch, Tier::Kernel, Tier::Files] {
        match cpu::open(tier, &paths(), &topology) {
            Ok(reader) => all.push((tier.as_str(), reader)),
            // The iterator exists since 6.1.
            Err(why) if tier == Tier::Kernel && why.reason == Reason::Absent => {
                println!("skipped: tier kernel: {}", why.detail);
            }
            Err(why) => panic!("{tier}: {}", why.detail),
        }
    }
    all
}

fn row(reading: &CpuReading, key: &CgroupKey) -> Vec<RunTime> {
    reading.rows.iter().find(|(known, _)| known == key).map(|(_, row)| row.clone()).unwrap_or_default()
}

fn ns(reading: &CpuReading, key: &CgroupKey) -> u64 {
    row(reading, key).iter().map(RunTime::ns).sum()
}

/// One period of the scheduler's tick.
fn scheduler_tick_ns() -> u64 {
    let mut resolution = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: valid and outlives the call.
    assert_eq!(unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut resolution) }, 0);
    u64::try_from(resolution.tv_nsec).unwrap()
}

/// Two busy loops on two CPUs, read ten times while they run: no tier is further behind than one
/// scheduler tick.
#[test]
fn running_tasks_are_counted_up_to_one_scheduler_tick() {
    or_skip!(ebpf());
    let cgroup = Cgroup::create(&cgroup::v2().unwrap(), &unique("burners")).unwrap();
    let mut readers = readers();
    let burners: Vec<Burner> = (0..2).map(|cpu| Burner::start(cpu % cpus(), &[&cgroup]).unwrap()).collect();
    let truth = || burners.iter().map(|burner| nanoseconds(burner.cpu_time())).sum::<u64>();
    // Their run time before they entered the cgroup.
    cgroup.freeze().unwrap();
    let before_entry = truth() - cgroup.usage_us().unwrap() * 1000;
    cgroup.thaw().unwrap();
    // One scheduler tick on each CPU.
    let allowed = 2 * scheduler_tick_ns();
    let mut worst = vec![0; readers.len()];
    for _ in 0..10 {
        sleep(0.2);
        for ((name, reader), worst) in readers.iter_mut().zip(&mut worst) {
            let mut reading = CpuReading::default();
            let before = truth() - before_entry;
            reader.read(&mut reading).unwrap();
            // The kernel updates the clock of another process at its scheduler tick, or when it
            // stops. Until then a reading that contains the current run is ahead of that clock.
            burners.iter().for_each(Burner::pause);
            sleep(0.02);
            let after = truth();
            burners.iter().for_each(Burner::resume);
            let read = ns(&reading, &key(&cgroup));
            assert!(read <= after, "{name}: {read} ns of {after}");
            *worst = before.saturating_sub(read).max(*worst);
        }
    }
    for ((name, _), worst) in readers.iter().zip(worst) {
        println!("{name}: at most {:.3} ms behind, allowed {:.3} ms", worst as f64 / 1e6, allowed as f64 / 1e6);
        assert!(worst <= allowed, "{name}");
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap()
}

/// Compares with `cpu.stat`; the difference must be within a thousandth.
fn assert_within_a_thousandth(what: &str, ours_ns: u64, cgroup: &Path) {
    let kernel = usage_us(cgroup).unwrap() * 1000;
    println!("{what}: {ours_ns} ns, cpu.stat {kernel} ns, {:+.4} %", 100.0 * (ours_ns as f64 / kernel as f64 - 1.0));
    assert!(ours_ns.abs_diff(kernel) <= kernel / 1000, "{what}");
}

/// Runs in a separate process: two threads exchange a byte, with a million context switches.
#[test]
fn ping_pong_helper() {
    if std::env::var_os("WATTCAST_PING_PONG").is_none() {
        return;
    }
    testkit::ping_pong::ping_pong(500_000, 0).unwrap();
}

/// A command that runs one helper of this test binary.
fn helper(name: &str, variable: &str, value: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env(variable, value);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    kill_on_parent_exit(&mut command);
    command
}

#[test]
fn million_context_switches_are_counted_within_a_thousandth() {
    or_skip!(ebpf());
    let cgroup = Cgroup::create(&cgroup::v2().unwrap(), &unique("pipe")).unwrap();
    let mut readers = readers();
    let mut command = helper("ping_pong_helper", "WATTCAST_PING_PONG", "1");
    cgroup.enter(&mut command).unwrap();
    assert!(command.status().unwrap().success());
    for (name, reader) in &mut readers {
        let mut reading = CpuReading::default();
        reader.read(&mut reading).unwrap();
        let queue = reading.queues.iter().find(|(known, _)| *known == key(&cgroup)).map(|(_, queue)| *queue);
        if let Some(queue) = queue {
            println!("{name}: {} voluntary and {} involuntary switches", queue.voluntary, queue.involuntary);
            // A woken task may preempt the task that woke it, which is then an involuntary switch.
            assert!(queue.voluntary + queue.involuntary >= 999_000, "{queue:?}");
        }
        assert_within_a_thousandth(name, ns(&reading, &key(&cgroup)), &cgroup.dir);
    }
}

/// Time with a busy sibling is the same for both CPUs, and together with the other time it equals
/// the kernel's counter.
#[test]
fn time_with_busy_sibling_is_counted_separately() {
    requires!(two_cpus);
    or_skip!(ebpf());
    let tree = cgroup::v2().unwrap();
    let [always, half] = ["always", "half"].map(|name| Cgroup::create(&tree, &unique(name)).unwrap());
    // Two CPUs are declared siblings; the test needs no shared core, only overlapping busy times.
    let mut siblings = vec![None; cpus()];
    (siblings[0], siblings[1]) = (Some(1), Some(0));
    let mut reader = SwitchTier::load_with(Ok(siblings), None, true).unwrap();
    assert!(reader.capabilities().siblings);
    let mut reading = CpuReading::default();
    // Read as often as the probe does with its shortest tick: missed switches are corrected by the
    // next reading. With both CPUs busy, readings may be late, so the longest interval is measured.
    let (mut longest, mut last) = (0f64, Instant::now());
    let mut read_until_it_ran = |cgroup: &Cgroup, seconds: u64| {
        let mut deadline = Deadline::after(Duration::from_secs(60));
        while ns(&reading, &key(cgroup)) < seconds * 1_000_000_000 {
            assert!(!deadline.passed(), "{} has not run {seconds} s", cgroup.dir.display());
            sleep(0.1);
            reader.read(&mut reading).unwrap();
            longest = longest.max(last.elapsed().as_secs_f64());
            last = Instant::now();
        }
    };
    let burner = Burner::start(0, &[&always]).unwrap();
    read_until_it_ran(&always, 1);
    let other = Burner::start(1, &[&half]).unwrap();
    read_until_it_ran(&half, 1);
    drop(other);
    reader.read(&mut reading).unwrap();
    let side = |cpu: usize| reading.rows.iter().map(|(_, row)| row[cpu].shared_ns).sum::<u64>() as f64 / 1e9;
    println!(
        "both busy: {:.4} s counted by CPU 0, {:.4} s by CPU 1, {} missed switches, readings at most {longest:.4} s apart",
        side(0),
        side(1),
        reading.missed
    );
    // A thread whose switch-out is missed, and whose run time no counter shows, leaves its CPU busy
    // up to the next reading. Only such threads may cause a difference between the two sides, each
    // at most this long.
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let tolerance = reading.missed as f64 * longest;
    assert!((side(0) - side(1)).abs() <= 0.05 * side(0) + tolerance, "both sides count the same");
    let (a, b) = (row(&reading, &key(&always)), row(&reading, &key(&half)));
    let (alone, shared) = (a[0].alone_ns as f64 / 1e9, a[0].shared_ns as f64 / 1e9);
    println!("busy loop: {alone:.3} s alone, {shared:.3} s with the other, which ran {:.3} s", b[1].ns() as f64 / 1e9);
    // Other processes may run on these CPUs too: they can only add to the shared time, or preempt
    // the busy loop.
    let ran = |cpu: usize| reading.rows.iter().map(|(_, row)| row[cpu].ns()).sum::<u64>() as f64 / 1e9;
    let others = ran(0) - a[0].ns() as f64 / 1e9;
    assert!(shared <= 1.02 * ran(1) + tolerance, "{shared} s shared of {} s", ran(1));
    assert!(shared >= 0.8 * b[1].ns() as f64 / 1e9 - others, "{a:?} {b:?}");
    assert!(b[1].shared_ns >= 8 * b[1].alone_ns, "the busy loop always ran: {b:?}");
    // The sum of both parts equals the kernel's counter.
    drop(burner);
    reader.read(&mut reading).unwrap();
    assert_within_a_thousandth("alone and shared", ns(&reading, &key(&always)), &always.dir);
}

/// Charging of perf counters, tested with software events because the processor's counters may not
/// be available.
#[test]
fn counters_are_charged_to_the_running_cgroup() {
    or_skip!(ebpf());
    let tree = cgroup::v2().unwrap();
    let [one, two] = ["one", "two"].map(|name| Cgroup::create(&tree, &unique(name)).unwrap());
    // PERF_TYPE_SOFTWARE: the CPU clock counts nanoseconds of every task; faults and migrations are
    // in the place of the other two counters.
    let all: Vec<usize> = (0..cpus()).collect();
    let events = PerfCounters::open(&all, [(1, 0), (1, 2), (1, 4)]).unwrap();
    let mut reader = SwitchTier::load_with(Ok(vec![None; cpus()]), Some(events), true).unwrap();
    assert_eq!(reader.tier(), Tier::Counters);
    // Two tasks take turns on one CPU, so that the counters switch between the cgroups.
    let burners = [Burner::start(0, &[&one]).unwrap(), Burner::start(0, &[&two]).unwrap()];
    let mut reading = CpuReading::default();
    let ran = |reading: &CpuReading, cgroup: &Cgroup| {
        let row = reading.rows.iter().find(|(known, _)| *known == key(cgroup));
        row.map_or(0, |(_, times)| times[0].ns())
    };
    eventually(60.0, "both ran for more than a second", || {
        reader.read(&mut reading).unwrap();
        [&one, &two].iter().all(|cgroup| ran(&reading, cgroup) > 1_000_000_000)
    });
    drop(burners);
    assert_eq!(reading.counter_time[0], reading.counter_time[1], "software events are never multiplexed");
    for cgroup in [&one, &two] {
        let at = reading.rows.iter().position(|(known, _)| *known == key(cgroup)).unwrap();
        let (ran, clock) = (reading.rows[at].1[0].ns(), reading.counted[at][0][0]);
        println!("ran {ran} ns, counted {clock} ns of the clock");
        assert!(ran > 1_000_000_000 && clock.abs_diff(ran) <= ran / 50, "{ran} {clock}");
    }
}

/// The kernel ends the counters of a CPU that goes offline. Disabled ones stand still in the same
/// way; others are opened, and no event is counted twice or as a huge difference.
#[test]
fn counters_that_ended_are_opened_again() {
    or_skip!(ebpf());
    let cgroup = Cgroup::create(&cgroup::v2().unwrap(), &unique("ended")).unwrap();
    let all: Vec<usize> = (0..cpus()).collect();
    let events = PerfCounters::open(&all, [(1, 0), (1, 2), (1, 4)]).unwrap();
    let descriptors = events.descriptors(0).unwrap();
    let mut reader = SwitchTier::load_with(Ok(vec![None; cpus()]), Some(events), true).unwrap();
    let _burner = Burner::start(0, &[&cgroup]).unwrap();
    let mut reading = CpuReading::default();
    // Run time, and nanoseconds of the clock.
    let counts = |reading: &CpuReading| {
        let at = reading.rows.iter().position(|(known, _)| *known == key(&cgroup));
        at.map_or((0, 0), |at| (reading.rows[at].1[0].ns(), reading.counted[at][0][0]))
    };
    let mut run_on = |until_ns: u64| {
        eventually(60.0, "it ran on", || {
            reader.read(&mut reading).unwrap();
            counts(&reading).0 > until_ns
        });
        (counts(&reading), reading.counter_time)
    };
    run_on(300_000_000);
    for descriptor in descriptors {
        // PERF_EVENT_IOC_DISABLE (include/uapi/linux/perf_event.h).
        // SAFETY: the reader keeps the descriptor open; this request takes a number.
        assert_eq!(unsafe { libc::ioctl(descriptor, 0x2401, 0) }, 0);
    }
    // The first reading finds that they ended after the one before, the second that they stand
    // still.
    let ((ran, _), _) = run_on(0);
    let ((ran, clock), time) = run_on(ran);
    let ((ran_on, clock_on), time_on) = run_on(ran + 500_000_000);
    let (ran, clock) = (ran_on - ran, clock_on - clock);
    println!("ran {ran} ns, counted {clock} ns of the clock");
    assert!(clock.abs_diff(ran) <= ran / 20, "{ran} {clock}");
    assert!(time_on[0] > time[0] && time_on[0] == time_on[1], "{time:?} {time_on:?}");
}

/// A slot is freed while its cgroup still runs, as a probe that sees only a part of the tree would
/// do: values of two cgroups are never mixed.
#[test]
fn freed_slot_is_reused_only_after_all_caches_are_cleared() {
    or_skip!(ebpf());
    let tree = cgroup::v2().unwrap();
    let mut reader = SwitchTier::load_with(Ok(vec![None; cpus()]), None, true).unwrap();
    let old = Cgroup::create(&tree, &unique("old")).unwrap();
    let burner_of_old = Burner::start(0, &[&old]).unwrap();
    let (mut reading, mut total, mut freed, mut compared) = (CpuReading::default(), 0, 0, 0);
    let run_on = |cgroup: &Cgroup, seconds: f64| {
        let so_far = Duration::from_micros(cgroup.usage_us().unwrap()).as_secs_f64();
        wait_for_usage(&cgroup.dir, so_far + seconds);
    };
    let mut deadline = Deadline::after(Duration::from_secs(120));
    while compared < 20 {
        assert!(!deadline.passed(), "{compared} of {freed} rounds could be compared");
        run_on(&old, 0.02);
        reader.read(&mut reading).unwrap();
        total += ns(&reading, &key(&old));
        reader.forget(&key(&old));
        let missed = reading.missed;
        // Create a new cgroup at once, on the same CPU, to get the slot that was just freed.
        let new = Cgroup::create(&tree, &unique("new")).unwrap();
        let burner = Burner::start_in(&new, 0).unwrap();
        run_on(&new, 0.01);
        reader.read(&mut reading).unwrap();
        run_on(&new, 0.01);
        drop(burner);
        reader.read(&mut reading).unwrap();
        let (read, kernel) = (ns(&reading, &key(&new)), new.usage_us().unwrap() * 1000);
        // The reader does not know a task's run time up to a missed switch.
        if reading.missed == missed {
            let allowed = kernel / 1000 + 20_000;
            assert!(read.abs_diff(kernel) <= allowed, "round {freed}: {read} ns, cpu.stat {kernel}");
            compared += 1;
        }
        total += ns(&reading, &key(&old));
        freed += 1;
        reader.forget(&key(&old));
        reader.forget(&key(&new));
    }
    // Stop the task, so that the kernel's counter and the reading belong to the same moment.
    drop(burner_of_old);
    reader.read(&mut reading).unwrap();
    // Run time between the freeing of a slot and the next reading is in no row, but is not lost.
    let late = reading.overflow.iter().map(RunTime::ns).sum::<u64>();
    let kernel = old.usage_us().unwrap() * 1000;
    println!("{freed} times freed, {compared} compared: {total} ns and {late} ns late, cpu.stat {kernel} ns");
    assert!(
        (total + late + ns(&reading, &key(&old))).abs_diff(kernel) <= kernel / 100 + scheduler_tick_ns(),
        "{kernel}"
    );
}

/// Without eBPF the energy of all packages is attributed together: the labels show it, energy is
/// conserved, and the uncertainty is larger.
#[test]
fn tier_files_has_no_packages_and_a_wider_bound() {
    or_skip!(ebpf());
    let sysfs = format!("--path.sysfs={}", fixture("perf-two-sockets").join("sys").display());
    let name = unique("files");
    let cgroup = Cgroup::create(&cgroup::v2().unwrap(), &name).unwrap();
    let [files, switch] = ["files", "switch"].map(|tier| Probe::start(&[&sysfs, &format!("--cpu.tier={tier}")]));
    if files.source("perf").0 != "usable" {
        skip!("perf is not usable: {}", files.source("perf").1);
    }
    let _burner = Burner::start(0, &[&cgroup]).unwrap();
    let starts = [&files, &switch].map(|probe| probe.client.mark().unwrap());
    wait_for_usage(&cgroup.dir, 2.0);
    let labels = |page: &Page| -> Vec<(String, String)> {
        let rows = page.all("wattcast_container_cpu_seconds_total").filter(|row| row.label("container") == name);
        rows.map(|row| (row.label("package").to_owned(), row.label("mode").to_owned())).collect()
    };
    let joules = |page: &Page, package: &str| {
        let labels = [("container", &*name), ("package", package), ("zone", "package")];
        page.find("wattcast_container_energy_joules_total", &labels).unwrap_or(0.0)
    };
    // Joules and uncertainty by package, over several seconds: in a single tick the edges have too
    // much weight in every tier.
    let window = |probe: &Probe, start: f64| {
        let end = probe.client.mark().unwrap();
        let answer = probe.client.json(&format!("/api/v1/window?start={start}&end={end}")).unwrap();
        let own = answer["containers"].as_array().unwrap().iter().find(|container| container["container"] == *name);
        let energy = own.unwrap()["energy"].as_array().unwrap().clone();
        ["0", "1"].map(|package| {
            let zone = energy.iter().find(|zone| zone["package"] == package);
            ["joules", "uncertainty_joules"].map(|key| zone.map_or(0.0, |zone| zone[key].as_f64().unwrap()))
        })
    };
    let (coarse, fine) = (files.fresh(), switch.fresh());
    coarse.assert_conserved();
    fine.assert_conserved();
    assert_eq!(labels(&coarse), [("all".to_owned(), "all".to_owned())]);
    assert_eq!(labels(&fine).len(), 2, "{:?}", labels(&fine));
    assert!(labels(&fine).iter().all(|(_, mode)| mode == "alone"), "{:?}", labels(&fine));
    println!(
        "joules on the two packages: {:?} without CPUs, {:?} with CPUs",
        ["0", "1"].map(|p| joules(&coarse, p)),
        ["0", "1"].map(|p| joules(&fine, p))
    );
    assert!(joules(&fine, "0") > 5.0 * joules(&fine, "1"), "it is pinned to the first package");
    assert!(joules(&coarse, "1") > 0.2 * joules(&coarse, "0"), "tier files does not know the package");
    let [coarse, fine] = [window(&files, starts[0]), window(&switch, starts[1])];
    let ratio = |zones: &[[f64; 2]; 2]| (zones[0][1] + zones[1][1]) / (zones[0][0] + zones[1][0]);
    println!(
        "joules and bounds without CPUs {coarse:?}, with CPUs {fine:?}; ratios {:.3} and {:.3}",
        ratio(&coarse),
        ratio(&fine)
    );
    // Half of its energy is on the wrong package: the uncertainty is correspondingly larger, and
    // the intervals overlap.
    assert!(ratio(&coarse) > ratio(&fine) + 0.8);
    for (coarse, fine) in coarse.iter().zip(&fine) {
        assert!((coarse[0] - fine[0]).abs() <= coarse[1] + fine[1], "{coarse:?} {fine:?}");
    }
}

/// In a private cgroup namespace the root of the tree is the probe's own cgroup: other cgroups are
/// not visible, and the tier reports that.
#[test]
fn tier_is_absent_in_a_private_cgroup_namespace() {
    or_skip!(ebpf());
    let cgroup = Cgroup::create(&cgroup::v2().unwrap(), &unique("namespace")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let script = format!("mount -t cgroup2 none {0} && exec \"$0\" --path.cgroupfs={0} \"$@\"", dir.path().display());
    for (tier, word) in [("kernel", "read_cgroups"), ("files", "private cgroup namespace")] {
        let mut command = Command::new("unshare");
        command.args(["--cgroup", "--mount", "sh", "-c", &script]).arg(support::binary());
        cgroup.enter(&mut command).unwrap();
        let probe = Probe::start_command(&mut command, &["--energy.source=model", &format!("--cpu.tier={tier}")]);
        let (state, detail) = probe.source("cpu");
        assert!(state == "absent" && detail.contains(word), "{tier} is {state}: {detail}");
    }
}

/// Number of cgroups per round.
const CHURN: u32 = 1000;

/// Runs in a separate process: creates cgroups, runs a process in each and removes them, one round
/// for each line of standard input. A file contains their number so far.
#[test]
fn churn_helper() {
    let Some(dir) = std::env::var_os("WATTCAST_CHURN") else { return };
    let so_far = std::env::var_os("WATTCAST_CHURN_COUNT").unwrap();
    let mut made = 0;
    for line in std::io::stdin().lines() {
        line.unwrap();
        for _ in 0..CHURN {
            Cgroup::create(Path::new(&dir), &made.to_string()).unwrap().run_nothing().unwrap();
            made += 1;
        }
        fs::write(&so_far, made.to_string()).unwrap();
    }
}

/// These tests fill the eBPF maps of every probe on this machine, or compare within a thousandth,
/// which requires that every context switch reaches the tracing programs: with many other probes
/// some did not (`wattcast_cpu_intervals_missed_total`).
mod whole_machine {
    use super::*;

    /// A thousand processes with 5 ms of CPU time, two at a time, in a container, with one probe
    /// for each tier.
    #[test]
    fn thousand_children_of_a_container_are_all_counted() {
        let _cpus = hold(Resource::Cpus);
        let engine = or_skip!(ebpf_and_docker());
        // A shell loop of about 5 ms, with a calibrated number of turns.
        let spin = |turns: u64| format!("i=0; while [ $i -lt {turns} ]; do i=$((i+1)); done");
        let (turns, trial) = (50_000, Cgroup::create(&cgroup::v2().unwrap(), &unique("turns")).unwrap());
        let mut shell = Command::new("sh");
        trial.enter(&mut shell).unwrap();
        assert!(shell.args(["-c", &spin(turns)]).status().unwrap().success());
        let turns = turns * 5_000 / trial.usage_us().unwrap().max(1);

        let tiers = ["switch", "kernel", "files"];
        let probes = tiers.map(|tier| Probe::start(&["--energy.source=model", &format!("--cpu.tier={tier}")]));
        let name = unique("children");
        let loops = format!(
            "run() {{ n=0; while [ $n -lt 500 ]; do /bin/sh -c '{}'; n=$((n+1)); done; }}; run & run; wait; read -r _",
            spin(turns)
        );
        let container = engine.start(&name, &["--interactive"], Path::new("/bin/sh"), &["-c", &loops]).unwrap();
        let dir = container.cgroup().unwrap();
        // After that, the first shell is alone and waits for a line.
        let mut last = 0;
        eventually(240.0, "all children have ended", || {
            let processes = fs::read_to_string(dir.join("cgroup.procs")).unwrap().lines().count();
            let before = std::mem::replace(&mut last, usage_us(&dir).unwrap());
            processes == 1 && before == last && last > 3_000_000
        });
        for (tier, probe) in tiers.iter().zip(&probes) {
            let page = probe.fresh();
            page.assert_conserved();
            if *tier == "kernel" && probe.source("cpu").0 == "absent" {
                println!("skipped: tier kernel: {}", probe.source("cpu").1);
                continue;
            }
            assert_eq!(page.all("wattcast_cpu_source_info").next().unwrap().label("tier"), *tier);
            let seconds = page.cpu(&name);
            println!("{} missed switches", page.get("wattcast_cpu_intervals_missed_total", &[]));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of a test")]
            assert_within_a_thousandth(&format!("tier {tier}, 1000 children"), (seconds * 1e9) as u64, &dir);
        }
    }

    /// Twenty thousand cgroups, a thousand per tick: memory use stays constant, no series remains,
    /// energy is conserved.
    #[test]
    fn thousand_short_lived_cgroups_per_second_leave_no_state() {
        const ROUNDS: u32 = 20;
        let _cpus = hold(Resource::Cpus);
        or_skip!(ebpf());
        let parent_name = unique("churn");
        let parent = Cgroup::create(&cgroup::v2().unwrap(), &parent_name).unwrap();
        let logs = tempfile::tempdir().unwrap();
        let so_far = logs.path().join("made");
        fs::write(&so_far, "0").unwrap();
        let probe = Probe::start(&[
            "--energy.source=model",
            "--retain.dead=2s",
            "--limit.containers=64",
            // This buffer grows with the ticks, not with the cgroups, and soon reaches its limit.
            "--window.bytes=65536",
        ]);
        let initial = probe.fresh();
        let mut command = helper("churn_helper", "WATTCAST_CHURN", parent.dir.to_str().unwrap());
        let mut churn = command.env("WATTCAST_CHURN_COUNT", &so_far).stdin(Stdio::piped()).spawn().unwrap();
        let mut more = churn.stdin.take().unwrap();
        let made = || fs::read_to_string(&so_far).unwrap().parse().unwrap_or(0);
        let resident = |page: &Page| page.get("process_resident_memory_bytes", &[]);
        let mut memory = Vec::new();
        for round in 1..=ROUNDS {
            more.write_all(b"\n").unwrap();
            // Once during a round, and once after it.
            probe.fresh().assert_conserved();
            eventually(60.0, "the round is complete", || made() == round * CHURN);
            let page = probe.fresh();
            page.assert_conserved();
            memory.push(resident(&page));
        }
        drop(more);
        assert!(churn.wait().unwrap().success());
        let page = probe.fresh();
        page.assert_conserved();
        // Memory use after all rounds equals that after a third of them.
        let (warm, last) = (memory[memory.len() / 3], resident(&page));
        let unnamed = page.get("wattcast_cgroups_unnamed_total", &[]);
        println!(
            "{} cgroups; resident {:.1} MB at first, {:.1} MB after a third, {:.1} MB after all; \
             overflow {:.6} s, unnamed {unnamed}, without series {}",
            made(),
            resident(&initial) / 1e6,
            warm / 1e6,
            last / 1e6,
            page.get("wattcast_cpu_overflow_seconds_total", &[]),
            page.get("wattcast_series_dropped_total", &[]),
        );
        assert!(last <= 1.1 * warm + 1e6, "memory grew from {warm} to {last} bytes");
        // Each is named by the kernel's event, and has no series because of the limit, or is
        // counted as unnamed.
        let counted = unnamed + page.get("wattcast_series_dropped_total", &[]);
        assert!(counted >= f64::from(ROUNDS * CHURN / 2), "short-lived cgroups are counted: {counted}");

        // Slots are free again, and the run time of the short-lived cgroups is conserved.
        let name = unique("after");
        let after = Cgroup::create(&cgroup::v2().unwrap(), &name).unwrap();
        let _burner = Burner::start(0, &[&after]).unwrap();
        eventually(30.0, "a new cgroup is named", || probe.fresh().cpu(&name) > 0.5);
        let left = |page: &Page| {
            let rows = page.all("wattcast_container_cpu_seconds_total");
            rows.filter(|row| row.label("container").starts_with(&parent_name)).count()
        };
        eventually(30.0, "none of their series remains", || left(&probe.fresh()) == 0);
        probe.fresh().assert_conserved();
    }
}
