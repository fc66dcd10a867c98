//! A snapshot as metric families.
//!
//! The conservation error is computed here, from the rows of this page as they will be rendered, against the measured
//! counters of the same page: a row that is lost, doubled or rounded on its way out shows in it.

use std::collections::BTreeMap;

use exporter::{
    family::{Buckets, Family},
    page::{self, Page, Writer},
    program, refused,
};

use crate::{
    containers::Container,
    cpu::{Queue, Tier, WAIT_NS},
    energy::zone::ZoneKind,
    gpu::engines::Engine,
    ledger::streams::{Place, StreamId},
    metrics as m,
    snapshot::Snapshot,
    units::Microjoules,
    window::{self, package_label},
};

/// The page. `compat` adds the names of the exporters we replace.
///
/// # Errors
/// When a family cannot be encoded.
pub fn page(snapshot: &Snapshot, compat: bool) -> Result<Page, page::Error> {
    let mut writer = measured(snapshot)?;
    writer.write("probe", own(snapshot))?;
    if compat {
        writer.write("energy", seed(snapshot))?;
    }
    writer.write("probe", [program::build_info(), refused::family()])?;
    writer.write("probe", exporter::process::families())?;
    Ok(writer.finish())
}

/// What a recording says, and nothing of the program that reads it: the same bytes every time.
///
/// # Errors
/// When a family cannot be encoded.
pub fn account(snapshot: &Snapshot) -> Result<Page, page::Error> {
    Ok(measured(snapshot)?.finish())
}

fn measured(snapshot: &Snapshot) -> Result<Writer, page::Error> {
    let mut writer = Writer::default();
    writer.write("energy", energy(snapshot))?;
    writer.write("cpu", cpu(snapshot))?;
    writer.write("ffmpeg", streams(snapshot))?;
    Ok(writer)
}

fn energy(snapshot: &Snapshot) -> Vec<Family> {
    let mut energy = Family::new(&m::ENERGY);
    let mut power = Family::new(&m::POWER);
    for zone in &snapshot.zones {
        let labels = [&*zone.id.package_label(), zone.id.kind.as_str(), zone.origin.as_str()];
        energy.push(&labels, zone.total.joules());
        if let Some(watts) = zone.watts {
            power.push(&labels, watts);
        }
    }

    let [mut containers, mut idle_shares, mut system, mut idle, mut unattributed, mut retired] =
        [&m::CONTAINER_ENERGY, &m::CONTAINER_IDLE, &m::SYSTEM, &m::IDLE, &m::UNATTRIBUTED, &m::RETIRED]
            .map(Family::new);
    for account in &snapshot.accounts {
        let (package, zone) = (account.id.zone.package_label(), account.id.zone.kind.as_str());
        let labels = [&*package, zone, account.id.origin.as_str()];
        for (family, shares) in [(&mut containers, &account.containers), (&mut idle_shares, &account.idle_shares)] {
            for (who, joules) in shares {
                let labels = [&*who.name, &who.id, &who.image, who.runtime, labels[0], labels[1], labels[2]];
                family.push_more(&labels, &who.of_pod(), joules.joules());
            }
        }
        system.push(&labels, account.system.joules());
        idle.push(&labels, account.idle.joules());
        unattributed.push(&labels, account.unattributed.joules());
        retired.push(&labels, account.retired.joules());
    }
    let (mut idle_power, mut interval) = (Family::new(&m::IDLE_POWER), Family::new(&m::IDLE_INTERVAL));
    for row in &snapshot.idle {
        let (package, zone) = (row.id.package_label(), row.id.kind.as_str());
        let watts = |uw: u64| Microjoules(uw).joules();
        idle_power.push(&[&package, zone], watts(row.estimate.uw));
        if row.calibrated {
            interval.push(&[&package, zone, "lower"], watts(row.estimate.low_uw));
            interval.push(&[&package, zone, "upper"], watts(row.estimate.high_uw));
        }
    }
    let mut distribution = Family::new(&m::DISTRIBUTION);
    for (zone, origin, buckets) in &snapshot.power {
        distribution.push_buckets(&[&zone.package_label(), origin.as_str()], buckets);
    }
    let mut uncertainty = Family::new(&m::UNCERTAINTY);
    let mut container_power = Family::new(&m::CONTAINER_POWER);
    for row in &snapshot.containers {
        let who = &row.container;
        for (zone, origin, watts) in &row.watts {
            let labels = [&*who.name, &who.id, &who.image, who.runtime, zone, origin.as_str()];
            container_power.push_more(&labels, &who.of_pod(), *watts);
        }
        if let Some(ratio) = row.uncertainty {
            uncertainty.push(&[&who.name, &who.id], ratio);
        }
    }
    let mut rejects = Family::new(&m::REJECTS);
    for (zone, reason, count) in &snapshot.rejects {
        rejects.push(&[&zone.package_label(), zone.kind.as_str(), reason.as_str()], float(*count));
    }
    let (mut engine_seconds, mut engine_weight) = (Family::new(&m::ENGINE_SECONDS), Family::new(&m::ENGINE_WEIGHT));
    for (who, gpu, times) in &snapshot.engine_times {
        for (engine, ns) in Engine::ALL.into_iter().zip(times).filter(|(_, ns)| **ns > 0) {
            engine_seconds.push(&[&who.name, &who.id, &gpu.to_string(), engine.as_str()], cpu_seconds(*ns));
        }
    }
    let gpus = snapshot.zones.iter().any(|zone| matches!(zone.id.kind, ZoneKind::Gpu(_)));
    if gpus || !snapshot.engine_times.is_empty() {
        for (engine, milli) in Engine::ALL.into_iter().zip(snapshot.engine_weights.0) {
            engine_weight.push(&[engine.as_str()], float(milli) / 1000.0);
        }
    }
    let parts = [&containers, &idle_shares, &system, &idle, &unattributed, &retired];
    let conservation = conservation(&energy, &parts);
    vec![
        energy,
        power,
        containers,
        idle_shares,
        engine_seconds,
        engine_weight,
        container_power,
        system,
        idle,
        unattributed,
        retired,
        conservation,
        idle_power,
        interval,
        uncertainty,
        distribution,
        rejects,
    ]
}

/// Sums the parts again, row by row, and holds them against the measured counters.
fn conservation(measured: &Family, parts: &[&Family]) -> Family {
    /// Microjoules, and how many of them rounding to doubles can have added or taken.
    #[derive(Default)]
    struct Sum {
        microjoules: i128,
        rounding: i128,
    }
    impl Sum {
        fn add(&mut self, joules: f64, sign: i128) {
            self.microjoules += sign * i128::from(Microjoules::from_joules(joules).0);
            // Half the distance to the next double, once it is more than half a microjoule.
            let ulp = f64::from_bits(joules.to_bits() + 1) - joules;
            if ulp * 1e6 >= 1.0 {
                self.rounding += i128::from(Microjoules::from_joules(ulp).0) + 1;
            }
        }
    }

    let mut sums: BTreeMap<(String, String), Sum> = BTreeMap::new();
    let key = |labels: &[&str]| {
        let zone = labels.len() - 3;
        (labels[zone].to_owned(), labels[zone + 1].to_owned())
    };
    for part in parts {
        for (labels, joules) in part.rows() {
            sums.entry(key(&labels)).or_default().add(joules, 1);
        }
    }
    // What is not divided has no parts: core and uncore lie inside package, psys around it. A root always has its idle row.
    for (labels, joules) in measured.rows() {
        if let Some(sum) = sums.get_mut(&key(&labels)) {
            sum.add(joules, -1);
        }
    }
    let mut family = Family::new(&m::CONSERVATION);
    for ((package, zone), sum) in sums {
        let error = if sum.microjoules.abs() <= sum.rounding { 0 } else { sum.microjoules };
        let magnitude = Microjoules(u64::try_from(error.unsigned_abs()).unwrap_or(u64::MAX)).joules();
        family.push(&[&package, &zone], if error < 0 { -magnitude } else { magnitude });
    }
    family
}

fn cpu(snapshot: &Snapshot) -> Vec<Family> {
    let Some(cpu) = &snapshot.cpu else { return Vec::new() };
    let mut seconds = Family::new(&m::CONTAINER_CPU);
    let mut events = Family::new(&m::CONTAINER_COUNTERS);
    let counts = cpu.tier == Tier::Counters;
    let (mut waits, mut switches) = (Family::new(&m::QUEUE_WAIT), Family::new(&m::SWITCHES));
    for row in &snapshot.containers {
        if let Some(queue) = &row.queue {
            let labels = [&*row.container.name, &row.container.id];
            waits.push_buckets(&labels, &buckets(queue));
            for (kind, count) in [("voluntary", queue.voluntary), ("involuntary", queue.involuntary)] {
                switches.push(&[labels[0], labels[1], kind], float(count));
            }
        }
        for (package, share) in snapshot.packages.iter().zip(&row.cpu) {
            let package = package_label(*package);
            let labels = |last| [&*row.container.name, &*row.container.id, &*package, last];
            let alone = if cpu.knows.siblings { "alone" } else { "all" };
            let pod = row.container.of_pod();
            seconds.push_more(&labels(alone), &pod, cpu_seconds(share.time.alone_ns));
            if cpu.knows.siblings && snapshot.smt {
                seconds.push_more(&labels("shared"), &pod, cpu_seconds(share.time.shared_ns));
            }
            if counts {
                for (event, count) in ["cycles", "instructions", "llc_misses"].into_iter().zip(share.counted) {
                    events.push(&labels(event), float(count));
                }
            }
        }
    }
    let mut chosen = Family::new(&m::CONTAINER_LABEL);
    for who in snapshot.containers.iter().map(|row| &row.container) {
        for (label, value) in &who.labels {
            chosen.push(&[&who.name, &who.id, label, value], 1.0);
        }
    }
    let [wanted, ran] = snapshot.counter_time;
    let mut ratio = Family::new(&m::COUNTER_RATIO);
    if counts && wanted > 0 {
        ratio.push(&[], float(ran) / float(wanted));
    }
    vec![
        seconds,
        events,
        ratio,
        chosen,
        Family::new(&m::SMT_WEIGHT).with(&[], float(snapshot.shared_milli) / 1000.0),
        waits,
        switches,
        Family::new(&m::CPU_INFO).with(&[cpu.tier.as_str(), &cpu.reason], 1.0),
        Family::new(&m::CPU_OVERFLOW).with(&[], cpu_seconds(snapshot.cpu_overflow_ns)),
        Family::new(&m::CPU_MISSED).with(&[], float(snapshot.cpu_intervals_missed)),
        Family::new(&m::UNNAMED).with(&[], float(snapshot.cgroups_unnamed)),
        Family::new(&m::SCANS).with(&[], float(snapshot.scans_incomplete)),
        Family::new(&m::SKEW).with(&[], cpu_seconds(snapshot.skew_ns)),
    ]
}

fn streams(snapshot: &Snapshot) -> Vec<Family> {
    let known: BTreeMap<u32, &Container> =
        snapshot.containers.iter().map(|row| (row.container.number, &*row.container)).collect();
    // A row of its own goes by the stream's name. With a container's series end its streams', which would go by another name without it.
    let place = |id: &StreamId| -> Option<[String; 2]> {
        Some(match id.place {
            Place::Container(number) => {
                known.get(&number).map(|container| [container.name.clone(), container.id.clone()])?
            }
            Place::Own => [id.name.clone(), String::new()],
            Place::Nowhere => Default::default(),
        })
    };
    let mut joules: BTreeMap<[String; 6], Microjoules> = BTreeMap::new();
    for row in &snapshot.streams {
        let Some([container, who]) = place(&row.id) else { continue };
        let (source, by) = (row.origin.as_str().to_owned(), row.id.by.as_str().to_owned());
        let labels = [row.id.name.clone(), container, who, row.id.codec.clone(), source, by];
        *joules.entry(labels).or_default() += row.joules;
    }
    let mut energy = Family::new(&m::STREAM_ENERGY);
    for (labels, joules) in &joules {
        energy.push(&labels.each_ref().map(String::as_str), joules.joules());
    }
    let mut told: BTreeMap<[String; 3], (Vec<String>, u64)> = BTreeMap::new();
    for running in &snapshot.jobs {
        let command = &running.job.command;
        let mut counted: Vec<[String; 3]> = Vec::new();
        for (id, _, at) in &running.streams {
            let Some([container, who]) = place(id) else { continue };
            let key = [id.name.clone(), container, who];
            let output = command.outputs.get(*at).cloned().unwrap_or_default();
            let fps = |milli: u32| format!("{}", f64::from(milli) / 1000.0);
            let row = told.entry(key.clone()).or_default();
            row.0 = vec![
                command.input.clone(),
                output.kind,
                id.codec.clone(),
                output.encoder,
                output.preset,
                output.size.map(|(width, height)| format!("{width}x{height}")).unwrap_or_default(),
                output.millifps.map(fps).unwrap_or_default(),
                output.bitrate.map(|bits| bits.to_string()).unwrap_or_default(),
            ];
            // Two codecs under one name are one job.
            if !counted.contains(&key) {
                row.1 += u64::from(running.ended.is_none());
                counted.push(key);
            }
        }
    }
    let (mut info, mut running) = (Family::new(&m::STREAM_INFO), Family::new(&m::STREAM_RUNNING));
    for (who, (labels, jobs)) in &told {
        let labels: Vec<&str> = who.iter().chain(labels).map(String::as_str).collect();
        info.push(&labels, 1.0);
        running.push(&labels[..3], float(*jobs));
    }
    vec![energy, info, running]
}

fn buckets(queue: &Queue) -> Buckets {
    let mut below = 0u64;
    let cumulative = WAIT_NS
        .iter()
        .zip(queue.waits)
        .map(|(bound, count)| {
            below = below.saturating_add(count);
            (cpu_seconds(*bound), below)
        })
        .collect();
    let count = queue.waits.iter().fold(0, |sum: u64, count| sum.saturating_add(*count));
    Buckets { cumulative, count, sum: cpu_seconds(queue.wait_ns) }
}

/// What the probe says of itself.
fn own(snapshot: &Snapshot) -> Vec<Family> {
    let (mut bpf_seconds, mut bpf_runs) = (Family::new(&m::BPF_SECONDS), Family::new(&m::BPF_RUNS));
    for program in &snapshot.programs {
        bpf_seconds.push(&[program.name], cpu_seconds(program.run_ns));
        bpf_runs.push(&[program.name], float(program.runs));
    }
    let mut energy = Family::new(&m::SELF_ENERGY);
    if let Some((origin, joules)) = &snapshot.own {
        energy.push(&[origin.as_str()], joules.joules());
    }
    let mut up = Family::new(&m::SOURCE_UP);
    for source in &*snapshot.sources {
        match &source.state {
            Ok(()) => up.push(&[source.source, ""], 1.0),
            Err(why) => up.push(&[source.source, why.reason.as_str()], 0.0),
        }
    }
    let (mut duration, mut success) = (Family::new(&m::COLLECTOR_DURATION), Family::new(&m::COLLECTOR_SUCCESS));
    for collector in &snapshot.collectors {
        duration.push(&[collector.name], collector.seconds);
        success.push(&[collector.name], f64::from(u8::from(collector.success)));
    }
    let mut jitter = Family::new(&m::JITTER);
    jitter.push_buckets(&[], &snapshot.jitter);
    let mut tick = Family::new(&m::TICK);
    if let Some(ns) = snapshot.length_ns {
        tick.push(&[], cpu_seconds(ns));
    }
    let reach = window::seconds(snapshot.ring.span_ns());
    vec![
        bpf_seconds,
        bpf_runs,
        energy,
        up,
        duration,
        success,
        tick,
        jitter,
        Family::new(&m::MISSED).with(&[], float(snapshot.ticks_missed)),
        Family::new(&m::WINDOW_REACH).with(&[], reach),
        Family::new(&m::WINDOW_BYTES).with(&[], float(snapshot.ring.bytes() as u64)),
        Family::new(&m::JOBS_DROPPED).with(&[], float(snapshot.jobs_dropped)),
        Family::new(&m::DROPPED).with(&[m::CONTAINER_ENERGY.name], float(snapshot.containers_dropped)),
    ]
}

/// The names of the Go and Python exporters. `package-0` and `package_0` are how they wrote them.
fn seed(snapshot: &Snapshot) -> Vec<Family> {
    let (mut power, mut energy) = (Family::new(&m::RAPL_POWER), Family::new(&m::RAPL_ENERGY));
    let measured: Vec<_> = snapshot.zones.iter().filter(|zone| zone.origin.is_rapl()).collect();
    for zone in &measured {
        let package = match zone.id.package {
            Some(package) => format!("package-{package}"),
            None => "psys".to_owned(),
        };
        let kind = match zone.id.kind {
            ZoneKind::Package => package.replace('-', "_"),
            other => other.as_str().to_owned(),
        };
        energy.push(&[&package, &kind], zone.total.joules());
        if let Some(watts) = zone.watts {
            power.push(&[&package, &kind], watts);
        }
    }
    vec![
        power,
        energy,
        Family::new(&m::RAPL_ZONES).with(&[], float(measured.len() as u64)),
        Family::new(&m::RAPL_AVAILABLE).with(&[], f64::from(u8::from(!measured.is_empty()))),
        Family::new(&m::EXPORTER_INFO).with(&[program::VERSION, "rust"], 1.0),
    ]
}

fn cpu_seconds(ns: u64) -> f64 {
    window::seconds(i64::try_from(ns).unwrap_or(i64::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "a count, for output")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        cpu::{Knows, RunTime, Share},
        tick::Collected,
    };
    use crate::{
        energy::zone::{Origin, ZoneId, ZoneKind},
        ledger::{AccountId, idle::Estimate},
        snapshot::{AccountRow, ContainerRow, IdleRow, ZoneRow},
        topology::PackageId,
    };

    fn container(number: u32) -> Arc<Container> {
        Arc::new(Container {
            number,
            name: format!("c{number}"),
            id: format!("{number:012}"),
            image: "a \"quoted\"\nimage".into(),
            runtime: "docker",
            ..Container::plain(0, String::new(), String::new(), "docker")
        })
    }

    /// A snapshot whose account closes: containers get `shares`, the rest is idle.
    fn snapshot(origin: Origin, shares: &[u64], idle: u64) -> Snapshot {
        let zone = ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package };
        let total = Microjoules(shares.iter().sum::<u64>() + idle);
        let containers: Vec<_> =
            shares.iter().enumerate().map(|(i, uj)| (container(u32::try_from(i).unwrap()), Microjoules(*uj))).collect();
        Snapshot {
            zones: vec![ZoneRow { id: zone, origin, total, watts: Some(12.5) }],
            containers: containers
                .iter()
                .map(|(container, _)| ContainerRow {
                    container: container.clone(),
                    cpu: vec![Share {
                        time: RunTime { alone_ns: 1_500_000_000, shared_ns: 500_000_000 },
                        weight: 0,
                        counted: [3, 2, 1],
                    }],
                    cpu_ratio: Some(0.5),
                    watts: vec![("package", origin, 3.25)],
                    queue: Some(Queue { wait_ns: 1_500_000, waits: [1; 12], voluntary: 7, involuntary: 5 }),
                    uncertainty: Some(0.25),
                })
                .collect(),
            accounts: vec![AccountRow {
                id: AccountId { zone, origin },
                containers,
                retired: Microjoules::ZERO,
                system: Microjoules::ZERO,
                idle: Microjoules(idle),
                idle_shares: vec![],
                unattributed: Microjoules::ZERO,
            }],
            idle: vec![IdleRow { id: zone, estimate: Estimate::exact(1_500_000), calibrated: true }],
            packages: vec![Some(PackageId::whole(0))],
            cpu: Some(Collected {
                tier: Tier::Counters,
                knows: Knows { cpus: true, siblings: true },
                reason: String::new(),
            }),
            smt: true,
            shared_milli: 575,
            counter_time: [4, 3],
            ..Snapshot::default()
        }
    }

    fn page(snapshot: &Snapshot) -> String {
        let page = super::page(snapshot, true).unwrap();
        String::from_utf8(page.text().to_vec()).unwrap()
    }

    fn error(snapshot: &Snapshot) -> f64 {
        let all = energy(snapshot);
        let family = all.iter().find(|family| family.def().name == m::CONSERVATION.name).unwrap();
        let (_, error) = family.rows().next().unwrap();
        error
    }

    #[test]
    fn the_page_is_whole_and_says_where_joules_come_from() {
        let page = page(&snapshot(Origin::Powercap, &[1_000_000, 2_500_000], 500_000));
        assert!(exporter::page::faults(&page).is_empty(), "{:?}", exporter::page::faults(&page));
        for line in [
            "wattcast_energy_joules_total{package=\"0\",source=\"powercap\",zone=\"package\"} 4",
            "wattcast_container_energy_joules_total{container=\"c1\",id=\"000000000001\",image=\"a \\\"quoted\\\"\\nimage\",\
             package=\"0\",runtime=\"docker\",source=\"powercap\",zone=\"package\"} 2.5",
            "wattcast_container_cpu_seconds_total{container=\"c0\",id=\"000000000000\",mode=\"alone\",package=\"0\"} 1.5",
            "wattcast_container_cpu_seconds_total{container=\"c0\",id=\"000000000000\",mode=\"shared\",package=\"0\"} 0.5",
            "wattcast_container_hardware_events_total{container=\"c0\",event=\"instructions\",id=\"000000000000\",package=\"0\"} 2",
            "wattcast_hardware_counters_running_ratio 0.75",
            "wattcast_smt_weight 0.575",
            "wattcast_conservation_error_joules{package=\"0\",zone=\"package\"} 0",
            "rapl_power_watts{package=\"package-0\",zone=\"package_0\"} 12.5",
            "rapl_available 1",
            "wattcast_idle_power_watts{package=\"0\",zone=\"package\"} 1.5",
            "wattcast_idle_power_interval_watts{bound=\"upper\",package=\"0\",zone=\"package\"} 1.5",
            "wattcast_container_runqueue_wait_seconds_bucket{container=\"c0\",id=\"000000000000\",le=\"0.02\"} 9",
            "wattcast_container_runqueue_wait_seconds_bucket{container=\"c0\",id=\"000000000000\",le=\"+Inf\"} 12",
            "wattcast_container_runqueue_wait_seconds_sum{container=\"c0\",id=\"000000000000\"} 0.0015",
            "wattcast_container_context_switches_total{container=\"c0\",id=\"000000000000\",kind=\"involuntary\"} 5",
            "wattcast_energy_uncertainty_ratio{container=\"c0\",id=\"000000000000\"} 0.25",
        ] {
            assert!(sorted(&page).contains(&sorted(line)), "{line}\n{page}");
        }
    }

    /// Label order is not part of the format.
    fn sorted(page: &str) -> String {
        page.lines()
            .map(|line| {
                let Some((name, rest)) = line.split_once('{') else { return format!("{line}\n") };
                let Some((labels, value)) = rest.rsplit_once("} ") else { return format!("{line}\n") };
                let mut labels: Vec<_> = labels.split(',').collect();
                labels.sort_unstable();
                format!("{name}{{{}}} {value}\n", labels.join(","))
            })
            .collect()
    }

    #[test]
    fn a_model_is_never_called_rapl() {
        let page = page(&snapshot(Origin::Model, &[1_000_000], 0));
        assert!(!page.contains("rapl_power_watts") && !page.contains("rapl_energy_joules_total"));
        assert!(page.contains("rapl_available 0"));
    }

    #[test]
    fn a_planted_fault_shows_in_the_conservation_error() {
        let whole = snapshot(Origin::Powercap, &[1_000_000, 2_500_000], 500_000);
        assert_eq!(error(&whole), 0.0);

        let mut lost = whole.clone();
        lost.accounts[0].containers.pop();
        assert_eq!(error(&lost), -2.5);

        let mut doubled = whole.clone();
        let again = doubled.accounts[0].containers[0].clone();
        doubled.accounts[0].containers.push(again);
        assert_eq!(error(&doubled), 1.0);

        let mut shared = whole.clone();
        shared.accounts[0].idle_shares.push((container(0), Microjoules(500_000)));
        assert_eq!(error(&shared), 0.5);
        shared.accounts[0].idle = Microjoules::ZERO;
        assert_eq!(error(&shared), 0.0, "idle that is shared out is not lost");

        let mut one_microjoule = whole;
        one_microjoule.accounts[0].system = Microjoules(1);
        assert_eq!(error(&one_microjoule), 0.000_001);
    }

    proptest! {
        #[test]
        fn a_closed_account_has_no_error_at_any_size(
            shares in proptest::collection::vec(0u64..1 << 56, 0..40),
            idle in 0u64..1 << 56,
        ) {
            prop_assert_eq!(error(&snapshot(Origin::Powercap, &shares, idle)), 0.0);
        }

        #[test]
        fn below_a_megawatt_hour_a_single_microjoule_is_seen(
            shares in proptest::collection::vec(0u64..1 << 46, 1..40),
            idle in 0u64..1 << 46,
        ) {
            let mut faulty = snapshot(Origin::Powercap, &shares, idle);
            faulty.accounts[0].idle += Microjoules(1);
            prop_assert_eq!(error(&faulty), 0.000_001);
        }
    }
}
