//! Renders a run as one self-contained HTML page without scripts, inline styles or external
//! resources: the verdict, then warnings, figures and plots.

use std::{collections::BTreeMap, fmt::Write as _};

use http::index_page::escape as escaped;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use crate::compare::{
    CurveDelta,
    curves::{Curve, curves},
    refusals,
};
use cli::number::{per_stream_hours, score_with_half_width, with_half_width};
use results::{
    cost::{PriceOrigin, Prices},
    estimate::Estimate,
    figures::Figures,
    model::Model,
    repeats::{Configuration, configurations},
};
use statistics::bjontegaard::MIN_POINTS;
use units::provenance::Unmeasured;

mod plot;
mod search;
mod svg;
#[cfg(test)]
mod tests;
mod verdict;

use plot::{Plot, PlotError, QualityAxis};

/// The style sheet of a report. A server with a content security policy can allow it by its hash.
/// The colours of plots can be distinguished with red-green colour blindness (Okabe and Ito 2008).
pub const STYLE: &str = include_str!("report.css");

/// Most pairs of curves for which Bjøntegaard deltas are computed.
const MAX_PAIRS: usize = 30;

/// The parts of a result file that [`html`] shows and a model lacks; null if the text is no JSON.
/// The rest is skipped: the samples of a large file take many times its size as a [`Value`].
#[must_use]
pub fn details(text: &str) -> Value {
    #[derive(Deserialize)]
    struct File<'a> {
        #[serde(default)]
        run: Value,
        #[serde(default)]
        host: Value,
        #[serde(default)]
        tools: Value,
        #[serde(default)]
        preflight: Value,
        #[serde(default)]
        baselines: Value,
        #[serde(default)]
        search: Value,
        #[serde(borrow, default)]
        cells: Vec<&'a RawValue>,
    }
    #[derive(Deserialize, Serialize)]
    struct Cell {
        #[serde(default)]
        name: Value,
        #[serde(default)]
        repeats: Vec<Repeat>,
    }
    #[derive(Deserialize, Serialize)]
    struct Repeat {
        #[serde(default)]
        n: Value,
        #[serde(default)]
        status: Value,
        #[serde(default)]
        detail: Value,
    }
    let Ok(file) = serde_json::from_str::<File<'_>>(text) else { return Value::Null };
    let cells: Vec<Cell> = file.cells.iter().filter_map(|cell| serde_json::from_str(cell.get()).ok()).collect();
    let File { run, host, tools, preflight, baselines, search, .. } = file;
    json!({
        "run": run, "host": host, "tools": tools, "preflight": preflight, "baselines": baselines, "search": search,
        "cells": cells,
    })
}

/// Renders the page. `file` is the result file of the newest run or its [`details`]; it contains
/// checks, tools and failures, which the model does not.
#[must_use]
pub fn html(model: &Model, file: &Value, prices: &Prices) -> String {
    let (all, curves) = (configurations(model), curves(model));
    let text = |path: &str| file.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let id = model.entries.first().map_or_else(|| text("/run/id").to_owned(), |entry| entry.run.id.clone());
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><link rel=\"icon\" href=\"data:,\"><meta name=\"color-scheme\" content=\"light dark\">",
    );
    let title = [text("/run/name"), &id].into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" · ");
    let title = escaped(&title);
    let _ = write!(page, "<title>Wattcast {title}</title><style>{STYLE}</style></head><body><main><h1>{title}</h1>");
    page += "<section class=\"verdict\" aria-label=\"Verdict\">";
    for sentence in verdict::sentences(&curves, &all) {
        let _ = write!(page, "<p>{}</p>", escaped(&sentence));
    }
    page += "</section>";
    let _ = write!(
        page,
        "<p class=\"note\">{} on {}, {} · ffmpeg {} · seed {} · {}</p>",
        escaped(text("/run/started")),
        escaped(text("/host/name")),
        escaped(text("/host/cpu/model")),
        escaped(text("/tools/ffmpeg/version")),
        file.pointer("/run/seed").and_then(Value::as_u64).map_or_else(|| "–".to_owned(), |seed| seed.to_string()),
        escaped(text("/run/status")),
    );
    banners(&mut page, model, file, prices);
    page += &search::section(file);
    summary(&mut page, &all, prices);
    plots(&mut page, model, &all, &curves);
    bjontegaard(&mut page, &curves);
    failures(&mut page, file);
    checks(&mut page, file);
    baselines(&mut page, file);
    page += "<h2>How to read this</h2><p class=\"note\">± is half the width of Student's 95 % interval over the repeats. Energy of the encoder is the dynamic energy that the probe attributed to its \
             container, without the idle power of the machine. Where the container is unknown, it is the energy of the whole host; the table shows which. Windows start and end with a tick that the probe took for \
             them; quality was scored after all measurements. The verdict interpolates the energy per second of media between the measured qualities; its interval is that of the ratio, by the variance of the repeats. \
             In each plot, a configuration is on the Pareto front when no other with the same outputs is better in one axis and worse in none, by more than the intervals; a single repeat has no interval. \
             Bjøntegaard deltas use PCHIP interpolation with 95 % intervals by the variance of the repeats; the delta by Akima interpolation is in parentheses.</p></main></body></html>\n";
    page
}

fn banners(page: &mut String, model: &Model, file: &Value, prices: &Prices) {
    let mut banner = |text: &str| {
        let _ = write!(page, "<div class=\"banner\">{}</div>", escaped(text));
    };
    let derived = model.entries.iter().map(|entry| &entry.derived);
    for sentence in Unmeasured::sentences(derived.map(|derived| (&*derived.source, derived.model_interval))) {
        banner(&sentence);
    }
    if model.entries.iter().all(|entry| entry.derived.energy.is_none()) {
        banner("No energy is known for this run.");
    }
    if file.pointer("/run/status").and_then(Value::as_str).is_some_and(|status| status != "ok") {
        banner("Some repeats failed or are missing; see the list below.");
    }
    if prices.energy_origin == PriceOrigin::Default {
        let _ = write!(
            page,
            "<p class=\"note\">Costs use the built-in default price of energy; set your own with --energy.price.</p>"
        );
    }
}

/// A mean with its interval, escaped; `scale` is its unit in that of the column.
fn mean_with_interval(estimate: Option<Estimate>, scale: f64) -> String {
    let text =
        |estimate: Estimate| with_half_width(estimate.mean * scale, estimate.half_width.map(|half| half * scale));
    escaped(&estimate.map_or_else(|| "–".to_owned(), text))
}

fn summary(page: &mut String, all: &[Configuration<'_>], prices: &Prices) {
    let rows: Vec<(&Configuration<'_>, Figures)> = all.iter().map(|one| (one, Figures::of(one))).collect();
    let largest = |of: fn(&Figures) -> Option<Estimate>| {
        rows.iter().filter_map(|(_, figures)| Some(of(figures)?.mean)).fold(0.0, f64::max)
    };
    let (unit, per_joule) = plot::energy_unit(largest(|figures| figures.joules_per_frame));
    let (hours, per_hours) = per_stream_hours(largest(|figures| figures.cost_per_stream_hour));
    let _ = write!(
        page,
        "<h2>Configurations</h2><div class=\"wide\" role=\"group\" aria-label=\"Table\" tabindex=\"0\"><table><thead><tr><th class=\"t\">configuration</th><th>n</th><th>energy (J)</th><th class=\"t\">energy of</th><th>{unit} per frame</th>\
         <th>J per second of media</th><th>rank</th><th>fps</th><th>kbit/s</th><th>VMAF</th><th>{} per {per_hours}</th></tr></thead><tbody>",
        escaped(&prices.currency)
    );
    for (configuration, figures) in &rows {
        let mut source = figures.energy_source.clone().unwrap_or_else(|| "–".to_owned());
        if let Some(interval) = figures.model_interval {
            let _ = write!(source, ", modelled: {interval}");
        }
        if !figures.note.is_empty() {
            let _ = write!(source, " ({})", figures.note);
        }
        let rank = match (figures.rank, figures.ladder_rank) {
            (Some(all), Some(ladder)) => format!("{all} ({ladder})"),
            (Some(all), None) => all.to_string(),
            _ => "–".to_owned(),
        };
        let vmaf = figures.vmaf.map(|vmaf| score_with_half_width(vmaf.mean, vmaf.half_width));
        let columns = [
            configuration.entries.len().to_string(),
            mean_with_interval(figures.joules, 1.0),
            escaped(&source),
            mean_with_interval(figures.joules_per_frame, per_joule),
            mean_with_interval(figures.joules_per_media_second, 1.0),
            rank,
            mean_with_interval(figures.frames_per_second, 1.0),
            mean_with_interval(figures.bits_per_second, 1e-3),
            escaped(vmaf.as_deref().unwrap_or("–")),
            mean_with_interval(figures.cost_per_stream_hour, hours),
        ];
        let _ = write!(page, "<tr><td>{}</td>", escaped(&configuration.first().scenario().name));
        for (at, column) in columns.iter().enumerate() {
            let _ = write!(page, "<td{}>{column}</td>", if at == 2 { " class=\"t\"" } else { "" });
        }
        *page += "</tr>";
    }
    let single = if rows.iter().any(|(one, _)| one.entries.len() == 1) {
        " A single repeat has no interval, so any difference gives it another rank."
    } else {
        ""
    };
    let _ = write!(
        page,
        "</tbody></table></div><p class=\"note\">Rank 1 has the most pixels per joule, in brackets among the same outputs; configurations whose intervals overlap tie.{single}</p>"
    );
}

fn plots(page: &mut String, model: &Model, all: &[Configuration<'_>], curves: &[Curve<'_>]) {
    let mut drawings: Vec<(String, Result<Plot, PlotError>)> =
        vec![("Energy by configuration, with 95 % intervals".to_owned(), plot::energy(all))];
    // A plot shows one quality metric and one source of energy.
    let mut kinds: BTreeMap<(&str, &str), Vec<&Curve<'_>>> = BTreeMap::new();
    for curve in curves {
        kinds.entry((&*curve.quality, &*curve.source)).or_default().push(curve);
    }
    for ((quality, source), these) in kinds {
        drawings.push((format!("{quality} by bit rate"), plot::quality(&these, QualityAxis::Rate)));
        let suffix = if source.is_empty() { String::new() } else { format!(" ({source})") };
        drawings.push((format!("{quality} by energy{suffix}"), plot::quality(&these, QualityAxis::Energy)));
    }
    drawings.push(("Power over time".to_owned(), plot::power(model, all)));
    let has_front = drawings.len() > 2;
    *page += "<div class=\"plots\">";
    for (number, (title, drawn)) in drawings.iter().enumerate() {
        let _ = write!(page, "<figure><h2>{}</h2>", escaped(title));
        match drawn {
            Ok(plot) => *page += &plot.html(number, title),
            Err(why) => {
                let _ = write!(page, "<p class=\"note\">No plot: {}.</p>", escaped(why));
            }
        }
        *page += "</figure>";
    }
    *page += "</div>";
    if has_front {
        *page += "<p class=\"note\">Rings and dashed lines mark the Pareto front of the two axes of a plot.</p>";
    }
}

fn bjontegaard(page: &mut String, curves: &[Curve<'_>]) {
    let total = curves.len();
    let all: Vec<&Curve<'_>> = curves.iter().filter(|curve| curve.configurations.len() >= MIN_POINTS).collect();
    let (mut deltas, mut pairs) = (Vec::new(), 0);
    for (at, anchor) in all.iter().enumerate() {
        let comparable =
            |test: &&&Curve<'_>| (&test.ladder, test.run, test.content) == (&anchor.ladder, anchor.run, anchor.content);
        for test in all[at + 1..].iter().filter(comparable) {
            pairs += 1;
            if pairs <= MAX_PAIRS {
                deltas.extend(CurveDelta::of(anchor, test));
            }
        }
    }
    let mut rows = String::new();
    for delta in deltas.iter().filter(|delta| delta.refused.is_none()) {
        let _ = write!(
            rows,
            "<tr><td>{} → {}</td><td class=\"t\">{}</td><td class=\"t\">{}</td><td class=\"t\">{}</td></tr>",
            escaped(&delta.baseline),
            escaped(&delta.candidate),
            escaped(&delta.ladder),
            delta.measure,
            escaped(&delta.text())
        );
    }
    *page += "<h2>Bjøntegaard delta of the second curve relative to the first</h2>";
    if total > all.len() {
        let _ = write!(
            page,
            "<p class=\"note\">{} of {total} curves are left out because they have fewer than {MIN_POINTS} configurations.</p>",
            total - all.len()
        );
    }
    if pairs > MAX_PAIRS {
        let _ = write!(page, "<p class=\"note\">The first {MAX_PAIRS} of {pairs} pairs.</p>");
    }
    for line in refusals(&deltas) {
        let _ = write!(page, "<p class=\"note\">{}</p>", escaped(&line));
    }
    if deltas.is_empty() {
        *page += "<p class=\"note\">Bjøntegaard deltas need two curves of the same outputs with at least four configurations each.</p>";
    } else if !rows.is_empty() {
        let _ = write!(
            page,
            "<div class=\"wide\" role=\"group\" aria-label=\"Table\" tabindex=\"0\"><table><tr><th class=\"t\">curves</th><th class=\"t\">outputs</th><th class=\"t\">measure</th><th class=\"t\">difference</th></tr>{rows}</table></div>"
        );
    }
}

/// The elements of a list of the file.
fn list<'a>(file: &'a Value, path: &str) -> &'a [Value] {
    file.pointer(path).and_then(Value::as_array).map_or(&[][..], Vec::as_slice)
}

/// A text of an element, escaped.
fn escaped_text(value: &Value, key: &str) -> String {
    escaped(value.get(key).and_then(Value::as_str).unwrap_or_default())
}

/// Failed and missing repeats.
fn failures(page: &mut String, file: &Value) {
    let mut rows = String::new();
    for configuration in list(file, "/cells") {
        for repeat in list(configuration, "/repeats") {
            let status = escaped_text(repeat, "status");
            if status != "ok" {
                let n = repeat.get("n").and_then(Value::as_u64).map_or_else(String::new, |n| n.to_string());
                let _ = write!(
                    rows,
                    "<tr><td>{}</td><td>{n}</td><td class=\"t failed\">{status}</td><td class=\"t\">{}</td></tr>",
                    escaped_text(configuration, "name"),
                    escaped_text(repeat, "detail")
                );
            }
        }
    }
    if !rows.is_empty() {
        let _ = write!(
            page,
            "<h2>Failed and missing repeats</h2><div class=\"wide\" role=\"group\" aria-label=\"Table\" tabindex=\"0\"><table><tr><th class=\"t\">configuration</th><th>repeat</th><th class=\"t\">status</th><th class=\"t\">reason</th></tr>{rows}</table></div>"
        );
    }
}

/// Preflight checks.
fn checks(page: &mut String, file: &Value) {
    let checks = list(file, "/preflight");
    if checks.is_empty() {
        return;
    }
    *page += "<h2>Preflight checks</h2><div class=\"wide\" role=\"group\" aria-label=\"Table\" tabindex=\"0\"><table><tr><th class=\"t\">check</th><th class=\"t\">state</th><th class=\"t\">detail</th></tr>";
    for check in checks {
        let state = escaped_text(check, "state");
        let _ = write!(
            page,
            "<tr><td>{}</td><td class=\"t {state}\">{state}</td><td class=\"t\">{}</td></tr>",
            escaped_text(check, "check"),
            escaped_text(check, "detail")
        );
    }
    *page += "</table></div>";
}

/// Idle power before each block.
fn baselines(page: &mut String, file: &Value) {
    let baselines = list(file, "/baselines");
    if baselines.is_empty() {
        return;
    }
    *page += "<h2>Idle power</h2><div class=\"wide\" role=\"group\" aria-label=\"Table\" tabindex=\"0\"><table><tr><th class=\"t\">block</th><th>W ± standard error</th><th>n</th><th class=\"t\">note</th></tr>";
    for baseline in baselines {
        let number = |path: &str| baseline.pointer(path).and_then(Value::as_f64);
        let watts = number("/power_watts/mean").map_or_else(
            || "–".to_owned(),
            |mean| escaped(&with_half_width(mean, number("/power_watts/standard_error"))),
        );
        let count = baseline
            .pointer("/power_watts/count")
            .and_then(Value::as_u64)
            .map_or_else(String::new, |count| count.to_string());
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{watts}</td><td>{count}</td><td class=\"t warning\">{}</td></tr>",
            escaped_text(baseline, "id"),
            escaped_text(baseline, "note")
        );
    }
    *page += "</table></div>";
}
