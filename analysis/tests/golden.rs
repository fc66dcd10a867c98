//! The seeds' sample under the names its users query, with the values that the contract has for it; and that a run has one energy on every port.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::{collections::HashMap, sync::Arc};

use analysis::{
    cost::{self, Prices},
    energy::{Answer, Energy, Joules, Refused, Scope, Sources, Way},
    figures::{self, Model},
    qoe, results,
    run::Run,
    store,
};
use exporter::{page, units::Microjoules};
use proptest::prelude::*;

const SAMPLE: &[u8] = include_bytes!("data/test_results_20240115_103000.json");

fn model(run: Run, answers: Option<Vec<Answer>>) -> Model {
    let run = Arc::new(run);
    let answers = answers.unwrap_or_else(|| run.scenarios.iter().map(Sources::in_file).collect());
    figures::model(&[(run, answers)], Scope::Host, &Prices::defaults())
}

/// All three pages of a model, by series.
fn pages(model: &Model) -> [String; 3] {
    let text = |page: page::Page| String::from_utf8(page.text().to_vec()).unwrap();
    let prices = Prices::defaults();
    let all = [
        text(page::render("runs", results::families(model)).unwrap()),
        text(page::render("runs", qoe::families(model, &[90.0])).unwrap()),
        text(page::render("runs", cost::page::families(model, &prices)).unwrap()),
    ];
    for page in &all {
        assert_eq!(page::faults(page), Vec::<String>::new());
    }
    all
}

fn series(page: &str) -> HashMap<String, f64> {
    let row = |line: &str| line.rsplit_once(' ').map(|(id, value)| (id.to_owned(), value.parse().unwrap()));
    page.lines().filter(|line| !line.starts_with('#')).filter_map(row).collect()
}

/// The value of a metric for a scenario; panics where it is not there exactly once.
fn value(page: &HashMap<String, f64>, name: &str, scenario: &str, also: &str) -> Option<f64> {
    let label = format!("scenario=\"{scenario}\"");
    let fits = |id: &&String| id.starts_with(&format!("{name}{{")) && id.contains(&label) && id.contains(also);
    let mut found = page.keys().filter(fits);
    let first = found.next()?;
    assert!(found.next().is_none(), "{name} of {scenario} stands twice");
    page.get(first).copied()
}

fn close(got: Option<f64>, wanted: f64, what: &str) {
    let got = got.unwrap_or_else(|| panic!("{what} is absent"));
    assert!((got - wanted).abs() <= wanted.abs() * 1e-12, "{what}: {got} is not {wanted}");
}

/// The golden table of the metrics contract, to full precision: exact fractions where the contract shows some digits of them.
#[test]
fn the_sample_has_the_values_of_the_contract() {
    let [results, qoe, cost] = pages(&model(store::parse("20240115_103000", SAMPLE).unwrap(), None));
    let (results, qoe, cost) = (series(&results), series(&qoe), series(&cost));
    #[rustfmt::skip]
    let golden = [
        // scenario, joules, seconds covered of, core-seconds, VMAF, pixels, mean of the samples
        ("2 streams @ 2500k",      2077.5, 45.0, 120.5, 101.75, Some((92.5, 8_957_952_000.0)),  461.2 / 10.0),
        ("4 streams @ 5000k",      3855.0, 55.0, 180.3, 263.5,  Some((95.2, 13_436_928_000.0)), 840.5 / 12.0),
        ("single stream @ 1500k",  1154.0, 35.0, 90.2,  46.0,   Some((88.3, 2_508_185_600.0)),  263.5 / 8.0),
        ("baseline idle",          1135.0, 45.0, 60.0,  4.5,    None,                           1.0),
    ];
    for (scenario, joules, covered, seconds, core_seconds, picture, mean) in golden {
        close(value(&results, "wattcast_run_energy_joules", scenario, "way=\"samples\""), joules, "joules");
        close(value(&results, "results_scenario_total_energy_joules", scenario, ""), joules, "joules");
        close(value(&results, "wattcast_run_energy_coverage_ratio", scenario, ""), covered / seconds, "coverage");
        close(value(&results, "wattcast_run_cpu_seconds", scenario, ""), core_seconds, "core-seconds");
        close(value(&cost, "cost_energy_load_aware", scenario, "USD"), joules * 0.12 / 3.6e6, "energy cost");
        close(value(&cost, "cost_compute_load_aware", scenario, "USD"), core_seconds * 0.5 / 3600.0, "compute cost");
        let total = joules * 0.12 / 3.6e6 + core_seconds * 0.5 / 3600.0;
        close(value(&cost, "cost_total_load_aware", scenario, "USD"), total, "total");
        match picture {
            Some((vmaf, pixels)) => {
                close(value(&qoe, "qoe_efficiency_score", scenario, ""), vmaf / 100.0 * pixels / joules, "pixels");
                close(value(&qoe, "qoe_quality_per_watt", scenario, ""), vmaf / mean, "VMAF for a watt");
                close(value(&cost, "cost_per_pixel", scenario, "USD"), total / pixels, "a pixel's cost");
            }
            None => {
                assert_eq!(value(&qoe, "qoe_efficiency_score", scenario, ""), None);
                assert_eq!(value(&qoe, "qoe_quality_per_watt", scenario, ""), Some(0.0));
            }
        }
    }
    // As the contract prints them.
    let printed = |page: &HashMap<String, f64>, name: &str, scenario: &str, digits: usize| {
        format!("{:.digits$}", value(page, name, scenario, "").unwrap())
    };
    assert_eq!(printed(&qoe, "qoe_efficiency_score", "2 streams @ 2500k", 3), "3988498.484");
    assert_eq!(printed(&qoe, "qoe_efficiency_score", "4 streams @ 5000k", 3), "3318276.383");
    assert_eq!(printed(&qoe, "qoe_efficiency_score", "single stream @ 1500k", 3), "1919174.944");
    assert_eq!(printed(&qoe, "qoe_quality_per_watt", "2 streams @ 2500k", 5), "2.00564");
    assert_eq!(printed(&qoe, "qoe_quality_per_watt", "4 streams @ 5000k", 5), "1.35919");
    assert_eq!(printed(&qoe, "qoe_quality_per_watt", "single stream @ 1500k", 5), "2.68083");
    assert_eq!(printed(&cost, "cost_compute_load_aware", "2 streams @ 2500k", 10), "0.0141319444");
    assert_eq!(printed(&cost, "cost_compute_load_aware", "4 streams @ 5000k", 10), "0.0365972222");
    assert_eq!(printed(&cost, "cost_compute_load_aware", "single stream @ 1500k", 10), "0.0063888889");
    assert_eq!(printed(&results, "wattcast_run_energy_coverage_ratio", "2 streams @ 2500k", 3), "0.373");
    assert_eq!(printed(&results, "wattcast_run_energy_coverage_ratio", "4 streams @ 5000k", 3), "0.305");
    assert_eq!(printed(&results, "wattcast_run_energy_coverage_ratio", "single stream @ 1500k", 3), "0.388");
    assert_eq!(printed(&results, "wattcast_run_energy_coverage_ratio", "baseline idle", 2), "0.75");
}

#[test]
fn the_sample_is_served_under_the_names_its_users_query() {
    let [results, qoe, _] = pages(&model(store::parse("20240115_103000", SAMPLE).unwrap(), None));
    let labels = r#"{scenario="4 streams @ 5000k",bitrate="5000k",encoder="libx264",run="20240115_103000"}"#;
    for line in [
        format!("results_scenario_duration_seconds{labels} 180.3"),
        format!("results_scenario_avg_fps{labels} 29.97"),
        format!("results_scenario_dropped_frames{labels} 12"),
        format!("results_scenario_total_frames{labels} 5412"),
        format!("results_scenario_vmaf_score{labels} 95.2"),
        format!("results_scenario_psnr_score{labels} 44.1"),
        format!("scenario_duration_seconds{labels} 180.3"),
        format!("scenario_power_max_watts{labels} 71.3"),
    ] {
        assert!(results.contains(&format!("{line}\n")), "{line}\n{results}");
    }
    assert!(qoe.contains(&format!("qoe_ssim_score{labels} ")), "{qoe}");
    // The baseline is scaled to the scenario: its power over the part that the samples cover.
    let (results, _) = (series(&results), ());
    let net = value(&results, "wattcast_run_net_power_watts", "2 streams @ 2500k", "").unwrap();
    let base = value(&results, "wattcast_run_baseline_power_watts", "2 streams @ 2500k", "").unwrap();
    assert!((net + base - 46.12).abs() < 1e-9);
    close(value(&results, "wattcast_run_net_energy_joules", "2 streams @ 2500k", ""), 2077.5 - base * 45.0, "net");
}

#[test]
fn what_is_missing_is_absent_and_what_is_zero_is_zero() {
    let [results, qoe, cost] =
        pages(&model(store::parse("x", br#"{"scenarios":[{"name":"a","dropped_frames":0}]}"#).unwrap(), None));
    let labels = r#"{scenario="a",bitrate="",encoder="",run="x"}"#;
    assert!(results.contains(&format!("results_scenario_dropped_frames{labels} 0\n")), "{results}");
    for absent in ["vmaf", "duration", "energy_joules"] {
        assert!(!results.contains(absent), "{absent}\n{results}");
    }
    assert!(qoe.is_empty() && cost.is_empty(), "{qoe}{cost}");
}

#[test]
fn joules_come_with_their_source_their_way_and_their_frames() {
    let text = br#"{"scenarios":[{"name":"a","total_frames":50,"start_time":10,"end_time":20,"container":"enc"}]}"#;
    let run = store::parse("x", text).unwrap();
    let row = |scope, source: &str, joules| Joules {
        scope,
        source: source.into(),
        joules: Microjoules(joules),
        edge_error: 0.5,
    };
    let energy = |rows| Energy {
        way: Way::Probe,
        rows,
        coverage: Some(1.0),
        seconds: Some(10.0),
        gap_seconds: 0.0,
        resets: 0,
        watts: vec![],
        cpu_seconds: Some(12.0),
    };
    let both = energy(vec![
        row(Scope::Host, "perf", 80_000_000),
        row(Scope::Host, "nvml", 10_000_000),
        row(Scope::Container, "perf", 25_000_000),
    ]);
    let answer = Answer { energy: Some(both), refused: vec![] };
    let [results, _, cost] = pages(&model(run.clone(), Some(vec![answer])));
    let labels = |scope: &str, source: &str| {
        format!(r#"{{scenario="a",bitrate="",encoder="",run="x",scope="{scope}",source="{source}",way="probe"}}"#)
    };
    for line in [
        format!("wattcast_run_energy_joules{} 80", labels("host", "perf")),
        format!("wattcast_run_energy_joules{} 25", labels("container", "perf")),
        format!("wattcast_run_energy_edge_error_joules{} 0.5", labels("container", "perf")),
        format!("wattcast_run_power_watts{} 9", labels("host", "perf+nvml")),
        format!("wattcast_run_power_watts{} 2.5", labels("container", "perf")),
        format!("wattcast_run_energy_per_frame_joules{} 0.5", labels("container", "perf")),
        r#"wattcast_run_energy_available{scenario="a",bitrate="",encoder="",run="x",reason=""} 1"#.to_owned(),
        r#"wattcast_run_cpu_seconds{scenario="a",bitrate="",encoder="",run="x"} 12"#.to_owned(),
    ] {
        assert!(results.contains(&format!("{line}\n")), "{line}\n{results}");
    }
    let paid = value(&series(&cost), "wattcast_cost_amount", "a", "part=\"energy\"");
    close(paid, 90.0 * 0.12 / 3.6e6, "the host's energy, all sources");
    let host_only = Answer { energy: Some(energy(vec![row(Scope::Host, "model", 9)])), refused: vec![] };
    let [results, ..] = pages(&model(run.clone(), Some(vec![host_only])));
    assert!(results.contains("reason=\"no_container\"} 0\n"), "{results}");
    let refused = Answer { energy: None, refused: vec![(Way::Probe, Refused::Never("too_old".into(), "gone".into()))] };
    let [results, ..] = pages(&model(run, Some(vec![refused])));
    assert!(
        results.contains("reason=\"too_old\"} 0\n") && !results.contains("wattcast_run_energy_joules"),
        "{results}"
    );
}

/// Two sockets are two counters of one source, and one row.
#[test]
fn files_of_our_own_shape_give_pages_that_can_be_read() {
    let text = include_bytes!("data/test_results_20261120_120000.json");
    let [results, qoe, cost] = pages(&model(store::parse("20261120_120000", text).unwrap(), None));
    let (results, qoe, cost) = (series(&results), series(&qoe), series(&cost));
    let first = "x264 veryfast 4M";
    close(value(&results, "wattcast_run_energy_joules", first, "scope=\"host\""), 8_100.000_001, "both sockets");
    close(value(&results, "wattcast_run_energy_edge_error_joules", first, "scope=\"host\""), 0.012, "their doubt");
    close(
        value(&results, "wattcast_run_net_energy_joules", first, ""),
        8_100.000_001 - 21.5 * 100.5,
        "above the baseline",
    );
    close(
        value(&results, "wattcast_run_energy_per_media_second_joules", first, "scope=\"host\""),
        8_100.000_001 / 200.0,
        "media",
    );
    close(
        value(&results, "wattcast_run_energy_per_megabit_joules", first, "scope=\"host\""),
        8_100.000_001 / 800.0,
        "megabits",
    );
    close(
        value(&results, "wattcast_run_energy_per_pixel_joules", first, "scope=\"host\""),
        8_100.000_001 / 17_971_200_000.0,
        "pixels",
    );
    // 1 + 4 · VMAF / 100 · (1 − drops / 0.2)
    let drops = 3.0 / 6000.0;
    close(
        value(&qoe, "wattcast_qoe_score", first, "made_of=\"vmaf+drops\""),
        1.0 + 4.0 * 0.9325 * (1.0 - drops / 0.2),
        "score",
    );
    close(value(&qoe, "wattcast_qoe_component_ratio", first, "smoothness"), 1.0 - drops / 0.2, "smoothness");
    let total = 8_100.000_001 * 0.12 / 3.6e6 + 150.25 * 0.5 / 3600.0;
    let unit = |unit: &str| value(&cost, "wattcast_cost_per_unit_amount", first, &format!("unit=\"{unit}\""));
    for (name, amount) in [
        ("pixel", 17_971_200_000.0),
        ("megapixel", 17_971.2),
        ("frame", 6000.0),
        ("stream_hour", 200.0 / 3600.0),
        ("viewer_hour", 40.0 * 100.5 / 3600.0),
    ] {
        close(unit(name), total / amount, name);
    }
}

prop_compose! {
    /// A scenario as any of the ways would bring it.
    fn any_row()(
        uj in 1u64..50_000_000_000,
        samples in proptest::collection::vec(0.5f64..400.0, 1..30),
        way in 0usize..3,
        seconds in 1u32..5000,
        frames in 1u64..1_000_000,
        vmaf in 1.0f64..100.0,
        name in "[a-z\"\\\\ ]{1,6}",
    ) -> (u64, Vec<f64>, usize, u32, u64, f64, String) {
        (uj, samples, way, seconds, frames, vmaf, name)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// One run, one energy: what 9502 shows, what 9503 divides by and what 9504 charges are the same to the microjoule, however it was obtained.
    #[test]
    fn every_port_has_the_same_energy(rows in proptest::collection::vec(any_row(), 1..12)) {
        let scenarios: Vec<_> = rows.iter().map(|(uj, samples, way, seconds, frames, vmaf, name)| {
            let mut row = serde_json::json!({
                "name": name, "bitrate": "2500k", "encoder_type": "libx264", "duration": seconds, "total_frames": frames,
                "vmaf_score": vmaf, "pixels_processed": frames * 100, "start_time": 1000, "end_time": 1000 + seconds,
                "cpu_usage_cores": samples, "step_seconds": 5,
            });
            match way {
                0 => row["energy_joules"] = serde_json::json!(Microjoules(*uj).joules()),
                1 => row["power_watts"] = serde_json::json!(samples),
                _ => {}
            }
            row
        }).collect();
        let run = store::parse("x", serde_json::json!({"scenarios": scenarios}).to_string().as_bytes()).unwrap();
        let run = Arc::new(run);
        let answers: Vec<Answer> = run.scenarios.iter().zip(&rows).map(|(scenario, (uj, _, way, ..))| {
            if *way < 2 {
                return Sources::in_file(scenario);
            }
            let joules = |part| Joules { scope: Scope::Host, source: format!("s{part}"), joules: Microjoules(part), edge_error: 0.0 };
            let energy = Energy {
                way: Way::Database, rows: vec![joules(uj / 3), joules(uj - uj / 3)], coverage: Some(1.0),
                seconds: None, gap_seconds: 0.0, resets: 0,
                watts: vec![], cpu_seconds: None,
            };
            Answer { energy: Some(energy), refused: vec![] }
        }).collect();
        let model = figures::model(&[(run.clone(), answers)], Scope::Host, &Prices::defaults());
        let [results, qoe, cost] = pages(&model);
        let (results, qoe, cost) = (series(&results), series(&qoe), series(&cost));
        for (entry, (_, _, _, _, frames, vmaf, _)) in model.entries.iter().zip(&rows) {
            let name = entry.scenario().name.replace('\\', "\\\\").replace('"', "\\\"");
            let label = format!("scenario=\"{name}\",");
            let joules: f64 = results.iter()
                .filter(|(id, _)| id.starts_with("wattcast_run_energy_joules{") && id.contains(&label)).map(|(_, value)| value).sum();
            let one = |page: &HashMap<String, f64>, metric: &str, also: &str| {
                let fits = |id: &str| id.starts_with(&format!("{metric}{{")) && id.contains(&label) && id.contains(also);
                let found: Vec<f64> = page.iter().filter(|(id, _)| fits(id)).map(|(_, value)| *value).collect();
                assert_eq!(found.len(), 1, "{metric} of {name}");
                found[0]
            };
            let micro = |joules: f64| (joules * 1e6).round();
            let pixels = (frames * 100) as f64;
            prop_assert_eq!(micro(joules), micro(vmaf / 100.0 * pixels / one(&qoe, "qoe_efficiency_score", "")), "9503");
            prop_assert_eq!(micro(joules), micro(vmaf / one(&qoe, "wattcast_quality_vmaf_per_joule", "")), "9503, per joule");
            prop_assert_eq!(micro(joules), micro(one(&cost, "wattcast_cost_amount", "part=\"energy\"") / 0.12 * 3.6e6), "9504");
            prop_assert_eq!(micro(joules), micro(one(&cost, "cost_energy_load_aware", "") / 0.12 * 3.6e6), "9504, the old name");
            prop_assert_eq!(micro(joules), micro(one(&results, "results_scenario_total_energy_joules", "")), "9502, the old name");
        }
    }
}
