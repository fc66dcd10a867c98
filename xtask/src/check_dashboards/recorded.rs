//! Recorded data with known values: an encoder host with two packages, two containers and a stream,
//! the results of a run, and external exporters. Both databases hold it; the expected panel values
//! are computed by hand.

use serde_json::json;

use testkit::databases::Series;

/// The label `instance` of all series.
pub(super) const INSTANCE: &str = "recorded:9500";
/// Length of the data, and seconds between samples.
const SECONDS: u64 = 1800;
const STEP: u64 = 5;

/// A counter with its rate per second, or a gauge with its value.
enum Value {
    Counter(f64),
    Gauge(f64),
}
use Value::{Counter, Gauge};

const CAM: &str = "container=\"cam\",id=\"0a\"";
const BATCH: &str = "container=\"batch\",id=\"0b\"";
const RUN: &str = "scenario=\"s\",bitrate=\"2500k\",encoder=\"libx264\",run=\"20260101_000000\"";

/// Power in W: 100 and 50 of two packages and 10 of memory, of which 10 are attributed to cam, 20
/// to batch, 5 to the system and 3 to retired containers; 2 are unattributed and 120 idle. A meter
/// shows 300, where the counters let expect 50 and 1.5 times their power.
fn values() -> Vec<(&'static str, String, Value)> {
    let zone = |package: u32, zone: &str| format!("package=\"{package}\",zone=\"{zone}\",source=\"perf\"");
    let of = |container: &str, package: u32| {
        format!("{container},image=\"x\",runtime=\"docker\",{}", zone(package, "package"))
    };
    let mut all = vec![
        ("wattcast_energy_joules_total", zone(0, "package"), Counter(100.0)),
        ("wattcast_energy_joules_total", zone(1, "package"), Counter(50.0)),
        ("wattcast_energy_joules_total", zone(0, "dram"), Counter(10.0)),
        ("wattcast_energy_joules_total", zone(0, "core"), Counter(70.0)),
        ("wattcast_energy_joules_total", zone(0, "psys"), Counter(250.0)),
        ("wattcast_power_watts", zone(0, "package"), Gauge(100.0)),
        ("wattcast_power_watts", zone(1, "package"), Gauge(50.0)),
        ("wattcast_power_watts", zone(0, "dram"), Gauge(10.0)),
        ("wattcast_power_watts", zone(0, "psys"), Gauge(250.0)),
        ("wattcast_container_energy_joules_total", of(CAM, 0), Counter(6.0)),
        ("wattcast_container_energy_joules_total", of(CAM, 1), Counter(4.0)),
        ("wattcast_container_energy_joules_total", of(BATCH, 0), Counter(20.0)),
        ("wattcast_system_energy_joules_total", zone(0, "package"), Counter(5.0)),
        ("wattcast_unattributed_energy_joules_total", zone(0, "package"), Counter(2.0)),
        ("wattcast_retired_energy_joules_total", zone(0, "package"), Counter(3.0)),
        ("wattcast_idle_energy_joules_total", zone(0, "package"), Counter(64.0)),
        ("wattcast_idle_energy_joules_total", zone(1, "package"), Counter(46.0)),
        ("wattcast_idle_energy_joules_total", zone(0, "dram"), Counter(10.0)),
        ("wattcast_idle_state_info", "package=\"0\",zone=\"package\",state=\"known\"".to_owned(), Gauge(1.0)),
        ("wattcast_conservation_error_joules", "package=\"0\",zone=\"package\"".to_owned(), Gauge(0.0)),
        (
            "wattcast_container_power_watts",
            format!("{CAM},image=\"x\",runtime=\"docker\",zone=\"package\",source=\"perf\""),
            Gauge(10.0),
        ),
        ("wattcast_container_cpu_seconds_total", format!("{CAM},package=\"0\",mode=\"alone\""), Counter(1.25)),
        ("wattcast_container_cpu_seconds_total", format!("{CAM},package=\"1\",mode=\"alone\""), Counter(0.25)),
        ("wattcast_container_runqueue_wait_seconds_sum", CAM.to_owned(), Counter(0.5)),
        ("wattcast_energy_uncertainty_ratio", format!("{CAM},window=\"60s\""), Gauge(0.02)),
        // A container with little power, whose uncertainty is no statement about the host.
        ("wattcast_energy_uncertainty_ratio", format!("{BATCH},window=\"60s\""), Gauge(1.83)),
        (
            "wattcast_container_power_watts",
            format!("{BATCH},image=\"x\",runtime=\"docker\",zone=\"package\",source=\"perf\""),
            Gauge(0.1),
        ),
        (
            "wattcast_stream_energy_joules_total",
            format!("stream=\"a\",{CAM},codec=\"h264\",source=\"perf\",share=\"process\""),
            Counter(4.0),
        ),
        ("wattcast_stream_frames_total", "stream=\"a\",codec=\"h264\"".to_owned(), Counter(32.0)),
        ("wattcast_stream_media_seconds_total", "stream=\"a\",codec=\"h264\"".to_owned(), Counter(0.5)),
        ("rapl_power_watts", "package=\"package-0\",zone=\"package_0\"".to_owned(), Gauge(100.0)),
        ("rapl_power_watts", "package=\"package-1\",zone=\"package_1\"".to_owned(), Gauge(50.0)),
        ("rapl_energy_joules_total", "package=\"package-0\",zone=\"package_0\"".to_owned(), Counter(100.0)),
        ("wattcast_energy_price_amount", "currency=\"EUR\"".to_owned(), Gauge(0.000_001)),
        ("wattcast_run_energy_joules", format!("{RUN},scope=\"host\",source=\"perf\",way=\"counters\""), Gauge(2077.5)),
        ("wattcast_run_duration_seconds", RUN.to_owned(), Gauge(120.0)),
        ("wattcast_quality_vmaf_score", format!("{RUN},model=\"m\",version=\"1\",pooling=\"mean\""), Gauge(91.0)),
        ("wattcast_cost_amount", format!("{RUN},currency=\"EUR\",part=\"total\""), Gauge(0.0182)),
        ("wattcast_cost_amount", format!("{RUN},currency=\"EUR\",part=\"energy\""), Gauge(0.0091)),
        ("qoe_vmaf_score", RUN.to_owned(), Gauge(91.0)),
        ("results_scenario_avg_fps", RUN.to_owned(), Gauge(29.97)),
        (
            "wattcast_gpu_engine_utilization_ratio",
            "gpu=\"GPU-1\",name=\"T4\",source=\"nvml\",engine=\"encoder\"".to_owned(),
            Gauge(0.75),
        ),
        ("wattcast_gpu_energy_joules_total", "gpu=\"GPU-1\",name=\"T4\",source=\"nvml\"".to_owned(), Counter(55.0)),
        (
            "wattcast_gpu_encoder_sessions",
            "gpu=\"GPU-1\",name=\"T4\",source=\"nvml\",codec=\"all\"".to_owned(),
            Gauge(3.0),
        ),
        (
            "wattcast_gpu_encoder_sessions",
            "gpu=\"GPU-1\",name=\"T4\",source=\"nvml\",codec=\"h264\"".to_owned(),
            Gauge(3.0),
        ),
        ("wattcast_reference_power_watts", "meter=\"wall\",source=\"http\"".to_owned(), Gauge(300.0)),
        ("wattcast_reference_offset_watts", "meter=\"wall\"".to_owned(), Gauge(50.0)),
        ("wattcast_reference_slope_ratio", "meter=\"wall\"".to_owned(), Gauge(1.5)),
        ("wattcast_reference_residual_ratio", "meter=\"wall\"".to_owned(), Gauge(0.031_25)),
        ("wattcast_reference_residual_interval_ratio", "meter=\"wall\",bound=\"lower\"".to_owned(), Gauge(0.015_625)),
        ("wattcast_reference_residual_interval_ratio", "meter=\"wall\",bound=\"upper\"".to_owned(), Gauge(0.046_875)),
        // External exporters.
        ("container_memory_usage_bytes", "id=\"/docker/0a\",image=\"x\",name=\"cam\"".to_owned(), Gauge(1_048_576.0)),
        ("DCGM_FI_DEV_POWER_USAGE", "gpu=\"0\",modelName=\"T4\"".to_owned(), Gauge(55.5)),
        ("node_memory_MemAvailable_bytes", String::new(), Gauge(2_097_152.0)),
        ("node_cpu_seconds_total", "cpu=\"0\",mode=\"idle\"".to_owned(), Counter(0.75)),
    ];
    // OpenMetrics requires the samples of a family in one block.
    all.sort_by_key(|(name, ..)| *name);
    all
}

/// Dashboard, panel, index of the query, a label of the series, and the value.
pub(super) type ExpectedValue = (&'static str, &'static str, usize, (&'static str, &'static str), f64);

/// Values of panels at the end of the data.
pub(super) const EXPECTED: [ExpectedValue; 43] = [
    ("wattcast-overview", "Host power", 0, ("instance", INSTANCE), 160.0),
    ("wattcast-overview", "Host cost per hour", 0, ("instance", INSTANCE), 0.576),
    ("wattcast-overview", "Attribution uncertainty", 0, ("instance", INSTANCE), 0.02),
    ("wattcast-overview", "Streams", 4, ("stream", "a"), 0.0144),
    ("exporter-health", "Conservation error", 0, ("instance", INSTANCE), 0.0),
    ("cost-analysis", "Host cost per hour", 0, ("instance", INSTANCE), 0.576),
    ("cost-analysis", "Container cost per hour", 0, ("container", "cam"), 0.036),
    ("cost-analysis", "Stream cost per hour", 0, ("stream", "a"), 0.0144),
    ("power-attribution", "Host power", 0, ("instance", INSTANCE), 160.0),
    // 30 W of 160 W minus 120 W.
    ("power-attribution", "Share attributed to containers", 0, ("", ""), 0.75),
    ("power-attribution", "Conservation error", 0, ("", ""), 0.0),
    ("power-attribution", "Power breakdown", 0, ("", ""), 30.0),
    ("power-attribution", "Power breakdown", 1, ("", ""), 5.0),
    ("power-attribution", "Power breakdown", 2, ("", ""), 3.0),
    ("power-attribution", "Power breakdown", 3, ("", ""), 2.0),
    ("power-attribution", "Power breakdown", 4, ("", ""), 120.0),
    ("power-attribution", "Container power", 0, ("container", "cam"), 10.0),
    ("power-attribution", "Container energy over the time range", 0, ("container", "batch"), 12_000.0),
    ("power-attribution", "CPU usage", 0, ("container", "cam"), 1.5),
    // 0.5 s of 2 s.
    ("power-attribution", "CPU wait ratio", 0, ("container", "cam"), 0.25),
    ("power-attribution", "Energy per frame", 0, ("stream", "a"), 0.125),
    ("power-attribution", "Attribution uncertainty", 0, ("container", "cam"), 0.02),
    ("power-attribution", "Wall power", 0, ("meter", "wall"), 300.0),
    // 50 W and 1.5 times 160 W.
    ("power-attribution", "Wall power", 1, ("meter", "wall"), 290.0),
    ("power-attribution", "Residual of the wall meter", 0, ("meter", "wall"), 0.031_25),
    ("power-attribution", "Residual of the wall meter", 1, ("bound", "upper"), 0.046_875),
    // 4 W for 7,200 s: encoding an hour of media takes two hours.
    ("power-attribution", "Streams", 2, ("stream", "a"), 28_800.0),
    ("energy-efficiency", "Energy per hour of media", 0, ("stream", "a"), 28_800.0),
    ("power-monitoring", "Total package power", 0, ("instance", INSTANCE), 150.0),
    ("power-monitoring", "Peak package power", 0, ("", ""), 150.0),
    ("power-monitoring", "Energy over the time range", 0, ("zone", "package_0"), 60_000.0),
    ("power-monitoring", "Host CPU usage (node_exporter)", 0, ("instance", INSTANCE), 0.25),
    ("power-monitoring", "Container memory usage (cAdvisor)", 0, ("name", "cam"), 1_048_576.0),
    ("gpu-energy", "Power (DCGM)", 0, ("gpu", "0"), 55.5),
    ("gpu-energy", "Encoder sessions", 0, ("instance", INSTANCE), 3.0),
    ("power-attribution", "Power breakdown", 5, ("", ""), 0.0),
    ("gpu-energy", "Encoder utilization", 0, ("", ""), 0.75),
    ("gpu-energy", "GPU energy over the time range", 0, ("name", "T4"), 33_000.0),
    ("results-overview", "Energy", 0, ("scenario", "s"), 2077.5),
    ("qoe-metrics", "VMAF Quality Score", 0, ("scenario", "s"), 91.0),
    ("cost-analysis", "Energy price per kWh", 0, ("currency", "EUR"), 3.6),
    ("qoe-cost", "Cost per hour", 0, ("scenario", "s"), 0.546),
    ("qoe-cost", "Cost per VMAF point", 0, ("scenario", "s"), 0.0002),
];

/// All series up to `end`.
pub(super) fn series(end: u64) -> Vec<Series> {
    let at = || (end - SECONDS..=end).step_by(usize::try_from(STEP).unwrap_or(1));
    values()
        .into_iter()
        .map(|(name, labels, value)| {
            let comma = if labels.is_empty() { "" } else { "," };
            let samples = at().map(|at| {
                let value = match value {
                    Counter(slope) => slope * (at - (end - SECONDS)) as f64,
                    Gauge(value) => value,
                };
                (at, (value * 1e6).round() as u64)
            });
            let samples = samples.collect();
            Series { name, labels: format!("instance=\"{INSTANCE}\",job=\"recorded\"{comma}{labels}"), samples }
        })
        .collect()
}

/// A result file for rate-quality curves and predictions: two encoders at four bitrates, and one
/// configuration with one, two and four streams.
pub(super) fn results() -> String {
    let mut rows = Vec::new();
    let mut row = |name: String, encoder: &str, bitrate: u32, streams: u32, vmaf: f64, joules: f64| {
        rows.push(json!({
            "name": name, "encoder_type": encoder, "bitrate": format!("{bitrate}k"), "resolution": "1280x720", "fps": 30, "streams": streams,
            "preset": "medium", "duration": 60, "media_seconds": 60 * streams, "total_frames": 1800 * streams, "dropped_frames": 0, "avg_fps": 30.0,
            "start_time": 1_705_320_000, "end_time": 1_705_320_060, "energy_joules": joules, "vmaf_score": vmaf, "psnr_score": 40.0, "ssim_score": 0.98,
            "pixels_processed": 1800 * u64::from(streams) * 1280 * 720,
        }));
    };
    for (encoder, quality_gain, energy_factor) in [("libx264", 0.0, 1.0), ("libx265", 2.5, 2.2)] {
        for (bitrate, vmaf) in [(1000, 80.0), (2000, 88.0), (4000, 93.0), (8000, 96.0)] {
            let joules = energy_factor * (600.0 + f64::from(bitrate) / 20.0);
            row(format!("{encoder} {bitrate}k"), encoder, bitrate, 1, f64::min(vmaf + quality_gain, 99.0), joules);
        }
    }
    for streams in [1, 2, 4] {
        row(format!("{streams} streams"), "libx264", 3000, streams, 91.0, 400.0 + 300.0 * f64::from(streams));
    }
    json!({ "scenarios": rows }).to_string()
}

/// A result file of schema 2 with repeats, whose metrics have intervals.
pub(super) fn repeated() -> String {
    let repeat = |n: u32, microjoules: u64| {
        let start = 1_705_323_600_000_000_000 + u64::from(n) * 20_000_000_000;
        json!({
            "n": n, "status": "ok", "frames": { "encoded": 300, "dropped": 0 }, "media_seconds": 10.0,
            "window": { "start_unix_ns": start, "end_unix_ns": start + 10_000_000_000_u64, "seconds": 10.0 + f64::from(n) / 10.0 },
            "energy": [{ "scope": "host", "domain": "package-0", "source": "powercap", "microjoules": microjoules }],
        })
    };
    let axes = json!({ "encoder": "libx264", "preset": "fast", "bitrate": "1M", "width": 640, "height": 360, "frames_per_second": 30, "streams": 1 });
    let repeats = [repeat(1, 10_000_000), repeat(2, 11_000_000), repeat(3, 12_000_000)];
    json!({
        "schema": "wattcast/results/2",
        "run": { "id": "x", "started": "2024-01-15T13:00:00Z", "status": "ok" },
        "cells": [{ "name": "repeated", "axes": axes, "repeats": repeats }],
    })
    .to_string()
}

/// The instance of [`history`].
pub(super) const HISTORY: &str = "history:9500";

/// 40 days of a host at 200 W, for budgets.
pub(super) fn history(end: u64) -> Series {
    let count = 40 * 24 * 12;
    let samples = (0..=count).map(|number| (end - (count - number) * 300, number * 300 * 200_000_000));
    Series {
        name: "wattcast_energy_joules_total",
        labels: format!("instance=\"{HISTORY}\",job=\"history\",package=\"0\",zone=\"package\",source=\"perf\""),
        samples: samples.collect(),
    }
}
