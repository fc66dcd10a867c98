//! The page of a report: its verdict, its plots, its numbers.

use std::sync::Arc;

use results::{
    energy::{EnergySources, Scope},
    store,
};
use serde_json::json;

use super::*;

/// A configuration: encoder, bits per second, VMAF, and joules of each repeat of ten seconds.
struct Measured {
    encoder: &'static str,
    bits: u64,
    vmaf: Option<f64>,
    joules: Vec<f64>,
}

fn cell(one: &Measured) -> Value {
    let repeat = |(n, joules): (usize, &f64)| {
        let start = 1_795_176_000_000_000_000_u64 + n as u64 * 20_000_000_000;
        let quality = one.vmaf.map(|vmaf| json!({ "metric": "vmaf", "value": vmaf, "model": "m", "pooling": "mean" }));
        json!({
            "n": n + 1, "status": "ok", "frames": { "encoded": 300, "dropped": 0 }, "bytes": one.bits * 10 / 8, "media_seconds": 10.0,
            "window": { "start_unix_ns": start, "end_unix_ns": start + 10_000_000_000, "seconds": 10.0 }, "pixels": 69_120_000,
            "energy": [{ "scope": "host", "domain": "package-0", "source": "perf", "microjoules": (joules * 1e6).round() as u64 }],
            "quality": quality.into_iter().collect::<Vec<_>>(), "frames_per_second": 30.0 * joules,
            "samples": { "step_seconds": 1.0, "power_watts": [joules / 10.0, joules / 9.0] },
        })
    };
    let repeats: Vec<Value> = one.joules.iter().enumerate().map(repeat).collect();
    json!({
        "name": format!("{} {}", one.encoder, one.bits), "content": { "sha256": "c" }, "repeats": repeats,
        "axes": { "encoder": one.encoder, "preset": "ultrafast", "bitrate": one.bits.to_string(), "width": 640, "height": 360, "frames_per_second": 30, "streams": 1 },
    })
}

fn page(measured: &[Measured]) -> String {
    page_of(&file_of(measured))
}

fn file_of(measured: &[Measured]) -> Value {
    json!({
        "schema": "wattcast/results/2", "run": { "id": "r", "started": "2026-11-20T12:00:00Z", "status": "ok", "seed": 1 },
        "host": { "name": "h" }, "cells": measured.iter().map(cell).collect::<Vec<_>>(),
        "baselines": [{ "id": "block-1", "note": "", "power_watts": { "mean": 59.366, "standard_error": 2.162e-14, "count": 3 } }],
    })
}

fn page_of(file: &Value) -> String {
    let run = Arc::new(store::parse("20261120_120000", file.to_string().as_bytes()).unwrap());
    let lookups = run.scenarios.iter().map(EnergySources::from_file).collect();
    let model = Model::new(&[(run, lookups)], Scope::Container, &Prices::defaults());
    html(&model, file, &Prices::defaults())
}

/// Two encoders, the second with 4.6 times the energy at equal quality.
fn two_encoders() -> Vec<Measured> {
    let points = [(345_800, 80.0, 1.0), (500_000, 88.0, 1.4), (700_000, 94.0, 2.0), (900_000, 96.0, 2.6)];
    let of = |encoder, factor: f64, noise: [f64; 3]| {
        points.map(|(bits, vmaf, joules)| Measured {
            encoder,
            bits,
            vmaf: Some(vmaf),
            joules: noise.map(|noise| factor * joules * noise).to_vec(),
        })
    };
    of("libx264", 10.0, [0.95, 1.0, 1.05]).into_iter().chain(of("libx265", 46.0, [0.96, 1.0, 1.04])).collect()
}

/// A report of a large file parsed all of its samples.
#[test]
fn details_of_a_file_are_those_that_a_report_shows() {
    let repeat = json!({ "n": 2, "status": "failed", "detail": "d", "samples": { "power_watts": [1, 2] } });
    let file = json!({
        "run": { "id": "r", "status": "partial" }, "host": { "name": "h" }, "tools": { "ffmpeg": { "version": "8" } },
        "preflight": [{ "check": "c" }], "baselines": [{ "id": "b" }], "search": { "summary": "s" }, "other": [1, 2],
        "cells": [{ "name": "x", "axes": { "streams": 1 }, "repeats": [repeat] }, "no object"],
    });
    let shown = details(&file.to_string());
    for path in [
        "/run/status",
        "/host/name",
        "/tools/ffmpeg/version",
        "/preflight/0/check",
        "/baselines/0/id",
        "/search/summary",
        "/cells/0/name",
        "/cells/0/repeats/0/n",
        "/cells/0/repeats/0/status",
        "/cells/0/repeats/0/detail",
    ] {
        assert!(shown.pointer(path).is_some() && shown.pointer(path) == file.pointer(path), "{path}: {shown}");
    }
    for path in ["/other", "/cells/1", "/cells/0/axes", "/cells/0/repeats/0/samples"] {
        assert_eq!(shown.pointer(path), None, "{path}");
    }
    assert_eq!(details("no JSON"), Value::Null);
}

/// The texts of all cells of the tables.
fn cells(page: &str) -> Vec<String> {
    let cells = page.split("<td").skip(1).map(|rest| {
        let text = rest.split_once('>').map_or("", |(_, text)| text);
        text.split("</td>").next().unwrap_or_default().replace("&lt;", "<")
    });
    cells.collect()
}

/// True for digits, `e`, an optional sign and digits.
fn has_exponent(text: &str) -> bool {
    let chars: Vec<char> = text.chars().collect();
    chars.windows(3).any(|three| {
        let [before, e, after] = [three[0], three[1], three[2]];
        before.is_ascii_digit() && matches!(e, 'e' | 'E') && (after.is_ascii_digit() || matches!(after, '-' | '+'))
    })
}

#[test]
fn the_verdict_is_first_and_has_an_interval() {
    let page = page(&two_encoders());
    let verdict = page.split("<section class=\"verdict\"").nth(1).unwrap().split("</section>").next().unwrap();
    assert!(
        verdict.contains("At VMAF 93, libx264 ultrafast uses 4.6")
            && verdict.contains("× less energy than libx265 ultrafast, 95 % interval 4."),
        "{verdict}"
    );
    assert!(page.find("verdict\" aria-label").unwrap() < page.find("<table").unwrap());
}

#[test]
fn without_quality_or_another_configuration_the_verdict_says_what_is_true() {
    let one = |vmaf, joules: &[f64]| Measured { encoder: "libx264", bits: 500_000, vmaf, joules: joules.to_vec() };
    let unknown = page(&[one(None, &[10.0, 10.1, 10.2]), Measured { bits: 900_000, ..one(None, &[20.0, 20.2, 20.4]) }]);
    assert!(
        unknown.contains("Quality is unknown, so this is no comparison at equal quality: libx264 500000"),
        "{unknown}"
    );
    assert!(unknown.contains("× less energy per second of media than libx264 900000, 95 % interval 1."), "{unknown}");
    let single = page(&[one(Some(90.0), &[10.0])]);
    assert!(single.contains("uses 33.3 mJ per frame; its VMAF is 90.00. A comparison needs"), "{single}");
    let nothing = page(&[one(Some(90.0), &[])]);
    assert!(nothing.contains("No energy is known, so there is no verdict."), "{nothing}");
}

/// The verdict named a best encoder where one of them may have encoded smaller pictures.
#[test]
fn configurations_with_unknown_outputs_are_not_compared() {
    let mut file = file_of(&two_encoders());
    for cell in file["cells"].as_array_mut().unwrap() {
        let axes = cell["axes"].as_object_mut().unwrap();
        axes.remove("width");
        axes.remove("height");
    }
    let page = page_of(&file);
    let verdict = page.split("class=\"verdict\"").nth(1).and_then(|rest| rest.split("</section>").next()).unwrap();
    assert!(verdict.contains("None of the 8 configurations is comparable with another."), "{verdict}");
    assert!(!page.contains("class=\"ring\"") && !page.contains("class=\"front\""), "{page}");
    assert!(page.contains("<polyline class=\"line s1\""), "the curves are drawn: {page}");
}

#[test]
fn plots_have_ticks_texts_and_no_scripts() {
    let page = page(&two_encoders());
    for text in [
        "<title id=\"plot1-title\">VMAF m mean by bit rate</title>",
        "<desc id=\"plot0-desc\">8 configurations. libx264 345800:",
        // The rate axis is inside one decade.
        "text-anchor=\"middle\">400</text>",
        "energy per frame (mJ)",
        "class=\"ring\"",
        "class=\"front\"",
        "libx265 ultrafast (640x360@30, 1 at once)",
        "@media screen and (prefers-color-scheme:dark)",
        "@media print",
        "<td>59.4</td>",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert_eq!(page.matches("<svg role=\"img\" aria-labelledby=").count(), 4, "every plot has a name");
    assert_eq!(page.matches("<svg").count(), 4);
    for word in ["<script", " onclick", " onload", " style=", "javascript:", "src="] {
        assert!(!page.contains(word), "{word}");
    }
}

#[test]
fn money_names_its_currency() {
    let page = page(&two_encoders());
    let currency = Prices::defaults().currency;
    assert!(page.contains(&format!("<th>{currency} per 1000 stream hours</th>")), "{page}");
}

/// Values and uncertainties of all sizes.
#[test]
fn no_cell_has_an_exponent_or_digits_below_its_uncertainty() {
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..40 {
        let size = 10_f64.powf(random.f64() * 11.0 - 5.0);
        let noise = 10_f64.powf(-random.f64() * 13.0);
        let joules = |factor: f64, random: &mut fastrand::Rng| {
            (0..3).map(|_| size * factor * (1.0 + noise * random.f64())).collect::<Vec<_>>()
        };
        let mut measured = Vec::new();
        for (encoder, factor) in [("libx264", 1.0), ("libx265", 3.0)] {
            for (step, vmaf) in [(1_u64, 80.0), (2, 90.0), (3, 95.0)] {
                let bits = random.u64(1000..100_000) * 10_u64.pow(random.u32(0..5)) * step;
                let vmaf = Some(vmaf + noise * random.f64());
                measured.push(Measured { encoder, bits, vmaf, joules: joules(factor, &mut random) });
            }
        }
        let page = page(&measured);
        for cell in cells(&page) {
            assert!(!has_exponent(&cell), "round {round}: {cell}");
            let Some((mean, half)) = cell.split_once(" ± ") else { continue };
            let decimals = |text: &str| text.split_once('.').map_or(0, |(_, decimals)| decimals.len());
            assert_eq!(decimals(mean), decimals(half), "round {round}: {cell}");
            let digits =
                half.trim_start_matches(['<', ' ', '0', '.', ',']).chars().filter(char::is_ascii_digit).count();
            assert!(digits <= 4 || half.ends_with("00"), "round {round}: {cell}");
        }
        let verdict = page.split("class=\"verdict\"").nth(1).and_then(|rest| rest.split("</section>").next()).unwrap();
        assert!(!has_exponent(verdict), "round {round}: {verdict}");
    }
}
