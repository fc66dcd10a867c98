//! Dashboards of the analysis service's metrics: results, quality, cost, and the relations between
//! them.
//!
//! The results of a run do not change: tables, bars and XY charts show them, not lines over time.

use super::{
    dashboard::{Dashboard, Folder, VariableSource},
    panel::{bars, row, stat, table, time_series, xy_chart},
};

/// The legend of series by scenario.
const SCENARIO: &str = "{{scenario}} {{bitrate}} {{encoder}} {{run}}";
/// The labels that identify a scenario on every port.
const BY: &str = "by (scenario, bitrate, encoder, run)";

const RESULTS: VariableSource = VariableSource {
    family: "results_exporter_up",
    further: &[
        ("run", "Run", "wattcast_run_duration_seconds", "run"),
        ("scenario", "Scenario", "wattcast_run_duration_seconds", "scenario"),
    ],
};
const QUALITY: VariableSource = VariableSource {
    family: "qoe_exporter_up",
    further: &[("run", "Run", "wattcast_qoe_score", "run"), ("scenario", "Scenario", "wattcast_qoe_score", "scenario")],
};
const COST: VariableSource = VariableSource {
    family: "cost_exporter_alive",
    further: &[
        ("currency!", "Currency", "wattcast_cost_amount", "currency"),
        ("run", "Run", "wattcast_cost_amount", "run"),
        ("scenario", "Scenario", "wattcast_cost_amount", "scenario"),
    ],
};

/// One series per scenario of the selected runs and scenarios.
fn of_runs(family: &str, matchers: &str) -> String {
    format!("max {BY} ({family}{{$S, run=~\"$run\", scenario=~\"$scenario\"{matchers}}})")
}

/// The same for the quality of a run, on dashboards of another port.
fn of_quality(family: &str) -> String {
    format!("max {BY} ({family}{{run=~\"$run\", scenario=~\"$scenario\"}})")
}

fn in_currency(family: &str, matchers: &str) -> String {
    format!(
        "max by (scenario, bitrate, encoder, run, currency) \
         ({family}{{$S, currency=~\"$currency\", run=~\"$run\", scenario=~\"$scenario\"{matchers}}})"
    )
}

/// Power of whole hosts, with idle power, each joule counted once. The recording rules have the
/// same, but only in the database to which a Prometheus or vmalert writes them.
const HOST_WATTS: &str = "sum by (instance) (\
     (max by (instance, package, zone, source) (rate(wattcast_energy_joules_total{zone=~\"package|dram|gpu\"}[$__rate_interval])) \
     unless on (instance) (wattcast_energy_joules_total{zone=\"psys\"} unless on (instance) wattcast_energy_joules_total{zone=\"package\"})) \
     or (max by (instance, package, zone, source) (rate(wattcast_energy_joules_total{zone=\"psys\"}[$__rate_interval])) \
     unless on (instance) wattcast_energy_joules_total{zone=\"package\"}))";
const CONTAINER_WATTS: &str = "sum by (container) (max by (instance, container, id, image, package, zone, source) \
     (rate(wattcast_container_energy_joules_total[$__rate_interval])))";
const STREAM_WATTS: &str = "sum by (stream) (max by (instance, stream, container, id, codec, source, share) \
     (rate(wattcast_stream_energy_joules_total[$__rate_interval])))";

/// The cost of an hour at a power in watts and the current price.
fn hourly_cost(watts: &str) -> String {
    format!("{watts} * 3600 * on () group_left (currency) max by (currency) (wattcast_energy_price_amount{{$S}})")
}

/// The energy efficiency of configurations.
pub(super) fn efficiency() -> Dashboard {
    let excess = "Energy per second of media above the best scenario with the same outputs: the saving of choosing that scenario.";
    Dashboard {
        uid: "energy-efficiency",
        title: "Energy efficiency",
        description: "Energy efficiency of configurations, and their excess energy over the best one",
        folder: Folder::Wattcast,
        variables: RESULTS,
        moved_to: None,
        panels: vec![
            stat(
                "Energy coverage",
                "percentunit",
                "Lowest energy coverage of the selected runs. Do not compare energy with a coverage below 95 %.",
            )
            .axis_range(Some(0.0), Some(1.0))
            .thresholds(&[(None, "red"), (Some(0.95), "green")])
            .query("min(wattcast_run_energy_coverage_ratio{$S, run=~\"$run\", scenario=~\"$scenario\"})", "lowest"),
            stat("Scenarios without energy", "none", "Number of scenarios whose energy is unknown, by reason.").no_value("none").query(
                "count by (reason) (wattcast_run_energy_available{$S, run=~\"$run\", scenario=~\"$scenario\"} == 0)",
                "{{reason}}",
            ),
            stat("Best pixels per joule", "none", "Highest value of the selected runs.")
                .decimals(0)
                .query("max(wattcast_run_pixels_per_joule{$S, run=~\"$run\", scenario=~\"$scenario\"})", "best"),
            stat("Runs", "none", "Number of selected runs.")
                .query("count(count by (run) (wattcast_run_duration_seconds{$S, run=~\"$run\"}))", "runs"),
            table(
                "Efficiency ranking",
                "Rank 1 is best; equal values share a rank. Energy is that of the host, including idle power, where it is known.",
            )
            .column(of_runs("wattcast_run_efficiency_rank", ", among=\"run\""), "Rank", "none")
            .column(of_runs("wattcast_run_pixels_per_joule", ""), "Pixels per joule", "short")
            .column(of_runs("wattcast_run_energy_per_frame_joules", ", scope=\"host\""), "Energy per frame", "joule")
            .column(of_runs("wattcast_run_energy_joules", ", scope=\"host\""), "Energy", "joule")
            .column(of_runs("wattcast_run_power_watts", ", scope=\"host\""), "Mean power", "watt")
            .sorted_by("Rank", false),
            xy_chart("Quality and energy per frame", "VMAF and host energy per frame of each scenario: further right is better quality, further down less energy. Compare equal resolutions, and scores of the same model, only.")
                .column(of_quality("wattcast_quality_vmaf_score"), "VMAF", "none")
                .column(of_runs("wattcast_run_energy_per_frame_joules", ", scope=\"host\""), "Energy per frame", "joule"),
            xy_chart("Measured and predicted power", "Mean power of each scenario, and the prediction of a linear fit over the number of streams. Repeat scenarios far from the diagonal.")
                .column(of_runs("results_scenario_mean_power_watts", ""), "Measured power", "watt")
                .column(of_runs("results_scenario_predicted_power_watts", ""), "Predicted power", "watt"),
            bars("Pixels per joule", "short", "Higher is better.")
                .query(of_runs("wattcast_run_pixels_per_joule", ""), SCENARIO),
            bars("Excess energy vs. best", "joule", excess).query(
                of_runs("wattcast_run_energy_over_best_joules", ""),
                SCENARIO,
            ),
            bars("Energy per frame", "joule", "Lower is better. Compare equal resolutions only.").query(
                of_runs("wattcast_run_energy_per_frame_joules", ", scope=\"host\""),
                SCENARIO,
            ),
            bars("Energy per megabit", "joule", "Energy per 10^6 bits of encoder output.").query(
                of_runs("wattcast_run_energy_per_megabit_joules", ", scope=\"host\""),
                SCENARIO,
            ),
            bars("Power above the baseline", "watt", "Mean power of the host minus its baseline power.")
                .query(of_runs("wattcast_run_net_power_watts", ""), SCENARIO),
            bars("Energy above the baseline", "joule", "Energy of the host minus baseline power times duration.")
                .query(of_runs("wattcast_run_net_energy_joules", ""), SCENARIO),
            row("Current values"),
            time_series(
                "Energy per frame of running streams",
                "joule",
                "Rising energy per frame of unchanged content is worth investigating.",
            )
            .query(
                "sum by (stream) (rate(wattcast_stream_energy_joules_total[$__rate_interval])) \
                 / (sum by (stream) (rate(wattcast_stream_frames_total[$__rate_interval])) > 0)",
                "{{stream}}",
            ),
            time_series("Energy per hour of media", "joule", "Energy per hour of media at the current rate.").query(
                "sum by (stream) (rate(wattcast_stream_energy_joules_total[$__rate_interval])) \
                 / (sum by (stream) (rate(wattcast_stream_media_seconds_total[$__rate_interval])) > 0) * 3600",
                "{{stream}}",
            ),
            time_series("Container power by zone", "watt", "Dynamic power of containers on CPU packages, memory and GPUs.")
                .stacked()
                .query("sum by (zone) (rate(wattcast_container_energy_joules_total[$__rate_interval]))", "{{zone}}"),
        ],
    }
}

/// The results of every scenario: the panels of the legacy dashboard, and energy.
pub(super) fn results() -> Dashboard {
    Dashboard {
        uid: "results-overview",
        title: "Results overview",
        description: "Results of every scenario of the newest runs",
        folder: Folder::Wattcast,
        variables: RESULTS,
        moved_to: None,
        panels: vec![
            stat("Total Scenarios", "none", "Scenarios of the selected runs.")
                .height(8)
                .query("sum(results_scenarios_total{$S})", "scenarios"),
            bars("Average FPS", "none", "Frames per second by scenario.").width(18).query(
                of_runs("results_scenario_avg_fps", ""),
                SCENARIO,
            ),
            bars("Scenario Duration", "s", "Length of the measurement window.")
                .query(of_runs("results_scenario_duration_seconds", ""), SCENARIO),
            bars("Energy", "joule", "Energy of the host, including idle power. The last table lists its source and method.")
                .query(of_runs("wattcast_run_energy_joules", ", scope=\"host\""), SCENARIO),
            table("Frame Statistics", "Encoded and dropped frames of each scenario.")
                .width(12)
                .height(8)
                .column(of_runs("results_scenario_total_frames", ""), "Frames", "none")
                .column(of_runs("results_scenario_dropped_frames", ""), "Dropped frames", "none")
                .sorted_by("Dropped frames", true),
            table("Quality Scores by Scenario", "VMAF (0 to 100) and PSNR. Compare scores of the same model only.")
                .width(12)
                .height(8)
                .column(of_runs("results_scenario_vmaf_score", ""), "VMAF", "none")
                .column(of_runs("results_scenario_psnr_score", ""), "PSNR", "dB")
                .sorted_by("VMAF", true),
            table("All scenarios", "One row per scenario.")
                .column(of_runs("wattcast_run_duration_seconds", ""), "Duration", "s")
                .column(of_runs("wattcast_run_frames", ""), "Frames", "none")
                .column(of_runs("wattcast_run_drop_ratio", ""), "Dropped", "percentunit")
                .column(of_runs("wattcast_run_energy_joules", ", scope=\"host\""), "Energy", "joule")
                .column(of_runs("wattcast_run_cpu_seconds", ""), "CPU time", "s"),
            table(
                "Repeated configurations",
                "Means of repeats with 95 % intervals, from wattcast-analysis run. Configurations whose intervals do not overlap differ; test all others with wattcast-analysis compare.",
            )
            .column(of_runs("wattcast_cell_repeats", ""), "Repeats", "none")
            .column(of_runs("wattcast_cell_energy_per_frame_joules", ", scope=\"host\""), "Energy per frame", "joule")
            .column(of_runs("wattcast_cell_energy_per_frame_interval_joules", ", scope=\"host\", bound=\"low\""), "95 % interval, low", "joule")
            .column(of_runs("wattcast_cell_energy_per_frame_interval_joules", ", scope=\"host\", bound=\"high\""), "95 % interval, high", "joule")
            .column(of_runs("wattcast_cell_duration_seconds", ""), "Duration", "s"),
            table("Energy sources and methods", "Label way: counters in the result file, the probe's window, the database, or power samples.")
                .column(
                    "max by (scenario, bitrate, encoder, run, source, way, scope) (wattcast_run_energy_joules{$S, run=~\"$run\", scenario=~\"$scenario\"})",
                    "Energy",
                    "joule",
                ),
        ],
    }
}

/// Quality scores, and quality per unit of energy.
pub(super) fn qoe() -> Dashboard {
    Dashboard {
        uid: "qoe-metrics",
        title: "QoE metrics",
        description: "Quality scores, quality per watt and quality per joule",
        folder: Folder::Wattcast,
        variables: QUALITY,
        moved_to: None,
        panels: vec![
            bars("VMAF Quality Score", "none", "0 to 100, with the colours of the legacy dashboard: red below 70, green from 85. Compare scores of the same model only.")
                .axis_range(Some(0.0), Some(100.0))
                .thresholds(&[(None, "red"), (Some(70.0), "yellow"), (Some(85.0), "green")])
                .query(of_runs("qoe_vmaf_score", ""), SCENARIO),
            bars("PSNR Quality Score", "dB", "Peak signal-to-noise ratio in dB. It does not model human perception.")
                .query(of_runs("qoe_psnr_score", ""), SCENARIO),
            bars("Quality per Watt Efficiency", "none", "VMAF over mean power. It favours low power and low quality: see Energy at equal quality.")
                .query(of_runs("qoe_quality_per_watt", ""), SCENARIO),
            bars("QoE Efficiency Score", "none", "Quality-weighted pixels per joule.").query(
                of_runs("qoe_efficiency_score", ""),
                SCENARIO,
            ),
            bars("Frame Drop Rate", "percentunit", "Dropped frames over encoded frames, with colours from 1 and 5 %.")
                .thresholds(&[(None, "green"), (Some(0.01), "yellow"), (Some(0.05), "red")])
                .query(of_runs("qoe_drop_rate", ""), SCENARIO),
            bars("SSIM Quality Score", "none", "0 to 1.").axis_range(Some(0.0), Some(1.0)).query(
                of_runs("qoe_ssim_score", ""),
                SCENARIO,
            ),
            bars("Quality of experience", "none", "1 (bad) to 5 (excellent): picture quality, reduced by dropped frames and stalls.")
                .axis_range(Some(1.0), Some(5.0))
                .query(of_runs("wattcast_qoe_score", ""), SCENARIO),
            bars("QoE components", "percentunit", "Picture quality and smoothness, 0 to 1.").axis_range(Some(0.0), Some(1.0)).query(
                "max by (scenario, bitrate, encoder, run, component) (wattcast_qoe_component_ratio{$S, run=~\"$run\", scenario=~\"$scenario\"})",
                "{{scenario}} {{bitrate}} {{encoder}} {{run}} {{component}}",
            ),
            table("Energy at equal quality", "Energy per second of media at a given VMAF, interpolated between scenarios that differ in bitrate only. The fair comparison of encoders.")
                .column(
                    "max by (run, encoder, preset, output_ladder, vmaf) (wattcast_quality_equal_energy_joules{$S, run=~\"$run\"})",
                    "Energy per second of media",
                    "joule",
                )
                .sorted_by("Energy per second of media", false),
        ],
    }
}

/// Cost of runs, and current cost.
pub(super) fn cost() -> Dashboard {
    Dashboard {
        uid: "cost-analysis",
        title: "Cost analysis",
        description: "Cost of runs, current cost of hosts, containers and streams, and budgets",
        folder: Folder::Wattcast,
        variables: COST,
        moved_to: None,
        panels: vec![
            row("Runs"),
            table("Total Cost by Scenario", "Cost of energy, and of CPU and GPU time if they have a price, in the currency of the last column.")
                .column(in_currency("wattcast_cost_amount", ", part=\"total\""), "Total", "none")
                .column(in_currency("wattcast_cost_amount", ", part=\"energy\""), "Energy", "none")
                .column(
                    "sum by (scenario, bitrate, encoder, run, currency) (max by (scenario, bitrate, encoder, run, currency, part) \
                     (wattcast_cost_amount{$S, currency=~\"$currency\", run=~\"$run\", scenario=~\"$scenario\", part=~\"compute|gpu\"}))",
                    "CPU and GPU time",
                    "none",
                )
                .sorted_by("Total", true),
            bars("Current Cost by Scenario", "none", "Total cost of each scenario at the prices of its time.")
                .money()
                .query(in_currency("wattcast_cost_amount", ", part=\"total\""), "{{scenario}} {{bitrate}} {{encoder}} {{run}} {{currency}}"),
            bars("Cost Breakdown: Energy vs Compute", "none", "Cost of the scenario's energy, and of its CPU and GPU time if they have a price.")
                .money()
                .query(
                    "max by (scenario, bitrate, encoder, run, part, currency) (wattcast_cost_amount{$S, currency=~\"$currency\", run=~\"$run\", scenario=~\"$scenario\", part!=\"total\"})",
                    "{{scenario}} {{bitrate}} {{encoder}} {{run}} {{part}} {{currency}}",
                ),
            bars("Cost Efficiency: Cost per Pixel", "sci", "Total cost per encoded pixel. Lower is better. Compare equal quality only.").query(
                in_currency("wattcast_cost_per_unit_amount", ", part=\"total\", unit=\"pixel\""),
                "{{scenario}} {{bitrate}} {{encoder}} {{run}} {{currency}}",
            ),
            bars("Cost per Viewer Watch Hour", "none", "As in the legacy exporter: each stream counts as one viewer, and CPU time without a configured price costs 0.50 per core-hour. The next panel uses the number of viewers of the run where it is known.")
                .money()
                .query(in_currency("cost_per_watch_hour", ""), "{{scenario}} {{bitrate}} {{encoder}} {{run}} {{currency}}"),
            table("Cost per delivered unit", "Cost per frame, hour of media, gigabyte and other units, as far as the run has the data, in the currency of the last column.").column(
                "max by (scenario, bitrate, encoder, run, part, unit, currency) (wattcast_cost_per_unit_amount{$S, currency=~\"$currency\", run=~\"$run\", scenario=~\"$scenario\"})",
                "Cost",
                "sci",
            ),
            row("Current values"),
            stat("Energy price per kWh", "none", "Current price of the tariff, including PUE.").money().decimals(4).query(
                "max by (currency) (wattcast_energy_price_amount{$S}) * 3.6e6",
                "{{currency}}",
            ),
            stat("Carbon intensity per kWh", "massg", "CO2 equivalents, including PUE. Absent without a configured carbon intensity.")
                .query("max(wattcast_energy_carbon_grams{$S}) * 3.6e6", "now"),
            stat("Budget spent", "percentunit", "Share of the monthly budget.")
                .axis_range(Some(0.0), Some(1.0))
                .thresholds(&[(None, "green"), (Some(0.8), "orange"), (Some(1.0), "red")])
                .query(
                    "max by (budget) (wattcast_budget_spent_amount{$S}) / on (budget) max by (budget) (wattcast_budget_amount{$S})",
                    "{{budget}}",
                ),
            stat("Budget burn rate", "none", "Spending rate relative to a budget that lasts exactly one month.")
                .decimals(2)
                .thresholds(&[(None, "green"), (Some(1.0), "orange"), (Some(2.0), "red")])
                .query("max by (budget) (wattcast_budget_burn_ratio{$S, window=\"24h\"})", "{{budget}}"),
            time_series("Host cost per hour", "none", "Current cost, including idle power.").money().query(
                hourly_cost(HOST_WATTS),
                "{{instance}} {{currency}}",
            ),
            time_series("Container cost per hour", "none", "Current cost of dynamic energy.").money().stacked().query(
                hourly_cost(CONTAINER_WATTS),
                "{{container}} {{currency}}",
            ),
            time_series("Stream cost per hour", "none", "Current cost of dynamic energy.").money().stacked().query(
                hourly_cost(STREAM_WATTS),
                "{{stream}} {{currency}}",
            ),
            time_series("Host carbon emissions per hour", "massg", "CO2 equivalents, including idle power.")
                .query(
                    format!("{HOST_WATTS} * 3600 * on () group_left () max(wattcast_energy_carbon_grams{{$S}})"),
                    "{{instance}}",
                ),
            time_series("Budget and forecast", "none", "Spending so far, the budget, and the forecast for the end of the month with its interval.")
                .money()
                .query("max by (budget, currency) (wattcast_budget_spent_amount{$S})", "{{budget}} {{currency}} spent")
                .query("max by (budget, currency) (wattcast_budget_amount{$S})", "{{budget}} {{currency}} budget")
                .query("max by (budget, currency, bound) (wattcast_budget_forecast_amount{$S})", "{{budget}} {{currency}} {{bound}}"),
            bars("Carbon emissions of runs", "massg", "CO2 equivalents by the carbon intensity of the grid during the run.").query(
                "max by (scenario, bitrate, encoder, run) (wattcast_cost_carbon_grams{$S, run=~\"$run\", scenario=~\"$scenario\"})",
                SCENARIO,
            ),
        ],
    }
}

/// Quality and cost in one view.
pub(super) fn qoe_cost() -> Dashboard {
    let vmaf = "max by (scenario, bitrate, encoder, run) (wattcast_quality_vmaf_score{run=~\"$run\", scenario=~\"$scenario\"})";
    let total = "max by (scenario, bitrate, encoder, run, currency) (wattcast_cost_amount{$S, part=\"total\", currency=~\"$currency\", run=~\"$run\", scenario=~\"$scenario\"})";
    let per_hour = format!(
        "{total} / on (scenario, bitrate, encoder, run) group_left () max by (scenario, bitrate, encoder, run) (wattcast_run_duration_seconds) * 3600"
    );
    let name = "{{scenario}} {{bitrate}} {{encoder}} {{run}} {{currency}}";
    Dashboard {
        uid: "qoe-cost",
        title: "Quality and cost",
        description: "Cost and energy per point of quality",
        folder: Folder::Wattcast,
        variables: COST,
        moved_to: None,
        panels: vec![
            table("Quality, energy and cost", "One row per scenario; the cost is in the currency of the last column. Sort by the column of interest.")
                .column(vmaf, "VMAF", "none")
                .column("max by (scenario, bitrate, encoder, run) (wattcast_qoe_score{run=~\"$run\", scenario=~\"$scenario\"})", "QoE", "none")
                .column("max by (scenario, bitrate, encoder, run) (wattcast_run_energy_joules{scope=\"host\", run=~\"$run\", scenario=~\"$scenario\"})", "Energy", "joule")
                .column(total, "Cost", "none")
                .column(per_hour.clone(), "Cost per hour", "none")
                .sorted_by("VMAF", true),
            xy_chart("Quality and cost per hour in $currency", "VMAF and cost per hour of each scenario's duration: further right is better quality, further down cheaper.")
                .column(vmaf, "VMAF", "none")
                .column(per_hour.clone(), "Cost per hour", "none"),
            bars("VMAF", "none", "0 to 100.").axis_range(Some(0.0), Some(100.0)).query(vmaf, SCENARIO),
            bars("Cost per hour", "none", "Cost of energy, and of CPU and GPU time if they have a price, per hour of the scenario's duration.").money().query(per_hour, name),
            bars("VMAF points per joule", "none", "Higher is better among scenarios of equal length. Compare at equal quality before choosing.").query(
                "max by (scenario, bitrate, encoder, run) (wattcast_quality_vmaf_per_joule{run=~\"$run\", scenario=~\"$scenario\"})",
                SCENARIO,
            ),
            bars("Cost per VMAF point", "none", "Cost of a scenario over its VMAF.").money().query(
                format!("{total} / on (scenario, bitrate, encoder, run) group_left () {vmaf}"),
                name,
            ),
            bars("Quality-weighted pixels per joule", "short", "VMAF / 100 · pixels / energy.").query(
                "max by (scenario, bitrate, encoder, run) (wattcast_quality_pixels_per_joule{run=~\"$run\", scenario=~\"$scenario\"})",
                SCENARIO,
            ),
            bars("Energy share of the cost", "percentunit", "The rest is the cost of CPU and GPU time; without a price of them energy is all.").axis_range(Some(0.0), Some(1.0)).query(
                format!(
                    "max by (scenario, bitrate, encoder, run, currency) (wattcast_cost_amount{{$S, part=\"energy\", currency=~\"$currency\", run=~\"$run\", scenario=~\"$scenario\"}}) / {total}"
                ),
                name,
            ),
        ],
    }
}
