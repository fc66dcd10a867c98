//! Bills of a month from a real Prometheus and a real VictoriaMetrics: with a clean restart, a
//! crash, a day without scrapes and a day without a host.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{path::Path, process::Command};

use serde_json::Value;
use support::{Database, Series, binary, file};
use testkit::requires;

/// October 2025 in UTC.
const START: u64 = 1_759_276_800;
const DAY: u64 = 86_400;
const DAYS: u64 = 31;
/// Interval of scrapes in seconds.
const STEP: u64 = 300;

/// The growth of the counters in each step, in microjoules: measured, system, idle, first
/// container, second container, not attributed.
const GROWTH: [u64; 6] = [1_234_567, 200_001, 500_000, 300_002, 134_565, 99_999];

/// One counter per entry of [`GROWTH`].
struct Month {
    samples: [Vec<(u64, u64)>; 6],
    start: Vec<(u64, u64)>,
    restarts: Vec<(u64, u64)>,
    gap: Vec<(u64, u64)>,
    /// The energy between all pairs of samples, by counter.
    expected: [u64; 6],
}

/// The second container starts on the tenth day. On the 4th the probe is restarted, on the 6th it
/// crashes, on the 21st nothing is scraped, and on the 26th the host is off.
fn month() -> Month {
    let mut month = Month {
        samples: Default::default(),
        start: Vec::new(),
        restarts: Vec::new(),
        gap: Vec::new(),
        expected: [0; 6],
    };
    let mut values = [7_000_003, 5, 9, 1, 0, 6_999_988];
    let (mut start, mut restarts, mut gap) = (START - DAY, 0, 0);
    for step in 0..=DAYS * DAY / STEP {
        let at = START + step * STEP;
        let day = (at - START) / DAY + 1;
        let is_off = day == 26;
        // The container's energy is not attributed before it has a row.
        let has_second = day >= 10;
        if step > 0 && !is_off {
            for (counter, value) in values.iter_mut().enumerate() {
                *value += match (counter, has_second) {
                    (4, false) => 0,
                    (5, false) => GROWTH[5] + GROWTH[4],
                    _ => GROWTH[counter],
                };
            }
        }
        if at == START + 3 * DAY + 12 * 3600 {
            (restarts, gap) = (restarts + 1, gap + 30);
        }
        // After these the counters have what they used since the start in this step.
        let is_reset = at == START + 5 * DAY + 6 * 3600 || at == START + 26 * DAY;
        if is_reset {
            (start, restarts, gap) = (at - 60, 0, 0);
            values = GROWTH;
            if !has_second {
                (values[4], values[5]) = (0, GROWTH[4] + GROWTH[5]);
            }
        }
        if day == 21 || is_off {
            continue;
        }
        for (counter, value) in values.into_iter().enumerate() {
            if counter == 4 && !has_second {
                continue;
            }
            let before = month.samples[counter].last().map(|(_, value)| *value);
            month.expected[counter] += match before {
                // A container that appears started from zero.
                None if step > 0 => value,
                None => 0,
                Some(_) if is_reset => value,
                Some(before) => value - before,
            };
            month.samples[counter].push((at, value));
        }
        month.start.push((at, start * 1_000_000));
        month.restarts.push((at, restarts * 1_000_000));
        month.gap.push((at, gap * 1_000_000));
    }
    month
}

fn series(month: &Month) -> Vec<Series> {
    let root = "instance=\"enc-1:9500\",job=\"probe\",package=\"0\",zone=\"package\",source=\"perf\"";
    let one = |name, labels: &str, samples: &[(u64, u64)]| Series {
        name,
        labels: labels.to_owned(),
        samples: samples.to_vec(),
    };
    let container = |name: &str, namespace: &str| {
        format!("{root},container=\"{name}\",id=\"id-{}\",image=\"x\",runtime=\"docker\"{namespace}", name.len())
    };
    let (first, second) = (container("=cam,1", ""), container("web", ",namespace=\"tv\""));
    let host = "instance=\"enc-1:9500\",job=\"probe\"";
    let energy = "wattcast_container_energy_joules_total";
    vec![
        one("wattcast_energy_joules_total", root, &month.samples[0]),
        // A part of the package, which must not be added.
        one("wattcast_energy_joules_total", &root.replace("zone=\"package\"", "zone=\"core\""), &month.samples[0]),
        one("wattcast_system_energy_joules_total", root, &month.samples[1]),
        one("wattcast_idle_energy_joules_total", root, &month.samples[2]),
        one(energy, &first, &month.samples[3]),
        one(energy, &second, &month.samples[4]),
        one("wattcast_unattributed_energy_joules_total", root, &month.samples[5]),
        one("wattcast_totals_start_timestamp_seconds", host, &month.start),
        one("wattcast_totals_restarts_total", host, &month.restarts),
        one("wattcast_totals_gap_seconds_total", host, &month.gap),
    ]
}

fn bill(url: &str, dir: &Path, flags: &[&str]) -> String {
    let config = file(dir, "bill.toml", "[tariff]\ntime_zone = \"UTC\"\n");
    let mut command = Command::new(binary());
    command.args(["bill", "--month=2025-10", "--energy.price=0.36", "--database.url", url]);
    command.arg("--config.file").arg(config).args(flags);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn check(database: &Database) {
    let month = month();
    let dir = tempfile::tempdir().unwrap();
    let text = bill(&database.url, dir.path(), &["--format=json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    let rows = json["rows"].as_array().unwrap();
    let energy = |kind: &str, name: &str| {
        let row = rows.iter().find(|row| row["kind"] == kind && row["name"].as_str().unwrap().contains(name));
        row.unwrap_or_else(|| panic!("{kind} {name}\n{text}"))["microjoules"].as_u64().unwrap()
    };
    // Equal to the account, to the microjoule.
    assert_eq!(json["measured_microjoules"].as_u64(), Some(month.expected[0]), "{text}");
    let sum: i64 = rows.iter().map(|row| row["microjoules"].as_i64().unwrap()).sum();
    assert_eq!(u64::try_from(sum).unwrap(), month.expected[0], "{text}");
    assert_eq!(json["total"]["microjoules"].as_u64(), Some(month.expected[0]));
    let found = [
        energy("system", ""),
        energy("idle", ""),
        energy("named", "=cam,1"),
        energy("named", "web"),
        energy("unattributed", ""),
    ];
    assert_eq!(found, month.expected[1..], "{text}");
    // The days without data are named: of one the energy is known, of the other it is lost.
    let gaps: Vec<(String, u64, u64)> = json["gaps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gap| {
            let number = |key: &str| gap[key].as_u64().unwrap();
            (gap["from"].as_str().unwrap().to_owned(), number("seconds"), number("uncounted_seconds"))
        })
        .collect();
    let gap = |from: &str, seconds: u64, uncounted: u64| (from.to_owned(), seconds, uncounted);
    let expected = [
        gap("2025-10-04 11:55:00", STEP, 30),
        gap("2025-10-06 05:55:00", STEP, STEP),
        gap("2025-10-20 23:55:00", DAY + STEP, 0),
        gap("2025-10-25 23:55:00", DAY + STEP, DAY + STEP),
    ];
    assert_eq!(gaps, expected, "{text}");
    // Every digit of a column is in its sum.
    let csv = bill(&database.url, dir.path(), &["--format=csv"]);
    assert!(csv.contains(",\"'=cam,1\","), "{csv}");
    let json: Value =
        serde_json::from_str(&bill(&database.url, dir.path(), &["--format=json", "--by=namespace"])).unwrap();
    assert_eq!(json["rows"][0]["name"], "tv");
    assert_eq!(json["rows"][0]["microjoules"].as_u64(), Some(month.expected[4]));
    // Half a month and the other half are the month.
    let half = |from: &str, to: &str| {
        let config = file(dir.path(), "half.toml", "[tariff]\ntime_zone = \"UTC\"\n");
        let mut command = Command::new(binary());
        command.args(["bill", "--format=json", "--database.url", &database.url, "--from", from, "--to", to]);
        let output = command.arg("--config.file").arg(config).output().unwrap();
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        json["measured_microjoules"].as_u64().unwrap()
    };
    // In the middle of a step: both sides have their part of it.
    let edge = "2025-10-15T10:02:30Z";
    let halves = half("2025-10-01", edge) + half(edge, "2025-11-01");
    assert!(halves.abs_diff(month.expected[0]) <= 1, "{halves}");
}

#[test]
fn a_month_from_victoriametrics_is_the_account() {
    requires!(victoria_metrics);
    check(&Database::victoria(&series(&month())));
}

#[test]
fn a_month_from_prometheus_is_the_account() {
    requires!(prometheus, promtool);
    check(&Database::prometheus(&series(&month())));
}

#[test]
fn a_bill_from_the_job_log_needs_no_database() {
    let dir = tempfile::tempdir().unwrap();
    let line = format!(
        "{{\"stream\":\"cam\",\"started\":{START},\"ended\":{},\"joules\":3600000,\"source\":\"perf\",\"media_seconds\":7200}}\n",
        START + 3600
    );
    let log = file(dir.path(), "streams.ndjson", &line);
    let config = file(dir.path(), "bill.toml", "[tariff]\ntime_zone = \"UTC\"\n");
    let mut command = Command::new(binary());
    command.args(["bill", "--month=2025-10", "--by=stream", "--source=log", "--format=csv", "--energy.price=0.36"]);
    let output = command.arg("--streams.record").arg(log).arg("--config.file").arg(config).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let expected =
        "named,,cam,3600000.000000,3600000.000000,0.000000,0.000000,,1.000000,2.000000,0.36000000,USD,,,,perf";
    assert_eq!(text.lines().nth(1), Some(expected), "{text}{}", String::from_utf8_lossy(&output.stderr));
}
