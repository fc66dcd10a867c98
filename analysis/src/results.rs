//! The pages of port 9502: the runs as metric families.

use exporter::{
    family::{Def, Family},
    process, program,
};

use crate::{
    run::{Run, Scenario},
    window::{Joules, Refused, Scope},
};

const SCENARIO: &[&str] = &["scenario", "bitrate", "encoder", "run"];
const ENERGY: &[&str] = &["scenario", "bitrate", "encoder", "run", "scope", "source"];

static RUN_ENERGY: Def = Def::gauge(
    "wattcast_run_energy_joules",
    ENERGY,
    "Energy of a scenario's window in joules. scope=\"host\": all that was measured; scope=\"container\": the dynamic energy \
     given to the scenario's container.",
);
static RUN_EDGE: Def = Def::gauge(
    "wattcast_run_energy_edge_error_joules",
    ENERGY,
    "The most that the probe's ticks at the window's edges can have added to the energy above.",
);
static RUN_POWER: Def =
    Def::gauge("wattcast_run_power_watts", ENERGY, "Mean power of a scenario: its energy over its duration.");
static RUN_FRAME: Def =
    Def::gauge("wattcast_run_energy_per_frame_joules", ENERGY, "Energy of a scenario over its encoded frames.");
static RUN_AVAILABLE: Def = Def::gauge(
    "wattcast_run_energy_available",
    &["scenario", "bitrate", "encoder", "run", "reason"],
    "1 when the probe gave all the energy of a scenario's window; 0 with the reason why not. no_container: the host's is \
     there, but the probe knew no container of the scenario's name in that time.",
);
static SOURCE_UP: Def = Def::gauge(
    "wattcast_source_up",
    &["source", "reason"],
    "1 when the directory of results, or the probe, serves; 0 with the reason absent, denied or broken.",
);
static PROBLEMS: Def = Def::gauge(
    "wattcast_results_problems",
    &[],
    "Result files and rows in them that could not be read; the log names each.",
);

static UP: Def = Def::gauge("results_exporter_up", &[], "1 while the exporter runs.").seed();
static SCENARIOS: Def = Def::gauge("results_scenarios_total", &[], "Scenarios that are served.").seed();
static DURATION: Def =
    Def::gauge("results_scenario_duration_seconds", SCENARIO, "Duration of a scenario in seconds.").seed();
static FPS: Def = Def::gauge("results_scenario_avg_fps", SCENARIO, "Mean frames per second of a scenario.").seed();
static DROPPED: Def = Def::gauge("results_scenario_dropped_frames", SCENARIO, "Frames that a scenario lost.").seed();
static FRAMES: Def = Def::gauge("results_scenario_total_frames", SCENARIO, "Frames that a scenario encoded.").seed();
static VMAF: Def = Def::gauge("results_scenario_vmaf_score", SCENARIO, "VMAF of a scenario, 0 to 100.").seed();
static PSNR: Def = Def::gauge("results_scenario_psnr_score", SCENARIO, "PSNR of a scenario in dB.").seed();

/// Every metric of this module, in the order of the page.
pub static DEFS: &[&Def] = &[
    &RUN_ENERGY,
    &RUN_EDGE,
    &RUN_POWER,
    &RUN_FRAME,
    &RUN_AVAILABLE,
    &PROBLEMS,
    &SOURCE_UP,
    &UP,
    &SCENARIOS,
    &DURATION,
    &FPS,
    &DROPPED,
    &FRAMES,
    &VMAF,
    &PSNR,
];

/// A scenario with the joules of its window, where they were asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The scenario.
    pub scenario: Scenario,
    /// The probe's answer; `None` when the file needs none, or nothing was asked yet.
    pub energy: Option<Result<Vec<Joules>, Refused>>,
}

impl Row {
    /// True when asking the probe again would change nothing.
    #[must_use]
    pub fn settled(&self) -> bool {
        match &self.energy {
            None => false,
            Some(Ok(_)) => true,
            Some(Err(refused)) => !refused.is_passing(),
        }
    }
}

/// A metric that repeats a field of the file.
type Fact = (&'static Def, fn(&Scenario) -> Option<f64>);

/// The page's families, in order. `sources` are names with the reason why they do not serve, empty when they do.
#[must_use]
pub fn families(run: Option<(&Run, &[Row])>, problems: usize, sources: &[(&str, &str)]) -> Vec<Family> {
    let [mut energy, mut edge, mut power, mut frame] =
        [&RUN_ENERGY, &RUN_EDGE, &RUN_POWER, &RUN_FRAME].map(Family::new);
    let mut available = Family::new(&RUN_AVAILABLE);
    let facts: [Fact; 6] = [
        (&DURATION, Scenario::seconds),
        (&FPS, |scenario| scenario.avg_fps),
        (&DROPPED, |scenario| scenario.dropped_frames.map(float)),
        (&FRAMES, |scenario| scenario.total_frames.map(float)),
        (&VMAF, |scenario| scenario.vmaf_score),
        (&PSNR, |scenario| scenario.psnr_score),
    ];
    let mut scenarios: Vec<Family> = facts.iter().map(|(def, _)| Family::new(def)).collect();
    let mut count = 0;
    if let Some((run, rows)) = run {
        count = rows.len();
        for Row { scenario, energy: answer } in rows {
            let labels = [&*scenario.name, &scenario.bitrate, &scenario.encoder_type, &run.id];
            for (family, (_, fact)) in scenarios.iter_mut().zip(&facts) {
                if let Some(value) = fact(scenario) {
                    family.push(&labels, value);
                }
            }
            let [name, bitrate, encoder, id] = labels;
            match answer {
                None => {}
                Some(Err(refused)) => available.push(&[name, bitrate, encoder, id, refused.reason()], 0.0),
                Some(Ok(all)) => {
                    let whole = scenario.container.is_none() || all.iter().any(|row| row.scope == Scope::Container);
                    let (reason, value) = if whole { ("", 1.0) } else { ("no_container", 0.0) };
                    available.push(&[name, bitrate, encoder, id, reason], value);
                    for Joules { scope, source, joules, edge_error } in all {
                        let labels = [name, bitrate, encoder, id, scope.as_str(), source];
                        energy.push(&labels, *joules);
                        edge.push(&labels, *edge_error);
                        if let Some(seconds) = scenario.seconds().filter(|seconds| *seconds > 0.0) {
                            power.push(&labels, joules / seconds);
                        }
                        if let Some(frames) = scenario.total_frames.filter(|frames| *frames > 0) {
                            frame.push(&labels, joules / float(frames));
                        }
                    }
                }
            }
        }
    }
    let mut up = Family::new(&SOURCE_UP);
    for (source, reason) in sources {
        up.push(&[source, reason], f64::from(u8::from(reason.is_empty())));
    }
    let mut all = vec![
        energy,
        edge,
        power,
        frame,
        available,
        Family::new(&PROBLEMS).with(&[], problems as f64),
        up,
        Family::new(&UP).with(&[], 1.0),
        Family::new(&SCENARIOS).with(&[], count as f64),
    ];
    all.extend(scenarios);
    all.push(program::build_info());
    all.extend(process::families());
    all
}

fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store;

    fn page(run: &Run, rows: &[Row]) -> String {
        let page = exporter::page::render(families(Some((run, rows)), 0, &[])).unwrap();
        String::from_utf8(page.to_vec()).unwrap()
    }

    #[test]
    fn the_sample_is_served_under_the_names_its_users_query() {
        let sample = include_bytes!("../tests/data/test_results_20240115_103000.json");
        let run = store::parse("20240115_103000", sample).unwrap();
        let rows: Vec<_> =
            run.scenarios.iter().map(|scenario| Row { scenario: scenario.clone(), energy: None }).collect();
        let page = page(&run, &rows);
        assert!(exporter::page::faults(&page).is_empty(), "{:?}", exporter::page::faults(&page));
        let labels = r#"{scenario="4 streams @ 5000k",bitrate="5000k",encoder="libx264",run="20240115_103000"}"#;
        for line in [
            "results_exporter_up 1".to_owned(),
            "results_scenarios_total 4".to_owned(),
            format!("results_scenario_duration_seconds{labels} 180.3"),
            format!("results_scenario_avg_fps{labels} 29.97"),
            format!("results_scenario_dropped_frames{labels} 12"),
            format!("results_scenario_total_frames{labels} 5412"),
            format!("results_scenario_vmaf_score{labels} 95.2"),
            format!("results_scenario_psnr_score{labels} 44.1"),
        ] {
            assert!(page.contains(&format!("{line}\n")), "{line}\n{page}");
        }
    }

    #[test]
    fn what_is_missing_is_absent_and_what_is_zero_is_zero() {
        let run = store::parse("x", br#"{"scenarios":[{"name":"a","dropped_frames":0}]}"#).unwrap();
        let page = page(&run, &[Row { scenario: run.scenarios[0].clone(), energy: None }]);
        assert!(
            page.contains("results_scenario_dropped_frames{scenario=\"a\",bitrate=\"\",encoder=\"\",run=\"x\"} 0\n")
        );
        assert!(!page.contains("vmaf") && !page.contains("duration") && !page.contains("energy_joules"));
    }

    #[test]
    fn joules_come_with_their_source_and_their_frames() {
        let text = br#"{"scenarios":[{"name":"a","total_frames":50,"start_time":10,"end_time":20}]}"#;
        let run = store::parse("x", text).unwrap();
        let joules = Joules { scope: Scope::Container, source: "model".into(), joules: 25.0, edge_error: 0.5 };
        let answered = Row { scenario: run.scenarios[0].clone(), energy: Some(Ok(vec![joules])) };
        let shown = page(&run, &[answered]);
        let labels = r#"{scenario="a",bitrate="",encoder="",run="x",scope="container",source="model"}"#;
        for line in [
            format!("wattcast_run_energy_joules{labels} 25"),
            format!("wattcast_run_energy_edge_error_joules{labels} 0.5"),
            format!("wattcast_run_power_watts{labels} 2.5"),
            format!("wattcast_run_energy_per_frame_joules{labels} 0.5"),
        ] {
            assert!(shown.contains(&format!("{line}\n")), "{line}\n{shown}");
        }
        let host = Joules { scope: Scope::Host, source: "model".into(), joules: 90.0, edge_error: 0.0 };
        let elsewhere = Scenario { container: Some("enc".into()), ..run.scenarios[0].clone() };
        let shown = page(&run, &[Row { scenario: elsewhere, energy: Some(Ok(vec![host])) }]);
        assert!(shown.contains("reason=\"no_container\"} 0\n") && shown.contains("scope=\"host\""), "{shown}");
        let refused = Refused::Never("too_old".into(), "gone".into());
        let shown = page(&run, &[Row { scenario: run.scenarios[0].clone(), energy: Some(Err(refused)) }]);
        assert!(shown.contains("reason=\"too_old\"} 0\n") && !shown.contains("wattcast_run_energy_joules"), "{shown}");
    }
}
