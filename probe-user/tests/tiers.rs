//! The tiers of CPU time against the kernel's own figures: what one does to the truth, the others
//! must do too.

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
    cpu::{self, CgroupKey, Events, Places, Reader, Reading, RunTime, Switch, Tier, hierarchy},
    state::Reason,
    topology::Topology,
};
use support::{Page, Probe, ebpf, ebpf_and_docker, fixture};
use testkit::{
    cgroup::{self, Cgroup, usage_us, wait_for_usage},
    eventually,
    fixture::unique,
    lock::{Resource, hold},
    or_skip,
    program::{Burner, die_with_us},
    requires, skip, sleep,
    wait::Deadline,
};

fn places() -> Places {
    Places { cgroupfs: "/sys/fs/cgroup".into(), procfs: "/proc".into() }
}

fn key(cgroup: &Cgroup) -> CgroupKey {
    use std::os::unix::fs::MetadataExt as _;
    CgroupKey { id: fs::metadata(&cgroup.dir).unwrap().ino(), hierarchy: hierarchy::V2 }
}

fn cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// Every tier that this kernel has without hardware counters, and the untyped twin, each loaded.
fn readers() -> Vec<(&'static str, Box<dyn Reader>)> {
    let topology = Topology::read("/sys".as_ref());
    let twin = Switch::load_with(Ok(vec![None; cpus()]), None, false).unwrap();
    let mut all: Vec<(&str, Box<dyn Reader>)> = vec![("the untyped twin", Box::new(twin))];
    for tier in [Tier::Switch, Tier::Kernel, Tier::Files] {
        match cpu::open(tier, &places(), &topology) {
            Ok(reader) => all.push((tier.as_str(), reader)),
            // 6.1 brought the iterator.
            Err(why) if tier == Tier::Kernel && why.reason == Reason::Absent => {
                println!("skipped: tier kernel: {}", why.detail);
            }
            Err(why) => panic!("{tier}: {}", why.detail),
        }
    }
    all
}

fn row(reading: &Reading, key: &CgroupKey) -> Vec<RunTime> {
    reading.rows.iter().find(|(known, _)| known == key).map(|(_, row)| row.clone()).unwrap_or_default()
}

fn ns(reading: &Reading, key: &CgroupKey) -> u64 {
    row(reading, key).iter().map(RunTime::ns).sum()
}

/// One period of the scheduler's tick.
fn scheduler_tick_ns() -> u64 {
    let mut resolution = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: valid and outlives the call.
    assert_eq!(unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut resolution) }, 0);
    u64::try_from(resolution.tv_nsec).unwrap()
}

/// Two hogs that never leave their CPUs, read ten times while they run: no tier is further behind
/// than the kernel's own tick.
#[test]
fn hogs_are_counted_while_they_run_up_to_a_tick_of_their_scheduler() {
    or_skip!(ebpf());
    let cgroup = Cgroup::create(&cgroup::v2().unwrap(), &unique("hogs")).unwrap();
    let mut readers = readers();
    let hogs: Vec<Burner> = (0..2).map(|cpu| Burner::start(cpu % cpus(), &[&cgroup]).unwrap()).collect();
    let truth = || hogs.iter().map(|hog| nanoseconds(hog.cpu_time())).sum::<u64>();
    // What they ran before they were in the cgroup.
    cgroup.freeze().unwrap();
    let before_entry = truth() - cgroup.usage_us().unwrap() * 1000;
    cgroup.thaw().unwrap();
    // A slice on each CPU.
    let may = 2 * scheduler_tick_ns();
    let mut worst = vec![0; readers.len()];
    for _ in 0..10 {
        sleep(0.2);
        for ((name, reader), worst) in readers.iter_mut().zip(&mut worst) {
            let mut reading = Reading::default();
            let before = truth() - before_entry;
            reader.read(&mut reading).unwrap();
            let after = truth();
            let read = ns(&reading, &key(&cgroup));
            assert!(read <= after, "{name}: {read} ns of {after}");
            *worst = before.saturating_sub(read).max(*worst);
        }
    }
    for ((name, _), worst) in readers.iter().zip(worst) {
        println!("{name}: at most {:.3} ms behind, may be {:.3} ms", worst as f64 / 1e6, may as f64 / 1e6);
        assert!(worst <= may, "{name}");
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap()
}

/// Held against `cpu.stat`, within a thousandth.
fn assert_within_a_thousandth(what: &str, ours_ns: u64, cgroup: &Path) {
    let kernel = usage_us(cgroup).unwrap() * 1000;
    println!("{what}: {ours_ns} ns, cpu.stat {kernel} ns, {:+.4} %", 100.0 * (ours_ns as f64 / kernel as f64 - 1.0));
    assert!(ours_ns.abs_diff(kernel) <= kernel / 1000, "{what}");
}

/// In a process of its own: two threads that pass a byte to and fro, a million switches.
#[test]
fn ping_pong_helper() {
    if std::env::var_os("WATTCAST_PING_PONG").is_none() {
        return;
    }
    testkit::ping_pong::ping_pong(500_000, 0).unwrap();
}

/// This test binary once more, to run one of its helpers.
fn helper(name: &str, variable: &str, value: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env(variable, value);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    die_with_us(&mut command);
    command
}

#[test]
fn a_million_switches_are_counted_within_a_thousandth() {
    or_skip!(ebpf());
    let cgroup = Cgroup::create(&cgroup::v2().unwrap(), &unique("pipe")).unwrap();
    let mut readers = readers();
    let mut command = helper("ping_pong_helper", "WATTCAST_PING_PONG", "1");
    cgroup.enter(&mut command).unwrap();
    assert!(command.status().unwrap().success());
    for (name, reader) in &mut readers {
        let mut reading = Reading::default();
        reader.read(&mut reading).unwrap();
        let queue = reading.queues.iter().find(|(known, _)| *known == key(&cgroup)).map(|(_, queue)| *queue);
        if let Some(queue) = queue {
            println!("{name}: {} voluntary and {} involuntary switches", queue.voluntary, queue.involuntary);
            // Who is woken may take the CPU from who wakes him: then that one leaves involuntarily.
            assert!(queue.voluntary + queue.involuntary >= 999_000, "{queue:?}");
        }
        assert_within_a_thousandth(name, ns(&reading, &key(&cgroup)), &cgroup.dir);
    }
}

/// Time beside a busy sibling is the same seen from either side, and with all other time it is what
/// the kernel counts.
#[test]
fn time_beside_a_busy_sibling_is_told_apart() {
    requires!(two_cpus);
    or_skip!(ebpf());
    let tree = cgroup::v2().unwrap();
    let [always, half] = ["always", "half"].map(|name| Cgroup::create(&tree, &unique(name)).unwrap());
    // Two CPUs are taken for a core: what counts is who was busy when, not whether they share
    // anything.
    let mut siblings = vec![None; cpus()];
    (siblings[0], siblings[1]) = (Some(1), Some(0));
    let mut reader = Switch::load_with(Ok(siblings), None, true).unwrap();
    assert!(reader.knows().siblings);
    let mut reading = Reading::default();
    // Read as often as the probe at its shortest tick: what no figure tells of a thread that left
    // unseen is told by the next look. Two hogs on two CPUs let the reader wait, so how far apart
    // the looks were is measured.
    let (mut longest, mut last) = (0f64, Instant::now());
    let mut look_until_it_ran = |cgroup: &Cgroup, seconds: u64| {
        let mut deadline = Deadline::after(Duration::from_secs(60));
        while ns(&reading, &key(cgroup)) < seconds * 1_000_000_000 {
            assert!(!deadline.passed(), "{} has not run {seconds} s", cgroup.dir.display());
            sleep(0.1);
            reader.read(&mut reading).unwrap();
            longest = longest.max(last.elapsed().as_secs_f64());
            last = Instant::now();
        }
    };
    let hog = Burner::start(0, &[&always]).unwrap();
    look_until_it_ran(&always, 1);
    let other = Burner::start(1, &[&half]).unwrap();
    look_until_it_ran(&half, 1);
    drop(other);
    reader.read(&mut reading).unwrap();
    let side = |cpu: usize| reading.rows.iter().map(|(_, row)| row[cpu].shared_ns).sum::<u64>() as f64 / 1e9;
    println!(
        "beside each other: {:.4} s seen from CPU 0, {:.4} s from CPU 1, {} switches not seen, looks {longest:.4} s apart at most",
        side(0),
        side(1),
        reading.missed
    );
    // Who leaves a CPU unseen, as some threads do here, and of whom no figure says for how long he
    // ran, leaves it busy up to the next look and no longer: so much may each of them set the two
    // sides apart, and nothing else may.
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let unseen = reading.missed as f64 * longest;
    assert!((side(0) - side(1)).abs() <= 0.05 * side(0) + unseen, "both saw the same");
    let (a, b) = (row(&reading, &key(&always)), row(&reading, &key(&half)));
    let (alone, shared) = (a[0].alone_ns as f64 / 1e9, a[0].shared_ns as f64 / 1e9);
    println!("the hog: {alone:.3} s alone, {shared:.3} s beside the other, which ran {:.3} s", b[1].ns() as f64 / 1e9);
    // Other processes may run here too: all that ran on a CPU is what the hog can have been beside,
    // or been kept off by.
    let ran = |cpu: usize| reading.rows.iter().map(|(_, row)| row[cpu].ns()).sum::<u64>() as f64 / 1e9;
    let others = ran(0) - a[0].ns() as f64 / 1e9;
    assert!(shared <= 1.02 * ran(1) + unseen, "{shared} beside {}", ran(1));
    assert!(shared >= 0.8 * b[1].ns() as f64 / 1e9 - others, "{a:?} {b:?}");
    assert!(b[1].shared_ns >= 8 * b[1].alone_ns, "the hog was always there: {b:?}");
    // Sum and parts: the bracket of the kernel's figure.
    drop(hog);
    reader.read(&mut reading).unwrap();
    assert_within_a_thousandth("both kinds together", ns(&reading, &key(&always)), &always.dir);
}

/// The counters' way into the account, with the kernel's own clocks where the processor's are not
/// shown.
#[test]
fn counters_are_charged_to_whom_they_ran_for() {
    or_skip!(ebpf());
    let tree = cgroup::v2().unwrap();
    let [one, two] = ["one", "two"].map(|name| Cgroup::create(&tree, &unique(name)).unwrap());
    // PERF_TYPE_SOFTWARE: the CPU's clock counts nanoseconds of every task; faults and migrations
    // stand for the other two.
    let all: Vec<usize> = (0..cpus()).collect();
    let events = Events::open(&all, [(1, 0), (1, 2), (1, 4)]).unwrap();
    let mut reader = Switch::load_with(Ok(vec![None; cpus()]), Some(events), true).unwrap();
    assert_eq!(reader.tier(), Tier::Counters);
    // Two on one CPU in turns, so that the counters pass from one to the other and back.
    let burners = [Burner::start(0, &[&one]).unwrap(), Burner::start(0, &[&two]).unwrap()];
    let mut reading = Reading::default();
    let ran = |reading: &Reading, cgroup: &Cgroup| {
        let row = reading.rows.iter().find(|(known, _)| *known == key(cgroup));
        row.map_or(0, |(_, spaces)| spaces[0].ns())
    };
    eventually(60.0, "both ran for more than a second", || {
        reader.read(&mut reading).unwrap();
        [&one, &two].iter().all(|cgroup| ran(&reading, cgroup) > 1_000_000_000)
    });
    drop(burners);
    assert_eq!(reading.counter_time[0], reading.counter_time[1], "software counters always have a place");
    for cgroup in [&one, &two] {
        let at = reading.rows.iter().position(|(known, _)| *known == key(cgroup)).unwrap();
        let (ran, clock) = (reading.rows[at].1[0].ns(), reading.counted[at][0][0]);
        println!("ran {ran} ns, counted {clock} ns of the clock");
        assert!(ran > 1_000_000_000 && clock.abs_diff(ran) <= ran / 50, "{ran} {clock}");
    }
}

/// A slot that is given back while its cgroup still runs, which a probe that sees only a part of
/// the tree would do: nothing of the one is ever the other's.
#[test]
fn a_slot_that_is_given_back_is_nobodys_until_every_cpu_forgot_it() {
    or_skip!(ebpf());
    let tree = cgroup::v2().unwrap();
    let mut reader = Switch::load_with(Ok(vec![None; cpus()]), None, true).unwrap();
    let old = Cgroup::create(&tree, &unique("old")).unwrap();
    let burner_of_old = Burner::start(0, &[&old]).unwrap();
    let (mut reading, mut total, mut given_back, mut compared) = (Reading::default(), 0, 0, 0);
    let run_on = |cgroup: &Cgroup, seconds: f64| {
        let so_far = Duration::from_micros(cgroup.usage_us().unwrap()).as_secs_f64();
        wait_for_usage(&cgroup.dir, so_far + seconds);
    };
    let mut deadline = Deadline::after(Duration::from_secs(120));
    while compared < 20 {
        assert!(!deadline.passed(), "{compared} of {given_back} rounds could be compared");
        run_on(&old, 0.02);
        reader.read(&mut reading).unwrap();
        total += ns(&reading, &key(&old));
        reader.forget(&key(&old));
        let missed = reading.missed;
        // Newcomers at once, each on the same CPU, to get the slot that was just given back.
        let new = Cgroup::create(&tree, &unique("new")).unwrap();
        let burner = Burner::born_in(&new, 0).unwrap();
        run_on(&new, 0.01);
        reader.read(&mut reading).unwrap();
        run_on(&new, 0.01);
        drop(burner);
        reader.read(&mut reading).unwrap();
        let (read, kernel) = (ns(&reading, &key(&new)), new.usage_us().unwrap() * 1000);
        // What a task ran up to a switch that the reader did not see, it does not know.
        if reading.missed == missed {
            let may = kernel / 1000 + 20_000;
            assert!(read.abs_diff(kernel) <= may, "round {given_back}: {read} ns, cpu.stat {kernel}");
            compared += 1;
        }
        total += ns(&reading, &key(&old));
        given_back += 1;
        reader.forget(&key(&old));
        reader.forget(&key(&new));
    }
    // So that the kernel's figure is of the same moment as the reading.
    drop(burner_of_old);
    reader.read(&mut reading).unwrap();
    // What ran between a slot's end and the next look is in no row, and not lost.
    let late = reading.overflow.iter().map(RunTime::ns).sum::<u64>();
    let kernel = old.usage_us().unwrap() * 1000;
    println!("{given_back} times given back, {compared} compared: {total} ns and {late} ns late, cpu.stat {kernel} ns");
    assert!(
        (total + late + ns(&reading, &key(&old))).abs_diff(kernel) <= kernel / 100 + scheduler_tick_ns(),
        "{kernel}"
    );
}

/// Without eBPF the machine is shared as a whole: the labels say so, the account closes, and the
/// bound is wider.
#[test]
fn the_files_tell_no_package_and_say_so() {
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
    // Over seconds, and not of the last tick: the shorter a tick, the more its edges weigh in every
    // tier. Joules and bound by package.
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
    let (blunt, sharp) = (files.fresh(), switch.fresh());
    blunt.assert_closed();
    sharp.assert_closed();
    assert_eq!(labels(&blunt), [("all".to_owned(), "all".to_owned())]);
    assert_eq!(labels(&sharp).len(), 2, "{:?}", labels(&sharp));
    assert!(labels(&sharp).iter().all(|(_, mode)| mode == "alone"), "{:?}", labels(&sharp));
    println!(
        "joules on the two packages: {:?} without knowing where, {:?} with",
        ["0", "1"].map(|p| joules(&blunt, p)),
        ["0", "1"].map(|p| joules(&sharp, p))
    );
    assert!(joules(&sharp, "0") > 5.0 * joules(&sharp, "1"), "it is pinned to the first");
    assert!(joules(&blunt, "1") > 0.2 * joules(&blunt, "0"), "nobody knows that");
    let [blunt, sharp] = [window(&files, starts[0]), window(&switch, starts[1])];
    let ratio = |zones: &[[f64; 2]; 2]| (zones[0][1] + zones[1][1]) / (zones[0][0] + zones[1][0]);
    println!(
        "joules and bounds without {blunt:?}, with {sharp:?}; ratios {:.3} and {:.3}",
        ratio(&blunt),
        ratio(&sharp)
    );
    // Half of what it is given stands on the wrong package: so much more may be wrong, and the
    // bound reaches to where the truth is.
    assert!(ratio(&blunt) > ratio(&sharp) + 0.8);
    for (blunt, sharp) in blunt.iter().zip(&sharp) {
        assert!((blunt[0] - sharp[0]).abs() <= blunt[1] + sharp[1], "{blunt:?} {sharp:?}");
    }
}

/// In a cgroup namespace of its own the root of the tree is the probe's own cgroup: what others run
/// is not seen, and that is said.
#[test]
fn a_tier_that_would_see_only_a_part_of_the_tree_is_absent() {
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

/// So many cgroups come and go at a time.
const CHURN: u32 = 1000;

/// In a process of its own: cgroups that are born, run a moment and die, so many for each line of
/// standard input. A file says how many there were so far.
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

/// They fill the kernel side of every probe on this machine, or compare to a thousandth, for which
/// every switch must reach the tracing programs: beside many other probes some did not
/// (`wattcast_cpu_intervals_missed_total`).
mod whole_machine {
    use super::*;

    /// A thousand programs that each burn 5 ms, two at a time, in a real container: three probes, one
    /// for each way to its CPU time.
    #[test]
    fn a_thousand_children_of_a_container_are_all_counted() {
        let _cpus = hold(Resource::Cpus);
        let engine = or_skip!(ebpf_and_docker());
        // How often a shell must turn for 5 ms.
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
        // Then the first shell is alone, and waits for a line.
        let mut last = 0;
        eventually(240.0, "all children have ended", || {
            let processes = fs::read_to_string(dir.join("cgroup.procs")).unwrap().lines().count();
            let before = std::mem::replace(&mut last, usage_us(&dir).unwrap());
            processes == 1 && before == last && last > 3_000_000
        });
        for (tier, probe) in tiers.iter().zip(&probes) {
            let page = probe.fresh();
            page.assert_closed();
            if *tier == "kernel" && probe.source("cpu").0 == "absent" {
                println!("skipped: tier kernel: {}", probe.source("cpu").1);
                continue;
            }
            assert_eq!(page.all("wattcast_cpu_source_info").next().unwrap().label("tier"), *tier);
            let seconds = page.cpu(&name);
            println!("{} switches not seen", page.get("wattcast_cpu_intervals_missed_total", &[]));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of a test")]
            assert_within_a_thousandth(&format!("tier {tier}, 1000 children"), (seconds * 1e9) as u64, &dir);
        }
    }

    /// Twenty thousand cgroups, a thousand while the probe takes a tick: memory stays, no series is
    /// left, the account closes.
    #[test]
    fn cgroups_that_come_and_go_a_thousand_a_second_leave_nothing_behind() {
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
            // It grows with the ticks, not with the cgroups, and is soon as large as it may be.
            "--window.bytes=65536",
        ]);
        let quiet = probe.fresh();
        let mut command = helper("churn_helper", "WATTCAST_CHURN", parent.dir.to_str().unwrap());
        let mut churn = command.env("WATTCAST_CHURN_COUNT", &so_far).stdin(Stdio::piped()).spawn().unwrap();
        let mut more = churn.stdin.take().unwrap();
        let made = || fs::read_to_string(&so_far).unwrap().parse().unwrap_or(0);
        let resident = |page: &Page| page.get("process_resident_memory_bytes", &[]);
        let mut memory = Vec::new();
        for round in 1..=ROUNDS {
            more.write_all(b"\n").unwrap();
            // In the middle of them, and after them.
            probe.fresh().assert_closed();
            eventually(60.0, "they have come and gone", || made() == round * CHURN);
            let page = probe.fresh();
            page.assert_closed();
            memory.push(resident(&page));
        }
        drop(more);
        assert!(churn.wait().unwrap().success());
        let page = probe.fresh();
        page.assert_closed();
        // What it takes after a third of them is what it takes after all of them.
        let (warm, last) = (memory[memory.len() / 3], resident(&page));
        let unnamed = page.get("wattcast_cgroups_unnamed_total", &[]);
        println!(
            "{} cgroups; resident {:.1} MB quiet, {:.1} MB after a third, {:.1} MB after all; \
             overflow {:.6} s, unnamed {unnamed}, without series {}",
            made(),
            resident(&quiet) / 1e6,
            warm / 1e6,
            last / 1e6,
            page.get("wattcast_cpu_overflow_seconds_total", &[]),
            page.get("wattcast_series_dropped_total", &[]),
        );
        assert!(last <= 1.1 * warm + 1e6, "memory grew from {warm} to {last} bytes");
        assert!(unnamed >= f64::from(ROUNDS * CHURN / 2), "who came and went is counted: {unnamed}");

        // There is room for newcomers, and what the short lives ran is somewhere.
        let name = unique("after");
        let after = Cgroup::create(&cgroup::v2().unwrap(), &name).unwrap();
        let _burner = Burner::start(0, &[&after]).unwrap();
        eventually(30.0, "a newcomer is named", || probe.fresh().cpu(&name) > 0.5);
        let left = |page: &Page| {
            let rows = page.all("wattcast_container_cpu_seconds_total");
            rows.filter(|row| row.label("container").starts_with(&parent_name)).count()
        };
        eventually(30.0, "no series of theirs is left", || left(&probe.fresh()) == 0);
        probe.fresh().assert_closed();
    }
}
