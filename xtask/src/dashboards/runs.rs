//! Dashboards over what the analysis service knows: results, quality, cost, and what follows from them together.

use super::panel::{Board, Home, bars, curves, row, stat, table};

/// What tells scenarios apart on every port.
const BY: &str = "by (scenario, bitrate, encoder, run)";

const RESULTS: Home = Home {
    family: "results_exporter_up",
    more: &[
        ("run", "Run", "wattcast_run_duration_seconds", "run"),
        ("scenario", "Scenario", "wattcast_run_duration_seconds", "scenario"),
    ],
};
const QUALITY: Home = Home {
    family: "qoe_exporter_up",
    more: &[("run", "Run", "wattcast_qoe_score", "run"), ("scenario", "Scenario", "wattcast_qoe_score", "scenario")],
};
const COST: Home = Home {
    family: "cost_exporter_alive",
    more: &[
        ("currency!", "Currency", "wattcast_cost_amount", "currency"),
        ("run", "Run", "wattcast_cost_amount", "run"),
        ("scenario", "Scenario", "wattcast_cost_amount", "scenario"),
    ],
};

/// `sum by (scenario …) (family{chosen})`.
fn of_runs(family: &str, more: &str) -> String {
    format!("max {BY} ({family}{{$S, run=~\"$run\", scenario=~\"$scenario\"{more}}})")
}

fn in_currency(family: &str, more: &str) -> String {
    format!(
        "max by (scenario, bitrate, encoder, run, currency) \
         ({family}{{$S, currency=~\"$currency\", run=~\"$run\", scenario=~\"$scenario\"{more}}})"
    )
}

/// Which configuration does most with a joule.
pub(super) fn efficiency() -> Board {
    let wasted = "Joules for a second of media above what the best scenario with the same outputs needs: what choosing it would save.";
    Board {
        uid: "energy-efficiency",
        title: "Energy efficiency",
        about: "Which configuration does most with a joule, and what the others waste",
        home: RESULTS,
        panels: vec![
            stat(
                "Part of the window known",
                "percentunit",
                "The least of all runs shown: below 95 % a figure is not to be compared.",
            )
            .between(Some(0.0), Some(1.0))
            .steps(&[(None, "red"), (Some(0.95), "green")])
            .ask("min(wattcast_run_energy_coverage_ratio{$S, run=~\"$run\", scenario=~\"$scenario\"})", "least"),
            stat("Energy unknown", "none", "Scenarios without joules, and why.").or_else("none").ask(
                "count by (reason) (wattcast_run_energy_available{$S, run=~\"$run\", scenario=~\"$scenario\"} == 0)",
                "{{reason}}",
            ),
            stat("Best pixels for a joule", "none", "Of all runs shown.")
                .decimals(0)
                .ask("max(wattcast_run_pixels_per_joule{$S, run=~\"$run\", scenario=~\"$scenario\"})", "best"),
            stat("Runs", "none", "That are shown here.")
                .ask("count(count by (run) (wattcast_run_duration_seconds{$S, run=~\"$run\"}))", "runs"),
            table(
                "Who does most with a joule",
                "Rank 1 is best; equals share one. Energy is the host's where it is known, idle power included.",
            )
            .column(of_runs("wattcast_run_efficiency_rank", ", among=\"run\""), "Rank", "none")
            .column(of_runs("wattcast_run_pixels_per_joule", ""), "Pixels a joule", "short")
            .column(of_runs("wattcast_run_energy_per_frame_joules", ", scope=\"host\""), "Joules a frame", "joule")
            .column(of_runs("wattcast_run_energy_joules", ", scope=\"host\""), "Energy", "joule")
            .column(of_runs("wattcast_run_power_watts", ", scope=\"host\""), "Mean power", "watt"),
            bars("Pixels for a joule", "short", "More is better.")
                .ask(of_runs("wattcast_run_pixels_per_joule", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}}"),
            bars("Wasted beside the best", "joule", wasted).ask(
                of_runs("wattcast_run_energy_over_best_joules", ""),
                "{{scenario}} {{bitrate}} {{encoder}} {{run}}",
            ),
            bars("Joules of a frame", "joule", "Less is better; compare only the same resolution.").ask(
                of_runs("wattcast_run_energy_per_frame_joules", ", scope=\"host\""),
                "{{scenario}} {{bitrate}} {{encoder}} {{run}}",
            ),
            bars("Joules of a megabit", "joule", "What was put out, in 10^6 bits.").ask(
                of_runs("wattcast_run_energy_per_megabit_joules", ", scope=\"host\""),
                "{{scenario}} {{bitrate}} {{encoder}} {{run}}",
            ),
            bars("Power above the baseline", "watt", "What the work added to a host that has nothing to do.")
                .ask(of_runs("wattcast_run_net_power_watts", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}}"),
            bars("Energy above the baseline", "joule", "The baseline's power over the same length is taken off.")
                .ask(of_runs("wattcast_run_net_energy_joules", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}}"),
            row("Now"),
            curves(
                "Joules of a frame, of running streams",
                "joule",
                "As it is now: rising joules of the same frames are worth a look.",
            )
            .ask(
                "sum by (stream) (rate(wattcast_stream_energy_joules_total[$__rate_interval])) \
                 / (sum by (stream) (rate(wattcast_stream_frames_total[$__rate_interval])) > 0)",
                "{{stream}}",
            ),
            curves("Joules of an hour of stream", "joule", "For an hour of media, at the rate of now.").ask(
                "sum by (stream) (rate(wattcast_stream_energy_joules_total[$__rate_interval])) \
                 / (sum by (stream) (rate(wattcast_stream_media_seconds_total[$__rate_interval])) > 0) * 3600",
                "{{stream}}",
            ),
            curves("CPU and GPU", "watt", "Dynamic power of containers, by what they use.")
                .stacked()
                .ask("sum by (zone) (rate(wattcast_container_energy_joules_total[$__rate_interval]))", "{{zone}}"),
            curves(
                "Measured and predicted",
                "watt",
                "Mean power of scenarios, and what a line through them says: far from it is worth a second run.",
            )
            .ask(
                of_runs("results_scenario_mean_power_watts", ""),
                "{{scenario}} {{bitrate}} {{encoder}} {{run}} measured",
            )
            .ask(
                of_runs("results_scenario_predicted_power_watts", ""),
                "{{scenario}} {{bitrate}} {{encoder}} {{run}} predicted",
            ),
        ],
    }
}

/// What every scenario did: the replaced dashboard's panels, and its energy.
pub(super) fn results() -> Board {
    Board {
        uid: "results-overview",
        title: "Results overview",
        about: "What every scenario of the newest runs did",
        home: RESULTS,
        panels: vec![
            stat("Total Scenarios", "none", "Of all runs that are shown.").ask("sum(results_scenarios_total{$S})", "scenarios"),
            stat("Average FPS", "none", "Frames a second, by scenario.").wide(18).ask(
                of_runs("results_scenario_avg_fps", ""),
                "{{scenario}} {{bitrate}} {{encoder}} {{run}}",
            ),
            bars("Scenario Duration", "s", "From the first to the last moment of what was measured.")
                .ask(of_runs("results_scenario_duration_seconds", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}}"),
            bars("Energy", "joule", "Of the host, idle power included; in which way it is known stands in the table below.")
                .ask(of_runs("wattcast_run_energy_joules", ", scope=\"host\""), "{{scenario}} {{bitrate}} {{encoder}} {{run}}"),
            curves("Frame Statistics", "none", "Frames that were encoded, and frames that were lost.")
                .ask(of_runs("results_scenario_total_frames", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}} all")
                .ask(of_runs("results_scenario_dropped_frames", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}} lost"),
            curves("Quality Scores by Scenario", "none", "VMAF from 0 to 100; PSNR in dB.")
                .ask(of_runs("results_scenario_vmaf_score", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}} VMAF")
                .ask(of_runs("results_scenario_psnr_score", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}} PSNR"),
            table("All scenarios", "One line each.")
                .column(of_runs("wattcast_run_duration_seconds", ""), "Duration", "s")
                .column(of_runs("wattcast_run_frames", ""), "Frames", "none")
                .column(of_runs("wattcast_run_drop_ratio", ""), "Lost", "percentunit")
                .column(of_runs("wattcast_run_energy_joules", ", scope=\"host\""), "Energy", "joule")
                .column(of_runs("wattcast_run_cpu_seconds", ""), "CPU time", "s"),
            table(
                "Configurations that were repeated",
                "Means over repeats with their 95 % intervals, by wattcast-analysis run. Two whose intervals do not touch differ; for all others ask wattcast-analysis compare.",
            )
            .column(of_runs("wattcast_cell_repeats", ""), "Repeats", "none")
            .column(of_runs("wattcast_cell_energy_per_frame_joules", ", scope=\"host\""), "Joules a frame", "joule")
            .column(of_runs("wattcast_cell_energy_per_frame_interval_joules", ", scope=\"host\", bound=\"low\""), "from", "joule")
            .column(of_runs("wattcast_cell_energy_per_frame_interval_joules", ", scope=\"host\", bound=\"high\""), "to", "joule")
            .column(of_runs("wattcast_cell_duration_seconds", ""), "Duration", "s"),
            table("How the energy is known", "way: counters of the file, the probe's window, the database, or samples of power; coverage: the part of the window that it is of.")
                .column(
                    "max by (scenario, bitrate, encoder, run, source, way, scope) (wattcast_run_energy_joules{$S, run=~\"$run\", scenario=~\"$scenario\"})",
                    "Energy",
                    "joule",
                ),
        ],
    }
}

/// What the pictures are worth.
pub(super) fn qoe() -> Board {
    Board {
        uid: "qoe-metrics",
        title: "QoE metrics",
        about: "What the pictures are worth, and what a watt buys of it",
        home: QUALITY,
        panels: vec![
            curves("VMAF Quality Score", "none", "0 to 100, in the colours of the replaced dashboard: red below 70, green from 85. Compare runs that were scored by one model.")
                .between(Some(0.0), Some(100.0))
                .steps(&[(None, "red"), (Some(70.0), "yellow"), (Some(85.0), "green")])
                .ask(of_runs("qoe_vmaf_score", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}}"),
            curves("PSNR Quality Score", "dB", "Of the difference between pictures, in dB; it knows nothing of eyes.")
                .ask(of_runs("qoe_psnr_score", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}}"),
            curves("Quality per Watt Efficiency", "none", "VMAF over mean power. It rewards low power and bad pictures: see the panel of equal quality below.")
                .ask(of_runs("qoe_quality_per_watt", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}}"),
            curves("QoE Efficiency Score", "none", "Quality-weighted pixels for a joule.").ask(
                of_runs("qoe_efficiency_score", ""),
                "{{scenario}} {{bitrate}} {{encoder}} {{run}}",
            ),
            curves("Frame Drop Rate", "percentunit", "Frames lost over frames encoded; lines at 1 and 5 %.")
                .steps(&[(None, "green"), (Some(0.01), "yellow"), (Some(0.05), "red")])
                .ask(of_runs("qoe_drop_rate", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}}"),
            curves("SSIM Quality Score", "none", "0 to 1.").between(Some(0.0), Some(1.0)).ask(
                of_runs("qoe_ssim_score", ""),
                "{{scenario}} {{bitrate}} {{encoder}} {{run}}",
            ),
            bars("Quality of experience", "none", "From 1 (bad) to 5 (excellent): the picture, less what stutters.")
                .between(Some(1.0), Some(5.0))
                .ask(of_runs("wattcast_qoe_score", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}}"),
            bars("What it is made of", "percentunit", "Picture and smoothness, 0 to 1.").between(Some(0.0), Some(1.0)).ask(
                "max by (scenario, bitrate, encoder, run, component) (wattcast_qoe_component_ratio{$S, run=~\"$run\", scenario=~\"$scenario\"})",
                "{{scenario}} {{bitrate}} {{encoder}} {{run}} {{component}}",
            ),
            table("Energy at equal quality", "Joules for a second of media at a VMAF, by a curve through scenarios that differ in bitrate only: the fair way to compare encoders.")
                .column(
                    "max by (run, encoder, preset, output_ladder, vmaf) (wattcast_quality_equal_energy_joules{$S, run=~\"$run\"})",
                    "Joules a second of media",
                    "joule",
                ),
        ],
    }
}

/// What it costs: runs, and now.
pub(super) fn cost() -> Board {
    Board {
        uid: "cost-analysis",
        title: "Cost analysis",
        about: "What runs cost, what running containers and hosts cost now, and whether the budget lasts",
        home: COST,
        panels: vec![
            row("Runs"),
            curves("Total Cost by Scenario", "none", "Energy and compute, in units of the currency.")
                .ask(in_currency("cost_total_load_aware", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}} {{currency}}"),
            bars("Current Cost by Scenario", "none", "The same, of now.")
                .decimals(6)
                .ask(in_currency("cost_total_load_aware", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}} {{currency}}"),
            curves("Cost Breakdown: Energy vs Compute", "none", "What the energy of a scenario cost, and what its CPU time.")
                .in_bars()
                .stacked()
                .ask(in_currency("cost_energy_load_aware", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}} energy {{currency}}")
                .ask(in_currency("cost_compute_load_aware", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}} compute {{currency}}"),
            curves("Cost Efficiency: Cost per Pixel", "sci", "Less is better; compare only the same quality.")
                .ask(in_currency("cost_per_pixel", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}} {{currency}}"),
            curves("Cost per Viewer Watch Hour", "none", "Each stream counts as one viewer, as the replaced exporter had it; the next panel has real viewers where a run says how many.")
                .ask(in_currency("cost_per_watch_hour", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}} {{currency}}"),
            table("Cost of what was delivered", "For a frame, an hour of media, a gigabyte, … : units that a run has figures for.").wide(12).column(
                "max by (scenario, bitrate, encoder, run, unit, currency) (wattcast_cost_per_unit_amount{$S, currency=~\"$currency\", run=~\"$run\", scenario=~\"$scenario\"})",
                "Cost",
                "sci",
            ),
            row("Now"),
            stat("Price of a kilowatt hour", "none", "By the tariff's present hour, PUE included.").decimals(4).ask(
                "max by (currency) (wattcast_energy_price_amount{$S}) * 3.6e6",
                "{{currency}}",
            ),
            stat("Carbon of a kilowatt hour", "massg", "CO2-equivalents, PUE included; absent while no intensity is given.")
                .ask("max(wattcast_energy_carbon_grams{$S}) * 3.6e6", "now"),
            stat("Budget spent", "percentunit", "Of the month's money.")
                .between(Some(0.0), Some(1.0))
                .steps(&[(None, "green"), (Some(0.8), "orange"), (Some(1.0), "red")])
                .ask(
                    "max by (budget) (wattcast_budget_spent_amount{$S}) / on (budget) max by (budget) (wattcast_budget_amount{$S})",
                    "{{budget}}",
                ),
            stat("How fast it burns", "none", "1 is what lasts for the month.")
                .decimals(2)
                .steps(&[(None, "green"), (Some(1.0), "orange"), (Some(2.0), "red")])
                .ask("max by (budget) (wattcast_budget_burn_ratio{$S, window=\"24h\"})", "{{budget}}"),
            curves("Cost of hosts for an hour, now", "none", "Idle power included.").ask(
                "max by (instance, currency) (instance:wattcast_cost_amount_per_hour:rate5m)",
                "{{instance}} {{currency}}",
            ),
            curves("Cost of containers for an hour, now", "none", "Dynamic energy only.").stacked().ask(
                "sum by (container, currency) (container:wattcast_cost_amount_per_hour:rate5m)",
                "{{container}} {{currency}}",
            ),
            curves("Cost of streams for an hour, now", "none", "Dynamic energy only.").stacked().ask(
                "sum by (stream, currency) (stream:wattcast_cost_amount_per_hour:rate5m)",
                "{{stream}} {{currency}}",
            ),
            curves("Carbon of hosts for an hour, now", "massg", "CO2-equivalents, idle power included.")
                .ask("max by (instance) (instance:wattcast_carbon_grams_per_hour:rate5m)", "{{instance}}"),
            curves("Budget and forecast", "none", "What was spent, what may be, and what will have been at the end of the month, with the ends of its interval.")
                .ask("max by (budget, currency) (wattcast_budget_spent_amount{$S})", "{{budget}} {{currency}} spent")
                .ask("max by (budget, currency) (wattcast_budget_amount{$S})", "{{budget}} {{currency}} budget")
                .ask("max by (budget, currency, bound) (wattcast_budget_forecast_amount{$S})", "{{budget}} {{currency}} {{bound}}"),
            bars("Carbon of runs", "massg", "By the grid's intensity in the window of each.").ask(
                "max by (scenario, bitrate, encoder, run) (wattcast_cost_carbon_grams{$S, run=~\"$run\", scenario=~\"$scenario\"})",
                "{{scenario}} {{bitrate}} {{encoder}} {{run}}",
            ),
        ],
    }
}

/// Quality and cost beside each other.
pub(super) fn qoe_cost() -> Board {
    let vmaf = "max by (scenario, bitrate, encoder, run) (wattcast_quality_vmaf_score{run=~\"$run\", scenario=~\"$scenario\"})";
    let total = "max by (scenario, bitrate, encoder, run) (wattcast_cost_amount{$S, part=\"total\", currency=~\"$currency\", run=~\"$run\", scenario=~\"$scenario\"})";
    let per_hour = |part: &str| {
        format!(
            "max by (scenario, bitrate, encoder, run) (wattcast_cost_amount{{$S, part=\"{part}\", currency=~\"$currency\", run=~\"$run\", scenario=~\"$scenario\"}}) \
             / on (scenario, bitrate, encoder, run) max by (scenario, bitrate, encoder, run) (wattcast_run_duration_seconds) * 3600"
        )
    };
    Board {
        uid: "qoe-cost",
        title: "Quality and cost",
        about: "What a point of quality costs, in money and joules",
        home: COST,
        panels: vec![
            table("Quality, energy and cost", "One line for each scenario. Best is high quality for little money: sort by what matters to you.")
                .column(vmaf, "VMAF", "none")
                .column("max by (scenario, bitrate, encoder, run) (wattcast_qoe_score{run=~\"$run\", scenario=~\"$scenario\"})", "QoE", "none")
                .column("max by (scenario, bitrate, encoder, run) (wattcast_run_energy_joules{scope=\"host\", run=~\"$run\", scenario=~\"$scenario\"})", "Energy", "joule")
                .column(total, "Cost", "sci")
                .column(per_hour("total"), "Cost an hour", "none"),
            bars("VMAF", "none", "0 to 100.").between(Some(0.0), Some(100.0)).ask(vmaf, "{{scenario}} {{bitrate}} {{encoder}} {{run}}"),
            bars("Cost of an hour", "none", "Of the scenario's own time, energy and compute.").ask(per_hour("total"), "{{scenario}} {{bitrate}} {{encoder}} {{run}}"),
            bars("VMAF points for a joule", "none", "More is better between scenarios of one length; compare at equal quality before you choose.").ask(
                "max by (scenario, bitrate, encoder, run) (wattcast_quality_vmaf_per_joule{run=~\"$run\", scenario=~\"$scenario\"})",
                "{{scenario}} {{bitrate}} {{encoder}} {{run}}",
            ),
            bars("Money for a point of quality", "sci", "Cost of a scenario over its VMAF.").ask(
                format!("{total} / on (scenario, bitrate, encoder, run) {vmaf}"),
                "{{scenario}} {{bitrate}} {{encoder}} {{run}}",
            ),
            curves("Quality-weighted pixels for a joule", "short", "VMAF / 100 · pixels / energy.").ask(
                "max by (scenario, bitrate, encoder, run) (wattcast_quality_pixels_per_joule{run=~\"$run\", scenario=~\"$scenario\"})",
                "{{scenario}} {{bitrate}} {{encoder}} {{run}}",
            ),
            curves("Energy's part of the cost", "percentunit", "The rest is compute.").between(Some(0.0), Some(1.0)).ask(
                format!(
                    "max by (scenario, bitrate, encoder, run) (wattcast_cost_amount{{$S, part=\"energy\", currency=~\"$currency\", run=~\"$run\", scenario=~\"$scenario\"}}) / {total}"
                ),
                "{{scenario}} {{bitrate}} {{encoder}} {{run}}",
            ),
        ],
    }
}
