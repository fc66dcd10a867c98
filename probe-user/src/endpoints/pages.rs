//! Renders a snapshot as metric families.
//!
//! The conservation error is computed here, from the rows of this page as they will be rendered,
//! against the measured counters of the same page. It therefore includes rows that are lost,
//! duplicated or rounded during rendering.

use std::collections::BTreeMap;

use cli::program;
use http::rejections;
use metrics::{
    family::{Buckets, Family},
    page::{self, Page, Writer},
};
use units::{Microjoules, model_interval::ModelInterval};

use super::stream_stages;
use crate::{
    containers::Container,
    cpu::{RunQueueStats, Tier, WAIT_BOUNDS_NS},
    endpoints::metrics as m,
    energy::zone::ZoneKind,
    gpu::engines::Engine,
    ledger::streams::{StreamContainer, StreamId},
    snapshot::{
        Snapshot,
        history::{self, package_label, seconds_of},
    },
};

/// The page of port 9500. `compat` adds the legacy metric names.
///
/// # Errors
/// When a family cannot be encoded.
pub fn page(snapshot: &Snapshot, compat: bool) -> Result<Page, page::Error> {
    let mut writer = attribution_page(snapshot)?;
    writer.write("energy", reference(snapshot))?;
    writer.write("probe", probe_families(snapshot))?;
    if compat {
        writer.write("energy", legacy(snapshot))?;
    }
    writer.write("probe", [program::build_info(), rejections::family()])?;
    #[cfg(feature = "export")]
    writer.write("probe", export::counters::families())?;
    writer.write("probe", metrics::process::families())?;
    Ok(writer.finish())
}

/// The metrics of a recording without those of the probe itself, so that the output is
/// deterministic.
///
/// # Errors
/// When a family cannot be encoded.
pub fn account(snapshot: &Snapshot) -> Result<Page, page::Error> {
    Ok(attribution_page(snapshot)?.finish())
}

fn attribution_page(snapshot: &Snapshot) -> Result<Writer, page::Error> {
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
    let mut awake_shares = Family::new(&m::CONTAINER_AWAKE);
    for account in &snapshot.accounts {
        let (package, zone) = (account.id.zone.package_label(), account.id.zone.kind.as_str());
        let labels = [&*package, zone, account.id.origin.as_str()];
        for (family, shares) in [
            (&mut containers, &account.containers),
            (&mut idle_shares, &account.idle_shares),
            (&mut awake_shares, &account.awake_shares),
        ] {
            for (c, joules) in shares {
                let labels = [&*c.name, &c.id, &c.image, c.runtime, labels[0], labels[1], labels[2]];
                family.push_with_extra(&labels, &c.pod_labels(), joules.joules());
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
    let mut model = Family::new(&m::MODEL_INTERVAL);
    for (id, interval) in &snapshot.intervals {
        let (package, zone) = (id.package_label(), id.kind.as_str());
        for (load, limits) in [("idle", interval.idle), ("full", interval.full), ("all", interval.energy)] {
            let limits = ModelInterval::from_thousandths(limits).limits();
            for (bound, ratio) in ["lower", "upper"].into_iter().zip(limits) {
                model.push(&[&package, zone, load, bound], ratio);
            }
        }
    }
    let mut distribution = Family::new(&m::DISTRIBUTION);
    for (zone, origin, buckets) in &snapshot.power {
        distribution.push_buckets(&[&zone.package_label(), origin.as_str()], buckets);
    }
    let mut container_power = Family::new(&m::CONTAINER_POWER);
    for row in &snapshot.containers {
        let c = &row.container;
        for (zone, origin, watts) in row.watts.iter() {
            let labels = [&*c.name, &c.id, &c.image, c.runtime, zone, origin.as_str()];
            container_power.push_with_extra(&labels, &c.pod_labels(), *watts);
        }
    }
    let mut rejects = Family::new(&m::REJECTS);
    for (zone, reason, count) in &snapshot.rejects {
        rejects.push(&[&zone.package_label(), zone.kind.as_str(), reason.as_str()], float(*count));
    }
    let (mut engine_seconds, mut engine_weight) = (Family::new(&m::ENGINE_SECONDS), Family::new(&m::ENGINE_WEIGHT));
    for (container, gpu, times) in &snapshot.engine_times {
        for (engine, ns) in Engine::ALL.into_iter().zip(times).filter(|(_, ns)| **ns > 0) {
            let labels = [&*container.name, &container.id, &gpu.to_string(), engine.as_str()];
            engine_seconds.push_with_extra(&labels, &container.pod_labels(), seconds_of(*ns));
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
    let mut families = vec![
        energy,
        power,
        containers,
        idle_shares,
        awake_shares,
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
        model,
    ];
    families.extend(awake(snapshot));
    families.extend(weights(snapshot));
    families.extend(uncertainty(snapshot));
    families.extend([distribution, rejects]);
    families
}

/// What is known of the idle power, the step between sleep and awake, its interval, and the awake
/// time of the packages.
fn awake(snapshot: &Snapshot) -> [Family; 4] {
    let mut states = Family::new(&m::IDLE_STATE);
    for row in &snapshot.idle_states {
        states.push(&[&row.id.package_label(), row.id.kind.as_str(), row.state.as_str()], 1.0);
    }
    let [mut power, mut interval, mut ratio] = [&m::AWAKE_POWER, &m::AWAKE_INTERVAL, &m::AWAKE_RATIO].map(Family::new);
    for row in &snapshot.steps {
        let (package, zone) = (row.id.package_label(), row.id.kind.as_str());
        let watts = |uw: u64| Microjoules(uw).joules();
        power.push(&[&package, zone], watts(row.estimate.uw));
        interval.push(&[&package, zone, "lower"], watts(row.estimate.low_uw));
        interval.push(&[&package, zone, "upper"], watts(row.estimate.high_uw));
    }
    for row in &snapshot.awake {
        ratio.push(&[&package_label(Some(row.package)), row.awake.source.as_str()], row.awake.share);
    }
    [states, power, interval, ratio]
}

/// By what load energy was divided, what a unit of that weight costs, and the error of each weight.
fn weights(snapshot: &Snapshot) -> [Family; 3] {
    let [mut info, mut costs, mut errors] = [&m::WEIGHT_INFO, &m::WEIGHT, &m::WEIGHT_ERROR].map(Family::new);
    for row in &snapshot.weights {
        let (package, zone) = (row.id.package_label(), row.id.kind.as_str());
        info.push(&[&package, zone, row.basis.as_str()], 1.0);
        for (weight, cost) in &row.costs {
            costs.push(&[&package, *weight], *cost);
        }
        for (basis, error) in &row.errors {
            errors.push(&[&package, basis.as_str()], *error);
        }
    }
    [info, costs, errors]
}

/// The uncertainty of the energy of containers, in the last tick and in the last minute.
fn uncertainty(snapshot: &Snapshot) -> [Family; 3] {
    let [mut ratio, mut joules, mut watts] =
        [&m::UNCERTAINTY, &m::UNCERTAINTY_JOULES, &m::UNCERTAINTY_WATTS].map(Family::new);
    for row in &snapshot.containers {
        let (labels, pod) = ([&*row.container.name, &*row.container.id], row.container.pod_labels());
        if let Some(of_tick) = row.uncertainty {
            // More than all of it says no more than that nothing is known.
            ratio.push_with_extra(&[labels[0], labels[1], "1s"], &pod, of_tick.min(1.0));
        }
        if let Some(minute) = row.minute {
            ratio.push_with_extra(&[labels[0], labels[1], "60s"], &pod, minute.ratio());
            joules.push_with_extra(&labels, &pod, minute.bound_uj / 1e6);
            watts.push_with_extra(&labels, &pod, minute.bound_uj * 1e3 / float(minute.ns));
        }
    }
    [ratio, joules, watts]
}

/// Sums up the rendered rows of the parts and compares them with the measured counters.
fn conservation(measured: &Family, parts: &[&Family]) -> Family {
    /// The sum in microjoules, and the largest error that rounding to doubles can have caused.
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

    // By package and zone, in that order: a few rows, which every row of a container looks up.
    let mut sums: Vec<(String, String, Sum)> = Vec::new();
    let key = |labels: &[&str]| labels.len() - 3;
    let place = |sums: &[(String, String, Sum)], labels: &[&str]| {
        let (package, zone) = (labels[key(labels)], labels[key(labels) + 1]);
        sums.binary_search_by(|sum| (sum.0.as_str(), sum.1.as_str()).cmp(&(package, zone)))
    };
    for part in parts {
        for (labels, joules) in part.rows() {
            let at = place(&sums, &labels).unwrap_or_else(|at| {
                let [package, zone] = [0, 1].map(|index| labels[key(&labels) + index].to_owned());
                sums.insert(at, (package, zone, Sum::default()));
                at
            });
            sums[at].2.add(joules, 1);
        }
    }
    // Only root zones have parts; a root always has an idle row. Core and uncore are included in
    // package, package in psys.
    for (labels, joules) in measured.rows() {
        if let Ok(at) = place(&sums, &labels) {
            sums[at].2.add(joules, -1);
        }
    }
    let mut family = Family::new(&m::CONSERVATION);
    for (package, zone, sum) in sums {
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
    let packages: Vec<String> = snapshot.packages.iter().map(|package| package_label(*package)).collect();
    let alone = if cpu.capabilities.siblings { "alone" } else { "all" };
    for row in &snapshot.containers {
        let pod = row.container.pod_labels();
        if let Some(queue) = &row.queue {
            let labels = [&*row.container.name, &row.container.id];
            waits.push_buckets_with_extra(&labels, &pod, &buckets(queue));
            for (kind, count) in [("voluntary", queue.voluntary), ("involuntary", queue.involuntary)] {
                switches.push_with_extra(&[labels[0], labels[1], kind], &pod, float(count));
            }
        }
        for (package, share) in packages.iter().zip(row.cpu.iter()) {
            let labels = |last| [&*row.container.name, &*row.container.id, package.as_str(), last];
            seconds.push_with_extra(&labels(alone), &pod, seconds_of(share.time.alone_ns));
            if cpu.capabilities.siblings && snapshot.smt {
                seconds.push_with_extra(&labels("shared"), &pod, seconds_of(share.time.shared_ns));
            }
            if counts {
                for (event, count) in ["cycles", "instructions", "llc_misses"].into_iter().zip(share.counted) {
                    events.push_with_extra(&labels(event), &pod, float(count));
                }
            }
        }
    }
    let mut container_labels = Family::new(&m::CONTAINER_LABEL);
    for container in snapshot.containers.iter().map(|row| &row.container) {
        for (label, value) in &container.labels {
            let own = [&*container.name, &*container.id, label, value];
            container_labels.push_with_extra(&own, &container.pod_labels(), 1.0);
        }
    }
    let [enabled, running] = snapshot.counter_time;
    let mut ratio = Family::new(&m::COUNTER_RATIO);
    if counts && enabled > 0 {
        ratio.push(&[], float(running) / float(enabled));
    }
    vec![
        seconds,
        events,
        ratio,
        container_labels,
        Family::new(&m::SMT_WEIGHT).with(&[], float(snapshot.shared_milli) / 1000.0),
        waits,
        switches,
        Family::new(&m::CPU_INFO).with(&[cpu.tier.as_str(), &cpu.reason], 1.0),
        Family::new(&m::CPU_OVERFLOW).with(&[], seconds_of(snapshot.cpu_overflow_ns)),
        Family::new(&m::CPU_MISSED).with(&[], float(snapshot.cpu_intervals_missed)),
        Family::new(&m::UNNAMED).with(&[], float(snapshot.cgroups_unnamed)),
        Family::new(&m::SCANS).with(&[], float(snapshot.scans_incomplete)),
        Family::new(&m::SKEW).with(&[], seconds_of(snapshot.skew_ns)),
    ]
}

/// The containers with series, by number.
pub(super) fn containers_by_number(snapshot: &Snapshot) -> BTreeMap<u32, &Container> {
    snapshot.containers.iter().map(|row| (row.container.number, &*row.container)).collect()
}

/// The labels `container` and `id` of a stream; `None` for a stream without series. A job with a
/// row of its own has the stream's name as container. Series of a stream end with those of its
/// container, because their labels would change without it.
pub(super) fn stream_container(containers: &BTreeMap<u32, &Container>, id: &StreamId) -> Option<[String; 2]> {
    Some(match id.container {
        StreamContainer::Number(number) => {
            containers.get(&number).map(|container| [container.name.clone(), container.id.clone()])?
        }
        StreamContainer::Own => [id.name.clone(), String::new()],
        StreamContainer::None => Default::default(),
    })
}

fn streams(snapshot: &Snapshot) -> Vec<Family> {
    let containers = containers_by_number(snapshot);
    let container_labels = |id: &StreamId| stream_container(&containers, id);
    let mut joules: BTreeMap<[String; 6], Microjoules> = BTreeMap::new();
    for row in &snapshot.streams {
        let Some([container, id]) = container_labels(&row.id) else { continue };
        let (source, by) = (row.origin.as_str().to_owned(), row.id.basis.as_str().to_owned());
        let labels = [row.id.name.clone(), container, id, row.id.codec.clone(), source, by];
        *joules.entry(labels).or_default() += row.joules;
    }
    let mut energy = Family::new(&m::STREAM_ENERGY);
    for (labels, joules) in &joules {
        energy.push(&labels.each_ref().map(String::as_str), joules.joules());
    }
    // The labels of the newest job and the number of running jobs, by stream.
    let mut by_stream: BTreeMap<[String; 3], (Vec<String>, u64)> = BTreeMap::new();
    for running in &snapshot.jobs {
        let command = &running.job.command;
        let mut counted: Vec<[String; 3]> = Vec::new();
        for (id, _, at) in &running.streams {
            let Some([container, container_id]) = container_labels(id) else { continue };
            let key = [id.name.clone(), container, container_id];
            let output = command.outputs.get(*at).cloned().unwrap_or_default();
            let fps = |milli: u32| format!("{}", f64::from(milli) / 1000.0);
            let row = by_stream.entry(key.clone()).or_default();
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
            // A job with two codecs for the same stream is counted once.
            if !counted.contains(&key) {
                row.1 += u64::from(running.ended.is_none());
                counted.push(key);
            }
        }
    }
    let (mut info, mut running) = (Family::new(&m::STREAM_INFO), Family::new(&m::STREAM_RUNNING));
    for (stream, (labels, jobs)) in &by_stream {
        let labels: Vec<&str> = stream.iter().chain(labels).map(String::as_str).collect();
        info.push(&labels, 1.0);
        running.push(&labels[..3], float(*jobs));
    }
    let [stage_times, stage_energy] = stream_stages::families(snapshot, container_labels);
    vec![energy, info, running, stage_times, stage_energy]
}

fn reference(snapshot: &Snapshot) -> Vec<Family> {
    let [mut power, mut energy, mut offset, mut slope, mut residual, mut interval] = [
        &m::REFERENCE_POWER,
        &m::REFERENCE_ENERGY,
        &m::REFERENCE_OFFSET,
        &m::REFERENCE_SLOPE,
        &m::REFERENCE_RESIDUAL,
        &m::REFERENCE_INTERVAL,
    ]
    .map(Family::new);
    for row in &snapshot.reference {
        let labels = [&*row.meter, row.source];
        energy.push(&labels, row.energy.joules());
        if let Some(watts) = row.watts {
            power.push(&labels, watts);
        }
        if let Some(comparison) = &row.comparison {
            offset.push(&labels[..1], comparison.offset);
            slope.push(&labels[..1], comparison.slope);
            residual.push(&labels[..1], comparison.residual);
            interval.push(&[labels[0], "lower"], comparison.low);
            interval.push(&[labels[0], "upper"], comparison.high);
        }
    }
    vec![power, energy, offset, slope, residual, interval]
}

fn buckets(queue: &RunQueueStats) -> Buckets {
    let mut below = 0u64;
    let cumulative = WAIT_BOUNDS_NS
        .iter()
        .zip(queue.waits)
        .map(|(bound, count)| {
            below = below.saturating_add(count);
            (seconds_of(*bound), below)
        })
        .collect();
    let count = queue.waits.iter().fold(0, |sum: u64, count| sum.saturating_add(*count));
    Buckets { cumulative, count, sum: seconds_of(queue.wait_ns) }
}

/// Metrics of the probe itself.
fn probe_families(snapshot: &Snapshot) -> Vec<Family> {
    let (mut bpf_seconds, mut bpf_runs) = (Family::new(&m::BPF_SECONDS), Family::new(&m::BPF_RUNS));
    for program in &snapshot.programs {
        bpf_seconds.push(&[program.name], seconds_of(program.run_ns));
        bpf_runs.push(&[program.name], float(program.runs));
    }
    let mut energy = Family::new(&m::SELF_ENERGY);
    for row in &snapshot.own {
        energy.push(&[row.part, row.zone.as_str(), row.origin.as_str()], row.energy.joules());
    }
    let mut wakeups = Family::new(&m::SELF_WAKEUPS);
    if let Some(count) = snapshot.wakeups {
        wakeups.push(&[], float(count));
    }
    let continuity = snapshot.continuity;
    let mut totals_start = Family::new(&m::TOTALS_START);
    if let Some(since) = continuity.since_unix_ns {
        totals_start.push(&[], history::seconds(since));
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
        tick.push(&[], seconds_of(ns));
    }
    let mut calibration = Family::new(&m::CALIBRATION);
    if let Some(at) = snapshot.calibrated_at {
        #[expect(clippy::cast_precision_loss, reason = "seconds of a date, for output")]
        calibration.push(&[], at as f64);
    }
    let reach = history::seconds(snapshot.ring.span_ns());
    vec![
        calibration,
        bpf_seconds,
        bpf_runs,
        energy,
        wakeups,
        totals_start,
        Family::new(&m::TOTALS_RESTARTS).with(&[], float(continuity.restarts)),
        Family::new(&m::TOTALS_GAP).with(&[], seconds_of(continuity.gap_ns)),
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

/// The metrics of the legacy exporters, with their label values `package-0` and `package_0`.
fn legacy(snapshot: &Snapshot) -> Vec<Family> {
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
        cpu::{CpuUsage, RunTime, TierCapabilities},
        tick::CpuTierInfo,
    };
    use crate::{
        energy::zone::{Origin, ZoneId, ZoneKind},
        host::topology::PackageId,
        ledger::{AccountId, idle::Estimate, uncertainty::RecentSum},
        snapshot::{AccountRow, ContainerRow, IdleRow, ZoneRow},
    };

    fn container(number: u32) -> Arc<Container> {
        Arc::new(Container {
            number,
            name: format!("c{number}"),
            id: format!("{number:012}"),
            image: "a \"quoted\"\nimage".into(),
            runtime: "docker",
            ..Container::new(0, String::new(), String::new(), "docker")
        })
    }

    /// A snapshot without conservation error: containers get `shares`, the rest is idle.
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
                    cpu: Arc::new([CpuUsage {
                        time: RunTime { alone_ns: 1_500_000_000, shared_ns: 500_000_000 },
                        weight: 0,
                        counted: [3, 2, 1],
                    }]),
                    cpu_ratio: Some(0.5),
                    watts: Arc::new([("package", origin, 3.25)]),
                    queue: Some(RunQueueStats { wait_ns: 1_500_000, waits: [1; 12], voluntary: 7, involuntary: 5 }),
                    uncertainty: Some(0.25),
                    minute: Some(RecentSum { ns: 60_000_000_000, uj: 2e6, bound_uj: 5e5 }),
                })
                .collect(),
            accounts: vec![AccountRow {
                id: AccountId { zone, origin },
                containers,
                retired: Microjoules::ZERO,
                system: Microjoules::ZERO,
                idle: Microjoules(idle),
                idle_shares: vec![],
                awake_shares: vec![],
                unattributed: Microjoules::ZERO,
            }],
            idle: vec![IdleRow { id: zone, estimate: Estimate::exact(1_500_000), calibrated: true }],
            packages: vec![Some(PackageId::whole(0))],
            cpu: Some(CpuTierInfo {
                tier: Tier::Counters,
                capabilities: TierCapabilities { cpus: true, siblings: true },
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
    fn modelled_energy_states_its_interval() {
        use crate::energy::model::Interval;

        let mut modelled = snapshot(Origin::Model, &[1_000_000], 0);
        assert!(!page(&modelled).contains("wattcast_model_interval_ratio"));
        let interval = Interval { idle: [-280, 640], full: [-220, 300], energy: [-200, 333] };
        modelled.intervals = vec![(modelled.zones[0].id, interval)];
        assert_eq!(modelled.uncertainty_text(&modelled.containers[0]), "90 % interval -20 % … +33 %");
        let page = page(&modelled);
        for (bound, load, ratio) in [("lower", "idle", "0.72"), ("upper", "full", "1.3"), ("upper", "all", "1.333")] {
            let labels = format!("package=\"0\",zone=\"package\",load=\"{load}\",bound=\"{bound}\"");
            assert!(page.contains(&format!("wattcast_model_interval_ratio{{{labels}}} {ratio}\n")), "{page}");
        }
    }

    /// A ratio of about 100 % was shown, which said as much.
    #[test]
    fn uncertainty_is_not_a_ratio_before_idle_power_is_learnt() {
        use crate::{ledger::idle::IdleState, snapshot::IdleStateRow};

        let mut measured = snapshot(Origin::Powercap, &[1_000_000], 0);
        assert_eq!(measured.uncertainty_text(&measured.containers[0]), "± 25.0 %");
        measured.idle_states = vec![IdleStateRow { id: measured.zones[0].id, state: IdleState::Learning }];
        assert_eq!(measured.uncertainty_text(&measured.containers[0]), "idle not learnt yet");
        measured.idle_states[0].id.kind = ZoneKind::Dram;
        assert_eq!(measured.uncertainty_text(&measured.containers[0]), "± 25.0 %", "the bound includes memory");
    }

    #[test]
    fn the_page_is_complete_and_labels_the_energy_source() {
        let page = page(&snapshot(Origin::Powercap, &[1_000_000, 2_500_000], 500_000));
        assert!(metrics::page::faults(&page).is_empty(), "{:?}", metrics::page::faults(&page));
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
            "wattcast_energy_uncertainty_ratio{container=\"c0\",id=\"000000000000\",window=\"1s\"} 0.25",
        ] {
            assert!(sorted(&page).contains(&sorted(line)), "{line}\n{page}");
        }
    }

    /// Sorts the labels, because their order is not part of the format.
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

    /// A container of a pod.
    fn in_pod(number: u32, pod: &str) -> Arc<Container> {
        Arc::new(Container {
            name: format!("c{number}"),
            id: format!("{number:012}"),
            pod: pod.into(),
            namespace: "tv".into(),
            labels: vec![("app".into(), "cam".into())],
            ..Container::new(number, String::new(), String::new(), "containerd")
        })
    }

    /// The waits and events of a pod's containers were without it.
    #[test]
    fn every_row_of_a_container_names_its_pod() {
        let mut of_pod = snapshot(Origin::Powercap, &[1_000_000], 0);
        let container = in_pod(0, "cam-1");
        of_pod.accounts[0].containers[0].0 = container.clone();
        of_pod.containers[0].container = container;
        let page = page(&of_pod);
        let rows: Vec<&str> = page.lines().filter(|line| line.contains("container=\"c0\"")).collect();
        let without: Vec<&&str> =
            rows.iter().filter(|row| !row.contains("pod=\"cam-1\"") || !row.contains("namespace=\"tv\"")).collect();
        assert!(rows.len() > 20 && without.is_empty(), "{without:?}\n{page}");
    }

    #[test]
    fn the_node_is_the_sum_of_its_pods_and_the_rest() {
        let mut node = snapshot(Origin::Powercap, &[1_000_000, 2_500_000, 750_000, 125_000], 500_000);
        // Two containers of one pod, one of another, and one outside of Kubernetes.
        let containers = [in_pod(0, "cam-1"), in_pod(1, "cam-1"), in_pod(2, "cam-2"), container(3)];
        for (row, container) in node.accounts[0].containers.iter_mut().zip(&containers) {
            row.0 = container.clone();
        }
        node.accounts[0].system = Microjoules(375_000);
        node.accounts[0].retired = Microjoules(250_000);
        node.zones[0].total = Microjoules(5_500_000);
        let samples = metrics::parse::parse(&page(&node)).unwrap().samples;
        let of = |name: &str, fits: &dyn Fn(&metrics::parse::Sample) -> bool| -> f64 {
            let rows = samples.iter().filter(|sample| sample.name == name && fits(sample));
            rows.map(|sample| sample.value).sum()
        };
        let in_pods = "wattcast_container_energy_joules_total";
        let pod = |name: &'static str| of(in_pods, &|sample| sample.label("pod") == name);
        assert_eq!([pod("cam-1"), pod("cam-2"), pod("")], [3.5, 0.75, 0.125]);
        let rest = ["system", "idle", "unattributed", "retired"];
        let rest: f64 = rest.iter().map(|part| of(&format!("wattcast_{part}_energy_joules_total"), &|_| true)).sum();
        assert_eq!(pod("cam-1") + pod("cam-2") + pod("") + rest, of("wattcast_energy_joules_total", &|_| true));
        assert_eq!(of("wattcast_conservation_error_joules", &|_| true), 0.0);
    }

    #[test]
    fn modelled_energy_has_no_rapl_metrics() {
        let page = page(&snapshot(Origin::Model, &[1_000_000], 0));
        assert!(!page.contains("rapl_power_watts") && !page.contains("rapl_energy_joules_total"));
        assert!(page.contains("rapl_available 0"));
    }

    #[test]
    fn simulated_energy_is_labelled_and_has_no_rapl_metrics() {
        let simulated = snapshot(Origin::Simulated, &[1_000_000], 0);
        let page = page(&simulated);
        assert!(!page.contains("rapl_power_watts") && !page.contains("rapl_energy_joules_total"));
        assert!(page.contains("rapl_available 0"));
        let line = "wattcast_energy_joules_total{package=\"0\",source=\"simulated\",zone=\"package\"} 1";
        assert!(sorted(&page).contains(&sorted(line)), "{page}");
        assert_eq!(simulated.unmeasured(), simulated.unmeasured_of("powercap"));
        assert_eq!(simulated.unmeasured().len(), 1);
    }

    #[test]
    fn lost_and_duplicated_rows_cause_a_conservation_error() {
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
        assert_eq!(error(&shared), 0.0, "shared idle energy is not lost");

        let mut one_microjoule = whole;
        one_microjoule.accounts[0].system = Microjoules(1);
        assert_eq!(error(&one_microjoule), 0.000_001);
    }

    proptest! {
        #[test]
        fn complete_accounts_have_no_error_at_any_size(
            shares in proptest::collection::vec(0u64..1 << 56, 0..40),
            idle in 0u64..1 << 56,
        ) {
            prop_assert_eq!(error(&snapshot(Origin::Powercap, &shares, idle)), 0.0);
        }

        #[test]
        fn an_error_of_one_microjoule_is_detected_below_1_mwh(
            shares in proptest::collection::vec(0u64..1 << 46, 1..40),
            idle in 0u64..1 << 46,
        ) {
            let mut faulty = snapshot(Origin::Powercap, &shares, idle);
            faulty.accounts[0].idle += Microjoules(1);
            prop_assert_eq!(error(&faulty), 0.000_001);
        }
    }
}
