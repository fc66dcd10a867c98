//! The first dashboard to look at: where the watts go now, what streams and runs use, and whether
//! the figures can be trusted. Its panels link to the dashboards with the details.

use super::{
    dashboard::{Dashboard, Folder, OVERVIEW},
    health,
    panel::{Panel, bars, row, stat, table, time_series, xy_chart},
    power,
};

/// Rates of the energy and the progress of streams.
const STREAM_WATTS: &str =
    "sum by (stream) (rate(wattcast_stream_energy_joules_total{$S, stream=~\"$stream\"}[$__rate_interval]))";
const STREAM_FRAMES: &str =
    "sum by (stream) (rate(wattcast_stream_frames_total{stream=~\"$stream\"}[$__rate_interval]))";
const STREAM_MEDIA: &str =
    "sum by (stream) (rate(wattcast_stream_media_seconds_total{stream=~\"$stream\"}[$__rate_interval]))";

/// Power, streams, results and health in one view.
pub(super) fn overview() -> Dashboard {
    Dashboard {
        uid: OVERVIEW,
        title: "Overview",
        description: "Power by container, energy of streams, results of runs, and the state of the measurement",
        folder: Folder::Wattcast,
        variables: power::PROBE,
        moved_to: None,
        panels: [power_panels(), stream_panels(), run_panels(), health_panels()].concat(),
    }
}

/// The cost of an hour at a power in watts and the current price.
fn hourly_cost(watts: &str) -> String {
    format!("({watts}) * 3600 * on () group_left (currency) max by (currency) (wattcast_energy_price_amount)")
}

fn power_panels() -> Vec<Panel> {
    let uncertainty = format!(
        "max by (instance) (wattcast_energy_uncertainty_ratio{{$S, window=\"60s\"}} and on (instance, container, id) \
         topk by (instance) (1, sum by (instance, container, id) (wattcast_container_power_watts{{$S}})) {})",
        power::IDLE_KNOWN
    );
    vec![
        stat("Host power", "watt", "Packages, memory and GPUs, including idle power.").query(power::HOST_WATTS, "{{instance}}"),
        stat("Host cost per hour", "none", "Cost of the current power of the host, including idle power, at the current price.")
            .money()
            .query(hourly_cost(power::HOST_WATTS), "{{instance}} {{currency}}"),
        power::attributed_share().width(4),
        stat("Attribution uncertainty", "percentunit", "Relative uncertainty of the energy of the container with the most power, last 60 s. Hidden until the idle power of a package is known: before, idle energy counts as dynamic.")
            .width(4)
            .no_value(power::IDLE_UNKNOWN)
            .query(uncertainty, "{{instance}}"),
        power::energy_sources().width(4),
        time_series("Power by container", "watt", "All shares, stacked: the upper edge is the measured power. The power of containers is dynamic power, which excludes idle power.")
            .width(16)
            .height(12)
            .stacked()
            .query("sum(rate(wattcast_idle_energy_joules_total{$S}[$__rate_interval]))", "idle")
            // Present only with an idle policy that shares idle energy among containers.
            .query(power::CONTAINER_IDLE_WATTS, "idle power of containers")
            .query("sum(rate(wattcast_system_energy_joules_total{$S}[$__rate_interval]))", "system")
            .query("sum(rate(wattcast_unattributed_energy_joules_total{$S}[$__rate_interval]))", "unattributed")
            .query("sum(rate(wattcast_retired_energy_joules_total{$S}[$__rate_interval]))", "retired containers")
            .query(
                "sum by (container) (rate(wattcast_container_energy_joules_total{$S, container=~\"$container\"}[$__rate_interval]))",
                "{{container}}",
            ),
        bars("Containers with the most power", "watt", "The 20 containers with the most dynamic power in the last tick.")
            .width(8)
            .height(12)
            .query("topk(20, sum by (container) (wattcast_container_power_watts{$S, container=~\"$container\"}))", "{{container}}"),
    ]
}

fn stream_panels() -> Vec<Panel> {
    vec![
        row("Streams"),
        table("Streams", "Current power, and energy per frame; speed is seconds of media per second. Frames and speed need ffmpeg -progress reports on port 9506.")
            .width(12)
            .height(8)
            .column(STREAM_WATTS, "Power", "watt")
            .column(format!("{STREAM_WATTS} / ({STREAM_FRAMES} > 0)"), "Energy per frame", "joule")
            .column(STREAM_FRAMES, "Frames per second", "none")
            .column(STREAM_MEDIA, "Speed", "none")
            .column(hourly_cost(STREAM_WATTS), "Cost per hour", "none")
            .sorted_by("Power", true),
        time_series("Energy per frame", "joule", "Rises with resolution, slower presets, complex content and CPU wait.").query(
            format!("{STREAM_WATTS} / ({STREAM_FRAMES} > 0)"),
            "{{stream}}",
        ),
    ]
}

fn run_panels() -> Vec<Panel> {
    let by = "by (scenario, bitrate, encoder, run)";
    vec![
        row("Runs"),
        xy_chart("Quality and energy per frame", "VMAF and host energy per frame of each scenario: further right is better quality, further down less energy. Compare equal resolutions, and scores of the same model, only.")
            .column(format!("max {by} (wattcast_quality_vmaf_score)"), "VMAF", "none")
            .column(format!("max {by} (wattcast_run_energy_per_frame_joules{{scope=\"host\"}})"), "Energy per frame", "joule"),
        table("Newest runs", "One row per run. Energy is that of the host over all scenarios, including idle power; VMAF is the mean of all scenarios.")
            .width(12)
            .height(9)
            .column("min by (run) (wattcast_run_start_timestamp_seconds) * 1000", "Start", "dateTimeFromNow")
            .column("count by (run) (wattcast_run_duration_seconds)", "Scenarios", "none")
            .column(format!("sum by (run) (max {by} (wattcast_run_energy_joules{{scope=\"host\"}}))"), "Energy", "joule")
            .column("avg by (run) (wattcast_quality_vmaf_score)", "VMAF", "none")
            .sorted_by("Start", true),
    ]
}

fn health_panels() -> Vec<Panel> {
    vec![
        row("Measurement"),
        health::unhealthy_targets(""),
        health::firing_alerts(""),
        health::conservation_error("$S"),
        health::missed_ticks("$S"),
    ]
}
