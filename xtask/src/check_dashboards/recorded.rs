//! Recorded data whose every value is known: an encoder host with two packages, two containers and a stream, what a run of the seeds' sample says of it, and the
//! exporters of others. Both databases hold it, and what panels make of it is reckoned here by hand.

use serde_json::json;

use testkit::databases::Series;

/// The instance of all of it.
pub(super) const INSTANCE: &str = "recorded:9500";
/// For how long, and how often.
const SECONDS: u64 = 1800;
const STEP: u64 = 5;

/// A counter grows by so much a second, a gauge stands.
enum Value {
    Grows(f64),
    Is(f64),
}
use Value::{Grows, Is};

const CAM: &str = "container=\"cam\",id=\"0a\"";
const BATCH: &str = "container=\"batch\",id=\"0b\"";
const RUN: &str = "scenario=\"s\",bitrate=\"2500k\",encoder=\"libx264\",run=\"20260101_000000\"";

/// Watts: 100 and 50 of two packages and 10 of memory, of which 10 went to cam, 20 to batch, 5 to the system, 2 are nobody's, 3 of what is gone, and 120 idle.
fn values() -> Vec<(&'static str, String, Value)> {
    let zone = |package: u32, zone: &str| format!("package=\"{package}\",zone=\"{zone}\",source=\"perf\"");
    let of = |who: &str, package: u32| format!("{who},image=\"x\",runtime=\"docker\",{}", zone(package, "package"));
    let mut all = vec![
        ("wattcast_energy_joules_total", zone(0, "package"), Grows(100.0)),
        ("wattcast_energy_joules_total", zone(1, "package"), Grows(50.0)),
        ("wattcast_energy_joules_total", zone(0, "dram"), Grows(10.0)),
        ("wattcast_energy_joules_total", zone(0, "core"), Grows(70.0)),
        ("wattcast_energy_joules_total", zone(0, "psys"), Grows(250.0)),
        ("wattcast_power_watts", zone(0, "package"), Is(100.0)),
        ("wattcast_power_watts", zone(1, "package"), Is(50.0)),
        ("wattcast_power_watts", zone(0, "dram"), Is(10.0)),
        ("wattcast_power_watts", zone(0, "psys"), Is(250.0)),
        ("wattcast_container_energy_joules_total", of(CAM, 0), Grows(6.0)),
        ("wattcast_container_energy_joules_total", of(CAM, 1), Grows(4.0)),
        ("wattcast_container_energy_joules_total", of(BATCH, 0), Grows(20.0)),
        ("wattcast_system_energy_joules_total", zone(0, "package"), Grows(5.0)),
        ("wattcast_unattributed_energy_joules_total", zone(0, "package"), Grows(2.0)),
        ("wattcast_retired_energy_joules_total", zone(0, "package"), Grows(3.0)),
        ("wattcast_idle_energy_joules_total", zone(0, "package"), Grows(64.0)),
        ("wattcast_idle_energy_joules_total", zone(1, "package"), Grows(46.0)),
        ("wattcast_idle_energy_joules_total", zone(0, "dram"), Grows(10.0)),
        ("wattcast_conservation_error_joules", "package=\"0\",zone=\"package\"".to_owned(), Is(0.0)),
        (
            "wattcast_container_power_watts",
            format!("{CAM},image=\"x\",runtime=\"docker\",zone=\"package\",source=\"perf\""),
            Is(10.0),
        ),
        ("wattcast_container_cpu_seconds_total", format!("{CAM},package=\"0\",mode=\"alone\""), Grows(1.25)),
        ("wattcast_container_cpu_seconds_total", format!("{CAM},package=\"1\",mode=\"alone\""), Grows(0.25)),
        ("wattcast_container_runqueue_wait_seconds_sum", CAM.to_owned(), Grows(0.5)),
        ("wattcast_energy_uncertainty_ratio", CAM.to_owned(), Is(0.02)),
        (
            "wattcast_stream_energy_joules_total",
            format!("stream=\"a\",{CAM},codec=\"h264\",source=\"perf\",share=\"process\""),
            Grows(4.0),
        ),
        ("wattcast_stream_frames_total", "stream=\"a\",codec=\"h264\"".to_owned(), Grows(32.0)),
        ("wattcast_stream_media_seconds_total", "stream=\"a\",codec=\"h264\"".to_owned(), Grows(0.5)),
        ("rapl_power_watts", "package=\"package-0\",zone=\"package_0\"".to_owned(), Is(100.0)),
        ("rapl_power_watts", "package=\"package-1\",zone=\"package_1\"".to_owned(), Is(50.0)),
        ("rapl_energy_joules_total", "package=\"package-0\",zone=\"package_0\"".to_owned(), Grows(100.0)),
        ("wattcast_energy_price_amount", "currency=\"EUR\"".to_owned(), Is(0.000_001)),
        ("wattcast_run_energy_joules", format!("{RUN},scope=\"host\",source=\"perf\",way=\"counters\""), Is(2077.5)),
        ("wattcast_run_duration_seconds", RUN.to_owned(), Is(120.0)),
        ("wattcast_quality_vmaf_score", format!("{RUN},model=\"m\",version=\"1\",pooling=\"mean\""), Is(91.0)),
        ("wattcast_cost_amount", format!("{RUN},currency=\"EUR\",part=\"total\""), Is(0.0182)),
        ("wattcast_cost_amount", format!("{RUN},currency=\"EUR\",part=\"energy\""), Is(0.0091)),
        ("qoe_vmaf_score", RUN.to_owned(), Is(91.0)),
        ("results_scenario_avg_fps", RUN.to_owned(), Is(29.97)),
        (
            "wattcast_gpu_engine_utilization_ratio",
            "gpu=\"GPU-1\",name=\"T4\",source=\"nvml\",engine=\"encoder\"".to_owned(),
            Is(0.75),
        ),
        ("wattcast_gpu_energy_joules_total", "gpu=\"GPU-1\",name=\"T4\",source=\"nvml\"".to_owned(), Grows(55.0)),
        (
            "wattcast_gpu_encoder_sessions",
            "gpu=\"GPU-1\",name=\"T4\",source=\"nvml\",codec=\"all\"".to_owned(),
            Is(3.0),
        ),
        (
            "wattcast_gpu_encoder_sessions",
            "gpu=\"GPU-1\",name=\"T4\",source=\"nvml\",codec=\"h264\"".to_owned(),
            Is(3.0),
        ),
        // Of others.
        ("container_memory_usage_bytes", "id=\"/docker/0a\",image=\"x\",name=\"cam\"".to_owned(), Is(1_048_576.0)),
        ("DCGM_FI_DEV_POWER_USAGE", "gpu=\"0\",modelName=\"T4\"".to_owned(), Is(55.5)),
        ("node_memory_MemAvailable_bytes", String::new(), Is(2_097_152.0)),
        ("node_cpu_seconds_total", "cpu=\"0\",mode=\"idle\"".to_owned(), Grows(0.75)),
    ];
    // A page of metrics has each family in one block, and so must a file of them.
    all.sort_by_key(|(name, ..)| *name);
    all
}

/// Dashboard, panel, which query, which series by one of its labels, and the value.
pub(super) type Known = (&'static str, &'static str, usize, (&'static str, &'static str), f64);

/// What panels show of it, at its end.
pub(super) const EXPECTED: [Known; 30] = [
    ("power-attribution", "Power of the host", 0, ("instance", INSTANCE), 160.0),
    // 30 W of 160 less 120.
    ("power-attribution", "Given to containers", 0, ("", ""), 0.75),
    ("power-attribution", "Account closed to", 0, ("", ""), 0.0),
    ("power-attribution", "Where the power goes", 0, ("", ""), 30.0),
    ("power-attribution", "Where the power goes", 1, ("", ""), 5.0),
    ("power-attribution", "Where the power goes", 2, ("", ""), 3.0),
    ("power-attribution", "Where the power goes", 3, ("", ""), 2.0),
    ("power-attribution", "Where the power goes", 4, ("", ""), 120.0),
    ("power-attribution", "Power of containers", 0, ("container", "cam"), 10.0),
    ("power-attribution", "Energy of containers in the time shown", 0, ("container", "batch"), 12_000.0),
    ("power-attribution", "CPUs busy", 0, ("container", "cam"), 1.5),
    // Half a second of two.
    ("power-attribution", "Waiting for a CPU", 0, ("container", "cam"), 0.25),
    ("power-attribution", "Joules of a frame", 0, ("stream", "a"), 0.125),
    // 4 W for 7,200 s, since an hour of media takes two.
    ("power-attribution", "Streams", 2, ("stream", "a"), 28_800.0),
    ("energy-efficiency", "Joules of an hour of stream", 0, ("stream", "a"), 28_800.0),
    ("power-monitoring", "Power of all packages", 0, ("instance", INSTANCE), 150.0),
    ("power-monitoring", "Highest in the time shown", 0, ("", ""), 150.0),
    ("power-monitoring", "Energy in the time shown", 0, ("zone", "package_0"), 60_000.0),
    ("power-monitoring", "CPUs of the host (node_exporter)", 0, ("instance", INSTANCE), 0.25),
    ("power-monitoring", "Memory of containers (cAdvisor)", 0, ("name", "cam"), 1_048_576.0),
    ("gpu-energy", "Power by DCGM", 0, ("gpu", "0"), 55.5),
    ("gpu-energy", "Encoder sessions", 0, ("instance", INSTANCE), 3.0),
    ("power-attribution", "Where the power goes", 5, ("", ""), 0.0),
    ("gpu-energy", "Encoders in use", 0, ("", ""), 0.75),
    ("gpu-energy", "Energy in the time shown", 0, ("name", "T4"), 33_000.0),
    ("results-overview", "Energy", 0, ("scenario", "s"), 2077.5),
    ("qoe-metrics", "VMAF Quality Score", 0, ("scenario", "s"), 91.0),
    ("cost-analysis", "Price of a kilowatt hour", 0, ("currency", "EUR"), 3.6),
    ("qoe-cost", "Cost of an hour", 0, ("scenario", "s"), 0.546),
    ("qoe-cost", "Money for a point of quality", 0, ("scenario", "s"), 0.0002),
];

/// The series, up to `end`.
pub(super) fn series(end: u64) -> Vec<Series> {
    let at = || (end - SECONDS..=end).step_by(usize::try_from(STEP).unwrap_or(1));
    values()
        .into_iter()
        .map(|(name, labels, value)| {
            let comma = if labels.is_empty() { "" } else { "," };
            let samples = at().map(|at| {
                let value = match value {
                    Grows(slope) => slope * (at - (end - SECONDS)) as f64,
                    Is(value) => value,
                };
                (at, (value * 1e6).round() as u64)
            });
            let samples = samples.collect();
            Series { name, labels: format!("instance=\"{INSTANCE}\",job=\"recorded\"{comma}{labels}"), samples }
        })
        .collect()
}

/// A result file with what curves and predictions need: four bitrates of each of two encoders, and one configuration with one, two and four streams.
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
    for (encoder, better, costlier) in [("libx264", 0.0, 1.0), ("libx265", 2.5, 2.2)] {
        for (bitrate, vmaf) in [(1000, 80.0), (2000, 88.0), (4000, 93.0), (8000, 96.0)] {
            let joules = costlier * (600.0 + f64::from(bitrate) / 20.0);
            row(format!("{encoder} {bitrate}k"), encoder, bitrate, 1, f64::min(vmaf + better, 99.0), joules);
        }
    }
    for streams in [1, 2, 4] {
        row(format!("{streams} streams"), "libx264", 3000, streams, 91.0, 400.0 + 300.0 * f64::from(streams));
    }
    json!({ "scenarios": rows }).to_string()
}

/// A result file of schema 2 with repeats, as the runner writes it: what has intervals.
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

/// 40 days of a host of 200 W, for budgets to look back at.
pub(super) fn history(end: u64) -> Series {
    let count = 40 * 24 * 12;
    let samples = (0..=count).map(|number| (end - (count - number) * 300, number * 300 * 200_000_000));
    Series {
        name: "wattcast_energy_joules_total",
        labels: "instance=\"history:9500\",job=\"history\",package=\"0\",zone=\"package\",source=\"perf\"".to_owned(),
        samples: samples.collect(),
    }
}
