//! The usage of a period from the windows of probes, which reach back as far as their memory.

use std::collections::BTreeMap;

use units::Microjoules;

use crate::energy::{
    HostProbe, SourceError,
    database::usage::PeriodUsage,
    probe::WindowResponse,
    usage::{Gap, HostUsage, Slots, WorkloadUsage},
};

/// The usage of the period of `slots` on every probe. A probe that does not have the whole window
/// is an error: a bill without a host is not that of the hosts.
///
/// # Errors
/// The first probe without the window, with its host.
pub fn usage(probes: &[HostProbe], slots: &Slots) -> Result<PeriodUsage, (String, SourceError)> {
    let mut usage = PeriodUsage::default();
    let (start, end) = (seconds(slots.start()), seconds(slots.end()));
    for HostProbe { host, probe } in probes {
        let name = if host.is_empty() { probe.url() } else { host.as_str() };
        let response = probe.window_response(start, end).map_err(|error| (name.to_owned(), error))?;
        usage.hosts.push(host_usage(name, &response, slots));
    }
    Ok(usage)
}

/// The account of one host. The window tells its measured energy and that of containers; the
/// remainder is in one row.
fn host_usage(name: &str, response: &WindowResponse, slots: &Slots) -> HostUsage {
    let period = (slots.start(), slots.end());
    let spread = |microjoules: u64| {
        let mut into = vec![0; slots.count()];
        slots.spread(period, microjoules, &mut into);
        into
    };
    let length = slots.end().abs_diff(slots.start());
    let micro = |joules: f64| Microjoules::from_joules(joules).0;
    let measured = response.accounts.iter().fold(0u64, |sum, root| sum.saturating_add(micro(root.measured_joules)));
    let edge = response.accounts.iter().fold(0u64, |sum, root| sum.saturating_add(micro(root.edge_error_joules)));
    let missing = response.accounts.iter().map(|root| micro(root.missing_seconds)).max().unwrap_or(0).min(length);
    let mut workloads: BTreeMap<&str, WorkloadUsage> = BTreeMap::new();
    for container in &response.containers {
        let energy = container.energy.iter().fold(0u64, |sum, part| sum.saturating_add(micro(part.joules)));
        let mut bounds = container.energy.iter().map(|part| part.uncertainty_joules.map(micro));
        let bound = bounds.try_fold(0u64, |sum, part| Some(sum.saturating_add(part?)));
        // A unit that was started again has two rows.
        let row = workloads.entry(&container.id).or_insert_with(|| WorkloadUsage {
            id: container.id.clone(),
            name: container.container.clone(),
            dynamic: vec![0; slots.count()],
            awake: vec![0; slots.count()],
            idle: vec![0; slots.count()],
            // A window tells the energy of a container, and not for how long it ran.
            sampled_us: None,
            bound: Some(0),
            ..WorkloadUsage::default()
        });
        slots.spread(period, energy, &mut row.dynamic);
        row.bound = row.bound.zip(bound).map(|(sum, more)| sum.saturating_add(more));
        row.sources.extend(container.energy.iter().map(|part| part.source.clone()));
    }
    let gap = Gap { from: slots.start(), to: slots.end(), uncounted_us: missing };
    HostUsage {
        host: name.to_owned(),
        measured: spread(measured),
        system: vec![0; slots.count()],
        idle: vec![0; slots.count()],
        unattributed: vec![0; slots.count()],
        workloads: workloads.into_values().collect(),
        streams: Vec::new(),
        gaps: if missing > 0 { vec![gap] } else { Vec::new() },
        edge,
        sampled_us: length - missing,
        sources: response.accounts.iter().map(|root| root.source.clone()).collect(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a double holds unix time to a quarter microsecond")]
fn seconds(us: i64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remainder_of_a_window_is_not_lost() {
        let body = br#"{"accounts":[{"package":"0","zone":"package","source":"perf","measured_joules":100.000001,"edge_error_joules":0.5,"missing_seconds":2}],
            "containers":[{"container":"web","id":"a","energy":[{"package":"0","zone":"package","source":"perf","joules":40,"edge_error_joules":0,"uncertainty_joules":3}]},
            {"container":"web","id":"a","energy":[{"package":"0","zone":"package","source":"perf","joules":2,"edge_error_joules":0,"uncertainty_joules":1}]}]}"#;
        let response: WindowResponse = serde_json::from_slice(body).unwrap();
        let slots = Slots::new(vec![0, 1_800_000_000, 3_600_000_000]);
        let usage = host_usage("enc-1", &response, &slots);
        assert_eq!((usage.measured.iter().sum::<u64>(), usage.edge), (100_000_001, 500_000));
        assert_eq!(usage.workloads.len(), 1, "two starts of one unit");
        assert_eq!(
            (usage.workloads[0].dynamic.iter().sum::<u64>(), usage.workloads[0].bound),
            (42_000_000, Some(4_000_000))
        );
        assert_eq!(usage.gaps[0].uncounted_us, 2_000_000);
        assert_eq!(usage.workloads[0].sampled_us, None, "a window does not tell how long a container ran");
    }
}
