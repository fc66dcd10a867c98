//! The live page's API, from recordings and from known ticks.

use std::path::Path;

use axum::extract::State;
use http_body_util::BodyExt as _;
use units::Microjoules;

use super::*;
use crate::{
    attribution::Accountant,
    containers::Container,
    endpoints::{
        live::{columns::Energy, events, series::SeriesQuery},
        pages,
    },
    energy::zone::{Origin, ZoneId, ZoneKind},
    host::{gpu_id::GpuId, topology::PackageId},
    ledger::{
        AccountId, IdlePolicy,
        streams::{ShareBasis, StreamContainer, StreamId},
        uncertainty::Bound,
    },
    snapshot::{
        AccountRow, ContainerRow, StreamRow, ZoneRow,
        history::{AccountDelta, ContainerDelta, EnergyRows, Ring, Settlement},
    },
    tick::recording::Reader,
};

const SECOND: i64 = 1_000_000_000;
const EPOCH: i64 = 1_700_000_000 * SECOND;

/// The last snapshot of a recording, with all of its ticks.
fn replayed(name: &str, policy: IdlePolicy) -> Snapshot {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(name);
    let mut reader = Reader::open(&file).unwrap();
    let mut accountant = Accountant::new(reader.setup().clone(), policy, 64 << 20);
    let ticks = std::iter::from_fn(|| reader.next_tick().unwrap());
    ticks.map(|tick| accountant.tick(&tick)).last().unwrap()
}

fn account() -> AccountId {
    AccountId { zone: ZoneId { package: Some(PackageId::whole(0)), kind: ZoneKind::Package }, origin: Origin::Powercap }
}

fn container(name: &str) -> Arc<Container> {
    Arc::new(Container::new(1, name.to_owned(), "000000000001".to_owned(), "docker"))
}

/// A tick with ten joules: six of a container, of which one for being awake, and four idle.
fn tick(container: &Arc<Container>, unix_s: f64, monotonic_s: f64) -> Tick {
    #[expect(clippy::cast_possible_truncation, reason = "small by construction")]
    let ns = |s: f64| (s * 1e6).round() as i64 * 1000;
    let delta = AccountDelta {
        measured: Some(Microjoules(10_000_000)),
        bound_uj: 200_000.0,
        idle: Microjoules(4_000_000),
        idle_known: true,
        ..AccountDelta::unmeasured(account())
    };
    Tick {
        sequence: 0,
        unix_ns: EPOCH + ns(unix_s),
        monotonic_ns: ns(monotonic_s),
        accounts: Box::new([delta]),
        energy: vec![ContainerDelta {
            container: container.clone(),
            id: account(),
            joules: Microjoules(6_000_000),
            awake: Microjoules(1_000_000),
            idle: Microjoules::ZERO,
            bound: Some(Bound { random: 100_000.0, systematic: 0.0 }),
        }]
        .into(),
        cpu: vec![(container.clone(), Some(PackageId::whole(0)), 500_000_000_u64)].into(),
    }
}

/// A tick without energy.
fn failed(container: &Arc<Container>, unix_s: f64, monotonic_s: f64) -> Tick {
    let mut tick = tick(container, unix_s, monotonic_s);
    tick.accounts = Box::new([AccountDelta::unmeasured(account())]);
    tick.energy = EnergyRows::default();
    tick
}

/// A snapshot whose ring has these ticks.
fn snapshot(ticks: Vec<Tick>) -> Snapshot {
    let mut ring = Ring::new(1 << 20);
    let newest = ticks.last().unwrap().clone();
    let sequence = ticks.len() as u64;
    ticks.into_iter().for_each(|tick| ring.push(tick));
    let container = newest.cpu.iter().next().unwrap().0.clone();
    Snapshot {
        sequence,
        unix_ns: newest.unix_ns,
        length_ns: Some(1_000_000_000),
        zones: vec![ZoneRow {
            id: account().zone,
            origin: Origin::Powercap,
            total: Microjoules(30_000_000),
            watts: Some(10.0),
        }],
        accounts: vec![AccountRow {
            id: account(),
            containers: vec![(container.clone(), Microjoules(18_000_000))],
            idle_shares: vec![],
            awake_shares: vec![(container.clone(), Microjoules(3_000_000))],
            retired: Microjoules::ZERO,
            system: Microjoules::ZERO,
            idle: Microjoules(12_000_000),
            unattributed: Microjoules::ZERO,
        }],
        containers: vec![ContainerRow {
            container,
            cpu: Arc::default(),
            cpu_ratio: Some(0.5),
            watts: Arc::default(),
            queue: None,
            uncertainty: None,
            minute: None,
        }],
        ring,
        ..Snapshot::default()
    }
}

/// Ticks that end at every whole second from 1 to `last`.
fn steady(last: u32) -> Vec<Tick> {
    let container = container("a");
    (1..=last).map(|second| tick(&container, f64::from(second), f64::from(second))).collect()
}

fn live() -> Arc<Live> {
    Arc::new(Live::new(1_700_000_000.0, Duration::from_secs(1), None, None))
}

fn series_of(live: &Live, snapshot: &Snapshot, seconds: u32, step: f64) -> serde_json::Value {
    let query = serde_json::json!({"seconds": seconds, "step": step});
    let query: SeriesQuery = serde_json::from_value(query).unwrap();
    let request = query.request(live.about.tick).unwrap();
    serde_json::from_slice(&live.render_series(snapshot, &request)).unwrap()
}

fn column_of(value: &serde_json::Value) -> Vec<Option<f64>> {
    value.as_array().unwrap().iter().map(serde_json::Value::as_f64).collect()
}

fn assert_adds_up(answer: &serde_json::Value) -> usize {
    let layers = answer["layers"].as_object().unwrap().values();
    let containers = answer["containers"].as_array().unwrap().iter().map(|one| &one["watts"]);
    let parts: Vec<Vec<Option<f64>>> = layers.chain(containers).map(column_of).collect();
    let host = column_of(&answer["host"]);
    for (step, host) in host.iter().enumerate() {
        let parts: Vec<Option<f64>> = parts.iter().map(|part| part[step]).collect();
        match host {
            None => assert!(parts.iter().all(Option::is_none), "step {step}: {parts:?}"),
            Some(host) => {
                let sum: f64 = parts.iter().map(|part| part.unwrap()).sum();
                assert!((sum - host).abs() < 1e-4, "step {step}: {sum} of {host}");
            }
        }
    }
    host.iter().flatten().count()
}

#[test]
fn every_step_of_a_series_adds_up_to_the_host() {
    for policy in [IdlePolicy::Separate, IdlePolicy::Proportional] {
        let snapshot = replayed("three-to-one.rec", policy);
        for step in [1.0, 5.0, 7.0, 60.0] {
            let answer = series_of(&live(), &snapshot, 900, step);
            assert!(assert_adds_up(&answer) > 3, "{answer}");
            assert_eq!(answer["step"], step);
        }
    }
}

#[test]
fn the_sum_of_all_ticks_is_the_total_of_the_page_of_metrics() {
    let snapshot = replayed("three-to-one.rec", IdlePolicy::Separate);
    let columns = Columns::new(snapshot.ring.ticks().map(|tick| &**tick).collect());
    let mut sum = Energy::default();
    columns.range().filter_map(|at| columns.energy(at)).for_each(|energy| sum.add(&energy, 1.0));
    let (measured, layers) = now::totals(&snapshot);
    let layers = layers.map(Microjoules::joules);
    let close = |one: f64, other: f64| assert!((one - other).abs() < 1e-3, "{one} {other}");
    close(sum.host, measured.joules());
    // A container whose series ended is retired in the totals, and not in the ticks before.
    let of_containers = |layers: &Layers<f64>| layers.containers + layers.awake + layers.retired;
    close(of_containers(&sum.layers), of_containers(&layers));
    close(sum.layers.idle, layers.idle);
    close(sum.layers.system, layers.system);
    close(sum.layers.unattributed, layers.unattributed);

    let page = pages::account(&snapshot).unwrap();
    let page = String::from_utf8(page.text().to_vec()).unwrap();
    let on_page = |name: &str| -> f64 {
        let rows = page.lines().filter(|line| line.starts_with(name) && line.as_bytes()[name.len()] == b'{');
        rows.map(|row| row.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    };
    close(on_page("wattcast_container_energy_joules_total"), layers.containers + layers.awake);
    let mut continued = snapshot.clone();
    continued.continuity.since_unix_ns = Some(EPOCH);
    let answer: serde_json::Value = serde_json::from_slice(&live().render_now(&continued, 500)).unwrap();
    assert_eq!(answer["joules"]["measured"], measured.joules());
    assert_eq!(answer["totals_since"], 1_700_000_000.0, "not the start of the probe");
    let of_answer = answer["containers"].as_array().unwrap().iter().map(|one| one["joules"].as_f64().unwrap());
    close(of_answer.sum(), layers.containers + layers.awake);
}

#[test]
fn a_gap_is_null_and_not_zero() {
    let container = container("a");
    let mut ticks = steady(10);
    ticks.push(failed(&container, 11.0, 11.0));
    ticks.push(tick(&container, 12.0, 12.0));
    let answer = series_of(&live(), &snapshot(ticks), 5, 1.0);
    assert_eq!(column_of(&answer["host"]), [Some(10.0), Some(10.0), Some(10.0), None, Some(10.0)]);
    assert_eq!(column_of(&answer["layers"]["awake"])[3], None);
    assert_eq!(assert_adds_up(&answer), 4);
}

#[test]
fn a_late_reading_is_distributed_among_its_ticks() {
    let container = container("a");
    let mut ticks = steady(10);
    ticks.push(failed(&container, 11.0, 11.0));
    let mut late = tick(&container, 12.0, 12.0);
    late.accounts[0].covers = 2;
    ticks.push(late);
    let answer = series_of(&live(), &snapshot(ticks), 4, 1.0);
    assert_eq!(column_of(&answer["host"]), [Some(10.0), Some(10.0), Some(5.0), Some(5.0)]);
    assert_eq!(column_of(&answer["containers"][0]["watts"])[2..], [Some(2.5), Some(2.5)]);
}

#[test]
fn energy_of_a_board_that_waits_for_its_split_is_shown() {
    let container = container("a");
    let board = ZoneId { package: None, kind: ZoneKind::Gpu(GpuId::Nvidia(1)) };
    let board = AccountId { zone: board, origin: Origin::Nvml };
    let with_board = |second: f64, measured: Option<u64>, settlement: Settlement| {
        let mut tick = tick(&container, second, second);
        let measured = measured.map(Microjoules);
        let delta = AccountDelta { measured, settlement, ..AccountDelta::unmeasured(board) };
        tick.accounts = Box::new([tick.accounts[0], delta]);
        tick
    };
    let ticks = vec![
        with_board(1.0, Some(5_000_000), Settlement::Exact),
        with_board(2.0, Some(5_000_000), Settlement::Exact),
        with_board(3.0, None, Settlement::Waiting(Microjoules(7_000_000))),
        with_board(4.0, None, Settlement::Waiting(Microjoules(9_000_000))),
    ];
    let answer = series_of(&live(), &snapshot(ticks), 3, 1.0);
    assert_eq!(column_of(&answer["layers"]["gpu"]), [Some(5.0), Some(7.0), Some(2.0)]);
    assert_eq!(assert_adds_up(&answer), 3);
}

#[test]
fn a_lost_board_does_not_take_the_host_with_it() {
    let container = container("a");
    let board = ZoneId { package: None, kind: ZoneKind::Gpu(GpuId::Nvidia(1)) };
    let board = AccountId { zone: board, origin: Origin::Nvml };
    let until_five = |second: u32| {
        let mut tick = tick(&container, f64::from(second), f64::from(second));
        let measured = (second < 5).then_some(Microjoules(5_000_000));
        let covers = second.saturating_sub(4).max(1);
        let delta = AccountDelta { measured, covers, ..AccountDelta::unmeasured(board) };
        tick.accounts = Box::new([tick.accounts[0], delta]);
        tick
    };
    let answer = series_of(&live(), &snapshot((1..=30).map(until_five).collect()), 30, 1.0);
    let host = column_of(&answer["host"]);
    assert_eq!(host[1..4], [Some(15.0); 3]);
    assert_eq!(host[4..14], [None; 10]);
    assert_eq!(host[14..], [Some(10.0); 16]);
    assert_eq!(assert_adds_up(&answer), 19);
}

#[test]
fn ticks_that_are_not_aligned_leave_no_step_empty() {
    let container = container("a");
    // Near the edges of the steps, a little before or after.
    let times = (1..60).map(|second| f64::from(second) + if second % 2 == 0 { 0.001 } else { -0.001 });
    let ticks: Vec<Tick> = times.map(|time| tick(&container, time, time)).collect();
    let answer = series_of(&live(), &snapshot(ticks), 50, 1.0);
    assert!(column_of(&answer["host"]).iter().all(Option::is_some), "{answer}");
}

#[test]
fn a_restart_is_a_gap_and_an_event() {
    let live = live();
    let before = steady(10).into_iter().map(Arc::new).collect();
    live.set_past(before);
    let container = container("a");
    let after = [failed(&container, 15.0, 0.5), tick(&container, 16.0, 1.5), tick(&container, 17.0, 2.5)];
    let answer = series_of(&live, &snapshot(after.into()), 12, 1.0);
    let host = column_of(&answer["host"]);
    assert_eq!(host[..5], [Some(10.0); 5]);
    assert_eq!(host[5..10], [None; 5]);
    assert_eq!(host[10..], [Some(10.0); 2]);
    assert_eq!(answer["containers"].as_array().unwrap().len(), 1, "the same container");
    assert_eq!(answer["events"][0]["text"], "probe restarted");
    assert_eq!(answer["events"].as_array().unwrap().len(), 1);
}

/// A tick after ticks that were dropped from the ring must not count as if it began with the last
/// one before the restart.
#[test]
fn the_oldest_tick_of_a_full_ring_does_not_continue_the_past() {
    let live = live();
    live.set_past(steady(10).into_iter().map(Arc::new).collect());
    let container = container("a");
    let mut after = [tick(&container, 115.0, 100.0), tick(&container, 116.0, 101.0)];
    after.iter_mut().zip(100..).for_each(|(tick, sequence)| tick.sequence = sequence);
    let answer = series_of(&live, &snapshot(after.into()), 112, 1.0);
    let host = column_of(&answer["host"]);
    assert_eq!(host.iter().flatten().count(), 6 + 1, "{host:?}");
    assert_eq!((host[111], host[110]), (Some(10.0), None));
    assert_eq!(answer["events"][0]["text"], "older ticks of this run are not kept");
}

#[test]
fn a_clock_that_was_set_is_an_event() {
    let container = container("a");
    let mut ticks = steady(10);
    ticks.extend([tick(&container, 311.0, 11.0), tick(&container, 312.0, 12.0)]);
    let answer = series_of(&live(), &snapshot(ticks), 400, 1.0);
    let text = answer["events"][0]["text"].as_str().unwrap();
    assert!(text.contains("clock") && text.contains("+300.0 s"), "{text}");
    assert_eq!(assert_adds_up(&answer), 11);
    let host = column_of(&answer["host"]);
    assert!(host.iter().flatten().all(|watts| (watts - 10.0).abs() < 1e-6), "no peak: {host:?}");
}

#[test]
fn a_hostile_name_survives_as_text() {
    let name = "<script>alert(\"1\")</script>\u{1}\n\u{2028}";
    let container = container(name);
    let ticks = (1..5).map(|second| tick(&container, f64::from(second), f64::from(second))).collect();
    let (live, snapshot) = (live(), Arc::new(snapshot(ticks)));
    let answer: serde_json::Value = serde_json::from_slice(&live.render_now(&snapshot, 20)).unwrap();
    assert_eq!(answer["containers"][0]["name"], name);
    assert_eq!(answer["containers"][0]["watts"], 6.0);
    assert_eq!(answer["watts"]["layers"]["containers"], 5.0);
    assert_eq!(series_of(&live, &snapshot, 5, 1.0)["containers"][0]["name"], name);
    // An event is three lines and an empty one, whatever its names contain.
    live.publish(&snapshot);
    let event = live.event(&live.last.load_full().unwrap());
    let event = String::from_utf8(event.to_vec()).unwrap();
    assert_eq!(event.lines().count(), 4, "{event}");
    let data = event.lines().nth(2).unwrap().strip_prefix("data: ").unwrap();
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["column"]["containers"]["docker/000000000001"], 5.0);
    assert_eq!(data["column"]["host"], 10.0);
    assert_eq!(data["now"]["watts"]["host"], 10.0);
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn text(body: &mut axum::body::Body) -> Option<Bytes> {
    body.frame().await.map(|frame| frame.unwrap().into_data().unwrap())
}

#[test]
fn fifty_pages_share_one_event_and_end_with_the_program() {
    let live = live();
    block_on(async {
        let mut bodies = Vec::new();
        for _ in 0..50 {
            let mut body = events::events(State(live.clone())).await.into_body();
            assert!(text(&mut body).await.unwrap().starts_with(b"retry"));
            bodies.push(body);
        }
        live.publish(&Arc::new(snapshot(steady(5))));
        let mut seen = Vec::new();
        for body in &mut bodies {
            seen.push(text(body).await.unwrap());
        }
        assert!(seen.iter().all(|event| event.as_ptr() == seen[0].as_ptr() && event.len() > 100));
        live.end();
        for body in &mut bodies {
            assert!(text(body).await.unwrap().starts_with(b"event: end"));
            assert_eq!(text(body).await, None);
        }
        let mut late = events::events(State(live.clone())).await.into_body();
        text(&mut late).await.unwrap();
        assert!(text(&mut late).await.unwrap().starts_with(b"event: end"), "a client after the end");
    });
}

#[test]
fn more_clients_than_the_limit_are_refused_and_leave_no_trace() {
    let live = live();
    block_on(async {
        let mut responses = Vec::new();
        for _ in 0..MAX_CLIENTS {
            responses.push(events::events(State(live.clone())).await);
        }
        assert_eq!(events::events(State(live.clone())).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        responses.pop();
        assert_eq!(events::events(State(live.clone())).await.status(), StatusCode::OK);
    });
}

#[test]
fn an_answer_is_computed_once_per_tick() {
    let live = live();
    block_on(async {
        let answer = |request: Request| live.clone().answer(request);
        assert_eq!(answer(Request::Now(20)).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        let first = Arc::new(snapshot(steady(5)));
        live.publish(&first);
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(answer(Request::Now(20)).await.into_body().collect().await.unwrap().to_bytes());
        }
        assert!(seen.iter().all(|body| body.as_ptr() == seen[0].as_ptr()));
        live.publish(&Arc::new(snapshot(steady(6))));
        let next = answer(Request::Now(20)).await.into_body().collect().await.unwrap().to_bytes();
        assert_ne!(next, seen[0]);
    });
}

#[test]
fn an_answer_whose_client_has_gone_is_kept_for_the_next() {
    let live = live();
    live.publish(&Arc::new(snapshot(steady(5))));
    let kept = || lock(&live.answers).by_request.contains_key(&Request::Now(20));
    block_on(async {
        let gone = tokio::time::timeout(Duration::ZERO, live.clone().answer(Request::Now(20)));
        drop(gone.await);
        for _ in 0..1000 {
            if kept() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(kept());
}

#[test]
fn a_window_has_a_start_with_ticks_that_are_longer() {
    let (live, container) = (live(), container("a"));
    let mut ticks = Vec::new();
    for second in [30.0, 60.0, 90.0] {
        ticks.push(tick(&container, second, second));
        live.publish(&Arc::new(snapshot(ticks.clone())));
    }
    assert_eq!(live.sample_before(3).unwrap().sequence, 2);
}

/// The tile and the column were there and empty, because the probe knew no price.
#[test]
fn the_cost_per_hour_is_that_of_the_power_at_the_configured_price() {
    let id = StreamId {
        name: "news".to_owned(),
        container: StreamContainer::Own,
        codec: "libx264".to_owned(),
        basis: ShareBasis::Process,
    };
    // 300 J in 30 s: 10 W.
    let at = |last: u32, joules: u64| {
        let row = StreamRow { id: id.clone(), origin: Origin::Powercap, joules: Microjoules(joules), parts: vec![] };
        let ticks = (1..=last).map(|number| tick(&container("a"), f64::from(number * 30), f64::from(number * 30)));
        Arc::new(Snapshot { streams: vec![row], ..snapshot(ticks.collect()) })
    };
    let answer = |price: Option<EnergyPrice>| -> serde_json::Value {
        let live = Live::new(1_700_000_000.0, Duration::from_secs(30), None, price);
        live.publish(&at(1, 0));
        live.publish(&at(2, 300_000_000));
        serde_json::from_slice(&live.now(20).unwrap().1).unwrap()
    };
    let without = answer(None);
    let known = ["currency", "price_per_joule", "cost_per_hour"].map(|key| without[key].clone());
    assert!(known.iter().chain([&without["streams"][0]["cost_per_hour"]]).all(serde_json::Value::is_null), "{without}");
    let with = answer(Some(EnergyPrice { per_kwh: 0.36, currency: "EUR".to_owned() }));
    let stream = &with["streams"][0];
    assert_eq!((&with["currency"], &stream["watts"]), (&"EUR".into(), &10.0.into()), "{with}");
    let close = |value: &serde_json::Value, wanted: f64| (value.as_f64().unwrap() - wanted).abs() < 1e-12;
    assert!(close(&with["price_per_joule"], 1e-7) && close(&stream["cost_per_hour"], 0.0036), "{with}");
    assert!(close(&with["cost_per_hour"], 0.36e-3 * with["watts"]["host"].as_f64().unwrap()), "{with}");
}

#[test]
fn a_tick_after_the_end_does_not_hide_the_end() {
    let live = live();
    block_on(async {
        let mut body = events::events(State(live.clone())).await.into_body();
        text(&mut body).await.unwrap();
        live.end();
        live.publish(&Arc::new(snapshot(steady(5))));
        assert!(text(&mut body).await.unwrap().starts_with(b"event: end"));
    });
}

#[test]
fn a_source_that_is_lost_and_comes_back_is_an_event() {
    use crate::host::availability::{Reason, Unavailable};

    let live = live();
    let with = |last: u32, state: Result<String, Unavailable>| {
        Arc::new(Snapshot { sources: vec![SourceState::new("powercap", state, true)].into(), ..snapshot(steady(last)) })
    };
    live.publish(&with(3, Ok("here".to_owned())));
    live.publish(&with(4, Err(Unavailable::new(Reason::Broken, "stands still"))));
    let last = with(5, Ok("here".to_owned()));
    live.publish(&last);
    let events = series_of(&live, &last, 10, 1.0)["events"].clone();
    let texts: Vec<&str> = events.as_array().unwrap().iter().map(|event| event["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["source powercap lost: broken: stands still", "source powercap is back"]);
}

#[test]
fn a_request_is_kept_within_its_limits() {
    let request = |query: &str| {
        let query = serde_json::from_str::<SeriesQuery>(query).unwrap();
        serde_json::to_value(series::answer(&[], 0, &[], &query.request(Duration::from_millis(1500))?)).ok()
    };
    let points = |query: &str| request(query).unwrap()["host"].as_array().unwrap().len();
    assert_eq!(points("{}"), 300, "steps of 3 s, a multiple of the tick");
    assert_eq!(points("{\"seconds\": 3600, \"step\": 0}"), 1200, "steps of 3 s");
    assert_eq!(points("{\"seconds\": 0, \"step\": 1e9}"), 1);
    assert_eq!(points("{\"seconds\": 4000000000, \"containers\": 1000000000}"), 450);
    assert!(request("{\"step\": -1}").is_none());
    let unknown = request("{\"container\": \"docker/none\"}").unwrap();
    assert_eq!(unknown["containers"].as_array().unwrap().len(), 0);
}
