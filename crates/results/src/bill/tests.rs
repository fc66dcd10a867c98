//! Bills of synthetic hosts.

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::*;
use crate::cost::tariff::Tariff;

const SLOTS: usize = 2;

fn slots() -> Slots {
    Slots::new((0..=2).map(|hour| 1_793_491_200_000_000 + hour * 3_600_000_000).collect())
}

fn period() -> Period {
    Period::between("2026-11-01", "2026-11-01T02:00:00Z", &TimeZone::UTC).unwrap()
}

fn prices() -> Prices {
    Prices { tariff: Tariff::flat(Decimal::new(36, 2)), currency: "EUR".to_owned(), ..Prices::defaults() }
}

fn workload(name: &str, dynamic: u64, awake: u64, idle: u64) -> WorkloadUsage {
    WorkloadUsage {
        id: format!("id-{name}"),
        name: name.to_owned(),
        dynamic: vec![dynamic; SLOTS],
        awake: vec![awake; SLOTS],
        idle: vec![idle; SLOTS],
        sampled_us: Some(2 * HOUR_US),
        bound: Some(dynamic / 10),
        sources: ["perf".to_owned()].into(),
        ..WorkloadUsage::default()
    }
}

fn stream(name: &str, of: &str, dynamic: u64) -> StreamUsage {
    StreamUsage {
        stream: name.to_owned(),
        container: of.to_owned(),
        id: format!("id-{of}"),
        dynamic: vec![dynamic; SLOTS],
        sampled_us: HOUR_US,
        sources: ["perf".to_owned()].into(),
    }
}

/// 1000 µJ in each slot: containers a and b, 200 of the system, 300 idle, 50 of no user.
fn host(name: &str) -> HostUsage {
    HostUsage {
        host: name.to_owned(),
        measured: vec![1000; SLOTS],
        system: vec![200; SLOTS],
        idle: vec![300; SLOTS],
        unattributed: vec![50; SLOTS],
        workloads: vec![workload("a", 301, 31, 7), workload("b", 100, 0, 2)],
        streams: vec![stream("cam", "a", 100), stream("door", "a", 50)],
        gaps: vec![Gap { from: 1_793_491_200_000_000, to: 1_793_494_800_000_000, uncounted_us: HOUR_US / 2 }],
        edge: 3,
        sampled_us: 2 * HOUR_US,
        sources: ["perf".to_owned()].into(),
    }
}

fn of(hosts: Vec<HostUsage>, request: BillRequest) -> Bill {
    let media = [(("enc-1".to_owned(), "cam".to_owned()), 5_000_000)].into();
    bill(PeriodUsage { hosts, media }, period(), &slots(), &prices(), request)
}

fn shown(bill: &Bill) -> Vec<(&'static str, &str, i128)> {
    bill.rows.iter().map(|row| (row.kind.as_str(), &*row.name, row.energy())).collect()
}

#[test]
fn rows_sum_to_the_account_to_the_microjoule() {
    let bill = of(vec![host("enc-1:9500")], BillRequest::default());
    let expected = [
        ("named", "a", 616),
        ("named", "b", 204),
        ("system", "", 400),
        ("idle", "", 600),
        ("unattributed", "", 100),
        ("ended", "", 80),
    ];
    assert_eq!(shown(&bill), expected);
    assert_eq!((bill.total.energy(), bill.measured), (2000, 2000));
    assert_eq!((bill.rows[0].load, bill.rows[0].awake, bill.rows[0].idle), (540, 62, 14));
    assert_eq!(bill.rows[0].media_us, Some(5_000_000), "its streams'");
    assert_eq!((bill.rows[0].bound, bill.edge), (Some(30), 3));
    // 2000 µJ at 0.36 for 3.6·10¹² µJ.
    assert_eq!(bill.total.cost.unwrap(), Decimal::new(2, 10));
    assert_eq!((bill.total.carbon, bill.total.embodied, bill.total.sci()), (None, None, None));
    assert!(bill.notes[0].contains("0.5 hours are in no row"), "{:?}", bill.notes);
    assert!(bill.notes[1].contains("0.5 hours have no samples"), "{:?}", bill.notes);
}

#[test]
fn streams_and_the_rest_of_their_container_sum_to_it() {
    let mut one = host("enc-1:9500");
    one.workloads.push(WorkloadUsage { id: "job:3".into(), ..workload("own", 11, 1, 0) });
    one.streams.push(StreamUsage { id: String::new(), ..stream("own", "own", 11) });
    one.streams.push(StreamUsage { id: String::new(), container: String::new(), ..stream("out", "", 20) });
    let bill = of(vec![one], BillRequest { by: GroupBy::Stream, ..BillRequest::default() });
    let energy = |name: &str| bill.rows.iter().find(|row| row.name == name).unwrap().energy();
    // A third of 301, 31 and 7 each: the largest remainders have the last microjoule.
    assert_eq!((energy("cam"), energy("door"), energy("own"), energy("out")), (204, 102, 22, 40));
    let system = bill.rows.iter().find(|row| row.kind == RowKind::System).unwrap();
    assert_eq!(system.energy(), 400 - 40, "a stream outside of containers is a part of the system");
    assert_eq!((bill.total.energy(), bill.measured), (2000, 2000));
    assert_eq!(bill.rows.iter().find(|row| row.name == "cam").unwrap().media_us, Some(5_000_000));
}

#[test]
fn idle_energy_is_divided_by_load_on_request() {
    let request = BillRequest { idle: IdleShare::Proportional, ..BillRequest::default() };
    let bill = of(vec![host("enc-1")], request);
    // Load is 270 to 100.
    let idle: Vec<i128> = bill.rows.iter().map(|row| row.idle).collect();
    assert_eq!(idle[..2], [2 * (7 + 219), 2 * (2 + 81)]);
    assert!(bill.rows.iter().all(|row| row.kind != RowKind::Idle));
    assert_eq!(bill.total.energy(), 2000);
    let mut unused = host("enc-1");
    unused.workloads.clear();
    let bill = of(vec![unused], BillRequest { idle: IdleShare::Proportional, ..BillRequest::default() });
    assert_eq!(bill.rows.iter().find(|row| row.kind == RowKind::Idle).unwrap().energy(), 600, "no load");
}

#[test]
fn labels_and_namespaces_are_summed_over_hosts() {
    let mut hosts = vec![host("enc-1"), host("enc-2")];
    for host in &mut hosts {
        host.workloads[0].labels = [("team".to_owned(), "live".to_owned())].into();
        host.workloads[1].namespace = "tv".to_owned();
    }
    let request = |by| BillRequest { by, label: "team".to_owned(), ..BillRequest::default() };
    let by_label = of(hosts.clone(), request(GroupBy::Label));
    assert_eq!(shown(&by_label)[..2], [("named", "live", 2 * 616), ("unnamed", "", 2 * 204)]);
    assert_eq!(by_label.rows[0].time_us, Some(4 * HOUR_US));
    let by_namespace = of(hosts, request(GroupBy::Namespace));
    assert_eq!(shown(&by_namespace)[..2], [("named", "tv", 2 * 204), ("unnamed", "", 2 * 616)]);
    assert_eq!((by_label.total.energy(), by_namespace.total.energy(), by_label.measured), (4000, 4000, 4000));
}

/// A container that ran for a minute had the hours of the whole window, and an intensity for them.
#[test]
fn hours_that_a_source_does_not_tell_are_absent() {
    let mut one = host("enc-1");
    one.workloads[0].sampled_us = None;
    one.workloads.push(WorkloadUsage { id: "id-a2".into(), ..workload("a", 1, 0, 0) });
    let bill = of(vec![one], BillRequest::default());
    let times: Vec<(&str, Option<u64>)> = bill.rows[..2].iter().map(|row| (&*row.name, row.time_us)).collect();
    assert_eq!(times, [("a", None), ("b", Some(2 * HOUR_US))], "a part of unknown length makes the sum unknown");
    assert_eq!(bill.rows[0].bound, Some(30), "its bound is known");
    assert_eq!(bill.rows[0].sci(), None);
}

#[test]
fn carbon_intensity_of_software_has_all_three_parts() {
    let settings = crate::cost::carbon::CarbonSettings {
        intensity: Some(crate::cost::money::Amount(Decimal::from(50))),
        ..crate::cost::carbon::CarbonSettings::default()
    };
    let carbon = crate::cost::carbon::Carbon::new(&settings).unwrap().map(std::sync::Arc::new);
    let prices = Prices { carbon, pue: Decimal::TWO, ..prices() };
    let mut one = host("enc-1");
    // Two kilowatt hours, of which container a has one.
    one.measured = vec![3_600_000_000_000; SLOTS];
    (one.system, one.idle, one.unattributed) = (vec![0; SLOTS], vec![0; SLOTS], vec![0; SLOTS]);
    one.workloads = vec![workload("a", 1_800_000_000_000, 0, 0), workload("b", 1_800_000_000_000, 0, 0)];
    let request = BillRequest { embodied_per_hour: Some(Decimal::from(6)), ..BillRequest::default() };
    let usage = PeriodUsage { hosts: vec![one], ..PeriodUsage::default() };
    let bill = bill(usage, period(), &slots(), &prices, request);
    let row = &bill.rows[0];
    // 1 kWh · PUE 2 · 50 g, half of 12 g, for two hours.
    assert_eq!((row.carbon.unwrap(), row.embodied.unwrap()), (Decimal::from(100), Decimal::from(6)));
    assert_eq!((row.sci().unwrap(), bill.total.carbon.unwrap()), (Decimal::from(53), Decimal::from(200)));
}

proptest! {
    /// Whatever the counters say, every measured microjoule is in exactly one row.
    #[test]
    fn every_microjoule_is_in_one_row(
        rows in prop::collection::vec((0u64..10_000, 0u64..12_000, 0u64..1000, 0u64..12_000), 0..5),
        others in prop::collection::vec(0u64..100_000, 4),
        by in 0usize..4,
        proportional in any::<bool>(),
    ) {
        let mut one = host("enc-1");
        (one.measured, one.system) = (vec![others[0]; SLOTS], vec![others[1]; SLOTS]);
        (one.idle, one.unattributed) = (vec![others[2]; SLOTS], vec![others[3]; SLOTS]);
        one.workloads.clear();
        one.streams.clear();
        for (at, (dynamic, awake, idle, of_stream)) in rows.into_iter().enumerate() {
            one.workloads.push(workload(&format!("w{at}"), dynamic, awake, idle));
            one.streams.push(stream(&format!("s{at}"), &format!("w{at}"), of_stream));
        }
        let by = [GroupBy::Stream, GroupBy::Container, GroupBy::Label, GroupBy::Namespace][by];
        let idle = if proportional { IdleShare::Proportional } else { IdleShare::Recorded };
        let bill = of(vec![one], BillRequest { by, idle, ..BillRequest::default() });
        prop_assert_eq!(bill.total.energy(), i128::from(bill.measured));
    }
}
