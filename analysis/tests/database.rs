//! Windows from a real Prometheus and a real VictoriaMetrics that hold counters with a reset, a gap, a second host and a second scrape: exact to the sample, and
//! what was missing said.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use analysis::energy::{
    Energy, Refused, Scope, Way,
    database::{Database as Asked, Settings},
};
use support::{Database, NO_SERVER, Series, Service, now, write};
use testkit::requires;

/// A counter that grows evenly from `first`, begins anew at `reset`, and is not scraped between `gap.0` and `gap.1`.
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
        let mut all = Vec::new();
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
                all.push((at, micro));
            }
        }
        all
    }
}

/// What a counter grew between two of its samples, reckoned here by hand: differences, and what it shows where it fell.
fn grew(samples: &[(u64, u64)], start: u64, end: u64) -> u64 {
    let within: Vec<_> = samples.iter().filter(|(at, _)| (start..=end).contains(at)).collect();
    within.windows(2).map(|pair| if pair[1].1 < pair[0].1 { pair[1].1 } else { pair[1].1 - pair[0].1 }).sum()
}

struct Fixture {
    base: u64,
    roots: Vec<Vec<(u64, u64)>>,
    container: Vec<(u64, u64)>,
    series: Vec<Series>,
}

/// Ten minutes, hours ago, scraped each 5 s. At 300 s the probe was started anew; from 400 to 500 s nobody scraped.
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
    // A container that began at 150 s, and had used 2 J when it was first seen.
    let born = Counter { at: base + 150, count: 91, ..counter(2_000_000, 50_000_000) };
    let container = born.samples();
    let cpu = Counter {
        reset: Some((base + 300, 100_000)),
        ..Counter { at: base + 150, count: 91, ..counter(400_000, 3_000_000) }
    };
    let mut series = vec![
        energy(&format!("{enc1},package=\"0\",zone=\"package\""), roots[0].clone()),
        energy(&format!("{enc1},package=\"1\",zone=\"package\""), roots[1].clone()),
        energy(&format!("{enc1},package=\"0\",zone=\"dram\""), roots[2].clone()),
        // Parts and wholes of the above: in no sum.
        energy(&format!("{enc1},package=\"0\",zone=\"core\""), counter(0, 90_000_000).samples()),
        energy(&format!("{enc1},package=\"0\",zone=\"psys\""), counter(0, 900_000_000).samples()),
        // Another host, which is in no sum either; and the first root scraped a second time, with fewer samples.
        energy("instance=\"enc-2:9500\",package=\"0\",zone=\"package\"", counter(0, 500_000_000).samples()),
        Series {
            name: "wattcast_energy_joules_total",
            labels: format!("source=\"perf\",job=\"copy\",{enc1},package=\"0\",zone=\"package\""),
            samples: roots[0].iter().step_by(3).copied().collect(),
        },
    ];
    let named = format!("{enc1},container=\"cam\",id=\"0123456789ab\",image=\"x\",package=\"0\"");
    series.push(Series {
        name: "wattcast_container_energy_joules_total",
        labels: format!("source=\"perf\",zone=\"package\",{named}"),
        samples: container.clone(),
    });
    series.push(Series {
        name: "wattcast_container_cpu_seconds_total",
        labels: format!("mode=\"alone\",{named}"),
        samples: cpu.samples(),
    });
    Fixture { base, roots, container, series }
}

fn ask(
    database: &Database,
    start: f64,
    end: f64,
    host: Option<&str>,
    container: Option<&str>,
) -> Result<Energy, Refused> {
    let settings = Settings { url: Some(database.url.clone()), ..Settings::default() };
    Asked::new(&settings).unwrap().unwrap().window(start, end, host, container)
}

fn check(database: &Database, fixture: &Fixture) {
    let base = fixture.base;
    let at = |second: u64| (base + second) as f64;
    // Edges on samples: exact to the microjoule.
    let found = ask(database, at(60), at(570), Some("enc-1"), Some("cam")).unwrap();
    let host: u64 = fixture.roots.iter().map(|root| grew(root, base + 60, base + 570)).sum();
    assert_eq!((found.way, found.of(Scope::Host).unwrap().0), (Way::Database, host));
    assert_eq!((found.gap_seconds, found.resets), (100.0, 1));
    assert!(found.rows.iter().all(|row| row.edge_error == 0.0), "{:?}", found.rows);
    let first = fixture.container[0].1;
    assert_eq!(found.of(Scope::Container).unwrap().0, first + grew(&fixture.container, base + 150, base + 570));
    assert_eq!(found.cpu_seconds.map(|seconds| (seconds * 1e6).round()), Some(0.4e6 + 29.0 * 3e6 + 0.1e6 + 54.0 * 3e6));
    assert_eq!(found.sources(Scope::Host), "perf");
    // 125.000003 + 62.5 + 15 J in each 5 s, but in the one with the reset.
    assert_eq!(
        found.watts.iter().filter(|watts| (**watts - 202.500_003 / 5.0).abs() < 1e-6).count(),
        found.watts.len() - 1
    );
    // Edges between samples: in proportion, and the doubt said.
    let between = ask(database, at(62) + 0.5, at(150), Some("enc-1:9500"), None).unwrap();
    let whole: u64 = fixture.roots.iter().map(|root| grew(root, base + 65, base + 150)).sum();
    let half: u64 = fixture.roots.iter().map(|root| grew(root, base + 60, base + 65)).sum();
    assert!(between.of(Scope::Host).unwrap().0.abs_diff(whole + half / 2) <= 3, "{between:?}");
    let doubt: f64 = between.rows.iter().map(|row| row.edge_error).sum();
    assert!((doubt - half as f64 / 2e6).abs() < 1e-3, "{doubt}");
    assert_eq!((between.gap_seconds, between.resets), (0.0, 0));
    // Nobody says which host: nothing is summed.
    let refused = ask(database, at(60), at(570), None, None).unwrap_err();
    assert!(refused.reason() == "which_host" && refused.to_string().contains("enc-2"), "{refused}");
    let refused = ask(database, at(60), at(570), Some("enc-9"), None).unwrap_err();
    assert_eq!(refused.reason(), "no_samples");
    // Before the first sample: less than the window is no answer.
    let refused = ask(database, at(0) - 30.0, at(100), Some("enc-1"), None).unwrap_err();
    assert!(refused.reason() == "incomplete" && !refused.is_passing(), "{refused}");
    let wide = ask(database, at(60), at(570), Some("enc-1\"} or vector(1) #"), None).unwrap_err();
    assert_eq!(wide.reason(), "no_samples", "a host's name stays a name");
}

#[test]
fn a_window_from_victoriametrics_is_exact_and_its_gap_is_reported() {
    requires!(victoria_metrics);
    let fixture = fixture();
    check(&Database::victoria(&fixture.series), &fixture);
}

#[test]
fn a_window_from_prometheus_is_exact_and_its_gap_is_reported() {
    requires!(prometheus, promtool);
    let fixture = fixture();
    check(&Database::prometheus(&fixture.series), &fixture);
}

#[test]
fn a_run_gets_its_joules_from_the_database_when_the_probe_has_none() {
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
    let joules: u64 = fixture.roots.iter().map(|root| grew(root, start, end)).sum();
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
        service.log().contains("no sample for 100.0 s") && service.log().contains("reset 1 time"),
        "{}",
        service.log()
    );
    // And the second is there: a probe that is away keeps nobody else from being asked.
    // The others are asked when the probe has been given up for a moment.
    let page = service.eventually("the samples of the file", |page| {
        page.contains("scenario=\"sampled\",bitrate=\"\",encoder=\"\",run=\"20260101_000000\",scope=\"host\",source=\"file\",way=\"samples\"} 510\n")
    });
    drop(page);
    service.eventually("who is there", |page| {
        page.contains("wattcast_source_up{source=\"probe\",reason=\"absent\"} 0\n")
            && page.contains("wattcast_source_up{source=\"database\",reason=\"\"} 1\n")
    });
}
