//! The sample result file has the values and legacy names of the metrics contract, and the same
//! energy on every port.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

use std::{collections::HashMap, sync::Arc};

use analysis::pages::{cost as cost_page, quality, scenarios};
use metrics::page;
use proptest::prelude::*;
use results::{
    cost::Prices,
    energy::{EnergyLookup, EnergyMethod, EnergyReading, EnergySources, Scope, SourceError, WindowEnergy},
    model::Model,
    run::Run,
    store,
};
use units::Microjoules;

const SAMPLE: &[u8] = include_bytes!("data/test_results_20240115_103000.json");

fn model(run: Run, answers: Option<Vec<EnergyLookup>>) -> Model {
    let run = Arc::new(run);
    let answers = answers.unwrap_or_else(|| run.scenarios.iter().map(EnergySources::from_file).collect());
    Model::new(&[(run, answers)], Scope::Host, &Prices::defaults())
}

/// The scenario, quality and cost pages of a model.
fn pages(model: &Model) -> [String; 3] {
    let text = |page: page::Page| String::from_utf8(page.text().to_vec()).unwrap();
    let prices = Prices::defaults();
    let all = [
        text(page::render("runs", scenarios::families(model)).unwrap()),
        text(page::render("runs", quality::families(model, &[90.0])).unwrap()),
        text(page::render("runs", cost_page::families(model, &prices)).unwrap()),
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

/// The value of a metric for a scenario, if present; panics if there are several.
fn value(page: &HashMap<String, f64>, name: &str, scenario: &str, also: &str) -> Option<f64> {
    let label = format!("scenario=\"{scenario}\"");
    let fits = |id: &&String| id.starts_with(&format!("{name}{{")) && id.contains(&label) && id.contains(also);
    let mut found = page.keys().filter(fits);
    let first = found.next()?;
    assert!(found.next().is_none(), "{name} of {scenario} is ambiguous");
    page.get(first).copied()
}

fn assert_close(got: Option<f64>, wanted: f64, what: &str) {
    let got = got.unwrap_or_else(|| panic!("{what} is absent"));
    assert!((got - wanted).abs() <= wanted.abs() * 1e-12, "{what}: {got} is not {wanted}");
}

/// The golden table of the metrics contract in full precision, where the contract shows rounded
/// values.
#[test]
fn the_sample_has_the_values_of_the_contract() {
    let [results, qoe, cost] = pages(&model(store::parse("20240115_103000", SAMPLE).unwrap(), None));
    let (results, qoe, cost) = (series(&results), series(&qoe), series(&cost));
    #[rustfmt::skip]
    let golden = [
        // scenario, joules, covered seconds, seconds, core-seconds, (VMAF, pixels), mean of the
        // samples
        ("2 streams @ 2500k",      2077.5, 45.0, 120.5, 101.75, Some((92.5, 8_957_952_000.0)),  461.2 / 10.0),
        ("4 streams @ 5000k",      3855.0, 55.0, 180.3, 263.5,  Some((95.2, 13_436_928_000.0)), 840.5 / 12.0),
        ("single stream @ 1500k",  1154.0, 35.0, 90.2,  46.0,   Some((88.3, 2_508_185_600.0)),  263.5 / 8.0),
        ("baseline idle",          1135.0, 45.0, 60.0,  4.5,    None,                           1.0),
    ];
    for (scenario, joules, covered, seconds, core_seconds, quality, mean) in golden {
        assert_close(value(&results, "wattcast_run_energy_joules", scenario, "way=\"samples\""), joules, "joules");
        assert_close(value(&results, "results_scenario_total_energy_joules", scenario, ""), joules, "joules");
        assert_close(
            value(&results, "wattcast_run_energy_coverage_ratio", scenario, ""),
            covered / seconds,
            "coverage",
        );
        assert_close(value(&results, "wattcast_run_cpu_seconds", scenario, ""), core_seconds, "core-seconds");
        assert_close(value(&cost, "cost_energy_load_aware", scenario, "USD"), joules * 0.12 / 3.6e6, "energy cost");
        assert_close(
            value(&cost, "cost_compute_load_aware", scenario, "USD"),
            core_seconds * 0.5 / 3600.0,
            "compute cost",
        );
        let total = joules * 0.12 / 3.6e6 + core_seconds * 0.5 / 3600.0;
        assert_close(value(&cost, "cost_total_load_aware", scenario, "USD"), total, "total");
        match quality {
            Some((vmaf, pixels)) => {
                assert_close(
                    value(&qoe, "qoe_efficiency_score", scenario, ""),
                    vmaf / 100.0 * pixels / joules,
                    "pixels",
                );
                assert_close(value(&qoe, "qoe_quality_per_watt", scenario, ""), vmaf / mean, "VMAF for a watt");
                assert_close(value(&cost, "cost_per_pixel", scenario, "USD"), total / pixels, "a pixel's cost");
            }
            None => {
                assert_eq!(value(&qoe, "qoe_efficiency_score", scenario, ""), None);
                assert_eq!(value(&qoe, "qoe_quality_per_watt", scenario, ""), Some(0.0));
            }
        }
    }
    // Rounded values as in the contract.
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
fn the_sample_has_the_legacy_names() {
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
    // The baseline is scaled to the scenario: its power over the time that the samples cover.
    let results = series(&results);
    let net = value(&results, "wattcast_run_net_power_watts", "2 streams @ 2500k", "").unwrap();
    let base = value(&results, "wattcast_run_baseline_power_watts", "2 streams @ 2500k", "").unwrap();
    assert!((net + base - 46.12).abs() < 1e-9);
    assert_close(
        value(&results, "wattcast_run_net_energy_joules", "2 streams @ 2500k", ""),
        2077.5 - base * 45.0,
        "net",
    );
}

#[test]
fn missing_values_are_absent_and_zeros_are_zero() {
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
fn energy_has_labels_for_scope_source_and_way() {
    let text = br#"{"scenarios":[{"name":"a","total_frames":50,"start_time":10,"end_time":20,"container":"enc"}]}"#;
    let run = store::parse("x", text).unwrap();
    let row = |scope, source: &str, joules| EnergyReading {
        scope,
        source: source.into(),
        joules: Microjoules(joules),
        edge_error: 0.5,
        model_interval: None,
    };
    let energy = |rows| WindowEnergy {
        method: EnergyMethod::Probe,
        rows,
        coverage: Some(1.0),
        seconds: Some(10.0),
        gap_seconds: 0.0,
        resets: 0,
        watts: vec![],
        cpu_seconds: Some(12.0),
        idle_known: None,
    };
    let both = energy(vec![
        row(Scope::Host, "perf", 80_000_000),
        row(Scope::Host, "nvml", 10_000_000),
        row(Scope::Container, "perf", 25_000_000),
    ]);
    let answer = EnergyLookup { energy: Some(both), failures: vec![] };
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
    let energy_cost = value(&series(&cost), "wattcast_cost_amount", "a", "part=\"energy\"");
    assert_close(energy_cost, 90.0 * 0.12 / 3.6e6, "the host's energy, all sources");
    let host_only = EnergyLookup { energy: Some(energy(vec![row(Scope::Host, "model", 9)])), failures: vec![] };
    let [results, ..] = pages(&model(run.clone(), Some(vec![host_only])));
    assert!(results.contains("reason=\"no_container\"} 0\n"), "{results}");
    let refused = EnergyLookup {
        energy: None,
        failures: vec![(EnergyMethod::Probe, SourceError::Permanent("too_old".into(), "gone".into()))],
    };
    let [results, ..] = pages(&model(run, Some(vec![refused])));
    assert!(
        results.contains("reason=\"too_old\"} 0\n") && !results.contains("wattcast_run_energy_joules"),
        "{results}"
    );
}

/// Two sockets are two counters of one source, and one row.
#[test]
fn files_of_schema_2_have_the_expected_values() {
    let text = include_bytes!("data/test_results_20261120_120000.json");
    let [results, qoe, cost] = pages(&model(store::parse("20261120_120000", text).unwrap(), None));
    let (results, qoe, cost) = (series(&results), series(&qoe), series(&cost));
    let first = "x264 veryfast 4M";
    assert_close(value(&results, "wattcast_run_energy_joules", first, "scope=\"host\""), 8_100.000_001, "both sockets");
    assert_close(
        value(&results, "wattcast_run_energy_edge_error_joules", first, "scope=\"host\""),
        0.012,
        "edge error",
    );
    assert_close(
        value(&results, "wattcast_run_net_energy_joules", first, ""),
        8_100.000_001 - 21.5 * 100.5,
        "above the baseline",
    );
    assert_close(
        value(&results, "wattcast_run_energy_per_media_second_joules", first, "scope=\"host\""),
        8_100.000_001 / 200.0,
        "media",
    );
    assert_close(
        value(&results, "wattcast_run_energy_per_megabit_joules", first, "scope=\"host\""),
        8_100.000_001 / 800.0,
        "megabits",
    );
    assert_close(
        value(&results, "wattcast_run_energy_per_pixel_joules", first, "scope=\"host\""),
        8_100.000_001 / 17_971_200_000.0,
        "pixels",
    );
    // 1 + 4 · VMAF / 100 · (1 − drops / 0.2)
    let drops = 3.0 / 6003.0;
    assert_close(
        value(&qoe, "wattcast_qoe_score", first, "made_of=\"vmaf+drops\""),
        1.0 + 4.0 * 0.9325 * (1.0 - drops / 0.2),
        "score",
    );
    assert_close(value(&qoe, "wattcast_qoe_component_ratio", first, "smoothness"), 1.0 - drops / 0.2, "smoothness");
    let total = 8_100.000_001 * 0.12 / 3.6e6;
    let unit =
        |unit: &str| value(&cost, "wattcast_cost_per_unit_amount", first, &format!("part=\"total\",unit=\"{unit}\""));
    for (name, amount) in [
        ("pixel", 17_971_200_000.0),
        ("megapixel", 17_971.2),
        ("frame", 6000.0),
        ("stream_hour", 200.0 / 3600.0),
        ("viewer_hour", 40.0 * 100.5 / 3600.0),
    ] {
        assert_close(unit(name), total / amount, name);
    }
}

prop_compose! {
    /// A scenario with energy of any way.
    fn any_row()(
        uj in 1u64..50_000_000_000,
        samples in proptest::collection::vec(0.5f64..400.0, 1..30),
        method in 0usize..3,
        seconds in 1u32..5000,
        frames in 1u64..1_000_000,
        vmaf in 1.0f64..100.0,
        name in "[a-z\"\\\\ ]{1,6}",
    ) -> (u64, Vec<f64>, usize, u32, u64, f64, String) {
        (uj, samples, method, seconds, frames, vmaf, name)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// The energy of a run on port 9502, in the ratios of 9503 and in the costs of 9504 is equal to
    /// the microjoule.
    #[test]
    fn every_port_has_the_same_energy(rows in proptest::collection::vec(any_row(), 1..12)) {
        let scenarios: Vec<_> = rows.iter().map(|(uj, samples, method, seconds, frames, vmaf, name)| {
            let mut row = serde_json::json!({
                "name": name, "bitrate": "2500k", "encoder_type": "libx264", "duration": seconds, "total_frames": frames,
                "vmaf_score": vmaf, "pixels_processed": frames * 100, "start_time": 1000, "end_time": 1000 + seconds,
                "cpu_usage_cores": samples, "step_seconds": 5,
            });
            match method {
                0 => row["energy_joules"] = serde_json::json!(Microjoules(*uj).joules()),
                1 => row["power_watts"] = serde_json::json!(samples),
                _ => {}
            }
            row
        }).collect();
        let run = store::parse("x", serde_json::json!({"scenarios": scenarios}).to_string().as_bytes()).unwrap();
        let run = Arc::new(run);
        let answers: Vec<EnergyLookup> = run.scenarios.iter().zip(&rows).map(|(scenario, (uj, _, method, ..))| {
            if *method < 2 {
                return EnergySources::from_file(scenario);
            }
            let joules = |part| EnergyReading { scope: Scope::Host, source: format!("s{part}"), joules: Microjoules(part), edge_error: 0.0, model_interval: None };
            let energy = WindowEnergy {
                method: EnergyMethod::Database, rows: vec![joules(uj / 3), joules(uj - uj / 3)], coverage: Some(1.0),
                seconds: None, gap_seconds: 0.0, resets: 0,
                watts: vec![], cpu_seconds: None, idle_known: None,
            };
            EnergyLookup { energy: Some(energy), failures: vec![] }
        }).collect();
        let model = Model::new(&[(run.clone(), answers)], Scope::Host, &Prices::defaults());
        let [results, qoe, cost] = pages(&model);
        let (results, qoe, cost) = (series(&results), series(&qoe), series(&cost));
        for (entry, (_, _, _, _, frames, vmaf, _)) in model.entries.iter().zip(&rows) {
            let name = entry.scenario().name.replace('\\', "\\\\").replace('"', "\\\"");
            let label = format!("scenario=\"{name}\",");
            let joules: f64 = results.iter()
                .filter(|(id, _)| id.starts_with("wattcast_run_energy_joules{") && id.contains(&label)).map(|(_, value)| value).sum();
            let one = |page: &HashMap<String, f64>, metric: &str, also: &str| {
                let matches = |id: &str| id.starts_with(&format!("{metric}{{")) && id.contains(&label) && id.contains(also);
                let values: Vec<f64> = page.iter().filter(|(id, _)| matches(id)).map(|(_, value)| *value).collect();
                assert_eq!(values.len(), 1, "{metric} of {name}");
                values[0]
            };
            let micro = |joules: f64| (joules * 1e6).round();
            let pixels = (frames * 100) as f64;
            prop_assert_eq!(micro(joules), micro(vmaf / 100.0 * pixels / one(&qoe, "qoe_efficiency_score", "")), "9503");
            // Of a part of the window there is no quality per joule.
            if entry.derived.is_whole {
                let per_joule = one(&qoe, "wattcast_quality_vmaf_per_joule", "");
                prop_assert_eq!(micro(joules), micro(vmaf / per_joule), "9503, per joule");
            }
            prop_assert_eq!(micro(joules), micro(one(&cost, "wattcast_cost_amount", "part=\"energy\"") / 0.12 * 3.6e6), "9504");
            prop_assert_eq!(micro(joules), micro(one(&cost, "cost_energy_load_aware", "") / 0.12 * 3.6e6), "9504, legacy name");
            prop_assert_eq!(micro(joules), micro(one(&results, "results_scenario_total_energy_joules", "")), "9502, legacy name");
        }
    }
}
