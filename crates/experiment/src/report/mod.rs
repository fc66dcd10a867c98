//! Renders a run as one self-contained HTML page without scripts or external resources. Warnings
//! are at the top.

use std::fmt::Write as _;

use http::index_page::escape as escaped;
use serde_json::Value;

use crate::compare::{
    CurveDelta,
    curves::{Curve, curves},
    refusals,
};
use cli::number::{short, with_half_width};
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

use plot::QualityAxis;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#1c2430;background:#fff}\
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2.2rem}\
table{border-collapse:collapse;width:100%;font-size:.87rem;font-variant-numeric:tabular-nums}\
th,td{padding:.3rem .55rem;border-bottom:1px solid #dfe4ea;text-align:right;vertical-align:top}td:not(.t):not(:first-child){white-space:nowrap}\
th:first-child,td:first-child,td.t,th.t{text-align:left}\
.banner{border-left:5px solid #d55e00;background:#fdf1e8;padding:.7rem 1rem;margin:1rem 0;font-weight:600}\
.note{color:#5a6675;font-size:.9rem}svg{max-width:100%;height:auto}\
.warning{color:#a34a00}.failed{color:#b00020}.wide{overflow-x:auto}";

/// Most pairs of curves for which Bjøntegaard deltas are computed.
const MAX_PAIRS: usize = 30;

/// Renders the page. `file` is the result file of the newest run; it contains checks, tools and
/// failures, which the model does not.
#[must_use]
pub fn html(model: &Model, file: &Value, prices: &Prices) -> String {
    let all = configurations(model);
    let text = |path: &str| file.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let id = model.entries.first().map_or_else(|| text("/run/id").to_owned(), |entry| entry.run.id.clone());
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">",
    );
    let title = [text("/run/name"), &id].into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" · ");
    let _ = write!(
        page,
        "<title>Wattcast {}</title><style>{STYLE}</style></head><body><h1>{}</h1>",
        escaped(&title),
        escaped(&title)
    );
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
    summary(&mut page, &all);
    plots(&mut page, model, &all);
    bjontegaard(&mut page, model);
    issues(&mut page, file);
    page += "<h2>How to read this</h2><p class=\"note\">± is half the width of Student's 95 % interval over the repeats. Energy of the encoder is the dynamic energy that the probe attributed to its \
             container, without the idle power of the machine. Where the container is unknown, it is the energy of the whole host; the table shows which. Windows start and end with a tick that the probe took for \
             them; quality was scored after all measurements. A configuration is on the Pareto front when no other is better in rate, energy or quality and worse in none, by more than the intervals; a single repeat has no interval. \
             Bjøntegaard deltas use PCHIP interpolation with 95 % intervals by the variance of the repeats; the delta by Akima interpolation is in parentheses.</p></body></html>\n";
    page
}

fn banners(page: &mut String, model: &Model, file: &Value, prices: &Prices) {
    let mut banner = |text: &str| {
        let _ = write!(page, "<div class=\"banner\">{}</div>", escaped(text));
    };
    for kind in Unmeasured::among(model.entries.iter().map(|entry| &*entry.derived.source)) {
        banner(kind.banner());
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

/// A mean with its interval, as text; `scale` is its unit in that of the column.
fn mean_with_interval(estimate: Option<Estimate>, scale: f64) -> String {
    estimate.map_or_else(
        || "–".to_owned(),
        |estimate| with_half_width(estimate.mean * scale, estimate.half_width.map(|half| half * scale)),
    )
}

fn summary(page: &mut String, all: &[Configuration<'_>]) {
    *page += "<h2>Configurations</h2><div class=\"wide\"><table><tr><th class=\"t\">configuration</th><th>n</th><th>energy (J)</th><th class=\"t\">energy of</th><th>mJ/frame</th>\
              <th>J per second of media</th><th>rank</th><th>fps</th><th>kbit/s</th><th>VMAF</th><th>cost per stream hour</th></tr>";
    for configuration in all {
        let (entry, figures) = (configuration.first(), Figures::of(configuration));
        let mut source = figures.energy_source.clone().unwrap_or_else(|| "–".to_owned());
        if !figures.note.is_empty() {
            let _ = write!(source, " ({})", figures.note);
        }
        let rank = match (figures.rank, figures.ladder_rank) {
            (Some(all), Some(ladder)) => format!("{all} ({ladder})"),
            (Some(all), None) => all.to_string(),
            _ => "–".to_owned(),
        };
        let columns = [
            configuration.entries.len().to_string(),
            mean_with_interval(figures.joules, 1.0),
            escaped(&source),
            mean_with_interval(figures.joules_per_frame, 1000.0),
            mean_with_interval(figures.joules_per_media_second, 1.0),
            rank,
            mean_with_interval(figures.frames_per_second, 1.0),
            mean_with_interval(figures.bits_per_second, 1e-3),
            mean_with_interval(figures.vmaf, 1.0),
            mean_with_interval(figures.cost_per_stream_hour, 1.0),
        ];
        let _ = write!(page, "<tr><td>{}</td>", escaped(&entry.scenario().name));
        for (at, column) in columns.iter().enumerate() {
            let _ = write!(page, "<td{}>{column}</td>", if at == 2 { " class=\"t\"" } else { "" });
        }
        *page += "</tr>";
    }
    *page += "</table></div><p class=\"note\">Rank by pixels per joule, in brackets among the same outputs; configurations whose intervals overlap tie.</p>";
}

fn plots(page: &mut String, model: &Model, all: &[Configuration<'_>]) {
    let mut drawings = vec![("Energy by configuration, with 95 % intervals".to_owned(), plot::energy(all))];
    let mut of_model = curves(model);
    // A plot shows one quality metric and one source of energy.
    let mut kinds: Vec<(String, String)> =
        of_model.iter().map(|curve| (curve.quality.clone(), curve.source.clone())).collect();
    kinds.sort();
    kinds.dedup();
    for (quality, source) in kinds {
        let (these, rest): (Vec<_>, Vec<_>) =
            of_model.into_iter().partition(|curve| (&curve.quality, &curve.source) == (&quality, &source));
        of_model = rest;
        let front = plot::front(&these);
        drawings.push((
            format!("{quality} by bit rate; rings mark the Pareto front"),
            plot::quality(&these, QualityAxis::Rate, &front),
        ));
        let suffix = if source.is_empty() { String::new() } else { format!(" ({source})") };
        drawings.push((
            format!("{quality} by energy{suffix}; rings mark the Pareto front"),
            plot::quality(&these, QualityAxis::Energy, &front),
        ));
    }
    drawings.push(("Power over time".to_owned(), plot::power(model, all)));
    for (title, drawn) in drawings {
        let title = escaped(&title);
        let _ = write!(page, "<h2>{title}</h2>");
        match drawn {
            Ok(svg) => *page += &svg,
            Err(why) => {
                let _ = write!(page, "<p class=\"note\">No plot: {}.</p>", escaped(&why));
            }
        }
    }
}

fn bjontegaard(page: &mut String, model: &Model) {
    let mut all = curves(model);
    let total = all.len();
    all.retain(|curve| curve.configurations.len() >= MIN_POINTS);
    let (mut deltas, mut pairs) = (Vec::new(), 0);
    for (at, anchor) in all.iter().enumerate() {
        let comparable =
            |test: &&Curve<'_>| (&test.ladder, test.run, test.content) == (&anchor.ladder, anchor.run, anchor.content);
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
            "<div class=\"wide\"><table><tr><th class=\"t\">curves</th><th class=\"t\">outputs</th><th class=\"t\">measure</th><th class=\"t\">difference</th></tr>{rows}</table></div>"
        );
    }
}

/// Failed repeats, preflight checks and baselines.
fn issues(page: &mut String, file: &Value) {
    let list = |path: &str| file.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |value: &Value, key: &str| escaped(value.get(key).and_then(Value::as_str).unwrap_or_default());
    let mut rows = String::new();
    for configuration in list("/cells") {
        for repeat in configuration.get("repeats").and_then(Value::as_array).into_iter().flatten() {
            let status = text(repeat, "status");
            if status != "ok" {
                let n = repeat.get("n").and_then(Value::as_u64).map_or_else(String::new, |n| n.to_string());
                let _ = write!(
                    rows,
                    "<tr><td>{}</td><td>{n}</td><td class=\"t failed\">{status}</td><td class=\"t\">{}</td></tr>",
                    text(&configuration, "name"),
                    text(repeat, "detail")
                );
            }
        }
    }
    if !rows.is_empty() {
        let _ = write!(
            page,
            "<h2>Failed and missing repeats</h2><table><tr><th class=\"t\">configuration</th><th>repeat</th><th class=\"t\">status</th><th class=\"t\">reason</th></tr>{rows}</table>"
        );
    }
    let checks = list("/preflight");
    if !checks.is_empty() {
        *page += "<h2>Preflight checks</h2><table><tr><th class=\"t\">check</th><th class=\"t\">state</th><th class=\"t\"></th></tr>";
        for check in &checks {
            let state = text(check, "state");
            let _ = write!(
                page,
                "<tr><td>{}</td><td class=\"t {state}\">{state}</td><td class=\"t\">{}</td></tr>",
                text(check, "check"),
                text(check, "detail")
            );
        }
        *page += "</table>";
    }
    let baselines = list("/baselines");
    if !baselines.is_empty() {
        *page += "<h2>Idle power</h2><table><tr><th class=\"t\">block</th><th>W</th><th>standard error</th><th>n</th><th class=\"t\"></th></tr>";
        for baseline in &baselines {
            let number =
                |path: &str| baseline.pointer(path).and_then(Value::as_f64).map_or_else(|| "–".to_owned(), short);
            let count = baseline
                .pointer("/power_watts/count")
                .and_then(Value::as_u64)
                .map_or_else(String::new, |count| count.to_string());
            let _ = write!(
                page,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{count}</td><td class=\"t warning\">{}</td></tr>",
                text(baseline, "id"),
                number("/power_watts/mean"),
                number("/power_watts/standard_error"),
                text(baseline, "note")
            );
        }
        *page += "</table>";
    }
}
