//! Metrics that a running probe pushes to real receivers: what they store equals `/metrics`.

#![cfg(feature = "export")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{collections::BTreeMap, io::Read as _, net::TcpStream, path::Path, process::Command, time::Duration};

use export::message::{Data, ExportRequest, Number, NumberPoint};
use prost::Message as _;
use support::{Page, Probe};
use testkit::{
    api::Client,
    databases::Database,
    eventually,
    ports::free_port,
    program::Program,
    receiver::Receiver,
    require, requires, sleep,
    wait::{Deadline, eventually_ok},
};

/// Joules by two labels.
type Joules = BTreeMap<(String, String), f64>;

/// A probe whose page does not change until a mark.
fn probe(flags: &[&str]) -> Probe {
    let model = ["--energy.source=model", "--no-collector.cpu", "--no-collector.gpu", "--no-reference.hwmon"];
    let times = ["--tick=30s", "--push.interval=1s"];
    Probe::start(&[&model[..], &times[..], flags].concat())
}

/// The energy of the page by package and zone.
fn joules(page: &Page) -> Joules {
    let labels = |sample: &testkit::api::Sample| (sample.label("package").to_owned(), sample.label("zone").to_owned());
    page.all("wattcast_energy_joules_total").map(|sample| (labels(sample), sample.value)).collect()
}

/// The energy of the page by name and `hw.id` of OpenTelemetry.
fn hardware_joules(page: &Page) -> Joules {
    let mut all = Joules::new();
    for ((package, zone), joules) in joules(page) {
        let (name, id) = match &*zone {
            "package" | "dram" => ("hw.energy", format!("{zone}-{package}")),
            "psys" | "machine" => ("hw.host.energy", zone),
            other => panic!("the model has no zone {other}"),
        };
        all.insert((name.to_owned(), id), joules);
    }
    all
}

fn unzipped(body: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(body).read_to_end(&mut plain).unwrap();
    plain
}

/// What a receiver got: joules by name and `hw.id`, by time.
fn received(receiver: &Receiver) -> BTreeMap<u64, Joules> {
    let mut by_time: BTreeMap<u64, Joules> = BTreeMap::new();
    for posted in receiver.accepted() {
        let request = ExportRequest::decode(&*unzipped(&posted.body)).unwrap();
        let scopes = request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
        for metric in scopes.flat_map(|scope| &scope.metrics).filter(|metric| metric.name.ends_with(".energy")) {
            let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
            assert!(sum.is_monotonic && metric.unit == "J", "{metric:?}");
            for point in &sum.data_points {
                let key = (metric.name.clone(), attribute(point, "hw.id"));
                let Some(Number::Double(joules)) = point.value else { panic!("{point:?}") };
                by_time.entry(point.time_unix_nano).or_default().insert(key, joules);
            }
        }
    }
    by_time
}

fn attribute(point: &NumberPoint, key: &str) -> String {
    let found = point.attributes.iter().find(|attribute| attribute.key == key);
    found.map(|attribute| attribute.as_text().to_owned()).unwrap_or_default()
}

#[test]
fn a_real_collector_gets_the_joules_of_the_page() {
    requires!(rotel);
    let (receiver, dir) = (Receiver::start().unwrap(), tempfile::tempdir().unwrap());
    let [http, grpc] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port().unwrap()));
    let mut command = Command::new(require::rotel_agent().unwrap());
    command.args(["start", "--otlp-http-endpoint", &http, "--otlp-grpc-endpoint", &grpc, "--batch-timeout", "50ms"]);
    command.args(["--exporter", "otlp", "--otlp-exporter-protocol", "http"]);
    command.args(["--otlp-exporter-endpoint", receiver.url()]);
    let mut collector = Program::start("rotel", &mut command, dir.path()).unwrap();
    eventually(20.0, "the collector listens", || {
        collector.alive().unwrap();
        TcpStream::connect(&http).is_ok()
    });

    let probe = probe(&[&format!("--otlp.endpoint=http://{http}"), "--otlp.resource-attributes=host.name=enc-1"]);
    probe.first_regular_tick();
    let expected = hardware_joules(&probe.fresh());
    assert!(expected.values().any(|joules| *joules > 0.0), "{expected:?}");
    eventually_ok(30.0, "the collector passes the tick on", || {
        let by_time = received(&receiver);
        if by_time.values().any(|joules| *joules == expected) {
            Ok(())
        } else {
            Err(format!("{expected:?} {by_time:?}"))
        }
    });
    let request = ExportRequest::decode(&*unzipped(&receiver.accepted()[0].body)).unwrap();
    let resource = request.resource_metrics[0].resource.as_ref().unwrap();
    let of = |key: &str| resource.attributes.iter().find(|attribute| attribute.key == key).unwrap().as_text();
    assert_eq!((of("service.name"), of("host.name")), ("wattcast-probe", "enc-1"));
}

#[test]
fn changes_add_up_to_the_page() {
    let receiver = Receiver::start().unwrap();
    let probe = probe(&[&format!("--otlp.endpoint={}", receiver.url()), "--otlp.temporality=delta"]);
    probe.first_regular_tick();
    // Two ticks at least, each with its request.
    for _ in 0..2 {
        let before = received(&receiver).len();
        probe.fresh();
        eventually(30.0, "a request", || received(&receiver).len() > before);
    }
    let expected = hardware_joules(&probe.metrics());
    // A regular tick may follow before the last request is here, so the page equals the sum up to
    // its tick.
    eventually_ok(30.0, "the sum of the changes", || {
        let (by_time, mut sums) = (received(&receiver), Joules::new());
        for changes in by_time.values() {
            for (key, joules) in changes {
                *sums.entry(key.clone()).or_default() += joules;
            }
            let is_equal = |(key, joules): (&(String, String), &f64)| {
                sums.get(key).is_some_and(|sum| (sum - joules).abs() <= f64::EPSILON * joules)
            };
            if expected.iter().all(is_equal) {
                return Ok(());
            }
        }
        Err(format!("{expected:?} {by_time:?}"))
    });
}

/// The stored energy by package and zone.
fn stored(database: &Client) -> Joules {
    let answer = database.json("/api/v1/query?query=wattcast_energy_joules_total").unwrap();
    let mut all = Joules::new();
    for row in answer["data"]["result"].as_array().unwrap() {
        let label = |name: &str| row["metric"][name].as_str().unwrap_or_default().to_owned();
        assert_eq!((label("job"), label("instance")), ("wattcast-probe".to_owned(), "enc-1".to_owned()));
        all.insert((label("package"), label("zone")), row["value"][1].as_str().unwrap().parse().unwrap());
    }
    all
}

/// Pushes to a database until it has the joules of the page, up to `error`.
fn push_to(database: &Database, error: f64) -> Probe {
    let url = format!("--remote-write.url={}/api/v1/write", database.url);
    let probe = probe(&[&url, "--remote-write.labels=instance=enc-1"]);
    probe.first_regular_tick();
    probe.fresh();
    let client = Client::new(&database.url);
    eventually_ok(30.0, "the database has the joules of the page", || {
        // Prometheus has no such path, and answers at once.
        let _ = database.flush();
        let (page, stored) = (joules(&probe.metrics()), stored(&client));
        let is_equal =
            |(key, joules): (&(String, String), &f64)| stored.get(key).is_some_and(|sum| (sum - joules).abs() <= error);
        let equal =
            page.len() == stored.len() && page.iter().all(is_equal) && page.values().any(|joules| *joules > 0.0);
        if equal { Ok(()) } else { Err(format!("{page:?} {stored:?}")) }
    });
    probe
}

/// Whether the stored series end within seconds.
fn series_end(database: &Client) -> bool {
    let mut deadline = Deadline::after(Duration::from_secs(5));
    while !stored(database).is_empty() {
        if deadline.passed() {
            return false;
        }
        sleep(0.1);
    }
    true
}

#[test]
fn prometheus_stores_the_joules_of_the_page_and_their_end() {
    requires!(prometheus, promtool);
    let database = Database::prometheus(&[], "global: {}\n", None).unwrap();
    let client = Client::new(&database.url);
    // At its end a probe waits one second for the database, which a loaded one exceeds. Without the
    // mark of the end the last value would be shown for five more minutes.
    let ended = (0..5).any(|_| {
        let Probe { program, .. } = push_to(&database, 0.0);
        program.stop().unwrap();
        series_end(&client)
    });
    assert!(ended, "the series have ended");
}

#[test]
fn victoria_metrics_stores_the_joules_of_the_page() {
    requires!(victoria_metrics);
    let database = Database::victoria(&[], None).unwrap();
    // It stores decimal numbers: half a microjoule is the rounding of a total.
    push_to(&database, 0.5e-6);
}

#[test]
fn a_receiver_that_is_down_does_not_disturb_the_probe() {
    let port = free_port().unwrap();
    let probe = probe(&[&format!("--otlp.endpoint=http://127.0.0.1:{port}")]);
    let labels = [("destination", "otlp")];
    eventually(20.0, "a failed request", || {
        probe.fresh().find("wattcast_export_failed_requests_total", &labels).is_some_and(|count| count >= 1.0)
    });
    eventually(20.0, "points wait", || probe.fresh().get("wattcast_export_queued_points", &labels) > 0.0);
    let page = probe.fresh();
    assert_eq!(page.get("wattcast_export_sent_points_total", &labels), 0.0);
    let lost = [("destination", "otlp"), ("reason", "queue_full")];
    assert_eq!(page.get("wattcast_export_dropped_points_total", &lost), 0.0);
}

#[test]
fn a_wrong_receiver_is_a_configuration_error() {
    let run = |args: &[&str]| {
        let output = Command::new(support::binary()).args(args).arg("--config.check").output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, error) = run(&["--otlp.endpoint=collector"]);
    assert!(code == Some(64) && error.contains("--otlp.endpoint"), "{code:?} {error}");
    let (code, error) = run(&["--remote-write.url=http://db.example/x", "--remote-write.bearer-token-file=/etc/hosts"]);
    assert!(code == Some(64) && error.contains("unencrypted"), "{code:?} {error}");
    assert_eq!(run(&["--otlp.endpoint=http://127.0.0.1:4318"]).0, Some(0));
}

/// They ended the probe and every subcommand, although nothing was to be pushed.
#[test]
fn variables_that_are_set_for_other_programs_end_no_command() {
    let code = |args: &[&str]| {
        let others = [
            ("OTEL_METRIC_EXPORT_INTERVAL", "500"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ];
        Command::new(support::binary()).args(args).envs(others).output().unwrap().status.code()
    };
    assert_eq!(code(&["--config.check"]), Some(0));
    assert_eq!(code(&["completions", "bash"]), Some(0));
    assert_eq!(code(&["--otlp.endpoint=http://127.0.0.1:4318", "--config.check"]), Some(0));
    assert_eq!(code(&["--push.interval=500", "--config.check"]), Some(64), "a flag is this program's");
}

#[test]
fn no_two_metrics_have_one_name_in_opentelemetry() {
    let own =
        [probe_user::endpoints::metrics::DEFS, probe_user::endpoints::STATS_DEFS, probe_user::endpoints::GPU_DEFS];
    let shared = [export::counters::DEFS, http::rejections::DEFS, cli::program::DEFS, metrics::process::DEFS];
    let all = [own.concat(), shared.concat()].concat();
    let conflicts = export::names::conflicts(&all);
    assert!(conflicts.is_empty(), "{conflicts:?}");
    let unknown = export::names::unknown(&all, &["wattcast_container_", "wattcast_gpu_"]);
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn the_documentation_lists_the_metrics_of_the_export() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/push.md");
    metrics::docs::check(&file, "export", export::counters::DEFS).unwrap();
}
