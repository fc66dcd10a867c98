//! Windows from a real Prometheus and a real VictoriaMetrics. Their counters have a reset, a gap, a
//! second host and a duplicate scrape; energy must be exact to the sample, and gaps and resets must
//! be reported.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use results::energy::{
    EnergyMethod, Scope, SourceError, WindowEnergy,
    database::{Database as Client, DatabaseSettings},
};
use support::{Database, NO_SERVER, Series, Service, now, write};
use testkit::requires;

/// A counter that grows evenly from `first`, is reset at `reset`, and is not scraped between
/// `gap.0` and `gap.1`.
struct Counter {
    at: u64,
    step: u64,
    count: u64,
    first: u64,
    grows: u64,
    reset: Option<(u64, u64)>,
    gap: (u64, u64),
}

impl Counter {
    fn samples(&self) -> Vec<(u64, u64)> {
        let mut micro = self.first;
        let mut samples = Vec::new();
        for number in 0..self.count {
            let at = self.at + number * self.step;
            if number > 0 {
                micro += self.grows;
            }
            if let Some((when, to)) = self.reset
                && at == when
            {
                micro = to;
            }
            if !(at > self.gap.0 && at < self.gap.1) {
                samples.push((at, micro));
            }
        }
        samples
    }
}

/// The expected increase of a counter between two of its samples: the sum of differences, or of the
/// new value after a reset.
fn increase(samples: &[(u64, u64)], start: u64, end: u64) -> u64 {
    let within: Vec<_> = samples.iter().filter(|(at, _)| (start..=end).contains(at)).collect();
    within.windows(2).map(|pair| if pair[1].1 < pair[0].1 { pair[1].1 } else { pair[1].1 - pair[0].1 }).sum()
}

struct Fixture {
    base: u64,
    roots: Vec<Vec<(u64, u64)>>,
    container: Vec<(u64, u64)>,
    series: Vec<Series>,
}

/// Ten minutes, hours ago, scraped every 5 s. The probe was restarted at 300 s; there are no
/// scrapes from 400 to 500 s.
fn fixture() -> Fixture {
    let base = (now() - 4 * 3600) / 60 * 60;
    let counter = |first, grows| Counter {
        at: base,
        step: 5,
        count: 121,
        first,
        grows,
        reset: Some((base + 300, 4_000_000)),
        gap: (base + 400, base + 500),
    };
    let energy = |labels: &str, samples: Vec<(u64, u64)>| Series {
        name: "wattcast_energy_joules_total",
        labels: format!("source=\"perf\",job=\"rapl-power\",{labels}"),
        samples,
    };
    let enc1 = "instance=\"enc-1:9500\"";
    let roots: Vec<_> = [(7_000_001, 125_000_003), (0, 62_500_000), (9, 15_000_000)]
        .map(|(first, grows)| counter(first, grows).samples())
        .into();
    // A container that started at 150 s and had used 2 J at its first scrape.
    let container = Counter { at: base + 150, count: 91, ..counter(2_000_000, 50_000_000) }.samples();
    let cpu = Counter {
        reset: Some((base + 300, 100_000)),
        ..Counter { at: base + 150, count: 91, ..counter(400_000, 3_000_000) }
    };
    let mut series = vec![
        energy(&format!("{enc1},package=\"0\",zone=\"package\""), roots[0].clone()),
        energy(&format!("{enc1},package=\"1\",zone=\"package\""), roots[1].clone()),
        energy(&format!("{enc1},package=\"0\",zone=\"dram\""), roots[2].clone()),
        // Zones that are parts of the above or include them must not be summed.
        energy(&format!("{enc1},package=\"0\",zone=\"core\""), counter(0, 90_000_000).samples()),
        energy(&format!("{enc1},package=\"0\",zone=\"psys\""), counter(0, 900_000_000).samples()),
        // Another host, which must not be summed either, and a duplicate of the first root with
        // fewer samples.
        energy("instance=\"enc-2:9500\",package=\"0\",zone=\"package\"", counter(0, 500_000_000).samples()),
        Series {
            name: "wattcast_energy_joules_total",
            labels: format!("source=\"perf\",job=\"copy\",{enc1},package=\"0\",zone=\"package\""),
            samples: roots[0].iter().step_by(3).copied().collect(),
        },
    ];
    let container_labels = format!("{enc1},container=\"cam\",id=\"0123456789ab\",image=\"x\",package=\"0\"");
    series.push(Series {
        name: "wattcast_container_energy_joules_total",
        labels: format!("source=\"perf\",zone=\"package\",{container_labels}"),
        samples: container.clone(),
    });
    series.push(Series {
        name: "wattcast_container_cpu_seconds_total",
        labels: format!("mode=\"alone\",{container_labels}"),
        samples: cpu.samples(),
    });
    Fixture { base, roots, container, series }
}

fn query(
    database: &Database,
    start: f64,
    end: f64,
    host: Option<&str>,
    container: Option<&str>,
) -> Result<WindowEnergy, SourceError> {
    let settings = DatabaseSettings { url: Some(database.url.clone()), ..DatabaseSettings::default() };
    Client::new(&settings).unwrap().unwrap().window(start, end, host, container)
}

fn check(database: &Database, fixture: &Fixture) {
    let base = fixture.base;
    let at = |second: u64| (base + second) as f64;
    // Edges on samples: exact to the microjoule.
    let found = query(database, at(60), at(570), Some("enc-1"), Some("cam")).unwrap();
    let host: u64 = fixture.roots.iter().map(|root| increase(root, base + 60, base + 570)).sum();
    assert_eq!((found.method, found.total(Scope::Host).unwrap().0), (EnergyMethod::Database, host));
    assert_eq!((found.gap_seconds, found.resets), (100.0, 1));
    assert!(found.rows.iter().all(|row| row.edge_error == 0.0), "{:?}", found.rows);
    let first = fixture.container[0].1;
    assert_eq!(found.total(Scope::Container).unwrap().0, first + increase(&fixture.container, base + 150, base + 570));
    assert_eq!(found.cpu_seconds.map(|seconds| (seconds * 1e6).round()), Some(0.4e6 + 29.0 * 3e6 + 0.1e6 + 54.0 * 3e6));
    assert_eq!(found.sources(Scope::Host), "perf");
    // 125.000003 + 62.5 + 15 J in each 5 s, except for the interval with the reset.
    assert_eq!(
        found.watts.iter().filter(|watts| (**watts - 202.500_003 / 5.0).abs() < 1e-6).count(),
        found.watts.len() - 1
    );
    // Edges between samples are interpolated, with an edge error.
    let between = query(database, at(62) + 0.5, at(150), Some("enc-1:9500"), None).unwrap();
    let whole: u64 = fixture.roots.iter().map(|root| increase(root, base + 65, base + 150)).sum();
    let half: u64 = fixture.roots.iter().map(|root| increase(root, base + 60, base + 65)).sum();
    assert!(between.total(Scope::Host).unwrap().0.abs_diff(whole + half / 2) <= 3, "{between:?}");
    let edge_error: f64 = between.rows.iter().map(|row| row.edge_error).sum();
    assert!((edge_error - half as f64 / 2e6).abs() < 1e-3, "{edge_error}");
    assert_eq!((between.gap_seconds, between.resets), (0.0, 0));
    // Without a host nothing is summed.
    let error = query(database, at(60), at(570), None, None).unwrap_err();
    assert!(error.reason() == "which_host" && error.to_string().contains("enc-2"), "{error}");
    let error = query(database, at(60), at(570), Some("enc-9"), None).unwrap_err();
    assert_eq!(error.reason(), "no_samples");
    // A window that starts before the first sample is an error.
    let error = query(database, at(0) - 30.0, at(100), Some("enc-1"), None).unwrap_err();
    assert!(error.reason() == "incomplete" && !error.is_transient(), "{error}");
    let escaped = query(database, at(60), at(570), Some("enc-1\"} or vector(1) #"), None).unwrap_err();
    assert_eq!(escaped.reason(), "no_samples", "host names are escaped");
}

/// VictoriaMetrics leaves the last 30 s out of a range.
#[test]
fn a_question_for_this_moment_is_answered() {
    requires!(victoria_metrics);
    let until = now() / 10 * 10;
    let one_watt = Series {
        name: "wattcast_energy_joules_total",
        labels: "instance=\"enc-1:9500\",package=\"0\",zone=\"package\",source=\"perf\"".to_owned(),
        samples: (0..=360).map(|number| (until - (360 - number) * 10, number * 10_000_000)).collect(),
    };
    let database = Database::victoria(&[one_watt]);
    let settings = DatabaseSettings { url: Some(database.url.clone()), ..DatabaseSettings::default() };
    let client = Client::new(&settings).unwrap().unwrap();
    let answer = client.instant("sum(increase(wattcast_energy_joules_total[1800s]))", now() as f64).unwrap();
    let joules = answer[0].points()[0].1;
    assert!((1700.0..=1810.0).contains(&joules), "{joules}");
}

#[test]
fn window_from_victoriametrics_is_exact() {
    requires!(victoria_metrics);
    let fixture = fixture();
    check(&Database::victoria(&fixture.series), &fixture);
}

#[test]
fn window_from_prometheus_is_exact() {
    requires!(prometheus, promtool);
    let fixture = fixture();
    check(&Database::prometheus(&fixture.series), &fixture);
}

#[test]
fn run_gets_its_energy_from_the_database_without_a_probe() {
    requires!(victoria_metrics);
    let fixture = fixture();
    let database = Database::victoria(&fixture.series);
    let dir = tempfile::tempdir().unwrap();
    let (start, end) = (fixture.base + 60, fixture.base + 570);
    let row = |name: &str, more: &str| {
        format!(r#"{{"name":"{name}","start_time":{start},"end_time":{end},"total_frames":100{more}}}"#)
    };
    let rows = [
        row("known", r#","host":"enc-1","container":"cam""#),
        row("nowhere", ""),
        row("second", r#","host":"enc-1""#),
        row("sampled", r#","power_watts":[1,1],"step_seconds":510"#),
    ];
    write(dir.path(), "20260101_000000", &format!("{{\"scenarios\":[{}]}}", rows.join(",")));
    let service = Service::start(dir.path(), NO_SERVER, &["--database.url", &database.url]);
    let page = service.eventually("the energy of the database", |page| {
        page.contains("way=\"database\"") && page.contains("wattcast_run_energy_joules{scenario=\"second\"")
    });
    let joules: u64 = fixture.roots.iter().map(|root| increase(root, start, end)).sum();
    let labels = r#"{scenario="known",bitrate="",encoder="",run="20260101_000000""#;
    let host = format!(
        "wattcast_run_energy_joules{labels},scope=\"host\",source=\"perf\",way=\"database\"}} {}",
        joules as f64 / 1e6
    );
    for line in [
        host,
        format!("wattcast_run_energy_gap_seconds{labels}}} 100"),
        format!("wattcast_run_energy_resets{labels}}} 1"),
        format!("wattcast_run_energy_available{labels},reason=\"\"}} 1"),
    ] {
        assert!(page.contains(&format!("{line}\n")), "{line}\n{page}");
    }
    assert!(
        service.log().contains("no sample in the database for 100.0 s") && service.log().contains("counter resets: 1"),
        "{}",
        service.log()
    );
    // An unreachable probe does not prevent queries of other sources; they follow when its timeout
    // has passed.
    let page = service.eventually("the samples of the file", |page| {
        page.contains("scenario=\"sampled\",bitrate=\"\",encoder=\"\",run=\"20260101_000000\",scope=\"host\",source=\"file\",way=\"samples\"} 510\n")
    });
    drop(page);
    service.eventually("the state of the sources", |page| {
        page.contains("wattcast_source_up{source=\"probe\",reason=\"absent\"} 0\n")
            && page.contains("wattcast_source_up{source=\"database\",reason=\"\"} 1\n")
    });
}
